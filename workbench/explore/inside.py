"""What a model does with a phone book: what each token takes from which, how long it is kept, and which layer answers.

Whatever mixes tokens is a matrix a head, y_t = sum over s of M[t, s] x_s: of attention its softmax, of a state-space
layer what its recurrence comes to, M[t, s] = C_t (product of the decays of steps s + 1 to t) B_s dt_s, without its skip
D x_t. A head of Mamba is a channel.
Sources: Dao & Gu 2024, arXiv:2405.21060, section 3; Ali et al. 2024, arXiv:2403.01590.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from workbench import pattern as patterns
from workbench.config import ModelConfig, PhonebookConfig, PhonebookEvaluation, RunConfig
from workbench.data.phonebook import DIGIT, NAME
from workbench.evaluate.phonebook import questions
from workbench.model.attention import Attention
from workbench.model.language_model import LanguageModel, Layer
from workbench.model.mamba import Mamba, MambaScan
from workbench.model.mamba2 import Mamba2, Mamba2Scan
from workbench.model.norm import wide
from workbench.model.where import Where, locate

KINDS = ("name", "digit", "question")  # of tokens: of the book the first two; what is asked, from the mark on


# ---- what is read


class Paper(NamedTuple):
    """Books and one question about each: entries, the query mark, the name asked for, its digits but the last.

    tokens [B, T]. answers [B, digits], each predicted at its place in `asked` and standing in the book at its place in
    `source` [B, digits]. kinds [T]: index into KINDS.
    """

    tokens: np.ndarray
    answers: np.ndarray
    asked: np.ndarray
    source: np.ndarray
    kinds: np.ndarray

    @property
    def mark(self) -> int:
        """Where the query mark stands: what is asked begins here."""
        return int(np.flatnonzero(self.kinds == KINDS.index("question"))[0])


def paper(run: RunConfig, entries: int, books: int = 64, split: str = "test") -> Paper:
    """Books of the run's own kind that no training has seen, asked for entries of every depth in turn.

    Raises ValueError if the run's data is no phone book, and if there are too few names.
    """
    data = run.data
    if not isinstance(data, PhonebookConfig):
        raise ValueError(f"{run.name} was trained on {type(data).__name__}; give the folder of a run on phone books")
    places = min(entries, 8)
    evaluation = PhonebookEvaluation(entries=(entries,), books=books, queries=places)
    tokens, _, asked, answers, depth = questions(evaluation, data, split, entries)
    turn = (np.arange(books) + places // 2) % places  # the first book is asked for an entry in its middle
    tokens = np.concatenate([tokens, asked[turn, np.arange(books)]], axis=1)
    entry, time = data.name_tokens + data.digits, tokens.shape[1]
    kinds = np.full(time, KINDS.index("question"))
    kinds[: entries * entry] = np.tile(np.repeat([0, 1], [data.name_tokens, data.digits]), entries)
    digits = np.arange(data.digits)
    source = depth[turn][:, None] * entry + data.name_tokens + digits
    return Paper(tokens, answers[turn, np.arange(books)], time - data.digits + digits, source, kinds)


def spoken(tokens: np.ndarray) -> list[str]:
    """A phone book's tokens for people: #3 for a name's, 7 for a digit, ? for the mark."""
    return [f"#{t - NAME}" if t >= NAME else str(t - DIGIT) if t >= DIGIT else "?" for t in tokens.tolist()]


# ---- layer by layer


def layers(model: LanguageModel) -> list[Layer]:
    """The model's layers in order, each with its own parameters."""
    return [jax.tree.map(lambda leaf: leaf[i], each) for i in range(model.periods) for each in model.layers]  # noqa: B023


def names(config: ModelConfig) -> list[str]:
    """`1 M`, `2 *`, ...: what figures call the layers."""
    return [f"{i} {symbol}" for i, symbol in enumerate(patterns.parse(config.pattern, config.symbols), 1)]


def streams(
    model: LanguageModel, tokens: Int[Array, "B T"], kept: Float[Array, "L T"] | None = None
) -> list[Float[Array, "B T D"]]:
    """The residual stream before the first layer and after each.

    kept: what each layer's contribution is multiplied by at each token; 0 takes it away there.
    """
    where, _ = locate(*tokens.shape, None, None)
    found = [model.embedding[...][tokens].astype(model.config.dtype)]
    for number, layer in enumerate(layers(model)):
        y, _, _ = layer.mixer(layer.norm(found[-1]), None, where)
        found.append(found[-1] + (y if kept is None else y * kept[number].astype(y.dtype)[None, :, None]))
    return found


