"""Checkpoints: flat `{name: array}` of the model and of the optimizer's state, with the position in the run as JSON.

Written by Orbax while the run waits; one that was not written to its end does not count, so that a kill at any moment
costs at most the steps between two. Each carries the hash of its weights: a damaged one is found out when it is read.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Mesh

from workbench.config import RunConfig, differences, from_json, short_hash, to_json
from workbench.model.language_model import create
from workbench.model.names import named, restored, weights_hash
from workbench.train import cluster
from workbench.train.layout import divided

KEPT = 2  # the latest, beside the best on the select split


@dataclasses.dataclass
class Position:
    """Where a run stands after `step` updates, with what the next row of its log has gathered so far."""

    step: int = 0
    digest: str = ""  # of the batches read, in order
    tokens: int = 0
    seconds: float = 0.0  # of training alone: without compiling, evaluating or saving
    compile_seconds: float = 0.0
    memory_bytes: int = 0  # of the largest step, on a device
    steps: int = 0  # since the last row, as is all that follows
    loss: float = 0.0  # summed over tokens
    weight: float = 0.0
    gradient_norm: float = 0.0  # summed over steps
    implementation: dict[str, str] = dataclasses.field(default_factory=dict)  # of each operation of workbench_kernels
    parents: list[dict] = dataclasses.field(default_factory=list)  # whose weights it started from, for result.json


class Checkpoint(NamedTuple):
    model: dict[str, np.ndarray]
    optimizer: dict[str, np.ndarray]
    position: Position
    weights_hash: str


def open_checkpoints(folder: Path, keep: Sequence[int] = ()) -> ocp.CheckpointManager:
    """The checkpoints of a run's folder, for `save` and `latest`; those of the steps `keep` stay. Close it."""
    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax tells each save in a dozen lines
    policies = ocp.checkpoint_managers
    keep = policies.AnyPreservationPolicy(
        [
            policies.LatestN(KEPT),
            policies.CustomSteps(keep),
            policies.BestN(get_metric_fn=_score_of, n=1, keep_checkpoints_without_metrics=False),
        ]
    )
    # best_fn, since without one the scores are not written, and a resumed run would not know its best checkpoint.
    options = ocp.CheckpointManagerOptions(
        preservation_policy=keep,
        best_fn=_score_of,
        cleanup_tmp_directories=True,
        enable_async_checkpointing=False,  # a kill while one is written must not cost the steps since it was begun too
    )
    return ocp.CheckpointManager(_place(folder), options=options)


def save(
    checkpoints: ocp.CheckpointManager,
    run: RunConfig,
    model: Any,
    opt_state: Any,
    position: Position,
    score: float | None = None,
) -> None:
    """Returns when all is on disk. `score` (higher is better) makes it a candidate for best.

    Raises FloatingPointError, and writes nothing, if a weight is not finite. Raises OSError if it could not be written;
    what was saved earlier stays.
    """
    model, opt_state = cluster.whole((model, opt_state))
    arrays = {name: np.asarray(leaf) for name, leaf in named(model).items()}
    for name, array in arrays.items():
        if not np.isfinite(array.astype(np.float32)).all():
            raise FloatingPointError(f"parameter {name} is not finite after step {position.step}")
    state = {name: np.asarray(leaf) for name, leaf in named(opt_state).items()}
    facts = {
        "position": dataclasses.asdict(position),
        "config": to_json(run),
        "hashes": {"model": weights_hash(arrays), "optimizer": weights_hash(state)},
    }
    with _explained(checkpoints):
        saved = checkpoints.save(
            position.step,
            args=ocp.args.Composite(
                model=ocp.args.StandardSave(arrays),
                optimizer=ocp.args.StandardSave(state),
                facts=ocp.args.JsonSave(facts),
            ),
            metrics=None if score is None else {"score": float(score)},
        )
    assert saved, f"Orbax declined to save step {position.step}; it knows {checkpoints.all_steps()}"


def latest(checkpoints: ocp.CheckpointManager, run: RunConfig) -> Checkpoint | None:
    """The newest checkpoint that can be read, None if none was ever completed.

    A damaged one is named in a warning and moved out of the way (to `checkpoints/damaged/`), and the one before it
    is used. Raises ValueError when all are damaged, or when the checkpoint is of another config.
    """
    steps = sorted(checkpoints.all_steps(), reverse=True)
    for step in steps:
        try:
            facts = _facts(checkpoints, step)
            as_saved(facts["config"], run, f"the checkpoint of step {step} in {checkpoints.directory}")
            return _read(checkpoints, step, facts, ("model", "optimizer"))
        except _Damaged as damage:
            aside = Path(checkpoints.directory) / "damaged" / str(step)
            warnings.warn(
                f"the checkpoint of step {step} in {checkpoints.directory} is damaged ({damage}); it is moved to "
                f"{aside.parent.name}/{step} and the one before it is used",
                stacklevel=2,
            )
            shutil.copytree(Path(checkpoints.directory) / str(step), aside, dirs_exist_ok=True)
            checkpoints.delete(step)  # by Orbax, which would count it among those kept and refuse earlier steps
    if steps:
        raise ValueError(
            f"no checkpoint in {checkpoints.directory} can be read (they are in damaged/); "
            "delete the run's folder to start anew"
        )
    return None


def load_model(folder: Path | str, step: int | Literal["best"] | None = None) -> tuple[RunConfig, Any]:
    """The run's config and the model of its last checkpoint, of a step, or of the best step on the select split.

    Raises ValueError when there is no such checkpoint, or when it is damaged.
    """
    run, found = load(folder, step, ("model",))
    return run, put(jax.eval_shape(lambda: create(run.model, run.seed)), found.model)


