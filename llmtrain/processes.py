"""The processes of a run on one machine: started, watched and ended together, and what went wrong said once.

    the command ── starts ──▶ rank 0 … rank N − 1, each in a session of its own
                              at():           where it is, for those that wait for it in vain
                              leave_result(): its last word
    the command ◀── how each ended, its last word, where it was: one message, with the rank that failed first

The command itself imports no torch. It starts the ranks without torchrun, whose agent hides which process died and how,
takes seconds and a few hundred megabytes of its own, and waits half a minute for those that hang. Under somebody else's
launcher (torchrun, srun) the ranks have only each other: `say_once`.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import math
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from types import FrameType
from typing import Any

from llmtrain.errors import DistributedError, LLMTrainError, Stopped, masked, shown

MEETING = "LLMTRAIN_MEETING"  # the variable that names the folder where the ranks of `launch` meet
LOG = "processes.log"  # in the run's folder: what the ranks print to stderr, and the whole of their errors
GRACE_S = 10.0  # for the others to end by themselves once one has failed; all of it stays below half a minute
POLL_S = 0.05
SAYING_S = 2.0  # for the word of a lower rank to be seen, before a higher one says its own
FINE = (0, Stopped.exit_code)


def launched_by_us() -> bool:
    """Whether `launch` started this process, which then watches it and says what went wrong."""
    return MEETING in os.environ


# --- inside a rank ------------------------------------------------------------------------------------------------


class Lost(Enum):
    """How a rank failed: by itself, because others did not come in time, or because they went away."""

    no = "no"
    late = "late"
    gone = "gone"


@dataclass(frozen=True)
class Word:
    """The last word of a rank.

    Attributes:
        exit_code: 0 where all went well.
        place: where it was.
        time: when it was left, in seconds since 1970.
    """

    rank: int
    exit_code: int
    what: str
    allowed: str | None
    fix: str | None
    lost: Lost
    place: str
    time: float

    def error(self) -> LLMTrainError:
        """What was raised, as the same kind of error."""
        kinds = {kind.exit_code: kind for kind in LLMTrainError.__subclasses__()}
        return kinds.get(self.exit_code, LLMTrainError)(self.what, allowed=self.allowed, fix=self.fix)


FIRST = "the preparation of data and model"
_place = FIRST


def at(place: str) -> None:
    """Note where this process is: it costs a small write where there are several, and nothing where there is one."""
    global _place
    _place = place
    folder = os.environ.get(MEETING)
    if folder is not None:
        with contextlib.suppress(OSError):
            Path(folder, f"at-{os.environ['RANK']}").write_text(place, encoding="utf-8")


def lost(error: BaseException) -> Lost:
    """Whether an error only says that other processes did not come, or went away. gloo raises plain RuntimeErrors: told by its words."""
    text = str(error)
    ours = type(error).__name__.startswith("Dist") or re.search(r"gloo|NCCL|c10d|TCPStore|FileStore|[Cc]onnection (closed|reset)", text)
    if not isinstance(error, RuntimeError) or not ours:
        return Lost.no
    return Lost.late if re.search(r"(?i)tim(e|ed|ing)[ -]?out", text) else Lost.gone


def lost_contact(error: BaseException, rank: int, kind: Lost) -> DistributedError:
    """What a rank says that can only tell that the others are not there."""
    if kind is Lost.late:
        what = f"rank {rank} waited at {_place} for the other processes in vain"
        fix = "one of them hangs, or was slower than distributed.timeout_s"
    else:
        what = f"rank {rank} lost the other processes at {_place}"
        fix = "one of them ended first: what started them says which"
    said = re.sub(r"^\[[^]]*] ", "", (str(error).splitlines() or ["no message"])[0])  # without the place in torch's source
    return DistributedError(f"{what}: {said.split('. ')[0][:200]}", fix=fix)


def leave_result(folder: Path, rank: int, error: LLMTrainError | None, lost: Lost = Lost.no) -> None:
    """A process's last word, for the command that started it."""
    what, allowed, fix = masked([error.what, error.allowed, error.fix]) if error else ("", None, None)
    word = Word(rank, error.exit_code if error else 0, what, allowed, fix, lost, _place, time.time())
    path = folder / f".result-{rank}.json"
    with contextlib.suppress(OSError):
        path.with_suffix(".new").write_text(json.dumps({**asdict(word), "lost": lost.value}), encoding="utf-8")
        path.with_suffix(".new").replace(path)


