"""Where a study's runs are executed: on this machine, on a Ray cluster, or by SLURM. The same code, the same folders.

A launcher submits a run and gives a handle to it. All that comes of a run is in its folder, on a file system that every
machine sees: the driver that submits may die, and another one, anywhere, go on.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn, Protocol, runtime_checkable

from workbench.config import Layout, from_json, nearest
from workbench.record import read_json, write_json
from workbench.study import progress
from workbench.study.notebook import new_kernel, run_notebook
from workbench.study.status import held

MOST_JOBS = 8  # by default; a process takes about 1 GB with JAX and its compiler
PATIENCE = 20.0  # seconds in which a run that is asked to end may save
WAITING = 256  # jobs that SLURM is given at a time by default


@dataclass(frozen=True)
class Task:
    """A run to execute, in plain values: whoever executes it reads its config in its folder."""

    folder: str
    notebook: str
    wandb: str = "offline"
    layout: str = ""
    here: str = ""  # the working directory, from which relative paths are seen

    def parameters(self) -> dict[str, Any]:
        """Of notebooks/train.ipynb. Its own bar is off: the display reads the run's folder."""
        return {
            "config": str(Path(self.folder) / "config.json"),
            "folder": self.folder,
            "wandb": self.wandb,
            "progress": False,
            "layout": self.layout,
        }


@runtime_checkable
class Handle(Protocol):
    """A run that was submitted."""

    def done(self) -> bool: ...

    def error(self) -> str | None:
        """Of a run that is done; None if it ended well."""
        ...

    def cancel(self) -> None:
        """Asks it to save and end; to be called until it is done."""
        ...

    def kill(self) -> None: ...


@runtime_checkable
class Launcher(Protocol):
    at_once: int  # runs that are submitted at a time
    cores: int  # of a run's process; 0 where it is not pinned
    where: str  # in words

    def submit(self, task: Task) -> Handle: ...


def launcher(name: str, jobs: int | None = None, layout: str = "") -> Launcher:
    """The launcher of this name, for at most `jobs` runs at a time. Raises ValueError where it cannot be had."""
    if name not in LAUNCHERS:
        raise ValueError(f"launcher {name!r}: {nearest(name, LAUNCHERS)}")
    if jobs is not None and jobs < 1:
        raise ValueError(f"jobs must be at least 1; got {jobs}")
    return LAUNCHERS[name](jobs, Layout.read(layout).devices)


def stop(handles: Sequence[Handle]) -> None:
    """Ends the runs: asks them to save, and after 20 seconds or another Ctrl-C no longer asks."""
    until = time.monotonic() + PATIENCE
    try:
        while time.monotonic() < until and (left := [each for each in handles if not each.done()]):
            for each in left:
                each.cancel()
            time.sleep(0.2)
    except KeyboardInterrupt:
        pass
    while left := [each for each in handles if not each.done()]:
        for each in left:
            each.kill()
        time.sleep(0.5)


# ---- this machine


class Local:
    """Processes of this machine, its cores divided among them."""

    def __init__(self, jobs: int | None = None, devices: int = 1):
        if devices > 1 and (jobs or 1) > 1:
            raise ValueError(f"a layout of {devices} devices runs one at a time; leave --jobs out, or the layout")
        self.places = [None] if devices > 1 else slots(jobs)
        self.at_once, self.cores = len(self.places), len(self.places[0] or ())
        self.where = f"{self.cores} core(s) each" if self.cores else "not pinned"
        self._used: dict[int, Process] = {}

    def submit(self, task: Task) -> Handle:
        place = next(i for i in range(self.at_once) if i not in self._used or self._used[i].done())
        self._used[place] = Process(task, self.cores, self.places[place])
        return self._used[place]


