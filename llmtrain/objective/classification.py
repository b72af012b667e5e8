"""Classification: which of several classes a text, or a pair of texts, is of.

Devlin et al. 2018, section 4.1; Radford et al. 2018, section 3.2, for a causal model and its auxiliary loss.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from llmtrain.data.base import Target
from llmtrain.errors import DataError, require
from llmtrain.model.base import Attention, Head, Outputs
from llmtrain.objective import baselines, scores, tasks
from llmtrain.objective.base import IGNORED, PREDICTIONS, Batch, Direction, Draw, Objective, Totals

if TYPE_CHECKING:
    import numpy as np
    import torch
    from datasets import Dataset
    from torch import nn
    from transformers import PreTrainedTokenizerBase

    from llmtrain.data.tokenizer import Vocabulary


@dataclass(frozen=True, kw_only=True)
class Classification(Objective):
    """Ask for the class of [CLS] A [SEP] or [CLS] A [SEP] B [SEP].

    Smoothing, balance and the auxiliary loss are of training alone: an evaluation's loss is the plain cross entropy.

    Attributes:
        symmetric: a pair is read in both orders, and the vectors of the two are added: where A and B are alike in kind
            (Radford et al. 2018, section 3.3, similarity).
        label_smoothing: share of the target's probability that is spread evenly over all classes.
        balanced: each class weighs the same in the loss, however many rows it has.
    """

    head: ClassVar[Head] = Head.task
    attention: ClassVar[Attention | None] = None
    static: ClassVar[bool] = True
    loss_settings: ClassVar[tuple[str, ...]] = ("weights", "label_smoothing")
    inputs: ClassVar[tuple[str, ...]] = ("ids", "cuts")
    terms: ClassVar[tuple[str, ...]] = ("class", "lm")
    shortest: ClassVar[int] = tasks.SHORTEST
    tokens: ClassVar[tuple[str, ...]] = ("start", "separator")
    metric_directions: ClassVar[dict[str, Direction]] = {
        "loss": Direction.lower,
        "accuracy": Direction.higher,
        "macro_f1": Direction.higher,
        "matthews": Direction.higher,
    }
    best_metric: ClassVar[str] = "accuracy"
    target: ClassVar[Target | None] = Target.label

    symmetric: bool
    label_smoothing: float
    balanced: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.weights["class"] > 0, "weights.class", self.weights["class"], "above 0: the classes are what is asked")
        require(0 <= self.label_smoothing < 1, "label_smoothing", self.label_smoothing, "0 or more and below 1")

    @property
    def asks_words(self) -> bool:
        return self.weights["lm"] > 0

    @property
    def group(self) -> int:
        return 2 if self.symmetric else 1

    def examples(self, rows: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Dataset:
        tasks.refuse_single(self.symmetric, rows)
        return tasks.examples(rows, tokenizer, max_length, Target.label, balanced=self.balanced)

    def notes(self, examples: Dataset) -> list[str]:
        return tasks.notes(examples)

    def outputs(self, rows: Dataset) -> Outputs | None:
        names = tasks.class_names(rows)
        if len(names) < 2:
            raise DataError(f"the training rows have {len(names)} classes", allowed="2 or more")
        return Outputs(len(names), names)

    def collate(self, examples: list[dict[str, Any]], draw: Draw, vocabulary: Vocabulary) -> Batch:
        """Right-padded (B · group, T) inputs; labels (B,) of the class, (B · group, T) of the auxiliary loss; weights (B,) of the rows."""
        import torch

        labels = {"class": torch.tensor([int(e["label"]) for e in examples])}
        if self.balanced:
            labels["weight"] = torch.tensor([e["weight"] for e in examples], dtype=torch.float32)
        counts = {"class": int((labels["class"] != IGNORED).sum()), "lm": 0}
        batch = tasks.batch(examples, tasks.asked(examples, self.symmetric), labels, counts, vocabulary)
        if self.asks_words:
            batch.labels["lm"], batch.counts["lm"] = tasks.following(batch.inputs)
        return batch

    def losses(self, model: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        from torch.nn import functional as F

        from llmtrain.model import forward

        if self.asks_words:
            answers, words = forward.answers_and_words(model, batch.labels["lm"], group=self.group, **batch.inputs)
        else:
            answers = forward.answers(model, group=self.group, **batch.inputs)
            words = answers.new_zeros(())
        each = F.cross_entropy(answers, batch.labels["class"], ignore_index=IGNORED, reduction="none", label_smoothing=self.label_smoothing)
        return {"class": (each * batch.labels["weight"] if self.balanced else each).sum(), "lm": words}

    def sums(self, model: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        import torch
        from torch.nn import functional as F

        from llmtrain.model import forward

        answers, labels = forward.answers(model, group=self.group, **batch.inputs), batch.labels["class"]
        loss = F.cross_entropy(answers, labels, ignore_index=IGNORED, reduction="sum")
        return {"class": loss, PREDICTIONS: torch.stack([answers.argmax(-1), labels], 1).float()}

    def metrics(self, totals: Totals) -> dict[str, float]:
        """Mean cross entropy in nats; and of the likeliest classes: the share that is right, the mean F1 of the classes, Matthews' correlation."""
        predicted, true = scores.collected(totals.predictions)
        asked = true != IGNORED
        return {"loss": totals.mean("class"), **scores.of_classes(predicted[asked], true[asked])}

    def baselines(self, train: Dataset, judged: Dataset) -> dict[str, float]:
        return baselines.classification(train, judged)

    def logits(self, model: nn.Module, batch: Batch) -> list[np.ndarray]:
        from llmtrain.model import forward

        return list(tasks.array(forward.answers(model, group=self.group, **batch.inputs)))

    def answer(self, logits: np.ndarray, names: tuple[str, ...]) -> dict[str, Any] | None:
        """The likeliest class, its probability, and the probabilities of all."""
        names = names or tuple(map(str, range(len(logits))))
        shares = dict(zip(names, map(float, scores.softmax(logits)), strict=True))
        label = names[int(logits.argmax())]
        return {"label": label, "probability": shares[label], "probabilities": shares}
