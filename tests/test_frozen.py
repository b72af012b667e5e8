"""What is frozen is computed once, and nobody can tell from the losses: same numbers, entries shared by all that may and by nobody else."""

from __future__ import annotations

import copy
import dataclasses
import functools
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import yaml
from omegaconf import DictConfig, OmegaConf

from llmtrain import cache, checkpoint, files, frozen, runtime
from llmtrain.callback.base import Step
from llmtrain.cli import main
from llmtrain.command import parts, train as recipe
from llmtrain.command.parts import Parts
from llmtrain.config import _kind, build, compose, groups
from llmtrain.data import loader
from llmtrain.errors import ConfigError, LLMTrainError
from llmtrain.model.head import PooledHead, pooled_head
from llmtrain.objective.base import Objective
from llmtrain.objective.next_token import NextToken
from llmtrain.runtime import has_bf16
from llmtrain.trainer import Trainer, collate
from tests.conftest import TINY_FINETUNE, Pretrained, Train, outcome, tiny, without_float64
from tests.test_house import PACKAGE, imports

MODES = {
    "last_layers": ("finetune=last_layers", "finetune.blocks=1"),
    "layers": ("finetune=layers", "finetune.address=last:1", "finetune.norm=false", "finetune.pooler=false"),
    "features": ("finetune=features",),
}
TASKS = {
    "single": ("objective=classification",),
    "pairs": ("objective=classification", "data.pairs=true"),
    "symmetric": ("objective=classification", "data.pairs=true", "objective.symmetric=true"),
    "regression": ("objective=regression", "data.pairs=true"),
    "multiple_choice": ("objective=multiple_choice",),
}
WORDS = ("objective=next_token", "finetune.untie=true")
OF = ("bert_dropout", "gpt")
CASES = [
    *((of, mode, task) for of in OF for mode in ("last_layers", "features") for task in TASKS),
    *((of, "layers", task) for of in OF for task in ("single", "pairs")),
    *(("gpt", "last_layers", name) for name in ("next_token", "next_token apart", "next_token of documents")),
    ("gpt", "layers", "next_token"),
    ("gpt", "features", "next_token of documents"),
]
ASKED = {
    **TASKS,
    "next_token": WORDS,
    "next_token apart": (*WORDS, "objective.packing=false"),
    "next_token of documents": (*WORDS, "objective.document_attention=true"),
}
STEPS = 4
SETS = 3  # training, validation and test, each an entry


@dataclass
class Started:
    """A run up to its first update: what the recipe makes before it trains."""

    job: Trainer
    cut: frozen.Cut | None

    def steps(self, number: int = STEPS) -> list[Step]:
        """The first updates, by the loop's own hands."""
        leg = self.job.legs[0]
        self.job._call, self.job._adamw = self.job._prepare(leg.phase)
        return [self.job._update(group) for group in self.job._batches(leg.stage, number)]

    def losses(self, number: int = STEPS) -> list[float]:
        return [loss for step in self.steps(number) for loss in step.losses.values()]


Start = Callable[..., Started]
Ask = Callable[..., frozen.Question]
CONFIGS = Path(__file__).parents[1] / "configs"


@functools.cache
def composed() -> DictConfig:
    return compose("finetune", list(TINY_FINETUNE)).config


def config(*overrides: str) -> DictConfig:
    """What `compose` makes of overrides, in a hundredth of its time."""
    found = copy.deepcopy(composed())
    for name, value in (override.split("=", 1) for override in overrides):
        if "." in name or name not in ("objective", "finetune"):
            OmegaConf.update(found, name, yaml.safe_load(value), force_add=False)
        else:
            found[name] = OmegaConf.load(CONFIGS / name / f"{value}.yaml")
    return found


@functools.cache
def checked(store: str, *overrides: str) -> Parts:
    return parts.parts(config(*overrides))


def built_of(*overrides: str) -> Parts:
    """The parts of a run, checked. Runs that differ in the cache alone have the same, with data read once."""
    of_cache = [override for override in overrides if override.startswith("cache.")]
    built = checked(os.environ["LLMTRAIN_CACHE"], *(override for override in overrides if override not in of_cache))
    return dataclasses.replace(built, cache=build(config(*of_cache).cache, cache.Settings, "cache"))


@pytest.fixture
def look(pretrained: Pretrained, tmp_path: Path) -> Callable[..., recipe.Ready]:
    """look(*overrides, of="gpt") → a finetuning run, of which nothing is computed yet."""

    def run(*overrides: str, of: str = "bert") -> recipe.Ready:
        folder = tmp_path / f"begun{len(list(tmp_path.glob('begun*')))}"
        folder.mkdir()
        built = built_of(f"model.checkpoint={pretrained(of)}", *overrides)
        return recipe.prepare(built, runtime.start(built.runtime, built.model.width), folder, "finetune", None)

    return run


@pytest.fixture
def ask(look: Callable[..., recipe.Ready]) -> Ask:
    """ask(*overrides, of="gpt") → what that run asks the cache."""

    def run(*overrides: str, of: str = "bert") -> frozen.Question:
        question = recipe.question(look(*overrides, of=of))
        assert question is not None
        return question

    return run


@pytest.fixture
def begin(look: Callable[..., recipe.Ready]) -> Start:
    """begin(*overrides, of="gpt") → a finetuning run, just before its first update."""

    def run(*overrides: str, of: str = "bert") -> Started:
        ready = look(*overrides, of=of)
        asked, cut = recipe._decided(ready, None)
        recipe._compute_once(ready, asked, cut)
        return Started(ready.job, cut)

    return run


