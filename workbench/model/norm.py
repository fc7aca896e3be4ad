"""Norms: float32 inside, the input's dtype outside."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

EPSILON = 1e-5


def wide(x: jax.Array) -> jax.Array:
    """x in float32, or as it is when it is wider."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def along_last(values: Float[Array, " D"], x: jax.Array) -> jax.Array:
    """One value for each place of x's last axis, shaped to meet x."""
    return values.reshape((1,) * (x.ndim - 1) + (-1,))


def rms_norm(
    x: Float[Array, "... D"], scale: Float[Array, " D"], groups: int = 1, epsilon: float = EPSILON
) -> Float[Array, "... D"]:
    """x over its root mean square, within each of `groups` equal parts of the last axis."""
    parts = wide(x).reshape(*x.shape[:-1], groups, -1)
    parts = parts * jax.lax.rsqrt(jnp.mean(parts * parts, axis=-1, keepdims=True) + epsilon)
    return (parts.reshape(x.shape) * along_last(scale, x)).astype(x.dtype)


class RMSNorm(nnx.Module):
    """Zhang & Sennrich 2019, arXiv:1910.07467."""

    def __init__(self, width: int, make, epsilon: float = EPSILON):
        self.epsilon = epsilon
        self.scale = make("norm.scale", (width,))

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        return rms_norm(x, self.scale[...], epsilon=self.epsilon)


class LayerNorm1p(nnx.Module):
    """LayerNorm whose scale is kept as its difference from one, as in Megatron-LM's Transformers."""

    def __init__(self, width: int, make, epsilon: float = EPSILON):
        self.epsilon = epsilon
        self.offset_scale = make("norm.offset_scale", (width,))
        self.bias = make("norm.bias", (width,))

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        centred = wide(x) - jnp.mean(wide(x), axis=-1, keepdims=True)
        scaled = centred * jax.lax.rsqrt(jnp.mean(centred * centred, axis=-1, keepdims=True) + self.epsilon)
        return (scaled * along_last(1 + self.offset_scale[...], x) + along_last(self.bias[...], x)).astype(x.dtype)


def norm(kind: str, width: int, make, epsilon: float = EPSILON) -> RMSNorm | LayerNorm1p:
    return {"rms": RMSNorm, "layernorm1p": LayerNorm1p}[kind](width, make, epsilon)
