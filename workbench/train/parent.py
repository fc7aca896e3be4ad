"""A run that goes on from another's weights: taken over before its first step, and named in its record.

The optimizer's state and the schedule begin anew; once it has a checkpoint of its own, the run needs nothing else.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from workbench.config import RunConfig, differences
from workbench.model.names import named, restored
from workbench.record import read_json
from workbench.train.checkpoint import load_model, weights_hash


def inherit(run: RunConfig, folder: Path, model: Any) -> tuple[Any, dict[str, Any]]:
    """The model with the last weights of the run's parent, and the parent's line for result.json.

    Raises ValueError unless the parent has finished with the weights that its result.json names (and `run.parent`,
    where it has a hash), its model is the run's but for rotary_base, which no weight depends on, and its tokenizer too.
    """
    place = folder.resolve().parent / run.parent.run
    whose = f"{run.name} starts from the weights of {place}"
    result = read_json(place / "result.json") or {}
    if result.get("status") != "finished":
        found = f"its status is {result['status']!r}" if result else "it has no result.json"
        raise ValueError(f"{whose}, which is not finished ({found}); run it first")
    parent, before = load_model(place, result["steps"])
    changed = [line for line in differences(parent.model, run.model) if ".rotary_base: " not in line]
    if changed:
        raise ValueError(f"{whose}, which is another model: {changed[0]}; only rotary_base may differ")
    its, mine = (facts.get("tokenizer") for facts in (result["data"], run.data.stream("train").facts()))
    if its != mine:
        raise ValueError(
            f"{whose}, trained on the tokens of another tokenizer (sha256 {str(its)[:12]}, here {str(mine)[:12]}); "
            "name the same one, or sources that it is trained on to the same"
        )
    arrays = named(before)
    found = weights_hash(arrays)
    for named_by, wanted in (("its result.json", result["weights_hash"]), ("parent", run.parent.weights_hash)):
        if wanted and found != wanted:
            raise ValueError(
                f"{whose}, whose sha256 is {found[:12]} and not {wanted[:12]}, as {named_by} has it; bring those "
                "weights back, or extend the run as it is now"
            )
    line = {"run": result["run"], "step": result["steps"], "weights_hash": found, "relation": "extended"}
    return restored(model, arrays), line
