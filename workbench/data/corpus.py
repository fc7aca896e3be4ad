"""A corpus, prepared once and kept: documents without near-duplicates, split by group, as memory-mapped tokens.

What is in which split depends on the documents' bytes and groups alone, never on the tokenizer or on an order of files.
Preparation is in steps that each leave whole files behind, so that one that was killed goes on; several processes do
the work of a large corpus. Its folder:

    manifest.json     sources and their checksums, what was dropped, counts, and size, sha256 and sample of every file
    tokenizer.json    what turned documents into tokens
    SPLIT.tokens      every document's boundary and tokens, one after another, little-endian uint16 or uint32
    SPLIT.lengths     bytes that each token stands for (uint16); not of the split train
    SPLIT.npz         documents: tokens, bytes, group, shelf, source; the groups' names
    SPLIT.rows-256/   how documents lie in rows of 256 tokens, and files.json, what a manifest has of each file of that;
                      made when such rows are first asked for, and not in the manifest
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import json
import os
import pickle
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from tqdm import tqdm

from workbench.config import TextConfig, nearest
from workbench.data import documents, duplicates
from workbench.data import tokenizer as tokenizers
from workbench.data.packing import Pieces, pack
from workbench.record import cache_folder, write_json, writing

RANGES = {"train": (0.0, 0.7), "select": (0.7, 0.85), "test": (0.85, 1.0)}  # of the range of the group's hash
SPLITS = (*RANGES, "same")  # "same": documents of training groups that were held out
FORMAT = 4
ALONE = 3.0  # seconds after which more processes come to help
SMALL = 64 * 1024**2  # bytes of a corpus of which all are checked whenever it is opened; of a larger one a sample
BLOCK, BLOCKS = 64 * 1024, 64  # bytes of a block, and blocks of a file, that are its sample
LOT = 4 * 1024**2  # bytes of documents that are encoded at once


class Split(NamedTuple):
    """One split's documents in the order of source, part and place."""

    tokens: np.ndarray  # of all documents, each with its boundary in front
    lengths: np.ndarray | None  # bytes that each token stands for, 0 for a boundary
    sizes: np.ndarray  # int64 [documents]: tokens without the boundary
    bytes: np.ndarray  # int64 [documents]
    group: np.ndarray  # int64 [documents], an index into groups
    groups: list[str]
    shelf: np.ndarray  # int64 [documents]: equal for documents that may share a row
    source: np.ndarray  # int64 [documents]: place in the config's sources


@dataclass(frozen=True)
class Corpus:
    folder: Path
    manifest: dict[str, Any]

    @functools.cached_property
    def tokenizer(self) -> tokenizers.Tokenizer:
        path = self.folder / "tokenizer.json"
        saved = path.read_bytes()
        if sha256(saved).hexdigest() != self.manifest["tokenizer"]:
            raise _damaged(path, "it is not the tokenizer that the tokens are of")
        return tokenizers.loaded(saved)

    def split(self, name: str) -> Split:
        """Raises ValueError for a split that is unknown, or that the corpus was prepared without, or is damaged."""
        if name not in SPLITS:
            raise ValueError(f"split {name!r} is unknown; {nearest(name, SPLITS)}")
        counts = self.manifest["splits"].get(name)
        if counts is None:
            raise ValueError(f"the corpus has no split {name!r}; set data.held_out, to 0.02 say, to have one")
        path = self.folder / name
        with np.load(f"{path}.npz") as file:
            found = {key: file[key] for key in ("sizes", "bytes", "group", "shelf", "source")}
            groups = file["groups"].tobytes().decode().split("\n")
        total = counts["tokens"] + counts["documents"]
        sizes = found["sizes"]
        if sizes.min() < 0 or sizes.sum() + len(sizes) != total:
            wrong = f"its documents have {sizes.sum() + len(sizes)} tokens with their boundaries, there are {total}"
            raise _damaged(Path(f"{path}.npz"), wrong)
        tokens = np.memmap(f"{path}.tokens", self.manifest["dtype"], "r", shape=(total,))
        lengths = None if name == "train" else np.memmap(f"{path}.lengths", "<u2", "r", shape=(total,))
        return Split(tokens, lengths, groups=groups, **found)

    def rows(self, name: str, length: int) -> Pieces:
        """How the split's documents lie in rows of this length; kept beside it."""
        place = self.folder / f"{name}.rows-{length}"
        if not (place / "files.json").is_file():
            with _alone(self.folder):
                if not (place / "files.json").is_file():
                    self._lay(name, length, place)
        _check(place, _about(place / "files.json"))
        return Pieces(*(np.load(place / f"{field}.npy", mmap_mode="r") for field in Pieces._fields))

    def _lay(self, name: str, length: int, place: Path) -> None:
        split = self.split(name)
        part = place.with_name(f".{place.name}")
        with writing(self.folder, ADVICE):
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir()
            for field, array in pack(split.sizes, split.shelf, length)._asdict().items():
                np.save(part / f"{field}.npy", array)
            write_json(part / "files.json", _files(part))
            shutil.rmtree(place, ignore_errors=True)  # a folder without files.json
            part.rename(place)


