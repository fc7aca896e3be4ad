import io
import json
import math
import sys
from dataclasses import replace

import pytest

pytest.importorskip("lm_eval", reason="the extra lm-eval is not installed")

from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model
from lm_eval.tasks import TaskManager

from workbench.command import main
from workbench.config import AttentionConfig, Mamba2Config, ModelConfig
from workbench.data.tokenizer import Bytes
from workbench.evaluate import contamination, suite
from workbench.evaluate import score as scores
from workbench.evaluate.compare import against_first, compare
from workbench.evaluate.lm_eval import ask, model
from workbench.evaluate.score import Subject, generate_until, loglikelihood, loglikelihood_rolling
from workbench.evaluate.tasks.recall import Recall
from workbench.model.language_model import create

SYMBOLS = {"M": Mamba2Config(state=4, head_dim=8), "*": AttentionConfig(heads=2)}
QUESTIONS = [("Which is warm?", ["ice", "fire"], 1), ("Où naît la Seine ?", ["Langres", "Lyon"], 0)]
TEXTS = ["Rome is in Italy.", "é€ 𝄞 naïve"]
PROMPTS = ["abc", "Lima"]
TASK = """task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
num_fewshot: 0
output_type: {kind}
{rest}
"""
GENERATION = '{until: ["\\n"], max_gen_toks: 4, do_sample: false}'
CHOICE = 'doc_to_text: "{{question}}"\ndoc_to_choice: choices\ndoc_to_target: answer\nmetric_list: '
WRITING = (
    'doc_to_text: "{{prompt}}"\ndoc_to_target: "{{after}}"\nmetric_list: [{metric: exact_match}]\ngeneration_kwargs: '
)
KINDS = {
    "local_choice": ("multiple_choice", CHOICE + "[{metric: acc}, {metric: acc_norm}]"),
    "local_text": (
        "loglikelihood_rolling",
        'doc_to_text: ""\ndoc_to_target: "{{text}}"\nmetric_list: [{metric: word_perplexity}, {metric: bits_per_byte}]',
    ),
    "local_writing": ("generate_until", WRITING + GENERATION),
}


@pytest.fixture(scope="module")
def subject():
    return Subject(create(ModelConfig("M*", 16, 257, SYMBOLS), 0), Bytes())


@pytest.fixture(scope="module")
def other():
    return Subject(create(ModelConfig("M*", 16, 257, SYMBOLS), 1), Bytes())


@pytest.fixture
def local(tmp_path, monkeypatch):
    """Adds a task over local rows to the folder of tasks."""
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "tasks"
    folder.mkdir()

    def add(name, rows, kind, rest):
        file = folder / f"{name}.jsonl"
        file.write_text(rows if isinstance(rows, str) else "".join(json.dumps(row) + "\n" for row in rows))
        (folder / f"{name}.yaml").write_text(TASK.format(name=name, file=file, kind=kind, rest=rest))

    add.folder = folder
    return add


def choices(count=2):
    asked = [QUESTIONS[index % 2] for index in range(count)]
    return [{"question": f"{q} {index}", "choices": c, "answer": a} for index, (q, c, a) in enumerate(asked)]


def evaluate(subject, names, local, folder, **how):
    return ask.evaluate(subject, names, folder, tasks=local.folder, defaults=False, **how)


