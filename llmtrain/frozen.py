"""What is frozen is computed once: the cut of a model at its deepest frozen boundary, for the trainer.

    cut = plan(…)          how deep nothing moves in any phase, and what storing it would cost and save
    made = cut.make(…)     the states of every example, from the disk or computed now, and the part of the model above them

Where only the pooled head moves, what is stored is one vector for each sequence, and the body does not run at all.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from llmtrain import cache
from llmtrain.data import loader, store, tokenizer as tokens
from llmtrain.errors import ConfigError
from llmtrain.finetune.base import Phase
from llmtrain.model import anatomy as parts, forward
from llmtrain.model.base import evaluating, require_separation
from llmtrain.model.head import NAME, PooledHead, pooled_head
from llmtrain.objective.base import Batch, Draw, Objective
from llmtrain.seeding import generator

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from llmtrain.data.tokenizer import Vocabulary
    from llmtrain.model.anatomy import Anatomy
    from llmtrain.runtime import Runtime

log = logging.getLogger("llmtrain")
# What a family's config says and its states do not depend on.
SAYS_NOTHING = ("_name_or_path", "architectures", "transformers_version", "id2label", "label2id", "problem_type", "dtype")
STATISTICS = 4096  # sequences that the head's standardisation is measured on: its error is then 1.6 % of a deviation


class Stage(Protocol):
    """What is looked at of a stage of the trainer's: its examples, and what takes the place of the model's inputs."""

    @property
    def train(self) -> Dataset: ...

    @property
    def computed(self) -> Any: ...


@dataclass(frozen=True)
class Computed:
    """Stored states or vectors of some examples, as the trainer puts them into batches.

    Attributes:
        vectors: how many hidden states each vector is made of; None: token states at a cut.
    """

    stored: cache.Stored
    vectors: int | None

    @property
    def whole(self) -> bool:
        return self.vectors is not None

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
    """What the trainer runs on: `model` is the part above the cut, or all of it; its stages know what was computed."""

    model: PreTrainedModel
    stages: list[Any]
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
    stages: Sequence[Stage]
    validation: Dataset
    machine: Runtime
    passes: float  # over the training examples
    evaluations: int  # of the validation examples
    _hashes: dict[frozenset[str], str] = field(default_factory=dict, init=False, repr=False)  # of weights, which are read once

    @property
    def vocabulary(self) -> Vocabulary:
        return tokens.vocabulary(self.tokenizer)

    @property
    def sets(self) -> list[Dataset]:
        return [*(stage.train for stage in self.stages), self.validation]

    def plan(self) -> Cut | None:
        """Where to cut, and whether; None where nothing is frozen below what moves, or inputs change with every epoch.

        Raises:
            ConfigError: `always`, where it cannot be.
        """
        trainable = frozenset().union(*(phase.trainable for phase in self.phases))
        head = pooled_head(self.model)
        pooled = head is not None and not self.objective.asks_words and all(name.startswith(f"{NAME}.") for name in trainable)
        depth = self.anatomy.depth if pooled else self.anatomy.frozen_depth(trainable)
        if not depth or not self.objective.static:
            return None
        if head is not None and not pooled and head.states != (self.anatomy.depth,):  # those below a cut are not made any more
            if self.settings.use is cache.Use.always:
                raise ConfigError("cache.use=always: the head reads several hidden states, and more than the head is trained", fix="cache.use=auto")
            return None
        counts = [sequences(examples, self.objective) for examples in self.sets]
        held = [int((loader.lengths(examples) * count).sum()) for examples, count in zip(self.sets, counts, strict=True)]
        decision = cache.decide(
            self.settings,
            depth=depth,
            blocks=self.anatomy.depth,
            pooled=pooled,
            passes=(self.passes * sum(held[:-1]) + self.evaluations * held[-1]) / max(sum(held), 1),
            tokens=sum(held),
            sequences=int(sum(count.sum() for count in counts)),
            width=int(self.model.config.hidden_size) * (len(head.states) if pooled and head is not None else 1),
            bytes_per_number=cache.size_of(self.dtype),
            ready=self.settings.use is not cache.Use.never and all(cache.ready(self.identity(examples, depth, pooled)) for examples in self.sets),
            free_gb=cache.free_gb(),
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
        what = {"pooling": head.pooling.value, "states": list(head.states)} if pooled and head is not None else {"depth": depth}
        asked = {name: str(value) for name, value in asdict(self.objective).items() if name != "weights"}
        return {
            "what": what,
            "weights": self._fingerprint(frozenset(below)),
            "config": {name: value for name, value in json.loads(self.model.config.to_json_string(use_diff=False)).items() if name not in SAYS_NOTHING},
            "tokenizer": tokens.fingerprint(self.tokenizer),
            "examples": store.fingerprint(examples),
            "objective": {"kind": type(self.objective).__name__, **asked},
            "dtype": self.dtype,
            "computed_in": self.machine.precision.name,
            "device": self.machine.device,
        }

    def _fingerprint(self, names: frozenset[str]) -> str:
        """Of frozen weights."""
        if names not in self._hashes:
            self._hashes[names] = cache.weights_fingerprint((name, p) for name, p in self.model.named_parameters() if name in names)
        return self._hashes[names]

    def make(self, cut: Cut) -> Made:
        """The states of all examples, and the part of the model that is left to run. All processes wait for the main one."""
        self.model.to(self.machine.accelerator.device)  # before it gets a twin, whose buffers are then the same ones
        with self.machine.accelerator.main_process_first():
            computed = [self._computed(examples, cut) for examples in self.sets]
        stages: list[Any] = list(self.stages)
        stages = [replace(stage, computed=found) for stage, found in zip(stages, computed, strict=False)]
        if cut.pooled:
            return Made(self.model, stages, computed[-1])
        if self.objective.separates:
            require_separation(self.model)  # asked here: a tail has no lower blocks to answer with
        above = parts.tail(self.model, self.anatomy, cut.depth)
        twin = above.model
        vars(twin)["fed"] = above.fed
        forward.like(twin, self.model)
        return Made(twin, stages, computed[-1])

    def _computed(self, examples: Dataset, cut: Cut) -> Computed:
        head = pooled_head(self.model)
        number = len(head.states) if cut.pooled and head is not None else None
        inputs_of = _Inputs(examples, self.objective, self.vocabulary, self.model)
        device, context = self.machine.accelerator.device, self.machine.accelerator.autocast
        if cut.pooled:
            make = _vector_maker(self.model, inputs_of, device, context)
        else:
            make = cache.prefix_maker(self.model, self.anatomy, cut.depth, inputs_of, device=device, precision_context=context)
        stored = cache.stored(
            self.identity(examples, cut.depth, cut.pooled),
            len(examples),
            make,
            (loader.lengths(examples) * sequences(examples, self.objective)).tolist(),
            width=int(self.model.config.hidden_size) * (number or 1),
            dtype=self.dtype,
            say=log.warning,
        )
        return Computed(stored, number)


class _Inputs:
    """The body's inputs for some samples, the true length of each sequence, and how many sequences each sample has."""

    def __init__(self, examples: Dataset, objective: Objective, vocabulary: Vocabulary, model: PreTrainedModel) -> None:
        self.rows, self.objective, self.vocabulary, self.model = examples.with_format("arrow"), objective, vocabulary, model

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
        return forward.fitting(self.model, self.objective.collate(rows, Draw(0, "eval"), self.vocabulary).inputs)


