"""Writes run folders as training leaves them, from a known truth, without training anything."""

import json

import numpy as np

from workbench.config import ModelConfig as Model
from workbench.config import (
    Packages,
    PhonebookConfig,
    PhonebookEvaluation,
    RunConfig,
    TextConfig,
    TextEvaluation,
    to_json,
)
from workbench.evaluate.interval import clustered
from workbench.study.extend import extended

PATTERNS = {"transformer": "*-*-", "mamba": "SSSS", "mamba2": "MMMM", "hybrid": "M-M*M-"}
EMBEDDING = 9_728
SIZES = {"transformer": 131_584, "mamba": 132_224, "mamba2": 131_904, "hybrid": 132_096}
STATE = {"transformer": 98_304, "mamba": 37_376, "mamba2": 69_632, "hybrid": 77_824}
ENTRIES, TRAINED = (2, 4, 8, 12, 16, 24), (2, 4, 8)


def truth(arm: str, entries: int) -> float:
    """Probability that a number is right: the shape that the paper reports, or any other that a test passes."""
    if arm == "transformer":
        return 0.985 if entries <= 8 else 0.985 * (8 / entries) ** 2.5
    if arm == "hybrid":
        return 0.99 if entries <= 12 else 0.99 * (12 / entries) ** 0.8
    return 0.99 / (1 + (entries / {"mamba": 9, "mamba2": 13}.get(arm, 11)) ** 4)


def write(folder, arms=tuple(PATTERNS), seeds=(0, 1), truth=truth, text=True, **options):
    """A whole study: Phonebook at every seed, text at the first."""
    for arm in arms:
        for seed in seeds:
            phonebook(folder, arm, seed, truth=truth, **options)
        if text:
            source(folder, arm, seeds[0])
    return folder


def phonebook(
    folder, arm, seed, *, truth=truth, steps=1600, digest=None, role="result", books=48, keep=True, width=64,
    removed=0.01, control_of="", **changes,
):  # fmt: skip
    """One finished Phonebook run. `keep` stores each book's score, for paired intervals."""
    run = RunConfig(
        study="phonebook", arm=arm, role=role, control_of=control_of, seed=seed, steps=steps,
        model=Model(PATTERNS.get(arm, "*-*-"), width, 76), data=PhonebookConfig(entries=TRAINED, seed=seed),
        evaluation=PhonebookEvaluation(ENTRIES, books),
    )  # fmt: skip
    rng = np.random.default_rng([seed, *map(ord, arm)])
    shared = np.random.default_rng(seed)  # some books are hard for every arm
    exact, digits, per_book, depth = {}, {}, {}, []
    for k in ENTRIES:
        asked = min(k, 8)
        p = min(max(truth(arm, k), 1e-6), 1 - 1e-6)
        logit = np.log(p / (1 - p)) + 0.4 * shared.normal(size=books)
        right = rng.binomial(asked, 1 / (1 + np.exp(-logit)))
        some = rng.binomial(3 * (asked - right), 0.45) + 3 * right
        for into, got, of in ((exact, right, asked), (digits, some, 3 * asked)):
            mean, low, high = clustered([int(x) for x in got], [of] * books)
            into[str(k)] = {"mean": mean, "low": low, "high": high, "items": of * books}
        per_book[str(k)] = [float(x) / asked for x in right]
        for place in range(n := min(k, 8)):
            slope = 0.0 if arm == "transformer" else 0.25 * (1 - truth(arm, k)) * (place / max(n - 1, 1) - 0.5)
            at = float(np.clip(truth(arm, k) + slope, 0, 1))
            depth.append(
                {"entries": k, "depth": place / max(n - 1, 1), "mean": at, "low": at, "high": at, "items": books}
            )
    best = truth(arm, TRAINED[0])

    def middle(step):
        return best / (1 + np.exp(-(step - 0.4 * steps) / (0.07 * steps)))

    rows = [
        {"step": s, "loss": 2.3 * float(1 - middle(s)) + 0.02, "tokens": s * 1536, "flops": s * 1536 * 6e5}
        for s in range(20, steps + 1, 20)
    ]
    for row in rows:
        if row["step"] % 200 == 0:
            row |= {f"select/phonebook/exact_match/{k}": float(middle(row["step"])) for k in ENTRIES}
    baselines = {str(k): {"copy_any": 1 / k, "constant": 0.001, "digit_by_digit": 0.03} for k in ENTRIES}
    evaluation = {"exact_match": exact, "digit_accuracy": digits, "by_depth": depth, "baselines": baselines}
    evaluation["trained_entries"] = list(TRAINED)
    at = clustered([round(removed * books)] * 8, [books] * 8)._asdict()
    evaluation["removed"] = {str(k): at | {"items": 8 * books, "chance": 0.01} for k in TRAINED}
    evaluation |= {"per_book": per_book} if keep else {}
    return _write(folder, run, rows, {"phonebook": evaluation}, digest or f"{seed:02d}" + "ab" * 31, **changes)


