"""How long a training step takes to compile, and how large its program is, as layers are added.

    python benchmarks/compile.py [--layers 8 24 56] [--json FILE]

Two patterns of the same layers: one that repeats every two symbols, which is scanned over its periods (on a CPU past 16
layers), and the paper's hybrid, which has no period shorter than itself. Nothing is read from a compilation cache. The
program's size is that of its optimised HLO text; only its growth with the layers means anything.
"""

import argparse
import json
import os
import time
from datetime import date
from pathlib import Path

import jax
import jax.numpy as jnp

from workbench.config import (
    AttentionConfig,
    Mamba2Config,
    MLPConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    TextConfig,
)
from workbench.model.language_model import UNROLLED, create
from workbench.pattern import allocate
from workbench.train.environment import cpus, processor
from workbench.train.optimizer import optimizer
from workbench.train.step import make_step

SYMBOLS = {"M": Mamba2Config(state=16, head_dim=16), "*": AttentionConfig(heads=4), "-": MLPConfig()}
PATTERNS = {
    "repeats every two": lambda layers: "M-" * (layers // 2),
    "the paper's": lambda layers: allocate(layers, 0.08, 0.5),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, nargs="+", default=[8, 24, 56])
    parser.add_argument("--json", type=Path, help="write the measurements to this file as well")
    arguments = parser.parse_args()
    jax.config.update("jax_enable_compilation_cache", False)
    rows = []
    print(f"{'pattern':18} {'layers':>6} {'scanned':>8} {'traced s':>9} {'compiled s':>10} {'program KB':>10}")
    for name, pattern in PATTERNS.items():
        for layers in arguments.layers:
            row = {"pattern": name, "layers": layers} | measure(pattern(layers))
            rows.append(row)
            print(
                f"{name:18} {layers:6} {row['scanned']!s:>8} {row['trace_seconds']:9.1f} {row['compile_seconds']:10.1f}"
                f" {row['program_bytes'] / 1e3:10.0f}",
                flush=True,
            )
    if arguments.json:
        machine = {"processor": processor(), "cores": cpus(), "load": os.getloadavg(), "jax": jax.__version__}
        arguments.json.write_text(
            json.dumps({"date": date.today().isoformat(), "machine": machine, "rows": rows}, indent=1) + "\n"
        )


def measure(pattern: str) -> dict:
    """Seconds of tracing and of compiling the whole step, and the bytes of its program."""
    config = ModelConfig(pattern, 64, 257, SYMBOLS)
    run = RunConfig("compile", "arm", config, TextConfig(), None, OptimizerConfig(), steps=10)
    model = jax.eval_shape(lambda: create(config, 0))
    state = jax.eval_shape(optimizer(run.optimizer, run.steps).init, model)
    shape = (2, 128)
    batch = {name: jax.ShapeDtypeStruct(shape, jnp.int32) for name in ("tokens", "targets", "segments")}
    batch["weights"] = jax.ShapeDtypeStruct(shape, jnp.float32)
    begun = time.perf_counter()
    lowered = make_step(run).lower(model, state, batch)
    traced = time.perf_counter()
    compiled = lowered.compile()
    return {
        "scanned": model.layers[0].norm.scale.shape[0] > 1 and len(pattern) > UNROLLED,
        "trace_seconds": traced - begun,
        "compile_seconds": time.perf_counter() - traced,
        "program_bytes": len(compiled.as_text()),
    }


if __name__ == "__main__":
    main()
