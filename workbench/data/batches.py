"""Batches made in the background while a step runs."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np


def prefetch(stream: Any, start: int, stop: int, depth: int = 2) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """(step, stream.batch(step)) for steps start..stop-1, in order, at most `depth` made ahead by one thread.

    What stream.batch raises is raised here, at its step, with its traceback. Closing the iterator ends the thread.
    """
    if depth < 1:
        raise ValueError(f"prefetch keeps at least 1 batch ahead; got depth {depth}")
    return _prefetch(stream, start, stop, depth)


def _prefetch(stream, start, stop, depth):
    pool = ThreadPoolExecutor(1, thread_name_prefix="batches")
    try:
        ahead = deque(pool.submit(stream.batch, step) for step in range(start, min(start + depth, stop)))
        for step in range(start, stop):
            batch = ahead.popleft().result()
            if step + depth < stop:
                ahead.append(pool.submit(stream.batch, step + depth))
            yield step, batch
    finally:
        pool.shutdown(cancel_futures=True)
