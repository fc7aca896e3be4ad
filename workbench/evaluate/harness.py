"""Standard tasks through EleutherAI's lm-eval (the extra lm-eval; no torch): our model is `workbench` there.

What lm-eval asks of a model are the three questions of workbench.evaluate.score; its tasks, metrics and standard errors
are its own. The group `waleffe` (the folder beside this file) holds the twelve tasks of Waleffe et al. 2024. Tasks
from local files need no network: give the folder of their YAML, which may `include` one of lm-eval's own.

    RUN/suite/1a2b3c4d/lm-eval/
        answers.jsonl      a row a request: what was answered is never asked again
        TASK.parquet       a row an item, as suites keep them (see `rows_of`)
        TASK.json          lm-eval's own results, configuration and version
        results.json       each task's scores, or why it failed

A task with examples in its prompt is TASK-5-shots there. Of lm-eval's own RULER, which asks transformers' AutoTokenizer
for lengths: it is given the run's tokenizer, unless that is a SentencePiece model (then --suite ruler). niah_single_1,
niah_multikey_2, niah_multikey_3, ruler_vt, ruler_cwe and ruler_fwe download nothing, but for nltk's punkt_tab, which is
looked for and done without; the other seven download essays or questions. ruler_vt and ruler_cwe never end where no
prompt is as short as they ask: at any length ruler_vt with bytes or a BPE of 1024, as its example has 500 tokens.
"""

from __future__ import annotations

import importlib.util
import json
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import batched
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from tqdm import tqdm

from workbench.config import nearest
from workbench.data.tokenizer import LEAST, Bytes, Json, Tokenizer, train
from workbench.evaluate.score import (
    BATCH,
    Subject,
    beyond,
    generate_until,
    loglikelihood,
    loglikelihood_rolling,
    subject,
)
from workbench.evaluate.suite import digest, each_alone, row_of, summary, write_items
from workbench.evaluate.tasks.item import Item
from workbench.exchange.huggingface import write_tokenizer
from workbench.generate import Sampling
from workbench.record import add_row, read_rows, write_json, write_text

try:
    from lm_eval import simple_evaluate
    from lm_eval.api.group import Group
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import LM, hash_args
    from lm_eval.api.registry import register_model
    from lm_eval.api.task import Task
    from lm_eval.defaults import DEFAULT_OTHER_SEED, DEFAULT_RANDOM_SEED
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._factory import TaskFactory
except ModuleNotFoundError as error:
    raise ValueError(
        f"standard tasks need the package lm-eval ({error.name} is missing); install the extra lm-eval: "
        "pip install 'architecture-workbench[lm-eval]'"
    ) from None

os.environ.setdefault("DISABLE_MULTIPROC", "1")  # else lm-eval's bootstrap forks a process that has JAX's threads
OURS = Path(__file__).parent / "waleffe"
TOKENS = 256  # that are generated where a task does not say how many, as lm-eval's own models do
LOT = 256  # requests that are asked between two saves; examples that they begin with are read once a lot
BOOTSTRAP = 1000  # draws, of the standard errors of metrics that are no mean
PER_BYTE = ("bits_per_byte", "byte_perplexity")
FAR = -1e4  # nats, of the choices that are not taken


