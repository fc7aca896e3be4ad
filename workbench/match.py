"""Resize an architecture to a budget, changing as little as a fair comparison allows."""

from __future__ import annotations

import dataclasses
import math
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from workbench import pattern as patterns
from workbench.config import ModelConfig, differences
from workbench.count import count

MEASURES = {  # what a target is called here -> in Count
    "parameters": "parameters",
    "non_embedding_parameters": "non_embedding_parameters",
    "flops": "train_flops_per_token",
    "state_bytes": "state_bytes",
}


@dataclass(frozen=True)
class Match:
    """The architecture found, how close it came, and every change made to it."""

    config: ModelConfig
    measure: str
    target: float
    achieved: float
    tolerance: float
    changed: tuple[str, ...]

    @property
    def error(self) -> float:
        """Signed, as a fraction of the target."""
        return self.achieved / self.target - 1

    @property
    def within(self) -> bool:
        return abs(self.error) <= self.tolerance

    def __str__(self) -> str:
        said = f"{self.measure} {self.achieved:,.0f} for {self.target:,.0f} ({self.error:+.2%})"
        missed = "" if self.within else f", outside {self.tolerance:.1%}: the closest that these changes allow"
        return f"{said}{missed}; {', '.join(self.changed) or 'nothing changed'}"


def match(
    config: ModelConfig,
    *,
    parameters: float | None = None,
    non_embedding_parameters: float | None = None,
    flops: float | None = None,
    state_bytes: float | None = None,
    context: int = 4096,
    tolerance: float = 0.01,
    width: bool = False,
) -> Match:
    """The config resized to one target; `flops` is training FLOPs a token, and state is in bytes at the context.

    Sizes: the MLPs' hidden width changes first, then depth in whole periods of the pattern, then the inner width of
    Mamba layers, and the model's width only if asked. Widths are multiples of 8 that keep heads whole, between half
    and eight times the model's. State: the Mamba layers' `state` (multiples of 4), then `kv_heads`, then windows that
    are there already. The first set of changes within the tolerance is taken; if none is, the closest of all is, and
    `Match.within` is false. Raises ValueError unless one target is given, or if no layer has a size to change.
    """
    targets = {
        "parameters": parameters,
        "non_embedding_parameters": non_embedding_parameters,
        "flops": flops,
        "state_bytes": state_bytes,
    }
    given = {name: target for name, target in targets.items() if target is not None}
    if len(given) != 1:
        raise ValueError(f"match needs one target of {', '.join(targets)}; got {', '.join(given) or 'none'}")
    [(name, target)] = given.items()
    if target <= 0:
        raise ValueError(f"{name} must be above 0; got {target}")

    def measure(candidate: ModelConfig) -> int:
        return getattr(count(candidate, context), MEASURES[name])

    def distance(candidate: ModelConfig) -> float:
        return abs(measure(candidate) - target)

    plans = STATE_PLANS if name == "state_bytes" else SIZE_PLANS + (WIDTH_PLANS if width else ())
    plans = [[KNOBS[knob] for knob in plan] for plan in plans]
    plans = [plan for plan in plans if all(knob.values(config) for knob in plan)]
    if not plans:
        raise ValueError(
            f"pattern {config.pattern!r} has no layer whose {name} can be resized; it has {measure(config):,}"
        )
    best = config
    for plan in plans:
        if distance(best) <= tolerance * target:
            break
        best = min([best, *_bracket(config, plan, measure, target)], key=distance)
    return Match(best, name, target, measure(best), tolerance, tuple(differences(config, best)))


# ---- what can be turned


class Knob(NamedTuple):
    """Ascending settings of one size, with which every measure rises, and the config at a setting."""

    values: Callable[[ModelConfig], list[int]]
    turn: Callable[[ModelConfig, int], ModelConfig]


def _bracket(config: ModelConfig, plan: list[Knob], measure: Callable, target: float) -> list[ModelConfig]:
    """Configs around the target: each knob at the two settings on either side, later ones making up the rest."""
    if not plan:
        return [config]
    (values, turn), *rest = plan
    settings = values(config)
    above = bisect_left(settings, target, key=lambda setting: measure(turn(config, setting)))
    around = settings[max(above - 1, 0) : above + 1]
    return [found for setting in around for found in _bracket(turn(config, setting), rest, measure, target)]


def _symbols(config: ModelConfig) -> list[str]:
    """The distinct symbols of the pattern, in order."""
    return list(dict.fromkeys(patterns.parse(config.pattern, config.symbols)))


