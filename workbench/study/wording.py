"""How a study, its numbers and its tasks are put into words."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any, NamedTuple

from workbench.config import RECALL
from workbench.study.collect import Study

BITS = ("bits_per_byte", "same_groups")  # measures of text; the others are proportions


class Words(NamedTuple):
    """How sentences and figures speak of a task with exact match."""

    units: str = "entries"
    holder: str = "book"
    whole: str = "whole numbers"
    part: str = "digits"


UNITS = {"mqar": "pairs", "trigrams": "trigrams"}  # of what is looked up
WORDS = dict.fromkeys(RECALL, Words("symbols", "document", "whole answers", "symbols"))
WORDS |= {kind: Words(units, "document", "values", "values") for kind, units in UNITS.items()}


def words(task: str) -> Words:
    """Those of the task; a task that is not known here is spoken of as Phonebook."""
    return WORDS.get(task, Words())


def show(estimate: Any, measure: str = "exact_match") -> str:
    """`98.4 [96.9, 99.2] %`, or bits with three decimals."""
    mean, low, high = estimate[:3]
    if measure in BITS:
        return f"{mean:.3f} [{low:.3f}, {high:.3f}]"
    return f"{100 * mean:.1f} [{100 * low:.1f}, {100 * high:.1f}]\u00a0%"  # no line break before the unit


def listed(names: Sequence[str]) -> str:
    """`a, b and c`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def title(study: Study) -> str:
    """First line of the experiment's docstring, else the study's name."""
    lines = study.facts.get("docstring", "").strip().splitlines()
    return lines[0].strip().rstrip(".") if lines else study.name


def question(study: Study) -> str:
    """What the docstring asks after "Question:", else its first question, else the one that every study asks."""
    text = " ".join(study.facts.get("docstring", "").split())
    if "?" in text:
        text = text.partition("Question:")[2] if "?" in text.partition("Question:")[2] else text
        asked = text[: text.index("?") + 1]
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
    typed = ["workbench", "run", study.facts.get("file", f"experiments/{study.facts['name']}.py")]
    typed += ["--scale", scale] if scale != "demo" else []
    return shlex.join(typed + list(study.facts.get("overrides", ())))
