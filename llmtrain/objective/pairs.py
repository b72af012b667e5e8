"""Pairs of segments, and whether they stand in order.

    swapped   A and B are consecutive, in order or exchanged: Lan et al. 2019 (ALBERT), section 3.1
    random    B follows A, or comes from another document: Devlin et al. 2018 (BERT), section 3.1, task 2

What must not tell the answer, and why it does not:

- the length. A run of sentences is split at one of two places that mirror each other (`shape.fair_splits`), so A is as
  long as B on average, in each run. A segment of another document takes the place of one of nearly its length: two runs
  of two documents are split so that their parts match, and their second parts are exchanged.
- the first word. A document's first sentences, which announce it, are never used.
- the document. Documents may share passages: a run of which two consecutive sentences also stand in a split that judges
  it is dropped (command/train.py), so no pair stands in two splits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from llmtrain.errors import require
from llmtrain.objective import masking

if TYPE_CHECKING:
    import numpy as np
    import torch
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from llmtrain.data.tokenizer import Vocabulary
    from llmtrain.objective.base import Draw

# Sentences at the beginning of a document that are never used: what announces it tells the order by its first word alone
# (measured on the standard library's documentation: 54 to 56 % with only the first one left out, 50 to 51 % with three).
OPENING = 3
# How far the two splits that mirror each other may be from doing so, and how far matching parts of two runs may differ
# in length, each as a share of a whole run.
MIRRORED, MATCHED = 0.1, 0.05
LOOK_BACK = 50  # runs that wait for one of their length


class Negatives(Enum):
    """What a pair that is not in order consists of."""

    swapped = "swapped"
    random = "random"


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """How pairs are made.

    Attributes:
        negatives: swapped or random.
        both_answers: train on each pair twice in its batch: in order, and with the same split not in order. As long as a model cannot
            tell the two apart, what they have in common leaves no gradient (antithetic variates: Hammersley and Morton 1956).
        language: ISO 639-1 code for the sentence splitter.
    """

    negatives: Negatives
    both_answers: bool
    language: str

    def __post_init__(self) -> None:
        require(self.language.isalpha() and 2 <= len(self.language) <= 3, "language", self.language, "an ISO 639 code: en, de, fr, …")
        if hasattr(super(), "__post_init__"):  # an objective's own checks, where this is a part of one
            super().__post_init__()  # type: ignore[misc]

    def pairs(self, rows: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int, words: bool) -> Dataset:
        """Runs of sentences to make pairs of. Each row has `length`, the input tokens of a pair made of this run alone.

        Columns: ids of the run, ends of its sentences in tokens, keys of each two consecutive sentences; with `words` the
        word of each token; for random negatives the same columns of a run of another document, named other_….
        """
        from llmtrain.data import store, tokenizer as tokens

        budget = max_length - 3  # [CLS] A [SEP] B [SEP]
        if self.negatives is Negatives.random:
            budget -= round(MATCHED * budget)  # room for a second part that is a little longer
        about = {"rows": store.fingerprint(rows), "tokenizer": tokens.fingerprint(tokenizer), "budget": budget, "language": self.language, "words": words}
        swapped = self.negatives is Negatives.swapped
        about["fair"] = swapped
        found = store.stored("sentence_runs", about, lambda: _runs(rows, tokenizer, budget, self.language, words, swapped), _features(words))
        if swapped:
            return found
        about = {"runs": store.fingerprint(found), "facts": store.facts(found)}
        return store.stored("sentence_pairs", about, lambda: _matched(found), _features(words, other=True))

    def draw(self, example: dict[str, Any], draw: np.random.Generator) -> Pair:
        """Segments A and B of a row, and whether they are in order: 0, or 1 where not."""
        return self._both(example, draw)[0]

    def asked(self, example: dict[str, Any], draw: Draw) -> tuple[Pair, ...]:
        """The pairs of a row in a batch: one in evaluation, `sequences` in training."""
        from llmtrain.seeding import generator

        both = self._both(example, generator(draw.seed, "pair", draw.epoch, int(example["sample"])))
        return both[: 1 if draw.epoch == "eval" else self.sequences]

    @property
    def sequences(self) -> int:
        """How many sequences training makes of a row."""
        return 2 if self.both_answers else 1

    def _both(self, example: dict[str, Any], draw: np.random.Generator) -> tuple[Pair, Pair]:
        both = (_swapped if self.negatives is Negatives.swapped else _random)(example, draw)
        label = int(draw.integers(2))
        return both[label], both[1 - label]

    def left_out(self, examples: Dataset) -> list[str]:
        """How much of the data makes no pair, and why."""
        from llmtrain.data import store

        facts = store.facts(examples)
        texts = {
            "short": "{:,} of {:,} documents are too short for a pair of segments and are skipped",
            "uneven": "{:,} of {:,} runs of sentences cannot be split without lengths that tell the order, and are skipped",
            "repeated": "{:,} of {:,} runs of sentences are equal to another and are skipped",
            "alone": "{:,} of {:,} runs of sentences match none of another document in length, and are skipped",
        }
        return [text.format(facts[name], facts["documents" if name == "short" else "runs"]) for name, text in texts.items() if facts.get(name)]


class Pair(NamedTuple):
    """Two segments as slices of a row's columns: (other?, from, to), and the label."""

    first: tuple[bool, int, int]
    second: tuple[bool, int, int]
    label: int

    def take(self, example: dict[str, Any], column: str) -> tuple[np.ndarray, np.ndarray]:
        """The two segments' part of `ids` or `words`."""
        a, b = (example[f"other_{column}" if other else column][start:stop] for other, start, stop in (self.first, self.second))
        return a, b


