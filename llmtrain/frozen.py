"""What is frozen is computed once: the cut of a model at its deepest frozen boundary, for the trainer.

    cut = question.plan()             how deep nothing moves in any phase, and what storing it would cost and save
    made = question.make(cut)         the states of every example, from the disk or computed now, and the part of the model above them
    plan_together([(question, 3), …]) the same for many runs: what one stores, the others read, and one pass makes all depths
    store_together(questions, cuts)   what they read and is not there yet, so that each of them finds it
    seconds(question, cut, …)         how long such a run takes

Where only the pooled head moves, what is stored is one vector for each sequence, and the body does not run at all.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from llmtrain import cache, checkpoint, files
from llmtrain.data import loader, store, tokenizer as tokens
from llmtrain.errors import ConfigError, Stopped
from llmtrain.finetune.base import Phase
from llmtrain.model import anatomy as parts, forward
from llmtrain.model.base import evaluating, require_separation
from llmtrain.model.head import NAME, PooledHead, pool, pooled_head
from llmtrain.objective.base import Batch, Draw, Objective
from llmtrain.runtime import cpu_flags, keep_memory
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
# What decides the stored numbers besides weights, tokens and libraries: framing, padding, attention, the cut, pooling, rounding.
SOURCES = (
    "cache", "data.shape", "data.tokenizer", "frozen", "model.anatomy", "model.forward", "model.head", "objective.base", "objective.masking", "objective.tasks",
)  # fmt: skip
# Of an update, beside its blocks: what reading, collating and recording it takes, and AdamW for each number that moves, of
# a GPU nothing. In seconds; 960 updates of a head, and the optimizer alone on 8 million numbers, on one thread of an EPYC Zen 4.
UPDATE_S, MOVED_S = 2.4e-3, 1.1e-9
MEASURED, MEASURE_S = 5, 2.0  # batches that `measure` times, and seconds that they may take
# What a block does in a second, against the seconds that a disk takes. Rough, and only of that kind: about a third of what data
# sheets say of an A100 to an H100 without tensor cores (fp32) and with them, and of an Apple M2 Pro; a slower card only makes `auto`
# store less than it could. A CPU has cache.FLOPS for each thread, which fp32 and bf16 reach alike; with AMX bf16 was not
# measured, and is taken for a tenth of the data sheet of a Sapphire Rapids core. The sweep's own times are measured: `measure`.
DEVICE_FLOPS = {("cuda", "fp32"): 1e13, ("cuda", "bf16"): 2e14, ("cuda", "fp16"): 2e14}
MPS_FLOPS, AMX_FLOPS = 2e12, 5e11
# By how much the main process of a node goes ahead of the others there: it is then the one that computes, and shows how far
# it is. Where another one comes first all the same, that one computes.
HEAD_START_S = 1.0
STATISTICS = 4096  # sequences that the head's standardisation is measured on: its error is then 1.6 % of a deviation

Progress = Callable[[int, int], None]


def silent(done: int, total: int) -> None:
    """A `Progress` that tells nobody."""


class Stage(Protocol):
    """What is looked at of a stage of the trainer's: its examples, their order, and what takes the place of the model's inputs."""

    @property
    def train(self) -> Dataset: ...

    @property
    def order(self) -> loader.Order: ...

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
    test: Computed | None = None


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is known of a run before it is decided where to cut.

    Attributes:
        passes: over the training examples.
        evaluations: of the validation examples.
        test: examples that are evaluated once, where there are any.
    """

    settings: cache.Settings
    model: PreTrainedModel
    anatomy: Anatomy
    phases: list[Phase]
    objective: Objective
    tokenizer: PreTrainedTokenizerBase
    stages: Sequence[Stage]
    validation: Dataset
    machine: Runtime
    passes: float
    evaluations: int
    test: Dataset | None = None
    _digests: dict[str, str] = field(default_factory=dict, init=False, repr=False)  # of weights, which are read once

    @property
    def vocabulary(self) -> Vocabulary:
        return tokens.vocabulary(self.tokenizer)

    @property
    def sets(self) -> list[Dataset]:
        """The examples of each stage, of the validation, and of the test where there is one."""
        return [*(stage.train for stage in self.stages), self.validation, *([self.test] if self.test is not None else [])]

    @property
    def rounds(self) -> list[float]:
        """How often each of `sets` is gone through."""
        return [*(self.passes for _ in self.stages), self.evaluations, *([1] if self.test is not None else [])]

    @property
    def head(self) -> PooledHead | None:
        return pooled_head(self.model)

    @property
    def dtype(self) -> str:
        """In which type numbers are stored."""
        return self.settings.stored_as(self.machine.precision.name)

    def plan(self) -> Cut | None:
        """Where to cut, and whether; None where nothing is frozen below what moves, or inputs change with every epoch.

        Raises:
            ConfigError: `always`, where it cannot be.
        """
        return plan_together([(self, 1)])[0]

    def boundaries(self) -> list[Boundary]:
        """The deepest frozen boundary, in each of `sets`; none where there is nothing that could be stored.

        Raises:
            ConfigError: `always`, where it cannot be.
        """
        trainable = frozenset().union(*(phase.trainable for phase in self.phases))
        head = self.head
        pooled = head is not None and not self.objective.asks_words and all(name.startswith(f"{NAME}.") for name in trainable)
        depth = self.anatomy.depth if pooled else self.anatomy.frozen_depth(trainable)
        if not depth or not self.objective.static:
            return []
        if head is not None and not pooled and head.states != (self.anatomy.depth,):  # those below a cut are not made any more
            if self.settings.use is cache.Use.always:
                raise ConfigError("cache.use=always: the head reads several hidden states, and more than the head is trained", fix="cache.use=auto")
            return []
        return [Boundary(self, examples, depth, pooled) for examples in self.sets]

    def identity(self, examples: Dataset, depth: int, pooled: bool, head: PooledHead | None = None) -> dict[str, Any]:
        """All that stored states depend on.

        Args:
            head: the one that reads pooled vectors; None: the model's own.
        """
        head = head or self.head
        what = {"pooling": head.pooling.value, "states": list(head.states)} if pooled and head is not None else {"depth": depth}
        return {"what": what, "weights": self._fingerprint(depth, pooled), "examples": store.fingerprint(examples), **self._surroundings}

    @cached_property
    def _surroundings(self) -> dict[str, Any]:
        asked = {name: str(value) for name, value in asdict(self.objective).items() if name not in self.objective.loss_settings}
        return {
            "code": _code(type(self.objective)),
            "config": {name: value for name, value in json.loads(self.model.config.to_json_string(use_diff=False)).items() if name not in SAYS_NOTHING},
            "tokenizer": tokens.fingerprint(self.tokenizer),
            "objective": {"kind": type(self.objective).__name__, **asked},
            "dtype": self.dtype,
            "computed_in": self.machine.precision.name,
            "device": self.machine.device,
        }

    def below(self, depth: int, pooled: bool) -> dict[str, torch.Tensor]:
        """The parameters below a cut, by name, and the buffers that came with the weights: a mixture of experts routes by one."""
        names = {name for name in self.anatomy.sections if not name.startswith(f"{NAME}.")} if pooled else self.anatomy.below(depth)
        tensors = checkpoint.tensors(self.model)
        buffers = self.anatomy.buffers_below(tensors.keys() - self.anatomy.sections.keys(), self.anatomy.depth if pooled else depth)
        return {name: tensor for name, tensor in tensors.items() if name in names or name in buffers}

    def _fingerprint(self, depth: int, pooled: bool) -> str:
        """Of frozen weights."""
        weights = self.below(depth, pooled)
        for name, parameter in weights.items():
            if name not in self._digests:
                self._digests[name] = cache.tensor_digest(parameter)
        return cache.weights_fingerprint((name, self._digests[name]) for name in weights)

    def look_again(self) -> None:
        """The weights are others than when the question was planned: a resume restored what moved under earlier settings."""
        self._digests.clear()

    def make(self, cut: Cut, progress: Progress = silent) -> Made:
        """The states of all examples, and the part of the model that is left to run.

        Of several processes every one asks, and the lock of an entry lets one compute it while the others wait: no collective
        does, whose timeout a long pass would outlast. Processes without a disk in common each make their own.

        Args:
            progress: told, after every batch, how many are done and how many there are.
        """
        self.model.to(self.machine.accelerator.device)  # before it gets a twin, whose buffers are then the same ones
        if not self.machine.accelerator.is_local_main_process:
            time.sleep(HEAD_START_S)
        boundaries = [Boundary(self, examples, cut.depth, cut.pooled) for examples in self.sets]
        say = log.warning if self.machine.main else log.info
        computed = [Computed(_stored([of], say, told)[0], of.vectors) for of, told in zip(boundaries, _over_all(boundaries, progress), strict=True)]
        stages: list[Any] = list(self.stages)
        stages = [replace(stage, computed=found) for stage, found in zip(stages, computed, strict=False)]
        validation, *test = computed[len(stages) :]
        held_out = validation, test[0] if test else None
        if cut.pooled:
            return Made(self.model, stages, *held_out)
        if self.objective.separates:
            require_separation(self.model)  # asked here: a tail has no lower blocks to answer with
        above = parts.tail(self.model, self.anatomy, cut.depth)
        twin = above.model
        vars(twin)["fed"] = above.fed
        forward.like(twin, self.model)
        return Made(twin, stages, *held_out)


