"""Several processes that train one run together, each with devices of its own. The first one keeps the records.

All of them see one file system: they read the run's checkpoints, and take part in saving them. JAX is imported where it
is needed: who starts the processes' notebooks asks for their `place` alone.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from workbench.data.batches import Part

PLAIN = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


def join() -> None:
    """Joins the processes that the environment names, if it does and this one has not joined yet; before JAX is used.

    They are those of a SLURM step (srun), or of the variables JAX_COORDINATOR_ADDRESS (host:port of the first one),
    JAX_NUM_PROCESSES and JAX_PROCESS_ID (from 0). Under Ray's JaxTrainer they have joined before.
    Raises ValueError if only some of the variables are set.
    """
    import jax

    if jax.distributed.is_initialized():
        return
    given = [name for name in PLAIN if name in os.environ]
    if len(given) == len(PLAIN):
        address, count, place = (os.environ[name] for name in PLAIN)
        jax.distributed.initialize(address, int(count), int(place))
    elif given:
        missing = ", ".join(name for name in PLAIN if name not in given)
        raise ValueError(f"{', '.join(given)} in the environment without {missing}; set all three, or none")
    elif int(os.environ.get("SLURM_NTASKS", 1)) > 1 and "SLURM_STEP_NODELIST" in os.environ:
        jax.distributed.initialize()


def place() -> int:
    """Which process of its cluster this is, from the environment alone: 0 for the first, or where there is none."""
    if all(name in os.environ for name in PLAIN):
        return int(os.environ["JAX_PROCESS_ID"])
    return int(os.environ.get("SLURM_PROCID", 0)) if "SLURM_STEP_NODELIST" in os.environ else 0


def from_all(value: np.ndarray | int) -> np.ndarray:
    """The values of all processes, in their order: [processes, ...]."""
    from jax.experimental.multihost_utils import process_allgather

    return np.asarray(process_allgather(np.asarray(value))) if several() else np.asarray(value)[None]


def whole(tree: Any) -> Any:
    """The tree's arrays as this process can read them: as they are, or gathered from all."""
    from jax.experimental.multihost_utils import process_allgather

    return process_allgather(tree, tiled=True) if several() else tree


def several() -> bool:
    """Whether this process has joined others."""
    import jax

    return jax.process_count() > 1


def in_order(steps: Sequence[Sequence[bytes]], own: Part) -> list[bytes]:
    """The hashes (32 bytes) of all rows of these steps' batches, in order, from those that each process read."""
    if not several():
        return [row for rows in steps for row in rows]
    mine = np.frombuffer(b"".join(row for rows in steps for row in rows), np.uint8).reshape(-1, 32)
    places = {int(low): process for process, low in enumerate(from_all(own.low))}  # some may have read the same
    each, ends = from_all(mine), np.cumsum([len(rows) for rows in steps])[:-1]
    by_process = [np.split(rows, ends) for rows in each]
    return [
        row.tobytes() for step in range(len(steps)) for low in sorted(places) for row in by_process[places[low]][step]
    ]
