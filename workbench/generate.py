"""Text from a model of any pattern: prompts are read in chunks, then tokens are drawn one after another.

What a model has read is a value (`Reading`): keep it to come back to it, take rows of it to branch, go on from it as
often as wanted. Rows are apart: each gives what it would give alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from workbench.config import ModelConfig, to_json
from workbench.exchange import safetensors
from workbench.model.language_model import LanguageModel, ModelState, create
from workbench.model.names import named, restored, weights_hash

if TYPE_CHECKING:
    from workbench.data.tokenizer import Tokenizer

CAPACITY = 256  # least that a state is made for; doubled when it is full, so that few programs are compiled
LEAST = 16  # tokens of a prompt that are read at a time, at least: few programs are compiled
CHUNK = 512  # tokens of the prompts that are read at a time: memory does not grow with a prompt but by its cache
BLOCK = 64  # tokens that are drawn before the host looks at them
SHOWN = 8  # the same, where somebody watches or a stop string may come
SCORED = 64  # tokens a row whose logits are held at a time
TOP = 5  # likeliest tokens of each place, where they are asked for


class Reading(NamedTuple):
    """What a model keeps of the tokens that each row has read: a value, never changed.

    state: the layers' states, with room for `capacity` tokens. hidden: after each row's last token, what the next is
    drawn from. length: tokens that each row has read, known without asking the device.
    """

    state: ModelState
    hidden: Float[Array, "B D"]
    length: np.ndarray
    capacity: int

    def rows(self, index: Sequence[int] | np.ndarray) -> Reading:
        """Some of the rows, in this order, one more than once if named more than once: a branch."""
        index = np.asarray(index)
        state, hidden = _rows((self.state, self.hidden), index)
        return Reading(state, hidden, self.length[index], self.capacity)

    def save(self, path: Path | str, model: LanguageModel) -> None:
        """Writes the reading as safetensors, with a hash of the model that read."""
        arrays = {name: np.asarray(leaf) for name, leaf in named(self._kept()).items()}
        arrays["length"], arrays["model"] = self.length.astype(np.int64), _identity(model)
        safetensors.write(path, arrays | {"capacity": np.int64([self.capacity])})

    @classmethod
    def load(cls, path: Path | str, model: LanguageModel) -> Reading:
        """What was saved, here or elsewhere. Raises ValueError unless this very model had read it."""
        arrays = safetensors.read(path)
        if not np.array_equal(arrays.pop("model", None), _identity(model)):
            raise ValueError(f"{path} was read by another model, or its caches were kept otherwise; give that model")
        length, (capacity,) = np.array(arrays.pop("length")), arrays.pop("capacity").tolist()
        blank = jax.eval_shape(lambda: _new(model, len(length), capacity))
        kept = restored({"state": blank[0], "hidden": blank[1]}, {name: jnp.array(a) for name, a in arrays.items()})
        return cls(**kept, length=length, capacity=capacity)

    def _kept(self) -> dict:
        return {"state": self.state, "hidden": self.hidden}


def _identity(model: LanguageModel) -> np.ndarray:
    """Of the config and the weights, as bytes."""
    config = json.dumps(to_json(model.config), sort_keys=True)
    weights = weights_hash({name: np.asarray(leaf) for name, leaf in named(model).items()})
    return np.frombuffer(hashlib.sha256(f"{config} {weights}".encode()).digest(), np.uint8)


def with_cache(model: LanguageModel, cache: str) -> LanguageModel:
    """The same weights, where generation keeps keys and values as bfloat16 or int8 ("": in the compute dtype).

    They are rounded before anything reads them, so that no place where a text is cut changes what follows. Raises
    ValueError for another cache, and for a model without any.
    """
    symbols = {s: replace(layer, cache=cache) if hasattr(layer, "cache") else layer
               for s, layer in model.config.symbols.items()}  # fmt: skip
    if not any(hasattr(layer, "cache") for layer in model.config.layers):
        raise ValueError(f"pattern {model.config.pattern!r} has no layer with a cache; leave cache={cache!r} out")
    config = replace(model.config, symbols=symbols)
    return restored(jax.eval_shape(lambda: create(config, 0)), named(model))


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn; by default it is the likeliest. The fields apply in this order.

    Tokens exactly as likely as the last one kept are kept too.
    """

    repetition: float = 1.0  # divides positive logits, multiplies negative ones, of tokens read or drawn before
    temperature: float = 0.0  # 0: the likeliest token, whatever follows
    top_k: int = 0  # only the k likeliest; 0: all
    top_p: float = 1.0  # only the likeliest that together just reach this probability (nucleus)
    min_p: float = 0.0  # only those at least this fraction as likely as the likeliest

    def __post_init__(self):
        for name, holds, needed in (
            ("repetition", self.repetition > 0, "above 0 (1: no penalty)"),
            ("temperature", self.temperature >= 0, "at least 0 (0: the likeliest token)"),
            ("top_k", self.top_k >= 0, "at least 0 (0: all tokens)"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1 (1: all tokens)"),
            ("min_p", 0 <= self.min_p <= 1, "from 0 (all tokens) to 1"),
        ):
            if not holds:
                raise ValueError(f"sampling.{name} is {needed}; got {getattr(self, name)}")

    def active(self) -> set[str]:
        """The fields that change anything."""
        names = {name for name, value in asdict(self).items() if value != getattr(Sampling, name)}
        return names if self.temperature else names & {"repetition"}


def knobs(rows: Sequence[Sampling], every: bool = False) -> dict[str, np.ndarray]:
    """The fields that change anything for any row, [B, 1]: which they are is compiled, their values are not.

    every: all fields, if any row needs one.
    """
    names = sorted(set().union(*(each.active() for each in rows)))
    names = sorted(asdict(rows[0])) if names and every else names
    return {name: np.float32([[getattr(each, name)] for each in rows]) for name in names}


def beyond(model: LanguageModel, tokens: int) -> int:
    """By how many tokens a text of so many is longer than the model's positions allow; its last one is not read."""
    return _over(model.config, tokens)


def _over(config: ModelConfig, tokens: int) -> int:
    return max(tokens - 1 - config.positions, 0) if config.positions else 0


def check_positions(config: ModelConfig, what: str, tokens: int, new: int = 0, *, advice: str = "") -> None:
    """Raises ValueError if `what`, a text of so many tokens with `new` ones to follow, is beyond the model's positions.

    advice: what to do, in place of asking for fewer tokens or a shorter prompt.
    """
    if over := _over(config, tokens + new):
        fewer = "ask for fewer" if over >= tokens else "ask for fewer, or give a shorter one"
        raise ValueError(
            f"{what} has {tokens} tokens{f' and {new} are to be generated' if new else ''}, {tokens + new - 1} to be "
            f"read; the model's positions allow {config.positions}: {advice or fewer}"
        )


class Generated(NamedTuple):
    """What followed each prompt.

    tokens: drawn, without the stop. log_probabilities: of these tokens, in nats, under the model itself (before
    temperature and the rest). stopped: whether a stop token ended the row. reading: after the tokens, to go on from.
    """

    tokens: list[np.ndarray]
    log_probabilities: list[np.ndarray]
    stopped: list[bool]
    reading: Reading


class Likelihood(NamedTuple):
    """How likely each token of one prompt was after those before it, in nats, and whether it was the likeliest."""

    log_probabilities: np.ndarray
    likeliest: np.ndarray


def read(
    model: LanguageModel,
    prompts: Sequence[Sequence[int] | np.ndarray],
    after: Reading | None = None,
    *,
    room: int = 0,
    chunk: int = CHUNK,
) -> Reading:
    """Reads a prompt a row, of any lengths, after what the rows have read before; with room for further tokens.

    Raises ValueError for a row that would have read nothing, or a token that is not in the vocabulary.
    """
    opened = reading = _opened(model, prompts, after, room)
    for reading in reading_on(model, prompts, opened, chunk):  # noqa: B007
        pass
    return reading


def reading_on(
    model: LanguageModel, prompts: Sequence[Sequence[int] | np.ndarray], reading: Reading, chunk: int = CHUNK
) -> Iterator[Reading]:
    """What has been read after each piece of the prompts, the last one the whole: for whoever does other work between.

    The reading has room for them.
    """
    for tokens, real in _chunks(prompts, chunk):
        reading = _after(reading, real, *_read(model, reading.state, reading.hidden, tokens, real))
        yield reading


def follow(
    model: LanguageModel,
    prompts: Sequence[Sequence[int] | np.ndarray],
    after: Reading | None = None,
    *,
    room: int = 0,
    chunk: int = CHUNK,
) -> tuple[Reading, list[Likelihood]]:
    """Reads like `read` and says how likely each token was; of a row that had read nothing, its first token has NaN."""
    reading = _opened(model, prompts, after, room)
    fresh = reading.length == 0
    found = []
    for tokens, real in _chunks(prompts, chunk):
        state, hidden, chance, likeliest = _follow(model, reading.state, reading.hidden, tokens, real)
        reading = _after(reading, real, state, hidden)
        found.append((np.asarray(chance), np.asarray(likeliest)))
    sizes = [np.size(prompt) for prompt in prompts]
    if not found:
        return reading, [Likelihood(np.zeros(0, np.float32), np.zeros(0, bool)) for _ in sizes]
    chance, likeliest = (np.concatenate(each, axis=1) for each in zip(*found, strict=True))
    chance[fresh, 0], likeliest[fresh, 0] = np.nan, False
    return reading, [Likelihood(chance[row, :n], likeliest[row, :n]) for row, n in enumerate(sizes)]


def _opened(model: LanguageModel, prompts: Sequence, after: Reading | None, room: int) -> Reading:
    """The rows before they read the prompts, with room for these and `room` tokens more."""
    rows, lengths = len(prompts), np.array([np.size(prompt) for prompt in prompts])
    if not rows or (after is not None and rows != len(after.length)):
        needed = "at least one" if after is None else f"one for each of the {len(after.length)} rows read before"
        raise ValueError(f"{rows} prompts given; needed is {needed}")
    if after is None and not lengths.all():
        raise ValueError(f"prompt {int(lengths.argmin())} is empty; begin it with the tokenizer's boundary token")
    for index, prompt in enumerate(prompts):
        ids = np.asarray(prompt).reshape(-1)
        if len(bad := ids[(ids < 0) | (ids >= model.config.vocabulary)]):
            raise ValueError(f"prompt {index} has token {bad[0]}; the model knows 0 to {model.config.vocabulary - 1}")
    before = 0 if after is None else after.length
    capacity = int((before + lengths).max()) + room
    return blank(model, rows, capacity) if after is None else grown(model, after, capacity)


def _chunks(prompts: Sequence, chunk: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The prompts in pieces of at most `chunk`, the last as short as a power of two can be: tokens and whether they are
    real [B, N]."""
    longest, chunk = max(np.size(prompt) for prompt in prompts), _power(chunk)
    for begin in range(0, longest, chunk):
        size = min(chunk, max(_power(longest - begin), LEAST))
        tokens, real = np.zeros((len(prompts), size), np.int32), np.zeros((len(prompts), size), bool)
        for row, prompt in enumerate(prompts):
            piece = np.asarray(prompt).reshape(-1)[begin : begin + size]
            tokens[row, : len(piece)], real[row, : len(piece)] = piece, True
        yield tokens, real


def _after(reading: Reading, real: np.ndarray, state: ModelState, hidden: Array) -> Reading:
    return Reading(state, hidden, reading.length + real.sum(axis=1), reading.capacity)


def generate(
    model: LanguageModel,
    prompts: Sequence[Sequence[int] | np.ndarray] | Reading,
    tokens: int = 64,
    *,
    sampling: Sampling | Sequence[Sampling] | None = None,
    stop: Sequence[int] = (),
    seed: int | Sequence[int] = 0,
    on_tokens: Callable[[list[np.ndarray]], bool | None] | None = None,
    every: int = BLOCK,
) -> Generated:
    """Up to `tokens` tokens after each prompt, or after what has been read; a stop token ends its row.

    A row's draws follow from its own seed, sampling and place in the text alone: from seed + row, or one seed a row.
    on_tokens is called with each row's new tokens, `every` of them (at most 64), to show them; what it returns as true
    ends all. Raises ValueError for a row that is longer, with these tokens, than the model's positions.
    """
    begun = isinstance(prompts, Reading)
    for row, size in enumerate(prompts.length.tolist() if begun else map(np.size, prompts)):
        check_positions(model.config, f"prompt {row}", size, tokens)
    reading = prompts if begun else read(model, prompts, room=min(tokens, BLOCK))
    rows = len(reading.length)
    seeds = [seed + row for row in range(rows)] if isinstance(seed, int) else list(seed)
    if len(seeds) != rows:
        raise ValueError(f"{len(seeds)} seeds for {rows} rows; give one number, or one a row")
    each = list(sampling) if isinstance(sampling, Sequence) else [sampling or Sampling()] * rows
    if len(each) != rows:
        raise ValueError(f"{len(each)} samplings for {rows} rows; give one, or one a row")
    how = knobs(each)
    if "repetition" in how:
        if begun:
            raise ValueError("sampling.repetition needs the prompts themselves: what was read before is not kept")
        how["seen"] = np.zeros((rows, model.config.vocabulary), bool)
        for row, prompt in enumerate(prompts):
            how["seen"][row, np.asarray(prompt)] = True
    draw = Draw(
        how,
        jax.vmap(jax.random.key)(jnp.asarray(seeds, jnp.uint32)),
        np.asarray(stop, np.int32),
        jnp.zeros(rows, bool),
    )
    steps = model.apart()
    drawn, chances = [[] for _ in range(rows)], [[] for _ in range(rows)]
    left, owned = tokens, not begun
    while left > 0:
        count = min(left, every, BLOCK)
        wider = grown(model, reading, int(reading.length.max()) + count)
        if not owned and wider is reading:  # the caller's own stays as it is: it is a value
            wider = reading._replace(state=_copied(reading.state))
        owned = True
        counts = jnp.full(rows, count, jnp.int32)
        state, hidden, draw, block = draw_block(steps, wider.state, wider.hidden, draw, counts)
        block, chance, done = np.asarray(block.tokens), np.asarray(block.log_probabilities), np.asarray(draw.done)
        new = [row[row >= 0] for row in block]
        reading = Reading(state, hidden, wider.length + [len(row) for row in new], wider.capacity)
        for row, more in enumerate(new):
            drawn[row].append(more)
            chances[row].append(chance[row, : len(more)])
        left -= count
        if (on_tokens is not None and on_tokens(new)) or done.all():
            break
    empty = np.zeros(0, np.int32), np.zeros(0, np.float32)
    return Generated(
        [np.concatenate([empty[0], *each]) for each in drawn],
        [np.concatenate([empty[1], *each]) for each in chances],
        np.asarray(draw.done).tolist(),
        reading,
    )


class Completion(NamedTuple):
    """text: without the stop. tokens, log_probabilities: those drawn, which may go past a stop string by a few."""

    text: str
    tokens: np.ndarray
    log_probabilities: np.ndarray
    stopped: bool


def complete(
    model: LanguageModel,
    tokenizer: Tokenizer,
    prompts: Sequence[str] | Reading,
    tokens: int = 64,
    *,
    sampling: Sampling | Sequence[Sampling] | None = None,
    stop: Sequence[str] = (),
    seed: int | Sequence[int] = 0,
    on_text: Callable[[int, str], None] | None = None,
) -> list[Completion]:
    """Continues each prompt, which begins a document, or what has been read, until a stop string, the document's end or
    `tokens` tokens.

    on_text(row, text) is called with what is new, as it comes: never half a character, never a part of a stop string.
    """
    if "" in stop:
        raise ValueError('a stop string is empty; leave it out, or give one such as "\\n"')
    texts = prompts if isinstance(prompts, Reading) else encoded(tokenizer, prompts)
    rows = len(texts.length if isinstance(texts, Reading) else texts)
    found = [Tail(tokenizer, stop) for _ in range(rows)]

    def look(new: list[np.ndarray]) -> bool:
        for row, more in enumerate(new):
            piece = found[row].add(more)
            if piece and on_text is not None:
                on_text(row, piece)
        return all(tail.ended or not len(more) for tail, more in zip(found, new, strict=True))

    out = generate(
        model, texts, tokens, sampling=sampling, stop=tokenizer.ends, seed=seed, on_tokens=look,
        every=BLOCK if on_text is None and not stop else SHOWN,
    )  # fmt: skip
    for row, tail in enumerate(found):
        piece = tail.rest()
        if piece and on_text is not None:
            on_text(row, piece)
    return [
        Completion(tail.given, *each, tail.ended or stopped)
        for tail, *each, stopped in zip(found, *out[:3], strict=True)
    ]


def encoded(tokenizer: Tokenizer, prompts: Sequence[str]) -> list[np.ndarray]:
    """The tokens of documents that begin with each prompt, their boundary first."""
    found = tokenizer.encode([prompt.encode() for prompt in prompts])
    return [np.concatenate([[tokenizer.boundary], each.ids]) for each in found]


class Tail:
    """One row's text as it grows: what may be shown of it, and whether a stop string has come."""

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str]):
        self.tokenizer, self.stop = tokenizer, stop
        self.tokens: list[int] = []
        self.given, self.ended = "", False

    def add(self, tokens: np.ndarray) -> str:
        """The text that these tokens make certain."""
        self.tokens.extend(tokens.tolist())
        return self._give(hold=True)

    def rest(self) -> str:
        """The text that was held back, once nothing follows."""
        return self._give(hold=False)

    def _give(self, hold: bool) -> str:
        if self.ended:
            return ""
        text = self.tokenizer.decode(self.tokens).decode(errors="replace")
        ends = [at for at in (text.find(each, max(len(self.given) - len(each), 0)) for each in self.stop) if at >= 0]
        if ends:
            text, self.ended = text[: min(ends)], True
        elif hold:
            text = text.rstrip("\ufffd")  # the first bytes of a character
            may_stop = [n for each in self.stop for n in range(1, len(each)) if text.endswith(each[:n])]
            text = text[: len(text) - max(may_stop, default=0)]
        new = text[len(self.given) :]
        self.given += new
        return new


