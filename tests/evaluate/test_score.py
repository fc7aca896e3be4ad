from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from workbench.config import AttentionConfig, Mamba2Config, ModelConfig
from workbench.data import tokenizer as tokenizers
from workbench.data.tokenizer import Bytes
from workbench.evaluate import score as module
from workbench.evaluate.score import Subject, beyond, generate_until, likelihoods, loglikelihood, loglikelihood_rolling
from workbench.generate import encoded, generate
from workbench.model.language_model import create
from workbench.model.names import named, restored
from workbench.train.loss import negative_log_likelihood

SYMBOLS = {"M": Mamba2Config(state=4, head_dim=8), "*": AttentionConfig(heads=2)}
EXAMPLES = "Rome is in Italy. Oslo is in Norway. Lima is in Peru. " * 4
QUESTIONS = [
    (EXAMPLES + f"{city} is in", f" {country}.")
    for city in ("Paris", "Parma", "Quito", "Kyoto")
    for country in ("France", "Finland", "Italy", "Ecuador")
] + [("", "Oslo"), ("Lima is", " naïve, né€? 𝄞"), ("Lima is", " naïve")]


@pytest.fixture(scope="module")
def subject():
    return Subject(create(ModelConfig("M*", 16, 257, SYMBOLS), 0), Bytes())


@jax.jit
def nats_of(model, tokens):
    """Of each token after the first."""
    return negative_log_likelihood(model(tokens[:, :-1]).hidden, model.head(), tokens[:, 1:])[0]


def nats(subject, text, room=256):
    """Of a text alone in a row, by the loss that models are trained with; what follows it changes nothing before."""
    ids = np.concatenate([[0], Bytes().encode([text.encode()])[0].ids])
    padded = jnp.asarray(np.pad(ids, (0, room - len(ids)))[None], jnp.int32)
    return np.asarray(nats_of(subject.model, padded))[: len(ids) - 1]


@pytest.fixture(scope="module")
def scores(subject):
    return loglikelihood(subject, QUESTIONS)


def test_a_continuations_likelihood_is_that_of_the_training_loss(subject, scores):
    """One question at a time, the whole text in one row, through another path of the code."""
    for (context, continuation), score in zip(QUESTIONS[-6:], scores[-6:], strict=True):
        size = len(continuation.encode())
        expected = -nats(subject, context + continuation)[-size:]
        np.testing.assert_allclose(score.log_probabilities, expected, atol=1e-5)
        assert (score.tokens, score.bytes, score.straddles) == (size, size, False)
        np.testing.assert_allclose(score.log_probability, expected.sum(), atol=1e-4)


def test_neither_batch_nor_order_nor_sharing_changes_a_score(subject, scores):
    order = np.random.default_rng(0).permutation(len(QUESTIONS))
    shuffled = loglikelihood(subject, [QUESTIONS[i] for i in order], batch=3)
    others = (loglikelihood(subject, QUESTIONS, share=False), [shuffled[i] for i in np.argsort(order)])
    for other in others:
        for one, two in zip(scores, other, strict=True):
            np.testing.assert_allclose(one.log_probabilities, two.log_probabilities, atol=1e-5)
            assert one[1:5] == two[1:5]


def test_what_prompts_share_is_read_once(subject, monkeypatch):
    read, tokens = module.read, {}

    def counted(model, prompts, before=None):
        tokens[share] = tokens.get(share, 0) + sum(map(len, prompts))
        return read(model, prompts, before)

    monkeypatch.setattr(module, "read", counted)
    for share in (True, False):
        loglikelihood(subject, QUESTIONS[:16], share=share)
    shared = len(EXAMPLES) + 1
    assert tokens[False] > 16 * shared and shared < tokens[True] < shared + 16 * 20


def test_the_tree_of_beginnings_gives_every_text_once_and_saves_what_it_says():
    rng = np.random.default_rng(1)
    stems = [rng.integers(0, 9, size) for size in (200, 150, 5)]
    texts = [np.concatenate([stem, rng.integers(0, 9, 3)]) for stem in stems for _ in range(4)]
    order = sorted(range(12), key=lambda index: texts[index].tolist())
    parts = module._apart(texts, [len(text) for text in texts], order, 0, True)
    assert sorted(member for members, _ in parts for member in members) == list(range(12))
    for members, end in parts:
        assert all(np.array_equal(texts[member][:end], texts[members[0]][:end]) for member in members)
        assert len(members) == 1 or (len(members) - 1) * end >= module.WORTH
    assert sorted(len(members) for members, _ in parts) == [1, 1, 1, 1, 4, 4]


def test_greedy_says_whether_greedy_decoding_would_write_it(subject):
    contexts = [chr(letter) for letter in range(ord("a"), ord("q"))]
    drawn = generate(subject.model, [[0, ord(letter) + 1] for letter in contexts], 2).tokens
    context, likely = next(
        (context, bytes(ids - 1).decode())
        for context, ids in zip(contexts, (each.astype(np.uint8) for each in drawn), strict=True)
        if ids.min() >= 1 and ids.max() <= 128  # is text
    )
    right, wrong = loglikelihood(subject, [(context, likely), (context, likely[0] + chr(ord(likely[1]) ^ 1))])
    assert right.greedy and not wrong.greedy


