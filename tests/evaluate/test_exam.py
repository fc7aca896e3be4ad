import json
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest

from workbench.config import (
    AttentionConfig,
    Mamba2Config,
    ModelConfig,
    OptimizerConfig,
    Packages,
    PhonebookConfig,
    RunConfig,
    TextConfig,
    TextEvaluation,
    override,
)
from workbench.data.tokenizer import Bytes
from workbench.evaluate import exam, suite, text
from workbench.evaluate.score import Subject
from workbench.model.language_model import create
from workbench.train.loop import train

SUITE = ("phonebook", "recall", "entries=3", "order=standard", "kind=pairs", "size=2", "count=2")
NAMES = ["phonebook-standard-3", "recall-pairs-2"]
MODEL = ModelConfig("M*", 16, 257, {"M": Mamba2Config(state=4, head_dim=8), "*": AttentionConfig(heads=2)})
RUN = RunConfig(
    study="study",
    arm="arm",
    model=MODEL,
    data=TextConfig((Packages(("tqdm", "pexpect", "click")),), length=32, batch=2),  # one of each split
    evaluation=TextEvaluation(rows=4, length=32, suite=SUITE),
    optimizer=OptimizerConfig(warmup=0.5),
    steps=4,
    evaluate_every=2,
    checkpoint_every=2,
    log_every=2,
)


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def model():
    return create(MODEL, 0)


@pytest.fixture
def oracle(monkeypatch):
    """Stands in for the model: answers everything, and right."""

    def answers(subject, items, batch, cut=False):
        for item in items:
            yield {
                "completion": item.references[0],
                "log_probabilities": [-1.0] * len(item.choices),
                "straddles": False,
                "cut": False,
                "prompt_tokens": 3,
                "tokens_generated": 1,
                "seconds": 0.5,
            }

    monkeypatch.setattr(suite, "_asked", answers)


