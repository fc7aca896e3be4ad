"""Where arrays live when a step is divided over devices: a mesh, and rules by parameter name outside the modules."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from workbench.config import Layout
from workbench.data.batches import WHOLE, Part
from workbench.model.names import name_of

AXES = ("data", "fsdp", "sequence", "tensor")
ROWS = P(("data", "fsdp"), "sequence")  # of a batch, and the tokens of a row

# The last two axes of a matrix by the last part of its name: (what it reads, what it makes). None is divided over
# sequence: with the embedding's width over fsdp and sequence, the compiler made every row whole on every device.
INTO, OUT_OF = ("fsdp", "tensor"), ("tensor", "fsdp")
RULES = {
    "qkv": INTO,
    "enter": INTO,
    "output": INTO,  # the head: the vocabulary is divided
    "dt": (None, "tensor"),
    "embedding": OUT_OF,
    "out": OUT_OF,
    "x": OUT_OF,
    "conv": ("tensor", None),
    "A_log": ("tensor", None),
}
OTHERS = ("fsdp", None)  # matrices of a user's own layer


def make_mesh(layout: Layout, devices: Sequence[Any] | None = None) -> Mesh:
    """The devices, by default this machine's, with AXES as its axes. Raises ValueError if they are too few."""
    found = jax.devices() if devices is None else devices
    sizes = tuple(getattr(layout, axis) for axis in AXES)
    if layout.devices > len(found):
        raise ValueError(
            f"the layout needs {' x '.join(map(str, sizes))} = {layout.devices} devices and there "
            f"are {len(found)} ({found[0].device_kind}); make it smaller"
        )
    return jax.make_mesh(sizes, AXES, (AxisType.Auto,) * len(AXES), devices=found[: layout.devices])


def part(mesh: Mesh) -> Part:
    """The rows of a batch that this process's devices read."""
    of = mesh.shape["data"] * mesh.shape["fsdp"]
    read = NamedSharding(mesh, ROWS).addressable_devices_indices_map((of, mesh.shape["sequence"])).values()
    ranges = [rows.indices(of) for rows, _ in read]
    return Part(min(low for low, _, _ in ranges), max(high for _, high, _ in ranges), of)


def placed(batch: dict[str, Any], mesh: Mesh | None, own: Part) -> dict[str, Any]:
    """The batch where the step reads it: with a mesh divided over its devices, of which each process gives its own."""
    if mesh is None:
        return batch
    sharding = NamedSharding(mesh, ROWS)
    if own == WHOLE:
        return jax.device_put(batch, sharding)

    def put(rows):
        whole = len(rows) * own.of // (own.high - own.low)
        first = own.rows(whole).start

        def of_device(index):
            low, high, _ = index[0].indices(whole)
            return rows[low - first : high - first, index[1]]

        return jax.make_array_from_callback((whole, *rows.shape[1:]), sharding, of_device)

    return {name: put(rows) for name, rows in batch.items()}


def spec(name: str, shape: tuple[int, ...], mesh: Mesh | AbstractMesh) -> P:
    """How the parameter of this name is divided; an axis that the mesh does not divide evenly stays whole.

    Parameters of layers have an axis of periods in front. Vectors and scalars are on every device.
    """
    own = len(shape) - ("layers." in name)
    if own < 2:
        return P()
    rule = RULES.get(name.rpartition(".")[2], OTHERS)
    divided = [
        axis if axis and size % mesh.shape[axis] == 0 else None for axis, size in zip(rule, shape[-2:], strict=True)
    ]
    return P(*(None,) * (len(shape) - 2), *divided)


def shardings(tree: Any, mesh: Mesh) -> Any:
    """A tree like the model's or the optimizer state's, of the sharding of every array."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: NamedSharding(mesh, spec(name_of(path), leaf.shape, mesh)), tree
    )


def divided(tree: Any, mesh: Mesh) -> Any:
    """A tree like the model's or the optimizer state's, of host arrays, of which each device gets its part alone.

    In a cluster every process has all of them, and gives its own devices their parts.
    """

    def put(array, sharding):
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    return jax.tree.map(put, tree, shardings(tree, mesh))


def check_rows(rows: int, length: int, layout: Layout) -> None:
    """Raises ValueError unless a batch of that many rows of that length can be divided."""
    parts = math.prod((layout.data, layout.fsdp, layout.micro))
    if rows % parts:
        raise ValueError(
            f"a batch has {rows} rows, and the layout divides it into data {layout.data} x fsdp {layout.fsdp} x micro "
            f"{layout.micro} = {parts} parts; make data.batch a multiple, or the layout smaller"
        )
    if length % layout.sequence:
        raise ValueError(
            f"a row has {length} tokens, and the layout divides it into {layout.sequence} parts; make data.length a "
            "multiple of layout.sequence"
        )