def test_a_token_over_the_cut_counts_for_the_continuation_and_is_reported(subject):
    spoken = tokenizers.train(iter([b"abcabcabcabc abab"] * 50), 270)
    whole = spoken.encode([b"abc"])[0]
    assert len(whole.ids) == 1
    subject = Subject(create(ModelConfig("M", 16, 270, SYMBOLS), 0), spoken)
    cut, clean = loglikelihood(subject, [("ab", "c"), ("", "abc")])
    assert cut.straddles and not clean.straddles
    assert cut.tokens == clean.tokens == 1
    np.testing.assert_allclose(cut.log_probability, clean.log_probability, atol=1e-5)


@pytest.mark.slow
def test_rolling_scores_every_token_of_a_text_of_any_length(subject):
    text = "abc " * 300  # longer than is read at a time
    (score,) = loglikelihood_rolling(subject, [text])
    assert score.tokens == 1200
    np.testing.assert_allclose(score.log_probabilities, -nats(subject, text, 1280), atol=1e-4)


def test_generating_after_shared_beginnings_equals_generating_after_each_prompt(subject):
    prompts = [context for context, _ in QUESTIONS[:16:4]] + ["Lima"]
    shared = generate_until(subject, prompts, ["\n"], 8, batch=4)
    for prompt, one in zip(prompts, shared, strict=True):
        alone = generate(subject.model, encoded(Bytes(), [prompt]), 8, stop=[0]).tokens[0]
        np.testing.assert_array_equal(one.tokens[: len(alone)], alone)


@pytest.fixture(scope="module")
def limited(subject):
    """The same weights, of a model that can read 16 tokens."""
    config = replace(subject.model.config, positions=16)
    return Subject(restored(create(config, 0), named(subject.model)), Bytes())


def test_what_is_longer_than_the_models_positions_is_refused_with_what_to_do(subject, limited):
    fits, longer = "a" * 15, "a" * 16  # of bytes, after the boundary
    assert loglikelihood(limited, [(fits, "b")])[0][:1] == loglikelihood(subject, [(fits, "b")])[0][:1]
    generate_until(limited, [fits[:-1]], [], 2)
    says = r"question 1 \('aaaa.*b' at its end\) has 18 tokens.*positions allow 16: ask a shorter one, or leave .*--cut"
    with pytest.raises(ValueError, match=says):
        loglikelihood(limited, [(fits, "b"), (longer, "b")])
    with pytest.raises(ValueError, match=r"question 0 .* has 18 tokens"):
        loglikelihood_rolling(limited, [longer + "b"])
    says = (
        r"prompt 1 \('aaaa.*a' at its end\) has 17 tokens.*and 3 are to be generated.*allow 16: ask for fewer, give a"
    )
    with pytest.raises(ValueError, match=says):
        generate_until(limited, ["a", longer], [], 3)
    with pytest.raises(ValueError, match=r"has 2 tokens.*and 17 are to be generated.*allow 16: ask for fewer$"):
        generate_until(limited, ["a"], [], 17, cut=True)
    assert beyond(limited.model, 17) == beyond(subject.model, 10**9) == 0


def test_what_is_cut_from_the_left_is_answered_like_its_end_alone(subject, limited):
    context = "Rome is in Italy. Oslo is in"
    (score,) = loglikelihood(limited, [(context, " Norway")], cut=True)
    ids = encoded(Bytes(), [context + " Norway"])[0][-17:]
    ((expected, _),) = likelihoods(subject.model, [ids], [10])
    np.testing.assert_allclose(score.log_probabilities, expected, atol=1e-5)
    assert score.cut and not loglikelihood(limited, [("Oslo is", " in")], cut=True)[0].cut
    (written,) = generate_until(limited, [context], [], 4, cut=True)
    alone = generate(subject.model, [encoded(Bytes(), [context])[0][-13:]], 4, stop=[0]).tokens[0]
    np.testing.assert_array_equal(written.tokens[: len(alone)], alone)


def test_a_longer_text_is_scored_in_pieces_each_token_once(subject, limited):
    """lm-eval's windows: the first from the beginning, the last after as much as there is room for."""
    text = "".join(chr(97 + place % 26) for place in range(40))
    (score,) = loglikelihood_rolling(limited, [text], cut=True)
    ids = encoded(Bytes(), [text])[0]
    windows = [(0, 1, 17), (16, 17, 33), (24, 33, 41)]  # begin, first scored, end
    found = likelihoods(subject.model, [ids[a:c] for a, _, c in windows], [b - a for a, b, _ in windows])
    np.testing.assert_allclose(score.log_probabilities, np.concatenate([each for each, _ in found]), atol=1e-5)
    assert score.tokens == 40 and score.cut


def test_what_cannot_be_scored_is_refused(subject):
    with pytest.raises(ValueError, match="question 1 has an empty continuation"):
        loglikelihood(subject, [("a", "b"), ("a", "")])
    small = Subject(create(ModelConfig("M", 16, 100, SYMBOLS), 0), Bytes())
    with pytest.raises(ValueError, match="the tokenizer has 257 tokens and the model knows 100"):
        loglikelihood(small, [("a", "b")])
    assert loglikelihood(subject, []) == []
