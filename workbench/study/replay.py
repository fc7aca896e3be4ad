"""Part of a run, done again by the loop that did it: what a hash edited along with its file cannot survive.

And how a step that a run did not keep is had after all (`remake`).

`python -m workbench.study.replay RUN_FOLDER STEPS` prints a JSON line a finding; `workbench verify --replay` starts it
with the CPUs and flags that the run had.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import random
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax

from workbench.config import Layout, RunConfig, differences, from_json
from workbench.record import read_json, read_rows
from workbench.study.experiment import task
from workbench.train.checkpoint import hashes, load_model
from workbench.train.environment import decisive_differences, environment
from workbench.train.loop import TrainingFailed, train
from workbench.train.track import intervals

CLOSE = 1e-3  # of a value: within this a row or score made in another environment is said to agree


class _Enough(Exception):
    pass


def replay(folder: Path, steps: int) -> Iterator[tuple[str, bool | None, str]]:
    """(what, whether it holds, detail) of `steps` steps from the start, of as many from a checkpoint, and of scores.

    On the machine type, CPUs, flags and packages of the run its rows, weights and scores come again bit for bit.
    Elsewhere what agrees to a thousandth is said to, and what does not is not comparable here: training multiplies
    rounding, so that nothing is shown by it. Raises ValueError for a folder that holds no finished run.
    """
    saved, result = (read_json(folder / name) for name in ("config.json", "result.json"))
    if saved is None or (result or {}).get("status") != "finished":
        raise ValueError(f"{folder} holds no finished run, and no other can be replayed")
    run = from_json(saved)
    elsewhere = _elsewhere(read_json(folder / "environment.json") or {})
    recorded = {row["step"]: row for row in read_rows(folder / "metrics.jsonl")}
    weights = hashes(folder)
    initial = read_json(folder / "initial.json")
    first = run.parent.step if run.parent is not None else 0  # what a branch shares with its parent is its parent's
    before_the_end = [step for step in weights if first < step < run.steps]
    for start in (first, *random.sample(before_the_end, min(1, len(before_the_end)))):
        origin = f"the checkpoint of step {start}" if start > first else "the start"
        what = f"{min(steps, run.steps - start)} steps again from {origin}"
        try:
            with _again(run, folder, start, start + steps) as here:
                rows, made, began = _rows(here, start, start + steps), hashes(here), read_json(here / "initial.json")
        except TrainingFailed as error:
            yield what, False, str(error)
            continue
        found = differences(initial["parameters"], began["parameters"]) if initial and start == first else []
        seen = sorted(rows.keys() & recorded.keys())
        found += _changed(recorded, rows)
        found += [f"weights at step {s} differ" for s in made if s > start and s in weights and made[s] != weights[s]]
        if not any("loss" in rows[step] for step in seen):  # rows of evaluations alone tell little
            later = min((step for step, row in recorded.items() if step > start and "loss" in row), default=run.steps)
            yield what, None, f"the first loss after that is of step {later}: give --replay {later - start} or more"
        else:
            far = max(_distance(recorded[step], rows[step]) for step in seen)
            yield what, *_judged(found, far, elsewhere, f"rows of steps {', '.join(map(str, seen))}")
    yield "its last weights score as recorded", *_scores(run, folder, result, elsewhere)


def _elsewhere(recorded: dict[str, Any]) -> list[str]:
    """What may keep this process from the run's bits."""
    layout = Layout(**recorded.get("layout", {}))
    changed = decisive_differences(recorded, environment())
    for before in recorded.get("earlier", ()):
        changed += decisive_differences(before, recorded)
        changed += differences(before.get("layout", {}), recorded.get("layout", {}), "layout")
    if layout.devices > jax.device_count():
        changed.append(f"devices: {layout.devices} -> {jax.device_count()}")
    return changed


def remake(folder: Path, step: int, progress: bool | str = False) -> None:
    """Trains a run again from the last checkpoint before `step`, or its start, and leaves that of `step` in its folder.

    Warns, naming the first, if a row that was logged on the way does not come again bit for bit.
    """
    run = from_json(read_json(folder / "config.json"))
    first = run.parent.step if run.parent is not None else 0
    start = max((kept for kept in hashes(folder) if first < kept < step), default=first)
    with _again(run, folder, start, step, progress) as here:
        changed = _changed(_rows(folder, start, step), _rows(here, start, step))
        place = folder / "checkpoints" / str(step)
        part = place.with_name(f".{step}.part")
        shutil.copytree(here / "checkpoints" / str(step), part, dirs_exist_ok=True)
        os.replace(part, place)
    if changed:
        why = "; ".join(_elsewhere(read_json(folder / "environment.json") or {})) or "the same environment"
        warnings.warn(
            f"{run.name} was trained again from step {start} to {step} and is not what it was ({changed[0]}; {why})",
            stacklevel=2,
        )


