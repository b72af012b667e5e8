"""`llmtrain finetune`: train the head, the last blocks or all of a pretrained model on a task."""

from __future__ import annotations

from llmtrain.command import train
from llmtrain.config import Composed


def command(composed: Composed, overrides: list[str]) -> int:
    return train.start(composed, overrides, "finetune")
