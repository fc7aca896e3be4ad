"""Loss by position in long documents that were not trained on, past the length of training too."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from workbench.config import PositionEvaluation, RunConfig, TextConfig
from workbench.data.text import TextStream
from workbench.evaluate.items import Scored
from workbench.evaluate.text import bits_per_byte, gathered, spread, summary
from workbench.model.language_model import LanguageModel, ModelState
from workbench.model.names import named, weights_hash
from workbench.record import read_json, write_json
from workbench.train.checkpoint import load_model
from workbench.train.loss import negative_log_likelihood

STRETCH, ROWS = 256, 4  # tokens of a document read at a time, documents read side by side
FIRST = 16  # the first bin ends at or after this position


def evaluator(config: PositionEvaluation, run: RunConfig) -> Callable[[LanguageModel, str], dict]:
    """`evaluate(model, split)`: {"score", "bits_per_byte", "by_group", "by_position": [{start, end, mean, ...}]}.

    Reads `config.documents` of the split's documents of at least `config.length` tokens, spread evenly over them in
    their own order, each from its beginning: the same for every seed and arm. Bins of positions double in width;
    one that ends past the run's length is `extrapolated`. score and bits_per_byte are of all positions that are not.
    A document is read stretch by stretch, each from the state that the one before left, so that memory grows with the
    length as the model's state does: not at all for a recurrence, linearly for attention. Rows: a bin of a document.
    Raises ValueError if the run's data is not text, or fewer than two documents are long enough.
    """
    if not isinstance(run.data, TextConfig):
        raise ValueError(f"loss by position needs text; the run's data is {type(run.data).__name__}, not TextConfig")
    if config.documents < 2 or config.length < 1:
        raise ValueError(
            f"evaluation.documents={config.documents} and length={config.length}; an interval needs 2 documents, and "
            "a document a token"
        )
    data = dataclasses.replace(run.data, length=config.length)
    edges = bins(config.length)

    @functools.cache
    def stream(split: str) -> TextStream:
        return data.stream(split)

    def evaluate(model: LanguageModel, split: str = "test") -> dict:
        source = stream(split)
        rows = long_documents(source)
        if len(rows) < 2:
            raise ValueError(
                f"the split {split!r} has {len(rows)} documents of at least evaluation.length={config.length} tokens, "
                "and an interval needs 2; make it shorter, or add text"
            )
        rows = rows[spread(len(rows), config.documents)]
        nats, count, number = [], [], []
        for start in range(0, len(rows), ROWS):
            read = source.read(rows[start : start + ROWS])
            loss = _nats(model, read.batch, min(ROWS, len(rows)))
            nats.append(np.add.reduceat(loss, edges[:-1], axis=1))
            count.append(np.add.reduceat(read.bytes.astype(np.int64), edges[:-1], axis=1))
            number.append(read.documents[:, 0])
        nats, count, number = map(np.concatenate, (nats, count, number))
        own = source.documents.group[number]
        group, names = gathered(own, source.documents.groups)
        seen = edges[1:] <= max(run.data.length, edges[1])
        within = nats[:, seen].sum(axis=1), count[:, seen].sum(axis=1)
        bits = bits_per_byte(*within, group)
        masks = {names[number]: group == number for number in np.unique(group)}
        scores = {
            "score": -bits["mean"],
            "bits_per_byte": bits,
            "by_group": {name: summary(*(each[mask] for each in within)) for name, mask in sorted(masks.items())},
            "by_position": [
                {"start": int(start), "end": int(end), "extrapolated": bool(end > run.data.length)}
                | bits_per_byte(nats[:, i], count[:, i], group)
                for i, (start, end) in enumerate(pairwise(edges))
            ],
        }
        rows = [
            {
                "document": int(number[row]),
                "group": source.documents.groups[own[row]],
                "start": int(edges[i]),
                "end": int(edges[i + 1]),
                "bytes": int(count[row, i]),
                "nats": float(nats[row, i]),
            }
            for row, i in np.ndindex(nats.shape)
        ]
        return Scored(scores, rows)

    return evaluate


def of_runs(
    folders: Mapping[str, Path], config: PositionEvaluation, *, progress: bool = False
) -> dict[str, dict[str, Any]]:
    """`evaluate` of each run's last checkpoint on its test split, or {"error": why} of one that cannot be read so.

    Each is kept beside its run, RUN/positions/, under the hash of its weights, and read from there the next time.
    """
    found: dict[str, dict[str, Any]] = {}
    for name, folder in tqdm(folders.items(), desc="loss by position", unit="run", disable=not progress):
        run, model = load_model(folder)
        weights = weights_hash({each: np.asarray(leaf) for each, leaf in named(model).items()})[:8]
        place = Path(folder) / "positions" / f"{weights}-{config.documents}x{config.length}.json"
        values = read_json(place)
        if values is None:
            try:
                values = evaluator(config, run)(model, "test")
            except ValueError as why:
                found[name] = {"error": str(why)}
                continue
            place.parent.mkdir(exist_ok=True)
            write_json(place, values)
        found[name] = values
    return found


def bins(length: int) -> np.ndarray:
    """Edges of bins that double in width up to the length: 0, 16, 32, ..., 4096."""
    edges = [length]
    while edges[-1] // 2 >= FIRST:
        edges.append(edges[-1] // 2)
    return np.array([0, *reversed(edges)])


def long_documents(stream: TextStream) -> np.ndarray:
    """Rows that a document fills from its beginning: one for each that is at least as long as a row."""
    first = stream.pieces.first[:-1]
    return np.flatnonzero((stream.pieces.offset[first] == 0) & (stream.pieces.size[first] == stream.config.length))


def _nats(model: LanguageModel, batch: dict[str, np.ndarray], rows: int) -> np.ndarray:
    """Loss of every target in nats [B, T]; filled up with padding to one number of rows and whole stretches."""
    size, length = batch["tokens"].shape
    stretch = min(STRETCH, length)
    padding = (0, rows - size), (0, -length % stretch)
    tokens, targets, segments = (np.pad(batch[name], padding) for name in ("tokens", "targets", "segments"))
    state, found = _initial(model, rows, length), []
    for start in range(0, length, stretch):
        part = slice(start, start + stretch)
        loss, state = _read(model, state, tokens[:, part], targets[:, part], segments[:, part])
        found.append(np.asarray(loss, np.float64))
    return np.concatenate(found, axis=1)[:size, :length]


@partial(jax.jit, static_argnums=(1, 2))
def _initial(model: LanguageModel, rows: int, capacity: int) -> ModelState:
    return model.initial_state(rows, capacity)


@jax.jit
def _read(
    model: LanguageModel, state: ModelState, tokens: jax.Array, targets: jax.Array, segments: jax.Array
) -> tuple[jax.Array, ModelState]:
    """Loss of a stretch [B, T] and the state after it."""
    output = model(tokens, state, segments)
    return negative_log_likelihood(output.hidden, model.head(), targets), output.state
