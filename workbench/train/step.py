"""One training step: loss, gradient, update."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import jax
import optax

from workbench.config import OptimizerConfig, RunConfig
from workbench.train.loss import loss
from workbench.train.optimizer import optimizer, schedule


def make_step(run: RunConfig) -> Callable[[Any, Any, dict], tuple[Any, Any, dict[str, jax.Array]]]:
    """The jitted `step(model, opt_state, batch) -> (model, opt_state, metrics)`; model and opt_state are donated.

    The loss's sum is divided once, by the weight of the whole batch. Metrics: `loss` (nats per token, before the
    update), `weight`, `gradient_norm` (before clipping), `learning_rate` (of this update) and the layers' own sums.
    """
    return _step(run.optimizer, run.steps)


@lru_cache  # one function, so that a second run of the same process does not trace it again
def _step(config: OptimizerConfig, steps: int) -> Callable:
    update, rate = optimizer(config, steps).update, schedule(config, steps)

    def mean_loss(model, batch):
        total, metrics = loss(model, batch)
        return total / metrics["weight"], metrics

    def step(model, opt_state, batch):
        (value, metrics), gradient = jax.value_and_grad(mean_loss, has_aux=True)(model, batch)
        metrics |= {
            "loss": value,
            "gradient_norm": optax.tree.norm(gradient),
            "learning_rate": rate(opt_state[-1].count),
        }
        updates, opt_state = update(gradient, opt_state, model)
        return optax.apply_updates(model, updates), opt_state, metrics

    return jax.jit(step, donate_argnums=(0, 1))
