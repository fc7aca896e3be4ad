"""How much state does recall need?

Question: with equal data, steps, width and non-embedding parameters (within 2%), how many pairs does Mamba-2 recall as
    its state grows from 8 to 128 numbers a channel, against a Transformer whose cache grows with the context?
Command:  workbench run experiments/state_size.py                (default)
          workbench run experiments/state_size.py --scale tiny   (does everything run?)
Cost:     18 runs in 63 minutes on two cores.
Answer:   of 64 pairs 31, 68, 94, 99.3 and 100.0% with 8, 16, 32, 64 and 128 numbers a channel; the Transformer 100.0%.

Multi-query associative recall of up to 64 pairs, all in training. What the state takes in parameters the MLPs give; one
learning rate serves all arms, untuned. The report's table has the bytes of state beside exact match.

Written down before any run:
Expected: at 64 pairs exact match rises with every doubling of the state, from under 50% at 8 to over 90% at 128, and no
    two neighbours are the other way round by what three seeds can see; at 2 pairs all arms have 95% or more. The
    Transformer has 95% or more everywhere. Recall that follows the state's size is a finding of others on this task
    (Arora et al. 2023, arXiv:2312.04927), not of the paper.
Stops:    after three seeds of every arm at these steps; none is added after looking. Where the smallest difference that
    three seeds see (`workbench seeds runs/state_size`) is larger than the spread of the arms, the answer is "not
    resolved at this scale": on a GPU, workbench run experiments/state_size.py steps=60000 data.batch=64.
"""

from dataclasses import replace

from workbench.config import (
    AttentionConfig,
    Mamba2Config,
    MLPConfig,
    ModelConfig,
    OptimizerConfig,
    RecallConfig,
    RecallEvaluation,
    RunConfig,
)

SCALES = ("default", "tiny")
WIDTH = 64
HIDDEN = {8: 225, 16: 217, 32: 200, 64: 165, 128: 96}  # of the MLP beside a state of this size
ARMS = {
    f"state {size}": ("(M-)x2", {"M": Mamba2Config(state=size, head_dim=16, inner=64), "-": MLPConfig(hidden=hidden)})
    for size, hidden in HIDDEN.items()
} | {"transformer": ("(*-)x2", {"*": AttentionConfig(heads=4), "-": MLPConfig(hidden=207)})}
DATA = {
    "default": RecallConfig("mqar", symbols=256, sizes=(2, 8, 32, 64), length=258, batch=8),
    "tiny": RecallConfig("mqar", symbols=16, sizes=(2, 4), length=17, batch=4),
}
EXAM = {
    "default": RecallEvaluation(sizes=(2, 8, 16, 32, 64), documents=256),
    "tiny": RecallEvaluation(sizes=(2, 4), documents=8, queries=2),
}
STEPS = {"default": 6000, "tiny": 4}
SEEDS = {"default": (1, 2, 3), "tiny": (1,)}
RATE = 5e-3


def runs(scale: str = "default") -> list[RunConfig]:
    """Every arm at every seed; arms of one seed share data and documents."""
    return [run(scale, arm, seed) for seed in SEEDS[scale] for arm in ARMS]


def run(scale: str, arm: str, seed: int) -> RunConfig:
    pattern, symbols = ARMS[arm]
    data, steps = DATA[scale], STEPS[scale]
    return RunConfig(
        study="state_size",
        arm=arm,
        model=ModelConfig(pattern, WIDTH, data.vocabulary, symbols),
        data=replace(data, seed=seed),
        evaluation=EXAM[scale],
        optimizer=OptimizerConfig(learning_rate=RATE),
        seed=seed,
        steps=steps,
        evaluate_every=steps // 4,
        checkpoint_every=steps // 2,
    )
