"""Fits the runtime model to generation on this machine, and holds it to lengths that it was not fitted to.

    python benchmarks/fit.py [--only NAME ...] [--json [FILE]]

For each architecture of experiments/inference.py (width 512, random weights, float32, batch 1) prompts of 64 to 1,024
tokens are read and 4 to 64 tokens written, three trials each, and the model is fitted to the fastest of them
(workbench.speed.fit). Printed are its R^2, the median error at lengths between, how long a token takes and how much
longer at 16,384 tokens of context. Aims: R^2 of at least 0.99, a median error of at most 10%.
"""

from __future__ import annotations

import argparse
import datetime
from pathlib import Path

import numpy as np
from train_cpu import keep, machine

from workbench.config import load_file
from workbench.generate import CAPACITY
from workbench.model.language_model import create
from workbench.speed.fit import fit
from workbench.speed.measure import profile

PROMPTS, TOKENS = (64, 256, 1024), (4, 16, 64)
BETWEEN_PROMPTS, BETWEEN_TOKENS = (128, 512, 768), (8, 32, 48)
FAR = 16_384


def main() -> None:
    models = load_file(Path(__file__).parents[1] / "experiments" / "inference.py").models()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=models, default=list(models), metavar="NAME")
    parser.add_argument("--json", type=Path, nargs="?", const=Path("-"), help="print JSON too, or write it to a file")
    given = parser.parse_args()
    rows = []
    print(
        f"{'architecture':22} {'R^2':>7} {'median error':>13} {'ms a token':>11} {'longer at ' + format(FAR, ','):>18}"
    )
    for name in given.only:
        model = create(models[name], 0)
        prompts, tokens = (PROMPTS + BETWEEN_PROMPTS, TOKENS + BETWEEN_TOKENS)
        samples = profile(model, prompts, tokens, progress=name).samples  # in turn, so that all meet the same machine
        seen = [each for each in samples if each.prompt in PROMPTS and each.tokens in TOKENS]
        found = fit(seen, capacity=CAPACITY)
        unseen = [each for each in samples if each not in seen]
        errors = [abs(found.predict(each.prompt, each.tokens) / min(each.seconds) - 1) for each in unseen]
        row = {"architecture": name, "r_squared": found.r_squared, "median_error": float(np.median(errors))}
        row |= {"token_seconds": found.token_seconds, "drift": found.drift(FAR)}
        rows.append(row)
        print(
            f"{name:22} {row['r_squared']:7.4f} {row['median_error']:13.1%} {1e3 * row['token_seconds']:11.2f} "
            f"{row['drift']:18.0%}",
            flush=True,
        )
    if given.json is not None:
        keep({"date": datetime.date.today().isoformat(), "machine": machine(), "rows": rows}, given.json)


if __name__ == "__main__":
    main()
