"""Speed of architectures: a decoding step against context, predicted, then measured; what quality costs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from workbench.config import ModelConfig, RunConfig, from_json
from workbench.count import ELEMENT_BYTES, count
from workbench.devices import Device, priced
from workbench.record import write_json
from workbench.speed.predict import costs, decode, predict
from workbench.study import differences, judge
from workbench.study.collect import Study
from workbench.study.panels import drawable
from workbench.study.sizes import binary

SHARE = 0.5  # of the memory that weights and states may take: a cache that grows is there twice for a moment
Rows = list[dict[str, Any]]


def models(runs: Sequence[RunConfig]) -> dict[str, ModelConfig]:
    """Each arm's model. Raises ValueError for an arm that has several."""
    found: dict[str, ModelConfig] = {}
    for run in runs:
        if found.setdefault(run.arm, run.model) != run.model:
            raise ValueError(f"arm {run.arm!r} has a model for each of its tasks; give a file with one model an arm")
    return found


def predicted(
    models: dict[str, ModelConfig], device: Device, *, batches: Sequence[int], contexts: Sequence[int]
) -> Rows:
    """A row for every model, batch and context: seconds of a decoding step, what they are made of, and what it costs.

    joules, dollars: of the whole batch's step, where the device's watts and price are known.
    """
    rows = []
    for arm, config in models.items():
        for batch in batches:
            for context in contexts:
                step = decode(config, device, batch=batch, context=context)
                joules, dollars = costs(device, step.seconds)
                about = {"arm": arm, "batch": batch, "context": context, "predicted": step.seconds}
                rows.append(about | _of(step) | {"joules": joules, "dollars": dollars})
    return rows


def _of(step) -> dict[str, Any]:
    return {name: value for name, value in step._asdict().items() if name != "seconds"}


def measured(models: dict[str, ModelConfig], rows: Rows, device: Device, *, progress: bool = True) -> Iterator[dict]:
    """The predicted rows with the seconds that were measured, one after another; with None where memory is short.

    Weights are random: what they are costs nothing.
    """
    from workbench.model.language_model import create
    from workbench.speed.measure import decode_seconds

    bar = tqdm(rows, unit="point", disable=not progress)
    model, arm = None, None
    for row in bar:
        bar.set_description(f"{row['arm']}, batch {row['batch']}, context {row['context']:,}")
        config = models[row["arm"]]
        if row["arm"] != arm:
            model, arm = create(config, 0), row["arm"]
        at = count(config, 2 * row["context"])  # a cache is at most twice as long
        needed = at.parameters * ELEMENT_BYTES[config.dtype] + row["batch"] * at.state_bytes
        if needed > SHARE * device.memory_bytes:
            yield row | {"seconds": None, "trials": [], "reason": f"needs {binary(needed)}"}
            continue
        trials = decode_seconds(model, batch=row["batch"], context=row["context"])
        yield row | {"seconds": min(trials), "trials": list(trials)}


def speed(
    models: dict[str, ModelConfig],
    folder: Path,
    device: Device | None,
    *,
    batches: Sequence[int],
    contexts: Sequence[int],
    prices: Path | str | None = None,
    progress: bool = True,
) -> Rows:
    """Predicts and, without a device, measures this machine, then predicts, then measures: in this order, on disk.

    prices: a file that says what an hour of the device costs (workbench.devices.priced).

    folder/predicted.json is written before anything is timed, folder/measured.json afterwards.
    """
    here = device is None
    if here:
        from workbench.speed.measure import this_machine

        device = this_machine()
    if prices:
        device = priced(device, prices)
    about = {"device": dataclasses.asdict(device)}
    rows = predicted(models, device, batches=batches, contexts=contexts)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "predicted.json", about | {"rows": rows})
    if here:
        from workbench.train.environment import environment

        rows = list(measured(models, rows, device, progress=progress))
        write_json(folder / "measured.json", about | {"environment": environment(), "rows": rows})
    return rows


