"""Finetuning as a whole: what is frozen stays, what is trained moves, what is stopped goes on, and what cannot work is refused with a way out."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import yaml
from datasets import Dataset
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer, DistilBertConfig, OPTConfig, OPTForCausalLM

from llmtrain import trainer
from llmtrain.cli import main
from llmtrain.command import train as recipe
from llmtrain.command.parts import Parts, parts
from llmtrain.config import compose, shipped_dir
from llmtrain.data import synthetic
from llmtrain.data.base import Target
from llmtrain.errors import CheckpointError, ConfigError, Stopped
from llmtrain.model.base import HeadKind, Outputs, from_nothing
from llmtrain.objective.base import Batch
from llmtrain.seeding import generator
from tests.conftest import TINY_FINETUNE, Pretrained, Train, outcome, record_of, stop_after, tiny

# Each mode as it is asked for here, and the sections of the model that it trains.
MODES: dict[str, tuple[tuple[str, ...], set[str]]] = {
    "features": ((), {"head"}),
    "last_layers": (("finetune.blocks=1",), {"block.1", "head"}),
    "layers": (("finetune.address=first:1",), {"block.0", "head"}),
    "full": ((), {"embeddings", "block.0", "block.1", "head"}),
    "gradual": ((), {"embeddings", "block.0", "block.1", "head"}),
    "lp_ft": ((), {"embeddings", "block.0", "block.1", "head"}),
    "lora": ((), {"block.0", "block.1", "head"}),
}
DROPOUT = "bert_dropout"
STEADY = "schedule=constant"


def asked(mode: str) -> tuple[str, ...]:
    return (f"finetune={mode}", *MODES[mode][0])


def proof(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "run.json").read_text())
    return found


def weights(path: Path) -> dict[str, Tensor]:
    return safetensors.torch.load((path / "model.safetensors").read_bytes())


def records(run: Path, *names: str) -> list[list[float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [[line[name] for name in names] for line in lines if set(names) <= line.keys()]


@pytest.fixture(scope="module")
def run_of(pretrained: Pretrained, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """An unbroken run of a mode on the BERT with dropout, made when it is first asked for."""
    folder = tmp_path_factory.mktemp("modes")

    def run(mode: str) -> Path:
        if not (folder / mode).exists():
            typed = [*tiny(*asked(mode), base=TINY_FINETUNE), f"model.checkpoint={pretrained(DROPOUT)}", f"output_dir={folder / mode}"]
            assert main(["finetune", *typed]) == 0
        return folder / mode

    return run


# --- frozen and trained -------------------------------------------------------------------------------------------


def test_every_mode_is_looked_at() -> None:
    from llmtrain.config import groups

    assert set(MODES) == set(groups()["finetune"])


@pytest.mark.parametrize("mode", MODES)
def test_the_run_proves_that_what_is_frozen_kept_its_bits_and_what_is_trained_moved(run_of: Callable[[str], Path], mode: str) -> None:
    found = proof(run_of(mode))["freezing"]
    assert found["frozen_unchanged"] == found["frozen"]
    assert found["trainable_moved"] == found["trainable"] > 0
    assert (found["frozen_but_moved"], found["trainable_but_still"]) == ([], [])
    assert {name for name, section in found["sections"].items() if section["trainable"]} == MODES[mode][1]


@pytest.mark.parametrize("mode", MODES)
def test_what_the_proof_says_is_what_stands_in_the_files(run_of: Callable[[str], Path], pretrained: Pretrained, mode: str) -> None:
    before, after = weights(pretrained(DROPOUT) / "final"), weights(run_of(mode) / "final")
    of = {"block.0": "encoder.layer.0.", "block.1": "encoder.layer.1.", "embeddings": "embeddings."}
    moved = {section for section, prefix in of.items() for n, t in after.items() if n.startswith(prefix) and not torch.equal(t, before[f"bert.{n}"])}
    assert len(after) == 37
    assert moved == MODES[mode][1] - {"head"}


@pytest.mark.parametrize("name", ["embeddings.word_embeddings.weight", "encoder.layer.0.output.dense.bias"])
def test_a_frozen_tensor_that_moves_all_the_same_ends_the_run_without_final(
    pretrained: Pretrained, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    real = trainer.Trainer._update

    def update(self: trainer.Trainer, batches: list[Batch]) -> Any:
        self.saved.get_parameter(name).data.view(-1)[0] += 1
        return real(self, batches)

    monkeypatch.setattr(trainer.Trainer, "_update", update)
    typed = [*tiny(*asked("last_layers"), "trainer.max_steps=1", base=TINY_FINETUNE), f"model.checkpoint={pretrained('bert')}"]
    run = tmp_path / "run"
    assert main(["finetune", *typed, f"output_dir={run}"]) == 1
    assert f"1 frozen tensors moved: {name}" in capsys.readouterr().err
    found = proof(run)
    assert (found["status"], found["exit_code"]) == ("failed", 1)
    assert found["freezing"]["frozen_but_moved"] == [name]
    assert found["freezing"]["frozen_unchanged"] == found["freezing"]["frozen"] - 1
    assert not (run / "final").exists()


def test_the_proof_is_of_the_weights_that_are_exported(finetune: Train, pretrained: Pretrained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The best ones may be of a phase in which what the next one trains was frozen."""
    monkeypatch.setattr(trainer.Trainer, "_better", lambda self, value: self.state.best is None)  # the first evaluation, in the head's phase
    phases = ("finetune=lp_ft", "finetune.head_share=0.5", "trainer.max_steps=4", "evaluation.every_steps=2")
    best, last = (finetune(tmp_path / name, *phases, f"checkpoint.export={name}") for name in ("best", "last"))
    found = {run.name: proof(run)["freezing"] for run in (best, last)}
    base = safetensors.torch.load_file(pretrained("bert") / "final" / "model.safetensors")
    for run in (best, last):
        final = safetensors.torch.load_file(run / "final" / "model.safetensors")
        same = sum(torch.equal(tensor, base[f"bert.{name}"]) for name, tensor in final.items())
        assert same == found[run.name]["frozen_unchanged"] == found[run.name]["frozen"]
    assert (found["best"]["trainable"], found["best"]["trainable_moved"]) == (2, 2)
    assert found["best"]["frozen"] > found["last"]["frozen"] == 0


def test_a_trainable_tensor_that_does_not_move_is_reported(finetune: Train, tmp_path: Path) -> None:
    found = proof(finetune(tmp_path / "run", *asked("features"), "optimizer.lr=1e-30", "trainer.max_steps=1"))
    assert "pooled.weight" in found["freezing"]["trainable_but_still"]
    assert any("did not move" in line for line in found["warnings"])


@pytest.mark.parametrize("mode", ["features", "last_layers"])
def test_the_bias_of_choices_which_changes_no_answer_is_not_trained(finetune: Train, tmp_path: Path, mode: str) -> None:
    run = finetune(tmp_path / "run", *asked(mode), "objective=multiple_choice", "trainer.max_steps=2", of="gpt")
    found = proof(run)["freezing"]
    assert found["trainable_but_still"] == []
    assert found["frozen_unchanged"] == found["frozen"]
    assert "did not move" not in (run / "train.log").read_text()
    moments = safetensors.torch.load((run / "checkpoints" / "last" / "optimizer.safetensors").read_bytes())
    assert {name.rpartition("/")[0] for name in moments if name.startswith("pooled.")} == {"pooled.weight"}