@register_model("workbench")
class Workbench(LM):
    """A run's checkpoint, or a model with a tokenizer, as lm-eval asks it."""

    def __init__(
        self,
        run: Path | str | Subject,
        step: int | Literal["best"] | None = None,
        batch_size: int | str | None = None,
        cut: bool = False,
        log: Path | str | None = None,
        **unused: Any,
    ):
        """cut: cut prompts that are longer than the model's positions from the left, as lm-eval's own models do.

        log: a file of answers, of this model with this tokenizer alone: those in it are not asked again. lm-eval's own
        cache (use_cache) works too, but says neither of an answer whether its prompt was cut, and is pickle.
        unused: lm-eval's own max_batch_size and device, which mean nothing here.
        """
        super().__init__()
        self.subject = run if isinstance(run, Subject) else subject(run, step)
        self.cut = cut
        self.how = {"batch": int(batch_size) if str(batch_size or "").isdigit() else BATCH, "cut": cut}
        self.log = None if log is None else Path(log)
        rows = read_rows(self.log) if self.log else []
        if rows:  # the last line may have been cut short
            write_text(self.log, "".join(json.dumps(row) + "\n" for row in rows))
        self.answers = {row["request"]: row for row in rows}

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        found = self._answered("loglikelihood", requests, self._scored)
        return [tuple(answer) for answer in found]

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """An empty text has nothing to score: 0 nats."""
        return self._answered("loglikelihood_rolling", requests, self._rolled)

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Requests of one kind together; raises ValueError for an argument of generation that is not known."""
        return self._answered("generate_until", requests, self._generated)

    def known(self, kind: str, arguments: tuple) -> dict[str, Any]:
        """The row of the (first) answer to a request."""
        return self.answers[_key(kind, arguments)]

    def _answered(self, kind: str, requests: list[Instance], ask: Callable[..., Iterator[dict]]) -> list:
        """The answers, after asking for those that are missing. The same prompt twice is one request if greedy."""
        seen: Counter[str] = Counter()
        asked: dict[str, tuple] = {}
        keys = []
        for each in requests:
            first = _key(kind, each.args)
            keys.append(_key(kind, each.args, seen[first]))
            seen[first] += 1
            asked[keys[-1]] = each.args
        missing = [key for key in asked if key not in self.answers or (self.answers[key]["cut"] and not self.cut)]
        name, done = requests[0].task_name if requests else "", len(asked) - len(missing)
        # tqdm itself finds out whether there is a terminal
        with tqdm(total=len(asked), initial=done, desc=name, unit="request", disable=None) as bar:
            for lot in batched(missing, LOT):
                begun = time.perf_counter()
                found = list(ask(lot, [asked[key] for key in lot]))
                seconds = (time.perf_counter() - begun) / len(lot)
                for key, answer in zip(lot, found, strict=True):
                    self.answers[key] = {"request": key, **answer, "seconds": seconds}
                    if self.log:
                        add_row(self.log, self.answers[key])
                    self.cache_hook.add_partial(kind, asked[key], answer["answer"])
                bar.update(len(lot))
        return [self.answers[key]["answer"] for key in keys]

    def _scored(self, keys: Sequence[str], asked: list[tuple]) -> Iterator[dict[str, Any]]:
        for score in loglikelihood(self.subject, asked, **self.how):
            answer = (score.log_probability, score.greedy)
            yield {"answer": answer, "tokens": 0, "straddles": score.straddles, "cut": score.cut}

    def _rolled(self, keys: Sequence[str], asked: list[tuple]) -> Iterator[dict[str, Any]]:
        found = iter(loglikelihood_rolling(self.subject, [text for (text,) in asked if text], **self.how))
        for (text,) in asked:
            nats, cut = (0.0, False) if not text else ((each := next(found)).log_probability, each.cut)
            yield {"answer": nats, "tokens": 0, "straddles": False, "cut": cut}

    def _generated(self, keys: Sequence[str], asked: list[tuple]) -> Iterator[dict[str, Any]]:
        """A draw follows from the request alone, not from what is asked beside it."""
        kinds: dict[Any, list[int]] = {}
        for index, (_, given) in enumerate(asked):
            kinds.setdefault(_generation(given), []).append(index)
        lengths, found = _lengths(self.subject.tokenizer, [prompt for prompt, _ in asked]), {}
        for (stop, room, sampling), lot in kinds.items():
            prompts, seeds = [asked[index][0] for index in lot], [_seed(keys[index]) for index in lot]
            given = generate_until(self.subject, prompts, stop, room, sampling=sampling, seed=seeds, **self.how)
            for index, completion in zip(lot, given, strict=True):
                cut = beyond(self.subject.model, lengths[index] + room) > 0
                size = len(completion.tokens)
                found[index] = {"answer": completion.text, "tokens": size, "straddles": False, "cut": cut}
        yield from (found[index] for index in range(len(asked)))


def _key(kind: str, arguments: tuple, nth: int = 0) -> str:
    """Of a request, as lm-eval's own cache has it; each time that it is asked, its answer is another if it is drawn."""
    drawn = kind == "generate_until" and _generation(arguments[1])[2].temperature > 0
    return hash_args(kind, arguments) + (f"-{nth}" if drawn else "")


