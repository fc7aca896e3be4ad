"""Two processes that train one run. Run as a program, it is one of them."""

import json
import os
import socket
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from workbench.data.batches import Part, prefetch
from workbench.train import cluster


def test_a_process_reads_its_rows_and_a_stream_that_can_reads_no_others(toy):
    stream = toy().stream("train")
    whole = dict(prefetch(stream, 2, 4))
    for part, rows in ((Part(0, 1, 2), slice(0, 2)), (Part(1, 2, 2), slice(2, 4))):
        for step, batch in prefetch(stream, 2, 4, part=part):
            for name, array in batch.items():
                np.testing.assert_array_equal(array, whole[step][name][rows])


def test_variables_that_name_half_a_cluster_are_refused(monkeypatch):
    monkeypatch.setenv("JAX_PROCESS_ID", "1")
    with pytest.raises(ValueError, match="JAX_PROCESS_ID in the environment without JAX_COORDINATOR_ADDRESS"):
        cluster.join()


@pytest.mark.slow
def test_two_processes_give_what_one_gives_and_one_of_them_keeps_the_records(tmp_path):
    """Also when one of them is asked to stop, and they go on as steps of SLURM would.

    Two devices each: rows over processes, weights within.
    """
    (alone,) = trained(tmp_path / "alone", "")
    for each in trained(tmp_path / "two", "data=2,fsdp=2", stop=12):
        assert "it is saved, run it again" in each["stopped"]
    first, second = trained(tmp_path / "two", "data=2,fsdp=2", slurm=True)
    assert alone["rows"] == [16] and first["rows"] == second["rows"] == [8]
    assert first["digest"] == second["digest"] == alone["digest"]
    losses = [json.loads(row)["loss"] for row in (tmp_path / "two" / "metrics.jsonl").read_text().splitlines()]
    np.testing.assert_allclose(losses, alone["losses"], rtol=1e-5)
    assert "result.json" in first["wrote"] and second["wrote"] == []


RAY = """
import sys
from ray import init
from ray.train import RunConfig, ScalingConfig
from ray.train.v2.jax import JaxTrainer

def train(config):
    sys.path.insert(0, config["tests"])
    import test_cluster
    test_cluster.main(config["folder"], "data=2,fsdp=2", 0)

if __name__ == "__main__":
    folder, tests, records = sys.argv[1:]
    init(num_cpus=2, num_gpus=2, include_dashboard=False)  # so that it joins them; JAX_PLATFORMS says cpu
    workers = ScalingConfig(num_workers=2, use_gpu=True)
    JaxTrainer(
        train, train_loop_config={"folder": folder, "tests": tests}, scaling_config=workers,
        run_config=RunConfig(storage_path=records),
    ).fit()
"""


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed")
def test_two_workers_of_rays_trainer_give_what_one_process_gives(tmp_path):
    (alone,) = trained(tmp_path / "alone", "")
    script = tmp_path / "driver.py"
    script.write_text(RAY)
    arguments = [sys.executable, script, tmp_path / "two", Path(__file__).parent, tmp_path / "records"]
    two = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2"
    path = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": two, "PYTHONPATH": path}
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    losses = [json.loads(row)["loss"] for row in (tmp_path / "two" / "metrics.jsonl").read_text().splitlines()]
    np.testing.assert_allclose(losses, alone["losses"], rtol=1e-5)
    assert json.loads((tmp_path / "two" / "environment.json").read_text())["layout"]["data"] == 2


def trained(folder, layout, stop=0, slurm=False):
    """What each process says in the end; which of the cluster it is, plain variables tell it, or those of srun."""
    count = 2 if layout else 1
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    running = []
    for place in range(count):
        two = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2"
        environment = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": two}
        if layout and slurm:  # the port follows from the job's number
            job = str(port % 2**12)
            environment |= {"SLURM_JOB_ID": job, "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2"}
            environment |= {"SLURM_PROCID": str(place), "SLURM_LOCALID": str(place)}
        elif layout:
            environment |= {"JAX_COORDINATOR_ADDRESS": f"localhost:{port}", "JAX_NUM_PROCESSES": "2"}
            environment |= {"JAX_PROCESS_ID": str(place)}
        arguments = [sys.executable, __file__, str(folder), layout, str(stop)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        running.append(subprocess.Popen(arguments, env=os.environ | environment, **pipes))
    found = []
    for process in running:
        out, err = process.communicate(timeout=600)
        assert process.returncode == 0, err[-3000:]
        found.append(json.loads(out.splitlines()[-1]))
    return found


def main(folder, layout, stop):
    import signal
    from dataclasses import replace

    from test_layout import config

    from workbench.config import Layout
    from workbench.record import read_rows
    from workbench.train import loop

    rows, wrote = set(), []
    folder, row_hashes, stop = Path(folder), loop.row_hashes, int(stop)

    def noted(write):
        return lambda path, value: wrote.extend([path.name] * path.is_relative_to(folder)) or write(path, value)

    for name in ("write_json", "write_text", "add_row", "keep_rows"):
        setattr(loop, name, noted(getattr(loop, name)))
    loop.row_hashes = lambda batch: rows.add(len(batch["tokens"])) or row_hashes(batch)

    def on_step(step, metrics):
        if step == stop and cluster.place() == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    run = config("float32", 1)
    run = replace(run, model=replace(run.model, pattern="*-"))
    try:
        result = loop.train(
            run, folder, {}, layout=Layout.read(layout), progress=False, wandb="disabled", on_step=on_step
        )
    except loop.Stopped as stopped:
        print(json.dumps({"stopped": str(stopped)}))
        return
    losses = [row["loss"] for row in read_rows(folder / "metrics.jsonl")]
    print(json.dumps({"rows": sorted(rows), "wrote": wrote, "digest": result["digest"], "losses": losses}))


if __name__ == "__main__":
    main(*sys.argv[1:])
