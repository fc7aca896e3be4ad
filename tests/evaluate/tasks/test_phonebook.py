import re

import numpy as np
import pytest

from workbench.data import tokenizer as tokenizers
from workbench.data.tokenizer import Bytes, Encoded
from workbench.evaluate.tasks.item import Answer, tokens
from workbench.evaluate.tasks.phonebook import ANSWER, Phonebook, spelling

STANDARD = """\
Carl Webster: 437-719-8343
Russell Manning: 756-810-8750
Maureen Rhodes: 434-623-2639
Bruce Beck: 369-946-1660
What is the phone number for Maureen Rhodes?
Answer: 434-623-2639
What is the phone number for Russell Manning?
Answer: 756-810-8750
What is the phone number for Carl Webster?
Answer:"""
REVERSED = """\
Given a phone book with entries of the form:
Carl Webster: 437-719-8343
Bruce Beck: 369-946-1660
... and so on.
Please find the phone number for Maureen Rhodes.
I will ask you for this phone number later.
Memorize it so you can respond correctly.
Remember Maureen Rhodes.
Here is the phonebook:

Carl Webster: 437-719-8343
Russell Manning: 756-810-8750
Maureen Rhodes: 434-623-2639
Bruce Beck: 369-946-1660
Okay, that is the end of the phonebook.
Remember when I asked you to memorize the phone number for Maureen Rhodes?
What is the phone number for Maureen Rhodes?
Answer:"""
ENTRY = re.compile(r"^([A-Z][a-z]+ [A-Z][a-z]+): (\d{3}-\d{3}-\d{4})$", re.M)


class Triples(Bytes):
    """Up to three digits are one token."""

    def encode(self, documents):
        return [
            Encoded(np.zeros(len(found), np.int64), np.array([len(each) for each in found], np.int64))
            for found in (re.findall(rb"\d{1,3}|[^\d]", document) for document in documents)
        ]


def test_golden_items_byte_for_byte():
    standard, turned = Phonebook(4).item(0, Bytes()), Phonebook(4, order="reversed").item(3, Bytes())
    assert standard.prompt == STANDARD and turned.prompt == REVERSED
    assert standard.references == ("437-719-8343",) and turned.references == ("434-623-2639",)
    assert (standard.choices, standard.stop, standard.chance) == ((" 437-719-8343",), ("\n",), 0.25)


@pytest.mark.parametrize("order", ["standard", "reversed"])
@pytest.mark.parametrize("entries", [3, 40])
def test_the_asked_for_number_is_the_books_at_the_depth_that_was_asked_for(order, entries):
    task = Phonebook(entries, order=order)
    for index in range(15):
        item = task.item(index, Bytes())
        book = item.prompt.partition("Here is the phonebook:")[2] or item.prompt
        found = ENTRY.findall(book)
        asked = re.findall(r"What is the phone number for (.*)\?", item.prompt)[-1]
        assert len(found) == len(dict(found)) == entries
        assert dict(found)[asked] == item.references[0]
        place = [name for name, _ in found].index(asked)
        assert place == item.facts["place"] == round(task.depths[index % 5] * (entries - 1))


def test_numbers_are_within_their_ranges_and_worked_examples_are_of_others():
    item = Phonebook(2000).item(7, Bytes())
    area, exchange, subscriber = np.array([n.split("-") for _, n in ENTRY.findall(item.prompt)], int).T
    assert min(area.min(), exchange.min()) >= 200 and max(area.max(), exchange.max()) <= 999
    assert subscriber.min() >= 1000 and subscriber.max() <= 9999
    asked = re.findall(r"What is the phone number for (.*)\?", item.prompt)
    assert len(set(asked)) == 3


def test_questions_about_one_book_share_it_and_their_cluster():
    items = [Phonebook(8).item(index, Bytes()) for index in range(10)]
    books = [item.prompt.partition("What")[0] for item in items]
    assert len(set(books)) == 2 and len(set(books[:5])) == 1
    assert [item.cluster for item in items] == ["book 0"] * 5 + ["book 1"] * 5


@pytest.mark.parametrize("order", ["standard", "reversed"])
@pytest.mark.parametrize("length", [700, 3000])
def test_a_book_made_to_a_length_leaves_less_than_an_entry_over(order, length):
    spoken = tokenizers.train(iter([STANDARD.encode()] * 20), 400)
    for tokenizer in (Bytes(), spoken):
        for index in (0, 4):
            item = Phonebook(length=length, order=order).item(index, tokenizer)
            longer = Phonebook(item.facts["entries"] + 1, order=order).item(index, tokenizer)
            assert tokens(tokenizer, item.prompt) + ANSWER <= length < tokens(tokenizer, longer.prompt) + ANSWER


def test_a_tokenizer_that_merges_digits_is_flagged():
    assert spelling(Bytes())["tokens_per_digit"] == 1 and not spelling(Bytes())["merges_digits"]
    merged = spelling(Triples())
    assert merged["merges_digits"]
    assert merged["tokens_per_digit"] == pytest.approx(0.4)  # 123-456-7890: 3, 3, 3 and 1 digits in 4 tokens
    assert spelling(Bytes())["tokens_per_entry"] - merged["tokens_per_entry"] == pytest.approx(6)


def test_answers_are_scored_whole_and_digit_by_digit():
    task = Phonebook(4)
    item = task.item(0, Bytes())  # 437-719-8343

    def score(text):
        return task.score(item, Answer(text, (-1.5,)))

    assert score(" 437-719-8343") == {"exact_match": 1, "digit_accuracy": 1, "log_probability": -1.5}
    assert score(" 437-719-8344")["exact_match"] == 0 and score(" 437-719-8344")["digit_accuracy"] == 0.9
    assert score(" 437")["digit_accuracy"] == pytest.approx(0.3)
    assert score("")["digit_accuracy"] == 0 == score(" nothing")["exact_match"]


def test_what_cannot_be_asked_is_refused():
    with pytest.raises(ValueError, match="did you mean 'reversed'"):
        Phonebook(order="reverse")
    with pytest.raises(ValueError, match="entries is 2"):
        Phonebook(2)
    with pytest.raises(ValueError, match=r"prompt of phonebook-standard-100-tokens has \d+ tokens at its shortest"):
        Phonebook(length=100).item(0, Bytes())
