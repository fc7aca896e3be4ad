"""Times the scans on CPU against what JAX offers without them: a step-by-step scan under autodiff, the same with chunks
of 32 checkpointed, and the associative scan.

    python benchmarks/scan_cpu.py [--quick] [--only selective_scan] [--json FILE]

Every form of a size is timed in turn, round after round, so that a busy machine slows all of them; only ratios within a
run mean anything, and on a busy machine those of the fastest times before those of the medians. Temporaries are XLA's
own figure for the compiled program. A form that needs more of them than --memory GiB is compiled but not run. Batches
shrink as T grows, down to one sequence.
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import workbench_kernels

from workbench.train.environment import cpus, processor
from workbench.train.memory import keep_freed_memory

I, H, P, N = 512, 8, 64, {"selective_scan": 16, "ssd": 64}
TOKENS = 2048


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="T = 256 and 1024 only, five rounds")
    parser.add_argument("--only", choices=FORMS, help="this operation alone")
    parser.add_argument("--json", type=Path, help="write the measurements to this file as well")
    parser.add_argument("--memory", type=float, default=4, help="GiB of temporaries that a form may take (4)")
    arguments = parser.parse_args()
    lengths, rounds = ((256, 1024), 5) if arguments.quick else ((256, 1024, 4096, 16384), 9)
    keep_freed_memory()  # as in training: XLA's larger temporaries would be faulted in anew at every call
    rows = []
    print(
        f"{'operation':15} {'T':>6} {'B':>2} {'form':18} {'pass':17} {'median ms':>9} {'/ xla':>6}"
        f" {'fastest':>9} {'/ xla':>6} {'MiB':>8} {'/ xla':>6}"
    )
    for operation in [arguments.only] if arguments.only else FORMS:
        for length in lengths:
            for backward in (False, True):
                measured = measure(operation, length, backward, rounds, int(arguments.memory * 2**30))
                for row in measured:
                    print(line(row, measured[0]), flush=True)
                rows += measured
    if arguments.json:
        machine = {
            "processor": processor(),
            "cores": cpus(),
            "load": os.getloadavg(),
            "jax": jax.__version__,
        }
        arguments.json.write_text(
            json.dumps({"date": date.today().isoformat(), "machine": machine, "rows": rows}, indent=1) + "\n"
        )


def line(row: dict, ours: dict) -> str:
    """One row of the table, with ratios to the first form's."""
    times = f"{'too big':>9} {'':6} {'':9} {'':6}"
    if row["seconds"] is not None:
        times = " ".join(
            f"{row[key] * 1e3:9.1f} {row[key] / ours[key] if ours[key] else float('nan'):6.2f}"
            for key in ("seconds", "fastest_seconds")
        )
    mib, more = row["temporary_bytes"] / 2**20, row["temporary_bytes"] / ours["temporary_bytes"]
    return (
        f"{row['operation']:15} {row['T']:6} {row['B']:2} {row['form']:18} {row['pass']:17}"
        f" {times} {mib:8.1f} {more:6.1f}"
    )


