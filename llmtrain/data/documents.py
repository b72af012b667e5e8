"""Documents: counted, keyed by their text, and divided into splits.

A row is a document, or a part of one that is longer than PART characters. Which split it belongs to is a pure function
of the text of the document's first part, so equal documents, and the parts of one document, always stand together.
"""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import TYPE_CHECKING, Any

from llmtrain.data.base import SPLITS, Data, Overlap, Target
from llmtrain.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset, Features

    from llmtrain.data.labelled import Labelled

# Characters in one row. A longer document becomes several rows, cut where a line or a word ends: this bounds the memory
# of reading and of tokenising, whatever the files hold.
PART = 2**20

Splits = Mapping[str, "tuple[Dataset, np.ndarray]"]  # of each split: stored rows, and the indices of its own among them
Found = tuple[str, Iterable[str] | None]  # where a document stands, for messages; its text in chunks, None where it is absent


# --- text → rows --------------------------------------------------------------------------------------------------


def features() -> Features:
    """The columns of stored documents: `text`; `document`, which decides the split; `key`, equal for equal rows."""
    from datasets import Features, Value

    return Features({"text": Value("string"), "document": Value("int64"), "key": Value("int64")})


def rows(sources: Iterable[Generator[Found, None, None]], column: str = "text") -> Generator[dict[str, Any], None, dict[str, Any]]:
    """The rows of the documents of several sources (files); returns what was counted.

    Blank and absent texts are skipped and counted.

    Raises:
        DataError: for text that is not Unicode (a lone surrogate), naming where it stands.
    """
    count: Counter[str] = Counter()
    per_source = []
    for source in sources:
        before = count["documents"]
        with closing(source):  # so that an error closes the file that is read there
            for where, chunks in source:
                yield from _document(where, chunks or (), column, count)
        per_source.append(count["documents"] - before)
    return {**count, "per_source": per_source}


def _document(where: str, chunks: Iterable[str], column: str, count: Counter[str]) -> Iterator[dict[str, Any]]:
    """The rows of one document: one, or as many as it has parts, or none."""
    document = previous = number = 0
    for text in parts(chunks):
        if not text or text.isspace():
            continue
        number += 1
        previous = key(text, where, column, previous)
        document = document or previous
        count["words"] += len(text.split())
        yield {"text": text, "document": document, "key": previous}
    count["documents" if number else "blank"] += 1
    if number > 1:
        count["long"] += 1
        count["parts"] += number


def key(text: str, where: str = "", column: str = "text", previous: int = 0) -> int:
    """A 63-bit number for a text and the key of what came before it in its document: no seed, the same everywhere."""
    try:
        content = text.encode()
    except UnicodeEncodeError as error:
        what = f"{where}: {column} holds {text[error.start]!r}, half of a surrogate pair, which is no character"
        raise DataError(what, fix="write the text as Unicode characters, or remove this one") from error
    digest = hashlib.blake2b(content, digest_size=8, salt=previous.to_bytes(8, "big"))
    return int.from_bytes(digest.digest(), "big") >> 1


def parts(chunks: Iterable[str]) -> Iterator[str]:
    """A document's chunks regrouped into parts of at most PART characters; one line end at the very end is dropped."""
    held: list[str] = []
    size = 0
    for chunk in chunks:
        held.append(chunk)
        size += len(chunk)
        while size > PART:
            text = "".join(held)
            end = _cut(text)
            yield text[:end]
            held, size = [text[end:]], size - end
    yield "".join(held).removesuffix("\n")


