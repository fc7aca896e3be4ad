"""What all three operations promise about time, documents and states."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

OPERATIONS = ("selective_scan", "ssd", "causal_conv1d")
SCANS = ("selective_scan", "ssd")
each_operation = pytest.mark.parametrize("operation", OPERATIONS)


def assert_close(got, want, tolerance):
    """Equal to `tolerance` of the largest value wanted (at least 1), in every array of two trees."""
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert g.shape == w.shape
        g, w = np.asarray(g, np.float64), np.asarray(w, np.float64)
        assert np.all(np.isfinite(g))
        np.testing.assert_allclose(g, w, rtol=0, atol=tolerance * max(1, np.abs(w).max(initial=0)))


def documents(time):
    """Rows with documents that end anywhere, an id that comes back, one token alone, and padding."""
    cut = time // 3
    first = [7] * cut + [2] * (time - 2 * cut) + [7] * cut
    second = [5] + [9] * (time - 1 - cut) + [0] * cut if time > 1 else [0]
    return jnp.asarray([first, second], jnp.int32)


def outputs_and_gradients(case, segments, initial_segment, implementation, **options):
    """y, the last state, and the gradients of a random weighting of both in every input and the first state."""
    weigh = np.random.default_rng(1)

    def loss(timed, fixed, state):
        again = type(case)(case.operation, timed, fixed, state)
        y, last = again.call(timed, state, segments, initial_segment, implementation=implementation, **options)
        total = sum(jnp.sum(a * jnp.asarray(weigh.standard_normal(a.shape))) for a in (y, last))
        return total, (y, last)

    both = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))
    return both(case.timed, case.fixed, case.state)


def assert_forms_agree(case, segments, initial_segment, **options):
    got = outputs_and_gradients(case, segments, initial_segment, "xla", **options)
    want = outputs_and_gradients(case, segments, initial_segment, "reference")
    assert_close(got, want, 1e-12)


@pytest.mark.parametrize("time", [1, 63])
@each_operation
def test_forms_agree_in_output_state_and_gradients(x64, make, operation, time):
    assert_forms_agree(make(operation, 2, time), documents(time), jnp.asarray([7, 4]))


@pytest.mark.slow
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("N", [4, 16, 64, 128])
@pytest.mark.parametrize("time", [1, 63, 128, 500])
@pytest.mark.parametrize("operation", SCANS)
def test_forms_agree_at_every_size(x64, make, operation, time, N, packed):
    chunk = {"selective_scan": 8, "ssd": 64}[operation]
    assert_forms_agree(make(operation, 2, time, N), documents(time) if packed else None, None, chunk=chunk)


@pytest.mark.slow
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("time", [2, 128, 500])
def test_convolution_forms_agree_at_every_length(x64, make, time, packed):
    assert_forms_agree(make("causal_conv1d", 2, time), documents(time) if packed else None, None)


@pytest.mark.parametrize("cut", [5, 8], ids=["inside_a_document", "at_a_boundary"])
@each_operation
def test_cutting_and_resuming_equals_one_run(x64, make, operation, cut):
    case, segments = make(operation, 2, 13), jnp.asarray([[3] * 8 + [1] * 5, [2] * 8 + [2] * 2 + [6] * 3])
    y, last = case(segments)
    head, state = case.rows(0, cut)(segments[:, :cut])
    tail, state = case.rows(cut, 13)(segments[:, cut:], segments[:, cut - 1], state=state)
    assert_close((jnp.concatenate([head, tail], axis=1), state), (y, last), 1e-12)


@each_operation
def test_packed_documents_equal_documents_alone_in_float64(x64, make, operation):
    assert_packed_equals_alone(make(operation, 1, 26), 1e-12)


@each_operation
def test_packed_documents_equal_documents_alone_in_float32(make, operation):
    assert_packed_equals_alone(make(operation, 1, 26), 1e-5)


def assert_packed_equals_alone(case, tolerance):
    segments = jnp.asarray([[4] * 11 + [9] * 11 + [0] * 4])
    y, last = case(segments, state=None)
    alone = {name: a[0, :22].reshape(2, 11, *a.shape[2:]) for name, a in case.timed.items()}
    alone_y, alone_last = type(case)(case.operation, alone, case.fixed, case.state)(state=None)
    assert_close(y[0, :22], alone_y.reshape(22, *y.shape[2:]), tolerance)
    assert_close(last, alone_last[1:], tolerance)


@each_operation
def test_no_time_passes_in_padding(x64, make, operation):
    case, segments = make(operation, 3, 9), jnp.asarray([[1] * 9, [1] * 4 + [0] * 5, [0] * 9])
    y, last = case(segments)
    short_y, short_last = case.rows(0, 4, slice(1, 2))()
    assert_close((y[1, :4], last[1]), (short_y[0], short_last[0]), 1e-12)
    assert np.all(np.asarray(y)[np.asarray(segments) == 0] == 0)
    assert np.array_equal(last[2], case.state[2])


@each_operation
def test_a_state_of_another_document_is_not_carried_in(x64, make, operation):
    case, segments = make(operation, 2, 5), jnp.asarray([[3] * 5, [4] * 5])
    y, last = case(segments, jnp.asarray([3, 3]))
    carried, zero = case(), case(state=None)
    assert_close((y[0], last[0]), (carried[0][0], carried[1][0]), 1e-12)
    assert_close((y[1], last[1]), (zero[0][1], zero[1][1]), 1e-12)


@each_operation
def test_a_state_belongs_to_the_first_document_unless_told(x64, make, operation):
    case = make(operation, 2, 5)
    assert_close(case(jnp.asarray([[3] * 5, [4] * 5])), case(), 1e-12)


@each_operation
def test_float32_is_within_rounding_of_float64(x64, make, operation):
    case, segments = make(operation, 2, 128), documents(128)
    want = case(segments, implementation="reference")
    assert_close(case.astype(jnp.float32)(segments), want, 1e-5)


@each_operation
def test_bfloat16_inputs_sum_in_float32(make, operation):
    half = make(operation, 2, 33).astype(jnp.bfloat16)
    wide = half.astype(jnp.float32)
    y, last = half(state=wide.state)
    wide_y, wide_last = wide()
    assert (y.dtype, last.dtype) == (jnp.bfloat16, jnp.float32)
    assert_close(y, wide_y, 2**-8)  # y is rounded once, to eight bits
    assert_close(last, wide_last, 1e-5)


@pytest.mark.parametrize("operation", SCANS)
def test_gradients_are_finite_where_a_step_forgets_everything(make, operation):
    case = make(operation, 2, 20)
    case.timed["dt"] = case.timed["dt"].at[:, ::3].set(1e4)
    gradients, _ = outputs_and_gradients(case, documents(20), None, "xla")
    assert all(bool(jnp.all(jnp.isfinite(g))) for g in jax.tree.leaves(gradients))


@each_operation
def test_initial_segment_needs_segments(make, operation):
    with pytest.raises(ValueError, match="initial_segment was given without segments"):
        make(operation, 2, 3)(initial_segment=jnp.asarray([1, 1]))


@each_operation
def test_segments_of_another_length_are_refused(make, operation):
    with pytest.raises(ValueError, match=r"segments has shape \(2, 4\).*T=3"):
        make(operation, 2, 3)(jnp.ones((2, 4), jnp.int32))


@pytest.mark.parametrize("operation", SCANS)
def test_float32_keeps_its_digits_after_a_step_that_forgets_everything(x64, make, operation):
    """Sums of decays are large from there on, and a difference of two of them must not be."""
    case = make(operation, 2, 131)
    rng = np.random.default_rng(3)
    dt = np.exp(rng.uniform(np.log(0.01), np.log(5), case.timed["dt"].shape))
    dt[:, :40], dt[:, 60] = 5, 1e4
    case.timed["dt"] = jnp.asarray(dt)
    want = outputs_and_gradients(case, documents(131), None, "reference")
    single = case.astype(jnp.float32)
    got = outputs_and_gradients(single, documents(131), None, "xla")
    assert_close(got[1], want[1], 1e-5)
    assert_close(got[0], want[0], 1e-5)
