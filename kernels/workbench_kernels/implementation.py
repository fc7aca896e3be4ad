"""Which implementations each operation has, and which one "auto" means."""

from typing import Literal

Implementation = Literal["auto", "xla", "reference"]

_AVAILABLE = {
    "causal_conv1d": ("xla", "reference"),
    "selective_scan": ("xla", "reference"),
    "ssd": ("xla", "reference"),
}


def resolve(operation: str, implementation: str = "auto") -> str:
    """The name of the implementation that `operation` runs with, for a record to quote.

    "auto" is the fastest one here, today "xla" on every platform; a name stands for itself.
    Raises ValueError for an operation or implementation that does not exist, naming those that do.
    """
    if operation not in _AVAILABLE:
        raise ValueError(f"operation {operation!r} does not exist; use one of {', '.join(sorted(_AVAILABLE))}")
    available = _AVAILABLE[operation]
    if implementation == "auto":
        return available[0]
    if implementation not in available:
        raise ValueError(
            f"implementation {implementation!r} of {operation} does not exist; use one of auto, {', '.join(available)}"
        )
    return implementation
