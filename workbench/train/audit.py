"""What a run starts from, parameter by parameter: initialisation and weight decay, for its record (initial.json)."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from workbench.model.names import named
from workbench.train.checkpoint import weights_hash
from workbench.train.optimizer import decay_mask


def audit(model: Any) -> dict[str, Any]:
    """The hash of the weights, and of each parameter its shape, its values and whether the optimizer decays it.

    Parameters are stacked over the pattern's period, so that one line may speak of several layers.
    """
    arrays = {name: np.asarray(leaf) for name, leaf in named(model).items()}
    decayed = dict(zip(arrays, jax.tree.leaves(decay_mask(model)), strict=True))
    return {
        "weights_hash": weights_hash(arrays),
        "parameters": {
            name: {"shape": list(array.shape), "decayed": decayed[name]} | _values(array.astype(np.float64))
            for name, array in arrays.items()
        },
    }


def _values(array: np.ndarray) -> dict[str, float]:
    return {name: float(getattr(array, name)()) for name in ("mean", "std", "min", "max")}
