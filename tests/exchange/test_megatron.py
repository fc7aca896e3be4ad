"""Checkpoints in Megatron-LM's layout, written here of models that transformers made, against those models."""

import argparse
import dataclasses
import io
import os
import pickle
import shutil
import sys
import types
import zipfile
from collections import OrderedDict
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from workbench.command import main
from workbench.data.tokenizer import SentencePiece, loaded
from workbench.exchange import safetensors
from workbench.exchange.huggingface import from_huggingface
from workbench.exchange.megatron import from_megatron
from workbench.model.names import named
from workbench.train.exchange import read

GOLDEN = Path(__file__).parent / "golden"
HYBRID = {
    "num_attention_heads": 4,
    "group_query_attention": True,
    "num_query_groups": 2,
    "kv_channels": 6,
    "mamba_state_dim": 6,
    "position_embedding_type": "none",
    "squared_relu": True,
    "norm_epsilon": 1e-5,
}
GPT = {
    "num_attention_heads": 4,
    "group_query_attention": True,
    "num_query_groups": 2,
    "position_embedding_type": "rope",
    "norm_epsilon": 1e-4,
}
ARGUMENTS = {
    "nemotron_h": HYBRID,
    "nemotron": GPT
    | {"apply_layernorm_1p": True, "rotary_percent": 0.5, "squared_relu": True, "max_position_embeddings": 4096},
    "llama": GPT | {"swiglu": True, "max_position_embeddings": 2048},
}


PADDED = 38  # tokens, so that two ranks can divide them


# ---- a layout of its own: what each rank holds, as Megatron's modules and its converter divide it


def rows(ranks, *parts):
    """Each rank's share of matrices that stand below one another."""
    pieces = [np.split(part, ranks) for part in parts]
    return [np.concatenate([piece[rank] for piece in pieces]) for rank in range(ranks)]


def columns(ranks, matrix):
    return np.split(matrix, ranks, axis=1)


def attention(ranks, w, groups=2):
    """A group's queries, its key and its value, then the next group's."""
    q, k, v = (np.split(w[f"{each}_proj.weight"], groups) for each in "qkv")
    qkv = np.stack([np.concatenate(each) for each in zip(q, k, v, strict=True)])
    return {
        "self_attention.linear_qkv.weight": [np.concatenate(share) for share in np.split(qkv, ranks)],
        "self_attention.linear_proj.weight": columns(ranks, w["o_proj.weight"]),
    }


def mlp(ranks, w):
    enter = [w[name] for name in ("gate_proj.weight", "up_proj.weight") if name in w]
    return {
        "mlp.linear_fc1.weight": rows(ranks, *enter),
        "mlp.linear_fc2.weight": columns(ranks, w["down_proj.weight"]),
    }


def mamba(ranks, w):
    inner, heads = len(w["norm.weight"]), len(w["A_log"])
    both = (len(w["conv1d.bias"]) - inner) // 2
    z, x, B, C, dt = np.split(w["in_proj.weight"], np.cumsum([inner, inner, both, both]))
    assert len(dt) == heads
    conv = {f"mixer.{name}": rows(ranks, *np.split(w[name], [inner, inner + both]))
            for name in ("conv1d.weight", "conv1d.bias")}  # fmt: skip
    whole = {f"mixer.{name}": rows(ranks, w[name]) for name in ("A_log", "D", "dt_bias", "norm.weight")}
    out = {
        "mixer.in_proj.weight": rows(ranks, z, x, B, C, dt),
        "mixer.out_proj.weight": columns(ranks, w["out_proj.weight"]),
    }
    return conv | whole | out


def laid_out(family, ranks):
    """{parameter of Megatron: one array a rank} of one of transformers' models."""
    found = {}
    for file in (GOLDEN / family).glob("model*.safetensors"):
        found |= safetensors.read(file)
    of = lambda block: {n.removeprefix(block): a for n, a in found.items() if n.startswith(block)}  # noqa: E731
    padded = lambda a: np.pad(a, ((0, PADDED - len(a)), (0, 0)))  # noqa: E731
    hybrid = family == "nemotron_h"
    embedding, final = ("backbone.embeddings", "backbone.norm_f") if hybrid else ("model.embed_tokens", "model.norm")
    out = {
        "embedding.word_embeddings.weight": rows(ranks, padded(found[f"{embedding}.weight"])),
        "output_layer.weight": rows(ranks, padded(found["lm_head.weight"])),
    }
    for what, array in of(f"{final}.").items():
        out[f"decoder.{'final_norm' if hybrid else 'final_layernorm'}.{what}"] = [array] * ranks
    if hybrid:
        for index, kind in enumerate("M-M*-M-"):
            w = of(f"backbone.layers.{index}.mixer.")
            parts = {"M": mamba, "*": attention, "-": mlp}[kind](ranks, w)
            fused = {"M": "norm.weight", "*": "self_attention.linear_qkv.layer_norm_weight",
                     "-": "mlp.linear_fc1.layer_norm_weight"}[kind]  # fmt: skip
            parts[fused] = [found[f"backbone.layers.{index}.norm.weight"]] * ranks
            out |= {f"decoder.layers.{index}.{name}": each for name, each in parts.items()}
    else:
        for index in range(2):
            block = f"model.layers.{index}."
            parts = attention(ranks, of(f"{block}self_attn.")) | mlp(ranks, of(f"{block}mlp."))
            for ours, norm in (
                ("input_layernorm", "input_layernorm"),
                ("pre_mlp_layernorm", "post_attention_layernorm"),
            ):
                parts |= {f"{ours}.{what}": [a] * ranks for what, a in of(f"{block}{norm}.").items()}
            out |= {f"decoder.layers.{index}.{name}": each for name, each in parts.items()}
    return out


