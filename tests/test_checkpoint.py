"""Checkpoints: nothing pickled, tied tensors once, frozen tensors left out where the base has them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from llmtrain import checkpoint
from llmtrain.checkpoint import Base
from llmtrain.errors import CheckpointError


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(4, 3)
        self.head = nn.Linear(3, 4, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("kept", torch.ones(2))
        self.register_buffer("derived", torch.ones(2), persistent=False)


def save(run: Path, step: int, model: nn.Module, base: Base | None = None) -> Path:
    return checkpoint.save(run, step=step, model=model, optimizer={}, state={"run": {"step": step}}, base=base)


def test_a_tied_tensor_is_stored_once_and_stays_tied(tmp_path: Path) -> None:
    model = Tied()
    path = save(tmp_path, 1, model)
    loaded = checkpoint.read(path)
    assert set(loaded.weights) == {"embedding.weight", "kept"}
    other = Tied()
    checkpoint.load_weights(other, loaded.weights)
    assert other.head.weight is other.embedding.weight
    assert torch.equal(other.head.weight, model.head.weight)


def test_what_equals_the_base_is_left_out_and_comes_back(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    base = Base("weights", {n: checkpoint.tensor_sha256(t) for n, t in checkpoint.tensors(model).items()})
    with torch.no_grad():
        model[1].bias.add_(1)
    path = save(tmp_path, 1, model, base)
    loaded = checkpoint.read(path, base)
    assert set(loaded.weights) == {"1.bias"}
    checkpoint.load_weights(model, loaded.weights, base)


def test_another_base_is_refused(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    base = Base("weights", {"weight": checkpoint.tensor_sha256(model.weight)})
    path = save(tmp_path, 1, model, base)
    with pytest.raises(CheckpointError, match="gone or has changed"):
        checkpoint.read(path, Base("weights", {"weight": "other"}))
    with pytest.raises(CheckpointError, match="gone or has changed"):
        checkpoint.read(path)


def test_nothing_in_a_checkpoint_is_pickled(tmp_path: Path) -> None:
    path = save(tmp_path, 1, nn.Linear(2, 2))
    assert sorted(p.name for p in path.iterdir()) == ["manifest.json", "model.safetensors", "optimizer.safetensors", "state.json"]


def test_the_newest_is_the_highest_step_whatever_the_clock_says(tmp_path: Path) -> None:
    import os

    for step in (2, 10, 9):
        save(tmp_path, step, nn.Linear(1, 1))
    os.utime(tmp_path / "checkpoints" / "step-00000010", (0, 0))
    assert checkpoint.newest(tmp_path) == tmp_path / "checkpoints" / "step-00000010"


def test_pruning_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        save(tmp_path, step, nn.Linear(1, 1))
    checkpoint.prune(tmp_path, 2, best_step=1)
    assert [checkpoint.step_of(p) for p in checkpoint.listed(tmp_path)] == [4, 3, 1]


@pytest.mark.parametrize(
    "weights", [{}, {"weight": torch.ones(2, 2), "bias": torch.ones(3)}, {"weight": torch.ones(2, 2), "bias": torch.ones(2), "more": torch.ones(1)}]
)
def test_weights_that_do_not_fit_are_refused(weights: dict[str, torch.Tensor]) -> None:
    with pytest.raises(CheckpointError, match="does not fit"):
        checkpoint.load_weights(nn.Linear(2, 2), weights)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
def test_the_hash_of_a_tensor_sees_bits_shape_and_type(dtype: torch.dtype) -> None:
    tensor = torch.arange(6).to(dtype)
    hashes = {checkpoint.tensor_sha256(t) for t in (tensor, tensor + 1, tensor.view(2, 3), tensor.to(torch.float64), tensor[:0])}
    assert len(hashes) == 5
    assert checkpoint.tensor_sha256(tensor) == checkpoint.tensor_sha256(tensor.clone())


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ((1000, 1000, 0o644), None),
        ((1000, 1000, 0o664), None),  # the user's own group
        ((1000, 100, 0o644), None),
        ((1000, 100, 0o664), "can be written by the group 100"),
        ((1000, 1000, 0o646), "can be written by everybody"),
        ((1001, 1000, 0o600), "belongs to another user (uid 1001)"),
        ((0, 0, 0o600), "belongs to another user (uid 0)"),
    ],
)
def test_e24_who_besides_the_user_can_change_a_file(facts: tuple[int, int, int], said: str | None) -> None:
    assert checkpoint.others(*facts, user=1000) == said
