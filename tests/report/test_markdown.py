"""report.md: a table and sentences that a repository shows as they are meant."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import pytest

from llmtrain.report.markdown import MARK, fence, markdown, plain
from llmtrain.report.study import Study
from tests.report import samples

ALL = [samples.freezing, samples.hostile, samples.pretraining, samples.single, samples.many]


def outside_fences(text: str) -> list[str]:
    """The lines that are no code, by the rule of CommonMark: a fence ends with as many backticks or more, and nothing else."""
    lines, ticks = [], ""
    for line in text.splitlines():
        found = re.fullmatch(r"(`{3,})(.*)", line)
        if ticks:
            if found and len(found[1]) >= len(ticks) and not found[2]:
                ticks = ""
            continue
        if found and "`" not in found[2]:
            ticks = found[1]
            continue
        lines.append(line)
    assert not ticks
    return lines


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def table(text: str) -> list[list[str]]:
    lines = outside_fences(text)
    begin = next(i for i, line in enumerate(lines) if line.startswith("| row"))
    end = next(i for i in range(begin, len(lines)) if not lines[i].startswith("|"))
    return [cells(line) for line in lines[begin:end]]


@pytest.mark.parametrize("made", ALL, ids=lambda f: f.__name__)
def test_every_row_with_a_result_is_one_line_with_as_many_cells_as_the_head(made: Callable[[], Study]) -> None:
    study = made()
    found = table(markdown(study))
    assert len(found) - 2 == sum(row.validation is not None for row in study.rows)
    assert len({len(line) for line in found}) == 1


def test_the_table_says_what_the_study_says() -> None:
    study = samples.freezing()
    head, _, *rows = table(markdown(study))
    found = dict(zip(head, next(row for row in rows if row[0].startswith("last 2 blocks")), strict=True))
    assert found["settings"] == r"finetune=last\_layers blocks=2 lr=5e-05"
    assert found["test accuracy"] == "0.847 ± 0.003 (n=3)"
    assert found[r"difference on test \[95 %\]"] == r"−0.015 \[−0.031, +0.001\], inside the noise"
    assert (found["trained"], found["share"], found["time"]) == ("14,767,874", "22.1 %", "3 min 08 s")


def test_rows_without_a_result_come_last_with_their_reason() -> None:
    text = markdown(samples.freezing())
    assert text.index("last 6 blocks: failed: loss is not finite") > text.index("| full (reference)")


@pytest.mark.parametrize("part", ["parameters", "seconds", "memory", "curves", "blocks", "table"])
def test_every_sentence_is_there(part: str) -> None:
    study = samples.freezing()
    assert all(plain(sentence) in markdown(study) for sentence in study.sentences[part])


@pytest.mark.parametrize("made", ALL, ids=lambda f: f.__name__)
def test_made_twice_it_is_the_same(made: Callable[[], Study]) -> None:
    """I08."""
    assert markdown(made()) == markdown(made())
    assert markdown(made()).startswith(MARK)


def test_text_of_data_makes_no_element_no_link_and_no_code() -> None:
    """H12."""
    text = "\n".join(outside_fences(markdown(samples.hostile()))).removeprefix(MARK)
    assert "<" not in text
    assert not re.search(r"(?<!\\)[\[\]`*$~]", text)
    assert "://" not in text
    assert r"\x1b\[2J" in text.replace("\\\\", "\\")


@pytest.mark.parametrize(
    ("typed", "text"),
    [
        ("# a", r"\# a"),
        ("- a", r"\- a"),
        ("+ a", r"\+ a"),
        ("1. a", r"1\. a"),
        ("-0.5", "-0.5"),
        ("0.799 ± 0.004", "0.799 ± 0.004"),
        ("a|b", r"a\|b"),
        ("a\nb", "a b"),
        ("see http://x and WWW.x", "see http&#58;//x and WWW&#46;x"),
        ("@someone", "&#64;someone"),
        ("a_b & <c>", r"a\_b &amp; &lt;c&gt;"),
        (r"a\|b", r"a\\\|b"),
        ("---", r"\---"),
    ],
)
def test_what_would_begin_something_in_markdown_is_escaped_and_other_text_stays_readable(typed: str, text: str) -> None:
    assert plain(typed) == text


@pytest.mark.parametrize("text", ["a", "a\n```\nb", "````", "a ``` b\n~~~", "`" * 9])
def test_a_command_cannot_leave_its_block(text: str) -> None:
    assert outside_fences(f"before\n\n{fence(text)}\n\nafter") == ["before", "", "", "after"]


def test_every_command_is_there_to_be_copied() -> None:
    study = samples.freezing()
    text = markdown(study)
    assert all(command in text.splitlines() for command in [study.command, *(run.command for row in study.rows for run in row.runs)])


def test_a_single_run_has_settings_and_no_comparison() -> None:
    text = markdown(samples.single())
    assert "difference" not in text
    assert "\n## Settings\n" in text
    assert "compared" not in text


def test_without_any_result_it_says_why() -> None:
    study = replace(samples.freezing(), rows=(samples.failed("a"), samples.failed("b", "disk full")))
    text = markdown(study)
    assert "| row" not in text
    assert "b: failed: disk full" in text
