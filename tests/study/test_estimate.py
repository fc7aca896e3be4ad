import json
from dataclasses import replace
from pathlib import Path

import pytest

from workbench.config import load_file, to_json
from workbench.study import progress, statistics
from workbench.study.collect import collect
from workbench.study.differences import spreads
from workbench.study.estimate import detectable, estimate
from workbench.study.experiment import load
from workbench.study.launch import Local

fake = load_file(Path(__file__).with_name("fake_study.py"))

EXPERIMENT = '''"""What will it cost?"""

from workbench.config import ModelConfig, OptimizerConfig, PhonebookConfig, PhonebookEvaluation, RunConfig


def runs(scale):
    return [RunConfig("small", arm, ModelConfig(pattern, 16, 76), PhonebookConfig(entries=(2,), length=17, batch=2),
                      PhonebookEvaluation(entries=(2,), books=2, queries=1), OptimizerConfig(), seed,
                      40 + seed, log_every=20, role="control" if of else "result", control_of=of)
            for seed in (1, 2, 3) for arm, pattern, of in (("one", "-", ""), ("two", "--", "one"))]
'''


@pytest.fixture
def experiment(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "experiments").mkdir()
    path = tmp_path / "experiments" / "small.py"
    path.write_text(EXPERIMENT)
    return load(path)


def table(text):
    """The first table's rows by arm."""
    lines = text.splitlines()
    return {
        line.split("  ")[0]: [cell.strip() for cell in line.split("  ")[1:] if cell]
        for line in lines[2 : lines.index("")]
    }


def test_the_time_is_from_what_the_shape_took_here_and_runs_that_are_done_cost_none(experiment):
    cores = Local(1).cores
    progress.remember(progress.cost_name(experiment.runs[0], cores), progress.Cost(2.0, 10.0))
    done = experiment.folder / experiment.runs[0].name
    done.mkdir(parents=True)
    (done / "config.json").write_text(json.dumps(to_json(experiment.runs[0])))
    (done / "result.json").write_text('{"status": "finished"}')
    one, two = (table(estimate(experiment, jobs=1))[f"{arm} (phonebook)"] for arm in ("one", "two"))
    left = [run for run in experiment.runs[1:] if run.arm == "one"]
    assert one[:2] == ["2 of 3", f"{sum(run.steps for run in left)}"]
    assert one[3] == progress.clock(2 * sum(run.steps for run in left) + 2 * 10)
    assert two[0] == "3 of 3" and two[2] == two[3] == "?"


def test_the_detectable_difference_is_the_planners(experiment, tmp_path):
    like = fake.write(tmp_path / "like", arms=("transformer", "mamba"), seeds=(0, 1, 2), text=False, books=8)
    found = [each for each in spreads(collect(like)) if each.task == "phonebook"]
    lines = detectable(experiment, like)
    assert len(found) and len(lines) == 1 + len(found)
    for each, line in zip(found, lines[1:], strict=True):
        smallest = statistics.detectable(3, each.deviation)
        assert f"{each.first} - {each.second}, exact match, {each.entries}: {smallest:.4f}, from 3 seeds" in line
    assert len(detectable(experiment)) == 1  # its own folder is not there yet: in deviations alone


def test_two_seeds_are_said_to_allow_no_claim_about_architectures(experiment):
    two = replace(experiment, runs=experiment.runs[:4])
    assert detectable(two) == ["Seeds: phonebook has 2; no claim about architectures below 3."]


def test_a_folder_without_a_study_is_refused(experiment, tmp_path):
    with pytest.raises(ValueError, match="is not a folder"):
        detectable(experiment, tmp_path / "nothing")


@pytest.mark.slow
def test_what_is_measured_is_known_of_every_shape_and_leaves_no_run(experiment, capsys):
    text = estimate(experiment, measured=True)
    rows = table(text)
    assert len(rows) == 2 and all("?" not in cell for row in rows.values() for cell in row)
    assert "the peaks of their steps" in text and not experiment.folder.exists()
    capsys.readouterr()
    estimate(experiment, measured=True)
    assert "to run" not in capsys.readouterr().out  # known: not run again
