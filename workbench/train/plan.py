"""What a training step needs of devices that are not there: it is compiled for them, no weight is made, nothing run."""

from __future__ import annotations

import importlib.util
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from workbench.config import Layout, RunConfig
from workbench.count import count
from workbench.devices import DEVICES, Device
from workbench.model.language_model import create
from workbench.train.layout import ROWS, check_rows, make_mesh, shardings
from workbench.train.memory import bytes_of
from workbench.train.optimizer import optimizer
from workbench.train.program import read
from workbench.train.step import lower_step

FILLED = 0.9  # of a device's memory, at most: the rest is for the driver, NCCL's buffers and fragments


KINDS = {
    "h100": DEVICES["h100"],
    # Devices simulated by this machine: what is divided and sent is real, and nothing is said of time.
    "cpu": Device("cpu", None, None, None, "simulated"),
}


@dataclass(frozen=True)
class Sent:
    """One kind of collective: how often it runs in a step, and the bytes that a device sends, in rings."""

    times: float
    within_bytes: float  # to devices of its node
    across_bytes: float  # in groups that reach over several nodes


@dataclass(frozen=True)
class Plan:
    """A step of a run in a layout, compiled for a kind of device. Bytes are of one device."""

    arm: str
    device: Device
    layout: Layout
    tokens: int  # a step
    flops: int  # a step, as workbench.count counts them
    compiled_flops: float  # a step, of the matrix products in the program of all devices, recomputation included
    argument_bytes: int  # weights, optimizer state and batch
    temporary_bytes: int
    peak_bytes: int
    sent: dict[str, Sent]
    implementation: dict[str, str]  # of each operation that has several
    compile_seconds: float

    @property
    def fits(self) -> bool | None:
        """Whether the peak leaves room in the device's memory."""
        memory = self.device.memory_bytes
        return None if memory is None else self.peak_bytes <= FILLED * memory

    def step_seconds(self, utilisation: float) -> float | None:
        """Of a step at this fraction of the devices' peak."""
        peak = self.device.flops
        return None if peak is None else self.flops / (self.layout.devices * peak * utilisation)

    @property
    def sending_seconds(self) -> float | None:
        """Of the collectives of a step at the links' rates, if nothing else ran beside them."""
        if self.device.within_bytes is None:
            return None
        return sum(
            each.within_bytes / self.device.within_bytes + each.across_bytes / self.device.across_bytes
            for each in self.sent.values()
        )


def plan(run: RunConfig, layout: Layout, device: Device) -> Plan:
    """The step that training would run (workbench.train.loop), compiled for the layout's devices; documents are packed.

    Raises ValueError for a layout that the batch does not fit, and OSError where the compiler is not installed.
    """
    check_rows(run.data.batch, run.data.length, layout)
    mesh = make_mesh(layout, _devices(device, layout.devices))
    begun = time.perf_counter()
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        leaves, tree = jax.tree.flatten(_weights(run, mesh))
        lowered, implementation = lower_step(run, layout, tree, leaves, _batch(run, mesh))
        compiled = lowered.compile()
    seconds = time.perf_counter() - begun
    memory = compiled.memory_analysis()
    program = read(compiled.as_text(), layout.devices, device.node)
    tokens = run.data.batch * run.data.length
    return Plan(
        arm=run.arm,
        device=device,
        layout=layout,
        tokens=tokens,
        flops=tokens * count(run.model, run.data.length).train_flops_per_token,
        compiled_flops=program.flops * layout.devices,
        argument_bytes=memory.argument_size_in_bytes,
        temporary_bytes=memory.temp_size_in_bytes,
        peak_bytes=bytes_of(compiled),
        sent={kind: Sent(t.times, t.within_bytes, t.across_bytes) for kind, t in sorted(program.traffic.items())},
        implementation=implementation,
        compile_seconds=seconds,
    )


def _weights(run: RunConfig, mesh: Mesh) -> Any:
    """Model and optimizer state, abstract, where training holds them."""
    model = jax.eval_shape(lambda: create(run.model, run.seed))
    whole = model, jax.eval_shape(optimizer(run.optimizer, run.steps).init, model)
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        whole,
        shardings(whole, mesh),
    )


def _batch(run: RunConfig, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    shape, rows = (run.data.batch, run.data.length), NamedSharding(mesh, ROWS)
    batch = {name: jax.ShapeDtypeStruct(shape, jnp.int32, sharding=rows) for name in ("tokens", "targets", "segments")}
    return batch | {"weights": jax.ShapeDtypeStruct(shape, jnp.float32, sharding=rows)}


def _devices(device: Device, count: int) -> Sequence[Any]:
    if device.name == "cpu":
        return jax.devices("cpu")
    from workbench_kernels.elsewhere import h100s

    _find_compiler()
    nodes = -(-count // device.node)
    return h100s(nodes, min(count, device.node))


@cache
def _find_compiler() -> None:
    """Lets JAX see its CUDA plugin and ptxas, this environment's own or those of `./setup.sh sm90a` beside it.

    Raises OSError, saying what to install, where there are none.
    """
    checkout = Path(__file__).parents[2]
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    beside = checkout / ".venv-sm90a" / "lib" / version / "site-packages"
    if importlib.util.find_spec("jax_cuda13_plugin") is None and beside.is_dir():
        sys.path.append(str(beside))
    found = importlib.util.find_spec("jax_cuda13_plugin")
    if found is None:
        raise OSError(
            "compiling for an H100 needs JAX's CUDA plugin: run ./setup.sh sm90a in the checkout (Linux, about 1 GB), "
            f"or install jax-cuda13-plugin=={jax.__version__} and nvidia-cuda-nvcc"
        )
    tools = map(str, Path(found.origin).parents[1].glob("nvidia/*/bin"))
    os.environ["PATH"] = os.pathsep.join([*tools, os.environ["PATH"]])
