"""Bits per byte of a model on text of groups (packages, projects) that were not trained on, or on any files."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple
from zlib import crc32

import jax
import jax.numpy as jnp
import numpy as np

from workbench.config import Files, ModelConfig, RunConfig, TextConfig, TextEvaluation, UnknownData
from workbench.data.documents import Document, parts, read
from workbench.data.text import Rows, TextStream
from workbench.data.tokenizer import Tokenizer
from workbench.evaluate import exam
from workbench.evaluate.interval import t_quantile
from workbench.evaluate.items import Scored
from workbench.generate import check_positions
from workbench.model.language_model import LanguageModel
from workbench.train.loss import negative_log_likelihood

TOKENS = 4096  # read at a time, so that memory doesn't grow with the number of rows
GROUPS = 100  # most that are told apart


def evaluator(config: TextEvaluation, run: RunConfig) -> Callable[[LanguageModel, str], dict]:
    """A function of (model, split): {"score", "bits_per_byte": {mean, low, high, ...}, "by_group": {name: ...}}.

    Reads `config.rows` rows spread evenly over the split's documents in their own order, the same for every seed and
    arm; each byte is scored once, from its document's earlier bytes in the row. With data.held_out the test has
    "same_groups" too: bits per byte on the documents of training groups that were held out. Rows: a document each, by
    its number in the split, with its bytes that were scored and their nats. With config.suite there is "suite" too,
    {task: ...}, and a row an item (workbench.evaluate.exam); the score stays that of the bits. Raises ValueError if the
    run's data is not text, if a row is longer than the model's positions, if the rows hold a single document, and what
    `exam` raises: here, before any training.
    """
    data = dataclasses.replace(text_of(run, "bits per byte"), length=config.length)
    _check(config, run.model)

    @functools.cache
    def stream(split: str) -> TextStream:
        return data.stream(split)

    asked = exam.evaluator(config.suite, run.model, stream("test").tokenizer) if config.suite else None

    def measured(model: LanguageModel, split: str) -> tuple[np.ndarray, np.ndarray, TextStream]:
        """Nats and bytes of each document of the split, as far as they were read."""
        source = stream(split)
        rows = _batches(source.read, spread(source.rows, config.rows), config.length)
        return *_measured(model, rows, len(source.documents.sizes)), source

    def evaluate(model: LanguageModel, split: str = "test") -> dict:
        nats, count, source = measured(model, split)
        found = _found(nats, count, source.documents.group, source.documents.groups)
        if split == "test" and data.held_out:
            nats, count, source = measured(model, "same")
            seen = count > 0
            found.rows += _rows(nats, count, source.documents.group, source.documents.groups, split="same")
            group, _ = gathered(source.documents.group, source.documents.groups)
            found["same_groups"] = bits_per_byte(nats[seen], count[seen], group[seen])
        if asked is not None:
            found["suite"] = answers = asked(model, split)
            found.rows += answers.rows
        return found

    return evaluate


def on_files(model: LanguageModel, tokenizer: Tokenizer, files: Files, config: TextEvaluation) -> dict:
    """What `evaluator` gives, on documents of any files: for models whose training data are unknown, or another's.

    And "tokens", how many were scored, with the "perplexity" of one, which models with other tokens do not share.
    Documents are cut into pieces of `config.length` tokens, a row each, and `config.rows` of the rows are read, spread
    evenly. Nothing is held out or taken out: whether the model was trained on these texts is for the caller to know.
    Raises ValueError if a row is longer than the model's positions, or the rows hold a single document.
    """
    _check(config, model.config)
    texts = of_files(tokenizer, files)
    pieces = [(number, at) for number, size in enumerate(texts.sizes) for at in range(0, size, config.length)]

    def rows(wanted: np.ndarray) -> Rows:
        return texts.read([pieces[index] for index in wanted], config.length)

    chosen = spread(len(pieces), config.rows)
    nats, count = _measured(model, _batches(rows, chosen, config.length), len(texts.ids))
    sizes = (texts.sizes[number] - at for number, at in (pieces[index] for index in chosen))
    tokens = sum(min(config.length, int(size)) for size in sizes)
    found = _found(nats, count, texts.group, texts.names)
    found |= {"tokens": tokens, "perplexity": math.exp(nats.sum() / tokens)}
    return found


class Texts(NamedTuple):
    """Documents of any files: each one's tokens, its boundary first, and the bytes of each token but the boundary.

    group: each document's, an index into names.
    """

    ids: list[np.ndarray]
    bytes: list[np.ndarray]
    group: np.ndarray
    names: list[str]

    @property
    def sizes(self) -> np.ndarray:
        """Tokens of each document without its boundary."""
        return np.array([len(each) for each in self.bytes], np.int64)

    @property
    def digest(self) -> str:
        """Of tokens and groups: of the texts and of the tokenizer."""
        names = [self.names[group] for group in self.group]
        parts = [
            hashlib.sha256(name.encode() + b"\0" + each.astype("<i4").tobytes())
            for name, each in zip(names, self.ids, strict=True)
        ]
        return hashlib.sha256(b"".join(part.digest() for part in parts)).hexdigest()[:8]

    def read(self, pieces: Sequence[tuple[int, int]], length: int) -> Rows:
        """A row a piece (document, where in it): up to `length` targets, padded where the document ends before."""
        shape = (len(pieces), length)
        tokens, targets, segments, lengths = (np.zeros(shape, np.int32) for _ in range(4))
        of = np.full(shape, -1, np.int32)
        for row, (number, at) in enumerate(pieces):
            after = self.ids[number][at + 1 : at + 1 + length]
            here = np.s_[row, : len(after)]
            tokens[here], targets[here] = self.ids[number][at : at + len(after)], after
            segments[here], of[here] = 1, number
            lengths[here] = self.bytes[number][at : at + len(after)]
        return Rows({"tokens": tokens, "targets": targets, "segments": segments}, of, lengths)


def of_files(tokenizer: Tokenizer, files: Files) -> Texts:
    """The documents of these files as the tokenizer's tokens, in their order."""
    documents = [each for part in parts((files,)) for each in read(part) if isinstance(each, Document)]
    encoded = tokenizer.encode([each.content for each in documents])
    names = sorted({each.group for each in documents})
    return Texts(
        [np.concatenate([[tokenizer.boundary], each.ids]) for each in encoded],
        [each.lengths for each in encoded],
        np.searchsorted(names, [each.group for each in documents]),
        names,
    )