class Process:
    """A run in a kernel of its own, a process of this machine, watched by a thread of this one."""

    def __init__(self, task: Task, cores: int, pinned: Sequence[int] | None = None):
        self._task, self._cores, self._pinned = task, cores, pinned
        self._kernel = new_kernel(environment(cores))
        self._error: str | None = None
        self._asked, self._stopping = False, threading.Event()
        self._thread = threading.Thread(target=self._execute, daemon=True)
        self._thread.start()

    def done(self) -> bool:
        return not self._thread.is_alive()

    def error(self) -> str | None:
        return self._error

    def cancel(self) -> None:
        """By SIGTERM, at which training saves and any other process ends; between two cells SIGINT is not heeded."""
        self._stopping.set()
        self._asked = self._asked or self._signal(signal.SIGTERM)  # training takes a second one as leave not to save

    def kill(self) -> None:
        self._stopping.set()
        self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> bool:
        """Whether the process was there to be signalled."""
        pid = getattr(self._kernel.provisioner, "pid", None)
        if not pid:
            return False
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return False
        return True

    def _execute(self) -> None:
        try:
            # Another driver's process, or one that outlived its driver, may be at work there.
            while held(Path(self._task.folder) / ".lock"):
                if self._stopping.wait(1.0):
                    return
            began = time.monotonic()
            self._error = _execute_notebook(self._task, self._kernel, self._pinned)
            if not self._stopping.is_set():
                self._error = _note(self._task, self._error, time.monotonic() - began, self._cores)
        except Exception as error:  # whatever it was, the other runs go on
            self._error = self._error or f"{type(error).__name__}: {error}"


def _execute_notebook(task: Task, kernel: Any, cores: Sequence[int] | None) -> str | None:
    """The error of a run, whatever it was."""
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    try:
        run_notebook(task.notebook, Path(task.folder) / "train.ipynb", task.parameters(), kernel=kernel, cores=cores)
    except PapermillExecutionError as error:
        return f"{error.ename}: {error.evalue}"
    except DeadKernelError:
        return "its process died; most often the machine had no memory left"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def _note(task: Task, error: str | None, seconds: float, cores: int) -> str | None:
    """Writes how a run ended: its error in result.json, or what it cost for later estimates. Returns the error."""
    folder = Path(task.folder)
    run, result = from_json(read_json(folder / "config.json")), _result(folder)
    if error is None and result is None:
        error = "its notebook ended without a result.json"
    if error and result is None:
        failed(folder, error)
    at = progress.seen(folder)
    if error is None and at.step_seconds:
        other = max(seconds - run.steps * at.step_seconds, 0.0)
        progress.remember(progress.cost_name(run, cores), progress.Cost(at.step_seconds, other))
    return error


def failed(folder: Path, error: str) -> None:
    """Marks the run as failed, unless its folder says already how it ended."""
    if _result(folder) is None:
        run = from_json(read_json(folder / "config.json"))
        identity = {"run": run.name, "study": run.study, "arm": run.arm, "seed": run.seed, "role": run.role}
        last = "\n".join(error.strip().splitlines()[-20:])
        write_json(folder / "result.json", {**identity, "status": "failed", "error": last})


def _result(folder: Path) -> Any:
    try:
        return read_json(folder / "result.json")
    except ValueError:  # damaged, which running again mends
        return None


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


