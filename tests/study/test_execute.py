import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest

from workbench.study import execute, launch, progress
from workbench.study.experiment import load
from workbench.study.extend import extended
from workbench.train import cluster

EXPERIMENT = '''"""Does the executor run what it is told to run?"""

from workbench.config import ModelConfig, OptimizerConfig, PhonebookConfig, PhonebookEvaluation, RunConfig

SCALES = ("demo", "full")


def runs(scale):
    model = ModelConfig("*-", 16, 76)
    return [RunConfig("small", arm, model, PhonebookConfig(), PhonebookEvaluation(),
                      OptimizerConfig(), steps=40, log_every=20)
            for arm in ("good", "bad", "other")]
'''

# Stands for notebooks/train.ipynb: the same parameters and files, without JAX.
TRAIN = """
import json, os, time
from pathlib import Path
run, folder = json.loads(Path(config).read_text()), Path(folder)
with open(folder / "starts", "a") as file:
    file.write("start\\n")
for step in range(20, run["steps"] + 1, 20):
    with open(folder / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"step": step, "loss": 1.5, "tokens": 100 * step}) + "\\n")
    with open(folder / "timing.jsonl", "a") as file:
        file.write(json.dumps({"step": step, "seconds": 0.1, "tokens_per_second": 4000.0}) + "\\n")
    time.sleep(0.05)
if run["arm"] == "bad":
    raise ValueError("this arm is bad")
seen = {"layout": layout, "cores": sorted(os.sched_getaffinity(0)), "flags": os.environ.get("XLA_FLAGS", "")}
(folder / "result.json").write_text(json.dumps({"run": folder.name, "status": "finished", **seen}))
"""

COMPARE = """
from pathlib import Path
print("arm  score")
(Path(study) / "report.html").write_text("<p>report</p>")
"""


def notebook(path, parameters, code):
    cells = [nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]}), nbformat.v4.new_code_cell(code)]
    kernel = {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)


def laid_out(root: Path) -> Path:
    """A root with an experiment and notebooks that stand for the real ones; the experiment's path."""
    (root / "experiments").mkdir()
    declared = 'config: str = ""\nfolder: str = ""\nwandb: str = ""\nprogress: bool = True\nlayout: str = ""'
    notebook(root / "notebooks/train.ipynb", declared, TRAIN)
    notebook(root / "notebooks/compare.ipynb", 'study: str = ""', COMPARE)
    path = root / "experiments" / "small.py"
    path.write_text(EXPERIMENT)
    return path


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """An experiment of three runs after its first execution, whose second run fails."""
    root = tmp_path_factory.mktemp("root")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(root / "cache"))
        experiment = load(laid_out(root))
        yield experiment, execute.run(experiment)


def result(experiment, arm):
    (run,) = (run for run in experiment.runs if run.arm == arm)
    return json.loads((experiment.folder / run.name / "result.json").read_text())


def test_a_failed_run_is_named_and_marked_and_the_others_go_on(ran):
    experiment, outcome = ran
    assert [failure.run for failure in outcome.failures] == [experiment.runs[1].name]
    assert outcome.failures[0].error == "ValueError: this arm is bad"
    assert result(experiment, "bad")["status"] == "failed"
    assert "this arm is bad" in result(experiment, "bad")["error"]
    assert [result(experiment, arm)["status"] for arm in ("good", "other")] == ["finished", "finished"]


def test_every_run_leaves_its_executed_notebook(ran):
    experiment, _ = ran
    for run in experiment.runs:
        executed = nbformat.read(experiment.folder / run.name / "train.ipynb", as_version=4)
        assert str(experiment.folder / run.name) in "".join(cell.source for cell in executed.cells)


def test_the_report_is_made_though_a_run_failed(ran):
    experiment, outcome = ran
    assert outcome.report == experiment.folder / "report.html"
    assert outcome.report.read_text() == "<p>report</p>"


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system cannot pin a process to cores")
def test_each_process_is_pinned_to_the_cores_of_its_slot_with_one_thread(ran):
    experiment, _ = ran
    before = os.sched_getaffinity(0)
    for arm in ("good", "other"):
        seen = result(experiment, arm)
        assert tuple(seen["cores"]) in launch.slots()
        if len(seen["cores"]) == 1:
            assert "intra_op_parallelism_threads=1" in seen["flags"]
    assert os.sched_getaffinity(0) == before


def test_a_layout_of_several_devices_has_the_machine_to_itself(tmp_path):
    path = laid_out(tmp_path)
    path.write_text(EXPERIMENT.replace('("good", "bad", "other")', '("good",)'))
    experiment = load(path)
    with pytest.raises(ValueError, match="a layout of 2 devices runs one at a time"):
        execute.run(experiment, layout="data=2", jobs=2)
    with pytest.raises(ValueError, match="no field 'date'; did you mean 'data'"):
        execute.run(experiment, layout="date=2")
    execute.run(experiment, layout="data=2,remat=all")
    found = result(experiment, "good")
    assert found["layout"] == "data=2,remat=all" and found["cores"] == sorted(os.sched_getaffinity(0))


