"""A data set of the Hugging Face hub, or a local folder laid out like one, read by `datasets`.

Its text is copied into the store under the commit (of the hub) or the content (of a folder) it came from, so a run that
goes on later, also offline, reads the same rows.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import count, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmtrain.data import documents as docs, readers
from llmtrain.data.documents import Documents
from llmtrain.errors import DataError, require

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
        text_column: the column of the text.
        streaming: read only as far as needed instead of downloading all; in the stream's own order, unshuffled.
        max_documents: rows read of each split; None reads all.
        train_split: the name there of what is trained on.
        validation_split: as train_split; None holds out `validation_fraction` of train's documents.
        test_split: as train_split; None holds out `test_fraction` of train's documents.
    """

    name: str | None
    subset: str | None
    revision: str | None
    text_column: str
    streaming: bool
    max_documents: int | None
    train_split: str
    validation_split: str | None
    test_split: str | None

    def __post_init__(self) -> None:
        super().__post_init__()
        require(bool(self.name), "name", self.name, "a data set of the hub, or a local folder", fix="data.name=roneneldan/TinyStories")
        require(bool(self.text_column), "text_column", self.text_column, "the name of a column")
        require(bool(self.train_split), "train_split", self.train_split, "the name of a split there")
        require(self.max_documents is None or self.max_documents >= 1, "max_documents", self.max_documents, "1 or more, or null")
        require(
            not self.streaming or self.max_documents is not None, "max_documents", None, "a number, with data.streaming=true", fix="data.max_documents=100000"
        )

    def source(self, name: str) -> Dataset | None:
        from llmtrain.data import store

        split = {"train": self.train_split, "validation": self.validation_split, "test": self.test_split}[name]
        if split is None:
            return None
        parts = {"content": self._content, "subset": self.subset, "column": self.text_column, "split": split, "max_documents": self.max_documents}
        rows = store.stored("hub", parts, lambda: docs.rows([self._documents(split)], self.text_column), docs.features())
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

    # --- what it is ---------------------------------------------------------------------------------------------------

    @cached_property
    def _folder(self) -> Path | None:
        """The local folder; None for a name of the hub."""
        path = Path(str(self.name)).expanduser().absolute()
        if path.suffix == ".py":
            raise DataError(f"{self.name}: {readers.SCRIPTS}", fix="name a folder of .parquet, .jsonl, .csv or .txt files")
        if path.is_file():
            raise DataError(f"{path}: a file, not a folder", fix=f"data=text data.train={self.name}")
        if not path.exists() and str(self.name)[:1] in "./~":
            raise DataError(f"{path}: no such folder", fix="check the path; a relative one starts in the folder you are in")
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

    def _documents(self, split: str) -> Generator[docs.Found, None, None]:
        from llmtrain.data import store

        # What `datasets` prepares on the way is rebuilt from a folder's times and sizes alone, so it is not kept.
        with tempfile.TemporaryDirectory(prefix=".tmp-load-", dir=store.root() / "hub") as temporary:
            number = count(1)
            try:
                opened = self._opened(split, temporary)
                for value in islice(_values(opened, self.text_column), self.max_documents):
                    where = f"{self.name}: {split} row {next(number)}"
                    yield where, readers.text_of(where, self.text_column, value)
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
            found = load_dataset(path, self.subset, split=split, streaming=self.streaming, revision=revision, cache_dir=cache)
        finally:
            if not silent:
                enable_progress_bars()
        columns = found.column_names or list(next(iter(found), {}))
        if self.text_column not in columns:
            raise readers.missing(f"{self.name}: {split}", self.text_column, columns)
        return found.select_columns([self.text_column])


def _values(found: Dataset | IterableDataset, column: str) -> Iterator[Any]:
    for batch in found.iter(batch_size=1000):
        yield from batch[column]


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def _reason(error: BaseException) -> str:
    """The first line of the error that others were raised for: `datasets` hides it under its own."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')[:200]}"
