"""Caches: kept narrower, in a ring, written a step at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from workbench.config import AttentionConfig, ModelConfig
from workbench.generate import with_cache
from workbench.model.attention import AttentionState, _write_one, kept
from workbench.model.language_model import create

TIME, CAPACITY = 40, 48
RNG = np.random.default_rng(0)
TOKENS = jnp.asarray(RNG.integers(0, 31, (2, TIME)), jnp.int32)
# the second row has another document and ends in padding, which the steps that follow it come upon too
SEGMENTS = jnp.asarray([[1] * TIME, [1] * 9 + [2] * (TIME - 11) + [0] * 2], jnp.int32)
SYMBOLS = {"*": AttentionConfig(heads=4, kv_heads=2), "w": AttentionConfig(heads=4, kv_heads=2, window=12)}


@jax.jit
def run(model, tokens, state, segments):
    return model(tokens, state, segments)


@pytest.mark.parametrize("cache", [pytest.param("bfloat16", marks=pytest.mark.slow), "int8"])
def test_a_sequence_may_be_cut_anywhere_however_its_keys_are_kept(x64, cache):
    """In float64, where rounding does not decide which integer a key becomes."""
    model = with_cache(create(ModelConfig("*w", 16, 31, SYMBOLS, dtype="float64"), 0), cache)
    whole = run(model, TOKENS, model.initial_state(2, CAPACITY), SEGMENTS)
    state, pieces = model.initial_state(2, CAPACITY), []
    for first, end in ((0, 17), (17, 34), *((t, t + 1) for t in range(34, TIME))):
        output = run(model, TOKENS[:, first:end], state, SEGMENTS[:, first:end])
        state = output.state
        pieces.append(output.hidden)
    real = SEGMENTS != 0
    np.testing.assert_allclose(jnp.concatenate(pieces, axis=1)[real], whole.hidden[real], rtol=0, atol=1e-11)
    exact = run(model, TOKENS, None, SEGMENTS).hidden[real]
    assert 1e-6 < np.abs(whole.hidden[real] - exact).max() < 0.1  # rounded, and not by much


def test_a_key_kept_as_int8_is_off_by_half_a_step_of_its_scale_at_most():
    each = jnp.asarray(RNG.standard_normal((2, 3, 5, 8)) * np.exp(RNG.uniform(-9, 9, (2, 3, 5, 1))), jnp.float32)
    each = each.at[0, 0, 0].set(0)
    none = jnp.zeros((2, 3, 5, 8), jnp.int8)
    state = AttentionState(none, none, jnp.zeros((2, 5), jnp.int32), None)
    call = kept(state, each, 2 * each, jnp.ones((2, 5), jnp.int32))
    for name, wanted in (("key", each), ("value", 2 * each)):
        scales = call[f"{name}_scales"][..., None]
        assert call[f"{name}s"].dtype == jnp.int8
        assert np.all(np.abs(call[f"{name}s"] * scales - wanted) <= 0.501 * scales)  # of float32's rounding
        np.testing.assert_allclose(127 * scales[..., 0], np.abs(wanted).max(axis=-1), rtol=1e-6)


@pytest.mark.parametrize("rows", [3, 40], ids=["unrolled", "looped"])
def test_a_step_writes_one_slot_of_each_row_that_stays(rows):
    cache, new = (jnp.asarray(RNG.standard_normal((rows, 2, size, 3))) for size in (5, 1))
    slot, stays = RNG.integers(0, 5, rows), RNG.random(rows) < 0.7
    wanted = np.array(cache)
    for row in np.flatnonzero(stays):
        wanted[row, :, slot[row]] = new[row, :, 0]
    np.testing.assert_array_equal(_write_one(cache, new, jnp.asarray(slot), jnp.asarray(stays)), wanted)