def arranged(example: dict[str, Any], pair: Pair, vocabulary: Vocabulary) -> tuple[np.ndarray, np.ndarray]:
    """[CLS] A [SEP] B [SEP] and its segment ids, 0 up to the first [SEP] and 1 after it."""
    import numpy as np

    a, b = pair.take(example, "ids")
    start, end = [vocabulary.start], [vocabulary.separator]
    types = np.zeros(len(a) + len(b) + 3, dtype=np.int64)
    types[len(a) + 2 :] = 1
    return np.concatenate([start, a, end, b, end]).astype(np.int64), types


def arranged_words(example: dict[str, Any], pair: Pair) -> np.ndarray:
    """Word numbers of [CLS] A [SEP] B [SEP]; the special tokens are in no word, and no word is in both segments."""
    import numpy as np

    a, b = pair.take(example, "words")
    behind = int(a.max(initial=-1)) + 1 - int(b.min(initial=0))
    return np.concatenate([[-1], a, [-1], b + behind, [-1]]).astype(np.int64)


# --- judging ------------------------------------------------------------------------------------------------------


def loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The sum of cross entropies of logits (B, 2), a scalar in fp32."""
    from torch.nn import functional as F

    return F.cross_entropy(logits.float(), labels, reduction="sum")


def scores(logits: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
    """The loss, and how many pairs were judged right."""
    return {"sentence_order": loss(logits, labels), "sentence_order_correct": (logits.argmax(-1) == labels).sum()}


def majority(examples: Dataset, label: Callable[[dict[str, Any]], int]) -> float:
    """The share of the more frequent label."""
    found = Counter(label(example) for example in masking.each(examples))
    return max(found.values(), default=0) / max(found.total(), 1)


# --- drawing ------------------------------------------------------------------------------------------------------


def _swapped(example: dict[str, Any], draw: np.random.Generator) -> tuple[Pair, Pair]:
    """A row split somewhere, in order and not in order."""
    from llmtrain.data import shape

    ends = example["ends"]
    fair = shape.fair_splits(ends, MIRRORED)
    split = int(ends[fair[draw.integers(len(fair)), draw.integers(2)]])
    first, second = (False, 0, split), (False, split, int(ends[-1]))
    return Pair(first, second, 0), Pair(second, first, 1)


def _random(example: dict[str, Any], draw: np.random.Generator) -> tuple[Pair, Pair]:
    ends, others = example["ends"], example["other_ends"]
    fair = matches(ends, others)
    a, b = fair[draw.integers(len(fair))]
    first = (False, 0, int(ends[a]))
    return Pair(first, (False, int(ends[a]), int(ends[-1])), 0), Pair(first, (True, int(others[b]), int(others[-1])), 1)


def matches(ends: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Where to split two runs so that their first and their second parts are nearly as long: (matches, 2) indices."""
    import numpy as np

    first = np.abs(ends[:-1, None] - others[None, :-1])
    second = np.abs((ends[-1] - ends[:-1])[:, None] - (others[-1] - others[:-1])[None, :])
    return np.argwhere(np.maximum(first, second) <= MATCHED * min(int(ends[-1]), int(others[-1])))


# --- making -------------------------------------------------------------------------------------------------------


