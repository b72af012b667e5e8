"""`llmtrain finetune -m …`: whole sweeps of tiny models, disturbed and undisturbed."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from llmtrain import runtime
from llmtrain.cli import main
from llmtrain.command import sweep as recipe
from llmtrain.command.sweep import Plan, planned, sweep
from llmtrain.config import compose
from llmtrain.errors import CheckpointError, ConfigError, Stopped
from llmtrain.launcher import child, local
from llmtrain.runtime import has_bf16
from llmtrain.sweep.book import Book, Entry, Status
from tests.conftest import TINY_FINETUNE, Pretrained, digest, record_of, tiny

MODES = "finetune=features,last_layers,full"
COST = {"seconds", "train_seconds", "wall_seconds", "peak_memory_mb", "disk_mb"}  # columns that no two runs share

Sweep = Callable[..., int]


SLOW = ("trainer.max_steps=60", "checkpoint.every_steps=5")  # long enough to be disturbed
LONG = ("seed=0,1", "trainer.max_steps=400", "checkpoint.every_steps=20")


@pytest.fixture(scope="module", autouse=True)
def server() -> Iterator[None]:
    """One process that has imported what members import, for all sweeps of this module: each would wait seconds for its own."""
    from multiprocessing import forkserver

    if forkserver._forkserver._forkserver_pid is not None:  # one for workers that read data, which has imported nothing of ours
        forkserver._forkserver._stop()
    with local._server():
        yield


@pytest.fixture(scope="module")
def whole(pretrained: Pretrained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of three modes and three seeds that nothing disturbed."""
    return undisturbed(tmp_path_factory.mktemp("whole"), typed(pretrained, "mine", MODES, "seed=0,1,2", *SLOW))


