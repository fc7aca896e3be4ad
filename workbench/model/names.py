"""The one naming of parameters: it serves decay, sharding, checkpoints and exchange."""

from __future__ import annotations

import hashlib
from typing import Any

import jax
import numpy as np


def name_of(path: tuple) -> str:
    """`layers.0.mixer.A_log` of a tree path; the `.value` that a flax Param adds at its end is dropped."""
    if path and path[-1] == jax.tree_util.GetAttrKey("value"):
        path = path[:-1]
    return ".".join(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path)


def named(tree: Any) -> dict[str, jax.Array]:
    """Every array of a tree by its name, in tree order."""
    return {name_of(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def restored(tree: Any, arrays: dict[str, Any]) -> Any:
    """The tree with its leaves taken from `arrays` by name. Raises ValueError on a missing, extra or misshapen one."""
    paths, structure = jax.tree_util.tree_flatten_with_path(tree)
    wanted = {name_of(path): leaf for path, leaf in paths}
    missing, extra = sorted(wanted.keys() - arrays.keys()), sorted(arrays.keys() - wanted.keys())
    if missing or extra:
        raise ValueError(f"parameters do not fit: missing {missing[:5]}, not expected {extra[:5]}")
    for name, leaf in wanted.items():
        if tuple(leaf.shape) != tuple(arrays[name].shape):
            raise ValueError(f"parameter {name} has shape {tuple(arrays[name].shape)}, needed {tuple(leaf.shape)}")
    return jax.tree_util.tree_unflatten(structure, [arrays[name] for name in wanted])


def weights_hash(arrays: dict[str, Any]) -> str:
    """sha256 of every array with its name, dtype and shape, in name order."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(array.view(np.uint8).data if array.ndim else array.tobytes())
    return digest.hexdigest()
