"""Members on this machine, each a process of its own.

On Linux they are forked from a server that has imported torch, transformers and the rest and never computed: a member
begins in a fraction of a second and shares the memory of what is imported with all others. Elsewhere each starts from
nothing (spawn): macOS has no safe fork of a process that has imported system libraries, Windows none at all.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from llmtrain import runtime
from llmtrain.errors import DeviceError
from llmtrain.launcher import child, tree
from llmtrain.launcher.base import Handle, Job, Launcher, Start

PRELOAD = "llmtrain.launcher.preload"
ENDING_S = 5.0  # that the system may take to end a job which was killed, with all that it holds
LOST = 255  # what multiprocessing says of a process whose server has died
SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


def method() -> str:
    """How a process starts here."""
    return "forkserver" if sys.platform == "linux" else "spawn"


@dataclass(frozen=True, kw_only=True)
class Local(Launcher):
    """Processes of this machine."""

    def lingers(self) -> float:
        return child.GRACE_S + ENDING_S

    @contextlib.contextmanager
    def opened(self, folder: Path) -> Iterator[Start]:
        handles: list[Process] = []
        server: contextlib.AbstractContextManager[frozenset[str]]
        server = _server() if method() == "forkserver" else contextlib.nullcontext(frozenset())
        with server as known:

            def start(job: Job) -> Handle:
                handles.append(_started(job, known))
                return handles[-1]

            try:
                yield start
            finally:
                for handle in handles:
                    handle.kill()


def _started(job: Job, known: frozenset[str]) -> Process:
    """A new process for a job.

    Args:
        known: variables of the server's environment, of which the job has only those that this process still has.

    Raises:
        DeviceError: the system gave none.
    """
    environment = dict(os.environ)
    gone = sorted((known | {"PYTHONSAFEPATH"}) - environment.keys())
    content = pickle.dumps((job.call, job.arguments))
    arguments = (content, str(job.log.absolute()), environment, gone, child.GRACE_S)
    process: Any = multiprocessing.get_context(method()).Process(target=child.main, args=arguments, name=job.name)  # type: ignore[attr-defined]
    try:
        with runtime.path_of_its_own():
            if method() == "forkserver":
                _ensure_server()
                process.start()
            else:
                _ensure_tracker()
                with _signals_blocked():
                    process.start()
    except (OSError, EOFError) as error:
        raise DeviceError(f"{job.name}: no process could be started: {error or type(error).__name__}", fix="launcher.jobs=1 needs less memory") from error
    return Process(process)


class Process(Handle):
    """A process, and all that it started in turn."""

    def __init__(self, process: BaseProcess) -> None:
        assert process.pid is not None
        self._process, self.pid = process, process.pid
        self._code: int | None = None

    def poll(self) -> int | None:
        if self._code is None and (code := self._process.exitcode) is not None:
            if code == LOST and tree.below(self.pid):
                # The server was killed: this process runs on, and nobody will hear how it ends.
                tree.end(partial(tree.below, self.pid))
                code = -int(getattr(signal, "SIGKILL", signal.SIGTERM))
            tree.end(partial(tree.session, self.pid))  # of a process that was killed, what it had started is still there
            self._process.join()
            self._process.close()
            self._code = code
        return self._code

    def stop(self) -> None:
        """Ask it to save and to end (SIGTERM). Where it has no handler yet, it ends at once (-15), having nothing to save."""
        if self.poll() is None:
            self._process.terminate()

    def kill(self) -> None:
        """End it and all that it started; returns when that has happened."""
        if self.poll() is None:
            tree.end(partial(tree.session, self.pid))
            if self._process.exitcode is None:
                self._process.kill()  # one so young that it has no session of its own yet
        for _ in range(tree.ROUNDS):
            if self.poll() is not None:
                break
            time.sleep(tree.PAUSE_S)


# --- the server that has imported what a job needs -----------------------------------------------------------------


@contextlib.contextmanager
def _server() -> Iterator[frozenset[str]]:
    """Have multiprocessing's fork server, and end it. Gives the names of the variables in its environment.

    Left alone it would stay until this process ends, and a later one would have the environment of the first.
    """
    from multiprocessing import forkserver

    server: Any = forkserver._forkserver
    foreign = server._forkserver_pid is not None  # somebody else's: used, slower, and left as it is
    forkserver.set_forkserver_preload([PRELOAD])
    try:
        with runtime.path_of_its_own():
            _ensure_server()
        yield frozenset(os.environ)
    finally:
        forkserver.set_forkserver_preload(["__main__"])  # multiprocessing's default
        # multiprocessing offers its end to its own tests alone. All jobs have ended, so it can be killed, also while it imports.
        if not foreign and server._forkserver_pid is not None and hasattr(server, "_stop"):
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(server._forkserver_pid, signal.SIGKILL)
                server._stop()


def _ensure_server() -> None:
    from multiprocessing import forkserver

    _ensure_tracker()
    with _signals_blocked():
        forkserver.ensure_running()


def _ensure_tracker() -> None:
    """Start multiprocessing's tracker of shared resources, if it does not run: starting it takes away a block of signals."""
    if sys.platform != "win32":
        from multiprocessing import resource_tracker

        resource_tracker.ensure_running()


@contextlib.contextmanager
def _signals_blocked() -> Iterator[None]:
    """What is started inside does not hear Ctrl-C, or a SIGTERM to the whole group: the sweep passes on what it decides.

    A job lifts the block when it has a session and handlers of its own; the server keeps it.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
