"""What may change: which parameters are trained, and when.

A mode returns phases. A change of phase is a step boundary: wrapper and optimizer are built anew, and parameters that
stay trainable keep their optimizer state by name.

A tied parameter counts at its earliest use: an output matrix tied to the embeddings is frozen with them and moves with
them. `tied_frozen` and `tied_moving` say so, `untie` ends it.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from llmtrain.errors import ConfigError, require

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from llmtrain.model.anatomy import Anatomy

log = logging.getLogger("llmtrain")


@dataclass(frozen=True)
class Phase:
    """A stretch of training in which one set of parameters moves.

    Attributes:
        until: share of the whole budget at which it ends; the last phase ends at 1.
        trainable: names of the parameters that move, all others are frozen.
        lr_scale: factor on the learning rate by parameter name, where it is not 1.
    """

    until: float
    trainable: frozenset[str]
    lr_scale: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Finetune(ABC):
    """A finetuning mode. Pretraining is one too: everything moves, in one phase.

    Attributes:
        lr: the peak learning rate that belongs to the mode, where `optimizer.lr` is not given.
        epochs: the budget that belongs to the mode, where no other is given.
        batch_size: sequences of an update, where `trainer.batch_size` is not given.
        weight_decay: where `optimizer.weight_decay` is not given.
    """

    lr: float
    epochs: float
    batch_size: int
    weight_decay: float

    def __post_init__(self) -> None:
        require(self.batch_size >= 1, "batch_size", self.batch_size, "1 sequence or more")
        require(0 <= self.weight_decay < float("inf"), "weight_decay", self.weight_decay, "0 or more, finite")
        for name in ("lr", "epochs"):
            require(0 < getattr(self, name) < float("inf"), name, getattr(self, name), "a finite number above 0")

    @property
    def needs_blocks(self) -> bool:
        """Whether the plan asks where the blocks are; False: it fits any model."""
        return True

    @property
    def trains_body(self) -> bool:
        """Whether more than the head moves at some time."""
        return True

    @property
    def trains_head(self) -> bool:
        """Whether the head is among what moves, so far as it is not tied to something frozen."""
        return True

    @property
    def reads(self) -> tuple[str, str]:
        """The hidden states that our head reads (`address.state_numbers`), and how it combines several: concat, sum or weighted."""
        return "last", "concat"

    @property
    def standardises(self) -> bool:
        """Whether our head standardises what it reads."""
        return False

    def check_depth(self, depth: int) -> None:
        """Whether a model of so many blocks has those that the mode asks for; asked before anything is loaded, where the number is known, and by the plan.

        Raises:
            ConfigError: it has not.
        """

    def prepare(self, model: PreTrainedModel, anatomy: Anatomy) -> PreTrainedModel:
        """The model with what the mode adds or replaces; by default as it is.

        The plan wants the anatomy of what is returned: `anatomy.fitted(model)`.
        """
        return model

    @abstractmethod
    def plan(self, anatomy: Anatomy) -> list[Phase]:
        """The phases, by parameter names.

        Raises:
            ConfigError: the model has no such blocks, or nothing would be trained.
        """

    def merged(self, model: PreTrainedModel) -> PreTrainedModel:
        """The model as it is exported, under the names that it had before `prepare` added to it; by default as it is."""
        return model

    def phase(self, anatomy: Anatomy, trainable: Iterable[str], until: float = 1.0) -> Phase:
        """A phase that trains these parameters.

        Raises:
            ConfigError: there are none.
        """
        names = frozenset(trainable)
        if not names:
            raise _trains_nothing(anatomy, self.trains_head)
        return Phase(until, names, self.lr_scale(anatomy, names))

    def lr_scale(self, anatomy: Anatomy, names: frozenset[str]) -> dict[str, float]:
        """Factors on the learning rate, by name, where they are not 1."""
        return {}


@dataclass(frozen=True, kw_only=True)
class Decayed(Finetune):
    """A mode whose learning rate may fall from block to block on the way down.

    Attributes:
        lr_decay: factor from one block to the next lower one. What stands above the blocks has the whole rate, the last
            block `lr_decay` of it, the embeddings lr_decay ** (blocks + 1). Howard & Ruder 2018, arXiv 1801.06146, 3.2;
            counted as in Bao et al. 2021, arXiv 2106.08254 (BEiT).
    """

    lr_decay: float

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.lr_decay <= 1, "lr_decay", self.lr_decay, "above 0, at most 1 (one rate for all)")

    def lr_scale(self, anatomy: Anatomy, names: frozenset[str]) -> dict[str, float]:
        if self.lr_decay == 1:
            return {}
        top = anatomy.depth + 1
        return {name: self.lr_decay ** (top - height) for name, height in anatomy.heights().items() if name in names and height < top}


@dataclass(frozen=True, kw_only=True)
class Untying(Finetune):
    """A mode that may leave the embeddings frozen, and with them an output matrix that is tied to them.

    Attributes:
        untie: whether such a matrix becomes a copy of its own, which can be trained: it makes the model larger.
    """

    untie: bool

    def prepare(self, model: PreTrainedModel, anatomy: Anatomy) -> PreTrainedModel:
        from llmtrain.model.anatomy import untie

        if self.untie and not untie(model):
            log.info("finetune.untie=true has no effect: %s ties no weights", type(model).__name__)
        return model


def tied_frozen(anatomy: Anatomy, trainable: Iterable[str]) -> dict[str, str]:
    """Output weight → the weight of the embeddings that it is tied to, where training `trainable` leaves both frozen."""
    return _tied(anatomy, set(anatomy.sections) - set(trainable))


def tied_moving(anatomy: Anatomy, trainable: Iterable[str]) -> dict[str, str]:
    """The same, where training `trainable` moves both."""
    return _tied(anatomy, set(trainable))


def _tied(anatomy: Anatomy, among: set[str]) -> dict[str, str]:
    """Output weight → the weight of the embeddings that it is tied to, where that is among some parameters."""
    body = anatomy.stack.partition(".")[0] + "."
    pairs = [(alias, known) for alias, known in anatomy.tied.items() if anatomy.sections[known] == "embeddings" and known in among]
    # The model may list its head first, and then the matrix goes by the head's name (XLM-RoBERTa).
    return {name: other for alias, known in pairs for name, other in ((alias, known), (known, alias)) if not name.startswith(body)}


def require_depth(blocks: int, depth: int, key: str) -> None:
    """Raise ConfigError where a setting asks for more blocks than the model has."""
    if blocks > depth:
        raise ConfigError(f"finetune.{key}={blocks}: the model has {depth} blocks", allowed=f"1 to {depth}")


def _trains_nothing(anatomy: Anatomy, head: bool) -> ConfigError:
    """With the way out, if a head was to be trained and is tied to what is frozen."""
    tied = tied_frozen(anatomy, ()) if head else {}
    if tied:
        output, embedding = next(iter(tied.items()))
        what = f"nothing would be trained: {output} is tied to the frozen embeddings, {embedding}"
        return ConfigError(what, fix="finetune.untie=true gives it weights of its own; or train more: finetune=last_layers")
    names = ", ".join(list(anatomy.sections)[:5])
    return ConfigError("nothing would be trained: no parameter of the model is chosen", allowed=f"some of its {len(anatomy.sections)} parameters: {names}, …")
