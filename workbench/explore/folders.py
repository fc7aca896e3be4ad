"""Finds run folders by a path with wildcards, so that a notebook needs no hash."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from workbench.record import read_json


def run_folders(paths: str | Sequence[str]) -> dict[str, Path]:
    """Trained runs that match, by arm, or by their folder's name where several have one arm.

    They are looked for here and, from a notebook's folder, one level up. Raises ValueError for a path without any.
    """
    found: list[Path] = []
    for path in [paths] if isinstance(paths, str) else paths:
        whole = Path(path).is_absolute()
        places, pattern = ([Path("/")], path.lstrip("/")) if whole else ([Path(), Path("..")], path)
        matched = [each for place in places for each in sorted(place.glob(pattern)) if (each / "checkpoints").is_dir()]
        if not matched:
            raise ValueError(f"no trained run at {path}; `make demo` makes runs/phonebook, or give other folders")
        found += [each for each in matched if each not in found]
    arms = [(read_json(each / "config.json") or {}).get("arm", each.name) for each in found]
    return {arm if arms.count(arm) == 1 else each.resolve().name: each for arm, each in zip(arms, found, strict=True)}
