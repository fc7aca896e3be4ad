"""The study's report, made from its folder alone: study.json, figures as PNG and CSV, and one self-contained page."""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from workbench.config import BUDGETS
from workbench.record import write_json, write_text
from workbench.study import answer, canvas, certificate, figures, judge, panels
from workbench.study.collect import LOOKED, Study, collect
from workbench.study.page import PAGE, STYLE
from workbench.study.statistics import LEAST_SEEDS
from workbench.study.summary import study_json
from workbench.study.tables import (
    NUMBERS,
    budget_rows,
    columns,
    difference_rows,
    integer,
    rows,
    scaling_rows,
    short,
    suite_rows,
)
from workbench.study.wording import command, listed, question, title


def report(folder: str | Path) -> Path:
    """Writes study.json, certificate.json, figures/*.png and *.csv, and report.html into a study's folder.

    Returns the path of the page.
    """
    study = collect(folder)
    drawings = figures.drawings(study)
    record = study_json(study)
    write_json(study.folder / "study.json", _plain(record))
    certificate.write(study)
    looks = {task: seeds for task in study.tasks if (seeds := judge.looked(study, task))}
    if "name" in study.facts and looks != study.facts.get("looked", {}):
        write_json(study.folder / LOOKED, looks)
    images = study.folder / "figures"
    images.mkdir(exist_ok=True)
    for drawing in drawings:
        drawing.figure.savefig(images / f"{drawing.name}.png", dpi=200, bbox_inches="tight", pad_inches=0.08)
        drawing.figure.set_layout_engine("none")  # laid out once; the page's copy keeps it
        write_text(images / f"{drawing.name}.csv", _csv(drawing.rows))
    page = study.folder / "report.html"
    write_text(page, html(study, drawings))
    return page


