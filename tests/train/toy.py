"""A task that is learned in a few steps: count on from a random start. Loaded as a user's own file would be."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Toy:
    length: int = 8
    batch: int = 4
    seed: int = 0
    poisoned: int = 0  # step whose batch has a weight that is not a number; 0 for none
    blank: int = 0  # step whose batch has no weight; 0 for none
    vocabulary: int = 11
    doubled: int = 0  # step from which a batch has twice the rows; 0 for none

    def stream(self, split="train"):
        return ToyStream(self, split)


@dataclass(frozen=True)
class Norm:
    """An evaluation that costs nothing: the size of the embedding."""

    def build(self, run):
        return lambda model, split: {"norm": float(np.abs(np.asarray(model.embedding[...])).sum())}


@dataclass(frozen=True)
class ToyStream:
    config: Toy
    split: str

    def facts(self):
        return {"task": "toy"}

    def batch(self, step):
        rng = np.random.default_rng((self.config.seed, step))
        twice = 2 if 0 < self.config.doubled <= step + 1 else 1
        shape = (twice * self.config.batch, self.config.length)
        rows = (
            rng.integers(self.config.vocabulary, size=(shape[0], 1)) + np.arange(shape[1] + 1)
        ) % self.config.vocabulary
        rows = rows.astype(np.int32)
        weights = rng.uniform(0.5, 1.5, shape).astype(np.float32)
        if step + 1 == self.config.poisoned:
            weights[-1, -1] = np.nan
        if step + 1 == self.config.blank:
            weights[:] = 0
        return {
            "tokens": rows[:, :-1],
            "targets": rows[:, 1:],
            "weights": weights,
            "segments": np.ones(shape, np.int32),
        }
