import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from workbench.config import (
    LOOKUPS,
    RECALL,
    AttentionConfig,
    Mamba2Config,
    ModelConfig,
    RecallConfig,
    RecallEvaluation,
    RunConfig,
    TextConfig,
    from_json,
    to_json,
)
from workbench.data.recall import BLANK, MARK
from workbench.data.recall import split_of as tenth
from workbench.data.rule import within
from workbench.evaluate import phonebook, recall
from workbench.model.language_model import create

EXAM = RecallEvaluation(sizes=(2, 4, 6), documents=20, queries=3)
SYMBOLS = {"M": Mamba2Config(state=4, head_dim=8), "*": AttentionConfig(heads=2)}


def run(kind):
    data = RecallConfig(kind, symbols=12, sizes=(2, 4), length=40, batch=2)
    return RunConfig("study", "arm", ModelConfig("M*", 16, data.vocabulary, SYMBOLS), data, EXAM)


def oracle(model, tokens, segments, asked, answers):
    """Answers by looking into what was kept; a place that has no answer there is wrong."""
    queries, documents, size = answers.shape
    right = np.zeros((documents, queries, size), bool)
    for d in range(documents):
        kept = tokens[d][segments[d] > 0].tolist()
        for q in range(queries):
            first = int(asked[q, d, 0])
            if first != MARK:
                key = tuple(asked[q, d].tolist())
                held = [tuple(kept[at : at + len(key) + 1]) for at in range(0, len(kept) - 1, len(key) + 1)]
                found = [{each[:-1]: each[-1] for each in held}.get(key, -1)]
            elif MARK in kept:
                found = [kept[kept.index(MARK) + 1]]
            else:
                found = [token for token in kept if token != BLANK]
            assert asked[q, d, asked.shape[-1] - size + 1 :].tolist() == answers[q, d, :-1].tolist()
            right[d, q] = [a == b for a, b in zip(found, answers[q, d].tolist(), strict=True)]
    return right, np.where(right.all(axis=-1), 0.0, -1.0)


@pytest.fixture(scope="module")
def model():
    """What the oracle stands in for."""
    return create(run("mqar").model, 0)


@pytest.mark.parametrize("kind", RECALL)
def test_looking_back_answers_everything_but_what_was_taken_out(kind, model, monkeypatch):
    monkeypatch.setattr(phonebook, "answer", oracle)
    found = EXAM.build(run(kind))(model, "test")
    assert found["score"] == 1 and found["trained_entries"] == [2, 4]
    assert {size: share["mean"] for size, share in found["exact_match"].items()} == {"2": 1, "4": 1, "6": 1}
    removed = {size: (share["mean"], share["chance"]) for size, share in found["removed"].items()}
    assert removed == ({"2": (0, 1 / 6), "4": (0, 1 / 6)} if kind in LOOKUPS else {})
    assert bool(found["by_depth"]) == (kind in LOOKUPS)
    rows = [row for row in found.rows if not row["removed"]]
    assert len(rows) == sum(share["items"] for share in found["exact_match"].values())
    assert all(row["log_probability"] == all(row["right"]) - 1 for row in found.rows)
    assert all(all(row["right"]) and (row["place"] is None) == (kind not in LOOKUPS) for row in rows)
    assert found["baselines"]["4"].get("copy_any") == (None if "copying" in kind else 0.25)


@pytest.mark.parametrize("kind", RECALL)
def test_documents_are_those_of_the_split_and_the_same_for_every_arm_and_seed(kind):
    data = run(kind).data
    content, asked, answers, _ = recall.questions(EXAM, data, "test", 4)
    other = recall.questions(EXAM, dataclasses.replace(data, seed=9), "test", 4)
    assert all((a == b).all() for a, b in zip((content, asked, answers), other, strict=False))
    assert within(tenth(content), "test").all() and len(content) == 20


def test_small_documents_are_asked_no_pair_twice():
    _, asked, _, depth = recall.questions(EXAM, run("mqar").data, "test", 2)
    assert len(asked) == len(depth) == 2


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mqar", "selective-copying"])
def test_asking_the_state_is_reading_the_whole_document(kind):
    """Each answer token's argmax after one pass over content, question and answer."""
    subject, data = create(run(kind).model, 1), run(kind).data
    content, asked, answers, _ = recall.questions(EXAM, data, "select", 4)
    given, _ = map(np.asarray, phonebook.answer(subject, content, np.ones_like(content), asked, answers))
    for query in range(len(asked)):
        whole = jnp.concatenate([content, asked[query]], axis=1)
        hidden = subject(whole).hidden[:, -answers.shape[-1] :]
        assert (given[:, query] == (np.asarray(subject.logits(hidden)).argmax(axis=-1) == answers[query])).all()


def test_runs_survive_json_and_are_called_by_their_kind():
    for kind in RECALL:
        assert from_json(to_json(run(kind))) == run(kind)
        assert run(kind).name.startswith(f"{kind}-arm-s0-")


def test_what_cannot_be_asked_is_refused():
    for change, message in (
        ({"sizes": (7,)}, "each pair has a key of its own"),
        ({"sizes": ()}, "evaluation.sizes is empty"),
        ({"documents": 1}, "at least 2 documents"),
    ):
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(EXAM, **change).build(run("mqar"))
    with pytest.raises(ValueError, match="the run's data is TextConfig"):
        EXAM.build(dataclasses.replace(run("mqar"), data=TextConfig(), model=ModelConfig("M", 16, 257, SYMBOLS)))