def _plain(value: Any) -> Any:
    """JSON has no NaN: null stands for what is not a number."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and value != value else value


def _csv(rows: canvas.Rows) -> str:
    out = io.StringIO()
    names = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(out, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


# ---- the page


def html(study: Study, drawings: Sequence[canvas.Drawing]) -> str:
    """The page: one file, nothing fetched, light, dark and in print."""
    parts = [_header(study)]
    for task in study.tasks:
        own = [drawing for drawing in drawings if drawing.name.startswith(f"{task}-")]
        parts += [f"<section><h2>{escape(task.capitalize())}</h2>", _table(study, task)]
        parts += [_budgets(study, task)] if len(judge.budgets(study, task)) > 1 else []
        parts += [_figure(drawing) for drawing in own]
        parts += [_curves(study, task), _suite(study, task), _comparisons(study, task), "</section>"]
    parts += [_checks(study), _failures(study), _limits(study), _reproduce(study)]
    return PAGE.format(title=escape(title(study)), style=STYLE, body="\n".join(part for part in parts if part))


def _header(study: Study) -> str:
    line = answer.first_line(study)
    ranked = all(v.ranked for task in study.tasks for v in judge.verdicts(study, task).values())
    fair = all(check.holds for task in study.tasks for check in judge.checks(study, task))
    fine = ranked and fair and not study.failures and study.tasks
    sentences = "".join(f"<li>{escape(sentence)}</li>" for sentence in answer.headline(study))
    asked = question(study)
    asked = "" if asked.rstrip("?") == title(study).rstrip("?") else f'<p class="question">{escape(asked)}</p>'
    scale = study.facts.get("scale")
    small = " · ".join(
        filter(None, [f"scale {scale}" if scale else "", f"{len(study.select('result', 'control'))} runs"])
    )
    return (
        f'<p class="status {"fine" if fine else "warn"}" role="status">{escape(line)}</p>\n'
        f'<header><p class="eyebrow">{escape(study.name)} · {escape(small)}</p><h1>{escape(title(study))}</h1>'
        f"{asked}</header>\n"
        f'<section class="answer"><h2>Answer</h2><ul>{sentences}</ul></section>'
    )


def _table(study: Study, task: str) -> str:
    heads = columns(study, task)
    known = panels.styles(study)
    body, reasons = [], []
    for arm, cells, verdict in rows(study, task):
        marked = "" if verdict.ranked else ' class="out"'
        dot = f'<i style="background:{known[arm].colour}"></i>'
        name = f"<b>{escape(arm)}</b><code>{escape(cells[0].partition(chr(10))[2])}</code>"
        name += "" if verdict.ranked else '<span class="tag">not ranked</span>'
        rest = "".join(_cell(cell) for cell in cells[1:])
        body.append(f"<tr{marked}><td>{dot}{name}</td>{rest}</tr>")
        if verdict.reasons:
            reasons.append(f"<li><b>{escape(arm)}</b>: {escape('; '.join(verdict.reasons))}</li>")
    why = f'<ul class="reasons">{"".join(reasons)}</ul>' if reasons else ""
    context = "State is what one sequence keeps while decoding, at the length of a training row. "
    claim = "Exact match, digits and bits: mean over seeds and 95 % interval. Seconds: mean, training alone. "
    memory = any(name == "memory" for name, _ in heads)
    claim += "Memory is a training step's peak on a device, as XLA counts it." if memory else ""
    return f'{_framed(heads, "".join(body))}{why}<p class="note">{context}{claim}</p>'


def _framed(heads: Sequence[tuple[str, bool]], body: str) -> str:
    """A table that scrolls where it is wide: headings, with whether they are numbers, and its rows as HTML."""
    head = "".join(f'<th class="{"n" if number else ""}">{escape(name)}</th>' for name, number in heads)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _budgets(study: Study, task: str) -> str:
    heads, rows = budget_rows(study, task)
    known = panels.styles(study)
    body = ""
    for arm, *cells in rows:
        split = [cell.split("\n") for cell in cells]
        tds = "".join(f'<td class="n">{escape(value)}<small>{escape(steps)}</small></td>' for value, steps in split)
        body += f'<tr><td><i style="background:{known[arm].colour}"></i><b>{escape(arm)}</b></td>{tds}</tr>'
    return (
        f"{_framed([(name, i > 0) for i, name in enumerate(heads)], body)}"
        '<p class="note">At equal training FLOPs and at equal seconds the costlier arms end earlier, where they have '
        "spent what the cheapest has in all its steps, each after a whole schedule of its own, on the beginning of the "
        "same tokens. Seconds are those of an arm that has the machine to itself.</p>"
    )


def _curves(study: Study, task: str) -> str:
    heads, rows = scaling_rows(study, task)
    if not rows:
        return ""
    body = "".join(f"<tr><td>{escape(arm)}</td>{''.join(map(_cell, cells))}</tr>" for arm, *cells in rows)
    return (
        "<details><summary>Exponents and floors of the fitted curves</summary>"
        f"{_framed([(name, i > 0) for i, name in enumerate(heads)], body)}"
        '<p class="note">Bits per byte = floor + scale / x<sup>exponent</sup>, fitted to every seed; 95 % intervals '
        "over three seeds or more. With three sizes the floor is 0 by assumption.</p></details>"
    )


def _suite(study: Study, task: str) -> str:
    heads, rows = suite_rows(study, task)
    if not rows:
        return ""
    body = ""
    for name, *cells in rows:
        name, _, items = name.partition("\n")
        body += f"<tr><td><b>{escape(name)}</b><small>{escape(items)}</small></td>{''.join(map(_cell, cells))}</tr>"
    return (
        f"<details><summary>What was answered of {len(rows)} tasks in text</summary>"
        f"{_framed([(name, i > 0) for i, name in enumerate(heads)], body)}"
        '<p class="note">The first metric of each task on test: mean over seeds and 95 % interval, in brackets where '
        "this holds chance. No two arms are compared on these.</p></details>"
    )


def _cell(text: str) -> str:
    """A number's cell, its interval or second line below it in small."""
    mean, bracket, rest = text.partition(" [")
    if not bracket:
        main, line, small = text.partition("\n")
        return f'<td class="n">{escape(main)}{f"<small>{escape(small)}</small>" if line else ""}</td>'
    bounds, _, unit = rest.partition("]")
    return f'<td class="n">{escape(mean + unit)}<small>[{escape(bounds)}]</small></td>'


