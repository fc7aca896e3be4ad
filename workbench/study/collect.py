"""A study read back from its run folders alone: finished, failed and unfinished runs alike. Imports no JAX."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from workbench.config import from_json, task_name
from workbench.evaluate.interval import Interval
from workbench.record import read_json, read_rows

FINISHED = "finished"
LOOKED = "looks.json"  # after how many seeds of each task reports were made


PLACES = ("step", "tokens", "flops", "seconds")  # what a curve may be drawn against


@dataclass(frozen=True)
class Run:
    """What one run folder holds, as plain JSON. `status` is "finished" or says how far the run came."""

    name: str
    config: dict[str, Any] = field(default_factory=dict)
    result: dict[str, Any] = field(default_factory=dict)
    metrics: list[dict[str, Any]] = field(default_factory=list)
    timing: list[dict[str, Any]] = field(default_factory=list)
    initial: dict[str, Any] = field(default_factory=dict)  # what it started from; {} for runs older than that record
    environment: dict[str, Any] = field(default_factory=dict)
    status: str = FINISHED
    problem: str = ""  # what is known of a failure

    @property
    def finished(self) -> bool:
        return self.status == FINISHED

    @property
    def task(self) -> str:
        return task_name(self.config["data"])

    @property
    def arm(self) -> str:
        return self.config["arm"]

    @property
    def role(self) -> str:
        """What the report does with the run: one of workbench.config.ROLES."""
        return self.config.get("role", "result")

    @property
    def data_seed(self) -> int:
        return self.config["data"].get("seed", 0)

    @property
    def length(self) -> int:
        """Tokens of a training row; 0 where the data has no such field."""
        return self.config["data"].get("length", 0)

    @property
    def extended_to(self) -> int:
        """The length of a run that was extended; 0 for any other."""
        return self.length if self.role == "extended" else 0

    @property
    def replicate(self) -> tuple[int, int]:
        """(seed of the data, seed of the initialisation): what the arms of a comparison share."""
        return self.data_seed, self.config.get("seed", 0)

    @property
    def released(self) -> list[str]:
        """The released models that it goes on from, whose training data are unknown."""
        return [each["run"] for each in self.result.get("parents", ()) if each["relation"] == "imported"]

    @property
    def attends(self) -> bool:
        """Whether a symbol of the pattern is bound to attention."""
        model = self.config["model"]
        return any(
            "Attention" in layer["class"].rpartition(":")[2]
            for letter, layer in model["symbols"].items()
            if letter in model["pattern"]
        )

    def evaluation(self, measure: str) -> dict[str, Any]:
        """The evaluation on test that holds this measure ("exact_match", "bits_per_byte"); {} where there is none."""
        found = self.result.get("evaluation", {}).values()
        return next((e for e in found if isinstance(e, dict) and measure in e), {})

    def by_entries(self, measure: str = "exact_match") -> dict[int, Interval]:
        """The measure for each number of entries in the book, ascending."""
        sizes = self.evaluation(measure).get(measure, {})
        return {int(k): interval(sizes[k]) for k in sorted(sizes, key=int)}

    def by_position(self) -> dict[tuple[int, int], Interval]:
        """Bits per byte of long documents in each bin of positions, from one up to another, ascending."""
        found = self.evaluation("by_position").get("by_position", ())
        return {(each["start"], each["end"]): interval(each) for each in found}

    @property
    def trained_entries(self) -> list[int]:
        """Sizes of the books seen in training."""
        evaluation = self.evaluation("exact_match")
        return sorted(int(k) for k in evaluation.get("trained_entries") or self.config["data"].get("entries", ()))

    def answers(self, size: int) -> tuple[int, int] | None:
        """Answers that a document of this size holds, and how many each could be.

        None for data of a user's own, or of a version whose fields were others.
        """
        data = self.config["data"]
        if not data["class"].startswith("workbench."):
            return None
        try:
            return from_json(data).answers(size)
        except ValueError:
            return None

    @property
    def bits_per_byte(self) -> Interval | None:
        """On groups (packages, projects) that were not trained on."""
        return self._bits("bits_per_byte")

    @property
    def same_groups(self) -> Interval | None:
        """Bits per byte on held-out documents of the groups that were trained on."""
        return self._bits("same_groups")

    def _bits(self, measure: str) -> Interval | None:
        found = self.evaluation("bits_per_byte").get(measure)
        return interval(found) if found else None

    @property
    def suite(self) -> dict[str, dict[str, Any]]:
        """What was answered of each task in text on test (workbench.evaluate.exam); {} where none was asked."""
        return self.evaluation("suite").get("suite", {})

    @property
    def items(self) -> dict[str, Any]:
        """What the evaluation on test says of its items, which no model changes: how many, of what, how hard."""
        return _of_items(self.result.get("evaluation", {})) or {}

    def curve(self) -> list[dict[str, Any]]:
        """Rows of {step, tokens, flops, seconds, loss} as far as they were logged."""
        rows = self._timed([row for row in self.metrics if "loss" in row])
        return [{key: row[key] for key in (*PLACES, "loss") if key in row} for row in rows]

    def select_curve(self) -> list[dict[str, Any]]:
        """Rows of {step, tokens, flops, seconds, exact_match, ...}: what was measured on the select split on the way.

        `exact_match` is the mean over the sizes in training.
        """
        out = []
        for row in self._timed([row for row in self.metrics if any(key.startswith("select/") for key in row)]):
            values = {key.removeprefix("select/"): v for key, v in row.items() if key.startswith("select/")}
            kept = {key: row[key] for key in PLACES if key in row}
            sizes = [_ending(values, f"exact_match/{k}") for k in self.trained_entries]
            if sizes and None not in sizes:
                kept["exact_match"] = float(np.mean(sizes))
            if (bits := _ending(values, "bits_per_byte")) is not None:
                kept["bits_per_byte"] = bits
            out.append(kept)
        return out

    def _timed(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The rows with the seconds of training at their steps, between those that were logged."""
        times = [(row["step"], row["seconds"]) for row in self.timing if "seconds" in row]
        if not times:
            return rows
        seconds = np.interp([row["step"] for row in rows], *zip(*times, strict=True))
        return [row | {"seconds": float(at)} for row, at in zip(rows, seconds, strict=True)]


