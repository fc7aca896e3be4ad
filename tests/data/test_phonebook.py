import dataclasses
import itertools

import numpy as np
import pytest

from workbench.config import PhonebookConfig
from workbench.data.phonebook import DIGIT, NAME, PADDING, QUERY, SPLITS, PhonebookStream, books, name_tokens, split_of

SMALL = PhonebookConfig(names=16, digits=2, entries=(2, 3, 4), length=48, batch=8)
TWO = PhonebookConfig(names=30, name_tokens=2, digits=3, entries=(2, 5), length=70, batch=6)
CONFIGS = pytest.mark.parametrize(
    "config", [PhonebookConfig(), SMALL, TWO], ids=["default", "small", "two-token names"]
)


def parsed(config, row, segments):
    """The books of a row as (entries, questions), each a list of (name tokens, number tokens), by reading tokens."""
    out = []
    for segment in range(1, segments.max() + 1):
        tokens = row[segments == segment].tolist()
        mark = tokens.index(QUERY)
        size = config.name_tokens + config.digits

        def entries(part, size=size):
            assert len(part) % size == 0
            pairs = [part[i : i + size] for i in range(0, len(part), size)]
            return [(tuple(p[: config.name_tokens]), tuple(p[config.name_tokens :])) for p in pairs]

        out.append((entries(tokens[:mark]), entries(tokens[mark + 1 :])))
    return out


def all_books(config, split="train", steps=12):
    stream = PhonebookStream(config, split)
    for step in range(steps):
        batch = stream.batch(step)
        for row, segments in zip(batch["tokens"], batch["segments"], strict=True):
            yield from parsed(config, row, segments)


def pairs(config, split, steps=15):
    return {entry for book, _ in all_books(config, split, steps) for entry in book}


@CONFIGS
def test_every_questions_answer_is_the_books(config):
    for book, questions in all_books(config):
        assert len(questions) == len(book)
        assert set(questions) <= set(book)


def test_what_was_asked_says_nothing_about_what_is_asked_next():
    """Every pair of places in the book is equally often asked in turn, the same one twice among them."""
    config = dataclasses.replace(SMALL, entries=(3,), batch=64)
    turns = [
        3 * book.index(one) + book.index(other)
        for book, questions in all_books(config, steps=60)
        for one, other in itertools.pairwise(questions)
    ]
    share = np.bincount(turns, minlength=9) / len(turns)
    assert len(turns) > 5000
    # neighbouring pairs of one book share a question, which at most doubles the variance
    assert np.abs(share - 1 / 9).max() < 4 * np.sqrt(2 * (1 / 9) / len(turns))


@CONFIGS
def test_names_in_a_book_are_distinct(config):
    for book, _ in all_books(config):
        assert len({name for name, _ in book}) == len(book)


@CONFIGS
def test_pairs_of_the_three_splits_are_disjoint(config):
    train, select, test = (pairs(config, split) for split in SPLITS)
    assert min(map(len, (train, select, test))) > 100
    assert not train & select and not train & test and not select & test


@CONFIGS
def test_the_splits_share_the_pairs_eight_to_one_to_one(config):
    name, number = np.meshgrid(np.arange(config.names), np.arange(10**config.digits), indexing="ij")
    tenth = split_of(config, name.ravel(), number.ravel())
    total = len(tenth)
    for low, high in SPLITS.values():
        share = ((tenth >= low) & (tenth < high)).mean()
        expected = (high - low) / 10
        assert abs(share - expected) < 4 * np.sqrt(expected * (1 - expected) / total)


def test_the_split_of_a_pair_depends_on_no_seed():
    assert not pairs(SMALL, "train") & pairs(dataclasses.replace(SMALL, seed=7), "test")


def test_each_pair_of_the_split_is_drawn_sooner_or_later():
    config = dataclasses.replace(SMALL, names=4, entries=(4,))
    name, number = np.meshgrid(np.arange(4), np.arange(100), indexing="ij")
    allowed = int((split_of(config, name, number) < 8).sum())
    assert len(pairs(config, "train", steps=400)) == allowed


@CONFIGS
def test_digits_are_uniform_at_each_place(config):
    """Over many books of a generous pool, within four standard deviations of a tenth."""
    rng = np.random.default_rng(0)
    config = dataclasses.replace(config, digits=3)
    numbers = books(config, "train", 2, 20_000, rng).numbers.reshape(-1, 3) - DIGIT
    pool = np.sqrt(0.09 / (config.names * 1000 * 0.8) * 0.2)  # of which pairs the hash lets through
    for place in numbers.T:
        share = np.bincount(place, minlength=10) / len(place)
        assert np.abs(share - 0.1).max() < 4 * (np.sqrt(0.09 / len(place)) + pool)


def test_every_name_is_drawn_equally_often_at_every_place_of_the_book():
    chosen = books(SMALL, "train", 4, 20_000, np.random.default_rng(1)).names[..., 0] - NAME
    for place in chosen.T:
        share = np.bincount(place, minlength=16) / len(place)
        assert np.abs(share - 1 / 16).max() < 4 * np.sqrt(1 / 16 / len(place))


@pytest.mark.parametrize("split", SPLITS)
def test_more_entries_than_names_is_refused(split):
    with pytest.raises(ValueError, match=r"17 entries .* there are 16"):
        books(SMALL, split, 17, 1, np.random.default_rng(0))


