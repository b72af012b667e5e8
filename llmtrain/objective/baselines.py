"""What a task gives without any pretrained model: the most frequent answer, and linear models of the words that occur.

A bag of words is scikit-learn's CountVectorizer and LogisticRegression (Ridge for scores) with their own defaults; the words of
a pair's second text are other words than those of its first. Trained on the training rows alone, computed once and kept.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmtrain.data.base import Target
from llmtrain.objective import scores, tasks
from llmtrain.objective.base import IGNORED

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset

LIMIT = 50_000  # training rows of a bag of words, drawn at random where there are more
STEPS = 1000  # of LogisticRegression
WORD = re.compile(r"(?u)\b\w\w+\b")  # as CountVectorizer finds them
MARKS = ("", "second: ", "shared: ")  # what words of a row's first text, of its second, and of both are known by

Texts = tuple[str, ...]


def classification(train: Dataset, judged: Dataset) -> dict[str, float]:
    """Accuracy, macro F1 and Matthews' correlation on `judged` of the class that `train` has most of, and of a bag of words."""
    return _kept("classification", _classification, train, judged)


def regression(train: Dataset, judged: Dataset) -> dict[str, float]:
    """Root mean squared error on `judged` of the mean of `train`, and of a bag of words, with its correlations."""
    return _kept("regression", _regression, train, judged)


def multiple_choice(train: Dataset, judged: Dataset) -> dict[str, float]:
    """Accuracy on `judged` of drawing lots, of the place that `train` has most right answers in, and of a bag of words."""
    return _kept("multiple_choice", _multiple_choice, train, judged)


def _kept(name: str, make: Callable[[Dataset, Dataset], dict[str, float]], train: Dataset, judged: Dataset) -> dict[str, float]:
    from datasets import Features, Value

    from llmtrain import files
    from llmtrain.data import store

    parts = {
        "of": name,
        "train": store.fingerprint(train),
        "judged": store.fingerprint(judged),
        "scikit-learn": version("scikit-learn"),
        "code": [files.sha256(Path(str(module.__file__))) for module in (scores, tasks)],
    }

    def rows() -> Iterator[dict[str, Any]]:
        for key, value in make(train, judged).items():
            yield {"name": key, "value": value}

    found = store.stored("baselines", parts, rows, Features({"name": Value("string"), "value": Value("float64")}))
    return {row["name"]: row["value"] for row in found}


def _classification(train: Dataset, judged: Dataset) -> dict[str, float]:
    import numpy as np

    (texts, labels), (asked, true) = _answered(train, Target.label, LIMIT), _answered(judged, Target.label)
    if not len(labels) or not len(true):
        return {}
    found = {"majority": np.full(len(true), np.bincount(labels).argmax())}
    if (score := _logistic(texts, labels, asked)) is not None:
        classes = np.unique(labels)
        found["bag_of_words"] = classes[score.argmax(1)]
    return {f"{who}_{what}": value for who, predicted in found.items() for what, value in scores.of_classes(predicted, true).items()}


def _regression(train: Dataset, judged: Dataset) -> dict[str, float]:
    import numpy as np
    from sklearn.linear_model import Ridge

    (texts, given), (asked, true) = _answered(train, Target.score, LIMIT), _answered(judged, Target.score)
    if not len(given) or not len(true):
        return {}
    found = {"mean_rmse": scores.rmse(np.full(len(true), given.mean()), true)}
    if (counted := _counted(texts, asked)) is not None:
        predicted = Ridge().fit(counted[0], given).predict(counted[1])
        judges = {"rmse": scores.rmse, "pearson": scores.pearson, "spearman": scores.spearman}
        found |= {f"bag_of_words_{what}": judge(predicted, true) for what, judge in judges.items()}
    return found


def _multiple_choice(train: Dataset, judged: Dataset) -> dict[str, float]:
    """The bag of words tells right choices from wrong ones by their words and by those that the text has too; the best one of a row counts."""
    import numpy as np

    (texts, labels), (asked, true) = _answered(train, Target.choice, LIMIT), _answered(judged, Target.choice)
    if not len(labels) or not len(true):
        return {}
    numbers = np.array([len(row) for row in asked])
    place = int(np.bincount(labels).argmax())
    found = {"chance_accuracy": float((1 / numbers).mean()), "majority_accuracy": scores.accuracy(np.full(len(true), place), true)}
    right = np.array([int(i == label) for row, label in zip(texts, labels, strict=True) for i in range(len(row))])
    flat = [[choice for row in of for choice in row] for of in (texts, asked)]
    if (score := _logistic(flat[0], right, flat[1])) is not None:
        rows = np.split(score[:, 1], np.cumsum(numbers)[:-1])
        found["bag_of_words_accuracy"] = scores.accuracy(np.array([row.argmax() for row in rows]), true)
    return found


def _answered(rows: Dataset, target: Target, limit: int | None = None) -> tuple[list[Any], np.ndarray]:
    """Texts and answers of the rows that have one, at most `limit` of them: a row's texts, or a pair of words for each of its choices."""
    import numpy as np

    from llmtrain.seeding import generator

    given = tasks.answers(rows, target)
    kept = np.flatnonzero(~np.isnan(given) if target is Target.score else given != IGNORED)
    if limit is not None and len(kept) > limit:
        kept = np.sort(generator(0, "baselines").choice(kept, limit, replace=False))
    chosen = rows.select(kept)
    first, second = chosen["text"], chosen["second"] if "second" in chosen.column_names else None
    if target is not Target.choice:
        return [(a,) if second is None else (a, second[i]) for i, a in enumerate(first)], given[kept]
    contexts = [a if second is None else f"{a} {second[i]}" for i, a in enumerate(first)]
    return [[("", choice, _shared(context, choice)) for choice in row] for context, row in zip(contexts, chosen["choices"], strict=True)], given[kept]


def _shared(context: str, choice: str) -> str:
    return " ".join(sorted(set(WORD.findall(context.lower())) & set(WORD.findall(choice.lower()))))


def words(texts: Texts) -> list[str]:
    """The words of a row, those of each of its texts marked apart."""
    return [mark + word for mark, text in zip(MARKS, texts, strict=False) for word in WORD.findall(text.lower())]


def _counted(train: list[Texts], judged: list[Texts]) -> tuple[Any, Any] | None:
    """How often each word of the training rows occurs, in these and in those that are judged: sparse matrices. None without any word."""
    from sklearn.feature_extraction.text import CountVectorizer

    if not any(map(words, train)):
        return None
    vectorizer = CountVectorizer(analyzer=words)
    return vectorizer.fit_transform(train), vectorizer.transform(judged)


def _logistic(train: list[Texts], labels: np.ndarray, judged: list[Texts]) -> np.ndarray | None:
    """Probabilities (judged rows, classes that occur) of a bag of words; None where there is nothing to tell apart."""
    import numpy as np
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    counted = _counted(train, judged)
    if counted is None or len(np.unique(labels)) < 2:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # STEPS are plenty for a number to hold others against
        model = LogisticRegression(max_iter=STEPS).fit(counted[0], labels)
    probabilities: np.ndarray = model.predict_proba(counted[1])
    return probabilities
