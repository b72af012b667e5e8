"""Train: what `pretrain` and `finetune` do, read from top to bottom like a recipe."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import platform
import re
import shlex
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

import llmtrain
from llmtrain import cache, changes, checkpoint, files, processes, runtime, sharding
from llmtrain.command.parts import Parts, advice, asks_newest, fits, goes_on, head_goes_on, kind_of, parts, without_effect
from llmtrain.config import Composed, build, flat, read_yaml, refuse_targets, section, without_secrets
from llmtrain.data import questions
from llmtrain.data.base import Data, Target
from llmtrain.errors import CheckpointError, ConfigError, DataError, DeviceError, DistributedError, LLMTrainError, Stopped, masked, plain, printable
from llmtrain.finetune.base import Finetune, Phase
from llmtrain.machine import doubts
from llmtrain.model.base import Attention, Combine, Head, HeadKind, Outputs, Pooling
from llmtrain.objective.base import IGNORED, Direction, Objective, Scale, Totals
from llmtrain.runtime import Runtime
from llmtrain.seeding import generator, key
from llmtrain.state import RunState
from llmtrain.trainer import Stage, Trainer

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from llmtrain.frozen import Cut, Question
    from llmtrain.model.anatomy import Anatomy

log = logging.getLogger("llmtrain")


# --- where it runs ------------------------------------------------------------------------------------------------

BEGINNINGS = (".lock", ".config.yaml", runtime.OUTPUT)  # what is in a run's folder before it is a run
INVOCATION = ".invocation.yaml"  # the config of the command that is running, for the processes it starts
WORKER = (sys.executable, "-m", "llmtrain.worker")
LACK = re.compile("can't allocate memory|out of memory|CUBLAS_STATUS_ALLOC_FAILED")


def start(composed: Composed, overrides: list[str], verb: str) -> int:
    """Check everything, make the folder, and run here or in several processes. Returns the exit code."""
    built = parts(composed.config)
    notes = composed.notes + without_effect(built, composed.given) + advice(built)
    if "lm" in built.objective.weights:
        composed.config.objective.weights.lm = built.objective.weights["lm"]  # left out where it would teach nothing
    if runtime.in_worker():
        return _start_as_rank(composed.config, overrides, verb, built.runtime, notes, composed.given)
    _say(notes)
    name_newest(composed.config, verb, continued(built.runtime, verb))
    _say(head_goes_on(parts(composed.config), composed.given))
    if built.runtime.processes == 1:  # several find out themselves: this process then never imports torch
        runtime.check(built.runtime)
        fits(parts(composed.config))
    folder = run_folder(verb, built.runtime)
    with runtime.locked(folder):
        write_config(folder, composed.config, overrides)
        if built.runtime.processes > 1:
            _start_ranks(composed.config, verb, folder, built.runtime, written(verb, overrides, composed.user_dir))
        else:
            run(composed.config, verb, folder, written(verb, overrides, composed.user_dir))
    return 0


def _say(notes: list[str]) -> None:
    for line in notes:
        print(f"note: {plain(line)}")


def _start_ranks(config: DictConfig, verb: str, folder: Path, settings: runtime.Settings, command: str) -> None:
    """Run as several processes of this machine.

    Raises:
        LLMTrainError: what went wrong, on whichever of them; run.json says the same.
    """
    files.write(folder / INVOCATION, OmegaConf.to_yaml(without_secrets(config)).encode())
    with runtime.path_of_its_own():
        environment = {**os.environ}
    environment.setdefault("OMP_NUM_THREADS", str(runtime.decide_threads(settings.threads, settings.processes)))
    began = time.time()
    try:
        processes.launch([*WORKER, str(folder), verb, command], settings.processes, folder, environment, settings.distributed.timeout_s)
    except LLMTrainError as error:
        _correct(folder, error, began)
        raise


def _start_as_rank(config: DictConfig, overrides: list[str], verb: str, settings: runtime.Settings, notes: list[str], given: set[str]) -> int:
    """One of several processes that torchrun, `accelerate launch` or srun started: the main one decides the folder."""
    share, gather = runtime.rendezvous(settings)
    rank = int(os.environ["RANK"])
    said: tuple[Path | None, str | None, LLMTrainError | None] = (None, None, None)
    try:
        with contextlib.ExitStack() as lock:
            error: LLMTrainError | None = different(gather, config) or _other_number(settings)
            if rank == 0 and error is None:
                _say(notes)
                try:
                    name_newest(config, verb, continued(settings, verb))
                    _say(head_goes_on(parts(config), given))
                    folder = run_folder(verb, settings)
                    lock.enter_context(runtime.locked(folder))
                    processes.results(folder)  # of an earlier start
                    write_config(folder, config, overrides)
                    said = (folder, config.model.get("checkpoint"), None)
                except LLMTrainError as found:
                    said = (None, None, found)
            if error is None:
                folder_or_none, newest, error = share(said)
            if error is not None or folder_or_none is None:
                error = error or LLMTrainError("the main process named no folder")
                if rank == 0:
                    print(error.screen(), file=sys.stderr)
                return error.exit_code
            if newest is not None:
                config.model.checkpoint = newest  # what the main process found; the others did not look
            return run_as_rank(config, verb, folder_or_none)
    except RuntimeError as found:
        kind = processes.lost(found)
        if kind is processes.Lost.no:
            raise
        lost = processes.lost_contact(found, rank, kind)
        if rank == 0:
            print(lost.screen(), file=sys.stderr)
        return lost.exit_code
    finally:
        runtime.leave_group()


def _correct(folder: Path, error: LLMTrainError, began: float) -> None:
    """Let run.json say how a run of several processes ended: rank 0 may have seen no more of it than that the others were gone."""
    record = folder / "run.json"
    with contextlib.suppress(LLMTrainError, OSError, ValueError):
        if record.stat().st_mtime >= began:
            status = {"status": "stopped" if isinstance(error, Stopped) else "failed", "exit_code": error.exit_code, "error": error.screen()}
            files.write_json(record, {**json.loads(record.read_text(encoding="utf-8")), **status})


def different(gather: Callable[[Any], list[Any]], config: DictConfig) -> ConfigError | None:
    """An error where the processes of a run were given different configs, or are of different versions; the same on all of them."""
    import torch

    texts = {key: masked(str(value)) for key, value in flat(OmegaConf.to_container(config, resolve=False)).items()}
    own = {**texts, "the version of llmtrain": llmtrain.__version__, "the version of torch": torch.__version__}
    if len(set(gather(hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()))) == 1:
        return None
    found = processes.differing(gather(own))
    return ConfigError(f"the processes were given different configs: {'; '.join(found)}", fix="the same command on every node")


def _other_number(settings: runtime.Settings) -> ConfigError | None:
    world = int(os.environ["WORLD_SIZE"])
    if settings.devices in ("auto", str(world)):
        return None
    return ConfigError(f"devices={settings.devices}: the launcher started {world} processes", allowed=f"auto, {world}")


def run_as_rank(config: DictConfig, verb: str, folder: Path, command: str | None = None) -> int:
    """Train as one of several processes. The last word is left for the command that started all; under another launcher it is printed once.

    Args:
        command: that run.json is to have; None under another launcher, whose part of it nobody here knows.
    """
    rank = int(os.environ.get("RANK", "0"))
    home, began = os.environ.get(processes.MEETING), time.time()
    try:
        with runtime.stopping_at_once():
            run(config, verb, folder, command)
        if home is not None:
            processes.leave_result(Path(home), rank, None)
        return 0
    except Exception as found:
        error, kind = _named(found, folder, rank)
        if home is not None:
            processes.leave_result(Path(home), rank, error, kind)
            return error.exit_code
        counts = processes.say_once(folder, rank, error, kind)
        if rank == 0:
            _correct(folder, counts, began)
        return counts.exit_code
    finally:
        runtime.leave_group()


def _named(found: Exception, folder: Path, rank: int) -> tuple[LLMTrainError, processes.Lost]:
    """An exception as one that has a screen, and whether it only says that other processes are not there. What is not ours is logged whole."""
    if isinstance(found, LLMTrainError):
        cause = found.__cause__ if isinstance(found, DistributedError) else None
        kind = processes.lost(cause) if cause is not None else processes.Lost.no
        if getattr(found, "__notes__", None):  # what happened in a process that reads data
            _trace(folder, rank, found)
        return found, kind
    _trace(folder, rank, found)
    kind = processes.lost(found)
    if kind is not processes.Lost.no:
        return processes.lost_contact(found, rank, kind), kind
    first = (masked(str(found)).splitlines() or ["no message"])[0][:300]
    fix = f"this is a fault of llmtrain: {folder / processes.LOG} shows where"
    return LLMTrainError(f"{type(found).__name__} on rank {rank}: {first}", fix=fix), kind


def _trace(folder: Path, rank: int, error: Exception) -> None:
    with contextlib.suppress(OSError), (folder / processes.LOG).open("a", encoding="utf-8") as log:
        log.write(plain(f"rank {rank}:\n{''.join(traceback.format_exception(error))}"))


def name_newest(config: DictConfig, verb: str | None = None, folder: Path | None = None) -> None:
    """Replace `model.checkpoint: newest` by the run that it means, and say so. What is finetuned is a pretrained one.

    Args:
        folder: of the run that is continued, which keeps the weights that it started from.

    Raises:
        CheckpointError: that run has checkpoints and no longer says what it started from.
    """
    if not asks_newest(config):
        return
    for path in (folder / "config.yaml", folder / "resolved.yaml") if folder is not None else ():
        before = read_yaml(path) if path.is_file() else None
        if isinstance(before, dict) and isinstance(before.get("model"), dict) and before["model"].get("checkpoint"):
            refuse_targets(before["model"], str(path))
            config.model.checkpoint = str(before["model"]["checkpoint"])
            print(plain(f"model.checkpoint as in the run that is continued: {section(config.model, 'checkpoint', 'model')}"))
            return
    if folder is not None and checkpoint.listed(folder):
        raise CheckpointError(f"{folder / 'config.yaml'}: does not say which weights the run started from", fix="restore that file, or give model.checkpoint")
    if verb == "finetune" and not runtime.finished_runs("pretrain"):
        config.model.checkpoint = str(_small_start(config))
        return
    config.model.checkpoint = str(runtime.newest_run("pretrain" if verb == "finetune" else "*"))
    print(plain(f"model.checkpoint=newest is {config.model.checkpoint}"))


def run_of(checkpoint: str) -> dict[str, Any]:
    """The config of the run that a folder of weights is, or belongs to; nothing where it is of no run."""
    folder = changes.home(files.expanded(checkpoint))
    return (changes.own_config(folder) if folder is not None else None) or {}


def trained_on(checkpoint: str) -> list[str] | None:
    """Which texts of a row the run was trained on, that a folder of weights is or belongs to; None where it does not say."""
    folder = files.expanded(checkpoint)
    for path in (folder / "run.json", folder.parent / "run.json"):
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
            return list(map(str, json.loads(path.read_text(encoding="utf-8"))["reads"]))
    return None


# What is pretrained where nothing is: about a minute of two CPU cores, on the documentation that every Python carries.
SMALL_START = {
    Attention.bidirectional: ("model=bert_tiny", "objective=masked_lm", "data.max_length=128", "trainer.max_steps=1000", "trainer.batch_size=32"),
    Attention.causal: ("model=gpt_tiny", "objective=next_token", "data.max_length=128", "trainer.max_steps=300"),
}


def small_model(config: DictConfig) -> DictConfig:
    """The section `model` of the small start."""
    from llmtrain.config import compose

    return compose("pretrain", _small_overrides(config)).config.model  # type: ignore[no-any-return]


def _small_overrides(config: DictConfig) -> list[str]:
    wanted = build(config.objective, Objective, "objective").attention or Attention.bidirectional
    return list(SMALL_START[wanted])


def _small_start(config: DictConfig) -> Path:
    """A small pretrained model where there is none yet: it shows how everything works, and no more."""
    from llmtrain.config import compose

    if runtime.in_worker():
        raise CheckpointError(
            "model.checkpoint=newest: there is no pretrained run below runs/ yet", fix="`llmtrain pretrain` first, or model.checkpoint=FOLDER"
        )
    overrides = [*_small_overrides(config), "name=small_start", f"device={config.device}", f"threads={config.threads}"]
    print("there is no pretrained run below runs/ yet: a small model is pretrained first. It shows how things work; model.checkpoint=FOLDER takes a real one")
    print(plain(f"  llmtrain pretrain {' '.join(overrides)}"))
    start(compose("pretrain", overrides), overrides, "pretrain")
    return runtime.newest_run("pretrain")


# --- the recipe ---------------------------------------------------------------------------------------------------


def run(config: DictConfig, verb: str, folder: Path, command: str | None = None) -> None:
    """Train in `folder`, on this process or as one of several.

    Args:
        command: that run.json is to have.
    """
    built = parts(config)
    fits(built)
    stored = changes.stored(folder)
    settings = _as_stored(built.runtime, stored)
    machine = runtime.start(settings, built.model.width)
    with (
        _recorded(machine, folder, verb, command) as record,
        runtime.logging_to(machine, folder),
        runtime.stopping_on_signals(machine.signalled, machine.begun, f"the same command with output_dir={folder} goes on from here"),
        runtime.data_workers_named(),
        files.told(folder),
    ):
        resume = machine.broadcast(find_resume(folder, settings) if machine.main else None)
        for line in doubts(folder) if machine.main else ():
            log.warning("%s", line)
        if resume is not None and machine.main:
            checkpoint.warn_of_others(resume)
        ready = prepare(built, machine, folder, verb, resume)
        job, tokenizer, rows, anatomy = ready.job, ready.tokenizer, ready.rows, ready.anatomy
        record.content |= {"reads": questions.texts(rows["train"])} if built.objective.target is not None else {}
        asked, cut = _decided(ready, stored)
        resolved = _resolved(config, built, machine, job, tokenizer, cut, ready.judging)
        job.config = resolved
        let = changes.settle(machine.main, folder, stored, resolved, resume, settings.allow_change)
        if resume is not None and machine.main:
            checkpoint.mend_links(folder, resume)
        if resume and _already_complete(machine, job, resume):
            record.skip = True
            return
        _panel(built, machine, job, anatomy, folder, cut, verb)
        job.forget_best = changes.measured_otherwise(stored, resolved)
        with enough_memory(job):
            job.restore()  # before anything is computed of what is frozen: under other settings it may have moved until here
            moved_before = _moved_before(ready, [*((stored or {}).get("changes") or []), *let])
            if moved_before and asked is not None:
                asked.look_again()
            _compute_once(ready, asked, cut)
        machine.begun.set()
        with enough_memory(job):
            if machine.main and resume is not None:
                for path in checkpoint.set_aside(folder, job.state.step):
                    log.warning("%s is of the course that the run took before it went back to step %d: nothing goes on from it", path, job.state.step)
            changes.write(machine.main, folder, stored, resolved, let, job.state.step)
            record.content["changes"] = resolved.get("changes", [])
            record.begun = True
            try:
                state = job.fit()
            finally:
                record.content["skipped"] = job.state.skipped
        record.content |= _results(built, machine, job, state, rows)
        best = built.checkpoint.export == "best" and state.best_step not in (None, state.step)
        if best:
            _take_best(built, machine, job, tokenizer, rows, folder)
        with enough_memory(job):
            judged = _judged(job, best)
            job.gather()
        step = state.best_step if best and state.best_step is not None else state.step
        record.content["freezing"] = machine.broadcast(_proof(job, ready.started, anatomy, step, moved_before) if machine.main else None)
        refuse_moved(record.content["freezing"]["frozen_but_moved"])
        if machine.main:
            record.content["test"] = built.objective.metrics(judged["test"]) if "test" in judged else None
            _write_predictions(built.objective, judged, folder)
            _export(built, job, tokenizer, folder, {**record.content, "exported_step": step})
            record.content["cost"]["disk_mb"] = round(files.size(folder) / 1e6, 1)
            _goodbye(machine, job, state, tokenizer, folder, record.content, settings.seed, verb)
        machine.accelerator.wait_for_everyone()


@dataclass(frozen=True)
class Ready:
    """A run before its first update: everything read and built, nothing computed yet.

    Attributes:
        rows: of each split, as they were read.
        started: sha256 of each tensor.
        judging: a hash of the whole of each split that is held out.
    """

    built: Parts
    machine: Runtime
    job: Trainer
    anatomy: Anatomy
    tokenizer: PreTrainedTokenizerBase
    rows: dict[str, Dataset]
    started: dict[str, str]
    judging: dict[str, str]


def prepare(built: Parts, machine: Runtime, folder: Path, verb: str, resume: Path | None) -> Ready:
    """Read the data and the model, and build the trainer.

    Args:
        folder: of the run, which keeps its tokenizer there.
    """
    tokenizer, stages, held_out, rows, judging = _data(built, machine, folder)
    model = _model(built, machine, tokenizer, machine.settings.seed, built.objective.outputs(rows["train"]))
    model, anatomy = _prepared(built, model, rows)
    phases = with_fresh_tops(model, anatomy, [read_by_something(phase, anatomy) for phase in built.finetune.plan(anatomy)])
    refuse_random_and_frozen(model, phases)
    started = {name: checkpoint.tensor_sha256(t) for name, t in checkpoint.tensors(model).items()}
    base = _base(built, model, started) if verb == "finetune" else None
    scale = built.objective.scale(rows["train"])
    job = _trainer(built, machine, model, anatomy, phases, stages, held_out, tokenizer, folder, resume, base, scale)
    return Ready(built, machine, job, anatomy, tokenizer, rows, started, judging)


def find_resume(folder: Path, settings: runtime.Settings) -> Path | None:
    """The checkpoint to go on from, as `resume` says.

    Raises:
        ConfigError, CheckpointError: a folder that is no run, a run that may not be continued, or none to continue.
    """
    for place in (folder, folder / "checkpoints"):
        files.recover(place)
    if settings.resume not in ("auto", "never", "must"):
        path = Path(settings.resume)
        # A link may be `last` or `best`, or a name of the user's for the whole run.
        if checkpoint.STEP.fullmatch(path.resolve().name) or (path / files.MANIFEST).is_file():
            wrong = files.problem(path) if path.is_dir() else "no such folder"
            if wrong:
                raise CheckpointError(f"resume={path}: {wrong}", fix=sharding.NEWEST)
            return path.parent / path.resolve().name if path.is_symlink() else path  # `last`, which will point at another one
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
    return continued(settings, verb) or runtime.new_run_folder(verb, settings)


def continued(settings: runtime.Settings, verb: str) -> Path | None:
    """The run that is continued; None for a new one. Nothing is made.

    Raises:
        ConfigError: `output_dir` holds something that is not a run, a run of another verb, or one that `resume` does not allow.
        CheckpointError: `resume` names or insists on a run that is not there.
    """
    found = _continued(settings)
    own = None
    with contextlib.suppress(ConfigError):  # a damaged one: resolved.yaml says what is gone on with, where that is needed
        own = read_yaml(found / "config.yaml") if found is not None else None
    if isinstance(own, dict) and isinstance(own.get("objective"), dict):
        other = "finetune" if "cache" in own else "pretrain"
        if other != verb:
            raise ConfigError(f"{found} is a run of `llmtrain {other}`: `llmtrain {verb}` does not go on from it", fix="another output_dir")
    return found


def _continued(settings: runtime.Settings) -> Path | None:
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
    if folder is not None and not is_run and folder.is_dir() and any(not p.name.startswith(BEGINNINGS) for p in folder.iterdir()):
        raise ConfigError(f"output_dir={folder} is not empty and not a run", fix="name a new or empty folder: nothing of yours is overwritten")
    return folder if is_run else None


def write_config(folder: Path, config: DictConfig, overrides: list[str]) -> None:
    """config.yaml as composed. overrides.txt: one invocation a line.

    Where no checkpoint is there, nothing is gone on from, whatever an earlier start left: its settings, what it decided and its
    tokenizer go, or this run would be told by settings that it does not have, and read with the ids of another one's words.
    """
    anew = not checkpoint.listed(folder)
    if anew:
        for name in ("resolved.yaml", "overrides.txt"):
            (folder / name).unlink(missing_ok=True)
        if (folder / "tokenizer").is_dir():
            shutil.rmtree(folder / "tokenizer")
        files.replace(folder / "config.yaml", OmegaConf.to_yaml(without_secrets(config)).encode())
    with (folder / "overrides.txt").open("a", encoding="utf-8") as file:
        file.write(masked(" ".join(overrides)) + "\n")


# --- its steps, in their order ------------------------------------------------------------------------------------


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


def rows_of(objective: Objective, data: Data, name: str) -> Dataset:
    """A split as an objective wants it: with answers, where it is one of a task."""
    return data.split(name) if objective.target is None else data.labelled(name, objective.target)


def _data(built: Parts, machine: Runtime, folder: Path) -> tuple[PreTrainedTokenizerBase, list[Stage], dict[str, Dataset], dict[str, Dataset], dict[str, str]]:
    """The tokenizer, the examples of each stage of training, those of the splits that are held out, the rows of all, and a hash of each that is held out.

    Raises:
        DataError: a split too small for one batch, or empty.
    """
    from llmtrain.data import store
    from llmtrain.data.loader import Order, lengths

    with machine.accelerator.main_process_first():
        rows = {name: rows_of(built.objective, built.data, name) for name in ("train", "validation")}
        if machine.main:
            machine.console.print(built.data.summary(), markup=False)
            for line in built.data.warnings():
                log.warning("%s", line)
        tokenizer = _tokenizer(built, rows["train"], folder, machine)
        validation = _examples(built, "validation", tokenizer, built.data.max_length)
        test = _test(built, tokenizer) if built.evaluation.test else None
        stages = []
        for until, length in built.data.lengths:
            train = _examples(built, "train", tokenizer, length)
            stages.append(Stage(until, train, Order(lengths(train) * built.objective.sequences, built.trainer.batch_size, machine.settings.seed)))
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
    judging = {name: store.fingerprint(found) for name, found in (("validation", validation), ("test", test)) if found is not None}
    if built.evaluation.max_samples is not None:
        chosen = some(len(validation), built.evaluation.max_samples)
        validation = validation.select(chosen)
        if built.objective.target is not None:  # the baselines judge the same rows
            rows["validation"] = rows["validation"].select(chosen)
    return tokenizer, stages, {"validation": validation, **({"test": test} if test is not None else {})}, rows, judging


def _test(built: Parts, tokenizer: PreTrainedTokenizerBase) -> Dataset | None:
    """The examples of the test split; None where it is empty, which a small set of data may well leave it."""
    try:
        found = _examples(built, "test", tokenizer, built.data.max_length)
    except DataError as error:  # a row of it that cannot be read was an error already, when the splits were made
        log.info("there is no test: %s", error.what)
        return None
    return found if len(found) else None


def some(number: int, wanted: int) -> list[int]:
    """`wanted` of `number` rows, spread over all of them, always the same: the first ones of a file that is sorted are of one kind."""
    return sorted(map(int, generator(0, "samples").permutation(number)[:wanted]))


def _noted(built: Parts, examples: Dataset) -> str:
    return "".join(f"; {line}" for line in built.objective.notes(examples))


def _examples(built: Parts, name: str, tokenizer: PreTrainedTokenizerBase, length: int) -> Dataset:
    return distinct(built.objective, built.data, tokenizer, name, length)


# Objectives whose examples carry keys of their content want none of it in two splits: documents may share passages.
KEYS = ("keys", "other_keys")


def distinct(objective: Objective, data: Data, tokenizer: PreTrainedTokenizerBase, name: str, length: int) -> Dataset:
    """A split's examples without those that share content with a split that judges it: test before validation before train."""
    examples = objective.examples(rows_of(objective, data, name), tokenizer, length)
    names = [column for column in KEYS if column in examples.column_names]
    if not names:
        return examples
    held_out: set[int] = set()
    for judge in {"train": ("validation", "test"), "validation": ("test",)}.get(name, ()):
        with contextlib.suppress(DataError):  # there may be no test split
            judging = objective.examples(rows_of(objective, data, judge), tokenizer, data.max_length)
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
    if built.tokenizer.task_tokens and built.objective.head is Head.task and tokens.add_task_tokens(tokenizer):
        log.info("the tokenizer gets %s, %s and %s: their rows start from random numbers", tokens.START, tokens.DELIMITER, tokens.EXTRACT)
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


