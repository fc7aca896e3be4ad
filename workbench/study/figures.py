"""The study's figures: each function draws one from a collected study and returns it with its data as rows.

Colours and markers belong to an arm throughout, tell apart without colour vision and in grey; curves carry their name.
A task whose arms read different token streams is never overlaid: the reason is printed across the figure.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from workbench.evaluate.chance import grey_out, holds
from workbench.evaluate.interval import Interval
from workbench.study import differences, judge, scaling, statistics, tune
from workbench.study.canvas import (
    FAINT,
    INK,
    SHADE,
    Drawing,
    Rows,
    bytes_axis,
    canvas,
    end_labels,
    engineering,
    legend,
    print_across,
)
from workbench.study.collect import PLACES, Run, Study, interval
from workbench.study.panels import (
    band,
    baselines,
    capacity,
    curves_by_entries,
    drawable,
    estimates,
    is_ranked,
    styles,
    training_range,
)
from workbench.study.wording import BITS, listed, words


def drawings(study: Study) -> list[Drawing]:
    """Every figure for which the study has data, in the report's order."""
    out = []
    for task in study.tasks:
        runs = [run for run in study.select("result", "control", "state", task=task) if run.finished]
        books, text = any(r.by_entries() for r in runs), any(r.bits_per_byte for r in runs)
        if books:
            out.append(recall(study, task))
            if any(r.evaluation("exact_match").get("by_depth") for r in runs):
                out.append(depth(study, task))
        if text:
            out.append(text_bits(study, task))
        if len(judge.ranked(study, task)) > 1 and differences.measures(study, task):
            out.append(gaps(study, task))
        if len(judge.budgets(study, task)) > 1 and differences.measures(study, task):
            out.append(at_budgets(study, task))
        if scaling.runs(study, task):
            out.append(by_size(study, task))
        if any(r.by_position() for r in runs):
            out.append(positions(study, task))
        if any(run.curve() for run in runs if run.role == "result"):
            out.append(learning(study, task))
        if any(judge.trials_of(study, task).values()):
            out.append(tuned(study, task))
        if books:
            out.append(state(study, task))
            if any(run.role == "control" for run in runs):
                out.append(controls(study, task))
    return out


# ---- the figures


def recall(study: Study, task: str) -> Drawing:
    """Exact match and digit accuracy against the number of entries, with baselines and the end of training."""
    runs, banner = drawable(study, task, "result")
    units, holder, whole, part = words(task)
    kinds = {"exact_match": whole.capitalize()} | ({"digit_accuracy": f"Single {part}"} if part != whole else {})
    figure, axes = canvas(1, len(kinds), (1.4 + 4.1 * len(kinds), 4.3), sharey=True)
    rows: Rows = []
    for ax, (measure, title) in zip(axes, kinds.items(), strict=True):
        drawn = curves_by_entries(study, task, runs, measure, ax, rows)
        training_range(ax, runs)
        if measure == "exact_match":
            baselines(ax, runs, rows)
        ax.set_title(title, loc="left")
        ax.set_xlabel(f"{units} in the {holder}")
        end_labels(ax, drawn)
    axes[0].set_ylabel(f"correct on unseen {holder}s, %")
    print_across(figure, banner)
    spread = band(runs)
    caption = (
        f"Correct answers on unseen {holder}s against the number of {units}: {whole}"
        + (f" (left) and single {part} (right)" if part != whole else "")
        + f". Thick: mean over seeds; thin: each seed; band: 95 %, {spread}. Shaded: sizes in training."
    )
    said = {
        "copy_any": f"copying any answer of the {holder}",
        "constant": "the best constant",
        "digit_by_digit": "guessing digit by digit",
        "digit_to_digit": "looking up each digit by the one before it",
    }
    if guesses := [said[name] for name in dict.fromkeys(row["series"] for row in rows) if name in said]:
        caption += f" Dashed: what {listed(guesses)} would give."
    marked = [arm for arm in dict.fromkeys(r.arm for r in runs) if not is_ranked(study, task, arm)]
    if marked:
        caption += f" Dotted, hollow: not ranked ({listed(marked)})."
    return Drawing(f"{task}-recall", figure, rows, caption)


