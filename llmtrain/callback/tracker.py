"""Experiment trackers by name, through Accelerate: tensorboard, wandb, mlflow, trackio, …

Keys and addresses come from each tracker's own environment variables and appear in no file of the run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmtrain.callback.base import Callback, Run, Step
from llmtrain.config import flat
from llmtrain.errors import ConfigError, DeviceError

if TYPE_CHECKING:
    from llmtrain.state import RunState


@dataclass(kw_only=True)
class Tracker(Callback):
    """Send records to trackers.

    Attributes:
        use: names as Accelerate knows them; empty: none.
        project: the project's name there.
    """

    use: list[str]
    project: str

    def __post_init__(self) -> None:
        self._trackers: list[Any] = []

    def on_start(self, run: Run, state: RunState) -> None:
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

        available = {str(t) for t in get_available_trackers()}
        # What every tracker takes.
        settings = {k: v if isinstance(v, (int, float, str, bool)) else str(v) for k, v in flat(run.config).items()}
        for name in self.use:
            if name not in LOGGER_TYPE_TO_CLASS:
                raise ConfigError(f"callback.tracker.use={name}: no such tracker", allowed=", ".join(sorted(LOGGER_TYPE_TO_CLASS)))
            if name not in available:
                raise DeviceError(f"callback.tracker.use={name}: its package is not installed", fix=f"pip install {name}")
            if run.runtime.main:
                cls = LOGGER_TYPE_TO_CLASS[name]
                where = {"logging_dir": str(run.folder)} if cls.requires_logging_directory else {}
                tracker = cls(self.project, **where)
                tracker.start()
                tracker.store_init_configuration(settings)
                self._trackers.append(tracker)

    def on_step(self, run: Run, state: RunState, step: Step) -> None:
        if step.record is not None:
            self._log(step.record, state.step)

    def on_evaluate(self, run: Run, state: RunState, metrics: dict[str, float]) -> None:
        self._log({f"validation_{k}": v for k, v in metrics.items()}, state.step)

    def on_end(self, run: Run, state: RunState) -> None:
        for tracker in self._trackers:
            tracker.finish()

    def _log(self, values: dict[str, Any], step: int) -> None:
        for tracker in self._trackers:
            tracker.log({k: v for k, v in values.items() if k != "step"}, step=step)
