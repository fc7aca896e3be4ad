"""Recall in text, made of plain words: associative recall, copying, selective copying, induction, trigrams. Prompts, no
training.

Sources: Arora et al. 2023, arXiv:2312.04927; Jelassi et al. 2024, arXiv:2402.01032; Gu & Dao 2023, arXiv:2312.00752;
Akyürek et al. 2024, arXiv:2401.12973, for what is read off in-context n-grams.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from workbench.config import nearest
from workbench.data.tokenizer import Tokenizer
from workbench.evaluate.tasks.item import Answer, Item, generator, roomy
from workbench.evaluate.tasks.words import NOUNS

KINDS = ("pairs", "copying", "selective-copying", "induction", "trigrams")
BLANKS = 3  # for each word that is to be copied selectively


@dataclass(frozen=True)
class Recall:
    """`size` pairs to look one up in, or words to copy, or words one of which is followed by what is asked for; or
    trigrams, the third word of which follows from the two before it and from neither alone.
    """

    kind: str = "pairs"
    size: int = 16
    count: int = 50

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"kind {self.kind!r}: {nearest(self.kind, KINDS)}")
        if not 2 <= self.size <= len(NOUNS) // 2:
            raise ValueError(f"size is {self.size}; give 2 to {len(NOUNS) // 2}, for words are distinct")
        if self.kind == "trigrams" and self.size < 3:
            raise ValueError(f"size is {self.size}; of trigrams give 3: one asked for, two that share a word with it")

    @property
    def name(self) -> str:
        return f"recall-{self.kind}-{self.size}"

    def __len__(self) -> int:
        return self.count

    def item(self, index: int, tokenizer: Tokenizer) -> Item:
        rng, n = generator(self.name, index), self.size
        words = [NOUNS[i] for i in rng.permutation(len(NOUNS)).tolist()]
        place = int(rng.integers(n - 1 if self.kind == "induction" else n))
        chance = 0.0
        if self.kind == "pairs":
            lines = [f"{key}: {value}" for key, value in zip(words[:n], words[n : 2 * n], strict=True)]
            prompt, answer, chance = "\n".join([*lines, f"{words[place]}:"]), words[n + place], 1 / n
        elif self.kind == "copying":
            prompt, answer = f"Words: {' '.join(words[:n])}\nThe same words again:", " ".join(words[:n])
        elif self.kind == "selective-copying":
            spots = set(rng.permutation(n * (1 + BLANKS))[:n].tolist())
            kept = iter(words[:n])
            text = " ".join(next(kept) if spot in spots else "..." for spot in range(n * (1 + BLANKS)))
            prompt, answer = f"Words: {text}\nThe same words without dots:", " ".join(words[:n])
        elif self.kind == "induction":
            prompt, answer, chance = f"{' '.join(words[:n])} {words[place]}", words[place + 1], 1 / n
        else:  # cells of a square of first and second words, two of which share a word with the one asked for
            side = math.isqrt(n - 1) + 1
            shared = [0, 1, side]
            others = [cell for cell in rng.permutation(side**2).tolist() if cell not in shared]
            cells = [*shared[1:], *others][: n - 1]
            cells.insert(place, 0)
            pairs = [f"{words[cell // side]} {words[side + cell % side]}" for cell in cells]
            thirds = words[2 * side : 2 * side + n]
            lines = [f"{pair} {third}" for pair, third in zip(pairs, thirds, strict=True)]
            prompt, answer, chance = "\n".join([*lines, pairs[place]]), thirds[place], 1 / n
        room = roomy(tokenizer, answer)
        facts = {"size": n, "depth": place / (n - 1)} if chance else {"size": n}
        return Item(prompt, (answer,), (f" {answer}",), ("\n",), room, chance, facts=facts)

    def score(self, item: Item, answer: Answer) -> dict[str, float]:
        """Exact match of the greedy answer; its words that are right, place by place; the answer's nats.

        After a word that is to be followed by another, the text may go on: its first word counts.
        """
        wanted, given = item.references[0].split(), answer.completion.split()
        given = given[:1] if self.kind in ("induction", "trigrams") else given
        return {
            "exact_match": float(given == wanted),
            "word_accuracy": sum(a == b for a, b in zip(wanted, given, strict=False)) / len(wanted),
            "log_probability": answer.log_probabilities[0],
        }
