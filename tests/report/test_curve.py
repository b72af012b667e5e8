"""loss.png shows what metrics.jsonl holds."""

from __future__ import annotations

from pathlib import Path

from llmtrain.report.curve import draw, records


def test_a_picture_is_drawn_from_the_records(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "tokens": 10, "loss_next_token": 3.0}\n{"step": 1, "tokens": 10, "validation_loss": 3.1}\n')
    path = draw(tmp_path, {"unigram_entropy": 5.0})
    assert path is not None
    assert path.read_bytes()[:4] == b"\x89PNG"


def test_a_run_without_records_has_no_picture(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("")
    assert draw(tmp_path, {}) is None
    assert records(tmp_path / "none.jsonl") == []


def test_a_picture_is_drawn_of_the_file_that_the_run_wrote(tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_text('{"step": 1, "tokens": 10, "loss_next_token": 3.0}\n')
    assert draw(tmp_path, {}) is None
    assert draw(tmp_path, {}, "m.jsonl") is not None
