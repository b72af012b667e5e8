"""What a machine has and what it lets one do, found out by looking and by small experiments.

    memory_limit()       →  bytes that this process's control group allows, or None
    file_system(folder)  →  FileSystem("nfs4", network=True, …)
    doubts(folder)       →  why checkpoints there might not outlast a power cut
    durable(folder)      →  a file was written, synced and renamed there; OSError where that failed
    two_processes(20)    →  seconds until two processes had added their numbers; Failed where they could not

Nothing here knows what llmtrain does. What a system does not tell is None: there is no /proc on macOS and no fsync of
a folder on Windows. Whatever is started has ended, one way or the other, when the function returns.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    import torch

PROC, CGROUP = Path("/proc"), Path("/sys/fs/cgroup")
UNLIMITED = 2**60  # control groups of version 1 write the largest multiple of a page where there is no limit
PAUSE_S = 0.02  # between two looks at whether a process has ended
PROBE_BYTES = 2**20  # written and synced to see whether a folder keeps what it was given

NETWORK = {
    *("nfs", "nfs3", "nfs4", "cifs", "smbfs", "smb2", "smb3", "afpfs", "afs", "webdav", "davfs", "9p", "virtiofs", "vboxsf", "prl_fs", "vmhgfs"),
    *("lustre", "gpfs", "beegfs", "ceph", "glusterfs", "orangefs", "pvfs2", "wekafs", "panfs", "ocfs2", "gfs2", "drvfs", "juicefs"),
}
IN_MEMORY = {"tmpfs", "ramfs"}
DISCARDED = {"overlay", "aufs", "unionfs"}  # the upper layer of a container, which goes when the container goes


class Failed(Exception):
    """An experiment did not end as it should: what the processes said, in a line."""


# --- control groups -----------------------------------------------------------------------------------------------


def cpu_quota(proc: Path = PROC, cgroup: Path = CGROUP) -> float | None:
    """Cores' worth of time that the control group allows, or None where it sets no limit. Threads do not see it."""
    return _least(_quotas(proc, cgroup))


def memory_limit(proc: Path = PROC, cgroup: Path = CGROUP) -> int | None:
    """Bytes that the control group allows, or None where it sets no limit."""
    least = _least(_memory_limits(proc, cgroup))
    return None if least is None else int(least)


def _least(limits: Iterator[float]) -> float | None:
    """A group has its own limit and those of all groups above it."""
    return min(limits, default=None)


def _quotas(proc: Path, cgroup: Path) -> Iterator[float]:
    for folder in _groups("cpu", proc, cgroup):
        quota, period, *_ = [*_words(folder / "cpu.max"), "", ""]
        if not quota:
            quota, period = ["".join(_words(folder / f"cpu.cfs_{name}_us")) for name in ("quota", "period")]
        if quota.isdigit() and period.isdigit() and int(period):
            yield int(quota) / int(period)


def _memory_limits(proc: Path, cgroup: Path) -> Iterator[float]:
    for folder in _groups("memory", proc, cgroup):
        limit = "".join(_words(folder / "memory.max") or _words(folder / "memory.limit_in_bytes"))
        if limit.isdigit() and int(limit) < UNLIMITED:
            yield int(limit)


def _groups(controller: str, proc: Path, cgroup: Path) -> Iterator[Path]:
    """The folders of this process's control group and of those above it: of version 2, and of a controller of version 1."""
    for line in _text(proc / "self" / "cgroup").splitlines():
        _, controllers, own = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        top = cgroup / controller if controllers else cgroup
        folder = top.joinpath(*[part for part in Path(own).parts if part not in ("/", "..")])  # `..` where the process has a namespace
        yield from (folder, *[parent for parent in folder.parents if parent.is_relative_to(top)])


def _words(path: Path) -> list[str]:
    return _text(path).split()


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def container(root: Path = Path("/")) -> str | None:
    """What surrounds this process, where that can be told: docker, podman, kubernetes, WSL."""
    if (root / ".dockerenv").exists():
        return "docker"
    if (root / "run" / ".containerenv").exists():
        return "podman"
    if "KUBERNETES_SERVICE_HOST" in os.environ:
        return "kubernetes"
    return "WSL" if "microsoft" in _text(root / "proc" / "sys" / "kernel" / "osrelease").lower() else None


# --- disks --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FileSystem:
    """Where a folder is.

    Attributes:
        kind: as the system calls it: ext4, apfs, NTFS, nfs4, …
        network: other machines serve it, or may do so.
        in_memory: it takes memory, and is gone after a restart.
        discarded: a container's own layer, gone with the container.
    """

    kind: str
    network: bool
    in_memory: bool
    discarded: bool