def controls(study: Study, task: str) -> Drawing:
    """Exact match of the control arms beside the study's arms."""
    runs, banner = drawable(study, task, "result", "control")
    figure, (ax,) = canvas(1, 1, (6.2, 4.3))
    rows: Rows = []
    units, holder, whole, _ = words(task)
    faint = {run.arm for run in runs if run.role == "result"}
    end_labels(ax, curves_by_entries(study, task, runs, "exact_match", ax, rows, faint))
    training_range(ax, runs)
    ax.set_xlabel(f"{units} in the {holder}")
    ax.set_ylabel(f"correct {whole}, %")
    print_across(figure, banner)
    caption = (
        f"Controls (strong) beside the study's arms (faint): exact match on unseen {holder}s; band: 95 %, {band(runs)}."
    )
    return Drawing(f"{task}-controls", figure, rows, caption)


def depth(study: Study, task: str) -> Drawing:
    """Exact match by the asked-for entry's depth in the book and the number of entries, a map for each arm.

    Cells are grey where the interval over items and seeds holds what copying any answer of the book would give.
    """
    runs, banner = drawable(study, task, "result")
    arms = list(dict.fromkeys(run.arm for run in runs if run.evaluation("exact_match").get("by_depth")))
    across = min(max(len(arms), 1), 4)
    down = -(-max(len(arms), 1) // across)
    figure, axes = canvas(down, across, (1.0 + 2.2 * across, 0.7 + 2.1 * down))
    rows: Rows = []
    units, holder, whole, _ = words(task)
    image = None
    for ax, arm in zip(axes, arms, strict=False):
        cells: dict[tuple[int, float], list[Interval]] = {}
        chances: dict[int, float] = {}
        for run in (r for r in runs if r.arm == arm):
            evaluation = run.evaluation("exact_match")
            for size, found in evaluation.get("baselines", {}).items():
                chances[int(size)] = found.get("copy_any", 0.0)
            for cell in evaluation.get("by_depth", ()):
                key = int(cell["entries"]), round(float(cell["depth"]), 4)
                cells.setdefault(key, []).append(interval(cell))
                rows.append({"arm": arm, "seed": run.replicate[1], **cell, "chance": chances.get(key[0])})
        sizes = sorted({k for k, _ in cells})
        bins = np.linspace(0, 1, max(sum(kk == k for kk, _ in cells) for k in sizes))
        grid = np.full((len(bins), len(sizes)), np.nan)
        doubtful = np.zeros(grid.shape, bool)
        for j, k in enumerate(sizes):
            own = [d for kk, d in cells if kk == k]
            for i, d in enumerate(bins):  # a small book has few places: each covers the rows nearest to it
                at, _ = statistics.over_seeds(cells[k, min(own, key=lambda x, d=d: abs(x - d))])
                grid[i, j] = at.mean
                doubtful[i, j] = k in chances and holds(at.low, at.high, chances[k])
        image = ax.imshow(100 * grid, vmin=0, vmax=100, cmap="cividis", aspect="auto", origin="upper")
        grey_out(ax, doubtful)
        ax.set_xticks(range(len(sizes)), [str(k) for k in sizes])
        ax.set_yticks([0, len(bins) - 1], ["first", "last"])
        ax.tick_params(length=0)
        ax.grid(False)
        ax.set_title(arm + ("" if is_ranked(study, task, arm) else " (not ranked)"), loc="left")
        for k in (k for k in sizes if k == max((t for t in runs[0].trained_entries if t in sizes), default=None)):
            ax.axvline(sizes.index(k) + 0.5, color="white", linewidth=1.2, linestyle=(0, (3, 2)))
    for ax in axes[len(arms) :]:
        ax.set_visible(False)
    if image is not None:
        bar = figure.colorbar(image, ax=list(axes), shrink=0.85, pad=0.02)
        bar.set_label(f"correct {whole}, %")
        bar.outline.set_visible(False)
        bar.ax.tick_params(labelsize=8.5, colors=INK)
        bar.ax.yaxis.label.set(size=9, color=INK)
    figure.supxlabel(f"{units} in the {holder}", fontsize=9, color=INK)
    figure.supylabel(f"place in the {holder}", fontsize=9, color=INK)
    print_across(figure, banner)
    caption = (
        f"Exact match by where what is asked for stands in the {holder} (down) and the number of {units} (across), "
        "mean over seeds. Right of the dashed line: past the sizes in training. Grey: no better than chance, which is "
        f"copying any answer of the {holder} (95 %, {band(runs)})."
    )
    return Drawing(f"{task}-depth", figure, rows, caption)


def learning(study: Study, task: str) -> Drawing:
    """Training loss, and what was measured on the select split, against tokens, training FLOPs and seconds."""
    runs, banner = drawable(study, task, "result")
    known = styles(study)
    measure = next(
        (m for m in ("exact_match", "bits_per_byte") for r in runs for row in r.select_curve() if m in row), None
    )
    figure, grid = canvas(2 if measure else 1, 3, (9.6, 5.4 if measure else 3.0), sharex="col", sharey="row")
    rows: Rows = []
    kinds = [("loss", "training loss, nats", lambda run: run.curve())]
    if measure:
        named = {"exact_match": "exact match (select), %", "bits_per_byte": "bits per byte (select)"}[measure]
        kinds.insert(0, (measure, named, lambda run: run.select_curve()))
    for line, (key, label, curve) in enumerate(kinds):
        for column, against in enumerate(("tokens", "flops", "seconds")):
            ax = grid[3 * line + column]
            for run in runs:
                points = [(row[against], row[key]) for row in curve(run) if against in row and key in row]
                if not points:
                    continue
                x, y = np.array(points, float).T
                y = 100 * y if key == "exact_match" else y
                ax.plot(x, y, color=known[run.arm].colour, linewidth=1.3, alpha=0.8)
                if column == 0:
                    rows += [
                        {"arm": run.arm, "seed": run.replicate[1], "measure": key, "value": row[key]}
                        | {name: row.get(name) for name in PLACES}
                        for row in curve(run)
                        if key in row
                    ]
            ax.xaxis.set_major_locator(MaxNLocator(5))
            ax.xaxis.set_major_formatter(FuncFormatter(engineering))
            losses = [row[key] for run in runs for row in curve(run) if key in row] if key == "loss" else []
            if losses and max(losses) > 10 * min(losses) > 0:  # less than a decade has no ticks of its own
                ax.set_yscale("log")
                ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
                ax.yaxis.set_minor_formatter(FuncFormatter(lambda v, _: ""))
            if key == "exact_match":
                ax.set_ylim(-3, 103)
            if column == 0:
                ax.set_ylabel(label)
            if line == len(kinds) - 1:
                ax.set_xlabel(
                    {"tokens": "tokens", "flops": "training FLOPs", "seconds": "seconds of training"}[against]
                )
    legend(figure, {run.arm: known[run.arm] for run in runs})
    print_across(figure, banner)
    caption = (
        "Learning curves of every seed against tokens, training FLOPs and seconds (of training alone, as measured "
        "beside whatever else ran on the machine). A cosine schedule flattens every curve, so flatness proves nothing; "
        "only the ends of the curves are compared."
    )
    return Drawing(f"{task}-learning", figure, rows, caption)


def tuned(study: Study, task: str) -> Drawing:
    """What tuning gave each arm on the select split, by rate, and the expected best by the number of rates tried."""
    known, rows, problems = styles(study), [], []
    figure, (by_rate, by_budget) = canvas(1, 2, (9.6, 3.6), sharey=True)
    label = ""
    for arm, trials in judge.trials_of(study, task).items():
        try:
            found = tune.choice(trials)
        except ValueError as why:
            problems.append(f"not drawn: {arm}; {why}")
            continue
        label, scale = found["measure"].replace("_", " "), 1 if found["measure"] in BITS else 100
        rates, budgets = found["rates"], found["by_budget"]
        rows += [{"arm": arm, "learning_rate": row["learning_rate"], "mean": row["mean"]} for row in rates]
        rows += [{"arm": arm, "rates_tried": tried, "mean": value} for tried, value in enumerate(budgets, 1)]
        colour, marker = known[arm]
        for ax, x, y in (
            (by_rate, [row["learning_rate"] for row in rates], [row["mean"] for row in rates]),
            (by_budget, range(1, len(budgets) + 1), budgets),
        ):
            shown = [np.nan if value is None else scale * value for value in y]  # NaN: a gap in the line
            ax.plot(x, shown, color=colour, marker=marker, linewidth=1.6, markersize=5.5)
    by_rate.set_xscale("log")
    by_rate.set_xlabel("learning rate")
    by_rate.set_ylabel(f"{label} on select" + ("" if label.replace(" ", "_") in BITS else ", %"))
    by_budget.set_xlabel("rates tried")
    by_budget.xaxis.set_major_locator(MaxNLocator(integer=True))
    legend(figure, {arm: known[arm] for arm in dict.fromkeys(row["arm"] for row in rows)})
    print_across(figure, "\n".join(problems))
    caption = (
        "Tuning, on the select split and on seeds that are not reported: each rate's mean over its seeds (left), and "
        "what the best of so many rates would have been, in the mean over which they were (right). A run that ended in "
        "NaN leaves a gap."
    )
    return Drawing(f"{task}-tuning", figure, rows, caption)


LISTED = 20  # most groups that are drawn one by one


def text_bits(study: Study, task: str) -> Drawing:
    """Bits per byte of every arm with 95% intervals, and by group (package, project) where there are few."""
    runs, banner = drawable(study, task, "result")
    known = styles(study)
    arms = list(dict.fromkeys(run.arm for run in runs if run.bits_per_byte))
    groups = list(dict.fromkeys(p for run in runs for p in run.evaluation("bits_per_byte").get("by_group") or {}))
    groups = groups if len(groups) <= LISTED else []
    figure, axes = canvas(1, 2 if groups else 1, (9.6 if groups else 5.4, 1.3 + 0.36 * max(len(arms), len(groups))))
    rows: Rows = []
    by_arm = {arm: [run for run in runs if run.arm == arm] for arm in arms}
    estimates(axes[0], known, by_arm, "bits_per_byte", None)
    axes[0].set_xlabel("bits per byte on unseen groups (less is better)")
    for arm, mine in by_arm.items():
        for run in mine:
            rows.append({"arm": arm, "seed": run.replicate[1], "group": "all", **run.bits_per_byte._asdict()})
            for group, value in (run.evaluation("bits_per_byte").get("by_group") or {}).items():
                rows.append({"arm": arm, "seed": run.replicate[1], "group": group, "mean": _mean(value)})
        if groups:
            found = [[_mean(run.evaluation("bits_per_byte")["by_group"][p]) for run in mine] for p in groups]
            colour, marker = known[arm]
            axes[1].plot(
                [np.mean(f) for f in found], range(len(groups)), marker, color=colour, markersize=5.5, alpha=0.9
            )
    if groups:
        axes[1].set_yticks(range(len(groups)), groups)
        axes[1].set_ylim(len(groups) - 0.5, -0.7)
        axes[1].set_xlabel("bits per byte by group")
    for ax in axes:
        ax.grid(axis="y", visible=False)
    print_across(figure, banner)
    caption = f"Bits per byte on text of groups that were not trained on; bars: 95 %, {band(runs)}."
    return Drawing(f"{task}-bits", figure, rows, caption)


def gaps(study: Study, task: str) -> Drawing:
    """How far each ranked arm lies behind the best, paired, at both levels of claim, beside the noise floor."""
    measures, arms, known = differences.measures(study, task), judge.ranked(study, task), styles(study)
    compared = [c for c in differences.comparisons(study) if (c.task, c.budget) == (task, "tokens")]
    size = (1.6 + 3.4 * len(measures), 1.3 + 0.36 * len(arms))
    figure, axes = canvas(1, len(measures), size, sharey=True)
    ended, rows = judge.at(study, task, "tokens"), []
    for ax, (measure, entries) in zip(axes, measures, strict=True):
        means = {arm: differences.mean_of(ended[arm], measure, entries).mean for arm in arms}
        best = (min if measure in BITS else max)(arms, key=means.get)
        scale = 1 if measure in BITS else 100
        reach = [0.0]
        for place, arm in enumerate(arms):
            colour, marker = known[arm]
            if arm == best:
                ax.annotate("best", (0, place), (0, 7), textcoords="offset points", ha="center", color=colour)
                ax.plot(0, place, marker, color=colour, markersize=7)
                continue
            c = next(
                c for c in compared if (c.measure, c.entries, {c.first, c.second}) == (measure, entries, {arm, best})
            )
            turn = scale * (1 if (c.first == best) == (measure == "exact_match") else -1)
            levels = ((c.architectures, c.p_architectures, 1.2, 1), (c.checkpoints, c.p_checkpoints, 4, 0.5))
            for difference, p, width, strength in levels:
                if difference is not None:
                    low, high = sorted((turn * difference.low, turn * difference.high))
                    ax.plot(
                        [low, high], [place] * 2, color=colour, linewidth=width, alpha=strength, solid_capstyle="butt"
                    )
                    keys = {"measure": measure, "entries": entries, "best": best, "arm": arm, "claim": difference.claim}
                    rows.append({**keys, "behind": turn * difference.mean, "low": low, "high": high, "p_holm": p})
            mean = turn * c.difference.mean
            ax.plot(mean, place, marker, color=colour, markersize=7, markerfacecolor=colour if c.claim else "white")
            ax.annotate(
                f"{mean:+.3f}" if scale == 1 else f"{mean:+.1f}", (mean, place), (0, 7), textcoords="offset points",
                ha="center", color=colour,
            )  # fmt: skip
            if c.floor.seeds is not None:
                ax.fill_betweenx([place - 0.4, place + 0.4], 0, scale * c.floor.seeds, color=SHADE, zorder=0)
            reach += [turn * c.checkpoints.low, turn * c.checkpoints.high, scale * (c.floor.seeds or 0)]
        ax.axvline(0, color=FAINT, linewidth=0.8, zorder=0.5)
        margin = 0.12 * (max(reach) - min(reach)) or 1
        ax.set_xlim(min(reach) - margin, max(reach) + margin)
        books = f"points of exact match less than {best}, {entries} {words(task).units}"
        ax.set_xlabel(f"bits per byte more than {best}" if measure in BITS else books)
        ax.grid(axis="y", visible=False)
    axes[0].set_yticks(range(len(arms)), arms)
    for label, arm in zip(axes[0].get_yticklabels(), arms, strict=True):
        label.set_color(known[arm].colour)
    axes[0].set_ylim(len(arms) - 0.5, -0.7)
    caption = (
        "What each arm is behind the best, over the same items and seeds. Thick: 95 % for these checkpoints; thin: for "
        "these architectures (three seeds or more; where it leaves the panel it goes on). Filled where a difference is "
        "seen at either level after Holm's correction, hollow where none is. Grey: how far two runs of these arms lie "
        "apart whose seeds alone differ."
    )
    return Drawing(f"{task}-gaps", figure, rows, caption)


def at_budgets(study: Study, task: str) -> Drawing:
    """What every arm reaches where it has spent as much as the others: at equal tokens, training FLOPs and seconds."""
    budgets, (measure, entries) = judge.budgets(study, task), differences.measures(study, task)[0]
    known, arms = styles(study), judge.ranked(study, task)
    figure, axes = canvas(
        1, len(budgets), (3.2 * len(budgets), 1.3 + 0.36 * max(len(arms), 1)), sharex=True, sharey=True
    )
    rows: Rows = []
    reasons = []
    for ax, budget in zip(axes, budgets, strict=True):
        problems = judge.spending(study, task, budget)[1] if budget != "tokens" else []
        ended = {} if problems else judge.at(study, task, budget)
        reasons += [f"not drawn at {judge.EQUAL[budget]}: {problems[0]}"] if problems else []
        estimates(ax, known, {arm: ended[arm] for arm in arms if arm in ended}, measure, entries)
        ax.set_title(f"at {judge.EQUAL[budget]}", loc="left")
        for arm, runs in ended.items():
            for run in (run for run in runs if run.finished):
                value = differences.mean_of([run], measure, entries)
                keys = {"budget": budget, "arm": arm, "seed": run.replicate[1], "steps": run.result["steps"]}
                rows.append({**keys, "measure": measure, "mean": value.mean, "low": value.low, "high": value.high})
    what = "bits per byte" if measure == "bits_per_byte" else f"exact match, {entries} {words(task).units}, %"
    figure.supxlabel(what, fontsize=9, color=INK)
    print_across(figure, "\n".join(reasons))
    caption = (
        "The same arms where each has spent as much as the cheapest: a whole schedule each, on the beginning of the "
        "same tokens. Seconds are those of an arm that has the machine to itself. Bars: 95 %."
    )
    return Drawing(f"{task}-budgets", figure, rows, caption)


def by_size(study: Study, task: str) -> Drawing:
    """Bits per byte of every size of every arm against training FLOPs, tokens and parameters, with fitted curves."""
    known, problems = styles(study), scaling.problems(study, task)
    found = [curve for name in scaling.AGAINST if (curve := scaling.curves(study, task, name))]
    figure, axes = canvas(1, max(len(found), 1), (1.2 + 2.9 * max(len(found), 1), 3.6), sharey=True)
    rows: Rows = []
    for ax, curve in zip(axes, found, strict=False):
        measured, beyond = (np.geomspace(*ends, 60) for ends in ((curve.low, curve.high), (curve.high, 4 * curve.high)))
        for arm, fits in curve.fits.items():
            colour, marker = known[arm]
            for x, style in ((measured, "-"), (beyond, (0, (2, 2)))):
                mean, low, high = np.array([scaling.mean_at(fits, each) for each in x]).T
                ax.plot(x, mean, color=colour, linewidth=1.8, linestyle=style)
                ax.fill_between(x, low, high, color=colour, alpha=0.14, linewidth=0)
            for replicate, points in curve.points[arm].items():
                for x, value in points:
                    ax.plot(x, value.mean, marker, color=colour, markersize=4.5, alpha=0.8)
                    keys = {"arm": arm, "seed": replicate[1], "against": curve.against, "x": x}
                    rows.append({**keys, **value._asdict(), "fitted": float(fits[replicate].at(x))})
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=12))
        ax.xaxis.set_major_formatter(FuncFormatter(engineering))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.set_xlabel(scaling.AGAINST[curve.against])
    axes[0].set_ylabel("bits per byte on unseen groups")
    legend(figure, {arm: known[arm] for arm in dict.fromkeys(run.arm for run in scaling.runs(study, task))})
    print_across(
        figure, f"not drawn: {problems[0]}" if problems else "" if found else "not drawn: fewer than three sizes"
    )
    caption = (
        "Bits per byte of every size and seed, and the curve floor + scale x^-exponent, the mean of the seeds' own; "
        "band: 95 % over seeds, from three on. Dashed: past what was measured."
    )
    return Drawing(f"{task}-scaling", figure, rows, caption)


