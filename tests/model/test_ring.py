"""Attention whose keys go round several devices. Run as a program, it has four devices and computes in float64."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType

from workbench.model.attention import attend

FOUR = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu", "JAX_ENABLE_X64": "1"}
# length and window: a part of more than a block of queries, and the last block not full; windows that end within the
# part before, at its first key and one beyond, so that two, two and three parts are asked
CASES = [(4 * 150, None), (4 * 6, 5), (4 * 6, 7), (4 * 6, 8)]


def test_keys_that_go_round_four_devices_give_what_one_device_gives():
    done = subprocess.run([sys.executable, __file__], env=os.environ | FOUR, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found) == len(CASES)
    for case, errors in found.items():
        assert max(errors) < 1e-13, (case, errors)


def main():
    rng = np.random.default_rng(0)
    found = {}
    for time, window in CASES:
        q, k, v, weight = (
            jnp.asarray(rng.standard_normal((2, time, heads, size))) for heads, size in ((4, 4), (2, 4), (2, 4), (4, 4))
        )
        ends = np.sort(rng.choice(time, (2, 3), replace=False))
        segments = jnp.asarray((np.arange(time)[None, :, None] > ends[:, None]).sum(axis=2) + 1)
        segments = segments.at[1, -time // 3 :].set(0)

        def loss(q, k, v, segments=segments, window=window, weight=weight):
            y = attend(q, k, v, segments, window)
            return jnp.sum(y * weight), y

        outcome = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))
        want = outcome(q, k, v)
        with jax.set_mesh(jax.make_mesh((4,), ("sequence",), axis_types=(AxisType.Auto,))):
            got = outcome(q, k, v)
        found[f"{time} {window}"] = [
            float(jnp.abs(g - w).max()) for g, w in zip(*map(jax.tree.leaves, (got, want)), strict=True)
        ]
    print(json.dumps(found))


if __name__ == "__main__":
    main()
