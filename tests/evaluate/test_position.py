import dataclasses
import json
import math
from pathlib import Path

import jax
import numpy as np
import pytest

from workbench.command import main
from workbench.config import (
    AttentionConfig,
    Files,
    Mamba2Config,
    MambaConfig,
    ModelConfig,
    Packages,
    Parent,
    PhonebookConfig,
    PositionEvaluation,
    RunConfig,
    TextConfig,
    UnknownData,
)
from workbench.data.tokenizer import Bytes
from workbench.evaluate import position
from workbench.evaluate.position import bins, evaluator, long_documents, of_runs, on_texts, trained_length
from workbench.evaluate.text import of_files
from workbench.model.language_model import create
from workbench.train.loss import negative_log_likelihood

LAYERS = {"*": AttentionConfig(heads=2), "S": MambaConfig(state=4), "M": Mamba2Config(state=4, head_dim=8)}
RUN = RunConfig(
    study="study",
    arm="arm",
    model=ModelConfig("SM*", 16, 257, LAYERS),
    data=TextConfig((Packages(("tqdm", "pexpect", "click")),), length=64),  # train, select, test
    evaluation=PositionEvaluation(length=600, documents=6),
)


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def model():
    return create(RUN.model, 0)


@pytest.fixture(scope="module")
def found(model):
    return evaluator(RUN.evaluation, RUN)(model, "test")


def documents(split="test"):
    """Tokens of the evaluated documents from their boundary on, cut from the split's one array of tokens."""
    source = RUN.data.stream(split)
    sizes = np.asarray(source.documents.sizes)
    long = np.flatnonzero(sizes >= 600)
    chosen = long[np.linspace(0, len(long) - 1, 6).round().astype(int)]
    return [source.documents.tokens[source.starts[i] :][:601].astype(np.int32) for i in chosen]


def test_each_bin_is_the_loss_of_whole_documents_read_at_once(model, found):
    """Read without a state, one by one; the evaluator reads stretches of up to four documents side by side."""
    nll = jax.jit(lambda tokens, targets: negative_log_likelihood(model(tokens).hidden, model.head(), targets))
    nats = np.concatenate([nll(each[None, :-1], each[None, 1:]) for each in documents()])
    assert [(each["start"], each["end"]) for each in found["by_position"]] == [
        (0, 18), (18, 37), (37, 75), (75, 150), (150, 300), (300, 600)
    ]  # fmt: skip
    for each in found["by_position"]:
        expected = nats[:, each["start"] : each["end"]].mean() / math.log(2)  # a token is a byte
        assert each["mean"] == pytest.approx(expected, rel=1e-5)
        assert each["low"] < each["mean"] < each["high"]
        assert (each["bytes"], each["documents"]) == (6 * (each["end"] - each["start"]), 6)


def test_what_is_past_the_length_of_training_is_flagged_and_not_in_the_score(found):
    assert [each["extrapolated"] for each in found["by_position"]] == [False, False, True, True, True, True]
    within = found["by_position"][:2]
    bits = sum(each["mean"] * each["bytes"] for each in within) / sum(each["bytes"] for each in within)
    assert found["bits_per_byte"]["mean"] == pytest.approx(bits, rel=1e-9) == -found["score"]
    assert found["bits_per_byte"]["bytes"] == sum(each["bytes"] for each in found["by_group"].values()) == 6 * 37
    assert json.loads(json.dumps(found)) == found


def test_the_bins_of_each_document_are_kept_with_the_scores(found):
    for each in found["by_position"]:
        rows = [row for row in found.rows if row["start"] == each["start"]]
        nats, count = np.array([(row["nats"], row["bytes"]) for row in rows]).T
        assert len({row["document"] for row in rows}) == 6 and count.sum() == each["bytes"]
        assert nats.sum() / count.sum() / math.log(2) == pytest.approx(each["mean"])


def test_every_document_that_is_long_enough_is_found_from_its_beginning():
    data = dataclasses.replace(RUN.data, length=600)
    source = data.stream("test")
    rows = long_documents(source)
    assert len(rows) == (np.asarray(source.documents.sizes) >= 600).sum() > 6
    read = source.read(rows)
    assert (read.batch["tokens"][:, 0] == 0).all()  # of bytes, the boundary
    assert len({tuple(owner) for owner in read.documents[:, [0, -1]]}) == len(rows)
    assert (read.documents[:, 0] == read.documents[:, -1]).all() and (read.batch["segments"] == 1).all()


def test_bins_double_up_to_the_length():
    assert bins(4096).tolist() == [0, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096]
    assert bins(20).tolist() == [0, 20]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"data": PhonebookConfig()}, "needs text; the run's data is PhonebookConfig"),
        ({"evaluation": PositionEvaluation(600, 1)}, "an interval needs 2 documents"),
        (
            {"evaluation": PositionEvaluation(10**6)},
            r"has 0 documents of at least evaluation.length=1000000 tokens \(the longest has \d{4,}\)",
        ),
        ({"data": UnknownData(257)}, "what it was trained on is unknown, .* give texts with --text"),
    ],
    ids=["data", "documents", "length", "unknown"],
)
def test_what_cannot_be_evaluated_is_refused(model, changes, says):
    run = dataclasses.replace(RUN, **changes)
    with pytest.raises(ValueError, match=says):
        evaluator(run.evaluation, run)(model, "test")


