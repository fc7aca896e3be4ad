"""Documents packed into rows, the order in which rows are read, and blends of several sources: all without state."""

from __future__ import annotations

import functools
from bisect import bisect_left, insort
from collections.abc import Sequence
from fractions import Fraction
from math import gcd, inf, lcm
from typing import NamedTuple

import numpy as np

LONGEST = 100_000  # rows of a blend's period: made in a second, and floats still tell any two of its due dates apart


class Pieces(NamedTuple):
    """Stretches of documents, in the order of the rows that they lie in; every token is in one of them."""

    document: np.ndarray
    offset: np.ndarray  # of the first token in its document
    size: np.ndarray
    first: np.ndarray  # [rows + 1]: row r holds pieces first[r]..first[r + 1] - 1


def pack(sizes: np.ndarray, group: np.ndarray, length: int) -> Pieces:
    """Documents split at the length, and what is left over packed together by best fit; a row holds one group only."""
    pieces, counts = [], []
    together = np.argsort(group, kind="stable")
    for members in np.split(together, np.flatnonzero(np.diff(group[together])) + 1):
        whole = sizes[members] // length
        document = np.repeat(members, whole)
        offset = (np.arange(len(document)) - np.repeat(np.cumsum(whole) - whole, whole)) * length
        pieces.append(np.stack([document, offset, np.full_like(offset, length)], axis=1))
        counts.append(np.ones(len(document), np.int64))
        left = np.stack([members, whole * length, sizes[members] % length], axis=1)
        rows = _best_fit([tuple(piece) for piece in left.tolist() if piece[2]], length)
        pieces += [np.array(row) for row in rows]
        counts.append(np.array([len(row) for row in rows], np.int64))
    return Pieces(*np.concatenate(pieces).T, np.cumsum(np.concatenate([[0], *counts])))


def _best_fit(pieces: list[tuple[int, int, int]], length: int) -> list[list[tuple[int, int, int]]]:
    """The pieces, longest first, each into the fullest row that has room for it."""
    rows, room = [], []  # room: sorted (free tokens, row)
    for piece in sorted(pieces, key=lambda p: (-p[2], p[0])):
        at = bisect_left(room, (piece[2], 0))
        free, row = room.pop(at) if at < len(room) else (length, len(rows))
        if row == len(rows):
            rows.append([])
        rows[row].append(piece)
        insort(room, (free - piece[2], row))
    return rows


@functools.lru_cache(maxsize=8)
def order(seed: int, epoch: int, rows: int, source: int = 0) -> np.ndarray:
    """The permutation of an epoch, from raw bits, which NumPy keeps the same from version to version."""
    return np.argsort(np.random.Philox(key=[seed, epoch | source << 40]).random_raw(rows), kind="stable")


class Stage(NamedTuple):
    """Steps of one batch size, until the next stage: the first of them, its first row, and the rows of each."""

    step: int
    row: int
    batch: int

    def rows(self, step: int) -> range:
        """Of a step of this stage, which rows of the stream are its batch."""
        start = self.row + (step - self.step) * self.batch
        return range(start, start + self.batch)


def stages(batch: int, ramp: Sequence[int]) -> list[Stage]:
    """Batch-size warm-up by Megatron's rule, whose arguments `ramp` has: first batch, increment, rows.

    The batch grows by the increment each time that another of as many equal parts of those rows has been read.
    Raises ValueError unless the increments lead from the first batch to the last.
    """
    if not ramp:
        return [Stage(0, 0, batch)]
    first, increment, rows = ramp if len(ramp) == 3 else (0, 0, 0)
    if min(first, increment, rows) < 1 or first > batch or (batch - first) % increment:
        raise ValueError(
            f"data.ramp is (first batch, increment, rows), and whole increments lead to data.batch={batch}; "
            f"got {tuple(ramp)}"
        )
    found, step, row = [], 0, 0
    parts = (batch - first) // increment
    for part, size in enumerate(range(first, batch, increment), 1):
        steps = -((row * parts - part * rows) // (parts * size))  # until part * rows / parts rows have been read
        if steps > 0:  # else the stage before ended past this one's end
            found.append(Stage(step, row, size))
            step, row = step + steps, row + steps * size
    return [*found, Stage(step, row, batch)]


class Blend(NamedTuple):
    """A repeating schedule of sources: row i is the source `source[i % period]`'s row `before[...]`, as `at` counts."""

    source: np.ndarray  # [period]
    before: np.ndarray  # [period]: how many of that source's rows stand earlier in the period
    counts: np.ndarray  # [sources]: rows a period

    def at(self, row: int) -> tuple[int, int]:
        """(source, its how-manieth row) of a row of the blend."""
        whole, rest = divmod(row, len(self.source))
        source = int(self.source[rest])
        return source, whole * int(self.counts[source]) + int(self.before[rest])


@functools.lru_cache(maxsize=8)
def blend(weights: Sequence[float]) -> Blend:
    """Rows by weight: after any number of rows each source has its share to within one row.

    Weights are taken as they are written (1 / 6 as well) and each period has their shares exactly. The schedule is the
    one that serves, of the sources that may go ahead, the one whose next row falls due first (Tijdeman 1980, "The
    chairman assignment problem"). Raises ValueError unless all weights are positive and a period has LONGEST rows or
    fewer.
    """
    if not weights or not all(0 < weight < inf for weight in weights):
        raise ValueError(f"a blend's weights are positive numbers, one a source; got {tuple(weights)}")
    exact = [Fraction(weight).limit_denominator(LONGEST) for weight in weights]
    exact = [
        near if float(near) == weight else Fraction(str(weight)) for near, weight in zip(exact, weights, strict=True)
    ]
    scale = lcm(*(weight.denominator for weight in exact))
    wholes = [int(weight * scale) for weight in exact]
    shares = [whole // gcd(*wholes) for whole in wholes]  # rows of each source in a period
    period = sum(shares)
    if period > LONGEST:
        raise ValueError(
            f"a blend has its weights' exact shares after at most {LONGEST:,} rows; {tuple(weights)} would need more: "
            "give rounder weights, such as (70, 15, 15)"
        )
    most = max(2 * len(shares) - 2, 2)  # a source may be 1 - 1/most rows ahead of its share
    counts = [0] * len(shares)
    source, before = [], []
    for row in range(1, period + 1):
        able = [j for j, share in enumerate(shares) if (row * share - counts[j] * period) * most >= period]
        chosen = min(able, key=lambda j: (((counts[j] + 1) * most - 1) / shares[j], j))
        source.append(chosen)
        before.append(counts[chosen])
        counts[chosen] += 1
    return Blend(np.array(source), np.array(before), np.array(counts))