def _seed(key: str) -> int:
    hashed, _, nth = key.partition("-")
    return int(hashed[:7], 16) + int(nth or 0)


def _lengths(tokenizer: Tokenizer, prompts: Sequence[str]) -> list[int]:
    """In tokens, the boundary among them."""
    return [len(each.ids) + 1 for each in tokenizer.encode([prompt.encode() for prompt in prompts])]


def _generation(given: dict[str, Any]) -> tuple[tuple[str, ...], int, Sampling]:
    """Stop strings, tokens and sampling of a task's generation_kwargs."""
    left = dict(given)
    stop = left.pop("until", None) or ()
    tokens = int(left.pop("max_gen_toks", None) or TOKENS)
    drawn, heat = left.pop("do_sample", None), float(left.pop("temperature", None) or 0.0)
    if drawn is None:
        drawn = heat > 0
    names = {"top_k": "top_k", "top_p": "top_p", "min_p": "min_p", "repetition_penalty": "repetition"}
    values = {names[name]: left.pop(name) for name in list(left) if name in names}
    if left:
        raise ValueError(
            f"a task's generation_kwargs hold {min(left)!r}, which is not known here; known are until, max_gen_toks, "
            f"do_sample, temperature, {', '.join(names)}"
        )
    sampling = Sampling(temperature=(heat or 1.0) if drawn else 0.0, **values)
    return (stop,) if isinstance(stop, str) else tuple(filter(None, stop)), tokens, sampling


def evaluate(
    subject: Subject,
    names: Sequence[str],
    folder: Path,
    *,
    tasks: Path | str | None = None,
    defaults: bool = True,
    limit: int | None = None,
    batch: int = BATCH,
    cut: bool = False,
    lengths: Sequence[int] = (),
) -> dict[str, dict[str, Any]]:
    """Results by task and by group that has a score: as workbench.evaluate.suite.summary has them, with lm-eval's own
    scores for means and its standard errors; {"error": why} of a task that failed, which leaves the others as they are.

    tasks: a folder of task files, whose names go before lm-eval's own. defaults: know lm-eval's own at all, which takes
    seconds. cut: prompts that are longer than the model's positions, which fail otherwise. lengths: tokens of a prompt,
    of tasks that are made to a length (lm-eval's max_seq_lengths: its RULER, 4096 unless said).
    Raises ValueError for a name that no task, group or tag has, and if the tokenizer is not the model's.
    """
    subject.check()
    told: dict[str, Any] = {"max_seq_lengths": list(lengths)} if lengths else {}
    if importlib.util.find_spec("transformers") and (spoken := _as_json(subject.tokenizer)):
        write_tokenizer(folder / "tokenizer", spoken)
        told["tokenizer"] = str(folder / "tokenizer")
    manager = TaskManager(include_path=[str(OURS), *([str(tasks)] if tasks else [])], include_defaults=defaults)
    manager._factory = _OneByOne(meta=told)
    unknown = next((name for name in names if name not in manager.all_tasks), None)
    if unknown is not None:
        raise ValueError(f"lm-eval has no task {unknown!r}; {nearest(unknown, manager.all_tasks)}")
    folder.mkdir(parents=True, exist_ok=True)
    model = Workbench(subject, batch_size=batch, cut=cut, log=folder / "answers.jsonl")

    def asking() -> Iterator[tuple[str, Callable[[], dict]]]:
        for name in names:
            try:
                loaded = manager.load([name])
            except Exception as error:  # whatever is wrong with its files
                yield name, partial(_raise, error)
                continue
            found: dict[str, dict] = {}
            leaves = {each.task_name: each for group in loaded["groups"].values() for each in _leaves(group)}
            for leaf, task in (leaves | loaded["tasks"]).items():
                if isinstance(task, Unbuilt):
                    yield leaf, partial(_raise, task.error)
                else:
                    yield _name(task), partial(_ask, model, task, manager, folder, limit, found)
            for group in loaded["groups"].values():
                if group.has_aggregation:
                    shots = {_name(each).removeprefix(each.task_name) for each in group.get_all_tasks()}
                    yield group.name + (shots.pop() if len(shots) == 1 else ""), partial(_together, group, found)

    return each_alone(asking(), folder)


class Unbuilt(NamedTuple):
    """What stands for a task that could not be built."""

    task_name: str
    error: Exception


