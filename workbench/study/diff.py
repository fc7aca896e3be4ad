"""What sets two runs apart, in the order in which it matters: config, data, first weights, code, machine, result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from workbench.config import ModelConfig, differences, from_json
from workbench.record import read_json

LARGEST = 50_000_000  # parameters of a model whose first weights are made to be compared


def diff(first: str | Path, second: str | Path) -> dict[str, list[str]]:
    """By section, a line a difference; sections without one are empty. Raises ValueError for what is no run folder."""
    a, b = (_read(Path(folder)) for folder in (first, second))
    return {
        "config": differences(a["config"], b["config"]),
        "data": _data(a["result"], b["result"]),
        "first weights": _weights(a["config"], b["config"]),
        "code and machine": [
            line for line in differences(a["environment"], b["environment"]) if not line.startswith("earlier")
        ],
        "result": _results(a["result"], b["result"]),
    }


def describe(found: dict[str, list[str]], most: int = 8) -> str:
    """The sections as text, long ones cut."""
    lines = []
    for section, each in found.items():
        if not each:
            lines.append(f"{section}: the same")
            continue
        lines += [f"{section}:", *(f"  {line}" for line in each[:most])]
        if len(each) > most:
            lines.append(f"  and {len(each) - most} more")
    return "\n".join(lines)


def _read(folder: Path) -> dict[str, Any]:
    config = read_json(folder / "config.json")
    if config is None:
        raise ValueError(f"{folder} is no run folder: it has no config.json; give one such as runs/phonebook/RUN")
    return {"config": config} | {name: read_json(folder / f"{name}.json") or {} for name in ("result", "environment")}


def _data(a: dict, b: dict) -> list[str]:
    if not a.get("digest") or not b.get("digest"):
        missing = [name for name, result in (("first", a), ("second", b)) if not result.get("digest")]
        return [f"the {' and the '.join(missing)} has not ended, so no digest of what it read is recorded"]
    if a["steps"] != b["steps"]:
        return [f"steps: {a['steps']} -> {b['steps']}: digests of streams of different lengths do not compare"]
    found = [] if a["digest"] == b["digest"] else [f"token stream: {a['digest'][:12]} -> {b['digest'][:12]}"]
    return found + differences(a.get("data", {}), b.get("data", {}))


def _weights(a: dict, b: dict) -> list[str]:
    """Of the weights that the two configs start from, made here with the code that is here; or of their parents."""
    if a.get("parent") or b.get("parent"):
        return differences(*({"parent": config.get("parent")} for config in (a, b)))
    import numpy as np

    from workbench.model.language_model import create
    from workbench.model.names import named

    models: list[ModelConfig] = [from_json(config["model"]) for config in (a, b)]
    if models[0] == models[1] and a["seed"] == b["seed"]:
        return []
    from workbench.count import count

    sizes = [count(model).parameters for model in models]
    if max(sizes) > LARGEST:
        return [f"not compared: {max(sizes):,} parameters (at most {LARGEST:,} are made for it)"]
    first, second = (named(create(model, config["seed"])) for model, config in zip(models, (a, b), strict=True))
    found = [
        f"{name}: only in the {'first' if name in first else 'second'}" for name in sorted(first.keys() ^ second.keys())
    ]
    for name in (name for name in first if name in second):
        x, y = np.asarray(first[name]), np.asarray(second[name])
        if x.shape != y.shape:
            found.append(f"{name}: {x.shape} -> {y.shape}")
        elif (x != y).any():
            found.append(f"{name}: other values, deviations {x.std():.4g} -> {y.std():.4g}")
    return found


def _results(a: dict, b: dict) -> list[str]:
    kept = (
        "status",
        "parameters",
        "non_embedding_parameters",
        "final_loss",
        "weights_hash",
        "implementation",
        "evaluation",
    )
    return differences(*({name: result.get(name) for name in kept} for result in (a, b)))
