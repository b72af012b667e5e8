"""Errors fit on a screen and cannot drive it."""

from __future__ import annotations

import pytest

from llmtrain import errors
from llmtrain.errors import LLMTrainError, SettingError, printable, require, shown


def test_exit_codes_are_those_of_the_table() -> None:
    codes = {c.__name__: c.exit_code for c in vars(errors).values() if isinstance(c, type) and issubclass(c, LLMTrainError)}
    assert codes == {
        "LLMTrainError": 1, "ConfigError": 2, "DataError": 3, "CheckpointError": 4, "NonFiniteError": 5, "DeviceError": 6,
        "DistributedError": 7, "Stopped": 75, "Interrupted": 130,
    }  # fmt: skip


def test_a_screen_has_at_most_six_lines() -> None:
    assert len(LLMTrainError("a\nb\nc\nd", allowed="e\nf", fix="g\nh").screen().splitlines()) == 6


@pytest.mark.parametrize("nasty", ["\x1b[31mred", "\u202egnirts", "bell\x07", "\x9b2J"])
def test_control_and_direction_characters_are_printed_as_escapes(nasty: str) -> None:
    assert all(c.isprintable() for c in printable(nasty))
    assert all(c.isprintable() or c == "\n" for c in LLMTrainError(nasty).screen())


def test_data_in_a_message_is_cut() -> None:
    assert len(shown("x" * 1000)) == 80
    assert shown("short") == "'short'"


def test_require_names_field_value_and_what_is_allowed() -> None:
    with pytest.raises(SettingError) as caught:
        require(False, "lr", -1, "above 0")
    assert (caught.value.field, caught.value.value, caught.value.allowed) == ("lr", -1, "above 0")
