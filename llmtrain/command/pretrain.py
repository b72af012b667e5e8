"""`llmtrain pretrain`: train on this process, or start several."""

from __future__ import annotations

from llmtrain.command import train
from llmtrain.config import Composed


def command(composed: Composed, overrides: list[str]) -> int:
    return train.start(composed, overrides, "pretrain")
