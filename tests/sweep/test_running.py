"""Members on their way, with processes that are made up."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from llmtrain.sweep import running
from llmtrain.sweep.book import Book, Entry, Status
from llmtrain.sweep.running import carry_out


class Fake:
    """A process that ends with a code after so many looks; asked to stop, it saves and ends with 75."""

    def __init__(self, code: int, looks: int = 2, stubborn: bool = False) -> None:
        self.code, self.looks, self.stubborn = code, looks, stubborn
        self.killed = False

    def poll(self) -> int | None:
        self.looks -= 1
        return self.code if self.looks < 0 else None

    def stop(self) -> None:
        if not self.stubborn:
            self.code, self.looks = 75, 0

    def kill(self) -> None:
        self.killed = True
        self.code, self.looks = -9, 0


@pytest.fixture
def book(tmp_path: Path) -> Book:
    found = Book(tmp_path, {"name": "mine"}, {name: Entry(name, []) for name in "abcd"})
    found.save()
    return found


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "POLL_S", 0)


def settle(entry: Entry, code: int, pruned: bool) -> None:
    entry.status = Status.pruned if pruned else {0: Status.finished, 75: Status.stopped}.get(code, Status.failed)


def in_order(book: Book) -> Callable[[], Entry | None]:
    left = iter(book.entries.values())
    return lambda: next(left, None)


def test_a_member_that_fails_leaves_the_others_going(book: Book) -> None:
    codes = {"a": 0, "b": 5, "c": 0, "d": 0}
    carry_out(book, in_order(book), lambda entry: Fake(codes[entry.name]), settle, jobs=1, interrupted=lambda: False)
    assert [entry.status.value for entry in book.entries.values()] == ["finished", "failed", "finished", "finished"]
    assert book.entries["b"].exit_code == 5


@pytest.mark.parametrize("jobs", [1, 2, 3])
def test_as_many_run_at_the_same_time_as_were_asked_for(book: Book, jobs: int) -> None:
    most = 0

    def look(entries: list[Entry]) -> None:
        nonlocal most
        most = max(most, len(entries))

    carry_out(book, in_order(book), lambda entry: Fake(0, looks=3), settle, jobs=jobs, interrupted=lambda: False, tick=look)
    assert most == jobs
    assert len(book.with_status(Status.finished)) == 4


def test_an_interrupted_sweep_asks_what_runs_to_save_and_starts_nothing_new(book: Book) -> None:
    started: list[str] = []

    def begin(entry: Entry) -> Fake:
        started.append(entry.name)
        return Fake(0, looks=1000)

    carry_out(book, in_order(book), begin, settle, jobs=2, interrupted=lambda: len(started) == 2)
    assert started == ["a", "b"]
    assert [entry.status.value for entry in book.entries.values()] == ["stopped", "stopped", "waiting", "waiting"]


def test_a_member_that_does_not_save_in_time_is_killed(book: Book, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "GRACE_S", 0.0)
    process = Fake(0, looks=10**9, stubborn=True)
    carry_out(book, in_order(book), lambda entry: process, settle, jobs=1, interrupted=lambda: book.entries["a"].status is Status.running)
    assert process.killed
    assert book.entries["a"].exit_code == -9


def test_a_member_that_is_not_worth_going_on_is_stopped_early(book: Book) -> None:
    carry_out(book, in_order(book), lambda entry: Fake(0, looks=50), settle, jobs=1, interrupted=lambda: False, watch=lambda entry: entry.name == "b")
    assert [entry.status.value for entry in book.entries.values()] == ["finished", "pruned", "finished", "finished"]


def test_a_search_that_waits_for_a_result_is_asked_again_when_there_is_one(book: Book) -> None:
    ended: list[str] = []
    left = list(book.entries.values())

    def following() -> Entry | None:
        if not left or (left[0].name == "c" and len(ended) < 2):
            return None
        return left.pop(0)

    def hear(entry: Entry, code: int, pruned: bool) -> None:
        settle(entry, code, pruned)
        ended.append(entry.name)

    carry_out(book, following, lambda entry: Fake(0), hear, jobs=3, interrupted=lambda: False)
    assert sorted(ended) == ["a", "b", "c", "d"]


def test_what_runs_stands_in_the_book_while_it_runs(book: Book) -> None:
    def look(entries: list[Entry]) -> None:
        seen = Book.opened(book.folder)
        assert seen is not None
        assert {entry.name for entry in seen.with_status(Status.running)} >= {entry.name for entry in entries}

    carry_out(book, in_order(book), lambda entry: Fake(0, looks=3), settle, jobs=2, interrupted=lambda: False, tick=look)


def test_an_error_of_the_sweep_itself_leaves_no_process_behind(book: Book) -> None:
    process = Fake(0, looks=10**9)

    def look(entries: list[Entry]) -> None:
        raise RuntimeError("of the sweep")

    with pytest.raises(RuntimeError, match="of the sweep"):
        carry_out(book, in_order(book), lambda entry: process, settle, jobs=1, interrupted=lambda: False, tick=look)
    assert process.killed
    assert book.entries["a"].status is Status.stopped


def test_seconds_add_up_over_several_starts(book: Book) -> None:
    book.entries["a"].seconds = 100.0
    carry_out(book, iter([book.entries["a"], None]).__next__, lambda entry: Fake(0), settle, jobs=1, interrupted=lambda: False)
    assert 100 <= book.entries["a"].seconds < 110
