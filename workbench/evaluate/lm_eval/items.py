"""Items of lm-eval's tasks as workbench.evaluate.suite keeps them, from the samples that lm-eval logs."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from lm_eval.api.task import Task

from workbench.evaluate.lm_eval.model import Workbench, generation, lengths_of
from workbench.evaluate.suite import digest, row_of
from workbench.evaluate.tasks.item import Item

PER_BYTE = ("bits_per_byte", "byte_perplexity")
FAR = -1e4  # nats, of the choices that are not taken


def rows_of(model: Workbench, task: Task, name: str, samples: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row an item, from lm-eval's samples (one an item and filter): the columns of workbench.evaluate.suite.ask, and

        filtered            what each filter left of the answers, as JSON
        weight              how much the first metric counts in the mean: bytes, of bits_per_byte; else 1
        lower_is_better     of the first metric

    facts are the task's document and its arguments of generation, as JSON. prompt is what the requests share: where
    contexts differ (Winogrande) a choice is the rest of its context with what follows, and its likelihood that of what
    follows alone. completion is the first where a task asks several times. chance is what picking a choice by lot would
    score, 0 of generation, None where neither is known.

    Metrics are lm-eval's own numbers an item. Of perplexities (nats, words or bytes) the item keeps bits_per_byte, so
    that the weighted mean is lm-eval's; of `perplexity` log_likelihood, in nats. RULER names its metric by the length
    and gives -1 to other lengths: the item keeps `match`. Metrics of all items together (F1 of classes, BLEU, SQuAD's)
    have no number an item, and are left out.
    """
    documents: dict[int, list[dict[str, Any]]] = {}
    for sample in samples:
        documents.setdefault(sample["doc_id"], []).append(sample)
    rows = []
    for index, given in sorted(documents.items()):
        item, requests = _item(task, given[0])
        answers = [model.known(*request) for request in requests]
        written = [each for each in answers if isinstance(each["answer"], str)]
        scored = [each["answer"] for each in answers if not isinstance(each["answer"], str)]
        metrics, weight = {}, 1.0
        for sample in given:
            numbers, weight = _numbers({each: sample[each] for each in sample["metrics"]})
            metrics |= {metric_name(each, sample["filter"]): value for each, value in numbers.items()}
        answer = {
            "item": index,
            "digest": digest(item),
            "completion": written[0]["answer"] if written else "",
            "log_probabilities": [nats[0] if isinstance(nats, (list, tuple)) else nats for nats in scored],
            "straddles": any(each["straddles"] for each in answers),
            "cut": any(each["cut"] for each in answers),
            "tokens_generated": sum(each["tokens"] for each in written),
            "seconds": sum(each["seconds"] for each in answers),
            "filtered": {sample["filter"]: json.dumps(sample["filtered_resps"], default=str) for sample in given},
            "weight": weight,
            "lower_is_better": _lower_is_better(task, next(iter(metrics), "")),
        }
        rows.append(row_of(name, item, answer, metrics or None))
    lengths = lengths_of(model.subject.tokenizer, [row["prompt"] for row in rows])
    return [row | {"prompt_tokens": length} for row, length in zip(rows, lengths, strict=True)]


def _item(task: Task, sample: dict[str, Any]) -> tuple[Item, list[tuple[str, tuple]]]:
    """An item and its requests (kind, arguments): that of generation, and one a choice."""
    given: dict[str, Any] = {}
    requests, contexts, continuations = [], [], []
    conditional = any(arguments[0] for arguments in sample["arguments"])
    for arguments in sample["arguments"]:
        if len(arguments) == 1:
            kind, (context, continuation) = "loglikelihood_rolling", ("", arguments[0])
        elif isinstance(arguments[1], dict):
            kind, (context, given), continuation = "generate_until", arguments, None
        elif conditional and not arguments[0]:
            continue  # acc_mutual_info: a choice after nothing
        else:
            kind, (context, continuation) = "loglikelihood", arguments
        requests.append((kind, tuple(arguments)))
        contexts.append(context)
        continuations.append(continuation)
    prompt = os.path.commonprefix(contexts)  # noqa: RUF071 (by letters is meant)
    pairs = [pair for pair in zip(contexts, continuations, strict=True) if pair[1] is not None]
    choices = tuple(context[len(prompt) :] + continuation for context, continuation in pairs)
    target = task.doc_to_text(sample["doc"]) if getattr(task, "multiple_input", 0) else sample["target"]
    facts = {"document": json.dumps(sample["doc"], default=str), "generation": json.dumps(given)}
    stop, tokens, _ = generation(given) if given else ((), 0, None)
    references = tuple(_reference(each, choices) for each in (target if isinstance(target, list) else [target]))
    item = Item(prompt, references, choices, stop, tokens, _chance(task, sample, len(choices)), facts=facts)
    return item, requests


def _reference(target: Any, choices: Sequence[str]) -> str:
    """The choice that a target names, by its number or without its space; else the target's text."""
    if isinstance(target, int) and 0 <= target < len(choices):
        return choices[target]
    return next((each for each in choices if each.lstrip() == str(target).lstrip()), str(target))


def _chance(task: Task, sample: dict[str, Any], choices: int) -> float | None:
    """Of the first metric: what taking each choice in turn scores, on average; 0 of generation."""
    if task.OUTPUT_TYPE == "multiple_choice":
        scores = []
        for taken in range(choices):
            nats = [(0.0 if each == taken else FAR, each == taken) for each in range(choices)]
            nats += [(0.0, False)] * (len(sample["arguments"]) - choices)
            numbers, _ = _numbers(task.process_results(sample["doc"], nats))
            scores.append(next(iter(numbers.values()), None))
        return None if None in scores else float(np.mean(scores))
    numbers, _ = _numbers({each: sample[each] for each in sample["metrics"]})
    up = numbers and not _lower_is_better(task, next(iter(numbers)))
    return 0.0 if up and all(isinstance(arguments[-1], dict) for arguments in sample["arguments"]) else None


def _lower_is_better(task: Task, metric: str) -> bool:
    """Of a metric as an item has it."""
    return metric == PER_BYTE[0] or task.higher_is_better().get(metric.partition(",")[0]) is False


def _numbers(metrics: dict[str, Any]) -> tuple[dict[str, float], float]:
    """An item's metrics that are numbers of its own, and the weight of the first (see `rows_of`)."""
    per_byte = next((metrics[name] for name in PER_BYTE if isinstance(metrics.get(name), tuple)), None)
    if per_byte is not None:
        nats, size = per_byte
        return {PER_BYTE[0]: -nats / np.log(2) / size if size else 0.0}, float(size)
    numbers = {}
    for name, value in metrics.items():
        if isinstance(value, (bool, int, float, np.number)) and not (name.isdigit() and value == -1):
            numbers["match" if name.isdigit() else "log_likelihood" if name == "perplexity" else name] = float(value)
    return numbers, 1.0


def metric_name(name: str, chosen: str) -> str:
    """chosen: the filter that picked the answer out of what was written; most tasks have none."""
    return name if chosen == "none" else f"{name},{chosen}"
