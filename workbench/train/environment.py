"""What a run ran on, for its record: environment.json."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax

PACKAGES = (
    "architecture-workbench",
    "workbench-kernels",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "numpy",
)
# What the weights depend on beside the code itself: where these agree, so do the weights, bit for bit.
DECISIVE = (*(f"packages.{name}" for name in PACKAGES[2:]), "machine", "cpu", "cpus", "devices", "xla_flags")


def environment() -> dict[str, Any]:
    """Python, package versions, processor, usable CPUs, devices, XLA's flags and the code's commit."""
    return {
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpu": processor(),
        "cpus": cpus(),
        "devices": [device.device_kind for device in jax.devices()],
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "git": _git(),
    }


def decisive_differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What may keep a resumed run from the weights it would have had: `name: before -> now` for each difference."""

    def find(record, name):
        for part in name.split("."):
            record = record.get(part) if isinstance(record, dict) else None
        return record

    pairs = [(name, find(before, name), find(now, name)) for name in DECISIVE]
    return [f"{name}: {old} -> {new}" for name, old, new in pairs if old != new]


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:  # run from a checkout that was not installed
        return None


def cpus() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor() -> str:
    """Its name, as far as the system tells it, with family and model where there are any: clouds call many alike."""
    path = Path("/proc/cpuinfo")
    first = path.read_text().partition("\n\n")[0].splitlines() if path.exists() else []
    says = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in first)}
    kind = [f"{word} {says[key]}" for word, key in (("family", "cpu family"), ("model", "model")) if says.get(key)]
    name = says.get("model name") or platform.processor() or platform.machine()
    return f"{name} ({', '.join(kind)})" if kind else name


def _git() -> dict[str, Any] | None:
    """Commit of this code and whether files differ from it; None outside a checkout."""

    def git(*arguments):
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.SubprocessError):
        return None
