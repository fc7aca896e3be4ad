import errno
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from workbench.config import Mamba2Config, ModelConfig, to_json
from workbench.data.digest import chain
from workbench.evaluate.items import Scored
from workbench.model.names import named
from workbench.train import loop
from workbench.train.checkpoint import load_model
from workbench.train.loop import TrainingFailed


class Stop(Exception):
    pass


def stop_at(stop):
    def on_step(step, metrics):
        if step == stop:
            raise Stop

    return on_step


def same_weights(a, b):
    (_, a), (_, b) = load_model(a), load_model(b)
    a, b = named(a), named(b)
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("stop", [2, 7])
def test_resuming_a_run_gives_the_same_weights_bit_for_bit(run, whole, train, tmp_path, stop):
    """Stopped before the first checkpoint, and between two and a row of the log."""
    with pytest.raises(Stop):
        train(run, tmp_path, on_step=stop_at(stop))
    assert not (tmp_path / "result.json").exists()
    result = train(run, tmp_path)
    assert same_weights(tmp_path, whole.folder)
    assert (tmp_path / "metrics.jsonl").read_bytes() == (whole.folder / "metrics.jsonl").read_bytes()
    assert result["memory_bytes"] == whole.result["memory_bytes"] > 12 * result["parameters"]  # float32 and Adam
    timed = ("seconds", "compile_seconds", "tokens_per_second")
    assert {k: v for k, v in result.items() if k not in timed} == {
        k: v for k, v in whole.result.items() if k not in timed
    }


def test_resuming_with_other_evaluations_changes_no_weight_and_no_curve(run, whole, train, replace, rows, tmp_path):
    def curve(folder):
        losses = [row for row in rows(folder / "metrics.jsonl") if "loss" in row]
        return [{name: row[name] for name in row if not name.startswith("select/")} for row in losses]

    with pytest.raises(Stop):
        train(run, tmp_path, on_step=stop_at(7))
    result = train(replace(run, evaluate_every=3, checkpoint_every=2, keep=(9,)), tmp_path)
    assert same_weights(tmp_path, whole.folder) and curve(tmp_path) == curve(whole.folder)
    evaluated = [row["step"] for row in rows(tmp_path / "metrics.jsonl") if "select/toy/sums/select" in row]
    assert evaluated == [4, 6, 9, 12] and (tmp_path / "checkpoints" / "9").is_dir()
    assert result["run"] == run.name and result["digest"] == whole.result["digest"]  # it is the run that it was
    with pytest.raises(ValueError, match=r"belongs to another config; first difference: .*log_every"):
        train(replace(run, evaluate_every=3, log_every=2), tmp_path)


def test_items_of_the_test_are_kept_beside_the_result_and_not_in_it(run, whole, evaluator, rows, tmp_path):
    items = [{"item": 0, "right": True}, {"item": 1, "right": False}]
    scored = {"toy": lambda model, split: Scored(evaluator(model, split), items)}
    loop.train(run, tmp_path, scored, progress=False, wandb="disabled")
    assert rows(tmp_path / "items" / "toy.jsonl") == items
    assert json.loads((tmp_path / "result.json").read_text())["evaluation"] == whole.result["evaluation"]


def test_a_run_killed_while_it_is_evaluated_at_the_end_trains_no_step_again(run, whole, evaluator, tmp_path):
    def killed(model, split):
        if split == "test":
            raise Stop
        return evaluator(model, split)

    arguments = {"progress": False, "wandb": "disabled"}
    with pytest.raises(Stop):
        loop.train(run, tmp_path, {"toy": killed}, **arguments)
    steps = []
    loop.train(run, tmp_path, {"toy": evaluator}, on_step=lambda step, _: steps.append(step), **arguments)
    assert steps == [] and same_weights(tmp_path, whole.folder)


def test_a_second_run_of_one_process_knows_what_its_operations_chose(run, train, replace, tmp_path):
    """Though its step is not traced again."""
    model = ModelConfig("M", 16, 11, {"M": Mamba2Config(state=4, head_dim=8)})
    run = replace(run, model=model, steps=1, checkpoint_every=0, evaluate_every=0)
    chosen = [train(run, tmp_path / name)["implementation"] for name in ("first", "second")]
    assert chosen[0] == chosen[1] == {"ssd": "xla", "causal_conv1d": "xla"}