def test_as_many_entries_as_names_is_allowed():
    book = books(SMALL, "test", 16, 3, np.random.default_rng(0))
    assert (np.sort(book.names[..., 0], axis=1) == NAME + np.arange(16)).all()


def test_names_of_several_tokens_are_distinct_and_within_the_vocabulary():
    tokens = name_tokens(TWO, np.arange(TWO.names))
    assert tokens.shape == (30, 2)
    assert len({tuple(name) for name in tokens.tolist()}) == 30
    assert tokens.min() >= NAME and tokens.max() < TWO.vocabulary


@CONFIGS
def test_a_batch_is_a_pure_function_of_config_split_and_step(config):
    stream = PhonebookStream(config)
    first = stream.batch(3)
    stream.batch(0)
    for again in (stream.batch(3), PhonebookStream(config).batch(3)):
        assert all((first[name] == again[name]).all() for name in first)


@pytest.mark.parametrize(
    "other",
    [lambda c: PhonebookStream(dataclasses.replace(c, seed=1)).batch(3), lambda c: PhonebookStream(c).batch(4)]
    + [lambda c, split=split: PhonebookStream(c, split).batch(3) for split in ("select", "test")],
    ids=["seed", "step", "select", "test"],
)
def test_another_seed_step_or_split_gives_another_batch(other):
    assert (PhonebookStream(SMALL).batch(3)["tokens"] != other(SMALL)["tokens"]).any()


@CONFIGS
def test_only_the_digits_of_answers_are_weighted(config):
    batch = PhonebookStream(config).batch(0)
    tokens, targets, weights, segments = (batch[n] for n in ("tokens", "targets", "weights", "segments"))
    for row in range(config.batch):
        asking = np.zeros(config.length, bool)  # after the mark of its document
        for segment in range(1, segments[row].max() + 1):
            places = np.flatnonzero(segments[row] == segment)
            mark = places[tokens[row, places] == QUERY][0]
            asking[mark : places[-1]] = True
        digit = (targets[row] >= DIGIT) & (targets[row] < NAME)
        assert (weights[row] == (asking & digit)).all()


@CONFIGS
def test_a_target_is_the_next_token_of_the_same_book(config):
    batch = PhonebookStream(config).batch(1)
    same = (batch["segments"][:, :-1] == batch["segments"][:, 1:]) & (batch["segments"][:, :-1] > 0)
    assert (batch["targets"][:, :-1] == batch["tokens"][:, 1:])[same].all()
    assert (batch["weights"][:, :-1][~same] == 0).all() and (batch["weights"][:, -1] == 0).all()


@CONFIGS
def test_padding_stands_only_at_the_end_of_a_row(config):
    batch = PhonebookStream(config).batch(2)
    assert ((batch["segments"] == 0) == (batch["tokens"] == PADDING)).all()
    assert (np.diff((batch["segments"] > 0).astype(int), axis=1) <= 0).all()


@CONFIGS
def test_book_sizes_are_drawn_equally_often(config):
    """Over steps that are a multiple of their number, each size has exactly as many rows."""
    stream, rows = PhonebookStream(config), dict.fromkeys(config.entries, 0)
    for step in range(4 * len(config.entries)):
        batch = stream.batch(step)
        for row, segments in zip(batch["tokens"], batch["segments"], strict=True):
            rows[len(parsed(config, row, segments)[0][0])] += 1
    assert len(set(rows.values())) == 1


@CONFIGS
def test_tokens_are_within_the_vocabulary(config):
    batch = PhonebookStream(config).batch(0)
    assert batch["tokens"].min() >= 0 and batch["tokens"].max() < config.vocabulary
    assert batch["targets"].min() >= 0 and batch["targets"].max() < config.vocabulary


def test_a_row_too_short_for_a_book_says_how_long_it_must_be():
    needed = 2 * 8 * 3 + 1
    with pytest.raises(ValueError, match=rf"set data\.length={needed} "):
        PhonebookStream(dataclasses.replace(SMALL, entries=(8,), length=needed - 1))
    PhonebookStream(dataclasses.replace(SMALL, entries=(8,), length=needed)).batch(0)


def test_a_batch_of_none_is_refused():
    with pytest.raises(ValueError, match=r"data\.batch must be at least 1; got 0"):
        PhonebookConfig(batch=0).stream()


def test_an_unknown_split_is_refused():
    with pytest.raises(ValueError, match="'dev'"):
        PhonebookStream(SMALL, "dev")


class Impatient(np.random.Generator):
    """Gives up after ten thousand draws of numbers, so that a search without end is a failure and no hang."""

    draws = 0

    def integers(self, *args, **kwargs):
        self.draws += 1
        assert self.draws < 10_000, "still drawing numbers"
        return super().integers(*args, **kwargs)


@pytest.mark.parametrize("digits", [1, 2])
@pytest.mark.parametrize("split", SPLITS)
def test_numbers_too_short_for_a_split_are_refused(split, digits):
    """With few numbers, some names have none in a tenth of the hash range: nothing could be drawn for them."""
    config, (low, high) = dataclasses.replace(SMALL, digits=digits), SPLITS[split]
    name, number = np.meshgrid(np.arange(config.names), np.arange(10**digits), indexing="ij")
    tenth = split_of(config, name, number)
    rng = Impatient(np.random.PCG64(0))
    if ((low <= tenth) & (tenth < high)).any(axis=1).all():
        assert books(config, split, 16, 50, rng).numbers.shape == (50, 16, digits)
    else:
        with pytest.raises(ValueError, match="digits"):
            books(config, split, 16, 50, rng)
