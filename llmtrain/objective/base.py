"""What a model is asked: text to ids, ids to batches, batches to sums of losses, sums to metrics.

A loss is a sum and a count for each term. Who divides is the trainer, once for an update, over all micro-batches and
processes: the mean of means is another number wherever counts differ.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from llmtrain.data.base import Target
from llmtrain.errors import require
from llmtrain.model.base import Attention, Head, Outputs

if TYPE_CHECKING:
    import numpy as np
    import torch
    from datasets import Dataset
    from torch import nn
    from transformers import PreTrainedTokenizerBase

    from llmtrain.data.tokenizer import Vocabulary

IGNORED = -100  # a label that asks for nothing, as everywhere in torch
PREDICTIONS = "predictions"  # what `sums` may return besides sums: (samples of the batch, numbers), gathered instead of added up


class Direction(Enum):
    """Which way a metric gets better."""

    lower = "lower"
    higher = "higher"


@dataclass(frozen=True)
class Draw:
    """What the random choices of a batch depend on, besides the sample: the seed, and the epoch or "eval"."""

    seed: int
    epoch: int | Literal["eval"]


@dataclass
class Batch:
    """Tensors of one micro-batch, and what is known of it before any forward pass.

    Attributes:
        inputs: arguments of the model's body, each (B, T).
        labels: for each term, aligned with that term's logits; IGNORED where nothing is asked.
        counts: for each term, how many targets there are.
        sizes: other totals, such as input tokens and bytes of text.
        samples: the sample ids.
        real: False for a batch that only keeps a process in step with the others; it counts for nothing.
    """

    inputs: dict[str, torch.Tensor]
    labels: dict[str, torch.Tensor]
    counts: dict[str, int]
    sizes: dict[str, int]
    samples: list[int]
    real: bool = True

    def to(self, device: torch.device) -> Batch:
        # CUDA keeps a pinned source until it has been read. MPS reads it later, when it may hold something else (pytorch #189690).
        ahead = device.type == "cuda"
        return self._each(lambda tensor: tensor.to(device, non_blocking=ahead))

    def pin_memory(self) -> Batch:
        """The same in memory that a GPU reads while the host goes on; the data loader looks for a method of this name."""
        return self._each(lambda tensor: tensor.pin_memory())

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        inputs, labels = ({name: change(tensor) for name, tensor in tensors.items()} for tensors in (self.inputs, self.labels))
        return dataclasses.replace(self, inputs=inputs, labels=labels)

    def blank(self) -> Batch:
        """The same tensors, counting for nothing."""
        nothing = dict.fromkeys(self.counts, 0)
        return dataclasses.replace(self, counts=nothing, sizes=dict.fromkeys(self.sizes, 0), samples=[], real=False)


class Scale(NamedTuple):
    """The unit and the zero of answers that are numbers: mean and standard deviation of the training scores.

    A head learns in scores of mean 0 and deviation 1, and squared errors are divided by the variance where gradients are
    taken: so neither the unit nor the zero of the data changes what is learnt. What is reported is in the data's units.
    """

    mean: float
    deviation: float


@dataclass
class Totals:
    """Sums over a whole evaluation, over all processes: the only thing that metrics are made from.

    Attributes:
        sums, counts, sizes: of each term, over all batches.
        predictions: of each sample, what `sums` gave in its row of a tensor `PREDICTIONS`: for metrics that are no sums.
    """

    sums: dict[str, float] = field(default_factory=dict)
    counts: dict[str, float] = field(default_factory=dict)
    sizes: dict[str, float] = field(default_factory=dict)
    predictions: dict[int, np.ndarray] = field(default_factory=dict)

    def mean(self, term: str) -> float:
        """The mean loss of a term; 0 where it had no target."""
        return self.sums[term] / self.counts[term] if self.counts[term] else 0.0

    def share(self, term: str) -> float:
        """The share of a term's targets that were guessed right; 0 where it had none."""
        return self.sums[f"{term}_correct"] / self.counts[term] if self.counts[term] else 0.0


