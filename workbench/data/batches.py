"""Batches made in the background while a step runs, and what a batch has to be."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np


class Part(NamedTuple):
    """The rows of a batch from the low-th to before the high-th of `of` equal parts."""

    low: int = 0
    high: int = 1
    of: int = 1

    def rows(self, count: int) -> slice:
        """Which of so many rows. Raises ValueError if they cannot be divided."""
        if count % self.of:
            raise ValueError(f"a batch of {count} rows cannot be divided into {self.of} parts; change data.batch")
        return slice(count * self.low // self.of, count * self.high // self.of)


WHOLE = Part()


@dataclass(frozen=True)
class _Steps:
    """A stream's batches as a source of Grain's: any of them can be asked for."""

    stream: Any
    start: int
    stop: int
    part: Part

    def __len__(self) -> int:
        return self.stop - self.start

    def __getitem__(self, index: int) -> tuple[int, dict[str, np.ndarray]]:
        step = self.start + index
        if self.part == WHOLE:
            return step, self.stream.batch(step)
        if hasattr(self.stream, "part"):
            return step, self.stream.part(step, self.part)
        batch = self.stream.batch(step)
        return step, {name: array[self.part.rows(len(array))] for name, array in batch.items()}


def prefetch(
    stream: Any, start: int, stop: int, depth: int = 2, part: Part = WHOLE
) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """(step, stream.batch(step)) for steps start..stop-1, in order, at most `depth` made ahead by a thread of Grain's.

    With a part, its rows alone: of a stream that has `part(step, part)` no others are read.
    What stream.batch raises is raised here, at its step, with its traceback. Closing the iterator ends the thread.
    """
    if depth < 1:
        raise ValueError(f"prefetch keeps at least 1 batch ahead; got depth {depth}")
    return _prefetch(_Steps(stream, start, stop, part), depth)


def _prefetch(steps: _Steps, depth: int):
    if not len(steps):
        return
    import grain

    data = grain.MapDataset.source(steps)
    ahead = iter(data.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=depth)))
    try:
        yield from ahead
    finally:
        ahead.close()


def check_batch(batch: Any, vocabulary: int, source: str) -> None:
    """Raises ValueError, saying what is needed, unless `batch` is what training reads.

    That is `tokens`, `targets` (integers below the vocabulary) and `weights` (at least 0), arrays of one shape [B, T],
    and perhaps `segments` (integers, 0 = padding).
    """
    needed = "needed are tokens, targets and weights, arrays of one shape [rows, length], and perhaps segments"
    if not isinstance(batch, dict):
        raise ValueError(f"{source} gave {type(batch).__name__} as a batch; {needed}")
    shapes = {name: np.shape(array) for name, array in batch.items()}
    missing = [name for name in ("tokens", "targets", "weights") if name not in shapes]
    if missing or len(set(shapes.values())) > 1 or len(next(iter(shapes.values()))) != 2:
        raise ValueError(f"{source} gave a batch of {shapes or 'nothing'}; {needed}")
    for name in ("tokens", "targets", "segments"):
        array = np.asarray(batch.get(name, 0))
        if array.dtype.kind not in "iu":
            raise ValueError(f"{source} gave {name} of {array.dtype}; they are integers")
        if name != "segments" and not 0 <= array.min() <= array.max() < vocabulary:
            raise ValueError(
                f"{source} gave {name} from {array.min()} to {array.max()}; the model's vocabulary is {vocabulary}: "
                "set model.vocabulary to data.vocabulary"
            )
    if not np.asarray(batch["weights"]).min() >= 0:
        raise ValueError(f"{source} gave weights below 0; a weight is 0 for what is not learned, else 1")
