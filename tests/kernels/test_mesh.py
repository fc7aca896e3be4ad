"""Kernels under a mesh: divided among its devices, and nothing gathered. Run as a program, it has four devices."""

import json
import os
import re
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from workbench_kernels import implementation, selective_scan, selective_scan_mosaic_gpu, ssd, ssd_mosaic_gpu
from workbench_kernels.mesh import on_each_device

FOUR = "--xla_force_host_platform_device_count=4"


def program(*arguments):
    environment = os.environ | {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {FOUR}", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, __file__, *arguments], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_a_scan_on_each_device_gathers_nothing_and_one_left_to_jit_gathers_everything():
    """The kernel is interpreted, so that it is as opaque to the compiler as on a GPU."""
    divided, left = program("operation", "divided"), program("operation", "left to jit")
    assert divided["all-gather"] == 0 and divided["all-reduce"] >= 1  # the gradient of A is summed over devices
    assert left["all-gather"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("symbol", ["S", "M"])
def test_a_layer_gathers_nothing(symbol):
    assert program("layer", symbol)["all-gather"] == 0


def test_what_is_computed_on_each_device_is_what_one_computes():
    """Batch over data, channels or heads over tensor; in place of the kernels stands what can run on four devices."""
    errors = program("values")
    assert len(errors) == 14
    for name, error in errors.items():  # SSD's dB and dC are bfloat16, and summed over devices as such
        assert error < (2**-7 if name in ("ssd dB", "ssd dC") else 1e-5), (name, error)


def test_only_axes_that_the_mesh_divides_are_divided():
    """What a kernel sees on each of four devices, data=2 and tensor=2: batch, heads and groups."""
    assert program("shapes") == {
        "4, 4, 4": [2, 2, 2],
        "3, 4, 4": [3, 2, 2],
        "4, 4, 1": [2, 2, 1],
        "4, 6, 3": [2, 6, 3],  # three groups cannot be halved, so neither are their heads
    }


def test_without_a_mesh_a_kernel_runs_as_it_stands():
    x = jnp.arange(6.0).reshape(3, 2)
    (y,) = on_each_device(lambda x, none: (2 * x,), (x, None), ("BI", "BT"), ("BI",))
    np.testing.assert_array_equal(y, 2 * x)


# ---- the programs


def mesh_of(**axes):
    return jax.make_mesh(tuple(axes.values()), tuple(axes), axis_types=(AxisType.Auto,) * len(axes))


def communication(function, *arguments):
    """How often each kind is in the compiled program of a function with interpreted kernels."""
    with plgpu.force_gpu_interpret_mode(plgpu.InterpretGPUParams()):
        text = jax.jit(function).lower(*arguments).compile().as_text()
    return {kind: len(re.findall(rf"\b{kind}(?:-start)?\(", text)) for kind in ("all-gather", "all-reduce")}


def operation(how):
    mesh = mesh_of(data=4)
    batch, time, inner, N = 4, 20, 64, 8

    def array(*shape, over=None):
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, P(over)))

    x, B = array(batch, time, inner, over="data"), array(batch, time, N, over="data")

    def loss(x, dt, A, B, C):
        starts, state = jnp.zeros(x.shape[:2], bool), jnp.zeros((batch, inner, N))
        arguments = x, dt, A, B, C, state, starts
        if how == "divided":
            y, _ = selective_scan(*arguments[:5], implementation="mosaic_gpu")
        else:
            y, _ = selective_scan_mosaic_gpu.selective_scan(*arguments)
        return jnp.sum(y * y)

    with jax.set_mesh(mesh):
        return communication(jax.grad(loss, argnums=range(5)), x, x, array(inner, N), B, B)


