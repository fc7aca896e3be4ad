import contextlib
import json
import warnings
from itertools import pairwise

import numpy as np
import pytest

from workbench.config import Packages, TextConfig, load_file
from workbench.data import corpus
from workbench.data.batches import Part
from workbench.data.corpus import RANGES, split_of
from workbench.data.digest import chain
from workbench.data.documents import CARRIERS, installed, normalised, parts, read
from workbench.data.packing import stages
from workbench.data.text import TextStream
from workbench.data.tokenizer import Bytes
from workbench.evaluate.contamination import WORD, WORDS, overlapping
from workbench.evaluate.suite import tasks
from workbench.evaluate.tasks.item import TooShort
from workbench.evaluate.tasks.phonebook import ORDERS, Phonebook

# ---- what is in the corpus


@pytest.mark.parametrize("split", RANGES)
def test_no_document_crosses_splits(shelf, contents, split):
    assert set(contents(shelf.stream(split))) == shelf.documents(split)


@pytest.mark.parametrize("split", ["train", "select", "test"])
@pytest.mark.parametrize("length", [1, 61, 256, 100_000])
def test_every_byte_of_a_document_is_a_target_exactly_once(shelf, contents, split, length):
    stream = shelf.stream(split, length=length)
    assert sorted(contents(stream)) == sorted(shelf.documents(split))
    assert stream.facts()["bytes"] == sum(map(len, shelf.documents(split)))


@pytest.mark.parametrize("to", ["select", "test"])
@pytest.mark.parametrize("changes", [0, 2])
def test_what_nearly_repeats_a_training_document_is_dropped_from_the_other_splits(shelf, contents, to, changes):
    copy = shelf.prose(2, words=300)
    for i in range(changes):
        copy = copy.replace(copy.split()[100 * i + 50], b"changed")
    shelf.put(shelf.names[to], "copied.py", copy)
    assert copy not in contents(shelf.stream(to))
    assert shelf.prose(2, words=300) in contents(shelf.stream("train"))
    assert shelf.stream(to).facts()["dropped"]["exact" if changes == 0 else "near"] == 1


def test_an_exact_repeat_is_told_but_for_white_space_at_the_ends_of_lines(shelf):
    shelf.put(shelf.names["train"], "again.py", shelf.prose(0, words=100).replace(b"\n", b"  \r\n"))
    assert shelf.stream().facts()["dropped"]["exact"] == 1


def test_tiny_and_huge_files_are_left_out(shelf, contents):
    shelf.put(shelf.names["train"], "tiny.py", b"x" * 255)
    shelf.put(shelf.names["train"], "huge.py", b"y" * (256 * 1024 + 1))
    dropped = shelf.stream().facts()["dropped"]
    assert (dropped["small"], dropped["large"]) == (1, 1)
    assert set(contents(shelf.stream())) == {d for d in shelf.documents("train") if 256 <= len(d) <= 256 * 1024}


def test_the_checksum_is_of_paths_and_contents(shelf):
    first = shelf.stream().facts()["checksum"]
    assert shelf.stream("test", seed=5, length=7).facts()["checksum"] == first
    shelf.put(shelf.names["test"], f"{shelf.names['test']}/m0.py", shelf.prose(77))
    assert shelf.stream().facts()["checksum"] != first


def test_facts_are_json_and_give_versions(shelf):
    facts = json.loads(json.dumps(shelf.stream().facts()))
    assert {p["name"]: p["version"] for p in facts["packages"]} == dict.fromkeys(shelf.names.values(), "1.0")


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
    every = sorted(row.tobytes() for row in stream.read(range(stream.rows)).batch["targets"])
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


