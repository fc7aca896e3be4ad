"""Llama in GGUF, against the same model as transformers writes it; the files are made by the package gguf itself."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from workbench.config import AttentionConfig, MLPConfig, ModelConfig
from workbench.exchange.gguf import from_gguf
from workbench.model.language_model import create
from workbench.model.names import named, restored

gguf = pytest.importorskip("gguf", reason="the package gguf is not installed")

WIDTH, HEADS, KV_HEADS, SIZE, HIDDEN, VOCABULARY = 32, 4, 2, 8, 64, 40


def a_model(tied=False):
    attention = AttentionConfig(HEADS, KV_HEADS, SIZE, rotary_base=500.0)
    symbols = {"*": attention, "-": MLPConfig(HIDDEN, "swiglu")}
    model = create(ModelConfig("*-*-", WIDTH, VOCABULARY, symbols, tied=tied, norm_epsilon=1e-6), 0)
    rng = np.random.default_rng(1)
    moved = {name: np.asarray(a) + 0.1 * rng.standard_normal(a.shape, np.float32) for name, a in named(model).items()}
    return restored(model, {name: jnp.asarray(a) for name, a in moved.items()})


def neighbours(weight, heads):
    """Rows of queries or keys in llama.cpp's order: its conversion's own line, dimension i beside i + half."""
    return weight.reshape(heads, 2, SIZE // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def write(path, model, kind=gguf.GGMLQuantizationType.F32, change=()):
    p = {name: np.asarray(array) for name, array in named(model).items()}
    file = gguf.GGUFWriter(path, "llama")
    settings = {
        "block_count": 2, "embedding_length": WIDTH, "feed_forward_length": HIDDEN, "context_length": 99,
        "attention.head_count": HEADS, "attention.head_count_kv": KV_HEADS, "rope.dimension_count": SIZE,
    }  # fmt: skip
    for name, value in (settings | dict(change)).items():
        file.add_uint32(f"llama.{name}", value)
    file.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-6)
    file.add_float32("llama.rope.freq_base", 500.0)
    tensors = {"token_embd": p["embedding"], "output_norm": p["norm.scale"]}
    if not model.config.tied:
        tensors["output"] = p["output"].T
    for i in range(2):
        qkv = p["layers.0.mixer.qkv"][i].T
        q, k, v = np.split(qkv, [HEADS * SIZE, (HEADS + KV_HEADS) * SIZE])
        gate, up = np.split(p["layers.1.mixer.enter"][i].T, 2)
        tensors |= {
            f"blk.{i}.attn_norm": p["layers.0.norm.scale"][i],
            f"blk.{i}.attn_q": neighbours(q, HEADS),
            f"blk.{i}.attn_k": neighbours(k, KV_HEADS),
            f"blk.{i}.attn_v": v,
            f"blk.{i}.attn_output": p["layers.0.mixer.out"][i].T,
            f"blk.{i}.ffn_norm": p["layers.1.norm.scale"][i],
            f"blk.{i}.ffn_gate": gate,
            f"blk.{i}.ffn_up": up,
            f"blk.{i}.ffn_down": p["layers.1.mixer.out"][i].T,
        }
    for name, array in tensors.items():
        array = np.ascontiguousarray(array)
        quantized = kind if array.ndim == 2 else gguf.GGMLQuantizationType.F32
        file.add_tensor(f"{name}.weight", gguf.quantize(array, quantized), raw_dtype=quantized)
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()
    return path


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_a_gguf_file_gives_every_parameter_back_bit_for_bit(tmp_path, tied):
    model = a_model(tied)
    back, tokenizer, kind = from_gguf(write(tmp_path / "model.gguf", model))
    assert (tokenizer, kind) == (None, "llama")
    assert back.config.norm_epsilon == pytest.approx(1e-6) and back.config.tied is tied
    assert back.config.symbols["*"].rotary_base == 500 and back.config.pattern == "*-*-"
    assert back.config.positions == 99
    jax.tree.map(np.testing.assert_array_equal, named(back), named(model))


def test_a_quantized_weight_is_within_half_a_step_of_what_it_stands_for(tmp_path):
    model = a_model()
    back = named(from_gguf(write(tmp_path / "model.gguf", model, gguf.GGMLQuantizationType.Q8_0)).model)
    for name, array in named(model).items():
        # a step is 1/127 of the largest of 32, itself kept to 11 bits
        assert np.abs(back[name] - array).max() <= np.abs(array).max() * (0.5 / 127 + 2**-11), name
        assert "norm" in name or np.abs(back[name] - array).max() > 0, name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"expert_count": 8}, r"llama\.expert_count = 8, which cannot be expressed"),
        ({"rope.dimension_count": 4, "attention.key_length": 8}, r"rope\.dimension_count = 4|key_length = 8"),
        ({"block_count": 3}, r"lacks 9 tensors; the first is model\.layers\.2\.input_layernorm\.weight"),
    ],
    ids=["setting", "contradiction", "tensor"],
)
def test_what_cannot_be_expressed_is_refused_by_name(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        from_gguf(write(tmp_path / "model.gguf", a_model(), change=change.items()))


@pytest.mark.parametrize(("added", "begins"), [(True, "<s>"), (False, "</s>"), (None, "</s>")])
def test_documents_begin_with_the_beginning_token_where_the_file_says_that_one_is_added(tmp_path, added, begins):
    from workbench.exchange.gguf import _tokenizer

    fields = {
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "smollm", "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.tokens": ["<s>", "</s>", "a"], "tokenizer.ggml.token_type": [3, 3, 1],
        "tokenizer.ggml.merges": [],
    }  # fmt: skip
    if added is not None:
        fields["tokenizer.ggml.add_bos_token"] = added
    tokenizer = _tokenizer(fields, tmp_path)
    assert tokenizer.fast.id_to_token(tokenizer.boundary) == begins


def test_what_is_no_gguf_file_is_refused(tmp_path):
    Path(tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(ValueError, match="is no whole GGUF file"):
        from_gguf(tmp_path / "model.gguf")
