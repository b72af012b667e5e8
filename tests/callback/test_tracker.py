"""Trackers come by name, through Accelerate, and none by default."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llmtrain.errors import ConfigError, DeviceError
from tests.conftest import Train


def test_no_tracker_writes_anything_by_default(train: Train, tmp_path: Path) -> None:
    assert not list(train(tmp_path / "run").rglob("events.out.*"))


def test_tensorboard_gets_the_records(train: Train, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    run = train(tmp_path / "run", "callback.tracker.use=[tensorboard]")
    (events,) = [p for p in run.rglob("events.out.*") if p.parent.name == "llmtrain"]
    assert b"validation_loss" in events.read_bytes()
    assert json.loads((run / "run.json").read_text())["status"] == "finished"


def test_an_unknown_tracker_is_refused(train: Train, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such tracker"):
        train(tmp_path / "run", "callback.tracker.use=[tensorbored]")


def test_a_tracker_that_is_not_installed_is_named(train: Train, tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="not installed"):
        train(tmp_path / "run", "callback.tracker.use=[dvclive]")
