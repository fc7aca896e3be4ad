"""Phonebook in text, for language models that were trained on text: a book in the prompt, then one number is asked for.

Source: Waleffe et al. 2024, arXiv:2406.07887, section 3.3.1. Both orders end with `Answer:`, so that the number is what
follows, and a book of n entries is the beginning of the same book with more.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass

import numpy as np

from workbench.config import nearest
from workbench.data.tokenizer import Tokenizer
from workbench.evaluate.tasks.item import Answer, Item, fitted, generator, tokens
from workbench.evaluate.tasks.words import FIRST, LAST

ORDERS = ("standard", "reversed")
ANSWER = 16  # tokens: a number and what ends it, if each character is one
QUESTION = "What is the phone number for {}?\nAnswer:"


@dataclass(frozen=True)
class Phonebook:
    """`entries` of each book, or as many as make prompt and answer `length` tokens long."""

    entries: int = 20
    length: int = 0  # tokens; 0: as many as `entries` takes
    order: str = "standard"  # the book, two examples, the question; or "reversed": the question before the book too
    depths: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)  # of the asked-for entries; every book is asked for each
    count: int = 50

    def __post_init__(self):
        if self.order not in ORDERS:
            raise ValueError(f"order {self.order!r}: {nearest(self.order, ORDERS)}")
        if not 3 <= self.entries <= len(FIRST) * len(LAST):
            raise ValueError(f"entries is {self.entries}; a book has from 3 (one asked for, two shown) to 90,282")
        if not self.depths or not all(0 <= depth <= 1 for depth in self.depths):
            raise ValueError(f"depths are {self.depths}; give some from 0 (the first entry) to 1 (the last)")

    @property
    def name(self) -> str:
        return f"phonebook-{self.order}-{f'{self.length}-tokens' if self.length else self.entries}"

    @property
    def perturbation(self) -> str:
        return self.order

    def __len__(self) -> int:
        return self.count

    def item(self, index: int, tokenizer: Tokenizer) -> Item:
        book, question = divmod(index, len(self.depths))
        depth = self.depths[question]
        names, numbers = _book(book)

        def prompt(entries: int) -> str:
            return self._prompt(names, numbers, entries, _place(depth, entries), generator(f"examples {book}", index))

        entries = self.entries
        if self.length:
            limit = self.length - ANSWER
            entries = fitted(lambda n: tokens(tokenizer, prompt(n)), 3, limit, f"the prompt of {self.name}")
        place = _place(depth, entries)
        number = _number(numbers, place)
        facts = {
            "entries": entries,
            "place": place,
            "depth": depth,
            **spelling(tokenizer),
        }
        return Item(
            prompt(entries),
            (number,),
            (f" {number}",),
            ("\n",),
            ANSWER,
            chance=1 / entries,
            cluster=f"book {book}",
            facts=facts,
        )

    def _prompt(
        self, names: np.ndarray, numbers: np.ndarray, entries: int, place: int, rng: np.random.Generator
    ) -> str:
        lines = [f"{_name(names, i)}: {_number(numbers, i)}" for i in range(entries)]
        others = [i for i in rng.permutation(entries).tolist() if i != place][:2]
        name = _name(names, place)
        if self.order == "standard":
            shown = [f"{QUESTION.format(_name(names, i))} {_number(numbers, i)}" for i in others]
            return "\n".join([*lines, *shown, QUESTION.format(name)])
        return "\n".join(
            [
                "Given a phone book with entries of the form:",
                *(lines[i] for i in others),
                "... and so on.",
                f"Please find the phone number for {name}.",
                "I will ask you for this phone number later.",
                "Memorize it so you can respond correctly.",
                f"Remember {name}.",
                "Here is the phonebook:",
                "",
                *lines,
                "Okay, that is the end of the phonebook.",
                f"Remember when I asked you to memorize the phone number for {name}?",
                QUESTION.format(name),
            ]
        )

    def score(self, item: Item, answer: Answer) -> dict[str, float]:
        """Exact match of the greedy answer; its digits that are right, place by place; the number's nats."""
        (number,) = item.references
        wanted, given = (re.sub(r"\D", "", text) for text in (number, answer.completion))
        return {
            "exact_match": float(answer.completion.strip() == number),
            "digit_accuracy": sum(a == b for a, b in zip(wanted, given, strict=False)) / len(wanted),
            "log_probability": answer.log_probabilities[0],
        }


@functools.lru_cache(maxsize=4)
def _book(book: int) -> tuple[np.ndarray, np.ndarray]:
    """All names in the book's order, and a number for each: area and exchange 200-999, subscriber 1000-9999."""
    rng = generator("phonebook", book)
    names = rng.permutation(len(FIRST) * len(LAST))
    return names, rng.integers([200, 200, 1000], [1000, 1000, 10_000], (len(names), 3))


def _place(depth: float, entries: int) -> int:
    return round(depth * (entries - 1))


def _name(names: np.ndarray, entry: int) -> str:
    first, last = divmod(int(names[entry]), len(LAST))
    return f"{FIRST[first]} {LAST[last]}"


def _number(numbers: np.ndarray, entry: int) -> str:
    return "-".join(map(str, numbers[entry].tolist()))


@functools.lru_cache(maxsize=4)
def spelling(tokenizer: Tokenizer) -> dict[str, float | bool]:
    """What a tokenizer makes of an entry: tokens an entry and tokens with digits a digit, over a book of 100.

    merges_digits: whether some token holds two digits or more, so that looking up a number is looking up fewer parts.
    """
    names, numbers = _book(0)
    lines = "".join(f"{_name(names, i)}: {_number(numbers, i)}\n" for i in range(100)).encode()
    ends = np.cumsum(tokenizer.encode([lines])[0].lengths)
    digits = [sum(48 <= byte <= 57 for byte in lines[a:b]) for a, b in zip([0, *ends], ends, strict=False)]
    return {
        "tokens_per_entry": len(ends) / 100,
        "tokens_per_digit": sum(d > 0 for d in digits) / sum(digits),
        "merges_digits": max(digits) > 1,
    }
