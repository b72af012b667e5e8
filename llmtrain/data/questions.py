"""Texts that a model is to answer: a file or standard input, without labels; and its answers, written down.

.csv, .jsonl, .parquet    the columns that labelled rows have, without the answer; others are carried along
.txt                      a text a line
standard input            a JSON object or a text a line

A line that is blank is no text; a row of a file whose text is blank is refused.
"""

from __future__ import annotations

import json
import sys
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmtrain.data import columns, readers
from llmtrain.data.base import Target
from llmtrain.data.columns import Named
from llmtrain.errors import DataError, shown

if TYPE_CHECKING:
    from datasets import Dataset

STANDARD_INPUT = "-"
WRITTEN = (".csv", ".jsonl")
TEXTS = ("text", "second", "choices")

Record = dict[str, Any]


def read(path: str, target: Target, named: Named, encoding: str) -> tuple[Dataset, list[Record]]:
    """The rows as an objective takes them (text, second, choices), and each as it was read.

    Args:
        path: of a file; "-": standard input.
        named: columns that the user named; a line of plain text is of the column of the text.

    Raises:
        DataError: what cannot be read, a text that is blank or no text, or nothing at all.
    """
    from datasets import Dataset

    column = named.text or "text"
    found = list(_standard_input(column, target) if path == STANDARD_INPUT else _file(path, target, column, encoding))
    if not found:
        raise DataError(f"{_name(path)} has no text to answer")
    wanted = _wanted(path, [record for _, record in found], target, named)
    rows = [_row(where, record, wanted) for where, record in found]
    return Dataset.from_list(rows), [record for _, record in found]


def said(path: str, records: list[Record], target: Target, named: Named) -> str:
    """Which columns of these records `read` took for what."""
    text, second, choices = _wanted(path, records, target, named)
    parts = [f"text from {shown(text)}"]
    parts += [f"second text from {shown(second)}"] if second else []
    parts += [f"choices from {', '.join(map(shown, choices))}"] if choices else []
    return f"{_name(path)}: {', '.join(parts)}"


def texts(rows: Dataset) -> list[str]:
    """Which texts a row has, as run.json keeps it of what was trained on: text, and second or choices."""
    return [name for name in TEXTS if name in rows.column_names]


def refuse_other_texts(where: str, rows: Dataset, trained: list[str] | None) -> None:
    """Refuse single texts for a model that was trained on pairs, and pairs for one that was trained on single texts: it would answer anything.

    Args:
        trained: `texts` of the rows that it was trained on; None where that is not known.

    Raises:
        DataError: with the way out.
    """
    if trained is None or ("second" in texts(rows)) == ("second" in trained):
        return
    has, asks, fix = (
        ("one text a row", "a text and a second one", "rows with a second text, under the names of the run's data, such as text and second")
        if "second" in trained
        else ("a second text in each row", "one text a row", "rows without the second text")
    )
    raise DataError(f"{where}: there is {has}, and the model was trained on {asks}", fix=fix)


def _wanted(path: str, records: list[Record], target: Target, named: Named) -> tuple[str, str | None, tuple[str, ...]]:
    return columns.unanswered(_name(path), list(dict.fromkeys(name for record in records for name in record)), target, named)


def _name(path: str) -> str:
    return "standard input" if path == STANDARD_INPUT else path


def _file(path: str, target: Target, column: str, encoding: str) -> Iterator[tuple[str, Record]]:
    found = readers.find([path])
    if len(found) > 1:
        raise DataError(f"file={path}: {len(found)} files", allowed="one file, or - for standard input")
    source = readers.look(found[0])
    kind = source.path.suffix.lower()
    if kind == ".txt":
        lines = readers.read(source, column=column, documents=readers.Unit.line, encoding=encoding)
        for where, chunks in lines:
            yield from _plain(where, "".join(chunks or ()), column, target)
        return
    # A table has a value for every column that it has; an object may lack what is not asked for.
    names = [] if kind in (".json", ".jsonl") else readers.columns(source, encoding)
    for number, record in readers.records(source, dict.fromkeys(names, readers.TEXT_COLUMN), encoding):
        if record is not None:
            yield readers.place(source.path, number), dict(record)


def _standard_input(column: str, target: Target) -> Iterator[tuple[str, Record]]:
    number = 0
    try:
        for number, line in enumerate(sys.stdin, start=1):
            where, text = f"{_name(STANDARD_INPUT)}:{number}", line.removeprefix("\ufeff") if number == 1 else line
            if not text.lstrip().startswith("{"):
                yield from _plain(where, text, column, target)
                continue
            try:
                yield where, json.loads(text)
            except (ValueError, RecursionError) as error:
                raise DataError(f"{where}: not JSON: {error}: {shown(text.strip())}", allowed='an object, {"text": "…"}, or a text') from error
    except UnicodeDecodeError as error:
        what = f"{_name(STANDARD_INPUT)}:{number + 1}: a byte 0x{error.object[error.start]:02x} that is not {error.encoding}"
        raise DataError(what, fix="give a file: it is read in the encoding of the run's data") from error


