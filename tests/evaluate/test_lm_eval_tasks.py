"""LongBench and RULER as lm-eval has them: its prompts and metrics, over local files and with nothing downloaded."""

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("lm_eval", reason="the extra lm-eval is not installed")

import lm_eval.tasks

from workbench.config import AttentionConfig, Mamba2Config, ModelConfig
from workbench.data.tokenizer import Bytes
from workbench.evaluate import suite
from workbench.evaluate.lm_eval import ask, model
from workbench.evaluate.score import Subject
from workbench.generate import Completion
from workbench.model.language_model import create

THEIRS = Path(lm_eval.tasks.__file__).parent
LOCAL = """include: {theirs}
dataset_path: json
dataset_name: null
dataset_kwargs: {{data_files: {{test: {file}}}}}
"""
CAPITAL = {"context": "Paris is the capital.", "question": "What is the capital?", "answers": ["Paris"]}
KIND = {
    "context": "Question: Who wrote Faust?\nType: Individual",
    "question": "Question: Where is Oslo?\nType:",
    "answers": ["City"],
    "all_classes": ["Individual", "City", "Date"],
}
REPORT = {"context": "The dam leaks.", "question": "", "answers": ["the dam leaks"]}
LONGBENCH = {  # what is written, and what it scores: F1 of words without articles, the class alone, ROUGE-L
    "2wikimqa": (CAPITAL, " The answer is Paris.", "qa_f1_score", 0.5),
    "trec": (KIND, " City", "classification_score", 1.0),
    "gov_report": (REPORT, "the dam leaks", "rouge_score", 1.0),
}


@pytest.fixture(scope="module")
def subject():
    symbols = {"M": Mamba2Config(state=4, head_dim=8), "*": AttentionConfig(heads=2)}
    return Subject(create(ModelConfig("M*", 16, 257, symbols), 0), Bytes())


@pytest.fixture
def says(monkeypatch):
    """Lets a function of the prompt answer in the model's place."""

    def oracle(answer):
        def given(subject, prompts, *rest, **how):
            return [Completion(answer(prompt), np.zeros(1, np.int64), np.zeros(1), True) for prompt in prompts]

        monkeypatch.setattr(model, "generate_until", given)

    return oracle


@pytest.mark.parametrize("name", LONGBENCH)
def test_longbench_runs_over_local_files_by_its_own_prompts_and_metrics(name, subject, tmp_path, monkeypatch, says):
    for package in ("jieba", "fuzzywuzzy", "rouge"):
        pytest.importorskip(package, reason=f"LongBench needs {package}: pip install 'lm-eval[longbench]'")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    document, answer, metric, expected = LONGBENCH[name]
    (tmp_path / f"{name}.jsonl").write_text(json.dumps(document) + "\n" + json.dumps(document) + "\n")
    local = LOCAL.format(theirs=THEIRS / "longbench" / f"{name}.yaml", file=tmp_path / f"{name}.jsonl")
    (tmp_path / f"{name}.yaml").write_text(local)
    task = f"longbench_{name}"
    how = {"tasks": tmp_path, "defaults": False}
    found = ask.evaluate(subject, [task], tmp_path / "real", **how)[task]
    assert "error" not in found, found
    (row, _) = suite.read_items(tmp_path / "real" / f"{task}.parquet")
    assert document["context"] in row["prompt"] and document["question"] in row["prompt"]
    assert row["references"] == document["answers"] and row["tokens_generated"] > 0
    assert list(found["metrics"]) == ["score", metric] and found["chance"] == 0
    says(lambda prompt: answer)
    right = ask.evaluate(subject, [task], tmp_path / "oracle", **how)[task]
    assert right["metrics"][metric]["mean"] == right["metrics"]["score"]["mean"] == pytest.approx(expected)


@pytest.fixture
def ruler(tmp_path, monkeypatch):
    for package in ("nltk", "wonderwords"):
        pytest.importorskip(package, reason=f"RULER needs {package}: pip install 'lm-eval[ruler]'")
    pytest.importorskip("transformers", reason="RULER needs transformers' AutoTokenizer: pip install transformers")
    import nltk

    (tmp_path / "nltk" / "tokenizers" / "punkt_tab").mkdir(parents=True)  # else it is looked for on the network
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path / "nltk")])
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in ("niah_single_1", "niah_multikey_2", "fwe"):
        (tmp_path / f"{name}.yaml").write_text(f"include: {THEIRS / 'ruler' / name}.yaml\n")

    def evaluate(subject, name, folder, *lengths):
        how = {"tasks": tmp_path, "defaults": False, "limit": 2, "lengths": lengths}
        found = ask.evaluate(subject, [name], tmp_path / folder, **how)[name]
        assert "error" not in found, found
        return found, suite.read_items(tmp_path / folder / f"{name}.parquet")

    return evaluate


@pytest.mark.parametrize("name", ["niah_single_1", "niah_multikey_2", "ruler_fwe"])
def test_ruler_makes_prompts_to_a_length_in_our_tokens(name, subject, ruler, says):
    found, rows = ruler(subject, name, "real", 1024)
    assert found["items"] == 2 and list(found["metrics"]) == ["1024"] and found["chance"] == 0
    assert all(512 < row["prompt_tokens"] <= 1040 for row in rows)  # fwe: without its 50 to be generated
    right = {row["prompt"]: ", ".join(json.loads(row["facts"]["document"])["outputs"]) for row in rows}
    says(right.__getitem__)
    found, again = ruler(subject, name, "oracle", 1024)  # the same items, in whatever process
    assert [row["digest"] for row in again] == [row["digest"] for row in rows]
    assert found["metrics"]["1024"]["mean"] == 1.0 and not found["at_chance"]
    assert [row["metrics"] for row in again] == [{"match": 1.0}] * 2
