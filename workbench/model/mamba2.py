"""Mamba-2's mixer: state-space duality (SSD) over heads. Dao & Gu 2024, arXiv:2405.21060, section 7."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float
from workbench_kernels import causal_conv1d, ssd

from workbench.config import Mamba2Config
from workbench.model.initial import uniform
from workbench.model.norm import along_last, rms_norm, wide
from workbench.model.product import product
from workbench.model.where import Where


class Mamba2State(NamedTuple):
    scan: Float[Array, "B H P N"]
    window: Float[Array, "B W C"]


class Mamba2Scan(NamedTuple):
    """What the scan is made of, in its order."""

    x: Float[Array, "B T H P"]
    dt: Float[Array, "B T H"]
    A: Float[Array, " H"]
    B: Float[Array, "B T G N"]
    C: Float[Array, "B T G N"]
    D: Float[Array, " H"]


class Mamba2(nnx.Module):
    """[z | x | B | C | dt] = in(u); [x | B | C] = silu(conv(.)); y = out(norm(ssd(x, dt, A, B, C) * silu(z))).

    The norm is over each group's part of the inner width, as in the code released with Waleffe et al. 2024.
    """

    def __init__(self, config: Mamba2Config, width: int, make):
        inner, heads = config.sizes(width)
        self.config, self.inner, self.heads = config, inner, heads
        self.channels = inner + 2 * config.groups * config.state
        self.enter = make("mamba2.in", (width, inner + self.channels + heads))
        self.conv = make("mamba2.conv", (self.channels, config.conv))
        if config.conv_bias:
            self.conv_bias = make("mamba2.conv_bias", (self.channels,), uniform(config.conv**-0.5))
        self.dt_bias = make("mamba2.dt_bias", (heads,))
        self.A_log = make("mamba2.A_log", (heads,))
        self.D = make("mamba2.D", (heads,))
        self.norm_scale = make("mamba2.norm_scale", (inner,))
        self.out = make("mamba2.out", (inner, width))
        if config.bias:
            self.enter_bias = make("mamba2.in_bias", (inner + self.channels + heads,))
            self.out_bias = make("mamba2.out_bias", (width,))

    def __call__(
        self, u: Float[Array, "B T D"], state: Mamba2State | None, where: Where
    ) -> tuple[Float[Array, "B T D"], Mamba2State | None, dict]:
        given, z, window = self.scanned(u, state, where)
        y, scan = ssd(*given, None if state is None else state.scan, where.segments, where.carried)
        gated = y.reshape(z.shape) * jax.nn.silu(z)
        y = rms_norm(gated, self.norm_scale[...], self.config.groups, self.config.norm_epsilon)
        state = None if state is None else Mamba2State(scan, window)
        return product(y, self.out[...], bias=self.out_bias[...] if self.config.bias else None), state, {}

    def scanned(
        self, u: Float[Array, "B T D"], state: Mamba2State | None, where: Where
    ) -> tuple[Mamba2Scan, Float[Array, "B T I"], Float[Array, "B W C"]]:
        """What the scan is given, the gate z, and the convolution's window after it."""
        batch, time, _ = u.shape
        dtype, groups, size = u.dtype, self.config.groups, self.config.state
        entered = product(u, self.enter[...], bias=self.enter_bias[...] if self.config.bias else None)
        z, xBC, dt = jnp.split(entered, [self.inner, self.inner + self.channels], axis=-1)
        xBC, window = causal_conv1d(
            xBC,
            self.conv[...].astype(dtype),
            self.conv_bias[...].astype(dtype) if self.config.conv_bias else None,
            None if state is None else state.window,
            where.segments,
            where.carried,
            activation="silu",
        )
        x, B, C = jnp.split(xBC, [self.inner, self.inner + groups * size], axis=-1)
        dt = jax.nn.softplus(wide(dt) + along_last(self.dt_bias[...], dt))
        if self.config.dt_limit is not None:
            dt = jnp.clip(dt, *self.config.dt_limit)
        x = x.reshape(batch, time, self.heads, -1)
        B, C = (each.reshape(batch, time, groups, size) for each in (B, C))
        return Mamba2Scan(x, dt, -jnp.exp(self.A_log[...]), B, C, self.D[...]), z, window

    def initial_state(self, batch: int, capacity: int, dtype) -> Mamba2State:
        return Mamba2State(
            jnp.zeros(
                (batch, self.heads, self.config.head_dim, self.config.state), jnp.promote_types(dtype, jnp.float32)
            ),
            jnp.zeros((batch, self.config.conv - 1, self.channels), dtype),
        )