# ---- on the device


class Draw(NamedTuple):
    """knobs: of the sampling that are in use, with the tokens seen if repetition is. done: rows that have stopped."""

    knobs: dict
    keys: Array
    stop: Int[Array, " S"]
    done: Bool[Array, " B"]


class Block(NamedTuple):
    """tokens: -1 where a row had stopped, or waited. top: each place's likeliest tokens, and how likely they are."""

    tokens: Int[Array, "B N"]
    log_probabilities: Float[Array, "B N"]
    top: tuple[Int[Array, "B N K"], Float[Array, "B N K"]] | None = None


@partial(jax.jit, static_argnums=(1, 2))
def _new(model: LanguageModel, rows: int, capacity: int):
    dtype = jnp.dtype(model.config.dtype)
    return model.initial_state(rows, capacity), jnp.zeros((rows, model.config.width), dtype)


@jax.jit
def _rows(kept, index: Int[Array, " B"]):
    """One program, where every leaf by itself would be several."""
    return jax.tree.map(lambda leaf: leaf[index], kept)


@jax.jit
def _copied(state: ModelState) -> ModelState:
    return jax.tree.map(jnp.copy, state)


def blank(model: LanguageModel, rows: int, capacity: int) -> Reading:
    """Rows that have read nothing, with room for at least `capacity` tokens."""
    capacity = _capacity(capacity)
    return Reading(*_new(model, rows, capacity), np.zeros(rows, int), capacity)