def test_local_tasks_of_three_kinds_score_what_the_three_questions_say(subject, local, tmp_path):
    written = [each.text for each in generate_until(subject, PROMPTS, ["\n"], 4)]
    rows = {
        "local_choice": [{"question": q, "choices": c, "answer": a} for q, c, a in QUESTIONS],
        "local_text": [{"text": text} for text in TEXTS],
        "local_writing": [{"prompt": PROMPTS[0], "after": written[0]}, {"prompt": PROMPTS[1], "after": "no such text"}],
    }
    for name, (kind, rest) in KINDS.items():
        local(name, rows[name], kind, rest)
    out = tmp_path / "out"
    found = evaluate(subject, list(KINDS), local, out)

    nats = [
        each.log_probability for each in loglikelihood(subject, [(q, f" {c}") for q, cs, _ in QUESTIONS for c in cs])
    ]
    right = [int(nats[2 * i + 1] > nats[2 * i]) == answer for i, (*_, answer) in enumerate(QUESTIONS)]
    assert found["local_choice"]["metrics"]["acc"]["mean"] == sum(right) / 2
    assert found["local_choice"]["chance"] == 0.5
    rolling = loglikelihood_rolling(subject, TEXTS)
    bits = -sum(score.log_probability for score in rolling) / math.log(2) / sum(len(text.encode()) for text in TEXTS)
    assert list(found["local_text"]["metrics"]) == ["bits_per_byte", "word_perplexity"]
    assert found["local_text"]["metrics"]["bits_per_byte"]["mean"] == pytest.approx(bits, rel=1e-5)
    assert found["local_writing"]["metrics"]["exact_match"]["mean"] == 0.5
    assert "exact_match 0.500 ± 0.500" in suite.table(found, every=True)

    kept = {name: suite.read_items(out / f"{name}.parquet") for name in KINDS}
    suite.evaluate(subject, [Recall("induction", 2, count=1)], tmp_path / "own")
    (own,) = suite.read_items(next((tmp_path / "own").glob("*.parquet")))
    assert all(own.keys() <= row.keys() for items in kept.values() for row in items)
    assert [row["completion"] for row in kept["local_writing"]] == written
    assert [row["metrics"]["exact_match"] for row in kept["local_writing"]] == [1.0, 0.0]
    for row, (question, answers, answer), pair in zip(
        kept["local_choice"], QUESTIONS, (nats[:2], nats[2:]), strict=True
    ):
        assert (row["prompt"], row["choices"]) == (question, [f" {each}" for each in answers])
        assert row["references"] == [f" {answers[answer]}"] and row["prompt_tokens"] == len(question.encode()) + 1
        assert row["log_probabilities"] == pytest.approx(pair, abs=1e-4)
        assert row["probability"] == pytest.approx(1 / (1 + math.exp(pair[1 - answer] - pair[answer])), rel=1e-3)
    for row, text, score in zip(kept["local_text"], TEXTS, rolling, strict=True):
        assert row["choices"] == [text] and row["weight"] == len(text.encode()) and row["lower_is_better"]
        assert row["metrics"] == {"bits_per_byte": pytest.approx(-score.log_probability / math.log(2) / row["weight"])}
    assert json.loads((out / "local_choice.json").read_text())["results"]["local_choice"]["acc,none"] == sum(right) / 2
    with pytest.raises(ValueError, match=r"lm-eval has no task 'local_text2'; did you mean 'local_text'"):
        evaluate(subject, ["local_text2"], local, out)


def test_a_task_that_fails_leaves_the_others_of_its_group_unharmed(subject, local, tmp_path):
    local("whole", choices(), *KINDS["local_choice"])
    local("broken", "{\n", *KINDS["local_choice"])
    local("beams", [{"prompt": "a", "after": "b"}], "generate_until", WRITING + "{num_beams: 4}")
    local("long", [{"prompt": "a" * 99, "after": "b"}], *KINDS["local_writing"])
    members = "group: {}\ntask: [{}]\naggregate_metric_list: [{{metric: acc}}]\n"
    (local.folder / "all.yaml").write_text(members.format("all_four", "whole, broken, beams, long"))
    (local.folder / "one.yaml").write_text(members.format("one_alone", "whole"))
    limited = Subject(create(replace(subject.model.config, positions=64), 0), Bytes())
    found = evaluate(limited, ["all_four", "one_alone"], local, tmp_path / "out")
    assert "JSON" in found["broken"]["error"] and "generation_kwargs hold 'num_beams'" in found["beams"]["error"]
    assert "positions allow 64" in found["long"]["error"]
    assert found["whole"]["items"] == 2 and found["one_alone"]["metrics"]["acc"] == {
        **found["whole"]["metrics"]["acc"],
        "low": None,
        "high": None,
    }
    assert found["all_four"] == {"error": "broken, beams, long of it failed"}
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == found
    assert suite.table(found).count("failed  ") == 4


