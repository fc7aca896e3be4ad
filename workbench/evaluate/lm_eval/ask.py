"""Asks lm-eval's tasks, each by itself: what fails leaves the others as they are."""

from __future__ import annotations

import importlib.util
import json
import os
import random
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from lm_eval import simple_evaluate
from lm_eval.api.group import Group
from lm_eval.api.task import Task
from lm_eval.defaults import DEFAULT_OTHER_SEED, DEFAULT_RANDOM_SEED
from lm_eval.tasks import TaskManager
from lm_eval.tasks._factory import TaskFactory

from workbench.config import nearest
from workbench.data.tokenizer import LEAST, Bytes, Json, Tokenizer, train
from workbench.evaluate.lm_eval.items import metric_name, rows_of
from workbench.evaluate.lm_eval.model import Workbench
from workbench.evaluate.score import BATCH, Subject
from workbench.evaluate.suite import each_alone, summary, write_items
from workbench.exchange.huggingface import write_tokenizer
from workbench.record import write_json

os.environ.setdefault("DISABLE_MULTIPROC", "1")  # else lm-eval's bootstrap forks a process that has JAX's threads
OURS = Path(__file__).parent / "waleffe"
BOOTSTRAP = 1000  # draws, of the standard errors of metrics that are no mean


def evaluate(
    subject: Subject,
    names: Sequence[str],
    folder: Path,
    *,
    tasks: Path | str | None = None,
    defaults: bool = True,
    limit: int | None = None,
    batch: int = BATCH,
    cut: bool = False,
    lengths: Sequence[int] = (),
) -> dict[str, dict[str, Any]]:
    """Results by task and by group that has a score: as workbench.evaluate.suite.summary has them, with lm-eval's own
    scores for means and its standard errors; {"error": why} of a task that failed, which leaves the others as they are.

    tasks: a folder of task files, whose names go before lm-eval's own. defaults: know lm-eval's own at all, which takes
    seconds. cut: prompts that are longer than the model's positions, which fail otherwise. lengths: tokens of a prompt,
    of tasks that are made to a length (lm-eval's max_seq_lengths: its RULER, 4096 unless said).
    Raises ValueError for a name that no task, group or tag has, and if the tokenizer is not the model's.
    """
    subject.check()
    told: dict[str, Any] = {"max_seq_lengths": list(lengths)} if lengths else {}
    if importlib.util.find_spec("transformers") and (spoken := _as_json(subject.tokenizer)):
        write_tokenizer(folder / "tokenizer", spoken)
        told["tokenizer"] = str(folder / "tokenizer")
    manager = TaskManager(include_path=[str(OURS), *([str(tasks)] if tasks else [])], include_defaults=defaults)
    manager._factory = _OneByOne(meta=told)
    unknown = next((name for name in names if name not in manager.all_tasks), None)
    if unknown is not None:
        raise ValueError(f"lm-eval has no task {unknown!r}; {nearest(unknown, manager.all_tasks)}")
    folder.mkdir(parents=True, exist_ok=True)
    model = Workbench(subject, batch_size=batch, cut=cut, log=folder / "answers.jsonl")

    def asking() -> Iterator[tuple[str, Callable[[], dict]]]:
        for name in names:
            try:
                loaded = manager.load([name])
            except Exception as error:  # whatever is wrong with its files
                yield name, partial(_raise, error)
                continue
            found: dict[str, dict] = {}
            leaves = {each.task_name: each for group in loaded["groups"].values() for each in _leaves(group)}
            for leaf, task in (leaves | loaded["tasks"]).items():
                if isinstance(task, Unbuilt):
                    yield leaf, partial(_raise, task.error)
                else:
                    yield _name(task), partial(_ask, model, task, manager, folder, limit, found)
            for group in loaded["groups"].values():
                if group.has_aggregation:
                    shots = {_name(each).removeprefix(each.task_name) for each in group.get_all_tasks()}
                    yield group.name + (shots.pop() if len(shots) == 1 else ""), partial(_together, group, found)

    return each_alone(asking(), folder)


