"""Regression: a number for a text, or for a pair of texts, such as how alike two sentences are.

Devlin et al. 2018, section 4.1 (STS-B); Radford et al. 2018, section 3.3, for pairs read in both orders.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from llmtrain.data.base import Target
from llmtrain.errors import DataError
from llmtrain.model.base import Attention, Head, Outputs
from llmtrain.objective import baselines, scores, tasks
from llmtrain.objective.base import PREDICTIONS, Batch, Direction, Draw, Objective, Scale, Totals

if TYPE_CHECKING:
    import numpy as np
    import torch
    from datasets import Dataset
    from torch import nn
    from transformers import PreTrainedTokenizerBase

    from llmtrain.data.tokenizer import Vocabulary

SMALLEST = 1e-15  # of a standard deviation, and 1 / SMALLEST the largest: squares of errors and their sums stay numbers of fp32
FINEST = 1e-6  # of a standard deviation, relative to the mean: fp32 has about 7 digits


@dataclass(frozen=True, kw_only=True)
class Regression(Objective):
    """Ask for the score of [CLS] A [SEP] or [CLS] A [SEP] B [SEP], in the units of the data.

    Losses and metrics are in these units too, the loss in their square. What is learnt does not depend on them: see `Scale`.

    Attributes:
        symmetric: a pair is read in both orders, and the vectors of the two are added (Radford et al. 2018, section 3.3).
    """

    head: ClassVar[Head] = Head.task
    attention: ClassVar[Attention | None] = None
    static: ClassVar[bool] = True
    inputs: ClassVar[tuple[str, ...]] = ("ids", "cuts")
    terms: ClassVar[tuple[str, ...]] = ("score",)
    shortest: ClassVar[int] = tasks.SHORTEST
    tokens: ClassVar[tuple[str, ...]] = ("start", "separator")
    metric_directions: ClassVar[dict[str, Direction]] = {
        "loss": Direction.lower,
        "rmse": Direction.lower,
        "pearson": Direction.higher,
        "spearman": Direction.higher,
    }
    best_metric: ClassVar[str] = "pearson"
    target: ClassVar[Target | None] = Target.score

    symmetric: bool

    @property
    def group(self) -> int:
        return 2 if self.symmetric else 1

    def examples(self, rows: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Dataset:
        tasks.refuse_single(self.symmetric, rows)
        return tasks.examples(rows, tokenizer, max_length, Target.score)

    def notes(self, examples: Dataset) -> list[str]:
        return tasks.notes(examples)

    def outputs(self, rows: Dataset) -> Outputs | None:
        return Outputs(1)

    def scale(self, rows: Dataset) -> Scale | None:
        import numpy as np

        given = tasks.answers(rows, Target.score)
        given = given[~np.isnan(given)]
        if not len(given):
            raise DataError("the training rows have no score")
        scale = Scale(float(given.mean()), float(given.std()))
        if not max(SMALLEST, FINEST * abs(scale.mean)) <= scale.deviation <= 1 / SMALLEST:
            raise DataError(
                f"the training scores have mean {scale.mean:g} and standard deviation {scale.deviation:g}, which single precision cannot tell apart or square",
                allowed=f"a standard deviation from {SMALLEST:g} to {1 / SMALLEST:g}, and at least {FINEST:g} of the mean",
                fix="give the scores in another unit, or subtract a constant",
            )
        return scale

    def collate(self, examples: list[dict[str, Any]], draw: Draw, vocabulary: Vocabulary) -> Batch:
        """Right-padded (B · group, T) inputs; scores (B,) in fp32, NaN where nothing is asked."""
        import torch

        labels = torch.tensor([e["score"] for e in examples], dtype=torch.float32)
        counts = {"score": int((~labels.isnan()).sum())}
        return tasks.batch(examples, tasks.asked(examples, self.symmetric), {"score": labels}, counts, vocabulary)

    def losses(self, model: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        from llmtrain.model import forward

        return {"score": _squares(forward.answers(model, group=self.group, **batch.inputs).squeeze(-1), batch.labels["score"])}

    def sums(self, model: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        import torch

        from llmtrain.model import forward

        answers, labels = forward.answers(model, group=self.group, **batch.inputs).squeeze(-1), batch.labels["score"]
        return {"score": _squares(answers, labels), PREDICTIONS: torch.stack([answers, labels], 1)}

    def metrics(self, totals: Totals) -> dict[str, float]:
        """Mean squared error and its root, in the scores' units, and the correlations of Pearson and Spearman."""
        import numpy as np

        predicted, true = scores.collected(totals.predictions)
        asked, loss = ~np.isnan(true), totals.mean("score")
        predicted, true = predicted[asked], true[asked]
        return {"loss": loss, "rmse": math.sqrt(loss), "pearson": scores.pearson(predicted, true), "spearman": scores.spearman(predicted, true)}

    def baselines(self, train: Dataset, judged: Dataset) -> dict[str, float]:
        return baselines.regression(train, judged)

    def logits(self, model: nn.Module, batch: Batch) -> list[np.ndarray]:
        from llmtrain.model import forward

        return list(tasks.array(forward.answers(model, group=self.group, **batch.inputs)))

    def answer(self, logits: np.ndarray, names: tuple[str, ...]) -> dict[str, Any] | None:
        """The score."""
        return {"score": float(logits[0])}


def _squares(answers: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The sum of squared errors of (B,) answers, a scalar in fp32; a label NaN asks for nothing."""
    asked = ~labels.isnan()
    return ((answers - labels.nan_to_num()) * asked).square().sum()
