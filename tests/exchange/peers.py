"""Small random models of every family, made by transformers: run by `make parity` in an environment that has torch.

Each becomes a folder as transformers saves it, with expected.safetensors beside: tokens, logits, the mean loss,
64 tokens that greedy decoding gives; and gradients.safetensors: every parameter's, and the logits in float64.
--only=NAME,NAME makes these alone.
tests/exchange/golden is such folders without the latter.
"""

import json
import math
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BambaConfig,
    LlamaConfig,
    Mamba2Config,
    MambaConfig,
    MistralConfig,
    NemotronConfig,
    NemotronHConfig,
    Qwen2Config,
    Qwen3Config,
)
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

ENDS = {"vocab_size": 37, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None}
BLOCKS = {**ENDS, "hidden_size": 16, "num_hidden_layers": 2}
ATTENTION = {**BLOCKS, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 24}
SSD = {**BLOCKS, "head_dim": 4, "num_heads": 8, "state_size": 6, "chunk_size": 8}
HYBRID = {
    **ENDS,
    "hidden_size": 16,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 6,
    "intermediate_size": 24,
    "mamba_num_heads": 8,
    "mamba_head_dim": 4,
    "ssm_state_size": 6,
    "chunk_size": 8,
    "time_step_min": 0.02,
}
LLAMA3 = {  # rotations of 6, 30, 140 and 664 tokens: one stays, one is between, two are slowed down
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}

FAMILIES = {
    "llama": LlamaConfig(**ATTENTION, rms_norm_eps=1e-4),
    "llama-tied-biases": LlamaConfig(
        **ATTENTION | {"num_key_value_heads": 4}, tie_word_embeddings=True, attention_bias=True, mlp_bias=True
    ),
    "llama-head-dim": LlamaConfig(
        **ATTENTION, head_dim=6, rope_parameters={"rope_type": "default", "rope_theta": 500.0}
    ),
    "mistral-window-sharded": MistralConfig(**ATTENTION, sliding_window=5),
    "qwen2": Qwen2Config(**ATTENTION),
    "qwen3-tied": Qwen3Config(**ATTENTION, head_dim=8, tie_word_embeddings=True, rms_norm_eps=1e-3),
    "mamba-tied": MambaConfig(**BLOCKS, state_size=5),
    "mamba-biases": MambaConfig(
        **BLOCKS,
        state_size=4,
        expand=3,
        conv_kernel=3,
        time_step_rank=3,
        use_bias=True,
        use_conv_bias=False,
        tie_word_embeddings=False,
        layer_norm_epsilon=1e-3,
    ),
    "mamba2": Mamba2Config(**SSD, n_groups=1),
    "mamba2-2-groups-tied-biases": Mamba2Config(**SSD, n_groups=2, use_bias=True, tie_word_embeddings=True),
    "mamba2-4-groups-limit": Mamba2Config(
        **SSD, n_groups=4, time_step_limit=(0.01, 0.05), use_conv_bias=False, layer_norm_epsilon=1e-3
    ),
    "mamba2-8-groups-floor": Mamba2Config(**SSD, n_groups=8, time_step_limit=(0.02, float("inf"))),
    "llama-scaled-rotary": LlamaConfig(**ATTENTION, head_dim=8, rope_parameters=LLAMA3, max_position_embeddings=512),
    "qwen3-linear-rotary": Qwen3Config(
        **ATTENTION, head_dim=8, rope_parameters={"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0}
    ),
    "nemotron": NemotronConfig(**ATTENTION, norm_eps=1e-4),
    "nemotron-biases-quarter": NemotronConfig(
        **ATTENTION, head_dim=8, partial_rotary_factor=0.25, attention_bias=True, mlp_bias=True
    ),
    "nemotron_h": NemotronHConfig(**HYBRID, hybrid_override_pattern="M-M*-M-", n_groups=2),
    "nemotron_h-biases-gelu": NemotronHConfig(
        **HYBRID,
        hybrid_override_pattern="M*-",
        n_groups=4,
        mlp_hidden_act="gelu",
        mlp_bias=True,
        use_bias=True,
        use_conv_bias=False,
        layer_norm_epsilon=1e-3,
    ),
    "bamba": BambaConfig(
        **ATTENTION | {"num_hidden_layers": 3},
        attn_layer_indices=[1],
        mamba_n_heads=8,
        mamba_d_state=6,
        mamba_n_groups=2,
        mamba_chunk_size=8,
        rms_norm_eps=1e-4,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0},
    ),
}
FINAL = ("model.norm.weight", "backbone.norm_f.weight", "model.norm_f.weight", "model.final_layernorm.weight")


