"""What accelerators can do, by their makers' data sheets. What the machine at hand can do is measured."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

from workbench.config import nearest


@dataclass(frozen=True)
class Device:
    """One accelerator; None for what nobody says of it. Rates are a second, of one device, one way."""

    name: str
    memory_bytes: float | None
    bandwidth: float | None  # bytes, of its memory
    flops: float | None  # multiply-adds as two, dense, in bfloat16 (of a measured machine, in the dtype measured)
    source: str
    node: int = 8  # devices that a node has
    within_bytes: float | None = None  # to the devices of its node
    across_bytes: float | None = None  # to those of other nodes
    watts: float | None = None  # of the board, at most
    dollars_an_hour: float | None = None  # of no data sheet: from a price list (priced)


DEVICES = {
    device.name: device
    for device in (
        # Memory: what the driver reports for the SXM5 card of 80 GB. NVLink: 900 GB/s, both ways together. Between
        # nodes: a 400 Gb/s adapter for each GPU.
        Device(
            "h100", 84_978_434_048, 3.35e12, 989.4e12, "NVIDIA data sheets of the H100 SXM5 and the DGX H100", 8,
            450e9, 50e9, 700,
        ),
        Device("h200", 141e9, 4.8e12, 989.4e12, "NVIDIA data sheet of the H200 SXM", watts=700),
        Device("a100", 80e9, 2.039e12, 312e12, "NVIDIA data sheet of the A100 SXM, 80 GB", watts=400),
        Device("tpu-v5e", 16e9, 819e9, 197e12, "Google Cloud documentation of TPU v5e"),
    )
}  # fmt: skip


def device(name: str) -> Device:
    """The device of this name. Raises ValueError with the nearest for one that is not in the table."""
    if name not in DEVICES:
        raise ValueError(f"device {name!r}: {nearest(name, DEVICES)}")
    return DEVICES[name]


HERE = "this machine"  # what the one that is measured is called


def priced(device: Device, path: Path | str) -> Device:
    """The device with what a price list says of it: {"h100": {"dollars_an_hour": 2.5, "watts": 700}, ...}, of one each.

    Raises ValueError for a list that cannot be read, that lacks the device, or says anything else.
    """
    try:
        prices = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"the price list {path} cannot be read: {error}") from None
    name = device.name if device.name in DEVICES else HERE
    if not isinstance(prices, dict) or name not in prices:
        raise ValueError(f'the price list {path} has nothing of {name!r}; add {{"{name}": {{"dollars_an_hour": ...}}}}')
    said = prices[name]
    known = ("dollars_an_hour", "watts")
    if (
        not isinstance(said, dict)
        or not said.keys() <= set(known)
        or not all(isinstance(value, int | float) and value >= 0 for value in said.values())
    ):
        raise ValueError(
            f"the price list {path} says {said!r} of {name!r}; it may give {' and '.join(known)}, as numbers"
        )
    return replace(device, **said)
