"""How bits per byte fall with what is spent: a curve an architecture, fitted, with intervals over seeds, and crossings.

L(x) = floor + scale x^-exponent is fitted to each arm and each seed, against training FLOPs, tokens or parameters;
seeds are then samples, as everywhere. With three sizes the floor is 0. Source of the form: Hoffmann et al. 2022,
arXiv:2203.15556, equation 2, in one variable. Runs of the role scale are an arm at another size than its own.
"""

from __future__ import annotations

import math
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import brentq, minimize_scalar, nnls

from workbench.evaluate.interval import Values
from workbench.study import judge
from workbench.study.collect import Run, Study
from workbench.study.statistics import LEAST_SEEDS, Interval, t_interval
from workbench.study.wording import listed

AGAINST = {"flops": "training FLOPs", "tokens": "tokens", "parameters": "parameters without embedding"}
LEAST_SIZES = 3
BEYOND = 10.0  # times the largest measured: as far as a crossing is looked for
EXPONENTS = 0.01, 3.0


class Power(NamedTuple):
    """floor + scale x^-exponent, at x in units of `unit`."""

    floor: float
    scale: float
    exponent: float
    unit: float

    def at(self, x: float | np.ndarray) -> Any:
        return self.floor + self.scale * (np.asarray(x) / self.unit) ** -self.exponent


def fit(x: Values, y: Values) -> Power:
    """Least squares over all three, none below zero; the floor is 0 below four sizes. Raises ValueError below three."""
    x, y = np.asarray(x, float), np.asarray(y, float)
    sizes = len(np.unique(x))
    if sizes < LEAST_SIZES:
        raise ValueError(f"a power law needs at least {LEAST_SIZES} sizes; got {sizes}")
    unit = float(np.exp(np.log(x).mean()))

    def solved(exponent: float) -> tuple[np.ndarray, float]:
        falling = (x / unit) ** -exponent
        columns = np.stack([np.ones_like(x), falling], axis=1) if sizes > LEAST_SIZES else falling[:, None]
        return nnls(columns, y)

    grid = np.geomspace(*EXPONENTS, 80)
    best = int(np.argmin([solved(exponent)[1] for exponent in grid]))
    ends = np.log([grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]])
    exponent = math.exp(
        minimize_scalar(lambda log: solved(math.exp(log))[1], bounds=ends, method="bounded", options={"xatol": 1e-9}).x
    )
    weights, _ = solved(exponent)
    floor = float(weights[0]) if len(weights) == 2 else 0.0
    return Power(floor, float(weights[-1]), exponent, unit)


def crossings(a: Power, b: Power, low: float, high: float) -> list[float]:
    """Where two curves are equal between two places, ascending."""
    grid = np.geomspace(low, high, 400)
    gap = lambda log: float(a.at(math.exp(log)) - b.at(math.exp(log)))  # noqa: E731
    values = [gap(math.log(x)) for x in grid]
    pairs = zip(grid, grid[1:], values, values[1:], strict=False)
    return [math.exp(brentq(gap, math.log(x), math.log(y))) for x, y, u, v in pairs if u * v < 0]


class Curves(NamedTuple):
    """Fits by arm and replicate, the points that they are of, and the least and greatest x that all arms have."""

    against: str
    fits: dict[str, dict[tuple[int, int], Power]]
    points: dict[str, dict[tuple[int, int], list[tuple[float, Interval]]]]
    low: float
    high: float


def runs(study: Study, task: str) -> list[Run]:
    """The task's runs of every size; [] where there is but one."""
    return study.select("result", "scale", task=task) if study.select("scale", task=task) else []


def problems(study: Study, task: str) -> list[str]:
    """What forbids drawing curves through the runs: one that did not finish, or did not read the others' stream."""
    every = runs(study, task)
    found = [f"{run.name}: {run.status}" for run in every if not run.finished]
    return found or judge.off_stream(study, task, every)


def curves(study: Study, task: str, against: str) -> Curves | None:
    """None where there is nothing to fit: problems, fewer than three sizes of some arm, or no bits per byte."""
    every = runs(study, task)
    if not every or problems(study, task) or any(run.bits_per_byte is None for run in every):
        return None
    points: dict[str, dict[tuple[int, int], list[tuple[float, Interval]]]] = {}
    for run in every:
        points.setdefault(run.arm, {}).setdefault(run.replicate, []).append((_spent(run, against), run.bits_per_byte))
    seeds = [each for arm in points.values() for each in arm.values()]
    if any(len({x for x, _ in each}) < LEAST_SIZES for each in seeds):
        return None
    for each in seeds:
        each.sort(key=lambda point: point[0])
    fits = {
        arm: {replicate: fit(*zip(*((x, y.mean) for x, y in each), strict=True)) for replicate, each in arms.items()}
        for arm, arms in points.items()
    }
    return Curves(against, fits, points, max(each[0][0] for each in seeds), min(each[-1][0] for each in seeds))


