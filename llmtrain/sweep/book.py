"""sweep.json: what a sweep consists of and how far it is, so that the same command goes on where it was.

    book = Book.opened(folder)          →  None where there is no sweep yet
    book.entry(name).status = …; book.save()

A member is finished where its own folder says so; the book only remembers what a folder cannot say, such as why a
process died. It is replaced in one step each time: a reader sees the old content or the new.
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from llmtrain import files
from llmtrain.errors import CheckpointError, shown

FILE, MEMBERS, VERSION = "sweep.json", "members", 1


class Status(Enum):
    """How far a member is. `stopped` can go on; `failed` is tried again only where that is asked for."""

    waiting = "waiting"
    running = "running"
    finished = "finished"
    failed = "failed"
    stopped = "stopped"
    pruned = "pruned"


@dataclass
class Entry:
    """One member.

    Attributes:
        overrides: what it sets, without what is the same for all.
        label: the same for people.
        reason: why it failed or stopped, in a line.
        exit_code: of its process; negative: the signal that ended it.
        seconds: from its start to its end, over all starts.
        expected_seconds: as estimated before.
        cache: always, never or auto: decided for all members together.
        number: of its point in the search.
    """

    name: str
    overrides: list[str]
    label: list[list[str]] = field(default_factory=list)
    status: Status = Status.waiting
    reason: str = ""
    exit_code: int | None = None
    seconds: float = 0.0
    expected_seconds: float | None = None
    cache: str = "auto"
    number: int = 0

    def to_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "status": self.status.value, "seconds": round(self.seconds, 2)}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Entry:
        """An entry of a book, whoever wrote it: its name stays below the sweep's folder.

        Raises:
            ValueError, KeyError: a value that an entry does not have.
        """
        known = files.of_type(cls, content)
        if not files.is_member(known["name"]):
            raise ValueError(f"{shown(known['name'])} is no name of a member")
        if not all(0 <= (known.get(name) or 0) < math.inf for name in ("seconds", "expected_seconds")):
            raise ValueError(f"{known['name']} took no number of seconds")
        return cls(**{**known, "status": Status[known["status"]]})


@dataclass
class _About:
    """Of what is the same for all members, what has a type."""

    name: str
    verb: str
    command: str
    overrides: list[str]
    directory: str
    config_dir: str | None
    newest: str | None
    started: str
    notes: list[str]
    sweep: dict[str, Any]
    launcher: dict[str, Any]
    plan: dict[str, Any]


@dataclass
class Book:
    """A sweep's own file.

    Attributes:
        folder: of the sweep.
        about: name, verb, command, overrides, directory (in which that was typed), sweep, launcher, started, notes, plan: what is the same for all members.
        entries: by name, in the order of the plan.
    """

    folder: Path
    about: dict[str, Any]
    entries: dict[str, Entry] = field(default_factory=dict)

    @classmethod
    def opened(cls, folder: Path) -> Book | None:
        """The book in a folder; None where there is none.

        Raises:
            CheckpointError: it cannot be read.
        """
        path = folder / FILE
        if not path.is_file():
            return None
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content.pop("version") != VERSION:
                raise ValueError("written by another version")
            entries = [Entry.from_json(entry) for entry in content.pop("members")]
            files.of_type(_About, content)
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise CheckpointError(
                f"{path} cannot be read: {error}", fix="another name=NAME starts a new sweep; the members' folders are as they were"
            ) from error
        return cls(folder, content, {entry.name: entry for entry in entries})

    def save(self) -> None:
        files.write_json(self.folder / FILE, {"version": VERSION, **self.about, "members": [entry.to_json() for entry in self.entries.values()]})

    def home(self, entry: Entry) -> Path:
        """The folder of a member's run."""
        return self.folder / MEMBERS / entry.name

    def with_status(self, *wanted: Status) -> list[Entry]:
        return [entry for entry in self.entries.values() if entry.status in wanted]
