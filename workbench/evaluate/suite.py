"""Runs tasks over a model with a tokenizer, item by item, and keeps every item beside the run.

    RUN/suite/1a2b3c4d/    of one checkpoint with its tokenizer, by their hash
        TASK.parquet       a row an item: prompt, raw completion, likelihoods, metrics (see `ask`)
        results.json       each task's metrics with their intervals, or why it failed
        curves.png, depth.png    drawn by workbench.evaluate.draw

What was answered is never asked again: of an evaluation that was killed, the finished items stay.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from workbench.config import UnknownName, nearest, override
from workbench.data.tokenizer import checksum
from workbench.evaluate.contamination import overlapping
from workbench.evaluate.interval import clustered, clustered_mean
from workbench.evaluate.score import BATCH, Subject, beyond, generate_until, loglikelihood
from workbench.evaluate.tasks import choices, phonebook, recall, ruler
from workbench.evaluate.tasks.item import Answer, Item, Task, TooShort, probability
from workbench.model.names import named
from workbench.record import add_row, read_json, read_rows, write_json, write_text
from workbench.train.checkpoint import weights_hash

SUITES: dict[str, tuple[Task, ...]] = {
    "phonebook": tuple(phonebook.Phonebook(n, order=order) for order in phonebook.ORDERS for n in (4, 8, 16, 32, 64)),
    "recall": tuple(recall.Recall(kind, n) for kind in recall.KINDS for n in (4, 8, 16, 32)),
    "ruler-small": tuple(ruler.Ruler(kind, 2**n) for n in range(8, 12) for kind in ruler.KINDS),
    "ruler": tuple(ruler.Ruler(kind, 2**n) for n in range(12, 18) for kind in ruler.KINDS),
}
LOT = 32  # items that are asked between two saves
SUFFIX = ".jsonl"


def tasks(names: Sequence[str], overrides: Sequence[str] = (), lengths: Sequence[int] = ()) -> list[Task]:
    """The tasks of suites, and of files of multiple-choice questions (.jsonl), with overrides in those that have the
    field.

    Tasks that need a file of the user's (`missing`: RULER's essays=PATH, questions=PATH) are left out where it is not
    given. lengths: tokens of a prompt with its answer, for tasks made to a length, in place of the suites' own sizes.
    Raises ValueError for an unknown suite, naming the nearest, and for an override or lengths that no task has.
    """
    found: list[Task] = []
    for name in names:
        if name.endswith(SUFFIX):
            found += [choices.Choices(name, form) for form in choices.FORMS]
        elif name in SUITES:
            found += SUITES[name]
        else:
            raise ValueError(f"no suite {name!r}; {nearest(name, SUITES)}, or a file of questions ({SUFFIX})")
    if not found:
        raise ValueError(f"no suite given; {nearest('', SUITES)}, or a file of questions ({SUFFIX})")
    for assignment in overrides:
        missing: list[UnknownName] = []
        for place, task in enumerate(found):
            try:
                found[place] = override(task, assignment)
            except UnknownName as error:
                missing.append(error)
        if len(missing) == len(found):
            raise next((error for error in missing if "did you mean" in str(error)), missing[0])
    wanting = sorted({task.missing for task in found if getattr(task, "missing", "")})
    found = [task for task in found if not getattr(task, "missing", "")]
    if not found:
        raise ValueError(
            f"{', '.join(names)}: all of these tasks need a file; give {', '.join(f'{each}=PATH' for each in wanting)}"
        )
    if lengths:
        made = [dataclasses.replace(task, length=n) for n in lengths for task in found if hasattr(task, "length")]
        if not made:
            raise ValueError(f"no task of {', '.join(names)} has a length; leave lengths out")
        found = list({task.name: task for task in made}.values())  # sizes that differ otherwise come to one
    found = list({(task.name, getattr(task, "path", "")): task for task in found}.values())  # an override made two one
    names = [task.name for task in found]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise ValueError(f"two tasks are called {twice!r}; give files of different names")
    return found


def place(subject: Subject, run: Path | str) -> Path:
    """Where the items of this model with this tokenizer are kept."""
    weights = weights_hash({name: np.asarray(leaf) for name, leaf in named(subject.model).items()})
    key = hashlib.sha256(f"{weights} {checksum(subject.tokenizer)}".encode()).hexdigest()[:8]
    return Path(run) / "suite" / key


def evaluate(
    subject: Subject,
    tasks: Sequence[Task],
    folder: Path,
    *,
    batch: int = BATCH,
    cut: bool = False,
    progress: bool = False,
) -> dict[str, dict]:
    """The results by task: `summary`, or {"error": why} of one that failed, which leaves the others as they are.

    Of a task that no item is short enough for with this tokenizer it is {"left_out": why}. A task with a prompt that is
    longer than the model's positions fails; cut: ask without its beginning instead (workbench.evaluate.score).

    Raises ValueError if the tokenizer is not the model's, and if pyarrow, which keeps the items, is not there.
    """
    _pyarrow()
    subject.check()

    def asking() -> Iterator[tuple[str, Callable[[], dict]]]:
        for task in tasks:
            bar.set_description(task.name)
            done = bar.n + _size(task)
            yield task.name, partial(ask, subject, task, folder, batch, bar, cut)
            bar.update(done - bar.n)

    with tqdm(total=sum(map(_size, tasks)), unit="item", disable=not progress) as bar:
        return each_alone(asking(), folder)


def each_alone(asking: Iterable[tuple[str, Callable[[], dict]]], folder: Path) -> dict[str, dict]:
    """What each (task, how to ask it) says, or {"left_out": why} or {"error": why}, which leave the others as they are.

    All are kept in results.json as they come, beside those of tasks that were asked before.
    """
    folder.mkdir(parents=True, exist_ok=True)
    results, asked = read_json(folder / "results.json") or {}, []
    for name, ask in asking:
        before = results.get(name, {})
        try:
            results[name] = ask()
            if "overlapping" in before and before["digest"] == results[name]["digest"]:
                results[name]["overlapping"] = before["overlapping"]
        except TooShort as why:
            results[name] = {"left_out": str(why)}
        except Exception as error:  # whatever is wrong with one task
            results[name] = {"error": _why(error)}
        asked.append(name)
        write_json(folder / "results.json", results)
    return {name: results[name] for name in asked}


def _why(error: BaseException) -> str:
    """What it says; with its kind if it is not one of ours, and with what caused it."""
    said = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
    return f"{said} ({_why(error.__cause__)})" if error.__cause__ and not isinstance(error, ValueError) else said


def _size(task: Task) -> int:
    """Items, 0 where the file that they come from cannot be read: asking them says why."""
    try:
        return len(task)
    except (ValueError, OSError):
        return 0


def ask(
    subject: Subject, task: Task, folder: Path, batch: int = BATCH, bar: tqdm | None = None, cut: bool = False
) -> dict[str, Any]:
    """Asks the items that have no answer yet, keeps all as parquet, and gives their summary.

    A row is an item: its task, number and digest, and what the item says (workbench.evaluate.tasks.item), and

        trial               which answer to the same item: 0, since greedy decoding has one
        perturbation        which way of asking the same question, where the task has several: the phone book's order,
                            the form of multiple choice; "" of others
        completion          what was generated, raw; tokens_generated of it
        log_probabilities   of each choice after the prompt, in nats
        probability         of the answer, see `probability`
        straddles           whether a choice begins within a token
        cut                 whether the prompt was longer than the model's positions and lost its beginning
        prompt_tokens       of the whole prompt, its boundary among them
        seconds             an item's share of the time that its lot took
        metrics             by name, the task's first one first

    An answer to a prompt that was cut is used again only where prompts may be cut.
    """
    if not len(task):
        raise ValueError("the task has no items")
    items = [task.item(index, subject.tokenizer) for index in range(len(task))]
    digests = [digest(item) for item in items]
    log, kept = folder / f"{task.name}{SUFFIX}", folder / f"{task.name}.parquet"
    before = read_items(kept)
    rows = {row["item"]: row for row in [*_answers(before), *read_rows(log)]}
    rows = {index: row for index, row in rows.items() if index < len(items) and row["digest"] == digests[index]}
    rows = {index: row for index, row in rows.items() if cut or not row.get("cut")}
    if log.exists():  # its last line may have been cut short
        write_text(log, "".join(json.dumps(row) + "\n" for row in rows.values()))
    missing = [index for index in range(len(items)) if index not in rows]
    if bar is not None:
        bar.update(len(items) - len(missing))
    for first in range(0, len(missing), LOT):
        lot = missing[first : first + LOT]
        for index, answer in zip(lot, _asked(subject, [items[index] for index in lot], batch, cut), strict=True):
            rows[index] = {"item": index, "digest": digests[index], **answer}
            add_row(log, rows[index])
        if bar is not None:
            bar.update(len(lot))
    table = [_row(task, item, rows[index]) for index, item in enumerate(items)]
    write_items(kept, [*table, *(row for row in before if row["item"] >= len(items))])  # of a greater count
    log.unlink(missing_ok=True)
    return summary(table)


def answered(subject: Subject, task: Task, items: Mapping[int, Item], batch: int = BATCH) -> list[dict[str, Any]]:
    """The rows of a task's items, given by their numbers, as `ask` makes them; nothing is kept."""
    numbers, rows = list(items), []
    for first in range(0, len(numbers), LOT):
        lot = numbers[first : first + LOT]
        for index, answer in zip(lot, _asked(subject, [items[index] for index in lot], batch), strict=True):
            rows.append(_row(task, items[index], {"item": index, "digest": digest(items[index]), **answer}))
    return rows


