import jax
import jax.numpy as jnp
import numpy as np
import pytest
from workbench_kernels import selective_scan, selective_scan_step


@pytest.mark.parametrize("implementation", ["xla", "reference"])
def test_three_steps_by_hand(implementation):
    def column(*values):
        return jnp.asarray(values, jnp.float32).reshape(1, -1, 1)

    A = -jnp.log(2 * jnp.ones((1, 1)))  # dt = 1 halves the state, dt = 2 quarters it
    y, state = selective_scan(
        column(1, 2, 3),
        column(1, 1, 2),
        A,
        column(1, 1, 1),
        column(1, 1, 2),
        D=jnp.asarray([0.5]),
        state=jnp.full((1, 1, 1), 4.0),
        implementation=implementation,
    )
    np.testing.assert_allclose(state.ravel(), [6.875], rtol=1e-6)  # 4 -> 3 -> 3.5 -> 6.875
    np.testing.assert_allclose(y.ravel(), [3.5, 4.5, 15.25], rtol=1e-6)


def test_stepping_equals_scanning(x64, make):
    case = make("selective_scan", 2, 11)

    def step(state, inputs):
        y, state = selective_scan_step(state, **inputs, **case.fixed)
        return state, y

    steps = {name: jnp.moveaxis(a, 1, 0) for name, a in case.timed.items()}
    state, y = jax.jit(lambda state, steps: jax.lax.scan(step, state, steps))(case.state, steps)
    want_y, want_state = case()
    np.testing.assert_allclose(jnp.moveaxis(y, 0, 1), want_y, rtol=0, atol=1e-12)
    np.testing.assert_allclose(state, want_state, rtol=0, atol=1e-12)


def test_chunks_change_nothing(x64, make):
    case = make("selective_scan", 2, 19)
    for got, want in zip(case(chunk=3), case(chunk=64), strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-12)


def test_a_training_step_never_holds_every_state():
    B, T, I, N = 1, 4096, 128, 16

    def loss(x, dt, A, B, C):
        return jnp.sum(selective_scan(x, dt, A, B, C)[0])

    f32 = jnp.float32
    shapes = [(B, T, I), (B, T, I), (I, N), (B, T, N), (B, T, N)]
    gradient = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3, 4)))
    compiled = gradient.lower(*(jax.ShapeDtypeStruct(s, f32) for s in shapes)).compile()
    every_state = B * T * I * N * 4
    assert compiled.memory_analysis().temp_size_in_bytes < every_state / 3  # one state in eight, y and its gradient


def test_shapes_that_do_not_fit_are_named():
    x, dt, A, B = jnp.zeros((2, 3, 4)), jnp.zeros((2, 3, 4)), jnp.zeros((4, 5)), jnp.zeros((2, 3, 5))
    with pytest.raises(ValueError, match=r"C has shape \(2, 3, 6\); the other arguments need \[B=2, T=3, N=5\]"):
        selective_scan(x, dt, A, B, jnp.zeros((2, 3, 6)))
    with pytest.raises(ValueError, match=r"dt has shape \(2, 3\); it needs 3 axes \[B, T, I\]"):
        selective_scan(x, dt[..., 0], A, B, B)
    with pytest.raises(ValueError, match="chunk is 0; it must be at least 1"):
        selective_scan(x, dt, A, B, B, chunk=0)
    with pytest.raises(ValueError, match=r"x has shape \(2, 0, 4\); it needs at least one step"):
        selective_scan(x[:, :0], dt[:, :0], A, B[:, :0], B[:, :0])
