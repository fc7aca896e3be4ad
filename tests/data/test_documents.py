import gzip
import json
from hashlib import sha256

import numpy as np
import pytest

from workbench.config import Files, HuggingFace, Megatron, Packages
from workbench.data import documents
from workbench.data.documents import installed, parts, read

ROWS = [{"text": f"document {i} é", "repo": f"r{i % 3}", "stars": i} for i in range(20)]


def everything(*sources):
    return [document for part in parts(sources) for document in read(part)]


@pytest.fixture
def lines(tmp_path):
    """The rows as lines of a file of some kind."""

    def write(name):
        content = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
        if name.endswith(".gz"):
            content = gzip.compress(content)
        if name.endswith(".zst"):
            zstandard = pytest.importorskip("zstandard")
            content = zstandard.compress(content[:100]) + zstandard.compress(content[100:])  # two frames
        (tmp_path / name).write_bytes(content)
        return str(tmp_path / name)

    return write


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst"])
def test_a_line_is_a_document_whatever_the_file_is_compressed_with(lines, name):
    found = everything(Files((lines(name),), group="repo"))
    assert [document.content.decode() for document in found] == [row["text"] for row in ROWS]
    assert [document.group for document in found] == [row["repo"] for row in ROWS]


@pytest.mark.parametrize("part", [1, 30, 57, 58, 59, 1000])
def test_a_long_file_is_read_in_parts_each_line_once(lines, monkeypatch, part):
    monkeypatch.setattr(documents, "PART", part)
    source = Files((lines("a.jsonl"),))
    assert len(parts((source,))) == max(1, -(-len("".join(json.dumps(row) + "\n" for row in ROWS)) // part))
    assert [document.content.decode() for document in everything(source)] == [row["text"] for row in ROWS]


def test_a_row_of_a_parquet_file_is_a_document(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "a.parquet", row_group_size=7)
    found = everything(Files((str(tmp_path / "*.parquet"),), group="stars"))
    assert [(document.content.decode(), document.group) for document in found] == [
        (row["text"], str(row["stars"])) for row in ROWS
    ]
    with pytest.raises(ValueError, match="no column 'body' \\(it has text, repo, stars\\)"):
        everything(Files((str(tmp_path / "a.parquet"),), text="body"))


def test_a_row_of_a_local_dataset_is_a_document(lines, tmp_path, monkeypatch):
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    lines("a.jsonl")
    found = everything(HuggingFace(str(tmp_path), group="repo"))
    assert [document.content.decode() for document in found] == [row["text"] for row in ROWS]
    with pytest.raises(ValueError, match="no column 'body'; it has text, repo, stars"):
        parts((HuggingFace(str(tmp_path), text="body"),))


def test_text_files_of_a_folder_are_a_group_and_others_are_each_their_own(tmp_path):
    for name in ("one/a.txt", "one/deep/b.txt", "two/c.txt", "d.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    found = everything(Files((str(tmp_path / "**/*.txt"),)))
    groups = {document.content.decode(): document.group for document in found}
    own = "sha256:" + sha256(b"d.txt").hexdigest()
    assert groups == {"one/a.txt": "one", "one/deep/b.txt": "one", "two/c.txt": "two", "d.txt": own}


def test_a_file_that_two_globs_match_is_read_once(tmp_path):
    (tmp_path / "a.txt").write_text("once")
    assert len(everything(Files((str(tmp_path / "*"), str(tmp_path / "a.*"))))) == 1


def test_what_is_no_utf8_or_empty_is_left_out_and_said(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe")
    (tmp_path / "b.txt").write_bytes(b"")
    (tmp_path / "c.jsonl").write_text('{"text": "\\ud800"}\n\n{"text": "good"}\n')
    found = everything(Files((str(tmp_path / "*"),)))
    assert found[:3] == ["not UTF-8", "small", "not UTF-8"]
    assert found[3].content == b"good"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('{"text": "a"}\n{"text": ', "at byte 14 is no JSON"),
        ("[1]\n", "holds a list"),
        ('{"body": "a"}\n', "no field 'text' \\(it has body\\)"),
        ('{"text": 1}\n', "field 'text' is a int, not text"),
    ],
)
def test_a_line_that_is_no_document_is_named_with_its_place(tmp_path, content, says):
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(ValueError, match=f"a.jsonl.*{says}"):
        everything(Files((str(tmp_path / "a.jsonl"),)))


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.parquet"])
def test_a_file_that_is_cut_short_is_named(lines, tmp_path, name):
    if name == "a.parquet":
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / name)
    else:
        lines(name)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[:-1] if name.endswith("zst") else whole[:-30])
    with pytest.raises(ValueError, match=rf"{name} cannot be read \(.*mend it, or leave it out"):
        everything(Files((str(tmp_path / name),)))


def test_a_glob_that_matches_nothing_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"none\*' matches no file"):
        parts((Files((str(tmp_path / "none*"),)),))
    with pytest.raises(ValueError, match=r"Files\.paths is empty"):
        parts((Files(),))
    with pytest.raises(ValueError, match="holds a str; it takes Packages, Files"):
        parts(("corpus/*.txt",))


def test_a_dataset_that_is_not_there_is_named(monkeypatch, tmp_path):
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match=r"dataset .*nowhere.* could not be loaded"):
        parts((HuggingFace(str(tmp_path / "nowhere")),))


# ---- packages


@pytest.mark.parametrize("name", ["lm_eval", "LM-Eval", "architecture.workbench", "inspect-ai"])
def test_carriers_of_evaluations_are_refused(name):
    with pytest.raises(ValueError, match="holds evaluations"):
        parts((Packages(("click", name)),))


def test_a_missing_package_is_named_with_what_to_do():
    with pytest.raises(ValueError, match="pip install no-such-package-at-all"):
        installed("no-such-package-at-all")


def test_a_package_with_compiled_files_is_refused():
    with pytest.raises(ValueError, match="'numpy', which was not installed from a pure-Python wheel"):
        installed("numpy")


def test_an_installed_package_has_the_files_that_its_record_has():
    package = installed("Click")
    assert package.name == "click"
    assert "click/core.py" in package.files
    assert all(path.endswith(".py") and not path.startswith("..") for path in package.files)
    assert sha256((package.root / "click/core.py").read_bytes()).hexdigest() == package.files["click/core.py"]


# ---- Megatron


@pytest.fixture
def megatron(tmp_path):
    """Writes token files as Megatron-LM's own builder lays them out: documents of several sequences each."""

    def write(found, dtype=np.uint16, code=8):
        tokens = np.concatenate([np.array(sequence, dtype) for document in found for sequence in document])
        sizes = np.array([len(sequence) for document in found for sequence in document], np.int32)
        pointers = (np.cumsum(sizes) - sizes).astype(np.int64) * np.dtype(dtype).itemsize
        bounds = np.cumsum([0] + [len(document) for document in found]).astype(np.int64)
        header = b"MMIDIDX\x00\x00" + np.array(1, np.uint64).tobytes() + bytes([code])
        counts = np.array([len(sizes), len(bounds)], np.uint64)
        arrays = (counts, sizes, pointers, bounds)
        (tmp_path / "old.idx").write_bytes(header + b"".join(array.tobytes() for array in arrays))
        (tmp_path / "old.bin").write_bytes(tokens.tobytes())
        return str(tmp_path / "old")

    return write


def as_bytes(text):
    return [byte + 1 for byte in text]


@pytest.mark.parametrize(("dtype", "code"), [(np.uint16, 8), (np.int32, 4)])
def test_megatron_documents_are_read_back_to_text(megatron, dtype, code):
    prefix = megatron([[as_bytes(b"one "), as_bytes(b"document")], [as_bytes(b"two")]], dtype, code)
    found = everything(Megatron(prefix, "bytes"))
    assert [document.content for document in found] == [b"one document", b"two"]


def test_megatron_files_that_are_not_what_they_say_are_refused(megatron, tmp_path):
    prefix = megatron([[as_bytes(b"one")], [as_bytes(b"two")]])
    index, tokens = (tmp_path / "old.idx").read_bytes(), (tmp_path / "old.bin").read_bytes()
    (tmp_path / "old.bin").write_bytes(tokens[:-2])
    with pytest.raises(ValueError, match=r"old\.bin is truncated: it has 10 bytes and old\.idx speaks of 12"):
        parts((Megatron(prefix, "bytes"),))
    (tmp_path / "old.idx").write_bytes(index[:-8])
    with pytest.raises(ValueError, match=r"old\.idx is truncated"):
        parts((Megatron(prefix, "bytes"),))
    (tmp_path / "old.idx").write_bytes(b"something else" + index)
    with pytest.raises(ValueError, match="is no Megatron index"):
        parts((Megatron(prefix, "bytes"),))
    with pytest.raises(ValueError, match=r"new\.idx is not there"):
        parts((Megatron(str(tmp_path / "new"), "bytes"),))


def test_tokens_that_the_tokenizer_does_not_know_are_named(megatron):
    prefix = megatron([[[5, 300]]])
    with pytest.raises(ValueError, match="has token 300 and bytes knows 257; give the tokenizer that"):
        everything(Megatron(prefix, "bytes"))
