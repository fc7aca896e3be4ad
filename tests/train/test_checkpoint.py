import contextlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from workbench.config import to_json
from workbench.model.names import named
from workbench.train.checkpoint import Position, latest, load_model, open_checkpoints, save, weights_hash


def saved_steps(folder):
    return sorted(int(path.name) for path in (folder / "checkpoints").iterdir() if path.name.isdigit())


def scramble(folder):
    """Overwrites the middle of every file of arrays, as a bad disk would."""
    for path in (path for path in folder.rglob("d/*") if path.is_file()):
        content = bytearray(path.read_bytes())
        middle = len(content) // 2
        content[middle : middle + 16] = bytes(16)
        path.write_bytes(content)


def test_a_checkpoint_that_memory_does_not_hold_is_not_taken_for_damaged(run, whole, tmp_path, monkeypatch):
    shutil.copytree(whole.folder, tmp_path / "run")
    with contextlib.closing(open_checkpoints(tmp_path / "run")) as checkpoints:

        def restore(*_, **__):
            raise MemoryError("no more")

        monkeypatch.setattr(checkpoints, "restore", restore)
        with pytest.raises(MemoryError):
            latest(checkpoints, run)
    assert saved_steps(tmp_path / "run") == saved_steps(whole.folder)


def test_the_model_that_was_trained_is_loaded(run, whole):
    loaded, model = load_model(whole.folder)
    assert loaded == run
    assert weights_hash(named(model)) == whole.result["weights_hash"]


def test_the_last_two_checkpoints_and_the_best_are_kept(run, evaluator, replace, tmp_path):
    """The score is best at step 3 of 12."""
    from workbench.train.loop import train

    scores = iter([9.0, 1.0, 2.0, 3.0])
    evaluate = lambda model, split: {"score": next(scores) if split == "select" else 0.0}  # noqa: E731
    train(
        replace(run, checkpoint_every=3, evaluate_every=3),
        tmp_path,
        {"toy": evaluate},
        progress=False,
        wandb="disabled",
    )
    assert saved_steps(tmp_path) == [3, 9, 12]
    best, third, last = (named(load_model(tmp_path, step)[1]) for step in ("best", 3, None))
    assert weights_hash(best) == weights_hash(third) != weights_hash(last)


def test_a_step_that_was_not_saved_is_refused_naming_those_that_were(whole, tmp_path):
    with pytest.raises(ValueError, match="no checkpoint of step 5; it has"):
        load_model(whole.folder, 5)
    with pytest.raises(ValueError, match="has no checkpoints"):
        load_model(tmp_path)


def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_is_used(run, whole, train, tmp_path):
    def stop(step, metrics):
        if step == 11:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(run, tmp_path, on_step=stop)
    assert saved_steps(tmp_path) == [4, 8]
    scramble(tmp_path / "checkpoints" / "8")
    with pytest.raises(ValueError, match=r"the checkpoint of step 8 in .* is damaged"):
        load_model(tmp_path)
    steps = []
    with pytest.warns(UserWarning, match=r"the checkpoint of step 8 in .* is damaged"):
        result = train(run, tmp_path, on_step=lambda step, _: steps.append(step))
    assert steps == list(range(5, 13))
    assert result["weights_hash"] == whole.result["weights_hash"]
    assert (tmp_path / "checkpoints" / "damaged" / "8").is_dir()
    assert saved_steps(tmp_path) == saved_steps(whole.folder)


def test_a_checkpoint_that_was_cut_short_does_not_count(run, whole, train, tmp_path):
    def stop(step, metrics):
        if step == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(run, tmp_path, on_step=stop)
    (tmp_path / "checkpoints" / "4").rename(tmp_path / "checkpoints" / "4.orbax-checkpoint-tmp")
    steps = []
    result = train(run, tmp_path, on_step=lambda step, _: steps.append(step))
    assert steps == list(range(1, 13)) and result["weights_hash"] == whole.result["weights_hash"]


def test_a_checkpoint_of_another_config_is_refused_naming_the_first_difference(run, whole, train, replace, tmp_path):
    other = replace(run, seed=1)
    (tmp_path / "config.json").write_text(json.dumps(to_json(other)))
    (tmp_path / "checkpoints").symlink_to(whole.folder / "checkpoints")
    with pytest.raises(ValueError, match=r"the checkpoint of step 12 .* first difference: seed: 0 -> 1"):
        train(other, tmp_path)


FULL_DISK = """
import resource, sys, time
from pathlib import Path
from workbench.config import from_json
from workbench.train.loop import train
import json

def fill(step, metrics):
    if step == 5:
        while not (Path(sys.argv[2]) / "checkpoints" / "4").exists():
            time.sleep(0.01)
        # From now on no file grows past this: the next checkpoint does not fit.
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))

run = from_json(json.loads(sys.argv[1]))
try:
    train(run, Path(sys.argv[2]), {}, progress=False, wandb="disabled", on_step=fill)
except OSError as error:
    print(error)
"""


def test_a_full_disk_stops_the_run_and_leaves_the_checkpoint_before(run, whole, train, root, tmp_path):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    config = to_json(run)
    config["data"]["file"] = str(Path(__file__).with_name("toy.py"))
    command = [sys.executable, "-c", FULL_DISK, json.dumps(config), str(tmp_path)]
    out = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=root, timeout=300)
    assert "a checkpoint could not be saved" in out.stdout and "File too large" in out.stdout, out.stdout + out.stderr
    assert saved_steps(tmp_path) == [4]
    load_model(tmp_path, 4)
    assert train(run, tmp_path)["weights_hash"] == whole.result["weights_hash"]


def test_weights_that_are_not_finite_are_never_saved(run, tmp_path):
    """A loss may be finite and the update after it not."""
    model = {"good": jnp.ones(3), "bad": jnp.array([1, jnp.inf])}
    with contextlib.closing(open_checkpoints(tmp_path)) as checkpoints:
        with pytest.raises(FloatingPointError, match="parameter bad is not finite after step 7"):
            save(checkpoints, run, model, {}, Position(step=7))
        assert checkpoints.all_steps() == []


def test_a_hash_of_weights_knows_names_shapes_types_and_values():
    a = np.arange(6, dtype=np.float32)
    variants = [{"a": a}, {"b": a}, {"a": a.reshape(2, 3)}, {"a": a.astype(np.float64)}, {"a": a + 1}]
    assert len({weights_hash(variant) for variant in variants}) == len(variants)