class Planted:
    """What a pickle may hold: a call."""

    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call


@pytest.fixture
def write(monkeypatch, tmp_path):
    """Writes a folder as torch.save and Megatron do, without torch: its names stand in for it."""
    torch, inside = types.ModuleType("torch"), types.ModuleType("torch._utils")
    for kind in ("FloatStorage", "BFloat16Storage", "ByteStorage"):
        setattr(torch, kind, type(kind, (), {"__module__": "torch"}))
    rebuild = lambda *_: None  # noqa: E731
    rebuild.__name__ = rebuild.__qualname__ = "_rebuild_tensor_v2"
    rebuild.__module__ = "torch._utils"
    inside._rebuild_tensor_v2 = rebuild
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "torch._utils", inside)
    kinds = {"float32": torch.FloatStorage, "uint8": torch.ByteStorage, "bfloat16": torch.BFloat16Storage}

    class Tensor:
        def __init__(self, array):
            self.array = np.ascontiguousarray(array)

        def __reduce__(self):
            strides = tuple(stride // self.array.itemsize for stride in self.array.strides)
            return rebuild, (Storage(self.array), 0, self.array.shape, strides, False, OrderedDict())

    class Storage:
        def __init__(self, array):
            self.array = array

    def save(path, value):
        file, storages = io.BytesIO(), []

        class Pickler(pickle.Pickler):
            def persistent_id(self, given):
                if not isinstance(given, Storage):
                    return None
                storages.append(given.array)
                return ("storage", kinds[str(given.array.dtype)], str(len(storages) - 1), "cpu", given.array.size)

        Pickler(file, 2).dump(value)
        path.parent.mkdir(parents=True)
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", file.getvalue())
            for key, array in enumerate(storages):
                archive.writestr(f"archive/data/{key}", array.tobytes())

    def write(layout, arguments=None, dtype=np.float32, **more):
        folder = tmp_path / "released"
        shutil.rmtree(folder, ignore_errors=True)
        ranks = max(map(len, layout.values()))
        for rank in range(ranks):
            model = OrderedDict((n, Tensor(np.asarray(p[rank]).astype(dtype))) for n, p in layout.items() if p[rank:])
            model["decoder.layers.0.mixer.in_proj._extra_state"] = io.BytesIO(b"scales")
            state = {"iteration": 0, "checkpoint_version": 3.0, "model": model, **more}
            state["rng_state"] = [
                {"np_rng_state": np.random.default_rng(0).random(3), "cuda": Tensor(np.zeros(8, np.uint8))}
            ]
            if arguments is not None:
                state["args"] = argparse.Namespace(tensor_model_parallel_size=ranks, **arguments)
            save(folder / "release" / f"mp_rank_{rank:02}" / "model_optim_rng.pt", state)
        (folder / "latest_checkpointed_iteration.txt").write_text("release")
        return folder

    return write


@pytest.mark.parametrize(("family", "ranks"), [("nemotron_h", 1), ("nemotron_h", 2), ("nemotron", 2), ("llama", 2)])
def test_a_checkpoint_of_any_number_of_ranks_is_the_model_that_was_divided(write, family, ranks):
    """The released hybrid's layout, and a GPT's with LayerNorm-1p or SwiGLU: bit for bit transformers' own."""
    expected = from_huggingface(GOLDEN / family).model
    dtype = jnp.bfloat16 if ranks == 1 else np.float32  # the released ones are in bfloat16, in one rank
    model, tokenizer, kind = from_megatron(write(laid_out(family, ranks), ARGUMENTS[family], dtype))
    symbols = dict(expected.config.symbols)
    symbols["M"] = dataclasses.replace(symbols["M"], dt_limit=None)  # which transformers alone has
    assert model.config == dataclasses.replace(expected.config, symbols=symbols, vocabulary=PADDED)
    assert (tokenizer, kind) == (None, "megatron")
    found = named(model)
    for name, array in named(expected).items():
        ours = found[name]
        if name in ("embedding", "output"):
            ours = np.moveaxis(ours, name == "output", 0)[:37]
            array = np.moveaxis(array, name == "output", 0)
        np.testing.assert_array_equal(ours, np.asarray(array).astype(dtype).astype(np.float32), err_msg=name)


def test_what_the_files_do_not_say_has_to_be_given(write, monkeypatch):
    folder = write(laid_out("nemotron_h", 1))
    said = []
    for name, value in HYBRID.items():
        if name in ("num_attention_heads", "position_embedding_type", "squared_relu"):
            with pytest.raises(ValueError, match=f"does not say {name}, and no shape does"):
                from_megatron(folder, mamba_state_dim=6, num_query_groups=2, **dict(said))
            said.append((name, value))
    read_with, said = {}, [*said, ("mamba_state_dim", 6), ("num_query_groups", 2)]

    def import_run(source, folder, dtype, **given):
        read_with.update(given)
        return {"parents": [{"architecture": "megatron"}], "parameters": 0}

    monkeypatch.setattr("workbench.train.exchange.import_run", import_run)
    assert main(["import", str(folder), "run", *(f"{name}={str(value).lower()}" for name, value in said)]) == 0
    assert read_with == dict(said)
    (model, _, kind), parts = read(folder, **read_with)
    assert model.config == from_megatron(folder, **HYBRID).model.config and kind == "megatron"
    assert parts["00.decoder.layers.3.self_attention.linear_qkv.weight"].shape == (48, 16)
    with pytest.raises(ValueError, match="says itself what mamba_state_dim would"):
        read(GOLDEN / "llama", mamba_state_dim=6)
    with pytest.raises(ValueError, match="24 channels of B and C are no groups of mamba_state_dim 128"):
        from_megatron(folder, **HYBRID | {"mamba_state_dim": 128})
    with pytest.raises(ValueError, match=r"linear_qkv\.weight has 48 rows; 2 heads and 2 times 2 of 6 need 36"):
        from_megatron(folder, **HYBRID | {"num_attention_heads": 2})


def test_nothing_that_the_files_ask_for_is_run(write, tmp_path):
    sign = tmp_path / "called"
    planted = {"hook": Planted(os.mkdir, (str(sign),)), "opened": Planted(io.open, (str(sign), "w"))}
    folder = write(laid_out("nemotron_h", 1), HYBRID | planted, optimizer=Planted(os.mkdir, (str(sign),)))
    assert from_megatron(folder).model.config.pattern == "M-M*-M-"
    assert not sign.exists()


def test_the_tokenizer_beside_the_ranks_is_the_models(write):
    sentencepiece = pytest.importorskip("sentencepiece")
    folder = write(laid_out("nemotron_h", 1), HYBRID)
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the cat sat"] * 9),
        model_writer=model,
        vocab_size=20,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (folder / "256k.model").write_bytes(model.getvalue())
    tokenizer = from_megatron(folder).tokenizer
    assert isinstance(tokenizer, SentencePiece)
    assert (
        loaded(tokenizer.saved()).encode([b"the cat"])[0].ids.tolist() == tokenizer.encode([b"the cat"])[0].ids.tolist()
    )


def without(layout, *names):
    return {name: parts for name, parts in layout.items() if not name.endswith(names)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda out: without(out, "layers.3.self_attention.linear_proj.weight"),
            r"lacks 1 tensors; .*layers\.3\.self_attention\.linear_proj",
        ),
        (
            lambda out: without(out, "layers.6.mlp.linear_fc2.weight"),
            r"lacks decoder\.layers\.6\.mlp\.linear_fc2\.weight, by",
        ),
        (
            lambda out: out | {"decoder.layers.4.mlp.linear_fc1.bias": out["decoder.final_norm.weight"]},
            r"no place for; .*fc1\.bias",
        ),
        (lambda out: {n: p for n, p in out.items() if ".layers.3." not in n}, r"decoder\.layers\.3 holds nothing"),
        (
            lambda out: out | {"decoder.final_norm.weight": [np.zeros(16), np.ones(16)]},
            "final_norm.weight differs between",
        ),
        (lambda out: {n: p[: 1 + ("D" not in n)] for n, p in out.items()}, r"mixer\.D is not in every rank"),
    ],
    ids=["missing first", "missing later", "extra", "hole", "torn", "uneven"],
)
def test_a_checkpoint_that_does_not_fit_is_refused_by_name(write, change, message):
    with pytest.raises(ValueError, match=message):
        from_megatron(write(change(laid_out("nemotron_h", 2)), HYBRID))


def test_ranks_that_are_not_there_or_of_a_pipeline_are_refused(write):
    folder = write(laid_out("nemotron_h", 2), HYBRID)
    (folder / "release" / "mp_rank_01").rename(folder / "release" / "mp_rank_02")
    with pytest.raises(
        ValueError, match=r"holds mp_rank_00, mp_rank_02: read are mp_rank_00, mp_rank_01, \.\.\. without"
    ):
        from_megatron(folder)
    shutil.rmtree(folder / "release" / "mp_rank_02")
    with pytest.raises(ValueError, match="holds 1 tensor-parallel ranks of 2; fetch the others"):
        from_megatron(folder)
    (folder / "release" / "mp_rank_00").rename(folder / "release" / "mp_rank_00_000")
    with pytest.raises(ValueError, match="bring it to one pipeline stage first"):
        from_megatron(folder)
    shutil.rmtree(folder / "release")
    with pytest.raises(ValueError, match="give the whole folder"):
        from_megatron(folder)