def _model(built: Parts, machine: Runtime, tokenizer: PreTrainedTokenizerBase, seed: int, outputs: Outputs | None) -> PreTrainedModel:
    """In fp32, drawn from the seed or read from weights; the same on every process."""
    import torch

    from llmtrain.estimate import refuse_too_large
    from llmtrain.model import forward
    from llmtrain.model.base import say_fresh

    # A copy: transformers writes the type that a model is built in into the config, where the type of the stored weights stands.
    refuse_too_large(built.model.config(tokenizer), machine.device, built.objective.head, machine.world if machine.sharded else 1)
    torch.manual_seed(key(seed, "init"))
    words = built.objective.asks_words
    added = _adds_task_tokens(built)
    model = built.model.load(tokenizer, built.objective.head, resize=built.tokenizer.resize or added, new_head=True, outputs=outputs, words=words)
    if added:
        say_fresh(model, ("embeddings: the new rows",))  # also where the embedding had rows to spare, which nothing has trained
    if outputs is not None and built.model.head is HeadKind.pooled:
        _wear_pooled_head(built, model, outputs)
    elif outputs is not None and built.model.attention is Attention.causal:
        _name_padding(model, tokenizer)
    if machine.device == "cpu":
        forward.use_cpu_attention(model)
        forward.use_cpu_dropout(model)
        forward.use_cpu_linear(model)
    forward.reach(model)  # asked here, by a tiny pass, so that the first update is one like any other
    if built.trainer.gradient_checkpointing:
        # Not reentrant (the default): the reentrant kind gives no gradients above a frozen prefix. Frozen blocks are in
        # eval(), and transformers computes again in training mode only.
        model.activation_checkpointing_enable()
    return model


