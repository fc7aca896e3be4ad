"""Llama-family models in GGUF, llama.cpp's format, quantized or not (needs the package gguf).

Names and settings are turned into those of transformers, so that its table (workbench.exchange.families) serves here
too. llama.cpp rotates neighbouring dimensions of a head together, where transformers and we rotate those half a head
apart: the rows of the matrices for queries and keys are put back. A quantized weight is read as the number it stands
for. Source: llama.cpp's conversion of LlamaForCausalLM.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from workbench.config import nearest
from workbench.data.tokenizer import Json
from workbench.exchange.families import FAMILIES
from workbench.exchange.huggingface import Imported, built

SETTINGS = {  # of the architecture, and what transformers calls each
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.value_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.dimension_count": "head_dim",
    "rope.freq_base": "rope_theta",
    "vocab_size": "vocab_size",
    "context_length": "max_position_embeddings",
}
TENSORS = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def from_gguf(path: Path | str, dtype: str = "float32") -> Imported:
    """The model in a GGUF file; `dtype` is of the computation, parameters are float32.

    The tokenizer is None unless it is a byte-level BPE that cuts text as GPT-2 or SmolLM does. Raises ValueError,
    naming it, for an architecture, a setting or a tensor that cannot be expressed, is missing or left over.
    """
    path = Path(path)
    reader = _reader(path)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    kind = fields["general.architecture"]
    if kind != "llama":
        raise ValueError(f"{path} is of architecture {kind!r}; of GGUF llama alone is read")
    from gguf import dequantize

    found = {_renamed(each.name): dequantize(each.data, each.tensor_type) for each in reader.tensors}
    raw: dict[str, Any] = {"model_type": kind}
    for name in (name for name in fields if name.startswith(f"{kind}.")):
        theirs = SETTINGS.get(name.removeprefix(f"{kind}."))
        if theirs is None:
            near = nearest(name.removeprefix(f"{kind}."), SETTINGS)
            raise ValueError(f"{path} sets {name} = {fields[name]!r}, which cannot be expressed; {near}")
        if raw.setdefault(theirs, fields[name]) != fields[name]:
            raise ValueError(
                f"{path} sets {name} = {fields[name]!r}, but {theirs} is {raw[theirs]!r}: needed is the same"
            )
    raw["tie_word_embeddings"] = "lm_head.weight" not in found
    raw["attention_bias"] = "model.layers.0.self_attn.o_proj.bias" in found
    raw.setdefault("vocab_size", len(found.get("model.embed_tokens.weight", ())))
    try:
        config = FAMILIES[kind].read(raw)
    except ValueError as why:
        raise ValueError(f"{path}: {why}") from None
    heads, kv_heads, size = config.symbols["*"].sizes(config.width)
    for name, array in found.items():
        for what, count in (("q", heads), ("k", kv_heads)):
            if f"self_attn.{what}_proj." in name and len(array) == count * size:
                pairs = array.reshape(count, size // 2, 2, *array.shape[1:])
                found[name] = pairs.swapaxes(1, 2).reshape(array.shape)
    return Imported(built(replace(config, dtype=dtype), FAMILIES[kind], found, path), _tokenizer(fields, path), kind)


def tensors(path: Path) -> dict[str, np.ndarray]:
    """Every tensor of the file by its name there, as it is stored, mapped."""
    return {each.name: each.data for each in _reader(path).tensors}


def _reader(path: Path) -> Any:
    try:
        from gguf import GGUFReader
    except ModuleNotFoundError:
        raise ValueError(
            f"{path} cannot be read without the package gguf; install the extra gguf: "
            "pip install 'architecture-workbench[gguf]'"
        ) from None
    try:
        return GGUFReader(path)
    except (ValueError, IndexError) as error:
        raise ValueError(f"{path} is no whole GGUF file ({error}); fetch it again") from error


def _renamed(name: str) -> str:
    """`blk.0.attn_q.weight` is model.layers.0.self_attn.q_proj.weight; a name that is unknown stays as it is."""
    *block, part, what = name.split(".")
    if part not in TENSORS:
        return name
    return ".".join([*(("model", "layers", block[1]) if block else ()), TENSORS[part], what])


def _tokenizer(fields: dict[str, Any], path: Path) -> Json | None:
    """The tokenizer that the file's lists of tokens and merges make.

    Documents begin with the beginning token where the file says that one is added; else as a `Json` decides.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    cut = pre_tokenizers.ByteLevel(add_prefix_space=False)
    cuts = {"gpt-2": cut, "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), cut])}
    if fields.get("tokenizer.ggml.model") != "gpt2" or fields.get("tokenizer.ggml.pre") not in cuts:
        return None
    tokens, kinds = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    fast = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, merges))
    fast.pre_tokenizer, fast.decoder = cuts[fields["tokenizer.ggml.pre"]], decoders.ByteLevel()
    fast.add_special_tokens(
        [AddedToken(token, special=True) for token, kind in zip(tokens, kinds, strict=True) if kind == 3]  # control
    )
    begin = fields.get("tokenizer.ggml.bos_token_id") if fields.get("tokenizer.ggml.add_bos_token") else None
    return Json(fast.to_str(), str(path), None if begin is None else tokens[begin])
