import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from workbench.config import Mamba2Config, MambaConfig, ModelConfig, OptimizerConfig
from workbench.model.language_model import create
from workbench.model.names import named
from workbench.train.optimizer import is_decayed, optimizer, schedule


def test_the_schedule_is_a_straight_line_then_half_a_cosine():
    config = OptimizerConfig(learning_rate=2e-3, final=0.1, warmup=10 / 110)
    rates = np.array(schedule(config, 110)(np.arange(110)))
    expected = [2e-3 * (i + 1) / 10 for i in range(10)]
    expected += [2e-3 * (0.1 + 0.9 * (1 + math.cos(math.pi * i / 100)) / 2) for i in range(1, 101)]
    np.testing.assert_allclose(rates, expected, rtol=2e-6)
    assert rates[9] == rates.max() and rates[-1] == rates[10:].min()


@pytest.mark.parametrize("warmup", [0, 1])
def test_a_run_of_nothing_but_warm_up_or_nothing_but_cosine_has_a_schedule(warmup):
    rates = np.array(schedule(OptimizerConfig(learning_rate=1.0, warmup=warmup), 5)(np.arange(5)))
    assert np.isfinite(rates).all() and (rates > 0).all()
    assert rates[-1] == pytest.approx(1.0 if warmup else 0.1)


def test_the_other_schedule_stays_at_the_peak_and_comes_down_at_the_end():
    config = OptimizerConfig(learning_rate=2e-3, schedule="wsd", final=0.1, warmup=0.1, cooldown=0.2)
    rates = np.array(schedule(config, 100)(np.arange(100)))
    expected = [2e-3 * (i + 1) / 10 for i in range(10)] + [2e-3] * 70
    expected += [2e-3 * (1 - 0.9 * math.sqrt(i / 20)) for i in range(1, 21)]
    np.testing.assert_allclose(rates, expected, rtol=2e-6)
    assert rates[-1] == pytest.approx(2e-4)


def test_a_schedule_that_is_not_there_or_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"optimizer\.schedule 'cosin': did you mean 'cosine'"):
        OptimizerConfig(schedule="cosin")
    with pytest.raises(ValueError, match="cooldown is 0; it is a fraction"):
        OptimizerConfig(cooldown=0)
    with pytest.raises(ValueError, match="are more than the whole run"):
        schedule(OptimizerConfig(schedule="wsd", warmup=0.5, cooldown=0.6), 100)


@pytest.mark.parametrize("warmup", [100, -0.1])
def test_a_warm_up_that_is_no_fraction_of_the_run_is_refused(warmup):
    with pytest.raises(ValueError, match=rf"optimizer\.warmup is {warmup}; it is a fraction of the run's 50 steps"):
        schedule(OptimizerConfig(warmup=warmup), 50)


@pytest.mark.parametrize("norm", ["rms", "layernorm1p"])
def test_norms_biases_and_the_recurrences_own_parameters_are_not_decayed(norm):
    """By an update with zero gradients, of a model whose parameters are stacked, so that no shape tells them apart."""
    symbols = {"M": Mamba2Config(state=8, head_dim=8), "S": MambaConfig(state=4)}
    config = ModelConfig("MS*-MS*-", width=16, vocabulary=11, symbols=symbols, norm=norm)
    shapes = jax.eval_shape(lambda: create(config, seed=0))
    model = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), shapes)
    tx = optimizer(OptimizerConfig(learning_rate=0.1, warmup=1.0, decay=0.5, final=1.0), steps=1)

    @jax.jit
    def decay(model):
        updates, _ = tx.update(jax.tree.map(jnp.zeros_like, model), tx.init(model), model)
        return optax.apply_updates(model, updates)

    before, after = named(model), named(decay(model))
    kept = {name for name in before if np.array_equal(before[name], after[name])}
    of_layer = {0: {"A_log", "D", "dt_bias", "conv_bias", "norm_scale"}, 1: {"A_log", "D", "dt_bias", "conv_bias"}}
    norms = {"scale"} if norm == "rms" else {"offset_scale", "bias"}
    expected = {f"layers.{i}.mixer.{name}" for i, names in of_layer.items() for name in names}
    expected |= {f"{place}norm.{name}" for place in ("", *(f"layers.{i}." for i in range(4))) for name in norms}
    assert kept == expected
    for name in before.keys() - kept:
        np.testing.assert_allclose(after[name], before[name] * (1 - 0.1 * 0.5), rtol=1e-6)


def test_a_name_decides_what_is_decayed_wherever_it_stands():
    assert not any(
        map(is_decayed, ("bias", "a.scale", "x.norm.weight", "layers.3.mixer.A_log", "q_norm.w", "m.dt_bias"))
    )
    assert all(map(is_decayed, ("embedding", "layers.0.mixer.out", "a.scaled", "layers.0.mixer.dt", "biased.weight")))


def test_gradients_are_clipped_by_their_global_norm():
    config = OptimizerConfig(clip=1.0, decay=0.0, warmup=0, epsilon=1.0, learning_rate=1.0, final=1.0)  # large epsilon:
    parameters = {"a": jnp.zeros(2), "b": jnp.zeros(1)}  # an update that still knows how large its gradient was
    gradient = {"a": jnp.array([30.0, 0.0]), "b": jnp.array([40.0])}
    tx = optimizer(config, 1)
    updates, _ = jax.jit(tx.update)(gradient, tx.init(parameters), parameters)
    np.testing.assert_allclose(updates["a"], [-0.6 / 1.6, 0.0], rtol=1e-5)
    np.testing.assert_allclose(updates["b"], [-0.8 / 1.8], rtol=1e-5)
