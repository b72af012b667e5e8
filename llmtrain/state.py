"""RunState: the numbers that change while training, which is what a resume needs besides weights and optimizer."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

SIGNAL = "a signal"


@dataclass
class RunState:
    """Where a run stands. Saved as JSON with every checkpoint; the data position is `phase_step` alone.

    Attributes:
        step: updates done.
        micro_step: forward passes done by each process.
        tokens: input tokens done, over all processes.
        samples: sequences done, over all processes.
        phase: index of the stretch of training in which neither what moves nor the examples change.
        phase_step: updates done in it.
        seconds: spent in updates, over all sessions of the run (evaluation and saving not counted).
        evaluation_seconds: spent in evaluations.
        evaluations: how many there were.
        evaluated_step: the step of the last one.
        best: value of the best metric; None before the first evaluation.
        best_step: the step it was reached at.
        best_metric: by which it is the best.
        best_metrics: all metrics of that evaluation.
        metrics: those of the last evaluation.
        since_best: evaluations since then.
        window: sums and counts of each loss term since the last record in metrics.jsonl.
        skipped: updates that were left out because the loss or the gradient was not finite.
        skipped_in_a_row: those since the last update that was made.
        losses: the last finite ones, by which a sudden rise is known.
        spike_step: the step at which the last warning of one was given.
        stop: why the run should end at the next step boundary; None: it goes on. Callbacks may set it.
    """

    step: int = 0
    micro_step: int = 0
    tokens: int = 0
    samples: int = 0
    phase: int = 0
    phase_step: int = 0
    seconds: float = 0.0
    evaluation_seconds: float = 0.0
    evaluations: int = 0
    evaluated_step: int = 0
    best: float | None = None
    best_step: int | None = None
    best_metric: str | None = None
    best_metrics: dict[str, float] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    since_best: int = 0
    window: dict[str, list[float]] = field(default_factory=dict)
    skipped: int = 0
    skipped_in_a_row: int = 0
    losses: list[float] = field(default_factory=list)
    spike_step: int | None = None
    stop: str | None = None

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> RunState:
        """The state of a checkpoint. A signal that came then is not there now; any other stop still holds."""
        names = {f.name for f in dataclasses.fields(cls)}
        state = cls(**{k: v for k, v in content.items() if k in names})
        state.stop = None if state.stop == SIGNAL else state.stop
        return state
