import itertools
import json
from pathlib import Path

import pytest

from workbench.config import AttentionConfig, Mamba2Config, ModelConfig, from_json, load_file
from workbench.devices import DEVICES, Device, priced
from workbench.speed.predict import decode, predict
from workbench.study import speed
from workbench.study.collect import collect
from workbench.study.experiment import load
from workbench.study.speed_figures import decoding, frontier, pareto

fake = load_file(Path(__file__).with_name("fake_study.py"))

SYMBOLS = {"M": Mamba2Config(state=4, head_dim=8), "*": AttentionConfig(heads=2)}
MODELS = {name: ModelConfig(pattern, 16, 20, SYMBOLS) for name, pattern in (("transformer", "*"), ("mamba2", "M"))}
WHERE = {"batches": (1, 2), "contexts": (8, 300)}


def test_a_device_is_predicted_and_nothing_is_timed(tmp_path):
    rows = speed.speed(MODELS, tmp_path, DEVICES["h100"], **WHERE)
    assert len(rows) == 8 and not (tmp_path / "measured.json").exists()
    for row in rows:
        step = decode(MODELS[row["arm"]], DEVICES["h100"], batch=row["batch"], context=row["context"])
        assert (row["predicted"], row["bound"]) == (step.seconds, step.bound)
    assert json.loads((tmp_path / "predicted.json").read_text())["rows"] == rows
    assert "x transformer" in speed.table(rows, "transformer") and "measured" not in speed.table(rows, "transformer")


def test_energy_and_cost_are_the_devices_watts_and_its_price_times_its_seconds(tmp_path):
    (tmp_path / "prices.json").write_text('{"h100": {"dollars_an_hour": 3.6}, "this machine": {"watts": 100}}')
    rows = speed.speed(MODELS, tmp_path, DEVICES["h100"], **WHERE, prices=tmp_path / "prices.json")
    for row in rows:
        assert row["joules"] == 700 * row["predicted"]
        assert row["dollars"] == pytest.approx(row["predicted"] / 1000)
    head, line = speed.table(rows, "transformer").splitlines()[:2]
    assert head.endswith("J a token  $ a million tokens")
    assert float(line.split()[-1]) == pytest.approx(1e3 * rows[0]["predicted"], rel=1e-2)
    whole = predict(MODELS["mamba2"], DEVICES["h100"], batch=2, prompt_tokens=9, tokens=3)
    assert whole.joules == 700 * whole.seconds and whole.dollars is None
    assert priced(Device("mine", 1, 1, 1, "measured"), tmp_path / "prices.json").watts == 100
    with pytest.raises(ValueError, match=r"has nothing of 'a100'; add \{\"a100\": "):
        priced(DEVICES["a100"], tmp_path / "prices.json")
    (tmp_path / "prices.json").write_text('{"h100": {"dollars": 3.6}}')
    with pytest.raises(ValueError, match="it may give dollars_an_hour and watts"):
        priced(DEVICES["h100"], tmp_path / "prices.json")
    with pytest.raises(ValueError, match=r"the price list .*none\.json cannot be read"):
        priced(DEVICES["h100"], tmp_path / "none.json")


def test_this_machine_is_predicted_on_disk_before_it_is_timed(tmp_path, monkeypatch):
    measured = speed.measured

    def looked(*arguments, **options):
        assert len(json.loads((tmp_path / "predicted.json").read_text())["rows"]) == 4
        return measured(*arguments, **options)

    monkeypatch.setattr(speed, "measured", looked)
    rows = speed.speed(MODELS, tmp_path, None, batches=(1, 2), contexts=(8,), progress=False)
    assert all(row["seconds"] > 0 and len(row["trials"]) == 3 for row in rows)
    kept = json.loads((tmp_path / "measured.json").read_text())
    assert kept["rows"] == rows and kept["device"]["source"] == "measured"
    assert "predicted / measured" in speed.table(rows, "transformer")
    drawn = decoding(rows)
    lines = {tuple(line.get_xdata()): line for ax in drawn.axes for line in ax.lines if line.get_linestyle() == "-"}
    assert set(lines) == {(8,)} and len(drawn.axes) == 2


def test_what_does_not_fit_is_left_out_and_said(monkeypatch):
    small = Device("small", 60_000, 1e9, 1e9, "made up")
    rows = speed.predicted(MODELS, small, **WHERE)
    found = list(speed.measured(MODELS, rows, small, progress=False))
    missing = [(row["arm"], row["batch"], row["context"]) for row in found if row["seconds"] is None]
    assert missing == [("transformer", 1, 300), ("transformer", 2, 300)]
    assert "needs " in speed.table(found, "transformer")


def test_the_speed_experiment_is_matched_and_names_its_arms(root):
    models = speed.models(load(root / "experiments" / "inference.py").runs)
    assert list(models) == ["transformer", "transformer, grouped", "mamba", "mamba2", "hybrid"]


def test_an_arm_with_a_model_for_each_task_is_refused(root):
    with pytest.raises(ValueError, match="has a model for each of its tasks"):
        speed.models(load(root / "experiments" / "phonebook.py").runs)


def test_quality_is_set_against_what_a_generation_costs_and_the_frontier_is_what_none_beats(tmp_path):
    study = collect(fake.write(tmp_path))
    rows = speed.against_quality(study, DEVICES["h100"], batch=8, prompt=1024, tokens=256)
    assert {(row["task"], row["measure"], row["entries"]) for row in rows} == {
        ("phonebook", "exact_match", 8), ("phonebook", "exact_match", 24), ("text", "bits_per_byte", None)
    }  # fmt: skip
    for row in rows:
        run = study.select("result", task=row["task"], arm=row["arm"])[0]
        model = from_json(run.config).model
        assert row["seconds"] == predict(model, DEVICES["h100"], batch=8, prompt_tokens=1024, tokens=256).seconds
    text = [row for row in rows if row["task"] == "text"]
    best = frontier(text)
    for row in text:  # each is on it, or something there is at least as fast and as good
        assert row in best or any(b["seconds"] <= row["seconds"] and b["mean"] <= row["mean"] for b in best)
    for one, other in itertools.pairwise(best):
        assert one["seconds"] < other["seconds"] and one["mean"] > other["mean"]
    drawn = pareto(rows)
    assert [len(ax.containers) for ax in drawn.axes] == [4, 4, 4]


@pytest.mark.slow
def test_without_a_device_the_generation_is_measured_here_and_fitted(tmp_path):
    study = collect(fake.write(tmp_path, arms=("mamba2",), seeds=(0,), text=False))
    rows = speed.against_quality(study, None, batch=1, prompt=32, tokens=8, progress=False)
    assert len({row["seconds"] for row in rows}) == 1 and 0 < rows[0]["seconds"] < 60
