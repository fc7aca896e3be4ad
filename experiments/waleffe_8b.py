"""The four 8B models of Waleffe et al. 2024, arXiv:2406.07887, as a study like any other.

Question: at 8 billion parameters and on the same data, does a hybrid of Mamba-2, a little attention and MLPs beat
    the Transformer, Mamba and Mamba-2, and at what?
Command:  workbench sizes experiments/waleffe_8b.py             (milliseconds, no accelerator)
          workbench plan experiments/waleffe_8b.py --count 8    (the step compiled for H100s that are not there)
Cost:     of training on 1.1T tokens, as in the paper: 4.8e22 to 5.3e22 FLOPs an arm, about 33,000 to 37,000 hours of
    one GPU that keeps up 400 TFLOP/s. No data are named here: a corpus of that size (data.sources) and a tokenizer of
    256,000 tokens have to be brought before it is trained.
Answer:   none yet; not run, planned. The sizes agree with the paper's models: 8.540, 8.149, 8.237 and 8.655 billion.
"""

from workbench.config import (
    AttentionConfig,
    Mamba2Config,
    MambaConfig,
    MLPConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    TextConfig,
    TextEvaluation,
)
from workbench.pattern import allocate

SCALES = ("full",)
LENGTH, BATCH = 4096, 256
TOKENS = 1_100_000_000_000


def runs(scale: str = "full") -> list[RunConfig]:
    """One run an arm, trained on the same 1.1T tokens with the optimiser of the paper's released script."""
    if scale not in SCALES:
        raise ValueError(f"waleffe_8b has no scale {scale!r}; it has {', '.join(SCALES)}")
    return [
        RunConfig(
            study="waleffe_8b",
            arm=arm,
            model=model,
            data=TextConfig(length=LENGTH, batch=BATCH),
            evaluation=TextEvaluation(length=LENGTH),
            optimizer=OptimizerConfig(learning_rate=2.5e-4, final=0.1, warmup=50_000 * LENGTH / TOKENS),
            steps=TOKENS // (LENGTH * BATCH),
            evaluate_every=10_000,
            checkpoint_every=10_000,
        )
        for arm, model in models().items()
    ]


def models() -> dict[str, ModelConfig]:
    """The paper's four: width 4096, vocabulary 256,000, embedding and head apart, no biases."""
    wide = {"width": 4096, "vocabulary": 256_000, "dtype": "bfloat16"}
    mamba2 = Mamba2Config(state=128, head_dim=64, groups=8)
    return {
        "transformer": ModelConfig(
            "(*-)x32",
            symbols={
                "*": AttentionConfig(heads=32, rotary=0.5),
                "-": MLPConfig(hidden=16384, activation="squared_relu"),
            },
            norm="layernorm1p",
            **wide,
        ),
        "mamba": ModelConfig("(S)x56", symbols={"S": MambaConfig(state=128, dt_rank=256)}, **wide),
        "mamba2": ModelConfig("(M)x56", symbols={"M": mamba2}, **wide),
        "hybrid": ModelConfig(
            allocate(56, attention=0.08, mlp=0.5),
            symbols={
                "M": mamba2,
                "*": AttentionConfig(heads=32, kv_heads=8, rotary=0.0),
                "-": MLPConfig(hidden=16384, activation="gelu"),
            },
            **wide,
        ),
    }
