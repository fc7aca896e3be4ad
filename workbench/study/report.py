"""The study's report, made from its folder alone: study.json, figures as PNG and CSV, and one self-contained page."""

from __future__ import annotations

import base64
import csv
import io
import re
import shlex
import textwrap
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from workbench.config import BUDGETS
from workbench.record import write_json, write_text
from workbench.study import answer, canvas, certificate, differences, figures, judge
from workbench.study.collect import LOOKED, Run, Study, collect
from workbench.study.page import PAGE, STYLE
from workbench.study.statistics import LEAST_SEEDS
from workbench.study.summary import study_json
from workbench.study.wording import listed, show, words


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


# ---- what the study is


def title(study: Study) -> str:
    """First line of the experiment's docstring, else the study's name."""
    lines = study.facts.get("docstring", "").strip().splitlines()
    return lines[0].strip().rstrip(".") if lines else study.name


def question(study: Study) -> str:
    """What the docstring asks after "Question:", else its first question, else the one that every study asks."""
    words = " ".join(study.facts.get("docstring", "").split())
    if "?" in words:
        words = words.partition("Question:")[2] if "?" in words.partition("Question:")[2] else words
        asked = words[: words.index("?") + 1]
        starts = [asked.rfind(mark) + len(mark) for mark in (". ", ": ") if mark in asked]
        return asked[max(starts, default=0) :].strip()
    return (
        "Given the same data and the same number of steps, which of these architectures is better, "
        "by how much, and how sure is that?"
    )


def command(study: Study) -> str:
    """What makes the study anew."""
    if "name" not in study.facts:
        return f"workbench report {shlex.quote(str(study.folder))}"
    scale = study.facts.get("scale", "demo")
    words = ["workbench", "run", study.facts.get("file", f"experiments/{study.facts['name']}.py")]
    words += ["--scale", scale] if scale != "demo" else []
    return shlex.join(words + list(study.facts.get("overrides", ())))


# ---- the table


def columns(study: Study, task: str) -> list[tuple[str, bool]]:
    """Headings of a task's table, and whether they are numbers."""
    sizes = table_sizes(study, task)
    heads = [("arm", False), ("parameters without embedding", True)]
    heads += [("training FLOPs a token", True), ("state", True), ("steps", True), ("seconds", True)]
    units, _, _, part = words(task)
    heads += [(f"exact, {k} {units}", True) for k in sizes]
    if sizes:
        heads += [(f"{part}, {sizes[-1]} {units}", True), ("trained", True)]
    if any(run.bits_per_byte for run in study.select("result", "control", task=task)):
        heads.append(("bits per byte", True))
    if any(run.same_groups for run in study.select("result", "control", task=task)):
        heads.append(("bits per byte, trained groups", True))
    return heads


def table_sizes(study: Study, task: str) -> list[int]:
    """Entries that the table shows: the smallest, the largest in training, the largest evaluated."""
    runs = [run for run in study.select("result", task=task) if run.finished and run.by_entries()]
    if not runs:
        return []
    interest = differences.sizes_of_interest(study, task)
    smallest = min(runs[0].by_entries())
    return sorted({smallest, *interest[:1], *interest[-1:]})


def rows(study: Study, task: str) -> list[tuple[str, list[str], judge.Verdict]]:
    """A row an arm, its cells as text, and its verdict."""
    verdicts = judge.verdicts(study, task)
    sizes = table_sizes(study, task)
    headings = [name for name, _ in columns(study, task)]
    out = []
    for arm, verdict in verdicts.items():
        runs = study.select("result", "control", task=task, arm=arm)
        done = [run for run in runs if run.finished]
        first = done[0].result if done else {}
        cells = [f"{arm}\n{runs[0].config['model']['pattern']}"]
        cells.append(f"{_integer(first.get('non_embedding_parameters'))}\n{_integer(first.get('parameters'))} in all")
        cells += [_short(first.get("train_flops_per_token")), _bytes(first.get("state_bytes"))]
        cells.append(f"{_integer(first.get('steps'))}\n{_short(first.get('tokens'))} tokens")
        cells.append(_seconds([run.result["seconds"] for run in done if run.result.get("seconds") is not None]))
        cells += [_estimate(done, "exact_match", k) for k in sizes]
        if sizes:
            cells += [_estimate(done, "digit_accuracy", sizes[-1]), f"{verdict.solved} of {verdict.seeds}"]
        if "bits per byte" in headings:
            cells.append(_estimate(done, "bits_per_byte", None))
        if "bits per byte, trained groups" in headings:
            cells.append(_estimate(done, "same_groups", None))
        out.append((arm, cells, verdict))
    return out


def _estimate(runs: Sequence[Run], measure: str, entries: int | None) -> str:
    try:
        return show(differences.mean_of(runs, measure, entries), measure)
    except ValueError:
        return "–"


def _integer(value: Any) -> str:
    return "–" if value is None else f"{value:,}"


def _short(value: Any) -> str:
    return "–" if value is None else canvas.engineering(value)


def _bytes(value: Any) -> str:
    return "–" if value is None else canvas.in_bytes(value)


