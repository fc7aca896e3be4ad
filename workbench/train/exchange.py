"""Run folders from foreign checkpoints, and foreign checkpoints from run folders."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from workbench.config import RunConfig, TextEvaluation, UnknownData, to_json
from workbench.count import count
from workbench.data.tokenizer import loaded
from workbench.exchange import gguf, huggingface, megatron, state_spaces
from workbench.exchange.huggingface import Imported, to_huggingface
from workbench.model.names import named
from workbench.record import read_json, write_json, write_text
from workbench.train import checkpoint
from workbench.train.environment import environment


def import_run(source: Path | str, folder: Path | str, dtype: str = "float32", **given: Any) -> dict[str, Any]:
    """Makes a run folder of a released model, and returns its result.json: a run of no steps. See `read`.

    Its data are unknown, and its parent is the source, by the hash of its tensors. Raises ValueError for what
    cannot be read, and for a folder that is not empty.
    """
    source, folder = Path(source), Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty; give a folder that is not there yet")
    (model, tokenizer, architecture), tensors = read(source, dtype, **given)
    name = source.resolve().name
    data = UnknownData(model.config.vocabulary)
    run = RunConfig("imported", name, model.config, data, TextEvaluation(), steps=1)
    counts = count(run.model, data.length)
    result = {
        "run": run.name,
        "study": run.study,
        "arm": run.arm,
        "seed": run.seed,
        "role": run.role,
        "status": "finished",
        "steps": 0,
        "tokens": 0,
        "weights_hash": checkpoint.weights_hash(named(model)),
        "parameters": counts.parameters,
        "non_embedding_parameters": counts.non_embedding_parameters,
        "train_flops_per_token": counts.train_flops_per_token,
        "state_bytes": counts.state_bytes,
        "context": counts.context,
        "parents": [
            {
                "run": name,
                "step": None,
                "weights_hash": checkpoint.weights_hash(tensors),
                "relation": "imported",
                "architecture": architecture,
            }
        ],
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", to_json(run))
    write_json(folder / "environment.json", environment())
    if tokenizer is not None:
        write_text(folder / "tokenizer.json", tokenizer.saved().decode())
    with contextlib.closing(checkpoint.open_checkpoints(folder)) as checkpoints:
        # Nobody knows the optimizer's state either, and Orbax saves no empty item.
        checkpoint.save(checkpoints, run, model, {"unknown": jnp.zeros(())}, checkpoint.Position())
    write_json(folder / "result.json", result)
    return result


def read(source: Path, dtype: str = "float32", **given: Any) -> tuple[Imported, dict[str, np.ndarray]]:
    """The model of a .gguf file, or of a folder of Megatron, the mamba authors' or transformers; its tensors as stored.

    given: arguments that a checkpoint of Megatron does not hold. Raises ValueError for any with another source.
    """
    if megatron.is_megatron(source):
        return megatron.from_megatron(source, dtype, **given), megatron.tensors(source)
    if given:
        raise ValueError(f"{source} says itself what {', '.join(given)} would: only a checkpoint of Megatron may not")
    if source.suffix == ".gguf":
        return gguf.from_gguf(source, dtype), gguf.tensors(source)
    if "d_model" in (read_json(source / "config.json") or {}) and (source / "pytorch_model.bin").is_file():
        return state_spaces.from_state_spaces(source, dtype), state_spaces.tensors(source)
    return huggingface.from_huggingface(source, dtype), huggingface.tensors(source)


def export_run(folder: Path | str, path: Path | str, step: int | Literal["best"] | None = None) -> str:
    """Writes a run's model and tokenizer as transformers loads them; returns the architecture. See `to_huggingface`."""
    _, model = checkpoint.load_model(folder, step)
    saved = Path(folder) / "tokenizer.json"
    tokenizer = loaded(saved.read_bytes()) if saved.is_file() else None
    return to_huggingface(model, path, tokenizer, _about(Path(folder), step))


def _about(folder: Path, step: int | Literal["best"] | None) -> dict[str, Any]:
    """What the model card says of a run: what it read, whose weights it began with, and where that is certified.

    Of a step before the last only which it is: tokens and digest are known of the last alone.
    """
    result = read_json(folder / "result.json") or {}
    about = {"title": result.get("run"), "study": result.get("study"), "arm": result.get("arm")}
    about |= {"seed": result.get("seed"), "parents": None}
    if parents := result.get("parents"):
        about["parents"] = ", ".join(
            f"{each['relation']}: {each['run']} (`{each['weights_hash']}`)" for each in parents
        )
    if step is not None:
        return about | {"step": step}
    certificate = read_json(folder.parent / "certificate.json") or {}
    certified = folder.resolve().name in certificate.get("claims", {}).get("runs", {})
    quoted = {
        "data digest": result.get("digest"),
        "weights": result.get("weights_hash"),
        "certificate": certificate.get("hash") if certified else None,
    }
    tokens = result.get("tokens") or None  # of an imported model unknown, not 0
    return about | {"tokens trained on": tokens} | {name: f"`{value}`" for name, value in quoted.items() if value}
