"""Inverse square root: the shape of Vaswani et al. 2017, section 5.3."""

from __future__ import annotations

import pytest

from llmtrain.config import build
from llmtrain.schedule.base import Progress, Schedule


def test_it_is_the_papers_formula_up_to_its_peak() -> None:
    warmup = 4000
    schedule = build({"kind": "inverse_sqrt", "warmup_steps": warmup, "warmup_tokens": None}, Schedule, "schedule")

    def paper(step: int) -> float:
        return min(step**-0.5, step * warmup**-1.5) * warmup**0.5

    for done in (0, 100, 3999, 4000, 16_000, 99_999):
        assert schedule.factor(Progress(done, 0, 100_000, 1)) == pytest.approx(paper(done + 1), rel=2e-4)