def _sizes(config: ModelConfig, field: str) -> dict[str, int]:
    """The field's value for each symbol of the pattern that has one, a default worked out from the width."""
    sizes = {}
    for symbol in _symbols(config):
        layer = config.symbols[symbol]
        if hasattr(layer, field):
            value = getattr(layer, field)
            if value is None and field in ("hidden", "inner") and hasattr(layer, "sizes"):
                value = layer.sizes(config.width)[0]
            if value:
                sizes[symbol] = value
    return sizes


def _with_sizes(config: ModelConfig, field: str, sizes: dict[str, int]) -> ModelConfig:
    changed = {symbol: dataclasses.replace(config.symbols[symbol], **{field: n}) for symbol, n in sizes.items()}
    return dataclasses.replace(config, symbols={**config.symbols, **changed})


def _step(config: ModelConfig, symbol: str, field: str) -> int:
    """What a size must be a multiple of: 8, whole heads and whole groups of them for inner widths."""
    layer = config.symbols[symbol]
    if field == "inner":
        return math.lcm(8, getattr(layer, "head_dim", 1) * getattr(layer, "groups", 1))
    return {"hidden": 8, "state": 4, "window": 1}[field]


def _scaled(field: str, bounds: Callable[[ModelConfig], tuple[int, int]]) -> Knob:
    """One field in all the layers that have it: the largest is set, the others keep their proportion to it."""

    def lead(config: ModelConfig) -> str:
        sizes = _sizes(config, field)
        return max(sizes, key=sizes.get)

    def values(config: ModelConfig) -> list[int]:
        if not _sizes(config, field):
            return []
        step, (low, high) = _step(config, lead(config), field), bounds(config)
        return list(range(math.ceil(max(low, 1) / step) * step, high + 1, step))

    def turn(config: ModelConfig, setting: int) -> ModelConfig:
        sizes = _sizes(config, field)
        share = setting / sizes[lead(config)]
        steps = {symbol: _step(config, symbol, field) for symbol in sizes}
        scaled = {symbol: max(1, round(n * share / steps[symbol])) * steps[symbol] for symbol, n in sizes.items()}
        return _with_sizes(config, field, scaled)

    return Knob(values, turn)


def _depths(config: ModelConfig) -> list[int]:
    text = patterns.parse(config.pattern, config.symbols)
    return list(range(1, patterns.MOST_LAYERS // patterns.period(text) + 1))


def _with_depth(config: ModelConfig, periods: int) -> ModelConfig:
    text = patterns.parse(config.pattern, config.symbols)
    unit = text[: patterns.period(text)]
    short = "(" in config.pattern  # written as the user wrote it
    return dataclasses.replace(config, pattern=f"({unit})x{periods}" if short else unit * periods)


def _kv_heads(config: ModelConfig) -> list[int]:
    """Divisors that the heads of all the attention layers have in common."""
    heads = math.gcd(*(config.symbols[symbol].heads for symbol in _attentions(config)))
    return [n for n in range(1, heads + 1) if heads % n == 0]


def _attentions(config: ModelConfig) -> list[str]:
    return [symbol for symbol in _symbols(config) if hasattr(config.symbols[symbol], "kv_heads")]


def _with_kv_heads(config: ModelConfig, heads: int) -> ModelConfig:
    return _with_sizes(config, "kv_heads", dict.fromkeys(_attentions(config), heads))


def _widths(config: ModelConfig) -> list[int]:
    """Multiples of 8, up to eight times the present width, at which every layer's sizes divide."""
    layers = [config.symbols[symbol] for symbol in _symbols(config)]

    def fits(width: int) -> bool:
        try:
            return all(layer.parameters(width) for layer in layers)
        except ValueError:
            return False

    return [width for width in range(8, 8 * config.width + 1, 8) if fits(width)]


def _with_width(config: ModelConfig, width: int) -> ModelConfig:
    return dataclasses.replace(config, width=width)


KNOBS = {
    "hidden": _scaled("hidden", lambda config: (config.width // 2, 8 * config.width)),
    "inner": _scaled("inner", lambda config: (config.width // 2, 8 * config.width)),
    "depth": Knob(_depths, _with_depth),
    "width": Knob(_widths, _with_width),
    "state": _scaled("state", lambda config: (4, 16 * max(_sizes(config, "state").values()))),
    "kv_heads": Knob(_kv_heads, _with_kv_heads),
    "window": _scaled("window", lambda config: (1, 16 * max(_sizes(config, "window").values()))),
}
SIZE_PLANS = (
    ("hidden",),
    ("depth",),
    ("depth", "hidden"),
    ("inner",),
    ("depth", "inner"),
    ("depth", "inner", "hidden"),
)
WIDTH_PLANS = (("width",), ("width", "hidden"), ("width", "inner"))
STATE_PLANS = (("state",), ("kv_heads",), ("kv_heads", "state"), ("window",), ("kv_heads", "window"))
