import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from workbench.config import AttentionConfig, Mamba2Config, MambaConfig, MLPConfig, ModelConfig, load_file
from workbench.count import count
from workbench.model.language_model import create
from workbench.model.names import named
from workbench.train.loss import loss

VOCABULARY, TIME = 80, 70  # longer than a chunk of the scans
SYMBOLS = {
    "M": Mamba2Config(state=4, head_dim=8, groups=2),
    "S": MambaConfig(state=4),
    "*": AttentionConfig(heads=2),
    "-": MLPConfig(hidden=24),
}


def config(pattern, **fields):
    return ModelConfig(pattern, 16, VOCABULARY, symbols=SYMBOLS, **fields)


def tokens(batch=2, time=TIME):
    return jnp.asarray(np.random.default_rng(0).integers(0, VOCABULARY, (batch, time)), jnp.int32)


@pytest.fixture(scope="module")
def hybrid():
    return create(config("M*-"), 0)


run = jax.jit(lambda model, tokens, state=None: model(tokens, state))


def test_layers_are_stored_stacked_over_the_smallest_period():
    shapes = {name: array.shape for name, array in named(create(config("*-*-"), 0)).items()}
    assert shapes["layers.0.mixer.qkv"] == (2, 16, 48)
    assert shapes["layers.1.mixer.enter"] == (2, 16, 24)
    assert not any(name.startswith("layers.2") for name in shapes)
    whole = {name: array.shape for name, array in named(create(config("*--*"), 0)).items()}
    assert whole["layers.3.mixer.qkv"] == (1, 16, 48)


def test_scanning_over_periods_equals_running_layer_by_layer_in_value_and_gradients(x64):
    model = create(config("*-*-", dtype="float64"), 0)
    weigh = jnp.asarray(np.random.default_rng(1).standard_normal((2, 9, 16)))

    def outcome(unroll):
        def total(model):
            hidden = model(tokens(time=9), unroll=unroll).hidden
            return jnp.sum(hidden * weigh), hidden

        return jax.jit(jax.grad(total, has_aux=True))(model)

    for one, other in zip(jax.tree.leaves(outcome(True)), jax.tree.leaves(outcome(False)), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-11)


def test_layers_run_in_the_order_of_the_pattern(x64):
    """Through the residual stream by hand: x + f(norm(x)), layer after layer."""
    from workbench.model.where import locate

    model = create(config("M*M*", dtype="float64"), 0)
    where, _ = locate(2, 9, None, None)
    x = model.embedding[...][tokens(time=9)]
    for period in range(2):
        for position in range(2):
            layer = jax.tree.map(lambda leaf: leaf[period], model.layers[position])  # noqa: B023
            x = x + layer.mixer(layer.norm(x), None, where)[0]
    np.testing.assert_allclose(run(model, tokens(time=9)).hidden, model.norm(x), rtol=0, atol=1e-11)


def test_no_output_of_a_model_depends_on_a_later_token(hybrid):
    """Every token is another one, so the embedding's rows are the inputs; their gradient is exactly zero."""
    at = 40
    own = jnp.arange(TIME, dtype=jnp.int32)[None]
    gradient = jax.jit(jax.grad(lambda model: jnp.sum(jnp.sin(model(own).hidden[0, at]))))(hybrid)
    rows = np.asarray(named(gradient)["embedding"])
    assert np.all(rows[at + 1 : TIME] == 0)
    assert np.all(np.abs(rows[: at + 1]).max(axis=1) > 0)


def test_decoding_token_by_token_equals_reading_at_once(hybrid):
    text = tokens()
    whole = run(hybrid, text)
    assert whole.state is None
    state, hidden = hybrid.initial_state(2, TIME), []
    for t in range(TIME):
        output = run(hybrid, text[:, t : t + 1], state)
        state = output.state
        hidden.append(output.hidden)
    np.testing.assert_allclose(jnp.concatenate(hidden, axis=1), whole.hidden, rtol=0, atol=2e-5)
    np.testing.assert_array_equal(state.progress.length, [TIME, TIME])


def test_a_state_can_be_gone_on_from_twice(hybrid):
    text = tokens()
    state = run(hybrid, text[:, :69], hybrid.initial_state(2, TIME)).state
    kept = jax.tree.map(np.array, state)
    last = text[:, 69:]
    first = run(hybrid, last, state)
    other = run(hybrid, (last + 1) % VOCABULARY, state)
    again = run(hybrid, last, state)
    np.testing.assert_array_equal(first.hidden, again.hidden)
    assert float(jnp.abs(first.hidden - other.hidden).max()) > 0.1
    jax.tree.map(np.testing.assert_array_equal, state, kept)


