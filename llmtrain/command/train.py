"""Train: what `pretrain` does, read from top to bottom like a recipe."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import platform
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

import llmtrain
from llmtrain import checkpoint, files, runtime
from llmtrain.callback.base import Callback
from llmtrain.config import Composed, build, check_keys
from llmtrain.data.base import Data
from llmtrain.data.tokenizer import TOKENS, TRAINED, TokenizerSettings
from llmtrain.errors import CheckpointError, ConfigError, DataError, LLMTrainError, Stopped, printable
from llmtrain.finetune.base import Finetune
from llmtrain.model.base import Attention, Head, Model, no_separation
from llmtrain.objective.base import Objective
from llmtrain.optimizer import Optimizer
from llmtrain.runtime import Runtime
from llmtrain.schedule.base import Schedule
from llmtrain.seeding import key
from llmtrain.state import RunState
from llmtrain.trainer import Evaluation, Settings as TrainerSettings, Stage, Trainer

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from llmtrain.model.anatomy import Anatomy

log = logging.getLogger("llmtrain")

# Keys that a resume may change: they say how long and how often, not what is learned.
FREE = (
    "name", "output_dir", "resume", "devices", "threads", "distributed", "callback", "evaluation", "checkpoint", "data.num_workers",
    "trainer.max_steps", "trainer.max_epochs", "trainer.max_tokens", "trainer.log_every_steps", "trainer.micro_batch_size",
    "derived.total_steps", "derived.total_tokens",
)  # fmt: skip
# Of these, the ones that change the bits all the same.
BITS = ("devices", "threads", "trainer.micro_batch_size", "trainer.max_steps", "trainer.max_epochs", "trainer.max_tokens")


@dataclass(frozen=True)
class Parts:
    """Every part of a run as a checked object. Nothing is loaded yet, and neither torch nor transformers imported."""

    runtime: runtime.Settings
    model: Model
    objective: Objective
    data: Data
    finetune: Finetune
    schedule: Schedule
    tokenizer: TokenizerSettings
    optimizer: Optimizer
    trainer: TrainerSettings
    evaluation: Evaluation
    checkpoint: checkpoint.Settings
    callbacks: list[Callback]


def parts(config: DictConfig) -> Parts:
    """Build every part, so that every setting is checked before anything is downloaded or allocated.

    Raises:
        ConfigError: naming the key.
    """
    own = {f.name for f in dataclasses.fields(runtime.Settings)}
    named = {f.name for f in dataclasses.fields(Parts)} - {"runtime", "callbacks"}
    check_keys(config, own | named | {"callback", "experiment"}, named | {"callback"})
    top = OmegaConf.create({name: config._get_node(name) for name in own if name in config}, parent=None)
    bases: dict[str, type[Any]] = {
        "model": Model,
        "objective": Objective,
        "data": Data,
        "finetune": Finetune,
        "schedule": Schedule,
        "tokenizer": TokenizerSettings,
        "optimizer": Optimizer,
        "trainer": TrainerSettings,
        "evaluation": Evaluation,
        "checkpoint": checkpoint.Settings,
    }
    built = {name: build(config[name], base, name) for name, base in bases.items()}
    callbacks = [build(node, Callback, f"callback.{name}") for name, node in config.callback.items()]
    found = Parts(runtime=build(top, runtime.Settings, ""), callbacks=callbacks, **built)
    check(found)
    return found


def check(parts: Parts) -> None:
    """What no part can know alone, as far as it can be known without reading weights or data."""
    metrics = list(parts.objective.metric_directions)
    if parts.evaluation.best_metric not in metrics:
        raise ConfigError(f"evaluation.best_metric={parts.evaluation.best_metric}: the objective has no such metric", allowed=", ".join(metrics))
    parts.trainer.micro_size(parts.runtime.processes)
    if parts.tokenizer.path is None and parts.model.tokenizer_path is None:  # else the tokenizer is loaded, and asked then
        trained = parts.tokenizer.trained(parts.model.tokenizer_algorithm)
        lacking = [TOKENS[name] for name in parts.objective.tokens if name not in TRAINED[trained]]
        if lacking and fit_each_other(parts):
            raise ConfigError(
                f"tokenizer.algorithm={trained} makes no {' and no '.join(lacking)} token, which the objective needs",
                allowed=", ".join(a for a, made in TRAINED.items() if made.issuperset(parts.objective.tokens)),
            )
    if parts.model.tokenizer_path is None:  # else it takes the config of the weights, which is read later
        fits(parts)


def fits(parts: Parts) -> None:
    """Whether the model can answer the objective, on sequences of this length."""
    limit = parts.model.positions
    refuse_wrong_pair(parts.model, parts.objective)
    for name, length in (("data.max_length", parts.data.max_length), ("data.short_length", parts.data.short_length)):
        if length is not None and length < parts.objective.shortest:
            raise ConfigError(f"{name}={length}: no sequence of the objective fits", allowed=f"{parts.objective.shortest} or more")
    if parts.objective.separates and parts.model.separates is False:
        raise no_separation("this model")
    if limit is not None and parts.data.max_length > limit:
        raise ConfigError(
            f"data.max_length={parts.data.max_length}: the model reads at most {limit} positions",
            fix=f"data.max_length={limit}, or a larger model.max_position_embeddings",
        )


PAIRS = "objective=next_token with causal models (GPT, Llama, …); masked_lm with bidirectional ones; sentence_order and bert with BERT's relatives"


def fit_each_other(parts: Parts) -> bool:
    return parts.objective.attention in (None, parts.model.attention)


def refuse_wrong_pair(model: Model, objective: Objective) -> None:
    """Whether a model can answer an objective at all.

    Raises:
        ConfigError: with the table of pairs that go together.
    """
    wanted = objective.attention
    if wanted is not None and model.attention is not wanted:
        suits = {Attention.causal: "model=gpt_tiny, or objective=masked_lm", Attention.bidirectional: "model=bert_mini, or objective=next_token"}
        raise ConfigError(f"the objective asks for a {wanted.value} model, this one is {model.attention.value}", allowed=PAIRS, fix=suits[wanted])
    if not model.wears(objective.head):
        what = {Head.sentence_order: "head for pairs of segments", Head.pretraining: "class with a masked-LM head and a head for pairs of segments"}
        raise ConfigError(f"transformers has no {what.get(objective.head, 'language-model head')} for this model's family", allowed=PAIRS)


def without_effect(parts: Parts, given: set[str]) -> list[str]:
    """A line for each key that the user gave and that changes nothing."""
    found: dict[str, str] = {}
    for name in ("objective", "data", "schedule"):
        found |= {f"{name}.{key}": why for key, why in getattr(parts, name).without_effect().items()}
    if parts.tokenizer.path is not None or parts.model.tokenizer_path is not None:
        found |= dict.fromkeys(("tokenizer.vocab_size", "tokenizer.algorithm"), "the tokenizer is loaded, not trained")
    if parts.runtime.processes == 1:
        found["distributed.timeout_s"] = "there is one process"
    if parts.model.tokenizer_path is None:
        found["tokenizer.resize"] = "a model that starts from nothing is made to fit its tokenizer"
    return [f"{key} has no effect: {why}" for key, why in found.items() if key in given]


def advice(parts: Parts) -> list[str]:
    """What is allowed and seldom meant."""
    unit = getattr(getattr(parts.data, "documents", None), "value", None)
    if "sentence_order" in parts.objective.terms and unit in ("line", "blank_line"):
        return [f"data.documents={unit}: in short documents the first word tells the order of sentences; data.documents=file or chapter are meant for this"]
    return []


# --- where it runs ------------------------------------------------------------------------------------------------

INVOCATION = ".invocation.yaml"  # the config of the command that is running, for the processes it starts


def start(composed: Composed, overrides: list[str], verb: str) -> int:
    """Check everything, make the folder, and run here or in several processes. Returns the exit code."""
    built = parts(composed.config)
    notes = composed.notes + without_effect(built, composed.given) + advice(built)
    if runtime.in_worker():
        return _start_as_rank(composed.config, overrides, verb, built.runtime)
    for line in notes:
        print(f"note: {line}")
    name_newest(composed.config)
    if built.runtime.processes == 1:  # several find out themselves: this process then never imports torch
        runtime.check(built.runtime)
        fits(parts(composed.config))
    folder = run_folder(verb, built.runtime)
    with runtime.locked(folder):
        write_config(folder, composed.config, overrides)
        if built.runtime.processes > 1:
            files.write(folder / INVOCATION, OmegaConf.to_yaml(composed.config).encode())
            return runtime.launch(folder, verb, built.runtime)
        run(composed.config, verb, folder)
    return 0


def _start_as_rank(config: DictConfig, overrides: list[str], verb: str, settings: runtime.Settings) -> int:
    """One of several processes that torchrun or `accelerate launch` started: the main one decides the folder."""
    rank, shared = int(os.environ["RANK"]), runtime.rendezvous(settings)
    said: tuple[Path | None, LLMTrainError | None] = (None, None)
    lock = contextlib.ExitStack()
    if rank == 0:
        try:
            name_newest(config)
            folder = run_folder(verb, settings)
            lock.enter_context(runtime.locked(folder))
            write_config(folder, config, overrides)
            said = (folder, None)
        except LLMTrainError as error:
            said = (None, error)
    folder_or_none, error_or_none = shared(said)
    with lock:
        if error_or_none is not None or folder_or_none is None:
            if rank == 0 and error_or_none is not None:
                print(error_or_none.screen(), file=sys.stderr)
            return error_or_none.exit_code if error_or_none else 1
        return run_as_rank(config, verb, folder_or_none)


def run_as_rank(config: DictConfig, verb: str, folder: Path) -> int:
    """Train as one of several processes; the last word is left in the folder, for the command that started all."""
    rank = int(os.environ.get("RANK", "0"))
    try:
        run(config, verb, folder)
    except LLMTrainError as error:
        runtime.leave_result(folder, rank, error)
        if rank == 0 and not runtime.launched_by_us():
            print(error.screen(), file=sys.stderr)
        return error.exit_code
    except Exception as error:
        traceback.print_exc()  # into torchrun.log where we started the processes
        fault = LLMTrainError(
            f"{type(error).__name__} on rank {rank}: {(str(error).splitlines() or ['no message'])[0][:300]}",
            fix="this is a fault of llmtrain: torchrun.log in the run's folder shows where",
        )
        runtime.leave_result(folder, rank, fault)
        return fault.exit_code
    finally:
        runtime.leave_group()
    runtime.leave_result(folder, rank, None)
    return 0


def name_newest(config: DictConfig) -> None:
    """Replace `model.checkpoint: newest` by the run that it means, and say so."""
    if config.model.get("checkpoint") == "newest":
        config.model.checkpoint = str(runtime.newest_run())
        print(f"model.checkpoint=newest is {config.model.checkpoint}")


# --- the recipe ---------------------------------------------------------------------------------------------------


def run(config: DictConfig, verb: str, folder: Path) -> None:
    """Train in `folder`, on this process or as one of several."""
    built = parts(config)
    fits(built)
    stored = _stored(folder)
    settings = _as_stored(built.runtime, stored)
    machine = runtime.start(settings, built.model.width)
    with _recorded(machine, folder, verb) as record, runtime.logging_to(machine, folder), runtime.stopping_on_signals(machine.signalled):
        resume = machine.broadcast(find_resume(folder, settings) if machine.main else None)
        tokenizer, stages, validation = _data(built, machine, folder)
        model = _model(built, machine, tokenizer, settings.seed)
        anatomy = _anatomy(model, built.finetune)
        model = built.finetune.prepare(model, anatomy)
        phases = built.finetune.plan(anatomy)
        started = {name: checkpoint.tensor_sha256(t) for name, t in checkpoint.tensors(model).items()}
        job = _trainer(built, machine, model, phases, stages, validation, tokenizer, folder, resume)
        resolved = _resolved(config, built, machine, job, tokenizer)
        job.config = resolved
        _settle(machine, folder, stored, resolved, resume)
        if resume and _already_complete(machine, job, resume):
            record.skip = True
            return
        _panel(built, machine, job, model, anatomy, folder)
        state = job.fit()
        record.content |= _results(built, machine, job, state, model, started, phases, anatomy.unused)
        if machine.main:
            _export(built, job, model, tokenizer, folder, record.content)
            _goodbye(machine, job, state, model, tokenizer, folder, record.content, settings.seed)
        machine.accelerator.wait_for_everyone()


def find_resume(folder: Path, settings: runtime.Settings) -> Path | None:
    """The checkpoint to go on from, as `resume` says.

    Raises:
        ConfigError, CheckpointError: a folder that is no run, a run that may not be continued, or none to continue.
    """
    if settings.resume not in ("auto", "never", "must"):
        path = Path(settings.resume)
        if checkpoint.STEP.fullmatch(path.name) or (path / files.MANIFEST).is_file():
            wrong = files.problem(path) if path.is_dir() else "no such folder"
            if wrong:
                raise CheckpointError(f"resume={path}: {wrong}", fix="resume=auto takes the newest checkpoint that is intact")
            return path
        found = checkpoint.newest(path)
        if found is None:
            raise CheckpointError(f"resume={path}: no checkpoint there", fix="resume=auto starts a run that has none")
        return found
    found = None if settings.resume == "never" else checkpoint.newest(folder)
    if settings.resume == "must" and found is None:
        raise CheckpointError(f"resume=must: {folder} has no checkpoint", fix="resume=auto starts a run that has none")
    return found


def run_folder(verb: str, settings: runtime.Settings) -> Path:
    """The folder of this run: new, or the one to continue."""
    return continued(settings) or runtime.new_run_folder(verb, settings)


def continued(settings: runtime.Settings) -> Path | None:
    """The run that is continued; None for a new one. Nothing is made.

    Raises:
        ConfigError: `output_dir` holds something that is not a run, or a run that `resume` does not allow.
        CheckpointError: `resume` names or insists on a run that is not there.
    """
    folder = Path(settings.output_dir) if settings.output_dir else None
    if settings.resume not in ("auto", "never", "must"):
        path = Path(settings.resume)
        home = path.parent.parent if checkpoint.STEP.fullmatch(path.resolve().name) else path
        if not (home / "config.yaml").is_file():
            raise CheckpointError(
                f"resume={path}: not a run or a checkpoint of one", allowed="auto, never, must, a run's folder, or one of its checkpoints/step-…"
            )
        if folder is not None and folder.resolve() != home.resolve():
            raise ConfigError(f"output_dir={folder} is not the run of resume={path}", fix="give one of the two")
        return home
    is_run = folder is not None and (folder / "config.yaml").is_file()
    if is_run and settings.resume == "never":
        raise ConfigError(f"output_dir={folder} is a run already, and resume=never", fix="another output_dir, or resume=auto to go on")
    if settings.resume == "must" and not is_run:
        raise CheckpointError(f"resume=must: {folder or 'a new folder'} is not a run", fix="output_dir=FOLDER names the run; resume=auto starts one")
    if folder is not None and folder.exists() and not folder.is_dir():
        raise ConfigError(f"output_dir={folder} is not a folder")
    if folder is not None and not is_run and folder.is_dir() and any(not p.name.startswith(".lock") for p in folder.iterdir()):
        raise ConfigError(f"output_dir={folder} is not empty and not a run", fix="name a new or empty folder: nothing of yours is overwritten")
    return folder if is_run else None


def write_config(folder: Path, config: DictConfig, overrides: list[str]) -> None:
    """config.yaml as composed, once; overrides.txt: one invocation a line."""
    if not (folder / "config.yaml").is_file():
        files.write(folder / "config.yaml", OmegaConf.to_yaml(config).encode())
    with (folder / "overrides.txt").open("a", encoding="utf-8") as file:
        file.write(" ".join(overrides) + "\n")


# --- its steps, in their order ------------------------------------------------------------------------------------


def _stored(folder: Path) -> dict[str, Any] | None:
    """resolved.yaml of a run that was started before; None for a new one."""
    path = folder / "resolved.yaml"
    if not path.is_file():
        return None
    return dict(OmegaConf.to_container(OmegaConf.load(path), resolve=False))  # type: ignore[arg-type]


def _as_stored(settings: runtime.Settings, stored: dict[str, Any] | None) -> runtime.Settings:
    """What was `auto` and was decided at the first start stays as it was decided."""
    if stored is None:
        return settings
    changes: dict[str, Any] = {}
    for name in ("device", "threads"):
        if getattr(settings, name) == "auto":
            changes[name] = str(stored[name])
    if settings.precision is runtime.Precision.auto:
        changes["precision"] = runtime.Precision[stored["precision"]]
    return dataclasses.replace(settings, **changes)


def _data(built: Parts, machine: Runtime, folder: Path) -> tuple[PreTrainedTokenizerBase, list[Stage], Dataset]:
    """The tokenizer, the examples of each stage of training, and those that are held out.

    Raises:
        DataError: a split too small for one batch, or empty.
    """
    import numpy as np

    from llmtrain.data.loader import Order

    with machine.accelerator.main_process_first():
        rows = {name: built.data.split(name) for name in ("train", "validation")}
        if machine.main:
            machine.console.print(built.data.summary(), markup=False)
            for line in built.data.warnings():
                log.warning("%s", line)
        tokenizer = _tokenizer(built, rows["train"], folder, machine)
        validation = _examples(built, "validation", tokenizer, built.data.max_length)
        stages = []
        for until, length in built.data.lengths:
            train = _examples(built, "train", tokenizer, length)
            stages.append(Stage(until, train, Order(np.asarray(train.with_format("numpy")["length"]), built.trainer.batch_size, machine.settings.seed)))
            for line in built.objective.notes(train):
                log.info("training split, up to %d tokens: %s", length, line)
    for stage, (_, length) in zip(stages, built.data.lengths, strict=True):
        if len(stage.train) < built.trainer.batch_size:
            raise DataError(
                f"the training split has {len(stage.train)} sequences of up to {length} tokens, "
                f"one update takes trainer.batch_size={built.trainer.batch_size} ({machine.world} devices){_noted(built, stage.train)}",
                fix="more text, a smaller trainer.batch_size, or a smaller data.max_length",
            )
    if not len(validation):
        raise DataError(
            f"the validation split is empty ({len(stages[-1].train)} sequences in the training split){_noted(built, validation)}",
            fix="a larger data.validation_fraction, more documents, or data.validation=FILE",
        )
    if built.evaluation.max_samples is not None:
        validation = validation.select(range(min(built.evaluation.max_samples, len(validation))))
    return tokenizer, stages, validation


def _noted(built: Parts, examples: Dataset) -> str:
    return "".join(f"; {line}" for line in built.objective.notes(examples))


def _examples(built: Parts, name: str, tokenizer: PreTrainedTokenizerBase, length: int) -> Dataset:
    return distinct(built.objective, built.data, tokenizer, name, length)


# Objectives whose examples carry keys of their content want none of it in two splits: documents may share passages.
KEYS = ("keys", "other_keys")


def distinct(objective: Objective, data: Data, tokenizer: PreTrainedTokenizerBase, name: str, length: int) -> Dataset:
    """A split's examples without those that share content with a split that judges it: test before validation before train."""
    examples = objective.examples(data.split(name), tokenizer, length)
    names = [column for column in KEYS if column in examples.column_names]
    if not names:
        return examples
    held_out: set[int] = set()
    for judge in {"train": ("validation", "test"), "validation": ("test",)}.get(name, ()):
        with contextlib.suppress(DataError):  # there may be no test split
            judging = objective.examples(data.split(judge), tokenizer, data.max_length)
            held_out.update(key for column in names for keys in judging[column] for key in keys)
    kept = [i for i, row in enumerate(zip(*(examples[column] for column in names), strict=True)) if all(map(held_out.isdisjoint, row))]
    if len(kept) == len(examples):
        return examples
    log.info("%s of %s %s examples share sentences with a split that judges them and are dropped", f"{len(examples) - len(kept):,}", f"{len(examples):,}", name)
    return examples.select(kept)


