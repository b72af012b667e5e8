"""What every kind of data can do: hand out the rows of a split.

A split is decided document by document, from a hash of the document's text, before anything is cut into windows: so
equal documents stand on one side, and neither the order of files nor their number moves a document across.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from llmtrain.errors import ConfigError, require

if TYPE_CHECKING:
    from datasets import Dataset

SPLITS = ("train", "validation", "test")


class Overlap(Enum):
    """What happens where one document stands in two splits."""

    warn = "warn"
    error = "error"


class Target(Enum):
    """What a labelled row is to be answered with."""

    label = "label"  # one of several classes
    score = "score"  # a number
    choice = "choice"  # one of several continuations


@dataclass(frozen=True, kw_only=True)
class Data(ABC):
    """Rows with a column `text`, in three splits.

    Attributes:
        max_length: tokens in one sequence.
        short_length: tokens in one sequence in the first part of training; None: max_length from the start.
        short_fraction: share of the updates that this first part takes.
        validation_fraction: share of the documents held out for validation, by hash of their text.
        test_fraction: share of the documents held out for the test, by hash of their text.
        on_overlap: what to do where one document stands in two splits.
        num_workers: processes that prepare batches besides the training one; 0 prepares them in it.
    """

    max_length: int
    short_length: int | None
    short_fraction: float
    validation_fraction: float
    test_fraction: float
    on_overlap: Overlap
    num_workers: int

    def __post_init__(self) -> None:
        require(self.max_length >= 2, "max_length", self.max_length, "at least 2 tokens")
        longest = f"at least 2 and below max_length={self.max_length}, or null"
        require(self.short_length is None or 2 <= self.short_length < self.max_length, "short_length", self.short_length, longest)
        require(0 < self.short_fraction < 1, "short_fraction", self.short_fraction, "between 0 and 1, both excluded")
        for name in ("validation_fraction", "test_fraction"):
            value = getattr(self, name)
            require(0 < value < 1, name, value, "between 0 and 1, both excluded")
        total = self.validation_fraction + self.test_fraction
        require(total < 1, "test_fraction", self.test_fraction, "a share that leaves something to train on, next to validation_fraction")
        require(self.num_workers >= 0, "num_workers", self.num_workers, "0 or more")

    def check(self) -> None:
        """Find out, before anything large is read or downloaded, whether what the settings name is there.

        Raises:
            DataError: naming what is missing.
        """
        return None

    @property
    def lengths(self) -> list[tuple[float, int]]:
        """The parts of training: (share of the updates at which it ends, tokens in one sequence)."""
        first = [] if self.short_length is None else [(self.short_fraction, self.short_length)]
        return [*first, (1.0, self.max_length)]

    @abstractmethod
    def split(self, name: str) -> Dataset:
        """The rows of `train`, `validation` or `test`.

        Raises:
            DataError: naming the file, the line and the value that cannot be read.
        """

    def labelled(self, name: str, target: Target) -> Dataset:
        """The rows of a split with their answers, one for each row of the source, for the objectives of a task.

        Columns: `text`; `second`, where rows are pairs of texts; `key`, a 63-bit number that is equal for equal content; and

            label    `label`, an int64 of the feature type ClassLabel, whose names are the classes of the training split
            score    `score`, float64
            choice   `choices`, a list of two texts or more, and `label`, int64, the number of the right one, from 0

        Its fingerprint depends on what the rows say alone.

        Raises:
            ConfigError: this kind of data has no such answers.
            DataError: naming the file, the row and the value that cannot be used, or the columns that are there.
        """
        raise self.unanswered(target)

    @property
    def first_choice(self) -> int:
        """The number by which the source calls the first choice, known once labelled rows with choices were asked for; in these rows it is 0."""
        return 0

    def unanswered(self, target: Target) -> ConfigError:
        """What is said where this kind of data has no answers of a kind."""
        labels = ", or data=pydocs" if target is Target.label else ""
        fix = "data=text data.train=FILE, with a column of answers in a .csv, .jsonl or .parquet file"
        return ConfigError(f"this data has no {target.value} to its texts", allowed=f"data=text with labelled files{labels}", fix=fix)

    @abstractmethod
    def summary(self) -> str:
        """One line about what was read: how many documents, how many words, from where."""

    def warnings(self) -> list[str]:
        """What the user should know about the data once it was read, such as documents that stand in two splits."""
        return []

    def without_effect(self) -> dict[str, str]:
        """Settings that change nothing under the others: name → why."""
        return {"short_fraction": "data.short_length is null"} if self.short_length is None else {}
