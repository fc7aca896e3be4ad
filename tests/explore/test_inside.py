"""The matrices are what the layers compute, and taking a layer away is what it says."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from workbench.config import (
    AttentionConfig,
    Mamba2Config,
    MambaConfig,
    MLPConfig,
    ModelConfig,
    PhonebookConfig,
    PhonebookEvaluation,
    RecallConfig,
    RunConfig,
)
from workbench.explore import inside
from workbench.explore.inside import KINDS, Look
from workbench.model.initial import Make
from workbench.model.language_model import create
from workbench.model.names import named, restored
from workbench.model.where import locate

WIDTH, TIME = 16, 9
SEGMENTS = np.array([[1, 1, 1, 2, 2, 2, 2, 0, 0], [5] * 5 + [6] * 4], np.int32)
LAYERS = {
    "attention": AttentionConfig(kv_heads=2, rotary=0.5, window=3, conv=2),
    "mamba": MambaConfig(state=3),
    "mamba2": Mamba2Config(state=5, head_dim=8, groups=2),
}


def silu(x):
    return x / (1 + np.exp(-x))


def ended(name, given, M):
    """What a layer makes of its matrix before its last product, by the published formulas."""
    if name == "attention":
        v = given[2]
        return np.einsum("BHTS,BSHK->BTHK", M, np.repeat(v, M.shape[1] // v.shape[2], axis=2))
    scan = given[0]
    if name == "mamba":
        return (np.einsum("BITS,BSI->BTI", M, scan.x) + scan.D * scan.x) * silu(scan.z)
    y = np.einsum("BHTS,BSHP->BTHP", M, scan.x) + scan.D[:, None] * scan.x
    parts = (y.reshape(*y.shape[:2], -1) * silu(given[1])).reshape(*y.shape[:2], 2, -1)
    return parts / np.sqrt((parts**2).mean(axis=-1, keepdims=True) + 1e-5)


@pytest.mark.parametrize("name", LAYERS)
def test_a_layers_matrix_times_its_values_is_its_output_to_the_rounding_of_float64(x64, name):
    where, _ = locate(2, TIME, jnp.asarray(SEGMENTS), None)

    @jax.jit
    def layer(key):
        mixer = LAYERS[name].build(WIDTH, Make(key, WIDTH, 4, 1, dtype=jnp.float64))
        u = jax.random.normal(key, (2, TIME, WIDTH), jnp.float64)
        given = mixer.projected(u, None, where) if name == "attention" else mixer.scanned(u, None, where)
        M = inside.mixing(mixer, u, where)
        return M, inside.shares(M), given, mixer(u, None, where)[0], mixer.out[...]

    M, share, given, y, out = jax.tree.map(np.asarray, layer(jax.random.key(3)))
    real = SEGMENTS != 0
    mine = ended(name, given, M).reshape(2, TIME, -1) @ out
    np.testing.assert_allclose(mine[real], y[real], rtol=1e-10, atol=1e-10)
    apart = (SEGMENTS[:, :, None] != SEGMENTS[:, None, :]) | np.triu(np.ones((TIME, TIME), bool), 1)
    assert not M[np.broadcast_to(apart[:, None], M.shape)].any()
    np.testing.assert_allclose(share.sum(axis=-1)[np.broadcast_to(real[:, None], M.shape[:3])], 1)
    np.testing.assert_allclose(share, np.abs(M) / np.maximum(np.abs(M).sum(axis=-1, keepdims=True), 1e-300))


# ---- a whole model


@pytest.fixture(scope="module", params=["M*", "MS*-"])
def run(request):
    data = PhonebookConfig(names=8, digits=2, entries=(2,), length=16, batch=2)
    symbols = {
        "M": Mamba2Config(state=4, head_dim=8), "S": MambaConfig(state=2), "*": AttentionConfig(heads=2),
        "-": MLPConfig(hidden=8),
    }  # fmt: skip
    model = ModelConfig(request.param, WIDTH, data.vocabulary, symbols)
    return RunConfig("tiny", "all", model, data, PhonebookEvaluation(entries=(2,)))


@pytest.fixture(scope="module")
def model(run):
    return create(run.model, 0)


@pytest.fixture(scope="module")
def paper(run):
    return inside.paper(run, entries=3, books=6)


def test_a_paper_asks_for_digits_that_stand_in_its_books(run, paper):
    book = np.arange(6)[:, None]
    np.testing.assert_array_equal(paper.tokens[book, paper.source], paper.answers)
    np.testing.assert_array_equal(paper.tokens[book[:, 0], paper.source[:, 0] - 1], paper.tokens[:, paper.mark + 1])
    np.testing.assert_array_equal(paper.tokens[:, paper.asked[1]], paper.answers[:, 0])
    assert len(set(paper.source[:, 0])) == 3 and paper.tokens[0, paper.mark] == 1
    assert inside.spoken(np.array([12, 15, 1, 2, 11])) == ["#0", "#3", "?", "0", "9"]
    with pytest.raises(ValueError, match="was trained on RecallConfig; give the folder of a run on phone books"):
        inside.paper(dataclasses.replace(run, data=RecallConfig(symbols=8, sizes=(2,))), 3)


@pytest.mark.slow
def test_leaving_a_layer_out_is_reading_on_with_a_model_that_lacks_it(model, paper):
    """The book is read by the whole model, the question from its state by one whose layer gives nothing."""
    found = inside.answers(model, paper)
    tokens, at = jnp.asarray(paper.tokens), paper.mark

    @jax.jit
    def answered(model, without):
        state = model(tokens[:, :at], model.initial_state(*tokens.shape)).state
        hidden = without(tokens[:, at:], state).hidden[:, -2:]
        empty = model.norm(model.embedding[...][tokens[:, -2:]])
        return [jax.nn.log_softmax(model.logits(each), axis=-1) for each in (hidden, empty)]

    for number in range(-1, len(model.layers)):
        without = restored(model, named(model) | lacking(model, number))
        chances, empty = (np.asarray(each) for each in answered(model, without))
        right = lambda chances: np.take_along_axis(chances, paper.answers[..., None], axis=-1)[..., 0]  # noqa: E731
        np.testing.assert_allclose(found.without[0][number + 1], right(chances), rtol=2e-5, atol=2e-5)
        np.testing.assert_array_equal(found.without[1][number + 1], chances.argmax(axis=-1) == paper.answers)
    np.testing.assert_allclose(found.lens[0][-1], found.without[0][0], rtol=1e-5)
    np.testing.assert_allclose(found.lens[0][0], right(empty), rtol=1e-5)


def lacking(model, number):
    """The parameters of a model whose layer of this number, 0 the first, adds nothing."""
    return {name: jnp.zeros_like(leaf) for name, leaf in named(model).items() if name == f"layers.{number}.mixer.out"}


@pytest.mark.slow
def test_a_look_says_of_each_layer_what_it_takes_from_where(run, model, paper):
    looks, pattern = inside.look(model, paper), run.model.pattern
    assert [each.shares is not None for each in looks] == [symbol != "-" for symbol in pattern]
    assert [each.steps is not None for each in looks] == [symbol in "MS" for symbol in pattern]
    time, at = paper.tokens.shape[1], pattern.index("*")
    for each in (each for each in looks if each.shares is not None):
        heads = len(each.shares)
        assert each.shares.shape == (heads, time, time) and each.answer.shape == (6, heads)
        framed = [each.shares[:, t, s] for t, s in zip(paper.asked, paper.source[0], strict=True)]
        np.testing.assert_allclose(each.answer[0], np.mean(framed, axis=0), rtol=1e-5)

    @jax.jit
    def attention(model, tokens):
        layer, x = inside.layers(model)[at], inside.streams(model, tokens)[at]
        return inside.mixing(layer.mixer, layer.norm(x), locate(*tokens.shape, None, None)[0])

    weights = np.asarray(attention(model, jnp.asarray(paper.tokens)))
    np.testing.assert_allclose(looks[at].shares, weights[0], rtol=1e-4, atol=1e-6)
    age = np.arange(time)[:, None] - np.arange(time)
    np.testing.assert_allclose(looks[at].distance, (weights * age).sum(axis=-1).mean(axis=(0, 2)), rtol=1e-4)
    kinds = [KINDS[kind] for kind in paper.kinds[:3]] + [KINDS[kind] for kind in paper.kinds[paper.mark :]]
    assert kinds == ["name", "digit", "digit", "question", "question", "question"]


def test_memory_is_that_of_a_heads_slowest_state_at_its_mean_step():
    steps = np.full((2, 3, 2), 0.1) * np.array([1, 2])
    kept = Look(steps=steps, rates=np.array([[-2.0, -8.0], [-1.0, -0.5]])).memory
    np.testing.assert_allclose(kept, [1 / 0.2, 1 / 0.1])
    assert Look().memory is None
