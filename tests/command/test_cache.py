"""`llmtrain cache list` shows what frozen prefixes left on the disk, `llmtrain cache clear` removes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from llmtrain import cache
from llmtrain.command.cache import command, primary
from llmtrain.config import Composed
from llmtrain.errors import ConfigError


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LLMTRAIN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def keep(identity: dict[str, Any]) -> cache.Stored:
    return cache.stored(identity, 2, lambda batch: [[torch.ones(500, 4)] for _ in batch], [500, 500], width=4, dtype="bf16", say=print)


def run(capsys: pytest.CaptureFixture[str], action: str) -> str:
    assert command(Composed(OmegaConf.create({"action": action})), []) == 0
    return capsys.readouterr().out


def test_an_empty_cache_is_listed_as_such(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "list") == "0 entries of stored states, 0.0 MB\n"


def test_an_entry_is_a_line_with_its_size_shapes_and_what_it_was_made_from(capsys: pytest.CaptureFixture[str]) -> None:
    kept = keep({"what": {"depth": 4}, "weights": "ab" * 32, "config": {"model_type": "bert", "layers": list(range(500))}})
    keep({"what": {"depth": 5}})
    out = run(capsys, "list")
    assert len(out.splitlines()) == 4
    (line,) = [line for line in out.splitlines() if line.startswith(kept.path.name[:8])]
    assert all(text in line for text in ("0.0 MB", "2 samples", "1,000 × 4", "bf16", "depth=4", "weights=abababababab ", "model=bert"))
    assert len(line) < 200
    assert "2 entries of stored states" in out


def test_an_entry_that_cannot_be_read_is_a_line_that_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    (keep({}).path / cache.ABOUT).write_text("{")
    assert "cannot be read: the next run that wants it makes it again" in run(capsys, "list")


def test_what_an_identity_says_cannot_drive_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    keep({"config": "\x1b[2Jevil"})
    assert "model=\\x1b[2Jevil" in run(capsys, "list")


def test_list_removes_nothing_and_clear_removes_all(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    keep({"depth": 4})
    keep({"depth": 5})
    run(capsys, "list")
    assert run(capsys, "clear").startswith("2 entries removed, ")
    assert cache.listed() == []
    assert run(capsys, "clear") == "0 entries removed, 0.0 MB freed\n"


@pytest.mark.parametrize(("word", "name"), [("cache", "cache"), ("list", "cache"), ("clear", "cache_clear")])
def test_the_second_word_chooses_the_config(word: str, name: str) -> None:
    assert primary(word) == name


def test_another_second_word_is_refused_with_those_that_are_allowed() -> None:
    with pytest.raises(ConfigError, match="cache empty") as caught:
        primary("empty")
    assert caught.value.allowed == "list, clear"


def test_an_action_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ConfigError, match="action"):
        command(Composed(OmegaConf.create({"action": "delete"})), [])
