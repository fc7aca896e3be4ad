"""Attention of sequences whose parts are on several devices: keys and values go round them in a ring.

Liu et al. 2023, arXiv:2310.01889. Gathering the keys would be shorter, and every device would hold those of the whole
sequence; here it holds its own and those that visit, and exchanges them while it computes. Parts are contiguous, as
the recurrent layers need them, so the device of the last part has the most to do and the others wait for it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
from workbench_kernels.mesh import on_each_device

from workbench.model.norm import wide

BLOCK = 128  # queries that are scored at a time


def attend_ring(
    part: Callable,
    q: Float[Array, "B T G R K"],
    k: Float[Array, "B T G K"],
    v: Float[Array, "B T G K"],
    segments: Int[Array, "B T"] | None,
    window: int | None,
) -> Float[Array, "B T G R K"]:
    """Causal softmax attention under a mesh that divides T over its axis `sequence`. q is scaled.

    part(q, query index, query segments, k, v, key index, key segments, window=) gives what queries [B, T, G, R, K] read
    of keys and values [B, G, S, K], not divided yet, as [B, G, R, T, K]; the sum of its weights, and the score that
    these are above, [B, G, R, T, 1].
    """
    arguments, axes = (q, k, v, segments), ("BTGRK", "BTGK", "BTGK", "BT")
    (y,) = on_each_device(partial(_attend, part, window), arguments, axes, ("BTGRK",))
    return y


def _attend(part, window, q, k, v, segments):
    return (_own(part, window, q, k, v, segments),)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _own(part, window, q, k, v, segments):
    """What this device's queries read of all keys."""
    return _forward(part, window, q, k, v, segments)[0]


def _forward(part, window, q, k, v, segments):
    """Saves what each query read and the logarithm of its weights' sum, and nothing else that was not given."""
    # Who sees whom hangs on no weight. Tied to the queries it is made where it is needed; else JAX takes it out of the
    # scan over layers, and holds the masks of all visits and blocks at once, broadcast over heads.
    q, segments, place = jax.lax.optimization_barrier((q, segments, jax.lax.axis_index("sequence")))
    visits, index, unseen = _round(q.shape[1], window, place)
    queries = _blocks((q, index(0), segments))

    def look(read, visitors, key_index):
        def block(given):
            own, (read, total, highest) = given
            new, more, other = part(*own, *visitors[:2], key_index, visitors[2], window=window)
            top = jnp.maximum(highest, other)
            before, now = jnp.exp(highest - top), jnp.exp(other - top)
            return read * before + new * now, total * before + more * now, top

        return jax.lax.map(block, (queries, read))

    def visit(carry, step):
        read, visitors = carry
        read = jax.lax.cond(unseen(step), lambda read, *_: read, look, read, visitors, index(step))
        return (read, _pass_on(visitors)), None

    blocks, batch, time, groups, repeats, size = queries[0].shape
    shape, dtype = (blocks, batch, groups, repeats, time), wide(q).dtype
    nothing = (jnp.zeros((*shape, size), dtype), jnp.zeros((*shape, 1), dtype), jnp.full((*shape, 1), -1e30, dtype))
    (read, _), _ = jax.lax.scan(visit, (nothing, (k.swapaxes(1, 2), v.swapaxes(1, 2), segments)), visits)
    read, total, highest = read
    y = _joined((read / total).astype(v.dtype).transpose(0, 1, 4, 2, 3, 5), q.shape[1])
    return y, (q, k, v, segments, y, highest + jnp.log(total))


def _backward(part, window, saved, dy):
    """Keys go round once more, and their gradients with them; with dy . y, each visit's weights need no other's."""
    q, k, v, segments, y, log_total = saved
    visits, index, unseen = _round(q.shape[1], window, jax.lax.axis_index("sequence"))
    queries = _blocks((q, index(0), segments))
    dread = _blocks(wide(dy)).transpose(0, 1, 3, 4, 2, 5)
    dtotal = -jnp.sum(dread * _blocks(wide(y)).transpose(0, 1, 3, 4, 2, 5), axis=-1, keepdims=True)

    def look(dq, dkeys, visitors, key_index):
        def block(dkeys, given):
            (q, query_index, query_segments), log_total, dread, dtotal = given

            def read(q, k, v):
                *sums, highest = part(q, query_index, query_segments, k, v, key_index, visitors[2], window=window)
                return sums, highest

            _, pull_back, highest = jax.vjp(read, q, *visitors[:2], has_aux=True)
            share = jnp.exp(highest - log_total)
            dq, *more = pull_back([dread * share, dtotal * share])
            return jax.tree.map(jnp.add, dkeys, tuple(map(wide, more))), wide(dq)

        dkeys, more = jax.lax.scan(block, dkeys, (queries, log_total, dread, dtotal))
        return dq + more, dkeys

    def visit(carry, step):
        dq, dkeys, visitors = carry
        dq, dkeys = jax.lax.cond(unseen(step), lambda *same: same[:2], look, dq, dkeys, visitors, index(step))
        return (dq, *_pass_on((dkeys, visitors))), None

    keys = k.swapaxes(1, 2), v.swapaxes(1, 2)
    nothing = jax.tree.map(lambda a: jnp.zeros(a.shape, wide(a).dtype), (queries[0], keys))
    (dq, dkeys, _), _ = jax.lax.scan(visit, (*nothing, (*keys, segments)), visits)
    dk, dv = _pass_on(dkeys, -len(visits))  # home
    return *(a.astype(q.dtype) for a in (_joined(dq, q.shape[1]), dk.swapaxes(1, 2), dv.swapaxes(1, 2))), None


_own.defvjp(_forward, _backward)


def _round(time: int, window: int | None, place: jax.Array):
    """Steps 0, 1, ... in which the keys of the part 0, 1, ... before a device's own visit it; their index; and whether
    they come after its queries. With a window, farther parts are not asked.
    """
    devices = jax.lax.axis_size("sequence")
    near = devices if window is None else min(devices, 1 - (1 - window) // time)
    index = lambda step: ((place - step) * time + jnp.arange(time, dtype=jnp.int32))[None]  # noqa: E731
    return jnp.arange(near, dtype=jnp.int32), index, lambda step: place < step


def _pass_on(tree, places: int = 1):
    """Each device's arrays to the next of the ring."""
    devices = jax.lax.axis_size("sequence")
    ring = [(i, (i + places) % devices) for i in range(devices)]
    return jax.tree.map(lambda a: jax.lax.ppermute(a, "sequence", ring), tree)


def _blocks(tree):
    """Each [B, T, ...] in blocks of time, the last filled up with zeros: [T / BLOCK, B, BLOCK, ...]."""

    def cut(a):
        block = min(BLOCK, a.shape[1])
        a = jnp.pad(a, [(0, 0), (0, -a.shape[1] % block)] + [(0, 0)] * (a.ndim - 2))
        return jnp.moveaxis(a.reshape(a.shape[0], -1, block, *a.shape[2:]), 1, 0)

    return jax.tree.map(cut, tree)


def _joined(a: jax.Array, time: int) -> jax.Array:
    """What _blocks cut, together again."""
    a = jnp.moveaxis(a, 0, 1)
    return a.reshape(a.shape[0], -1, *a.shape[3:])[:, :time]
