"""A study's tables: their cells as text, set for the terminal or to paste as Markdown or LaTeX."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from workbench.study import answer, canvas, certificate, differences, judge, scaling, statistics
from workbench.study.collect import Run, Study, interval
from workbench.study.wording import command, show, words


def columns(study: Study, task: str) -> list[tuple[str, bool]]:
    """Headings of a task's table, and whether they are numbers."""
    sizes = table_sizes(study, task)
    heads = [("arm", False), ("parameters without embedding", True)]
    heads += [("training FLOPs a token", True), ("state", True), ("steps", True), ("seconds", True), ("tokens/s", True)]
    if any(run.result.get("memory_bytes") for run in study.select("result", "control", task=task)):
        heads.append(("memory", True))
    units, _, whole, part = words(task)
    heads += [(f"exact, {k} {units}", True) for k in sizes]
    if sizes:
        heads += [(f"{part}, {sizes[-1]} {units}", True)] if part != whole else []
        heads.append(("trained", True))
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
        cells.append(f"{integer(first.get('non_embedding_parameters'))}\n{integer(first.get('parameters'))} in all")
        cells += [short(first.get("train_flops_per_token")), _bytes(first.get("state_bytes"))]
        cells.append(f"{integer(first.get('steps'))}\n{short(first.get('tokens'))} tokens")
        cells += [_mean(_of(done, name), "{:,.0f}".format) for name in ("seconds", "tokens_per_second")]
        cells += [_mean(_of(done, "memory_bytes"), canvas.in_bytes)] if "memory" in headings else []
        cells += [_estimate(done, "exact_match", k) for k in sizes]
        if sizes:
            several = words(task).part != words(task).whole
            cells += [_estimate(done, "digit_accuracy", sizes[-1])] if several else []
            cells.append(f"{verdict.solved} of {verdict.seeds}")
        if "bits per byte" in headings:
            cells.append(_estimate(done, "bits_per_byte", None))
        if "bits per byte, trained groups" in headings:
            cells.append(_estimate(done, "same_groups", None))
        out.append((arm, cells, verdict))
    return out


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


def scaling_rows(study: Study, task: str) -> tuple[list[str], list[list[str]]]:
    """Exponent and floor of every arm's curves against size (workbench.study.scaling): headings, and a row an arm."""
    fitted = scaling.record(study, task)
    heads = [f"{what}, {scaling.AGAINST[name]}" for name in fitted for what in ("exponent", "floor")]
    rows = []
    for arm in dict.fromkeys(arm for each in fitted.values() for arm in each["arms"]):
        curves = [each["arms"][arm] for each in fitted.values()]
        rows.append([arm, *(_fitted(curve[what]) for curve in curves for what in ("exponent", "floor"))])
    return ["arm", *heads], rows


def _fitted(value: dict[str, float]) -> str:
    interval = f" [{value['low']:.3f}, {value['high']:.3f}]" if "low" in value else ""
    return f"{value['mean']:.3f}{interval}"


def suite_rows(study: Study, task: str) -> tuple[list[str], list[list[str]]]:
    """What the arms answered of tasks in text on test, over their seeds: headings, and a row a task of the suites.

    A score stands in brackets where its interval holds chance. Tasks that were left out have no row.
    """
    done = [run for run in study.select("result", "control", task=task) if run.finished]
    arms = list(dict.fromkeys(run.arm for run in done))
    first = {name: found for run in done for name, found in run.suite.items() if "mean" in found}
    if not first:
        return [], []
    body = []
    for name, found in first.items():
        cells = [_answered([run for run in done if run.arm == arm], name, found["chance"]) for arm in arms]
        body.append([f"{name}\n{found['items']} items", f"{100 * found['chance']:.1f}\u00a0%", *cells])
    return ["task", "chance", *arms], body


def _answered(runs: Sequence[Run], name: str, chance: float) -> str:
    scores = [found for run in runs if "mean" in (found := run.suite.get(name, {}))]
    if not scores or any(each["low"] is None for each in scores):  # of one cluster, which has no interval
        return f"{100 * sum(each['mean'] for each in scores) / len(scores):.1f}\u00a0%" if scores else "–"
    (mean, low, high), _ = statistics.over_seeds([interval(each) for each in scores])
    shown = show((mean, max(low, 0.0), min(high, 1.0)))
    return f"({shown})" if low <= chance <= high else shown


NUMBERS = ("difference", "noise floor", "p (Holm)")


def difference_rows(study: Study, task: str) -> tuple[list[str], list[list[str]]]:
    """Every difference between two ranked arms of a task, with what is read from it: headings, and a row each."""
    body = []
    for c in (c for c in differences.comparisons(study) if c.task == task):
        what = f"exact match, {c.entries} {words(task).units}" if c.measure == "exact_match" else "bits per byte"
        p = c.p_checkpoints if c.difference is c.checkpoints else c.p_architectures
        floor = "\n".join(_floor(c, value) for value in c.floor)
        reading = f"{c.better} ahead, {answer.level(c)}" if c.better else "no difference seen"
        pair = f"{c.first} − {c.second}"
        body.append([f"{what}, {judge.EQUAL[c.budget]}", pair, answer.signed(c), floor, f"{p:.2g}", reading])
    return ["measure", "arms", *NUMBERS, "reading"], body


