"""What document ids mean to a recurrence.

Ids are [B, T]; 0 is padding, for which no time passes, and a change of id starts a document from zero.
Comparing ids in pairs would take the two ends of 1 2 1 for one document, so everything else compares runs:
run 0 continues the state that was given, each later document of the row has the next number, and padding
keeps the number of the token before it.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from workbench_kernels.shapes import require


class Runs(NamedTuple):
    """number: [B, T] the run a token belongs to; real: [B, T] not padding; starts: [B, T] the state restarts here."""

    number: jax.Array
    real: jax.Array
    starts: jax.Array


def find_runs(segments: jax.Array | None, initial_segment: jax.Array | None, batch: int, time: int) -> Runs | None:
    """Runs of `segments` given that the state belongs to document `initial_segment` (None: to the row's first)."""
    if segments is None:
        if initial_segment is not None:
            raise ValueError("initial_segment was given without segments; give both, or neither")
        return None
    segments = jnp.asarray(segments)
    require("segments", segments, ("B", "T"), {"B": batch, "T": time})
    real = segments != 0
    latest = jax.lax.cummax(jnp.where(real, jnp.arange(time)[None, :], -1), axis=1)
    filled = jnp.take_along_axis(segments, jnp.maximum(latest, 0), axis=1)
    if initial_segment is None:
        first = jnp.take_along_axis(segments, jnp.argmax(real, axis=1)[:, None], axis=1)
    else:
        initial_segment = jnp.asarray(initial_segment)
        require("initial_segment", initial_segment, ("B",), {"B": batch})
        first = initial_segment[:, None].astype(segments.dtype)
    filled = jnp.where(latest < 0, first, filled)
    starts = filled != jnp.concatenate([first, filled[:, :-1]], axis=1)
    return Runs(jnp.cumsum(starts, axis=1, dtype=jnp.int32), real, starts)
