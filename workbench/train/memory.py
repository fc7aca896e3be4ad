"""The memory of a training step: what it needs, and on a CPU asked of the system once instead of every step."""

from __future__ import annotations

import ctypes
from typing import Any

# glibc's malloc.h: what mallopt is told, and what to
TRIM_THRESHOLD, TOP_PAD, MMAP_MAX, ARENA_MAX = -1, -2, -4, -8
OPTIONS = {ARENA_MAX: 1, MMAP_MAX: 0, TRIM_THRESHOLD: 2**31 - 1, TOP_PAD: 2**26}


def keep_freed_memory() -> bool:
    """Lets this process keep memory that it frees; False where the C library is not glibc, and nothing changes.

    XLA frees a program's temporaries when it returns. glibc hands blocks above 32 MiB back to the system, so that the
    next step faults every page in again: half the time of a step of Mamba-2 with 16 rows of 49 tokens (LOG.md).
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # musl, macOS, Windows
        return False
    return all([mallopt(option, value) for option, value in OPTIONS.items()])


def bytes_of(compiled: Any) -> int:
    """What a compiled step holds at its peak on a device, weights and optimizer state included, as XLA counts it."""
    memory = compiled.memory_analysis()
    # results take the place of the arguments that they replace
    results = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return memory.argument_size_in_bytes + results + memory.temp_size_in_bytes
