"""Files that are kept: JSON of runs and studies, whole or not at all and said so when damaged; the cache's place."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ADVICE = "checkpoints saved before are intact: free some space, or make the folder writable, and run again"


def cache_folder() -> Path:
    """What can be made again is kept here: $XDG_CACHE_HOME/workbench, or ~/.cache/workbench."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "workbench"


def read_json(path: Path) -> Any | None:
    """The file's value, None if it is not there. Raises ValueError for one that is cut short."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(f"{path} is half-written ({error}); delete the run's folder to start anew") from error


def write_json(path: Path, value: Any) -> None:
    """Whole or not at all. Raises OSError that says what is left."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a log (JSON lines), [] if it is not there; a last one that was cut short is left out.

    Raises ValueError for any other that is broken.
    """
    lines = path.read_text().splitlines() if path.exists() else []
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            if number < len(lines):
                raise ValueError(
                    f"{path} is broken in line {number} ({error}); delete the folder to start anew"
                ) from error
    return rows


def add_row(path: Path, row: dict[str, Any]) -> None:
    """Adds a row at the log's end. Raises OSError that says what is left."""
    with writing(path, ADVICE), path.open("a") as file:
        file.write(json.dumps(row) + "\n")


def keep_rows(path: Path, step: int) -> None:
    """Drops a log's rows after `step`; a log that is not there stays so."""
    if path.exists():
        write_text(path, "".join(json.dumps(row) + "\n" for row in read_rows(path) if row["step"] <= step))


def write_text(path: Path, text: str) -> None:
    """Whole or not at all. Raises OSError that says what is left."""
    part = path.with_name(f".{path.name}.part")
    with writing(path, ADVICE):
        part.write_text(text)
        os.replace(part, path)


@contextlib.contextmanager
def writing(path: Path, advice: str) -> Iterator[None]:
    """Turns an OSError into one that says what cannot be written, why, and what to do."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, f"it cannot be written ({os.strerror(error.errno)}); {advice}", str(path)) from error
