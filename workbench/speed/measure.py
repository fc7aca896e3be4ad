"""What generating takes on the machine at hand, and what the machine can do: both measured, apart from each other."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from workbench.devices import Device
from workbench.generate import Reading, blank, generate
from workbench.model.language_model import LanguageModel
from workbench.model.where import Progress
from workbench.speed.fit import Sample
from workbench.train.environment import environment

READ_BYTES = 2**28  # of a matrix that no cache holds
SIDE = 2048  # of the matrices whose product is timed


class Profile(NamedTuple):
    """samples: by prompt and tokens. facts: the machine, batch and dtype that they are of."""

    samples: tuple[Sample, ...]
    facts: dict[str, Any]


def profile(
    model: LanguageModel,
    prompts: Sequence[int],
    tokens: Sequence[int],
    *,
    batch: int = 1,
    trials: int = 3,
    progress: bool | str = True,
) -> Profile:
    """Times every prompt length with every number of generated tokens, after a warm-up of each that compiles.

    Trials go round the whole grid, so that a machine that is busy for a while spoils one trial of many points rather
    than all of one.
    """
    grid = list(itertools.product(sorted(prompts), sorted(tokens)))
    if not grid or min(min(point) for point in grid) < 1 or batch < 1 or trials < 1:
        raise ValueError(
            f"prompts, tokens, batch and trials are at least 1; got {prompts}, {tokens}, {batch}, {trials}"
        )
    rng = np.random.default_rng(0)
    text = rng.integers(1, model.config.vocabulary, (batch, max(prompts)))
    seconds: dict[tuple[int, int], list[float]] = {point: [] for point in grid}
    name = progress if isinstance(progress, str) else "profile"
    with tqdm(total=len(grid) * (trials + 1), desc=name, unit="run", disable=not progress) as bar:
        for trial in range(trials + 1):
            for length, new in grid:
                begun = time.perf_counter()
                jax.block_until_ready(generate(model, list(text[:, :length]), new).reading.hidden)
                if trial:
                    seconds[length, new].append(time.perf_counter() - begun)
                bar.update()
    samples = tuple(Sample(*point, tuple(taken)) for point, taken in seconds.items())
    facts = {"batch": batch, "pattern": model.config.pattern, "dtype": model.config.dtype, **environment()}
    return Profile(samples, facts)


def decode_seconds(
    model: LanguageModel, *, batch: int, context: int, tokens: int = 16, trials: int = 3
) -> tuple[float, ...]:
    """Seconds of a decoding step with `context` tokens behind it, one figure a trial, the mean over `tokens` steps.

    What the context says costs nothing, so none is read: the caches are as long as if it had been, and hold zeros. The
    first trial compiles and is not counted.
    """
    new = tokens * (trials + 1)
    times = []
    reading = _pretended(model, batch, context, context + new)
    generate(model, reading, new, every=tokens, on_tokens=lambda _: times.append(time.perf_counter()))
    return tuple(float(each) / tokens for each in np.diff(times))


def _pretended(model: LanguageModel, batch: int, context: int, capacity: int) -> Reading:
    """A reading of that many tokens that was never made."""
    nothing = blank(model, batch, capacity)
    one, far = (jnp.full((batch,), number, jnp.int32) for number in (1, context))
    state = nothing.state._replace(progress=Progress(length=far, segment=one, document=one, position=far))
    return nothing._replace(state=state, length=np.full(batch, context))


def this_machine(dtype: str = "float32", trials: int = 5) -> Device:
    """The default device's bandwidth, of reading a matrix once, and arithmetic rate, of a product of matrices."""
    rows = READ_BYTES // jnp.dtype(dtype).itemsize // SIDE
    tall, column = jnp.ones((rows, SIDE), dtype), jnp.ones((SIDE, 1), dtype)
    square = jnp.ones((SIDE, SIDE), dtype)
    product = jax.jit(lambda a, b: a @ b)
    about = jax.devices()[0]
    memory = (about.memory_stats() or {}).get("bytes_limit") or _installed_bytes()
    return Device(
        name=f"this machine ({about.device_kind})",
        memory_bytes=float(memory),
        bandwidth=READ_BYTES / _fastest(lambda: product(tall, column), trials),
        flops=2 * SIDE**3 / _fastest(lambda: product(square, square), trials),
        source="measured",
    )


def _fastest(run: Callable[[], jax.Array], trials: int) -> float:
    """Seconds of the fastest of some calls after a first one."""
    seconds = []
    for _ in range(trials + 1):
        begun = time.perf_counter()
        run().block_until_ready()
        seconds.append(time.perf_counter() - begun)
    return min(seconds[1:])


def _installed_bytes() -> int:
    """Memory of the machine, for a device that shares it."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
