"""Small random models in the form of the mamba authors' releases, made in an environment that has torch.

    python state_spaces.py FOLDER [--authors CHECKOUT]

Mixers of Mamba and Mamba-2 are those of transformers, whose parameters have the authors' names; attention and the MLP
are written out here. With a checkout of the authors' code, attention and MLP are held against theirs first (their
rotation, which needs a GPU, is replaced by the one here). Each model becomes a folder with config.json,
pytorch_model.bin and expected.npz: tokens, logits, and the largest difference of the logits from those in float64.
"""

import importlib.util
import json
import sys
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
from peers import fill
from torch import nn
from torch.nn import functional as F
from transformers import Mamba2Config, MambaConfig
from transformers.models.mamba.modeling_mamba import MambaMixer
from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer, Mamba2RMSNorm

SIZES = {"d_model": 16, "vocab_size": 37, "rms_norm": True, "residual_in_fp32": True, "fused_add_norm": True}
MODELS = {
    "mamba": {**SIZES, "n_layer": 2, "ssm_cfg": {"d_state": 4}, "pad_vocab_size_multiple": 8},
    "mamba2": {
        **SIZES, "n_layer": 2, "ssm_cfg": {"layer": "Mamba2", "d_state": 6, "headdim": 4, "ngroups": 2},
        "pad_vocab_size_multiple": 1, "tie_embeddings": False,
    },
    "mamba2attn": {
        **SIZES, "n_layer": 3, "ssm_cfg": {"layer": "Mamba2", "d_state": 6, "headdim": 8}, "attn_layer_idx": [1],
        "attn_cfg": {
            "causal": True, "d_conv": 4, "head_dim": 8, "num_heads": 3, "out_proj_bias": False,
            "qkv_proj_bias": False, "rotary_emb_dim": 4,
        },
        "pad_vocab_size_multiple": 16, "tie_embeddings": True, "d_intermediate": 0,
    },
    "transformerpp": {
        **SIZES, "n_layer": 2, "ssm_cfg": {}, "attn_layer_idx": [0, 1], "d_intermediate": 100,
        "attn_cfg": {"causal": True, "num_heads": 4, "num_heads_kv": 2, "rotary_emb_dim": 4, "rotary_emb_base": 500.0},
        "pad_vocab_size_multiple": 16,
    },
}  # fmt: skip


class Rotary(nn.Module):
    def __init__(self, dim, base=10000.0, interleaved=False, device=None):
        super().__init__()
        assert not interleaved
        self.dim, self.base = dim, base

    def forward(self, q, kv, seqlen_offset=0, max_seqlen=None):
        place = torch.arange(q.shape[1], dtype=q.dtype)
        angle = place[:, None] * self.base ** (-torch.arange(0, self.dim, 2, dtype=q.dtype) / self.dim)
        cos, sin = (f(angle)[None, :, None] for f in (torch.cos, torch.sin))

        def turn(x):
            a, b, rest = x.split([self.dim // 2, self.dim // 2, x.shape[-1] - self.dim], dim=-1)
            return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], dim=-1)

        return turn(q), torch.stack([turn(kv[:, :, 0]), kv[:, :, 1]], dim=2)


