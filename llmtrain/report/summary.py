"""A study in words: its numbers as people read them, and the table that a terminal shows.

    cells(study, row)     →  Cells(label="last 2 blocks", test="0.846 ± 0.004 (n=3)", difference="−0.015 [−0.031, +0.001]", …)
    table(study)          →  a rich Table that fits into 80 columns
    show(console, study)  →  the table, what it says, and what a reader must know

The page and the Markdown take their numbers from here too, so that all of them say the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmtrain.errors import printable
from llmtrain.report.study import Difference, Estimate, Row, Run, Study

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

NOTHING = "–"
COSTS = {"parameters": "parameters", "seconds": "time", "memory": "memory"}  # what fronts are of, and a word for it


# --- numbers ------------------------------------------------------------------------------------------------------


def value(number: float) -> str:
    """A metric's value: three decimals below 10, fewer above; nan and inf are shown as they are."""
    if not math.isfinite(number):
        return str(number).replace("-", "−")
    size = abs(number)
    if 0 < size < 0.0005:
        return ("−" if number < 0 else "") + f"{size:.1g}"
    decimals = 3 if size < 10 else 2 if size < 100 else 1 if size < 1000 else 0
    return f"{number:,.{decimals}f}".replace("-", "−")


def signed(number: float) -> str:
    """A difference, with its sign."""
    return ("+" if number > 0 else "") + value(number)


def estimate(found: Estimate | None, runs: bool = True) -> str:
    """Mean ± sd, and of how many runs."""
    if found is None:
        return NOTHING
    spread = f" ± {value(found.sd)}" if math.isfinite(found.sd) else ""
    return value(found.mean) + spread + (f" (n={found.number})" if runs else "")


def interval(found: Difference | None) -> str:
    """A difference with its 95 % interval, where there is one."""
    if found is None:
        return NOTHING
    known = math.isfinite(found.low) and math.isfinite(found.high)
    return signed(found.mean) + (f" [{signed(found.low)}, {signed(found.high)}]" if known else "")


def verdict(found: Difference | None) -> str:
    """What the interval says; without one nothing is said."""
    if found is None:
        return ""
    if not (math.isfinite(found.low) and math.isfinite(found.high)):
        return "no interval"
    return "inside the noise" if found.noise else "clear"


def duration(seconds: float) -> str:
    """3.2 s, 42 s, 12 min 05 s, 1 h 03 min, 2 d 04 h."""
    if not math.isfinite(seconds):
        return NOTHING
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    minutes = round(seconds / 60)
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60:02} min"
    hours = round(seconds / 3600)
    return f"{hours // 24} d {hours % 24:02} h"


def megabytes(size: float) -> str:
    """3.2 MB, 812 MB, 123 GB."""
    if not math.isfinite(size):
        return NOTHING
    return f"{size / 1024:,.0f} GB" if size >= 100_000 else f"{size:,.0f} MB" if size >= 9.95 else f"{size:.1f} MB"


def share(part: int, whole: int) -> str:
    """Per cent; what is there but rounds to nothing, or to everything, is not called so."""
    if not whole:
        return NOTHING
    if 0 < part / whole < 0.0005:
        return "< 0.1 %"
    if 0.9995 <= part / whole < 1:
        return "> 99.9 %"
    return f"{100 * part / whole:.0f} %" if part in (0, whole) else f"{100 * part / whole:.1f} %"


def words(name: str) -> str:
    """`macro_f1` as it is read."""
    return name.replace("_", " ")


def setting(found: Any) -> str:
    """A setting's value as one types it."""
    if found is None or isinstance(found, bool):
        return {None: "null", True: "true", False: "false"}[found]
    return f"{found:g}" if isinstance(found, float) else str(found)


def short(text: str, limit: int) -> str:
    """At most `limit` characters, none of which could drive a terminal."""
    text = printable(text)
    return text if len(text) <= limit else text[: limit - 1] + "…"


