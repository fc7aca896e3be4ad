"""Tokenizers: bytes, BPE trained on the corpus, any tokenizer.json or SentencePiece model, or a name on the hub.

A document is a boundary token and then its tokens. Every token knows how many of the document's bytes it stands for,
so that losses of any tokenizer are compared in bits per byte.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

BYTES, BPE = "bytes", re.compile(r"bpe-(\d+)")
BOUNDARY = "<|boundary|>"  # of a BPE that is trained here
BOUNDARIES = (BOUNDARY, "<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|eot_id|>", "<|im_end|>")
LEAST = 257  # of a BPE: the boundary and the bytes


class Encoded(NamedTuple):
    ids: np.ndarray  # int64, without the boundary
    lengths: np.ndarray  # int64, of each token in bytes of the document; they add up to the document's


@runtime_checkable
class Tokenizer(Protocol):
    vocabulary: int
    boundary: int  # what a document begins with
    ends: tuple[int, ...]  # what a model may write where a document ends: the boundary, and others that mean it

    def encode(self, documents: Sequence[bytes]) -> list[Encoded]: ...

    def decode(self, ids: Sequence[int] | np.ndarray) -> bytes: ...

    def saved(self) -> bytes:
        """What `loaded` makes it from again, anywhere."""
        ...


class Bytes:
    """Byte b is token b + 1; 0 is the boundary."""

    vocabulary, boundary, ends = 257, 0, (0,)

    def encode(self, documents: Sequence[bytes]) -> list[Encoded]:
        ids = [np.frombuffer(document, np.uint8).astype(np.int64) + 1 for document in documents]
        return [Encoded(each, np.ones_like(each)) for each in ids]

    def decode(self, ids: Sequence[int] | np.ndarray) -> bytes:
        kept = np.asarray(ids, np.int64)
        return (kept[kept > 0] - 1).astype(np.uint8).tobytes()

    def saved(self) -> bytes:
        return json.dumps({"kind": BYTES}).encode()


class Json:
    """A tokenizer.json of Hugging Face's tokenizers, special tokens in a text read as the text that they are.

    boundary: the token that documents begin with, where its model's source names one; else the first of BOUNDARIES.
    """

    def __init__(self, text: str, name: str, boundary: str | None = None):
        from tokenizers import Tokenizer as Fast

        self.fast = Fast.from_str(text)
        self.fast.encode_special_tokens = True
        self.fast.no_truncation()
        self.fast.no_padding()
        self.vocabulary = max(self.fast.get_vocab(with_added_tokens=True).values()) + 1
        self.told = boundary
        found = (self.fast.token_to_id(token) for token in ((boundary,) if boundary else BOUNDARIES))
        self.boundary = next((token for token in found if token is not None), None)
        if self.boundary is None:
            wanted = repr(boundary) if boundary else f"none of {', '.join(BOUNDARIES)}"
            raise ValueError(f"{name} has no token to begin documents with ({wanted}); add one")
        known = (self.fast.token_to_id(token) for token in BOUNDARIES)
        self.ends = tuple(sorted({self.boundary, *(token for token in known if token is not None)}))

    def encode(self, documents: Sequence[bytes]) -> list[Encoded]:
        texts = [document.decode() for document in documents]
        found = self.fast.encode_batch(texts, add_special_tokens=False)
        return [
            Encoded(np.array(each.ids, np.int64), _lengths(text, [end for _, end in each.offsets]))
            for text, each in zip(texts, found, strict=True)
        ]

    def decode(self, ids: Sequence[int] | np.ndarray) -> bytes:
        kept = [int(token) for token in ids if token != self.boundary]
        return self.fast.decode(kept, skip_special_tokens=False).encode()

    def saved(self) -> bytes:
        told = {"boundary": self.told} if self.told else {}
        return json.dumps({"kind": "json", "tokenizer": json.loads(self.fast.to_str()), **told}).encode()


class SentencePiece:
    """A SentencePiece model (needs the package sentencepiece, 0.2.3 or later)."""

    def __init__(self, model: bytes, name: str):
        from sentencepiece import SentencePieceProcessor

        self.model = model
        self.pieces = SentencePieceProcessor(model_proto=model)
        self.vocabulary = self.pieces.vocab_size()
        self.boundary = next((i for i in (self.pieces.eos_id(), self.pieces.bos_id()) if i >= 0), None)
        if self.boundary is None:
            raise ValueError(f"{name} has neither an end nor a beginning of sentence to begin documents with")
        self.ends = (self.boundary,)

    def encode(self, documents: Sequence[bytes]) -> list[Encoded]:
        out = []
        for document in documents:
            text = document.decode()
            found = self.pieces.encode_as_offset_mapping(text)
            lengths = _lengths(text, [end for _, end in found["offsets"]])
            out.append(Encoded(np.array(found["ids"], np.int64), lengths))
        return out

    def decode(self, ids: Sequence[int] | np.ndarray) -> bytes:
        return self.pieces.decode([int(token) for token in ids if token != self.boundary]).encode()

    def saved(self) -> bytes:
        return json.dumps({"kind": "sentencepiece", "model": self.model.hex()}).encode()


def _lengths(text: str, ends: Sequence[int]) -> np.ndarray:
    """Bytes that each token adds to what those before it cover, from where tokens end (in characters).

    One token of a character that several share has all its bytes; the last token has what is left over.
    """
    at = np.maximum.accumulate(np.asarray(ends, np.int64)) if len(ends) else np.zeros(0, np.int64)
    if at.size:
        at[-1] = len(text)
    if text.isascii():
        return np.diff(at, prepend=0)
    points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    widths = 1 + (points > 0x7F) + (points > 0x7FF) + (points > 0xFFFF)
    return np.diff(np.concatenate([[0], np.cumsum(widths)])[at], prepend=0)


@functools.lru_cache(maxsize=8)
def named(spec: str) -> Tokenizer:
    """The tokenizer that a config names: "bytes", the path of a tokenizer.json (a run's own too) or .model, or a name
    on the hub.

    Raises ValueError for "bpe-N", which is trained on a corpus and kept with it, and for what cannot be read.
    """
    if spec == BYTES:
        return Bytes()
    if BPE.fullmatch(spec):
        raise ValueError(f"tokenizer {spec!r} is trained on the corpus; it is kept beside the prepared data")
    path = Path(spec)
    if path.suffix == ".model" or path.suffix == ".json" or path.exists():
        if not path.is_file():
            raise ValueError(
                f"tokenizer {spec!r} is not there; give a tokenizer.json, a SentencePiece .model or bpe-4096"
            )
        if path.suffix == ".model":
            return SentencePiece(path.read_bytes(), spec)
        text = path.read_text()
        return loaded(text.encode()) if _is_saved(text) else Json(text, spec)
    from tokenizers import Tokenizer as Fast

    try:
        return Json(Fast.from_pretrained(spec).to_str(), spec)
    except Exception as error:  # whatever the hub's client raises: no network, no such name, no permission
        raise ValueError(
            f"tokenizer {spec!r} could not be fetched from the hub ({str(error).splitlines()[0][:200]}); "
            'give "bytes", "bpe-4096", or the path of a tokenizer.json or .model'
        ) from error


def size(spec: str) -> int:
    """The vocabulary of the tokenizer that a config names."""
    if spec == BYTES:
        return Bytes.vocabulary
    trained = BPE.fullmatch(spec)
    if trained and int(trained[1]) < LEAST:
        raise ValueError(f"tokenizer {spec!r}: a byte-level BPE has at least {LEAST} tokens")
    return int(trained[1]) if trained else named(spec).vocabulary


def _is_saved(text: str) -> bool:
    """Whether it is what `saved` gave, and not a tokenizer.json of Hugging Face's."""
    try:
        return isinstance(value := json.loads(text), dict) and "kind" in value and "added_tokens" not in value
    except ValueError:
        return False


def loaded(saved: bytes) -> Tokenizer:
    """What `saved` gave."""
    value = json.loads(saved)
    if value["kind"] == BYTES:
        return Bytes()
    if value["kind"] == "sentencepiece":
        return SentencePiece(bytes.fromhex(value["model"]), "the saved model")
    return Json(json.dumps(value["tokenizer"]), "the saved tokenizer", value.get("boundary"))


def checksum(tokenizer: Tokenizer) -> str:
    return sha256(tokenizer.saved()).hexdigest()


def train(documents: Iterator[bytes], vocabulary: int) -> Tokenizer:
    """A byte-level BPE: digits stand alone, every byte is a token, so that any text is encoded and comes back."""
    from tokenizers import Tokenizer as Fast
    from tokenizers import decoders, models, pre_tokenizers, trainers

    fast = Fast(models.BPE())
    fast.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    fast.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[BOUNDARY],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    fast.train_from_iterator((document.decode() for document in documents), trainer)
    return Json(fast.to_str(), f"bpe-{vocabulary}")
