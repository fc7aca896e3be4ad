import json
import math
import re
import sys
from collections import Counter
from dataclasses import dataclass, replace

import jax
import numpy as np
import pyarrow.parquet
import pytest

import workbench.evaluate
from workbench.command import main
from workbench.config import AttentionConfig, Mamba2Config, ModelConfig
from workbench.data.tokenizer import Bytes
from workbench.evaluate import contamination, suite
from workbench.evaluate import score as scores
from workbench.evaluate.compare import against_first, compare, mcnemar, paired, sentences
from workbench.evaluate.interval import clustered
from workbench.evaluate.score import Subject, generate_until, loglikelihood
from workbench.evaluate.tasks.choices import FORMS, Choices
from workbench.evaluate.tasks.item import Answer, Item
from workbench.evaluate.tasks.phonebook import Phonebook
from workbench.evaluate.tasks.recall import Recall
from workbench.evaluate.tasks.ruler import Ruler
from workbench.model.language_model import create
from workbench.model.names import named, restored

QUIET = ("--wandb", "disabled")
SYMBOLS = {"M": Mamba2Config(state=4, head_dim=8), "*": AttentionConfig(heads=2)}


@dataclass(frozen=True)
class Sums:
    """Items in clusters of two, half of which an oracle gets right."""

    count: int = 10
    shift: int = 0

    @property
    def name(self):
        return "sums"

    def __len__(self):
        return self.count

    def item(self, index, tokenizer):
        if index >= 1000:
            raise ValueError("no such item")
        total = str(index + self.shift)
        return Item(f"é{index}+{self.shift}=", (total,), (total,), ("\n",), 4, 0.1, f"pair {index // 2}")

    def score(self, item, answer):
        return {"exact": float(answer.completion == item.references[0]), "nats": answer.log_probabilities[0]}


@pytest.fixture(scope="module")
def subject():
    return Subject(create(ModelConfig("M*", 16, 257, SYMBOLS), 0), Bytes())


@pytest.fixture
def asked(monkeypatch):
    """Prompts that an oracle was asked, which stands in for the model; it is right about even pairs."""
    prompts = []

    def answers(subject, items, batch, cut=False):
        prompts.extend(item.prompt for item in items)
        for item in items:
            yield {
                "completion": item.references[0] if int(item.cluster.split()[1]) % 2 == 0 else "?",
                "log_probabilities": [-1.0 - len(item.prompt)],
                "straddles": False,
                "prompt_tokens": 3,
                "tokens_generated": 1,
                "seconds": 0.5,
            }

    monkeypatch.setattr(suite, "_asked", answers)
    return prompts


def test_every_item_is_stored_with_what_was_asked_answered_and_found(subject, tmp_path):
    """By the real model, against the three questions asked directly."""
    task = Recall("pairs", 4, count=2)
    result = suite.evaluate(subject, [task], tmp_path)[task.name]
    assert "error" not in result, result
    rows = pyarrow.parquet.read_table(tmp_path / f"{task.name}.parquet").to_pylist()
    items = [task.item(index, Bytes()) for index in range(2)]
    assert [(row["task"], row["item"]) for row in rows] == [(task.name, 0), (task.name, 1)]
    prompts = [item.prompt for item in items]
    written = generate_until(subject, prompts, ["\n"], 16)
    likely = loglikelihood(subject, [(item.prompt, item.choices[0]) for item in items])
    for row, item, text, score in zip(rows, items, written, likely, strict=True):
        assert (row["prompt"], row["references"], row["cluster"]) == (
            item.prompt,
            [*item.references],
            f"item {row['item']}",
        )
        assert row["completion"] == text.text and row["tokens_generated"] == len(text.tokens) <= 16
        assert row["prompt_tokens"] == len(item.prompt) + 1 and row["facts"] == item.facts
        assert (row["trial"], row["perturbation"], row["cut"]) == (0, "", False) and row["seconds"] > 0
        np.testing.assert_allclose(row["log_probabilities"], [score.log_probability], atol=1e-4)
        assert row["probability"] == pytest.approx(math.exp(score.log_probability), rel=1e-3)
        assert row["metrics"] == task.score(item, Answer(row["completion"], tuple(row["log_probabilities"])))
    assert (result["items"], result["clusters"]) == (2, 2)
    assert json.loads((tmp_path / "results.json").read_text())[task.name] == result


