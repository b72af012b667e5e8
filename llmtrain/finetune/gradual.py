"""Gradual unfreezing: from the top down, a few blocks more in each phase. Howard & Ruder 2018, arXiv 1801.06146, 3.2-3.3."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmtrain.errors import require
from llmtrain.finetune.base import Decayed, Phase, Untying, require_depth

if TYPE_CHECKING:
    from llmtrain.model.anatomy import Anatomy


@dataclass(frozen=True, kw_only=True)
class Gradual(Decayed, Untying):
    """Train head, norm and pooler with the last blocks first, thaw the next lower ones phase by phase, and the embeddings last.

    Attributes:
        blocks_per_phase: how many blocks each phase thaws, the first among them.
        until: share of the budget at which everything is thawed; the phases before are equally long.
    """

    blocks_per_phase: int
    until: float

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.blocks_per_phase >= 1, "blocks_per_phase", self.blocks_per_phase, "1 or more")
        require(0 < self.until < 1, "until", self.until, "above 0 and below 1")

    def check_depth(self, depth: int) -> None:
        require_depth(self.blocks_per_phase, depth, "blocks_per_phase")

    def plan(self, anatomy: Anatomy) -> list[Phase]:
        self.check_depth(anatomy.depth)
        lowest = [*range(anatomy.depth - self.blocks_per_phase, 0, -self.blocks_per_phase), 0]  # the lowest block that moves
        ends = [self.until * (i + 1) / len(lowest) for i in range(len(lowest))]
        thawing = [self.phase(anatomy, anatomy.above(k), end) for k, end in zip(lowest, ends, strict=True)]
        return [*thawing, self.phase(anatomy, anatomy.sections)]
