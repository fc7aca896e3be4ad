"""A kernel under a mesh of devices: each device computes its part, in shard_map.

Plain jit cannot divide a kernel: it gathers every argument on every device, without a word.
"""

import math
from collections.abc import Callable, Sequence

import jax
from jax.sharding import AxisType, PartitionSpec

# What is independent, by the letter of an axis, may be divided over the axes of the mesh that have these names.
DIVIDED = {"B": ("data", "fsdp"), "I": ("tensor",), "H": ("tensor",), "G": ("tensor",)}


def divide(x: jax.Array, axes: str) -> jax.Array:
    """x, held by the devices of the mesh that is set as DIVIDED says of its axes, a letter each; as it is without one.

    The compiler divides what it is not told about as it likes: rows may end up whole on every device.
    """
    names = _divided(dict(zip(axes, x.shape, strict=True)))
    if not names:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*(names.get(letter) for letter in axes)))


def on_each_device(
    kernel: Callable, arguments: Sequence[jax.Array | None], axes: Sequence[str], results: Sequence[str]
) -> tuple[jax.Array, ...]:
    """kernel(*arguments), divided over the mesh that `jax.set_mesh` has set; without one, as it stands.

    axes, results: a letter an axis of each argument and result: batch B over the mesh's axes data and fsdp; channels I,
    heads H and groups G over tensor. An axis whose length they do not divide stays whole (and with groups, heads).
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