@pytest.mark.parametrize(("mode", "use"), [*((mode, "never") for mode in MODES), ("features", "always"), ("last_layers", "always")])
def test_at_every_step_frozen_modules_are_in_eval_and_only_what_is_trained_is_in_the_optimizer(
    finetune: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, use: str
) -> None:
    real = trainer.Trainer._update
    steps: list[int] = []
    awake: set[str] = set()

    def update(self: trainer.Trainer, batches: list[Batch]) -> Any:
        moving = self.legs[self.state.phase].phase.trainable
        for name, module in self.model.named_modules():
            own = list(module.parameters())
            if own and not any(p.requires_grad for p in own):
                assert not module.training, name
                assert not any(child.training for child in module.modules()), f"something in {name}"
            if own and all(p.requires_grad for p in own):
                assert module.training, name
            awake.update(type(m).__name__ for m in module.modules() if m.training and "Dropout" in type(m).__name__)
        optimizer = self._inner(self._adamw)
        names = {id(p): n for n, p in self.saved.named_parameters()}
        assert {names[id(p)] for group in optimizer.param_groups for p in group["params"]} == moving
        assert {n for n, p in self.saved.named_parameters() if p.requires_grad} == moving
        done = real(self, batches)
        assert all(p.grad is None for n, p in self.saved.named_parameters() if n not in moving)
        steps.append(self.state.step)
        return done

    monkeypatch.setattr(trainer.Trainer, "_update", update)
    finetune(tmp_path / "run", *asked(mode), f"cache.use={use}", "trainer.max_steps=4", "evaluation.every_steps=1", of=DROPOUT)
    assert steps == [1, 2, 3, 4]
    assert bool(awake) is (mode != "features")  # dropout works where something is trained, and nowhere else


@pytest.mark.parametrize(("mode", "pooling"), [("features", "mean"), ("last_layers", "mean")])
def test_resolved_names_what_auto_stood_for(run_of: Callable[[str], Path], mode: str, pooling: str) -> None:
    text = (run_of(mode) / "resolved.yaml").read_text()
    assert "auto" not in text.replace("resume: auto", "")
    assert yaml.safe_load(text)["model"]["pooling"] == pooling


# --- checkpoints and final/ ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_a_checkpoint_holds_what_differs_from_the_base_and_points_to_it(run_of: Callable[[str], Path], pretrained: Pretrained, mode: str) -> None:
    run = run_of(mode)
    path = max(p for p in (run / "checkpoints").glob("step-*"))
    before, saved = weights(pretrained(DROPOUT) / "final"), weights(path)
    same = [n for n, t in saved.items() if f"bert.{n}" in before and torch.equal(before[f"bert.{n}"], t)]
    assert same == []
    assert len([n for n in saved if n.startswith("pooled.")]) >= 2
    blocks = {section for section in ("block.0", "block.1") if any(f"layer.{section[-1]}." in n for n in saved)}
    assert blocks == MODES[mode][1] & {"block.0", "block.1"}
    assert json.loads((path / "state.json").read_text())["base"]["path"] == str(pretrained(DROPOUT) / "final")


@pytest.mark.parametrize("mode", MODES)
def test_final_is_whole_and_opens_with_transformers_alone(run_of: Callable[[str], Path], mode: str) -> None:
    final = run_of(mode) / "final"
    model, info = AutoModel.from_pretrained(final, output_loading_info=True, add_pooling_layer=False)
    assert {kind: len(names) for kind, names in info.items() if names} == {}
    tokenizer = AutoTokenizer.from_pretrained(final)
    assert len(tokenizer) == model.get_input_embeddings().weight.shape[0]
    assert torch.isfinite(model(**tokenizer("the old dog", return_tensors="pt")).last_hidden_state).all()
    assert json.loads((final / "head.json").read_text())["classes"] == ["animal", "outdoors", "thing"]


def test_the_best_weights_are_exported_whole_also_what_had_not_moved_by_then(
    finetune: Train, pretrained: Pretrained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer.Trainer, "_better", lambda self, value: self.state.best is None)  # the first evaluation, in the head's phase
    asked = ("finetune=lp_ft", "finetune.head_share=0.5", "trainer.max_steps=4", "evaluation.every_steps=2", "checkpoint.export=best")
    run = finetune(tmp_path / "run", *asked)
    base = safetensors.torch.load_file(pretrained("bert") / "final" / "model.safetensors")
    final = safetensors.torch.load_file(run / "final" / "model.safetensors")
    last = safetensors.torch.load_file(run / "checkpoints" / "last" / "model.safetensors")
    assert any(name in final and not torch.equal(tensor, final[name]) for name, tensor in last.items())
    assert all(torch.equal(tensor, base[f"bert.{name}"]) for name, tensor in final.items())


@pytest.mark.parametrize("of", ["bert", "gpt"])
def test_a_familys_own_head_opens_as_a_classifier_that_knows_the_names(finetune: Train, tmp_path: Path, of: str) -> None:
    final = finetune(tmp_path / "run", *asked("last_layers"), "model.head=family", "trainer.max_steps=2", of=of) / "final"
    model, info = AutoModelForSequenceClassification.from_pretrained(final, output_loading_info=True)
    assert {kind: len(names) for kind, names in info.items() if names} == {}
    assert model.config.id2label == {0: "animal", 1: "outdoors", 2: "thing"}
    tokenizer = AutoTokenizer.from_pretrained(final)
    assert model(**tokenizer(["the old dog", "a bell"], padding=True, return_tensors="pt")).logits.shape == (2, 3)
    assert not (final / "head.json").exists()


@pytest.mark.parametrize("objective", ["classification", "regression"])
def test_finetuning_goes_on_from_the_head_of_a_finetuned_run(finetune: Train, tmp_path: Path, objective: str) -> None:
    """The first loss of the second run is the last of the first: neither a new standardisation nor a new beginning bends the head."""
    first = finetune(tmp_path / "first", *asked("features"), f"objective={objective}", "optimizer.lr=0.1", "checkpoint.export=last", STEADY)
    again = (*asked("features"), f"objective={objective}", f"model.checkpoint={first}", "optimizer.lr=1e-30", "trainer.max_steps=1", STEADY)
    second = finetune(tmp_path / "second", *again)
    assert records(second, "validation_loss")[-1] == pytest.approx(records(first, "validation_loss")[-1], rel=1e-5)


# --- the base -----------------------------------------------------------------------------------------------------


def stopped(finetune: Train, folder: Path, monkeypatch: pytest.MonkeyPatch, step: int, *overrides: str, **of: str) -> None:
    with monkeypatch.context() as patch:
        stop_after(patch, step)
        with pytest.raises(Stopped):
            finetune(folder, *overrides, **of)


def copy_of(run: Path, folder: Path, manifest: bool) -> Path:
    shutil.copytree(run / "final", folder)
    if not manifest:  # a folder of Hugging Face's has none
        (folder / "manifest.json").unlink()
    return folder


def other_weights(folder: Path) -> None:
    found = weights(folder)
    found["bert.embeddings.LayerNorm.weight"] += 1
    (folder / "model.safetensors").write_bytes(safetensors.torch.save(found, {"format": "pt"}))


