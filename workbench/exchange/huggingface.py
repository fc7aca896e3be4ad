"""Checkpoints of Hugging Face's transformers, both ways: config.json and safetensors, never pickle.

One table (workbench.exchange.families) says what a config.json means and where each parameter of ours stands in theirs;
it serves reading and writing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from workbench import pattern as patterns
from workbench.config import ModelConfig, nearest
from workbench.data.tokenizer import BOUNDARIES, Json, Tokenizer
from workbench.exchange import safetensors
from workbench.exchange.card import card
from workbench.exchange.families import FAMILIES, HEAD, Family, Refused, family_of, lost_in, norm_tensors, written
from workbench.model.language_model import LanguageModel, create
from workbench.model.names import name_of, named, restored
from workbench.record import read_json, write_json, write_text

TURNED = 64  # rows of a matrix that are transposed at a time


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
    family = family_of(raw)
    try:
        config = family.read(raw)
    except Refused as why:
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


def to_huggingface(
    model: LanguageModel,
    path: Path | str,
    tokenizer: Tokenizer | None = None,
    about: Mapping[str, Any] | None = None,
) -> str:
    """Writes a folder that transformers loads, and returns its architecture; reading it back gives the same bits.

    A tokenizer is written where it has a tokenizer.json. about: what the model card says beside the model's sizes, as
    workbench.exchange.card takes it. Raises ValueError for what transformers cannot express.
    """
    path, config = Path(path), model.config
    try:
        kind, raw = written(config)
        lost = lost_in(config, FAMILIES[kind].read(raw))
    except Refused as why:
        raise ValueError(f"transformers cannot express pattern {config.pattern!r}: {why}") from None
    if lost:
        raise ValueError(f"{kind} of transformers cannot express {lost[0]} (ours -> what it would be there)")
    family = FAMILIES[kind]
    ours = {name: np.asarray(values) for name, values in named(model).items()}
    arrays = {}
    for place in places(config, family):
        array = ours[place.ours] if place.period is None else ours[place.ours][place.period]
        for name, part in zip(place.theirs, np.split(array, np.cumsum(place.sizes)[:-1], axis=-1), strict=True):
            arrays[name] = np.empty(place.shapes()[name], part.dtype)
            if place.turned:
                _turn(part, arrays[name])
            else:
                arrays[name][...] = part.reshape(arrays[name].shape)
    path.mkdir(parents=True, exist_ok=True)
    if isinstance(tokenizer, Json):
        raw["bos_token_id"], raw["eos_token_id"] = write_tokenizer(path, tokenizer)
    safetensors.write(path / "model.safetensors", arrays)
    write_json(path / "config.json", raw)
    write_text(path / "README.md", card(config, kind, about or {}))
    return kind


def write_tokenizer(path: Path, tokenizer: Json) -> tuple[int, int]:
    """As transformers' AutoTokenizer loads it; returns the tokens that documents begin and end with."""
    boundary = tokenizer.fast.id_to_token(tokenizer.boundary)
    others = [token for token in tokenizer.ends if token != tokenizer.boundary]
    end = others[0] if others and boundary not in BOUNDARIES else tokenizer.boundary  # <s> begins, and ends nothing
    path.mkdir(parents=True, exist_ok=True)
    write_json(path / "tokenizer.json", json.loads(tokenizer.fast.to_str()))
    special = {"bos_token": boundary, "eos_token": tokenizer.fast.id_to_token(end)}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": True, **special}
    write_json(path / "tokenizer_config.json", settings)
    return tokenizer.boundary, end


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


def _turn(array: np.ndarray, into: np.ndarray) -> None:
    """into = array.T, some rows at a time, set a little apart.

    Numbers of a column that lie a power of two apart share a few places of the processor's cache, and wait for memory
    each: 4096 x 1024 of bfloat16 at once took 69 ms, this way 4 to 6 (2026-11-26).
    """
    rows, columns = array.shape
    apart = np.empty((TURNED, columns + 16), into.dtype)[:, :columns]
    for begin in range(0, rows, TURNED):
        some = apart[: rows - begin]
        some[...] = array[begin : begin + TURNED]
        into[:, begin : begin + TURNED] = some.T


def places(config: ModelConfig, family: Family) -> Iterator[Place]:
    """Every parameter of the model, layers apart."""
    shapes = _shapes(config)
    names = {"embedding": family.embedding, "output": HEAD}
    names |= {ours: theirs for ours, ((theirs,), _) in norm_tensors(family.norm).items()}
    for ours, theirs in ((ours, theirs) for ours, theirs in names.items() if ours in shapes):
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
                part, here = tensors[name], into[..., begin : begin + size]
                if place.turned:
                    _turn(part, here)
                else:
                    here[...] = part.reshape(here.shape)
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
