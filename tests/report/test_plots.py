"""The pictures: every row, its spread, its marks, and the same bytes every time."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from xml.etree import ElementTree

import pytest

from llmtrain.report import plots
from llmtrain.report.study import Estimate, Row, Study
from tests.report import samples

ALL = [samples.freezing, samples.hostile, samples.pretraining, samples.single, samples.many]
COSTS = ["parameters", "seconds", "memory"]


def picture(study: Study, name: str) -> plots.Picture:
    (found,) = plots.pictures(study, [name])
    return found


def names(study: Study) -> list[str]:
    return [found.name for found in plots.pictures(study)]


def marks(found: plots.Picture) -> list[ElementTree.Element]:
    """Rows that are neither chosen nor the reference's star: what is filled with the accent."""
    return [element for element in tree(found).iter() if element.tag.endswith("}use") and "fill: var(--accent)" in element.get("style", "")]


def tree(found: plots.Picture) -> ElementTree.Element:
    return ElementTree.fromstring(found.svg)


def texts(found: plots.Picture) -> list[str]:
    return ["".join(element.itertext()) for element in tree(found).iter() if element.tag.endswith("}text")]


def tooltips(found: plots.Picture) -> list[str]:
    return [element.text or "" for element in list(tree(found).iter()) if element.tag.endswith("}title")][1:]


def changed(study: Study, number: int, **changes: Any) -> Study:
    rows = list(study.rows)
    rows[number] = replace(rows[number], **changes)
    return replace(study, rows=tuple(rows))


@pytest.mark.parametrize("made", ALL, ids=lambda f: f.__name__)
def test_drawn_twice_the_bytes_are_the_same(made: Callable[[], Study]) -> None:
    """I08."""
    assert plots.pictures(made()) == plots.pictures(made())


def test_a_study_has_its_costs_its_curves_and_its_block_maps() -> None:
    assert names(samples.freezing()) == ["parameters", "seconds", "memory", "curves", "blocks"]


def test_a_single_run_has_curves_and_a_block_map_and_no_comparison() -> None:
    assert names(samples.single()) == ["curves", "blocks"]


def test_where_one_number_differs_the_metric_is_drawn_against_it_and_not_against_what_is_equal() -> None:
    found = picture(samples.pretraining(), "setting")
    assert found.title == "Loss against optimizer.lr"
    assert "parameters" not in names(samples.pretraining())
    assert {"1e−4", "3e−4", "1e−3", "3e−3"} <= set(texts(found))


def test_no_two_ticks_of_small_numbers_have_the_same_name() -> None:
    study = samples.pretraining()
    found = texts(picture(replace(study, rows=study.rows[2:4]), "setting"))  # 1e-3 and 3e-3, on an axis that is not logarithmic
    ticks = [text for text in found if re.fullmatch(r"[\d.]+e−\d+", text)]
    assert len(ticks) == len(set(ticks)) > 2


@pytest.mark.parametrize("name", COSTS)
def test_every_row_with_a_result_is_a_point_that_says_its_numbers(name: str) -> None:
    study = samples.freezing()
    found = tooltips(picture(study, name))
    assert [text.partition(":")[0] for text in found] == [row.label for row in study.rows[:-1]]
    assert "test accuracy 0.847 ± 0.003 (n=3)" in found[2]


@pytest.mark.parametrize("name", COSTS)
def test_the_names_of_all_rows_are_there_while_they_are_few(name: str) -> None:
    study = samples.freezing()
    assert {row.label for row in study.rows[:-1]} <= set(texts(picture(study, name)))


@pytest.mark.parametrize("name", COSTS)
def test_of_many_rows_the_chosen_and_the_reference_are_named(name: str) -> None:
    study = samples.many()
    named = texts(picture(study, name))
    assert any(text.startswith("last 4 blocks, lr 12e-05") for text in named)
    assert any(text.startswith("last 6 blocks, lr 7e-05") for text in named)
    assert sum(text.startswith("last ") for text in named) <= plots.NAMED