def _figure(drawing: canvas.Drawing) -> str:
    """Inline as an SVG image: sharp on any screen and in print; text as outlines, so that no font is needed."""
    from matplotlib import rc_context

    out = io.StringIO()
    with rc_context({"svg.fonttype": "path", "svg.hashsalt": drawing.name}):
        drawing.figure.savefig(out, format="svg", bbox_inches="tight", pad_inches=0.08, metadata={"Date": None})
    data = base64.b64encode(out.getvalue().encode()).decode()
    name = escape(drawing.name)
    width = round(108 * drawing.figure.get_figwidth())  # letters of one size in every figure
    return (
        f'<figure id="{name}"><div class="card"><img style="max-width: {width}px" '
        f'alt="{escape(drawing.caption)}" src="data:image/svg+xml;base64,{data}"></div>'
        f"<figcaption>{escape(drawing.caption)} <span>figures/{name}.png, .csv</span></figcaption></figure>"
    )


def _comparisons(study: Study, task: str) -> str:
    heads, rows = difference_rows(study, task)
    if not rows:
        return ""
    lines = []
    for measure, arms, difference, floor, p, reading in rows:
        same = ' class="same"' if reading == "no difference seen" else ""
        lines.append(
            f"<tr{same}><td>{escape(measure)}</td><td>{escape(arms)}</td>{_cell(difference)}{_cell(floor)}{_cell(p)}"
            f"<td>{escape(reading)}</td></tr>"
        )
    return (
        f"<details><summary>All {len(rows)} differences between ranked arms</summary>"
        f"{_framed([(name, name in NUMBERS) for name in heads], ''.join(lines))}"
        '<p class="note">Intervals are 95 % each; p is adjusted by Holm for all differences of the study at the same '
        "level of claim. A difference is seen where that is below 0.05 and the interval leaves out zero. Noise floor: "
        "how far two runs of one of the arms lie apart (root mean square) that differ in both seeds, and below it in "
        "the initialisation alone, where such runs were made.</p></details>"
    )


def _checks(study: Study) -> str:
    out = []
    for task in study.tasks:
        lines = "".join(
            f'<li class="{"yes" if check.holds else "no"}"><b>{"✓" if check.holds else "✗"}</b> {escape(check.name)}'
            f"<span>{escape(check.detail)}</span></li>"
            for check in judge.checks(study, task)
        )
        out.append(f"<h3>{escape(task.capitalize())}</h3><ul class='checks'>{lines}</ul>{_digests(study, task)}")
    return f"<section><h2>Is it fair?</h2>{''.join(out)}{_certificate(study)}</section>"


def _certificate(study: Study) -> str:
    """Its hash and how to check it; folded under that, what it claims of every arm and of the code."""
    claimed = certificate.claims(study)
    lines = []
    for task, about in claimed["tasks"].items():
        for arm, its in about["arms"].items():
            first = claimed["runs"][study.select("result", "control", task=task, arm=arm)[0].name]
            start, chosen = its["parameters"] or {}, first["implementation"] or {}
            decayed = f"{sum(each['decayed'] for each in start.values())} of {len(start)}" if start else "–"
            operations = ", ".join(f"{name} {form}" for name, form in chosen.items())
            lines.append(
                f"<tr><td>{escape(f'{task}, {arm}')}</td><td class='n'>{short(first['train_flops'])}</td>"
                f"<td class='n'>{len(its['trials']) or '–'}</td><td class='n'>{decayed}</td>"
                f"<td>{escape(operations) or '–'}</td></tr>"
            )
    code = [(each["git"] or {}, len(each["runs"])) for each in claimed["code"]]
    said = "; ".join(
        f"{git.get('commit', 'no commit')[:12]}{' and uncommitted changes' * git.get('dirty', False)}, {runs} runs"
        for git, runs in code
    )
    return (
        f"<p class='note'>Certificate <code>{certificate.hash_of(claimed)[:12]}</code>: what this comparison rests on, "
        "linked to the run folders by hashes. <code>workbench verify</code> checks it, and with "
        "<code>--replay 200</code> by training and scoring again.</p>"
        "<details><summary>What the certificate claims</summary><div class='scroll'><table><thead><tr><th>arm</th>"
        "<th class='n'>training FLOPs</th><th class='n'>tuning trials</th><th class='n'>parameters decayed</th>"
        f"<th>implementation</th></tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
        f"<p class='note'>Code: {escape(said) or 'not recorded'}. Each parameter's initialisation, each run's hashes, "
        "packages and hosts: certificate.json.</p></details>"
    )


