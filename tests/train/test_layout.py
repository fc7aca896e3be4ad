"""One step on many devices. Run as a program, it has eight of them, simulated."""

import json
import os
import subprocess
import sys
import tempfile

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
    curves = program(dtype, str(periods), *layouts, JAX_ENABLE_X64="1" if dtype == "float64" else "0")
    assert len(curves["one"]) == 20 and curves["one"][-1] < 0.9 * curves["one"][0]
    for name, curve in curves.items():
        np.testing.assert_allclose(curve, curves["one"], rtol=tolerance, err_msg=name)


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


if __name__ == "__main__":
    from pathlib import Path

    from workbench.train import loss
    from workbench.train.loop import train

    loss.CHUNK = 10  # so that there are several on each device, and the last is not full
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        dtype, periods, *names = sys.argv[1:]
        for name in names:
            run, layout = config(dtype, int(periods)), LAYOUTS[name]
            train(run, Path(folder) / name, {}, layout=layout, progress=False, wandb="disabled")
            rows = (Path(folder) / name / "metrics.jsonl").read_text().splitlines()
            found[name] = [json.loads(row)["loss"] for row in rows]
    print(json.dumps(found))
