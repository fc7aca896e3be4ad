import json
from dataclasses import replace

import pytest

from workbench.command import main
from workbench.config import MLPConfig, ModelConfig, PhonebookConfig, PhonebookEvaluation, RunConfig, to_json
from workbench.study.diff import diff

RUN = RunConfig(
    "study", "arm", ModelConfig("-", 8, 76, {"-": MLPConfig(hidden=8)}), PhonebookConfig(), PhonebookEvaluation()
)
RESULT = {"status": "finished", "digest": "ab" * 32, "steps": 10, "data": {"names": 64}, "final_loss": 1.0}
ENVIRONMENT = {"packages": {"jax": "0.12.0"}, "git": {"commit": "1" * 40, "dirty": False}}


@pytest.fixture
def made(tmp_path):
    def make(name, run=RUN, result=RESULT, environment=ENVIRONMENT):
        folder = tmp_path / name
        folder.mkdir()
        for file, value in (("config", to_json(run)), ("result", result), ("environment", environment)):
            (folder / f"{file}.json").write_text(json.dumps(value))
        return folder

    return make


def test_two_runs_of_one_config_do_not_differ(made, capsys):
    first, second = made("a"), made("b")
    assert not any(diff(first, second).values())
    assert main(["diff", str(first), str(second)]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "config: the same"


def test_each_difference_is_told_where_it_lies(made, capsys):
    other = replace(RUN, seed=1, model=replace(RUN.model, symbols={"-": MLPConfig(hidden=12)}))
    result = RESULT | {"digest": "cd" * 32, "final_loss": 2.0}
    first, second = made("a"), made("b", other, result, ENVIRONMENT | {"packages": {"jax": "0.11.2"}})
    found = diff(first, second)
    assert found["config"][0] == "model.symbols.-.hidden: 8 -> 12" and found["config"][-1] == "seed: 0 -> 1"
    assert found["data"] == ["token stream: abababababab -> cdcdcdcdcdcd"]
    assert "layers.0.mixer.enter: (1, 8, 8) -> (1, 8, 12)" in found["first weights"]
    assert any(line.startswith("embedding: other values") for line in found["first weights"])
    assert found["code and machine"] == ["packages.jax: '0.12.0' -> '0.11.2'"]
    assert found["result"] == ["final_loss: 1.0 -> 2.0"]
    assert main(["diff", str(first), str(second)]) == 1
    assert "  seed: 0 -> 1" in capsys.readouterr().out


def test_streams_of_runs_that_have_not_ended_or_are_of_other_lengths_are_not_compared(made):
    first = made("a")
    assert "the second has not ended" in diff(first, made("b", result={}))["data"][0]
    assert "steps: 10 -> 20" in diff(first, made("c", result=RESULT | {"steps": 20}))["data"][0]


def test_what_is_no_run_folder_is_named(tmp_path, capsys):
    assert main(["diff", str(tmp_path), str(tmp_path)]) == 2
    assert "is no run folder" in capsys.readouterr().err
