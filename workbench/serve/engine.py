"""Continuous batching: texts join and leave a batch that never waits for its longest.

The batch has a fixed number of rows and a fixed capacity. In each round one piece of a waiting prompt is read, alone,
and every row in use is written on by a few tokens. A row's text follows from its own request alone: a prompt is always
read by the same programs, and a step is the same one whatever the other rows hold.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from workbench.data.tokenizer import Tokenizer
from workbench.generate import (
    SHOWN,
    Draw,
    Reading,
    Sampling,
    Tail,
    blank,
    check_positions,
    draw_block,
    knobs,
    placed,
    reading_on,
)
from workbench.model.language_model import LanguageModel

GREEDY = Sampling()
_keys = jax.jit(jax.vmap(jax.random.key))


class Token(NamedTuple):
    """One token of an answer: its text, where this begins in the answer, its log-probability, the likeliest's."""

    text: str
    offset: int
    log_probability: float
    top: dict[str, float]


class Piece(NamedTuple):
    """What is new of an answer. finish: "" while it goes on, then why it ended: stop, length, or an error's text."""

    text: str
    tokens: list[Token]  # where they were asked for
    written: int  # tokens of the whole answer so far, its stop included
    finish: str = ""
    failed: bool = False


@dataclass(eq=False)
class Request:
    """A prompt's tokens, how many are to follow at most, and how; put is called with every piece, from one thread.

    top: as many of the likeliest tokens of each place are told, None for nothing about tokens.
    """

    prompt: np.ndarray
    tokens: int
    put: Callable[[Piece], None]
    sampling: Sampling = GREEDY
    stop: tuple[str, ...] = ()
    seed: int = 0
    top: int | None = None
    cancelled: bool = field(default=False, init=False)


class Full(Exception):
    """As many requests wait as may."""


class Closed(Exception):
    """No request is taken any more."""


@dataclass
class _Row:
    """A request that is being written on."""

    request: Request
    tail: Tail
    chances: list[float] = field(default_factory=list)
    tops: list[dict[int, float]] = field(default_factory=list)
    told: int = 0  # tokens that were given away
    written: int = 0


