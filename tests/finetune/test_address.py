"""Addresses of blocks and of hidden states."""

from __future__ import annotations

import pytest

from llmtrain.errors import ConfigError
from llmtrain.finetune.address import block_numbers, is_address, state_numbers

BLOCKS = [
    ("last:2", (10, 11)),
    ("first:4", (0, 1, 2, 3)),
    ("3-6", (3, 4, 5, 6)),
    ("0,11", (0, 11)),
    ("0,3-6,last:1", (0, 3, 4, 5, 6, 11)),
    (" 0 , 11 ", (0, 11)),
    ("last", (11,)),
    ("first", (0,)),
    ("-2", (10,)),
    ("-12", (0,)),
    ("4-4", (4,)),
    ("all", tuple(range(12))),
    ("last:12", tuple(range(12))),
    ("none", ()),
    ("none,3", (3,)),
]
STATES = [("last", (12,)), ("-1", (12,)), ("-2", (11,)), ("last:4", (9, 10, 11, 12)), ("0,6", (0, 6)), ("0", (0,)), ("all", tuple(range(13)))]


@pytest.mark.parametrize(("address", "numbers"), BLOCKS)
def test_an_address_names_blocks(address: str, numbers: tuple[int, ...]) -> None:
    assert block_numbers(address, 12) == numbers


@pytest.mark.parametrize("address", ["5,1,3", "1,3,5", "5,3,1,1", "3,5,1-1"])
def test_the_order_in_an_address_does_not_count_nor_does_saying_a_block_twice(address: str) -> None:
    assert block_numbers(address, 12) == (1, 3, 5)


@pytest.mark.parametrize(("states", "numbers"), STATES)
def test_an_address_names_hidden_states_from_the_embeddings_to_the_last(states: str, numbers: tuple[int, ...]) -> None:
    assert state_numbers(states, 12) == numbers


@pytest.mark.parametrize("address", ["12", "3-12", "last:13", "first:13", "-13", "0,99", "999999"])
def test_a_block_that_the_model_does_not_have_is_refused_with_its_depth(address: str) -> None:
    with pytest.raises(ConfigError, match="the model has 12 blocks, 0 to 11"):
        block_numbers(address, 12)


@pytest.mark.parametrize("states", ["13", "last:14", "-14"])
def test_a_state_that_the_model_does_not_have_is_refused_with_their_number(states: str) -> None:
    with pytest.raises(ConfigError, match=r"finetune\.states=.*12 blocks and 13 hidden states"):
        state_numbers(states, 12)


def test_a_head_that_reads_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="nothing to read"):
        state_numbers("none", 12)


@pytest.mark.parametrize("text", ["", ",", "last:0", "first:0", "-0", "6-3", "last:-1", "1.5", "h.3", "last2", "3-", "1;2", "*", "٣", "1" * 5000])
@pytest.mark.parametrize("meaning", [block_numbers, state_numbers])
def test_what_is_no_address_is_refused_with_examples(meaning: object, text: str) -> None:
    assert not is_address(text)
    with pytest.raises(ConfigError, match="no address") as caught:
        meaning(text, 12)  # type: ignore[operator]
    assert "last:2" in str(caught.value.allowed)
