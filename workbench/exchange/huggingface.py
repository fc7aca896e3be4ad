"""Checkpoints of Hugging Face's transformers, both ways: config.json and safetensors, never pickle.

One table says where each parameter of ours stands in theirs, and serves reading and writing. A Transformer's block is
two layers here, `*-`; a Mamba's is one, `S` or `M`. What differs between implementations is a field of the config
(biases, norms of queries and keys, epsilons, rotary base, a limit of the step size); what no field says is refused.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from workbench import pattern as patterns
from workbench.config import (
    AttentionConfig,
    LayerConfig,
    Mamba2Config,
    MambaConfig,
    MLPConfig,
    ModelConfig,
    nearest,
)
from workbench.data.tokenizer import BOUNDARIES, Json, Tokenizer
from workbench.exchange import safetensors
from workbench.model.language_model import LanguageModel, create
from workbench.model.names import name_of, named, restored
from workbench.record import read_json, write_json


class Imported(NamedTuple):
    model: LanguageModel  # its config is model.config
    tokenizer: Tokenizer | None  # None where there is no tokenizer.json
    architecture: str  # llama, mamba2, ...


def from_huggingface(path: Path | str, dtype: str = "float32") -> Imported:
    """The model in a folder that transformers wrote; `dtype` is of the computation, parameters are float32.

    Weights are mapped and converted one stacked parameter at a time. Raises ValueError, naming it, for an architecture,
    a setting or a tensor that cannot be expressed, is missing, left over or of another shape.
    """
    path = Path(path)
    raw = read_json(path / "config.json")
    if raw is None:
        raise ValueError(f"{path} has no config.json; give the folder of a model that transformers saved")
    family = _family(raw)
    try:
        config = family.read(raw)
    except _Refused as why:
        raise ValueError(f"{path / 'config.json'} ({raw['model_type']}): {why}") from None
    model = built(replace(config, dtype=dtype), family, tensors(path), path)
    return Imported(model, tokenizer_in(path), raw["model_type"])


def tokenizer_in(path: Path) -> Json | None:
    """The folder's tokenizer.json, None if there is none. Documents begin as it says that they do.

    That is the token which its template puts first, or tokenizer_config.json's bos_token under add_bos_token; where
    neither adds one, the token that ends a text of the training data and so stands before the next.
    """
    from tokenizers import Tokenizer as Fast

    saved = path / "tokenizer.json"
    if not saved.is_file():
        return None
    settings = read_json(path / "tokenizer_config.json") or {}
    begin = settings.get("bos_token")
    begin = begin.get("content") if isinstance(begin, dict) else begin
    text = saved.read_text()
    fast = Fast.from_str(text)
    first, plain = (fast.encode("a", add_special_tokens=add).tokens[:1] for add in (True, False))
    if first != plain:
        begin = first[0]
    elif not settings.get("add_bos_token") and any(fast.token_to_id(token) is not None for token in BOUNDARIES):
        begin = None
    return Json(text, str(saved), begin)


def to_huggingface(model: LanguageModel, path: Path | str, tokenizer: Tokenizer | None = None) -> str:
    """Writes a folder that transformers loads, and returns its architecture; reading it back gives the same bits.

    A tokenizer is written where it has a tokenizer.json. Raises ValueError for what transformers cannot express.
    """
    path, config = Path(path), model.config
    try:
        kind, raw = _written(config)
        lost = _lost(config, FAMILIES[kind].read(raw))
    except _Refused as why:
        raise ValueError(f"transformers cannot express pattern {config.pattern!r}: {why}") from None
    if lost:
        raise ValueError(f"{kind} of transformers cannot express {lost[0]} (ours -> what it would be there)")
    family = FAMILIES[kind]
    ours = {name: np.asarray(values) for name, values in named(model).items()}
    arrays = {}
    for place in places(config, family):
        array = ours[place.ours] if place.period is None else ours[place.ours][place.period]
        for name, part in zip(place.theirs, np.split(array, np.cumsum(place.sizes)[:-1], axis=-1), strict=True):
            arrays[name] = np.ascontiguousarray(_turned(part) if place.turned else part.reshape(place.shapes()[name]))
    path.mkdir(parents=True, exist_ok=True)
    if isinstance(tokenizer, Json):
        boundary = tokenizer.fast.id_to_token(tokenizer.boundary)
        others = [token for token in tokenizer.ends if token != tokenizer.boundary]
        end = others[0] if others and boundary not in BOUNDARIES else tokenizer.boundary  # <s> begins, and ends nothing
        raw["bos_token_id"], raw["eos_token_id"] = tokenizer.boundary, end
        write_json(path / "tokenizer.json", json.loads(tokenizer.fast.to_str()))
        special = {"bos_token": boundary, "eos_token": tokenizer.fast.id_to_token(end)}
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": True, **special}
        write_json(path / "tokenizer_config.json", settings)
    safetensors.write(path / "model.safetensors", arrays)
    write_json(path / "config.json", raw)
    return kind


# ---- tensors


class Place(NamedTuple):
    """Where one layer's parameter stands: tensors of theirs, side by side along the last axis of ours.

    turned: theirs is [out, in] where ours is [in, out]. period: its index in our stack, None for what no layer owns.
    """

    ours: str
    theirs: tuple[str, ...]
    shape: tuple[int, ...]  # of ours
    turned: bool = False
    sizes: tuple[int, ...] = ()  # of our last axis, a tensor each
    period: int | None = None
    tap: bool = False  # theirs has an axis of 1 before the taps

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each of theirs."""
        out = {}
        for name, size in zip(self.theirs, self.sizes, strict=True):
            shape = (*self.shape[:-1], size)
            out[name] = shape[::-1] if self.turned else (shape[0], 1, shape[1]) if self.tap else shape
        return out


