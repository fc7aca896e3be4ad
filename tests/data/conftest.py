import random
from hashlib import sha256
from pathlib import Path

import pytest

from workbench.config import Packages, TextConfig
from workbench.data.corpus import RANGES, split_of
from workbench.data.documents import Package
from workbench.data.text import TextStream


def prose(seed, words=400):
    rng = random.Random(seed)
    return b"\n".join(b" ".join(b"w%d" % rng.randrange(10**6) for _ in range(10)) for _ in range(words // 10)) + b"\n"


class Shelf:
    """Packages in plain folders: one in each split, of three documents."""

    names = {split: next(f"p{i}" for i in range(99) if split_of(f"p{i}") == split) for split in RANGES}  # noqa: RUF012
    prose = staticmethod(prose)

    def __init__(self, root: Path):
        self.root = root
        for number, name in enumerate(self.names.values()):
            for i in range(3):
                self.put(name, f"{name}/m{i}.py", prose(10 * number + i, words=100 * (i + 1)))

    def put(self, name, path, content):
        file = self.root / name / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)

    def find(self, name):
        root = self.root / name
        files = {f.relative_to(root).as_posix(): sha256(f.read_bytes()).hexdigest() for f in sorted(root.rglob("*.py"))}
        return Package(name, "1.0", root, files)

    def documents(self, split):
        root = self.root / self.names[split]
        return {f.read_bytes() for f in root.rglob("*.py")}

    def config(self, packages=None, **fields):
        sources = (Packages(tuple(self.names.values()) if packages is None else packages),)
        return TextConfig(**{"sources": sources, "length": 61, "batch": 4} | fields)

    def stream(self, split="train", **fields):
        return TextStream(self.config(**fields), split, find=self.find, cache=self.root / "cache")


@pytest.fixture
def shelf(tmp_path):
    return Shelf(tmp_path)


@pytest.fixture
def contents():
    """Each document's bytes, put together from the targets of all rows."""

    def put_together(stream):
        batch, owner, _ = stream.read(range(stream.rows))
        parts = [[] for _ in stream.documents.sizes]
        for targets, documents in zip(batch["targets"], owner, strict=True):
            for target, document in zip(targets, documents, strict=True):
                if document >= 0:
                    parts[document].append(int(target))
        return [stream.corpus.tokenizer.decode(part) for part in parts]

    return put_together
