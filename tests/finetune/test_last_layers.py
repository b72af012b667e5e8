"""Last layers: the last blocks and all that stands above them."""

from __future__ import annotations

import pytest

from llmtrain.errors import ConfigError
from tests.finetune.conftest import case, mode


@pytest.mark.parametrize(
    ("blocks", "sections"),
    [
        (1, {"block.2", "final", "head"}),
        (2, {"block.1", "block.2", "final", "head"}),
        (3, {"block.0", "block.1", "block.2", "final", "head"}),
    ],
)
@pytest.mark.parametrize("name", ["bert", "gpt2_classification", "llama"])
def test_the_last_blocks_are_trained_with_all_above_them(name: str, blocks: int, sections: set[str]) -> None:
    (phase,) = mode("last_layers", blocks=blocks).plan(case(name).anatomy)
    assert phase.trainable == {n for section in sections for n in case(name).anatomy.names(section)}
    assert case(name).anatomy.frozen_depth(phase.trainable) == 3 - blocks


def test_the_published_number_of_trainable_parameters_of_distilbert() -> None:
    (phase,) = mode("last_layers", blocks=1).plan(case("distilbert_published").anatomy)
    assert case("distilbert_published").count(phase) == 7_680_002


@pytest.mark.parametrize("blocks", [1, 2])
def test_what_all_blocks_use_is_frozen_while_one_of_them_is(blocks: int) -> None:
    anatomy = case("deberta").anatomy
    (phase,) = mode("last_layers", blocks=blocks).plan(anatomy)
    assert anatomy.shared
    assert not anatomy.shared & phase.trainable


def test_what_all_blocks_use_is_trained_when_all_of_them_are() -> None:
    anatomy = case("deberta").anatomy
    (phase,) = mode("last_layers", blocks=3).plan(anatomy)
    assert anatomy.shared <= phase.trainable


@pytest.mark.parametrize("blocks", [0, -1])
def test_no_block_never_means_all_of_them(blocks: int) -> None:
    with pytest.raises(ConfigError, match=rf"finetune\.blocks={blocks}") as caught:
        mode("last_layers", blocks=blocks)
    assert caught.value.exit_code == 2
    assert "finetune=features" in str(caught.value.allowed)


def test_more_blocks_than_the_model_has_are_refused_with_their_number() -> None:
    with pytest.raises(ConfigError, match=r"finetune\.blocks=99: the model has 12 blocks") as caught:
        mode("last_layers", blocks=99).plan(case("bert_published").anatomy)
    assert caught.value.exit_code == 2
