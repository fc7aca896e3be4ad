"""Every notebook, executed by papermill at a tiny scale, as a user's `workbench run` and `make lab` would."""

import json
import shutil

import pytest

from workbench.study import execute
from workbench.study.experiment import load
from workbench.study.notebook import run_notebook

EXPERIMENT = '''"""Does a Transformer look up better than Mamba-2 after a handful of steps?"""

from workbench.config import (
    Mamba2Config, ModelConfig, OptimizerConfig, PhonebookConfig, PhonebookEvaluation, RunConfig
)


def runs(scale):
    data = PhonebookConfig(names=16, digits=2, entries=(2,), length=16, batch=4)
    symbols = {"M": Mamba2Config(state=8, head_dim=16)}
    return [
        RunConfig("tiny", arm, ModelConfig(pattern, 16, data.vocabulary, symbols), data,
                  PhonebookEvaluation(entries=(2, 4), books=8, queries=2), OptimizerConfig(),
                  steps=6, log_every=2, evaluate_every=4)
        for arm, pattern in (("transformer", "*-"), ("mamba2", "MM"))
    ]
'''

pytestmark = pytest.mark.slow


def pictures(notebook):
    return [out for cell in notebook.cells for out in cell.get("outputs", ()) if "image/png" in out.get("data", {})]


@pytest.fixture(scope="module")
def studied(tmp_path_factory):
    """A tiny study, run for real through notebooks/train.ipynb and notebooks/compare.ipynb."""
    root = tmp_path_factory.mktemp("root")
    (root / "experiments").mkdir()
    path = root / "experiments" / "tiny.py"
    path.write_text(EXPERIMENT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(root / "cache"))
        yield load(path), execute.run(path)


def test_a_study_runs_from_its_file_to_its_report(studied):
    experiment, outcome = studied
    assert outcome.failures == []
    digests = set()
    for run in experiment.runs:
        result = json.loads((experiment.folder / run.name / "result.json").read_text())
        assert (result["status"], result["steps"]) == ("finished", 6)
        assert set(result["evaluation"]["phonebook"]["exact_match"]) == {"2", "4"}
        digests.add(result["digest"])
    assert len(digests) == 1
    assert "transformer" in outcome.report.read_text()
    assert (experiment.folder / "study.json").is_file()


def test_the_executed_notebooks_show_their_figures(studied):
    import nbformat

    experiment, _ = studied
    for path in (experiment.folder / experiment.runs[0].name / "train.ipynb", experiment.folder / "report.ipynb"):
        assert pictures(nbformat.read(path, as_version=4)), path


def test_a_done_study_is_not_run_again(studied, capsys):
    experiment, outcome = studied
    before = outcome.report.stat().st_mtime_ns
    assert execute.run(experiment.path) == outcome
    assert outcome.report.stat().st_mtime_ns == before
    assert "2 runs, 2 done" in capsys.readouterr().out


def test_a_finished_run_is_evaluated_again_from_the_command_line(studied, capsys):
    from workbench.command import main

    experiment, _ = studied
    folder = experiment.folder / experiment.runs[0].name
    assert main(["evaluate", str(folder), "entries=2", "books=4"]) == 0
    evaluated = json.loads(capsys.readouterr().out)
    assert (evaluated["run"], evaluated["split"]) == (folder.name, "test")
    assert set(evaluated["exact_match"]) == {"2"}


def test_the_speed_notebook_draws_steps_and_what_quality_costs(root, studied, tmp_path):
    experiment, _ = studied
    asked = {"experiment": str(experiment.path), "study": str(experiment.folder), "folder": str(tmp_path / "speed")}
    asked |= {"contexts": "8,300", "batch": 1, "prompt": 32, "tokens": 8}
    executed = run_notebook(root / "notebooks" / "inference.ipynb", tmp_path / "inference.ipynb", asked)
    assert len(pictures(executed)) == 2


@pytest.mark.parametrize("place", [".", "notebooks"])
def test_the_first_notebook_runs_from_the_root_and_from_its_own_folder(root, tmp_path, monkeypatch, place):
    monkeypatch.chdir(root / place)
    executed = run_notebook(root / "notebooks" / "start.ipynb", tmp_path / "start.ipynb", {"steps": 4})
    assert len(pictures(executed)) == 2
    said = "".join(out.get("text", "") for cell in executed.cells[-1:] for out in cell.outputs)
    assert all(name in said for name in ("Transformer", "Mamba", "Mamba-2", "hybrid"))


def test_released_models_are_imported_and_compared_on_a_text(root, tmp_path):
    from tokenizers import Tokenizer, models

    sources = []
    for name in ("mamba-tied", "nemotron_h"):
        sources.append(shutil.copytree(root / "tests" / "exchange" / "golden" / name, tmp_path / name))
        letters = {"<|endoftext|>": 0, "[UNK]": 1} | {chr(97 + i): 2 + i for i in range(26)}
        Tokenizer(models.BPE(vocab=letters, merges=[], unk_token="[UNK]")).save(str(sources[-1] / "tokenizer.json"))
    for name in ("one", "two"):
        (tmp_path / f"{name}.txt").write_text(name * 9)
    given = {"sources": ",".join(map(str, sources)), "text": f"{tmp_path}/*.txt", "length": 8}
    for _ in range(2):  # the second time from the run folders
        executed = run_notebook(
            root / "notebooks" / "released_models.ipynb",
            tmp_path / "out.ipynb",
            given | {"folder": str(tmp_path / "runs")},
        )
        said = "".join(out.get("text", "") for cell in executed.cells for out in cell.get("outputs", ()))
        assert all(said.count(name) == 3 for name in ("mamba-tied", "nemotron_h"))
        assert said.count("on 54 bytes") == 2 and "M-M*-M-" in said
