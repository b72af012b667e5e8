"""The loop: one for every objective, every finetuning mode, one device or many.

It knows steps, hooks and saving. It knows neither models nor tokens: a batch says how many targets it holds before
any forward pass, a learner gives sums, and the division happens here, once for an update:

    Σ over terms of  weight · (sum over micro-batches and processes) / (count over micro-batches and processes)

A term whose unit the data choose, such as squared errors of scores, is divided by the square of that unit besides.
"""

from __future__ import annotations

import bisect
import contextlib
import logging
import math
import statistics
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from llmtrain import checkpoint, files, sharding
from llmtrain.callback.base import Callback, Run, Step
from llmtrain.errors import CheckpointError, ConfigError, NonFiniteError, Stopped, require
from llmtrain.finetune.base import Phase
from llmtrain.objective.base import PREDICTIONS, Batch, Direction, Draw, Objective, Totals
from llmtrain.optimizer import Optimizer, load_state, set_lr, state_by_name
from llmtrain.processes import at
from llmtrain.runtime import OnNonfinite, Runtime, keep_memory
from llmtrain.schedule.base import Progress, Schedule
from llmtrain.seeding import key
from llmtrain.state import SIGNAL, RunState

if TYPE_CHECKING:
    import torch
    from datasets import Dataset
    from torch import nn
    from transformers import PreTrainedModel

    from llmtrain.data.loader import Order
    from llmtrain.data.tokenizer import Vocabulary

