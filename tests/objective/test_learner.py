"""The learner is the objective's losses, or zero for a batch that only keeps step; and how a batch comes to a device."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from torch import nn
from torch.utils.data._utils.pin_memory import pin_memory

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


def batch() -> Batch:
    return Batch({"x": torch.ones(3, 2)}, {"term": torch.zeros(3)}, {"term": 3}, {"tokens": 6}, [0, 1, 2])


def test_the_data_loader_pins_every_tensor_of_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    pinned: list[torch.Tensor] = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(tensor) or tensor + 1)
    before = batch()
    after = pin_memory(before)
    assert [id(tensor) for tensor in pinned] == [id(before.inputs["x"]), id(before.labels["term"])]
    assert torch.equal(after.inputs["x"], before.inputs["x"] + 1)
    assert (after.counts, after.sizes, after.samples, after.real) == (before.counts, before.sizes, before.samples, True)


@pytest.mark.parametrize(("device", "ahead"), [("cuda", True), ("mps", False), ("cpu", False)])
def test_only_cuda_is_handed_what_it_may_read_later(monkeypatch: pytest.MonkeyPatch, device: str, ahead: bool) -> None:
    asked: list[tuple[str, bool]] = []

    def to(tensor: torch.Tensor, where: torch.device, non_blocking: bool) -> torch.Tensor:
        asked.append((where.type, non_blocking))
        return tensor

    monkeypatch.setattr(torch.Tensor, "to", to)
    batch().to(torch.device(device))
    assert asked == [(device, ahead)] * 2
