"""Whatever happens to a run, its checkpoints are whole and it goes on with the bits of the unbroken one.

Names say to which family of `scripts/torture` a test belongs: chaos, signal, disk; all others are kills.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch import nn

from llmtrain import cache, changes, checkpoint, cli, files, runtime, trainer
from llmtrain.callback.progress import Progress
from llmtrain.command import train as command
from llmtrain.data import tokenizer as tokens
from llmtrain.errors import CheckpointError, DeviceError, Interrupted, Stopped
from llmtrain.launcher.base import Job
from llmtrain.launcher.local import Local
from tests import crashing
from tests.conftest import Train, digest, outcome, tiny
from tests.disk import Disk, Killed

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/proc, and signals to processes")
ROOT = Path(__file__).parents[1]
ASKED = ("model.dropout=0.1",)
GRACE_S = 60.0  # that a signalled run may take on a machine that does other things too; alone it takes a second


@dataclass(frozen=True)
class Unbroken:
    """What `ASKED` gives where nothing happens.

    Attributes:
        events: the changes of files below its folder.
        links: what `last` and `best` point at.
    """

    folder: Path
    outcome: dict[str, Any]
    events: list[tuple[str, str]]
    links: dict[str, str]


def pretrain(folder: Path) -> None:
    """A run with all that it writes: the picture and the samples too, which the `train` of other tests leaves out."""
    assert cli.main(["pretrain", *tiny(*ASKED), f"output_dir={folder}"]) == 0


def links_of(run: Path) -> dict[str, str]:
    """What links to checkpoints point at, half ones included."""
    return {path.name: path.resolve().name for path in (run / "checkpoints").iterdir() if path.is_symlink()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, token_cache: Path) -> Unbroken:
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    with Disk(folder) as disk:
        pretrain(folder)
    return Unbroken(folder, outcome(folder), disk.events, links_of(folder))


@pytest.fixture
def unbroken(whole: Unbroken) -> dict[str, Any]:
    return whole.outcome


@pytest.fixture
def finished(whole: Unbroken, tmp_path: Path) -> Path:
    """A copy of the run that nothing happened to."""
    return Path(shutil.copytree(whole.folder, tmp_path / "run", symlinks=True))


def some(values: list[Any], *ordinary: Any) -> list[Any]:
    """All of them, of which the ordinary run takes these."""
    return [value if value in ordinary else pytest.param(value, marks=pytest.mark.long) for value in values]


def step_of_newest(run: Path) -> int:
    found = checkpoint.newest(run)
    return 0 if found is None else checkpoint.step_of(found)


# --- killed: one save -----------------------------------------------------------------------------------------------


def save(run: Path, step: int) -> None:
    """A checkpoint as the trainer saves it: written, named the best, and the older ones removed (keep_last=1)."""
    model = nn.Linear(3, 3)
    nn.init.constant_(model.weight, step)
    moments = {"weight": {"exp_avg": torch.full((3, 3), float(step))}}
    path = checkpoint.save(run, step=step, model=model, optimizer=moments, state={"run": {"step": step}})
    checkpoint.link(run, "best", path)
    checkpoint.prune(run, 1, None, step)


def changes_of(run: Path, step: int) -> int:
    """How many file events saving over the checkpoint of step 2 has."""
    save(run, 2)
    with Disk(run) as disk:
        save(run, step)
    return len(disk.events)


@pytest.mark.parametrize("step", [4, 2], ids=["the next step", "the same step again"])
@pytest.mark.parametrize("fault", ["kill", "torn"])
def test_r16_with_keep_last_1_a_kill_at_any_file_event_of_a_save_leaves_a_whole_checkpoint(tmp_path: Path, fault: str, step: int) -> None:
    number = changes_of(tmp_path / "counted", step)
    assert number > 15
    for at in range(1, number + 1):
        run = tmp_path / str(at)
        save(run, 2)
        with Disk(run, at, fault) as disk, pytest.raises(Killed):
            save(run, step)
        files.recover(run / "checkpoints")  # what a run does first when it is started again
        found = checkpoint.newest(run)
        assert found is not None, disk.events
        loaded = checkpoint.read(found)
        assert loaded.weights["weight"].unique().tolist() == [checkpoint.step_of(found)]
        assert loaded.optimizer["weight"]["exp_avg"].unique().tolist() == [checkpoint.step_of(found)]
        save(run, 6)
        assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["best", "last", "step-00000006"]


def test_r16_a_newer_checkpoint_that_is_damaged_takes_no_place_of_those_that_are_kept(tmp_path: Path) -> None:
    save(tmp_path, 6)
    (tmp_path / "checkpoints" / "step-00000006" / "state.json").write_text("")
    save(tmp_path, 5)  # resumed from an older one, with another checkpoint.every_steps
    assert step_of_newest(tmp_path) == 5


# --- killed: a whole run --------------------------------------------------------------------------------------------


def kill_and_resume(run: Path, at: int, fault: str) -> tuple[list[tuple[str, str]], int]:
    """Kill a run at a file event and let the same command go on: the events until then, and the step it goes on from."""
    with Disk(run, at, fault) as disk, pytest.raises(Killed):
        pretrain(run)
    files.recover(run / "checkpoints")
    newest = step_of_newest(run)
    pretrain(run)
    return disk.events, newest


def number_of(events: list[tuple[str, str]], wanted: tuple[str, str], nth: int = 1) -> int:
    return [number for number, event in enumerate(events, 1) if event == wanted][nth - 1]


# One at each kind of place where a run writes, by number, 0 the last; `-m long` takes all of them.
PLACES = [
    pytest.param(("fsync", ".config.yaml.new"), 1, "torn", id="the config", marks=pytest.mark.long),
    pytest.param(("fsync", ".resolved.yaml.new"), 1, "torn", id="what was decided", marks=pytest.mark.long),
    pytest.param(("fsync", "optimizer.safetensors"), 2, "torn", id="the optimizer of the second checkpoint"),
    pytest.param(("replace", ".last.new"), 0, "kill", id="the link to the last checkpoint"),
    pytest.param(("replace", ".run.json.new"), 1, "kill", id="the last word", marks=pytest.mark.long),
]


@pytest.mark.parametrize(("event", "nth", "fault"), PLACES)
def test_e02_a_run_killed_at_a_file_event_goes_on_from_the_newest_whole_checkpoint_and_repeats_the_unbroken_one(
    tmp_path: Path, whole: Unbroken, capsys: pytest.CaptureFixture[str], event: tuple[str, str], nth: int, fault: str
) -> None:
    events, newest = kill_and_resume(tmp_path / "run", number_of(whole.events, event, nth), fault)
    assert events[-1] == event
    assert f"from step {newest}\n" in capsys.readouterr().out
    assert outcome(tmp_path / "run") == whole.outcome
    assert links_of(tmp_path / "run") == whole.links
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "finished"


@pytest.mark.long
@pytest.mark.parametrize("fault", ["kill", "torn"])
def test_e02_a_run_killed_at_any_file_event_at_all_repeats_the_unbroken_one(
    tmp_path: Path, whole: Unbroken, record_property: Callable[[str, Any], None], fault: str
) -> None:
    points = [n for n, (kind, _) in enumerate(whole.events, 1) if fault == "kill" or kind == "fsync"]
    assert len(points) > 20
    failed = []
    for at in points:
        run = tmp_path / str(at)
        kill_and_resume(run, at, fault)
        record = json.loads((run / "run.json").read_text())
        left = [path for path in run.rglob(".*") if path.name.startswith((".tmp-", ".old-")) or path.name.endswith(".new")]
        if outcome(run) != whole.outcome or record["status"] != "finished" or left or links_of(run) != whole.links:
            failed.append((at, whole.events[at - 1], left))
        shutil.rmtree(run)
    told(record_property, len(points), len(points) - len(failed))
    assert failed == []


def told(record_property: Callable[[str, Any], None], tried: int, passed: int) -> None:
    """How many cases a test had, for `scripts/torture`."""
    record_property("tried", tried)
    record_property("passed", passed)


FILES = ["model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"]


@pytest.mark.parametrize("name", some(FILES, "manifest.json"))
def test_r6_a_file_of_another_steps_checkpoint_is_noticed_and_the_previous_one_used(
    train: Train, finished: Path, unbroken: dict[str, Any], capsys: pytest.CaptureFixture[str], name: str
) -> None:
    old, new = (finished / "checkpoints" / f"step-0000000{step}" for step in (4, 6))
    shutil.copyfile(old / name, new / name)
    train(finished, *ASKED)
    said = capsys.readouterr().out
    named = r"(model|optimizer)\.safetensors" if name == "manifest.json" else name  # what a foreign manifest says of the files is what is wrong
    assert re.search(rf"warning: \S*{new.name} is not used: {named} ", said), said
    assert "resumed from step 4" in said
    assert outcome(finished) == unbroken


@pytest.mark.parametrize("name", some(FILES, "state.json"))
def test_r6_a_checkpoint_that_is_named_and_has_a_file_of_another_step_is_an_error(train: Train, finished: Path, name: str) -> None:
    path = finished / "checkpoints" / "step-00000004"
    shutil.copyfile(finished / "checkpoints" / "step-00000006" / name, path / name)
    with pytest.raises(CheckpointError, match="step-00000004: ") as caught:
        train(finished, f"resume={path}", *ASKED)
    assert caught.value.exit_code == 4


# --- killed: at any time, as a process ------------------------------------------------------------------------------

# Training takes some seconds: long enough to be hit.
SLOW = (*ASKED, "trainer.max_steps=400", "trainer.log_every_steps=1", "checkpoint.every_steps=25", "evaluation.every_steps=100", "callback.progress.bar=false")
START = re.compile(r"(?:resumed|starting) from step (\d+)")


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}


class Command:
    """`llmtrain pretrain` as a process, and what it prints."""

    def __init__(self, run: Path, *overrides: str, program: tuple[str, ...] = ("-m", "llmtrain")) -> None:
        self.log = run.with_suffix(".log")
        typed = [*tiny(*overrides), f"output_dir={run}"]
        with self.log.open("w") as log:
            self.process = subprocess.Popen([sys.executable, *program, "pretrain", *typed], stdout=log, stderr=log, cwd=run.parent, env=environment())
        self.began = time.monotonic()

    def wait_for(self, words: str, within_s: float = 120.0) -> None:
        end = time.monotonic() + within_s
        while not re.search(words, self.said) and self.process.poll() is None:
            assert time.monotonic() < end, f"{words!r} did not come: {self.said}"
            time.sleep(0.01)

    def wait(self, seconds: float) -> None:
        """Wait, or until it ends."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(seconds)

    def end(self, within_s: float = 300.0) -> int:
        return self.process.wait(within_s)

    @property
    def said(self) -> str:
        return self.log.read_text()

    @property
    def step(self) -> int:
        """The step that it began with."""
        found = START.search(self.said)
        assert found is not None, self.said
        return int(found[1])

    def kill(self, rank: int | None = None) -> None:
        """SIGKILL to the process, or to the one that is a rank of it."""
        if rank is None:
            self.process.kill()
            return
        ranks = [child for child in psutil.Process(self.process.pid).children(recursive=True) if child.environ().get("RANK") == str(rank)]
        for child in ranks:
            child.kill()


