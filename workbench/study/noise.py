"""How much a start alone changes: one more run an arm, whose initialisation is another and whose data are the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from workbench.config import RunConfig, task_name


def with_noise(runs: Sequence[RunConfig], add: int) -> list[RunConfig]:
    """The runs, then one of the role noise for each arm and task: its first run again, with `add` to its seed.

    Beside the differences of arms the report tells how far the two lie apart (workbench.study.differences).
    """
    first: dict[tuple[str, str], RunConfig] = {}
    for run in runs:
        if run.role == "result":
            first.setdefault((task_name(run.data), run.arm), run)
    return [*runs, *(replace(run, role="noise", seed=run.seed + add, keep=()) for run in first.values())]