def measure(operation: str, length: int, backward: bool, rounds: int, limit: int) -> list[dict]:
    """A row for each form: the median of `rounds` interleaved runs, and the temporaries."""
    batch = max(1, TOKENS // length)
    inputs, weights = make_inputs(operation, batch, length)
    compiled = {}
    for name, form in FORMS[operation].items():

        def output(*inputs, form=form):
            return form(*inputs)[0]

        def loss(*inputs, output=output):
            return jnp.sum(output(*inputs) * weights)

        run = jax.value_and_grad(loss, argnums=tuple(range(len(inputs)))) if backward else output
        compiled[name] = jax.jit(run).lower(*inputs).compile()
    bytes_of = {name: c.memory_analysis().temp_size_in_bytes for name, c in compiled.items()}
    seconds = {name: [] for name, size in bytes_of.items() if size <= limit}
    for turn in range(rounds + 1):
        for name, taken in seconds.items():
            start = time.perf_counter()
            jax.block_until_ready(compiled[name](*inputs))
            if turn:  # the first warms up
                taken.append(time.perf_counter() - start)
    return [
        {
            "operation": operation,
            "T": length,
            "B": batch,
            "form": name,
            "pass": "forward+backward" if backward else "forward",
            "seconds": float(np.median(seconds[name])) if name in seconds else None,
            "fastest_seconds": min(seconds[name]) if name in seconds else None,
            "temporary_bytes": bytes_of[name],
        }
        for name in compiled
    ]


def make_inputs(operation: str, batch: int, length: int) -> tuple[tuple[jax.Array, ...], jax.Array]:
    """Random float32 inputs x, dt, A, B, C, and weights that make y a loss."""
    rng = np.random.default_rng(0)

    def normal(*shape):
        return jnp.asarray(rng.standard_normal(shape), jnp.float32)

    states = N[operation]
    if operation == "selective_scan":
        inner, A = (I,), -jnp.tile(jnp.arange(1.0, states + 1)[None], (I, 1))
        B, C, dt = normal(batch, length, states), normal(batch, length, states), normal(batch, length, I)
    else:
        inner, A = (H, P), -jnp.linspace(1, 16, H)
        B, C, dt = normal(batch, length, 1, states), normal(batch, length, 1, states), normal(batch, length, H)
    return (normal(batch, length, *inner), jax.nn.softplus(dt - 4), A, B, C), normal(batch, length, *inner)


def terms(x, dt, A, B):
    """Decay and input of steps [..., ] of either operation, shaped like its state."""
    if x.ndim == dt.ndim:  # S6
        return jnp.exp(dt[..., None] * A), (dt * x)[..., None] * B[..., None, :]
    decay = jnp.exp(dt * A)[..., None, None]
    return decay, (dt[..., None] * x)[..., None] * B[..., :, None, :]


def read(h, C):
    return jnp.sum(h * (C[..., None, :] if h.ndim == C.ndim + 1 else C[..., :, None, :]), axis=-1)


def zero_state(x, B):
    return jnp.zeros((x.shape[0], *x.shape[2:], B.shape[-1]), x.dtype)


def time_first(arrays):
    return tuple(jnp.moveaxis(a, 1, 0) for a in arrays)


def scan(x, dt, A, B, C):
    """Step by step under autodiff."""

    def step(h, inputs):
        x, dt, B, C = inputs
        decay, new = terms(x, dt, A, B)
        h = decay * h + new
        return h, read(h, C)

    h, y = jax.lax.scan(step, zero_state(x, B), time_first((x, dt, B, C)))
    return jnp.moveaxis(y, 0, 1), h


def checkpointed(x, dt, A, B, C, chunk=32):
    """Step by step, chunks of 32 computed again in the backward pass."""

    @jax.checkpoint
    def one_chunk(h, inputs):
        def step(h, inputs):
            x, dt, B, C = inputs
            decay, new = terms(x, dt, A, B)
            h = decay * h + new
            return h, read(h, C)

        return jax.lax.scan(step, h, inputs)

    chunks = tuple(a.reshape(-1, chunk, *a.shape[1:]) for a in time_first((x, dt, B, C)))
    h, y = jax.lax.scan(one_chunk, zero_state(x, B), chunks)
    return jnp.moveaxis(y.reshape(-1, *y.shape[2:]), 0, 1), h


def associative(x, dt, A, B, C):
    """All states at once."""

    def combine(left, right):
        return left[0] * right[0], right[0] * left[1] + right[1]

    decay, new = terms(x, dt, A, B)
    _, h = jax.lax.associative_scan(combine, (decay, new), axis=1)
    return read(h, C), h[:, -1]


FORMS: dict[str, dict[str, Callable]] = {
    operation: {
        "xla": getattr(workbench_kernels, operation),
        "scan": scan,
        "checkpointed scan": checkpointed,
        "associative scan": associative,
    }
    for operation in ("selective_scan", "ssd")
}


if __name__ == "__main__":
    main()