def _vector_maker(
    model: PreTrainedModel, inputs_of: _Inputs, device: torch.device, context: Callable[[], Any]
) -> Callable[[list[int]], list[list[torch.Tensor]]]:
    """What makes the pooled vectors of samples: for each its sequences, each (1, hidden states · W) in fp32."""

    def make(samples: list[int]) -> list[list[torch.Tensor]]:
        inputs, _, counts = inputs_of(samples)
        with evaluating(model), torch.no_grad(), context():
            found = forward.vectors(model, **{name: value.to(device) for name, value in inputs.items()}).flatten(1).float().cpu()
        rows: Iterator[torch.Tensor] = iter(found)
        return [[next(rows)[None] for _ in range(count)] for count in counts]

    return make


def sequences(examples: Dataset, objective: Objective) -> np.ndarray:
    """How many sequences each example is: (examples,). Those of a task have the lengths of their segments, one or two for a sequence."""
    if "cuts" not in examples.column_names:
        return np.ones(len(examples), dtype=np.int64)
    counts = [np.diff(batch["cuts"].combine_chunks().offsets.to_numpy()) for batch in examples.with_format("arrow").iter(1000)]
    return -(-np.concatenate([np.zeros(0, dtype=np.int64), *counts]) // 2) * objective.group


# --- the head's standardisation -----------------------------------------------------------------------------------


def standardise(
    head: PooledHead, stage: Stage, objective: Objective, model: PreTrainedModel, vocabulary: Vocabulary, machine: Runtime, seed: int, batch_size: int
) -> None:
    """Measure mean and deviation of what the head reads on a sample of the training examples, the same with a cache and without."""
    number = len(stage.train)
    chosen = sorted(map(int, generator(seed, "standardise").permutation(number)[:STATISTICS]))
    seen: list[torch.Tensor] = []
    running = pooled_head(model)  # of a part of the model a twin, whose tensors are the head's
    assert running is not None
    hook = running.register_forward_pre_hook(lambda module, args: seen.append(head.before_standardising(args[0]).double().cpu()))
    rows = stage.train.with_format("arrow")
    model.to(machine.accelerator.device)
    try:
        with evaluating(model), torch.no_grad(), machine.accelerator.autocast():
            for i in range(0, len(chosen), batch_size):
                batch = objective.collate(loader.read_rows(rows, chosen[i : i + batch_size]), Draw(seed, "eval"), vocabulary)
                batch = stage.computed.into(batch) if stage.computed is not None else batch
                objective.losses(model, batch.to(machine.accelerator.device))
    finally:
        hook.remove()
    found = torch.cat(seen)
    head.standardise(found.mean(0).float(), found.std(0, correction=0).float())
