"""Suites of tasks in text that a model is asked while it trains; their items are rows of the run, not files of a suite.

On "test" a task has the items that `workbench evaluate --suite` asks. On "select" it has as many others: what is looked
at on the way is not what is reported. Of a task that is made by rule they begin at item 720,720; of a file of questions
they are those after the test's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from workbench.config import ModelConfig
from workbench.data.tokenizer import Tokenizer
from workbench.evaluate import suite
from workbench.evaluate.items import Scored
from workbench.evaluate.score import Subject
from workbench.evaluate.tasks.item import Item, Task, TooShort, tokens
from workbench.generate import check_positions
from workbench.model.language_model import LanguageModel

SPLITS = ("test", "select")
FAR = 720_720  # first item on select of a task that is made by rule; a multiple of 1 to 16, so that books are whole


def evaluator(words: Sequence[str], model: ModelConfig, tokenizer: Tokenizer) -> Callable[[LanguageModel, str], Scored]:
    """A function of (model, split): {task: {mean, low, high, items, digest, chance, at_chance, ..., metrics}}.

    words: suites and files of questions, and NAME=VALUE for fields of their tasks (workbench.evaluate.suite.tasks).
    Of a task the numbers are those of `suite.summary`, the mean and its interval those of the first metric. A task that
    has no item as short with this tokenizer has {"left_out": why}. Rows: an item each, as a suite keeps it, but for the
    seconds that it took, so that the same weights give the same rows.

    Items are made here, once. Raises ValueError for an unknown suite or field, for a file that is not there or has not
    enough questions for both splits, for a prompt longer than the model's positions, and if every task is left out.
    """
    tasks = suite.tasks([word for word in words if "=" not in word], [word for word in words if "=" in word])
    items: dict[str, dict[str, dict[int, Item]]] = {}
    left_out: dict[str, str] = {}
    for task in tasks:
        try:
            items[task.name] = {split: _items(task, split, tokenizer) for split in SPLITS}
        except TooShort as why:
            left_out[task.name] = str(why)
            continue
        longest = max(_size(item, tokenizer) for each in items[task.name].values() for item in each.values())
        what = f"the longest prompt of {task.name}, with its answer,"
        check_positions(model, what, longest, advice="ask shorter ones")
    if not items:
        raise ValueError(
            f"{', '.join(words)}: no task has an item as short, for instance {next(iter(left_out.values()))}"
        )

    def evaluate(model: LanguageModel, split: str = "test") -> Scored:
        subject, found, rows = Subject(model, tokenizer), {}, []
        for task in tasks:
            if task.name in left_out:
                found[task.name] = {"left_out": left_out[task.name]}
                continue
            own = suite.answered(subject, task, items[task.name][split])
            rows += [{name: value for name, value in row.items() if name != "seconds"} for row in own]
            found[task.name] = _scores(own)
        return Scored(found, rows)

    return evaluate


def _items(task: Task, split: str, tokenizer: Tokenizer) -> dict[int, Item]:
    """Those of a split, by their number in the task."""
    count, available = len(task), getattr(task, "available", None)
    if not count:
        raise ValueError(f"{task.name} has no items; give count=1 or more")
    if available is not None and 2 * count > available:
        raise ValueError(
            f"{task.name} has {available} questions; {count} on test and as many others on the way are too many: "
            f"give a longer file{f', or count={available // 2}' * (available > 1)}"
        )
    first = 0 if split == "test" else FAR if available is None else count
    return {index: task.item(index, tokenizer) for index in range(first, first + count)}


def _size(item: Item, tokenizer: Tokenizer) -> int:
    """Tokens of an item with its boundary and its answer, at most."""
    texts = [tokens(tokenizer, item.prompt + choice) for choice in item.choices]
    return 1 + max([tokens(tokenizer, item.prompt) + item.tokens, *texts])


def _scores(rows: list[dict[str, Any]]) -> dict[str, Any]:
    found = suite.summary(rows)
    return next(iter(found["metrics"].values())) | found
