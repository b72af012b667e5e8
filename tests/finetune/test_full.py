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


def test_a_model_without_a_stack_of_blocks_can_still_be_trained_whole() -> None:
    """ALBERT's blocks share one set of parameters."""
    from transformers import AlbertConfig, AlbertForMaskedLM

    from llmtrain.command.train import _anatomy

    model = AlbertForMaskedLM(AlbertConfig(hidden_size=16, embedding_size=8, num_attention_heads=2, intermediate_size=16, vocab_size=32))
    mode = build({"kind": "full"}, Finetune, "finetune")
    (phase,) = mode.plan(_anatomy(model, mode))
    assert phase.trainable == {name for name, _ in model.named_parameters()}
