"""Labelled texts as sequences: framing, cutting, what is said about it, and batches of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, List, Value
from transformers import PreTrainedTokenizerBase

from llmtrain.data import loader, tokenizer as tokens
from llmtrain.data.base import Target
from llmtrain.objective import tasks
from llmtrain.objective.base import IGNORED
from tests.conftest import without_float64

TEXTS = ["the fox runs over the field", "a dog", "", "seven birds sing in the old tree by the river"]
SECONDS = ["it is fast", "a dog sleeps in the sun all day long", "nothing before it", ""]


@pytest.fixture(scope="module", params=["wordpiece", "bpe"])
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerBase:
    return tokens.train(request.param, Dataset.from_dict({"text": TEXTS + SECONDS}), 280, lambda text: None)


def labelled(names: list[str] | None = None, **columns: list[Any]) -> Dataset:
    names = names or ["no", "yes"]
    kinds: dict[str, Any] = {"label": ClassLabel(names=names), "score": Value("float64"), "choices": List(Value("string"))}
    return Dataset.from_dict(columns, features=Features({name: kinds.get(name, Value("string")) for name in columns}))


def rows_of(examples: Dataset) -> list[dict[str, Any]]:
    return loader.read_rows(examples.with_format("arrow"), list(range(len(examples))))


def pairs() -> Dataset:
    return labelled(text=TEXTS, second=SECONDS, label=[0, 1, 1, 0])


def test_one_text_stands_between_start_and_separator(tokenizer: PreTrainedTokenizerBase) -> None:
    examples = tasks.examples(labelled(text=TEXTS, label=[0, 1, 1, 0]), tokenizer, 100, Target.label)
    vocabulary = tokens.vocabulary(tokenizer)
    for row, ids in zip(rows_of(examples), tokens.encode(tokenizer, TEXTS), strict=True):
        framed = tasks.framed(*tasks.sequences(row), vocabulary)
        assert framed.inputs.tolist() == [vocabulary.start, *ids, vocabulary.separator]
        assert framed.types is None
        assert row["length"] == len(framed.inputs)


def test_a_pair_has_two_segments_with_their_ids(tokenizer: PreTrainedTokenizerBase) -> None:
    examples = tasks.examples(pairs(), tokenizer, 100, Target.label)
    vocabulary = tokens.vocabulary(tokenizer)
    encoded = zip(tokens.encode(tokenizer, TEXTS), tokens.encode(tokenizer, SECONDS), strict=True)
    for row, (a, b) in zip(rows_of(examples), encoded, strict=True):
        framed = tasks.framed(*tasks.sequences(row), vocabulary)
        assert framed.inputs.tolist() == [vocabulary.start, *a, vocabulary.separator, *b, vocabulary.separator]
        assert framed.types is not None
        assert framed.types.tolist() == [0] * (len(a) + 2) + [1] * (len(b) + 1)
        assert row["length"] == len(framed.inputs)


def test_tokens_of_their_own_take_the_places_of_start_delimiter_and_extract() -> None:
    own = tokens.train("bpe", Dataset.from_dict({"text": TEXTS}), 270, lambda text: None)
    tokens.add_task_tokens(own)
    vocabulary = tokens.vocabulary(own)
    start, delimiter, extract = own.convert_tokens_to_ids([tokens.START, tokens.DELIMITER, tokens.EXTRACT])
    assert tasks.framed([np.array([7, 8])], vocabulary).inputs.tolist() == [start, 7, 8, extract]
    assert tasks.framed([np.array([7]), np.array([8])], vocabulary).inputs.tolist() == [start, 7, delimiter, 8, extract]


def test_wordpiece_pairs_are_those_of_the_tokenizer_itself() -> None:
    wordpiece = tokens.train("wordpiece", Dataset.from_dict({"text": TEXTS + SECONDS}), 280, lambda text: None)
    for row, a, b in zip(rows_of(tasks.examples(pairs(), wordpiece, 100, Target.label)), TEXTS, SECONDS, strict=True):
        framed, theirs = tasks.framed(*tasks.sequences(row), tokens.vocabulary(wordpiece)), wordpiece([a], [b])
        assert framed.inputs.tolist() == theirs["input_ids"][0]
        assert framed.types is not None
        assert framed.types.tolist() == theirs["token_type_ids"][0]


def by_popping(a: int, b: int, room: int) -> tuple[int, int]:
    """As BERT's own preparation says it: while too long, drop the last token of the longer segment."""
    while a + b > room:
        a, b = (a - 1, b) if a > b else (a, b - 1)
    return a, b