def load(
    folder: Path | str, step: int | Literal["best"] | None = None, items: tuple[str, ...] = ("model", "optimizer")
) -> tuple[RunConfig, Checkpoint]:
    """As `load_model`, with the checkpoint as it was saved."""
    folder = Path(folder)
    if not _place(folder).is_dir():
        raise ValueError(f"{folder} has no checkpoints; give the folder of a run that has been trained")
    with _to_read(folder) as checkpoints:
        steps = sorted(checkpoints.all_steps())
        if not steps:
            raise ValueError(f"{folder} has no complete checkpoint")
        if step == "best":
            scores = {s: _score(folder, s) for s in steps}
            step = max((s for s in steps if scores[s] is not None), key=lambda s: scores[s], default=None)
            if step is None:
                raise ValueError(f"no checkpoint of {folder} was scored on the select split; ask for a step: {steps}")
        step = steps[-1] if step is None else step
        if step not in steps:
            raise ValueError(f"{folder} has no checkpoint of step {step}; it has {steps}")
        try:
            facts = _facts(checkpoints, step)
            return from_json(facts["config"]), _read(checkpoints, step, facts, items)
        except _Damaged as damage:
            raise ValueError(f"the checkpoint of step {step} in {folder} is damaged: {damage}") from damage


def _to_read(folder: Path) -> ocp.CheckpointManager:
    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax warns of what reading alone implies
    return ocp.CheckpointManager(_place(folder), options=ocp.CheckpointManagerOptions(read_only=True))


def hashes(folder: Path | str) -> dict[int, str]:
    """The hash of the weights of every checkpoint of a run, by step. Raises ValueError for a damaged one."""
    if not _place(Path(folder)).is_dir():
        return {}
    with _to_read(Path(folder)) as checkpoints:
        try:
            return {step: _facts(checkpoints, step)["hashes"]["model"] for step in sorted(checkpoints.all_steps())}
        except _Damaged as damage:
            raise ValueError(f"a checkpoint in {folder} is damaged: {damage}") from damage


def put(tree: Any, arrays: dict[str, np.ndarray], mesh: Mesh | None = None) -> Any:
    """The tree with the arrays of these names, on the device or divided over the mesh's."""
    if mesh is not None:
        return divided(restored(tree, arrays), mesh)
    return restored(tree, {name: jnp.array(array) for name, array in arrays.items()})


def _score_of(metrics: dict) -> float:
    return metrics["score"]


class _Damaged(Exception):
    pass


NOT_DAMAGE = (MemoryError, PermissionError)  # the checkpoint may be whole: it stays where it is


@contextlib.contextmanager
def _explained(checkpoints: ocp.CheckpointManager):
    """Turns whatever Orbax and TensorStore raise for a write that failed into an OSError that says what is left."""
    try:
        yield
    except Exception as error:
        raise OSError(
            f"a checkpoint could not be saved in {checkpoints.directory} ({_first_line(error)}); "
            f"those saved before it are intact: free some space, or make the folder writable, and run again"
        ) from error


def _first_line(error: Exception) -> str:
    line = (str(error).strip() or "no message").splitlines()[0]
    if len(line) > 300:  # TensorStore's say what was done first and why it failed last
        line = f"{line[:120]} ... {line[-160:]}"
    return f"{type(error).__name__}: {line}"


def _read(checkpoints: ocp.CheckpointManager, step: int, facts: dict, items: tuple[str, ...]) -> Checkpoint:
    try:
        found = checkpoints.restore(step, args=ocp.args.Composite(**{i: ocp.args.StandardRestore() for i in items}))
        arrays = {item: {name: np.asarray(array) for name, array in found[item].items()} for item in items}
    except NOT_DAMAGE:
        raise
    except Exception as error:  # whatever Orbax and TensorStore raise for bytes that they cannot make sense of
        raise _Damaged(_first_line(error)) from error
    for item in items:
        if weights_hash(arrays[item]) != facts["hashes"][item]:
            raise _Damaged(f"the {item}'s arrays are not those that were saved")
    return Checkpoint(
        arrays["model"], arrays.get("optimizer", {}), Position(**facts["position"]), facts["hashes"]["model"]
    )


def _facts(checkpoints: ocp.CheckpointManager, step: int) -> dict:
    try:
        facts = checkpoints.restore(step, args=ocp.args.Composite(facts=ocp.args.JsonRestore()))["facts"]
        return {name: facts[name] for name in ("position", "config", "hashes")}
    except NOT_DAMAGE:
        raise
    except Exception as error:
        raise _Damaged(_first_line(error)) from error


def _score(folder: Path, step: int) -> float | None:
    path = _place(folder) / str(step) / "metrics" / "metrics"
    return json.loads(path.read_text())["score"] if path.exists() else None


WHEN = ("evaluate_every", "checkpoint_every", "keep")  # fields that change no weight and no curve


def as_saved(saved: dict, run: RunConfig, what: str) -> RunConfig:
    """The run with the values of WHEN in `saved`, JSON of a run, which `what` has.

    Raises ValueError, naming the first difference, if they differ in anything else.
    """
    first = {each.name: saved.get(each.name, each.default) for each in dataclasses.fields(run) if each.name in WHEN}
    run = dataclasses.replace(run, **first | {"keep": tuple(first["keep"])})
    if short_hash(saved) != short_hash(run):
        first = next((d for d in differences(saved, to_json(run)) if ".file:" not in d), "unknown")
        raise ValueError(
            f"{what} belongs to another config; first difference: {first}; use another folder, or the config it has"
        )
    return run


def _place(folder: Path) -> Path:
    return folder.resolve() / "checkpoints"
