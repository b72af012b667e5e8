"""Members on their way: start a few at a time, hear how each ended, go on with the next.

    carry_out(book, following, begin, ended, jobs=2, …)

        while there is something to run or something runs:
            start members until `jobs` run                  begin(entry) → a process
            look at each that runs                          watch(entry) → True: stop it early
            a process that ended                            ended(entry, code): its status and reason
            the sweep is told to stop                       each member saves and ends; nothing new starts

What a member does, and where, is passed in: this module starts no process itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from llmtrain.sweep.book import Book, Entry, Status

POLL_S = 0.05
GRACE_S = 120.0  # that a member has to save after it was asked to stop: a large checkpoint on a slow disk takes long


class Process(Protocol):
    """A member's process."""

    def poll(self) -> int | None: ...

    def stop(self) -> None: ...

    def kill(self) -> None: ...


@dataclass
class _Running:
    entry: Entry
    process: Process
    began: float
    before: float  # seconds of earlier starts
    asked_at: float | None = None  # when it was asked to stop
    pruned: bool = False


def carry_out(
    book: Book,
    following: Callable[[], Entry | None],
    begin: Callable[[Entry], Process],
    ended: Callable[[Entry, int, bool], None],
    *,
    jobs: int,
    interrupted: Callable[[], bool],
    watch: Callable[[Entry], bool] = lambda entry: False,
    tick: Callable[[list[Entry]], None] = lambda entries: None,
) -> None:
    """Run members until `following` has no more and all have ended.

    Args:
        following: the next member to run; None: none for now. Asked again whenever one has ended.
        begin: starts a member.
        ended: told a member that ended, its exit code and whether it was stopped since it was not worth going on; sets its status.
        jobs: how many run at the same time.
        interrupted: whether the sweep was asked to stop.
        watch: whether a running member should be stopped early.
        tick: told what runs, now and then.
    """
    running: list[_Running] = []
    exhausted = False
    try:
        while True:
            while not exhausted and len(running) < jobs and not interrupted():
                entry = following()
                if entry is None:
                    exhausted = True
                    break
                entry.status, entry.reason, entry.exit_code = Status.running, "", None
                book.save()
                running.append(_Running(entry, begin(entry), time.monotonic(), entry.seconds))
            if not running:
                return
            if interrupted():
                _ask_to_stop(running)
            for one in list(running):
                if _look(one, watch, ended):
                    running.remove(one)
                    exhausted = False  # what it ended with may lead to another
                    book.save()
            tick([one.entry for one in running])
            if running:
                time.sleep(POLL_S)
    finally:
        for one in running:  # an error of ours: nothing is left behind
            one.process.kill()
            one.entry.status, one.entry.reason = Status.stopped, "the sweep ended before it did"
        if running:
            book.save()


def _look(one: _Running, watch: Callable[[Entry], bool], ended: Callable[[Entry, int, bool], None]) -> bool:
    """Whether a member has ended; what is to be known of it is written down."""
    code = one.process.poll()
    one.entry.seconds = one.before + time.monotonic() - one.began
    if code is None:
        if one.asked_at is not None and time.monotonic() - one.asked_at > GRACE_S:
            one.process.kill()
        elif one.asked_at is None and watch(one.entry):
            one.pruned = True
            _ask_to_stop([one])
        return False
    one.entry.exit_code = code
    ended(one.entry, code, one.pruned)
    return True


def _ask_to_stop(running: list[_Running]) -> None:
    for one in running:
        if one.asked_at is None:
            one.process.stop()
            one.asked_at = time.monotonic()
