import gzip
import json
import random
from hashlib import sha256
from pathlib import Path

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


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.parquet"])
def test_what_stands_before_a_broken_place_comes_first_and_the_error_tells_the_place(
    lines, tmp_path, monkeypatch, name
):
    if name == "a.parquet":
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        monkeypatch.setattr(documents, "BATCH", 5)
        parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / name, row_group_size=5, compression="snappy")
        with parquet.ParquetFile(tmp_path / name) as file:
            column = file.metadata.row_group(2).column(0)
        broken, size = bytearray((tmp_path / name).read_bytes()), column.total_compressed_size
        start = column.data_page_offset if column.dictionary_page_offset is None else column.dictionary_page_offset
        broken[start : start + size] = bytes(size)
    else:
        broken = open(lines(name), "rb").read()[:-20]  # noqa: SIM115
    (tmp_path / name).write_bytes(broken)
    found = []
    with pytest.raises(ValueError, match=name) as raised:
        for part in parts((Files((str(tmp_path / name),)),)):
            for document in read(part):
                found.append(document.content.decode())
    assert 0 < len(found) < 20 and found == [row["text"] for row in ROWS[: len(found)]]
    place = sum(len(json.dumps(row)) + 1 for row in ROWS[: len(found)])
    assert (f"at byte {place} is no JSON" if name == "a.jsonl" else f"after {len(found)} documents") in str(
        raised.value
    )


def test_a_line_of_a_compressed_file_that_is_no_document_is_named_by_its_number(tmp_path):
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"text": "a"}\n\n{"text": \n'))
    with pytest.raises(ValueError, match=r"a\.jsonl\.gz in line 3 is no JSON"):
        everything(Files((str(tmp_path / "a.jsonl.gz"),)))


def test_of_a_parquet_file_a_few_rows_are_in_memory_at_once_however_large_its_row_groups_are(tmp_path, monkeypatch):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    monkeypatch.setattr(documents, "BATCH", 10)
    monkeypatch.setattr(documents, "BUFFER", 2**16)
    rng, size, path = random.Random(0), 2**13, tmp_path / "a.parquet"
    table = pyarrow.Table.from_pylist([{"text": rng.randbytes(size // 2).hex()} for _ in range(2000)])
    parquet.write_table(table, path, write_batch_size=16)  # in pages of 1 MiB, of which one at least is held
    del table
    assert parquet.read_metadata(path).num_row_groups == 1
    before, most, total = pyarrow.total_allocated_bytes(), 0, 0
    (part,) = parts((Files((str(path),)),))
    for document in read(part):
        most = max(most, pyarrow.total_allocated_bytes() - before)
        total += len(document.content)
    assert total == 2000 * size
    assert 0 < most < total / 3


@pytest.mark.parametrize(
    ("target", "why"), [("nowhere", "No such file or directory"), ("/proc/self/mem", "Input/output error")]
)
def test_a_shard_that_cannot_be_read_is_named_and_never_left_out_in_silence(lines, tmp_path, target, why):
    if target.startswith("/") and not Path(target).is_file():
        pytest.skip(f"there is no {target} on this system")
    lines("a.jsonl")
    (tmp_path / "b.jsonl").symlink_to(target)
    with pytest.raises(ValueError, match=rf"b\.jsonl cannot be read \({why}\); mend it, or leave it out"):
        parts((Files((str(tmp_path / "*.jsonl"),)),))


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


@pytest.mark.parametrize(
    ("size", "says"),
    [(9, r"old\.bin is truncated: it has 12 bytes and old\.idx speaks of 24"), (-1, "do not follow one another")],
)
def test_a_document_that_is_longer_than_the_file_is_refused(megatron, tmp_path, size, says):
    prefix = megatron([[as_bytes(b"one")], [as_bytes(b"two")]])
    index = (tmp_path / "old.idx").read_bytes()
    sizes = np.array([3, size], np.int32).tobytes()
    (tmp_path / "old.idx").write_bytes(index[:34] + sizes + index[34 + len(sizes) :])
    with pytest.raises(ValueError, match=says):
        parts((Megatron(prefix, "bytes"),))


def test_tokens_that_the_tokenizer_does_not_know_are_named(megatron):
    prefix = megatron([[[5, 300]]])
    with pytest.raises(ValueError, match="has token 300 and bytes knows 257; give the tokenizer that"):
        everything(Megatron(prefix, "bytes"))