def _tokenizer(built: Parts, rows: Dataset, folder: Path, machine: Runtime) -> PreTrainedTokenizerBase:
    """Loaded where it exists, else trained once; a run keeps its own."""
    from llmtrain.data import tokenizer as tokens

    own = folder / "tokenizer"
    if (own / "tokenizer_config.json").is_file():
        return tokens.load(str(own))
    path = built.tokenizer.path or built.model.tokenizer_path
    if path is not None:
        tokenizer = tokens.load(path)
        refuse_lacking(tokenizer, built.objective, path)
        if tokenizer.pad_token_id is None:
            log.info("the tokenizer has no padding token: padding is on the right, where no model looks")
    else:
        tokenizer = tokens.train(built.tokenizer.trained(built.model.tokenizer_algorithm), rows, built.tokenizer.vocab_size, log.info)
    if machine.main:
        with files.new_folder(own) as temporary:
            tokenizer.save_pretrained(temporary)
    return tokenizer


def refuse_lacking(tokenizer: PreTrainedTokenizerBase, objective: Objective, path: str) -> None:
    """Refuse a tokenizer without a token that the objective needs, such as the mask of a masked LM."""
    from llmtrain.data import tokenizer as tokens

    lacking = tokens.vocabulary(tokenizer).lacks(objective.tokens)
    if lacking:
        raise ConfigError(
            f"the tokenizer of {path} has no {' and no '.join(lacking)} token, which the objective needs", fix="another tokenizer.path, or another objective"
        )


