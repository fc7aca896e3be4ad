"""Which items of a suite share 13 words in a row with the training corpus, and so may have been read before.

Words are runs of letters and digits in lower case. Source: Brown et al. 2020, arXiv:2005.14165, appendix C, whose
13 words are the field's measure.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from workbench.config import TextConfig, from_json
from workbench.data.corpus import Corpus, corpus
from workbench.record import read_json

WORDS = 13
WORD = re.compile(r"[^\W_]+")
STEP = np.uint64(6364136223846793005)  # odd, so that no word is lost in products modulo 2^64


def overlapping(texts: Sequence[str], documents: Iterable[str], words: int = WORDS) -> set[int]:
    """The indices of the texts that have `words` words in a row with some document; one pass over the documents.

    A document's words are looked up among those of the texts, its rows of known words by a rolling hash, and what is
    found is compared word by word, so that no hash decides.
    """
    known: dict[str, int] = {}
    holders: dict[tuple[int, ...], set[int]] = {}
    for index, text in enumerate(texts):
        ids = [known.setdefault(word, len(known) + 1) for word in WORD.findall(text.lower())]
        for begin in range(len(ids) - words + 1):
            holders.setdefault(tuple(ids[begin : begin + words]), set()).add(index)
    if not holders:
        return set()
    marks = np.unique(np.concatenate([_marks(np.array(run, np.uint64), words) for run in holders]))
    found: set[int] = set()
    for document in documents:
        ids = np.array([known.get(word, 0) for word in WORD.findall(document.lower())], np.uint64)
        if len(ids) < words:
            continue
        for begin in np.flatnonzero(np.isin(_marks(ids, words), marks)).tolist():
            found |= holders.get(tuple(ids[begin : begin + words].tolist()), set())
    return found


def _marks(ids: np.ndarray, words: int) -> np.ndarray:
    """A hash of every `words` ids in a row [len(ids) - words + 1]."""
    mark = np.zeros(len(ids) - words + 1, np.uint64)
    for place in range(words):
        mark = mark * STEP + ids[place : place + len(mark)]
    return mark


def documents_of(folder: Path | str) -> tuple[Iterator[str] | None, str]:
    """The documents that a run was trained on, or None and why they cannot be read."""
    data = from_json(read_json(Path(folder) / "config.json") or {}).data
    if not isinstance(data, TextConfig):
        return None, f"the run's data is {type(data).__name__}"
    try:
        return training_documents(corpus(data)), ""
    except (ValueError, OSError) as error:
        return None, str(error)


def counted(results: Mapping[str, Mapping[str, Any]], why: str = "") -> str:
    """What a suite's results, once scanned, say in a sentence; why: what kept them from being scanned."""
    if results and not any("items" in found for found in results.values()):
        return "No item was asked that could overlap the training corpus."
    scanned = [found for found in results.values() if "overlapping" in found]
    if not scanned:
        return "Not scanned for overlap with the training corpus" + (f": {why}" if why else ".")
    items, hits = (sum(found[name] for found in scanned) for name in ("items", "overlapping"))
    return f"{hits} of {items:,} items share {WORDS} words in a row with the training corpus."


def training_documents(corpus: Corpus) -> Iterator[str]:
    """The text of each document of the training split."""
    split = corpus.split("train")
    ends = np.cumsum(split.sizes + 1)
    for begin, end in zip(ends - split.sizes, ends, strict=True):
        yield corpus.tokenizer.decode(split.tokens[begin:end]).decode(errors="replace")
