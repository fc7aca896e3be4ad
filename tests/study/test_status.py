import fcntl
import json

import pytest

from workbench.command import main
from workbench.study.status import states, table

ROWS = {
    "metrics.jsonl": {"step": 50, "loss": 1.5, "tokens": 1600},
    "timing.jsonl": {"step": 50, "tokens_per_second": 320.0},
}


@pytest.fixture
def study(tmp_path):
    """Runs in every state; `held` is the lock of the one that runs."""
    names = ["done-s0-1", "broken-s0-2", "running-s0-3", "stopped-s0-4", "made-s0-5", "named-s0-6"]
    (tmp_path / "experiment.json").write_text(json.dumps({"name": "x", "runs": [{"run": name} for name in names]}))
    for name in [*names[:5], "tuning-s9-7"]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({"arm": "a", "steps": 100}))
    for name in ("done-s0-1", "running-s0-3", "stopped-s0-4"):
        for file, row in ROWS.items():
            (tmp_path / name / file).write_text(json.dumps(row) + "\n")
    (tmp_path / "done-s0-1" / "result.json").write_text(json.dumps({"status": "finished"}))
    (tmp_path / "broken-s0-2" / "result.json").write_text(json.dumps({"status": "failed", "error": "one\nlast line"}))
    for name in ("running-s0-3", "stopped-s0-4"):
        (tmp_path / name / ".lock").touch()
    with (tmp_path / "running-s0-3" / ".lock").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield tmp_path


def test_every_run_has_its_state_and_one_that_runs_its_time_left(study):
    found = {each.run.split("-")[0]: each for each in states(study)}
    assert {name: each.state for name, each in found.items()} == {
        "done": "finished",
        "broken": "failed",
        "running": "running",
        "stopped": "stopped",
        "made": "waiting",
        "named": "waiting",
        "tuning": "waiting",
    }
    assert found["running"].left == pytest.approx(50 * 1600 / 50 / 320)  # steps left, tokens a step, tokens a second
    assert found["stopped"].left is None
    text = table(states(study))
    assert "50/100" in text and "7 runs: 1 finished, 1 failed, 1 running, 1 stopped, 3 waiting" in text
    assert text.endswith("broken-s0-2: last line")


def test_looking_disturbs_nothing(study):
    before = {path: path.stat().st_mtime_ns for path in study.rglob("*")}
    states(study)
    assert before == {path: path.stat().st_mtime_ns for path in study.rglob("*")}
    with (study / "stopped-s0-4" / ".lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_damaged_run_is_named(study):
    (study / "done-s0-1" / "result.json").write_text("{")
    found = states(study)[0]
    assert found.state == "unreadable" and "result.json is half-written" in found.problem


def test_a_folder_without_a_study_is_refused(tmp_path, capsys):
    assert main(["status", str(tmp_path / "none")]) == 2
    assert "holds no study" in capsys.readouterr().err


def test_the_command_prints_a_table_or_json_and_watching_ends_when_nothing_runs(study, capsys, monkeypatch):
    looks = []
    monkeypatch.setattr("time.sleep", looks.append)
    assert main(["status", str(study), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert rows[2]["state"] == "running" and rows[2]["left_seconds"] == pytest.approx(5.0)
    (study / "running-s0-3" / "result.json").write_text(json.dumps({"status": "finished"}))
    assert main(["status", str(study), "--watch"]) == 0
    assert len(looks) == (30 if any(row["state"] == "waiting" for row in rows) else 0)  # the next may be starting
    assert "2 finished" in capsys.readouterr().out
