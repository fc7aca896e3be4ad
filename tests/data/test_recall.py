import dataclasses

import numpy as np
import pytest

from workbench.config import RECALL, RecallConfig
from workbench.data.digest import chain
from workbench.data.recall import BLANK, BLANKS, MARK, PADDING, SYMBOL, documents, split_of
from workbench.data.rule import SPLITS, within
from workbench.study.experiment import load

LENGTHS = {"selective-copying": 40, "trigrams": 40}
CONFIGS = [RecallConfig(kind, symbols=12, sizes=(2, 3, 5), length=LENGTHS.get(kind, 26), batch=6) for kind in RECALL]
EVERY = pytest.mark.parametrize("config", CONFIGS, ids=RECALL)
GOLDEN = {  # of the first five batches
    "mqar": "93bd259156ddf425",
    "copying": "9679cf05e107c959",
    "selective-copying": "22f91b4f9fe829cd",
    "induction": "089f2d9316c35953",
    "trigrams": "d67e42e7a698ac96",
}


def answers(config, tokens):
    """(what stands before each answer's first token, the answer) of a document, by reading its tokens alone."""
    if config.kind == "mqar":
        mark = tokens.index(MARK)
        book = dict(zip(tokens[:mark:2], tokens[1:mark:2], strict=True))
        return [(mark + 1 + 2 * i, [book[key]]) for i, key in enumerate(tokens[mark + 1 :: 2])]
    if config.kind == "trigrams":
        mark = tokens.index(MARK)
        table = {tuple(tokens[at : at + 2]): tokens[at + 2] for at in range(0, mark, 3)}
        return [(at + 1, [table[tuple(tokens[at : at + 2])]]) for at in range(mark + 1, len(tokens), 3)]
    if config.kind == "induction":
        first, last = (i for i, token in enumerate(tokens) if token == MARK)
        return [(last, [tokens[first + 1]])]
    mark = tokens.index(MARK)
    return [(mark, [token for token in tokens[:mark] if token != BLANK])]


def read(config, split="train", steps=8):
    """The documents of the stream with their targets and weights."""
    for step in range(steps):
        batch = config.stream(split).batch(step)
        for row in range(config.batch):
            segments = batch["segments"][row]
            for segment in range(1, segments.max() + 1):
                yield tuple(batch[name][row][segments == segment].tolist() for name in ("tokens", "targets", "weights"))


@EVERY
def test_the_document_says_every_answer_and_only_answers_are_weighted(config):
    seen = 0
    for tokens, targets, weights in read(config):
        expected = [0.0] * len(tokens)
        for before, answer in answers(config, tokens):
            assert targets[before : before + len(answer)] == answer
            expected[before : before + len(answer)] = [1.0] * len(answer)
        assert weights == expected and targets[:-1] == tokens[1:]
        seen += 1
    assert seen > 40


@EVERY
def test_no_document_of_test_or_select_is_trained_on(config):
    found = {
        split: {tuple(tokens[: answers(config, tokens)[0][0]]) for tokens, *_ in read(config, split, 20)}
        for split in SPLITS
    }
    assert min(map(len, found.values())) > 50
    assert not found["train"] & found["select"] and not found["train"] & found["test"]
    assert not found["select"] & found["test"]
    content = documents(config, "test", 3, 50, np.random.default_rng(0)).content
    assert within(split_of(content), "test").all()


@EVERY
def test_the_splits_share_documents_eight_to_one_to_one(config):
    rng = np.random.default_rng(2)
    content = rng.integers(SYMBOL, 60, (20_000, 6))
    for split, (low, high) in SPLITS.items():
        share = within(split_of(content), split).mean()
        assert abs(share - (high - low) / 10) < 4 * np.sqrt(0.09 / 20_000) * 2


def test_keys_of_a_document_are_distinct_and_apart_from_values():
    content, asked, found = documents(CONFIGS[0], "train", 5, 500, np.random.default_rng(1))
    keys, values = content[:, :-1:2], content[:, 1:-1:2]
    assert (np.diff(np.sort(keys, axis=1), axis=1) > 0).all()
    assert keys.max() < SYMBOL + 6 <= values.min() and values.max() < CONFIGS[0].vocabulary
    assert asked.shape == found.shape == (500, 5, 1)


