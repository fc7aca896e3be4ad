import dataclasses
import itertools
import json
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from workbench.config import (
    AttentionConfig,
    Mamba2Config,
    ModelConfig,
    PhonebookConfig,
    PhonebookEvaluation,
    RunConfig,
    TextConfig,
)
from workbench.evaluate import phonebook
from workbench.model.language_model import create

DATA = PhonebookConfig(names=12, digits=2, name_tokens=2, entries=(2, 4), length=40, batch=2)
EXAM = PhonebookEvaluation(entries=(2, 4, 8), books=20, queries=4)
ENTRY, DIGIT = 4, 2  # tokens of an entry; the id of the digit 0
RUN = RunConfig(
    study="study",
    arm="arm",
    model=ModelConfig(
        "M*", 16, DATA.vocabulary, symbols={"M": Mamba2Config(state=4, head_dim=8), "*": AttentionConfig(heads=2)}
    ),
    data=DATA,
    evaluation=EXAM,
)


def numbers_in(tokens, segments, name):
    """The numbers that stand behind a name in a book."""
    book = tokens[: segments.sum() - 1].reshape(-1, ENTRY)
    return [entry[2:] for entry in book if (entry[:2] == name).all()], [
        i for i, entry in enumerate(book) if (entry[:2] == name).all()
    ]


