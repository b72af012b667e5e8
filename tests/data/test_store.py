"""What the store promises: made once, verified, safe with several builders and with dead ones."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from datasets import Features, List, Value

from llmtrain.data import store
from llmtrain.errors import DataError, DeviceError

ROWS = [{"text": f"row {i}", "n": i} for i in range(50)]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LLMTRAIN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def entry(cache: Path, name: str = "things") -> Path:
    return next(path for path in (cache / name).iterdir() if path.is_dir())


def never() -> list[dict[str, Any]]:
    raise AssertionError("made again")


# --- where it is --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"LLMTRAIN_CACHE": "one", "XDG_CACHE_HOME": "two"}, "one"),
        ({"XDG_CACHE_HOME": "two"}, "two/llmtrain"),
        ({}, "home/.cache/llmtrain"),
    ],
)
def test_the_root_is_the_first_of_three_places(variables: dict[str, str], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LLMTRAIN_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name, value in variables.items():
        monkeypatch.setenv(name, str(tmp_path / value))
    assert store.root() == tmp_path / expected
    assert store.root().is_dir()


def test_a_root_that_cannot_be_written_is_a_device_error_with_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LLMTRAIN_CACHE", str(tmp_path / "file" / "below"))
    with pytest.raises(DeviceError, match="below cannot be written") as caught:
        store.root()
    assert caught.value.exit_code == 6
    assert "LLMTRAIN_CACHE" in str(caught.value.fix)


# --- made once ----------------------------------------------------------------------------------------------------


def test_rows_come_back_as_they_were_made() -> None:
    assert store.stored("things", {}, lambda: ROWS).to_list() == ROWS


def test_rows_are_made_once() -> None:
    calls = []

    def make() -> list[dict[str, Any]]:
        calls.append(1)
        return ROWS

    first, second = (store.stored("things", {"a": 1}, make).to_list() for _ in range(2))
    assert first == second
    assert len(calls) == 1


@pytest.mark.parametrize(("name", "parts"), [("things", {"a": 2}), ("others", {"a": 1}), ("things", {"a": 1, "b": None})])
def test_other_parts_or_another_name_are_other_rows(name: str, parts: dict[str, Any]) -> None:
    store.stored("things", {"a": 1}, lambda: ROWS)
    assert store.stored(name, parts, lambda: ROWS[:3]).to_list() == ROWS[:3]


@pytest.mark.parametrize("what", ["version", "_code"])
def test_another_library_version_or_other_code_makes_the_rows_again(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store.stored("things", {}, lambda: ROWS)
    monkeypatch.setattr(store, what, lambda _: "another")
    assert len(store.stored("things", {}, lambda: ROWS[:3])) == 3


def test_rows_of_many_batches_keep_their_order_and_content(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "BATCH_BYTES", 100)
    rows = store.stored("things", {}, lambda: ROWS)
    assert rows.data.column("n").num_chunks >= 10
    assert rows.to_list() == ROWS


def test_features_decide_the_types_of_the_columns() -> None:
    features = Features({"ids": List(Value("int32"))})
    rows = store.stored("ids", {}, lambda: [{"ids": [1, 2]}, {"ids": []}], features)
    assert rows.features == features
    assert rows.to_list() == [{"ids": [1, 2]}, {"ids": []}]


def test_what_a_generator_returns_is_kept_as_facts() -> None:
    def make() -> Iterator[dict[str, Any]]:
        yield from ROWS
        return {"skipped": 7}

    store.stored("things", {}, make)
    assert store.facts(store.stored("things", {}, make)) == {"skipped": 7, "rows": len(ROWS)}


def test_no_rows_are_kept_where_features_say_what_a_row_is() -> None:
    rows = store.stored("things", {}, list, Features({"text": Value("string")}))
    assert (len(rows), rows.column_names) == (0, ["text"])


def test_no_rows_without_features_are_a_data_error() -> None:
    with pytest.raises(DataError, match="no rows"):
        store.stored("things", {}, list)


# --- fingerprints -------------------------------------------------------------------------------------------------


def test_equal_rows_have_one_fingerprint_whatever_they_were_made_from() -> None:
    one, other = (store.stored("things", {"from": i}, lambda: ROWS) for i in range(2))
    assert store.fingerprint(one) == store.fingerprint(other)


def test_the_fingerprint_survives_reopening() -> None:
    assert store.fingerprint(store.stored("things", {}, lambda: ROWS)) == store.fingerprint(store.stored("things", {}, lambda: ROWS))


@pytest.mark.parametrize("other", [ROWS[:-1], ROWS[::-1], [*ROWS[:-1], {"text": "row 49", "n": 50}]])
def test_other_rows_have_another_fingerprint(other: list[dict[str, Any]]) -> None:
    one, two = store.stored("things", {"a": 1}, lambda: ROWS), store.stored("things", {"a": 2}, lambda: other)
    assert store.fingerprint(one) != store.fingerprint(two)


def test_what_is_selected_from_rows_does_not_keep_their_fingerprint() -> None:
    rows = store.stored("things", {}, lambda: ROWS)
    assert store.fingerprint(rows.select(range(3))) != store.fingerprint(rows)
    assert store.fingerprint(rows.select(range(3))) == store.fingerprint(rows.select(range(3)))


# --- damage (B28) -------------------------------------------------------------------------------------------------


def truncate(entry: Path) -> None:
    (entry / store.ROWS).write_bytes((entry / store.ROWS).read_bytes()[:-100])


def flip_a_bit(entry: Path) -> None:
    content = bytearray((entry / store.ROWS).read_bytes())
    content[len(content) // 2] ^= 1
    (entry / store.ROWS).write_bytes(content)


def set_format(entry: Path) -> None:
    manifest = json.loads((entry / "manifest.json").read_text())
    (entry / "manifest.json").write_text(json.dumps(manifest | {"format": 99}))


def garble(entry: Path) -> None:
    (entry / "manifest.json").write_text("{")


def empty(entry: Path) -> None:
    (entry / store.ROWS).unlink()
    (entry / "manifest.json").unlink()


DAMAGE: list[tuple[Callable[[Path], None], str]] = [
    (truncate, "bytes instead of"),
    (flip_a_bit, "sha256 differs"),
    (set_format, "format 99"),
    (garble, "cannot be read"),
    (empty, "manifest.json is missing"),
]


@pytest.mark.parametrize(("damage", "why"), DAMAGE)
def test_b28_damaged_rows_are_made_again_with_one_line_that_says_why(damage: Callable[[Path], None], why: str, cache: Path) -> None:
    said: list[str] = []
    store.stored("things", {}, lambda: ROWS)
    damage(entry(cache))
    assert store.stored("things", {}, lambda: ROWS, say=said.append).to_list() == ROWS
    assert len(said) == 1
    assert why in said[0]


@pytest.mark.parametrize(("damage", "why"), DAMAGE)
def test_b28_rows_that_were_made_again_are_used_from_then_on(damage: Callable[[Path], None], why: str, cache: Path) -> None:
    said: list[str] = []
    make = iter([ROWS, ROWS])
    for _ in range(4):
        store.stored("things", {}, lambda: next(make), say=said.append)
        if not said:
            damage(entry(cache))
    assert len(said) == 1


def test_without_a_listener_the_reason_goes_to_the_log(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    store.stored("things", {}, lambda: ROWS)
    truncate(entry(cache))
    with caplog.at_level(logging.WARNING, "llmtrain"):
        store.stored("things", {}, lambda: ROWS)
    assert "things is made again" in caplog.text


# --- several builders, dead builders, full disks ------------------------------------------------------------------


def test_an_error_while_making_passes_through_and_leaves_nothing(cache: Path) -> None:
    def make() -> Iterator[dict[str, Any]]:
        yield ROWS[0]
        raise DataError("bad row")

    with pytest.raises(DataError, match="bad row"):
        store.stored("things", {}, make)
    assert [path.name for path in (cache / "things").iterdir() if not path.name.endswith(".lock")] == []


BUILDER = """
    import sys, time
    from pathlib import Path
    from llmtrain.data import store

    def make():
        with open(sys.argv[1], "a") as log:
            log.write("made\\n")
        for i in range(100):
            yield {"n": i}
            time.sleep(float(sys.argv[2]))

    print(store.fingerprint(store.stored("things", {"builder": 1}, make)), flush=True)
