"""What every kind of model can do: describe itself from settings alone, and come to life wearing a head.

The families are transformers' own classes. What is ours is which class, with which config, in fp32 and with which
initial numbers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from llmtrain.errors import ConfigError, require

if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


HEAD_FILE = "head.json"  # of the pooled head that is saved beside weights (model/head.py)


class Head(Enum):
    """What a model must wear for an objective."""

    next_token = "next_token"
    masked_lm = "masked_lm"
    sentence_order = "sentence_order"  # two classes for a pair of segments, from the pooled first token
    pretraining = "pretraining"  # masked_lm and sentence_order, as BERT was pretrained
    task = "task"  # the answers of a task, from one vector for each sequence: classes, a number, a choice


def auto_class(head: Head, kind: HeadKind | None = None, words: bool = False) -> Any:
    """transformers' class that makes or loads a model of any family with this head.

    Args:
        kind: whose head answers a task; ours stands on a bare body.
        words: whether that body keeps its language model's head.
    """
    import transformers

    task = "AutoModelForSequenceClassification" if kind is HeadKind.family else "AutoModelForCausalLM" if words else "AutoModel"
    names = {
        Head.task: task,
        Head.next_token: "AutoModelForCausalLM",
        Head.masked_lm: "AutoModelForMaskedLM",
        Head.sentence_order: "AutoModelForNextSentencePrediction",
        Head.pretraining: "AutoModelForPreTraining",
    }
    return getattr(transformers, names[head])


class HeadKind(Enum):
    """Whose head answers a task."""

    pooled = "pooled"  # ours: pool, standardise, linear
    family = "family"  # transformers' own ...ForSequenceClassification


class Pooling(Enum):
    """How the states of a sequence become one vector; padding is never part of it."""

    auto = "auto"  # mean; the last token where a causal model is trained
    cls = "cls"  # the first token's
    mean = "mean"
    last = "last"  # the last token's
    max = "max"  # the largest of each number
    pooler = "pooler"  # what the family's own pooler makes of the first token


class Combine(Enum):
    """How the vectors of several hidden states become one: Devlin et al. 2018, table 7; Peters et al. 2018, equation 1."""

    concat = "concat"
    sum = "sum"
    weighted = "weighted"  # a sum whose weights (softmax) are trained


@dataclass(frozen=True)
class Outputs:
    """What a head of a task gives for each sequence.

    Attributes:
        number: of logits: the classes, or 1.
        names: of the classes; none where the answer is a number or a choice.
    """

    number: int
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class SavedHead:
    """What is said of a pooled head that is saved beside weights, without reading them.

    Attributes:
        task: the objective that it answers; empty where that is not known.
        pooling: how it makes one vector of a sequence.
        states: numbers of the hidden states that it reads.
        classes: whether its answers are classes.
    """

    task: str
    pooling: Pooling
    states: tuple[int, ...]
    classes: bool


class Attention(Enum):
    """Which positions a family's tokens see."""

    causal = "causal"
    bidirectional = "bidirectional"


class Activation(Enum):
    """gelu is the exact one, which transformers' BERTs have; gelu_tanh its approximation, of GPT-1 to 3 and Devlin's code."""

    gelu = "gelu"
    gelu_tanh = "gelu_tanh"
    relu = "relu"


_SEPARATES: WeakKeyDictionary[PreTrainedModel, bool] = WeakKeyDictionary()
_FRESH: WeakKeyDictionary[PreTrainedModel, frozenset[str]] = WeakKeyDictionary()


def fresh(model: PreTrainedModel) -> frozenset[str]:
    """Parameters of a loaded model that were not in its weights and start from random numbers."""
    return _FRESH.get(model, frozenset())


def say_fresh(model: PreTrainedModel, names: Iterable[str]) -> None:
    """Note which parameters start from random numbers: they may not stay frozen."""
    _FRESH[model] = fresh(model) | frozenset(names)


