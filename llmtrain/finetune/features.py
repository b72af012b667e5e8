"""Only the head is trained, on hidden states that do not change: Devlin et al. 2018, arXiv 1810.04805, section 5.3."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmtrain.errors import require
from llmtrain.finetune.address import ADDRESSES, is_address
from llmtrain.finetune.base import Phase, Untying
from llmtrain.model.base import Combine

if TYPE_CHECKING:
    from llmtrain.model.anatomy import Anatomy


@dataclass(frozen=True, kw_only=True)
class Features(Untying):
    """Train what stands outside the base model, in one phase.

    Attributes:
        states: address of the hidden states that the head reads (`address.state_numbers`).
        combine: what it makes of several.
        standardise: whether each of their numbers gets mean 0 and deviation 1 over the training set.
    """

    states: str
    combine: Combine
    standardise: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        require(is_address(self.states) and self.states != "none", "states", self.states, ADDRESSES.replace("none, ", ""))

    @property
    def trains_body(self) -> bool:
        return False

    @property
    def reads(self) -> tuple[str, str]:
        return self.states, self.combine.name

    @property
    def standardises(self) -> bool:
        return self.standardise

    def plan(self, anatomy: Anatomy) -> list[Phase]:
        return [self.phase(anatomy, anatomy.names("head"))]
