"""Low-rank adapters beside frozen layers: W x + (alpha / rank) B A x. Hu et al. 2021, arXiv 2106.09685; through `peft`."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

from llmtrain.errors import ConfigError, DeviceError, require
from llmtrain.finetune.base import Decayed, Phase, require_depth

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

    from llmtrain.model.anatomy import Anatomy

ADAPTER = ".lora_"  # in the name of every parameter that peft adds


class Target(Enum):
    """Which linear layers of a block get adapters."""

    all = "all"
    attention = "attention"


@dataclass(frozen=True, kw_only=True)
class Lora(Decayed):
    """Train adapters in the blocks, and the head; biases and all else are frozen.

    Attributes:
        rank: inner width of an adapter.
        alpha: an adapter's output is multiplied by alpha / rank.
        dropout: on an adapter's input.
        blocks: the last so many blocks get adapters; None: all.
        target: which of their linear layers.
    """

    rank: int
    alpha: float
    dropout: float
    blocks: int | None
    target: Target

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.rank >= 1, "rank", self.rank, "1 or more")
        require(0 < self.alpha < float("inf"), "alpha", self.alpha, "a finite number above 0")
        require(0 <= self.dropout < 1, "dropout", self.dropout, "0 or more and below 1")
        require(self.blocks is None or self.blocks >= 1, "blocks", self.blocks, "1 or more, or null for all")

    def check_depth(self, depth: int) -> None:
        if self.blocks is not None:
            require_depth(self.blocks, depth, "blocks")

    def prepare(self, model: PreTrainedModel, anatomy: Anatomy) -> PreTrainedModel:
        """`model` itself, of the same class, with adapters drawn from torch's current random state, which change nothing yet.

        Raises:
            DeviceError: peft is not installed.
            ConfigError: there is no such layer.
        """
        from torch import nn

        from llmtrain.model.base import say_fresh

        peft, targets = _peft(), self._targets(model, anatomy)
        transposed = not isinstance(model.get_submodule(targets[0]), nn.Linear)  # GPT-2's layers hold W, not its transpose
        settings = peft.LoraConfig(
            r=self.rank, lora_alpha=self.alpha, lora_dropout=self.dropout, target_modules=targets, fan_in_fan_out=transposed, bias="none"
        )
        peft.inject_adapter_in_model(settings, model)
        say_fresh(model, (name for name, _ in model.named_parameters() if ADAPTER in name))
        return model

    def plan(self, anatomy: Anatomy) -> list[Phase]:
        adapters = [name for name in anatomy.sections if ADAPTER in name]
        return [self.phase(anatomy, [*adapters, *anatomy.names("head")])]

    def merged(self, model: PreTrainedModel) -> PreTrainedModel:
        """`model` itself, its adapters added to the layers beside which they stood, and gone."""
        layer = _peft("peft.tuners.tuners_utils").BaseTunerLayer
        for name, module in [(name, module) for name, module in model.named_modules() if isinstance(module, layer)]:
            module.merge()
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, module.get_base_layer())
        vars(model).pop("peft_config", None)
        return model

    def _targets(self, model: nn.Module, anatomy: Anatomy) -> list[str]:
        """The linear layers that get adapters."""
        from torch import nn
        from transformers.pytorch_utils import Conv1D

        self.check_depth(anatomy.depth)
        chosen = [f"{anatomy.stack}.{i}." for i in range(anatomy.depth)][-(self.blocks or anatomy.depth) :]
        linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D) and name.startswith(tuple(chosen))]
        found = [name for name in linear if self.target is Target.all or _in_attention(name.removeprefix(anatomy.stack))]
        if not found:
            what = f"finetune.target={self.target.name}: no linear layer in the blocks of this {anatomy.family} model matches"
            raise ConfigError(what, allowed=", ".join(linear[:5]) or None, fix="finetune.target=all" if linear else "finetune=last_layers")
        return found


def _in_attention(name: str) -> bool:
    return "attn" in name or "attention" in name


def _peft(module: str = "peft") -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise DeviceError("finetune=lora: the package peft is not installed", fix="pip install 'llmtrain[lora]'") from error
