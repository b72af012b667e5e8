"""Members on this machine: each in a process of its own, told apart by how it ended, and none left behind."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import psutil
import pytest

from llmtrain.errors import DeviceError
from llmtrain.launcher import child, local
from llmtrain.launcher.base import Job, Start
from tests.launcher import jobs
from tests.launcher.conftest import ROOT, code_of
from tests.launcher.jobs import ended

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forkserver and /proc")
Make = Callable[..., Job]
LIGHT = "json"  # a module that takes no time, where what is imported does not matter


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[], Any]:
    """A launcher, to be opened."""
    monkeypatch.setattr(local, "PRELOAD", LIGHT)
    return lambda: local.Local(jobs=2).opened(tmp_path)


@pytest.fixture
def start(opened: Callable[[], Any]) -> Iterator[Start]:
    """An open launcher."""
    with opened() as starts:
        yield starts


# --- how a job ends ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "arguments", "code", "said"),
    [
        (jobs.returns, (0,), 0, ""),
        (jobs.returns, (3,), 3, ""),
        (jobs.refuses, (), 3, "error: row 7 has no label\nfix: give it one\n"),
        (jobs.fails, (), 1, "ValueError: a fault of ours"),
        (jobs.leaves, (4,), 4, ""),
        (jobs.leaves, (None,), 0, ""),
        (jobs.leaves, ("enough",), 1, "enough"),
        (jobs.is_interrupted, (), 130, "error: interrupted"),
        (jobs.dies, (signal.SIGKILL,), -9, ""),
        (jobs.dies, (signal.SIGSEGV,), -11, ""),
        (jobs.dies, (signal.SIGTERM,), -15, ""),
    ],
)
def test_every_way_to_end_has_its_exit_code_and_its_words_in_the_log(
    start: Start, job: Make, call: Callable[..., int], arguments: tuple[Any, ...], code: int, said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    made = job(call, *arguments)
    assert code_of(start(made)) == code
    assert said in made.log.read_text()
    assert bool(said) == bool(made.log.read_text())
    assert capfd.readouterr() == ("", "")


def test_a_job_whose_module_cannot_be_imported_says_so_in_its_log(start: Start, job: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone.py").write_text("def call():\n    return 0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    made = job(importlib.import_module("gone").call)
    (tmp_path / "gone.py").unlink()
    assert code_of(start(made)) == 1
    assert "No module named 'gone'" in made.log.read_text()


def test_the_log_has_what_the_job_and_its_children_print_in_order_and_is_appended_to(start: Start, job: Make) -> None:
    for word in ("one", "two"):
        code_of(start(job(jobs.speaks, word)))
    expected = [line for word in ("one", "two") for line in (f"out {word}", f"err {word} é", f"child {word}", f"bye {word}")]
    assert job(jobs.speaks).log.read_text(encoding="utf-8").splitlines() == expected


def test_a_job_ends_as_a_python_process_does(start: Start, job: Make) -> None:
    made = job(jobs.speaks_at_exit)
    assert code_of(start(made)) == 0
    assert made.log.read_text() == "at exit\n"


def test_a_stopped_job_saves_and_ends_with_75(start: Start, job: Make, tmp_path: Path) -> None:
    handle = start(job(jobs.saves, str(tmp_path / "note")))
    jobs.seen(tmp_path / "note")
    handle.stop()
    assert code_of(handle) == 75
    assert (tmp_path / "note.saved").exists()


def test_a_stopped_job_that_has_nothing_to_save_ends_by_the_signal(start: Start, job: Make, tmp_path: Path) -> None:
    handle = start(job(jobs.waits, str(tmp_path / "note")))
    jobs.seen(tmp_path / "note")
    handle.stop()
    assert code_of(handle) == -15


def test_a_job_that_is_stopped_at_once_ends_too(start: Start, job: Make, tmp_path: Path) -> None:
    handle = start(job(jobs.waits, str(tmp_path / "note")))
    handle.stop()
    assert code_of(handle) == -15


def test_stopping_and_killing_what_has_ended_does_nothing(start: Start, job: Make) -> None:
    handle = start(job(jobs.returns, 3))
    assert code_of(handle) == 3
    handle.stop()
    handle.kill()
    assert handle.poll() == 3


def test_jobs_run_at_the_same_time(start: Start, job: Make, tmp_path: Path) -> None:
    one, two = str(tmp_path / "one"), str(tmp_path / "two")
    handles = [start(job(jobs.meets, one, two, name="a")), start(job(jobs.meets, two, one, name="b"))]
    assert [code_of(handle) for handle in handles] == [0, 0]


# --- what a job is -------------------------------------------------------------------------------------------------


def test_a_job_is_a_fresh_process_with_the_directory_and_environment_of_its_sweep(
    start: Start, job: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "there")
    monkeypatch.setenv("LLMTRAIN_TEST_NEW", "new")
    monkeypatch.delenv("HF_HUB_OFFLINE")  # the server has it
    assert code_of(start(job(jobs.tells, str(tmp_path / "note")))) == 0
    facts = json.loads((tmp_path / "note").read_text())
    assert facts["cwd"] == str(tmp_path / "there")
    assert {name: facts["environment"].get(name) for name in os.environ} == dict(os.environ)
    assert "HF_HUB_OFFLINE" not in facts["environment"]
    assert facts["session"] == facts["pid"]  # so Ctrl-C in a terminal does not reach it
    assert facts["blocked"] == []
    assert facts["main"]
    assert facts["handler"]


def test_the_working_directory_is_not_imported_from(
    job: Make, opened: Callable[[], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("cwd")
    (folder / "colorsys.py").write_text(f"open({str(folder / 'ran')!r}, 'w').close()\n")
    monkeypatch.chdir(folder)
    monkeypatch.setattr(local, "PRELOAD", "colorsys")
    with opened() as start:
        assert code_of(start(job(jobs.tells, str(tmp_path / "note")))) == 0
    facts = json.loads((tmp_path / "note").read_text())
    assert "colorsys" in facts["modules"]
    assert not (folder / "ran").exists()
    assert "PYTHONSAFEPATH" not in facts["environment"]
    assert "PYTHONSAFEPATH" not in os.environ


def test_forked_jobs_compute_with_threads_and_tokenizers_side_by_side(job: Make, tmp_path: Path) -> None:
    with local.Local(jobs=3).opened(tmp_path) as start:
        for turn in range(2):
            handles = [start(job(jobs.computes, str(tmp_path / f"{turn}{n}"), name=f"{turn}{n}")) for n in range(3)]
            assert [code_of(handle) for handle in handles] == [0, 0, 0]
            assert {(tmp_path / f"{turn}{n}").read_text() for n in range(3)} == {f"{20 * 256 * 256 * 64.0} 2"}
        assert code_of(start(job(jobs.tells, str(tmp_path / "note"), name="facts"))) == 0
    assert [log.read_text() for log in tmp_path.glob("*.log") if log.read_text()] == []  # no warning of a fork either
    imported = set(json.loads((tmp_path / "note").read_text())["modules"])
    assert {"torch", "accelerate", "datasets", "transformers.models.bert.modeling_bert", "transformers.models.gpt2.modeling_gpt2"} <= imported


def test_without_a_fork_server_a_job_starts_from_nothing(job: Make, opened: Callable[[], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "method", lambda: "spawn")
    with opened() as start:
        handles = [start(job(jobs.saves, str(tmp_path / "note"), name="a")), start(job(jobs.refuses, name="b"))]
        jobs.seen(tmp_path / "note")
        handles[0].stop()
        assert [code_of(handle) for handle in handles] == [75, 3]
    assert "row 7" in (tmp_path / "b.log").read_text()


# --- nothing is left behind ----------------------------------------------------------------------------------------


def processes() -> set[str]:
    """What this process has started and still runs, without multiprocessing's tracker of resources, which lives as long as it."""
    return {" ".join(p.cmdline()) for p in psutil.Process().children(recursive=True) if "resource_tracker" not in " ".join(p.cmdline())}


