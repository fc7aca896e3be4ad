"""RULER's 13 tasks at any length: needles in a haystack, variables, common and frequent words, questions on documents.

Six need no corpus. Five hide needles in the user's essays, and two ask the user's questions (ruler_files.py).

Source: Hsieh et al. 2024, arXiv:2404.06654. From 4096 tokens on, sizes and room for the answer are the standard's;
shorter prompts are our own: room is kept for the answer and a few tokens more, lists are shorter, and below 1024 tokens
no worked example is shown. Prompts end with the beginning of the answer, for models that were not taught to chat.
"""

from __future__ import annotations

import functools
import math
import uuid
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from workbench.config import nearest
from workbench.data.tokenizer import Tokenizer
from workbench.evaluate.tasks.item import Answer, Item, fitted, generator, roomy, tokens
from workbench.evaluate.tasks.ruler_files import ESSAYS, QUESTIONS, Essays, Questions, essays, questions
from workbench.evaluate.tasks.words import ADJECTIVES, NOUNS

STANDARD, EXAMPLE = 4096, 1024  # tokens: the standard's least length, and the least that shows a worked example
ROOM = {
    **dict.fromkeys((f"niah_{kind}_{number}" for kind in ("single", "multikey") for number in (1, 2, 3)), 128),
    **{"niah_multivalue": 128, "niah_multiquery": 128, "vt": 30, "cwe": 120, "fwe": 50, "qa_1": 32, "qa_2": 32},
}
KINDS = tuple(ROOM)
NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
HOPS = 4  # of variable tracking
DEPTHS = [round(100 * step / 39) for step in range(40)]  # percent of an essay's sentences that stand before a needle
TASK = "Answer the question based on the given documents. Only give me the answer and do not output any other words."


@dataclass(frozen=True)
class Ruler:
    """One of RULER's tasks at a length in tokens, prompt and answer together.

    Item i asks the i-th question of its kind: qa_1 those of exactly one document, as in SQuAD, qa_2 those of several,
    as in HotpotQA. Where the documents of its kind run out, a prompt is shorter than `length`.
    """

    kind: str = "niah_single_1"
    length: int = 4096
    count: int = 50
    essays: str = ""  # plain texts, a file or a glob, ** for any depth; they begin anew where they end
    questions: str = ""  # a .jsonl file, lines {"question": "...", "answers": ["..."], "documents": ["..."]}

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"kind {self.kind!r}: {nearest(self.kind, KINDS)}")

    @property
    def name(self) -> str:
        return f"ruler-{self.kind}-{self.length}"

    @property
    def missing(self) -> str:
        """The field of a file that this kind needs and that is not given, "essays" or "questions"; "" if none is."""
        needed = "essays" if self.kind in IN_ESSAYS else "questions" if self.kind in ON_DOCUMENTS else ""
        return needed if needed and not getattr(self, needed) else ""

    @property
    def available(self) -> int | None:
        return len(self._questions().each) if self.kind in ON_DOCUMENTS else None

    def __len__(self) -> int:
        return self.count if self.available is None else min(self.count, self.available)

    def item(self, index: int, tokenizer: Tokenizer) -> Item:
        """As many units of haystack, or words, as fit with the answer; one more would be too long.

        A unit of essays is a word, one of questions a document that does not hold the answer.
        """
        make, most = self._maker(index)

        def item(units: int) -> Item:
            made = make(self.length, units, generator(self.name, index))
            room = ROOM[self.kind]
            if self.length < STANDARD:
                answers = made.references if self.kind in ON_DOCUMENTS else (", ".join(made.references),)
                room = max(roomy(tokenizer, each) for each in answers)
            return made._replace(tokens=room)

        def size(units: int) -> int:
            if most is not None and units > most:  # there are no more
                return self.length + units - most
            made = item(units)
            return tokens(tokenizer, made.prompt) + made.tokens

        units = fitted(size, LEAST.get(self.kind, 0), self.length, f"{self.name} with room for its answer")
        made = item(units)
        return made._replace(facts={"length": self.length, "units": units, **made.facts})

    def _maker(self, index: int) -> tuple[Maker, int | None]:
        """What makes the item of so many units, and the most units that there are; None where there is no end."""
        if self.kind in IN_ESSAYS:
            return functools.partial(_hidden, *IN_ESSAYS[self.kind], essays(self._path(ESSAYS))), None
        if self.kind in ON_DOCUMENTS:
            found = self._questions()
            if index >= len(found.each):
                raise ValueError(f"{self.name} has no item {index}: {self.questions} has {len(found.each)} of its kind")
            most = len(found.documents) - len(found.each[index].documents)
            return functools.partial(_asked, found, index), most
        return MAKERS[self.kind], None

    def _questions(self) -> Questions:
        return questions(self._path(QUESTIONS), ON_DOCUMENTS[self.kind])

    def _path(self, what: str) -> str:
        if self.missing:
            raise ValueError(f"{self.name} needs {self.missing}, which is not given: {what}")
        return self.essays if self.kind in IN_ESSAYS else self.questions

    def score(self, item: Item, answer: Answer) -> dict[str, float]:
        """The share of the references that stand anywhere in what was generated, in upper or lower case.

        Those of a question are the same answer in other words: 1 if any of them does.
        """
        text = answer.completion.lower()
        found = [each.lower() in text for each in item.references]
        return {"contained": float(any(found)) if self.kind in ON_DOCUMENTS else sum(found) / len(found)}


# ---- needles


