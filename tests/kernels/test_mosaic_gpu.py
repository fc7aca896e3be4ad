"""The GPU kernels without a GPU: interpreted with race detection, and lowered for CUDA on a plain CPU jaxlib.

kernels/compile_check.py compiles them for an H100 as well; benchmarks/scan_gpu.py runs them on one.
"""

import contextlib
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental.pallas import mosaic_gpu as plgpu
from workbench_kernels import (
    implementation,
    recorded,
    resolve,
    selective_scan,
    selective_scan_mosaic_gpu,
    ssd,
    ssd_mosaic_gpu,
)
from workbench_kernels.mosaic import splits_of


@contextlib.contextmanager
def interpreted():
    """Kernels traced within are interpreted, and a race between their threads fails the test."""
    from jax._src.pallas.mosaic_gpu.interpret import interpret_pallas_call

    with plgpu.force_gpu_interpret_mode(plgpu.InterpretGPUParams(detect_races=True)):
        yield
    if hasattr(interpret_pallas_call, "get_races"):  # jax 0.11 notes races and goes on; 0.12 raises
        assert not interpret_pallas_call.get_races().races_found


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng([seed, *shape]).standard_normal(shape), jnp.float32)


def inputs(batch, time, inner, N, dtype):
    x, dt = normal(batch, time, inner).astype(dtype), jax.nn.softplus(normal(batch, time, inner, seed=1) - 2)
    B, C = normal(batch, time, N, seed=2), normal(batch, time, N, seed=3)
    return x, dt, -jnp.exp(normal(inner, N)), B, C, normal(batch, inner, N)


def inputs_of_heads(batch, time, H, P, G, N, dtype):
    x, dt = normal(batch, time, H, P), jax.nn.softplus(normal(batch, time, H) - 2)
    B, C = normal(batch, time, G, N, seed=2) / N**0.5, normal(batch, time, G, N, seed=3)
    return x.astype(dtype), dt, -jnp.exp(normal(H)), B.astype(dtype), C.astype(dtype), normal(batch, H, P, N)


def outcome(scan, name, arguments, segments):
    """Gradients of a random weighting of outputs and last state in every input, and both."""
    of_y, of_last = (normal(*arguments[i].shape, seed=4) for i in (0, -1))

    def loss(x, dt, A, B, C, state):
        y, last = scan(x, dt, A, B, C, state=state, segments=segments, implementation=name)
        return jnp.sum(y.astype(jnp.float32) * of_y) + jnp.sum(last * of_last), (y, last)

    return jax.grad(loss, argnums=tuple(range(6)), has_aux=True)(*arguments)


def assert_agree(scan, arguments, segments, precision=1e-5):
    """float32 sums of at most a few hundred terms, or as said; y and dx in bfloat16 are rounded once, to eight bits."""
    with interpreted():
        got = outcome(scan, "mosaic_gpu", arguments, segments)
    want = outcome(scan, "reference", arguments, segments)
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        tolerance = max(precision, 2**-8 if g.dtype == jnp.bfloat16 else 0)
        g, w = np.asarray(g, np.float64), np.asarray(w, np.float64)
        np.testing.assert_allclose(g, w, rtol=0, atol=tolerance * max(1, np.abs(w).max()))


def packed(batch, time):
    """Documents that end anywhere, one of a single token, and padding."""
    third = time // 3
    row = [4] * third + [9] + [4] * (time - third - 3) + [0, 0]
    return jnp.asarray([row] * batch, jnp.int32)


def test_the_scan_and_its_gradients_agree_with_the_reference():
    """A length that ends within a chunk, channels that fill no block, states that fill no layout."""
    assert_agree(selective_scan, inputs(1, 21, 100, 12, jnp.float32), packed(1, 21))


@pytest.mark.slow
@pytest.mark.parametrize("N", [4, 16, 64, 96])
@pytest.mark.parametrize(("time", "splits"), [(1, 1), (33, 1), (48, 2)])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_it_agrees_at_every_size_packed_and_in_parts_of_time(monkeypatch, N, time, splits, dtype):
    monkeypatch.setattr(selective_scan_mosaic_gpu, "splits_of", lambda *sizes: splits)
    assert_agree(selective_scan, inputs(1, time, 40, N, dtype), packed(1, time) if time == 48 else None)


def interpreted_product(left, right, onto=None):
    """The interpreter has no tensor cores that read registers or add to them: it multiplies what it loads."""
    found = jnp.dot(left[...], right[...], precision="highest", preferred_element_type=jnp.float32)
    if onto is None:
        return found
    plgpu.commit_smem()  # a load must be seen before a copy overwrites what it read; tensor cores have read by now
    return onto + found


@pytest.fixture
def in_float32(monkeypatch):
    """SSD with nothing rounded to bfloat16 on its way, so that its algorithm can be held to float32."""
    monkeypatch.setattr(ssd_mosaic_gpu, "_product", interpreted_product)
    monkeypatch.setattr(ssd_mosaic_gpu, "BF16", jnp.float32)
    monkeypatch.setattr(importlib.import_module("workbench_kernels.ssd"), "_refusal", lambda **arrays: "")


