"""What a run is: frozen dataclasses, their overrides, their JSON and their hash. Needs only the standard library.

A layer config says everything about its layer: its counts here, and `build`, which imports JAX when it is called.
A user's own layer is another such class in the user's own file (see experiments/my_mixer.py).
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import hashlib
import importlib
import importlib.util
import json
import math
import sys
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from workbench import pattern as patterns
from workbench.count import Operation


def later(default: Any) -> Any:
    """A field younger than configs that were hashed: no part of the JSON at its default, so that old hashes stay."""
    return field(default=default, metadata={"later": True})


@runtime_checkable
class LayerConfig(Protocol):
    """What a symbol of the pattern is bound to. Sizes that are None follow from the model's width."""

    def build(self, width: int, make: Any) -> Any:
        """The layer, its parameters made by `make(name, shape)` (workbench.model.initial)."""
        ...

    def parameters(self, width: int) -> int: ...

    def operations(self, width: int, context: float) -> list[Operation]:
        """Multiply-adds a token at a (mean) context, each as (name, m, n, k, batch)."""
        ...

    def state_bytes(self, width: int, context: int, element_bytes: int) -> int:
        """Bytes of decoding state for one sequence: caches and windows in the compute dtype, recurrences float32."""
        ...


# Bytes of an element of a cache, and of the scale that a key or value of a head has beside it
CACHES = {"": None, "bfloat16": (2, 0), "int8": (1, 4)}


@dataclass(frozen=True)
class AttentionConfig:
    """Causal softmax attention; grouped-query when kv_heads < heads; rotary on the first part of each head."""

    heads: int = 4
    kv_heads: int | None = None  # heads
    head_dim: int | None = None  # width / heads
    rotary: float = 1.0  # fraction of the head that is rotated; 0 for no positions
    rotary_base: float = 10_000.0
    window: int | None = None  # keys seen, itself included; None for all
    conv: int = 0  # taps of a causal convolution on q, k and v; 0 for none
    qkv_bias: bool = later(False)
    out_bias: bool = later(False)
    qk_norm: bool = later(False)  # an RMS norm of each head's query and key, before they are rotated
    norm_epsilon: float = later(1e-5)  # of qk_norm
    cache: str = later("")  # what generation keeps keys and values in: bfloat16, int8, or "" for the compute dtype
    # Rotations slowed down for longer contexts: (factor,) all of them; (factor, low, high, length) as Llama 3 does
    rotary_scaling: tuple[float, ...] = later(())

    def sizes(self, width: int) -> tuple[int, int, int]:
        """(heads, kv_heads, head_dim) at a width."""
        _at_least_one(self, "heads", "kv_heads", "head_dim", "window")
        if self.cache not in CACHES:
            raise ValueError(f"cache {self.cache!r} is unknown; {nearest(self.cache, CACHES)}")
        kv_heads = self.kv_heads or self.heads
        if self.heads % kv_heads:
            raise ValueError(f"attention has {self.heads} heads and {kv_heads} kv_heads; heads must be a multiple")
        if self.head_dim is None and width % self.heads:
            raise ValueError(
                f"width {width} is not divisible by {self.heads} attention heads; "
                f"change one, or give head_dim (for instance {max(width // self.heads, 1)})"
            )
        head_dim = self.head_dim or width // self.heads
        if not 0 <= self.rotary <= 1:
            raise ValueError(f"rotary is a fraction of the head, between 0 and 1; got {self.rotary}")
        rotated = int(head_dim * self.rotary)
        if rotated % 2 or (self.rotary and not rotated):
            raise ValueError(
                f"rotary {self.rotary} of head_dim {head_dim} rotates {rotated}; it needs an "
                "even number of dimensions, at least 2, or rotary=0"
            )
        scaling = self.rotary_scaling
        if len(scaling) not in (0, 1, 4) or min(scaling, default=1) <= 0 or (scaling[1:] and scaling[1] >= scaling[2]):
            raise ValueError(
                f"rotary_scaling is {scaling}; give (factor,), (factor, low, high, length) with low below high, or ()"
            )
        return self.heads, kv_heads, head_dim

    def build(self, width: int, make: Any) -> Any:
        from workbench.model.attention import Attention

        return Attention(self, width, make)

    def parameters(self, width: int) -> int:
        heads, kv_heads, head_dim = self.sizes(width)
        channels = (heads + 2 * kv_heads) * head_dim
        more = channels * self.qkv_bias + width * self.out_bias + 2 * head_dim * self.qk_norm
        return width * channels + heads * head_dim * width + (channels * (self.conv + 1) if self.conv else 0) + more

    def operations(self, width: int, context: float) -> list[Operation]:
        heads, kv_heads, head_dim = self.sizes(width)
        seen = min(context, self.window) if self.window else context
        channels = (heads + 2 * kv_heads) * head_dim
        conv = [Operation("conv", 1, 1, self.conv, channels)] if self.conv else []
        return [
            Operation("qkv", 1, channels, width, 1),
            *conv,
            Operation("scores", 1, seen, head_dim, heads),
            Operation("values", 1, head_dim, seen, heads),
            Operation("out", 1, width, heads * head_dim, 1),
        ]

    def state_bytes(self, width: int, context: int, element_bytes: int) -> int:
        heads, kv_heads, head_dim = self.sizes(width)
        kept = min(context, self.window) if self.window else context
        window = (self.conv - 1) * (heads + 2 * kv_heads) * head_dim if self.conv else 0
        element, scale = CACHES[self.cache] or (element_bytes, 0)
        return 2 * kept * kv_heads * (head_dim * element + scale) + window * element_bytes


