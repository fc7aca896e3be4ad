"""Figures of what workbench.explore.inside sees: a function a figure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from workbench.evaluate.interval import clustered
from workbench.explore.inside import KINDS, Answers, Look, Paper, spoken
from workbench.study.canvas import COLOURS, FAINT, INK, SHADE, canvas

LABELLED = 40  # tokens up to which a map names each
ACROSS = 5  # maps side by side at most


def maps(names: Sequence[str], looks: Sequence[Look], paper: Paper) -> Figure:
    """For each layer that mixes tokens: what comes from where in the first book, of all heads and of the one that takes
    most from the digits asked for. These are framed.
    """
    seen = [(name, each) for name, each in zip(names, looks, strict=True) if each.shares is not None]
    if not seen:
        raise ValueError(f"none of the layers {', '.join(names)} mixes tokens in a way that is known here")
    lines = -(-len(seen) // ACROSS)
    across = -(-len(seen) // lines)
    figure, axes = canvas(2 * lines, across, (0.9 + 2.7 * across, 0.5 + 5.5 * lines))
    past = np.triu(np.ones(paper.tokens.shape[1:] * 2, bool), 1)
    for ax in axes:
        ax.set_visible(False)
    labels, image = spoken(paper.tokens[0]), None
    for place, (name, each) in enumerate(seen):
        line, column = divmod(place, across)
        best = int(each.answer.mean(axis=0).argmax())
        heads = len(each.shares)
        pictures = (
            (f"{name}: mean of {heads} {_heads(each)}", each.shares.mean(axis=0)),
            (f"{name}: {_heads(each)[:-1]} {best + 1}, most on the answer", each.shares[best]),
        )
        for row, (title, picture) in enumerate(pictures):
            ax = axes[(2 * line + row) * across + column]
            ax.set_visible(True)
            ax.grid(False)
            image = ax.imshow(
                np.ma.array(picture, mask=past), cmap="BuPu", norm=PowerNorm(0.5, 0, 1), interpolation="nearest"
            )
            ax.set_title(title, loc="left", fontsize=9)
            for t, s in zip(paper.asked, paper.source[0], strict=True):
                ax.add_patch(Rectangle((s - 0.5, t - 0.5), 1, 1, fill=False, edgecolor=COLOURS[1], linewidth=1.3))
            ax.axhline(paper.mark - 0.5, color=FAINT, linewidth=0.7, linestyle=(0, (3, 2)))
            if len(labels) <= LABELLED:
                ax.set_xticks(range(len(labels)), labels if row else [], fontsize=5.5, rotation=90)
                ax.set_yticks(range(len(labels)), [] if column else labels, fontsize=5.5)
            ax.tick_params(length=0)
            if column == 0:
                ax.set_ylabel("token that takes")
            if row == 1:
                ax.set_xlabel("token that is taken from")
    bar = figure.colorbar(image, ax=axes, shrink=0.5, pad=0.015, aspect=30)
    bar.set_label("share of what the token takes in", fontsize=9, color=INK)
    bar.outline.set_visible(False)
    return figure


def _heads(each: Look) -> str:
    """Of Mamba, whose every channel has a map of its own, heads are channels."""
    return "channels" if each.rates is not None and each.rates.shape[1] > 1 else "heads"


def steps(names: Sequence[str], looks: Sequence[Look], paper: Paper) -> Figure | None:
    """Step sizes and decays of each state-space layer, by what the token is; None where there is no such layer."""
    seen = [(name, each) for name, each in zip(names, looks, strict=True) if each.steps is not None]
    if not seen:
        return None
    figure, axes = canvas(2, len(seen), (1.0 + 2.9 * len(seen), 5.0), sharex="row")
    low = min(float(np.quantile(each.steps, 0.001)) for _, each in seen)
    high = max(float(each.steps.max()) for _, each in seen)
    edges = np.geomspace(low, high, 50), np.linspace(0, 1, 41)
    for column, (name, each) in enumerate(seen):
        few = each.steps[:8]  # books: the decays of a layer with many states are many
        decays = np.exp(few[..., None] * each.rates)
        for kind, word in enumerate(KINDS):
            at = paper.kinds == kind
            values = np.clip(each.steps[:, at].ravel(), low, high), decays[:, at].ravel()
            for ax, value, edge in zip(axes[column :: len(seen)], values, edges, strict=True):
                weight = np.full(len(value), 100 / len(value))
                ax.hist(value, edge, weights=weight, histtype="stepfilled", color=COLOURS[kind], alpha=0.18)
                ax.hist(value, edge, weights=weight, histtype="step", color=COLOURS[kind], linewidth=1.4, label=word)
        top, bottom = axes[column :: len(seen)]
        top.set_title(name, loc="left", fontsize=10)
        top.set(xscale="log", xlabel="step size dt")
        bottom.set(xlabel="decay a token, exp(dt A)")
        if column == 0:
            top.set_ylabel("% of tokens and heads")
            bottom.set_ylabel("% of tokens and states")
            top.legend(title="token", title_fontsize=8.5, fontsize=8.5, frameon=False, loc="upper left")
    return figure


def memory(names: Sequence[str], looks: Sequence[Look], paper: Paper) -> Figure:
    """For every head of each layer that mixes tokens: how long it keeps (filled), and from how far back it takes."""
    seen = [(name, each) for name, each in zip(names, looks, strict=True) if each.distance is not None]
    figure, (ax,) = canvas(1, 1, (1.6 + 1.5 * max(len(seen), 2), 3.9))
    for place, (_, each) in enumerate(seen):
        _strip(ax, place - 0.16, each.memory, COLOURS[0], filled=True)
        _strip(ax, place + 0.16, each.distance, COLOURS[1], filled=False)
    ax.plot([], [], "o", color=COLOURS[0], label="keeps: tokens until e⁻¹ is left")
    ax.plot([], [], "o", color=COLOURS[1], markerfacecolor="white", label="takes from: mean tokens back")
    ax.axhline(paper.mark, color=FAINT, linewidth=1, linestyle=(0, (4, 2)))
    ax.annotate(
        " the book", (1, paper.mark), xycoords=("axes fraction", "data"), color=FAINT, fontsize=8.5, va="center"
    )
    ax.set_xticks(range(len(seen)), [name for name, _ in seen])
    ax.grid(axis="x", visible=False)
    ax.set(yscale="log", xlabel="layer", ylabel="tokens, a point a head", xlim=(-0.6, len(seen) - 0.4))
    figure.legend(*ax.get_legend_handles_labels(), loc="outside lower left", ncols=2, fontsize=8.5, frameon=False)
    return figure


def _strip(ax: Axes, centre: float, values: np.ndarray | None, colour: str, *, filled: bool) -> None:
    """Points beside each other, spread in the order in which they come; a line at their median."""
    if values is None:
        return
    alpha, size = (0.9, 5.5) if len(values) <= 16 else (0.35, 3.5)
    at = centre + np.linspace(-0.1, 0.1, len(values)) if len(values) > 1 else [centre]
    ax.plot(
        at, values, "o", color=colour, markersize=size, alpha=alpha, markerfacecolor=colour if filled else "white",
    )  # fmt: skip
    middle = float(np.median(values))
    ax.plot([centre - 0.13, centre + 0.13], [middle, middle], color=INK, linewidth=1.6, solid_capstyle="round")


def answering(names: Sequence[str], found: Answers) -> Figure:
    """The right digits' log-probability after each layer, and whole numbers right without each layer's contribution."""
    figure, (lens, without) = canvas(1, 2, (3.2 + 1.0 * max(len(names), 4), 3.7))
    nats = found.lens[0].mean(axis=1)  # [L + 1, digits]
    for digit in range(nats.shape[1]):
        lens.plot(
            range(len(nats)), nats[:, digit], marker="os^Dv"[digit % 5], color=COLOURS[digit % len(COLOURS)],
            linewidth=1.8, markersize=5.5, label=f"digit {digit + 1}",
        )  # fmt: skip
    lens.axhline(-np.log(10), color=FAINT, linewidth=1, linestyle=(0, (4, 2)))
    lens.annotate(
        "a guess among ten digits", (0, -np.log(10)), (2, 3), textcoords="offset points", fontsize=8, color=FAINT
    )
    lens.set_xticks(range(len(nats)), ["embedding", *names], rotation=45, ha="right", rotation_mode="anchor")
    lens.set_title("Read after each layer", loc="left", fontsize=10)
    lens.set(ylabel="nats of the right digit", ylim=(None, 0.3))
    lens.legend(loc="lower right", fontsize=8.5, frameon=False)
    means, low, high = np.array(exact(found)).T
    places = np.arange(len(names))
    without.axhspan(100 * low[0], 100 * high[0], color=SHADE, zorder=0)
    without.axhline(100 * means[0], color=INK, linewidth=1)
    without.annotate(
        "the whole model", (1, 100 * means[0]), (-2, 3), xycoords=("axes fraction", "data"),
        textcoords="offset points", fontsize=8, ha="right", color=INK,
    )  # fmt: skip
    without.bar(places, 100 * means[1:], 0.62, color=COLOURS[5])
    without.vlines(places, 100 * low[1:], 100 * high[1:], color=INK, linewidth=1.2)
    without.set_xticks(places, names)
    without.grid(axis="x", visible=False)
    without.set_title("Without a layer at the question", loc="left", fontsize=10)
    without.set(ylabel="whole numbers right, %", ylim=(0, 108))
    without.set_xlabel("layer left out")
    return figure


def exact(found: Answers) -> list[tuple[float, float, float]]:
    """Share of whole numbers right with its 95% interval over books: of the whole model, then without each layer."""
    right = found.without[1].all(axis=-1)
    return [tuple(clustered(each, np.ones(len(each)))) for each in right]


def conclusion(names: Sequence[str], looks: Sequence[Look], found: Answers, paper: Paper) -> str:
    """What was seen, in sentences: of this checkpoint and these books."""
    whole, *without = exact(found)
    books = f"{len(paper.tokens)} unseen books of {int((paper.kinds == 0).sum() // _name_tokens(paper))} entries"
    said = [f"{whole[0]:.0%} [{whole[1]:.0%}, {whole[2]:.0%}] of the numbers asked for in {books} are right."]
    needed = sorted((share[0], name) for name, share in zip(names, without, strict=True) if share[2] < whole[1])
    if needed:
        each = ", ".join(f"{share:.0%} without layer {name}" for share, name in needed)
        said.append(f"Without its contribution where the question stands: {each}.")
        rest = len(names) - len(needed)
        said.append(f"Leaving out any of the other {rest} makes no difference that is seen." if rest else "")
    else:
        said.append("No single layer is seen to be needed where the question stands.")
    heads = [
        (float(each.answer.mean(axis=0).max()), int(each.answer.mean(axis=0).argmax()) + 1, name, _heads(each)[:-1])
        for name, each in zip(names, looks, strict=True)
        if each.answer is not None
    ]
    if heads:
        share, head, name, kind = max(heads)
        said.append(
            f"The most of what any {kind} takes from the digit asked for is {share:.0%}: {kind} {head} of layer {name}."
        )
    kept = [
        (float(np.median(each.memory)), name) for name, each in zip(names, looks, strict=True) if each.steps is not None
    ]
    if kept:
        listed = ", ".join(f"{tokens:,.0f} in layer {name}" for tokens, name in kept)
        said.append(
            f"Half of the heads keep what they write for longer than these tokens: {listed}; the book has {paper.mark}."
        )
    return "\n".join(filter(None, said))


def _name_tokens(paper: Paper) -> int:
    return int(np.flatnonzero(paper.kinds != 0)[0])
