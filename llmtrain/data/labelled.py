"""Labelled rows: kept as they were read, then checked together and divided into splits.

What a file says as an answer is stored as JSON, so that one look at all rows decides what it means: which classes there
are, whether they are numbers, from where right choices are counted. An answer that does not fit the others is named with
its row. The classes are those of the training split. Rows of equal content stand on one side of a split.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

from llmtrain.data import documents as docs, readers
from llmtrain.data.base import SPLITS, Overlap, Target
from llmtrain.data.columns import Columns
from llmtrain.errors import DataError, printable, shown

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset, Features

    from llmtrain.data.documents import Documents

T = TypeVar("T")
WHOLE = re.compile(r"-?\d+", re.ASCII)
NUMBER = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?", re.ASCII)
NAMES_SHOWN = 12
KINDS = {Target.label: "classes, as text or whole numbers", Target.score: "finite numbers", Target.choice: "the number of the right choice"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A row as a source gives it.

    Attributes:
        where: it stands, for messages.
        number: its line, or its number in its source.
        text, second: its texts, None where absent.
        choices: its choices, where rows have them.
        answer: what stands there as an answer; anything that JSON knows.
        group: a 63-bit number that decides the split; None: the content decides.
    """

    where: str
    number: int
    text: str | None
    second: str | None = None
    choices: Sequence[str] = ()
    answer: Any
    group: int | None = None


def row(columns: Columns, where: str, number: int, record: Mapping[str, Any] | None) -> Row:
    """A row from a record of a file.

    Raises:
        DataError: naming a text that is none, or choices that are not two texts or more.
    """
    if record is None:
        return Row(where=where, number=number, text=None, answer=None)
    texts = [None if name is None else readers.text_of(where, name, record[name]) for name in (columns.text, columns.second)]
    text, second = ("".join(found) if found is not None else None for found in texts)
    choices = _choices(where, columns.choices, record) if columns.choices and text and not text.isspace() else ()
    return Row(where=where, number=number, text=text, second=second, choices=choices, answer=record[columns.answer])


def _choices(where: str, names: Sequence[str], record: Mapping[str, Any]) -> list[str]:
    """The choices of a record: those of a list, or of columns of their own, of which the last may be blank."""
    found = [record[name] for name in names]
    if len(names) == 1:
        found = found[0]
        if not isinstance(found, list):
            fix = "one column of lists, or data.choice_columns=[NAME,NAME] for a column each"
            raise DataError(f"{where}: {names[0]} is {shown(found)}, which is {type(found).__name__}", allowed="a list of two texts or more", fix=fix)
    found = list(found)
    while found and len(names) > 1 and _blank(found[-1]):
        found.pop()
    for number, text in enumerate(found, start=1):
        if not isinstance(text, str) or _blank(text):
            raise DataError(f"{where}: choice {number} of {', '.join(names)} is {shown(text)}", allowed="text that is not blank")
    if len(found) < 2:
        raise DataError(f"{where}: {len(found)} choices in {', '.join(names)}", allowed="two texts or more")
    return found


def _blank(value: Any) -> bool:
    return value is None or (isinstance(value, str) and (not value or value.isspace()))


# --- rows as they are stored --------------------------------------------------------------------------------------


def features(target: Target, pairs: bool) -> Features:
    """The columns of stored rows: texts; `answer` as JSON; `key` of the content; `group`, which decides the split; `file` and `number`, where it stands."""
    from datasets import Features, List, Value

    text = Value("string")
    columns = {"text": text, **({"second": text} if pairs else {}), **({"choices": List(text)} if target is Target.choice else {})}
    return Features({**columns, "answer": text, **dict.fromkeys(("key", "group", "file", "number"), Value("int64"))})


def rows(sources: Iterable[Generator[Row, None, None]], target: Target, pairs: bool) -> Generator[dict[str, Any], None, dict[str, Any]]:
    """What is stored of the rows of several sources (files); returns what was counted. Rows with a blank text are skipped.

    Raises:
        DataError: for text that is not Unicode (a lone surrogate), naming where it stands.
    """
    count = Counter(rows=0, words=0, blank=0)
    for file, source in enumerate(sources):
        with closing(source):  # so that an error closes the file that is read there
            for found in source:
                texts = [found.text, found.second] if pairs else [found.text]
                if any(map(_blank, texts)):
                    count["blank"] += 1
                    continue
                content = [text for text in [*texts, *found.choices] if text is not None]
                key = 0
                for text in content:
                    key = docs.key(text, found.where, previous=key)
                count["rows"] += 1
                count["words"] += sum(len(text.split()) for text in content)
                answer = json.dumps(found.answer, default=str)
                optional = ({"second": found.second} if pairs else {}) | ({"choices": list(found.choices)} if target is Target.choice else {})
                places = {"key": key, "group": key if found.group is None else found.group, "file": file, "number": found.number}
                yield {"text": found.text, **optional, "answer": answer, **places}
    return dict(count)


