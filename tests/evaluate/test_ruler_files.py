import json
import os
import re

import numpy as np
import pytest

from workbench.data import tokenizer as tokenizers
from workbench.data.tokenizer import Bytes
from workbench.evaluate.tasks.item import Answer, tokens
from workbench.evaluate.tasks.ruler import KINDS, ROOM, Ruler
from workbench.evaluate.tasks.words import NOUNS

NEEDLES = {  # keys, values of each, keys that are asked for, and what a value looks like
    "niah_single_2": (1, 1, 1, r"\d{7}"),
    "niah_single_3": (1, 1, 1, r"[0-9a-f]{8}-([0-9a-f]{4}-){3}[0-9a-f]{12}"),
    "niah_multikey_1": (4, 1, 1, r"\d{7}"),
    "niah_multivalue": (1, 4, 1, r"\d{7}"),
    "niah_multiquery": (4, 1, 4, r"\d{7}"),
}
DOCUMENTS = ("qa_1", "qa_2")
NEEDLE = re.compile(r"One of the special magic (?:numbers|uuids) for (\S+) is: (\S+)\.")
QUESTIONS = 80  # in the file, of each kind


def sentences(rng, count):
    lines = [" ".join(NOUNS[i] for i in rng.integers(len(NOUNS), size=rng.integers(4, 12))) for _ in range(count)]
    return [f"{line.capitalize()} naïve 🐙." for line in lines]


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """The fields of a task, with essays of some 1,000 words and a file of questions."""
    folder, rng = tmp_path_factory.mktemp("given"), np.random.default_rng(0)
    for name in ("b.txt", "a/deep/c.txt", "a/d.txt"):
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_text("\n\n".join([*sentences(rng, 30), "Dr. Who asks? e.g. \tnothing… “Yes!”\n"]))
    lines = []
    for number in range(2 * QUESTIONS):
        documents = [f"Title {number}\n" + " ".join(sentences(rng, 9)) for _ in range(1 + number % 2)]
        if number == 2 * QUESTIONS - 2:
            documents = lines[0]["documents"]  # two questions on one document
        lines.append({"question": f"Who is {number}?", "answers": [f"Ann {number}", f"A. {number}"]})
        lines[-1]["documents"] = documents
    (folder / "questions.jsonl").write_text("".join(f"{json.dumps(line)}\n\n" for line in lines))
    return {"essays": str(folder / "**" / "*.txt"), "questions": str(folder / "questions.jsonl")}


@pytest.fixture(scope="module")
def words(given):
    folder = given["essays"].removesuffix("**/*.txt")
    return " ".join(open(folder + name).read() for name in ("a/d.txt", "a/deep/c.txt", "b.txt")).split()


@pytest.fixture(scope="module")
def lines(given):
    return [json.loads(line) for line in open(given["questions"]) if line.strip()]


@pytest.fixture(scope="module")
def spoken(given):
    """A tokenizer that knows the prompts' words, as one that was trained on much text does."""
    return tokenizers.train((Ruler(k, 8192, **given).item(0, Bytes()).prompt.encode() for k in KINDS), 2000)


def context(item):
    return item.prompt.split(" afterwards.\n")[1].rpartition("\nWhat ")[0]


def documents(item):
    """Those that a prompt shows, by the number that they are given."""
    shown = item.prompt.split("given documents.\n\n")[1].rpartition("\n\nAnswer the question")[0]
    found = re.split(r"(?:^|\n\n)Document (\d+):\n", shown)[1:]
    return dict(zip(map(int, found[::2]), found[1::2], strict=True))


@pytest.mark.parametrize("kind", [*NEEDLES, *DOCUMENTS])
def test_prompt_and_answer_are_within_one_unit_of_the_length(kind, given, words, lines, spoken):
    for tokenizer in (spoken, Bytes()):
        units = [f"Document 99:\n{document}\n\n" for line in lines for document in line["documents"]]
        largest = max(tokens(tokenizer, unit) for unit in (units if kind in DOCUMENTS else {f" {w}" for w in words}))
        for length in (512, 4096, 8192) if tokenizer is spoken else (2048, 4096, 8192):
            item = Ruler(kind, length, **given).item(1, tokenizer)
            if length >= 4096:
                assert item.tokens == ROOM[kind]
            else:
                assert item.tokens >= 8 + max(tokens(tokenizer, f" {answer}") for answer in item.references)
            assert 0 <= length - tokens(tokenizer, item.prompt) - item.tokens < largest