def placed(reading: Reading, row: int, one: Reading) -> Reading:
    """The reading with a row that another has read alone, at the same capacity. The reading given is used up."""
    state, hidden = _place((reading.state, reading.hidden), jnp.int32(row), (one.state, one.hidden))
    length = reading.length.copy()
    length[row] = one.length[0]
    return Reading(state, hidden, length, reading.capacity)


@partial(jax.jit, donate_argnums=(0,))
def _place(into, row: Int[Array, ""], one):
    return jax.tree.map(lambda all, new: jax.lax.dynamic_update_index_in_dim(all, new[0], row, 0), into, one)


def grown(model: LanguageModel, reading: Reading, capacity: int) -> Reading:
    """The reading with room for at least `capacity` tokens. Costs one copy where it has not, so capacities double."""
    if capacity <= reading.capacity:
        return reading
    capacity = _capacity(capacity)
    return reading._replace(state=_grow(model, reading.state, len(reading.length), capacity), capacity=capacity)


@partial(jax.jit, static_argnums=(2, 3))
def _grow(model: LanguageModel, state: ModelState, rows: int, capacity: int) -> ModelState:
    """Nothing has been overwritten before a cache is full, so slots are where they were: a ring's too."""
    into = lambda new, old: new.at[tuple(slice(size) for size in old.shape)].set(old)  # noqa: E731
    return jax.tree.map(into, model.initial_state(rows, capacity), state)