@pytest.fixture
def slow(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """What `SLOW` gives where nothing happens."""

    def run(*more: str) -> dict[str, Any]:
        assert Command(tmp_path / "unbroken", *SLOW, *more).end() == 0
        return outcome(tmp_path / "unbroken")

    return run


def steps_done(run: Path) -> int:
    lines = (run / "metrics.jsonl").read_text().splitlines() if (run / "metrics.jsonl").is_file() else []
    found = 0
    for line in lines:
        with contextlib.suppress(ValueError):  # the kill cut it
            found = max(found, json.loads(line)["step"])
    return found


@pytest.mark.long
@pytest.mark.parametrize("processes", [1, 2])
def test_r4_a_chain_of_kills_at_random_times_loses_less_than_the_save_interval_each_and_no_bit(
    tmp_path: Path, slow: Callable[..., dict[str, Any]], record_property: Callable[[str, Any], None], processes: int
) -> None:
    more = () if processes == 1 else ("devices=2", "trainer.max_steps=150")
    wanted, kills = slow(*more), 0
    for seed in range(10 if processes == 1 else 3):
        draw, run, newest = random.Random(seed), tmp_path / f"run{seed}", 0
        for session in range(40):
            one = Command(run, *SLOW, *more)
            one.wait_for(START.pattern)
            if one.process.poll() is None:
                assert one.step == newest  # nothing that was whole was lost
                one.wait(draw.uniform(0, 2.0 + session / 4))
            if one.process.poll() is not None:
                assert one.end() == 0, one.said
                break
            one.kill(None if processes == 1 else draw.randrange(2))
            code, kills = one.end(), kills + 1
            if code == 0:  # it was done before the signal came
                break
            assert code == (-signal.SIGKILL if processes == 1 else 7), one.said
            newest = step_of_newest(run)
            assert 0 <= steps_done(run) - newest <= 25, (seed, session)
        assert [outcome(run)[part] for part in ("weights", "optimizer", "final")] == [wanted[part] for part in ("weights", "optimizer", "final")]
        assert [r for r in outcome(run)["metrics"] if "lr" in r] == [r for r in wanted["metrics"] if "lr" in r]
    assert kills > 3
    told(record_property, kills, kills)


# --- signals --------------------------------------------------------------------------------------------------------


def signalling(monkeypatch: pytest.MonkeyPatch, where: Any, name: str, *numbers: signal.Signals, nth: int = 1) -> list[str]:
    """Have this process signalled when a function is called for the nth time. The calls are noted."""
    real, calls = getattr(where, name), list[str]()

    def signalled(*arguments: Any, **named: Any) -> Any:
        calls.append(name)
        if len(calls) == nth:
            for number in numbers:
                os.kill(os.getpid(), number)
        return real(*arguments, **named)

    monkeypatch.setattr(where, name, signalled)
    return calls


EARLY = {
    "reading the data": (command, "rows_of"),
    "training the tokenizer": (tokens, "_bpe"),
    "tokenising": (tokens, "encode"),
    "making the model": (command, "_anatomy"),
    "what was decided": (changes, "settle"),
}


@pytest.mark.parametrize("number", some([signal.SIGTERM, signal.SIGINT], signal.SIGTERM), ids=["SIGTERM", "SIGINT"])
@pytest.mark.parametrize("place", some(list(EARLY), "training the tokenizer", "tokenising"))
def test_e14_a_signal_before_training_ends_it_there_with_75_and_the_same_command_starts_it(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unbroken: dict[str, Any], place: str, number: signal.Signals
) -> None:
    where, name = EARLY[place]
    with monkeypatch.context() as patch:
        patch.setenv("LLMTRAIN_CACHE", str(tmp_path / "cache"))  # nothing is tokenised there yet
        calls = signalling(patch, where, name, number)
        updates = signalling(patch, trainer.Trainer, "_update")
        with pytest.raises(Stopped, match="before training began") as caught:
            train(tmp_path / "run", *ASKED)
    assert (calls, updates) == ([name], [])
    assert caught.value.exit_code == 75
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (record["status"], record["exit_code"]) == ("stopped", 75)
    assert not list(tmp_path.rglob(".tmp-*"))
    if place == "tokenising":
        assert outcome(train(tmp_path / "run", *ASKED)) == unbroken


@pytest.mark.long
def test_e14_a_signal_while_the_cache_is_filled_ends_it_there_and_leaves_nothing_half(finetune: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = ("objective=classification", "finetune=features", "cache.use=always")
    monkeypatch.setenv("LLMTRAIN_CACHE", str(tmp_path / "cache"))
    with monkeypatch.context() as patch:
        signalling(patch, cache, "_write_batch", signal.SIGTERM, nth=2)
        with pytest.raises(Stopped, match="before training began"):
            finetune(tmp_path / "run", *task)
    assert not list(tmp_path.rglob(".tmp-*"))
    assert outcome(finetune(tmp_path / "run", *task)) == outcome(finetune(tmp_path / "other", *task))


LATE = {
    "the first update": (trainer.Trainer, "_update", 1),
    "an update": (trainer.Trainer, "_update", 4),
    "evaluating": (trainer, "evaluate", 1),
    "saving": (files, "write_manifest", 2),
    "removing old checkpoints": (checkpoint, "prune", 3),
}


@pytest.mark.parametrize("place", some(list(LATE), "saving"))
def test_e14_a_signal_while_training_saves_at_the_next_step_and_ends_with_75_and_the_resume_is_exact(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unbroken: dict[str, Any], place: str
) -> None:
    where, name, nth = LATE[place]
    with monkeypatch.context() as patch:
        calls = signalling(patch, where, name, signal.SIGTERM, nth=nth)
        updates = signalling(patch, trainer.Trainer, "_update")
        with pytest.raises(Stopped, match=r"after step \d; the checkpoint is saved") as caught:
            train(tmp_path / "run", *ASKED)
    assert len(calls) >= nth
    assert step_of_newest(tmp_path / "run") == len(updates)
    assert caught.value.exit_code == 75
    assert outcome(train(tmp_path / "run", *ASKED)) == unbroken


@pytest.mark.parametrize("place", some(["an update", "saving"], "saving"))
def test_e15_a_second_ctrl_c_ends_it_at_once_and_the_checkpoints_are_intact_after_two_signals(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unbroken: dict[str, Any], place: str
) -> None:
    where, name, nth = LATE[place]
    with monkeypatch.context() as patch:
        updates = signalling(patch, trainer.Trainer, "_update")
        signalling(patch, where, name, signal.SIGINT, signal.SIGINT, nth=nth)
        with pytest.raises(Interrupted) as caught:
            train(tmp_path / "run", *ASKED)
    assert caught.value.exit_code == 130
    run = tmp_path / "run"
    assert len(updates) == 3
    # Neither the fourth update nor the save of the third (it is the best so far) was brought to its end.
    steps = ["step-00000002", "step-00000003"] if place == "an update" else ["step-00000002"]
    assert sorted(path.name for path in (run / "checkpoints").glob("*step*")) == steps
    assert step_of_newest(run) == int(steps[-1][5:])
    assert outcome(train(run, *ASKED)) == unbroken


@pytest.mark.long
def test_a_signal_after_the_last_update_lets_the_run_finish(train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unbroken: dict[str, Any]) -> None:
    with monkeypatch.context() as patch:
        signalling(patch, command, "_export", signal.SIGTERM)
        train(tmp_path / "run", *ASKED)
    assert outcome(tmp_path / "run") == unbroken
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "finished"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_e14_a_signal_before_the_run_has_a_handler_of_its_own_is_answered_by_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: signal.Signals
) -> None:
    monkeypatch.setattr(sys, "argv", ["llmtrain", "pretrain"])
    monkeypatch.setenv("GLIBC_TUNABLES", "")  # else it would begin by starting itself anew
    before = signal.getsignal(number)

    def imports(found: cli.Arguments) -> int:
        try:
            os.kill(os.getpid(), number)
        except Exception:  # as libraries do while they are imported
            return 0
        return 1

    monkeypatch.setattr(cli, "dispatch", imports)
    assert cli.main() == 75
    assert capsys.readouterr().err == "error: stopped by a signal before training began; nothing is lost\nfix: the same command starts it again\n"
    assert signal.getsignal(number) is before


def test_a_signal_that_somebody_swallowed_is_heard_when_the_run_begins(train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    updates = signalling(monkeypatch, trainer.Trainer, "_update")
    with pytest.raises(Stopped), runtime.stopping_at_once():
        with contextlib.suppress(runtime.AtOnce):
            os.kill(os.getpid(), signal.SIGTERM)
        train(tmp_path / "run", *ASKED)
    assert updates == []


@pytest.mark.long
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_r9_signals_at_random_times_end_a_run_within_the_grace_with_75_and_the_resume_is_exact(
    tmp_path: Path, slow: Callable[..., dict[str, Any]], record_property: Callable[[str, Any], None], number: signal.Signals, processes: int
) -> None:
    more = () if processes == 1 else ("devices=2", "trainer.max_steps=150")
    wanted, sent = slow(*more), 0
    for seed in range(4 if processes == 1 else 2):
        draw, run = random.Random(seed), tmp_path / f"run{seed}"
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)
        for session in range(40):
            one = Command(run, *SLOW, *more)
            if session % 2 == 0:  # while it starts, imports, reads and tokenises; not before Python itself has started
                one.wait(draw.uniform(1.0, 8.0))
            else:
                one.wait_for(START.pattern)
                one.wait(draw.uniform(0, 2.0 + session / 4))
            if one.process.poll() is None:
                one.process.send_signal(number)
                sent, began = sent + 1, time.monotonic()
                code = one.end(GRACE_S)
                assert code in (0, 75), one.said
                assert time.monotonic() - began < GRACE_S
                assert "Traceback" not in one.said
                if code == 75:
                    assert one.said.count("error: stopped by a signal") == 1, one.said
            if one.end() == 0:
                break
        assert [outcome(run)[part] for part in ("weights", "optimizer", "final")] == [wanted[part] for part in ("weights", "optimizer", "final")]
    assert sent > 3
    told(record_property, sent, sent)


# Two signals sent one after the other may come as one, or the run may have ended by the first: its update waits for both.
LONG_UPDATE = """
import sys, time
from llmtrain import cli, trainer

real = trainer.Trainer._update

def update(self, batches):
    if self.state.step == 50:
        print("in the update", flush=True)
        while not self.runtime.signalled.is_set():
            time.sleep(0.01)
        print("heard the first", flush=True)
        time.sleep(1000)
    return real(self, batches)

if __name__ == "__main__":
    trainer.Trainer._update = update
    sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.long
def test_e15_two_ctrl_c_signals_end_a_process_at_once_with_130(tmp_path: Path, slow: Callable[..., dict[str, Any]]) -> None:
    wanted, script, run = slow(), tmp_path / "long_update.py", tmp_path / "run"
    script.write_text(LONG_UPDATE)
    one = Command(run, *SLOW, program=(str(script),))
    one.wait_for("in the update")
    one.process.send_signal(signal.SIGINT)
    one.wait_for("heard the first")
    one.process.send_signal(signal.SIGINT)
    assert one.end(GRACE_S) == 130, one.said
    assert one.said.count("error: interrupted twice: stopped at once") == 1
    assert "Traceback" not in one.said
    assert step_of_newest(run) == 50
    assert not list((run / "checkpoints").glob(".*"))
    again = Command(run, *SLOW)
    assert again.end() == 0
    assert again.step == 50
    assert outcome(run)["final"] == wanted["final"]


# --- the disk -------------------------------------------------------------------------------------------------------


def test_r8_a_disk_that_is_full_at_any_file_event_of_a_save_leaves_the_old_checkpoint_and_no_half_one(tmp_path: Path) -> None:
    number, refused, sizes = changes_of(tmp_path / "counted", 4), 0, 0
    for at in range(1, number + 1):
        run = tmp_path / str(at)
        save(run, 2)
        with Disk(run, at, "full") as disk:
            error = refusal(run)
        if error is not None:
            refused += 1
            assert error.exit_code == 6
            assert "No space left on device" in error.what
            assert str(run / "checkpoints") in error.what
            sizes += re.search(r"safetensors: .* \([\d,]+ bytes to write, [\d,]+ free\)", error.what) is not None
        assert step_of_newest(run) in (2, 4)
        assert not list((run / "checkpoints").glob(".*")), disk.events
    assert refused > 8
    assert sizes >= 4  # where a file could not be opened, and where it could not be brought to the disk


def refusal(run: Path) -> DeviceError | None:
    try:
        with files.told(run):
            save(run, 4)
    except DeviceError as error:
        return error
    return None


@contextlib.contextmanager
def no_file_above(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_e11_a_full_disk_ends_a_run_with_6_and_the_same_command_goes_on_where_there_is_room(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unbroken: dict[str, Any]
) -> None:
    run = tmp_path / "run"
    before = Progress.on_step
    with contextlib.ExitStack() as limit, monkeypatch.context() as patch:

        def on_step(self: Progress, run: Any, state: Any, done: Any) -> None:
            before(self, run, state, done)
            if state.step == 3:
                limit.enter_context(no_file_above(32_000))

        patch.setattr(Progress, "on_step", on_step)
        with pytest.raises(DeviceError, match=r"step-00000003/model\.safetensors: File too large \([\d,]+ bytes to write\)") as caught:
            train(run, *ASKED)
    assert caught.value.exit_code == 6
    assert len(caught.value.screen().splitlines()) <= 6
    assert not list((run / "checkpoints").glob(".*"))
    assert step_of_newest(run) == 2
    record = json.loads((run / "run.json").read_text())
    assert (record["status"], record["exit_code"]) == ("failed", 6)
    assert outcome(train(run, *ASKED)) == unbroken


def test_e11_a_full_disk_while_the_model_is_exported_names_the_folder_and_leaves_nothing_half(train: Train, finished: Path, unbroken: dict[str, Any]) -> None:
    shutil.rmtree(finished / "final")
    with no_file_above(32_000), pytest.raises(DeviceError, match=r"run/final\S*: File too large") as caught:
        train(finished, *ASKED)
    assert caught.value.exit_code == 6
    assert not [path for path in finished.iterdir() if "final" in path.name]
    assert outcome(train(finished, *ASKED)) == unbroken


@pytest.mark.long
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.usefixtures("whole")  # its tokens are in the cache: nothing is written there
def test_e11_a_full_disk_ends_two_processes_with_6_and_one_message(tmp_path: Path, strategy: str) -> None:
    asked = (*ASKED, "devices=2", f"distributed.strategy={strategy}")
    with no_file_above(32_000):  # what this process starts inherits it
        one = Command(tmp_path / "run", *asked)
        assert one.end() == 6, one.said
    assert one.said.count("error: ") == 1
    assert re.search(r"step-00000002/model\S*: File too large \([\d,]+ bytes to write\)", one.said), one.said
    assert not list((tmp_path / "run" / "checkpoints").glob("*step*"))
    assert Command(tmp_path / "run", *asked).end() == 0


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/full/file"), 6),
        (RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"), 6),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "/a/file"), 1),
    ],
)
def test_e11_a_full_disk_is_told_from_other_faults_whoever_wrote(error: Exception, code: int) -> None:
    found = cli.as_ours(error)
    assert found.exit_code == code
    assert ("No space left on device" in found.what) is (code == 6)
    with pytest.raises(DeviceError if code == 6 else FileNotFoundError), files.told(Path("/a/place")):
        raise error


@pytest.mark.long
def test_r8_a_disk_that_is_full_at_any_file_event_of_a_run_ends_it_with_6_or_not_at_all_and_the_resume_is_exact(
    tmp_path: Path, whole: Unbroken, record_property: Callable[[str, Any], None]
) -> None:
    failed = []
    for at, event in enumerate(whole.events, 1):
        run = tmp_path / str(at)
        with Disk(run, at, "full"):
            code = cli.main(["pretrain", *tiny(*ASKED), f"output_dir={run}"])
        half = list((run / "checkpoints").glob(".*")) if (run / "checkpoints").is_dir() else []
        pretrain(run)
        if code not in (0, 6) or half or outcome(run) != whole.outcome:
            failed.append((at, event, code, half))
        shutil.rmtree(run)
    told(record_property, len(whole.events), len(whole.events) - len(failed))
    assert failed == []


# --- ckpt-chaos, an outside judge -----------------------------------------------------------------------------------

CHAOS = ("trainer.max_steps=4", "checkpoint.every_steps=2", "checkpoint.keep_last=9", "evaluation.every_steps=2", "callback.progress.bar=false")
MODES = ("before", "torn", "term", "unsynced")
FAIL = ("HARD_FAIL", "SILENT_DIVERGENCE", "LOST_WORK", "CONTROL_FAIL")
STEP = r"(?:resumed from step|starting from step|already complete:) (\d+)"


def chaos(
    work: Path, *overrides: str, modes: tuple[str, ...] = MODES, points: int, ranks: int = 1, crash_rank: int = 0, command: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """Let ckpt-chaos kill the real command, or another, and return what it wrote of each crash point."""
    command = command or [sys.executable, "-m", "llmtrain", "pretrain", *tiny(*CHAOS, *overrides), "output_dir={out}"]
    asked = {
        "--modes": ",".join(modes),
        "--max-points": points,
        "--grace": 30,
        "--ranks": ranks,
        "--crash-rank": crash_rank,
        "--checkpoint-glob": "{out}/checkpoints/step-*",
        "--step-regex": STEP,
        "--result-file": "{out}/final/model.safetensors",
        "--fail-on": ",".join(FAIL),
        "--junit": work / "junit.xml",
        "--work": work / "work",
    }
    # By size no checkpoint would be like that of the undisturbed run: state.json holds seconds, of as many digits as it happens. None would count as lost.
    options = ["--ckpt-ignore-size", *(str(part) for pair in asked.items() for part in pair)]
    # Told how to allocate, the command does not start itself anew, by which it would lose what ckpt-chaos put into it. And what it put in
    # asks a variable which rank is to die, 0 without it, which `ckpt-chaos run --crash-rank` does not set (0.1.8): no other rank ever crashed.
    armed = {**environment(), "GLIBC_TUNABLES": "glibc.malloc.tcache_count=0", "CKPT_CHAOS_CRASH_RANK": str(crash_rank)}
    words = [sys.executable, "-m", "ckpt_chaos", "run", *options, "--", *command]
    done = subprocess.run(words, capture_output=True, text=True, cwd=work, env=armed, check=False)
    rows = [json.loads(path.read_text()) for path in sorted((work / "work").glob("pt_*/result.json"))]
    assert rows, f"ckpt-chaos could not run: {done.stdout[-2000:]} {done.stderr[-2000:]}"
    suite = xml.etree.ElementTree.parse(work / "junit.xml").getroot()
    assert suite.get("tests") == str(len(rows))
    assert (suite.get("failures"), done.returncode) == ("0", 0), done.stdout[-6000:]
    return rows


def wrong(row: dict[str, Any]) -> str:
    """Why a row that ckpt-chaos lets pass is not believed; empty where it is.

    A run that was asked to stop after its last update ends by itself: it must then have ended whole.
    """
    if row["drift"]:
        return "PLAN DRIFT"
    finished = "already complete" in row.get("resume_tail", "")
    if not row["crashed"] and not row["label"].startswith("no crash") and not (row["label"].endswith("[term]") and finished):
        return "DID NOT CRASH"
    steps = row.get("outcome", {"resumed_from_step": None})
    if row["crashed"] and not row["label"].endswith("[term]") and steps["resumed_from_step"] != steps.get("newest_complete_step"):
        return "NOT THE NEWEST"  # where it did not know the checkpoint that was gone on from, it could not have seen that one was lost
    return ""


POINTS = int(os.environ.get("LLMTRAIN_CHAOS_POINTS", "8"))  # of each mode a quarter: a run's first change of a file, and the one in the middle


def test_r5_ckpt_chaos_finds_nothing_in_one_process(tmp_path: Path, record_property: Callable[[str, Any], None]) -> None:
    judged(chaos(tmp_path, points=POINTS), record_property, POINTS)


@pytest.mark.long
def test_r5_ckpt_chaos_finds_nothing_in_two_processes_of_which_the_first_dies(tmp_path: Path, record_property: Callable[[str, Any], None]) -> None:
    judged(chaos(tmp_path, points=POINTS, ranks=2), record_property, POINTS)


@pytest.mark.long
@pytest.mark.parametrize("crash_rank", [0, 1])
def test_r5_ckpt_chaos_finds_nothing_in_two_processes_that_share_a_model_and_each_write_a_part_of_it(
    tmp_path: Path, record_property: Callable[[str, Any], None], crash_rank: int
) -> None:
    judged(chaos(tmp_path, "distributed.strategy=fsdp", points=POINTS, ranks=2, crash_rank=crash_rank), record_property, POINTS)


# Two processes that each save a part and wait for the other's: what is asked of ckpt-chaos, in a tenth of a second.
EACH_A_PART = """
import os, sys, time
from pathlib import Path
out, rank = Path(sys.argv[1]), os.environ["RANK"]
folder = out / "checkpoints" / "step-1"
whole = all((folder / part).is_file() for part in "01")
print("starting from step", int(whole))
for path in (out, folder.parent, folder):
    path.mkdir(exist_ok=True)  # an event in each process, whichever comes first
(folder / rank).write_text("a part")
end = time.monotonic() + 60
while not all((folder / part).is_file() for part in "01"):
    if time.monotonic() > end:
        sys.exit(1)
    time.sleep(0.01)
(out / "final").mkdir(exist_ok=True)
(out / "final" / "model.safetensors").write_text("learned")
"""


@pytest.mark.parametrize("crash_rank", some([0, 1], 1))
def test_r5_ckpt_chaos_strikes_the_one_of_two_processes_that_it_is_asked_to(tmp_path: Path, crash_rank: int) -> None:
    """What the long tests rely on; a real run of two processes is too slow to be struck here."""
    (tmp_path / "saves.py").write_text(EACH_A_PART)
    rows = chaos(tmp_path, modes=("before",), points=2, ranks=2, crash_rank=crash_rank, command=[sys.executable, str(tmp_path / "saves.py"), "{out}"])
    assert [(row["crashed"], row["drift"]) for row in rows if "point" in row] == [(True, False), (True, False)]
    for row in rows:
        if "point" in row:
            done = (tmp_path / "work" / f"pt_{row['order']:03d}" / f"events.log.rank{crash_rank}").read_text().splitlines()
            assert len(done) == row["point"][0]  # the one that was to die, and at that place


@pytest.fixture
def run_as_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., int]]:
    """Runs in processes that are forked from one that has imported torch: a second each, where a command takes several."""
    from multiprocessing import forkserver

    server: Any = forkserver._forkserver
    if server._forkserver_pid is not None:  # of workers that read data: it has imported nothing of ours
        server._stop()
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    with Local(jobs=1).opened(tmp_path) as start:

        def run(*arguments: Any) -> int:
            handle = start(Job("run", crashing.pretrain, arguments, tmp_path / "job.log"))
            while (code := handle.poll()) is None:
                time.sleep(0.01)
            return code

        yield run


# The weights of the second checkpoint are cut; or it is renamed, when all that was not brought to the disk is lost.
STRUCK = [
    pytest.param("torn", ("open", "model.safetensors"), 3, id="torn", marks=pytest.mark.long),
    pytest.param("unsynced", ("os.rename", ".tmp-step-00000004"), 1, id="unsynced", marks=pytest.mark.long),
]


@pytest.mark.parametrize(("mode", "event", "nth"), STRUCK)
def test_r5_the_injector_of_ckpt_chaos_finds_nothing_at_one_place_of_a_save(
    tmp_path: Path, run_as_job: Callable[..., int], mode: str, event: tuple[str, str], nth: int
) -> None:
    from ckpt_chaos.invariants import ResumeOutcome, classify
    from ckpt_chaos.runner import _events

    def run(name: str, at: int | None = None, mode: str = "before") -> int:
        (tmp_path / "job.log").unlink(missing_ok=True)
        return run_as_job(str(tmp_path / name / "run"), str(tmp_path / f"{name}.events"), at, mode, tiny(*CHAOS))

    assert run("whole") == 0
    planned = _events(tmp_path / "whole.events")
    at = number_of([(kind, name) for _, kind, name, _ in planned], event, nth)
    assert run("struck", at, mode) == 137
    assert _events(tmp_path / "struck.events") == planned[:at]
    newest = step_of_newest(tmp_path / "struck" / "run")
    assert newest == 2
    code = run("struck")
    found = re.search(STEP, (tmp_path / "job.log").read_text())
    same = digest(tmp_path / "struck" / "run" / "final" / "model.safetensors") == digest(tmp_path / "whole" / "run" / "final" / "model.safetensors")
    assert classify(ResumeOutcome(str(code) if code else None, int(found[1]) if found else None, newest, 0.0 if same else 1.0)) == "PASS"


@pytest.mark.long
def test_r5_of_two_processes_the_second_changes_no_file_so_ckpt_chaos_has_no_place_where_it_could_die(tmp_path: Path) -> None:
    """It is killed at random times instead: test_r4_a_chain_of_kills…"""
    with pytest.raises(AssertionError, match="the command made no file changes"):
        chaos(tmp_path, points=1, ranks=2, crash_rank=1)


def judged(rows: list[dict[str, Any]], record_property: Callable[[str, Any], None], points: int) -> None:
    assert len(rows) > min(points, 12)
    failed = [(row["label"], why) for row in rows if (why := wrong(row))]
    told(record_property, len(rows), len(rows) - len(failed))
    assert failed == []


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"label": "#3 open:a [torn]", "crashed": False, "drift": False, "resume_tail": "resumed from step 2"}, "DID NOT CRASH"),
        ({"label": "#3 open:a [before]", "crashed": False, "drift": False, "resume_tail": "already complete: 4"}, "DID NOT CRASH"),
        ({"label": "#3 open:a [term]", "crashed": False, "drift": False, "resume_tail": "resumed from step 2"}, "DID NOT CRASH"),
        ({"label": "#3 open:a [term]", "crashed": False, "drift": False, "resume_tail": "already complete: 4"}, ""),
        ({"label": "#3 open:a [torn]", "crashed": True, "drift": True}, "PLAN DRIFT"),
        ({"label": "#3 open:a [torn]", "crashed": True, "drift": False}, ""),
        ({"label": "#3 open:a [torn]", "crashed": True, "drift": False, "outcome": {"resumed_from_step": 2, "newest_complete_step": 2}}, ""),
        ({"label": "#3 open:a [torn]", "crashed": True, "drift": False, "outcome": {"resumed_from_step": 2, "newest_complete_step": 0}}, "NOT THE NEWEST"),
        ({"label": "#3 open:a [term]", "crashed": True, "drift": False, "outcome": {"resumed_from_step": 3, "newest_complete_step": 2}}, ""),
        ({"label": "no crash (control)", "crashed": False, "drift": False}, ""),
    ],
)
def test_what_ckpt_chaos_lets_pass_without_a_crash_at_the_planned_place_is_not_believed(row: dict[str, Any], why: str) -> None:
    assert wrong(row) == why
