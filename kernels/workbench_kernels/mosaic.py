"""What differs between versions of JAX for a Mosaic GPU kernel, and what several kernels share."""

from jax import lax
from jax.experimental.mosaic.gpu import fragmented_array
from jax.experimental.pallas import mosaic_gpu as plgpu

WARPS, LANES = 4, 32
MULTIPROCESSORS = 132  # an H100's, for which small batches are split; fixed, so that no result depends on the device


def store(ref, value):
    """ref[...] = value in a layout of our own; from jax 0.12 a plain assignment takes only those it can vectorize."""
    if hasattr(plgpu, "store"):
        plgpu.store(ref, value, optimized=False)
    else:
        ref[...] = value


def load(ref, layout, dtype):
    """The values of a ref in registers, in a layout of our own, as `dtype`."""
    return plgpu.load(ref, layout=layout, optimized=False).astype(dtype)


def rows_and_columns(columns: int):
    """(rows a warp, layout) of [4 warps, rows, columns] float32 in which each thread holds four rows of four columns.

    A warp's lanes lie along both axes, so that sums along either need few shuffles, and no sum crosses warps.
    """
    across = columns // 4
    down = LANES // across
    tiling = fragmented_array.Tiling(((WARPS, down, columns), (1, 1, 4)))
    tiled = fragmented_array.TiledLayout(tiling, (-6,), (-5, -4), -1, _check_canonical=False).canonicalize()
    return 4 * down, plgpu.Layout.TILED(tiled.tiling, tiled.warp_dims, tiled.lane_dims, tiled.vector_dim)


# ---- parts of time, so that small batches fill the chip: each part's end is computed first, then all parts at once


def splits_of(blocks: int, time: int, chunk: int, least: int) -> int:
    """Into how many parts time is cut, each of at least `least` chunks; each part's end is then computed twice."""
    splits = 1
    while splits * blocks < MULTIPROCESSORS and time // (2 * splits) >= least * chunk:
        splits *= 2
    return splits


def parts_of(splits, a):
    """[B, T, ...] as [B splits, T / splits, ...]."""
    return None if a is None else a.reshape(a.shape[0] * splits, a.shape[1] // splits, *a.shape[2:])


def combine(decays, carried, edge, splits, reverse):
    """The state that each part starts with, or in reverse the gradient that each part's end gets from the next.

    decays, carried [B splits, ...]: what is left of a state after a part, and what a part from zero hands on.
    """
    by_part = [a.reshape(-1, splits, *a.shape[1:]).swapaxes(0, 1) for a in (decays, carried)]

    def step(state, part):
        decay, own = part
        return decay * state + own, state

    _, found = lax.scan(step, edge, tuple(by_part), reverse=reverse)
    return found.swapaxes(0, 1).reshape(-1, *edge.shape[1:])
