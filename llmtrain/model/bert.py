"""BERT from nothing: the published family of shapes, as transformers' own classes.

Devlin et al. 2018, arXiv 1810.04805, section 3: post-LN encoder, learned positions, segment embeddings. The smaller
shapes: Turc et al. 2019, arXiv 1908.08962, table 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmtrain.errors import require
from llmtrain.model.base import Activation, Attention, Head, Model, Outputs, from_nothing, require_shape

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True)
class BERT(Model):
    """A BERT that starts from random numbers.

    Attributes:
        num_hidden_layers: transformer blocks.
        hidden_size: width of the residual stream.
        num_attention_heads: heads of each block; they share hidden_size evenly.
        intermediate_size: width inside the feed-forward part; null: 4 × hidden_size.
        max_position_embeddings: longest sequence, in tokens, special ones included.
        activation: of the feed-forward part and of the masked-LM head.
        dropout: probability on embeddings, attention and residuals.
        initializer_range: standard deviation of the initial weights.
        tie_word_embeddings: the output matrix of the masked-LM head is the input embedding.
    """

    num_hidden_layers: int
    hidden_size: int
    num_attention_heads: int
    intermediate_size: int | None
    max_position_embeddings: int
    activation: Activation
    dropout: float
    initializer_range: float
    tie_word_embeddings: bool

    def __post_init__(self) -> None:
        require_shape(self)
        require(self.max_position_embeddings >= 4, "max_position_embeddings", self.max_position_embeddings, "4 or more: [CLS] token [SEP] and a second segment")

    @property
    def attention(self) -> Attention:
        return Attention.bidirectional

    @property
    def positions(self) -> int | None:
        return self.max_position_embeddings

    @property
    def separates(self) -> bool | None:
        return False

    @property
    def blocks(self) -> int | None:
        return self.num_hidden_layers

    @property
    def width(self) -> int | None:
        return self.hidden_size

    def wears(self, head: Head) -> bool:
        return head is not Head.next_token

    def config(self, tokenizer: PreTrainedTokenizerBase) -> PretrainedConfig:
        from transformers import BertConfig

        return BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=self.hidden_size,
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads,
            intermediate_size=self.intermediate_size or 4 * self.hidden_size,
            hidden_act="gelu_pytorch_tanh" if self.activation is Activation.gelu_tanh else self.activation.value,
            hidden_dropout_prob=self.dropout,
            attention_probs_dropout_prob=self.dropout,
            max_position_embeddings=self.max_position_embeddings,
            type_vocab_size=2,
            initializer_range=self.initializer_range,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            tie_word_embeddings=self.tie_word_embeddings,
        )

    def load(
        self, tokenizer: PreTrainedTokenizerBase, head: Head, *, resize: bool, new_head: bool = False, outputs: Outputs | None = None, words: bool = False
    ) -> PreTrainedModel:
        return from_nothing(self, tokenizer, head, outputs, words)
