"""Figures of a suite's items: scores against the length of the prompts, and by length and depth (heat maps).

Drawn from the items that are kept, of every evaluation of the checkpoint so far. A score that cannot be told from
chance is hollow and grey, in a heat map grey.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from workbench.evaluate.chance import grey_out
from workbench.evaluate.contamination import counted
from workbench.evaluate.suite import read_items, summary
from workbench.record import read_json

SIZED = re.compile(r"(.+)-(\d+)(?:-tokens)?")  # a task's name: what grows, and how large it is
COLOURS = style.library["tableau-colorblind10"]["axes.prop_cycle"].by_key()["color"]
MARKERS = "os^DvPX*"
APART = 1.3  # times one number beside an axis, the next
GREY = "#8a9097"  # of what cannot be told from chance
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
    """Writes curves.png and depth.png beside the items, as far as there are items to draw; returns what it wrote.

    Above them: whose items they are. Below: how many overlap the training corpus.
    """
    folder, found = Path(folder), families(folder)
    whose, overlap = model_of(folder.resolve().parent.parent), counted(read_json(folder / "results.json") or {})
    written = []
    for name, figure in (("curves", curves(found, whose)), ("depth", depth(found, whose))):
        if figure is not None:
            figure.supxlabel(overlap, fontsize=7, color=GREY)
            written.append(folder / f"{name}.png")
            figure.savefig(written[-1], dpi=130)
    return written


def model_of(run: Path) -> str:
    """A run's name in a title: its folder's; of an imported model its source's, which says how it is quantised."""
    result = read_json(run / "result.json") or {}
    source = [each["run"] for each in result.get("parents", ()) if each["relation"] == "imported"]
    return source[0] if source and not result["steps"] else run.name