# --- rows ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Cells:
    """A row as text.

    Attributes:
        settings: those that differ, key as short as it can be → value as typed.
        marks: chosen, reference, and the pictures on whose front the row stands.
        outcome: what became of the runs; empty where all of them finished.
    """

    label: str
    settings: Mapping[str, str]
    marks: tuple[str, ...]
    validation: str
    test: str
    difference: str
    verdict: str
    trainable: str
    share: str
    seconds: str
    memory: str
    disk: str
    outcome: str


def cells(study: Study, row: Row) -> Cells:
    marks = [name for name, marked in (("chosen", row.chosen), ("reference", row.reference)) if marked]
    fronts = [word for name, word in COSTS.items() if on_front(row, name)]
    return Cells(
        label=row.label,
        settings={typed: setting(row.differs[key]) for key, typed in short_keys(study.differs).items() if key in row.differs},
        marks=(*marks, *([f"front: {'all' if len(fronts) == len(COSTS) else ', '.join(fronts)}"] if fronts and compares(study) else [])),
        validation=estimate(row.validation),
        test=estimate(row.test),
        difference=NOTHING if row.reference else interval(row.difference),
        verdict="" if row.reference else verdict(row.difference),
        trainable=f"{row.trainable:,}",
        share=share(row.trainable, row.parameters),
        seconds=duration(row.seconds),
        memory=megabytes(row.memory_mb),
        disk=megabytes(row.disk_mb),
        outcome=outcome(row),
    )


def short_keys(keys: Iterable[str]) -> dict[str, str]:
    """Each key with the last words of it that no other key ends with; `finetune.kind` is `finetune`, as one types it."""
    typed = {key: key.removesuffix(".kind") for key in keys}
    found = {}
    for key, name in typed.items():
        parts = name.split(".")
        ends = [".".join(parts[-number:]) for number in range(1, len(parts) + 1)]
        others = [other for one, other in typed.items() if one != key]
        found[key] = next((end for end in ends if not any(f".{other}".endswith(f".{end}") for other in others)), name)
    return found


def on_front(row: Row, cost: str) -> bool:
    """Whether no other row is better at no more of `cost` (a key of COSTS)."""
    return cost in row.front


def has_result(row: Row) -> bool:
    return row.validation is not None or row.test is not None


def compared(study: Study, row: Row) -> Estimate | None:
    """The metric where rows are compared."""
    return row.test if study.compared_on == "test" else row.validation


def outcome(row: Row) -> str:
    """What became of a row's runs, with the first reason; empty where all of them finished."""
    others = [run for run in row.runs if run.status != "finished"]
    if not others:
        return ""
    statuses = ", ".join(dict.fromkeys(run.status for run in others))
    reason = next((run.reason for run in others if run.reason), "")
    head = f"{len(row.finished)} of {len(row.runs)} finished, {statuses}" if row.finished else statuses
    return f"{head}: {reason}" if reason else head


def unfinished(study: Study) -> list[tuple[Row, Run]]:
    """Every run that did not finish, with its row."""
    return [(row, run) for row in study.rows for run in row.runs if run.status != "finished"]


def compares(study: Study) -> bool:
    """Whether there is anything to compare: a single row has no reference and no front."""
    return sum(map(has_result, study.rows)) > 1


def aim(study: Study) -> str:
    """The metric, and which way is up."""
    return f"{words(study.metric)} ({'higher' if study.higher else 'lower'} is better)"


def totals(study: Study) -> dict[str, str]:
    """What all runs together cost, also those that failed."""
    runs = [run for row in study.rows for run in row.runs]

    def known(values: list[float]) -> list[float]:
        return [number for number in values if math.isfinite(number)]

    finished = sum(run.status == "finished" for run in runs)
    walls, trained = known([run.wall_seconds for run in runs]), known([run.train_seconds for run in runs])
    disks, peaks = known([run.disk_mb for run in runs]), known([run.peak_memory_mb for run in runs])
    return {
        "runs": f"{len(runs):,}, of which {finished:,} finished",
        "time of all runs": duration(sum(walls)) if walls else NOTHING,
        "of which training": duration(sum(trained)) if trained else NOTHING,
        "largest peak memory": megabytes(max(peaks)) if peaks else NOTHING,
        "disk": megabytes(sum(disks)) if disks else NOTHING,
    }