def test_the_same_question_asked_in_other_ways_says_which_way_it_is(subject, asked, tmp_path):
    (tmp_path / "q.jsonl").write_text('{"question": "Which is warm?", "choices": ["fire", "ice"], "answer": 0}\n')
    forms = suite.tasks([str(tmp_path / "q.jsonl")])
    found = {task.name: task.perturbation for task in (*suite.tasks(["phonebook"], ["entries=4"]), *forms)}
    assert found == {
        "phonebook-standard-4": "standard",
        "phonebook-reversed-4": "reversed",
        **{f"q-{form}": form for form in ("letter", "text", "cloze")},
    }
    book = Phonebook(3, order="reversed", count=1)
    suite.evaluate(subject, [replace(book, depths=(0.5,))], tmp_path)
    assert suite.read_items(tmp_path / f"{book.name}.parquet")[0]["perturbation"] == "reversed"


def test_the_answers_probability_is_its_share_of_several_choices_and_its_own_of_one():
    several = Item("Q", (" b",), (" a", " b", " c"))
    nats = [-1.0, -2.0, -800.0]
    assert suite.probability(several, nats) == pytest.approx(math.exp(-2) / (math.exp(-1) + math.exp(-2)))
    score = Choices("q.jsonl").score(several._replace(facts={"answer": 1}), Answer("", tuple(nats)))
    assert score["probability"] == pytest.approx(suite.probability(several, nats))
    assert suite.probability(Item("Q", ("b",), (" b",)), [-2.0]) == pytest.approx(math.exp(-2))
    assert suite.probability(Item("Q", ("b",)), []) is None
    assert suite.probability(several._replace(references=("b",)), nats) is None


def test_items_that_were_kept_before_these_columns_are_read_and_not_asked_again(subject, asked, tmp_path):
    new = ("trial", "perturbation", "cut", "probability")
    suite.evaluate(subject, [Sums(8)], tmp_path)
    rows = suite.read_items(tmp_path / "sums.parquet")
    suite.write_items(tmp_path / "sums.parquet", [{name: row[name] for name in row if name not in new} for row in rows])
    asked.clear()
    assert suite.summary(suite.read_items(tmp_path / "sums.parquet"))["cut"] == 0
    found = suite.evaluate(subject, [Sums(6)], tmp_path)["sums"]
    assert not asked and found["items"] == 6
    again = suite.read_items(tmp_path / "sums.parquet")
    assert again[:6] == rows[:6] and len(again) == 8


def test_a_task_beyond_the_models_positions_fails_alone_or_is_cut_and_says_so(subject, tmp_path):
    """What was answered to a prompt without its beginning is no answer to the whole one."""
    config = replace(subject.model.config, positions=64)
    limited = Subject(restored(create(config, 0), named(subject.model)), Bytes())
    short, longer = Recall("induction", 2, count=2), Recall("pairs", 8, count=2)
    found = suite.evaluate(limited, [longer, short], tmp_path)
    assert "positions allow 64" in found[longer.name]["error"] and found[short.name]["items"] == 2
    found = suite.evaluate(limited, [longer, short], tmp_path, cut=True)
    assert (found[longer.name]["cut"], found[short.name]["cut"]) == (2, 0)
    assert suite.table(found).count("; 2 without the beginning, for the model's positions") == 1
    assert all(row["cut"] for row in suite.read_items(tmp_path / f"{longer.name}.parquet"))
    assert suite.evaluate(limited, [longer], tmp_path, cut=True)[longer.name] == found[longer.name]
    assert "positions allow 64" in suite.evaluate(limited, [longer], tmp_path)[longer.name]["error"]


