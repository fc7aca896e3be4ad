"""RULER's six tasks that need no corpus, at any length: needles in a haystack, variables, common and frequent words.

Source: Hsieh et al. 2024, arXiv:2404.06654. From 4096 tokens on, sizes and room for the answer are the standard's;
shorter prompts are our own: room is kept for the answer and a few tokens more, lists are shorter, and below 1024 tokens
no worked example is shown. Prompts end with the beginning of the answer, for models that were not taught to chat.
"""

from __future__ import annotations

import functools
import math
import uuid
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from workbench.config import nearest
from workbench.data.tokenizer import Tokenizer
from workbench.evaluate.tasks.item import Answer, Item, fitted, generator, roomy, tokens
from workbench.evaluate.tasks.words import ADJECTIVES, NOUNS

STANDARD, EXAMPLE = 4096, 1024  # tokens: the standard's least length, and the least that shows a worked example
ROOM = {"niah_single_1": 128, "niah_multikey_2": 128, "niah_multikey_3": 128, "vt": 30, "cwe": 120, "fwe": 50}
KINDS = tuple(ROOM)
NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
HOPS = 4  # of variable tracking


@dataclass(frozen=True)
class Ruler:
    """One of RULER's tasks at a length in tokens, prompt and answer together."""

    kind: str = "niah_single_1"
    length: int = 4096
    count: int = 50

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"kind {self.kind!r}: {nearest(self.kind, KINDS)}")

    @property
    def name(self) -> str:
        return f"ruler-{self.kind}-{self.length}"

    def __len__(self) -> int:
        return self.count

    def item(self, index: int, tokenizer: Tokenizer) -> Item:
        """As many units of haystack, or words, as fit with the answer; one more would be too long."""

        def item(units: int) -> Item:
            made = MAKERS[self.kind](self.length, units, generator(self.name, index))
            room = ROOM[self.kind]
            if self.length < STANDARD:
                room = roomy(tokenizer, ", ".join(made.references))
            return made._replace(tokens=room)

        def size(units: int) -> int:
            made = item(units)
            return tokens(tokenizer, made.prompt) + made.tokens

        units = fitted(size, LEAST[self.kind], self.length, f"{self.name} with room for its answer")
        made = item(units)
        return made._replace(facts={"length": self.length, "units": units, **made.facts})

    def score(self, item: Item, answer: Answer) -> dict[str, float]:
        """The share of the references that stand anywhere in what was generated, in upper or lower case."""
        text = answer.completion.lower()
        return {"contained": sum(each.lower() in text for each in item.references) / len(item.references)}


# ---- needles


def _needles(keys: str, values: str, noise: bool, length: int, units: int, rng: np.random.Generator) -> Item:
    """One needle in `units` lines of noise, or among as many others of its kind."""
    others = 0 if noise else units
    if keys == "words":
        pairs = _distinct(rng, len(ADJECTIVES) * len(NOUNS), others + 1)
        names = [f"{ADJECTIVES[pair // len(NOUNS)]}-{NOUNS[pair % len(NOUNS)]}" for pair in pairs]
    else:
        names = [_uuid(rng) for _ in range(others + 1)]
    found = [str(rng.integers(10**6, 10**7)) if values == "numbers" else _uuid(rng) for _ in range(others + 1)]
    lines = [
        f"One of the special magic {values} for {name} is: {value}." for name, value in zip(names, found, strict=True)
    ]
    place = int(rng.integers(units + 1))
    hay = [NOISE] * units if noise else lines[1:]
    context = "\n".join([*hay[:place], lines[0], *hay[place:]])
    what = values.removesuffix("s")
    prompt = (
        f"A special magic {what} is hidden within the following text. Make sure to memorize it. "
        f"I will quiz you about the {what} afterwards.\n{context}\n"
        f"What is the special magic {what} for {names[0]} mentioned in the provided text? "
        f"The special magic {what} for {names[0]} mentioned in the provided text is"
    )
    chance = 1 / (others + 1) if others else 0.0
    return Item(prompt, (found[0],), chance=chance, facts={"depth": place / max(units, 1)})


def _uuid(rng: np.random.Generator) -> str:
    return str(uuid.UUID(bytes=rng.bytes(16), version=4))


def _distinct(rng: np.random.Generator, below: int, count: int) -> list[int]:
    """`count` distinct numbers: those for a larger count begin with those for a smaller one."""
    found: dict[int, None] = {}
    while len(found) < count:
        found[int(rng.integers(below))] = None
    return list(found)


# ---- variables


def _variables(length: int, units: int, rng: np.random.Generator) -> Item:
    """A chain of assignments in their order, in `units` lines of noise."""
    shown = _chain(5, rng) if length >= EXAMPLE else None
    prompt, names, places = _chain(units, rng)
    if shown:
        prompt = f"{shown[0]}{' '.join(shown[1])}\n\n{prompt}"
    return Item(prompt, tuple(names), facts={"depth": places[0] / max(units, 1), "end": places[-1] / max(units, 1)})


