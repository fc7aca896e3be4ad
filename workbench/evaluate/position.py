"""Loss by position in long documents that were not trained on, past the length of training too."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from tqdm import tqdm

from workbench.config import Files, PositionEvaluation, RunConfig, UnknownData
from workbench.data.text import Rows, TextStream
from workbench.evaluate.items import Scored
from workbench.evaluate.score import Subject, tokenizer_of
from workbench.evaluate.text import Texts, bits_per_byte, gathered, of_files, spread, summary, text_of
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
    one that ends past the length of training is `extrapolated` (see `trained_length`). score and bits_per_byte are of
    all positions that are not. Past a limit of the model's (ModelConfig.positions) it is read all the same: here that
    is the question.
    A document is read stretch by stretch, each from the state that the one before left, so that memory grows with the
    length as the model's state does: not at all for a recurrence, linearly for attention. Rows: a bin of a document.
    Raises ValueError if the run's data is not text, or fewer than two documents are long enough.
    """
    data = dataclasses.replace(text_of(run, "loss by position"), length=config.length)
    _check(config)

    @functools.cache
    def stream(split: str) -> TextStream:
        return data.stream(split)

    def evaluate(model: LanguageModel, split: str = "test") -> dict:
        source = stream(split)
        long = _enough(long_documents(source), source.documents.sizes, f"the split {split!r} has", config)
        group, names = source.documents.group, source.documents.groups
        return _scores(model, config, source.read, long, group, names, trained_length(run))

    return evaluate


def on_texts(model: LanguageModel, texts: Texts, config: PositionEvaluation, trained: int | None) -> Scored:
    """What `evaluator` gives, on documents of any files: for models whose training data are unknown, or another's.

    trained: the length of training; None where it is unknown, and with it what is `extrapolated`.
    Nothing is held out or taken out: whether the model was trained on these texts is for the caller to know.
    """
    _check(config)
    long = _enough(np.flatnonzero(texts.sizes >= config.length), texts.sizes, "these texts have", config)
    read = lambda rows: texts.read([(row, 0) for row in rows.tolist()], config.length)  # noqa: E731
    return _scores(model, config, read, long, texts.group, texts.names, trained)


def trained_length(run: RunConfig) -> int | None:
    """How many tokens long the texts were that the run's model was trained on; None where nobody knows.

    Of an imported model its positions say it, if it has any; of a run that goes on from one, the longer of both.
    """
    positions = run.model.positions
    if isinstance(run.data, UnknownData):
        return positions or None
    return max(run.data.length, positions) if run.parent else run.data.length


def _check(config: PositionEvaluation) -> None:
    if config.documents < 2 or config.length < 1:
        raise ValueError(
            f"evaluation.documents={config.documents} and length={config.length}; an interval needs 2 documents, and "
            "a document a token"
        )


def _enough(long: np.ndarray, sizes: np.ndarray, whose: str, config: PositionEvaluation) -> np.ndarray:
    """`config.documents` of those that are long enough. Raises ValueError for fewer than two."""
    if len(long) < 2:
        longest = int(max(sizes, default=0))
        raise ValueError(
            f"{whose} {len(long)} documents of at least evaluation.length={config.length} tokens (the longest has "
            f"{longest}), and an interval needs 2; make it shorter, or add text"
        )
    return long[spread(len(long), config.documents)]


def _scores(
    model: LanguageModel,
    config: PositionEvaluation,
    read: Callable[[np.ndarray], Rows],
    rows: np.ndarray,
    group: np.ndarray,
    groups: list[str],
    trained: int | None,
) -> Scored:
    """Reads the rows, a document's beginning each. group: of every document, an index into groups."""
    model = model.apart()  # a layer's cache is written where it is; those of a stack would be copied twice
    edges = bins(config.length)
    nats, count, number = [], [], []
    for start in range(0, len(rows), ROWS):
        found = read(rows[start : start + ROWS])
        loss = _nats(model, found.batch, min(ROWS, len(rows)))
        nats.append(np.add.reduceat(loss, edges[:-1], axis=1))
        count.append(np.add.reduceat(found.bytes.astype(np.int64), edges[:-1], axis=1))
        number.append(found.documents[:, 0])
    nats, count, number = map(np.concatenate, (nats, count, number))
    own = group[number]
    lots, names = gathered(own, groups)
    past = [None if trained is None else bool(end > trained) for end in edges[1:]]
    seen = np.array([not each for each in past])
    seen[0] = True
    within = nats[:, seen].sum(axis=1), count[:, seen].sum(axis=1)
    bits = bits_per_byte(*within, lots)
    masks = {names[number]: lots == number for number in np.unique(lots)}
    scores = {
        "score": -bits["mean"],
        "bits_per_byte": bits,
        "by_group": {name: summary(*(each[mask] for each in within)) for name, mask in sorted(masks.items())},
        "by_position": [
            {"start": int(start), "end": int(end), "extrapolated": past[i]}
            | bits_per_byte(nats[:, i], count[:, i], lots)
            for i, (start, end) in enumerate(pairwise(edges))
        ],
    }
    items = [
        {
            "document": int(number[row]),
            "group": groups[own[row]],
            "start": int(edges[i]),
            "end": int(edges[i + 1]),
            "bytes": int(count[row, i]),
            "nats": float(nats[row, i]),
        }
        for row, i in np.ndindex(nats.shape)
    ]
    return Scored(scores, items)


def of_runs(
    folders: Mapping[str, Path], config: PositionEvaluation, *, progress: bool = False
) -> dict[str, dict[str, Any]]:
    """`of_run` of each run's last checkpoint on its test split, or {"error": why} of one that cannot be read so."""
    found: dict[str, dict[str, Any]] = {}
    for name, folder in tqdm(folders.items(), desc="loss by position", unit="run", disable=not progress):
        try:
            found[name], _ = of_run(folder, config)
        except ValueError as why:
            found[name] = {"error": str(why)}
    return found


def of_run(
    folder: Path | str,
    config: PositionEvaluation,
    files: Files | None = None,
    *,
    split: str = "test",
    step: int | Literal["best"] | None = None,
) -> tuple[dict[str, Any], Path]:
    """Loss by position of a run's checkpoint, and the file that keeps it: on its split, or on texts of any files.

    It is kept beside the run, RUN/positions/, under the hash of its weights, the sizes and, of files, the texts' hash,
    and read from there the next time. Raises ValueError as `evaluator` does, and if files cannot be read as its tokens.
    """
    run, model = load_model(folder, step)
    weights = weights_hash({each: np.asarray(leaf) for each, leaf in named(model).items()})[:8]
    name = f"{weights}-{config.documents}x{config.length}"
    if files is None:
        texts, name = None, name if split == "test" else f"{name}-{split}"
    else:
        subject = Subject(model, tokenizer_of(folder, run))
        subject.check()
        texts = of_files(subject.tokenizer, files)
        name = f"{name}-{texts.digest}"
    place = Path(folder) / "positions" / f"{name}.json"
    values = read_json(place)
    if values is None:
        if texts is None:
            values = evaluator(config, run)(model, split)
        else:
            values = on_texts(model, texts, config, trained_length(run))
        place.parent.mkdir(exist_ok=True)
        write_json(place, values)
    return values, place


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


@partial(jax.jit, donate_argnames="state")
def _read(
    model: LanguageModel, state: ModelState, tokens: jax.Array, targets: jax.Array, segments: jax.Array
) -> tuple[jax.Array, ModelState]:
    """Loss of a stretch [B, T] and the state after it, which is written over the one before."""
    output = model(tokens, state, segments)
    return negative_log_likelihood(output.hidden, model.head(), targets), output.state