def test_a_summary_is_clustered_and_held_against_chance(subject, asked, tmp_path):
    found = suite.evaluate(subject, [Sums(60)], tmp_path)["sums"]
    assert found["metrics"]["exact"] == clustered([2, 0] * 15, [2] * 30)._asdict()
    assert not found["at_chance"] and found["chance"] == pytest.approx(0.1)
    low = suite.evaluate(subject, [Sums(4)], tmp_path)["sums"]
    assert low["at_chance"] and low["clusters"] == 2
    assert "(0.500 [" in suite.table({"sums": low}) and "at chance, 0.100" in suite.table({"sums": low})


class Wordy(Sums):
    """Prompts of 13 words."""

    name = "wordy"

    def item(self, index, tokenizer):
        return super().item(index, tokenizer)._replace(prompt=" ".join(f"w{index}w{place}" for place in range(13)))


def test_items_that_were_trained_on_are_counted_once(subject, asked, tmp_path):
    suite.evaluate(subject, [Wordy(4), Sums(4)], tmp_path)
    documents = ["something else", f"so it says: {Wordy().item(1, Bytes()).prompt}."]
    found = suite.scan(tmp_path, ["wordy", "sums", "absent"], documents)
    assert (found["wordy"]["overlapping"], found["sums"]["overlapping"], len(found)) == (1, 0, 2)
    assert suite.table(found).count("; 1 overlap the training corpus") == 1
    again = suite.evaluate(subject, [Wordy(4)], tmp_path)
    assert again["wordy"]["overlapping"] == 1 and suite.scan(tmp_path, ["wordy"], []) == again
    assert "overlapping" not in suite.evaluate(subject, [Wordy(2)], tmp_path)["wordy"]


def test_one_cluster_has_no_interval(subject, asked, tmp_path):
    found = suite.evaluate(subject, [Sums(2)], tmp_path)["sums"]
    assert found["metrics"]["exact"] == {"mean": 1.0, "low": None, "high": None} and found["at_chance"] is None
    assert "1.000" in suite.table({"sums": found})


def test_a_killed_evaluation_keeps_its_finished_items(subject, asked, tmp_path, monkeypatch):
    monkeypatch.setattr(suite, "LOT", 2)
    whole = suite._asked

    def dies(subject, items, batch, cut):
        if len(asked) >= 6:
            raise KeyboardInterrupt
        yield from whole(subject, items, batch)

    monkeypatch.setattr(suite, "_asked", dies)
    with pytest.raises(KeyboardInterrupt):
        suite.evaluate(subject, [Sums()], tmp_path)
    with (tmp_path / "sums.jsonl").open("a") as log:
        log.write('{"item": 6, "dig')  # cut short
    monkeypatch.setattr(suite, "_asked", whole)
    resumed = suite.evaluate(subject, [Sums()], tmp_path)["sums"]
    assert len(asked) == len(set(asked)) == 10
    asked.clear()
    assert resumed == suite.evaluate(subject, [Sums()], tmp_path / "anew")["sums"]


def test_more_items_ask_only_those_and_changed_items_are_asked_anew(subject, asked, tmp_path):
    suite.evaluate(subject, [Sums(6)], tmp_path)
    asked.clear()
    suite.evaluate(subject, [Sums(10)], tmp_path)
    assert len(asked) == 4
    asked.clear()
    suite.evaluate(subject, [Sums(10)], tmp_path)
    assert not asked
    suite.evaluate(subject, [Sums(10, shift=1)], tmp_path)
    assert len(asked) == 10


def test_a_task_that_fails_leaves_the_others_unharmed(subject, asked, tmp_path):
    (tmp_path / "bad.jsonl").write_text("{\n")
    tasks = [*suite.tasks([str(tmp_path / "bad.jsonl")]), Ruler("vt", 64), Sums(4), replace(Sums(0))]
    tasks[-1] = type("None_", (Sums,), {"name": "nothing"})(0)
    found = suite.evaluate(subject, tasks, tmp_path / "items")
    assert "bad.jsonl, line 1 is no JSON" in found["bad-letter"]["error"]
    assert "tokens at its shortest" in found["ruler-vt-64"]["left_out"]
    assert found["nothing"] == {"error": "the task has no items"}
    assert found["sums"]["items"] == 4
    assert "failed" in suite.table(found) and "left out" in suite.table(found)


