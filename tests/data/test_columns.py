"""Columns are named or inferred; where two could be meant, nobody guesses."""

from __future__ import annotations

from typing import Any

import pytest

from llmtrain.data.base import Target
from llmtrain.data.columns import Columns, Named, find
from llmtrain.errors import DataError


def found(names: str, target: Target = Target.label, **named: Any) -> Columns:
    return find("reviews.csv", names.split(), target, Named(**named))


@pytest.mark.parametrize(
    ("names", "text", "second", "answer"),
    [
        ("text label", "text", None, "label"),
        ("id review sentiment", "review", None, "sentiment"),
        ("Sentence Class", "Sentence", None, "Class"),
        ("idx title content category", "content", None, "category"),
        ("title topic", "title", None, "topic"),
        ("review rating", "review", None, "rating"),
        ("premise hypothesis label", "premise", "hypothesis", "label"),
        ("label sentence2 sentence1 idx", "sentence1", "sentence2", "label"),
        ("text_a text_b label score", "text_a", "text_b", "label"),
        ("pair_ID sentence_A sentence_B entailment_judgment relatedness_score", "sentence_A", "sentence_B", "entailment_judgment"),
        ("question1 question2 is_duplicate", "question1", "question2", "is_duplicate"),
        ("question sentence label", "question", "sentence", "label"),
        ("utterance intent", "utterance", None, "intent"),
        ("remark label", "remark", None, "label"),
        ("text label category", "text", None, "label"),
        ("text sentence label", "text", None, "label"),
    ],
)
def test_names_that_the_field_uses_are_inferred(names: str, text: str, second: str | None, answer: str) -> None:
    columns = found(names)
    assert (columns.text, columns.second, columns.answer) == (text, second, answer)
    assert "inferred" in columns.said()


@pytest.mark.parametrize(
    ("names", "answer"),
    [
        ("text_a text_b label score", "score"),
        ("sentence1 sentence2 label", "label"),
        ("text rating", "rating"),
        ("text relatedness_score label", "relatedness_score"),
    ],
)
def test_a_score_is_looked_for_before_a_label(names: str, answer: str) -> None:
    assert found(names, Target.score).answer == answer


@pytest.mark.parametrize(
    ("names", "choices"),
    [
        ("prompt relation choices label", ("choices",)),
        ("premise choice1 choice2 label", ("choice1", "choice2")),
        ("prompt label choice10 choice2 choice1", ("choice1", "choice2", "choice10")),
        ("context ending_b ending_a label", ("ending_a", "ending_b")),
        ("sentence option1 option2 answer", ("option1", "option2")),
    ],
)
def test_choices_are_a_column_of_lists_or_numbered_columns_in_their_order(names: str, choices: tuple[str, ...]) -> None:
    assert found(names, Target.choice).choices == choices


@pytest.mark.parametrize(
    ("names", "target", "named", "said", "fix"),
    [
        ("review content label", Target.label, {}, "which column is the text: 'review' or 'content'", "data.text_column=NAME"),
        ("text premise hypothesis label", Target.label, {}, "which column is the text", "data.text_column=NAME"),
        ("one two label", Target.label, {}, "which column is the text: 'one' or 'two'", "data.text_column=NAME"),
        ("label", Target.label, {}, "no column has a name known for the text", "data.text_column=NAME"),
        ("text class topic", Target.label, {}, "which column is the label of a row: 'class' or 'topic'", "data.label_column=NAME"),
        ("text v1", Target.label, {}, "no column has a name known for the label", "data.label_column=NAME"),
        ("text v1", Target.score, {}, "no column has a name known for the score", "data.label_column=NAME"),
        ("text label", Target.choice, {}, "no column has a name known for the choices", "data.choice_columns=[NAME,NAME]"),
        ("text choices choice1 choice2 label", Target.choice, {}, "which column is the choices", "data.choice_columns=[NAME,NAME]"),
        ("text label", Target.label, {"text": "body"}, "no column 'body'", "data.text_column=NAME"),
        ("text label", Target.label, {"answer": "body"}, "no column 'body'", "data.label_column=NAME"),
        ("text label", Target.label, {"text": "text", "second": "body"}, "no column 'body'", "data.second_column=NAME"),
        ("text label", Target.choice, {"choices": ("a", "b")}, "no column 'a'", "data.choice_columns=[NAME,NAME]"),
    ],
)
def test_b10_what_is_wrong_or_could_be_several_lists_the_columns_and_the_fix(names: str, target: Target, named: Any, said: str, fix: str) -> None:
    with pytest.raises(DataError) as caught:
        found(names, target, **named)
    assert caught.value.what.startswith("reviews.csv: ")
    assert said in caught.value.what
    assert all(repr(name) in str(caught.value.allowed) for name in names.split())
    assert caught.value.fix == fix


def test_what_is_named_is_taken_and_not_called_inferred() -> None:
    columns = found("a b c label", text="a", second="b", answer="c")
    assert (columns.text, columns.second, columns.answer) == ("a", "b", "c")
    assert "inferred" not in columns.said()


def test_a_text_that_is_named_alone_has_no_second() -> None:
    assert found("sentence1 sentence2 label", text="sentence1").second is None


def test_every_column_knows_the_setting_that_names_it() -> None:
    columns = found("premise choice1 choice2 label", Target.choice)
    assert columns.wanted == {"premise": "text_column", "label": "label_column", "choice1": "choice_columns", "choice2": "choice_columns"}