def test_a_target_is_the_next_byte_of_the_same_document(shelf, contents):
    """So within a segment it is the next token; a segment starts with the boundary or the byte before."""
    stream = shelf.stream()
    files = contents(stream)
    batch, owner, _ = stream.read(range(stream.rows))
    read = dict.fromkeys(range(len(files)), 0)
    for i, at in np.argwhere(owner >= 0):
        document, position = int(owner[i, at]), read[int(owner[i, at])]
        expected = files[document][position - 1] + 1 if position else 0
        assert batch["tokens"][i, at] == expected
        assert batch["targets"][i, at] == files[document][position] + 1
        read[document] += 1


def test_weights_are_one_on_documents_and_zero_on_padding_which_ends_a_row(shelf):
    batch, owner, _ = (stream := shelf.stream()).read(range(stream.rows))
    assert ((batch["weights"] == 1) == (owner >= 0)).all()
    assert ((batch["segments"] > 0) == (owner >= 0)).all()
    assert (np.diff(batch["weights"], axis=1) <= 0).all()
    assert (batch["targets"][batch["weights"] == 0] == 0).all()


def test_segments_count_the_documents_of_a_row_from_one(shelf):
    batch, owner, _ = (stream := shelf.stream(length=1000)).read(range(stream.rows))
    for segments, documents in zip(batch["segments"], owner, strict=True):
        real = segments[documents >= 0]
        assert real[0] == 1
        assert ((np.diff(real) == 0) | (np.diff(real) == 1)).all()
        assert (np.diff(real) == (np.diff(documents[documents >= 0]) != 0)).all()


def test_packing_wastes_little(shelf):
    for i in range(40):
        shelf.put(shelf.names["train"], f"more{i}.py", shelf.prose(1000 + i, words=40 + 10 * i))
    stream = shelf.stream(length=256)
    batch, _, _ = stream.read(range(stream.rows))
    assert batch["weights"].mean() > 0.98


def test_a_row_holds_documents_of_one_package_only(shelf):
    other = next(f"q{i}" for i in range(99) if split_of(f"q{i}") == "train")
    for i in range(5):
        shelf.put(other, f"m{i}.py", shelf.prose(500 + i, words=50))
    stream = shelf.stream(packages=(*shelf.names.values(), other), length=6000)
    assert stream.rows == 2
    assert [
        set(np.array(stream.documents.groups)[stream.documents.group[row[row >= 0]]])
        for row in stream.read(range(2)).documents
    ] == [
        {shelf.names["train"]},
        {other},
    ]


def test_the_stream_of_packages_is_the_one_that_earlier_studies_read(shelf):
    """Its digest as computed by the first form of this code, which prepared packages alone."""
    stream, digest = shelf.stream(), ""
    for step in range(40):
        digest = chain(digest, stream.batch(step))
    assert digest == "93926bca28442e336be45c44207dde8e3171f2642c93218936ec0aa4a1b29a4d"


# ---- batch-size warm-up


