"""Which architecture makes use of long documents, before and after it is trained on longer sequences?

Question: trained at 256 tokens, then extended to 1,024 and to 4,096 with equal tokens, how does the loss of a
    Transformer, Mamba, Mamba-2 and a hybrid change with the position in documents that none was trained on, within the
    length of training and past it?
Command:  workbench run experiments/length.py                (default)
          workbench run experiments/length.py --scale tiny   (three minutes: does everything run?)
          workbench run experiments/length.py --tune         (the learning rates below, from one grid for all arms)
Cost:     12 runs in about 25 minutes on two cores; --tune: 20 runs in about as many.
Answer:   trained at 256, the Transformer needs 0.23 bits per byte more at positions 2,048 to 4,096 than at 128 to 256;
          the other three need 0.15 to 0.18 less. Extended to 4,096 at a tenth of the rate it needs 1.757 there instead
          of 2.193, and they what they needed (1.673 to 1.715). One seed. experiments/README.md has the table.

Both extensions start from the run at 256 tokens, with an optimizer and a schedule of their own at a tenth of the rate.
The Transformer's rotary base grows with the length; the hybrid's attention has no positions, and nothing in it changes.

Written down after --tune and before any other run:
Expected: as trained, every arm needs fewer bits from position 128 to 256 than before 16. Past 256 the Transformer
    needs more, at 2,048 to 4,096 by 0.3 or more than at 128 to 256; Mamba and Mamba-2 stay within 0.1 of what they
    need there, and the hybrid, which saw no longer context, needs more by at most 0.3. Extended to 4,096 every arm
    needs at 2,048 to 4,096 no more than at 128 to 256 plus 0.05, and Mamba and Mamba-2 are still the first two.
Then extensions at the same rate were run: 100 steps that warm up again cost every arm 0.04 to 0.23 bits at positions
    within 256, and only the Transformer gained past them. At a tenth of it, written down before these runs:
Expected: within 256 no arm loses more than 0.03. Extended to 4,096 the Transformer needs at 2,048 to 4,096 less than
    1.80, where it needed 2.19 as trained and 1.83 after the whole rate; Mamba and Mamba-2 change by less than 0.05.
Stops:    after one seed of every arm: this is about these checkpoints, and none is added after looking.
"""

from dataclasses import replace
from pathlib import Path

from workbench.config import (
    AttentionConfig,
    Mamba2Config,
    MambaConfig,
    MLPConfig,
    ModelConfig,
    OptimizerConfig,
    Packages,
    PositionEvaluation,
    RunConfig,
    TextConfig,
    load_file,
)
from workbench.pattern import allocate
from workbench.study.extend import extended

SCALES = ("default", "tiny")
WIDTH = {"default": 128, "tiny": 32}
# fmt: off
ARMS = {
    "default": {
        "transformer": ("(*-)x4", {"*": AttentionConfig(heads=4), "-": MLPConfig(hidden=512)}),
        "mamba": ("(S)x7", {"S": MambaConfig(state=16, inner=248)}),
        "mamba2": ("(M)x7", {"M": Mamba2Config(state=64, head_dim=24, inner=240)}),
        "hybrid": (
            allocate(8, 1 / 8, 3 / 8),
            {
                "M": Mamba2Config(state=64, head_dim=24, inner=240),
                "*": AttentionConfig(heads=4, rotary=0),
                "-": MLPConfig(hidden=356),
            },
        ),
    },
    "tiny": {
        "transformer": ("*-", {"*": AttentionConfig(heads=2), "-": MLPConfig(hidden=126)}),
        "mamba": ("SS", {"S": MambaConfig(state=8, inner=46)}),
        "mamba2": ("MM", {"M": Mamba2Config(state=16, head_dim=4, inner=44)}),
        "hybrid": ("M*-", {
            "M": Mamba2Config(state=16, head_dim=8, inner=40), "*": AttentionConfig(heads=2, rotary=0),
            "-": MLPConfig(hidden=40),
        }),
    },
}
# fmt: on
PACKAGES = load_file(Path(__file__).with_name("phonebook.py")).PACKAGES
TEXT = {
    "default": TextConfig((Packages(PACKAGES),), tokenizer="bpe-4096", length=256, batch=16),
    "tiny": TextConfig((Packages(("click", "pexpect", "tqdm")),), tokenizer="bpe-512", length=64, batch=16),
}
DOCUMENTS = {"default": 32, "tiny": 4}  # each of 16 times the length of training
STEPS = {"default": 400, "tiny": 40}
MORE = {"default": 100, "tiny": 10}  # steps of an extension, each of as many tokens as before
TIMES = (4, 16)  # the length of training
SLOWER = 0.1  # times the rate of training: that of extensions
SEEDS = (1,)
TUNING_STEPS = {"default": 100, "tiny": 10}  # shorter, for every arm alike, or they would cost more than the study
GRID = (2e-3, 5e-3, 1e-2, 2e-2, 5e-2)
TUNING_SEEDS = (101,)
RATES = {"transformer": 1e-2, "mamba": 1e-2, "mamba2": 2e-2, "hybrid": 1e-2}  # by --tune


def runs(scale: str = "default") -> list[RunConfig]:
    """As trained, then extended: those of one length side by side."""
    trained = [run(scale, arm, seed) for seed in SEEDS for arm in ARMS[scale]]
    return trained + [longer(scale, base, times) for times in TIMES for base in trained]


def tuning(scale: str = "default") -> list[RunConfig]:
    return [
        replace(run(scale, arm, seed, rate), role="tuning", steps=TUNING_STEPS[scale], evaluate_every=0)
        for seed in TUNING_SEEDS
        for rate in GRID
        for arm in ARMS[scale]
    ]


def run(scale: str, arm: str, seed: int, rate: float | None = None) -> RunConfig:
    pattern, symbols = ARMS[scale][arm]
    data = replace(TEXT[scale], seed=seed)
    return RunConfig(
        study="length",
        arm=arm,
        model=ModelConfig(pattern, WIDTH[scale], data.vocabulary, symbols),
        data=data,
        evaluation=PositionEvaluation(max(TIMES) * data.length, DOCUMENTS[scale]),
        optimizer=OptimizerConfig(learning_rate=rate or RATES[arm]),
        seed=seed,
        steps=STEPS[scale],
        checkpoint_every=STEPS[scale] // 2,
    )


def longer(scale: str, base: RunConfig, times: int) -> RunConfig:
    rotary_base = 10_000.0 * times if base.arm == "transformer" else None
    run = extended(base, times * base.data.length, steps=MORE[scale], rotary_base=rotary_base)
    return replace(run, optimizer=replace(base.optimizer, learning_rate=SLOWER * base.optimizer.learning_rate))
