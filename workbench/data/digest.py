"""The chained digest of a data stream: what two runs must share before they may be compared (contract 5)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from hashlib import sha256

import numpy as np


def chain(previous: str, batch: Mapping[str, np.ndarray]) -> str:
    """Hex digest after every row of the batch: d_i = H(d_{i-1} || H(row i)), H = SHA-256; start from ""."""
    return link(previous, row_hashes(batch))


def link(previous: str, hashes: Iterable[bytes]) -> str:
    """Hex digest after rows of these hashes."""
    digest = bytes.fromhex(previous)
    for each in hashes:
        digest = sha256(digest + each).digest()
    return digest.hex()


def row_hashes(batch: Mapping[str, np.ndarray]) -> list[bytes]:
    """H of every row of the batch.

    A row is every named array's i-th element, in the order of the names, with the names, dtypes and shapes; so the
    digest doesn't depend on how rows are grouped into batches, and is the same on machines of either byte order.
    Raises ValueError if the arrays differ in their number of rows or hold Python objects.
    """
    arrays = {name: np.asarray(batch[name]) for name in sorted(batch)}
    shapes = {name: array.shape for name, array in arrays.items()}
    if not arrays or len({shape[:1] for shape in shapes.values()}) > 1 or () in shapes.values():
        raise ValueError(f"a batch is arrays with one row count as their first axis; got shapes {shapes}")
    columns, layout = [], []
    for name, array in arrays.items():
        if array.dtype.hasobject:
            raise ValueError(
                f"array {name!r} holds Python objects, which have no bytes to digest; give it a plain dtype"
            )
        array = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
        columns.append(
            array.reshape(len(array), -1).view(np.uint8) if array.size else np.empty((len(array), 0), np.uint8)
        )
        layout.append((name, array.dtype.str, array.shape[1:]))
    header = repr(layout).encode()
    return [sha256(header + row.tobytes()).digest() for row in np.concatenate(columns, axis=1)]
