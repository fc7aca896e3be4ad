"""A whole study of real runs, killed three times or run through Ray, ends with the claims of one left alone."""

import json
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest

from workbench.config import load_file
from workbench.study.collect import collect
from workbench.study.tables import pasted

until_started = load_file(Path(__file__).with_name("test_launch.py")).until_started

EXPERIMENT = '''"""Does it matter that a study was killed?"""

from workbench.config import AttentionConfig, ModelConfig, PhonebookConfig, PhonebookEvaluation, RunConfig

PATTERNS = {"attention": "*", "both": "*-", "twice": "**", "mlp": "--"}


def runs(scale):
    data, exam = PhonebookConfig(entries=(2,), length=17, batch=2), PhonebookEvaluation(entries=(2, 4), books=4)
    symbols = {"*": AttentionConfig(heads=2)}
    return [RunConfig("small", arm, ModelConfig(pattern, 16, 76, symbols), data, exam, seed=seed,
                      steps=600, evaluate_every=200, checkpoint_every=100)
            for seed in range(3) for arm, pattern in PATTERNS.items()]
'''


def laid_out(root: Path) -> Path:
    (root / "experiments").mkdir(parents=True)
    path = root / "experiments" / "small.py"
    path.write_text(EXPERIMENT)
    return path


def driver(path: Path, *more: str) -> subprocess.Popen:
    command = [str(Path(sys.executable).with_name("workbench")), "run", "experiments/small.py", "--wandb", "disabled"]
    return subprocess.Popen(
        [*command, *more],
        cwd=path.parents[1],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def end(process: subprocess.Popen) -> str:
    out, _ = process.communicate(timeout=400)
    return out


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    path = laid_out(tmp_path_factory.mktemp("alone"))
    process = driver(path)
    assert "FAILED" not in end(process) and process.returncode == 0
    return path


@pytest.mark.slow
def test_a_study_of_twelve_runs_killed_three_times_claims_what_one_left_alone_claims(tmp_path, alone):
    path = laid_out(tmp_path / "killed")
    for runs in (2, 5):  # the driver, twice
        process = driver(path)
        until_started(path, runs, process)
        process.send_signal(signal.SIGKILL)
        process.wait()
    process = driver(path)
    until_started(path, 8, process)
    kernels = [
        each for each in psutil.Process(process.pid).children(recursive=True) if "ipykernel" in str(each.cmdline())
    ]
    kernels[0].kill()  # one run, whose study goes on and says so
    assert "FAILED" in end(process) and process.returncode == 1
    process = driver(path)
    assert "FAILED" not in end(process) and process.returncode == 0

    equal(path, alone)


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed")
def test_through_ray_with_two_workers_it_claims_the_same(tmp_path, alone):
    path = laid_out(tmp_path / "ray")
    process = driver(path, "--launcher", "ray", "--jobs", "2")
    out = end(process)
    assert "on a Ray cluster" in out and process.returncode == 0, out
    equal(path, alone)


def equal(path: Path, alone: Path) -> None:
    folders = [each.parents[1] / "runs" / "small" for each in (path, alone)]
    claims = [json.loads((folder / "certificate.json").read_text())["claims"] for folder in folders]
    assert len(claims[0]["runs"]) == 12 and claims[0] == claims[1]
    tables = [without_times(pasted(collect(folder), "markdown")) for folder in folders]
    assert tables[0] == tables[1]


def without_times(text: str) -> list[list[str]]:
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")]
    first = rows[0].index("seconds")
    assert rows[0][first + 1] == "tokens/s"
    return [row[:first] + row[first + 2 :] for row in rows]
