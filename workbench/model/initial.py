"""The initialisation of every parameter of every layer: one table, audited by tests/model/test_initial.py.

Initialisation is the field's hidden confounder, so nothing is initialised anywhere else. Values after the code released
with Waleffe et al. 2024 (arXiv:2406.07887); L is the number of layers (symbols), fan_in the input's size.

Two things differ, for every architecture alike (how they were found: LOG.md, 2026-11-24):

- That code draws from N(0, 0.02) at width 4096, where 0.02 = 1.28 / sqrt(4096). Kept at 0.02, attention and MLPs would
  start far too small in a narrow model, while Mamba's U(+-1/sqrt(fan_in)) follows the width. So each 0.02 is
  1.28 / sqrt(width) here: the same numbers at the paper's width.
- An untied embedding is N(0, 1), not N(0, 0.02 sqrt(4096 / width)): a small Transformer takes several times as long to
  learn a look-up otherwise.

A user's own layer gives its distribution with the shape: `make("my.weight", shape, normal(0.02))`.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

Distribution = Callable[[jax.Array, tuple[int, ...]], jax.Array]  # (key, shape) -> float32 array

PAPER_WIDTH = 4096


@cache  # one function for one distribution, so that it is compiled once, as are those that follow
def normal(std: float) -> Distribution:
    return lambda key, shape: std * jax.random.normal(key, shape, jnp.float32)


@cache
def uniform(bound: float) -> Distribution:
    return lambda key, shape: jax.random.uniform(key, shape, jnp.float32, -bound, bound)


@cache
def constant(value: float) -> Distribution:
    return lambda key, shape: jnp.full(shape, value, jnp.float32)


@cache
def log_uniform(low: float, high: float) -> Distribution:
    """log(u) for u uniform in [low, high]."""
    return lambda key, shape: jnp.log(jax.random.uniform(key, shape, jnp.float32, low, high))


@cache
def inverse_softplus_step(low: float, high: float, floor: float) -> Distribution:
    """The bias whose softplus is exp(U(ln low, ln high)), at least `floor`."""

    def sample(key, shape):
        u = jax.random.uniform(key, shape, jnp.float32)
        step = jnp.maximum(jnp.exp(math.log(low) + u * (math.log(high) - math.log(low))), floor)
        return step + jnp.log(-jnp.expm1(-step))

    return sample


@cache
def log_arange() -> Distribution:
    """log(1..N) along the last axis."""
    return lambda key, shape: jnp.broadcast_to(jnp.log(jnp.arange(1, shape[-1] + 1, dtype=jnp.float32)), shape)


def table(width: int, layers: int) -> dict[str, Callable[[tuple[int, ...]], Distribution]]:
    """Parameter kind -> shape -> distribution, for a model of `layers` symbols. Matrices are [fan_in, ...]."""
    std = 0.02 * math.sqrt(PAPER_WIDTH / width)

    def always(distribution: Distribution):
        return lambda shape: distribution

    def fan_in(shape):
        return uniform(1 / math.sqrt(shape[0]))

    def taps(shape):
        return uniform(1 / math.sqrt(shape[-1]))

    dt_bias = inverse_softplus_step(0.001, 0.1, 1e-4)
    return {
        "embedding": always(normal(1)),
        "tied_embedding": always(normal(std)),  # it is the head as well
        "head": always(normal(std)),
        "norm.scale": always(constant(1)),
        "norm.offset_scale": always(constant(0)),  # LayerNorm-1p keeps its scale minus one
        "norm.bias": always(constant(0)),
        "attention.qkv": always(normal(std)),
        "attention.qkv_bias": always(constant(0)),
        "attention.q_norm_scale": always(constant(1)),
        "attention.k_norm_scale": always(constant(1)),
        "attention.conv": taps,
        "attention.conv_bias": always(constant(0)),
        "attention.out": always(normal(std / math.sqrt(2 * layers))),
        "attention.out_bias": always(constant(0)),
        "mlp.in": always(normal(std)),
        "mlp.in_bias": always(constant(0)),
        "mlp.out": always(normal(std / math.sqrt(2 * layers))),
        "mlp.out_bias": always(constant(0)),
        "mamba.in": fan_in,
        "mamba.in_bias": always(constant(0)),
        "mamba.conv": taps,  # the biases too: their layers give it, since a bias's shape does not show the taps
        "mamba.x": fan_in,
        "mamba.dt": fan_in,
        "mamba.dt_bias": always(dt_bias),
        "mamba.A_log": always(log_arange()),
        "mamba.D": always(constant(1)),
        "mamba.out": always(normal(std / math.sqrt(layers))),
        "mamba.out_bias": always(constant(0)),
        "mamba2.in": fan_in,
        "mamba2.in_bias": always(constant(0)),
        "mamba2.conv": taps,
        "mamba2.dt_bias": always(dt_bias),
        "mamba2.A_log": always(log_uniform(1, 16)),
        "mamba2.D": always(constant(1)),
        "mamba2.norm_scale": always(constant(1)),
        "mamba2.out": always(normal(std / math.sqrt(layers))),
        "mamba2.out_bias": always(constant(0)),
    }


class Make:
    """Makes the parameters of one layer: `make("mlp.in", shape)`.

    The key is folded by the layer's index (0 for what no layer owns, then the pattern's symbols from 1) and the kind's
    name, so that a parameter's value depends on nothing else: architectures share the embedding and the head, and any
    layer that they have at the same index. With `host` it ends up in the host's memory, whole on a device only until
    then: the same numbers.
    """

    def __init__(
        self, key: jax.Array, width: int, layers: int, index: int, dtype: Any = jnp.float32, host: bool = False
    ):
        self.key, self.dtype, self.table = jax.random.fold_in(key, index), dtype, table(width, layers)
        self.host = host

    def __call__(self, kind: str, shape: tuple[int, ...], distribution: Distribution | None = None) -> nnx.Param:
        if distribution is None:
            if kind not in self.table:
                raise ValueError(f"no initialisation for {kind!r}: give make() a distribution, or add it to the table")
            distribution = self.table[kind](shape)
        key = jax.random.fold_in(self.key, zlib.crc32(kind.encode()))
        if self.host:
            return nnx.Param(np.array(_compiled(distribution, shape, self.dtype, key)))  # a copy, also from a CPU
        return nnx.Param(_drawn(distribution, shape, self.dtype, key))


def _drawn(distribution: Distribution, shape: tuple[int, ...], dtype: Any, key: jax.Array) -> jax.Array:
    return distribution(key, shape).astype(dtype)


# as in a whole model's program: run one by one, its products with constants would be rounded otherwise
_compiled = partial(jax.jit, static_argnums=(0, 1, 2))(_drawn)
