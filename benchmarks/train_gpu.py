"""Times whole training steps of the four architectures on a GPU, with the scans' kernels and without.

    python benchmarks/train_gpu.py [--json FILE]

Width 1,024, eight symbols of the study's shapes (about 52 million parameters beside the embeddings), 16 rows of 2,048
random tokens, bfloat16 over float32 parameters, AdamW. Each architecture steps with the implementation that "auto"
takes, and those with a scan with its XLA form too, from the same weights on the same batch; the losses of the first
steps and the norms of their gradients are printed beside one another before anything is timed.
"""

import argparse
import datetime
import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
from workbench_kernels import implementation

from workbench.config import (
    AttentionConfig,
    Layout,
    Mamba2Config,
    MambaConfig,
    MLPConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    TextConfig,
)
from workbench.count import count
from workbench.model.language_model import create
from workbench.train.environment import environment
from workbench.train.optimizer import optimizer
from workbench.train.step import lower_step

WIDTH, VOCABULARY, ROWS, LENGTH = 1024, 32_768, 16, 2048
PATTERNS = {"transformer": "(*-)x4", "mamba": "(S)x8", "mamba2": "(M)x8", "hybrid": "MM-*MM-M"}
SYMBOLS = {
    "*": AttentionConfig(heads=8, rotary=0.5),
    "-": MLPConfig(),
    "S": MambaConfig(state=16),
    "M": Mamba2Config(state=128, head_dim=64),
}
QUEUED, TURNS = 5, 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the measurements to this file as well")
    arguments = parser.parse_args()
    proved = implementation._PROVED
    prepared = []
    for arm, pattern in PATTERNS.items():
        for kernels in [proved, frozenset()] if set(pattern) & set("SM") else [proved]:
            implementation._PROVED = kernels
            prepared.append((arm, *lowered(pattern)))
            jax.clear_caches()  # or the next trace would be this one
    implementation._PROVED = proved
    with ThreadPoolExecutor() as pool:
        compiled = list(pool.map(lambda each: each[2].compile(), prepared))
    rows = []
    for (arm, run, _, chosen), step in zip(prepared, compiled, strict=True):
        at = count(run.model, LENGTH)
        seconds, loss, norm = timed(run, step)
        rate = ROWS * LENGTH / seconds
        row = {"arm": arm, "implementation": chosen, "seconds": seconds, "tokens_per_second": rate, "loss": loss}
        row |= {"gradient_norm": norm, "parameters": at.parameters, "flops_per_token": at.train_flops_per_token}
        row["temporary_bytes"] = step.memory_analysis().temp_size_in_bytes
        rows.append(row)
        print(
            f"{arm:12} {' '.join(sorted(set(chosen.values()))) or '-':16} loss {loss:.5f} gradient {norm:.5f} "
            f"{1e3 * seconds:8.1f} ms a step {rate:10,.0f} tokens/s {rate * at.train_flops_per_token / 1e12:6.0f} "
            f"TFLOP/s {row['temporary_bytes'] / 2**30:6.1f} GiB",
            flush=True,
        )
    if arguments.json:
        record = {"date": datetime.date.today().isoformat(), "environment": environment(), "rows": rows}
        arguments.json.write_text(json.dumps(record, indent=1) + "\n")


def lowered(pattern: str):
    """The run, its lowered step, and what its operations chose."""
    model = ModelConfig(pattern, WIDTH, VOCABULARY, SYMBOLS, dtype="bfloat16")
    data = TextConfig(length=LENGTH, batch=ROWS)
    run = RunConfig("train_gpu", "arm", model, data, None, OptimizerConfig(), steps=1000)
    leaves, tree = jax.tree.flatten(jax.eval_shape(lambda: start(run)))
    shapes = jax.eval_shape(lambda: batch(0))
    return run, *lower_step(run, Layout(), tree, leaves, shapes)


def start(run: RunConfig):
    model = create(run.model, 0)
    return model, optimizer(run.optimizer, run.steps).init(model)


def batch(seed: int) -> dict[str, jax.Array]:
    tokens = jax.random.randint(jax.random.key(seed), (ROWS, LENGTH + 1), 0, VOCABULARY)
    ones = jax.numpy.ones((ROWS, LENGTH))
    return {
        "tokens": tokens[:, :-1], "targets": tokens[:, 1:], "weights": ones, "segments": ones.astype("int32")
    }  # fmt: skip


def timed(run: RunConfig, step) -> tuple[float, float, float]:
    """Median seconds of a step, of turns of steps that are queued together; the first loss and gradient's norm."""
    leaves, first, taken = jax.tree.leaves(jax.jit(lambda: start(run))()), None, []
    given = batch(0)
    for _ in range(1 + TURNS):
        begun = time.perf_counter()
        for _ in range(QUEUED):
            leaves, metrics = step(leaves, given)
            first = first or (float(metrics["loss"]), float(metrics["gradient_norm"]))
        jax.block_until_ready(leaves)
        taken.append((time.perf_counter() - begun) / QUEUED)
    return float(np.median(taken[1:])), *first


if __name__ == "__main__":
    main()
