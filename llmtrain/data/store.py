"""What was computed once is kept on disk: rows and token ids, found again by what they were made from.

    <root>/<name>/<key>/rows.arrow       the rows, memory-mapped when read
                        manifest.json    written last: size and sha256 of each file, number of rows, their fingerprint
    <root>/<name>/<key>.lock             held by whoever builds; the system releases it when the holder dies
    <root>/<name>/.tmp-<key>/            being built; renamed to its final name once, when complete

The key is a hash of everything that the rows depend on, so an entry is never stale; it is verified each time it is
opened, so a torn or rotten one is never used. Nothing here expires: a user deletes the folder to get the space back.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
from datasets import Dataset, DatasetInfo, Features
from filelock import FileLock, Timeout

from llmtrain import files
from llmtrain.errors import DataError, DeviceError, printable, shown

log = logging.getLogger("llmtrain")

JSON = Any  # what `json` writes: None, bool, int, float, str, and lists and string-keyed mappings of these

FORMAT = 1
ROWS = "rows.arrow"
# Libraries that can change the rows that the same code makes of the same input.
LIBRARIES = ("datasets", "pyarrow", "sentencex", "tokenizers", "transformers")
# A record batch is closed at either bound, whatever the rows are: this bounds the memory of a build.
BATCH_ROWS, BATCH_BYTES = 1000, 8 * 2**20
STALE_SECONDS = 24 * 3600
_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), default=lambda value: value.tolist())


def root() -> Path:
    """The folder of the store: $LLMTRAIN_CACHE, else $XDG_CACHE_HOME/llmtrain, else ~/.cache/llmtrain; created.

    Raises:
        DeviceError: where it cannot be created or written.
    """
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    path = Path(os.environ.get("LLMTRAIN_CACHE") or f"{base}/llmtrain")
    try:
        path = path.expanduser().absolute()
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):  # a folder can exist and still not be writable
            return path
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DeviceError(f"the cache folder {path} cannot be written: {reason}", fix="set LLMTRAIN_CACHE to a folder that can be written") from error


def stored(
    name: str,
    parts: Mapping[str, JSON],
    make: Callable[[], Iterable[dict[str, Any]]],
    features: Features | None = None,
    say: Callable[[str], None] = log.warning,
) -> Dataset:
    """The rows that `make` yields, from the disk if they were made before.

    Args:
        name: what they are; a folder of the store.
        parts: everything that the rows depend on. The code of llmtrain.data and of `make`'s own file, and the
            versions of the libraries, are added here.
        make: yields the rows; run only where they are not stored. A generator's return value, a mapping for JSON, is
            kept as the `facts` of the rows.
        features: the columns; None takes them from the first rows.
        say: told, in one line, why stored rows are made again, or whom one waits for.

    Raises:
        DataError: where there is no row and `features` does not say what one would look like.
        DeviceError: where the store cannot be written.
    """
    identity = {"name": name, "parts": dict(parts), "format": FORMAT, "libraries": {lib: version(lib) for lib in LIBRARIES}, "code": _code(make)}
    key = hashlib.sha256(_ENCODER.encode(identity).encode()).hexdigest()
    entry = root() / name / key
    with _translated(entry.parent):
        entry.parent.mkdir(parents=True, exist_ok=True)
        opened, why = _open(entry)  # without the lock: what was renamed here is complete, and readers need not queue
        if opened is None:
            with _locked(entry, say):
                opened, why = _open(entry)
                if opened is None:
                    if why:
                        say(f"cache: {name} is made again: {why} ({entry})")
                    _build(entry, make, features, identity)
                    opened, why = _open(entry)
    if opened is None:
        raise DeviceError(f"the cache cannot read back what it just wrote: {why}", fix="set LLMTRAIN_CACHE to a folder on another disk")
    return opened


def fingerprint(dataset: Dataset) -> str:
    """A hash of the rows; of stored rows it depends on their content only, so it outlives a new version or another place.

    What `datasets` derives from stored rows (select, remove_columns, …) has a fingerprint derived from theirs.
    """
    return str(dataset._fingerprint)


def with_fingerprint(dataset: Dataset, content: str) -> Dataset:
    """`dataset`, whose rows' content hash is known to the caller: sha256 in hexadecimal."""
    dataset._fingerprint = content
    return dataset


def facts(dataset: Dataset) -> dict[str, JSON]:
    """What the maker of stored rows noted about them, and what it returned; empty for others."""
    description = dataset.info.description or ""
    return dict(json.loads(description)) if description.startswith("{") else {}


# --- opening ------------------------------------------------------------------------------------------------------


