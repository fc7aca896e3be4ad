"""Real text in rows of one length: documents packed, read in an order fixed by the seed, every token a target once.

The corpus (workbench.data.corpus) says which documents there are and in which split; here they become batches. A row
holds documents of one source (of installed packages: of one package), each preceded by its boundary. Without weights
every row is read once an epoch; with weights each source has its share of every stretch of rows, and epochs of its own.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from workbench.config import TextConfig
from workbench.data.batches import WHOLE, Part
from workbench.data.corpus import corpus
from workbench.data.documents import Package
from workbench.data.packing import blend, order, stages
from workbench.data.tokenizer import Tokenizer


class Rows(NamedTuple):
    """A batch, and for each of its targets the document [B, T] (-1 at padding) and the bytes that it stands for."""

    batch: dict[str, np.ndarray]
    documents: np.ndarray
    bytes: np.ndarray


class TextStream:
    """Batches of a split, each a function of (config, step). `find` and `cache` are those of `corpus`."""

    def __init__(
        self,
        config: TextConfig,
        split: str = "train",
        *,
        find: Callable[[str], Package] | None = None,
        cache: Path | None = None,
    ):
        for name in ("length", "batch"):
            if getattr(config, name) < 1:
                raise ValueError(f"data.{name} must be at least 1; got {getattr(config, name)}")
        if config.weights and len(config.weights) != len(config.sources):
            raise ValueError(
                f"data.weights has {len(config.weights)} weights for {len(config.sources)} sources; give one each"
            )
        self.config, self.split = config, split
        self.stages = stages(config.batch, config.ramp)
        self.blend = blend(config.weights) if config.weights else None
        self.corpus = corpus(config, find, cache)
        self.documents = self.corpus.split(split)
        self.pieces = self.corpus.rows(split, config.length)
        sizes = self.documents.sizes
        self.starts = np.cumsum(sizes + 1) - sizes - 1  # of each document's boundary among the tokens
        if self.blend is not None:
            of_row = self.documents.source[self.pieces.document[self.pieces.first[:-1]]]
            self.of_source = [np.flatnonzero(of_row == source) for source in range(len(config.sources))]
            empty = [source for source, rows in enumerate(self.of_source) if not len(rows)]
            if empty:
                raise ValueError(
                    f"source {empty[0]} of data.sources has no document in the split {split!r}; "
                    "give it more, or take its weight out"
                )

    @property
    def tokenizer(self) -> Tokenizer:
        return self.corpus.tokenizer

    @property
    def rows(self) -> int:
        """Rows of an epoch."""
        return len(self.pieces.first) - 1

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """tokens, targets, segments [B, T] int32 and weights [B, T] float32 (1 but at padding) of a step.

        A document's first token is the boundary; a piece that continues one begins with the token before its targets.
        """
        return self.part(step, WHOLE)

    def part(self, step: int, part: Part) -> dict[str, np.ndarray]:
        """The rows of a step's batch that a process reads."""
        stage = self.stages[bisect_right(self.stages, step, key=lambda stage: stage.step) - 1]
        rows = stage.rows(step)
        return self.read([self._row(at) for at in rows[part.rows(len(rows))]]).batch

    def _row(self, at: int) -> int:
        """The row that is read as the at-th."""
        if self.blend is None:
            epoch, place = divmod(at, self.rows)
            return int(order(self.config.seed, epoch, self.rows)[place])
        source, at = self.blend.at(at)
        mine = self.of_source[source]
        epoch, place = divmod(at, len(mine))
        return int(mine[order(self.config.seed, epoch, len(mine), source)[place]])

    def read(self, rows: Sequence[int] | np.ndarray) -> Rows:
        """The given rows of the split, whatever the seed."""
        shape = (len(rows), self.config.length)
        tokens, targets, segments, lengths = (np.zeros(shape, np.int32) for _ in range(4))
        weights, documents = np.zeros(shape, np.float32), np.full(shape, -1, np.int32)
        document, offset, size, first = self.pieces
        for i, row in enumerate(rows):
            end = 0
            for segment, piece in enumerate(range(first[row], first[row + 1]), 1):
                begin, end = end, end + int(size[piece])
                source = int(self.starts[document[piece]] + offset[piece])
                tokens[i, begin:end] = self.documents.tokens[source : source + end - begin]
                targets[i, begin:end] = self.documents.tokens[source + 1 : source + 1 + end - begin]
                if self.documents.lengths is not None:
                    lengths[i, begin:end] = self.documents.lengths[source + 1 : source + 1 + end - begin]
                segments[i, begin:end] = segment
                documents[i, begin:end] = document[piece]
            weights[i, :end] = 1
        return Rows(
            {"tokens": tokens, "targets": targets, "weights": weights, "segments": segments}, documents, lengths
        )

    def facts(self) -> dict:
        """The corpus's checksums, packages and what was dropped, and this split's size, for the run's record."""
        about = self.corpus.manifest
        return {
            "task": "text",
            "split": self.split,
            **about["splits"][self.split],
            "rows": self.rows,
            "tokens_per_step": self.config.batch * self.config.length,
            **{name: about[name] for name in ("checksum", "tokenizer", "vocabulary", "packages", "dropped")},
        }
