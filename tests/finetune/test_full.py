"""Full: every parameter of the anatomy, in one phase that ends with the run."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as t

from llmtrain.command.train import _anatomy
from llmtrain.errors import ConfigError
from llmtrain.model.anatomy import anatomy
from tests.finetune.conftest import BERT, case, mode

ALBERT = (t.AlbertForMaskedLM, t.AlbertConfig(**BERT, embedding_size=24))
T5 = (t.T5ForConditionalGeneration, t.T5Config(vocab_size=99, d_model=48, d_kv=8, d_ff=72, num_layers=2, num_heads=6))
UNDIVIDED = pytest.mark.parametrize(("model_class", "config", "why"), [(*ALBERT, "albert: its 3 layers share"), (*T5, "t5: an encoder and a decoder")])


def test_everything_is_trained_in_one_phase() -> None:
    (phase,) = mode("full").plan(case("bert").anatomy)
    assert (phase.until, phase.trainable) == (1.0, case("bert").anatomy.sections.keys())


def test_the_published_number_of_trainable_parameters_of_distilbert() -> None:
    (phase,) = mode("full").plan(case("distilbert_published").anatomy)
    assert case("distilbert_published").count(phase) == 66_955_010


@UNDIVIDED
def test_a_model_without_a_stack_of_blocks_can_still_be_trained_whole(model_class: Any, config: Any, why: str) -> None:
    model = model_class(config)
    (phase,) = mode("full").plan(_anatomy(model, mode("full")))
    assert phase.trainable == {name for name, _ in model.named_parameters()}


@UNDIVIDED
@pytest.mark.parametrize("kind", ["features", "last_layers", "layers", "gradual", "lp_ft", "lora"])
def test_to_freeze_part_of_such_a_model_is_refused_by_its_name(model_class: Any, config: Any, why: str, kind: str) -> None:
    with torch.device("meta"):
        model = model_class(config)
    with pytest.raises(ConfigError, match=f"model family {why}") as caught:
        _anatomy(model, mode(kind))
    assert "finetune=full" in str(caught.value.fix)


def test_rates_by_block_want_blocks() -> None:
    assert not mode("full").needs_blocks
    assert mode("full", lr_decay=0.9).needs_blocks
    with pytest.raises(ConfigError, match="albert"):
        anatomy(ALBERT[1], ALBERT[0])
