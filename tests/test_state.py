"""RunState goes through JSON unchanged, but for a signal that is over."""

from __future__ import annotations

import json

import pytest

from llmtrain.state import SIGNAL, RunState


def test_it_comes_back_from_json_as_it_was() -> None:
    state = RunState(
        step=3, tokens=99, best=1.5, best_step=2, window={"next_token": [4.5, 3.0]}, skipped=2, skipped_in_a_row=1, losses=[0.1, 2 / 3], spike_step=2
    )
    assert RunState.from_json(json.loads(json.dumps(state.to_json()))) == state


@pytest.mark.parametrize(("stop", "kept"), [(SIGNAL, None), ("early stopping: …", "early stopping: …")])
def test_a_signal_is_over_after_a_resume_and_early_stopping_is_not(stop: str, kept: str | None) -> None:
    assert RunState.from_json(RunState(stop=stop).to_json()).stop == kept


def test_an_older_state_without_a_field_still_loads() -> None:
    assert RunState.from_json({"step": 5}).step == 5
