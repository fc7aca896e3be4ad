import dataclasses
import json
import math

import jax
import numpy as np
import pytest

from workbench.config import ModelConfig, Packages, PhonebookConfig, RunConfig, TextConfig, TextEvaluation
from workbench.evaluate.text import bits_per_byte, evaluator
from workbench.model.language_model import create
from workbench.train.loss import loss

PACKAGES = ("tqdm", "pexpect", "click", "requests")  # train, select, test, test
RUN = RunConfig(
    study="study",
    arm="arm",
    model=ModelConfig(pattern="*-", width=16, vocabulary=257),
    data=TextConfig((Packages(PACKAGES),), length=64),
    evaluation=TextEvaluation(rows=21, length=48),
)


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def model():
    return create(RUN.model, 0)


def test_a_model_that_knows_nothing_needs_the_logarithm_of_the_vocabulary(model):
    blank = jax.tree.map(lambda leaf: leaf * 0, model)
    result = evaluator(RUN.evaluation, RUN)(blank, "test")
    for part in (result["bits_per_byte"], *result["by_group"].values()):
        assert part["mean"] == pytest.approx(math.log2(257), rel=1e-6)
    assert result["bits_per_byte"]["high"] - result["bits_per_byte"]["low"] < 1e-5


def test_bits_are_counted_per_byte_whatever_the_tokens_and_held_out_files_are_measured_apart():
    """A model that knows nothing pays the vocabulary's logarithm for every token."""
    data = TextConfig((Packages(PACKAGES),), tokenizer="bpe-300", held_out=0.2, length=64)
    run = dataclasses.replace(
        RUN, model=dataclasses.replace(RUN.model, vocabulary=300), data=data, evaluation=TextEvaluation(10**6, 64)
    )
    blank = jax.tree.map(lambda leaf: leaf * 0, create(run.model, 0))
    found = evaluator(run.evaluation, run)(blank, "test")
    assert {row.get("split") for row in found.rows} == {None, "same"}
    for split, name in (("test", "bits_per_byte"), ("same", "same_groups")):
        documents = data.stream(split).documents
        assert found[name]["bytes"] == documents.bytes.sum() > documents.sizes.sum()
        expected = math.log2(300) * documents.sizes.sum() / documents.bytes.sum()
        assert found[name]["mean"] == pytest.approx(expected, rel=1e-5)
    assert "same_groups" not in evaluator(run.evaluation, run)(blank, "select")


def test_many_groups_are_gathered_into_lots_of_whole_groups(model, monkeypatch):
    whole = evaluator(RUN.evaluation, RUN)(model, "test")
    monkeypatch.setattr("workbench.evaluate.text.GROUPS", 1)
    found = evaluator(RUN.evaluation, RUN)(model, "test")
    assert list(found["by_group"]) == ["lot 00"]
    assert found["by_group"]["lot 00"]["bytes"] == whole["bits_per_byte"]["bytes"] == found["bits_per_byte"]["bytes"]


@pytest.mark.parametrize("split", ["select", "test"])
def test_bits_per_byte_are_the_training_loss_of_the_same_rows(model, split):
    stream = dataclasses.replace(RUN.data, length=48).stream(split)
    rows = np.linspace(0, stream.rows - 1, 21).round().astype(int)
    total, metrics = jax.jit(loss)(model, stream.read(rows).batch)
    found = evaluator(RUN.evaluation, RUN)(model, split)["bits_per_byte"]
    assert found["bytes"] == int(metrics["weight"])
    assert found["mean"] == pytest.approx(float(total) / float(metrics["weight"]) / math.log(2), rel=1e-5)


def test_how_rows_are_batched_changes_nothing(model, monkeypatch):
    whole = evaluator(RUN.evaluation, RUN)(model, "test")
    monkeypatch.setattr(
        "workbench.evaluate.text.TOKENS", 48 * 4
    )  # 21 rows: five batches of 4, and one row with padding
    parts = evaluator(RUN.evaluation, RUN)(model, "test")
    assert parts["bits_per_byte"]["bytes"] == whole["bits_per_byte"]["bytes"]
    assert parts["bits_per_byte"]["mean"] == pytest.approx(whole["bits_per_byte"]["mean"], rel=1e-5)


