import dataclasses
import json
import math
from itertools import combinations
from pathlib import Path

import pytest

from workbench.config import (
    ModelConfig,
    OptimizerConfig,
    PhonebookConfig,
    PhonebookEvaluation,
    RunConfig,
    load_file,
    to_json,
)
from workbench.study import figures
from workbench.study.collect import collect
from workbench.study.experiment import Experiment, load
from workbench.study.tune import check_grid, choose, describe, expected_best, measure

fake = load_file(Path(__file__).with_name("fake_study.py"))
RATES = (1e-3, 3e-3, 1e-2)

LONGER = '''"""Runs whose parents come after them."""

from workbench.config import ModelConfig, PhonebookConfig, PhonebookEvaluation, RunConfig
from workbench.study.extend import extended


def runs(scale):
    base = RunConfig("longer", "arm", ModelConfig("M", 64, 76), PhonebookConfig(), PhonebookEvaluation(), steps=5)
    once = extended(base, 192, steps=5)
    return [extended(once, 384, steps=5), once, base]
'''


def run(arm, rate, seed, role="tuning"):
    return RunConfig(
        "s", arm, ModelConfig("*-", 16, 76), PhonebookConfig(seed=seed), PhonebookEvaluation(),
        OptimizerConfig(learning_rate=rate), seed=seed, role=role,
    )  # fmt: skip


def experiment(folder, runs):
    reported = tuple(run(arm, 1e-3, 0, "result") for arm in ("a", "b"))
    return Experiment("s", folder / "s.py", "demo", folder, "", reported, tuple(runs))


def grid(arms=("a", "b"), rates=RATES, seeds=(10, 11)):
    return [run(arm, rate, seed) for arm in arms for rate in rates for seed in seeds]


def write(folder, run, exact_match, status="finished"):
    (folder / run.name).mkdir()
    by_size = {str(k): {"mean": exact_match} for k in (2, 4)}
    result = {"status": status, "select": {"phonebook": {"exact_match": by_size, "trained_entries": [2]}}}
    (folder / run.name / "result.json").write_text(json.dumps(result))


def test_the_rate_with_the_best_mean_over_seeds_on_select_is_chosen(tmp_path):
    runs = grid()
    for each in runs:
        # One seed alone would choose 1e-2.
        value = {1e-3: 0.1, 3e-3: 0.6, 1e-2: {10: 0.9, 11: 0.2}[each.seed]}[each.optimizer.learning_rate]
        write(tmp_path, each, value)
    chosen = choose(experiment(tmp_path, runs))
    assert {c["arm"]: c["learning_rate"] for c in chosen["choices"]} == {"a": 3e-3, "b": 3e-3}
    assert not any(c["at_edge"] for c in chosen["choices"])
    assert json.loads((tmp_path / "tuning.json").read_text()) == chosen


def test_the_best_of_so_many_rates_is_the_mean_over_all_choices_of_them(tmp_path):
    values = [0.1, 0.7, 0.4, 0.9]
    for tried, found in enumerate(expected_best(values), 1):
        every = [max(each) for each in combinations(values, tried)]
        assert found == pytest.approx(sum(every) / len(every))
    assert expected_best([-math.inf, 0.2])[0] == -math.inf and expected_best([-math.inf, 0.2])[1] == 0.2
    runs = grid()
    for each in runs:
        write(tmp_path, each, {1e-3: 0.1, 3e-3: 0.6, 1e-2: 0.2}[each.optimizer.learning_rate])
    study = experiment(tmp_path, runs)
    chosen = choose(study)
    assert chosen["choices"][0]["by_budget"] == pytest.approx([0.3, (0.6 + 0.6 + 0.2) / 3, 0.6])
    assert "a: 0.300, 0.467, 0.600" in describe(chosen, study)


