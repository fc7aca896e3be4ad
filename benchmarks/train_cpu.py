"""Times a training step on CPU, ours and PyTorch's in turn: forward, backward, clipping and AdamW, in float32.

    python benchmarks/train_cpu.py [--quick] [--torch PYTHON] [--only NAME ...] [--json [FILE]]

Four architectures of width 256, 8 layers and vocabulary 4096 at B=8 T=256 and B=2 T=1024. With --torch, an interpreter
where torch (and transformers) can be imported, equal models run there: our weights and batch are copied over and the
loss and gradient norm must agree before anything is timed. Then the two take turns, never at the same moment, each
with every thread of the machine. Only ratios within a run mean anything; on a busy machine those of the fastest turns
mean more than those of the medians. Also printed: the temporaries that XLA needs for S6, forward and backward.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import workbench_kernels

from workbench import pattern as patterns
from workbench.config import ModelConfig, OptimizerConfig, PhonebookEvaluation, RunConfig
from workbench.model.language_model import create
from workbench.model.names import named
from workbench.train.environment import cpus, environment, processor
from workbench.train.memory import keep_freed_memory
from workbench.train.optimizer import UNDECAYED, decay_mask, optimizer
from workbench.train.step import make_step

WIDTH, VOCABULARY = 256, 4096
SHAPES = ((8, 256), (2, 1024))
PATTERNS = {
    "transformer": "(*-)x4",
    "mamba": "(S)x8",
    "mamba2": "(M)x8",
    "hybrid": patterns.allocate(8, 0.08, 0.5),
}
AIMS = {"transformer": 0.9, "mamba": 3.0, "mamba2": 1.2}  # ours over torch, tokens a second
STOCK = ("mamba", "mamba2")
STOCK_BATCH = 1  # stock Mamba-2 keeps [T, chunk, H, N] of every layer: 1 GiB a row of 256 tokens
TURN_SECONDS = 0.4  # each turn has as many steps as fill this
AGREE = 1e-4  # relative, of the losses: float32 sums of a few thousand terms in another order
AGREE_NORM = 1e-3  # of the gradient norm, which squares what eight layers of backward pass have rounded
S6_LENGTHS, S6_INNER, S6_STATE = (1024, 4096, 16384), 512, 16
# What keep_freed_memory() does here, for torch's process
MALLOC = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1),
    "MALLOC_TOP_PAD_": str(2**26),
}
STEPS = 1_000_000  # of the schedule, which stays at its peak


@dataclass(frozen=True)
class RandomTokens:
    """Uniform tokens, and uniform targets that have nothing to do with them."""

    vocabulary: int
    batch: int
    length: int

    def arrays(self) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(0)
        tokens, targets = rng.integers(0, self.vocabulary, (2, self.batch, self.length), dtype=np.int32)
        return {"tokens": tokens, "targets": targets, "weights": np.ones(tokens.shape, np.float32)}


class Ours:
    """Our model under its own train step, advanced turn by turn."""

    def __init__(self, pattern: str, batch: int, length: int):
        data = RandomTokens(VOCABULARY, batch, length)
        self.run = RunConfig(
            "train_cpu",
            "ours",
            ModelConfig(pattern, WIDTH, VOCABULARY),
            data,
            PhonebookEvaluation(),
            OptimizerConfig(warmup=0, final=1.0),
            steps=STEPS,
        )
        self.arrays = data.arrays()
        self.batch = jax.tree.map(jnp.asarray, self.arrays)
        self.model = create(self.run.model, 0)
        self.weights = jax.tree.map(np.asarray, named(self.model))
        mask = jax.tree.leaves(decay_mask(self.model))
        self.parameters = sum(leaf.size for leaf in jax.tree.leaves(self.model))
        self.decayed = sum(leaf.size for leaf, m in zip(jax.tree.leaves(self.model), mask, strict=True) if m)
        self.opt_state = optimizer(self.run.optimizer, self.run.steps).init(self.model)
        self.step = make_step(self.run).lower(self.model, self.opt_state, self.batch).compile()
        self.temporary_bytes = self.step.memory_analysis().temp_size_in_bytes

    def steps(self, count: int) -> dict:
        all_metrics = []
        start = time.perf_counter()
        for _ in range(count):
            self.model, self.opt_state, metrics = self.step(self.model, self.opt_state, self.batch)
            all_metrics.append(metrics)
        jax.block_until_ready((self.model, metrics))
        seconds = (time.perf_counter() - start) / count
        return {
            "seconds": seconds,
            "losses": [float(m["loss"]) for m in all_metrics],
            "norms": [float(m["gradient_norm"]) for m in all_metrics],
        }


class Rival:
    """The process of torch_rivals.py, which computes only while it is asked to."""

    def __init__(self, python: str):
        script = Path(__file__).with_name("torch_rivals.py")
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
        self.process = subprocess.Popen(
            [python, str(script), str(cpus())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment | MALLOC | {"HF_HUB_OFFLINE": "1"},
        )

    def ask(self, do: str, **request) -> dict:
        print(json.dumps({"do": do, **request}), file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit(f"torch's process ended ({self.process.wait()}) at {do!r}; its error is above")
        return json.loads(answer)

    def make(self, ours: Ours, stock: bool) -> dict:
        """The same model there, with our weights, batch and optimizer."""
        pattern = patterns.parse(ours.run.model.pattern)
        sizes = {}
        for symbol, layer in ours.run.model.symbols.items():
            sizes[symbol] = {
                key: value for key, value in asdict(layer).items() if isinstance(value, (int, float)) and value
            }
            sizes[symbol] |= dict(zip(SIZES[symbol], layer.sizes(WIDTH), strict=True))
            sizes[symbol]["taps"] = sizes[symbol].pop("conv", 0)
        chosen = ours.run.optimizer
        settings = {
            "lr": chosen.learning_rate,
            "betas": [chosen.beta1, chosen.beta2],
            "eps": chosen.epsilon,
            "weight_decay": chosen.decay,
            "clip": chosen.clip,
        }
        with tempfile.TemporaryDirectory() as folder:
            file = f"{folder}/weights.npz"
            np.savez(file, tokens=ours.arrays["tokens"], targets=ours.arrays["targets"], **ours.weights)
            return self.ask(
                "make",
                pattern=pattern,
                width=WIDTH,
                vocabulary=VOCABULARY,
                sizes=sizes,
                weights=file,
                undecayed=UNDECAYED,
                optimizer=settings,
                stock=stock,
            )

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


SIZES = {
    "*": ("heads", "kv_heads", "head_dim"),
    "-": ("hidden", "matrices"),
    "S": ("inner", "rank"),
    "M": ("inner", "heads"),
}


def compare(name: str, batch: int, length: int, rounds: int, rival: Rival | None, stock: bool = False) -> dict:
    """Checks that both compute the same, then times them in turn."""
    ours = Ours(PATTERNS[name], batch, length)
    row = {
        "architecture": name,
        "pattern": patterns.parse(PATTERNS[name]),
        "batch": batch,
        "length": length,
        "rival": None if rival is None else "transformers" if stock else "torch",
        "parameters": ours.parameters,
        "temporary_bytes": ours.temporary_bytes,
    }
    first = ours.steps(2)  # the second has an updated model: it checks the optimizer too
    sides = {"ours": ours.steps}
    if rival is not None:
        made = rival.make(ours, stock)
        check(name, "parameters", ours.parameters, made["parameters"], 0)
        check(name, "decayed parameters", ours.decayed, made["decayed"], 0)
        theirs = rival.ask("steps", steps=2)
        sides["theirs"] = lambda count: rival.ask("steps", steps=count)
        row["agreement"] = {
            "loss": check(name, "loss", first["losses"][0], theirs["losses"][0], AGREE),
            "gradient_norm": check(name, "gradient norm", first["norms"][0], theirs["norms"][0], AGREE_NORM),
            "loss_after_update": check(name, "loss after an update", first["losses"][1], theirs["losses"][1], AGREE),
        }
    counts = {side: max(1, int(TURN_SECONDS / steps(1)["seconds"])) for side, steps in sides.items()}
    seconds = {side: [] for side in sides}
    for _ in range(rounds):
        for side, steps in sides.items():
            time.sleep(0.02)  # the other's threads stop waiting for work
            seconds[side].append(steps(counts[side])["seconds"])
    for side, taken in seconds.items():
        row[side] = {
            "median_seconds": float(np.median(taken)),
            "fastest_seconds": min(taken),
            "tokens_per_second": batch * length / min(taken),
            "turns": len(taken),
            "steps_a_turn": counts[side],
        }
    if rival is not None:
        pairs = [theirs / ours for ours, theirs in zip(seconds["ours"], seconds["theirs"], strict=True)]
        row["ratio"] = {  # above 1: ours is faster
            "fastest": row["theirs"]["fastest_seconds"] / row["ours"]["fastest_seconds"],
            "median": row["theirs"]["median_seconds"] / row["ours"]["median_seconds"],
            "median_of_turns": float(np.median(pairs)),
        }
    return row


def check(name: str, what: str, ours: float, theirs: float, tolerance: float) -> float:
    """The relative difference; ends the benchmark if it is too large, for unequal models cannot be compared."""
    difference = abs(ours - theirs) / max(abs(ours), 1e-30)
    if not difference <= tolerance:
        raise SystemExit(f"{name}: {what} is {ours!r} here and {theirs!r} in torch, so these are not the same model")
    return difference


def line(row: dict) -> str:
    text = f"{row['architecture']:12} {row['batch']:2} {row['length']:5} {row['rival'] or '-':13}"
    for side in ("ours", "theirs"):
        if side in row:
            text += f" {row[side]['tokens_per_second']:8,.0f} {row[side]['median_seconds'] * 1e3:8.1f}"
    if "ratio" in row:
        ratio, seen = row["ratio"], row["agreement"]
        aim = AIMS.get(row["architecture"]) if row["rival"] == "torch" else None
        text += f" {ratio['fastest']:7.2f} {ratio['median_of_turns']:7.2f} {aim or '':>5}  {max(seen.values()):.0e}"
    return text


def s6_memory(length: int) -> dict:
    """Temporaries of S6 for one sequence, forward and backward, by XLA's own account; nothing is run."""

    def compiled(implementation):
        def total(x, dt, A, B, C):
            return jnp.sum(workbench_kernels.selective_scan(x, dt, A, B, C, implementation=implementation)[0])

        of = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)  # noqa: E731
        wide, narrow = of(1, length, S6_INNER), of(1, length, S6_STATE)
        gradient = jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2, 3, 4)))
        return gradient.lower(wide, wide, of(S6_INNER, S6_STATE), narrow, narrow).compile().memory_analysis()

    ours = compiled("xla")
    return {
        "batch": 1,
        "length": length,
        "inner": S6_INNER,
        "state": S6_STATE,
        "temporary_bytes": ours.temp_size_in_bytes,
        "argument_bytes": ours.argument_size_in_bytes,
        "output_bytes": ours.output_size_in_bytes,
        "step_by_step_temporary_bytes": compiled("reference").temp_size_in_bytes,
        "all_states_bytes": 4 * length * S6_INNER * S6_STATE,
    }