def _seconds(values: list[float]) -> str:
    return f"{sum(values) / len(values):,.0f}" if values else "–"


def terminal_table(study: Study) -> str:
    """What a study found as text, under 110 columns: who is not ranked, a table a task, the answer."""
    out = [*textwrap.wrap(answer.first_line(study), 108), ""]
    for task in study.tasks:
        sizes = table_sizes(study, task)
        heads = ["arm", "no embed.", "FLOPs/token", "state", "steps", "seconds"]
        heads += [f"exact, {k}" for k in sizes] + (["trained"] if sizes else [])
        picked = ["arm", "parameters without embedding", "training FLOPs a token", "state", "steps", "seconds"]
        picked += [f"exact, {k} {words(task).units}" for k in sizes] + (["trained"] if sizes else [])
        if any(name == "bits per byte" for name, _ in columns(study, task)):
            heads, picked = [*heads, "bits per byte"], [*picked, "bits per byte"]
        if any(name == "bits per byte, trained groups" for name, _ in columns(study, task)):
            heads, picked = [*heads, "trained groups"], [*picked, "bits per byte, trained groups"]
        names = [name for name, _ in columns(study, task)]
        body = []
        for _, cells, verdict in rows(study, task):
            by_name = dict(zip(names, cells, strict=True))
            line = [by_name[name].partition("\n")[0].removesuffix("\u00a0%") for name in picked]
            line[0] = line[0][:20] + ("" if verdict.ranked else " (!)")
            body.append(line)
        lines = [f"{task}: exact match in %" if sizes else task, *_aligned([heads, *body]), ""]
        if any("[" in line for line in lines):
            lines[0] += ", 95 % intervals"
        out += lines
        if any(not verdict.ranked for _, _, verdict in rows(study, task)):
            out[-1:] = ["(!) not ranked", ""]
        if len(judge.budgets(study, task)) > 1:
            heads, body = budget_rows(study, task)
            parts = [[cell.partition("\n") for cell in line] for line in body]
            plain = [
                [f"{value.split(' [')[0]}{f' ({steps})' if steps else ''}" for value, _, steps in line]
                for line in parts
            ]
            out += [f"{task}: at every budget", *_aligned([heads, *plain]), ""]
    for sentence in answer.headline(study):
        out += textwrap.wrap(sentence, 108)
    return "\n".join(out)


def pasted(study: Study, form: str) -> str:
    """Every task's table as Markdown or LaTeX (booktabs), intervals in it; arms that are not ranked say so."""
    out = []
    for task in study.tasks:
        heads = [name for name, _ in columns(study, task)]
        body = []
        for _, cells, verdict in rows(study, task):
            line = [" ".join(cell.split("\n")[:1]).replace("\u00a0", " ") for cell in cells]
            body.append([line[0] + ("" if verdict.ranked else " (not ranked)"), *line[1:]])
        right = [number for _, number in columns(study, task)]
        out.append(_markdown(heads, body, right) if form == "markdown" else _latex(heads, body, right))
    proof = certificate.hash_of(certificate.claims(study))[:12]
    said = f"{answer.first_line(study)} Made by `{command(study)}`; certificate {proof}."
    return "\n\n".join([*out, said if form == "markdown" else f"% {said}"])


def _markdown(heads: list[str], body: list[list[str]], right: list[bool]) -> str:
    lines = [heads, ["--:" if number else "---" for number in right], *body]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def _latex(heads: list[str], body: list[list[str]], right: list[bool]) -> str:
    def line(cells):
        return " & ".join(re.sub(r"([%&_#$])", r"\\\1", cell).replace("–", "--") for cell in cells) + r" \\"

    return "\n".join(
        [
            f"\\begin{{tabular}}{{{''.join('r' if number else 'l' for number in right)}}}",
            r"\toprule",
            line(heads),
            r"\midrule",
            *map(line, body),
            r"\bottomrule",
            r"\end{tabular}",
        ]
    )


SPARE = ("FLOPs/token", "seconds", "steps")  # columns that the report has as well, in the order in which they go


def _aligned(lines: list[list[str]]) -> list[str]:
    """Columns aligned; where they would be wider than the terminal, spare ones go, then intervals for their means."""

    def width(cells):
        return sum(max(len(row[i]) for row in cells) for i in range(len(cells[0]))) + 2 * (len(cells[0]) - 1)

    for name in SPARE:
        if name in lines[0] and width(lines) > 108:
            spare = lines[0].index(name)
            lines = [row[:spare] + row[spare + 1 :] for row in lines]
    if width(lines) > 108:
        lines = [[cell.split(" [")[0] for cell in row] for row in lines]
    widths = [max(len(row[i]) for row in lines) for i in range(len(lines[0]))]
    made = [
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in lines
    ]
    return [made[0], "  ".join("-" * w for w in widths), *made[1:]]


# ---- the page


