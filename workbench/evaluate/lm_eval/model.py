"""Our model as lm-eval asks it: its three questions are those of workbench.evaluate.score. `workbench` there."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import batched
from pathlib import Path
from typing import Any, Literal

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM, hash_args
from lm_eval.api.registry import register_model
from tqdm import tqdm

from workbench.data.tokenizer import Tokenizer
from workbench.evaluate.score import (
    BATCH,
    Subject,
    beyond,
    generate_until,
    loglikelihood,
    loglikelihood_rolling,
    subject,
)
from workbench.generate import Sampling
from workbench.record import add_row, read_rows, write_text

TOKENS = 256  # that are generated where a task does not say how many, as lm-eval's own models do
LOT = 256  # requests that are asked between two saves; examples that they begin with are read once a lot


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
            kinds.setdefault(generation(given), []).append(index)
        lengths, found = lengths_of(self.subject.tokenizer, [prompt for prompt, _ in asked]), {}
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
    drawn = kind == "generate_until" and generation(arguments[1])[2].temperature > 0
    return hash_args(kind, arguments) + (f"-{nth}" if drawn else "")


def _seed(key: str) -> int:
    hashed, _, nth = key.partition("-")
    return int(hashed[:7], 16) + int(nth or 0)


def lengths_of(tokenizer: Tokenizer, prompts: Sequence[str]) -> list[int]:
    """In tokens, the boundary among them."""
    return [len(each.ids) + 1 for each in tokenizer.encode([prompt.encode() for prompt in prompts])]


def generation(given: dict[str, Any]) -> tuple[tuple[str, ...], int, Sampling]:
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
