"""metrics.jsonl: one record a line, units in the keys."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmtrain import files, runtime
from llmtrain.callback.base import Callback, Run, Step
from llmtrain.errors import require

if TYPE_CHECKING:
    from llmtrain.state import RunState


@dataclass(kw_only=True)
class Metrics(Callback):
    """Write what every logging interval and every evaluation gave.

    Attributes:
        file: name of the file in the run's folder.
    """

    file: str

    def __post_init__(self) -> None:
        ok = runtime.NAME.fullmatch(self.file) is not None and self.file.endswith(".jsonl") and self.file != "predictions.jsonl"
        require(ok, "file", self.file, "a name of a file that ends in .jsonl: letters, digits, '.', '_' or '-'")

    def on_start(self, run: Run, state: RunState) -> None:
        """Forget the records after the step resumed from: they will be written again."""
        if run.runtime.main:
            path = run.folder / self.file
            kept = [line for line in _lines(path) if _step(line) <= state.step] if state.step else []
            files.replace(path, "".join(kept).encode())

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
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True) if path.is_file() else []
    return [line for line in lines if line.endswith("\n")]


def _step(line: str) -> float:
    """The step of a record; of a line that is none, beyond all steps."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, LookupError, TypeError, OverflowError, RecursionError):
        return math.inf