def _adds_task_tokens(built: Parts) -> bool:
    """Whether this run gives a tokenizer that exists tokens that it did not have."""
    from llmtrain.data import tokenizer as tokens

    path = built.tokenizer.path or built.model.tokenizer_path
    wanted = built.tokenizer.task_tokens and built.objective.head is Head.task and path is not None
    return wanted and tokens.add_task_tokens(tokens.load(str(path))) > 0


def _wear_pooled_head(built: Parts, model: PreTrainedModel, outputs: Outputs) -> None:
    """Put our head on a body, unless it came with one that answers the same."""
    from llmtrain.finetune.address import state_numbers
    from llmtrain.model import forward, head as heads
    from llmtrain.model.base import say_fresh

    address, combine = built.finetune.reads
    states = state_numbers(address, int(model.config.num_hidden_layers))
    kind, worn = kind_of(built.objective), heads.pooled_head(model)
    if worn is not None and goes_on(built, worn.task, worn.states, states):
        log.info("the head goes on from the one beside the weights (%s of states %s)", worn.pooling.value, ", ".join(map(str, worn.states)))
        worn.first_choice = built.data.first_choice
        return
    if worn is not None:
        log.info("the head beside the weights answers another question or reads other states: a new one takes its place")
    pooling = built.model.pooling
    if pooling is Pooling.auto:
        trained = built.finetune.trains_body and built.model.attention is Attention.causal
        pooling = Pooling.last if trained else Pooling.mean
    head = heads.PooledHead(forward.width(model, states), outputs, pooling=pooling, states=states, combine=Combine[combine])
    head.task, head.first_choice = kind, built.data.first_choice
    heads.attach(model, head)
    say_fresh(model, (f"{heads.NAME}.{name}" for name, _ in head.named_parameters()))