def source(
    folder, arm, seed, longer=0, positions=(), *, steps=900, role="result", start=None, better=0.0, stream=None,
    step_seconds=0.0, suite=None, **changes,
):  # fmt: skip
    """One finished text run, or one that was extended to a longer length; with bits per byte at (start, end, mean)s.

    start: the initialisation's seed where it is not the data's. better: bits fewer than the arm has otherwise. stream:
    what digests on the way are of; "" for none. suite: what was answered of tasks in text.
    """
    run = RunConfig(
        study="phonebook", arm=arm, seed=seed if start is None else start, steps=steps, role=role,
        model=Model(PATTERNS[arm], 64, 257), data=TextConfig((Packages(("requests",)),), seed=seed),
        evaluation=TextEvaluation(), step_seconds=step_seconds,
    )  # fmt: skip
    run = extended(run, longer, steps=900, batch=1) if longer else run
    level = {"transformer": 2.61, "mamba": 2.44, "mamba2": 2.42, "hybrid": 2.38}[arm] - better
    hard = {
        "beautifulsoup4": 0.1,
        "click": -0.15,
        "jupyter-server": 0.05,
        "opt-einsum": 0.2,
        "platformdirs": -0.3,
        "requests": 0,
    }
    rng = np.random.default_rng([seed, *map(ord, arm)])
    packages = {
        name: {"mean": level + more + 0.01 * float(rng.normal()), "bytes": 20_000 + 5_000 * i}
        for i, (name, more) in enumerate(hard.items())
    }
    mean = sum(p["mean"] * p["bytes"] for p in packages.values()) / sum(p["bytes"] for p in packages.values())
    rows = [
        {"step": s, "loss": (level + 3 * np.exp(-s / 150)) * 0.69, "tokens": s * 2048, "flops": s * 2048 * 6e5}
        for s in range(20, steps + 1, 20)
    ]
    stream = f"stream of {seed}" if stream is None else stream
    for row in rows if stream else ():
        row["digest"] = f"{stream} up to {row['step']}"
    bits = {"mean": mean, "low": mean - 0.04, "high": mean + 0.04, "bytes": 195_000}
    same = {name: bits[name] - 0.25 for name in ("mean", "low", "high")}
    found = {"bits_per_byte": bits, "by_group": packages, "same_groups": same}
    if suite:
        found["suite"] = suite
    if positions:
        found["by_position"] = [
            {
                "start": start,
                "end": end,
                "extrapolated": end > run.data.length,
                "mean": m,
                "low": m - 0.1,
                "high": m + 0.1,
            }
            for start, end, m in positions
        ]
    digest = changes.pop("digest", f"{longer:04x}" * 16 if longer else "cd" * 32)
    return _write(folder, run, rows, {"text": found}, digest, **changes)


def _write(folder, run, rows, evaluation, digest, status="finished", **changes):
    """config, logs and, unless status is None, result; `changes` go into result.json."""
    path = folder / run.name
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(to_json(run)))
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pace = {"transformer": 0.03, "mamba": 0.06, "mamba2": 0.05, "hybrid": 0.045}.get(run.arm, 0.04)
    (path / "timing.jsonl").write_text(
        "".join(json.dumps({"step": r["step"], "seconds": pace * r["step"]}) + "\n" for r in rows)
    )
    if status is None:
        return path
    result = {
        "run": run.name, "study": run.study, "arm": run.arm, "seed": run.seed, "role": run.role, "status": status,
        "steps": run.steps, "tokens": rows[-1]["tokens"], "digest": digest,
        "parameters": SIZES.get(run.arm, 131_584) + EMBEDDING,
        "non_embedding_parameters": SIZES.get(run.arm, 131_584), "train_flops_per_token": 6e5 + len(run.arm),
        "state_bytes": STATE.get(run.arm, 98_304), "context": 96, "seconds": pace * run.steps,
        "tokens_per_second": 1536 / pace, "memory_bytes": 3 * 2**20,
        "evaluation": evaluation,
    }  # fmt: skip
    if status != "finished":
        del result["evaluation"]
    (path / "result.json").write_text(json.dumps(result | changes))
    return path
