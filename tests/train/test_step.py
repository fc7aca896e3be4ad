import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from workbench.config import AttentionConfig, Layout, Mamba2Config, ModelConfig
from workbench.model.language_model import create
from workbench.model.names import named
from workbench.train.loss import loss
from workbench.train.optimizer import is_decayed, optimizer
from workbench.train.step import make_step


def test_a_step_is_adamw_on_the_loss_divided_once_by_the_batchs_weight(run):
    model, batch = create(run.model, 0), run.data.stream().batch(0)
    opt_state = jax.jit(optimizer(run.optimizer, run.steps).init)(model)
    (total, facts), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(model, batch)
    weight = float(batch["weights"].sum())
    gradients = {n: np.array(g) / weight for n, g in named(gradient).items()}
    norm = np.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in gradients.values()))
    before = {name: np.array(value) for name, value in named(model).items()}

    after, _, metrics = make_step(run)(model, opt_state, batch)

    assert facts["weight"] == metrics["weight"]
    np.testing.assert_allclose(metrics["weight"], weight, rtol=1e-6)
    np.testing.assert_allclose(metrics["loss"], float(total) / weight, rtol=1e-6)
    np.testing.assert_allclose(metrics["gradient_norm"], norm, rtol=1e-5)
    rate = run.optimizer.learning_rate / run.optimizer.warmup_steps(run.steps)
    np.testing.assert_allclose(metrics["learning_rate"], rate, rtol=1e-6)
    for name, value in named(after).items():
        g = gradients[name] * min(1, run.optimizer.clip / norm)
        adam = g / (np.abs(g) + run.optimizer.epsilon)  # Adam's first step, both moments corrected
        expected = before[name] - rate * (adam + run.optimizer.decay * before[name] * is_decayed(name))
        # Where a gradient is of epsilon's size the quotient turns its rounding into one of up to 1 in `adam`.
        clear = np.abs(g) > 1e-5
        np.testing.assert_allclose(np.array(value)[clear], expected[clear], atol=1e-3 * rate)


@pytest.fixture(scope="module")
def mixed(run):
    """Recurrence, attention and products alone."""
    symbols = {
        "M": Mamba2Config(state=4, head_dim=8, inner=16),
        "*": AttentionConfig(heads=2),
    }
    return dataclasses.replace(run, model=ModelConfig("M*-", 16, 11, symbols))


def updated(run, layout=None):
    model, batch = create(run.model, 0), run.data.stream().batch(0)
    after, _, metrics = make_step(run, layout)(model, jax.jit(optimizer(run.optimizer, run.steps).init)(model), batch)
    return named(after), metrics


def test_a_batch_in_parts_gives_the_update_of_the_whole(mixed):
    """Its parts have different weights, so that a mean of means would be another loss."""
    whole, metrics = updated(mixed)
    parts, others = updated(mixed, Layout(micro=4))
    for name in ("loss", "weight", "gradient_norm"):
        np.testing.assert_allclose(others[name], metrics[name], rtol=1e-5)
    for name in whole:  # Adam's first step is the sign of the gradient: its rounding counts where that is near zero
        assert np.mean(np.abs(parts[name] - whole[name]) > 1e-5) < 0.02, name


@pytest.mark.parametrize("remat", ["all", pytest.param("products", marks=pytest.mark.slow)])
def test_what_the_backward_pass_makes_again_changes_nothing_but_memory(mixed, remat):
    _, metrics = updated(mixed)
    _, others = updated(mixed, Layout(remat=remat))
    for name in ("loss", "gradient_norm"):
        np.testing.assert_allclose(others[name], metrics[name], rtol=1e-5)


def test_making_again_takes_less_memory(run):
    """Of eight MLPs whose hidden layer is far wider than what lies between them."""
    from workbench.config import MLPConfig

    model = ModelConfig("-" * 8, 32, 11, {"-": MLPConfig(hidden=1024)})
    heavy = dataclasses.replace(run, model=model)
    parameters = create(model, 0)
    state, batch = jax.jit(optimizer(heavy.optimizer, heavy.steps).init)(parameters), heavy.data.stream().batch(0)
    batch = {name: jnp.tile(array, (64, 1)) for name, array in batch.items()}
    memory = {
        remat: make_step(heavy, Layout(remat=remat))
        .lower(parameters, state, batch)
        .compile()
        .memory_analysis()
        .temp_size_in_bytes
        for remat in ("none", "all")
    }
    assert memory["all"] < 0.5 * memory["none"]


def test_z_loss_adds_the_squared_logarithm_of_the_total_and_the_metrics_leave_it_out(run):
    model, batch = create(run.model, 0), run.data.stream().batch(0)
    plain, metrics = jax.jit(loss)(model, batch)
    more, others = jax.jit(partial(loss, z_loss=0.5))(model, batch)
    tokens, segments = (jnp.asarray(batch[name]) for name in ("tokens", "segments"))
    logits = np.asarray(model.logits(model(tokens, segments=segments).hidden), np.float64)
    z = np.log(np.exp(logits).sum(axis=-1))
    np.testing.assert_allclose(more - plain, 0.5 * np.sum(z**2 * batch["weights"]), rtol=1e-4)
    assert metrics["nats"] == plain
    np.testing.assert_allclose(others["nats"], plain, rtol=2**-22)  # another program may add in another order
    _, stepped = updated(dataclasses.replace(run, z_loss=0.5))
    np.testing.assert_allclose(stepped["loss"], float(plain / metrics["weight"]), rtol=1e-6)


def test_a_layout_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match=r"layout\.tensor must be at least 1; got 0"):
        Layout(tensor=0)
    with pytest.raises(ValueError, match=r"layout\.remat 'al': did you mean 'all'"):
        Layout(remat="al")
