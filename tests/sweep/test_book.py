"""sweep.json: what a sweep consists of and how far it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llmtrain.errors import CheckpointError
from llmtrain.sweep.book import FILE, Book, Entry, Status


@pytest.fixture
def book(tmp_path: Path) -> Book:
    entries = [Entry("a", ["seed=0"], [["seed", "0"]], Status.failed, "not finite", 5, 1.5, 2.0, "always", 3), Entry("b", ["seed=1"])]
    return Book(tmp_path, {"name": "mine", "verb": "finetune"}, {entry.name: entry for entry in entries})


def test_it_comes_back_as_it_was_saved(book: Book) -> None:
    book.save()
    assert Book.opened(book.folder) == book


def test_there_is_none_where_there_was_no_sweep(tmp_path: Path) -> None:
    assert Book.opened(tmp_path) is None


@pytest.mark.parametrize(
    "content", ["", "[]", "{", '{"version": 99, "members": []}', '{"version": 1}', '{"version": 1, "members": [{"name": "a", "status": "?"}]}']
)
def test_one_that_cannot_be_read_is_an_error_that_names_it(tmp_path: Path, content: str) -> None:
    (tmp_path / FILE).write_text(content)
    with pytest.raises(CheckpointError, match=FILE):
        Book.opened(tmp_path)


def test_a_reader_sees_the_old_content_or_the_new(book: Book, monkeypatch: pytest.MonkeyPatch) -> None:
    book.save()
    before = (book.folder / FILE).read_bytes()
    book.entries["b"].status = Status.running
    monkeypatch.setattr(Path, "replace", lambda self, target: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        book.save()
    assert (book.folder / FILE).read_bytes() == before


def test_the_folder_of_a_member_lies_in_the_sweeps(book: Book) -> None:
    assert book.home(book.entries["a"]) == book.folder / "members" / "a"


def test_what_another_program_wants_to_know_stands_in_plain_words(book: Book) -> None:
    book.save()
    (first, _) = json.loads((book.folder / FILE).read_text())["members"]
    assert (first["status"], first["reason"], first["exit_code"]) == ("failed", "not finite", 5)
