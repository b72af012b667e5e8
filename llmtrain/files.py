"""Files that are either whole or not there: written, synced, described by a manifest, renamed once.

    with new_folder(target) as temporary:      # beside the target, so that the rename stays on one file system
        write(temporary / "state.json", data)
        write_manifest(temporary, {"step": 7})
    # here the target exists, complete, or an error was raised and nothing is left

All bytes go through Python's `open` and `fsync`: native writers of other libraries do neither visibly.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llmtrain.errors import DeviceError

MANIFEST = "manifest.json"
VERSION = 1


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write(path: Path, data: bytes) -> None:
    """Write and sync a file. DeviceError where the disk is full."""
    try:
        with path.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise DeviceError(f"{path}: {error.strerror} ({len(data):,} bytes to write)", fix="free disk space; older checkpoints are intact") from error


def write_json(path: Path, content: Any) -> None:
    """Replace a JSON file in one step: a reader sees the old content or the new."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    write(temporary, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())
    temporary.replace(path)
    sync_folder(path.parent)


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
    """A temporary folder that becomes `target` at the end, replacing it, or vanishes when an error passes through."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".tmp-{target.name}-{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        sync_folder(temporary)
        if target.exists():
            shutil.rmtree(target)
        temporary.rename(target)
        sync_folder(target.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_manifest(folder: Path, about: dict[str, Any] | None = None) -> None:
    """Describe every file below `folder` by size and sha256. Files that others wrote are synced on the way."""
    files = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST):
        with path.open("rb+") as file:
            os.fsync(file.fileno())
        files[path.relative_to(folder).as_posix()] = {"bytes": path.stat().st_size, "sha256": sha256(path)}
    write(folder / MANIFEST, json.dumps({"version": VERSION, **(about or {}), "files": files}, indent=2).encode())


def problem(folder: Path) -> str | None:
    """What is wrong with a folder that has, or should have, a manifest; None where all bytes are as written."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        files = dict(manifest["files"])
    except FileNotFoundError:
        return f"{MANIFEST} is missing: the folder is incomplete"
    except (OSError, ValueError, KeyError, TypeError):
        return f"{MANIFEST} cannot be read"
    if manifest.get("version") != VERSION:
        return f"{MANIFEST} has version {manifest.get('version')!r}, this llmtrain reads {VERSION}: written by another version"
    for name, facts in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != facts["bytes"]:
            return f"{name} has {path.stat().st_size:,} bytes instead of {facts['bytes']:,}"
        if sha256(path) != facts["sha256"]:
            return f"{name} was changed after it was written (sha256 differs)"
    return None
