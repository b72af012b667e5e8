"""The report as a table for other programs: a line for every run, with all numbers as they are.

    csv(study)  →  text of results.csv

Numbers are not rounded, so that means, spreads and intervals can be computed again. A cell of text that a spreadsheet
would take for a formula gets an apostrophe before it: those that begin with =, +, -, @, a tab or a carriage return
(OWASP, "CSV Injection"; and the wide forms of the four signs). A plain number keeps its sign. All text is quoted, so
that no other separator can split it; control characters are spelled out, so that a run is always one line.
"""

from __future__ import annotations

import csv as writer
import io
import math
import re
from collections.abc import Mapping
from typing import Any

from llmtrain.errors import printable
from llmtrain.report.study import Row, Run, Study
from llmtrain.report.summary import setting

FIRST = ("row", "status", "reason", "seed")  # what a results.csv of ours begins with
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?(inf|nan)")


def csv(study: Study) -> str:
    """A header, and a line for every run, in the order of the rows."""
    lines = [_line(study, row, run) for row in study.rows for run in row.runs]
    names = _columns(study)
    out = io.StringIO()
    table = writer.writer(out, quoting=writer.QUOTE_NONNUMERIC, lineterminator="\n")
    table.writerow([cell(name) for name in names])
    for line in lines:
        table.writerow([cell(line.get(name)) for name in names])
    return out.getvalue()


def cell(found: Any) -> Any:
    """A value as a spreadsheet may see it."""
    if isinstance(found, bool) or found is None:
        return "" if found is None else setting(found)
    if isinstance(found, int | float):
        return "" if isinstance(found, float) and math.isnan(found) else found
    text = str(found)
    guarded = text.startswith(FORMULA) and not NUMBER.fullmatch(text)
    return ("'" if guarded else "") + printable(text)


def _columns(study: Study) -> list[str]:
    runs = [run for row in study.rows for run in row.runs]
    metrics = [f"{split}_{name}" for split in ("validation", "test") for name in dict.fromkeys(name for run in runs for name in getattr(run, split))]
    costs = ["parameters", "trainable", "wall_seconds", "train_seconds", "peak_memory_mb", "disk_mb"]
    return list(dict.fromkeys([*FIRST, *study.differs, *metrics, *costs, "chosen", "reference", "run", "command"]))


def _line(study: Study, row: Row, run: Run) -> Mapping[str, Any]:
    """Column → value. A metric that is not a number is the word nan, a cost that nobody knows is empty."""
    metrics = {f"{split}_{name}": _metric(number) for split in ("validation", "test") for name, number in getattr(run, split).items()}
    costs = {name: getattr(run, name) for name in ("parameters", "trainable", "wall_seconds", "train_seconds", "peak_memory_mb", "disk_mb")}
    return {
        **{key: _typed(row.differs[key]) for key in study.differs if key in row.differs},
        **metrics,
        **costs,
        "row": row.label,
        "status": run.status,
        "reason": run.reason,
        "seed": run.seed,
        "chosen": row.chosen,
        "reference": row.reference,
        "run": run.name,
        "command": run.command,
    }


def _metric(number: float) -> Any:
    return number if math.isfinite(number) else str(number)


def _typed(found: Any) -> Any:
    """A setting: numbers stay numbers, all else is what one types."""
    return found if isinstance(found, int | float) and not isinstance(found, bool) and math.isfinite(found) else setting(found)