def test_killing_a_job_ends_all_that_it_started(job: Make, opened: Callable[[], Any], tmp_path: Path) -> None:
    with opened() as start:
        handle = start(job(jobs.starts_others, str(tmp_path / "note"), False))
        others = [int(pid) for pid in jobs.seen(tmp_path / "note").split()]
        handle.kill()
        assert handle.poll() == -9
        assert all(ended(pid, 2) for pid in others)


def test_what_a_killed_job_had_started_is_ended_when_its_end_is_heard_of(job: Make, opened: Callable[[], Any], tmp_path: Path) -> None:
    with opened() as start:
        assert code_of(start(job(jobs.starts_others, str(tmp_path / "note"), True))) == -9
        assert all(ended(int(pid), 2) for pid in jobs.seen(tmp_path / "note").split())


def test_at_the_end_neither_jobs_nor_the_server_are_left(job: Make, opened: Callable[[], Any], tmp_path: Path) -> None:
    before = processes()
    with opened() as start:
        handle = start(job(jobs.waits_stubbornly, str(tmp_path / "note")))
        pid = int(jobs.seen(tmp_path / "note"))
        assert processes() > before
    assert ended(pid, 2)
    assert handle.poll() == -9
    assert processes() == before


def test_a_second_launcher_has_a_server_of_its_own(job: Make, opened: Callable[[], Any]) -> None:
    found = []
    for _ in range(2):
        with opened() as start:
            found.append(forkserver._forkserver._forkserver_pid)  # type: ignore[attr-defined]
            assert code_of(start(job(jobs.returns, 0))) == 0
    assert len(set(found)) == 2
    assert all(ended(pid, 2) for pid in found)


