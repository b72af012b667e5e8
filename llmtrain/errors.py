"""What can go wrong for a user, each kind with its exit code.

LLMTrainError
├── ConfigError        2   a key, a value, a combination
├── DataError          3   a file, a row
├── CheckpointError    4   weights, checkpoints, caches
├── NonFiniteError     5   the loss is not a number
├── DeviceError        6   device, memory, disk, environment
├── DistributedError   7   several processes
├── Stopped           75   a signal asked for it; the same command goes on from here
└── Interrupted      130   the second Ctrl-C
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import unicodedata
from typing import Any, ClassVar

# Variables of the environment whose values are nobody's business, by their names: AWS_SECRET_ACCESS_KEY, PGPASSWORD, HF_TOKEN. No paths to such: HF_TOKEN_PATH.
SECRET_VARIABLE = re.compile(r"(token|passw(or)?d|passphrase|secret|api_?key)$|(^|_)key$", re.IGNORECASE)
SHORTEST_SECRET = 8  # characters: what is shorter protects nothing, and would be found in ordinary words


class LLMTrainError(Exception):
    """An error that a user can mend: what (key or file:line, and the value), what is allowed, how to mend it."""

    exit_code: ClassVar[int] = 1

    def __init__(self, what: str, *, allowed: str | None = None, fix: str | None = None) -> None:
        super().__init__(what)
        self.what, self.allowed, self.fix = what, allowed, fix

    def screen(self) -> str:
        """The message as printed: at most six lines, no secret, nothing in it that could drive a terminal."""
        parts = [f"error: {self.what}"]
        parts += [f"allowed: {self.allowed}"] if self.allowed else []
        parts += [f"fix: {self.fix}"] if self.fix else []
        lines = [line for part in masked(parts) for line in part.splitlines()]
        return "\n".join(printable(line) for line in lines[:6])


class ConfigError(LLMTrainError):
    exit_code = 2


class DataError(LLMTrainError):
    exit_code = 3


class CheckpointError(LLMTrainError):
    exit_code = 4


class NonFiniteError(LLMTrainError):
    exit_code = 5


class DeviceError(LLMTrainError):
    exit_code = 6


class DistributedError(LLMTrainError):
    exit_code = 7


class Stopped(LLMTrainError):
    exit_code = 75


class Interrupted(LLMTrainError):
    exit_code = 130


class SettingError(Exception):
    """A setting out of range, raised by a settings class that does not know where in the config it stands.

    `config.build` turns it into a ConfigError that names the whole key.
    """

    def __init__(self, field: str, value: object, allowed: str, *, fix: str | None = None) -> None:
        super().__init__(f"{field}={value!r}: {allowed}")
        self.field, self.value, self.allowed, self.fix = field, value, allowed, fix


def require(condition: bool, field: str, value: object, allowed: str, *, fix: str | None = None) -> None:
    """Raise SettingError unless `condition` holds."""
    if not condition:
        raise SettingError(field, value, allowed, fix=fix)


def is_panic(error: BaseException) -> bool:
    """Whether a library in Rust stumbled over its input: to Python that is an interruption and no Exception."""
    return type(error).__name__ == "PanicException"


def printable(text: str) -> str:
    """`text` without control and direction characters, which could rewrite a terminal's screen."""
    if text.isprintable():
        return text
    return "".join(c if c == " " or unicodedata.category(c)[0] != "C" else repr(c)[1:-1] for c in text)


def shown(value: object, limit: int = 80) -> str:
    """A piece of data as a message shows it: escaped, quoted, at most `limit` characters. What is cut off would no longer be known for a secret."""
    value = masked(value)
    text = repr(value) if not isinstance(value, str) else "'" + printable(value) + "'"
    return text if len(text) <= limit else text[: limit - 1] + "…"


def plain(text: str) -> str:
    """`text` as a terminal or a log gets it: line by line, without secrets and what could drive a terminal."""
    return "\n".join(printable(line) for line in masked(text).split("\n"))


def secrets() -> dict[str, str]:
    """What the environment holds in variables whose names say that it is secret, each with the name; the longest first, since one may hold another."""
    found = {value: name for name, value in os.environ.items() if len(value) >= SHORTEST_SECRET and SECRET_VARIABLE.search(name)}
    return dict(sorted(found.items(), key=lambda item: -len(item[0])))


def masked(tree: Any) -> Any:
    """A tree of values in which `***` stands for what `secrets` finds."""
    return _masked(tree, secrets())


def _masked(tree: Any, known: dict[str, str]) -> Any:
    if isinstance(tree, dict):
        return {key: _masked(value, known) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_masked(value, known) for value in tree]
    if isinstance(tree, str):
        for secret in known:
            tree = tree.replace(secret, "***")
    return tree


def write_any_text() -> None:
    """Let stdout and stderr spell out what their encoding has no character for, such as a tick in ASCII: no run ends for the sake of it."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # None without a terminal; something else where a program captures it
            with contextlib.suppress(OSError, ValueError):  # closed, or full
                stream.reconfigure(errors="backslashreplace")