@pytest.mark.parametrize("room", [0, 1, 2, 7, 8, 30])
@pytest.mark.parametrize("first", [0, 1, 4, 7, 20])
@pytest.mark.parametrize("second", [0, 1, 5, 8, 21])
def test_the_longer_segment_gives_up_its_last_token_again_and_again(first: int, second: int, room: int) -> None:
    assert tasks.shares(first, second, room) == by_popping(first, second, room)


def test_segments_are_cut_at_their_end_and_rows_that_were_cut_are_counted(tokenizer: PreTrainedTokenizerBase) -> None:
    whole = tasks.examples(pairs(), tokenizer, 100, Target.label)
    limit = sorted(whole["length"])[1]  # some are longer
    cut, changed = tasks.examples(pairs(), tokenizer, limit, Target.label), 0
    for before, after in zip(rows_of(whole), rows_of(cut), strict=True):
        (long,), (short,) = tasks.sequences(before), tasks.sequences(after)
        assert [part.tolist() for part in short] == [part[: len(kept)].tolist() for part, kept in zip(long, short, strict=True)]
        assert after["length"] == min(before["length"], limit)
        changed += before["length"] > limit
    assert 0 < changed < 4
    assert f"{changed} of 4 rows are longer than {limit} tokens and are cut, the longer text first, at its end" in tasks.notes(cut)
    assert not any("cut" in line for line in tasks.notes(whole))


def test_a_choice_follows_the_text_and_what_is_asked_of_it(tokenizer: PreTrainedTokenizerBase) -> None:
    choices = [["by day", "by night", "never at all"], ["no", "yes"]]
    rows = labelled(text=TEXTS[:2], second=["when?", "is it?"], choices=choices, label=[2, 0], names=["a", "b", "c"])
    examples = tasks.examples(rows, tokenizer, 100, Target.choice)
    for i, row in enumerate(rows_of(examples)):
        found = tasks.sequences(row)
        (context,), (question,) = tokens.encode(tokenizer, [TEXTS[i]]), tokens.encode(tokenizer, [["when?", "is it?"][i]])
        assert [[part.tolist() for part in sequence] for sequence in found] == [[[*context, *question], ids] for ids in tokens.encode(tokenizer, choices[i])]
        assert row["length"] == 3 + len(context) + len(question) + max(len(sequence[1]) for sequence in found)


def test_the_question_is_cut_only_where_the_text_is_used_up() -> None:
    text, question, choice = [1] * 10, [2] * 4, [3] * 3
    assert tasks.fitted([text, choice], 20, question) == [[1] * 10 + [2] * 4, [3] * 3]
    assert tasks.fitted([text, choice], 12, question) == [[1] * 2 + [2] * 4, [3] * 3]
    assert tasks.fitted([text, choice], 9, question) == [[2] * 3, [3] * 3]


@pytest.mark.parametrize("length", [5, 6, 9])
def test_no_sequence_is_longer_than_asked(tokenizer: PreTrainedTokenizerBase, length: int) -> None:
    choices = [["by day and by night and always", "no"]] * 4
    rows = labelled(text=TEXTS, second=SECONDS, choices=choices, label=[0, 1, 0, 1])
    for target in (Target.label, Target.choice):
        assert max(tasks.examples(rows, tokenizer, length, target)["length"]) <= length


def test_every_row_makes_an_example_in_its_place(tokenizer: PreTrainedTokenizerBase) -> None:
    labels = [i % 2 for i in range(600)]  # more than the tokenizer takes at once
    examples = tasks.examples(labelled(text=[f"a dog {i}" for i in range(600)], label=labels), tokenizer, 16, Target.label)
    assert list(examples["label"]) == labels


@pytest.mark.parametrize(("labels", "found"), [(None, [IGNORED] * 4), ([1, None, -1, 0], [1, IGNORED, IGNORED, 0])])
def test_a_row_without_an_answer_asks_for_nothing(tokenizer: PreTrainedTokenizerBase, labels: list[int | None] | None, found: list[int]) -> None:
    rows = labelled(text=TEXTS) if labels is None else labelled(text=TEXTS, label=labels)
    examples = tasks.examples(rows, tokenizer, 32, Target.label)
    assert list(examples["label"]) == found
    assert f"{found.count(IGNORED)} of 4 rows have no answer and ask for nothing" in tasks.notes(examples)


