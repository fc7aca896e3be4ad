"""wandb: config, curves, a table of evaluations and a summary, in the run's own folder; offline unless asked.

A study's report and the suites that its runs were asked are runs of its group, in the study's folder.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from workbench.config import RunConfig, nearest, to_json
from workbench.record import read_json

MODES = ("offline", "online", "disabled")
PROJECT = "workbench"
SUMMARY = ("status", "steps", "tokens", "digest", "seconds", "tokens_per_second", "final_loss", "parameters")


def start(run: RunConfig, folder: Path, mode: str) -> Any | None:
    """wandb's run for this one: group = study, name = arm and seed. None when disabled (wandb is then not imported).

    Only "online" waits for a network. A run that is resumed keeps its id, so that wandb joins the pieces.
    Raises ValueError on an unknown mode.
    """
    if mode not in MODES:
        raise ValueError(f"wandb {mode!r} is unknown; {nearest(mode, MODES)}")
    if mode == "disabled":
        return None
    import wandb

    before = sorted(folder.glob("wandb/*run-*"))
    return wandb.init(
        project=PROJECT,
        group=run.study,
        job_type=run.role,
        name=f"{run.arm}-s{run.seed}",
        id=before[-1].name.rpartition("-")[2] if before else secrets.token_hex(4),
        resume="allow" if mode == "online" else None,
        dir=str(folder),
        mode=mode,
        config=to_json(run) | {"run": run.name},
        reinit="finish_previous",
        save_code=False,
        settings=_quiet(),
    )


def log_row(tracker: Any | None, row: dict[str, Any]) -> None:
    """The numbers of a row of metrics.jsonl at its step."""
    if tracker is not None:
        numbers = {name: value for name, value in row.items() if name != "step" and not isinstance(value, str)}
        tracker.log(numbers, step=row["step"])


def finish(tracker: Any | None, result: dict[str, Any] | None) -> None:
    """The table of evaluations and the summary of result.json, then closes; without a result, closes as failed."""
    if tracker is None:
        return
    if result is not None:
        import wandb

        columns = ["split", "evaluation", "mean", "low", "high"]
        rows = [
            [split, name, *(values.get(column) for column in columns[2:])]
            for split, evaluations in (("test", result.get("evaluation", {})), ("select", result.get("select", {})))
            for name, values in intervals(evaluations)
        ]
        if rows:
            tracker.log({"evaluation": wandb.Table(columns=columns, data=rows)})
        tracker.summary.update({name: result[name] for name in SUMMARY if name in result})
    tracker.finish(exit_code=0 if result is not None and result["status"] == "finished" else 1)


def log_study(study: str, folder: Path, mode: str, tables: dict[str, tuple[list[str], list[list[str]]]]) -> None:
    """A study's figures, as the report drew them in folder/figures, its page and tables (headings and rows, by name).

    They are one more run in the study's group.
    """
    if mode == "disabled":
        return
    import wandb

    report = _beside(study, folder, mode, "report", "report")
    figures = {f"figures/{path.stem}": wandb.Image(str(path)) for path in sorted((folder / "figures").glob("*.png"))}
    shown = {f"tables/{name}": wandb.Table(columns=heads, data=rows) for name, (heads, rows) in tables.items()}
    report.log(figures | shown | {"report": wandb.Html((folder / "report.html").read_text(), inject=False)})
    report.finish()


COLUMNS = ("task", "metric", "mean", "low", "high", "items", "at chance")


def log_suite(
    run: Path, place: Path, mode: str, results: Mapping[str, Mapping[str, Any]], figures: Sequence[Path]
) -> None:
    """The results of what a run was asked (workbench.evaluate.suite), a table a task, and the figures of its items.

    place: where the items are kept. A row is a metric with its 95% interval, the first held against chance; tasks that
    failed or were left out are in one table, with why.
    """
    tables, refused = {}, []
    for task, found in results.items():
        if why := found.get("error") or found.get("left_out"):
            refused.append([task, why])
            continue
        chance = [found["at_chance"], *[None] * (len(found["metrics"]) - 1)]
        rows = [
            [task, metric, value["mean"], value["low"], value["high"], found["items"], at_chance]
            for (metric, value), at_chance in zip(found["metrics"].items(), chance, strict=True)
        ]
        tables[task] = (COLUMNS, rows)
    if refused:
        tables["not asked"] = (("task", "why"), refused)
    _log_evaluation(run, place, mode, "suite", tables, figures)


POSITIONS = ("start", "end", "extrapolated", "mean", "low", "high", "bytes", "documents")


def log_positions(run: Path, place: Path, mode: str, values: Mapping[str, Any], figure: Path) -> None:
    """A run's loss by position (workbench.evaluate.position): a row a bin, in bits per byte. place: what keeps it."""
    rows = [[each[name] for name in POSITIONS] for each in values["by_position"]]
    _log_evaluation(run, place, mode, "positions", {"bits per byte by position": (POSITIONS, rows)}, [figure])


def _log_evaluation(
    run: Path,
    place: Path,
    mode: str,
    kind: str,
    tables: Mapping[str, tuple[Sequence[str], list[list]]],
    figures: Sequence[Path],
) -> None:
    """Tables (columns and rows, by name) and figures, as one more run in the group of the run's study."""
    if mode == "disabled":
        return
    import wandb

    config = read_json(run / "config.json")
    logged = _beside(config["study"], run.resolve().parent, mode, kind, f"{config['arm']}-s{config['seed']}")
    logged.config.update({"run": run.resolve().name, "items": place.name})
    shown = {f"tables/{name}": wandb.Table(columns=list(heads), data=rows) for name, (heads, rows) in tables.items()}
    logged.log(shown | {f"figures/{path.stem}": wandb.Image(str(path)) for path in figures})
    logged.finish()


def _beside(study: str, folder: Path, mode: str, kind: str, name: str) -> Any:
    """A run of the study's group that trains nothing, in the study's folder."""
    import wandb

    return wandb.init(
        project=PROJECT,
        group=study,
        job_type=kind,
        name=name,
        dir=str(folder),
        mode=mode,
        reinit="finish_previous",
        save_code=False,
        settings=_quiet(),
    )


def _quiet() -> Any:
    import wandb

    return wandb.Settings(silent=True, console="off", x_disable_stats=True)


def intervals(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, dict[str, float]]]:
    """Every number of a nested evaluation as (`task/exact_match/4`, {mean, low, high}); lists are left out."""
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and "mean" in value:
            yield name, value
        elif isinstance(value, dict):
            yield from intervals(value, f"{name}/")
        elif isinstance(value, (int, float)):
            yield name, {"mean": value}
