"""The selective scan of Mamba (S6): a reference, and a chunked form that never holds [B, T, I, N]."""

import functools

import jax
import jax.numpy as jnp

from workbench_kernels.chunks import chunk_of, even_chunk, pad_time, put_chunk
from workbench_kernels.implementation import resolve
from workbench_kernels.mesh import on_each_device, parts, pass_states
from workbench_kernels.segments import find_runs
from workbench_kernels.shapes import require, require_steps, sum_dtype, widest_dtype

CHUNK = 8


def selective_scan(
    x: jax.Array,
    dt: jax.Array,
    A: jax.Array,
    B: jax.Array,
    C: jax.Array,
    D: jax.Array | None = None,
    z: jax.Array | None = None,
    state: jax.Array | None = None,
    segments: jax.Array | None = None,
    initial_segment: jax.Array | None = None,
    *,
    chunk: int | None = None,
    implementation: str = "auto",
) -> tuple[jax.Array, jax.Array]:
    """Mamba's scan: h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_t, y_t = (h_t C_t + D x_t) silu(z_t).

    x, dt, z [B, T, I]; A [I, N]; B, C [B, T, N]; D [I]; state [B, I, N]; returns y [B, T, I] and the last state.
    A is negative, dt positive (after softplus). Sums in float32 or wider; y has x's dtype, the state that of the sums.
    The state is after the last step, so a sequence may be cut anywhere and resumed (state=None: from zero).
    segments [B, T] are document ids: a change of id restarts the state from zero; 0 is padding at a row's end, where
    y is 0 and no time passes. A given state belongs to document initial_segment [B] (None: to the row's first).
    The XLA form computes `chunk` steps (8) again at a time in the backward pass and keeps T / chunk states for it; one
    step alone is `selective_scan_step`.
    implementation: "mosaic_gpu" (a kernel for GPUs of compute capability 9; bfloat16 and float32, N up to 256, chunks
    of its own), "xla", "reference", or "auto" for the first of these that can run here.
    Raises ValueError on shapes that do not fit and on an implementation that does not exist or cannot take them.
    Source: Gu & Dao 2023, arXiv:2312.00752, algorithm 2.
    """
    sizes = {}
    require("x", x, ("B", "T", "I"), sizes)
    require_steps("x", x)
    require("dt", dt, ("B", "T", "I"), sizes)
    require("A", A, ("I", "N"), sizes)
    require("B", B, ("B", "T", "N"), sizes)
    require("C", C, ("B", "T", "N"), sizes)
    if D is not None:
        require("D", D, ("I",), sizes)
    if z is not None:
        require("z", z, ("B", "T", "I"), sizes)
    if state is not None:
        require("state", state, ("B", "I", "N"), sizes)
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk is {chunk}; it must be at least 1")
    if implementation == "auto" and sizes["T"] == 1:  # decoding: a kernel would have a chunk to run
        implementation = "xla"
    name = resolve("selective_scan", implementation, _refusal(x=x, dt=dt, A=A, B=B, C=C))
    runs = find_runs(segments, initial_segment, sizes["B"], sizes["T"])

    dtype = sum_dtype(x, dt, A, B, C, state)
    compute = widest_dtype() if name == "reference" else dtype
    if state is None:
        state = jnp.zeros((sizes["B"], sizes["I"], sizes["N"]), compute)
    if runs is not None:
        dt = jnp.where(runs.real[..., None], dt, 0)
    state = state.astype(compute)
    starts = None if runs is None else runs.starts
    passing = parts("T", sizes["T"]) > 1
    if name == "reference":
        y, state = _reference(*(a.astype(compute) for a in (x, dt, A, B, C)), state, starts)
    elif name == "xla" and sizes["T"] == 1:
        state = state if starts is None else jnp.where(starts[..., None], 0, state)
        y, state = selective_scan_step(state, *(a[:, 0].astype(compute) for a in (x, dt)), A, B[:, 0], C[:, 0])
        y = y[:, None]
    elif name == "xla" and not passing:  # the compiler divides it
        y, state = _xla(x, dt, A.astype(compute), B, C, state, starts, chunk or CHUNK)
    else:
        if name == "xla":
            A, scan = A.astype(compute), functools.partial(_xla, chunk=chunk or CHUNK)
        else:
            from workbench_kernels import selective_scan_mosaic_gpu  # here: Pallas is slow to import, and rarely needed

            scan = selective_scan_mosaic_gpu.selective_scan
        arguments, axes = (x, dt, A, B, C, state, starts), ("BTI", "BTI", "IN", "BTN", "BTN", "BIN", "BT")
        y, state = on_each_device(pass_states(scan, _decay) if passing else scan, arguments, axes, ("BTI", "BIN"))
    if D is not None:
        y = y + D.astype(compute)[None, None] * x.astype(compute)
    if z is not None:
        y = y * jax.nn.silu(z.astype(compute))
    if runs is not None:
        y = jnp.where(runs.real[..., None], y, 0)
    return y.astype(x.dtype), state.astype(dtype)