@dataclass(frozen=True, kw_only=True)
class Model(ABC):
    """A model as settings: what it is, before a single weight exists.

    Attributes:
        head: whose head answers a task.
        pooling: how our head makes one vector of a sequence.
    """

    head: HeadKind
    pooling: Pooling

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
    def blocks(self) -> int | None:
        """Transformer blocks; None where the family has no single number of them."""
        return None

    @property
    def saved_head(self) -> SavedHead | None:
        """The pooled head that came with the weights, where it may be worn; None where there is none."""
        return None

    @property
    def separates(self) -> bool | None:
        """Whether attention can stay inside the documents of a block; None: found out when the weights are there."""
        return None

    @property
    def tokenizer_path(self) -> str | None:
        """The folder of the tokenizer that belongs to the weights; None for a model that starts from nothing."""
        return None

    @property
    def tokenizer_algorithm(self) -> str:
        """The kind of tokenizer trained for it by default."""
        return "bpe" if self.attention is Attention.causal else "wordpiece"

    def wears(self, head: Head) -> bool:
        """Whether transformers has this family with this head; True too where that is found out when it is loaded."""
        return True

    @abstractmethod
    def config(self, tokenizer: PreTrainedTokenizerBase) -> PretrainedConfig:
        """The transformers config, with the vocabulary and the special ids of the tokenizer."""

    @abstractmethod
    def load(
        self, tokenizer: PreTrainedTokenizerBase, head: Head, *, resize: bool, new_head: bool = False, outputs: Outputs | None = None, words: bool = False
    ) -> PreTrainedModel:
        """The model in fp32 on the CPU, wearing `head`, drawn from torch's current random state or read from weights.

        For a task with our head the model is the bare body, with the pooled head that was saved beside the weights, if one
        was; a pooler that the weights lack is left out, unless it is asked for.

        Args:
            resize: whether the embedding may get rows for tokens that the weights do not know.
            new_head: whether a head that the weights lack may start from random numbers, which is said.
            outputs: of the head of a task; None: as saved.
            words: whether the body of a task keeps its language model's head.

        Raises:
            CheckpointError: weights that are missing, broken or of another architecture.
            ConfigError: a tokenizer that does not fit.
        """


def for_task(config: PretrainedConfig, outputs: Outputs) -> PretrainedConfig:
    """A copy of a config with the outputs of a family's own head."""
    import copy

    config = copy.deepcopy(config)
    config.num_labels = outputs.number
    if outputs.names:
        config.id2label = dict(enumerate(outputs.names))
        config.label2id = {name: number for number, name in enumerate(outputs.names)}
    config.problem_type = "single_label_classification" if outputs.names else "regression"
    return config


def from_nothing(model: Model, tokenizer: PreTrainedTokenizerBase, head: Head, outputs: Outputs | None, words: bool) -> PreTrainedModel:
    """A model drawn from torch's current random state."""
    import torch

    config = model.config(tokenizer)
    if head is Head.task and model.head is HeadKind.family and outputs is not None:
        config = for_task(config, outputs)
    made: PreTrainedModel = auto_class(head, model.head, words).from_config(config, dtype=torch.float32, trust_remote_code=False)
    if head is Head.task and model.head is HeadKind.pooled and model.pooling is not Pooling.pooler:
        leave_pooler_out(made)
    say_fresh(made, (name for name, _ in made.named_parameters()))
    return made


def leave_pooler_out(model: PreTrainedModel) -> None:
    """Take an unused pooler off: random numbers that nothing reads would be saved as if they were something."""
    body = model.base_model
    if getattr(body, "pooler", None) is not None:
        body.pooler = None


def require_shape(model: Any) -> None:
    """Refuse numbers that no transformer can have: settings of a model that starts from nothing."""
    for name in ("num_hidden_layers", "hidden_size", "num_attention_heads"):
        require(getattr(model, name) >= 1, name, getattr(model, name), "1 or more")
    heads = model.num_attention_heads
    require(model.hidden_size % heads == 0, "hidden_size", model.hidden_size, f"a multiple of num_attention_heads={heads}")
    require(model.intermediate_size is None or model.intermediate_size >= 1, "intermediate_size", model.intermediate_size, "1 or more, or null")
    require(0 <= model.dropout < 1, "dropout", model.dropout, "0 or more and below 1")
    require(0 < model.initializer_range < 1, "initializer_range", model.initializer_range, "above 0 and below 1")


def require_separation(model: PreTrainedModel) -> None:
    """Refuse a family whose attention crosses the borders of documents that begin again at position 0.

    Asked once for each model, by a tiny pass over two documents of which the first is changed.

    Raises:
        ConfigError: the second document noticed.
    """
    if model not in _SEPARATES:
        _SEPARATES[model] = _separates(model)
    if not _SEPARATES[model]:
        raise no_separation(type(model).__name__)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """eval(), and afterwards each module in the mode that it had."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def take_over(twin: PreTrainedModel, model: PreTrainedModel) -> None:
    """Let a twin of a model, which shares its parameters, count as what the model was found to be."""
    if model in _SEPARATES:
        _SEPARATES[twin] = _SEPARATES[model]
    if model in _FRESH:
        _FRESH[twin] = _FRESH[model]


def no_separation(name: str) -> ConfigError:
    return ConfigError(
        f"objective.document_attention=true: {name} attends across the documents of a block",
        allowed="families whose attention follows position_ids: gpt2, Llama, …",
        fix="objective.document_attention=false, or objective.packing=false",
    )


def _separates(model: PreTrainedModel) -> bool:
    import torch

    body, device = model.base_model, model.get_input_embeddings().weight.device
    ids, positions = torch.tensor([[[0, 1, 2, 3]], [[3, 0, 2, 3]]], device=device), torch.tensor([[0, 1, 0, 1]], device=device)
    with evaluating(model), torch.no_grad():
        first, second = (body(input_ids=row, position_ids=positions, use_cache=False).last_hidden_state[:, 2:] for row in ids)
    return torch.equal(first, second)
