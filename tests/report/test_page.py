"""report.html: one file with everything in it, that runs nothing, fetches nothing and shows text of data as text."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser
from typing import Any

import pytest

from llmtrain.report import page, summary
from llmtrain.report.study import Estimate, Study
from tests.report import samples

ALL = [samples.freezing, samples.hostile, samples.pretraining, samples.single]
VOID = {"meta", "link", "img", "br", "hr", "input", "source", "base"}


class Page(HTMLParser):
    """The tags of a page with their attributes, its text, and its tables as lists of rows."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.headings: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.unmatched: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag in ("h1", "h2"):
            self.headings.append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.unmatched.append(tag)

    def handle_data(self, data: str) -> None:
        if "style" in self.open:
            return
        self.words.append(data)
        if any(tag in self.open for tag in ("td", "th")):
            self.tables[-1][-1][-1] += data
        if {"h1", "h2"} & set(self.open):
            self.headings[-1] += data

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def attributes(self, *names: str) -> list[str | None]:
        return [value for _, attrs in self.tags for name, value in attrs.items() if name in names]


@cache
def html(made: Callable[[], Study]) -> str:
    return page.html(made())


def parsed(made: Callable[[], Study]) -> Page:
    return Page(html(made))


def cells(made: Callable[[], Study], label: str) -> list[str]:
    """Those of the first row whose head begins with a label."""
    return next([" ".join(cell.split()) for cell in row] for row in parsed(made).tables[0] if row[0].strip().startswith(label))