def test_a_figure_shows_quality_against_the_rate_and_against_the_number_of_rates_tried(tmp_path):
    fake.write(tmp_path, ("hybrid", "mamba2"), text=False)
    runs = grid(("hybrid", "mamba2"))
    for each in runs:
        write(tmp_path, each, {1e-3: 0.1, 3e-3: 0.6, 1e-2: 0.2}[each.optimizer.learning_rate])
        (tmp_path / each.name / "config.json").write_text(json.dumps(to_json(each)))
    (drawing,) = (each for each in figures.drawings(collect(tmp_path)) if each.name == "phonebook-tuning")
    tried = {row["rates_tried"]: row["mean"] for row in drawing.rows if row["arm"] == "hybrid" and "rates_tried" in row}
    assert tried == pytest.approx({1: 0.3, 2: 1.4 / 3, 3: 0.6})
    (tmp_path / runs[-1].name / "result.json").unlink()
    drawing = figures.tuned(collect(tmp_path), "phonebook")
    assert {row["arm"] for row in drawing.rows} == {"hybrid"}
    assert any("not drawn: mamba2" in text.get_text() for text in drawing.figure.texts)


def test_a_best_rate_at_the_edge_asks_for_a_wider_grid_for_every_arm(tmp_path):
    runs = grid()
    for each in runs:
        write(
            tmp_path,
            each,
            each.optimizer.learning_rate if each.arm == "a" else -abs(each.optimizer.learning_rate - 3e-3),
        )
    it = experiment(tmp_path, runs)
    text = describe(choose(it), it)
    assert "phonebook a: 0.01" in text and "phonebook b: 0.003" in text
    assert "The best rate of phonebook a lies at the grid's edge: widen the grid, for every arm alike" in text
    assert "the experiment uses 0.001: put this one there" in text


def test_a_rate_that_diverged_is_never_chosen(tmp_path):
    runs = grid()
    for each in runs:
        diverged = each.optimizer.learning_rate == 1e-2 and each.seed == 10
        write(tmp_path, each, each.optimizer.learning_rate, "nan" if diverged else "finished")
    assert {c["learning_rate"] for c in choose(experiment(tmp_path, runs))["choices"]} == {3e-3}


def test_equal_rates_go_inside_the_grid(tmp_path):
    runs = grid()
    for each in runs:
        write(tmp_path, each, 1.0)
    choices = choose(experiment(tmp_path, runs))["choices"]
    assert {c["learning_rate"] for c in choices} == {3e-3} and not any(c["at_edge"] for c in choices)


def test_an_unfinished_tuning_run_leaves_nothing_chosen(tmp_path):
    runs = grid()
    for each in runs[1:]:
        write(tmp_path, each, 0.5)
    with pytest.raises(ValueError, match=f"{runs[0].name} is not finished"):
        choose(experiment(tmp_path, runs))
    assert not (tmp_path / "tuning.json").exists()


@pytest.mark.parametrize(
    "runs",
    [
        grid(("a",)) + grid(("b",), RATES[:2]),
        grid(("a",)) + grid(("b",), seeds=(10, 12)),
        grid()[1:],
    ],
    ids=["fewer rates", "other seeds", "a hole"],
)
def test_arms_tuned_unlike_are_refused(runs):
    with pytest.raises(ValueError, match="same rates and seeds"):
        check_grid(runs)


def test_fewer_bits_are_better():
    assert measure({"text": {"bits_per_byte": {"mean": 2.5}}}) == ("bits_per_byte", -2.5)
    assert measure({"own": {"score": 0.3}}) == ("score", 0.3)
    with pytest.raises(ValueError, match="tuning needs exact_match, bits_per_byte, score"):
        measure({"own": {"other": 1}})


FILE = """
import dataclasses
from workbench.config import ModelConfig, PhonebookConfig, PhonebookEvaluation, RunConfig
SCALES = ("demo", "full")
def runs(scale):
    run = RunConfig("s", "a", ModelConfig("*-", 16, 76), PhonebookConfig(seed=0), PhonebookEvaluation(), seed=0)
    return [run, dataclasses.replace(run, seed=1, data=PhonebookConfig(seed=1))]
def tuning(scale):
    return [dataclasses.replace(run, seed=run.seed + SHIFT, role="tuning") for run in runs(scale)]
"""


