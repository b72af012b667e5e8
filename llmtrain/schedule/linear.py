"""Warm-up, then a straight line down: the schedule of BERT (Devlin et al. 2018, appendix A.2)."""

from __future__ import annotations

from dataclasses import dataclass

from llmtrain.schedule.base import Decaying


@dataclass(frozen=True, kw_only=True)
class Linear(Decaying):
    """The factor falls linearly from 1 to final_fraction."""

    def decay(self, done: float, horizon: float, warmup: float) -> float:
        return 1 - (1 - self.final_fraction) * done / horizon
