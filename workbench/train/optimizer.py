"""The optimizer and its schedule: one policy for every architecture."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import optax

from workbench.config import OptimizerConfig
from workbench.model.names import name_of

UNDECAYED = ("A_log", "D", "bias", "scale")


def is_decayed(name: str) -> bool:
    """Whether weight decay shrinks the parameter of this name.

    It leaves alone A_log, D, everything that ends in `bias` or `scale`, and everything under a norm. Names decide,
    never shapes: parameters are stacked over periods, so that a norm's scale has two axes.
    """
    *above, last = name.split(".")
    return not (
        last in UNDECAYED or last.endswith(("_bias", "_scale")) or any("norm" in part for part in (*above, last))
    )


def decay_mask(parameters: Any) -> Any:
    """A tree of booleans like `parameters`: True where weight decay applies."""
    return jax.tree_util.tree_map_with_path(lambda path, _: is_decayed(name_of(path)), parameters)


def schedule(config: OptimizerConfig, steps: int) -> Callable[[Any], jax.Array]:
    """Updates done so far -> learning rate of the next: a straight warm-up to the peak, then down to `final` times it.

    "cosine": half a cosine. "wsd": the peak until `cooldown` of the steps are left, then 1 - sqrt (Haegele et al. 2024,
    arXiv:2405.18392). The warm-up's last update has the peak, the run's last one `final` times the peak; none has zero.
    Raises ValueError unless the warm-up is a fraction, which with "wsd" leaves room for the cooldown.
    """
    warmup = config.warmup_steps(steps)
    cooldown = round(config.cooldown * steps)
    if config.schedule == "wsd" and warmup + cooldown > steps:
        raise ValueError(
            f"optimizer.warmup {config.warmup:g} and cooldown {config.cooldown:g} are more than the whole run; "
            "make one smaller"
        )

    def rate(done):
        done = jnp.asarray(done, jnp.float32)
        rising = (done + 1) / max(warmup, 1)
        if config.schedule == "wsd":
            down = jnp.sqrt(jnp.clip((done + 1 - (steps - cooldown)) / max(cooldown, 1), 0, 1))
            falling = 1 - (1 - config.final) * down
        else:
            progress = jnp.clip((done + 1 - warmup) / max(steps - warmup, 1), 0, 1)
            falling = config.final + (1 - config.final) * 0.5 * (1 + jnp.cos(jnp.pi * progress))
        return config.learning_rate * jnp.where(done < warmup, rising, falling)

    return rate


@lru_cache
def optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """Clipping by global norm, AdamW with decay by name, the schedule of `schedule`.

    Decay is multiplied by the learning rate, as in Loshchilov & Hutter 2019, arXiv:1711.05101, section 3.
    """
    return optax.chain(
        optax.clip_by_global_norm(config.clip),
        optax.scale_by_adam(config.beta1, config.beta2, config.epsilon),
        optax.add_decayed_weights(config.decay, mask=decay_mask),
        optax.scale_by_learning_rate(schedule(config, steps)),
    )