def test_runs_are_read_once_and_one_that_cannot_be_leaves_the_others(model, found, tmp_path, monkeypatch):
    strange = dataclasses.replace(RUN, data=PhonebookConfig())
    runs = {"text": RUN, "book": strange}
    monkeypatch.setattr(position, "load_model", lambda folder, step: (runs[folder.name], model))
    folders = {name: tmp_path / name for name in runs}
    for folder in folders.values():
        folder.mkdir()
    once = of_runs(folders, RUN.evaluation)
    assert once["text"] == found and "is PhonebookConfig, not TextConfig" in once["book"]["error"]
    monkeypatch.setattr(position, "_nats", None)  # whoever reads anything again fails
    assert of_runs(folders, RUN.evaluation)["text"] == found


def test_a_stretch_is_read_without_a_second_copy_of_the_cache():
    model = create(ModelConfig("(*)x4", 16, 257, {"*": AttentionConfig(heads=2)}), 0).apart()
    state = jax.eval_shape(lambda: position._initial(model, 4, 4096))
    cache = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    part = jax.ShapeDtypeStruct((4, 16), "int32")
    memory = position._read.lower(model, state, part, part, part).compile().memory_analysis()
    assert memory.alias_size_in_bytes >= cache and memory.temp_size_in_bytes < cache


def test_the_command_prints_the_loss_by_position_and_keeps_it_with_its_figure(
    model, found, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(position, "load_model", lambda folder, step: (RUN, model))
    folder = tmp_path / "text-run"
    folder.mkdir()
    words = ["evaluate", str(folder), "length=600", "documents=6", "--by-position", "--wandb", "disabled"]
    for split in ("test", "select"):
        assert main([*words, "--split", split]) == 0
        said = json.loads(capsys.readouterr().out)
        assert (said["run"], said["split"], said["folder"]) == ("text-run", split, str(folder))
        assert (said["by_position"] == found["by_position"]) == (split == "test")
        figure = Path(said["figure"])
        assert figure.read_bytes().startswith(b"\x89PNG")
        kept = json.loads(figure.with_suffix(".json").read_text())
        assert kept.items() <= said.items()
    assert len(list((folder / "positions").iterdir())) == 4


@pytest.fixture
def written(tmp_path):
    """The first 600 bytes of the evaluated documents as files in two folders, and a short one."""
    for number, tokens in enumerate(documents()):
        folder = tmp_path / "texts" / f"{number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.txt").write_bytes(bytes((tokens[1:] - 1).astype(np.uint8)))
    (tmp_path / "texts" / "short.txt").write_text("short")
    return Files((f"{tmp_path}/texts/**/*.txt",))


def test_the_same_documents_in_files_have_the_same_loss_by_position(model, found, written):
    texts = of_files(Bytes(), written)
    for trained, flags in ((64, [False, False, True, True, True, True]), (None, [None] * 6), (600, [False] * 6)):
        again = on_texts(model, texts, RUN.evaluation, trained)
        assert [each["extrapolated"] for each in again["by_position"]] == flags
        for one, two in zip(again["by_position"], found["by_position"], strict=True):
            assert one["mean"] == pytest.approx(two["mean"], rel=1e-6) and one["bytes"] == two["bytes"]
        within = sum(not flag for flag in flags)
        assert again["bits_per_byte"]["bytes"] == sum(each["bytes"] for each in again["by_position"][:within])
        assert set(again["by_group"]) == {"0", "1"}


def test_texts_that_are_too_short_are_refused_naming_the_longest(model, written):
    says = r"these texts have 0 documents of at least evaluation.length=601 tokens \(the longest has 600\)"
    with pytest.raises(ValueError, match=says):
        on_texts(model, of_files(Bytes(), written), PositionEvaluation(601), None)


def test_other_texts_are_kept_apart(written, tmp_path):
    once = of_files(Bytes(), written).digest
    assert of_files(Bytes(), written).digest == once
    (tmp_path / "texts" / "short.txt").write_text("shorn")
    assert of_files(Bytes(), written).digest != once


def test_the_length_of_training_is_that_of_the_data_or_an_imported_models_positions():
    released = dataclasses.replace(RUN.model, positions=2048)
    unknown = dataclasses.replace(RUN, data=UnknownData(257))
    assert trained_length(RUN) == trained_length(dataclasses.replace(RUN, model=released)) == 64
    assert trained_length(unknown) is None
    assert trained_length(dataclasses.replace(unknown, model=released)) == 2048
    assert trained_length(dataclasses.replace(RUN, model=released, parent=Parent("released"))) == 2048
