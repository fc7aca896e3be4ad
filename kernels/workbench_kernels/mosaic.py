"""What differs between versions of JAX for a Mosaic GPU kernel, and what several kernels share."""

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
