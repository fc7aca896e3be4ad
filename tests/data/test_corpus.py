import errno
import gzip
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

from workbench.config import Files, TextConfig
from workbench.data import corpus as corpora
from workbench.data.corpus import SPLITS, corpus, split_of
from workbench.data.text import TextStream


def words(seed, count):
    rng = random.Random(seed)
    return " ".join(f"{rng.choice('abcdefgh')}{rng.randrange(30)}" for _ in range(count))


@pytest.fixture
def library(tmp_path):
    """Forty documents of a few projects in two .jsonl files, and a config that reads them."""
    folder = tmp_path / "library"
    folder.mkdir()
    rows = [{"text": words(i, 50 + 5 * i), "repo": f"project {i % 20}"} for i in range(40)]
    for number in range(2):
        content = "".join(json.dumps(row) + "\n" for row in rows[number::2])
        (folder / f"{number}.jsonl").write_text(content)
    return TextConfig((Files((str(folder / "*.jsonl"),), group="repo"),), length=32, batch=4)


def made(config, cache):
    return corpus(config, cache=cache)


def texts(found, name):
    split = found.split(name)
    ends = np.cumsum(split.sizes + 1)
    return [found.tokenizer.decode(split.tokens[end - size : end]) for end, size in zip(ends, split.sizes, strict=True)]