@jax.jit
def _read(model: LanguageModel, state: ModelState, hidden: Array, tokens: Array, real: Array):
    return _pass(model, state, hidden, tokens, real)[:2]


@jax.jit
def _follow(model: LanguageModel, state: ModelState, hidden: Array, tokens: Array, real: Array):
    state, last, each = _pass(model, state, hidden, tokens, real)
    before = jnp.concatenate([hidden[:, None], each[:, :-1]], axis=1)

    def look(piece):
        hidden, tokens = piece
        logits = model.logits(hidden).astype(jnp.float32)
        chance = jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0] - jax.nn.logsumexp(logits, axis=-1)
        return chance, logits.argmax(axis=-1) == tokens

    size = min(SCORED, tokens.shape[1])  # both are powers of two
    split = lambda a: jnp.moveaxis(a.reshape(a.shape[0], -1, size, *a.shape[2:]), 1, 0)  # noqa: E731
    found = jax.lax.map(look, (split(before), split(tokens)))
    return state, last, *(jnp.moveaxis(a, 0, 1).reshape(tokens.shape) for a in found)


def _pass(model: LanguageModel, state: ModelState, hidden: Array, tokens: Array, real: Array):
    """State and hidden after each row's last real token, and the hidden states of all."""
    output = model(tokens, state, jnp.where(real, _document(state)[:, None], 0))
    count = real.sum(axis=1)
    last = jnp.take_along_axis(output.hidden, jnp.maximum(count - 1, 0)[:, None, None], axis=1)[:, 0]
    return output.state, jnp.where((count > 0)[:, None], last, hidden), output.hidden


