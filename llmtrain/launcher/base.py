"""Where the members of a sweep run: each in a process of its own, a few at a time.

    with launcher.opened() as start:
        handle = start(Job(name, call, arguments, log))
        handle.poll()  →  None while it runs, then its exit code

A launcher knows nothing of training: what a member does is a function that it is handed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmtrain.errors import require


@dataclass(frozen=True)
class Job:
    """One process to be.

    Attributes:
        name: for messages.
        call: a function at the top of a module, which can be sent to another process; it returns an exit code.
        arguments: what it is called with; all of it can be sent.
        log: the file that everything it prints is appended to. Its folder is there.
    """

    name: str
    call: Callable[..., int]
    arguments: tuple[Any, ...]
    log: Path


class Handle(ABC):
    """A job that was started."""

    @abstractmethod
    def poll(self) -> int | None:
        """Its exit code; negative: the signal that ended it, as `subprocess` has it; None: it has not ended."""

    @abstractmethod
    def stop(self) -> None:
        """Ask it to save and to end (SIGTERM); it ends with 75 where it can go on later."""

    @abstractmethod
    def kill(self) -> None:
        """End it at once."""


Start = Callable[[Job], Handle]


@dataclass(frozen=True, kw_only=True)
class Launcher(ABC):
    """A place where jobs run.

    Attributes:
        jobs: how many members run at the same time.
    """

    jobs: int

    def __post_init__(self) -> None:
        require(self.jobs >= 1, "jobs", self.jobs, "1 or more")

    @abstractmethod
    def opened(self, folder: Path) -> AbstractContextManager[Start]:
        """What starts a job. At the end nothing is left running.

        Args:
            folder: for files of the launcher's own.
        """

    def lingers(self) -> float:
        """Seconds within which jobs have ended whose sweep was killed; 0: they run on to their own end."""
        return 0.0

    def threads(self, cores: int) -> int:
        """CPU threads of each member where `threads=auto`: the cores, shared by those that run at the same time."""
        return max(1, cores // self.jobs)
