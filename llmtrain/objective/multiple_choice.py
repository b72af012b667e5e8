"""Multiple choice: which of several texts goes on best from a text.

Radford et al. 2018, section 3.3 and figure 1: each choice is a sequence of its own, of which the head makes one number;
the softmax is over the choices of a row, however many they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar

from llmtrain.data.base import Target
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
class MultipleChoice(Objective):
    """Ask which choice is right, by a number for each [CLS] text [SEP] choice [SEP]."""

    head: ClassVar[Head] = Head.task
    attention: ClassVar[Attention | None] = None
    static: ClassVar[bool] = True
    terms: ClassVar[tuple[str, ...]] = ("choice",)
    shortest: ClassVar[int] = tasks.SHORTEST
    tokens: ClassVar[tuple[str, ...]] = ("start", "separator")
    metric_directions: ClassVar[dict[str, Direction]] = {"loss": Direction.lower, "accuracy": Direction.higher}
    best_metric: ClassVar[str] = "accuracy"
    target: ClassVar[Target | None] = Target.choice

    def examples(self, rows: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Dataset:
        return tasks.examples(rows, tokenizer, max_length, Target.choice)

    def notes(self, examples: Dataset) -> list[str]:
        return tasks.notes(examples)

    def outputs(self, rows: Dataset) -> Outputs | None:
        return Outputs(1)

    def collate(self, examples: list[dict[str, Any]], draw: Draw, vocabulary: Vocabulary) -> Batch:
        """Right-padded inputs (choices of all samples, T); labels (B,) of the right choice, and (B, most choices) whether there is such a choice."""
        import torch

        asked = [tasks.sequences(e) for e in examples]
        numbers = torch.tensor([len(choices) for choices in asked])
        labels = torch.tensor([int(e["label"]) for e in examples])
        given = torch.arange(int(numbers.max())) < numbers[:, None]
        return tasks.batch(examples, asked, {"choice": labels, "given": given}, {"choice": int((labels != IGNORED).sum())}, vocabulary)

    def losses(self, model: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        return {"choice": _loss(_table(model, batch), batch)}

    def sums(self, model: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        import torch

        table = _table(model, batch)
        return {"choice": _loss(table, batch), PREDICTIONS: torch.stack([table.argmax(-1), batch.labels["choice"]], 1).float()}

    def metrics(self, totals: Totals) -> dict[str, float]:
        """Mean cross entropy in nats, and the share of rows whose likeliest choice is the right one."""
        predicted, true = scores.collected(totals.predictions)
        asked = true != IGNORED
        return {"loss": totals.mean("choice"), "accuracy": scores.accuracy(predicted[asked], true[asked])}

    def baselines(self, train: Dataset, judged: Dataset) -> dict[str, float]:
        return baselines.multiple_choice(train, judged)

    def logits(self, model: nn.Module, batch: Batch) -> list[np.ndarray]:
        import numpy as np

        from llmtrain.model import forward

        answers = tasks.array(forward.answers(model, group=1, **batch.inputs).squeeze(-1))
        ends = np.cumsum([0, *batch.labels["given"].sum(1).tolist()])
        return [answers[first:end] for first, end in pairwise(ends)]

    def answer(self, logits: np.ndarray, names: tuple[str, ...]) -> dict[str, Any] | None:
        """The number of the likeliest choice, from 0, and the probability of each."""
        return {"choice": int(logits.argmax()), "probabilities": [float(p) for p in scores.softmax(logits)]}


def _table(model: nn.Module, batch: Batch) -> torch.Tensor:
    """Logits (B, most choices) in fp32, -inf where a row has no such choice."""
    import torch

    from llmtrain.model import forward

    answers, given = forward.answers(model, group=1, **batch.inputs).squeeze(-1), batch.labels["given"]
    return torch.full(given.shape, float("-inf"), dtype=answers.dtype, device=answers.device).masked_scatter(given, answers)


def _loss(table: torch.Tensor, batch: Batch) -> torch.Tensor:
    from torch.nn import functional as F

    return F.cross_entropy(table, batch.labels["choice"], ignore_index=IGNORED, reduction="sum")
