"""What every figure is drawn on: its look, the colour and marker of an arm, labels, legends, units."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

# Okabe & Ito's palette, without its yellow, which is too pale on white
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#5D5D5D", "#8C510A")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
INK, FAINT, SHADE = "#22262b", "#8a9097", "#eef1f4"
Rows = list[dict[str, Any]]


class Drawing(NamedTuple):
    """A figure, its data (one row a point) and what a reader should know of it."""

    name: str
    figure: Figure
    rows: Rows
    caption: str


class Style(NamedTuple):
    colour: str
    marker: str


def styles_of(arms: Sequence[str]) -> dict[str, Style]:
    return {arm: Style(COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]) for i, arm in enumerate(arms)}


def canvas(down: int, across: int, size: tuple[float, float], **options) -> tuple[Figure, list[Axes]]:
    """A figure (never pyplot's, which keeps every one in memory) in the study's look."""
    figure = Figure(figsize=size, layout="constrained", facecolor="white")
    axes = figure.subplots(down, across, squeeze=False, **options)
    for ax in axes.flat:
        ax.spines[["top", "right"]].set_visible(False)
        ax.spines[["left", "bottom"]].set_color(FAINT)
        ax.tick_params(colors=INK, labelsize=8.5, length=3, width=0.8)
        ax.grid(True, color="#e3e6ea", linewidth=0.7)
        ax.set_axisbelow(True)
        ax.xaxis.label.set_size(9)
        ax.yaxis.label.set_size(9)
        ax.title.set_size(10)
        for part in (ax.xaxis.label, ax.yaxis.label, ax.title, ax._left_title):
            part.set_color(INK)
    return figure, list(axes.flat)


def end_labels(ax: Axes, ends: list[tuple[str, float, float, str]], line: float = 6.5) -> None:
    """Names at the right ends of curves, moved apart where they would touch, each with a hair to its curve."""
    ordered = sorted(ends, key=lambda end: end[2])
    heights = [line * (1 + name.count("\n")) for name, *_ in ordered]
    places = [end[2] for end in ordered]
    for _ in range(200):
        for i in range(len(places) - 1):
            short = (heights[i] + heights[i + 1]) / 2 - (places[i + 1] - places[i])
            if short > 0:
                places[i], places[i + 1] = places[i] - short / 2, places[i + 1] + short / 2
        places = [
            min(max(place, sum(heights[:i]) + heights[i] / 2 - 3), 104 - sum(heights[i + 1 :]) - heights[i] / 2)
            for i, place in enumerate(places)
        ]
    for (name, x, y, colour), place in zip(ordered, places, strict=True):
        ax.annotate(
            name, (x, y), (1.035, (place + 3) / 107), textcoords="axes fraction", color=colour, fontsize=9, va="center",
            fontweight="bold", annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour, "alpha": 0.5, "linewidth": 0.7, "shrinkA": 1, "shrinkB": 4},
        )  # fmt: skip


def legend(figure: Figure, known: dict[str, Style]) -> None:
    """Coloured names below panels whose curves lie too close for names of their own, in as few lines as fit."""
    handles = [Line2D([], [], color=s.colour, marker=s.marker, linewidth=2.2, markersize=6) for s in known.values()]
    if handles:
        fit = int(figure.get_figwidth() / (0.6 + 0.085 * max(map(len, known))))  # inches of a bold name and its mark
        legend = figure.legend(
            handles,
            list(known),
            loc="outside lower left",
            ncols=min(len(known), max(fit, 1)),
            frameon=False,
            fontsize=9,
        )
        for text, style in zip(legend.get_texts(), known.values(), strict=True):
            text.set_color(style.colour)
            text.set_fontweight("bold")


def print_across(figure: Figure, banner: str) -> None:
    """The reason why something is not drawn, in a band across the figure, where nobody overlooks it."""
    if banner:
        figure.get_layout_engine().set(h_pad=0.12)
        lines = [
            part for reason in banner.split("\n") for part in textwrap.wrap(reason, int(12 * figure.get_figwidth()))
        ]
        figure.suptitle(
            "\n".join(lines), fontsize=9.5, fontweight="bold", color="#8f1d1d",
            bbox={"boxstyle": "square,pad=0.5", "facecolor": "#fff0ec", "edgecolor": "#c0392b"},
        )  # fmt: skip


def bytes_axis(ax: Axes, values: Sequence[float]) -> None:
    ax.set_xscale("log", base=2)
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(in_bytes))
    if values:
        ax.set_xlim(min(values) / 1.8, max(values) * 1.8)
        wide = max(values) > 8 * min(values)
        ax.xaxis.set_major_locator(LogLocator(base=4 if wide else 2, numticks=6))


def in_bytes(value: float | int, _: Any = None) -> str:
    """96 KiB; the second argument is the place of a tick."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f} B"


def engineering(value: float | int, _: Any = None) -> str:
    """1.5 M, 20 G: at most three digits and a unit."""
    for unit, size in (("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g}"