def test_half_a_letter_in_a_file_of_questions_is_named_with_its_line(tmp_path):
    (tmp_path / "half.jsonl").write_text('\n{"question": "\\ud800", "choices": ["a", "b"], "answer": 0}\n')
    with pytest.raises(ValueError, match=r"half.jsonl, line 2 has half of a surrogate pair"):
        len(suite.tasks([str(tmp_path / "half.jsonl")])[0])


def test_a_length_for_a_suite_of_sizes_comes_to_one_task_each():
    assert [task.name for task in suite.tasks(["phonebook"], ["length=1024"])] == [
        "phonebook-standard-1024-tokens",
        "phonebook-reversed-1024-tokens",
    ]


def test_two_scores_at_chance_are_not_put_in_order():
    far = paired("t", "acc", np.array([1.0] * 30), np.zeros(30), [str(i) for i in range(30)])
    assert "the first is ahead" in sentences([far])[0]
    assert "neither can be told from chance" in sentences([far._replace(at_chance=True)])[0]


def test_rulers_tasks_on_the_users_own_files_join_when_these_are_given(tmp_path):
    alone = {task.kind for task in suite.tasks(["ruler-small"])}
    with_essays = {task.kind for task in suite.tasks(["ruler-small"], [f"essays={tmp_path}/*.txt"])}
    every = {task.kind for task in suite.tasks(["ruler-small"], ["essays=a.txt", "questions=q.jsonl"])}
    assert (len(alone), len(with_essays), len(every)) == (6, 11, 13) and alone < with_essays < every
    with pytest.raises(ValueError, match=r"ruler: all of these tasks need a file; give questions=PATH"):
        suite.tasks(["ruler"], ["kind=qa_1"])


def test_suites_are_named_and_the_nearest_is_said():
    assert [task.name for task in suite.tasks(["recall"])] == [task.name for task in suite.SUITES["recall"]]
    with pytest.raises(ValueError, match="no suite 'ruler-smal'; did you mean 'ruler-small'"):
        suite.tasks(["phonebook", "ruler-smal"])
    with pytest.raises(ValueError, match="no suite given"):
        suite.tasks([])


def test_overrides_change_the_tasks_that_have_the_field():
    found = suite.tasks(["phonebook", "recall"], ["entries=7", "count=3"])
    assert all(len(task) == 3 for task in found)
    assert [task for task in found if isinstance(task, Phonebook)] == [
        Phonebook(7, count=3),
        Phonebook(7, order="reversed", count=3),
    ]
    with pytest.raises(ValueError, match="did you mean 'entries'"):
        suite.tasks(["phonebook", "recall"], ["entrys=7"])


def test_lengths_stand_in_place_of_a_suites_own_sizes():
    names = {task.name for task in suite.tasks(["phonebook"], ["count=3"], [256, 512])}
    assert names == {f"phonebook-{order}-{n}-tokens" for order in ("standard", "reversed") for n in (256, 512)}
    made = suite.tasks(["ruler-small", "recall"], lengths=[300])
    assert {type(task) for task in made} == {Ruler} and {task.length for task in made} == {300}
    with pytest.raises(ValueError, match="no task of recall has a length; leave lengths out"):
        suite.tasks(["recall"], lengths=[300])


def test_items_are_kept_apart_by_weights_and_tokenizer(subject, tmp_path):
    other = Subject(create(ModelConfig("M*", 16, 257, SYMBOLS), 1), Bytes())
    assert suite.place(subject, tmp_path) == suite.place(subject, tmp_path) != suite.place(other, tmp_path)


def test_a_tokenizer_of_another_model_is_refused(subject, tmp_path):
    larger = type("Larger", (Bytes,), {"vocabulary": 300})()
    with pytest.raises(ValueError, match="it is not the one that the model was trained with"):
        suite.evaluate(Subject(subject.model, larger), [Recall()], tmp_path)


def test_mcnemar_is_the_exact_binomial_test():
    for one, other in ((0, 0), (5, 0), (3, 9), (20, 11), (7, 7)):
        both = one + other
        tail = sum(math.comb(both, k) for k in range(min(one, other) + 1)) / 2**both
        assert mcnemar(one, other) == mcnemar(other, one) == pytest.approx(min(1, 2 * tail))


