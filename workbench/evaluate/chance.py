"""Scores that cannot be told from chance: which they are, and how a heat map shows it, by every figure alike."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap

LIGHT = "#d5d9de"  # a heat map's cell


def holds(low: float, high: float, chance: float) -> bool:
    """Whether an interval holds chance, so that its score says nothing."""
    return low <= chance <= high


def grey_out(ax: Axes, doubtful: np.ndarray) -> None:
    """Lays grey over a heat map's cells [rows, columns] that cannot be told from chance."""
    ax.imshow(np.where(doubtful, 0, np.nan), aspect="auto", cmap=ListedColormap([LIGHT]))
