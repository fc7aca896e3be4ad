import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture
def records():
    """A run's offline log, as wandb's own inspector reads it."""

    def read(folder):
        (log,) = (folder / "wandb").glob("offline-run-*/*.wandb")
        command = [str(Path(sys.executable).with_name("wandb")), "leet", "inspect", "--json", str(log)]
        out = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
        return [json.loads(line) for line in out.splitlines()]

    return read


def test_an_offline_run_is_read_back_by_wandbs_own_inspector(run, train, rows, records, tmp_path):
    result = train(run, tmp_path, wandb="offline")
    found = records(tmp_path)
    (about,) = (record["run"] for record in found if record["type"] == "run")
    assert (about["run_group"], about["display_name"]) == ("toys", "small-s0")
    assert about["config"]["update"]["optimizer"]["learning_rate"] == run.optimizer.learning_rate
    curve = {r["history"]["step"]["num"]: r["history"]["item"] for r in found if r["type"] == "history"}
    for row in rows(tmp_path / "metrics.jsonl"):
        numbers = {name: value for name, value in row.items() if name not in ("step", "digest")}
        assert {name: curve[row["step"]][name] for name in numbers} == numbers
    summary = {}
    for record in found:
        if record["type"] == "summary":
            summary |= record["summary"]["update"]
    assert summary["final_loss"] == result["final_loss"] and summary["digest"] == result["digest"]
    (table,) = (tmp_path / "wandb").glob("offline-run-*/files/media/table/*.json")
    content = json.loads(table.read_text())
    assert content["columns"] == ["split", "evaluation", "mean", "low", "high"]
    sums = result["evaluation"]["toy"]["sums"]["test"]
    assert ["test", "toy/sums/test", sums["mean"], sums["low"], sums["high"]] in content["data"]


@pytest.mark.slow
def test_a_resumed_run_keeps_its_id_so_that_wandb_joins_the_pieces(run, train, tmp_path):
    def stop(step, metrics):
        if step == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(run, tmp_path, wandb="offline", on_step=stop)
    train(run, tmp_path, wandb="offline")
    assert len({path.stem for path in (tmp_path / "wandb").glob("offline-run-*/*.wandb")}) == 1


def test_a_studys_figures_and_page_are_one_more_run_of_its_group(records, tmp_path):
    from matplotlib import pyplot as plt

    from workbench.train.track import log_study

    (tmp_path / "figures").mkdir()
    figure, _ = plt.subplots()
    figure.savefig(tmp_path / "figures" / "recall.png")
    (tmp_path / "report.html").write_text("<p>answer</p>")
    log_study("toys", tmp_path, "offline", {"toy": (["arm", "right"], [["mamba", "97.0 %"]])})
    (about,) = (record["run"] for record in records(tmp_path) if record["type"] == "run")
    assert (about["run_group"], about["job_type"]) == ("toys", "report")
    media = {path.suffix for path in (tmp_path / "wandb").glob("offline-run-*/files/media/**/*") if path.is_file()}
    assert media == {".png", ".html", ".json"}
    (table,) = (tmp_path / "wandb").glob("offline-run-*/files/media/table/**/*.json")
    assert json.loads(table.read_text())["data"] == [["mamba", "97.0 %"]]


def test_a_suites_tables_and_figures_are_one_more_run_of_its_runs_group(records, tmp_path):
    """In the study's folder, so that a run that is resumed after its suite still finds its own id alone."""
    from matplotlib import pyplot as plt

    from workbench.train.track import log_suite

    run = tmp_path / "toys-small-s3-1a2b3c4d"
    run.mkdir()
    (run / "config.json").write_text(json.dumps({"study": "toys", "arm": "small", "seed": 3}))
    figure, _ = plt.subplots()
    figure.savefig(run / "curves.png")
    metrics = {"exact": {"mean": 0.5, "low": 0.25, "high": 0.75}, "nats": {"mean": -2.0, "low": None, "high": None}}
    results = {
        "recall": {"items": 8, "at_chance": False, "metrics": metrics},
        "vt": {"error": "positions allow 64"},
        "niah": {"left_out": "too short"},
    }
    log_suite(run, run / "suite" / "5e6f7a8b", "offline", results, [run / "curves.png"])
    (about,) = (record["run"] for record in records(tmp_path) if record["type"] == "run")
    assert (about["run_group"], about["job_type"], about["display_name"]) == ("toys", "suite", "small-s3")
    media = {path.suffix for path in (tmp_path / "wandb").glob("offline-run-*/files/media/**/*") if path.is_file()}
    assert media == {".png", ".json"} and not (run / "wandb").exists()
    tables = [
        json.loads(path.read_text()) for path in (tmp_path / "wandb").glob("offline-run-*/files/media/table/**/*.json")
    ]
    found = {table["data"][0][0]: table for table in tables}
    assert found["recall"]["columns"] == ["task", "metric", "mean", "low", "high", "items", "at chance"]
    assert found["recall"]["data"] == [
        ["recall", "exact", 0.5, 0.25, 0.75, 8, False],
        ["recall", "nats", -2.0, None, None, 8, None],
    ]
    assert found["vt"]["data"] == [["vt", "positions allow 64"], ["niah", "too short"]] and len(tables) == 2


def test_a_loss_by_position_reaches_wandb_as_a_table_and_its_figure(records, tmp_path):
    from matplotlib import pyplot as plt

    from workbench.train.track import log_positions

    run = tmp_path / "toys-small-s3-1a2b3c4d"
    run.mkdir()
    (run / "config.json").write_text(json.dumps({"study": "toys", "arm": "small", "seed": 3}))
    figure, _ = plt.subplots()
    figure.savefig(run / "positions.png")
    bins = [
        {
            "start": 0,
            "end": 16,
            "extrapolated": False,
            "mean": 2.0,
            "low": 1.5,
            "high": 2.5,
            "bytes": 64,
            "documents": 4,
        },
        {
            "start": 16,
            "end": 32,
            "extrapolated": True,
            "mean": 1.0,
            "low": 0.5,
            "high": 1.5,
            "bytes": 60,
            "documents": 4,
        },
    ]
    log_positions(
        run, run / "positions" / "5e6f7a8b-4x32.json", "offline", {"by_position": bins}, run / "positions.png"
    )
    (about,) = (record["run"] for record in records(tmp_path) if record["type"] == "run")
    assert (about["run_group"], about["job_type"], about["display_name"]) == ("toys", "positions", "small-s3")
    media = {path.suffix for path in (tmp_path / "wandb").glob("offline-run-*/files/media/**/*") if path.is_file()}
    (table,) = (tmp_path / "wandb").glob("offline-run-*/files/media/table/**/*.json")
    assert media == {".png", ".json"}
    assert json.loads(table.read_text())["data"] == [list(each.values()) for each in bins]


def test_disabled_leaves_no_trace(whole):
    assert not (whole.folder / "wandb").exists()


def test_an_unknown_mode_is_refused_with_the_nearest(run, train, tmp_path):
    with pytest.raises(ValueError, match=r"wandb 'ofline' is unknown; did you mean 'offline'\?"):
        train(run, tmp_path, wandb="ofline")
