"""Which architecture models Python source best at equal tokens, at equal training FLOPs, and at equal seconds?

Question: the answer may turn on what is held equal. At one width and one size (within 2%), which of a Transformer,
    Mamba, Mamba-2 and a hybrid needs the fewest bits per byte on packages that none was trained on, when all have read
    as many tokens, when all have spent as many training FLOPs, and when all have trained as many seconds alone on the
    machine?
Command:  workbench run experiments/budgets.py                (default)
          workbench run experiments/budgets.py --scale tiny   (does everything run?)
          workbench estimate experiments/budgets.py --alone   (the seconds a step below)
Cost:     32 minutes on two cores, with other work beside it.
Answer:   on these checkpoints yes, it turns: Mamba-2 at equal tokens (level with Mamba and the hybrid), Mamba at equal
          FLOPs, the hybrid at equal seconds (level with Mamba-2). See experiments/README.md.

Arms, data and learning rates are those of experiments/phonebook.py on text. The rate is stable and comes down over the
last fifth (warm-up, stable, decay), so that a run at another budget branches off the arm's own and costs its decay.
One more run an arm, of another initialisation on the same data, shows how much a start alone changes.

Written down before any run:
Expected: at equal tokens Mamba-2, the hybrid and Mamba within 0.03 bits of one another and the Transformer behind by
    0.1 or more (experiments/phonebook.py --scale full). Mamba has the fewest FLOPs a token and takes long on a CPU: at
    equal FLOPs it is first, or level with the first, and at equal seconds it is behind Mamba-2 and the hybrid. The
    Transformer is the fastest and still last everywhere.
Stops:    after three seeds of every arm at these steps; none is added after looking.
"""

from dataclasses import replace
from pathlib import Path

from workbench.config import OptimizerConfig, RunConfig, TextEvaluation, load_file
from workbench.study.budget import with_budgets
from workbench.study.noise import with_noise

SCALES = ("default", "tiny")
PHONEBOOK = load_file(Path(__file__).with_name("phonebook.py"))
STEPS = {"default": 2000, "tiny": 20}
SEEDS = {"default": (21, 22, 23), "tiny": (1,)}
NOISE = 100  # added to a seed: another initialisation
# `workbench estimate experiments/budgets.py --alone`, two cores of an AMD EPYC, 2026-11-26
STEP_SECONDS = {"transformer": 0.02354, "mamba": 0.0528, "mamba2": 0.04571, "hybrid": 0.03649}


def runs(scale: str = "default") -> list[RunConfig]:
    """Every arm at every seed, what it reaches at the other budgets, and one more start an arm."""
    own = [run(scale, arm, seed) for seed in SEEDS[scale] for arm in PHONEBOOK.ARMS]
    return with_noise(with_budgets(own, STEP_SECONDS), NOISE)


def run(scale: str, arm: str, seed: int) -> RunConfig:
    base = PHONEBOOK.run("full", "text", arm, seed)
    steps = STEPS[scale]
    found = replace(
        base,
        study="budgets",
        optimizer=OptimizerConfig(learning_rate=base.optimizer.learning_rate, schedule="wsd"),
        steps=steps,
        evaluate_every=steps // 4,
        checkpoint_every=steps // 2,
    )
    if scale == "default":
        return found
    return replace(found, data=replace(found.data, length=64, batch=2), evaluation=TextEvaluation(rows=8, length=64))
