"""The selective scan on NVIDIA GPUs of compute capability 9, in Pallas' Mosaic GPU dialect.

A block is one warpgroup with the states of some channels of one sequence in its registers, four channels by four states
a thread. Time goes by in chunks that TMA brings to shared memory. The backward pass starts each chunk, from the last,
with the state that the forward pass saved there, runs it forward to save the state of every fourth step on chip, and
goes back through four steps at a time, which it holds in registers. Sums over a block's channels (dB, dC) are partial
results that XLA adds up, so that nothing depends on the order in which blocks end.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from workbench_kernels.mosaic import WARPS, combine, load, parts_of, rows_and_columns, splits_of, store

CHUNK, HELD = 16, 4  # steps between saved states, and steps whose states are held in registers
MOST_STATES = 64  # a kernel's; more are cut into pieces
LOG2E = math.log2(math.e)
F32 = jnp.float32


def selective_scan(x, dt, A, B, C, state, starts):
    """y [B, T, I] in x's dtype and the last state [B, I, N], float32; starts [B, T]: the state restarts there."""
    batch, time, inner = x.shape
    if A.shape[1] > MOST_STATES:  # states are independent and y is their sum
        pieces = [slice(n, n + MOST_STATES) for n in range(0, A.shape[1], MOST_STATES)]
        wide, dt = x.astype(F32), dt.astype(F32)  # once, so that their gradients add up in float32
        parts = [selective_scan(wide, dt, A[:, n], B[..., n], C[..., n], state[..., n], starts) for n in pieces]
        return sum(y for y, _ in parts).astype(x.dtype), jnp.concatenate([h for _, h in parts], axis=-1)
    N = max(8, 1 << (A.shape[1] - 1).bit_length())
    channels = WARPS * rows_and_columns(N)[0]
    splits = splits_of(batch * -(-inner // channels), time, CHUNK, 8)
    extra_inner, extra_N = -inner % channels, N - A.shape[1]
    extra_time = -time % (splits * CHUNK) if splits > 1 else 0  # without splits TMA reads zeros past the end

    def pad(a, *axes):
        extra = {"T": extra_time, "I": extra_inner, "N": extra_N}
        width = [(0, extra.get(axis, 0)) for axis in axes]
        return jnp.pad(a, width) if any(more for _, more in width) else a

    if starts is not None:  # one column a state, as B and C have: TMA wants rows of whole 16 bytes
        starts = pad(jnp.broadcast_to(starts[..., None].astype(F32), (batch, time, N)), "B", "T", "N")
    B, C = (pad(a.astype(F32), "B", "T", "N") for a in (B, C))
    x, dt = (pad(a, "B", "T", "I") for a in (x, dt))
    y, last = _scan(splits, x, dt, pad(A.astype(F32), "I", "N"), B, C, pad(state.astype(F32), "B", "I", "N"), starts)
    return y[:, :time, :inner], last[:, :inner, : A.shape[1]]


# ---- whole sequences from kernels: parts of time, and gradients


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _scan(splits, x, dt, A, B, C, state, starts):
    y, last, *_ = _whole(splits, x, dt, A, B, C, state, starts, save=False)
    return y, last


def _scan_forward(splits, x, dt, A, B, C, state, starts):
    y, last, saved = _whole(splits, x, dt, A, B, C, state, starts, save=True)
    return (y, last), (x, dt, A, B, C, starts, saved)


def _scan_backward(splits, kept, cotangents):
    x, dt, A, B, C, starts, saved = kept
    dy, dlast = cotangents
    batch, time, inner = x.shape
    dy, dlast = dy.astype(x.dtype), dlast.astype(F32)
    parts = functools.partial(parts_of, splits)
    xs, dts, dys, Bs, Cs, resets = (parts(a) for a in (x, dt, dy, B, C, starts))
    ends = dlast
    if splits > 1:
        carried = _carry(dys, dts, A, Cs, resets, reverse=True)
        ends = combine(_decays(splits, dts, A, resets), carried, dlast, splits, reverse=True)
    dx, ddt, dA, dB, dC, dstate = _backward(xs, dts, A, Bs, Cs, resets, saved, dys, ends)
    first = dstate.reshape(batch, splits, *dstate.shape[1:])[:, 0]
    dx, ddt = (a.reshape(batch, time, inner) for a in (dx, ddt))
    return dx, ddt, dA, dB.reshape(B.shape), dC.reshape(C.shape), first, None


_scan.defvjp(_scan_forward, _scan_backward)


def _whole(splits, x, dt, A, B, C, state, starts, save):
    batch, time, inner = x.shape
    xs, dts, Bs, Cs, resets = (parts_of(splits, a) for a in (x, dt, B, C, starts))
    if splits > 1:
        carried = _carry(xs, dts, A, Bs, resets, reverse=False)
        state = combine(_decays(splits, dts, A, resets), carried, state, splits, reverse=False)
    y, last, saved = _forward(xs, dts, A, Bs, Cs, state, resets, save)
    last = last.reshape(batch, splits, *last.shape[1:])[:, -1]
    return y.reshape(batch, time, inner), last, saved


def _decays(splits, dt, A, starts):
    """How much of a state at a part's start is left at its end."""
    decay = jnp.exp(jnp.sum(dt.astype(F32), axis=1)[..., None] * A[None])
    return decay if starts is None else decay * jnp.all(starts[..., :1] == 0, axis=1)[..., None]


# ---- kernels: [parts, T, I], I a multiple of a block's channels


class _Block:
    """Shapes, layouts and views that the kernels of one size share."""

    def __init__(self, parts, time, inner, N):
        self.rows, self.layout = rows_and_columns(N)
        self.parts, self.time, self.N = parts, time, N
        self.groups = inner // (WARPS * self.rows)
        self.chunks = -(-time // CHUNK)
        self.full = (WARPS, self.rows, N)
        self.by_channel, self.by_state = self.layout.reduce(2), self.layout.reduce((0, 1))

    def cut(self, a, axis=-1):
        """The axis of channels as three: groups, warps, rows."""
        axis = axis % a.ndim
        return a.reshape(*a.shape[:axis], self.groups, WARPS, self.rows, *a.shape[axis + 1 :])

    def down(self, a):
        """A value a channel, for every state."""
        return lax.broadcast_in_dim(a, self.full, (0, 1))

    def across(self, a):
        """A value a state, for every channel."""
        return lax.broadcast_in_dim(a, self.full, (2,))

    def timed(self, place):
        """The spec of [parts, T, groups, warps, rows] in a pipeline whose step c reads chunk place(c)."""
        part, group = lax.axis_index("part"), lax.axis_index("group")
        return plgpu.BlockSpec((None, CHUNK, None, WARPS, self.rows), lambda c: (part, place(c), group, 0, 0))

    def states(self, place):
        """The spec of [parts, T, N]."""
        part = lax.axis_index("part")
        return plgpu.BlockSpec((None, CHUNK, self.N), lambda c: (part, place(c), 0))

    def kernel(self, body, out_type, scratch):
        return plgpu.kernel(
            body,
            out_type=out_type,
            scratch_types=scratch,
            grid=(self.parts, self.groups),
            grid_names=("part", "group"),
            # No buffer is read by one thread after another has written it without commit_smem or a barrier between, and
            # every chunk's last read of what TMA has brought is followed by one, for TMA overwrites it next. The
            # interpreter takes the warps of a warpgroup for one and cannot see it.
            compiler_params=plgpu.CompilerParams(approx_math=True, unsafe_no_auto_barriers=True),
        )

    def advance(self, h, t, x, dt, A, B, starts):
        """The state after step t of a chunk."""
        x, dt = load(x.at[t], self.by_channel, F32), load(dt.at[t], self.by_channel, F32)
        if starts is not None:
            h = h * self.across(1 - load(starts.at[t], self.by_state, F32))
        new = self.down(dt * x) * self.across(load(B.at[t], self.by_state, F32))
        return jnp.exp2(self.down(dt) * A) * h + new


def _forward(x, dt, A, B, C, state, starts, save):
    """y, the last state, and (if `save`) the state at each chunk's start, [parts, chunks, groups, warps, rows, N]."""
    at = _Block(*x.shape, A.shape[1])

    def kernel(*refs):
        x_g, dt_g, A_g, B_g, C_g, h_g, *rest = refs
        starts_g = rest.pop(0) if starts is not None else None
        y_g, last_g = rest.pop(0), rest.pop(0)
        saved_g = rest.pop(0) if save else None
        A_s, h_s, last_s, y_s, *saved_s, barrier = rest
        part, group = lax.axis_index("part"), lax.axis_index("group")
        plgpu.copy_gmem_to_smem(A_g.at[group], A_s, barrier)
        plgpu.copy_gmem_to_smem(h_g.at[part, group], h_s, barrier)
        plgpu.barrier_wait(barrier)
        rate = load(A_s, at.layout, F32) * LOG2E

        def chunk(index, x, dt, B, C, *more):
            *starts, h = more
            (c,) = index
            slot = lax.rem(c, jnp.int32(2))
            plgpu.wait_smem_to_gmem(2 if save else 1, wait_read_only=True)  # the copies of the last chunk but one
            if save:
                store(saved_s[0].at[slot], h)

            def step(t, h):
                h = at.advance(h, t, x, dt, rate, B, *(starts or [None]))
                y = jnp.sum(h * at.across(load(C.at[t], at.by_state, F32)), axis=2)
                store(y_s.at[slot, t], y.astype(y_s.dtype))
                return h

            h = lax.fori_loop(0, CHUNK, step, h)
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(y_s.at[slot], y_g.at[part, pl.ds(c * CHUNK, CHUNK), group])
            if save:
                plgpu.copy_smem_to_gmem(saved_s[0].at[slot], saved_g.at[part, c, group])
            return h

        specs = [at.timed(lambda c: c)] * 2 + [at.states(lambda c: c)] * (2 if starts is None else 3)
        timed = [x_g, dt_g, B_g, C_g] + ([] if starts is None else [starts_g])
        start = load(h_s, at.layout, F32)
        last = plgpu.emit_pipeline(chunk, grid=(at.chunks,), in_specs=specs, max_concurrent_steps=2, init_carry=start)(
            *timed
        )
        store(last_s, last)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(last_s, last_g.at[part, group])
        plgpu.wait_smem_to_gmem(0)

    x, dt, A, state = at.cut(x), at.cut(dt), at.cut(A, -2), at.cut(state, -2)
    shape = jax.ShapeDtypeStruct
    chunked = shape((at.parts, at.chunks, at.groups, *at.full), F32)
    found = at.kernel(
        kernel,
        [shape(x.shape, x.dtype), shape(state.shape, F32)] + ([chunked] if save else []),
        [
            *[plgpu.SMEM(at.full, F32)] * 3,
            plgpu.SMEM((2, CHUNK, WARPS, at.rows), x.dtype),
            *([plgpu.SMEM((2, *at.full), F32)] if save else []),
            plgpu.Barrier(num_arrivals=2),
        ],
    )(x, dt, A, B, C, state, *([] if starts is None else [starts]))
    y, last = found[:2]
    channels = at.groups * WARPS * at.rows
    return y.reshape(*y.shape[:2], channels), last.reshape(at.parts, channels, at.N), found[2] if save else None


def _carry(x, dt, A, B, starts, reverse):
    """What a part that starts from zero hands on: its last state, or in reverse the gradient at its first.

    In reverse x is dy and B is C: the gradient of the state collects dy C and then decays past its step.
    """
    at = _Block(*x.shape, A.shape[1])

    def kernel(*refs):
        x_g, dt_g, A_g, B_g, *rest = refs
        starts_g = rest.pop(0) if starts is not None else None
        last_g, A_s, last_s, barrier = rest
        part, group = lax.axis_index("part"), lax.axis_index("group")
        plgpu.copy_gmem_to_smem(A_g.at[group], A_s, barrier)
        plgpu.barrier_wait(barrier)
        rate = load(A_s, at.layout, F32) * LOG2E

        def chunk(index, x, dt, B, *more):
            *starts, h = more

            def back(i, g):
                t = CHUNK - 1 - i
                dy, step = load(x.at[t], at.by_channel, F32), load(dt.at[t], at.by_channel, F32)
                g = g + at.down(dy) * at.across(load(B.at[t], at.by_state, F32))
                g = g * jnp.exp2(at.down(step) * rate)
                return g * at.across(1 - load(starts[0].at[t], at.by_state, F32)) if starts else g

            def on(t, h):
                return at.advance(h, t, x, dt, rate, B, *(starts or [None]))

            h = lax.fori_loop(0, CHUNK, back if reverse else on, h)
            plgpu.commit_smem()  # no warp may still read what the next copy overwrites
            return h

        place = (lambda c: at.chunks - 1 - c) if reverse else (lambda c: c)
        specs = [at.timed(place)] * 2 + [at.states(place)] * (1 if starts is None else 2)
        timed = [x_g, dt_g, B_g] + ([] if starts is None else [starts_g])
        zero = plgpu.layout_cast(jnp.zeros(at.full, F32), at.layout)
        last = plgpu.emit_pipeline(chunk, grid=(at.chunks,), in_specs=specs, max_concurrent_steps=2, init_carry=zero)(
            *timed
        )
        store(last_s, last)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(last_s, last_g.at[part, group])
        plgpu.wait_smem_to_gmem(0)

    x, dt, A = at.cut(x), at.cut(dt), at.cut(A, -2)
    (last,) = at.kernel(
        kernel,
        [jax.ShapeDtypeStruct((at.parts, at.groups, *at.full), F32)],
        [*[plgpu.SMEM(at.full, F32)] * 2, plgpu.Barrier()],
    )(x, dt, A, B, *([] if starts is None else [starts]))
    return last.reshape(at.parts, at.groups * WARPS * at.rows, at.N)


def _backward(x, dt, A, B, C, starts, saved, dy, dlast):
    """Gradients of x, dt, A, B, C and the first state."""
    at = _Block(*x.shape, A.shape[1])

    def kernel(*refs):
        x_g, dt_g, dy_g, A_g, B_g, C_g, saved_g, dlast_g, *rest = refs
        starts_g = rest.pop(0) if starts is not None else None
        dx_g, ddt_g, dB_g, dC_g, dA_g, dfirst_g, *rest = rest
        held, dx_s, ddt_s, dB_warps, dC_warps, barrier = rest
        part, group = lax.axis_index("part"), lax.axis_index("group")
        plgpu.copy_gmem_to_smem(A_g.at[group], held.at[0], barrier)  # held is free before the first chunk and after
        plgpu.copy_gmem_to_smem(dlast_g.at[part, group], held.at[1], barrier)
        plgpu.barrier_wait(barrier)
        rate = load(held.at[0], at.layout, F32) * LOG2E

        def chunk(index, x, dt, dy, B, C, first, *more):
            *starts, carry = more
            (c,) = index

            def advance(h, t):
                return at.advance(h, t, x, dt, rate, B, *(starts or [None]))

            def save(j, h):  # each thread reads back what it wrote
                store(held.at[j], h)
                for s in range(HELD):
                    h = advance(h, j * HELD + s)
                return h

            h = lax.fori_loop(0, CHUNK // HELD - 1, save, load(first, at.layout, F32))
            store(held.at[CHUNK // HELD - 1], h)
            plgpu.wait_smem_to_gmem(0, wait_read_only=True)  # the last chunk's results have left

            def back(i, carry):
                dh, dA = carry
                j = CHUNK // HELD - 1 - i
                states = [load(held.at[j], at.layout, F32)]
                for s in range(HELD):
                    states.append(advance(states[-1], j * HELD + s))
                for s in reversed(range(HELD)):
                    t = j * HELD + s
                    x_t, dt_t, dy_t = (load(a.at[t], at.by_channel, F32) for a in (x, dt, dy))
                    B_t, C_t = (load(a.at[t], at.by_state, F32) for a in (B, C))
                    store(dC_warps.at[:, t], jnp.sum(states[s + 1] * at.down(dy_t), axis=1))
                    dh = dh + at.down(dy_t) * at.across(C_t)
                    store(dB_warps.at[:, t], jnp.sum(dh * at.down(dt_t * x_t), axis=1))
                    dinput = jnp.sum(dh * at.across(B_t), axis=2)
                    dh = dh * jnp.exp2(at.down(dt_t) * rate)
                    if starts:
                        dh = dh * at.across(1 - load(starts[0].at[t], at.by_state, F32))
                    dexponent = dh * states[s]
                    ddt_t = jnp.sum(dexponent * rate, axis=2) / LOG2E + dinput * x_t
                    dA = dA + dexponent * at.down(dt_t)
                    store(dx_s.at[t], (dinput * dt_t).astype(dx_s.dtype))
                    store(ddt_s.at[t], ddt_t.astype(ddt_s.dtype))
                return dh, dA

            carry = lax.fori_loop(0, CHUNK // HELD, back, carry)
            plgpu.commit_smem()  # the four warps' sums are added by other threads than wrote them
            strided = plgpu.Layout.WG_STRIDED((CHUNK, at.N), vec_size=max(1, CHUNK * at.N // 512))
            for warps in (dB_warps, dC_warps):
                store(warps.at[0], sum(load(warps.at[w], strided, F32) for w in range(WARPS)))
            plgpu.commit_smem()
            steps = pl.ds((at.chunks - 1 - c) * CHUNK, CHUNK)
            plgpu.copy_smem_to_gmem(dx_s, dx_g.at[part, steps, group])
            plgpu.copy_smem_to_gmem(ddt_s, ddt_g.at[part, steps, group])
            plgpu.copy_smem_to_gmem(dB_warps.at[0], dB_g.at[part, group, steps])
            plgpu.copy_smem_to_gmem(dC_warps.at[0], dC_g.at[part, group, steps])
            return carry

        def place(c):
            return at.chunks - 1 - c

        of_saved = plgpu.BlockSpec((None, None, None, *at.full), lambda c: (part, place(c), group, 0, 0, 0))
        specs = [at.timed(place)] * 3 + [at.states(place)] * 2 + [of_saved]
        timed = [x_g, dt_g, dy_g, B_g, C_g, saved_g]
        if starts is not None:
            specs, timed = [*specs, at.states(place)], [*timed, starts_g]
        start = load(held.at[1], at.layout, F32), plgpu.layout_cast(jnp.zeros(at.full, F32), at.layout)
        dfirst, dA = plgpu.emit_pipeline(
            chunk, grid=(at.chunks,), in_specs=specs, max_concurrent_steps=2, init_carry=start
        )(*timed)
        store(held.at[0], dfirst)
        store(held.at[1], dA)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(held.at[0], dfirst_g.at[part, group])
        plgpu.copy_smem_to_gmem(held.at[1], dA_g.at[part, group])
        plgpu.wait_smem_to_gmem(0)

    channels = at.groups * WARPS * at.rows
    x, dt, dy, A, dlast = at.cut(x), at.cut(dt), at.cut(dy), at.cut(A, -2), at.cut(dlast, -2)
    shape = jax.ShapeDtypeStruct
    of_channels, of_states = shape(dlast.shape, F32), shape((at.parts, at.groups, at.time, at.N), F32)
    dx, ddt, dB, dC, dA, dfirst = at.kernel(
        kernel,
        [shape(x.shape, x.dtype), shape(dt.shape, dt.dtype), of_states, of_states, of_channels, of_channels],
        [
            plgpu.SMEM((CHUNK // HELD, *at.full), F32),
            *[plgpu.SMEM((CHUNK, WARPS, at.rows), dtype) for dtype in (x.dtype, dt.dtype)],
            *[plgpu.SMEM((WARPS, CHUNK, at.N), F32)] * 2,
            plgpu.Barrier(num_arrivals=2),
        ],
    )(x, dt, dy, A, B, C, saved, dlast, *([] if starts is None else [starts]))
    dx, ddt = (a.reshape(at.parts, at.time, channels) for a in (dx, ddt))
    return (
        dx,
        ddt,
        dA.sum(axis=0).reshape(channels, at.N),
        dB.sum(axis=1),
        dC.sum(axis=1),
        dfirst.reshape(at.parts, channels, at.N),
    )