@pytest.mark.parametrize("kind", NEEDLES)
def test_needles_stand_verbatim_between_sentences_of_essays_that_begin_anew_where_they_end(kind, given, words):
    keys, each, _, form = NEEDLES[kind]
    for index, length in ((0, 2000), (1, 4096), (2, 20_000)):
        item = Ruler(kind, length, **given).item(index, Bytes())
        text, units = context(item), item.facts["units"]
        found = NEEDLE.findall(text)
        assert len(set(found)) == len(found) == keys * each and len({key for key, _ in found}) == keys
        assert all(re.fullmatch(form, value) for _, value in found)
        rounds = 1 + units // len(words)
        assert NEEDLE.sub(" ", text).split() == (words * rounds)[:units] and (rounds > 1) == (length == 20_000)
        for match in NEEDLE.finditer(text):
            before, after = NEEDLE.sub("", text[: match.start()]).strip(), NEEDLE.sub("", text[match.end() :]).strip()
            assert not before or not after or before.endswith((" 🐙.", "asks?", "“Yes!”"))


@pytest.mark.parametrize("kind", NEEDLES)
def test_the_references_are_all_values_of_the_keys_that_are_asked_for(kind, given):
    _, _, asked, _ = NEEDLES[kind]
    orders = set()
    for index in range(5):
        item = Ruler(kind, 4096, **given).item(index, Bytes())
        found = NEEDLE.findall(context(item))
        query = re.search(r"special magic \w+ for ([^\n]*) mentioned in the provided text\?", item.prompt)[1]
        queried = query.replace(", and ", ", ").split(", ")
        assert len(queried) == asked and query.count(", and ") == (asked > 1)
        for place, key in enumerate(queried):
            values = {value for each, value in found if each == key}
            assert values and values == set(item.references[place * len(values) : (place + 1) * len(values)])
        assert len(item.references) == sum(key in queried for key, _ in found)
        assert item.chance == (0.25 if kind == "niah_multikey_1" else 0)
        orders.add(tuple(item.references.index(value) for key, value in found if key in queried))
        places = [item.prompt.index(f" {value}.") / len(item.prompt) for value in item.references]
        assert item.facts["depth"] == pytest.approx(min(places), abs=0.15)
        assert item.facts["end"] == pytest.approx(max(places), abs=0.15)
    assert len(orders) > 1 or len(item.references) == 1  # they do not stand in the order in which they are asked for


@pytest.mark.parametrize("kind", NEEDLES)
def test_several_values_are_asked_for_in_the_plural_and_one_in_the_singular(kind, given):
    item = Ruler(kind, 4096, **given).item(0, Bytes())
    of = "uuid" if kind == "niah_single_3" else "number"
    if kind in ("niah_multivalue", "niah_multiquery"):
        begin = f"Some special magic {of}s are hidden within the following text. Make sure to memorize it. "
        begin += f"I will quiz you about the {of}s afterwards.\n"
        ask = f"What are all the special magic {of}s for (.*) mentioned in the provided text[?] "
        ask += rf"The special magic {of}s for \1 mentioned in the provided text are"
    else:
        begin = f"A special magic {of} is hidden within the following text. Make sure to memorize it. "
        begin += f"I will quiz you about the {of} afterwards.\n"
        ask = f"What is the special magic {of} for (.*) mentioned in the provided text[?] "
        ask += rf"The special magic {of} for \1 mentioned in the provided text is"
    assert item.prompt.startswith(begin) and re.fullmatch(ask, item.prompt.rsplit("\n", 1)[1])


@pytest.mark.parametrize("kind", DOCUMENTS)
def test_the_documents_of_a_question_are_in_its_prompt_among_some_of_others_each_once(kind, given, lines):
    own = [line for line in lines if (len(line["documents"]) > 1) == (kind == "qa_2")]
    every = {document for line in own for document in line["documents"]}
    places = set()
    for index, line in enumerate(own[:10]):
        item = Ruler(kind, 8192, **given).item(index, Bytes())
        shown = documents(item)
        gold = [number for number, document in shown.items() if document in line["documents"]]
        assert {shown[number] for number in gold} == set(line["documents"]) and len(gold) == len(line["documents"])
        assert len(set(shown.values())) == len(shown) == item.facts["units"] + len(gold) > 5
        assert set(shown.values()) <= every and list(shown) == list(range(1, len(shown) + 1))
        assert item.references == tuple(line["answers"])
        assert item.prompt.endswith(f" other words.\n\nQuestion: {line['question']} Answer:")
        assert item.facts["depth"] == pytest.approx((min(gold) - 1) / (len(shown) - 1))
        assert item.facts["end"] == pytest.approx((max(gold) - 1) / (len(shown) - 1))
        places.add(min(gold))
    assert len(places) > 2


