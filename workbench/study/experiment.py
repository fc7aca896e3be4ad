"""Reads an experiment file: one Python file a study, whose `runs(scale)` says everything that is to be run."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from workbench.config import BUDGETS, RunConfig, UnknownName, from_json, load_file, nearest, override, task_name
from workbench.record import read_json
from workbench.study.statistics import spent_at


@dataclass(frozen=True)
class Experiment:
    """An experiment file at one scale, with its overrides applied; `folder` receives everything that it makes."""

    name: str
    path: Path
    scale: str
    folder: Path
    docstring: str
    runs: tuple[RunConfig, ...]
    tuning: tuple[RunConfig, ...] = ()
    overrides: tuple[str, ...] = ()
    looks: tuple[int, ...] = ()  # after how many seeds the report is looked at, where that was announced

    @property
    def root(self) -> Path:
        """The folder that holds experiments/, notebooks/ and runs/."""
        return root_of(self.path)


def load(path: str | Path, scale: str | None = None, overrides: Sequence[str] = ()) -> Experiment:
    """The experiment in a Python file: its docstring, `runs(scale)` and, if there, `tuning(scale)`.

    Without a scale, the first of the file's SCALES. Products go to runs/NAME, runs/NAME-SCALE for any scale but the
    first, and to a folder that is named after the overrides where there are any, so that they never mix.
    LOOKS = (3, 5, 8) in the file announces that its report is looked at after so many seeds, which its claims then
    account for (workbench.study.statistics.spent_at).
    Raises ValueError on an unknown scale or override, on two equal runs, and on seeds both tuned on and reported.
    """
    path = find(path)
    module = load_file(path)
    if not hasattr(module, "runs"):
        raise ValueError(f"{path} has no runs(scale) -> list[RunConfig]; experiments/phonebook.py shows the form")
    scales = tuple(getattr(module, "SCALES", ("demo",)))
    if scale is None:
        scale = scales[0]
    elif scale not in scales:
        raise ValueError(f"{path.name} has no scale {scale!r}; {nearest(scale, scales)}")

    overrides = tuple(overrides)
    runs, tuning = module.runs(scale), module.tuning(scale) if hasattr(module, "tuning") else []
    runs, tuning = (tuple(each) for each in _overridden([list(runs), list(tuning)], overrides))
    _check(path, runs, tuning)
    looks = tuple(getattr(module, "LOOKS", ()))
    if looks:
        spent_at(looks)
    name = path.stem
    folder = root_of(path) / "runs" / "-".join([name, *([scale] if scale != scales[0] else []), *_suffix(overrides)])
    return Experiment(name, path, scale, _shown(folder), (module.__doc__ or "").strip(), runs, tuning, overrides, looks)


def _overridden(groups: list[list[RunConfig]], overrides: tuple[str, ...]) -> list[list[RunConfig]]:
    """The runs with each override in those that have its field: `data.digits=3` leaves runs on text as they are.

    A run of twice the steps stays one, and a run's parent its parent, whose name changes with it. Raises UnknownName
    where no run has the field.
    """
    before = [run for group in groups for run in group]
    for assignment in overrides:
        missing: list[UnknownName] = []
        found = 0
        for group in groups:
            for i, run in enumerate(group):
                if run.role in BUDGETS and assignment.partition("=")[0].strip() == "steps":
                    raise ValueError(f"{assignment}: {run.name} ends at an equal budget, which says its steps; change "
                                     "those in the experiment's file")  # fmt: skip
                try:
                    group[i] = override(run, assignment)
                except UnknownName as error:
                    missing.append(error)
                    continue
                found += 1
                if run.role == "long" and group[i].steps != run.steps:
                    group[i] = replace(group[i], steps=2 * group[i].steps)
        if missing and not found:  # the nearest name of any run's
            raise next((error for error in missing if "did you mean" in str(error)), missing[0])
    linked = iter(_linked(before, [run for group in groups for run in group]))
    return [[next(linked) for _ in group] for group in groups]


def _linked(before: list[RunConfig], after: list[RunConfig]) -> list[RunConfig]:
    """The runs after, each with its parent under the name that this has now."""
    place = {run.name: i for i, run in enumerate(before)}

    def linked(run: RunConfig) -> RunConfig:
        if run.parent is None or run.parent.run not in place:
            return run
        return replace(run, parent=replace(run.parent, run=linked(after[place[run.parent.run]]).name))

    return [linked(run) for run in after]


def task(run: RunConfig) -> str:
    """What a run learns, by its data: "phonebook", "text", a recall's kind or as a user's own class is called."""
    return task_name(run.data)


def chosen(config: str = "", folder: str = "") -> tuple[RunConfig, Path]:
    """The run of a config.json and its folder; without them the first run of the phonebook study, in its own place."""
    if config:
        path = Path(config)
        saved = read_json(path)
        if saved is None:
            raise ValueError(f"{path} is not there; give the config.json of a run")
        return from_json(saved), Path(folder) if folder else path.parent
    experiment = load("experiments/phonebook.py")
    run = experiment.runs[0]
    return run, Path(folder) if folder else experiment.folder / run.name


def find(path: str | Path) -> Path:
    """The experiment file, looked for here and, from a notebook's folder, one level up."""
    path = Path(path)
    if not path.is_file() and not path.is_absolute() and (Path("..") / path).is_file():
        path = Path("..") / path
    if not path.is_file():
        others = sorted(path.parent.glob("*.py")) if path.parent.is_dir() else []
        raise ValueError(
            f"{path} is not there; "
            + (nearest(str(path), others) if others else "give an experiment file, such as experiments/phonebook.py")
        )
    return path


def root_of(path: Path) -> Path:
    """The folder above experiments/; for a file that is elsewhere, the folder of the file."""
    folder = path.resolve().parent
    return folder.parent if folder.name == "experiments" else folder


def _shown(folder: Path) -> Path:
    """Relative to here where possible: shorter to read, and a study moves with its checkout."""
    here = Path.cwd().resolve()
    return folder.relative_to(here) if folder.is_relative_to(here) else folder


def _suffix(overrides: tuple[str, ...]) -> list[str]:
    if not overrides:
        return []
    text = re.sub(r"[^A-Za-z0-9._]+", "-", "-".join(overrides)).strip("-")[:60]
    return [text, hashlib.sha256("\n".join(overrides).encode()).hexdigest()[:6]]  # two patterns may read alike


def _check(path: Path, runs: tuple[RunConfig, ...], tuning: tuple[RunConfig, ...]) -> None:
    if not runs:
        raise ValueError(f"{path}: runs(scale) gave no runs")
    for run in (*runs, *tuning):  # here, before any kernel starts, and not in the config: overrides come one by one
        run.optimizer.warmup_steps(run.steps)
    names = [run.name for run in (*runs, *tuning)]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{path}: {', '.join(twice)} stands there more than once; runs must differ in some field")
    for what, seed in (("seed", lambda run: run.seed), ("data.seed", lambda run: getattr(run.data, "seed", None))):
        both = {seed(run) for run in tuning} & {seed(run) for run in runs} - {None}
        if both:
            raise ValueError(
                f"{path}: {what} {', '.join(map(str, sorted(both)))} is both tuned on and reported; "
                "give tuning(scale) seeds of its own, or the reported runs are the ones that were chosen"
            )
    wrong = [run.name for run in tuning if run.role != "tuning"]
    if wrong:
        raise ValueError(f'{path}: tuning(scale) gave {wrong[0]} the role {tuning[0].role!r}; set role="tuning"')
