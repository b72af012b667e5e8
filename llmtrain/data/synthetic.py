"""Toy text for tests: made at once, from a small vocabulary, with something to learn in it.

Each adjective belongs to one noun, each verb too: "the quick fox jumps over a lazy dog ." A model that has learned it
predicts the noun and the verb; one that knows only how often words occur does not.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmtrain.data import documents as docs
from llmtrain.data.documents import Documents
from llmtrain.errors import require

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset

DETERMINERS = ("the", "a", "my", "that")
ADJECTIVES = ("quick", "lazy", "old", "small", "green", "loud", "warm", "bright")
NOUNS = ("fox", "dog", "man", "bird", "tree", "bell", "coat", "star")
VERBS = ("jumps", "sleeps", "talks", "sings", "grows", "rings", "hangs", "shines")
PLACES = ("over", "under", "near", "behind")


@dataclass(frozen=True, kw_only=True)
class Synthetic(Documents):
    """Documents of made-up sentences.

    Attributes:
        documents: how many to make.
        words: of a document on average; each has between half and one and a half times as many, and ends its sentence.
        seed: of the text; a whole number from 0 to 2**32 - 1.
    """

    documents: int
    words: int
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


def document(draw: np.random.Generator, words: int) -> str:
    """One document of about `words` words."""
    wanted = draw.integers(max(1, words // 2), words + words // 2 + 1)
    sentences: list[str] = []
    while sum(sentence.count(" ") + 1 for sentence in sentences) < wanted:
        sentences.append(_sentence(draw))
    return " ".join(sentences)


def _sentence(draw: np.random.Generator) -> str:
    one, other = draw.integers(len(NOUNS), size=2)
    first, second = (DETERMINERS[i] for i in draw.integers(len(DETERMINERS), size=2))
    place = PLACES[draw.integers(len(PLACES))]
    return f"{first} {ADJECTIVES[one]} {NOUNS[one]} {VERBS[one]} {place} {second} {ADJECTIVES[other]} {NOUNS[other]} ."
