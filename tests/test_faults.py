"""The catalogue of faults (faults.yaml): each row has tests that exist; and those tests that no other file holds."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import yaml

from llmtrain import cli, trainer
from llmtrain.errors import CheckpointError, ConfigError, DeviceError, NonFiniteError
from llmtrain.objective.base import IGNORED, Batch
from llmtrain.objective.classification import Classification
from tests.conftest import TINY_FINETUNE, Pretrained, Train, tiny
from tests.table import missing

CATALOGUE = yaml.safe_load((Path(__file__).parent / "faults.yaml").read_text(encoding="utf-8"))

# The numbers of each section. A row that is added or dropped is added or dropped here too, on purpose.
ROWS = {
    "A": (1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 14, 15, 16, 17, 19, 21, 22, 23, 24, 25, 26, 29, 30, 31, 32, 34, 35),
    "B": (1, 2, 3, 4, 7, 8, 9, 10, 12, 13, 15, 16, 18, 19, 21, 22, 23, 24, 26, 28, 30, 31, 32),
    "C": (1, 2, 3, 4, 6, 7, 8, 11, 12, 13, 15, 16, 18, 19, 20),
    "D": (1, 2, 4, 5, 6, 7, 9, 11, 13, 14, 15, 16),
    "E": (1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 13, 14, 15, 16, 17, 18, 19, 20, 21, 23, 24, 26),
    "F": (1, 2, 3, 4, 6, 7, 8, 9),
    "G": (2, 3, 5, 7, 9, 10, 11),
    "H": (1, 3, 5, 7, 8, 9, 10, 12, 14, 16, 17, 18, 19),
    "I": (1, 2, 5, 7, 8, 9),
    "R": tuple(range(1, 19)),
}


def test_every_fault_of_the_catalogue_says_what_happens_and_has_tests_that_exist() -> None:
    rows = {f"{section}{number}" if section == "R" else f"{section}{number:02d}" for section, numbers in ROWS.items() for number in numbers}
    assert CATALOGUE.keys() == rows
    assert len(rows) == 152
    assert [row for row, of in CATALOGUE.items() if of.keys() != {"fault", "answer", "tests"} or not all(of.values())] == []
    assert missing({row: tuple(of["tests"]) for row, of in CATALOGUE.items()}) == []


# --- C: tokenizer and model ---------------------------------------------------------------------------------------


def base_of(run: Path, folder: Path) -> Path:
    """The weights of a run as another project might have saved them: without a manifest."""
    shutil.copytree(run / "final", folder)
    (folder / "manifest.json").unlink()
    return folder


def without(folder: Path, *tokens: str) -> None:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({key: value for key, value in json.loads(path.read_text()).items() if key not in tokens}))


@pytest.mark.parametrize(
    ("objective", "lacking", "said"),
    [
        ("masked_lm", ("mask_token",), "[MASK]"),
        ("sentence_order", ("cls_token", "sep_token"), "[CLS]"),
        ("classification", ("cls_token", "sep_token"), "[CLS]"),
    ],
)
def test_c03_c04_a_tokenizer_without_a_token_that_the_objective_needs_is_refused(
    finetune: Train, pretrained: Pretrained, tmp_path: Path, objective: str, lacking: tuple[str, ...], said: str
) -> None:
    base = base_of(pretrained("bert"), tmp_path / "base")
    without(base, *lacking)
    with pytest.raises(ConfigError) as caught:
        finetune(tmp_path / "run", f"objective={objective}", "data.words=200", f"model.checkpoint={base}")
    assert said in caught.value.what or "start" in caught.value.what
    assert "tokenizer.path" in str(caught.value.fix)
    assert len(caught.value.screen().splitlines()) <= 6


def test_c08_weights_of_another_architecture_are_refused_with_how_many_tensors_are_missing(finetune: Train, pretrained: Pretrained, tmp_path: Path) -> None:
    base = base_of(pretrained("bert"), tmp_path / "base")
    shutil.copy(pretrained("gpt") / "final" / "model.safetensors", base / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"\d+ of \d+ tensors of BertModel are missing") as caught:
        finetune(tmp_path / "run", f"model.checkpoint={base}")
    assert caught.value.exit_code == 4


def test_c12_a_pickle_is_refused_and_never_opened(finetune: Train, pretrained: Pretrained, tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.system, (f"touch {tmp_path / 'ran'}",)

    base = base_of(pretrained("bert"), tmp_path / "base")
    (base / "model.safetensors").unlink()
    torch.save({"bert": Payload()}, base / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"only pytorch_model\.bin, which could run code"):
        finetune(tmp_path / "run", f"model.checkpoint={base}")
    assert not (tmp_path / "ran").exists()


def test_c13_a_base_in_half_precision_is_finetuned_in_fp32_and_that_is_said(finetune: Train, pretrained: Pretrained, tmp_path: Path) -> None:
    base = base_of(pretrained("bert"), tmp_path / "base")
    half = {name: tensor.bfloat16() for name, tensor in safetensors.torch.load((base / "model.safetensors").read_bytes()).items()}
    (base / "model.safetensors").write_bytes(safetensors.torch.save(half, {"format": "pt"}))
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16"}))
    run = finetune(tmp_path / "run", "finetune=last_layers", "finetune.blocks=1", f"model.checkpoint={base}", "trainer.max_steps=2")
    assert "the weights are stored in bfloat16 and loaded as fp32" in (run / "train.log").read_text()
    final = safetensors.torch.load((run / "final" / "model.safetensors").read_bytes())
    assert {tensor.dtype for tensor in final.values()} == {torch.float32}
    assert json.loads((run / "run.json").read_text())["freezing"]["frozen_but_moved"] == []


def test_c16_a_model_larger_than_memory_is_refused_before_it_is_loaded(finetune: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmtrain.estimate.available_bytes", lambda device: 1000)
    monkeypatch.setattr("llmtrain.model.checkpoint.Checkpoint.load", lambda *_, **__: pytest.fail("the weights were loaded"))
    with pytest.raises(DeviceError, match="GiB are free on cpu"):
        finetune(tmp_path / "run")


# --- B and D: data and numerics -----------------------------------------------------------------------------------


def test_b19_fewer_labelled_rows_than_a_batch_are_refused_with_the_numbers(finetune: Train, tmp_path: Path) -> None:
    from llmtrain.errors import DataError

    with pytest.raises(DataError, match=r"55 sequences of up to 24 tokens, one update takes trainer\.batch_size=64"):
        finetune(tmp_path / "run", "trainer.batch_size=64")


def test_d01_a_loss_that_is_not_finite_stops_before_the_update_and_leaves_finite_weights(finetune: Train, tmp_path: Path) -> None:
    spoilt = ("optimizer.lr=1e20", "trainer.clip_norm=null", "schedule=constant", "schedule.warmup_steps=0", "checkpoint.every_steps=1", "trainer.max_steps=20")
    with pytest.raises(NonFiniteError, match="not finite at step") as caught:
        finetune(tmp_path / "run", "finetune=full", *spoilt)
    assert caught.value.exit_code == 5
    assert "last good checkpoint" in str(caught.value.fix)
    newest = max((tmp_path / "run" / "checkpoints").glob("step-*"))
    assert str(newest) in str(caught.value.fix)
    assert all(t.isfinite().all() for t in safetensors.torch.load((newest / "model.safetensors").read_bytes()).values())
    assert not (tmp_path / "run" / "final").exists()


SPOIL_ONE = """
import os, sys
from llmtrain import trainer
from llmtrain.cli import main