def _spent(run: Run, against: str) -> float:
    return float(run.result["non_embedding_parameters"]) if against == "parameters" else judge.spent(run, against)


def mean_at(fits: dict[Any, Power], x: float) -> Interval:
    """The mean of the seeds' curves at a place, with Student's interval from three seeds on, else none of its own."""
    values = [float(each.at(x)) for each in fits.values()]
    mean = float(np.mean(values))
    return t_interval(values) if len(values) >= LEAST_SEEDS else Interval(mean, mean, mean)


class Crossing(NamedTuple):
    """Where an arm's curve, below at first, meets another's; `seeds` of `of` seeds have it so near, low and high from
    three that have."""

    first: str
    second: str
    at: float
    low: float
    high: float
    seeds: int
    of: int


def met(found: Curves) -> list[Crossing]:
    """Every pair of arms whose curves cross in most seeds, up to ten times the largest x; first is below before."""
    out = []
    for a, b in combinations(found.fits, 2):
        shared = [r for r in found.fits[a] if r in found.fits[b]]
        pairs = [(found.fits[a][r], found.fits[b][r]) for r in shared]
        places = [crossings(*pair, found.low, BEYOND * found.high) for pair in pairs]
        logs = [math.log(each[0]) for each in places if each]
        if 2 * len(logs) <= len(shared):
            continue
        middle, low, high = t_interval(logs) if len(logs) >= LEAST_SEEDS else [float(np.mean(logs))] * 3
        below = np.mean([float(p.at(found.low) - q.at(found.low)) for p, q in pairs]) < 0
        order = (a, b) if below else (b, a)
        out.append(Crossing(*order, *map(math.exp, (middle, low, high)), len(logs), len(shared)))
    return out


def sentences(study: Study, task: str) -> list[str]:
    """Who is below whom over what was measured, and where curves cross; [] where nothing was fitted."""
    if runs(study, task) and (why := problems(study, task)):
        return [f"No curves against size are drawn on {task}: {why[0]}."]
    found = curves(study, task, "flops")
    if found is None:
        return []
    out = [
        f"From {found.low:.2g} to {found.high:.2g} {AGAINST['flops']} the fitted curves go from "
        f"{_held(found, found.low)} to {_held(found, found.high)} bits per byte."
    ]
    for each in met(found):
        place = f"{each.at:.2g} {AGAINST['flops']}"
        place += f" [{each.low:.2g}, {each.high:.2g}]" if each.seeds >= LEAST_SEEDS else ""
        past = each.at / found.high
        far = f", {past:.1f} times the largest measured: an extrapolation" if past > 1 else ""
        out.append(
            f"{each.first} is below {each.second} until their curves cross at {place} "
            f"(in {each.seeds} of {each.of} seeds{far})."
        )
    if not met(found):
        out.append(f"No two of these curves cross in most seeds, up to {BEYOND * found.high:.2g} {AGAINST['flops']}.")
    tokens = curves(study, task, "tokens")
    for each in met(tokens) if tokens else ():
        if each.at <= tokens.high:  # what is asked of every arm: one stream, as long
            interval = f" [{each.low:.2g}, {each.high:.2g}]" if each.seeds >= LEAST_SEEDS else ""
            out.append(
                f"Against tokens {each.first} is below {each.second} until {each.at:.2g}{interval}, within what was "
                f"measured (in {each.seeds} of {each.of} seeds)."
            )
    return out


def _held(found: Curves, x: float) -> str:
    """What the curves have at a place, the lowest first."""
    means = {arm: mean_at(each, x).mean for arm, each in found.fits.items()}
    return listed([f"{means[arm]:.3f} ({arm})" for arm in sorted(means, key=means.get)])


def record(study: Study, task: str) -> dict[str, Any]:
    """The fits and crossings as plain values, against each of FLOPs, tokens and parameters that they can be made."""
    out: dict[str, Any] = {}
    for against in AGAINST:
        found = curves(study, task, against)
        if found is None:
            continue
        out[against] = {
            "measured": [found.low, found.high],
            "arms": {
                arm: {
                    "exponent": _over(each, "exponent"),
                    "floor": _over(each, "floor"),
                    "seeds": {str(replicate[1]): power._asdict() for replicate, power in each.items()},
                }
                for arm, each in found.fits.items()
            },
            "crossings": [each._asdict() for each in met(found)],
        }
    return out


def _over(fits: dict[Any, Power], name: str) -> dict[str, float]:
    values = [getattr(each, name) for each in fits.values()]
    if len(values) >= LEAST_SEEDS:
        return t_interval(values)._asdict()
    return {"mean": float(np.mean(values))}