def test_two_symbols_say_what_follows_them_and_neither_says_it_alone():
    """All trigrams of a document, wherever they begin: two keys in a row are followed by one symbol only."""
    config = RecallConfig("trigrams", symbols=64, sizes=(9, 16), length=100)
    for size, few in ((9, 3), (16, 4)):
        for document in documents(config, "train", size, 50, np.random.default_rng(1)).content[:, :-1].tolist():
            keys, table = range(SYMBOL, SYMBOL + 32), {}
            for *context, value in zip(document, document[1:], document[2:], strict=False):
                if all(symbol in keys for symbol in context):
                    table.setdefault(tuple(context), []).append(value)
            assert len(table) == size and all(len(found) == 1 for found in table.values())
            assert not any(value in keys for (value,) in table.values())
            for place in (0, 1):
                assert len({context[place] for context in table}) == few


def test_symbols_stand_anywhere_among_the_blanks():
    content = documents(CONFIGS[2], "train", 5, 4000, np.random.default_rng(1)).content
    assert content.shape[1] == 5 * (1 + BLANKS) and ((content != BLANK).sum(axis=1) == 5).all()
    share = (content != BLANK).mean(axis=0)
    assert np.abs(share - 1 / (1 + BLANKS)).max() < 4 * np.sqrt(0.1875 / 4000)


def test_the_mark_of_induction_stands_before_every_symbol_equally_often():
    content = documents(CONFIGS[3], "train", 5, 4000, np.random.default_rng(1)).content
    share = np.bincount((content == MARK).argmax(axis=1), minlength=6) / 4000
    assert share[5] == 0 and np.abs(share[:5] - 0.2).max() < 4 * np.sqrt(0.16 / 4000)


@EVERY
def test_a_batch_is_a_pure_function_of_config_split_and_step(config):
    first = config.stream().batch(3)
    assert all((first[name] == config.stream().batch(3)[name]).all() for name in first)
    for other in (
        config.stream().batch(4),
        config.stream("test").batch(3),
        dataclasses.replace(config, seed=1).stream().batch(3),
    ):
        assert (first["tokens"] != other["tokens"]).any()


@EVERY
def test_sizes_come_equally_often_and_padding_ends_a_row(config):
    lengths = config.stream().lengths.values()
    rows = dict.fromkeys(lengths, 0)
    for step in range(len(config.sizes)):
        batch = config.stream().batch(step)
        assert ((batch["segments"] == 0) == (batch["tokens"] == PADDING)).all()
        assert batch["tokens"].max() < config.vocabulary
        for segments in batch["segments"]:
            rows[int((segments == 1).sum())] += 1
    assert len(set(rows.values())) == 1


@EVERY
def test_the_streams_digest_is_as_it_was(config):
    digest = ""
    for step in range(5):
        digest = chain(digest, config.stream().batch(step))
    assert digest[:16] == GOLDEN[config.kind]


def test_what_cannot_be_made_is_refused():
    with pytest.raises(ValueError, match="did you mean 'copying'"):
        RecallConfig("coping")
    with pytest.raises(ValueError, match="each pair has a key of its own"):
        RecallConfig("mqar", symbols=16, sizes=(9,))
    with pytest.raises(ValueError, match="each trigram begins with two symbols of its own"):
        RecallConfig("trigrams", symbols=7, sizes=(10,))
    with pytest.raises(ValueError, match=r"set data\.length=41 or more"):
        RecallConfig("copying", sizes=(20,), length=40).stream()
    with pytest.raises(ValueError, match="too few different documents for the test split"):
        documents(RecallConfig("copying", symbols=2, sizes=(1,)), "test", 1, 4, np.random.default_rng(0))


@pytest.mark.parametrize("kind, length", [("copying", 21), ("induction", 21), ("trigrams", 25)])
def test_another_kind_is_an_override_of_the_recall_study(root, kind, length):
    for run in load(root / "experiments/recall.py", "tiny", [f"data.kind={kind}", f"data.length={length}"]).runs:
        assert run.data.kind == kind and run.data.stream().batch(0)["weights"].any()
        run.evaluation.build(run)
