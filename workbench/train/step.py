"""One training step: loss, gradient, update."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from workbench_kernels import recorded

from workbench.config import Layout, OptimizerConfig, RunConfig
from workbench.train.loss import loss
from workbench.train.optimizer import optimizer, schedule


def make_step(
    run: RunConfig, layout: Layout | None = None
) -> Callable[[Any, Any, dict], tuple[Any, Any, dict[str, jax.Array]]]:
    """The jitted `step(model, opt_state, batch) -> (model, opt_state, metrics)`; model and opt_state are donated.

    The loss's sum is divided once, by the weight of the whole batch, also where the batch is run in parts. Metrics:
    `loss` (nats per token, before the update), `weight`, `gradient_norm` (before clipping), `learning_rate` (of this
    update) and the layers' own sums.
    """
    layout = layout or Layout()
    return _step(run.optimizer, run.steps, run.z_loss, layout.micro, layout.remat)


_CHOSEN: dict[tuple, dict[str, str]] = {}  # by what was traced: a second run of the same process does not trace it


def lower_step(
    run: RunConfig, layout: Layout, tree: Any, leaves: list, batch: dict
) -> tuple[jax.stages.Lowered, dict[str, str]]:
    """`step(leaves, batch) -> (leaves, metrics)`, lowered for arrays like these, which may be abstract.

    And the implementation that each operation of workbench_kernels chose.

    `tree` and `leaves` are of (model, opt_state): a step of modules would take and make them anew in Python, up to a
    tenth of a small model's step. On several devices they stay where they were.
    """
    whole = make_step(run, layout)

    def step(leaves, batch):
        model, opt_state, metrics = whole(*jax.tree.unflatten(tree, leaves), batch)
        return jax.tree.leaves((model, opt_state)), metrics

    stay = None if layout.devices == 1 else ([leaf.sharding for leaf in leaves], None)
    shapes = tuple((name, each.shape, each.dtype) for name, each in (*enumerate(leaves), *sorted(batch.items())))
    traced = whole, tree, shapes, jax.sharding.get_abstract_mesh()
    with recorded() as chosen:
        lowered = jax.jit(step, donate_argnums=0, out_shardings=stay).lower(leaves, batch)
    if chosen or traced not in _CHOSEN:
        _CHOSEN[traced] = chosen
    return lowered, dict(_CHOSEN[traced])


@lru_cache  # one function, so that a second run of the same process does not trace it again
def _step(config: OptimizerConfig, steps: int, z_loss: float, micro: int, remat: str) -> Callable:
    update, rate = optimizer(config, steps).update, schedule(config, steps)
    summed = jax.grad(partial(loss, z_loss=z_loss, remat=remat), has_aux=True)

    def mean(model, batch):
        """(metrics, gradient of the mean loss)."""
        if micro == 1:  # divided before the backward pass, which then scales nothing but the loss's own gradient

            def divided(model, batch):
                total, metrics = loss(model, batch, z_loss=z_loss, remat=remat)
                return total / metrics["weight"], metrics

            gradient, metrics = jax.grad(divided, has_aux=True)(model, batch)
            return metrics, gradient

        def add(sums, part):
            gradient, metrics = summed(model, part)
            return jax.tree.map(jnp.add, sums, (metrics, gradient)), None

        # each device's own rows in parts: cut into blocks, every part would be of a few devices
        parts = jax.tree.map(lambda a: a.reshape(-1, micro, *a.shape[1:]).swapaxes(0, 1), batch)
        shapes = jax.eval_shape(lambda part: summed(model, part)[::-1], jax.tree.map(lambda a: a[0], parts))
        (metrics, gradient), _ = jax.lax.scan(add, jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes), parts)
        return metrics, jax.tree.map(lambda g: g / metrics["weight"].astype(g.dtype), gradient)

    def step(model, opt_state, batch):
        metrics, gradient = mean(model, batch)
        metrics |= {
            "loss": metrics.pop("nats") / metrics["weight"],
            "gradient_norm": optax.tree.norm(gradient),
            "learning_rate": rate(opt_state[-1].count),
        }
        updates, opt_state = update(gradient, opt_state, model)
        return optax.apply_updates(model, updates), opt_state, metrics

    return jax.jit(step, donate_argnums=(0, 1))
