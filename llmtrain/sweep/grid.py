"""Grid: every combination of the values that are swept."""

from __future__ import annotations

from dataclasses import dataclass

from llmtrain.errors import ConfigError
from llmtrain.sweep.base import Point, Space, Sweep
from llmtrain.sweep.values import combinations, points


@dataclass(frozen=True, kw_only=True)
class Grid(Sweep):
    """The product of the swept overrides in the order in which they were typed, the last one fastest."""

    def points(self, space: Space) -> list[Point]:
        if not space.swept:
            raise ConfigError("-m: no key has several values", allowed="KEY=A,B,C  choice(A, B)  range(START, STOP)", fix="without -m it is one run")
        return points(combinations(space.swept, space.limit))

    def without_effect(self) -> dict[str, str]:
        return {}
