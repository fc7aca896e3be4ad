"""Differences between a study's arms, each at two levels of claim, and the seeds that they rest on.

Arms are compared where their schedules end: at equal tokens and, where a study has runs for it, at equal training FLOPs
and equal seconds (workbench.study.budget). Only arms that may be compared are (workbench.study.judge).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np

from workbench.evaluate.interval import holm
from workbench.study import statistics
from workbench.study.collect import Run, Study
from workbench.study.judge import SURE, at, budgets, look_level, ranked, replicates, verdicts
from workbench.study.statistics import CHECKPOINTS, Difference, Interval, Paired
from workbench.study.wording import BITS


class Estimate(NamedTuple):
    """A mean over seeds, its 95% interval, and what that speaks of."""

    mean: float
    low: float
    high: float
    claim: str
    seeds: int


class Floor(NamedTuple):
    """The root mean square difference of two runs that differ in their seeds alone, of the one arm or the other.

    seeds: another start and other data, as between the study's replicates. start: another initialisation on the same
    data (runs of the role noise). None where no two such runs were made.
    """

    seeds: float | None
    start: float | None


@dataclass(frozen=True)
class Comparison:
    """first - second on a task: exact match at a number of entries, or bits per byte (less is better).

    Both levels of claim, each with Holm's p over all comparisons of the study at that level. budget: what both have
    spent alike. floor: how far runs of one architecture lie apart, for holding the difference against.
    """

    task: str
    budget: str
    measure: str
    entries: int | None
    first: str
    second: str
    checkpoints: Difference
    architectures: Difference | None  # with three seeds or more
    p_checkpoints: float
    p_architectures: float | None
    floor: Floor

    @property
    def claim(self) -> str:
        """The widest level at which a difference is seen; "" if at none."""
        for difference, p in ((self.architectures, self.p_architectures), (self.checkpoints, self.p_checkpoints)):
            if difference is not None and p < SURE and not difference.low <= 0 <= difference.high:
                return difference.claim
        return ""

    @property
    def difference(self) -> Difference:
        """The one that the claim rests on; where no difference is seen, the widest level's."""
        return self.checkpoints if self.claim == CHECKPOINTS else self.architectures or self.checkpoints

    @property
    def better(self) -> str | None:
        """The arm that is better, None where no difference is seen."""
        if not self.claim:
            return None
        return self.first if (self.difference.mean > 0) == (self.measure == "exact_match") else self.second

    def record(self) -> dict[str, Any]:
        plain = {key: getattr(self, key) for key in ("task", "budget", "measure", "entries", "first", "second")}
        levels = {"checkpoints": self.checkpoints._asdict() | {"p_holm": self.p_checkpoints}}
        if self.architectures is not None:
            levels["architectures"] = self.architectures._asdict() | {"p_holm": self.p_architectures}
        return plain | levels | {"floor": self.floor._asdict(), "claim": self.claim, "better": self.better}


# ---- numbers


def mean_of(runs: Sequence[Run], measure: str, entries: int | None = None) -> Estimate:
    """The mean over these runs that finished, proportions kept in [0, 1]. Raises ValueError if none has it."""
    found = [value for run in runs if run.finished and (value := _value(run, measure, entries))]
    if not found:
        raise ValueError(f"no finished run of {runs[0].arm if runs else 'no arm'} has {measure} at {entries}")
    (mean, low, high), claim = statistics.over_seeds(found)
    if measure not in BITS:
        low, high = max(low, 0.0), min(high, 1.0)
    return Estimate(mean, low, high, claim, len(found))


def _value(run: Run, measure: str, entries: int | None) -> Interval | None:
    return getattr(run, measure) if measure in BITS else run.by_entries(measure).get(entries)


def _paired(a: Run, b: Run, measure: str, entries: int | None) -> Paired | None:
    """The difference over the same books or groups of documents, where the evaluations kept them."""
    if measure == "bits_per_byte":
        first, second = (run.evaluation(measure).get("by_group") or {} for run in (a, b))
        if not first or first.keys() != second.keys() or not all("bytes" in entry for entry in first.values()):
            return None
        means = [[float(side[name]["mean"]) for name in first] for side in (first, second)]
        return statistics.paired_clusters(*means, [entry["bytes"] for entry in first.values()])
    books = [run.evaluation(measure).get("per_book", {}).get(str(entries)) for run in (a, b)]
    if None in books or len(books[0]) != len(books[1]):
        return None
    return statistics.paired_clusters(*books)


def sizes_of_interest(study: Study, task: str) -> list[int]:
    """The largest size in training and every evaluated size past it."""
    runs = [run for run in study.select("result", task=task) if run.finished and run.by_entries()]
    if not runs:
        return []
    evaluated = [k for k in runs[0].by_entries() if all(k in run.by_entries() for run in runs)]
    trained = runs[0].trained_entries
    within = [k for k in evaluated if k <= max(trained, default=0)]
    return within[-1:] + [k for k in evaluated if k > max(trained, default=0)]


