"""The user's files of RULER's other seven tasks: essays that hide the needles, and questions with their documents.

Both are UTF-8 and read once, until they change.
"""

from __future__ import annotations

import functools
import json
import re
from glob import glob
from itertools import pairwise
from pathlib import Path
from reprlib import repr as short
from typing import Any, NamedTuple

ESSAYS = "a file or glob of plain texts, such as essays/**/*.txt"
LINE = '{"question": "...", "answers": ["...", "..."], "documents": ["...", "..."]}'
QUESTIONS = f"a .jsonl file of questions, a line each: {LINE}"


class Essays(NamedTuple):
    """words: of all the essays, each with the space after it. ends: how many words end each sentence, in order."""

    words: list[str]
    ends: list[int]


class Question(NamedTuple):
    """documents: those that hold the answer."""

    question: str
    answers: tuple[str, ...]
    documents: tuple[str, ...]


class Questions(NamedTuple):
    """each: the questions of a kind. documents: those of all of them, each once."""

    each: list[Question]
    documents: list[str]


# ---- essays

# A word, or 32 characters of what is longer. Where no spaces are written, a sentence's end ends a word too.
WORD = re.compile(r"[^ 。！？]{0,32}[。！？]*[」』”’）]* ?")
END = re.compile(r"""[.!?…]["'”’)\]]* $|[。！？][」』”’）]* ?$""")
SHORT = re.compile(r"[A-Z][a-z]{0,2}\. $")  # an initial or a title, after which a sentence seldom ends


def essays(pattern: str) -> Essays:
    """Of all files that match, in the order of their names, one after another.

    Raises ValueError if there are none, if there is no text in them, and naming the file that is not UTF-8.
    """
    paths = sorted(path for path in glob(pattern, recursive=True) if Path(path).is_file())
    if not paths and Path(pattern).is_file():  # a name with brackets
        paths = [pattern]
    if not paths:
        raise ValueError(f"essays: {pattern!r} matches no file (from {Path.cwd()}); give {ESSAYS}")
    return _essays(pattern, tuple((path, Path(path).stat().st_mtime_ns) for path in paths))


@functools.lru_cache(maxsize=2)
def _essays(pattern: str, files: tuple[tuple[str, int], ...]) -> Essays:
    text = " ".join(word for path, _ in files for word in _text(path).split())
    words = [word for word in WORD.findall(f"{text} ") if word.strip()]
    if not words:
        raise ValueError(f"essays: {pattern!r} matches {len(files)} files without text; give {ESSAYS}")
    ends = [
        count
        for count, (word, after) in enumerate(pairwise(words), 1)
        if END.search(word) and not SHORT.match(word) and not after[0].islower()
    ]
    return Essays(words, [*ends, len(words)])


def _text(path: str) -> str:
    try:
        return Path(path).read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"essays: {path} is not UTF-8 ({error}); give {ESSAYS}") from None


# ---- questions


def questions(path: str, several: bool) -> Questions:
    """Those of one document, or of several. Raises ValueError naming the file, and the line that cannot be read."""
    if not Path(path).is_file():
        raise ValueError(f"questions: {path} is not there; give {QUESTIONS}")
    return _questions(path, Path(path).stat().st_mtime_ns, several)


@functools.lru_cache(maxsize=4)
def _questions(path: str, changed: int, several: bool) -> Questions:
    every = [
        _question(line, f"{path}, line {number}")
        for number, line in enumerate(Path(path).read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1)
        if line.strip()
    ]
    each = [question for question in every if (len(question.documents) > 1) == several]
    if not each:
        wanted = "several documents" if several else "one document"
        raise ValueError(f"{path} has {len(every)} questions and none with {wanted}; give {QUESTIONS}")
    return Questions(each, list(dict.fromkeys(document for question in each for document in question.documents)))


def _question(line: bytes, where: str) -> Question:
    try:
        value: Any = json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise ValueError(f"{where} is not UTF-8 ({error}); a line is {LINE}") from None
    except ValueError as error:
        raise ValueError(f"{where} is no JSON ({error}); a line is {LINE}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{where} is {short(value)}; a line is {LINE}")
    for key in ("question", "answers", "documents"):
        if key not in value:
            raise ValueError(f'{where} has no "{key}"; a line is {LINE}')
        texts, what = ([value[key]], "a text") if key == "question" else (value[key], "a list of texts")
        if not isinstance(texts, list) or not texts or not all(map(_written, texts)):
            raise ValueError(f'{where}: "{key}" is {short(value[key])} and should be {what}; a line is {LINE}')
    return Question(value["question"], *(tuple(dict.fromkeys(value[key])) for key in ("answers", "documents")))


def _written(text: Any) -> bool:
    """Whether it is text that is not blank and has UTF-8: no half of a surrogate pair."""
    return isinstance(text, str) and bool(text.strip()) and not re.search("[\ud800-\udfff]", text)
