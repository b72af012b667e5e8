"""The time left knows what updates and evaluations cost apart."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from llmtrain.callback import progress
from llmtrain.callback.base import Callback, Step
from llmtrain.callback.progress import counted, time_left
from llmtrain.config import build
from llmtrain.state import RunState


def watched(total: int, evaluations: int, console: Console | None = None) -> Any:
    return SimpleNamespace(total_steps=total, evaluations=evaluations, runtime=SimpleNamespace(main=True, console=console))


def test_time_left_is_steps_and_evaluations_at_their_own_pace() -> None:
    state = RunState(step=10, seconds=20.0, evaluations=1, evaluation_seconds=30.0)
    assert time_left(watched(30, 3), state, 0, (0.0, 0.0)) == "0:01:40"  # 20 steps of 2 s, 2 evaluations of 30 s


def test_time_left_does_not_jump_where_an_evaluation_pauses() -> None:
    before = RunState(step=10, seconds=20.0, evaluations=1, evaluation_seconds=30.0)
    after = RunState(step=10, seconds=20.0, evaluations=2, evaluation_seconds=60.0)
    assert time_left(watched(30, 3), before, 0, (0.0, 0.0)) == "0:01:40"
    assert time_left(watched(30, 3), after, 0, (0.0, 0.0)) == "0:01:10"


def test_a_resumed_run_uses_the_pace_of_this_session() -> None:
    state = RunState(step=12, seconds=1004.0)
    assert time_left(watched(20, 0), state, 10, (1000.0, 0.0)) == "0:00:16"


def test_without_a_terminal_it_prints_plain_lines() -> None:
    out = io.StringIO()
    run = watched(20, 0, Console(file=out, force_terminal=False, width=100))
    callback = build({"kind": "progress", "bar": True}, Callback, "callback.progress")
    callback.on_start(run, RunState())
    callback.on_step(run, RunState(step=10, seconds=1.0), Step({"next_token": 3.25}, 1e-3, 1.0, 100, seconds=0.1, record={"step": 10}))
    callback.on_end(run, RunState(step=10))
    assert out.getvalue() == "step 10/20  loss 3.250  lr 1.00e-03  1,000 tokens/s · 0:00:01 left\n"


@pytest.mark.parametrize(("every", "lines"), [(0.0, ["batches: 1/4 · 0:00:00 left", "batches: 4/4 · 0:00:00 left"]), (60.0, [])])
def test_without_a_terminal_a_long_pass_has_a_line_now_and_then_and_a_short_one_none(monkeypatch: pytest.MonkeyPatch, every: float, lines: list[str]) -> None:
    monkeypatch.setattr(progress, "LINES_S", every)
    out = io.StringIO()
    with counted(Console(file=out, force_terminal=False, width=100), "batches") as tell:
        tell(1, 4)
        tell(4, 4)
    assert out.getvalue().split("\n") == [*lines, ""]


def test_on_a_terminal_a_pass_has_a_bar() -> None:
    out = io.StringIO()
    with counted(Console(file=out, force_terminal=True, width=100), "batches") as tell:
        tell(1, 4)
    assert "1/4" in out.getvalue()