class Engine:
    """A model that answers requests in a thread of its own, while it is open as a context."""

    def __init__(self, model: LanguageModel, tokenizer: Tokenizer, *, rows: int = 8, waiting: int = 64, context: int):
        for name, value in (("rows", rows), ("waiting", waiting), ("context", context)):
            if value < 1:
                raise ValueError(f"{name} is at least 1; got {value}")
        self.model, self.tokenizer, self.waiting, self.context = model.apart(), tokenizer, waiting, context
        self._queue: deque[Request] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._empty(rows)

    def __enter__(self) -> Engine:
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Takes no more, and returns when all that was taken is answered."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def room(self, prompt: int) -> int:
        """How many tokens may follow a prompt of so many: within the context, and the model's positions."""
        positions = self.model.config.positions
        return min(self.context, positions + 1 if positions else self.context) - prompt

    def submit(self, *requests: Request) -> None:
        """Takes all of them or none. Raises Full, Closed, and ValueError for a request that does not fit."""
        for request in requests:
            check_positions(self.model.config, "the prompt", len(request.prompt), request.tokens)
            size = len(request.prompt) + request.tokens
            if size > self.context:
                raise ValueError(
                    f"the prompt has {len(request.prompt)} tokens and {request.tokens} may follow; "
                    f"together at most {self.context}"
                )
        with self._changed:
            if self._closed:
                raise Closed
            self._queue = deque(request for request in self._queue if not request.cancelled)
            if len(self._queue) + len(requests) > self.waiting:
                raise Full
            self._queue.extend(requests)
            self._changed.notify()

    def cancel(self, *requests: Request) -> None:
        """Whoever asked is gone."""
        for request in requests:
            request.cancelled = True

    # ---- in the thread

    def _empty(self, rows: int) -> None:
        self._rows: list[_Row | None] = [None] * rows
        self._seeds = np.zeros(rows, np.uint32)
        self._seen = np.zeros((rows, self.model.config.vocabulary), bool)
        self._reading = blank(self.model, rows, self.context)
        self._opening: tuple[Request, Iterator[Reading]] | None = None

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._closed or self._queue or self._busy()):
                    self._changed.wait()
                if self._closed and not (self._queue or self._busy()):
                    return
            try:
                self._admit()
                self._write()
            except Exception as error:  # the batch is gone, the next requests need not suffer
                begun = [row.request for row in self._rows if row is not None]
                begun += [self._opening[0]] if self._opening else []
                self._empty(len(self._rows))
                for request in begun:
                    request.put(Piece("", [], 0, f"{type(error).__name__}: {error}", failed=True))

    def _busy(self) -> bool:
        return self._opening is not None or any(self._rows)

    def _admit(self) -> None:
        """Reads a piece of the prompt whose turn it is; a whole one gets a row."""
        for index, row in enumerate(self._rows):
            if row is not None and row.request.cancelled:
                self._rows[index] = None
        if self._opening is not None and self._opening[0].cancelled:
            self._opening = None
        if self._opening is None and None in self._rows:
            with self._changed:
                request = next((request for request in self._queue if not request.cancelled), None)
                if request is None:
                    self._queue.clear()
                    return
                self._queue = deque(each for each in self._queue if each is not request)
            alone = blank(self.model, 1, self.context)
            self._opening = request, reading_on(self.model, [request.prompt], alone)
        if self._opening is None:
            return
        request, pieces = self._opening
        reading = next(pieces)
        if reading.length[0] < len(request.prompt):
            return
        index, self._opening = self._rows.index(None), None
        self._reading = placed(self._reading, index, reading)
        self._seeds[index] = request.seed
        self._seen[index] = False
        self._seen[index, request.prompt] = True
        self._rows[index] = _Row(request, Tail(self.tokenizer, request.stop))

    def _write(self) -> None:
        """A few tokens more of every row in use."""
        rows = self._rows
        if not any(rows):
            return
        counts = np.array([min(SHOWN, row.request.tokens - row.written) if row else 0 for row in rows], np.int32)
        # two programs in all, so that nobody waits for a compilation because somebody asks for another mixture
        how = knobs([row.request.sampling if row else GREEDY for row in rows], every=True)
        if "repetition" in how:
            how["seen"] = self._seen
        stop = np.asarray(self.tokenizer.ends, np.int32)
        draw = Draw(how, _keys(self._seeds), stop, jnp.zeros(len(rows), bool))
        top = any(row is not None and row.request.top is not None for row in rows)
        given = self._reading
        state, hidden, draw, block = draw_block(self.model, given.state, given.hidden, draw, jnp.asarray(counts), top)
        tokens, chances, done = np.asarray(block.tokens), np.asarray(block.log_probabilities), np.asarray(draw.done)
        tops = [np.asarray(each) for each in block.top] if top else None
        lengths = (tokens >= 0).sum(axis=1)
        self._reading = Reading(state, hidden, given.length + lengths, given.capacity)
        for index, row in enumerate(rows):
            if row is None or row.request.cancelled:
                continue
            size, request = lengths[index], row.request
            new = tokens[index, :size]
            self._seen[index, new] = True
            row.written += int(size) + bool(done[index])
            if request.top is not None:
                row.chances += chances[index, :size].tolist()
                which, high = (each[index, :size, : request.top] for each in tops)
                row.tops += [dict(zip(*pair, strict=True)) for pair in zip(which.tolist(), high.tolist(), strict=True)]
            text = row.tail.add(new)
            finish = "stop" if row.tail.ended or done[index] else "length" if row.written >= request.tokens else ""
            if finish:
                text += row.tail.rest()
                self._rows[index] = None
            request.put(Piece(text, self._told(row), row.written, finish))

    def _told(self, row: _Row) -> list[Token]:
        """The tokens whose text has been given away since the last time."""
        if row.request.top is None:
            return []
        name = lambda token: self.tokenizer.decode([token]).decode(errors="replace")  # noqa: E731
        new = []
        for index in range(row.told, len(row.tail.tokens)):
            before = self.tokenizer.decode(row.tail.tokens[:index]).decode(errors="replace")
            offset = len(before.rstrip("\ufffd"))  # a character begins with its first byte's token
            if offset >= len(row.tail.given):
                break
            top: dict[str, float] = {}
            for token, chance in row.tops[index].items():  # of tokens that read alike, the likeliest
                top.setdefault(name(token), chance)
            new.append(Token(name(row.tail.tokens[index]), offset, row.chances[index], top))
        row.told += len(new)
        return new
