"""Mamba's mixer: a selective scan over every channel (S6). Gu & Dao 2023, arXiv:2312.00752."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float
from workbench_kernels import causal_conv1d, selective_scan

from workbench.config import MambaConfig
from workbench.model.initial import uniform
from workbench.model.norm import along_last, wide
from workbench.model.product import product
from workbench.model.where import Where


class MambaState(NamedTuple):
    scan: Float[Array, "B I N"]
    window: Float[Array, "B W I"]


class MambaScan(NamedTuple):
    """What the scan is made of, in its order."""

    x: Float[Array, "B T I"]
    dt: Float[Array, "B T I"]
    A: Float[Array, "I N"]
    B: Float[Array, "B T N"]
    C: Float[Array, "B T N"]
    D: Float[Array, " I"]
    z: Float[Array, "B T I"]


class Mamba(nnx.Module):
    """[x | z] = in(u); x = silu(conv(x)); dt, B, C from x; y = out(scan(x, dt, A, B, C) * silu(z))."""

    def __init__(self, config: MambaConfig, width: int, make):
        inner, rank = config.sizes(width)
        self.config, self.inner, self.rank = config, inner, rank
        self.enter = make("mamba.in", (width, 2 * inner))
        self.conv = make("mamba.conv", (inner, config.conv))
        if config.conv_bias:
            self.conv_bias = make("mamba.conv_bias", (inner,), uniform(config.conv**-0.5))
        self.x = make("mamba.x", (inner, rank + 2 * config.state))
        self.dt = make("mamba.dt", (rank, inner))
        self.dt_bias = make("mamba.dt_bias", (inner,))
        self.A_log = make("mamba.A_log", (inner, config.state))
        self.D = make("mamba.D", (inner,))
        self.out = make("mamba.out", (inner, width))
        if config.bias:
            self.enter_bias = make("mamba.in_bias", (2 * inner,))
            self.out_bias = make("mamba.out_bias", (width,))

    def __call__(
        self, u: Float[Array, "B T D"], state: MambaState | None, where: Where
    ) -> tuple[Float[Array, "B T D"], MambaState | None, dict]:
        given, window = self.scanned(u, state, where)
        y, scan = selective_scan(*given, None if state is None else state.scan, where.segments, where.carried)
        state = None if state is None else MambaState(scan, window)
        return product(y, self.out[...], bias=self.out_bias[...] if self.config.bias else None), state, {}

    def scanned(
        self, u: Float[Array, "B T D"], state: MambaState | None, where: Where
    ) -> tuple[MambaScan, Float[Array, "B W I"]]:
        """What the scan is given, and the convolution's window after it."""
        dtype = u.dtype
        enter_bias = self.enter_bias[...] if self.config.bias else None
        x, z = jnp.split(product(u, self.enter[...], bias=enter_bias), 2, axis=-1)
        x, window = causal_conv1d(
            x,
            self.conv[...].astype(dtype),
            self.conv_bias[...].astype(dtype) if self.config.conv_bias else None,
            None if state is None else state.window,
            where.segments,
            where.carried,
            activation="silu",
        )
        low, B, C = jnp.split(product(x, self.x[...]), [self.rank, self.rank + self.config.state], axis=-1)
        dt = wide(product(low, self.dt[...]))
        dt = jax.nn.softplus(dt + along_last(self.dt_bias[...], dt))
        return MambaScan(x, dt, -jnp.exp(self.A_log[...]), B, C, self.D[...], z), window

    def initial_state(self, batch: int, capacity: int, dtype) -> MambaState:
        return MambaState(
            jnp.zeros((batch, self.inner, self.config.state), jnp.promote_types(dtype, jnp.float32)),
            jnp.zeros((batch, self.config.conv - 1, self.inner), dtype),
        )
