import jax
import jax.numpy as jnp
import numpy as np
import pytest
from workbench_kernels import selective_scan, ssd, ssd_step


@pytest.mark.parametrize("implementation", ["xla", "reference"])
def test_three_steps_by_hand(implementation):
    def column(*values):
        return jnp.asarray(values, jnp.float32).reshape(1, -1, 1, 1)

    y, state = ssd(
        column(1, 2, 3),
        column(1, 1, 2)[..., 0],
        -jnp.log(2 * jnp.ones(1)),  # dt = 1 halves the state, dt = 2 quarters it
        column(1, 1, 1),
        column(1, 1, 2),
        D=jnp.asarray([0.5]),
        state=jnp.full((1, 1, 1, 1), 4.0),
        implementation=implementation,
    )
    np.testing.assert_allclose(state.ravel(), [6.875], rtol=1e-6)  # 4 -> 3 -> 3.5 -> 6.875
    np.testing.assert_allclose(y.ravel(), [3.5, 4.5, 15.25], rtol=1e-6)


def test_one_group_is_the_selective_scan_with_one_decay_a_head(x64, make):
    case = make("ssd", 2, 21)
    B, C = (case.timed[name][:, :, :1] for name in "BC")
    x, dt, A = case.timed["x"], case.timed["dt"], case.fixed["A"]
    y, state = jax.jit(ssd)(x, dt, A, B, C)
    batch, time, H, P = x.shape
    N = B.shape[-1]
    want, want_state = jax.jit(selective_scan)(
        x.reshape(batch, time, H * P),
        jnp.repeat(dt, P, axis=2),
        jnp.broadcast_to(jnp.repeat(A, P)[:, None], (H * P, N)),
        B[:, :, 0],
        C[:, :, 0],
    )
    np.testing.assert_allclose(y, want.reshape(y.shape), rtol=0, atol=1e-12)
    np.testing.assert_allclose(state, want_state.reshape(state.shape), rtol=0, atol=1e-12)


def test_stepping_equals_scanning(x64, make):
    case = make("ssd", 2, 11)

    def step(state, inputs):
        y, state = ssd_step(state, **inputs, **case.fixed)
        return state, y

    steps = {name: jnp.moveaxis(a, 1, 0) for name, a in case.timed.items()}
    state, y = jax.jit(lambda state, steps: jax.lax.scan(step, state, steps))(case.state, steps)
    want_y, want_state = case()
    np.testing.assert_allclose(jnp.moveaxis(y, 0, 1), want_y, rtol=0, atol=1e-12)
    np.testing.assert_allclose(state, want_state, rtol=0, atol=1e-12)


def test_chunks_change_nothing(x64, make):
    case = make("ssd", 2, 19)
    for got, want in zip(case(chunk=3), case(chunk=64), strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-12)


def test_shapes_that_do_not_fit_are_named():
    x, dt, A = jnp.zeros((2, 3, 4, 5)), jnp.zeros((2, 3, 4)), jnp.zeros(4)
    with pytest.raises(ValueError, match="H=4 heads and B has G=3 groups; H must be a multiple of G"):
        ssd(x, dt, A, jnp.zeros((2, 3, 3, 6)), jnp.zeros((2, 3, 3, 6)))
    with pytest.raises(
        ValueError, match=r"C has shape \(2, 3, 2, 7\); the other arguments need \[B=2, T=3, G=2, N=6\]"
    ):
        ssd(x, dt, A, jnp.zeros((2, 3, 2, 6)), jnp.zeros((2, 3, 2, 7)))
    with pytest.raises(ValueError, match=r"state has shape \(2, 4, 6, 5\)"):
        ssd(x, dt, A, jnp.zeros((2, 3, 2, 6)), jnp.zeros((2, 3, 2, 6)), state=jnp.zeros((2, 4, 6, 5)))