def _floor(c: differences.Comparison, value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}" if c.measure == "exact_match" else f"{value:.3f}"


class Table(NamedTuple):
    """A table as text: headings, which of the columns are numbers, and rows, whose cells may have two lines."""

    heads: list[str]
    numbers: list[bool]
    rows: list[list[str]]


def every(study: Study) -> dict[str, Table]:
    """Every table of a study by name: a task's own, budgets, curves against size, suites, and differences."""
    found = {}
    for task in study.tasks:
        body = []
        for _, cells, verdict in rows(study, task):
            arm, _, pattern = cells[0].partition("\n")
            body.append([f"{arm}{'' if verdict.ranked else ' (not ranked)'}\n{pattern}", *cells[1:]])
        heads, numbers = zip(*columns(study, task), strict=True)
        found[task] = Table(list(heads), list(numbers), body)
        if len(judge.budgets(study, task)) > 1:
            heads, body = budget_rows(study, task)
            found[f"{task}-budgets"] = Table(heads, [i > 0 for i in range(len(heads))], body)
        heads, body = scaling_rows(study, task)
        if body:
            found[f"{task}-curves"] = Table(heads, [i > 0 for i in range(len(heads))], body)
        heads, body = suite_rows(study, task)
        if body:
            found[f"{task}-suite"] = Table(heads, [i > 0 for i in range(len(heads))], body)
        heads, body = difference_rows(study, task)
        if body:
            found[f"{task}-differences"] = Table(heads, [name in NUMBERS for name in heads], body)
    return found


def terminal_table(study: Study) -> str:
    """What a study found as text, under 110 columns: who is not ranked, a table a task, the answer."""
    out = [*textwrap.wrap(answer.first_line(study), 108), ""]
    for task in study.tasks:
        sizes = table_sizes(study, task)
        names = [name for name, _ in columns(study, task)]
        spent = ["state", "steps", "seconds", "tokens/s", *(["memory"] if "memory" in names else [])]
        heads = ["arm", "no embed.", "FLOPs/token", *spent]
        heads += [f"exact, {k}" for k in sizes] + (["trained"] if sizes else [])
        picked = ["arm", "parameters without embedding", "training FLOPs a token", *spent]
        picked += [f"exact, {k} {words(task).units}" for k in sizes] + (["trained"] if sizes else [])
        if "bits per byte" in names:
            heads, picked = [*heads, "bits per byte"], [*picked, "bits per byte"]
        if "bits per byte, trained groups" in names:
            heads, picked = [*heads, "trained groups"], [*picked, "bits per byte, trained groups"]
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
            texts = [
                [f"{value.split(' [')[0]}{f' ({steps})' if steps else ''}" for value, _, steps in line]
                for line in parts
            ]
            out += [f"{task}: at every budget", *_aligned([heads, *texts]), ""]
    for sentence in answer.headline(study):
        out += textwrap.wrap(sentence, 108)
    return "\n".join(out)


def pasted(study: Study, form: str) -> str:
    """Every table as Markdown or LaTeX (booktabs), intervals in it; arms that are not ranked say so."""
    out = []
    for heads, numbers, body in every(study).values():
        lines = [[cell.split("\n")[0].replace("\u00a0", " ") for cell in line] for line in body]
        out.append(_markdown(heads, lines, numbers) if form == "markdown" else _latex(heads, lines, numbers))
    proof = certificate.hash_of(certificate.claims(study))[:12]
    said = f"{answer.first_line(study)} Made by `{command(study)}`; certificate {proof}."
    return "\n\n".join([*out, said if form == "markdown" else rf"\par\noindent {{\footnotesize {_escaped(said)}}}"])


def _markdown(heads: list[str], body: list[list[str]], right: list[bool]) -> str:
    lines = [heads, ["--:" if number else "---" for number in right], *body]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def _latex(heads: list[str], body: list[list[str]], right: list[bool]) -> str:
    def line(cells):
        return " & ".join(map(_escaped, cells)) + r" \\"

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


def _escaped(text: str) -> str:
    """As LaTeX prints it."""
    named = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "–": "--"}
    return text.translate(str.maketrans(named | {letter: f"\\{letter}" for letter in "%&_#${}"}))


# Columns that the report has as well, in the order in which they go.
SPARE = ("seconds", "FLOPs/token", "memory", "tokens/s", "steps")


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


# ---- cells


def _estimate(runs: Sequence[Run], measure: str, entries: int | None) -> str:
    try:
        return show(differences.mean_of(runs, measure, entries), measure)
    except ValueError:
        return "–"


def integer(value: Any) -> str:
    return "–" if value is None else f"{value:,}"


def short(value: Any) -> str:
    return "–" if value is None else canvas.engineering(value)


def _bytes(value: Any) -> str:
    return "–" if value is None else canvas.in_bytes(value)


def _of(runs: Sequence[Run], name: str) -> list[float]:
    """What result.json says under this name, of the runs where it says something."""
    return [run.result[name] for run in runs if run.result.get(name)]


def _mean(values: list[float], shown: Callable[[float], str]) -> str:
    return shown(sum(values) / len(values)) if values else "–"