def _row(task: Task, item: Item, answer: Mapping[str, Any]) -> dict[str, Any]:
    metrics = task.score(item, Answer(answer["completion"], tuple(answer["log_probabilities"])))
    return row_of(task.name, item, answer, metrics, getattr(task, "perturbation", ""))


def row_of(
    task: str, item: Item, answer: Mapping[str, Any], metrics: Mapping[str, float] | None, perturbation: str = ""
) -> dict[str, Any]:
    """What is kept of an item (see `ask`); answer: its number and digest, and what was answered.

    metrics: None where the scores are of all items together.
    """
    return {
        "task": task,
        "item": answer["item"],
        "trial": 0,
        "perturbation": perturbation,
        **answer,
        **{name: _plain(value) for name, value in item._asdict().items() if name not in ("stop", "tokens")},
        "cluster": item.cluster or f"item {answer['item']}",
        "cut": bool(answer.get("cut")),
        "probability": probability(item, answer["log_probabilities"]),
        "metrics": metrics,
    }


def scan(folder: Path, names: Sequence[str], documents: Iterable[str]) -> dict[str, dict]:
    """Counts the items of these tasks that overlap the documents of training (workbench.evaluate.contamination).

    The count, `overlapping`, is kept with the results, which are returned; what was counted is not counted again.
    """
    results = read_json(folder / "results.json") or {}
    owners = []
    for name in names:
        if "digest" in results.get(name, {}) and "overlapping" not in results[name]:  # it has items of its own
            owners += [
                (name, " ".join([row["prompt"], *row["references"]])) for row in read_items(folder / f"{name}.parquet")
            ]
            results[name]["overlapping"] = 0
    if owners:
        for index in overlapping([text for _, text in owners], documents):
            results[owners[index][0]]["overlapping"] += 1
        write_json(folder / "results.json", results)
    return {name: results[name] for name in names if name in results}


