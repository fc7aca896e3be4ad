"""Mamba-2's scan (SSD): a reference, and the chunked form made of matrix products."""

import functools

import jax
import jax.numpy as jnp

from workbench_kernels.chunks import chunk_of, even_chunk, pad_time, put_chunk
from workbench_kernels.implementation import resolve
from workbench_kernels.mesh import on_each_device, parts, pass_states
from workbench_kernels.segments import find_runs
from workbench_kernels.shapes import require, require_steps, sum_dtype, widest_dtype

RESTART = -256  # log of the decay with which a document starts: exp of it is 0 in float32, 7e-112 in float64


def ssd(
    x: jax.Array,
    dt: jax.Array,
    A: jax.Array,
    B: jax.Array,
    C: jax.Array,
    D: jax.Array | None = None,
    state: jax.Array | None = None,
    segments: jax.Array | None = None,
    initial_segment: jax.Array | None = None,
    *,
    chunk: int = 64,
    implementation: str = "auto",
) -> tuple[jax.Array, jax.Array]:
    """Mamba-2's scan: h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_t^T, y_t = h_t C_t + D x_t.

    x [B, T, H, P]; dt [B, T, H]; A, D [H]; B, C [B, T, G, N], head h reading group h // (H / G); state [B, H, P, N];
    returns y [B, T, H, P] and the last state.
    A is negative, dt positive (after softplus). Sums in float32 or wider; y has x's dtype, the state that of the sums.
    The state is after the last step, so a sequence may be cut anywhere and resumed (state=None: from zero).
    segments [B, T] are document ids: a change of id restarts the state from zero; 0 is padding at a row's end, where
    y is 0 and no time passes. A given state belongs to document initial_segment [B] (None: to the row's first).
    In the XLA form `chunk` steps are one matrix product, made again in the backward pass, for which T / chunk states
    are kept; products follow jax_default_matmul_precision. One step alone is `ssd_step`.
    implementation: "mosaic_gpu" (a kernel for GPUs of compute capability 9; x, B and C in bfloat16, N up to 256,
    chunks of its own), "xla", "reference", or "auto" for the first of these that can run here.
    Raises ValueError on shapes that do not fit (H is a multiple of G) and on an implementation that does not exist or
    cannot take them.
    Source: Dao & Gu 2024, arXiv:2405.21060, section 6.
    """
    sizes = {}
    require("x", x, ("B", "T", "H", "P"), sizes)
    require_steps("x", x)
    require("dt", dt, ("B", "T", "H"), sizes)
    require("A", A, ("H",), sizes)
    require("B", B, ("B", "T", "G", "N"), sizes)
    require("C", C, ("B", "T", "G", "N"), sizes)
    if D is not None:
        require("D", D, ("H",), sizes)
    if state is not None:
        require("state", state, ("B", "H", "P", "N"), sizes)
    _require_whole_groups(sizes)
    if chunk < 1:
        raise ValueError(f"chunk is {chunk}; it must be at least 1")
    if implementation == "auto" and sizes["T"] == 1:  # decoding: a kernel would have a chunk to run
        implementation = "xla"
    name = resolve("ssd", implementation, _refusal(x=x, dt=dt, A=A, B=B, C=C))
    runs = find_runs(segments, initial_segment, sizes["B"], sizes["T"])

    dtype = sum_dtype(x, dt, A, B, C, state)
    compute = widest_dtype() if name == "reference" else dtype
    if state is None:
        state = jnp.zeros(tuple(sizes[a] for a in "BHPN"), compute)
    if runs is not None:
        dt = jnp.where(runs.real[..., None], dt, 0)
    state = state.astype(compute)
    starts = None if runs is None else runs.starts
    passing = parts("T", sizes["T"]) > 1
    if name == "reference":
        y, state = _reference(*(a.astype(compute) for a in (x, dt, A, B, C)), state, starts)
    elif name == "xla" and sizes["T"] == 1:
        state = state if starts is None else jnp.where(starts[..., None, None], 0, state)
        y, state = ssd_step(state, x[:, 0].astype(compute), dt[:, 0], A, B[:, 0], C[:, 0])
        y = y[:, None]
    elif name == "xla" and not passing:  # the compiler divides it
        y, state = _xla(x, dt, A.astype(compute), B, C, state, starts, chunk)
    else:
        if name == "xla":
            A, scan = A.astype(compute), functools.partial(_xla, chunk=chunk)
        else:
            from workbench_kernels import ssd_mosaic_gpu  # here: Pallas is slow to import, and rarely needed

            scan = ssd_mosaic_gpu.ssd
        arguments, axes = (x, dt, A, B, C, state, starts), ("BTHP", "BTH", "H", "BTGN", "BTGN", "BHPN", "BT")
        y, state = on_each_device(pass_states(scan, _decay) if passing else scan, arguments, axes, ("BTHP", "BHPN"))
    if D is not None:
        y = y + D.astype(compute)[None, None, :, None] * x.astype(compute)
    if runs is not None:
        y = jnp.where(runs.real[..., None, None], y, 0)
    return y.astype(x.dtype), state.astype(dtype)


