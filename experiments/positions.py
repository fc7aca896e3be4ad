"""Does attention need positions, in a Transformer and in a hybrid?

Question: with rotary positions on all of each head, on half of it or on none, how do a Transformer and a hybrid of
    Mamba-2 with one attention layer look up numbers in books of growing size, within and past the trained sizes?
Command:  workbench run experiments/positions.py                (default)
          workbench run experiments/positions.py --scale tiny   (does everything run?)
Cost:     18 runs in 36 minutes on two cores.
Answer:   the Transformer does: it looks up 38% of books of 8 without, all with them. The hybrid is better without, past
    training: 100, 95 and 64% of books of 64 with none, half and full rotary, at these steps. experiments/README.md has
    the table. Both ends are controls of experiments/phonebook.py --scale full, on other seeds.

Arms, books, rates and steps are those of experiments/phonebook.py --scale full, of one size within 2%.

Written down before any run, with those controls known:
Expected: past training the hybrid is best without positions: in books of 64 by 10 points or more against rotary on the
    whole head, with half between. Within training the Transformer without positions is behind the other two by 30
    points or more in books of 8; past training none of the three reaches 30% in books of 64. The paper's hybrid has no
    positions; its Transformer rotates half of each head.
Stops:    after three seeds of every arm at these steps; none is added after looking. Where the smallest difference that
    three seeds see (`workbench seeds runs/positions`) is larger than a difference above, that one is "not resolved at
    this scale": on a GPU, workbench run experiments/positions.py steps=60000 data.batch=64.
"""

from dataclasses import replace
from pathlib import Path

from workbench.config import PhonebookConfig, PhonebookEvaluation, RunConfig, load_file

SCALES = ("default", "tiny")
PHONEBOOK = load_file(Path(__file__).with_name("phonebook.py"))
SHARES = {"rotary": 1.0, "half": 0.5, "none": 0.0}
SEEDS = {"default": (11, 12, 13), "tiny": (1,)}


def runs(scale: str = "default") -> list[RunConfig]:
    """Every arm at every seed; arms of one seed share data and books."""
    return [
        run(scale, arm, name, seed) for seed in SEEDS[scale] for arm in ("transformer", "hybrid") for name in SHARES
    ]


def run(scale: str, arm: str, name: str, seed: int) -> RunConfig:
    base = PHONEBOOK.run("full", "phonebook", arm, seed)
    symbols = {**base.model.symbols, "*": replace(base.model.symbols["*"], rotary=SHARES[name])}
    found = replace(base, study="positions", arm=f"{arm}, {name}", model=replace(base.model, symbols=symbols))
    if scale == "default":
        return found
    data = PhonebookConfig(names=64, digits=2, entries=(2, 4), length=25, batch=2, seed=seed)
    evaluation = PhonebookEvaluation(entries=(2, 4, 8), books=8, queries=2)
    return replace(found, data=data, evaluation=evaluation, steps=4, evaluate_every=2, checkpoint_every=2)