@pytest.fixture
def files(tmp_path):
    """Fields for tasks that need a file, and a file of five questions of multiple choice."""
    (tmp_path / "essay.txt").write_text("One sentence. Another one! A third? " * 9)
    asked = [
        {"question": f"Who is {n}?", "answers": [f"N{n}"], "documents": [f"{n} is N{n}.", f"More of {n}."][: 1 + n % 2]}
        for n in range(8)
    ]
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps(each) + "\n" for each in asked))
    choices = [{"question": f"{n} + 0?", "choices": [str(n), "none"], "answer": 0} for n in range(5)]
    (tmp_path / "quiz.jsonl").write_text("".join(json.dumps(each) + "\n" for each in choices))
    return f"essays={tmp_path}/*.txt", f"questions={tmp_path}/asked.jsonl", f"{tmp_path}/quiz.jsonl"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a run that was trained, and what it gave."""
    folder = tmp_path_factory.mktemp("study") / RUN.name
    evaluators = {"text": RUN.evaluation.build(RUN)}
    return folder, train(RUN, folder, evaluators, progress=False, wandb="disabled")


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_on_test_a_run_is_asked_what_its_suite_asks_and_answers_the_same(model, tmp_path):
    found = exam.evaluator(SUITE, MODEL, Bytes())(model, "test")
    subject = Subject(model, Bytes())
    tasks = suite.tasks(SUITE[:2], SUITE[2:])
    assert list(found) == [task.name for task in tasks] == NAMES
    results = suite.evaluate(subject, tasks, tmp_path)
    for name, values in found.items():
        first = results[name]["metrics"]["exact_match"]
        assert values == results[name] | first
        kept = suite.read_items(tmp_path / f"{name}.parquet")
        mine = json.loads(json.dumps([row for row in found.rows if row["task"] == name]))
        assert mine == [{key: value for key, value in row.items() if key != "seconds"} for row in kept]


def test_items_on_the_way_are_as_many_others_than_on_test(model, oracle, files):
    *fields, quiz = files
    asked = exam.evaluator(["phonebook", "recall", "ruler-small", quiz, *fields, "count=2"], MODEL, Bytes())
    digests = {split: [row["digest"] for row in asked(model, split).rows] for split in ("select", "test")}
    assert len(digests["select"]) == len(digests["test"]) > 100
    assert not set(digests["select"]) & set(digests["test"])
    assert {row["task"] for row in asked(model, "test").rows} >= {"ruler-niah_single_2-512", "ruler-qa_2-2048"}


def test_more_items_of_a_rule_on_test_are_still_none_of_those_on_the_way(model, oracle):
    words = ("phonebook", "recall", "entries=3", "size=3")
    few, many = (exam.evaluator([*words, f"count={count}"], MODEL, Bytes()) for count in (3, 200))
    assert not {row["digest"] for row in few(model, "select").rows} & {
        row["digest"] for row in many(model, "test").rows
    }


def test_books_on_the_way_are_asked_for_every_depth_as_on_test(model, oracle):
    asked = exam.evaluator(["phonebook", "entries=8", "count=3"], MODEL, Bytes())
    depths = [[row["facts"]["depth"] for row in asked(model, split).rows] for split in ("select", "test")]
    assert depths[0] == depths[1] == 2 * [0.0, 0.25, 0.5]


def test_a_task_without_an_item_as_short_is_left_out_and_says_why(model, oracle):
    found = exam.evaluator(["ruler-small", "count=2"], MODEL, Bytes())(model, "test")
    assert "tokens at its shortest and 256 are allowed" in found["ruler-cwe-256"]["left_out"]
    assert found["ruler-niah_single_1-512"]["mean"] == 1.0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["phonbook"], "no suite 'phonbook'; did you mean 'phonebook'"),
        (["phonebook", "cout=4"], "did you mean 'count'"),
        (["count=4"], "no suite given"),
        (["recall", "count=0"], "recall-pairs-4 has no items"),
        (["nowhere.jsonl"], "nowhere.jsonl is not there"),
        (["ruler-small", "essays=nowhere/*.txt"], "matches no file"),
        (["ruler-small", "length=64"], "no task has an item as short, for instance ruler-.* at its shortest and 64"),
        (["recall", "size=32"], "prompt of recall-pairs-32, with its answer, has .* the model's positions allow 200"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_training(words, said):
    run = replace(RUN, model=replace(MODEL, positions=200), evaluation=TextEvaluation(4, 32, tuple(words)))
    with pytest.raises(ValueError, match=said):
        run.evaluation.build(run)


def test_a_file_of_questions_is_divided_between_the_splits_or_refused(model, oracle, files):
    *_, quiz = files
    with pytest.raises(ValueError, match=r"quiz-letter has 5 questions; .* give a longer file, or count=2"):
        exam.evaluator([quiz], MODEL, Bytes())
    asked = exam.evaluator([quiz, "count=2", "form=cloze"], MODEL, Bytes())
    numbers = [[row["item"] for row in asked(model, split).rows] for split in ("test", "select")]
    assert numbers == [[0, 1], [2, 3]]


def test_data_that_is_not_text_is_asked_nothing():
    run = replace(RUN, data=PhonebookConfig())
    with pytest.raises(ValueError, match="PhonebookConfig, not TextConfig"):
        run.evaluation.build(run)


def test_a_prompt_as_long_as_the_models_positions_is_asked_and_one_longer_refused(model):
    words = ("recall", "kind=pairs", "size=2", "count=1")
    longest = max(exam._size(item, Bytes()) for split in exam.SPLITS for item in _items(words, split))
    limited = replace(MODEL, positions=longest - 1)  # the last token is not read
    assert exam.evaluator(words, limited, Bytes())(create(limited, 0), "test")["recall-pairs-2"]["items"] == 1
    with pytest.raises(ValueError, match=f"has {longest} tokens, {longest - 1} to be read"):
        exam.evaluator(words, replace(MODEL, positions=longest - 2), Bytes())


def _items(words, split):
    (task,) = suite.tasks(words[:1], words[1:])
    return exam._items(task, split, Bytes()).values()


def test_a_suite_adds_to_an_evaluation_and_changes_nothing_of_it(model, oracle):
    plain = text.evaluator(replace(RUN.evaluation, suite=()), RUN)(model, "test")
    found = text.evaluator(RUN.evaluation, RUN)(model, "test")
    assert list(found.pop("suite")) == NAMES and found == plain
    assert found.rows[: len(plain.rows)] == plain.rows and len(found.rows) == len(plain.rows) + 4


def test_the_command_lines_words_become_a_suite_and_none_leaves_the_run_its_name():
    run = replace(RUN, evaluation=TextEvaluation())
    assert override(run, "evaluation.suite=phonebook,count=4").evaluation.suite == ("phonebook", "count=4")
    assert override(run, "evaluation.suite=").name == run.name
    assert override(run, "evaluation.suite=phonebook").name != override(run, "evaluation.suite=recall").name != run.name


def test_a_run_logs_its_answers_on_the_way_and_keeps_them_at_the_end(finished):
    folder, result = finished
    logged = [row for row in rows(folder / "metrics.jsonl") if "select/text/suite/recall-pairs-2" in row]
    assert [row["step"] for row in logged] == [2, 4] and all(f"select/text/suite/{NAMES[0]}" in row for row in logged)
    test, select = (result[split]["text"]["suite"] for split in ("evaluation", "select"))
    for name in NAMES:
        assert logged[-1][f"select/text/suite/{name}"] == select[name]["mean"]
        own = [row for row in rows(folder / "items" / "text.jsonl") if row.get("task") == name]
        assert len(own) == test[name]["items"] == 2 and {0, 1} == {row["item"] for row in own}
        assert suite.summary(own)["digest"] == test[name]["digest"] != select[name]["digest"]
    assert any("document" in row for row in rows(folder / "items" / "text.jsonl"))


def test_the_answers_come_again_bit_for_bit_and_made_up_ones_do_not(finished, tmp_path):
    from workbench.study.replay import replay

    folder, _ = finished
    *_, (what, holds, detail) = replay(folder, 2)
    assert (what, holds) == ("its last weights score as recorded", True) and "bit for bit" in detail
    copy = shutil.copytree(folder, tmp_path / folder.name)
    result = json.loads((copy / "result.json").read_text())
    result["evaluation"]["text"]["suite"]["recall-pairs-2"]["mean"] = 0.75
    (copy / "result.json").write_text(json.dumps(result))
    *_, (_, holds, detail) = replay(copy, 2)
    assert holds is False and "suite.recall-pairs-2.mean: 0.75 -> " in detail


def test_being_asked_needs_no_pyarrow():
    code = """
import sys
sys.modules["pyarrow"] = None
from workbench.config import ModelConfig
from workbench.data.tokenizer import Bytes
from workbench.evaluate import exam
from workbench.model.language_model import create
config = ModelConfig("-", 8, 257)
assert exam.evaluator(["recall", "kind=pairs", "size=2", "count=1"], config, Bytes())(create(config, 0), "test").rows
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