def test_ssd_and_its_gradients_agree_with_the_reference(in_float32):
    """A length that ends within a chunk, states and heads that fill no product, two heads a group."""
    assert_agree(ssd, inputs_of_heads(1, 70, 2, 20, 1, 12, jnp.float32), packed(1, 70))


@pytest.mark.slow
@pytest.mark.parametrize(("H", "P", "G", "N"), [(1, 32, 1, 16), (4, 64, 2, 64), (1, 128, 1, 128), (2, 64, 1, 256)])
@pytest.mark.parametrize(("time", "splits"), [(1, 1), (130, 1), (128, 2)])
def test_ssd_agrees_at_every_size_packed_and_in_parts_of_time(in_float32, monkeypatch, H, P, G, N, time, splits):
    monkeypatch.setattr(ssd_mosaic_gpu, "splits_of", lambda *sizes: splits)
    assert_agree(ssd, inputs_of_heads(1, time, H, P, G, N, jnp.float32), packed(1, time) if time == 128 else None)


@pytest.mark.slow
def test_ssd_in_bfloat16_is_as_good_as_its_digits(monkeypatch):
    """Weights, inputs and states are rounded to eight bits before a product; sums of them are not."""
    monkeypatch.setattr(ssd_mosaic_gpu, "_product", interpreted_product)
    assert_agree(ssd, inputs_of_heads(1, 100, 2, 32, 1, 32, jnp.bfloat16), None, precision=2**-7)


def test_small_batches_are_cut_in_time_and_large_ones_are_not():
    for blocks, time, splits in ((64, 4096, 4), (512, 4096, 1), (1, 100, 1), (1, 1 << 20, 256)):
        assert splits_of(blocks, time, chunk=16, least=8) == splits


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


def lower_for_cuda(scan, arguments):
    """The program of outputs and gradients, packed, with kernels: on a CPU jaxlib."""
    arguments = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in arguments]
    segments = jax.ShapeDtypeStruct(arguments[0].shape[:2], jnp.int32)
    target = jax.sharding.AbstractDevice(device_kind="NVIDIA H100 80GB HBM3", num_cores=None, platform="gpu")
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=target)):
        traced = jax.jit(lambda *a: outcome(scan, "mosaic_gpu", a[:-1], a[-1])).trace(*arguments, segments)
        return traced.lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.parametrize("N", [16, *(pytest.param(states, marks=pytest.mark.slow) for states in (4, 128))])
def test_the_selective_scan_lowers_for_cuda_without_a_gpu(N):
    text = lower_for_cuda(selective_scan, inputs(2, 100, 256, N, jnp.bfloat16))
    assert text.count("mosaic_gpu") >= 2  # forward and backward


@pytest.mark.parametrize(
    ("P", "N"),
    [(64, 64), *(pytest.param(*sizes, marks=pytest.mark.slow) for sizes in [(32, 16), (128, 128), (64, 256)])],
)
def test_ssd_lowers_for_cuda_without_a_gpu(P, N):
    text = lower_for_cuda(ssd, inputs_of_heads(2, 100, 4, P, 2, N, jnp.bfloat16))
    assert text.count("mosaic_gpu") >= 4  # forward; and the walk back, dC, and dB with dx


def test_a_kernel_that_cannot_take_its_arguments_is_refused_by_name_and_passed_over_by_auto(x64):
    x, dt, A, B, C, _ = inputs(1, 5, 8, 4, jnp.float32)
    with pytest.raises(ValueError, match="mosaic_gpu of selective_scan: x is float64, and it takes bfloat16 and float"):
        selective_scan(x.astype(jnp.float64), dt, A, B, C, implementation="mosaic_gpu")
    wide = jnp.zeros((8, 300), jnp.float32), jnp.zeros((1, 5, 300), jnp.float32)
    with pytest.raises(ValueError, match="N is 300, and it takes at most 256; use auto or xla"):
        selective_scan(x, dt, wide[0], wide[1], wide[1], implementation="mosaic_gpu")
    x, dt, A, B, C, _ = inputs_of_heads(1, 5, 2, 4, 1, 4, jnp.float32)
    with pytest.raises(ValueError, match="mosaic_gpu of ssd: x is float32, and it takes bfloat16"):
        ssd(x, dt, A, B, C, implementation="mosaic_gpu")
    with recorded() as chosen:
        ssd(x, dt, A, B, C)
    assert chosen == {"ssd": "xla"}


def test_auto_is_the_kernel_on_the_gpus_that_it_is_for(monkeypatch):
    monkeypatch.setattr(implementation, "_PROVED", {"selective_scan"})
    for capability, expected in (("9.0", "mosaic_gpu"), ("8.0", "xla"), ("10.0", "xla")):
        device = type("Device", (), {"compute_capability": capability})()
        monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
        monkeypatch.setattr(jax, "devices", lambda device=device: [device])
        assert resolve("selective_scan") == expected
        assert resolve("selective_scan", refusal="too many") == "xla"
        assert resolve("ssd") == "xla"
