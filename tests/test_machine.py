"""What a machine has, asked of made-up control groups and mounts; and small experiments, also with what makes them fail."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from llmtrain import machine

GROUP = "0::/user.slice/job\n"
V1 = "4:memory:/job\n3:cpu,cpuacct:/job\n2:devices:/\n"

Tree = Callable[[dict[str, str]], dict[str, Path]]


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """Files by their path below the root: tree({"proc/self/cgroup": …}) → where /proc and the control groups are."""

    def make(content: dict[str, str]) -> dict[str, Path]:
        for name, text in content.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        return {"proc": tmp_path / "proc", "cgroup": tmp_path / "cgroup"}

    return make


def running() -> set[int]:
    """This process's children that have not ended."""
    return {child.pid for child in psutil.Process().children(recursive=True) if child.status() != psutil.STATUS_ZOMBIE}


# --- control groups -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "cores"),
    [
        ({}, None),
        ({"proc/self/cgroup": GROUP}, None),
        ({"proc/self/cgroup": GROUP, "cgroup/user.slice/job/cpu.max": "max 100000"}, None),
        ({"proc/self/cgroup": GROUP, "cgroup/user.slice/job/cpu.max": "150000 100000"}, 1.5),
        ({"proc/self/cgroup": GROUP, "cgroup/user.slice/job/cpu.max": "max 100000", "cgroup/user.slice/cpu.max": "400000 100000"}, 4),
        ({"proc/self/cgroup": GROUP, "cgroup/user.slice/job/cpu.max": "800000 100000", "cgroup/cpu.max": "200000 100000"}, 2),
        ({"proc/self/cgroup": "0::/../other\n", "cgroup/cpu.max": "200000 100000"}, 2),
        ({"proc/self/cgroup": V1, "cgroup/cpu/job/cpu.cfs_quota_us": "-1", "cgroup/cpu/job/cpu.cfs_period_us": "100000"}, None),
        ({"proc/self/cgroup": V1, "cgroup/cpu/job/cpu.cfs_quota_us": "300000", "cgroup/cpu/job/cpu.cfs_period_us": "100000"}, 3),
    ],
)
def test_the_quota_of_cores_is_the_least_of_the_group_and_of_those_above_it(tree: Tree, content: dict[str, str], cores: float | None) -> None:
    assert machine.cpu_quota(**tree(content)) == cores


@pytest.mark.parametrize(
    ("content", "limit"),
    [
        ({}, None),
        ({"proc/self/cgroup": GROUP, "cgroup/user.slice/job/memory.max": "max\n"}, None),
        ({"proc/self/cgroup": GROUP, "cgroup/user.slice/job/memory.max": "1000000\n"}, 1_000_000),
        ({"proc/self/cgroup": GROUP, "cgroup/user.slice/job/memory.max": "1000000\n", "cgroup/user.slice/memory.max": "500"}, 500),
        ({"proc/self/cgroup": V1, "cgroup/memory/job/memory.limit_in_bytes": "9223372036854771712\n"}, None),
        ({"proc/self/cgroup": V1, "cgroup/memory/job/memory.limit_in_bytes": "700\n"}, 700),
    ],
)
def test_the_limit_of_memory_is_the_least_of_the_group_and_of_those_above_it(tree: Tree, content: dict[str, str], limit: int | None) -> None:
    assert machine.memory_limit(**tree(content)) == limit


@pytest.mark.parametrize(
    ("content", "around"),
    [({}, None), ({".dockerenv": ""}, "docker"), ({"run/.containerenv": ""}, "podman"), ({"proc/sys/kernel/osrelease": "6.1-microsoft-standard-WSL2"}, "WSL")],
)
def test_what_surrounds_a_process_is_told_by_its_traces(
    tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: dict[str, str], around: str | None
) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    tree(content)
    assert machine.container(tmp_path) == around


# --- disks ----------------------------------------------------------------------------------------------------------


