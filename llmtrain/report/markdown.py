"""The report as Markdown, for a repository or an issue.

    markdown(study)  →  text of report.md

Text of data is escaped for Markdown and for HTML: it makes no heading, no link, no row of a table and no element.
Commands stand in code fences that are longer than any row of backticks inside.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from llmtrain.errors import printable
from llmtrain.report import summary
from llmtrain.report.study import Row, Study

MARK = "<!-- llmtrain report -->"  # the first line, by which the file is known when it is written again
ESCAPES = {**{c: f"\\{c}" for c in "\\`*_[]#|~$"}, "&": "&amp;", "<": "&lt;", ">": "&gt;", "@": "&#64;"}
HEADINGS = {
    "parameters": "Against trained parameters",
    "seconds": "Against time",
    "memory": "Against peak memory",
    "curves": "While training",
    "blocks": "What moved",
}


def markdown(study: Study) -> str:
    """The whole report."""
    parts = [MARK, f"# {plain(study.title)}", _facts(study), *_paragraphs(study.sentences.get("table", ())), _table(study)]
    for name, heading in HEADINGS.items():
        if study.sentences.get(name):
            parts += [f"## {heading}", *_paragraphs(study.sentences[name])]
    if study.baselines:
        parts += [
            "## To compare",
            _list(f"{summary.words(name)}: {summary.words(study.metric)} {summary.value(level)}" for name, level in study.baselines.items()),
        ]
    parts += ["## What it cost", _list(f"{name}: {found}" for name, found in summary.totals(study).items())]
    lost = [f"{row.label}, seed {run.seed}: {run.status}" + (f": {run.reason}" if run.reason else "") for row, run in summary.unfinished(study)]
    parts += ["## Runs that did not finish", _list(lost)] if lost else []
    parts += ["## Notes", _list(study.notes)] if study.notes else []
    warned = [f"{text} ({', '.join(labels)})" for text, labels in summary.warned(study).items()]
    parts += ["## Warnings of the runs", _list(warned)] if warned else []
    parts += ["## How to repeat it", *_commands(study)]
    if study.same:
        parts += [
            f"## Settings{' that are the same in all rows' if len(study.rows) > 1 else ''}",
            _grid(["setting", "value"], [[key, summary.setting(found)] for key, found in study.same.items()]),
        ]
    versions = ", ".join(f"{name} {version}" for name, version in study.versions.items())
    parts += [f"Machine: {plain(study.machine)}"] if study.machine else []
    parts += [f"Versions: {plain(versions)}"] if versions else []
    return "\n\n".join(part for part in parts if part) + "\n"


def plain(text: str) -> str:
    """A text of data as nothing but text: what would start or end something in Markdown, HTML or GitHub is escaped."""
    spaced = printable(" ".join(str(text).split()))
    escaped = "".join(ESCAPES.get(c, c) for c in spaced).replace("://", "&#58;//")
    escaped = re.sub(r"(?i)\bwww\.", lambda found: f"{found[0][:-1]}&#46;", escaped)
    return re.sub(r"^(\d+)\.(?=\s|$)|^(?=[-+](?:\s|$)|--|==)", lambda found: f"{found[1]}\\." if found[1] else "\\", escaped)


def fence(text: str) -> str:
    """A block of code that its text cannot leave."""
    lines = [printable(line) for line in text.split("\n")]
    longest = max((len(found) for found in re.findall(r"`+", "\n".join(lines))), default=0)
    ticks = "`" * max(3, longest + 1)
    return "\n".join([ticks, *lines, ticks])


def _facts(study: Study) -> str:
    comparing = f"; rows are compared on the {study.compared_on} split" if len(study.rows) > 1 else ""
    return plain(f"llmtrain {study.verb}: {summary.aim(study)}{comparing}.")


def _paragraphs(sentences: Iterable[str]) -> list[str]:
    return [plain(sentence) for sentence in sentences]


def _list(items: Iterable[str]) -> str:
    return "\n".join(f"- {plain(item)}" for item in items)


def _grid(heads: list[str], rows: list[list[str]], numbers: int | None = None) -> str:
    """A table of GitHub's kind; columns from `numbers` on are set to the right."""
    lines = [heads, ["---:" if numbers is not None and i >= numbers else "---" for i in range(len(heads))]]
    cells = [[plain(cell) for cell in row] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in [[plain(head) for head in lines[0]], lines[1], *cells])


def _table(study: Study) -> str:
    """The rows with a result, then those without and why."""
    rows = [row for row in study.rows if summary.has_result(row)]
    settings, tested, differs = bool(study.differs), any(row.test for row in rows), any(row.difference for row in rows)
    metric = summary.words(study.metric)
    heads = ["row", *(["settings"] if settings else []), f"validation {metric}", *([f"test {metric}"] if tested else [])]
    left = 2 if settings else 1
    heads += [f"difference on {study.compared_on} [95 %]"] if differs else []
    heads += ["trained", "share", "time", "peak memory", "disk"]

    def line(row: Row) -> list[str]:
        cell = summary.cells(study, row)
        named = f"{cell.label} ({'; '.join(cell.marks)})" if cell.marks else cell.label
        found = [named, *([" ".join(f"{key}={value}" for key, value in cell.settings.items())] if settings else []), cell.validation]
        found += [cell.test] if tested else []
        found += [", ".join(text for text in (cell.difference, cell.verdict) if text)] if differs else []
        return [*found, cell.trainable, cell.share, cell.seconds, cell.memory, cell.disk]

    parts = [_grid(heads, [line(row) for row in rows], left)] if rows else []
    lost = [f"{row.label}: {summary.outcome(row) or 'no result'}" for row in study.rows if not summary.has_result(row)]
    return "\n\n".join([*parts, *(["Without a result:", _list(lost)] if lost else [])])


def _commands(study: Study) -> list[str]:
    parts = [fence(study.command)] if study.command else []
    for row in study.rows:
        commands = summary.commands(row)
        parts += [f"{plain(row.label)}:", fence("\n".join(commands))] if commands else []
    return parts