def test_a_text_without_a_token_is_kept_and_said(tokenizer: PreTrainedTokenizerBase) -> None:
    examples = tasks.examples(labelled(text=TEXTS, label=[0, 1, 1, 0]), tokenizer, 32, Target.label)
    assert examples["length"][2] == 2
    assert "1 of 4 rows have a text without a token" in tasks.notes(examples)


@pytest.mark.parametrize(("number", "line"), [(2, "rows of each class: c1 5, c0 1, c2 0"), (11, "12 classes, from 5 rows (c1) to 0 (c11)")])
def test_classes_are_counted_also_those_without_a_row(tokenizer: PreTrainedTokenizerBase, number: int, line: str) -> None:
    labels = [*range(number), 1, 1, 1, 1]
    rows = labelled([f"c{i}" for i in range(number + 1)], text=["a"] * len(labels), label=labels)
    assert tasks.notes(tasks.examples(rows, tokenizer, 16, Target.label))[0] == line


def test_a_class_name_cannot_drive_the_terminal(tokenizer: PreTrainedTokenizerBase) -> None:
    rows = labelled(["\x1b[2J", "b"], text=["a", "b"], label=[0, 1])
    assert "\x1b" not in tasks.notes(tasks.examples(rows, tokenizer, 16, Target.label))[0]


def test_scores_are_described(tokenizer: PreTrainedTokenizerBase) -> None:
    examples = tasks.examples(labelled(text=TEXTS, score=[1.0, 5.0, None, 3.0]), tokenizer, 16, Target.score)
    assert tasks.notes(examples)[0] == "scores from 1 to 5, mean 3, standard deviation 1.63"
    assert np.isnan(examples["score"][2])


def test_balanced_classes_weigh_alike_and_1_on_average() -> None:
    labels = np.array([0, 0, 0, 2, IGNORED, 2, 0, 5])
    weights = tasks.class_weights(labels)
    assert weights[labels != IGNORED].mean() == pytest.approx(1)
    assert [weights[labels == k].sum() for k in (0, 2, 5)] == pytest.approx([7 / 3] * 3)
    assert weights[4] == 0


def test_a_batch_is_padded_on_the_right_behind_a_mask(tokenizer: PreTrainedTokenizerBase) -> None:
    vocabulary = tokens.vocabulary(tokenizer)
    examples = rows_of(tasks.examples(pairs(), tokenizer, 100, Target.label))
    made = tasks.batch(examples, [tasks.sequences(e) for e in examples], {}, {}, vocabulary)
    lengths = [e["length"] for e in examples]
    assert made.inputs["attention_mask"].sum(1).tolist() == lengths
    assert made.sizes == {"tokens": sum(lengths)}
    assert made.samples == [0, 1, 2, 3]
    for row, example in zip(made.inputs["input_ids"], examples, strict=True):
        assert row[: example["length"]].tolist() == tasks.framed(*tasks.sequences(example), vocabulary).inputs.tolist()


def test_next_tokens_are_asked_over_the_whole_sequence_but_not_in_padding(tokenizer: PreTrainedTokenizerBase) -> None:
    examples = rows_of(tasks.examples(pairs(), tokenizer, 100, Target.label))
    made = tasks.batch(examples, [tasks.sequences(e) for e in examples], {}, {}, tokens.vocabulary(tokenizer))
    labels, count = tasks.following(made.inputs)
    for row, ids, example in zip(labels, made.inputs["input_ids"], examples, strict=True):
        length = example["length"]
        assert row.tolist() == [*ids[1:length].tolist(), *[IGNORED] * (len(ids) - length + 1)]
    assert count == sum(e["length"] - 1 for e in examples)


def test_examples_are_made_once_and_anew_for_another_question(tokenizer: PreTrainedTokenizerBase) -> None:
    rows = labelled(text=TEXTS, second=SECONDS, label=[0, 1, 1, 0], score=[1.0, 2.0, 3.0, 4.0])
    first, again = (tasks.examples(rows, tokenizer, 100, Target.label) for _ in range(2))
    assert first._fingerprint == again._fingerprint
    assert first[:] == again[:]
    assert "weight" in tasks.examples(rows, tokenizer, 100, Target.label, balanced=True).column_names
    assert "score" in tasks.examples(rows, tokenizer, 100, Target.score).column_names


def test_logits_come_to_numpy_from_where_there_is_no_float64() -> None:
    found = tasks.array(without_float64(torch.tensor([[0.5, 0.25]])))
    assert (found.dtype, found.tolist()) == (np.float64, [[0.5, 0.25]])
