"""The learner is the objective's losses, or zero for a batch that only keeps step."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn

from llmtrain.objective.base import Batch, Objective
from llmtrain.objective.learner import Learner


class Sums:
    separates = False

    def losses(self, model: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        return {"term": model(batch.inputs["x"]).sum()}


def test_a_batch_that_counts_for_nothing_gives_zero_loss_and_zero_gradients() -> None:
    model = nn.Linear(2, 1)
    learner = Learner(model, cast(Objective, cast(Any, Sums())))
    batch = Batch({"x": torch.ones(3, 2)}, {}, {"term": 3}, {"tokens": 6}, [0, 1, 2])
    learner(batch.blank())["term"].backward()
    assert batch.blank().counts == {"term": 0}
    assert model.weight.grad is not None
    assert model.weight.grad.abs().sum() == 0
    learner(batch)["term"].backward()
    assert model.weight.grad.abs().sum() > 0
