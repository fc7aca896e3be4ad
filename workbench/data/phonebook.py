"""Phone books by rule: `name number name number ... ? name number ...`, where only the asked-for numbers are learned.

Numbers are drawn anew for every book, so that an answer can come from the context alone. A hash of (name, number)
puts each pair in one split, so no pair that is tested was ever trained on. After Waleffe et al. 2024,
arXiv:2406.07887, section 3.3.1, whose Phonebook is prompt-only; this one is trained on.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np

from workbench.config import PhonebookConfig
from workbench.data import rule
from workbench.data.rule import SPLITS, known

PADDING, QUERY, DIGIT, NAME = 0, 1, 2, 12  # ids: padding, the query mark, then ten digits, then the names' tokens


class Books(NamedTuple):
    """n books of k entries: names as tokens [n, k, name_tokens], numbers as tokens [n, k, digits]."""

    names: np.ndarray
    numbers: np.ndarray


def books(config: PhonebookConfig, split: str, entries: int, count: int, rng: np.random.Generator) -> Books:
    """`count` books of `entries` distinct names each, numbers uniform over those that the split allows.

    Raises ValueError if a book needs more names than there are.
    """
    known(split)
    if entries > config.names:
        raise ValueError(
            f"a book of {entries} entries needs as many names and there are {config.names}; "
            f"set data.names={entries} (and the model's vocabulary with it) or ask for smaller books"
        )
    chosen = np.argsort(rng.random((count, config.names)), axis=1)[:, :entries]
    numbers = _numbers(config, split, chosen, rng)
    places = 10 ** np.arange(config.digits)[::-1]
    digits = numbers[..., None] // places % 10
    return Books(name_tokens(config, chosen), (digits + DIGIT).astype(np.int32))


def name_tokens(config: PhonebookConfig, index: np.ndarray) -> np.ndarray:
    """The tokens of names by their index: a name of t tokens is the index in base ceil(names ** (1/t))."""
    base = _base(config)
    places = base ** np.arange(config.name_tokens)[::-1]
    return (index[..., None] // places % base + NAME).astype(np.int32)


def _base(config: PhonebookConfig) -> int:
    base = 1
    while base**config.name_tokens < config.names:
        base += 1
    return base


def split_of(config: PhonebookConfig, name: np.ndarray, number: np.ndarray) -> np.ndarray:
    """Tenth (0-9) of the hash range in which a (name index, number) pair falls; independent of any seed."""
    return rule.tenth(name.astype(np.uint64) * np.uint64(10**config.digits) + number.astype(np.uint64))


@functools.cache
def _allowed(config: PhonebookConfig, split: str) -> np.ndarray:
    """Whether each name has any number in the split; looked at where numbers are so few that one could have none."""
    if config.digits > 2:
        return np.ones(config.names, bool)
    tenth = split_of(config, np.arange(config.names)[:, None], np.arange(10**config.digits)[None])
    low, high = SPLITS[split]
    return ((tenth >= low) & (tenth < high)).any(axis=1)


def _numbers(config: PhonebookConfig, split: str, names: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A number for each name, redrawn until its pair falls in the split."""
    low, high = SPLITS[split]
    allowed = _allowed(config, split)
    if not allowed[np.unique(names)].all():
        raise ValueError(
            f"numbers of {config.digits} digits are too few: some names have none in the {split} split; "
            f"set data.digits={config.digits + 1} or more"
        )
    owners = names.ravel()
    numbers = rng.integers(0, 10**config.digits, owners.size)
    drawn = np.arange(owners.size)  # those not yet known to be right
    while True:
        tenth = split_of(config, owners[drawn], numbers[drawn])
        drawn = drawn[(tenth < low) | (tenth >= high)]
        if drawn.size == 0:
            return numbers.reshape(names.shape)
        numbers[drawn] = rng.integers(0, 10**config.digits, drawn.size)


class PhonebookStream:
    """Rows of books for training. Each row holds books of one size, each with as many queries as entries.

    Every query is a uniform draw from the book, whatever was asked before. Were each entry asked once, a model could
    answer with those not asked yet and be right H(k)/k of the time (75% for two entries) without looking anything up.
    """

    def __init__(self, config: PhonebookConfig, split: str = "train"):
        self.config, self.split = config, known(split)
        if config.batch < 1:
            raise ValueError(f"data.batch must be at least 1; got {config.batch}")
        self.entry = config.name_tokens + config.digits
        self.lengths = {k: self.document(k) for k in config.entries}
        for k, needed in self.lengths.items():
            if needed > config.length:
                raise ValueError(
                    f"a book of {k} entries with its queries takes {needed} tokens and a row has "
                    f"{config.length}; set data.length={needed} or more"
                )

    def document(self, entries: int) -> int:
        """Tokens of a book with its queries."""
        return 2 * entries * self.entry + 1

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """tokens, targets, segments [B, T] int32; weights [B, T] float32, 1 where the target is an asked-for digit."""
        return rule.rows(self.config, self.split, step, self.lengths, self._documents)

    def _documents(self, k: int, count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Books with their queries as tokens [count, length], and the weight of each position's target."""
        names, numbers = books(self.config, self.split, k, count, rng)
        entries = np.concatenate([names, numbers], axis=-1)
        order = rng.integers(0, k, (count, k))
        asked = np.take_along_axis(entries, order[..., None], axis=1)
        mark = np.full((count, 1), QUERY, np.int32)
        tokens = np.concatenate([entries.reshape(count, -1), mark, asked.reshape(count, -1)], axis=1)
        answer = np.zeros(self.entry, np.float32)
        answer[self.config.name_tokens - 1 : self.entry - 1] = 1  # predicted from the position before
        weights = np.zeros(tokens.shape, np.float32)
        weights[:, k * self.entry + 1 :] = np.tile(answer, k)
        return tokens, weights

    def facts(self) -> dict:
        return {"task": "phonebook", "split": self.split, "tokens_per_step": self.config.batch * self.config.length}
