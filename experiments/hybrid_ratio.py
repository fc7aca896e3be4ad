"""How much attention does a hybrid need?

Question: of 24 narrow layers, a quarter of them MLPs, how do bits per byte of unseen Python source change as attention
    takes the place of Mamba-2 in none, 1, 2, 4, 8 and 12 of them (0, 4, 8, 17, 33 and 50%), everything else equal?
Command:  workbench run experiments/hybrid_ratio.py                (default)
          workbench run experiments/hybrid_ratio.py --scale tiny   (does everything run?)
Cost:     18 runs in 1 hour 48 minutes on two cores, other work beside them; about 80 minutes alone.
Answer:   none of 4, 8, 17 and 33% is seen to differ from none at all (at most 0.017 bits per byte less); half attention
    needs 0.073 more than 4%, on these checkpoints. experiments/README.md has the table.

A layer of any kind has 16.3 thousand parameters (within 1%), so that the size stays as the shares change. Attention has
no positions, is spread evenly (workbench.pattern.allocate), and one learning rate serves all arms, untuned.

Written down before any run:
Expected: the first attention layers help most: with 4 to 8% bits per byte are lower than with none by 0.02 or more.
    From 8% on they change by less than 0.02, and with 50% they are higher than with 8%. The paper's validation loss is
    lowest near 8% (reported by several, at sizes and budgets far from these).
Stops:    after three seeds of every arm at these steps; none is added after looking. Where the smallest difference that
    three seeds see (`workbench seeds runs/hybrid_ratio`) is larger than the spread of the arms, the answer is "not
    resolved at this scale": on a GPU, workbench run experiments/hybrid_ratio.py steps=30000 data.batch=64.
"""

from dataclasses import replace
from pathlib import Path

from workbench.config import (
    AttentionConfig,
    Mamba2Config,
    MLPConfig,
    ModelConfig,
    OptimizerConfig,
    Packages,
    RunConfig,
    TextConfig,
    TextEvaluation,
    load_file,
)
from workbench.pattern import allocate

SCALES = ("default", "tiny")
LAYERS, MLPS, WIDTH = 24, 6, 64
SYMBOLS = {
    "M": Mamba2Config(state=24, head_dim=16, inner=64),
    "*": AttentionConfig(heads=4, rotary=0),
    "-": MLPConfig(hidden=128),
}
ARMS = {
    f"{attention / LAYERS:.0%} attention": allocate(LAYERS, attention / LAYERS, MLPS / LAYERS)
    for attention in (0, 1, 2, 4, 8, 12)
}
TEXT = {
    "default": TextConfig(
        (Packages(load_file(Path(__file__).with_name("phonebook.py")).PACKAGES),), length=256, batch=8
    ),
    "tiny": TextConfig((Packages(("click", "pexpect", "tqdm")),), length=64, batch=2),
}
STEPS = {"default": 1200, "tiny": 4}
SEEDS = {"default": (1, 2, 3), "tiny": (1,)}
RATE = 5e-3


def runs(scale: str = "default") -> list[RunConfig]:
    """Every arm at every seed; arms of one seed share their data."""
    return [run(scale, "hybrid_ratio", arm, pattern, seed) for seed in SEEDS[scale] for arm, pattern in ARMS.items()]


def run(scale: str, study: str, arm: str, pattern: str, seed: int) -> RunConfig:
    data, steps = TEXT[scale], STEPS[scale]
    return RunConfig(
        study=study,
        arm=arm,
        model=ModelConfig(pattern, WIDTH, data.vocabulary, SYMBOLS),
        data=replace(data, seed=seed),
        evaluation=TextEvaluation(rows=128 if scale == "default" else 8, length=data.length),
        optimizer=OptimizerConfig(learning_rate=RATE),
        seed=seed,
        steps=steps,
        evaluate_every=steps // 4,
        checkpoint_every=steps // 2,
    )
