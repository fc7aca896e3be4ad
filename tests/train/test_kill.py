"""Training that is killed without warning, again and again, at random moments and while a checkpoint is written."""

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from workbench.config import to_json
from workbench.train.loop import train

# A process that trains, and notes every step that it has done.
TRAIN = """
import json, sys
from workbench.config import from_json
from workbench.train.loop import train

with open(sys.argv[3], "a", buffering=1) as notes:
    print("begun", file=notes)
    train(
        from_json(json.loads(sys.argv[1])), sys.argv[2], {}, progress=False, wandb="disabled",
        on_step=lambda step, metrics: print(step, file=notes),
    )
"""
EVERY = 5  # steps between checkpoints


@pytest.fixture
def heavy(run):
    """Weights and optimizer of 50 MB, so that a save lasts for several steps."""
    model = dataclasses.replace(run.model, vocabulary=2**17)
    return dataclasses.replace(run, model=model, evaluate_every=0, checkpoint_every=EVERY)


def writing(folder):
    """An unfinished checkpoint's folder, if there is one."""
    return next((folder / "checkpoints").glob("*tmp*"), None) if (folder / "checkpoints").is_dir() else None


@pytest.mark.parametrize(
    ("kills", "steps", "seed"),
    [(2, 20, 0), pytest.param(10, 40, 1, marks=pytest.mark.slow)],
    ids=["a few times", "many times"],
)
@pytest.mark.parametrize("moment", ["at random", "while a checkpoint is written"])
def test_a_run_that_is_killed_resumes_from_a_whole_checkpoint_and_ends_as_if_it_had_not_been(
    heavy, tmp_path, root, kills, steps, seed, moment
):
    heavy = dataclasses.replace(heavy, steps=steps)
    notes = tmp_path / "notes"
    config = to_json(heavy)
    config["data"]["file"] = str(Path(__file__).with_name("toy.py"))
    command = [sys.executable, "-c", TRAIN, json.dumps(config), str(tmp_path / "run"), str(notes)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    rng, killed, reached = random.Random(seed), 0, 0
    while True:
        notes.write_text("")
        process = subprocess.Popen(command, env=environment, cwd=root)
        wanted = rng.randrange(2, 2 * EVERY)  # steps of this process before it is killed at random
        while process.poll() is None and killed < kills:
            if writing(tmp_path / "run") if moment != "at random" else len(notes.read_text().split()) > wanted:
                time.sleep(rng.uniform(0, 0.05))
                process.send_signal(signal.SIGKILL)
                killed += 1
                break
            time.sleep(0.001)
        status = process.wait()
        steps = [int(step) for step in notes.read_text().split()[1:]]
        if steps:  # it went on from what was saved last, or from the one before if that was still being written
            saved = steps[0] - 1
            assert saved % EVERY == 0 and reached - saved <= EVERY
            reached = steps[-1]
        if status == 0:
            break
    assert killed == kills
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    whole = train(heavy, tmp_path / "whole", {}, progress=False, wandb="disabled")
    assert result["weights_hash"] == whole["weights_hash"] and result["digest"] == whole["digest"]
