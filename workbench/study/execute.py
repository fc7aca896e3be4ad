"""Executes an experiment: one papermill notebook a run, several at a time, each resumable; then its report."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from workbench.config import RunConfig, short_hash, to_json
from workbench.record import read_json, write_json
from workbench.study import launch, progress
from workbench.study.experiment import Experiment, load
from workbench.study.launch import Handle, Launcher, Task
from workbench.study.notebook import check_parameters, new_kernel, run_notebook
from workbench.train import cluster
from workbench.train.track import log_study

WANDB = ("online", "offline", "disabled")
MOST_ROWS = 8  # of the display


class Failure(NamedTuple):
    run: str
    error: str


class Outcome(NamedTuple):
    folder: Path
    report: Path | None
    failures: list[Failure]


def run(
    path: str | Path | Experiment,
    *,
    scale: str | None = None,
    overrides: Sequence[str] = (),
    launcher: str = "local",
    jobs: int | None = None,
    wandb: str = "offline",
    tune: bool = False,
    layout: str = "",
) -> Outcome:
    """Runs what is not yet done of an experiment and makes its report; with `tune`, its tuning runs and their choice.

    Prints as it goes. A run that fails does not stop the others; it is in the outcome and marked in the report.
    launcher: where the runs are executed (workbench.study.launch); the report is made here.
    Raises ValueError on a wrong experiment or argument before anything starts.
    """
    experiment = path if isinstance(path, Experiment) else load(path, scale, overrides)
    if wandb not in WANDB:
        raise ValueError(f"wandb is {', '.join(WANDB)}; got {wandb!r}")
    if cluster.place():
        runs = experiment.tuning if tune else experiment.runs
        return Outcome(experiment.folder, None, _take_part(experiment, runs, layout))
    if tune:
        from workbench.study.tune import check_grid, choose, describe

        check_grid(experiment.tuning)
        failures = execute(experiment, experiment.tuning, launcher=launcher, jobs=jobs, wandb=wandb, layout=layout)
        for failure in failures:
            print(f"FAILED {failure.run}: {failure.error}")
        print(describe(choose(experiment), experiment))
        return Outcome(experiment.folder, None, failures)

    _record(experiment)
    failures = execute(experiment, experiment.runs, launcher=launcher, jobs=jobs, wandb=wandb, layout=layout)
    page = experiment.folder / "report.html"
    if _newer(page, experiment.folder):
        print(f"report is up to date: {page}")
    else:
        print("making the report", flush=True)
        page = compare(experiment.folder)
        from workbench.study.collect import collect  # with the report's libraries
        from workbench.study.tables import every

        tables = {name: (each.heads, each.rows) for name, each in every(collect(experiment.folder)).items()}
        log_study(experiment.name, experiment.folder, wandb, tables)
        print(f"report: {page}")
    for failure in failures:
        print(f"FAILED {failure.run}: {failure.error}")
    return Outcome(experiment.folder, page, failures)


def execute(
    experiment: Experiment,
    runs: Sequence[RunConfig],
    *,
    launcher: str = "local",
    jobs: int | None = None,
    wandb: str = "offline",
    layout: str = "",
) -> list[Failure]:
    """Executes those of the runs that are not done, `jobs` at a time; on this machine each on cores of its own.

    A run whose parent is among them waits for its end, so that runs may come in any order. With a layout of several
    devices one run at a time has all of this machine's.

    A killed run resumes from its last checkpoint. On Ctrl-C the runs are stopped and KeyboardInterrupt raised.
    """
    notebook = notebooks(experiment.root) / "train.ipynb"
    tasks = {run.name: _task(experiment.folder / run.name, notebook, wandb, layout) for run in runs}
    check_parameters(notebook, tasks[runs[0].name].parameters())
    statuses = {each.name: status(experiment.folder / each.name, each) for each in runs}
    todo = [each for each in runs if statuses[each.name] not in ENDED]
    print(f"{experiment.name} ({experiment.scale}): {len(runs)} runs, {len(runs) - len(todo)} done", flush=True)
    if todo:
        launching = launch.launcher(launcher, jobs, layout)
        _prepare(experiment.folder, todo)
        print(announcement(todo, launching), flush=True)
        errors = _run_all(_Work(experiment.folder, launching, todo, tasks))
    else:
        errors = {}
    for each in runs:
        ended = status(experiment.folder / each.name, each)
        if ended == "nan" and each.role == "tuning":  # a rate that is too high is an answer
            errors.pop(each.name, None)
        elif ended != "finished":
            errors.setdefault(each.name, f"ended with status {ended!r}")
    return [Failure(each.name, errors[each.name]) for each in runs if each.name in errors]


def _task(folder: Path, notebook: Path, wandb: str, layout: str) -> Task:
    return Task(str(folder), str(notebook.resolve()), wandb, layout, str(Path.cwd()))


def _take_part(experiment: Experiment, runs: Sequence[RunConfig], layout: str) -> list[Failure]:
    """What a process of a cluster does that is not the first: the same runs in the same order, and keeps no record."""
    notebook = notebooks(experiment.root) / "train.ipynb"
    failures = []
    for run in runs:
        folder = experiment.folder / run.name
        if status(folder, run) in ENDED:
            continue
        with tempfile.TemporaryDirectory() as scratch:
            config = Path(scratch) / "config.json"
            write_json(config, to_json(run))
            parameters = _task(folder, notebook, "disabled", layout).parameters() | {"config": str(config)}
            kernel = new_kernel(launch.environment(0))
            try:
                run_notebook(notebook, Path(scratch) / "train.ipynb", parameters, kernel=kernel)
            except Exception as error:  # the other runs go on, as the first process's do
                failures.append(Failure(run.name, f"{type(error).__name__}: {error}"))
    return failures


def compare(folder: Path) -> Path:
    """Executes notebooks/compare.ipynb on a study's folder, prints what it printed and returns report.html's path."""
    folder = Path(folder)
    if not any(folder.glob("*/config.json")):
        raise ValueError(f"{folder} holds no runs; give a study's folder, such as runs/phonebook")
    executed = run_notebook(
        notebooks(folder.resolve().parent.parent) / "compare.ipynb", folder / "report.ipynb", {"study": str(folder)}
    )
    for cell in executed.cells:
        for out in cell.get("outputs", []):
            if out.output_type == "stream" and out.name == "stdout":
                print(out.text, end="")
    return folder / "report.html"


def notebooks(root: Path) -> Path:
    """The notebooks/ folder beside experiments/, or else that of the workbench's checkout."""
    places = [root / "notebooks", Path(__file__).resolve().parents[2] / "notebooks"]
    for place in places:
        if (place / "train.ipynb").is_file():
            return place
    raise ValueError(
        f"no train.ipynb in {' or '.join(map(str, places))}; run from a checkout of the workbench, "
        "or copy its notebooks/ beside your experiments/"
    )


