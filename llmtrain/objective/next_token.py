"""Next-token prediction: every token of every document is asked once, given what stands before it.

Radford et al. 2018, section 3.1, equation 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from llmtrain.model.base import Attention, Head
from llmtrain.objective.base import IGNORED, Batch, Direction, Draw, Objective, Totals, entropy

if TYPE_CHECKING:
    import torch
    from datasets import Dataset
    from torch import nn
    from transformers import PreTrainedTokenizerBase

    from llmtrain.data.tokenizer import Vocabulary

TOKENIZER_BATCH = 256  # documents a call; the tokenizer works on them in parallel


@dataclass(frozen=True, kw_only=True)
class NextToken(Objective):
    """Ask for the next token.

    Each document is preceded by the end-of-text token, which is also asked for where it ends. Blocks of max_length
    inputs overlap by the one token that is the last label of a block and the first input of the next, so that no
    token is left out and none is asked twice.

    Attributes:
        packing: documents share blocks of max_length tokens; False: each has its own, cut where it is longer.
        document_attention: in a shared block, a token sees its own document only, with positions from 0.
    """

    head: ClassVar[Head] = Head.next_token
    attention: ClassVar[Attention | None] = Attention.causal
    static: ClassVar[bool] = True
    terms: ClassVar[tuple[str, ...]] = ("next_token",)
    tokens: ClassVar[tuple[str, ...]] = ("end",)
    metric_directions: ClassVar[dict[str, Direction]] = {
        "loss": Direction.lower,
        "perplexity": Direction.lower,
        "bits_per_byte": Direction.lower,
    }

    packing: bool
    document_attention: bool

    @property
    def separates(self) -> bool:
        return self.packing and self.document_attention

    def without_effect(self) -> dict[str, str]:
        return {} if self.packing else {"document_attention": "without packing no two documents share a block"}

    def examples(self, rows: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Dataset:
        """Columns: ids (up to max_length + 1), starts (where documents begin in ids), bytes (of text asked), length."""
        from llmtrain.data import shape, store, tokenizer as tokens

        def make() -> Iterator[dict[str, Any]]:
            documents = _encoded(rows, tokenizer)
            blocks = shape.pack(documents, max_length) if self.packing else (block for d in documents for block in shape.pack([d], max_length))
            for block in blocks:
                yield {"ids": block.ids, "starts": block.starts, "bytes": block.bytes, "length": len(block.ids) - 1}

        parts = {"rows": store.fingerprint(rows), "tokenizer": tokens.fingerprint(tokenizer), "max_length": max_length, "packing": self.packing}
        return store.stored("next_token", parts, make, features=_features())

    def collate(self, examples: list[dict[str, Any]], draw: Draw, vocabulary: Vocabulary) -> Batch:
        """Right-padded (B, T) inputs and labels. Causal attention needs no mask for padding on the right."""
        from llmtrain.data import shape

        # What stands in the padding is never asked and never seen; a repeated id is one that every vocabulary has.
        ids = shape.pad([e["ids"] for e in examples], fill=None)  # (B, T + 1)
        real = shape.pad([[1] * len(e["ids"]) for e in examples], fill=0).bool()
        labels = ids[:, 1:].masked_fill(~real[:, 1:], IGNORED)  # (B, T)
        inputs = {"input_ids": ids[:, :-1].contiguous()}
        if self.separates:
            inputs["position_ids"] = shape.document_positions([e["starts"] for e in examples], ids.shape[1] - 1)
        tokens = sum(len(e["ids"]) - 1 for e in examples)
        return Batch(
            inputs=inputs,
            labels={"next_token": labels.contiguous()},
            counts={"next_token": tokens},
            sizes={"tokens": tokens, "bytes": sum(int(e["bytes"]) for e in examples)},
            samples=[int(e["sample"]) for e in examples],
        )

    def losses(self, model: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        from llmtrain.model import forward

        encoded = forward.encode(model, forward.reach(model), **batch.inputs)
        return {"next_token": forward.vocabulary_loss(model, encoded, batch.labels["next_token"])}

    def metrics(self, totals: Totals) -> dict[str, float]:
        """Token-weighted loss in nats, its exponential, and bits for each byte of UTF-8 text."""
        loss = totals.mean("next_token")
        bits = totals.sums["next_token"] / math.log(2)
        size = totals.sizes["bytes"]
        return {"loss": loss, "perplexity": math.exp(min(loss, 700)), "bits_per_byte": bits / size if size else float("nan")}

    def references(self, examples: Dataset, vocabulary: Vocabulary) -> dict[str, float]:
        """Entropy in nats of the targets' own frequencies: no model that ignores context can have a lower loss."""
        import numpy as np

        counts = np.zeros(0, dtype=np.int64)
        for batch in examples.with_format("arrow").iter(1000):
            ids = batch["ids"].combine_chunks()
            values = ids.values.to_numpy()
            labels = np.delete(values, ids.offsets.to_numpy()[:-1] - ids.offsets[0].as_py())
            counted = np.bincount(labels, minlength=len(counts))
            counted[: len(counts)] += counts
            counts = counted
        return {"unigram_entropy": entropy(counts)}


def _encoded(rows: Dataset, tokenizer: PreTrainedTokenizerBase) -> Iterator[tuple[list[int], int]]:
    """Each document as (end-of-text + ids + end-of-text, its bytes)."""
    from llmtrain.data import tokenizer as tokens

    end = tokenizer.eos_token_id
    for batch in rows.iter(TOKENIZER_BATCH):
        texts = batch["text"]
        for text, ids in zip(texts, tokens.encode(tokenizer, texts), strict=True):
            yield [end, *ids, end], len(text.encode())


def _features() -> Any:
    from datasets import Features, List, Value

    return Features({"ids": List(Value("int32")), "starts": List(Value("int32")), "bytes": Value("int64"), "length": Value("int32")})
