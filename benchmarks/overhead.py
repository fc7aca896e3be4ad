"""Times what a run costs as a notebook, against calling the library; and what a second start saves.

    python benchmarks/overhead.py [--rounds N] [--json FILE]

The demo's first run (experiments/phonebook.py), the shortest, in two ways on one core: notebooks/train.ipynb by
papermill, as `workbench run` does it, and a Python process that calls `train` with the same evaluators. Both are timed
from outside, from the start of the process to its end, in turn; the first turn also compiles what evaluates, and the
fastest turns are compared. Before, the training step is compiled from an empty cache, and again from the filled one.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

from workbench.config import RunConfig, to_json
from workbench.record import read_json, write_json
from workbench.study.execute import notebooks
from workbench.study.experiment import load
from workbench.study.launch import environment
from workbench.study.notebook import new_kernel, run_notebook
from workbench.train.environment import cpus, processor

LIBRARY = """
import sys
from workbench.study.experiment import chosen, task
from workbench.train.loop import train

run, folder = chosen(sys.argv[1])
train(run, folder, {task(run): run.evaluation.build(run)}, progress=False, wandb="offline")
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2, help="how often the run is made in each way")
    parser.add_argument("--json", type=Path, help="write the measurements to this file as well")
    arguments = parser.parse_args()
    experiment = load("experiments/phonebook.py")
    run, seconds = experiment.runs[0], {"library": [], "notebook": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["JAX_COMPILATION_CACHE_DIR"] = f"{folder}/jax"
        short = dataclasses.replace(run, steps=20, evaluate_every=0)
        first, second = (library(short, folder / f"start-{i}")[0]["compile_seconds"] for i in range(2))
        print(f"{run.name} compiles its step in {first:.1f} s, and again in {second:.1f} s", flush=True)
        for i in range(arguments.rounds):
            seconds["library"].append(library(run, folder / f"library-{i}")[1])
            notebook = notebooks(experiment.root) / "train.ipynb"
            seconds["notebook"].append(as_notebook(run, notebook, folder / f"notebook-{i}"))
            print(
                f"by the library {seconds['library'][-1]:.1f} s, as a notebook {seconds['notebook'][-1]:.1f} s",
                flush=True,
            )
    overhead = min(seconds["notebook"]) / min(seconds["library"]) - 1
    print(f"a notebook costs {100 * overhead:+.1f}% of {run.steps} steps, by the fastest turns")
    if arguments.json:
        machine = {"processor": processor(), "cores": cpus(), "load": os.getloadavg()}
        compiling = {"first_compile_seconds": first, "second_compile_seconds": second}
        record = {"date": date.today().isoformat(), "machine": machine, "run": run.name, "steps": run.steps}
        record |= compiling | {"seconds": seconds, "overhead": overhead}
        arguments.json.write_text(json.dumps(record, indent=1) + "\n")


def library(run: RunConfig, folder: Path) -> tuple[dict, float]:
    """The run's result and the seconds of the whole process."""
    config = _written(run, folder)
    core = min(os.sched_getaffinity(0))
    begun = time.perf_counter()
    subprocess.run(
        ["taskset", "-c", str(core), sys.executable, "-c", LIBRARY, str(config)],
        env=os.environ | environment(1), check=True,
    )  # fmt: skip
    return read_json(folder / "result.json"), time.perf_counter() - begun


def as_notebook(run: RunConfig, notebook: Path, folder: Path) -> float:
    config = _written(run, folder)
    core = (min(os.sched_getaffinity(0)),)
    parameters = {"config": str(config), "folder": str(folder), "progress": False}
    begun = time.perf_counter()
    run_notebook(notebook, folder / "train.ipynb", parameters, kernel=new_kernel(environment(1)), cores=core)
    return time.perf_counter() - begun


def _written(run: RunConfig, folder: Path) -> Path:
    folder.mkdir(parents=True)
    write_json(folder / "config.json", to_json(run))
    return folder / "config.json"


if __name__ == "__main__":
    main()
