"""Masked language modelling: some tokens are hidden, and asked for from what stands around them on both sides.

Devlin et al. 2018, section 3.1, task 1. Masks are drawn anew in every epoch and fixed in evaluation.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from llmtrain.model.base import Attention, Head
from llmtrain.objective import masking
from llmtrain.objective.base import Batch, Direction, Draw, Objective, Totals
from llmtrain.objective.masking import Masking

if TYPE_CHECKING:
    import torch
    from datasets import Dataset
    from torch import nn
    from transformers import PreTrainedTokenizerBase

    from llmtrain.data.tokenizer import Vocabulary

TOKENIZER_BATCH = 256  # documents a call; the tokenizer works on them in parallel


@dataclass(frozen=True, kw_only=True)
class MaskedLM(Masking, Objective):
    """Ask for masked tokens of [CLS] text [SEP].

    Attributes:
        packing: documents share sequences, with [SEP] between two of them; False: each has its own, cut where it is
            longer, and batches are grouped by length.
    """

    head: ClassVar[Head] = Head.masked_lm
    attention: ClassVar[Attention | None] = Attention.bidirectional
    static: ClassVar[bool] = False
    terms: ClassVar[tuple[str, ...]] = ("masked_lm",)
    shortest: ClassVar[int] = 3
    tokens: ClassVar[tuple[str, ...]] = ("start", "separator", "mask")
    metric_directions: ClassVar[dict[str, Direction]] = {"loss": Direction.lower, "accuracy": Direction.higher}

    packing: bool

    def examples(self, rows: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Dataset:
        """Columns: ids (up to max_length - 2, without [CLS] and [SEP]), length, and words for whole-word masking."""
        from llmtrain.data import shape, store, tokenizer as tokens

        separator = tokens.vocabulary(tokenizer).separator if self.packing else None

        def make() -> Iterator[dict[str, Any]]:
            documents = (ids for batch in rows.iter(TOKENIZER_BATCH) for ids in tokens.encode(tokenizer, batch["text"]))
            for ids in shape.windows(documents, max_length - 2, separator):
                yield {"ids": ids, "length": len(ids) + 2}

        def make_words() -> Iterator[dict[str, Any]]:
            # A token and its word as one item, so that both are cut alike.
            documents: Iterable[list[tuple[int, int]]] = (
                list(zip(*pair, strict=True)) for batch in rows.iter(TOKENIZER_BATCH) for pair in tokens.encode_words(tokenizer, batch["text"])
            )
            between = None if separator is None else (separator, -1)
            for window in shape.windows(documents, max_length - 2, between):
                ids, words = zip(*window, strict=True)
                yield {"ids": ids, "words": masking.renumbered(words), "length": len(ids) + 2}

        parts = {"rows": store.fingerprint(rows), "tokenizer": tokens.fingerprint(tokenizer), "max_length": max_length, "separator": separator}
        name, maker = ("masked_lm_words", make_words) if self.whole_word else ("masked_lm", make)
        return store.stored(name, parts, maker, features=_features(self.whole_word))

    def collate(self, examples: list[dict[str, Any]], draw: Draw, vocabulary: Vocabulary) -> Batch:
        """Right-padded (B, T) inputs and labels, with an attention mask where there is padding."""
        rows = [self._masked(e, draw, vocabulary) for e in examples]
        labels, counts = masking.labelled(rows)
        sizes = {"tokens": sum(len(row.inputs) for row in rows)}
        return Batch(masking.padded(rows), {"masked_lm": labels}, {"masked_lm": counts}, sizes, [int(e["sample"]) for e in examples])

    def _masked(self, example: dict[str, Any], draw: Draw, vocabulary: Vocabulary) -> masking.Row:
        from llmtrain.seeding import generator

        ids = masking.framed(example["ids"], vocabulary)
        words = masking.framed_words(example["words"]) if self.whole_word else None
        return masking.Row(*self.mask(ids, words, vocabulary, generator(draw.seed, "mask", draw.epoch, int(example["sample"]))))

    def losses(self, model: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        from llmtrain.model import forward

        return {"masked_lm": forward.vocabulary_loss(model, forward.encode(model, forward.reach(model), **batch.inputs), batch.labels["masked_lm"])}

    def sums(self, model: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        from llmtrain.model import forward

        loss, correct = forward.vocabulary_scores(model, forward.encode(model, forward.reach(model), **batch.inputs), batch.labels["masked_lm"])
        return {"masked_lm": loss, "masked_lm_correct": correct}

    def metrics(self, totals: Totals) -> dict[str, float]:
        """Mean loss in nats of the masked tokens, and the share of them that the likeliest token is."""
        return {"loss": totals.mean("masked_lm"), "accuracy": totals.share("masked_lm")}

    def references(self, examples: Dataset, vocabulary: Vocabulary) -> dict[str, float]:
        """Entropy in nats of the very tokens that evaluation asks for."""
        return {"unigram_entropy": masking.target_entropy(examples, lambda e: self._masked(e, Draw(0, "eval"), vocabulary), vocabulary)}

    def one_by_one(self, examples: Dataset, vocabulary: Vocabulary, number: int | None, batch_size: int) -> Iterator[Batch]:
        return masking.one_by_one(examples, lambda e: masking.Row(masking.framed(e["ids"], vocabulary), None), vocabulary, number, batch_size)


def _features(words: bool) -> Any:
    from datasets import Features, List, Value

    return Features({"ids": List(Value("int32")), **({"words": List(Value("int32"))} if words else {}), "length": Value("int32")})
