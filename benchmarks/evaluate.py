"""Times evaluating: prompts a second of Phonebook at 1k tokens and of 4-way multiple choice with 5 shots.

And its memory: what loss by position in four documents of 32,768 tokens, side by side, needs beyond the model.

    python benchmarks/evaluate.py [--json FILE] [--quick]

Three ways: beginnings that prompts share read once, each prompt read whole, both eight at a time; and one prompt after
another, whole. The answers are the same (that is tested in tests/evaluate/test_score.py, and checked here again). The
model is the hybrid of experiments/text.py, about 3 million parameters, with random weights, and bytes for tokens:
Phonebook generates 16 tokens after each of 5 questions a book, and each question of the multiple choice is asked for
four continuations. Programs are compiled before the clock starts. Only ratios within a run mean anything; seconds of
the processor (of all threads) are given beside those of the clock, for machines that are shared.
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import jax
import numpy as np

from workbench.config import PositionEvaluation
from workbench.data.tokenizer import Bytes
from workbench.evaluate.score import BATCH, Subject, generate_until, loglikelihood
from workbench.evaluate.tasks.choices import Choices
from workbench.evaluate.tasks.phonebook import Phonebook
from workbench.model.language_model import create
from workbench.study.experiment import load
from workbench.train.environment import cpus, processor

QUESTIONS = "experiments/released/questions.jsonl"
WAYS = {
    "beginnings shared": {"share": True, "batch": BATCH},
    "each prompt whole": {"share": False, "batch": BATCH},
    "one by one": {"share": False, "batch": 1},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the measurements to this file as well")
    parser.add_argument("--quick", action="store_true", help="ten prompts a task instead of 40")
    arguments = parser.parse_args()
    count = 10 if arguments.quick else 40
    config = next(run.model for run in load("experiments/text.py").runs if run.arm == "hybrid")
    tokenizer = Bytes()
    subject = Subject(create(replace(config, vocabulary=tokenizer.vocabulary), 0), tokenizer)
    memory = long_documents(subject)
    books = [Phonebook(length=1024, count=count).item(index, tokenizer) for index in range(count)]
    asked = Choices(QUESTIONS, "text", shots=5, count=count)
    questions = [asked.item(index, tokenizer) for index in range(len(asked))]

    def phonebook(items, **way) -> list:
        prompts = [item.prompt for item in items]
        return [each.tokens.tolist() for each in generate_until(subject, prompts, (), 16, **way)]

    def choices(items, **way) -> list:
        pairs = [(item.prompt, choice) for item in items for choice in item.choices]
        return [each.log_probability for each in loglikelihood(subject, pairs, **way)]

    rows = [*timed("phonebook, 1k tokens", phonebook, books), *timed("4 choices, 5 shots", choices, questions)]
    record = {
        "date": date.today().isoformat(),
        "machine": {"processor": processor(), "cores": cpus(), "load": os.getloadavg(), "jax": jax.__version__},
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(subject.model)),
        "memory": memory,
        "measurements": rows,
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(record, indent=1) + "\n")


def long_documents(subject: Subject, length: int = 32_768, documents: int = 4) -> dict[str, float]:
    """The peak of the process's memory while it evaluates, over what it had with the model alone (Linux)."""
    run = next(run for run in load("experiments/text.py").runs if run.arm == "hybrid")
    run = replace(run, model=subject.model.config, data=replace(run.data, tokenizer="bytes"))
    evaluate = PositionEvaluation(length, documents).build(run)
    jax.block_until_ready(jax.tree.leaves(subject.model))
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins here
    before, begun = resident("VmRSS"), time.perf_counter()
    evaluate(subject.model, "test")
    found = {"tokens": length, "documents": documents, "seconds": time.perf_counter() - begun, "before_bytes": before}
    found["beyond_bytes"] = resident("VmHWM") - before
    print(f"{documents} documents of {length:,} tokens: {found['beyond_bytes'] / 1e9:.2f} GB beyond the model, "
          f"{found['seconds']:.0f} s", flush=True)  # fmt: skip
    return found


def resident(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{name}:"))
    return 1024 * int(line.split()[1])


def timed(task: str, ask: Callable[..., list], items: list) -> list[dict[str, Any]]:
    """Prompts a second of each way, by the clock and by the processor; the first time compiles and is not counted."""
    rows, answers = [], []
    for name, way in WAYS.items():
        lots = [[item] for item in items] if way["batch"] == 1 else [items]
        given = [answer for lot in lots for answer in ask(lot, **way)]
        answers.append(np.concatenate([np.ravel(each) for each in given]))
        begun, worked = time.perf_counter(), time.process_time()
        for lot in lots:
            ask(lot, **way)
        seconds, busy = time.perf_counter() - begun, time.process_time() - worked
        rate = {"prompts_per_second": len(items) / seconds, "prompts_per_processor_second": len(items) / busy}
        rows.append({"task": task, "way": name, "prompts": len(items), "seconds": seconds, **rate})
        print(f"{task:22} {name:18} {rate['prompts_per_second']:8.2f} prompts/s", flush=True)
    for other in answers[1:]:
        np.testing.assert_allclose(other, answers[0], rtol=1e-4, atol=1e-3)
    return rows


if __name__ == "__main__":
    main()