def contrast(one: str, other: str, scheme: int) -> float:
    """Of two colours of the page (WCAG 2.2, "contrast ratio"), in the light (0), in the dark (1) or on paper (2)."""

    def luminance(name: str) -> float:
        value = re.findall(rf"--{name}: #([0-9a-f]{{6}});", html(samples.freezing))[scheme]
        parts = [int(value[i : i + 2], 16) / 255 for i in (0, 2, 4)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("made", ALL, ids=lambda f: f.__name__)
def test_made_twice_it_is_the_same_bytes(made: Callable[[], Study]) -> None:
    """I08."""
    assert page.html(made()) == html(made)


@pytest.mark.parametrize("made", ALL, ids=lambda f: f.__name__)
def test_every_element_is_closed_where_it_was_opened(made: Callable[[], Study]) -> None:
    found = parsed(made)
    assert (found.unmatched, found.open) == ([], [])


@pytest.mark.parametrize("made", ALL, ids=lambda f: f.__name__)
def test_nothing_is_run_fetched_or_linked_to(made: Callable[[], Study]) -> None:
    """H18: a policy that forbids it, and nothing that would have to be forbidden."""
    found = parsed(made)
    policy = next(attrs for tag, attrs in found.tags if tag == "meta" and attrs.get("http-equiv") == "Content-Security-Policy")
    assert policy["content"] == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    assert not {tag for tag, _ in found.tags} & {
        "script",
        "a",
        "img",
        "link",
        "iframe",
        "object",
        "embed",
        "form",
        "base",
        "audio",
        "video",
        "source",
        "foreignobject",
    }
    assert found.attributes("src", "srcset", "data", "action", "formaction", "background", "poster", "ping") == []
    assert all(str(target).startswith("#") for target in found.attributes("href", "xlink:href"))
    assert not any(name.startswith("on") for _, attrs in found.tags for name in attrs)
    assert not re.search(r"@import|url\((?!#)", html(made))


@pytest.mark.parametrize("text", samples.HOSTILE)
def test_text_of_data_is_shown_as_text(text: str) -> None:
    """H12: in labels, settings, reasons, warnings, notes and commands."""
    assert " ".join(text.split()) in parsed(samples.hostile).text
    assert parsed(samples.hostile).text.count(" ".join(text.split())) >= 3


def test_a_page_with_hostile_text_has_the_elements_of_one_without() -> None:
    """H12: text of data adds neither a tag nor an attribute."""
    known = {(tag, name) for made in (samples.freezing, samples.single) for tag, attrs in parsed(made).tags for name in ("", *attrs)}
    assert {(tag, name) for tag, attrs in parsed(samples.hostile).tags for name in ("", *attrs)} <= known
    assert "<script" not in html(samples.hostile)


def test_control_and_direction_characters_are_spelled_out() -> None:
    assert not set(html(samples.hostile)) & {"\x00", "\x07", "\x1b", "\u202e", "\ud800"}
    assert "\\x1b[2J\\x07\\u202egnp.exe\\x00\\ud800" in parsed(samples.hostile).text


def test_the_parts_stand_from_the_answer_down_to_how_it_is_repeated() -> None:
    assert parsed(samples.freezing).headings == [
        "freezing-distilbert",
        "The rows",
        "Accuracy against trained parameters",
        "Accuracy against time",
        "Accuracy against peak memory",
        "Validation accuracy while training",
        "To compare",
        "What moved",
        "What it cost",
        "Runs that did not finish",
        "Notes",
        "Warnings of the runs",
        "How to repeat it",
    ]


@pytest.mark.parametrize("part", ["table", "parameters", "seconds", "memory", "curves", "blocks"])
def test_every_sentence_is_there(part: str) -> None:
    assert all(sentence in parsed(samples.freezing).text for sentence in samples.freezing().sentences[part])


def test_a_sentence_without_its_picture_is_still_there() -> None:
    study = samples.freezing()
    unknown = replace(study, rows=tuple(replace(row, memory_mb=math.nan) for row in study.rows))
    found = Page(page.html(unknown))
    assert "Against peak memory" in found.headings
    assert study.sentences["memory"][0] in found.text


def test_a_row_says_its_numbers_as_people_read_them() -> None:
    label, validation, test, difference, trained, seconds, memory, disk = cells(samples.freezing, "last 2 blocks")
    assert "finetune=last_layers" in label
    assert "blocks=2" in label
    assert (validation, test) == ("0.852 ± 0.004n = 3", "0.847 ± 0.003n = 3")
    assert difference == "−0.015[−0.031, +0.001]inside the noise"
    assert (trained, seconds, memory, disk) == ("14,767,87422.1 %", "3 min 08 s", "1,290 MB", "71 MB")


def test_only_settings_that_differ_stand_in_the_rows_and_the_others_below() -> None:
    study = samples.freezing()
    table, _, rest = html(samples.freezing).partition("</table>")
    assert not any(f"{key}=" in table for key in study.same)
    assert all(f"<code>{key}</code>" in rest for key in study.same)


def test_the_chosen_row_and_the_reference_are_marked() -> None:
    marked = {name: [" ".join(c[0].split()) for c in parsed(samples.freezing).tables[0] if name in c[0]] for name in ("chosen", "reference")}
    assert [text.partition(name)[0].strip() for name, (text,) in marked.items()] == ["last 4 blocks", "full"]


def test_a_row_that_failed_stands_last_with_its_reason() -> None:
    last = parsed(samples.freezing).tables[0][-1]
    assert "last 6 blocks" in last[0]
    assert last[1] == "failed: loss is not finite at update 12 (nan)"


def test_metrics_that_are_no_numbers_are_shown_and_stand_where_the_study_puts_them() -> None:
    """I07."""
    found = parsed(samples.pretraining).tables[0]
    assert "lr 0.01" in found[-1][0]
    assert found[-1][1].startswith("inf")
    broken = samples.freezing()
    broken = replace(broken, rows=(*broken.rows[:1], replace(broken.rows[1], test=Estimate(math.nan, math.nan, 3)), *broken.rows[2:]))
    assert Page(page.html(broken)).tables[0][2][2].startswith("nan")


@pytest.mark.parametrize("made", [samples.pretraining, samples.single], ids=lambda f: f.__name__)
def test_where_there_is_no_test_split_or_nothing_to_compare_there_is_no_empty_column(made: Callable[[], Study]) -> None:
    head = [" ".join(cell.split()) for cell in parsed(made).tables[0][0]]
    assert ("test loss" in head, any(cell.startswith("difference") for cell in head)) == (False, made is samples.pretraining)


def test_a_single_run_is_a_page_about_that_run() -> None:
    found = parsed(samples.single)
    assert "The run" in found.headings
    assert not [heading for heading in found.headings if "against" in heading]
    assert "compared" not in found.text
    assert {"Validation accuracy while training", "What moved"} <= set(found.headings)


def test_every_command_can_be_copied() -> None:
    study = samples.freezing()
    shown = html(samples.freezing)
    assert all(f">{command}<" in shown or f"{command}\n" in shown or f"\n{command}<" in shown for command in [study.command, *summary.commands(study.rows[2])])


def test_a_command_of_several_lines_keeps_them() -> None:
    assert "\n```\n# &lt;script&gt;" in html(samples.hostile)


@pytest.mark.parametrize("colour", ["paper", "ink", "accent", "c0", "c7", "mark"])
def test_every_colour_has_a_value_in_the_light_in_the_dark_and_on_paper(colour: str) -> None:
    values = re.findall(rf"--{colour}: (#[0-9a-f]{{6}});", html(samples.freezing))
    assert len(values) == 3
    assert values[0] != values[1]


@pytest.mark.parametrize(
    ("text", "ground"),
    [("ink", "paper"), ("muted", "paper"), ("accent", "paper"), ("mark", "paper"), ("bad", "paper"), ("ink", "tint"), ("muted", "tint"), ("mark", "tint")],
)
@pytest.mark.parametrize("scheme", [0, 1, 2])
def test_text_stands_out_from_its_ground(text: str, ground: str, scheme: int) -> None:
    """A contrast of 4.5 or more (WCAG 2.2, 1.4.3), in the light, in the dark and on paper."""
    assert contrast(text, ground, scheme) >= 4.5


@pytest.mark.parametrize("scheme", [0, 1, 2])
@pytest.mark.parametrize("line", [*(f"c{i}" for i in range(8)), "accent", "mark"])
def test_lines_and_points_stand_out_from_their_ground(line: str, scheme: int) -> None:
    """A contrast of 3 or more (WCAG 2.2, 1.4.11)."""
    assert contrast(line, "paper", scheme) >= 3


def test_ids_are_unique_and_every_picture_has_a_name() -> None:
    found = parsed(samples.freezing)
    ids = found.attributes("id")
    assert len(ids) == len(set(ids))
    labels = [attrs["aria-labelledby"] for tag, attrs in found.tags if tag == "svg"]
    assert len(labels) == 5
    assert all(part in ids for label in labels for part in str(label).split())


def test_without_any_result_it_says_why() -> None:
    study: Any = replace(samples.freezing(), rows=(samples.failed("a"), samples.failed("b", "disk full")), sentences={})
    found = Page(page.html(study))
    assert "No run has a result" in found.headings
    assert "disk full" in found.text


def test_it_carries_the_mark_by_which_it_is_known() -> None:
    assert page.MARK in html(samples.freezing)[:1000]