@dataclass(frozen=True)
class MambaConfig:
    """Mamba's mixer (S6), Gu & Dao 2023, arXiv:2312.00752."""

    state: int = 16
    inner: int | None = None  # 2 width
    conv: int = 4
    dt_rank: int | None = None  # ceil(width / 16)
    bias: bool = later(False)  # of the projections in and out
    conv_bias: bool = later(True)

    def sizes(self, width: int) -> tuple[int, int]:
        """(inner, dt_rank) at a width."""
        _at_least_one(self, "state", "inner", "conv", "dt_rank")
        return self.inner or 2 * width, self.dt_rank or math.ceil(width / 16)

    def build(self, width: int, make: Any) -> Any:
        from workbench.model.mamba import Mamba

        return Mamba(self, width, make)

    def parameters(self, width: int) -> int:
        inner, rank = self.sizes(width)
        projections = width * 2 * inner + inner * (rank + 2 * self.state) + rank * inner + inner * width
        biases = inner * self.conv_bias + (2 * inner + width) * self.bias
        return projections + inner * self.conv + biases + inner * self.state + 2 * inner

    def operations(self, width: int, context: float) -> list[Operation]:
        inner, rank = self.sizes(width)
        return [
            Operation("in", 1, 2 * inner, width, 1),
            Operation("conv", 1, 1, self.conv, inner),
            Operation("x", 1, rank + 2 * self.state, inner, 1),
            Operation("dt", 1, inner, rank, 1),
            Operation("decay", 1, self.state, 1, inner),
            Operation("write", 1, self.state, 1, inner),
            Operation("read", 1, 1, self.state, inner),
            Operation("out", 1, width, inner, 1),
        ]

    def state_bytes(self, width: int, context: int, element_bytes: int) -> int:
        inner, _ = self.sizes(width)
        return 4 * inner * self.state + (self.conv - 1) * inner * element_bytes


@dataclass(frozen=True)
class Mamba2Config:
    """Mamba-2's mixer (SSD), Dao & Gu 2024, arXiv:2405.21060, section 7."""

    state: int = 128
    head_dim: int = 64
    groups: int = 1  # of B and C, and of the gated norm
    inner: int | None = None  # 2 width
    conv: int = 4
    bias: bool = later(False)  # of the projections in and out
    conv_bias: bool = later(True)
    norm_epsilon: float = later(1e-5)  # of the gated norm
    dt_limit: tuple[float, float] | None = later(None)  # least and greatest step size; None for any

    def sizes(self, width: int) -> tuple[int, int]:
        """(inner, heads) at a width."""
        _at_least_one(self, "state", "head_dim", "groups", "inner", "conv")
        inner = self.inner or 2 * width
        if inner % self.head_dim:
            raise ValueError(f"Mamba-2's inner width {inner} is not divisible by head_dim {self.head_dim}; change one")
        heads = inner // self.head_dim
        if heads % self.groups:
            raise ValueError(f"Mamba-2 has {heads} heads and {self.groups} groups; heads must be a multiple of groups")
        if self.dt_limit is not None and not (len(self.dt_limit) == 2 and 0 <= self.dt_limit[0] < self.dt_limit[1]):
            raise ValueError(f"Mamba-2's dt_limit is {self.dt_limit}; give (least, greatest) step size, or None")
        return inner, heads

    def build(self, width: int, make: Any) -> Any:
        from workbench.model.mamba2 import Mamba2

        return Mamba2(self, width, make)

    def parameters(self, width: int) -> int:
        inner, heads = self.sizes(width)
        channels = inner + 2 * self.groups * self.state
        projections = width * (inner + channels + heads) + inner * width
        biases = channels * self.conv_bias + (inner + channels + heads + width) * self.bias
        return projections + channels * self.conv + biases + 3 * heads + inner

    def operations(self, width: int, context: float) -> list[Operation]:
        inner, heads = self.sizes(width)
        channels = inner + 2 * self.groups * self.state
        return [
            Operation("in", 1, inner + channels + heads, width, 1),
            Operation("conv", 1, 1, self.conv, channels),
            Operation("decay", 1, self.state, 1, inner),
            Operation("write", 1, self.state, 1, inner),
            Operation("read", 1, 1, self.state, inner),
            Operation("out", 1, width, inner, 1),
        ]

    def state_bytes(self, width: int, context: int, element_bytes: int) -> int:
        inner, _ = self.sizes(width)
        channels = inner + 2 * self.groups * self.state
        return 4 * inner * self.state + (self.conv - 1) * channels * element_bytes


