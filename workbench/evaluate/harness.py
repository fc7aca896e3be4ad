"""Standard tasks through EleutherAI's lm-eval (the extra lm-eval; no torch): our model is `workbench` there.

What lm-eval asks of a model are the three questions of workbench.evaluate.score; its tasks, metrics and standard errors
are its own. The group `waleffe` (the folder beside this file) holds the twelve tasks of Waleffe et al. 2024. Tasks
from local files need no network: give the folder of their YAML.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from workbench.config import nearest
from workbench.evaluate.score import BATCH, Subject, generate_until, loglikelihood, loglikelihood_rolling, subject
from workbench.generate import Sampling
from workbench.record import write_json, write_text

try:
    from lm_eval import simple_evaluate
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import LM
    from lm_eval.api.registry import register_model
    from lm_eval.tasks import TaskManager
except ModuleNotFoundError as error:
    raise ValueError(
        f"standard tasks need the package lm-eval ({error.name} is missing); install the extra lm-eval: "
        "pip install 'architecture-workbench[lm-eval]'"
    ) from None

OURS = Path(__file__).parent / "waleffe"
TOKENS = 256  # that are generated where a task does not say how many, as lm-eval's own models do


@register_model("workbench")
class Workbench(LM):
    """A run's checkpoint, or a model with a tokenizer, as lm-eval asks it."""

    def __init__(
        self,
        run: Path | str | Subject,
        step: int | Literal["best"] | None = None,
        batch_size: int | str | None = None,
        cut: bool = False,
        **unused: Any,
    ):
        """cut: cut prompts that are longer than the model's positions from the left, as lm-eval's own models do.

        unused: lm-eval's own max_batch_size and device, which mean nothing here.
        """
        super().__init__()
        self.subject = run if isinstance(run, Subject) else subject(run, step)
        self.how = {"batch": int(batch_size) if str(batch_size or "").isdigit() else BATCH, "cut": cut}

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        scores = loglikelihood(self.subject, [each.args for each in requests], **self.how)
        return self._kept("loglikelihood", requests, [(score.log_probability, score.greedy) for score in scores])

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """An empty text has nothing to score: 0 nats."""
        texts = [text for (text,) in (each.args for each in requests)]
        found = iter(loglikelihood_rolling(self.subject, [text for text in texts if text], **self.how))
        nats = [next(found).log_probability if text else 0.0 for text in texts]
        return self._kept("loglikelihood_rolling", requests, nats)

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Requests of one kind together; raises ValueError for an argument of generation that is not known."""
        kinds: dict[Any, list[int]] = {}
        for index, each in enumerate(requests):
            kinds.setdefault(_generation(each.args[1]), []).append(index)
        texts = [""] * len(requests)
        for (stop, tokens, sampling), lot in kinds.items():
            prompts = [requests[index].args[0] for index in lot]
            given = generate_until(self.subject, prompts, stop, tokens, sampling=sampling, **self.how)
            for index, completion in zip(lot, given, strict=True):
                texts[index] = completion.text
        return self._kept("generate_until", requests, texts)

    def _kept(self, kind: str, requests: list[Instance], answers: list) -> list:
        for each, answer in zip(requests, answers, strict=True):
            self.cache_hook.add_partial(kind, each.args, answer)
        return answers


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
) -> dict[str, dict[str, Any]]:
    """lm-eval's results by task, each name in a call of its own; kept in `folder`, with every item as a line of JSON.

    tasks: a folder of task files, whose names go before lm-eval's own. defaults: know lm-eval's own at all, which takes
    seconds. cut: prompts that are longer than the model's positions, which are refused otherwise.
    Raises ValueError for a name that no task, group or tag has.
    """
    manager = TaskManager(include_path=[str(OURS), *([str(tasks)] if tasks else [])], include_defaults=defaults)
    unknown = next((name for name in names if name not in manager.all_tasks), None)
    if unknown is not None:
        raise ValueError(f"lm-eval has no task {unknown!r}; {nearest(unknown, manager.all_tasks)}")
    model, results = Workbench(subject, batch_size=batch, cut=cut), {}
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        found = simple_evaluate(model, tasks=[name], task_manager=manager, limit=limit, bootstrap_iters=1000)
        results |= found["results"]
        for task, items in found["samples"].items():
            write_text(folder / f"{task}.jsonl", "".join(json.dumps(item, default=str) + "\n" for item in items))
        write_json(folder / f"{name}.json", _plain({key: found[key] for key in KEPT if key in found}))
    return results


KEPT = ("results", "groups", "configs", "versions", "n-shot", "n-samples")


def _plain(value: Any) -> Any:
    """What JSON knows: functions and NumPy's numbers as text and numbers."""
    return json.loads(json.dumps(value, default=lambda each: each.item() if hasattr(each, "item") else str(each)))


def table(results: dict[str, dict[str, Any]]) -> str:
    """A line a task and metric, with lm-eval's standard error."""
    lines = []
    for task, found in results.items():
        for key, value in found.items():
            metric, _, chosen = key.partition(",")
            if isinstance(value, float) and not metric.endswith("_stderr"):
                error = found.get(f"{metric}_stderr,{chosen}")
                spread = f" ± {error:.3f}" if isinstance(error, float) else ""
                lines.append((task, f"{metric} {value:.3f}{spread}"))
    width = max((len(task) for task, _ in lines), default=0)
    return "\n".join(f"{task.ljust(width)}  {text}" for task, text in lines)
