"""Where files are kept: locks, links, other disks, homes that are not there, masks of permissions, and names and archives that lead elsewhere."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import stat
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from filelock import FileLock

import llmtrain
from llmtrain import files, machine, runtime
from llmtrain.callback.base import Callback
from llmtrain.callback.metrics import Metrics
from llmtrain.cli import main
from llmtrain.config import build
from llmtrain.data import store, tokenizer as tokens
from llmtrain.errors import CheckpointError, ConfigError, DataError, DeviceError, LLMTrainError
from llmtrain.report import runs
from llmtrain.sweep.book import Book
from tests.conftest import TINY, Train

SHARED_MEMORY = Path("/dev/shm")


def tree(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


# --- locks ----------------------------------------------------------------------------------------------------------


def note(folder: Path, content: str) -> Path:
    (folder / ".lock-holder.json").write_text(content)
    return folder


@pytest.mark.parametrize("elsewhere", [True, False])
def test_g03_where_another_machine_holds_a_folder_it_is_said_when_its_lock_goes(tmp_path: Path, elsewhere: bool) -> None:
    host = "node17" if elsewhere else runtime.socket.gethostname()
    note(tmp_path, json.dumps({"pid": 7, "host": host, "since": "2026-01-01T00:00:00"}))
    with FileLock(tmp_path / ".lock"), pytest.raises(DeviceError, match=f"in use by pid 7 on {host} since 2026") as caught, runtime.locked(tmp_path):
        pass
    assert ("if nothing runs on node17 any more" in str(caught.value.fix)) == elsewhere
    assert len(caught.value.screen().splitlines()) <= 6


@pytest.mark.parametrize("content", ["[]", "{", "7", '{"host": ["\\u001b[2J"]}', "[" * 100_000, "\x00"])
def test_g02_a_note_of_the_holder_that_nobody_can_read_hides_nothing_else(tmp_path: Path, content: str) -> None:
    with FileLock(note(tmp_path, content) / ".lock"), pytest.raises(DeviceError, match=r"in use by pid \?") as caught, runtime.locked(tmp_path):
        pass
    assert "\x1b" not in caught.value.screen()


def test_g03_a_folder_that_cannot_be_locked_is_named(tmp_path: Path) -> None:
    (tmp_path / ".lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DeviceError, match="cannot be locked") as caught, runtime.locked(tmp_path):
        pass
    assert caught.value.exit_code == 6
    assert not (tmp_path / "elsewhere").exists()


# --- names ----------------------------------------------------------------------------------------------------------

OUTSIDE = ("../../x", "/abs", "a/b", "..", ".", "''", "x" * 300, '"a\\nb"', "é", "🙂")


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize("ask", [("pretrain",), ("pretrain", "-m", "seed=0,1")], ids=["run", "sweep"])
def test_g05_a_name_that_leads_elsewhere_is_refused_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], ask: tuple[str, ...], name: str
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert main([*ask, *TINY, f"name={name}"]) == 2
    assert "1 to 100 letters, digits, '.', '_' or '-'" in capsys.readouterr().err
    assert tree(tmp_path) == {"here"}


def sweep(folder: Path, *names: str) -> Path:
    """A sweep's book as somebody else might have written it."""
    members = [{"name": name, "overrides": ["seed=0"], "status": "finished"} for name in names]
    folder.mkdir(parents=True)
    (folder / "sweep.json").write_text(json.dumps({"version": 1, "name": "s", "verb": "pretrain", "members": members}))
    return folder


@pytest.mark.parametrize("name", ["../../../elsewhere", "..", "/etc", "a/b", "", "a\n"])
def test_g05_a_member_whose_name_leads_out_of_its_sweep_is_not_looked_at(tmp_path: Path, name: str) -> None:
    other = tmp_path / "elsewhere"
    other.mkdir()
    (other / "run.json").write_text('{"status": "finished"}')
    (other / ".lock-holder.json").write_text("{}")
    home = sweep(tmp_path / "a" / "sweep", name, "good-0000aaaa")
    before = tree(tmp_path)
    assert [run.name for run in runs.read([home]).runs] == ["good-0000aaaa"]
    with pytest.raises(CheckpointError, match="is no name of a member"):
        Book.opened(home)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("name", ["../x.jsonl", "/tmp/x.jsonl", "config.yaml", "run.json", "predictions.jsonl", "a b.jsonl", ""])