def ssd_step(
    state: jax.Array,
    x: jax.Array,
    dt: jax.Array,
    A: jax.Array,
    B: jax.Array,
    C: jax.Array,
    D: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """One step of `ssd`, to decode a token: returns y [B, H, P] and the state after it.

    state [B, H, P, N]; x [B, H, P]; dt [B, H]; A, D [H]; B, C [B, G, N]. Where dt is 0 no time passes.
    """
    sizes = {}
    require("state", state, ("B", "H", "P", "N"), sizes)
    require("x", x, ("B", "H", "P"), sizes)
    require("dt", dt, ("B", "H"), sizes)
    require("A", A, ("H",), sizes)
    require("B", B, ("B", "G", "N"), sizes)
    require("C", C, ("B", "G", "N"), sizes)
    _require_whole_groups(sizes)
    dtype = sum_dtype(state, x, dt, A, B, C)
    wide, dt, A, B, C = (a.astype(dtype) for a in (x, dt, A, B, C))
    heads = sizes["H"] // sizes["G"]
    # what they are computed from is not computed again for every number of the state
    wide, dt, B, C = jax.lax.optimization_barrier((wide, dt, B, C))
    decay = jnp.exp(dt * A[None])[..., None, None]
    state = decay * state + (dt[..., None] * wide)[..., None] * jnp.repeat(B, heads, axis=1)[:, :, None, :]
    # a product of a group's states with its C: a sum over the last axis is one number at a time on a CPU
    grouped = state.reshape(sizes["B"], sizes["G"], heads * sizes["P"], sizes["N"])
    y = jnp.einsum("bgmn,bgn->bgm", grouped, C, precision="highest").reshape(wide.shape)
    if D is not None:
        require("D", D, ("H",), sizes)
        y = y + D.astype(dtype)[None, :, None] * wide
    return y.astype(x.dtype), state


def _refusal(**arrays):
    """Why the kernel cannot take these arguments, or ""."""
    for name, array in arrays.items():
        taken = ("bfloat16",) if name in ("x", "B", "C") else ("bfloat16", "float32")
        if array.dtype.name not in taken:
            return f"{name} is {array.dtype}, and it takes {' and '.join(taken)}"
    return f"N is {arrays['B'].shape[3]}, and it takes at most 256" if arrays["B"].shape[3] > 256 else ""


def _require_whole_groups(sizes):
    if sizes["H"] % sizes["G"]:
        raise ValueError(f"x has H={sizes['H']} heads and B has G={sizes['G']} groups; H must be a multiple of G")


def _decay(dt, A, starts):
    """[B, H, 1, 1]: what is left after all steps of a state before them."""
    left = jnp.exp(dt.sum(axis=1, dtype=A.dtype) * A[None])
    left = left if starts is None else jnp.where(starts.any(axis=1)[:, None], 0, left)
    return left[..., None, None]


def _reference(x, dt, A, B, C, state, starts):
    heads = x.shape[2] // B.shape[2]

    def step(state, inputs):
        x, dt, B, C, start = inputs
        B, C = (jnp.repeat(a, heads, axis=1) for a in (B, C))
        state = jnp.where(start[:, None, None, None], 0, state)
        state = jnp.exp(dt * A[None])[..., None, None] * state + jnp.einsum("bh,bhp,bhn->bhpn", dt, x, B)
        return state, jnp.einsum("bhpn,bhn->bhp", state, C)

    if starts is None:
        starts = jnp.zeros(x.shape[:2], bool)
    state, y = jax.lax.scan(step, state, tuple(jnp.moveaxis(a, 1, 0) for a in (x, dt, B, C, starts)))
    return jnp.moveaxis(y, 0, 1), state


def _xla(x, dt, A, B, C, state, starts, chunk):
    """The chunked form: T is padded to whole chunks with dt = 0, for which no time passes.

    States are laid out [B, G, N, K, P], K heads a group, so that products with B and C need no transposition.
    """
    batch, time, H, P = x.shape
    G, N = B.shape[2:]
    chunk = even_chunk(time, chunk)
    x, dt, B, C = (pad_time(a, chunk) for a in (x, dt, B, C))
    starts = None if starts is None else pad_time(starts, chunk)
    h = state.reshape(batch, G, H // G, P, N).transpose(0, 1, 4, 2, 3)
    y, h = _scan(chunk, x, dt, A, B, C, h, starts)
    return y[:, :time], h.transpose(0, 1, 3, 4, 2).reshape(batch, H, P, N)


# Measured on two cores, B=8 T=256 H=8 P=64 N=64, forward and backward, best of 15 in one run: chunks in turn, each
# computed again in the backward pass, 65 ms and 17 MiB; all chunks at once under autodiff 190 ms and 47 MiB.


def _one_chunk(h, x, dt, A, B, C, starts):
    """y of one chunk and the state after it."""
    x, dt, B, C = (a.astype(h.dtype) for a in (x, dt, B, C))
    batch, steps, _, P = x.shape
    G, K = h.shape[1], h.shape[3]
    whole, rest = _exact_sums(dt * A[None, None], starts)
    later = jnp.tril(jnp.ones((1, 1, steps, steps), bool))
    between = _differences(whole, rest)
    # masked before the exponential too, so that no gradient meets an infinity
    between = jnp.where(later, jnp.exp(jnp.where(later, between, 0)), 0)
    since = jnp.exp(whole + rest)
    until = jnp.exp((whole[..., -1:] - whole) + (rest[..., -1:] - rest))

    inputs = x * dt[..., None]
    scores = jnp.einsum("bqgn,bsgn->bgqs", C, B)
    weights = (scores[:, :, None] * between.reshape(batch, G, K, steps, steps)).reshape(between.shape)
    y = (weights @ inputs.swapaxes(1, 2)).swapaxes(1, 2)
    from_state = jnp.einsum("bqgn,bgnkp->bqgkp", C, h).reshape(x.shape)
    y = y + from_state * since.swapaxes(1, 2)[..., None]
    kept_inputs = (inputs * until.swapaxes(1, 2)[..., None]).reshape(batch, steps, G, K, P)
    h = h * since[..., -1].reshape(batch, G, 1, K, 1) + jnp.einsum("bsgn,bsgkp->bgnkp", B, kept_inputs)
    return y, h


def _exact_sums(log_decay, starts):
    """[B, Q, H] to two [B, H, Q]: their sums up to each step, as multiples of 1/256 and what is left of them.

    The decay between two steps is a difference of two sums. Where the state was forgotten before, both are large and
    their digits would cancel; the multiples are summed and subtracted without rounding (up to 2^16 in float32), and the
    rest stays small. A step below -128 has exp 0 in float32 and is held there. Derivatives go through the rest.
    A document's start forgets the state before it: one more step of RESTART, beside which nothing is left in float64.
    The sums are products with a triangle of ones, since XLA's cumsum is a reduce-window on a CPU and computes again,
    Q times, whatever it is fused with.
    """
    held = jnp.maximum(log_decay, -128)
    multiple = jax.lax.stop_gradient(jnp.round(held * 256) / 256)
    rest = held - multiple
    if starts is not None:
        multiple = multiple + jnp.where(starts, RESTART, 0).astype(multiple.dtype)[..., None]
    ones = jnp.tril(jnp.ones((held.shape[1], held.shape[1]), held.dtype))
    sums = (jnp.einsum("qs,bsh->bhq", ones, part, precision="highest") for part in (multiple, rest))
    return tuple(sums)


def _differences(whole, rest):
    """[B, H, Q, Q]: the log of the decay from step s to step q."""
    return (whole[..., :, None] - whole[..., None, :]) + (rest[..., :, None] - rest[..., None, :])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _scan(chunk, x, dt, A, B, C, h, starts):
    return _scan_forward(chunk, x, dt, A, B, C, h, starts)[0]


def _scan_forward(chunk, x, dt, A, B, C, h, starts):
    """Saves the state at each chunk's start, and nothing else that was not given."""
    chunks = x.shape[1] // chunk

    def body(index, carry):
        h, y, firsts = carry
        firsts = jax.lax.dynamic_update_index_in_dim(firsts, h, index, axis=0)
        x_c, dt_c, B_c, C_c, starts_c = chunk_of((x, dt, B, C, starts), chunk, index)
        steps, h = _one_chunk(h, x_c, dt_c, A, B_c, C_c, starts_c)
        return h, put_chunk(y, steps, index), firsts

    carry = h, jnp.zeros(x.shape, h.dtype), jnp.zeros((chunks, *h.shape), h.dtype)
    h, y, firsts = jax.lax.fori_loop(0, chunks, body, carry)
    return (y, h), (x, dt, A, B, C, starts, firsts)


def _scan_backward(chunk, saved, cotangents):
    """Chunk by chunk from the end, each computed again from its saved state."""
    x, dt, A, B, C, starts, firsts = saved
    dy, dh = cotangents
    chunks = x.shape[1] // chunk

    def body(done, carry):
        index = chunks - 1 - done
        dh, dA, *grads = carry
        h = jax.lax.dynamic_index_in_dim(firsts, index, axis=0, keepdims=False)
        x_c, dt_c, B_c, C_c, dy_c, starts_c = chunk_of((x, dt, B, C, dy, starts), chunk, index)
        one_chunk = functools.partial(_one_chunk, starts=starts_c)
        _, pull_back = jax.vjp(one_chunk, h, x_c, dt_c, A, B_c, C_c)
        dh, dx_c, ddt_c, dA_c, dB_c, dC_c = pull_back((dy_c, dh))
        steps = dx_c, ddt_c, dB_c, dC_c
        return dh, dA + dA_c, *(put_chunk(grad, s, index) for grad, s in zip(grads, steps, strict=True))

    carry = dh, *(jnp.zeros_like(a) for a in (A, x, dt, B, C))
    dh, dA, dx, ddt, dB, dC = jax.lax.fori_loop(0, chunks, body, carry)
    return dx, ddt, dA, dB, dC, dh, None


_scan.defvjp(_scan_forward, _scan_backward)