def split_of(group: str) -> str:
    """The split of a group, fixed by the hash of its name alone."""
    part = _part(group)
    return next(split for split, (low, high) in RANGES.items() if low <= part < high)


def _part(name: str) -> float:
    return int.from_bytes(sha256(name.encode()).digest()[:8], "big") / 2**64


def corpus(
    config: TextConfig, find: Callable[[str], documents.Package] | None = None, cache: Path | None = None
) -> Corpus:
    """The prepared corpus of a config's sources and tokenizer; prepared now if it never was.

    `find` tells where a package's files are, and `cache` where corpora are kept. Only sources, tokenizer and held_out
    decide what it is. Raises ValueError if a source cannot be used, a split would be empty, or kept files are damaged;
    OSError if it cannot be kept.
    """
    if not 0 <= config.held_out < 1:
        raise ValueError(f"data.held_out is a fraction of the training documents, 0 to 1; got {config.held_out}")
    parts = documents.parts(config.sources, find)
    trained = tokenizers.BPE.fullmatch(config.tokenizer)
    tokenizers.size(config.tokenizer)
    recipe = {
        "format": FORMAT,
        "splits": RANGES,
        "held_out": config.held_out,
        "duplicates": duplicates.RULES,
        "sizes": (documents.SMALLEST, documents.LARGEST),
        "tokenizer": config.tokenizer if trained else tokenizers.checksum(tokenizers.named(config.tokenizer)),
        "parts": [(part.source, part.shelf, part.checksum) for part in parts],
    }
    key = sha256(json.dumps(recipe).encode()).hexdigest()
    place = (cache or cache_folder()) / f"text-{key[:16]}"
    if not (place / "manifest.json").is_file():
        with _alone(place):
            if not (place / "manifest.json").is_file():
                _prepare(place, config, parts, key)
    return _opened(place)


def _opened(place: Path) -> Corpus:
    """Raises ValueError for a file that is not what the manifest says."""
    manifest = _about(place / "manifest.json")
    _check(place, manifest["files"], sum(each["bytes"] for each in manifest["files"].values()) <= SMALL)
    return Corpus(place, manifest)


def _files(folder: Path) -> dict[str, dict[str, Any]]:
    """Size, sha256 and sample of each of the folder's files."""
    return {
        path.name: {"bytes": path.stat().st_size, "sha256": documents.file_sha256(path), "sample": _sample(path)}
        for path in sorted(folder.iterdir())
    }


