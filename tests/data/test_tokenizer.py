import json

import numpy as np
import pytest

from workbench.data import tokenizer as tokenizers
from workbench.data.tokenizer import Bytes, loaded, named, size, train

TEXTS = [
    "def f(x):\n    return 12345 + x\n",
    "é ü 漢字 😀 \t\r\n\x00 end",
    "<|boundary|> <|endoftext|></s>",
    "   leading and trailing   ",
    "1",
]
DOCUMENTS = [text.encode() for text in TEXTS]


@pytest.fixture(scope="module")
def bpe():
    return train(iter(DOCUMENTS * 5), 300)


@pytest.fixture(scope="module")
def spoken(bpe, tmp_path_factory):
    pytest.importorskip("sentencepiece")
    import sentencepiece

    folder = tmp_path_factory.mktemp("pieces")
    (folder / "text").write_text("\n".join(["the cat sat on the mat", "a dog and a cat"] * 20))
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text"), model_prefix=str(folder / "m"), vocab_size=300, byte_fallback=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, add_dummy_prefix=False,
        hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    return folder / "m.model"


def test_what_is_encoded_comes_back_byte_for_byte(bpe):
    for tokenizer in (Bytes(), bpe):
        for document, encoded in zip(DOCUMENTS, tokenizer.encode(DOCUMENTS), strict=True):
            assert tokenizer.decode(encoded.ids) == document


def test_the_lengths_of_a_documents_tokens_add_up_to_its_bytes(bpe):
    for tokenizer in (Bytes(), bpe):
        for document, encoded in zip(DOCUMENTS, tokenizer.encode(DOCUMENTS), strict=True):
            assert encoded.lengths.sum() == len(document)
            assert len(encoded.lengths) == len(encoded.ids) and (encoded.lengths >= 0).all()


def test_a_bpe_has_a_token_for_every_byte_and_digits_stand_alone(bpe):
    (encoded,) = bpe.encode([b"0123456789"])
    assert len(encoded.ids) == 10
    every = "".join(chr(code) for code in range(0x20, 0x3000)).encode()
    assert bpe.decode(bpe.encode([every])[0].ids) == every


def test_no_text_is_taken_for_the_boundary(bpe):
    for encoded in bpe.encode(DOCUMENTS):
        assert bpe.boundary not in encoded.ids


def test_training_is_a_function_of_the_documents(bpe):
    assert train(iter(DOCUMENTS * 5), 300).saved() == bpe.saved()
    assert train(iter(DOCUMENTS), 280).saved() != bpe.saved()


def test_a_tokenizer_is_the_same_after_it_was_saved(bpe):
    for tokenizer in (Bytes(), bpe):
        again = loaded(tokenizer.saved())
        assert again.vocabulary == tokenizer.vocabulary and again.boundary == tokenizer.boundary
        for one, other in zip(tokenizer.encode(DOCUMENTS), again.encode(DOCUMENTS), strict=True):
            assert (one.ids == other.ids).all()


def test_a_file_of_a_tokenizer_is_read_and_its_vocabulary_known(bpe, tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(json.loads(bpe.saved())["tokenizer"]))
    assert size(str(path)) == bpe.vocabulary
    assert (named(str(path)).encode(DOCUMENTS)[0].ids == bpe.encode(DOCUMENTS)[0].ids).all()


def test_a_sentencepiece_model_is_read_and_its_lengths_add_up(spoken):
    tokenizer = named(str(spoken))
    again = loaded(tokenizer.saved())
    texts = [b"the cat and the dog", "café 漢".encode()]
    for document, encoded, other in zip(texts, tokenizer.encode(texts), again.encode(texts), strict=True):
        assert encoded.lengths.sum() == len(document)
        assert tokenizer.decode(encoded.ids) == document
        assert (encoded.ids == other.ids).all()


def test_a_character_that_several_tokens_share_counts_once():
    found = tokenizers._lengths("a漢b", [1, 2, 2, 2, 3])
    assert found.tolist() == [1, 3, 0, 0, 1]
    assert tokenizers._lengths("", []).tolist() == []
    assert tokenizers._lengths("ab  ", [1, 2]).tolist() == [1, 3]  # what a tokenizer leaves out at the end counts too


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("nothing.json", "nothing.json' is not there"),
        ("bpe-100", "at least 257 tokens"),
        ("no/such-name", "could not be fetched from the hub"),
    ],
)
def test_a_tokenizer_that_cannot_be_had_is_named(spec, says, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match=says):
        size(spec)


def test_a_tokenizer_without_a_token_to_begin_documents_with_is_refused(tmp_path):
    from tokenizers import Tokenizer, models

    path = tmp_path / "tokenizer.json"
    Tokenizer(models.WordLevel({"a": 0, "?": 1}, unk_token="?")).save(str(path))
    with pytest.raises(ValueError, match="has no token to begin documents with"):
        named(str(path))


def test_the_vocabularies_that_a_config_names_are_known_without_a_corpus():
    assert (size("bytes"), size("bpe-4096")) == (257, 4096)
    assert np.array_equal(Bytes().encode([b"\x00\xff"])[0].ids, [1, 256])
