"""Inside a job's process: what it prints goes to its log, whatever happens becomes an exit code, and it ends with its sweep."""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from llmtrain.errors import Interrupted, LLMTrainError, plain
from llmtrain.launcher import tree

GRACE_S = 60.0  # that a job has to save and to end after its sweep died


def main(content: bytes, log: str, environment: Mapping[str, str], gone: Collection[str], grace_s: float) -> NoReturn:
    """Be a job: the first function of its process. Ends with the job's exit code.

    Args:
        content: call and arguments, pickled, so that also a module that cannot be imported is told in the log. It came
            through a pipe from the process that started this one, and from no file.
        log: the file that everything printed is appended to.
        environment, gone: variables as the sweep has them, and names that it has not.
        grace_s: seconds between SIGTERM and SIGKILL where the sweep has died.
    """
    if hasattr(os, "setsid"):
        os.setsid()  # Ctrl-C and a closed terminal reach the sweep alone, which then asks its jobs to save
    redirect(Path(log))
    for name in gone:
        os.environ.pop(name, None)
    os.environ.update(environment)
    usual_signals()
    threading.Thread(target=end_with_parent, args=(grace_s,), daemon=True).start()
    code = outcome(_unpacked, (content,))
    # multiprocessing ends a forked process without these: temporary folders would stay.
    with contextlib.suppress(AttributeError):
        atexit._run_exitfuncs()
    sys.exit(code)


def _unpacked(content: bytes) -> int:
    call, arguments = pickle.loads(content)
    return int(call(*arguments))


def outcome(call: Callable[..., int], arguments: tuple[Any, ...]) -> int:
    """Call a job's function: its exit code, whatever happens. What went wrong is printed on stderr."""
    try:
        return int(call(*arguments))
    except LLMTrainError as error:
        _say(error.screen())
        return error.exit_code
    except KeyboardInterrupt:
        _say(Interrupted("interrupted").screen())
        return Interrupted.exit_code
    except SystemExit as error:
        if error.code is None or isinstance(error.code, int):
            return error.code or 0
        _say(str(error.code))
        return 1
    except BaseException:
        _say(traceback.format_exc())
        return 1


def _say(text: str) -> None:
    """Print what was raised, which may quote data and settings: no secret of theirs, and nothing that could drive a terminal."""
    with contextlib.suppress(OSError):  # a full disk, say: the exit code is still to be told
        print(plain(text), file=sys.stderr, flush=True)


def redirect(log: Path) -> None:
    """Append to `log` what this process and its own children print from now on, line by line."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    for stream, number in ((sys.stdout, 1), (sys.stderr, 2)):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
        os.dup2(file, number)
        with contextlib.suppress(AttributeError):  # None where there was no terminal; not a file where something captures it
            stream.reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)  # type: ignore[union-attr]
    os.close(file)


def usual_signals() -> None:
    """Let signals do what they do in a new process, whatever the one that it was made from had arranged."""
    for name in ("SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGCHLD"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # forgets one that came while signals were blocked: it was meant for the sweep
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_SETMASK, set())


def end_with_parent(grace_s: float) -> None:
    """Wait until the sweep's process is gone, then ask this one to save and to end, and end all of it after a while.

    multiprocessing holds a pipe to the process that asked for this one, which is the sweep and not the server that forked it.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None, "a job is started by multiprocessing"
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(grace_s)
    tree.end(partial(tree.session, os.getpid()))
    os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))