def _needles(keys: str, values: str, noise: bool, length: int, units: int, rng: np.random.Generator) -> Item:
    """One needle in `units` lines of noise, or among as many others of its kind."""
    others = 0 if noise else units
    names = _keys(rng, others + 1) if keys == "words" else [_uuid(rng) for _ in range(others + 1)]
    found = [str(rng.integers(10**6, 10**7)) if values == "numbers" else _uuid(rng) for _ in range(others + 1)]
    lines = [_needle(values, name, value) for name, value in zip(names, found, strict=True)]
    place = int(rng.integers(units + 1))
    hay = [NOISE] * units if noise else lines[1:]
    context = "\n".join([*hay[:place], lines[0], *hay[place:]])
    chance = 1 / (others + 1) if others else 0.0
    prompt = _quiz(values, context, names[:1], found[:1])
    return Item(prompt, (found[0],), chance=chance, facts={"depth": place / max(units, 1)})


def _hidden(
    keys: int, each: int, asked: int, values: str, text: Essays, length: int, units: int, rng: np.random.Generator
) -> Item:
    """Needles of `each` values for each key, between sentences of the essays' first `units` words, in any order."""
    names, count = _keys(rng, keys), keys * each
    if values == "numbers":
        found = [str(10**6 + number) for number in _distinct(rng, 9 * 10**6, count)]
    else:
        found = [_uuid(rng) for _ in range(count)]
    depths = rng.permutation(DEPTHS)[:count].tolist()
    rounds, once = -(-units // len(text.words)), len(text.words)
    words = (text.words * rounds)[:units]
    ends = [turn * once + end for turn in range(rounds) for end in text.ends]
    cuts = [0, *ends[: bisect_left(ends, units)], units]  # the last sentence may be cut short
    places = [cuts[(len(cuts) - 1) * depth // 100] for depth in depths]
    parts, done = [], 0
    for number in np.argsort(depths).tolist():
        parts += ["".join(words[done : places[number]]), _needle(values, names[number // each], found[number])]
        done = places[number]
    context = " ".join(filter(None, map(str.strip, [*parts, "".join(words[done:])])))
    references = tuple(found[: asked * each])
    prompt = _quiz(values, context, names[:asked], references)
    chance = asked / keys if asked < keys else 0.0
    return Item(prompt, references, chance=chance, facts=_span(places[: len(references)], units))


def _needle(values: str, name: str, value: str) -> str:
    return f"One of the special magic {values} for {name} is: {value}."


def _quiz(values: str, context: str, names: Sequence[str], references: Sequence[str]) -> str:
    """The context between what is to be done with it and the question, up to the answer's beginning."""
    several = len(references) > 1
    what = values if several else values.removesuffix("s")
    some, are, ask = ("Some", "are", "are all") if several else ("A", "is", "is")
    query = f"{', '.join(names[:-1])}, and {names[-1]}" if len(names) > 1 else names[0]
    return (
        f"{some} special magic {what} {are} hidden within the following text. Make sure to memorize it. "
        f"I will quiz you about the {what} afterwards.\n{context}\n"
        f"What {ask} the special magic {what} for {query} mentioned in the provided text? "
        f"The special magic {what} for {query} mentioned in the provided text {are}"
    )


def _span(places: list[int], of: int) -> dict[str, float]:
    """The depths of the first and the last."""
    return {"depth": min(places) / max(of, 1), "end": max(places) / max(of, 1)}


def _keys(rng: np.random.Generator, count: int) -> list[str]:
    pairs = _distinct(rng, len(ADJECTIVES) * len(NOUNS), count)
    return [f"{ADJECTIVES[pair // len(NOUNS)]}-{NOUNS[pair % len(NOUNS)]}" for pair in pairs]


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


# ---- questions


def _asked(found: Questions, index: int, length: int, units: int, rng: np.random.Generator) -> Item:
    """A question on its documents among `units` documents of other questions, shuffled."""
    question = found.each[index]
    others = [document for document in found.documents if document not in question.documents]
    chosen = rng.permutation(len(others))[:units].tolist()
    documents = [*question.documents, *(others[number] for number in chosen)]
    order = rng.permutation(len(documents)).tolist()
    context = "\n\n".join(f"Document {i}:\n{documents[number]}" for i, number in enumerate(order, 1))
    prompt = (
        f"{TASK}\n\nThe following are given documents.\n\n{context}\n\n{TASK}\n\nQuestion: {question.question} Answer:"
    )
    places = [order.index(number) for number in range(len(question.documents))]
    cluster = f"document {found.documents.index(question.documents[0])}"
    return Item(prompt, question.answers, cluster=cluster, facts=_span(places, len(documents) - 1))


Maker = Callable[[int, int, np.random.Generator], Item]  # of a length in tokens and a number of units
MAKERS: dict[str, Maker] = {
    "niah_single_1": functools.partial(_needles, "words", "numbers", True),
    "niah_multikey_2": functools.partial(_needles, "words", "numbers", False),
    "niah_multikey_3": functools.partial(_needles, "uuids", "uuids", False),
    "vt": _variables,
    "cwe": _common,
    "fwe": _frequent,
}
LEAST = {"niah_single_1": 0, "niah_multikey_2": 1, "niah_multikey_3": 1, "vt": 0, "cwe": 3, "fwe": 27}
IN_ESSAYS = {  # how many keys, values of each, and keys that are asked for; what the values are
    "niah_single_2": (1, 1, 1, "numbers"),
    "niah_single_3": (1, 1, 1, "uuids"),
    "niah_multikey_1": (4, 1, 1, "numbers"),
    "niah_multivalue": (1, 4, 1, "numbers"),
    "niah_multiquery": (4, 1, 4, "numbers"),
}
ON_DOCUMENTS = {"qa_1": False, "qa_2": True}  # whether a question has several documents
