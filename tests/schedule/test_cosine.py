"""Cosine: half a cosine from the peak to the floor, in steps or in tokens."""

from __future__ import annotations

import math

import pytest

from llmtrain.config import build
from llmtrain.schedule.base import Progress, Schedule


def cosine(**settings: object) -> Schedule:
    base = {"kind": "cosine", "warmup_steps": 0, "warmup_tokens": None, "final_fraction": 0.1, "decay_tokens": None}
    return build({**base, **settings}, Schedule, "schedule")


def test_the_factor_follows_the_cosine_and_ends_at_the_floor() -> None:
    factors = [cosine().factor(Progress(s, 0, 8, 8)) for s in (0, 4, 8)]
    assert factors == pytest.approx([1, 0.55, 0.1])
    assert cosine().factor(Progress(2, 0, 8, 8)) == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 4)))


def test_after_its_horizon_in_tokens_it_stays_at_the_floor() -> None:
    schedule = cosine(decay_tokens=100, warmup_tokens=10)
    assert [schedule.factor(Progress(0, t, 300, 300)) for t in (100, 200, 299)] == pytest.approx([0.1, 0.1, 0.1])


def test_the_schedule_of_gpt3_in_tokens() -> None:
    """Brown et al. 2020, appendix B: warm-up over 375 million tokens, cosine to 10 % at 260 of 300 billion."""
    schedule = cosine(warmup_tokens=375_000_000, decay_tokens=260_000_000_000)
    at = [schedule.factor(Progress(0, t, 600_000, 300_000_000_000)) for t in (187_500_000, 375_000_000, 130_187_500_000, 260_000_000_000)]
    assert at == pytest.approx([0.5, 1, 0.55, 0.1], rel=3e-3)
