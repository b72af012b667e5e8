"""Differences and their intervals: right as often as they say, the same in any order, and silent where nothing is known."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest
from scipy import stats

from llmtrain.objective import scores
from llmtrain.report import statistics
from llmtrain.report.statistics import Comparison, drawn, estimate, front, measured
from llmtrain.report.study import Run

NAN, INF = math.nan, math.inf


def written(path: Path, predicted: np.ndarray, true: np.ndarray, split: str = "test", order: Sequence[int] | None = None) -> Path:
    """A file of predictions, its lines in some order."""
    numbers = range(len(true)) if order is None else order
    lines = [{"split": split, "sample": int(i), "target": float(true[i]), "predicted": float(predicted[i])} for i in numbers]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def run(seed: int, value: float, metric: str = "accuracy", predictions: Path | None = None, **changed: object) -> Run:
    known: dict[str, object] = {"name": f"seed={seed}", "verb": "finetune", "status": "finished", "test": {metric: value}, "predictions": predictions}
    return Run(path=Path(f"{predictions or seed}"), seed=seed, **(known | changed))  # type: ignore[arg-type]


def answered(folder: Path, name: str, predicted: Sequence[np.ndarray], true: np.ndarray, metric: str = "accuracy") -> list[Run]:
    """A row: a run for each seed, with its predictions on the disk."""
    judge = getattr(scores, metric)
    return [run(seed, judge(one, true), metric, written(folder / f"{name}-{seed}.jsonl", one, true)) for seed, one in enumerate(predicted)]


def right(generator: np.random.Generator, share: float, count: int) -> np.ndarray:
    """Answers to questions whose answer is 1, of which a share is right."""
    return (generator.random(count) < share).astype(np.float64)


# --- spread over seeds --------------------------------------------------------------------------------------------


def test_an_estimate_is_the_mean_and_the_deviation_of_a_sample() -> None:
    values = [0.84, 0.86, 0.85]
    found = estimate(values)
    assert found is not None
    assert (found.mean, found.sd, found.number) == (pytest.approx(np.mean(values)), pytest.approx(np.std(values, ddof=1)), 3)


def test_of_one_run_there_is_a_mean_and_no_deviation_and_of_none_nothing() -> None:
    found = estimate([0.5])
    assert found is not None
    assert (found.mean, found.number) == (0.5, 1)
    assert math.isnan(found.sd)
    assert estimate([]) is None


@pytest.mark.parametrize(("value", "finite"), [(NAN, False), (INF, False), (-INF, False), (0.5, True)])
def test_what_is_not_finite_makes_the_mean_not_finite(value: float, finite: bool) -> None:
    found = estimate([0.5, value])
    assert found is not None
    assert math.isfinite(found.mean) is finite
    assert math.isfinite(found.sd) is finite


# --- fronts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("higher", [True, False])
def test_a_front_has_what_nothing_beats(higher: bool) -> None:
    sign = 1 if higher else -1
    points = {"cheap": (1, 0.5 * sign), "better": (2, 0.6 * sign), "beaten": (3, 0.55 * sign), "best": (4, 0.7 * sign)}
    assert front(points, higher) == {"cheap", "better", "best"}


def test_equals_stand_on_a_front_together_and_what_costs_more_for_the_same_does_not() -> None:
    assert front({"a": (1, 0.5), "b": (1, 0.5), "dearer": (2, 0.5), "worse": (1, 0.4)}, True) == {"a", "b"}


@pytest.mark.parametrize("point", [(NAN, 0.9), (0, NAN), (INF, 0.9), (0, INF)])
def test_what_is_not_finite_is_on_no_front_and_keeps_nobody_off_it(point: tuple[float, float]) -> None:
    assert front({"known": (1, 0.5), "unknown": point}, True) == {"known"}


# --- metrics of drawn examples ------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1", "matthews", "pearson", "spearman", "rmse"])
@pytest.mark.parametrize("case", range(4))
def test_a_metric_of_weighted_examples_is_that_of_repeated_ones(metric: str, case: int) -> None:
    generator = np.random.default_rng(case)
    count = (40, 7, 3, 200)[case]
    scored = metric in ("pearson", "spearman", "rmse")
    true = generator.normal(size=count).round(1) if scored else generator.integers(3, size=count).astype(float)
    predicted = true + generator.normal(size=count).round(1) if scored else np.where(generator.random(count) < 0.6, true, generator.integers(4, size=count))
    weights = np.stack([np.bincount(generator.integers(count, size=count), minlength=count) for _ in range(50)]).astype(float)
    repeated = [getattr(scores, metric)(np.repeat(predicted, weight.astype(int)), np.repeat(true, weight.astype(int))) for weight in weights]
    assert measured(metric, predicted, true, weights) == pytest.approx(np.array(repeated), abs=1e-10)


@pytest.mark.parametrize("metric", ["pearson", "spearman", "matthews", "macro_f1"])
def test_a_metric_of_answers_that_never_vary_is_what_scores_says(metric: str) -> None:
    true, predicted = np.array([0.0, 1.0, 1.0]), np.full(3, 0.1)
    assert measured(metric, predicted, true, np.ones((1, 3)))[0] == pytest.approx(getattr(scores, metric)(predicted, true))


def test_examples_are_drawn_the_same_every_time() -> None:
    assert (drawn(50, 20) == drawn(50, 20)).all()
    assert (drawn(50, 20).sum(1) == 50).all()


# --- intervals ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1", "matthews"])
@pytest.mark.parametrize("seeds", [1, 3])
def test_a_row_does_not_differ_from_itself(tmp_path: Path, metric: str, seeds: int) -> None:
    generator = np.random.default_rng(0)
    true = generator.integers(3, size=60).astype(float)
    row = answered(tmp_path, "row", [np.where(generator.random(60) < 0.7, true, 0.0) for _ in range(seeds)], true, metric)
    found = Comparison(metric, "test").difference(row, row)
    assert found is not None
    assert (found.mean, found.low, found.high, found.noise) == (0, 0, 0, True)


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1", "pearson"])
def test_neither_the_order_of_examples_nor_that_of_runs_matters(tmp_path: Path, metric: str) -> None:
    generator = np.random.default_rng(1)
    true = generator.integers(2, size=80).astype(float)
    a, b = ([right(generator, share, 80) for _ in range(3)] for share in (0.6, 0.7))
    rows = [answered(tmp_path, name, predicted, true, metric) for name, predicted in (("a", a), ("b", b))]
    order = generator.permutation(80)
    for row, predicted in zip(rows, (a, b), strict=True):
        for one, answers in zip(row, predicted, strict=True):
            assert one.predictions is not None
            written(one.predictions.with_suffix(".shuffled"), answers, true, order=order)
    others = [[dataclasses.replace(one, predictions=one.predictions and one.predictions.with_suffix(".shuffled")) for one in row[::-1]] for row in rows]
    assert Comparison(metric, "test").difference(*rows) == Comparison(metric, "test").difference(*others)


def test_the_other_way_round_an_interval_is_the_mirror_of_itself(tmp_path: Path) -> None:
    generator = np.random.default_rng(2)
    rows = [answered(tmp_path, name, [right(generator, share, 90) for _ in range(3)], np.ones(90)) for name, share in (("a", 0.6), ("b", 0.8))]
    one, other = Comparison("accuracy", "test").difference(*rows), Comparison("accuracy", "test").difference(*rows[::-1])
    assert one is not None
    assert other is not None
    assert (one.mean, one.low, one.high) == pytest.approx((-other.mean, -other.high, -other.low))
    assert one.noise == other.noise


def test_with_one_seed_the_width_is_that_of_scipys_paired_bootstrap(tmp_path: Path) -> None:
    generator = np.random.default_rng(3)
    a, b = right(generator, 0.7, 300), right(generator, 0.75, 300)
    found = Comparison("accuracy", "test").difference(answered(tmp_path, "a", [a], np.ones(300)), answered(tmp_path, "b", [b], np.ones(300)))
    scipys = stats.bootstrap((a, b), lambda x, y, axis: x.mean(axis) - y.mean(axis), paired=True, n_resamples=2000, rng=np.random.default_rng(0))
    low, high = scipys.confidence_interval
    assert found is not None
    assert found.mean == pytest.approx(a.mean() - b.mean())
    assert found.high - found.low == pytest.approx(high - low, rel=0.08)
    assert "one seed" in found.how


def test_the_same_examples_are_drawn_for_both_rows(tmp_path: Path) -> None:
    """Rows that fail on the same examples differ by less than rows that fail on others as often."""
    generator = np.random.default_rng(4)
    a = right(generator, 0.7, 400)
    b = a.copy()
    b[np.flatnonzero(a)[:8]] = 0
    alike = Comparison("accuracy", "test").difference(answered(tmp_path, "a", [a], np.ones(400)), answered(tmp_path, "b", [b], np.ones(400)))
    c = generator.permutation(b)
    others = Comparison("accuracy", "test").difference(answered(tmp_path, "a", [a], np.ones(400)), answered(tmp_path, "c", [c], np.ones(400)))
    assert alike is not None
    assert others is not None
    assert alike.mean == pytest.approx(others.mean)
    assert (alike.high - alike.low) < 0.5 * (others.high - others.low)
    assert (alike.noise, others.noise) == (False, True)


GAP = 0.15  # in standard deviations of the latent score


def once(generator: np.random.Generator, folder: Path, seeds: int, spread: float, weights: np.ndarray) -> bool:
    """Whether the interval has the true difference in it: of rows that differ by GAP, on new examples with new seeds."""
    count, hard = weights.shape[1], generator.normal(size=weights.shape[1])
    comparison, rows = Comparison("accuracy", "test"), []
    comparison._weights = weights  # drawn once for all repetitions
    for name, level in (("a", 1.0), ("b", 1.0 + GAP)):
        row, own = [], 0.5 * generator.normal(size=count)
        for seed in range(seeds):
            predicted = (hard + own + level + spread * generator.normal() + generator.normal(size=count) > 0).astype(np.float64)
            one = run(seed, float(predicted.mean()), predictions=folder / f"{name}-{seed}")
            comparison._answers[folder / f"{name}-{seed}"] = statistics.Answers(np.arange(count), predicted, np.ones(count))
            row.append(one)
        rows.append(row)
    found = comparison.difference(rows[1], rows[0])
    scale = math.sqrt(1 + 0.25 + 1 + spread**2)
    truth = NormalDist().cdf((1 + GAP) / scale) - NormalDist().cdf(1 / scale)
    assert found is not None
    return found.low <= truth <= found.high


@pytest.mark.parametrize(("seeds", "spread"), [(1, 0.0), (2, 0.05), (3, 0.0), (3, 0.1), (5, 0.1)])
def test_an_interval_has_the_true_difference_in_it_about_as_often_as_it_says(seeds: int, spread: float) -> None:
    generator = np.random.default_rng(seeds)
    weights = drawn(200, 300)
    hits = sum(once(generator, Path(), seeds, spread, weights) for _ in range(300))
    assert 0.91 <= hits / 300 <= 0.99


def test_runs_that_differ_from_seed_to_seed_widen_the_interval(tmp_path: Path) -> None:
    generator = np.random.default_rng(5)
    reference = answered(tmp_path, "r", [right(generator, 0.7, 200) for _ in range(3)], np.ones(200))
    steady = answered(tmp_path, "s", [right(generator, 0.75, 200) for _ in range(3)], np.ones(200))
    shaky = answered(tmp_path, "u", [right(generator, share, 200) for share in (0.6, 0.75, 0.9)], np.ones(200))
    one, other = (Comparison("accuracy", "test").difference(row, reference) for row in (steady, shaky))
    assert one is not None
    assert other is not None
    assert other.high - other.low > 2 * (one.high - one.low)


def test_rows_of_other_seeds_are_compared_as_independent_ones(tmp_path: Path) -> None:
    generator = np.random.default_rng(6)
    a = answered(tmp_path, "a", [right(generator, 0.7, 200) for _ in range(3)], np.ones(200))
    found = Comparison("accuracy", "test").difference(a, a[:2])
    assert found is not None
    assert "3 and 2 seeds" in found.how
    assert found.mean == pytest.approx(np.mean([one.test["accuracy"] for one in a]) - np.mean([one.test["accuracy"] for one in a[:2]]))


def test_a_row_of_one_seed_leaves_chance_in_training_out_and_says_so(tmp_path: Path) -> None:
    generator = np.random.default_rng(7)
    a = answered(tmp_path, "a", [right(generator, 0.7, 200) for _ in range(3)], np.ones(200))
    found = Comparison("accuracy", "test").difference(a, a[:1])
    assert found is not None
    assert "a single seed, so chance in training is not in it" in found.how


# --- without predictions ------------------------------------------------------------------------------------------


def test_without_predictions_seeds_alone_give_students_interval_of_pairs() -> None:
    losses, others = [3.1, 3.3, 3.2], [3.0, 3.25, 3.05]
    found = Comparison("loss", "test").difference([run(i, x, "loss") for i, x in enumerate(losses)], [run(i, x, "loss") for i, x in enumerate(others)])
    low, high = stats.ttest_rel(losses, others).confidence_interval()
    assert found is not None
    assert (found.low, found.high) == pytest.approx((low, high))
    assert "chance in the examples is not in it" in found.how


def test_without_predictions_other_seeds_give_welchs_interval() -> None:
    losses, others = [3.1, 3.3, 3.2], [3.0, 3.25]
    found = Comparison("loss", "test").difference([run(i, x, "loss") for i, x in enumerate(losses)], [run(i, x, "loss") for i, x in enumerate(others)])
    low, high = stats.ttest_ind(losses, others, equal_var=False).confidence_interval()
    assert found is not None
    assert (found.low, found.high) == pytest.approx((low, high))


@pytest.mark.parametrize("values", [[3.1], [3.1, 3.1]], ids=["one seed", "seeds that change nothing"])
def test_without_predictions_and_without_spread_there_is_no_interval_and_nothing_is_called_noise(values: list[float]) -> None:
    found = Comparison("loss", "test").difference([run(i, x, "loss") for i, x in enumerate(values)], [run(i, 3.0, "loss") for i in range(len(values))])
    assert found is not None
    assert found.mean == pytest.approx(0.1)
    assert math.isnan(found.low)
    assert math.isnan(found.high)
    assert found.noise is False
    assert "no interval" in found.how


@pytest.mark.parametrize("value", [NAN, INF])
def test_a_run_without_a_finite_number_gives_no_interval(value: float) -> None:
    found = Comparison("loss", "test").difference([run(0, value, "loss"), run(1, 3.0, "loss")], [run(0, 3.0, "loss"), run(1, 3.1, "loss")])
    assert found is not None
    assert math.isnan(found.low)
    assert found.noise is False


def test_a_row_without_a_result_has_no_difference() -> None:
    assert Comparison("loss", "test").difference([run(0, 3.0, "loss", status="failed")], [run(0, 3.0, "loss")]) is None


# --- predictions that do not fit ----------------------------------------------------------------------------------


def pair(tmp_path: Path) -> tuple[list[Run], list[Run]]:
    generator = np.random.default_rng(8)
    a, b = (answered(tmp_path, name, [right(generator, 0.7, 50) for _ in range(2)], np.ones(50)) for name in "ab")
    return a, b


def spoiled(tmp_path: Path, how: str) -> list[Run]:
    """The first row of `pair`, with one of its files spoiled."""
    row, _ = pair(tmp_path)
    path = row[0].predictions
    assert path is not None
    lines = path.read_text().splitlines(keepends=True)
    records = [json.loads(line) for line in lines]
    if how == "cut":
        path.write_text("".join(lines)[:-9])
    elif how == "of another metric":
        path.write_text("".join(json.dumps({**r, "predicted": 0}) + "\n" for r in records))
    elif how == "other examples":
        path.write_text("".join(json.dumps({**r, "sample": r["sample"] + 1000}) + "\n" for r in records))
    elif how == "other answers":
        path.write_text("".join(json.dumps({**r, "target": 7, "predicted": 7 if r["predicted"] == r["target"] else 1}) + "\n" for r in records))
    else:
        path.unlink()
    return row


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("cut", "missing"),
        ("missing", "missing"),
        ("of another metric", "not those of the metric"),
        ("other examples", "not asked the same"),
        ("other answers", "different answers"),
    ],
)
def test_predictions_that_do_not_fit_are_not_used_and_that_is_said(tmp_path: Path, how: str, why: str) -> None:
    _, reference = pair(tmp_path)
    found = Comparison("accuracy", "test").difference(spoiled(tmp_path, how), reference)
    assert found is not None
    assert "bootstrap" not in found.how
    assert why in found.how


def test_of_rows_with_some_examples_in_common_these_are_compared(tmp_path: Path) -> None:
    row, reference = pair(tmp_path)
    generator = np.random.default_rng(9)
    shorter = answered(tmp_path, "shorter", [right(generator, 0.7, 30) for _ in row], np.ones(30))
    found = Comparison("accuracy", "test").difference(shorter, reference)
    assert found is not None
    assert "the 30 examples that all were asked, of 50" in found.how


def test_the_other_split_is_not_looked_at(tmp_path: Path) -> None:
    test = written(tmp_path / "both", np.zeros(10), np.ones(10))
    validation = written(tmp_path / "validation", np.ones(10), np.ones(10), "validation").read_text()
    test.write_text(test.read_text() + validation)
    found = statistics.answers(test, "test")
    assert found is not None
    assert found.predicted.tolist() == [0] * 10
