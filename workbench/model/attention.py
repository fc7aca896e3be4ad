"""Causal attention: grouped queries, rotary on a part of each head or none, a sliding window, a short convolution."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int
from workbench_kernels import causal_conv1d

from workbench.config import AttentionConfig
from workbench.model.norm import rms_norm, wide
from workbench.model.product import product
from workbench.model.where import Where

BLOCK = 128  # queries that are scored at a time in long sequences
KEPT = 1024  # queries up to which the backward pass keeps the scores instead of making them again
KEYS = 1024  # of a longer cache that are looked at together, so that its empty part costs nothing
UNROLLED = 16  # blocks that are laid out one by one, each over the keys it can see; more are scanned over


class AttentionState(NamedTuple):
    """The keys and values read so far, the document id of each (-1: not written), and the convolution's window."""

    keys: Float[Array, "B S G K"]
    values: Float[Array, "B S G K"]
    segments: Int[Array, "B S"]
    window: Float[Array, "B W C"] | None


class Attention(nnx.Module):
    """Vaswani et al. 2017 with rotary positions (Su et al. 2021, arXiv:2104.09864), pairs half a rotation apart."""

    def __init__(self, config: AttentionConfig, width: int, make):
        heads, kv_heads, head_dim = config.sizes(width)
        self.config, self.heads, self.kv_heads, self.head_dim = config, heads, kv_heads, head_dim
        self.qkv = make("attention.qkv", (width, (heads + 2 * kv_heads) * head_dim))
        self.out = make("attention.out", (heads * head_dim, width))
        if config.conv:
            self.conv = make("attention.conv", ((heads + 2 * kv_heads) * head_dim, config.conv))
            self.conv_bias = make("attention.conv_bias", ((heads + 2 * kv_heads) * head_dim,))
        if config.qkv_bias:
            self.qkv_bias = make("attention.qkv_bias", ((heads + 2 * kv_heads) * head_dim,))
        if config.out_bias:
            self.out_bias = make("attention.out_bias", (width,))
        if config.qk_norm:
            self.q_norm_scale = make("attention.q_norm_scale", (head_dim,))
            self.k_norm_scale = make("attention.k_norm_scale", (head_dim,))

    def __call__(
        self, x: Float[Array, "B T D"], state: AttentionState | None, where: Where
    ) -> tuple[Float[Array, "B T D"], AttentionState | None, dict]:
        batch, time, _ = x.shape
        qkv = product(x, self.qkv[...], bias=self.qkv_bias[...] if self.config.qkv_bias else None)
        window = None
        if self.config.conv:
            qkv, window = causal_conv1d(
                qkv,
                self.conv[...].astype(x.dtype),
                self.conv_bias[...].astype(x.dtype),
                None if state is None else state.window,
                where.segments,
                where.carried,
            )
        qkv = qkv.reshape(batch, time, -1, self.head_dim)
        q, k, v = jnp.split(qkv, [self.heads, self.heads + self.kv_heads], axis=2)
        if self.config.qk_norm:
            q, k = (
                rms_norm(each, scale[...], epsilon=self.config.norm_epsilon)
                for each, scale in ((q, self.q_norm_scale), (k, self.k_norm_scale))
            )
        if self.config.rotary:
            angles = rotary_angles(where.positions, int(self.head_dim * self.config.rotary), self.config.rotary_base)
            q, k = rotate(q, angles), rotate(k, angles)
        if state is None:
            y = attend(q, k, v, where.segments, where.segments, self.config.window)
        elif self.config.window is None:
            state = write(state, k, v, where, ring=False)._replace(window=window)
            index = jnp.arange(state.keys.shape[1], dtype=jnp.int32)[None]
            y = attend(q, state.keys, state.values, where.segments, state.segments, None, where.start, index)
            place = where.start[:, None] + jnp.arange(time, dtype=jnp.int32)[None]
            lost = (place >= state.keys.shape[1]) & (where.segments != 0)
            y = jnp.where(lost[..., None, None], jnp.nan, y)  # a full cache gives no answer, rather than a wrong one
        else:  # the ring may lose keys that this call's first queries still see, so they are read before it is written
            join = lambda old, new: jnp.concatenate([old, new.astype(old.dtype)], axis=1)  # noqa: E731
            new = where.start[:, None] + jnp.arange(time, dtype=jnp.int32)[None]
            index = join(ring_index(where.start, state.keys.shape[1]), new)
            keys, values, ids = join(state.keys, k), join(state.values, v), join(state.segments, where.segments)
            y = attend(q, keys, values, where.segments, ids, self.config.window, where.start, index)
            state = write(state, k, v, where, ring=True)._replace(window=window)
        bias = self.out_bias[...] if self.config.out_bias else None
        return product(y.reshape(batch, time, -1), self.out[...], bias=bias), state, {}

    def initial_state(self, batch: int, capacity: int, dtype) -> AttentionState:
        capacity = min(capacity, self.config.window or capacity)
        cache = jnp.zeros((batch, capacity, self.kv_heads, self.head_dim), dtype)
        channels = (self.heads + 2 * self.kv_heads) * self.head_dim
        window = jnp.zeros((batch, self.config.conv - 1, channels), dtype) if self.config.conv else None
        return AttentionState(cache, cache, jnp.full((batch, capacity), -1, jnp.int32), window)


