"""How do bits per byte of Python source fall with size and training, and does one architecture overtake another?

Question: from 32 to 141 thousand parameters beside the embeddings, each trained on 20 tokens a parameter, how fast do
    the bits per byte of a Transformer, Mamba, Mamba-2 and a hybrid fall on packages that none was trained on, and do
    the curves of two of them cross?
Command:  workbench run experiments/scaling.py                (default)
          workbench run experiments/scaling.py --scale tiny   (does everything run?)
Cost:     48 runs in 33 minutes on two cores.
Answer:   the Transformer is behind at every size (by 0.21 bits at the largest) and falls fastest. Mamba is ahead at 32
    thousand parameters; its curve meets Mamba-2's at 113 thousand [75, 171] and the hybrid's near it, and at 141
    thousand the three are not told apart.

Arms, data and learning rates are those of experiments/phonebook.py on text. Their layers stay as many; width is what
grows, and at each width the arms are resized to one size within 2% (workbench.match). One rate serves an arm at every
width, so part of a curve's slope may be its rate's.

Written down before any run:
Expected: the Transformer's curve is the highest throughout and the steepest, since what it lacks at first is training;
    the other three lie within 0.05 bits of one another, and no crossing among them lies within what was measured in
    three of three seeds.
Stops:    after three seeds of every arm and size; none is added after looking. What three or four sizes cannot fix is
    the floor: an exponent whose interval holds 0 says nothing.
"""

from dataclasses import replace
from pathlib import Path

from workbench.config import ModelConfig, RunConfig, TextEvaluation, load_file
from workbench.count import count
from workbench.match import match

SCALES = ("default", "tiny")
PHONEBOOK = load_file(Path(__file__).with_name("phonebook.py"))
WIDTHS = {"default": (32, 48, 64, 80), "tiny": (16, 24, 32)}  # the last is the study's own, the others its curves'
TOKENS = 20  # a parameter beside the embeddings
SEEDS = {"default": (31, 32, 33), "tiny": (1,)}


def runs(scale: str = "default") -> list[RunConfig]:
    """Every arm at every width and seed; arms of one seed and width share their data and steps."""
    *smaller, largest = WIDTHS[scale]
    own = [run(scale, arm, largest, seed) for seed in SEEDS[scale] for arm in PHONEBOOK.ARMS]
    others = [
        replace(run(scale, arm, width, seed), role="scale")
        for width in reversed(smaller)
        for seed in SEEDS[scale]
        for arm in PHONEBOOK.ARMS
    ]
    return own + others


def model(arm: str, width: int) -> ModelConfig:
    """The arm at a width, its sizes in proportion, then resized to the Mamba-2 of that width, whose heads are whole."""
    scaled = in_proportion(arm, width)
    size = count(in_proportion("mamba2", width)).non_embedding_parameters
    return scaled if arm == "mamba2" else match(scaled, non_embedding_parameters=size, tolerance=0.01).config


def in_proportion(arm: str, width: int) -> ModelConfig:
    base = PHONEBOOK.run("full", "text", arm, 0).model
    share = width / base.width
    symbols = {}
    for letter, layer in base.symbols.items():
        for name, step in (("inner", getattr(layer, "head_dim", None) or 8), ("hidden", 8)):
            if getattr(layer, name, None):
                layer = replace(layer, **{name: max(step, round(getattr(layer, name) * share / step) * step)})
        symbols[letter] = layer
    return replace(base, width=width, symbols=symbols)


def run(scale: str, arm: str, width: int, seed: int) -> RunConfig:
    base = PHONEBOOK.run("full", "text", arm, seed)
    data = base.data if scale == "default" else replace(base.data, length=64, batch=2)
    size = count(model("mamba2", width)).non_embedding_parameters
    steps = TOKENS * size // (data.length * data.batch) if scale == "default" else width // 2
    return replace(
        base,
        study="scaling",
        model=model(arm, width),
        data=data,
        evaluation=base.evaluation if scale == "default" else TextEvaluation(rows=8, length=64),
        steps=steps,
        evaluate_every=steps,
        checkpoint_every=max(steps // 2, 1),
    )
