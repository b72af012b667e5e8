"""What a swept override stands for: its values, and how many there are without listing them.

    seed=0,1,2   seed=range(3)   finetune=choice(features,full)   seed=shuffle(range(9))   seed=sort(2,0,1)

in the grammar of Hydra 1.3, "Extended override syntax".
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import product
from typing import Any

from hydra.core.override_parser.types import ChoiceSweep, Override, QuotedString, RangeSweep, Transformer

from llmtrain.config import written
from llmtrain.errors import ConfigError
from llmtrain.seeding import generator
from llmtrain.sweep.base import Point


@dataclass(frozen=True)
class Value:
    """One value of a swept override.

    Attributes:
        key: what is set.
        text: the value in the grammar of the command line, quoted where it has to be.
        shown: the value for people.
    """

    key: str
    text: str
    shown: str

    @property
    def override(self) -> str:
        return f"{self.key}={self.text}"


def point(values: Sequence[Value], number: int) -> Point:
    """The point that takes these values."""
    return Point(tuple(v.override for v in values), tuple((v.key, v.shown) for v in values), number)


def points(combinations: Iterator[Sequence[Value]]) -> list[Point]:
    """Points of these values, numbered in their order."""
    return [point(values, number) for number, values in enumerate(combinations)]


def size(override: Override) -> int:
    """How many values there are.

    Raises:
        ConfigError: none, or too many to count: those of an interval.
    """
    sweep = override.value()
    if isinstance(sweep, ChoiceSweep):
        found = len(sweep.list)
    elif isinstance(sweep, RangeSweep):
        found = len_of_range(override)
    else:
        start = f"{override.key_or_group}=range(START, STOP, STEP)"
        raise ConfigError(f"{written(override)}: an interval has no list of values", fix=f"sweep=optuna draws from it; or {start}")
    if not found:
        raise ConfigError(f"{written(override)}: an empty list of values", allowed="one value or more; a range ends before its stop")
    if sweep.tags:
        raise ConfigError(f"{written(override)}: a tag says how sweep=optuna draws, and nothing here", fix="leave tag() out")
    return found


def len_of_range(override: Override) -> int:
    """How many numbers a range has."""
    start, stop, step = fractions(override)
    return max(0, math.ceil((stop - start) / step))


def fractions(override: Override) -> tuple[Fraction, Fraction, Fraction]:
    """Start, stop and step of a range as they were written: 0.1 is a tenth, not the float next to it.

    Raises:
        ConfigError: a step of 0, or a number that is not finite.
    """
    sweep: Any = override.value()
    try:
        start, stop, step = (Fraction(str(number)) for number in (sweep.start, sweep.stop, sweep.step))
    except ValueError as error:
        raise ConfigError(f"{written(override)}: not a range", allowed="range(START, STOP, STEP) of finite numbers") from error
    if step == 0:
        raise ConfigError(f"{written(override)}: a step of 0 never ends", allowed="range(START, STOP, STEP)")
    return start, stop, step


def whole(override: Override) -> bool:
    """Whether a range has whole numbers only: it does where it was written with them."""
    sweep: Any = override.value()
    return all(isinstance(number, int) for number in (sweep.start, sweep.stop, sweep.step))


def values(override: Override) -> list[Value]:
    """All values in their order; a shuffled one is the same at each start."""
    sweep: Any = override.value()
    size(override)
    listed = [value(override.key_or_group, item) for item in (sweep.list if isinstance(sweep, ChoiceSweep) else _numbers(override))]
    if sweep.shuffle:
        order = generator(0, "sweep", override.key_or_group).permutation(len(listed))
        return [listed[i] for i in order]
    return listed


def value(key: str, item: Any) -> Value:
    """A parsed value. Its text is Hydra's own encoding, as in `Override.sweep_string_iterator`."""
    text = Transformer.str(item)
    shown = item.text if isinstance(item, QuotedString) else item if isinstance(item, str) else text.lower() if isinstance(item, bool) else text
    return Value(key, text, shown)


def _numbers(override: Override) -> list[int] | list[float]:
    start, _, step = fractions(override)
    exact = [start + i * step for i in range(len_of_range(override))]
    return [int(number) for number in exact] if whole(override) else [float(number) for number in exact]


def combinations(swept: Sequence[Override], limit: int) -> Iterator[tuple[Value, ...]]:
    """Every combination of the values, the last override's fastest.

    Args:
        limit: the largest number of combinations.

    Raises:
        ConfigError: more than `limit`, which is known before any is made; or no values.
    """
    refuse_too_many(math.prod(size(override) for override in swept), limit)
    return product(*(values(override) for override in swept))


def refuse_too_many(number: int, limit: int) -> None:
    """
    Raises:
        ConfigError: more than `limit` members.
    """
    if number > limit:
        count = f"{number:,}" if number < 10**15 else f"more than {10**15:,}"
        raise ConfigError(f"the sweep has {count} members", allowed=f"at most max_members={limit}", fix="fewer values, sweep=optuna, or a larger max_members")


def key_of(override: str) -> str:
    """The key of an override as typed."""
    return override.partition("=")[0].removeprefix("+")