def test_two_runs_are_compared_item_by_item():
    rng = np.random.default_rng(0)
    items = 400
    a, b = rng.random(items) < 0.7, rng.random(items) < 0.4
    each = [str(index) for index in range(items)]
    far = paired("task", "exact", a.astype(float), b.astype(float), each)
    assert far.p < 1e-6 and far.low < far.first - far.second < far.high
    assert "the first is ahead" in sentences([far])[0]
    same = paired("task", "exact", a.astype(float), a.astype(float), each)
    assert same.needed is None and sentences([same]) == [
        f"task: exact {a.mean():.3f} and {a.mean():.3f}, +0.000 [+0.000, +0.000], p = 1: no difference seen"
    ]


def test_the_needed_items_would_show_the_difference_four_times_of_five():
    """The two differ by 5 points; at the number that is said, the test is significant in about 80% of trials."""
    rng = np.random.default_rng(1)

    def drawn(items):
        kind = rng.choice(3, items, p=[0.125, 0.075, 0.8])  # only the first right, only the second, both alike
        return (kind == 0) + 0.0, (kind == 1) + 0.0

    a, b = np.repeat([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]], [25, 15, 160], axis=0).T
    small = paired("task", "exact", a, b, [str(i) for i in range(200)])
    assert small.p > 0.05 and "no difference seen; one of this size would take about" in sentences([small])[0]
    found = [paired("", "", *drawn(small.needed), [str(i) for i in range(small.needed)]).p < 0.05 for _ in range(300)]
    assert abs(np.mean(found) - 0.8) < 4 * math.sqrt(0.16 / 300)


def test_items_of_one_cluster_count_as_one_in_a_comparison():
    a, b = np.array([1.0, 1.0, 0.0, 1.0, 0.0, 1.0]), np.array([0.0, 1.0, 0.0, 0.0, 1.0, 0.0])
    alone = paired("", "", a + 0.5, b, list("abcdef"))  # not 0 or 1, so no McNemar
    five = paired("", "", np.repeat(a, 5) + 0.5, np.repeat(b, 5), [c for c in "abcdef" for _ in range(5)])
    np.testing.assert_allclose((alone.low, alone.high, alone.p), (five.low, five.high, five.p), rtol=1e-12)


def test_different_questions_are_never_compared(subject, asked, tmp_path):
    one, two, three = tmp_path / "one", tmp_path / "two", tmp_path / "three"
    for folder, task in ((one, Sums(6)), (two, Sums(6)), (three, Sums(6, shift=1))):
        suite.evaluate(subject, [task], folder)
    assert compare(one, two, "sums").needed is None
    assert compare(one, tmp_path, "sums") is None
    suite.evaluate(subject, [Sums(4)], two)  # fewer are asked: those that were answered stay
    assert len(suite.read_items(two / "sums.parquet")) == 6
    (tmp_path / "few").mkdir()
    suite.evaluate(subject, [Sums(4)], tmp_path / "few")
    assert compare(one, tmp_path / "few", "sums").items == 4  # those that both were asked
    with pytest.raises(ValueError, match="not asked the same"):
        compare(one, three, "sums")
    said = against_first({"a": one, "b": two, "c": three, "d": tmp_path}, ["sums"])
    assert [line for line in said if line.endswith(":")] == [f"a (first) and {name} (second):" for name in "bcd"]
    assert "neither can be told from chance" in said[1] and "not asked the same" in said[3] and "nothing" in said[5]


