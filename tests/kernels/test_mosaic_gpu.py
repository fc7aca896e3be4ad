"""The GPU kernels without a GPU: interpreted with race detection, and lowered for CUDA on a plain CPU jaxlib.

kernels/compile_check.py compiles them for an H100 as well; benchmarks/scan_gpu.py runs them on one.
"""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental.pallas import mosaic_gpu as plgpu
from workbench_kernels import implementation, recorded, resolve, selective_scan, selective_scan_mosaic_gpu


@contextlib.contextmanager
def interpreted():
    """Kernels traced within are interpreted, and a race between their threads fails the test."""
    from jax._src.pallas.mosaic_gpu.interpret import interpret_pallas_call

    with plgpu.force_gpu_interpret_mode(plgpu.InterpretGPUParams(detect_races=True)):
        yield
    if hasattr(interpret_pallas_call, "get_races"):  # jax 0.11 notes races and goes on; 0.12 raises
        assert not interpret_pallas_call.get_races().races_found


def inputs(batch, time, inner, N, dtype):
    rng = np.random.default_rng(0)

    def normal(*shape):
        return jnp.asarray(rng.standard_normal(shape), jnp.float32)

    x, dt = normal(batch, time, inner).astype(dtype), jax.nn.softplus(normal(batch, time, inner) - 2)
    B, C = normal(batch, time, N), normal(batch, time, N)
    return x, dt, -jnp.exp(normal(inner, N)), B, C, normal(batch, inner, N)


def outcome(name, arguments, segments):
    """Gradients of a random weighting of outputs and last state in every input, and both."""
    weigh = np.random.default_rng(1)
    shapes = arguments[0].shape, arguments[-1].shape
    of_y, of_last = (jnp.asarray(weigh.standard_normal(shape), jnp.float32) for shape in shapes)

    def loss(x, dt, A, B, C, state):
        y, last = selective_scan(x, dt, A, B, C, state=state, segments=segments, implementation=name)
        return jnp.sum(y.astype(jnp.float32) * of_y) + jnp.sum(last * of_last), (y, last)

    return jax.grad(loss, argnums=tuple(range(6)), has_aux=True)(*arguments)


def assert_agree(arguments, segments):
    with interpreted():
        got = outcome("mosaic_gpu", arguments, segments)
    want = outcome("reference", arguments, segments)
    half = arguments[0].dtype == jnp.bfloat16
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        # float32 sums of at most a few hundred terms; y and dx in bfloat16 are rounded once, to eight bits
        tolerance = 2**-8 if half and g.dtype == jnp.bfloat16 else 1e-5
        g, w = np.asarray(g, np.float64), np.asarray(w, np.float64)
        np.testing.assert_allclose(g, w, rtol=0, atol=tolerance * max(1, np.abs(w).max()))


def packed(batch, time):
    """Documents that end anywhere, one of a single token, and padding."""
    third = time // 3
    row = [4] * third + [9] + [4] * (time - third - 3) + [0, 0]
    return jnp.asarray([row] * batch, jnp.int32)


def test_the_scan_and_its_gradients_agree_with_the_reference():
    """A length that ends within a chunk, channels that fill no block, states that fill no layout."""
    assert_agree(inputs(1, 21, 100, 12, jnp.float32), packed(1, 21))


@pytest.mark.slow
@pytest.mark.parametrize("N", [4, 16, 64, 96])
@pytest.mark.parametrize(("time", "splits"), [(1, 1), (33, 1), (48, 2)])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_it_agrees_at_every_size_packed_and_in_parts_of_time(monkeypatch, N, time, splits, dtype):
    monkeypatch.setattr(selective_scan_mosaic_gpu, "_splits", lambda blocks, time: splits)
    assert_agree(inputs(1, time, 40, N, dtype), packed(1, time) if time == 48 else None)


def test_small_batches_are_cut_in_time_and_large_ones_are_not():
    splits = selective_scan_mosaic_gpu._splits
    assert splits(64, 4096) == 4 and splits(512, 4096) == 1 and splits(1, 100) == 1
    assert splits(1, 1 << 20) == 256


def test_a_race_is_found():
    """Two warpgroups write one buffer with nothing between them: what `interpreted` is there to see."""

    def kernel(out, buffer, barrier):
        thread = lax.axis_index("thread")
        buffer[...] = jnp.full((128,), thread, jnp.float32)
        plgpu.barrier_arrive(barrier)
        plgpu.barrier_wait(barrier)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(buffer, out)
        plgpu.wait_smem_to_gmem(0)

    run = plgpu.kernel(
        kernel,
        out_type=jax.ShapeDtypeStruct((128,), jnp.float32),
        scratch_types=[plgpu.SMEM((128,), jnp.float32), plgpu.Barrier(num_arrivals=2)],
        num_threads=2,
        thread_name="thread",
    )
    with pytest.raises(Exception, match=r"(?i)race"), interpreted():
        jax.block_until_ready(run())


@pytest.mark.parametrize("N", [4, 16, 128])
def test_it_lowers_for_cuda_without_a_gpu(N):
    x, dt, A, B, C, state = (jax.ShapeDtypeStruct(a.shape, a.dtype) for a in inputs(2, 100, 256, N, jnp.bfloat16))
    segments = jax.ShapeDtypeStruct((2, 100), jnp.int32)
    target = jax.sharding.AbstractDevice(device_kind="NVIDIA H100 80GB HBM3", num_cores=None, platform="gpu")

    def gradient(x, dt, A, B, C, state, segments):
        arguments = (x, dt, A, B, C, state)
        return outcome("mosaic_gpu", arguments, segments)

    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=target)):
        traced = jax.jit(gradient).trace(x, dt, A, B, C, state, segments)
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("mosaic_gpu") >= 2  # forward and backward


def test_a_kernel_that_cannot_take_its_arguments_is_refused_by_name_and_passed_over_by_auto(x64):
    x, dt, A, B, C, _ = inputs(1, 5, 8, 4, jnp.float32)
    with pytest.raises(ValueError, match="mosaic_gpu of selective_scan: x is float64, and it takes bfloat16 and float"):
        selective_scan(x.astype(jnp.float64), dt, A, B, C, implementation="mosaic_gpu")
    wide = jnp.zeros((8, 300), jnp.float32), jnp.zeros((1, 5, 300), jnp.float32)
    with pytest.raises(ValueError, match="N is 300, and it takes at most 256; use auto or xla"):
        selective_scan(x, dt, wide[0], wide[1], wide[1], implementation="mosaic_gpu")
    with recorded() as chosen:
        selective_scan(x, dt, A, B, C)
    assert chosen == {"selective_scan": "xla"}


def test_auto_is_the_kernel_on_the_gpus_that_it_is_for(monkeypatch):
    monkeypatch.setattr(implementation, "_PROVED", {"selective_scan"})
    for capability, expected in (("9.0", "mosaic_gpu"), ("8.0", "xla"), ("10.0", "xla")):
        device = type("Device", (), {"compute_capability": capability})()
        monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
        monkeypatch.setattr(jax, "devices", lambda device=device: [device])
        assert resolve("selective_scan") == expected
        assert resolve("selective_scan", refusal="too many") == "xla"
        assert resolve("ssd") == "xla"
