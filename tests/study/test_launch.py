import json
import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

from workbench.config import load_file
from workbench.study import execute, launch
from workbench.study.experiment import load

RAY = [pytest.mark.ray, pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed")]
notebook = load_file(Path(__file__).with_name("test_execute.py")).notebook

EXPERIMENT = '''"""Do all launchers leave the same?"""

from workbench.config import ModelConfig, OptimizerConfig, PhonebookConfig, PhonebookEvaluation, RunConfig


def runs(scale):
    model = ModelConfig("*-", 16, 76)
    return [RunConfig("small", "arm", model, PhonebookConfig(), PhonebookEvaluation(), OptimizerConfig(), seed,
                      STEPS, log_every=20) for seed in range(3)]
'''

# Stands for notebooks/train.ipynb: holds the folder's lock, resumes where its log ends, and needs no JAX.
TRAIN = """
import fcntl, json, os, time
from pathlib import Path
run, folder = json.loads(Path(config).read_text()), Path(folder)
lock = open(folder / ".lock", "a")
fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
with open(folder / "starts", "a") as file:
    file.write(f"{os.getpid()}\\n")
log = folder / "metrics.jsonl"
rows = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
loss = rows[-1]["loss"] if rows else 3.0 + run["seed"]
for step in range(20 * len(rows) + 20, run["steps"] + 1, 20):
    loss = 0.99 * loss + 0.001 * (step * 7919 % 101)
    with open(log, "a") as file:
        file.write(json.dumps({"step": step, "loss": loss, "tokens": 100 * step}) + "\\n")
    with open(folder / "timing.jsonl", "a") as file:
        file.write(json.dumps({"step": step, "seconds": 0.1, "tokens_per_second": 4000.0}) + "\\n")
    time.sleep(0.05)
flags = os.environ.get("XLA_FLAGS", "")
(folder / "result.json").write_text(json.dumps({"status": "finished", "final_loss": loss, "flags": flags}))
"""

COMPARE = """
import json
from pathlib import Path
results = sorted(Path(study).glob("*/result.json"))
table = "".join(f"{path.parent.name} {json.loads(path.read_text())['final_loss']}\\n" for path in results)
(Path(study) / "report.html").write_text(table)
"""

# A cluster of this machine: what submitit calls, and no more. A job is a process group of its own.
SLURM = {
    "sbatch": """
        id=$(($(ls "$SLURM_HERE" | wc -l) + 1)); touch "$SLURM_HERE/$id"; cp "$1" "$SLURM_HERE/../script-$id"
        scontrol requeue $id; echo "Submitted batch job $id" """,
    "scontrol": """
        SLURM_JOB_ID=$2 setsid bash "$SLURM_HERE/../script-$2" >/dev/null 2>&1 & echo $! >"$SLURM_HERE/$2" """,
    "srun": """while [ "${1#--}" != "$1" ]; do case $1 in --output|--error) shift;; esac; shift; done; exec "$@" """,
    "scancel": """kill -TERM -- "-$(cat "$SLURM_HERE/$1")" """,
    "sacct": """
        echo "JobID|State|NodeList"
        for id in $(ls "$SLURM_HERE"); do
            state=FAILED; kill -0 "$(cat "$SLURM_HERE/$id")" 2>/dev/null && state=RUNNING
            echo "$id|$state|here"
        done""",
}


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """Programs that stand for SLURM's, first in the path; returns the folder with a file a job."""
    here, programs = tmp_path / "jobs", tmp_path / "bin"
    here.mkdir(), programs.mkdir()
    for name, text in SLURM.items():
        (programs / name).write_text(f"#!/bin/bash\n{text}\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_HERE", str(here))
    return here


def laid_out(root: Path, steps: int) -> Path:
    (root / "experiments").mkdir(parents=True)
    declared = 'config: str = ""\nfolder: str = ""\nwandb: str = ""\nprogress: bool = True\nlayout: str = ""'
    notebook(root / "notebooks/train.ipynb", declared, TRAIN)
    notebook(root / "notebooks/compare.ipynb", 'study: str = ""', COMPARE)
    path = root / "experiments" / "small.py"
    path.write_text(EXPERIMENT.replace("STEPS", str(steps)))
    return path


def driver(path: Path, launcher: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "workbench.command", "run", str(path), "--launcher", launcher]
    command += ["--jobs", "2"] if launcher != "local" else []  # which then has a core a run, as the others have
    environment = os.environ | {"XDG_CACHE_HOME": str(path.parents[1]), "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # background jobs ignore it
    )  # fmt: skip


def until_started(path: Path, runs: int, process: subprocess.Popen) -> None:
    """Waits until so many runs of the experiment's study have logged a step."""
    deadline = time.monotonic() + 300
    while len(list(path.parents[1].glob("runs/small/*/metrics.jsonl"))) < runs and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)