def text_of(run: RunConfig, what: str) -> TextConfig:
    """The data of a run on text. Raises ValueError, for `what` needs it, if they are unknown or no text."""
    if isinstance(run.data, UnknownData):
        raise ValueError(
            f"{run.name} was imported, and what it was trained on is unknown, so that no text is held out for it; "
            "give texts with --text, or tasks with --suite or --lm-eval"
        )
    if not isinstance(run.data, TextConfig):
        raise ValueError(f"{what} needs text; the run's data is {type(run.data).__name__}, not TextConfig")
    return run.data


def _check(config: TextEvaluation, model: ModelConfig) -> None:
    if config.rows < 2:
        raise ValueError(f"evaluation.rows must be at least 2, for an interval; got {config.rows}")
    advice = f"make evaluation.length at most {model.positions}"
    check_positions(model, f"a row of evaluation.length={config.length}", config.length + 1, advice=advice)


def _measured(model: LanguageModel, rows: Iterator[Rows], documents: int) -> tuple[np.ndarray, np.ndarray]:
    """Nats and bytes of each document, as far as the rows hold it."""
    nats, count = np.zeros((2, documents))
    for each in rows:
        batch = each.batch
        loss = np.asarray(_nats(model, batch["tokens"], batch["targets"], batch["segments"]), np.float64)
        real = each.documents >= 0
        nats += np.bincount(each.documents[real], loss[real], documents)
        count += np.bincount(each.documents[real], each.bytes[real], documents)
    return nats, count