def _document(state: ModelState) -> Int[Array, " B"]:
    """Segment id of the document that each row is in."""
    return jnp.maximum(state.progress.segment, 1)


@partial(jax.jit, donate_argnums=(1,), static_argnums=(5,))
def draw_block(
    model: LanguageModel, state: ModelState, hidden: Array, draw: Draw, counts: Int[Array, " B"], top: bool = False
):
    """counts[b] tokens of each row, at most BLOCK, fewer where it stops; a row that needs no more waits for the others.

    Returns what is read then, the draw and the block: one program for every count.
    """
    rows = hidden.shape[0]
    block = Block(
        jnp.full((rows, BLOCK), -1, jnp.int32),
        jnp.zeros((rows, BLOCK), jnp.float32),
        (jnp.zeros((rows, BLOCK, TOP), jnp.int32), jnp.zeros((rows, BLOCK, TOP), jnp.float32)) if top else None,
    )
    index = jnp.arange(rows)

    def goes_on(carry):
        i, _, _, draw, _ = carry
        return ((i < counts) & ~draw.done).any()

    def step(carry):
        i, state, hidden, draw, block = carry
        logits = model.logits(hidden).astype(jnp.float32)
        keys = jax.vmap(jax.random.fold_in)(draw.keys, state.progress.length)
        token = _next(logits, keys, draw.knobs)
        waits = i >= counts
        done = draw.done | (~waits & (token[:, None] == draw.stop[None]).any(axis=1))
        still = done | waits
        total = jax.nn.logsumexp(logits, axis=-1)
        put = lambda into, new: into.at[:, i].set(new)  # noqa: E731
        found = Block(
            put(block.tokens, jnp.where(still, -1, token)), put(block.log_probabilities, logits[index, token] - total)
        )
        if top:
            high, which = jax.lax.top_k(logits, TOP)
            found = found._replace(top=(put(block.top[0], which), put(block.top[1], high - total[:, None])))
        knobs = dict(draw.knobs)
        if "seen" in knobs:
            knobs["seen"] = knobs["seen"].at[index, token].max(~still)
        output = model(token[:, None], state, jnp.where(still, 0, _document(state))[:, None])
        hidden = jnp.where(still[:, None], hidden, output.hidden[:, 0])
        return i + 1, output.state, hidden, draw._replace(knobs=knobs, done=done), found

    _, state, hidden, draw, block = jax.lax.while_loop(goes_on, step, (0, state, hidden, draw, block))
    return state, hidden, draw, block


