"""Warm-up, then half a cosine down: the schedule of GPT-1 to 3 (Loshchilov & Hutter 2016, arXiv 1608.03983, eq. 5)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from llmtrain.schedule.base import Decaying


@dataclass(frozen=True, kw_only=True)
class Cosine(Decaying):
    """The factor falls along half a cosine from 1 to final_fraction."""

    def decay(self, done: float, horizon: float, warmup: float) -> float:
        return self.final_fraction + (1 - self.final_fraction) * 0.5 * (1 + math.cos(math.pi * done / horizon))
