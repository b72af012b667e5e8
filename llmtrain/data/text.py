"""The user's own text files: .txt, .jsonl, .csv and .parquet, by path, glob or folder."""

from __future__ import annotations

import hashlib
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmtrain.data import documents as docs, labelled, readers
from llmtrain.data.base import SPLITS, Target
from llmtrain.data.columns import Columns, Named, check_names, find
from llmtrain.data.documents import Documents
from llmtrain.data.labelled import Labelled
from llmtrain.data.readers import Unit
from llmtrain.errors import DataError, require
from llmtrain.files import expanded

if TYPE_CHECKING:
    from datasets import Dataset

EXAMPLE = "data.train=corpus.txt, data.train='texts/*.jsonl', or a folder"


@dataclass(frozen=True, kw_only=True)
class Text(Documents):
    """Documents of text files.

    Attributes:
        train: a path, glob or folder; or several, as a list or separated by commas.
        validation: as train; None holds out `validation_fraction` of train's documents.
        test: as train; None holds out `test_fraction` of train's documents.
        text_column: the key or column of the text, in files that have several; None: `text` for documents, inferred for labelled rows.
        second_column: of labelled rows, the column of a second text; None: inferred where text_column is, else none.
        label_column: of labelled rows, the column of the class, the score or the number of the right choice; None: inferred.
        choice_columns: of labelled rows, one column of lists of choices, or one column for each choice; None: inferred.
        documents: what a document is in a .txt file.
        encoding: of the files, as Python names it.
    """

    train: Any
    validation: Any
    test: Any
    text_column: str | None
    second_column: str | None
    label_column: str | None
    choice_columns: list[str] | None
    documents: Unit
    encoding: str

    def __post_init__(self) -> None:
        super().__post_init__()
        require(bool(self.train), "train", self.train, "a path, glob or folder of .txt, .jsonl, .csv or .parquet files", fix=EXAMPLE)
        for name in SPLITS:
            value = getattr(self, name)
            texts = value if isinstance(value, list) else [value]
            allowed = "a path, glob or folder, or a list of them" + (" (null: a share of train)" if name != "train" else "")
            require(value is None or (bool(texts) and all(isinstance(t, str) and t for t in texts)), name, value, allowed, fix=EXAMPLE)
        require(_is_encoding(self.encoding), "encoding", self.encoding, "an encoding that Python knows: utf-8, utf-16, latin-1, cp1252, …")
        check_names(self.text_column, self.second_column, self.label_column, self.choice_columns)

    def source(self, name: str) -> Dataset | None:
        from llmtrain.data import store

        sources = self._files.get(name)
        if sources is None:
            return None
        parts = {"files": [(s.path.suffix.lower(), s.content) for s in sources], "column": self._column, "documents": self.documents.name}
        rows = store.stored("text", parts | {"encoding": self.encoding}, lambda: self._rows(sources), docs.features())
        if not len(rows):
            counts = ", ".join(f"{s.path}: 0" for s in sources[:3]) + (f" and {len(sources) - 3:,} more files" if len(sources) > 3 else "")
            raise DataError(f"data.{name} has no documents; per file: {counts}", fix="give files with text in them")
        return rows

    @property
    def _column(self) -> str:
        """The column of the text of documents."""
        return self.text_column or "text"

    def _rows(self, sources: list[readers.Source]) -> Any:
        opened = (readers.read(s, column=self._column, documents=self.documents, encoding=self.encoding) for s in sources)
        return docs.rows(opened, self._column)

    # --- labelled rows ------------------------------------------------------------------------------------------------

    def answers(self, target: Target) -> Labelled:
        from llmtrain.data import store

        for source in (source for group in self._files.values() for source in group):
            if source.path.suffix.lower() == ".txt":
                raise DataError(f"{source.path}: a .txt file has no column for a {target.value}", allowed=".csv, .jsonl, .parquet")
        columns = self._columns(target)
        kept: dict[str, Dataset] = {}
        for name, sources in self._files.items():
            parts = {
                "files": [(s.path.suffix.lower(), s.content) for s in sources],
                "encoding": self.encoding,
                "target": target.name,
                "columns": columns.wanted,
            }
            make = partial(self._labelled_rows, sources, columns, target)
            kept[name] = store.stored("labelled", parts, make, labelled.features(target, columns.second is not None))
            if not len(kept[name]):
                raise DataError(f"data.{name} has no labelled rows in {', '.join(str(s.path) for s in sources[:3])}", fix="give files with rows in them")
        return labelled.of(
            self, target, kept, {name: [str(s.path) for s in sources] for name, sources in self._files.items()}, answer=columns.answer, columns=columns.said()
        )

    def _columns(self, target: Target) -> Columns:
        """The columns that are named, or are to be inferred from the first training file that has any."""
        found = ((str(s.path), readers.columns(s, self.encoding)) for s in self._files["train"])
        where, names = next(((where, names) for where, names in found if names), (self.origin(), []))
        if not names:
            raise DataError(f"data.train has no labelled rows in {where}", fix="give files with rows in them")
        choices = None if self.choice_columns is None else tuple(self.choice_columns)
        named = Named(text=self.text_column, second=self.second_column, answer=self.label_column, choices=choices)
        return find(where, names, target, named)

    def _labelled_rows(self, sources: list[readers.Source], columns: Columns, target: Target) -> Any:
        opened = (self._records(source, columns) for source in sources)
        return labelled.rows(opened, target, columns.second is not None)

    def _records(self, source: readers.Source, columns: Columns) -> Generator[labelled.Row, None, None]:
        with closing(readers.records(source, columns.wanted, self.encoding)) as found:
            for number, record in found:
                yield labelled.row(columns, readers.place(source.path, number), number, record)

    # --- files --------------------------------------------------------------------------------------------------------

    def check(self) -> None:
        for paths in self._paths().values():
            for path in paths:
                readers.probe(path)

    def origin(self) -> str:
        sources = [s for group in self._files.values() for s in group]
        return str(sources[0].path) if len(sources) == 1 else f"{len(sources):,} files ({sources[0].path} … {sources[-1].path.name})"

    def described(self) -> str:
        empty = sum(number == 0 for rows in self._sources.values() for number in docs.facts(rows)["per_source"])
        return super().described() + (f"; {empty:,} files without documents" if empty else "")

    def without_effect(self) -> dict[str, str]:
        held_out = {"validation_fraction": "validation", "test_fraction": "test"}
        return super().without_effect() | {name: f"data.{split} is given" for name, split in held_out.items() if getattr(self, split) is not None}

    def fingerprint(self) -> str:
        """A hash of what all the files hold, as it was when they were first looked at."""
        return _together(self._files)

    @cached_property
    def _files(self) -> dict[str, list[readers.Source]]:
        return {name: [readers.look(path) for path in paths] for name, paths in self._paths().items()}

    def _paths(self) -> dict[str, list[Path]]:
        given = {name: patterns(getattr(self, name)) for name in SPLITS if getattr(self, name) is not None}
        return {name: readers.find(texts) for name, texts in given.items()}


def patterns(value: str | list[str]) -> list[str]:
    """Several paths out of one setting: a list, or text with commas unless it names something as it stands."""
    if isinstance(value, list):
        return value
    return [value] if expanded(value).exists() else [part.strip() for part in value.split(",") if part.strip()]


def _together(found: dict[str, list[readers.Source]]) -> str:
    return hashlib.sha256(repr([(name, [s.content for s in sources]) for name, sources in found.items()]).encode()).hexdigest()


def _is_encoding(name: str) -> bool:
    try:
        return bool(name) and "a".encode(name) != b""
    except (LookupError, UnicodeError, ValueError, TypeError):
        return False
