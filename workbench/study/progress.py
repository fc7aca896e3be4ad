"""How far running runs are, read from their folders, how long the rest will take, and the display of both."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from workbench.config import RunConfig, short_hash
from workbench.count import count
from workbench.record import cache_folder


class Seen(NamedTuple):
    """The last logged step of a run; zeros before the first."""

    step: int = 0
    loss: float = float("nan")
    tokens_per_second: float = 0.0
    step_seconds: float = 0.0


def seen(folder: Path) -> Seen:
    metrics, timing = last_row(folder / "metrics.jsonl", "loss"), last_row(folder / "timing.jsonl", "tokens_per_second")
    if not metrics.get("step") or not timing.get("tokens_per_second"):
        return Seen()
    rate = timing["tokens_per_second"]
    return Seen(metrics["step"], metrics["loss"], rate, metrics["tokens"] / metrics["step"] / rate)


def last_row(path: Path, field: str) -> dict:
    """The last whole row that has the field; {} if there is none yet. Reads only the file's end."""
    try:
        with path.open("rb") as file:
            file.seek(max(file.seek(0, os.SEEK_END) - 16384, 0))
            lines = file.read().split(b"\n")[:-1]  # what follows the last newline is still being written
    except FileNotFoundError:
        return {}
    for line in reversed(lines):
        try:
            row = json.loads(line)
        except ValueError:  # the first line read may be cut
            continue
        if field in row:
            return row
    return {}


# ---- what runs cost on this machine


class Cost(NamedTuple):
    step_seconds: float
    other_seconds: float  # start, compilation, evaluation


def cost_name(run: RunConfig, cores: int) -> str:
    """Runs of this name take the same time a step: same model, same sizes of data, same cores."""
    found = _cost_names.get((run.name, cores))
    if found is None:
        found = _cost_names[run.name, cores] = _cost_name(run, cores)
    return found


_cost_names: dict[tuple[str, int], str] = {}  # a hash takes a millisecond, and the display asks for all every second


def _cost_name(run: RunConfig, cores: int) -> str:
    plain = {f.name: getattr(run.data, f.name) for f in dataclasses.fields(run.data) if f.name != "seed"}
    return short_hash({"model": run.model, "data": plain, "cores": cores, "machine": platform.node()})


def cost_file() -> Path:
    return cache_folder() / "costs.json"


def known_costs() -> dict[str, Cost]:
    """What earlier runs on this machine took."""
    try:
        return {name: Cost(*cost) for name, cost in json.loads(cost_file().read_text()).items()}
    except (OSError, ValueError, TypeError):  # only an estimate depends on it
        return {}


def remember(name: str, cost: Cost) -> None:
    path = cost_file()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_suffix(f".{os.getpid()}")
        new.write_text(json.dumps({**known_costs(), name: cost}))
        new.replace(path)
    except OSError:  # only an estimate depends on it
        pass


def estimate(
    runs: Sequence[RunConfig], costs: Mapping[str, Cost], cores: int, like: Sequence[RunConfig] | None = None
) -> tuple[float | None, int]:
    """(seconds that the runs take one after the other, how many of them were measured).

    A run that was not measured counts as the mean of those among `like` (these runs) that were; None if none was.
    """
    measured = [cost for run in like or runs if (cost := costs.get(cost_name(run, cores)))]
    if not measured:
        return None, 0
    mean = Cost(*(sum(values) / len(measured) for values in zip(*measured, strict=True)))
    found = [costs.get(cost_name(run, cores)) for run in runs]
    pairs = ((run, cost or mean) for run, cost in zip(runs, found, strict=True))
    seconds = sum(run.steps * cost.step_seconds + cost.other_seconds for run, cost in pairs)
    return float(seconds), sum(cost is not None for cost in found)


RATE = 25e9  # FLOP/s of a core in training steps of the demo's size: 15e9 to 50e9 on an AMD EPYC, 2026-11-24
START_SECONDS = 20.0  # of a run beside its steps: process, compilation, evaluation


def guess(runs: Sequence[RunConfig]) -> float:
    """Seconds that runs would take one after the other on one core, where nothing like them was measured."""
    flops = (
        run.steps * run.data.batch * run.data.length * count(run.model, run.data.length).train_flops_per_token
        for run in runs
        if hasattr(run.data, "batch") and hasattr(run.data, "length")
    )
    return sum(flops) / RATE + START_SECONDS * len(runs)


# ---- the display


class Row(NamedTuple):
    """One running run."""

    label: str
    step: int
    steps: int
    loss: float
    tokens_per_second: float
    left: float | None  # seconds


class Whole(NamedTuple):
    done: int  # runs
    runs: int
    steps_done: int
    steps: int
    left: float | None  # seconds


def clock(seconds: float | None) -> str:
    """1:02:03, 2:03, or ? where it is not known."""
    if seconds is None:
        return "?"
    minutes, seconds = divmod(max(round(seconds), 0), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


@contextmanager
def display(slots: int, every: float = 15.0) -> Iterator[Callable[[list[Row | None], Whole], None]]:
    """Yields `show(rows, whole)`: bars on a terminal; elsewhere (a log, a notebook) one line every so many seconds."""
    with _bars(slots) if sys.stderr.isatty() else _lines(every) as show:
        yield show


@contextmanager
def _bars(slots: int):
    from tqdm import tqdm

    form = "{desc:<34.34}{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix}"
    bars = [tqdm(total=1, bar_format=form, position=i, leave=False, dynamic_ncols=True) for i in range(slots + 1)]

    def show(rows, whole):
        for bar, row in zip(bars, rows, strict=False):
            if row is None:
                _set(bar, "idle", 0, 1, "")
            else:
                speed = f"loss {row.loss:.3f}, {row.tokens_per_second:,.0f} tokens/s, {clock(row.left)} left"
                _set(bar, row.label, row.step, row.steps, speed if row.step else "starting")
        text = f"study: {whole.done} of {whole.runs} runs done"
        _set(bars[-1], text, whole.steps_done, whole.steps, f"{clock(whole.left)} left")

    try:
        yield show
    finally:
        for bar in bars:
            bar.close()


def _set(bar, text, n, total, postfix):
    bar.total, bar.n = total, n
    bar.set_description_str(text, refresh=False)
    bar.set_postfix_str(postfix, refresh=False)
    bar.refresh()


@contextmanager
def _lines(every: float):
    last = [float("-inf")]

    def show(rows, whole):
        if time.monotonic() - last[0] < every:
            return
        last[0] = time.monotonic()
        parts = [f"{whole.done} of {whole.runs} runs done, {clock(whole.left)} left"]
        for row in rows:
            if row is not None and row.step:
                parts.append(
                    f"{row.label}: step {row.step}/{row.steps}, loss {row.loss:.3f}, "
                    f"{row.tokens_per_second:,.0f} tokens/s, {clock(row.left)} left"
                )
            elif row is not None:
                parts.append(f"{row.label}: starting")
        print(" | ".join(parts), file=sys.stderr, flush=True)

    yield show
