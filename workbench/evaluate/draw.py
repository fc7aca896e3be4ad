"""Figures of a suite's items: scores against the length of the prompts, and by length and depth (heat maps).

Drawn from the items that are kept, of every evaluation of the checkpoint so far. A score that cannot be told from
chance is hollow and grey.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import style
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from workbench.evaluate.suite import read_items, summary

SIZED = re.compile(r"(.+)-(\d+)(?:-tokens)?")  # a task's name: what grows, and how large it is
COLOURS = style.library["tableau-colorblind10"]["axes.prop_cycle"].by_key()["color"]
MARKERS = "os^DvPX*"
DEPTHS = 5  # rows of a heat map: depth rounded to quarters

Items = list[dict[str, Any]]


def families(folder: Path | str) -> dict[str, dict[int, Items]]:
    """The items kept in a folder by task without its size, and by size: {"phonebook-standard": {4: [...]}}."""
    found: dict[str, dict[int, Items]] = {}
    for path in sorted(Path(folder).glob("*.parquet")):
        sized = SIZED.fullmatch(path.stem)
        if sized and not path.stem.endswith("-shots"):
            found.setdefault(sized[1], {})[int(sized[2])] = read_items(path)
    return {family: dict(sorted(sizes.items())) for family, sizes in found.items()}


def draw(folder: Path | str) -> list[Path]:
    """Writes curves.png and depth.png beside the items, as far as there are items to draw; returns what it wrote."""
    folder, found = Path(folder), families(folder)
    written = []
    for name, figure in (("curves", curves(found)), ("depth", depth(found))):
        if figure is not None:
            written.append(folder / f"{name}.png")
            figure.savefig(written[-1], dpi=130)
    return written


def curves(found: dict[str, dict[int, Items]]) -> Figure | None:
    """Each family's first metric with its 95% interval against tokens of the prompt; Phonebook's against entries too.

    A panel a suite. None where nothing is kept.
    """
    panels: dict[tuple[str, str], list[str]] = {}
    for family in found:
        suite = family.partition("-")[0]
        panels.setdefault((suite, "tokens in the prompt"), []).append(family)
        if suite == "phonebook":
            panels.setdefault((suite, "entries in the book"), []).append(family)
    if not panels:
        return None
    figure = Figure(figsize=(4.6 * len(panels), 3.8), layout="constrained", facecolor="white")
    for ax, ((suite, along), names) in zip(figure.subplots(1, len(panels), squeeze=False).flat, panels.items()):  # noqa: B905
        ticks = set()
        for index, family in enumerate(names):
            places = [
                _tokens(rows) if along.startswith("tokens") else _entries(rows) for rows in found[family].values()
            ]
            scores = [summary(rows) for rows in found[family].values()]
            metric = next(iter(scores[0]["metrics"]))
            values = [score["metrics"][metric] for score in scores]
            colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
            ax.plot(places, [100 * v["mean"] for v in values], color=colour, linewidth=1.6)
            for at, value, score in zip(places, values, scores, strict=True):
                seen = not score["at_chance"]
                shade = colour if seen else "#8a9097"
                if value["low"] is not None:
                    ax.plot([at, at], [100 * value["low"], 100 * value["high"]], color=shade, linewidth=1, alpha=0.7)
                ax.plot(at, 100 * value["mean"], marker, color=shade, markerfacecolor=shade if seen else "white")
            ax.plot([], [], f"-{marker}", color=colour, label=f"{family.partition('-')[2]}: {metric}")
            ticks |= {round(place) for place in places}
        ax.set(title=suite, xlabel=along, ylabel="%", ylim=(-3, 103), xscale="log")
        shown = [tick for index, tick in enumerate(sorted(ticks)) if len(ticks) <= 6 or index % 2 == 0]
        ax.set_xticks(shown, [str(tick) for tick in shown])
        ax.xaxis.set_minor_locator(NullLocator())
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(True, color="#e3e6ea", linewidth=0.7)
        ax.legend(fontsize=7, frameon=False)
    return figure


def depth(found: dict[str, dict[int, Items]]) -> Figure | None:
    """A heat map for each family whose items say how deep in the prompt the answer stands: its first metric in %.

    None where no items do.
    """
    maps = {family: heat(sizes) for family, sizes in found.items()}
    maps = {family: each for family, each in maps.items() if not np.isnan(each).all()}
    if not maps:
        return None
    across = min(len(maps), 3)
    down = -(-len(maps) // across)
    figure = Figure(figsize=(4.2 * across, 2.9 * down), layout="constrained", facecolor="white")
    axes = figure.subplots(down, across, squeeze=False).flat
    for ax, (family, values) in zip(axes, maps.items()):  # noqa: B905
        ax.imshow(100 * values, aspect="auto", cmap="viridis", vmin=0, vmax=100)
        for (row, column), value in np.ndenumerate(values):
            if not np.isnan(value):
                ax.text(column, row, f"{100 * value:.0f}", ha="center", va="center", fontsize=8,
                        color="black" if value > 0.6 else "white")  # fmt: skip
        sizes = found[family]
        ax.set_xticks(
            range(len(sizes)), [f"{size:,}\n{_tokens(rows):,.0f}" for size, rows in sizes.items()], fontsize=7
        )
        ax.set_yticks(range(DEPTHS), [f"{share:.2f}" for share in np.linspace(0, 1, DEPTHS)], fontsize=7)
        ax.set_title(family, fontsize=9)
        ax.set_xlabel("size, and tokens in the prompt", fontsize=8)
        ax.set_ylabel("depth", fontsize=8)
    for ax in list(axes):
        ax.set_visible(False)
    return figure


def heat(sizes: dict[int, Items]) -> np.ndarray:
    """Mean of the first metric [depths, sizes], depth 0 at the top; NaN where none is asked."""
    values = np.full((DEPTHS, len(sizes)), np.nan)
    for column, rows in enumerate(sizes.values()):
        places = [(row["facts"] or {}).get("depth") for row in rows]
        for band in range(DEPTHS):
            inside = [
                next(iter(row["metrics"].values()))
                for row, place in zip(rows, places, strict=True)
                if place is not None and round(place * (DEPTHS - 1)) == band
            ]
            if inside:
                values[band, column] = np.mean(inside)
    return values


def _tokens(rows: Items) -> float:
    return float(np.mean([row["prompt_tokens"] for row in rows]))


def _entries(rows: Items) -> float:
    return float(np.mean([row["facts"]["entries"] for row in rows]))
