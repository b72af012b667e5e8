"""The page that people share: one HTML file with everything in it.

    html(study)  →  text of report.html

It works from a disk without a network: no script, no font, no picture, no link outside. Its Content-Security-Policy
forbids all of these, so that a text of data that got through as markup could still do nothing; and none gets through:
whatever stands in a study is escaped where it is put in. Equal studies give equal bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from llmtrain.errors import printable
from llmtrain.report import plots, summary
from llmtrain.report.study import Row, Study

TEMPLATE = Path(__file__).with_name("page.html.j2")
MARK = '<meta name="generator" content="llmtrain report">'  # what the page is known by when it is written again
TITLES = {
    "parameters": "Against trained parameters",
    "seconds": "Against time",
    "memory": "Against peak memory",
    "curves": "While training",
    "blocks": "What moved",
}
SCALES = (1.0, 1.5)  # CSS pixels a point: a picture that would be smaller scrolls in its box, and none grows beyond


def html(study: Study) -> str:
    """The whole page."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=_shown, keep_trailing_newline=True)
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(**_content(study))


def _shown(found: Any) -> Any:
    """What stands in the page for a value: control and direction characters are spelled out."""
    from markupsafe import Markup

    return found if isinstance(found, Markup) else printable(str(found))


def _lines(text: str) -> Any:
    """A command of several lines, each escaped."""
    from markupsafe import Markup, escape

    return Markup("\n").join(escape(printable(line)) for line in text.split("\n"))


def _content(study: Study) -> dict[str, Any]:
    """What the template asks for."""
    with_result = [row for row in study.rows if summary.has_result(row)]
    without = [row for row in study.rows if not summary.has_result(row)]
    return {
        "study": study,
        "aim": summary.aim(study),
        "metric": summary.words(study.metric),
        "comparing": len(study.rows) > 1,
        "reading": {"table": study.sentences.get("table", ())},
        "rows": [_row(study, row) for row in with_result],
        "lost": [asdict(summary.cells(study, row)) for row in without],
        "has": {
            "validation": any(row.validation is not None for row in with_result),
            "test": any(row.test is not None for row in with_result),
            "difference": any(row.difference is not None for row in with_result),
        },
        "how": _how(with_result),
        "pictures": _pictures(study),
        "baselines": {summary.words(name): summary.value(level) for name, level in study.baselines.items()},
        "totals": summary.totals(study),
        "unfinished": summary.unfinished(study),
        "warned": summary.warned(study),
        "commands": [(row.label, summary.commands(row)) for row in study.rows],
        "same": {key: summary.setting(found) for key, found in study.same.items()},
        "lines": _lines,
    }


def _how(rows: list[Row]) -> list[str]:
    """What the intervals are made from; where not all are made alike, with the rows."""
    found: dict[str, list[str]] = {}
    for row in rows:
        if row.difference is not None and row.difference.how:
            found.setdefault(row.difference.how, []).append(row.label)
    return list(found) if len(found) == 1 else [f"{', '.join(labels)}: {how}" for how, labels in found.items()]


def _row(study: Study, row: Row) -> Mapping[str, Any]:
    """A row's cells; numbers with what stands small below them."""
    found = asdict(summary.cells(study, row))
    found["chosen"] = row.chosen
    for name, estimate in (("validation", row.validation), ("test", row.test)):
        found[name] = (summary.estimate(estimate, runs=False), "" if estimate is None else f"n = {estimate.number}")
    mean, _, interval = found["difference"].partition(" ")
    found["difference"] = (mean, interval)
    return found


def _pictures(study: Study) -> list[Mapping[str, Any]]:
    """The pictures with the sentences below them; sentences without a picture stand under a title of their own."""
    from markupsafe import Markup

    drawn = {picture.name: picture for picture in plots.pictures(study)}
    found: list[Mapping[str, Any]] = []
    for name in dict.fromkeys([*drawn, *TITLES]):
        picture = drawn.get(name)
        sentences = study.sentences.get(name, ())
        if picture is None:
            found.append({"name": name, "title": TITLES[name], "svg": "", "caption": "", "sentences": sentences})
            continue
        smallest, largest = (round(scale * picture.width) for scale in SCALES)
        sized = replace(picture, svg=picture.svg.replace("<svg ", f'<svg style="min-width: {smallest}px; max-width: {largest}px" ', 1))
        found.append({**asdict(sized), "svg": Markup(sized.svg), "sentences": sentences})  # every text in it was escaped when it was drawn
    order = [*(name for name in drawn if name not in TITLES), *TITLES]
    return sorted(found, key=lambda one: order.index(one["name"]))
