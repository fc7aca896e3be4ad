"""What the study's figures share: which runs may be drawn together, and how an arm's estimates and curves are drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from workbench.study import differences, judge
from workbench.study.canvas import FAINT, SHADE, Rows, Style, styles_of
from workbench.study.collect import Run, Study
from workbench.study.statistics import LEAST_SEEDS
from workbench.study.wording import BITS


def styles(study: Study) -> dict[str, Style]:
    """The colour and marker of every arm, fixed by its place in the study."""
    return styles_of(study.arms())


def drawable(study: Study, task: str, *roles: str) -> tuple[list[Run], str]:
    """Finished runs that read the one stream, and why others are left out ("" if none is)."""
    every = study.select(*roles, task=task)
    wrong = judge.one_stream(study.select("result", "control", task=task))
    wrong |= {name: why for name, why in judge.one_stream(every).items() if name not in wrong}
    left_out = list(dict.fromkeys(run.arm for run in every if run.name in wrong))
    reasons = {arm: next(wrong[r.name] for r in every if r.arm == arm and r.name in wrong) for arm in left_out}
    banner = "\n".join(f"not drawn: {arm}; {why}" for arm, why in reasons.items())
    return [run for run in every if run.finished and run.arm not in reasons], banner


def is_ranked(study: Study, task: str, arm: str) -> bool:
    """Whether the arm is ranked, or is none that is judged (a state's size, a noise run)."""
    verdict = judge.verdicts(study, task).get(arm)
    return verdict is None or verdict.ranked


def estimates(ax: Axes, known: dict[str, Style], runs: dict[str, list[Run]], measure: str, entries: int | None) -> None:
    """An arm a line: its mean with the 95% interval and the number, and each seed small."""
    scale = 1 if measure in BITS else 100
    for place, (arm, mine) in enumerate(runs.items()):
        mean, low, high = (scale * value for value in differences.mean_of(mine, measure, entries)[:3])
        colour, marker = known[arm]
        ax.plot([low, high], [place, place], color=colour, linewidth=2.4, solid_capstyle="round")
        ax.plot(mean, place, marker, color=colour, markersize=7)
        text = f"{mean:.3f}" if scale == 1 else f"{mean:.1f}"
        ax.annotate(text, (mean, place), (0, 7), textcoords="offset points", ha="center", color=colour)
        for run in mine if len(mine) > 1 else ():
            value = scale * differences.mean_of([run], measure, entries).mean
            ax.plot(value, place, marker, color=colour, markersize=4, alpha=0.4)
    ax.set_yticks(range(len(runs)), list(runs))
    for label, arm in zip(ax.get_yticklabels(), runs, strict=False):  # panels that share an axis have them once
        label.set_color(known[arm].colour)
    ax.set_ylim(len(runs) - 0.5, -0.7)
    ax.margins(x=0.15)
    ax.grid(axis="y", visible=False)


def curves_by_entries(
    study: Study,
    task: str,
    runs: Sequence[Run],
    measure: str,
    ax: Axes,
    rows: Rows,
    faint: set[str] | frozenset = frozenset(),
) -> list[tuple[str, float, float, str]]:
    """Draws a curve an arm with its band and seeds; the labels that belong at their ends."""
    known, ends = styles(study), []
    ticks = sorted({k for run in runs for k in run.by_entries(measure)})
    for arm in dict.fromkeys(run.arm for run in runs):
        mine = [run for run in runs if run.arm == arm]
        sizes = sorted({k for run in mine for k in run.by_entries(measure)})
        if not sizes:
            continue
        colour, marker = known[arm]
        strength = 0.3 if arm in faint else 1.0
        ranked = is_ranked(study, task, arm)
        means = [differences.mean_of(mine, measure, k) for k in sizes]
        low, mean, high = (100 * np.array([getattr(m, name) for m in means]) for name in ("low", "mean", "high"))
        ax.fill_between(sizes, low, high, color=colour, alpha=0.14 * strength, linewidth=0)
        for run in mine:
            own = run.by_entries(measure)
            if len(mine) > 1:
                ax.plot(
                    list(own), [100 * v.mean for v in own.values()], color=colour, linewidth=0.8, alpha=0.4 * strength
                )
            for k, v in own.items():
                keys = {"series": "arm", "arm": arm, "seed": run.replicate[1], "measure": measure, "entries": k}
                rows.append({**keys, **v._asdict()})
        ax.plot(
            sizes, mean, marker=marker, color=colour, linewidth=2.1 if ranked else 1.6, markersize=5.5, alpha=strength,
            linestyle="-" if ranked else (0, (1, 1.5)), markerfacecolor=colour if ranked else "white",
        )  # fmt: skip
        ends.append((arm if ranked else f"{arm}\n(not ranked)", float(sizes[-1]), float(mean[-1]), colour))
    if ticks:
        ax.set_xscale("log", base=2)
        ax.set_xticks(ticks, [str(k) for k in ticks])
        ax.xaxis.set_minor_locator(NullLocator())
        ax.set_xlim(ticks[0] / 1.15, ticks[-1] * 1.15)
    ax.set_ylim(-3, 104)
    return ends


def training_range(ax: Axes, runs: Sequence[Run]) -> None:
    """Shades the sizes in training, and names what lies past them."""
    trained = next((run.trained_entries for run in runs if run.trained_entries), [])
    evaluated = sorted({k for run in runs for k in run.by_entries()})
    if not trained or not evaluated:
        return
    past = [k for k in evaluated if k > trained[-1]]
    edge = (trained[-1] * past[0]) ** 0.5 if past else ax.get_xlim()[1]
    ax.axvspan(ax.get_xlim()[0], edge, color=SHADE, zorder=0, linewidth=0)
    if past:
        ax.text(edge, 1.0, " past training ", transform=ax.get_xaxis_transform(), fontsize=8, color=FAINT, va="bottom")


def baselines(ax: Axes, runs: Sequence[Run], rows: Rows) -> None:
    """Dashed curves of what guessing would give, each with its name; their points join the rows."""
    found = next((e for run in runs if (e := run.evaluation("exact_match").get("baselines"))), {})
    sizes = sorted(found, key=int)
    kinds = {
        "copy_any": (0, (5, 2)),
        "digit_to_digit": (0, (8, 2)),
        "digit_by_digit": (0, (4, 2, 1, 2)),
        "constant": (0, (1, 2)),
    }
    labels: list[tuple[str, float, float]] = []
    text = {"textcoords": "offset points", "fontsize": 7.5, "color": FAINT}
    for key, style in kinds.items():
        points = [(int(k), 100 * float(found[k][key])) for k in sizes if key in found[k]]
        if not points:
            continue
        x, y = zip(*points, strict=True)
        ax.plot(x, y, color=FAINT, linewidth=1.1, linestyle=style, zorder=1)
        name = key.replace("_", " ")
        middle = len(x) // 2
        if y[0] > 60:  # at the left the name would lie among the arms
            ax.annotate(name, (x[middle], y[middle]), (-4, -4), ha="right", va="top", **text)
        elif labels and abs(labels[-1][2] - y[0]) < 5:  # too close for two names
            labels[-1] = (f"{labels[-1][0]}, {name}", x[0], max(labels[-1][2], y[0]))
        else:
            labels.append((name, x[0], y[0]))
        rows += [{"series": key, "entries": k, "mean": v / 100} for k, v in points]
    for name, x, y in labels:
        ax.annotate(name, (x, y), (3, 3), **text)


def capacity(ax: Axes, answers: int, alternatives: int) -> list[float]:
    """Dashes the most that any state can answer, and returns the bytes at the curve's foot and head.

    The inverse of the rate-distortion function of `answers` independent values, each of equally likely `alternatives`,
    under Hamming distortion (Cover & Thomas, Elements of Information Theory, 2nd edition, problem 10.5).
    """
    right = np.linspace(1 / alternatives, 1, 400)[1:]
    wrong = 1 - right
    with np.errstate(divide="ignore", invalid="ignore"):  # 0 log 0 is 0
        doubt = -np.nan_to_num(right * np.log2(right)) - np.nan_to_num(wrong * np.log2(wrong))
    other = math.log2(max(alternatives - 1, 1))
    held = answers * (math.log2(alternatives) - doubt - wrong * other) / 8
    ax.plot(held, 100 * right, color=FAINT, linewidth=1.2, linestyle=(0, (4, 2)), zorder=1)
    ax.annotate(
        "← out of reach\n    of any state",
        (held[-1], 97),
        (3, 0),
        textcoords="offset points",
        fontsize=7.5,
        color=FAINT,
        va="top",
    )
    return [float(held[-1]) / 4, float(held[-1])]


def band(runs: Sequence[Run]) -> str:
    """What an interval of these runs is taken over."""
    seeds = len({run.replicate for run in runs})
    if seeds >= LEAST_SEEDS:
        return f"over {seeds} seeds and their items"
    return f"over the items of these checkpoints ({seeds} seed{'s' * (seeds != 1)})"