def words(folder: Path) -> list[Word]:
    """The last words that were left in a folder, in the order of the ranks."""
    found = []
    for path in folder.glob(".result-*.json"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            found.append(Word(**{**content, "lost": Lost(content["lost"])}))
    return sorted(found, key=lambda word: word.rank)


def results(folder: Path) -> list[tuple[int, str]]:
    """The last words as (exit code, screen), and they are taken away."""
    found = [(word.exit_code, word.error().screen() if word.exit_code else "") for word in words(folder)]
    for path in folder.glob(".result-*.json"):
        path.unlink(missing_ok=True)
    return found


def say_once(folder: Path, rank: int, error: LLMTrainError, kind: Lost) -> LLMTrainError:
    """Under somebody else's launcher: print an error unless another rank has it to say, and return the one that counts.

    An error that all ranks have is the lowest one's to say; that of a single rank is its own; and one that only lost the
    others says so where none of them left a word. Through the run's folder: nodes that do not share it say more than once.
    """
    leave_result(folder, rank, error, kind)
    end = time.monotonic() + SAYING_S
    others: list[Word] = []
    while time.monotonic() < end and not others:
        failed = [word for word in words(folder) if word.rank != rank and word.exit_code and word.lost is Lost.no]
        others = failed if kind is not Lost.no else [word for word in failed if word.rank < rank]
        if rank == 0 and kind is Lost.no:
            break
        time.sleep(POLL_S)
    if others:
        return others[0].error()
    if kind is Lost.no or rank == 0:
        print(error.screen(), file=sys.stderr)
    return error


def follow() -> None:
    """End this process, and what it started, as soon as the command that started it has ended: the lock on the run's folder went with that.

    The command holds the other end of stdin and never writes. A signal, SIGUSR1, writes where this process stands into the log.
    """
    if not launched_by_us():
        return
    threading.Thread(target=_end_with_the_command, daemon=True).start()
    if hasattr(signal, "SIGUSR1"):
        faulthandler.register(signal.SIGUSR1, file=sys.stderr, all_threads=True)


def _end_with_the_command() -> None:
    while os.read(0, 1):
        pass
    if hasattr(os, "killpg") and os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(DistributedError.exit_code)


# --- in the command that starts them --------------------------------------------------------------------------------


def launch(command: Sequence[str], count: int, folder: Path, environment: Mapping[str, str], timeout_s: float) -> None:
    """Start `command` as `count` ranks and wait until all of them have ended.

    Args:
        folder: of the run.
        timeout_s: after which ranks that wait for each other give up.

    Raises:
        LLMTrainError: what the rank said that failed first; where it could not say anything, what became of it.
    """
    with tempfile.TemporaryDirectory(prefix="llmtrain-", ignore_cleanup_errors=True) as meeting, (folder / LOG).open("ab") as log:
        group = _Group(Path(meeting), folder, timeout_s)
        with group.ended_at_last(), group.signals_handed_on():
            group.start(command, count, {**environment, MEETING: meeting}, log)
            group.watch()
        group.judge()


class _Group:
    """The ranks that one command started.

    Attributes:
        codes: exit code of each rank that has ended, in the order in which that was seen.
        stuck: ranks that were still there when others had given up.
        signalled: the signal that was handed on to all.
    """

    def __init__(self, meeting: Path, folder: Path, timeout_s: float) -> None:
        self.meeting, self.folder, self.timeout_s = meeting, folder, timeout_s
        self.children: list[subprocess.Popen[bytes]] = []
        self.codes: dict[int, int] = {}
        self.seen: dict[int, float] = {}
        self.stuck: list[int] = []
        self.signalled: int | None = None

    def start(self, command: Sequence[str], count: int, environment: Mapping[str, str], log: Any) -> None:
        for rank in range(count):
            place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
            own = {**environment, **{name: str(value) for name, value in place.items()}}
            out = None if rank == 0 else log  # one process speaks to the terminal
            child = subprocess.Popen(command, env=own, stdin=subprocess.PIPE, stdout=out, stderr=log, start_new_session=True)
            self.children.append(child)
            if self.signalled is not None:
                _send(child, self.signalled)

    def watch(self) -> None:
        """Wait for all; once one has failed the others have a while to end by themselves."""
        deadline = math.inf
        while len(self.codes) < len(self.children):
            for rank, child in enumerate(self.children):
                code = None if rank in self.codes else child.poll()
                if code is not None:
                    self.codes[rank], self.seen[rank] = code, time.time()
                    deadline = min(deadline, time.monotonic() + (self.timeout_s if code in FINE else GRACE_S))
            if time.monotonic() > deadline:
                deadline = math.inf
                self._end_the_stuck()
            time.sleep(POLL_S)

    def _end_the_stuck(self) -> None:
        self.stuck = [rank for rank in range(len(self.children)) if rank not in self.codes]
        for rank in self.stuck:
            if hasattr(signal, "SIGUSR1"):
                _send(self.children[rank], signal.SIGUSR1)  # where it stands goes to the log
        time.sleep(10 * POLL_S)
        for rank in self.stuck:
            _kill(self.children[rank])

    @contextlib.contextmanager
    def signals_handed_on(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def handle(number: int, _: FrameType | None) -> None:
            self.signalled = number
            for child in self.children:
                _send(child, number)

        before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def ended_at_last(self) -> Iterator[None]:
        """Whatever happens here, no rank outlives the command, and nothing that a failed rank started outlives it."""
        try:
            yield
        finally:
            for child in self.children:
                if child.poll() not in FINE:
                    _kill(child)
                child.wait()
                assert child.stdin is not None
                child.stdin.close()

    def judge(self) -> None:
        """Raise what there is to be said.

        Errors that a rank raised on purpose come first, then ranks that died, then faults of the program; that a rank
        lost the others is only said where nothing else explains it.
        """
        said = {word.rank: word for word in words(self.meeting)}
        failed = sorted((word for word in said.values() if word.exit_code not in FINE), key=lambda word: word.time)
        by_itself = [word for word in failed if word.lost is Lost.no]
        for word in by_itself:
            if word.exit_code != LLMTrainError.exit_code:
                raise word.error()
        silent = [rank for rank in self.codes if rank not in said and rank not in self.stuck and self.codes[rank] != 0]
        stopped = [word for word in said.values() if word.exit_code == Stopped.exit_code]
        if self.signalled is not None and (stopped or any(self.codes[rank] == -self.signalled for rank in silent)):
            raise stopped[0].error() if stopped else self._stopped_early()
        aborted = [rank for rank in silent if self._gave_up(rank)]
        for rank in silent:
            if self.codes[rank] < 0 and rank not in aborted:
                raise self._died(rank)
        if by_itself:
            raise by_itself[0].error()
        if stopped:
            raise stopped[0].error()
        waited = {word.rank: word.place for word in failed if word.lost is Lost.late} | {rank: self._place(rank) for rank in aborted}
        if waited:
            raise self._absent(waited)
        if silent:
            raise self._died(silent[0])
        if self.stuck:
            raise self._absent({})
        if failed:
            raise failed[0].error()

    def _place(self, rank: int) -> str:
        try:
            return (self.meeting / f"at-{rank}").read_text(encoding="utf-8") or FIRST
        except OSError:
            return FIRST

    def _gave_up(self, rank: int) -> bool:
        """NCCL's watchdog aborts a process that has waited for too long: told by how long it had been in one place."""
        if self.codes[rank] != -getattr(signal, "SIGABRT", 6):
            return False
        try:
            return self.seen[rank] - (self.meeting / f"at-{rank}").stat().st_mtime > 0.9 * self.timeout_s
        except OSError:
            return False

    def _died(self, rank: int) -> DistributedError:
        code = self.codes[rank]
        how = f"died (signal {-code})" if code < 0 else f"ended with exit code {code} and no word"
        memory = "where nobody killed it, memory ran out: a smaller trainer.micro_batch_size, fewer data.num_workers; " if code == -9 else ""
        return DistributedError(
            f"rank {rank} {how} at {self._place(rank)}",
            fix=f"{memory}what it printed stands in {self.folder / LOG}; the same command with output_dir={self.folder} goes on from the last checkpoint",
        )

    def _absent(self, waited: Mapping[int, str]) -> DistributedError:
        """Some ranks did not come to where others waited."""
        absent = self.stuck or [rank for rank in range(len(self.children)) if rank not in waited]
        where = next(iter(waited.values()), "the end")
        who = f"{'rank' if len(absent) == 1 else 'ranks'} {', '.join(map(str, absent))}" if absent else "each of the processes"
        last = "".join(f"; rank {rank} was last at {self._place(rank)}" for rank in absent[:2] if self._place(rank) != where)
        return DistributedError(
            f"{who} kept the others waiting at {where} for distributed.timeout_s={self.timeout_s:g} seconds{last}",
            fix=f"where it stood is in {self.folder / LOG}; if it was only slow, a larger distributed.timeout_s; "
            f"the same command with output_dir={self.folder} goes on from the last checkpoint",
        )

    def _stopped_early(self) -> Stopped:
        return Stopped(
            "stopped by a signal before training began; nothing was done since the last checkpoint",
            fix=f"the same command with output_dir={self.folder} goes on from there",
        )


def _send(child: subprocess.Popen[bytes], number: int) -> None:
    with contextlib.suppress(OSError, ValueError):  # it has ended; Windows has few signals
        child.send_signal(number)


def _kill(child: subprocess.Popen[bytes]) -> None:
    """End a rank and all that it started."""
    with contextlib.suppress(OSError):
        if hasattr(os, "killpg"):
            os.killpg(child.pid, signal.SIGKILL)
        else:
            child.kill()


# --- what ranks were given ----------------------------------------------------------------------------------------


def differing(configs: Sequence[Mapping[str, str]], limit: int = 3) -> list[str]:
    """A line for each of the first keys in which the configs of ranks differ from that of rank 0."""
    found = []
    for key in dict.fromkeys(name for config in configs for name in config):
        values = [config.get(key, "absent") for config in configs]
        other = next((rank for rank, value in enumerate(values) if value != values[0]), None)
        if other is not None:
            first, second = _told_apart(values[0], values[other])
            found.append(f"{key} is {first} on rank 0 and {second} on rank {other}")
    return found if len(found) <= limit else [*found[:limit], f"and {len(found) - limit} more"]


def _told_apart(first: str, second: str) -> tuple[str, str]:
    """Two values as a message shows them: of long ones that begin alike, from shortly before they differ."""
    if shown(first) != shown(second):
        return shown(first), shown(second)
    same = next((i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second)))
    cut = max(0, same - 20)
    return shown(f"…{first[cut:]}"), shown(f"…{second[cut:]}")