def left(path: Path) -> dict[str, str]:
    """What a study's folder holds that does not depend on time or place, and its report."""
    folder = path.parents[1] / "runs" / "small"
    names = ("metrics.jsonl", "result.json", "config.json", "report.html")
    return {str(f.relative_to(folder)): f.read_text() for f in sorted(folder.rglob("*")) if f.name in names}


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher",
    [
        "local",
        "slurm",
        pytest.param("ray", marks=RAY),
    ],
)
def test_a_killed_driver_is_followed_by_another_and_all_launchers_leave_the_same(tmp_path, cluster, launcher):
    path = laid_out(tmp_path / "study", 2000)
    first = driver(path, launcher)
    until_started(path, 2, first)
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert not (path.parents[1] / "runs/small/report.html").exists()
    second = driver(path, launcher)
    out, _ = second.communicate(timeout=300)
    assert second.returncode == 0, out
    starts = [len(f.read_text().split()) for f in (tmp_path / "study").glob("runs/small/*/starts")]
    if launcher == "slurm":  # jobs outlive their driver, and are followed
        assert starts == [1, 1, 1] and len(list(cluster.iterdir())) == 3
    else:
        assert sum(starts) > 3
    alone = laid_out(tmp_path / "alone", 2000)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path))
        assert execute.run(load(alone)).failures == []
    assert left(path) == left(alone)
    assert len(left(path)) == 10


@pytest.mark.slow
def test_a_job_that_meets_its_time_limit_is_queued_again_and_goes_on(tmp_path, cluster):
    path = laid_out(tmp_path / "study", 2000)
    process = driver(path, "slurm")
    until = time.monotonic() + 120
    while (
        not (started := list((tmp_path / "study").glob("runs/small/*-s0-*/metrics.jsonl"))) and time.monotonic() < until
    ):
        time.sleep(0.1)
    os.killpg(int((cluster / "1").read_text()), signal.SIGUSR2)  # what SLURM sends 90 seconds before the end
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, out
    assert len((started[0].parent / "starts").read_text().split()) == 2 and len(list(cluster.iterdir())) == 3
    steps = [json.loads(line)["step"] for line in started[0].read_text().splitlines()]
    assert steps == list(range(20, 2001, 20))


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher",
    [
        "slurm",
        pytest.param("ray", marks=RAY),
    ],
)
def test_stopping_a_driver_stops_its_runs_elsewhere(tmp_path, cluster, launcher):
    path = laid_out(tmp_path / "study", 100_000)
    process = driver(path, launcher)
    until_started(path, 2, process)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130 and "the same command resumes" in out, out
    pids = [int(pid) for f in (tmp_path / "study").glob("runs/small/*/starts") for pid in f.read_text().split()]
    until = time.monotonic() + 30
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < until:
        time.sleep(0.1)
    assert len(pids) == 2 and not any(Path(f"/proc/{pid}").exists() for pid in pids)
    assert not list((tmp_path / "study").glob("runs/small/*/result.json"))


def test_a_job_that_still_waits_is_followed_and_one_that_is_gone_submitted_again(tmp_path, cluster, monkeypatch):
    (cluster.parent / "bin" / "sbatch").write_text(
        '#!/bin/bash\nid=$(($(ls "$SLURM_HERE" | wc -l) + 1)); echo $PPID >"$SLURM_HERE/$id"\n'
        'cp "$1" "$SLURM_HERE/../script"; echo "Submitted batch job $id"\n'
    )  # such a job lives as long as this process
    task = launch.Task(str(tmp_path / "run"), "train.ipynb", here=str(tmp_path))
    slurm = launch.launcher("slurm")
    first, second = slurm.submit(task), slurm.submit(task)
    assert not first.done() and len(list(cluster.iterdir())) == 1
    assert first._job.job_id == second._job.job_id == "1"
    script = (tmp_path / "script").read_text()
    assert "--cpus-per-task=1" in script and "--job-name=run" in script and "--time=60" in script
    next(cluster.iterdir()).write_text("0")  # its process is gone, and it left nothing
    (cluster.parent / "bin" / "sacct").write_text('#!/bin/bash\nprintf "JobID|State|NodeList\\n1|FAILED|here\\n"\n')
    assert slurm.submit(task)._job.job_id == "2"


def test_a_launcher_that_cannot_be_had_says_what_is_missing(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setitem(sys.modules, "ray", None)
    for name, says in (
        ("slrum", "did you mean 'slurm'"),
        ("slurm", "there is no srun here"),
        ("ray", r"needs ray; install it by pip install 'architecture-workbench\[ray\]'"),
    ):
        with pytest.raises(ValueError, match=says):
            launch.launcher(name)
    with pytest.raises(ValueError, match="a layout of 2 devices runs one at a time"):
        launch.launcher("local", 2, "data=2")


def test_a_scheduler_that_refuses_one_run_gets_the_others(tmp_path, monkeypatch):
    """And the refusal is in the run's result, as any other failure."""
    experiment = load(laid_out(tmp_path, 20))
    execute._prepare(experiment.folder, experiment.runs)

    class Picky:
        at_once, cores, where = 2, 1, "nowhere"

        def submit(self, task):
            if task.folder.endswith(experiment.runs[0].name):
                raise RuntimeError("sbatch: error: invalid account")
            return self

        def done(self):
            return True

        def error(self):
            return None

        cancel = kill = error

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    tasks = {run.name: launch.Task(str(experiment.folder / run.name), "") for run in experiment.runs}
    work = execute._Work(experiment.folder, Picky(), list(experiment.runs), tasks)
    assert list(execute._run_all(work)) == [experiment.runs[0].name]
    result = json.loads((experiment.folder / experiment.runs[0].name / "result.json").read_text())
    assert result["status"] == "failed" and "invalid account" in result["error"]
