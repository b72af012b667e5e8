"""Linear probing, then finetuning: the head first, then everything. Kumar et al. 2022, arXiv 2202.10054.

A head that starts from random numbers bends the features below it in its first updates; one that has learned does not.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from llmtrain.errors import require
from llmtrain.finetune.base import Decayed, Phase, Untying

if TYPE_CHECKING:
    from llmtrain.model.anatomy import Anatomy


@dataclass(frozen=True, kw_only=True)
class LpFt(Decayed, Untying):
    """Train the head alone, then all parameters.

    Attributes:
        head_share: share of the budget that the head has for itself.
        head_lr_scale: factor on the learning rate meanwhile: a head wants a higher one than a whole model.
    """

    head_share: float
    head_lr_scale: float

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.head_share < 1, "head_share", self.head_share, "above 0 and below 1")
        require(0 < self.head_lr_scale < float("inf"), "head_lr_scale", self.head_lr_scale, "a finite number above 0")

    def plan(self, anatomy: Anatomy) -> list[Phase]:
        probe = self.phase(anatomy, anatomy.names("head"), self.head_share)
        scaled = replace(probe, lr_scale=dict.fromkeys(probe.trainable, self.head_lr_scale) if self.head_lr_scale != 1 else {})
        return [scaled, self.phase(anatomy, anatomy.sections)]
