"""Intervals and tests for comparing runs, with their level of claim. Needs numpy and scipy.

Two levels: *these checkpoints* (the items asked, given the trained weights) and *these architectures* (the seeds,
as samples of what training gives; at least three, else no such claim).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from scipy import special

from workbench.evaluate.interval import Interval, Values, normal_quantile, t_quantile

CHECKPOINTS = "these checkpoints"
ARCHITECTURES = "these architectures"
LEAST_SEEDS = 3  # for a claim about architectures
LEAST_CLUSTERS = 5  # that differ, for an interval from their spread
ALPHA = 0.05  # how often a claim may be wrong where there is no difference


class Difference(NamedTuple):
    """First minus second, with its two-sided p-value, what it speaks of, and the seeds that it rests on."""

    mean: float
    low: float
    high: float
    p: float
    claim: str
    seeds: int


class Paired(NamedTuple):
    """The interval of a paired difference, and the clusters whose spread it comes from."""

    mean: float
    low: float
    high: float
    clusters: int


# ---- one number


def t_interval(values: Values, level: float = 0.95) -> Interval:
    """Student's interval of a mean over seeds. Raises ValueError below three."""
    values = np.asarray(values, float)
    if len(values) < LEAST_SEEDS:
        raise ValueError(f"an interval over seeds needs at least {LEAST_SEEDS}; got {len(values)}")
    half = t_quantile(level, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values))
    return Interval(float(values.mean()), float(values.mean() - half), float(values.mean() + half))


def together(error: float, freedom: float, other: float, others: float) -> tuple[float, float]:
    """The standard error of a sum of two independent errors, and its degrees of freedom. Source: Satterthwaite 1946."""
    variance, weight = error**2 + other**2, error**4 / freedom + other**4 / others
    return math.sqrt(variance), variance**2 / weight if weight else math.inf


def average(intervals: Sequence[Interval]) -> Interval:
    """Mean of estimates on the same items, with the mean of their bounds: about these checkpoints alone.

    Every seed is asked the same books, so their errors go together and do not shrink with the number of seeds.
    """
    return Interval(*(math.fsum(column) / len(intervals) for column in zip(*intervals, strict=True)))


def over_seeds(intervals: Sequence[Interval]) -> tuple[Interval, str]:
    """The mean over seeds and what its interval speaks of.

    Over three seeds or more the widest of three: what the seeds allow, what the items allow, and both together.
    """
    items = average(intervals)
    if len(intervals) < LEAST_SEEDS:
        return items, CHECKPOINTS
    seeds = t_interval([i.mean for i in intervals])
    halves = []
    for own, others in (
        (items.mean - items.low, seeds.mean - seeds.low),
        (items.high - items.mean, seeds.high - seeds.mean),
    ):
        freedom = len(intervals) - 1
        error, freedom = together(others / t_quantile(0.95, freedom), freedom, own / normal_quantile(0.95), math.inf)
        halves.append(max(own, others, t_quantile(0.95, freedom) * error))
    return Interval(items.mean, items.mean - halves[0], items.mean + halves[1]), ARCHITECTURES


# ---- differences


def independent(a: Interval, b: Interval) -> Interval:
    """a - b for two estimates of other items; for the same items too wide. Source: Newcombe 1998, method 10 (MOVER)."""
    mean = a.mean - b.mean
    low = mean - math.hypot(a.mean - a.low, b.high - b.mean)
    return Interval(mean, low, mean + math.hypot(a.high - a.mean, b.mean - b.low))


def paired_clusters(a: Values, b: Values, weights: Values | None = None, level: float = 0.95) -> Paired | None:
    """a - b of means over the same clusters (books, packages), weighted, from the spread of the cluster differences.

    None where fewer than five clusters differ: their spread says too little, use `independent`.
    """
    a, b = np.asarray(a, float), np.asarray(b, float)
    if a.shape != b.shape:
        raise ValueError(f"paired clusters must be the same for both; got {a.shape} and {b.shape}")
    w = np.ones(len(a)) if weights is None else np.asarray(weights, float)
    difference = a - b
    if np.count_nonzero(difference) < LEAST_CLUSTERS:
        return None
    clusters = len(a)
    mean = (w * difference).sum() / w.sum()
    variance = clusters / (clusters - 1) * ((w * (difference - mean)) ** 2).sum() / w.sum() ** 2
    half = t_quantile(level, clusters - 1) * math.sqrt(variance)
    return Paired(float(mean), float(mean - half), float(mean + half), clusters)


def paired_t(a: Values, b: Values, level: float = 0.95) -> Difference:
    """a - b over paired seeds: a claim about these architectures. Raises ValueError below three seeds."""
    a, b = np.asarray(a, float), np.asarray(b, float)
    if a.shape != b.shape:
        raise ValueError(f"paired seeds must be the same for both; got {a.shape} and {b.shape}")
    mean, low, high = t_interval(a - b, level)
    error = float((a - b).std(ddof=1)) / math.sqrt(len(a))
    p = float(2 * special.stdtr(len(a) - 1, -abs(mean) / error)) if error > 0 else float(mean == 0)
    return Difference(mean, low, high, p, ARCHITECTURES, len(a))