@pytest.mark.parametrize(("change", "manifest"), [(shutil.rmtree, True), (other_weights, True), (other_weights, False)])
def test_a_base_that_is_gone_or_has_changed_is_named_when_a_run_is_resumed(
    finetune: Train, pretrained: Pretrained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], None], manifest: bool
) -> None:
    base = copy_of(pretrained("bert"), tmp_path / "base", manifest)
    stopped(finetune, tmp_path / "run", monkeypatch, 3, *asked("last_layers"), f"model.checkpoint={base}")
    change(base)
    with pytest.raises(CheckpointError) as caught:
        finetune(tmp_path / "run", *asked("last_layers"), f"model.checkpoint={base}")
    assert caught.value.exit_code == 4
    assert str(base) in caught.value.what
    assert caught.value.fix or caught.value.allowed


# --- resume -------------------------------------------------------------------------------------------------------

# Phases of six updates: gradual changes at 1.5 → 2 and 3, lp_ft at 1.5 → 2.
RESUMED = [
    ("features", 3), ("layers", 3), ("full", 3), ("lora", 3),
    ("gradual", 1), ("gradual", 2), ("gradual", 3), ("gradual", 4), ("lp_ft", 1), ("lp_ft", 2), ("lp_ft", 4),
]  # fmt: skip


@pytest.mark.parametrize(
    ("mode", "step"), [pytest.param(*row, marks=() if row in (("features", 3), ("gradual", 2), ("lp_ft", 2)) else pytest.mark.long) for row in RESUMED]
)
def test_a_finetuning_stopped_in_the_middle_and_resumed_repeats_the_unbroken_one(
    finetune: Train, run_of: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, step: int
) -> None:
    stopped(finetune, tmp_path / "broken", monkeypatch, step, *asked(mode), of=DROPOUT)
    assert outcome(finetune(tmp_path / "broken", *asked(mode), of=DROPOUT)) == outcome(run_of(mode))


@pytest.mark.parametrize(("mode", "use"), [("features", "never"), ("last_layers", "never"), ("last_layers", "always")])
def test_a_finetuning_resumes_exactly_with_a_cache_and_without(finetune: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, use: str) -> None:
    chosen = (*asked(mode), f"cache.use={use}")
    stopped(finetune, tmp_path / "broken", monkeypatch, 3, *chosen, of=DROPOUT)
    unbroken = outcome(finetune(tmp_path / "unbroken", *chosen, of=DROPOUT))
    assert outcome(finetune(tmp_path / "broken", *chosen, of=DROPOUT)) == unbroken


def launch(folder: Path, *overrides: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """`llmtrain finetune` with the tiny settings, in processes of its own."""
    typed = [*tiny(*overrides, base=TINY_FINETUNE), f"output_dir={folder}"]
    command = [sys.executable, "-W", "ignore", "-m", "llmtrain", "finetune", *typed]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=cwd, env={**os.environ, "PYTHONPATH": str(Path.cwd())}, check=False)
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.parametrize("mode", [pytest.param("features", marks=pytest.mark.long), "last_layers"])
def test_two_processes_finetune_as_one_does(finetune: Train, pretrained: Pretrained, tmp_path: Path, mode: str) -> None:
    names, chosen = ("loss_class", "grad_norm", "lr"), (*asked(mode), "trainer.log_every_steps=1")
    one = finetune(tmp_path / "one", *chosen)
    done = launch(tmp_path / "two", *chosen, "devices=2", f"model.checkpoint={pretrained('bert')}", cwd=tmp_path)
    assert len(records(one, *names)) == 6
    for a, b in zip(records(one, *names), records(tmp_path / "two", *names), strict=True):
        assert b == pytest.approx(a, rel=1e-6)
    for a, b in zip(records(one, "validation_loss", "validation_accuracy"), records(tmp_path / "two", "validation_loss", "validation_accuracy"), strict=True):
        assert b == pytest.approx(a, rel=1e-6)
    assert done.stdout.count("starting from step 0") == 1
    assert proof(tmp_path / "two")["freezing"] == proof(one)["freezing"]


@pytest.mark.long
def test_two_processes_resume_a_finetuning_exactly(pretrained: Pretrained, tmp_path: Path) -> None:
    chosen = (*asked("last_layers"), STEADY, "devices=2", f"model.checkpoint={pretrained(DROPOUT)}")
    launch(tmp_path / "unbroken", *chosen, cwd=tmp_path)
    launch(tmp_path / "broken", *chosen, "trainer.max_steps=3", cwd=tmp_path)
    assert "resumed from step 3" in launch(tmp_path / "broken", *chosen, cwd=tmp_path).stdout
    a, b = outcome(tmp_path / "unbroken"), outcome(tmp_path / "broken")
    assert (a["weights"], a["optimizer"], a["final"]) == (b["weights"], b["optimizer"], b["final"])


@pytest.mark.parametrize(
    ("mode", "trainable"),
    [(("finetune=features",), 592_130), (("finetune=last_layers", "finetune.blocks=1"), 7_680_002), (("finetune=full",), 66_955_010)],
    ids=["the head", "the head and a block", "all"],
)
def test_the_published_numbers_of_trainable_parameters_come_from_the_config_of_the_recipe(
    pretrained: Pretrained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], mode: tuple[str, ...], trainable: int
) -> None:
    """DistilBERT as published, without its weights: what the command line says, up to what the trainer would train."""
    folder = tmp_path / "distilbert"
    AutoTokenizer.from_pretrained(pretrained("bert") / "final").save_pretrained(folder)
    DistilBertConfig(architectures=["DistilBertForMaskedLM"]).save_pretrained(folder)
    monkeypatch.chdir(tmp_path)
    assert main(["validate", "finetune", "data=synthetic", "model.head=family", f"model.checkpoint={folder}", "data.max_length=512", "device=cpu", *mode]) == 0
    assert "✓ model and objective fit" in capsys.readouterr().out
    built = parts(compose("finetune", ["experiment=imdb_distilbert", f"model.checkpoint={folder}", *mode]).config)
    assert built.model.head is HeadKind.family
    with torch.device("meta"):
        model = from_nothing(built.model, AutoTokenizer.from_pretrained(folder), built.objective.head, Outputs(2, ("neg", "pos")), built.objective.asks_words)
    model, anatomy = recipe._prepared(built, model, {"train": Dataset.from_dict({})})
    phases = [recipe.read_by_something(phase, anatomy) for phase in built.finetune.plan(anatomy)]
    moving = frozenset().union(*(phase.trainable for phase in phases))
    assert sum(parameter.numel() for name, parameter in model.named_parameters() if name in moving) == trainable
    assert sum(parameter.numel() for parameter in model.parameters()) == 66_955_010


# --- scores -------------------------------------------------------------------------------------------------------

# The model and how it is finetuned. A family's own head of a GPT has no bias, and no mean of the scores can be saved in it.
LEARNERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "features": ("bert", ("finetune=features",)),
    "last_layers": ("bert", ("finetune=last_layers", "finetune.blocks=1", "optimizer.lr=1e-3")),
    "the familys head of a gpt": ("gpt", ("finetune=full", "model.head=family", "optimizer.lr=1e-3")),
    "the familys head": ("bert", ("finetune=full", "model.head=family", "optimizer.lr=1e-3")),
}
FAMILIES = ["the familys head of a gpt", "the familys head"]
ONCE = ("evaluation.every_steps=null", "checkpoint.every_steps=null", "checkpoint.keep_best=false")


