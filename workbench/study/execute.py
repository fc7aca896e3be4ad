"""Executes an experiment: one papermill notebook a run, several at a time, each resumable; then its report."""

from __future__ import annotations

import importlib.util
import os
import queue
import signal
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from workbench.config import Layout, RunConfig, short_hash, to_json
from workbench.record import read_json, write_json
from workbench.study import progress
from workbench.study.experiment import Experiment, load
from workbench.study.notebook import check_parameters, new_kernel, run_notebook
from workbench.train import cluster
from workbench.train.track import log_study

WANDB = ("online", "offline", "disabled")
MOST_JOBS = 8  # by default; a process takes about 1 GB with JAX and its compiler


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
    jobs: int | None = None,
    wandb: str = "offline",
    tune: bool = False,
    layout: str = "",
) -> Outcome:
    """Runs what is not yet done of an experiment and makes its report; with `tune`, its tuning runs and their choice.

    Prints as it goes. A run that fails does not stop the others; it is in the outcome and marked in the report.
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
        failures = execute(experiment, experiment.tuning, jobs=jobs, wandb=wandb, layout=layout)
        for failure in failures:
            print(f"FAILED {failure.run}: {failure.error}")
        print(describe(choose(experiment), experiment))
        return Outcome(experiment.folder, None, failures)

    _record(experiment)
    failures = execute(experiment, experiment.runs, jobs=jobs, wandb=wandb, layout=layout)
    page = experiment.folder / "report.html"
    if _newer(page, experiment.folder):
        print(f"report is up to date: {page}")
    else:
        print("making the report", flush=True)
        page = compare(experiment.folder)
        log_study(experiment.name, experiment.folder, wandb)
        print(f"report: {page}")
    for failure in failures:
        print(f"FAILED {failure.run}: {failure.error}")
    return Outcome(experiment.folder, page, failures)


def execute(
    experiment: Experiment,
    runs: Sequence[RunConfig],
    *,
    jobs: int | None = None,
    wandb: str = "offline",
    layout: str = "",
) -> list[Failure]:
    """Executes those of the runs that are not done, `jobs` at a time, each process on cores of its own.

    A run whose parent is among them waits for its end, so that runs may come in any order. With a layout of several
    devices one run at a time has all of them.

    A killed run resumes from its last checkpoint. On Ctrl-C the kernels are stopped and KeyboardInterrupt raised.
    """
    notebook = notebooks(experiment.root) / "train.ipynb"
    check_parameters(notebook, _parameters(experiment.folder / runs[0].name, wandb, layout))
    laid_out = Layout.read(layout)
    if laid_out.devices > 1 and (jobs or 1) > 1:
        raise ValueError(f"a layout of {laid_out.devices} devices runs one at a time; leave --jobs out, or the layout")
    places = [None] if laid_out.devices > 1 else slots(jobs)
    statuses = {each.name: status(experiment.folder / each.name, each) for each in runs}
    todo = [each for each in runs if statuses[each.name] not in ENDED]
    print(f"{experiment.name} ({experiment.scale}): {len(runs)} runs, {len(runs) - len(todo)} done", flush=True)
    if todo:
        _prepare(experiment.folder, todo)
        _announce(todo, places)
        errors = _run_all(_Work(experiment.folder, notebook, wandb, layout, places, todo))
    else:
        errors = {}
    for each in runs:
        ended = status(experiment.folder / each.name, each)
        if ended == "nan" and each.role == "tuning":  # a rate that is too high is an answer
            errors.pop(each.name, None)
        elif ended != "finished":
            errors.setdefault(each.name, f"ended with status {ended!r}")
    return [Failure(each.name, errors[each.name]) for each in runs if each.name in errors]


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
            parameters = _parameters(folder, "disabled", layout) | {"config": str(config)}
            try:
                run_notebook(notebook, Path(scratch) / "train.ipynb", parameters, kernel=new_kernel(environment(None)))
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
            if config is None or short_hash(config) == short_hash(run):
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


# ---- cores


def slots(jobs: int | None = None) -> list[tuple[int, ...] | None]:
    """The cores of each of `jobs` processes; None for a process that is not pinned.

    By default one core a process: tiny models train faster so. With an accelerator one process, not pinned.
    Independent of how many runs are left, so that a resumed run has the threads it had.
    """
    if jobs is not None and jobs < 1:
        raise ValueError(f"jobs must be at least 1; got {jobs}")
    if not hasattr(os, "sched_getaffinity"):  # macOS pins nothing
        return [None] * (jobs or min(os.cpu_count() or 1, MOST_JOBS))
    if accelerated():
        return [None] * (jobs or 1)
    cores = sorted(os.sched_getaffinity(0))
    if jobs is None:
        return [(core,) for core in cores[:MOST_JOBS]]
    if jobs > len(cores):
        return [(cores[i % len(cores)],) for i in range(jobs)]
    each = len(cores) // jobs
    return [tuple(cores[i * each : (i + 1) * each]) for i in range(jobs)]


def accelerated() -> bool:
    """Whether JAX will find an NVIDIA GPU, told without importing it."""
    if os.environ.get("JAX_PLATFORMS", "").lower() == "cpu":
        return False
    plugin = any(importlib.util.find_spec(f"jax_cuda{version}_plugin") for version in (12, 13))
    return plugin and Path("/dev/nvidiactl").exists()


def environment(cores: tuple[int, ...] | None) -> dict[str, str]:
    """Variables of a run's process: quiet wandb, compiled programs kept between runs, one thread on one core."""
    cache = progress.cost_file().parent / "jax"
    variables = {"WANDB_SILENT": "true"}
    variables["JAX_COMPILATION_CACHE_DIR"] = os.environ.get("JAX_COMPILATION_CACHE_DIR", str(cache))
    if cores and len(cores) == 1:
        flags = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
        variables["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()
        variables |= dict.fromkeys(("NPROC", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    return variables


# ---- the work


def _announce(todo: Sequence[RunConfig], places: list) -> None:
    how = "not pinned" if places[0] is None else f"{len(places[0])} core(s) each"
    seconds, measured = progress.estimate(list(todo), progress.known_costs(), len(places[0] or ()))
    if seconds is None:
        text = "no run like these was made on this machine: the estimate follows their first steps"
        if places[0] is not None:
            whole = progress.clock(progress.guess(todo) / min(len(places), len(todo)))
            text = f"about {whole}, guessed from their FLOPs; the first steps will tell better"
    else:
        whole = progress.clock(seconds / min(len(places), len(todo)))
        rest = "" if measured == len(todo) else f"; {len(todo) - measured} guessed as their mean"
        text = f"about {whole}, from what {measured} of them took earlier on this machine{rest}"
    print(f"{len(todo)} to run, {len(places)} at a time, {how}: {text}", flush=True)


class _Job(NamedTuple):
    """A run that is running in a slot."""

    run: RunConfig
    kernel: Any
    started: float


@dataclass
class _Work:
    """What the threads that wait for kernels and the loop that shows them share."""

    folder: Path
    notebook: Path
    wandb: str
    layout: str
    places: list[tuple[int, ...] | None]
    todo: list[RunConfig]
    jobs: dict[int, _Job] = field(default_factory=dict)  # slot -> what runs there
    ended: dict[str, str | None] = field(default_factory=dict)  # run -> its error
    stopping: threading.Event = field(default_factory=threading.Event)

    @property
    def cores(self) -> int:
        return len(self.places[0] or ())


def _run_all(work: _Work) -> dict[str, str]:
    """Runs everything; the error of each run that had one."""
    free: queue.Queue[int] = queue.Queue()
    for slot in range(len(work.places)):
        free.put(slot)
    costs = progress.known_costs()
    promised = progress.estimate(work.todo, costs, work.cores)[0] is not None
    futures: dict[str, Future] = {}
    waiting, pending = list(work.todo), set()
    names = {run.name for run in waiting}
    with ThreadPoolExecutor(len(work.places)) as pool, progress.display(len(work.places)) as show:
        try:
            while waiting or pending:
                ended = {name for name, future in futures.items() if future.done()}
                ready = [run for run in waiting if run.parent is None or run.parent.run not in names - ended]
                waiting = [run for run in waiting if run not in ready]
                futures |= {run.name: pool.submit(_run_one, work, free, run) for run in ready}
                pending |= {futures[run.name] for run in ready}
                _, pending = wait(pending, timeout=1.0, return_when=FIRST_COMPLETED)
                rows, whole = _look(work, costs)
                show(rows, whole)
                if whole.left is not None and not promised:
                    promised = True
                    tqdm.write(
                        f"estimate from the first steps on this machine: about {progress.clock(whole.left)} more"
                    )
        except BaseException:
            for future in futures.values():
                future.cancel()
            _stop(work)
            raise
    for future in futures.values():
        future.result()
    return {name: error for name, error in work.ended.items() if error}


def _run_one(work: _Work, free: queue.Queue[int], run: RunConfig) -> None:
    slot = free.get()
    try:
        if not work.stopping.is_set():
            job = _Job(run, new_kernel(environment(work.places[slot])), time.monotonic())
            work.jobs[slot] = job
            error = _execute_notebook(work, job, work.places[slot])
            if not work.stopping.is_set():
                _end(work, job, error)
    finally:
        work.jobs.pop(slot, None)
        free.put(slot)


def _execute_notebook(work: _Work, job: _Job, cores: tuple[int, ...] | None) -> str | None:
    """The error of a run, whatever it was: the other runs go on."""
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    folder = work.folder / job.run.name
    try:
        parameters = _parameters(folder, work.wandb, work.layout)
        run_notebook(work.notebook, folder / "train.ipynb", parameters, kernel=job.kernel, cores=cores)
    except PapermillExecutionError as error:
        return f"{error.ename}: {error.evalue}"
    except DeadKernelError:
        return "its process died; most often the machine had no memory left"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def _parameters(folder: Path, wandb: str, layout: str) -> dict[str, Any]:
    """Of notebooks/train.ipynb. Its own bar is off: the display reads the run's folder."""
    config = str(folder / "config.json")
    return {"config": config, "folder": str(folder), "wandb": wandb, "progress": False, "layout": layout}


def _end(work: _Work, job: _Job, error: str | None) -> None:
    """Notes how a run ended: its error in result.json, or what it cost for later estimates."""
    run, folder = job.run, work.folder / job.run.name
    result = _read(folder / "result.json")
    if error is None and result is None:
        error = "its notebook ended without a result.json"
    if error and result is None:
        identity = {"run": run.name, "study": run.study, "arm": run.arm, "seed": run.seed, "role": run.role}
        last = "\n".join(error.strip().splitlines()[-20:])
        write_json(folder / "result.json", {**identity, "status": "failed", "error": last})
    at = progress.seen(folder)
    if error is None and at.step_seconds:
        other = max(time.monotonic() - job.started - run.steps * at.step_seconds, 0.0)
        progress.remember(progress.cost_name(run, work.cores), progress.Cost(at.step_seconds, other))
    if error:
        tqdm.write(f"failed, the others go on: {run.name}: {error.strip().splitlines()[-1][:300]}")
    work.ended[run.name] = error


def _stop(work: _Work) -> None:
    """Stops the kernels: asks, and after 20 seconds or another Ctrl-C no longer asks.

    By SIGTERM, at which training saves and any other process ends: a kernel between two cells is deaf to SIGINT.
    """
    work.stopping.set()
    tqdm.write("stopping; the same command resumes where this stopped")
    asked = set()
    until = time.monotonic() + 20
    try:
        while work.jobs and time.monotonic() < until:
            for job in list(work.jobs.values()):
                if job.run.name not in asked and _signal(job, signal.SIGTERM):
                    asked.add(job.run.name)
            time.sleep(0.2)
    except KeyboardInterrupt:
        pass
    while work.jobs:
        for job in list(work.jobs.values()):
            _signal(job, signal.SIGKILL)
        time.sleep(0.5)


def _signal(job: _Job, number: int) -> bool:
    """Whether the job's process was there to be signalled."""
    pid = getattr(job.kernel.provisioner, "pid", None)
    if not pid:
        return False
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def _look(work: _Work, costs: dict[str, progress.Cost]) -> tuple[list[progress.Row | None], progress.Whole]:
    """What the display shows now; what the running runs cost is noted in `costs`."""
    jobs = dict(work.jobs)
    rows: list[progress.Row | None] = [None] * len(work.places)
    for slot, job in jobs.items():
        run, at = job.run, progress.seen(work.folder / job.run.name)
        name = progress.cost_name(run, work.cores)
        elapsed = time.monotonic() - job.started
        if at.step_seconds:
            other = costs[name].other_seconds if name in costs else max(elapsed - at.step * at.step_seconds, 0.0)
            costs[name] = progress.Cost(at.step_seconds, other)
            left = (run.steps - at.step) * at.step_seconds
        else:
            whole = progress.estimate([run], costs, work.cores, work.todo)[0]
            left = None if whole is None else max(whole - elapsed, 0.0)
        label = f"{work.todo.index(run) + 1}/{len(work.todo)} {run.name.rpartition('-')[0]}"
        rows[slot] = progress.Row(label, at.step, run.steps, at.loss, at.tokens_per_second, left)

    running = {job.run.name for job in jobs.values()}
    waiting = [run for run in work.todo if run.name not in work.ended and run.name not in running]
    ahead = progress.estimate(waiting, costs, work.cores, work.todo)[0] if waiting else 0.0
    lefts = [row.left for row in rows if row]
    left = None
    if ahead is not None and None not in lefts:
        left = (ahead + sum(lefts)) / max(min(len(work.places), len(waiting) + len(running)), 1)
    steps = sum(run.steps for run in work.todo if run.name in work.ended) + sum(row.step for row in rows if row)
    total = sum(run.steps for run in work.todo)
    return rows, progress.Whole(len(work.ended), len(work.todo), steps, total, left)