def file_system(folder: Path) -> FileSystem | None:
    """The file system that a folder is on; None where the system does not tell."""
    import psutil

    path = folder.resolve()
    try:
        found = [p for p in psutil.disk_partitions(all=True) if path.is_relative_to(p.mountpoint)]
    except (OSError, RuntimeError, psutil.Error):
        return None
    if not found:  # a share of Windows that has no letter
        return FileSystem("share", network=True, in_memory=False, discarded=False) if str(path).startswith("\\\\") else None
    mounted = max(reversed(found), key=lambda p: len(Path(p.mountpoint).parts))  # of two at one place the later covers the earlier
    kind = mounted.fstype
    network = kind.lower() in NETWORK or kind.startswith("fuse") or "remote" in mounted.opts.split(",")
    return FileSystem(kind, network=network, in_memory=kind in IN_MEMORY, discarded=kind in DISCARDED)


def existing(folder: Path) -> Path:
    """A folder, or the nearest one above it that is there."""
    folder = folder.absolute()
    for path in (folder, *folder.parents):
        if path.is_dir():
            return path
    raise FileNotFoundError(f"no folder above {folder} is there")


@dataclass(frozen=True)
class Durable:
    """What became of the experiment of `durable`.

    Attributes:
        seconds: for a file of PROBE_BYTES.
        folders: whether folders can be synced too, so that also a rename outlasts a power cut.
        links: whether a symbolic link can be made.
    """

    seconds: float
    folders: bool
    links: bool


def durable(folder: Path) -> Durable:
    """Write, sync and rename a file and a folder in a temporary folder of `folder`.

    Raises:
        OSError: one of these cannot be done, or a rename did not replace what was there.
    """
    content = os.urandom(PROBE_BYTES)
    with tempfile.TemporaryDirectory(prefix=".llmtrain-doctor-", dir=folder) as made:
        old, new = Path(made, "old"), Path(made, "new")
        old.write_bytes(b"old")
        begun = time.perf_counter()
        with new.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        new.replace(old)
        folders = _sync_folder(Path(made))
        seconds = time.perf_counter() - begun
        if new.exists() or old.read_bytes() != content:
            raise OSError("a file that was renamed over another one does not hold what was written")
        Path(made, "a").mkdir()
        Path(made, "a").rename(Path(made, "b"))
        return Durable(seconds, folders, _links(Path(made)))


def doubts(folder: Path) -> list[str]:
    """What speaks against the disk of a folder whose files are to outlast a kill and a power cut: a line each, found out by looking."""
    kept_by = file_system(folder)
    lines = []
    if kept_by is not None and kept_by.network:
        lines.append(
            f"{folder} is on {kept_by.kind}, which is, or may be, on a network: its server decides whether a checkpoint outlasts a power cut, "
            "and whether a lock keeps other machines out"
        )
    if kept_by is not None and kept_by.in_memory:
        lines.append(f"{folder} is on {kept_by.kind}, in memory: its checkpoints are gone after a restart of the machine")
    if sys.platform != "win32" and not _sync_folder(folder):
        lines.append(f"{folder} cannot be synced: the newest checkpoint may be lost with the power; older ones stay")
    return lines


def _sync_folder(folder: Path) -> bool:
    try:
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError:
        return False
    return True


def _links(folder: Path) -> bool:
    try:
        (folder / "link").symlink_to("b")
    except (OSError, NotImplementedError):  # Windows needs a privilege for links
        return False
    return True


LOCK = """
import sys, warnings
from filelock import FileLock, Timeout
warnings.simplefilter("ignore")
try:
    FileLock(sys.argv[1]).acquire(timeout=0)
except Timeout:
    sys.exit(3)
"""


def locks(folder: Path, timeout_s: float = 10.0) -> str:
    """Lock a file in `folder` and let another process try: `system`, or `file` where only the file's existence is the lock.

    The other process is needed: on some network file systems locks hold between processes and not within one.

    Raises:
        Failed: the other process got the lock, too, or the lock could not be had again.
    """
    import warnings

    from filelock import FileLock, SoftFileLock

    with tempfile.TemporaryDirectory(prefix=".llmtrain-doctor-", dir=folder) as made, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # filelock says that it falls back, and so does what is returned
        lock = FileLock(Path(made) / "lock")
        with lock.acquire(timeout=0):
            ((code, said),) = run_together([[LOCK, str(Path(made) / "lock")]], timeout_s)
            kind = "file" if isinstance(lock, SoftFileLock) else "system"
        if code != 3:
            raise Failed("two processes held one lock at the same time" if code == 0 else said)
        with FileLock(Path(made) / "lock").acquire(timeout=0):
            return kind