def _cut(text: str) -> int:
    """Where to end a part: after a line, else after a word, else anywhere; never in its first half."""
    for mark in "\n ":
        end = text.rfind(mark, PART // 2, PART)
        if end >= 0:
            return end + 1
    return PART


# --- rows → splits ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Documents(Data):
    """Data that comes as documents: splits that have no source of their own are a share of the training source."""

    @abstractmethod
    def source(self, name: str) -> Dataset | None:
        """The stored rows (see `rows`) of the source given for a split; None where the split is a share of train's."""

    @abstractmethod
    def origin(self) -> str:
        """Where the documents come from, as the summary names it."""

    def split(self, name: str) -> Dataset:
        if name not in SPLITS:
            raise ValueError(f"{name!r} is no split: {', '.join(SPLITS)}")
        if self.on_overlap is Overlap.error:
            for line in self._overlaps:
                raise DataError(line, fix="remove them from one side, or data.on_overlap=warn")
        rows, indices = self._splits[name]
        if not len(indices):
            raise self._empty(name, rows)
        return _selected(rows, indices)

    def answers(self, target: Target) -> Labelled:
        """The labelled rows of all splits, not divided yet.

        Raises:
            ConfigError: there are none.
        """
        raise self.unanswered(target)

    def labelled(self, name: str, target: Target) -> Dataset:
        if name not in SPLITS:
            raise ValueError(f"{name!r} is no split: {', '.join(SPLITS)}")
        if target not in self._answered:
            self._answered[target] = self.answers(target)
        return self._answered[target].split(name)

    @property
    def first_choice(self) -> int:
        return self._answered[Target.choice].first if Target.choice in self._answered else 0

    def summary(self) -> str:
        """One line about what was read: the labelled rows, once they were asked for, else the documents."""
        return "; ".join(labelled.summary() for labelled in self._answered.values()) or self.described()

    def described(self) -> str:
        """One line about the documents."""
        total: Counter[str] = Counter()
        repeated = 0
        for rows in self._sources.values():
            total.update({k: v for k, v in facts(rows).items() if isinstance(v, int)})
            repeated += len(rows) - different(rows)
        line = f"{self.origin()}: {total['documents']:,} documents, {total['words']:,} words"
        notes = {
            "{:,} blank skipped": total["blank"],
            "{:,} repeat another": repeated,
            f"{{:,}} longer than {PART:,} characters, read in {total['parts']:,} parts": total["long"],
        }
        return "; ".join([line, *(text.format(number) for text, number in notes.items() if number)])

    def warnings(self) -> list[str]:
        return [line for labelled in self._answered.values() for line in labelled.warnings()] if self._answered else list(self._overlaps)

    @cached_property
    def _answered(self) -> dict[Target, Labelled]:
        """What was asked for so far."""
        return {}

    @cached_property
    def _sources(self) -> dict[str, Dataset]:
        found = {name: self.source(name) for name in SPLITS}
        return {name: rows for name, rows in found.items() if rows is not None}

    @cached_property
    def _splits(self) -> Splits:
        return divided(self._sources, "document", self.validation_fraction, self.test_fraction)

    @cached_property
    def _overlaps(self) -> list[str]:
        return overlaps(self._splits, "documents")

    def _empty(self, name: str, rows: Dataset) -> DataError:
        return empty(name, self._splits, f"{facts(rows).get('documents', len(rows)):,} documents in {self.origin()}", self.shares)

    @property
    def shares(self) -> str:
        """The shares that are held out, as messages name them."""
        return f"data.validation_fraction={self.validation_fraction:g}, data.test_fraction={self.test_fraction:g}"


def divided(sources: Mapping[str, Dataset], by: str, validation: float, test: float) -> Splits:
    """Each split's stored rows, and which of them are its own: a source of its own, or a share of train's.

    Args:
        sources: the stored rows of the splits that have a source of their own.
        by: the column of keys that decides.
        validation, test: the shares of train's rows, where these splits have no source.
    """
    import numpy as np

    train = sources["train"]
    shares = {name: share for name, share in (("validation", validation), ("test", test)) if name not in sources}
    taken = assign(column(train, by), shares.get("validation", 0), shares.get("test", 0))
    own = {name: (rows, np.arange(len(rows))) for name, rows in sources.items() if name != "train"}
    return {name: own.get(name, (train, np.flatnonzero(taken == number))) for number, name in enumerate(SPLITS)}


def overlaps(splits: Splits, noun: str) -> list[str]:
    """One line for each pair of splits that share content; shares of one source never do."""
    import numpy as np

    keys = {name: _different(rows, indices) for name, (rows, indices) in splits.items()}
    shared = {(a, b): len(np.intersect1d(keys[a], keys[b], assume_unique=True)) for a, b in combinations(SPLITS, 2)}
    return [f"{number:,} of {len(keys[b]):,} different {b} {noun} also stand in {a}" for (a, b), number in shared.items() if number]


def empty(name: str, splits: Splits, number: str, shares: str) -> DataError:
    """The answer to a split that got no row."""
    sizes = ", ".join(f"{split} {len(indices):,}" for split, (_, indices) in splits.items())
    fix = "give more of them, another fraction, or the split a source of its own"
    return DataError(f"the {name} split is empty: {number} became {sizes} ({shares})", fix=fix)


def assign(keys: np.ndarray, validation: float, test: float) -> np.ndarray:
    """The index in SPLITS of each document, from its key (int64, 63 bits) and the shares held out.

    The test's share is cut from the low end and validation's from the high one, so changing one share leaves the other
    split as it is.
    """
    import numpy as np

    place = keys / 2.0**63  # uniform in [0, 1)
    return np.where(place < test, 2, np.where(place >= 1 - validation, 1, 0))


def column(rows: Dataset, name: str) -> np.ndarray:
    """A column of numbers of stored rows."""
    found: np.ndarray = rows.data.column(name).to_numpy()
    return found


def different(rows: Dataset) -> int:
    """How many different rows there are, by their keys."""
    return len(_different(rows))


def _different(rows: Dataset, indices: np.ndarray | slice = slice(None)) -> np.ndarray:
    """The keys of some rows, each once."""
    import numpy as np

    return np.unique(column(rows, "key")[indices])


def facts(rows: Dataset) -> dict[str, Any]:
    """What `rows` counted: documents, words, blank, long, parts, and documents of each source."""
    from llmtrain.data import store

    return store.facts(rows)


def _selected(rows: Dataset, indices: np.ndarray) -> Dataset:
    """Some rows' texts, with a fingerprint of what they say: it does not move when other splits or sources change."""
    from llmtrain.data import store

    content = hashlib.sha256(column(rows, "key")[indices].tobytes()).hexdigest()
    chosen = rows if len(indices) == len(rows) else rows.select(indices)
    return store.with_fingerprint(chosen.select_columns(["text", "document", "key"]), content)
