"""What a study will cost and could show, before it starts: time, memory, disk, and the least difference it can see."""

from __future__ import annotations

import platform
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from workbench.config import Layout, RunConfig, task_name
from workbench.count import count
from workbench.record import read_rows
from workbench.study import differences, progress, statistics
from workbench.study.collect import collect
from workbench.study.execute import ENDED, announcement, execute, status
from workbench.study.experiment import Experiment
from workbench.study.launch import Local
from workbench.study.plans import arms
from workbench.study.sizes import binary

STEPS = 20  # that a measurement takes, after compiling
WINDOW = 20  # steps that are timed together
FLOAT = 4  # bytes; parameters, gradients and AdamW's two moments are float32


def shapes(runs: Sequence[RunConfig], cores: int) -> list[list[RunConfig]]:
    """The runs that are alike: same model and sizes of data, so the same time a step."""
    found: dict[str, list[RunConfig]] = {}
    for run in runs:
        found.setdefault(progress.cost_name(run, cores), []).append(run)
    return list(found.values())


def measure(experiment: Experiment, jobs: int | None = None) -> dict[str, int]:
    """Runs a few steps of every shape whose cost on this machine is not known, and remembers it for `progress`.

    Returns the peak bytes of a compiled step by shape, as `workbench plan` tells them of a CPU.
    Raises ValueError, naming the first, if a shape cannot be run.
    """
    from workbench.train.plan import KINDS, plan

    cores, costs = Local(jobs).cores, progress.known_costs()
    alike = shapes(experiment.runs, cores)
    new = [runs[0] for runs in alike if progress.cost_name(runs[0], cores) not in costs]
    with tempfile.TemporaryDirectory() as place:
        plain = {"role": "tuning", "control_of": "", "parent": None, "keep": (), "evaluate_every": 0}
        short = [replace(run, steps=STEPS, log_every=STEPS, **plain) for run in new]
        failures = execute(replace(experiment, folder=Path(place)), short, jobs=jobs, wandb="disabled") if short else []
    if failures:
        raise ValueError(f"{failures[0].run} cannot be measured: {failures[0].error}")
    return {progress.cost_name(runs[0], cores): plan(runs[0], Layout(), KINDS["cpu"]).peak_bytes for runs in alike}


def alone(experiment: Experiment) -> str:
    """Seconds of a step of every arm that has the machine to itself, for runs at equal seconds, as text.

    Arms are run in turn, twice, a process each; what counts is an arm's fastest stretch of `WINDOW` steps, since other
    work on the machine only ever adds time. Raises ValueError, naming the first, if an arm cannot be run.
    """
    plain = {"role": "tuning", "control_of": "", "parent": None, "keep": (), "evaluate_every": 0, "checkpoint_every": 0}
    runs = [replace(run, steps=4 * WINDOW, log_every=WINDOW, **plain) for run in arms(experiment.runs)]
    fastest: dict[str, float] = {}
    for _ in range(2):
        for run in runs:
            with tempfile.TemporaryDirectory() as place:
                if failures := execute(replace(experiment, folder=Path(place)), [run], jobs=1, wandb="disabled"):
                    raise ValueError(f"{run.name} cannot be timed: {failures[0].error}")
                rows = read_rows(Path(place) / run.name / "timing.jsonl")
            stretches = [(b["seconds"] - a["seconds"]) / (b["step"] - a["step"]) for a, b in pairwise(rows)]
            name = f"{task_name(run.data)}, {run.arm}"
            fastest[name] = min([fastest.get(name, float("inf")), *stretches])
    cores = Local(1).cores
    head = f"Seconds a step, alone on this machine ({platform.machine()}, {cores} core{'s' * (cores != 1)}):"
    return "\n".join([head, *(f"  {name}: {seconds:.4g}" for name, seconds in fastest.items())])