def html(study: Study, drawings: Sequence[canvas.Drawing]) -> str:
    """The page: one file, nothing fetched, light, dark and in print."""
    parts = [_header(study)]
    for task in study.tasks:
        own = [drawing for drawing in drawings if drawing.name.startswith(f"{task}-")]
        parts += [f"<section><h2>{escape(task.capitalize())}</h2>", _table(study, task)]
        parts += [_budgets(study, task)] if len(judge.budgets(study, task)) > 1 else []
        parts += [_figure(drawing) for drawing in own]
        parts += [_comparisons(study, task), "</section>"]
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
    known = figures.styles(study)
    head = "".join(f'<th class="{"n" if number else ""}">{escape(name)}</th>' for name, number in heads)
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
    claim = "Exact match, digits and bits: mean over seeds and 95 % interval. Seconds: mean, training alone."
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'
        f'{why}<p class="note">{context}{claim}</p>'
    )


def budget_rows(study: Study, task: str) -> tuple[list[str], list[list[str]]]:
    """What the arms reach at every budget of the study, and after how many steps: headings, and a row an arm."""
    budgets = judge.budgets(study, task)
    found = [(budget, *each) for each in differences.measures(study, task) for budget in budgets]
    several = len(found) > len(budgets)
    heads = ["arm"]
    for budget, measure, entries in found:
        what = ("bits per byte" if measure == "bits_per_byte" else f"exact, {entries}") if several else ""
        heads.append(f"{judge.EQUAL[budget]}{', ' + what if what else ''}")
    rows = []
    for arm in study.arms("result", task=task):
        cells = [arm]
        for budget, measure, entries in found:
            mine = judge.at(study, task, budget)[arm]
            steps = sorted({run.result["steps"] for run in mine if run.finished})
            cells.append(f"{_estimate(mine, measure, entries)}\n{'/'.join(f'{n:,}' for n in steps)} steps")
        rows.append(cells)
    return heads, rows


def _budgets(study: Study, task: str) -> str:
    heads, rows = budget_rows(study, task)
    known = figures.styles(study)
    head = "".join(f'<th class="{"n" if i else ""}">{escape(name)}</th>' for i, name in enumerate(heads))
    body = ""
    for arm, *cells in rows:
        split = [cell.split("\n") for cell in cells]
        tds = "".join(f'<td class="n">{escape(value)}<small>{escape(steps)}</small></td>' for value, steps in split)
        body += f'<tr><td><i style="background:{known[arm].colour}"></i><b>{escape(arm)}</b></td>{tds}</tr>'
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
        '<p class="note">At equal training FLOPs and at equal seconds the costlier arms end earlier, where they have '
        "spent what the cheapest has in all its steps, each after a whole schedule of its own, on the beginning of the "
        "same tokens. Seconds are those of an arm that has the machine to itself.</p>"
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
    found = [c for c in differences.comparisons(study) if c.task == task]
    if not found:
        return ""
    lines = []
    for c in found:
        ahead = c.better
        p = c.p_checkpoints if c.difference is c.checkpoints else c.p_architectures
        verdict = f"{ahead} ahead, {answer.level(c)}" if ahead else "no difference seen"
        what = f"exact match, {c.entries} {words(task).units}" if c.measure == "exact_match" else "bits per byte"
        what += f", {judge.EQUAL[c.budget]}" if len(judge.budgets(study, task)) > 1 else ""
        lines.append(
            f'<tr class="{"" if ahead else "same"}"><td>{escape(what)}</td>'
            f"<td>{escape(c.first)} − {escape(c.second)}</td>"
            f'{_cell(_signed(c))}<td class="n">{_floor(c)}</td><td class="n">{p:.2g}</td>'
            f"<td>{escape(verdict)}</td></tr>"
        )
    return (
        f"<details><summary>All {len(found)} differences between ranked arms</summary>"
        '<div class="scroll"><table><thead><tr><th>measure</th><th>arms</th>'
        '<th class="n">difference</th><th class="n">noise floor</th>'
        f'<th class="n">p (Holm)</th><th>reading</th></tr></thead><tbody>{"".join(lines)}</tbody></table></div>'
        '<p class="note">Intervals are 95 % each; p is adjusted by Holm for all differences of the study at the same '
        "level of claim. A difference is seen where that is below 0.05 and the interval leaves out zero. Noise floor: "
        "how far two runs of one of the arms lie apart (root mean square) that differ in both seeds, and below it in "
        "the initialisation alone, where such runs were made.</p></details>"
    )


def _floor(c: differences.Comparison) -> str:
    def said(value: float | None) -> str:
        return "–" if value is None else f"{100 * value:.1f}" if c.measure == "exact_match" else f"{value:.3f}"

    return f"{said(c.floor.seeds)}<small>{said(c.floor.start)}</small>"


def _signed(c: differences.Comparison) -> str:
    mean, low, high, *_ = c.difference
    if c.measure == "exact_match":
        return f"{100 * mean:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}] points"
    return f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]"


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
                f"<tr><td>{escape(f'{task}, {arm}')}</td><td class='n'>{_short(first['train_flops'])}</td>"
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
        f"<td class='n'>{_integer(run.result.get('steps'))}</td>"
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
            f"The models have {_short(min(sizes))} to {_short(max(sizes))} parameters and read "
            f"{_short(max(r.result.get('tokens') or 0 for r in study.select('result')))} tokens at most; "
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