def _digests(study: Study, task: str) -> str:
    lines = "".join(
        f"<tr><td>{escape(run.arm)}</td><td class='n'>{run.replicate[1]}</td><td class='n'>{run.data_seed}</td>"
        f"<td class='n'>{integer(run.result.get('steps'))}</td>"
        f"<td class='n'>{run.config.get('optimizer', {}).get('learning_rate', '–')}</td>"
        f"<td><code>{escape(str(run.result.get('digest', '–')))}</code></td><td>{escape(run.status)}</td></tr>"
        for run in study.select("result", "control", task=task)
    )
    facts = next((run.result["data"] for run in study.select("result", task=task) if run.result.get("data")), {})
    known = "; ".join(f"{key} {value}" for key, value in facts.items() if isinstance(value, str | int | float))
    return (
        "<details><summary>Digests of the token streams, learning rates and data</summary>"
        "<div class='scroll'><table>"
        "<thead><tr><th>arm</th><th class='n'>seed</th><th class='n'>data seed</th><th class='n'>steps</th>"
        f"<th class='n'>learning rate</th><th>digest</th><th>status</th></tr></thead>"
        f"<tbody>{lines}</tbody></table></div>"
        + (f"<p class='note'>Data: {escape(known)}.</p>" if known else "")
        + "</details>"
    )


def _failures(study: Study) -> str:
    lines = "".join(
        f"<li><code>{escape(run.name)}</code>: {escape('; '.join(filter(None, (run.status, run.problem))))}</li>"
        for run in study.failures
    )
    aside = (
        f'<p class="note">Set aside, since the experiment no longer names them: {escape(", ".join(study.aside))}.</p>'
        if study.aside
        else ""
    )
    return f"<section><h2>What failed</h2>{f'<ul>{lines}</ul>' if lines else '<p>Nothing.</p>'}{aside}</section>"


def _limits(study: Study) -> str:
    """What a reader might take from the page and should not; each line only where it applies."""
    said = []
    counts = [len(judge.replicates(study, task)) for task in study.tasks]
    if min(counts, default=0) < LEAST_SEEDS:
        few = listed([f"{n} seed{'s' * (n != 1)} on {t}" for n, t in zip(counts, study.tasks, strict=True)])
        said.append(
            f"With {few}, sentences that rest on fewer than {LEAST_SEEDS} are about these checkpoints only: "
            "other seeds of the same architectures may differ by more than the intervals show."
        )
    books = [task for task in study.tasks if any("entries" in r.config["data"] for r in study.select(task=task))]
    for task in books:
        verdicts = judge.verdicts(study, task)
        results = [verdicts[arm] for arm in study.arms("result", task=task)]
        if any(v.trained is not None and v.converged is None for v in results):
            said.append("Convergence was not checked at this scale: no arm was run a second time with twice the steps.")
        said.append(
            "The models are trained on the task: the paper's Phonebook is prompt-only, asked of a language model."
        )
        if not study.select("control", task=task):
            said.append(
                "No controls (positions, short convolutions) were run here, so nothing on this page says which part of "
                "an architecture makes a difference, at any length."
            )
    sizes = [r.result["parameters"] for r in study.select("result") if r.result.get("parameters")]
    if sizes:
        said.append(
            f"The models have {short(min(sizes))} to {short(max(sizes))} parameters and read "
            f"{short(max(r.result.get('tokens') or 0 for r in study.select('result')))} tokens at most; "
            "what larger ones do is not seen here."
        )
    without = [judge.EQUAL[b] for b in BUDGETS[1:] if all(b not in judge.budgets(study, task) for task in study.tasks)]
    if without:
        said.append(
            f"Nothing is compared at {' or '.join(without)}: the curves against them stand above, and only their ends "
            "are ends of whole schedules."
        )
    lines = "".join(f"<li>{escape(text)}</li>" for text in said)
    return f"<section><h2>What this cannot say</h2><ul>{lines}</ul></section>"


def _reproduce(study: Study) -> str:
    return (
        f"<section><h2>Again</h2><pre>{escape(command(study))}</pre><p class='note'>Everything here was made from the "
        "run folders alone; <code>study.json</code> holds every number, <code>figures/</code> every picture as PNG and "
        "its data as CSV.</p></section>"
    )
