"""How a study's numbers and tasks are put into words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from workbench.config import RECALL

BITS = ("bits_per_byte", "same_groups")  # measures of text; the others are proportions


class Words(NamedTuple):
    """How sentences and figures speak of a task with exact match."""

    units: str = "entries"
    holder: str = "book"
    whole: str = "whole numbers"
    part: str = "digits"


WORDS = {"mqar": Words("pairs", "document", "values", "values")}
WORDS |= dict.fromkeys(RECALL[1:], Words("symbols", "document", "whole answers", "symbols"))


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
