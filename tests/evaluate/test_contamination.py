import numpy as np

from workbench.evaluate.contamination import WORDS, counted, overlapping

WORDED = [f"w{i}" for i in range(40)]


def test_thirteen_words_in_a_row_are_found_and_twelve_are_not():
    text = " ".join(WORDED[:20])
    assert overlapping([text], ["x " + " ".join(WORDED[3 : 3 + WORDS]) + " y"]) == {0}
    assert overlapping([text], ["x " + " ".join(WORDED[3 : 2 + WORDS]) + " y"]) == set()
    assert overlapping([text], [" ".join([*WORDED[3:9], "x", *WORDED[9:17]])]) == set()
    assert overlapping([text], [" ".join(reversed(WORDED[:20]))]) == set()


def test_case_and_punctuation_do_not_hide_an_overlap_and_letters_of_any_script_count():
    text = "Où naît la Seine? Elle naît, dit-on, à Langres; puis elle coule vers Paris et la mer."
    document = "...OÙ NAÎT LA SEINE -- elle naît (dit on) à langres puis elle_coule vers paris!"
    assert overlapping(["nothing of it", text, text], [document]) == {1, 2}


def test_it_finds_what_comparing_everything_with_everything_finds():
    rng = np.random.default_rng(0)
    texts, documents = (
        [" ".join(map(str, rng.integers(2, size=n))) for n in sizes] for sizes in ([14] * 40, [30] * 60)
    )
    runs = [{tuple(text.split()[i : i + WORDS]) for i in range(len(text.split()) - WORDS + 1)} for text in texts]
    read = {tuple(each.split()[i : i + WORDS]) for each in documents for i in range(30 - WORDS + 1)}
    expected = {index for index, run in enumerate(runs) if run & read}
    assert 0 < len(expected) < 40
    assert overlapping(texts, documents) == expected


def test_the_count_is_over_what_was_scanned_and_none_is_said_so():
    results = {"a": {"items": 30, "overlapping": 2}, "b": {"items": 10, "overlapping": 0}, "c": {"left_out": "long"}}
    assert counted(results) == "2 of 40 items share 13 words in a row with the training corpus."
    assert counted({"c": {"items": 5}}, "its data is unknown").endswith("training corpus: its data is unknown")
    assert counted({"c": {"left_out": "long"}}).startswith("No item was asked")