def test_all_documents_are_shown_where_a_length_would_hold_more(given, lines):
    for kind in DOCUMENTS:
        item = Ruler(kind, 400_000, **given).item(1, Bytes())
        own = {
            document
            for line in lines
            for document in line["documents"]
            if (len(line["documents"]) > 1) == (kind == "qa_2")
        }
        assert len(item.prompt.encode()) < 200_000 and sorted(documents(item).values()) == sorted(own)


def test_a_task_asks_at_most_the_questions_of_its_kind_and_those_on_one_document_are_a_cluster(given):
    assert [len(Ruler(kind, 4096, count, **given)) for kind in DOCUMENTS for count in (200, 7)] == [QUESTIONS, 7] * 2
    assert len(Ruler("niah_single_2", 4096, 200, **given)) == 200
    task = Ruler("qa_1", 4096, **given)
    items = [task.item(index, Bytes()) for index in range(QUESTIONS)]
    assert items[0].cluster == items[-1].cluster and len({item.cluster for item in items}) == QUESTIONS - 1
    with pytest.raises(ValueError, match=r"ruler-qa_1-4096 has no item 80: .*questions.jsonl has 80 of its kind"):
        task.item(QUESTIONS, Bytes())


def test_a_question_is_right_by_any_answer_and_needles_by_their_share(given):
    task = Ruler("qa_2", 4096, **given)
    item = task.item(0, Bytes())
    assert item.references == ("Ann 1", "A. 1")
    for said, score in (("it is ann 1.", 1), ("A. 1", 1), ("Ann", 0), ("", 0)):
        assert task.score(item, Answer(said, ())) == {"contained": score}
    for kind in ("niah_multivalue", "niah_multiquery"):
        task = Ruler(kind, 4096, **given)
        item = task.item(0, Bytes())
        for count in range(5):
            assert task.score(item, Answer(" and ".join(item.references[:count]), ())) == {"contained": count / 4}


@pytest.mark.parametrize("kind", [*NEEDLES, *DOCUMENTS])
def test_an_item_follows_from_its_task_and_its_index_alone(kind, given):
    task = Ruler(kind, 4096, **given)
    items = [task.item(index, Bytes()) for index in range(3)]
    assert [Ruler(kind, 4096, 7, **given).item(index, Bytes()) for index in (2, 1, 0)] == items[::-1]
    assert len({item.prompt for item in items}) == 3


def test_essays_without_spaces_are_cut_finely_and_hold_needles_between_sentences(tmp_path):
    (tmp_path / "[1].txt").write_text(
        "草是绿色的。天空是蓝色的！" + "太阳是黄色的，我们走吧" * 40 + "。" + "去了又回来。" * 90
    )
    for index in range(5):
        item = Ruler("niah_multivalue", 4096, essays=str(tmp_path / "[1].txt")).item(index, Bytes())
        assert 0 <= 4096 - len(item.prompt.encode()) - 128 < 100  # 32 characters
        text = context(item)
        assert len(NEEDLE.findall(text)) == 4
        for match in NEEDLE.finditer(text):
            before, after = NEEDLE.sub("", text[: match.start()]).strip(), NEEDLE.sub("", text[match.end() :]).strip()
            assert not before or not after or before[-1] in "。！"


def test_no_needle_stands_after_an_abbreviation(tmp_path):
    (tmp_path / "essay.txt").write_text("He met Dr. Who and J. Doe, e.g. at sea. " * 50)
    for index in range(5):
        text = context(Ruler("niah_multiquery", 3000, essays=str(tmp_path / "essay.txt")).item(index, Bytes()))
        parts = [part.strip() for part in re.split(NEEDLE.pattern.replace("(\\S+)", "\\S+"), text)]
        assert len(parts) == 5 and all(not part or part.endswith("at sea.") for part in parts[:-2])


def test_files_that_change_are_read_again(tmp_path):
    path = tmp_path / "essay.txt"
    task = Ruler("niah_single_2", 1024, essays=str(path))
    for turn, word in enumerate(("before", "after")):
        path.write_text(f"It was {word}. " * 100)
        os.utime(path, (turn, turn))
        assert f"It was {word}." in task.item(0, Bytes()).prompt