def positions(study: Study, task: str) -> Drawing:
    """Bits per byte against the position in long documents, as trained and after each extension."""
    runs, banner = drawable(study, task, "result", "extended")
    runs = [run for run in runs if run.by_position()]
    known = styles(study)
    lengths = sorted({run.length for run in runs})
    figure, axes = canvas(1, max(len(lengths), 1), (1.2 + 2.8 * max(len(lengths), 1), 3.7), sharey=True)
    rows: Rows = []
    for ax, length in zip(axes, lengths, strict=False):
        here = [run for run in runs if run.length == length]
        for arm in dict.fromkeys(run.arm for run in here):
            mine = [run for run in here if run.arm == arm]
            bins = [each for each in mine[0].by_position() if all(each in run.by_position() for run in mine)]
            means = [statistics.over_seeds([run.by_position()[each] for run in mine])[0] for each in bins]
            x = [(start or end / 4) ** 0.5 * end**0.5 for start, end in bins]  # the middle of a bin on this axis
            mean, low, high = np.array(means).T
            style = known[arm]
            ax.fill_between(x, low, high, color=style.colour, alpha=0.14, linewidth=0)
            ax.plot(x, mean, marker=style.marker, color=style.colour, linewidth=1.8, markersize=4.5)
            for run in mine:
                for (start, end), value in run.by_position().items():
                    keys = {"arm": arm, "seed": run.replicate[1], "length": length, "start": start, "end": end}
                    rows.append({**keys, "extrapolated": end > length, **value._asdict()})
        edges = sorted({end for run in here for _, end in run.by_position()})
        ax.set_xscale("log", base=2)
        ax.set_xticks(edges[::-2][::-1], [f"{end:,}" for end in edges[::-2][::-1]])
        ax.xaxis.set_minor_locator(NullLocator())
        ax.set_xlim(edges[0] / 4, edges[-1])
        ax.axvspan(edges[0] / 4, min(length, edges[-1]), color=SHADE, zorder=0, linewidth=0)
        if length < edges[-1]:
            ax.text(
                length, 0.99, " past training", transform=ax.get_xaxis_transform(), fontsize=8, color=FAINT, va="top"
            )
        how = "extended to" if any(run.extended_to for run in here) else "trained at"
        ax.set_title(f"{how} {length:,} tokens", loc="left")
        ax.set_xlabel("position in the document, tokens")
    axes[0].set_ylabel("bits per byte on unseen groups")
    legend(figure, {run.arm: known[run.arm] for run in runs})
    print_across(figure, banner)
    caption = (
        "Bits per byte by the position in long documents of groups that were not trained on, each read from its "
        f"beginning, at every length that was trained at. Band: 95 %, {band(runs)}. Shaded: lengths in training; past "
        "them the model extrapolates."
    )
    return Drawing(f"{task}-positions", figure, rows, caption)