def _turned(array: np.ndarray) -> np.ndarray:
    return array.T


def places(config: ModelConfig, family: Family) -> Iterator[Place]:
    """Every parameter of the model, layers apart."""
    shapes = _shapes(config)
    names = {"embedding": family.embedding, "norm.scale": family.norm} | ({} if config.tied else {"output": HEAD})
    for ours, theirs in names.items():
        shape = shapes[ours].shape
        yield Place(ours, (theirs,), shape, ours == "output", shape[-1:])
    period = patterns.period(patterns.parse(config.pattern, config.symbols))
    for index, layer in enumerate(config.layers):
        block = family.block.format(index // family.layers)
        place = f"layers.{index % period}."
        known = family.tensors[type(layer)](layer, config.width)
        for ours in (name for name in shapes if name.startswith(place)):
            theirs, sizes = known[ours.removeprefix(place)]
            shape = shapes[ours].shape[1:]
            last = ours.rpartition(".")[2]
            theirs = tuple(block + name for name in theirs)
            turned = len(shape) == 2 and last not in ("conv", "A_log")
            yield Place(ours, theirs, shape, turned, sizes or shape[-1:], index // period, last == "conv")


def _shapes(config: ModelConfig) -> dict[str, Any]:
    """The shape and dtype of every parameter of ours by name."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(jax.eval_shape(lambda: create(config, 0)))
    return {name_of(path): leaf for path, leaf in leaves}


def tensors(path: Path) -> dict[str, np.ndarray]:
    """Every tensor of the folder by name, mapped."""
    index = read_json(path / "model.safetensors.index.json")
    files = sorted(set(index["weight_map"].values())) if index else ["model.safetensors"]
    out: dict[str, np.ndarray] = {}
    for name in files:
        file = path / name
        if Path(name).name != name or not file.is_file():
            pickled = " (pickle, such as pytorch_model.bin, is not read)" if not index else ""
            raise ValueError(f"{path} has no {name}{pickled}; give a folder with all of its .safetensors")
        out |= safetensors.read(file)
    return out


def built(config: ModelConfig, family: Family, tensors: dict[str, np.ndarray], path: Path) -> LanguageModel:
    """The model of a checkpoint's tensors; `path` is what an error names."""
    # A buffer that old versions saved follows from the config, and a tied head may be written beside the embedding.
    tensors = {name: array for name, array in tensors.items() if not name.endswith("rotary_emb.inv_freq")}
    head = tensors.pop(HEAD, None) if config.tied else None
    if head is not None and not np.array_equal(head, tensors.get(family.embedding)):
        raise ValueError(f"{path}: tie_word_embeddings is true and {HEAD} is not {family.embedding}; set it right")
    found = list(places(config, family))
    wanted = {name: shape for place in found for name, shape in place.shapes().items()}
    missing, extra = sorted(wanted.keys() - tensors.keys()), sorted(tensors.keys() - wanted.keys())
    if missing:
        raise ValueError(
            f"{path} lacks {len(missing)} tensors; the first is {missing[0]}: {_near(missing[0], tensors)}"
        )
    if extra:
        raise ValueError(
            f"{path} has {len(extra)} tensors that its config.json has no place for; the first is {extra[0]}: "
            f"{_near(extra[0], wanted)}"
        )
    for name, shape in wanted.items():
        if tensors[name].shape != shape:
            raise ValueError(f"{path}: {name} has shape {tensors[name].shape}; its config.json needs {shape}")
        if tensors[name].dtype.kind in "iub":
            raise ValueError(f"{path}: {name} is {tensors[name].dtype}; quantized weights are not read")
    of: dict[str, list[Place]] = {}
    for place in found:
        of.setdefault(place.ours, []).append(place)
    arrays = {}
    for ours, leaf in _shapes(config).items():
        stack = _aligned(leaf)
        for place in of[ours]:
            into = stack if place.period is None else stack[place.period]
            begin = 0
            for name, size in zip(place.theirs, place.sizes, strict=True):
                part = tensors[name]
                part = _turned(part) if place.turned else part.reshape(*place.shape[:-1], size)
                into[..., begin : begin + size] = part
                begin += size
        arrays[ours] = jax.device_put(stack)
    return restored(jax.eval_shape(lambda: create(config, 0)), arrays)


def _aligned(leaf: jax.ShapeDtypeStruct) -> np.ndarray:
    """Memory that JAX takes over on a CPU as it stands, so that no parameter is there twice: it begins at 64 bytes."""
    size = leaf.size * leaf.dtype.itemsize
    room = np.empty(size + 63, np.uint8)
    begin = -room.ctypes.data % 64
    return room[begin : begin + size].view(leaf.dtype).reshape(leaf.shape)


def _near(name: str, names) -> str:
    """The nearest of many names, without listing all."""
    said = nearest(name, names).partition("choices: ")
    return said[0] or f"nothing there is like it; there are {len(names)}, such as {min(names, default='none')}"


# ---- families


class Family(NamedTuple):
    embedding: str
    norm: str
    block: str
    layers: int  # of ours in a block
    tensors: dict[type, Callable[[Any, int], dict[str, tuple[tuple[str, ...], tuple[int, ...]]]]]
    read: Callable[[dict], ModelConfig]


HEAD = "lm_head.weight"
ALL = ()  # one tensor, the whole of ours


def _attention_tensors(layer: AttentionConfig, width: int) -> dict:
    heads, kv_heads, size = layer.sizes(width)
    sizes = (heads * size, kv_heads * size, kv_heads * size)
    qkv = lambda what: tuple(f"self_attn.{each}_proj.{what}" for each in "qkv")  # noqa: E731
    return {
        "norm.scale": (("input_layernorm.weight",), ALL),
        "mixer.qkv": (qkv("weight"), sizes),
        "mixer.qkv_bias": (qkv("bias"), sizes),
        "mixer.q_norm_scale": (("self_attn.q_norm.weight",), ALL),
        "mixer.k_norm_scale": (("self_attn.k_norm.weight",), ALL),
        "mixer.out": (("self_attn.o_proj.weight",), ALL),
        "mixer.out_bias": (("self_attn.o_proj.bias",), ALL),
    }


def _mlp_tensors(layer: MLPConfig, width: int) -> dict:
    hidden, _ = layer.sizes(width)
    enter = lambda what: (f"mlp.gate_proj.{what}", f"mlp.up_proj.{what}")  # noqa: E731
    return {
        "norm.scale": (("post_attention_layernorm.weight",), ALL),
        "mixer.enter": (enter("weight"), (hidden, hidden)),
        "mixer.enter_bias": (enter("bias"), (hidden, hidden)),
        "mixer.out": (("mlp.down_proj.weight",), ALL),
        "mixer.out_bias": (("mlp.down_proj.bias",), ALL),
    }


def mamba_tensors(layer: MambaConfig | Mamba2Config, width: int) -> dict:
    """Of both Mambas: what one of them lacks is not asked for."""
    names = {
        "enter": "in_proj.weight",
        "enter_bias": "in_proj.bias",
        "conv": "conv1d.weight",
        "conv_bias": "conv1d.bias",
        "x": "x_proj.weight",
        "dt": "dt_proj.weight",
        "dt_bias": "dt_proj.bias" if isinstance(layer, MambaConfig) else "dt_bias",
        "A_log": "A_log",
        "D": "D",
        "norm_scale": "norm.weight",
        "out": "out_proj.weight",
        "out_bias": "out_proj.bias",
    }
    return {"norm.scale": (("norm.weight",), ALL)} | {
        f"mixer.{ours}": ((f"mixer.{theirs}",), ALL) for ours, theirs in names.items()
    }


# ---- config.json


class _Refused(ValueError):
    pass


def _family(raw: dict) -> Family:
    kind = str(raw.get("model_type"))
    if kind not in FAMILIES:
        raise ValueError(f"model_type {kind!r} of config.json cannot be read; {nearest(kind, FAMILIES)}")
    if raw.get("quantization_config"):
        raise ValueError("config.json has a quantization_config; quantized weights are not read: give the original")
    return FAMILIES[kind]


def _given(raw: dict, name: str) -> Any:
    if raw.get(name) is None:
        raise _Refused(f"it has no {name}, which is needed")
    return raw[name]


def _only(raw: dict, name: str, *accepted: Any) -> None:
    """Refuses a setting that changes what is computed, unless it is one of these; None stands for a default."""
    if raw.get(name) not in (None, *accepted):
        raise _Refused(f"{name} is {raw[name]!r}, which cannot be expressed; {' or '.join(map(repr, accepted))} can")


def _read_transformer(raw: dict) -> ModelConfig:
    kind, heads = raw["model_type"], _given(raw, "num_attention_heads")
    _only(raw, "hidden_act", "silu")
    _only(raw, "use_sliding_window", False)
    if set(raw.get("layer_types") or []) - {"full_attention"} and kind != "mistral":
        raise _Refused("layer_types mixes kinds of attention, which cannot be expressed; 'full_attention' alone can")
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    rope = {"rope_type": rope.get("type"), "rope_theta": raw.get("rope_theta"), **rope}
    _only(rope, "rope_type", "default")
    for where in (rope, raw):
        _only(where, "partial_rotary_factor", 1)
    epsilon = float(raw.get("rms_norm_eps", 1e-6))
    bias = bool(raw.get("attention_bias", False)) and kind in ("llama", "qwen3")
    attention = AttentionConfig(
        heads=heads,
        kv_heads=_given(raw, "num_key_value_heads") if kind != "llama" else raw.get("num_key_value_heads"),
        head_dim=_given(raw, "head_dim") if kind == "qwen3" else raw.get("head_dim"),
        rotary_base=float(rope["rope_theta"] or 10_000),
        window=raw.get("sliding_window", 4096) if kind == "mistral" else None,
        qkv_bias=bias or kind == "qwen2",
        out_bias=bias,
        qk_norm=kind == "qwen3",
        norm_epsilon=epsilon if kind == "qwen3" else 1e-5,
    )
    mlp = MLPConfig(_given(raw, "intermediate_size"), "swiglu", kind == "llama" and bool(raw.get("mlp_bias", False)))
    blocks, tied = _given(raw, "num_hidden_layers"), bool(raw.get("tie_word_embeddings", False))
    return _model_config("*-" * blocks, raw, {"*": attention, "-": mlp}, tied, epsilon)


def _read_mamba(raw: dict) -> ModelConfig:
    width = _given(raw, "hidden_size")
    _only(raw, "hidden_act", "silu")
    rank = raw.get("time_step_rank", "auto")
    layer = MambaConfig(
        state=raw.get("state_size", 16),
        inner=int(raw.get("expand", 2) * width),
        conv=raw.get("conv_kernel", 4),
        dt_rank=math.ceil(width / 16) if rank == "auto" else rank,
        bias=bool(raw.get("use_bias", False)),
        conv_bias=bool(raw.get("use_conv_bias", True)),
    )
    blocks, tied = _given(raw, "num_hidden_layers"), bool(raw.get("tie_word_embeddings", True))
    return _model_config("S" * blocks, raw, {"S": layer}, tied, float(raw.get("layer_norm_epsilon", 1e-5)))


def _read_mamba2(raw: dict) -> ModelConfig:
    """Its gated norm is over each group, as transformers computes it since the norm became grouped."""
    width, epsilon = _given(raw, "hidden_size"), float(raw.get("layer_norm_epsilon", 1e-5))
    _only(raw, "hidden_act", "silu")
    inner, size = int(raw.get("expand", 2) * width), _given(raw, "head_dim")
    if inner != _given(raw, "num_heads") * size:
        raise _Refused(f"num_heads {raw['num_heads']} of head_dim {size} are not the inner width {inner}")
    low, high = (_number(each) for each in raw.get("time_step_limit") or (0.0, math.inf))
    layer = Mamba2Config(
        state=_given(raw, "state_size"),
        head_dim=size,
        groups=_given(raw, "n_groups"),
        inner=inner,
        conv=raw.get("conv_kernel", 4),
        bias=bool(raw.get("use_bias", False)),
        conv_bias=bool(raw.get("use_conv_bias", True)),
        norm_epsilon=epsilon,
        dt_limit=None if (low, high) == (0, math.inf) else (low, high),
    )
    blocks, tied = _given(raw, "num_hidden_layers"), bool(raw.get("tie_word_embeddings", False))
    return _model_config("M" * blocks, raw, {"M": layer}, tied, epsilon)


def _number(value: Any) -> float:
    """A float, which JSON may hold as {"__float__": "Infinity"}."""
    return float(value["__float__"] if isinstance(value, dict) else value)


def _model_config(pattern: str, raw: dict, symbols: dict[str, LayerConfig], tied: bool, epsilon: float) -> ModelConfig:
    width, vocabulary = _given(raw, "hidden_size"), _given(raw, "vocab_size")
    return ModelConfig(pattern, width, vocabulary, symbols, tied=tied, norm_epsilon=epsilon)


def _written(config: ModelConfig) -> tuple[str, dict]:
    """The architecture and the config.json of the family that comes nearest; `_lost` says what it cannot hold."""
    kinds, layers, width = [type(layer) for layer in config.layers], config.layers, config.width
    if kinds == [AttentionConfig, MLPConfig] * (len(kinds) // 2):
        kind, specific = _transformer_written(config, *layers[:2])
        specific["rms_norm_eps"] = config.norm_epsilon
    elif set(kinds) in ({MambaConfig}, {Mamba2Config}):
        layer = layers[0]
        inner = layer.sizes(width)[0]
        if inner % width:
            raise _Refused(f"inner {inner} is no multiple of the width {width}, and expand is a whole number there")
        specific = {
            "state_size": layer.state,
            "expand": inner // width,
            "conv_kernel": layer.conv,
            "use_bias": layer.bias,
            "use_conv_bias": layer.conv_bias,
            "layer_norm_epsilon": config.norm_epsilon,
        }
        if isinstance(layer, MambaConfig):
            kind, specific["time_step_rank"] = "mamba", layer.sizes(width)[1]
        else:
            kind, heads = "mamba2", layer.sizes(width)[1]
            specific |= {"num_heads": heads, "head_dim": layer.head_dim, "n_groups": layer.groups}
            if layer.dt_limit is not None:
                specific["time_step_limit"] = [_json_number(each) for each in layer.dt_limit]
    else:
        raise _Refused("it can be *- repeated, S repeated or M repeated")
    return kind, {
        "model_type": kind,
        "architectures": [f"{'Mamba2' if kind == 'mamba2' else kind.capitalize()}ForCausalLM"],
        "vocab_size": config.vocabulary,
        "hidden_size": width,
        "num_hidden_layers": len(layers) // FAMILIES[kind].layers,
        "hidden_act": "silu",
        "tie_word_embeddings": config.tied,
        "dtype": "float32",  # of the weights
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
        **specific,
    }


def _transformer_written(config: ModelConfig, attention: LayerConfig, mlp: LayerConfig) -> tuple[str, dict]:
    heads, kv_heads, size = attention.sizes(config.width)
    kind = "qwen3" if attention.qk_norm else "mistral" if attention.window else "llama"
    if attention.qkv_bias and not attention.out_bias and kind == "llama":
        kind = "qwen2"
    if kind == "llama" and config.width % heads:
        raise _Refused(f"width {config.width} is no multiple of {heads} heads, which llama asks for")
    return kind, {
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": size,
        "intermediate_size": mlp.sizes(config.width)[0],
        "attention_bias": attention.out_bias,
        "mlp_bias": mlp.bias,
        "rope_parameters": {"rope_type": "default", "rope_theta": attention.rotary_base},
        "sliding_window": attention.window,
    }


def _json_number(value: float) -> Any:
    return value if math.isfinite(value) else {"__float__": "Infinity"}


def _lost(config: ModelConfig, back: ModelConfig) -> list[str]:
    """What a config that was written and read back no longer says, each as `name: ours -> theirs`."""

    def apart(ours: Any, theirs: Any, names: Iterable[str], where: str = "") -> list[str]:
        values = ((name, getattr(ours, name), getattr(theirs, name)) for name in names)
        return [f"{where}{name}: {a!r} -> {b!r}" for name, a, b in values if a != b]

    lost = apart(config, back, ("width", "vocabulary", "norm", "norm_epsilon", "tied"))
    for index, (ours, theirs) in enumerate(zip(config.layers, back.layers, strict=True)):
        ours, theirs = (_explicit(each, config.width) for each in (ours, theirs))
        lost += apart(ours, theirs, (field.name for field in fields(ours)), f"layers.{index}.")
    return lost


def _explicit(layer: LayerConfig, width: int) -> LayerConfig:
    """The layer with the sizes that follow from the width written out, and without those that mean nothing."""
    if isinstance(layer, AttentionConfig):
        _, kv_heads, head_dim = layer.sizes(width)
        layer = replace(layer, kv_heads=kv_heads, head_dim=head_dim)
        return layer if layer.qk_norm else replace(layer, norm_epsilon=1e-5)
    if isinstance(layer, MLPConfig):
        return replace(layer, hidden=layer.sizes(width)[0])
    if isinstance(layer, MambaConfig):
        inner, rank = layer.sizes(width)
        return replace(layer, inner=inner, dt_rank=rank)
    return replace(layer, inner=layer.sizes(width)[0])


_TRANSFORMER = Family(
    "model.embed_tokens.weight",
    "model.norm.weight",
    "model.layers.{}.",
    2,
    {AttentionConfig: _attention_tensors, MLPConfig: _mlp_tensors},
    _read_transformer,
)
_MAMBA = _TRANSFORMER._replace(
    embedding="backbone.embeddings.weight",
    norm="backbone.norm_f.weight",
    block="backbone.layers.{}.",
    layers=1,
    tensors={MambaConfig: mamba_tensors, Mamba2Config: mamba_tensors},
)
FAMILIES = {
    "llama": _TRANSFORMER,
    "mistral": _TRANSFORMER,
    "qwen2": _TRANSFORMER,
    "qwen3": _TRANSFORMER,
    "mamba": _MAMBA._replace(read=_read_mamba),
    "mamba2": _MAMBA._replace(read=_read_mamba2),
}
