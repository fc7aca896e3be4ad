"""What generating costs, from a config and a device alone: bytes against bandwidth, FLOPs against the arithmetic rate.

A decoding step reads every weight once for the whole batch, and for each sequence reads its state and writes what
changes of it: one token of keys and values, all of a recurrent state. It takes as long as the slower of moving these
bytes and computing its FLOPs. Nothing else is in it: no launches, no communication, no sampling. Needs no JAX.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import numpy as np

from workbench.config import ModelConfig
from workbench.count import ELEMENT_BYTES, count
from workbench.devices import Device

FURTHEST = 2**40  # tokens up to which a crossing is looked for
POINTS = 129  # contexts at which a generation's steps are worked out; between them their cost is a straight line


class Step(NamedTuple):
    """One token for each sequence of a batch. bound: what takes longer, "memory" or "arithmetic"."""

    seconds: float
    weight_bytes: int
    read_bytes: int
    written_bytes: int
    flops: int
    bound: Literal["memory", "arithmetic"]


class Generation(NamedTuple):
    """A whole generation of a batch. first, last: seconds of the first and the last decoding step."""

    prompt_seconds: float
    first: float
    last: float
    seconds: float
    tokens_per_second: float  # generated, of all sequences, from the prompt's beginning
    memory_bytes: int  # weights and the states at the end
    devices: int  # that hold this, by their memory alone
    joules: float | None  # at most, of the whole; None where the device's watts are not known
    dollars: float | None  # of the whole; None where the device has no price


def decode(config: ModelConfig, device: Device, *, batch: int, context: int) -> Step:
    """A decoding step of `batch` sequences that each have `context` tokens behind them."""
    at, one = count(config, context), count(config, 1)
    weights = at.parameters * ELEMENT_BYTES[config.dtype]
    read, written = batch * at.state_bytes, batch * one.state_bytes
    flops = batch * at.decode_flops_per_token
    moving, computing = (weights + read + written) / device.bandwidth, flops / device.flops
    return Step(
        max(moving, computing), weights, read, written, flops, "memory" if moving >= computing else "arithmetic"
    )


def prompt(config: ModelConfig, device: Device, *, batch: int, tokens: int) -> float:
    """Seconds that reading prompts of `tokens` tokens takes: FLOPs, or the weights once where there are few."""
    at = count(config, tokens)
    flops = batch * tokens * at.train_flops_per_token / 3
    moved = at.parameters * ELEMENT_BYTES[config.dtype] + batch * at.state_bytes
    return max(flops / device.flops, moved / device.bandwidth)


def predict(config: ModelConfig, device: Device, *, batch: int, prompt_tokens: int, tokens: int) -> Generation:
    """Reading `prompt_tokens` and generating `tokens` for each of `batch` sequences.

    Raises ValueError for less than one of any.
    """
    for name, value in (("batch", batch), ("prompt_tokens", prompt_tokens), ("tokens", tokens)):
        if value < 1:
            raise ValueError(f"{name} is at least 1; got {value}")
    places = np.unique(np.linspace(prompt_tokens, prompt_tokens + tokens - 1, min(tokens, POINTS)).round().astype(int))
    steps = [decode(config, device, batch=batch, context=int(place)).seconds for place in places]
    each = np.interp(np.arange(prompt_tokens, prompt_tokens + tokens), places, steps)
    before = prompt(config, device, batch=batch, tokens=prompt_tokens)
    seconds = before + float(each.sum())
    end = count(config, prompt_tokens + tokens)
    memory = end.parameters * ELEMENT_BYTES[config.dtype] + batch * end.state_bytes
    devices = math.ceil(memory / device.memory_bytes)
    rate = batch * tokens / seconds
    return Generation(before, steps[0], steps[-1], seconds, rate, memory, devices, *costs(device, seconds))


def costs(device: Device, seconds: float) -> tuple[float | None, float | None]:
    """Joules and dollars of so many seconds of one device, or of a part of them on each of several."""
    joules = None if device.watts is None else device.watts * seconds
    return joules, None if device.dollars_an_hour is None else device.dollars_an_hour * seconds / 3600


def crossover(
    one: ModelConfig,
    other: ModelConfig,
    device: Device,
    *,
    batch: int,
    of: Literal["time", "memory"] = "time",
) -> int | None:
    """The least context from which on `one` needs less than `other` a decoding step, or None if there is none.

    of: seconds, or the bytes of weights and states. Both grow with the context, so that there is at most one crossing
    where one's grows slower. 1: it needs less from the beginning.
    """

    def less(context: int) -> bool:
        if of == "time":
            return decode(one, device, batch=batch, context=context).seconds < (
                decode(other, device, batch=batch, context=context).seconds
            )
        bytes_of = lambda step: step.weight_bytes + step.read_bytes  # noqa: E731
        return bytes_of(decode(one, device, batch=batch, context=context)) < (
            bytes_of(decode(other, device, batch=batch, context=context))
        )

    if less(1):
        return 1 if less(FURTHEST) else None
    if not less(FURTHEST):
        return None
    low, high = 1, FURTHEST
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if less(middle) else (middle, high)
    return high
