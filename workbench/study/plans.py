"""Which layouts an experiment's arms are planned in, and what came of it, as rows and as text."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

import jax

from workbench.config import Layout, RunConfig, nearest
from workbench.study.sizes import FLOPS, binary, decimal
from workbench.train.layout import AXES
from workbench.train.plan import FILLED, KINDS, Plan, plan

COLLECTIVES = ("all-gather", "reduce-scatter", "all-reduce")


def layouts(rows: int, devices: int, node: int) -> list[Layout]:
    """A few layouts of so many devices to try, for a batch of so many rows; each device has one row at a time.

    Layers are divided over as few devices as the rows leave no other use for. Weights are divided within a node or
    over all devices; the backward pass makes everything again, or all but products.
    Raises ValueError if the rows cannot be divided over the devices of a layout within a node.
    """
    for tensor in range(1, min(node, devices) + 1):
        groups = devices // tensor
        if node % tensor == devices % tensor == 0 and rows % groups == 0:
            break
    else:
        raise ValueError(
            f"a batch of {rows} rows does not divide over {devices} devices, even with tensor={min(node, devices)}; "
            "set data.batch, or give a --layout"
        )
    shares = sorted({min(groups, node // tensor), groups})
    return [
        Layout(data=groups // share, fsdp=share, tensor=tensor, micro=rows // groups, remat=remat)
        for share in shares
        if groups % share == 0
        for remat in ("all", "products")
    ]


def arms(runs: Sequence[RunConfig], names: Sequence[str] | None = None) -> list[RunConfig]:
    """A run of each arm and task, of these arms or of all. Raises ValueError for an arm that is none."""
    first: dict[tuple[str, str], RunConfig] = {}
    for run in runs:
        first.setdefault((run.arm, type(run.data).__name__), run)
    for name in names or ():
        if all(name != arm for arm, _ in first):
            raise ValueError(f"there is no arm {name!r}; {nearest(name, {arm for arm, _ in first})}")
    return [run for run in first.values() if not names or run.arm in names]


def make(runs: Sequence[RunConfig], layout: Layout | None, device: str, count: int) -> list[Plan]:
    """The plan of every run in the layout, or in each of `layouts`; each is named on standard error before it is made.

    Raises ValueError unless count is at least 1, and as `workbench.train.plan.plan` does.
    """
    if count < 1:
        raise ValueError(f"--count is {count}; it must be at least 1")
    kind = KINDS[device]
    if device == "cpu":
        jax.config.update("jax_num_cpu_devices", count)
    made = []
    for run in runs:
        for each in [layout] if layout else layouts(run.data.batch, count, kind.node):
            named = ", ".join(f"{name}={value}" for name, value in dataclasses.asdict(each).items())
            print(f"compiling {run.arm}: {named}", file=sys.stderr, flush=True)
            made.append(plan(run, each, kind))
    return made


def row(made: Plan, utilisation: float) -> dict[str, Any]:
    """The plan as plain values."""
    return dataclasses.asdict(made) | {
        "devices": made.layout.devices,
        "fits": made.fits,
        "utilisation": utilisation,
        "step_seconds": made.step_seconds(utilisation),
        "sending_seconds": made.sending_seconds,
    }


def table(plans: Sequence[Plan], utilisation: float) -> str:
    """The plans as aligned text, and the arithmetic behind the step's time."""
    head = ["arm", " x ".join(AXES), "micro", "remat", "arguments", "temporary", "peak", "fits"]
    head += [*COLLECTIVES, "others", "sending", "step"]
    body = []
    for each in plans:
        layout, bytes_of = each.layout, {kind: s.within_bytes + s.across_bytes for kind, s in each.sent.items()}
        others = sum(sent for kind, sent in bytes_of.items() if kind not in COLLECTIVES)
        body.append(
            [
                each.arm,
                " x ".join(str(getattr(layout, axis)) for axis in AXES),
                str(layout.micro),
                layout.remat,
                *map(binary, (each.argument_bytes, each.temporary_bytes, each.peak_bytes)),
                {True: "yes", False: "no", None: "?"}[each.fits],
                *(binary(bytes_of.get(kind, 0)) for kind in COLLECTIVES),
                binary(others),
                _seconds(each.sending_seconds),
                _step(each, utilisation),
            ]
        )
    widths = [max(map(len, column)) for column in zip(head, *body, strict=True)]
    lines = [
        "  ".join(f"{cell:{'<' if i in (0, 1, 3) else '>'}{widths[i]}}" for i, cell in enumerate(line)).rstrip()
        for line in [head, *body]
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:], "", *_notes(plans, utilisation)])


def _step(made: Plan, utilisation: float) -> str:
    """The seconds of a step, or of its sending where that takes longer."""
    computing, sending = made.step_seconds(utilisation), made.sending_seconds
    return f"{_seconds(sending)} (links)" if computing and sending and sending > computing else _seconds(computing)


def _seconds(value: float | None) -> str:
    return "?" if value is None else f"{value:.3g} s"


def _notes(plans: Sequence[Plan], utilisation: float) -> list[str]:
    device = plans[0].device
    notes = ["Bytes are of one device; of collectives, what it sends a step in rings."]
    if device.memory_bytes is not None:
        notes += [
            f"Fits: the peak is at most {FILLED:.0%} of {binary(device.memory_bytes)}.",
            f"Sending: bytes within a node at {device.within_bytes / 1e9:.0f} GB/s, across at "
            f"{device.across_bytes / 1e9:.0f} GB/s, nothing beside them; (links): that takes longer than the step.",
        ]
    for made in {made.arm: made for made in plans}.values():
        a_token = made.flops / made.tokens
        line = f"{made.arm}: {made.tokens:,} tokens x {decimal(a_token, FLOPS)} = {made.flops:.3e} FLOPs a step"
        if device.flops is not None:
            line += (
                f"; / ({made.layout.devices} x {device.flops / 1e12:.1f} TFLOP/s x {utilisation:g}) = "
                f"{made.step_seconds(utilisation):.3g} s"
            )
        notes.append(line)
    notes += [
        f"{made.arm}, {made.layout.remat} made again: products in the program are {made.compiled_flops:.3e} FLOPs, "
        f"{made.compiled_flops / made.flops:.2f} times that"
        + (f" ({', '.join(f'{k}: {v}' for k, v in made.implementation.items())})" if made.implementation else "")
        for made in plans
    ]
    return notes