def test_packages_and_their_bytes_make_up_the_whole(model):
    result = json.loads(json.dumps(evaluator(RUN.evaluation, RUN)(model, "test")))
    whole, parts = result["bits_per_byte"], result["by_group"]
    assert set(parts) == {"click", "requests"}
    assert sum(part["bytes"] for part in parts.values()) == whole["bytes"]
    assert sum(part["mean"] * part["bytes"] for part in parts.values()) == pytest.approx(whole["mean"] * whole["bytes"])
    assert whole["low"] < whole["mean"] < whole["high"]


def test_documents_are_kept_with_the_scores_and_make_up_each_package(model):
    result = evaluator(RUN.evaluation, RUN)(model, "test")
    assert len({row["document"] for row in result.rows}) == len(result.rows) == result["bits_per_byte"]["documents"]
    for name, part in result["by_group"].items():
        nats, count = np.array([(row["nats"], row["bytes"]) for row in result.rows if row["group"] == name]).T
        assert count.sum() == part["bytes"] and nats.sum() / count.sum() / math.log(2) == pytest.approx(part["mean"])


def test_neither_seed_nor_batch_size_of_the_data_changes_what_is_read(model):
    other = dataclasses.replace(RUN, data=dataclasses.replace(RUN.data, seed=9, batch=3, length=1024), seed=4)
    assert evaluator(RUN.evaluation, other)(model, "test") == evaluator(RUN.evaluation, RUN)(model, "test")


def test_the_interval_covers_the_truth_nineteen_times_in_twenty():
    """Documents of unequal sizes, bytes alike within each: 2,000 samples of 60 of them; 95% within 4 deviations."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(20, 200, (2000, 60))
    nats = sizes * rng.normal(1.0, 0.3, sizes.shape)
    alone = np.full(60, "package")
    found = [bits_per_byte(n, c, alone) for n, c in zip(nats, sizes, strict=True)]
    covered = np.mean([part["low"] <= 1 / math.log(2) <= part["high"] for part in found])
    assert abs(covered - 0.95) < 4 * math.sqrt(0.95 * 0.05 / 2000)


def test_the_interval_does_not_shrink_by_counting_more_bytes_of_the_same_documents():
    nats, sizes = np.array([10.0, 30.0, 25.0, 60.0]), np.array([10.0, 20.0, 30.0, 40.0])
    alone = np.full(4, "package")
    once, often = bits_per_byte(nats, sizes, alone), bits_per_byte(nats * 100, sizes * 100, alone)
    assert (often["low"], often["high"]) == pytest.approx((once["low"], once["high"]))


def test_the_interval_covers_where_packages_differ_and_their_documents_are_alike():
    """2,000 samples of 8 packages with 10 documents each that share most of their difficulty."""
    rng = np.random.default_rng(1)
    sizes = rng.integers(50, 150, (2000, 80))
    package = np.repeat(np.arange(8).astype(str), 10)
    hard = np.repeat(rng.normal(1.0, 0.3, (2000, 8)), 10, axis=1) + rng.normal(0, 0.05, sizes.shape)
    found = [bits_per_byte(n, c, package) for n, c in zip(sizes * hard, sizes, strict=True)]
    covered = np.mean([part["low"] <= 1 / math.log(2) <= part["high"] for part in found])
    assert abs(covered - 0.95) < 4 * math.sqrt(0.95 * 0.05 / 2000)


def test_one_document_gives_no_interval():
    with pytest.raises(ValueError, match="needs at least 2"):
        bits_per_byte(np.array([3.0]), np.array([2.0]), np.array(["package"]))


def test_data_that_is_not_text_is_refused():
    run = dataclasses.replace(RUN, data=PhonebookConfig())
    with pytest.raises(ValueError, match="PhonebookConfig"):
        evaluator(RUN.evaluation, run)


def test_rows_that_are_longer_than_the_models_positions_are_refused_before_anything_is_read():
    limited = dataclasses.replace(RUN, model=dataclasses.replace(RUN.model, positions=48))
    evaluator(TextEvaluation(length=48), limited)
    says = "a row of evaluation.length=49 has 50 tokens, 49 to be read; the model's positions allow 48: make evaluation"
    with pytest.raises(ValueError, match=says):
        evaluator(TextEvaluation(length=49), limited)


def test_a_single_row_is_refused():
    with pytest.raises(ValueError, match="rows must be at least 2"):
        evaluator(TextEvaluation(rows=1), RUN)
