"""Question: how does a mixer of my own compare with the arms of phonebook.py, on the same data, seeds and parameters?
Command: copy this file, change both classes, `workbench check FILE` until all holds, then `workbench run FILE`
Cost: that of phonebook.py and a quarter more (21 minutes on two cores); writing the mixer: 15 minutes.
Answer: this one, with 64 numbers a layer to remember, is not trained on phone books; on text Mamba-2 is ahead of it."""

from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx

from workbench import count
from workbench.model.initial import uniform
from workbench.study.join import join


class MyMixer(nnx.Module):  # here minGRU, gated: Feng et al. 2024, arXiv:2410.01201
    def __init__(self, inner, width, make):
        self.enter = make("my.in", (width, 3 * inner), uniform(width**-0.5))
        self.gate_bias = make("my.gate_bias", (inner,), uniform(4.0))  # remembers 1 to 55 tokens; _bias: no decay
        self.out = make("my.out", (inner, width), uniform(inner**-0.5))

    def __call__(self, x, state, where):  # x [B, T, width]; state: None in training, else as from initial_state
        v, z, gate = jnp.split(x @ self.enter[...].astype(x.dtype), 3, axis=-1)
        real = True if where.segments is None else where.segments[..., None] != 0
        gate = jnp.where(real, nnx.sigmoid(gate + self.gate_bias[...][None, None]), 0)  # padding: no time passes
        keep = jnp.where(real & (where.positions[..., None] == 0), 0, 1 - gate)  # a document begins from nothing
        write = gate * v if state is None else (gate * v).at[:, 0].add(keep[:, 0] * state)
        _, h = jax.lax.associative_scan(lambda a, b: (a[0] * b[0], a[1] * b[0] + b[1]), (keep, write), axis=1)
        y = (h.astype(x.dtype) * nnx.silu(z)) @ self.out[...].astype(x.dtype)
        return y, None if state is None else h[:, -1], {}

    def initial_state(self, batch, capacity, dtype):  # h in float32 or wider
        return jnp.zeros((batch, self.gate_bias[...].shape[-1]), jnp.promote_types(dtype, jnp.float32))


@dataclass(frozen=True)
class MyMixerConfig:
    inner: int = 64

    def build(self, width, make):
        return MyMixer(self.inner, width, make)

    def parameters(self, width):
        return 4 * width * self.inner + self.inner

    def operations(self, width, context):  # multiply-adds a token: a name, then m, n, k and how many such products
        each = {"in": (3 * self.inner, width, 1), "scan": (1, 2, self.inner), "out": (width, self.inner, 1)}
        return [count.Operation(name, 1, *sizes) for name, sizes in each.items()]

    def state_bytes(self, width, context, element_bytes):
        return 4 * self.inner


SCALES, runs, tuning = join(
    Path(__file__).with_name("phonebook.py"), "my_mixer", "XXXX", {"X": MyMixerConfig()},
    rates={"phonebook": 1e-2, "text": 1e-2},  # put here what --tune chooses
)  # fmt: skip