def test_baselines_near_the_rows_are_dashed_lines_and_far_ones_are_named_at_the_edge() -> None:
    found = picture(samples.freezing(), "parameters")
    assert {"bag of words 0.782", "↓ majority 0.502"} <= set(texts(found))
    without = picture(replace(samples.freezing(), baselines={}), "parameters")
    assert found.svg.count("stroke-dasharray") == without.svg.count("stroke-dasharray") + 1


def test_the_spread_over_seeds_and_the_single_runs_are_drawn_where_there_are_several() -> None:
    several, one = (picture(samples.freezing(seeds), "parameters") for seeds in (3, 1))
    assert "standard deviation" in several.caption
    assert "standard deviation" not in one.caption
    assert several.svg.count("<use") > one.svg.count("<use") + 3 * 7 - 1


def test_the_front_is_drawn_through_the_rows_on_it_and_said() -> None:
    study = samples.freezing()
    assert "Pareto front" in picture(study, "seconds").caption
    off = replace(study, rows=tuple(replace(row, front=frozenset({"parameters"})) for row in study.rows))
    assert "Pareto front" not in picture(off, "seconds").caption
    assert "Pareto front" in picture(off, "parameters").caption
    assert "stroke-width: 5" in picture(off, "parameters").svg
    assert "stroke-width: 5" not in picture(off, "seconds").svg


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_a_row_whose_number_is_none_is_named_as_not_drawn(number: float) -> None:
    """I07."""
    found = picture(changed(samples.freezing(), 0, test=Estimate(number, math.nan, 3)), "parameters")
    assert "Not drawn, since a number is missing or not finite: features." in found.caption
    assert len(tooltips(found)) == 6


@pytest.mark.parametrize("cost", ["seconds", "memory_mb"])
def test_a_cost_that_nobody_knows_leaves_out_the_row_and_where_none_is_known_the_picture(cost: str) -> None:
    name = cost.removesuffix("_mb")
    assert "features" in picture(changed(samples.freezing(), 0, **{cost: math.nan}), name).caption.rpartition("Not drawn")[2]
    study = samples.freezing()
    assert not plots.pictures(replace(study, rows=tuple(replace(row, **{cost: math.nan}) for row in study.rows)), [name])


@pytest.mark.parametrize("trainable", [0, 1, 770])
def test_a_row_that_trains_almost_nothing_has_its_place_beside_millions(trainable: int) -> None:
    found = picture(changed(samples.freezing(), 0, trainable=trainable), "parameters")
    assert tooltips(found)[0].endswith(f"trained parameters {trainable:,}")


@pytest.mark.parametrize("level", [0.0, 1e-9, 1e9])
def test_rows_that_are_all_equal_or_far_apart_can_be_drawn(level: float) -> None:
    study = samples.freezing()
    equal = replace(study, rows=tuple(replace(row, test=Estimate(level, 0.0, 3)) for row in study.rows[:-1]))
    assert len(tooltips(picture(equal, "seconds"))) == 7
    assert len(tooltips(picture(changed(equal, 0, test=Estimate(level + 1e6, 0.0, 3)), "seconds"))) == 7


def test_a_loss_that_towers_over_the_others_is_drawn_on_a_logarithmic_axis() -> None:
    study = samples.pretraining()
    diverged = changed(study, 4, validation=Estimate(9e5, math.nan, 1))
    heights = [-float(mark.get("y", 0)) for mark in marks(picture(diverged, "setting"))]
    assert sorted(heights)[2] - sorted(heights)[0] > 1


# --- curves -------------------------------------------------------------------------------------------------------


def with_curves(study: Study, make: Callable[[Row, int], Any]) -> Study:
    return replace(study, rows=tuple(replace(row, runs=tuple(replace(run, curve=make(row, run.seed)) for run in row.runs)) for row in study.rows))


def test_runs_of_one_length_are_drawn_by_updates_and_others_by_their_share() -> None:
    study = samples.freezing()
    assert "updates" in texts(picture(study, "curves"))
    longer = with_curves(study, lambda row, seed: samples.curve(0.8, 3, steps=600 if row.label == "full" else 300))
    assert "share of the run, %" in texts(picture(longer, "curves"))


@pytest.mark.parametrize("key", ["validation_accuracy", "evaluation_accuracy", "accuracy"])
def test_the_metric_is_found_under_the_names_that_records_give_it(key: str) -> None:
    study = with_curves(samples.freezing(), lambda row, seed: tuple({"step": s, key: 0.5 + s / 1000} for s in (10, 20, 30)))
    assert picture(study, "curves")


