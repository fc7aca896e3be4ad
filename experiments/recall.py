"""Which architecture recalls: pairs to look up in context, and symbols to pick out of blanks and copy.

Question: with equal data, steps, width and non-embedding parameters (within 2%), how do a Transformer, Mamba, Mamba-2
    and a hybrid of Mamba-2 with one attention layer compare at multi-query associative recall and at selective copying,
    at the trained sizes and past them?
Command:  workbench run experiments/recall.py                (default)
          workbench run experiments/recall.py --scale tiny   (seconds: does everything run?)
          workbench run experiments/recall.py --tune         (learning rates, from one grid for all arms)
Cost:     32 runs in 85 minutes on two cores, tests beside them; --tune: 56 runs in about an hour, beside other work.
Answer:   within training all recall 97.9% or more, and copy 97% or more but for the Transformer (91). Of four times as
          much the hybrid recalls 99.8% and copies 37% whole; Mamba-2 94, the Transformer 77 and Mamba 51% of pairs, and
          none of them a single whole copy (these checkpoints). See experiments/README.md.

The arms are those of experiments/phonebook.py. Another kind of recall is an override: data.kind=copying, or
induction, or, whose documents are longer, data.kind=trigrams data.length=97.

Written down before any run:
Expected: with 16 pairs (the most in training) all four recall 95% or more; with 64 the hybrid is ahead, Mamba-2 next,
    and the Transformer, which saw no positions so far, recalls less than half. Selective copying of 16 symbols: each
    arm has 95% or more, since choosing what to keep is what Mamba was made for (Gu & Dao 2023, arXiv:2312.00752); of
    64, no arm has half, and the two without attention are behind the hybrid.
Stops:    after three seeds of every arm at these steps; none is added after looking.
"""

from dataclasses import replace
from pathlib import Path

from workbench.config import ModelConfig, OptimizerConfig, RecallConfig, RecallEvaluation, RunConfig, load_file
from workbench.study.noise import with_noise

SCALES = ("default", "tiny")
KINDS = ("mqar", "selective-copying")
PHONEBOOK = load_file(Path(__file__).with_name("phonebook.py"))
ARMS, WIDTH = PHONEBOOK.ARMS, PHONEBOOK.WIDTH

DATA = {
    "default": {
        "mqar": RecallConfig("mqar", symbols=128, sizes=(4, 8, 16), length=66, batch=16),
        "selective-copying": RecallConfig("selective-copying", symbols=16, sizes=(4, 8, 16), length=81, batch=16),
    },
    "tiny": {
        "mqar": RecallConfig("mqar", symbols=16, sizes=(2, 4), length=17, batch=4),
        "selective-copying": RecallConfig("selective-copying", symbols=8, sizes=(2, 4), length=21, batch=4),
    },
}
EXAM = {
    "default": RecallEvaluation(sizes=(4, 8, 16, 32, 64), documents=256),
    "tiny": RecallEvaluation(sizes=(2, 4, 8), documents=8, queries=2),
}
STEPS = {"default": 6000, "tiny": 4}
TUNING_STEPS = {"default": 3000, "tiny": 4}
SEEDS = {"default": (1, 2, 3), "tiny": (1,)}
NOISE = 200  # added to a seed: another initialisation
RATES = {  # by --tune
    "mqar": {"transformer": 2e-3, "mamba": 1e-2, "mamba2": 1e-2, "hybrid": 1e-3},
    "selective-copying": {"transformer": 1e-2, "mamba": 5e-3, "mamba2": 5e-3, "hybrid": 5e-3},
}
GRID = (5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2)
TUNING_SEEDS = (101,)


def runs(scale: str = "default") -> list[RunConfig]:
    """Every arm at every seed, and one more start an arm and kind; arms of one seed share data and documents."""
    own = [run(scale, kind, arm, seed) for kind in KINDS for seed in SEEDS[scale] for arm in ARMS]
    return with_noise(own, NOISE)


def tuning(scale: str = "default") -> list[RunConfig]:
    """One grid of learning rates for every arm, on seeds that are not reported."""
    return [
        replace(run(scale, kind, arm, seed, rate), role="tuning", steps=TUNING_STEPS[scale], evaluate_every=0)
        for kind in KINDS
        for seed in TUNING_SEEDS
        for rate in GRID
        for arm in ARMS
    ]


def run(scale: str, kind: str, arm: str, seed: int, rate: float | None = None) -> RunConfig:
    pattern, symbols = ARMS[arm]
    data, steps = DATA[scale][kind], STEPS[scale]
    return RunConfig(
        study="recall",
        arm=arm,
        model=ModelConfig(pattern, WIDTH, data.vocabulary, symbols),
        data=replace(data, seed=seed),
        evaluation=EXAM[scale],
        optimizer=OptimizerConfig(learning_rate=rate or RATES[kind][arm]),
        seed=seed,
        steps=steps,
        evaluate_every=steps // 4,
        checkpoint_every=steps // 2,
    )
