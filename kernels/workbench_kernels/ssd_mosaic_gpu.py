"""Mamba-2's scan on NVIDIA GPUs of compute capability 9, in Pallas' Mosaic GPU dialect.

Chunks of 64 steps are products on tensor cores: bfloat16 factors, float32 sums. One kernel walks along the time of one
head with its state in registers; a chunk's scores and weights never leave the chip. For the backward pass it saves each
chunk's first state, in bfloat16. The same walk, back in time, gives the gradient of each chunk's last state. Between
the two, chunks are independent: a block takes the heads of a group in turn and adds up dB, or dC, in registers.

Within a chunk the decay from step s to step q is exp2(sum_q - sum_s). The sums are kept as multiples of 1/256 and a
small rest, so that no digits cancel (see ssd.py). A document's start is a step of decay 2^-256, which is 0.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from workbench_kernels.mosaic import MULTIPROCESSORS, combine, load, parts_of, splits_of, store

CHUNK = 64  # steps: the rows of a warpgroup's product
F32, BF16 = jnp.float32, jnp.bfloat16
LOWEST, RESTART = -192.0, -256.0  # log2 of a step's least decay, and of one that starts a document; exp2 of both is 0
NEVER = -1e4  # log2 of no decay at all but 0
LAYOUT = plgpu.Layout.WGMMA
ROWS, COLUMNS = LAYOUT.reduce(1), LAYOUT.reduce(0)


def ssd(x, dt, A, B, C, state, starts):
    """y [B, T, H, P] and the last state [B, H, P, N], float32; starts [B, T]: the state restarts there."""
    batch, time, H, P = x.shape
    N = B.shape[3]
    width = 32 if P <= 32 or N > 128 else 64  # what registers hold, with a state of N columns
    pieces = -(-P // width)  # rows of a state are independent: a wide head is several
    splits = splits_of(batch * H * pieces, time, CHUNK, 4)
    extra_time, extra_P, extra_N = -time % (splits * CHUNK), -P % width, -N % 64

    def pad(a, *extra):
        return jnp.pad(a, [(0, more) for more in extra]) if any(extra) else a

    log_decay = jnp.maximum(dt.astype(F32) * (A.astype(F32) * math.log2(math.e))[None, None], LOWEST)
    if starts is not None:
        log_decay = log_decay + jnp.where(starts, RESTART, 0)[..., None]
    dt, log_decay = (pad(jnp.repeat(a.astype(F32), pieces, axis=2), 0, extra_time, 0) for a in (dt, log_decay))
    extra = extra_time if splits > 1 else -time % 8  # without splits TMA reads zeros past the end, in rows of eight
    x = pad(x, 0, extra, 0, extra_P).reshape(batch, time + extra, H * pieces, width)
    B, C = (pad(a, 0, extra, 0, extra_N) for a in (B, C))
    first = pad(state.astype(F32), 0, 0, extra_P, extra_N).reshape(batch, H * pieces, width, -1).swapaxes(2, 3)
    y, last = _scan(splits, x, dt, log_decay, B, C, first)
    y = y[:, :time].reshape(batch, time, H, -1)[..., :P]
    return y, last.swapaxes(2, 3).reshape(batch, H, pieces * width, -1)[..., :P, :N]


# ---- whole sequences from kernels: parts of time, and gradients


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _scan(splits, x, dt, log_decay, B, C, first):
    """x [B, T, H, P]; dt, log_decay (base 2) [B, T to whole chunks, H]; B, C [B, T, G, N]; first [B, H, N, P]."""
    y, last, _ = _whole(splits, x, dt, log_decay, B, C, first, save=False)
    return y, last


def _scan_forward(splits, x, dt, log_decay, B, C, first):
    y, last, saved = _whole(splits, x, dt, log_decay, B, C, first, save=True)
    return (y, last), (x, dt, log_decay, B, C, saved)


def _whole(splits, x, dt, log_decay, B, C, first, save):
    xs, Bs, Cs = (parts_of(splits, a) for a in (x, B, C))
    steps = _Steps(splits, dt, log_decay)
    if splits > 1:
        carried, *_ = _walk(xs, Bs, steps.forward, jnp.zeros((xs.shape[0], *first.shape[1:]), F32))
        first = combine(steps.decay, carried, first, splits, reverse=False)
    last, saved, y, _ = _walk(xs, Bs, steps.forward, first, save=save, queries=Cs, columns=steps.read)
    last = last.reshape(-1, splits, *last.shape[1:])[:, -1]
    return y.reshape(x.shape), last, saved


def _scan_backward(splits, kept, cotangents):
    x, dt, log_decay, B, C, saved = kept
    dy, dlast = cotangents
    xs, Bs, Cs, dys = (parts_of(splits, a) for a in (x, B, C, dy.astype(x.dtype)))
    steps = _Steps(splits, dt, log_decay)
    ends = dlast.astype(F32)
    if splits > 1:
        carried, *_ = _walk(dys, Cs, steps.backward, jnp.zeros((xs.shape[0], *ends.shape[1:]), F32), reverse=True)
        ends = combine(steps.decay, carried, ends, splits, reverse=True)
    dfirst, dsaved, _, meeting = _walk(dys, Cs, steps.backward, ends, reverse=True, save=True, against=saved)
    dC, _, of_reads = _gradients(Cs, Bs, dys, xs, saved, steps.readers, steps.read)
    dB, dx, of_writes = _gradients(Bs, Cs, xs, dys, dsaved, steps.writers, steps.written, values_too=True)

    # [parts, H, chunks, CHUNK]: what the decays up to a step, and from a step on, are worth
    within, from_state = of_reads[..., 0, :], of_reads[..., 1, :]
    ddt, to_state = of_writes[..., 0, :] + of_writes[..., 1, :], of_writes[..., 1, :] * steps.dt
    passing = jnp.sum(meeting, axis=-1, keepdims=True) * jnp.exp2(steps.total)[..., None]
    later = within + from_state - of_writes[..., 0, :] * steps.dt
    dlog = jnp.flip(jnp.cumsum(jnp.flip(later, -1), axis=-1), -1) + passing
    dlog = dlog + jnp.cumsum(to_state, axis=-1) - to_state
    dlog, ddt = (_to_steps(a, splits) for a in (dlog * math.log(2), ddt))
    dfirst = dfirst.reshape(-1, splits, *dfirst.shape[1:])[:, 0]
    return (
        dx.reshape(x.shape),
        ddt,
        dlog,
        dB.reshape(B.shape).astype(B.dtype),
        dC.reshape(C.shape).astype(C.dtype),
        dfirst,
    )


_scan.defvjp(_scan_forward, _scan_backward)


def _to_chunks(a, splits):
    """[B, T, H] to [parts, H, chunks, CHUNK]."""
    return parts_of(splits, a).reshape(a.shape[0] * splits, -1, CHUNK, a.shape[2]).transpose(0, 3, 1, 2)


def _to_steps(a, splits):
    """The inverse of `_to_chunks`."""
    parts, H, chunks, _ = a.shape
    return a.transpose(0, 2, 3, 1).reshape(parts // splits, splits * chunks * CHUNK, H)


class _Steps:
    """What the kernels need to know of dt and decay, each [parts, H, chunks, some, CHUNK] float32.

    whole and rest: the log2 of the decay from the chunk's start, in two parts; since: the decay itself; until: that
    from a step to the chunk's end. A kernel reads a vector along a square's rows or its columns, and keeps them apart.
    A step takes 1/16 from whole and gives it to rest, so that the sign of two wholes' difference says which is later.
    Columns that a row reads from come with the log2 of dt, by which they are weighted.
    """

    def __init__(self, splits, dt, log_decay):
        self.dt, log_decay = _to_chunks(dt, splits), _to_chunks(log_decay, splits)
        multiple = jnp.round(log_decay * 256) / 256
        whole, rest = (jnp.cumsum(part, axis=-1) for part in (multiple, log_decay - multiple))
        since = jnp.exp2(whole + rest)
        until = jnp.exp2((whole[..., -1:] - whole) + (rest[..., -1:] - rest))
        self.total = (whole + rest)[..., -1]
        self.decay = jnp.exp2(jnp.sum(self.total, axis=-1))[..., None, None]
        order = (jnp.arange(CHUNK, dtype=F32) / 16)[None, None, None]
        whole, rest = whole - order, rest + order
        self.forward = jnp.stack([whole, rest, since, until * self.dt], axis=-2)
        self.backward = jnp.stack([whole, rest, since, since], axis=-2)
        self.read = jnp.stack([whole, rest - jnp.log2(self.dt)], axis=-2)
        self.readers = jnp.stack([whole, rest, since], axis=-2)
        self.written = jnp.stack([whole, rest], axis=-2)
        self.writers = jnp.stack([whole, rest, until, self.dt], axis=-2)


# ---- kernels: values [parts, T, H, P], P 32 or 64; keys and queries [parts, T, G, N], N a multiple of 64


def _transforms(P):
    """How what tensor cores read lies in shared memory: in rows of P, for both factors of a product must lie alike."""
    size = jnp.dtype(BF16).itemsize
    row = min(128, P * size)  # bytes
    return plgpu.TilingTransform((8, row // size)), plgpu.SwizzleTransform(row)


def _spec(*block, at, P=None):
    return plgpu.BlockSpec(block, at, transforms=_transforms(P) if P else ())


def _down(a, columns):
    """[CHUNK] as [CHUNK, columns], a value a row."""
    return lax.broadcast_in_dim(a, (a.shape[0], columns), (0,))


def _across(a, rows):
    """[CHUNK] as [rows, CHUNK], a value a column."""
    return lax.broadcast_in_dim(a, (rows, a.shape[0]), (1,))


def _product(left, right, onto=None):
    """left @ right in float32, added to `onto`; right, and left unless it is in registers, in shared memory."""
    if onto is None:
        shape = plgpu.ACC((left.shape[0], right.shape[1]), F32)

        def fresh(acc):
            plgpu.wgmma(acc, left, right)
            return acc[...]

        return pl.run_scoped(fresh, shape)
    return pl.run_state(lambda acc: plgpu.wgmma(acc, left, right))(plgpu.ACC.init(onto))


def _decays(rows, columns, later):
    """The decay between a row's step and a column's, by dt too if columns hold it; 0 unless `later` is later."""
    sign = 1.0 if later == "rows" else -1.0
    whole, rest = (sign * load(rows.at[part], ROWS, F32) for part in range(2))
    gap = _down(whole, CHUNK) - _across(sign * load(columns.at[0], COLUMNS, F32), CHUNK)
    kept = gap <= 0
    gap = gap + _down(rest, CHUNK) - _across(sign * load(columns.at[1], COLUMNS, F32), CHUNK)
    return jnp.exp2(jnp.where(kept, gap, NEVER))


def _walk(values, keys, rows, first, *, reverse=False, save=False, queries=None, columns=None, against=None):
    """From chunk to chunk, a state collects keys^T (weight values) and decays; in reverse it does so backwards in time.

    rows: whole, rest, since and the weight of `_Steps`. Returns the last state; with save, the state before each chunk;
    with queries, y; with `against` (saved states), a row's products of those and this walk's, summed over P.
    """
    parts, time, H, P = values.shape
    G, N = keys.shape[2:]
    chunks = -(-time // CHUNK)
    wants = {"saved": save, "y": queries is not None, "meeting": against is not None}

    def kernel(*refs):
        values_g, keys_g, rows_g, first_g, *rest = refs
        timed = [values_g, keys_g, rows_g] + [rest.pop(0) for a in (queries, columns, against) if a is not None]
        last_g = rest.pop(0)
        saved_g, y_g, meeting_g = (rest.pop(0) if want else None for want in wants.values())
        state_s, inputs_s, meeting_s = rest
        part, head = lax.axis_index("part"), lax.axis_index("head")
        group = lax.div(head, jnp.int32(H // G))

        def chunk(index, values, keys, rows, *more):
            *more, h = more
            queries_s, columns_s = (more.pop(0), more.pop(0)) if queries is not None else (None, None)
            at = place(index[0])
            inputs = plgpu.load(values, layout=LAYOUT).astype(F32) * _down(load(rows.at[3], ROWS, F32), P)
            plgpu.wait_smem_to_gmem(0, wait_read_only=True)  # the copies of the chunk before have left
            inputs_s[...] = inputs.astype(BF16)
            state_s[...] = h.astype(BF16)
            if against is not None:
                meeting_s[...] = jnp.sum(h * plgpu.load(more[0], layout=LAYOUT).astype(F32), axis=1)
            plgpu.commit_smem()
            if save:
                plgpu.copy_smem_to_gmem(state_s, saved_g.at[part, head, at])
            if against is not None:
                plgpu.copy_smem_to_gmem(meeting_s, meeting_g.at[part, head, at])
            h = _product(keys.transpose((1, 0)), inputs_s, h * rows[2, CHUNK - 1])
            if queries is not None:  # state_s is still the state before this chunk, and inputs_s is free
                weights = _decays(rows, columns_s, "rows")
                weights = (weights * _product(queries_s, keys.transpose((1, 0)))).astype(BF16)
                y = _product(queries_s, state_s) * _down(load(rows.at[2], ROWS, F32), P)
                inputs_s[...] = _product(weights, values, y).astype(BF16)
                plgpu.commit_smem()
                plgpu.copy_smem_to_gmem(inputs_s, y_g.at[part, pl.ds(at * CHUNK, CHUNK), head])
            return h

        def place(c):
            return chunks - 1 - c if reverse else c

        of_values = _spec(None, CHUNK, None, P, at=lambda c: (part, place(c), head, 0), P=P)
        of_keys = _spec(None, CHUNK, None, N, at=lambda c: (part, place(c), group, 0), P=P)
        specs = [of_values, of_keys, _spec(None, None, None, 4, CHUNK, at=lambda c: (part, head, place(c), 0, 0))]
        if queries is not None:
            specs += [of_keys, _spec(None, None, None, 2, CHUNK, at=lambda c: (part, head, place(c), 0, 0))]
        if against is not None:
            specs += [_spec(None, None, None, N, P, at=lambda c: (part, head, place(c), 0, 0), P=P)]
        first = load(first_g.at[part, head], LAYOUT, F32)
        last = plgpu.emit_pipeline(chunk, grid=(chunks,), in_specs=specs, max_concurrent_steps=2, init_carry=first)(
            *timed
        )
        store(last_g.at[part, head], last)
        plgpu.wait_smem_to_gmem(0)

    shape = jax.ShapeDtypeStruct
    outputs = {
        "saved": shape((parts, H, chunks, N, P), BF16),
        "y": shape(values.shape, BF16),
        "meeting": shape((parts, H, chunks, N), F32),
    }
    found = plgpu.kernel(
        kernel,
        out_type=[shape(first.shape, F32), *(outputs[name] for name, want in wants.items() if want)],
        scratch_types=[
            plgpu.SMEM((N, P), BF16, transforms=_transforms(P)),
            plgpu.SMEM((CHUNK, P), BF16, transforms=_transforms(P)),
            plgpu.SMEM((N,), F32),
        ],
        grid=(parts, H),
        grid_names=("part", "head"),
        compiler_params=plgpu.CompilerParams(approx_math=True),
    )(values, keys, rows, first, *(a for a in (queries, columns, against) if a is not None))
    last, *found = found
    return last, *(found.pop(0) if want else None for want in wants.values())


def _shares(blocks, heads):
    """Into how many blocks the heads of a group are dealt, so that they fill the chip; all have as many."""
    shares = 1
    while shares * blocks < MULTIPROCESSORS and heads % (2 * shares) == 0:
        shares *= 2
    return shares


def _gradients(own, other, own_values, other_values, states, rows, columns, *, values_too=False):
    """dC of what a step reads (own is C, with dy; other is B, with x; states of the forward walk); or with values_too
    dB and dx of what a step writes (own is B, with x; other is C, with dy; states of the walk back).

    Returns the gradient of own [parts, T, G, N] float32; that of own_values, or None; and for each step two numbers
    [parts, H, chunks, 2, CHUNK], its value times its gradient: the part within the chunk, and that through the state.
    """
    parts, time, H, P = own_values.shape
    G, N = own.shape[2:]
    chunks = states.shape[2]
    shares = _shares(parts * chunks * G, H // G)
    heads = H // G // shares
    blocks = range(0, N, CHUNK)  # of the gradient of own: in registers, and on its way out, 64 columns each
    held = N // CHUNK if N <= 128 else 1  # as many as fit beside the rest; others take a second round of the heads

    def kernel(*refs):
        own_g, other_g, own_values_g, other_values_g, states_g, rows_g, columns_g, grad_g, *rest = refs
        dvalues_g = rest.pop(0) if values_too else None
        vectors_g, own_s, other_s, scores_s, dscores_s, dvalues_s, vectors_s, barrier = rest
        part, at, share = (lax.axis_index(name) for name in ("part", "chunk", "share"))
        group, first = lax.div(share, jnp.int32(shares)), share * heads
        steps = pl.ds(at * CHUNK, CHUNK)

        def zeros(columns):
            return plgpu.layout_cast(jnp.zeros((CHUNK, columns), F32), LAYOUT)

        plgpu.copy_gmem_to_smem(own_g.at[part, steps, group], own_s, barrier)
        plgpu.copy_gmem_to_smem(other_g.at[part, steps, group], other_s, barrier)
        plgpu.barrier_wait(barrier)
        store(scores_s, _product(own_s, other_s.transpose((1, 0))))  # for all heads; each thread reads back its own
        store(dscores_s, zeros(CHUNK))

        def onto(grads, values, states, rows):
            """Adds what comes through the state; values in shared memory, as are the blocks of the state."""
            weight = load(rows.at[2], ROWS, F32)
            if values_too:
                weight = weight * load(rows.at[3], ROWS, F32)
            weighted = (plgpu.load(values, layout=LAYOUT).astype(F32) * _down(weight, P)).astype(BF16)
            return [_product(weighted, s.transpose((1, 0)), grad) for grad, s in zip(grads, states, strict=True)]

        def one_head(index, own_values, other_values, state, rows, columns, grads):
            """In an order that leaves few arrays alive at a time."""
            head = first + index[0]
            grads = onto(grads, own_values, [state.at[pl.ds(n, CHUNK)] for n in blocks[:held]], rows)
            plgpu.wait_smem_to_gmem(0, wait_read_only=True)
            decays = _decays(rows, columns, "columns" if values_too else "rows")
            dweights = _product(own_values, other_values.transpose((1, 0))) * decays
            scores = load(scores_s, LAYOUT, F32)
            vectors_s[0] = jnp.sum(dweights * scores, axis=1)
            near = load(rows.at[2], ROWS, F32)
            if values_too:
                step = load(rows.at[3], ROWS, F32)
                dweights = dweights * _down(step, CHUNK)
            store(dscores_s, load(dscores_s, LAYOUT, F32) + dweights)
            if values_too:
                weights = (scores * decays * _down(step, CHUNK)).astype(BF16)
            given = _product(own_s, state)
            vectors_s[1] = jnp.sum(plgpu.load(own_values, layout=LAYOUT).astype(F32) * given, axis=1) * near
            if values_too:
                dvalues_s[...] = _product(weights, other_values, given * _down(near * step, P)).astype(BF16)
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(vectors_s, vectors_g.at[part, head, at])
            if values_too:
                plgpu.copy_smem_to_gmem(dvalues_s, dvalues_g.at[part, steps, head])
            return grads

        of_values = _spec(None, CHUNK, None, P, at=lambda i: (part, at, first + i, 0), P=P)
        of_state = _spec(None, None, None, N, P, at=lambda i: (part, first + i, at, 0, 0), P=P)
        of_rows, of_columns = (
            _spec(None, None, None, a.shape[3], CHUNK, at=lambda i: (part, first + i, at, 0, 0))
            for a in (rows, columns)
        )

        def for_heads(body, specs, start):
            return plgpu.emit_pipeline(body, grid=(heads,), in_specs=specs, max_concurrent_steps=2, init_carry=start)

        grads = for_heads(one_head, [of_values, of_values, of_state, of_rows, of_columns], [zeros(CHUNK)] * held)(
            own_values_g, other_values_g, states_g, rows_g, columns_g
        )
        dscores = load(dscores_s, LAYOUT, F32).astype(BF16)

        def leave(blocks, grads):
            for n, grad in zip(blocks, grads, strict=True):
                store(scores_s, _product(dscores, other_s.at[:, pl.ds(n, CHUNK)], grad))
                plgpu.commit_smem()
                plgpu.copy_smem_to_gmem(scores_s, grad_g.at[part, share, steps, pl.ds(n, CHUNK)])
                plgpu.wait_smem_to_gmem(0)

        leave(blocks[:held], grads)
        if others := blocks[held:]:
            of_blocks = [
                _spec(None, None, None, CHUNK, P, at=lambda i, n=n: (part, first + i, at, n // CHUNK, 0), P=P)
                for n in others
            ]
            grads = for_heads(
                lambda _, values, rows, *more: onto(more[-1], values, more[:-1], rows),
                [of_values, of_rows, *of_blocks],
                [zeros(CHUNK)] * len(others),
            )(own_values_g, rows_g, *[states_g] * len(others))
            leave(others, grads)

    shape = jax.ShapeDtypeStruct
    grad, *dvalues, vectors = plgpu.kernel(
        kernel,
        out_type=[
            shape((parts, G * shares, time, N), F32),
            *([shape(own_values.shape, BF16)] if values_too else []),
            shape((parts, H, chunks, 2, CHUNK), F32),
        ],
        scratch_types=[
            *[plgpu.SMEM((CHUNK, N), BF16, transforms=_transforms(P))] * 2,
            *[plgpu.SMEM((CHUNK, CHUNK), F32)] * 2,
            plgpu.SMEM((CHUNK, P), BF16, transforms=_transforms(P)),
            plgpu.SMEM((2, CHUNK), F32),
            plgpu.Barrier(num_arrivals=2),
        ],
        grid=(parts, chunks, G * shares),
        grid_names=("part", "chunk", "share"),
        compiler_params=plgpu.CompilerParams(approx_math=True),
    )(own, other, own_values, other_values, states, rows, columns)
    grad = grad.reshape(parts, G, shares, time, N).sum(axis=2).swapaxes(1, 2)
    return grad, dvalues[0] if values_too else None, vectors