real = trainer.Trainer._update

def update(self, batches):
    if os.environ["RANK"] == "1" and self.state.step == 2:
        for parameter in self._trained:
            parameter.data.fill_(float("nan"))
    return real(self, batches)

trainer.Trainer._update = update
code = main(sys.argv[1:])
print(f"rank {os.environ['RANK']} left with {code}", flush=True)
"""


def test_d02_a_number_that_is_none_on_one_process_stops_all_at_the_same_step(pretrained: Pretrained, tmp_path: Path) -> None:
    (tmp_path / "spoil.py").write_text(SPOIL_ONE)
    typed = [*tiny("finetune=features", "cache.use=never", base=TINY_FINETUNE), f"model.checkpoint={pretrained('bert')}", f"output_dir={tmp_path / 'run'}"]
    command = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=0", "--standalone", "spoil.py", "finetune"]
    done = subprocess.run(
        [*command, *typed], capture_output=True, text=True, timeout=300, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(Path.cwd())}, check=False
    )
    assert "rank 0 left with 5" in done.stdout, done.stderr
    assert "rank 1 left with 5" in done.stdout
    assert done.stderr.count("error: the loss is not finite at step 3") == 1
    assert json.loads((tmp_path / "run" / "run.json").read_text())["exit_code"] == 5


@pytest.mark.parametrize("mode", [("finetune=features",), ("finetune=full",)])
def test_d04_a_batch_without_a_target_adds_nothing_and_moves_nothing(
    finetune: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: tuple[str, ...]
) -> None:
    real_collate, real_update = Classification.collate, trainer.Trainer._update
    seen: list[tuple[dict[str, float], bool]] = []

    def collate(self: Classification, examples: Any, draw: Any, vocabulary: Any) -> Batch:
        batch = real_collate(self, examples, draw, vocabulary)
        if draw.epoch != "eval" and len(seen) == 0:
            batch.labels["class"].fill_(IGNORED)
            batch.counts["class"] = 0
        return batch

    def update(self: trainer.Trainer, batches: list[Batch]) -> Any:
        before = [p.detach().clone() for p in self.saved.parameters()]
        step = real_update(self, batches)
        seen.append((dict(step.losses), all(torch.equal(a, b) for a, b in zip(before, self.saved.parameters(), strict=True))))
        return step

    monkeypatch.setattr(Classification, "collate", collate)
    monkeypatch.setattr(trainer.Trainer, "_update", update)
    finetune(tmp_path / "run", *mode, "trainer.max_steps=3", "schedule.warmup_steps=0")
    (losses, still), *others = seen
    assert (losses["class"], still) == (0.0, True)
    assert all(math.isfinite(found["class"]) and found["class"] > 0 and not unmoved for found, unmoved in others)


def test_d05_d15_micro_batches_give_the_update_of_the_whole_batch_also_at_the_short_end_of_an_epoch(finetune: Train, tmp_path: Path) -> None:
    asked = ("finetune=full", "trainer.max_epochs=1", "trainer.log_every_steps=1", "schedule=constant")
    runs = {micro: finetune(tmp_path / str(micro), *asked, f"trainer.micro_batch_size={micro}") for micro in (8, 2)}
    lines = {micro: [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for micro, run in runs.items()}
    whole, cut = ([(line["loss_class"], line["grad_norm"]) for line in found if "grad_norm" in line] for found in lines.values())
    rows = 55
    assert rows % 8
    assert len(whole) == len(cut) == -(-rows // 8)
    for a, b in zip(whole, cut, strict=True):
        assert b == pytest.approx(a, rel=1e-5)


@pytest.mark.parametrize("objective", ["masked_lm", "classification"])
def test_d09_two_evaluations_of_the_same_weights_give_the_same_number(finetune: Train, tmp_path: Path, objective: str) -> None:
    asked = (f"objective={objective}", "optimizer.lr=1e-30", "optimizer.weight_decay=0", "evaluation.every_steps=1", "trainer.max_steps=3")
    run = finetune(tmp_path / "run", "finetune=full", *asked, of="bert_dropout")
    found = [line["validation_loss"] for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()) if "validation_loss" in line]
    assert len(found) == 3
    assert len(set(found)) == 1


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        RuntimeError("MPS backend out of memory (MPS allocated: 17.9 GB, max allowed: 18.1 GB)."),
        torch.AcceleratorError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        MemoryError(),
    ],
)
def test_d14_a_lack_of_memory_is_one_screen_with_what_to_change(finetune: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def update(self: trainer.Trainer, batches: list[Batch]) -> Any:
        raise error

    monkeypatch.setattr(trainer.Trainer, "_update", update)
    with pytest.raises(DeviceError) as caught:
        finetune(tmp_path / "run", "finetune=full")
    assert caught.value.exit_code == 6
    fix = str(caught.value.fix)
    assert all(remedy in fix for remedy in ("trainer.micro_batch_size=4", "trainer.gradient_checkpointing=true", "data.max_length"))
    assert "the updates stay those of 8 sequences" in fix


def test_d14_another_fault_is_not_taken_for_a_lack_of_memory(finetune: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def update(self: trainer.Trainer, batches: list[Batch]) -> Any:
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(trainer.Trainer, "_update", update)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        finetune(tmp_path / "run", "finetune=full")


def test_h10_a_secret_of_the_environment_is_in_no_file_of_a_run(finetune: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "a-very-secret-key")
    run = finetune(tmp_path / "run", "callback.tracker.project=${oc.env:WANDB_API_KEY}", "trainer.max_steps=1")
    assert "***" in (run / "resolved.yaml").read_text()
    assert in_files(run) == []


def in_files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and b"a-very-secret-key" in path.read_bytes()]


def test_h10_a_secret_that_the_shell_put_in_is_in_no_file_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "a-very-secret-key")
    run = tmp_path / "run"
    command = ["pretrain", *tiny("trainer.max_steps=2"), "callback.tracker.project=a-very-secret-key", f"output_dir={run}"]
    monkeypatch.setattr(sys, "argv", ["llmtrain", *command])
    assert cli.main(command) == 0
    assert "project: ${oc.env:WANDB_API_KEY}" in (run / "config.yaml").read_text()
    assert "callback.tracker.project=***" in (run / "overrides.txt").read_text()
    assert "callback.tracker.project=***" in json.loads((run / "run.json").read_text())["command"]
    assert cli.main([word.replace("max_steps=2", "max_steps=3") for word in command] + ["resume=must"]) == 0
    assert json.loads((run / "run.json").read_text())["steps"] == 3
    assert in_files(run) == []
    assert "a-very-secret-key" not in "".join(capfd.readouterr())


def test_h10_a_run_that_fails_over_a_secret_does_not_show_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "a-very-secret-key")
    asked = [o for o in tiny() if not o.startswith("data=")]
    assert cli.main(["pretrain", *asked, "data=text", "data.train=${oc.env:WANDB_API_KEY}", f"output_dir={tmp_path / 'run'}"]) == 3
    assert "***" in json.loads((tmp_path / "run" / "run.json").read_text())["error"]
    assert in_files(tmp_path) == []
    assert "a-very-secret-key" not in "".join(capfd.readouterr())


def test_h10_weights_whose_path_holds_a_secret_are_found_again(
    finetune: Train, pretrained: Pretrained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "a-very-secret-key")
    base = base_of(pretrained("bert"), tmp_path / "a-very-secret-key")
    run = finetune(tmp_path / "run", f"model.checkpoint={base}", "trainer.max_steps=1")
    assert "${oc.env:WANDB_API_KEY}" in yaml.safe_load((run / "config.yaml").read_text())["model"]["checkpoint"]
    assert finetune(run, "model.checkpoint=newest", "trainer.max_steps=2") == run
    assert "a-very-secret-key" not in capsys.readouterr().out
    monkeypatch.delenv("WANDB_API_KEY")
    with pytest.raises(ConfigError, match="WANDB_API_KEY"):
        finetune(run, "model.checkpoint=newest", "trainer.max_steps=3")