def test_g05_metrics_go_to_a_file_of_the_run_and_to_none_that_it_needs_itself(name: str) -> None:
    with pytest.raises(ConfigError, match="file=") as caught:
        build({"kind": "metrics", "file": name}, Callback, "callback.metrics")
    assert ".jsonl" in str(caught.value.allowed)
    assert Metrics(file="mine-2.jsonl").file == "mine-2.jsonl"


def test_g05_a_report_neither_reads_metrics_from_elsewhere_nor_makes_a_file_where_it_only_looks(tmp_path: Path) -> None:
    (tmp_path / "secret.jsonl").write_text('{"step": 1, "validation_loss": 5.0}\n')
    home = tmp_path / "run"
    home.mkdir()
    (home / "config.yaml").write_text("seed: 0\ncallback: {metrics: {file: ../secret.jsonl}}\n")
    (home / ".lock-holder.json").write_text("{}")
    (found,) = runs.read([home]).runs
    assert found.curve == ()
    assert tree(home) == {"config.yaml", ".lock-holder.json"}


# --- links and other disks ------------------------------------------------------------------------------------------


@pytest.fixture
def elsewhere() -> Iterator[Path]:
    """A folder on another file system, in memory."""
    if not SHARED_MEMORY.is_dir() or SHARED_MEMORY.stat().st_dev == Path(__file__).stat().st_dev:
        pytest.skip("there is no second file system")
    folder = SHARED_MEMORY / f"llmtrain-test-{os.getpid()}"
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)


def test_g07_g10_a_run_whose_folder_is_a_link_to_another_disk_stays_whole_goes_on_there_and_says_what_disk_it_is(
    train: Train, tmp_path: Path, elsewhere: Path
) -> None:
    link = tmp_path / "run"
    link.symlink_to(elsewhere)
    train(link, "trainer.max_steps=2")
    train(link, "trainer.max_steps=4", "resume=must")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert link.is_symlink()
    assert files.problem(elsewhere / "final") is None
    assert files.problem(elsewhere / "checkpoints" / "step-00000004") is None
    assert not [name for name in tree(elsewhere) if "/." in f"/{name}" and ".lock" not in name]
    warned: list[str] = json.loads((elsewhere / "run.json").read_text())["warnings"]
    assert sum("in memory: its checkpoints are gone after a restart" in line for line in warned) == 1


def test_g07_a_link_to_nowhere_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run").symlink_to(tmp_path / "gone")
    assert main(["pretrain", *TINY, f"output_dir={tmp_path / 'run'}"]) == 6
    assert "a link to what is not there" in capsys.readouterr().err
    assert tree(tmp_path) == {"run"}


@pytest.mark.parametrize(
    ("kind", "options", "synced", "said"),
    [
        ("ext4", "rw", True, []),
        ("overlay", "rw", True, []),
        ("nfs4", "rw", True, ["on a network"]),
        ("fuse.sshfs", "rw", True, ["on a network"]),
        ("tmpfs", "rw", True, ["in memory"]),
        ("vfat", "rw", False, ["cannot be synced"]),
        ("cifs", "rw", False, ["on a network", "cannot be synced"]),
    ],
)
def test_g10_what_speaks_against_a_disk_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str, options: str, synced: bool, said: list[str]
) -> None:
    mounted = SimpleNamespace(mountpoint="/", fstype=kind, opts=options)
    monkeypatch.setattr("psutil.disk_partitions", lambda all: [mounted])
    monkeypatch.setattr(machine, "_sync_folder", lambda folder: synced)
    found = machine.doubts(tmp_path)
    assert len(found) == len(said)
    assert all(text in line and str(tmp_path) in line for text, line in zip(said, found, strict=True))
    assert tree(tmp_path) == set()  # it looks and writes nothing


# --- homes and caches -----------------------------------------------------------------------------------------------


def nowhere(tmp_path: Path) -> str:
    """A home in which nobody can write, root neither."""
    (tmp_path / "file").write_text("")
    return str(tmp_path / "file" / "home")