# ---- what a run's folder says

ENDED = ("finished", "nan")  # the same config ends so every time


def status(folder: Path, run: RunConfig) -> str | None:
    """ "finished", "nan" or "failed", as result.json says of exactly this config; None if it has yet to end."""
    result, config = _read(folder / "result.json"), _read(folder / "config.json")
    if not isinstance(result, dict) or config is None or short_hash(config) != short_hash(run):
        return None
    return result.get("status")


def _read(path: Path) -> Any:
    """The file's value; None for one that is not there or is damaged, which running again mends."""
    try:
        return read_json(path)
    except (OSError, ValueError):
        return None


def _prepare(folder: Path, runs: Sequence[RunConfig]) -> None:
    """Every run's folder with its config; one that holds another config is left for the run to refuse.

    Raises ValueError if a folder cannot be written.
    """
    for run in runs:
        place = folder / run.name
        try:
            place.mkdir(parents=True, exist_ok=True)
            config = _read(place / "config.json")
            if config is None:
                write_json(place / "config.json", to_json(run))
            if (config is None or short_hash(config) == short_hash(run)) and status(place, run) not in ENDED:
                (place / "result.json").unlink(missing_ok=True)
        except OSError as error:
            raise ValueError(
                f"{place} cannot be written ({os.strerror(error.errno)}); free space there, mend its permissions, "
                "or run from another folder"
            ) from None


def _record(experiment: Experiment) -> None:
    """experiment.json: what was asked for, so that the report can tell what is missing or no longer asked for."""
    wanted = {
        "name": experiment.name,
        "file": str(experiment.path),
        "scale": experiment.scale,
        "docstring": experiment.docstring,
        "overrides": list(experiment.overrides),
        **({"looks": list(experiment.looks)} if experiment.looks else {}),
        "runs": [{"run": r.name, "arm": r.arm, "seed": r.seed, "role": r.role} for r in experiment.runs],
    }
    path = experiment.folder / "experiment.json"
    if _read(path) != wanted:
        try:
            experiment.folder.mkdir(parents=True, exist_ok=True)
            write_json(path, wanted)
        except OSError as error:
            raise ValueError(f"{experiment.folder} cannot be written ({os.strerror(error.errno)})") from None


def _newer(page: Path, folder: Path) -> bool:
    """Whether the report was made after everything that it shows."""
    sources = [*folder.glob("*/result.json"), folder / "experiment.json"]
    return page.is_file() and all(page.stat().st_mtime >= source.stat().st_mtime for source in sources)


# ---- the work


def announcement(todo: Sequence[RunConfig], launching: Launcher) -> str:
    """How long the runs will take, from what runs like them took on this machine, or else from their FLOPs."""
    at_once = min(launching.at_once, len(todo))
    seconds, measured = progress.estimate(list(todo), progress.known_costs(), launching.cores)
    if seconds is None:
        text = "no run like these was made on this machine: the estimate follows their first steps"
        if launching.cores:
            whole = progress.clock(progress.guess(todo) / at_once)
            text = f"about {whole}, guessed from their FLOPs; the first steps will tell better"
    else:
        whole = progress.clock(seconds / at_once)
        rest = "" if measured == len(todo) else f"; {len(todo) - measured} guessed as their mean"
        text = f"about {whole}, from what {measured} of them took earlier on this machine{rest}"
    return f"{len(todo)} to run, {launching.at_once} at a time, {launching.where}: {text}"


