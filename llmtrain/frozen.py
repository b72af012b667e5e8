"""What is frozen is computed once: the cut of a model at its deepest frozen boundary, for the trainer.

    cut = plan(…)          how deep nothing moves in any phase, and what storing it would cost and save
    made = cut.make(…)     the states of every example, from the disk or computed now, and the part of the model above them

Where only the pooled head moves, what is stored is one vector for each sequence, and the body does not run at all.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from llmtrain import cache
from llmtrain.data import loader, store, tokenizer as tokens
from llmtrain.finetune.base import Phase
from llmtrain.model import anatomy as parts, forward
from llmtrain.model.head import NAME, PooledHead, pooled_head
from llmtrain.objective.base import Batch, Draw, Objective
from llmtrain.seeding import generator
from llmtrain.trainer import Stage

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from llmtrain.data.tokenizer import Vocabulary
    from llmtrain.model.anatomy import Anatomy
    from llmtrain.runtime import Runtime

log = logging.getLogger("llmtrain")
STATISTICS = 4096  # sequences that the head's standardisation is measured on: its error is then 1.6 % of a deviation


@dataclass(frozen=True)
class Computed:
    """Stored states or vectors of some examples, as the trainer puts them into batches.

    Attributes:
        vectors: how many hidden states each vector is made of; None: token states at a cut.
    """

    stored: cache.Stored
    vectors: int | None

    def into(self, batch: Batch) -> Batch:
        found = self.stored.read(batch.samples)  # (rows, T, W)
        if self.vectors is not None:
            return replace(batch, inputs={forward.FEATURES: found.view(len(found), self.vectors, -1)})
        return replace(batch, inputs={**batch.inputs, forward.STATES: found})


@dataclass(frozen=True)
class Cut:
    """Where a model is cut, and whether the lower part is computed once.

    Attributes:
        depth: blocks below the cut.
        pooled: the cut is above the whole body, and vectors are stored.
        decision: of the cache.
    """

    depth: int
    pooled: bool
    decision: cache.Decision


@dataclass(frozen=True)
class Made:
    """What the trainer runs on: `model` is the part above the cut, or all of it."""

    model: PreTrainedModel
    stages: list[Stage]
    validation: Computed | None


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is known of a run before it is decided where to cut."""

    settings: cache.Settings
    model: PreTrainedModel
    anatomy: Anatomy
    phases: list[Phase]
    objective: Objective
    tokenizer: PreTrainedTokenizerBase
    stages: list[Stage]
    validation: Dataset
    machine: Runtime
    passes: float  # over the training examples
    evaluations: int  # of the validation examples

    @property
    def vocabulary(self) -> Vocabulary:
        return tokens.vocabulary(self.tokenizer)

    @property
    def sets(self) -> list[Dataset]:
        return [*(stage.train for stage in self.stages), self.validation]

    def plan(self) -> Cut | None:
        """Where to cut, and whether; None where nothing is frozen below what moves, or inputs change with every epoch."""
        trainable = frozenset().union(*(phase.trainable for phase in self.phases))
        head = pooled_head(self.model)
        pooled = head is not None and all(name.startswith(f"{NAME}.") for name in trainable)
        depth = self.anatomy.depth if pooled else self.anatomy.frozen_depth(trainable)
        if not depth or not self.objective.static:
            return None
        width = int(self.model.config.hidden_size)
        sequences = sum(map(len, self.sets))
        held = [int(lengths.sum()) for lengths in map(loader.lengths, self.sets)]
        passes = self.passes + self.evaluations * held[-1] / max(sum(held[:-1]), 1)
        decision = cache.decide(
            self.settings,
            depth=depth,
            blocks=self.anatomy.depth,
            pooled=pooled,
            passes=passes,
            tokens=sum(held),
            sequences=sequences,
            width=width * (len(head.states) if pooled and head is not None else 1),
            bytes_per_number=cache.size_of(self.dtype),
            ready=all(cache.ready(self.identity(examples, depth, pooled)) for examples in self.sets),
            free_gb=shutil.disk_usage(store.root()).free / 1e9,
        )
        return Cut(depth, pooled, decision)

    @property
    def dtype(self) -> str:
        """In which type numbers are stored."""
        return self.settings.stored_as(self.machine.precision.name)

    def identity(self, examples: Dataset, depth: int, pooled: bool) -> dict[str, Any]:
        """All that stored states depend on."""
        head = pooled_head(self.model)
        below = {name for name in self.anatomy.sections if not name.startswith(f"{NAME}.")} if pooled else self.anatomy.below(depth)
        named = [(name, parameter) for name, parameter in self.model.named_parameters() if name in below]
        what = {"pooling": head.pooling.value, "states": list(head.states)} if pooled and head is not None else {"depth": depth}
        return {
            "what": what,
            "weights": _fingerprint(self.model, named),
            "config": self.model.config.model_type,
            "tokenizer": tokens.fingerprint(self.tokenizer),
            "examples": store.fingerprint(examples),
            "objective": type(self.objective).__name__,
            "dtype": self.dtype,
            "computed_in": self.machine.precision.name,
            "device": self.machine.device,
        }

    def make(self, cut: Cut) -> Made:
        """The states of all examples, and the part of the model that is left to run. All processes wait for the main one."""
        with self.machine.accelerator.main_process_first():
            computed = [self._computed(examples, cut) for examples in self.sets]
        stages = [replace(stage, computed=found) for stage, found in zip(self.stages, computed, strict=False)]
        if cut.pooled:
            return Made(self.model, stages, computed[-1])
        above = parts.tail(self.model, self.anatomy, cut.depth)
        twin = above.model
        vars(twin)["fed"] = above.fed
        forward.like(twin, self.model)
        return Made(twin, stages, computed[-1])

    def _computed(self, examples: Dataset, cut: Cut) -> Computed:
        head = pooled_head(self.model)
        number = len(head.states) if cut.pooled and head is not None else None
        inputs_of = _Inputs(examples, self.objective, self.vocabulary)
        device, context = self.machine.accelerator.device, self.machine.accelerator.autocast
        if cut.pooled:
            make = _vector_maker(self.model, inputs_of, device, context)
        else:
            make = cache.prefix_maker(self.model, self.anatomy, cut.depth, inputs_of, device=device, precision_context=context)
        stored = cache.stored(
            self.identity(examples, cut.depth, cut.pooled),
            len(examples),
            make,
            loader.lengths(examples).tolist(),
            width=int(self.model.config.hidden_size) * (number or 1),
            dtype=self.dtype,
            say=log.warning,
        )
        return Computed(stored, number)


