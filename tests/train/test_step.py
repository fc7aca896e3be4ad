import jax
import numpy as np

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
