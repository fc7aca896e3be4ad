"""Intervals of one number: a share or a mean, where items may come in clusters (the questions of one book)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import special

Values = Sequence[float | int] | np.ndarray


class Interval(NamedTuple):
    mean: float
    low: float
    high: float


def normal_quantile(level: float) -> float:
    """Half-width of the central interval of a standard normal: 1.96 for 0.95."""
    return float(special.ndtri((1 + level) / 2))


def t_quantile(level: float, freedom: float | int) -> float:
    """Half-width of the central interval of Student's t: 4.303 for 0.95 with 2 degrees of freedom."""
    return float(special.stdtrit(freedom, (1 + level) / 2)) if math.isfinite(freedom) else normal_quantile(level)


def clustered(right: Values, asked: Values, level: float = 0.95) -> Interval:
    """Interval of a proportion whose items come in clusters: how many are right and how many were asked in each.

    Clopper and Pearson's interval at the effective number of items, from the spread between clusters and Student's
    quantile. Where all clusters agree their spread says nothing, and each counts as one item.
    Raises ValueError below two clusters. Source: Korn & Graubard 1998, Survey Methodology 24.
    """
    right, asked = np.asarray(right, float), np.asarray(asked, float)
    if right.shape != asked.shape or len(right) < 2 or (asked <= 0).any() or (right < 0).any() or (right > asked).any():
        raise ValueError(f"need two clusters or more, each with 0 <= right <= asked > 0; got {right} of {asked}")
    clusters, items = len(right), float(asked.sum())
    p = float(right.sum()) / items
    variance = clusters / (clusters - 1) * float(((right - p * asked) ** 2).sum()) / items**2
    effective = min(items, p * (1 - p) / variance) if variance > 0 else clusters
    n = effective * (normal_quantile(level) / t_quantile(level, clusters - 1)) ** 2
    x, tail = p * n, (1 - level) / 2
    low = 0.0 if x == 0 else float(special.betaincinv(x, n - x + 1, tail))
    high = 1.0 if p == 1 else float(special.betaincinv(x + 1, n - x, 1 - tail))
    return Interval(p, min(low, p), max(high, p))


def clustered_mean(totals: Values, items: Values, level: float = 0.95) -> Interval:
    """Interval of a mean whose items come in clusters: the sum of values and the number of items in each.

    The ratio estimator's, with Student's quantile. Raises ValueError below two clusters. Source: Cochran 1977,
    Sampling Techniques, section 6.4.
    """
    totals, items = np.asarray(totals, float), np.asarray(items, float)
    if totals.shape != items.shape or len(totals) < 2 or (items <= 0).any():
        raise ValueError(f"need two clusters or more, each of one item or more; got sums {totals} of {items} items")
    clusters, mean = len(totals), float(totals.sum() / items.sum())
    error = float(np.sqrt(clusters / (clusters - 1) * ((totals - mean * items) ** 2).sum()) / items.sum())
    half = t_quantile(level, clusters - 1) * error
    return Interval(mean, mean - half, mean + half)


def holm(p: Values) -> list[float]:
    """p-values adjusted for their number; below 0.05 holds for all together. Source: Holm 1979, Scand. J. Stat. 6."""
    adjusted, largest = [0.0] * len(p), 0.0
    for rank, index in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        largest = max(largest, min(1.0, (len(p) - rank) * p[index]))
        adjusted[index] = largest
    return adjusted
