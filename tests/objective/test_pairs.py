"""Pairs leave no shortcut: neither the first words nor the lengths of two segments tell whether they are in order.

Logistic regressions on these features are trained on two thirds of the documents and tested on the rest, three times, so
that each document is held out once. On pairs made without the precautions the same regressions find the answer.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pytest
from datasets import Dataset, concatenate_datasets
from scipy import sparse
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures, StandardScaler
from transformers import PreTrainedTokenizerBase

from llmtrain.config import build, compose
from llmtrain.data import shape, tokenizer as tokens
from llmtrain.data.base import Data
from llmtrain.data.pydocs import _stdlib, modules
from llmtrain.data.sentences import sentences
from llmtrain.objective import masking, pairs
from llmtrain.objective.pairs import Negatives, Pairs
from llmtrain.seeding import generator

LENGTH = 128
BUDGET = LENGTH - 3


class Seen(NamedTuple):
    """What a baseline sees of many pairs: first tokens (n, 2), lengths (n, 2), labels (n,)."""

    first: np.ndarray
    lengths: np.ndarray
    labels: np.ndarray


def seen(made: Iterator[tuple[Any, Any, int]]) -> Seen:
    found = list(made)
    return Seen(
        np.array([(a[0], b[0]) for a, b, _ in found]), np.array([(len(a), len(b)) for a, b, _ in found], dtype=float), np.array([label for *_, label in found])
    )


def by_first_token(train: Seen, test: Seen) -> float:
    """Accuracy, in percent, of a logistic regression on the first token of each segment."""
    size = int(max(train.first.max(), test.first.max())) + 1

    def one_hot(first: np.ndarray) -> Any:
        columns = np.concatenate([first[:, 0], first[:, 1] + size])
        return sparse.csr_matrix((np.ones(len(columns)), (np.tile(np.arange(len(first)), 2), columns)), shape=(len(first), 2 * size))

    return 100 * float(LogisticRegression(max_iter=1000).fit(one_hot(train.first), train.labels).score(one_hot(test.first), test.labels))


def by_lengths(train: Seen, test: Seen) -> float:
    """The same on the two lengths, their squares and their product."""
    model = make_pipeline(PolynomialFeatures(2), StandardScaler(), LogisticRegression(max_iter=1000))
    return 100 * float(model.fit(train.lengths, train.labels).score(test.lengths, test.labels))


def allowed(number: int) -> float:
    """How far from 50 % is chance for so many pairs: 2 points or 2 standard errors, whichever is larger."""
    return max(2.0, 2 * 50 / float(np.sqrt(number)))


@cache
def texts() -> Dataset:
    """The documents of the standard library but for a few that are the test's."""
    config = compose("pretrain", ["data.validation_fraction=0.3", "data.test_fraction=0.01"]).config
    data = build(config.data, Data, "data")
    return concatenate_datasets([data.split("train"), data.split("validation")])


@cache
def tokenizer() -> PreTrainedTokenizerBase:
    return tokens.train("wordpiece", texts(), 4096, lambda text: None)


@cache
def made(negatives: Negatives, length: int, fold: int, held_out: bool) -> Dataset:
    """Pairs of the documents of a fold, or of the other two."""
    folds = generator(0, "folds").integers(0, 3, len(texts()))
    rows = texts().select(np.flatnonzero((folds == fold) == held_out))
    return Pairs(negatives=negatives, both_answers=False, language="en").pairs(rows, tokenizer(), length, words=False)


def drawn(negatives: Negatives, length: int, fold: int, held_out: bool) -> Seen:
    examples = made(negatives, length, fold, held_out)
    asked = Pairs(negatives=negatives, both_answers=False, language="en")

    def each() -> Iterator[tuple[Any, Any, int]]:
        for epoch in range(1 if held_out else 3):
            for number, example in enumerate(masking.each(examples)):
                pair = asked.draw(example, generator(0, "pair", held_out, fold, epoch, number))
                yield *pair.take(example, "ids"), pair.label

    return seen(each())


def cross_validated(baseline: Callable[[Seen, Seen], float], negatives: Negatives, length: int) -> tuple[float, int]:
    """Accuracy in percent over all held-out pairs, and how many there are."""
    found = [(drawn(negatives, length, fold, False), drawn(negatives, length, fold, True)) for fold in range(3)]
    sizes = [len(test.labels) for _, test in found]
    return sum(baseline(train, test) * size for (train, test), size in zip(found, sizes, strict=True)) / sum(sizes), sum(sizes)