def _chain(units: int, rng: np.random.Generator) -> tuple[str, list[str], list[int]]:
    names = ["".join(map(chr, 65 + rng.integers(26, size=5))) for _ in range(HOPS + 1)]
    value = int(rng.integers(10_000, 100_000))
    steps = [f"VAR {names[0]} = {value}", *(f"VAR {b} = VAR {a}" for a, b in pairwise(names))]
    places = sorted(rng.integers(units + 1, size=len(steps)).tolist())
    lines = [NOISE] * units
    for done, (place, step) in enumerate(zip(places, steps, strict=True)):
        lines.insert(place + done, step)
    context = "\n".join(lines)
    prompt = (
        "Memorize and track the chain(s) of variable assignment hidden in the following text."
        f"\n\n{context}\nQuestion: Find all variables that are assigned the value {value} in the text above. "
        "Answer: According to the chain(s) of variable assignment in the text above, "
        f"{len(names)} variables are assigned the value {value}, they are: "
    )
    return prompt, names, places


# ---- words by their number


def _common(length: int, units: int, rng: np.random.Generator) -> Item:
    """A shuffled list of some words that stand often in it and of `units` that stand seldom."""
    asked = 10 if length >= EXAMPLE else 3
    often, seldom = (30, 3) if length >= STANDARD else (6, 1)
    words = _words(asked + units, rng)
    prompt = _listed(words, asked, often, seldom, rng)
    if length >= EXAMPLE:
        shown = _words(20, rng)
        best = " ".join(f"{i}. {word}" for i, word in enumerate(shown[:10], 1))
        prompt = f"{_listed(shown, 10, 3, 1, rng)} {best}\n{prompt}"
    return Item(prompt, tuple(words[:asked]), chance=asked / len(words), facts={"often": often, "seldom": seldom})


def _listed(words: list[str], asked: int, often: int, seldom: int, rng: np.random.Generator) -> str:
    entries = words[:asked] * often + words[asked:] * seldom
    text = " ".join(f"{i}. {entries[place]}" for i, place in enumerate(rng.permutation(len(entries)).tolist(), 1))
    return (
        f"Some words stand in this numbered list more often than others; keep those in mind.\n{text}\n"
        f"Question: What are the {asked} most common words in the above list? "
        f"Answer: The top {asked} words that appear most often in the list are:"
    )


def _words(count: int, rng: np.random.Generator) -> list[str]:
    """Distinct words; where plain ones do not suffice, two nouns written as one word."""
    plain = _plain()
    if count <= len(plain):
        return [plain[i] for i in rng.permutation(len(plain))[:count].tolist()]
    pairs = _distinct(rng, len(NOUNS) ** 2, count)
    return [NOUNS[pair // len(NOUNS)] + NOUNS[pair % len(NOUNS)] for pair in pairs]


@functools.cache
def _plain() -> list[str]:
    return sorted({*ADJECTIVES, *NOUNS})


def _frequent(length: int, units: int, rng: np.random.Generator) -> Item:
    """Words of six random letters, the k-th in rank floor(N / (k^2 zeta(2))) times; the first is noise."""
    total = _total(units)
    counts = []
    while found := math.floor(total / ((len(counts) + 1) ** 2 * math.pi**2 / 6)):
        counts.append(found)
    letters = 97 + rng.integers(26, size=(len(counts), 6))
    words = ["...", *("".join(map(chr, row)) for row in letters[1:])]
    spread = np.repeat(np.arange(len(counts)), counts)
    text = " ".join(words[i] for i in spread[rng.permutation(len(spread))].tolist())
    prompt = (
        f"The text below is made of coded words; count how often each of them appears.\n{text}\n"
        "Question: Leaving the dots '...' aside, which three coded words appear most often in the text above? "
        "Answer: The three coded words that appear most often in the text above are:"
    )
    return Item(prompt, tuple(words[1:4]), chance=min(1.0, 3 / (len(words) - 1)), facts={"words": len(spread)})


def _total(units: int) -> int:
    """N of the distribution: from 42 to 52 the fourth and the fifth word stand equally often, so these are left out."""
    return units if units < 42 else units + 11


MAKERS = {
    "niah_single_1": functools.partial(_needles, "words", "numbers", True),
    "niah_multikey_2": functools.partial(_needles, "words", "numbers", False),
    "niah_multikey_3": functools.partial(_needles, "uuids", "uuids", False),
    "vt": _variables,
    "cwe": _common,
    "fwe": _frequent,
}
LEAST = {"niah_single_1": 0, "niah_multikey_2": 1, "niah_multikey_3": 1, "vt": 0, "cwe": 3, "fwe": 27}
