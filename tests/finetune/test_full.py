"""Full: every parameter of the anatomy, in one phase that ends with the run."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from llmtrain.config import build
from llmtrain.finetune.base import Finetune


def test_everything_is_trained_in_one_phase() -> None:
    anatomy = cast(Any, SimpleNamespace(sections={"wte": "embeddings", "h.0": "block.0", "head": "head"}))
    (phase,) = build({"kind": "full"}, Finetune, "finetune").plan(anatomy)
    assert (phase.until, phase.trainable) == (1.0, {"wte", "h.0", "head"})
