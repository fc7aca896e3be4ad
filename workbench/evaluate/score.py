"""Three questions that any evaluation of a language model comes down to, of any model with a tokenizer.

    loglikelihood            how likely is a continuation after a context?
    loglikelihood_rolling    how likely is a text?
    generate_until           what follows a prompt?

What many prompts begin with (worked examples, a phone book) is read once and branched from. Rows are apart, so that
neither the batch nor the order of the questions changes an answer, but for rounding.

Of a model with a limit (ModelConfig.positions), prompts beyond it are refused, or cut from the left if that is asked
for (`cut`), the boundary with the rest. All tokens count but the last, which is not read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from tqdm import tqdm

from workbench.config import RunConfig
from workbench.data.tokenizer import Tokenizer, loaded
from workbench.generate import (
    Completion,
    Likelihood,
    Reading,
    Sampling,
    beyond,
    check_positions,
    complete,
    encoded,
    follow,
    read,
)
from workbench.model.language_model import LanguageModel
from workbench.train.checkpoint import load_model

BATCH = 8  # prompts that are read at a time
WORTH = 128  # tokens that reading a shared beginning once must save
SHOWN = 40  # letters of a prompt that is refused
CUT = "leave off its beginning with cut=True (workbench evaluate --cut)"


class Subject(NamedTuple):
    """What is examined: a model and what turns text into its tokens."""

    model: LanguageModel
    tokenizer: Tokenizer

    def check(self) -> None:
        """Raises ValueError if the tokenizer has tokens that the model does not know."""
        known = self.model.config.vocabulary
        if self.tokenizer.vocabulary > known:
            raise ValueError(
                f"the tokenizer has {self.tokenizer.vocabulary} tokens and the model knows {known}: "
                "it is not the one that the model was trained with"
            )


def subject(folder: Path | str, step: int | Literal["best"] | None = None) -> Subject:
    """The model of a run's last checkpoint, of a step or of the best one, and the tokenizer that it was trained with.

    Raises ValueError if there is no such checkpoint, or if the run was trained on tokens that stand for no text.
    """
    run, model = load_model(folder, step)
    return Subject(model, tokenizer_of(folder, run))


def tokenizer_of(folder: Path | str, run: RunConfig) -> Tokenizer:
    """The tokenizer that a folder's run was trained with. Raises ValueError if there is none."""
    saved = Path(folder) / "tokenizer.json"
    if not saved.is_file():
        raise ValueError(
            f"{folder} has no tokenizer.json: its data ({type(run.data).__name__}) is no text, or it was trained "
            "before runs kept their tokenizer; give a run that was trained on text"
        )
    return loaded(saved.read_bytes())


class Score(NamedTuple):
    """log_probability: of the continuation, in nats. greedy: whether greedy decoding would have written it.

    tokens, bytes: of the continuation. straddles: whether a token has bytes of both context and continuation, in which
    case it counts as the continuation's. log_probabilities: of each of its tokens. cut: whether some were not scored
    after all of what stands before them.
    """

    log_probability: float
    greedy: bool
    tokens: int
    bytes: int
    straddles: bool
    log_probabilities: np.ndarray
    cut: bool


