"""Where each token stands: built once by the model, read by every layer."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int


class Where(NamedTuple):
    """Documents and positions of the tokens of one call.

    segments: each row's documents numbered from 1 in order, 0 for padding at its end; None: every row is one document.
    positions: place within the document, so that packing changes no rotation.
    start: tokens that each row had read before (None outside inference); the cache continues there.
    carried: document number that each row's state belongs to, 0 for a fresh state (None outside inference).
    """

    segments: Int[Array, "B T"] | None
    positions: Int[Array, "#B T"]
    start: Int[Array, " B"] | None
    carried: Int[Array, " B"] | None


class Progress(NamedTuple):
    """How far each row has read: tokens, its last document's id and number, and the next position within it."""

    length: Int[Array, " B"]
    segment: Int[Array, " B"]
    document: Int[Array, " B"]
    position: Int[Array, " B"]


def nothing_read(batch: int) -> Progress:
    zeros = jnp.zeros((batch,), jnp.int32)
    return Progress(zeros, zeros, zeros, zeros)


def locate(
    batch: int, time: int, segments: Int[Array, "B T"] | None, progress: Progress | None
) -> tuple[Where, Progress | None]:
    """Where the tokens of a call stand, and the progress after them. An id that comes back is another document."""
    index = jnp.arange(time, dtype=jnp.int32)[None]
    if progress is None and segments is None:
        return Where(None, index, None, None), None
    if segments is None:  # the document of each row goes on; a fresh row's is number 1
        segments = jnp.broadcast_to(jnp.maximum(progress.segment, 1)[:, None], (batch, time))
    segments = segments.astype(jnp.int32)
    last_id, carried = (jnp.zeros((batch,), jnp.int32),) * 2 if progress is None else progress[1:3]
    before = jnp.concatenate([last_id[:, None], segments[:, :-1]], axis=1)
    real = segments != 0
    documents = carried[:, None] + jnp.cumsum((segments != before) & real, axis=1, dtype=jnp.int32)
    documents = jnp.where(real, documents, 0)
    starts = jax.lax.cummax(jnp.where(segments != before, index, -1), axis=1)  # -1: the document began before this call
    offset = 0 if progress is None else progress.position[:, None]
    positions = jnp.where(starts < 0, index + offset, index - starts)
    if progress is None:
        return Where(documents, positions, None, None), None
    count = real.sum(axis=1, dtype=jnp.int32)
    last = jnp.maximum(count - 1, 0)[:, None]
    at_last = lambda values: jnp.take_along_axis(values, last, axis=1)[:, 0]  # noqa: E731
    after = Progress(
        progress.length + count,
        jnp.where(count > 0, at_last(segments), progress.segment),
        jnp.where(count > 0, at_last(documents), progress.document),
        jnp.where(count > 0, at_last(positions) + 1, progress.position),
    )
    return Where(documents, positions, progress.length, carried), after
