"""Checkpoints of Megatron-LM, such as those released with Waleffe et al. 2024: one file for each tensor-parallel rank.

The pattern is read off the names of the parameters, sizes off their shapes, and what neither says off the arguments of
the run, which are saved beside them; what those lack has to be given, and is never guessed. Nothing that the files ask
for is run (workbench.exchange.pickled). Each rank holds a part of every matrix: of its rows where the output is divided
(in_proj by parts, [z, x, B, C, dt]; a query-key-value matrix by groups), of its columns where the input is.
Source: github.com/NVIDIA/Megatron-LM (megatron/core/ssm/mamba_mixer.py, transformer/attention.py, transformer/mlp.py,
tools/checkpoint/hybrid_conversion.py).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from workbench.config import AttentionConfig, LayerConfig, Mamba2Config, MLPConfig, ModelConfig
from workbench.data.tokenizer import Tokenizer, named
from workbench.exchange import pickled
from workbench.exchange.families import ALL, Family, mamba_tensors, norm_tensors
from workbench.exchange.huggingface import Imported, built

FILE = "model_optim_rng.pt"
LATEST = "latest_checkpointed_iteration.txt"
COLUMNS = ("linear_proj.weight", "linear_fc2.weight", "out_proj.weight")  # divided over the ranks, not rows
RENAMED = (  # a norm stands in the layer that it feeds, or before it; older and newer names
    (r"self_attention\.linear_qkv\.layer_norm_", "input_layernorm."),
    (r"mlp\.linear_fc1\.layer_norm_", "pre_mlp_layernorm."),
    (r"mixer\.in_proj\.layer_norm_", "norm."),
    (r"mixer\.conv1d_", "mixer.conv1d."),
    (r"^decoder\.final_layernorm\.", "decoder.final_norm."),
    (r"^output_layer\.", "lm_head."),
)
MAMBA_STATE = 128  # of Mamba-2 where the arguments do not say: Megatron's own default


def from_megatron(path: Path | str, dtype: str = "float32", **given: Any) -> Imported:
    """The model in a checkpoint's folder; `dtype` is of the computation, parameters are float32.

    given: arguments of Megatron that the checkpoint does not hold, such as num_attention_heads=32; they come first.
    The tokenizer is the SentencePiece .model beside it, None without one. Raises ValueError, naming it, for a missing
    argument, and for a layer, a setting or a tensor that cannot be expressed, is missing or left over.
    """
    path = Path(path)
    ranks, arguments = _ranks(path)
    pattern, blocks = _pattern(ranks, path)
    try:
        found = {name: _merged(name, ranks) for name in ranks}
        config = _config(pattern, found, _Arguments({**arguments, **given}, path), dtype)
    except KeyError as missing:
        raise ValueError(f"{path} lacks {missing.args[0]}, by which its sizes are known") from None
    for name in [name for name in found if name.endswith("linear_qkv.weight")]:
        heads, kv_heads, size = config.symbols["*"].sizes(config.width)
        if len(found[name]) != (heads + 2 * kv_heads) * size:
            raise ValueError(
                f"{path}: {name} has {len(found[name])} rows; {heads} heads and 2 times {kv_heads} of {size} need "
                f"{(heads + 2 * kv_heads) * size}: num_attention_heads, num_query_groups or kv_channels is wrong"
            )
        groups = found[name].reshape(kv_heads, heads // kv_heads + 2, size, -1)
        parts = np.split(groups, [heads // kv_heads, heads // kv_heads + 1], axis=1)
        found[name] = np.concatenate([part.reshape(-1, groups.shape[-1]) for part in parts])
    return Imported(built(config, FAMILY._replace(layers=blocks), found, path), _tokenizer(path), "megatron")


def is_megatron(path: Path) -> bool:
    return (path / LATEST).is_file() or any(path.glob("mp_rank_*")) or any(path.glob("*/mp_rank_*"))


def tensors(path: Path) -> dict[str, np.ndarray]:
    """Every tensor of every rank by name, as it is stored, mapped."""
    ranks, _ = _ranks(Path(path))
    return {f"{rank:02}.{name}": part for name, parts in ranks.items() for rank, part in enumerate(parts)}


# ---- files


def _folder(path: Path) -> Path:
    """The folder of the ranks: of the iteration that the tracker names, or of the release."""
    tracker = path / LATEST
    latest = tracker.read_text().strip() if tracker.is_file() else "release"
    for folder in (path / (f"iter_{int(latest):07}" if latest.isdigit() else latest), path / "release", path):
        if any(folder.glob("mp_rank_*")):
            return folder
    raise ValueError(f"{path} has no mp_rank_00/{FILE}, in release/ or in what {LATEST} names; give the whole folder")


def _ranks(path: Path) -> tuple[dict[str, list[np.ndarray]], dict[str, Any]]:
    """Each parameter by its name, one part a rank, and the arguments of the run, {} where there are none."""
    folder = _folder(path)
    names = sorted(each.name for each in folder.glob("mp_rank_*"))
    if names != [f"mp_rank_{rank:02}" for rank in range(len(names))]:
        raise ValueError(
            f"{folder} holds {', '.join(names)}: read are mp_rank_00, mp_rank_01, ... without a gap and without "
            "pipeline or expert ranks; bring it to one pipeline stage first"
        )
    ranks: dict[str, list[np.ndarray]] = {}
    arguments: dict[str, Any] = {}
    for name in names:
        saved = pickled.load(folder / name / FILE)
        model = saved.get("model") if isinstance(saved, Mapping) else None
        if not isinstance(model, Mapping):
            raise ValueError(f"{folder / name / FILE} has no 'model'; give a checkpoint as Megatron-LM saves it")
        kept = getattr(saved.get("args"), "state", None)
        arguments = arguments or (dict(kept) if isinstance(kept, Mapping) else {})
        for key, part in model.items():
            if not key.endswith("_extra_state") and isinstance(part, np.ndarray):
                ranks.setdefault(_renamed(key), []).append(part)
    if uneven := sorted(name for name, parts in ranks.items() if len(parts) != len(names)):
        raise ValueError(f"{folder}: {uneven[0]} is not in every rank; fetch the folder again")
    said = arguments.get("tensor_model_parallel_size", len(names))
    if said != len(names):
        raise ValueError(f"{folder} holds {len(names)} tensor-parallel ranks of {said}; fetch the others")
    return ranks, arguments


def _renamed(name: str) -> str:
    for old, new in RENAMED:
        name = re.sub(old, new, name)
    return name


def _merged(name: str, ranks: Mapping[str, list[np.ndarray]]) -> np.ndarray:
    """One array of its parts. What every rank holds whole must be the same in all."""
    parts = ranks[name]
    if len(parts) == 1:
        return parts[0]
    if "norm." in name and "mixer.norm." not in name:
        if not all(np.array_equal(part, parts[0]) for part in parts):
            raise ValueError(f"{name} differs between the tensor-parallel ranks, which all hold the whole of it")
        return parts[0]
    if name.endswith(COLUMNS):
        return np.concatenate(parts, axis=1)
    pieces = [np.split(part, _cuts(name, ranks)) for part in parts]
    return np.concatenate([piece for same in zip(*pieces, strict=True) for piece in same])


def _cuts(name: str, ranks: Mapping[str, list[np.ndarray]]) -> list[int]:
    """Where the rows of one rank's part go over from one thing to the next."""
    block, _, what = name.partition("mixer.")
    if what in ("in_proj.weight", "conv1d.weight", "conv1d.bias"):
        inner, channels = (len(ranks[f"{block}mixer.{each}"][0]) for each in ("norm.weight", "conv1d.weight"))
        ends = [inner, (inner + channels) // 2]  # of x and of B; C ends with the channels
        return [inner, *(inner + end for end in (*ends, channels))] if what == "in_proj.weight" else ends
    block, _, what = name.partition("mlp.linear_fc1.")
    if what:
        hidden = ranks[f"{block}mlp.linear_fc2.weight"][0].shape[1]
        return [hidden] if len(ranks[name][0]) == 2 * hidden else []  # a gate before what it gates
    return []


def _tokenizer(path: Path) -> Tokenizer | None:
    models = sorted({*path.glob("*.model"), *_folder(path).glob("*.model")})
    if len(models) > 1:
        raise ValueError(f"{path} has {len(models)} tokenizers ({', '.join(each.name for each in models)}); keep one")
    try:
        return named(str(models[0])) if models else None
    except ModuleNotFoundError:
        raise ValueError(
            f"{models[0]} cannot be read without the package sentencepiece; install the extra data: "
            "pip install 'architecture-workbench[data]'"
        ) from None


# ---- config


class _Arguments:
    """Megatron's arguments; one that is asked for without a default has to be there."""

    def __init__(self, values: Mapping[str, Any], path: Path):
        self.values, self.path = values, path

    def __call__(self, name: str, *default: Any) -> Any:
        found = self.values.get(name)
        if found is None and not default:
            raise ValueError(
                f"{self.path} does not say {name}, and no shape does; give it: "
                f"workbench import SOURCE RUN_FOLDER {name}=..., as the model's authors state it"
            )
        return default[0] if found is None else found

    def only(self, name: str, *accepted: Any) -> None:
        found = self(name, accepted[0])
        if found not in accepted:
            raise ValueError(f"{self.path}: {name} is {found!r}, which cannot be expressed; {accepted[0]!r} can")


def _pattern(names: Iterable[str], path: Path) -> tuple[str, int]:
    """The pattern, and how many layers of ours make one of theirs: of a GPT's, which has both kinds of part, two."""
    parts: dict[int, set[str]] = {}
    for name in names:
        if layer := re.match(r"decoder\.layers\.(\d+)\.(mixer|self_attention|mlp)\.", name):
            parts.setdefault(int(layer[1]), set()).add(layer[2])
    letters = {("mixer",): "M", ("self_attention",): "*", ("mlp",): "-", ("mlp", "self_attention"): "*-"}
    if not parts:
        raise ValueError(f"{path} has no decoder.layers; give a checkpoint of Megatron's GPT or hybrid models")
    layers = [letters.get(tuple(sorted(parts.get(index, ())))) for index in range(max(parts) + 1)]
    if None in layers or len({len(layer) for layer in layers}) > 1:
        odd = layers.index(None) if None in layers else [len(each) for each in layers].index(2)
        raise ValueError(
            f"{path}: decoder.layers.{odd} holds {sorted(parts.get(odd, ())) or 'nothing'}; needed is a mixer, "
            "self_attention or mlp in each layer, or the last two in all"
        )
    return "".join(layers), len(layers[0])


def _config(pattern: str, found: Mapping[str, np.ndarray], of: _Arguments, dtype: str) -> ModelConfig:
    vocabulary, width = found["embedding.word_embeddings.weight"].shape
    epsilon = float(of("norm_epsilon", 1e-5))
    centred = "decoder.final_norm.bias" in found  # a LayerNorm, not an RMSNorm
    if bool(of("apply_layernorm_1p", False) if not centred else of("apply_layernorm_1p")) != centred:
        raise ValueError(f"{of.path}: norms are RMSNorm, or LayerNorm with apply_layernorm_1p; it has the other two")
    symbols: dict[str, LayerConfig] = {}
    for letter, part, make in (("M", "mixer", _mamba), ("*", "self_attention", _attention), ("-", "mlp", _mlp)):
        if letter in pattern:
            block = next(name for name in found if f".{part}." in name).partition(f".{part}.")[0] + f".{part}."
            symbols[letter] = make(lambda name, block=block: found[block + name].shape, of)
    norm = "layernorm1p" if centred else "rms"
    tied = "lm_head.weight" not in found
    rotary = "*" in pattern and symbols["*"].rotary
    positions = of("max_position_embeddings", 0) if rotary else 0
    return ModelConfig(pattern, width, vocabulary, symbols, norm, tied, dtype, epsilon, positions)


def _mamba(shape: Callable[[str], tuple], of: _Arguments) -> Mamba2Config:
    (inner,), (heads,), (channels, _, conv) = shape("norm.weight"), shape("A_log"), shape("conv1d.weight")
    state = of("mamba_state_dim", MAMBA_STATE)
    groups, rest = divmod(channels - inner, 2 * state)
    if rest or groups < 1 or groups != of("mamba_num_groups", groups):
        raise ValueError(f"{of.path}: {channels - inner} channels of B and C are no groups of mamba_state_dim {state}")
    return Mamba2Config(state, inner // heads, groups, inner, conv)


def _attention(shape: Callable[[str], tuple], of: _Arguments) -> AttentionConfig:
    for name in ("rotary_interleaved", "use_rope_scaling", "window_size"):
        of.only(name, False, None)
    heads = of("num_attention_heads")
    rope = of("position_embedding_type")
    of.only("position_embedding_type", "none", "rope")
    return AttentionConfig(
        heads,
        of("num_query_groups", heads) if of("group_query_attention", "num_query_groups" in of.values) else heads,
        of("kv_channels", None) or shape("linear_proj.weight")[1] // heads,
        float(of("rotary_percent", 1.0)) if rope == "rope" else 0.0,
        float(of("rotary_base", 10_000)),
    )


def _mlp(shape: Callable[[str], tuple], of: _Arguments) -> MLPConfig:
    """GELU is the exact form: Megatron takes its approximation only together with a bias."""
    hidden = shape("linear_fc2.weight")[1]
    if shape("linear_fc1.weight")[0] == 2 * hidden:
        of.only("swiglu", True)
        return MLPConfig(hidden, "swiglu")
    return MLPConfig(hidden, "squared_relu" if of("squared_relu") else "gelu_erf")


def _attention_tensors(layer: AttentionConfig, width: int) -> dict:
    mixer = {"mixer.qkv": "self_attention.linear_qkv.weight", "mixer.out": "self_attention.linear_proj.weight"}
    return norm_tensors("input_layernorm") | {ours: ((theirs,), ALL) for ours, theirs in mixer.items()}


def _mlp_tensors(layer: MLPConfig, width: int) -> dict:
    mixer = {"mixer.enter": "mlp.linear_fc1.weight", "mixer.out": "mlp.linear_fc2.weight"}
    return norm_tensors("pre_mlp_layernorm") | {ours: ((theirs,), ALL) for ours, theirs in mixer.items()}


FAMILY = Family(
    embedding="embedding.word_embeddings.weight",
    norm="decoder.final_norm",
    block="decoder.layers.{}.",
    layers=1,
    tensors={Mamba2Config: mamba_tensors, AttentionConfig: _attention_tensors, MLPConfig: _mlp_tensors},
    read=lambda raw: raw,
)
