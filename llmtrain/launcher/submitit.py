"""Members on a SLURM cluster, through submitit; or as processes of this machine through the same package.

A member is submitted when its turn comes, so `jobs` of them wait in the cluster's queue or run there at a time. The
sweep itself stays where it was started and looks at what became of them. Its folder must be seen by all nodes. A job
begins in the directory and with the variables of the shell that started the sweep: `module load` belongs there.

When the time limit comes near, or a job has to make way for another one (SIGUSR2, SIGTERM), the member saves and its job
is put back into the queue by itself; it goes on from there. Only where the sweep asked for it does a stopped member stay
stopped. submitit pickles what is to be called, and what it returned, into files of the sweep's folder; checkpoints are
not among them.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from types import FrameType
from typing import Any

from llmtrain.errors import ConfigError, DeviceError, Stopped, plain, printable, require
from llmtrain.launcher import child, tree
from llmtrain.launcher.base import Handle, Job, Launcher, Start

# Of sbatch's options those that say where, when and how important a job is. None of them runs anything, and what this
# launcher sets itself is not among them.
OPTIONS = frozenset((
    "account", "begin", "clusters", "comment", "constraint", "core_spec", "cores_per_socket", "cpus_per_gpu", "deadline", "dependency",
    "exclude", "exclusive", "gpu_bind", "gpu_freq", "gpus_per_task", "gres", "gres_flags", "hint", "licenses", "mail_type", "mail_user",
    "mem_bind", "mem_per_cpu", "mem_per_gpu", "nice", "nodelist", "ntasks_per_core", "oversubscribe", "power", "prefer", "priority", "qos",
    "reservation", "sockets_per_node", "switches", "thread_spec", "threads_per_core", "time_min", "tmp", "wckey",
))  # fmt: skip
# What SLURM calls the end of a job that was not its own doing.
ENDED_BY_OTHERS = ("BOOT_FAIL", "CANCELLED", "DEADLINE", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED", "TIMEOUT")
LATENCY_S = 15.0  # that a file written on one node may take to be seen on another
LINGER_S = 10.0  # that a process may take to end after its function has returned
POLL_S = 1.0  # between two looks at the files of a job on a cluster
KILLED = -int(getattr(signal, "SIGKILL", signal.SIGTERM))


class Cluster(Enum):
    """Where jobs go: to SLURM; to processes of this machine; or, `debug`, into this very process, one after another, for a debugger."""

    slurm = "slurm"
    local = "local"
    debug = "debug"


@dataclass(frozen=True, kw_only=True)
class Submitit(Launcher):
    """Jobs of a cluster.

    Attributes:
        cluster: null: SLURM where there is one, else processes of this machine.
        timeout_min: minutes that a job may run before it is put back into the queue.
        cpus_per_task: CPU cores of a job, which are a member's threads where `threads=auto`.
        gpus_per_node: GPUs of a job.
        mem_gb: memory of a job in GB; null: the cluster's own default.
        partition: of the cluster; null: its default.
        signal_delay_s: seconds before the time limit at which a member is asked to save.
        requeues: how often a member that came to its time limit is put back into the queue; being preempted does not count.
        additional: more of sbatch's options by name, such as account, qos, constraint.
    """

    cluster: Cluster | None
    timeout_min: int
    cpus_per_task: int
    gpus_per_node: int
    mem_gb: float | None
    partition: str | None
    signal_delay_s: int
    requeues: int
    additional: dict[str, Any]

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.timeout_min >= 1, "timeout_min", self.timeout_min, "1 minute or more")
        require(self.cpus_per_task >= 1, "cpus_per_task", self.cpus_per_task, "1 core or more")
        require(self.gpus_per_node >= 0, "gpus_per_node", self.gpus_per_node, "0 GPUs or more")
        require(self.mem_gb is None or 0 < self.mem_gb < float("inf"), "mem_gb", self.mem_gb, "above 0 GB, finite, or null")
        require(self.partition is None or _plain(self.partition), "partition", self.partition, "one line of text")
        within = 1 <= self.signal_delay_s < 60 * self.timeout_min
        require(within, "signal_delay_s", self.signal_delay_s, f"1 second or more, and less than the time limit of {60 * self.timeout_min} s")
        require(self.requeues >= 0, "requeues", self.requeues, "0 or more")
        for name, value in self.additional.items():
            named = str(name).replace("-", "_") in OPTIONS
            require(named, f"additional.{name}", value, f"an option that says where and when a job runs: {', '.join(sorted(OPTIONS))}")
            require(_plain(value), f"additional.{name}", value, "a number, true, null or one line of text")

    def threads(self, cores: int) -> int:
        """CPU threads of each member: the cores that its job is given, wherever the sweep itself runs."""
        return self.cpus_per_task

    @contextlib.contextmanager
    def opened(self, folder: Path) -> Iterator[Start]:
        """What submits a job.

        Raises:
            ConfigError: submitit is not installed.
            DeviceError: there is no SLURM here.
        """
        executor = self._executor(folder / "submitit")
        handles: list[Submitted] = []

        def start(job: Job) -> Handle:
            handles.append(_submitted(executor, job, folder / "submitit"))
            return handles[-1]

        try:
            yield start
        finally:
            for handle in handles:
                handle.kill()

    def _executor(self, folder: Path) -> Any:
        try:
            import submitit
        except ImportError as error:
            raise ConfigError("launcher=submitit: submitit is not installed", fix="pip install llmtrain[slurm], or launcher=local") from error
        if self.cluster is Cluster.slurm and shutil.which("srun") is None:
            raise DeviceError("launcher.cluster=slurm: there is no srun here", fix="start the sweep on a login node, or launcher.cluster=local")
        again = {"slurm_max_num_timeout": self.requeues, "local_max_num_timeout": self.requeues}
        executor = submitit.AutoExecutor(folder=folder.absolute(), cluster=self.cluster.value if self.cluster else None, **again)
        folder.mkdir(parents=True, exist_ok=True)
        additional = {str(name).replace("-", "_"): value for name, value in self.additional.items() if value is not None and value is not False}
        executor.update_parameters(
            timeout_min=self.timeout_min, cpus_per_task=self.cpus_per_task, gpus_per_node=self.gpus_per_node or None, mem_gb=self.mem_gb,
            slurm_partition=self.partition, slurm_signal_delay_s=self.signal_delay_s, slurm_additional_parameters=additional,
        )  # fmt: skip
        return executor


def _plain(value: object) -> bool:
    """Whether a value fits into one line of a submission file, where a second line would be a command."""
    return value is None or isinstance(value, bool | int | float) or (isinstance(value, str) and printable(value) == value and bool(value.strip()))


def _submitted(executor: Any, job: Job, folder: Path) -> Submitted:
    """Hand a job to the cluster.

    Raises:
        DeviceError: it was not taken.
    """
    work = Work(Job(job.name, job.call, job.arguments, job.log.absolute()), str(folder.absolute() / uuid.uuid4().hex), executor.cluster)
    executor.update_parameters(name=re.sub(r"[^A-Za-z0-9=._-]+", "_", f"llmtrain-{job.name}")[:80])
    try:
        with _interrupts_blocked():
            return Submitted(executor.submit(work), work)
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        said = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        raise DeviceError(f"{job.name}: {executor.cluster} did not take the job: {said[-1][:300]}", fix="launcher.additional, launcher.partition …") from error


@contextlib.contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """submitit's local processes, started inside, do not hear Ctrl-C, at which they would kill their job: the sweep decides."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# --- on the other side: inside the job -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Work:
    """What submitit calls in the job's process, again after each time that the job was put back into the queue.

    Attributes:
        notes: beginning of the paths of small files through which the sweep and the job tell each other what submitit does
            not: `.began` (the job's process), `.stop` (the sweep wants it to end).
    """

    job: Job
    notes: str
    cluster: str

    def __call__(self) -> int:
        if self.cluster == "debug":  # in the sweep's own process: on the screen, where a debugger can be used
            return child.outcome(self.job.call, self.job.arguments)
        if self.cluster == "local":
            os.setsid()  # Ctrl-C reaches the sweep alone, and what this starts can be found and ended; SLURM sees to that itself
        child.redirect(self.job.log)
        requeue = signal.getsignal(_preemption())
        _saves_when_asked()
        Path(f"{self.notes}.began").write_text(str(os.getpid()))
        code = child.outcome(self.job.call, self.job.arguments)
        # It saved and stopped. Unless the sweep wanted that, it was the cluster: time is up, or others need the machine.
        if code == Stopped.exit_code and not Path(f"{self.notes}.stop").exists() and callable(requeue):
            self._requeue(requeue)
        return code

    def _requeue(self, requeue: Any) -> None:
        """Let submitit put the job back into the queue, which ends this process; returns if that was done too often."""
        from submitit.core.utils import UncompletedJobError

        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # SLURM's answer to being asked for it
        with contextlib.suppress(UncompletedJobError):
            requeue(_preemption(), None)

    def checkpoint(self) -> Any:
        """What is submitted in place of this, when it has to stop: the same again, since a run goes on from its last checkpoint."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def _preemption() -> signal.Signals:
    """The signal by which submitit has SLURM announce the time limit."""
    return signal.Signals[f"SIG{os.environ.get('SUBMITIT_PREEMPT_SIGNAL', 'USR2')}"]


def _saves_when_asked() -> None:
    """Make of the cluster's signal what SIGTERM is: a trainer saves at its next step and stops.

    Every process that the job starts keeps the signal blocked: SLURM sends it to all of them, and it would end them.
    """
    process = os.getpid()

    def terminate(*_: object) -> None:
        if os.getpid() == process:  # a forked worker has the handler too
            os.kill(process, signal.SIGTERM)

    def stopped(number: int, frame: FrameType | None) -> None:
        if os.getpid() == process:
            raise Stopped("stopped by a signal before there was anything to save", fix="the same command starts it again")
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    signal.signal(signal.SIGTERM, stopped)  # until the trainer has its own
    signal.signal(_preemption(), terminate)  # where a thread that was there before hears it
    signal.pthread_sigmask(signal.SIG_BLOCK, {_preemption()})
    threading.Thread(target=lambda: terminate(signal.sigwait({_preemption()})), daemon=True).start()


# --- on this side: what became of it -------------------------------------------------------------------------------


class Submitted(Handle):
    """A job in the cluster's hands."""

    def __init__(self, job: Any, work: Work) -> None:
        self.job, self.work = job, work
        self.on_cluster = work.cluster == "slurm"
        self._asked = 0  # the exit code of a job that does not live to answer what it was asked
        self._code: int | None = None
        self._next = 0.0
        self._since: float | None = None  # when the job or its result was first seen to be there

    def poll(self) -> int | None:
        if self._code is None and time.monotonic() >= self._next:
            self._code = self._debugged() if self.work.cluster == "debug" else self._look()
            self._next = time.monotonic() + (POLL_S if self.on_cluster else 0.0)
        return self._code

    def _debugged(self) -> int:
        """Run it, here and now."""
        return self._asked or int(self.job.result())

    def _look(self) -> int | None:
        ended, there = self.job.done(), self.job.paths.result_pickle.exists()
        if not (ended or there):
            return None
        self._since = self._since or time.monotonic()
        waited = time.monotonic() - self._since
        if there and (ended or waited > LINGER_S):
            self._end_processes()
            return self._result()
        if ended and not there and waited >= (LATENCY_S if self.on_cluster else 0.0) and not self.job.paths.result_pickle.exists():
            self._end_processes()
            return self._without_result()
        return None

    def _result(self) -> int:
        """What the job's function returned; 1 where it was never called, and submitit's own trace in the log."""
        from submitit.core.utils import UncompletedJobError

        try:
            return int(self.job.result())
        except UncompletedJobError as error:
            self._log(str(error))
            return 1

    def _without_result(self) -> int:
        """The exit code of a job that left none: negative where it was ended, 1 where it failed before it began."""
        if self._asked:
            return self._asked
        state = str(self.job.state)
        self._log(f"error: {self.work.job.name} ended without a result; the cluster says {printable(state)}\n{self.job.stderr() or ''}")
        if state.upper().startswith("CANCELLED"):
            return -int(signal.SIGTERM)
        return KILLED if self._process() is not None or state.upper().startswith(ENDED_BY_OTHERS) else 1

    def stop(self) -> None:
        """Ask it to save and to end; one that waits in the queue, or has not begun, is taken away."""
        if self._known() is not None:
            return
        self._asked = self._asked or -int(signal.SIGTERM)
        self._want_stop()
        if self.on_cluster:
            _scancel("--state=PENDING", self.job.job_id)
            _scancel("--signal=TERM", self.job.job_id)
        elif (process := self._process()) is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGTERM)
        else:
            self._end_processes()

    def kill(self) -> None:
        """End it at once; on a cluster, as soon as that gets to it."""
        if self._known() is not None:
            return
        self._asked = KILLED
        self._want_stop()
        if self.on_cluster:
            _scancel(self.job.job_id)
        else:
            self._end_processes()
            self._known()

    def _known(self) -> int | None:
        """poll(), but a job of `debug` is not run by looking at it."""
        return self._code if self.work.cluster == "debug" else self.poll()

    def _want_stop(self) -> None:
        with contextlib.suppress(OSError):
            Path(f"{self.work.notes}.stop").touch()

    def _process(self) -> int | None:
        """The process in which the job's function was called; None: it was not."""
        try:
            return int(Path(f"{self.work.notes}.began").read_text())
        except (OSError, ValueError):
            return None

    def _end_processes(self) -> None:
        """End what a job of this machine still has here: its process, what that started, and the process that minds it."""
        if self.work.cluster != "local":
            return
        process, minder = self._process(), int(self.job.job_id)
        tree.end(lambda: [*tree.below(minder), *([] if process is None else tree.session(process))])
        self.job.done()  # hears the end of the one that is a child of this process

    def _log(self, text: str) -> None:
        with contextlib.suppress(OSError), self.work.job.log.open("a", encoding="utf-8") as file:
            file.write(f"{plain(text.strip())}\n")


def _scancel(*arguments: str) -> None:
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        subprocess.run(["scancel", *arguments], stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False)
