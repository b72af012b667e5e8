"""The user's own text files: .txt, .jsonl, .csv and .parquet, by path, glob or folder."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmtrain.data import documents as docs, readers
from llmtrain.data.base import SPLITS
from llmtrain.data.documents import Documents
from llmtrain.data.readers import Unit
from llmtrain.errors import DataError, require

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
        text_column: the key or column of the text, in files that have several.
        documents: what a document is in a .txt file.
        encoding: of the files, as Python names it.
    """

    train: Any
    validation: Any
    test: Any
    text_column: str
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
        require(bool(self.text_column), "text_column", self.text_column, "the name of a key or column")

    def source(self, name: str) -> Dataset | None:
        from llmtrain.data import store

        sources = self._files.get(name)
        if sources is None:
            return None
        parts = {"files": [(s.path.suffix.lower(), s.content) for s in sources], "column": self.text_column, "documents": self.documents.name}
        rows = store.stored("text", parts | {"encoding": self.encoding}, lambda: self._rows(sources), docs.features())
        if not len(rows):
            counts = ", ".join(f"{s.path}: 0" for s in sources[:3]) + (f" and {len(sources) - 3:,} more files" if len(sources) > 3 else "")
            raise DataError(f"data.{name} has no documents; per file: {counts}", fix="give files with text in them")
        return rows

    def _rows(self, sources: list[readers.Source]) -> Any:
        opened = (readers.read(s, column=self.text_column, documents=self.documents, encoding=self.encoding) for s in sources)
        return docs.rows(opened, self.text_column)

    def check(self) -> None:
        for paths in self._paths().values():
            for path in paths:
                readers.probe(path)

    def origin(self) -> str:
        sources = [s for group in self._files.values() for s in group]
        return str(sources[0].path) if len(sources) == 1 else f"{len(sources):,} files ({sources[0].path} … {sources[-1].path.name})"

    def summary(self) -> str:
        empty = sum(number == 0 for rows in self._sources.values() for number in docs.facts(rows)["per_source"])
        return super().summary() + (f"; {empty:,} files without documents" if empty else "")

    def without_effect(self) -> dict[str, str]:
        held_out = {"validation_fraction": "validation", "test_fraction": "test"}
        return super().without_effect() | {name: f"data.{split} is given" for name, split in held_out.items() if getattr(self, split) is not None}

    def fingerprint(self) -> str:
        """A hash of what all the files hold, as it was when they were first looked at."""
        return _together(self._files)

    def changed_since(self, fingerprint: str) -> bool:
        """Whether the files hold something else now, also where their sizes and times are the same."""
        return _together(self._look()) != fingerprint

    @cached_property
    def _files(self) -> dict[str, list[readers.Source]]:
        return self._look()

    def _look(self) -> dict[str, list[readers.Source]]:
        return {name: [readers.look(path) for path in paths] for name, paths in self._paths().items()}

    def _paths(self) -> dict[str, list[Path]]:
        given = {name: patterns(getattr(self, name)) for name in SPLITS if getattr(self, name) is not None}
        return {name: readers.find(texts) for name, texts in given.items()}


def patterns(value: str | list[str]) -> list[str]:
    """Several paths out of one setting: a list, or text with commas unless it names something as it stands."""
    if isinstance(value, list):
        return value
    return [value] if Path(value).expanduser().exists() else [part.strip() for part in value.split(",") if part.strip()]


def _together(found: dict[str, list[readers.Source]]) -> str:
    return hashlib.sha256(repr([(name, [s.content for s in sources]) for name, sources in found.items()]).encode()).hexdigest()


def _is_encoding(name: str) -> bool:
    try:
        return bool(name) and "a".encode(name) != b""
    except (LookupError, UnicodeError, ValueError, TypeError):
        return False
