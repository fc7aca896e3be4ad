"""What every layer promises (contracts 1 to 3 of the house), checked on a layer config, a user's own included.

`workbench check my_mixer.py` runs these; the tests run them on our own layers. They find what goes wrong first when a
mixer is written: a peek at the future, a state that forgets, documents that leak into one another, counts that lie.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from workbench import config as configs
from workbench.config import LayerConfig, ModelConfig
from workbench.model.language_model import LanguageModel, create
from workbench.model.names import named
from workbench.train.loss import loss

WIDTH, VOCABULARY, BATCH, TIME = 32, 31, 2, 150  # longer than a chunk of a scan or a block of attention


class Result(NamedTuple):
    """One promise: what it is, whether it held, and what was seen."""

    promise: str
    held: bool
    seen: str


def check(layer: LayerConfig, width: int = WIDTH, dtype: str = "float32") -> list[Result]:
    """Every promise on a model of one such layer. Never raises for a broken promise: the result says what broke."""
    config = ModelConfig("X", width, VOCABULARY, symbols={"X": layer}, dtype=dtype)
    try:
        model = create(config, 0)
    except Exception as error:
        return [Result("builds", False, f"{type(error).__name__}: {error}")]
    results = [Result("builds", True, f"{layer} at width {width}")]
    tolerance = 1e-5 if dtype == "float32" else 1e-11  # rounding of sums of a few dozen terms of order one
    for promise in PROMISES:
        name = promise.__name__.replace("_", " ")
        try:
            results.append(Result(name, *promise(model, layer, tolerance)))
        except Exception as error:
            results.append(Result(name, False, f"{type(error).__name__}: {error}"))
    return results


def _tokens(time: int = TIME, batch: int = BATCH) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).integers(0, VOCABULARY, (batch, time)), jnp.int32)


def _close(a: Any, b: Any, tolerance: float) -> tuple[bool, str]:
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    worst = float(np.max([np.max(np.abs(np.asarray(x) - np.asarray(y))) for x, y in pairs]))  # NaN is no agreement
    return worst <= tolerance, f"largest difference {worst:.1e}, allowed {tolerance:.0e}"


@jax.jit
def _run(model: LanguageModel, tokens, state=None, segments=None):
    return model(tokens, state, segments)


def no_output_depends_on_a_later_token(model: LanguageModel, layer: LayerConfig, tolerance: float):
    """The gradient of the output at time t with respect to any later input is exactly zero."""
    mixer = jax.tree.map(lambda leaf: leaf[0], model.layers[0]).mixer
    from workbench.model.where import locate

    where, _ = locate(1, TIME, None, None)
    x = jax.random.normal(jax.random.key(1), (1, TIME, model.config.width), model.embedding[...].dtype)
    of_output = jax.jit(jax.grad(lambda x, at: jnp.sum(jnp.sin(mixer(x, None, where)[0][:, at]))))
    late, own = 0.0, np.inf
    for at in (0, 18, TIME // 2, TIME - 2):
        gradient = np.abs(np.asarray(of_output(x, at)))
        late, own = max(late, gradient[:, at + 1 :].max()), min(own, gradient[:, : at + 1].max())
    return bool(late == 0 and own > 0), f"gradient on later inputs {late:.1e}, on earlier ones {own:.1e}"


def cutting_a_sequence_anywhere_changes_nothing(model: LanguageModel, layer: LayerConfig, tolerance: float):
    """Reading in pieces of any length, one token at a time too, gives what reading at once gives."""
    tokens = _tokens()
    whole = _run(model, tokens).hidden
    state, pieces = model.initial_state(BATCH, TIME), []
    for first, end in ((0, 17), (17, 146), *((t, t + 1) for t in range(146, TIME))):
        output = _run(model, tokens[:, first:end], state)
        state = output.state
        pieces.append(output.hidden)
    return _close(jnp.concatenate(pieces, axis=1), whole, tolerance)


def packed_documents_equal_documents_alone(model: LanguageModel, layer: LayerConfig, tolerance: float):
    """Three documents in a row give what each gives by itself, in training and when the row is cut inside one."""
    tokens, cuts = _tokens(), (0, 20, 85, TIME)  # two documents of one length, so that one program reads both alone
    segments = jnp.asarray(np.repeat([3, 1, 2], np.diff(cuts))[None].repeat(BATCH, 0), jnp.int32)
    alone = jnp.concatenate([_run(model, tokens[:, a:b]).hidden for a, b in itertools.pairwise(cuts)], axis=1)
    packed = _run(model, tokens, None, segments).hidden
    half = TIME // 2
    first = _run(model, tokens[:, :half], model.initial_state(BATCH, TIME), segments[:, :half])
    rest = _run(model, tokens[:, half:], first.state, segments[:, half:])
    return _close((packed, jnp.concatenate([first.hidden, rest.hidden], axis=1)), (alone, alone), tolerance)


def padding_means_no_time_passes(model: LanguageModel, layer: LayerConfig, tolerance: float):
    """Rows of unequal length, padded with segment 0, go on as each row alone does."""
    tokens, lengths = _tokens(), (11, 20)
    segments = jnp.asarray(np.arange(20)[None] < np.array(lengths)[:, None], jnp.int32)
    state = _run(model, tokens[:, :20], model.initial_state(BATCH, TIME), segments).state
    after = _run(model, tokens[:, 20:25], state).hidden
    alone = []
    for row, length in enumerate(lengths):
        text = jnp.concatenate([tokens[row : row + 1, :length], tokens[row : row + 1, 20:25]], axis=1)
        alone.append(_run(model, text).hidden[:, length:])
    return _close(after, jnp.concatenate(alone), tolerance)


def parameters_are_as_counted(model: LanguageModel, layer: LayerConfig, tolerance: float):
    built = sum(leaf[0].size for leaf in jax.tree.leaves(model.layers[0].mixer))
    counted = layer.parameters(model.config.width)
    return built == counted, f"built {built}, counted {counted}"


def operations_are_counted_for_every_token(model: LanguageModel, layer: LayerConfig, tolerance: float):
    """FLOPs set an axis of every comparison. That they are the layer's own cannot be seen from outside."""
    few, many = (
        sum(2 * o.m * o.n * o.k * o.batch for o in layer.operations(model.config.width, t)) for t in (TIME, 2 * TIME)
    )
    return bool(0 < few <= many < np.inf), f"{few:,.0f} FLOPs a token at {TIME} tokens, {many:,.0f} at {2 * TIME}"


