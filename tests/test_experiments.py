"""Every file in experiments/: it builds at every scale, and what it compares is equal where it says so."""

import contextlib
from pathlib import Path

import pytest

from workbench.config import from_json, load_file, to_json
from workbench.count import count
from workbench.study.experiment import load, task
from workbench.study.judge import MATCHED
from workbench.study.tune import check_grid

FILES = sorted((Path(__file__).parents[1] / "experiments").glob("*.py"))
SCALES = [(path.stem, scale) for path in FILES for scale in load_file(path).SCALES]


@pytest.fixture(scope="module", params=SCALES, ids=lambda pair: "-".join(pair))
def experiment(request):
    name, scale = request.param
    with contextlib.chdir(FILES[0].parents[1]):
        return load(f"experiments/{name}.py", scale)


def test_its_docstring_says_question_command_cost_and_answer(experiment):
    lines = experiment.docstring.splitlines()
    for word in ("Question", "Command", "Cost", "Answer"):
        assert any(line.startswith(f"{word}: ") for line in lines), word


def test_its_runs_survive_json_and_have_names_of_their_own(experiment):
    for run in (*experiment.runs, *experiment.tuning):
        assert from_json(to_json(run)) == run
    names = [run.name for run in (*experiment.runs, *experiment.tuning)]
    assert len(set(names)) == len(names)


def test_its_arms_share_data_evaluation_steps_and_recipe_and_are_of_one_size(experiment):
    if experiment.name == "waleffe_8b":
        pytest.skip("the paper's models differ by up to 6%")
    groups = {}
    for run in experiment.runs:
        if run.role in ("result", "extended"):
            groups.setdefault((task(run), run.role, run.seed, getattr(run.data, "length", 0)), []).append(run)
    for runs in groups.values():
        assert len({(run.data, run.evaluation, run.steps, run.model.width, run.model.vocabulary) for run in runs}) == 1
        recipes = [{k: v for k, v in to_json(run.optimizer).items() if k != "learning_rate"} for run in runs]
        assert all(recipe == recipes[0] for recipe in recipes)
        sizes = [count(run.model).non_embedding_parameters for run in runs]
        assert max(sizes) / min(sizes) - 1 <= MATCHED


def test_its_tuning_tries_the_same_for_every_arm(experiment):
    if experiment.tuning:
        check_grid(experiment.tuning)


def test_steps_that_a_budget_says_are_not_overridden():
    with contextlib.chdir(FILES[0].parents[1]), pytest.raises(ValueError, match="ends at an equal budget, which says"):
        load("experiments/budgets.py", "tiny", ["steps=5"])
