"""One step on many devices. Run as a program, it has eight of them, simulated."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import replace

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from workbench.config import (
    AttentionConfig,
    Layout,
    Mamba2Config,
    MambaConfig,
    MLPConfig,
    ModelConfig,
    OptimizerConfig,
    PhonebookConfig,
    RunConfig,
)
from workbench.train.layout import AXES, check_rows, make_mesh, spec

LAYOUTS = {
    "one": Layout(),
    "8": Layout(data=8),
    "4 x 1 x 2": Layout(data=4, tensor=2),
    "2 x 2 x 2": Layout(data=2, fsdp=2, tensor=2),
    "2 x 2 x 2, in two parts": Layout(data=2, fsdp=2, tensor=2, micro=2),
    "1 x 8, in two parts": Layout(fsdp=8, micro=2, remat="all"),
    "1 x 8": Layout(fsdp=8),
    "4 fsdp x 2 tensor": Layout(fsdp=4, tensor=2),
    "sequence 4": Layout(sequence=4),
    "2 x 1 x 4": Layout(data=2, sequence=4),
    "1 x 2 x 2 x 2, in two parts": Layout(fsdp=2, sequence=2, tensor=2, micro=2, remat="products"),
}


def config(dtype, periods):
    symbols = {
        "S": MambaConfig(state=4, inner=32),
        "M": Mamba2Config(state=8, head_dim=8, inner=32),
        "*": AttentionConfig(heads=4),
        "-": MLPConfig(hidden=32),
    }
    data = PhonebookConfig(names=20, digits=2, entries=(2, 4), length=32, batch=16)
    return RunConfig(
        "study", "mixed", ModelConfig("SM*-" * periods, 16, data.vocabulary, symbols, dtype=dtype), data, None,
        OptimizerConfig(learning_rate=1e-2), steps=20, log_every=1,
    )  # fmt: skip


def short(periods=1):
    """Of the same, what is quickly compiled."""
    run = config("float32", 1)
    return replace(run, model=replace(run.model, pattern="*-" * periods))


def program(*arguments, **environment):
    # compiled quickly: a layout is what is tested, not what a compiler makes of it
    quick = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0"
    eight = f"{quick} --xla_force_host_platform_device_count=8"
    environment = os.environ | {"XLA_FLAGS": eight, "JAX_PLATFORMS": "cpu"} | environment
    done = subprocess.run([sys.executable, __file__, *arguments], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("dtype", "tolerance", "periods", "layouts"),
    [
        ("float32", 1e-5, 1, ["one", "1 x 2 x 2 x 2, in two parts"]),
        pytest.param("float32", 1e-5, 1, list(LAYOUTS), marks=pytest.mark.slow),
        pytest.param("float64", 1e-10, 2, list(LAYOUTS), marks=pytest.mark.slow),
    ],
)
def test_every_layout_gives_one_devices_loss_curve(dtype, tolerance, periods, layouts):
    """With two periods, which are scanned over as on a GPU."""
    curves = program(dtype, str(periods), *layouts, JAX_ENABLE_X64="1" if dtype == "float64" else "0")
    assert len(curves["one"]) == 20 and curves["one"][-1] < 0.9 * curves["one"][0]
    for name, curve in curves.items():
        np.testing.assert_allclose(curve, curves["one"], rtol=tolerance, err_msg=name)


def test_a_run_starts_and_goes_on_without_a_device_that_ever_holds_the_whole_and_from_one_devices_weights():
    """With vectors in the compiled program, where a short row's end is drawn in another way than its beginning."""
    devices = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=3"
    found = program("start", "4 fsdp x 2 tensor", XLA_FLAGS=devices)
    assert found["undivided"] == []
    assert found["hashes"] == [found["one"]] * 3
    assert 0 < found["begun"] < found["model"] / 2
    assert 0 < found["continued"] < found["state"] / 2


def test_a_run_goes_on_in_another_layout_as_if_it_had_never_stopped():
    curves = program("resume", "1 x 8", "2 x 2 x 2")
    assert curves["stopped"] == curves["resumed"][: len(curves["stopped"])]
    assert len(curves["resumed"]) == 20 and curves["layouts"] == [[1, 8, 1], [2, 2, 2]]
    np.testing.assert_allclose(curves["resumed"], curves["whole"], rtol=1e-5)


@pytest.mark.slow
def test_a_sequence_of_32768_tokens_is_trained_over_four_devices_none_of_which_could_hold_it_alone():
    """In that a device needs less than 0.4 of the memory that the whole takes on one."""
    found = program("long", "one", "sequence 4")
    (whole, memory), (curve, of_four) = found["one"], found["sequence 4"]
    assert len(curve) == 2 and np.isfinite(curve).all()
    np.testing.assert_allclose(curve, whole, rtol=1e-5)
    assert of_four < 0.4 * memory


