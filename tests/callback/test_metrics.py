"""metrics.jsonl holds each step once, also after a kill and a resume."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from llmtrain.callback.base import Callback, Step
from llmtrain.config import build
from llmtrain.state import RunState


def watching(folder: Path) -> tuple[Callback, Any]:
    run = SimpleNamespace(runtime=SimpleNamespace(main=True), folder=folder)
    return build({"kind": "metrics", "file": "metrics.jsonl"}, Callback, "callback.metrics"), run


def test_records_after_the_step_resumed_from_and_half_lines_are_forgotten(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 2}\n{"step": 4}\n{"step": 6}\n{"step": 8, "lo')
    callback, run = watching(tmp_path)
    callback.on_start(run, RunState(step=4))
    callback.on_step(run, RunState(step=6), Step({}, 0.1, 1.0, 1, record={"step": 6, "again": True}))
    assert [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [{"step": 2}, {"step": 4}, {"step": 6, "again": True}]


def test_a_step_without_a_record_writes_nothing(tmp_path: Path) -> None:
    callback, run = watching(tmp_path)
    callback.on_start(run, RunState())
    callback.on_step(run, RunState(step=1), Step({}, 0.1, 1.0, 1))
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_a_process_that_is_not_the_main_one_writes_nothing(tmp_path: Path) -> None:
    callback, run = watching(tmp_path)
    run.runtime.main = False
    callback.on_start(run, RunState())
    callback.on_evaluate(run, RunState(step=1), {"loss": 1.0})
    assert not (tmp_path / "metrics.jsonl").exists()
