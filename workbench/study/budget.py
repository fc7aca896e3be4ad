"""The same arms at equal training FLOPs and at equal seconds, beside those at equal tokens.

Every arm that costs more than the cheapest gets a run that ends where it has spent as much as the cheapest has at equal
tokens: with a schedule of its own to its end, so that only ends of complete schedules are compared, on the beginning of
the same token stream. Under warm-up, stable rate and decay that run branches from the arm's own and costs its decay
alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from workbench.config import RunConfig, nearest, task_name
from workbench.count import count
from workbench.study.extend import branched


def with_budgets(runs: Sequence[RunConfig], step_seconds: Mapping[str, float] | None = None) -> list[RunConfig]:
    """The runs, then those of the roles flops and, given seconds, seconds; an experiment's runs() lists them all.

    step_seconds: of a step of each arm that has the machine to itself (`workbench estimate FILE --alone` measures it).
    Raises ValueError for an arm without such a time, and where a batch grows, so that steps differ in cost.
    """
    runs, roles = list(runs), ["flops"] + ["seconds"] * bool(step_seconds)
    for run in runs:
        if step_seconds and run.arm not in step_seconds:
            raise ValueError(f"step_seconds has no {run.arm!r}; {nearest(run.arm, step_seconds)}")
        if getattr(run.data, "ramp", ()):
            raise ValueError(f"{run.name} has a batch that grows (data.ramp), whose steps differ in cost; leave it out")
    if step_seconds:
        runs = [replace(run, step_seconds=float(step_seconds[run.arm])) for run in runs]
    groups: dict[tuple, list[int]] = {}
    for place, run in enumerate(runs):
        if run.role == "result":
            groups.setdefault((task_name(run.data), run.data.seed, run.seed), []).append(place)
    ends: list[tuple[int, str, int]] = []  # whose run ends for which budget after how many steps
    for role in roles:
        for places in groups.values():
            budget = min(_step_cost(runs[place], role) * runs[place].steps for place in places)
            steps = [(place, round(budget / _step_cost(runs[place], role))) for place in places]
            ends += [(place, role, each) for place, each in steps if each < runs[place].steps]
    wsd = {place for place, *_ in ends if runs[place].optimizer.schedule == "wsd"}
    for place in wsd:
        kept = {_decays_from(runs[place], steps) for other, _, steps in ends if other == place}
        runs[place] = replace(runs[place], keep=tuple(sorted({*runs[place].keep, *kept})))
    return runs + [_ending(runs[place], role, steps) for place, role, steps in ends]


def _step_cost(run: RunConfig, role: str) -> float:
    """FLOPs of a token, all steps having as many, or seconds of a step."""
    return run.step_seconds if role == "seconds" else count(run.model, run.data.length).train_flops_per_token


def _decays_from(run: RunConfig, steps: int) -> int:
    return steps - round(run.optimizer.cooldown * steps)


def _ending(run: RunConfig, role: str, steps: int) -> RunConfig:
    """The run with a complete schedule of so many steps."""
    if run.optimizer.schedule == "wsd":
        return replace(branched(run, _decays_from(run, steps), steps=steps), role=role)
    return replace(run, steps=steps, role=role, keep=())
