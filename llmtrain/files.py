"""Files that are either whole or not there: written, synced, described by a manifest, renamed once.

    with new_folder(target) as temporary:      # beside the target, so that the rename stays on one file system
        write(temporary / "state.json", data)
        write_manifest(temporary, {"step": 7})
    # here the target exists, complete, or an error was raised and nothing is left

All bytes go through Python's `open` and `fsync`: native writers of other libraries do neither visibly. The names beside a
target carry no process: one process at a time writes a target (its folder is locked), and finds what a killed one left.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import re
import shutil
import stat
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from enum import Enum
from pathlib import Path, PurePosixPath
from typing import Any

from llmtrain.errors import DeviceError, printable, shown

MANIFEST = "manifest.json"
VERSION = 1
FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS})  # what a disk can say that a later try may not hear
ROOM = "free disk space; older checkpoints are intact"
ONE_FOLDER = "output_dir=FOLDER on a file system that all processes share"
_NATIVE = re.compile(r"\(os error (\d+)\)")  # how the Rust libraries, safetensors and tokenizers, say the same


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of(paths: Iterable[Path]) -> str:
    """A hash of several files together, in this order; one that is not there is passed over."""
    return hashlib.sha256("".join(sha256(path) for path in paths if path.is_file()).encode()).hexdigest()


def write(path: Path, data: bytes) -> None:
    """Write and sync a file. DeviceError where the disk is full."""
    try:
        with path.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise DeviceError(f"{path}: {error.strerror} ({len(data):,} bytes to write{_free(path, error)})", fix=ROOM) from error


def replace(path: Path, data: bytes) -> None:
    """Write a file in one step: a reader, or whoever comes after a kill, sees the old content or the new."""
    temporary = path.with_name(f".{path.name}.new")
    try:
        write(temporary, data)
        temporary.replace(path)
    except DeviceError:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file in one step."""
    replace(path, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())


@contextlib.contextmanager
def told(place: Path) -> Iterator[None]:
    """An error of the disk, from whatever library writes there, as one that names a path.

    Raises:
        DeviceError: the disk is full, broken or read-only.
    """
    try:
        yield
    except Exception as error:
        number = disk_error(error)
        if number is None:
            raise
        where = getattr(error, "filename", None) or place
        raise DeviceError(f"{where}: {os.strerror(number)}{_free(place, error)}", fix=ROOM) from error


def disk_error(error: BaseException) -> int | None:
    """The system's number of an error of the disk; None for any other error."""
    if isinstance(error, OSError):
        return error.errno if error.errno in FULL else None
    native = None if isinstance(error, DeviceError) else _NATIVE.search(str(error))
    return int(native[1]) if native and int(native[1]) in FULL else None


def _free(path: Path, error: BaseException) -> str:
    """What is left on a full disk."""
    if disk_error(error) not in (errno.ENOSPC, errno.EDQUOT):
        return ""
    with contextlib.suppress(OSError):
        return f", {shutil.disk_usage(path if path.is_dir() else path.parent).free:,} free"
    return ""