@pytest.fixture(scope="module")
def two(pretrained: Pretrained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of two longer runs that nothing disturbed."""
    return undisturbed(tmp_path_factory.mktemp("two"), typed(pretrained, "mine", *LONG))


def undisturbed(folder: Path, overrides: list[str]) -> Path:
    with contextlib.chdir(folder):
        assert sweep("finetune", overrides) == 0
    return folder / "runs/sweep/mine"


@pytest.fixture
def run(pretrained: Pretrained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sweep:
    """Run `llmtrain finetune -m` on a tiny pretrained model: run("mine", "seed=0,1") → its exit code; the sweep is in runs/sweep/mine."""
    monkeypatch.chdir(tmp_path)

    def call(name: str, *overrides: str, **options: Any) -> int:
        return sweep("finetune", typed(pretrained, name, *overrides), **options)

    return call


def typed(pretrained: Pretrained, name: str, *overrides: str) -> list[str]:
    return [*tiny(*overrides, base=TINY_FINETUNE), f"model.checkpoint={pretrained('bert')}", f"name={name}"]


def book(name: str | Path) -> Book:
    found = Book.opened(Path("runs/sweep") / name)  # of a whole path, that path
    assert found is not None
    return found


def table(name: str | Path) -> list[dict[str, str]]:
    """results.csv without what is never the same twice."""
    with (Path("runs/sweep") / name / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [{key: value for key, value in row.items() if not any(cost in key for cost in COST) and key != "command"} for row in rows]


def outcomes(name: str | Path) -> dict[str, list[str]]:
    """What each member ended with, by the hash of its config: the bits of its body and of its head."""
    found = book(name)
    homes = {entry.name[-8:]: found.home(entry) for entry in found.entries.values()}
    return {key: [digest(path) for path in sorted((home / "final").glob("*.safetensors"))] for key, home in homes.items()}


def when(name: str, ready: Callable[[Path], bool], act: Callable[[Path], None]) -> threading.Thread:
    """Do something to a sweep as soon as one of its members is ready for it."""

    def watch() -> None:
        end = time.monotonic() + 60
        while time.monotonic() < end:
            for home in sorted((Path.cwd() / "runs/sweep" / name / "members").glob("*")):
                if ready(home):
                    act(home)
                    return
            time.sleep(0.01)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


def has_a_checkpoint(home: Path) -> bool:
    return (home / ".lock-holder.json").is_file() and any((home / "checkpoints").glob("step-*"))


def kill(home: Path) -> None:
    os.kill(json.loads((home / ".lock-holder.json").read_text())["pid"], signal.SIGKILL)


# --- the whole of it ----------------------------------------------------------------------------------------------


def test_three_modes_and_three_seeds_are_nine_runs_and_a_report(whole: Path) -> None:
    found = book(whole)
    assert len(found.with_status(Status.finished)) == 9
    assert [row["status"] for row in table(whole)] == ["finished"] * 9
    for name in ("results.csv", "report.md", "report.html"):
        assert (whole / name).stat().st_size > 500
    assert len({tuple(digests) for digests in outcomes(whole).values()}) == 9


@pytest.mark.long
def test_a_sweep_that_was_disturbed_ends_with_the_table_of_one_that_was_not(whole: Path, run: Sweep) -> None:
    names = list(book(whole).entries)
    killed = when("mine", lambda home: home.name == names[4] and has_a_checkpoint(home), kill)
    spoilt = when("mine", lambda home: home.name == names[0], lambda home: occupy(home.parent / names[1]))
    assert run("mine", MODES, "seed=0,1,2", *SLOW) == 1
    killed.join()
    spoilt.join()
    found = book("mine")
    assert found.entries[names[1]].status is Status.failed
    assert "not empty" in found.entries[names[1]].reason
    assert found.entries[names[4]].status is Status.stopped
    assert "SIGKILL" in found.entries[names[4]].reason
    assert len(found.with_status(Status.finished)) == 7
    before = {name: written(found, name) for name in names if found.entries[name].status is Status.finished}
    (found.folder / "members" / names[1] / "notes").unlink()
    assert run("mine", MODES, "seed=0,1,2", *SLOW, retry_failed=True) == 0
    assert {name: written(found, name) for name in before} == before  # those were not run again
    assert "resumed from step" in (found.folder / "members" / names[4] / "output.log").read_text()
    assert table("mine") == table(whole)
    assert outcomes("mine") == outcomes(whole)


def occupy(folder: Path) -> None:
    """Somebody's own file stands where a member wants to write."""
    folder.mkdir()
    (folder / "notes").touch()


def written(found: Book, name: str) -> int:
    return (found.folder / "members" / name / "run.json").stat().st_mtime_ns


@pytest.mark.long
def test_neither_the_order_of_members_nor_how_many_run_at_a_time_changes_a_number(whole: Path, run: Sweep) -> None:
    assert run("mine", "seed=2,1,0", "finetune=full,last_layers,features", *SLOW, "launcher.jobs=2") == 0
    assert list(outcomes("mine")) != list(outcomes(whole))
    assert outcomes("mine") == outcomes(whole)


def test_a_member_gives_what_the_same_command_gives_alone(run: Sweep, finetune: Callable[..., Path], tmp_path: Path) -> None:
    assert run("mine", "finetune.blocks=1,2") == 0
    alone = finetune(tmp_path / "alone", "finetune.blocks=2", "cache.use=never")
    (entry,) = (entry for entry in book("mine").entries.values() if "finetune.blocks=2" in entry.overrides)
    in_sweep = book("mine").home(entry)
    validation = [json.loads((folder / "run.json").read_text())["validation"]["loss"] for folder in (alone, in_sweep)]
    assert validation[0] == pytest.approx(validation[1], abs=1e-5)  # computed once or in every pass: the same up to rounding


# --- what is shared -----------------------------------------------------------------------------------------------


def test_what_is_frozen_is_computed_once_for_all_members(run: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMTRAIN_CACHE", str(tmp_path / "cache"))
    assert run("mine", "finetune=features,last_layers", "finetune.blocks=1", "seed=0,1,2", "cache.use=always") == 0
    entries = list((tmp_path / "cache" / "states").glob("*/manifest.json"))
    assert len(entries) == 2 * 3  # pooled vectors and states below the last block, for the training, validation and test split
    first = min(book("mine").home(entry).stat().st_ctime_ns for entry in book("mine").entries.values())
    assert max(entry.stat().st_mtime_ns for entry in entries) < first  # before any member began


def test_equal_members_run_once_and_that_is_said(run: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("mine", "finetune=features,last_layers", "finetune.blocks=1,2") == 0
    assert len(book("mine").entries) == 3
    assert "finetune.blocks" in capsys.readouterr().out


# --- what goes wrong ----------------------------------------------------------------------------------------------


def test_a_loss_that_is_no_number_ends_one_member_and_the_exit_code_tells(run: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    """I01: one trial fails, the others go on; the table shows it with its reason."""
    assert run("mine", "optimizer.lr=1e-3,1e30", "finetune=full", "trainer.clip_norm=null") == 1
    found = book("mine")
    assert sorted(entry.status.value for entry in found.entries.values()) == ["failed", "finished"]
    (failed,) = found.with_status(Status.failed)
    assert failed.exit_code == 5
    assert "not finite" in failed.reason
    assert "not finite" in (found.folder / "report.md").read_text()
    assert "not finite" in capsys.readouterr().out


def test_a_failed_member_stays_failed_until_it_is_asked_for(run: Sweep) -> None:
    overrides = ("optimizer.lr=1e-3,1e30", "finetune=full", "trainer.clip_norm=null")
    assert run("mine", *overrides) == 1
    (failed,) = book("mine").with_status(Status.failed)
    log = book("mine").home(failed) / "output.log"
    before = log.read_text()
    assert run("mine", *overrides) == 1
    assert log.read_text() == before
    assert main(["sweep", "resume", "mine"]) == 1
    assert log.read_text() == before
    assert main(["sweep", "resume", "mine", "--retry-failed"]) == 1
    assert len(log.read_text()) > len(before)


@pytest.mark.parametrize(
    ("words", "verb"), [(["pretrain"], "pretrain"), (["finetune"], "finetune"), (["sweep"], "finetune"), (["sweep", "status", "mine"], "finetune")]
)
def test_trying_failed_members_again_is_for_sweeps_that_run(words: list[str], verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words, "--retry-failed"]) == 2
    said = capsys.readouterr().err
    assert f"llmtrain {verb} -m … --retry-failed" in said
    assert "llmtrain sweep resume NAME --retry-failed" in said


@pytest.mark.long
@pytest.mark.skipif(not has_bf16("cpu"), reason="this processor has no bf16")
def test_two_precisions_in_one_sweep_work(run: Sweep) -> None:
    """I05: each member has a process of its own."""
    assert run("mine", "precision=fp32,bf16") == 0
    used = {json.loads((book("mine").home(e) / "run.json").read_text())["device"]["precision"] for e in book("mine").entries.values()}
    assert used == {"fp32", "bf16"}


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        pytest.param(["seed=0,1", "optimizer.lr=-1"], "optimizer.lr", id="a wrong value for all"),
        pytest.param(["optimizer.lr=1e-3,-1"], "optimizer.lr", id="a wrong value for one"),
        pytest.param(["finetune=features,lastlayers"], "lastlayers", id="a mode that does not exist"),
        pytest.param(["finetune.blokcs=1,2"], "finetune.blokcs", id="a key that does not exist"),
        pytest.param(["seed=range(0,1000000)"], "1,000,000", id="A31 too many"),
        pytest.param(["seed=choice()"], "seed", id="A31 none"),
        pytest.param(["seed=glob(*)"], "glob", id="glob"),
        pytest.param(["sweep=gird", "seed=0,1"], "gird", id="a sweep that does not exist"),
        pytest.param(["launcher.jobs=0", "seed=0,1"], "launcher.jobs", id="no job at a time"),
        pytest.param(["_target_=os.system", "seed=0,1"], "_target_", id="H01 a target"),
        pytest.param(["hydra.launcher=x", "seed=0,1"], "hydra", id="H03 Hydra's own"),
    ],
)
def test_what_is_wrong_is_said_before_anything_runs(run: Sweep, overrides: list[str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        run("mine", *overrides)
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        pytest.param(["finetune.blocks=1,3"], "finetune.blocks=3: the model has 2 blocks", id="A16 last blocks"),
        pytest.param(["finetune=layers", "finetune.address=all,last:3"], "there is no 'last:3'", id="A19 an address", marks=pytest.mark.long),
        pytest.param(["finetune=features", "finetune.states=last,3"], "there is no '3'", id="hidden states"),
        pytest.param(["sweep=optuna", "finetune.blocks=int(interval(1,3))", "sweep.trials=2"], "finetune.blocks=3: the model has 2", id="A16 a search"),
    ],
)
def test_a_member_that_asks_for_blocks_that_there_are_not_is_refused_in_the_plan_and_before_anything_runs(run: Sweep, overrides: list[str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        run("mine", *overrides, show=True)
    with pytest.raises(ConfigError, match=says):
        run("mine", *overrides)
    assert not Path("runs").exists()


@pytest.mark.parametrize("name", ["../mine", "a/b", "..", "''"])
def test_a_name_is_the_name_of_a_folder_and_no_path(run: Sweep, name: str) -> None:
    with pytest.raises(ConfigError, match="name="):
        run(name, "seed=0,1")
    assert not Path("runs").exists()


def test_another_sweep_is_not_mixed_into_a_folder(run: Sweep) -> None:
    assert run("mine", "seed=0,1") == 0
    with pytest.raises(ConfigError, match="another sweep"):
        run("mine", "seed=1,2")
    assert run("mine", "seed=0,1,2") == 0  # more of the same is welcome
    assert len(book("mine").entries) == 3


def test_data_that_is_not_there_is_the_sweeps_own_error(pretrained: Pretrained, run: Sweep) -> None:
    from llmtrain.errors import DataError

    overrides = [o for o in typed(pretrained, "mine") if not o.startswith("data") or o.startswith("data.max_length")]
    with pytest.raises(DataError, match=r"nowhere\.csv"):
        sweep("finetune", [*overrides, "data=text", "data.train=nowhere.csv", "seed=0,1"])


# --- signals ------------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_a_sweep_that_is_told_to_stop_saves_its_members_and_goes_on_later(pretrained: Pretrained, two: Path, run: Sweep) -> None:
    process = started(typed(pretrained, "mine", *LONG))
    when("mine", has_a_checkpoint, lambda home: process.send_signal(signal.SIGTERM)).join()
    _, errors = process.communicate(timeout=120)
    assert process.returncode == Stopped.exit_code, errors
    assert "stopped by a signal" in errors
    assert not book("mine").with_status(Status.running)
    assert run("mine", *LONG) == 0
    assert outcomes("mine") == outcomes(two)


@pytest.mark.long
def test_a_sweep_that_was_killed_leaves_no_member_running(pretrained: Pretrained, two: Path, run: Sweep) -> None:
    """I02: killed and run again, finished members are skipped and the running one resumes."""
    process = started(typed(pretrained, "mine", *LONG))
    pids: list[int] = []

    def act(home: Path) -> None:
        pids.append(json.loads((home / ".lock-holder.json").read_text())["pid"])
        process.kill()

    when("mine", has_a_checkpoint, act).join()
    process.communicate(timeout=60)
    assert wait_until(lambda: not alive(pids[0]), 60)
    assert run("mine", *LONG) == 0
    assert outcomes("mine") == outcomes(two)


@pytest.mark.long
def test_a_sweep_that_is_started_again_while_a_member_of_the_killed_one_still_saves_waits_for_it(
    pretrained: Pretrained, two: Path, run: Sweep, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """I02: the member takes its time, since it is asleep when it is asked to save; it is woken when it was looked for a few times."""
    process = started(typed(pretrained, "mine", *LONG))
    pids: list[int] = []

    def act(home: Path) -> None:
        pids.append(json.loads((home / ".lock-holder.json").read_text())["pid"])
        os.kill(pids[0], signal.SIGSTOP)
        process.kill()

    when("mine", has_a_checkpoint, act).join()
    process.wait(60)  # its output ends with the last of its processes
    looked: list[Path] = []
    real = runtime.in_use

    def in_use(home: Path) -> runtime.InUse | None:
        looked.append(home)
        if len(looked) == 5:
            os.kill(pids[0], signal.SIGCONT)
        return real(home)

    monkeypatch.setattr(runtime, "in_use", in_use)
    try:
        assert run("mine", *LONG) == 0
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pids[0], signal.SIGCONT)
        process.communicate(timeout=60)
    assert f"in use by pid {pids[0]}" in capsys.readouterr().out
    assert outcomes("mine") == outcomes(two)


PAIR = ("optimizer.lr=1e-3,1e-2", "trainer.max_steps=1", "name=mine")


def begun(overrides: list[str], config_dir: Path | None = None) -> list[Path]:
    """A sweep that was killed as soon as it had a book: the folders that its members will have."""
    found = planned("pretrain", overrides, config_dir)
    found.folder.mkdir(parents=True)
    Book(found.folder, found.about).save()
    return [found.folder / "members" / name for name in found.configs]


@contextlib.contextmanager
def held(home: Path) -> Iterator[Callable[[], None]]:
    """A member's folder that a process has; gives what lets go of it."""
    home.mkdir(parents=True)
    let_go, has_it = threading.Event(), threading.Event()

    def hold() -> None:
        with runtime.locked(home):
            has_it.set()
            let_go.wait(120)

    thread = threading.Thread(target=hold)
    thread.start()
    assert has_it.wait(10)

    def release() -> None:
        let_go.set()
        thread.join()

    try:
        yield release
    finally:
        release()


def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "GRACE_S", 0.1)
    monkeypatch.setattr(local, "ENDING_S", 0.1)


def test_a_member_whose_folder_is_still_in_use_is_begun_when_it_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    asked = tiny(*PAIR)
    with held(begun(asked)[0]) as release:
        looked: list[Path] = []
        real = runtime.in_use

        def in_use(home: Path) -> runtime.InUse | None:
            looked.append(home)
            if len(looked) == 5:
                release()
            return real(home)

        monkeypatch.setattr(runtime, "in_use", in_use)
        assert sweep("pretrain", asked) == 0
    said = capsys.readouterr().out
    assert said.count(f"is in use by pid {os.getpid()}") == 1
    assert "waiting for that, 65 s at most" in said
    assert len(book("mine").with_status(Status.finished)) == 2


def test_a_member_whose_folder_stays_in_use_has_not_failed_and_goes_on_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    impatient(monkeypatch)
    asked = tiny(*PAIR)
    home, other = begun(asked)
    with held(home):
        assert sweep("pretrain", asked) == 1
    found = book("mine").entries
    assert (found[other.name].status, found[home.name].status) == (Status.finished, Status.stopped)
    assert f"in use by pid {os.getpid()}" in found[home.name].reason
    assert "still runs" in (Path("runs/sweep/mine") / "report.md").read_text()
    assert "in use by pid" in (home / "output.log").read_text()
    assert sweep("pretrain", asked) == 0


def test_a_signal_ends_the_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    asked = tiny(*PAIR)
    with held(begun(asked)[0]):
        looked: list[Path] = []
        real = runtime.in_use

        def in_use(home: Path) -> runtime.InUse | None:
            looked.append(home)
            os.kill(os.getpid(), signal.SIGTERM)
            return real(home)

        monkeypatch.setattr(runtime, "in_use", in_use)
        with pytest.raises(Stopped, match="2 have not"):
            sweep("pretrain", asked)
    assert len(looked) == 2  # at each member once
    assert not list(tmp_path.rglob("output.log"))


@pytest.mark.long
def test_a_search_is_not_told_of_a_member_whose_folder_is_in_use(run: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    overrides = ("sweep=optuna", "sweep.trials=2", "sweep.sampler=random", "optimizer.lr=interval(1e-4,1e-2)")
    assert run("other", *overrides) == 0
    names = list(book("other").entries)
    impatient(monkeypatch)
    with held(Path("runs/sweep/mine/members") / names[0]):
        Book(Path("runs/sweep/mine"), book("other").about).save()
        assert run("mine", *overrides) == 1
    assert book("mine").entries[names[0]].status is Status.stopped
    assert run("mine", *overrides) == 0
    assert outcomes("mine") == outcomes("other")


@pytest.mark.long
def test_a_member_whose_job_outlived_its_sweep_has_not_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("submitit")
    monkeypatch.chdir(tmp_path)
    asked = [*tiny(*PAIR), "launcher=submitit", "launcher.cluster=local"]
    home, _ = begun(asked)
    with held(home):
        assert sweep("pretrain", asked) == 1
    assert "waiting for" not in capsys.readouterr().out  # it may run for hours
    assert book("mine").entries[home.name].status is Status.stopped
    assert "a job of it still runs" in book("mine").entries[home.name].reason
    assert sweep("pretrain", asked) == 0


def started(overrides: list[str]) -> subprocess.Popen[str]:
    """The command itself, in a process that can be hurt."""
    command = [sys.executable, "-m", "llmtrain", "finetune", "-m", *overrides]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


def wait_until(true: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if true():
            return True
        time.sleep(0.05)
    return true()


# --- looking at sweeps --------------------------------------------------------------------------------------------


def test_status_says_how_far_each_member_is(run: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("mine", "optimizer.lr=1e-3,1e30", "finetune=full", "trainer.clip_norm=null") == 1
    capsys.readouterr()
    assert main(["sweep", "status", "mine"]) == 1
    said = capsys.readouterr().out
    assert "finished" in said
    assert "failed" in said
    assert main(["sweep"]) == 0
    assert "1 finished, 1 failed" in capsys.readouterr().out


def test_h10_a_secret_that_the_shell_put_in_is_in_no_file_of_a_sweep_which_goes_on(run: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "a-very-secret-key")
    asked = ("finetune=features", "seed=0,1", "trainer.max_steps=1", "callback.tracker.project=a-very-secret-key")
    assert run("mine", *asked) == run("mine", *asked) == 0
    files = [path for path in Path("runs").rglob("*") if path.is_file()]
    assert "${oc.env:WANDB_API_KEY}" in Path("runs/sweep/mine/sweep.json").read_text()
    assert [path for path in files if b"a-very-secret-key" in path.read_bytes()] == []


def test_a_sweep_of_no_such_name_is_named(run: Sweep) -> None:
    with pytest.raises(CheckpointError, match="nowhere"):
        recipe.command(compose("multirun", []), [], ["status", "nowhere"])


def test_a_sweep_that_is_named_by_its_folder_goes_on_there_wherever_it_and_the_user_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def suggested(name: str) -> str:
        capsys.readouterr()
        assert main(["sweep", "status", name]) == 0
        return capsys.readouterr().out.splitlines()[-1]

    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    monkeypatch.chdir(first)
    asked = tiny(*PAIR)
    assert sweep("pretrain", asked) == 0
    kept, gone = list(book("mine").entries)
    before = written(book("mine"), kept)
    assert suggested("mine") == suggested("runs/sweep/mine") == shlex.join(["llmtrain", "pretrain", "-m", *asked])
    Path("runs/sweep/mine").rename(second / "my study")
    assert suggested("../second/my study") == "llmtrain sweep resume '../second/my study'"
    shutil.rmtree(second / "my study" / "members" / gone)
    assert main(["sweep", "resume", "../second/my study"]) == 0
    assert not list(first.rglob("sweep.json"))
    assert suggested("../second/my study") == "llmtrain sweep resume '../second/my study'"
    found = book(second / "my study")
    assert len(found.with_status(Status.finished)) == 2
    assert written(found, kept) == before
    assert (found.home(found.entries[gone]) / "run.json").is_file()
    assert planned("pretrain", asked, None, folder=Path("../second/my study")).again == "llmtrain sweep resume '../second/my study'"


def test_a_sweep_whose_files_are_others_from_here_is_not_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for directory, text in ((first, "one"), (second, "another")):
        directory.mkdir()
        (directory / "book.txt").write_text(text)
        (directory / "mine").mkdir()
    monkeypatch.chdir(first)
    asked = [*tiny(*PAIR, "data=text"), "data.train=book.txt"]
    begun([o for o in asked if not o.startswith("data.documents")], Path("mine"))
    monkeypatch.chdir(second)
    resume = ["sweep", "resume", str(first / "runs/sweep/mine")]
    with pytest.raises(ConfigError, match=r"data\.train=book\.txt' is not the same from here as from .*first") as caught:
        going_on(resume)
    assert caught.value.fix == f"cd {first} && llmtrain sweep resume {first / 'runs/sweep/mine'}"
    (second / "book.txt").write_text("one")
    found = going_on(resume)
    assert not found.notes
    assert found.about["config_dir"] == str(first / "mine")  # not the folder that has this name here
    (first / "book.txt").unlink()
    assert [f"started in {first}, where data.train=book.txt is no more" in note for note in going_on(resume).notes] == [True]


def going_on(words: list[str]) -> Plan:
    """What a command that goes on with a sweep would run."""
    found: list[Plan] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipe, "sweep", lambda *args, folder, retry_failed: found.append(planned(*args, folder=folder)))
        recipe.command(compose("multirun", []), [], words[1:])
    return found[0]


def test_what_would_run_is_shown_without_running_it(run: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("mine", "finetune.blocks=1,2", show=True) == 0
    assert len([line for line in capsys.readouterr().out.splitlines() if "blocks=" in line]) == 2
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("overrides", "options"),
    [pytest.param(["seed=0,1"], {"show": True}, id="it is only shown"), pytest.param(["optimizer.lr=1e-3,-1"], {}, id="a member is wrong")],
)
def test_where_nothing_is_pretrained_no_model_is_made_before_a_sweep_can_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: list[str], options: dict[str, Any]
) -> None:
    monkeypatch.chdir(tmp_path)
    if options:
        assert sweep("finetune", overrides, **options) == 0
    else:
        with pytest.raises(ConfigError, match=r"optimizer\.lr"):
            sweep("finetune", overrides)
    assert not list(tmp_path.iterdir())


# --- kinds of sweeps ----------------------------------------------------------------------------------------------


def test_a_freezing_sweep_makes_its_points_from_the_model(run: Sweep) -> None:
    assert run("mine", "sweep=freezing", "sweep.seeds=1") == 0
    overrides = [" ".join(entry.overrides) for entry in book("mine").entries.values()]
    assert [o.replace(" seed=0", "") for o in overrides] == [
        "finetune=features",
        "finetune=last_layers finetune.blocks=1",
        "finetune=last_layers finetune.blocks=2",
        "finetune=full",
    ]


@pytest.mark.long
def test_a_search_goes_on_where_it_was(run: Sweep) -> None:
    overrides = ("sweep=optuna", "sweep.trials=3", "sweep.sampler=random", "optimizer.lr=interval(1e-4,1e-2)")
    assert run("mine", *overrides) == 0
    assert run("again", *overrides) == 0

    def chosen(name: str) -> list[list[str]]:
        return sorted(entry.overrides for entry in book(name).entries.values())

    assert len(chosen("mine")) == 3
    assert chosen("mine") == chosen("again")
    before = {entry.name: (book("mine").home(entry) / "run.json").stat().st_mtime_ns for entry in book("mine").entries.values()}
    assert run("mine", *overrides) == 0
    assert {entry.name: (book("mine").home(entry) / "run.json").stat().st_mtime_ns for entry in book("mine").entries.values()} == before


def test_pretraining_is_swept_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert sweep("pretrain", [*tiny("optimizer.lr=1e-3,1e-2"), "name=mine"]) == 0
    assert len(book("mine").with_status(Status.finished)) == 2
    assert "loss" in (Path("runs/sweep/mine") / "report.md").read_text()


def test_the_command_of_a_member_repeats_it_alone_and_that_of_the_sweep_all_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my configs").mkdir()
    common = tiny("trainer.max_steps=1")
    assert sweep("pretrain", [*common, "optimizer.lr=1e-3,1e-2", "name=mine"], Path("my configs")) == 0
    begin = ["llmtrain", "pretrain", "--config-dir", "my configs"]
    for entry in book("mine").entries.values():
        assert shlex.split(record_of(book("mine").home(entry))["command"]) == [*begin, *common, *entry.overrides]
    assert shlex.split(book("mine").about["command"]) == ["llmtrain", "pretrain", "-m", *begin[2:], *common, "optimizer.lr=1e-3,1e-2", "name=mine"]


def test_what_a_member_ends_with_is_what_the_book_says(tmp_path: Path) -> None:
    from llmtrain.command.sweep import _settle

    found = Book(tmp_path, {})
    for code, pruned, status in [
        (0, False, Status.finished),
        (75, False, Status.stopped),
        (75, True, Status.pruned),
        (-9, False, Status.stopped),
        (76, False, Status.stopped),
        (3, False, Status.failed),
    ]:
        entry = Entry("a", [])
        _settle(found, entry, code, pruned)
        assert entry.status is status
