"""A pattern editor for notebooks: what a pattern costs while it is typed, and what it learns when it is trained small.

    bench = editor("M-M-M*-", width=64, data=..., evaluation=..., folder=Path("runs/explore"))
    bench.box        # shows it

Runs stay in the folder: those of today and of yesterday are drawn together where they read the same data as long.
"""

from __future__ import annotations

import dataclasses
import functools
import html
import io
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import ipywidgets as widgets
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from workbench import pattern as patterns
from workbench.config import LayerConfig, ModelConfig, OptimizerConfig, RunConfig, default_symbols, to_json
from workbench.count import ELEMENT_BYTES, count
from workbench.devices import DEVICES, HERE, Device
from workbench.explore import trial as trials
from workbench.explore.trial import Trial
from workbench.record import read_json, read_rows
from workbench.speed.predict import decode, prompt
from workbench.study import progress
from workbench.study.canvas import COLOURS, FAINT, canvas, engineering
from workbench.study.sizes import FLOPS, binary, decimal
from workbench.study.status import State, states

EVERY = 1.0  # seconds between two looks at a run that trains
PRESETS = {
    "Transformer": "(*-)x3", "Mamba": "SSSSSS", "Mamba-2": "MMMMMM", "hybrid": "M-M-M*-",
    "the 8B hybrid of Waleffe et al. 2024": patterns.allocate(56, 0.08, 0.5),
}  # fmt: skip
KINDS = {  # class of a layer's config: what it is called, its colour
    "AttentionConfig": ("attention", COLOURS[1]),
    "MambaConfig": ("Mamba", COLOURS[2]),
    "Mamba2Config": ("Mamba-2", COLOURS[0]),
    "MLPConfig": ("MLP", COLOURS[6]),
}
STYLE = """<style>
.wb-tiles {display: flex; flex-wrap: wrap; gap: 3px; margin: 2px 0 4px 0}
.wb-tile {color: white; font: 600 13px monospace; width: 21px; line-height: 24px;
  text-align: center; border-radius: 4px}
.wb-facts {display: flex; flex-wrap: wrap; gap: 8px; margin: 6px 0}
.wb-fact {border: 1px solid var(--jp-border-color2, #ccc); border-radius: 6px; padding: 7px 12px; min-width: 128px}
.wb-fact b {font-size: 17px; font-weight: 600; line-height: 24px}
.wb-fact span {display: block; font-size: 11px; line-height: 15px; color: var(--jp-ui-font-color2, #666)}
.wb-error {border-left: 4px solid #c0392b; background: #c0392b14; border-radius: 4px; margin: 6px 0; padding: 8px 12px}
.wb-error pre {margin: 0; font: 12.5px monospace; line-height: 18px; white-space: pre-wrap; background: none}
.wb-runs {border-collapse: collapse; font-size: 12px; line-height: 20px; font-variant-numeric: tabular-nums}
.wb-runs td, .wb-runs th {padding: 2px 14px 2px 0; text-align: right; border: none}
.wb-runs td:nth-child(-n+2), .wb-runs th:nth-child(-n+2) {text-align: left; font-family: monospace}
.wb-dot {display: inline-block; width: 10px; height: 10px; border-radius: 5px}
.wb-faint {color: var(--jp-ui-font-color2, #888)}
</style>"""


# ---- what is shown of a pattern


class Fact(NamedTuple):
    """One number with its unit, and what stands small below it."""

    name: str
    value: str
    note: str