class Unbuilt(NamedTuple):
    """What stands for a task that could not be built."""

    task_name: str
    error: Exception


class _OneByOne(TaskFactory):
    """Builds each of a group's tasks by itself, from the same random numbers wherever it stands, or keeps why not."""

    def _build_task(self, entry, overrides):
        random.seed(DEFAULT_RANDOM_SEED)  # lm-eval's own seeds
        np.random.seed(DEFAULT_OTHER_SEED)
        try:
            return super()._build_task(entry, overrides)
        except Exception as error:  # no such file, no network, no such package
            return Unbuilt((overrides or {}).get("task", entry.name), error)


def _leaves(group: Group) -> Iterator[Task | Unbuilt]:
    for each in group:
        yield from _leaves(each) if isinstance(each, Group) else (each,)


def _raise(error: Exception) -> dict:
    raise error


def _as_json(tokenizer: Tokenizer) -> Json | None:
    """As transformers can load it, of bytes too; None for a SentencePiece model."""
    return (
        train(iter(()), LEAST) if isinstance(tokenizer, Bytes) else tokenizer if isinstance(tokenizer, Json) else None
    )


def _name(task: Task) -> str:
    """Tells apart what differs in examples alone: of MMLU the paper has both."""
    shots = task.config.num_fewshot
    return f"{task.task_name}-{shots}-shots" if shots else task.task_name


def _ask(model: Workbench, task: Task, manager: TaskManager, folder: Path, limit: int | None, found: dict) -> dict:
    """A task's result, kept with its items. Adds lm-eval's own to `found`, for the groups that it is in."""
    name = _name(task)
    given = simple_evaluate(model, tasks=[task], task_manager=manager, limit=limit, bootstrap_iters=BOOTSTRAP)
    rows = rows_of(model, task, name, given["samples"][task.task_name])
    write_items(folder / f"{name}.parquet", rows)
    write_json(folder / f"{name}.json", _plain({key: given[key] for key in KEPT if key in given}))
    found[task.task_name] = given["results"][task.task_name]
    told = summary(rows)
    scores = _scores(found[task.task_name], told["metrics"])
    first = [metric for metric in told["metrics"] if metric in scores][:1]
    return told | {"metrics": {metric: scores[metric] for metric in [*first, *scores]}}


KEPT = ("results", "configs", "versions", "n-shot", "n-samples")


def _together(group: Group, found: dict[str, dict]) -> dict:
    """A group's result. Raises ValueError if one of its tasks failed: the others' mean is another score."""
    missing = [each.task_name for each in _leaves(group) if each.task_name not in found]
    if missing:
        raise ValueError(f"{', '.join(missing)} of it failed")
    given = group.aggregate(found)
    counts = {"items": given["sample_len"], "straddles": 0, "merges_digits": False}
    return {**counts, "chance": None, "at_chance": None, "metrics": _scores(given, {})}


def _scores(given: dict[str, Any], intervals: dict[str, dict]) -> dict[str, dict]:
    """lm-eval's metrics, each with its standard error, and the interval that its items give if it is their mean."""
    scores = {}
    for key, value in given.items():
        metric, _, chosen = key.partition(",")
        absent = metric.isdigit() and value == -1  # RULER, of a length that it was not asked at
        if not chosen or metric.endswith("_stderr") or not isinstance(value, (int, float)) or absent:
            continue
        name, error = metric_name(metric, chosen), given.get(f"{metric}_stderr,{chosen}")
        known = intervals.get(name, {})
        spread = float(error) if isinstance(error, float) and np.isfinite(error) else None
        scores[name] = {"mean": float(value), "low": known.get("low"), "high": known.get("high"), "error": spread}
    return scores


def _plain(value: Any) -> Any:
    """What JSON knows: functions and NumPy's numbers as text and numbers."""
    return json.loads(json.dumps(value, default=lambda each: each.item() if hasattr(each, "item") else str(each)))
