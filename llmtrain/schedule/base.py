"""How the learning rate moves: a factor on `optimizer.lr`, as a function of progress.

A function, not an object that is stepped: what is resumed needs no state, and the number of processes cannot advance
it twice.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from llmtrain.errors import require


@dataclass(frozen=True)
class Progress:
    """What is done before an update, and what there is to do.

    Attributes:
        step, tokens: updates and input tokens done.
        total_steps, total_tokens: of the whole run.
    """

    step: int
    tokens: int
    total_steps: int
    total_tokens: int


@dataclass(frozen=True, kw_only=True)
class Schedule(ABC):
    """Warm-up, then what the kind does.

    Attributes:
        warmup_steps: updates over which the factor rises linearly to 1; a number below 1 is a share of the run.
        warmup_tokens: the same counted in input tokens; replaces warmup_steps. null: count updates.
    """

    warmup_steps: float
    warmup_tokens: int | None

    def __post_init__(self) -> None:
        whole = self.warmup_steps < 1 or float(self.warmup_steps).is_integer()
        require(self.warmup_steps >= 0 and whole, "warmup_steps", self.warmup_steps, "a whole number of updates, or a share of the run from 0 to below 1")
        require(self.warmup_tokens is None or self.warmup_tokens >= 1, "warmup_tokens", self.warmup_tokens, "1 or more, or null")

    @abstractmethod
    def decay(self, done: float, horizon: float, warmup: float) -> float:
        """The factor when `done` of `horizon` units (updates or tokens) have passed since `warmup` ended."""

    def factor(self, at: Progress) -> float:
        """The factor for the update that follows `at`: above 0 at the first, 1 at the end of warm-up."""
        if self.counts_tokens:
            done, total, warmup = float(at.tokens), float(self.horizon_tokens or at.total_tokens), self._warmup(at.total_tokens)
            unit = at.total_tokens / max(at.total_steps, 1)
        else:
            done, total, warmup, unit = float(at.step), float(at.total_steps), self._warmup(at.total_steps), 1.0
        if done < warmup:
            return min(1.0, (done + unit) / warmup)
        span = max(total - warmup, unit)
        return self.decay(min(done - warmup, span), span, max(warmup, unit))

    @property
    def horizon_tokens(self) -> int | None:
        """Where the decay ends, in tokens; None: at the end of the run."""
        return None

    @property
    def counts_tokens(self) -> bool:
        return self.warmup_tokens is not None or self.horizon_tokens is not None

    def _warmup(self, total: int) -> float:
        if self.warmup_tokens is not None:
            return float(self.warmup_tokens)
        if self.warmup_steps < 1:
            return float(round(self.warmup_steps * total))
        return self.warmup_steps

    def without_effect(self) -> dict[str, str]:
        """Settings that change nothing under the others: name → why."""
        return {"warmup_steps": "warmup_tokens is given"} if self.warmup_tokens is not None else {}


@dataclass(frozen=True, kw_only=True)
class Decaying(Schedule):
    """A schedule that comes down to a floor.

    Attributes:
        final_fraction: the factor at the end, as a share of the peak.
        decay_tokens: input tokens after which the floor is reached; null: at the end of the run.
    """

    final_fraction: float
    decay_tokens: int | None

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.final_fraction <= 1, "final_fraction", self.final_fraction, "0 to 1")
        require(self.decay_tokens is None or self.decay_tokens >= 1, "decay_tokens", self.decay_tokens, "1 or more, or null")
        counted = self.decay_tokens is None or self.warmup_tokens is not None or self.warmup_steps < 1
        require(counted, "warmup_steps", self.warmup_steps, "a share below 1, or warmup_tokens, beside decay_tokens")

    @property
    def horizon_tokens(self) -> int | None:
        return self.decay_tokens
