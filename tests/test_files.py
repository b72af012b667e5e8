"""A folder is whole or not there; a manifest notices every changed byte."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from llmtrain import files


def make(target: Path) -> Path:
    with files.new_folder(target) as folder:
        files.write(folder / "a.bin", b"0123456789")
        files.write_manifest(folder, {"step": 1})
    return target


def test_a_new_folder_appears_whole_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    make(tmp_path / "x")
    assert files.problem(tmp_path / "x") is None
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_an_error_on_the_way_leaves_the_old_folder_and_no_new_one(tmp_path: Path) -> None:
    make(tmp_path / "x")
    with pytest.raises(RuntimeError), files.new_folder(tmp_path / "x") as folder:
        files.write(folder / "b.bin", b"half")
        raise RuntimeError
    assert sorted(p.name for p in (tmp_path / "x").iterdir()) == ["a.bin", "manifest.json"]
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("content", [b"new", None], ids=["replaced", "cut in two"])
def test_after_a_kill_a_folder_that_was_being_replaced_is_whole_and_what_was_begun_is_gone(tmp_path: Path, content: bytes | None) -> None:
    make(tmp_path / ".old-x")
    (tmp_path / ".tmp-y").mkdir()
    if content is not None:
        make(tmp_path / "x")
        (tmp_path / "x" / "a.bin").write_bytes(content)
    files.recover(tmp_path)
    assert (tmp_path / "x" / "a.bin").read_bytes() == (content or b"0123456789")
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_what_others_wrote_into_a_new_folder_is_synced_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: (synced.append(os.path.basename(os.readlink(f"/proc/self/fd/{handle}"))), real(handle)))
    with files.new_folder(tmp_path / "x") as folder:
        (folder / "tokenizer.json").write_text("{}")
    assert synced == ["tokenizer.json", ".tmp-x", tmp_path.name]


@pytest.mark.parametrize(
    ("data", "said"),
    [(b"012345678", "9 bytes instead of 10"), (b"0123456788", "sha256 differs"), (b"", "0 bytes"), (None, "missing")],
    ids=["cut", "flipped", "empty", "deleted"],
)
def test_a_changed_file_is_named(tmp_path: Path, data: bytes | None, said: str) -> None:
    path = make(tmp_path / "x") / "a.bin"
    path.unlink() if data is None else path.write_bytes(data)
    found = files.problem(tmp_path / "x")
    assert found is not None
    assert "a.bin" in found
    assert said in found


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"version": 1}', '{"version": 99, "files": {}}', "\x00"])
def test_a_manifest_that_says_nothing_is_a_problem(tmp_path: Path, content: str) -> None:
    (make(tmp_path / "x") / "manifest.json").write_text(content)
    assert files.problem(tmp_path / "x") is not None


def test_json_is_replaced_in_one_step(tmp_path: Path) -> None:
    (tmp_path / ".run.json.new").write_text("left by a process that was killed")
    files.write_json(tmp_path / "run.json", {"a": 1})
    files.write_json(tmp_path / "run.json", {"a": 2})
    assert json.loads((tmp_path / "run.json").read_text()) == {"a": 2}
    assert [p.name for p in tmp_path.iterdir()] == ["run.json"]


def test_several_files_have_one_hash_of_their_contents_in_their_order(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_text("1")
    two.write_text("2")
    found = files.sha256_of([one, two])
    assert files.sha256_of([one, tmp_path / "none", two]) == found
    assert files.sha256_of([two, one]) != found
    two.write_text("3")
    assert files.sha256_of([one, two]) != found


def test_e07_one_bit_of_a_manifest_is_seen_or_changes_nothing_that_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "step-00000004"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "state.json").write_bytes(b"{}")
    files.write_manifest(folder, {"step": 4})
    path = folder / files.MANIFEST
    whole = path.read_bytes()
    unseen = []
    for position in range(len(whole)):
        for bit in range(8):
            path.write_bytes(whole[:position] + bytes([whole[position] ^ 1 << bit]) + whole[position + 1 :])
            if files.problem(folder) is None:
                unseen.append(json.loads(path.read_text()))
    expected = json.loads(whole)
    assert all(found["files"] == expected["files"] and found["version"] == expected["version"] for found in unseen)
    assert len(unseen) < len(whole)  # of eight times as many flips: blanks, and `step`, which the folder's name and state.json have
