"""Early stopping asks to stop after `patience` evaluations without a new best."""

from __future__ import annotations

from typing import Any, cast

import pytest

from llmtrain.callback.base import Callback, Run
from llmtrain.config import build
from llmtrain.errors import ConfigError
from llmtrain.state import RunState


def early(patience: int | None) -> Callback:
    return build({"kind": "early_stopping", "patience": patience}, Callback, "callback.early_stopping")


class Watched:
    best_metric = "loss"


@pytest.mark.parametrize(("since", "stops"), [(1, False), (2, True), (3, True)])
def test_it_stops_at_its_patience(since: int, stops: bool) -> None:
    state = RunState(since_best=since)
    early(2).on_evaluate(cast(Run, cast(Any, Watched())), state, {"loss": 1.0})
    assert bool(state.stop) is stops


def test_without_patience_it_never_stops() -> None:
    state = RunState(since_best=99)
    early(None).on_evaluate(cast(Run, cast(Any, Watched())), state, {"loss": 1.0})
    assert state.stop is None


def test_a_patience_of_zero_is_refused() -> None:
    with pytest.raises(ConfigError, match="patience"):
        early(0)