def _model(built: Parts, machine: Runtime, tokenizer: PreTrainedTokenizerBase, seed: int) -> PreTrainedModel:
    """In fp32, drawn from the seed or read from weights; the same on every process."""
    import torch

    from llmtrain.estimate import refuse_too_large
    from llmtrain.model import forward

    refuse_too_large(built.model.config(tokenizer), machine.device, built.objective.head)
    torch.manual_seed(key(seed, "init"))
    model = built.model.load(tokenizer, built.objective.head, resize=built.tokenizer.resize, new_head=True)
    if machine.device == "cpu":
        forward.use_cpu_attention(model)
        forward.use_cpu_dropout(model)
    forward.reach(model)  # asked here, by a tiny pass, so that the first update is one like any other
    if built.trainer.gradient_checkpointing:
        # Not reentrant (the default): the reentrant kind gives no gradients above a frozen prefix.
        model.activation_checkpointing_enable()
    return model


def _anatomy(model: PreTrainedModel, mode: Finetune) -> Anatomy:
    """Where the blocks are. A model without a stack of its own is refused, unless the mode does not ask."""
    from llmtrain.model.anatomy import anatomy, undivided

    try:
        found = anatomy(model.config, type(model))
    except ConfigError as error:
        if mode.needs_blocks:
            raise
        log.info("%s; all of it is trained", error.what)
        return undivided(model)
    found.check(model)
    return found


