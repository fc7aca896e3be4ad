"""Times generation on CPU, ours and transformers' in turn: tokens read a second, tokens written a second, in float32.

    python benchmarks/decode.py [--torch PYTHON] [--only NAME ...] [--turns N] [--json [FILE]]

Four architectures of width 256, 8 layers and vocabulary 4096, at batch 1 and 8: a prompt of 256 tokens is read, then
64 tokens follow, the likeliest each. With --torch, an interpreter where torch and transformers can be imported, the
same weights are written for transformers (workbench.exchange) and loaded there; the logits after the prompt must agree
before anything is timed, and the share of equal tokens is printed. Then the two take turns, never at the same moment,
each with every thread of the machine; theirs writes by its own `generate`, from the first new token to the last. No
architecture of transformers has the hybrid's weights, so ours is timed alone. Only ratios within a run mean anything;
on a busy machine those of the fastest turns mean more than those of the medians. Last, a step of the pure state-space
models against context.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import jax
import numpy as np
from train_cpu import Rival, keep, machine

from workbench import pattern as patterns
from workbench.config import MLPConfig, ModelConfig
from workbench.exchange.huggingface import to_huggingface
from workbench.generate import generate, read
from workbench.model.language_model import LanguageModel, create
from workbench.speed.measure import decode_seconds
from workbench.train.environment import environment

WIDTH, VOCABULARY, PROMPT, TOKENS = 256, 4096, 256, 64
BATCHES = (1, 8)
PATTERNS = {
    "transformer": "(*-)x4",
    "mamba": "(S)x8",
    "mamba2": "(M)x8",
    "hybrid": patterns.allocate(8, 0.08, 0.5),
}
RIVALED = ("transformer", "mamba", "mamba2")
SYMBOLS = {"-": MLPConfig(hidden=688, activation="swiglu")}  # transformers' MLPs are gated; 8/3 of the width
# tokens written a second, ours over transformers' loop, at each batch: what a trial reached, and what is aimed at
FLOORS = {"transformer": (2.9, 1.4), "mamba": (4.7, 3.1), "mamba2": (5.8, 3.5)}
AIMS = {"transformer": (3.5, 2.0), "mamba": (6.0, 4.0), "mamba2": (7.0, 4.5)}
AGREE = 1e-4  # of the logits after the prompt, whose spread is about 0.3: float32 sums in another order
FLAT = ("mamba", "mamba2")
CONTEXTS = (256, 4096, 65_536)


def prompts(batch: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, VOCABULARY, (batch, PROMPT))


class Ours:
    """Our model, its prompts and what it has read of them."""

    def __init__(self, model: LanguageModel, batch: int):
        self.model, self.prompts = model, list(prompts(batch))
        self.reading = read(model, self.prompts, room=TOKENS)

    def prompt(self) -> float:
        start = time.perf_counter()
        jax.block_until_ready(read(self.model, self.prompts, room=TOKENS).hidden)
        return time.perf_counter() - start

    def decode(self) -> float:
        start = time.perf_counter()
        generate(self.model, self.reading, TOKENS)
        return (time.perf_counter() - start) / TOKENS


def compare(name: str, batch: int, turns: int, rival: Rival | None) -> dict:
    """Checks that both compute the same, then times them in turn."""
    model = create(ModelConfig(PATTERNS[name], WIDTH, VOCABULARY, SYMBOLS), 0)
    ours = Ours(model, batch)
    row = {"architecture": name, "pattern": patterns.parse(PATTERNS[name]), "batch": batch}
    sides = {"prompt": {"ours": ours.prompt}, "decode": {"ours": ours.decode}}
    if rival is not None and name in RIVALED:
        with tempfile.TemporaryDirectory() as folder:
            to_huggingface(model, folder)
            rival.ask("load", folder=folder, prompts=prompts(batch).tolist())
        row["agreement"] = agreement(name, ours, rival)
        asked = lambda do: lambda: rival.ask(do, tokens=TOKENS)["seconds"]  # noqa: E731
        sides["prompt"]["theirs"] = asked("prompt")
        sides["decode"]["theirs"] = asked("generate")
    for what, sides_of in sides.items():
        seconds = {side: [] for side in sides_of}
        for turn in range(turns + 1):
            for side, run in sides_of.items():
                time.sleep(0.02)  # the other's threads stop waiting for work
                taken = run()
                if turn:  # the first compiles
                    seconds[side].append(taken)
        tokens = batch * (PROMPT if what == "prompt" else 1)
        row[what] = {
            side: {"fastest_seconds": min(taken), "median_seconds": float(np.median(taken)),
                   "tokens_per_second": tokens / min(taken)}
            for side, taken in seconds.items()
        }  # fmt: skip
        mine = seconds.pop("ours")
        row[what]["ratio"] = {  # above 1: ours is faster
            side: {
                "fastest": min(taken) / min(mine),
                "median_of_turns": float(np.median([b / a for a, b in zip(mine, taken, strict=True)])),
            }
            for side, taken in seconds.items()
        }
    return row


def agreement(name: str, ours: Ours, rival: Rival) -> dict:
    """The largest difference of logits after the prompt, and how many of the tokens that follow are the same."""
    theirs = np.array(rival.ask("prompt")["logits"])
    logits = ours.model.logits(ours.reading.hidden)
    difference = float(np.abs(np.asarray(logits) - theirs).max())
    if not difference <= AGREE:
        raise SystemExit(f"{name}: the logits differ by {difference:.1e}, so these are not the same model")
    mine = np.stack(generate(ours.model, ours.reading, TOKENS).tokens)
    same = mine == np.array(rival.ask("generate", tokens=TOKENS)["tokens"])[:, :TOKENS]
    return {"logits": difference, "same_tokens": float(same.mean())}


def line(row: dict) -> str:
    text = f"{row['architecture']:12} {row['batch']:2}"
    for what in ("prompt", "decode"):
        found = row[what]
        text += f" {found['ours']['tokens_per_second']:9,.0f}"
        if "theirs" in found:
            ratio = found["ratio"]["theirs"]
            text += (
                f" {found['theirs']['tokens_per_second']:9,.0f} {ratio['fastest']:6.2f} {ratio['median_of_turns']:6.2f}"
            )
        else:
            text += f" {'-':>9} {'':6} {'':6}"
    if "agreement" in row:
        at = BATCHES.index(row["batch"])
        text += f" {FLOORS[row['architecture']][at]:5} {AIMS[row['architecture']][at]:5}"
        text += f"  {row['agreement']['logits']:.0e} {row['agreement']['same_tokens']:.0%}"
    return text


def flat(name: str, batch: int, turns: int) -> dict:
    """Seconds of a step at each context, in turn, and how much longer one takes at the furthest than at the nearest."""
    model = create(ModelConfig(PATTERNS[name], WIDTH, VOCABULARY, SYMBOLS), 0)
    trials = {context: [] for context in CONTEXTS}
    for _ in range(turns):
        for context, seconds in trials.items():
            seconds.append(min(decode_seconds(model, batch=batch, context=context, tokens=TOKENS, trials=2)))
    near, *_, far = trials.values()
    return {
        "architecture": name,
        "batch": batch,
        "seconds": {context: min(seconds) for context, seconds in trials.items()},
        "far_over_near": {
            "fastest": min(far) / min(near),
            "quartiles_of_turns": np.quantile(np.divide(far, near), (0.25, 0.5, 0.75)).tolist(),
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--torch", metavar="PYTHON", help="an interpreter with torch and transformers: time them in turn"
    )
    parser.add_argument("--only", nargs="+", choices=PATTERNS, help="these architectures alone")
    parser.add_argument("--turns", type=int, default=9, help="turns of each side (default: 9)")
    parser.add_argument("--json", type=Path, nargs="?", const=Path("-"), help="print JSON alone, or write it to a file")
    arguments = parser.parse_args()
    say = functools.partial(print, flush=True, file=sys.stderr if arguments.json == Path("-") else sys.stdout)
    if jax.default_backend() != "cpu":
        raise SystemExit(f"this times CPUs and JAX chose {jax.default_backend()}; set JAX_PLATFORMS=cpu")
    facts, rival = machine(), None
    if arguments.torch:
        rival = Rival(arguments.torch)
        facts |= rival.ask("facts")
        if "transformers" not in facts:
            raise SystemExit(f"{arguments.torch} has no transformers; pip install transformers there")
    say(", ".join(f"{key} {value}" for key, value in facts.items()))
    say(
        f"{'':15} {'reading, tokens/s':>19} {'ours / theirs':>13} {'writing, tokens/s':>19} {'ours / theirs':>13}"
        f"\n{'architecture':12} {'B':>2}"
        + f" {'ours':>9} {'theirs':>9} {'fastest':>6} {'median':>5}" * 2
        + f" {'floor':>5} {'aim':>5}  logits, same tokens"
    )
    rows, steps, chosen = [], [], arguments.only or list(PATTERNS)
    for name in chosen:
        for batch in BATCHES:
            rows.append(compare(name, batch, arguments.turns, rival))
            say(line(rows[-1]))
    if rival is not None:
        rival.close()
    for name in (name for name in FLAT if name in chosen):
        for batch in BATCHES:
            steps.append(found := flat(name, batch, arguments.turns))
            times = "  ".join(f"{context:,}: {1e3 * taken:.3f} ms" for context, taken in found["seconds"].items())
            low, middle, high = found["far_over_near"]["quartiles_of_turns"]
            say(f"{name}, batch {batch}, a step after {times}; far over near {middle:.3f} ({low:.3f} to {high:.3f})")
    if arguments.json:
        record = {
            "date": datetime.date.today().isoformat(),
            "machine": facts,
            "code": environment()["git"],
            "model": {"width": WIDTH, "vocabulary": VOCABULARY, "dtype": "float32"},
            "prompt": PROMPT,
            "tokens": TOKENS,
            "symbols": {s: asdict(c) for s, c in ModelConfig("*", WIDTH, VOCABULARY, SYMBOLS).symbols.items()},
            "generation": rows,
            "steps_by_context": steps,
        }
        keep(record, arguments.json)


if __name__ == "__main__":
    main()
