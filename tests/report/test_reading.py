"""Sentences: as much as the numbers allow, in words that hold for every metric, and never a bare maximum."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from llmtrain.report.reading import sentences
from llmtrain.report.study import Difference, Estimate, Row, Study
from tests.report import samples

NAN = math.nan
KEYS = {"table", "parameters", "seconds", "memory", "curves", "blocks"}


def changed(study: Study, labels: Mapping[str, Mapping[str, Any]], **others: Any) -> Study:
    """A study with some rows changed."""
    return replace(study, rows=tuple(replace(row, **labels.get(row.label, {})) for row in study.rows), **others)


def said(study: Study, key: str = "table") -> str:
    return " ".join(sentences(study).get(key, ()))


def between(mean: float, low: float, high: float) -> Difference:
    return Difference(mean, low, high, noise=low <= 0 <= high, how="paired bootstrap over 872 examples, and the spread over 3 paired seeds")


def lower(study: Study) -> Study:
    """The same study in a loss: what was better is lower."""

    def turned(found: Estimate | None) -> Estimate | None:
        return None if found is None else replace(found, mean=1 - found.mean)

    def mirrored(found: Difference | None) -> Difference | None:
        return None if found is None else replace(found, mean=-found.mean, low=-found.high, high=-found.low)

    rows = tuple(replace(row, validation=turned(row.validation), test=turned(row.test), difference=mirrored(row.difference)) for row in study.rows)
    return replace(study, rows=rows, metric="loss", higher=False, baselines={})


ALL = [samples.freezing, samples.pretraining, samples.single, samples.many, samples.hostile]


@pytest.mark.parametrize("make", ALL)
def test_every_study_has_a_reading_of_whole_sentences(make: Any) -> None:
    found = sentences(make())
    assert found.keys() <= KEYS
    assert found["table"]
    assert all(text.endswith(".") and ".." not in text for texts in found.values() for text in texts)


@pytest.mark.parametrize("make", ALL)
def test_no_sentence_has_a_raw_number_or_a_hole(make: Any) -> None:
    texts = [text for texts in sentences(make()).values() for text in texts]
    assert not any(re.search(r"\d\.\d{5}|None|Estimate|\bnan\b|  ", text) for text in texts)


@pytest.mark.parametrize("make", ALL)
def test_equal_studies_are_read_equally(make: Any) -> None:
    """I08."""
    assert sentences(make()) == sentences(make())


# --- what is chosen, and what it is compared with -----------------------------------------------------------------


def test_what_is_chosen_is_chosen_on_validation_and_its_test_value_is_told_once() -> None:
    first = sentences(samples.freezing())["table"][0]
    row = next(row for row in samples.freezing().rows if row.chosen)
    assert row.validation is not None
    assert row.test is not None
    assert first.startswith(f"Chosen on validation: the last 4 blocks (validation accuracy {row.validation.mean:.3f}")
    assert first.endswith(f"the test accuracy of that choice is {row.test.mean:.3f} ± {row.test.sd:.3f} over 3 seeds.")


def test_without_a_test_split_it_is_said_that_the_best_of_several_flatters() -> None:
    assert "there is no test split to say what that choice is worth" in said(samples.pretraining())


def test_it_is_said_why_rows_are_compared_with_one() -> None:
    assert "compared with full, which trained the most parameters" in said(samples.freezing())
    assert "compared with lr 0.001: all trained equally many parameters, and it did best on validation" in said(samples.pretraining())
    named = changed(
        samples.freezing(), {"full": {"reference": False, "difference": between(0.1, 0.05, 0.15)}, "features": {"reference": True, "difference": None}}
    )
    assert "Rows are compared with features." in said(named)


# --- inside the noise ---------------------------------------------------------------------------------------------


def test_the_smallest_row_inside_the_noise_is_named_with_its_share_of_metric_time_and_parameters() -> None:
    study = samples.freezing()
    two, full = (next(row for row in study.rows if row.label == label) for label in ("last 2 blocks", "full"))
    assert two.test is not None
    assert full.test is not None
    numbers = f"({two.test.mean:.3f} of {full.test.mean:.3f} test accuracy)"
    costs = f"at {100 * two.seconds / full.seconds:.0f} % of the time and {100 * two.trainable / full.trainable:.0f} % of its trained parameters"
    interval = "the difference, −0.015 [−0.031, +0.001] (95 %), is inside the noise."
    assert f"The last 2 blocks reached {100 * two.test.mean / full.test.mean:.0f} % of full {numbers}, {costs}; {interval}" in said(study)
    assert "nothing is gained that these data can show by training more than the last 2 blocks" in said(study)


def test_inside_the_noise_is_not_called_equal() -> None:
    text = said(samples.freezing())
    assert "That is not to say that the last 2 blocks and full are equal: the interval leaves room for 0.031 worse and 0.001 better." in text


def test_where_every_smaller_row_is_clearly_worse_it_is_said_that_training_more_paid() -> None:
    worse = between(-0.05, -0.08, -0.02)
    study = samples.freezing()
    text = said(changed(study, {row.label: {"difference": worse} for row in study.rows if row.difference is not None}))
    assert "here it paid to train more" in text
    assert "nothing is gained" not in text


def test_a_smaller_row_that_is_clearly_better_is_not_called_noise() -> None:
    text = said(changed(samples.freezing(), {"features": {"difference": between(0.05, 0.02, 0.08)}}))
    assert "Clearly better than full: features (+0.050 [+0.020, +0.080])" in text
    assert "outside the noise" in text
    assert "nothing is gained" not in text


def test_rows_that_are_clearly_worse_are_named_with_their_intervals() -> None:
    assert "Clearly worse than full: features (−0.068 [−0.089, −0.047]); last block (−0.035 [−0.054, −0.016])." in said(samples.freezing())


def test_without_intervals_nothing_is_called_noise_or_clear() -> None:
    text = said(samples.pretraining())
    assert "No interval can be given" in text
    assert "inside the noise" not in text
    assert "Clearly" not in text


def test_many_intervals_are_said_to_stand_each_by_itself() -> None:
    assert "Each of the 6 intervals is taken by itself" in said(samples.freezing())
    few = replace(samples.freezing(), rows=samples.freezing().rows[4:])
    assert "taken by itself" not in said(few)


def test_it_is_said_what_the_intervals_are_made_from() -> None:
    assert "Intervals: two-level bootstrap over seeds and 872 examples." in said(samples.freezing())


# --- metrics of all kinds -----------------------------------------------------------------------------------------


def test_where_less_is_better_no_share_is_told_and_worse_stays_worse() -> None:
    text = said(lower(samples.freezing()))
    assert "% of full (" not in text
    assert "had a test loss of 0.153, full one of 0.138 (lower is better)" in text
    assert "Clearly worse than full: features (+0.068" in text
    assert "room for 0.031 worse and 0.001 better" in text


@pytest.mark.parametrize(("metric", "shared"), [("accuracy", True), ("macro_f1", True), ("matthews", False), ("spearman", False), ("rmse", False)])
def test_a_share_is_told_of_metrics_that_begin_at_nothing_alone(metric: str, shared: bool) -> None:
    assert ("reached 98 % of full" in said(replace(samples.freezing(), metric=metric))) is shared


def test_a_row_that_did_better_than_the_reference_did_not_reach_a_share_of_it() -> None:
    assert "The last 4 blocks had a test accuracy of 0.864, full one of 0.862" in said(samples.freezing())


def test_a_loss_is_told_with_its_perplexity() -> None:
    assert "validation loss 4.620, one run, perplexity 101" in said(samples.pretraining())


def test_numbers_that_are_not_finite_are_named_and_nothing_is_made_of_them() -> None:
    """I07."""
    assert "No finite number came out of: lr 0.01." in said(samples.pretraining())


# --- baselines and seeds ------------------------------------------------------------------------------------------


def test_rows_that_a_bag_of_words_keeps_up_with_are_named() -> None:
    study = replace(samples.freezing(), baselines={"majority": 0.502, "bag of words": 0.84})
    text = said(study)
    assert "Not above bag of words (0.840 on validation): features, last block." in text
    assert "All rows are above majority (0.502) on validation" in text


def test_in_a_loss_rows_are_not_below_a_baseline() -> None:
    assert "Not below unigram entropy (4.700 on validation): lr 0.0001, lr 0.0003, lr 0.003" in said(
        replace(samples.pretraining(), baselines={"unigram entropy": 4.7})
    )


@pytest.mark.parametrize(("seeds", "says"), [(1, "Each row is one run"), (2, "a standard deviation of so few says little"), (3, None), (5, None)])
def test_of_few_seeds_it_is_said_how_little_they_say(seeds: int, says: str | None) -> None:
    text = said(samples.freezing(seeds=seeds))
    assert (says is None) or says in text
    assert ("so few" in text or "is one run" in text) is (says is not None)


# --- under the pictures -------------------------------------------------------------------------------------------


def test_the_smallest_row_inside_the_noise_is_told_with_its_costs() -> None:
    found = sentences(samples.freezing())
    assert "The smallest row inside the noise of full: the last 2 blocks" in found["parameters"][0]
    assert found["seconds"][0] == "The last 2 blocks took 3 min 08 s, 35 % of the time of full (8 min 58 s)."
    assert found["memory"][0].startswith("The last 2 blocks needed 1,290 MB, 58 % of the peak memory of full")


def test_what_is_on_a_front_is_said_to_be_so_by_its_mean() -> None:
    assert "By their means no other row beats these at their time: features, last block, last 2 blocks" in said(samples.freezing(), "seconds")


def test_where_a_cost_is_the_same_everywhere_nothing_is_said_of_it() -> None:
    study = samples.pretraining()
    same = replace(study, rows=tuple(replace(row, memory_mb=800.0) for row in study.rows))
    assert "memory" not in sentences(same)
    assert "parameters" not in sentences(same)


RISING, FALLING = (0.7, 0.8, 0.9), (0.7, 0.9, 0.8)


@pytest.mark.parametrize(
    ("first", "others", "says"),
    [
        (RISING, RISING, "Best at their last evaluation: full. Longer training might still gain there."),
        (FALLING, FALLING, "Best before their end, in all of their runs: full (best after 67 % of the updates)"),
        (RISING, FALLING, "Best at the end with some seeds, and before it with others: full."),
    ],
)
def test_curves_are_read_by_where_their_best_evaluation_lies(first: tuple[float, ...], others: tuple[float, ...], says: str) -> None:
    """Of every seed: two rows have curves, and the other one has its best where `full` has not."""

    def curve(values: tuple[float, ...]) -> tuple[dict[str, float], ...]:
        return tuple({"step": float(step), "validation_accuracy": value} for step, value in enumerate(values, 1))

    def drawn(row: Row) -> Row:
        wanted = {"full": (first, others), "features": (FALLING, FALLING) if first == RISING else (RISING, RISING)}.get(row.label, ((), ()))
        return replace(row, runs=tuple(replace(run, curve=curve(wanted[min(number, 1)])) for number, run in enumerate(row.runs)))

    study = samples.freezing()
    assert says in said(replace(study, rows=tuple(map(drawn, study.rows))), "curves")


def test_two_evaluations_are_no_curve() -> None:
    study = samples.single()
    short = tuple(replace(row, runs=tuple(replace(run, curve=run.curve[:2]) for run in row.runs)) for row in study.rows)
    assert "curves" not in sentences(replace(study, rows=short))


def test_how_much_moved_is_told_and_what_gradients_had_to_cross() -> None:
    study = samples.freezing()
    assert said(study, "blocks").startswith("From 592,130 trained parameters in features (0.9 %) to")
    crossed = tuple({**part, "crossed": True} for part in samples.sections(1, 1e-3))
    rows = tuple(replace(row, runs=tuple(replace(run, sections=crossed) for run in row.runs)) if row.label == "features" else row for row in study.rows)
    assert "Gradients crossed frozen parts in: features." in said(replace(study, rows=rows), "blocks")


def test_of_a_model_that_moved_as_a_whole_nothing_is_said_of_freezing() -> None:
    found = sentences(samples.pretraining())
    assert "blocks" not in found
    assert "frozen" not in " ".join(text for texts in found.values() for text in texts)


# --- one row, or none ---------------------------------------------------------------------------------------------


def test_one_run_is_told_by_its_numbers_and_compared_with_nothing() -> None:
    found = sentences(samples.single())
    text = " ".join(found["table"])
    assert "Validation accuracy 0.848 and test accuracy 0.848." in text
    assert "how far another seed would lie from it is not known" in text
    assert "compared" not in text
    assert found.keys() & {"parameters", "seconds", "memory"} == set()


def test_one_row_of_several_seeds_is_told_with_its_spread() -> None:
    study = replace(samples.freezing(), rows=(replace(samples.freezing().rows[2], difference=None, front=frozenset()),))
    assert re.search(r"Validation accuracy 0\.\d{3} ± 0\.\d{3} and test accuracy 0\.\d{3} ± 0\.\d{3}, mean of 3 seeds\.", said(study))


def test_of_runs_that_have_no_result_that_is_said() -> None:
    rows = (samples.failed("full"), samples.failed("features", status="waiting", reason=""))
    assert said(replace(samples.freezing(), rows=rows)) == "No run has a result yet: 1 failed, 1 waiting."
    assert said(replace(samples.freezing(), rows=())) == "There is no run."


def test_names_with_commas_stand_in_quotes() -> None:
    assert "Chosen on validation: “last 4 blocks, lr 12e-05, weight_decay 0.01, warmup 11” (" in said(samples.many())


def test_of_many_rows_the_first_are_named_and_the_others_counted() -> None:
    assert re.search(r"Clearly worse than .* and 4 more\.", said(samples.many()))