def test_both_logs_lose_what_came_after_the_checkpoint(run, whole, train, rows, tmp_path):
    with pytest.raises(Stop):
        train(run, tmp_path, on_step=stop_at(7))
    for name in ("metrics.jsonl", "timing.jsonl"):
        with (tmp_path / name).open("a") as file:
            file.write(json.dumps({"step": 6, "loss": 0.0, "seconds": 0.0}) + '\n{"step": 7, "lo')
    train(run, tmp_path)
    for name in ("metrics.jsonl", "timing.jsonl"):
        assert [row["step"] for row in rows(tmp_path / name)] == [4, 5, 8, 10, 12]
    assert rows(tmp_path / "metrics.jsonl") == rows(whole.folder / "metrics.jsonl")


def test_a_finished_run_is_not_run_again(run, whole, train, tmp_path):
    files = {path: path.stat().st_mtime_ns for path in whole.folder.rglob("*") if path.is_file()}
    steps = []
    assert train(run, whole.folder, on_step=lambda step, _: steps.append(step)) == whole.result
    assert steps == []
    assert {path: path.stat().st_mtime_ns for path in whole.folder.rglob("*") if path.is_file()} == files


def test_the_log_has_losses_evaluations_and_costs_by_step(run, whole, rows):
    metrics, timing = rows(whole.folder / "metrics.jsonl"), rows(whole.folder / "timing.jsonl")
    assert [row["step"] for row in metrics] == [row["step"] for row in timing] == [4, 5, 8, 10, 12]
    assert [row["tokens"] for row in metrics] == [32 * row["step"] for row in metrics]
    assert all(row["flops"] == row["tokens"] * whole.result["train_flops_per_token"] for row in metrics)
    assert [row["step"] for row in metrics if "select/toy/sums/select" in row] == [4, 8, 12]
    assert [row["step"] for row in metrics if "loss" in row] == [5, 10, 12]
    assert metrics[-1]["loss"] == whole.result["final_loss"]
    assert timing[-1]["seconds"] == whole.result["seconds"] > timing[0]["seconds"] > 0
    assert whole.result["evaluation"]["toy"]["sums"].keys() == {"test"}
    assert whole.result["select"]["toy"]["sums"].keys() == {"select"}


def test_a_row_has_the_mean_over_tokens_since_the_row_before(run, train, replace, rows, tmp_path):
    run = replace(run, log_every=6, evaluate_every=0, checkpoint_every=0)
    seen = []
    train(run, tmp_path, on_step=lambda step, metrics: seen.append(metrics))
    for row, steps in zip(rows(tmp_path / "metrics.jsonl"), (seen[:6], seen[6:]), strict=True):
        weights = [metrics["weight"] for metrics in steps]
        assert row["loss"] == pytest.approx(np.average([m["loss"] for m in steps], weights=weights), rel=1e-12)
        assert row["gradient_norm"] == pytest.approx(np.mean([m["gradient_norm"] for m in steps]), rel=1e-12)


def test_the_record_has_the_digest_of_every_batch_in_order(run, whole, rows):
    digests = [""]
    for step in range(run.steps):
        digests.append(chain(digests[-1], run.data.stream().batch(step)))
    assert whole.result["digest"] == digests[-1]
    assert all(row["digest"] == digests[row["step"]] for row in rows(whole.folder / "metrics.jsonl"))


def test_a_loss_that_is_not_a_number_names_its_step_and_keeps_the_last_good_checkpoint(
    run, toy, train, replace, tmp_path
):
    run = replace(run, data=toy(poisoned=7))
    with pytest.raises(TrainingFailed, match="loss is nan at step 7 of 12; the checkpoint of step 4 is kept"):
        train(run, tmp_path)
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["status"], result["steps"]) == ("nan", 6)
    _, model = load_model(tmp_path)
    assert all(np.isfinite(value).all() for value in named(model).values())
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["4"]
    with pytest.raises(TrainingFailed, match=r"step 7 of 12.*delete"):
        train(run, tmp_path)