def _at_least_one(layer: LayerConfig, *names: str) -> None:
    """Refuses a size of 0 or less, which would otherwise read as a default."""
    for name in names:
        size = getattr(layer, name)
        if size is not None and size < 1:
            raise ValueError(f"{type(layer).__name__}.{name} must be at least 1; got {size}")


ACTIVATIONS = ("gelu", "gelu_erf", "squared_relu", "swiglu")


@dataclass(frozen=True)
class MLPConfig:
    hidden: int | None = None  # 4 width
    activation: str = "gelu"  # gelu (its tanh form), gelu_erf, squared_relu or swiglu (gated)
    bias: bool = later(False)

    def sizes(self, width: int) -> tuple[int, int]:
        """(hidden, matrices into it) at a width."""
        _at_least_one(self, "hidden")
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation {self.activation!r} is unknown; {nearest(self.activation, ACTIVATIONS)}")
        return self.hidden or 4 * width, 2 if self.activation == "swiglu" else 1

    def build(self, width: int, make: Any) -> Any:
        from workbench.model.mlp import MLP

        return MLP(self, width, make)

    def parameters(self, width: int) -> int:
        hidden, matrices = self.sizes(width)
        return width * hidden * (matrices + 1) + (matrices * hidden + width) * self.bias

    def operations(self, width: int, context: float) -> list[Operation]:
        hidden, matrices = self.sizes(width)
        return [Operation("in", 1, matrices * hidden, width, 1), Operation("out", 1, width, hidden, 1)]

    def state_bytes(self, width: int, context: int, element_bytes: int) -> int:
        return 0


def default_symbols() -> dict[str, LayerConfig]:
    return {"M": Mamba2Config(), "S": MambaConfig(), "*": AttentionConfig(), "-": MLPConfig()}


NORMS = ("rms", "layernorm1p")
DTYPES = ("float32", "bfloat16", "float64")


@dataclass(frozen=True)
class ModelConfig:
    """A model is a string: one symbol, one layer `x + f(norm(x))`, one residual; one final norm.

    `symbols` binds letters to layer configs; letters not named keep their default.
    """

    pattern: str
    width: int
    vocabulary: int
    symbols: Mapping[str, LayerConfig] = field(default_factory=default_symbols)
    norm: str = "rms"
    tied: bool = False  # output head is the embedding's transpose
    dtype: str = "float32"  # of the computation; parameters are float32 or wider
    norm_epsilon: float = later(1e-5)
    positions: int = later(0)  # tokens that it can read, as a released model says; 0 for any number

    def __post_init__(self):
        object.__setattr__(self, "symbols", {**default_symbols(), **self.symbols})
        patterns.parse(self.pattern, self.symbols)
        for name in ("width", "vocabulary"):
            if getattr(self, name) < 1:
                raise ValueError(f"model.{name} must be at least 1; got {getattr(self, name)}")
        if self.positions < 0:
            raise ValueError(f"model.positions is {self.positions}; give how many tokens it can read, or 0 for any")
        for name, choices in (("norm", NORMS), ("dtype", DTYPES)):
            if getattr(self, name) not in choices:
                raise ValueError(f"model.{name} {getattr(self, name)!r}: {nearest(getattr(self, name), choices)}")
        for layer in set(self.layers):
            layer.parameters(self.width)  # a size that does not divide is refused here, not in the middle of a build

    def __hash__(self):
        return hash((self.pattern, self.width, self.vocabulary, tuple(sorted(self.symbols)), self.norm, self.dtype))

    @property
    def layers(self) -> list[LayerConfig]:
        """The layer config of each symbol, in order."""
        return [self.symbols[symbol] for symbol in patterns.parse(self.pattern, self.symbols)]


