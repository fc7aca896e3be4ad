"""Another arm for a study: the same runs with another model beside one arm's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from workbench.config import LayerConfig, RunConfig, load_file, nearest
from workbench.count import count
from workbench.match import match
from workbench.study.experiment import task


class Joined(NamedTuple):
    """What an experiment file defines."""

    SCALES: tuple[str, ...]
    runs: Callable[..., list[RunConfig]]
    tuning: Callable[..., list[RunConfig]]


def join(
    path: str | Path,
    arm: str,
    pattern: str,
    symbols: Mapping[str, LayerConfig],
    *,
    like: str = "transformer",
    rates: Mapping[str, float] | None = None,
) -> Joined:
    """`SCALES, runs, tuning` of the experiment at `path` as a study called `arm`, with that arm beside the others.

    Beside each run of `like` there is one of the new arm: same data, seed, steps and width, resized to its parameters
    within 1%. rates: learning rates by task, such as {"phonebook": 3e-3}; a task without one has that of `like`, and
    tuning runs have the grid's.
    Raises ValueError, when runs are asked for, if no run's arm is `like` or the sizes cannot be matched.
    """
    module = load_file(Path(path))
    scales = tuple(getattr(module, "SCALES", ("demo",)))

    def runs(scale: str = scales[0]) -> list[RunConfig]:
        return joined(module.runs(scale))

    def tuning(scale: str = scales[0]) -> list[RunConfig]:
        return joined(module.tuning(scale)) if hasattr(module, "tuning") else []

    def joined(runs: Iterable[RunConfig]) -> list[RunConfig]:
        runs = list(runs)
        tasks = {task(run) for run in runs}
        unknown = sorted(set(rates or {}) - tasks)
        if unknown:
            raise ValueError(f"{path} has no task {unknown[0]!r} for a rate; {nearest(unknown[0], tasks)}")
        others = [beside(run) for run in runs if run.arm == like]
        if not others:
            raise ValueError(f"{path} has no arm {like!r}; {nearest(like, {run.arm for run in runs})}")
        return [replace(run, study=arm) for run in [*runs, *others]]

    def beside(run: RunConfig) -> RunConfig:
        model = replace(run.model, pattern=pattern, symbols=dict(symbols))
        matched = match(model, parameters=count(run.model).parameters)
        if not matched.within:
            raise ValueError(f"{arm} cannot stand beside {like}: {matched}; give its config an inner width to change")
        rate = run.optimizer.learning_rate
        if run.role != "tuning":
            rate = (rates or {}).get(task(run), rate)
        return replace(run, arm=arm, model=matched.config, optimizer=replace(run.optimizer, learning_rate=rate))

    return Joined(scales, runs, tuning)