def selective_scan_step(
    state: jax.Array,
    x: jax.Array,
    dt: jax.Array,
    A: jax.Array,
    B: jax.Array,
    C: jax.Array,
    D: jax.Array | None = None,
    z: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """One step of `selective_scan`, to decode a token: returns y [B, I] and the state after it.

    state [B, I, N]; x, dt, z [B, I]; A [I, N]; B, C [B, N]; D [I]. Where dt is 0 no time passes.
    """
    sizes = {}
    require("state", state, ("B", "I", "N"), sizes)
    require("x", x, ("B", "I"), sizes)
    require("dt", dt, ("B", "I"), sizes)
    require("A", A, ("I", "N"), sizes)
    require("B", B, ("B", "N"), sizes)
    require("C", C, ("B", "N"), sizes)
    dtype = sum_dtype(state, x, dt, A, B, C)
    wide, dt, A, B, C = (a.astype(dtype) for a in (x, dt, A, B, C))
    # what they are computed from is not computed again for every number of the state
    wide, dt, B, C = jax.lax.optimization_barrier((wide, dt, B, C))
    state = jnp.exp(dt[..., None] * A[None]) * state + (dt * wide)[..., None] * B[:, None, :]
    y = jnp.einsum("bin,bn->bi", state, C, precision="highest")  # a sum is one number at a time on a CPU
    if D is not None:
        require("D", D, ("I",), sizes)
        y = y + D.astype(dtype)[None] * wide
    if z is not None:
        require("z", z, ("B", "I"), sizes)
        y = y * jax.nn.silu(z.astype(dtype))
    return y.astype(x.dtype), state


def _refusal(**arrays):
    """Why the kernel cannot take these arguments, or ""."""
    for name, array in arrays.items():
        if array.dtype not in (jnp.bfloat16, jnp.float32):
            return f"{name} is {array.dtype}, and it takes bfloat16 and float32"
    states = arrays["A"].shape[1]
    return f"N is {states}, and it takes at most 256" if states > 256 else ""


def _decay(dt, A, starts):
    """[B, I, N]: what is left after all steps of a state before them."""
    left = jnp.exp(dt.sum(axis=1, dtype=A.dtype)[..., None] * A[None])
    return left if starts is None else jnp.where(starts.any(axis=1)[:, None, None], 0, left)


def _reference(x, dt, A, B, C, state, starts):
    def step(state, inputs):
        x, dt, B, C, start = inputs
        state = jnp.where(start[:, None, None], 0, state)
        state = jnp.exp(dt[..., None] * A[None]) * state + (dt * x)[..., None] * B[:, None, :]
        return state, jnp.einsum("bin,bn->bi", state, C)

    if starts is None:
        starts = jnp.zeros(x.shape[:2], bool)
    state, y = jax.lax.scan(step, state, tuple(jnp.moveaxis(a, 1, 0) for a in (x, dt, B, C, starts)))
    return jnp.moveaxis(y, 0, 1), state


def _xla(x, dt, A, B, C, state, starts, chunk):
    """The chunked form: T is padded to whole chunks with dt = 0 (no time passes) and states are laid out [B, N, I]."""
    time = x.shape[1]
    chunk = even_chunk(time, chunk)
    x, dt, B, C = (pad_time(a, chunk) for a in (x, dt, B, C))
    starts = None if starts is None else pad_time(starts, chunk)
    y, state = _scan(chunk, x, dt, A.T, B, C, state.swapaxes(1, 2), starts)
    return y[:, :time], state.swapaxes(1, 2)


def _steps_of(arrays, starts, chunk, index, dtype):
    """The steps of a chunk one by one, in `dtype`, each with where it starts from zero (or None)."""
    arrays = [a.astype(dtype) for a in chunk_of(arrays, chunk, index)]
    (starts,) = chunk_of([starts], chunk, index)
    for t in range(chunk):
        yield *(a[:, t] for a in arrays), None if starts is None else starts[:, t, None, None]


def _advance(h, x, dt, A, B, start):
    """The decay exp(dt A), the decayed state and the new state, all [B, N, I]."""
    if start is not None:
        h = jnp.where(start, 0, h)
    decay = jnp.exp(dt[:, None, :] * A[None])
    decayed = decay * h
    return decay, decayed, decayed + (dt * x)[:, None, :] * B[:, :, None]


def _sum_inner(h, u):
    """Sums h u over I: as products of vectors, which XLA does faster on CPU than the reduction (39 ms against 45).

    But not for one row, where it makes calls of them: 117 ms a thousand tokens of the scan and its gradient against 53.
    """
    if h.shape[0] == 1:
        return jnp.sum(h * u[:, None, :], axis=-1)
    return jnp.einsum("bni,bi->bn", h, u, precision="highest")


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _scan(chunk, x, dt, A, B, C, h, starts):
    return _scan_forward(chunk, x, dt, A, B, C, h, starts)[0]


def _scan_forward(chunk, x, dt, A, B, C, h, starts):
    """Saves the state at each chunk's start, and nothing else that was not given."""
    chunks = x.shape[1] // chunk

    def one_chunk(index, carry):
        h, y, firsts = carry
        firsts = jax.lax.dynamic_update_index_in_dim(firsts, h, index, axis=0)
        ys = []
        for x_t, dt_t, B_t, C_t, start in _steps_of((x, dt, B, C), starts, chunk, index, h.dtype):
            _, _, h = _advance(h, x_t, dt_t, A, B_t, start)
            ys.append(jnp.sum(h * C_t[:, :, None], axis=1))
        return h, put_chunk(y, jnp.stack(ys, axis=1), index), firsts

    carry = h, jnp.zeros(x.shape, h.dtype), jnp.zeros((chunks, *h.shape), h.dtype)
    h, y, firsts = jax.lax.fori_loop(0, chunks, one_chunk, carry)
    return (y, h), (x, dt, A, B, C, starts, firsts)


def _scan_backward(chunk, saved, cotangents):
    """Chunk by chunk from the end: runs the chunk again from its saved state, then its steps in reverse."""
    x, dt, A, B, C, starts, firsts = saved
    dy, dh = cotangents
    chunks = x.shape[1] // chunk

    def one_chunk(done, carry):
        index = chunks - 1 - done
        dh, dA, *grads = carry
        h = jax.lax.dynamic_index_in_dim(firsts, index, axis=0, keepdims=False)
        forward = []
        for x_t, dt_t, B_t, C_t, dy_t, start in _steps_of((x, dt, B, C, dy), starts, chunk, index, h.dtype):
            decay, decayed, h = _advance(h, x_t, dt_t, A, B_t, start)
            forward.append((x_t, dt_t, B_t, C_t, dy_t, start, decay, decayed, _sum_inner(h, dy_t)))
        backward = []
        for x_t, dt_t, B_t, C_t, dy_t, start, decay, decayed, dC in reversed(forward):
            dh = dh + dy_t[:, None, :] * C_t[:, :, None]
            dB = _sum_inner(dh, dt_t * x_t)
            dinput = jnp.sum(dh * B_t[:, :, None], axis=1)
            dexponent = dh * decayed
            ddt = jnp.sum(dexponent * A[None], axis=1) + dinput * x_t
            dA = dA + dexponent * dt_t[:, None, :]
            backward.append((dinput * dt_t, ddt, dB, dC))
            dh = dh * decay
            if start is not None:
                dh = jnp.where(start, 0, dh)
        steps = (jnp.stack(s, axis=1) for s in zip(*reversed(backward), strict=True))
        return dh, dA, *(put_chunk(grad, s, index) for grad, s in zip(grads, steps, strict=True))

    carry = dh, jnp.zeros_like(dh), *(jnp.zeros_like(a) for a in (x, dt, B, C))
    dh, dA, dx, ddt, dB, dC = jax.lax.fori_loop(0, chunks, one_chunk, carry)
    return dx, ddt, dA.sum(axis=0), dB, dC, dh, None


_scan.defvjp(_scan_forward, _scan_backward)
