"""What may change: which parameters are trained, and when.

A mode returns phases. A change of phase is a step boundary: wrapper and optimizer are built anew, and parameters that
stay trainable keep their optimizer state by name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from torch import nn

    from llmtrain.model.anatomy import Anatomy


@dataclass(frozen=True)
class Phase:
    """A stretch of training in which one set of parameters moves.

    Attributes:
        until: share of the whole budget at which it ends; the last phase ends at 1.
        trainable: names of the parameters that move, all others are frozen.
        lr_scale: factor on the learning rate by parameter name, where it is not 1.
    """

    until: float
    trainable: frozenset[str]
    lr_scale: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Finetune(ABC):
    """A finetuning mode. Pretraining is one too: everything moves, in one phase.

    Class attributes:
        needs_blocks: whether the plan asks where the blocks are; False: it fits any model.
    """

    needs_blocks: ClassVar[bool] = True

    def prepare(self, model: nn.Module, anatomy: Anatomy) -> nn.Module:
        """The model with what the mode adds or replaces; by default as it is."""
        return model

    @abstractmethod
    def plan(self, anatomy: Anatomy) -> list[Phase]:
        """The phases, by parameter names."""
