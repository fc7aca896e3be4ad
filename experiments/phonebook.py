"""Which architecture looks things up: a phone book in context, then queries; and which models Python source best?

Question: with equal data, steps, width and non-embedding parameters (within 2%), how do a Transformer, Mamba, Mamba-2
    and a hybrid of Mamba-2 with one attention layer compare at looking up numbers in books of growing size, past the
    trained sizes too, and in bits per byte of Python source from packages that none was trained on?
Command:  workbench run experiments/phonebook.py                  (demo, what `make demo` runs)
          workbench run experiments/phonebook.py --scale full     (longer books, three seeds, controls, state sizes)
          workbench run experiments/phonebook.py --tune           (the learning rates below, from one grid for all arms)
Cost:     see experiments/README.md, as measured.
Answer:   see experiments/README.md.

Trained on the task: the paper's Phonebook (Waleffe et al. 2024, arXiv:2406.07887) is prompt-only.

Rules written down before any result of the full scale:
- States: the state-space arms are also trained with a quarter and four times their state size N, every other field
  equal; parameters grow with N, and the report says to what.
- Books are evaluated from the smallest trained size to all the names there are, so that no arm stays at one end.
- Controls: the Transformer without positions and with the short convolution of Mamba on q, k and v, and the hybrid with
  rotary positions. No sentence about length or recall credits recurrence unless these support it.
"""

from dataclasses import replace

from workbench.config import (
    AttentionConfig,
    Mamba2Config,
    MambaConfig,
    MLPConfig,
    ModelConfig,
    OptimizerConfig,
    Packages,
    PhonebookConfig,
    PhonebookEvaluation,
    RunConfig,
    TextConfig,
    TextEvaluation,
)
from workbench.pattern import allocate

SCALES = ("demo", "full")
WIDTH = 64

ARMS = {
    "transformer": ("(*-)x2", {"*": AttentionConfig(heads=4)}),
    "mamba": ("SS", {"S": MambaConfig(state=16, inner=196)}),
    "mamba2": ("MMMM", {"M": Mamba2Config(state=64, head_dim=16, inner=80)}),
    "hybrid": (
        allocate(7, 1 / 7, 2 / 7),
        {
            "M": Mamba2Config(state=16, head_dim=16, inner=64),
            "*": AttentionConfig(heads=4, rotary=0),
            "-": MLPConfig(hidden=88),
        },
    ),
}
PHONEBOOK = {
    "demo": PhonebookConfig(names=32, digits=2, entries=(2, 4, 8), length=49, batch=8),
    "full": PhonebookConfig(names=64, digits=2, entries=(2, 4, 8), length=49, batch=8),
}
BOOKS = {
    "demo": PhonebookEvaluation(entries=(2, 4, 8, 16, 32), books=96, queries=8),
    "full": PhonebookEvaluation(entries=(2, 4, 8, 16, 32, 64), books=256, queries=8),
}
# fmt: off
# Pure-Python distributions of requirements.lock, chosen by hand: code written by people, few tables, many authors.
PACKAGES = (
    # train
    "flax", "fsspec", "httpx", "ipython", "jedi", "jupyter-client", "markdown-it-py", "orbax-checkpoint",
    "packaging", "parso", "pydantic", "pyparsing", "rich", "traitlets", "treescope", "urllib3",
    # select
    "anyio", "jinja2", "lark", "nbconvert", "optax", "pexpect",
    # test
    "beautifulsoup4", "click", "jupyter-server", "opt-einsum", "platformdirs", "prompt-toolkit", "requests",
)
# fmt: on
TEXT = {scale: TextConfig(sources=(Packages(PACKAGES),), length=256, batch=4) for scale in SCALES}
STEPS = {"demo": {"phonebook": 6000, "text": 500}, "full": {"phonebook": 15_000, "text": 3000}}
SEEDS = {"demo": {"phonebook": (3, 4), "text": (3,)}, "full": {"phonebook": (5, 6, 7), "text": (5, 6, 7)}}

