"""Times importing a released model: seconds and peak memory of a generated checkpoint of 1 GB in shards.

    python benchmarks/import.py [--json FILE] [--quick]

The checkpoint is a Llama's of half a billion parameters in bfloat16, in shards of 256 MB, as transformers writes it;
the model that is made of it holds float32, so it is twice as large. Each way has a process of its own, and they take
turns: the bytes of the files read into memory, nothing made of them, which no reader undercuts; and from_huggingface.
Files were just written, so both read them from the system's page cache. Memory is what the process has beyond what it
had once JAX was there: anonymous (looked at every few milliseconds), and with the file's mapped pages, which the system
may take back at any time (its own high-water mark). Only ratios within a run mean anything.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from workbench.exchange import safetensors
from workbench.exchange.huggingface import from_huggingface
from workbench.record import write_json
from workbench.train.environment import cpus, processor

SHARD = 256e6  # bytes
WAYS = ("bytes alone", "from_huggingface")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the measurements to this file as well")
    parser.add_argument("--quick", action="store_true", help="a checkpoint of an eighth, and one turn instead of three")
    parser.add_argument("--one", nargs=2, metavar=("WAY", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measured(arguments.one[0], Path(arguments.one[1]))))
        return
    with tempfile.TemporaryDirectory() as folder:
        size, parameters = generate(Path(folder), layers=3 if arguments.quick else 27)
        rows = [turn(way, folder) for _ in range(1 if arguments.quick else 3) for way in WAYS]
    record = {
        "date": date.today().isoformat(),
        "machine": {"processor": processor(), "cores": cpus(), "load": os.getloadavg(), "jax": jax.__version__},
        "checkpoint": {"bytes": size, "parameters": parameters, "model_bytes": 4 * parameters},
        "measurements": [summary(way, rows, 4 * parameters) for way in WAYS],
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(record, indent=1) + "\n")


def generate(folder: Path, layers: int, width: int = 1024, hidden: int = 4096, vocabulary: int = 32_000):
    """Writes config.json, shards and their index; returns their bytes and the number of parameters."""
    block = np.random.default_rng(0).standard_normal(1 << 20).astype(jnp.bfloat16)
    shapes = {"model.embed_tokens.weight": (vocabulary, width), "model.norm.weight": (width,)}
    shapes["lm_head.weight"] = (vocabulary, width)
    for layer in range(layers):
        each = {f"self_attn.{name}_proj": (width, width) for name in "qkvo"}
        each |= {"mlp.gate_proj": (hidden, width), "mlp.up_proj": (hidden, width), "mlp.down_proj": (width, hidden)}
        each |= {"input_layernorm": (width,), "post_attention_layernorm": (width,)}
        shapes |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in each.items()}
    shards: list[dict[str, np.ndarray]] = [{}]
    for name, shape in shapes.items():
        if sum(array.nbytes for array in shards[-1].values()) > SHARD:
            shards.append({})
        shards[-1][name] = np.resize(block, shape)
    files = [f"model-{number:05}-of-{len(shards):05}.safetensors" for number in range(1, len(shards) + 1)]
    for file, arrays in zip(files, shards, strict=True):
        safetensors.write(folder / file, arrays)
    where = {name: file for file, arrays in zip(files, shards, strict=True) for name in arrays}
    write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": where})
    config = {"model_type": "llama", "hidden_size": width, "intermediate_size": hidden, "vocab_size": vocabulary}
    heads = {"num_hidden_layers": layers, "num_attention_heads": 16, "num_key_value_heads": 16}
    write_json(folder / "config.json", config | heads)
    return sum((folder / file).stat().st_size for file in files), sum(int(np.prod(shape)) for shape in shapes.values())


def turn(way: str, folder: str) -> dict:
    done = subprocess.run([sys.executable, __file__, "--one", way, folder], check=True, capture_output=True, text=True)
    return {"way": way, **json.loads(done.stdout.splitlines()[-1])}


def measured(way: str, folder: Path) -> dict:
    """Seconds and memory of one way, in this process."""
    jnp.zeros(1).block_until_ready()
    files = sorted(folder.glob("*.safetensors"))
    before, whole = memory(), memory("VmRSS")
    with watched() as peak:
        begun = time.perf_counter()
        kept = from_huggingface(folder).model if way == WAYS[1] else [file.read_bytes() for file in files]
        jax.block_until_ready(kept)
        seconds = time.perf_counter() - begun
    return {"seconds": seconds, "anonymous": peak[0] - before, "mapped_too": memory("VmHWM") - whole}


def memory(what: str = "RssAnon") -> int:
    """Bytes, of this process. Raises ValueError where the system has no /proc."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except FileNotFoundError:
        raise ValueError("memory is read from /proc, which Linux alone has") from None
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{what}:"))


@contextmanager
def watched() -> Iterator[list[int]]:
    """The highest anonymous memory so far, in a list of one."""
    peak, done = [memory()], threading.Event()

    def watch() -> None:
        while not done.wait(0.003):
            peak[0] = max(peak[0], memory())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()
        peak[0] = max(peak[0], memory())


def summary(way: str, rows: list[dict], model_bytes: int) -> dict:
    mine = [row for row in rows if row["way"] == way]
    seconds, floor = ([row["seconds"] for row in rows if row["way"] == each] for each in (way, WAYS[0]))
    out = {
        "way": way,
        "seconds": seconds,
        "over_bytes_alone": min(seconds) / min(floor),
        "anonymous": max(row["anonymous"] for row in mine),
        "mapped_too": max(row["mapped_too"] for row in mine),
    }
    print(
        f"{way:18} {min(seconds):6.2f} s, {out['over_bytes_alone']:5.2f} times the bytes alone; memory "
        f"{out['anonymous'] / 1e9:5.2f} GB ({out['anonymous'] / model_bytes:.2f} of the model), "
        f"{out['mapped_too'] / 1e9:5.2f} GB with mapped pages",
        flush=True,
    )
    return out


if __name__ == "__main__":
    main()
