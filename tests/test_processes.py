"""Several processes: whatever happens to one of them, the run ends in half a minute with one message that names it.

Where one hangs, that half a minute begins when the others have waited distributed.timeout_s for it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from llmtrain import processes, trainer
from llmtrain.cli import main
from llmtrain.command import train as command
from llmtrain.config import compose
from llmtrain.errors import ConfigError, DataError, DistributedError, Interrupted, LLMTrainError, NonFiniteError, Stopped
from llmtrain.processes import Lost
from tests import judging
from tests.conftest import Train, outcome, tiny

ROOT = Path(__file__).parents[1]

# --- ranks without torch: a tenth of a second each -------------------------------------------------------------------

RANK = """
import os, signal, subprocess, sys, time
from pathlib import Path
from llmtrain import processes
from llmtrain.errors import *
from llmtrain.processes import Lost, at

def leave(error=None, lost=Lost.no):
    processes.leave_result(home, rank, error, lost)
    sys.exit(error.exit_code if error else 0)

def until_told(error):
    signal.signal(signal.SIGTERM, lambda *_: leave(error))
    Path(sys.argv[0]).with_name(f"ready-{rank}").touch()
    time.sleep(60)

rank, home = int(os.environ["RANK"]), Path(os.environ[processes.MEETING])
processes.follow()
exec(sys.argv[1 + rank])
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(processes, "GRACE_S", 1.0)
    (tmp_path / "rank.py").write_text(RANK)
    return tmp_path


def launch(folder: Path, *bodies: str, timeout_s: float = 60.0) -> None:
    """Run each of the bodies as a rank."""
    processes.launch([sys.executable, str(folder / "rank.py"), *bodies], len(bodies), folder, os.environ, timeout_s)


def failing(folder: Path, *bodies: str, timeout_s: float = 60.0) -> LLMTrainError:
    with pytest.raises(LLMTrainError) as caught:
        launch(folder, *bodies, timeout_s=timeout_s)
    assert len(caught.value.screen().splitlines()) <= 6
    return caught.value


def gone(pids: list[int], within_s: float = 20.0) -> bool:
    """Whether processes have ended; one that nobody has waited for yet has, too."""
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        left = [pid for pid in pids if psutil.pid_exists(pid)]
        with contextlib.suppress(psutil.Error):
            if all(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE for pid in left):
                return True
        time.sleep(0.05)
    return False


