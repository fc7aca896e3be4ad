"""Which implementations each operation has, which one "auto" means here, and a record of what was chosen."""

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Literal

import jax

Implementation = Literal["auto", "mosaic_gpu", "xla", "reference"]

_AVAILABLE = {
    "causal_conv1d": ("xla", "reference"),
    "selective_scan": ("mosaic_gpu", "xla", "reference"),
    "ssd": ("mosaic_gpu", "xla", "reference"),
}
# Operations whose kernel was run and checked on a GPU (benchmarks/scan_gpu.py); "auto" takes no other.
_PROVED = frozenset({"selective_scan", "ssd"})
HOPPER = ("H100", "H200")  # in the names of devices of compute capability 9
_chosen: contextvars.ContextVar[dict[str, str] | None] = contextvars.ContextVar("chosen", default=None)


def resolve(operation: str, implementation: str = "auto", refusal: str = "") -> str:
    """The name of the implementation that `operation` runs with.

    "auto" is "mosaic_gpu" on a GPU of compute capability 9, where there is such a kernel, it was checked on a GPU and
    takes the arguments, else "xla"; a name stands for itself. refusal: why the kernel cannot take them, "" if it can.
    Raises ValueError for an operation or implementation that does not exist, naming those that do, and for a kernel
    that is asked for by name and cannot take its arguments.
    """
    if operation not in _AVAILABLE:
        raise ValueError(f"operation {operation!r} does not exist; use one of {', '.join(sorted(_AVAILABLE))}")
    available = _AVAILABLE[operation]
    if implementation == "auto":
        kernel = operation in _PROVED and not refusal and _hopper()
        implementation = "mosaic_gpu" if kernel else "xla"
    if implementation not in available:
        raise ValueError(
            f"implementation {implementation!r} of {operation} does not exist; use one of auto, {', '.join(available)}"
        )
    if implementation == "mosaic_gpu" and refusal:
        raise ValueError(f"mosaic_gpu of {operation}: {refusal}; use auto or xla")
    if (record := _chosen.get()) is not None:
        record[operation] = implementation
    return implementation


def platform() -> str:
    """What is traced for: the platform of the mesh that is set, whose devices may be elsewhere, else the default's."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def _hopper() -> bool:
    if platform() != "gpu":
        return False
    if jax.default_backend() == "gpu":
        return str(jax.devices()[0].compute_capability).startswith("9.")
    kind = jax.sharding.get_abstract_mesh().abstract_device.device_kind  # of a device that is not here
    return any(name in kind for name in HOPPER)


@contextlib.contextmanager
def recorded() -> Iterator[dict[str, str]]:
    """What each operation that is traced within chooses, by name: for the record of a run."""
    record: dict[str, str] = {}
    token = _chosen.set(record)
    try:
        yield record
    finally:
        _chosen.reset(token)