@pytest.fixture
def states(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the entries, empty; examples too are made anew."""
    monkeypatch.setenv("LLMTRAIN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / cache.FOLDER


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The entries that are made, as they are made."""
    found: list[Path] = []
    build = cache._build
    monkeypatch.setattr(cache, "_build", lambda plans, *rest: (found.extend(plan.entry for plan in plans), build(plans, *rest)))
    return found


# --- the same numbers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("of", "mode", "task"), CASES)
def test_cached_and_uncached_runs_have_the_same_losses_to_1e_6(begin: Start, of: str, mode: str, task: str) -> None:
    # In one store for all: entries of other questions must not be taken for one's own.
    asked = [*MODES[mode], *ASKED[task], "optimizer.lr=1e-2"]
    plain, cached = begin(*asked, "cache.use=never", of=of), begin(*asked, "cache.use=always", of=of)
    assert cached.cut is not None
    assert (cached.cut.pooled, cached.job.model is cached.job.saved) == ((True, True) if mode == "features" and task in TASKS else (False, False))
    expected = plain.losses()
    assert cached.losses() == pytest.approx(expected, rel=1e-6, abs=1e-6)
    assert len({round(loss, 4) for loss in expected}) > 1  # the guard: something is learned


@pytest.mark.parametrize("of", OF)
@pytest.mark.parametrize("changes", [("model.head=family",), ("data.pairs=true", "model.head=family"), ("finetune=lora", "finetune.blocks=1")])
def test_the_familys_head_and_adapters_have_the_same_losses_to_1e_6(begin: Start, of: str, changes: tuple[str, ...]) -> None:
    asked = [*MODES["last_layers"], *TASKS["single"], *changes, "optimizer.lr=1e-2"]
    plain, cached = begin(*asked, "cache.use=never", of=of), begin(*asked, "cache.use=always", of=of)
    assert cached.job.model is not cached.job.saved
    assert cached.losses() == pytest.approx(plain.losses(), rel=1e-6, abs=1e-6)


@pytest.mark.parametrize(("states", "combine"), [("'0,1'", "concat"), ("all", "sum"), ("all", "weighted")])
def test_features_of_several_hidden_states_have_the_same_losses_to_1e_6(begin: Start, states: str, combine: str) -> None:
    asked = [*MODES["features"], *TASKS["single"], f"finetune.states={states}", f"finetune.combine={combine}", "optimizer.lr=1e-2"]
    plain, cached = begin(*asked, "cache.use=never"), begin(*asked, "cache.use=always")
    assert cached.losses() == pytest.approx(plain.losses(), rel=1e-6, abs=1e-6)


def test_an_untied_head_that_learns_from_gpt_1s_auxiliary_loss_is_cut_above_the_last_block_and_has_the_same_losses(begin: Start) -> None:
    asked = [*MODES["features"], *TASKS["single"], "objective.weights.lm=0.5", "finetune.untie=true", "optimizer.lr=1e-2"]
    plain, cached = begin(*asked, "cache.use=never", of="gpt"), begin(*asked, "cache.use=always", of="gpt")
    assert cached.cut is not None
    assert (cached.cut.pooled, cached.cut.depth) == (False, 2)
    assert cached.losses() == pytest.approx(plain.losses(), rel=1e-6, abs=1e-6)


def test_an_auxiliary_loss_that_teaches_nothing_keeps_no_vectors_from_being_stored(begin: Start) -> None:
    asked = [*MODES["features"], *TASKS["single"], "cache.use=always"]
    plain, with_words = begin(*asked, of="gpt"), begin(*asked, "objective.weights.lm=0.5", of="gpt")
    assert with_words.cut is not None
    assert with_words.cut.pooled
    assert with_words.losses() == plain.losses()


@pytest.mark.parametrize("mode", MODES)
def test_the_validation_set_is_cached_too_and_its_numbers_are_the_same(begin: Start, mode: str) -> None:
    found = []
    for use in ("never", "always"):
        started = begin(*MODES[mode], *TASKS["pairs"], f"cache.use={use}")
        started.steps(2)
        started.job._evaluate()
        found.append(started.job.last_metrics)
        assert (started.job.validation_computed is not None) is (use == "always")
    assert found[1] == pytest.approx(found[0], rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("mode", ["last_layers", "features"])
def test_the_head_is_standardised_alike_with_the_cache_and_without(begin: Start, mode: str) -> None:
    asked = (
        ["finetune=features", *TASKS["single"]]
        if mode == "features"
        else ["finetune=features", *TASKS["single"], "objective.weights.lm=0.5", "finetune.untie=true"]
    )
    plain, cached = (begin(*asked, f"cache.use={use}", of="gpt") for use in ("never", "always"))
    heads = [pooled_head(started.job.saved) for started in (plain, cached)]
    assert heads[0] is not None
    assert heads[1] is not None
    assert torch.allclose(heads[0].mean, heads[1].mean, rtol=1e-5, atol=1e-6)
    assert torch.allclose(heads[0].scale, heads[1].scale, rtol=1e-5, atol=1e-6)
    assert bool((heads[0].scale != 1).all())
    assert pooled_head(cached.job.model).scale is heads[1].scale  # type: ignore[union-attr]


def test_the_head_is_standardised_where_there_is_no_float64(begin: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    real = PooledHead.before_standardising
    monkeypatch.setattr(PooledHead, "before_standardising", lambda self, vectors: without_float64(real(self, vectors)))
    head = pooled_head(begin("finetune=features", *TASKS["single"]).job.saved)
    assert head is not None
    assert bool((head.scale != 1).all())


@pytest.mark.parametrize(("mode", "of"), [("last_layers", "bert"), ("features", "gpt")])
def test_stored_in_bf16_each_number_is_off_by_its_rounding_and_no_more(begin: Start, mode: str, of: str) -> None:
    def read(dtype: str) -> torch.Tensor:
        started = begin(*MODES[mode], *TASKS["single"], "cache.use=always", f"cache.dtype={dtype}", of=of)
        computed = started.job.stages[0].computed
        assert isinstance(computed, frozen.Computed)
        return computed.stored.read(list(range(computed.stored.samples)))

    exact, rounded = read("fp32"), read("bf16")
    assert (exact.dtype, rounded.dtype) == (torch.float32, torch.bfloat16)
    # bf16 has 8 significant bits, so the nearest one is at most 2**-8 of the number away: its unit roundoff.
    off = (rounded.float() - exact).abs()
    assert bool((off <= 2.0**-8 * exact.abs()).all())
    assert float((off / exact.abs().clamp_min(1e-30)).max()) > 2.0**-10  # the guard: it was rounded


@pytest.mark.parametrize("mode", ["last_layers", "features"])
def test_stored_in_bf16_the_losses_are_near(begin: Start, mode: str) -> None:
    asked = [*MODES[mode], *TASKS["single"], "cache.use=always"]
    exact, rounded = begin(*asked).losses(), begin(*asked, "cache.dtype=bf16").losses()
    assert rounded != exact
    assert rounded == pytest.approx(exact, rel=2.0**-6)


# --- what is stored, and for whom -----------------------------------------------------------------------------------

LAST = (*MODES["last_layers"], *TASKS["single"], "cache.use=always")


def test_a_second_run_makes_nothing(begin: Start, states: Path, made: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    first = begin(*LAST)
    assert len(made) == SETS
    monkeypatch.setattr(frozen._Inputs, "__call__", lambda *_: pytest.fail("a sample was computed"))
    assert begin(*LAST).losses() == first.losses()
    assert len(made) == SETS


@pytest.mark.parametrize(
    "change",
    [
        ("seed=1",),
        ("optimizer.lr=1e-4",),
        ("trainer.batch_size=4",),
        ("trainer.max_steps=9",),
        ("objective.weights.class=2",),
        ("objective.label_smoothing=0.1",),
        ("model.pooling=cls",),
        ("finetune=layers", "finetune.address=last:1"),
    ],
)
def test_an_entry_is_shared_by_runs_whose_frozen_states_are_the_same(begin: Start, states: Path, made: list[Path], change: tuple[str, ...]) -> None:
    begin(*LAST)
    begin(*LAST, *change)
    assert len(made) == SETS


def changed(folder: Path, copy: Path, tensor: str | None = None, **config: Any) -> str:
    """A copy of a run's weights with one number, or a setting of its config, changed."""
    shutil.copytree(folder / "final", copy)
    (copy / "manifest.json").unlink()
    if tensor is not None:
        weights = safetensors.torch.load_file(copy / "model.safetensors")
        weights[tensor].view(-1)[0] += 1e-3
        (copy / "model.safetensors").write_bytes(safetensors.torch.save(weights, {"format": "pt"}))
    (copy / "config.json").write_text(json.dumps({**json.loads((copy / "config.json").read_text()), **config}))
    return f"model.checkpoint={copy}"


BF16_MARKS = pytest.mark.skipif(not has_bf16("cpu"), reason="this processor has no bf16")
BF16 = pytest.param("precision=bf16", marks=BF16_MARKS)


@pytest.mark.parametrize("change", ["data.seed=1", "data.max_length=20", "data.pairs=true", "cache.dtype=fp16", BF16])
def test_an_entry_is_not_shared_where_a_setting_changes_the_states(begin: Start, states: Path, made: list[Path], change: str) -> None:
    begin(*LAST)
    begin(*LAST, change)
    assert len(made) == len(set(made)) == 2 * SETS


def test_an_entry_is_not_shared_by_another_depth(begin: Start, states: Path, made: list[Path]) -> None:
    layers = ["finetune=layers", *TASKS["single"], "cache.use=always", "finetune.norm=true"]
    depths = [begin(*layers, f"finetune.address={address}", of="gpt").cut.depth for address in ("last:1", "none")]  # type: ignore[union-attr]
    assert depths == [1, 2]
    assert len(set(made)) == 2 * SETS


def test_an_entry_is_not_shared_by_another_question_to_the_same_rows(begin: Start, states: Path, made: list[Path]) -> None:
    both = (*LAST, "data.pairs=true")
    one, two = (begin(*both, f"objective.symmetric={value}") for value in ("false", "true"))
    assert len(set(made)) == 2 * SETS
    stored = [started.job.stages[0].computed.stored for started in (one, two)]  # type: ignore[union-attr]
    assert stored[1].sequences == 2 * stored[0].sequences == 2 * stored[0].samples


@pytest.mark.parametrize(
    ("tensor", "config", "makes"),
    [
        (None, {}, 0),
        ("bert.embeddings.word_embeddings.weight", {}, SETS),
        ("bert.encoder.layer.0.output.dense.bias", {}, SETS),
        ("bert.encoder.layer.1.output.dense.bias", {}, 0),  # it is above the cut
        (None, {"num_attention_heads": 4}, SETS),
        (None, {"layer_norm_eps": 1e-3}, SETS),
    ],
)
def test_an_entry_is_not_shared_by_other_weights_or_another_config(
    begin: Start, states: Path, made: list[Path], pretrained: Pretrained, tmp_path: Path, tensor: str | None, config: dict[str, Any], makes: int
) -> None:
    begin(*LAST)
    begin(*LAST, changed(pretrained("bert"), tmp_path / "copy", tensor, **config))
    assert len(set(made)) == SETS + makes


def test_an_entry_is_not_shared_by_another_tokenizer(begin: Start, states: Path, made: list[Path], pretrained: Pretrained, tmp_path: Path) -> None:
    # Two words change places: the same rows are other ids.
    other = changed(pretrained("bert"), tmp_path / "copy")
    path = tmp_path / "copy" / "tokenizer.json"
    content = json.loads(path.read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["fox"], vocabulary["dog"] = vocabulary["dog"], vocabulary["fox"]
    path.write_text(json.dumps(content))
    begin(*LAST)
    begin(*LAST, other)
    assert len(set(made)) == 2 * SETS


@pytest.mark.parametrize("name", [*frozen.SOURCES, "objective.classification"])
def test_an_entry_is_not_shared_by_another_code(ask: Ask, states: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    before, real = ask(*LAST).boundaries()[0], files.sha256
    entry = cache._entry(before.identity)
    source = Path(str(importlib.import_module(f"llmtrain.{name}").__file__))
    monkeypatch.setattr(files, "sha256", lambda path: "edited" if path == source else real(path))
    after = ask(*LAST).boundaries()[0]
    assert cache._entry(after.identity) != entry
    assert not after.made_with(before)


# What the code that makes states imports and the key leaves out: why no edit of it can change a state.
LEFT_OUT = {
    "checkpoint": "lists the tensors that are hashed",
    "data.base": "names kinds of answers",
    "data.loader": "hands out the rows that it is asked for, whose content is in the key",
    "data.store": "keeps examples, whose content is in the key",
    "errors": "says what is wrong",
    "files": "writes, and hashes",
    "finetune.base": "says what moves, and so at which depth",
    "model.base": "names kinds of heads; what is evaluated is in eval(), whatever else it does",
    "objective.baselines": "is told of rows, and knows nothing of the model",
    "objective.scores": "is told of answers",
    "runtime": "device and precision are in the key",
    "seeding": "static inputs are not drawn",
}


def test_all_that_the_code_of_states_imports_is_in_their_key_or_cannot_change_them() -> None:
    kinds = [f"objective.{kind}" for kind in groups()["objective"] if _kind(kind, Objective, "objective").static]
    assert "objective.next_token" in kinds
    paths = [PACKAGE.joinpath(*name.split(".")).with_suffix(".py") for name in (*frozen.SOURCES, *kinds)]
    used = {module.removeprefix("llmtrain.") for path in paths for module in imports(path)}
    assert used - {*frozen.SOURCES} == LEFT_OUT.keys()
    assert not LEFT_OUT.keys() & {*frozen.SOURCES}


@pytest.mark.parametrize(("buffer", "makes"), [("inv_freq", SETS), (None, 0)])
def test_an_entry_is_not_shared_by_other_buffers_that_came_with_the_weights(
    begin: Start, states: Path, made: list[Path], pretrained: Pretrained, tmp_path: Path, buffer: str | None, makes: int
) -> None:
    from transformers import AutoTokenizer, EsmConfig, EsmForMaskedLM

    tokenizer = AutoTokenizer.from_pretrained(pretrained("bert") / "final")
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "max_position_embeddings": 64}
    ids = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id, "mask_token_id": tokenizer.mask_token_id}
    EsmForMaskedLM(EsmConfig(**shape, **ids, position_embedding_type="rotary")).save_pretrained(tmp_path / "run" / "final")
    tokenizer.save_pretrained(tmp_path / "run" / "final")
    files.write_manifest(tmp_path / "run" / "final")
    begin(*LAST, f"model.checkpoint={tmp_path / 'run'}")
    stored = safetensors.torch.load_file(tmp_path / "run" / "final" / "model.safetensors")
    tensor = next(name for name in stored if name.endswith(buffer)) if buffer is not None else None
    begin(*LAST, changed(tmp_path / "run", tmp_path / "copy", tensor))
    assert len(set(made)) == SETS + makes


def test_the_code_of_an_entry_is_found_where_no_task_was_imported() -> None:
    asked = "import sys; from llmtrain import frozen; from llmtrain.objective.next_token import NextToken; print(frozen._code(NextToken), *sys.modules)"
    found, *imported = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True).stdout.split()
    assert "llmtrain.objective.tasks" not in imported  # else this shows nothing
    assert found == frozen._code(NextToken)


def test_two_models_that_follow_each_other_are_told_apart(begin: Start, states: Path, pretrained: Pretrained, tmp_path: Path) -> None:
    # Where a model was, Python may put the next one: nothing may be remembered by its address.
    for number in range(3):
        copy = changed(pretrained("bert"), tmp_path / f"copy{number}", "bert.encoder.layer.0.output.dense.bias")
        weights = safetensors.torch.load_file(tmp_path / f"copy{number}" / "model.safetensors")
        weights["bert.embeddings.LayerNorm.bias"] += number
        (tmp_path / f"copy{number}" / "model.safetensors").write_bytes(safetensors.torch.save(weights, {"format": "pt"}))
        begin(*LAST, copy)
    assert len(list(states.glob("*/manifest.json"))) == 3 * SETS


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("mode", ["last_layers", "features"])
def test_the_size_that_is_decided_on_is_what_is_written(begin: Start, states: Path, mode: str, task: str) -> None:
    cut = begin(*MODES[mode], *TASKS[task], "cache.use=always").cut
    assert cut is not None
    written = sum(path.stat().st_size for path in states.glob(f"*/{cache.STATES}")) / 1e9
    assert written > 0
    # The longest of a row's choices counts for each of them.
    assert written <= cut.decision.gigabytes * (1 + 1e-9) <= written * (1.2 if task == "multiple_choice" and mode == "last_layers" else 1 + 1e-6)


@pytest.mark.parametrize("mode", ["last_layers", "features"])
def test_a_damaged_entry_is_made_again_with_one_line(
    begin: Start, states: Path, made: list[Path], mode: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(frozen.log, "warning", lambda text, *rest: said.append(text % rest if rest else text))
    asked = [*MODES[mode], *TASKS["single"], "cache.use=always"]
    expected = begin(*asked).losses()
    path = made[0] / cache.STATES
    path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1]))
    assert begin(*asked).losses() == expected
    assert made.count(made[0]) == 2
    assert len(made) == SETS + 1
    lines = [line for line in said if "cache" in line]
    assert len(lines) == 1
    assert "states are made again: states.bin was changed" in lines[0]


def test_no_process_waits_for_another_in_a_collective_while_states_are_stored(ask: Ask, states: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A collective ends after distributed.timeout_s, which a pass may well take."""
    question = ask(*LAST)
    for name in ("main_process_first", "local_main_process_first", "wait_for_everyone"):
        monkeypatch.setattr(type(question.machine.accelerator), name, lambda *_: pytest.fail("all processes waited"))
    question.make(frozen.Cut(1, False, cache.Decision(True, "", 0)))
    assert len(list(states.glob("*/manifest.json"))) == SETS


SLOW = """
import time
from llmtrain import cache
real = cache._write_batch
cache._write_batch = lambda *given: (time.sleep(7), real(*given))
"""


@pytest.mark.long
def test_a_store_pass_of_two_processes_may_take_longer_than_they_wait_for_each_other(pretrained: Pretrained, states: Path, tmp_path: Path) -> None:
    (tmp_path / "slow").mkdir()
    (tmp_path / "slow" / "sitecustomize.py").write_text(SLOW)
    typed = [
        *tiny(*LAST, "devices=2", "distributed.timeout_s=15", base=TINY_FINETUNE),
        f"model.checkpoint={pretrained('bert')}",
        f"output_dir={tmp_path / 'run'}",
    ]
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path / 'slow'}{os.pathsep}{Path.cwd()}"}
    command = [sys.executable, "-W", "ignore", "-m", "llmtrain", "finetune", *typed]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert len(list(states.glob("*/manifest.json"))) == SETS
    assert json.loads((tmp_path / "run" / "run.json").read_text())["wall_seconds"] > 7 * SETS > 15


def test_what_is_put_into_a_batch_is_of_its_samples(begin: Start) -> None:
    started = begin(*MODES["features"], *TASKS["multiple_choice"], "cache.use=always")
    stage, job = started.job.stages[0], started.job
    rows = stage.train.with_format("arrow")

    def of(samples: list[int]) -> torch.Tensor:
        return collate(job.objective, 0, job.vocabulary, stage.computed, loader.read_rows(rows, samples), 0).inputs["features"]

    both = of([5, 2])
    assert both.shape[:2] == (4, 1)  # two choices a row, one hidden state
    assert torch.equal(both, torch.cat([of([5]), of([2])]))
    assert not torch.equal(both, of([2, 5]))


# --- many runs of one model ----------------------------------------------------------------------------------------

FEATURES = (*MODES["features"], *TASKS["single"], "cache.use=always")
# Runs of one pretrained model, each of which reads something else of it.
BESIDE: dict[str, list[tuple[str, ...]]] = {
    "bert_dropout": [LAST, FEATURES, (*FEATURES, "finetune.states='0,1'"), (*FEATURES, "model.pooling=cls"), (*LAST, "seed=5", "optimizer.lr=1e-2")],
    "gpt": [LAST, ("finetune=layers", "finetune.address=none", "finetune.norm=true", *TASKS["single"], "cache.use=always"), FEATURES],
}


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The batches that are computed for the store, as they are computed."""
    found: list[list[int]] = []
    call = frozen._Inputs.__call__
    monkeypatch.setattr(frozen._Inputs, "__call__", lambda self, samples: (found.append(samples), call(self, samples))[1])
    return found


def planned(questions: list[frozen.Question], members: int = 1) -> list[frozen.Cut | None]:
    return frozen.plan_together([(question, members) for question in questions])


def content(states: Path) -> dict[str, bytes]:
    return {str(path.relative_to(states)): path.read_bytes() for path in states.glob("*/*")}


@pytest.mark.parametrize("of", BESIDE)
def test_one_pass_makes_what_runs_of_one_model_read_and_each_has_the_losses_of_one_that_made_it_itself(
    ask: Ask, begin: Start, states: Path, batches: list[list[int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, of: str
) -> None:
    questions = [ask(*asked, of=of) for asked in BESIDE[of]]
    assert frozen.store_together(questions, planned(questions), pytest.fail)
    wanted = [len(cache.batches(loader.lengths(examples).tolist())) for examples in questions[0].sets]
    assert len(batches) == sum(wanted)  # each batch once, for all of them
    together = content(states)
    found = [begin(*asked, of=of).losses() for asked in BESIDE[of]]
    assert len(batches) == sum(wanted)
    monkeypatch.setenv("LLMTRAIN_CACHE", str(tmp_path / "another"))
    assert [begin(*asked, of=of).losses() for asked in BESIDE[of]] == found
    assert len(batches) > 2 * sum(wanted)
    assert content(tmp_path / "another" / cache.FOLDER) == together
    assert len({path.split("/")[0] for path in together}) == SETS * len({str(cut_of(q)) for q in questions})


def cut_of(question: frozen.Question) -> dict[str, Any]:
    return question.boundaries()[0].identity["what"]  # type: ignore[no-any-return]


@pytest.mark.parametrize("task", ["pairs", "symmetric", "multiple_choice"])
def test_one_pass_makes_of_several_sequences_for_each_example_what_single_runs_make(
    ask: Ask, begin: Start, states: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str
) -> None:
    asked = [[*MODES[mode], *TASKS[task], "cache.use=always"] for mode in ("last_layers", "features")]
    questions = [ask(*overrides) for overrides in asked]
    assert frozen.store_together(questions, planned(questions), pytest.fail)
    together = content(states)
    monkeypatch.setenv("LLMTRAIN_CACHE", str(tmp_path / "another"))
    for overrides in asked:
        begin(*overrides)
    assert content(tmp_path / "another" / cache.FOLDER) == together


@pytest.mark.parametrize(
    ("change", "passes"),
    [
        ((), 1),
        (("seed=1", "optimizer.lr=1e-2"), 1),
        (("data.max_length=20",), 2),
        pytest.param(("precision=bf16",), 2, marks=BF16_MARKS),
        (("cache.dtype=fp16",), 2),
        (("objective.label_smoothing=0.1",), 1),
    ],
)
def test_runs_share_a_pass_where_nothing_differs_that_states_depend_on(ask: Ask, states: Path, change: tuple[str, ...], passes: int) -> None:
    questions = [ask(*FEATURES), ask(*LAST, *change)]
    assert len(frozen._missing_passes(questions, planned(questions))) == SETS * passes


@pytest.mark.parametrize(("tensor", "passes"), [("bert.encoder.layer.1.output.dense.bias", 2), ("bert.embeddings.word_embeddings.weight", 2), (None, 1)])
def test_runs_of_other_weights_below_the_boundary_do_not_share_a_pass(
    ask: Ask, begin: Start, states: Path, pretrained: Pretrained, tmp_path: Path, tensor: str | None, passes: int
) -> None:
    other = changed(pretrained("bert"), tmp_path / "copy", tensor)
    questions = [ask(*FEATURES), ask(*FEATURES, "model.pooling=cls", other)]
    cuts = planned(questions)
    assert len(frozen._missing_passes(questions, cuts)) == SETS * passes
    assert frozen.store_together(questions, cuts, pytest.fail)
    assert begin(*FEATURES, "model.pooling=cls", other).losses() == begin(*FEATURES, "model.pooling=cls", other, "cache.use=never").losses()


def test_a_run_whose_own_weights_differ_above_the_boundary_alone_shares_the_pass_of_a_deeper_one(
    ask: Ask, states: Path, pretrained: Pretrained, tmp_path: Path
) -> None:
    other = changed(pretrained("bert"), tmp_path / "copy", "bert.encoder.layer.1.output.dense.bias")
    questions = [ask(*FEATURES), ask(*LAST, other)]
    assert len(frozen._missing_passes(questions, planned(questions))) == SETS


def test_weights_that_several_models_share_are_hashed_once(ask: Ask, states: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    questions = [ask(*FEATURES), ask(*LAST)]
    for (_, one), (_, two) in zip(questions[0].model.named_parameters(), questions[1].model.named_parameters(), strict=True):
        two.data = one.data
    hashed: list[int] = []
    digest = cache.tensor_digest
    monkeypatch.setattr(cache, "tensor_digest", lambda tensor: (hashed.append(tensor.data_ptr()), digest(tensor))[1])
    planned(questions)
    assert len(hashed) == len(set(hashed)) > 10


def test_a_plan_for_many_runs_stores_what_would_not_pay_for_one(ask: Ask, states: Path) -> None:
    question = ask(*MODES["last_layers"], *TASKS["single"], "cache.use=auto", "trainer.max_steps=8", "evaluation.every_steps=null")
    one, many = question.plan(), planned([question], 50)[0]
    assert one is not None
    assert many is not None
    assert (one.decision.use, many.decision.use) == (False, True)
    assert "for 50 runs" in many.decision.why
    assert not states.exists()


@pytest.mark.parametrize(
    ("changes", "use"), [({}, True), ({"threads": 2}, True), ({"threads": 64}, False), ({"device": "cuda"}, False), ({"device": "mps"}, False)]
)
def test_on_a_device_to_which_the_disk_is_slow_auto_computes_again(ask: Ask, states: Path, changes: dict[str, Any], use: bool) -> None:
    question = ask(*MODES["last_layers"], *TASKS["single"], "cache.use=auto", "trainer.max_steps=200")
    cut = dataclasses.replace(question, machine=dataclasses.replace(question.machine, **changes)).plan()
    assert cut is not None
    assert cut.decision.use == use


@pytest.mark.parametrize(("flags", "flops"), [((), 4 * cache.FLOPS), (("amx_bf16",), 4 * frozen.AMX_FLOPS)])
def test_a_processor_with_matrix_units_is_faster_in_bf16_alone(ask: Ask, monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...], flops: float) -> None:
    monkeypatch.setattr(frozen, "cpu_flags", lambda: set(flags))
    machine = dataclasses.replace(ask(*LAST).machine, threads=4)
    assert frozen.flops(machine) == 4 * cache.FLOPS
    assert frozen.flops(dataclasses.replace(machine, precision=runtime.Precision.bf16)) == flops


def test_what_is_not_used_is_not_stored(ask: Ask, states: Path) -> None:
    questions = [ask(*MODES["features"], *TASKS["single"], "cache.use=never"), ask(*TASKS["single"], "finetune=full"), ask(*LAST)]
    cuts = planned(questions)
    assert [cut.decision.use if cut is not None else None for cut in cuts] == [False, None, True]
    assert frozen.store_together(questions, cuts, pytest.fail)
    assert len(list(states.glob("*/manifest.json"))) == SETS


def test_progress_goes_over_all_passes_and_nothing_is_computed_twice(ask: Ask, states: Path, batches: list[list[int]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "BATCH_TOKENS", 200)
    questions, told = [ask(*LAST), ask(*FEATURES, "data.max_length=20")], list[tuple[int, int]]()
    cuts = planned(questions)
    assert frozen.store_together(questions, cuts, pytest.fail, progress=lambda done, total: told.append((done, total)))
    assert told == [(done, len(batches)) for done in range(1, len(batches) + 1)]
    assert len(batches) > 2 * 2 * SETS
    number = len(batches)
    assert frozen.store_together(questions, cuts, pytest.fail)
    assert len(batches) == number


@pytest.mark.parametrize("after", [0, 1, 9])
def test_stored_together_until_interrupted_nothing_is_half_made_and_the_rest_is_made_later(
    ask: Ask, states: Path, batches: list[list[int]], monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    monkeypatch.setattr(cache, "BATCH_TOKENS", 200)
    questions = [ask(*LAST), ask(*FEATURES)]
    cuts = planned(questions)
    assert not frozen.store_together(questions, cuts, pytest.fail, interrupted=lambda: len(batches) >= after)
    assert len(batches) == after
    kept = {path.name for path in states.iterdir() if path.is_dir()}
    assert all((states / name / "manifest.json").exists() for name in kept)
    assert len(kept) == (4 if after == 9 else 0)  # of the two boundaries, what was complete
    assert frozen.store_together(questions, cuts, pytest.fail)
    assert len(list(states.glob("*/manifest.json"))) == 2 * SETS


def test_the_test_is_stored_like_the_others_and_counts_as_gone_through_once(ask: Ask, states: Path) -> None:
    asked = [*LAST, "trainer.max_steps=20", "evaluation.every_steps=5"]
    with_test, without = ask(*asked), ask(*asked, "evaluation.test=false")
    made = [question.make(frozen.Cut(1, False, cache.Decision(True, "", 0))) for question in (with_test, without)]
    assert made[1].test is None
    assert made[0].test is not None
    assert made[0].test.stored.samples == len(with_test.test or ()) > 0
    assert made[0].validation == made[1].validation
    tokens = [int(loader.lengths(examples).sum()) for examples in with_test.sets]
    cases = [frozen._case(question.boundaries(), 1, {}) for question in (with_test, without)]
    assert cases[0].passes * sum(tokens) - cases[1].passes * sum(tokens[:2]) == pytest.approx(tokens[2])


# --- how long a run takes -------------------------------------------------------------------------------------------


def test_what_storing_costs_is_said_before_and_is_nothing_afterwards(ask: Ask, states: Path) -> None:
    questions = [ask(*LAST), ask(*FEATURES), ask(*LAST, "seed=3")]
    cuts = planned(questions)
    cost = frozen.store_cost(questions, cuts, 1e-6)
    frozen.store_together(questions, cuts, pytest.fail)
    assert cost.gigabytes * 1e9 == pytest.approx(sum(path.stat().st_size for path in states.glob(f"*/{cache.STATES}")))
    tokens = sum(int(loader.lengths(examples).sum()) for examples in questions[0].sets)
    assert cost.seconds == pytest.approx(2 * tokens * 1e-6 + cache.WRITE_S * cost.gigabytes)  # the deepest of two blocks
    assert frozen.store_cost(questions, cuts, 1e-6) == frozen.Cost(0, 0)


def slow(question: frozen.Question, cut: frozen.Cut | None = None) -> float:
    """Forwards of a block over a token of the training examples, as `seconds` counts them, where nothing else takes time."""
    trained = question.passes * loader.lengths(question.stages[0].train).sum()
    judged = (loader.lengths(question.validation) * question.evaluations).sum() + loader.lengths(question.test).sum()  # type: ignore[arg-type]
    whole = (frozen.seconds(question, cut, 1.0) - frozen.seconds(question, cut, 0.0)) / float(trained)
    return whole - float(judged / trained) * (2 if cut is None else 2 - cut.depth)


@pytest.mark.parametrize(
    ("mode", "forwards"),
    [
        (("finetune=full",), 6),  # two blocks, each forward and twice backward
        (("finetune=last_layers", "finetune.blocks=1"), 4),
        (("finetune=features",), 2),
        (("finetune=layers", "finetune.address=first:1"), 5),  # the second block does not learn, yet hands gradients down
        (("finetune=lp_ft", "finetune.head_share=0.25"), 0.25 * 2 + 0.75 * 6),
    ],
)
def test_a_run_is_said_to_take_what_its_blocks_do(ask: Ask, mode: tuple[str, ...], forwards: float) -> None:
    assert slow(ask(*TASKS["single"], *mode, "trainer.max_steps=20")) == pytest.approx(forwards)


def test_adapters_cost_less_than_the_blocks_they_stand_in(ask: Ask) -> None:
    assert 4 < slow(ask(*TASKS["single"], "finetune=lora")) < 6


@pytest.mark.parametrize(("asked", "forwards"), [(LAST, 3), (FEATURES, 0)])
def test_what_is_read_from_the_cache_is_not_counted_as_computed(ask: Ask, states: Path, asked: tuple[str, ...], forwards: float) -> None:
    question = ask(*asked, "trainer.max_steps=20")
    assert slow(question, question.plan()) == pytest.approx(forwards)
    assert frozen.seconds(question, question.plan(), 0) > frozen.seconds(question, None, 0)  # what reading takes


@pytest.mark.parametrize("objective", ["masked_lm", "next_token"])
def test_a_run_without_a_cut_has_its_estimate_too(ask: Ask, objective: str) -> None:
    question = ask(f"objective={objective}", "finetune=full", of="gpt" if objective == "next_token" else "bert")
    assert question.plan() is None
    assert frozen.seconds(question, None, frozen.measure(question)) > 0


def test_the_measure_is_of_one_block_and_one_token_and_is_the_median_of_its_batches(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    question, timed = ask(*LAST), list[int]()
    lengths = loader.lengths(question.stages[0].train)

    def seconds(self: Any, samples: list[int]) -> float:
        timed.append(len(samples))
        return 7e-6 * float(lengths[samples].sum()) * (100 if len(timed) % 7 == 0 else 1)

    monkeypatch.setattr(frozen._Stopwatch, "seconds", seconds)
    assert frozen.measure(question) == pytest.approx(7e-6 / 2)
    assert len(timed) > frozen.MEASURED
    assert timed[-1] > timed[0]


@pytest.mark.parametrize("per_token", [1e-6, 1e-3])
def test_measuring_takes_few_seconds_however_slow_the_model_is(ask: Ask, monkeypatch: pytest.MonkeyPatch, per_token: float) -> None:
    question, taken = ask(*LAST), list[float]()
    lengths = loader.lengths(question.stages[0].train)
    monkeypatch.setattr(frozen._Stopwatch, "seconds", lambda self, samples: (taken.append(per_token * float(lengths[samples].sum())), taken[-1])[1])
    frozen.measure(question)
    assert sum(taken) < 2 * frozen.MEASURE_S


def test_measuring_leaves_the_model_and_the_random_numbers_as_they_were(ask: Ask) -> None:
    question = ask(*MODES["last_layers"], *TASKS["single"], of="bert_dropout")
    question.model.train()
    before = {name: tensor.clone() for name, tensor in question.model.state_dict().items()}
    drawn = torch.get_rng_state()
    assert frozen.measure(question) > 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in question.model.state_dict().items())
    assert all(module.training for module in question.model.modules())
    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(parameter.grad is None for parameter in question.model.parameters())


# --- where nothing is computed once ---------------------------------------------------------------------------------

NEVER = {
    "masked_lm": ("objective=masked_lm", "finetune=last_layers", "finetune.blocks=1"),
    "full": (*TASKS["single"], "finetune=full"),
    "gradual": (*TASKS["single"], "finetune=gradual"),
    "lp_ft": (*TASKS["single"], "finetune=lp_ft"),
    "every block": (*TASKS["single"], "finetune=last_layers", "finetune.blocks=2"),
}


@pytest.mark.parametrize("name", NEVER)
def test_what_moves_or_is_drawn_anew_is_never_cached(begin: Start, states: Path, name: str) -> None:
    started = begin(*NEVER[name], "cache.use=auto")
    assert started.cut is None
    assert started.job.model is started.job.saved
    assert not states.exists()
    with pytest.raises(ConfigError, match=r"cache\.use=always") as caught:
        begin(*NEVER[name], "cache.use=always")
    assert caught.value.exit_code == 2
    assert caught.value.fix == "cache.use=auto"


def test_never_is_never_and_looks_at_no_weights(begin: Start, states: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "tensor_digest", lambda tensor: pytest.fail("weights were hashed"))
    cut = begin(*MODES["features"], *TASKS["single"], "cache.use=never").cut
    assert cut is not None
    assert not cut.decision.use
    assert not states.exists()


# --- whole runs -----------------------------------------------------------------------------------------------------


def resolved(run: Path) -> dict[str, Any]:
    return yaml.safe_load((run / "resolved.yaml").read_text())  # type: ignore[no-any-return]


def test_cache_use_always_without_anything_to_compute_once_exits_2(pretrained: Pretrained, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    typed = [*tiny(*NEVER["full"], base=TINY_FINETUNE), f"model.checkpoint={pretrained('bert')}"]
    assert main(["finetune", *typed, "cache.use=always", f"output_dir={tmp_path / 'run'}"]) == 2
    assert "every block moves in some phase" in capsys.readouterr().err


@pytest.mark.parametrize("use", ["always", "auto"])
def test_of_a_model_that_cannot_be_cut_that_is_said_and_why(
    pretrained: Pretrained, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, use: str
) -> None:
    monkeypatch.setattr("llmtrain.model.anatomy._uncut", lambda *_: "its blocks hand on more than their hidden states")
    typed = [*tiny(*MODES["last_layers"], "trainer.max_steps=1", base=TINY_FINETUNE), f"model.checkpoint={pretrained('bert')}"]
    capsys.readouterr()
    assert main(["finetune", *typed, f"cache.use={use}", f"output_dir={tmp_path / 'run'}"]) == (2 if use == "always" else 0)
    said = capsys.readouterr()
    why = "this bert model cannot be cut between its blocks (its blocks hand on more than their hidden states)"
    if use == "always":
        assert f"cache.use=always: {why}, so nothing can be computed once" in said.err
    else:
        assert f"nothing is computed once: {why}" in " ".join(said.out.replace("│", "").split())


def test_a_head_that_reads_lower_states_is_not_taken_over_where_blocks_above_them_are_trained(finetune: Train, begin: Start, tmp_path: Path) -> None:
    """They would count as trained, and nothing would read them."""
    first = finetune(tmp_path / "features", *MODES["features"], *TASKS["single"], "finetune.states='0,1'", "trainer.max_steps=2")
    started = begin(*MODES["last_layers"], *TASKS["single"], f"model.checkpoint={first}", "cache.use=always")
    assert pooled_head(started.job.saved).states == (2,)  # type: ignore[union-attr]
    assert started.cut is not None


@pytest.mark.parametrize("mode", ["last_layers", "features"])
def test_what_is_computed_once_and_what_it_costs_is_said_before_it_is_computed(
    finetune: Train, states: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    said: list[str] = []
    make = frozen.Question.make
    monkeypatch.setattr(frozen.Question, "make", lambda *args: (said.append(" ".join(capsys.readouterr().out.split())), make(*args))[1])
    finetune(tmp_path / "run", *MODES[mode], *TASKS["single"], "cache.use=always", "trainer.max_steps=2")
    assert len(said) == 1
    assert re.search("cache.use=always: .* blocks, .*passes cost", said[0].replace("│", ""))
    assert "block.0" in said[0]  # the map


def test_a_refused_resume_computes_nothing(finetune: Train, states: Path, made: list[Path], tmp_path: Path) -> None:
    run = finetune(tmp_path / "run", *LAST, "trainer.max_steps=2")
    shutil.rmtree(states)
    made.clear()
    with pytest.raises(LLMTrainError, match=r"optimizer\.lr"):
        finetune(run, *LAST, "trainer.max_steps=4", "optimizer.lr=1e-4")
    assert made == []


@pytest.mark.parametrize("mode", ["last_layers", "features"])
def test_the_proof_of_freezing_holds_with_the_cache(finetune: Train, tmp_path: Path, mode: str) -> None:
    runs = {use: finetune(tmp_path / use, *MODES[mode], *TASKS["pairs"], f"cache.use={use}", "optimizer.lr=1e-2") for use in ("always", "never")}
    proofs = {use: json.loads((run / "run.json").read_text())["freezing"] for use, run in runs.items()}
    assert proofs["always"] == proofs["never"]
    assert proofs["always"]["frozen"] == proofs["always"]["frozen_unchanged"] > 0
    assert proofs["always"]["trainable"] == proofs["always"]["trainable_moved"] > 0
    assert {use: resolved(run)["cache"]["use"] for use, run in runs.items()} == {"always": "always", "never": "never"}


@pytest.mark.parametrize(("mode", "worth", "decided"), [("features", 1.05, "always"), ("last_layers", 1e9, "never"), ("last_layers", 0.0, "always")])
def test_a_resume_keeps_the_decision_and_the_bits(
    finetune: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, mode: str, worth: float, decided: str
) -> None:
    asked = [*MODES[mode], *TASKS["single"], "cache.use=auto", "checkpoint.keep_last=9", "trainer.max_steps=4", "checkpoint.every_steps=2"]
    monkeypatch.setattr(cache, "WORTH", worth)
    run = finetune(tmp_path / "run", *asked)
    assert resolved(run)["cache"]["use"] == decided
    whole = outcome(run)
    shutil.rmtree(checkpoint.listed(run)[0])
    shutil.rmtree(run / "final")
    (run / "checkpoints" / "best").unlink(missing_ok=True)
    monkeypatch.setattr(cache, "WORTH", 0.0 if worth > 1 else 1e9)  # today it would decide otherwise
    used: list[bool] = []
    make = frozen.Question.make
    monkeypatch.setattr(frozen.Question, "make", lambda *args: (used.append(True), make(*args))[1])
    capsys.readouterr()
    finetune(run, *asked)
    said = " ".join(capsys.readouterr().out.replace("│", "").split())
    assert "as cache.use=auto decided at the first start: " in said
    assert f"cache.use={decided}:" not in said  # nobody gave it
    assert used == [True] * (decided == "always")
    assert resolved(run)["cache"]["use"] == decided
    assert outcome(run) == whole
