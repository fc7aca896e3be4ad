"""Compiles every kernel for an H100 (sm_90a) at research sizes, on a machine without one, and holds it to budgets.

    make kernels-check
    .venv-sm90a/bin/python kernels/compile_check.py [--json FILE] [--only WORD]

It needs workbench-kernels, and jax, jax-cuda13-plugin and jax-cuda13-pjrt of one version, in an environment of their
own (requirements-sm90a.lock), and a ptxas on PATH or from the nvidia-cuda-nvcc package.

Registers and spills are ptxas' own report; shared memory is what the kernel asks for. A last case is known to spill and
must be refused, or the check has gone blind. Nothing is run: this says that the code exists and fits, not that it is
right (tests/kernels) or fast (benchmarks/scan_gpu.py).
"""

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

BATCH, TIME, INNER = 8, 4096, 8192
SHARED = 232448  # bytes that a block may have on an H100; at half of that two fit on a multiprocessor
REPORT = re.compile(
    r"Compiling entry function '(\w+)' for 'sm_90a'.*?(\d+) bytes spill stores, (\d+) bytes spill loads"
    r".*?Used (\d+) registers",
    re.DOTALL,
)


@dataclass(frozen=True)
class Case:
    """A kernel at one size, the registers that it may use a thread, and whether it is the one that must fail."""

    name: str
    registers: int
    build: str  # the name of a function below that gives (function, its arguments' shapes)
    arguments: tuple = ()
    shared: int = SHARED // 2 - 1024
    bad: bool = False


def selective_scan_kernels(name: str, N: int, packed: bool, held: int | None = None) -> tuple[Callable, list]:
    import jax
    import jax.numpy as jnp
    from workbench_kernels import selective_scan_mosaic_gpu as kernels

    if held:
        kernels.HELD = held

    def array(*shape, dtype=jnp.float32):
        return jax.ShapeDtypeStruct(shape, dtype)

    x, dt = array(BATCH, TIME, INNER, dtype=jnp.bfloat16), array(BATCH, TIME, INNER)
    A, B, state = array(INNER, N), array(BATCH, TIME, N), array(BATCH, INNER, N)
    starts = [B] if packed else []
    block = kernels._Block(*x.shape, N)
    saved = array(BATCH, block.chunks, block.groups, *block.full)

    def optional(starts):
        return starts[0] if starts else None

    return {
        "forward": (
            lambda x, dt, A, B, C, h, *s: kernels._forward(x, dt, A, B, C, h, optional(s), save=True),
            [x, dt, A, B, B, state, *starts],
        ),
        "forward, no gradient": (
            lambda x, dt, A, B, C, h, *s: kernels._forward(x, dt, A, B, C, h, optional(s), save=False),
            [x, dt, A, B, B, state, *starts],
        ),
        "carry": (
            lambda x, dt, A, B, *s: kernels._carry(x, dt, A, B, optional(s), reverse=False),
            [x, dt, A, B, *starts],
        ),
        "carry back": (
            lambda x, dt, A, B, *s: kernels._carry(x, dt, A, B, optional(s), reverse=True),
            [x, dt, A, B, *starts],
        ),
        "backward": (
            lambda x, dt, A, B, C, saved, dy, h, *s: kernels._backward(x, dt, A, B, C, optional(s), saved, dy, h),
            [x, dt, A, B, B, saved, x, state, *starts],
        ),
    }[name]


def ssd_kernels(name: str, P: int, N: int) -> tuple[Callable, list]:
    import jax
    import jax.numpy as jnp
    from workbench_kernels import ssd_mosaic_gpu as kernels

    def array(*shape, dtype=jnp.float32):
        return jax.ShapeDtypeStruct(shape, dtype)

    H, groups, chunks = INNER // P, 8, TIME // kernels.CHUNK
    x, B = array(BATCH, TIME, H, P, dtype=jnp.bfloat16), array(BATCH, TIME, groups, N, dtype=jnp.bfloat16)
    states, first = array(BATCH, H, chunks, N, P, dtype=jnp.bfloat16), array(BATCH, H, N, P)
    two, three, four = (array(BATCH, H, chunks, some, kernels.CHUNK) for some in (2, 3, 4))
    return {
        "forward": (
            lambda x, B, rows, h, C, columns: kernels._walk(x, B, rows, h, save=True, queries=C, columns=columns),
            [x, B, four, first, B, two],
        ),
        "forward, no gradient": (
            lambda x, B, rows, h, C, columns: kernels._walk(x, B, rows, h, queries=C, columns=columns),
            [x, B, four, first, B, two],
        ),
        "carry": (kernels._walk, [x, B, four, first]),
        "walk back": (
            lambda dy, C, rows, dh, h: kernels._walk(dy, C, rows, dh, reverse=True, save=True, against=h),
            [x, B, four, first, states],
        ),
        "dC": (kernels._gradients, [B, B, x, x, states, three, two]),
        "dB and dx": (
            lambda *arrays: kernels._gradients(*arrays, values_too=True),
            [B, B, x, x, states, four, two],
        ),
    }[name]


