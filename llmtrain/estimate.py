"""What a run will need, from its config alone: nothing is allocated, the model is built on the meta device."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmtrain.errors import DeviceError
from llmtrain.model.base import Head, auto_class

if TYPE_CHECKING:
    from transformers import PretrainedConfig

# fp32 weight, gradient and AdamW's two means: 4 bytes each.
TRAINING_BYTES = 16


@dataclass(frozen=True)
class Estimate:
    """Attributes: parameters: of the model, a tied one once. training_bytes: weights, gradients and optimizer."""

    parameters: int

    @property
    def training_bytes(self) -> int:
        return self.parameters * TRAINING_BYTES


def estimate(config: PretrainedConfig, head: Head = Head.next_token) -> Estimate:
    """Count the parameters of a model of this config with this head."""
    import torch

    with torch.device("meta"):  # a copy of the config: from_config notes the type in it
        model = auto_class(head).from_config(copy.deepcopy(config), dtype=torch.float32, trust_remote_code=False)
    return Estimate(sum(p.numel() for p in model.parameters()))


def available_bytes(device: str) -> int:
    """Free memory of the device that weights and optimizer live on."""
    if device == "cuda":
        import torch

        return int(torch.cuda.mem_get_info()[0])
    import psutil

    return int(psutil.virtual_memory().available)


def refuse_too_large(config: PretrainedConfig, device: str, head: Head = Head.next_token, shares: int = 1) -> Estimate:
    """The estimate, before anything is allocated.

    Args:
        shares: processes that the model is divided over; on a CPU they share the memory.

    Raises:
        DeviceError: weights, gradients and optimizer alone need more than is free.
    """
    needed, free = estimate(config, head), available_bytes(device)
    shares = 1 if device == "cpu" else shares
    if needed.training_bytes / shares > free:
        raise DeviceError(
            f"the model has {needed.parameters:,} parameters: "
            f"weights, gradients and optimizer need {needed.training_bytes / shares / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free on {device}",
            fix=f"a smaller model, or a machine with more memory{', or devices=N distributed.strategy=fsdp' if device == 'cuda' else ''}",
        )
    return needed