def facts(model: ModelConfig, device: Device, *, context: int, batch: int) -> list[Fact]:
    """What a model costs: its size, a token's FLOPs, what a sequence keeps, and what generating is predicted to take.

    Cache is what grows with the context, state what does not; speed is that of a decoding step's bytes and FLOPs alone.
    """
    at, element = count(model, context), ELEMENT_BYTES[model.dtype]
    cache = state = grown = 0
    for layer in model.layers:
        here, next_to = (layer.state_bytes(model.width, tokens, element) for tokens in (context, context + 1))
        if layer.state_bytes(model.width, 2, element) != layer.state_bytes(model.width, 1, element):
            cache, grown = cache + here, grown + next_to - here
        else:
            state += here
    step = decode(model, device, batch=batch, context=context)
    before = prompt(model, device, batch=batch, tokens=context)
    return [
        Fact("parameters", decimal(at.parameters), f"{decimal(at.non_embedding_parameters)} without embeddings"),
        Fact("FLOPs a token, training", decimal(at.train_flops_per_token, FLOPS), f"rows of {context:,} tokens"),
        Fact("FLOPs a token, decoding", decimal(at.decode_flops_per_token, FLOPS), f"after {context:,} tokens"),
        Fact("cache a sequence", binary(cache), f"and {binary(grown)} more with the next token"),
        Fact("state a sequence", binary(state), "whatever the context"),
        Fact(
            "decoding, predicted",
            f"{engineering(batch / step.seconds)} tokens/s",
            f"{_short(step.seconds)} a step, bound by {step.bound}",
        ),
        Fact("reading a prompt, predicted", _short(before), f"{batch} x {context:,} tokens on {device.name}"),
    ]