def mounted(monkeypatch: pytest.MonkeyPatch, *mounts: tuple[Path, str, str]) -> None:
    found = [SimpleNamespace(mountpoint=str(where), fstype=kind, opts=options) for where, kind, options in mounts]
    monkeypatch.setattr(psutil, "disk_partitions", lambda all: found)


@pytest.mark.parametrize(
    ("kind", "options", "network", "in_memory", "discarded"),
    [
        ("ext4", "rw", False, False, False),
        ("apfs", "rw", False, False, False),
        ("nfs4", "rw", True, False, False),
        ("NFS", "rw", True, False, False),
        ("lustre", "rw", True, False, False),
        ("fuse.sshfs", "rw", True, False, False),
        ("NTFS", "rw,fixed", False, False, False),
        ("NTFS", "rw,remote", True, False, False),
        ("tmpfs", "rw", False, True, False),
        ("overlay", "rw", False, False, True),
    ],
)
def test_a_file_system_is_told_by_its_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, options: str, network: bool, in_memory: bool, discarded: bool
) -> None:
    mounted(monkeypatch, (tmp_path, kind, options))
    assert machine.file_system(tmp_path / "runs") == machine.FileSystem(kind, network=network, in_memory=in_memory, discarded=discarded)


def test_the_nearest_mount_counts_and_of_two_at_one_place_the_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = tmp_path / "inner"
    mounted(monkeypatch, (inner, "xfs", "rw"), (inner, "nfs4", "rw"), (Path("/"), "ext4", "rw"), (tmp_path / "in", "tmpfs", "rw"))
    kinds = [found and found.kind for found in (machine.file_system(inner / "runs"), machine.file_system(tmp_path))]
    assert kinds == ["nfs4", "ext4"]


def test_where_mounts_cannot_be_read_nothing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(all: bool) -> Any:
        raise PermissionError("/proc/mounts")

    monkeypatch.setattr(psutil, "disk_partitions", refuse)
    assert machine.file_system(tmp_path) is None