def kept_bytes(run: RunConfig) -> int:
    """Of the checkpoints that a run leaves: weights and both moments of the last two, the best, and those it keeps."""
    saved = {run.steps, *run.keep}
    if run.checkpoint_every:
        saved |= set(range(run.checkpoint_every, run.steps, run.checkpoint_every))
    stay = min(len(saved - set(run.keep)), 3 if run.evaluate_every else 2) + len(run.keep)
    return stay * 3 * FLOAT * count(run.model).parameters


def estimate(
    experiment: Experiment, *, jobs: int | None = None, like: str | Path | None = None, measured: bool = False
) -> str:
    """The estimate as text. like: a study's folder whose spread over seeds is expected here, by default this one's.

    measured: measure first what is not known of this machine.
    """
    peaks = measure(experiment, jobs) if measured else {}
    launching, costs = Local(jobs), progress.known_costs()
    todo = [run for run in experiment.runs if status(experiment.folder / run.name, run) not in ENDED]
    names = {run.name for run in todo}
    lines = [("arm", "runs", "steps", "seconds a step", "time", "memory", "disk")]
    memory, disk = [], 0
    for runs in shapes(experiment.runs, launching.cores):
        run, left = runs[0], [run for run in runs if run.name in names]
        name = progress.cost_name(run, launching.cores)
        cost = costs.get(name)
        needed = peaks.get(name) or 4 * FLOAT * count(run.model).parameters
        memory.append(needed)
        disk += sum(map(kept_bytes, left))
        lines.append(
            (
                f"{run.arm} ({task_name(run.data)})",
                f"{len(left)} of {len(runs)}",
                f"{sum(run.steps for run in left):,}",
                f"{cost.step_seconds:.3g}" if cost else "?",
                progress.clock(progress.estimate(left, costs, launching.cores)[0]) if cost and left else "?",
                binary(needed),
                binary(sum(map(kept_bytes, left))),
            )
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    table = [
        "  ".join(f"{cell:{'>' if i else '<'}{widths[i]}}" for i, cell in enumerate(line)).rstrip() for line in lines
    ]
    most = sum(sorted(memory)[-launching.at_once :])
    of = "the peaks of their steps" if peaks else "weights, gradients and moments alone"
    return "\n".join(
        [
            f"{experiment.name} ({experiment.scale})",
            *table,
            "",
            f"Time: {announcement(todo, launching)}." if todo else "Time: every run is done.",
            f"Memory: at most {binary(most)} at a time ({of}), and about 1 GiB a process.",
            f"Disk: {binary(disk)} of checkpoints.",
            *detectable(experiment, like),
        ]
    )


def detectable(experiment: Experiment, like: str | Path | None = None) -> list[str]:
    """What the study's seeds can see, a line a task and, where a study like it was run, one a pair of its arms."""
    seeds: dict[str, set] = {}
    for run in experiment.runs:
        if run.role == "result":
            seeds.setdefault(task_name(run.data), set()).add((getattr(run.data, "seed", 0), run.seed))
    try:
        known = differences.spreads(collect(like or experiment.folder))
    except ValueError:
        if like is not None:
            raise
        known = []
    lines = []
    for task, its in seeds.items():
        if len(its) < statistics.LEAST_SEEDS:
            lines.append(f"Seeds: {task} has {len(its)}; no claim about architectures below {statistics.LEAST_SEEDS}.")
            continue
        times = statistics.detectable(len(its), 1.0)
        lines.append(
            f"Seeds: {task} has {len(its)}, which see in 80 of 100 studies a difference of {times:.2g} times its "
            "deviation over seeds."
        )
        for each in known:
            if each.task == task:
                low, high = statistics.deviation_interval(each.deviation, each.seeds)
                what = "bits per byte" if each.entries is None else f"exact match, {each.entries}"
                lines.append(
                    f"  {each.first} - {each.second}, {what}: {times * each.deviation:.4f}, from {each.seeds} seeds' "
                    f"deviation of {each.deviation:.4f} [{low:.4f}, {high:.4f}]"
                )
    return lines
