"""A job and all that it started are found and ended, and nothing else is."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial

import pytest

from llmtrain.launcher import tree
from tests.launcher.jobs import ended

# A process that starts another one in its own session, and that one a third in a session of its own.
SLEEP = "import time; time.sleep(60)"
INNER = (
    f"import subprocess, sys, time; p = subprocess.Popen([sys.executable, '-c', {SLEEP!r}], start_new_session=True); print(p.pid, flush=True); time.sleep(60)"
)
OUTER = f"import subprocess, sys, time; p = subprocess.Popen([sys.executable, '-c', {INNER!r}]); print(p.pid, flush=True); time.sleep(60)"


@pytest.fixture
def started() -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    with subprocess.Popen([sys.executable, "-c", OUTER], stdout=subprocess.PIPE, text=True, start_new_session=True) as outer:
        assert outer.stdout is not None
        others = [int(outer.stdout.readline()), int(outer.stdout.readline())]
        yield outer, others
        tree.end(lambda: tree.session(outer.pid) + [p for pid in others for p in tree.below(pid)])


def pids(found: list[object]) -> set[int]:
    return {process.pid for process in found}  # type: ignore[attr-defined]


def test_a_session_holds_what_its_leader_started_and_what_these_started(started: tuple[subprocess.Popen[str], list[int]]) -> None:
    outer, others = started
    assert pids(tree.session(outer.pid)) == {outer.pid, *others}
    assert pids(tree.below(others[0])) == set(others)


def test_a_session_is_found_also_when_its_leader_has_died(started: tuple[subprocess.Popen[str], list[int]]) -> None:
    outer, others = started
    outer.kill()
    outer.wait()
    assert pids(tree.session(outer.pid)) == set(others)
    assert tree.end(partial(tree.session, outer.pid))
    assert all(ended(pid, 2) for pid in others)


def test_the_process_that_asks_is_spared() -> None:
    with subprocess.Popen([sys.executable, "-c", SLEEP]) as other:
        assert os.getpid() in pids(tree.below(os.getpid()))
        assert tree.end(lambda: [p for p in tree.below(os.getpid()) if p.pid in (os.getpid(), other.pid)])
        assert other.wait() == -9
