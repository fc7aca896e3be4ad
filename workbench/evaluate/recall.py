"""Exact match on unseen documents of a recall task, by size and, of what is looked up, by depth.

What is to be kept is read once and each question is asked from the state after it, as in workbench.evaluate.phonebook.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from workbench.config import LOOKUPS, RecallConfig, RecallEvaluation, RunConfig
from workbench.data import recall, rule
from workbench.evaluate import phonebook
from workbench.model.language_model import LanguageModel

SEED = 20261125  # of the items: the same documents for every arm, seed and step


def evaluator(config: RecallEvaluation, run: RunConfig) -> Callable[[LanguageModel, str], dict]:
    """`evaluate(model, split) -> scores`, as `workbench.evaluate.phonebook.scores` gives them.

    Raises ValueError if no such documents can be made.
    """
    data = run.data
    if not isinstance(data, RecallConfig):
        raise ValueError(f"RecallEvaluation asks about recall; the run's data is {type(data).__name__}")
    if config.documents < 2 or config.queries < 1:
        raise ValueError(
            f"evaluation.documents={config.documents} and queries={config.queries}; an interval needs at least 2 "
            "documents, and each at least 1 query"
        )
    if not config.sizes:
        raise ValueError("evaluation.sizes is empty; give some, the trained ones and past them")
    for size in config.sizes:
        data.check(size)

    def evaluate(model: LanguageModel, split: str) -> dict:
        half = data.symbols // 2
        exams = [(size, False) for size in config.sizes]
        if data.kind in LOOKUPS and split == "test":
            exams += [(size, True) for size in config.sizes if size in data.sizes and size < data.most]
        papers = [questions(config, data, split, *exam) for exam in exams]
        longest = max(content.shape[1] for content, *_ in papers)
        right = {}
        for exam, (content, asked, answers, depth) in zip(exams, papers, strict=True):
            missing = ((0, 0), (0, longest - content.shape[1]))  # one length, so that the sizes run one program
            segments = np.pad(np.ones_like(content), missing)
            given = phonebook.answer(model, np.pad(content, missing), segments, asked, answers)
            right[exam] = (*map(np.asarray, given), depth)
        chance = (dict.fromkeys(LOOKUPS, 1 / half) | {"induction": 1 / data.symbols}).get(data.kind)
        baselines = {
            str(size): {"copy_any": 1 / size, "constant": chance} if chance else {"constant": data.symbols**-size}
            for size in config.sizes
        }
        return phonebook.scores(data.sizes, right, baselines, chance or 0.0)

    return evaluate


def questions(config: RecallEvaluation, data: RecallConfig, split: str, size: int, removed: bool = False):
    """What is to be kept and what is asked of it.

    content [documents, T]. asked [queries, documents, L]: the question and all of its answer but the last token.
    answers [queries, documents, d]. depth [queries]: places that are asked for,
    of what is looked up alone. With `removed`, what is asked for has been taken out.
    """
    rng = np.random.Generator(np.random.Philox(key=[SEED, 10 * size + list(rule.SPLITS).index(split)]))
    extra = min(config.queries, data.most - size) if removed else 0
    content, asked, answers = recall.documents(data, split, size + extra, config.documents, rng)
    depth = np.zeros(0, int)
    if data.kind in LOOKUPS:  # each at most once, spread evenly over depth
        held = content[:, :-1].reshape(config.documents, size + extra, -1)
        content = np.concatenate([held[:, :size].reshape(config.documents, -1), content[:, -1:]], axis=1)
        places = size + np.arange(extra) if removed else np.linspace(0, size - 1, config.queries).round().astype(int)
        depth = np.unique(places)
        asked, answers = held[:, depth, :-1], held[:, depth, -1:]
    asked = np.concatenate([asked, answers[..., :-1]], axis=-1)
    return content, asked.transpose(1, 0, 2), answers.transpose(1, 0, 2), depth
