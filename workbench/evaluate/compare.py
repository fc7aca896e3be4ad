"""Two models on the same items: is one better, or is no difference seen, and how many items would show it?

It speaks of these two checkpoints. What it would say of architectures needs seeds, and is a study's to say.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import special

from workbench.evaluate.interval import clustered_mean, holm, normal_quantile, t_quantile
from workbench.evaluate.suite import read_items, summary, weights_of

SURE = 0.05  # of p
POWER = 0.8  # that the needed items would show the difference


class Comparison(NamedTuple):
    """first - second of a task's first metric, over the items that both were asked.

    at_chance: neither score can be told from that of an answer that knows nothing. lower_is_better: as bits per byte.
    p: exact McNemar where answers are right or wrong and each item stands alone, else Student's t over clusters.
    needed: items at which a difference as large as this one would be seen, as often as POWER; None if it is zero.
    """

    task: str
    metric: str
    items: int
    first: float
    second: float
    low: float
    high: float
    p: float
    needed: int | None
    at_chance: bool = False
    lower_is_better: bool = False


def compare(first: Path, second: Path, task: str) -> Comparison | None:
    """Of the items kept in two folders (workbench.evaluate.suite.place); None where one has no answers to the
    task, or these come in one cluster.

    Raises ValueError where they were asked different things.
    """
    one, two = ({row["item"]: row for row in read_items(folder / f"{task}.parquet")} for folder in (first, second))
    a, b = ([rows[item] for item in one if item in two] for rows in (one, two))
    if not a:
        return None
    if [row["digest"] for row in a] != [row["digest"] for row in b]:
        raise ValueError(
            f"{task}: the two were not asked the same {len(one)} and {len(two)} items, so they cannot be compared one "
            "by one (prompts made to a length in tokens differ with the tokenizer)"
        )
    if not a[0]["metrics"]:
        raise ValueError(f"{task}: its scores are of all items together, so the two cannot be compared one by one")
    metric = next(iter(a[0]["metrics"]))
    both = [(x, y) for x, y in zip(a, b, strict=True) if None not in (x["metrics"][metric], y["metrics"][metric])]
    if len({row["cluster"] for row, _ in both}) < 2:
        return None
    a, b = zip(*both, strict=True)
    pairs = np.array([(x["metrics"][metric], y["metrics"][metric]) for x, y in zip(a, b, strict=True)])
    found = paired(task, metric, *pairs.T, [row["cluster"] for row in a], weights_of(a))
    at_chance = all(summary(rows)["at_chance"] for rows in (a, b))
    return found._replace(at_chance=at_chance, lower_is_better=a[0].get("lower_is_better", False))


def paired(
    task: str,
    metric: str,
    a: np.ndarray,
    b: np.ndarray,
    clusters: Sequence[str],
    weights: np.ndarray | None = None,
) -> Comparison:
    """The comparison of two scores an item; weights: how much each counts. Raises ValueError below two clusters."""
    _, cluster = np.unique(clusters, return_inverse=True)
    weights = np.ones(len(a)) if weights is None else weights
    items = np.bincount(cluster, weights)
    mean, low, high = clustered_mean(np.bincount(cluster, weights * (a - b)), items)
    error = (high - mean) / t_quantile(0.95, len(items) - 1)
    if set(np.unique([a, b])) <= {0.0, 1.0} and len(items) == len(a):
        p = mcnemar(int(((a == 1) & (b == 0)).sum()), int(((a == 0) & (b == 1)).sum()))
    elif error:
        p = 2 * float(special.stdtr(len(items) - 1, -abs(mean) / error))
    else:
        p = float(mean == 0)
    wanted = (normal_quantile(1 - SURE) + float(special.ndtri(POWER))) * error
    needed = math.ceil(len(a) * (wanted / mean) ** 2) if mean else None
    first, second = (float(np.average(scores, weights=weights)) for scores in (a, b))
    return Comparison(task, metric, len(a), first, second, low, high, p, needed)


def mcnemar(one: int, other: int) -> float:
    """Exact two-sided p of `one` items that only the first had right and `other` that only the second had right."""
    least, both = min(one, other), one + other
    return min(1.0, 2 * float(special.bdtr(least, both, 0.5))) if both else 1.0


def against_first(kept: Mapping[str, Path], tasks: Sequence[str]) -> list[str]:
    """What folders of items say of every other model against the first, a line a task; why, where they say nothing."""
    first, *others = kept
    said = []
    for other in others:
        said.append(f"{first} (first) and {other} (second):")
        found, refused = [], []
        for task in tasks:
            try:
                found.append(compare(kept[first], kept[other], task))
            except ValueError as why:
                refused.append(str(why))
        said += sentences(found) + refused or ["  nothing that both were asked"]
    return said


def sentences(found: Sequence[Comparison | None]) -> list[str]:
    """A line a comparison, p adjusted by Holm for their number."""
    known = [each for each in found if each is not None]
    out = []
    for each, p in zip(known, holm([each.p for each in known]), strict=True):
        gap = f"{each.first - each.second:+.3f} [{each.low:+.3f}, {each.high:+.3f}], p = {p:.2g}"
        if each.at_chance:
            said = "neither can be told from chance"
        elif p < SURE:
            said = f"the {'first' if (each.first > each.second) != each.lower_is_better else 'second'} is ahead"
        else:
            said = "no difference seen"
            said += f"; one of this size would take about {each.needed:,} items" if each.needed else ""
        out.append(f"{each.task}: {each.metric} {each.first:.3f} and {each.second:.3f}, {gap}: {said}")
    return out
