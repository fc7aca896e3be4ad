"""How much faster does a hybrid generate than a Transformer as the context grows, and does counting bytes foretell it?

Question: with equal width and non-embedding parameters, how long does a decoding step take against context, at one
    sequence and at eight, and how near is the prediction from bytes moved and FLOPs?
Command:  workbench speed experiments/inference.py                (default)
          workbench speed experiments/inference.py --device h100  (predicted alone)
Cost:     four minutes on two cores.
Answer:   the hybrid's speed-up over the Transformer grows with the context, on two cores to 6.4 at one sequence of
    65,536 tokens and 6.5 at eight of 16,384, and is 0.64 to 1.19 times the predicted one; absolute times are not.

Weights are random, since what they are costs nothing: nothing is trained. Two Transformers are there, one with keys and
values of every head and one with those of a quarter of them, which is what is built today.
"""

from dataclasses import replace

from workbench.config import (
    AttentionConfig,
    Mamba2Config,
    MambaConfig,
    MLPConfig,
    ModelConfig,
    RunConfig,
    TextConfig,
    TextEvaluation,
)
from workbench.pattern import allocate

SCALES = ("default",)
WIDTH, VOCABULARY = 512, 4096


def models() -> dict[str, ModelConfig]:
    """Width 512, about 12.6 million parameters beside the embeddings."""
    wide = {"width": WIDTH, "vocabulary": VOCABULARY}
    mamba2 = Mamba2Config(state=64, head_dim=48, inner=1104)
    grouped = AttentionConfig(heads=8, kv_heads=2)
    mlp = MLPConfig(hidden=2048)
    return {
        "transformer": ModelConfig("(*-)x4", symbols={"*": AttentionConfig(heads=8), "-": mlp}, **wide),
        "transformer, grouped": ModelConfig("(*-)x4", symbols={"*": grouped, "-": replace(mlp, hidden=2432)}, **wide),
        "mamba": ModelConfig("(S)x7", symbols={"S": MambaConfig(state=16, inner=1088)}, **wide),
        "mamba2": ModelConfig("(M)x7", symbols={"M": mamba2}, **wide),
        "hybrid": ModelConfig(
            allocate(8, attention=1 / 8, mlp=3 / 8),
            symbols={"M": mamba2, "*": replace(grouped, rotary=0.0), "-": replace(mlp, hidden=1568)},
            **wide,
        ),
    }


def runs(scale: str = "default") -> list[RunConfig]:
    """One run an arm, which says what the model is; none is meant to be trained."""
    if scale not in SCALES:
        raise ValueError(f"inference has no scale {scale!r}; it has {', '.join(SCALES)}")
    return [
        RunConfig("inference", arm, model, TextConfig(tokenizer="bpe-4096"), TextEvaluation())
        for arm, model in models().items()
    ]
