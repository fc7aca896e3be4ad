"""Models that transformers made (tests/exchange/peers.py), read and written without it."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from workbench.config import (
    AttentionConfig,
    Mamba2Config,
    MambaConfig,
    MLPConfig,
    ModelConfig,
    default_symbols,
    from_json,
    short_hash,
    to_json,
)
from workbench.count import count
from workbench.exchange import safetensors
from workbench.exchange.families import family_of
from workbench.exchange.huggingface import from_huggingface, to_huggingface
from workbench.model.language_model import create
from workbench.model.names import named

GOLDEN = Path(__file__).parent / "golden"
FAMILIES = sorted(folder.name for folder in GOLDEN.iterdir())
OFTEN = (  # a case of each architecture
    "llama-scaled-rotary",
    "llama-tied-biases",
    "mamba-biases",
    "mamba2-8-groups-floor",
    "nemotron_h-biases-gelu",
    "qwen3-tied",
)


@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=() if name in OFTEN else pytest.mark.slow) for name in FAMILIES]
)
def test_logits_are_those_of_transformers(family):
    model = from_huggingface(GOLDEN / family).model
    expected = safetensors.read(GOLDEN / family / "expected.safetensors")
    logits = jax.jit(lambda model, tokens: model.logits(model(tokens).hidden))(
        model, jnp.array(expected["tokens"], jnp.int32)
    )
    assert 2 < expected["logits"].std() < 4
    np.testing.assert_allclose(logits, expected["logits"], rtol=0, atol=2e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_read_is_written_bit_for_bit(family, tmp_path):
    """The tensors of transformers come back as they were, and the model that is read from them."""
    model = from_huggingface(GOLDEN / family).model
    to_huggingface(model, tmp_path)
    theirs = {}
    for file in (GOLDEN / family).glob("model*.safetensors"):
        theirs |= safetensors.read(file)
    written = safetensors.read(tmp_path / "model.safetensors")
    assert written.keys() == theirs.keys()
    for name, array in theirs.items():
        np.testing.assert_array_equal(written[name], array, err_msg=name)
    again = named(from_huggingface(tmp_path).model)
    for name, array in named(model).items():
        np.testing.assert_array_equal(again[name], array, err_msg=name)


def test_the_families_have_what_differs_between_them():
    assert len(FAMILIES) >= 10
    configs = {family: from_huggingface(GOLDEN / family).model.config for family in FAMILIES}
    layers = [layer for config in configs.values() for layer in set(config.layers)]
    for kind, name, values in (
        (AttentionConfig, "qkv_bias", {False, True}),
        (AttentionConfig, "qk_norm", {False, True}),
        (AttentionConfig, "window", {None, 5}),
        (AttentionConfig, "rotary", {0, 0.25, 0.5, 1}),
        (AttentionConfig, "rotary_scaling", {(), (4,), (8, 1, 4, 64)}),
        (MLPConfig, "activation", {"gelu_erf", "squared_relu", "swiglu"}),
        (MambaConfig, "conv_bias", {False, True}),
        (Mamba2Config, "groups", {1, 2, 4, 8}),
        (Mamba2Config, "dt_limit", {None, (0.01, 0.05), (0.02, float("inf"))}),
    ):
        assert {getattr(layer, name) for layer in layers if isinstance(layer, kind)} == values
    assert {config.tied for config in configs.values()} == {False, True}
    assert {config.norm for config in configs.values()} == {"rms", "layernorm1p"}
    for family, config in configs.items():
        shapes = jax.tree.leaves(jax.eval_shape(lambda config=config: create(config, 0)))
        assert count(config).parameters == sum(leaf.size for leaf in shapes), family
        assert from_json(json.loads(json.dumps(to_json(config)))) == config


def test_how_many_tokens_a_model_can_read_is_read_and_written_where_attention_has_positions(tmp_path):
    """max_position_embeddings means nothing to recurrences and to NemotronH's attention, whose configs have it too."""
    found = {}
    for family in FAMILIES:
        raw = json.loads((GOLDEN / family / "config.json").read_text())
        found[family] = family_of(raw).read(raw).positions
        if not family.startswith(("mamba", "nemotron_h")):
            assert found[family] == raw["max_position_embeddings"]
    assert (found["llama"], found["bamba"], found["nemotron_h"], found["mamba2"]) == (2048, 262_144, 0, 0)
    raw = json.loads((GOLDEN / "bamba" / "config.json").read_text())
    assert family_of(raw).read(raw | {"attn_layer_indices": []}).positions == 0
    model = from_huggingface(GOLDEN / "llama").model
    to_huggingface(model, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["max_position_embeddings"] == 2048
    assert from_huggingface(tmp_path).model.config == model.config
    with pytest.raises(ValueError, match=r"mamba2 .* cannot express positions: 64 -> 0"):
        to_huggingface(jax.eval_shape(lambda: create(ModelConfig("M", 64, 100, positions=64), 0)), tmp_path)
    with pytest.raises(ValueError, match=r"model.positions is -1; give how many tokens it can read, or 0 for any"):
        ModelConfig("M", 64, 100, positions=-1)


def test_configs_that_were_hashed_before_these_fields_keep_their_hashes():
    """As they were at commit 7c499e6."""
    found = {symbol: short_hash(layer) for symbol, layer in default_symbols().items()}
    assert found == {"M": "26ac1359", "S": "bcd43a6f", "*": "802f544f", "-": "5aa533ce"}
    assert short_hash(ModelConfig("M", 64, 100)) == "1a24616b"
    assert short_hash(dataclasses.replace(ModelConfig("M", 64, 100), norm_epsilon=1e-6)) != "1a24616b"


@pytest.fixture
def llama(tmp_path) -> Path:
    return Path(shutil.copytree(GOLDEN / "llama", tmp_path / "llama"))


def changed(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"model_type": "jamba"},
            "cannot be expressed as one residual layer a symbol: its Mamba has norms of dt, B and C",
        ),
        ({"model_type": "falcon_h1"}, "attention and Mamba-2 are side by side in each of its layers"),
        ({"model_type": "zamba2"}, "its attention blocks are the same weights again and again"),
        ({"model_type": "nemotron_h", "hybrid_override_pattern": "M-E*"}, r"pattern 'M-E\*' has 'E', .*E: experts"),
        ({"model_type": "lama"}, "model_type 'lama' of config.json cannot be read; did you mean 'llama'"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu', which cannot be expressed; 'silu' can"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_type is 'yarn'"),
        ({"rope_scaling": {"type": "dynamic"}, "rope_parameters": None}, "rope_type is 'dynamic', which cannot"),
        ({"rope_scaling": {"type": "linear"}, "rope_parameters": None}, "has no factor, which is needed"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ({"quantization_config": {"bits": 4}}, "quantized weights are not read"),
        ({"intermediate_size": None}, "has no intermediate_size, which is needed"),
        ({"intermediate_size": 25}, r"gate_proj\.weight has shape \(24, 16\); its config\.json needs \(25, 16\)"),
        ({"attention_bias": True}, r"lacks 8 tensors; the first is model\.layers\.0\.self_attn\.k_proj\.bias: did"),
        ({"num_hidden_layers": 1}, r"9 tensors that its config\.json has no place for; the first is model\.layers\.1"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings is true and lm_head.weight is not"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(fields, message, llama):
    changed(llama, **fields)
    with pytest.raises(ValueError, match=message):
        from_huggingface(llama)


def test_a_shard_that_is_not_there_and_pickle_are_refused(llama, tmp_path):
    (llama / "model.safetensors").rename(llama / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"has no model\.safetensors \(pickle"):
        from_huggingface(llama)
    sharded = Path(shutil.copytree(GOLDEN / "mistral-window-sharded", tmp_path / "sharded"))
    next(sharded.glob("model-00002*")).unlink()
    with pytest.raises(ValueError, match=r"has no model-00002-of-00002\.safetensors"):
        from_huggingface(sharded)


def test_weights_in_bfloat16_are_read_as_they_are(llama):
    file = llama / "model.safetensors"
    narrow = {name: np.asarray(array).astype(jnp.bfloat16) for name, array in safetensors.read(file).items()}
    file.unlink()  # it is mapped
    safetensors.write(file, narrow)
    read = named(from_huggingface(llama, "bfloat16").model)
    assert read["layers.0.mixer.out"].dtype == jnp.float32
    np.testing.assert_array_equal(
        read["layers.0.mixer.out"][1], narrow["model.layers.1.self_attn.o_proj.weight"].T.astype(np.float32)
    )


SWIGLU = {"-": MLPConfig(24, "swiglu")}


@pytest.mark.parametrize(
    ("pattern", "symbols", "fields", "message"),
    [
        (
            "S-S-",
            {},
            {},
            r"pattern 'S-S-': it can be \*- repeated, S repeated, M repeated, or M, \* and - in any order",
        ),
        ("M*-", {"*": AttentionConfig(rotary=0.5)}, {}, r"nemotron_h .* layers\.1\.rotary: 0\.5 -> 0\.0"),
        ("M-*-", SWIGLU | {"*": AttentionConfig(conv=4)}, {}, r"bamba .* layers\.2\.conv: 4 -> 0"),
        (
            "M-*",
            {"M": Mamba2Config(8, 4, dt_limit=(0.1, 1.0))},
            {},
            r"layers\.0\.dt_limit: \(0\.1, 1\.0\) -> \(0\.1, inf\)",
        ),
        ("*-", {}, {}, "llama of transformers cannot express layers.1.activation: 'gelu' -> 'swiglu'"),
        ("*-", SWIGLU | {"*": AttentionConfig(rotary=0.5)}, {}, r"layers\.0\.rotary: 0\.5 -> 1\.0"),
        ("*-", SWIGLU | {"*": AttentionConfig(conv=4)}, {}, r"layers\.0\.conv: 4 -> 0"),
        ("*-", SWIGLU | {"*": AttentionConfig(window=4, qkv_bias=True)}, {}, r"mistral .* layers\.0\.qkv_bias: True"),
        ("*-", SWIGLU, {"norm": "layernorm1p"}, r"nemotron .* layers\.1\.activation: 'swiglu' -> 'squared_relu'"),
        ("M", {}, {"norm": "layernorm1p"}, "mamba2 .* norm: 'layernorm1p' -> 'rms'"),
        ("MN", {"N": Mamba2Config(8, 4, groups=2), "M": Mamba2Config(8, 4)}, {}, r"layers\.1\.groups: 2 -> 1"),
        ("M", {"M": Mamba2Config(8, 4, norm_epsilon=1e-3)}, {}, r"layers\.0\.norm_epsilon: 0\.001 -> 1e-05"),
        ("S", {"S": MambaConfig(inner=24)}, {}, "inner 24 is no multiple of the width 16"),
    ],
)
def test_what_transformers_cannot_express_is_refused_by_name(pattern, symbols, fields, message, tmp_path):
    config = ModelConfig(pattern, 16, 37, {"M": Mamba2Config(8, 4), **symbols}, **fields)
    model = jax.eval_shape(lambda: create(config, 0))
    with pytest.raises(ValueError, match=message):
        to_huggingface(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()