def _name_padding(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """A causal family's own head finds the last token by the padding's id: never the one that ends a text."""
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        raise ConfigError(
            "model.head=family: the tokenizer has no token that only pads, and the family's head looks for one", fix="model.head=pooled, which goes by the mask"
        )
    model.config.pad_token_id = tokenizer.pad_token_id


def _prepared(built: Parts, model: PreTrainedModel, rows: dict[str, Dataset]) -> tuple[PreTrainedModel, Anatomy]:
    """The model with what the mode adds, and where its parts are; the head of a number learns in standardised numbers."""
    from llmtrain.model import head as heads

    worn = heads.pooled_head(model)
    unread = _pooler(model) if worn is not None and worn.pooling is not Pooling.pooler else []
    if built.objective.target is Target.choice:
        unread.append(f"{heads.NAME}.bias")  # the same is added to every choice, so it changes no answer
    anatomy = _anatomy(model, built.finetune).fitted(model, [heads.NAME], unread)
    prepared = built.finetune.prepare(model, anatomy)
    anatomy = anatomy.fitted(prepared, [heads.NAME], unread)
    anatomy.check(prepared)
    scale = built.objective.scale(rows["train"])
    if scale is not None and built.finetune.trains_head:  # a frozen one keeps its bits
        _learn_in_units(prepared, scale)
    return prepared, anatomy


def _learn_in_units(model: PreTrainedModel, scale: Scale) -> None:
    from llmtrain.model import head as heads
    from llmtrain.model.base import fresh

    name, layer = heads.last_layer(model)
    if layer.bias is None:
        log.info("%s has no bias: scores are learnt in units of their root mean square, their mean included; model.head=pooled learns it apart", name)
    heads.learn_in_units(layer, scale.mean, scale.deviation, new=f"{name}.weight" in fresh(model))


def _pooler(model: PreTrainedModel) -> list[str]:
    """The path of the family's pooler, where it has one."""
    body = model.base_model
    prefix = "" if body is model else f"{model.base_model_prefix}."
    return [f"{prefix}pooler"] if getattr(body, "pooler", None) is not None else []


def read_by_something(phase: Phase, anatomy: Anatomy) -> Phase:
    """A phase without what nothing reads, a pooler or the bias of choices: it would count as trained and never move."""
    unread = {name for name in phase.trainable & anatomy.unused if f".{name}".startswith(".pooled.") or ".pooler." in f".{name}"}
    return dataclasses.replace(phase, trainable=phase.trainable - unread) if unread else phase


def _anatomy(model: PreTrainedModel, mode: Finetune) -> Anatomy:
    """Where the blocks are. A model without a stack of its own is refused, unless the mode does not ask."""
    from llmtrain.model.anatomy import anatomy, undivided

    try:
        return anatomy(model.config, type(model))
    except ConfigError as error:
        if mode.needs_blocks:
            raise
        log.info("%s; all of it is trained", error.what)
        return undivided(model)


def with_fresh_tops(model: PreTrainedModel, anatomy: Anatomy, phases: list[Phase]) -> list[Phase]:
    """Phases that train from the first one on what stands between blocks and head and starts from random numbers, where a later one trains it.

    A pooler that the weights lack: in lp_ft the head would learn to read noise that then moves away. Token rows are below
    the blocks and are left to `refuse_random_and_frozen`: to train them is to train the whole matrix they stand in, so that
    the features would change under the head, which is what these modes are there to avoid.
    """
    from llmtrain.model.base import fresh

    moving = frozenset().union(*(phase.trainable for phase in phases))
    tops = fresh(model) & moving & set(anatomy.names("final")) - anatomy.shared

    def with_tops(phase: Phase) -> Phase:
        late = tops - phase.trainable
        rate = max(phase.lr_scale.get(name, 1.0) for name in phase.trainable)  # the head's
        return dataclasses.replace(phase, trainable=phase.trainable | late, lr_scale={**phase.lr_scale, **dict.fromkeys(late, rate)})

    return [phase if tops <= phase.trainable else with_tops(phase) for phase in phases]


def refuse_random_and_frozen(model: PreTrainedModel, phases: list[Phase]) -> None:
    """Refuse parameters that start from random numbers and do not move: a published study had a row of them.

    In every phase: the weights that are exported may be of an early one, as the best or because the run was stopped there.

    Raises:
        ConfigError: naming them.
    """
    found = [_random_and_frozen(model, phase) for phase in phases]
    stuck = next((names for names in found if names), [])
    if stuck:
        never = set(stuck).intersection(*found)
        when = "would stay frozen" if never else "would stay frozen in an early phase, whose weights may be the exported ones"
        listed = sorted(never) or stuck
        more = "a mode that trains them too, or weights that have them (llmtrain pretrain makes some)" if never else "or a mode that trains them from the start"
        raise ConfigError(
            f"{len(listed)} tensors start from random numbers and {when}: {', '.join(listed[:3])}{' …' if len(listed) > 3 else ''}",
            fix=f"finetune=full, {more}",
        )


def _random_and_frozen(model: PreTrainedModel, phase: Phase) -> list[str]:
    """What starts from random numbers and does not move in a phase."""
    from llmtrain.model.base import fresh

    new = fresh(model) - phase.trainable
    drawn = {name for name, parameter in model.named_parameters() if name in new and parameter.any()}  # a bias of zeros is nothing random
    stuck = sorted(name for name in new if name in drawn or ":" in name)
    if any(dict(model.named_parameters())[name] is model.get_input_embeddings().weight for name in phase.trainable):
        stuck = [name for name in stuck if ":" not in name]
    return stuck


def _base(built: Parts, model: PreTrainedModel, started: dict[str, str]) -> checkpoint.Base | None:
    """The weights that checkpoints leave out where they have not moved; None for a model that starts from nothing."""
    from llmtrain.model.base import fresh
    from llmtrain.model.head import units_of

    if built.model.tokenizer_path is None:
        return None
    new = fresh(model) | units_of(model)
    return checkpoint.Base(built.model.tokenizer_path, {name: digest for name, digest in started.items() if name not in new})


def question(ready: Ready, use: cache.Use | None = None) -> Question | None:
    """What is asked of the cache; None where there is none to ask.

    Args:
        use: takes the place of the setting.
    """
    from llmtrain import frozen

    built, job = ready.built, ready.job
    if built.cache is None or job.validation is None:
        return None
    settings = built.cache if use is None else dataclasses.replace(built.cache, use=use)
    return frozen.Question(
        settings=settings, model=job.model, anatomy=ready.anatomy, phases=job.phases, objective=built.objective, tokenizer=ready.tokenizer,
        stages=job.stages, validation=job.validation, test=job.test, machine=ready.machine,
        passes=job.total_steps / job.stages[0].order.per_epoch, evaluations=1 if job.every is None else max(1, job.total_steps // job.every),
    )  # fmt: skip


def _decided(ready: Ready, stored: dict[str, Any] | None) -> tuple[Question | None, Cut | None]:
    """What is asked of the cache, and where the model is to be cut, if that pays; nothing is computed yet."""
    from llmtrain import frozen

    built, machine = ready.built, ready.machine
    decided = stored is not None and built.cache is not None and built.cache.use is cache.Use.auto
    asked = question(ready, cache.Use[stored["cache"]["use"]] if stored is not None and decided else None)
    cut = _planned(machine, asked) if asked is not None else None
    # Not of what `auto` once decided: a config that was changed since is refused, or taken up, where it is compared.
    if asked is not None and cut is None and asked.settings.use is cache.Use.always and not decided:
        why = frozen.why_nothing(ready.anatomy, ready.job.phases, built.objective)
        raise ConfigError(f"cache.use=always: {why}, so nothing can be computed once", fix="cache.use=auto")
    if asked is not None and cut is not None and decided:  # by nobody's setting: the panel is not to name one
        why = cut.decision.why.removeprefix(f"cache.use={asked.settings.use.name}: ")
        cut = dataclasses.replace(cut, decision=dataclasses.replace(cut.decision, why=f"as cache.use=auto decided at the first start: {why}"))
    return asked, cut


def _compute_once(ready: Ready, asked: Question | None, cut: Cut | None) -> None:
    """Cut the model there, where it was decided, and standardise what a head of frozen states reads."""
    from llmtrain import frozen
    from llmtrain.callback.progress import counted
    from llmtrain.model.base import fresh
    from llmtrain.model.head import NAME, pooled_head

    built, machine, job = ready.built, ready.machine, ready.job
    if asked is not None and cut is not None and cut.decision.use:
        with counted(machine.console, "batches of frozen states") as progress:
            made = asked.make(cut, progress if machine.main else frozen.silent)
        job.run_on(made.model, made.stages, made.validation, made.test)
    head = pooled_head(job.saved)
    # A head that came with the weights was saved with its standardisation folded in: another one would change its answers.
    new = f"{NAME}.weight" in fresh(job.saved)
    if head is not None and new and built.finetune.standardises and job.resume is None:
        frozen.standardise(head, job.stages[-1], built.objective, job.model, job.vocabulary, machine, machine.settings.seed, 64)


@contextlib.contextmanager
def enough_memory(job: Trainer) -> Iterator[None]:
    """Whatever torch says of a lack of memory becomes one screen with what to change.

    Raises:
        DeviceError: with three remedies, none of which changes the batch of an update.
    """
    import torch

    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch's own error is a RuntimeError; CPU, MPS and CUDA's libraries raise plain ones
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and LACK.search(str(error)) is None:
            raise
        half = max(1, job.micro_size // 2)
        raise DeviceError(
            f"out of memory on {job.runtime.device} after update {job.state.step}, with {job.micro_size} sequences in a forward pass",
            fix=f"trainer.micro_batch_size={half} (the updates stay those of {job.settings.batch_size} sequences); "
            "trainer.gradient_checkpointing=true; or a shorter data.max_length",
        ) from error


def _trainer(
    built: Parts,
    machine: Runtime,
    model: PreTrainedModel,
    anatomy: Anatomy,
    phases: list[Phase],
    stages: list[Stage],
    held_out: dict[str, Dataset],
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    resume: Path | None,
    base: checkpoint.Base | None,
    scale: Scale | None,
) -> Trainer:
    from llmtrain.data import tokenizer as tokens
    from llmtrain.model.anatomy import frozen_modules

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
        validation=held_out["validation"],
        test=held_out.get("test"),
        vocabulary=tokens.vocabulary(tokenizer),
        runtime=machine,
        callbacks=built.callbacks,
        folder=folder,
        seed=machine.settings.seed,
        num_workers=built.data.num_workers,
        frozen=lambda trainable: frozen_modules(anatomy, model, trainable),
        base=base,
        resume=resume,
        divisors={} if scale is None else dict.fromkeys(built.objective.terms, scale.deviation**2),
        blocks=[f"{anatomy.stack}.{i}" for i in range(anatomy.depth)],
    )


def _planned(machine: Runtime, question: Question) -> Cut | None:
    """The main process decides: it alone looks at the disk, and what is wrong is wrong for all."""
    said: tuple[Cut | None, LLMTrainError | None] = (None, None)
    if machine.main:
        try:
            said = (question.plan(), None)
        except LLMTrainError as error:
            said = (None, error)
    cut, error_or_none = machine.broadcast(said)
    if error_or_none is not None:
        raise error_or_none
    return cut  # type: ignore[no-any-return]


def _resolved(
    config: DictConfig, built: Parts, machine: Runtime, job: Trainer, tokenizer: PreTrainedTokenizerBase, cut: Cut | None, judging: dict[str, str]
) -> dict[str, Any]:
    """The config with every `auto` replaced, and what follows from it and the data."""
    from llmtrain.data import store, tokenizer as tokens
    from llmtrain.model.head import pooled_head

    content: dict[str, Any] = masked(OmegaConf.to_container(config, resolve=True))
    content |= {"device": machine.device, "devices": str(machine.world), "threads": str(machine.threads), "precision": machine.precision.name}
    content["trainer"]["micro_batch_size"] = job.micro_size
    content["tokenizer"]["algorithm"] = (
        "loaded" if built.tokenizer.path or built.model.tokenizer_path else built.tokenizer.trained(built.model.tokenizer_algorithm)
    )
    content["evaluation"]["best_metric"] = job.best_metric
    head = pooled_head(job.saved)
    content["model"]["pooling"] = head.pooling.name if head is not None else None  # nothing else is pooled as a setting says
    if built.cache is not None:
        content["cache"]["dtype"] = built.cache.stored_as(machine.precision.name)
        content["cache"]["use"] = "always" if cut is not None and cut.decision.use else "never"
    content["derived"] = {
        "versions": versions(),
        "total_steps": job.total_steps,
        "total_tokens": job.total_tokens,
        "train_sequences": "+".join(str(len(stage.train)) for stage in job.stages) if len(job.stages) > 1 else len(job.stages[0].train),
        "train_data": "+".join(store.fingerprint(stage.train) for stage in job.stages),
        **{f"{name}_data": fingerprint for name, fingerprint in judging.items()},
        "processor": machine.processor,
        "tokenizer": tokens.fingerprint(tokenizer),
        "vocabulary": len(tokenizer),
    }
    if job.base is not None:
        content["derived"]["base"] = job.base.digest
    return content


def _already_complete(machine: Runtime, job: Trainer, resume: Path) -> bool:
    state = checkpoint.run_state(resume)
    if state.step < job.total_steps and not state.stop:
        return False
    if files.problem(job.folder / "final") is not None or _said_to_be_done(job.folder) != state.step:
        return False  # killed between the last checkpoint and the last word: what is left to do is done now
    machine.console.print(f"already complete: {state.step} of {job.total_steps} updates done{f' ({state.stop})' if state.stop else ''}; nothing to do")
    return True


def _said_to_be_done(folder: Path) -> int | None:
    """The updates of the run whose final/ is there, by run.json, which is written after it."""
    try:
        found = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        return int(found["steps"]) if found["status"] == "finished" else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


# --- what people see ----------------------------------------------------------------------------------------------


def _panel(built: Parts, machine: Runtime, job: Trainer, anatomy: Anatomy, folder: Path, cut: Cut | None, verb: str) -> None:
    from rich.panel import Panel
    from rich.table import Table

    if not machine.main:
        return
    model = job.saved
    total = sum(p.numel() for p in model.parameters())
    moving = frozenset().union(*(phase.trainable for phase in job.phases))
    trainable = sum(p.numel() for n, p in model.named_parameters() if n in moving)
    tokens_per_step = job.total_tokens / job.total_steps
    of = [f"{len(stage.train):,} sequences of up to {length} tokens" for stage, (_, length) in zip(job.stages, built.data.lengths, strict=True)]
    lengths = f", from update {job.legs[0].last:,} on ".join(of) if len(job.stages) > 1 else of[0]
    grid = Table.grid(padding=(0, 2))
    processes = f" × {machine.world} processes{', the model divided over them' if machine.sharded else ''}" if machine.world > 1 else ""
    rows = {
        "model": f"{type(model).__name__}, {anatomy.depth} blocks, {total:,} parameters",
        "trainable": f"{trainable:,} ({trainable / total:.1%})",
        "data": f"{lengths}, {len(job.validation or []):,} held out",
        "steps": f"{job.total_steps:,} updates of about {tokens_per_step:,.0f} tokens, {job.total_tokens:,} in all",
        "device": f"{machine.device}{processes}: {machine.device_name}, {machine.threads} threads",
        "precision": f"{machine.precision.name}: {machine.why}",
        "folder": str(folder),
    }
    if verb == "finetune":
        from llmtrain import frozen

        rows["learning rate"] = f"{built.optimizer.lr:g} at its peak{', the default of this mode' if built.optimizer.lr == built.finetune.lr else ''}"
        nothing = f"nothing is computed once: {frozen.why_nothing(anatomy, job.phases, built.objective)}"
        rows["cache"] = cut.decision.why if cut is not None else nothing
    if any(stage.order.grouped for stage in job.stages):
        shares = [f"{stage.order.padding():.1%}" for stage in job.stages]
        rows["padding"] = f"{' then '.join(shares)} of what is computed, with batches grouped by length"
    for name, value in rows.items():
        grid.add_row(name, value)
    machine.console.print(Panel(grid, title=f"llmtrain {llmtrain.__version__}", title_align="left", expand=False))
    if verb == "finetune":
        _block_map(built, machine, job, anatomy)


def _block_map(built: Parts, machine: Runtime, job: Trainer, anatomy: Anatomy) -> None:
    """What is frozen and what moves, part by part, and what is tied to the other kind."""
    from llmtrain.finetune.base import tied_frozen, tied_moving
    from llmtrain.report import blocks

    machine.console.print(blocks.table(blocks.lines(job.saved, anatomy, job.phases, job.optimizer.lr)))
    moving = frozenset().union(*(phase.trainable for phase in job.phases))
    for name, other in tied_frozen(anatomy, moving).items():
        machine.console.print(f"{name} is tied to {other}, which is frozen: it stays frozen with it; finetune.untie=true trains a copy", markup=False)
    for name, other in tied_moving(anatomy, moving).items() if not built.finetune.trains_head else ():
        said = f"{name} is tied to {other}, which is trained: it moves with it, although finetune.head=false; finetune.untie=true freezes a copy"
        machine.console.print(said, markup=False)


def _results(built: Parts, machine: Runtime, job: Trainer, state: RunState, rows: dict[str, Dataset]) -> dict[str, Any]:
    """What run.json says of a run that ended: metrics and cost. The proof of what was frozen and what moved is added when the weights are those of final/."""
    if job.validation is not None and machine.main:
        references = {**built.objective.references(job.validation, job.vocabulary), **_baselines(built, job, rows)}
    else:
        references = {}
    return {
        "stopped": state.stop,
        "steps": state.step,
        "tokens": state.tokens,
        "validation": state.best_metrics if built.checkpoint.export == "best" and state.best_metrics else job.last_metrics,
        "validation_at_end": job.last_metrics,
        "references": references,
        "best": {
            "metric": job.best_metric,
            "value": state.best,
            "step": state.best_step,
            "higher": job.objective.metric_directions[job.best_metric] is Direction.higher,
        },
        "cost": {
            "train_seconds": round(state.seconds, 2),
            "evaluation_seconds": round(state.evaluation_seconds, 2),
            "tokens_per_second": round(state.tokens / state.seconds, 1) if state.seconds else None,
            "peak_memory_mb": round(machine.peak_memory_mb(), 1),
        },
    }


def _baselines(built: Parts, job: Trainer, rows: dict[str, Dataset]) -> dict[str, float]:
    """What knows nothing of the model gives on the validation examples that were judged."""
    if built.objective.target is None or job.validation is None:
        return {}
    return built.objective.baselines(rows["train"], rows["validation"])


def _moved_before(ready: Ready, history: list[dict[str, Any]]) -> frozenset[str]:
    """What moves no more, and moved until a resume changed what moves: the restored checkpoint has other bits of it than the start.

    Raises:
        ConfigError: the model is divided, so that no process knows a whole tensor of the checkpoint.
    """
    if not any(str(change.get("key")).startswith("finetune.") for change in history):
        return frozenset()
    job = ready.job
    if job.runtime.sharded:
        raise ConfigError("allow_change=[finetune]: a model that is divided over processes keeps what moves", fix="distributed.strategy=ddp")
    moving = frozenset().union(*(phase.trainable for phase in job.phases))
    now = checkpoint.tensors(job.saved)
    return frozenset(name for name, _ in job.saved.named_parameters() if name not in moving and checkpoint.tensor_sha256(now[name]) != ready.started[name])


def _proof(job: Trainer, started: dict[str, str], anatomy: Anatomy, step: int, moved_before: frozenset[str]) -> dict[str, Any]:
    """Tensor by tensor, of the weights after `step`: what was frozen until then has the bits it had, and what was trained has others.

    Args:
        moved_before: what was trained under earlier settings of the run and is frozen now: it counts as trained.
    """
    from llmtrain.report import blocks

    begins = [0, *(leg.last for leg in job.legs)]
    trainable = frozenset().union(moved_before, *(leg.phase.trainable for leg, begin in zip(job.legs, begins, strict=False) if begin < step))
    now = {name: checkpoint.tensor_sha256(t) for name, t in checkpoint.tensors(job.saved).items()}
    frozen = [n for n, _ in job.saved.named_parameters() if n not in trainable]
    moved_frozen = [n for n in frozen if now[n] != started[n]]
    still = [n for n in sorted(trainable - anatomy.unused) if now[n] == started[n]]
    if still:
        log.warning("%d trainable tensors did not move: %s", len(still), ", ".join(still[:3]))
    return {
        "frozen": len(frozen),
        "frozen_unchanged": len(frozen) - len(moved_frozen),
        "frozen_but_moved": moved_frozen,
        "trainable": len(trainable),
        "trainable_moved": len(trainable) - len(still),
        "trainable_but_still": still,
        "frozen_since_a_change": sorted(moved_before),
        "sections": blocks.as_json(blocks.lines(job.saved, anatomy, job.phases, job.optimizer.lr)),
    }


def refuse_moved(moved: list[str]) -> None:
    """Refuse to export weights of which something moved that was frozen: what the run says of itself would not be true.

    Raises:
        LLMTrainError: naming the tensors.
    """
    if moved:
        raise LLMTrainError(
            f"{len(moved)} frozen tensors moved: {', '.join(moved[:3])}{' …' if len(moved) > 3 else ''}; no final/ is written",
            fix="this is a fault of llmtrain: run.json lists them (freezing.frozen_but_moved), checkpoints/ holds the weights",
        )


def _take_best(built: Parts, machine: Runtime, job: Trainer, tokenizer: PreTrainedTokenizerBase, rows: dict[str, Dataset], folder: Path) -> None:
    """Put the best checkpoint's weights into the model; what it left out, since it had not moved by then, is read from the base again.

    Raises:
        CheckpointError: the checkpoint or the base are no longer what they were.
    """
    assert job.state.best_step is not None  # it is another one than the last
    found = checkpoint.read(checkpoint.folder_of(folder, job.state.best_step), job.base).weights
    moving = frozenset().union(*(phase.trainable for phase in job.phases))
    left_out = sorted(moving - found.keys())
    if left_out:
        assert job.base is not None
        first, _ = _prepared(built, _model(built, machine, tokenizer, machine.settings.seed, built.objective.outputs(rows["train"])), rows)
        own = checkpoint.tensors(first)
        changed = [name for name in left_out if checkpoint.tensor_sha256(own[name]) != job.base.sha256[name]]
        if changed:
            raise CheckpointError(f"{job.base.path} has changed since the run started: {', '.join(changed[:3])}", fix="restore those weights")
        found |= {name: own[name] for name in left_out}
    checkpoint.load_weights(job.saved, found, job.base)


def _judged(job: Trainer, best: bool) -> dict[str, Totals]:
    """What the exported weights give on the validation split, as it was measured, and on the test split, which nothing has looked at before."""
    found: dict[str, Totals] = {}
    if job.validation is not None and job.objective.target is not None:  # of the others, no single example is written down
        known = job.best_totals if best else job.last_totals
        found["validation"] = known if known is not None else job.judge(job.validation, job.validation_computed)  # None: it was before a resume
    if job.test is not None:
        found["test"] = job.judge(job.test, job.test_computed)
    return found


def _write_predictions(objective: Objective, judged: dict[str, Totals], folder: Path) -> None:
    """predictions.jsonl: what was answered for each example of a task, and what is true; reports compare runs by it, example by example."""
    if objective.target is None:
        return
    lines = []
    for split, totals in judged.items():
        for sample, (predicted, target) in sorted(totals.predictions.items()):
            if target == IGNORED or target != target:  # a row without an answer
                continue
            answer = (float(predicted), float(target)) if objective.target is Target.score else (int(predicted), int(target))
            lines.append(json.dumps({"split": split, "sample": sample, "target": answer[1], "predicted": answer[0]}))
    files.write(folder / "predictions.jsonl", "".join(f"{line}\n" for line in lines).encode())


def _export(built: Parts, job: Trainer, tokenizer: PreTrainedTokenizerBase, folder: Path, content: dict[str, Any]) -> None:
    """final/: a Hugging Face folder with weights, tokenizer, model card and a manifest; our head beside them, where there is one."""
    from llmtrain.model import head as heads
    from llmtrain.model.checkpoint import quiet
    from llmtrain.report.card import card

    model: PreTrainedModel = built.finetune.merged(job.saved)
    head = heads.pooled_head(model)
    with files.told(folder / "final"), files.new_folder(folder / "final") as temporary:
        with quiet():
            # A tensor that AutoModel does not know would be reported as unexpected.
            model.save_pretrained(temporary, state_dict=heads.saved(model))
        if head is not None:
            heads.save(head, temporary)
        tokenizer.save_pretrained(temporary)
        about = {**content, "pooled_head": head is not None}
        (temporary / "README.md").write_text(card(type(model).__name__, job.config, about), encoding="utf-8")
        files.write_manifest(temporary)


def _goodbye(
    machine: Runtime, job: Trainer, state: RunState, tokenizer: PreTrainedTokenizerBase, folder: Path, content: dict[str, Any], seed: int, verb: str
) -> None:
    """Numbers, three samples, and what to type next."""
    from llmtrain.report.curve import draw

    say, model = machine.console.print, job.saved
    metrics = (job.config.get("callback") or {}).get("metrics") or {}
    curve = draw(folder, {n: value for n, value in content["references"].items() if n == "unigram_entropy"}, metrics.get("file", "metrics.jsonl"))
    say()
    if content["validation"] != content["validation_at_end"]:
        say(f"best by {content['best']['metric'].replace('_', ' ')}, after step {state.best_step:,}; these weights are in final/")
    _numbers(say, content)
    cost, proof = content["cost"], content["freezing"]
    say(
        f"{cost['train_seconds']:.0f} s training, {cost['evaluation_seconds']:.0f} s evaluation · "
        f"{cost['tokens_per_second'] or 0:,.0f} tokens/s · peak memory {cost['peak_memory_mb']:,.0f} MB"
    )
    if verb == "finetune":
        say(
            f"proof: {proof['frozen_unchanged']} of {proof['frozen']} frozen tensors are bit for bit as they were, "
            f"{proof['trainable_moved']} of {proof['trainable']} trainable ones moved"
            + (f"; {len(proof['frozen_since_a_change'])} of these are frozen since a resume changed what moves" if proof["frozen_since_a_change"] else "")
        )
    content["samples"] = []
    verb_line = None
    if job.objective.head is Head.next_token:
        verb_line = f"llmtrain generate model.checkpoint={folder} prompt='The'"
        content["samples"] = _written(say, model, tokenizer, seed)
    elif "masked_lm" in job.objective.terms:
        verb_line = f"llmtrain predict model.checkpoint={folder} text='The {tokenizer.mask_token} of a list.'"
        content["samples"] = _filled(say, job, model, tokenizer)
    elif job.objective.head is Head.task:
        verb_line = f"llmtrain predict model.checkpoint={folder} file=TEXTS.csv"
    say("\nnext:")
    for line in (verb_line, f"llmtrain evaluate model.checkpoint={folder} split=test"):
        if line is not None:
            say(f"  {line}", soft_wrap=True, markup=False)  # a command that is broken into lines cannot be copied
    if curve is not None:
        say(f"curve: {curve}", soft_wrap=True)


def _numbers(say: Callable[..., None], content: dict[str, Any]) -> None:
    """The held-out metrics, and what knowing nothing would give."""
    metrics = dict(content["validation"])
    loss = metrics.pop("loss", None)
    references = {name: value for name, value in content["references"].items() if name == "unigram_entropy"}
    if loss is not None:
        say(f"held-out loss {loss:.3f}" + "".join(f" ({name.replace('_', ' ')} of the same tokens {value:.3f})" for name, value in references.items()))
    say(" · ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in metrics.items()))
    if content.get("test"):
        say("test: " + " · ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in content["test"].items()))
    others = {name: value for name, value in content["references"].items() if name not in references}
    if others:
        say("to compare: " + " · ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in others.items()))


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
    """What run.json will say. `skip`: leave the file as it is. `begun`: from here on it may differ from what the last start left."""

    def __init__(self) -> None:
        self.content: dict[str, Any] = {}
        self.skip = False
        self.begun = False


def written(verb: str, overrides: list[str], user_dir: Path | None) -> str:
    """The command of a run, as a shell takes it. It is masked first: quotes can take a secret apart."""
    options = [] if user_dir is None else ["--config-dir", str(user_dir)]
    return shlex.join(masked(["llmtrain", verb, *options, *overrides]))


@contextlib.contextmanager
def _recorded(machine: Runtime, folder: Path, verb: str, command: str | None) -> Iterator[Record]:
    """Write run.json when the run ends, however it ends."""
    record, began = Record(), time.time()
    status = {"status": "finished", "exit_code": 0}
    try:
        yield record
    except LLMTrainError as error:
        status = {"status": "stopped" if isinstance(error, Stopped) else "failed", "exit_code": error.exit_code, "error": error.screen()}
        raise
    except BaseException as error:
        status = {"status": "failed", "exit_code": 1, "error": masked(f"{type(error).__name__}: {error}")[:500]}
        raise
    finally:
        # A start that is refused, or broken off before its first update, takes nothing from what a finished run says of itself.
        kept = record.skip or (not record.begun and _said_to_be_done(folder) is not None)
        if machine.main and not kept:
            about = {
                "verb": verb,
                **status,
                "command": command,
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
                files.write_json(folder / "run.json", masked({**about, **record.content}))


def versions() -> dict[str, str]:
    """Python, and the packages whose version can change the bits."""
    from importlib.metadata import version

    names = ("torch", "transformers", "datasets", "accelerate", "tokenizers", "numpy")
    return {"python": platform.python_version(), "llmtrain": llmtrain.__version__, **{name: version(name) for name in names}}
