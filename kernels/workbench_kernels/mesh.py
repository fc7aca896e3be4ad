"""A kernel under a mesh of devices: each device computes its part, in shard_map.

Plain jit cannot divide a kernel: it gathers every argument on every device, without a word. Nor can it divide time,
where each step needs the one before: there a device is told by its neighbours what its part of a sequence starts with.
"""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec

# What is independent, by the letter of an axis, may be divided over the axes of the mesh that have these names.
DIVIDED = {
    "B": ("data", "fsdp"),
    "T": ("sequence",),
    "C": ("tensor",),
    "I": ("tensor",),
    "H": ("tensor",),
    "G": ("tensor",),
    "V": ("tensor",),
}


def divide(x: jax.Array, axes: str) -> jax.Array:
    """x, held by the devices of the mesh that is set as DIVIDED says of its axes, a letter each; as it is without one.

    The compiler divides what it is not told about as it likes: rows may end up whole on every device.
    """
    names = _divided(dict(zip(axes, x.shape, strict=True)))
    if not names:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*(names.get(letter) for letter in axes)))


def parts(axis: str, size: int) -> int:
    """How many parts an axis of this letter and length is in under the mesh that is set; 1 without one."""
    sizes = jax.sharding.get_abstract_mesh().shape
    return math.prod(sizes[name] for name in _divided({axis: size}).get(axis, ()))


def on_each_device(
    kernel: Callable, arguments: Sequence[jax.Array | None], axes: Sequence[str], results: Sequence[str]
) -> tuple[jax.Array, ...]:
    """kernel(*arguments), divided over the mesh that `jax.set_mesh` has set; without one, as it stands.

    axes, results: a letter an axis of each argument and result: batch B over the mesh's axes data and fsdp; time T over
    sequence (where `parts` says so, the kernel asks its neighbours); channels C and I, heads H and groups G over
    tensor. An axis whose length they do not divide stays whole (and with groups, heads).
    """
    sizes = {
        letter: size
        for array, letters in zip(arguments, axes, strict=True)
        if array is not None
        for letter, size in zip(letters, array.shape, strict=True)
    }
    names = _divided(sizes)
    if "H" in names and sizes["G"] > 1 and "G" not in names:
        del names["H"]
    if not names:
        return kernel(*arguments)

    def spec(letters):
        return PartitionSpec(*(names.get(letter) for letter in letters))

    given = [(array, spec(letters)) for array, letters in zip(arguments, axes, strict=True) if array is not None]
    missing = [array is None for array in arguments]

    def local(*arrays):
        arrays = list(arrays)
        return kernel(*(None if none else arrays.pop(0) for none in missing))

    divided = jax.shard_map(
        local,
        in_specs=tuple(spec for _, spec in given),
        out_specs=tuple(map(spec, results)),
        check_vma=False,  # kernels say nothing of how their results vary over devices
    )
    return divided(*(array for array, _ in given))


def neighbour(x: jax.Array, places: int) -> jax.Array:
    """What the device so many places before this one holds (below 0: after it); zeros where there is none."""
    devices = jax.lax.axis_size("sequence")
    pairs = [(i, i + places) for i in range(devices) if 0 <= i + places < devices]
    return jax.lax.ppermute(x, "sequence", pairs)


def pass_states(scan: Callable, decay: Callable) -> Callable:
    """A scan of sequences whose parts are on several devices, from a scan of one part; for `on_each_device`.

    Both are scan(x, dt, A, B, C, state, starts) -> (y, last state), the states being of the whole sequence and on every
    device. decay(dt, A, starts), shaped to meet a state, is what a part leaves of the state before it: a part is affine
    in that. Each device scans its part from zero for what it adds, the pairs (decay, added) are combined over the
    devices before it, and it scans again from the state that it then knows. The gradient is the same thing from the
    end. Against one device this scans twice, the first time for the state alone, which the XLA forms make use of.
    """

    @jax.custom_vjp
    def run(x, dt, A, B, C, state, starts):
        return forward(x, dt, A, B, C, state, starts)[0]

    def forward(x, dt, A, B, C, state, starts):
        def own(*given):
            return scan(*given, starts)

        kept = decay(dt, A, starts)
        _, added = own(x, dt, A, B, C, state)
        before = state + neighbour(_combined(kept, added, 1), 1)
        (y, last), pull_back = jax.vjp(own, x, dt, A, B, C, before)
        return (y, last), (pull_back, kept)

    def backward(saved, gradients):
        pull_back, kept = saved
        dy, dlast = gradients
        *_, added = pull_back((dy, dlast))
        after = dlast + neighbour(_combined(kept, added, -1), -1)
        return *pull_back((dy, after)), None

    run.defvjp(forward, backward)

    def whole(x, dt, A, B, C, state, starts):
        place, end = jax.lax.axis_index("sequence"), jax.lax.axis_size("sequence") - 1
        y, last = run(x, dt, A, B, C, jnp.where(place == 0, state, 0), starts)
        return y, jax.lax.psum(jnp.where(place == end, last, 0), "sequence")

    return whole


def _combined(kept: jax.Array, added: jax.Array, direction: int) -> jax.Array:
    """What this device's part and all before it (after it, with direction -1) add, in log2(devices) exchanges."""
    reach = 1
    while reach < jax.lax.axis_size("sequence"):
        added = added + kept * neighbour(added, direction * reach)
        kept = kept * neighbour(kept, direction * reach)  # 0 where nothing is before: so is what it will multiply
        reach *= 2
    return added


def _divided(sizes: dict[str, int]) -> dict[str, tuple[str, ...]]:
    """The axes of the mesh over which each of these is divided, of those that are and can be."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return {}
    axes = zip(mesh.axis_names, mesh.axis_sizes, mesh.axis_types, strict=True)
    free = {name: size for name, size, kind in axes if kind != AxisType.Manual and size > 1}
    names = {letter: tuple(n for n in DIVIDED[letter] if n in free) for letter in sizes if letter in DIVIDED}
    return {
        letter: over for letter, over in names.items() if over and sizes[letter] % math.prod(map(free.get, over)) == 0
    }