# --- what an answer means -----------------------------------------------------------------------------------------


def class_name(value: Any) -> str:
    """A label as the name of a class.

    Raises:
        ValueError: why it is none.
    """
    if _blank(value):
        raise ValueError("which is blank")
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        if not value.is_integer():  # NaN and infinities neither
            raise ValueError("which is a number with a fraction")
        return str(int(value))
    if not isinstance(value, int | str):
        raise ValueError(f"which is {type(value).__name__}")
    if any("\ud800" <= character <= "\udfff" for character in str(value)):
        raise ValueError("which holds half of a surrogate pair")
    return str(value).strip()


def in_order(names: Iterable[str]) -> list[str]:
    """Names of classes, sorted: as numbers where all of them are numbers."""
    found = set(names)
    numbers = all(NUMBER.fullmatch(name) for name in found)
    return sorted(found, key=lambda name: (float(name) if numbers else 0, name))


def score(value: Any) -> float:
    """A score as a finite number.

    Raises:
        ValueError: why it is none.
    """
    if _blank(value):
        raise ValueError("which is blank")
    written = isinstance(value, str) and NUMBER.fullmatch(value.strip())
    found = math.nan
    if written or (isinstance(value, int | float) and not isinstance(value, bool)):
        with suppress(OverflowError):
            found = float(value)
    if not math.isfinite(found):
        raise ValueError("which is no finite number")
    return found


def right(value: Any) -> int:
    """The number of the right choice, as it is written.

    Raises:
        ValueError: why it is none.
    """
    name = class_name(value)
    if isinstance(value, bool) or not WHOLE.fullmatch(name) or len(name) > 9:
        raise ValueError("which is no number of a choice")
    return int(name)