def curves(found: dict[str, dict[int, Items]], title: str = "") -> Figure | None:
    """Each family's first metric with its 95% interval against tokens of the prompt; Phonebook's against entries too.

    A panel a suite; title: whose they are. None where nothing is kept.
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
    _titled(figure, title)
    for ax, ((suite, along), names) in zip(figure.subplots(1, len(panels), squeeze=False).flat, panels.items()):  # noqa: B905
        ticks = set()
        for index, family in enumerate(names):
            places = [
                _tokens(rows) if along.startswith("tokens") else _entries(rows) for rows in found[family].values()
            ]
            scores = [summary(rows) for rows in found[family].values()]
            metric = next(iter(scores[0]["metrics"]))
            side_by_side = [1.02**index * place for place in places]
            _curve(ax, side_by_side, scores, index, f"{family.partition('-')[2]}: {metric}")
            ticks |= {round(place) for place in places}
        ax.set(title=suite, xlabel=along, ylabel="%", ylim=(-3, 103))
        _along(ax, ticks)
        ax.legend(fontsize=7, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)
    return figure


def beside(found: Mapping[str, Mapping[str, dict[int, Items]]]) -> Figure | None:
    """Models side by side, each with its families: a panel a family, a curve a model, against tokens of the prompt.

    The first metric with its 95% interval, of these checkpoints. None where nothing is kept.
    """
    names = list(dict.fromkeys(family for families in found.values() for family in families))
    if not names:
        return None
    across = min(len(names), 3)
    down = -(-len(names) // across)
    figure = Figure(figsize=(3.6 * across, 0.5 + 3.0 * down), layout="constrained", facecolor="white")
    axes = list(figure.subplots(down, across, squeeze=False).flat)
    for ax, family in zip(axes, names, strict=False):
        ticks, metric = set(), ""
        for index, (model, families) in enumerate(found.items()):
            if family in families:
                sizes = families[family].values()
                places, scores = [_tokens(rows) for rows in sizes], [summary(rows) for rows in sizes]
                metric = next(iter(scores[0]["metrics"])).replace("_", " ")
                _curve(ax, [1.02**index * place for place in places], scores, index, model)  # intervals side by side
                ticks |= {round(place) for place in places}
        ax.set_title(family, fontsize=9)
        ax.set(xlabel="tokens in the prompt", ylabel=f"{metric}, %", ylim=(-3, 103))
        _along(ax, ticks)
    for ax in axes[len(names) :]:
        ax.set_visible(False)
    handles = {}
    for ax in axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.legend(handles.values(), handles, loc="outside lower left", ncols=4, fontsize=8.5, frameon=False)
    return figure


def positions(found: Mapping[str, dict[str, Any]]) -> Figure:
    """Bits per byte against the position in long documents (workbench.evaluate.position), a curve a model.

    Hollow and past the shade: further than any row in training, where the length of training is known. Bands: 95%, over
    groups of these documents.
    """
    figure = Figure(figsize=(6.4, 3.9), layout="constrained", facecolor="white")
    ax, ticks, trained = figure.subplots(), set(), 0
    for index, (model, values) in enumerate(found.items()):
        bins = values["by_position"]
        colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
        places = [(max(each["start"], 1) * each["end"]) ** 0.5 for each in bins]
        ax.fill_between(
            places,
            [each["low"] for each in bins],
            [each["high"] for each in bins],
            color=colour,
            alpha=0.13,
            linewidth=0,
        )
        ax.plot(places, [each["mean"] for each in bins], color=colour, linewidth=1.8)
        for at, each in zip(places, bins, strict=True):
            ax.plot(at, each["mean"], marker, color=colour, markerfacecolor="white" if each["extrapolated"] else colour)
        ax.plot([], [], f"-{marker}", color=colour, label=model)
        ticks |= {each["end"] for each in bins}
        trained = max([trained, *(each["end"] for each in bins if each["extrapolated"] is False)])
    ax.set(xlabel="position in the document, tokens", ylabel="bits per byte")
    _along(ax, ticks)
    if trained:
        ax.axvspan(ax.get_xlim()[0], trained, color="#eef1f4", zorder=0, linewidth=0)
        at = (trained, 1)
        ax.annotate(" past training", at, xycoords=("data", "axes fraction"), fontsize=8, color=GREY, va="top")
    ax.legend(fontsize=8.5, frameon=False)
    return figure


def _curve(ax: Axes, places: list[float], scores: list[dict[str, Any]], index: int, label: str) -> None:
    """The first metric of summaries at their places, with its interval; hollow and grey where chance would do."""
    values = [next(iter(score["metrics"].values())) for score in scores]
    colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
    ax.plot(places, [100 * v["mean"] for v in values], color=colour, linewidth=1.6)
    for at, value, score in zip(places, values, scores, strict=True):
        seen = not score["at_chance"]
        shade = colour if seen else GREY
        if value["low"] is not None:
            ax.plot([at, at], [100 * value["low"], 100 * value["high"]], color=shade, linewidth=1, alpha=0.7)
        ax.plot(at, 100 * value["mean"], marker, color=shade, markerfacecolor=shade if seen else "white")
    ax.plot([], [], f"-{marker}", color=colour, label=label)


def _titled(figure: Figure, title: str) -> None:
    if title:
        figure.suptitle(title, fontsize=10)


def _along(ax: Axes, ticks: set[int]) -> None:
    """A logarithmic axis with these ticks, but for those too near the one before to be read."""
    ax.set_xscale("log")
    shown: list[int] = []
    for tick in sorted(ticks):
        if not shown or tick > APART * shown[-1]:
            shown.append(tick)
    ax.set_xticks(shown, [f"{tick}" for tick in shown])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(True, color="#e3e6ea", linewidth=0.7)


def depth(found: dict[str, dict[int, Items]], title: str = "") -> Figure | None:
    """A heat map for each family whose items say how deep in the prompt the answer stands: its first metric in %.

    Cells are grey where chance would do; title: whose they are. None where no items do.
    """
    maps = {family: heat(sizes) for family, sizes in found.items()}
    maps = {family: each for family, each in maps.items() if not np.isnan(each).all()}
    if not maps:
        return None
    across = min(len(maps), 3)
    down = -(-len(maps) // across)
    figure = Figure(figsize=(4.2 * across, 2.9 * down), layout="constrained", facecolor="white")
    _titled(figure, title)
    axes = figure.subplots(down, across, squeeze=False).flat
    for ax, (family, values) in zip(axes, maps.items()):  # noqa: B905
        sizes = found[family]
        grey = at_chance(sizes)
        ax.imshow(100 * values, aspect="auto", cmap="viridis", vmin=0, vmax=100)
        grey_out(ax, grey)
        for (row, column), value in np.ndenumerate(values):
            if not np.isnan(value):
                ax.text(column, row, f"{100 * value:.0f}", ha="center", va="center", fontsize=8,
                        color="black" if grey[row, column] or value > 0.6 else "white")  # fmt: skip
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
    for cell, rows in _cells(sizes):
        values[cell] = np.mean([next(iter(row["metrics"].values())) for row in rows])
    return values


def at_chance(sizes: dict[int, Items]) -> np.ndarray:
    """Where the first metric's interval holds chance [depths, sizes]; not where one item gives no interval."""
    found = np.zeros((DEPTHS, len(sizes)), bool)
    for cell, rows in _cells(sizes):
        found[cell] = bool(summary(rows)["at_chance"])
    return found


def _cells(sizes: dict[int, Items]) -> Iterator[tuple[tuple[int, int], Items]]:
    """The items of each cell (depth, size) that has some."""
    for column, rows in enumerate(sizes.values()):
        bands: dict[int, Items] = {}
        for row in rows:
            place = (row["facts"] or {}).get("depth")
            if place is not None:
                bands.setdefault(round(place * (DEPTHS - 1)), []).append(row)
        yield from (((band, column), inside) for band, inside in bands.items())


def _tokens(rows: Items) -> float:
    return float(np.mean([row["prompt_tokens"] for row in rows]))


def _entries(rows: Items) -> float:
    return float(np.mean([row["facts"]["entries"] for row in rows]))