def against_quality(
    study: Study, device: Device | None, *, batch: int, prompt: int, tokens: int, progress: bool = True
) -> Rows:
    """A row for every arm and measure of a study that has runs: the estimate, and seconds of a generation.

    Seconds are of reading `prompt` tokens and generating `tokens` more, for each of a batch: predicted for a device;
    without one, the runtime model that is fitted to each point's fastest trial on this machine (workbench.speed.fit).
    """
    rows: Rows = []
    seconds: dict[ModelConfig, float] = {}
    for task in study.tasks:
        runs, _ = drawable(study, task, "result")
        verdicts = judge.verdicts(study, task)
        for arm in dict.fromkeys(run.arm for run in runs):
            mine = [run for run in runs if run.arm == arm]
            config = from_json(mine[0].config).model
            if config not in seconds:
                asked = {"batch": batch, "tokens": tokens}
                seconds[config] = (
                    predict(config, device, prompt_tokens=prompt, **asked).seconds
                    if device is not None
                    else _idealized(config, prompt=prompt, progress=arm if progress else False, **asked)
                )
            for measure, entries in differences.measures(study, task):
                about = {"task": task, "measure": measure, "entries": entries, "arm": arm, "seconds": seconds[config]}
                estimate = differences.mean_of(mine, measure, entries)._asdict()
                rows.append(about | estimate | {"ranked": verdicts[arm].ranked})
    return rows


def _idealized(config: ModelConfig, *, batch: int, prompt: int, tokens: int, progress: bool | str) -> float:
    """Seconds on this machine by the runtime model: lengths around the one asked for, fastest trials."""
    from workbench.generate import CAPACITY
    from workbench.model.language_model import create
    from workbench.speed.fit import fit
    from workbench.speed.measure import profile

    prompts, news = ({max(number // 4, 1), max(number, 2)} for number in (prompt, tokens))
    found = profile(create(config, 0), sorted(prompts), sorted(news), batch=batch, progress=progress)
    return fit(found.samples, capacity=CAPACITY, facts=found.facts).predict(prompt, tokens)


def table(rows: Rows, first: str) -> str:
    """Milliseconds a step and how many times as fast as the arm `first`: predicted and, where it was, measured.

    Energy and cost, where they are known, are of what was predicted.
    """
    base = {(row["batch"], row["context"]): row for row in rows if row["arm"] == first}
    here = any("seconds" in row for row in rows)
    head = ["arm", "batch", "context", "predicted ms", f"x {first}"]
    head += ["measured ms", f"x {first}", "predicted / measured"] if here else ["bound by"]
    costing = [
        (name, title, 1e6 if name == "dollars" else 1)
        for name, title in (("joules", "J a token"), ("dollars", "$ a million tokens"))
        if all(row.get(name) is not None for row in rows)
    ]
    head += [title for _, title, _ in costing]
    body = []
    for row in rows:
        of = base[row["batch"], row["context"]]
        line = [row["arm"], f"{row['batch']}", f"{row['context']:,}", f"{1e3 * row['predicted']:.3g}"]
        line.append(f"{of['predicted'] / row['predicted']:.2f}")
        if not here:
            line.append(row["bound"])
        elif row["seconds"] is None:
            line += [row["reason"], "", ""]
        else:
            times = f"{of['seconds'] / row['seconds']:.2f}" if of["seconds"] else ""
            line += [f"{1e3 * row['seconds']:.3g}", times, f"{row['predicted'] / row['seconds']:.2f}"]
        line += [f"{scale * row[name] / row['batch']:.3g}" for name, _, scale in costing]
        body.append(line)
    widths = [max(map(len, column)) for column in zip(head, *body, strict=True)]
    return "\n".join(
        "  ".join(f"{cell:{'<' if i == 0 else '>'}{widths[i]}}" for i, cell in enumerate(line))
        for line in [head, *body]
    )