def layer(symbol):
    from test_mosaic_gpu import interpreted_product

    from workbench.config import Mamba2Config, MambaConfig, ModelConfig
    from workbench.model.language_model import create
    from workbench.train.loss import loss

    ssd_mosaic_gpu._product = interpreted_product
    implementation._PROVED, implementation._hopper = frozenset({"selective_scan", "ssd"}), lambda: True
    symbols = {"S": MambaConfig(state=8), "M": Mamba2Config(state=16, head_dim=32)}
    model = create(ModelConfig(symbol, 64, 32, {symbol: symbols[symbol]}, dtype="bfloat16"), 0)
    mesh = mesh_of(data=2, fsdp=2)
    rows = {"tokens": jnp.int32, "targets": jnp.int32, "weights": jnp.float32, "segments": jnp.int32}
    over = NamedSharding(mesh, P(("data", "fsdp")))
    batch = {name: jax.ShapeDtypeStruct((4, 24), dtype, sharding=over) for name, dtype in rows.items()}
    model = jax.device_put(model, NamedSharding(mesh, P()))
    with jax.set_mesh(mesh):
        return communication(jax.grad(lambda model, batch: loss(model, batch)[0]), model, batch)


def shapes():
    found = {}
    with jax.set_mesh(mesh_of(data=2, tensor=2)):
        for batch, heads, groups in ((4, 4, 4), (3, 4, 4), (4, 4, 1), (4, 6, 3)):

            def kernel(x, B, name=f"{batch}, {heads}, {groups}"):
                found[name] = [*x.shape, B.shape[1]]
                return (x,)

            arguments = jnp.zeros((batch, heads)), jnp.zeros((batch, groups))
            jax.eval_shape(
                lambda x, B, kernel=kernel: on_each_device(kernel, (x, B), ("BH", "BG"), ("BH",)), *arguments
            )
    return found


def values():
    """The largest difference of outputs, states and gradients between four devices and one, by name."""
    rng = np.random.default_rng(0)

    def normal(*shape):
        return jnp.asarray(rng.standard_normal(shape), jnp.float32)

    found = {}
    for scan, kernels, shape in ((selective_scan, selective_scan_mosaic_gpu, (64,)), (ssd, ssd_mosaic_gpu, (4, 16))):
        name = scan.__name__
        wide = (4, 20, *shape)
        dtype = jnp.bfloat16 if name == "ssd" else jnp.float32
        x, dt = normal(*wide).astype(dtype), jax.nn.softplus(normal(*wide[:3]))
        A = -jnp.exp(normal(64, 8) if name == "selective_scan" else normal(4))
        B, C = (normal(4, 20, *([1] if name == "ssd" else []), 8).astype(dtype) for _ in range(2))
        segments = jnp.asarray(np.repeat([[1, 2]], 10, axis=1) * np.ones((4, 1)), jnp.int32)

        def stand_in(x, dt, A, B, C, state, starts, scan=scan):
            segments = 1 + jnp.cumsum(starts, axis=1)
            return scan(x, dt, A, B, C, state=state, segments=segments, implementation="xla")

        def loss(*arguments, how, scan=scan, segments=segments):
            y, last = scan(*arguments, segments=segments, implementation=how)
            return jnp.sum(y.astype(jnp.float32) ** 2) + jnp.sum(last**2), (y, last)

        def outcome(how, arguments, loss=loss):
            return jax.jit(jax.grad(partial(loss, how=how), argnums=range(5), has_aux=True))(*arguments)

        setattr(kernels, name, stand_in)
        want = outcome("xla", (x, dt, A, B, C))
        mesh = mesh_of(data=2, tensor=2)
        with jax.set_mesh(mesh):
            arguments = [
                jax.device_put(a, NamedSharding(mesh, P("data" if a.ndim > 2 else None))) for a in (x, dt, A, B, C)
            ]
            got = outcome("mosaic_gpu", arguments)
        for part, g, w in zip(
            ("dx", "ddt", "dA", "dB", "dC", "y", "last"), *map(jax.tree.leaves, (got, want)), strict=True
        ):
            g, w = np.asarray(g, np.float64), np.asarray(w, np.float64)
            found[f"{name} {part}"] = float(np.abs(g - w).max() / np.abs(w).max())
    return found


if __name__ == "__main__":
    print(json.dumps(globals()[sys.argv[1]](*sys.argv[2:])))