def test_g09_a_home_that_cannot_be_written_is_named_unless_the_cache_is_elsewhere(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", nowhere(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    train(tmp_path / "one", "trainer.max_steps=1")
    monkeypatch.delenv("LLMTRAIN_CACHE")
    assert main(["pretrain", *TINY, f"output_dir={tmp_path / 'two'}"]) == 6
    said = capsys.readouterr().err
    assert "the cache folder" in said
    assert "set LLMTRAIN_CACHE" in said


def nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who starts this has no home: HOME is not set, and no entry says where it is."""
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda uid: (_ for _ in ()).throw(KeyError(uid)))


def test_g09_without_a_home_the_cache_has_to_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nobody(monkeypatch)
    assert store.root() == Path(os.environ["LLMTRAIN_CACHE"])
    monkeypatch.delenv("LLMTRAIN_CACHE")
    with pytest.raises(DeviceError, match="the cache folder") as caught:
        store.root()
    assert "LLMTRAIN_CACHE" in str(caught.value.fix)


@pytest.mark.parametrize(
    ("typed", "code"),
    [
        (["validate", "data=text", "data.train=~/x.txt"], 3),
        (["validate", "data=text", "data.train=~nobody-of-that-name/x.txt"], 3),
        (["validate", "finetune", "model.checkpoint=~/x"], 4),
        (["generate", "model.checkpoint=~nobody-of-that-name/x"], 4),
        (["pretrain", "--cfg", "job", "--config-dir", "~nobody-of-that-name"], 2),
    ],
)
def test_g09_a_tilde_that_stands_for_no_home_is_a_path_that_is_not_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], typed: list[str], code: int
) -> None:
    nobody(monkeypatch)
    assert main(typed) == code
    assert capsys.readouterr().err.startswith("error: ")


def for_everybody(path: str) -> bool:
    """Whether a user of no name may enter all folders above a program: Python may stand in root's own home."""
    return all(folder.stat().st_mode & 0o001 for start in (Path(path), Path(path).resolve()) for folder in start.parents)


@pytest.mark.long
@pytest.mark.parametrize("home", ["unset", "not to be written"])
@pytest.mark.parametrize("named", [True, False], ids=["cache named", "cache not named"])
def test_g09_the_command_works_without_a_home_where_the_caches_are_named(tmp_path: Path, home: str, named: bool) -> None:
    gone = ("HOME", "XDG_CACHE_HOME", "LLMTRAIN_CACHE", "HF_HOME", "HF_HUB_CACHE", "MPLCONFIGDIR")
    environment = {name: value for name, value in os.environ.items() if name not in gone}
    environment |= {"HOME": nowhere(tmp_path)} if home != "unset" else {}
    environment |= {"LLMTRAIN_CACHE": str(tmp_path / "cache"), "HF_HOME": str(tmp_path / "hub")} if named else {}
    tmp_path.chmod(0o777)
    other = os.geteuid() == 0 and for_everybody(sys.executable)
    unknown = {"user": 54321, "group": 54321} if other else {}  # a number that stands in no list of users, as in many containers
    command = [sys.executable, "-m", "llmtrain", "pretrain", *TINY, "trainer.max_steps=1", f"output_dir={tmp_path / 'run'}"]
    environment["PYTHONPATH"] = str(Path(llmtrain.__file__).parents[1])
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path, env=environment, check=False, **unknown)  # type: ignore[call-overload]
    works = named or (home == "unset" and not unknown)
    assert done.returncode == (0 if works else 6), done.stderr
    assert "Traceback" not in done.stderr
    assert works or "set LLMTRAIN_CACHE" in done.stderr


# --- permissions ----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform == "win32", reason="there is no umask")
@pytest.mark.parametrize("mask", [0o077, 0o002])
def test_g11_every_file_of_a_run_and_of_the_cache_follows_the_umask(train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mask: int) -> None:
    monkeypatch.setenv("LLMTRAIN_CACHE", str(tmp_path / "cache"))
    before = os.umask(mask)
    try:
        run = train(tmp_path / "run", "trainer.max_steps=2", "data.words=50")
        assert main(["report", str(run), f"output={tmp_path / 'report'}"]) == 0
    finally:
        os.umask(before)
    seen = {"run/final/model.safetensors", "run/checkpoints/step-00000002/state.json", "run/.lock", "run/run.json", "run/train.log", "report/report.html"}
    modes = {name: (tmp_path / name).stat().st_mode for name in tree(tmp_path)}
    assert seen <= modes.keys()
    assert any(name.startswith("cache/") and name.endswith("rows.arrow") for name in modes)
    wrong = {name: oct(mode) for name, mode in modes.items() if stat.S_IMODE(mode) != (0o777 if stat.S_ISDIR(mode) else 0o666) & ~mask}
    assert wrong == {}


# --- what leads elsewhere -------------------------------------------------------------------------------------------

LEADING = ("a/..", "..a/b", "a/b/../../../x", "a/../b", "a..b/c", "a/b\n", "a b/c", "a/b:c", "-a/b", "a\\..\\b", "a/b@x", "https://host/a")


