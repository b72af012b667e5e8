"""A disk that fails, and a process that dies, at a chosen change of the files below a folder."""

from __future__ import annotations

import builtins
import errno
import io
import os
import stat
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any


class Killed(BaseException):
    """The process is dead: from here on nothing that it does reaches the disk, its clearing up neither."""


class Disk:
    """Counts the changes of files below a folder while it is entered, and lets something happen at one of them.

        kill   the process dies before the change
        torn   it dies while a file is synced, of which one half is on the disk
        full   from this change on nothing can be made or written

    What native code writes is not seen, nor are locks, which the system releases.

    Attributes:
        at: the number of the change, from 1; None: nothing happens.
        events: (kind, name) of each change.
    """

    def __init__(self, folder: Path, at: int | None = None, fault: str = "kill") -> None:
        self.folder, self.at, self.fault = os.path.abspath(folder), at, fault
        self.events: list[tuple[str, str]] = []
        self.dead = self.full = False
        self._before: list[tuple[Any, str, Any]] = []

    def __enter__(self) -> Disk:
        for module in (io, builtins):
            self._patch(module, "open", self._open)
        for name in ("mkdir", "unlink", "remove", "rmdir", "rename", "replace", "symlink"):
            self._patch(os, name, lambda real, kind=name: self._changing(real, kind))
        self._patch(os, "fsync", self._fsync)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for module, name, real in self._before:
            setattr(module, name, real)

    def _patch(self, module: Any, name: str, made: Callable[[Any], Any]) -> None:
        real = getattr(module, name)
        self._before.append((module, name, real))
        setattr(module, name, made(real))

    def _changing(self, real: Any, kind: str) -> Any:
        def changed(*arguments: Any, **named: Any) -> Any:
            path = arguments[1 if kind == "symlink" else 0]
            return self._change(kind, path, named, lambda: real(*arguments, **named))

        return changed

    def _open(self, real: Any) -> Any:
        def opened(file: Any, mode: str = "r", *rest: Any, **more: Any) -> Any:
            if not set(mode) & set("wax+") or isinstance(file, int):
                return real(file, mode, *rest, **more)
            return self._change("open", file, {}, lambda: real(file, mode, *rest, **more))

        return opened

    def _fsync(self, real: Any) -> Any:
        def synced(handle: int) -> None:
            path = os.readlink(f"/proc/self/fd/{handle}")
            if not stat.S_ISREG(os.fstat(handle).st_mode):  # a folder: nothing of it can be half there
                real(handle)
                return
            self._change("fsync", path, {}, lambda: real(handle), torn=lambda: os.truncate(path, os.path.getsize(path) // 2))

        return synced

    def _change(self, kind: str, path: Any, more: dict[str, Any], do: Callable[[], Any], torn: Callable[[], None] | None = None) -> Any:
        whole = os.fspath(path)
        if more.get("dir_fd") is not None:
            whole = os.path.join(os.readlink(f"/proc/self/fd/{more['dir_fd']}"), whole)
        if not os.path.abspath(whole).startswith(self.folder + os.sep) or os.path.basename(whole).startswith(".lock"):
            return do()
        if self.dead:
            raise Killed
        self.events.append((kind, os.path.basename(whole)))
        if len(self.events) == self.at:
            if self.fault == "full":
                self.full = True
            else:
                if self.fault == "torn" and torn is not None:
                    torn()
                self.dead = True
                raise Killed
        if self.full and kind in ("open", "mkdir", "symlink", "fsync"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), whole)
        return do()