def test_the_command_prints_a_line_a_task_and_compares_two_runs(subject, asked, tmp_path, monkeypatch, capsys):
    other = Subject(create(ModelConfig("M*", 16, 257, SYMBOLS), 1), Bytes())
    monkeypatch.setattr(scores, "subject", lambda folder, step: {"a": subject, "b": other}[folder.name])
    monkeypatch.setattr(suite, "SUITES", {"sums": (Sums(6),)})
    monkeypatch.setattr(contamination, "documents_of", lambda folder: (iter(["a b c"]), ""))
    (tmp_path / "bad.jsonl").write_text("{}\n")
    folders = [str(tmp_path / "a"), str(tmp_path / "b")]
    assert main(["evaluate", *folders, *QUIET, "--suite", "sums"]) == 0
    out = capsys.readouterr().out
    assert out.count("sums  exact (0.667 [") == 2 and out.splitlines()[-1].startswith("sums: exact 0.667 and 0.667")
    (kept,) = (tmp_path / "a" / "suite").iterdir()
    assert len(suite.read_items(kept / "sums.parquet")) == 6
    assert main(["evaluate", folders[0], "count=2", *QUIET, "--suite", f"sums,{tmp_path}/bad.jsonl"]) == 1
    assert 'bad.jsonl, line 1 has no "question"' in capsys.readouterr().out
    monkeypatch.setattr(suite, "SUITES", {"sums": (Sums(6), Ruler("vt", 64)), "short": (Ruler("vt", 64),)})
    assert (
        main(["evaluate", folders[0], *QUIET, "--suite", "sums"]) == 0
    )  # what is too short for this tokenizer is no failure
    assert "ruler-vt-64  left out" in capsys.readouterr().out
    assert main(["evaluate", folders[0], *QUIET, "--suite", "short"]) == 1
    assert main(["evaluate", folders[0], *QUIET, "--suite", "sum"]) == 2
    assert "no suite 'sum'; did you mean 'sums'" in capsys.readouterr().err
    monkeypatch.setattr(suite, "SUITES", {"sums": (Sums(6),)})
    assert main(["evaluate", folders[0], *QUIET, "--suite", "sums", "--lengths", "64"]) == 2
    assert "no task of sums has a length" in capsys.readouterr().err


def test_lm_evals_tasks_without_its_package_name_the_extra(subject, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    for name in ("", ".ask", ".items", ".model"):
        monkeypatch.delitem(sys.modules, f"workbench.evaluate.lm_eval{name}", raising=False)
    monkeypatch.delattr(workbench.evaluate, "lm_eval", raising=False)
    assert main(["evaluate", str(tmp_path), "--lm-eval", "piqa"]) == 2
    assert "pip install 'architecture-workbench[lm-eval]'" in capsys.readouterr().err


@pytest.mark.slow
def test_a_mixed_suite_compiles_few_programs_and_more_items_of_it_hardly_any(tmp_path, caplog):
    """Lots are of powers of two of rows, pieces of powers of two of tokens, caches of powers of two of places."""
    model = create(ModelConfig("*", 8, 257, SYMBOLS), 0)
    asked = [{"question": f"{'So ' * n}is {n} odd?", "choices": ["yes", "no"], "answer": n % 2} for n in range(40)]
    (tmp_path / "odd.jsonl").write_text("".join(json.dumps(each) + "\n" for each in asked))

    def compiled(count):
        """How often each function was compiled to ask so many items of each task, and the lengths of their prompts."""
        books = [Phonebook(n, count=count) for n in (4, 8, 16)]
        others = [Recall("pairs", 4, count), Recall("copying", 16, count)]
        others += [Ruler(kind, 512, count) for kind in ("niah_single_1", "vt")]
        others += [Choices(str(tmp_path / "odd.jsonl"), form, count=count) for form in FORMS]
        caplog.clear()
        with jax.log_compiles():
            found = suite.evaluate(Subject(model, Bytes()), [*books, *others], tmp_path)
        assert not any("error" in each or "left_out" in each for each in found.values())
        said = [re.match(r"Compiling jit\((\w+)\)", record.getMessage()) for record in caplog.records]
        rows = [row for task in (*books, *others) for row in suite.read_items(tmp_path / f"{task.name}.parquet")]
        return Counter(each[1] for each in said if each), {row["prompt_tokens"] for row in rows}

    programs, lengths = compiled(8)
    assert len(lengths) > 40 and programs["_read"] <= 20 and programs["draw_block"] <= 10
    assert programs.total() <= 80, programs
    more, longer = compiled(16)
    assert len(longer - lengths) > 25 and more.total() <= 20, more
