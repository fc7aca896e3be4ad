"""Multiple choice from a local file, asked in three forms: models may know an answer and fail to name its letter.

A line of the file is {"question": ..., "choices": [...], "answer": index or letter}. Forms, after Waleffe et al. 2024,
arXiv:2406.07887: `letter` shows the choices and asks for the letter, `text` shows them and asks for the words, `cloze`
does not show them; the likeliest continuation is the answer.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase as LETTERS
from typing import Any, NamedTuple

import numpy as np

from workbench.config import nearest
from workbench.data.tokenizer import Tokenizer
from workbench.evaluate.tasks.item import Answer, Item, probability

FORMS = ("letter", "text", "cloze")


class Question(NamedTuple):
    question: str
    choices: tuple[str, ...]
    answer: int


@dataclass(frozen=True)
class Choices:
    path: str
    form: str = "letter"
    shots: int = 0  # the file's first questions, which are shown with their answers and not asked
    count: int = 0  # questions that are asked; 0 for all

    def __post_init__(self):
        if self.form not in FORMS:
            raise ValueError(f"form {self.form!r}: {nearest(self.form, FORMS)}")

    @property
    def name(self) -> str:
        return f"{Path(self.path).stem}-{self.form}" + (f"-{self.shots}-shots" if self.shots else "")

    @property
    def perturbation(self) -> str:
        return self.form

    @property
    def available(self) -> int:
        return max(len(questions(self.path)) - self.shots, 0)

    def __len__(self) -> int:
        return min(self.count, self.available) if self.count else self.available

    def item(self, index: int, tokenizer: Tokenizer) -> Item:
        every = questions(self.path)
        question = every[self.shots + index]
        shown = [f"{self._prompt(each)}{self._choices(each)[each.answer]}" for each in every[: self.shots]]
        offered = self._choices(question)
        return Item(
            "\n\n".join([*shown, self._prompt(question)]),
            (offered[question.answer],),
            offered,
            chance=1 / len(offered),
            facts={"answer": question.answer},
        )

    def _prompt(self, question: Question) -> str:
        lines = [f"{letter}. {choice}" for letter, choice in zip(LETTERS, question.choices, strict=False)]
        return "\n".join([f"Question: {question.question}", *(lines if self.form != "cloze" else ()), "Answer:"])

    def _choices(self, question: Question) -> tuple[str, ...]:
        if self.form == "letter":
            return tuple(f" {letter}" for letter in LETTERS[: len(question.choices)])
        return tuple(f" {choice}" for choice in question.choices)

    def score(self, item: Item, answer: Answer) -> dict[str, float]:
        """Whether the likeliest choice is right, whether the likeliest a byte is, and the right one's probability."""
        nats, right = np.array(answer.log_probabilities), item.facts["answer"]
        by_byte = nats / [len(choice.encode()) for choice in item.choices]
        return {
            "acc": float(nats.argmax() == right),
            "acc_norm": float(by_byte.argmax() == right),
            "probability": probability(item, answer.log_probabilities),
        }


@functools.lru_cache(maxsize=8)
def _read(path: str, changed: float) -> list[Question]:
    found = []
    for number, line in enumerate(Path(path).read_bytes().split(b"\n"), 1):
        if line.strip():
            found.append(_question(line, f"{path}, line {number}"))
    if not found:
        raise ValueError(f"{path} has no questions; a line is {FORM}")
    return found


def questions(path: str) -> list[Question]:
    """Of a file. Raises ValueError naming the file and the line of one that cannot be read."""
    if not Path(path).is_file():
        raise ValueError(f"{path} is not there; give a file of questions, a line each: {FORM}")
    return _read(path, Path(path).stat().st_mtime)


FORM = '{"question": "...", "choices": ["...", "..."], "answer": 0}'


def _question(line: bytes, where: str) -> Question:
    try:
        value: Any = json.loads(line)
    except ValueError as error:  # UnicodeDecodeError too
        raise ValueError(f"{where} is no JSON ({error}); a line is {FORM}") from None
    if any(0xD800 <= ord(letter) <= 0xDFFF for letter in json.dumps(value, ensure_ascii=False)):
        raise ValueError(f"{where} has half of a surrogate pair, which no text can hold; write the letter itself")
    if not isinstance(value, dict) or not isinstance(value.get("question"), str):
        raise ValueError(f'{where} has no "question" that is text; a line is {FORM}')
    choices, answer = value.get("choices"), value.get("answer")
    if not isinstance(choices, list) or not all(isinstance(each, str) and each for each in choices):
        raise ValueError(f'{where}: "choices" is not a list of texts; a line is {FORM}')
    if not 2 <= len(set(choices)) == len(choices) <= len(LETTERS):
        raise ValueError(f"{where} has {len(choices)} choices; they are 2 to {len(LETTERS)}, each different")
    if isinstance(answer, str) and len(answer) == 1:
        answer = LETTERS.find(answer)
    if type(answer) is not int or not 0 <= answer < len(choices):
        raise ValueError(
            f'{where}: "answer" is {value.get("answer")!r}; it is the index of a choice, 0 to {len(choices) - 1}, '
            f"or its letter, A to {LETTERS[len(choices) - 1]}"
        )
    return Question(value["question"], tuple(choices), answer)
