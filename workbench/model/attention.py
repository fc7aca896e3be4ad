"""Causal attention: grouped queries, rotary on a part of each head or none, a sliding window, a short convolution."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Num
from workbench_kernels import causal_conv1d, platform
from workbench_kernels.mesh import parts

from workbench.config import AttentionConfig
from workbench.model.norm import rms_norm, wide
from workbench.model.product import product
from workbench.model.ring import attend_ring
from workbench.model.where import Where

BLOCK = 128  # queries that are scored at a time in long sequences
KEPT = 1024  # queries up to which the backward pass keeps the scores instead of making them again
KEYS = 1024  # of a longer cache that are looked at together, so that its empty part costs nothing
ROWS = 16  # of a batch whose step is written one by one; more are looped over
UNROLLED = 16  # blocks that are laid out one by one, each over the keys it can see; more are scanned over


class AttentionState(NamedTuple):
    """The keys and values read so far, the document id of each (-1: not written), and the convolution's window.

    Heads come before time: a CPU reads a head's keys of a step five to ten times as fast from one place. Kept as int8,
    a key or value of one head is its integers times its scale.
    """

    keys: Num[Array, "B G S K"]
    values: Num[Array, "B G S K"]
    segments: Int[Array, "B S"]
    window: Float[Array, "B W C"] | None
    key_scales: Float[Array, "B G S"] | None = None
    value_scales: Float[Array, "B G S"] | None = None


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
        q, k, v, window = self.projected(x, state, where)
        if state is None:
            y = attend(q, k, v, where.segments, self.config.window)
        else:
            y, state = self._with_cache(q, k.swapaxes(1, 2), v.swapaxes(1, 2), state._replace(window=window), where)
        bias = self.out_bias[...] if self.config.out_bias else None
        return product(y.reshape(batch, time, -1), self.out[...], bias=bias), state, {}

    def projected(
        self, x: Float[Array, "B T D"], state: AttentionState | None, where: Where
    ) -> tuple[Float[Array, "B T H K"], Float[Array, "B T G K"], Float[Array, "B T G K"], Float[Array, "B W C"] | None]:
        """Queries, keys and values, rotated where they are to be, and the convolution's window after them."""
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
            angles = rotary_angles(
                where.positions,
                int(self.head_dim * self.config.rotary),
                self.config.rotary_base,
                self.config.rotary_scaling,
            )
            q, k = rotate(q, angles), rotate(k, angles)
        return q, k, v, window

    def _with_cache(self, q, k, v, state: AttentionState, where: Where):
        """What the queries read of the cache and of this call's keys, and the state with these in it.

        Keys and values are rounded as they are kept before anything reads them, wherever a sequence is cut.
        """
        time, capacity = q.shape[1], state.keys.shape[2]
        new = where.start[:, None] + jnp.arange(time, dtype=jnp.int32)[None]
        window, call = self.config.window, kept(state, k, v, where.segments)
        if window is None or time == 1:  # a step overwrites the one key of a ring that it does not see
            state = write(state, call, where, ring=window is not None)
            if window is None:
                index = jnp.arange(capacity, dtype=jnp.int32)[None]
            else:
                index = ring_index(where.start + (where.segments[:, 0] != 0), capacity)
            y = attend_cache(q, state, new, where.segments, index, window)
            if window is None:  # a full cache gives no answer, not a wrong one
                y = jnp.where(((new >= capacity) & (where.segments != 0))[..., None, None], jnp.nan, y)
            return y, state
        # the ring may lose keys that this call's first queries still see, so they are read before it is written
        both = {
            name: jnp.concatenate([getattr(state, name), each], axis=1 if name == "segments" else 2)
            for name, each in call.items()
        }
        index = jnp.concatenate([ring_index(where.start, capacity), new], axis=1)
        y = attend_cache(q, state._replace(**both), new, where.segments, index, window)
        return y, write(state, call, where, ring=True)

    def initial_state(self, batch: int, capacity: int, dtype) -> AttentionState:
        capacity = min(capacity, self.config.window or capacity)
        cache = jnp.zeros((batch, self.kv_heads, capacity, self.head_dim), self.config.cache or dtype)
        scales = jnp.zeros(cache.shape[:-1], jnp.float32) if self.config.cache == "int8" else None
        channels = (self.heads + 2 * self.kv_heads) * self.head_dim
        window = jnp.zeros((batch, self.config.conv - 1, channels), dtype) if self.config.conv else None
        return AttentionState(cache, cache, jnp.full((batch, capacity), -1, jnp.int32), window, scales, scales)


