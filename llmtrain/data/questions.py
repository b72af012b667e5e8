"""Texts that a model is to answer: a file or standard input, without labels.

.csv, .jsonl, .parquet    the columns that labelled rows have, without the answer; others are carried along
.txt                      a text a line
standard input            a JSON object or a text a line
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmtrain.data import columns, readers
from llmtrain.data.base import Target
from llmtrain.data.columns import Named
from llmtrain.errors import DataError, shown

if TYPE_CHECKING:
    from datasets import Dataset

STANDARD_INPUT = "-"


def read(path: str, target: Target, named: Named, encoding: str) -> tuple[Dataset, list[dict[str, Any]]]:
    """The rows as an objective takes them (text, second, choices), and each as it was read.

    Args:
        path: of a file; "-": standard input.
        named: columns that the user named.

    Raises:
        DataError: what cannot be read, a text that is blank, or nothing at all.
    """
    from datasets import Dataset

    found = list(_lines(path, sys.stdin, target) if path == STANDARD_INPUT else _file(path, target, named, encoding))
    if not found:
        raise DataError(f"{'standard input' if path == STANDARD_INPUT else path} has no text to answer")
    wanted = columns.unanswered(path, list(found[0][1]), target, named)
    rows = [_row(where, record, wanted) for where, record in found]
    return Dataset.from_list(rows), [record for _, record in found]


def _file(path: str, target: Target, named: Named, encoding: str) -> Iterator[tuple[str, dict[str, Any]]]:
    (where,) = readers.find([path])
    source = readers.look(where)
    if where.suffix.lower() == ".txt":
        with readers.reading(where), where.open(encoding=encoding) as file:
            yield from _lines(str(where), file, target)
        return
    names = readers.columns(source, encoding)
    for number, record in readers.records(source, dict.fromkeys(names, "text_column"), encoding):
        if record is not None:
            yield readers.place(where, number), record


def _lines(name: str, file: Iterable[str], target: Target) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(file, start=1):
        line = line.rstrip("\r\n")
        where = f"{'standard input' if name == STANDARD_INPUT else name}:{number}"
        if not line.strip():
            continue
        if line.lstrip().startswith("{") and name == STANDARD_INPUT:
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DataError(f"{where}: not JSON: {error}: {shown(line)}", allowed='an object, {"text": "…"}, or a text') from error
            yield where, record
        elif target is Target.choice:
            raise DataError(f"{where}: a line of text has no choices", allowed='an object a line, {"text": "…", "choices": ["…", "…"]}')
        else:
            yield where, {"text": line}


def _row(where: str, record: dict[str, Any], wanted: tuple[str, str | None, tuple[str, ...]]) -> dict[str, Any]:
    text, second, choices = wanted
    row: dict[str, Any] = {"text": _text(where, text, record)}
    if second is not None:
        row["second"] = _text(where, second, record)
    if choices:
        listed = record.get(choices[0]) if len(choices) == 1 else [record.get(name) for name in choices]
        kept = [choice for choice in listed if choice] if isinstance(listed, list) else []
        if len(kept) < 2 or not all(isinstance(choice, str) for choice in kept):
            raise DataError(f"{where}: choices {shown(listed)}", allowed="two texts or more")
        row["choices"] = kept
    return row


def _text(where: str, name: str, record: dict[str, Any]) -> str:
    value = record.get(name)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{where}: {name} is {shown(value)}", allowed="text that is not blank")
    return value


# --- answers, written ---------------------------------------------------------------------------------------------


def write(path: Path, records: list[dict[str, Any]]) -> None:
    """Records as .csv or .jsonl, by the name of the file.

    In .csv a text that a spreadsheet would take for a formula (it begins with =, +, - or @, or a tab or line end) gets an
    apostrophe before it; .jsonl keeps every text as it is.

    Raises:
        DataError: another kind of file.
    """
    from llmtrain import files

    if path.suffix.lower() not in (".csv", ".jsonl"):
        raise DataError(f"output={path}: files that end in {path.suffix or 'no suffix'!r} are not written", allowed=".csv, .jsonl")
    text = _csv(records) if path.suffix.lower() == ".csv" else "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records)
    files.write(path, text.encode())


def _csv(records: list[dict[str, Any]]) -> str:
    import csv
    import io

    names = list(dict.fromkeys(name for record in records for name in record))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([_harmless(name) for name in names])
    for record in records:
        writer.writerow([_harmless(record.get(name)) for name in names])
    return out.getvalue()


def _harmless(value: Any) -> Any:
    if isinstance(value, dict | list):
        return json.dumps(value, ensure_ascii=False)
    return f"'{value}" if isinstance(value, str) and value[:1] in "=+-@\t\r" and value else value