def test_a_killed_evaluation_asks_only_what_is_missing(subject, local, tmp_path, monkeypatch):
    monkeypatch.setattr(model, "LOT", 4)
    local("local_choice", choices(6), *KINDS["local_choice"])
    local("local_writing", [{"prompt": "ab" * n, "after": ""} for n in range(1, 7)], *KINDS["local_writing"])
    asked, whole = [], {name: getattr(model, name) for name in ("loglikelihood", "generate_until")}

    def dies_after(count):
        def counted(name, subject, given, *rest, **how):
            if len(asked) >= count:
                raise KeyboardInterrupt
            asked.extend((name, each) for each in given)
            return whole[name](subject, given, *rest, **how)

        for name in whole:
            monkeypatch.setattr(model, name, lambda *given, name=name, **how: counted(name, *given, **how))

    names, out = ["local_choice", "local_writing"], tmp_path / "out"
    for count in (8, 16):  # within the choices' three lots, then after one of the prompts' two
        dies_after(count)
        with pytest.raises(KeyboardInterrupt):
            evaluate(subject, names, local, out)
        assert len(asked) == count
    with (out / "answers.jsonl").open("a") as log:
        log.write('{"request": "ab')  # cut short
    dies_after(1000)
    resumed = evaluate(subject, names, local, out)
    assert len(asked) == len(set(asked)) == 12 + 6
    assert evaluate(subject, names, local, out) == resumed and len(asked) == 18
    anew = evaluate(subject, names, local, tmp_path / "anew")
    assert [anew[name]["metrics"] for name in names] == [resumed[name]["metrics"] for name in names]


def test_an_answer_to_a_prompt_that_was_cut_is_used_only_where_prompts_may_be_cut(subject, local, tmp_path):
    limited = Subject(create(replace(subject.model.config, positions=16), 0), Bytes())
    local("local_choice", choices(), *KINDS["local_choice"])
    out = tmp_path / "out"
    assert "positions allow 16" in evaluate(limited, ["local_choice"], local, out)["local_choice"]["error"]
    found = evaluate(limited, ["local_choice"], local, out, cut=True)["local_choice"]
    assert found["cut"] == 2 and all(row["cut"] for row in suite.read_items(out / "local_choice.parquet"))
    assert "2 without the beginning" in suite.table({"local_choice": found})
    assert "positions allow 16" in evaluate(limited, ["local_choice"], local, out)["local_choice"]["error"]
    assert evaluate(limited, ["local_choice"], local, out, cut=True)["local_choice"] == found


def test_two_models_are_compared_item_by_item(subject, other, local, tmp_path):
    """Right or wrong by McNemar, bits per byte weighted as lm-eval's own and the lower one ahead."""
    texts = [{"text": text * (1 + index % 3)} for index, text in enumerate(TEXTS * 8)]
    local("local_choice", choices(8), *KINDS["local_choice"])
    local("local_text", texts, *KINDS["local_text"])
    kept, found = {"a": tmp_path / "a", "b": tmp_path / "b"}, {}
    for each, examined in (("a", subject), ("b", other)):
        found[each] = evaluate(examined, ["local_choice", "local_text"], local, kept[each])
    right = compare(kept["a"], kept["b"], "local_choice")
    assert (right.metric, right.items) == ("acc", 8)
    assert right.first == found["a"]["local_choice"]["metrics"]["acc"]["mean"]
    bits = compare(kept["a"], kept["b"], "local_text")
    means = [found[each]["local_text"]["metrics"]["bits_per_byte"]["mean"] for each in kept]
    assert bits.lower_is_better and [bits.first, bits.second] == pytest.approx(means, rel=1e-6)
    assert bits.low < means[0] - means[1] < bits.high and bits.p < 0.05
    ahead = "first" if means[0] < means[1] else "second"
    said = against_first(kept, list(found["a"]))
    assert len(said) == 3 and f"the {ahead} is ahead" in said[2]
    (tmp_path / "c").mkdir()
    local("local_choice", choices(9)[1:], *KINDS["local_choice"])
    evaluate(other, ["local_choice"], local, tmp_path / "c")
    assert "not asked the same" in against_first({"a": kept["a"], "c": tmp_path / "c"}, ["local_choice"])[1]