class _Inputs:
    """The body's inputs for some samples, the true length of each sequence, and how many sequences each sample has."""

    def __init__(self, examples: Dataset, objective: Objective, vocabulary: Vocabulary) -> None:
        self.rows, self.objective, self.vocabulary = examples.with_format("arrow"), objective, vocabulary

    def __call__(self, samples: list[int]) -> tuple[dict[str, torch.Tensor], list[int], list[int]]:
        rows = loader.read_rows(self.rows, samples)
        inputs = self._collated(rows)
        shape = inputs["input_ids"].shape
        mask = inputs.get("attention_mask")
        lengths = mask.sum(1).tolist() if mask is not None else [shape[1]] * shape[0]
        if mask is None and shape[0] == len(rows):  # causal models need no mask for what is padded on the right
            lengths = [int(row["length"]) for row in rows]
        counts = [1] * len(rows) if shape[0] == len(rows) else [self._collated([row])["input_ids"].shape[0] for row in rows]
        return inputs, lengths, counts

    def _collated(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        return self.objective.collate(rows, Draw(0, "eval"), self.vocabulary).inputs


def _vector_maker(
    model: PreTrainedModel, inputs_of: _Inputs, device: torch.device, context: Callable[[], Any]
) -> Callable[[list[int]], list[list[torch.Tensor]]]:
    """What makes the pooled vectors of samples: for each its sequences, each (1, hidden states · W) in fp32."""

    def make(samples: list[int]) -> list[list[torch.Tensor]]:
        inputs, _, counts = inputs_of(samples)
        model.to(device)
        with cache.evaluating(model), torch.no_grad(), context():
            found = forward.vectors(model, **{name: value.to(device) for name, value in inputs.items()}).flatten(1).float().cpu()
        rows: Iterator[torch.Tensor] = iter(found)
        return [[next(rows)[None] for _ in range(count)] for count in counts]

    return make


_FINGERPRINTS: dict[tuple[int, frozenset[str]], str] = {}


def _fingerprint(model: PreTrainedModel, named: list[tuple[str, torch.Tensor]]) -> str:
    """Of the frozen weights, hashed once for a model: they are frozen."""
    key = (id(model), frozenset(name for name, _ in named))
    if key not in _FINGERPRINTS:
        _FINGERPRINTS[key] = cache.weights_fingerprint(named)
    return _FINGERPRINTS[key]


# --- the head's standardisation -----------------------------------------------------------------------------------


def standardise(
    head: PooledHead, stage: Stage, objective: Objective, model: PreTrainedModel, vocabulary: Vocabulary, machine: Runtime, seed: int, batch_size: int
) -> None:
    """Measure mean and deviation of what the head reads on a sample of the training examples, the same with a cache and without."""
    number = len(stage.train)
    chosen = sorted(map(int, generator(seed, "standardise").permutation(number)[:STATISTICS]))
    seen: list[torch.Tensor] = []
    hook = head.register_forward_pre_hook(lambda module, args: seen.append(head.before_standardising(args[0]).double().cpu()))
    rows = stage.train.with_format("arrow")
    model.to(machine.accelerator.device)
    try:
        with cache.evaluating(model), torch.no_grad(), machine.accelerator.autocast():
            for i in range(0, len(chosen), batch_size):
                batch = objective.collate(loader.read_rows(rows, chosen[i : i + batch_size]), Draw(seed, "eval"), vocabulary)
                batch = stage.computed.into(batch) if stage.computed is not None else batch
                objective.losses(model, batch.to(machine.accelerator.device))
    finally:
        hook.remove()
    found = torch.cat(seen)
    head.standardise(found.mean(0).float(), found.std(0, correction=0).float())


def scales(phases: list[Phase]) -> Mapping[str, float]:
    """The learning-rate factor of each parameter in the last phase in which it moves; 0 for one that never does."""
    found: dict[str, float] = {}
    for phase in phases:
        found |= {name: phase.lr_scale.get(name, 1.0) for name in phase.trainable}
    return found