"""


def builder(tmp_path: Path, seconds_per_row: float, before: str = "") -> subprocess.Popen[str]:
    script = tmp_path / "builder.py"
    script.write_text(textwrap.dedent(before) + textwrap.dedent(BUILDER))
    environment = os.environ | {"PYTHONPATH": str(Path(store.__file__).parents[2])}
    command = [sys.executable, str(script), str(tmp_path / "log"), str(seconds_per_row)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(path: Path) -> None:
    while not path.exists():
        time.sleep(0.05)


def test_of_two_builders_one_makes_the_rows_and_both_have_them(tmp_path: Path) -> None:
    results = [process.communicate() for process in [builder(tmp_path, 0.01), builder(tmp_path, 0.01)]]
    assert (tmp_path / "log").read_text() == "made\n"
    assert results[0][0] == results[1][0] != ""


def test_b30_a_builder_that_was_killed_holds_up_nobody_and_leaves_nothing(tmp_path: Path, cache: Path) -> None:
    with builder(tmp_path, 1000) as killed:
        wait_for(tmp_path / "log")
        killed.send_signal(signal.SIGKILL)
    assert list((cache / "things").glob(".tmp-*"))  # the guard: it was killed in the middle
    with builder(tmp_path, 0) as next_one:
        assert next_one.communicate()[0].strip()
    assert not list((cache / "things").glob(".tmp-*"))


def test_a_full_disk_is_a_device_error_and_leaves_nothing(tmp_path: Path, cache: Path) -> None:
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200))"
    with builder(tmp_path, 0, limit) as process:
        errors = process.communicate()[1]
    assert "DeviceError" in errors
    assert not [path for path in (cache / "things").iterdir() if path.is_dir()]


@pytest.mark.parametrize(("age_s", "kept"), [(3600, True), (25 * 3600, False)])
def test_what_others_were_building_is_removed_after_a_day(age_s: float, kept: bool, cache: Path) -> None:
    other = cache / "things" / ".tmp-other-1"
    other.mkdir(parents=True)
    os.utime(other, (time.time() - age_s,) * 2)
    store.stored("things", {}, lambda: ROWS)
    assert other.exists() == kept
