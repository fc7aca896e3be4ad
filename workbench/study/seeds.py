"""How many seeds a difference needs, told from the spread over the seeds that a study has."""

from __future__ import annotations

from pathlib import Path

from workbench.study import differences, statistics
from workbench.study.collect import collect

CHANCE = 0.8


def seeds(folder: str | Path, difference: float | None = None) -> str:
    """A line a pair of arms and measure: the spread over seeds, what these seeds can see, and how many more would do.

    difference: the one that is to be seen, in bits per byte or as a proportion; by default each pair's own, as it was
    seen. Raises ValueError for a study in which no two arms finished two seeds.
    """
    found = differences.spreads(collect(folder))
    if not found:
        raise ValueError(f"in {folder} no two arms finished two seeds of a task, so nothing tells how seeds vary")
    lines = [("task", "measure", "arms", "seeds", "difference", "deviation, 95 %", "seen from", "seeds needed")]
    for each in found:
        low, high = statistics.deviation_interval(each.deviation, each.seeds)
        asked = each.mean if difference is None else difference
        needed = None if each.deviation == 0 else statistics.seeds_needed(asked, each.deviation)
        smallest = statistics.detectable(each.seeds, each.deviation) if each.deviation else 0.0
        lines.append(
            (
                each.task,
                "bits per byte" if each.entries is None else f"exact, {each.entries}",
                f"{each.first} - {each.second}",
                str(each.seeds),
                f"{each.mean:+.4f}",
                f"{each.deviation:.4f} [{low:.4f}, {high:.4f}]",
                f"{smallest:.4f}",
                "?" if each.deviation == 0 else "over 1000" if needed is None else str(needed),
            )
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = [
        "  ".join(f"{cell:{'<' if i < 3 else '>'}{widths[i]}}" for i, cell in enumerate(line)).rstrip()
        for line in lines
    ]
    wanted = "each difference as it was seen" if difference is None else f"a difference of {difference:g}"
    return "\n".join(
        [
            *text,
            "",
            f"Seeds needed: for {wanted}, seen by a paired t over seeds in {100 * CHANCE:.0f} of 100 studies.",
            "Seen from: the smallest difference that the seeds of this study see as often.",
            "Both rest on the deviation as it stands, which few seeds know badly: see its interval.",
        ]
    )