def environment(cores: int) -> dict[str, str]:
    """Variables of a run's process: quiet wandb, compiled programs kept between runs, one thread on one core."""
    cache = progress.cost_file().parent / "jax"
    variables = {"WANDB_SILENT": "true"}
    variables["JAX_COMPILATION_CACHE_DIR"] = os.environ.get("JAX_COMPILATION_CACHE_DIR", str(cache))
    if cores == 1:
        flags = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
        variables["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()
        variables |= dict.fromkeys(("NPROC", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    return variables


# ---- workers elsewhere


def perform(task: Task, cores: int) -> str | None:
    """Executes a run from a worker's process and returns its error; interrupted, it ends the run saved."""
    os.chdir(task.here)
    process = Process(task, 0 if accelerated() else cores)
    with _interrupted_by(signal.SIGTERM):
        try:
            while not process.done():
                time.sleep(0.2)
        except BaseException:
            stop([process])
            raise
    return process.error()


@contextmanager
def _interrupted_by(number: int) -> Iterator[None]:
    """Makes the signal a KeyboardInterrupt, where this thread can."""

    def interrupt(number: int, frame: Any) -> NoReturn:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(number, interrupt)
    try:
        yield
    finally:
        signal.signal(number, before)


class Resumable:
    """`perform` as submitit calls it: at its time limit, or preempted, the job is queued again, and the run goes on."""

    def __call__(self, task: Task, cores: int) -> str | None:
        return perform(task, cores)

    def checkpoint(self, task: Task, cores: int) -> Any:
        return _needed("submitit", "slurm").helpers.DelayedSubmission(self, task, cores)


def _needed(module: str, extra: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError:
        raise ValueError(
            f"this launcher needs {module}; install it by pip install 'architecture-workbench[{extra}]'"
        ) from None


class Ray:
    """The Ray cluster that this machine or $RAY_ADDRESS knows of; without one, a cluster of this machine alone.

    A run asks for a GPU a device where the cluster has any, else for a core. The runs of a driver that died end with
    it, and its successor resumes them.
    """

    def __init__(self, jobs: int | None = None, devices: int = 1):
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        self.ray = _needed("ray", "ray")
        if not self.ray.is_initialized():
            self.ray.init(log_to_driver=False)
        has = self.ray.cluster_resources()
        unit = "GPU" if has.get("GPU") else "CPU"
        self.cores = devices if unit == "CPU" else 0
        self.at_once = jobs or max(int(has.get(unit, 1)) // devices, 1)
        self.where = f"{devices} {unit}(s) each, on a Ray cluster of {has.get(unit, 0):g}"
        self._perform = self.ray.remote(perform).options(**{f"num_{unit.lower()}s": devices})

    def submit(self, task: Task) -> Handle:
        return RayTask(self.ray, self._perform.remote(task, self.cores))


class RayTask:
    def __init__(self, ray: ModuleType, reference: Any):
        self._ray, self._reference, self._asked = ray, reference, False

    def done(self) -> bool:
        return bool(self._ray.wait([self._reference], timeout=0)[0])

    def error(self) -> str | None:
        try:
            return self._ray.get(self._reference)
        except Exception as error:  # the worker's, or Ray's own: a node that was lost
            return f"{type(error).__name__}: {error}"

    def cancel(self) -> None:
        if not self._asked:
            self._ray.cancel(self._reference)
        self._asked = True

    def kill(self) -> None:
        self._ray.cancel(self._reference, force=True)


class Slurm:
    """A job a run, through submitit; its files are in the run's folder, in slurm/.

    Partition, account, GPUs and time are sbatch's own variables (SBATCH_PARTITION, SBATCH_ACCOUNT, SBATCH_GPUS,
    SBATCH_TIMELIMIT). A job that meets its time limit, an hour by default, is queued again. Jobs outlive the driver;
    the next one finds them by their files and follows them.
    """

    def __init__(self, jobs: int | None = None, devices: int = 1):
        self._submitit = _needed("submitit", "slurm")
        if shutil.which("srun") is None:
            raise ValueError("there is no srun here; run where jobs are submitted to SLURM, or leave --launcher out")
        self.at_once, self.cores = jobs or WAITING, devices
        self.where = f"{devices} core(s) each, by SLURM"

    def submit(self, task: Task) -> Handle:
        folder = Path(task.folder) / "slurm"
        executor = self._submitit.SlurmExecutor(folder, max_num_timeout=1000)
        files = sorted(folder.glob("*_submitted.pkl"), key=lambda path: path.stat().st_mtime)
        for file in files[-1:]:
            job = executor.job_class(folder, file.name.partition("_")[0])
            if not job.done(force_check=True):
                return SlurmJob(job)
        executor.update_parameters(job_name=Path(task.folder).name, time=60, cpus_per_task=self.cores)
        return SlurmJob(executor.submit(Resumable(), task, self.cores))


class SlurmJob:
    def __init__(self, job: Any):
        self._job, self._cancelled = job, False

    def done(self) -> bool:
        return self._cancelled or self._job.done()  # SLURM sees to a cancelled job

    def error(self) -> str | None:
        try:
            return None if self._cancelled else self._job.result()
        except Exception as error:  # the job's, or submitit's about a job that left nothing
            return f"{type(error).__name__}: {error}"

    def cancel(self) -> None:
        if not self._cancelled:
            self._job.cancel(check=False)
        self._cancelled = True

    kill = cancel


LAUNCHERS = {"local": Local, "ray": Ray, "slurm": Slurm}