@dataclass(frozen=True)
class Study:
    """The runs of a study's folder, in the experiment's order, else attention first, then by name.

    `facts` is experiment.json where the driver left one: name, scale, docstring, overrides and the runs asked for; with
    the numbers of seeds after which reports were made.
    """

    folder: Path
    runs: list[Run]
    facts: dict[str, Any] = field(default_factory=dict)
    aside: list[str] = field(default_factory=list)  # folders of runs that the experiment no longer names

    @property
    def name(self) -> str:
        return self.facts.get("name") or next(
            (run.config["study"] for run in self.runs if run.config), self.folder.name
        )

    @property
    def tasks(self) -> list[str]:
        return list(dict.fromkeys(run.task for run in self.select("result")))

    @property
    def failures(self) -> list[Run]:
        """Runs that did not finish; a tuning run whose loss broke is a finding about its rate, no failure."""
        return [run for run in self.runs if not run.finished and not (run.config and run.role == "tuning")]

    def select(self, *roles: str, task: str | None = None, arm: str | None = None) -> list[Run]:
        """Runs that have a config, of these roles (all, if none is given), task and arm."""
        return [
            run
            for run in self.runs
            if run.config
            and (not roles or run.role in roles)
            and (task is None or run.task == task)
            and (arm is None or run.arm == arm)
        ]

    def arms(self, *roles: str, task: str | None = None) -> list[str]:
        return list(dict.fromkeys(run.arm for run in self.select(*roles, task=task)))