# Tuning runs are shorter, for every arm alike, or they would cost more than what they tune.
TUNING_STEPS = {"demo": {"phonebook": 5000, "text": 500}, "full": {"phonebook": 5000, "text": 1000}}
GRID = {"phonebook": (2e-3, 5e-3, 1e-2, 2e-2), "text": (2e-3, 5e-3, 1e-2, 2e-2, 5e-2)}
TUNING_SEEDS = (101, 102)
# Chosen by --tune on the select split; none lies at the grid's edge.
RATES = {
    "demo": {
        "phonebook": {"transformer": 1e-2, "mamba": 5e-3, "mamba2": 1e-2, "hybrid": 5e-3},
        "text": {"transformer": 1e-2, "mamba": 2e-2, "mamba2": 1e-2, "hybrid": 1e-2},
    },
    "full": {
        "phonebook": {"transformer": 5e-3, "mamba": 1e-2, "mamba2": 5e-3, "hybrid": 5e-3},
        "text": {"transformer": 1e-2, "mamba": 2e-2, "mamba2": 1e-2, "hybrid": 1e-2},
    },
}


def runs(scale: str = "demo") -> list[RunConfig]:
    """Every run of the study: seeds of a task share data and books among the arms.

    Arms of one seed come in turn, so that those that run side by side compile different programs, and later seeds none.
    """
    found = [
        run(scale, task, arm, seed) for task in ("phonebook", "text") for seed in SEEDS[scale][task] for arm in ARMS
    ]
    return found if scale == "demo" else found + controls(scale) + states(scale) + longer(scale)


def tuning(scale: str = "demo") -> list[RunConfig]:
    """One grid of learning rates for every arm, on seeds that are not reported."""
    return [
        replace(run(scale, task, arm, seed, rate), role="tuning", steps=TUNING_STEPS[scale][task], evaluate_every=0)
        for task, rates in GRID.items()
        for seed in TUNING_SEEDS
        for rate in rates
        for arm in ARMS
    ]


def run(scale: str, task: str, arm: str, seed: int, rate: float | None = None) -> RunConfig:
    pattern, symbols = ARMS[arm]
    data, evaluation = (
        (PHONEBOOK[scale], BOOKS[scale]) if task == "phonebook" else (TEXT[scale], TextEvaluation(rows=128, length=256))
    )
    steps = STEPS[scale][task]
    return RunConfig(
        study="phonebook",
        arm=arm,
        model=ModelConfig(pattern, WIDTH, data.vocabulary, symbols),
        data=replace(data, seed=seed),
        evaluation=evaluation,
        optimizer=OptimizerConfig(learning_rate=rate or RATES[scale][task][arm]),
        seed=seed,
        steps=steps,
        evaluate_every=steps // 4,
        checkpoint_every=steps // 2,
    )


def changed(base: RunConfig, role: str, symbol: str, arm: str = "", **fields) -> RunConfig:
    """A run that differs from `base` in some fields of one symbol's config; a control is an arm of its own."""
    symbols = {**base.model.symbols, symbol: replace(base.model.symbols[symbol], **fields)}
    model, of = replace(base.model, symbols=symbols), base.arm if role == "control" else ""
    return replace(base, arm=arm or base.arm, role=role, control_of=of, model=model)


def controls(scale: str) -> list[RunConfig]:
    found = []
    for seed in SEEDS[scale]["phonebook"]:
        transformer, hybrid = (run(scale, "phonebook", arm, seed) for arm in ("transformer", "hybrid"))
        found += [
            changed(transformer, "control", "*", "transformer, no positions", rotary=0.0),
            changed(transformer, "control", "*", "transformer, short convolution", conv=4),
            changed(hybrid, "control", "*", "hybrid, rotary", rotary=1.0),
        ]
    return found


def states(scale: str) -> list[RunConfig]:
    """One seed a size: three would take an hour more."""
    found = []
    for arm, symbol in (("mamba", "S"), ("mamba2", "M"), ("hybrid", "M")):
        base = run(scale, "phonebook", arm, SEEDS[scale]["phonebook"][0])
        size = base.model.symbols[symbol].state
        found += [changed(base, "state", symbol, state=int(times * size)) for times in (0.25, 4)]
    return found


def longer(scale: str) -> list[RunConfig]:
    """Twice the steps, one seed an arm: an arm that this changes was not trained."""
    bases = [run(scale, "phonebook", arm, SEEDS[scale]["phonebook"][0]) for arm in ARMS]
    return [replace(base, role="long", steps=2 * base.steps) for base in bases]
