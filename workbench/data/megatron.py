"""Megatron-LM's token files: prefix.bin holds the tokens, prefix.idx says what they are and where documents end."""

from __future__ import annotations

from pathlib import Path

import numpy as np

MAGIC = b"MMIDIDX\x00\x00"
TYPES = {1: np.uint8, 2: np.int8, 3: np.int16, 4: np.int32, 5: np.int64, 8: np.uint16}  # 6 and 7 are floats


def documents(prefix: str) -> tuple[np.ndarray, np.ndarray]:
    """(all tokens, mapped from the file; where each document begins, and at last where the last one ends [n + 1]).

    Layout (little-endian): magic, version 1 (8 bytes), dtype code (1), number of sequences and of document bounds (8
    each), sequence lengths (int32), their byte offsets (int64), document bounds as sequence numbers (int64).
    Raises ValueError for a file that is not of this kind, or is shorter than it says.
    """
    index, data = Path(prefix + ".idx"), Path(prefix + ".bin")
    for path in (index, data):
        if not path.is_file():
            raise ValueError(f"{path} is not there; give the prefix of Megatron's .bin and .idx")
    raw = index.read_bytes()
    if not raw.startswith(MAGIC):
        raise ValueError(f"{index} is no Megatron index: it begins with {raw[:9]!r}, not {MAGIC!r}")
    if len(raw) < 34:
        raise ValueError(f"{index} is truncated: it has {len(raw)} bytes, its header alone 34")
    version = int.from_bytes(raw[9:17], "little")
    if version != 1 or raw[17] not in TYPES:
        known = ", ".join(map(str, TYPES))
        raise ValueError(
            f"{index} has version {version} and dtype code {raw[17]}; tokens have version 1, codes {known}"
        )
    dtype = np.dtype(TYPES[raw[17]]).newbyteorder("<")
    sequences, bounds = (int(n) for n in np.frombuffer(raw, "<i8", 2, 18))
    needed = 34 + 12 * sequences + 8 * bounds
    if len(raw) < needed:
        raise ValueError(f"{index} is truncated: it has {len(raw)} bytes and speaks of {needed}")
    sizes = np.frombuffer(raw, "<i4", sequences, 34).astype(np.int64)
    offsets = np.frombuffer(raw, "<i8", sequences, 34 + 4 * sequences)
    ends = np.frombuffer(raw, "<i8", bounds, 34 + 12 * sequences)
    starts = np.concatenate([[0], np.cumsum(sizes)])
    if (sizes < 0).any() or (offsets != starts[:-1] * dtype.itemsize).any():
        raise ValueError(f"{index}: its sequences do not follow one another in {data}; such files are not read")
    if bounds == 0 or ends[0] != 0 or ends[-1] != sequences or (np.diff(ends) < 0).any():
        raise ValueError(f"{index}: its documents do not cover its {sequences} sequences")
    if data.stat().st_size < starts[-1] * dtype.itemsize:
        raise ValueError(
            f"{data} is truncated: it has {data.stat().st_size} bytes and {index.name} speaks of "
            f"{starts[-1] * dtype.itemsize}"
        )
    tokens = np.memmap(data, dtype, "r", shape=(int(starts[-1]),)) if starts[-1] else np.zeros(0, dtype)
    return tokens, starts[ends]
