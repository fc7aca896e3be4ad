"""Shape checks that say what was given and what is needed, and the dtype that sums are made in."""

import jax
import jax.numpy as jnp
import numpy as np


def require(name: str, array: jax.Array, axes: tuple[str, ...], sizes: dict[str, int]) -> None:
    """Raises ValueError unless `array` has these axes; an axis met for the first time is added to `sizes`."""
    if len(array.shape) != len(axes):
        raise ValueError(f"{name} has shape {array.shape}; it needs {len(axes)} axes [{', '.join(axes)}]")
    for axis, size in zip(axes, array.shape, strict=True):
        if sizes.setdefault(axis, size) != size:
            needed = ", ".join(f"{a}={sizes[a]}" if a in sizes else a for a in axes)
            raise ValueError(f"{name} has shape {array.shape}; the other arguments need [{needed}]")


def require_steps(name: str, array: jax.Array) -> None:
    """Raises ValueError if time, axis 1, is empty."""
    if array.shape[1] < 1:
        raise ValueError(f"{name} has shape {array.shape}; it needs at least one step of time")


def sum_dtype(*arrays: jax.Array | None) -> np.dtype:
    """The dtype of states and sums: the widest of the arguments', and at least float32."""
    return jnp.promote_types(jnp.result_type(*(a for a in arrays if a is not None)), jnp.float32)


def widest_dtype() -> np.dtype:
    """What references compute in: float64 where JAX allows it (jax_enable_x64), float32 elsewhere."""
    return jax.dtypes.canonicalize_dtype(np.float64)