@dataclass(frozen=True)
class PhonebookConfig:
    """Books of entries `name number`, then queries about them. See workbench.data.phonebook."""

    names: int = 64  # how many names there are
    name_tokens: int = 1  # tokens of a name
    digits: int = 3  # digits of a number
    entries: tuple[int, ...] = (2, 4, 8)  # book sizes in training, each drawn equally often
    length: int = 96  # tokens a row; several books are packed into a row
    batch: int = 16  # rows a step
    seed: int = 0  # of the data

    def stream(self, split: str = "train") -> Any:
        from workbench.data.phonebook import PhonebookStream

        return PhonebookStream(self, split)

    def answers(self, entries: int) -> tuple[int, int]:
        """How many answers a book holds that do not follow from each other, and how many each could be."""
        return entries, 10**self.digits

    @property
    def vocabulary(self) -> int:
        """Padding, the query mark, ten digits, and the tokens of the names."""
        return 12 + self.names


RECALL = ("mqar", "copying", "selective-copying", "induction", "trigrams")
LOOKUPS = ("mqar", "trigrams")  # those with keys from half of the symbols, each with a value from the other half


@dataclass(frozen=True)
class RecallConfig:
    """Pairs or trigrams to look up, or symbols to copy, made by rule. See workbench.data.recall."""

    kind: str = "mqar"  # of RECALL
    symbols: int = 64  # how many there are; of mqar and trigrams one half stands in keys, the other in values
    sizes: tuple[int, ...] = (4, 8, 16)  # what a document in training has to keep, each drawn equally often
    length: int = 96  # tokens a row; several documents are packed into a row
    batch: int = 16  # rows a step
    seed: int = 0  # of the data

    def __post_init__(self):
        if self.kind not in RECALL:
            raise ValueError(f"data.kind {self.kind!r}: {nearest(self.kind, RECALL)}")
        if not self.sizes or self.batch < 1:
            raise ValueError(f"data.sizes is {self.sizes} and data.batch {self.batch}; there is at least one of each")
        for size in self.sizes:
            self.check(size)

    def check(self, size: int) -> None:
        """Raises ValueError if there are no documents of this size."""
        if self.symbols < 2 or not 1 <= size <= self.most:
            own = {
                "mqar": ", and each pair has a key of its own among half of the symbols",
                "trigrams": ", and each trigram begins with two symbols of its own among half of them",
            }
            raise ValueError(
                f"{self.kind} of size {size} with {self.symbols} symbols: a size is at least 1" + own.get(self.kind, "")
            )

    @property
    def most(self) -> int | float:
        """The largest size: of what is looked up, how many keys there are."""
        return {"mqar": self.symbols // 2, "trigrams": (self.symbols // 2) ** 2}.get(self.kind, math.inf)

    def answers(self, size: int) -> tuple[int, int]:
        """How many answers a document holds that do not follow from each other, and how many each could be."""
        if self.kind in LOOKUPS:
            return size, self.symbols // 2
        return 1, self.symbols if self.kind == "induction" else self.symbols**size

    def stream(self, split: str = "train") -> Any:
        from workbench.data.recall import RecallStream

        return RecallStream(self, split)

    @property
    def vocabulary(self) -> int:
        """Padding, the mark, a blank and the symbols."""
        return 3 + self.symbols


@dataclass(frozen=True)
class Packages:
    """Python source of installed pure-Python distributions: fixed by the lock file's hashes, nothing to download."""

    names: tuple[str, ...] = ()  # distributions; a package is a group


@dataclass(frozen=True)
class Files:
    """Local documents: a text file each, a line of .jsonl (.gz, .zst) each, or a row of .parquet each."""

    paths: tuple[str, ...] = ()  # files and globs, ** for any depth
    text: str = "text"  # the field that holds a document
    group: str = ""  # the field that splits are made by; without one a document, or of text files their folder


@dataclass(frozen=True)
class HuggingFace:
    """A dataset of the hub, or a local folder in its form (needs the package datasets)."""

    path: str
    name: str | None = None
    split: str = "train"  # of the dataset; train, select and test are made of it by group
    revision: str | None = None
    text: str = "text"
    group: str = ""


@dataclass(frozen=True)
class Megatron:
    """Megatron's prefix.bin and prefix.idx, read back to text by the tokenizer that they were made with."""

    prefix: str
    tokenizer: str


@dataclass(frozen=True)
class TextConfig:
    """Real text in documents, split by group (package, project). See workbench.data.text."""

    sources: tuple[Any, ...] = ()  # Packages, Files, HuggingFace, Megatron
    weights: tuple[float, ...] = ()  # of the sources in every stretch of rows; () for every row once an epoch
    tokenizer: str = "bytes"  # "bytes", "bpe-4096" (trained on the train split), a file, or a name on the hub
    held_out: float = 0.0  # fraction of the training groups' documents that make the split "same"
    length: int = 256
    batch: int = 8
    seed: int = 0
    # Megatron's --rampup-batch-size: the first step's rows, how many more at a time, rows read until there are `batch`
    ramp: tuple[int, ...] = later(())

    def stream(self, split: str = "train") -> Any:
        from workbench.data.text import TextStream

        return TextStream(self, split)

    @property
    def vocabulary(self) -> int:
        from workbench.data.tokenizer import size

        return size(self.tokenizer)


@dataclass(frozen=True)
class UnknownData:
    """What an imported model was trained on."""

    vocabulary: int
    length: int = 4096  # context at which the model's cost is counted

    def stream(self, split: str = "train") -> Any:
        raise ValueError("the data of an imported model is unknown, so that nothing can be read from it")


@dataclass(frozen=True)
class PhonebookEvaluation:
    """Exact match on unseen books, by entry count and by depth. See workbench.evaluate.phonebook."""

    entries: tuple[int, ...] = (2, 4, 8, 16)  # book sizes, past the trained ones too
    books: int = 64  # books of each size
    queries: int = 8  # entries asked for in each book, spread evenly over depth (all, if the book has fewer)

    def build(self, run: RunConfig) -> Any:
        from workbench.evaluate.phonebook import evaluator

        return evaluator(self, run)


@dataclass(frozen=True)
class RecallEvaluation:
    """Exact match on unseen documents, by size. See workbench.evaluate.recall."""

    sizes: tuple[int, ...] = (4, 8, 16, 32)  # past the trained ones too
    documents: int = 64  # of each size
    queries: int = 8  # of mqar and trigrams: asked for in each document, spread evenly over depth

    def build(self, run: RunConfig) -> Any:
        from workbench.evaluate.recall import evaluator

        return evaluator(self, run)


@dataclass(frozen=True)
class TextEvaluation:
    """Bits per byte on packages that were not trained on, and what is answered of tasks in text."""

    rows: int = 128  # rows of the split that are read
    length: int = 256
    # Suites, and fields of their tasks, as `workbench evaluate --suite` takes them: ("phonebook", "recall", "count=20")
    suite: tuple[str, ...] = later(())

    def build(self, run: RunConfig) -> Any:
        from workbench.evaluate.text import evaluator

        return evaluator(self, run)


@dataclass(frozen=True)
class PositionEvaluation:
    """Bits per byte by position in long documents that were not trained on. See workbench.evaluate.position."""

    length: int = 4096  # tokens read of each document, past the length of training too
    documents: int = 32  # how many, of those that are so long

    def build(self, run: RunConfig) -> Any:
        from workbench.evaluate.position import evaluator

        return evaluator(self, run)


SCHEDULES = ("cosine", "wsd")


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with warm-up and a schedule, the same for every architecture; what is decayed is decided by name."""

    learning_rate: float = 1e-3
    schedule: str = "cosine"  # or "wsd": warm-up, stable, decay
    final: float = 0.1  # last rate as a fraction of the highest
    warmup: float = 0.1  # fraction of the run's steps
    cooldown: float = 0.2  # fraction of the run's steps in which "wsd" comes down
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    decay: float = 0.1
    clip: float = 1.0  # of the gradient's global norm

    def __post_init__(self):
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"optimizer.learning_rate is {self.learning_rate}; it must be a positive number")
        if self.schedule not in SCHEDULES:
            raise ValueError(f"optimizer.schedule {self.schedule!r}: {nearest(self.schedule, SCHEDULES)}")
        if not 0 < self.cooldown <= 1:
            raise ValueError(f"optimizer.cooldown is {self.cooldown:g}; it is a fraction of the run's steps, 0 to 1")

    def warmup_steps(self, steps: int) -> int:
        """Steps of warm-up in a run of `steps`. Raises ValueError unless `warmup` is a fraction."""
        if not 0 <= self.warmup <= 1:
            raise ValueError(
                f"optimizer.warmup is {self.warmup:g}; it is a fraction of the run's {steps} steps: give 0 to 1, "
                "such as 0.1 for a tenth of them"
            )
        return round(self.warmup * steps)


REMAT = ("none", "products", "all")


@dataclass(frozen=True)
class Layout:
    """How a step is laid out over devices and memory: never what is computed, so no part of what a run is.

    Rows are divided over data and fsdp, a row's tokens over sequence, parameters over fsdp and tensor;
    data x fsdp x sequence x tensor devices are used.
    """

    data: int = 1
    fsdp: int = 1
    sequence: int = 1
    tensor: int = 1
    micro: int = 1  # parts of a batch that are run one after the other, their gradients added up
    remat: str = "none"  # what the backward pass makes again: nothing, all but matrix products, or all of a layer

    def __post_init__(self):
        for name in ("data", "fsdp", "sequence", "tensor", "micro"):
            if getattr(self, name) < 1:
                raise ValueError(f"layout.{name} must be at least 1; got {getattr(self, name)}")
        if self.remat not in REMAT:
            raise ValueError(f"layout.remat {self.remat!r}: {nearest(self.remat, REMAT)}")

    @property
    def devices(self) -> int:
        return self.data * self.fsdp * self.sequence * self.tensor

    @staticmethod
    def read(text: str) -> Layout:
        """`data=4,tensor=2` as a layout, "" as one device's. Raises ValueError on an unknown name or a wrong value."""
        return override(Layout(), *(part for part in text.split(",") if part.strip()))


def task_name(data: Any) -> str:
    """What runs on this data, or on its JSON, learn: a recall's kind, else the class, such as "phonebook"."""
    if isinstance(data, Mapping):
        kind, name = data.get("kind"), data["class"].rpartition(":")[2]
    else:
        kind, name = getattr(data, "kind", None), type(data).__name__
    return kind if kind in RECALL else name.removesuffix("Config").lower()


BUDGETS = ("tokens", "flops", "seconds")  # at which arms may be compared
ROLES = ("result", "tuning", "control", "state", "long", "extended", "branched", "noise", "scale", *BUDGETS[1:])


@dataclass(frozen=True)
class Parent:
    """The run that another goes on from: from its last weights, or from all of its state after a step.

    See workbench.study.extend.
    """

    run: str  # its folder, as seen from the study's: of a run of the same study its name
    weights_hash: str = ""  # those weights and no others; "" for what that run has
    step: int = later(0)  # whose checkpoint, weights, optimizer and place in the data; 0 for its last weights alone


@dataclass(frozen=True)
class RunConfig:
    """One run: an arm of a study, at one seed. Every arm of a comparison shares data and seeds."""

    study: str
    arm: str
    model: ModelConfig
    data: Any  # PhonebookConfig, RecallConfig, TextConfig or a user's own
    evaluation: Any  # PhonebookEvaluation, RecallEvaluation, TextEvaluation or a user's own
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    seed: int = 0  # of the initialisation
    steps: int = 1000
    evaluate_every: int = 0  # steps between evaluations on the select split; 0 for none before the end
    checkpoint_every: int = 0  # steps between checkpoints; 0 for the last step alone
    log_every: int = 20  # steps between rows of metrics.jsonl
    z_loss: float = 0.0  # weight of the squared logarithm of the softmax's total, which keeps logits near zero
    # What the report does with it, of ROLES. long: twice the steps; extended: longer sequences; noise: another
    # initialisation on the same data; scale: an arm at another size; flops, seconds: it ends where the cheapest arm
    # has spent as much
    role: str = "result"
    control_of: str = ""  # of a control: the arm that it differs from, in one thing
    parent: Parent | None = later(None)  # noqa: RUF009 - whose weights it starts from, instead of `seed`'s
    keep: tuple[int, ...] = later(())  # steps whose checkpoints stay, for runs that branch there
    step_seconds: float = later(0.0)  # of its arm alone on the machine, for equal seconds; 0: not timed

    def __post_init__(self):
        if self.role not in ROLES:
            raise ValueError(f"role {self.role!r}: {nearest(self.role, ROLES)}")
        if (self.role == "control") != bool(self.control_of):
            raise ValueError(
                f"arm {self.arm!r} has role={self.role!r} and control_of={self.control_of!r}; "
                "a control, and nothing else, names the arm that it differs from"
            )
        if self.role in ("extended", "branched") and self.parent is None:
            raise ValueError(f"arm {self.arm!r} has role={self.role!r} and no parent; workbench.study.extend names it")
        if self.parent is not None and self.parent.step >= self.steps:
            raise ValueError(f"steps is {self.steps}, and it branches off at step {self.parent.step}; give more steps")
        if not self.arm or set(self.arm) & set("/\\\n") or self.arm.startswith("."):
            raise ValueError(
                f"arm {self.arm!r} becomes part of a folder's name; leave out / and \\, and a dot in front"
            )
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1; got {self.steps}")
        if self.model.vocabulary < self.data.vocabulary:
            raise ValueError(
                f"the model's vocabulary is {self.model.vocabulary} and the data needs {self.data.vocabulary}; "
                f"set model.vocabulary={self.data.vocabulary}"
            )

    @functools.cached_property
    def name(self) -> str:
        """Folder of the run: readable, and unique by the hash of everything in it."""
        task = task_name(self.data)
        role = "" if self.role in ("result", "control") else f"-{self.role}"
        return f"{task}-{self.arm}{role}-s{self.seed}-{short_hash(self)}"


# ---- errors that help


def nearest(given: str, choices) -> str:
    """`did you mean X? choices: ...` for an error about a name that is unknown."""
    choices = sorted(map(str, choices))
    close = difflib.get_close_matches(given, choices, n=1, cutoff=0.5)
    return (f"did you mean {close[0]!r}? " if close else "") + "choices: " + ", ".join(choices)


# ---- overrides


class UnknownName(ValueError):
    """An override names a field or key that the config does not have."""


def override(config: Any, *assignments: str) -> Any:
    """The config with `optimizer.learning_rate=3e-3`-like assignments applied, values read by the field's type.

    Reaches into mappings by key: `model.symbols.M.state=64`. Raises UnknownName, a ValueError, with the nearest name.
    """
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals:
            raise ValueError(f"override {assignment!r} needs the form name=value")
        config = _replace(config, path.strip().split("."), text.strip(), path.strip())
    return config


def _replace(value: Any, path: list[str], text: str, whole: str) -> Any:
    head, rest = path[0], path[1:]
    if isinstance(value, Mapping):
        if head not in value:
            raise UnknownName(f"{whole!r} has no {head!r}; {nearest(head, value)}")
        if not rest:
            raise ValueError(f"{whole!r} is a whole config; name one of its fields")
        return {**value, head: _replace(value[head], rest, text, whole)}
    if not dataclasses.is_dataclass(value):
        raise ValueError(f"{whole!r} goes below a plain value; leave off {'.'.join(path)!r}")
    hints = _hints(type(value))
    if head not in hints:
        raise UnknownName(f"{whole!r}: {type(value).__name__} has no field {head!r}; {nearest(head, hints)}")
    if rest:
        new = _replace(getattr(value, head), rest, text, whole)
    elif dataclasses.is_dataclass(present := getattr(value, head)) or isinstance(present, Mapping):
        names = present if isinstance(present, Mapping) else _hints(type(present))
        raise ValueError(f"{whole!r} is a whole config; name one of its fields: {', '.join(names)}")
    elif any(each is Any or dataclasses.is_dataclass(each) for each in typing.get_args(hints[head])):
        raise ValueError(f"{whole!r} holds whole configs; change it in the experiment's file")
    else:
        new = _read(text, hints[head], whole)
    return dataclasses.replace(value, **{head: new})


def _hints(cls: type) -> dict[str, Any]:
    names = {f.name for f in dataclasses.fields(cls)}
    return {name: hint for name, hint in typing.get_type_hints(cls).items() if name in names}


def _read(text: str, hint: Any, name: str) -> Any:
    """Text to a value of the type that the field declares."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        options = typing.get_args(hint)
        if types.NoneType in options and text.lower() in ("none", "null"):
            return None
        return _read(text, next(option for option in options if option is not types.NoneType), name)
    if typing.get_origin(hint) is tuple:
        inner = typing.get_args(hint)[0]
        parts = [part for part in text.strip("()[] ").split(",") if part.strip()]
        return tuple(_read(part.strip(), inner, name) for part in parts)
    if hint is bool:
        if text.lower() in ("true", "false"):
            return text.lower() == "true"
        raise ValueError(f"{name} is true or false; got {text!r}")
    if hint in (int, float):
        try:
            return hint(text) if hint is float else int(float(text)) if float(text).is_integer() else int(text)
        except ValueError:
            raise ValueError(f"{name} is a number ({hint.__name__}); got {text!r}") from None
    return text


# ---- JSON both ways


def to_json(value: Any) -> Any:
    """Plain JSON values. A dataclass carries `class: module:Class`; one from a user's own file its path and sha256."""
    if dataclasses.is_dataclass(value):
        cls = type(value)
        out = {"class": f"{cls.__module__}:{cls.__qualname__}"}
        if cls.__module__ == "__main__":
            raise ValueError(
                f"{cls.__qualname__} was defined in a notebook or script, where no run can find it; put it in a file"
            )
        path = _user_file(cls)
        if path is not None:
            out |= {"file": str(path), "sha256": sys.modules[cls.__module__].sha256}
        unset = {
            f.name for f in dataclasses.fields(cls) if f.metadata.get("later") and getattr(value, f.name) == f.default
        }
        values = {name: (getattr(value, name), hint) for name, hint in _hints(cls).items() if name not in unset}
        # 1 where the field is a float is 1.0: equal configs have equal hashes
        return out | {
            name: float(item) if hint is float and type(item) is int else to_json(item)
            for name, (item, hint) in values.items()
        }
    if isinstance(value, Mapping):
        return {key: to_json(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [to_json(item) for item in value]
    return value


def from_json(value: Any, where: str = "config") -> Any:
    """What `to_json` wrote. Raises ValueError on an unknown field (nearest match) or a changed user's file."""
    if isinstance(value, list):
        return tuple(from_json(item, where) for item in value)
    if not isinstance(value, dict):
        return value
    if "class" not in value:
        return {key: from_json(item, f"{where}.{key}") for key, item in value.items()}
    cls = _find_class(value, where)
    hints = _hints(cls)
    given = {key: item for key, item in value.items() if key not in ("class", "file", "sha256")}
    for key in given:
        if key not in hints:
            raise ValueError(f"{where}: {cls.__name__} has no field {key!r}; {nearest(key, hints)}")
    return cls(**{key: from_json(item, f"{where}.{key}") for key, item in given.items()})


def _find_class(value: dict, where: str) -> type:
    module, _, name = value["class"].partition(":")
    if "file" in value:
        path = Path(value["file"])
        if not path.is_file():
            raise ValueError(f"{where} needs {name} from {path}, which is not there; run from the folder that holds it")
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        if found != value["sha256"]:
            raise ValueError(
                f"{where} needs {name} from {path} as it was (sha256 {value['sha256'][:12]}); the file has changed "
                f"(now {found[:12]}): bring the old one back, or run again"
            )
        loaded = load_file(path)
    else:
        try:
            loaded = importlib.import_module(module)
        except ModuleNotFoundError:
            raise ValueError(f"{where} needs {name} from the module {module!r}, which is not installed") from None
    cls = getattr(loaded, name, None)
    if not dataclasses.is_dataclass(cls):
        raise ValueError(f"{where}: {value['class']!r} is not a config class")
    return cls


def load_file(path: str | Path) -> types.ModuleType:
    """The user's Python file as a module, loaded once for each content; its classes remember where they came from."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path} is not there; give the path of a Python file, such as experiments/phonebook.py")
    content = path.read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    name = f"user_{path.stem}_{sha256[:8]}"  # an edited file, or another of the same name, is another module
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    module.sha256 = sha256
    sys.modules[name] = module
    try:
        # from the bytes that were hashed: the loader's bytecode cache misses an edit within a second
        exec(compile(content, str(path), "exec"), module.__dict__)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _user_file(cls: type) -> Path | None:
    """The file of a class that no import can find by name: one that `load_file` loaded."""
    if not cls.__module__.startswith("user_"):
        return None
    path = Path(sys.modules[cls.__module__].__file__).resolve()
    here = Path.cwd().resolve()
    return path.relative_to(here) if path.is_relative_to(here) else path


def short_hash(config: Any) -> str:
    """Eight hex digits of everything that the config says; a user's file counts by its content, not by its place."""

    def strip(value):
        if isinstance(value, dict):
            return {key: strip(item) for key, item in value.items() if key != "file"}
        return [strip(item) for item in value] if isinstance(value, list) else value

    text = json.dumps(strip(to_json(config)), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def differences(a: Any, b: Any, where: str = "") -> list[str]:
    """Every leaf in which two configs differ, as `path: a -> b`, in order."""
    a, b = (to_json(v) if dataclasses.is_dataclass(v) else v for v in (a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        keys = [*a, *(key for key in b if key not in a)]
        return [d for key in keys for d in differences(a.get(key), b.get(key), f"{where}.{key}" if where else key)]
    return [] if a == b else [f"{where}: {a!r} -> {b!r}"]