# --- rows of all splits -------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """The labelled rows of all splits.

    Attributes:
        target: what their answers are.
        sources: stored rows (see `rows`) of the splits that have a source of their own.
        files: for each of these, the names of what its rows stand in.
        validation_fraction, test_fraction: shares of the training rows, where these splits have no source.
        on_overlap: what to do where one content stands in two splits.
        origin: where the rows come from, as the summary names it.
        answer: the column of the answers, as messages name it.
        columns: how the columns were chosen, for the summary; empty: nothing to say.
        place: where a row stands, from the name of its file and its number, for messages.
    """

    target: Target
    sources: Mapping[str, Dataset]
    files: Mapping[str, Sequence[str]]
    validation_fraction: float
    test_fraction: float
    on_overlap: Overlap
    origin: str
    answer: str = "label"
    columns: str = ""
    place: Callable[[str, int], str] = readers.place

    def split(self, name: str) -> Dataset:
        """The rows of a split, as `Data.labelled` promises them; the answers of all splits are checked.

        Raises:
            DataError: naming the row, what stands there and what is allowed.
        """
        from llmtrain.data import store

        if self.on_overlap is Overlap.error:
            for line in self._overlaps:
                raise DataError(line, fix="remove them from one side, or data.on_overlap=warn")
        found, indices = self._splits[name]
        if not len(indices):
            shares = f"data.validation_fraction={self.validation_fraction:g}, data.test_fraction={self.test_fraction:g}"
            raise docs.empty(name, self._splits, f"{len(found):,} labelled rows in {self.origin}", shares)
        answers, about = self._answers[name], f"{self.target.name} {self.classes}"
        digest = hashlib.sha256(about.encode() + docs.column(found, "key")[indices].tobytes() + answers.tobytes())
        return store.with_fingerprint(self._with_answers(found, indices, answers), digest.hexdigest())

    def _with_answers(self, found: Dataset, indices: np.ndarray, answers: np.ndarray) -> Dataset:
        """A split's rows with their answers as a column: added to all rows, of which it takes some, so that texts stay on the disk."""
        import numpy as np
        from datasets import ClassLabel, Value

        column = np.full(len(found), -1, answers.dtype)
        column[indices] = answers
        names = {Target.label: "label", Target.score: "score", Target.choice: "label"}
        kind = {Target.label: ClassLabel(names=list(self.classes)), Target.score: Value("float64"), Target.choice: Value("int64")}[self.target]
        texts = found.remove_columns(["answer", "group", "file", "number"])
        whole = texts.add_column(names[self.target], column, feature=kind, new_fingerprint="whole")
        return whole if len(indices) == len(found) else whole.select(indices)

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes of the training split, in order; none, where answers are no labels.

        Raises:
            DataError: naming a training row whose label does not fit the others.
        """
        if self.target is not Target.label:
            return ()
        import numpy as np

        names, codes, problem = self._understood("train", class_name)
        counts: Counter[str] = Counter()
        for code, number in zip(*np.unique(codes, return_counts=True), strict=True):
            if code in names:
                counts[names[code]] += int(number)
        fits = _uniform(counts)
        found = in_order(filter(fits, counts))
        odd = self._understood("train", lambda value: _fitting(class_name(value), fits))[2]
        if problem or odd:
            raise self._refused("train", *min(filter(None, (problem, odd))), found)
        if len(found) == 1:
            fix = "data.label_column=NAME of another column, or rows of two classes or more"
            what = f"{self.origin}: {self.answer} is {shown(found[0])} in all {len(codes):,} training rows"
            raise DataError(what, allowed="two classes or more", fix=fix)
        return tuple(found)

    def summary(self) -> str:
        """One line: how many rows from where, which columns, which answers, and what was left out or repeats."""
        counted: Counter[str] = Counter()
        for found in self.sources.values():
            counted.update({name: docs.facts(found)[name] for name in ("rows", "words", "blank")})
        repeated = sum(len(found) - docs.different(found) for found in self.sources.values())
        line = f"{self.origin}: {counted['rows']:,} labelled rows, {counted['words']:,} words"
        notes = {"{:,} blank skipped": counted["blank"], "{:,} repeat another": repeated}
        told = [self._told(), self.columns, *(text.format(number) for text, number in notes.items() if number)]
        return "; ".join([line, *filter(None, told)])

    def _told(self) -> str:
        """The answers of the training rows, in short."""
        import numpy as np

        answers = self._answers["train"]
        if self.target is Target.label:
            counts = sorted(zip(np.bincount(answers, minlength=len(self.classes)).tolist(), self.classes, strict=True), key=lambda pair: -pair[0])
            more = f" and {len(counts) - NAMES_SHOWN:,} more" if len(counts) > NAMES_SHOWN else ""
            return f"{len(counts):,} classes in train: {', '.join(f'{printable(name)} {number:,}' for number, name in counts[:NAMES_SHOWN])}{more}"
        if self.target is Target.score:
            return f"scores in train from {answers.min():g} to {answers.max():g}, mean {answers.mean():.3g}" if len(answers) else ""
        lengths = [length for name in self.sources for length in self._lengths(name).tolist()]
        few, many = min(lengths), max(lengths)
        return (f"{few} choices" if few == many else f"{few} to {many} choices") + (", the right one counted from 1" if self.first else "")

    def warnings(self) -> list[str]:
        """What stands in two splits, what has several answers, and classes of one row."""
        import numpy as np

        lines = list(self._overlaps)
        for name, found in self.sources.items():
            keys = docs.column(found, "key")
            answers, codes = self._coded(name)
            both = len(np.unique(np.stack([keys, codes]), axis=1).T) if len(answers) else 0
            if number := both - docs.different(found):
                lines.append(f"{name}: {number:,} rows repeat another with a different {self.answer}")
        if self.target is Target.label:
            single = [name for name, number in zip(self.classes, np.bincount(self._answers["train"], minlength=len(self.classes)), strict=True) if number == 1]
            lines += [f"a class of one training row: {', '.join(map(shown, single[:NAMES_SHOWN]))}"] if single else []
        return lines

    # --- reading the answers ----------------------------------------------------------------------------------------

    @cached_property
    def _splits(self) -> docs.Splits:
        return docs.divided(self.sources, "group", self.validation_fraction, self.test_fraction)

    @cached_property
    def _overlaps(self) -> list[str]:
        return docs.overlaps(self._splits, "rows")

    @cached_property
    def _answers(self) -> dict[str, np.ndarray]:
        """Of each split, the answers of its rows; of all splits, so that a bad row of the test is found before training."""
        import numpy as np

        return {name: np.asarray(self._read(name), np.float64 if self.target is Target.score else np.int64) for name in SPLITS}

    def _read(self, name: str) -> np.ndarray:
        import numpy as np

        if self.target is Target.label:
            return self._each(name, _of({known: number for number, known in enumerate(self.classes)}), self.classes)
        if self.target is Target.score:
            scores = self._each(name, score)
            if name == "train" and len(scores) and len(np.unique(scores)) < 2:
                raise DataError(f"{self.origin}: {self.answer} is {scores[0]:g} in all {len(scores):,} training rows", allowed="scores that differ")
            return scores
        numbers, lengths = self._each(name, right) - self.first, self._lengths(name)[self._splits[name][1]]
        if len(bad := np.flatnonzero((numbers < 0) | (numbers >= lengths))):
            allowed = range(self.first, int(lengths[bad[0]]) + self.first)
            raise self._refused(name, int(bad[0]), "which is no number of its choices", map(str, allowed))
        return numbers

    @cached_property
    def first(self) -> int:
        """The number by which the rows call the first choice: 1 where no answer is 0 and one names the last choice so, else 0."""
        ways = [(self._each(name, right), self._lengths(name)[indices]) for name, (_, indices) in self._splits.items()]
        return int(any((numbers == lengths).any() for numbers, lengths in ways) and all((numbers > 0).all() for numbers, _ in ways))

    def _lengths(self, name: str) -> np.ndarray:
        """The number of choices of each stored row of a split's source."""
        import pyarrow.compute as pc

        lengths: np.ndarray = pc.list_value_length(self._splits[name][0].data.column("choices")).to_numpy()
        return lengths

    def _coded(self, name: str) -> tuple[list[str], np.ndarray]:
        """The different answers of the source of a split, as JSON, and which of them each of its stored rows has."""
        encoded = self._splits[name][0].data.column("answer").combine_chunks().dictionary_encode()
        return encoded.dictionary.to_pylist(), encoded.indices.to_numpy()

    def _understood(self, name: str, meaning: Callable[[Any], T]) -> tuple[dict[int, T], np.ndarray, tuple[int, str] | None]:
        """What the different answers of a split mean, each read once.

        Returns:
            number of an answer → what it means; the number of each row's answer; the first row whose answer means
            nothing, with why.
        """
        import numpy as np

        values, codes = self._coded(name)
        codes = codes[self._splits[name][1]]
        found: dict[int, T] = {}
        problems = []
        for code, first in zip(*np.unique(codes, return_index=True), strict=True):
            try:
                found[int(code)] = meaning(json.loads(values[code]))
            except ValueError as error:
                problems.append((int(first), str(error)))
        return found, codes, min(problems, default=None)

    def _each(self, name: str, meaning: Callable[[Any], float], allowed: Iterable[str] = ()) -> np.ndarray:
        """What the answer of each row of a split means.

        Raises:
            DataError: naming the first row whose answer means nothing.
        """
        import numpy as np

        found, codes, problem = self._understood(name, meaning)
        if problem:
            raise self._refused(name, *problem, allowed)
        table = np.zeros(max(found, default=0) + 1, np.float64 if self.target is Target.score else np.int64)
        table[list(found)] = list(found.values())
        answers: np.ndarray = table[codes]
        return answers

    def _refused(self, name: str, number: int, why: str, allowed: Iterable[str] = ()) -> DataError:
        """The answer to a row of a split whose own answer cannot be used."""
        found, indices = self._splits[name]
        at = found[int(indices[number])]
        source = name if name in self.sources else "train"
        names = list(allowed)
        more = f" and {len(names) - NAMES_SHOWN:,} more" if len(names) > NAMES_SHOWN else ""
        listed = ", ".join(shown(text, 40) for text in names[:NAMES_SHOWN]) + more
        what = f"{self.place(self.files[source][at['file']], at['number'])}: {self.answer} is {shown(json.loads(at['answer']))}, {why}"
        share = "" if name in self.sources else f" (a row held out for {name}: give more rows of its class, or data.{name}=FILE)"
        return DataError(what, allowed=listed or KINDS[self.target], fix=f"mend or remove the row, or data.label_column=NAME of another column{share}")


