"""What each arm of a study costs, as rows and as a table, from the configs alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from workbench.config import RunConfig, task_name
from workbench.count import count

FLOPS = ("", "k", "M", "G", "T")


def rows(runs: Sequence[RunConfig], context: int = 4096) -> list[dict[str, Any]]:
    """One row for each distinct model of each arm: parameters, FLOPs a token, state bytes a sequence at the context.

    An arm that has several models, one a task, is named with its task. A run with a parent has its parent's sizes.
    """
    arms: dict[str, list[RunConfig]] = {}
    for run in (run for run in runs if run.parent is None):
        same = arms.setdefault(run.arm, [])
        if all(run.model != known.model for known in same):
            same.append(run)
    return [_row(run, len(same) > 1, context) for same in arms.values() for run in same]


def _row(run: RunConfig, with_task: bool, context: int) -> dict[str, Any]:
    task = task_name(run.data)
    counted = count(run.model, context)
    return {
        "name": f"{run.arm} ({task})" if with_task else run.arm,
        "pattern": run.model.pattern,
        "context": context,
        "parameters": counted.parameters,
        "non_embedding_parameters": counted.non_embedding_parameters,
        "train_flops_per_token": counted.train_flops_per_token,
        "decode_flops_per_token": counted.decode_flops_per_token,
        "state_bytes": counted.state_bytes,
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as aligned text, four digits to a number; the pattern comes last because it may be long."""
    if not rows:
        return "no arms"
    head = ["arm", "parameters", "non-embedding", "train FLOPs/token", "decode FLOPs/token", "state", "pattern"]
    body = [
        [
            row["name"],
            decimal(row["parameters"]),
            decimal(row["non_embedding_parameters"]),
            decimal(row["train_flops_per_token"], FLOPS),
            decimal(row["decode_flops_per_token"], FLOPS),
            binary(row["state_bytes"]),
            row["pattern"],
        ]
        for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(head, *body, strict=True)]
    left = {0, len(head) - 1}
    lines = [
        "  ".join(f"{cell:{'<' if i in left else '>'}{widths[i]}}" for i, cell in enumerate(line)).rstrip()
        for line in [head, *body]
    ]
    rule = "-" * len(lines[0])
    return "\n".join([lines[0], rule, *lines[1:], rule, f"FLOPs and state at {rows[0]['context']:,} tokens of context"])


def decimal(value: float, units: Sequence[str] = ("", "k", "M", "B", "T")) -> str:
    """A number in thousands, millions, ...: 8540135424 is `8.540 B`."""
    return _scaled(value, 1000, units)


def binary(value: float) -> str:
    """Bytes in powers of 1024: 2147483648 is `2.000 GiB`."""
    return _scaled(value, 1024, ("B", "KiB", "MiB", "GiB", "TiB"))


def _scaled(value: float, thousand: int, units: Sequence[str]) -> str:
    power = 0
    while power < len(units) - 1 and float(f"{value:.4g}") >= thousand:
        value, power = value / thousand, power + 1
    return f"{value:.0f} {units[0]}".rstrip() if power == 0 else f"{value:#.4g}".rstrip(".") + f" {units[power]}"