def test_ranks_know_their_places_and_only_rank_0_speaks_to_the_terminal(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    body = "print('I am', rank, os.environ['LOCAL_RANK'], os.environ['WORLD_SIZE'], os.environ['LOCAL_WORLD_SIZE']); print('hush', file=sys.stderr); leave()"
    launch(folder, body, body, body)
    assert capfd.readouterr() == ("I am 0 0 3 3\n", "")
    log = (folder / processes.LOG).read_text()
    assert "I am 1 1 3 3" in log
    assert "I am 2 2 3 3" in log
    assert log.count("hush") == 3


def test_f01_what_one_rank_raised_is_raised_as_its_kind_whoever_lost_contact_first(folder: Path) -> None:
    found = failing(folder, "leave(DistributedError('lost'), Lost.gone)", "time.sleep(0.3); leave(DataError('row 7', allowed='words', fix='mend it'))")
    assert isinstance(found, DataError)
    assert (found.what, found.allowed, found.fix) == ("row 7", "words", "mend it")


def test_f01_an_error_that_was_meant_comes_before_one_that_was_not(folder: Path) -> None:
    found = failing(folder, "leave(LLMTrainError('KeyError on rank 0'))", "time.sleep(0.3); leave(NonFiniteError('the loss'))")
    assert isinstance(found, NonFiniteError)


@pytest.mark.parametrize("other", ["time.sleep(60)", "time.sleep(0.2); leave(DistributedError('rank 0 lost the others'), Lost.gone)"], ids=["hangs", "lost"])
def test_f02_a_rank_that_was_killed_is_named_with_its_signal_and_place(folder: Path, other: str) -> None:
    began = time.monotonic()
    found = failing(folder, f"at('update 3'); {other}", "at('update 3'); os.kill(os.getpid(), signal.SIGKILL)")
    assert found.what == "rank 1 died (signal 9) at update 3"
    assert isinstance(found, DistributedError)
    assert str(folder / processes.LOG) in str(found.fix)
    assert time.monotonic() - began < 30


def test_a_rank_that_ends_without_a_word_is_named_with_its_code(folder: Path) -> None:
    assert failing(folder, "leave()", "os._exit(9)").what == "rank 1 ended with exit code 9 and no word at the preparation of data and model"


def test_f03_a_rank_that_hangs_is_named_and_ended_with_all_that_it_started(folder: Path) -> None:
    child = folder / "child"
    hangs = (
        f"other = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']); Path({str(child)!r}).write_text(f'{{os.getpid()}} {{other.pid}}');"
        "at('update 2'); time.sleep(60)"
    )
    waits = f"at('update 3')\nwhile not Path({str(child)!r}).exists(): time.sleep(0.05)\nleave(DistributedError('in vain'), Lost.late)"
    began = time.monotonic()
    found = failing(folder, waits, hangs, timeout_s=5.0)
    assert time.monotonic() - began < 30  # the others give up at once here, by themselves
    assert found.what == "rank 1 kept the others waiting at update 3 for distributed.timeout_s=5 seconds; rank 1 was last at update 2"
    assert found.exit_code == 7
    assert gone([int(pid) for pid in child.read_text().split()])
    assert 'File "<string>", line 1' in (folder / processes.LOG).read_text()  # where it stood


def test_f03_a_rank_that_came_too_late_and_found_nobody_is_the_one_that_is_named(folder: Path) -> None:
    found = failing(folder, "leave(DistributedError('in vain'), Lost.late)", "time.sleep(0.3); leave(DistributedError('lost'), Lost.gone)")
    assert found.what.startswith("rank 1 kept the others waiting")


@pytest.mark.parametrize(("age", "said"), [(3600, "rank 1 kept the others waiting at update 3"), (0, "rank 0 died (signal 6) at update 3")])
def test_f03_a_process_that_nccl_aborted_after_the_timeout_is_not_the_one_that_hung(folder: Path, age: int, said: str) -> None:
    aborts = f"at('update 3'); os.utime(home / 'at-0', (time.time() - {age},) * 2); os.abort()"
    assert failing(folder, aborts, "at('update 3'); time.sleep(60)").what.startswith(said)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_command_goes_to_all_ranks_and_what_they_say_of_it_comes_back(folder: Path, number: signal.Signals) -> None:
    ready = "all((home / f'at-{r}').exists() for r in (0, 1))"
    body = (
        f"signal.signal({int(number)}, lambda *_: leave(Stopped(f'saved by {{rank}}')))\nat('update 1')\n"
        f"while rank == 0 and not {ready}: time.sleep(0.02)\nif rank == 0: os.kill(os.getppid(), {int(number)})\ntime.sleep(60)"
    )
    before = signal.getsignal(number)
    found = failing(folder, body, body)
    assert isinstance(found, Stopped)
    assert found.what == "saved by 0"
    assert signal.getsignal(number) is before


def test_a_signal_before_the_ranks_can_hear_it_ends_them_as_stopped(folder: Path) -> None:
    found = failing(folder, "time.sleep(0.2); os.kill(os.getppid(), signal.SIGTERM); time.sleep(60)", "time.sleep(60)")
    assert isinstance(found, Stopped)
    assert "before training began" in found.what


def test_a_signal_that_ended_one_rank_alone_is_no_stop(folder: Path) -> None:
    assert failing(folder, "time.sleep(60)", "os.kill(os.getpid(), signal.SIGTERM)").what.startswith("rank 1 died (signal 15)")


def test_a_second_ctrl_c_comes_back_as_130(folder: Path) -> None:
    assert isinstance(failing(folder, "leave(Interrupted('twice'))", "leave(Interrupted('twice'))"), Interrupted)


def test_no_rank_outlives_the_command_that_started_it(folder: Path) -> None:
    pids = folder / "pids"
    pids.mkdir()
    body = f"Path({str(pids)!r}, str(os.getpid())).touch(); time.sleep(60)"
    command = [sys.executable, str(folder / "rank.py"), body, body]
    code = f"import os; from pathlib import Path; from llmtrain import processes\nprocesses.launch({command!r}, 2, Path({str(folder)!r}), os.environ, 60)"
    starter = subprocess.Popen([sys.executable, "-c", code])
    while len(list(pids.iterdir())) < 2:
        time.sleep(0.05)
    starter.kill()
    starter.wait()
    assert gone([int(path.name) for path in pids.iterdir()])


def test_where_a_rank_cannot_be_started_none_is_left(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []
    real = subprocess.Popen

    def popen(*arguments: Any, **options: Any) -> Any:
        if started:
            raise OSError("no more processes")
        started.append(real(*arguments, **options))
        return started[0]

    monkeypatch.setattr(processes.subprocess, "Popen", popen)
    with pytest.raises(OSError, match="no more processes"):
        launch(folder, "time.sleep(60)", "time.sleep(60)")
    assert started[0].returncode == -signal.SIGKILL


# --- words -----------------------------------------------------------------------------------------------------------


def test_the_last_words_of_the_ranks_are_read_once_in_their_order(tmp_path: Path) -> None:
    processes.leave_result(tmp_path, 10, LLMTrainError("ten"))
    processes.leave_result(tmp_path, 2, LLMTrainError("two", allowed="this", fix="that"))
    processes.leave_result(tmp_path, 0, None)
    assert processes.results(tmp_path) == [(0, ""), (1, "error: two\nallowed: this\nfix: that"), (1, "error: ten")]
    assert processes.results(tmp_path) == []


@pytest.mark.parametrize("kind", [ConfigError, DataError, NonFiniteError, DistributedError, Stopped, Interrupted, LLMTrainError])
def test_a_word_gives_back_the_error_that_was_left(tmp_path: Path, kind: type[LLMTrainError]) -> None:
    processes.leave_result(tmp_path, 0, kind("what", allowed="allowed", fix="fix"))
    found = processes.words(tmp_path)[0].error()
    assert (type(found), found.screen()) == (kind, kind("what", allowed="allowed", fix="fix").screen())


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("[/__w/pytorch/third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 5000ms for recv operation to complete", Lost.late),
        ("[/__w/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:537] Read error [127.0.0.1]:7323: Connection reset by peer. …", Lost.gone),
        ("[/__w/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:48322. …", Lost.gone),
        ("[Rank 0] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=3)", Lost.late),
        ("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)", Lost.no),
        ("the request timed out", Lost.no),
    ],
)
def test_an_error_that_only_says_that_others_are_not_there_is_told_by_its_words(text: str, kind: Lost) -> None:
    assert processes.lost(RuntimeError(text)) is kind
    assert processes.lost(ValueError(text)) is Lost.no


