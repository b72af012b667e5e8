"""What every kind of model can do: describe itself from settings alone, and come to life wearing a head.

The families are transformers' own classes. What is ours is which class, with which config, in fp32 and with which
initial numbers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


class Head(Enum):
    """What a model must wear for an objective."""

    next_token = "next_token"


class Attention(Enum):
    """Which positions a family's tokens see."""

    causal = "causal"
    bidirectional = "bidirectional"


@dataclass(frozen=True, kw_only=True)
class Model(ABC):
    """A model as settings: what it is, before a single weight exists."""

    @property
    @abstractmethod
    def attention(self) -> Attention:
        """Causal (GPT) or bidirectional (BERT)."""

    @property
    @abstractmethod
    def positions(self) -> int | None:
        """The longest sequence the model can read, in tokens; None where there is no such limit."""

    @property
    @abstractmethod
    def width(self) -> int | None:
        """Hidden size; None where the family has no single one."""

    @property
    def tokenizer_path(self) -> str | None:
        """The folder of the tokenizer that belongs to the weights; None for a model that starts from nothing."""
        return None

    @property
    def tokenizer_algorithm(self) -> str:
        """The kind of tokenizer trained for it by default."""
        return "bpe" if self.attention is Attention.causal else "wordpiece"

    @abstractmethod
    def config(self, tokenizer: PreTrainedTokenizerBase) -> PretrainedConfig:
        """The transformers config, with the vocabulary and the special ids of the tokenizer."""

    @abstractmethod
    def load(self, tokenizer: PreTrainedTokenizerBase, head: Head, *, resize: bool) -> PreTrainedModel:
        """The model in fp32 on the CPU, wearing `head`, drawn from torch's current random state or read from weights.

        Raises:
            CheckpointError: weights that are missing, broken or of another architecture.
            ConfigError: a tokenizer that does not fit.
        """