def compare(
    seeds: Sequence[tuple[Interval, Interval, Paired | None]], alpha: float | None = ALPHA
) -> tuple[Difference, Difference | None]:
    """a - b from each seed's (a, b, their paired difference over the same items or None): at both levels of claim.

    First about these checkpoints, from their items. Then, with three seeds or more, about these architectures, else
    None: the widest and least sure of the paired t over seeds, of the items, and of both errors together. alpha: what
    the second may err by at this look of several (see `spent_at`), None for nothing; p is made comparable with 5%.
    """
    items = average([Interval(*paired[:3]) if paired else independent(a, b) for a, b, paired in seeds])
    margin = items.mean - items.low if items.mean >= 0 else items.high - items.mean  # towards zero
    # With few clusters Student's tail is heavier than the normal one at the small p that Holm's correction asks for.
    freedom = min((paired.clusters - 1 for _, _, paired in seeds if paired), default=math.inf)
    quantile = t_quantile(0.95, freedom) if math.isfinite(freedom) else normal_quantile(0.95)
    statistic = quantile * abs(items.mean) / margin if margin > 0 else 0.0
    p = float(2 * (special.stdtr(freedom, -statistic) if math.isfinite(freedom) else special.ndtr(-statistic)))
    checkpoints = Difference(*items, p, CHECKPOINTS, len(seeds))
    if len(seeds) < LEAST_SEEDS or not alpha:
        return checkpoints, None
    t = paired_t([a.mean for a, _, _ in seeds], [b.mean for _, b, _ in seeds], 1 - alpha)
    of_seeds = (t.mean - t.low) / t_quantile(1 - alpha, len(seeds) - 1)
    sides = [
        together(of_seeds, len(seeds) - 1, half / quantile, freedom)
        for half in (items.mean - items.low, items.high - items.mean)
    ]
    below, above = (t_quantile(1 - alpha, freedom) * error for error, freedom in sides)
    error, freedom = sides[0 if items.mean >= 0 else 1]  # towards zero
    both = float(2 * special.stdtr(freedom, -abs(items.mean) / error)) if error else float(items.mean == 0)
    low, high = min(t.low, items.low, t.mean - below), max(t.high, items.high, t.mean + above)
    return checkpoints, t._replace(low=low, high=high, p=min(max(t.p, p, both) * ALPHA / alpha, 1.0))


# ---- several looks


def spent_at(looks: Sequence[int]) -> dict[int, float]:
    """What of the 5% each look may use up, for looks after so many seeds, announced before the first.

    Little at first: a total of 2 - 2 Phi(z / sqrt(t)) after a fraction t of the last look's seeds, as O'Brien and
    Fleming's bounds spend it. Each look has what the total grows by, so that together they err in at most 5% of
    studies, however they depend on one another. Source: Lan & DeMets 1983, Biometrika 70(3).
    Raises ValueError unless the looks grow and each may make a claim.
    """
    looks = list(looks)
    if not looks or looks[0] < LEAST_SEEDS or any(a >= b for a, b in pairwise(looks)):
        raise ValueError(
            f"looks come after growing numbers of seeds, {LEAST_SEEDS} at least, such as (3, 5, 8); got {looks}"
        )
    z = normal_quantile(1 - ALPHA)
    total = [float(2 * special.ndtr(-z / math.sqrt(seeds / looks[-1]))) for seeds in looks]
    return dict(zip(looks, np.diff([0.0, *total]).tolist(), strict=True))


# ---- how many seeds


def power(seeds: int, difference: float, deviation: float, level: float = 0.95) -> float:
    """Chance that a paired t over this many seeds sees a true difference, given the differences' deviation over seeds.

    From the noncentral t distribution. Two seeds are the fewest that have a deviation.
    """
    if seeds < 2:
        return 0.0
    shift = abs(difference) / deviation * math.sqrt(seeds)
    bound = t_quantile(level, seeds - 1)
    wrong = special.nctdtr(seeds - 1, shift, -bound)  # seen the other way round; not a number where it is below 1e-30
    return float(1 - special.nctdtr(seeds - 1, shift, bound) + (wrong if math.isfinite(wrong) else 0))


def seeds_needed(difference: float, deviation: float, wanted: float = 0.8, most: int = 1000) -> int | None:
    """The fewest seeds, at least those of a claim, that see the difference with that chance; None past `most`."""
    low, high = LEAST_SEEDS, most
    if power(high, difference, deviation) < wanted:
        return None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if power(middle, difference, deviation) >= wanted else (middle + 1, high)
    return low


def detectable(seeds: int, deviation: float, wanted: float = 0.8) -> float:
    """The smallest true difference that a paired t over this many seeds sees with that chance."""
    low, high = 0.0, 1000 * deviation
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if power(seeds, middle, deviation) >= wanted else (middle, high)
    return high


def deviation_interval(deviation: float, seeds: int, level: float = 0.95) -> tuple[float, float]:
    """Where the true deviation lies, given one from so many seeds: with three, between half and six times it."""
    freedom = seeds - 1
    tail = (1 - level) / 2
    return tuple(deviation * math.sqrt(freedom / special.chdtri(freedom, q)) for q in (tail, 1 - tail))
