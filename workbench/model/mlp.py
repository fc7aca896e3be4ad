"""The MLP: GELU, squared ReLU (So et al. 2021, arXiv:2109.08668) or SwiGLU (Shazeer 2020, arXiv:2002.05202)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from workbench.config import MLPConfig
from workbench.model.product import product
from workbench.model.where import Where


class MLP(nnx.Module):
    def __init__(self, config: MLPConfig, width: int, make):
        hidden, matrices = config.sizes(width)
        self.activation, self.bias = config.activation, config.bias
        self.enter = make("mlp.in", (width, matrices * hidden))
        self.out = make("mlp.out", (hidden, width))
        if config.bias:
            self.enter_bias = make("mlp.in_bias", (matrices * hidden,))
            self.out_bias = make("mlp.out_bias", (width,))

    def __call__(self, x: Float[Array, "B T D"], state: None, where: Where) -> tuple[Float[Array, "B T D"], None, dict]:
        h = product(x, self.enter[...], bias=self.enter_bias[...] if self.bias else None)
        if self.activation == "swiglu":
            gate, h = jnp.split(h, 2, axis=-1)
            h = jax.nn.silu(gate) * h
        elif self.activation == "squared_relu":
            h = jnp.square(jax.nn.relu(h))
        else:
            h = jax.nn.gelu(h, approximate=self.activation == "gelu")
        return product(h, self.out[...], bias=self.out_bias[...] if self.bias else None), None, {}

    def initial_state(self, batch: int, capacity: int, dtype) -> None:
        return None
