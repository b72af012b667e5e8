"""Everything moves, from the first step to the last."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmtrain.finetune.base import Decayed, Phase

if TYPE_CHECKING:
    from llmtrain.model.anatomy import Anatomy


@dataclass(frozen=True, kw_only=True)
class Full(Decayed):
    """Train all parameters in one phase. The defaults are those of Devlin et al. 2018, arXiv 1810.04805, A.3."""

    @property
    def needs_blocks(self) -> bool:
        return self.lr_decay < 1

    def plan(self, anatomy: Anatomy) -> list[Phase]:
        return [self.phase(anatomy, anatomy.sections)]