def state_bytes_are_as_counted(model: LanguageModel, layer: LayerConfig, tolerance: float):
    state = jax.eval_shape(lambda: model.initial_state(1, TIME)).layers[0]
    arrays = [leaf for leaf in jax.tree.leaves(state) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    built = sum(leaf.size * 4 for leaf in arrays)
    counted = layer.state_bytes(model.config.width, TIME, 4)
    return built == counted, f"built {built}, counted {counted} (float32, {TIME} tokens)"


def every_parameter_gets_a_finite_gradient(model: LanguageModel, layer: LayerConfig, tolerance: float):
    """Packed documents and padding included: a masked exponential is the usual culprit."""
    tokens = _tokens()
    segments = jnp.asarray(np.repeat([1, 2, 0], [15, 115, TIME - 130])[None].repeat(BATCH, 0), jnp.int32)
    batch = {"tokens": tokens, "targets": jnp.roll(tokens, -1, 1), "segments": segments, "weights": segments > 0}
    gradient = named(jax.jit(jax.grad(lambda m: loss(m, batch)[0]))(model))
    bad = [name for name, g in gradient.items() if not bool(jnp.all(jnp.isfinite(g)))]
    still = [name for name, g in gradient.items() if not bad and not bool(jnp.any(g != 0))]
    return not bad and not still, f"not finite: {bad or 'none'}; zero everywhere: {still or 'none'}"


def the_config_survives_json(model: LanguageModel, layer: LayerConfig, tolerance: float):
    back = configs.from_json(json.loads(json.dumps(configs.to_json(layer))))
    return back == layer, f"read back {back}"


PROMISES: tuple[Callable, ...] = (
    no_output_depends_on_a_later_token,
    cutting_a_sequence_anywhere_changes_nothing,
    packed_documents_equal_documents_alone,
    padding_means_no_time_passes,
    parameters_are_as_counted,
    operations_are_counted_for_every_token,
    state_bytes_are_as_counted,
    every_parameter_gets_a_finite_gradient,
    the_config_survives_json,
)