def test_seeds_that_are_tuned_on_may_not_be_reported(tmp_path):
    path = tmp_path / "shared.py"
    path.write_text(FILE.replace("SHIFT", "1"))
    with pytest.raises(ValueError, match="seed 1 is both tuned on and reported"):
        load(path)
    path = tmp_path / "shared_data.py"
    path.write_text(FILE.replace("SHIFT", "10"))
    with pytest.raises(ValueError, match=r"data.seed 0, 1 is both tuned on and reported"):
        load(path)


def test_an_unknown_scale_is_refused_with_the_choices(tmp_path):
    path = tmp_path / "scaled.py"
    path.write_text(FILE.partition("def tuning")[0])
    with pytest.raises(ValueError, match="no scale 'ful'; did you mean 'full'"):
        load(path, "ful")


def test_overrides_reach_every_run_and_have_a_folder_of_their_own(tmp_path):
    path = tmp_path / "overridden.py"
    path.write_text(FILE.partition("def tuning")[0])
    changed = load(path, "full", ["steps=200", "optimizer.learning_rate=3e-3"])
    assert {(r.steps, r.optimizer.learning_rate) for r in changed.runs} == {(200, 3e-3)}
    assert changed.folder.parent == tmp_path / "runs"
    assert changed.folder.name.startswith("overridden-full-steps-200-optimizer.learning_rate-3e-3-")
    patterns = [load(path, overrides=[f"model.pattern={pattern}"]) for pattern in ("*-*", "*-")]
    assert patterns[0].folder != patterns[1].folder
    assert load(path).folder == tmp_path / "runs" / "overridden"
    with pytest.raises(ValueError, match="no field 'stepps'; did you mean 'steps'"):
        load(path, overrides=["stepps=20"])


def test_an_override_that_makes_two_runs_one_is_refused(tmp_path):
    path = tmp_path / "doubled.py"
    path.write_text(FILE.partition("def tuning")[0])
    with pytest.raises(ValueError, match="more than once"):
        load(path, overrides=["seed=3", "data.seed=3"])
    assert len({dataclasses.astuple(run)[6] for run in load(path).runs}) == 2


@pytest.mark.parametrize("scale", ["demo", "full"])
def test_every_run_of_the_phonebook_study_has_one_folder_of_its_own(scale):
    experiment = load(Path(__file__).parents[2] / "experiments" / "phonebook.py", scale)
    names = [run.name for run in (*experiment.runs, *experiment.tuning)]
    assert len(set(names)) == len(names) and not any(set(name) & set("/\\") for name in names)
    check_grid(experiment.tuning)
    if scale == "full":
        assert {run.role for run in experiment.runs} == {"result", "control", "state", "long"}
        arms = {run.arm for run in experiment.runs if run.role == "result"}
        assert {run.arm for run in experiment.runs if run.role in ("state", "long")} <= arms
        assert {run.control_of for run in experiment.runs if run.role == "control"} <= arms


def test_an_override_reaches_the_runs_that_have_its_field_and_keeps_twice_the_steps():
    path = Path(__file__).parents[2] / "experiments" / "phonebook.py"
    experiment = load(path, "full", ["steps=200", "data.digits=3", "evaluation.rows=64"])
    assert {run.steps for run in experiment.runs if run.role != "long"} == {200}
    assert {run.steps for run in experiment.runs if run.role == "long"} == {400}
    assert {getattr(run.data, "digits", 3) for run in experiment.runs} == {3}
    with pytest.raises(ValueError, match="no field 'digitts'; did you mean 'digits'"):
        load(path, "full", ["data.digitts=3"])


def test_a_runs_parent_stays_its_parent_whatever_is_overridden(tmp_path):
    path = tmp_path / "experiments" / "longer.py"
    path.parent.mkdir()
    path.write_text(LONGER)
    for overrides in ([], ["model.width=32", "steps=7"]):
        twice, once, base = load(path, overrides=overrides).runs
        assert (once.parent.run, twice.parent.run) == (base.name, once.name)
        assert {run.steps for run in (base, once, twice)} == {7 if overrides else 5}


def test_an_arm_that_no_folder_can_be_named_after_is_refused():
    for arm in ("a/b", "", ".hidden"):
        with pytest.raises(ValueError, match="becomes part of a folder's name"):
            run(arm, 1e-3, 0)