@pytest.mark.parametrize(
    ("others", "rank", "kind", "printed", "code"),
    [
        ({}, 0, Lost.no, True, 3),
        ({}, 1, Lost.no, True, 3),  # its own, and nobody else's
        ({0: ("no", 5)}, 1, Lost.no, False, 5),  # rank 0 says it
        ({1: ("no", 5)}, 0, Lost.no, True, 3),  # it says its own, and rank 1 says nothing then
        ({1: ("no", 5)}, 0, Lost.gone, False, 5),  # rank 1 says why
        ({1: ("gone", 7)}, 0, Lost.gone, True, 3),
        ({0: ("gone", 7)}, 1, Lost.late, False, 3),
        ({2: ("no", 5)}, 1, Lost.no, True, 3),
    ],
)
def test_under_another_launcher_an_error_is_printed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    others: dict[int, tuple[str, int]], rank: int, kind: Lost, printed: bool, code: int,
) -> None:  # fmt: skip
    monkeypatch.setattr(processes, "SAYING_S", 0.15)
    for other, (lost, exit_code) in others.items():
        error = next(k for k in LLMTrainError.__subclasses__() if k.exit_code == exit_code)(f"of rank {other}")
        processes.leave_result(tmp_path, other, error, Lost(lost))
    assert processes.say_once(tmp_path, rank, DataError("row 7"), kind).exit_code == code
    assert capsys.readouterr().err == ("error: row 7\n" if printed else "")