class Attention(nn.Module):
    def __init__(
        self, width, num_heads, num_heads_kv=None, head_dim=None, qkv_proj_bias=True, out_proj_bias=True, causal=True,
        d_conv=0, rotary_emb_dim=0, rotary_emb_base=10000.0,
    ):  # fmt: skip
        super().__init__()
        self.heads, self.kv_heads, self.size = num_heads, num_heads_kv or num_heads, head_dim or width // num_heads
        channels = self.size * (self.heads + 2 * self.kv_heads)
        self.in_proj = nn.Linear(width, channels, bias=qkv_proj_bias)
        self.conv1d = nn.Conv1d(channels, channels, d_conv, padding=d_conv - 1, groups=channels) if d_conv else None
        self.out_proj = nn.Linear(self.heads * self.size, width, bias=out_proj_bias)
        self.rotary = Rotary(rotary_emb_dim, rotary_emb_base)

    def forward(self, x):
        batch, time, _ = x.shape
        qkv = self.in_proj(x)
        if self.conv1d is not None:
            qkv = self.conv1d(qkv.transpose(1, 2))[..., :time].transpose(1, 2)
        q, kv = qkv.split([self.heads * self.size, 2 * self.kv_heads * self.size], dim=-1)
        q, kv = self.rotary(
            q.reshape(batch, time, self.heads, self.size), kv.reshape(batch, time, 2, self.kv_heads, self.size)
        )
        k, v = (each.repeat_interleave(self.heads // self.kv_heads, dim=2).transpose(1, 2) for each in kv.unbind(2))
        y = F.scaled_dot_product_attention(q.transpose(1, 2), k, v, is_causal=True)
        return self.out_proj(y.transpose(1, 2).reshape(batch, time, -1))


class MLP(nn.Module):
    def __init__(self, width, hidden):
        super().__init__()
        hidden = -(-hidden // 128) * 128
        self.fc1, self.fc2 = nn.Linear(width, 2 * hidden, bias=False), nn.Linear(hidden, width, bias=False)

    def forward(self, x):
        up, gate = self.fc1(x).chunk(2, dim=-1)
        return self.fc2(up * F.silu(gate))


class Layer(nn.Module):
    def __init__(self, config, index):
        super().__init__()
        width, ssm = config["d_model"], config["ssm_cfg"]
        self.norm = Mamba2RMSNorm(width, eps=1e-5)
        if index in config.get("attn_layer_idx", []):
            self.mixer = Attention(width, **config["attn_cfg"])
        elif ssm.get("layer") == "Mamba2":
            its = Mamba2Config(
                hidden_size=width, head_dim=ssm["headdim"], num_heads=2 * width // ssm["headdim"],
                state_size=ssm["d_state"], n_groups=ssm.get("ngroups", 1), num_hidden_layers=99,
            )  # fmt: skip
            self.mixer = Mamba2Mixer(its, index)
        else:
            self.mixer = MambaMixer(
                MambaConfig(hidden_size=width, state_size=ssm["d_state"], num_hidden_layers=99), index
            )
        if config.get("d_intermediate"):
            self.norm2, self.mlp = Mamba2RMSNorm(width, eps=1e-5), MLP(width, config["d_intermediate"])

    def forward(self, x):
        x = x + self.mixer(self.norm(x))
        return x + self.mlp(self.norm2(x)) if hasattr(self, "mlp") else x


class Model(nn.Module):
    def __init__(self, config):
        super().__init__()
        multiple = config["pad_vocab_size_multiple"]
        width, vocabulary = config["d_model"], -(-config["vocab_size"] // multiple) * multiple
        self.backbone = nn.Module()
        self.backbone.embedding = nn.Embedding(vocabulary, width)
        self.backbone.layers = nn.ModuleList([Layer(config, index) for index in range(config["n_layer"])])
        self.backbone.norm_f = Mamba2RMSNorm(width, eps=1e-5)
        self.lm_head = nn.Linear(width, vocabulary, bias=False)
        if config.get("tie_embeddings", True):
            self.lm_head.weight = self.backbone.embedding.weight

    def forward(self, tokens):
        x = self.backbone.embedding(tokens)
        for layer in self.backbone.layers:
            x = layer(x)
        return self.lm_head(self.backbone.norm_f(x))


def check(model, checkout):
    """Every attention and MLP of the model against the authors' own modules."""

    def module(name):
        spec = importlib.util.spec_from_file_location(name, checkout / "mamba_ssm" / "modules" / f"{name}.py")
        found = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(found)
        return found

    mha, mlp = module("mha"), module("mlp")
    mha.RotaryEmbedding = Rotary
    config, seen = model.config, 0
    for layer in model.backbone.layers:
        x = torch.randn(2, 13, config["d_model"])
        pairs = []
        if isinstance(layer.mixer, Attention):
            pairs.append((layer.mixer, mha.MHA(config["d_model"], **config["attn_cfg"])))
        if hasattr(layer, "mlp"):
            pairs.append((layer.mlp, mlp.GatedMLP(config["d_model"], config["d_intermediate"])))
        for ours, theirs in pairs:
            theirs.load_state_dict(ours.state_dict())
            difference = (ours(x) - theirs(x)).abs().max().item()
            print(f"{type(theirs).__name__}: largest difference {difference:.1e}")
            assert difference < 1e-5
            seen += 1
    return seen


def make(name, place, seed, checkout):
    generator = torch.Generator().manual_seed(seed)
    model = Model(MODELS[name]).eval()
    model.config = MODELS[name]
    fill(model, generator)
    tokens = torch.randint(0, 37, (2, 19), generator=generator)
    with torch.no_grad():
        if checkout is not None:
            check(model, checkout)
        model.backbone.norm_f.weight.mul_(3 / model(tokens).std())  # logits are linear in it
        logits = model(tokens)
        place.mkdir(parents=True, exist_ok=True)
        weights = OrderedDict((name, tensor.clone()) for name, tensor in model.state_dict().items())
        torch.save(weights, place / "pytorch_model.bin")
        rounding = (model.double()(tokens) - logits).abs().max()
    (place / "config.json").write_text(json.dumps(MODELS[name], indent=1) + "\n")
    np.savez(place / "expected.npz", tokens=tokens.int(), logits=logits, rounding=rounding)
    print(f"{name}: spread {logits.std():.2f}, rounding {rounding:.1e}", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    checkout = Path(sys.argv[sys.argv.index("--authors") + 1]) if "--authors" in sys.argv else None
    for seed, name in enumerate(MODELS):
        make(name, Path(sys.argv[1]) / name, seed, checkout)
