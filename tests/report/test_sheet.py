"""results.csv: every run with all its numbers, and no cell that a spreadsheet would run."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Callable
from dataclasses import replace

import pytest

from llmtrain.report import sheet
from llmtrain.report.study import Study
from tests.report import samples

ALL = [samples.freezing, samples.hostile, samples.pretraining, samples.single, samples.many]


def lines(study: Study) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(sheet.csv(study), newline="")))


@pytest.mark.parametrize("made", ALL, ids=lambda f: f.__name__)
def test_there_is_one_line_for_every_run(made: Callable[[], Study]) -> None:
    study = made()
    assert len(lines(study)) == sum(len(row.runs) for row in study.rows) == len(sheet.csv(study).splitlines()) - 1


@pytest.mark.parametrize("split", ["validation", "test"])
def test_the_means_and_spreads_of_the_table_can_be_computed_from_it(split: str) -> None:
    study = samples.freezing()
    for row in study.rows[:-1]:
        numbers = [float(line[f"{split}_accuracy"]) for line in lines(study) if line["row"] == row.label]
        estimate = getattr(row, split)
        assert (statistics.mean(numbers), statistics.stdev(numbers)) == (pytest.approx(estimate.mean), pytest.approx(estimate.sd))


def test_settings_that_differ_metrics_and_costs_are_columns() -> None:
    (line,) = [line for line in lines(samples.freezing()) if line["row"] == "last 2 blocks" and line["seed"] == "1"]
    assert (line["finetune.kind"], line["finetune.blocks"], line["finetune.lr"]) == ("last_layers", "2", "5e-05")
    assert float(line["test_macro_f1"]) == pytest.approx(float(line["test_accuracy"]) - 0.01)
    assert (line["trainable"], line["peak_memory_mb"], line["train_seconds"]) == ("14767874", "1290", "189")
    assert line["command"].startswith("llmtrain finetune ")


def test_a_run_that_failed_has_its_reason_and_empty_numbers() -> None:
    (line,) = [line for line in lines(samples.freezing()) if line["status"] == "failed"]
    assert line["reason"] == "loss is not finite at update 12 (nan)"
    assert (line["test_accuracy"], line["wall_seconds"], line["finetune.lr"]) == ("", "", "")


def test_metrics_that_are_no_numbers_are_kept_as_words() -> None:
    """I07."""
    study = samples.pretraining()
    assert [line["validation_loss"] for line in lines(study)][-1] == "inf"
    broken = replace(study.rows[0].runs[0], validation={"loss": math.nan})
    assert lines(replace(study, rows=(replace(study.rows[0], runs=(broken,)),)))[0]["validation_loss"] == "nan"


@pytest.mark.parametrize("text", ["=1+1", "+1+1", "-1+1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "＝1", "=cmd|' /C calc'!A0", "-", "--output"])
def test_a_cell_that_a_spreadsheet_would_run_gets_an_apostrophe(text: str) -> None:
    """H16."""
    assert sheet.cell(text).startswith("'")


@pytest.mark.parametrize("text", ["-0.5", "+3", "-1e-05", "-inf", "5e-05", "last 2 blocks", "a=b", "a-b", ".5", ""])
def test_plain_numbers_and_plain_text_stay_as_they_are(text: str) -> None:
    """H16."""
    assert sheet.cell(text) == text


def test_no_cell_of_a_hostile_study_begins_a_formula_and_none_spans_lines() -> None:
    """H16: labels, settings, reasons, names and commands, with commas or semicolons between cells."""
    text = sheet.csv(samples.hostile())
    cells = [cell for line in csv.reader(io.StringIO(text, newline="")) for cell in line]
    assert sum(cell.startswith("'=") for cell in cells) > 3
    assert not any(cell.startswith(sheet.FORMULA) and not sheet.NUMBER.fullmatch(cell) for cell in cells)
    assert not set(text) & {"\r", "\t", "\x00", "\x1b", "\u202e", "\ud800"}
    by_semicolon = csv.reader(
        io.StringIO(sheet.csv(replace(samples.freezing(), differs=("x",), rows=(replace(samples.freezing().rows[0], label="a;=1+1"),)))), delimiter=";"
    )
    assert not any(cell.startswith("=") for line in by_semicolon for cell in line)


@pytest.mark.parametrize("made", ALL, ids=lambda f: f.__name__)
def test_made_twice_it_is_the_same(made: Callable[[], Study]) -> None:
    """I08."""
    assert sheet.csv(made()) == sheet.csv(made())


def test_a_study_without_rows_is_a_header() -> None:
    assert sheet.csv(replace(samples.freezing(), rows=())).startswith('"row","status","reason","seed"')