def test_f08_the_first_keys_that_differ_are_named_with_both_values_and_the_ranks() -> None:
    one = {"a": "1", "b": "1", "c": "1", "d": "1", "e": "1"}
    assert processes.differing([one, one]) == []
    assert processes.differing([one, one, {**one, "b": "2"}]) == ["b is '1' on rank 0 and '2' on rank 2"]
    assert processes.differing([one, {**dict.fromkeys("abcd", "2"), "f": "1"}]) == [
        *(f"{key} is '1' on rank 0 and '2' on rank 1" for key in "abc"), "and 3 more"
    ]  # fmt: skip
    long = f"/data/{'x' * 100}/"
    assert processes.differing([{"a": f"{long}one.txt"}, {"a": f"{long}two.txt"}]) == [
        f"a is '…{'x' * 19}/one.txt' on rank 0 and '…{'x' * 19}/two.txt' on rank 1"
    ]


def test_a_place_is_noted_for_those_that_wait_only_where_there_are_several(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_place", "")
    monkeypatch.delenv(processes.MEETING, raising=False)
    processes.at("update 1")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setenv(processes.MEETING, str(tmp_path))
    monkeypatch.setenv("RANK", "1")
    processes.at("update 2")
    assert (tmp_path / "at-1").read_text() == "update 2"


# --- runs ------------------------------------------------------------------------------------------------------------

FAULTY = """
import os, signal, sys, time
from pathlib import Path
from llmtrain import processes, trainer, worker
from llmtrain.errors import *

real = trainer.Trainer._update

def update(self, batches):
    if self.state.step == 2 and self.runtime.rank == {rank}:
        os.utime(sys.argv[0])  # when it happened: `half_a_minute`
        {fault}
    return real(self, batches)

if __name__ == "__main__":
    trainer.Trainer._update = update
    sys.exit(worker.main(Path(sys.argv[1]), *sys.argv[2:]))
"""


@pytest.fixture
def two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Train a tiny model on two processes, of which one gets a fault before its third update: two(fault, *overrides) → what was raised."""

    def run(fault: str, *overrides: str, rank: int = 1) -> LLMTrainError | None:
        script = tmp_path / "faulty.py"
        script.write_text(FAULTY.format(rank=rank, fault=fault))
        monkeypatch.setattr(command, "WORKER", (sys.executable, "-W", "ignore", str(script)))
        typed = [*tiny("devices=2", *overrides), f"output_dir={tmp_path / 'run'}"]
        try:
            assert command.start(compose("pretrain", typed), typed, "pretrain") == 0
        except LLMTrainError as error:
            return error
        return None

    return run


def half_a_minute(tmp_path: Path, after_s: float = 0.0) -> None:
    """What is promised: from what happened to one of `two` to the end of the command. What came before it, such as imports, may take any time."""
    took = time.time() - (tmp_path / "faulty.py").stat().st_mtime
    assert took < after_s + 30.0


def record(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "run.json").read_text())
    return found


def test_f02_a_run_whose_rank_1_is_killed_ends_with_its_name_and_keeps_its_checkpoint(two: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    error = two("os.kill(os.getpid(), signal.SIGKILL)")
    half_a_minute(tmp_path)
    assert error is not None
    assert (error.exit_code, error.what) == (7, "rank 1 died (signal 9) at update 3")
    assert [p.name for p in (run / "checkpoints").glob("step-*")] == ["step-00000002"]
    found = record(run)
    assert (found["status"], found["exit_code"], found["error"]) == ("failed", 7, error.screen())
    said = capfd.readouterr()
    assert said.err == ""  # neither torch nor the other rank says anything to the terminal
    assert "Traceback" not in said.out
    assert said.out.count("starting from step 0") == 1
    assert "rank 0:\nTraceback" in (run / processes.LOG).read_text()


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
        return port


Done = tuple[int, str, str]


def by_hand(ranks: list[list[str]], cwd: Path, port: int, world: int | None = None, first: int = 0) -> list[Done]:
    """Start `llmtrain pretrain` once for each rank, as srun would, and return how each ended with what it printed."""
    started = []
    for rank, overrides in enumerate(ranks, first):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world or len(ranks), "LOCAL_WORLD_SIZE": world or len(ranks), "MASTER_PORT": port}
        own = {**os.environ, "LLMTRAIN_ALLOCATOR": "system", "MASTER_ADDR": "127.0.0.1", **{name: str(value) for name, value in place.items()}}
        command = [sys.executable, "-W", "ignore", "-m", "llmtrain", "pretrain", *overrides]
        started.append(subprocess.Popen(command, env=own, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    said = [process.communicate(timeout=300) for process in started]
    return [(process.returncode, *pair) for process, pair in zip(started, said, strict=True)]


def test_f08_ranks_that_were_given_different_configs_end_with_the_keys_that_differ(tmp_path: Path) -> None:
    same = [*tiny("distributed.timeout_s=200"), f"output_dir={tmp_path / 'run'}"]
    (zero, out, err), (one, other_out, other_err) = by_hand([[*same, "seed=1"], [*same, "seed=2", "optimizer.lr=0.5"]], tmp_path, free_port())
    assert (zero, one) == (2, 2)
    assert err.splitlines()[0].startswith("error: the processes were given different configs: ")
    assert "seed is '1' on rank 0 and '2' on rank 1" in err
    assert "optimizer.lr is " in err
    assert (out, other_out, other_err) == ("", "", "")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("local_rank", "printed"), [("0", 1), ("1", 0), (None, 1)])
def test_a_wrong_key_is_said_by_the_first_process_of_a_node(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], local_rank: str | None, printed: int
) -> None:
    for name, value in {"RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if local_rank is not None:
        monkeypatch.setenv("LOCAL_RANK", local_rank)
    assert main(["pretrain", "optimizer.lr=-1"]) == 2
    assert capsys.readouterr().err.count("error: ") == printed


# --- runs that take minutes ------------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize("rank", [0, 1])
def test_f01_a_row_that_one_rank_cannot_read_ends_both_with_its_message_and_code(
    two: Any, tmp_path: Path, rank: int, capfd: pytest.CaptureFixture[str]
) -> None:
    error = two("raise DataError('row 7 of train.csv is damaged', fix='mend it')", rank=rank)
    half_a_minute(tmp_path)
    assert error is not None
    assert (error.exit_code, error.screen()) == (3, "error: row 7 of train.csv is damaged\nfix: mend it")
    assert capfd.readouterr().err == ""


@pytest.mark.long
def test_f01_a_fault_of_the_program_on_one_rank_is_told_once_with_the_rank_and_logged_whole(two: Any, tmp_path: Path) -> None:
    error = two("{}['missing']")
    half_a_minute(tmp_path)
    assert error is not None
    assert (error.exit_code, error.what) == (1, "KeyError on rank 1: 'missing'")
    log = (tmp_path / "run" / processes.LOG).read_text()
    assert "rank 1:\nTraceback" in log
    assert record(tmp_path / "run")["error"] == error.screen()


@pytest.mark.long
@pytest.mark.parametrize("fault", ["time.sleep(1000)", "os.kill(os.getpid(), signal.SIGSTOP)", "time.sleep(15)"], ids=["hangs", "stopped", "slow"])
def test_f03_a_rank_that_hangs_ends_the_run_after_the_timeout_with_its_name_and_the_step(two: Any, fault: str, tmp_path: Path) -> None:
    error = two(fault, "distributed.timeout_s=8")
    half_a_minute(tmp_path, after_s=8.0)
    assert error is not None
    assert (error.exit_code, error.what) == (7, "rank 1 kept the others waiting at update 3 for distributed.timeout_s=8 seconds")
    if "1000" in fault:
        assert "in update\n" in (tmp_path / "run" / processes.LOG).read_text()  # where it stood


@pytest.mark.long
@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_to_one_rank_alone_saves_and_stops_all_and_the_resumed_run_equals_the_unbroken(two: Any, tmp_path: Path, rank: int) -> None:
    steady = ("schedule=constant",)
    error = two("os.kill(os.getpid(), signal.SIGTERM)", *steady, rank=rank)
    assert isinstance(error, Stopped)
    assert "after step 3" in error.what
    assert two("pass", *steady) is None
    (tmp_path / "run").rename(tmp_path / "broken")
    assert two("pass", *steady) is None
    a, b = outcome(tmp_path / "broken"), outcome(tmp_path / "run")
    assert (a["weights"], a["optimizer"], a["final"]) == (b["weights"], b["optimizer"], b["final"])


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_command_saves_and_stops_all_with_75(two: Any, number: signal.Signals, tmp_path: Path) -> None:
    error = two(f"os.kill(os.getppid(), {int(number)}); time.sleep(1)")
    assert isinstance(error, Stopped)
    assert error.exit_code == 75
    assert record(tmp_path / "run")["status"] == "stopped"
    assert len(list((tmp_path / "run" / "checkpoints").glob("step-*"))) >= 1


@pytest.mark.long
def test_a_second_ctrl_c_to_the_command_ends_all_at_once_with_130(two: Any, tmp_path: Path) -> None:
    ctrl_c, heard = "os.kill(os.getppid(), signal.SIGINT)", "while not self.runtime.signalled.is_set(): time.sleep(0.01)"
    error = two(f"{ctrl_c}\n        {heard}\n        {ctrl_c}; time.sleep(1000)", "distributed.timeout_s=500")
    half_a_minute(tmp_path)
    assert isinstance(error, Interrupted)
    assert error.exit_code == 130
    assert record(tmp_path / "run")["exit_code"] == 130
    assert [p.name for p in (tmp_path / "run" / "checkpoints").glob("*step-*")] == ["step-00000002"]


@pytest.mark.long
def test_f09_more_processes_than_rows_to_evaluate_give_the_numbers_of_one_process_and_one_of_everything(
    two: Any, tmp_path: Path, train: Train, capfd: pytest.CaptureFixture[str]
) -> None:
    asked = ("evaluation.max_samples=1", "data.num_workers=1", "evaluation.test=false")
    assert two("pass", *asked) is None
    said = capfd.readouterr()
    assert said.err == ""
    for line in ("starting from step 0", "step 2/6", "step 3/6  held out", "step 6/6  held out"):
        assert said.out.count(line) == 1, said.out
    assert (tmp_path / "run" / "train.log").is_file()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["faulty.py", "run"]
    one = train(tmp_path / "one", *asked)

    def held_out(run: Path) -> list[float]:
        lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
        return [line["validation_loss"] for line in lines if "validation_loss" in line]

    assert len(held_out(one)) == 2
    assert held_out(tmp_path / "run") == pytest.approx(held_out(one), rel=1e-6)


def test_d07_and_f09_any_number_of_rows_is_evaluated_by_two_processes_as_by_one_each_row_once(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ("evaluation.batch_size=2", "trainer.max_steps=1", "evaluation.test=false")
    with monkeypatch.context() as patch:
        patch.setattr(trainer.Trainer, "_update", judging.update)
        train(tmp_path / "one", *asked)
        patch.setattr(command, "WORKER", (sys.executable, "-W", "ignore", judging.__file__))
        train(tmp_path / "two", *asked, "devices=2")
    one, both = (json.loads((tmp_path / run / judging.JUDGED).read_text()) for run in ("one", "two"))
    rows = [one[f"row {i}"] for i in range(max(judging.SIZES))]

    def mean(chosen: Iterable[int]) -> float:
        sums, counts = zip(*(rows[i] for i in chosen), strict=True)
        return float(sum(sums) / sum(counts))

    for size in judging.SIZES:
        whole = mean(range(size))
        others = [[i for i in range(size) if i != gone] for gone in range(size) if size > 1] + [[*range(size), again] for again in range(size) if size > 1]
        assert all(mean(chosen) != pytest.approx(whole, rel=1e-4) for chosen in others), "a row that is left out, or counted twice, has to show"
        for found in (one[f"first {size}"], both[f"first {size}"]):
            assert found[1] == sum(count for _, count in rows[:size])
            assert found[0] / found[1] == pytest.approx(whole, rel=1e-6)
    assert both == {name: pytest.approx(value, rel=1e-6) for name, value in one.items()}


# What becomes of a process that reads data; the rows are read before the update that uses them.
WORKERS = """
import os, signal, sys
from pathlib import Path
from llmtrain.objective import next_token
from llmtrain import worker

real = next_token.NextToken.collate

def collate(self, examples, draw, vocabulary):
    if os.environ["RANK"] == "1" and draw.epoch != "eval":
        os.utime(__file__)
        {fault}
    return real(self, examples, draw, vocabulary)

next_token.NextToken.collate = collate  # also in the workers, which import this file
if __name__ == "__main__":
    sys.exit(worker.main(Path(sys.argv[1]), *sys.argv[2:]))
"""


@pytest.fixture
def reading(two: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    def run(fault: str) -> LLMTrainError | None:
        monkeypatch.setitem(globals(), "FAULTY", WORKERS.replace("{fault}", fault).replace("{", "{{").replace("}", "}}"))
        found: LLMTrainError | None = two("", "data.num_workers=1")
        return found

    return run


@pytest.mark.long
def test_f04_a_process_that_reads_data_and_is_killed_ends_the_run_with_its_pid(reading: Any, tmp_path: Path) -> None:
    note = tmp_path / "pid"
    error = reading(f"Path({str(note)!r}).write_text(str(os.getpid())); os.kill(os.getpid(), signal.SIGKILL)")
    half_a_minute(tmp_path)
    assert isinstance(error, DistributedError)
    assert error.what in (
        f"a process that reads data (pid {note.read_text()}) died (signal: Killed)", f"a process that reads data (pid {note.read_text()}) died"
    )  # fmt: skip
    assert "data.num_workers=0" in str(error.fix)


@pytest.mark.long
def test_f04_a_process_that_reads_data_and_raises_names_the_row(reading: Any, tmp_path: Path) -> None:
    error = reading("if any(e['sample'] % 7 == 3 for e in examples): raise ValueError('no such word')")
    half_a_minute(tmp_path)
    assert isinstance(error, DataError)
    found = re.fullmatch(r"sample (\d+) \(numbered from 0\): no batch can be made: ValueError: no such word", error.what)
    assert found is not None
    assert int(found[1]) % 7 == 3
    assert "in collate" in (tmp_path / "run" / processes.LOG).read_text()


@pytest.mark.long
def test_f04_a_process_that_reads_data_and_prints_a_megabyte_changes_nothing_and_none_is_left(reading: Any, tmp_path: Path) -> None:
    before = {process.pid for process in psutil.process_iter()}
    assert reading("print('x' * 1_000_000, flush=True)") is None
    assert (tmp_path / "run" / processes.LOG).stat().st_size > 1_000_000
    own = [process for process in psutil.process_iter() if process.pid not in before and _of(process, str(tmp_path))]
    assert gone([process.pid for process in own])


def _of(process: psutil.Process, text: str) -> bool:
    try:
        return text in " ".join(process.cmdline())
    except psutil.Error:
        return False


# --- other launchers ---------------------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize(("first", "came"), [(0, "1 of WORLD_SIZE=2"), (1, "not all of WORLD_SIZE=2")])
def test_f06_a_rank_whose_others_never_come_says_who_sets_the_variables(tmp_path: Path, first: int, came: str) -> None:
    ((code, _, err),) = by_hand([tiny("distributed.timeout_s=6")], tmp_path, free_port(), world=2, first=first)
    assert code == 7
    assert f"error: {came} processes came to 127.0.0.1:" in err
    assert f"distributed.timeout_s=6 seconds; this is RANK={first}" in err
    assert "torchrun, accelerate launch or srun" in err
    assert "unset RANK WORLD_SIZE" in err


@pytest.mark.long
def test_f07_a_port_that_is_taken_is_named_and_a_run_of_our_own_needs_none(tmp_path: Path, two: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ((code, _, err),) = by_hand([tiny("distributed.timeout_s=60")], tmp_path, port, world=2)
        assert (code, err.splitlines()[0]) == (7, f"error: MASTER_PORT={port} is in use")
        assert "--master-port" in err
        monkeypatch.setenv("MASTER_PORT", str(port))
        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
        assert two("pass") is None


def torchrun(options: list[str], overrides: list[str], cwd: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", *options, "-m", "llmtrain", "pretrain", *overrides]
    own = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    return subprocess.Popen(command, env=own, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@contextlib.contextmanager
def nodes(overrides: list[list[str]], cwd: Path) -> Iterator[list[subprocess.Popen[str]]]:
    """Two "nodes" of one process each, as two machines would start them."""
    options = ["--nnodes", "2", "--nproc-per-node", "1", "--master-addr", "127.0.0.1", "--master-port", str(free_port())]
    started = [torchrun([*options, "--node-rank", str(node)], own, cwd) for node, own in enumerate(overrides)]
    try:
        yield started
    finally:
        for process in started:
            process.kill()


@pytest.mark.long
def test_torchrun_on_one_node_and_on_two_trains_as_one_process_does(tmp_path: Path, train: Train) -> None:
    def losses(run: Path) -> list[float]:
        return [line["loss_next_token"] for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()) if "loss_next_token" in line]

    one = losses(train(tmp_path / "one"))
    typed = tiny()
    node = torchrun(["--standalone", "--nproc-per-node", "2"], [*typed, f"output_dir={tmp_path / 'node'}"], tmp_path)
    out, err = node.communicate(timeout=300)
    assert node.returncode == 0, err
    assert out.count("starting from step 0") == 1
    with nodes([[*typed, f"output_dir={tmp_path / 'nodes'}"]] * 2, tmp_path) as both:
        said = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert "starting from step 0" in said[0][0]
    assert said[1][0] == ""
    assert yaml.safe_load((tmp_path / "nodes" / "resolved.yaml").read_text())
    for run in ("node", "nodes"):
        assert losses(tmp_path / run) == pytest.approx(one, rel=1e-6)
        assert list((tmp_path / run).glob(".result-*")) == []


@pytest.mark.long
def test_f08_two_nodes_whose_commands_differ_end_with_the_keys(tmp_path: Path) -> None:
    same = [*tiny(), f"output_dir={tmp_path / 'run'}"]
    with nodes([[*same, "seed=1"], [*same, "seed=2"]], tmp_path) as both:
        said = [process.communicate(timeout=300) for process in both]
    assert said[0][1].count("error: the processes were given different configs: seed is '1' on rank 0 and '2' on rank 1") == 1
    assert "different configs" not in said[1][1]
    assert all(process.returncode for process in both)


@pytest.mark.long
@pytest.mark.parametrize(
    ("fault", "said", "code"),
    [
        ("raise DataError('row 7 is damaged')", "error: row 7 is damaged", 3),
        ("os.kill(os.getpid(), signal.SIGKILL)", "error: rank 0 lost the other processes at", 7),
    ],
    ids=["raises", "killed"],
)
def test_under_torchrun_too_the_error_of_one_rank_is_printed_once_and_run_json_has_its_code(tmp_path: Path, fault: str, said: str, code: int) -> None:
    script = tmp_path / "faulty.py"
    script.write_text(
        FAULTY.format(rank=1, fault=fault).replace("worker.main(Path(sys.argv[1]), *sys.argv[2:])", "cli.main(sys.argv[1:])").replace(", worker", ", cli")
    )
    typed = ["pretrain", *tiny(), f"output_dir={tmp_path / 'run'}"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script), *typed]
    done = subprocess.run(command, cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 1  # torchrun's own
    assert done.stderr.count("error: ") == 1, done.stderr
    assert said in done.stderr
    assert record(tmp_path / "run")["exit_code"] == code


@pytest.mark.long
def test_accelerate_launch_on_a_cpu_starts_one_process_and_that_is_said(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.accelerate_cli",
        "launch",
        "--cpu",
        "--num_processes",
        "2",
        "--num_machines",
        "1",
        "--mixed_precision",
        "no",
    ]
    command += ["--dynamo_backend", "no", "-m", "llmtrain", "pretrain", *tiny(), f"output_dir={tmp_path / 'run'}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    warnings = record(tmp_path / "run")["warnings"]
    assert any("started this one alone" in line for line in warnings)
    assert "started this one alone" in done.stdout


def test_a_process_of_a_run_writes_any_text_and_a_secret_reaches_it_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from llmtrain import worker

    monkeypatch.setenv("WANDB_API_KEY", "a-very-secret-key")
    found: list[tuple[str, str]] = []
    monkeypatch.setattr(command, "run_as_rank", lambda config, *_: found.append((config.callback.tracker.project, sys.stdout.errors)) or 0)
    monkeypatch.setattr(processes, "follow", lambda: None)
    monkeypatch.setattr(processes, "launch", lambda words, *_: worker.main(Path(words[-3]), *words[-2:]))
    composed = compose("pretrain", ["callback.tracker.project=a-very-secret-key"])
    command._start_ranks(composed.config, "pretrain", tmp_path, command.parts(composed.config).runtime, "llmtrain pretrain")
    assert found == [("a-very-secret-key", "backslashreplace")]
    assert "a-very-secret-key" not in (tmp_path / command.INVOCATION).read_text()
