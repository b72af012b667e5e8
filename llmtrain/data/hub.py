"""A data set of the Hugging Face hub, or a local folder laid out like one, read by `datasets`.

Its text is copied into the store under the commit (of the hub) or the content (of a folder) it came from, so a run that
goes on later, also offline, reads the same rows.
"""

from __future__ import annotations

import contextlib
import json
import re
import tempfile
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmtrain.data import documents as docs, labelled, readers
from llmtrain.data.base import Target
from llmtrain.data.columns import Columns, Named, check_names, find
from llmtrain.data.documents import Documents
from llmtrain.data.labelled import Labelled
from llmtrain.errors import DataError, require, shown
from llmtrain.files import expanded, is_hub_name

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

COMMIT = re.compile(r"[0-9a-f]{40}")
TIMEOUT_S = 10.0  # for the one question that says whether the hub and the name are there


@dataclass(frozen=True, kw_only=True)
class Hub(Documents):
    """Documents of a data set that `datasets` opens; scripts are not run.

    Attributes:
        name: of the data set on the hub, or the path of a local folder.
        subset: of the data set, where it has several; `datasets` calls it a configuration.
        revision: a commit, tag or branch of the hub; None takes the newest commit.
        text_column: the column of the text; None: `text` for documents, inferred for labelled rows.
        second_column: of labelled rows, the column of a second text; None: inferred where text_column is, else none.
        label_column: of labelled rows, the column of the class, the score or the number of the right choice; None: inferred.
        choice_columns: of labelled rows, one column of lists of choices, or one column for each choice; None: inferred.
        streaming: read only as far as needed instead of downloading all; in the stream's own order, unshuffled.
        max_documents: rows read of each split; None reads all.
        train_split: the name there of what is trained on.
        validation_split: as train_split; None holds out `validation_fraction` of train's documents.
        test_split: as train_split; None holds out `test_fraction` of train's documents.
    """

    name: str | None
    subset: str | None
    revision: str | None
    text_column: str | None
    second_column: str | None
    label_column: str | None
    choice_columns: list[str] | None
    streaming: bool
    max_documents: int | None
    train_split: str
    validation_split: str | None
    test_split: str | None

    def __post_init__(self) -> None:
        super().__post_init__()
        require(bool(self.name), "name", self.name, "a data set of the hub, or a local folder", fix="data.name=roneneldan/TinyStories")
        check_names(self.text_column, self.second_column, self.label_column, self.choice_columns)
        require(bool(self.train_split), "train_split", self.train_split, "the name of a split there")
        require(self.max_documents is None or self.max_documents >= 1, "max_documents", self.max_documents, "1 or more, or null")
        require(
            not self.streaming or self.max_documents is not None, "max_documents", None, "a number, with data.streaming=true", fix="data.max_documents=100000"
        )

    def source(self, name: str) -> Dataset | None:
        from llmtrain.data import store

        split = self._named[name]
        if split is None:
            return None
        column = self.text_column or "text"
        rows = store.stored("hub", self._parts(split) | {"column": column}, lambda: docs.rows([self._documents(split, column)], column), docs.features())
        if not len(rows):
            raise DataError(f"{self.name}: the split {split!r} has no documents", fix="name another split, or text_column")
        return rows

    def origin(self) -> str:
        return f"{self.name}{f' ({self.subset})' if self.subset else ''}"

    def without_effect(self) -> dict[str, str]:
        held_out = {"validation_fraction": "validation_split", "test_fraction": "test_split"}
        return super().without_effect() | {name: f"data.{split} is given" for name, split in held_out.items() if getattr(self, split) is not None}

    def check(self) -> None:
        if self._folder is None:
            self._commit()

    # --- labelled rows ------------------------------------------------------------------------------------------------

    def answers(self, target: Target) -> Labelled:
        from llmtrain.data import store

        choices = None if self.choice_columns is None else tuple(self.choice_columns)
        named = Named(text=self.text_column, second=self.second_column, answer=self.label_column, choices=choices)
        found = store.stored("hub-columns", self._parts(self.train_split), self._columns)
        columns = find(f"{self.name}: {self.train_split}", list(found["name"]), target, named)
        kept = {}
        for name, split in self._named.items():
            if split is not None:
                parts = self._parts(split) | {"columns": columns.wanted, "target": target.name}
                make = partial(self._labelled_rows, split, columns, target)
                kept[name] = store.stored("hub-labelled", parts, make, labelled.features(target, columns.second is not None))
                if not len(kept[name]):
                    raise DataError(f"{self.name}: the split {split!r} has no labelled rows", fix="name another split, or text_column")
        return labelled.of(
            self, target, kept, {name: [f"{self.name}: {self._named[name]}"] for name in kept}, answer=columns.answer, columns=columns.said(), place=_place
        )

    def _columns(self) -> Iterator[dict[str, str]]:
        with self._reading(self.train_split) as temporary:
            opened = self._opened(self.train_split, temporary)
            yield from ({"name": name} for name in opened.column_names or next(iter(opened), {}))

    def _labelled_rows(self, split: str, columns: Columns, target: Target) -> Any:
        return labelled.rows([self._answered_rows(split, columns)], target, columns.second is not None)

    def _answered_rows(self, split: str, columns: Columns) -> Generator[labelled.Row, None, None]:
        for number, record in self._records(split, columns.wanted):
            yield labelled.row(columns, _place(f"{self.name}: {split}", number), number, record)

    # --- what it is ---------------------------------------------------------------------------------------------------

    @cached_property
    def _folder(self) -> Path | None:
        """The local folder; None for a name of the hub."""
        path = expanded(str(self.name)).absolute()
        if path.suffix == ".py":
            raise DataError(f"{self.name}: {readers.SCRIPTS}", fix="name a folder of .parquet, .jsonl, .csv or .txt files")
        if path.is_file():
            raise DataError(f"{path}: a file, not a folder", fix=f"data=text data.train={self.name}")
        if not path.exists() and str(self.name)[:1] in "./~":
            raise DataError(f"{path}: no such folder", fix="check the path; a relative one starts in the folder you are in")
        if not path.exists() and not is_hub_name(str(self.name)):
            raise DataError(f"data.name={shown(self.name)}: no such folder, and no name of the hub", allowed="a folder, or NAME, or OWNER/NAME of a data set")
        return path if path.exists() else None

    @cached_property
    def _content(self) -> Any:
        """What decides the rows: a commit of the hub, or the content of every file of a folder."""
        if self._folder is None:
            return [self.name, self._commit()]
        found = sorted(readers.below(self._folder))
        return [(str(path.relative_to(self._folder)), readers.look(path).content) for path in found]

    def _commit(self) -> str:
        """The commit that the revision stands for; without the hub, the one it stood for when last asked."""
        from huggingface_hub import HfApi

        from llmtrain.data import store

        if self.revision and COMMIT.fullmatch(self.revision):
            return self.revision
        known = store.root() / "hub" / "commits.jsonl"
        try:
            commit = str(HfApi().dataset_info(str(self.name), revision=self.revision, timeout=TIMEOUT_S).sha)
        except Exception as error:  # a dozen kinds, of three libraries
            last = [c for line in _lines(known) for n, r, c in [json.loads(line)] if (n, r) == (self.name, self.revision)]
            if not last:
                fix = "check the name and the network; HF_TOKEN for what is not public; or give a local folder"
                raise DataError(f"{self.name}: no such folder, and not found on the hub: {_reason(error)}", fix=fix) from error
            return str(last[-1])
        known.parent.mkdir(parents=True, exist_ok=True)
        with known.open("a", encoding="utf-8") as file:
            file.write(json.dumps([self.name, self.revision, commit]) + "\n")
        return commit

    # --- reading ------------------------------------------------------------------------------------------------------

    @property
    def _named(self) -> dict[str, str | None]:
        """The name there of each split."""
        return {"train": self.train_split, "validation": self.validation_split, "test": self.test_split}

    def _parts(self, split: str) -> dict[str, Any]:
        """What the rows of a split depend on, besides the columns."""
        return {"content": self._content, "subset": self.subset, "split": split, "max_documents": self.max_documents}

    def _documents(self, split: str, column: str) -> Generator[docs.Found, None, None]:
        for number, record in self._records(split, {column: readers.TEXT_COLUMN}):
            where = _place(f"{self.name}: {split}", number)
            yield where, readers.text_of(where, column, record[column])

    def _records(self, split: str, wanted: Mapping[str, str]) -> Generator[tuple[int, dict[str, Any]], None, None]:
        """The rows of a split, from 1, with the names of classes instead of their numbers."""
        from datasets import ClassLabel

        with self._reading(split) as temporary:
            found = self._opened(split, temporary)
            there = found.column_names or list(next(iter(found), {}))
            for column, setting in wanted.items():
                if column not in there:
                    raise readers.missing(f"{self.name}: {split}", column, there, setting)
            found = found.select_columns(list(wanted))
            classes = {name: feature for name, feature in (found.features or {}).items() if isinstance(feature, ClassLabel)}
            for number, record in enumerate(islice(_rows(found), self.max_documents), start=1):
                named = {name: feature.int2str(value) if (value := record[name]) not in (None, -1) else None for name, feature in classes.items()}
                yield number, record | named

    @contextlib.contextmanager
    def _reading(self, split: str) -> Iterator[str]:
        """A folder for what `datasets` prepares on the way; its errors, as the user should read them."""
        from llmtrain.data import store

        # What `datasets` prepares is rebuilt from a folder's times and sizes alone, so it is not kept.
        (store.root() / "hub").mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".tmp-load-", dir=store.root() / "hub") as temporary:
            try:
                yield temporary
            except DataError:
                raise
            except Exception as error:  # whatever the readers of a dozen formats raise
                scripts = f"{readers.SCRIPTS}: " if "script" in str(error) else ""
                fix = "data.name, data.subset and data.train_split name what is there" if not scripts else "take a data set in Parquet"
                raise DataError(f"{self.name}: {split} cannot be read: {scripts}{_reason(error)}", fix=fix) from error

    def _opened(self, split: str, cache: str) -> Dataset | IterableDataset:
        from datasets import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars, load_dataset

        silent = are_progress_bars_disabled()
        disable_progress_bars()  # those of preparing; downloads show their own
        path, revision = (str(self._folder), None) if self._folder else (str(self.name), self._content[1])
        try:
            return load_dataset(path, self.subset, split=split, streaming=self.streaming, revision=revision, cache_dir=cache)
        finally:
            if not silent:
                enable_progress_bars()


def _rows(found: Dataset | IterableDataset) -> Iterator[dict[str, Any]]:
    for batch in found.iter(batch_size=1000):
        for values in zip(*batch.values(), strict=True):
            yield dict(zip(batch, values, strict=True))


def _place(name: str, number: int) -> str:
    return f"{name} row {number}"


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def _reason(error: BaseException) -> str:
    """The first line of the error that others were raised for: `datasets` hides it under its own."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')[:200]}"
