"""Attention whose keys go round several devices. Run as a program, it has four devices and computes in float64."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from workbench.model import ring
from workbench.model.attention import attend

FOUR = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu", "JAX_ENABLE_X64": "1"}
TIME, BLOCK = 4 * 6, 4  # a part is a block of queries and half a one
WINDOWS = [None, 5, 7, 8]  # they end within the part before, at its first key and one beyond


@pytest.mark.slow
def test_keys_that_go_round_four_devices_give_what_one_device_gives():
    done = subprocess.run([sys.executable, __file__], env=os.environ | FOUR, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found) == len(WINDOWS)
    for window, errors in found.items():
        assert len(errors) == 4 and max(errors) < 1e-13, (window, errors)


def main():
    rng = np.random.default_rng(0)
    ring.BLOCK = BLOCK
    found = {}
    for window in WINDOWS:
        q, k, v, weight = (
            jnp.asarray(rng.standard_normal((2, TIME, heads, size))) for heads, size in ((4, 4), (2, 4), (2, 4), (4, 4))
        )
        ends = np.sort(rng.choice(TIME, (2, 3), replace=False))
        segments = jnp.asarray((np.arange(TIME)[None, :, None] > ends[:, None]).sum(axis=2) + 1)
        segments = segments.at[1, -TIME // 3 :].set(0)

        def loss(q, k, v, segments=segments, window=window, weight=weight):
            y = attend(q, k, v, segments, window)
            return jnp.sum(y * weight), y

        outcome = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))
        want = outcome(q, k, v)
        with jax.set_mesh(jax.make_mesh((4,), ("sequence",), axis_types=(AxisType.Auto,))):
            got = outcome(q, k, v)
        found[str(window)] = [
            float(jnp.abs(g - w).max()) for g, w in zip(*map(jax.tree.leaves, (got, want)), strict=True)
        ]
    print(json.dumps(found))


if __name__ == "__main__":
    main()
