"""Exact match on unseen phone books, by number of entries and by the entry's depth.

A book is read once; every question is asked from the state after it, so questions cannot help each other. The greedy
answer is right exactly when each digit is the argmax after the right digits before it, which one pass shows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from workbench.config import PhonebookConfig, PhonebookEvaluation, RunConfig
from workbench.data import phonebook
from workbench.evaluate.interval import clustered
from workbench.evaluate.items import Scored
from workbench.model.language_model import LanguageModel

SEED = 20240612  # of the items: the same books for every arm, seed and step


def evaluator(config: PhonebookEvaluation, run: RunConfig) -> Callable[[LanguageModel, str], dict]:
    """`evaluate(model, split) -> scores`; see `scores`. Raises ValueError if no such books can be made."""
    data = run.data
    if not isinstance(data, PhonebookConfig):
        raise ValueError(f"PhonebookEvaluation asks about phone books; the run's data is {type(data).__name__}")
    if not config.entries or min(config.entries) < 1 or max(config.entries) > data.names:
        raise ValueError(
            f"evaluation.entries is {config.entries}; books have at least 1 entry and at most data.names={data.names}"
        )
    if config.books < 2 or config.queries < 1:
        raise ValueError(
            f"evaluation.books={config.books} and queries={config.queries}; an interval needs at least 2 books, "
            "and each at least 1 query"
        )

    def evaluate(model: LanguageModel, split: str) -> dict:
        absent = [k for k in config.entries if k in data.entries and k < data.names and split == "test"]
        exams = [(k, False) for k in config.entries] + [(k, True) for k in absent]
        papers = [questions(config, data, split, *exam) for exam in exams]
        longest = max(tokens.shape[1] for tokens, *_ in papers)
        right = {}
        for exam, (tokens, segments, asked, answers, depth) in zip(exams, papers, strict=True):
            missing = longest - tokens.shape[1]  # padded to one length, so that every size runs one program
            tokens, segments = (np.pad(a, ((0, 0), (0, missing))) for a in (tokens, segments))
            once = _distinct(depth)
            digits, nats = (np.asarray(each)[:, once] for each in answer(model, tokens, segments, asked, answers))
            right[exam] = (digits, nats, depth[once])
        by_size = {str(k): baselines(config, data, split, k) for k in config.entries}
        return scores(data.entries, right, by_size, 10.0**-data.digits)

    return evaluate


def questions(config: PhonebookEvaluation, data: PhonebookConfig, split: str, entries: int, removed: bool = False):
    """Books of `entries` entries and what is asked of them.

    tokens, segments [books, T]: the book and the query mark. asked [queries, books, L]: name and all digits but the
    last. answers [queries, books, digits]. depth [queries]: the asked-for entry's index. With `removed`, the asked-for
    entries have been taken out of the book.
    """
    rng = np.random.Generator(np.random.Philox(key=[SEED, 10 * entries + list(phonebook.SPLITS).index(split)]))
    extra = min(config.queries, data.names - entries) if removed else 0
    names, numbers = phonebook.books(data, split, entries + extra, config.books, rng)
    book = np.concatenate([names, numbers], axis=-1)[:, :entries].reshape(config.books, -1)
    tokens = np.concatenate([book, np.full((config.books, 1), phonebook.QUERY, np.int32)], axis=1)
    if removed:
        depth = entries + np.arange(config.queries) % extra
    else:
        depth = np.linspace(0, entries - 1, config.queries).round().astype(int)
    asked = np.concatenate([names, numbers[..., :-1]], axis=-1)[:, depth].transpose(1, 0, 2)
    return tokens, np.ones_like(tokens), asked, numbers[:, depth].transpose(1, 0, 2), depth


def _distinct(depth: np.ndarray) -> np.ndarray:
    """Index of the first query at each depth: a small book has fewer entries than queries."""
    return np.unique(depth, return_index=True)[1]


@jax.jit
def answer(model, tokens, segments, asked, answers):
    """Which digits are right [books, queries, digits], and the answers' log-probability in nats [books, queries].

    The latter is the sum over all digits, each after the right ones before it.
    """
    state = model.initial_state(tokens.shape[0], tokens.shape[1] + asked.shape[2])
    state = model(tokens, state, segments).state
    digits = answers.shape[-1]

    def ask(question):
        words, answer = question
        hidden = model(words, state).hidden[:, -digits:]
        logits = model.logits(hidden)
        each = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
        nats = jnp.take_along_axis(each, answer[..., None], axis=-1)[..., 0].sum(axis=-1)
        return logits.argmax(axis=-1) == answer, nats

    return jax.tree.map(lambda each: jnp.moveaxis(each, 0, 1), jax.lax.map(ask, (asked, answers)))


def scores(trained: Sequence[int], right: dict, baselines: dict[str, dict[str, float]], chance: float) -> Scored:
    """Exact match and digit accuracy by entry count with 95% intervals clustered by book, by depth, and baselines.

    right: by (entries, removed), what `answer` gives, and the queries' depth.

    score: mean exact match over the book sizes that were trained on, what the "best" checkpoint goes by; tuning goes
    by the mean over all sizes. digit_accuracy: each digit after the right ones before it. removed: the control, on
    test alone: exact match where the asked-for entry was taken out, which must fall to chance. Rows: a question each,
    with the place that it asks for, None where it asks for no single one, which of the answer's tokens are right, and
    the log-probability of the whole answer in nats.
    """
    known = [digits for (k, removed), (digits, *_) in right.items() if k in trained and not removed]
    score = float(np.mean([digits.all(axis=-1).mean() for digits in known])) if known else 0.0
    out = {
        "score": score,
        "trained_entries": list(trained),
        "exact_match": {},
        "digit_accuracy": {},
        "per_book": {},
    }
    out |= {"by_depth": [], "baselines": baselines, "removed": {}}
    for (k, removed), (digits, _, depth) in right.items():
        whole = digits.all(axis=-1)
        if removed:
            out["removed"][str(k)] = _share(whole) | {"chance": chance}
            continue
        out["exact_match"][str(k)] = _share(whole)
        out["digit_accuracy"][str(k)] = _share(digits)
        out["per_book"][str(k)] = [round(float(value), 6) for value in whole.mean(axis=1)]
        for column, place in enumerate(depth):
            at = {"entries": k, "depth": float(place / max(k - 1, 1))}
            out["by_depth"].append(at | _share(whole[:, column]))
    return Scored(out, _rows(right))


def _rows(right: dict) -> list[dict]:
    return [
        {
            "entries": k,
            "removed": removed,
            "book": book,
            "question": question,
            "place": int(depth[question]) if len(depth) else None,
            "right": digits[book, question].astype(int).tolist(),
            "log_probability": float(nats[book, question]),
        }
        for (k, removed), (digits, nats, depth) in right.items()
        for book, question in np.ndindex(digits.shape[:2])
    ]


def _share(right: np.ndarray) -> dict[str, float | int]:
    """Share of right answers [books, ...] with its 95% interval, clustered by book."""
    by_book = right.reshape(len(right), -1)
    return clustered(by_book.sum(axis=1), np.full(len(right), by_book.shape[1]))._asdict() | {"items": right.size}


def baselines(config: PhonebookEvaluation, data: PhonebookConfig, split: str, entries: int) -> dict[str, float]:
    """What can be had without looking every digit up, measured on the evaluated books where it depends on them.

    copy_any: any number of the book. constant: the number that is right most often. digit_by_digit: the book's most
    frequent digit at each place. digit_to_digit: the first digit looked up, then what follows the digit before anywhere
    in the book at that place: a look-up by digit in place of one by name, right most of the time in a small book.
    """
    tokens, _, _, answers, _ = questions(config, data, split, entries)
    entry = data.name_tokens + data.digits
    numbers = tokens[:, :-1].reshape(config.books, entries, entry)[..., data.name_tokens :]
    counts = np.stack([(numbers == phonebook.DIGIT + d).sum(axis=1) for d in range(10)], axis=-1)
    guess = counts.argmax(axis=-1) + phonebook.DIGIT
    return {
        "copy_any": 1 / entries,
        "constant": float(np.unique(answers.reshape(-1, data.digits), axis=0, return_counts=True)[1].max())
        / answers[..., 0].size,
        "digit_by_digit": float((answers == guess[None]).all(axis=-1).mean()),
        "digit_to_digit": _digit_to_digit(numbers, answers),
    }


def _digit_to_digit(numbers: np.ndarray, answers: np.ndarray) -> float:
    """Share right of guesses by the digit before; numbers [books, entries, digits], answers [queries, books, digits].

    Where several entries share the digit before, the guess is one of theirs, each as likely.
    """
    right = np.ones(answers.shape[:2])
    for place in range(1, answers.shape[-1]):
        same = numbers[None, :, :, place - 1] == answers[:, :, None, place - 1]
        next_too = same & (numbers[None, :, :, place] == answers[:, :, None, place])
        right = right * next_too.sum(axis=-1) / same.sum(axis=-1)
    return float(right.mean())