def scored(path: Path, factor: float = 1, offset: float = 0, rows: int = 200) -> tuple[str, ...]:
    """Made-up texts with scores from 1 to 5, in another unit and from another zero."""
    made = [synthetic.row(generator(0, "scored", i), i, 24, Target.score, pairs=False) for i in range(rows)]
    path.write_text("text,score\n" + "".join(f"{row.text},{factor * row.answer + offset}\n" for row in made))
    return ("objective=regression", "data=text", "data.documents=line", f"data.train={path}", "data.validation_fraction=0.3")


@pytest.mark.parametrize("name", LEARNERS)
def test_neither_the_unit_nor_the_zero_of_scores_changes_what_is_learnt(finetune: Train, tmp_path: Path, name: str) -> None:
    (of, how), found = LEARNERS[name], {}
    offset = 0.0 if name == "the familys head of a gpt" else 50_000.0
    for unit, factor, zero in (("one", 1.0, 0.0), ("thousand", 1000.0, offset)):
        run = finetune(tmp_path / unit, *how, *scored(tmp_path / f"{unit}.csv", factor, zero), *ONCE, "trainer.max_steps=50", of=of)
        found[unit] = proof(run)["validation"]
        found[unit]["trained"] = records(run, "loss_score")[-1][0]
    assert found["one"]["pearson"] > 0.5
    assert found["thousand"]["pearson"] == pytest.approx(found["one"]["pearson"], abs=1e-3)
    assert found["thousand"]["rmse"] == pytest.approx(1000 * found["one"]["rmse"], rel=1e-3)
    for loss in ("loss", "trained"):  # in the square of the scores' unit, in training too
        assert found["thousand"][loss] == pytest.approx(1e6 * found["one"][loss], rel=2e-3)
    assert proof(run)["freezing"]["trainable_but_still"] == []


@pytest.mark.parametrize("name", ["features", *FAMILIES])
def test_final_gives_the_scores_that_the_run_was_judged_by(finetune: Train, tmp_path: Path, name: str) -> None:
    of, how = LEARNERS[name]
    run = finetune(tmp_path / "run", *how, *scored(tmp_path / "rows.csv", 1000, 2000), *ONCE, of=of)
    assert (
        main(["evaluate", f"model.checkpoint={run}", "split=validation", f"output={tmp_path / 'out.json'}", "device=cpu", "threads=1", "precision=fp32"]) == 0
    )
    again, judged = json.loads((tmp_path / "out.json").read_text()), proof(run)["validation"]
    assert {metric: again[metric] for metric in judged} == pytest.approx(judged, rel=1e-3)
    if name in FAMILIES:
        model, info = AutoModelForSequenceClassification.from_pretrained(run / "final", output_loading_info=True)
        assert {kind: len(names) for kind, names in info.items() if names} == {}
        assert model.config.problem_type == "regression"
    else:
        assert set(safetensors.torch.load_file(run / "final" / "head.safetensors")) == {"weight", "bias"}