def loglikelihood(
    subject: Subject,
    questions: Sequence[tuple[str, str]],
    *,
    batch: int = BATCH,
    share: bool = True,
    cut: bool = False,
    progress: bool | str = False,
) -> list[Score]:
    """Of each (context, continuation), in their order. They are encoded together, then parted where the context ends.

    The context begins a document and may be empty. share: read what questions begin with once; off to see what it
    saves. cut: of one that is longer than the model's positions leave off the beginning; a continuation that is longer
    by itself is scored in pieces, each token once, each piece after as much before it as they allow.
    Raises ValueError for an empty continuation and, without `cut`, for a question that is longer.
    """
    subject.check()
    joined = subject.tokenizer.encode([(context + continuation).encode() for context, continuation in questions])
    room = subject.model.config.positions
    texts, starts, straddles = [], [], []
    for index, ((context, continuation), each) in enumerate(zip(questions, joined, strict=True)):
        if not continuation:
            raise ValueError(f"question {index} has an empty continuation: nothing to score")
        ends = np.cumsum(each.lengths)
        place = int(np.searchsorted(ends, len(context.encode()), side="right"))
        texts.append(np.concatenate([[subject.tokenizer.boundary], each.ids]))
        starts.append(1 + place)
        straddles.append(bool(len(context.encode()) > (ends[place - 1] if place else 0)))
        if not cut:
            what = f"question {index} ({(context + continuation)[-SHOWN:]!r} at its end)"
            check_positions(subject.model.config, what, len(texts[-1]), advice=f"ask a shorter one, or {CUT}")
    pieces = [
        (index, *piece)
        for index, (text, start) in enumerate(zip(texts, starts, strict=True))
        for piece in _pieces(len(text), start, room)
    ]
    given = likelihoods(
        subject.model,
        [texts[index][begin:end] for index, begin, _, end in pieces],
        [first - begin for _, begin, first, _ in pieces],
        batch=batch,
        share=share,
        progress=progress,
    )
    found: list[list[Likelihood]] = [[] for _ in texts]
    for (index, *_), each in zip(pieces, given, strict=True):
        found[index].append(each)
    scores = []
    for (_, continuation), text, parts, straddle in zip(questions, texts, found, straddles, strict=True):
        chance, likeliest = (np.concatenate(each) for each in zip(*parts, strict=True))
        total, whole = float(chance.sum(dtype=np.float64)), bool(likeliest.all())
        size, was_cut = len(continuation.encode()), beyond(subject.model, len(text)) > 0
        scores.append(Score(total, whole, len(chance), size, straddle, chance, was_cut))
    return scores


def _pieces(size: int, start: int, room: int) -> list[tuple[int, int, int]]:
    """(begin, first scored, end) of what is read of a text to score its tokens from `start` on once.

    Each piece has at most room + 1 tokens, as many as there are before its end.
    """
    if not room:
        return [(0, start, size)]
    ends = [*range(start + room, size, room), size]
    return [(max(end - room - 1, 0), first, end) for first, end in pairwise([start, *ends])]


def loglikelihood_rolling(
    subject: Subject, texts: Sequence[str], *, batch: int = BATCH, cut: bool = False, progress: bool | str = False
) -> list[Score]:
    """Of each whole text, every token after all those before it, however long the text is.

    Raises ValueError for one that is longer than the model's positions; cut: score it in pieces (see `loglikelihood`).
    """
    return loglikelihood(subject, [("", text) for text in texts], batch=batch, cut=cut, progress=progress)


def generate_until(
    subject: Subject,
    prompts: Sequence[str],
    stop: Sequence[str],
    tokens: int = 256,
    *,
    sampling: Sampling | None = None,
    batch: int = BATCH,
    share: bool = True,
    cut: bool = False,
    seed: int | Sequence[int] = 0,
    progress: bool | str = False,
) -> list[Completion]:
    """What follows each prompt, until a stop string, the document's end or `tokens` tokens, in the prompts' order.

    Draws follow from seed + the prompt's place, or from one seed a prompt.

    Raises ValueError for a prompt that is longer, with these tokens, than the model's positions; cut: leave off its
    beginning. Raises it for tokens that are more than these positions alone.
    """
    subject.check()
    texts = encoded(subject.tokenizer, prompts)
    for index, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
        if over := beyond(subject.model, len(text) + tokens):
            if not cut or over >= len(text):
                advice = "" if over >= len(text) else f"ask for fewer, give a shorter one, or {CUT}"
                what = f"prompt {index} ({prompt[-SHOWN:]!r} at its end)"
                check_positions(subject.model.config, what, len(text), tokens, advice=advice)
            texts[index] = text[over:]
    steps = subject.model.apart()
    out: list[Completion | None] = [None] * len(texts)
    with _bar(len(texts), progress) as bar:
        for lot, reading in _read_all(subject.model, texts, [len(text) for text in texts], batch, share):
            seeds = [seed + index if isinstance(seed, int) else seed[index] for index in lot]
            given = complete(steps, subject.tokenizer, reading, tokens, sampling=sampling, stop=stop, seed=seeds)
            out = _placed(out, lot, given, bar)
    return out


