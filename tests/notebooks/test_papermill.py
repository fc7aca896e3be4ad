"""Every notebook, executed by papermill at a tiny scale, as a user's `workbench run` and `make lab` would."""

import json

import numpy as np
import pytest

from workbench.evaluate.suite import read_items
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


def said(notebook):
    return "".join(out.get("text", "") for cell in notebook.cells for out in cell.get("outputs", ()))


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


def test_the_first_notebook_runs_from_its_own_folder(root, tmp_path, monkeypatch):
    monkeypatch.chdir(root / "notebooks")
    executed = run_notebook(root / "notebooks" / "start.ipynb", tmp_path / "start.ipynb", {"steps": 4})
    assert len(pictures(executed)) == 2
    last = "".join(out.get("text", "") for out in executed.cells[-1].outputs)
    assert all(name in last for name in ("Transformer", "Mamba", "Mamba-2", "hybrid"))


def test_released_models_are_imported_and_compared_on_a_text(root, lettered, tmp_path):
    sources = [lettered(name) for name in ("mamba-tied", "nemotron_h")]
    for name in ("one", "two"):
        (tmp_path / f"{name}.txt").write_text(name * 9)
    for index in range(24):  # in folders of their own, by which splits are made
        (tmp_path / "more" / str(index)).mkdir(parents=True)
        letters = np.random.default_rng(index).integers(97, 123, 100)
        (tmp_path / "more" / str(index) / "a.txt").write_text("".join(map(chr, letters)))
    given = {"sources": ",".join(map(str, sources)), "text": f"{tmp_path}/*.txt", "length": 8}
    given |= {"training": f"{tmp_path}/more/*/*.txt", "steps": 2, "batch": 1}
    for _ in range(2):  # the second time from the run folders
        executed = run_notebook(
            root / "notebooks" / "released_models.ipynb",
            tmp_path / "out.ipynb",
            given | {"folder": str(tmp_path / "runs")},
        )
        text = said(executed)
        assert all(text.count(f"{name}, 2 steps on") == 1 for name in ("mamba-tied", "nemotron_h"))
        assert text.count("on 54 bytes") == 4 and "M-M*-M-" in text


def test_a_state_is_looked_into_from_a_runs_folder(root, studied, tmp_path):
    experiment, _ = studied
    for arm, figures in (("mamba2", 4), ("transformer", 3)):  # attention has no steps
        given = {"run": str(experiment.folder.resolve() / f"phonebook-{arm}-s0-*"), "entries": 4, "books": 8}
        executed = run_notebook(root / "notebooks" / "inside_a_state.ipynb", tmp_path / f"{arm}.ipynb", given)
        assert len(pictures(executed)) == figures
        assert "of the numbers asked for in 8 unseen books of 4 entries are right" in said(executed)


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """The folder of two tiny runs on text, and the cache that holds their corpus."""
    from workbench.config import (
        Mamba2Config,
        ModelConfig,
        Packages,
        RunConfig,
        TextConfig,
        TextEvaluation,
    )  # fmt: skip
    from workbench.train.loop import train

    root = tmp_path_factory.mktemp("texts")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(root / "cache"))
        data = TextConfig((Packages(("tqdm", "pexpect", "click")),), length=64, batch=2)
        for arm, pattern in (("transformer", "*-"), ("mamba2", "MM")):
            model = ModelConfig(pattern, 16, data.vocabulary, {"M": Mamba2Config(state=8, head_dim=16)})
            run = RunConfig("tiny", arm, model, data, TextEvaluation(rows=4, length=64), steps=4)
            train(run, root / run.name, {}, progress=False, wandb="disabled")
        yield root


def test_phone_books_in_text_are_asked_for_once_and_compared(root, texts, tmp_path):
    given = {"runs": [str(texts / "text-*")], "lengths": [700, 900], "count": 10}
    path = root / "notebooks" / "phonebook.ipynb"
    executed = run_notebook(path, tmp_path / "one.ipynb", given)
    assert len(pictures(executed)) == 5 and "failed" not in said(executed)
    assert said(executed).count("of 40 items share 13 words in a row with the training corpus") == 2
    kept = {path: read_items(path) for path in texts.glob("*/suite/*/*.parquet")}
    assert len(kept) == 8
    again = run_notebook(path, tmp_path / "two.ipynb", given)
    assert "mamba2 (first) and transformer (second):" in said(again)
    assert said(again).count("exact_match 0.000 and 0.000") == 4  # of tasks: numbers that nobody has learned to find
    assert {path: read_items(path) for path in kept} == kept  # the seconds that each took, too


def test_long_contexts_are_evaluated_by_task_and_by_position(root, texts, tmp_path):
    given = {
        "runs": [str(texts / "text-*")], "lengths": [512], "count": 2,
        "positions": 512, "documents": 4,
    }  # fmt: skip
    executed = run_notebook(root / "notebooks" / "long_context.ipynb", tmp_path / "long.ipynb", given)
    assert len(pictures(executed)) == 4
    assert said(executed).count("of 10 items share 13 words in a row with the training corpus") == 2
    assert "bits per byte in the first 16 tokens" in said(executed) and "further than it was trained" in said(executed)
    assert len(list(texts.glob("*/positions/*-4x512.json"))) == 2


def test_a_pattern_is_tried_and_compared_with_the_run_before(root, tmp_path):
    given = {"folder": str(tmp_path / "runs"), "steps": 4, "train": True, "width": 16}
    path = root / "notebooks" / "explore.ipynb"
    assert "M (" in said(run_notebook(path, tmp_path / "one.ipynb", given | {"pattern": "M"}))
    lines = said(run_notebook(path, tmp_path / "two.ipynb", given | {"pattern": "*-"})).strip().splitlines()
    assert {line.split(" (")[0] for line in lines[1:]} == {"M", "*-"}