def test_in_bf16_final_gives_the_scores_that_the_run_was_judged_by_to_their_own_deviation(
    finetune: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmtrain.runtime.has_bf16", lambda device: True)  # any processor can, some slowly
    of, how = LEARNERS["the familys head"]
    run = finetune(tmp_path / "run", *how, *scored(tmp_path / "rows.csv", 1000, 50_000), *ONCE, "trainer.max_steps=30", "precision=bf16", of=of)
    out = tmp_path / "out.json"
    assert main(["evaluate", f"model.checkpoint={run}", "split=validation", f"output={out}", "device=cpu", "threads=1", "precision=bf16"]) == 0
    again, judged = json.loads(out.read_text()), proof(run)["validation"]
    assert again["rmse"] == pytest.approx(judged["rmse"], rel=1e-2)
    assert again["pearson"] == pytest.approx(judged["pearson"], abs=1e-2)


@pytest.mark.parametrize("name", ["features", *FAMILIES])
def test_a_head_of_scores_goes_on_with_the_scores_that_it_gave(finetune: Train, tmp_path: Path, name: str) -> None:
    of, how = LEARNERS[name]
    chosen = (*how, *scored(tmp_path / "rows.csv", 1000, 50_000), *ONCE)
    first = finetune(tmp_path / "first", *chosen, "trainer.max_steps=20", of=of)
    second = finetune(tmp_path / "second", *chosen, f"model.checkpoint={first}", "optimizer.lr=1e-30", "trainer.max_steps=1")
    answers = [[json.loads(line)["predicted"] for line in (run / "predictions.jsonl").read_text().splitlines()] for run in (first, second)]
    assert answers[1] == pytest.approx(answers[0], rel=1e-6)  # 0.05 of 50,000, a dozen of the last digits of fp32
    before, after = (proof(run)["validation"] for run in (first, second))
    # The GPT, which has to learn the mean by its weights, has learned little else in 20 updates: its answers lie within a dozen of each
    # other, so one last digit, 0.004, is a thousandth of their deviation, and correlations of such answers say nothing of four digits.
    metrics = ["loss", "rmse"] if name == "the familys head of a gpt" else list(before)
    assert {metric: after[metric] for metric in metrics} == pytest.approx({metric: before[metric] for metric in metrics}, rel=1e-4)


GOES_ON: dict[str, tuple[tuple[str, ...], tuple[str, ...], list[str]]] = {
    "combined": (("finetune.states=all",), ("finetune.states=all", "finetune.combine=sum"), ["finetune.combine"]),
    "standardised": ((), ("finetune.standardise=false",), ["finetune.standardise"]),
    "both, as by default": (
        ("finetune.states=all",),
        ("finetune.states=all", "finetune.combine=concat", "finetune.standardise=true"),
        ["finetune.combine", "finetune.standardise"],
    ),
    "other states, which are not read": (("finetune.states=all",), ("finetune.states=last",), ["finetune.states"]),
    "nothing given": (("finetune.states=all",), (), []),
    "a new head, of other states": (("finetune.states=all",), ("finetune.states='0,1'", "finetune.combine=sum", "finetune.standardise=false"), []),
    "a new head, of another pooling": ((), ("model.pooling=max", "finetune.standardise=false"), []),
    "a new head, of another task": ((), ("objective=multiple_choice", "finetune.standardise=false"), []),
}


@pytest.mark.parametrize("case", GOES_ON)
def test_what_is_given_for_a_new_head_is_noted_as_without_effect_where_the_one_of_the_weights_goes_on(
    finetune: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    before, given, expected = GOES_ON[case]
    first = finetune(tmp_path / "first", "finetune=features", *before, *ONCE, "trainer.max_steps=1")
    capsys.readouterr()
    chosen = ("finetune=features", *given, f"model.checkpoint={first}")
    finetune(tmp_path / "second", *chosen, *ONCE, "trainer.max_steps=1")
    said = " ".join(capsys.readouterr().out.split())
    assert [key for key in ("finetune.combine", "finetune.standardise", "finetune.states") if f"note: {key} has no effect: the head beside" in said] == expected
    assert ("the head goes on from the one beside the weights" in said) is not case.startswith("a new head")
    typed = [o for o in tiny(*chosen, base=TINY_FINETUNE) if not o.startswith("output_dir")]
    assert main(["validate", "finetune", *typed]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert said.count("has no effect: the head beside the weights goes on") == len(expected)


def test_a_damaged_head_beside_the_weights_is_named_where_it_is_read_and_not_in_a_note(finetune: Train, tmp_path: Path) -> None:
    first = finetune(tmp_path / "first", "finetune=features", *ONCE, "trainer.max_steps=1")
    shutil.copytree(first / "final", tmp_path / "final")
    (tmp_path / "final" / "manifest.json").unlink()
    (tmp_path / "final" / "head.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"head\.json: not the head of a task"):
        finetune(tmp_path / "second", "finetune=features", "finetune.standardise=false", f"model.checkpoint={tmp_path / 'final'}")


def test_a_frozen_head_of_scores_keeps_its_bits(finetune: Train, tmp_path: Path) -> None:
    first = finetune(tmp_path / "first", "finetune=features", *scored(tmp_path / "rows.csv", 1000, 50_000), *ONCE)
    frozen = ("finetune=layers", "finetune.address=last:1", "finetune.head=false", f"model.checkpoint={first}")
    second = finetune(tmp_path / "second", *frozen, *scored(tmp_path / "others.csv", 1300, 49_000), *ONCE)
    one, two = (safetensors.torch.load_file(run / "final" / "head.safetensors") for run in (first, second))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert proof(second)["freezing"]["frozen_but_moved"] == []


@pytest.mark.parametrize("name", ["features", *FAMILIES])
def test_a_regression_stopped_in_the_middle_repeats_the_unbroken_one(finetune: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    of, how = LEARNERS[name]
    chosen = (*how, *scored(tmp_path / "rows.csv", 1000, 50_000))
    stopped(finetune, tmp_path / "broken", monkeypatch, 3, *chosen, of=of)
    unbroken = outcome(finetune(tmp_path / "unbroken", *chosen, of=of))
    assert outcome(finetune(tmp_path / "broken", *chosen, of=of)) == unbroken


def test_a_regression_goes_on_where_other_rows_are_allowed_in_the_units_that_it_learnt_in(
    finetune: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped(finetune, tmp_path / "run", monkeypatch, 3, "finetune=features", *scored(tmp_path / "rows.csv"))
    run = finetune(tmp_path / "run", "finetune=features", *scored(tmp_path / "others.csv", 1000, 50_000), "allow_change=[data]")
    last = safetensors.torch.load_file(run / "checkpoints" / "last" / "model.safetensors")
    assert 2 < float(last["pooled.centre"]) < 4
    assert proof(run)["status"] == "finished"


@pytest.mark.parametrize("mode", ["features", pytest.param("the familys head", marks=pytest.mark.long)])
def test_two_processes_learn_scores_as_one_does(finetune: Train, pretrained: Pretrained, tmp_path: Path, mode: str) -> None:
    of, how = LEARNERS[mode]
    chosen = (*how, *scored(tmp_path / "rows.csv", 1000, 50_000), "trainer.log_every_steps=1")
    one = finetune(tmp_path / "one", *chosen, of=of)
    launch(tmp_path / "two", *chosen, "devices=2", f"model.checkpoint={pretrained(of)}", cwd=tmp_path)
    names = ("loss_score", "grad_norm", "lr")
    assert len(records(one, *names)) == 6
    for a, b in zip(records(one, *names), records(tmp_path / "two", *names), strict=True):
        assert b == pytest.approx(a, rel=1e-5)
    assert proof(tmp_path / "two")["validation"] == pytest.approx(proof(one)["validation"], rel=1e-4)


# --- a last state of another width --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def projected(pretrained: Pretrained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny OPT such as OPT-350m, whose last hidden state is projected to the width of its embeddings."""
    folder = tmp_path_factory.mktemp("opt") / "projected"
    tokenizer = AutoTokenizer.from_pretrained(pretrained("gpt") / "final")
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "word_embed_proj_dim": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "ffn_dim": 48, "max_position_embeddings": 64}
    OPTForCausalLM(OPTConfig(vocab_size=len(tokenizer), do_layer_norm_before=False, dropout=0.0, init_std=0.3, **shape)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("how", "width"),
    [
        (("finetune=features",), 24),
        (("finetune=features", "finetune.states='0,1'"), 32),
        (("finetune=last_layers", "finetune.blocks=1"), 24),
    ],
)
def test_our_head_is_as_wide_as_the_hidden_states_that_it_reads_with_a_cache_and_without(
    finetune: Train, projected: Path, tmp_path: Path, how: tuple[str, ...], width: int
) -> None:
    chosen = (*how, f"model.checkpoint={projected}", "trainer.log_every_steps=1")
    plain, cached = (finetune(tmp_path / use, *chosen, f"cache.use={use}") for use in ("never", "always"))
    assert records(plain, "loss_class") == [pytest.approx(losses, rel=1e-5) for losses in records(cached, "loss_class")]
    assert json.loads((cached / "final" / "head.json").read_text())["width"] == width
    out = tmp_path / "out.json"
    assert main(["evaluate", f"model.checkpoint={cached}", "split=validation", f"output={out}", "device=cpu", "threads=1", "precision=fp32"]) == 0
    assert json.loads(out.read_text())["loss"] == pytest.approx(proof(cached)["validation"]["loss"], rel=1e-4)
    assert main(["predict", f"model.checkpoint={cached}", "text=the old dog", "device=cpu", "threads=1"]) == 0


def test_hidden_states_of_several_widths_are_refused_with_the_way_out(finetune: Train, projected: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="0 has 32, 1 has 32, 2 has 24 numbers") as caught:
        finetune(tmp_path / "run", "finetune=features", "finetune.states=all", f"model.checkpoint={projected}")
    assert caught.value.exit_code == 2
    assert "finetune.states=last" in str(caught.value.fix)


# --- refused, with a way out --------------------------------------------------------------------------------------

FROM_NOTHING = ("model=bert", "model.num_hidden_layers=2", "model.hidden_size=32", "model.num_attention_heads=2", "tokenizer.vocab_size=200")
WORDS = ("objective=next_token", "data.max_length=16")

# What was asked of which model, and what the answer says, behind the number of the fault where it has one.
REFUSED: list[tuple[str, tuple[str, ...], str, str]] = [
    ("bert", (*FROM_NOTHING, "finetune=features"), "start from random numbers and would stay frozen", "finetune=full"),
    ("bert", (*FROM_NOTHING, "finetune=last_layers", "finetune.blocks=1"), "start from random numbers and would stay frozen", "llmtrain pretrain"),
    ("bert", (*FROM_NOTHING, "finetune=gradual"), "would stay frozen in an early phase", "finetune=full"),
    ("bert", ("finetune=layers", "finetune.head=false"), "pooled.weight", "a mode that trains them too"),
    ("bert", ("objective=sentence_order", "data.words=200", "data.max_length=48", "finetune=features"), "bert.pooler.dense", "finetune=full"),
    ("gpt", (*WORDS, "finetune=features"), "lm_head.weight is tied to the frozen embeddings", "finetune.untie=true"),
    ("gpt", (*WORDS, "finetune=lp_ft"), "lm_head.weight is tied to the frozen embeddings", "finetune.untie=true"),
    ("bert", ("model.head=family", "data.pairs=true", "objective.symmetric=true"), "cannot do objective.symmetric=true", "model.head=pooled"),
    ("bert", ("model.head=family", "objective=multiple_choice"), "cannot do objective=multiple_choice", "model.head=pooled"),
    ("gpt", ("model.head=family", "objective.weights.lm=0.5"), "cannot do objective.weights.lm above 0", "model.head=pooled"),
    ("bert", ("model.head=family", "finetune=features", "finetune.states=all"), "cannot do finetune.states", "model.head=pooled"),
    ("gpt", ("model.pooling=cls",), "the state of the first token is the same for every text", "model.pooling=last"),
    ("bert", ("objective.weights.lm=0.5",), "needs a causal model", "objective.weights.lm=0"),
    ("bert", ("objective=next_token",), "asks for a causal model", "model.checkpoint=FOLDER of a GPT"),
    ("gpt", ("objective=masked_lm",), "asks for a bidirectional model", "model.checkpoint=FOLDER of a BERT"),
    ("bert", ("finetune=last_layers", "finetune.blocks=99"), "A16 finetune.blocks=99: the model has 2 blocks", "1 to 2"),
    ("bert", ("finetune=last_layers", "finetune.blocks=0"), "A17 finetune.blocks=0", "finetune=features"),
    ("bert", ("finetune=last_layers", "finetune.blocks=-1"), "A17 finetune.blocks=-1", "1 or more"),
    ("bert", ("finetune=lora", "finetune.blocks=3"), "finetune.blocks=3: the model has 2 blocks", "1 to 2"),
    ("bert", ("finetune=gradual", "finetune.blocks_per_phase=3"), "finetune.blocks_per_phase=3: the model has 2 blocks", "1 to 2"),
    ("bert", ("finetune=layers", "finetune.address=last:9"), "A19 finetune.address='last:9': there is no 'last:9'", "0 to 1"),
    ("bert", ("finetune=layers", "finetune.address='7'"), "A19 finetune.address='7'", "2 blocks"),
    ("bert", ("finetune=layers", "finetune.address=encoder"), "A19 finetune.address='encoder'", "last:2"),
    ("bert", ("finetune=layers", "finetune.address=none", "finetune.head=false"), "A19 nothing would be trained", "embeddings.word_embeddings.weight"),
    ("bert", ("finetune=features", "finetune.states=5"), "finetune.states='5'", "0 (embeddings) to 2 (last)"),
    ("bert", ("evaluation.best_metric=f2",), "A35 evaluation.best_metric=f2", "accuracy, macro_f1, matthews"),
    ("bert", ("objective=regression", "evaluation.best_metric=accuracy"), "A35 evaluation.best_metric=accuracy", "pearson"),
    ("bert", ("finetune=full", "cache.use=always"), "cache.use=always: every block moves", "cache.use=auto"),
    ("bert", ("finetune=last_layers", "finetune.blocks=2", "cache.use=always"), "cache.use=always: every block moves", "cache.use=auto"),
    ("bert", ("finetune=layers", "finetune.address=last:1", "finetune.embeddings=true", "cache.use=always"), "the embeddings move", "cache.use=auto"),
    ("bert", ("finetune=layers", "finetune.address=first:1", "cache.use=always"), "the lowest block moves in some phase", "cache.use=auto"),
    ("bert", ("objective=masked_lm", "finetune=features", "cache.use=always"), "draws its inputs anew", "cache.use=auto"),
    ("bert", ("finetune=last_layer",), "last_layer", "last_layers"),
    ("bert", ("finetune=features", "finetune.blocks=2"), "finetune.blocks: no such key", "finetune=last_layers"),
    ("bert", ("optimizer.lr=0",), "optimizer.lr=0", "above 0"),
]  # fmt: skip


@pytest.mark.parametrize(("of", "overrides", "what", "way_out"), REFUSED, ids=[" ".join(row[1][-2:]) for row in REFUSED])
def test_what_cannot_work_is_refused_in_a_few_lines_with_the_way_out(
    pretrained: Pretrained, tmp_path: Path, capsys: pytest.CaptureFixture[str], of: str, overrides: tuple[str, ...], what: str, way_out: str
) -> None:
    own = () if "model=bert" in overrides else (f"model.checkpoint={pretrained(of)}",)
    capsys.readouterr()
    assert main(["finetune", *tiny(*overrides, base=TINY_FINETUNE), *own, f"output_dir={tmp_path / 'run'}"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert len(said.splitlines()) <= 6
    assert "Traceback" not in said
    assert what.partition(" ")[2] in said if what[0] == "A" and what[1:3].isdigit() else what in said
    assert way_out in said
    assert not list(tmp_path.glob("run/final")) + list(tmp_path.glob("run/checkpoints/*"))


def test_an_auxiliary_loss_that_teaches_nothing_is_left_out_and_said_and_the_run_is_examined_without_it(
    finetune: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = finetune(tmp_path / "run", *asked("features"), "objective.weights.lm=0.5", "trainer.max_steps=2", of="gpt")
    assert "note: objective.weights.lm has no effect" in capsys.readouterr().out
    for name in ("config.yaml", "resolved.yaml"):
        assert yaml.safe_load((run / name).read_text())["objective"]["weights"]["lm"] == 0
    assert main(["evaluate", f"model.checkpoint={run}", "device=cpu", "threads=1"]) == 0


def larger_tokenizer(run: Path, folder: Path) -> Path:
    tokenizer = AutoTokenizer.from_pretrained(run / "final")
    tokenizer.add_tokens(["wombat", "quoll"])
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("mode", "resize", "what"),
    [
        ("full", False, "C01 the tokenizer has 141 tokens, the model's embedding 139 rows"),
        ("last_layers", True, "embeddings: the new rows"),
        ("features", True, "embeddings: the new rows"),
        ("gradual", True, "would stay frozen in an early phase, whose weights may be the exported ones: embeddings: the new rows"),
        ("lp_ft", True, "would stay frozen in an early phase, whose weights may be the exported ones: embeddings: the new rows"),
    ],
)
def test_c01_new_token_rows_are_added_on_demand_and_never_stay_frozen(
    finetune: Train, pretrained: Pretrained, tmp_path: Path, mode: str, resize: bool, what: str
) -> None:
    path = larger_tokenizer(pretrained("bert"), tmp_path / "tokenizer")
    with pytest.raises(ConfigError) as caught:
        finetune(tmp_path / "run", *asked(mode), f"tokenizer.path={path}", f"tokenizer.resize={str(resize).lower()}")
    assert what.removeprefix("C01 ") in caught.value.what
    assert caught.value.fix
    assert len(caught.value.screen().splitlines()) <= 6


def test_new_token_rows_are_trained_where_the_embeddings_are(finetune: Train, pretrained: Pretrained, tmp_path: Path) -> None:
    path = larger_tokenizer(pretrained("bert"), tmp_path / "tokenizer")
    run = finetune(tmp_path / "run", *asked("full"), f"tokenizer.path={path}", "tokenizer.resize=true", "trainer.max_steps=2")
    assert weights(run / "final")["embeddings.word_embeddings.weight"].shape[0] == 141
    assert proof(run)["freezing"]["trainable_but_still"] == []


def test_a_gpt_learns_tokens_of_its_own_for_the_parts_of_a_sequence_and_keeps_them(finetune: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task = ("objective=classification", "finetune=full", "tokenizer.task_tokens=true", "evaluation.every_steps=null")
    whole = finetune(tmp_path / "whole", *task, of="gpt")
    assert "<|start|>, <|delimiter|> and <|extract|>" in " ".join(capsys.readouterr().out.split())
    rows = {name: weights(whole / "final")[name].shape[0] for name in weights(whole / "final") if name.endswith("wte.weight")}
    assert list(rows.values()) == [303]
    assert proof(whole)["freezing"]["trainable_but_still"] == []
    again = finetune(tmp_path / "again", *task, "trainer.max_steps=2", f"model.checkpoint={whole}", of="gpt")
    assert "the embedding grew" not in capsys.readouterr().out
    assert weights(again / "final").keys() == weights(whole / "final").keys()


@pytest.mark.parametrize(
    ("of", "typed", "what"),
    [
        ("gpt", ["finetune=features"], "start from random numbers and would stay frozen"),
        ("gpt", ["finetune=last_layers", "finetune.blocks=1"], "start from random numbers and would stay frozen"),
        ("gpt", ["finetune=lp_ft"], "start from random numbers and would stay frozen in an early phase"),
        ("gpt", ["finetune=gradual"], "start from random numbers and would stay frozen in an early phase"),
        ("bert", ["finetune=full"], "is bidirectional and has [CLS] and [SEP]"),
    ],
)
def test_tokens_of_a_task_that_nothing_would_train_are_refused(finetune: Train, tmp_path: Path, of: str, typed: list[str], what: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(what)):
        finetune(tmp_path / "run", *typed, "objective=classification", "tokenizer.task_tokens=true", of=of)


def test_a_pooler_that_the_weights_lack_is_trained_with_the_head_from_the_first_phase_on(
    finetune: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer.Trainer, "_better", lambda self, value: self.state.best is None)  # the first evaluation, in the head's phase
    phases = ("finetune=lp_ft", "finetune.head_share=0.5", "trainer.max_steps=4", "evaluation.every_steps=2", "checkpoint.export=best")
    found = proof(finetune(tmp_path / "run", *phases, "objective=sentence_order", "data.words=200", "data.max_length=48"))["freezing"]
    assert (found["trainable"], found["trainable_moved"]) == (4, 4)  # weight and bias of pooler and head
    assert {name for name, section in found["sections"].items() if section["from_share"] == 0} == {"final", "head"}
    assert found["sections"]["final"]["lr"] == found["sections"]["head"]["lr"] == pytest.approx(20 * found["sections"]["block.0"]["lr"])


def test_a_pooler_that_came_with_the_weights_waits_for_the_second_phase(finetune: Train, tmp_path: Path) -> None:
    pairs = ("objective=sentence_order", "data.words=200", "data.max_length=48", "trainer.max_steps=2")
    first = finetune(tmp_path / "first", "finetune=full", *pairs)
    again = finetune(tmp_path / "again", "finetune=lp_ft", *pairs, f"model.checkpoint={first}")
    assert {name for name, section in proof(again)["freezing"]["sections"].items() if section["from_share"] == 0} == {"head"}


def test_spare_rows_of_an_embedding_that_become_tokens_of_a_task_count_as_random(finetune: Train, pretrained: Pretrained, tmp_path: Path) -> None:
    from transformers import GPT2Model

    body = GPT2Model.from_pretrained(pretrained("gpt") / "final")
    body.resize_token_embeddings(310)
    body.save_pretrained(tmp_path / "spare")
    AutoTokenizer.from_pretrained(pretrained("gpt") / "final").save_pretrained(tmp_path / "spare")
    with pytest.raises(ConfigError, match="start from random numbers and would stay frozen"):
        finetune(tmp_path / "run", "finetune=features", "objective=classification", "tokenizer.task_tokens=true", f"model.checkpoint={tmp_path / 'spare'}")


def test_untied_the_head_of_a_gpt_is_trained_alone(finetune: Train, tmp_path: Path) -> None:
    run = finetune(tmp_path / "run", *WORDS, "finetune=features", "finetune.untie=true", "trainer.max_steps=2", of="gpt")
    found = proof(run)["freezing"]
    assert (found["trainable"], found["trainable_moved"]) == (1, 1)
    final = weights(run / "final")
    assert not torch.equal(final["lm_head.weight"], final["transformer.wte.weight"])
    assert json.loads((run / "final" / "config.json").read_text())["tie_word_embeddings"] is False


def test_a_head_that_stays_frozen_with_the_embeddings_is_said_with_the_way_out(finetune: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    finetune(tmp_path / "run", *WORDS, *asked("last_layers"), "trainer.max_steps=2", of="gpt")
    said = " ".join(capsys.readouterr().out.split())
    assert "lm_head.weight is tied to transformer.wte.weight, which is frozen" in said
    assert "finetune.untie=true" in said


EMBEDDINGS_ALONE = (
    "finetune=layers", "finetune.address=none", "finetune.embeddings=true", "finetune.norm=false", "finetune.pooler=false", "finetune.head=false",
)  # fmt: skip


@pytest.mark.parametrize(
    ("of", "objective", "output", "embeddings"),
    [
        ("gpt", "next_token", "lm_head.weight", "transformer.wte.weight"),
        ("bert", "masked_lm", "cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"),
    ],
)
def test_a_head_that_moves_with_the_embeddings_although_it_is_switched_off_is_said_with_the_way_out(
    finetune: Train, pretrained: Pretrained, tmp_path: Path, capsys: pytest.CaptureFixture[str], of: str, objective: str, output: str, embeddings: str
) -> None:
    before, said, moved = weights(pretrained(of) / "final")[embeddings], {}, {}
    asked = (f"objective={objective}", "data.max_length=16", *EMBEDDINGS_ALONE, "trainer.max_steps=2")
    for untie in ("false", "true"):
        final = weights(finetune(tmp_path / untie, *asked, f"finetune.untie={untie}", of=of) / "final")
        said[untie] = " ".join(capsys.readouterr().out.split())
        moved[untie] = not torch.equal(final.get(output, final[embeddings]), before)
        assert not torch.equal(final[embeddings], before)
    line = f"{output} is tied to {embeddings}, which is trained: it moves with it, although finetune.head=false; finetune.untie=true freezes a copy"
    assert (line in said["false"], "is tied to" in said["true"]) == (True, False)
    assert moved == {"false": True, "true": False}


@pytest.mark.parametrize("mode", ["full", "layers"])
def test_nothing_is_said_of_a_head_that_is_to_move_with_the_embeddings(finetune: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str], mode: str) -> None:
    moving = ("finetune.embeddings=true",) if mode == "layers" else ()
    finetune(tmp_path / "run", *WORDS, f"finetune={mode}", *moving, "trainer.max_steps=2", of="gpt")
    assert "is tied to" not in capsys.readouterr().out


def test_a_run_that_was_refused_leaves_its_folder_to_the_next(finetune: Train, tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        finetune(tmp_path / "run", *WORDS, "finetune=features", of="gpt")
    run = finetune(tmp_path / "run", *WORDS, *asked("last_layers"), "trainer.max_steps=2", of="gpt")
    assert yaml.safe_load((run / "config.yaml").read_text())["finetune"]["kind"] == "last_layers"
    assert proof(run)["status"] == "finished"


# --- said and not swallowed ---------------------------------------------------------------------------------------


def of_mode(mode: str, name: str) -> float:
    """A setting as the mode's YAML has it."""
    return float(yaml.safe_load((shipped_dir() / "finetune" / f"{mode}.yaml").read_text())[name])


def test_a_head_alone_has_a_higher_learning_rate_than_a_whole_model() -> None:
    assert of_mode("features", "lr") >= 10 * of_mode("full", "lr")


@pytest.mark.parametrize("mode", MODES)
def test_learning_rate_decay_batch_and_budget_are_the_modes_where_none_are_given(pretrained: Pretrained, mode: str) -> None:
    from llmtrain.config import compose

    def built(*given: str) -> Parts:
        return parts(compose("finetune", [f"finetune={mode}", f"model.checkpoint={pretrained('bert')}", *given]).config)

    assert built().optimizer.lr == of_mode(mode, "lr")
    assert built().optimizer.weight_decay == of_mode(mode, "weight_decay")
    assert built().trainer.batch_size == of_mode(mode, "batch_size")
    assert built().trainer.max_epochs == of_mode(mode, "epochs")
    assert built("finetune.lr=0.25").optimizer.lr == 0.25
    assert built("optimizer.lr=0.5").optimizer.lr == 0.5
    assert built("trainer.max_steps=3").trainer.max_epochs is None


@pytest.mark.parametrize(("given", "rate"), [((), None), (("optimizer.lr=0.5",), 0.5)])
def test_the_learning_rate_that_counts_is_printed(
    finetune: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str], given: tuple[str, ...], rate: float | None
) -> None:
    run = finetune(tmp_path / "run", *asked("features"), *given, STEADY, "schedule.warmup_steps=0", "trainer.max_steps=1", "trainer.log_every_steps=1")
    printed, rate = capsys.readouterr().out, rate or of_mode("features", "lr")
    assert f"{rate:g} at its peak" in printed
    assert ("the default of this mode" in printed) is not bool(given)
    assert records(run, "lr") == [[rate]]


# --- where nothing is pretrained yet ------------------------------------------------------------------------------


def test_without_a_pretrained_run_a_small_one_is_made_said_and_used_and_a_finetuned_run_never_takes_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from llmtrain.model.base import Attention

    small = tiny("model=bert", "model.num_hidden_layers=2", "model.hidden_size=32", "model.num_attention_heads=2", "objective=masked_lm", "trainer.max_steps=1")
    monkeypatch.setitem(recipe.SMALL_START, Attention.bidirectional, tuple(o for o in small if not o.startswith(("device=", "threads="))))
    monkeypatch.chdir(tmp_path)
    asked_for = ["finetune", *tiny("trainer.max_steps=1", "data.max_length=16", base=TINY_FINETUNE)]
    assert main(asked_for) == 0
    said = capsys.readouterr().out
    assert "there is no pretrained run below runs/ yet: a small model is pretrained first" in said
    assert "\n  llmtrain pretrain " in said
    assert "name=small_start device=cpu threads=1" in said
    (small_start,) = (tmp_path / "runs" / "pretrain").iterdir()
    (first,) = (tmp_path / "runs" / "finetune").iterdir()
    assert yaml.safe_load((first / "resolved.yaml").read_text())["model"]["checkpoint"].endswith(small_start.name)
    assert f"\n  {record_of(small_start)['command']}\n" in said
    assert shlex.split(record_of(first)["command"]) == ["llmtrain", *asked_for]
    assert main([*asked_for, "name=second"]) == 0
    again = capsys.readouterr().out
    assert "pretrained first" not in again
    assert "model.checkpoint=newest is " in again
    (second,) = (p for p in (tmp_path / "runs" / "finetune").iterdir() if p.name.endswith("second"))
    assert yaml.safe_load((second / "resolved.yaml").read_text())["model"]["checkpoint"].endswith(small_start.name)


def test_a_run_whose_files_do_not_say_what_it_started_from_does_not_go_on_from_something_else(
    pretrained: Pretrained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(recipe, "_small_start", lambda config: pytest.fail("a small model is pretrained"))
    again = ["finetune", *tiny("trainer.max_steps=2", "data.max_length=16", base=TINY_FINETUNE), "output_dir=run"]
    assert main([*again, f"model.checkpoint={pretrained('bert')}"]) == 0
    config = yaml.safe_load(Path("run/config.yaml").read_text())
    del config["model"]["checkpoint"]
    Path("run/config.yaml").write_text(yaml.safe_dump(config))
    assert main(again) == 0
    assert "model.checkpoint as in the run that is continued: " in capsys.readouterr().out
    Path("run/resolved.yaml").unlink()
    assert main(again) == 4
    assert "config.yaml: does not say which weights the run started from" in capsys.readouterr().err


def test_a_csv_of_reviews_needs_no_columns_named(pretrained: Pretrained, tmp_path: Path) -> None:
    lines = [f'"the {"good" if i % 2 else "bad"} dog, number {i}",{"positive" if i % 2 else "negative"}' for i in range(60)]
    (tmp_path / "reviews.csv").write_text("\n".join(["review,sentiment", *lines]))
    data = ("data=text", f"data.train={tmp_path / 'reviews.csv'}", "data.validation_fraction=0.3", "trainer.max_steps=2")
    given = [o for o in TINY_FINETUNE if not o.startswith("data.documents")]
    code = main(["finetune", *tiny(*data, base=tuple(given)), f"model.checkpoint={pretrained('bert')}", f"output_dir={tmp_path / 'run'}"])
    assert code == 0
    assert json.loads((tmp_path / "run" / "final" / "head.json").read_text())["classes"] == ["negative", "positive"]
    assert proof(tmp_path / "run")["status"] == "finished"


# --- gradient checkpointing ---------------------------------------------------------------------------------------


def blocks_of(model: nn.Module) -> nn.ModuleList:
    (found,) = (m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == 2)
    return found


@pytest.mark.parametrize("of", ["bert", "gpt"])
def test_d13_gradient_checkpointing_computes_trainable_blocks_again_and_no_other_and_changes_no_loss(
    finetune: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, of: str
) -> None:
    names, chosen = ("loss_class", "grad_norm"), (*asked("last_layers"), "cache.use=never", "trainer.log_every_steps=1", "trainer.max_steps=3")
    plain = records(finetune(tmp_path / "plain", *chosen, of=of), *names)
    real, calls = trainer.Trainer._update, [0, 0]

    def update(self: trainer.Trainer, batches: list[Batch]) -> Any:
        def count(i: int) -> Callable[..., None]:
            def hook(*_: Any) -> None:
                calls[i] += 1

            return hook

        hooks = [
            block.attention.register_forward_hook(count(i)) if of == "bert" else block.attn.register_forward_hook(count(i))
            for i, block in enumerate(blocks_of(self.saved))
        ]
        try:
            return real(self, batches)
        finally:
            for hook in hooks:
                hook.remove()

    monkeypatch.setattr(trainer.Trainer, "_update", update)
    again = finetune(tmp_path / "again", *chosen, "trainer.gradient_checkpointing=true", of=of)
    assert calls == [3, 6]
    assert all(norm > 0 for _, norm in plain)
    for a, b in zip(plain, records(again, *names), strict=True):
        assert b == pytest.approx(a, rel=1e-6)
    assert proof(again)["freezing"]["trainable_but_still"] == []
