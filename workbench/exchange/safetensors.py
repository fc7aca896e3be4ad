"""The safetensors format: the header's length (8 bytes, little-endian), the header as JSON, then every array's bytes.

It holds arrays and nothing that could run. Reading maps the file into memory, so that an array costs what is looked at.
Source: the format's description in github.com/huggingface/safetensors.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import jax.numpy as jnp
import numpy as np

DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(jnp.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


def read(path: Path | str) -> dict[str, np.ndarray]:
    """The file's arrays by name, mapped and read-only. Raises ValueError for a file that is not whole."""
    path = Path(path)
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            raise ValueError(f"{path} is no whole safetensors file: {size} bytes; fetch it again")
        try:
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            entries = {
                name: (each["dtype"], tuple(each["shape"]), *each["data_offsets"]) for name, each in header.items()
            }
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} has a header that cannot be read ({error}); fetch it again") from error
    mapped = np.memmap(path, np.uint8, "r")
    out = {}
    for name, (kind, shape, begin, end) in entries.items():
        if kind not in DTYPES:
            raise ValueError(f"{path}: {name} is of dtype {kind}; those that can be read: {', '.join(DTYPES)}")
        dtype = DTYPES[kind]
        if not 0 <= begin <= end <= size - 8 - length or end - begin != dtype.itemsize * math.prod(shape):
            raise ValueError(f"{path}: {name} {shape} does not fit bytes {begin} to {end}; fetch the file again")
        out[name] = np.ndarray(shape, dtype, mapped, 8 + length + begin)
    return out


def write(path: Path | str, arrays: dict[str, np.ndarray]) -> None:
    """Writes the arrays, in the order of their names."""
    header, end = {"__metadata__": {"format": "pt"}}, 0  # transformers asks for this word
    for name in sorted(arrays):
        array = arrays[name]
        begin, end = end, end + array.nbytes
        header[name] = {"dtype": NAMES[array.dtype], "shape": list(array.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the arrays begin at a multiple of 8
    with Path(path).open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in sorted(arrays):
            file.write(np.ascontiguousarray(arrays[name]).tobytes())
