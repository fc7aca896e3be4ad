import pytest

from workbench.data.tokenizer import Bytes
from workbench.evaluate.suite import SUITES, digest
from workbench.evaluate.tasks.item import Task, fitted
from workbench.evaluate.tasks.words import ADJECTIVES, FIRST, LAST, NOUNS


@pytest.mark.parametrize("words", [ADJECTIVES, NOUNS, FIRST, LAST], ids=["adjectives", "nouns", "first", "last"])
def test_words_are_distinct_and_letters_alone(words):
    assert len(set(words)) == len(words) and all(word.isascii() and word.isalpha() for word in words)


def test_every_task_of_a_suite_has_a_name_of_its_own_and_keeps_the_contract():
    tasks = [task for suite in SUITES.values() for task in suite]
    assert all(isinstance(task, Task) for task in tasks)
    assert len({task.name for task in tasks}) == len(tasks) > 80


@pytest.mark.parametrize("name", ["phonebook", "recall"])
def test_an_item_follows_from_its_index_alone(name):
    for task in SUITES[name]:
        every = [task.item(index, Bytes()) for index in range(6)]
        assert task.item(4, Bytes()) == every[4]
        assert len({digest(item) for item in every}) == 6


@pytest.mark.parametrize("slope", [1, 7, 30])
def test_as_many_units_fit_as_may_and_one_more_would_not(slope):
    asked = []

    def size(units):
        asked.append(units)
        return 40 + slope * units + (units * 7919) % slope  # grows unevenly

    for limit in (100 + slope, 900, 100_000):
        asked.clear()
        units = fitted(size, 1, limit, "it")
        assert size(units) <= limit < size(units + 1)
        assert len(asked) < 45  # of up to 100,000


def test_what_is_too_long_at_its_shortest_is_refused_and_does_not_loop():
    with pytest.raises(ValueError, match="it has 53 tokens at its shortest and 50 are allowed"):
        fitted(lambda units: 50 + units, 3, 50, "it")
