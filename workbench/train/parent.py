"""A run that goes on from another: what it takes over before its first step, and its parent's line in its record.

Extended or continued, it starts from the parent's last weights; optimizer and schedule begin anew. Branched, it starts
from all that the parent was after a step: weights, optimizer, place in the data and rows of its log. Once it has a
checkpoint of its own, the run needs nothing else.
"""

from __future__ import annotations

import shutil
from hashlib import sha256
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from workbench.config import RunConfig, differences
from workbench.record import read_json
from workbench.train.checkpoint import Checkpoint, Position, load, put


def inherit(
    run: RunConfig, study: Path, folder: Path, model: Any, opt_state: Any, mesh: Mesh | None = None
) -> tuple[Any, Any, Position]:
    """Model, optimizer's state and position that the run starts from, its parent's line among the position's.

    study: the folder in which the parent is. folder: where the run's own log is kept.
    mesh: over whose devices all that it takes over is divided.

    Raises ValueError unless the parent has the weights that `run.parent` names, where it has a hash, and its model is
    the run's. Extended: the parent has finished with the weights that its result.json names, its tokenizer is the
    run's, and rotary_base and positions, which no weight depends on, may differ. Branched: its data are the run's.
    """
    place = study / run.parent.run
    whose = f"{run.name} starts from the weights of {place}"
    if run.parent.step:
        found = _branch(run, place, whose)
        for name in ("metrics.jsonl", "timing.jsonl"):
            shutil.copyfile(place / name, folder / name)  # of which the loop keeps what is before its first step
        position = found.position
        line = {"run": place.name, "step": run.parent.step, "weights_hash": found.weights_hash, "relation": "branched"}
        position.parents.append(line)
        return put(model, found.model, mesh), put(opt_state, found.optimizer, mesh), position
    before, result = _extension(run, place, whose)
    line = {"run": result["run"], "step": result["steps"], "weights_hash": result["weights_hash"]}
    parents = [*result.get("parents", []), line | {"relation": "extended"}]
    return put(model, before, mesh), opt_state, Position(parents=parents)


def _branch(run: RunConfig, place: Path, whose: str) -> Checkpoint:
    parent, found = load(place, run.parent.step)
    for what in ("model", "data"):
        if changed := differences(getattr(parent, what), getattr(run, what), what):
            raise ValueError(f"{whose} and cannot change {changed[0]}; a branch goes on with its parent's {what}")
    _check(found.weights_hash, run.parent.weights_hash, "parent", whose)
    return found


def _extension(run: RunConfig, place: Path, whose: str) -> tuple[dict[str, Any], dict[str, Any]]:
    result = read_json(place / "result.json") or {}
    if result.get("status") != "finished":
        found = f"its status is {result['status']!r}" if result else "it has no result.json"
        raise ValueError(f"{whose}, which is not finished ({found}); run it first")
    parent, before = load(place, result["steps"], ("model",))
    lines = differences(parent.model, run.model)
    changed = [line for line in lines if ".rotary_base: " not in line and not line.startswith("positions: ")]
    if changed:
        raise ValueError(f"{whose}, which is another model: {changed[0]}; only rotary_base and positions may differ")
    mine, its = run.data.stream("train").facts().get("tokenizer"), result.get("data", {}).get("tokenizer")
    if "data" not in result and (kept := place / "tokenizer.json").is_file():  # an imported model's
        its = sha256(kept.read_bytes()).hexdigest()
    if its != mine:
        raise ValueError(
            f"{whose}, trained on the tokens of another tokenizer (sha256 {str(its)[:12]}, here {str(mine)[:12]}); "
            "name the same one, or sources that it is trained on to the same"
        )
    _check(before.weights_hash, result["weights_hash"], "its result.json", whose)
    _check(before.weights_hash, run.parent.weights_hash, "parent", whose)
    return before.model, result


def _check(found: str, wanted: str, named_by: str, whose: str) -> None:
    if wanted and found != wanted:
        raise ValueError(
            f"{whose}, whose sha256 is {found[:12]} and not {wanted[:12]}, as {named_by} has it; bring those "
            "weights back, or go on from the run as it is now"
        )
