"""Features: the head alone is trained."""

from __future__ import annotations

import pytest

from llmtrain.errors import ConfigError
from tests.finetune.conftest import case, mode


@pytest.mark.parametrize("name", ["bert", "distilbert", "gpt2_classification", "llama"])
def test_what_stands_outside_the_base_model_is_trained_and_nothing_else(name: str) -> None:
    (phase,) = mode("features").plan(case(name).anatomy)
    body = case(name).model.base_model_prefix
    assert phase.trainable == {n for n, _ in case(name).model.named_parameters() if not n.startswith(f"{body}.")}
    assert case(name).anatomy.frozen_depth(phase.trainable) == 3


def test_the_published_number_of_trainable_parameters_of_distilbert() -> None:
    (phase,) = mode("features").plan(case("distilbert_published").anatomy)
    assert case("distilbert_published").count(phase) == 592_130


@pytest.mark.parametrize("states", ["last", "-2", "last:4", "0,6", "all", "0", 0, -1])
def test_an_address_of_states_is_taken(states: object) -> None:
    assert mode("features", states=states).reads == (str(states), "concat")


@pytest.mark.parametrize("states", ["none", "", "last:0", "middle", "6-3", "0.5"])
def test_what_is_no_address_is_refused_with_examples(states: str) -> None:
    with pytest.raises(ConfigError, match=r"finetune\.states") as caught:
        mode("features", states=states)
    assert "last:2" in str(caught.value.allowed)
    assert "none" not in str(caught.value.allowed)


@pytest.mark.parametrize("combine", ["concat", "sum", "weighted"])
def test_a_way_to_combine_states_is_handed_on(combine: str) -> None:
    assert mode("features", combine=combine).reads == ("last", combine)


def test_an_unknown_way_to_combine_states_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"finetune\.combine"):
        mode("features", combine="mean")


@pytest.mark.parametrize("standardise", [True, False])
def test_the_switch_to_standardise_is_handed_on(standardise: bool) -> None:
    assert mode("features", standardise=standardise).standardises is standardise
