"""Warm-up, then one over the root of the step: the schedule of the Transformer (Vaswani et al. 2017, section 5.3).

There the peak follows from the width; here it is `optimizer.lr`, and the shape is the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from llmtrain.schedule.base import Schedule


@dataclass(frozen=True, kw_only=True)
class InverseSqrt(Schedule):
    """The factor is √(warm-up / all that is done), which is 1 where warm-up ends and never reaches a floor."""

    def decay(self, done: float, horizon: float, warmup: float) -> float:
        return math.sqrt(warmup / (warmup + done))
