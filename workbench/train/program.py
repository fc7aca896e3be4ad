"""What a compiled program does, read from its text: bytes between devices and multiply-adds, loops times their trips.

The text is XLA's optimised HLO, of one device; `backend_config` holds the number of trips of a loop that it knows.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

# Bytes that a device sends for each byte that it holds before, in a ring of n devices.
SENT = {
    "all-gather": lambda n: n - 1,
    "reduce-scatter": lambda n: (n - 1) / n,
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "all-to-all": lambda n: (n - 1) / n,
    "ragged-all-to-all": lambda n: (n - 1) / n,
    "collective-permute": lambda n: 1,
    "collective-broadcast": lambda n: 1,
}

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.-]+) = (.*?) ([a-z][a-z0-9-]*)\((.*)$")
_ARRAY = re.compile(r"\b(pred|bf16|[a-z]+(\d+)\w*)\[([\d,]*)\]")
_CALLED = re.compile(r"\b(?:calls|to_apply|body|true_computation|false_computation)=%?([\w.-]+)")
_BRANCHES = re.compile(r"\bbranch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_CONTRACTED = re.compile(r'\blhs_contracting_dims=\{([\d,]*)\}|"lhs_contracting_dimensions":\[([\d",]*)\]')
_IOTA = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}")
_LISTED = re.compile(r"replica_groups=\{((?:\{[\d,]*\},?)*)\}")


class Instruction(NamedTuple):
    """name = result operation(operands), rest; the result is a type in HLO's writing."""

    name: str
    result: str
    operation: str
    operands: list[str]
    rest: str


@dataclass
class Traffic:
    """Of one kind of collective: how often it runs a step, and the bytes that a device sends, in rings.

    Within a node, and in groups that reach over several.
    """

    times: float = 0
    within_bytes: float = 0
    across_bytes: float = 0


@dataclass
class Program:
    """A step of one device."""

    flops: float = 0  # of matrix products, a multiply-add being 2
    traffic: dict[str, Traffic] = field(default_factory=lambda: defaultdict(Traffic))


def read(text: str, devices: int, node: int) -> Program:
    """The program in HLO's text, for so many devices, `node` of them a node.

    Raises ValueError for a loop that has products or collectives and whose trips the text does not say.
    """
    computations, entry = _parse(text)
    program = Program()

    def walk(name: str, times: float, known: bool) -> None:
        results = {each.name: each.result for each in computations[name]}
        for each in computations[name]:
            kind = each.operation.removesuffix("-start")
            flops = _flops(each, results)
            if (kind in SENT or flops) and not known:
                raise ValueError(f"{each.name} ({kind}) is in a loop, and the program does not say how often it runs")
            program.flops += times * flops
            if kind in SENT:
                _send(program.traffic[kind], each, results, times, devices, node)
                continue  # what an asynchronous one calls is itself
            trips = _TRIPS.search(each.rest)
            for called in _called(each):
                loop = kind == "while"
                walk(
                    called, times * (int(trips[1]) if loop and trips else 1), known and (not loop or trips is not None)
                )

    walk(entry, 1, True)
    program.traffic = dict(program.traffic)
    return program


def _parse(text: str) -> tuple[dict[str, list[Instruction]], str]:
    """The instructions of every computation, and the name of the one that the program starts with."""
    computations: dict[str, list[Instruction]] = {}
    entry, inside = "", None
    for line in text.splitlines():
        if inside is None:
            if head := _COMPUTATION.match(line):
                inside = computations[head[2]] = []
                entry = head[2] if head[1] else entry
        elif line.startswith("}"):
            inside = None
        elif found := _INSTRUCTION.match(line):
            name, result, operation, rest = found.groups()
            given, _, rest = rest.partition(")")
            inside.append(Instruction(name, result, operation, re.findall(r"%([\w.-]+)", given), rest))
    return computations, entry


def _called(each: Instruction) -> Iterator[str]:
    yield from _CALLED.findall(each.rest)
    for branches in _BRANCHES.findall(each.rest):
        yield from re.findall(r"%?([\w.-]+)", branches)


def _arrays(result: str) -> list[tuple[int, list[int]]]:
    """(bytes of an element, shape) of each array in a type."""
    return [
        (1 if kind == "pred" else max(1, int(re.search(r"\d+", kind)[0]) // 8), [int(n) for n in shape.split(",") if n])
        for kind, _, shape in _ARRAY.findall(result)
    ]


def _flops(each: Instruction, results: dict[str, str]) -> float:
    """Of a product: of the result's every element, a multiply-add for each contracted one. Else 0."""
    contracted = _CONTRACTED.search(each.rest)
    if each.operation not in ("dot", "custom-call") or contracted is None:
        return 0
    (_, made), (_, left) = _arrays(each.result)[0], _arrays(results[each.operands[0]])[0]
    axes = [int(axis) for axis in re.findall(r"\d+", contracted[1] or contracted[2] or "")]
    return 2 * math.prod(made) * math.prod(left[axis] for axis in axes)


def _send(traffic: Traffic, each: Instruction, results: dict[str, str], times: float, devices: int, node: int) -> None:
    if each.operation.startswith("collective-permute"):
        pairs = re.findall(r"\{(\d+),(\d+)\}", each.rest.partition("source_target_pairs=")[2])
        groups = [[int(a), int(b)] for a, b in pairs if a != b]
        size = 2 if groups else 1
    else:
        groups = _groups(each.rest, devices)
        size = len(groups[0])
    if size == 1:
        return
    held = sum(width * math.prod(shape) for name in each.operands for width, shape in _arrays(results[name]))
    sent = times * held * SENT[each.operation.removesuffix("-start")](size)
    traffic.times += times
    if all(len({device // node for device in group}) == 1 for group in groups):
        traffic.within_bytes += sent
    else:
        traffic.across_bytes += sent


def _groups(rest: str, devices: int) -> list[list[int]]:
    """The devices that talk to each other."""
    if found := _IOTA.search(rest):
        shape, dimensions, order = ([int(n) for n in part.split(",")] if part else None for part in found.groups())
        return np.arange(math.prod(dimensions)).reshape(dimensions).transpose(order).reshape(shape).tolist()
    if found := _MESH.search(rest):
        axes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", found[1])}
        over = re.findall(r"'(\w+)'", found[2])
        places = np.arange(math.prod(axes.values())).reshape(tuple(axes.values()))
        last = np.moveaxis(places, [list(axes).index(name) for name in over], range(-len(over), 0))
        return last.reshape(-1, math.prod(axes[name] for name in over)).tolist()
    found = _LISTED.search(rest)
    if found is None:
        raise ValueError(f"a collective does not say which devices it is between: {rest[:200]}")
    listed = [[int(n) for n in group.split(",") if n] for group in re.findall(r"\{([\d,]*)\}", found[1])]
    return listed or [list(range(devices))]