def machine() -> dict:
    """The processor, and what runs on it."""
    return {
        "processor": processor(),
        "cores": cpus(),
        "load": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "backend": jax.default_backend(),
    }


def keep(record: dict, path: Path) -> None:
    """Writes a record as JSON, to standard output for the path "-"."""
    text = json.dumps(record, indent=1) + "\n"
    print(text, end="") if path == Path("-") else path.write_text(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="B=8 T=256 only, five turns each")
    parser.add_argument("--torch", metavar="PYTHON", help="an interpreter where torch can be imported: time it in turn")
    parser.add_argument("--only", nargs="+", choices=PATTERNS, help="these architectures alone")
    parser.add_argument("--turns", type=int, help="turns of each side (15, or 5 with --quick)")
    parser.add_argument("--json", type=Path, nargs="?", const=Path("-"), help="print JSON alone, or write it to a file")
    arguments = parser.parse_args()
    table = sys.stderr if arguments.json == Path("-") else sys.stdout
    say = functools.partial(print, flush=True, file=table)
    if jax.default_backend() != "cpu":
        raise SystemExit(f"this times CPUs and JAX chose {jax.default_backend()}; set JAX_PLATFORMS=cpu")
    turns = arguments.turns or (5 if arguments.quick else 15)
    shapes = SHAPES[:1] if arguments.quick else SHAPES
    chosen = arguments.only or list(PATTERNS)

    keep_freed_memory()
    facts = machine()
    rival = None
    if arguments.torch:
        rival = Rival(arguments.torch)
        facts |= rival.ask("facts")
    say(", ".join(f"{key} {value}" for key, value in facts.items()))
    say(
        f"{'':12} {'':2} {'':5} {'':13} {'ours':>17} {'theirs':>17}   ours / theirs\n"
        f"{'architecture':12} {'B':>2} {'T':>5} {'rival':13} {'tokens/s':>8} {'ms':>8} {'tokens/s':>8} {'ms':>8}"
        f" {'fastest':>7} {'median':>7} {'aim':>5}  difference"
    )
    rows = []
    for batch, length in shapes:
        for name in chosen:
            rows.append(compare(name, batch, length, turns, rival))
            say(line(rows[-1]))
    if "transformers" in facts:
        for name in STOCK:
            if name in chosen:
                rows.append(compare(name, STOCK_BATCH, SHAPES[0][1], 3, rival, stock=True))
                say(line(rows[-1]))
    if rival is not None:
        rival.close()
    memory = []
    if "mamba" in chosen:
        say("\nS6, forward and backward, B=1 I=512 N=16: temporaries in MiB, step by step under autodiff, [T, I, N]")
        for length in S6_LENGTHS:
            memory.append(row := s6_memory(length))
            of = (row[f"{key}_bytes"] / 2**20 for key in ("temporary", "step_by_step_temporary", "all_states"))
            say(f"T {length:6}" + "".join(f" {mib:9.1f}" for mib in of))
    if arguments.json:
        record = {
            "date": datetime.date.today().isoformat(),
            "machine": facts,
            "code": environment()["git"],
            "model": {"width": WIDTH, "vocabulary": VOCABULARY, "dtype": "float32"},
            "symbols": {s: asdict(c) for s, c in ModelConfig("*", WIDTH, VOCABULARY).symbols.items()},
            "training": rows,
            "s6_memory": memory,
        }
        keep(record, arguments.json)


if __name__ == "__main__":
    main()