def _trainer(
    built: Parts,
    machine: Runtime,
    model: PreTrainedModel,
    phases: Any,
    stages: list[Stage],
    validation: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    resume: Path | None,
) -> Trainer:
    from llmtrain.data import tokenizer as tokens

    return Trainer(
        settings=built.trainer,
        evaluation=built.evaluation,
        checkpoints=built.checkpoint,
        optimizer=built.optimizer,
        schedule=built.schedule,
        model=model,
        objective=built.objective,
        phases=phases,
        stages=stages,
        validation=validation,
        vocabulary=tokens.vocabulary(tokenizer),
        runtime=machine,
        callbacks=built.callbacks,
        folder=folder,
        seed=machine.settings.seed,
        num_workers=built.data.num_workers,
        resume=resume,
    )


def _resolved(config: DictConfig, built: Parts, machine: Runtime, job: Trainer, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """The config with every `auto` replaced, and what follows from it and the data."""
    from llmtrain.data import store, tokenizer as tokens

    content: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    content |= {"device": machine.device, "devices": str(machine.world), "threads": str(machine.threads), "precision": machine.precision.name}
    content["trainer"]["micro_batch_size"] = job.micro_size
    content["tokenizer"]["algorithm"] = (
        "loaded" if built.tokenizer.path or built.model.tokenizer_path else built.tokenizer.trained(built.model.tokenizer_algorithm)
    )
    content["derived"] = {
        "total_steps": job.total_steps,
        "total_tokens": job.total_tokens,
        "train_sequences": "+".join(str(len(stage.train)) for stage in job.stages) if len(job.stages) > 1 else len(job.stages[0].train),
        "train_data": "+".join(store.fingerprint(stage.train) for stage in job.stages),
        "tokenizer": tokens.fingerprint(tokenizer),
        "vocabulary": len(tokenizer),
    }
    return content


def _settle(machine: Runtime, folder: Path, stored: dict[str, Any] | None, resolved: dict[str, Any], resume: Path | None) -> None:
    """Write resolved.yaml, once; a resume compares with it.

    Raises:
        CheckpointError: what the run learns from, or how, is no longer the same.
    """
    if stored is None or resume is None:
        if machine.main:
            files.write(folder / "resolved.yaml", OmegaConf.to_yaml(OmegaConf.create(resolved)).encode())
        return
    before, now = _flat(stored), _flat(resolved)
    changed = [k for k in sorted(before.keys() | now.keys()) if before.get(k) != now.get(k)]
    guarded = [k for k in changed if not any(k == free or k.startswith(free + ".") for free in FREE)]
    if guarded:
        lines = "; ".join(f"{k}: {before.get(k)} → {now.get(k)}" for k in guarded[:4]) + (f" and {len(guarded) - 4} more" if len(guarded) > 4 else "")
        raise CheckpointError(f"{folder} was started with another config: {lines}", fix="give the same settings, or start anew with another output_dir")
    for k in changed:
        if k in BITS:
            log.warning("%s was %s and is %s: from here on the bits may differ from an unbroken run", k, before.get(k), now.get(k))
    if any(k in ("derived.total_steps",) for k in changed):
        log.info(
            "the run is now %s updates long instead of %s: from here on the schedule follows the new length",
            now["derived.total_steps"],
            before["derived.total_steps"],
        )


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(tree, dict):
        return {k: v for name, value in tree.items() for k, v in _flat(value, f"{prefix}.{name}" if prefix else str(name)).items()}
    return {prefix: tree}


def _already_complete(machine: Runtime, job: Trainer, resume: Path) -> bool:
    state = checkpoint.run_state(resume)
    if state.step < job.total_steps and not state.stop:
        return False
    machine.console.print(f"already complete: {state.step} of {job.total_steps} updates done{f' ({state.stop})' if state.stop else ''}; nothing to do")
    return True


# --- what people see ----------------------------------------------------------------------------------------------


def _panel(built: Parts, machine: Runtime, job: Trainer, model: PreTrainedModel, anatomy: Anatomy, folder: Path) -> None:
    from rich.panel import Panel
    from rich.table import Table

    if not machine.main:
        return
    total = sum(p.numel() for p in model.parameters())
    trainable = sum(p.numel() for n, p in model.named_parameters() if n in job.phases[0].trainable)
    tokens_per_step = job.total_tokens / job.total_steps
    of = [f"{len(stage.train):,} sequences of up to {length} tokens" for stage, (_, length) in zip(job.stages, built.data.lengths, strict=True)]
    lengths = f", from update {job.legs[0].last:,} on ".join(of)
    grid = Table.grid(padding=(0, 2))
    processes = f" × {machine.world} processes" if machine.world > 1 else ""
    rows = {
        "model": f"{type(model).__name__}, {anatomy.depth} blocks, {total:,} parameters",
        "trainable": f"{trainable:,} ({trainable / total:.1%})",
        "data": f"{lengths}, {len(job.validation or []):,} held out",
        "steps": f"{job.total_steps:,} updates of about {tokens_per_step:,.0f} tokens, {job.total_tokens:,} in all",
        "device": f"{machine.device}{processes}: {machine.device_name}, {machine.threads} threads",
        "precision": f"{machine.precision.name}: {machine.why}",
        "folder": str(folder),
    }
    if any(stage.order.grouped for stage in job.stages):
        shares = [f"{stage.order.padding():.1%}" for stage in job.stages]
        rows["padding"] = f"{' then '.join(shares)} of what is computed, with batches grouped by length"
    for name, value in rows.items():
        grid.add_row(name, value)
    machine.console.print(Panel(grid, title=f"llmtrain {llmtrain.__version__}", title_align="left", expand=False))


def _results(
    built: Parts, machine: Runtime, job: Trainer, state: RunState, model: PreTrainedModel, started: dict[str, str], phases: Any, unused: frozenset[str]
) -> dict[str, Any]:
    """What run.json says of a run that ended: metrics, cost, and the proof of what was frozen and what moved."""
    trainable = set().union(*(p.trainable for p in phases))
    now = {name: checkpoint.tensor_sha256(t) for name, t in checkpoint.tensors(model).items()}
    frozen = [n for n, _ in model.named_parameters() if n not in trainable]
    moved_frozen = [n for n in frozen if now[n] != started[n]]
    still = [n for n in sorted(trainable - unused) if now[n] == started[n]]
    if moved_frozen:
        log.warning("frozen parameters moved: %s", ", ".join(moved_frozen[:3]))
    if still:
        log.warning("%d trainable tensors did not move: %s", len(still), ", ".join(still[:3]))
    references = built.objective.references(job.validation, job.vocabulary) if job.validation is not None else {}
    return {
        "stopped": state.stop,
        "steps": state.step,
        "tokens": state.tokens,
        "validation": job.last_metrics,
        "references": references,
        "best": {"metric": built.evaluation.best_metric, "value": state.best, "step": state.best_step},
        "freezing": {
            "frozen": len(frozen),
            "frozen_unchanged": len(frozen) - len(moved_frozen),
            "trainable": len(trainable),
            "trainable_moved": len(trainable) - len(still),
        },
        "cost": {
            "train_seconds": round(state.seconds, 2),
            "evaluation_seconds": round(state.evaluation_seconds, 2),
            "tokens_per_second": round(state.tokens / state.seconds, 1) if state.seconds else None,
            "peak_memory_mb": round(machine.peak_memory_mb(), 1),
        },
    }


def _export(built: Parts, job: Trainer, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, content: dict[str, Any]) -> None:
    """final/: a Hugging Face folder with weights, tokenizer, model card and a manifest."""
    from llmtrain.model.checkpoint import quiet
    from llmtrain.report.card import card

    if built.checkpoint.export == "best" and job.state.best_step not in (None, job.state.step):
        best = folder / "checkpoints" / f"step-{job.state.best_step:08d}"
        checkpoint.load_weights(model, checkpoint.read(best, job.base).weights, job.base)
    with files.new_folder(folder / "final") as temporary:
        with quiet():
            model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        (temporary / "README.md").write_text(card(type(model).__name__, job.config, content), encoding="utf-8")
        files.write_manifest(temporary)


def _goodbye(
    machine: Runtime,
    job: Trainer,
    state: RunState,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    content: dict[str, Any],
    seed: int,
) -> None:
    """Numbers, three samples, and what to type next."""
    from llmtrain.report.curve import draw

    say = machine.console.print
    draw(folder, content["references"])
    metrics = dict(content["validation"])
    loss = metrics.pop("loss", None)
    references = {name: value for name, value in content["references"].items() if name == "unigram_entropy"}
    say()
    if loss is not None:
        say(f"held-out loss {loss:.3f}" + "".join(f" ({name.replace('_', ' ')} of the same tokens {value:.3f})" for name, value in references.items()))
    others = {**metrics, **{name: value for name, value in content["references"].items() if name not in references}}
    say(" · ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in others.items()))
    cost = content["cost"]
    say(
        f"{cost['train_seconds']:.0f} s training, {cost['evaluation_seconds']:.0f} s evaluation · "
        f"{cost['tokens_per_second']:,.0f} tokens/s · peak memory {cost['peak_memory_mb']:,.0f} MB"
    )
    content["samples"] = []
    verb = None
    if job.objective.head is Head.next_token:
        verb = f"llmtrain generate model.checkpoint={folder} prompt='The'"
        content["samples"] = _written(say, model, tokenizer, seed)
    elif "masked_lm" in job.objective.terms:
        verb = f"llmtrain predict model.checkpoint={folder} text='The {tokenizer.mask_token} of a list.'"
        content["samples"] = _filled(say, job, model, tokenizer)
    say("\nnext:")
    for line in (verb, f"llmtrain evaluate model.checkpoint={folder} split=test"):
        if line is not None:
            say(f"  {line}", soft_wrap=True, markup=False)  # a command that is broken into lines cannot be copied
    say(f"curve: {folder / 'loss.png'}", soft_wrap=True)


def _written(say: Callable[..., None], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, seed: int) -> list[dict[str, Any]]:
    """What a causal model makes of three beginnings."""
    from llmtrain.model.generation import Sampling, write

    if not model.can_generate():
        return []
    sampling = Sampling(temperature=0.7, top_k=50, top_p=0.95, max_new_tokens=48)
    samples = []
    say("\nthe model writes:")
    for i, prompt in enumerate(("The", "Return", "If the")):
        text = write(model, tokenizer, prompt, sampling, key(seed, "sample", i))
        samples.append({"prompt": prompt, "text": text})
        say(f"  “{printable(' '.join((prompt + text).split()))}”", markup=False)
    return samples


def _filled(say: Callable[..., None], job: Trainer, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[dict[str, Any]]:
    """What a masked LM puts in three places of the held-out text, and what stood there."""
    from llmtrain.model.filling import around, guesses
    from llmtrain.objective.base import IGNORED

    samples = []
    say("\nthe model fills in held-out text:")
    few = None if job.validation is None else job.validation.select(range(min(200, len(job.validation))))
    for batch in job.objective.one_by_one(few, job.vocabulary, 3, 1) if few is not None else ():
        batch = batch.to(model.device)
        position = int((batch.labels["masked_lm"][0] != IGNORED).nonzero())
        truth = tokenizer.decode([int(batch.labels["masked_lm"][0, position])]).strip()
        before, behind = around(tokenizer, batch.inputs["input_ids"][0].tolist(), position, 12)
        found = guesses(model, tokenizer, batch.inputs, position, 3)
        samples.append({"before": before, "behind": behind, "truth": truth, "guesses": {g.text: g.probability for g in found}})
        listed = ", ".join(f"{g.text} {g.probability:.0%}" for g in found)
        say(printable(f"  “… {before} ▁▁▁ {behind} …”  {listed}; it was: {truth}"), markup=False)
    return samples


# --- run.json -----------------------------------------------------------------------------------------------------


class Record:
    """What run.json will say. `skip`: leave the file as it is."""

    def __init__(self) -> None:
        self.content: dict[str, Any] = {}
        self.skip = False


@contextlib.contextmanager
def _recorded(machine: Runtime, folder: Path, verb: str) -> Iterator[Record]:
    """Write run.json when the run ends, however it ends."""
    record, began = Record(), time.time()
    status = {"status": "finished", "exit_code": 0}
    try:
        yield record
    except LLMTrainError as error:
        status = {"status": "stopped" if isinstance(error, Stopped) else "failed", "exit_code": error.exit_code, "error": error.screen()}
        raise
    except BaseException as error:
        status = {"status": "failed", "exit_code": 1, "error": f"{type(error).__name__}: {error}"[:500]}
        raise
    finally:
        if machine.main and not record.skip:
            about = {
                "verb": verb,
                **status,
                "command": " ".join(["llmtrain", verb, *sys.argv[2:]]) if not runtime.in_worker() else None,
                "started": time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(began)),
                "wall_seconds": round(time.time() - began, 2),
                "versions": versions(),
                "device": {
                    "device": machine.device,
                    "name": machine.device_name,
                    "processes": machine.world,
                    "threads": machine.threads,
                    "precision": machine.precision.name,
                },
                "warnings": machine.warnings,
            }
            with contextlib.suppress(LLMTrainError):
                files.write_json(folder / "run.json", {**about, **record.content})


def versions() -> dict[str, str]:
    """Python, and the packages whose version can change the bits."""
    from importlib.metadata import version

    names = ("torch", "transformers", "datasets", "accelerate", "tokenizers", "numpy")
    return {"python": platform.python_version(), "llmtrain": llmtrain.__version__, **{name: version(name) for name in names}}
