"""Layers: any blocks, and the parts around them by switches."""

from __future__ import annotations

import pytest

from llmtrain.errors import ConfigError
from tests.finetune.conftest import case, mode

OFF = {"embeddings": False, "norm": False, "pooler": False, "head": False}


@pytest.mark.parametrize(
    ("address", "blocks"),
    [("last:2", {1, 2}), ("first:2", {0, 1}), ("0-1", {0, 1}), ("0,2", {0, 2}), ("0,1-1,last:1", {0, 1, 2}), ("all", {0, 1, 2}), (1, {1})],
)
@pytest.mark.parametrize("name", ["bert", "gpt2_classification", "llama"])
def test_the_blocks_of_the_address_are_trained_and_no_other(name: str, address: object, blocks: set[int]) -> None:
    (phase,) = mode("layers", address=address, **OFF).plan(case(name).anatomy)
    assert phase.trainable == {n for i in blocks for n in case(name).anatomy.names(f"block.{i}")}


@pytest.mark.parametrize(
    ("name", "switch", "parts"),
    [
        ("bert", "pooler", {"bert.pooler.dense.weight", "bert.pooler.dense.bias"}),
        ("bert", "head", {"classifier.weight", "classifier.bias"}),
        ("gpt2_classification", "norm", {"transformer.ln_f.weight", "transformer.ln_f.bias"}),
        ("gpt2_classification", "embeddings", {"transformer.wte.weight", "transformer.wpe.weight"}),
        ("llama", "norm", {"model.norm.weight"}),
    ],
)
def test_a_switch_trains_its_part_and_nothing_else(name: str, switch: str, parts: set[str]) -> None:
    (phase,) = mode("layers", address="none", **{**OFF, switch: True}).plan(case(name).anatomy)
    assert phase.trainable == parts


@pytest.mark.parametrize(("name", "switch"), [("bert", "norm"), ("gpt2_classification", "pooler")])
def test_what_a_model_does_not_have_adds_nothing(name: str, switch: str) -> None:
    one = mode("layers", address="last:1", **OFF).plan(case(name).anatomy)
    assert mode("layers", address="last:1", **{**OFF, switch: True}).plan(case(name).anatomy) == one


def test_all_blocks_and_all_switches_are_everything() -> None:
    policy = mode("layers", address="all", **dict.fromkeys(OFF, True))
    assert policy.plan(case("deberta").anatomy) == mode("full").plan(case("deberta").anatomy)


@pytest.mark.parametrize("address", ["0-1", "last:2", "none"])
def test_what_all_blocks_use_is_frozen_while_one_of_them_is(address: str) -> None:
    anatomy = case("deberta").anatomy
    (phase,) = mode("layers", address=address).plan(anatomy)
    assert anatomy.shared
    assert not anatomy.shared & phase.trainable


@pytest.mark.parametrize("address", ["", "h.3", "last:0", "6-3", "block", "*"])
def test_what_is_no_address_is_refused_with_examples(address: str) -> None:
    with pytest.raises(ConfigError, match=r"finetune\.address") as caught:
        mode("layers", address=address)
    assert caught.value.exit_code == 2
    assert "last:2" in str(caught.value.allowed)


def test_a_block_that_the_model_does_not_have_is_refused_with_their_number() -> None:
    with pytest.raises(ConfigError, match="there is no '99': the model has 12 blocks, 0 to 11") as caught:
        mode("layers", address="0,99").plan(case("bert_published").anatomy)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(("chosen", "body"), [({"head": True}, False), ({"norm": True}, True), ({"embeddings": True}, True), ({"address": "last:1"}, True)])
def test_the_head_alone_is_not_the_body(chosen: dict[str, object], body: bool) -> None:
    assert mode("layers", **{"address": "none", **OFF, **chosen}).trains_body is body


def test_the_head_alone_where_it_is_tied_is_refused_with_the_way_out() -> None:
    with pytest.raises(ConfigError, match=r"lm_head\.weight is tied to the frozen embeddings") as caught:
        mode("layers", address="none", **{**OFF, "head": True}).plan(case("gpt2").anatomy)
    assert "finetune.untie=true" in str(caught.value.fix)


@pytest.mark.parametrize("name", ["bert", "gpt2_classification", "gpt2"])
def test_an_address_that_leaves_nothing_to_train_is_refused_and_names_are_shown(name: str) -> None:
    with pytest.raises(ConfigError, match="nothing would be trained") as caught:
        mode("layers", address="none", **OFF).plan(case(name).anatomy)
    assert caught.value.exit_code == 2
    assert all(parameter in str(caught.value.allowed) for parameter in list(case(name).anatomy.sections)[:5])
