"""Checkpoints as the authors of Mamba release them: Mamba, Mamba-2, both with attention, and their Transformer.

config.json says which layers are attention (`attn_layer_idx`) and whether an MLP follows each (`d_intermediate`);
pytorch_model.bin is read as arrays alone (workbench.exchange.pickled).
Source: github.com/state-spaces/mamba (mamba_ssm/models, mamba_ssm/modules).
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from workbench.config import AttentionConfig, LayerConfig, Mamba2Config, MambaConfig, MLPConfig, ModelConfig, nearest
from workbench.exchange import pickled
from workbench.exchange.families import ALL, Family, mamba_tensors
from workbench.exchange.huggingface import Imported, built, tokenizer_in
from workbench.record import read_json

EPSILON = 1e-5  # of every norm, in code
OF_TRAINING = ("dt_min", "dt_max", "dt_init", "dt_scale", "dt_init_floor", "A_init_range", "conv_init")
OF_RUNNING = ("chunk_size", "use_fast_path", "use_mem_eff_path", "fused_add_norm", "residual_in_fp32")


def from_state_spaces(path: Path | str, dtype: str = "float32") -> Imported:
    """The model in a folder with config.json and pytorch_model.bin; `dtype` is of the computation.

    Raises ValueError, naming it, for a setting or a tensor that cannot be expressed, is missing or left over.
    """
    path = Path(path)
    raw = read_json(path / "config.json")
    if raw is None or not (path / "pytorch_model.bin").is_file():
        raise ValueError(f"{path} needs config.json and pytorch_model.bin")
    try:
        config = _config(raw)
    except _Unknown as why:
        raise ValueError(f"{path / 'config.json'}: {why}") from None
    found = tensors(path)
    for name in [name for name in found if name.endswith("mlp.fc1.weight")]:  # the gate comes second
        up, gate = np.split(found.pop(name), 2)
        found |= {name.replace("fc1", "fc1.gate"): gate, name.replace("fc1", "fc1.up"): up}
    family = FAMILY._replace(layers=2 if "-" in config.pattern else 1)
    return Imported(built(replace(config, dtype=dtype), family, found, path), tokenizer_in(path), "state-spaces")


def tensors(path: Path) -> dict[str, np.ndarray]:
    """Every tensor of the folder by name, mapped."""
    return pickled.read(path / "pytorch_model.bin")


class _Unknown(Exception):
    pass


class _Settings:
    """A part of config.json: each setting is asked for, and what is left at the end is unknown."""

    def __init__(self, raw: dict, where: str):
        self.raw, self.where, self.asked = dict(raw), where, []

    def __call__(self, name: str, default: Any) -> Any:
        self.asked.append(name)
        return self.raw.pop(name, default)

    def only(self, name: str, *accepted: Any) -> None:
        found = self(name, accepted[0])
        if found not in accepted:
            raise _Unknown(f"{self.where}{name} is {found!r}, which cannot be expressed; {accepted[0]!r} can")

    def end(self, *ignored: str) -> None:
        left = sorted(self.raw.keys() - set(ignored))
        if left:
            raise _Unknown(f"{self.where}{left[0]} is not known; {nearest(left[0], self.asked)}")


def _config(raw: dict) -> ModelConfig:
    of = _Settings(raw, "")
    width, depth, vocabulary = of("d_model", 2560), of("n_layer", 64), of("vocab_size", 50277)
    multiple, hidden = of("pad_vocab_size_multiple", 8), of("d_intermediate", 0)
    attention_at, tied = of("attn_layer_idx", []), of("tie_embeddings", True)
    ssm, attention = of("ssm_cfg", {}), of("attn_cfg", {})
    of.only("rms_norm", True)
    of.end(*OF_RUNNING)
    symbols: dict[str, LayerConfig] = {}
    letter = "S"
    if set(range(depth)) - set(attention_at):
        ssm = _Settings(ssm, "ssm_cfg.")
        letter = {"Mamba1": "S", "Mamba2": "M"}.get(kind := ssm("layer", "Mamba1"), "")
        if not letter:
            raise _Unknown(f"ssm_cfg.layer is {kind!r}; {nearest(kind, ('Mamba1', 'Mamba2'))}")
        symbols[letter] = (_mamba if letter == "S" else _mamba2)(ssm, width)
    if attention_at:
        symbols["*"] = _attention(_Settings(attention, "attn_cfg."), width)
    if hidden:
        symbols["-"] = MLPConfig(math.ceil(hidden / 128) * 128, "swiglu")
    layers = ["*" if index in attention_at else letter for index in range(depth)]
    return ModelConfig(
        "".join(layer + "-" * bool(hidden) for layer in layers),
        width,
        math.ceil(vocabulary / multiple) * multiple,
        symbols,
        tied=tied,
        norm_epsilon=EPSILON,
    )


def _mamba(of: _Settings, width: int) -> MambaConfig:
    rank = of("dt_rank", "auto")
    layer = MambaConfig(
        state=of("d_state", 16),
        inner=int(of("expand", 2) * width),
        conv=of("d_conv", 4),
        dt_rank=math.ceil(width / 16) if rank == "auto" else rank,
        bias=of("bias", False),
        conv_bias=of("conv_bias", True),
    )
    of.end(*OF_TRAINING, *OF_RUNNING)
    return layer


def _mamba2(of: _Settings, width: int) -> Mamba2Config:
    for name, value in (("D_has_hdim", False), ("rmsnorm", True), ("norm_before_gate", False), ("d_ssm", None)):
        of.only(name, value)
    low, high = of("dt_limit", (0.0, math.inf))
    layer = Mamba2Config(
        state=of("d_state", 128),
        head_dim=of("headdim", 64),
        groups=of("ngroups", 1),
        inner=of("expand", 2) * width,
        conv=of("d_conv", 4),
        bias=of("bias", False),
        conv_bias=of("conv_bias", True),
        norm_epsilon=EPSILON,
        dt_limit=None if (low, high) == (0, math.inf) else (float(low), float(high)),
    )
    of.end(*OF_TRAINING, *OF_RUNNING)
    return layer


def _attention(of: _Settings, width: int) -> AttentionConfig:
    for name, *accepted in (
        ("causal", True),
        ("softmax_scale", None),
        ("mlp_dim", 0),
        ("rotary_emb_interleaved", False),
    ):
        of.only(name, *accepted)
    heads = of("num_heads", None)
    if heads is None:
        raise _Unknown("attn_cfg has no num_heads, which is needed")
    size, rotated = of("head_dim", None) or width // heads, of("rotary_emb_dim", 0)
    layer = AttentionConfig(
        heads=heads,
        kv_heads=of("num_heads_kv", None) or heads,
        head_dim=size,
        rotary=rotated / size,
        rotary_base=float(of("rotary_emb_base", 10_000.0)),
        conv=of("d_conv", 0),
        qkv_bias=of("qkv_proj_bias", True),
        out_bias=of("out_proj_bias", True),
    )
    of.end()
    return layer


def _attention_tensors(layer: AttentionConfig, width: int) -> dict:
    names = {
        "qkv": "in_proj.weight",
        "qkv_bias": "in_proj.bias",
        "conv": "conv1d.weight",
        "conv_bias": "conv1d.bias",
        "out": "out_proj.weight",
        "out_bias": "out_proj.bias",
    }
    mixer = {f"mixer.{ours}": ((f"mixer.{theirs}",), ALL) for ours, theirs in names.items()}
    return {"norm.scale": (("norm.weight",), ALL)} | mixer


def _mlp_tensors(layer: MLPConfig, width: int) -> dict:
    hidden, _ = layer.sizes(width)
    return {
        "norm.scale": (("norm2.weight",), ALL),
        "mixer.enter": (("mlp.fc1.gate.weight", "mlp.fc1.up.weight"), (hidden, hidden)),
        "mixer.out": (("mlp.fc2.weight",), ALL),
    }


FAMILY = Family(
    embedding="backbone.embedding.weight",
    norm="backbone.norm_f",
    block="backbone.layers.{}.",
    layers=1,
    tensors={
        MambaConfig: mamba_tensors,
        Mamba2Config: mamba_tensors,
        AttentionConfig: _attention_tensors,
        MLPConfig: _mlp_tensors,
    },
    read=_config,
)
