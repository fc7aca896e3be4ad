import json
import math
from dataclasses import replace

import pytest

pytest.importorskip("lm_eval", reason="the extra lm-eval is not installed")

from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model
from lm_eval.tasks import TaskManager

from workbench.config import AttentionConfig, Mamba2Config, ModelConfig
from workbench.data.tokenizer import Bytes
from workbench.evaluate import harness
from workbench.evaluate.score import Subject, generate_until, loglikelihood, loglikelihood_rolling
from workbench.model.language_model import create

SYMBOLS = {"M": Mamba2Config(state=4, head_dim=8), "*": AttentionConfig(heads=2)}
QUESTIONS = [("Which is warm?", ["ice", "fire"], 1), ("Où naît la Seine ?", ["Langres", "Lyon"], 0)]
TEXTS = ["Rome is in Italy.", "é€ 𝄞 naïve"]
TASK = """task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
num_fewshot: 0
output_type: {kind}
{rest}
"""
KINDS = {
    "local_choice": (
        "multiple_choice",
        'doc_to_text: "{{question}}"\ndoc_to_choice: choices\ndoc_to_target: answer\nmetric_list: [{metric: acc}]',
    ),
    "local_text": (
        "loglikelihood_rolling",
        'doc_to_text: ""\ndoc_to_target: "{{text}}"\nmetric_list: [{metric: bits_per_byte}]',
    ),
    "local_writing": (
        "generate_until",
        'doc_to_text: "{{prompt}}"\ndoc_to_target: "{{after}}"\nmetric_list: [{metric: exact_match}]\n'
        'generation_kwargs: {until: ["\\n"], max_gen_toks: 4, do_sample: false}',
    ),
}


@pytest.fixture(scope="module")
def subject():
    return Subject(create(ModelConfig("M*", 16, 257, SYMBOLS), 0), Bytes())


def test_local_tasks_of_three_kinds_score_what_the_three_questions_say(subject, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    prompts = ["abc", "Lima"]
    written = [each.text for each in generate_until(subject, prompts, ["\n"], 4)]
    rows = {
        "local_choice": [{"question": q, "choices": c, "answer": a} for q, c, a in QUESTIONS],
        "local_text": [{"text": text} for text in TEXTS],
        "local_writing": [{"prompt": prompts[0], "after": written[0]}, {"prompt": prompts[1], "after": "no such text"}],
    }
    for name, (kind, rest) in KINDS.items():
        file = tmp_path / f"{name}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows[name]))
        (tmp_path / f"{name}.yaml").write_text(TASK.format(name=name, file=file, kind=kind, rest=rest))

    found = harness.evaluate(subject, list(KINDS), tmp_path / "out", tasks=tmp_path, defaults=False)

    scores = loglikelihood(subject, [(q, f" {choice}") for q, choices, _ in QUESTIONS for choice in choices])
    nats = [score.log_probability for score in scores]
    right = [int(nats[2 * i + 1] > nats[2 * i]) == answer for i, (*_, answer) in enumerate(QUESTIONS)]
    assert found["local_choice"]["acc,none"] == sum(right) / 2
    rolling = loglikelihood_rolling(subject, TEXTS)
    bits = -sum(score.log_probability for score in rolling) / math.log(2) / sum(len(text.encode()) for text in TEXTS)
    assert found["local_text"]["bits_per_byte,none"] == pytest.approx(bits, rel=1e-5)
    assert found["local_writing"]["exact_match,none"] == 0.5
    kept = [json.loads(line) for line in (tmp_path / "out" / "local_writing.jsonl").read_text().splitlines()]
    assert [item["resps"][0][0] for item in kept] == written
    assert (
        json.loads((tmp_path / "out" / "local_choice.json").read_text())["results"]["local_choice"]["acc,none"]
        == (found["local_choice"]["acc,none"])
    )
    with pytest.raises(ValueError, match=r"lm-eval has no task 'local_text2'; did you mean 'local_text'"):
        harness.evaluate(subject, ["local_text2"], tmp_path / "out", tasks=tmp_path, defaults=False)


def test_it_is_registered_under_our_name_and_refuses_what_it_would_pass_over(subject):
    assert get_model("workbench") is harness.Workbench
    model = harness.Workbench(subject, batch_size="auto", device="cuda")
    assert model.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, ("",), 0)]) == [0.0]
    with pytest.raises(ValueError, match="generation_kwargs hold 'num_beams'"):
        model.generate_until([Instance("generate_until", {}, ("a", {"num_beams": 4}), 0)])


def test_what_is_longer_than_the_models_positions_is_cut_only_if_asked(subject):
    config = replace(subject.model.config, positions=8)
    limited = Subject(create(config, 0), Bytes())
    asked = [Instance("loglikelihood", {}, ("Rome is in", " Italy"), 0)]
    with pytest.raises(ValueError, match="positions allow 8"):
        harness.Workbench(limited).loglikelihood(asked)
    ((nats, _),) = harness.Workbench(limited, cut=True).loglikelihood(asked)
    assert nats == pytest.approx(loglikelihood(limited, [asked[0].args], cut=True)[0].log_probability)


@pytest.mark.slow
def test_the_group_waleffe_has_the_papers_twelve_tasks():
    import yaml

    manager = TaskManager(include_path=str(harness.OURS))
    group = yaml.safe_load((harness.OURS / "waleffe.yaml").read_text())
    assert len(set(group["task"])) == 12 and group["num_fewshot"] == 0
    assert {*group["task"], "waleffe", "waleffe_mmlu_5"} <= set(manager.all_tasks)
