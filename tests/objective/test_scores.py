"""Metrics against scikit-learn and scipy, on random and on degenerate predictions."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics

from llmtrain.objective import scores

RANDOM = np.random.default_rng(0)

CLASSES = {
    "two": (RANDOM.integers(0, 2, 50), RANDOM.integers(0, 2, 50)),
    "seventy-seven": (RANDOM.integers(0, 77, 500), RANDOM.integers(0, 77, 500)),
    "imbalanced": ((RANDOM.random(200) < 0.05).astype(int), (RANDOM.random(200) < 0.1).astype(int)),
    "mostly right": (np.where(RANDOM.random(300) < 0.8, np.arange(300) % 5, RANDOM.integers(0, 5, 300)), np.arange(300) % 5),
    "always one": (np.zeros(9, int), np.arange(9) % 3),
    "one class, right": (np.full(4, 2), np.full(4, 2)),
    "one class, wrong": (np.full(4, 1), np.full(4, 2)),
    "never right": (np.arange(6) % 3, (np.arange(6) + 1) % 3),
    "a class never true": (np.array([0, 1, 2, 1]), np.array([0, 1, 1, 1])),
    "one row": (np.array([3]), np.array([3])),
}
NUMBERS = {
    "random": (RANDOM.normal(size=80), RANDOM.normal(size=80)),
    "related": (np.arange(60) + RANDOM.normal(size=60) * 9, np.arange(60.0)),
    "ties": (RANDOM.integers(0, 4, 70).astype(float), RANDOM.integers(0, 3, 70).astype(float)),
    "far from 0": (1e6 + RANDOM.normal(size=30), 1e6 + RANDOM.normal(size=30)),
    "tiny": (1e-90 * RANDOM.normal(size=30), 1e-90 * RANDOM.normal(size=30)),
    "opposite": (-np.arange(5.0), np.arange(5.0)),
    "two rows": (np.array([1.0, 2.0]), np.array([5.0, 6.0])),
}
ORACLES: list[tuple[Callable[..., float], Callable[..., float]]] = [
    (scores.accuracy, metrics.accuracy_score),
    (scores.macro_f1, lambda true, predicted: metrics.f1_score(true, predicted, average="macro", zero_division=0)),
    (scores.matthews, metrics.matthews_corrcoef),
]


@pytest.mark.parametrize("case", CLASSES)
@pytest.mark.parametrize(("ours", "theirs"), ORACLES, ids=["accuracy", "macro_f1", "matthews"])
def test_metrics_of_classes_are_scikit_learns(case: str, ours: Callable[..., float], theirs: Callable[..., float]) -> None:
    predicted, true = CLASSES[case]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of a single class, and says 0
        assert ours(predicted, true) == pytest.approx(theirs(true, predicted), abs=1e-12)


@pytest.mark.parametrize("case", CLASSES)
def test_rows_of_the_confusion_are_the_true_classes(case: str) -> None:
    predicted, true = CLASSES[case]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert scores.confusion(predicted, true).tolist() == metrics.confusion_matrix(true, predicted).tolist()


@pytest.mark.parametrize("case", NUMBERS)
def test_correlations_are_scipys(case: str) -> None:
    predicted, true = NUMBERS[case]
    assert scores.pearson(predicted, true) == pytest.approx(stats.pearsonr(predicted, true).statistic, abs=1e-12)
    assert scores.spearman(predicted, true) == pytest.approx(stats.spearmanr(predicted, true).statistic, abs=1e-12)


@pytest.mark.parametrize("case", NUMBERS)
def test_the_error_is_scikit_learns(case: str) -> None:
    predicted, true = NUMBERS[case]
    assert scores.rmse(predicted, true) == pytest.approx(metrics.root_mean_squared_error(true, predicted), rel=1e-12)


@pytest.mark.parametrize("values", [[3.0, 1.0, 3.0, 2.0, 3.0], [1.0], [2.0, 2.0], [5.0, -1.0, 0.0]])
def test_equal_values_share_the_mean_of_their_ranks(values: list[float]) -> None:
    assert scores.ranks(np.array(values)).tolist() == stats.rankdata(values).tolist()


@pytest.mark.parametrize("constant", [0.0, 0.1, 1e9])
@pytest.mark.parametrize("metric", [scores.pearson, scores.spearman])
def test_what_does_not_vary_correlates_with_nothing(metric: Callable[..., float], constant: float) -> None:
    varied = np.arange(7.0)
    assert metric(np.full(7, constant), varied) == metric(varied, np.full(7, constant)) == 0.0


@pytest.mark.parametrize("metric", [scores.accuracy, scores.macro_f1, scores.matthews, scores.pearson, scores.spearman, scores.rmse])
def test_no_predictions_at_all_score_0(metric: Callable[..., float]) -> None:
    assert metric(np.zeros(0), np.zeros(0)) == 0.0


def test_predictions_are_read_in_the_order_of_their_samples() -> None:
    predicted, true = scores.collected({7: np.array([1.0, 2.0]), 0: np.array([3.0, 4.0])})
    assert predicted.tolist() == [3.0, 1.0]
    assert true.tolist() == [4.0, 2.0]
    assert [len(side) for side in scores.collected({})] == [0, 0]


def test_probabilities_survive_large_logits() -> None:
    assert scores.softmax(np.array([1000.0, 1000.0])).tolist() == [0.5, 0.5]
    assert scores.softmax(np.log([1.0, 3.0])).tolist() == pytest.approx([0.25, 0.75])
