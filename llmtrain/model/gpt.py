"""GPT from nothing: GPT-1, GPT-2 and GPT-3 shapes, as transformers' own classes.

GPT-1: Radford et al. 2018, "Improving Language Understanding by Generative Pre-Training", section 4.1.
GPT-2: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", section 2.3.
GPT-3: Brown et al. 2020, arXiv 2005.14165, table 2.1; its locally banded sparse attention is not offered here: every
layer attends densely.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from llmtrain.errors import require
from llmtrain.model.base import Activation, Attention, Head, Model, Outputs, from_nothing, require_shape

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


class Architecture(Enum):
    """gpt1 normalises after each sublayer (post-LN), gpt2 before it (pre-LN) and once more at the end."""

    gpt1 = "gpt1"
    gpt2 = "gpt2"


@dataclass(frozen=True, kw_only=True)
class GPT(Model):
    """A GPT that starts from random numbers.

    Attributes:
        architecture: gpt1 or gpt2; GPT-3 is the gpt2 architecture.
        num_hidden_layers: transformer blocks.
        hidden_size: width of the residual stream.
        num_attention_heads: heads of each block; they share hidden_size evenly.
        intermediate_size: width inside the feed-forward part; null: 4 × hidden_size.
        max_position_embeddings: longest sequence, in tokens.
        activation: of the feed-forward part.
        dropout: probability on embeddings, attention and residuals.
        initializer_range: standard deviation of the initial weights. The projections back into the residual stream
            get 1/√(2 · num_hidden_layers) of it (GPT-2, section 2.3; "residual layers" read as two a block).
        tie_word_embeddings: the output matrix is the input embedding.
    """

    architecture: Architecture
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
        require(self.max_position_embeddings >= 2, "max_position_embeddings", self.max_position_embeddings, "2 or more")
        gpt1 = self.architecture is Architecture.gpt1
        fixed = 4 * self.hidden_size
        require(not gpt1 or self.activation is not Activation.gelu, "activation", "gelu", "gelu_tanh or relu: transformers' gpt1 has no exact gelu")
        require(not gpt1 or self.initializer_range == 0.02, "initializer_range", self.initializer_range, "0.02: transformers' gpt1 knows no other")
        require(not gpt1 or self.intermediate_size in (None, fixed), "intermediate_size", self.intermediate_size, f"null or {fixed}: gpt1 has 4 × hidden_size")

    @property
    def attention(self) -> Attention:
        return Attention.causal

    @property
    def positions(self) -> int | None:
        return self.max_position_embeddings

    @property
    def separates(self) -> bool | None:
        return self.architecture is Architecture.gpt2  # transformers' gpt1 has one causal mask for all

    @property
    def blocks(self) -> int | None:
        return self.num_hidden_layers

    @property
    def width(self) -> int | None:
        return self.hidden_size

    def wears(self, head: Head) -> bool:
        return head in (Head.next_token, Head.task)

    def config(self, tokenizer: PreTrainedTokenizerBase) -> PretrainedConfig:
        from transformers import GPT2Config, OpenAIGPTConfig

        gpt1 = self.architecture is Architecture.gpt1
        activation = {Activation.gelu_tanh: "gelu" if gpt1 else "gelu_pytorch_tanh", Activation.gelu: "gelu", Activation.relu: "relu"}[self.activation]
        common = {
            "vocab_size": len(tokenizer),
            "n_positions": self.max_position_embeddings,
            "n_embd": self.hidden_size,
            "n_layer": self.num_hidden_layers,
            "n_head": self.num_attention_heads,
            "resid_pdrop": self.dropout,
            "embd_pdrop": self.dropout,
            "attn_pdrop": self.dropout,
            "initializer_range": self.initializer_range,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            "tie_word_embeddings": self.tie_word_embeddings,
        }
        if gpt1:
            return OpenAIGPTConfig(afn=activation, **common)
        return GPT2Config(activation_function=activation, n_inner=self.intermediate_size, **common)

    def load(
        self, tokenizer: PreTrainedTokenizerBase, head: Head, *, resize: bool, new_head: bool = False, outputs: Outputs | None = None, words: bool = False
    ) -> PreTrainedModel:
        return from_nothing(self, tokenizer, head, outputs, words)