BUDGETS = {"forward": 96, "forward, no gradient": 96, "carry": 80, "carry back": 80, "backward": 240}
CASES = [
    Case(
        f"selective_scan {name}, N={N}{', packed' if packed else ''}",
        registers,
        "selective_scan_kernels",
        (name, N, packed),
        SHARED if (name, N) == ("backward", 8) else SHARED // 2 - 1024,  # N=8 has twice the channels of N=16
    )
    for name, registers in BUDGETS.items()
    for N in (8, 16, 32, 64)
    for packed in (False, True)
    if not packed or N == 16
]
SSD_BUDGETS = {
    "forward": 240, "forward, no gradient": 240, "carry": 136, "walk back": 176, "dC": 208, "dB and dx": 244,
}  # fmt: skip
CASES += [
    Case(f"ssd {name}, P={P}, N={N}", registers, "ssd_kernels", (name, P, N), SHARED if N > 64 else SHARED // 2 - 1024)
    for name, registers in SSD_BUDGETS.items()
    for P, N in ((32, 128), (32, 256), (64, 64), (64, 128))
]
CASES += [
    Case(
        "selective_scan backward, N=16, 16 states held: must spill", 255, "selective_scan_kernels",
        ("backward", 16, False, 16), bad=True,
    )
]  # fmt: skip


@dataclass(frozen=True)
class Found:
    name: str
    registers: int
    budget: int
    spilled_bytes: int
    shared_bytes: int
    ok: bool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the table to this file as well")
    parser.add_argument("--only", default="", help="cases whose name has this word")
    parser.add_argument("--compile", type=int, nargs="+", help=argparse.SUPPRESS)  # in a process whose log is read
    arguments = parser.parse_args()
    if arguments.compile is not None:
        for index in arguments.compile:
            compile_case(index)
        return
    chosen = [index for index, case in enumerate(CASES) if arguments.only in case.name]
    if not chosen:
        raise SystemExit(f"no case has {arguments.only!r} in its name; there are: {'; '.join(c.name for c in CASES)}")
    rows = read(run(chosen), chosen)
    width = max(len(row.name) for row in rows)
    print(f"{'kernel':{width}} {'registers':>9} {'budget':>6} {'spilled':>7} {'shared KiB':>10}")
    for row in rows:
        print(
            f"{row.name:{width}} {row.registers:9} {row.budget:6} {row.spilled_bytes:7} {row.shared_bytes / 1024:10.1f}"
            f"  {'ok' if row.ok else 'FAILED'}"
        )
    if arguments.json:
        import jax

        versions = {"jax": jax.__version__, "ptxas": ptxas_version(), "target": "sm_90a"}
        record = versions | {"kernels": [asdict(row) for row in rows]}
        arguments.json.write_text(json.dumps(record, indent=1) + "\n")
    if not all(row.ok for row in rows):
        raise SystemExit("some kernels do not keep their budgets, or the one that must be refused was not")


def run(chosen: list[int]) -> str:
    """The log of a process that compiles these cases: XLA tells ptxas' report there and nowhere else."""
    wheels = Path(sys.prefix).glob("lib/python*/site-packages/nvidia/*/bin")  # where a ptxas may have been installed
    names = {
        "TF_CPP_MIN_LOG_LEVEL": "0",
        "TF_CPP_VMODULE": "subprocess_compilation=5",
        "MOSAIC_GPU_DUMP_RESOURCES": "1",
        "PATH": os.pathsep.join([*map(str, wheels), os.environ["PATH"]]),
    }
    command = [sys.executable, __file__, "--compile", *map(str, chosen)]
    done = subprocess.run(
        command, env=os.environ | names, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )
    if done.returncode:
        raise SystemExit(f"compiling failed:\n{done.stdout[-3000:]}")
    return done.stdout


def read(log: str, chosen: list[int]) -> list[Found]:
    parts = re.split(r"^=== (\d+)$", log, flags=re.MULTILINE)
    logs = dict(zip(map(int, parts[1::2]), parts[2::2], strict=True))
    return [found(CASES[index], logs.get(index, "")) for index in chosen]


def found(case: Case, log: str) -> Found:
    """What the report says of the case's own kernel, which has the most registers in its log."""
    reports = [(int(registers), int(stores) + int(loads)) for _, stores, loads, registers in REPORT.findall(log)]
    if not reports:
        raise SystemExit(f"{case.name}: ptxas' report is not in the log; is there a ptxas on PATH?\n{log[-2000:]}")
    registers, spilled = max(reports)
    shared = max(map(int, re.findall(r"smem_scratch_bytes=(\d+)", log)))
    within = registers <= case.registers and spilled == 0 and shared <= case.shared
    return Found(case.name, registers, case.registers, spilled, shared, within != case.bad)


def compile_case(index: int) -> None:
    import jax
    import numpy as np
    from jax.sharding import Mesh, NamedSharding, PartitionSpec
    from workbench_kernels.elsewhere import h100s

    case = CASES[index]
    function, shapes = globals()[case.build](*case.arguments)
    here = NamedSharding(Mesh(np.array(h100s(1, 1)), ("one",)), PartitionSpec())
    shapes = [jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=here) for s in shapes]
    print(f"\n=== {index}", flush=True)
    with jax.sharding.use_abstract_mesh(here.mesh.abstract_mesh):  # where Pallas reads the target from
        jax.jit(function, out_shardings=here).trace(*shapes).lower().compile()


def ptxas_version() -> str:
    said = subprocess.run(["ptxas", "--version"], capture_output=True, text=True).stdout
    return said.strip().splitlines()[-1] if said else "unknown"


if __name__ == "__main__":
    main()