def _of(names: Mapping[str, int]) -> Callable[[Any], int]:
    """Reads a label as the number of a class."""

    def number(value: Any) -> int:
        name = class_name(value)
        if name not in names:
            raise ValueError("which no training row has")
        return names[name]

    return number


def _fitting(name: str, fits: Callable[[str], bool]) -> str:
    if not fits(name):
        raise ValueError("which is no whole number, as the others are")
    return name


def _uniform(names: Counter[str]) -> Callable[[str], bool]:
    """Whether a name is of the kind of the others: whole numbers where most rows have them, else no fraction beside whole numbers."""
    whole = sum(number for name, number in names.items() if WHOLE.fullmatch(name))
    mostly = 2 * whole > names.total()
    return lambda name: bool(WHOLE.fullmatch(name)) or not (mostly or (whole and NUMBER.fullmatch(name)))


def of(data: Documents, target: Target, sources: Mapping[str, Dataset], files: Mapping[str, Sequence[str]], **about: Any) -> Labelled:
    """The labelled rows of a kind of data, under its own fractions and its rule for overlaps.

    Args:
        about: origin, answer, columns, place, where they are not the kind's own origin and the defaults.
    """
    return Labelled(
        target=target,
        sources=sources,
        files=files,
        validation_fraction=data.validation_fraction,
        test_fraction=data.test_fraction,
        on_overlap=data.on_overlap,
        **{"origin": data.origin(), **about},
    )