def _runs(
    rows: Dataset, tokenizer: PreTrainedTokenizerBase, budget: int, language: str, words: bool, fair: bool
) -> Generator[dict[str, Any], None, dict[str, int]]:
    """Runs of consecutive sentences of each document, its opening left out; returns what was skipped.

    Args:
        fair: leave out runs that no pair of splits halves fairly.
    """
    import numpy as np

    from llmtrain.data import documents as docs, shape
    from llmtrain.data.sentences import sentences

    count: Counter[str] = Counter(documents=0, short=0, runs=0, uneven=0, repeated=0)
    seen: set[int] = set()
    for text in _whole(rows):
        found = _encoded(tokenizer, sentences(text, language)[OPENING:], words)
        names = [docs.key(" ".join(map(str, ids))) for ids, _ in found]
        before = count["runs"]
        for first, stop in shape.runs([len(ids) for ids, _ in found], budget):
            count["runs"] += 1
            ends = np.cumsum([len(ids) for ids, _ in found[first:stop]])
            keys = [docs.key(f"{a} {b}") for a, b in pairwise(names[first:stop])]
            if fair and not len(shape.fair_splits(ends, MIRRORED)):
                count["uneven"] += 1
            elif (whole := docs.key(" ".join(map(str, keys)))) in seen:
                count["repeated"] += 1
            else:
                seen.add(whole)
                ids = [i for sentence, _ in found[first:stop] for i in sentence]
                row = {"document": count["documents"], "ids": ids, "ends": ends.tolist(), "keys": keys, "length": len(ids) + 3}
                yield {**row, "words": _joined([w for _, w in found[first:stop]])} if words else row
        count["documents"] += 1
        count["short"] += count["runs"] == before
    return dict(count)


def _whole(rows: Dataset) -> Iterator[str]:
    """The text of each document, its parts put together again where rows say what they are parts of.

    A first part is the one whose key is the document's: of two equal documents in a row, each begins anew.
    """
    held: list[str] = []
    for batch in rows.iter(100):
        for text, document, key in zip(batch["text"], *(batch.get(name, [0] * len(batch["text"])) for name in ("document", "key")), strict=True):
            if held and document == key:
                yield "".join(held)
                held = []
            held.append(text)
    if held:
        yield "".join(held)


def _encoded(tokenizer: PreTrainedTokenizerBase, texts: list[str], words: bool) -> list[tuple[list[int], list[int]]]:
    """(ids, words) of each sentence that has a token."""
    from llmtrain.data import tokenizer as tokens

    found = tokens.encode_words(tokenizer, texts) if words else [(ids, []) for ids in tokens.encode(tokenizer, texts)]
    return [(ids, w) for ids, w in found if ids]


def _joined(words: list[list[int]]) -> list[int]:
    """Word numbers of sentences put together: no word is in two of them."""
    joined: list[int] = []
    for sentence in words:
        behind = joined[-1] + 1 if joined else 0
        joined += [behind + w for w in sentence]
    return joined


def _matched(runs: Dataset) -> Generator[dict[str, Any], None, dict[str, Any]]:
    """Each run with one of another document that can be split like it; both ways round, so that none is favoured."""
    import numpy as np

    from llmtrain.data import store
    from llmtrain.seeding import generator

    lengths, documents = np.asarray(runs["length"]), np.asarray(runs["document"])
    ends = [np.asarray(e) for e in runs["ends"]]
    shuffled = generator(0, "partners").permutation(len(runs))
    partners: dict[int, int] = {}
    waiting: list[int] = []
    for i in map(int, shuffled[np.argsort(lengths[shuffled], kind="stable")]):  # neighbours are about as long
        partner = next((j for j in waiting if documents[j] != documents[i] and len(matches(ends[i], ends[j]))), None)
        if partner is None:
            waiting = [*waiting, i][-LOOK_BACK:]
            continue
        waiting.remove(partner)
        partners |= {i: partner, partner: i}
    columns = [c for c in runs.column_names if c not in ("document", "length")]
    for i in sorted(partners):  # in the order of the documents: the first rows are no particular ones
        yield {**runs[i], **{f"other_{c}": value for c, value in runs[partners[i]].items() if c in columns}}
    return {**store.facts(runs), "alone": len(runs) - len(partners)}


def _features(words: bool, other: bool = False) -> Any:
    from datasets import Features, List, Value

    run = {"ids": List(Value("int32")), "ends": List(Value("int32")), "keys": List(Value("int64")), **({"words": List(Value("int32"))} if words else {})}
    second = {f"other_{name}": kind for name, kind in run.items()} if other else {}
    return Features({"document": Value("int32"), **run, "length": Value("int32"), **second})
