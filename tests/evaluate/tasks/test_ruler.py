import math
import re
from collections import Counter

import pytest

from workbench.data import tokenizer as tokenizers
from workbench.data.tokenizer import Bytes
from workbench.evaluate.suite import digest
from workbench.evaluate.tasks.item import Answer, generator, tokens
from workbench.evaluate.tasks.ruler import MAKERS, NOISE, ROOM, Ruler

GOLDEN = {  # of item 0 at 2048 bytes
    "niah_single_1": "a79da26f117a0799",
    "niah_multikey_2": "ffabe397cc248fde",
    "niah_multikey_3": "2bd5c53c34ea3a5e",
    "vt": "765b77823e48b8e8",
    "cwe": "944c791f7ea6b18f",
    "fwe": "46b706c464dc775b",
}
NEEDLES = """\
A special magic number is hidden within the following text. Make sure to memorize it. I will quiz you about the number \
afterwards.
One of the special magic numbers for western-shop is: 8880408.
One of the special magic numbers for bronze-army is: 6995000.
One of the special magic numbers for eastern-beach is: 1715192.
What is the special magic number for eastern-beach mentioned in the provided text? The special magic number for \
eastern-beach mentioned in the provided text is"""


@pytest.fixture(scope="module")
def spoken():
    """A tokenizer that knows the prompts' words, as one that was trained on much text does."""
    return tokenizers.train((Ruler(kind, 8192).item(0, Bytes()).prompt.encode() for kind in MAKERS), 2000)


@pytest.mark.parametrize("kind", MAKERS)
def test_prompt_and_answer_are_within_one_unit_of_the_length(kind, spoken):
    for tokenizer, lengths in ((spoken, (512, 1024, 4096)), (Bytes(), (2048, 8192))):
        for length in lengths:
            task = Ruler(kind, length)
            item = task.item(1, tokenizer)
            room = item.tokens
            more = MAKERS[kind](length, item.facts["units"] + 1, generator(task.name, 1))
            assert room == ROOM[kind] if length >= 4096 else room >= 8 + tokens(tokenizer, " ".join(item.references))
            assert tokens(tokenizer, item.prompt) + room <= length
            assert tokens(tokenizer, more.prompt) + room + 16 > length  # its answer may take a step more room


def test_golden_items_byte_for_byte():
    assert Ruler("niah_multikey_2", 512).item(0, Bytes()).prompt == NEEDLES
    for kind, expected in GOLDEN.items():
        assert digest(Ruler(kind, 2048).item(0, Bytes())) == expected, kind


def test_a_needle_in_noise_is_there_once_and_its_number_nowhere_else():
    item = Ruler("niah_single_1", 4096).item(2, Bytes())
    (number,) = item.references
    key = re.search(r"What is the special magic number for (\S+) mentioned", item.prompt)[1]
    assert f"One of the special magic numbers for {key} is: {number}.\n" in item.prompt
    assert item.prompt.count(number) == 1 and re.fullmatch(r"\d{7}", number)
    assert item.prompt.count(NOISE) == item.facts["units"]
    assert item.prompt.endswith(f" The special magic number for {key} mentioned in the provided text is")


@pytest.mark.parametrize(("kind", "form"), [("niah_multikey_2", r"\d{7}"), ("niah_multikey_3", r"[0-9a-f-]{36}")])
def test_a_needle_among_needles_is_found_by_its_key_alone(kind, form):
    item = Ruler(kind, 6000).item(0, Bytes())
    found = re.findall(r"One of the special magic (?:numbers|uuids) for (\S+) is: (\S+)\.", item.prompt)
    key = re.search(r"What is the special magic \w+ for (\S+) mentioned", item.prompt)[1]
    assert len(found) == len(dict(found)) == item.facts["units"] + 1
    assert (dict(found)[key],) == item.references and re.fullmatch(form, item.references[0])
    assert item.chance == pytest.approx(1 / len(found))


def test_the_variables_of_a_chain_have_the_value_that_is_asked_for():
    for index in range(5):
        item = Ruler("vt", 4096).item(index, Bytes())
        example, _, prompt = item.prompt.rpartition("\n\nMemorize and track")
        value = re.search(r"assigned the value (\d+) in the text", prompt)[1]
        known = {}
        for name, given in re.findall(r"^VAR (\w+) = (?:VAR )?(\w+)$", prompt, re.M):
            known[name] = known.get(given, given)  # in the text's order
        assert {name for name, each in known.items() if each == value} == set(item.references)
        assert len(item.references) == 5 and all(re.fullmatch("[A-Z]{5}", name) for name in item.references)
        assert example.startswith("Memorize") and example.split(": ")[-1].split() != list(item.references)


@pytest.mark.parametrize(("length", "asked", "often", "seldom"), [(900, 3, 6, 1), (2048, 10, 6, 1), (8192, 10, 30, 3)])
def test_the_common_words_of_a_list_are_the_references(length, asked, often, seldom):
    item = Ruler("cwe", length).item(0, Bytes())
    listed = item.prompt.split("those in mind.\n")[-1].split("\nQuestion")[0]
    counts = Counter(word for number, word in re.findall(r"(\d+)\. (\w+)", listed))
    assert set(item.references) == {word for word, _ in counts.most_common(asked)}
    assert sorted(set(counts.values())) == [seldom, often] and len(item.references) == asked
    assert [int(n) for n in re.findall(r"(\d+)\. ", listed)] == list(range(1, sum(counts.values()) + 1))


def test_more_common_words_than_are_known_are_made_of_two():
    item = MAKERS["cwe"](131_072, 5000, generator("much", 0))
    assert len(set(re.findall(r"\d+\. (\w+)", item.prompt.split("those in mind.\n")[-1]))) == 5010


@pytest.mark.parametrize("length", [512, 1024, 4096, 16_384])
def test_the_frequent_words_are_the_second_to_fourth_by_zipfs_law(length):
    for index in range(4):
        item = Ruler("fwe", length).item(index, Bytes())
        words = item.prompt.split("\n")[1].split()
        counts = Counter(words).most_common()
        assert counts[0][0] == "..." and {word for word, _ in counts[1:4]} == set(item.references)
        assert len(counts) == 4 or counts[3][1] > counts[4][1]  # no tie for the fourth place
        total = next(n for n in range(len(words), 3 * len(words)) if math.floor(n * 6 / math.pi**2) == counts[0][1])
        assert any(
            [math.floor(n * 6 / math.pi**2 / k**2) for k in range(1, len(counts) + 1)] == [c for _, c in counts]
            for n in (total, total + 1)
        )


def test_an_answer_is_scored_by_the_share_of_references_that_it_contains():
    task = Ruler("vt", 4096)
    item = task.item(0, Bytes())
    some = f"they are {item.references[0].lower()}, {item.references[2]} and so on"
    assert task.score(item, Answer(some, ())) == {"contained": 0.4}
    assert task.score(item, Answer("", ())) == {"contained": 0}


def test_a_length_that_holds_no_haystack_is_refused_and_an_unknown_task_has_a_nearest():
    with pytest.raises(ValueError, match="ruler-vt-256 with room for its answer has"):
        Ruler("vt", 256).item(0, Bytes())
    with pytest.raises(ValueError, match="did you mean 'niah_multikey_2'"):
        Ruler("niah_multikey2")