def test_a_batch_that_grows_is_read_in_full_and_resumed_bit_for_bit(run, toy, train, replace, tmp_path):
    """Rows double at step 7: the step before is still looked at, and the next one compiled."""
    run = replace(run, data=toy(doubled=7))
    whole = train(run, tmp_path / "whole")
    digest = ""
    for step in range(run.steps):
        digest = chain(digest, run.data.stream().batch(step))
    assert (whole["digest"], whole["tokens"]) == (digest, (6 + 2 * 6) * 32)
    with pytest.raises(Stop):
        train(run, tmp_path / "stopped", on_step=stop_at(10))
    assert train(run, tmp_path / "stopped")["weights_hash"] == whole["weights_hash"]


def test_a_batch_with_nothing_to_learn_from_is_named(run, toy, train, replace, tmp_path):
    with pytest.raises(ValueError, match="batch 3 of the data has no weight above 0"):
        train(replace(run, data=toy(blank=4)), tmp_path)


@pytest.fixture
def heard():
    """SIGINT as a terminal's process has it: a shell's background jobs ignore it, and tests that run there as well."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heard")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_being_asked_to_stop_saves_the_step_and_the_run_goes_on_as_if_it_had_not(run, whole, train, tmp_path, number):
    before = signal.getsignal(number)

    def ask(step, metrics):
        if step == 6:  # seen while the step after it runs
            os.kill(os.getpid(), number)

    with pytest.raises(loop.Stopped, match=f"{number.name} at step 7 of 12; it is saved"):
        train(run, tmp_path, on_step=ask)
    assert signal.getsignal(number) is before
    steps = []
    result = train(run, tmp_path, on_step=lambda step, _: steps.append(step))
    assert steps == list(range(8, 13))
    assert result["weights_hash"] == whole.result["weights_hash"] and result["digest"] == whole.result["digest"]
    assert (tmp_path / "metrics.jsonl").read_text() == (whole.folder / "metrics.jsonl").read_text()


@pytest.mark.usefixtures("heard")
def test_being_asked_twice_does_not_wait(run, train, tmp_path):
    def ask(step, metrics):
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt) as caught:
        train(run, tmp_path, on_step=ask)
    assert not isinstance(caught.value, loop.Stopped)


def test_a_weight_that_is_not_finite_is_a_divergence(run, train, tmp_path, monkeypatch):
    def save(*_):
        raise FloatingPointError("parameter embedding is not finite after step 4")

    monkeypatch.setattr(loop.checkpoint, "save", save)
    with pytest.raises(TrainingFailed, match="parameter embedding is not finite after step 4 of 12; no checkpoint"):
        train(run, tmp_path)
    assert json.loads((tmp_path / "result.json").read_text())["status"] == "nan"


def test_what_an_evaluator_raises_is_no_divergence_and_the_run_goes_on_when_it_is_mended(run, train, tmp_path):
    def broken(model, split):
        raise FloatingPointError("invalid value in divide")

    with pytest.raises(FloatingPointError, match="divide"):
        loop.train(run, tmp_path, {"broken": broken}, progress=False, wandb="disabled")
    assert not (tmp_path / "result.json").exists()
    assert train(run, tmp_path)["status"] == "finished"


def test_a_disk_that_fills_while_the_log_is_written_is_named_with_what_is_left(
    run, whole, train, tmp_path, monkeypatch
):
    def full(values, **options):
        if isinstance(values, dict) and "loss" in values and values["step"] == 10:
            raise OSError(errno.ENOSPC, "No space left on device")
        return json_dumps(values, **options)

    json_dumps = json.dumps
    with monkeypatch.context() as patched:
        patched.setattr(json, "dumps", full)
        with pytest.raises(OSError, match=r"cannot be written \(No space left.*before are intact.*metrics\.jsonl"):
            train(run, tmp_path)
    train(run, tmp_path)
    assert same_weights(tmp_path, whole.folder)


def test_a_folder_of_another_config_is_refused_naming_the_first_difference(run, whole, train, replace):
    other = replace(run, optimizer=replace(run.optimizer, learning_rate=3e-3))
    with pytest.raises(ValueError, match=r"first difference: optimizer\.learning_rate: 0\.01 -> 0\.003"):
        train(other, whole.folder)


def test_a_half_written_folder_is_refused_with_what_to_do(run, train, tmp_path):
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(ValueError, match=r"has metrics\.jsonl and no config\.json.*delete"):
        train(run, tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(to_json(run)))
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl is broken in line 2.*delete"):
        train(run, tmp_path)
    (tmp_path / "config.json").write_text('{"class": "workbe')
    with pytest.raises(ValueError, match=r"config\.json is half-written.*delete"):
        train(run, tmp_path)


def test_a_folder_that_cannot_be_written_is_refused(run, train, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"the run's folder cannot be written.*give another one"):
        train(run, tmp_path / "file" / "run")


def test_a_second_process_on_one_folder_is_refused_until_the_first_dies(run, whole, train, tmp_path):
    hold = (
        "import fcntl, sys, time; lock = open(sys.argv[1], 'a'); fcntl.flock(lock, fcntl.LOCK_EX); "
        "print('held', flush=True); time.sleep(60)"
    )
    lock = whole.folder / ".lock"
    with subprocess.Popen([sys.executable, "-c", hold, str(lock)], stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout.readline() == "held\n"
        with pytest.raises(RuntimeError, match="another process trains in"):
            train(run, whole.folder)
        first.kill()
    assert train(run, whole.folder) == whole.result


def test_a_run_holds_its_folder_while_it_trains_and_frees_it_after(run, train, tmp_path):
    def intrude(step, metrics):
        train(run, tmp_path)

    with pytest.raises(RuntimeError, match="another process trains in"):
        train(run, tmp_path, on_step=intrude)
    assert train(run, tmp_path)["status"] == "finished"


def test_resuming_elsewhere_is_warned_of_and_recorded(run, train, tmp_path):
    with pytest.raises(Stop):
        train(run, tmp_path, on_step=stop_at(5))
    path = tmp_path / "environment.json"
    elsewhere = json.loads(path.read_text()) | {"cpus": 640}
    path.write_text(json.dumps(elsewhere))
    with pytest.warns(UserWarning, match=r"cpus: 640 -> \d+"):
        train(run, tmp_path)
    now = json.loads(path.read_text())
    assert now["cpus"] == len(os.sched_getaffinity(0)) and now["earlier"] == [elsewhere]


def test_resuming_in_the_same_environment_warns_of_nothing(run, train, tmp_path, recwarn):
    with pytest.raises(Stop):
        train(run, tmp_path, on_step=stop_at(5))
    train(run, tmp_path)
    assert not [warning for warning in recwarn if "environment" in str(warning.message)]


def test_the_loss_falls(whole, rows):
    metrics = rows(whole.folder / "metrics.jsonl")
    losses = [row["loss"] for row in metrics if "loss" in row]
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.slow
def test_a_rule_is_learned(run, train, replace, tmp_path):
    """Every next token follows from the one before: the loss falls from that of the start to nearly nothing.

    At the start the logits are N(0, 1.28^2), whatever the width: log 11 plus about half their variance.
    """
    run = replace(run, steps=150, evaluate_every=0, checkpoint_every=0, log_every=10)
    losses = []
    train(run, tmp_path, on_step=lambda step, metrics: losses.append(metrics["loss"]))
    assert losses[0] == pytest.approx(np.log(11) + 1.28**2 / 2, rel=0.1) and losses[-1] < 0.1


def test_the_bar_shows_the_arm_the_loss_the_speed_and_the_time_left(run, train, tmp_path, capsys):
    train(run, tmp_path, progress=True)
    last = capsys.readouterr().err.strip().split("\r")[-1]
    assert "small s0" in last and "12/12" in last and "loss " in last and "tokens/s" in last and "<00:00" in last