def _next(logits: Float[Array, "B V"], keys: Array, knobs: dict) -> Int[Array, " B"]:
    """A token a row, by the sampling's fields in use: the same whatever fields other rows use."""
    if "repetition" in knobs:
        by = jnp.where(knobs["seen"], knobs["repetition"], 1.0)
        logits = jnp.where(logits > 0, logits / by, logits * by)
    likeliest = logits.argmax(axis=-1).astype(jnp.int32)
    if "temperature" not in knobs:
        return likeliest
    warm = knobs["temperature"] > 0
    logits = logits / jnp.where(warm, knobs["temperature"], 1.0)
    if knobs.keys() & {"top_k", "top_p", "min_p"}:
        falling = -jnp.sort(-logits, axis=-1)
        kept = jnp.ones(logits.shape, bool)
        if "top_k" in knobs:
            kept &= (jnp.arange(logits.shape[1])[None] < knobs["top_k"]) | (knobs["top_k"] == 0)
        for name in ("top_p", "min_p"):
            if name in knobs:
                chance = jax.nn.softmax(jnp.where(kept, falling, -jnp.inf), axis=-1)
                if name == "top_p":  # a token stays if those before it do not reach the sum
                    kept &= (jnp.cumsum(chance, axis=-1) - chance < knobs[name]) | (knobs[name] == 1)
                else:
                    kept &= chance >= knobs[name] * chance[:, :1]
        least = jnp.where(kept, falling, jnp.inf).min(axis=-1, keepdims=True)
        logits = jnp.where(logits >= least, logits, -jnp.inf)
    drawn = jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)
    return jnp.where(warm[:, 0], drawn, likeliest)


def _capacity(tokens: int) -> int:
    return max(CAPACITY, _power(tokens))


def _power(number: int) -> int:
    """The next power of two."""
    return 1 << max(number - 1, 0).bit_length()