def test_missing_names_the_file_that_a_kind_needs():
    needed = {kind: Ruler(kind).missing for kind in KINDS}
    assert len(needed) == 13
    assert {kind for kind, field in needed.items() if field == "essays"} == set(NEEDLES)
    assert {kind for kind, field in needed.items() if field == "questions"} == set(DOCUMENTS)
    assert {field for field in needed.values()} == {"", "essays", "questions"}
    assert {Ruler(kind, essays="a", questions="b").missing for kind in KINDS} == {""}
    assert (Ruler("qa_1", essays="a").missing, Ruler("vt", questions="b").missing) == ("questions", "")
    with pytest.raises(ValueError, match="ruler-niah_single_2-4096 needs essays, which is not given: a file or glob"):
        Ruler("niah_single_2").item(0, Bytes())
    with pytest.raises(ValueError, match=r"ruler-qa_1-4096 needs questions, which is not given: a .jsonl file"):
        len(Ruler("qa_1"))


GOOD = b'{"question": "Who?", "answers": ["Ann"], "documents": ["Ann was here."]}\n'


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"{", r"is no JSON \(.*\); a line is {"),
        (b"[1, 2]", r"is \[1, 2\]; a line is {"),
        (b'{"question": "Who?", "answers": ["Ann"]}', 'has no "documents"; a line is'),
        (b'{"question": "Who?", "documents": ["Ann"]}', 'has no "answers"; a line is'),
        (b'{"answers": ["Ann"], "documents": ["Ann"]}', 'has no "question"; a line is'),
        (b'{"question": 3, "answers": ["A"], "documents": ["A"]}', '"question" is 3 and should be a text;'),
        (b'{"question": "Q", "answers": "Ann", "documents": ["A"]}', """"answers" is 'Ann' and should be a list of"""),
        (b'{"question": "Q", "answers": [" "], "documents": ["A"]}', r""""answers" is \[' '\] and should be a list"""),
        (b'{"question": "Q", "answers": [1912], "documents": ["A"]}', r'"answers" is \[1912\] and should be a list'),
        (b'{"question": "Q", "answers": ["A"], "documents": []}', r'"documents" is \[\] and should be a list of texts'),
        (b'{"question": "\\ud800", "answers": ["A"], "documents": ["A"]}', r'"question" is .* should be a text'),
        (b'{"question": "\xff", "answers": ["A"], "documents": ["A"]}', r"is not UTF-8 \(.*\); a line is"),
    ],
)
def test_a_line_that_is_no_question_is_named_with_what_it_should_be(line, said, tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD + b"\n" + line + b"\n" + GOOD)
    task = Ruler("qa_1", questions=str(path))
    for ask in (lambda: len(task), lambda: task.item(0, Bytes())):
        with pytest.raises(ValueError, match=f"bad.jsonl, line 3 {said}|bad.jsonl, line 3: {said}"):
            ask()
    path.write_bytes(b"\xef\xbb\xbf" + GOOD + b"\n" + GOOD)
    assert len(Ruler("qa_1", questions=str(path))) == 2


def test_files_that_are_not_there_or_hold_nothing_of_use_are_named(tmp_path):
    (tmp_path / "one.jsonl").write_bytes(GOOD)
    (tmp_path / "blank.txt").write_text(" \n")
    (tmp_path / "latin.txt").write_bytes("é".encode("latin-1"))
    for field, kind, name, said in (
        ("questions", "qa_1", "none.jsonl", "none.jsonl is not there; give a .jsonl file"),
        ("questions", "qa_2", "one.jsonl", "one.jsonl has 1 questions and none with several documents; give"),
        ("questions", "qa_1", "blank.txt", "blank.txt has 0 questions and none with one document; give"),
        (
            "essays",
            "niah_single_3",
            "**/*.md",
            r"essays: '.*\*\*/\*.md' matches no file \(from .*\); give a file or glob",
        ),
        ("essays", "niah_single_3", "bl*.txt", r"essays: '.*bl\*.txt' matches 1 files without text; give"),
        ("essays", "niah_single_3", "*.txt", r"essays: .*latin.txt is not UTF-8 \(.*\); give"),
    ):
        with pytest.raises(ValueError, match=said):
            Ruler(kind, **{field: str(tmp_path / name)}).item(0, Bytes())
    with pytest.raises(ValueError, match=r"ruler-qa_1-128 with room for its answer has .* tokens at its shortest"):
        Ruler("qa_1", 128, questions=str(tmp_path / "one.jsonl")).item(0, Bytes())
