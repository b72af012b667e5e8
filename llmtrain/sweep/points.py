"""Points: members that are written down one by one, where no product of lists is meant."""

from __future__ import annotations

import math
import shlex
from dataclasses import dataclass
from itertools import product

from llmtrain.config import parse
from llmtrain.errors import ConfigError, SettingError, require
from llmtrain.sweep.base import Point, Space, Sweep
from llmtrain.sweep.values import Value, combinations, points, refuse_too_many, size


@dataclass(frozen=True, kw_only=True)
class Points(Sweep):
    """The members as they are listed, each with every combination of what else is swept.

    Attributes:
        listed: one text for each member, with overrides as they would be typed, a space between them.
    """

    listed: list[str]

    def __post_init__(self) -> None:
        example = 'overrides in one text for each member, such as \'["finetune=features", "finetune=last_layers finetune.blocks=2"]\''
        require(bool(self.listed), "listed", self.listed, example)
        for text in self.listed:
            try:
                require(bool(self._values(text)), "listed", text, example)
            except (ConfigError, ValueError) as error:
                raise SettingError("listed", text, example, fix=error.what if isinstance(error, ConfigError) else str(error)) from error

    def points(self, space: Space) -> list[Point]:
        """The order is that of the list; what is swept is fastest."""
        mixed = {value.key for text in self.listed for value in self._values(text)} & {override.key_or_group for override in space.swept}
        if mixed:
            raise ConfigError(f"{', '.join(sorted(mixed))} is both swept and listed in sweep.listed", fix="leave it out of one of them")
        refuse_too_many(len(self.listed) * math.prod(map(size, space.swept)), space.limit)
        others = list(combinations(space.swept, space.limit))
        return points((*self._values(text), *other) for text, other in product(self.listed, others))

    @staticmethod
    def _values(text: str) -> list[Value]:
        """The overrides of a text, as the command line would take them: none of them is a sweep."""
        typed = shlex.split(text)
        return [Value(o.key_or_group, override.partition("=")[2], str(o.value())) for override, o in zip(typed, parse(typed), strict=True)]

    def without_effect(self) -> dict[str, str]:
        return {}
