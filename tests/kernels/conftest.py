"""The three operations behind one face, so that what they promise alike is tested alike."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import workbench_kernels

# Short, so that several chunks meet in short sequences, and what is unrolled compiles fast.
CHUNKS = {"selective_scan": 4, "ssd": 16}


@dataclass(frozen=True)
class Case:
    """Random inputs of one operation: `timed` have axes [B, T, ...], `fixed` are parameters."""

    operation: str
    timed: dict[str, jax.Array]
    fixed: dict[str, jax.Array]
    state: jax.Array

    def __call__(self, segments=None, initial_segment=None, state="given", **options):
        """(y, state) of the operation, jitted."""
        state = self.state if isinstance(state, str) else state
        call = jax.jit(lambda timed, state: self.call(timed, state, segments, initial_segment, **options))
        return call(self.timed, state)

    def call(self, timed, state, segments, initial_segment, **options):
        operation = getattr(workbench_kernels, self.operation)
        if self.operation in CHUNKS:
            options.setdefault("chunk", CHUNKS[self.operation])
        arguments = {**timed, **self.fixed, "state": state}
        return operation(**arguments, segments=segments, initial_segment=initial_segment, **options)

    def rows(self, start, stop, row=slice(None)):
        """The same case between two times, for some rows."""
        return Case(self.operation, {k: v[row, start:stop] for k, v in self.timed.items()}, self.fixed, self.state[row])

    def astype(self, dtype):
        timed, fixed = ({k: v.astype(dtype) for k, v in group.items()} for group in (self.timed, self.fixed))
        return Case(self.operation, timed, fixed, self.state.astype(dtype))


@pytest.fixture
def make():
    """make(operation, batch, time, N=4): a case in JAX's default float."""

    def build(operation, batch, time, N=4):
        rng = np.random.default_rng(0)

        def normal(*shape):
            return jnp.asarray(rng.standard_normal(shape))

        def positive(*shape):
            return jax.nn.softplus(normal(*shape) - 1)

        I, H, P, G, K = 6, 4, 3, 2, 4
        if operation == "selective_scan":
            timed = {"x": normal(batch, time, I), "dt": positive(batch, time, I), "z": normal(batch, time, I)}
            timed |= {name: normal(batch, time, N) for name in "BC"}
            return Case(operation, timed, {"A": -positive(I, N), "D": normal(I)}, normal(batch, I, N))
        if operation == "ssd":
            timed = {"x": normal(batch, time, H, P), "dt": positive(batch, time, H)}
            timed |= {name: normal(batch, time, G, N) for name in "BC"}
            return Case(operation, timed, {"A": -positive(H), "D": normal(H)}, normal(batch, H, P, N))
        fixed = {"weight": normal(I, K), "bias": normal(I)}
        return Case(operation, {"x": normal(batch, time, I)}, fixed, normal(batch, K - 1, I))

    return build