def oracle(remembers=lambda place, entries: True, spoils=lambda number: number):
    """Answers from the book by looking the name up, if the entry is one that it remembers."""

    def answer(model, tokens, segments, asked, answers):
        queries, books, digits = answers.shape
        right = np.zeros((books, queries, digits), bool)
        for b in range(books):
            for q in range(queries):
                found, places = numbers_in(tokens[b], segments[b], asked[q, b, :2])
                for number, place in zip(found, places, strict=True):
                    if remembers(place, (segments[b].sum() - 1) // ENTRY):
                        right[b, q] = spoils(number) == answers[q, b]
        return right, np.where(right.all(axis=-1), 0.0, -1.0)

    return answer


@pytest.fixture(scope="module")
def model():
    return create(RUN.model, 0)


@pytest.fixture
def score(monkeypatch, model):
    """The scores of an oracle that stands in for the model."""

    def of(answer, split="test"):
        monkeypatch.setattr(phonebook, "answer", answer)
        return phonebook.evaluator(EXAM, RUN)(model, split)

    return of


def test_looking_up_answers_everything_but_what_was_taken_out(score):
    result = score(oracle())
    assert result["score"] == 1
    assert {k: share["mean"] for k, share in result["exact_match"].items()} == {"2": 1, "4": 1, "8": 1}
    assert {k: share["mean"] for k, share in result["removed"].items()} == {"2": 0, "4": 0}  # the trained sizes
    assert all(share["low"] < share["mean"] == share["high"] for share in result["exact_match"].values())


def test_small_books_are_asked_no_entry_twice(score):
    result = score(oracle())
    assert {k: share["items"] for k, share in result["exact_match"].items()} == {"2": 40, "4": 80, "8": 80}


def test_depth_shows_which_half_of_a_book_is_remembered(score):
    result = score(oracle(remembers=lambda place, entries: place >= entries // 2))
    assert {(at["entries"], round(at["depth"], 2)): at["mean"] for at in result["by_depth"]} == {
        (2, 0.0): 0,
        (2, 1.0): 1,
        **{(4, place): float(place > 0.5) for place in (0.0, 0.33, 0.67, 1.0)},
        **{(8, place): float(place > 0.5) for place in (0.0, 0.29, 0.71, 1.0)},
    }
    assert all(share["mean"] == 0.5 for share in result["exact_match"].values())


def test_the_items_are_kept_with_the_scores_and_say_which_question_was_right(score):
    result = score(oracle(remembers=lambda place, entries: place >= entries // 2))
    assert json.loads(json.dumps(result)) == result  # the scores alone are saved
    rows = [row for row in result.rows if not row["removed"]]
    assert len(rows) == sum(share["items"] for share in result["exact_match"].values())
    assert all(row["right"] == [int(row["place"] >= row["entries"] // 2)] * 2 for row in rows)
    assert all(row["log_probability"] == all(row["right"]) - 1 for row in result.rows)
    for entries, books in result["per_book"].items():
        for book, share in enumerate(books):
            of_book = [all(row["right"]) for row in rows if (str(row["entries"]), row["book"]) == (entries, book)]
            assert np.mean(of_book) == share
    assert not any(all(row["right"]) for row in result.rows if row["removed"])


def test_one_wrong_digit_spoils_the_match_and_half_the_digits(score):
    result = score(oracle(spoils=lambda number: number + np.array([0, 1])))
    assert all(share["mean"] == 0 for share in result["exact_match"].values())
    assert all(share["mean"] == 0.5 for share in result["digit_accuracy"].values())


def test_the_score_is_the_mean_over_trained_sizes_alone(score):
    assert score(oracle(remembers=lambda place, entries: entries == 8))["score"] == 0
    assert score(oracle(remembers=lambda place, entries: entries == 2))["score"] == 0.5


def test_the_removed_control_is_for_the_test_split(score):
    assert score(oracle(), "select")["removed"] == {}


def test_copying_the_best_of_the_book_is_what_the_baselines_say(score):
    result = score(oracle())
    for k in EXAM.entries:
        tokens, _, _, answers, _ = phonebook.questions(EXAM, DATA, "test", k)
        hits, chained = [], []
        for book, wanted in zip(tokens, answers.transpose(1, 0, 2), strict=True):
            numbers = book[:-1].reshape(k, ENTRY)[:, 2:]
            guess = [min(np.unique(column), key=lambda d: (-np.sum(column == d), d)) for column in numbers.T]
            hits += [(number == guess).all() for number in wanted]
            for number in wanted:
                chance = 1.0
                for here, after in itertools.pairwise(range(len(number))):
                    followers = [other[after] for other in numbers if other[here] == number[here]]
                    chance *= followers.count(number[after]) / len(followers)
                chained.append(chance)
        found = result["baselines"][str(k)]
        assert found == {
            "copy_any": 1 / k,
            "constant": max(Counter(map(tuple, answers.reshape(-1, answers.shape[-1]))).values())
            / answers[..., 0].size,
            "digit_by_digit": pytest.approx(np.mean(hits)),
            "digit_to_digit": pytest.approx(np.mean(chained)),
        }


@pytest.mark.parametrize("removed", [False, True])
def test_questions_are_about_a_name_in_the_book_unless_it_was_removed(removed):
    tokens, segments, asked, answers, _ = phonebook.questions(EXAM, DATA, "test", 4, removed)
    for b in range(EXAM.books):
        for q in range(EXAM.queries):
            found, _ = numbers_in(tokens[b], segments[b], asked[q, b, :2])
            assert [list(number) for number in found] == ([] if removed else [list(answers[q, b])])
            assert list(asked[q, b, 2:]) == list(answers[q, b, :-1])


def test_splits_ask_about_different_pairs():
    def pairs(split):
        _, _, asked, answers, _ = phonebook.questions(EXAM, DATA, split, 8)
        return {(*a[:2], *n) for a, n in zip(asked.reshape(-1, 3), answers.reshape(-1, 2), strict=True)}

    assert not pairs("test") & pairs("select")


def test_answers_from_a_state_are_those_of_reading_everything_at_once(model):
    """Half the answers are set to what a plain pass says, so that there is something to be right about."""
    tokens, segments, asked, answers, _ = phonebook.questions(EXAM, DATA, "test", 4)
    plain = jax.jit(lambda text: model.logits(model(text).hidden[:, -2:]))
    logits = np.stack([plain(jnp.asarray(np.concatenate([tokens, words], axis=1))) for words in asked])
    said = logits.argmax(axis=-1)
    expected = np.random.default_rng(0).random(answers.shape) < 0.5
    answers = np.where(expected, said, said + 1).astype(np.int32)
    for padding in (0, 16):
        book, ids = (np.pad(a, ((0, 0), (0, padding))) for a in (tokens, segments))
        right, chance = phonebook.answer(model, book, ids, asked, answers)
        np.testing.assert_array_equal(np.moveaxis(np.asarray(right), 1, 0), expected)
        nats = logits.astype(np.float64) - np.log(np.exp(logits.astype(np.float64)).sum(-1, keepdims=True))
        whole = np.take_along_axis(nats, answers[..., None], -1)[..., 0].sum(-1)
        np.testing.assert_allclose(np.moveaxis(np.asarray(chance), 1, 0), whole, atol=1e-5)


def test_a_book_is_asked_of_phone_book_data_only():
    with pytest.raises(ValueError, match="asks about phone books; the run's data is TextConfig"):
        text = ModelConfig("-", 8, 257)
        phonebook.evaluator(EXAM, RunConfig("s", "a", text, TextConfig(), EXAM))


@pytest.mark.parametrize(
    ("exam", "message"),
    [
        (PhonebookEvaluation(entries=(2, 64)), r"entries is \(2, 64\); books have at least 1 entry and at most"),
        (PhonebookEvaluation(entries=()), "books have at least 1 entry"),
        (PhonebookEvaluation(entries=(2,), books=1), "books=1 and queries=8; an interval needs at least 2 books"),
    ],
)
def test_books_that_cannot_be_asked_are_refused_before_training(exam, message):
    with pytest.raises(ValueError, match=message):
        exam.build(dataclasses.replace(RUN, evaluation=exam))