log = logging.getLogger("llmtrain")
ASKED_EVERY = 16  # batches of an evaluation after which several processes ask each other whether a signal came
NAMED = 8  # samples of an update that a message names
# A sudden rise of the loss (`usual_before`).
LASTING = 3  # updates in a row that must stand out: a batch of hard examples alone does not last
FEWEST = 20  # updates before them from which what is usual can be told
FACTOR = 1.5  # times the usual loss, however quiet it was before
DEVIATIONS = 5.0  # standard deviations of the logarithm of the losses


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How long to train and in which portions.

    Attributes:
        max_steps, max_epochs, max_tokens: the budget in updates, passes over the data or input tokens; exactly one.
        batch_size: sequences of an update, the same on any number of devices.
        micro_batch_size: sequences of a forward pass on one device; null: all of a device's share at once.
        clip_norm: largest norm of the whole gradient; null: no clipping.
        log_every_steps: updates between two records.
        gradient_checkpointing: forget activations and compute them again in the backward pass: less memory, slower.
        compile: torch.compile the learner: minutes at the start, faster steps.
        max_skipped: updates in a row that on_nonfinite=skip leaves out. In a row, because a skipped update changes no weight:
            where one batch after the other is not finite it is the weights, and not a batch, and it will not get better.
        spike_window: updates whose losses a sudden rise is held against (`usual_before`); null: no look at it.
    """

    max_steps: int | None
    max_epochs: float | None
    max_tokens: int | None
    batch_size: int
    micro_batch_size: int | None
    clip_norm: float | None
    log_every_steps: int
    gradient_checkpointing: bool
    compile: bool
    max_skipped: int
    spike_window: int | None

    def __post_init__(self) -> None:
        budgets = {n: getattr(self, n) for n in ("max_steps", "max_epochs", "max_tokens") if getattr(self, n) is not None}
        require(len(budgets) == 1, "max_steps", self.max_steps, "exactly one of max_steps, max_epochs, max_tokens")
        for name, value in budgets.items():
            require(0 < value < float("inf") and (name == "max_epochs" or value >= 1), name, value, "above 0, finite")
        require(self.batch_size >= 1, "batch_size", self.batch_size, "1 sequence or more")
        require(self.micro_batch_size is None or self.micro_batch_size >= 1, "micro_batch_size", self.micro_batch_size, "1 sequence or more, or null")
        require(self.clip_norm is None or 0 < self.clip_norm < float("inf"), "clip_norm", self.clip_norm, "above 0, finite, or null")
        require(self.log_every_steps >= 1, "log_every_steps", self.log_every_steps, "1 update or more")
        require(self.max_skipped >= 1, "max_skipped", self.max_skipped, "1 update or more", fix="on_nonfinite=stop skips none")
        window = self.spike_window
        require(window is None or window >= FEWEST, "spike_window", window, f"{FEWEST} updates or more, or null")

    def micro_size(self, world: int) -> int:
        """Sequences of a forward pass.

        Raises:
            ConfigError: the batch is not a whole number of micro-batches on every process.
        """
        micro = self.micro_batch_size or self.batch_size // world
        if micro < 1 or self.batch_size % (world * micro):
            size = world * max(micro, 1)
            near = sorted({max(size, self.batch_size // size * size), (self.batch_size // size + 1) * size})
            raise ConfigError(
                f"trainer.batch_size={self.batch_size} is not a multiple of {world} processes × trainer.micro_batch_size={max(micro, 1)}",
                allowed=" or ".join(f"trainer.batch_size={n}" for n in near),
            )
        return micro


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """When to evaluate, and by what the best is known.

    Attributes:
        every_steps: updates between two evaluations; a number below 1 is a share of the run; null: only at the end.
        best_metric: the metric that decides which checkpoint is best, and early stopping; null: the objective's own choice.
        batch_size: sequences of a forward pass on one device; null: as in training.
        max_samples: sequences of the validation split to use, the same ones every time; null: all.
        test: whether the weights that are exported are held against the test split, once, at the end.
    """

    every_steps: float | None
    best_metric: str | None
    batch_size: int | None
    max_samples: int | None
    test: bool

    def __post_init__(self) -> None:
        whole = self.every_steps is None or 0 < self.every_steps < 1 or (self.every_steps >= 1 and float(self.every_steps).is_integer())
        require(whole, "every_steps", self.every_steps, "a whole number of updates, a share of the run between 0 and 1, or null")
        for name in ("batch_size", "max_samples"):
            value = getattr(self, name)
            require(value is None or value >= 1, name, value, "1 or more, or null")

    def every(self, total: int) -> int | None:
        """Updates between two evaluations of a run of `total` updates."""
        if self.every_steps is None:
            return None
        return max(1, round(self.every_steps * total)) if self.every_steps < 1 else int(self.every_steps)


# --- evaluation ---------------------------------------------------------------------------------------------------


Call = Callable[[Batch], dict[str, "torch.Tensor"]]


class Computed(Protocol):
    """What was computed once for each sample of some examples, and takes the place of the model's inputs or adds to them.

    Attributes:
        whole: it takes their place.
    """

    @property
    def whole(self) -> bool: ...

    def into(self, batch: Batch) -> Batch:
        """The batch with what was computed for its samples."""


def collate(objective: Objective, seed: int, vocabulary: Vocabulary, computed: Computed | None, examples: list[dict[str, Any]], epoch: int | str) -> Batch:
    """A batch for an epoch or for "eval". A plain function, so that workers can be given it."""
    batch = objective.collate(examples, Draw(seed, epoch), vocabulary)  # type: ignore[arg-type]
    return batch if computed is None else computed.into(batch)


def read(examples: Dataset, objective: Objective, computed: Computed | None) -> Dataset:
    """Examples without the columns that nothing is made of, since what would be is there already."""
    if computed is None or not computed.whole:
        return examples
    return examples.remove_columns([name for name in objective.inputs if name in examples.column_names])


def evaluate(
    call: Call, objective: Objective, examples: Dataset, vocabulary: Vocabulary, runtime: Runtime, batch_size: int, computed: Computed | None = None
) -> Totals:
    """Sums, counts, sizes and predictions over `examples`, each row exactly once on any number of processes.

    The draws are fixed, the rows stand in their own order, and no global random number is used: it gives the same
    number every time, and training does not notice that it ran.
    """
    import torch

    from llmtrain.data.loader import load, micro_batches

    rows = _by_length(examples)
    whole = [rows[i : i + batch_size * runtime.world] for i in range(0, len(rows), batch_size * runtime.world)]
    mine = [m for batch in whole for m in micro_batches(batch, runtime.rank, runtime.world, batch_size)]
    requests = iter([[(-1, sample, real) for sample in samples] for samples, real in mine])
    totals = Totals()
    with torch.no_grad():
        loader = load(read(examples, objective, computed), requests, partial(collate, objective, 0, vocabulary, computed), num_workers=0, seed=0)
        for number, batch in enumerate(loader, 1):
            add(totals, batch, call(batch.to(runtime.accelerator.device)))
            # After a signal the loop stops at once, and this evaluation is repeated after the resume. Several processes have to agree on that.
            if (runtime.world == 1 or number % ASKED_EVERY == 0) and runtime.any(runtime.signalled.is_set()):
                break
    return _over_processes(totals, runtime)


def add(totals: Totals, batch: Batch, sums: dict[str, torch.Tensor]) -> None:
    """Add what a batch gave."""
    if PREDICTIONS in sums:
        found = sums[PREDICTIONS].cpu().double().numpy()  # in this order: MPS has no float64
        totals.predictions.update(zip(batch.samples, found, strict=False))  # no samples: a batch that only keeps in step
        sums = {name: value for name, value in sums.items() if name != PREDICTIONS}
    for into, values in ((totals.sums, sums), (totals.counts, batch.counts), (totals.sizes, batch.sizes)):
        for name, value in values.items():
            into[name] = into.get(name, 0.0) + float(value)


def _by_length(examples: Dataset) -> list[int]:
    """Row numbers, long rows first: little padding, and a lack of memory shows at once."""
    from llmtrain.data.loader import lengths

    return [int(i) for i in np.argsort(-lengths(examples), kind="stable")]


def _over_processes(totals: Totals, runtime: Runtime) -> Totals:
    parts = (totals.sums, totals.counts, totals.sizes)
    flat = runtime.sum([value for part in parts for value in part.values()])
    values = iter(flat)
    predictions = {sample: row for found in runtime.gather(totals.predictions) for sample, row in found.items()}
    sums, counts, sizes = ({name: next(values) for name in part} for part in parts)
    return Totals(sums, counts, sizes, predictions)


# --- training -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stage:
    """A stretch of training on one set of examples: sequences of 128 tokens first, say, then of 512.

    Attributes:
        until: share of the whole budget at which it ends; the last stage ends at 1.
        train: its examples.
        order: of these examples.
        computed: what frozen layers made of them.
    """

    until: float
    train: Dataset
    order: Order
    computed: Computed | None = None


@dataclass(frozen=True)
class Leg:
    """A stretch of training in which neither the trainable set nor the examples change.

    Attributes:
        last: the update at which it ends.
    """

    last: int
    phase: Phase
    stage: Stage


def legs(phases: Sequence[Phase], stages: Sequence[Stage], total: int) -> list[Leg]:
    """Phases and stages laid over each other. Each leg draws an order of its own, and its epochs count on from those of the leg before."""
    ends = sorted({*(phase.until for phase in phases), *(stage.until for stage in stages)})
    found: list[Leg] = []
    begin = before = 0
    for number, end in enumerate(ends):
        phase = next(phase for phase in phases if phase.until >= end)
        stage = next(stage for stage in stages if stage.until >= end)
        stage = replace(stage, order=replace(stage.order, phase=number, before=before))
        last = total if end == ends[-1] else round(end * total)
        found.append(Leg(last, phase, stage))
        before += -(-(last - begin) // stage.order.per_epoch)
        begin = last
    return found


def _tokens(parts: Sequence[Leg]) -> int:
    """Input tokens of all updates of some legs."""
    return sum(leg.stage.order.tokens(leg.last - begin) for begin, leg in zip([0, *(leg.last for leg in parts)], parts, strict=False))


@dataclass
class Trainer:
    """Everything a run needs, already built. `fit` runs it.

    Attributes:
        phases: what may change, until when.
        stages: the examples, until when.
        model: the whole one; `run_on` may give a part of it that runs instead and shares its parameters.
        frozen: given the trainable parameters, the names of the modules that stay in eval().
        test: examples that the exported weights are held against, once.
        validation_computed, test_computed: what frozen layers made of the validation and test examples.
        base: the weights that the run started from, which checkpoints then leave out.
        resume: the checkpoint to go on from.
        divisors: what the mean of a term is divided by where gradients are taken, and nowhere else; 1 where it is not there.
        blocks: names of the modules that are gathered each by itself, where the model is divided over the processes.
    """

    settings: Settings
    evaluation: Evaluation
    checkpoints: checkpoint.Settings
    optimizer: Optimizer
    schedule: Schedule
    model: PreTrainedModel
    objective: Objective
    phases: list[Phase]
    stages: list[Stage]
    validation: Dataset | None
    vocabulary: Vocabulary
    runtime: Runtime
    callbacks: list[Callback]
    folder: Path
    seed: int
    num_workers: int
    frozen: Callable[[Collection[str]], Collection[str]]
    config: dict[str, Any] = field(default_factory=dict)
    test: Dataset | None = None
    validation_computed: Computed | None = None
    test_computed: Computed | None = None
    base: checkpoint.Base | None = None
    resume: Path | None = None
    divisors: Mapping[str, float] = field(default_factory=dict)
    blocks: Sequence[str] = ()

    def __post_init__(self) -> None:
        self.state = RunState()
        self.saved = self.model
        self.best_metric = self.evaluation.best_metric or self.objective.best_metric
        self.total_steps = self._total_steps()
        self.every = self.evaluation.every(self.total_steps)
        self.legs = self._legs_from_here()
        self.total_tokens = _tokens(self.legs)
        self.micro_size = self.settings.micro_size(self.runtime.world)
        self.last_metrics: dict[str, float] = {}
        self.last_totals: Totals | None = None
        self.best_totals: Totals | None = None
        self.forget_best: str | None = None
        self._restored = False
        self._moments: Mapping[str, Mapping[str, torch.Tensor]] = {}
        self._scaler: dict[str, Any] | None = None
        self._skeleton: Any = None  # of a divided model; None: it is not divided (yet)
        self._unread: Path | None = None  # the checkpoint, until it is known which part of it this process holds
        if self.runtime.sharded and len({phase.trainable for phase in self.phases}) > 1:
            raise ConfigError(
                "distributed.strategy=fsdp: what moves changes during the run, and a divided model cannot be thawed",
                allowed="finetuning modes of one phase",
                fix="distributed.strategy=ddp",
            )

    def run_on(self, model: PreTrainedModel, stages: list[Stage], validation_computed: Computed | None, test_computed: Computed | None = None) -> None:
        """Go on with a part of the model, on what the rest of it made of the examples."""
        self.model, self.stages, self.validation_computed, self.test_computed = model, stages, validation_computed, test_computed
        self.legs = self._legs_from_here()

    def fit(self) -> RunState:
        """Train until the budget is used up or something asks to stop.

        Raises:
            NonFiniteError: before the update that would have spoilt the weights, or after too many that were skipped.
            CheckpointError: the checkpoint to go on from does not fit.
            Stopped: a signal came; a checkpoint was saved.
        """
        self.restore()
        keep_memory()
        self._tell("on_start")
        self.runtime.console.print(f"resumed from step {self.state.step}" if self.resume else "starting from step 0")
        try:
            for index in range(self.state.phase, len(self.legs)):
                self._fit_leg(index)
                if self.state.stop:
                    break
        finally:
            self._tell("on_end")
        if self.state.stop == SIGNAL and (self.state.step < self.total_steps or self._evaluation_due()):
            raise self._stopped()
        return self.state

    def judge(self, examples: Dataset, computed: Computed | None) -> Totals:
        """What the weights give, as they are now after `fit`, on all processes together.

        Raises:
            Stopped: a signal came; the same command does it again.
        """
        at("the last evaluation")
        self.model.eval()
        totals = evaluate(self._call, self.objective, examples, self.vocabulary, self.runtime, self.evaluation.batch_size or self.micro_size, computed)
        if self._signalled():
            raise self._stopped()
        return totals

    def _stopped(self) -> Stopped:
        return Stopped(
            f"stopped by a signal after step {self.state.step}; the checkpoint is saved",
            fix=f"the same command with output_dir={self.folder} goes on from here",
        )

    # --- one leg

    def _fit_leg(self, index: int) -> None:
        """Build wrapper and optimizer for the leg's trainable set, and run its updates."""
        leg, state = self.legs[index], self.state
        if index != state.phase:
            state.phase, state.phase_step = index, 0
            self._announce(index)
        self._call, self._adamw = self._prepare(leg.phase)
        if self._evaluation_due():  # a signal cut it short before this resume
            self._boundary()
        batches = self._batches(leg.stage, leg.last - state.step)
        while state.step < leg.last and not state.stop:
            at(f"update {state.step + 1}")
            began = time.perf_counter()
            step = self._update(next(batches))
            self._after(step, time.perf_counter() - began)
        self._moments = state_by_name(self._inner(self._adamw))

    def _announce(self, index: int) -> None:
        before, now = self.legs[index - 1].stage, self.legs[index].stage
        if before.until != now.until:
            longest = int(now.order.lengths.max())
            self.runtime.console.print(f"step {self.state.step}: from here on sequences of up to {longest} tokens")

    def _prepare(self, phase: Phase) -> tuple[Callable[[Batch], dict[str, torch.Tensor]], Any]:
        """The learner as it is called, and the optimizer as it is stepped: wrapped by Accelerate."""
        import torch

        from llmtrain.objective.learner import Learner

        freeze(self.saved, phase)
        accelerator = self.runtime.accelerator
        accelerator.free_memory()
        # A new Learner for every phase: Accelerate leaves a module that it has prepared before as it was.
        call = self._divided(Learner(self.model, self.objective)) if self.runtime.sharded else None
        inner = self.optimizer.build(self.saved, phase.trainable, phase.lr_scale)
        if self._unread is not None:
            checkpoint.load_parts(self._unread, self.saved, state_by_name(inner), self.base)
            self._unread = None
        load_state(inner, self._moments)
        if call is None:
            call, prepared = accelerator.prepare(Learner(self.model, self.objective), inner)
        else:
            prepared = accelerator.prepare_optimizer(inner)
        if accelerator.scaler is not None and self._scaler:
            accelerator.scaler.load_state_dict(self._scaler)
            self._scaler = None  # the checkpoint's; from here on the scaler's own state goes on, through every leg
        self._trained = [p for p in self.saved.parameters() if p.requires_grad]
        self._eval = frozenset(self.frozen(phase.trainable))
        set_modes(self.model, self._eval)
        return torch.compile(call) if self.settings.compile else call, prepared

    def _divided(self, learner: nn.Module) -> Any:
        """The learner with its parameters divided over the processes, once for all legs; Accelerate adds the precision and no wrapper."""
        if self._skeleton is not None:
            return self._call
        self._skeleton = sharding.skeleton(self.saved)
        sharding.shard(learner, self.saved, self.blocks, self.runtime.device)
        return self.runtime.accelerator.prepare_model(learner, evaluation_mode=True)

    def gather(self) -> None:
        """After the last update: on the main process the model is one again, in host memory, and no longer on the others. All of them call it."""
        if self._skeleton is None:
            return
        sharding.gathered(self.saved, self._skeleton, self.runtime.main)
        if self.runtime.main:
            self.saved = self.model = self._skeleton

    def _batches(self, stage: Stage, updates: int) -> Iterator[list[Batch]]:
        """This process's micro-batches of each update, from where the state stands."""
        from llmtrain.data.loader import load, micro_batches

        rank, world, size = self.runtime.rank, self.runtime.world, self.micro_size
        sizes: list[int] = []

        def requests() -> Iterator[list[tuple[int, int, bool]]]:
            for (epoch, batch), _ in zip(stage.order.updates(self.state.phase_step), range(updates), strict=False):
                micro = micro_batches(batch, rank, world, size)
                sizes.append(len(micro))
                yield from ([(epoch, sample, real) for sample in samples] for samples, real in micro)

        loader = load(
            read(stage.train, self.objective, stage.computed),
            requests(),
            partial(collate, self.objective, self.seed, self.vocabulary, stage.computed),
            num_workers=self.num_workers,
            seed=self.seed,
            pin_memory=self.runtime.device == "cuda",
        )
        group: list[Batch] = []
        done = 0
        for batch in loader:
            group.append(batch)
            if len(group) == sizes[done]:
                yield group
                group, done = [], done + 1

    # --- one update

    def _update(self, batches: list[Batch]) -> Step:
        """Forward and backward over the micro-batches, one division, one clip, one step."""
        runtime, state, accelerator = self.runtime, self.state, self.runtime.accelerator
        terms = [term for term, weight in self.objective.weights.items() if weight]
        local = [float(sum(b.counts[t] for b in batches)) for t in terms]
        tokens = float(sum(b.sizes.get("tokens", 0) for b in batches))
        samples = float(sum(len(b.samples) for b in batches))
        *counted, all_tokens, all_samples = runtime.sum([*local, tokens, samples])
        counts = dict(zip(terms, counted, strict=True))
        asked = any(counted)  # else there are no gradients to clip or to step by, and a loss scaler fails where it finds none
        lr = self.optimizer.lr * self.schedule.factor(Progress(state.step, state.tokens, self.total_steps, self.total_tokens))
        set_lr(self._inner(self._adamw), lr)
        found: list[list[torch.Tensor]] = []  # of each micro-batch, the sum of each term
        for i, batch in enumerate(batches):
            runtime.seed(key(self.seed, "step", runtime.rank, state.micro_step + i))
            wait = i + 1 < len(batches)
            with accelerator.no_sync(self._call) if wait and runtime.world > 1 else contextlib.nullcontext():
                losses = self._call(batch.to(accelerator.device))
                # DDP averages over processes; times their number, that is the sum.
                loss = sum(self.objective.weights[t] * losses[t] / (counts[t] * self.divisors.get(t, 1.0)) for t in terms if counts[t]) * runtime.world
                if asked:
                    accelerator.backward(loss)
            found.append([losses[t].detach() for t in terms])
        # On a GPU the host waits here for the device: once, when all is asked of it, and not after each micro-batch.
        values = [[float(value) for value in row] for row in found]
        sums = {t: sum(row[number] for row in values) for number, t in enumerate(terms)}
        suspects = [s for batch, row in zip(batches, values, strict=True) if not all(map(math.isfinite, row)) for s in batch.samples]
        totals = dict(zip(terms, runtime.sum([sums[t] for t in terms]), strict=True))
        norm = self._clip() if asked else 0.0
        means = {t: totals[t] / counts[t] if counts[t] else 0.0 for t in terms}
        finite = self._finite(means, norm)
        if finite and asked and math.isfinite(norm):
            self._adamw.step()
        elif finite and asked:
            accelerator.scaler.update()  # without the step: fused AdamW would leave it out by itself, but not on an earlier MPS (pytorch #186360)
        elif not finite:
            self._skip(means, norm, lr, suspects, [s for b in batches for s in b.samples])
        self._adamw.zero_grad(set_to_none=True)
        state.step += 1
        state.phase_step += 1
        state.micro_step += len(batches)
        state.tokens += round(all_tokens)
        state.samples += round(all_samples)
        if finite:
            for t in terms:
                value, count = state.window.get(t, [0.0, 0.0])
                state.window[t] = [value + totals[t], count + counts[t]]
            state.skipped_in_a_row = 0
            self._watch(sum(self.objective.weights[t] * means[t] for t in terms))
        return Step(losses=means, lr=lr, grad_norm=norm, tokens=round(all_tokens))

    def _clip(self) -> float:
        """The norm of all gradients together, which are scaled down to `clip_norm` where it is above that."""
        from torch.nn import utils

        limit, accelerator = self.settings.clip_norm or math.inf, self.runtime.accelerator
        if self.runtime.sharded or self.runtime.device != "cpu" or accelerator.scaler is not None:
            return float(sharding.whole(accelerator.clip_grad_norm_(self._trained, limit)))
        # torch scales by 1 where nothing is to be clipped, so as not to wait for a GPU. On a CPU there is nothing to wait for, and it
        # would be one more way through all gradients.
        norm = utils.get_total_norm([p.grad for p in self._trained if p.grad is not None])
        if not norm + 1e-6 <= limit:
            utils.clip_grads_with_norm_(self._trained, limit, norm)
        return float(norm)

    def _finite(self, means: dict[str, float], norm: float) -> bool:
        """Whether the update can be made: the same answer on every process.

        Under fp16 an infinite gradient alone is the scaler's to skip, which then halves its scale; below 1 it was not the scale.
        """
        scaler = self.runtime.accelerator.scaler
        fine = all(map(math.isfinite, means.values())) and (math.isfinite(norm) or (scaler is not None and scaler.get_scale() >= 1))
        return not self.runtime.any(not fine)

    def _skip(self, means: dict[str, float], norm: float, lr: float, suspects: list[int], samples: list[int]) -> None:
        """Leave the update out, on every process; weights, what the optimizer has gathered and its counts stay as they are.

        Args:
            suspects: samples of this process in forward passes whose loss is not finite; where none is anywhere, it is the gradient.
            samples: all of this process's.

        Raises:
            NonFiniteError: the run is to stop at the first one, or there were too many in a row.
        """
        state, runtime = self.state, self.runtime
        gathered = runtime.gather((suspects, samples))
        each = max(1, NAMED // runtime.world)
        parts = [part for part, _ in gathered] if any(part for part, _ in gathered) else [part for _, part in gathered]
        named = [s for part in parts for s in part[:each]]
        more = "…" if len(named) < sum(map(len, parts)) else ""
        what = "gradient" if all(map(math.isfinite, means.values())) else "loss"
        loss = " ".join(f"{name} {value:.4g}" if len(means) > 1 else f"loss {value:.4g}" for name, value in means.items())
        said = f"the {what} is not finite at step {state.step + 1}: {loss}, gradient norm {norm:.3g}, lr {lr:.3g}, samples {named}{more}"
        skip, limit = runtime.settings.on_nonfinite is OnNonfinite.skip, self.settings.max_skipped
        if not skip or state.skipped_in_a_row >= limit:
            last = checkpoint.intact(self.folder, state.step)
            raise NonFiniteError(
                said + (f"; {limit} updates in a row were skipped before it (trainer.max_skipped)" if skip else ""),
                fix="a lower optimizer.lr or a longer schedule.warmup_steps ('allow_change=[optimizer.lr,schedule.warmup_steps]' lets a resume take them)"
                f"{'' if skip else ', or on_nonfinite=skip'}; last good checkpoint: {last or 'none yet'}",
            )
        state.skipped += 1
        state.skipped_in_a_row += 1
        if runtime.accelerator.scaler is not None:
            runtime.accelerator.scaler.update()  # as where it skips one itself: it has seen these gradients, and its next look needs this call
        log.warning("%s; the update is skipped (%d so far, %d in a row)", said, state.skipped, state.skipped_in_a_row)

    def _watch(self, loss: float) -> None:
        """Warn of a sudden rise of the loss; once in a window, since what has risen often stays there."""
        state, length = self.state, self.settings.spike_window
        if length is None:
            return
        state.losses = [*state.losses, loss][-(length + LASTING) :]
        if state.spike_step is not None and state.step - state.spike_step < length:
            return
        usual = usual_before(state.losses)
        if usual is not None:
            state.spike_step = state.step
            log.warning(
                "loss %.4g at step %d is %.1f times the usual %.4g (window: the median of %d updates; the last %d all stand out)",
                loss, state.step, loss / usual, usual, len(state.losses) - LASTING, LASTING,
            )  # fmt: skip

    # --- what follows an update

    def _after(self, step: Step, seconds: float) -> None:
        """Say it, evaluate, look for signals, save: in this order, so that a checkpoint holds what all of them did."""
        state = self.state
        state.seconds += seconds
        step = replace(step, seconds=seconds)
        self._tell("on_step", replace(step, record=self._record(step)))
        self._boundary()

    def _boundary(self) -> None:
        state = self.state
        evaluated = self._evaluation_due()
        if evaluated:
            self._evaluate()
        if self._signalled() and state.stop is None:  # what ends the run for good is not to be forgotten at the resume
            state.stop = SIGNAL
        best = self.checkpoints.keep_best and evaluated and state.best_step == state.step
        if state.stop or best or state.step == self.total_steps or due(self.checkpoints.every_steps, state.step):
            self._save()

    def _evaluation_due(self) -> bool:
        """At every multiple and at the end of the budget, once."""
        step = self.state.step
        wanted = step > 0 and (step == self.total_steps or due(self.every, step))
        return self.validation is not None and wanted and self.state.evaluated_step != step

    def _signalled(self) -> bool:
        """Whether a signal reached any process; from then on all of them know."""
        if self.runtime.any(self.runtime.signalled.is_set()):
            self.runtime.signalled.set()
        return self.runtime.signalled.is_set()

    def _record(self, step: Step) -> dict[str, Any] | None:
        """A line of metrics.jsonl every log_every_steps: losses are means over the interval's targets."""
        state = self.state
        if state.step % self.settings.log_every_steps:
            return None
        losses = {f"loss_{t}": s / c if c else 0.0 for t, (s, c) in state.window.items()}
        state.window = {}
        return {
            "step": state.step,
            "tokens": state.tokens,
            **losses,
            "lr": step.lr,
            "grad_norm": step.grad_norm if math.isfinite(step.grad_norm) else None,
            **({"skipped": state.skipped} if state.skipped or self.runtime.settings.on_nonfinite is OnNonfinite.skip else {}),
            "tokens_per_second": round(step.tokens_per_second, 1),
            "train_seconds": round(state.seconds, 3),
        }

    def _evaluate(self) -> None:
        assert self.validation is not None
        state, began = self.state, time.perf_counter()
        at(f"the evaluation after update {state.step}")
        self.model.eval()
        size = self.evaluation.batch_size or self.micro_size
        totals = evaluate(self._call, self.objective, self.validation, self.vocabulary, self.runtime, size, self.validation_computed)
        set_modes(self.model, self._eval)
        if self._signalled():
            return  # it may have ended early; after the resume it is done again
        state.metrics = self.last_metrics = self.objective.metrics(totals)
        self.last_totals = totals
        state.evaluations += 1
        state.evaluated_step = state.step
        state.evaluation_seconds += time.perf_counter() - began
        if self._better(self.last_metrics[self.best_metric]):
            state.best, state.best_step, state.since_best = self.last_metrics[self.best_metric], state.step, 0
            state.best_metric, state.best_metrics = self.best_metric, self.last_metrics
            self.best_totals = totals
        else:
            state.since_best += 1
        self._tell("on_evaluate", self.last_metrics)

    def _better(self, value: float) -> bool:
        if not math.isfinite(value):
            return False
        higher = self.objective.metric_directions[self.best_metric] is Direction.higher
        return self.state.best is None or (value > self.state.best if higher else value < self.state.best)

    # --- saving and resuming

    def _save(self) -> None:
        path = checkpoint.folder_of(self.folder, self.state.step)
        at(f"the checkpoint of update {self.state.step}")
        scaler = self.runtime.accelerator.scaler
        content = {"run": self.state.to_json(), "scaler": None if scaler is None else scaler.state_dict()}
        moments = state_by_name(self._inner(self._adamw))
        about: dict[str, Any] = {"step": self.state.step, "model": self.saved, "optimizer": moments, "state": content, "base": self.base}
        if self.runtime.sharded:
            checkpoint.save_shards(self.folder, **about, rank=self.runtime.rank, gather=self.runtime.gather)
        elif self.runtime.main:
            checkpoint.save(self.folder, **about)
        if self.runtime.main:
            if self.state.best_step == self.state.step:
                checkpoint.link(self.folder, "best", path)
            checkpoint.prune(self.folder, self.checkpoints.keep_last, self.state.best_step if self.checkpoints.keep_best else None, self.state.step)
        self.runtime.accelerator.wait_for_everyone()
        self._tell("on_save", path)

    def restore(self) -> None:
        """Take weights, state and what the optimizer has gathered from the checkpoint; `fit` does it where nobody has.

        Raises:
            CheckpointError: it does not fit the model, the weights that it builds on, or the stretches of this training.
        """
        if self.resume is None or self._restored:
            return
        loaded = self._read(self.resume)
        state = RunState.from_json(loaded.state["run"])
        if state.phase >= len(self.legs):
            raise CheckpointError(
                f"{self.resume} stands in stretch {state.phase + 1} of its training, and with these settings there are {len(self.legs)}",
                allowed="what moves (finetune) and lengths of sequences (data.short_length) with as many stretches",
                fix="give the same settings, or start anew with another output_dir",
            )
        if self._unread is None:
            checkpoint.load_weights(self.saved, loaded.weights, self.base)
        else:
            checkpoint.refuse_misfit(self._unread, self.saved, self.base)  # now, while nothing of this resume is written down yet
        self.state, self._restored = state, True
        self._moments, self._scaler = loaded.optimizer, loaded.state.get("scaler")
        self.last_metrics = self.state.metrics
        self._doubt_best()

    def _read(self, path: Path) -> checkpoint.Loaded:
        """A checkpoint; where the model is to be divided its state alone, and each process reads its part of the tensors later."""
        if not self.runtime.sharded:
            return checkpoint.read(path, self.base)
        self._unread, share = path, (self.runtime.rank, self.runtime.world)
        state = sharding.agreed(self.runtime.gather, lambda: checkpoint.about(path, self.base, share))[0]
        return checkpoint.Loaded(path, {}, {}, state)

    def _doubt_best(self) -> None:
        """Look for the best anew where the one that is known can no longer be compared with, or is no longer there."""
        state = self.state
        if state.best is None:
            return
        why = self.forget_best
        if state.best_metric not in (None, self.best_metric):
            why = f"it is now decided by {self.best_metric}, no longer by {state.best_metric}"
        elif why is None and self.checkpoints.keep_best and state.best_step is not None:
            path = checkpoint.folder_of(self.folder, state.best_step)
            wrong = (files.problem(path) if path.is_dir() else "it is gone") if self.runtime.main else None
            wrong = self.runtime.broadcast(wrong)
            why = None if wrong is None else f"{path.name} had it: {wrong}"
        if why is not None:
            name = state.best_metric or self.best_metric
            log.warning("the best so far (%s %.4g after step %s) is forgotten and looked for anew: %s", name, state.best, state.best_step, why)
            state.best = state.best_step = None
            state.best_metrics, state.since_best = {}, 0

    # --- small things

    def _total_steps(self) -> int:
        """Updates of the budget. An epoch of several stages is a pass over each in proportion to its share."""
        given, order = self.settings, self.stages[0].order
        if given.max_steps is not None:
            return given.max_steps
        if len(self.phases) == len(self.stages) == 1:
            return order.steps(epochs=given.max_epochs, tokens=given.max_tokens)
        if given.max_epochs is not None:
            shares = zip([0.0, *(s.until for s in self.stages)], self.stages, strict=False)
            return max(1, round(given.max_epochs / sum((s.until - begin) / s.order.per_epoch for begin, s in shares)))
        assert given.max_tokens is not None
        budget = given.max_tokens
        return 1 + bisect.bisect_left(range(1, budget + 1), budget, key=lambda total: _tokens(legs(self.phases, self.stages, total)))

    def _legs_from_here(self) -> list[Leg]:
        """The legs; where the run that is resumed has left one behind, under a shorter budget perhaps, it ended where it did."""
        found = legs(self.phases, self.stages, self.total_steps)
        if self.resume is None:
            return found
        state = checkpoint.run_state(self.resume)
        if state.phase >= len(found):
            return found  # `restore` refuses it
        if state.phase and (ended := state.step - state.phase_step) != found[state.phase - 1].last:
            log.info("the change before update %s stays where it was; what follows takes the rest of the new budget", f"{ended + 1:,}")
            found[: state.phase] = [replace(leg, last=min(leg.last, ended)) for leg in found[: state.phase]]
        return found

    def _inner(self, optimizer: Any) -> torch.optim.Optimizer:
        """Accelerate's wrapper around the optimizer taken off."""
        inner: torch.optim.Optimizer = getattr(optimizer, "optimizer", optimizer)
        return inner

    def _tell(self, hook: str, *arguments: Any) -> None:
        for callback in self.callbacks:
            getattr(callback, hook)(self._run(), self.state, *arguments)

    def _run(self) -> Run:
        every = self.every
        higher = self.objective.metric_directions[self.best_metric] is Direction.higher
        evaluations = 0 if self.validation is None else self.total_steps // every if every else 1
        return Run(self.runtime, self.folder, self.total_steps, evaluations, self.settings.log_every_steps, self.best_metric, higher, self.config)


def usual_before(losses: Sequence[float]) -> float | None:
    """The usual loss, where each of the last LASTING of `losses` is a sudden rise from it; None where all is well.

    With m the median of the losses before those, and s = 1.4826 · median |log(loss / m)| (the standard deviation of the
    logarithms where they are normal; neither m nor s feels a few outliers), each of the last ones must be above

        m · max(FACTOR, exp(DEVIATIONS · s))

    Logarithms, because small losses are skewed: 0.01 for most batches and 1 for a few. Several in a row, because such a
    batch says nothing, and what has spoilt the weights lasts. The first losses of a run raise no alarm: they are the highest.
    """
    before, last = losses[:-LASTING], losses[-LASTING:]
    if len(before) < FEWEST:
        return None
    usual = statistics.median(before)
    if usual <= 0 or min(last) <= FACTOR * usual:
        return None
    smallest = usual * 1e-6  # a loss of exactly 0 has no logarithm
    deviation = 1.4826 * statistics.median(abs(math.log(max(value, smallest) / usual)) for value in before)
    return usual if min(last) > usual * math.exp(DEVIATIONS * deviation) else None


def due(every: int | None, step: int) -> bool:
    return every is not None and step % every == 0


def freeze(model: nn.Module, phase: Phase) -> None:
    """Let exactly the phase's parameters move, and check that it is so.

    Raises:
        ConfigError: a name that the model does not have, or nothing to train.
    """
    names = {name for name, _ in model.named_parameters()}
    unknown = phase.trainable - names
    if unknown or not phase.trainable:
        raise ConfigError(
            f"the finetuning mode trains {sorted(unknown)[:3] or 'nothing'}", allowed=f"parameters of the model, such as {', '.join(sorted(names)[:5])}"
        )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in phase.trainable)
        parameter.grad = None


def set_modes(model: nn.Module, frozen: Collection[str]) -> None:
    """train() for what moves, eval() for modules that are frozen: their dropout would be noise, and a cache of them another model.

    Each module by itself: one around the blocks may be among them while blocks in it learn.
    """
    model.train()
    for name, module in model.named_modules():
        if name in frozen:
            module.training = False
