"""What accelerators can do, by their makers' data sheets. What the machine at hand can do is measured."""

from __future__ import annotations

from dataclasses import dataclass

from workbench.config import nearest


@dataclass(frozen=True)
class Device:
    """One accelerator. flops: multiply-adds as two, a second, in bfloat16 without sparsity (float32 on a CPU)."""

    name: str
    memory_bytes: float
    bandwidth: float  # bytes a second, of its memory
    flops: float
    watts: float | None  # at most; None: not published
    source: str


DEVICES = {
    device.name: device
    for device in (
        Device("h100", 80e9, 3.35e12, 989.4e12, 700, "NVIDIA H100 Tensor Core GPU data sheet, SXM5"),
        Device("h200", 141e9, 4.8e12, 989.4e12, 700, "NVIDIA H200 Tensor Core GPU data sheet, SXM"),
        Device("a100", 80e9, 2.039e12, 312e12, 400, "NVIDIA A100 Tensor Core GPU data sheet, 80 GB SXM"),
        Device("tpu-v5e", 16e9, 819e9, 197e12, None, "Google Cloud documentation, TPU v5e"),
    )
}


def device(name: str) -> Device:
    """The device of this name. Raises ValueError with the nearest for one that is not in the table."""
    if name not in DEVICES:
        raise ValueError(f"device {name!r}: {nearest(name, DEVICES)}")
    return DEVICES[name]