def test_a_matrix_is_divided_over_the_axes_that_divide_it_and_a_vector_is_not():
    mesh = jax.sharding.AbstractMesh((2, 4, 2, 2), AXES)
    assert spec("layers.0.mixer.qkv", (3, 16, 48), mesh) == P(None, "fsdp", "tensor")
    assert spec("1.mu.layers.0.mixer.out", (3, 48, 16), mesh) == P(None, "tensor", "fsdp")
    assert spec("embedding", (77, 16), mesh) == P(None, "fsdp")  # 77 is odd
    assert spec("layers.0.norm.scale", (3, 16), mesh) == P()
    assert spec("layers.2.mixer.mine", (3, 8, 6), mesh) == P(None, "fsdp", None)
    assert spec("count", (), mesh) == P()


def test_a_layout_that_the_machine_or_the_batch_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"needs 64 x 1 x 1 x 2 = 128 devices and there are \d+"):
        make_mesh(Layout(data=64, tensor=2))
    with pytest.raises(ValueError, match=r"a batch has 12 rows, and the layout divides it into .* = 8 parts"):
        check_rows(12, 32, Layout(data=2, fsdp=2, micro=2))
    with pytest.raises(ValueError, match="a row has 30 tokens, and the layout divides it into 4 parts"):
        check_rows(12, 30, Layout(sequence=4))


def trained(run, folder, name, **arguments):
    """The losses of a run, step by step."""
    from workbench.train.loop import train

    train(run, folder, {}, layout=LAYOUTS[name], progress=False, wandb="disabled", **arguments)
    return losses(folder)


def losses(folder):
    return [json.loads(row)["loss"] for row in (folder / "metrics.jsonl").read_text().splitlines()]


def curves(folder, dtype, periods, *names):
    from workbench.model import language_model

    language_model.UNROLLED = 0  # a CPU would lay so few layers out one by one
    return {name: trained(config(dtype, int(periods)), folder / name, name) for name in names}


def long(folder, *names):
    """Losses and the bytes of a device, of two steps on one row."""
    run, found = config("float32", 1), {}
    run = replace(run, data=replace(run.data, length=32_768, batch=1), steps=2)
    for name in names:
        curve = trained(run, folder / name, name)
        found[name] = curve, json.loads((folder / name / "result.json").read_text())["memory_bytes"]
    return found


def resume(folder, before, after):
    def stop(step, metrics):
        if step == 12:
            raise InterruptedError

    run = replace(short(), checkpoint_every=10)
    whole = trained(run, folder / "whole", "one")
    with contextlib.suppress(InterruptedError):
        trained(run, folder / "run", before, on_step=stop)
    stopped = losses(folder / "run")[:10]
    resumed = trained(run, folder / "run", after)
    now = json.loads((folder / "run" / "environment.json").read_text())
    layouts = [[e["layout"][axis] for axis in ("data", "fsdp", "tensor")] for e in (*now["earlier"], now)]
    return {"whole": whole, "stopped": stopped, "resumed": resumed, "layouts": layouts}


def start(folder, name):
    """Bytes of the model and the whole state, the most that a device held meanwhile, and hashes of weights."""
    from workbench.model import initial
    from workbench.model.names import named, weights_hash
    from workbench.train import checkpoint, loop

    run, mesh, held = short(4), make_mesh(LAYOUTS[name]), []

    def watched(function):
        def call(*arguments, **named):
            out = function(*arguments, **named)
            device = jax.devices()[0]  # where all that is not divided is made
            parts = [part for array in jax.live_arrays() for part in array.addressable_shards]
            held.append(sum(part.data.nbytes for part in parts if part.device == device))
            return out

        return call

    one = weights_hash(named(loop.create(run.model, run.seed)))
    for owner, what in ((loop, "create"), (initial, "_compiled"), (jax, "make_array_from_callback")):
        setattr(owner, what, watched(getattr(owner, what)))
    with contextlib.closing(checkpoint.open_checkpoints(folder)) as checkpoints:
        model, opt_state, position = loop._start(run, folder, folder, checkpoints, mesh)
        begun, state = max(held), (model, opt_state)
        hashes = [weights_hash(named(model)), json.loads((folder / "initial.json").read_text())["weights_hash"]]
        sizes = [sum(leaf.nbytes for leaf in jax.tree.leaves(tree)) for tree in (model, state)]
        undivided = [
            n
            for n, leaf in named(state).items()
            if any(spec(n, leaf.shape, mesh)) != (leaf.addressable_shards[0].data.size < leaf.size)
        ]
        checkpoint.save(checkpoints, run, model, opt_state, replace(position, step=1))
        del model, opt_state, state
        held.clear()
        model, *_ = loop._start(run, folder, folder, checkpoints, mesh)
    hashes.append(weights_hash(named(model)))
    return {
        "one": one, "hashes": hashes, "undivided": undivided,
        "model": sizes[0], "state": sizes[1], "begun": begun, "continued": max(held),
    }  # fmt: skip


if __name__ == "__main__":
    from pathlib import Path

    from workbench.train import loss

    loss.CHUNK = 10  # so that there are several on each device, and the last is not full
    what, *names = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        made = {"start": start, "resume": resume, "long": long}.get(what)
        print(json.dumps(made(Path(folder), *names) if made else curves(Path(folder), what, *names)))