def rotary_angles(positions: Int[Array, "B T"], size: int, base: float) -> Float[Array, "B T R"]:
    """Angle of each of size/2 rotations at each position."""
    frequencies = base ** (-jnp.arange(0, size, 2) / size)
    return positions[..., None] * frequencies[None, None, :]


def rotate(x: Float[Array, "B T H K"], angles: Float[Array, "#B T R"]) -> Float[Array, "B T H K"]:
    """The first 2R dimensions of each head rotated: dimension i with i + R."""
    pairs = angles.shape[-1]
    cos, sin = (f(angles)[:, :, None, :].astype(x.dtype) for f in (jnp.cos, jnp.sin))
    a, b, rest = jnp.split(x, [pairs, 2 * pairs], axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin, rest], axis=-1)


def write(state: AttentionState, k: jax.Array, v: jax.Array, where: Where, ring: bool) -> AttentionState:
    """The cache with this call's keys: key i in slot i, or in a ring (a window's cache) in slot i modulo the capacity.

    Padding is not written, nor is a key past the capacity, or one that a later one of the same call would overwrite.
    """
    time, capacity = k.shape[1], state.keys.shape[1]
    index = where.start[:, None] + jnp.arange(time, dtype=jnp.int32)[None]
    real = where.segments != 0
    end = where.start[:, None] + real.sum(axis=1, keepdims=True, dtype=jnp.int32)
    stays = index >= end - capacity if ring else index < capacity
    slot = jnp.where(real & stays, index % capacity, capacity)  # out of range: dropped
    put = jax.vmap(lambda cache, at, values: cache.at[at].set(values.astype(cache.dtype), mode="drop"))
    return state._replace(
        keys=put(state.keys, slot, k),
        values=put(state.values, slot, v),
        segments=put(state.segments, slot, where.segments),
    )


def ring_index(length: Int[Array, " B"], capacity: int) -> Int[Array, "B S"]:
    """Which key each slot of a ring holds after `length` keys; negative where it holds none."""
    last = length[:, None] - 1
    return last - (last - jnp.arange(capacity, dtype=jnp.int32)[None]) % capacity