def _code(objective: type[Objective]) -> str:
    """A hash of the source that makes states: an edit of it must not bring back states of before."""
    # By place: of these modules this process may have imported some only.
    paths = [*(Path(__file__).parent.joinpath(*name.split(".")).with_suffix(".py") for name in SOURCES), Path(str(sys.modules[objective.__module__].__file__))]
    return files.sha256_of(paths)


@dataclass(frozen=True)
class Boundary:
    """What the lower blocks of a model make of some examples: an entry of the cache, there or not.

    Attributes:
        depth: blocks below it.
        pooled: it is above the whole body, and has one vector for each sequence.
    """

    question: Question
    examples: Dataset
    depth: int
    pooled: bool

    @cached_property
    def identity(self) -> dict[str, Any]:
        return self.question.identity(self.examples, self.depth, self.pooled)

    @cached_property
    def key(self) -> str:
        return json.dumps(self.identity, sort_keys=True)

    def made_with(self, other: Boundary) -> bool:
        """Whether the pass that makes another one can make this one as well: nothing that its states depend on differs there."""
        return other.question.identity(other.examples, self.depth, self.pooled, self.question.head) == self.identity

    @property
    def vectors(self) -> int | None:
        """How many hidden states a vector is made of; None where states are stored."""
        head = self.question.head
        return len(head.states) if self.pooled and head is not None else None

    @property
    def width(self) -> int:
        """Numbers of a state or vector; those of the last state may differ from what blocks hand on."""
        head, vectors = self.question.head, self.vectors
        return int(self.question.model.config.hidden_size) if head is None or vectors is None else head.width * vectors

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of each example, of all its sequences together: (examples,)."""
        found: np.ndarray = loader.lengths(self.examples) * sequences(self.examples, self.question.objective)
        return found

    @property
    def gigabytes(self) -> float:
        held = sequences(self.examples, self.question.objective) if self.pooled else self.lengths
        return int(held.sum()) * self.width * cache.size_of(self.question.dtype) / 1e9


def why_nothing(anatomy: Anatomy, phases: Sequence[Phase], objective: Objective) -> str:
    """Why nothing can be computed once, where there is no boundary."""
    if not objective.static:
        return "the objective draws its inputs anew in every epoch"
    if anatomy.uncut:
        return f"this {anatomy.family} model cannot be cut between its blocks ({anatomy.uncut})"
    moving = {anatomy.tied.get(name, name) for phase in phases for name in phase.trainable}
    if all(moving & set(anatomy.names(block)) for block in anatomy.blocks):
        return "every block moves in some phase"
    if moving & anatomy.below(0):
        return "the embeddings move in some phase, and with them what every block makes of them"
    if moving & anatomy.below(1):
        return "the lowest block moves in some phase, and with it what every block above makes of it"
    return "no block is frozen below all that is trained and read"


# --- many runs of one model ---------------------------------------------------------------------------------------


def plan_together(questions: Sequence[tuple[Question, int]]) -> list[Cut | None]:
    """Where to cut each of several runs, and whether, if what one of them stores is there for all.

    Args:
        questions: each with the number of runs that ask it.

    Returns:
        For each what `plan` gives.

    Raises:
        ConfigError, DeviceError: `always`, where it cannot be.
    """
    wanted = [question.boundaries() for question, _ in questions]
    passes = _passes(boundary for some in wanted for boundary in some if boundary.question.settings.use is not cache.Use.never)
    source = {id(boundary): str(number) for number, group in enumerate(passes) for boundary in group}
    cases = [_case(some, members, source) for some, (_, members) in zip(wanted, questions, strict=True) if some]
    decisions = iter(cache.decide(cases, free_gb=cache.free_gb()) if cases else ())
    return [Cut(some[0].depth, some[0].pooled, next(decisions)) if some else None for some in wanted]


def _case(boundaries: Sequence[Boundary], members: int, source: Mapping[int, str]) -> cache.Case:
    question = boundaries[0].question
    never = question.settings.use is cache.Use.never  # then nothing is hashed
    pieces = [
        cache.Piece(
            entry="" if never else boundary.key,
            source=source.get(id(boundary), ""),
            tokens=int(boundary.lengths.sum()),
            gigabytes=boundary.gigabytes,
            ready=not never and cache.ready(boundary.identity),
        )
        for boundary in boundaries
    ]
    held = [piece.tokens for piece in pieces]
    return cache.Case(
        settings=question.settings,
        depth=boundaries[0].depth,
        blocks=question.anatomy.depth,
        pooled=boundaries[0].pooled,
        passes=sum(rounds * tokens for rounds, tokens in zip(question.rounds, held, strict=True)) / max(sum(held), 1),
        width=int(question.model.config.hidden_size),
        pieces=pieces,
        members=members,
        flops=flops(question.machine),
    )


def flops(machine: Runtime) -> float:
    """What a block's forward does in a second on this machine, by its kind."""
    if machine.device != "cpu":
        return DEVICE_FLOPS.get((machine.device, machine.precision.name), MPS_FLOPS)
    return machine.threads * (AMX_FLOPS if machine.precision.name == "bf16" and "amx_bf16" in cpu_flags() else cache.FLOPS)