def rotary_angles(
    positions: Int[Array, "B T"], size: int, base: float, scaling: tuple[float, ...] = ()
) -> Float[Array, "B T R"]:
    """Angle of each of size/2 rotations at each position.

    scaling: (factor,) divides every frequency (Chen et al. 2023, arXiv:2306.15595). (factor, low, high, length) divides
    those that turn at most `low` times in `length` tokens, keeps those that turn `high` times or more, and goes over
    from one to the other between (Llama 3.1, Dubey et al. 2024, arXiv:2407.21783).
    """
    frequencies = base ** (-jnp.arange(0, size, 2) / size)
    if scaling:
        factor, *band = scaling
        kept = 0.0
        if band:
            low, high, length = band
            kept = jnp.clip((length * frequencies / (2 * jnp.pi) - low) / (high - low), 0, 1)
        frequencies = frequencies * (kept + (1 - kept) / factor)
    return positions[..., None] * frequencies[None, None, :]


def rotate(x: Float[Array, "B T H K"], angles: Float[Array, "#B T R"]) -> Float[Array, "B T H K"]:
    """The first 2R dimensions of each head rotated: dimension i with i + R."""
    pairs = angles.shape[-1]
    cos, sin = (f(angles)[:, :, None, :].astype(x.dtype) for f in (jnp.cos, jnp.sin))
    a, b, rest = jnp.split(x, [pairs, 2 * pairs], axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin, rest], axis=-1)


def kept(state: AttentionState, k: jax.Array, v: jax.Array, segments: Int[Array, "B T"]) -> dict[str, jax.Array]:
    """A call's keys and values as the cache keeps them, and their documents, by the names of the state.

    int8: integers up to 127 times a scale a key or value of each head, rounded to the nearest.
    """
    out = {"segments": segments}
    for name, each in (("key", k), ("value", v)):
        if state.keys.dtype == jnp.int8:
            scales = jnp.abs(each).max(axis=-1).astype(jnp.float32) / 127
            each = jnp.round(wide(each) / jnp.where(scales > 0, scales, 1)[..., None])
            out[f"{name}_scales"] = scales
        out[f"{name}s"] = each.astype(state.keys.dtype)
    return out


def write(state: AttentionState, call: dict[str, jax.Array], where: Where, ring: bool) -> AttentionState:
    """The cache with this call's keys: key i in slot i, or in a ring (a window's cache) in slot i modulo the capacity.

    Padding is not written, nor is a key past the capacity, or one that a later one of the same call would overwrite.
    """
    time, capacity = where.segments.shape[1], state.keys.shape[2]
    index = where.start[:, None] + jnp.arange(time, dtype=jnp.int32)[None]
    real = where.segments != 0
    end = where.start[:, None] + real.sum(axis=1, keepdims=True, dtype=jnp.int32)
    stays = real & (index >= end - capacity if ring else index < capacity)
    if time == 1 and platform() == "cpu":
        written = {
            name: _write_one(getattr(state, name), each, index[:, 0] % capacity, stays[:, 0])
            for name, each in call.items()
        }
        # else what reads the cache writes it once more for itself, and neither can do so in place
        return state._replace(**jax.lax.optimization_barrier(written))
    slot = jnp.where(stays, index % capacity, capacity)  # out of range: dropped
    put = lambda cache, at, values: cache.at[at].set(values, mode="drop")  # noqa: E731
    each_head = jax.vmap(jax.vmap(put, (0, None, 0)))
    return state._replace(
        **{name: (jax.vmap(put) if name == "segments" else each_head)(getattr(state, name), slot, each)
           for name, each in call.items()}
    )  # fmt: skip


def _write_one(cache: jax.Array, new: jax.Array, slot: Int[Array, " B"], stays: Bool[Array, " B"]) -> jax.Array:
    """The cache, [B, S] or [B, G, S, ...], with one step of each row that stays.

    Row by row: a CPU writes each in place, and makes a loop over rows and heads of a scatter.
    """
    axis, slot = min(cache.ndim - 1, 2), slot.astype(jnp.int32)

    def row(i, cache):
        at = [jnp.int32(0)] * cache.ndim
        at[0], at[axis] = jnp.int32(i), slot[i]
        one = jax.lax.dynamic_slice_in_dim(new, i, 1)
        one = jnp.where(stays[i], one, jax.lax.dynamic_slice(cache, at, one.shape))
        return jax.lax.dynamic_update_slice(cache, one, at)

    return jax.lax.fori_loop(0, len(slot), row, cache, unroll=min(len(slot), ROWS))


