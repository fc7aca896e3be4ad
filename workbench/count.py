"""Parameters, FLOPs a token and state bytes of a model, from its config alone. Needs only the standard library.

Conventions: a multiply-add is 2 FLOPs; training is three times the forward pass at the mean context of causal
attention, recomputation not counted; decoding is one token at the full context; the embedding look-up costs nothing,
the output head is counted; norms and activations are not. State is keys, values and convolution windows in the
compute dtype and recurrent state in float32, for one sequence.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from workbench import pattern as patterns

if TYPE_CHECKING:
    from workbench.config import LayerConfig, ModelConfig

ELEMENT_BYTES = {"bfloat16": 2, "float32": 4, "float64": 8}


class Operation(NamedTuple):
    """`batch` products of [m, k] with [k, n], for one token."""

    name: str
    m: float
    n: float
    k: float
    batch: float

    @property
    def flops(self) -> float:
        return 2 * self.m * self.n * self.k * self.batch


@dataclass(frozen=True)
class Count:
    """What a model costs at a context length; both kinds of parameters, FLOPs a token, state bytes a sequence."""

    context: int
    parameters: int
    embedding_parameters: int  # the embedding, and the output head where it is not tied
    train_flops_per_token: int
    decode_flops_per_token: int
    state_bytes: int

    @property
    def non_embedding_parameters(self) -> int:
        return self.parameters - self.embedding_parameters


def count(config: ModelConfig, context: int = 4096) -> Count:
    """Counts of a model at a context length, under this module's conventions.

    Raises ValueError if the context is shorter than one token.
    """
    if context < 1:
        raise ValueError(f"the context is at least 1 token; got {context}")
    width, times = config.width, Counter(patterns.parse(config.pattern, config.symbols))
    layers = [(config.symbols[symbol], times[symbol]) for symbol in times]
    norm = width if config.norm == "rms" else 2 * width  # LayerNorm-1p has a bias beside its scale
    embedding = config.vocabulary * width * (1 if config.tied else 2)
    head = _head(config).flops

    def flops(mean: bool) -> float:
        return head + sum(n * sum(o.flops for o in _layer(layer, config, context, mean)) for layer, n in layers)

    return Count(
        context=context,
        parameters=embedding + norm + sum(n * (norm + layer.parameters(width)) for layer, n in layers),
        embedding_parameters=embedding,
        train_flops_per_token=round(3 * flops(mean=True)),
        decode_flops_per_token=round(flops(mean=False)),
        state_bytes=sum(n * layer.state_bytes(width, context, ELEMENT_BYTES[config.dtype]) for layer, n in layers),
    )


def operations(config: ModelConfig, context: int = 4096, *, mean: bool = False) -> list[Operation]:
    """Every multiply-add of the forward pass of one token, named like `layers.3.out`; the output head comes last.

    The token sees the whole context, or with `mean` as much as a token of a training sequence sees on average.
    """
    return [
        operation._replace(name=f"layers.{i}.{operation.name}")
        for i, layer in enumerate(config.layers)
        for operation in _layer(layer, config, context, mean)
    ] + [_head(config)]


def _layer(layer: LayerConfig, config: ModelConfig, context: int, mean: bool) -> list[Operation]:
    return layer.operations(config.width, mean_context(layer, context) if mean else context)


def _head(config: ModelConfig) -> Operation:
    return Operation("head", 1, config.vocabulary, config.width, 1)


def mean_context(layer: LayerConfig, context: int) -> float:
    """Positions that a causal layer sees, its own included, averaged over a sequence; fewer if it has a `window`."""
    window = min(getattr(layer, "window", None) or context, context)
    return window - window * (window - 1) / (2 * context)
