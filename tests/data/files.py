"""`data=text` as tests of its documents and of its labelled rows build it."""

from __future__ import annotations

from typing import Any

from llmtrain.config import build
from llmtrain.data.base import Data
from llmtrain.data.text import Text

DEFAULTS: dict[str, Any] = {
    "kind": "text",
    "train": "train.txt",
    "validation": None,
    "test": None,
    "text_column": None,
    "second_column": None,
    "label_column": None,
    "choice_columns": None,
    "documents": "line",
    "encoding": "utf-8",
    "max_length": 16,
    "short_length": None,
    "short_fraction": 0.9,
    "validation_fraction": 0.1,
    "test_fraction": 0.1,
    "on_overlap": "warn",
    "num_workers": 0,
}


def text(**settings: Any) -> Text:
    built = build(DEFAULTS | settings, Data, "data")  # type: ignore[type-abstract]
    assert isinstance(built, Text)
    return built