def _sample(path: Path) -> str:
    """sha256 of blocks spread evenly over a file, its first and last bytes among them; of a small file of all."""
    found = sha256()
    last = max(path.stat().st_size - BLOCK, 0)
    with path.open("rb") as file:
        for number in range(BLOCKS):
            file.seek(last * number // (BLOCKS - 1))
            found.update(file.read(BLOCK))
    return found.hexdigest()


def _check(folder: Path, files: dict[str, dict[str, Any]], thorough: bool = True) -> None:
    """Raises ValueError for a file of another size than was written or another sha256: of a sample if not thorough."""
    for name, each in files.items():
        path = folder / name
        found = path.stat().st_size if path.is_file() else "no"
        if found != each["bytes"]:
            raise _damaged(path, f"it has {found} bytes, {each['bytes']} were written")
        same = documents.file_sha256(path) == each["sha256"] if thorough else _sample(path) == each["sample"]
        if not same:
            raise _damaged(path, "its bytes are not those that were written")


def _about(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise _damaged(path, str(error)) from error


def _damaged(path: Path, wrong: str) -> ValueError:
    return ValueError(f"{path} is damaged ({wrong}); delete the folder {path.parent}, then it is prepared again")


@contextlib.contextmanager
def _alone(place: Path) -> Iterator[None]:
    """One process prepares a corpus, others wait for it; death frees the lock."""
    with writing(place.parent, ADVICE):
        place.parent.mkdir(parents=True, exist_ok=True)
        lock = place.with_suffix(".lock").open("a")
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


ADVICE = "what was prepared is intact: free some space there, or set XDG_CACHE_HOME to another folder, and run again"


# ---- preparation


def _prepare(place: Path, config: TextConfig, parts: list[documents.Part], key: str) -> None:
    work = place.with_suffix(".work")
    with writing(work, ADVICE):
        work.mkdir(exist_ok=True)
        with _whole(work / "parts.pickle") as file:
            pickle.dump((parts, config), file)
        _together(work, "read", len(parts))
        if not (work / "kept.npz").is_file():
            _choose(work, parts, config)
        if not (work / "tokenizer.json").is_file():
            trained = tokenizers.BPE.fullmatch(config.tokenizer)
            if trained:
                kept = _kept_documents(work, len(parts))
                bar = tqdm(kept, desc="text: learn tokens", unit="document", delay=ALONE)
                spoken = tokenizers.train(iter(bar), int(trained[1]))
            else:
                spoken = tokenizers.named(config.tokenizer)
            with _whole(work / "tokenizer.json") as file:
                file.write(spoken.saved())
        _together(work, "encode", len(parts))
        _finish(work, place, parts, key)


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[BinaryIO]:
    """A file to write, which has its name once it is whole, and is gone if it could not be."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with part.open("wb") as file:
            yield file
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _save(path: Path, **arrays: np.ndarray) -> None:
    with _whole(path) as file:
        np.savez(file, **arrays)


def _together(work: Path, do: str, count: int) -> None:
    """Does a step of every part that lacks it: here, and when that takes long with a process a core beside."""
    missing = [n for n in range(count) if not _made(work, do, n).is_file()]
    bar = tqdm(total=count, initial=count - len(missing), desc=f"text: {do}", unit="part", delay=ALONE)
    begun = time.monotonic()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    helpers: list[subprocess.Popen] = []
    with bar:
        try:
            for number in missing:
                if not helpers and time.monotonic() - begun > ALONE and cores > 1 and len(missing) > 2:
                    helpers = _helpers(work, do, cores)
                    while any(helper.poll() is None for helper in helpers):
                        time.sleep(0.2)
                        bar.update(len(list(work.glob(f"{do}-*.npz"))) - bar.n)
                if not _made(work, do, number).is_file():  # what a helper failed at fails here, and is raised
                    STEPS[do](work, number)
                    bar.update()
        finally:
            for helper in helpers:
                helper.kill()
                helper.wait()


def _helpers(work: Path, do: str, cores: int) -> list[subprocess.Popen]:
    command = [sys.executable, "-m", "workbench.data.corpus", str(work), do]
    return [
        subprocess.Popen([*command, str(index), str(cores)], stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL)
        for index in range(cores)
    ]


def _made(work: Path, do: str, number: int) -> Path:
    return work / f"{do}-{number:06}.npz"


@functools.lru_cache(maxsize=1)
def _parts(work: Path) -> tuple[list[documents.Part], TextConfig]:
    return pickle.loads((work / "parts.pickle").read_bytes())  # written by this user, for this


def _read(work: Path, number: int) -> None:
    """A part's documents: their bytes one after another, and what they are told apart by."""
    parts, _ = _parts(work)
    sizes, groups, names, prints, dropped = [], [], [], [], Counter()
    with _whole(work / f"content-{number:06}") as content:
        for document in documents.read(parts[number]):
            if isinstance(document, str):
                dropped[document] += 1
                continue
            content.write(document.content)
            sizes.append(len(document.content))
            groups.append(document.group)
            prints.append(duplicates.fingerprint(document.content))
            # A package's file is known by its path; any other document by what it says, wherever it lies.
            names.append(document.name if parts[number].kind == "package" else prints[-1].digest.hex())
    _save(
        _made(work, "read", number),
        sizes=np.array(sizes, np.int64),
        groups=_text(groups),
        names=_text(names),
        digests=np.frombuffer(b"".join(each.digest for each in prints), np.uint8).reshape(-1, 32),
        minhashes=np.array([each.minhash for each in prints], np.uint32).reshape(
            -1, duplicates.BANDS * duplicates.BAND
        ),
        dropped=_text([json.dumps(dropped)]),
    )


def _text(lines: list[str]) -> np.ndarray:
    return np.frombuffer("\n".join(line.replace("\n", " ") for line in lines).encode("utf-8", "replace"), np.uint8)


def _choose(work: Path, parts: list[documents.Part], config: TextConfig) -> None:
    """Which documents are kept, and in which split: those of train are looked at first, so that no copy is tested."""
    read = [np.load(_made(work, "read", number)) for number in range(len(parts))]
    contents = [_content(work, number) for number in range(len(parts))]
    place, offsets, splits = [], [], []
    for number, part in enumerate(read):
        size = part["sizes"]
        groups, names = (part[key].tobytes().decode().split("\n") if len(size) else [] for key in ("groups", "names"))
        offsets.append(np.concatenate([[0], np.cumsum(size)]))
        for at, (group, name) in enumerate(zip(groups, names, strict=True)):
            split = split_of(group)
            if split == "train" and config.held_out and _part(f"{group}\n{name}") < config.held_out:
                split = "same"
            place.append((number, at))
            splits.append(SPLITS.index(split))
    _check_splits(parts, splits, config, "")
    ranked = sorted(range(len(place)), key=lambda i: (splits[i], *place[i]))
    digests, minhashes = [part["digests"] for part in read], [part["minhashes"] for part in read]

    def prints() -> Iterator[duplicates.Print]:
        for i in tqdm(ranked, desc="text: compare", unit="document", delay=ALONE):
            number, at = place[i]
            yield duplicates.Print(digests[number][at].tobytes(), minhashes[number][at])

    def content(index: int) -> bytes:
        number, at = place[ranked[index]]
        begin, end = offsets[number][at : at + 2]
        return contents[number][begin:end].tobytes()

    kept, repeats = duplicates.distinct(prints(), content)
    chosen = [ranked[index] for index in kept]
    _check_splits(parts, [splits[i] for i in chosen], config, " once repeated documents are dropped")
    dropped = Counter(repeats)
    for part in read:
        dropped.update(json.loads(part["dropped"].tobytes()))
    _save(
        work / "kept.npz",
        part=np.array([place[i][0] for i in chosen], np.int64),
        at=np.array([place[i][1] for i in chosen], np.int64),
        split=np.array([splits[i] for i in chosen], np.int64),
        dropped=_text([json.dumps(dropped)]),
    )


def _content(work: Path, number: int) -> np.ndarray:
    path = work / f"content-{number:06}"
    return np.memmap(path, np.uint8, "r") if path.stat().st_size else np.zeros(0, np.uint8)


def _check_splits(parts: list[documents.Part], splits: list[int], config: TextConfig, when: str) -> None:
    wanted = SPLITS if config.held_out else tuple(RANGES)
    empty = [name for name in wanted if SPLITS.index(name) not in set(splits)]
    if empty:
        names = list(dict.fromkeys(part.where[0] for part in parts if part.kind == "package"))
        places = f" ({', '.join(f'{name}: {split_of(name)}' for name in names)})" if names else ""
        advice = "list more packages" if names else "give more documents, or fields of finer groups"
        raise ValueError(f"no document falls in the split {empty[0]!r}{when}{places}; {advice}")


def _kept(work: Path, number: int) -> tuple[np.ndarray, np.ndarray]:
    """(places in the part, splits) of the part's kept documents, in their order."""
    part, at, split = _all_kept(work)
    mine = slice(*np.searchsorted(part, [number, number + 1]))
    return at[mine], split[mine]


@functools.lru_cache(maxsize=1)
def _all_kept(work: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(part, place in it, split) of every kept document, by part."""
    with np.load(work / "kept.npz") as kept:
        by_part = np.argsort(kept["part"], kind="stable")
        return tuple(kept[name][by_part] for name in ("part", "at", "split"))


def _kept_documents(work: Path, count: int) -> Iterator[bytes]:
    """Of the split train: what a tokenizer is trained on."""
    for number in range(count):
        with np.load(_made(work, "read", number)) as part:
            offsets = np.concatenate([[0], np.cumsum(part["sizes"])])
        content = _content(work, number)
        for at, split in zip(*_kept(work, number), strict=True):
            if SPLITS[split] == "train":
                yield content[offsets[at] : offsets[at + 1]].tobytes()


def _encode(work: Path, number: int) -> None:
    """A part's kept documents as tokens, a file a split, as many as LOT says in memory at once."""
    spoken = tokenizers.loaded((work / "tokenizer.json").read_bytes())
    with np.load(_made(work, "read", number)) as part:
        offsets = np.concatenate([[0], np.cumsum(part["sizes"])])
        groups = part["groups"].tobytes().decode().split("\n")
    content = _content(work, number)
    places, splits = _kept(work, number)
    arrays: dict[str, np.ndarray] = {}
    for index, name in enumerate(SPLITS):
        mine = places[splits == index]
        arrays[f"{name}.bytes"] = (offsets[mine + 1] - offsets[mine]).astype(np.int64)
        lots = np.split(mine, np.flatnonzero(np.diff(np.cumsum(arrays[f"{name}.bytes"]) // LOT)) + 1)
        sizes = []
        with _whole(_tokens(work, number, name)) as tokens, _whole(_lengths(work, number, name)) as lengths:
            for lot in lots:
                for each in spoken.encode([content[offsets[at] : offsets[at + 1]].tobytes() for at in lot]):
                    tokens.write(np.concatenate([[spoken.boundary], each.ids]).astype(_dtype(spoken)).tobytes())
                    lengths.write(np.concatenate([[0], np.minimum(each.lengths, 2**16 - 1)]).astype("<u2").tobytes())
                    sizes.append(len(each.ids))
        arrays[f"{name}.sizes"] = np.array(sizes, np.int64)
        arrays[f"{name}.groups"] = _text([groups[at] for at in mine])
    _save(_made(work, "encode", number), **arrays)


def _tokens(work: Path, number: int, split: str) -> Path:
    return work / f"encode-{number:06}.{split}.tokens"


def _lengths(work: Path, number: int, split: str) -> Path:
    return work / f"encode-{number:06}.{split}.lengths"


def _append(path: Path, to: BinaryIO) -> None:
    with path.open("rb") as file:
        shutil.copyfileobj(file, to)


def _dtype(spoken: tokenizers.Tokenizer) -> str:
    return "<u2" if spoken.vocabulary <= 2**16 else "<u4"


STEPS = {"read": _read, "encode": _encode}


def _finish(work: Path, place: Path, parts: list[documents.Part], key: str) -> None:
    """The parts put together, and the manifest last; then the folder gets its name."""
    done = work / "done"
    shutil.rmtree(done, ignore_errors=True)
    done.mkdir()
    spoken = tokenizers.loaded((work / "tokenizer.json").read_bytes())
    shutil.copy(work / "tokenizer.json", done)
    shelves = {shelf: number for number, shelf in enumerate(dict.fromkeys(part.shelf for part in parts))}
    splits = {}
    for name in SPLITS:
        found: dict[str, list] = {field: [] for field in ("sizes", "bytes", "shelf", "source")}
        groups: list[str] = []
        with (done / f"{name}.tokens").open("wb") as tokens, (done / f"{name}.lengths").open("wb") as lengths:
            for number, part in enumerate(parts):
                with np.load(_made(work, "encode", number)) as file:
                    count = len(file[f"{name}.sizes"])
                    if not count:
                        continue
                    _append(_tokens(work, number, name), tokens)
                    if name != "train":
                        _append(_lengths(work, number, name), lengths)
                    found["sizes"].append(file[f"{name}.sizes"])
                    found["bytes"].append(file[f"{name}.bytes"])
                    found["shelf"].append(np.full(count, shelves[part.shelf]))
                    found["source"].append(np.full(count, part.source))
                    groups += file[f"{name}.groups"].tobytes().decode().split("\n")
        if name == "train":
            (done / "train.lengths").unlink()
        if not groups:
            (done / f"{name}.tokens").unlink()
            (done / f"{name}.lengths").unlink()
            continue
        arrays = {field: np.concatenate(values).astype(np.int64) for field, values in found.items()}
        names = {group: number for number, group in enumerate(dict.fromkeys(groups))}
        np.savez(done / f"{name}.npz", group=np.array([names[g] for g in groups]), groups=_text(list(names)), **arrays)
        splits[name] = {
            "documents": len(groups),
            "groups": len(names),
            "bytes": int(arrays["bytes"].sum()),
            "tokens": int(arrays["sizes"].sum()),
        }
    with np.load(work / "kept.npz") as kept:
        dropped = json.loads(kept["dropped"].tobytes())
    manifest = {
        "key": key,
        "checksum": sha256(json.dumps([part.checksum for part in parts]).encode()).hexdigest(),
        "sources": [
            {"source": source, "name": name, "checksum": checksum}
            for source, name, checksum in dict.fromkeys(
                (part.source, part.where[0], part.checksum.rpartition(" ")[0] or part.checksum) for part in parts
            )  # what follows the last space is which part of the file it is
        ],
        "packages": [
            {"name": part.where[0], "version": part.where[1], "split": split_of(part.where[0])}
            for part in parts
            if part.kind == "package"
        ],
        "parts": len(parts),
        "dropped": dict(sorted(dropped.items())),
        "splits": splits,
        "tokenizer": sha256((done / "tokenizer.json").read_bytes()).hexdigest(),
        "vocabulary": spoken.vocabulary,
        "dtype": _dtype(spoken),
        "files": _files(done),
    }
    write_json(done / "manifest.json", manifest)
    shutil.rmtree(place, ignore_errors=True)  # a folder without a manifest
    done.rename(place)
    shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    folder, what, first, every = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    for mine in range(first, len(_parts(folder)[0]), every):
        if not _made(folder, what, mine).is_file():
            STEPS[what](folder, mine)
