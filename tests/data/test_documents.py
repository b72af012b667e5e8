"""Documents become rows, and rows become splits."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import numpy as np
import pytest

from llmtrain.data import documents as docs
from llmtrain.errors import DataError


def made(*texts: str | None) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The rows of one source of documents, and what was counted."""
    found, counted = [], {}

    def collect() -> Generator[dict[str, Any], None, None]:
        counted.update((yield from docs.rows([source(*texts)])))

    found.extend(collect())
    return found, counted


def source(*texts: str | None) -> Generator[docs.Found, None, None]:
    for number, text in enumerate(texts, start=1):
        yield f"file:{number}", None if text is None else [text]


def test_blank_and_absent_texts_are_skipped_and_counted() -> None:
    rows, counted = made("one two", None, "", " \n\t", "three")
    assert [row["text"] for row in rows] == ["one two", "three"]
    assert (counted["documents"], counted["words"], counted["blank"]) == (2, 3, 3)


def test_equal_texts_have_equal_keys_and_others_do_not() -> None:
    rows, _ = made("a", "b", "a")
    assert rows[0]["key"] == rows[2]["key"] != rows[1]["key"]


def test_half_of_a_surrogate_pair_is_a_data_error_that_names_the_place() -> None:
    with pytest.raises(DataError, match="file:2"):
        made("fine", "broken \ud800 text")


@pytest.mark.parametrize("chunk", [1, 7, 100, 1000])
def test_parts_put_together_are_the_document_however_it_was_read(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docs, "PART", 100)
    text = "".join(f"word{i} " + "\n" * (i % 9 == 0) for i in range(200))
    parts = list(docs.parts(text[i : i + chunk] for i in range(0, len(text), chunk)))
    assert "".join(parts) == text
    assert max(map(len, parts)) <= 100


@pytest.mark.parametrize(
    ("text", "first"),
    [("a b c\n" * 30, "a b c\n" * 16), ("words " * 30, "words " * 16), ("x" * 120, "x" * 100), ("x" * 49 + " " + "x" * 70, "x" * 49 + " " + "x" * 50)],
    ids=["after a line", "after a word", "anywhere", "not in the first half"],
)
def test_a_long_document_is_cut_where_a_line_or_a_word_ends(text: str, first: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docs, "PART", 100)
    assert next(docs.parts([text])) == first


def test_the_parts_of_one_document_stand_in_one_split_and_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docs, "PART", 100)
    rows, counted = made("one " * 60, "short")
    assert len({row["document"] for row in rows[:3]}) == 1
    assert len({row["key"] for row in rows}) == 4
    assert (counted["documents"], counted["long"], counted["parts"]) == (2, 1, 3)


def test_equal_parts_of_different_documents_are_no_repetition(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docs, "PART", 4)
    rows, _ = made("aaa same", "bbb same")
    assert rows[1]["text"] == rows[3]["text"]
    assert rows[1]["key"] != rows[3]["key"]


# --- shares -------------------------------------------------------------------------------------------------------

KEYS = np.array([docs.key(f"document {i}") for i in range(20_000)])


def test_the_shares_are_about_as_large_as_asked() -> None:
    counts = np.bincount(docs.assign(KEYS, 0.1, 0.2)) / len(KEYS)
    assert counts == pytest.approx([0.7, 0.1, 0.2], abs=0.01)


def test_the_key_of_a_text_is_the_same_in_every_process_and_version() -> None:
    # Not a golden file: this number decides the splits of everybody's runs, so it may never change.
    assert docs.key("the split of this text must never change") == 5585054928205954085


@pytest.mark.parametrize(("validation", "test", "index"), [(0.3, 0.2, 2), (0.1, 0.4, 1)])
def test_changing_one_share_leaves_the_other_as_it_is(validation: float, test: float, index: int) -> None:
    before, after = docs.assign(KEYS, 0.1, 0.2), docs.assign(KEYS, validation, test)
    assert ((before == index) == (after == index)).all()


def test_a_share_of_nothing_takes_nothing() -> None:
    assert (docs.assign(KEYS, 0, 0) == 0).all()