def ring_index(length: Int[Array, " B"], capacity: int) -> Int[Array, "B S"]:
    """Which key each slot of a ring holds after `length` keys; negative where it holds none."""
    last = length[:, None] - 1
    return last - (last - jnp.arange(capacity, dtype=jnp.int32)[None]) % capacity


def attend(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T G K"],
    v: Float[Array, "B T G K"],
    segments: Int[Array, "B T"] | None,
    window: int | None,
) -> Float[Array, "B T H K"]:
    """Causal softmax attention of a sequence to itself, within its documents and the window.

    Sums in float32 or wider. Long sequences are scored in blocks of queries, so that memory grows with T, not with T^2.
    """
    batch, time, heads, size = q.shape
    q = q.reshape(batch, time, k.shape[2], heads // k.shape[2], size) * size**-0.5
    index = jnp.arange(time, dtype=jnp.int32)[None]
    block = partial(_attend_block, window=window)
    if parts("T", time) > 1:
        y = attend_ring(_attend_part, q, k, v, segments, window)
    elif time <= BLOCK:
        y = block(q, index, segments, k, v, index, segments)
    elif time <= UNROLLED * BLOCK:
        cut = lambda low, end, *arrays: [None if a is None else a[:, low:end] for a in arrays]  # noqa: E731
        again = jax.checkpoint if time > KEPT else lambda block: block
        pieces = []
        for first in range(0, time, BLOCK):
            end = min(first + BLOCK, time)
            low = 0 if window is None else max(first - window + 1, 0)
            queries = cut(first, end, q, index, segments)
            pieces.append(again(block)(*queries, *cut(low, end, k, v, index, segments)))
        y = jnp.concatenate(pieces, axis=1)
    else:
        keys = (k, v, index, segments)
        seen_at_once = time if window is None else window - 1 + BLOCK
        if seen_at_once < time:  # a block sees its own keys and those of a window before it
            back = [(0, 0), (window - 1, -time % BLOCK)]
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

        _, y = jax.lax.scan(body, 0, tuple(None if a is None else _in_blocks(a) for a in (q, index, segments)))
        y = _out_of_blocks(y, time)
    return y.reshape(batch, time, heads, size)


def attend_cache(
    q: Float[Array, "B T H K"],
    cache: AttentionState,
    query_index: Int[Array, "B T"],
    query_segments: Int[Array, "B T"],
    key_index: Int[Array, "#B S"],
    window: int | None,
) -> Float[Array, "B T H K"]:
    """Softmax attention to a cache: a query sees keys of its document up to its own index, within the window.

    An index below 0 is no key. Without a window key s has index s, and chunks read a long cache as far as it is needed;
    a single query, whose scores are few, reads all of it: a loop over parts takes two to five times as long.
    """
    batch, time, heads, size = q.shape
    q = q.reshape(batch, time, cache.keys.shape[1], heads // cache.keys.shape[1], size) * size**-0.5
    whole = time == 1 or window is not None or cache.keys.shape[2] <= KEYS
    look = partial(_attend_part, window=window) if whole else _attend_filled
    kept = (cache.keys, cache.values, key_index, cache.segments, cache.key_scales, cache.value_scales)

    def block(q, query_index, query_segments):
        read, total, _ = look(q, query_index, query_segments, *kept)
        return (read / total).astype(q.dtype).transpose(0, 3, 1, 2, 4)

    queries = (q, query_index, query_segments)
    if time <= BLOCK:
        y = block(*queries)
    else:
        y = _out_of_blocks(jax.lax.map(lambda each: block(*each), tuple(map(_in_blocks, queries))), time)
    return y.reshape(batch, time, heads, size)


def _in_blocks(a: Array) -> Array:
    """[B, T, ...] in blocks of queries, the last filled up: [T / BLOCK, B, BLOCK, ...]."""
    blocks = -(-a.shape[1] // BLOCK)
    a = jnp.pad(a, [(0, 0), (0, blocks * BLOCK - a.shape[1])] + [(0, 0)] * (a.ndim - 2))
    return jnp.moveaxis(a.reshape(a.shape[0], blocks, BLOCK, *a.shape[2:]), 1, 0)


def _out_of_blocks(a: Array, time: int) -> Array:
    a = jnp.moveaxis(a, 0, 1)
    return a.reshape(a.shape[0], -1, *a.shape[3:])[:, :time]


def _attend_block(q, query_index, query_segments, k, v, key_index, key_segments, *, window):
    """Some queries against some keys of their own sequence, all scores at once."""
    k, v = (a.swapaxes(1, 2) for a in (k, v))
    read, total, _ = _attend_part(q, query_index, query_segments, k, v, key_index, key_segments, window=window)
    return (read / total).astype(v.dtype).transpose(0, 3, 1, 2, 4)


def _attend_filled(q, query_index, query_segments, keys, values, key_index, key_segments, key_scales, value_scales):
    """Some queries against a long cache, KEYS keys at a time: those past the last query's own are not looked at."""
    needed, last = query_index.max() + 1, keys.shape[2] - KEYS

    def look(carry, first):
        at = jnp.minimum(first, last)  # the last piece reaches back over keys that were looked at before
        cut = lambda a, axis: None if a is None else jax.lax.dynamic_slice_in_dim(a, at, KEYS, axis)  # noqa: E731
        index = cut(key_index, 1)
        index = jnp.where(index >= first, index, -1)
        seen = (cut(keys, 2), cut(values, 2), index, cut(key_segments, 1), cut(key_scales, 2), cut(value_scales, 2))
        part = _attend_part(q, query_index, query_segments, *seen, window=None)
        highest = jnp.maximum(carry[2], part[2])
        before, now = jnp.exp(carry[2] - highest), jnp.exp(part[2] - highest)
        return carry[0] * before + part[0] * now, carry[1] * before + part[1] * now, highest

    def step(carry, first):
        return jax.lax.cond(first < needed, look, lambda carry, first: carry, carry, first), None

    batch, time, groups, repeats, size = q.shape
    shape, dtype = (batch, groups, repeats, time), wide(q).dtype
    nothing = (jnp.zeros((*shape, size), dtype), jnp.zeros((*shape, 1), dtype), jnp.full((*shape, 1), -1e30, dtype))
    return jax.lax.scan(step, nothing, jnp.arange(0, keys.shape[2], KEYS, dtype=jnp.int32))[0]


def _attend_part(
    q, query_index, query_segments, k, v, key_index, key_segments, key_scales=None, value_scales=None, *, window
):
    """What queries [B, T, G, R, K] read from keys [B, G, S, K], the sum of its weights, and the score these are above.

    Heads come before time, which is twice as fast on a CPU. There, a single query's weights are summed rather than
    multiplied as matrices, and so are its scores of keys that are kept narrower: converted as they are read.
    """
    narrow = k.dtype != q.dtype
    k, v = (a.astype(q.dtype) for a in (k, v))
    query, key = query_index[:, :, None], key_index[:, None, :]
    seen = (key <= query) & (key >= 0)
    if window is not None:
        seen &= query - key < window
    if query_segments is not None:
        seen &= query_segments[:, :, None] == key_segments[:, None, :]
    q = q.transpose(0, 2, 3, 1, 4)
    single = q.shape[3] == 1 and platform() == "cpu"
    if single and narrow:
        scores = jnp.sum(wide(k)[:, :, None] * wide(q), axis=-1)[:, :, :, None]
    elif single:  # keys first, so that they are read row by row, once for all queries of a group
        scores = jnp.einsum("BGSK,BGRTK->BGSRT", k, q, preferred_element_type=wide(q).dtype).transpose(0, 1, 3, 4, 2)
    else:
        scores = jnp.einsum("BGRTK,BGSK->BGRTS", q, k, preferred_element_type=wide(q).dtype)
    if key_scales is not None:
        scores = scores * key_scales[:, :, None, None]
    scores = jnp.where(seen[:, None, None], scores, -1e30)  # finite: a query of padding sees nothing and is no NaN
    highest = jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True))
    weights = jnp.exp(scores - highest)
    total = weights.sum(axis=-1, keepdims=True)  # divides what was read, which has fewer elements than the weights
    if value_scales is not None:
        weights = weights * value_scales[:, :, None, None]
    if single:
        read = jnp.sum(weights[:, :, :, 0, :, None] * wide(v)[:, :, None], axis=-2)[:, :, :, None]
    else:
        read = jnp.einsum("BGRTS,BGSK->BGRTK", weights.astype(v.dtype), v, preferred_element_type=total.dtype)
    return read, total, highest
