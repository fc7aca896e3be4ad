"""How many of a hybrid's layers may be MLPs?

Question: of 24 narrow layers, two of them attention, how do bits per byte of unseen Python source change as MLPs take
    the place of Mamba-2 in none, 4, 8, 12 and 16 of them (0, 17, 33, 50 and 67%), everything else equal?
Command:  workbench run experiments/mlp_ratio.py                (default)
          workbench run experiments/mlp_ratio.py --scale tiny   (does everything run?)
Cost:     15 runs in 73 minutes on two cores.
Answer:   at equal tokens, against none: 17% cost nothing that is seen, 33% 0.023 and 50% 0.051 bits per byte on these
    checkpoints, 67% 0.075 for these architectures. experiments/README.md has the table.

Layers, data, rate and steps are those of experiments/hybrid_ratio.py: a layer of any kind has 16.3 thousand parameters.

Written down before any run:
Expected: no loss up to a half: from 0 to 50% bits per byte rise by less than 0.03; at 67%, where six Mamba-2 layers are
    left, they are higher than at 33% by 0.02 or more. Steps get faster with every MLP. That 30 to 50% of MLPs are
    nearly neutral is what is remembered of the paper, not a figure that was looked up.
Stops:    after three seeds of every arm at these steps; none is added after looking. Where the smallest difference that
    three seeds see (`workbench seeds runs/mlp_ratio`) is larger than the spread of the arms, the answer is "not
    resolved at this scale": on a GPU, workbench run experiments/mlp_ratio.py steps=30000 data.batch=64.
"""

from pathlib import Path

from workbench.config import RunConfig, load_file
from workbench.pattern import allocate

RATIO = load_file(Path(__file__).with_name("hybrid_ratio.py"))
SCALES, LAYERS, ATTENTION = RATIO.SCALES, RATIO.LAYERS, 2
ARMS = {f"{mlps / LAYERS:.0%} MLP": allocate(LAYERS, ATTENTION / LAYERS, mlps / LAYERS) for mlps in (0, 4, 8, 12, 16)}


def runs(scale: str = "default") -> list[RunConfig]:
    """Every arm at every seed; arms of one seed share their data."""
    return [
        RATIO.run(scale, "mlp_ratio", arm, pattern, seed)
        for seed in RATIO.SEEDS[scale]
        for arm, pattern in ARMS.items()
    ]