# What each kind of negatives would give away without precautions is in the ordinary run.
BLIND = [
    (Negatives.swapped, by_first_token),
    (Negatives.swapped, by_lengths),
    (Negatives.random, by_lengths),
    pytest.param(Negatives.random, by_first_token, marks=pytest.mark.long),
]


@pytest.mark.parametrize(("negatives", "baseline"), BLIND)
@pytest.mark.parametrize("length", [128, pytest.param(256, marks=pytest.mark.long), pytest.param(512, marks=pytest.mark.long)])
def test_a_baseline_without_the_text_stays_at_chance(negatives: Negatives, length: int, baseline: Callable[[Seen, Seen], float]) -> None:
    accuracy, number = cross_validated(baseline, negatives, length)
    assert number > 1000
    assert abs(accuracy - 50) <= allowed(number)


# --- the same without the precautions -----------------------------------------------------------------------------


def docstrings() -> list[list[list[int]]]:
    """Every docstring of the standard library as a document of its own: its sentences' ids, the first one included."""
    found = []
    for _, path in modules(_stdlib()):
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):
            continue
        nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)]
        found += [text for node in nodes if (text := ast.get_docstring(node))]
    return [encoded(text) for text in found]


def encoded(text: str) -> list[list[int]]:
    return [ids for ids in tokens.encode(tokenizer(), sentences(text, "en")) if ids]


def flat(sentences: list[list[int]]) -> list[int]:
    return [i for ids in sentences for i in ids]


