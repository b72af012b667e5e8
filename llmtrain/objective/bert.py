"""BERT's pretraining: masked language modelling and sentence order at once, on pairs of segments.

Devlin et al. 2018, section 3.1: the loss is the sum of the two mean losses, each over its own targets.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from llmtrain.errors import require
from llmtrain.model.base import Attention, Head
from llmtrain.objective import masking, pairs
from llmtrain.objective.base import Batch, Direction, Draw, Objective, Totals
from llmtrain.objective.masking import Masking
from llmtrain.objective.pairs import Pairs

if TYPE_CHECKING:
    import torch
    from datasets import Dataset
    from torch import nn
    from transformers import PreTrainedTokenizerBase

    from llmtrain.data.tokenizer import Vocabulary


@dataclass(frozen=True, kw_only=True)
class BERT(Objective):
    """Ask for masked tokens of [CLS] A [SEP] B [SEP], and whether B follows A.

    Attributes:
        masked_lm: how positions are masked.
        sentence_order: how pairs are made.
    """

    head: ClassVar[Head] = Head.pretraining
    attention: ClassVar[Attention | None] = Attention.bidirectional
    static: ClassVar[bool] = False
    terms: ClassVar[tuple[str, ...]] = ("masked_lm", "sentence_order")
    shortest: ClassVar[int] = 5
    tokens: ClassVar[tuple[str, ...]] = ("start", "separator", "mask")
    metric_directions: ClassVar[dict[str, Direction]] = {
        "loss": Direction.lower,
        "masked_lm_loss": Direction.lower,
        "masked_lm_accuracy": Direction.higher,
        "sentence_order_loss": Direction.lower,
        "sentence_order_accuracy": Direction.higher,
    }

    masked_lm: Masking
    sentence_order: Pairs

    def __post_init__(self) -> None:
        super().__post_init__()
        for term, other in zip(self.terms, reversed(self.terms), strict=True):
            # Its head would be exported as it was drawn; and of several processes each waits for a gradient of every parameter.
            require(self.weights[term] > 0, f"weights.{term}", self.weights[term], f"above 0; objective={other} is the other term alone")

    def examples(self, rows: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Dataset:
        return self.sentence_order.pairs(rows, tokenizer, max_length, words=self.masked_lm.whole_word)

    def notes(self, examples: Dataset) -> list[str]:
        return self.sentence_order.left_out(examples)

    def collate(self, examples: list[dict[str, Any]], draw: Draw, vocabulary: Vocabulary) -> Batch:
        """Right-padded (B, T) inputs; labels (B, T) of the masked LM and (B,) of the order."""
        import torch

        drawn = [(e, pair, number) for e in examples for number, pair in enumerate(self.sentence_order.asked(e, draw))]
        rows = [self._masked(e, pair, draw, vocabulary, number) for e, pair, number in drawn]
        labels, count = masking.labelled(rows)
        return Batch(
            inputs=masking.padded(rows),
            labels={"masked_lm": labels, "sentence_order": torch.tensor([pair.label for _, pair, _ in drawn])},
            counts={"masked_lm": count, "sentence_order": len(rows)},
            sizes={"tokens": sum(len(row.inputs) for row in rows)},
            samples=[int(e["sample"]) for e in examples],
        )

    @property
    def sequences(self) -> int:
        return self.sentence_order.sequences

    def _pair(self, example: dict[str, Any], draw: Draw) -> pairs.Pair:
        return self.sentence_order.asked(example, draw)[0]

    def _masked(self, example: dict[str, Any], pair: pairs.Pair, draw: Draw, vocabulary: Vocabulary, number: int = 0) -> masking.Row:
        from llmtrain.seeding import generator

        ids, types = pairs.arranged(example, pair, vocabulary)
        words = pairs.arranged_words(example, pair) if self.masked_lm.whole_word else None
        # Of two pairs of a row each has masks of its own.
        masks = generator(draw.seed, "mask", draw.epoch, int(example["sample"]), *([number] if number else []))
        return masking.Row(*self.masked_lm.mask(ids, words, vocabulary, masks), types)

    def losses(self, model: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        from llmtrain.model import forward

        encoded = forward.encode(model, forward.reach(model), **batch.inputs)
        return {
            "masked_lm": forward.vocabulary_loss(model, encoded, batch.labels["masked_lm"]),
            "sentence_order": pairs.loss(forward.sentence_logits(model, encoded), batch.labels["sentence_order"]),
        }

    def sums(self, model: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        from llmtrain.model import forward

        encoded = forward.encode(model, forward.reach(model), **batch.inputs)
        loss, correct = forward.vocabulary_scores(model, encoded, batch.labels["masked_lm"])
        found = {"masked_lm": loss, "masked_lm_correct": correct}
        if "sentence_order" in batch.labels:  # a pseudo-likelihood does not ask
            found |= pairs.scores(forward.sentence_logits(model, encoded), batch.labels["sentence_order"])
        return found

    def metrics(self, totals: Totals) -> dict[str, float]:
        """The weighted sum of the mean losses, and for each term its mean loss in nats and the share guessed right."""
        found = {"loss": sum(weight * totals.mean(term) for term, weight in self.weights.items())}
        for term in self.terms:
            found |= {f"{term}_loss": totals.mean(term), f"{term}_accuracy": totals.share(term)}
        return found

    def references(self, examples: Dataset, vocabulary: Vocabulary) -> dict[str, float]:
        draw = Draw(0, "eval")
        entropy = masking.target_entropy(examples, lambda e: self._masked(e, self._pair(e, draw), draw, vocabulary), vocabulary)
        return {"masked_lm_unigram_entropy": entropy, "sentence_order_majority_accuracy": pairs.majority(examples, lambda e: self._pair(e, draw).label)}

    def one_by_one(self, examples: Dataset, vocabulary: Vocabulary, number: int | None, batch_size: int) -> Iterator[Batch]:
        """On pairs in order or not, as evaluation draws them."""

        def row(example: dict[str, Any]) -> masking.Row:
            ids, types = pairs.arranged(example, self._pair(example, Draw(0, "eval")), vocabulary)
            return masking.Row(ids, None, types)

        return masking.one_by_one(examples, row, vocabulary, number, batch_size)