class _Job(NamedTuple):
    """A run that was submitted, and the row of the display that shows it."""

    run: RunConfig
    handle: Handle
    started: float
    row: int


@dataclass
class _Work:
    """What the loop that submits runs and shows them knows."""

    folder: Path
    launcher: Launcher
    todo: list[RunConfig]
    tasks: dict[str, Task]
    jobs: dict[str, _Job] = field(default_factory=dict)  # run -> what is submitted
    ended: dict[str, str | None] = field(default_factory=dict)  # run -> its error

    @property
    def rows(self) -> int:
        return min(self.launcher.at_once, len(self.todo), MOST_ROWS)


def _run_all(work: _Work) -> dict[str, str]:
    """Runs everything; the error of each run that had one."""
    costs = progress.known_costs()
    promised = progress.estimate(work.todo, costs, work.launcher.cores)[0] is not None
    waiting = list(work.todo)
    names = {run.name for run in waiting}
    shown = float("-inf")
    with progress.display(work.rows) as show:
        try:
            while waiting or work.jobs:
                ready = [run for run in waiting if run.parent is None or run.parent.run not in names - set(work.ended)]
                for run in ready[: work.launcher.at_once - len(work.jobs)]:
                    waiting.remove(run)
                    _submit(work, run)
                for job in list(work.jobs.values()):
                    if job.handle.done():
                        del work.jobs[job.run.name]
                        _end(work, job.run, job.handle.error())
                if time.monotonic() - shown > 1.0:
                    rows, whole = _look(work, costs)
                    show(rows, whole)
                    shown = time.monotonic()
                    if whole.left is not None and not promised:
                        promised = True
                        tqdm.write(
                            f"estimate from the first steps on this machine: about {progress.clock(whole.left)} more"
                        )
                time.sleep(0.1 if work.jobs else 0)
        except BaseException:
            tqdm.write("stopping; the same command resumes where this stopped")
            launch.stop([job.handle for job in work.jobs.values()])
            raise
    return {name: error for name, error in work.ended.items() if error}


def _submit(work: _Work, run: RunConfig) -> None:
    used = {job.row for job in work.jobs.values()}
    row = next(i for i in range(len(used) + 1) if i not in used)
    try:
        work.jobs[run.name] = _Job(run, work.launcher.submit(work.tasks[run.name]), time.monotonic(), row)
    except Exception as error:  # a scheduler that refuses one run may take the others
        _end(work, run, f"not submitted: {type(error).__name__}: {error}")


def _end(work: _Work, run: RunConfig, error: str | None) -> None:
    if error:
        with suppress(ValueError, OSError):  # of a folder that is another run's, or gone
            launch.failed(work.folder / run.name, error)  # if its process could not say so itself
        tqdm.write(f"failed, the others go on: {run.name}: {error.strip().splitlines()[-1][:300]}")
    work.ended[run.name] = error


def _look(work: _Work, costs: dict[str, progress.Cost]) -> tuple[list[progress.Row | None], progress.Whole]:
    """What the display shows now; what the running runs cost is noted in `costs`."""
    cores = work.launcher.cores
    rows: list[progress.Row | None] = [None] * work.rows
    lefts, steps = [], 0
    for job in work.jobs.values():
        run, at = job.run, progress.seen(work.folder / job.run.name)
        name = progress.cost_name(run, cores)
        elapsed = time.monotonic() - job.started
        if at.step_seconds:
            other = costs[name].other_seconds if name in costs else max(elapsed - at.step * at.step_seconds, 0.0)
            costs[name] = progress.Cost(at.step_seconds, other)
            left = (run.steps - at.step) * at.step_seconds
        else:
            whole = progress.estimate([run], costs, cores, work.todo)[0]
            left = None if whole is None else max(whole - elapsed, 0.0)
        label = f"{work.todo.index(run) + 1}/{len(work.todo)} {run.name.rpartition('-')[0]}"
        if job.row < len(rows):
            rows[job.row] = progress.Row(label, at.step, run.steps, at.loss, at.tokens_per_second, left)
        lefts.append(left)
        steps += at.step

    waiting = [run for run in work.todo if run.name not in work.ended and run.name not in work.jobs]
    ahead = progress.estimate(waiting, costs, cores, work.todo)[0] if waiting else 0.0
    left = None
    if ahead is not None and None not in lefts:
        left = (ahead + sum(lefts)) / max(min(work.launcher.at_once, len(waiting) + len(work.jobs)), 1)
    steps += sum(run.steps for run in work.todo if run.name in work.ended)
    total = sum(run.steps for run in work.todo)
    return rows, progress.Whole(len(work.ended), len(work.todo), steps, total, left)