def store_together(
    questions: Sequence[Question],
    cuts: Sequence[Cut | None],
    say: Callable[[str], None],
    *,
    progress: Progress = silent,
    interrupted: Callable[[], bool] = lambda: False,
) -> bool:
    """Make what these runs would read and is not there yet: of all that one pass can make, in one pass. In one process.

    Args:
        cuts: of the questions, as `plan_together` gave them; what they do not use is not stored.
        progress: told, after every batch, how many are done and how many there are in all passes.
        interrupted: asked between batches.

    Returns:
        False where it was interrupted: what was complete by then stays, nothing else does.
    """
    missing = _missing_passes(questions, cuts)
    try:
        for group, told in zip(missing, _over_all([group[0] for group in missing], progress), strict=True):
            _stored(group, say, told, interrupted)
    except Stopped:
        return False
    return True


def _over_all(boundaries: Sequence[Boundary], progress: Progress) -> list[Progress]:
    """For the pass of each boundary what counts its batches after those of the passes before it."""
    sizes = [len(cache.batches(boundary.lengths.tolist())) for boundary in boundaries]

    def after(batches: int) -> Progress:
        return lambda done, _: progress(batches + done, sum(sizes))

    return [after(sum(sizes[:number])) for number in range(len(sizes))]


@dataclass(frozen=True)
class Cost:
    """What is stored: seconds to make it, GB (10⁹ bytes) on the disk."""

    seconds: float
    gigabytes: float


