"""Recall by rule: something to keep in mind, then questions about it, where only the answers are learned.

    mqar               k v k v ... |  k v  k v ...     multi-query associative recall: each key's value
    trigrams           a b v a c w |  a c w  a b v     in-context n-grams: what follows two symbols, and neither alone
    copying            a b c       |  a b c
    selective-copying  . a . . b c |  a b c            blanks are passed over
    induction          a b | c d   |  c                what followed the mark before

Everything is drawn anew for each document, and a hash of what is to be kept puts each document in one split, so that no
document that is tested was ever trained on. Sources: Arora et al. 2023, arXiv:2312.04927 (whose queries stand among
filler; here they follow each other, drawn with replacement, each with its answer); Akyürek et al. 2024,
arXiv:2401.12973, for n-grams of a language of the document's own (whose languages are random automata; here a table of
what follows each two symbols, with one right answer); Jelassi et al. 2024, arXiv:2402.01032; Gu & Dao 2023,
arXiv:2312.00752, section 4.1.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from workbench.config import LOOKUPS, RecallConfig
from workbench.data import rule

PADDING, MARK, BLANK, SYMBOL = 0, 1, 2, 3  # ids: padding, the mark, a blank, then the symbols
BLANKS = 3  # for each symbol that is copied selectively
ATTEMPTS = 1000  # at a document of the split


class Documents(NamedTuple):
    """n documents: what is to be kept [n, c], then q questions [n, q, a], each with its answer [n, q, d], as tokens."""

    content: np.ndarray
    asked: np.ndarray
    answers: np.ndarray


def documents(config: RecallConfig, split: str, size: int, count: int, rng: np.random.Generator) -> Documents:
    """`count` documents of `size` pairs, trigrams or symbols, that fall in the split.

    Raises ValueError if there are too few different ones.
    """
    found = _drawn(config, size, count, rng)
    for _ in range(ATTEMPTS):
        wrong = np.flatnonzero(~rule.within(split_of(found.content), split))
        if wrong.size == 0:
            return found
        for kept, new in zip(found, _drawn(config, size, wrong.size, rng), strict=True):
            kept[wrong] = new
    raise ValueError(
        f"{config.kind} of size {size} with {config.symbols} symbols has too few different documents for the {split} "
        "split; give data.symbols or data.sizes more"
    )


def split_of(content: np.ndarray) -> np.ndarray:
    """Tenth (0-9) of the hash range in which each document's content [n, c] falls."""
    x = np.zeros(len(content), np.uint64)
    for column in content.astype(np.uint64).T:
        x = rule.mixed(x ^ column)
    return rule.tenth(x)


def _drawn(config: RecallConfig, size: int, count: int, rng: np.random.Generator) -> Documents:
    mark = np.full((count, 1), MARK, np.int32)
    if config.kind in LOOKUPS:
        keys = _keys(config, size, count, rng)
        half = config.symbols // 2
        values = half + rng.integers(0, half, (count, size, 1))
        held = np.concatenate([keys, values], axis=-1).astype(np.int32) + SYMBOL
        order = rng.integers(0, size, (count, size))
        queries = np.take_along_axis(held, order[..., None], axis=1)
        content = np.concatenate([held.reshape(count, -1), mark], axis=1)
        return Documents(content, queries[..., :-1], queries[..., -1:])
    symbols = rng.integers(SYMBOL, SYMBOL + config.symbols, (count, size)).astype(np.int32)
    if config.kind == "copying":
        return Documents(symbols, mark[:, None], symbols[:, None].copy())
    if config.kind == "selective-copying":
        content = np.full((count, size * (1 + BLANKS)), BLANK, np.int32)
        places = np.sort(np.argsort(rng.random(content.shape), axis=1)[:, :size], axis=1)
        np.put_along_axis(content, places, symbols, axis=1)
        return Documents(content, mark[:, None], symbols[:, None].copy())
    place = rng.integers(0, size, (count, 1))
    after = np.arange(size)[None] >= place
    content = np.full((count, size + 1), MARK, np.int32)
    np.put_along_axis(content, np.arange(size)[None] + after, symbols, axis=1)
    return Documents(content, mark[:, None], np.take_along_axis(symbols, place, axis=1)[:, None])


def _keys(config: RecallConfig, size: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """Distinct keys [count, size, 1 or 2] from half of the symbols; of trigrams most of all pairs of a few of these."""
    symbols = np.argsort(rng.random((count, config.symbols // 2)), axis=1)
    if config.kind == "mqar":
        return symbols[:, :size, None]
    few = math.isqrt(size - 1) + 1
    pairs = np.argsort(rng.random((count, few**2)), axis=1)[:, :size]
    places = np.stack([pairs // few, pairs % few], axis=-1)
    return np.take_along_axis(symbols, places.reshape(count, -1), axis=1).reshape(places.shape)


class RecallStream:
    """Rows of documents for training; each row holds documents of one size."""

    def __init__(self, config: RecallConfig, split: str = "train"):
        self.config, self.split = config, rule.known(split)
        self.lengths = {size: length(config, size) for size in config.sizes}
        for size, needed in self.lengths.items():
            if needed > config.length:
                raise ValueError(
                    f"a document of {config.kind} of size {size} takes {needed} tokens and a row has {config.length}; "
                    f"set data.length={needed} or more"
                )

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """tokens, targets, segments [B, T] int32; weights [B, T] float32, 1 where the target is of an answer."""
        return rule.rows(self.config, self.split, step, self.lengths, self._documents)

    def _documents(self, size: int, count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        content, asked, answers = documents(self.config, self.split, size, count, rng)
        questions = np.concatenate([asked, answers], axis=-1)
        tokens = np.concatenate([content, questions.reshape(count, -1)], axis=1)
        answer = np.zeros(questions.shape[-1], np.float32)
        answer[asked.shape[-1] - 1 : -1] = 1  # predicted from the position before
        weights = np.zeros(tokens.shape, np.float32)
        weights[:, content.shape[1] :] = np.tile(answer, questions.shape[1])
        return tokens, weights

    def facts(self) -> dict:
        return {
            "task": self.config.kind,
            "split": self.split,
            "tokens_per_step": self.config.batch * self.config.length,
        }


def length(config: RecallConfig, size: int) -> int:
    """Tokens of a document with its questions and answers."""
    content, asked, answers = _drawn(config, size, 1, np.random.default_rng(0))
    return content.shape[1] + asked.shape[1] * (asked.shape[2] + answers.shape[2])