def collect(folder: str | Path) -> Study:
    """The study in a folder of run folders. Raises ValueError if there is none."""
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; give the folder of a study, such as runs/phonebook")
    facts = read_json(folder / "experiment.json") or {}
    looked = read_json(folder / LOOKED)
    facts |= {"looked": looked} if facts and looked else {}
    paths = {path.parent.name: path.parent for path in folder.glob("*/config.json")}
    if not paths and not facts:
        raise ValueError(f"{folder} holds no run folder (none has a config.json); run the experiment first")
    found = {name: _run(path) for name, path in paths.items()}
    if "runs" not in facts:
        return Study(folder, sorted(found.values(), key=_order), facts)
    named = [row["run"] for row in facts["runs"]]
    runs = [found.pop(name, None) or Run(name, status="not started") for name in named]
    runs += [found.pop(name) for name in sorted(found) if found[name].config and found[name].role == "tuning"]
    return Study(folder, runs, facts, sorted(found))


def interval(entry: dict[str, Any]) -> Interval:
    """An evaluation's {mean, low, high}."""
    return Interval(float(entry["mean"]), float(entry["low"]), float(entry["high"]))


def _order(run: Run) -> tuple:
    if not run.config:
        return (1, run.name)
    pattern = run.config["model"]["pattern"]
    share = pattern.count("*") / len(pattern)
    return (0, run.task, run.role != "result", not run.attends, -share, run.arm, run.replicate, run.name)


def _run(folder: Path) -> Run:
    """A folder's run; one whose files are damaged is "unreadable", and `problem` says which file and where."""
    try:
        config = read_json(folder / "config.json")
        config["arm"], config["model"]["pattern"], config["data"]["class"]
    except (ValueError, KeyError, TypeError) as error:
        return Run(folder.name, status="unreadable", problem=f"config.json cannot be read: {error!r}")
    try:
        result = read_json(folder / "result.json") or {}
        metrics, timing = (read_rows(folder / name) for name in ("metrics.jsonl", "timing.jsonl"))
        initial, environment = (read_json(folder / name) or {} for name in ("initial.json", "environment.json"))
    except ValueError as error:
        return Run(folder.name, config, status="unreadable", problem=str(error))
    problem = result.get("error") or _notebook_error(folder / "train.ipynb")
    status = result.get("status")
    if status is None:
        last = max((row.get("step", 0) for row in metrics), default=0)
        status = f"{'failed' if problem else 'unfinished'} at step {last} of {config.get('steps', '?')}"
    problem = "" if status == FINISHED else problem
    return Run(folder.name, config, result, metrics, timing, initial, environment, status, problem)


def _notebook_error(path: Path) -> str:
    """`ValueError: what it said` from the first cell of an executed notebook that raised."""
    try:
        cells = (read_json(path) or {}).get("cells", ())
    except ValueError:  # papermill was stopped while it wrote
        return ""
    for cell in cells:
        for output in cell.get("outputs", ()):
            if output.get("output_type") == "error":
                return f"{output.get('ename', 'Error')}: {output.get('evalue', '')}".strip()[:300]
    return ""


def _ending(values: dict[str, float], measure: str) -> float | None:
    """The value of `EVALUATION/measure`, whatever the evaluation is called; None if there is none."""
    return next((v for key, v in values.items() if f"/{key}".endswith(f"/{measure}")), None)


OF_ITEMS = ("items", "documents", "bytes", "entries", "depth", "chance", "start", "end", "trained_entries", "baselines")
OF_ITEMS += ("digest",)  # of a suite's items


def _of_items(value: Any) -> Any:
    """What stands under these names, and how long lists of scores are; None where there is nothing of the kind."""
    if isinstance(value, dict):
        found = {key: item if key in OF_ITEMS else _of_items(item) for key, item in value.items()}
        return {key: item for key, item in found.items() if item is not None} or None
    if isinstance(value, list):
        found = [_of_items(item) for item in value]
        return found if any(item is not None for item in found) else len(found)
    return None
