"""`llmtrain report PATH…`: which paths are taken, where the report goes, and what is refused."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from llmtrain.command import report
from llmtrain.config import compose
from llmtrain.errors import ConfigError


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What was handed to report/files.write."""
    found: list[tuple[Any, ...]] = []
    monkeypatch.setattr(report, "write", lambda *given: found.append(given))
    return found


def run(*typed: str) -> int:
    overrides = [text for text in typed if "=" in text]
    return report.command(compose("report", overrides), overrides, [text for text in typed if "=" not in text])


def sweep(name: str, age: int) -> Path:
    folder = Path("runs/sweep") / name
    folder.mkdir(parents=True)
    (folder / "sweep.json").write_text("{}")
    os.utime(folder / "sweep.json", (1e9 - age, 1e9 - age))
    return folder


def test_paths_and_options_are_handed_on(written: list[tuple[Any, ...]]) -> None:
    assert run("a", "b/c", "metric=macro_f1", "reference=full", "output=there") == 0
    assert written == [([Path("a"), Path("b/c")], Path("there"), "macro_f1", "full")]


def test_by_default_the_runs_decide_and_the_report_stands_with_them(written: list[tuple[Any, ...]]) -> None:
    run("a")
    assert written == [([Path("a")], None, None, None)]


def test_without_a_path_it_is_the_newest_sweep(
    written: list[tuple[Any, ...]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    sweep("old", 100), sweep("new", 1), sweep("older", 1000)
    run()
    assert written[0][0] == [Path("runs/sweep/new")]
    assert "the newest sweep is runs/sweep/new" in capsys.readouterr().out


def test_without_a_path_and_without_a_sweep_it_says_what_it_takes(written: list[tuple[Any, ...]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="no PATH given") as caught:
        run()
    assert caught.value.exit_code == 2
    assert written == []


@pytest.mark.parametrize("name", ["metric", "reference", "output"])
def test_an_empty_option_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        run("a", f"{name}=''")


def test_a_label_with_a_comma_can_be_the_reference(written: list[tuple[Any, ...]]) -> None:
    run("a", "reference='last 2 blocks, lr 0.001'")
    assert written[0][3] == "last 2 blocks, lr 0.001"
