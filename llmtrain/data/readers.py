"""Text files: found by path, glob or folder, and read document by document with bounded memory.

    .txt        a document is the file, a line, or what stands between blank lines
    .jsonl      (also .json) one object a line, the text under one key
    .csv        a header, then rows that all have its number of cells; read strictly
    .parquet    one column, or several

A .txt file may hold lines of any length; a JSON line, a CSV line or cell of over RECORD characters is refused. A
byte-order mark is dropped. Words such as NA, null and None are text.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import glob
import itertools
import json
import os
import re
import stat
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, TextIO

from llmtrain.data.documents import PART, Found
from llmtrain.errors import DataError, shown
from llmtrain.files import expanded, sha256

# Characters in one JSON line, or in one line or cell of a CSV: these are parsed whole.
RECORD = 2**26
SCRIPTS = "scripts are not run"
TEXT_COLUMN = "text_column"  # the setting that names the column of the text

Record = tuple[int, dict[str, Any] | None]  # the line (or row of a Parquet file); what stands there, None for a blank line


class Unit(Enum):
    """What a document is in a .txt file."""

    file = "file"
    line = "line"
    blank_line = "blank_line"
    chapter = "chapter"


@dataclass(frozen=True, kw_only=True)
class Source:
    """A file as it was when it was looked at: where, and the sha256 of what it holds."""

    path: Path
    content: str


# --- finding ------------------------------------------------------------------------------------------------------


def find(patterns: Iterable[str]) -> list[Path]:
    """The files that paths, globs and folders name, each once; a folder's in the order of their names.

    Hidden entries of a folder, and its files of other kinds, are left out.

    Raises:
        DataError: for what does not exist, cannot be read, or is of no kind that is read.
    """
    found = [path for pattern in patterns for path in _named(pattern)]
    return list(dict.fromkeys(found))


def _named(pattern: str) -> list[Path]:
    path = expanded(pattern).absolute()
    if os.path.lexists(path):
        return _folder(path) if _mode(path, stat.S_ISDIR) else [_readable(path)]
    if not glob.has_magic(pattern):
        raise DataError(f"{path}: no such file or folder", fix="check the path; a relative one starts in the folder you are in")
    matches = sorted(Path(match) for match in glob.glob(str(path), recursive=True))
    files = [m for m in matches if m.suffix.lower() in READERS and not _mode(m, stat.S_ISDIR)]
    if not files:
        raise DataError(f"{path}: the glob matches {len(matches)} files, of these 0 to read", allowed=", ".join(READERS))
    return [_readable(m) for m in files]


def _folder(path: Path) -> list[Path]:
    files = sorted(file for file in below(path) if file.suffix.lower() in READERS)
    if not files:
        raise DataError(f"{path}: the folder has no file to read", allowed=", ".join(READERS))
    return [_readable(file) for file in files]


def below(folder: Path, above: tuple[str, ...] = ()) -> Iterator[Path]:
    """The files below a folder; links are followed, unless they lead back to a folder they stand in."""
    real = os.path.realpath(folder)
    if real in above:
        raise DataError(f"{folder}: the link leads back to {real}, in which it stands", fix="remove the link")
    with reading(folder):
        entries = sorted(Path(entry.path) for entry in os.scandir(folder) if not entry.name.startswith("."))
    for entry in entries:
        if _mode(entry, stat.S_ISDIR):
            yield from below(entry, (*above, real))
        else:
            yield entry


def _mode(path: Path, test: Callable[[int], bool]) -> bool:
    with reading(path):
        return test(path.stat().st_mode)


def _readable(path: Path) -> Path:
    """`path`, if it is a file that is read here."""
    if path.suffix.lower() == ".py":
        raise DataError(f"{path}: {SCRIPTS}", allowed=", ".join(READERS), fix="write the rows to a .jsonl file first")
    if path.suffix.lower() not in READERS:
        raise DataError(f"{path}: files that end in {path.suffix or 'no suffix'!r} are not read", allowed=", ".join(READERS))
    if not _mode(path, stat.S_ISREG):  # a pipe would be waited for, for ever
        raise DataError(f"{path}: not a regular file", fix="write its content to a file first")
    return path


def look(path: Path) -> Source:
    """A file and the hash of its content: neither size nor time tell whether a file changed."""
    with reading(path):
        return Source(path=path, content=sha256(path))


def probe(path: Path) -> None:
    """Raise DataError unless a file can be opened and read."""
    with reading(path), path.open("rb") as file:
        file.read(1)


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """What the system says about a path, as the user should read it."""
    try:
        yield
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}", fix="check that it exists, and its permissions") from error


# --- reading ------------------------------------------------------------------------------------------------------


def read(source: Source, *, column: str, documents: Unit, encoding: str) -> Generator[Found, None, None]:
    """The documents of a file, in its order, each to be consumed before the next is asked for.

    Args:
        column: the key or column of the text, for all but .txt.
        documents: what ends a document, for .txt.
        encoding: of the file, for all but .parquet.

    Raises:
        DataError: naming the file, the line or row, and what stands there.
    """
    path = source.path
    with _steady(source):
        if path.suffix.lower() == ".parquet":
            yield from _parquet(path, column)
        else:
            with _decoding(path, encoding), _opened(path, encoding) as file:
                for where, chunks in READERS[path.suffix.lower()](path, file, column, documents):
                    yield where, chunks and _guarded(path, encoding, chunks)


@contextlib.contextmanager
def _steady(source: Source) -> Iterator[None]:
    """Reading a file to its end; DataError where it is then another one than was looked at."""
    with reading(source.path):
        yield
        if look(source.path) != source:
            raise DataError(f"{source.path}: changed while it was read", fix="start again when nothing writes to it")


def _guarded(path: Path, encoding: str, chunks: Iterable[str]) -> Iterator[str]:
    """Chunks that are read when the consumer asks for them, with errors that say where."""
    with reading(path), _decoding(path, encoding):
        yield from chunks


@contextlib.contextmanager
def _opened(path: Path, encoding: str) -> Iterator[TextIO]:
    # A quoted CSV cell keeps its line ends as they are; elsewhere \r\n and \r end a line like \n.
    with path.open(encoding=encoding, newline="" if path.suffix.lower() == ".csv" else None) as file:
        if file.read(1) != "\ufeff":
            file.seek(0)
        yield file


class _NulError(Exception):
    """A NUL character where text should be."""


@contextlib.contextmanager
def _decoding(path: Path, encoding: str) -> Iterator[None]:
    try:
        yield
    except (UnicodeError, _NulError) as error:
        raise _undecodable(path, encoding) from error


def _undecodable(path: Path, encoding: str) -> DataError:
    """Where a file stops being text of an encoding: found by decoding it again from its start."""
    decoder = codecs.getincrementaldecoder(encoding)()
    done, line = 0, 1
    with path.open("rb") as file:
        marked = file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
        file.seek(0)
        for chunk in itertools.chain(iter(lambda: file.read(2**16), b""), [b""]):
            try:
                text = decoder.decode(chunk, final=not chunk)
                if "\0" in text:
                    return DataError(
                        f"{path}:{line + text[: text.index(chr(0))].count(chr(10))}: a NUL character: not {encoding} text",
                        fix="data.encoding=utf-16-le (or utf-16-be) if that is what it is",
                    )
            except UnicodeDecodeError as error:
                start = done + len(chunk) - len(error.object) + error.start
                line += _line_ends(error.object[: error.start], encoding)
                what = f"{path}:{line}: byte {start} is 0x{error.object[error.start]:02x}: not {encoding}"
                return DataError(what, fix=f"data.encoding={'utf-16' if marked else 'latin-1'}, if that is what the file is")
            except UnicodeError as error:
                return DataError(f"{path}: not {encoding}: {error}", fix="data.encoding=utf-8, if that is what the file is")
            done += len(chunk)
            line += text.count("\n")
    return DataError(f"{path}: not {encoding} text", fix="start again when nothing writes to it")


def _line_ends(data: bytes, encoding: str) -> int:
    try:
        return data.decode(encoding, "ignore").count("\n")
    except UnicodeError:  # idna leaves nothing out; its lines end as those of ASCII do
        return data.count(b"\n")


def _txt(path: Path, file: TextIO, column: str, documents: Unit) -> Iterator[Found]:
    del column
    chunks = {Unit.file: _whole, Unit.line: _lines, Unit.blank_line: _paragraphs, Unit.chapter: _chapters}[documents](file)
    for number, document in chunks:
        yield f"{path}:{number}", (_without_nul(chunk) for chunk in document)


def _without_nul(chunk: str) -> str:
    if "\0" in chunk:  # UTF-16 without its mark decodes as UTF-8, every other character a NUL
        raise _NulError
    return chunk


def _whole(file: TextIO) -> Iterator[tuple[int, Iterator[str]]]:
    yield 1, iter(lambda: file.read(PART), "")


def _lines(file: TextIO) -> Iterator[tuple[int, Iterator[str]]]:
    for number in itertools.count(1):
        if not (piece := file.readline(PART)):
            return
        yield number, _line(file, piece)


def _line(file: TextIO, piece: str) -> Iterator[str]:
    """A line in pieces of at most PART characters."""
    while piece:
        yield piece
        piece = "" if piece.endswith("\n") else file.readline(PART)


def _paragraphs(file: TextIO) -> Iterator[tuple[int, Iterator[str]]]:
    number = _LineNumber()
    while piece := file.readline(PART):
        number.add(piece)
        if not piece.isspace():
            yield number.lines, _paragraph(file, piece, number)


def _paragraph(file: TextIO, piece: str, number: _LineNumber) -> Iterator[str]:
    while piece and not piece.isspace():
        yield piece
        piece = file.readline(PART)
        number.add(piece)


# `CHAPTER IV`, `Part two`, `## Heading`, after a blank line. In running prose a line seldom begins so after one.
NUMERAL = r"([ivxlcdm]+|\d+|one|two|three|four|five|six|seven|eight|nine|ten)"
HEADING = re.compile(rf"\s{{0,8}}(#{{1,6}}\s|(chapter|book|part|volume|letter|act|scene|section)\s+{NUMERAL}\b)", re.IGNORECASE)


def _chapters(file: TextIO) -> Iterator[tuple[int, Iterator[str]]]:
    """From one heading to the next; what stands before the first is a document as well."""
    number, following = _LineNumber(), [file.readline(PART)]
    number.add(following[0])
    while following[0]:
        yield number.lines, _chapter(file, following, number)


def _chapter(file: TextIO, following: list[str], number: _LineNumber) -> Iterator[str]:
    """The lines of a chapter; the heading that ends it is left in `following`."""
    piece, blank = following[0], False
    while piece and not (blank and HEADING.match(piece)):
        yield piece
        blank = piece.isspace()
        piece = file.readline(PART)
        number.add(piece)
    following[0] = piece


class _LineNumber:
    """The line that a reader is in: the first is 1; a piece that does not end its line leaves the next one in it."""

    def __init__(self) -> None:
        self.lines, self._ended = 0, True

    def add(self, piece: str) -> None:
        self.lines += self._ended
        self._ended = piece.endswith("\n")


def _records(path: Path, file: TextIO) -> Iterator[str]:
    """The lines of a file whose lines are parsed whole."""
    for number in itertools.count(1):
        line = file.readline(RECORD + 1)
        if not line:
            return
        if len(line) > RECORD:
            raise DataError(f"{path}:{number}: a line of over {RECORD:,} characters", allowed=f"at most {RECORD:,} in a {path.suffix} file; any length in .txt")
        yield _without_nul(line)


def _jsonl(path: Path, file: TextIO, column: str, documents: Unit) -> Iterator[Found]:
    del documents
    return _found(path, column, _json_records(path, file, {column: TEXT_COLUMN}))


def _csv(path: Path, file: TextIO, column: str, documents: Unit) -> Iterator[Found]:
    del documents
    return _found(path, column, _csv_records(path, file, {column: TEXT_COLUMN}))


def _found(path: Path, column: str, found: Iterable[Record]) -> Iterator[Found]:
    """The texts of one column, as documents."""
    for number, record in found:
        where = place(path, number)
        yield where, None if record is None else text_of(where, column, record[column])


# --- rows of several columns --------------------------------------------------------------------------------------


def place(path: Path | str, number: int) -> str:
    """Where a row stands, for messages: its file, and its line there, or its number in a Parquet file."""
    return f"{path}: row {number}" if str(path).lower().endswith(".parquet") else f"{path}:{number}"


def columns(source: Source, encoding: str) -> list[str]:
    """The names of a file's columns: a header's, or the keys of the first JSON object; none in an empty file.

    Raises:
        DataError: where the first row cannot be read.
    """
    path = source.path
    if path.suffix.lower() == ".parquet":
        with reading(path), _parquet_file(path) as parquet:
            return list(parquet.schema_arrow.names)
    with reading(path), _decoding(path, encoding), _opened(path, encoding) as file:
        if path.suffix.lower() == ".csv":
            try:
                return next(csv.reader(_records(path, file), strict=True), [])
            except csv.Error as error:
                raise DataError(f"{path}:1: not CSV: {error}", allowed="a header of column names, then rows") from error
        first = next((record for _, record in _json_records(path, file, {}) if record is not None), {})
        return list(first)


def records(source: Source, wanted: Mapping[str, str], encoding: str) -> Generator[Record, None, None]:
    """The rows of a .jsonl, .csv or .parquet file, in its order.

    Args:
        wanted: the columns that every row must have, each with the setting that names it.

    Raises:
        DataError: naming the file, the line or row, and what stands there.
    """
    path = source.path
    with _steady(source):
        if path.suffix.lower() == ".parquet":
            yield from _parquet_records(path, wanted)
        else:
            with _decoding(path, encoding), _opened(path, encoding) as file:
                yield from (_csv_records if path.suffix.lower() == ".csv" else _json_records)(path, file, wanted)


def _json_records(path: Path, file: TextIO, wanted: Mapping[str, str]) -> Iterator[Record]:
    example = ", ".join(f'"{column}": "…"' for column in wanted or ("text",))
    for number, line in enumerate(_records(path, file), start=1):
        where = place(path, number)
        if line.isspace():
            yield number, None
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            torn = "" if line.endswith("\n") else "; the last line has no end, so the file may be cut off"
            raise DataError(f"{where}: not JSON: {error}{torn}: {shown(line.strip())}", allowed=f"one object a line: {{{example}}}") from error
        if not isinstance(row, dict):
            raise DataError(f"{where}: {shown(row)} is no object", allowed=f"one object a line: {{{example}}}")
        for column, setting in wanted.items():
            if column not in row:
                raise missing(where, column, row, setting)
        yield number, row


def _csv_records(path: Path, file: TextIO, wanted: Mapping[str, str]) -> Iterator[Record]:
    reader = csv.reader(_records(path, file), strict=True)
    before, line = csv.field_size_limit(RECORD), 1
    try:
        header = next(reader, [])
        for column, setting in wanted.items():
            if header.count(column) > 1:
                raise DataError(f"{path}:1: {header.count(column)} columns are called {column!r}", allowed="one")
            if header and column not in header:
                raise missing(f"{path}:1", column, header, setting)
        cells = {column: header.index(column) for column in wanted if header}
        line = reader.line_num + 1
        for row in reader:
            number = line
            line = reader.line_num + 1
            if row and len(row) != len(header):
                raise DataError(f"{path}:{number}: {len(row)} cells, the header has {len(header)}", fix="quote cells that hold commas or line ends")
            yield number, {column: row[cell] for column, cell in cells.items()} if row else None
    except csv.Error as error:
        fix = "a quote inside a quoted cell is written twice, and every quote that opens also closes"
        raise DataError(f"{path}:{line}: not CSV: {error} (the row that starts here, read up to line {reader.line_num})", fix=fix) from error
    finally:
        csv.field_size_limit(before)


def _parquet(path: Path, column: str) -> Iterator[Found]:
    return _found(path, column, _parquet_records(path, {column: TEXT_COLUMN}))


def _parquet_records(path: Path, wanted: Mapping[str, str]) -> Iterator[Record]:
    with _parquet_file(path) as file:
        for column, setting in wanted.items():
            if column not in file.schema_arrow.names:
                raise missing(str(path), column, file.schema_arrow.names, setting)
        number = itertools.count(1)
        for batch in file.iter_batches(batch_size=1000, columns=list(wanted)):
            for record in batch.to_pylist():
                yield next(number), record


@contextlib.contextmanager
def _parquet_file(path: Path) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            yield file
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a Parquet file, or a damaged one: {' '.join(str(error).split())[:200]}") from error


def missing(where: str, column: str, found: Iterable[Any], setting: str = TEXT_COLUMN) -> DataError:
    """The answer to a row or file without a column that is wanted; `setting` is the one that names it."""
    return DataError(f"{where}: no column {column!r}", allowed=f"one of the columns there: {listed(found)}", fix=naming(setting))


def naming(setting: str) -> str:
    """How a user names a column."""
    return f"data.{setting}={'[NAME,NAME]' if setting == 'choice_columns' else 'NAME'}"


def listed(found: Iterable[Any]) -> str:
    """Names of columns as a message lists them."""
    return ", ".join(shown(name, 40) for name in list(found)[:20]) or "none"


def text_of(where: str, column: str, value: Any) -> list[str] | None:
    """A cell as chunks of text; None where it is absent."""
    if value is None or isinstance(value, str):
        return None if value is None else [value]
    raise DataError(f"{where}: {column} is {shown(value)}, which is {type(value).__name__}", allowed="text, or null for none")


READERS: dict[str, Callable[[Path, TextIO, str, Unit], Iterator[Found]]] = {
    ".txt": _txt,
    ".jsonl": _jsonl,
    ".json": _jsonl,
    ".csv": _csv,
    ".parquet": lambda path, file, column, documents: _parquet(path, column),
}
