"""What each architecture of Hugging Face's transformers is here: its config.json both ways, and its tensors' names.

A Transformer's block is two layers, `*-`, and so is Bamba's, `M-` or `*-`; a Mamba's is one, `S` or `M`, and so is
NemotronH's, `M`, `*` or `-`. What differs between implementations is a field of the config (biases, norms of queries
and keys, epsilons, rotary base and its scaling, a limit of the step size); what no field says is refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import fields, replace
from functools import partial
from typing import Any, NamedTuple

from workbench.config import (
    AttentionConfig,
    LayerConfig,
    Mamba2Config,
    MambaConfig,
    MLPConfig,
    ModelConfig,
    nearest,
)


class Family(NamedTuple):
    embedding: str
    norm: str  # the final one, without .weight
    block: str
    layers: int  # of ours in a block
    tensors: dict[type, Callable[[Any, int], dict[str, tuple[tuple[str, ...], tuple[int, ...]]]]]
    read: Callable[[dict], ModelConfig]


HEAD = "lm_head.weight"
ALL = ()  # one tensor, the whole of ours


def norm_tensors(name: str) -> dict:
    """Of both norms: what one of them lacks is not asked for."""
    weight = ((f"{name}.weight",), ALL)
    return {"norm.scale": weight, "norm.offset_scale": weight, "norm.bias": ((f"{name}.bias",), ALL)}


def _attention_tensors(
    layer: AttentionConfig, width: int, norm: str = "input_layernorm", mixer: str = "self_attn"
) -> dict:
    heads, kv_heads, size = layer.sizes(width)
    sizes = (heads * size, kv_heads * size, kv_heads * size)
    qkv = lambda what: tuple(f"{mixer}.{each}_proj.{what}" for each in "qkv")  # noqa: E731
    return norm_tensors(norm) | {
        "mixer.qkv": (qkv("weight"), sizes),
        "mixer.qkv_bias": (qkv("bias"), sizes),
        "mixer.q_norm_scale": ((f"{mixer}.q_norm.weight",), ALL),
        "mixer.k_norm_scale": ((f"{mixer}.k_norm.weight",), ALL),
        "mixer.out": ((f"{mixer}.o_proj.weight",), ALL),
        "mixer.out_bias": ((f"{mixer}.o_proj.bias",), ALL),
    }


def _mlp_tensors(layer: MLPConfig, width: int, norm: str = "post_attention_layernorm", mixer: str = "mlp") -> dict:
    hidden, matrices = layer.sizes(width)
    enter = lambda what: tuple(f"{mixer}.{each}_proj.{what}" for each in ("gate", "up")[-matrices:])  # noqa: E731
    return norm_tensors(norm) | {
        "mixer.enter": (enter("weight"), (hidden,) * matrices),
        "mixer.enter_bias": (enter("bias"), (hidden,) * matrices),
        "mixer.out": ((f"{mixer}.down_proj.weight",), ALL),
        "mixer.out_bias": ((f"{mixer}.down_proj.bias",), ALL),
    }


def mamba_tensors(layer: MambaConfig | Mamba2Config, width: int, norm: str = "norm", mixer: str = "mixer") -> dict:
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
    return norm_tensors(norm) | {f"mixer.{ours}": ((f"{mixer}.{theirs}",), ALL) for ours, theirs in names.items()}


# ---- config.json


class Refused(ValueError):
    """What a config.json, or a config of ours, asks for cannot be expressed."""


def family_of(raw: dict) -> Family:
    kind = str(raw.get("model_type"))
    if kind in REFUSED:
        raise ValueError(f"model_type {kind!r} cannot be expressed as one residual layer a symbol: {REFUSED[kind]}")
    if kind not in FAMILIES:
        raise ValueError(f"model_type {kind!r} of config.json cannot be read; {nearest(kind, FAMILIES)}")
    if raw.get("quantization_config"):
        raise ValueError("config.json has a quantization_config; quantized weights are not read: give the original")
    return FAMILIES[kind]


def _given(raw: dict, name: str) -> Any:
    if raw.get(name) is None:
        raise Refused(f"it has no {name}, which is needed")
    return raw[name]


def _only(raw: dict, name: str, *accepted: Any) -> None:
    """Refuses a setting that changes what is computed, unless it is one of these; None stands for a default."""
    if raw.get(name) not in (None, *accepted):
        raise Refused(f"{name} is {raw[name]!r}, which cannot be expressed; {' or '.join(map(repr, accepted))} can")


def _read_transformer(raw: dict) -> ModelConfig:
    kind, heads = raw["model_type"], _given(raw, "num_attention_heads")
    _only(raw, "hidden_act", "silu")
    _only(raw, "use_sliding_window", False)
    if set(raw.get("layer_types") or []) - {"full_attention"} and kind != "mistral":
        raise Refused("layer_types mixes kinds of attention, which cannot be expressed; 'full_attention' alone can")
    epsilon = float(raw.get("rms_norm_eps", 1e-6))
    bias = bool(raw.get("attention_bias", False)) and kind in ("llama", "qwen3")
    attention = AttentionConfig(
        heads=heads,
        kv_heads=_given(raw, "num_key_value_heads") if kind != "llama" else raw.get("num_key_value_heads"),
        head_dim=_given(raw, "head_dim") if kind == "qwen3" else raw.get("head_dim"),
        **_rotary(raw),
        window=raw.get("sliding_window", 4096) if kind == "mistral" else None,
        qkv_bias=bias or kind == "qwen2",
        out_bias=bias,
        qk_norm=kind == "qwen3",
        norm_epsilon=epsilon if kind == "qwen3" else 1e-5,
    )
    mlp = MLPConfig(_given(raw, "intermediate_size"), "swiglu", kind == "llama" and bool(raw.get("mlp_bias", False)))
    blocks, tied = _given(raw, "num_hidden_layers"), bool(raw.get("tie_word_embeddings", False))
    return _model_config("*-" * blocks, raw, {"*": attention, "-": mlp}, tied, epsilon)


SCALINGS = {  # of rotary positions, and what is asked of each
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}


def _rotary(raw: dict, fraction: float | None = None) -> dict[str, Any]:
    """Fields of AttentionConfig. fraction: of a head that is rotated unless rope_parameters say; None: it is all."""
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    rope = {"rope_type": rope.get("type"), "rope_theta": raw.get("rope_theta"), **rope}
    rope.setdefault("original_max_position_embeddings", raw.get("max_position_embeddings"))
    _only(rope, "rope_type", *SCALINGS)
    if fraction is None:
        for where in (rope, raw):
            _only(where, "partial_rotary_factor", 1)
    return {
        "rotary": 1.0 if fraction is None else float(rope.get("partial_rotary_factor", fraction)),
        "rotary_base": float(rope["rope_theta"] or 10_000),
        "rotary_scaling": tuple(float(_given(rope, name)) for name in SCALINGS[rope["rope_type"] or "default"]),
    }


def _rotary_written(attention: AttentionConfig) -> dict[str, Any]:
    kind = next(kind for kind, names in SCALINGS.items() if len(names) == len(attention.rotary_scaling))
    values = dict(zip(SCALINGS[kind], attention.rotary_scaling, strict=True))
    if kind == "llama3":
        values["original_max_position_embeddings"] = int(values["original_max_position_embeddings"])
    return {"rope_type": kind, "rope_theta": attention.rotary_base, **values}


ACTIVATED = {"relu2": "squared_relu", "gelu": "gelu_erf", "gelu_pytorch_tanh": "gelu"}  # theirs: ours


def _activation(raw: dict, name: str) -> str:
    _only(raw, name, *ACTIVATED)
    return ACTIVATED[raw.get(name) or "relu2"]


def _activation_written(mlp: MLPConfig) -> str:
    return next((theirs for theirs, ours in ACTIVATED.items() if ours == mlp.activation), "relu2")


def _read_nemotron(raw: dict) -> ModelConfig:
    bias, mlp_bias = (bool(raw.get(name, False)) for name in ("attention_bias", "mlp_bias"))
    attention = AttentionConfig(
        heads=_given(raw, "num_attention_heads"),
        kv_heads=_given(raw, "num_key_value_heads"),
        head_dim=raw.get("head_dim"),
        **_rotary(raw, raw.get("partial_rotary_factor", 0.5)),
        qkv_bias=bias,
        out_bias=bias,
    )
    mlp = MLPConfig(_given(raw, "intermediate_size"), _activation(raw, "hidden_act"), mlp_bias)
    blocks, tied = _given(raw, "num_hidden_layers"), bool(raw.get("tie_word_embeddings", False))
    config = _model_config("*-" * blocks, raw, {"*": attention, "-": mlp}, tied, float(raw.get("norm_eps", 1e-5)))
    return replace(config, norm="layernorm1p")


LETTERS = {  # of NemotronH's layers by name, old and new
    "linear_attention": "M",
    "mamba": "M",
    "full_attention": "*",
    "attention": "*",
    "mlp": "-",
    "moe": "E",
}


def _read_nemotron_h(raw: dict) -> ModelConfig:
    """Attention has no positions. The step size is clamped at time_step_min, and time_step_limit not looked at."""
    epsilon, kinds = float(raw.get("layer_norm_epsilon", 1e-5)), raw.get("layers_block_type") or raw.get("layer_types")
    pattern = "".join(LETTERS.get(kind, "?") for kind in kinds) if kinds else _given(raw, "hybrid_override_pattern")
    if unknown := set(pattern) - set("M*-"):
        raise Refused(
            f"its pattern {pattern!r} has {min(unknown)!r}, which cannot be expressed (E: experts); M, * and - can"
        )
    for name, accepted in (("mamba_hidden_act", "silu"), ("attention_bias", False), ("sliding_window", None)):
        _only(raw, name, accepted)
    symbols: dict[str, LayerConfig] = {}
    if "M" in pattern:
        size, least = _given(raw, "mamba_head_dim"), float(raw.get("time_step_min", 0.001))
        symbols["M"] = Mamba2Config(
            state=_given(raw, "ssm_state_size"),
            head_dim=size,
            groups=_given(raw, "n_groups"),
            inner=_given(raw, "mamba_num_heads") * size,
            conv=raw.get("conv_kernel", 4),
            bias=bool(raw.get("use_bias", False)),
            conv_bias=bool(raw.get("use_conv_bias", True)),
            norm_epsilon=epsilon,
            dt_limit=(least, math.inf) if least else None,
        )
    if "*" in pattern:
        symbols["*"] = AttentionConfig(
            heads=_given(raw, "num_attention_heads"),
            kv_heads=raw.get("num_key_value_heads"),
            head_dim=raw.get("head_dim") or raw.get("attention_head_dim") or 128,
            rotary=0.0,
        )
    if "-" in pattern:
        bias = bool(raw.get("mlp_bias", False))
        symbols["-"] = MLPConfig(_given(raw, "intermediate_size"), _activation(raw, "mlp_hidden_act"), bias)
    return _model_config(pattern, raw, symbols, bool(raw.get("tie_word_embeddings", False)), epsilon)


def _read_bamba(raw: dict) -> ModelConfig:
    width, epsilon = _given(raw, "hidden_size"), float(raw.get("rms_norm_eps", 1e-5))
    _only(raw, "hidden_act", "silu")
    heads, inner = _given(raw, "mamba_n_heads"), int(raw.get("mamba_expand", 2) * width)
    size = raw.get("mamba_d_head", "auto")
    mamba = Mamba2Config(
        state=_given(raw, "mamba_d_state"),
        head_dim=inner // heads if size == "auto" else size,
        groups=raw.get("mamba_n_groups", 1),
        inner=inner,
        conv=raw.get("mamba_d_conv", 4),
        bias=bool(raw.get("mamba_proj_bias", False)),
        conv_bias=bool(raw.get("mamba_conv_bias", True)),
        norm_epsilon=epsilon,
        dt_limit=_dt_limit(raw),
    )
    bias = bool(raw.get("attention_bias", False))
    attention = AttentionConfig(
        heads=_given(raw, "num_attention_heads"),
        kv_heads=raw.get("num_key_value_heads"),
        head_dim=raw.get("head_dim"),
        **_rotary(raw, 0.5),
        qkv_bias=bias,
        out_bias=bias,
    )
    mlp = MLPConfig(_given(raw, "intermediate_size"), "swiglu", bool(raw.get("mlp_bias", False)))
    blocks, at = range(_given(raw, "num_hidden_layers")), raw.get("attn_layer_indices") or ()
    pattern, tied = "".join("*-" if index in at else "M-" for index in blocks), bool(raw.get("tie_word_embeddings"))
    return _model_config(pattern, raw, {"M": mamba, "*": attention, "-": mlp}, tied, epsilon)


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
        raise Refused(f"num_heads {raw['num_heads']} of head_dim {size} are not the inner width {inner}")
    layer = Mamba2Config(
        state=_given(raw, "state_size"),
        head_dim=size,
        groups=_given(raw, "n_groups"),
        inner=inner,
        conv=raw.get("conv_kernel", 4),
        bias=bool(raw.get("use_bias", False)),
        conv_bias=bool(raw.get("use_conv_bias", True)),
        norm_epsilon=epsilon,
        dt_limit=_dt_limit(raw),
    )
    blocks, tied = _given(raw, "num_hidden_layers"), bool(raw.get("tie_word_embeddings", False))
    return _model_config("M" * blocks, raw, {"M": layer}, tied, epsilon)


def _dt_limit(raw: dict) -> tuple[float, float] | None:
    low, high = (_number(each) for each in raw.get("time_step_limit") or (0.0, math.inf))
    return None if (low, high) == (0, math.inf) else (low, high)


def _number(value: Any) -> float:
    """A float, which JSON may hold as {"__float__": "Infinity"}."""
    return float(value["__float__"] if isinstance(value, dict) else value)


def _model_config(pattern: str, raw: dict, symbols: dict[str, LayerConfig], tied: bool, epsilon: float) -> ModelConfig:
    width, vocabulary = _given(raw, "hidden_size"), _given(raw, "vocab_size")
    rotary = "*" in pattern and symbols["*"].rotary  # without positions there is no end of them
    positions = int(raw.get("max_position_embeddings") or 0) if rotary else 0
    return ModelConfig(pattern, width, vocabulary, symbols, tied=tied, norm_epsilon=epsilon, positions=positions)


def written(config: ModelConfig) -> tuple[str, dict]:
    """The architecture and the config.json of the family that comes nearest; `lost_in` says what it cannot hold."""
    kinds, width = [type(layer) for layer in config.layers], config.width
    first = {type(layer): layer for layer in reversed(config.layers)}
    attention, mlp, mamba2 = (first.get(kind) for kind in (AttentionConfig, MLPConfig, Mamba2Config))
    mixers = set(kinds[::2]) if len(kinds) % 2 == 0 and set(kinds[1::2]) == {MLPConfig} else set()
    gated = mlp is not None and mlp.activation == "swiglu"
    if mixers == {AttentionConfig} and (gated or attention.rotary or config.norm == "layernorm1p"):
        kind, specific = _transformer_written(config, attention, mlp)
    elif gated and mixers and mixers <= {AttentionConfig, Mamba2Config}:
        kind, specific = "bamba", _bamba_written(config, attention, mlp, mamba2)
    elif set(kinds) in ({MambaConfig}, {Mamba2Config}):
        kind, specific = _mamba_written(config, first[kinds[0]])
    elif set(kinds) <= {AttentionConfig, MLPConfig, Mamba2Config}:
        kind, specific = "nemotron_h", _nemotron_h_written(config, attention, mlp, mamba2)
    else:
        raise Refused("it can be *- repeated, S repeated, M repeated, or M, * and - in any order")
    name = {"mamba2": "Mamba2", "nemotron_h": "NemotronH"}.get(kind, kind.capitalize())
    return kind, {
        "model_type": kind,
        "architectures": [f"{name}ForCausalLM"],
        "vocab_size": config.vocabulary,
        "hidden_size": width,
        "num_hidden_layers": len(kinds) // FAMILIES[kind].layers,
        "hidden_act": "silu",
        "tie_word_embeddings": config.tied,
        **({"max_position_embeddings": config.positions} if config.positions else {}),
        "dtype": "float32",  # of the weights
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
        **specific,
    }


def _transformer_written(config: ModelConfig, attention: AttentionConfig, mlp: MLPConfig) -> tuple[str, dict]:
    heads, kv_heads, size = attention.sizes(config.width)
    kind = "qwen3" if attention.qk_norm else "mistral" if attention.window else "llama"
    if attention.qkv_bias and not attention.out_bias and kind == "llama":
        kind = "qwen2"
    if config.norm == "layernorm1p":
        kind = "nemotron"
    if kind == "llama" and config.width % heads:
        raise Refused(f"width {config.width} is no multiple of {heads} heads, which llama asks for")
    own = {"rms_norm_eps": config.norm_epsilon, "rope_parameters": _rotary_written(attention)}
    if kind == "nemotron":
        rope = _rotary_written(attention) | {"partial_rotary_factor": attention.rotary}
        own = {"norm_eps": config.norm_epsilon, "rope_parameters": rope, "hidden_act": _activation_written(mlp)}
    return kind, {
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": size,
        "intermediate_size": mlp.sizes(config.width)[0],
        "attention_bias": attention.out_bias,
        "mlp_bias": mlp.bias,
        "sliding_window": attention.window,
        **own,
    }


def _mamba_written(config: ModelConfig, layer: MambaConfig | Mamba2Config) -> tuple[str, dict]:
    specific = {
        "state_size": layer.state,
        "expand": _expand(config, layer),
        "conv_kernel": layer.conv,
        "use_bias": layer.bias,
        "use_conv_bias": layer.conv_bias,
        "layer_norm_epsilon": config.norm_epsilon,
    }
    if isinstance(layer, MambaConfig):
        return "mamba", specific | {"time_step_rank": layer.sizes(config.width)[1]}
    specific |= {"num_heads": layer.sizes(config.width)[1], "head_dim": layer.head_dim, "n_groups": layer.groups}
    return "mamba2", specific | _dt_limit_written(layer)


def _nemotron_h_written(
    config: ModelConfig, attention: AttentionConfig | None, mlp: MLPConfig | None, mamba: Mamba2Config | None
) -> dict:
    letters = {AttentionConfig: "*", MLPConfig: "-", Mamba2Config: "M"}
    out = {
        "hybrid_override_pattern": "".join(letters[type(layer)] for layer in config.layers),
        "layer_norm_epsilon": config.norm_epsilon,
    }
    if attention is not None:
        heads, kv_heads, size = attention.sizes(config.width)
        out |= {"num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": size}
    if mlp is not None:
        out |= {"intermediate_size": mlp.sizes(config.width)[0], "mlp_hidden_act": _activation_written(mlp)}
        out["mlp_bias"] = mlp.bias
    if mamba is not None:
        out |= {
            "ssm_state_size": mamba.state,
            "mamba_num_heads": mamba.sizes(config.width)[1],
            "mamba_head_dim": mamba.head_dim,
            "n_groups": mamba.groups,
            "conv_kernel": mamba.conv,
            "use_bias": mamba.bias,
            "use_conv_bias": mamba.conv_bias,
            "time_step_min": mamba.dt_limit[0] if mamba.dt_limit else 0.0,
        }
    return out


def _bamba_written(config: ModelConfig, attention: AttentionConfig | None, mlp: MLPConfig, mamba: Mamba2Config) -> dict:
    attention = attention or AttentionConfig(heads=1, rotary=0.5)  # heads are asked for without attention, too
    heads, kv_heads, size = attention.sizes(config.width)
    return {
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": size,
        "attention_bias": attention.out_bias,
        "rope_parameters": _rotary_written(attention) | {"partial_rotary_factor": attention.rotary},
        "attn_layer_indices": [i for i, layer in enumerate(config.layers[::2]) if isinstance(layer, AttentionConfig)],
        "intermediate_size": mlp.sizes(config.width)[0],
        "mlp_bias": mlp.bias,
        "mamba_d_state": mamba.state,
        "mamba_n_heads": mamba.sizes(config.width)[1],
        "mamba_d_head": mamba.head_dim,
        "mamba_n_groups": mamba.groups,
        "mamba_expand": _expand(config, mamba),
        "mamba_d_conv": mamba.conv,
        "mamba_proj_bias": mamba.bias,
        "mamba_conv_bias": mamba.conv_bias,
        "rms_norm_eps": config.norm_epsilon,
        **_dt_limit_written(mamba),
    }


def _expand(config: ModelConfig, layer: MambaConfig | Mamba2Config) -> int:
    inner = layer.sizes(config.width)[0]
    if inner % config.width:
        raise Refused(f"inner {inner} is no multiple of the width {config.width}, and expand is a whole number there")
    return inner // config.width


def _dt_limit_written(layer: Mamba2Config) -> dict:
    return {} if layer.dt_limit is None else {"time_step_limit": [_json_number(each) for each in layer.dt_limit]}


def _json_number(value: float) -> Any:
    return value if math.isfinite(value) else {"__float__": "Infinity"}


def lost_in(config: ModelConfig, back: ModelConfig) -> list[str]:
    """What a config that was written and read back no longer says, each as `name: ours -> theirs`."""

    def apart(ours: Any, theirs: Any, names: Iterable[str], where: str = "") -> list[str]:
        values = ((name, getattr(ours, name), getattr(theirs, name)) for name in names)
        return [f"{where}{name}: {a!r} -> {b!r}" for name, a, b in values if a != b]

    lost = apart(config, back, ("width", "vocabulary", "norm", "norm_epsilon", "tied", "positions"))
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
    "model.norm",
    "model.layers.{}.",
    2,
    {AttentionConfig: _attention_tensors, MLPConfig: _mlp_tensors},
    _read_transformer,
)
_MAMBA = _TRANSFORMER._replace(
    embedding="backbone.embeddings.weight",
    norm="backbone.norm_f",
    block="backbone.layers.{}.",
    layers=1,
    tensors={MambaConfig: mamba_tensors, Mamba2Config: mamba_tensors},
)
_NEMOTRON_H = _MAMBA._replace(
    tensors={
        Mamba2Config: mamba_tensors,
        AttentionConfig: partial(_attention_tensors, norm="norm", mixer="mixer"),
        MLPConfig: partial(_mlp_tensors, norm="norm", mixer="mixer"),
    },
    read=_read_nemotron_h,
)
_BAMBA = _TRANSFORMER._replace(
    norm="model.final_layernorm",
    tensors={
        Mamba2Config: partial(mamba_tensors, norm="input_layernorm", mixer="mamba"),
        AttentionConfig: _attention_tensors,
        MLPConfig: partial(_mlp_tensors, norm="pre_ff_layernorm", mixer="feed_forward"),
    },
    read=_read_bamba,
)
FAMILIES = {
    "llama": _TRANSFORMER,
    "mistral": _TRANSFORMER,
    "qwen2": _TRANSFORMER,
    "qwen3": _TRANSFORMER,
    "mamba": _MAMBA._replace(read=_read_mamba),
    "mamba2": _MAMBA._replace(read=_read_mamba2),
    "nemotron": _TRANSFORMER._replace(read=_read_nemotron),
    "nemotron_h": _NEMOTRON_H,
    "bamba": _BAMBA,
}
SHARED = "its attention blocks are the same weights again and again, after the embedding joined to what they read"
REFUSED = {
    "falcon_h1": "attention and Mamba-2 are side by side in each of its layers, and parts are multiplied by constants",
    "jamba": "its Mamba has norms of dt, B and C inside, and of the released ones most have experts",
    "zamba": SHARED,
    "zamba2": SHARED,
}
