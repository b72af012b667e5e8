"""The model card says what ran."""

from __future__ import annotations

from pathlib import Path

import yaml

from tests.conftest import Train


def test_the_card_has_valid_front_matter_and_the_runs_numbers(train: Train, tmp_path: Path) -> None:
    run = train(tmp_path / "run")
    text = (run / "final" / "README.md").read_text()
    _, front, body = text.split("---\n", 2)
    assert yaml.safe_load(front) == {"library_name": "transformers", "tags": ["llmtrain", "next-token"]}
    assert "6 updates" in body
    assert "bits per byte" in body