def test_bfloat16_stays_near_float32(hybrid):
    half = create(config("M*-", dtype="bfloat16"), 0)
    assert all(array.dtype == jnp.float32 for array in named(half).values())
    got, want = run(half, tokens()).hidden, run(hybrid, tokens()).hidden
    assert got.dtype == jnp.bfloat16 and half.logits(got).dtype == jnp.float32
    error = np.linalg.norm(np.asarray(got, np.float32) - want) / np.linalg.norm(want)
    assert error < 0.03  # eight roundings of 2^-8 in a row


@pytest.mark.parametrize("vocabulary", [VOCABULARY, 9000], ids=["one chunk of logits", "two"])
def test_bfloat16_gradients_stay_near_float32_where_one_token_is_most_of_the_text(vocabulary):
    """A scatter that adds in bfloat16 stops at 256: 1 is less than half a step of its sum."""
    text = jnp.where(jnp.arange(512) % 16 == 0, tokens(4, 512), 3)
    batch = {"tokens": text, "targets": jnp.roll(text, -1, 1), "weights": jnp.ones((4, 512))}
    gradients = []
    for dtype in ("bfloat16", "float32"):
        model = create(dataclasses.replace(config("-", dtype=dtype), vocabulary=vocabulary), 0)
        gradients.append(named(jax.jit(jax.grad(lambda m: loss(m, batch)[0]))(model)))
    for name, want in gradients[1].items():
        error = np.linalg.norm(gradients[0][name] - want) / np.linalg.norm(want)
        assert error < 0.03, name  # a few roundings of 2^-8 on the way


def test_a_full_cache_gives_no_answer_rather_than_a_wrong_one(hybrid):
    text = tokens()
    whole = run(hybrid, text[:, :40]).hidden
    read = run(hybrid, text[:, :40], hybrid.initial_state(2, 30)).hidden
    np.testing.assert_allclose(read[:, :30], whole[:, :30], rtol=0, atol=1e-5)
    assert bool(jnp.all(jnp.isnan(read[:, 30:])))


def test_a_tied_head_is_the_embedding_and_an_untied_one_is_not():
    tied, untied = (create(config("-", tied=tied), 0) for tied in (True, False))
    np.testing.assert_array_equal(tied.head(), tied.embedding[...].T)
    assert "output" not in named(tied)
    hidden = run(untied, tokens()).hidden
    np.testing.assert_array_equal(untied.logits(hidden), hidden @ named(untied)["output"])


def test_a_model_is_a_function_of_its_config_and_seed(hybrid):
    again, other = create(config("M*-"), 0), create(config("M*-"), 1)
    jax.tree.map(np.testing.assert_array_equal, hybrid, again)
    assert float(jnp.abs(named(hybrid)["embedding"] - named(other)["embedding"]).max()) > 0.1


def built(config, context):
    """Parameters and bytes of float state of the model that a config makes, by shapes alone."""
    model = jax.eval_shape(lambda: create(config, 0))
    state = jax.eval_shape(lambda model: model.initial_state(1, context).layers, model)
    floats = [a for a in jax.tree.leaves(state) if jnp.issubdtype(a.dtype, jnp.floating)]
    return sum(a.size for a in jax.tree.leaves(model)), sum(a.size * a.dtype.itemsize for a in floats)


@pytest.mark.parametrize(
    "fields", [{}, {"tied": True, "norm": "layernorm1p", "dtype": "bfloat16"}], ids=["default", "all else"]
)
def test_a_model_is_as_large_as_it_is_counted(fields):
    model = config("MS*-", **fields)
    counted = count(model, 100)
    assert built(model, 100) == (counted.parameters, counted.state_bytes)


@pytest.mark.slow
@pytest.mark.parametrize("arm", ["transformer", "mamba", "mamba2", "hybrid"])
def test_the_papers_models_are_as_large_as_they_are_counted(root, arm):
    model = load_file(root / "experiments" / "waleffe_8b.py").models()[arm]
    counted = count(model, 4096)
    assert built(model, 4096) == (counted.parameters, counted.state_bytes)