class _OneByOne(TaskFactory):
    """Builds each of a group's tasks by itself, from the same random numbers wherever it stands, or keeps why not."""

    def _build_task(self, entry, overrides):
        random.seed(DEFAULT_RANDOM_SEED)  # lm-eval's own seeds
        np.random.seed(DEFAULT_OTHER_SEED)
        try:
            return super()._build_task(entry, overrides)
        except Exception as error:  # no such file, no network, no such package
            return Unbuilt((overrides or {}).get("task", entry.name), error)


def _leaves(group: Group) -> Iterator[Task | Unbuilt]:
    for each in group:
        yield from _leaves(each) if isinstance(each, Group) else (each,)


def _raise(error: Exception) -> dict:
    raise error


def _as_json(tokenizer: Tokenizer) -> Json | None:
    """As transformers can load it, of bytes too; None for a SentencePiece model."""
    return (
        train(iter(()), LEAST) if isinstance(tokenizer, Bytes) else tokenizer if isinstance(tokenizer, Json) else None
    )


def _name(task: Task) -> str:
    """Tells apart what differs in examples alone: of MMLU the paper has both."""
    shots = task.config.num_fewshot
    return f"{task.task_name}-{shots}-shots" if shots else task.task_name


def _ask(model: Workbench, task: Task, manager: TaskManager, folder: Path, limit: int | None, found: dict) -> dict:
    """A task's result, kept with its items. Adds lm-eval's own to `found`, for the groups that it is in."""
    name = _name(task)
    given = simple_evaluate(model, tasks=[task], task_manager=manager, limit=limit, bootstrap_iters=BOOTSTRAP)
    rows = rows_of(model, task, name, given["samples"][task.task_name])
    write_items(folder / f"{name}.parquet", rows)
    write_json(folder / f"{name}.json", _plain({key: given[key] for key in KEPT if key in given}))
    found[task.task_name] = given["results"][task.task_name]
    told = summary(rows)
    scores = _scores(found[task.task_name], told["metrics"])
    first = [metric for metric in told["metrics"] if metric in scores][:1]
    return told | {"metrics": {metric: scores[metric] for metric in [*first, *scores]}}


KEPT = ("results", "configs", "versions", "n-shot", "n-samples")


def _together(group: Group, found: dict[str, dict]) -> dict:
    """A group's result. Raises ValueError if one of its tasks failed: the others' mean is another score."""
    missing = [each.task_name for each in _leaves(group) if each.task_name not in found]
    if missing:
        raise ValueError(f"{', '.join(missing)} of it failed")
    given = group.aggregate(found)
    counts = {"items": given["sample_len"], "straddles": 0, "merges_digits": False}
    return {**counts, "chance": None, "at_chance": None, "metrics": _scores(given, {})}


def _scores(given: dict[str, Any], intervals: dict[str, dict]) -> dict[str, dict]:
    """lm-eval's metrics, each with its standard error, and the interval that its items give if it is their mean."""
    scores = {}
    for key, value in given.items():
        metric, _, chosen = key.partition(",")
        absent = metric.isdigit() and value == -1  # RULER, of a length that it was not asked at
        if not chosen or metric.endswith("_stderr") or not isinstance(value, (int, float)) or absent:
            continue
        name, error = _metric(metric, chosen), given.get(f"{metric}_stderr,{chosen}")
        known = intervals.get(name, {})
        spread = float(error) if isinstance(error, float) and np.isfinite(error) else None
        scores[name] = {"mean": float(value), "low": known.get("low"), "high": known.get("high"), "error": spread}
    return scores


def _metric(name: str, chosen: str) -> str:
    """chosen: the filter that picked the answer out of what was written; most tasks have none."""
    return name if chosen == "none" else f"{name},{chosen}"


def _plain(value: Any) -> Any:
    """What JSON knows: functions and NumPy's numbers as text and numbers."""
    return json.loads(json.dumps(value, default=lambda each: each.item() if hasattr(each, "item") else str(each)))


# ---- items


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
            metrics |= {_metric(each, sample["filter"]): value for each, value in numbers.items()}
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
    lengths = _lengths(model.subject.tokenizer, [row["prompt"] for row in rows])
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
    stop, tokens, _ = _generation(given) if given else ((), 0, None)
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
