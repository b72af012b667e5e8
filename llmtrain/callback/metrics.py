"""metrics.jsonl: one record a line, units in the keys."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmtrain.callback.base import Callback, Run, Step

if TYPE_CHECKING:
    from llmtrain.state import RunState


@dataclass(kw_only=True)
class Metrics(Callback):
    """Write what every logging interval and every evaluation gave.

    Attributes:
        file: name of the file in the run's folder.
    """

    file: str

    def on_start(self, run: Run, state: RunState) -> None:
        """Forget the records after the step resumed from: they will be written again."""
        if run.runtime.main:
            path = run.folder / self.file
            kept = [line for line in _lines(path) if json.loads(line)["step"] <= state.step] if state.step else []
            path.write_text("".join(kept))

    def on_step(self, run: Run, state: RunState, step: Step) -> None:
        if step.record is not None:
            self._write(run, step.record)

    def on_evaluate(self, run: Run, state: RunState, metrics: dict[str, float]) -> None:
        self._write(run, {"step": state.step, "tokens": state.tokens, **{f"validation_{k}": v for k, v in metrics.items()}})

    def _write(self, run: Run, record: dict[str, Any]) -> None:
        if run.runtime.main:
            with (run.folder / self.file).open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")


def _lines(path: Path) -> list[str]:
    """The whole lines of a file: a kill can leave half of one at the end."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []
    return [line for line in lines if line.endswith("\n")]
