"""The one module that is prepared, compiled, wrapped and called.

Calling a part of a prepared model instead would silently leave autocast and the reduction of gradients: bf16 computes
in fp32, and the processes drift apart.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from llmtrain.model.base import require_separation
from llmtrain.objective.base import Batch, Objective

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Learner(nn.Module):
    """A model with the question it is asked: `forward(batch)` gives the sum of losses of each term; without gradients, all sums."""

    def __init__(self, model: PreTrainedModel, objective: Objective) -> None:
        super().__init__()
        if objective.separates:
            require_separation(model)
        self.model = model
        self.objective = objective

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        sums = self.objective.losses(self.model, batch) if torch.is_grad_enabled() else self.objective.sums(self.model, batch)
        # A batch that only keeps this process in step still runs backward, so that all processes meet; times zero.
        return sums if batch.real else {term: value * 0.0 for term, value in sums.items()}