# --- processes ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def started(code: str, *arguments: str) -> Iterator[tuple[subprocess.Popen[bytes], IO[bytes]]]:
    """A Python that runs `code`, and the file that takes what it prints. At the end it and all that it started are gone."""
    with tempfile.TemporaryFile() as said:
        # -P: a random.py or datasets.py in the working directory is not imported.
        command = [sys.executable, "-P", "-c", code, *arguments]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT)
        try:
            yield process, said
        finally:
            end(process)


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and all that it started."""
    import psutil

    with contextlib.suppress(psutil.Error):
        for child in psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []:
            with contextlib.suppress(psutil.Error):
                child.kill()
    process.kill()
    process.wait()


def run_together(programs: Sequence[Sequence[str]], timeout_s: float) -> list[tuple[int, str]]:
    """Run programs (code, arguments …) at the same time: of each its exit code and what it printed.

    Where one fails the others are ended, since they may wait for it, and only those that had ended are told of.

    Raises:
        Failed: they had not ended after `timeout_s` seconds.
    """
    until = time.monotonic() + timeout_s
    with contextlib.ExitStack() as stack:
        running = [stack.enter_context(started(*program)) for program in programs]
        while None in (codes := [process.poll() for process, _ in running]) and not any(codes):
            if time.monotonic() > until:
                said = next((last_line(text) for _, file in running if (text := output(file))), None)
                raise Failed(f"no answer after {timeout_s:g} s{f'; the last word was: {said}' if said else ''}")
            time.sleep(PAUSE_S)
        return [(code, output(said)) for code, (_, said) in zip(codes, running, strict=True) if code is not None]


def output(said: IO[bytes]) -> str:
    said.seek(0)
    return said.read().decode(errors="replace").strip()


def last_line(text: str) -> str:
    """Of a traceback the line that says what went wrong."""
    return (text.strip().splitlines() or ["it said nothing"])[-1][:300]


TALK = """
import datetime, sys
import torch, torch.distributed as dist
rank, host, port, seconds = int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
patience = datetime.timedelta(seconds=seconds)
store = dist.TCPStore(host, port, is_master=False, timeout=patience, use_libuv=sys.platform != "win32")
dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=patience)
number = torch.tensor([rank + 1.0])
dist.all_reduce(number)
dist.destroy_process_group()
sys.exit(0 if number.item() == 3.0 else f"the sum of 1 and 2 came out as {number.item()}")
"""


def two_processes(timeout_s: float) -> float:
    """Let two processes add 1 and 2 over gloo, as those of `devices=2` add gradients; returns the seconds that it took.

    They meet at a port of this machine's own name that was free, as those of torchrun do.

    Raises:
        Failed: they could not, or had not after `timeout_s` seconds.
    """
    import socket

    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    begun = time.perf_counter()
    host = socket.getfqdn()
    # torch's wheels for Windows are built without libuv.
    store = TCPStore(host, 0, is_master=True, wait_for_workers=False, use_libuv=sys.platform != "win32")
    ended = run_together([[TALK, str(rank), host, str(store.port), str(timeout_s)] for rank in range(2)], timeout_s)
    for code, said in ended:
        if code:
            raise Failed(last_line(said))
    return time.perf_counter() - begun


START = """
import multiprocessing, sys
if __name__ == "__main__":
    process = multiprocessing.get_context(sys.argv[1]).Process(target=sys.exit, args=(7,))
    process.start()
    process.join()
    sys.exit(0 if process.exitcode == 7 else f"its exit code came out as {process.exitcode}")
"""


def starts(method: str, timeout_s: float) -> float:
    """Start a process by a method of multiprocessing, in a Python of its own; returns the seconds that it took.

    Raises:
        Failed: it did not run, or its exit code did not come back.
    """
    begun = time.perf_counter()
    ((code, said),) = run_together([[START, method]], timeout_s)
    if code:
        raise Failed(last_line(said))
    return time.perf_counter() - begun


IMPORT = """
import importlib, json, sys
wrong = {}
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except Exception as error:
        wrong[name] = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
print()
print(json.dumps(wrong))
"""


def products_s(device: torch.device, dtypes: Sequence[torch.dtype], side: int, budget_s: float) -> list[float]:
    """Seconds of a product of two `side` × `side` matrices in each type: the shortest of those that fit into `budget_s`.

    They take turns, so that what else runs on the machine disturbs all of them alike.
    """
    import torch

    pairs = [[torch.randn(side, side).to(device, dtype) for _ in range(2)] for dtype in dtypes]

    def multiply(left: torch.Tensor, right: torch.Tensor) -> float:
        begun = time.perf_counter()
        product = left @ right
        if device.type != "cpu":
            product[0, 0].item()  # waits until it is there
        return time.perf_counter() - begun

    with torch.inference_mode():
        for pair in pairs:
            multiply(*pair)
        best, until = [float("inf")] * len(pairs), time.perf_counter() + budget_s
        while best[-1] == float("inf") or time.perf_counter() < until:
            best = [min(known, multiply(*pair)) for known, pair in zip(best, pairs, strict=True)]
    return best