def _found(nats: np.ndarray, count: np.ndarray, group: np.ndarray, names: list[str]) -> Scored:
    rows = _rows(nats, count, group, names)
    group, names = gathered(group, names)
    seen = count > 0
    bits = bits_per_byte(nats[seen], count[seen], group[seen])
    masks = {name: (group == number) & seen for number, name in enumerate(names)}
    by_group = {name: summary(nats[mask], count[mask]) for name, mask in sorted(masks.items()) if mask.any()}
    return Scored({"score": -bits["mean"], "bits_per_byte": bits, "by_group": by_group}, rows)


def _rows(nats: np.ndarray, count: np.ndarray, group: np.ndarray, names: list[str], **more: str) -> list[dict]:
    return [
        {"document": int(i), "group": names[group[i]], "bytes": int(count[i]), "nats": float(nats[i]), **more}
        for i in np.flatnonzero(count)
    ]


def gathered(group: np.ndarray, names: list[str]) -> tuple[np.ndarray, list[str]]:
    """The groups; where they are many, lots of whole groups, gathered by the hash of their names: still a sample."""
    if len(names) <= GROUPS:
        return group, names
    lots = np.array([crc32(name.encode()) % GROUPS for name in names])
    return lots[group], [f"lot {number:02}" for number in range(GROUPS)]


def bits_per_byte(nats: np.ndarray, count: np.ndarray, groups: np.ndarray) -> dict:
    """Total bits over total bytes, with a 95% interval robust to bytes of one group being alike.

    nats and count are sums over each document's scored bytes, groups what they belong to. The interval is the ratio
    estimator's with Student's quantile: a group's residual is nats - mean * count; groups, not documents or bytes,
    are the sample, or documents where there is one group (Cochran 1977, section 6.4).
    Raises ValueError with fewer than two documents.
    """
    if len(count) < 2:
        raise ValueError(f"an interval over documents needs at least 2, and {len(count)} was read; read more rows")
    _, cluster = np.unique(groups, return_inverse=True)
    if cluster.max() == 0:
        cluster = np.arange(len(count))
    size = int(cluster.max()) + 1
    residual = np.bincount(cluster, nats - nats.sum() / count.sum() * count)
    error = math.sqrt(size / (size - 1) * float(np.sum(residual**2))) / count.sum() / math.log(2)
    found, half = summary(nats, count), t_quantile(0.95, size - 1) * error
    return found | {"low": found["mean"] - half, "high": found["mean"] + half}


def summary(nats: np.ndarray, count: np.ndarray) -> dict:
    """Bits per byte of documents by their nats and bytes, without an interval."""
    return {
        "mean": float(nats.sum() / count.sum()) / math.log(2),
        "bytes": int(count.sum()),
        "documents": len(count),
    }


def spread(rows: int, wanted: int) -> np.ndarray:
    """`wanted` of the rows, evenly spaced; all, if there are no more."""
    return np.arange(rows) if wanted >= rows else np.linspace(0, rows - 1, wanted).round().astype(int)


def _batches(read: Callable[[np.ndarray], Rows], rows: np.ndarray, length: int) -> Iterator[Rows]:
    """The rows in batches of one shape, the last filled up with padding."""
    size = min(max(1, TOKENS // length), len(rows))
    for start in range(0, len(rows), size):
        found = read(rows[start : start + size])
        missing = ((0, size - len(found.documents)), (0, 0))
        yield Rows(
            {name: np.pad(array, missing) for name, array in found.batch.items()},
            np.pad(found.documents, missing, constant_values=-1),
            np.pad(found.bytes, missing),
        )


@jax.jit
def _nats(model: LanguageModel, tokens: jax.Array, targets: jax.Array, segments: jax.Array) -> jax.Array:
    return negative_log_likelihood(model(tokens, segments=segments).hidden, model.head(), targets).astype(jnp.float32)
