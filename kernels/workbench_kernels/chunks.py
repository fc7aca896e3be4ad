"""Time cut into equal chunks, read from and written to [B, T, ...] in place.

Measured on two cores (S6, B=8 T=256 I=512 N=16, forward and backward, one run): in place 39 ms, a scan over
time-major copies 63 ms.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp


def even_chunk(time: int, chunk: int) -> int:
    """The chunk, `chunk` at most, that cuts `time` into as few chunks with the least padding."""
    chunks = -(-time // chunk)
    return -(-time // chunks)


def pad_time(array: jax.Array, chunk: int) -> jax.Array:
    """Lengthens axis 1 to whole chunks, with zeros."""
    padding = -array.shape[1] % chunk
    return jnp.pad(array, [(0, 0), (0, padding)] + [(0, 0)] * (array.ndim - 2)) if padding else array


def chunk_of(arrays: Sequence[jax.Array | None], chunk: int, index: jax.Array) -> list[jax.Array | None]:
    """Chunk `index` of each array, None of None."""
    return [None if a is None else jax.lax.dynamic_slice_in_dim(a, index * chunk, chunk, axis=1) for a in arrays]


def put_chunk(array: jax.Array, steps: jax.Array, index: jax.Array) -> jax.Array:
    """The array with `steps` as its chunk `index`, in the array's dtype."""
    return jax.lax.dynamic_update_slice_in_dim(array, steps.astype(array.dtype), index * steps.shape[1], axis=1)
