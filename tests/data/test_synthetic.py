"""Toy text: seeded, and with something to learn in it."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmtrain.config import build
from llmtrain.data import store
from llmtrain.data.base import SPLITS, Data, Target
from llmtrain.data.synthetic import ADJECTIVES, KINDS, NOUNS, VERBS, Synthetic
from llmtrain.errors import ConfigError

DEFAULTS: dict[str, Any] = {
    "kind": "synthetic",
    "documents": 200,
    "words": 40,
    "pairs": False,
    "seed": 0,
    "max_length": 32,
    "short_length": None,
    "short_fraction": 0.9,
    "validation_fraction": 0.1,
    "test_fraction": 0.1,
    "on_overlap": "warn",
    "num_workers": 0,
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMTRAIN_CACHE", str(tmp_path))


def synthetic(**settings: Any) -> Synthetic:
    built = build(DEFAULTS | settings, Data, "data")  # type: ignore[type-abstract]
    assert isinstance(built, Synthetic)
    return built


def texts(**settings: Any) -> list[str]:
    return list(synthetic(**settings).source("train")["text"])


def test_the_number_and_length_of_documents_are_as_asked() -> None:
    lengths = [len(text.split()) for text in texts()]
    assert len(lengths) == 200
    assert min(lengths) >= 20
    assert max(lengths) <= 60 + 9  # the last sentence is finished
    assert len(set(lengths)) > 3


def test_one_seed_gives_one_text_and_another_seed_another() -> None:
    one, again, other = (synthetic(seed=seed).split("train") for seed in (0, 0, 1))
    assert store.fingerprint(one) == store.fingerprint(again) != store.fingerprint(other)


def test_more_documents_leave_the_first_ones_as_they_are() -> None:
    assert texts(documents=300)[:200] == texts()


def test_an_adjective_tells_its_noun_and_a_noun_its_verb() -> None:
    words = " ".join(texts()).split()
    pairs = list(pairwise(words))
    assert all(NOUNS.index(b) == ADJECTIVES.index(a) for a, b in pairs if a in ADJECTIVES)
    assert all(VERBS.index(b) == NOUNS.index(a) for a, b in pairs if a in NOUNS and b in VERBS)


def test_all_three_splits_have_documents() -> None:
    assert all(len(synthetic().split(name)) for name in ("train", "validation", "test"))


@pytest.mark.parametrize(("key", "value"), [("documents", 0), ("words", 0), ("seed", -1), ("seed", 2**32)])
def test_a_setting_out_of_range_is_a_config_error(key: str, value: int) -> None:
    with pytest.raises(ConfigError, match=rf"data\.{key}={value}"):
        synthetic(**{key: value})


# --- labelled rows ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("target", Target)
def test_every_row_has_its_answer_and_every_split_has_rows(target: Target, pairs: bool) -> None:
    data = synthetic(pairs=pairs)
    found = {name: data.labelled(name, target) for name in SPLITS}
    assert sum(map(len, found.values())) == 200
    assert min(map(len, found.values())) > 5
    answers = {Target.label: ["key", "label"], Target.score: ["key", "score"], Target.choice: ["choices", "key", "label"]}[target]
    assert found["train"].column_names == ["text", *(["second"] if pairs else []), *answers]


def test_there_are_three_classes_of_about_equal_size() -> None:
    rows = synthetic().labelled("train", Target.label)
    assert rows.features["label"].names == sorted(KINDS)
    assert np.bincount(rows["label"]).min() > len(rows) / 5


@pytest.mark.parametrize("target", Target)
def test_one_seed_gives_one_set_of_labelled_rows_and_another_seed_another(target: Target) -> None:
    one, again, other = (synthetic(seed=seed).labelled("train", target) for seed in (0, 0, 1))
    assert store.fingerprint(one) == store.fingerprint(again) != store.fingerprint(other)


def split(name: str, target: Target) -> tuple[list[str], list[float]]:
    """Texts that a bag of words reads, and what it is to find."""
    rows = synthetic(documents=400, pairs=True).labelled(name, target)
    if target is Target.choice:  # one row for each choice: is it the right one?
        return [c for row in rows for c in row["choices"]], [float(row["label"] == i) for row in rows for i in range(2)]
    return [f"{row['text']} {row['second']}" for row in rows], list(rows["score" if target is Target.score else "label"])


@pytest.mark.parametrize("target", Target)
def test_a_bag_of_words_learns_the_answers(target: Target) -> None:
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.pipeline import make_pipeline

    judge = make_pipeline(CountVectorizer(), Ridge() if target is Target.score else LogisticRegression())
    judge.fit(*split("train", target))
    assert judge.score(*split("validation", target)) > 0.85  # accuracy; for scores, the share of the variance
