"""Who watches a run. Callbacks look; the one thing that they may change is `state.stop`.

on_start
repeat
    one update                                   (counts → micro-batches → clip → step)
    on_step                 every update
    on_evaluate             every evaluation.every_steps
    on_save                 every checkpoint.every_steps
until the budget is used up, or state.stop is set
on_end
"""

from __future__ import annotations

from abc import ABC
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llmtrain.runtime import Runtime
    from llmtrain.state import RunState


@dataclass(frozen=True)
class Run:
    """What a callback may know about the run that it watches.

    Attributes:
        runtime: device, processes, console.
        folder: the run's folder.
        total_steps: updates of the whole run.
        evaluations: how many evaluations it will have.
        log_every_steps: updates between two records.
        best_metric, higher_is_better: what `best` is decided by.
        config: the resolved config.
    """

    runtime: Runtime
    folder: Path
    total_steps: int
    evaluations: int
    log_every_steps: int
    best_metric: str
    higher_is_better: bool
    config: dict[str, Any]


@dataclass(frozen=True)
class Step:
    """What one update did.

    Attributes:
        losses: mean over the targets of each term, over all processes.
        lr: the peak times the schedule's factor.
        grad_norm: of the whole gradient, before clipping.
        tokens: input tokens, over all processes.
        seconds: of the update, waiting for data included.
        record: a line of metrics.jsonl, every log_every_steps.
    """

    losses: dict[str, float]
    lr: float
    grad_norm: float
    tokens: int
    seconds: float = 0.0
    record: dict[str, Any] | None = None

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0


@dataclass(kw_only=True)
class Callback(ABC):
    """An observer: override what is of interest. Every process has its own; only the main one should write."""

    def on_start(self, run: Run, state: RunState) -> None: ...

    def on_step(self, run: Run, state: RunState, step: Step) -> None: ...

    def on_evaluate(self, run: Run, state: RunState, metrics: dict[str, float]) -> None: ...

    def on_save(self, run: Run, state: RunState, path: Path) -> None: ...

    def on_end(self, run: Run, state: RunState) -> None: ...
