"""Times the data path: preparing a corpus, against the tokenizer alone, and loading batches, against training on them.

    python benchmarks/data.py [--json FILE]

The corpus is that of experiments/phonebook.py, prepared in an empty folder, as bytes and with a BPE of 4,096 tokens.
The rival of preparation is the library `tokenizers` alone, on documents that are in memory: training the BPE and
encoding, with none of the reading, duplicates and splits. Loading is one thread's, digest included; the rival is the
demo's own training step on text, each architecture's in turn. Only ratios within a run mean anything.
"""

import argparse
import dataclasses
import json
import os
import tempfile
import time
from datetime import date
from pathlib import Path

import jax
import numpy as np

from workbench.config import TextConfig
from workbench.data.corpus import corpus
from workbench.data.digest import chain
from workbench.data.documents import parts, read
from workbench.data.text import TextStream
from workbench.data.tokenizer import train
from workbench.model.language_model import create
from workbench.study.experiment import load
from workbench.train.environment import cpus, processor
from workbench.train.memory import keep_freed_memory
from workbench.train.optimizer import optimizer
from workbench.train.step import make_step

TOKENIZER = "bpe-4096"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the measurements to this file as well")
    arguments = parser.parse_args()
    runs = [run for run in load("experiments/phonebook.py").runs if hasattr(run.data, "sources")]
    with tempfile.TemporaryDirectory() as folder:
        record = {
            "date": date.today().isoformat(),
            "machine": {
                "processor": processor(), "cores": cpus(), "load": os.getloadavg(), "jax": jax.__version__
            },
            "preparation": preparation(runs[0].data, Path(folder)),
            "loading": loading(runs[0].data, Path(folder)),
            "training": [training(run, Path(folder)) for run in runs],
        }  # fmt: skip
    slowest, fastest = (
        min(r["tokens_per_second"] for r in record["loading"]),
        max(r["tokens_per_second"] for r in record["training"]),
    )
    record["loader_over_fastest_step"] = slowest / fastest
    print(f"the slowest loading gives {slowest / fastest:.0f} times the tokens of the fastest training step")
    if arguments.json:
        arguments.json.write_text(json.dumps(record, indent=1) + "\n")


def preparation(config: TextConfig, folder: Path) -> list[dict]:
    """Seconds and MB/s of preparing the corpus, and of the tokenizer alone."""
    documents = [d.content for part in parts(config.sources) for d in read(part) if not isinstance(d, str)]
    megabytes = sum(map(len, documents)) / 1e6
    rows = []

    def timed(what: str, call) -> None:
        begun = time.perf_counter()
        call()
        seconds = time.perf_counter() - begun
        rows.append({"what": what, "megabytes": megabytes, "seconds": seconds, "mb_per_second": megabytes / seconds})
        print(f"{what:40} {megabytes:6.1f} MB {seconds:7.1f} s {megabytes / seconds:8.2f} MB/s", flush=True)

    timed("prepared as bytes", lambda: corpus(config, cache=folder))
    timed(f"prepared as {TOKENIZER}", lambda: corpus(dataclasses.replace(config, tokenizer=TOKENIZER), cache=folder))
    trained = []
    timed("tokenizers alone: training", lambda: trained.append(train(iter(documents), 4096)))
    timed("tokenizers alone: encoding", lambda: trained[0].fast.encode_batch([d.decode() for d in documents]))
    timed("opened again", lambda: corpus(config, cache=folder))
    return rows


def loading(config: TextConfig, folder: Path) -> list[dict]:
    """Tokens a second of batches, made and digested by one thread."""
    rows = []
    for tokenizer in ("bytes", TOKENIZER):
        for length, batch in ((config.length, config.batch), (2048, 8)):
            stream = TextStream(
                dataclasses.replace(config, tokenizer=tokenizer, length=length, batch=batch), cache=folder
            )
            digest, tokens, step, begun = "", 0, 0, time.perf_counter()
            while time.perf_counter() - begun < 3:
                made = stream.batch(step)
                digest = chain(digest, made)
                tokens, step = tokens + made["tokens"].size, step + 1
            rate = tokens / (time.perf_counter() - begun)
            rows.append({"tokenizer": tokenizer, "length": length, "batch": batch, "tokens_per_second": rate})
            print(f"loading {tokenizer:9} {batch} rows of {length:5} {rate:12,.0f} tokens/s", flush=True)
    return rows


def training(run, folder: Path) -> dict:
    """Tokens a second of an arm's training step."""
    keep_freed_memory()
    stream = TextStream(run.data, cache=folder)
    model = create(run.model, 0)
    state, step, seconds = optimizer(run.optimizer, run.steps).init(model), make_step(run), []
    for index in range(25):
        begun = time.perf_counter()
        model, state, metrics = step(model, state, stream.batch(index))
        jax.block_until_ready(metrics)
        seconds.append(time.perf_counter() - begun)
    rate = run.data.batch * run.data.length / float(np.median(seconds[5:]))
    print(f"training {run.arm:12} {rate:12,.0f} tokens/s", flush=True)
    return {"arm": run.arm, "tokens_per_second": rate}


if __name__ == "__main__":
    main()
