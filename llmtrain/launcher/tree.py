"""A job and all that it started, to be ended as a whole.

A job is the first process of a session, so whatever it starts belongs to it also after it has died itself. What of that
began a session of its own, as torchrun's workers do, is found through who started it.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable

import psutil

ROUNDS = 200  # looks at what is left, PAUSE_S apart, before the rest is given up: a process that waits for a disk dies late
PAUSE_S = 0.01


def session(leader: int) -> list[psutil.Process]:
    """Every process of the session that `leader` began, and all that these started."""
    return _with_descendants(lambda pid: _session_of(pid) == leader)


def below(pid: int) -> list[psutil.Process]:
    """A process and all that it started."""
    return _with_descendants(lambda other: other == pid)


def end(found: Callable[[], list[psutil.Process]]) -> bool:
    """Kill what `found` finds until it finds nothing; returns whether it came to that. The process that asks is spared."""
    for _ in range(ROUNDS):
        left = [process for process in found() if process.pid != os.getpid() and _alive(process)]
        if not left:
            return True
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.kill()
        time.sleep(PAUSE_S)
    return False


def _with_descendants(belongs: Callable[[int], bool]) -> list[psutil.Process]:
    processes, parents = {}, {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            processes[process.pid], parents[process.pid] = process, process.ppid()
    inside = {pid for pid in processes if belongs(pid)}
    new = inside
    while new:
        new = {pid for pid, parent in parents.items() if parent in new} - inside
        inside = inside | new
    return [processes[pid] for pid in sorted(inside)]


def _session_of(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except (OSError, AttributeError):  # it has ended; or Windows, which has no sessions
        return None


def _alive(process: psutil.Process) -> bool:
    """A zombie has ended: what is left of it is an entry that its parent has not read yet."""
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False
