"""Sentence order: do two segments stand in order? As ALBERT asks it (swapped), or as BERT does (random).

`pairs` says how the pairs are made, and which shortcuts they do not leave.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from llmtrain.model.base import Attention, Head
from llmtrain.objective import masking, pairs
from llmtrain.objective.base import Batch, Direction, Draw, Objective, Totals
from llmtrain.objective.pairs import Pairs

if TYPE_CHECKING:
    import torch
    from datasets import Dataset
    from torch import nn
    from transformers import PreTrainedTokenizerBase

    from llmtrain.data.tokenizer import Vocabulary


@dataclass(frozen=True, kw_only=True)
class SentenceOrder(Pairs, Objective):
    """Ask whether segment B follows segment A in [CLS] A [SEP] B [SEP]; label 0: it does."""

    head: ClassVar[Head] = Head.sentence_order
    attention: ClassVar[Attention | None] = Attention.bidirectional
    static: ClassVar[bool] = False
    terms: ClassVar[tuple[str, ...]] = ("sentence_order",)
    shortest: ClassVar[int] = 5
    tokens: ClassVar[tuple[str, ...]] = ("start", "separator")
    metric_directions: ClassVar[dict[str, Direction]] = {"loss": Direction.lower, "accuracy": Direction.higher}

    def examples(self, rows: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Dataset:
        return self.pairs(rows, tokenizer, max_length, words=False)

    def notes(self, examples: Dataset) -> list[str]:
        return self.left_out(examples)

    def collate(self, examples: list[dict[str, Any]], draw: Draw, vocabulary: Vocabulary) -> Batch:
        """Right-padded (B, T) inputs, labels (B,)."""
        import torch

        drawn = [(e, pair) for e in examples for pair in self.asked(e, draw)]
        rows = [masking.Row(ids, None, types) for e, pair in drawn for ids, types in [pairs.arranged(e, pair, vocabulary)]]
        labels = torch.tensor([pair.label for _, pair in drawn])
        sizes = {"tokens": sum(len(row.inputs) for row in rows)}
        return Batch(masking.padded(rows), {"sentence_order": labels}, {"sentence_order": len(rows)}, sizes, [int(e["sample"]) for e in examples])

    def losses(self, model: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        from llmtrain.model import forward

        logits = forward.sentence_logits(model, forward.encode(model, forward.reach(model), **batch.inputs))
        return {"sentence_order": pairs.loss(logits, batch.labels["sentence_order"])}

    def sums(self, model: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        from llmtrain.model import forward

        logits = forward.sentence_logits(model, forward.encode(model, forward.reach(model), **batch.inputs))
        return pairs.scores(logits, batch.labels["sentence_order"])

    def metrics(self, totals: Totals) -> dict[str, float]:
        """Mean loss in nats, and the share of pairs judged right."""
        return {"loss": totals.mean("sentence_order"), "accuracy": totals.share("sentence_order")}

    def references(self, examples: Dataset, vocabulary: Vocabulary) -> dict[str, float]:
        """Accuracy of always giving the more frequent answer."""
        return {"majority_accuracy": pairs.majority(examples, lambda e: self.asked(e, Draw(0, "eval"))[0].label)}
