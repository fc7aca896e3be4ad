"""A weight's gradient is made from the narrower factor: the same numbers, whichever side that is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from workbench.model.product import product


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("sizes", [(5, 11), (11, 5)], ids=["widening", "narrowing"])
def test_product_and_both_gradients_agree_with_float64(sizes, dtype):
    rng = np.random.default_rng(0)
    x, w, dy = (
        np.asarray(jnp.asarray(rng.normal(size=shape), dtype), np.float64)
        for shape in ((2, 7, sizes[0]), sizes, (2, 7, sizes[1]))
    )
    y, gradients = jax.vjp(product, jnp.asarray(x, dtype), jnp.asarray(w, jnp.float32))
    dx, dw = gradients(jnp.asarray(dy, dtype))
    assert (y.dtype, dx.dtype, dw.dtype) == (dtype, dtype, jnp.float32)
    # float32 sums of at most 14 products; bfloat16 results are rounded once to 8 bits
    limit = {"rtol": 2**-8, "atol": 2**-8} if dtype == jnp.bfloat16 else {"rtol": 0, "atol": 14 * 2**-23 * 9}
    for got, expected in (
        (y, x @ w),
        (dx, dy @ w.T),
        (dw, np.einsum("btd,btf->df", x, dy)),
    ):
        np.testing.assert_allclose(np.asarray(got, np.float64), expected, **limit)


def test_product_sums_in_the_dtype_that_is_asked_for():
    x = jnp.ones((1, 300), jnp.bfloat16)
    assert product(x, jnp.ones((300, 1)), jnp.float32)[0, 0] == 300
    assert product(x, jnp.ones((300, 1))).dtype == jnp.bfloat16
