"""How far a study is, told from its folder alone: by another terminal, another machine, after a crash."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from workbench.record import read_json
from workbench.study import progress

ENDED = ("finished", "nan", "failed")
PATIENCE = 30  # looks at a study whose next run may be starting


class State(NamedTuple):
    """A run: "waiting", "running", "stopped" (it has begun, and the same command resumes it) or as it ended."""

    run: str
    state: str
    seen: progress.Seen
    steps: int | None  # None before its folder is there
    problem: str = ""

    @property
    def left(self) -> float | None:
        """Seconds until a running run has done its steps."""
        if self.state != "running" or not self.seen.step_seconds or self.steps is None:
            return None
        return (self.steps - self.seen.step) * self.seen.step_seconds


def states(folder: str | Path) -> list[State]:
    """Of every run that the experiment names, and of every other that has a folder.

    Raises ValueError if there is none.
    """
    folder = Path(folder)
    facts = (read_json(folder / "experiment.json") or {}) if folder.is_dir() else {}
    named = [row["run"] for row in facts.get("runs", ())]
    others = sorted({path.parent.name for path in folder.glob("*/config.json")} - set(named))
    if not named and not others:
        raise ValueError(f"{folder} holds no study (no experiment.json and no run); give one such as runs/phonebook")
    return [_state(folder / name) for name in (*named, *others)]


def _state(folder: Path) -> State:
    try:
        config, result = (read_json(folder / name) for name in ("config.json", "result.json"))
    except ValueError as error:
        return State(folder.name, "unreadable", progress.Seen(), None, str(error))
    at = progress.seen(folder)
    steps = config["steps"] if config else None
    if result is not None and result.get("status") in ENDED:
        return State(folder.name, result["status"], at, steps, result.get("error", ""))
    if held(folder / ".lock"):
        return State(folder.name, "running", at, steps)
    return State(folder.name, "stopped" if at.step else "waiting", at, steps)


def held(lock: Path) -> bool:
    """Whether a process trains in the folder."""
    try:
        with lock.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def table(found: Sequence[State]) -> str:
    """A line a run, and what they come to."""
    lines = [("run", "state", "step", "loss", "tokens/s", "left")]
    for each in found:
        at = each.seen
        lines.append(
            (
                each.run.rpartition("-")[0] or each.run,
                each.state,
                f"{at.step:,}/{each.steps:,}" if each.steps else "",
                f"{at.loss:.3f}" if at.step else "",
                f"{at.tokens_per_second:,.0f}" if at.step else "",
                progress.clock(each.left) if each.left is not None else "",
            )
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = [
        "  ".join(f"{cell:{'<' if i < 2 else '>'}{widths[i]}}" for i, cell in enumerate(line)).rstrip()
        for line in lines
    ]
    counts = {each.state: sum(other.state == each.state for other in found) for each in found}
    text += ["", f"{len(found)} runs: " + ", ".join(f"{number} {state}" for state, number in counts.items())]
    text += [f"{each.run}: {each.problem.strip().splitlines()[-1]}" for each in found if each.problem.strip()]
    return "\n".join(text)


def as_json(found: Sequence[State]) -> str:
    rows = [
        {
            "run": each.run,
            "state": each.state,
            "step": each.seen.step,
            "steps": each.steps,
            "loss": each.seen.loss if each.seen.step else None,
            "tokens_per_second": each.seen.tokens_per_second,
            "left_seconds": each.left,
            "problem": each.problem,
        }
        for each in found
    ]
    return json.dumps(rows, indent=1)
