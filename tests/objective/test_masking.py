"""Masks: the shares that were asked for, never a special token, drawn anew each epoch, fixed for evaluation."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from datasets import Dataset

from llmtrain.config import build
from llmtrain.data.tokenizer import Vocabulary
from llmtrain.errors import ConfigError
from llmtrain.objective import masking
from llmtrain.objective.base import IGNORED
from llmtrain.objective.masking import Masking
from llmtrain.seeding import generator

# 50 tokens of which 5 are special, so that a random replacement that does not look hits one in ten times.
WORDS = Vocabulary(size=50, end=None, start=2, separator=3, mask=4, special=(0, 1, 2, 3, 4))


def masks(**settings: Any) -> Masking:
    given = {"probability": 0.15, "mask_share": 0.8, "random_share": 0.1, "keep_share": 0.1, "whole_word": False}
    return build({**given, **settings}, Masking, "objective")


def sequence(length: int, draw: np.random.Generator) -> np.ndarray:
    return masking.framed(draw.integers(5, 50, length - 2), WORDS)


def within_three_standard_errors(hits: int, trials: int, share: float) -> bool:
    return abs(hits / trials - share) <= 3 * math.sqrt(share * (1 - share) / trials)


@pytest.fixture(scope="module")
def million() -> dict[str, int]:
    """Counts over a million positions with text, in sequences of many lengths."""
    count = dict.fromkeys(("text", "asked", "masked", "random", "same", "special"), 0)
    draw, asked = generator(0, "text"), masks()
    for number in range(100_000):
        if count["text"] >= 1_000_000:
            break
        ids = sequence(int(draw.integers(30, 400)), draw)
        inputs, labels = asked.mask(ids, None, WORDS, generator(0, "mask", 0, number))
        at = labels != IGNORED
        count["text"] += len(ids) - 2
        count["asked"] += int(at.sum())
        count["masked"] += int((inputs[at] == WORDS.mask).sum())
        count["same"] += int((inputs[at] == ids[at]).sum())
        count["random"] += int(((inputs[at] != ids[at]) & (inputs[at] != WORDS.mask)).sum())
        count["special"] += int(WORDS.is_special(labels[at]).sum()) + int((WORDS.is_special(inputs[at]) & (inputs[at] != WORDS.mask)).sum())
        assert (inputs[~at] == ids[~at]).all()
        assert (labels[at] == ids[at]).all()
    return count


def test_fifteen_percent_of_a_million_positions_are_asked(million: dict[str, int]) -> None:
    assert million["text"] >= 1_000_000
    assert within_three_standard_errors(million["asked"], million["text"], 0.15)


def test_of_these_the_shares_are_80_10_10(million: dict[str, int]) -> None:
    assert within_three_standard_errors(million["masked"], million["asked"], 0.8)
    # One random replacement in 45 draws the token that stood there.
    assert within_three_standard_errors(million["random"], million["asked"], 0.1 * 44 / 45)
    assert within_three_standard_errors(million["same"], million["asked"], 0.1 + 0.1 / 45)


def test_no_special_token_is_asked_for_or_put_in(million: dict[str, int]) -> None:
    assert million["special"] == 0


def test_with_probability_1_everything_but_special_tokens_is_asked() -> None:
    ids = sequence(100, generator(0, "text"))
    ids[50] = WORDS.separator
    _, labels = masks(probability=1.0).mask(ids, None, WORDS, generator(0, "mask"))
    assert (labels != IGNORED).sum() == 97
    assert (labels[[0, 50, 99]] == IGNORED).all()


@pytest.mark.parametrize("length", [1, 2, 5])
def test_a_short_sequence_is_asked_for_one_token_at_least(length: int) -> None:
    ids = sequence(length + 2, generator(0, "text"))
    for number in range(100):
        _, labels = masks(probability=0.01).mask(ids, None, WORDS, generator(0, "mask", number))
        assert (labels != IGNORED).sum() == 1


def test_a_sequence_without_text_is_asked_for_nothing() -> None:
    inputs, labels = masks().mask(masking.framed([], WORDS), None, WORDS, generator(0, "mask"))
    assert (inputs.tolist(), labels.tolist()) == ([2, 3], [IGNORED, IGNORED])


def test_whole_words_are_asked_or_not_and_the_share_of_tokens_is_met() -> None:
    asked = tokens = 0
    for number in range(2000):
        draw = generator(1, "words", number)
        sizes = draw.integers(1, 5, 60)
        words = masking.framed_words(np.repeat(np.arange(60), sizes))
        ids = masking.framed(draw.integers(5, 50, int(sizes.sum())), WORDS)
        _, labels = masks(whole_word=True).mask(ids, words, WORDS, generator(0, "mask", number))
        at = labels != IGNORED
        for word in range(60):
            assert len(set(at[words == word].tolist())) == 1
        asked, tokens = asked + int(at.sum()), tokens + int(sizes.sum())
    # Whole words vary more than single tokens do: by the mean of the squared sizes over the mean size.
    assert abs(asked / tokens - 0.15) <= 3 * math.sqrt(0.15 * 0.85 / tokens * (30 / 4) / 2.5)


def test_words_are_numbered_by_where_the_number_changes() -> None:
    assert masking.renumbered([7, 7, 9, 0, 0, -1, 0]) == [0, 0, 1, 2, 2, 3, 4]
    assert masking.renumbered([]) == []


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"probability": 1.5}, "probability"),
        ({"probability": 0.0}, "probability"),
        ({"probability": -0.1}, "probability"),
        ({"probability": float("nan")}, "probability"),
        ({"mask_share": 0.7}, "mask_share"),
        ({"random_share": -0.1, "keep_share": 0.3}, "random_share"),
    ],
)
def test_probabilities_and_shares_out_of_range_are_refused(settings: dict[str, float], key: str) -> None:
    with pytest.raises(ConfigError, match=f"objective.{key}"):
        masks(**settings)


def test_one_by_one_hides_each_token_once_and_no_special_one() -> None:
    rows = Dataset.from_dict({"ids": [[10, 11, 12], [20, 0, 21, 22, 23]]})
    batches = list(masking.one_by_one(rows, lambda e: masking.Row(masking.framed(e["ids"], WORDS)), WORDS, None, 3))
    hidden = []
    for batch in batches:
        for inputs, labels in zip(batch.inputs["input_ids"], batch.labels["masked_lm"], strict=True):
            (at,) = (labels != IGNORED).nonzero()
            assert inputs[at] == WORDS.mask
            assert (inputs == WORDS.mask).sum() == 1
            hidden.append(int(labels[at]))
    assert sorted(hidden) == [10, 11, 12, 20, 21, 22, 23]
    assert sum(batch.counts["masked_lm"] for batch in batches) == 7


def test_one_by_one_takes_the_same_few_tokens_every_time() -> None:
    rows = Dataset.from_dict({"ids": [list(range(5, 50))] * 3})
    few = [
        [b.labels["masked_lm"].tolist() for b in masking.one_by_one(rows, lambda e: masking.Row(masking.framed(e["ids"], WORDS)), WORDS, 4, 2)]
        for _ in range(2)
    ]
    assert few[0] == few[1]
    assert sum(len(rows) for rows in few[0]) == 4


def test_the_entropy_is_that_of_the_very_targets() -> None:
    rows = Dataset.from_dict({"ids": [[10, 11], [12, 13]]})
    found = masking.target_entropy(rows, lambda e: masking.Row(np.array(e["ids"]), np.array(e["ids"])), WORDS)
    assert found == pytest.approx(math.log(4))