def _short(seconds: float) -> str:
    for unit, size in (("s", 1), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"


def tiles(pattern: str, symbols: Mapping[str, LayerConfig]) -> str:
    """The layers of a pattern as coloured tiles. Raises ValueError where it is none."""
    written = patterns.parse(pattern, symbols)
    shown = "".join(
        f'<div class="wb-tile" style="background:{kind(symbols[symbol])[1]}" title="layer {i}: '
        f'{html.escape(kind(symbols[symbol])[0])}">{html.escape(symbol)}</div>'
        for i, symbol in enumerate(written, 1)
    )
    return f'<div class="wb-tiles">{shown}</div>'


def kind(layer: LayerConfig) -> tuple[str, str]:
    """What a layer is called, and its colour."""
    return KINDS.get(type(layer).__name__, (type(layer).__name__.removesuffix("Config"), COLOURS[3]))


def cards(found: Sequence[Fact]) -> str:
    shown = "".join(
        f'<div class="wb-fact"><span>{html.escape(name)}</span><b>{html.escape(value)}</b>'
        f"<span>{html.escape(note)}</span></div>"
        for name, value, note in found
    )
    return f'<div class="wb-facts">{shown}</div>'


def error(why: Exception | str) -> str:
    return f'<div class="wb-error"><pre>{html.escape(str(why))}</pre></div>'


@functools.cache
def measured() -> Device:
    """This machine; it takes a few seconds."""
    from workbench.speed.measure import this_machine

    return this_machine()


# ---- what is shown of runs


class Known(NamedTuple):
    """A run of the folder. alike: whether it reads the same rows for as many steps as the one that it stands beside."""

    state: State
    config: dict[str, Any]
    rows: list[dict[str, Any]]  # of metrics.jsonl, with the tokens a second of timing.jsonl
    result: dict[str, Any]
    alike: bool


def known(folder: Path, run: RunConfig | None) -> list[Known]:
    """The runs of a folder in the order in which they began, those beside which `run` may be drawn first."""
    if not any(folder.glob("*/config.json")):
        return []
    wanted = None if run is None else to_json(run)
    found = []
    for state in states(folder):
        if state.state == "unreadable":
            continue
        place = folder / state.run
        config = read_json(place / "config.json") or {}
        rates = {row["step"]: row["tokens_per_second"] for row in read_rows(place / "timing.jsonl")}
        logged = [row for row in read_rows(place / "metrics.jsonl") if "loss" in row]
        rows = [row | {"tokens_per_second": rates.get(row["step"])} for row in logged]
        alike = wanted is None or all(config.get(name) == wanted[name] for name in ("data", "evaluation", "steps"))
        found.append(Known(state, config, rows, read_json(place / "result.json") or {}, alike))
    begun = {each.state.run: (folder / each.state.run / "config.json").stat().st_mtime for each in found}
    return sorted(found, key=lambda each: (not each.alike, begun[each.state.run]))  # a run keeps its colour


def colours(runs: Sequence[Known]) -> dict[str, str]:
    """Of each run that is drawn, by its place."""
    drawn = [each.state.run for each in runs if each.alike]
    return {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(drawn)}


def curves(runs: Sequence[Known], current: str = "") -> Figure:
    """Training loss and tokens a second against steps, of the runs that are alike; the current one's is thick."""
    figure, (loss, rate) = canvas(1, 2, (9.6, 3.1))
    known_colours = colours(runs)
    for each in (run for run in runs if run.alike and run.rows):
        strong = each.state.run == current
        look = {
            "color": known_colours[each.state.run], "linewidth": 2.4 if strong else 1.3, "alpha": 1 if strong else 0.65,
            "zorder": 3 if strong else 2,
        }  # fmt: skip
        steps = [row["step"] for row in each.rows]
        loss.plot(steps, [row["loss"] for row in each.rows], **look)
        rate.plot(steps, [row["tokens_per_second"] for row in each.rows], **look)
    for ax, title in ((loss, "training loss, nats a target"), (rate, "tokens a second, since the run began")):
        ax.set_title(title, loc="left", fontsize=10)
        ax.set_xlabel("step")
    rate.set_ylim(0, None)
    rate.yaxis.set_major_formatter(FuncFormatter(engineering))
    if not any(run.alike and run.rows for run in runs):
        for ax in (loss, rate):
            ax.set(xticks=[], yticks=[])
        loss.text(0.5, 0.5, "no run yet: press Train", transform=loss.transAxes, ha="center", color=FAINT)
    return figure


def listed(runs: Sequence[Known], current: str = "") -> str:
    """The runs as a table; those that read other data, or for another number of steps, come last, in grey."""
    if not runs:
        return ""
    head = ("", "pattern", "width", "parameters", "rate", "state", "step", "loss", "right", "tokens/s", "left")
    dots, lines = colours(runs), []
    for each in runs:
        state, model = each.state, each.config.get("model", {})
        dot = f'<span class="wb-dot" style="background:{dots[state.run]}"></span>' if state.run in dots else ""
        ended = state.state in ("finished", "nan", "failed")
        cells = (
            html.escape(model.get("pattern", state.run)),
            f"{model.get('width', '')}",
            decimal(each.result["parameters"]) if "parameters" in each.result else "",
            f"{each.config.get('optimizer', {}).get('learning_rate', 0):g}",
            state.state,
            f"{state.seen.step:,}/{state.steps or 0:,}",
            f"{state.seen.loss:.3f}" if state.seen.step else "",
            _right(each.result),
            engineering(state.seen.tokens_per_second) if state.seen.step else "",
            "" if ended else progress.clock(state.left) if state.left is not None else "",
        )
        row = "".join(f"<td>{cell}</td>" for cell in (dot, *cells))
        bold = "font-weight:600" if state.run == current else ""
        lines.append(f'<tr class="{"" if each.alike else "wb-faint"}" style="{bold}">{row}</tr>')
    other = sum(not each.alike for each in runs)
    noted = (
        f'<div class="wb-faint">{other} not drawn: they read other data or for another number of steps, so their '
        "curves say nothing beside these.</div>"
        if other
        else ""
    )
    titles = "".join(f"<th>{name}</th>" for name in head)
    return f'<table class="wb-runs"><tr>{titles}</tr>{"".join(lines)}</table>{noted}'


def _right(result: dict[str, Any]) -> str:
    """Exact match on test at the largest size that was trained at, or bits per byte; "" before a run's end."""
    for found in result.get("evaluation", {}).values():
        if sizes := found.get("exact_match"):
            size = max(
                (k for k in sizes if int(k) in found.get("trained_entries", ())), key=int, default=next(iter(sizes))
            )
            return f"{sizes[size]['mean']:.0%} of {size}"
        if bits := found.get("bits_per_byte"):
            return f"{bits['mean']:.3f} bits/byte"
    return ""


def conclusion(made: Editor) -> str:
    """What the finished runs that are drawn have come to, a line a run, with 95% intervals over items."""
    lines = []
    for each in known(made.folder, made.trial.run if made.trial else made.run()):
        if not each.alike or each.state.state != "finished":
            continue
        of = []
        for found in each.result["evaluation"].values():
            bits = {"bits per byte": found["bits_per_byte"]} if "bits_per_byte" in found else {}
            measured = found.get("exact_match") or bits
            of += [f"{size}: {v['mean']:.2f} [{v['low']:.2f}, {v['high']:.2f}]" for size, v in measured.items()]
        size = f"{each.result['parameters']:,} parameters, rate {each.config['optimizer']['learning_rate']:g}"
        lines.append(f"{each.config['arm']} ({size}): {', '.join(of)}")
    if not lines:
        return "No run like this one has finished in this folder: press Train."
    return "Right, by size of what was read; of one seed each, so of these checkpoints only:\n" + "\n".join(lines)


# ---- the editor


@dataclass
class Editor:
    """The widgets, what they were given, and the run that trains. Show `box`."""

    data: Any
    evaluation: Any
    optimizer: OptimizerConfig
    symbols: Mapping[str, LayerConfig]
    folder: Path
    inputs: dict[str, widgets.Widget]
    outputs: dict[str, widgets.Widget]
    box: widgets.Widget
    trial: Trial | None = None
    watcher: threading.Thread | None = field(default=None, repr=False)

    def value(self, name: str) -> Any:
        return self.inputs[name].value

    def model(self) -> ModelConfig:
        """The model that is written. Raises ValueError where it is none."""
        return ModelConfig(self.value("pattern").strip(), self.value("width"), self.data.vocabulary, self.symbols)

    def run(self) -> RunConfig:
        """The run that Train would start. Raises ValueError where it is none."""
        model, steps = self.model(), self.value("steps")
        optimizer = dataclasses.replace(self.optimizer, learning_rate=self.value("rate"))
        arm = model.pattern if len(model.pattern) <= 60 else f"{model.pattern[:57]}..."
        every = min(max(steps // 100, 1), 200)
        return RunConfig("explore", arm, model, self.data, self.evaluation, optimizer, steps=steps, log_every=every)


def editor(
    pattern: str,
    *,
    width: int,
    data: Any,
    evaluation: Any,
    folder: Path,
    symbols: Mapping[str, LayerConfig] | None = None,
    optimizer: OptimizerConfig | None = None,
    steps: int = 400,
) -> Editor:
    """The editor, with a first pattern. data, evaluation: what Train trains on and asks. symbols: sizes of layers."""
    symbols = {**default_symbols(), **(symbols or {})}
    optimizer = optimizer or OptimizerConfig()
    small = widgets.Layout(width="150px")
    inputs = {
        "pattern": widgets.Text(
            pattern, description="pattern", continuous_update=True, layout=widgets.Layout(width="420px")
        ),
        "width": widgets.BoundedIntText(width, 1, 2**20, description="width", layout=small),
        "context": widgets.SelectionSlider(
            options=[(f"{2**n:,}", 2**n) for n in range(6, 21)], value=4096, description="context",
            layout=widgets.Layout(width="330px"),
        ),
        "batch": widgets.BoundedIntText(1, 1, 2**16, description="batch", layout=small),
        "device": widgets.Dropdown(
            options=[*DEVICES, HERE], description="device", layout=widgets.Layout(width="230px")
        ),
        "steps": widgets.BoundedIntText(steps, 1, 10**7, description="steps", layout=small),
        "rate": widgets.FloatText(optimizer.learning_rate, description="rate", layout=small),
    }  # fmt: skip
    outputs = {
        "facts": widgets.HTML(),
        "cost": widgets.HTML(),
        "picture": widgets.Image(format="png", layout=widgets.Layout(width="100%", max_width="960px")),
        "runs": widgets.HTML(),
        "train": widgets.Button(description="Train", icon="play", button_style="primary"),
        "stop": widgets.Button(description="Stop and save", icon="stop", disabled=True),
    }
    keys = [_button(symbol, kind(layer)[0], kind(layer)[1]) for symbol, layer in symbols.items()]
    back = widgets.Button(icon="arrow-left", tooltip="take the last one away", layout=widgets.Layout(width="38px"))
    preset = widgets.Dropdown(options=[("or take ...", ""), *PRESETS.items()], layout=widgets.Layout(width="170px"))
    line = functools.partial(widgets.HBox, layout=widgets.Layout(flex_flow="row wrap", align_items="center"))
    box = widgets.VBox([
        widgets.HTML(STYLE, layout=widgets.Layout(display="none")),
        line([inputs["pattern"], *keys, back, preset]),
        line([inputs["width"], inputs["batch"], inputs["context"], inputs["device"]]),
        outputs["facts"],
        line([inputs["steps"], inputs["rate"], outputs["train"], outputs["stop"], outputs["cost"]]),
        outputs["picture"],
        outputs["runs"],
    ])  # fmt: skip
    made = Editor(data, evaluation, optimizer, symbols, Path(folder), inputs, outputs, box)

    def write(change: Callable[[str], str]):
        inputs["pattern"].value = change(inputs["pattern"].value)

    for key, symbol in zip(keys, symbols, strict=True):
        key.on_click(lambda _, symbol=symbol: write(lambda text: text + symbol))
    back.on_click(lambda _: write(lambda text: text[:-1]))
    preset.observe(lambda change: change["new"] and write(lambda _: change["new"]), "value")
    for each in inputs.values():
        each.observe(lambda _: describe(made), "value")
    outputs["train"].on_click(lambda _: train(made))
    outputs["stop"].on_click(lambda _: stop(made))
    refresh(made)
    describe(made)
    return made


def _button(symbol: str, name: str, colour: str) -> widgets.Button:
    made = widgets.Button(description=symbol, tooltip=f"add {name}", layout=widgets.Layout(width="38px"))
    made.style.button_color, made.style.text_color, made.style.font_weight = colour, "white", "bold"
    return made


def describe(made: Editor) -> None:
    """Shows what the pattern costs, or what is wrong with it, in place."""
    page, cost, device = made.outputs["facts"], made.outputs["cost"], made.value("device")
    try:
        model = made.model()
        shown = tiles(model.pattern, made.symbols)
        if device == HERE and not measured.cache_info().currsize:
            page.value = shown + '<div class="wb-faint">measuring this machine ...</div>'
        device = measured() if device == HERE else DEVICES[device]
        page.value = shown + cards(facts(model, device, context=made.value("context"), batch=made.value("batch")))
        run = made.run()
        run.optimizer.warmup_steps(run.steps)
        guessed = progress.clock(progress.guess([run]))
        cost.value = f'<span class="wb-faint">about {guessed} on one core, guessed from its FLOPs</span>'
        wrong = ""
    except ValueError as why:
        wrong = error(why)
        page.value, cost.value = wrong, ""
    made.outputs["train"].disabled = bool(wrong) or (made.trial is not None and made.trial.running)


def train(made: Editor) -> None:
    """Starts the run that is written, or goes on with it; does nothing while one trains."""
    if made.trial is not None and made.trial.running:
        return
    made.trial = trials.start(made.run(), made.folder)
    refresh(made)
    made.watcher = threading.Thread(target=_watch, args=(made,), daemon=True)
    made.watcher.start()


def stop(made: Editor) -> None:
    """Has the run save after its step and end; Train goes on with it."""
    if made.trial is not None and made.trial.running:
        trials.stop(made.trial)
        made.outputs["cost"].value = '<span class="wb-faint">saving ...</span>'


def wait(made: Editor) -> None:
    """Returns when the run has ended and is shown. Raises RuntimeError with what it said if it failed."""
    if made.watcher is not None:
        made.watcher.join()
        made.trial.process.wait()
        if why := trials.problem(made.trial):
            raise RuntimeError(why)


def _watch(made: Editor) -> None:
    while made.trial.running:
        refresh(made)
        time.sleep(EVERY)
    refresh(made)


def refresh(made: Editor) -> None:
    """Shows how far the run is, beside those that were made before."""
    trial = made.trial
    running = trial is not None and trial.running
    made.outputs["stop"].disabled, made.outputs["train"].disabled = not running, running
    try:
        run = trial.run if trial is not None else made.run()
    except ValueError:
        run = None
    current = trial.run.name if trial is not None else ""
    found = known(made.folder, run)
    picture = io.BytesIO()
    curves(found, current).savefig(picture, format="png", dpi=130)
    made.outputs["picture"].value = picture.getvalue()
    made.outputs["runs"].value = listed(found, current)
    if trial is not None and not running:
        describe(made)
        if why := trials.problem(trial):
            made.outputs["cost"].value = error(why)
