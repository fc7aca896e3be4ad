"""Where in a hybrid should its attention layers stand?

Question: with four attention layers among 24 narrow ones, how do bits per byte of unseen Python source differ between
    attention spread evenly, all in front, all at the back, and at the end of every sixth of the layers?
Command:  workbench run experiments/placement.py                (default)
          workbench run experiments/placement.py --scale tiny   (does everything run?)
Cost:     12 runs in about an hour on two cores.
Answer:   all in front needs 0.032 bits per byte more than even, on these checkpoints; even, periodic and back are not
    told apart. experiments/README.md has the table.

Every arm has 16 Mamba-2, 4 attention and 4 MLP layers; data, rate and steps are those of experiments/hybrid_ratio.py.

Written down before any run:
Expected: all in front is the worst, by 0.02 bits per byte or more against even: without positions the first layers see
    no order, and what they attend to is single tokens. Even, periodic and back are within 0.02 of each other. The paper
    spreads attention evenly; what it found of other placements is not known here.
Stops:    after three seeds of every arm at these steps; none is added after looking. Where the smallest difference that
    three seeds see (`workbench seeds runs/placement`) is larger than the spread of the arms, the answer is "not
    resolved at this scale": on a GPU, workbench run experiments/placement.py steps=30000 data.batch=64.
"""

from pathlib import Path

from workbench.config import RunConfig, load_file
from workbench.pattern import allocate

RATIO = load_file(Path(__file__).with_name("hybrid_ratio.py"))
SCALES = RATIO.SCALES
EVEN = allocate(RATIO.LAYERS, 4 / RATIO.LAYERS, 4 / RATIO.LAYERS)
REST = EVEN.replace("*", "")
ARMS = {"even": EVEN, "front": "****" + REST, "back": REST + "****", "periodic": "(MMM-M*)x4"}


def runs(scale: str = "default") -> list[RunConfig]:
    """Every arm at every seed; arms of one seed share their data."""
    return [
        RATIO.run(scale, "placement", arm, pattern, seed)
        for seed in RATIO.SEEDS[scale]
        for arm, pattern in ARMS.items()
    ]
