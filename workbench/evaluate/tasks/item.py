"""What a task of the suite is: a rule that makes items one by one, and how an answer is scored.

An item follows from its task and its index alone, so the first ten are the same whether ten are asked or a thousand.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from workbench.data.tokenizer import Tokenizer


class Item(NamedTuple):
    """One question of a task.

    prompt: begins a document. references: what a right answer holds. choices: continuations whose likelihood is asked
    for. tokens: at most so many are generated, until a stop string; 0 for none. chance: the score of an answer that
    knows nothing. cluster: items of one cluster (the questions about a book) are right or wrong together. facts: what
    is kept beside the score, such as depth and length.
    """

    prompt: str
    references: tuple[str, ...]
    choices: tuple[str, ...] = ()
    stop: tuple[str, ...] = ()
    tokens: int = 0
    chance: float = 0.0
    cluster: str = ""
    facts: Mapping[str, float | int | str | bool] = {}


class Answer(NamedTuple):
    """completion: what was generated. log_probabilities: of each choice after the prompt, in nats."""

    completion: str
    log_probabilities: tuple[float, ...]


def probability(item: Item, log_probabilities: Sequence[float]) -> float | None:
    """Of the right answer after the prompt.

    With one choice, which then is the answer, it is the exponential of its log-probability: among all texts that could
    follow. With several it is the right one's share of their sum, as if one of them had to follow. None without
    choices, and where the first reference is none of several.
    """
    if not item.choices or (len(item.choices) > 1 and item.references[0] not in item.choices):
        return None
    nats = np.array(log_probabilities)
    if len(nats) == 1:
        return float(np.exp(nats[0]))
    chance = np.exp(nats - nats.max())
    return float(chance[item.choices.index(item.references[0])] / chance.sum())


@runtime_checkable
class Task(Protocol):
    """A frozen dataclass whose fields say everything about its items.

    One of several tasks that ask the same questions in other ways may have `perturbation: str`, which way it is. One
    whose items come from a file may have `available: int`, how many it holds; None or without it there is no end.
    """

    @property
    def name(self) -> str: ...

    def __len__(self) -> int:
        """How many items it has."""
        ...

    def item(self, index: int, tokenizer: Tokenizer) -> Item:
        """Raises ValueError if there is no such item, for instance none so short."""
        ...

    def score(self, item: Item, answer: Answer) -> dict[str, float]:
        """Metrics by name; the first is the one that `chance` is about. Those from 0 to 1 are shares of right."""
        ...


def generator(name: str, index: int) -> np.random.Generator:
    """Random numbers of one item of a task, or of one book of several items."""
    return np.random.Generator(np.random.Philox(key=_key(name), counter=[0, 0, 0, index]))


@functools.cache
def _key(name: str) -> int:
    return int.from_bytes(sha256(name.encode()).digest()[:16], "little")


def tokens(tokenizer: Tokenizer, text: str) -> int:
    """Of a text, without a boundary."""
    return len(tokenizer.encode([text.encode()])[0].ids)


def roomy(tokenizer: Tokenizer, answer: str) -> int:
    """Tokens for an answer and 8 more or a few: a multiple of 16, so that many items are generated together."""
    return -(-(tokens(tokenizer, f" {answer}") + 8) // 16) * 16


class TooShort(ValueError):
    """No item of the task is as short as was asked: with another tokenizer there may be one."""


def fitted(size: Callable[[int], int], least: int, limit: int, what: str) -> int:
    """The number of units, from `least` on, whose size is within the limit while one more unit is beyond it.

    Raises TooShort if the least is beyond it. The size is taken to grow by at least one a unit, roughly evenly.
    """
    low, high = (least, size(least)), None
    if low[1] > limit:
        raise TooShort(f"{what} has {low[1]} tokens at its shortest and {limit} are allowed; ask for a longer one")
    turn = 0
    while high is None or high[0] - low[0] > 1:
        if high is None:
            ask = 2 * low[0] + 8
        elif turn % 3 == 2:  # sizes that do not grow evenly
            ask = (low[0] + high[0]) // 2
        else:
            share = (limit - low[1]) / (high[1] - low[1])
            ask = min(max(low[0] + int(share * (high[0] - low[0])), low[0] + 1), high[0] - 1)
        found = (ask, size(ask))
        low, high = (found, high) if found[1] <= limit else (low, found)
        turn += 1
    return low[0]
