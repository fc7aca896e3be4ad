"""One small run in a process of its own, so that the notebook that watches it stays free to stop it.

python -m workbench.explore.trial RUN_FOLDER    trains the config.json that is there, or goes on with it
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import NamedTuple

from workbench.config import RunConfig, to_json
from workbench.record import write_json
from workbench.study.experiment import chosen, task
from workbench.study.launch import environment

LOG = "train.log"


class Trial(NamedTuple):
    """A run that was started here."""

    run: RunConfig
    folder: Path
    process: subprocess.Popen

    @property
    def running(self) -> bool:
        return self.process.poll() is None


def start(run: RunConfig, study: Path) -> Trial:
    """Trains the run in its folder within a study's, or goes on where it was stopped; returns at once.

    It saves and ends when the process that started it, a notebook's kernel, is gone.
    """
    folder = study / run.name
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "config.json").exists():
        write_json(folder / "config.json", to_json(run))
    command = [sys.executable, "-m", "workbench.explore.trial", str(folder.resolve())]
    with (folder / LOG).open("w") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=log, stderr=log, env=os.environ | environment(0)
        )
    return Trial(run, folder, process)


def stop(trial: Trial) -> None:
    """Asks it to save after the step that runs, and to end."""
    trial.process.terminate()


def problem(trial: Trial) -> str:
    """What a process that failed said last; "" for one that runs, has finished, or was stopped, saved or not begun."""
    if trial.running or trial.process.returncode in (0, -signal.SIGTERM):
        return ""
    said = (trial.folder / LOG).read_text().strip().splitlines()
    return said[-1] if said else f"its process ended with {trial.process.returncode}"


def main(folder: str) -> int:
    from workbench.train.loop import Stopped, train

    threading.Thread(target=_end_with_starter, daemon=True).start()
    run, place = chosen(str(Path(folder) / "config.json"))
    try:
        train(run, place, {task(run): run.evaluation.build(run)}, progress=False, wandb="disabled")
    except Stopped as stopped:
        print(stopped)
    return 0


def _end_with_starter() -> None:
    """Standard input ends when whoever holds its other end does."""
    os.read(0, 1)  # no buffer, whose lock would be held at the interpreter's end
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