def size(folder: Path) -> int:
    """Bytes of all files below a folder; of two names for one file, each."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def sync_folder(path: Path) -> None:
    """Make a rename inside `path` last; file systems and systems that cannot sync a folder are left alone."""
    with contextlib.suppress(OSError):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextlib.contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A temporary folder that becomes `target` at the end, replacing it, or vanishes when an error passes through.

    A target that is there is moved aside and not removed first: at any time one of the two is whole, and `recover` finds it.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary, old = target.with_name(f".tmp-{target.name}"), target.with_name(f".old-{target.name}")
    _put_back(old)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        if not (temporary / MANIFEST).is_file():  # else that was done when the files were described
            _sync_files(temporary)
        sync_folder(temporary)
        if target.exists():
            target.rename(old)
        temporary.rename(target)
        sync_folder(target.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        _put_back(old)


def _put_back(old: Path) -> None:
    """Undo a replacement that was cut in two, and remove what was replaced otherwise."""
    target = old.with_name(old.name.removeprefix(".old-"))
    if old.is_dir() and not target.exists():
        old.rename(target)
        sync_folder(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def recover(folder: Path) -> None:
    """Put in order what a killed process left in a folder that is locked: replacements are finished or undone, beginnings removed."""
    for old in folder.glob(".old-*"):
        _put_back(old)
    for temporary in folder.glob(".tmp-*"):
        shutil.rmtree(temporary, ignore_errors=True)


def _sync_files(folder: Path) -> list[Path]:
    """Sync every file below a folder, whoever wrote it; and let it be read and written by whom the umask says.

    safetensors writes files that their owner alone may read, by way of a temporary one. The folder was made under the umask.
    """
    found = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    mode = stat.S_IMODE(folder.stat().st_mode) & 0o666
    for path in found:
        if stat.S_IMODE(path.stat().st_mode) & 0o666 != mode:
            path.chmod(mode)
        with path.open("rb+") as file:
            os.fsync(file.fileno())
    return found


def write_manifest(folder: Path, about: dict[str, Any] | None = None, known: Mapping[str, dict[str, Any]] | None = None) -> None:
    """Describe every file below `folder` by size and sha256. Files that others wrote are synced on the way.

    Args:
        known: what is known of files that other processes wrote: they are not read again, and have to be there.

    Raises:
        DeviceError: one of them is not.
    """
    known = known or {}
    files = {}
    for path in _sync_files(folder):
        name, size = path.relative_to(folder).as_posix(), path.stat().st_size
        files[name] = known.get(name) or {"bytes": size, "sha256": sha256(path)}
        if files[name]["bytes"] != size:
            raise DeviceError(f"{path} has {size:,} bytes here, and {files[name]['bytes']:,} for the process that wrote it", fix=ONE_FOLDER)
    if not known.keys() <= files.keys():
        raise DeviceError(f"{folder}: {min(known.keys() - files.keys())} of another process is not there", fix=ONE_FOLDER)
    write(folder / MANIFEST, json.dumps({"version": VERSION, **(about or {}), "files": files}, indent=2).encode())


def problem(folder: Path, share: tuple[int, int] = (0, 1)) -> str | None:
    """What is wrong with a folder that has, or should have, a manifest; None where all bytes are as written.

    Args:
        share: (i, n): look at every n-th file alone, from the i-th on; n processes that do so have looked at all.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        version = manifest["version"]
        files = {_inside(name): (int(facts["bytes"]), str(facts["sha256"])) for name, facts in manifest["files"].items()} if version == VERSION else {}
    except FileNotFoundError:
        return f"{MANIFEST} is missing: the folder is incomplete"
    except (OSError, ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError):
        return f"{MANIFEST} cannot be read"
    if version != VERSION:
        return f"{MANIFEST} has version {shown(version)}, this llmtrain reads {VERSION}: written by another version"
    for name, (size, digest) in list(files.items())[share[0] :: share[1]]:
        path = folder / name
        try:
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != size:
                return f"{name} has {path.stat().st_size:,} bytes instead of {size:,}"
            if sha256(path) != digest:
                return f"{name} was changed after it was written (sha256 differs)"
        except OSError as error:
            return f"{name} cannot be read: {error.strerror}"
    return None


def _inside(name: str) -> str:
    """A name in a manifest, which stays below its folder and is fit to be shown.

    Raises:
        ValueError: it is none.
    """
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or printable(name) != name or len(name) > 1000:
        raise ValueError(name)
    return name


# --- what others may have written -----------------------------------------------------------------------------------


def expanded(path: str | Path) -> Path:
    """A path with `~` replaced; as it stands, where nobody of that name has a home."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def is_hub_name(name: str) -> bool:
    """Whether it can be a repository of the Hugging Face hub: NAME or OWNER/NAME. What becomes part of a path in its cache leads nowhere else."""
    return re.fullmatch(r"(?:[A-Za-z0-9][A-Za-z0-9._-]{0,95}/)?[A-Za-z0-9_][A-Za-z0-9._-]{0,95}", name) is not None and ".." not in name


def is_member(name: Any) -> bool:
    """Whether it can be the name of a sweep's member, made of overrides and a hash, or of a file in its folder: it leads nowhere else."""
    return isinstance(name, str) and re.fullmatch(r"[A-Za-z0-9=._-]{1,200}", name) is not None and bool(name.strip("."))


def is_number(value: Any) -> bool:
    """Whether a value of JSON is a number, and one that a float can hold."""
    return isinstance(value, float) or (isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**1000)


def of_type(cls: type, content: Any) -> dict[str, Any]:
    """The fields of a dataclass that a JSON object has, by name; keys of other versions are left out.

    Raises:
        ValueError: it is no object, or names the first field that is of another type than the dataclass says.
    """
    if not isinstance(content, dict):
        raise ValueError(f"{shown(content)} is no object")
    hints = typing.get_type_hints(cls)
    found = {f.name: content[f.name] for f in dataclasses.fields(cls) if f.name in content}
    for name, value in found.items():
        if not _is(value, hints[name]):
            raise ValueError(f"{name} is {shown(value)}")
    return found


def _is(value: Any, hint: Any) -> bool:
    """Whether a value of JSON is of a declared type; the name of its member stands for an Enum's."""
    kind, inner = typing.get_origin(hint), typing.get_args(hint)
    if kind in (typing.Union, types.UnionType):
        return any(_is(value, one) for one in inner)
    if kind is list:
        return isinstance(value, list) and all(_is(one, inner[0]) for one in value)
    if kind is dict:
        return isinstance(value, dict) and all(_is(key, inner[0]) and _is(one, inner[1]) for key, one in value.items())
    if hint is Any:
        return True
    if hint is type(None):
        return value is None
    if hint is float:
        return is_number(value)
    if isinstance(hint, type) and issubclass(hint, Enum):
        return isinstance(value, str) and value in hint.__members__
    return isinstance(value, hint) and isinstance(value, bool) == (hint is bool)
