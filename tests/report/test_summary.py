"""A study in words: numbers as people read them, and a table that fits a terminal and cannot drive it."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import replace

import pytest
from rich.console import Console

from llmtrain.report import summary
from llmtrain.report.study import Difference, Estimate, Study
from tests.report import samples

NAN = math.nan


def shown(study: Study, width: int = 80, **console: object) -> str:
    out = io.StringIO()
    summary.show(Console(file=out, width=width, markup=True, **console), study)  # type: ignore[arg-type]
    return out.getvalue()


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0.8461, "0.846"),
        (12.345, "12.35"),
        (126.12, "126.1"),
        (12345.6, "12,346"),
        (0.0, "0.000"),
        (1e-5, "1e-05"),
        (-0.015, "−0.015"),
        (NAN, "nan"),
        (-math.inf, "−inf"),
    ],
)
def test_a_metric_has_as_many_digits_as_one_reads(number: float, text: str) -> None:
    assert summary.value(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (3.21, "3.2 s"),
        (9.97, "10 s"),
        (59.6, "1 min 00 s"),
        (725, "12 min 05 s"),
        (3599.7, "1 h 00 min"),
        (3780, "1 h 03 min"),
        (86399, "1 d 00 h"),
        (187_200, "2 d 04 h"),
        (NAN, "–"),
    ],
)
def test_time_is_told_in_the_units_that_people_use(seconds: float, text: str) -> None:
    assert summary.duration(seconds) == text


@pytest.mark.parametrize(("size", "text"), [(3.21, "3.2 MB"), (812.4, "812 MB"), (12_345, "12,345 MB"), (204_800, "200 GB"), (NAN, "–")])
def test_memory_is_told_in_megabytes(size: float, text: str) -> None:
    assert summary.megabytes(size) == text


@pytest.mark.parametrize(
    ("part", "whole", "text"), [(0, 10, "0 %"), (1, 10_000, "< 0.1 %"), (362, 1000, "36.2 %"), (99_999, 100_000, "> 99.9 %"), (7, 7, "100 %"), (0, 0, "–")]
)
def test_what_rounds_to_nothing_or_to_everything_is_not_called_so(part: int, whole: int, text: str) -> None:
    assert summary.share(part, whole) == text


def test_one_run_has_no_spread_and_says_how_many_there_are() -> None:
    assert summary.estimate(Estimate(0.846, 0.004, 3)) == "0.846 ± 0.004 (n=3)"
    assert summary.estimate(Estimate(0.846, NAN, 1)) == "0.846 (n=1)"
    assert summary.estimate(None) == "–"


@pytest.mark.parametrize(
    ("found", "text", "verdict"),
    [
        (Difference(-0.015, -0.031, 0.001, True, ""), "−0.015 [−0.031, +0.001]", "inside the noise"),
        (Difference(0.02, 0.01, 0.03, False, ""), "+0.020 [+0.010, +0.030]", "clear"),
        (Difference(0.02, NAN, NAN, False, ""), "+0.020", "no interval"),
        (None, "–", ""),
    ],
)
def test_inside_the_noise_is_said_from_the_interval_and_nothing_where_there_is_none(found: Difference | None, text: str, verdict: str) -> None:
    assert (summary.interval(found), summary.verdict(found)) == (text, verdict)


@pytest.mark.parametrize(
    ("keys", "short"),
    [
        (("finetune.kind", "finetune.blocks", "optimizer.lr"), ["finetune", "blocks", "lr"]),
        (("finetune.lr", "optimizer.lr"), ["finetune.lr", "optimizer.lr"]),
        (("lr", "optimizer.lr"), ["lr", "optimizer.lr"]),
        (("model.kind", "data.kind"), ["model", "data"]),
    ],
)
def test_a_setting_has_the_shortest_name_that_no_other_has(keys: tuple[str, ...], short: list[str]) -> None:
    assert list(summary.short_keys(keys).values()) == short


def test_a_row_says_how_many_of_its_runs_finished_and_the_first_reason() -> None:
    row = samples.freezing().rows[0]
    assert summary.outcome(row) == ""
    runs = (*row.runs[:2], replace(row.runs[2], status="failed", reason="out of memory"))
    assert summary.outcome(replace(row, runs=runs)) == "2 of 3 finished, failed: out of memory"
    assert summary.outcome(samples.failed("x", "", "waiting")) == "waiting"


def test_all_runs_together_count_also_those_that_failed_and_what_nobody_knows_is_left_out() -> None:
    study = samples.freezing(seeds=1)
    walls = [run.wall_seconds for row in study.rows for run in row.runs if math.isfinite(run.wall_seconds)]
    assert summary.totals(study)["time of all runs"] == summary.duration(sum(walls))
    assert summary.totals(study)["runs"] == "8, of which 7 finished"
    assert summary.totals(replace(study, rows=study.rows[-1:]))["disk"] == "–"


@pytest.mark.parametrize("width", [60, 80, 100, 140])
@pytest.mark.parametrize("made", [samples.freezing, samples.hostile, samples.pretraining, samples.single, samples.many], ids=lambda f: f.__name__)
def test_no_line_is_wider_than_the_terminal_and_no_row_is_broken(made: Callable[[], Study], width: int) -> None:
    study = made()
    lines = shown(study, width).splitlines()
    assert max(map(len, lines)) <= width
    rows = [row for row in study.rows if summary.has_result(row)]
    begin = next(i for i, line in enumerate(lines) if line.split()[:1] == ["row"])
    for row, line in zip(rows, lines[begin + 1 :], strict=False):
        estimate = summary.estimate(summary.compared(study, row), runs=False)
        assert estimate in line
        assert row.label[:12] in line


def test_the_most_important_columns_come_first_and_a_wide_terminal_gets_more() -> None:
    narrow, wide = (next(line.split() for line in shown(samples.freezing(), width).splitlines() if "row" in line.split()) for width in (60, 140))
    assert narrow == ["row", "test", "difference", "trained"]
    assert wide[: len(narrow)] == narrow
    assert wide[len(narrow) :] == ["time", "memory", "validation", "n", "disk", "parameters"]


def test_chosen_and_reference_are_marked_and_a_row_that_failed_stands_below_with_its_reason() -> None:
    lines = shown(samples.freezing()).splitlines()
    assert [line.split("  ")[1].strip() for line in lines if line.startswith("*  ")] == ["last 4 blocks"]
    assert [line.split("  ")[1].strip() for line in lines if line.startswith("=  ")] == ["full"]
    assert "last 6 blocks: failed: loss is not finite at update 12 (nan)" in lines


def test_a_single_run_is_compared_with_nothing() -> None:
    text = shown(samples.single())
    assert "difference" not in text
    assert "compared" not in text


def test_numbers_that_are_none_are_shown() -> None:
    """I07."""
    assert "inf" in next(line for line in shown(samples.pretraining()).splitlines() if "lr 0.01 " in line)


def test_text_of_data_is_no_markup_and_cannot_drive_the_terminal() -> None:
    """H14; also on a console that has markup on."""
    text = shown(samples.hostile(), 200, force_terminal=True, color_system=None)
    assert "[red]not red[/red] [link=file:///etc/passwd]x[/link] [/foo]" in text
    assert "\\x1b[2J\\x07\\u202egnp.exe\\x00\\ud800" in text
    assert not set(text) & {"\x07", "\u202e", "\x00", "\ud800"}
    assert "\x1b[2J" not in text
