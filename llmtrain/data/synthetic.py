"""Toy text for tests: made at once, from a small vocabulary, with something to learn in it.

Each adjective belongs to one noun, each verb too: "the quick fox jumps over a lazy dog ." A model that has learned it
predicts the noun and the verb; one that knows only how often words occur does not.

Labelled rows are about kinds of things. Which words occur tells the answer: the class is the kind of the first noun of
every sentence, the score says how many of them are animals, the right choice is the one about an animal.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from llmtrain.data import documents as docs, labelled
from llmtrain.data.base import Target
from llmtrain.data.documents import Documents
from llmtrain.data.labelled import Labelled
from llmtrain.errors import require

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset

DETERMINERS = ("the", "a", "my", "that")
ADJECTIVES = ("quick", "lazy", "old", "small", "green", "loud", "warm", "bright")
NOUNS = ("fox", "dog", "man", "bird", "tree", "bell", "coat", "star")
VERBS = ("jumps", "sleeps", "talks", "sings", "grows", "rings", "hangs", "shines")
KINDS = {"animal": ("fox", "dog", "bird"), "outdoors": ("tree", "star"), "thing": ("bell", "coat")}
PLACES = ("over", "under", "near", "behind")


@dataclass(frozen=True, kw_only=True)
class Synthetic(Documents):
    """Documents of made-up sentences.

    Attributes:
        documents: how many to make.
        words: of a document on average; each has between half and one and a half times as many, and ends its sentence.
        pairs: whether labelled rows are pairs of texts.
        seed: of the text; a whole number from 0 to 2**32 - 1.
    """

    documents: int
    words: int
    pairs: bool
    seed: int

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.documents >= 1, "documents", self.documents, "1 or more")
        require(self.words >= 1, "words", self.words, "1 or more")
        require(0 <= self.seed < 2**32, "seed", self.seed, "0 to 2**32 - 1")

    def source(self, name: str) -> Dataset | None:
        from llmtrain.data import store

        if name != "train":
            return None
        parts = {"documents": self.documents, "words": self.words, "seed": self.seed}
        return store.stored("synthetic", parts, lambda: docs.rows([self._documents()]), docs.features())

    def origin(self) -> str:
        return f"synthetic text (seed {self.seed})"

    def _documents(self) -> Generator[docs.Found, None, None]:
        from llmtrain.seeding import generator

        for number in range(self.documents):
            yield f"synthetic document {number}", [document(generator(self.seed, "synthetic", number), self.words)]

    def answers(self, target: Target) -> Labelled:
        from llmtrain.data import store

        parts = {"documents": self.documents, "words": self.words, "seed": self.seed, "pairs": self.pairs, "target": target.name}
        make = partial(labelled.rows, [self._rows(target)], target, self.pairs)
        rows = store.stored("synthetic-labelled", parts, make, labelled.features(target, self.pairs))
        return labelled.of(self, target, {"train": rows}, {"train": ["synthetic"]})

    def _rows(self, target: Target) -> Generator[labelled.Row, None, None]:
        from llmtrain.seeding import generator

        for number in range(self.documents):
            yield row(generator(self.seed, "synthetic", target.name, self.pairs, number), number, self.words, target, self.pairs)


def row(draw: np.random.Generator, number: int, words: int, target: Target, pairs: bool) -> labelled.Row:
    """One labelled row of about `words` words."""
    names = list(KINDS)
    kind = names[draw.integers(len(names))]
    animals = draw.random()  # the share of sentences about them, where a score is asked for
    nouns: list[str] = []

    def text(share: int, kind: str | None = kind) -> str:
        sentences: list[str] = []
        while sum(sentence.count(" ") + 1 for sentence in sentences) < max(1, words // share):
            nouns.append(str(draw.choice(KINDS[kind or ("animal" if draw.random() < animals else "thing")])))
            sentences.append(_sentence(draw, nouns[-1]))
        return " ".join(sentences)

    free = None if target is Target.score else kind
    texts = [text(2, free), text(2, free)] if pairs else [text(1, free)]
    answer: str | float = kind
    choices: list[str] = []
    if target is Target.score:
        answer = round(1 + 4 * sum(noun in KINDS["animal"] for noun in nouns) / len(nouns), 2)
    elif target is Target.choice:
        answer = int(draw.integers(2))
        choices = [_sentence(draw, str(draw.choice(KINDS["animal" if i == answer else "thing"]))) for i in range(2)]
    second = texts[1] if pairs else None
    return labelled.Row(where=f"synthetic row {number}", number=number, text=texts[0], second=second, choices=choices, answer=answer)


def document(draw: np.random.Generator, words: int) -> str:
    """One document of about `words` words."""
    wanted = draw.integers(max(1, words // 2), words + words // 2 + 1)
    sentences: list[str] = []
    while sum(sentence.count(" ") + 1 for sentence in sentences) < wanted:
        sentences.append(_sentence(draw))
    return " ".join(sentences)


def _sentence(draw: np.random.Generator, noun: str | None = None) -> str:
    """A sentence; about a noun, if one is given."""
    one, other = draw.integers(len(NOUNS), size=2)
    one = one if noun is None else NOUNS.index(noun)
    first, second = (DETERMINERS[i] for i in draw.integers(len(DETERMINERS), size=2))
    place = PLACES[draw.integers(len(PLACES))]
    return f"{first} {ADJECTIVES[one]} {NOUNS[one]} {VERBS[one]} {place} {second} {ADJECTIVES[other]} {NOUNS[other]} ."
