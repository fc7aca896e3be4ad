import json
import random
import warnings
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

from workbench.config import TextConfig, load_file
from workbench.data import text
from workbench.data.text import BOUNDARY, Package, TextStream, corpus, distinct, installed, split_of

NAMES = {split: next(f"p{i}" for i in range(99) if split_of(f"p{i}") == split) for split in text.SPLITS}


def prose(seed, words=400):
    rng = random.Random(seed)
    return b"\n".join(b" ".join(b"w%d" % rng.randrange(10**6) for _ in range(10)) for _ in range(words // 10)) + b"\n"


def with_changes(document, changes):
    """The document with that many words replaced, far from each other."""
    words = document.split(b" ")
    for i in range(changes):
        words[(2 * i + 1) * len(words) // (2 * changes)] = b"changed"
    return b" ".join(words)


class Shelf:
    """Packages in plain folders: one in each split, of three documents."""

    def __init__(self, root: Path):
        self.root = root
        for number, name in enumerate(NAMES.values()):
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
        root = self.root / NAMES[split]
        return {f.read_bytes() for f in root.rglob("*.py")}

    def stream(self, split="train", **fields):
        config = TextConfig(**{"packages": tuple(NAMES.values()), "length": 61, "batch": 4} | fields)
        return TextStream(config, split, find=self.find, cache=self.root / "cache")


@pytest.fixture
def shelf(tmp_path):
    return Shelf(tmp_path)


def contents(stream):
    """Each document's bytes, put together from the targets of all rows."""
    batch, owner = stream.read(range(stream.rows))
    parts = [bytearray() for _ in stream.sizes]
    for targets, documents in zip(batch["targets"], owner, strict=True):
        for target, document in zip(targets, documents, strict=True):
            if document >= 0:
                parts[document].append(target - 1)
    return [bytes(part) for part in parts]


# ---- what is in the corpus


@pytest.mark.parametrize("split", text.SPLITS)
def test_no_document_crosses_splits(shelf, split):
    assert set(contents(shelf.stream(split))) == shelf.documents(split)


@pytest.mark.parametrize("split", ["train", "select", "test"])
@pytest.mark.parametrize("length", [1, 61, 256, 100_000])
def test_every_byte_of_a_document_is_a_target_exactly_once(shelf, split, length):
    stream = shelf.stream(split, length=length)
    assert sorted(contents(stream)) == sorted(shelf.documents(split))
    assert stream.facts()["bytes"] == sum(map(len, shelf.documents(split)))


@pytest.mark.parametrize("to", ["select", "test"])
@pytest.mark.parametrize("changes", [0, 2])
def test_what_nearly_repeats_a_training_document_is_dropped_from_the_other_splits(shelf, to, changes):
    copy = with_changes(prose(2, words=300), changes)
    shelf.put(NAMES[to], "copied.py", copy)
    assert copy not in contents(shelf.stream(to))
    assert prose(2, words=300) in contents(shelf.stream("train"))
    assert shelf.stream(to).facts()["dropped"]["exact" if changes == 0 else "near"] == 1


def test_an_exact_repeat_is_told_but_for_white_space_at_the_ends_of_lines(shelf):
    shelf.put(NAMES["train"], "again.py", prose(0, words=100).replace(b"\n", b"  \r\n"))
    assert shelf.stream().facts()["dropped"]["exact"] == 1


def test_documents_that_share_less_than_the_threshold_are_kept():
    document = prose(0, words=400)  # 393 shingles; a word changed takes 8 of them away and brings 8 new ones
    assert distinct([document, with_changes(document, 7)])[0] == [0]  # Jaccard (393-56)/(393+56) = 0.75
    assert distinct([document, with_changes(document, 10)])[0] == [0, 1]  # (393-80)/(393+80) = 0.66


def test_minhash_finds_nearly_all_pairs_at_the_threshold():
    """Missed with probability 2e-4 each, so that more than one in a hundred is a fault."""
    documents = [prose(i) for i in range(100)]
    kept, repeats = distinct([*documents, *(with_changes(document, 8) for document in documents)])  # Jaccard 0.72
    assert repeats["near"] >= 99
    assert kept[:100] == list(range(100))


def test_tiny_and_huge_files_are_left_out(shelf):
    shelf.put(NAMES["train"], "tiny.py", b"x" * 255)
    shelf.put(NAMES["train"], "huge.py", b"y" * (256 * 1024 + 1))
    dropped = shelf.stream().facts()["dropped"]
    assert (dropped["small"], dropped["large"]) == (1, 1)
    assert set(contents(shelf.stream())) == {d for d in shelf.documents("train") if 256 <= len(d) <= 256 * 1024}


def test_the_checksum_is_of_paths_and_contents(shelf):
    first = shelf.stream().facts()["checksum"]
    assert shelf.stream("test", seed=5, length=7).facts()["checksum"] == first
    shelf.put(NAMES["test"], f"{NAMES['test']}/m0.py", prose(77))
    assert shelf.stream().facts()["checksum"] != first


def test_facts_are_json_and_give_versions(shelf):
    facts = json.loads(json.dumps(shelf.stream().facts()))
    assert {p["name"]: p["version"] for p in facts["packages"]} == dict.fromkeys(NAMES.values(), "1.0")


# ---- batches


def test_a_batch_is_a_pure_function_of_config_split_and_step(shelf):
    stream = shelf.stream()
    first = stream.batch(5)
    stream.batch(0)
    for again in (stream.batch(5), shelf.stream().batch(5)):
        assert all((first[name] == again[name]).all() for name in first)


@pytest.mark.parametrize("other", [{"seed": 1}, {"step": 1}])
def test_another_seed_or_step_gives_another_batch(shelf, other):
    step = other.pop("step", 0)
    assert (shelf.stream().batch(0)["tokens"] != shelf.stream(**other).batch(step)["tokens"]).any()


def test_an_epoch_holds_every_row_once_and_the_next_another_order(shelf):
    stream = shelf.stream(batch=1)
    rows = [stream.batch(step)["targets"][0].tobytes() for step in range(2 * stream.rows)]
    every = sorted(row.tobytes() for row in stream.read(range(stream.rows))[0]["targets"])
    assert sorted(rows[: stream.rows]) == every == sorted(rows[stream.rows :])
    assert rows[: stream.rows] != rows[stream.rows :]


def test_the_batch_size_does_not_change_the_stream_of_rows(shelf):
    single, many = shelf.stream(batch=1), shelf.stream(batch=7)
    steps = 2 * single.rows // 7
    rows = np.concatenate([many.batch(step)["tokens"] for step in range(steps)])
    assert (rows == np.concatenate([single.batch(step)["tokens"] for step in range(7 * steps)])).all()


def test_shapes_and_types_are_those_of_the_contract(shelf):
    batch = shelf.stream().batch(0)
    kinds = {"tokens": np.int32, "targets": np.int32, "weights": np.float32, "segments": np.int32}
    assert {name: array.dtype.type for name, array in batch.items()} == kinds
    assert all(array.shape == (4, 61) for array in batch.values())


def test_a_target_is_the_next_byte_of_the_same_document(shelf):
    """So within a segment it is the next token; a segment starts with the boundary or the byte before."""
    stream = shelf.stream()
    files = contents(stream)
    batch, owner = stream.read(range(stream.rows))
    read = dict.fromkeys(range(len(files)), 0)
    for i, at in np.argwhere(owner >= 0):
        document, position = int(owner[i, at]), read[int(owner[i, at])]
        expected = files[document][position - 1] + 1 if position else BOUNDARY
        assert batch["tokens"][i, at] == expected
        assert batch["targets"][i, at] == files[document][position] + 1
        read[document] += 1


def test_weights_are_one_on_documents_and_zero_on_padding_which_ends_a_row(shelf):
    batch, owner = (stream := shelf.stream()).read(range(stream.rows))
    assert ((batch["weights"] == 1) == (owner >= 0)).all()
    assert ((batch["segments"] > 0) == (owner >= 0)).all()
    assert (np.diff(batch["weights"], axis=1) <= 0).all()
    assert (batch["targets"][batch["weights"] == 0] == 0).all()


def test_segments_count_the_documents_of_a_row_from_one(shelf):
    batch, owner = (stream := shelf.stream(length=1000)).read(range(stream.rows))
    for segments, documents in zip(batch["segments"], owner, strict=True):
        real = segments[documents >= 0]
        assert real[0] == 1
        assert ((np.diff(real) == 0) | (np.diff(real) == 1)).all()
        assert (np.diff(real) == (np.diff(documents[documents >= 0]) != 0)).all()


def test_packing_wastes_little(shelf):
    for i in range(40):
        shelf.put(NAMES["train"], f"more{i}.py", prose(1000 + i, words=40 + 10 * i))
    stream = shelf.stream(length=256)
    batch, _ = stream.read(range(stream.rows))
    assert batch["weights"].mean() > 0.98


def test_a_row_holds_documents_of_one_package_only(shelf):
    other = next(f"q{i}" for i in range(99) if split_of(f"q{i}") == "train")
    for i in range(5):
        shelf.put(other, f"m{i}.py", prose(500 + i, words=50))
    stream = shelf.stream(packages=(*NAMES.values(), other), length=6000)
    assert stream.rows == 2
    assert [set(np.array(stream.packages)[row[row >= 0]]) for row in stream.read(range(2))[1]] == [
        {NAMES["train"]},
        {other},
    ]


# ---- the cache


def cached(shelf):
    (file,) = (shelf.root / "cache").iterdir()
    return file


def test_the_prepared_corpus_is_read_from_the_cache(shelf, monkeypatch):
    first = shelf.stream()
    monkeypatch.setattr(text, "_prepare", None)
    again = shelf.stream()
    assert again.facts() == first.facts()
    assert (again.ids == first.ids).all()
    assert again.packages == first.packages


@pytest.mark.parametrize(
    "damage",
    [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b[:-9] + b"?" + b[-8:]],
    ids=["half", "empty", "a byte"],
)
def test_a_damaged_cache_file_is_said_and_made_again(shelf, damage):
    first = shelf.stream()
    whole = cached(shelf).read_bytes()
    cached(shelf).write_bytes(damage(whole))
    with pytest.warns(UserWarning, match="damaged"):
        again = shelf.stream()
    assert (again.ids == first.ids).all()
    assert cached(shelf).read_bytes() == whole


def test_a_write_that_fails_leaves_no_file_and_the_corpus_is_used(shelf, monkeypatch):
    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr(text.os, "replace", full)
    with pytest.warns(UserWarning, match="no space left"):
        stream = shelf.stream()
    assert set(contents(stream)) == shelf.documents("train")
    assert list((shelf.root / "cache").iterdir()) == []


def test_a_changed_file_is_not_taken_from_the_cache(shelf):
    shelf.stream()
    shelf.put(NAMES["train"], "new.py", prose(99))
    assert prose(99) in contents(shelf.stream())


# ---- what is refused


def refused(shelf, match, **fields):
    with pytest.raises(ValueError, match=match):
        shelf.stream(**fields)


def test_a_split_without_packages_is_named(shelf):
    refused(shelf, "no listed package falls in the split 'select'", packages=(NAMES["train"], NAMES["test"]))


def test_a_split_left_without_documents_is_named(shelf):
    for i in range(3):
        name = NAMES["test"]
        shelf.put(name, f"{name}/m{i}.py", prose(i, words=100 * (i + 1)))  # as in the training package
    refused(shelf, "no document is left in the split 'test'")


@pytest.mark.parametrize("name", ["lm_eval", "LM-Eval", "architecture.workbench", "inspect-ai"])
def test_carriers_of_evaluations_are_refused(shelf, name):
    refused(shelf, "holds evaluations", packages=(*NAMES.values(), name))


def test_an_empty_list_is_refused(shelf):
    refused(shelf, "experiments/phonebook.py", packages=())


def test_an_unknown_split_is_refused(shelf):
    refused(shelf, "did you mean 'train'", split="trian")


@pytest.mark.parametrize("name", ["length", "batch"])
def test_sizes_below_one_are_refused(shelf, name):
    refused(shelf, f"data.{name} must be at least 1", **{name: 0})


def test_a_file_that_is_not_as_recorded_is_refused(shelf):
    def find(name):
        package = shelf.find(name)
        return package._replace(files={path: "0" * 64 for path in package.files})

    with pytest.raises(ValueError, match="reinstall the package"):
        corpus(tuple(NAMES.values()), find, shelf.root / "cache")


def test_a_missing_package_is_named_with_what_to_do():
    with pytest.raises(ValueError, match="pip install no-such-package-at-all"):
        installed("no-such-package-at-all")


def test_a_package_with_compiled_files_is_refused():
    with pytest.raises(ValueError, match="'numpy', which was not installed from a pure-Python wheel"):
        installed("numpy")


# ---- the installed packages


def test_an_installed_package_has_the_files_that_its_record_has():
    package = installed("Click")
    assert package.name == "click"
    assert "click/core.py" in package.files
    assert all(path.endswith(".py") and not path.startswith("..") for path in package.files)
    assert sha256((package.root / "click/core.py").read_bytes()).hexdigest() == package.files["click/core.py"]


def test_the_packages_of_the_study_are_pure_python_and_fill_all_splits(root):
    packages = load_file(root / "experiments" / "phonebook.py").PACKAGES
    sizes = dict.fromkeys(text.SPLITS, 0)
    for package in map(installed, packages):
        sizes[split_of(package.name)] += sum((package.root / path).stat().st_size for path in package.files)
    total = sum(sizes.values())
    assert 20 <= len(packages) <= 30
    assert 8e6 < total < 25e6
    assert min(sizes.values()) > 0.05 * total


def test_real_packages_make_a_stream(tmp_path):
    config = TextConfig(packages=("tqdm", "pexpect", "click"), length=128, batch=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stream = TextStream(config, "test", cache=tmp_path)
    assert (installed("click").root / "click/core.py").read_bytes() in contents(stream)
    assert set(stream.packages) == {"click"}
