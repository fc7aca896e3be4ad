"""Checks and times the scans on an NVIDIA GPU of compute capability 9, against what they could take at best and others.

    python benchmarks/scan_gpu.py [--json FILE] [--only WORD] [--seconds 450] [--torch PYTHON]

First every kernel that there is runs on fresh random inputs and must agree with a float64 reference, in outputs, last
state and gradients. Then each size is timed, the most telling first, until the time is up; what was left out is said.
Times are medians of calls that are queued ten at a time; bytes are what XLA says that the program needs.
The floor is the larger of two times: the bytes that must move over the measured bandwidth of a copy, and the
exponentials (S6) or multiply-adds (SSD) that must be made over the measured rate of their unit.

Rivals: lax.scan and associative_scan under autodiff, our XLA form, `jax-linear-attention` where it can be imported.
"""

import argparse
import datetime
import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import workbench_kernels
from scan_cpu import associative, scan

from workbench.train.environment import environment

INNER = 8192  # channels of S6, and heads times head size of SSD: the paper's 8B layers
# The error allowed, of the largest value. S6 in float32: ex2.approx is good to 2e-7 and errors add up over time. SSD in
# bfloat16: weights, inputs and states are rounded to eight bits, 2^-9, before products.
CHECKED = {"selective_scan": 1e-3, "ssd": 2e-2}
LARGEST = 60 * 2**30  # bytes of a program that is run
QUEUED = 10  # calls
TOGETHER = 4  # sizes whose programs are compiled at a time, on all cores, before any of them is timed


class Size(NamedTuple):
    operation: str
    batch: int
    length: int
    states: int
    head: int = 0  # P of SSD

    def __str__(self):
        head = f" P={self.head}" if self.head else ""
        return f"{self.operation} B={self.batch} T={self.length} N={self.states}{head}"


def sizes() -> Iterator[Size]:
    """Those of the aims first, then short before long."""
    yield Size("selective_scan", 8, 4096, 16)
    yield Size("ssd", 8, 4096, 128, 64)
    for length in (2048, 8192, 32768):
        for batch in (1, 8):
            for states in (16, 64, 128):
                yield Size("selective_scan", batch, length, states)
            for states in (64, 128, 256):
                for head in (64, 128):
                    yield Size("ssd", batch, length, states, head)


def inputs(size: Size, seed: int, dtype=jnp.bfloat16, inner: int = INNER) -> tuple[jax.Array, ...]:
    """x, dt, A, B, C of one size; x, B and C in `dtype`, dt and A in float32."""
    keys = jax.random.split(jax.random.key(seed), 5)
    batch, length, states = size.batch, size.length, size.states

    def normal(key, *shape):
        return jax.random.normal(key, shape, dtype)

    if size.operation == "selective_scan":
        x, dt = normal(keys[0], batch, length, inner), jax.random.normal(keys[1], (batch, length, inner))
        A = -jnp.exp(jax.random.normal(keys[2], (inner, states)))
        B, C = (normal(key, batch, length, states) for key in keys[3:])
    else:
        heads = inner // size.head
        x, dt = normal(keys[0], batch, length, heads, size.head), jax.random.normal(keys[1], (batch, length, heads))
        A = -jnp.exp(jax.random.normal(keys[2], (heads,)))
        B, C = (normal(key, batch, length, 1, states) for key in keys[3:])
    return x, jax.nn.softplus(dt - 4), A, B, C


# ---- is it right


def check(operation: str, states: int, head: int) -> float:
    """The largest error of outputs, last state and gradients against float64, as a part of the largest value."""
    size = Size(operation, 2, 300, states, head)
    given = inputs(size, int.from_bytes(os.urandom(4)), jnp.bfloat16 if operation == "ssd" else jnp.float32, inner=512)

    def outcome(implementation, *arguments):
        def loss(*arguments):
            y, last = getattr(workbench_kernels, operation)(*arguments, implementation=implementation)
            return sum(jnp.sum(a * jax.random.normal(jax.random.key(0), a.shape, jnp.float32)) for a in (y, last)), (
                y,
                last,
            )

        return jax.jit(jax.grad(loss, argnums=tuple(range(5)), has_aux=True))(*arguments)

    got = outcome("mosaic_gpu", *given)
    with jax.enable_x64(True):
        want = outcome("reference", *(jnp.asarray(np.asarray(a, np.float64)) for a in given))
    pairs = zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True)
    return max(float(np.max(np.abs(np.asarray(g, np.float64) - w)) / np.max(np.abs(w))) for g, w in pairs)


# ---- how fast


def seconds(run: Callable, *arguments) -> float:
    """Of a call: the median of turns of ten calls that are queued together, after two calls that warm up.

    The device works on one while the host starts the next, so that the host's part is not timed.
    """
    for _ in range(2):
        jax.block_until_ready(run(*arguments))
    taken = []
    while len(taken) < 7 and sum(taken) < 3:
        start = time.perf_counter()
        for _ in range(QUEUED):
            last = run(*arguments)
        jax.block_until_ready(last)
        taken.append(time.perf_counter() - start)
    return float(np.median(taken)) / QUEUED