def test_an_error_in_the_sweep_leaves_nothing_behind(job: Make, opened: Callable[[], Any], tmp_path: Path) -> None:
    before = processes()
    with pytest.raises(ZeroDivisionError), opened() as start:
        start(job(jobs.waits, str(tmp_path / "note")))
        jobs.seen(tmp_path / "note")
        raise ZeroDivisionError
    assert ended(int(jobs.seen(tmp_path / "note")), 2)
    assert processes() == before


def test_a_job_whose_server_was_killed_counts_as_killed_and_the_next_one_starts(job: Make, opened: Callable[[], Any], tmp_path: Path) -> None:
    with opened() as start:
        handle = start(job(jobs.waits, str(tmp_path / "note")))
        pid = int(jobs.seen(tmp_path / "note"))
        os.kill(forkserver._forkserver._forkserver_pid, signal.SIGKILL)  # type: ignore[attr-defined]
        assert code_of(handle) == -9
        assert ended(pid, 2)
        assert code_of(start(job(jobs.returns, 3))) == 3


def test_an_exit_code_255_is_the_jobs_own(job: Make, opened: Callable[[], Any]) -> None:
    with opened() as start:
        assert code_of(start(job(jobs.leaves, -1))) == 255


def test_a_server_that_cannot_start_is_an_error_on_one_screen(
    job: Make, opened: Callable[[], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.py").write_text("raise RuntimeError('no memory')\n")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{ROOT}")
    monkeypatch.setattr(local, "PRELOAD", "broken")
    with pytest.raises(DeviceError, match="member: no process could be started"), opened() as start:
        start(job(jobs.returns, 0))


# --- a sweep that dies, or is interrupted --------------------------------------------------------------------------

SWEEP = """
import signal, sys, time
from pathlib import Path
from llmtrain.launcher import child, local
from llmtrain.launcher.base import Job
from tests.launcher import jobs

local.PRELOAD, child.GRACE_S, folder = "json", float(sys.argv[2]), Path(sys.argv[3])
heard = []
signal.signal(signal.SIGINT, lambda *_: heard.append("INT"))
signal.signal(signal.SIGTERM, lambda *_: heard.append("TERM"))
if __name__ == "__main__":
    with local.Local(jobs=1).opened(folder) as start:
        handle = start(Job("member", getattr(jobs, sys.argv[1]), (str(folder / "note"),), folder / "member.log"))
        while not heard:
            time.sleep(0.01)
        (folder / "heard").write_text(str(handle.poll()))
        handle.stop()
        while handle.poll() is None:
            time.sleep(0.01)
        again = start(Job("next", jobs.returns, (5,), folder / "next.log"))
        while again.poll() is None:
            time.sleep(0.01)
        (folder / "codes").write_text(f"{handle.poll()} {again.poll()}")
"""


def sweep(folder: Path, call: Callable[..., int], grace_s: float) -> subprocess.Popen[bytes]:
    """A sweep in a process of its own, with one job."""
    (folder / "sweep.py").write_text(SWEEP)
    return subprocess.Popen([sys.executable, folder / "sweep.py", call.__name__, str(grace_s), folder], start_new_session=True)


@pytest.mark.parametrize(("call", "saved"), [(jobs.saves, True), (jobs.waits, False), (jobs.waits_stubbornly, False)])
def test_when_the_sweep_is_killed_its_job_saves_and_ends_within_seconds(tmp_path: Path, call: Callable[..., int], saved: bool) -> None:
    with sweep(tmp_path, call, 0.5) as running:
        pid = int(jobs.seen(tmp_path / "note"))
        server = psutil.Process(pid).ppid()
        running.kill()
        assert ended(pid, 10)
        assert ended(server, 10)
    assert (tmp_path / "note.saved").exists() == saved


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_whole_group_is_the_sweeps_to_answer(tmp_path: Path, number: signal.Signals) -> None:
    with sweep(tmp_path, jobs.saves, 60.0) as running:
        jobs.seen(tmp_path / "note")
        os.killpg(running.pid, number)
        assert jobs.seen(tmp_path / "heard") == "None"  # the job runs on
        assert jobs.seen(tmp_path / "codes") == "75 5"  # and its own server, too, lives on to tell how it ended
        assert running.wait(30) == 0


def test_a_job_of_a_living_sweep_is_not_disturbed(start: Start, job: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "GRACE_S", 0.1)
    handle = start(job(jobs.waits, str(tmp_path / "note")))
    jobs.seen(tmp_path / "note")
    time.sleep(0.5)
    assert handle.poll() is None
    handle.kill()
