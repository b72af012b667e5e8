"""Constant: warm-up, then always the same."""

from __future__ import annotations

import pytest

from llmtrain.config import build
from llmtrain.schedule.base import Progress, Schedule


def constant(**settings: object) -> Schedule:
    return build({"kind": "constant", "warmup_steps": 0, "warmup_tokens": None, **settings}, Schedule, "schedule")


def test_the_factor_is_one_from_the_first_update_without_warmup() -> None:
    assert [constant().factor(Progress(s, s, 10, 10)) for s in (0, 5, 9)] == [1, 1, 1]


def test_warmup_rises_linearly_from_above_zero_to_one() -> None:
    factors = [constant(warmup_steps=4).factor(Progress(s, 0, 10, 10)) for s in range(6)]
    assert factors == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1])


def test_warmup_below_one_is_a_share_of_the_run() -> None:
    assert constant(warmup_steps=0.4).factor(Progress(1, 0, 10, 10)) == constant(warmup_steps=4).factor(Progress(1, 0, 10, 10))


def test_warmup_counted_in_tokens_does_not_look_at_steps() -> None:
    schedule = constant(warmup_tokens=1000)
    assert schedule.factor(Progress(9, 400, 10, 10_000)) == pytest.approx(schedule.factor(Progress(1, 400, 10, 10_000)))
    assert schedule.factor(Progress(0, 1000, 10, 10_000)) == 1
