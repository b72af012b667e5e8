"""How options compare: which runs a sweep consists of, one after another or all at once.

    search = sweep.search(space, folder)
    point = search.ask()                        →  Point(overrides, label), or None: no more for now
    search.progress(point, step, value)         →  True: stop it, it will not be the best
    search.tell(point, value)                   →  the metric it ended with; None: it failed or was stopped

A sweep over a list knows all its points from the start; one that learns from what came out does not.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from hydra.core.override_parser.types import Override


@dataclass(frozen=True)
class Point:
    """One member of a sweep.

    Attributes:
        overrides: what it sets, in the grammar of the command line, without sweeps: `finetune.blocks=2`.
        label: the same for people: (key, value as text).
        number: of the point in its sweep, from 0.
    """

    overrides: tuple[str, ...]
    label: tuple[tuple[str, str], ...]
    number: int = 0


@dataclass(frozen=True)
class Space:
    """What a sweep chooses from.

    Attributes:
        swept: parsed overrides with several values, in the order in which they were typed.
        given: keys of the other overrides, which are the same for all members.
        depth: how many blocks the model has; asked only where it matters.
        metric: which decides, and whether more of it is better; asked only where it matters. The sweep's `decides`, where it names one.
        limit: the largest number of members.
    """

    swept: tuple[Override, ...]
    given: frozenset[str] = frozenset()
    depth: Callable[[], int] = field(default=lambda: 0)
    metric: Callable[[], tuple[str, bool]] = field(default=lambda: ("loss", False))
    limit: int = 200


class Search(ABC):
    """A sweep under way."""

    @abstractmethod
    def ask(self) -> Point | None:
        """The next member; None: there is none, or none before another has ended."""

    def earlier(self) -> list[Point]:
        """Points of an earlier start whose end was told. `ask` does not give them again."""
        return []

    def progress(self, point: Point, step: int, value: float) -> bool:
        """Hear of an evaluation of a member that runs; True: it may be stopped."""
        return False

    def tell(self, point: Point, value: float | None) -> None:
        """Hear what a member ended with; None: it failed, or was stopped early."""


class Listed(Search):
    """Points that are known from the start, in their order."""

    def __init__(self, points: Iterable[Point]) -> None:
        self._points = iter(points)

    def ask(self) -> Point | None:
        return next(self._points, None)


@dataclass(frozen=True, kw_only=True)
class Sweep(ABC):
    """Which runs are compared.

    Class attributes:
        adaptive: whether later points depend on what earlier ones gave.
    """

    adaptive: ClassVar[bool] = False

    def points(self, space: Space) -> list[Point]:
        """All members; of a sweep that is not adaptive.

        Raises:
            ConfigError: there are none, too many, or a kind of choice that this sweep cannot make.
        """
        raise NotImplementedError

    def search(self, space: Space, folder: Path) -> Search:
        """The sweep under way; what is in `folder` of an earlier start of it is gone on with."""
        return Listed(self.points(space))

    def corners(self, space: Space) -> list[Point]:
        """Points that together take every kind and the ends of every range: what is wrong with a member shows in one of them."""
        return self.points(space)

    @property
    def decides(self) -> str | None:
        """The metric that the sweep wants to be told; None: the one that decides in its members."""
        return None

    @abstractmethod
    def without_effect(self) -> dict[str, str]:
        """Settings that change nothing under the others: name → why."""
