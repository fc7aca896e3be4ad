import jax.numpy as jnp
import numpy as np
import pytest
from workbench_kernels import causal_conv1d


@pytest.mark.parametrize("implementation", ["xla", "reference"])
def test_four_steps_by_hand(implementation):
    x = jnp.asarray([1.0, 2.0, 3.0, 4.0]).reshape(1, 4, 1)
    weight, bias = jnp.asarray([[100.0, 10.0, 1.0]]), jnp.asarray([0.5])
    state = jnp.asarray([8.0, 9.0]).reshape(1, 2, 1)
    y, window = causal_conv1d(x, weight, bias, state, implementation=implementation)
    np.testing.assert_array_equal(y.ravel(), [891.5, 912.5, 123.5, 234.5])
    np.testing.assert_array_equal(window.ravel(), [3, 4])


def test_silu_is_applied_last(make):
    case = make("causal_conv1d", 2, 5)
    y = np.asarray(case()[0])
    np.testing.assert_allclose(case(activation="silu")[0], y / (1 + np.exp(-y)), rtol=1e-5, atol=1e-6)


def test_the_window_holds_the_last_real_inputs_of_the_last_document():
    x = jnp.arange(1.0, 11.0).reshape(2, 5, 1)
    segments = jnp.asarray([[1, 1, 1, 2, 0], [0, 0, 0, 0, 0]])
    state = jnp.asarray([[20.0, 21.0, 22.0], [30.0, 31.0, 32.0]])[..., None]
    _, window = causal_conv1d(x, jnp.ones((1, 4)), None, state, segments, jnp.asarray([1, 1]))
    np.testing.assert_array_equal(window[..., 0], [[0, 0, 4], [30, 31, 32]])


def test_one_column_needs_no_window():
    y, window = causal_conv1d(jnp.ones((1, 3, 2)), jnp.full((2, 1), 3.0))
    np.testing.assert_array_equal(y, jnp.full((1, 3, 2), 3.0))
    assert window.shape == (1, 0, 2)


def test_misfits_are_named():
    x, weight = jnp.zeros((2, 3, 4)), jnp.zeros((4, 3))
    with pytest.raises(ValueError, match=r"state has shape \(2, 3, 4\).*\(2, 2, 4\)"):
        causal_conv1d(x, weight, state=jnp.zeros((2, 3, 4)))
    with pytest.raises(ValueError, match="activation is 'relu'; use None or 'silu'"):
        causal_conv1d(x, weight, activation="relu")
    with pytest.raises(ValueError, match=r"weight has shape \(3, 4\)"):
        causal_conv1d(x, weight.T)
