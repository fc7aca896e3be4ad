import jax
import jax.numpy as jnp
import numpy as np
import pytest

from workbench.config import ModelConfig
from workbench.model.language_model import create
from workbench.train.loss import loss, negative_log_likelihood

SHAPE, WIDTH, VOCABULARY = (2, 5), 6, 23


def example(dtype=np.float64):
    rng = np.random.default_rng(0)
    hidden, head = 3 * rng.standard_normal((*SHAPE, WIDTH)), rng.standard_normal((WIDTH, VOCABULARY))
    targets = rng.integers(0, VOCABULARY, SHAPE)
    targets[0, 0], targets[0, 1] = 0, VOCABULARY - 1
    weigh = rng.uniform(0.5, 2, SHAPE)
    return hidden.astype(dtype), head.astype(dtype), targets.astype(np.int32), weigh.astype(dtype)


def expected(hidden, head, targets, weigh):
    """Negative log-likelihoods, and the gradients of their weighted sum, by the textbook's formulas."""
    logits = hidden @ head
    logits = logits - logits.max(axis=-1, keepdims=True)
    likelihood = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    nats = -np.log(np.take_along_axis(likelihood, targets[..., None], axis=-1))[..., 0]
    difference = (likelihood - np.eye(VOCABULARY)[targets]) * weigh[..., None]
    return nats, difference @ head.T, np.einsum("btd,btv->dv", hidden, difference)


@pytest.mark.parametrize("chunk", [VOCABULARY, 8, 7, 1], ids=["whole", "uneven", "another", "single"])
def test_cross_entropy_in_chunks_equals_the_textbook_in_value_and_gradients(x64, chunk):
    hidden, head, targets, weigh = (jnp.asarray(a) for a in example())

    @jax.jit
    def both(hidden, head):
        def total(hidden, head):
            nats = negative_log_likelihood(hidden, head, targets, chunk)
            return jnp.sum(nats * weigh), nats

        gradients, nats = jax.grad(total, argnums=(0, 1), has_aux=True)(hidden, head)
        return nats, *gradients

    for got, want in zip(both(hidden, head), expected(*example()), strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-12)


def test_logits_in_the_thousands_overflow_nothing():
    hidden, head, targets, _weigh = example()
    hidden = 1000 * hidden
    logits = hidden @ head
    top = logits.max(axis=-1)
    want = top + np.log(np.exp(logits - top[..., None]).sum(axis=-1))
    want = want - np.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    got = negative_log_likelihood(jnp.float32(hidden), jnp.float32(head), jnp.asarray(targets), 8)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-2)  # float32 of logits near 20,000: 2e-3 each


def test_bfloat16_logits_are_not_rounded_to_bfloat16():
    """Products of bfloat16 are summed in float32, so that only the inputs are rounded."""
    hidden, head, targets, weigh = example()
    hidden, head = (jnp.asarray(a, jnp.bfloat16) for a in (hidden, head))
    want, *_ = expected(*(np.asarray(a, np.float64) for a in (hidden, head)), targets, weigh)
    for chunk in (VOCABULARY, 8):
        got = negative_log_likelihood(hidden, head, jnp.asarray(targets), chunk)
        assert got.dtype == jnp.float32
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)


def test_training_never_holds_the_logits_of_the_whole_vocabulary():
    batch, time, width, vocabulary, chunk = 8, 64, 8, 8000, 250
    hidden = jax.ShapeDtypeStruct((batch, time, width), jnp.float32)
    head = jax.ShapeDtypeStruct((width, vocabulary), jnp.float32)
    targets = jax.ShapeDtypeStruct((batch, time), jnp.int32)

    def bytes_with(chunk):
        total = lambda h, w, t: jnp.sum(negative_log_likelihood(h, w, t, chunk))  # noqa: E731
        compiled = jax.jit(jax.grad(total, argnums=(0, 1))).lower(hidden, head, targets).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    logits = 4 * batch * time * vocabulary
    assert bytes_with(vocabulary) >= logits  # the measure sees them where they are
    assert bytes_with(chunk) < logits / 4


@pytest.fixture(scope="module")
def model():
    return create(ModelConfig("-", 8, VOCABULARY), 0)


def batch(model, weigh):
    tokens = np.random.default_rng(1).integers(0, VOCABULARY, (2, 6)).astype(np.int32)
    return {"tokens": jnp.asarray(tokens), "targets": jnp.asarray(np.roll(tokens, -1, 1)), "weights": weigh}


def test_the_loss_is_the_weighted_sum_and_comes_with_the_weights_sum(model):
    weigh = jnp.asarray(np.random.default_rng(2).uniform(0, 2, (2, 6)), jnp.float32)
    given = batch(model, weigh)
    total, metrics = loss(model, given)
    logits = np.asarray(model(given["tokens"]).hidden, np.float64) @ np.asarray(model.head(), np.float64)
    nats = (
        np.log(np.exp(logits).sum(-1)) - np.take_along_axis(logits, np.asarray(given["targets"])[..., None], -1)[..., 0]
    )
    assert float(metrics["weight"]) == pytest.approx(float(weigh.sum()), rel=1e-6)
    assert float(total) == pytest.approx(float((nats * np.asarray(weigh)).sum()), rel=1e-5)


def test_a_target_without_weight_has_no_part_in_the_loss(model):
    weigh = jnp.ones((2, 6)).at[1, 3].set(0)
    one, other = batch(model, weigh), batch(model, weigh)
    other["targets"] = other["targets"].at[1, 3].add(1)
    assert float(loss(model, one)[0]) == float(loss(model, other)[0])
    assert float(loss(model, one | {"weights": jnp.ones((2, 6))})[0]) > float(loss(model, one)[0])