class Rates(NamedTuple):
    """What this GPU does at best, measured: bytes a second, exponentials a second, bfloat16 FLOP/s."""

    copy: float
    exponentials: float
    products: float


def measure_rates() -> Rates:
    bytes_ = 4 * 2**30
    copied = 2 * bytes_ / seconds(jax.jit(lambda a: a + 1), jnp.zeros(bytes_ // 4, jnp.float32))
    n = 8192
    square = jnp.ones((n, n), jnp.bfloat16)
    products = 2 * n**3 / seconds(jax.jit(lambda a, b: a @ b), square, square)
    return Rates(copied, exponential_rate(), products)


def exponential_rate() -> float:
    """A kernel that does nothing else: 4,096 exponentials one after the other of 16 values a thread."""
    from jax.experimental.pallas import mosaic_gpu as plgpu
    from workbench_kernels.mosaic import load, rows_and_columns, store

    rows, layout = rows_and_columns(16)
    blocks, turns, shape = 132 * 8, 4096, (4, rows, 16)

    def kernel(out, buffer):
        buffer[...] = jnp.zeros(shape, jnp.float32)
        plgpu.commit_smem()
        values = load(buffer, layout, jnp.float32)
        values = jax.lax.fori_loop(0, turns, lambda _, v: jnp.exp2(-v), values)
        store(buffer, values)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(buffer, out.at[jax.lax.axis_index("block")])
        plgpu.wait_smem_to_gmem(0)

    run = plgpu.kernel(
        kernel,
        out_type=jax.ShapeDtypeStruct((blocks, *shape), jnp.float32),
        scratch_types=[plgpu.SMEM(shape, jnp.float32)],
        grid=(blocks,),
        grid_names=("block",),
        compiler_params=plgpu.CompilerParams(approx_math=True),
    )
    return blocks * turns * int(np.prod(shape)) / seconds(jax.jit(run))


def floor(size: Size, backward: bool, rates: Rates) -> float:
    """Seconds at best: every input read and every output written once, the arithmetic done once a pass."""
    tokens = size.batch * size.length
    moved = tokens * (INNER * (2 + 4 + 2) + 2 * 2 * size.states) if size.operation == "selective_scan" else (
        tokens * (INNER * (2 + 2) + INNER // size.head * 4 + 2 * 2 * size.states)
    )  # fmt: skip
    if backward:  # dy, x, dt, B, C read; dx, ddt, dB, dC written, beside the forward pass
        moved *= 2.5
    if size.operation == "selective_scan":
        work = tokens * INNER * size.states * (2 if backward else 1) / rates.exponentials
    else:  # scores, their product with the inputs, the state's part and the state's update, at a chunk of 256
        chunk = 256
        pair = chunk / 2 * (size.states + size.head) + 2 * size.states * size.head
        work = 2 * tokens * INNER // size.head * pair * (3 if backward else 1) / rates.products
    return max(moved / rates.copy, work)


def forms(size: Size) -> dict[str, Callable]:
    """What is timed at a size; the plain scans only where they are short."""
    ours = getattr(workbench_kernels, size.operation)
    found: dict[str, Callable] = {}
    if "mosaic_gpu" in available(size.operation):
        found["mosaic_gpu"] = lambda *a: ours(*a, implementation="mosaic_gpu")
    found["xla"] = lambda *a: ours(*a, implementation="xla")
    if size.length <= 4096:
        found |= {"lax.scan": widened(scan), "associative_scan": widened(associative)}
    return found | rivals(size)


def widened(form: Callable) -> Callable:
    """A form that computes in its inputs' dtype, in float32."""
    return lambda x, dt, A, B, C: form(*(a.astype(jnp.float32) for a in (x, dt, A, B, C)))


def rivals(size: Size) -> dict[str, Callable]:
    """jax-linear-attention's kernels, where it can be imported; it wants dt in x's dtype, and dt x made beforehand."""
    try:
        from jla.ops import linear_attention
    except ImportError:
        return {}

    def s6(x, dt, A, B, C):
        return linear_attention("mamba1", C, B, x, dt=dt.astype(x.dtype), a=A, impl="mosaic_gpu")

    def ssd(x, dt, A, B, C):
        inputs = (dt[..., None] * x).astype(x.dtype)
        return linear_attention("simple_gla", C, B, inputs, g=dt * A, scale=1.0, impl="mosaic_gpu")

    return {"jax-linear-attention": s6 if size.operation == "selective_scan" else ssd}


def available(operation: str) -> tuple[str, ...]:
    from workbench_kernels.implementation import _AVAILABLE

    return _AVAILABLE[operation]


def programs(size: Size, pool: Executor) -> dict[tuple[str, str], Future]:
    """Every form's compiled forward pass, and with its gradients, of (dy, x, dt, A, B, C)."""
    given = jax.eval_shape(lambda: inputs(size, 0))
    found = {}
    for name, form in forms(size).items():

        def forward(dy, *arguments, form=form):
            return form(*arguments)[0]

        def both(dy, *arguments, form=form):
            y, pull_back = jax.vjp(lambda *a: form(*a)[0], *arguments)
            return y, pull_back(dy.astype(y.dtype))

        for pass_, run in (("forward", forward), ("forward+backward", both)):
            try:
                found[name, pass_] = pool.submit(jax.jit(run).lower(given[0], *given).compile)
            except Exception as error:  # one form that fails must not cost the others their turn
                found[name, pass_] = Future()
                found[name, pass_].set_exception(error)
    return found


def measure(size: Size, compiled: dict[tuple[str, str], Future], rates: Rates) -> Iterator[dict]:
    given = inputs(size, int.from_bytes(os.urandom(4)))
    dy = jax.random.normal(jax.random.key(1), given[0].shape, given[0].dtype)
    for (name, pass_), program in compiled.items():
        least = floor(size, pass_ != "forward", rates)
        row = size._asdict() | {"form": name, "pass": pass_, "floor": least}
        try:
            run = program.result()
            memory = run.memory_analysis()
            row["temporary_bytes"] = memory.temp_size_in_bytes
            whole = memory.temp_size_in_bytes + memory.argument_size_in_bytes + memory.output_size_in_bytes
            if whole > LARGEST:
                row["left_out"] = f"needs {whole / 2**30:.0f} GiB"
            else:
                row["seconds"] = seconds(run, dy, *given)
        except Exception as error:
            row["left_out"] = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
        yield row


def line(row: dict) -> str:
    what = f"{Size(*(row[field] for field in Size._fields))!s:44} {row['form']:16} {row['pass']:17}"
    if "seconds" not in row:
        return f"{what} {row['left_out']}"
    ratio, mib = row["seconds"] / row["floor"], row["temporary_bytes"] / 2**20
    return f"{what} {1e3 * row['seconds']:9.3f} ms {ratio:7.2f} x floor {mib:9.0f} MiB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write everything to this file as well")
    parser.add_argument("--only", default="", help="sizes whose name has this word, such as N=16 or ssd")
    parser.add_argument("--seconds", type=float, default=450, help="after which no further size is begun (450)")
    arguments = parser.parse_args()
    device = jax.devices()[0]
    if jax.default_backend() != "gpu" or not str(device.compute_capability).startswith("9."):
        kind = f"{device.device_kind}, compute capability {getattr(device, 'compute_capability', 'none')}"
        raise SystemExit(f"the kernels are for GPUs of compute capability 9; JAX found {kind}: nothing to measure here")
    begun = time.monotonic()
    print(f"{device.device_kind}, jax {jax.__version__}", flush=True)
    errors = {}
    checked = [("selective_scan", n, 0) for n in (4, 16, 64, 96)]
    checked += [("ssd", n, head) for n, head in ((16, 32), (64, 64), (128, 64), (128, 128), (256, 64))]
    with ThreadPoolExecutor() as pool:  # most of it is compiling
        for (operation, states, head), error in zip(checked, pool.map(check, *zip(*checked, strict=True)), strict=True):
            name = f"{operation} N={states}" + (f" P={head}" if head else "")
            errors[name] = error
            print(f"{name}: {error:.1e} from float64 at most, {CHECKED[operation]:.0e} allowed", flush=True)
    wrong = [name for name, error in errors.items() if not error < CHECKED[name.split()[0]]]
    if wrong:
        raise SystemExit(f"wrong, so not timed: {', '.join(wrong)}")
    print(f"checked after {time.monotonic() - begun:.0f} s", flush=True)
    rates = measure_rates()
    print(
        f"copy {rates.copy / 1e12:.2f} TB/s, exponentials {rates.exponentials / 1e12:.2f} T/s, "
        f"bfloat16 products {rates.products / 1e12:.0f} TFLOP/s",
        flush=True,
    )
    rows, late = [], []
    asked = [size for size in sizes() if arguments.only in str(size)]
    with ThreadPoolExecutor() as pool:
        for group in itertools.batched(asked, TOGETHER):
            if time.monotonic() - begun > arguments.seconds:
                late += map(str, group)
                continue
            compiled = {size: programs(size, pool) for size in group}
            wait(future for each in compiled.values() for future in each.values())
            for size in group:
                for row in measure(size, compiled.pop(size), rates):
                    rows.append(row)
                    print(line(row), flush=True)
    if late:
        print(f"not begun in {arguments.seconds:.0f} s: {'; '.join(late)}", file=sys.stderr)
    if arguments.json:
        record = {
            "date": datetime.date.today().isoformat(),
            "environment": environment(),
            "errors": errors,
            "rates": rates._asdict(),
            "rows": rows,
            "not_begun": late,
        }
        arguments.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
