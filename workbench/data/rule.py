"""What data made by rule share: splits by a hash of what is to be remembered, rows of documents of one size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

SPLITS = {"train": (0, 8), "select": (8, 9), "test": (9, 10)}  # tenths of the hash range

Documents = Callable[[int, int, np.random.Generator], tuple[np.ndarray, np.ndarray]]


def known(split: str) -> str:
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is unknown; use one of {', '.join(SPLITS)}")
    return split


def mixed(x: np.ndarray) -> np.ndarray:
    """splitmix64 of uint64: every bit depends on every bit."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def tenth(x: np.ndarray) -> np.ndarray:
    """Tenth (0-9) of the hash range in which a uint64 falls; independent of any seed."""
    return (mixed(x) % np.uint64(10)).astype(np.int64)


def within(tenths: np.ndarray, split: str) -> np.ndarray:
    low, high = SPLITS[split]
    return (tenths >= low) & (tenths < high)


def rows(config: Any, split: str, step: int, lengths: dict[int, int], documents: Documents) -> dict[str, np.ndarray]:
    """tokens, targets, segments [B, T] int32; weights [B, T] float32: what training reads at a step.

    Each row holds documents of one size, as many as fit; each size has equally many rows. lengths: tokens of a document
    by its size. documents(size, count, rng): their tokens [count, length] and the weight of each position's target.
    """
    rng = np.random.Generator(np.random.Philox(key=[config.seed, list(SPLITS).index(split)], counter=[0, 0, 0, step]))
    shape = (config.batch, config.length)
    out = {
        "tokens": np.zeros(shape, np.int32),
        "targets": np.zeros(shape, np.int32),
        "weights": np.zeros(shape, np.float32),
        "segments": np.zeros(shape, np.int32),
    }
    every = tuple(lengths)
    sizes = rng.permutation(np.resize(np.roll(every, -(step % len(every))), config.batch))
    for size, length in lengths.items():
        at = np.flatnonzero(sizes == size)
        if len(at) == 0:
            continue
        per_row = config.length // length
        tokens, weights = documents(size, len(at) * per_row, rng)
        targets = np.concatenate([tokens[:, 1:], np.zeros_like(tokens[:, :1])], axis=1)
        end = per_row * length
        out["tokens"][at, :end] = tokens.reshape(len(at), end)
        out["targets"][at, :end] = targets.reshape(len(at), end)
        out["weights"][at, :end] = weights.reshape(len(at), end)
        out["segments"][at, :end] = np.repeat(np.arange(1, per_row + 1), length)
    return out
