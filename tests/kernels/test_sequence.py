"""Sequences whose parts are on several devices. Run as a program, it has four devices and computes in float64."""

import json
import os
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from workbench_kernels import causal_conv1d, selective_scan, ssd

FOUR = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu", "JAX_ENABLE_X64": "1"}
# Two rows of 24 tokens, six on each device: documents within a part, across one boundary and across several, one that
# ends with a part, and padding over whole parts.
SEGMENTS = [[1] * 4 + [2] * 5 + [3] * 3 + [4] * 12, [7] * 15 + [8] * 1 + [0] * 8]


@pytest.mark.slow
@pytest.mark.parametrize("case", ["packed", "one document"])
def test_parts_of_a_sequence_on_four_devices_give_what_one_device_gives(case):
    """Outputs, last states and all gradients: of packed documents after a state, or of one document from zero."""
    done = subprocess.run([sys.executable, __file__, case], env=os.environ | FOUR, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    errors = json.loads(done.stdout.splitlines()[-1])
    assert len(errors) == {"packed": 9 + 9 + 6, "one document": 8 + 8 + 5}[case]
    for name, error in errors.items():
        assert error < 1e-13, (name, error)


# ---- the program


def compared(operation, arguments, state, packed):
    """The largest difference of each gradient and result between four devices and one, relative to its largest value.

    The first row's state goes on, the second's is another document's.
    """
    more = {"segments": jnp.asarray(SEGMENTS), "initial_segment": jnp.asarray([1, 6])} if packed else {}

    def loss(given):
        arguments, state = given
        results = operation(*arguments, state=state, **more)
        return sum(jnp.sum(jnp.sin(result)) for result in results), results

    given = arguments, state if packed else None
    outcome = jax.jit(jax.grad(loss, has_aux=True))
    want = outcome(given)
    with jax.set_mesh(jax.make_mesh((4,), ("sequence",), axis_types=(AxisType.Auto,))):
        got = outcome(given)
    return {
        jax.tree_util.keystr(path): float(jnp.abs(g - w).max() / jnp.abs(w).max())
        for (path, w), g in zip(jax.tree_util.tree_leaves_with_path(want), jax.tree.leaves(got), strict=True)
    }


def main(case):
    rng = np.random.default_rng(0)

    def normal(*shape):
        return jnp.asarray(rng.standard_normal(shape))

    dt = jax.nn.softplus(normal(2, 24, 4) - 1)
    scan = normal(2, 24, 4), dt, -jnp.exp(normal(4, 3)), normal(2, 24, 3), normal(2, 24, 3), normal(4)
    heads = normal(2, 24, 4, 2), dt, -jnp.exp(normal(4)), normal(2, 24, 2, 3), normal(2, 24, 2, 3), normal(4)
    cases = {
        "selective_scan": (partial(selective_scan, chunk=2), scan, normal(2, 4, 3)),
        "ssd": (partial(ssd, chunk=4), heads, normal(2, 4, 2, 3)),
        "causal_conv1d": (causal_conv1d, (normal(2, 24, 5), normal(5, 4), normal(5)), normal(2, 3, 5)),
    }
    found = {name: compared(*given, case == "packed") for name, given in cases.items()}
    print(json.dumps({f"{name} {of}": error for name, errors in found.items() for of, error in errors.items()}))


if __name__ == "__main__":
    main(sys.argv[1])
