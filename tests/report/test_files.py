"""A report on the disk: whole files, in the right folder, over nothing that is not a report."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from llmtrain import files as disk
from llmtrain.errors import ConfigError, DeviceError
from llmtrain.report import files
from tests.report import samples

NAMES = ["results.csv", "report.md", "report.html"]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_three_files_are_written_and_nothing_else(tmp_path: Path) -> None:
    assert [path.name for path in files.save(samples.freezing(), tmp_path / "new" / "folder")] == NAMES
    assert sorted(contents(tmp_path / "new" / "folder")) == sorted(NAMES)


def test_written_again_the_bytes_are_the_same(tmp_path: Path) -> None:
    """I08."""
    files.save(samples.freezing(), tmp_path)
    first = contents(tmp_path)
    files.save(samples.freezing(), tmp_path)
    assert contents(tmp_path) == first


@pytest.mark.parametrize("made", [samples.freezing, samples.hostile, samples.pretraining, samples.single], ids=lambda f: f.__name__)
def test_a_report_of_ours_is_replaced(tmp_path: Path, made: Any) -> None:
    files.save(made(), tmp_path)
    files.save(samples.freezing(seeds=2), tmp_path)
    assert "n = 2" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("content", [b"", b"<html>mine</html>", b"a,b\n1,2\n", b"\xff\xfe\x00"])
def test_a_file_that_is_no_report_is_never_overwritten(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match="was not written by `llmtrain report`") as caught:
        files.save(samples.freezing(), tmp_path)
    assert name in caught.value.what
    assert contents(tmp_path) == {name: content}


@pytest.mark.parametrize("kind", ["folder", "broken link"])
def test_what_is_no_file_is_not_replaced_either(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "report.html"
    path.mkdir() if kind == "folder" else path.symlink_to(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"report\.html"):
        files.save(samples.freezing(), tmp_path)


def test_a_write_that_fails_leaves_the_old_report_and_no_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files.save(samples.freezing(), tmp_path)
    first = contents(tmp_path)
    write = disk.write

    def full(path: Path, data: bytes) -> None:
        write(path, data[: len(data) // 2])
        raise DeviceError("disk full")

    monkeypatch.setattr(disk, "write", full)
    with pytest.raises(DeviceError):
        files.save(samples.freezing(seeds=1), tmp_path)
    assert contents(tmp_path) == first


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DeviceError, match="file"):
        files.save(samples.freezing(), tmp_path / "file" / "folder")


@pytest.mark.parametrize("name", ["sweep.json", "run.json", "config.yaml"])
def test_one_sweep_or_one_run_keeps_its_report_itself(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("{}")
    assert files.home([tmp_path]) == tmp_path


def test_what_is_gathered_from_several_places_goes_to_a_folder_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    assert files.home([tmp_path, tmp_path]) == Path("report")
    assert files.home([tmp_path / "runs"]) == Path("report")


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Runs come from samples instead of from the disk; the list keeps what was asked for."""
    from llmtrain.report import runs, study

    asked: list[Any] = []

    def gathered(paths: Sequence[Path]) -> list[Path]:
        asked.append(list(paths))
        return list(paths)

    def compared(found: Any, **options: Any) -> Any:
        asked.append(options)
        return samples.freezing()

    monkeypatch.setattr(runs, "read", gathered)
    monkeypatch.setattr(study, "study", compared)
    return asked


def test_reading_comparing_writing_and_showing_are_one_call(tmp_path: Path, read: list[Any]) -> None:
    (tmp_path / "sweep.json").write_text("{}")
    out = io.StringIO()
    found = files.write([tmp_path], metric="accuracy", reference="full", console=Console(file=out, width=80))
    assert found.title == "freezing-distilbert"
    assert read == [[tmp_path], {"metric": "accuracy", "reference": "full"}]
    lines = out.getvalue().splitlines()
    assert lines[-3:] == [str(tmp_path / name) for name in NAMES]
    assert any(line.startswith("*  last 4 blocks") for line in lines)


def test_a_foreign_file_is_found_before_anything_is_read(tmp_path: Path, read: list[Any]) -> None:
    (tmp_path / "report.html").write_text("mine")
    with pytest.raises(ConfigError):
        files.write([tmp_path], tmp_path)
    assert read == []


def test_what_is_written_is_readable_by_others(tmp_path: Path) -> None:
    files.save(samples.freezing(), tmp_path)
    umask = os.umask(0)
    os.umask(umask)
    assert all((tmp_path / name).stat().st_mode & 0o777 == 0o666 & ~umask for name in NAMES)