def digest(item: Item) -> str:
    """Of everything that is asked and how; the same on every machine."""
    plain = {name: _plain(value) for name, value in item._asdict().items()}
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return list(value)
    return dict(value) or None if hasattr(value, "keys") else value


def _asked(subject: Subject, items: Sequence[Item], batch: int, cut: bool = False) -> Iterator[dict[str, Any]]:
    """The raw answers of a lot: the three questions come down to two, for a text is a continuation of nothing."""
    begun = time.perf_counter()
    wanted = [index for index, item in enumerate(items) if item.tokens]
    completions = {}
    for stop, room in sorted({(items[index].stop, items[index].tokens) for index in wanted}):
        lot = [index for index in wanted if (items[index].stop, items[index].tokens) == (stop, room)]
        given = generate_until(subject, [items[index].prompt for index in lot], stop, room, batch=batch, cut=cut)
        completions |= dict(zip(lot, given, strict=True))
    pairs = [(item.prompt, choice) for item in items for choice in item.choices]
    scores = iter(loglikelihood(subject, pairs, batch=batch, cut=cut))
    found = [[next(scores) for _ in item.choices] for item in items]
    lengths = [len(each.ids) + 1 for each in subject.tokenizer.encode([item.prompt.encode() for item in items])]
    seconds = (time.perf_counter() - begun) / len(items)
    for index, (item, of_choices, length) in enumerate(zip(items, found, lengths, strict=True)):
        completion = completions.get(index)
        over = item.tokens and beyond(subject.model, length + item.tokens)
        yield {
            "completion": completion.text if completion else "",
            "log_probabilities": [score.log_probability for score in of_choices],
            "straddles": any(score.straddles for score in of_choices),
            "cut": bool(over) or any(score.cut for score in of_choices),
            "prompt_tokens": length,
            "tokens_generated": len(completion.tokens) if completion else 0,
            "seconds": seconds,
        }


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Each metric's mean with its 95% interval, clustered; the first is held against chance.

    at_chance: the interval holds chance, so that the score says nothing; None where one cluster gives no interval, and
    where chance is None: not known. Items may have a weight, else each counts once, and may lack a metric.
    """
    metrics = {name: _interval(rows, name) for name in rows[0]["metrics"] or {}}
    low, high = next(((first["low"], first["high"]) for first in metrics.values()), (None, None))
    chances = [row["chance"] for row in rows]
    chance = None if None in chances else float(np.mean(chances))
    return {
        "items": len(rows),
        "clusters": len({row["cluster"] for row in rows}),
        "digest": hashlib.sha256("".join(row["digest"] for row in rows).encode()).hexdigest()[:16],
        "chance": chance,
        "at_chance": None if low is None or chance is None else low <= chance <= high,
        "straddles": sum(row["straddles"] for row in rows),
        "cut": sum(bool(row.get("cut")) for row in rows),  # which items that were kept before do not say
        "merges_digits": any((row["facts"] or {}).get("merges_digits", False) for row in rows),
        "metrics": metrics,
    }


def _interval(rows: Sequence[dict[str, Any]], metric: str) -> dict[str, float | None]:
    """Of the items that have the metric; without low and high below two clusters."""
    rows = [row for row in rows if row["metrics"].get(metric) is not None]
    _, cluster = np.unique([row["cluster"] for row in rows], return_inverse=True)
    values, weights = np.array([row["metrics"][metric] for row in rows], float), weights_of(rows)
    totals, asked = np.bincount(cluster, weights * values), np.bincount(cluster, weights)
    if len(asked) < 2:
        return {"mean": float(totals.sum() / asked.sum()), "low": None, "high": None}
    share = values.min() >= 0 and values.max() <= 1 and (weights == 1).all()
    return (clustered if share else clustered_mean)(totals, asked)._asdict()


def weights_of(rows: Sequence[dict[str, Any]]) -> np.ndarray:
    """1 of an item that has none."""
    return np.array([row.get("weight", 1.0) for row in rows], float)


def table(results: dict[str, dict], every: bool = False) -> str:
    """A line a task: its first metric, which stands in brackets where it cannot be told from chance.

    every: a line a metric. Beside it stands its interval, or where it has one its standard error.
    """
    lines = []
    for name, found in results.items():
        if why := found.get("error") or found.get("left_out"):
            lines.append((name, "failed" if "error" in found else "left out", why))
            continue
        noted = f"{found['items']} items"
        if found["at_chance"]:
            noted = f"{noted}; at chance, {found['chance']:.3f}"
        if found["straddles"]:
            noted += f"; {found['straddles']} with a token across the cut"
        if found.get("cut"):
            noted += f"; {found['cut']} without the beginning, for the model's positions"
        if found["merges_digits"]:
            noted += "; its tokens merge digits"
        if found.get("overlapping"):
            noted += f"; {found['overlapping']} overlap the training corpus"
        for place, (metric, share) in enumerate(found["metrics"].items()):
            if place and not every:
                break
            text = f"{share['mean']:.3f}"
            if share.get("error") is not None:
                text += f" ± {share['error']:.3f}"
            elif share["low"] is not None:
                text += f" [{share['low']:.3f}, {share['high']:.3f}]"
            if found["at_chance"] and not place:
                text = f"({text})"
            lines.append((name, f"{metric} {text}", "" if place else noted))
    widths = [max((len(line[column]) for line in lines), default=0) for column in range(2)]
    return "\n".join(f"{a.ljust(widths[0])}  {b.ljust(widths[1])}  {c}".rstrip() for a, b, c in lines)


# ---- items on the disk


def _pyarrow():
    try:
        import pyarrow.parquet
    except ImportError:
        raise ValueError(
            "items are kept as parquet, which needs the package pyarrow; install the extra data: "
            "pip install 'architecture-workbench[data]'"
        ) from None
    return pyarrow


def write_items(path: Path, rows: list[dict[str, Any]]) -> None:
    """Whole or not at all."""
    pyarrow = _pyarrow()
    part = path.with_name(f".{path.name}.part")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), part)
    part.replace(path)


def read_items(path: Path | str) -> list[dict[str, Any]]:
    """A task's items as they were written, [] if the file is not there."""
    return _pyarrow().parquet.read_table(path).to_pylist() if Path(path).exists() else []


ANSWERED = ("item", "digest", "completion", "log_probabilities", "straddles", "cut")
ANSWERED += ("prompt_tokens", "tokens_generated", "seconds")


def _answers(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What was answered, without what follows from the item."""
    return [{name: row[name] for name in ANSWERED if name in row} for row in rows]
