"""Documents that repeat another, exactly or nearly, told from their bytes: every tokenizer gets the same corpus.

Exactly: equal but for white space at the ends of lines. Nearly: Jaccard similarity of the sets of 8-word shingles at
least 0.7, candidates found by minhash (Broder 1997) and then counted exactly.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from hashlib import sha256
from typing import NamedTuple
from zlib import crc32

import numpy as np

SHINGLE, JACCARD = (
    8,
    0.7,
)  # words of a shingle; shared fraction of shingles from which two documents are near-duplicates
BANDS, BAND = 20, 3  # of the minhash: a pair at the threshold is missed with probability (1 - 0.7**3)**20 = 2e-4
RULES = (SHINGLE, JACCARD, BANDS, BAND)

_multipliers, _offsets = np.random.Philox(key=0).random_raw(2 * BANDS * BAND).reshape(2, -1, 1)
_multipliers |= np.uint64(1)


class Print(NamedTuple):
    """What a document is compared by: of its text without white space at the ends of lines."""

    digest: bytes  # sha256
    minhash: np.ndarray  # uint32 [BANDS * BAND]


def plain(document: bytes) -> bytes:
    return b"\n".join(line.rstrip() for line in document.splitlines())


def fingerprint(document: bytes) -> Print:
    text = plain(document)
    mixed = ((_multipliers * shingles(text) + _offsets) >> np.uint64(32)).min(axis=1).astype(np.uint32)
    return Print(sha256(text).digest(), mixed)


def shingles(text: bytes) -> np.ndarray:
    """The sorted set of hashes of every 8 words in a row (of the whole, if there are fewer words)."""
    words = re.findall(rb"\w+", text)
    if len(words) < SHINGLE:
        return np.array([crc32(text)], np.uint64)
    hashes = np.fromiter(map(crc32, words), np.uint64, len(words))
    count = len(words) - SHINGLE + 1
    factors = np.random.Philox(key=1).random_raw(SHINGLE) | np.uint64(1)
    total = sum(hashes[k : k + count] * factor for k, factor in enumerate(factors))
    return np.unique(total ^ (total >> np.uint64(31)))


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """Shared fraction of two sorted sets."""
    shared = len(np.intersect1d(a, b, assume_unique=True))
    return shared / (len(a) + len(b) - shared)


def distinct(prints: Iterable[Print], read: Callable[[int], bytes]) -> tuple[list[int], dict[str, int]]:
    """Indices of the documents that repeat no earlier kept one, and how many did: exactly, and nearly.

    read(index) gives a document's bytes again; it is called for candidates alone.
    """
    kept, repeats = [], {"exact": 0, "near": 0}
    seen: set[bytes] = set()
    buckets: dict[tuple[int, bytes], list[int]] = defaultdict(list)
    for index, (digest, minhash) in enumerate(prints):
        if digest in seen:
            repeats["exact"] += 1
            continue
        keys = [(band, part.tobytes()) for band, part in enumerate(minhash.reshape(BANDS, BAND))]
        candidates = {other for key in keys for other in buckets.get(key, ())}
        if candidates:
            mine = shingles(plain(read(index)))
            if any(jaccard(mine, shingles(plain(read(other)))) >= JACCARD for other in candidates):
                repeats["near"] += 1
                continue
        kept.append(index)
        seen.add(digest)
        for key in keys:
            buckets[key].append(index)
    return kept, repeats
