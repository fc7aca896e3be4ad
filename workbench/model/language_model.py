"""A language model from a pattern: embedding, one residual layer a symbol, a final norm, a head."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int
from workbench_kernels import platform
from workbench_kernels.mesh import divide

from workbench import pattern as patterns
from workbench.config import LayerConfig, ModelConfig
from workbench.model.initial import Make
from workbench.model.norm import norm, wide
from workbench.model.where import Progress, Where, locate, nothing_read

UNROLLED = (
    16  # layers that a CPU runs one by one instead of scanning: 1.2 to 1.35x faster steps, twice the compile time
)


class ModelState(NamedTuple):
    """What a model keeps of the tokens it has read; a value, never mutated.

    layers: each layer's state, in order: apart, so that a token written to a cache does not copy the others.
    """

    layers: tuple
    progress: Progress


class Output(NamedTuple):
    """hidden: after the final norm. state: after each row's last real token, None without one. aux: linear sums."""

    hidden: Float[Array, "B T D"]
    state: ModelState | None
    aux: dict[str, Array]


class Layer(nnx.Module):
    """x + f(norm(x))."""

    def __init__(self, layer: LayerConfig, config: ModelConfig, make: Make):
        self.norm = norm(config.norm, config.width, make, config.norm_epsilon)
        self.mixer = layer.build(config.width, make)

    def __call__(self, x: Float[Array, "B T D"], state: Any, where: Where) -> tuple[Float[Array, "B T D"], Any, dict]:
        y, state, aux = self.mixer(self.norm(x), state, where)
        return x + y, state, aux


class LanguageModel(nnx.Module):
    """Parameters are float32 (float64 under x64 when the config asks), stacked over the pattern's smallest period.

    host: whether they are made in the host's memory.
    """

    def __init__(self, config: ModelConfig, key: jax.Array, host: bool = False):
        self.config = config
        layers = config.layers
        dtype = jnp.promote_types(config.dtype, jnp.float32)
        make = partial(Make, key, config.width, len(layers), dtype=dtype, host=host)
        period = patterns.period(patterns.parse(config.pattern, config.symbols))

        def stacked(position: int) -> Layer:
            each = [Layer(layers[i], config, make(1 + i)) for i in range(position, len(layers), period)]
            return _stacked(each, np.stack if host else jnp.stack)

        ends = make(0)
        kind = "tied_embedding" if config.tied else "embedding"
        self.embedding = ends(kind, (config.vocabulary, config.width))
        self.layers = nnx.List([stacked(position) for position in range(period)])
        self.norm = norm(config.norm, config.width, ends, config.norm_epsilon)
        if not config.tied:
            self.output = ends("head", (config.width, config.vocabulary))

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        state: ModelState | None = None,
        segments: Int[Array, "B T"] | None = None,
        *,
        unroll: bool | None = None,
        remat: str = "none",
    ) -> Output:
        """Hidden states of tokens; with a state, those that follow the tokens it has read.

        unroll: layers one by one instead of in a scan over periods; by default for a single token after a state, and on
        a CPU for up to 16 layers.
        remat: what the backward pass makes again instead of keeping: "none", "products" (all but the results of matrix
        products with weights) or "all" (everything between two layers).
        """
        if segments is not None:  # one number a token: whole on every device, whatever is divided of the sequence
            segments = divide(segments, "BS")
        where, progress = locate(*tokens.shape, segments, None if state is None else state.progress)
        x = self.embedding[...][tokens].astype(self.config.dtype)  # in this order, gradients add up in float32
        period, periods = len(self.layers), self.periods
        if unroll is None:
            few = platform() == "cpu" and periods * period <= UNROLLED
            unroll = periods == 1 or few or (state is not None and tokens.shape[1] == 1)

        def call(layer, x, before, where):
            x, state, aux = layer(divide(x, "BTD"), before, where)
            return divide(x, "BTD"), state, aux

        keep = {"products": jax.checkpoint_policies.dots_with_no_batch_dims_saveable, "all": None}
        called = call if remat == "none" else jax.checkpoint(call, policy=keep[remat])

        def run(x, inputs):
            layers, states = inputs
            after, sums = [], {}
            for layer, before in zip(layers, states, strict=True):
                x, new, aux = called(layer, x, before, where)
                after.append(new)
                sums = {name: sums.get(name, 0) + value for name, value in aux.items()} | {
                    name: value for name, value in sums.items() if name not in aux
                }
            return x, (tuple(after), sums)

        before = (None,) * (periods * period) if state is None else state.layers
        if unroll:
            states, aux = (), []
            for i in range(periods):
                layers = jax.tree.map(lambda leaf: leaf[i], self.layers)  # noqa: B023
                x, (after, sums) = run(x, (layers, before[i * period : (i + 1) * period]))
                states, aux = states + after, [*aux, sums]
            aux = _stacked(aux)
        else:
            stacks = tuple(_stacked(before[position::period]) for position in range(period))
            x, (after, aux) = jax.lax.scan(run, x, (self.layers, stacks))
            states = tuple(jax.tree.map(lambda leaf: leaf[i], stack) for i in range(periods) for stack in after)  # noqa: B023
        aux = jax.tree.map(lambda values: values.sum(axis=0), aux)
        after = None if state is None else ModelState(states, progress)
        return Output(self.norm(x), after, aux)

    def head(self) -> Float[Array, "D V"]:
        """The matrix from hidden states to logits."""
        return self.embedding[...].T if self.config.tied else self.output[...]

    def logits(self, hidden: Float[Array, "... D"]) -> Float[Array, "... V"]:
        """Logits in float32 or wider."""
        return jnp.matmul(hidden, self.head().astype(hidden.dtype), preferred_element_type=wide(hidden).dtype)

    def initial_state(self, batch: int, capacity: int) -> ModelState:
        """The state of `batch` rows that have read nothing and will read at most `capacity` tokens."""
        dtype = jnp.dtype(self.config.dtype)
        period = tuple(layer.mixer.initial_state(batch, capacity, dtype) for layer in self.layers)
        return ModelState(period * self.periods, nothing_read(batch))

    def apart(self) -> LanguageModel:
        """The same model with an array of its own for every layer's weights, as if its pattern had no period.

        Of a stack, each layer's slice is copied before a product reads it: at one token a step, that is most of a step.
        """
        return self if self.periods == 1 else _apart(self)

    @property
    def periods(self) -> int:
        """How often the pattern's smallest period is repeated."""
        return jax.tree.leaves(self.layers[0])[0].shape[0]


def _stacked(trees, stack=jnp.stack):
    return jax.tree.map(lambda *leaves: stack(leaves), *trees)


@jax.jit
def _apart(model: LanguageModel) -> LanguageModel:
    copy = jax.tree.map(lambda leaf: leaf, model)
    copy.layers = nnx.List(
        [jax.tree.map(lambda leaf: leaf[i : i + 1], layer) for i in range(model.periods) for layer in model.layers]  # noqa: B023
    )
    return copy


@partial(jax.jit, static_argnums=0)
def _create(config: ModelConfig, key: jax.Array) -> LanguageModel:
    return LanguageModel(config, key)


def create(config: ModelConfig, seed: int, host: bool = False) -> LanguageModel:
    """A freshly initialised model, a pure function of (config, seed).

    host: in the host's memory, to be divided over devices (workbench.train.layout.divided). Only one layer's parameter
    at a time is on a device then. A program divided over the devices would need less, but gives other last bits: a CPU
    draws the ends of short rows in another way.
    """
    key = jax.random.key(seed)
    return LanguageModel(config, key, host=True) if host else _create(config, key)