def comparisons(study: Study) -> list[Comparison]:
    """Every pair of ranked arms at every budget: exact match at the largest size in training and of all, and bits."""
    pairs = []
    for task in study.tasks:
        for budget in budgets(study, task):
            arms = ranked(study, task, budget)
            for measure, entries in measures(study, task):
                pairs += [(task, budget, measure, entries, *pair) for pair in combinations(arms, 2)]
    return _compared(study, pairs)


def against_controls(study: Study) -> list[Comparison]:
    """Each ranked control against the ranked arm that it differs from in one thing, where `comparisons` looks."""
    pairs = []
    for task in study.tasks:
        judged = verdicts(study, task)
        for arm, of in control_of(study, task).items():
            if judged[arm].ranked and of in judged and judged[of].ranked:
                pairs += [(task, "tokens", measure, entries, arm, of) for measure, entries in measures(study, task)]
    return _compared(study, pairs)


def control_of(study: Study, task: str) -> dict[str, str]:
    """The arm that each control differs from."""
    return {run.arm: run.config["control_of"] for run in study.select("control", task=task)}


def measures(study: Study, task: str) -> list[tuple[str, int | None]]:
    """What is compared: few sizes, since Holm's correction grows with their number."""
    sizes = sizes_of_interest(study, task)
    found: list[tuple[str, int | None]] = [("exact_match", k) for k in dict.fromkeys((*sizes[:1], *sizes[-1:]))]
    runs = [run for run in study.select("result", task=task) if run.finished]
    return [*found, ("bits_per_byte", None)] if runs and all(run.bits_per_byte for run in runs) else found


def _compared(study: Study, pairs: list[tuple[str, str, str, int | None, str, str]]) -> list[Comparison]:
    raw = []
    for task, budget, measure, entries, first, second in pairs:
        a, b = (_by_replicate(study, task, budget, arm) for arm in (first, second))
        seeds = [
            (
                _value(a[r], measure, entries),
                _value(b[r], measure, entries),
                _paired(a[r], b[r], measure, entries),
            )
            for r in replicates(study, task)
        ]
        compared = statistics.compare(seeds, look_level(study, task))
        raw.append((task, budget, measure, entries, first, second, *compared))
    items = holm([row[-2].p for row in raw])
    seeded = iter(holm([row[-1].p for row in raw if row[-1]]))
    return [
        Comparison(*row, p, next(seeded) if row[-1] else None, floor(study, row[0], row[4:6], *row[2:4]))
        for row, p in zip(raw, items, strict=True)
    ]


def _by_replicate(study: Study, task: str, budget: str, arm: str) -> dict[tuple[int, int], Run]:
    runs = at(study, task, budget).get(arm) or study.select("control", task=task, arm=arm)
    return {run.replicate: run for run in runs}


def floor(study: Study, task: str, arms: Sequence[str], measure: str, entries: int | None) -> Floor:
    """How far two runs of these arms lie apart where their seeds alone differ."""
    apart: dict[str, list[float]] = {"seeds": [], "start": []}
    for arm in arms:
        same: dict[int, list[float]] = {}  # by the data's seed
        own = study.select("result", "control", task=task, arm=arm)
        for run in [*own, *study.select("noise", task=task, arm=arm)]:
            value = _value(run, measure, entries) if run.finished else None
            if value is not None:
                same.setdefault(run.data_seed, []).append(value.mean)
        firsts = [values[0] for values in same.values()]
        apart["seeds"] += [float(np.var(firsts, ddof=1))] if len(firsts) > 1 else []
        again = [values for values in same.values() if len(values) > 1]
        if again:
            freedom = sum(len(values) - 1 for values in again)
            apart["start"].append(sum((len(v) - 1) * float(np.var(v, ddof=1)) for v in again) / freedom)
    return Floor(
        **{name: math.sqrt(2 * float(np.mean(v))) if len(v) == len(arms) else None for name, v in apart.items()}
    )


# ---- planning


class Spread(NamedTuple):
    """How the difference of two arms varies over the seeds that were run."""

    task: str
    measure: str
    entries: int | None
    first: str
    second: str
    mean: float
    deviation: float
    seeds: int


def spreads(study: Study) -> list[Spread]:
    """Of every pair of arms that finished two seeds or more, ranked or not: for planning, never for a claim."""
    found = []
    for task in study.tasks:
        for measure, entries in measures(study, task):
            values: dict[str, dict] = {}
            for run in study.select("result", task=task):
                value = _value(run, measure, entries) if run.finished else None
                if value:
                    values.setdefault(run.arm, {})[run.replicate] = value.mean
            for first, second in combinations(values, 2):
                both = [r for r in values[first] if r in values[second]]
                if len(both) > 1:
                    gaps = np.array([values[first][r] - values[second][r] for r in both])
                    mean, deviation = float(gaps.mean()), float(gaps.std(ddof=1))
                    found.append(Spread(task, measure, entries, first, second, mean, deviation, len(both)))
    return found