def halves(documents: list[list[list[int]]]) -> Iterator[tuple[list[int], list[int], int]]:
    """Segments as one would make them at first: the first fills half of what there is room for, the second the rest."""
    draw = generator(0, "naive")
    for found in documents:
        for first, stop in shape.runs([len(ids) for ids in found], BUDGET):
            split = next((i for i in range(first + 1, stop) if sum(map(len, found[first:i])) >= BUDGET // 2), stop - 1)
            segments = [flat(found[first:split]), flat(found[split:stop])]
            label = int(draw.integers(2))
            yield segments[label], segments[1 - label], label


def bert_random(documents: list[list[list[int]]]) -> Iterator[tuple[list[int], list[int], int]]:
    """Devlin's recipe: the second segment of another document is filled up to the room that is left."""
    draw = generator(0, "naive")
    for number, found in enumerate(documents):
        for first, stop in shape.runs([len(ids) for ids in found], BUDGET):
            split = int(draw.integers(first + 1, stop))
            a, label = flat(found[first:split]), int(draw.integers(2))
            if label == 0:
                yield a, flat(found[split:stop]), 0
                continue
            other = documents[(number + int(draw.integers(1, len(documents)))) % len(documents)]
            b: list[int] = []
            for ids in other[int(draw.integers(len(other))) :]:
                b += ids
                if len(a) + len(b) >= BUDGET:
                    break
            if b:
                yield a, b[: BUDGET - len(a)] or b[:1], 1


def halved(documents: list[list[list[int]]], how: Callable[[Any], Iterator[tuple[Any, Any, int]]]) -> tuple[Seen, Seen]:
    """Pairs of two thirds of the documents, and of the rest."""
    cut = len(documents) * 2 // 3
    shuffled = [documents[i] for i in generator(0, "documents").permutation(len(documents))]
    return seen(how(shuffled[:cut])), seen(how(shuffled[cut:]))


def test_with_docstrings_as_documents_the_first_token_tells_the_order() -> None:
    train, test = halved(docstrings(), halves)
    assert by_first_token(train, test) > 50 + 4 * allowed(len(test.labels))


def files() -> list[list[list[int]]]:
    return [found for text in texts()["text"] if len(found := encoded(text)) > 1]


def test_with_a_fixed_split_the_lengths_tell_the_order() -> None:
    train, test = halved(files(), halves)
    assert by_lengths(train, test) > 50 + 2 * allowed(len(test.labels))


def test_with_bert_s_own_recipe_the_lengths_tell_a_random_segment() -> None:
    train, test = halved(files(), bert_random)
    assert by_lengths(train, test) > 50 + 2 * allowed(len(test.labels))


# --- how they are made --------------------------------------------------------------------------------------------


def test_the_opening_of_a_document_is_never_used() -> None:
    made_up = [" ".join(f"Sentence number {i} of document {d} is here." for i in range(30)) for d in range(5)]
    found = Pairs(negatives=Negatives.swapped, both_answers=False, language="en").pairs(Dataset.from_dict({"text": made_up}), tokenizer(), 100, words=False)
    text = " ".join(tokenizer().decode(row["ids"]) for row in found)
    for opening in range(pairs.OPENING):
        assert f"sentence number {opening} of" not in text
    assert f"sentence number {pairs.OPENING} of" in text


def test_mirrored_splits_exchange_the_lengths() -> None:
    ends = np.array([10, 25, 40, 70, 100])
    found = shape.fair_splits(ends, 0.1)
    assert {tuple(pair) for pair in found.tolist()} == {(1, 3), (2, 3)}  # 25 + 70 and 40 + 70 of 100 tokens
    assert len(shape.fair_splits(np.array([90, 100]), 0.1)) == 0


def test_matching_runs_are_partners_both_ways_round_and_of_two_documents() -> None:
    rows = list(made(Negatives.random, 128, 0, False))
    partners = {(tuple(row["keys"]), tuple(row["other_keys"])) for row in rows}
    assert len(rows) > 500
    assert all((b, a) in partners for a, b in partners)
    by_key = {tuple(row["keys"]): row["document"] for row in rows}
    assert all(by_key[a] != by_key[b] for a, b in partners)


def test_what_makes_no_pair_is_counted() -> None:
    found = Pairs(negatives=Negatives.swapped, both_answers=False, language="en").left_out(made(Negatives.swapped, 128, 0, False))
    assert len(found) >= 2
    assert all("are skipped" in line or "are too short" in line for line in found)


def test_words_of_two_segments_are_never_one_word() -> None:
    example = {"words": np.array([0, 0, 1, 2, 2, 3]), "ids": np.arange(6)}
    for first, second in (((False, 0, 3), (False, 3, 6)), ((False, 3, 6), (False, 0, 3))):
        found = pairs.arranged_words(example, pairs.Pair(first, second, 0)).tolist()
        assert (found[0], found[4], found[8]) == (-1, -1, -1)
        assert not {*found[1:4]} & {*found[5:8]}


def test_runs_that_share_two_consecutive_sentences_share_a_key() -> None:
    common = ["This stands in both of them.", "And this follows it in both."]
    filling = [[f"Sentence {i} of text {d} is alone." for i in range(8)] for d in range(2)]
    texts_ = [" ".join([*lines[:5], *common, *lines[5:]]) for lines in filling]
    found = Pairs(negatives=Negatives.swapped, both_answers=False, language="en").pairs(Dataset.from_dict({"text": texts_}), tokenizer(), 128, words=False)
    first, second = (set(row["keys"]) for row in found)
    assert len(first & second) == 1


def test_the_parts_of_a_long_document_are_one_document() -> None:
    """Else a random segment could be of the same document, and each part would lose an opening."""
    lines = [" ".join(f"Sentence {i} of document {d} is here." for i in range(40)) for d in range(3)]
    parts = [part for line in lines for part in (line[:700], line[700:])]
    rows = Dataset.from_dict({"text": parts, "document": [d for d in range(3) for _ in range(2)], "key": [0, 10, 1, 11, 2, 12]})
    found = Pairs(negatives=Negatives.random, both_answers=False, language="en").pairs(rows, tokenizer(), 128, words=False)
    assert len(found)
    whole = Pairs(negatives=Negatives.random, both_answers=False, language="en").pairs(Dataset.from_dict({"text": lines}), tokenizer(), 128, words=False)
    assert [row["ids"] for row in found] == [row["ids"] for row in whole]
    for row in found:
        own, other = (tokenizer().decode(row[name]).split("document ")[1][0] for name in ("ids", "other_ids"))
        assert own != other


def test_two_equal_documents_in_a_row_are_not_one() -> None:
    """The end of the first and the beginning of the second do not follow each other."""
    text = " ".join(f"Sentence {i} is here." for i in range(12))
    rows = Dataset.from_dict({"text": [text, text], "document": [5, 5], "key": [5, 5]})
    assert list(pairs._whole(rows)) == [text, text]