def whole(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


@pytest.mark.parametrize("tokenizer", ["bytes", "bpe-300"])
def test_the_same_recipe_gives_the_same_bytes(library, tmp_path, tokenizer):
    config = TextConfig(library.sources, tokenizer=tokenizer, held_out=0.2)
    first, second = (made(config, tmp_path / name) for name in ("one", "two"))
    assert whole(first.folder) == whole(second.folder)
    assert first.folder.name == second.folder.name


def test_every_tokenizer_gets_the_same_documents_in_the_same_splits(library, tmp_path):
    plain, trained = (
        made(TextConfig(library.sources, tokenizer=t, held_out=0.2), tmp_path) for t in ("bytes", "bpe-300")
    )
    for name in SPLITS:
        one, other = plain.split(name), trained.split(name)
        assert one.bytes.tolist() == other.bytes.tolist() and one.groups == other.groups
        assert other.sizes.sum() < one.sizes.sum() == one.bytes.sum()
        if name != "train":
            assert one.lengths.sum() == other.lengths.sum() == one.bytes.sum()


def test_a_group_lies_in_one_split_but_for_what_is_held_out_of_training(library, tmp_path):
    found = made(TextConfig(library.sources, held_out=0.2), tmp_path)
    groups = {name: set(found.split(name).groups) for name in SPLITS}
    for name in ("train", "select", "test"):
        assert all(split_of(group) == name for group in groups[name])
    assert all(split_of(group) == "train" for group in groups["same"])
    assert sum(found.manifest["splits"][name]["documents"] for name in SPLITS) == 40


def test_an_order_of_files_changes_no_split(library, tmp_path):
    (source,) = library.sources
    first = made(library, tmp_path / "cache")
    folder = Path(source.paths[0]).parent
    (folder / "0.jsonl").rename(folder / "9.jsonl")
    second = made(library, tmp_path / "cache")
    for name in ("train", "select", "test"):
        one, other = first.split(name), second.split(name)
        assert sorted(one.bytes) == sorted(other.bytes) and set(one.groups) == set(other.groups)


def test_another_order_of_lines_or_another_folder_changes_no_documents_split(library, tmp_path):
    """With documents held out, which they are by what they say."""
    folder = Path(library.sources[0].paths[0]).parent
    moved, turned = tmp_path / "elsewhere" / "books", tmp_path / "turned"
    for place, order in ((moved, 1), (turned, -1)):
        place.mkdir(parents=True)
        for path in folder.glob("*.jsonl"):
            lines = path.read_text().splitlines(keepends=True)
            (place / path.name).write_text("".join(lines[::order]))
    configs = [
        TextConfig((Files((str(place / "*.jsonl"),), group="repo"),), held_out=0.3) for place in (folder, moved, turned)
    ]
    found = [made(config, tmp_path / f"cache {number}") for number, config in enumerate(configs)]
    splits = [{name: sorted(texts(each, name)) for name in SPLITS} for each in found]
    assert splits[0] == splits[1] == splits[2]
    assert len(splits[0]["same"]) > 2
    first, second, third = (each.manifest["files"] for each in found)
    assert found[0].folder.name == found[1].folder.name and first == second != third


def test_the_manifest_has_the_sha256_of_every_file_that_was_read(library, tmp_path, monkeypatch):
    monkeypatch.setattr(corpora.documents, "PART", 1500)  # a file is of several parts, and is named once
    folder = Path(library.sources[0].paths[0]).parent
    found = made(library, tmp_path).manifest
    assert found["parts"] > 2
    assert found["sources"] == [
        {"source": 0, "name": str(path), "checksum": sha256(path.read_bytes()).hexdigest()}
        for path in sorted(folder.glob("*.jsonl"))
    ]


def test_what_a_tokenizer_is_trained_on_is_the_training_split_alone(library, tmp_path, monkeypatch):
    seen = []

    def train(documents, vocabulary):
        seen.extend(documents)
        return original(iter(seen), vocabulary)

    original = corpora.tokenizers.train
    monkeypatch.setattr(corpora.tokenizers, "train", train)
    config = TextConfig(library.sources, tokenizer="bpe-300", held_out=0.2)
    found = made(config, tmp_path)
    assert sorted(map(len, seen)) == sorted(found.split("train").bytes)
    assert b"".join(found.tokenizer.decode(ids) for ids in [found.split("train").tokens]) == b"".join(seen)


def test_the_same_split_is_there_only_where_it_was_asked_for(library, tmp_path):
    with pytest.raises(ValueError, match=r"no split 'same'; set data\.held_out"):
        made(library, tmp_path).split("same")
    with pytest.raises(ValueError, match=r"held_out is a fraction.*got 1\.5"):
        made(TextConfig(library.sources, held_out=1.5), tmp_path)


def test_only_the_recipe_decides_where_a_corpus_is_kept(library, tmp_path):
    first = made(library, tmp_path)
    assert made(TextConfig(library.sources, seed=9, length=5, batch=2), tmp_path).folder == first.folder
    assert made(TextConfig(library.sources, held_out=0.3), tmp_path).folder != first.folder


# ---- when things go wrong


@pytest.mark.parametrize("name", ["train.tokens", "test.npz", "tokenizer.json", "select.lengths"])
@pytest.mark.parametrize(
    "damage", [lambda b: b[: len(b) // 2], lambda b: b[:-3] + b"?" + b[-2:]], ids=["half", "a byte"]
)
@pytest.mark.parametrize("small", [True, False], ids=["small corpus", "large corpus"])
def test_a_damaged_file_is_named_and_nothing_is_overwritten(library, tmp_path, monkeypatch, name, damage, small):
    monkeypatch.setattr(corpora, "SMALL", 2**26 if small else 0)
    path = made(library, tmp_path).folder / name
    path.write_bytes(damage(path.read_bytes()))
    kept = whole(path.parent)
    with pytest.raises(ValueError, match=rf"{name} is damaged \(.*delete the folder"):
        made(library, tmp_path)
    assert whole(path.parent) == kept


@pytest.mark.parametrize("size", [0, 1, 2**16, 2**16 + 1, 64 * 2**16])
def test_the_sample_of_a_small_file_is_all_of_it(tmp_path, monkeypatch, size):
    monkeypatch.setattr(corpora, "BLOCK", 2**10)
    size //= 2**6
    content, path = random.Random(size).randbytes(size), tmp_path / "file"
    path.write_bytes(content)
    sample = corpora._sample(path)
    for place in range(0, size, max(size // 100, 1)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        assert corpora._sample(path) != sample


def test_of_a_large_file_the_sample_has_both_ends_and_blocks_between_and_is_read_in_no_time(tmp_path):
    path = tmp_path / "file"
    with path.open("wb") as file:
        file.truncate(2**36)  # a hole: 64 GiB that are nowhere
    begun, sample = time.perf_counter(), corpora._sample(path)
    assert time.perf_counter() - begun < 1
    for place in (0, (2**36 - corpora.BLOCK) * 40 // 63 + 5, 2**36 - 1):
        with path.open("r+b") as file:
            file.seek(place)
            file.write(b"x")
            file.flush()
            assert corpora._sample(path) != sample
            file.seek(place)
            file.write(b"\0")


def test_a_tokenizer_that_the_tokens_are_not_of_is_refused(library, tmp_path):
    found = made(library, tmp_path)
    (found.folder / "tokenizer.json").write_bytes(corpora.tokenizers.train(iter([b"some text"]), 300).saved())
    with pytest.raises(
        ValueError, match=r"tokenizer\.json is damaged \(it is not the tokenizer that the tokens are of"
    ):
        _ = found.tokenizer


@pytest.mark.parametrize("size", [10**6, -1])
def test_a_document_that_is_longer_than_its_file_is_refused(library, tmp_path, size):
    found = made(library, tmp_path)
    path = found.folder / "train.npz"
    with np.load(path) as file:
        arrays = dict(file)
    arrays["sizes"][3] = size
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match=r"train\.npz is damaged \(its documents have \d+ tokens .*, there are \d+\)"):
        found.split("train")


@pytest.mark.parametrize("name", ["document.npy", "first.npy", "files.json"])
@pytest.mark.parametrize(
    "damage", [lambda b: b[: len(b) // 2], lambda b: b[:-3] + b"?" + b[-2:]], ids=["half", "a byte"]
)
def test_a_damaged_index_of_rows_is_named_and_is_made_again_once_deleted(library, tmp_path, name, damage):
    found = made(library, tmp_path)
    rows = [array.copy() for array in found.rows("train", 32)]
    path = found.folder / "train.rows-32" / name
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=rf"{name} is damaged \(.*delete the folder .*train\.rows-32, then"):
        made(library, tmp_path).rows("train", 32)
    shutil.rmtree(path.parent)
    assert all((one == other).all() for one, other in zip(rows, made(library, tmp_path).rows("train", 32), strict=True))


def test_an_index_of_rows_that_was_not_finished_is_made_anew(library, tmp_path):
    found = made(library, tmp_path)
    for name in ("train.rows-32", ".train.rows-32"):
        (found.folder / name).mkdir()
        (found.folder / name / "first.npy").write_bytes(b"half")
    assert found.rows("train", 32).first[-1] == len(found.rows("train", 32).size)
    assert {path.name for path in found.folder.iterdir() if path.is_dir()} == {"train.rows-32"}


def test_a_missing_file_is_named(library, tmp_path):
    path = made(library, tmp_path).folder / "train.tokens"
    path.unlink()
    with pytest.raises(ValueError, match=r"it has no bytes"):
        made(library, tmp_path)


def test_a_full_disk_is_said_and_what_was_prepared_is_used_when_there_is_room(library, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:

        def full(*_, **__):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        patched.setitem(corpora.STEPS, "encode", full)
        with pytest.raises(OSError, match=r"cannot be written \(No space left.*XDG_CACHE_HOME"):
            made(library, tmp_path)
    read = []
    monkeypatch.setitem(corpora.STEPS, "read", lambda *given: read.append(given))
    assert made(library, tmp_path).manifest["splits"]["train"]["documents"] > 0
    assert read == []


FULL_DISK = """
import json, resource, sys
from hashlib import sha256
from pathlib import Path
from workbench.config import Files, TextConfig
from workbench.data.corpus import corpus

def kept():
    files = {str(p.relative_to(cache)): p for p in cache.rglob("*") if p.is_file()}
    return {name: sha256(p.read_bytes()).hexdigest() for name, p in files.items() if "/done/" not in name}

def attempt(size, work):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))  # no file grows past this
    before, said = kept(), ""
    try:
        work()
    except OSError as error:
        said = str(error)
    after = kept()
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    told.append({"said": said, "before": before, "after": after})

cache, told = Path(sys.argv[2]), []
source = Files((sys.argv[1],), group="repo")
other = corpus(TextConfig((source,), held_out=0.2), cache=cache)
config = TextConfig((source,), tokenizer="bpe-300")
for size in (100, 2000, 11_000, 14_000, 20_000):
    attempt(size, lambda: corpus(config, cache=cache))
attempt(100, lambda: other.rows("train", 32))
print(json.dumps(told))
"""


def test_a_disk_that_is_full_at_any_step_is_said_and_what_was_there_stays(library, tmp_path):
    """Files that may not grow past a size, larger each time, so that preparation ends at one step after another."""
    command = [sys.executable, "-c", FULL_DISK, *library.sources[0].paths, str(tmp_path / "full")]
    out = subprocess.run(command, capture_output=True, text=True, timeout=200, check=True)
    told = json.loads(out.stdout)
    for each in told:
        assert "it cannot be written (File too large); what was prepared is intact: free some space" in each["said"]
        assert str(tmp_path / "full") in each["said"]
        # What describes the preparation is written each time, with the same bytes; nothing half-written is left.
        assert each["before"].items() <= each["after"].items()
        assert not any(Path(name).name.startswith(".") for name in each["after"])
    reached = [{Path(name).name.split("-")[0] for name in each["after"] if ".work/" in name} for each in told]
    assert reached[0] == set() and {"content", "read", "kept.npz", "tokenizer.json", "encode"} <= reached[-2]
    assert len({len(each["after"]) for each in told[:-1]}) > 3  # at several steps
    for config in (TextConfig(library.sources, held_out=0.2), TextConfig(library.sources, tokenizer="bpe-300")):
        one, other = (made(config, tmp_path / name) for name in ("full", "empty"))
        assert whole(one.folder) == whole(other.folder) and one.folder.name == other.folder.name
        assert all((a == b).all() for a, b in zip(one.rows("train", 32), other.rows("train", 32), strict=True))


def test_an_unreadable_source_is_named_and_the_rest_of_the_work_is_kept(library, tmp_path):
    (source,) = library.sources
    path = Path(source.paths[0]).parent / "1.jsonl"
    good = path.read_text()
    path.write_text(good[:-9])
    with pytest.raises(ValueError, match=r"1\.jsonl at byte .* is no JSON"):
        made(library, tmp_path)
    path.write_text(good)
    assert made(library, tmp_path).manifest["splits"]["train"]["documents"] > 0


def test_preparation_that_is_killed_goes_on_and_gives_the_same_bytes(library, tmp_path):
    """Killed as soon as something is there, then at random moments, again and again, until it is through."""
    config = TextConfig(library.sources, tokenizer="bpe-300")
    code = (
        "import sys, time; from workbench.data import corpus as c; from workbench.config import Files, TextConfig\n"
        "for name, step in list(c.STEPS.items()):\n"
        "    c.STEPS[name] = lambda work, n, step=step: (time.sleep(0.15), step(work, n))\n"
        f"c.corpus(TextConfig((Files({library.sources[0].paths!r}, group='repo'),), tokenizer='bpe-300'), "
        f"cache=c.Path({str(tmp_path / 'killed')!r}))\n"
    )
    rng, killed = random.Random(0), 0
    while True:
        process = subprocess.Popen([sys.executable, "-c", code])
        while not killed and process.poll() is None and not any((tmp_path / "killed").rglob("*")):
            time.sleep(0.01)
        seconds = rng.uniform(0.3, 1.2) * 1.2**killed if killed else 0.05  # longer each time: a busy machine ends too
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            killed += 1
            continue
        break
    assert process.returncode == 0 and killed > 0
    assert whole(made(config, tmp_path / "killed").folder) == whole(made(config, tmp_path / "left alone").folder)


def test_processes_that_help_give_the_same_bytes(library, tmp_path, monkeypatch):
    monkeypatch.setattr(corpora.documents, "PART", 1500)
    alone = whole(made(library, tmp_path / "alone").folder)
    monkeypatch.setattr(corpora, "ALONE", 0.0)
    assert whole(made(library, tmp_path / "helped").folder) == alone


def test_every_step_that_takes_long_shows_how_far_it_is(library, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(corpora, "ALONE", 0.0)
    made(TextConfig(library.sources, tokenizer="bpe-300"), tmp_path)
    shown = capsys.readouterr().err
    assert all(f"text: {step}:" in shown for step in ("read", "compare", "learn tokens", "encode"))


def test_what_a_helper_raises_is_raised(library, tmp_path, monkeypatch):
    monkeypatch.setattr(corpora.documents, "PART", 1500)
    monkeypatch.setattr(corpora, "ALONE", 0.0)
    path = Path(library.sources[0].paths[0]).parent / "1.jsonl"
    path.write_text(path.read_text()[:-9])
    with pytest.raises(ValueError, match=r"1\.jsonl at byte .* is no JSON"):
        made(library, tmp_path)


def test_what_a_helper_that_was_killed_left_undone_is_done_all_the_same(library, tmp_path, monkeypatch):
    alone = whole(made(library, tmp_path / "alone").folder)
    monkeypatch.setattr(corpora.documents, "PART", 1500)
    monkeypatch.setattr(corpora, "ALONE", 0.0)
    killed = [sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"]
    monkeypatch.setattr(corpora, "_helpers", lambda *_: [subprocess.Popen(killed)])
    helped = whole(made(library, tmp_path / "helped").folder)
    assert {name for name in alone if helped[name] != alone[name]} == {"manifest.json"}  # it counts parts


def test_two_processes_that_need_a_corpus_prepare_it_once(library, tmp_path):
    code = (
        "from workbench.data import corpus as c; from workbench.config import Files, TextConfig\n"
        "import time\n"
        "step = c.STEPS['read']\n"
        "c.STEPS['read'] = lambda work, n: (time.sleep(0.3), print('read'), step(work, n))\n"
        f"c.corpus(TextConfig((Files({library.sources[0].paths!r}, group='repo'),)), cache=c.Path({str(tmp_path)!r}))\n"
    )
    both = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) for _ in range(2)]
    assert sum(process.communicate()[0].count(b"read") for process in both) == 2  # of two files
    assert all(process.returncode == 0 for process in both)


@pytest.mark.parametrize("name", ["all.jsonl", "all.jsonl.gz", "all.jsonl.zst", "all.parquet"])
def test_a_large_file_is_prepared_with_little_of_it_in_memory(tmp_path, monkeypatch, name):
    """The most that Python holds in any step but the comparison, which maps what it compares from the disk."""
    monkeypatch.setattr(corpora, "LOT", 2**16)
    monkeypatch.setattr(corpora.documents, "BATCH", 10)
    size, path = 2**14, tmp_path / name
    rows = [{"text": random.Random(number).randbytes(size // 2).hex()} for number in range(600)]
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow.parquet").write_table(pytest.importorskip("pyarrow").Table.from_pylist(rows), path)
    elif name.endswith("zst"):
        path.write_bytes(pytest.importorskip("zstandard").compress(content))
    else:
        path.write_bytes(gzip.compress(content, 1) if name.endswith("gz") else content)
    del rows, content
    peaks = {}

    def traced(step, work):
        def run(*given):
            tracemalloc.start()
            try:
                step(*given)
                peaks[work] = tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()

        return run

    for work, step in list(corpora.STEPS.items()):
        monkeypatch.setitem(corpora.STEPS, work, traced(step, work))
    monkeypatch.setattr(corpora, "_finish", traced(corpora._finish, "finish"))
    found = made(TextConfig((Files((str(path),)),)), tmp_path / "cache").manifest
    assert sum(each["bytes"] for each in found["splits"].values()) == 600 * size
    assert peaks.keys() == {"read", "encode", "finish"} and max(peaks.values()) < 600 * size / 3, peaks


# ---- blends


def test_a_blend_reads_each_source_by_its_weight_and_each_of_its_rows_once_an_epoch(tmp_path):
    for name, count in (("a", 60), ("b", 20)):
        rows = [{"text": words(f"{name}{i}", 40 + i)} for i in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = TextConfig(
        tuple(Files((str(tmp_path / f"{name}.jsonl"),)) for name in "ab"), weights=(3, 1), length=64, batch=4
    )
    stream = TextStream(config, cache=tmp_path / "cache")
    of_row = stream.documents.source[stream.pieces.document[stream.pieces.first[:-1]]]
    rows = [stream._row(at) for at in range(4 * stream.rows)]
    assert all(of_row[rows[start : start + 4]].tolist().count(1) == 1 for start in range(len(rows) - 4))
    for source in (0, 1):
        mine, size = [row for row in rows if of_row[row] == source], int((of_row == source).sum())
        assert sorted(mine[:size]) == np.flatnonzero(of_row == source).tolist()
        assert mine[:size] != mine[size : 2 * size]


def test_weights_and_sources_are_as_many(library, tmp_path):
    with pytest.raises(ValueError, match="2 weights for 1 sources"):
        TextStream(TextConfig(library.sources, weights=(1, 2)), cache=tmp_path)


def test_weights_are_refused_before_anything_is_prepared(library, tmp_path):
    for weights in ((-1,), (1, 1)):
        with pytest.raises(ValueError, match="weights"):
            TextStream(TextConfig(library.sources, weights=weights), cache=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_a_copy_in_another_source_is_dropped(tmp_path):
    text = [words(i, 100) for i in range(30)]
    for name, start in (("a", 0), ("b", 15)):
        rows = [{"text": each, "repo": f"{name} {i}"} for i, each in enumerate(text[start:] if start else text)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sources = tuple(Files((str(tmp_path / f"{name}.jsonl"),), group="repo") for name in "ab")
    found = corpus(TextConfig(sources), cache=tmp_path / "cache")
    assert found.manifest["dropped"]["exact"] == 15
    assert sum(each["documents"] for each in found.manifest["splits"].values()) == 30


def test_preparing_takes_no_longer_than_it_should(library, tmp_path):
    """A corpus that is there is opened, not made: the time that this takes does not grow with the work."""
    made(library, tmp_path)
    begun = time.perf_counter()
    made(library, tmp_path)
    assert time.perf_counter() - begun < 0.5
