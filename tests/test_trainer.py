"""The loop: one division for an update, real bf16, the same on any number of processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from llmtrain import trainer
from llmtrain.errors import ConfigError
from llmtrain.finetune.base import Phase
from tests.conftest import ANSWERS, SOME, Train, outcome, tiny

RAGGED = ("objective.packing=false", "trainer.log_every_steps=1")
# Micro-batches with unequal numbers of targets, for each objective; pairs have one each.
UNEQUAL = {name: (*answer, *(RAGGED if name == "next_token" else RAGGED[1:])) for name, answer in ANSWERS.items()}
LOSSES = {
    "next_token": ("loss_next_token",),
    "masked_lm": ("loss_masked_lm",),
    "sentence_order": ("loss_sentence_order",),
    "bert": ("loss_masked_lm", "loss_sentence_order"),
    "classification": ("loss_class",),
    "regression": ("loss_score",),
    "multiple_choice": ("loss_choice",),
}


def records(run: Path, *names: str) -> list[list[float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [[line[name] for name in names] for line in lines if set(names) <= line.keys()]


def launch(folder: Path, *overrides: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """`llmtrain pretrain` with the tiny settings, in processes of its own."""
    typed = [*tiny(*overrides), f"output_dir={folder}"]
    command = [sys.executable, "-W", "ignore", "-m", "llmtrain", "pretrain", *typed]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=cwd, env={**os.environ, "PYTHONPATH": str(Path.cwd())}, check=False)


@pytest.mark.parametrize("micro", [1, 2, 4])
@pytest.mark.parametrize("objective", ANSWERS)
def test_micro_batches_give_the_loss_and_gradient_of_the_whole_batch(train: Train, tmp_path: Path, objective: str, micro: int) -> None:
    names, asked = (*LOSSES[objective], "grad_norm"), UNEQUAL[objective]
    whole = records(train(tmp_path / "whole", *asked), *names)
    cut = records(train(tmp_path / "cut", *asked, f"trainer.micro_batch_size={micro}"), *names)
    assert len(whole) == 6
    for a, b in zip(whole, cut, strict=True):
        assert b == pytest.approx(a, rel=1e-6)


@pytest.mark.parametrize(("objective", "term"), [("next_token", "next_token"), ("masked_lm", "masked_lm"), ("bert", "masked_lm")])
def test_ragged_data_is_ragged(train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, objective: str, term: str) -> None:
    """Without this the test above could not fail: equal counts make the mean of means right."""
    seen: list[list[int]] = []
    real = trainer.Trainer._update

    def update(self: trainer.Trainer, batches: Any) -> Any:
        seen.append([b.counts[term] for b in batches])
        return real(self, batches)

    monkeypatch.setattr(trainer.Trainer, "_update", update)
    train(tmp_path / "run", *UNEQUAL[objective], "trainer.micro_batch_size=2")
    assert any(len(set(counts)) > 1 for counts in seen)


@pytest.mark.parametrize("objective", SOME)
def test_two_processes_give_the_losses_and_gradients_of_one(train: Train, tmp_path: Path, objective: str) -> None:
    names, asked = (*LOSSES[objective], "grad_norm", "lr"), UNEQUAL[objective]
    one = train(tmp_path / "one", *asked)
    done = launch(tmp_path / "two", *asked, "devices=2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for a, b in zip(records(one, *names), records(tmp_path / "two", *names), strict=True):
        assert b == pytest.approx(a, rel=1e-6)
    for a, b in zip(records(one, "validation_loss"), records(tmp_path / "two", "validation_loss"), strict=True):
        assert b == pytest.approx(a, rel=1e-6)
    assert done.stdout.count("starting from step 0") == 1


@pytest.mark.parametrize("objective", [pytest.param(o, marks=() if o in ("next_token", "classification") else pytest.mark.long) for o in ANSWERS])
def test_two_processes_resume_exactly(tmp_path: Path, objective: str) -> None:
    steady = (*ANSWERS[objective], "schedule=constant", "devices=2", "model.dropout=0.1")
    assert launch(tmp_path / "unbroken", *steady, cwd=tmp_path).returncode == 0
    assert launch(tmp_path / "broken", *steady, "trainer.max_steps=3", cwd=tmp_path).returncode == 0
    again = launch(tmp_path / "broken", *steady, cwd=tmp_path)
    assert "resumed from step 3" in again.stdout
    a, b = outcome(tmp_path / "unbroken"), outcome(tmp_path / "broken")
    assert (a["weights"], a["optimizer"], a["final"]) == (b["weights"], b["optimizer"], b["final"])


def test_a_loss_that_is_not_finite_stops_all_processes_with_one_message_and_the_code(tmp_path: Path) -> None:
    done = launch(tmp_path / "run", "devices=2", "optimizer.lr=1e20", "trainer.clip_norm=null", "schedule=constant", "trainer.max_steps=20", cwd=tmp_path)
    assert done.returncode == 5
    assert done.stderr.count("error: the loss is not finite") == 1


class Products(TorchDispatchMode):
    """Notes the dtypes of the products with weights. The attention on a CPU keeps its scores in fp32 on purpose."""

    def __init__(self) -> None:
        super().__init__()
        self.dtypes: list[torch.dtype] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm):
            self.dtypes.append(args[1].dtype)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp32", torch.float32)])
def test_matrix_products_inside_the_objective_run_in_the_precision(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str, dtype: torch.dtype
) -> None:
    monkeypatch.setattr("llmtrain.runtime.has_bf16", lambda device: True)
    products = Products()
    real = trainer.Trainer._update

    def update(self: trainer.Trainer, batches: Any) -> Any:
        with products:
            return real(self, batches)

    monkeypatch.setattr(trainer.Trainer, "_update", update)
    train(tmp_path / "run", f"precision={precision}", "trainer.max_steps=1")
    assert len(products.dtypes) > 20
    assert set(products.dtypes) == {dtype}


@pytest.mark.parametrize("rows", [1, 2, 7, 9])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_every_row_is_evaluated_once_on_any_number_of_processes(rows: int, world: int) -> None:
    from llmtrain.data.loader import micro_batches

    seen = [s for r in range(world) for samples, real in micro_batches(list(range(rows)), r, world, 2) if real for s in samples]
    steps = {len(micro_batches(list(range(rows)), r, world, 2)) for r in range(world)}
    assert sorted(seen) == list(range(rows))
    assert len(steps) == 1


@pytest.mark.parametrize(
    ("batch", "micro", "world", "near"), [(10, 4, 1, "8 or trainer.batch_size=12"), (6, 4, 2, "8"), (3, None, 2, "2 or trainer.batch_size=4")]
)
def test_a_batch_that_does_not_divide_is_refused_with_the_nearest_that_do(batch: int, micro: int | None, world: int, near: str) -> None:
    settings = trainer.Settings(
        max_steps=1,
        max_epochs=None,
        max_tokens=None,
        batch_size=batch,
        micro_batch_size=micro,
        clip_norm=1.0,
        log_every_steps=1,
        gradient_checkpointing=False,
        compile=False,
    )
    with pytest.raises(ConfigError, match=str(batch)) as caught:
        settings.micro_size(world)
    assert near in str(caught.value.allowed)


def test_freezing_lets_exactly_the_named_parameters_move_and_puts_frozen_modules_in_eval() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(), nn.Linear(2, 2))
    trainer.freeze(model, Phase(1.0, frozenset({"2.weight", "2.bias"})))
    trainer.set_modes(model, {"0"})
    assert [p.requires_grad for p in model.parameters()] == [False, False, True, True]
    assert [m.training for m in model] == [False, True, True]


@pytest.mark.parametrize("names", [frozenset(), frozenset({"3.weight"})])
def test_freezing_refuses_nothing_and_names_that_are_not_there(names: frozenset[str]) -> None:
    with pytest.raises(ConfigError):
        trainer.freeze(nn.Sequential(nn.Linear(2, 2)), Phase(1.0, names))


def test_gradient_checkpointing_changes_no_loss(train: Train, tmp_path: Path) -> None:
    plain = records(train(tmp_path / "plain", "trainer.log_every_steps=1"), "loss_next_token", "grad_norm")
    again = records(train(tmp_path / "again", "trainer.log_every_steps=1", "trainer.gradient_checkpointing=true"), "loss_next_token", "grad_norm")
    for a, b in zip(plain, again, strict=True):
        assert b == pytest.approx(a, rel=1e-6)


@pytest.mark.long
@pytest.mark.filterwarnings("default")  # torch 2.13's compiler warns of itself (script_method, .grad while tracing); until it does not
def test_compile_changes_no_loss_beyond_rounding(train: Train, tmp_path: Path) -> None:
    plain = records(train(tmp_path / "plain", "trainer.log_every_steps=1"), "loss_next_token")
    compiled = records(train(tmp_path / "compiled", "trainer.log_every_steps=1", "trainer.compile=true"), "loss_next_token")
    for a, b in zip(plain, compiled, strict=True):
        assert b == pytest.approx(a, rel=1e-4)


@pytest.mark.parametrize("budget", ["trainer.max_epochs=0.1", "trainer.max_tokens=1000"])
def test_a_budget_in_epochs_or_tokens_is_used_up_and_no_more(train: Train, tmp_path: Path, budget: str) -> None:
    run = train(tmp_path / "run", budget, "trainer.log_every_steps=1", "evaluation.every_steps=null", "checkpoint.every_steps=null")
    tokens = [r[0] for r in records(run, "tokens", "loss_next_token")]
    resolved = yaml.safe_load((run / "resolved.yaml").read_text())["derived"]
    assert (len(tokens), tokens[-1]) == (resolved["total_steps"], resolved["total_tokens"])
    if "tokens" in budget:
        assert tokens[-1] >= 1000 > tokens[-2]
    else:
        assert len(tokens) == round(0.1 * -(-resolved["train_sequences"] // 8))


@pytest.mark.gpu
def test_a_run_on_a_gpu_in_bf16_learns(train: Train, tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    run = train(tmp_path / "run", "device=cuda", "precision=auto", "trainer.max_steps=30")
    losses = records(run, "loss_next_token")
    assert losses[-1] < losses[0]
