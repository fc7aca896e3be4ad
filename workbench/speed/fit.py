"""A runtime model from measured runs: T(p, o) = prompt(p) + the sum over o tokens of token(context).

prompt is piecewise linear in the prompt's length; token is a constant and a drift with the context, which a growing
cache has and a recurrent state has not. Where a cache is read whole, with room that doubles when it is full, the drift
is with that room. The denoised form takes each point's fastest trial: other work on the machine
only ever adds time. Source: the idealized runtime of Narayanan et al. 2023, arXiv:2305.02440, whose constant time a
token is the case without drift.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import nnls

from workbench.record import read_json, write_json

KNOTS = 8  # places at most where the prompt's line may bend


class Sample(NamedTuple):
    """Seconds of reading `prompt` tokens and generating `tokens` more, for a batch: one figure a trial."""

    prompt: int
    tokens: int
    seconds: tuple[float, ...]


@dataclass(frozen=True)
class Runtime:
    """knots: prompt lengths, with the seconds of reading each. token_seconds: of a token after no context.

    drift_seconds: what each token of context adds to a token, or of the room for them, where `capacity` is what room
    begins with and doubles from (0: it is the context itself). r_squared: of the points that it was fitted to.
    """

    knots: tuple[float, ...]
    prompt_seconds: tuple[float, ...]
    token_seconds: float
    drift_seconds: float
    r_squared: float
    facts: dict[str, Any] = field(default_factory=dict)
    capacity: int = 0

    def predict(self, prompt: float, tokens: float) -> float:
        """Seconds of reading a prompt and generating tokens; past the knots the last line goes on."""
        return float(_terms(self.knots, [(prompt, tokens)], self.capacity)[0] @ self._weights())

    def drift(self, context: int) -> float:
        """How much longer a token takes at this context than at none, as a fraction."""
        return self.drift_seconds * float(_room(np.array([context]), self.capacity)[0]) / self.token_seconds

    def save(self, path: Path) -> None:
        write_json(path, asdict(self))

    @classmethod
    def read(cls, path: Path) -> Runtime:
        """Raises ValueError if there is no such file."""
        values = read_json(path)
        if values is None:
            raise ValueError(f"{path} is not there; fit(...).save(path) makes it")
        return cls(**values | {name: tuple(values[name]) for name in ("knots", "prompt_seconds")})

    def _weights(self) -> np.ndarray:
        return np.array([*self.prompt_seconds, self.token_seconds, self.drift_seconds])


def fit(
    samples: Sequence[Sample], *, denoised: bool = True, capacity: int = 0, facts: dict[str, Any] | None = None
) -> Runtime:
    """The runtime model of least relative error, no part of it below zero.

    capacity: the least room of a cache that doubles and is read whole, such as workbench.generate.CAPACITY; 0 for one
    that is read as far as it is filled. denoised: from each point's fastest trial, else from their mean. Raises
    ValueError unless two prompt lengths and two numbers of tokens were measured, which tells prompt and tokens apart.
    """
    points = [(sample.prompt, sample.tokens) for sample in samples]
    lengths, news = (sorted(set(each)) for each in zip(*points, strict=True)) if points else ([], [])
    if len(lengths) < 2 or len(news) < 2:
        raise ValueError(
            f"a fit needs at least 2 prompt lengths and 2 numbers of tokens; measured were {lengths} and {news}"
        )
    seconds = np.array([min(s.seconds) if denoised else np.mean(s.seconds) for s in samples], float)
    knots = lengths
    if len(knots) > KNOTS:
        knots = [lengths[i] for i in np.linspace(0, len(lengths) - 1, KNOTS).round().astype(int)]
    terms = _terms(knots, points, capacity)
    scale = np.abs(terms / seconds[:, None]).max(axis=0)  # columns differ by many powers of ten
    weights = nnls(terms / seconds[:, None] / scale, np.ones(len(seconds)))[0] / scale
    left = seconds - terms @ weights
    r_squared = 1 - float((left**2).sum() / ((seconds - seconds.mean()) ** 2).sum())
    *prompt, token, drift = weights.tolist()
    return Runtime(tuple(map(float, knots)), tuple(prompt), token, drift, r_squared, facts or {}, capacity)


def _room(contexts: np.ndarray, capacity: int) -> np.ndarray:
    """What is read of a cache that holds so many tokens."""
    if not capacity:
        return contexts
    return np.maximum(capacity, 2.0 ** np.ceil(np.log2(np.maximum(contexts, 1))))


def _terms(knots: Sequence[float], points: Sequence[tuple[float, float]], capacity: int) -> np.ndarray:
    """What each weight is multiplied by at each (prompt, tokens): shares of the knots, tokens, their contexts' sum."""
    knots = np.asarray(knots, float)
    prompt, tokens = np.asarray(points, float).T
    piece = np.clip(np.searchsorted(knots, prompt, side="right") - 1, 0, len(knots) - 2)
    share = (prompt - knots[piece]) / (knots[piece + 1] - knots[piece])
    line = np.zeros((len(prompt), len(knots)))
    rows = np.arange(len(prompt))
    line[rows, piece], line[rows, piece + 1] = 1 - share, share
    if not capacity:
        return np.column_stack([line, tokens, tokens * prompt + tokens * (tokens - 1) / 2])
    rooms = [_room(p + np.arange(1, round(o) + 1), capacity).sum() for p, o in zip(prompt, tokens, strict=True)]
    return np.column_stack([line, tokens, rooms])