def test_a_run_waits_for_the_one_that_it_is_extended_from(tmp_path, monkeypatch):
    bases = load(laid_out(tmp_path)).runs
    longer = [extended(base, 192, steps=20) for base in bases]
    runs = [extended(longer[0], 384, steps=20), *longer, *bases]
    order = []

    class Started:
        at_once, cores, where = 2, 1, "nowhere"

        def submit(self, task):
            run = next(run for run in runs if run.name == Path(task.folder).name)
            assert run.parent is None or run.parent.run not in names or run.parent.run in work.ended
            order.append(run.name)
            return self

        def done(self):
            return True

        def error(self):
            return None

        cancel = kill = error

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    names = {run.name for run in runs}
    tasks = {name: launch.Task(str(tmp_path / name), "") for name in names}
    work = execute._Work(tmp_path, Started(), runs, tasks)
    assert execute._run_all(work) == {}
    assert sorted(order) == sorted(names)
    names = {runs[0].name}  # the parent is no longer to do: nothing to wait for
    work = execute._Work(tmp_path, Started(), [runs[0]], tasks)
    assert execute._run_all(work) == {} and order[-1] == runs[0].name


def test_running_again_tries_only_what_failed(ran):
    experiment, _ = ran
    execute.run(experiment)
    starts = {run.arm: len((experiment.folder / run.name / "starts").read_text().split()) for run in experiment.runs}
    assert starts["good"] == starts["other"] == 1 < starts["bad"]


def test_what_runs_took_is_the_next_estimate(ran):
    experiment, _ = ran
    costs = progress.known_costs()
    cores = len(launch.slots()[0] or ())
    cost = costs[progress.cost_name(experiment.runs[0], cores)]
    assert cost.step_seconds == 100 / 4000
    seconds, measured = progress.estimate(list(experiment.runs), costs, cores)
    assert measured == 3
    assert seconds == pytest.approx(3 * (40 * cost.step_seconds + cost.other_seconds))


def test_a_study_that_is_done_is_left_alone(tmp_path, monkeypatch, capsys):
    experiment = load(laid_out(tmp_path))
    execute._record(experiment)
    execute._prepare(experiment.folder, experiment.runs)
    for run in experiment.runs:
        (experiment.folder / run.name / "result.json").write_text('{"status": "finished"}')
    page = experiment.folder / "report.html"
    page.write_text("made before")
    os.utime(page, (time.time() + 1, time.time() + 1))
    monkeypatch.setattr(execute, "run_notebook", None)  # nothing may be executed
    assert execute.run(experiment) == execute.Outcome(experiment.folder, page, [])
    assert "3 runs, 3 done" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["", "{", '{"status": "finished"'], ids=["empty", "cut", "cut later"])
def test_a_half_written_result_counts_as_not_done(tmp_path, text):
    experiment = load(laid_out(tmp_path))
    execute._prepare(experiment.folder, experiment.runs)
    folder = experiment.folder / experiment.runs[0].name
    (folder / "result.json").write_text(text)
    assert execute.status(folder, experiment.runs[0]) is None


def test_an_unwritable_folder_is_refused_before_anything_starts(tmp_path):
    experiment = load(laid_out(tmp_path))
    (tmp_path / "runs").write_text("a file where the folder should be")
    with pytest.raises(ValueError, match="cannot be written"):
        execute.run(experiment)


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="macOS pins nothing")
def test_by_default_a_process_has_one_core_however_many_there_are(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    assert launch.slots() == [(core,) for core in range(8)]
    assert launch.slots(4)[1] == (4, 5, 6, 7)


def test_a_machine_that_knows_nothing_guesses_before_it_starts():
    runs = load(Path(__file__).parents[2] / "experiments" / "phonebook.py").runs
    assert 60 < progress.guess(runs[:1]) < 600  # a run of the demo takes one to three minutes on a core


def test_jobs_below_one_are_refused():
    with pytest.raises(ValueError, match="at least 1; got 0"):
        launch.slots(0)


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_stopping_says_that_the_same_command_resumes_and_leaves_no_process(tmp_path, number):
    path = laid_out(tmp_path)
    path.write_text(EXPERIMENT.replace("steps=40", "steps=100000"))
    command = [sys.executable, "-m", "workbench.command", "run", str(path), "--jobs", "2"]
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # background jobs ignore it
    )  # fmt: skip
    try:
        until = time.monotonic() + 60
        while not list(tmp_path.glob("runs/small/*/timing.jsonl")) and time.monotonic() < until:
            time.sleep(0.1)
        process.send_signal(number)
        out, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, out
    assert "the same command resumes" in out
    assert not list(tmp_path.glob("runs/small/*/result.json"))
    sizes = {path: path.stat().st_size for path in tmp_path.glob("runs/small/*/timing.jsonl")}
    time.sleep(0.3)
    assert sizes and sizes == {path: path.stat().st_size for path in sizes}


def test_a_process_of_a_cluster_that_is_not_the_first_takes_part_in_what_is_left_and_writes_nothing(ran, monkeypatch):
    """Its runs in the order of the first process's; a failing one does not keep it from the next."""
    experiment, _ = ran
    before = {path: path.stat().st_mtime_ns for path in experiment.folder.rglob("*")}
    asked = []

    def notebook(source, target, parameters, **_):
        asked.append((Path(parameters["folder"]).name, parameters["wandb"], parameters["layout"]))
        assert json.loads(Path(parameters["config"]).read_text())["arm"] == "bad"
        assert experiment.folder not in target.parents
        raise ValueError("here too")

    monkeypatch.setattr(execute, "run_notebook", notebook)
    for name, value in zip(cluster.PLAIN, ("localhost:1", "2", "1"), strict=True):
        monkeypatch.setenv(name, value)
    outcome = execute.run(experiment, layout="data=2")
    bad = next(run.name for run in experiment.runs if run.arm == "bad")
    assert asked == [(bad, "disabled", "data=2")]
    assert outcome.report is None and outcome.failures == [(bad, "ValueError: here too")]
    assert before == {path: path.stat().st_mtime_ns for path in experiment.folder.rglob("*")}