def _open(entry: Path) -> tuple[Dataset | None, str]:
    """The rows of an entry; or None and why not: nothing, where there is no entry."""
    if not entry.exists():
        return None, ""
    try:
        if problem := files.problem(entry):
            return None, problem
        manifest = json.loads((entry / files.MANIFEST).read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT:
            return None, f"it has format {shown(manifest['format'])}, this llmtrain writes {FORMAT}"
        dataset = Dataset.from_file(str(entry / ROWS))
        info = DatasetInfo(features=dataset.features, description=json.dumps(manifest["facts"]))
        return Dataset(dataset.data, info=info, fingerprint=manifest["fingerprint"]), ""
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, pa.ArrowException) as error:
        return None, f"it cannot be read: {type(error).__name__}: {printable(' '.join(str(error).split()))[:200]}"


# --- building -----------------------------------------------------------------------------------------------------


def _build(entry: Path, make: Callable[[], Iterable[dict[str, Any]]], features: Features | None, identity: dict[str, JSON]) -> None:
    """Write an entry beside its place, then rename it there."""
    _sweep(entry)
    with files.new_folder(entry) as temporary:
        rows = make()
        try:
            about = _write_rows(temporary / ROWS, rows, features)
        finally:
            getattr(rows, "close", lambda: None)()  # a generator that was not finished lets go of its files
        files.write_manifest(temporary, {"format": FORMAT, "made_from": identity, **about})


def _write_rows(path: Path, rows: Iterable[dict[str, Any]], features: Features | None) -> dict[str, JSON]:
    """Stream rows into an Arrow file; what the manifest says about them."""
    digest, noted = hashlib.sha256(), _Returned(rows)
    batches = _batches(noted, digest)
    first = next(batches, [])
    if features is None and not first:
        raise DataError("there are no rows to keep")
    schema = (features or Features.from_arrow_schema(pa.Table.from_pylist(first).schema)).arrow_schema
    count = 0
    with path.open("wb") as file, pa.ipc.new_stream(file, schema) as writer:
        for batch in itertools.chain([first], batches):
            writer.write_batch(pa.RecordBatch.from_pylist(batch, schema=schema))
            count += len(batch)
    return {"rows": count, "fingerprint": digest.hexdigest(), "facts": {**noted.value, "rows": count}}


class _Returned:
    """Iterates over rows and keeps what a generator of them returns at its end."""

    def __init__(self, rows: Iterable[dict[str, Any]]) -> None:
        self.rows, self.value = rows, dict[str, JSON]()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        returned: JSON = yield from cast("Generator[dict[str, Any], None, JSON]", self.rows)  # a list works as well
        self.value = dict(returned or {})


def _batches(rows: Iterable[dict[str, Any]], digest: Any) -> Iterator[list[dict[str, Any]]]:
    """Rows in lists of bounded size; their content goes into `digest`."""
    batch: list[dict[str, Any]] = []
    size = 0
    for row in rows:
        encoded = _ENCODER.encode(row).encode()
        digest.update(encoded + b"\n")
        batch.append(row)
        size += len(encoded)
        if len(batch) >= BATCH_ROWS or size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _sweep(entry: Path) -> None:
    """Remove what builders left: all of this entry's (its lock is held here), of other entries what is over a day old."""
    for path in entry.parent.glob(".tmp-*"):
        with contextlib.suppress(OSError):
            written = max(inside.stat().st_mtime for inside in [path, *path.rglob("*")])
            if entry.name in path.name or time.time() - written > STALE_SECONDS:
                shutil.rmtree(path, ignore_errors=True)


def _code(make: Callable[..., Any]) -> str:
    """A hash of the source that makes rows: an edit of it must not bring back rows of before."""
    own = getattr(getattr(make, "__code__", None), "co_filename", None)
    sources = sorted(Path(__file__).parent.glob("*.py")) + ([Path(own)] if own else [])
    return files.sha256_of(sources)


# --- the operating system -----------------------------------------------------------------------------------------


@contextlib.contextmanager
def _locked(entry: Path, say: Callable[[str], None]) -> Iterator[None]:
    lock = FileLock(entry.with_name(f"{entry.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(f"cache: waiting for another process that makes {entry.parent.name} ({entry})")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def _translated(folder: Path) -> Iterator[None]:
    """An error of the disk, as the user should read it."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO):
            raise
        fix = "free some space there, or set LLMTRAIN_CACHE to a folder that can be written"
        raise DeviceError(f"the cache folder {folder} cannot be written: {error.strerror}", fix=fix) from error