# ---- the matrices


def mixing(mixer: Any, u: Float[Array, "B T D"], where: Where) -> Float[Array, "B H T T"] | None:
    """M of every head of a layer for its input, summed in float32 or wider; None where nothing known mixes tokens."""
    if isinstance(mixer, Attention):
        q, k, _, _ = mixer.projected(u, None, where)
        return _softmax(q, k, _seen(where, u.shape[1], mixer.config.window))
    if isinstance(mixer, Mamba | Mamba2):
        given = mixer.scanned(u, None, where)[0]
        of = _selective if isinstance(mixer, Mamba) else _semiseparable
        return of(given, _seen(where, u.shape[1], None))
    return None


def _seen(where: Where, time: int, window: int | None) -> Bool[Array, "#B T T"]:
    """Which tokens [t, s] may see which: those before, of the same document, within the window."""
    index = jnp.arange(time)
    back = index[:, None] - index[None, :]
    seen = ((back >= 0) & (back < (window or time)))[None]
    if where.segments is not None:
        same = where.segments[:, :, None] == where.segments[:, None, :]
        seen = seen & same & (where.segments != 0)[:, None, :]
    return seen


def _softmax(
    q: Float[Array, "B T H K"], k: Float[Array, "B T G K"], seen: Bool[Array, "#B T T"]
) -> Float[Array, "B H T T"]:
    k = jnp.repeat(k, q.shape[2] // k.shape[2], axis=2)
    scores = jnp.einsum("BTHK,BSHK->BHTS", wide(q), wide(k)) * q.shape[-1] ** -0.5
    weights = jax.nn.softmax(jnp.where(seen[:, None], scores, -1e30), axis=-1)
    return jnp.where(seen[:, None], weights, 0)  # a query of padding sees nothing


def _selective(given: MambaScan, seen: Bool[Array, "#B T T"]) -> Float[Array, "B I T T"]:
    """Every state of a channel has its own decay: their matrices are added up one by one."""
    dt, A, B, C = (wide(each) for each in (given.dt, given.A, given.B, given.C))
    passed = _between(jnp.cumsum(dt, axis=1), seen)

    def add(total, state):
        a, b, c = state
        return total + jnp.exp(a[None, :, None, None] * passed) * c[:, None, :, None] * b[:, None, None, :], None

    each = (A.T, jnp.moveaxis(B, 2, 0), jnp.moveaxis(C, 2, 0))
    total, _ = jax.lax.scan(add, jnp.zeros_like(passed), each)
    return jnp.where(seen[:, None], total, 0) * jnp.moveaxis(dt, 2, 1)[:, :, None]


def _semiseparable(given: Mamba2Scan, seen: Bool[Array, "#B T T"]) -> Float[Array, "B H T T"]:
    """All states of a head decay alike: the decays times C_t B_s."""
    dt, A, B, C = (wide(each) for each in (given.dt, given.A, given.B, given.C))
    decay = jnp.exp(_between(jnp.cumsum(dt * A[None, None], axis=1), seen))
    read = jnp.repeat(jnp.einsum("BTGN,BSGN->BGTS", C, B), dt.shape[2] // B.shape[2], axis=1)
    return jnp.where(seen[:, None], decay * read, 0) * jnp.moveaxis(dt, 2, 1)[:, :, None]


def _between(sums: Float[Array, "B T H"], seen: Bool[Array, "#B T T"]) -> Float[Array, "B H T T"]:
    """Sums over steps s + 1 to t, from running sums; 0 where t does not see s: masked before any exponential."""
    sums = jnp.moveaxis(sums, 2, 1)
    return jnp.where(seen[:, None], sums[..., :, None] - sums[..., None, :], 0)


def shares(M: Float[Array, "... T T"]) -> Float[Array, "... T T"]:
    """|M| over its row's sum: what part of what a token takes in comes from which; of attention M itself."""
    size = jnp.abs(M)
    total = size.sum(axis=-1, keepdims=True)
    return size / jnp.where(total > 0, total, 1)


# ---- what is looked at


class Look(NamedTuple):
    """One layer over the books of a paper; all None for a layer that mixes no tokens.

    shares [H, T, T]: of the first book. answer [B, H]: of what a head takes in where a digit is asked for, how much
    comes from that digit in the book (mean over digits). distance [H]: how many tokens back it takes from, on average.
    steps [B, T, H] and rates [H, N], negative, of a state-space layer alone: a state decays by exp(step rate).
    """

    shares: np.ndarray | None = None
    answer: np.ndarray | None = None
    distance: np.ndarray | None = None
    steps: np.ndarray | None = None
    rates: np.ndarray | None = None

    @property
    def memory(self) -> np.ndarray | None:
        """Tokens after which e^-1 is left of what a head has written, at its mean step: of its slowest state [H]."""
        if self.steps is None:
            return None
        return 1 / (self.steps.mean(axis=(0, 1)) * -self.rates.max(axis=1))


def look(model: LanguageModel, paper: Paper) -> list[Look]:
    """Each layer's, in order."""
    found = _look(model, jnp.asarray(paper.tokens), jnp.asarray(paper.asked), jnp.asarray(paper.source))
    return [Look(**{name: np.asarray(value) for name, value in each.items()}) for each in found]


@jax.jit
def _look(model, tokens, asked, source) -> list[dict[str, jax.Array]]:
    where, _ = locate(1, tokens.shape[1], None, None)
    age = jnp.arange(tokens.shape[1])
    age = jnp.maximum(age[:, None] - age[None, :], 0)
    found = []
    for layer, x in zip(layers(model), streams(model, tokens), strict=False):
        u = layer.norm(x)
        first = mixing(layer.mixer, u[:1], where)
        if first is None:
            found.append({})
            continue

        def book(given, mixer=layer.mixer):  # one at a time: the matrices of a wide layer are large
            u, source = given
            share = shares(mixing(mixer, u[None], where)[0])
            return share[:, asked, source].mean(axis=-1), (share * age[None]).sum(axis=-1).mean(axis=-1)

        answer, distance = jax.lax.map(book, (u, source))
        seen = {"shares": shares(first[0]), "answer": answer, "distance": distance.mean(axis=0)}
        if isinstance(layer.mixer, Mamba | Mamba2):
            given = layer.mixer.scanned(u, None, where)[0]
            seen |= {"steps": given.dt, "rates": given.A.reshape(given.dt.shape[2], -1)}
        found.append(seen)
    return found


class Answers(NamedTuple):
    """Of each digit asked for [..., B, digits]: its log-probability in nats, and whether it is the likeliest.

    lens: read from the residual stream before the first layer and after each [L + 1, ...], as if the rest did nothing.
    without: of the model whole, and without each layer's contribution from the query mark on [L + 1, ...].
    """

    lens: tuple[np.ndarray, np.ndarray]
    without: tuple[np.ndarray, np.ndarray]


def answers(model: LanguageModel, paper: Paper) -> Answers:
    """By the logit lens (nostalgebraist 2020), and by ablating each layer where the question stands."""
    tokens, asked, wanted = (jnp.asarray(each) for each in (paper.tokens, paper.asked, paper.answers))
    found = _answers(model, tokens, asked, wanted, paper.mark)
    return Answers(*(tuple(np.asarray(each) for each in pair) for pair in found))


@jax.jit
def _answers(model, tokens, asked, wanted, mark):
    def read(x):
        chances = jax.nn.log_softmax(model.logits(model.norm(x[:, asked])), axis=-1)
        return jnp.take_along_axis(chances, wanted[..., None], axis=-1)[..., 0], chances.argmax(axis=-1) == wanted

    number = len(model.config.layers)
    question = jnp.arange(tokens.shape[1]) >= mark
    gone = jnp.arange(number)[None] == jnp.arange(-1, number)[:, None]  # [which is taken away (none first), layer]
    kept = jnp.where(gone[:, :, None] & question[None, None], 0.0, 1.0)
    lens = jax.lax.map(read, jnp.stack(streams(model, tokens)))
    return lens, jax.lax.map(lambda each: read(streams(model, tokens, each)[-1]), kept)
