"""Everything moves, from the first step to the last."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from llmtrain.finetune.base import Finetune, Phase

if TYPE_CHECKING:
    from llmtrain.model.anatomy import Anatomy


@dataclass(frozen=True, kw_only=True)
class Full(Finetune):
    """Train all parameters in one phase."""

    needs_blocks: ClassVar[bool] = False

    def plan(self, anatomy: Anatomy) -> list[Phase]:
        return [Phase(until=1.0, trainable=frozenset(anatomy.sections))]