def consumed(batch, ramp, steps):
    """Batches as Megatron-LM computes each from the samples consumed before it (num_microbatches_calculator.py)."""
    first, increment, samples = ramp
    each = samples / ((batch - first) // increment)
    found, before = [], 0
    for _ in range(steps):
        size = batch if before > samples else first + int(before / each) * increment
        found.append((before, size))
        before += size
    return found


@pytest.mark.parametrize("ramp", [(2, 2, 60), (1, 1, 3), (4, 4, 7), (3, 3, 1000), (12, 5, 9), (6, 2, 2)])
def test_a_batch_grows_as_megatrons_does(ramp):
    found = stages(12, ramp)
    for step, (before, size) in enumerate(
        consumed(12, ramp, 400) if ramp[0] < 12 else [(12 * i, 12) for i in range(9)]
    ):
        stage = max((each for each in found if each.step <= step), key=lambda each: each.step)
        assert stage.rows(step) == range(before, before + size)


def test_a_growing_batch_reads_the_same_stream(shelf):
    """The digest goes by rows: after as many of them it is the one of batches of one size."""
    growing, plain = shelf.stream(batch=8, ramp=(2, 3, 20)), shelf.stream(batch=1)
    digests = [chain("", growing.batch(0))]
    for step in range(1, 7):
        digests.append(chain(digests[-1], growing.batch(step)))
    assert [len(growing.batch(step)["tokens"]) for step in range(7)] == [2, 2, 2, 2, 2, 5, 5]
    digest = ""
    for row in range(20):
        digest = chain(digest, plain.batch(row))
    assert digest == digests[-1]
    with pytest.raises(ValueError, match=r"data.ramp is \(first batch, increment, rows\).*got \(2, 4, 20\)"):
        shelf.stream(batch=8, ramp=(2, 4, 20))


def test_a_step_far_on_has_its_rows_without_any_step_before_it(shelf):
    """Stages are as many as sizes; at the two ends of each the size is Megatron's for the rows read before."""
    rows, increments = 10**12, 15
    found = stages(4096, (256, 256, rows))
    assert [stage.batch for stage in found] == list(range(256, 4097, 256))
    for stage, after in pairwise(found):
        ends = stage.rows(stage.step), stage.rows(after.step - 1)
        assert ends[1].stop == after.row == after.rows(after.step).start
        assert [256 * (1 + before.start * increments // rows) for before in ends] == [stage.batch] * 2
    assert found[-1].rows(found[-1].step + 10**15).start == found[-1].row + 4096 * 10**15
    growing, plain = shelf.stream(batch=8, ramp=(2, 3, 20)), shelf.stream(batch=1)
    last, step = growing.stages[-1], 10**9
    at = last.row + (step - last.step) * 8
    one = np.concatenate([plain.batch(row)["targets"] for row in range(at, at + 8)])
    assert (growing.batch(step)["targets"] == one).all()


# ---- a process of several


class Counted:
    """An array that notes every stretch that is read of it."""

    def __init__(self, array):
        self.array, self.read = array, []

    def __getitem__(self, stretch):
        self.read.append(stretch)
        return self.array[stretch]


@pytest.mark.parametrize("ramp", [(), (4, 4, 30)])
@pytest.mark.parametrize("of", [2, 4])
def test_a_process_reads_its_rows_of_each_batch_and_no_others(shelf, ramp, of):
    stream = shelf.stream(batch=12, ramp=ramp)
    counted = Counted(stream.documents.tokens)
    stream.documents = stream.documents._replace(tokens=counted)
    sizes = set()
    for step in (0, 3, 5, 20):
        counted.read.clear()
        whole = stream.batch(step)
        read, sizes = list(counted.read), sizes | {len(whole["tokens"])}
        counted.read.clear()
        for low in range(of):
            before = len(counted.read)
            part = stream.part(step, Part(low, low + 1, of))
            rows = slice(len(whole["tokens"]) * low // of, len(whole["tokens"]) * (low + 1) // of)
            assert all((part[name] == whole[name][rows]).all() for name in whole) and part.keys() == whole.keys()
            assert 0 < len(counted.read) - before < len(read)
        assert counted.read == read  # the processes together read what one would: each its share
    assert sizes == ({4, 8, 12} if ramp else {12})


def test_several_parts_at_once_are_the_rows_of_all_of_them(shelf):
    stream = shelf.stream(batch=12)
    for name, array in stream.part(5, Part(1, 3, 4)).items():
        assert (array == stream.batch(5)[name][3:9]).all()
    with pytest.raises(ValueError, match=r"a batch of 12 rows cannot be divided into 5 parts; change data\.batch"):
        stream.part(0, Part(0, 1, 5))


# ---- what is kept


def test_a_changed_file_is_not_taken_from_the_cache(shelf, contents):
    shelf.stream()
    shelf.put(shelf.names["train"], "new.py", shelf.prose(99))
    assert shelf.prose(99) in contents(shelf.stream())


# ---- what is refused


def refused(shelf, match, **fields):
    with pytest.raises(ValueError, match=match):
        shelf.stream(**fields)


def test_a_split_without_packages_is_named(shelf):
    refused(shelf, "no document falls in the split 'select' \\(p", packages=(shelf.names["train"], shelf.names["test"]))


def test_a_split_left_without_documents_is_named(shelf):
    for i in range(3):
        name = shelf.names["test"]
        shelf.put(name, f"{name}/m{i}.py", shelf.prose(i, words=100 * (i + 1)))  # as in the training package
    refused(shelf, "no document falls in the split 'test' once repeated documents are dropped")


@pytest.mark.parametrize("name", ["lm_eval", "LM-Eval", "architecture.workbench", "inspect-ai"])
def test_carriers_of_evaluations_are_refused(shelf, name):
    refused(shelf, "holds evaluations", packages=(*shelf.names.values(), name))


def test_an_empty_list_is_refused(shelf):
    refused(shelf, "experiments/phonebook.py", packages=())
    refused(shelf, "data.sources is empty", sources=())


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
        corpus.corpus(shelf.config(), find, shelf.root / "cache")


# ---- the installed packages


def test_the_packages_of_the_study_are_pure_python_and_fill_all_splits(root):
    packages = load_file(root / "experiments" / "phonebook.py").PACKAGES
    sizes = dict.fromkeys(RANGES, 0)
    for package in map(installed, packages):
        sizes[split_of(package.name)] += sum((package.root / path).stat().st_size for path in package.files)
    total = sum(sizes.values())
    assert 20 <= len(packages) <= 30
    assert 8e6 < total < 25e6
    assert min(sizes.values()) > 0.05 * total


def test_real_packages_make_a_stream(tmp_path, contents):
    config = TextConfig((Packages(("tqdm", "pexpect", "click")),), length=128, batch=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stream = TextStream(config, "test", cache=tmp_path)
    assert (installed("click").root / "click/core.py").read_bytes() in contents(stream)
    assert stream.documents.groups == ["click"]


@pytest.fixture(scope="module")
def asked():
    """{task: what a few of its items ask and expect}, of each suite that needs no file and of both of the paper's
    Phonebook prompts, at 20 entries."""
    found = {}
    for task in [*tasks(["phonebook", "recall", "ruler-small"]), *(Phonebook(order=order) for order in ORDERS)]:
        with contextlib.suppress(TooShort):  # in bytes: a longer one of its kind is there
            items = [task.item(index, Bytes()) for index in range(3)]
            found[task.name] = [" ".join([item.prompt, *item.references]) for item in items]
    return found


def test_no_document_of_the_default_corpus_repeats_an_item_of_the_suites(root, asked):
    """Of all splits, before repeats are dropped, so that the training documents are among them."""
    packages = load_file(root / "experiments" / "phonebook.py").PACKAGES
    assert not {normalised(name) for name in packages} & CARRIERS
    assert {name.split("-")[0] for name in asked} == {"phonebook", "recall", "ruler"} and len(asked) > 20
    found = [document for part in parts((Packages(packages),)) for document in read(part)]
    texts = [document.content.decode() for document in found if not isinstance(document, str)]
    items = [text for each in asked.values() for text in each]
    assert overlapping(items, texts) == set()
    shown = {index for index, text in enumerate(items) if len(WORD.findall(text)) >= WORDS}
    assert len(shown) > 0.9 * len(items)  # shorter are some of recall's, of few pairs
    assert overlapping(items, [f"{texts[0]}\n# {text}\n" for text in items]) == shown


@pytest.mark.parametrize("name", ["phonebook", "ruler"])
def test_the_source_of_a_task_would_be_found_by_its_template(root, asked, name):
    source = (root / "workbench" / "evaluate" / "tasks" / f"{name}.py").read_text()
    items = [(task, text) for task, each in asked.items() for text in each]
    found = {items[index][0].split("-")[0] for index in overlapping([text for _, text in items], [source])}
    assert found == {name}