@dataclass(frozen=True, kw_only=True)
class Objective(ABC):
    """A question to a model.

    Class attributes:
        head: which head the model must wear.
        attention: which models can answer; None: any.
        static: whether a sample's input is the same in every epoch (a cache of frozen layers asks).
        loss_settings: settings that change losses alone, never what the model reads (a cache of frozen layers is keyed by the others).
        inputs: columns of the examples that only the model's inputs are made of: without them, `collate` makes none.
        terms: names of the loss terms.
        shortest: tokens of the shortest sequence that it can make, special ones included.
        tokens: attributes of a `Vocabulary` that must be there.
        metric_directions: name → which way it gets better, for `evaluation.best_metric`.
        best_metric: the one that decides where the user names none.
        target: which answers it wants from `Data.labelled`; None: it reads the texts of `Data.split` alone.

    Attributes:
        weights: of the terms in the total loss.
    """

    head: ClassVar[Head]
    attention: ClassVar[Attention | None]
    static: ClassVar[bool]
    loss_settings: ClassVar[tuple[str, ...]] = ("weights",)
    inputs: ClassVar[tuple[str, ...]] = ()
    terms: ClassVar[tuple[str, ...]]
    shortest: ClassVar[int] = 2
    tokens: ClassVar[tuple[str, ...]]
    metric_directions: ClassVar[dict[str, Direction]]
    best_metric: ClassVar[str] = "loss"
    target: ClassVar[Target | None] = None

    weights: dict[str, float]

    def __post_init__(self) -> None:
        require(set(self.weights) == set(self.terms), "weights", self.weights, f"one number for each of: {', '.join(self.terms)}")
        for term, weight in self.weights.items():
            require(0 <= weight < float("inf"), f"weights.{term}", weight, "0 or more, finite")
        require(any(self.weights.values()), "weights", self.weights, "at least one above 0")

    @abstractmethod
    def examples(self, rows: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Dataset:
        """Ids instead of text, made once and kept on disk. Each row has `length`, its number of input tokens."""

    @abstractmethod
    def collate(self, examples: list[dict[str, Any]], draw: Draw, vocabulary: Vocabulary) -> Batch:
        """A batch from rows of `examples`, each with its id as `sample`. A function of its arguments alone."""

    @abstractmethod
    def losses(self, model: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        """The sum of losses of each term, a scalar in fp32."""

    def sums(self, model: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        """In evaluation: the losses, and whatever other sums the metrics are made from; no gradients are asked for."""
        return self.losses(model, batch)

    @abstractmethod
    def metrics(self, totals: Totals) -> dict[str, float]:
        """Named numbers from the totals of an evaluation, on the main process."""

    @property
    def separates(self) -> bool:
        """Whether it asks the model to keep the documents of a block apart."""
        return False

    @property
    def asks_words(self) -> bool:
        """Whether an objective of a task asks a language model's head as well (GPT-1's auxiliary loss)."""
        return False

    @property
    def sequences(self) -> int:
        """How many sequences, each of the row's length, training makes of a row of `examples`."""
        return 1

    @property
    def group(self) -> int:
        """How many sequences in a row are one question to the head of a task: their vectors are added before it."""
        return 1

    def outputs(self, rows: Dataset) -> Outputs | None:
        """What a head for these labelled training rows gives; None where the objective is of no task."""
        return None

    def scale(self, rows: Dataset) -> Scale | None:
        """The unit and the zero of the numbers that these labelled training rows are answered with; None: the answers are no numbers."""
        return None

    def logits(self, model: nn.Module, batch: Batch) -> list[np.ndarray]:
        """What the head of a task gives for each sample of a batch, in float64, for `answer`; empty where the objective is of no task."""
        return []

    def answer(self, logits: np.ndarray, names: tuple[str, ...]) -> dict[str, Any] | None:
        """A sample's logits in words: what `llmtrain predict` writes down; None where the objective is of no task.

        Args:
            names: of the classes, as in `Outputs`.
        """
        return None

    def baselines(self, train: Dataset, judged: Dataset) -> dict[str, float]:
        """What the same labelled rows give without any pretrained model; kept by the store, since it is asked in every run."""
        return {}

    def references(self, examples: Dataset, vocabulary: Vocabulary) -> dict[str, float]:
        """What knowing nothing would give on these examples as they are evaluated, to hold the metrics against."""
        return {}

    def one_by_one(self, examples: Dataset, vocabulary: Vocabulary, number: int | None, batch_size: int) -> Iterator[Batch]:
        """Batches for a pseudo-likelihood: each row asks for one token, and sees all others; none where it is not defined.

        Args:
            number: how many tokens of the examples, the same ones every time; None: all.
        """
        return iter(())

    def notes(self, examples: Dataset) -> list[str]:
        """What the user should know about how examples were made, such as what was left out."""
        return []

    def without_effect(self) -> dict[str, str]:
        """Settings that change nothing under the others: name → why."""
        return {}


def entropy(counts: np.ndarray) -> float:
    """Entropy in nats of a distribution given by counts: no guess that ignores all else can have a lower mean loss."""
    import numpy as np

    share = counts[counts > 0] / max(counts.sum(), 1)
    return float(-(share * np.log(share)).sum())