def _changed(recorded: dict[int, dict], rows: dict[int, dict]) -> list[str]:
    """What differs in the rows that both have, by step."""
    found = []
    for step in sorted(rows.keys() & recorded.keys()):
        shared = [name for name in rows[step] if name in recorded[step]]  # older runs have no digest there
        both = ({name: row[step][name] for name in shared} for row in (recorded, rows))
        found += [f"step {step}, {line}" for line in differences(*both)]
    return found


def _rows(folder: Path, start: int, end: int) -> dict[int, dict]:
    """The rows of metrics.jsonl after `start` up to `end`, by step."""
    return {row["step"]: row for row in read_rows(folder / "metrics.jsonl") if start < row["step"] <= end}


@contextlib.contextmanager
def _again(run: RunConfig, folder: Path, start: int, end: int, progress: bool | str = False) -> Iterator[Path]:
    """A folder in which the run was trained from `start` to `end`, which it keeps; gone afterwards."""
    layout = Layout(**(read_json(folder / "environment.json") or {}).get("layout", {}))

    def stop(step: int, metrics: Any) -> None:
        if step > end:  # what is due at `end` has been written
            raise _Enough

    with tempfile.TemporaryDirectory() as place:
        here = Path(place) / "study" / folder.name
        here.mkdir(parents=True)
        shutil.copy(folder / "config.json", here)
        if run.parent is not None and not (beside := here.parent / run.parent.run).exists():
            beside.parent.mkdir(parents=True, exist_ok=True)
            beside.symlink_to(folder.resolve().parent / run.parent.run)
        if start > (run.parent.step if run.parent is not None else 0):
            shutil.copytree(folder / "checkpoints" / str(start), here / "checkpoints" / str(start))
        fits = layout if layout.devices <= jax.device_count() else Layout()
        keep = replace(run, keep=tuple(sorted({*run.keep, min(end, run.steps)})))
        with contextlib.suppress(_Enough):
            train(keep, here, {}, layout=fits, progress=progress, wandb="disabled", on_step=stop)
        yield here


def _distance(a: dict[str, Any], b: dict[str, Any]) -> float:
    """The largest difference of the numbers that both rows have, as a share of it; infinite if their digests differ."""
    numbers = [name for name in a.keys() & b.keys() if not isinstance(a[name], str)]
    if any(a[name] != b[name] for name in a.keys() & b.keys() if name not in numbers):
        return math.inf
    return max(abs(a[name] - b[name]) / max(abs(a[name]), 1e-12) for name in numbers)


def _judged(found: list[str], far: float, elsewhere: list[str], seen: str) -> tuple[bool | None, str]:
    if not elsewhere:
        return not found, "; ".join(found[:2]) or f"bit for bit: {seen}"
    where = f"in another environment ({'; '.join(elsewhere)})"
    if far <= CLOSE:
        return True, f"to {far:.0e}, {where}: {seen}"
    return None, f"not comparable here, {where}: {'; '.join(found[:1])}"


def _scores(run: RunConfig, folder: Path, result: dict, elsewhere: list[str]) -> tuple[bool | None, str]:
    """The evaluation on test again: every item of it, since which items are asked follows from how many."""
    if result["steps"] not in hashes(folder):
        return None, "no checkpoint of the last step is here"
    _, model = load_model(folder, result["steps"])
    recorded = result["evaluation"].get(task(run))
    if recorded is None or run.evaluation is None:
        return None, f"the record has no evaluation called {task(run)}"
    found = json.loads(json.dumps(run.evaluation.build(run)(model, "test")))
    values = [{name: each["mean"] for name, each in intervals(of)} for of in (recorded, found)]
    far = max((abs(values[0][k] - values[1].get(k, float("inf"))) for k in values[0]), default=0.0)
    return _judged(differences(recorded, found), far, elsewhere, f"{len(values[0])} numbers")


if __name__ == "__main__":
    for finding in replay(Path(sys.argv[1]), int(sys.argv[2])):
        print(json.dumps(finding), flush=True)
