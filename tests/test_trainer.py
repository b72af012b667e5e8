"""The loop: one division for an update, real bf16, the same on any number of processes."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from datasets import Dataset
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from llmtrain import trainer
from llmtrain.callback.progress import Progress
from llmtrain.data.loader import Order
from llmtrain.errors import ConfigError, NonFiniteError, SettingError, Stopped
from llmtrain.finetune.base import Phase
from llmtrain.objective.base import IGNORED, PREDICTIONS, Batch, Totals
from llmtrain.objective.learner import Learner
from llmtrain.optimizer import state_by_name
from llmtrain.trainer import Stage
from tests.conftest import ANSWERS, Train, outcome, tiny, without_float64

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


SETTINGS = trainer.Settings(
    max_steps=1,
    max_epochs=None,
    max_tokens=None,
    batch_size=8,
    micro_batch_size=None,
    clip_norm=1.0,
    log_every_steps=1,
    gradient_checkpointing=False,
    compile=False,
    max_skipped=10,
    spike_window=100,
)


def records(run: Path, *names: str) -> list[list[float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [[line[name] for name in names] for line in lines if set(names) <= line.keys()]


def launch(folder: Path, *overrides: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """`llmtrain pretrain` with the tiny settings, in processes of its own."""
    typed = [*tiny(*overrides), f"output_dir={folder}"]
    command = [sys.executable, "-W", "ignore", "-m", "llmtrain", "pretrain", *typed]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=cwd, env={**os.environ, "PYTHONPATH": str(Path.cwd())}, check=False)


@pytest.mark.parametrize("limit", [None, 0.1, 5 - 1e-7, 5, 5 + 1e-6, 5 + 2e-6, 6])
def test_gradients_are_clipped_as_torch_clips_them(limit: float | None) -> None:
    ours, theirs = ([nn.Parameter(torch.zeros(1)) for _ in range(3)] for _ in range(2))
    for side in (ours, theirs):  # the third has none
        side[0].grad, side[1].grad = torch.tensor([3.0]), torch.tensor([4.0])
    on_a_cpu = SimpleNamespace(sharded=False, device="cpu", accelerator=SimpleNamespace(scaler=None))
    asked = SimpleNamespace(settings=dataclasses.replace(SETTINGS, clip_norm=limit), runtime=on_a_cpu, _trained=ours)
    assert trainer.Trainer._clip(asked) == float(nn.utils.clip_grad_norm_(theirs, limit or math.inf)) == 5  # type: ignore[arg-type]
    assert [p.grad for p in ours] == [p.grad for p in theirs]


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


@pytest.mark.parametrize("objective", [pytest.param(o, marks=() if o == "classification" else pytest.mark.long) for o in ANSWERS])
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


@pytest.mark.parametrize("objective", [pytest.param(o, marks=() if o == "next_token" else pytest.mark.long) for o in ANSWERS])
def test_two_processes_resume_exactly(tmp_path: Path, objective: str) -> None:
    steady = (*ANSWERS[objective], "schedule=constant", "devices=2", "model.dropout=0.1")
    assert launch(tmp_path / "unbroken", *steady, cwd=tmp_path).returncode == 0
    assert launch(tmp_path / "broken", *steady, "trainer.max_steps=3", cwd=tmp_path).returncode == 0
    again = launch(tmp_path / "broken", *steady, cwd=tmp_path)
    assert "resumed from step 3" in again.stdout
    a, b = outcome(tmp_path / "unbroken"), outcome(tmp_path / "broken")
    assert (a["weights"], a["optimizer"], a["final"]) == (b["weights"], b["optimizer"], b["final"])


@pytest.mark.long
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
    settings = dataclasses.replace(SETTINGS, batch_size=batch, micro_batch_size=micro)
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


# --- numbers that are none ----------------------------------------------------------------------------------------

SKIP = ("on_nonfinite=skip", "trainer.log_every_steps=1")


def spoil(monkeypatch: pytest.MonkeyPatch, *steps: int, what: str = "loss", sample: int | None = None) -> None:
    """Make the loss, or the gradient alone, of these updates a NaN.

    Args:
        sample: only in the forward pass that it is in.
    """
    real = trainer.Trainer._update

    def update(self: trainer.Trainer, batches: Any) -> Any:
        if self.state.step + 1 not in steps:
            return real(self, batches)

        def worse(module: Any, inputs: Any, output: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            return {t: v * math.nan for t, v in output.items()} if sample is None or sample in inputs[0].samples else output

        learner = self.runtime.accelerator.unwrap_model(self._call)
        hook = learner.register_forward_hook(worse) if what == "loss" else self._trained[0].register_hook(lambda gradient: gradient * math.nan)
        try:
            return real(self, batches)
        finally:
            hook.remove()

    monkeypatch.setattr(trainer.Trainer, "_update", update)


def lines(run: Path) -> list[dict[str, Any]]:
    """The records of a run's updates."""
    return [record for record in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()) if "lr" in record]