def fill(model: torch.nn.Module, generator: torch.Generator) -> None:
    """A value that is not its default in every parameter, at the sizes that trained models have."""

    def normal(shape, std=1.0, mean=0.0):
        return mean + std * torch.randn(shape, generator=generator)

    def uniform(shape, low, high):
        return low + (high - low) * torch.rand(shape, generator=generator)

    for name, parameter in model.named_parameters():
        shape = parameter.shape
        if name.endswith("A_log"):
            value = torch.log(uniform(shape, 1, 16))
        elif name.endswith(("dt_bias", "dt_proj.bias")):
            step = torch.exp(uniform(shape, math.log(0.001), math.log(0.1)))
            value = step + torch.log(-torch.expm1(-step))
        elif name.endswith(".D") or ("norm" in name and name.endswith("weight")):
            value = normal(shape, 0.3, 1)
        elif "embed" in name:
            value = normal(shape)
        elif name.endswith("bias"):
            value = normal(shape, 0.3)
        elif "conv1d" in name:
            value = normal(shape, 0.5)
        else:
            value = normal(shape, 1.5 / math.sqrt(shape[-1]))
        parameter.data.copy_(value)


def make(name: str, place: Path, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    model = AutoModelForCausalLM.from_config(FAMILIES[name], attn_implementation="eager").eval()
    fill(model, generator)
    tokens = torch.randint(0, FAMILIES[name].vocab_size, (2, 19), generator=generator)
    linear = ("lm_head.weight",) if FAMILIES[name].model_type == "nemotron" else FINAL  # its norm adds one, and a bias
    final = [p for n, p in model.named_parameters() if n in linear]
    with torch.no_grad():
        final[0].mul_(3 / model(tokens, use_cache=False).logits.std())  # logits are linear in it
    logits = model(tokens, use_cache=False).logits
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    greedy = tokens[:, :7]
    with torch.no_grad():
        for _ in range(64):  # whole forwards: some families' cached steps compute something else
            greedy = torch.cat([greedy, model(greedy, use_cache=False).logits[:, -1:].argmax(-1)], dim=1)
    expected = {"tokens": tokens, "logits": logits.detach(), "loss": loss.detach(), "greedy": greedy}
    loss.backward()
    saved = {"model.": "backbone."} if FAMILIES[name].model_type == "nemotron_h" else {}  # as its files are named
    more = {}
    for each, parameter in model.named_parameters():
        prefix = each[: each.index(".") + 1]
        more[f"gradient.{saved.get(prefix, prefix)}{each.removeprefix(prefix)}"] = parameter.grad
    shutil.rmtree(place, ignore_errors=True)
    model.save_pretrained(place, **({"max_shard_size": "12KB"} if "sharded" in name else {}))
    (place / "generation_config.json").unlink(missing_ok=True)
    with torch.no_grad():
        more["logits64"] = model.double()(tokens, use_cache=False).logits
    save_file({n: t.contiguous() for n, t in expected.items()}, place / "expected.safetensors")
    save_file({n: t.contiguous() for n, t in more.items()}, place / "gradients.safetensors")


def reload(place: Path) -> None:
    """Loads what the workbench wrote into each `exported` folder and saves its logits, to be compared."""
    for folder in sorted(place.glob("*/exported")):
        model, said = AutoModelForCausalLM.from_pretrained(
            folder, attn_implementation="eager", output_loading_info=True
        )
        assert not any(said.values()), (folder, said)
        tokens = load_file(folder.parent / "expected.safetensors")["tokens"]
        with torch.no_grad():
            save_file({"logits": model.eval()(tokens, use_cache=False).logits}, folder / "logits.safetensors")


if __name__ == "__main__":
    torch.set_num_threads(1)
    place = Path(sys.argv[1])
    if "--reload" in sys.argv:
        reload(place)
    else:
        only = [argument.removeprefix("--only=") for argument in sys.argv if argument.startswith("--only=")]
        for seed, name in enumerate(FAMILIES):
            if only and name not in only[0].split(","):
                continue
            make(name, place / name, seed)
            print(json.dumps({"made": name}), flush=True)
