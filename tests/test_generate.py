import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from workbench import generate as module
from workbench.config import AttentionConfig, Mamba2Config, ModelConfig
from workbench.count import count
from workbench.data.tokenizer import Bytes
from workbench.generate import Reading, Sampling, blank, complete, follow, generate, read, with_cache
from workbench.model.language_model import create
from workbench.model.names import named, restored

SYMBOLS = {
    "M": Mamba2Config(state=4, head_dim=8),
    "*": AttentionConfig(heads=2),
    "w": AttentionConfig(heads=2, window=300),  # its ring grows past 256 tokens
}
RNG = np.random.default_rng(0)
PROMPTS = [RNG.integers(1, 257, size) for size in (3, 180, 20)]
NEW = 80  # more than a block; the longest row needs a larger cache on the way


@pytest.fixture(scope="module")
def model():
    return create(ModelConfig("M*w", 16, 257, SYMBOLS), 0)


@pytest.fixture(scope="module")
def greedy(model):
    return generate(model, PROMPTS, NEW)


def log_probabilities(model, text):
    """Of every token after the first, from the whole text at once, in numpy."""
    logits = np.asarray(
        model.logits(jax.jit(type(model).__call__)(model, jnp.asarray(text[None, :-1], jnp.int32)).hidden)[0],
        np.float64,
    )
    logits -= logits.max(axis=-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def test_each_greedy_token_is_the_likeliest_after_the_whole_text_before_it(model, greedy):
    for prompt, new, chances in zip(PROMPTS[:2], greedy.tokens, greedy.log_probabilities, strict=False):
        expected = log_probabilities(model, np.concatenate([prompt, new]))[len(prompt) - 1 :]
        np.testing.assert_array_equal(new, expected.argmax(axis=-1))
        np.testing.assert_allclose(chances, expected.max(axis=-1), atol=1e-5)
    assert greedy.reading.length.tolist() == [len(prompt) + NEW for prompt in PROMPTS]


def test_generating_past_the_models_positions_is_refused_and_up_to_them_is_as_without_a_limit(model, greedy):
    """The last token that is drawn is not read: 180 and 77 more are 256 that are."""
    limited = restored(create(replace(model.config, positions=256), 0), named(model))
    found = generate(limited, PROMPTS, 77)
    for one, two in zip(found.tokens, greedy.tokens, strict=True):
        np.testing.assert_array_equal(one, two[:77])
    says = (
        r"prompt 1 has 180 tokens and 78 are to be generated, 257 to be read; the model's positions allow 256: ask for"
    )
    with pytest.raises(ValueError, match=says):
        generate(limited, PROMPTS, 78)
    with pytest.raises(ValueError, match="prompt 1 has 257 tokens and 1 are to be generated"):
        generate(limited, found.reading, 1)


def test_a_row_gives_in_a_batch_what_it_gives_alone(model):
    how = Sampling(temperature=0.9, top_p=0.95)
    together = generate(model, PROMPTS, NEW, sampling=how, seed=5)
    alone = generate(model, PROMPTS[1:2], NEW, sampling=how, seed=6)
    np.testing.assert_array_equal(alone.tokens[0], together.tokens[1])
    np.testing.assert_allclose(alone.log_probabilities[0], together.log_probabilities[1], atol=1e-5)
    assert not np.array_equal(together.tokens[0], generate(model, PROMPTS, NEW, sampling=how, seed=9).tokens[0])


def test_rows_with_samplings_of_their_own_give_what_each_gives_alone(model, greedy):
    how = [Sampling(temperature=0.9, top_p=0.9), Sampling(), Sampling(temperature=1.2)]
    together = generate(model, PROMPTS, NEW, sampling=how, seed=5)
    np.testing.assert_array_equal(together.tokens[1], greedy.tokens[1])
    for row in (0, 2):
        alone = generate(model, [PROMPTS[row]], NEW, sampling=how[row], seed=5 + row)
        np.testing.assert_array_equal(alone.tokens[0], together.tokens[row])


def test_caches_double_so_that_a_size_compiles_one_program(model, greedy):
    assert greedy.reading.capacity == 512
    before = module.draw_block._cache_size()
    for size in (1, 7, 90):
        generate(model, PROMPTS, size)
    assert module.draw_block._cache_size() == before


def test_going_on_from_a_reading_equals_never_having_stopped_and_leaves_it_as_it_was(model, greedy):
    first = generate(model, PROMPTS, 30)
    for _ in range(2):
        rest = generate(model, first.reading, NEW - 30)
        for row in range(3):
            np.testing.assert_array_equal(np.concatenate([first.tokens[row], rest.tokens[row]]), greedy.tokens[row])


def test_a_branch_goes_on_as_the_row_it_came_from(model, greedy):
    branched = read(model, PROMPTS).rows([2, 0, 2])
    assert branched.length.tolist() == [20, 3, 20]
    for row, new in zip((2, 0, 2), generate(model, branched, 10).tokens, strict=True):
        np.testing.assert_array_equal(new, greedy.tokens[row][:10])


def test_a_stop_ends_its_row_alone_and_is_not_read(model, greedy):
    stop = int(greedy.tokens[0][4])
    end = int(np.flatnonzero(greedy.tokens[0] == stop)[0])
    out = generate(model, PROMPTS, NEW, stop=[stop])
    np.testing.assert_array_equal(out.tokens[0], greedy.tokens[0][:end])
    assert out.stopped[0] and out.reading.length[0] == 3 + end
    again = generate(model, out.reading, 2)
    np.testing.assert_array_equal(again.tokens[0], greedy.tokens[0][end : end + 2])
    for row in (1, 2):
        assert len(out.tokens[row]) == NEW or out.stopped[row]
        np.testing.assert_array_equal(out.tokens[row], greedy.tokens[row][: len(out.tokens[row])])


def test_following_says_how_likely_each_token_was_wherever_the_text_is_cut(model):
    text = PROMPTS[1]
    expected = log_probabilities(model, text)
    chosen = expected[np.arange(len(text) - 1), text[1:]]
    reading, (whole,) = follow(model, [text])
    assert np.isnan(whole.log_probabilities[0]) and not whole.likeliest[0]
    np.testing.assert_allclose(whole.log_probabilities[1:], chosen, atol=1e-5)
    np.testing.assert_array_equal(whole.likeliest[1:], expected.argmax(axis=-1) == text[1:])
    first = read(model, [text[:70]], chunk=64)
    second, (rest,) = follow(model, [text[70:]], first, chunk=64)
    np.testing.assert_allclose(rest.log_probabilities, chosen[69:], atol=1e-5)
    assert second.length == reading.length


# ---- what is kept


def test_a_saved_reading_goes_on_as_if_it_had_not_been_away(model, greedy, tmp_path):
    first = generate(model, PROMPTS, 30)
    first.reading.save(tmp_path / "reading.safetensors", model)
    back = Reading.load(tmp_path / "reading.safetensors", model)
    assert (back.length.tolist(), back.capacity) == (first.reading.length.tolist(), first.reading.capacity)
    for row, new in enumerate(generate(model, back, NEW - 30).tokens):
        np.testing.assert_array_equal(new, greedy.tokens[row][30:])
    other = create(model.config, 1)
    for wrong in (other, with_cache(model, "int8")):
        with pytest.raises(ValueError, match="was read by another model"):
            Reading.load(tmp_path / "reading.safetensors", wrong)


@pytest.mark.parametrize("cache", ["", "bfloat16", "int8"])
def test_a_readings_bytes_are_those_counted_and_a_windows_do_not_grow(model, cache, tmp_path):
    model = with_cache(model, cache)
    for capacity in (256, 1024):
        state = blank(model, 2, capacity).state.layers
        kept = [a for a in jax.tree.leaves(state) if a.dtype != jnp.int32]
        assert sum(a.nbytes for a in kept) == 2 * count(model.config, capacity).state_bytes
    assert state[1].keys.shape[2] == 1024 and state[2].keys.shape[2] == 300
    reading = read(model, [PROMPTS[0]])  # and every kind can be kept
    reading.save(tmp_path / "reading.safetensors", model)
    back = Reading.load(tmp_path / "reading.safetensors", model)
    for kept, again in zip(jax.tree.leaves(reading), jax.tree.leaves(back), strict=True):
        assert np.asarray(kept).dtype == np.asarray(again).dtype
        np.testing.assert_array_equal(kept, again)


# ---- sampling


def chosen(logits, draws=4000, **knobs):
    """How often each token is drawn."""
    keys = jax.random.split(jax.random.key(0), draws)
    logits = np.broadcast_to(np.asarray(logits, np.float32), (draws, len(logits)))
    tokens = jax.jit(module._next)(logits, keys, module.knobs([Sampling(**knobs)] * draws))
    return np.bincount(np.asarray(tokens), minlength=logits.shape[1]) / draws


@pytest.mark.parametrize(
    "knobs, kept",
    [
        ({}, (0, 1, 2, 3, 4)),
        ({"top_k": 2}, (1, 3)),
        ({"top_p": 0.79}, (1, 3)),  # 0.5 + 0.3: the second reaches it
        ({"top_p": 0.81}, (1, 3, 4)),
        ({"min_p": 0.25}, (1, 3)),  # 0.1 / 0.5 is below
        ({"top_k": 3, "top_p": 0.88}, (1, 3)),  # of the three left, 0.5 / 0.9 and 0.3 / 0.9 together reach it
    ],
    ids=str,
)
def test_tokens_are_drawn_from_those_kept_in_proportion(knobs, kept):
    likelihood = np.array([0.04, 0.5, 0.06, 0.3, 0.1])
    expected = np.where(np.isin(np.arange(5), kept), likelihood, 0)
    expected /= expected.sum()
    seen = chosen(np.log(likelihood), temperature=1.0, **knobs)
    assert set(np.flatnonzero(seen)) == set(kept)
    assert np.all(np.abs(seen - expected) < 5 * np.sqrt(0.25 / 4000))


def test_temperature_sharpens_and_zero_takes_the_likeliest():
    likelihood = np.array([0.5, 0.3, 0.2])
    sharper = likelihood**2 / (likelihood**2).sum()
    assert np.abs(chosen(np.log(likelihood), temperature=0.5) - sharper).max() < 5 * np.sqrt(0.25 / 4000)
    assert chosen(np.log(likelihood), top_k=2).tolist() == [1, 0, 0]


def test_a_repetition_penalty_divides_positive_logits_and_multiplies_negative_ones():
    logits = np.array([[3.0, 2.0, -1.0], [-1.0, -0.5, -3.0]], np.float32)
    draw = lambda seen, by: module._next(jnp.asarray(logits), jnp.zeros(2), {"repetition": by, "seen": np.array(seen)})  # noqa: E731
    assert draw([[True, False, False], [False, True, False]], 1.4).tolist() == [0, 1]  # 3 / 1.4 > 2, -0.5 * 1.4 > -1
    assert draw([[True, False, False], [False, True, False]], 2.5).tolist() == [1, 0]


@pytest.mark.slow
def test_tokens_that_were_read_or_drawn_come_last_under_a_great_penalty(model):
    penalised = generate(model, PROMPTS, 40, sampling=Sampling(repetition=1e6))
    for prompt, new in zip(PROMPTS, penalised.tokens, strict=True):
        unseen = 257 - len(set(prompt.tolist()))
        first = new[:unseen]
        assert len(set(first.tolist())) == len(first) and not set(first.tolist()) & set(prompt.tolist())


# ---- text


def shown(model, monkeypatch, text, stop, step=1):
    """What complete shows and gives where a model writes these bytes, `step` tokens at a time."""
    ids = Bytes().encode([text])[0].ids.astype(np.int32)

    def writes(model, prompts, tokens, *, stop, on_tokens, **rest):
        for first in range(0, len(ids), step):
            if on_tokens([ids[first : first + step]]):
                break
        return [ids], [np.zeros(len(ids), np.float32)], [False], None

    monkeypatch.setattr(module, "generate", writes)
    pieces = []
    (out,) = complete(model, Bytes(), ["x"], stop=stop, on_text=lambda row, piece: pieces.append(piece))
    return pieces, out


def test_text_comes_in_whole_characters(model, monkeypatch):
    pieces, out = shown(model, monkeypatch, "aé€𝄞b".encode(), ())
    assert pieces == ["a", "é", "€", "𝄞", "b"] and out.text == "aé€𝄞b" and not out.stopped


@pytest.mark.parametrize("step", [1, 3, 100])
def test_a_stop_string_ends_the_text_and_no_part_of_it_is_shown(model, monkeypatch, step):
    pieces, out = shown(model, monkeypatch, b"one\ntwo\n\nthree", ("\n\n", "zzz"), step)
    assert out.text == "one\ntwo" == "".join(pieces) and out.stopped


def test_what_looked_like_a_stop_is_shown_after_all(model, monkeypatch):
    pieces, out = shown(model, monkeypatch, b"ab\n", ("\n\n",))
    assert "".join(pieces) == out.text == "ab\n"


def test_completing_text_is_generating_tokens(model):
    (out,) = complete(model, Bytes(), ["ab"], 20)
    np.testing.assert_array_equal(out.tokens, generate(model, [[0, 98, 99]], 20, stop=[0]).tokens[0])
    assert out.text == Bytes().decode(out.tokens).decode(errors="replace")


# ---- what is refused


@pytest.mark.parametrize(
    "prompts, message",
    [
        ([], "0 prompts given; needed is at least one"),
        ([[1], []], "prompt 1 is empty"),
        ([[1, 257]], "prompt 0 has token 257; the model knows 0 to 256"),
        ([[-1]], "prompt 0 has token -1"),
    ],
)
def test_prompts_that_cannot_be_read_are_named(model, prompts, message):
    with pytest.raises(ValueError, match=message):
        generate(model, prompts, 1)


@pytest.mark.parametrize(
    "field", [{"temperature": -1.0}, {"top_p": 0.0}, {"top_k": -1}, {"min_p": 2.0}, {"repetition": 0.0}], ids=str
)
def test_a_sampling_without_a_meaning_is_refused(field):
    name, value = next(iter(field.items()))
    with pytest.raises(ValueError, match=f"sampling.{name} .* got {value}"):
        Sampling(**field)


def test_a_wrong_number_of_rows_or_seeds_is_refused(model):
    reading = read(model, PROMPTS)
    assert isinstance(reading, Reading)
    with pytest.raises(ValueError, match="2 prompts given; needed is one for each of the 3 rows"):
        read(model, PROMPTS[:2], reading)
    with pytest.raises(ValueError, match="2 samplings for 3 rows"):
        generate(model, reading, 1, sampling=[Sampling()] * 2)
    with pytest.raises(ValueError, match=r"cache 'int4' is unknown; .*int8"):
        with_cache(model, "int4")
    with pytest.raises(ValueError, match="'SS' has no layer with a cache"):
        with_cache(create(ModelConfig("SS", 8, 9), 0), "int8")
    with pytest.raises(ValueError, match="2 seeds for 3 rows"):
        generate(model, reading, 1, seed=[1, 2])
    with pytest.raises(ValueError, match="repetition needs the prompts themselves"):
        generate(model, reading, 1, sampling=Sampling(repetition=2.0))
    with pytest.raises(ValueError, match="stop string is empty"):
        complete(model, Bytes(), ["a"], stop=[""])


# ---- its cost


def test_a_step_copies_no_weights():
    """Of stacked layers, a step would copy every matrix before its product."""
    config = ModelConfig("MM", 32, 257, {"M": Mamba2Config(state=4, head_dim=8)})
    model = create(config, 0)
    matrix = f"f32[32,{model.layers[0].mixer.enter.shape[-1]}]"

    def written(model):
        reading = blank(model, 1, 256)
        keys = jax.vmap(jax.random.key)(jnp.zeros(1, jnp.uint32))
        draw = module.Draw({}, keys, np.zeros(0, np.int32), jnp.zeros(1, bool))
        given = (model, reading.state, reading.hidden, draw, jnp.full(1, 40, jnp.int32))
        step = module.draw_block.lower(*given).compile()
        made = re.findall(r"= (\S+?)\{\S* (?:fusion|copy|slice)\(", step.as_text())
        return made.count(matrix), np.asarray(step(*given)[3].tokens)

    (copies, tokens), (none, same) = written(model), written(model.apart())
    assert (model.periods, copies, none) == (2, 2, 0)
    np.testing.assert_array_equal(tokens, same)