def warned(study: Study) -> dict[str, list[str]]:
    """Each warning of the runs with the rows that gave it, in the order of the rows."""
    found: dict[str, list[str]] = {}
    for row in study.rows:
        for text in dict.fromkeys(text for run in row.runs for text in run.warnings):
            found.setdefault(text, []).append(row.label)
    return found


def commands(row: Row) -> list[str]:
    """What repeats a row, one command for each of its runs."""
    return list(dict.fromkeys(run.command for run in row.runs if run.command))


# --- the terminal -------------------------------------------------------------------------------------------------


def table(study: Study, width: int = 80) -> Table:
    """The rows that have a result, the most important columns first; more of them where the terminal is wider."""
    from rich.table import Table
    from rich.text import Text

    shown = [row for row in study.rows if has_result(row)]
    columns = _columns(study, shown, width)
    grid = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    grid.add_column("", no_wrap=True, max_width=2)
    grid.add_column("row", no_wrap=True, overflow="ellipsis", ratio=None)
    for name in columns:
        grid.add_column(Text(name), justify="right", no_wrap=True)
    room = max(12, width - 4 - sum(2 + max(map(len, [name, *texts])) for name, texts in columns.items()))
    for number, row in enumerate(shown):
        mark = ("*" if row.chosen else "") + ("=" if row.reference else "")
        style = "bold" if row.chosen else None
        grid.add_row(Text(mark), Text(short(row.label, room)), *(Text(texts[number]) for texts in columns.values()), style=style)
    return grid


def _columns(study: Study, rows: list[Row], width: int) -> dict[str, list[str]]:
    """Header → cells, as many of them as fit beside a label, in the order of their importance."""
    found = [cells(study, row) for row in rows]
    other = "validation" if study.compared_on == "test" else "test"
    short_verdict = {"inside the noise": "noise", "clear": "clear", "no interval": "", "": ""}
    wanted: list[tuple[str, list[str]]] = [(study.compared_on, [estimate(compared(study, row), runs=False) for row in rows])]
    if any(row.difference is not None for row in rows):
        wanted += [("difference", [NOTHING if row.reference or row.difference is None else signed(row.difference.mean) for row in rows])]
        wanted += [("", [short_verdict[cell.verdict] for cell in found])]
    wanted += [("trained", [cell.share for cell in found]), ("time", [cell.seconds for cell in found])]
    wanted += [("memory", [cell.memory for cell in found])]
    if study.compared_on == "test":
        wanted += [(other, [estimate(row.validation, runs=False) for row in rows])]
    wanted += [("n", [str(len(row.finished)) for row in rows]), ("disk", [cell.disk for cell in found]), ("parameters", [cell.trainable for cell in found])]
    label = min(28, max([len(printable(row.label)) for row in rows], default=12))
    columns: dict[str, list[str]] = {}
    left = width - 4 - max(label, 12)
    for name, texts in wanted:
        needs = 2 + max(map(len, [name, *texts]))
        if needs > left:
            break
        columns[name] = texts
        left -= needs
    return columns


def show(console: Console, study: Study) -> None:
    """The table, rows without a result with their reason, what the numbers say, and what a reader must know."""
    from rich.text import Text

    def say(text: str, style: str = "") -> None:
        console.print(Text(printable(text), style=style))

    say(f"{study.title}: {aim(study)}", "bold")
    if any(map(has_result, study.rows)):
        console.print(table(study, console.width))
    for row in study.rows:
        if outcome(row):
            say(f"{row.label}: {outcome(row)}", "" if row.finished else "red")
    if compares(study):
        reference = next((row.label for row in study.rows if row.reference), None)
        legend = ["* chosen by validation"] if any(row.chosen for row in study.rows) else []
        legend += [f"= what the others are compared with on the {study.compared_on} split"] if reference is not None else []
        say(" · ".join(legend), "dim")
    for name, number in study.baselines.items():
        say(f"to compare: {words(name)} {value(number)}")
    for sentence in study.sentences.get("table", ()):
        say(sentence)
    for note in study.notes:
        say(f"note: {note}")