def likelihoods(
    model: LanguageModel,
    texts: Sequence[np.ndarray],
    cuts: Sequence[int],
    *,
    batch: int = BATCH,
    share: bool = True,
    progress: bool | str = False,
) -> list[Likelihood]:
    """How likely each text's tokens from its cut (at least 1) on are, after those before it."""
    out: list[Likelihood | None] = [None] * len(texts)
    with _bar(len(texts), progress) as bar:
        for lot, reading in _read_all(model, texts, cuts, batch, share):
            _, found = follow(model, [texts[index][cuts[index] :] for index in lot], reading)
            out = _placed(out, lot, found, bar)
    return out


def _read_all(
    model: LanguageModel, texts: Sequence[np.ndarray], limits: Sequence[int], batch: int, share: bool
) -> Iterator[tuple[list[int], Reading]]:
    """Each text read up to its limit, in lots of rows: (their indices, the reading). The last of a lot may be doubled.

    The texts are a tree of shared beginnings, walked from its root: what a node's texts share is read once, many nodes
    a batch, and its state branched for those below.
    """
    order = sorted(range(len(texts)), key=lambda index: texts[index].astype(">u4").tobytes())

    def walk(above: Reading | None, nodes: list[tuple[list[int], int, int]]):
        """nodes: (texts, row of the reading above that has read their beginning, its length)."""
        found = [(*each, row, at) for members, row, at in nodes for each in _apart(texts, limits, members, at, share)]
        whole = [(members, limits[members[0]], *rest) for members, _, *rest in found if len(members) == 1]
        for lot, reading in _in_lots(model, texts, above, whole, batch):
            yield [members[0] for members, *_ in lot], reading
        for lot, reading in _in_lots(model, texts, above, [each for each in found if len(each[0]) > 1], batch):
            real = [i for i, each in enumerate(lot) if i == 0 or each is not lot[i - 1]]
            yield from walk(reading, [(lot[i][0], i, lot[i][1]) for i in real])

    return walk(None, [(order, 0, 0)]) if order else iter(())


def _apart(
    texts: Sequence[np.ndarray], limits: Sequence[int], members: list[int], at: int, share: bool
) -> list[tuple[list[int], int]]:
    """The members (sorted texts, alike up to `at`) by what is worth reading once: (members, end of what they share)."""
    if len(members) == 1 or not share:
        return [([member], at) for member in members]
    common = [_common(texts[a], texts[b]) for a, b in pairwise(members)]
    end = min(*common, *(limits[member] for member in members))
    if (len(members) - 1) * (end - at) >= WORTH:
        return [(members, end)]
    pieces = [[members[0]]]
    for member, shared in zip(members[1:], common, strict=True):
        if shared == min(common):
            pieces.append([])
        pieces[-1].append(member)
    return [each for piece in pieces for each in _apart(texts, limits, piece, at, share)]


def _common(a: np.ndarray, b: np.ndarray) -> int:
    """Tokens that both begin with."""
    size = min(len(a), len(b))
    differ = np.flatnonzero(a[:size] != b[:size])
    return int(differ[0]) if len(differ) else size


def _in_lots(model: LanguageModel, texts: Sequence[np.ndarray], above: Reading | None, nodes: list, batch: int):
    """Reads each node (texts, end, row above, begin) from begin to end, in lots of a power of two: few programs."""
    nodes = sorted(nodes, key=lambda node: node[3] - node[1])
    for first in range(0, len(nodes), batch):
        lot = nodes[first : first + batch]
        lot += [lot[-1]] * (min(1 << (len(lot) - 1).bit_length(), batch) - len(lot))
        rest = [texts[members[0]][begin:end] for members, end, _, begin in lot]
        yield lot, read(model, rest, None if above is None else above.rows([row for *_, row, _ in lot]))


def _placed(out: list, lot: list[int], found: Sequence, bar: tqdm) -> list:
    for index, each in zip(lot, found, strict=True):
        out[index] = each
    bar.update(len(set(lot)))
    return out


def _bar(total: int, progress: bool | str) -> tqdm:
    return tqdm(total=total, desc=progress if isinstance(progress, str) else None, unit="prompt", disable=not progress)
