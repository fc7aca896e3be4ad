import json
import math

import pytest

from workbench.data.tokenizer import Bytes
from workbench.evaluate.tasks.choices import Choices
from workbench.evaluate.tasks.item import Answer

ROWS = [
    {"question": "Which is warm?", "choices": ["ice", "fire"], "answer": 1},
    {"question": "Où naît la Seine ?", "choices": ["Langres", "Lyon", "à Paris"], "answer": "A"},
    {"question": "What is 2 + 2?", "choices": ["3", "4", "5"], "answer": "B"},
]


@pytest.fixture
def file(tmp_path):
    (tmp_path / "quiz.jsonl").write_text("\n".join(map(json.dumps, ROWS)) + "\n\n")
    return str(tmp_path / "quiz.jsonl")


def test_golden_items_of_the_three_forms_byte_for_byte(file):
    letter, text, cloze = (Choices(file, form).item(1, Bytes()) for form in ("letter", "text", "cloze"))
    shown = "Question: Où naît la Seine ?\nA. Langres\nB. Lyon\nC. à Paris\nAnswer:"
    assert (letter.prompt, letter.choices, letter.references) == (shown, (" A", " B", " C"), (" A",))
    assert (text.prompt, text.choices, text.references) == (shown, (" Langres", " Lyon", " à Paris"), (" Langres",))
    assert (cloze.prompt, cloze.choices) == ("Question: Où naît la Seine ?\nAnswer:", text.choices)
    assert letter.chance == pytest.approx(1 / 3) and letter.tokens == 0


def test_shots_are_shown_with_their_answers_and_not_asked(file):
    task = Choices(file, "letter", shots=2)
    assert len(task) == 1 and len(Choices(file)) == 3 and len(Choices(file, count=2)) == 2
    begins = "Question: Which is warm?\nA. ice\nB. fire\nAnswer: B\n\nQuestion: Où naît la Seine ?\n"
    item = task.item(0, Bytes())
    assert item.prompt.startswith(begins)
    assert item.prompt.endswith("Answer: A\n\nQuestion: What is 2 + 2?\nA. 3\nB. 4\nC. 5\nAnswer:")


def test_the_likeliest_choice_is_the_answer_and_by_byte_a_long_one_is_not_punished(file):
    task = Choices(file, "cloze")
    item = task.item(0, Bytes())  # " ice" of 4 bytes, " fire" of 5, which is right
    assert task.score(item, Answer("", (-4.0, -4.5))) == {
        "acc": 0,
        "acc_norm": 1,
        "probability": pytest.approx(math.exp(-4.5) / (math.exp(-4.0) + math.exp(-4.5))),
    }


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"question": ', "is no JSON"),
        ('{"choices": ["a", "b"], "answer": 0}', 'has no "question"'),
        ('{"question": "q", "choices": "ab", "answer": 0}', '"choices" is not a list'),
        ('{"question": "q", "choices": ["a", "a"], "answer": 0}', "2 choices; they are 2 to 26, each different"),
        ('{"question": "q", "choices": ["a", "b"], "answer": 2}', '"answer" is 2; it is the index of a choice, 0 to 1'),
        ('{"question": "q", "choices": ["a", "b"], "answer": true}', '"answer" is True'),
        ('{"question": "q", "choices": ["a", "b"], "answer": "C"}', "\"answer\" is 'C'"),
        ("[1]", 'has no "question"'),
    ],
)
def test_a_malformed_line_is_named(file, line, message):
    with open(file, "a") as out:
        out.write(line + "\n")
    with pytest.raises(ValueError, match=r"quiz.jsonl, line 5") as error:
        len(Choices(file))
    assert message in str(error.value)


def test_a_file_that_is_absent_or_empty_is_named(tmp_path):
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="has no questions"):
        len(Choices(str(tmp_path / "empty.jsonl")))
    with pytest.raises(ValueError, match="is not there"):
        len(Choices(str(tmp_path / "none.jsonl")))