def test_without_two_evaluations_there_is_no_curve() -> None:
    assert not plots.pictures(with_curves(samples.freezing(), lambda row, seed: ({"step": 10, "validation_accuracy": 0.5},)), ["curves"])


def test_values_that_are_none_are_left_out_of_a_curve() -> None:
    """I07."""
    study = with_curves(samples.freezing(), lambda row, seed: (*samples.curve(0.8, 3), {"step": 310, "validation_accuracy": math.nan}))
    assert picture(study, "curves").svg == picture(with_curves(study, lambda row, seed: samples.curve(0.8, 3)), "curves").svg


def test_seeds_that_were_evaluated_at_different_steps_are_drawn_one_by_one() -> None:
    study = with_curves(samples.freezing(), lambda row, seed: samples.curve(0.8, 3, steps=300 + seed, every=30 + seed))
    assert len(re.findall(r"<path", picture(study, "curves").svg)) > len(re.findall(r"<path", picture(samples.freezing(1), "curves").svg))


def test_of_many_curves_the_chosen_and_the_reference_stay_and_the_number_of_the_others_is_said() -> None:
    found = picture(samples.many(), "curves")
    assert len(tooltips(found)) == plots.LINES
    assert f"{30 - plots.LINES} further rows are left out" in found.caption
    assert any("lr 12e-05" in text for text in tooltips(found))


# --- block maps ---------------------------------------------------------------------------------------------------


def test_block_maps_say_in_words_what_was_frozen_and_how_fast_the_rest_moved() -> None:
    found = texts(picture(samples.freezing(), "blocks"))
    assert found.count("frozen") == 7 + 6 + 5 + 4 + 3 + 2
    assert (found.count("0.001"), found.count("5e-05"), found.count("2e-05")) == (1, 2 + 3 + 4 + 5 + 6, 8)


def test_the_head_stands_at_the_top_and_the_embeddings_at_the_bottom() -> None:
    heights = {
        "".join(e.itertext()).split(" · ")[0]: float(e.get("y", 0)) for e in tree(picture(samples.freezing(), "blocks")).iter() if e.tag.endswith("}text")
    }
    assert heights["head"] < heights["block 5"] < heights["block 0"] < heights["embeddings"]


def test_rows_with_the_same_map_share_a_column() -> None:
    study = samples.freezing()
    twice = replace(study, rows=(*study.rows, replace(study.rows[1], label="last block, other data")))
    assert {"last block and", "1 more"} <= set(texts(picture(twice, "blocks")))


def test_parts_of_a_large_model_that_are_alike_in_every_row_share_a_line() -> None:
    def deep(moving: int) -> tuple[dict[str, Any], ...]:
        return tuple(
            {
                "section": f"block.{i}",
                "parameters": 100,
                "trainable": 100 * (i >= 24 - moving),
                "lr": 1e-5 if i >= 24 - moving else None,
                "from_share": 0.0,
                "crossed": False,
            }
            for i in range(24)
        )

    study = samples.freezing()
    rows = [replace(row, runs=tuple(replace(run, sections=deep(moving)) for run in row.runs)) for row, moving in zip(study.rows[:2], (2, 6), strict=True)]
    found = texts(picture(replace(study, rows=tuple(rows)), "blocks"))
    assert [text.split(" · ")[0] for text in found if text.startswith("block")] == ["block 0 … 17", "block 18 … 21", "block 22 … 23"]


def test_what_moves_later_and_what_is_only_crossed_is_said() -> None:
    study = samples.freezing()
    parts = list(study.rows[0].runs[0].sections)
    parts[0] = {**parts[0], "trainable": parts[0]["parameters"], "lr": 2e-5, "from_share": 0.5}
    parts[1] = {**parts[1], "crossed": True}
    found = picture(changed(study, 0, runs=tuple(replace(run, sections=tuple(parts)) for run in study.rows[0].runs)), "blocks")
    assert "2e-05 from 50%" in texts(found)
    assert "crossed" in texts(found)
    assert "gradients had to pass" in found.caption
