"""What a task gives without a pretrained model: scikit-learn's own numbers, computed once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, List, Value
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import matthews_corrcoef

from llmtrain.objective import baselines
from tests.conftest import realdata

WORDS = np.array(["alpha", "beta", "gamma", "delta", "good", "bad", "fine", "dull", "epsilon", "zeta"])


def texts(number: int, seed: int) -> list[str]:
    draw = np.random.default_rng(seed)
    return [" ".join(WORDS[draw.integers(0, len(WORDS), 6)]) for _ in range(number)]


def labelled(given: list[str], labels: list[Any], second: list[str] | None = None, names: tuple[str, ...] = ("no", "yes")) -> Dataset:
    columns: dict[str, Any] = {"text": given, "label": labels, **({} if second is None else {"second": second})}
    return Dataset.from_dict(columns, features=Features({k: ClassLabel(names=list(names)) if k == "label" else Value("string") for k in columns}))


def sentiment(number: int, seed: int) -> Dataset:
    given = texts(number, seed)
    return labelled(given, [int(text.count("good") + text.count("fine") >= text.count("bad") + text.count("dull")) for text in given])


def test_the_bag_of_words_is_scikit_learns(token_cache: Path) -> None:
    train, judged = sentiment(80, 0), sentiment(50, 1)
    found = baselines.classification(train, judged)
    vectorizer = CountVectorizer()
    model = LogisticRegression(max_iter=1000).fit(vectorizer.fit_transform(train["text"]), train["label"])
    assert found["bag_of_words_accuracy"] == model.score(vectorizer.transform(judged["text"]), judged["label"])
    assert found["bag_of_words_accuracy"] > found["majority_accuracy"] + 0.1
    assert found["bag_of_words_matthews"] == pytest.approx(matthews_corrcoef(judged["label"], model.predict(vectorizer.transform(judged["text"]))))


def test_the_majority_is_that_of_the_training_rows() -> None:
    train, judged = labelled(texts(4, 0), [1, 1, 1, 0]), labelled(texts(5, 1), [0, 0, 0, 1, 0])
    found = baselines.classification(train, judged)
    assert found["majority_accuracy"] == 0.2
    assert found["majority_macro_f1"] == pytest.approx((0 + 2 / 6) / 2)
    assert found["majority_matthews"] == 0


def test_a_word_of_the_second_text_is_another_word_than_of_the_first() -> None:
    draw = np.random.default_rng(0)
    first = draw.integers(0, 2, 60)
    swapped = [np.where(first == k, "good morning", "bad morning").tolist() for k in (1, 0)]
    rows = labelled(swapped[0], first.tolist(), second=swapped[1])
    assert baselines.classification(rows, rows)["bag_of_words_accuracy"] == 1.0
    assert baselines.words(("Good day", "good day")) == ["good", "day", "second: good", "second: day"]


def test_classes_keep_their_numbers_where_one_has_no_training_row() -> None:
    rows = labelled(["good", "bad", "good", "bad"], [0, 2, 0, 2], names=("a", "b", "c"))
    assert baselines.classification(rows, rows)["bag_of_words_accuracy"] == 1.0


@pytest.mark.parametrize(
    ("given", "labels"), [(["good", "bad"], [1, 1]), (["", "!"], [0, 1]), (["a", "b"], [0, 1])], ids=["one class", "no words", "no word of two letters"]
)
def test_where_nothing_can_be_learned_the_majority_is_left(given: list[str], labels: list[int]) -> None:
    assert set(baselines.classification(labelled(given, labels), sentiment(9, 0))) == {"majority_accuracy", "majority_macro_f1", "majority_matthews"}


def test_rows_without_an_answer_are_left_out() -> None:
    train, judged = sentiment(40, 0), sentiment(20, 1)
    more = labelled([*judged["text"], *texts(5, 7)], [*judged["label"], *[None] * 5])
    assert baselines.classification(train, more) == baselines.classification(train, judged)
    assert baselines.classification(train, labelled(texts(2, 0), [None, None])) == {}


def scored(number: int, seed: int) -> Dataset:
    given = texts(number, seed)
    return Dataset.from_dict({"text": given, "score": [float(text.count("good") * 2 - text.count("bad")) for text in given]})


def test_scores_are_held_against_the_mean_and_a_ridge() -> None:
    train, judged = scored(80, 0), scored(40, 1)
    found, true, mean = baselines.regression(train, judged), np.array(judged["score"]), np.mean(train["score"])
    assert found["mean_rmse"] == pytest.approx(np.sqrt(((true - mean) ** 2).mean()))
    vectorizer = CountVectorizer()
    predicted = Ridge().fit(vectorizer.fit_transform(train["text"]), train["score"]).predict(vectorizer.transform(judged["text"]))
    assert found["bag_of_words_pearson"] == pytest.approx(np.corrcoef(predicted, true)[0, 1], abs=1e-6)
    assert found["bag_of_words_rmse"] < found["mean_rmse"] / 2


def choices(number: int, seed: int) -> Dataset:
    """The right choice repeats a word of the text; rows have two or three choices."""
    draw, rows = np.random.default_rng(seed), []
    for i in range(number):
        drawn = draw.permutation(WORDS)
        label = int(draw.random() < 0.3)
        options = [drawn[5 + k] for k in range(2 + i % 2)]
        options[label] = drawn[0]
        rows.append({"text": " ".join(drawn[:4]), "choices": options, "label": label})
    kinds = {"text": Value("string"), "choices": List(Value("string")), "label": Value("int64")}
    return Dataset.from_list(rows, features=Features(kinds))


def test_choices_are_held_against_lots_the_usual_place_and_their_words() -> None:
    train, judged = choices(60, 0), choices(40, 1)
    found = baselines.multiple_choice(train, judged)
    assert found["chance_accuracy"] == pytest.approx((1 / 2 + 1 / 3) / 2)
    assert found["majority_accuracy"] == list(judged["label"]).count(0) / 40
    assert found["bag_of_words_accuracy"] == 1.0


def test_they_are_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    train, judged = sentiment(30, 4), sentiment(30, 5)
    first = baselines.classification(train, judged)
    monkeypatch.setattr(baselines, "_logistic", lambda *given: pytest.fail("computed again"))
    assert baselines.classification(train, judged) == first


def test_of_very_many_training_rows_a_fixed_draw_is_taken_and_of_those_that_are_judged_all() -> None:
    taken = [baselines._answered(sentiment(40, 0), baselines.Target.label, 10) for _ in range(2)]
    assert len(taken[0][0]) == len(taken[0][1]) == 10
    assert taken[0][0] == taken[1][0]
    assert len(baselines._answered(sentiment(40, 0), baselines.Target.label)[0]) == 40


@pytest.mark.realdata
def test_real_reviews_give_a_bag_of_words_what_is_known_of_them() -> None:
    folder = realdata("rt_polarity")

    def read(split: str) -> Dataset:
        rows = [json.loads(line) for line in (folder / f"{split}.jsonl").read_text().splitlines()]
        return labelled([row["text"] for row in rows], [int(row["label"] == "positive") for row in rows])

    assert baselines.classification(read("train"), read("test"))["bag_of_words_accuracy"] == pytest.approx(0.768, abs=0.01)
