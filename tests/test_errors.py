"""Errors fit on a screen and cannot drive it."""

from __future__ import annotations

import io
import sys

import pytest

from llmtrain import errors
from llmtrain.errors import LLMTrainError, SettingError, masked, plain, printable, require, shown, write_any_text


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


# --- secrets --------------------------------------------------------------------------------------------------------


def test_h10_what_variables_of_secrets_hold_is_masked_wherever_it_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "very-secret")
    monkeypatch.setenv("MY_TOKEN", "abcdefg")  # so short that it would stand in ordinary words
    tree = {"a": {"project": "x very-secret y"}, "b": ["very-secret", 1], "c": "abcdefgh", "d": None}
    assert masked(tree) == {"a": {"project": "x *** y"}, "b": ["***", 1], "c": "abcdefgh", "d": None}


NAMES = ["HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "OPENAI_APIKEY", "PGPASSWORD", "smtp_passwd", "CLIENT_SECRET", "KEY", "SSH_PASSPHRASE"]
NO_SECRETS = ["HF_TOKEN_PATH", "HOME", "TOKENIZERS_PARALLELISM", "MONKEY", "KEYBOARD", "AWS_ACCESS_KEY_ID"]


@pytest.mark.parametrize(("name", "secret"), [*((name, True) for name in NAMES), *((name, False) for name in NO_SECRETS)])
def test_h10_a_secret_is_known_by_the_name_of_its_variable(monkeypatch: pytest.MonkeyPatch, name: str, secret: bool) -> None:
    monkeypatch.setenv(name, "value-of-it")
    assert plain("a value-of-it b") == ("a *** b" if secret else "a value-of-it b")


@pytest.mark.parametrize("length", [8, 79, 200])
def test_h10_no_part_of_a_secret_is_on_a_screen_or_in_a_value_that_is_cut(monkeypatch: pytest.MonkeyPatch, length: int) -> None:
    monkeypatch.setenv("SOME_PASSWORD", "s3cr3t?-" * (length // 8) + "x" * (length % 8))
    monkeypatch.setenv("OTHER_PASSWORD", "s3cr3t?-")
    secret = "s3cr3t?-" * (length // 8) + "x" * (length % 8)
    error = LLMTrainError(f"device={shown(f'a {secret}')}", allowed=f"not {secret}", fix=secret)
    assert "s3cr3t" not in error.screen()
    assert shown({"a": secret}) == "{'a': '***'}"


# --- streams --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_what_the_terminal_has_no_character_for_is_spelled_out(monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding, write_through=True)
    monkeypatch.setattr(sys, "stdout", stream)
    write_any_text()
    print("✓ done", flush=True)
    assert stream.buffer.getvalue() == b"\\u2713 done\n"  # type: ignore[attr-defined]


@pytest.mark.parametrize("stream", [None, io.StringIO()])
def test_a_program_that_captures_the_output_is_left_alone(monkeypatch: pytest.MonkeyPatch, stream: object) -> None:
    monkeypatch.setattr(sys, "stdout", stream)
    write_any_text()
    assert sys.stdout is stream
