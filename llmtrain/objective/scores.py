"""Metrics of predictions, in float64, from numpy arrays. What is 0/0 is 0, as in scikit-learn."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


def collected(predictions: dict[int, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """(predicted, true), each (samples,), from rows [predicted, true] of each sample; in the order of the samples, so that sums are the same every time."""
    import numpy as np

    rows = np.array([predictions[sample] for sample in sorted(predictions)], dtype=np.float64).reshape(-1, 2)
    return rows[:, 0], rows[:, 1]


def of_classes(predicted: np.ndarray, true: np.ndarray) -> dict[str, float]:
    """What classification is judged by besides its loss."""
    return {"accuracy": accuracy(predicted, true), "macro_f1": macro_f1(predicted, true), "matthews": matthews(predicted, true)}


def accuracy(predicted: np.ndarray, true: np.ndarray) -> float:
    """The share of predictions that are right."""
    return float((predicted == true).mean()) if len(true) else 0.0


def macro_f1(predicted: np.ndarray, true: np.ndarray) -> float:
    """The mean F1 of all classes that were predicted or are true, each weighing the same."""
    import numpy as np

    table = confusion(predicted, true)
    if not table.size:
        return 0.0
    return float(np.mean(2 * np.diag(table) / (table.sum(0) + table.sum(1))))  # a class that occurs has no 0 below the line


def matthews(predicted: np.ndarray, true: np.ndarray) -> float:
    """Matthews' correlation of any number of classes, -1 to 1: R_K of Gorodkin 2004."""
    import math

    import numpy as np

    table = confusion(predicted, true)
    total, by_true, by_predicted = table.sum(), table.sum(1), table.sum(0)
    both = float(np.trace(table) * total - by_true @ by_predicted)
    spread = float(total**2 - by_true @ by_true), float(total**2 - by_predicted @ by_predicted)
    return both / math.sqrt(spread[0] * spread[1]) if all(spread) else 0.0


def confusion(predicted: np.ndarray, true: np.ndarray) -> np.ndarray:
    """(K, K) numbers of samples by true and by predicted class, for the classes that occur."""
    import numpy as np

    classes, numbers = np.unique(np.concatenate([true, predicted]), return_inverse=True)
    rows, columns = numbers[: len(true)], numbers[len(true) :]
    return np.bincount(rows * len(classes) + columns, minlength=len(classes) ** 2).reshape(len(classes), len(classes)).astype(np.float64)


def pearson(predicted: np.ndarray, true: np.ndarray) -> float:
    """Pearson's correlation, -1 to 1; 0 where one side does not vary: nothing is explained then (scipy gives NaN)."""
    import numpy as np

    if len(true) < 2 or (predicted == predicted[0]).all() or (true == true[0]).all():
        return 0.0
    a, b = predicted - predicted.mean(), true - true.mean()
    # Each made of length 1 first: the product of two tiny sums of squares would be 0.
    return float(np.clip((a / np.linalg.norm(a)) @ (b / np.linalg.norm(b)), -1, 1))


def spearman(predicted: np.ndarray, true: np.ndarray) -> float:
    """Pearson's correlation of the ranks."""
    return pearson(ranks(predicted), ranks(true))


def ranks(values: np.ndarray) -> np.ndarray:
    """(N,) ranks from 1; equal values share the mean of theirs."""
    import numpy as np

    _, of, counts = np.unique(values, return_inverse=True, return_counts=True)
    found: np.ndarray = (np.cumsum(counts) - (counts - 1) / 2)[of]
    return found


def rmse(predicted: np.ndarray, true: np.ndarray) -> float:
    """The root of the mean squared error, in units of the scores."""
    import numpy as np

    return float(np.sqrt(np.mean((predicted - true) ** 2))) if len(true) else 0.0


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities (K,) of logits (K,)."""
    import numpy as np

    powers = np.exp(logits - logits.max())
    shares: np.ndarray = powers / powers.sum()
    return shares
