import re

import pytest

from workbench.data.tokenizer import Bytes
from workbench.evaluate.tasks.item import Answer
from workbench.evaluate.tasks.recall import BLANKS, KINDS, Recall

GOLDEN = {
    "pairs": ("hall: paint\nbucket: gem\nmarket: snow\nbed: wall\nbed:", "wall"),
    "copying": (
        "Words: garden ship anchor brother\nThe same words again:",
        "garden ship anchor brother",
    ),
    "selective-copying": (
        "Words: ... ... radio ... ... ... ... ... ... ... ... arch ... car ... cloud\nThe same words without dots:",
        "radio arch car cloud",
    ),
    "induction": ("creek rail couch fence rail", "couch"),
    "trigrams": (
        "balloon cave prince\nballoon hotel rice\niron hotel road\niron cave garlic\nballoon hotel",
        "rice",
    ),
}


def answered(kind, prompt):
    """What a reader of the prompt alone would answer."""
    if kind == "pairs":
        *pairs, asked = prompt.split("\n")
        return dict(pair.split(": ") for pair in pairs)[asked.removesuffix(":")]
    if kind == "trigrams":
        *lines, asked = prompt.split("\n")
        return {line.rpartition(" ")[0]: line.rpartition(" ")[2] for line in lines}[asked]
    if kind == "induction":
        *words, last = prompt.split()
        return words[words.index(last) + 1]
    return " ".join(word for word in prompt.split("\n")[0].split()[1:] if word != "...")


def test_golden_items_byte_for_byte():
    for kind in KINDS:
        item = Recall(kind, 4).item(0, Bytes())
        assert (item.prompt, *item.references) == GOLDEN[kind]
        assert item.choices == (f" {item.references[0]}",)


@pytest.mark.parametrize("kind", KINDS)
def test_the_prompt_says_the_answer(kind):
    for size in (3 if kind == "trigrams" else 2, 16, 286):
        for index in range(5):
            item = Recall(kind, size).item(index, Bytes())
            assert answered(kind, item.prompt) == item.references[0]
            words = re.findall(r"[a-z]+", item.prompt.removesuffix(item.prompt.split("\n")[-1]))
            words = words[2::3] if kind == "trigrams" else words
            assert len(set(words)) == len(words)


def test_a_trigrams_third_word_follows_from_neither_word_alone():
    with pytest.raises(ValueError, match="of trigrams give 3"):
        Recall("trigrams", 2)
    for size in (3, 5, 9, 32):
        for index in range(8):
            *lines, asked = Recall("trigrams", size).item(index, Bytes()).prompt.split("\n")
            first, second = asked.split()
            triples = [line.split() for line in lines]
            assert len(triples) == size == len({third for *_, third in triples})
            assert sum(a == first for a, *_ in triples) >= 2 and sum(b == second for _, b, _ in triples) >= 2
            assert sum((a, b) == (first, second) for a, b, _ in triples) == 1


def test_words_to_copy_selectively_stand_among_blanks():
    item = Recall("selective-copying", 8).item(3, Bytes())
    assert item.prompt.count("...") == 8 * BLANKS


def test_answers_are_scored_whole_and_word_by_word():
    task = Recall("copying", 4)
    item = task.item(0, Bytes())

    def score(text):
        return task.score(item, Answer(text, (-2.0,)))

    assert score(" garden ship anchor brother")["exact_match"] == 1
    assert score(" garden ship brother anchor") == {"exact_match": 0, "word_accuracy": 0.5, "log_probability": -2}
    assert score(" garden ship anchor brother too")["exact_match"] == 0
    task = Recall("induction", 4)
    assert task.score(task.item(0, Bytes()), Answer(" couch fence", (-2.0,)))["exact_match"] == 1


def test_what_cannot_be_asked_is_refused():
    with pytest.raises(ValueError, match="did you mean 'copying'"):
        Recall("coping")
    with pytest.raises(ValueError, match="size is 287; give 2 to 286"):
        Recall(size=287)
