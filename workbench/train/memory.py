"""The memory of a training step on a CPU, asked of the system once instead of every step."""

from __future__ import annotations

import ctypes

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
