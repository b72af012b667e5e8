"""The model card says what ran."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from llmtrain.report import card
from tests.conftest import Train


def test_the_card_has_valid_front_matter_and_the_runs_numbers(train: Train, tmp_path: Path) -> None:
    run = train(tmp_path / "run")
    text = (run / "final" / "README.md").read_text()
    _, front, body = text.split("---\n", 2)
    assert yaml.safe_load(front) == {"library_name": "transformers", "tags": ["llmtrain", "next-token"]}
    assert "6 updates" in body
    assert "bits per byte" in body
    assert "Trained on what the config names and on nothing else" in body
    assert "The weights are those after update" not in body


def test_the_card_names_the_update_whose_weights_these_are_and_what_they_started_from(train: Train, tmp_path: Path) -> None:
    start = train(tmp_path / "start")
    further = ("model=checkpoint", f"model.checkpoint={start}", "optimizer.lr=1", "trainer.clip_norm=null")
    run = train(tmp_path / "run", *further, "evaluation.every_steps=1", "checkpoint.export=best")
    best = json.loads((run / "run.json").read_text())["best"]["step"]
    body = (run / "final" / "README.md").read_text()
    assert best < 6
    assert f"The weights are those after update {best}, the best by loss." in body
    assert "Trained from the weights of `start` on what the config names" in body
    assert str(tmp_path) not in body


@pytest.mark.parametrize(
    ("start", "named"), [("google-bert/bert-base-uncased", "google-bert/bert-base-uncased"), ("/home/me/mine/final", "mine"), ("/home/me/bert", "bert")]
)
def test_of_a_folder_the_card_has_its_name_alone(start: str, named: str) -> None:
    assert card._origin({"model": {"checkpoint": start}}).startswith(f"Trained from the weights of `{named}` ")