def state(study: Study, task: str) -> Drawing:
    """Exact match against the bytes that one sequence keeps while decoding, at the largest trained size and past it."""
    runs, banner = drawable(study, task, "result", "state")
    known = styles(study)
    sizes = [k for k in differences.sizes_of_interest(study, task)][:3]
    figure, axes = canvas(1, max(len(sizes), 1), (max(5.6, 1.2 + 2.8 * len(sizes)), 3.5), sharey=True)
    rows: Rows = []
    for ax, entries in zip(axes, sizes, strict=False):
        groups: dict[str, dict[int, list[float]]] = {}
        for run in runs:
            value = run.by_entries().get(entries)
            if value and run.result.get("state_bytes"):
                groups.setdefault(run.arm, {}).setdefault(run.result["state_bytes"], []).append(value.mean)
                keys = {"arm": run.arm, "role": run.role, "seed": run.replicate[1], "entries": entries}
                sizes_of = {key: run.result.get(key) for key in ("state_bytes", "non_embedding_parameters")}
                rows.append(keys | sizes_of | value._asdict())
        asked = next((found for run in runs if (found := run.answers(entries))), None)
        held = capacity(ax, *asked) if asked else []
        rows += [
            {"arm": "", "role": "capacity", "entries": entries, "state_bytes": most, "mean": 1.0} for most in held[1:]
        ]
        for arm, points in groups.items():
            x = sorted(points)
            y = [100 * np.mean(points[v]) for v in x]
            style = known[arm]
            ax.plot(x, y, f"{style.marker}-", color=style.colour, markersize=6.5, linewidth=1.4)
            for v in x:
                ax.plot(
                    [v] * len(points[v]),
                    100 * np.array(points[v]),
                    style.marker,
                    color=style.colour,
                    markersize=3,
                    alpha=0.4,
                )
        bytes_axis(ax, [*held, *(v for points in groups.values() for v in points)])
        ax.set_ylim(-3, 105)
        ax.set_title(f"{entries} {words(task).units}", loc="left")
        ax.set_xlabel("state bytes a sequence")
    axes[0].set_ylabel(f"correct {words(task).whole}, %")
    legend(figure, {run.arm: known[run.arm] for run in runs})
    print_across(figure, banner)
    contexts = sorted({run.result["context"] for run in runs if run.result.get("context")})
    at = f" at {listed([str(c) for c in contexts])} tokens" if contexts else " at the length of a training row"
    caption = (
        f"Exact match against what one sequence keeps while decoding (keys and values, recurrent state, convolution "
        f"windows){at}. Large: mean over seeds; small: each seed.{_sizes(runs)}"
        + " Dashed: the most that any state of so many bytes can answer."
        * any(row["role"] == "capacity" for row in rows)
    )
    return Drawing(f"{task}-state", figure, rows, caption)


def _sizes(runs: list[Run]) -> str:
    """How many parameters the arms have whose state was varied; they grow with it."""
    varied = {run.arm for run in runs if run.role == "state"}
    sizes: dict[str, set[int]] = {}
    for run in runs:
        if run.arm in varied and run.result.get("non_embedding_parameters"):
            sizes.setdefault(run.arm, set()).add(run.result["non_embedding_parameters"])
    if not sizes:
        return ""
    listed = "; ".join(f"{arm} {', '.join(f'{n:,}' for n in sorted(each))}" for arm, each in sizes.items())
    return f" Only N differs along a line, and with it the non-embedding parameters: {listed}."


def _mean(value: Any) -> float:
    return float(value["mean"] if isinstance(value, dict) else value)