def store_cost(questions: Sequence[Question], cuts: Sequence[Cut | None], block_seconds: float) -> Cost:
    """What `store_together` would take now.

    Args:
        block_seconds: of one block's forward over one token: `measure`.
    """
    missing = _missing_passes(questions, cuts)
    gigabytes = sum(boundary.gigabytes for group in missing for boundary in group)
    blocks = sum(max(boundary.depth for boundary in group) * int(group[0].lengths.sum()) for group in missing)
    return Cost(blocks * block_seconds + cache.WRITE_S * gigabytes, gigabytes)


def _missing_passes(questions: Sequence[Question], cuts: Sequence[Cut | None]) -> list[list[Boundary]]:
    """The boundaries that are to be made, each once, by the pass that makes them."""
    used = [
        Boundary(question, examples, cut.depth, cut.pooled)
        for question, cut in zip(questions, cuts, strict=True)
        if cut is not None and cut.decision.use
        for examples in question.sets
    ]
    _hash_once(used)
    missing = {boundary.key: boundary for boundary in used if not cache.ready(boundary.identity)}
    return _passes(missing.values())


def _passes(boundaries: Iterable[Boundary]) -> list[list[Boundary]]:
    """Boundaries by the pass that makes them; the first of each, one of the deepest, is of the model that runs."""
    deepest_first = sorted(boundaries, key=lambda boundary: (not boundary.pooled, -boundary.depth))
    _hash_once(deepest_first)
    groups: list[list[Boundary]] = []
    for boundary in deepest_first:
        group = next((group for group in groups if boundary.made_with(group[0])), None)
        if group is None:
            groups.append([boundary])
        else:
            group.append(boundary)
    return groups


