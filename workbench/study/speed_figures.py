"""Figures of speed: a decoding step against context, and quality against the seconds of a generation."""

from __future__ import annotations

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from workbench.study.canvas import FAINT, Rows, canvas, legend, styles_of
from workbench.study.wording import BITS, words


def decoding(rows: Rows) -> Figure:
    """Milliseconds of a decoding step against context, a panel a batch: measured (points) and predicted (dashed)."""
    batches, arms = (list(dict.fromkeys(row[name] for row in rows)) for name in ("batch", "arm"))
    figure, axes = canvas(1, len(batches), (4.9 * len(batches), 4.3), sharey=True)
    known = styles_of(arms)
    for ax, batch in zip(axes, batches, strict=True):
        for arm, style in known.items():
            mine = [row for row in rows if (row["batch"], row["arm"]) == (batch, arm)]
            seen = [row for row in mine if row.get("seconds")]
            ax.plot(
                [row["context"] for row in mine], [1e3 * row["predicted"] for row in mine], "--", color=style.colour,
                linewidth=1.3,
            )  # fmt: skip
            ax.plot(
                [row["context"] for row in seen], [1e3 * row["seconds"] for row in seen], color=style.colour,
                marker=style.marker, linewidth=1.8, markersize=5.5,
            )  # fmt: skip
        ax.set(xscale="log", yscale="log", xlabel="tokens of context", title=f"batch {batch}")
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes[0].set_ylabel("milliseconds a decoding step\n(dashed: predicted)")
    legend(figure, known)
    return figure


def pareto(rows: Rows) -> Figure:
    """Quality against seconds of a generation, a panel a measure; grey: arms than which none is as fast and better.

    rows: of workbench.study.speed.against_quality. Hollow: arms that the study does not rank.
    """
    panels = list(dict.fromkeys((row["task"], row["measure"], row["entries"]) for row in rows))
    known = styles_of(list(dict.fromkeys(row["arm"] for row in rows)))
    figure, axes = canvas(1, len(panels), (1.0 + 3.6 * len(panels), 3.8))
    for ax, panel in zip(axes, panels, strict=True):
        task, measure, entries = panel
        mine = sorted(
            (row for row in rows if (row["task"], row["measure"], row["entries"]) == panel),
            key=lambda row: row["seconds"],
        )
        scale = 1 if measure in BITS else 100
        for row in mine:
            style = known[row["arm"]]
            below, above = row["mean"] - row["low"], row["high"] - row["mean"]
            ax.errorbar(
                row["seconds"], scale * row["mean"], [[scale * below], [scale * above]], fmt=style.marker,
                color=style.colour, markersize=7, capsize=2.5, linewidth=1.2,
                markerfacecolor=style.colour if row["ranked"] else "none",
            )  # fmt: skip
        best = frontier(mine)
        ax.step(
            [row["seconds"] for row in best], [scale * row["mean"] for row in best], where="post", color=FAINT,
            linewidth=1.2, zorder=0,
        )  # fmt: skip
        ax.set(xscale="log", xlabel="seconds a generation")
        if measure in BITS:
            ax.invert_yaxis()  # up is better everywhere
            ax.set_ylabel("bits per byte (up: fewer)")
            ax.set_title(task, loc="left")
        else:
            ax.set_ylabel(f"correct {words(task).whole}, %")
            ax.set_title(f"{task}, {entries} {words(task).units}", loc="left")
    legend(figure, known)
    return figure


def frontier(rows: Rows) -> Rows:
    """Those of one measure, by seconds, than which none is as fast and better."""
    best: Rows = []
    better = (lambda a, b: a < b) if rows and rows[0]["measure"] in BITS else (lambda a, b: a > b)
    for row in sorted(rows, key=lambda row: row["seconds"]):
        if row["ranked"] and (not best or better(row["mean"], best[-1]["mean"])):
            best.append(row)
    return best
