"""Warm-up, then always the same."""

from __future__ import annotations

from dataclasses import dataclass

from llmtrain.schedule.base import Schedule


@dataclass(frozen=True, kw_only=True)
class Constant(Schedule):
    """The factor stays 1."""

    def decay(self, done: float, horizon: float, warmup: float) -> float:
        return 1.0
