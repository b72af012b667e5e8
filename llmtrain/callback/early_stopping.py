"""Stop when the best metric has not improved for a while.

Prechelt 1998, "Early Stopping — But When?". Its memory is in RunState, so a resumed run stops where the unbroken one
would have.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmtrain.callback.base import Callback, Run
from llmtrain.errors import require

if TYPE_CHECKING:
    from llmtrain.state import RunState


@dataclass(kw_only=True)
class EarlyStopping(Callback):
    """Set `state.stop` after `patience` evaluations in a row without a new best; null: never.

    Attributes:
        patience: evaluations.
    """

    patience: int | None

    def __post_init__(self) -> None:
        require(self.patience is None or self.patience >= 1, "patience", self.patience, "1 evaluation or more, or null")

    def on_evaluate(self, run: Run, state: RunState, metrics: dict[str, float]) -> None:
        if self.patience is not None and state.since_best >= self.patience:
            state.stop = f"early stopping: {run.best_metric} has not improved for {state.since_best} evaluations"