def note_updates(monkeypatch: pytest.MonkeyPatch, *, state: bool = False) -> list[dict[str, Any]]:
    """What is known of each update that follows: the samples, and on demand weights and the optimizer's state before and after it."""
    found: list[dict[str, Any]] = []
    real = trainer.Trainer._update

    def now(self: trainer.Trainer) -> dict[str, torch.Tensor]:
        moments = {f"{n}/{k}": t.clone() for n, kinds in state_by_name(self._inner(self._adamw)).items() for k, t in kinds.items()}
        return {**{n: p.detach().clone() for n, p in self.saved.named_parameters()}, **moments}

    def update(self: trainer.Trainer, batches: Any) -> Any:
        note: dict[str, Any] = {"step": self.state.step + 1, "samples": sorted(s for b in batches for s in b.samples)}
        note["before"] = now(self) if state else {}
        done = real(self, batches)
        note["after"] = now(self) if state else {}
        note["gradients"] = sum(p.grad is not None for p in self.saved.parameters())
        found.append(note)
        return done

    monkeypatch.setattr(trainer.Trainer, "_update", update)
    return found


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_skipped_update_moves_nothing_and_the_schedule_and_the_data_go_on(train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    usual = train(tmp_path / "usual", *SKIP)
    with monkeypatch.context() as patch:
        expected = note_updates(patch)
        train(tmp_path / "again", *SKIP)
    spoil(monkeypatch, 3, what=what)
    seen = note_updates(monkeypatch, state=True)
    run = train(tmp_path / "run", *SKIP)
    assert [note["samples"] for note in seen] == [note["samples"] for note in expected]
    moved = [[name for name, value in note["before"].items() if not torch.equal(value, note["after"][name])] for note in seen]
    assert [len(names) > 0 for names in moved] == [True, True, False, True, True, True]
    assert seen[2]["gradients"] == 0
    steps = {float(value) for name, value in seen[-1]["after"].items() if name.endswith("/step")}
    assert steps == {5.0}  # the optimizer has made one update less than the run has done
    found, before = lines(run), lines(usual)
    assert [line["lr"] for line in found] == [line["lr"] for line in before]
    assert [line["tokens"] for line in found] == [line["tokens"] for line in before]
    assert [line["loss_next_token"] for line in found[:2]] == [line["loss_next_token"] for line in before[:2]]
    assert ("loss_next_token" in found[2], found[2]["grad_norm"]) == (False, None)
    assert [line["skipped"] for line in found] == [0, 0, 1, 1, 1, 1]
    record = json.loads((run / "run.json").read_text())
    assert (record["status"], record["skipped"]) == ("finished", 1)
    (said,) = record["warnings"]
    assert said.startswith(f"the {what} is not finite at step 3: ")
    assert "the update is skipped (1 so far, 1 in a row)" in said
    assert any(str(sample) in said for sample in seen[2]["samples"])


def test_a_skipped_update_counts_for_nothing_in_the_mean_of_a_record(train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, 3)
    each = lines(train(tmp_path / "each", *SKIP, "objective.packing=true"))
    together = lines(train(tmp_path / "together", "on_nonfinite=skip", "trainer.log_every_steps=3", "objective.packing=true"))
    mean = sum(line["loss_next_token"] for line in each[:2]) / 2  # packed rows have the same number of targets
    assert together[0]["loss_next_token"] == pytest.approx(mean, rel=1e-9)
    assert math.isfinite(together[1]["loss_next_token"])


def test_only_updates_in_a_row_count_for_the_limit_and_one_more_ends_the_run_with_5(train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, 1, 2, 4, 5)
    record = json.loads((train(tmp_path / "apart", "on_nonfinite=skip", "trainer.max_skipped=2") / "run.json").read_text())
    assert (record["skipped"], record["status"]) == (4, "finished")
    with pytest.raises(NonFiniteError, match=r"at step 2: .*1 updates in a row were skipped before it \(trainer\.max_skipped\)") as caught:
        train(tmp_path / "run", "on_nonfinite=skip", "trainer.max_skipped=1")
    assert caught.value.exit_code == 5
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (record["skipped"], record["exit_code"]) == (1, 5)


def test_a_run_that_stops_names_the_samples_of_the_forward_pass_that_gave_no_number(train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        seen = note_updates(patch)
        train(tmp_path / "usual", "trainer.max_steps=4", "trainer.micro_batch_size=2")
    bad = seen[3]["samples"][5]
    spoil(monkeypatch, 4, sample=bad)
    with pytest.raises(NonFiniteError, match="the loss is not finite at step 4: loss nan, gradient norm nan, lr ") as caught:
        train(tmp_path / "run", "trainer.micro_batch_size=2")
    named = json.loads(caught.value.what.rpartition("samples ")[2])
    assert bad in named
    assert len(named) == 2
    assert "last good checkpoint: " in str(caught.value.fix)
    assert "step-00000003" in str(caught.value.fix)
    assert "on_nonfinite=skip" in str(caught.value.fix)
    assert len(caught.value.screen().splitlines()) <= 6


class Scaled:
    """A loss scaler as fp16 has one, on a CPU that has none: it finds what is not finite, and counts what it is asked."""

    def __init__(self, real: torch.amp.GradScaler) -> None:
        self.real = real
        self.scales: list[float] = []
        self.steps = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def step(self, *arguments: Any) -> None:
        self.steps += 1
        self.real.step(*arguments)

    def update(self) -> None:
        self.real.update()
        self.scales.append(float(self.real.get_scale()))


def scaled(monkeypatch: pytest.MonkeyPatch, scale: float) -> Scaled:
    """Let runs have a loss scaler, as Accelerate gives them one under fp16."""
    scaler = Scaled(torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=1000))
    real = trainer.Trainer._prepare

    def prepare(self: trainer.Trainer, phase: Any) -> Any:
        accelerator = self.runtime.accelerator
        call, adamw = real(self, phase)
        accelerator.scaler = adamw.scaler = scaler
        monkeypatch.setattr(accelerator, "unscale_gradients", lambda optimizer=None: scaler.unscale_(self._inner(adamw)))
        adamw._accelerate_step_called = False
        adamw._optimizer_original_step_method = adamw.optimizer.step
        adamw._optimizer_patched_step_method = adamw.optimizer.step
        return call, adamw

    monkeypatch.setattr(trainer.Trainer, "_prepare", prepare)
    return scaler


def test_with_a_scaler_an_infinite_gradient_is_its_own_to_skip_and_a_loss_that_is_none_is_ours(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As under fp16, which no CPU trains in. The scaler halves its scale at both, and goes on."""
    scaler = scaled(monkeypatch, 1024.0)
    spoil(monkeypatch, 2, what="gradient")
    spoil(monkeypatch, 4, what="loss")
    seen = note_updates(monkeypatch, state=True)
    run = train(tmp_path / "run", *SKIP)
    still = [all(torch.equal(value, note["after"][name]) for name, value in note["before"].items()) for note in seen]
    assert still == [False, True, False, True, False, False]
    assert scaler.scales == [1024.0, 512.0, 512.0, 256.0, 256.0, 256.0]
    assert scaler.steps == still.count(False)
    assert json.loads((run / "run.json").read_text())["skipped"] == 1
    assert [line["skipped"] for line in lines(run)] == [0, 0, 0, 1, 1, 1]


def test_a_gradient_that_no_scale_makes_finite_ends_the_run_instead_of_being_skipped_for_ever(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scaler = scaled(monkeypatch, 2.0)
    spoil(monkeypatch, *range(2, 7), what="gradient")
    with pytest.raises(NonFiniteError, match="the gradient is not finite at step 4"):
        train(tmp_path / "run", "trainer.log_every_steps=1")
    assert scaler.scales == [2.0, 1.0, 0.5]


@pytest.mark.parametrize("step", [1, 3])
def test_with_a_scaler_an_update_without_a_target_moves_nothing_and_the_run_goes_on(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    scaled(monkeypatch, 1024.0)
    real = trainer.Trainer._update

    def update(self: trainer.Trainer, batches: list[Batch]) -> Any:
        if self.state.step + 1 == step:
            for batch in batches:
                batch.labels["next_token"].fill_(IGNORED)
                batch.counts["next_token"] = 0
        return real(self, batches)

    monkeypatch.setattr(trainer.Trainer, "_update", update)
    seen = note_updates(monkeypatch, state=True)
    train(tmp_path / "run")
    still = [all(torch.equal(value, note["after"][name]) for name, value in note["before"].items()) for note in seen]
    assert still == [number == step for number in range(1, 7)]


def test_the_device_is_waited_for_once_in_an_update_and_not_after_each_micro_batch(train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    forward = Learner.forward

    class Watched(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if function is torch.ops.aten._local_scalar_dense.default and args[0].is_floating_point():
                said.append("read")
            return function(*args, **(kwargs or {}))

    def noted(self: Learner, batch: Batch) -> Any:
        if torch.is_grad_enabled():
            said.append("forward")
        return forward(self, batch)

    monkeypatch.setattr(Learner, "forward", noted)
    real = trainer.Trainer._update

    def update(self: trainer.Trainer, batches: Any) -> Any:
        with Watched():
            return real(self, batches)

    monkeypatch.setattr(trainer.Trainer, "_update", update)
    train(tmp_path / "run", "trainer.micro_batch_size=2", "trainer.max_steps=1")
    first = said.index("read")
    assert first > 1
    assert "forward" not in said[first:]


# --- several processes --------------------------------------------------------------------------------------------

ELSEWHERE = """
import json, math, os, signal, sys
from llmtrain import trainer
from llmtrain.cli import main

rank, real = os.environ["RANK"], trainer.Trainer._update

def update(self, batches):
    with open(f"updates-{rank}.jsonl", "a") as file:
        print(json.dumps({"step": self.state.step + 1, "samples": [s for b in batches for s in b.samples if b.real]}), file=file)
    hook = None
    if rank == "1" and self.state.step + 1 == int(os.environ["SPOILT"]):  # on this process alone
        learner = self.runtime.accelerator.unwrap_model(self._call)
        hook = learner.register_forward_hook(lambda module, inputs, output: {t: v * math.nan for t, v in output.items()})
    done = real(self, batches)
    if hook is not None:
        hook.remove()
    if rank == "1" and self.state.step == int(os.environ["STOP"]):
        os.kill(os.getpid(), signal.SIGTERM)
    return done

trainer.Trainer._update = update
sys.exit(main(sys.argv[1:]))
"""


def on_two(folder: Path, *overrides: str, cwd: Path, stop: int = 0, spoilt: int = 0) -> subprocess.CompletedProcess[str]:
    """A tiny run on two processes, of which the second is signalled after an update, or finds no number in one."""
    (cwd / "elsewhere.py").write_text(ELSEWHERE)
    command = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", "elsewhere.py", "pretrain"]
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd()), "STOP": str(stop), "SPOILT": str(spoilt), "LLMTRAIN_ALLOCATOR": "system"}
    typed = [*tiny(*overrides), f"output_dir={folder}"]
    return subprocess.run([*command, *typed], capture_output=True, text=True, timeout=300, cwd=cwd, env=environment, check=False)


def stop_after(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """As a signal would."""
    real = Progress.on_step

    def on_step(self: Progress, run: Any, state: Any, done: Any) -> None:
        real(self, run, state, done)
        if state.step == step:
            run.runtime.signalled.set()

    monkeypatch.setattr(Progress, "on_step", on_step)


@pytest.mark.long
@pytest.mark.parametrize("first", [1, 2])
def test_e17_r10_on_another_number_of_processes_the_same_samples_give_the_same_losses_and_all_processes_skip_together(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], first: int
) -> None:
    asked = (*SKIP, "objective.packing=false")
    with monkeypatch.context() as patch:
        spoil(patch, 5)
        seen = note_updates(patch)
        unbroken = train(tmp_path / "unbroken", *asked)
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        spoil(patch, 5)
        alone = note_updates(patch)
        if first == 1:
            stop_after(patch, 3)
            with pytest.raises(Stopped):
                train(run, *asked)
            done = on_two(run, *asked, cwd=tmp_path, spoilt=5)
            assert done.returncode == 0, done.stderr
            said = done.stdout
        else:
            done = on_two(run, *asked, cwd=tmp_path, stop=3)
            assert "stopped by a signal after step 3" in done.stderr
            capfd.readouterr()
            train(run, *asked, "devices=1")
            said = capfd.readouterr().out
    each = [json.loads(line) for path in sorted(tmp_path.glob("updates-*.jsonl")) for line in path.read_text().splitlines()]
    assert len(each) == 6  # three updates of two processes
    both = {n: sorted(s for part in each if part["step"] == n for s in part["samples"]) for n in {part["step"] for part in each}}
    assert {**{note["step"]: note["samples"] for note in alone}, **both} == {note["step"]: note["samples"] for note in seen}
    assert said.count("not bitwise from step 3 on: ") == 1
    assert f"devices was {first} and is {3 - first}" in said
    expected, found = lines(unbroken), lines(run)
    assert [line["skipped"] for line in found] == [line["skipped"] for line in expected] == [0, 0, 0, 0, 1, 1]
    for a, b in zip(expected, found, strict=True):
        assert b.get("loss_next_token") == (None if a["step"] == 5 else pytest.approx(a["loss_next_token"], rel=1e-6))
        assert b["lr"] == a["lr"]


def test_e17_a_batch_that_the_new_number_of_processes_does_not_divide_is_refused_with_2(train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(Stopped):
            train(tmp_path / "run")
    with pytest.raises(ConfigError, match="not a multiple of 3 processes") as caught:
        train(tmp_path / "run", "devices=3")
    assert (caught.value.exit_code, caught.value.allowed) == (2, "trainer.batch_size=6 or trainer.batch_size=12")


# --- sudden rises -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("usual", [3.0, 0.02])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_rise_that_lasts_is_found_at_its_third_update_and_held_against_what_was_usual(usual: float, seed: int) -> None:
    noisy = usual * np.exp(0.03 * np.random.default_rng(seed).standard_normal(103))
    losses = [*noisy[:100], *(3 * noisy[100:])]
    assert trainer.usual_before(losses) == pytest.approx(usual, rel=0.03)
    assert trainer.usual_before(losses[:-1]) is None


ORDINARY = {
    "noise": lambda draw: 3 + 0.3 * draw.standard_normal(3000),
    "of a task nearly learned": lambda draw: np.exp(2 * draw.standard_normal(3000)),
    "of small batches": lambda draw: draw.exponential(size=3000),
    "of squared errors": lambda draw: draw.standard_normal(3000) ** 2,
    "of a few hard examples": lambda draw: np.where(draw.random(3000) < 0.02, 1.0, 0.01 * np.exp(0.3 * draw.standard_normal(3000))),
    "exactly 0 but for a few": lambda draw: np.where(draw.random(3000) < 0.02, 1.0, 0.0),
    "that falls": lambda draw: 3 + 7 * np.exp(-np.arange(3000) / 50) + 0.1 * draw.standard_normal(3000),
    "that climbs slowly": lambda draw: 3 + np.arange(3000) / 3000 + 0.1 * draw.standard_normal(3000),
    "that becomes 0": lambda draw: np.maximum(0.0, 1 - np.arange(3000) / 1000),
}


@pytest.mark.parametrize("kind", ORDINARY)
def test_an_ordinary_course_of_losses_raises_no_alarm_from_its_first_step_on(kind: str) -> None:
    losses = ORDINARY[kind](np.random.default_rng(0)).tolist()
    assert [i for i in range(1, len(losses)) if trainer.usual_before(losses[max(0, i - 103) : i]) is not None] == []


@pytest.mark.parametrize("count", [1, 2, 22])
def test_before_there_are_enough_losses_nothing_is_a_rise(count: int) -> None:
    assert trainer.usual_before([1.0] * (count - 3) + [9.0] * 3) is None
    assert trainer.usual_before([9.0] * count) is None


RISING = ("trainer.max_steps=40", "trainer.log_every_steps=40", "evaluation.every_steps=null", "checkpoint.every_steps=null", "schedule=constant")


def rise(monkeypatch: pytest.MonkeyPatch) -> None:
    """From update 29 on the loss is five times what it was."""
    real = trainer.Trainer._update

    def update(self: trainer.Trainer, batches: Any) -> Any:
        if self.state.step < 28:
            return real(self, batches)
        hook = self._call.register_forward_hook(lambda module, inputs, output: {t: v * 5 for t, v in output.items()})  # type: ignore[attr-defined]
        try:
            return real(self, batches)
        finally:
            hook.remove()

    monkeypatch.setattr(trainer.Trainer, "_update", update)


def warned(run: Path) -> list[str]:
    found: list[str] = json.loads((run / "run.json").read_text())["warnings"]
    return found


def test_a_rise_of_the_loss_is_said_once_and_looking_for_it_changes_no_bit(train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rise(monkeypatch)
    run, quiet = train(tmp_path / "run", *RISING), train(tmp_path / "quiet", *RISING, "trainer.spike_window=null")
    (said,) = warned(run)
    assert said.startswith("loss ")
    assert " at step 31 is " in said
    assert "(window: the median of 28 updates; the last 3 all stand out)" in said
    assert warned(quiet) == []
    assert outcome(run) == outcome(quiet)


@pytest.mark.long
@pytest.mark.parametrize(("stop", "told"), [(29, "after"), (33, "before")])
def test_a_rise_is_said_once_also_where_the_run_was_stopped_in_the_middle_of_it(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int, told: str
) -> None:
    rise(monkeypatch)
    with monkeypatch.context() as patch:
        stop_after(patch, stop)
        with pytest.raises(Stopped):
            train(tmp_path / "run", *RISING)
    found = {"before": warned(tmp_path / "run"), "after": warned(train(tmp_path / "run", *RISING))}
    assert [" at step 31 is " in said for said in found.pop(told)] == [True]
    assert list(found.values()) == [[]]


@pytest.mark.parametrize("change", [{"max_skipped": 0}, {"spike_window": 19}])
def test_limits_that_mean_nothing_are_refused(change: dict[str, int]) -> None:
    with pytest.raises(SettingError):
        dataclasses.replace(SETTINGS, **change)


def test_predictions_are_kept_from_where_there_is_no_float64() -> None:
    totals = Totals()
    trainer.add(totals, Batch({}, {}, {}, {}, [7]), {PREDICTIONS: without_float64(torch.tensor([[1.0, 0.5]]))})
    assert totals.predictions[7].tolist() == [1.0, 0.5]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("precision", ["auto", "fp16"])
def test_a_run_on_a_gpu_learns(train: Train, tmp_path: Path, precision: str) -> None:
    run = train(tmp_path / "run", "device=cuda", f"precision={precision}", "trainer.max_steps=30")
    losses = records(run, "loss_next_token")
    assert losses[-1] < losses[0]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("objective", ANSWERS)
def test_a_gpu_gives_the_losses_of_a_cpu_and_exports_what_it_trained(train: Train, tmp_path: Path, objective: str) -> None:
    asked = (*UNEQUAL[objective], "trainer.micro_batch_size=2")
    runs = [train(tmp_path / device, *asked, f"device={device}") for device in ("cpu", "cuda")]
    on_cpu, on_gpu = (records(run, *LOSSES[objective]) for run in runs)
    assert len(on_gpu) == 6
    for a, b in zip(on_cpu, on_gpu, strict=True):
        assert b == pytest.approx(a, rel=1e-3)
    assert (runs[1] / "final" / "config.json").is_file()


# --- legs ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rows", "total"), [(10, 9), (10, 10), (7, 23), (4, 3)])
def test_no_sample_is_drawn_twice_for_one_epoch_in_whatever_phase(rows: int, total: int) -> None:
    """What is drawn from the epoch and the sample, masks and pairs, would else be the same in every phase that begins on the same examples."""
    order = Order(np.arange(rows), batch_size=2, seed=0)
    phases = [Phase(until=until, trainable=frozenset()) for until in (0.3, 0.7, 1.0)]
    drawn, begin = [], 0
    for leg in trainer.legs(phases, [Stage(1.0, Dataset.from_dict({}), order)], total):
        for (epoch, batch), _ in zip(leg.stage.order.updates(), range(leg.last - begin), strict=False):
            drawn += [(epoch, int(sample)) for sample in batch]
        begin = leg.last
    assert begin == total
    assert len(set(drawn)) == len(drawn)


def test_a_run_of_one_phase_counts_its_epochs_from_0() -> None:
    (leg,) = trainer.legs([Phase(until=1.0, trainable=frozenset())], [Stage(1.0, Dataset.from_dict({}), Order(np.arange(4), batch_size=2, seed=0))], 6)
    assert [epoch for (epoch, _), _ in zip(leg.stage.order.updates(1), range(4), strict=False)] == [0, 1, 1, 2]