def test_several_filters_of_an_answer_are_metrics_of_one_item(subject, local, tmp_path):
    picked = "{name: %s, filter: [{function: regex, regex_pattern: '%s'}, {function: take_first}]}"
    filters = f"\nfilter_list: [{picked % ('strict', '^x$')}, {picked % ('any', '(.*)')}]"
    local(
        "local_writing",
        [{"prompt": each, "after": "z"} for each in PROMPTS],
        "generate_until",
        WRITING + GENERATION + filters,
    )
    found = evaluate(subject, ["local_writing"], local, tmp_path)["local_writing"]
    assert list(found["metrics"]) == ["exact_match,strict", "exact_match,any"] and found["items"] == 2
    rows = suite.read_items(tmp_path / "local_writing.parquet")
    assert [list(row["metrics"]) for row in rows] == [list(found["metrics"])] * 2
    assert [json.loads(row["filtered"]["strict"]) for row in rows] == [["[invalid]"]] * 2


def test_where_contexts_differ_a_choice_is_the_rest_of_its_context(subject, local, tmp_path):
    """As Winogrande asks: how likely is the same end after either beginning?"""
    row = {"options": ["The cup, not the ball,", "The cup, not the box,"], "end": "is full.", "right": 1}
    rest = "doc_to_text: right\ndoc_to_choice: options\ndoc_to_target: end\nmetric_list: [{metric: acc}]"
    local("local_ends", [row, row], "multiple_choice", rest)
    assert evaluate(subject, ["local_ends"], local, tmp_path)["local_ends"]["chance"] == 0.5
    (kept, _) = suite.read_items(tmp_path / "local_ends.parquet")
    assert kept["prompt"] == "The cup, not the b"
    assert kept["choices"] == ["all, is full.", "ox, is full."] and kept["references"] == ["ox, is full."]
    likely = loglikelihood(subject, [(option, " is full.") for option in row["options"]])
    assert kept["log_probabilities"] == pytest.approx([each.log_probability for each in likely], abs=1e-4)


def test_a_score_of_all_items_together_is_printed_and_not_compared(subject, local, tmp_path, monkeypatch):
    monkeypatch.setattr(ask, "BOOTSTRAP", 2)
    local("matthews", choices(4), "multiple_choice", CHOICE + "[{metric: mcc}]")
    found = evaluate(subject, ["matthews"], local, tmp_path / "a")["matthews"]
    assert list(found["metrics"]) == ["mcc"] and found["at_chance"] is None
    with pytest.raises(ValueError, match="matthews: its scores are of all items together"):
        compare(tmp_path / "a", tmp_path / "a", "matthews")


def test_examples_in_the_prompt_make_another_task(subject, local, tmp_path):
    local("local_choice", choices(4), *KINDS["local_choice"])
    (local.folder / "shown.yaml").write_text(
        "group: shown\nnum_fewshot: 2\ntask: [local_choice]\naggregate_metric_list: [{metric: acc}]\n"
    )
    yaml = local.folder / "local_choice.yaml"
    yaml.write_text(yaml.read_text().replace("num_fewshot: 0\n", "fewshot_split: test\n"))
    found = evaluate(subject, ["local_choice", "shown"], local, tmp_path / "out")
    assert list(found) == ["local_choice", "local_choice-2-shots", "shown-2-shots"]
    prompts = [suite.read_items(tmp_path / "out" / f"{name}.parquet")[0]["prompt"] for name in list(found)[:2]]
    assert prompts[1].endswith(prompts[0]) and prompts[1].count("?") == 3