def test_of_a_folder_that_is_not_there_the_nearest_above_it_is_looked_at(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert machine.existing(tmp_path / "a" / "b") == machine.existing(tmp_path / "file" / "c") == tmp_path


def test_a_folder_that_keeps_what_it_is_given_is_left_as_it_was(tmp_path: Path) -> None:
    tried = machine.durable(tmp_path)
    assert (tried.folders, tried.links) == (True, True)
    assert 0 < tried.seconds < 60
    assert list(tmp_path.iterdir()) == []


def fails(*_: Any, **__: Any) -> Any:
    raise OSError(5, "Input/output error")


@pytest.mark.parametrize(("name", "replacement"), [("os.fsync", fails), ("pathlib.Path.replace", fails), ("pathlib.Path.replace", lambda *_: None)])
def test_g10_a_folder_where_a_sync_or_a_rename_fails_or_does_nothing_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, replacement: Callable[..., Any]
) -> None:
    monkeypatch.setattr(name, replacement)
    with pytest.raises(OSError, match=r"Input/output|does not hold what was written"):
        machine.durable(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_folders_that_cannot_be_synced_and_links_that_cannot_be_made_are_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.open", fails)  # as on Windows, of a folder; files are opened by another function
    monkeypatch.setattr("pathlib.Path.symlink_to", fails)
    monkeypatch.setattr("tempfile.TemporaryDirectory", lambda **_: kept(tmp_path))
    tried = machine.durable(tmp_path)
    assert (tried.folders, tried.links) == (False, False)


class kept:  # noqa: N801
    """A folder that stays: removing one opens it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self) -> str:
        return str(self.folder)

    def __exit__(self, *_: object) -> None:
        pass


def test_a_lock_keeps_another_process_out(tmp_path: Path) -> None:
    assert machine.locks(tmp_path) == "system"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("code", "answer"), [("", "held one lock at the same time"), ("raise OSError('no locks available')", "no locks available")])
def test_a_lock_that_keeps_nobody_out_or_cannot_be_asked_for_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, answer: str) -> None:
    monkeypatch.setattr(machine, "LOCK", code)
    with pytest.raises(machine.Failed, match=answer):
        machine.locks(tmp_path)


def test_a_lock_that_is_only_a_file_is_told_from_one_of_the_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import filelock

    monkeypatch.setattr(filelock, "FileLock", filelock.SoftFileLock)
    monkeypatch.setattr(machine, "LOCK", machine.LOCK.replace("FileLock", "SoftFileLock"))
    assert machine.locks(tmp_path) == "file"


# --- processes ------------------------------------------------------------------------------------------------------


def test_programs_that_end_tell_what_they_printed_and_their_exit_codes() -> None:
    assert machine.run_together([["print('a')"], ["import sys; print(sys.argv[1]); sys.exit(0)", "b"]], 60) == [(0, "a"), (0, "b")]


def test_of_two_programs_that_wait_for_each_other_one_that_fails_ends_both() -> None:
    before, begun = running(), time.monotonic()
    ended = machine.run_together([["import time; time.sleep(600)"], ["raise ValueError('no')"]], 300)
    assert [(code, machine.last_line(said)) for code, said in ended] == [(1, "ValueError: no")]
    assert time.monotonic() - begun < 200
    assert running() <= before


def test_a_program_that_hangs_is_ended_with_all_that_it_started_and_its_last_word_is_told() -> None:
    before = running()
    hang = "import time; time.sleep(600)"
    code = f"import subprocess, sys; print('begun', subprocess.Popen([sys.executable, '-c', {hang!r}]).pid, flush=True); {hang}"
    with pytest.raises(machine.Failed, match=r"no answer after 3 s; the last word was: begun \d+") as caught:
        machine.run_together([[code]], 3)
    assert running() <= before
    assert gone(int(str(caught.value).split()[-1]))


def gone(pid: int) -> bool:
    """Whether a process has ended, at the latest soon after it was killed."""
    for _ in range(200):
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.05)
    return False


def test_a_file_of_the_users_with_the_name_of_a_package_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "json.py").write_text("print('imported'); raise SystemExit(9)")
    (tmp_path / "signal.py").write_text("print('imported'); raise SystemExit(9)")
    monkeypatch.chdir(tmp_path)
    assert machine.run_together([["import json; print(json.dumps(1))"]], 60) == [(0, "1")]
    assert machine.starts("spawn", 60) > 0


@pytest.mark.parametrize("method", ["spawn", pytest.param("forkserver", marks=pytest.mark.skipif(sys.platform == "win32", reason="not on Windows"))])
def test_a_process_starts_and_nothing_is_left(method: str) -> None:
    before = running()
    assert machine.starts(method, 60) > 0
    assert running() <= before


def test_a_method_that_is_not_there_is_told() -> None:
    with pytest.raises(machine.Failed, match="cannot find context for 'vfork'"):
        machine.starts("vfork", 60)


def test_two_processes_add_their_numbers_and_nothing_is_left() -> None:
    before = running()
    assert machine.two_processes(120) > 0
    assert running() <= before


@pytest.mark.parametrize(
    ("code", "answer"),
    [
        ("import time; time.sleep(600)", "no answer after 2 s"),
        (
            "import sys; sys.exit(f'rank {sys.argv[1]} of {sys.argv[2]} is lost') if sys.argv[1] == '1' else __import__('time').sleep(600)",
            "rank 1 of .* is lost",
        ),
    ],
)
def test_two_processes_of_which_one_fails_or_that_hang_are_told_and_ended(monkeypatch: pytest.MonkeyPatch, code: str, answer: str) -> None:
    before = running()
    monkeypatch.setattr(machine, "TALK", code)
    with pytest.raises(machine.Failed, match=answer):
        machine.two_processes(2 if "no answer" in answer else 120)
    assert running() <= before


def test_imports_that_fail_are_told_by_name() -> None:
    ((code, said),) = machine.run_together([[machine.IMPORT, "json", "no_such_module", "csv"]], 60)
    assert code == 0
    assert json.loads(said.splitlines()[-1]) == {"no_such_module": "ModuleNotFoundError: No module named 'no_such_module'"}


def test_products_in_two_types_are_timed_side_by_side() -> None:
    import torch

    found = machine.products_s(torch.device("cpu"), [torch.float32, torch.bfloat16], 16, 0.01)
    assert len(found) == 2
    assert all(0 < seconds < 60 for seconds in found)


# --- other systems --------------------------------------------------------------------------------------------------

OTHER_SYSTEMS = """
import importlib, json, os, pathlib, pkgutil, signal, sys
import llmtrain

def names():
    found = pkgutil.walk_packages(llmtrain.__path__, "llmtrain.")
    return [info.name for info in found]

def forget():
    for name in [name for name in sys.modules if name.split(".")[0] == "llmtrain"]:
        del sys.modules[name]

class Missing:
    # Modules that a system lacks.
    names = ()
    def find_spec(self, name, path=None, target=None):
        if name in self.names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

for name in names():  # with all that other packages bring: how those fare elsewhere is not the question
    importlib.import_module(name)
sys.meta_path.insert(0, Missing())
wrong = {}
UNIX = ("fcntl", "grp", "pwd", "resource", "termios", "tty", "pty", "syslog")
GONE = {
    "darwin": ((), ["sched_getaffinity", "sched_setaffinity", "posix_fadvise"], []),
    "win32": (
        UNIX,
        ["fork", "forkpty", "getuid", "geteuid", "getgid", "getsid", "setsid", "killpg", "getpgid", "sched_getaffinity", "sched_setaffinity", "statvfs",
         "uname", "chown", "wait3", "wait4", "WNOHANG", "getloadavg", "mkfifo", "O_NOFOLLOW", "O_DIRECTORY", "posix_fadvise", "sysconf", "nice"],
        ["SIGKILL", "SIGUSR1", "SIGUSR2", "SIGHUP", "SIGQUIT", "SIGCHLD", "SIGALRM", "SIGSTOP", "SIGCONT", "SIGPIPE", "SIGXFSZ", "alarm", "setitimer",
         "pthread_sigmask", "pthread_kill", "sigwait", "SIG_BLOCK", "SIG_SETMASK"],
    ),
}
removed = []
for platform, (modules, functions, signals) in GONE.items():
    forget()
    for name in modules:
        sys.modules.pop(name, None)
    Missing.names = modules
    for module, attributes in ((os, functions), (signal, signals)):
        for attribute in attributes:
            if hasattr(module, attribute):
                removed.append((module, attribute, getattr(module, attribute)))
                delattr(module, attribute)
    before, sys.platform = sys.platform, platform
    import llmtrain
    tried = names()
    wrong[platform] = {"tried": tried}
    for name in tried:
        try:
            importlib.import_module(name)
        except BaseException as error:
            wrong[platform][name] = f"{type(error).__name__}: {error}"
    sys.platform, Missing.names = before, ()
    for module, attribute, value in removed:
        setattr(module, attribute, value)
print(json.dumps(wrong))
"""


@pytest.fixture(scope="module")
def imported_elsewhere() -> dict[str, dict[str, Any]]:
    """For each system, the modules of llmtrain that were imported as if on it, and what became of those that failed."""
    done = subprocess.run([sys.executable, "-c", OTHER_SYSTEMS], capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    found: dict[str, dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("system", ["darwin", "win32"])
def test_no_module_fails_at_import_where_a_system_lacks_what_linux_has(imported_elsewhere: dict[str, dict[str, Any]], system: str) -> None:
    tried = imported_elsewhere[system].pop("tried")
    assert {"llmtrain.machine", "llmtrain.runtime", "llmtrain.command.doctor", "llmtrain.launcher.local"} <= set(tried)
    assert imported_elsewhere[system] == {}