def attend(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B S G K"],
    v: Float[Array, "B S G K"],
    query_segments: Int[Array, "B T"] | None,
    key_segments: Int[Array, "B S"] | None,
    window: int | None,
    start: Int[Array, " B"] | None = None,
    key_index: Int[Array, "#B S"] | None = None,
) -> Float[Array, "B T H K"]:
    """Softmax attention; a query sees keys up to its own index, of its own document, within the window.

    Query t has index start + t (t without a start), key s has key_index[s] (s by default). Sums in float32 or wider.
    Long sequences are scored in blocks of queries, so that memory grows with S and not with T S.
    """
    batch, time, heads, size = q.shape
    q = q.reshape(batch, time, k.shape[2], heads // k.shape[2], size) * size**-0.5
    query_index = jnp.arange(time, dtype=jnp.int32)[None] + (0 if start is None else start[:, None])
    plain = key_index is None  # keys are the queries' own: a block needs no key behind its last query
    if plain:
        key_index = jnp.arange(k.shape[1], dtype=jnp.int32)[None]
    block = partial(_attend_block, window=window)
    if not plain and window is None and k.shape[1] > KEYS:
        block = _attend_filled
    if time <= BLOCK:
        y = block(q, query_index, query_segments, k, v, key_index, key_segments)
    elif time <= UNROLLED * BLOCK and plain:
        cut = lambda low, end, *arrays: [None if a is None else a[:, low:end] for a in arrays]  # noqa: E731
        again = jax.checkpoint if time > KEPT else lambda block: block
        pieces = []
        for first in range(0, time, BLOCK):
            end = min(first + BLOCK, time)
            low = 0 if window is None else max(first - window + 1, 0)
            queries = cut(first, end, q, query_index, query_segments)
            pieces.append(again(block)(*queries, *cut(low, end, k, v, key_index, key_segments)))
        y = jnp.concatenate(pieces, axis=1)
    else:
        blocks = -(-time // BLOCK)

        def split(a):
            a = jnp.pad(a, [(0, 0), (0, blocks * BLOCK - time)] + [(0, 0)] * (a.ndim - 2))
            return jnp.moveaxis(a.reshape(a.shape[0], blocks, BLOCK, *a.shape[2:]), 1, 0)

        keys = (k, v, key_index, key_segments)
        seen_at_once = k.shape[1] if window is None or not plain else window - 1 + BLOCK
        if seen_at_once < time:  # a block sees its own keys and those of a window before it
            back = [(0, 0), (window - 1, blocks * BLOCK - time)]
            fills = (0, 0, -1, 0)  # an index below 0 is no key
            keys = [
                None if a is None else jnp.pad(a, back + [(0, 0)] * (a.ndim - 2), constant_values=fill)
                for a, fill in zip(keys, fills, strict=True)
            ]

        def body(first, queries):
            seen = keys
            if seen_at_once < time:
                cut = partial(jax.lax.dynamic_slice_in_dim, start_index=first, slice_size=seen_at_once, axis=1)
                seen = [None if a is None else cut(a) for a in keys]
            return first + BLOCK, jax.checkpoint(block)(*queries, *seen)

        segments = None if query_segments is None else split(query_segments)
        _, y = jax.lax.scan(body, 0, (split(q), split(query_index), segments))
        y = jnp.moveaxis(y, 0, 1).reshape(batch, blocks * BLOCK, *q.shape[2:])[:, :time]
    return y.reshape(batch, time, heads, size)


def _attend_block(q, query_index, query_segments, k, v, key_index, key_segments, *, window):
    """Some queries against some keys, all scores at once."""
    read, total, _ = _attend_part(q, query_index, query_segments, k, v, key_index, key_segments, window)
    return (read / total).astype(v.dtype).transpose(0, 3, 1, 2, 4)


def _attend_filled(q, query_index, query_segments, k, v, key_index, key_segments):
    """Some queries against a long cache, KEYS keys at a time: those past the last query's own are not looked at."""
    needed, last = query_index.max() + 1, k.shape[1] - KEYS

    def look(carry, first):
        at = jnp.minimum(first, last)  # the last piece reaches back over keys that were looked at before
        cut = partial(jax.lax.dynamic_slice_in_dim, start_index=at, slice_size=KEYS, axis=1)
        index = cut(key_index)
        index = jnp.where(at + jnp.arange(KEYS, dtype=jnp.int32)[None] >= first, index, -1)
        keys, values, segments = cut(k), cut(v), cut(key_segments)
        part = _attend_part(q, query_index, query_segments, keys, values, index, segments, None)
        highest = jnp.maximum(carry[2], part[2])
        before, now = jnp.exp(carry[2] - highest), jnp.exp(part[2] - highest)
        return carry[0] * before + part[0] * now, carry[1] * before + part[1] * now, highest

    def step(carry, first):
        return jax.lax.cond(first < needed, look, lambda carry, first: carry, carry, first), None

    batch, time, groups, repeats, size = q.shape
    shape, dtype = (batch, groups, repeats, time), wide(q).dtype
    nothing = (jnp.zeros((*shape, size), dtype), jnp.zeros((*shape, 1), dtype), jnp.full((*shape, 1), -1e30, dtype))
    (read, total, _), _ = jax.lax.scan(step, nothing, jnp.arange(0, k.shape[1], KEYS, dtype=jnp.int32))
    return (read / total).astype(v.dtype).transpose(0, 3, 1, 2, 4)


def _attend_part(q, query_index, query_segments, k, v, key_index, key_segments, window):
    """What the queries read from some keys, the sum of its weights, and the score that these are relative to."""
    query, key = query_index[:, :, None], key_index[:, None, :]
    seen = (key <= query) & (key >= 0)
    if window is not None:
        seen &= query - key < window
    if query_segments is not None:
        seen &= query_segments[:, :, None] == key_segments[:, None, :]
    q, (k, v) = q.transpose(0, 2, 3, 1, 4), (a.swapaxes(1, 2) for a in (k, v))  # time beside K: twice as fast on a CPU
    scores = jnp.einsum("BGRTK,BGSK->BGRTS", q, k, preferred_element_type=wide(q).dtype)
    scores = jnp.where(seen[:, None, None], scores, -1e30)  # finite: a query of padding sees nothing and is no NaN
    highest = jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True))
    weights = jnp.exp(scores - highest)
    total = weights.sum(axis=-1, keepdims=True)  # divides what was read, which has fewer elements than the weights
    read = jnp.einsum("BGRTS,BGSK->BGRTK", weights.astype(v.dtype), v, preferred_element_type=total.dtype)
    return read, total, highest
