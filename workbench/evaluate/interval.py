"""Intervals for shares of right answers, where answers come in clusters (several questions about one book)."""

from __future__ import annotations

import math

import numpy as np

Z = 1.959963984540054  # 95%


def wilson(mean: float, items: float) -> tuple[float, float]:
    """Wilson's 95% interval of a proportion seen in `items` independent trials. Wilson 1927."""
    centre = (mean + Z * Z / (2 * items)) / (1 + Z * Z / items)
    half = Z / (1 + Z * Z / items) * math.sqrt(mean * (1 - mean) / items + Z * Z / (4 * items * items))
    return max(centre - half, 0.0), min(centre + half, 1.0)


def clustered(right: np.ndarray) -> dict[str, float]:
    """Mean of `right` [clusters, items a cluster] (0 to 1) with Wilson's interval at the effective number of trials.

    The effective number divides by the design effect: the clustered variance of the mean over the independent one,
    never below 1. Kish 1965; Korn & Graubard 1998.
    """
    clusters, each = right.shape
    mean = float(right.mean())
    independent = mean * (1 - mean) / (clusters * each)
    effect = 1.0
    if independent > 0 and clusters > 1:
        effect = max(float(right.mean(axis=1).var(ddof=1)) / clusters / independent, 1.0)
    low, high = wilson(mean, clusters * each / effect)
    return {"mean": mean, "low": low, "high": high, "items": int(right.size)}
