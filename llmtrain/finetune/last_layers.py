"""The last blocks and all that stands above them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmtrain.errors import require
from llmtrain.finetune.base import Decayed, Phase, Untying, require_depth

if TYPE_CHECKING:
    from llmtrain.model.anatomy import Anatomy


@dataclass(frozen=True, kw_only=True)
class LastLayers(Decayed, Untying):
    """Train the last blocks, the norm and pooler above them, and the head, in one phase.

    Attributes:
        blocks: how many; with all of them the embeddings alone stay frozen.
    """

    blocks: int

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.blocks >= 1, "blocks", self.blocks, "1 or more; the head alone is finetune=features")

    def check_depth(self, depth: int) -> None:
        require_depth(self.blocks, depth, "blocks")

    def plan(self, anatomy: Anatomy) -> list[Phase]:
        self.check_depth(anatomy.depth)
        return [self.phase(anatomy, anatomy.above(anatomy.depth - self.blocks))]
