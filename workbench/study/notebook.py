"""Runs one notebook by papermill, its parameters checked first; and the live picture of runs that notebooks show."""

from __future__ import annotations

import ast
import os
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import nbformat

from workbench.config import nearest


class Parameter(NamedTuple):
    type: str
    default: Any


TYPES = {"str": str, "int": int, "float": (int, float), "bool": bool, "list": (list, tuple), "dict": dict}


def parameters(path: str | Path) -> dict[str, Parameter]:
    """What a notebook's `parameters` cell declares, as `name: type = default` lines."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"notebook {path} is not there; a checkout of the workbench holds it in notebooks/")
    cells = [
        cell.source for cell in nbformat.read(path, as_version=4).cells if "parameters" in cell.metadata.get("tags", [])
    ]
    if len(cells) != 1:
        raise ValueError(f"{path} has {len(cells)} cells tagged `parameters`; it needs one")
    declared = {}
    for line in ast.parse(cells[0]).body:
        if not isinstance(line, ast.AnnAssign) or line.value is None:
            raise ValueError(f"{path}: {ast.unparse(line)!r} among the parameters; write `name: type = default`")
        kind = ast.unparse(line.annotation)
        if kind.partition("[")[0] not in TYPES:
            raise ValueError(f"{path}: parameter {line.target.id} has type {kind}; use one of {', '.join(TYPES)}")
        declared[line.target.id] = Parameter(kind, ast.literal_eval(line.value))
    return declared


def check_parameters(path: str | Path, given: Mapping[str, Any]) -> None:
    """Raises ValueError on a parameter that the notebook lacks or a value of a wrong type: papermill only warns."""
    declared = parameters(path)
    for name, value in given.items():
        if name not in declared:
            raise ValueError(f"{Path(path).name} has no parameter {name!r}; {nearest(name, declared)}")
        kind = declared[name].type
        types = TYPES[kind.partition("[")[0]]
        if not isinstance(value, types) or (isinstance(value, bool) and types is not bool):
            raise ValueError(f"{Path(path).name}: {name} is {kind}; got {value!r} ({type(value).__name__})")


def new_kernel(environment: Mapping[str, str] | None = None):
    """A kernel, not yet started, of this interpreter; it talks over sockets of the file system, not over ports."""
    from jupyter_client import AsyncKernelManager

    # A folder of its own with a short name: the path of a Unix socket may have about 100 characters.
    folder = tempfile.mkdtemp(prefix="workbench-")
    kernel = AsyncKernelManager(kernel_name="python3", transport="ipc", connection_file=f"{folder}/kernel.json")
    # The user may have registered another interpreter under the same name.
    kernel.kernel_spec.argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    kernel.kernel_spec.env = dict(environment or {})
    return kernel


def run_notebook(
    path: str | Path,
    output: str | Path,
    parameters: Mapping[str, Any],
    *,
    kernel: Any = None,
    cores: Sequence[int] | None = None,
) -> nbformat.NotebookNode:
    """The executed notebook, also written to `output` cell by cell.

    With `cores`, the kernel process is pinned to them (Linux). Raises ValueError on wrong parameters, before anything
    starts, and papermill's PapermillExecutionError if a cell fails.
    """
    check_parameters(path, parameters)
    import shutil

    import papermill
    from jupyter_core.utils import run_sync

    kernel = kernel or new_kernel()
    clients = []  # papermill's, which it would leave open
    new_client = kernel.client
    kernel.client = lambda **options: clients.append(new_client(**options)) or clients[-1]
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    # On Linux affinity belongs to a thread, and a process that the thread starts inherits it.
    before = os.sched_getaffinity(0) if cores else None
    if cores:
        os.sched_setaffinity(0, cores)
    try:
        return papermill.execute_notebook(
            str(path),
            str(output),
            dict(parameters),
            km=kernel,
            kernel_name="python3",
            progress_bar=False,
            start_timeout=300,
        )
    finally:
        if before:
            os.sched_setaffinity(0, before)
        for client in clients:
            client.stop_channels()
        if kernel.has_kernel:
            run_sync(kernel.shutdown_kernel)()
        shutil.rmtree(Path(kernel.connection_file).parent, ignore_errors=True)


OnStep = Callable[[int, Mapping[str, float]], None]


def live_curves(title: str = "", every: float = 1.0) -> Callable[[str, int], OnStep]:
    """A figure below the cell that grows while training runs; `live_curves()(name, steps)` is an `on_step` for a curve.

    Shows the loss as a running mean over ten steps, redrawn at most once every so many seconds and at a curve's ends.
    """
    from IPython.display import display
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4))
    axes.set(xlabel="step", ylabel="loss (nats per target)", title=title)
    shown = display(figure, display_id=True)
    plt.close(figure)  # or the cell shows it twice
    drawn = [0.0]

    def curve(name: str, steps: int):
        last: deque[float] = deque(maxlen=10)
        at: list[int] = []
        means: list[float] = []
        (line,) = axes.plot([], [], label=name)
        axes.legend(loc="upper right")
        drawn[0] = 0.0

        def on_step(step: int, metrics: Mapping[str, float]) -> None:
            last.append(metrics["loss"])
            at.append(step)
            means.append(sum(last) / len(last))
            if step == steps or time.monotonic() - drawn[0] > every:
                line.set_data(at, means)
                axes.relim()
                axes.autoscale_view()
                shown.update(figure)
                drawn[0] = time.monotonic()

        return on_step

    return curve
