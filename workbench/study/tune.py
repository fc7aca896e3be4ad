"""Chooses learning rates: one grid for every arm, judged on the select split by seeds that are not reported."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from workbench.config import RunConfig
from workbench.record import read_json, write_json
from workbench.study.experiment import Experiment, task

MEASURES = {"exact_match": 1, "bits_per_byte": -1, "score": 1}  # 1: more is better


def check_grid(tuning: Sequence[RunConfig]) -> None:
    """Raises ValueError unless every arm of a task tries the same rates with the same seeds, every rate with each."""
    if not tuning:
        raise ValueError("the experiment has no tuning(scale) runs; add them, with a grid of learning rates")
    for name, arms in _grouped(tuning).items():
        grids = {arm: sorted((run.optimizer.learning_rate, run.seed) for run in runs) for arm, runs in arms.items()}
        first = next(iter(grids))
        for arm, grid in grids.items():
            if grid != grids[first]:
                raise ValueError(
                    f"{name}: {arm} is tuned on {_spelled(grid)} and {first} on {_spelled(grids[first])}; "
                    "every arm needs the same rates and seeds"
                )
        rates, seeds = ({pair[i] for pair in grids[first]} for i in (0, 1))
        if len(grids[first]) != len(rates) * len(seeds):
            raise ValueError(f"{name}: {_spelled(grids[first])}; every rate needs every seed, once")


def _spelled(grid: list[tuple[float, int]]) -> str:
    return ", ".join(f"{rate:g} (seed {seed})" for rate, seed in grid)


def _grouped(runs: Sequence[RunConfig]) -> dict[str, dict[str, list[RunConfig]]]:
    groups: dict[str, dict[str, list[RunConfig]]] = {}
    for run in runs:
        groups.setdefault(task(run), {}).setdefault(run.arm, []).append(run)
    return groups


def measure(select: Mapping[str, Any]) -> tuple[str, float]:
    """(name, value) of the evaluations on the select split; more is better.

    Exact match is the mean over the book sizes; bits_per_byte counts negative; a user's own evaluation gives `score`.
    Raises ValueError if there is none of these.
    """
    flat = {name: value for evaluation in select.values() for name, value in evaluation.items()}
    for name, sign in MEASURES.items():
        if name in flat:
            value = flat[name]
            if isinstance(value, Mapping):
                means = [value] if "mean" in value else list(value.values())
                value = sum(item["mean"] for item in means) / len(means)
            return name, sign * value
    raise ValueError(f"an evaluation on the select split gave {', '.join(flat)}; tuning needs {', '.join(MEASURES)}")


def choose(experiment: Experiment) -> dict:
    """The best rate of every task and arm, by the mean over seeds on the select split; written to tuning.json.

    A run that ended in NaN counts as worse than any other; equal means go to a rate inside the
    grid, which has been looked past on both sides, and then to the smaller.
    Raises ValueError if a tuning run has not ended, since a choice among fewer would not be the same for every arm.
    """
    check_grid(experiment.tuning)
    choices, place = [], experiment.folder
    for name, arms in _grouped(experiment.tuning).items():
        for arm, runs in arms.items():
            results = [read_json(place / run.name / "result.json") or {} for run in runs]
            rates = [run.optimizer.learning_rate for run in runs]
            trials = [Trial(r.name, rate, r.seed, f) for r, rate, f in zip(runs, rates, results, strict=True)]
            choices.append({"task": name, "arm": arm} | choice(trials))
    value = {"scale": experiment.scale, "choices": choices}
    write_json(experiment.folder / "tuning.json", value)
    return value


class Trial(NamedTuple):
    """A tuning run; `result` is its result.json."""

    run: str
    learning_rate: float
    seed: int
    result: dict[str, Any]


def choice(trials: Sequence[Trial], split: str = "select") -> dict:
    """What an arm's trials choose; see `choose`.

    split: the part of a result that is judged; "evaluation", which is on test, shows what must not have been chosen by.
    """
    values: dict[float, list[float]] = {}
    measured = None
    for name, rate, _, result in sorted(trials, key=lambda trial: (trial.learning_rate, trial.seed)):
        if result.get("status") == "finished":
            measured, value = measure(result[split])
        elif result.get("status") == "nan":
            value = -math.inf
        else:
            raise ValueError(f"tuning run {name} is not finished; run with --tune again, then the rates are chosen")
        values.setdefault(rate, []).append(value)
    if measured is None:
        raise ValueError(
            f"every tuning run of an arm ended in NaN ({trials[0].run} and the others); the grid needs smaller rates, "
            "for every arm"
        )
    means = {rate: sum(each) / len(each) for rate, each in values.items()}
    best = max(means, key=lambda rate: (means[rate], rate not in (min(means), max(means)), -rate))
    sign = MEASURES[measured]
    return {
        "learning_rate": best,
        "at_edge": best in (min(means), max(means)),
        "measure": measured,
        "seeds": sorted({trial.seed for trial in trials}),
        "by_budget": [None if not math.isfinite(each) else sign * each for each in expected_best(list(means.values()))],
        "rates": [
            {
                "learning_rate": rate,
                "mean": sign * means[rate] if math.isfinite(means[rate]) else None,
                "values": [sign * value if math.isfinite(value) else None for value in values[rate]],
            }
            for rate in means
        ],
    }


def expected_best(values: Sequence[float]) -> list[float]:
    """What the best of one rate, of two, ... of all would have been, in the mean over which of them were tried.

    So that arms can be held against each other at any budget of tuning. Source: Dodge et al. 2019, arXiv:1909.03004
    (here without replacement, since a grid tries no rate twice).
    """
    ordered, count = sorted(values), len(values)
    return [
        sum(
            value * math.comb(rank, tried - 1) / math.comb(count, tried)
            for rank, value in enumerate(ordered)
            if rank >= tried - 1
        )
        for tried in range(1, count + 1)
    ]


def describe(chosen: dict, experiment: Experiment) -> str:
    """The choice in words: a line an arm, what the experiment file uses, and whether the grid has to grow."""
    used = {(task(run), run.arm): run.optimizer.learning_rate for run in experiment.runs if run.role == "result"}
    lines = []
    for choice in chosen["choices"]:
        tried = ", ".join(
            f"{row['learning_rate']:g}: {'NaN' if row['mean'] is None else format(row['mean'], '.3f')}"
            for row in choice["rates"]
        )
        now = used.get((choice["task"], choice["arm"]))
        note = "" if now in (None, choice["learning_rate"]) else f"; the experiment uses {now:g}: put this one there"
        edge = "; at the grid's edge" if choice["at_edge"] else ""
        lines.append(
            f"{choice['task']} {choice['arm']}: {choice['learning_rate']:g} "
            f"({choice['measure']} on select, mean of {len(choice['seeds'])} seeds: {tried}){edge}{note}"
        )
    lines.append("Expected best on select after so many rates (1, 2, ... of the grid), whichever they were:")
    for choice in chosen["choices"]:
        found = ", ".join("NaN" if value is None else f"{value:.3f}" for value in choice["by_budget"])
        lines.append(f"  {choice['task']} {choice['arm']}: {found}")
    edges = [f"{choice['task']} {choice['arm']}" for choice in chosen["choices"] if choice["at_edge"]]
    if edges:
        lines.append(
            f"The best rate of {', '.join(edges)} lies at the grid's edge: widen the grid, for every arm alike, "
            "and run --tune again."
        )
    return "\n".join([*lines, f"written to {experiment.folder / 'tuning.json'}"])