def test_a_drawn_answer_follows_from_its_request_alone(subject):
    def drawn(*prompts):
        requests = [
            Instance("generate_until", {}, (prompt, {"do_sample": True, "max_gen_toks": 8}), 0) for prompt in prompts
        ]
        return model.Workbench(subject).generate_until(requests)

    alone, (first, second, again) = drawn("abc"), drawn("xyz", "abc", "abc")
    assert alone == [second] and again != second and first == drawn("xyz")[0]


def test_the_progress_of_requests_is_seen_on_a_terminal_alone(subject, monkeypatch):
    asked = [Instance("loglikelihood", {}, ("Rome is in", " Italy"), 0, ("geography", 0, 1))]
    seen = {}
    for terminal in (True, False):
        seen[terminal] = io.StringIO()
        seen[terminal].isatty = lambda terminal=terminal: terminal
        monkeypatch.setattr(sys, "stderr", seen[terminal])
        model.Workbench(subject).loglikelihood(asked)
    assert "geography: 100%" in seen[True].getvalue() and "1/1" in seen[True].getvalue()
    assert seen[False].getvalue() == ""


def test_the_command_compares_runs_and_fails_if_a_task_failed(subject, other, local, tmp_path, monkeypatch, capsys):
    local("local_choice", choices(4), *KINDS["local_choice"])
    local("broken", "{\n", *KINDS["local_choice"])
    monkeypatch.setattr(scores, "subject", lambda folder, step: {"a": subject, "b": other}[folder.name])
    monkeypatch.setattr(contamination, "documents_of", lambda folder: (iter(["a b c"]), ""))
    monkeypatch.setattr(ask, "TaskManager", lambda **given: TaskManager(**given | {"include_defaults": False}))
    folders = [str(tmp_path / "a"), str(tmp_path / "b")]
    how = ["--wandb", "disabled", "--tasks", str(local.folder), "--lm-eval"]
    assert main(["evaluate", *folders, *how, "local_choice"]) == 0
    out = capsys.readouterr().out
    assert out.count("local_choice  (acc ") + out.count("local_choice  acc ") == 2 and "acc_norm" in out
    assert out.splitlines()[-2].endswith(f"{folders[1]} (second):") and "local_choice: acc " in out.splitlines()[-1]
    (kept,) = (tmp_path / "a" / "suite").iterdir()
    assert len(suite.read_items(kept / "lm-eval" / "local_choice.parquet")) == 4
    assert main(["evaluate", folders[0], *how, "broken,local_choice"]) == 1
    assert "broken        failed" in (out := capsys.readouterr().out) and "local_choice  " in out
    assert main(["evaluate", folders[0], *how, "local_choise"]) == 2
    assert "did you mean 'local_choice'" in capsys.readouterr().err


def test_it_is_registered_under_our_name_and_refuses_what_it_would_pass_over(subject):
    assert get_model("workbench") is model.Workbench
    ours = model.Workbench(subject, batch_size="auto", device="cuda")
    assert ours.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, ("",), 0)]) == [0.0]
    with pytest.raises(ValueError, match="generation_kwargs hold 'num_beams'"):
        ours.generate_until([Instance("generate_until", {}, ("a", {"num_beams": 4}), 0)])


def test_what_is_longer_than_the_models_positions_is_cut_only_if_asked(subject):
    config = replace(subject.model.config, positions=8)
    limited = Subject(create(config, 0), Bytes())
    asked = [Instance("loglikelihood", {}, ("Rome is in", " Italy"), 0)]
    with pytest.raises(ValueError, match="positions allow 8"):
        model.Workbench(limited).loglikelihood(asked)
    ((nats, _),) = model.Workbench(limited, cut=True).loglikelihood(asked)
    assert nats == pytest.approx(loglikelihood(limited, [asked[0].args], cut=True)[0].log_probability)


@pytest.mark.slow
def test_the_group_waleffe_has_the_papers_twelve_tasks():
    import yaml

    manager = TaskManager(include_path=str(ask.OURS))
    group = yaml.safe_load((ask.OURS / "waleffe.yaml").read_text())
    assert len(set(group["task"])) == 12 and group["num_fewshot"] == 0
    assert {*group["task"], "waleffe", "waleffe_mmlu_5"} <= set(manager.all_tasks)