def _hash_once(boundaries: Iterable[Boundary]) -> None:
    """Hash the weights below boundaries, and those that several models share once.

    A tensor is known by where it lies only while this runs: all models are in memory, and none moves.
    """
    known: dict[tuple[Any, ...], str] = {}
    for boundary in boundaries:
        digests = boundary.question._digests
        for name, tensor in boundary.question.below(boundary.depth, boundary.pooled).items():
            place = (str(tensor.device), tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
            if name not in digests:
                digests[name] = known[place] if place in known else cache.tensor_digest(tensor)
            known[place] = digests[name]


def _stored(
    boundaries: Sequence[Boundary],
    say: Callable[[str], None],
    progress: Progress = silent,
    interrupted: Callable[[], bool] = lambda: False,
) -> list[cache.Stored]:
    """The entries of boundaries of the same examples, by one pass of the first one's model over what is missing."""
    return cache.stored_together(
        [cache.Wanted(identity=boundary.identity, width=boundary.width, dtype=boundary.question.dtype) for boundary in boundaries],
        len(boundaries[0].examples),
        partial(_maker, boundaries),
        boundaries[0].lengths.tolist(),
        say=say,
        progress=progress,
        interrupted=interrupted,
    )


def _maker(boundaries: Sequence[Boundary], missing: Sequence[int]) -> cache.Maker:
    """What makes the missing ones of some boundaries."""
    runs, examples = boundaries[0].question, boundaries[0].examples
    device = runs.machine.accelerator.device
    runs.model.to(device)
    keep_memory()
    heads = [head for i in missing if boundaries[i].pooled and (head := boundaries[i].question.head) is not None]
    make = cache.boundaries_maker(
        runs.model,
        runs.anatomy,
        [boundaries[i].depth for i in missing if not boundaries[i].pooled],
        _Inputs(examples, runs.objective, runs.vocabulary, runs.model),
        device=device,
        precision_context=runs.machine.accelerator.autocast,
        above=partial(_vectors, runs.model, heads) if heads else None,
    )
    order = sorted(missing, key=lambda i: boundaries[i].pooled)  # states first, then vectors, as they come

    def in_order(samples: list[int]) -> list[list[list[torch.Tensor]]]:
        made = dict(zip(order, make(samples), strict=True))
        return [made[i] for i in missing]

    return in_order


def _vectors(model: PreTrainedModel, heads: Sequence[PooledHead], inputs: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """What several heads would read of one pass of the body: for each (rows, hidden states · W)."""
    last = int(model.config.num_hidden_layers)
    several = any(head.states != (last,) for head in heads)
    output = forward._run(model.base_model, model, inputs, **({"output_hidden_states": True} if several else {}))
    mask, by_pooler = inputs.get("attention_mask"), getattr(output, "pooler_output", None)

    def read(head: PooledHead) -> torch.Tensor:
        states = [output.last_hidden_state if number == last else output.hidden_states[number] for number in head.states]
        return torch.stack([pool(state, mask, head.pooling, by_pooler) for state in states], 1).flatten(1)

    return [read(head) for head in heads]


# --- how long a run takes -----------------------------------------------------------------------------------------


def seconds(question: Question, cut: Cut | None, block_seconds: float) -> float:
    """How long a run takes from its first update to its last evaluation, if all that it reads from the cache is there.

    Args:
        block_seconds: of one block's forward over one token: `measure`.
    """
    used = cut if cut is not None and cut.decision.use else None
    blocks = max(question.anatomy.depth, 1)
    left = 0 if used is not None and used.pooled else blocks - (used.depth if used is not None else 0)
    held = [int((loader.lengths(examples) * sequences(examples, question.objective)).sum()) for examples in question.sets]
    number = len(question.stages)
    judged = sum(rounds * tokens for rounds, tokens in zip(question.rounds[number:], held[number:], strict=True))
    trained = question.passes * sum(held[:number])
    computed = (judged * left + trained * (left + _over_phases(question, _backward))) * block_seconds
    updates = question.passes * question.stages[0].order.per_epoch * _over_phases(question, _update)
    return computed + updates + (_reading(question, used) if used is not None else 0)


def _over_phases(question: Question, cost: Callable[[Question, Phase], float]) -> float:
    """The mean over the whole budget."""
    ends = [0.0, *(phase.until for phase in question.phases)]
    return sum((end - begin) * cost(question, phase) for (begin, end), phase in zip(pairwise(ends), question.phases, strict=True))


def _update(question: Question, phase: Phase) -> float:
    moving = sum(parameter.numel() for name, parameter in question.model.named_parameters() if name in phase.trainable)
    return UPDATE_S + (MOVED_S * moving if question.machine.device == "cpu" else 0)


def _backward(question: Question, phase: Phase) -> float:
    """Forwards of a block that a backward pass is worth.

    Down to the lowest parameter that moves each block costs one for its states, and one for its weights, so far as these move.
    """
    found = question.anatomy
    if not found.depth:
        return 2
    moving = {found.tied.get(name, name) for name in phase.trainable}
    table = {row.section: row for row in found.describe(question.model, moving)}
    shares = [table[section].trainable / max(table[section].parameters, 1) for section in found.blocks]
    lowest = 0 if moving & found.below(0) else next((i for i, share in enumerate(shares) if share), found.depth)
    return sum(1 + share for share in shares[lowest:])


def _reading(question: Question, cut: Cut) -> float:
    kept = [Boundary(question, examples, cut.depth, cut.pooled).gigabytes for examples in question.sets]
    return sum(gigabytes * (cache.OPEN_S + rounds * cache.READ_S) for gigabytes, rounds in zip(kept, question.rounds, strict=True))


def measure(question: Question) -> float:
    """Seconds of one block's forward over one token on this machine, embeddings and head included: what a batch takes, by its blocks and tokens.

    The median of a few batches of the training examples, of about cache.BATCH_TOKENS tokens each, or of fewer where these
    would take more than MEASURE_S in all.
    """
    examples = question.stages[-1].train
    lengths = loader.lengths(examples) * sequences(examples, question.objective)
    whole = cache.batches(lengths.tolist())
    taken = _Stopwatch(question, examples)
    probe, rows = whole[len(whole) // 2], 1
    while taken.seconds(probe[:rows]) < MEASURE_S / (4 * MEASURED) and rows < len(probe):  # the next probe has four times the rows
        rows *= 4
    chosen = [whole[int(i)][:rows] for i in np.linspace(0, len(whole) - 1, MEASURED)]
    per_token = [taken.seconds(samples) / max(int(lengths[samples].sum()), 1) for samples in chosen]
    return float(np.median(per_token)) / max(question.anatomy.depth, 1)


class _Stopwatch:
    """Times the model with its head on samples, as an evaluation runs it."""

    def __init__(self, question: Question, examples: Dataset) -> None:
        self.question, self.rows = question, examples.with_format("arrow")
        self.device = question.machine.accelerator.device
        question.model.to(self.device)

    def seconds(self, samples: list[int]) -> float:
        asked = self.question
        batch = asked.objective.collate(loader.read_rows(self.rows, samples), Draw(0, "eval"), asked.vocabulary).to(self.device)
        with evaluating(asked.model), torch.no_grad(), asked.machine.accelerator.autocast():
            began = time.perf_counter()
            for found in asked.objective.losses(asked.model, batch).values():
                found.item()  # a GPU answers when it has it
            return time.perf_counter() - began


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
    hook = running.register_forward_pre_hook(lambda module, args: seen.append(head.before_standardising(args[0]).cpu().double()))
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