def _plain(where: str, line: str, column: str, target: Target) -> Iterator[tuple[str, Record]]:
    """A line of text as a record; none where it is blank."""
    text = line.rstrip("\r\n")
    if text.strip() and target is Target.choice:
        raise DataError(f"{where}: a line of text has no choices", allowed='an object a line, {"text": "…", "choices": ["…", "…"]}')
    if text.strip():
        yield where, {column: text}


def _row(where: str, record: Record, wanted: tuple[str, str | None, tuple[str, ...]]) -> Record:
    text, second, choices = wanted
    row: Record = {"text": _text(where, text, record.get(text))}
    if second is not None:
        row["second"] = _text(where, second, record.get(second))
    if choices:
        row["choices"] = _choices(where, choices, record)
    return row


def _choices(where: str, names: tuple[str, ...], record: Record) -> list[str]:
    """Those of a list, or of columns of their own, of which the last may be blank: the answer is a number, so none is left out."""
    listed = record.get(names[0]) if len(names) == 1 else [record.get(name) for name in names]
    if not isinstance(listed, list):
        raise DataError(f"{where}: {names[0]} is {shown(listed)}, which is {type(listed).__name__}", allowed="a list of two texts or more")
    while listed and len(names) > 1 and not str(listed[-1] or "").strip():
        listed.pop()
    if len(listed) < 2:
        raise DataError(f"{where}: {len(listed)} choices in {', '.join(names)}", allowed="two texts or more")
    return [_text(where, f"choice {number} of {', '.join(names)}", choice) for number, choice in enumerate(listed, start=1)]


def _text(where: str, name: str, value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{where}: {name} is {shown(value)}", allowed="text that is not blank")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise DataError(f"{where}: {name} holds half of a surrogate pair, which is no character: {shown(value)}")
    return value


# --- answers, written ---------------------------------------------------------------------------------------------


def writable(path: Path) -> Path:
    """`path`, if answers can be written to a file of this name.

    Raises:
        DataError: another kind of file.
    """
    if path.suffix.lower() not in WRITTEN:
        raise DataError(f"output={path}: files that end in {path.suffix or 'no suffix'!r} are not written", allowed=", ".join(WRITTEN))
    if not path.absolute().parent.is_dir():
        raise DataError(f"output={path}: there is no folder {path.absolute().parent}", fix="make it first, or name another")
    return path


def write(path: Path, records: list[Record]) -> None:
    """Records as .csv or .jsonl, by the name of the file.

    In .csv a text that a spreadsheet would take for a formula (it begins with =, +, - or @, or a tab or line end) gets an
    apostrophe before it; .jsonl keeps every text as it is.

    Raises:
        DataError: another kind of file.
    """
    from llmtrain import files

    text = _csv(records) if writable(path).suffix.lower() == ".csv" else "".join(f"{as_json(record)}\n" for record in records)
    files.write(path, text.encode(errors="backslashreplace"))


def as_json(record: Mapping[str, Any]) -> str:
    """A record in one line: letters as they are, and escaped what could drive a terminal. What JSON has no word for is text."""
    text = json.dumps(record, ensure_ascii=False, default=str)
    return "".join(c if unicodedata.category(c)[0] != "C" else json.dumps(c)[1:-1] for c in text)


def _csv(records: list[Record]) -> str:
    import csv
    import io

    names = list(dict.fromkeys(name for record in records for name in record))
    out = io.StringIO()
    plain, quoted = (csv.writer(out, lineterminator="\n", quoting=quoting) for quoting in (csv.QUOTE_MINIMAL, csv.QUOTE_ALL))
    rows: list[list[Any]] = [list(names), *([record.get(name) for name in names] for record in records)]
    for cells in rows:
        harmless = [_harmless(cell) for cell in cells]
        # Python leaves a lone \r without quotes, and reads it as the end of a row.
        (quoted if any("\r" in cell for cell in harmless if isinstance(cell, str)) else plain).writerow(harmless)
    return out.getvalue()


def _harmless(value: Any) -> Any:
    if isinstance(value, dict | list):
        return json.dumps(value, ensure_ascii=False, default=str)
    return f"'{value}" if isinstance(value, str) and value[:1] in tuple("=+-@\t\r\n") else value
