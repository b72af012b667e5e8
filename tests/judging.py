"""Before its first update a run evaluates some of its held-out rows, and writes down what that gave: `tests/test_processes.py` compares processes."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from llmtrain import trainer, worker

JUDGED = "judged.json"
SIZES = (1, 2, 3, 5, 9)  # with two processes and batches of two: no row for one of them, a short batch, a batch that only keeps in step
SPREAD = 16.0  # times the weights: a model that is sure of what it does not know, so that no two rows have similar losses; undone to the bit

real = trainer.Trainer._update


def update(self: trainer.Trainer, batches: Any) -> Any:
    if self.state.step == 0:
        judge(self)
    return real(self, batches)


def judge(self: trainer.Trainer) -> None:
    """The first rows together, for each of `SIZES`, and each of the most alone: sum of the losses and number of targets."""
    assert self.validation is not None
    asked = {f"first {n}": list(range(n)) for n in SIZES} | {f"row {i}": [i] for i in range(max(SIZES))}
    with torch.no_grad():
        for parameter in self.saved.parameters():
            parameter.mul_(SPREAD)
    found = {name: self.judge(self.validation.select(rows), None) for name, rows in asked.items()}
    with torch.no_grad():
        for parameter in self.saved.parameters():
            parameter.div_(SPREAD)
    if self.runtime.rank == 0:
        said = {name: [totals.sums["next_token"], totals.counts["next_token"]] for name, totals in found.items()}
        (self.folder / JUDGED).write_text(json.dumps(said))


if __name__ == "__main__":
    trainer.Trainer._update = update  # type: ignore[method-assign]
    sys.exit(worker.main(Path(sys.argv[1]), *sys.argv[2:]))