@pytest.mark.parametrize("name", LEADING)
def test_h17_a_name_of_the_hub_that_could_lead_elsewhere_is_refused_before_anybody_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    from llmtrain.model.checkpoint import Checkpoint
    from tests.data.test_hub import hub

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", lambda *_, **__: pytest.fail("the hub was asked"))
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", lambda *_, **__: pytest.fail("the hub was asked"))
    model = Checkpoint.__new__(Checkpoint)
    object.__setattr__(model, "checkpoint", name)
    for act, kind in ((lambda: tokens.load(name), ConfigError), (lambda: model.folder, CheckpointError), (lambda: hub(name=name).check(), DataError)):
        with pytest.raises(LLMTrainError, match="no such folder") as caught:
            act()
        assert type(caught.value) is kind
        assert len(caught.value.screen().splitlines()) <= 6
    assert tree(tmp_path) == set()


@pytest.mark.parametrize("name", ["gpt2", "roneneldan/TinyStories", "google-bert/bert-base-uncased", "sentence-transformers/all-MiniLM-L6-v2", "a_b/c.d_1"])
def test_names_that_the_hub_gives_are_taken(name: str) -> None:
    assert files.is_hub_name(name)


def zipped(path: Path, members: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def tarred(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            about = tarfile.TarInfo(name)
            about.size = len(content)
            archive.addfile(about, io.BytesIO(content))
        link = tarfile.TarInfo("link.jsonl")
        link.type, link.linkname = tarfile.SYMTYPE, "../../../../../../etc/passwd"
        archive.addfile(link)


@pytest.mark.parametrize(("suffix", "pack"), [("zip", zipped), ("tar", tarred)])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Python 3.12, which datasets' call of tarfile gives
def test_h17_what_an_archive_wants_to_put_elsewhere_is_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, pack: Any) -> None:
    from tests.data.test_hub import hub

    monkeypatch.setenv("LLMTRAIN_CACHE", str(tmp_path / "cache"))
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    evil = {f"{'../' * depth}evil.jsonl": b'{"text": "evil"}\n' for depth in range(1, 9)} | {str(tmp_path / "evil.jsonl"): b'{"text": "evil"}\n'}
    pack(corpus / f"train.{suffix}", {"good.jsonl": b'{"text": "good"}\n{"text": "fine"}\n', **evil})
    found: Any = None
    with contextlib.suppress(DataError):
        found = hub(name=str(corpus)).source("train")
    assert found is None or set(found["text"]) == {"good", "fine"}
    assert [name for name in tree(tmp_path) if "evil" in name] == []
    assert tree(tmp_path / "corpus") == {f"train.{suffix}"}
    assert not list(Path("/").glob("evil.jsonl"))


@pytest.mark.parametrize("suffix", ["zip", "tar", "tar.gz"])
def test_h17_an_archive_is_no_file_of_texts(tmp_path: Path, suffix: str) -> None:
    from tests.data.files import text

    path = tmp_path / f"train.{suffix}"
    (zipped if suffix == "zip" else tarred)(path, {"../evil.txt": b"evil"})
    with pytest.raises(DataError, match="are not read"):
        text(train=str(path)).check()
    assert tree(tmp_path) == {path.name}


@pytest.mark.parametrize("setting", [{"subset": "../../x"}, {"train_split": "../../x"}, {"train_split": "/etc/passwd"}])
def test_h17_a_subset_or_a_split_that_could_lead_elsewhere_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: dict[str, str]) -> None:
    from tests.data.test_hub import hub

    monkeypatch.setenv("LLMTRAIN_CACHE", str(tmp_path / "cache"))
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "train.jsonl").write_text('{"text": "good"}\n')
    with pytest.raises(DataError, match="cannot be read"):
        hub(name=str(corpus), **setting).source("train")
    assert {name.partition("/")[0] for name in tree(tmp_path)} == {"cache", "corpus"}


@pytest.mark.long
def test_h17_a_hubs_cache_whose_branch_points_elsewhere_is_not_followed(tmp_path: Path) -> None:
    hub = tmp_path / "hub" / "models--x--y"
    for folder in (hub / "refs", hub / "snapshots", tmp_path / "outside"):
        folder.mkdir(parents=True)
    (hub / "refs" / "main").write_text("../../../outside")
    (tmp_path / "outside" / "config.json").write_text('{"model_type": "gpt2"}')
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(Path(llmtrain.__file__).parents[1])}
    command = [sys.executable, "-m", "llmtrain", "generate", "model.checkpoint=x/y"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path, env=environment, check=False)
    assert done.returncode == 4
    assert "model.checkpoint=x/y" in done.stderr
