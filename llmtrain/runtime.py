"""The machine: device, precision, threads, processes, the console, a run's folder and its lock.

Nothing here knows what is trained. torch and accelerate are imported only when a run really starts, so that help and
config errors answer at once.
"""

from __future__ import annotations

import contextlib
import ctypes
import datetime
import gc
import json
import logging
import os
import platform
import re
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from llmtrain.errors import CheckpointError, ConfigError, DeviceError, DistributedError, Interrupted, Stopped, plain, printable, require

if TYPE_CHECKING:
    from accelerate import Accelerator
    from rich.console import Console

log = logging.getLogger("llmtrain")

OUTPUT = "output.log"  # in the folder of a sweep's member: what its process printed, from before the run began
NAME = re.compile(r"[A-Za-z0-9._-]{1,100}")
# Below this width fp32 is taken: toys where the casts of autocast can cost more than bf16 products gain. At 64 bf16 ran
# at 1.96 times the tokens/s of fp32 (vocabulary 8,192; `scripts/benchmark precision`); narrower was not measured.
BF16_WIDTH = 64


class Device(Enum):
    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"
    mps = "mps"


class Precision(Enum):
    auto = "auto"
    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


class OnNonfinite(Enum):
    stop = "stop"
    skip = "skip"


class Strategy(Enum):
    ddp = "ddp"
    fsdp = "fsdp"


@dataclass(frozen=True, kw_only=True)
class Distributed:
    """Settings of several processes.

    Attributes:
        timeout_s: seconds that one process waits for another before the run ends.
        strategy: ddp: each process holds the whole model; fsdp: parameters, gradients and optimizer are divided over them.
    """

    timeout_s: int
    strategy: Strategy


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The top-level keys: where and how a run runs.

    Attributes:
        device: auto takes cuda, then mps, then cpu. `cuda:1` is written CUDA_VISIBLE_DEVICES=1 device=cuda.
        devices: processes, one for each device; auto: one.
        threads: CPU threads of each process; auto: the cores, shared evenly.
        precision: of the forward and backward pass; weights and optimizer stay in fp32.
        deterministic: only operations that give the same bits every time (a CPU always does).
        distributed: settings of several processes.
        seed: of everything that is drawn.
        name: a word for the run, part of its folder's name.
        output_dir: the run's own folder; null makes a new dated one below runs/.
        resume: auto continues the run in output_dir if there is one; never refuses; must insists; else the path of a
            run or a checkpoint.
        on_nonfinite: what a loss or a gradient that is not a finite number does: stop the run, or skip the update.
        allow_change: keys that a resumed run may have other values of than it was started with.
    """

    device: str
    devices: str
    threads: str
    precision: Precision
    deterministic: bool
    distributed: Distributed
    seed: int
    name: str | None
    output_dir: str | None
    resume: str
    on_nonfinite: OnNonfinite
    allow_change: list[str]

    def __post_init__(self) -> None:
        names = [d.name for d in Device]
        if self.device.startswith("cuda:"):
            require(False, "device", self.device, ", ".join(names), fix=f"CUDA_VISIBLE_DEVICES={self.device[5:]} with device=cuda chooses one GPU")
        require(self.device in names, "device", self.device, ", ".join(names))
        for field_name in ("devices", "threads"):
            value = getattr(self, field_name)
            require(value == "auto" or (value.isdigit() and int(value) >= 1), field_name, value, "auto, or a whole number from 1")
        require(0 <= self.seed < 2**32, "seed", self.seed, "0 to 4294967295 (2³² − 1)")
        require(self.distributed.timeout_s >= 1, "distributed.timeout_s", self.distributed.timeout_s, "1 second or more")
        ok = self.name is None or (NAME.fullmatch(self.name) is not None and self.name not in (".", ".."))
        require(ok, "name", self.name, "1 to 100 letters, digits, '.', '_' or '-'")
        wrong = self.precision is Precision.fp16 and self.device == "cpu"
        require(not wrong, "precision", "fp16", "fp32 or bf16 on a CPU, which has no fp16 training", fix="precision=bf16 or precision=auto")

    @property
    def processes(self) -> int:
        return 1 if self.devices == "auto" else int(self.devices)


def single(device: str, threads: str, precision: Precision) -> Settings:
    """Settings of a command that makes no run."""
    nothing: dict[str, Any] = {"name": None, "output_dir": None, "resume": "never", "deterministic": False, "seed": 0, "allow_change": []}
    nothing["on_nonfinite"] = OnNonfinite.stop
    return Settings(
        device=device, devices="auto", threads=threads, precision=precision, distributed=Distributed(timeout_s=600, strategy=Strategy.ddp), **nothing
    )


# --- one process of a run -----------------------------------------------------------------------------------------


class Flag:
    """What the handler of a signal may set.

    A threading.Event has a lock: a signal that comes in the middle of its `set` or `wait` would wait there for itself, for ever.
    """

    def __init__(self) -> None:
        self._on = False

    def set(self) -> None:
        self._on = True

    def clear(self) -> None:
        self._on = False

    def is_set(self) -> bool:
        return self._on


@dataclass
class Runtime:
    """What a run stands on, once decided: everything `auto` is replaced.

    Attributes:
        device: cpu, cuda or mps.
        device_name: as a person would call it.
        precision: fp32, bf16 or fp16, and `why`.
        threads: CPU threads of this process.
        rank, world: this process and how many there are.
        accelerator: Accelerate's, with gradient accumulation left at 1: the trainer groups micro-batches itself.
        warnings: what was said at warning level, for run.json.
        signalled: set where a signal asked this process to stop.
        begun: set where training begins: from then on there is something to save, and a signal waits for the next step.
    """

    settings: Settings
    device: str
    device_name: str
    precision: Precision
    why: str
    threads: int
    rank: int
    world: int
    accelerator: Accelerator
    console: Console
    warnings: list[str] = field(default_factory=list)
    signalled: Flag = field(default_factory=Flag)
    begun: Flag = field(default_factory=Flag)

    @property
    def main(self) -> bool:
        return self.rank == 0

    @property
    def processor(self) -> str:
        """What computes, as far as another one may round otherwise: the device's name, and which instructions torch uses on a CPU."""
        import torch

        if self.device != "cpu":
            return self.device_name
        return f"{self.device_name}, {torch.backends.cpu.get_cpu_capability()}{' and bf16' if has_bf16('cpu') else ''}"

    @property
    def sharded(self) -> bool:
        """Whether the model is divided over the processes."""
        return self.world > 1 and self.settings.distributed.strategy is Strategy.fsdp

    def sum(self, values: list[float]) -> list[float]:
        """The sums of `values` over all processes, in float64: every process gets the same numbers."""
        if self.world == 1:
            return values
        import torch

        tensor = torch.tensor(values, dtype=torch.float64 if self.device != "mps" else torch.float32, device=self.accelerator.device)
        torch.distributed.all_reduce(tensor)
        return [float(v) for v in tensor.tolist()]

    def any(self, flag: bool) -> bool:
        """Whether `flag` is set on any process."""
        return self.sum([float(flag)])[0] > 0

    def broadcast(self, value: Any) -> Any:
        """The main process's `value`, on every process."""
        if self.world == 1:
            return value
        from accelerate.utils import broadcast_object_list

        return broadcast_object_list([value])[0]

    def seed(self, seed: int) -> None:
        """Seed torch's generators of this process's devices.

        Not by torch.manual_seed: for each kind of accelerator that is not there yet it keeps a stack trace, 2 ms in all.
        """
        import torch

        torch.default_generator.manual_seed(seed)
        if self.device == "cuda":
            torch.cuda.manual_seed(seed)
        elif self.device == "mps":
            torch.mps.manual_seed(seed)

    def gather(self, value: Any) -> list[Any]:
        """The `value` of every process, on every process, in the order of their ranks. It is pickled: nothing large."""
        if self.world == 1:
            return [value]
        from accelerate.utils import gather_object

        found: list[Any] = gather_object([value])
        return found

    def peak_memory_mb(self) -> float:
        """The most memory held so far: the GPU's where there is one, else this process's resident set."""
        if self.device == "cuda":
            import torch

            return torch.cuda.max_memory_allocated() / 2**20
        return peak_resident_mb()


def peak_resident_mb() -> float:
    """Peak resident set of this process in MiB; nan where the system does not tell (Windows)."""
    try:
        import resource
    except ImportError:
        return float("nan")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def start(settings: Settings, width: int | None = None) -> Runtime:
    """Decide device, precision and threads, join the other processes, and make the Accelerator.

    Args:
        width: the model's hidden size, which decides `precision=auto` on a CPU.

    Raises:
        DeviceError: a device or a precision that this machine lacks.
    """
    import torch
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState
    from accelerate.utils import InitProcessGroupKwargs

    set_right()
    world = int(os.environ["WORLD_SIZE"]) if in_worker() else 1
    threads = decide_threads(settings.threads, world)
    torch.set_num_threads(threads)
    device = decide_device(settings.device)
    enough_devices(device, int(os.environ.get("LOCAL_WORLD_SIZE", "1")), world)
    precision, why = decide_precision(settings.precision, device, width)
    refuse_undividable(settings, device, precision, world)
    if settings.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
    # Accelerate's state belongs to the process and would keep the precision of an earlier run. These two resets are
    # private, and the only way to run twice in one process (accelerate 1.15).
    AcceleratorState._reset_state(reset_partial_state=not in_worker())
    GradientState._reset_state()
    meet(settings)
    mixed = "no" if precision is Precision.fp32 else precision.name
    group = InitProcessGroupKwargs(timeout=datetime.timedelta(seconds=settings.distributed.timeout_s))
    accelerator = Accelerator(cpu=device == "cpu", mixed_precision=mixed, kwargs_handlers=[group])
    console = make_console(quiet=accelerator.process_index != 0)
    notes = [ONE_ONLY] if asked_for_more() else []
    for line in notes:
        console.print(f"warning: {line}", soft_wrap=True)
    return Runtime(
        settings=settings,
        device=device,
        device_name=device_name(device),
        precision=precision,
        why=why,
        threads=threads,
        rank=accelerator.process_index,
        world=accelerator.num_processes,
        accelerator=accelerator,
        console=console,
        warnings=notes,
    )


def refuse_undividable(settings: Settings, device: str, precision: Precision, world: int) -> None:
    """Refuse what a model that is divided over processes cannot do, and Accelerate's own wrapper of that kind.

    Raises:
        ConfigError: with the way out.
    """
    if os.environ.get("ACCELERATE_USE_FSDP", "").lower() in ("1", "true"):
        raise ConfigError("accelerate launch was told to use FSDP, whose checkpoints are not llmtrain's", fix="without --use_fsdp: distributed.strategy=fsdp")
    if settings.distributed.strategy is Strategy.ddp or world == 1:
        return
    if precision is Precision.fp16:
        raise ConfigError("distributed.strategy=fsdp with precision=fp16", allowed="bf16, fp32", fix="distributed.strategy=ddp")
    if device == "mps":
        raise ConfigError("distributed.strategy=fsdp on mps", allowed="cuda, cpu")


def check(settings: Settings) -> None:
    """Find out whether this machine has the device and the precision, before anything is made or loaded.

    Raises:
        DeviceError, ConfigError: it has not.
    """
    decide_precision(settings.precision, decide_device(settings.device), None)


def decide_threads(wanted: str, world: int) -> int:
    """auto: the cores that this process may use, shared by the processes of this machine."""
    local = int(os.environ.get("LOCAL_WORLD_SIZE", world))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    return max(1, cores // local) if wanted == "auto" else int(wanted)


def decide_device(wanted: str) -> str:
    import torch

    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if wanted == "auto":
        return next(name for name, there in available.items() if there)
    if not available[wanted]:
        raise DeviceError(
            f"device={wanted}: this machine has none, or this torch ({torch.__version__}) cannot use it",
            allowed=", ".join(n for n, t in available.items() if t),
            fix="device=auto takes what is there",
        )
    return wanted


def enough_devices(device: str, processes: int, world: int) -> None:
    """Refuse more processes than this machine has GPUs: each takes one. Those of Apple's cannot be joined.

    Args:
        processes: of this machine.
        world: of all machines.
    """
    import torch

    if device == "mps" and world > 1:  # Accelerate would take each for the only one: all of them would train, and write the same files
        raise DeviceError(f"devices={world} on mps, whose processes cannot be joined", allowed="devices=1", fix="device=cpu joins several")
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if device == "cuda" else []
    if device == "cuda" and processes > len(names):
        raise DeviceError(
            f"devices={processes}: this machine has {len(names)}", allowed=", ".join(f"cuda:{i} {n}" for i, n in enumerate(names)), fix=f"devices={len(names)}"
        )


def decide_precision(wanted: Precision, device: str, width: int | None) -> tuple[Precision, str]:
    """The precision, and why. A CPU without fast bf16 instructions, or a narrow model, is faster in fp32."""
    if wanted is Precision.fp16 and device == "cpu":
        raise ConfigError("precision=fp16 on a CPU, which has no fp16 training", allowed="fp32, bf16", fix="precision=auto")
    supported = has_bf16(device)
    if wanted is Precision.bf16 and not supported:
        raise DeviceError(
            f"precision=bf16: this {device} has no bf16 arithmetic", allowed="fp32" + (", fp16" if device == "cuda" else ""), fix="precision=auto"
        )
    if wanted is not Precision.auto:
        return wanted, "as configured"
    if device == "cuda":
        return (Precision.bf16, "the GPU has it") if supported else (Precision.fp16, "the GPU has no bf16")
    if device == "mps" or not supported:
        return Precision.fp32, f"{device} without bf16 arithmetic" if device == "cpu" else "the safe choice on mps"
    if width is not None and width < BF16_WIDTH:
        return Precision.fp32, f"the processor has bf16, but a model {width} wide is faster without"
    if device == "cpu" and has_slow_bf16():
        return Precision.fp32, "the processor has bf16, but multiplies it slower than fp32"
    return Precision.bf16, "the processor has it"


def has_bf16(device: str) -> bool:
    """Whether `device` multiplies bf16 matrices in hardware."""
    import torch

    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device == "mps":
        return False
    if platform.machine() in ("arm64", "aarch64"):
        # No portable question exists for arm64; oneDNN and ACL use bf16 where the kernel lists the feature.
        return "bf16" in cpu_flags()
    return bool({"avx512_bf16", "amx_bf16"} & cpu_flags())


def has_slow_bf16() -> bool:
    """Whether the CPU multiplies bf16 matrices, but slower than fp32 ones.

    Intel's server cores since Sapphire Rapids have the fast products in AMX, which some hypervisors hide. Without it oneDNN takes the
    vector instruction of AVX-512, whose rate there is about half of fp32's: trainings ran at 0.60 to 0.78 of the tokens/s of fp32, by width
    (docs/platforms.md). AMD's Zen 4 and 5 are faster in bf16 (docs/benchmark.md). avx512_fp16 tells these cores from Cooper Lake, an
    earlier one without AMX that was made for this instruction and on which nothing was measured.
    """
    flags = cpu_flags()
    return cpu_field("vendor_id") == "GenuineIntel" and {"avx512_bf16", "avx512_fp16"} <= flags and "amx_bf16" not in flags


def cpu_flags() -> set[str]:
    return set((cpu_field("flags") or cpu_field("Features") or "").split())


def cpu_field(name: str) -> str | None:
    """What the kernel says of the first processor under `name`; None where it says nothing (macOS, Windows)."""
    try:
        found = re.search(rf"^{name}\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        return None
    return found[1].strip() if found else None


def device_name(device: str) -> str:
    if device == "cuda":
        import torch

        return torch.cuda.get_device_name()
    if device == "mps":
        return "Apple GPU"
    return cpu_field("model name") or platform.processor() or platform.machine()


def keep_memory() -> bool:
    """Tell glibc's allocator to keep the large blocks that every step frees and asks for again.

    By default each is returned to the system and its pages are cleared anew. Called when training begins, and when frozen
    states are to be computed: what was used before it is given back first. Does nothing elsewhere than on glibc, or where the environment says
    LLMTRAIN_ALLOCATOR=system (scripts/benchmark compares).
    """
    if not sys.platform.startswith("linux") or os.environ.get("LLMTRAIN_ALLOCATOR") == "system":
        return False
    m_trim_threshold, m_mmap_threshold = -1, -3
    try:
        libc = ctypes.CDLL("libc.so.6")
        gc.collect()
        gc.freeze()  # what is there now stays: later collections, one for each leg, need not go through torch's modules again
        libc.malloc_trim(0)
        return bool(libc.mallopt(m_mmap_threshold, 1 << 30)) and bool(libc.mallopt(m_trim_threshold, 2**31 - 1))
    except (OSError, AttributeError):
        return False


def restart_sparing() -> None:
    """Start this process anew with glibc told to leave no crumbs, unless the environment says how it is to allocate.

    torch asks for blocks at multiples of 64 bytes. glibc cuts them out of larger ones, and the offcuts of 32 to 112 bytes go
    to a cache of each thread, from where small objects take them: so the large free blocks beside them do not join and
    cannot be used again (glibc 2.36). Without that cache the peak of training a BERT of 14 million parameters was 100 MB
    lower (970 for 1,070) at the same speed. It can be set in the environment alone, which is read when a process starts, so
    this is to be called first, by the command itself and not by a library. LLMTRAIN_ALLOCATOR=system prevents it.
    """
    glibc = sys.platform.startswith("linux") and "CS_GNU_LIBC_VERSION" in os.confstr_names
    if glibc and "GLIBC_TUNABLES" not in os.environ and os.environ.get("LLMTRAIN_ALLOCATOR") != "system":
        os.environ["GLIBC_TUNABLES"] = "glibc.malloc.tcache_count=0"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


# --- console and log ----------------------------------------------------------------------------------------------


def make_console(quiet: bool = False, stderr: bool = False) -> Console:
    """Where everything is printed that is not an error. Text from data must never drive the terminal: markup is off, and rich lets escapes through."""
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.segment import Segment
    from rich.text import Text

    class PlainConsole(Console):
        def render_str(self, text: str, **options: Any) -> Text:
            return super().render_str(plain(text), **options)  # before it is measured: a cell is as wide as what is in it

        def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
            for text, style, control in super().render(renderable, options):  # `control` is what rich itself tells the terminal
                yield Segment(text if control else "\n".join(printable(line) for line in text.split("\n")), style, control)

    return PlainConsole(markup=False, highlight=False, quiet=quiet, stderr=stderr, soft_wrap=False)


@contextlib.contextmanager
def logging_to(runtime: Runtime, folder: Path | None) -> Iterator[None]:
    """Show what the `llmtrain` logger says on the console, keep it in train.log, and keep warnings for run.json."""
    handlers: list[logging.Handler] = [_ConsoleHandler(runtime)]
    if folder is not None and runtime.main:
        handlers.append(_Log(folder / "train.log", encoding="utf-8"))
        handlers[-1].setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.setLevel(logging.INFO)
    log.propagate = False
    for handler in handlers:
        log.addHandler(handler)
    try:
        yield
    finally:
        for handler in handlers:
            log.removeHandler(handler)
            handler.close()


class _Log(logging.FileHandler):
    """train.log. That the disk is full is told by what the run cannot do without, and not by pages of tracebacks."""

    def format(self, record: logging.LogRecord) -> str:
        return plain(super().format(record))

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 — the name is logging's
        pass

    def close(self) -> None:
        with contextlib.suppress(OSError):
            super().close()


class _ConsoleHandler(logging.Handler):
    def __init__(self, runtime: Runtime) -> None:
        super().__init__()
        self.runtime = runtime

    def emit(self, record: logging.LogRecord) -> None:
        message = plain(record.getMessage())
        if record.levelno >= logging.WARNING:
            self.runtime.warnings.append(message)
            message = f"warning: {message}"
        self.runtime.console.print(message, soft_wrap=True)  # a broken path cannot be copied


# --- a run's folder -----------------------------------------------------------------------------------------------


def new_run_folder(verb: str, settings: Settings) -> Path:
    """The run's folder: `output_dir`, or a new dated one, created exclusively so that two runs never share it."""
    if settings.output_dir is not None:
        folder = Path(settings.output_dir)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            why = "a link to what is not there" if folder.is_symlink() and not folder.exists() else error.strerror
            raise DeviceError(f"output_dir={folder}: {why}", fix="name a folder that can be written") from error
        return folder
    stamp = datetime.datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    base = f"{stamp}-{settings.name}" if settings.name else stamp
    for attempt in range(100):
        folder = Path("runs") / verb / (base if not attempt else f"{base}-{attempt + 1}")
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            continue
        except OSError as error:
            raise DeviceError(f"{folder}: {error.strerror}", fix="output_dir=FOLDER names another place") from error
    raise DeviceError(f"runs/{verb}/{base}: taken a hundred times over")


def newest_run(verb: str = "*") -> Path:
    """The run below runs/ whose final/ was written last.

    Args:
        verb: of the runs that are looked at; *: of all.

    Raises:
        CheckpointError: there is none.
    """
    found = finished_runs(verb)
    if not found:
        raise CheckpointError(
            "model.checkpoint=newest: there is no finished run below runs/", fix="`llmtrain pretrain` makes one; model.checkpoint=FOLDER names another"
        )
    return found[-1]


def finished_runs(verb: str = "*") -> list[Path]:
    """The runs below runs/ that have a final/, the newest last."""
    found = sorted(Path("runs").glob(f"{verb}/*/final/config.json"), key=lambda p: (p.stat().st_mtime, str(p)))
    return [path.parent.parent for path in found]


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a run's folder: an operating system lock, so a holder that dies releases it."""
    lock = FileLock(folder / ".lock")
    note = folder / ".lock-holder.json"
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise _in_use(folder, note) from None
    except OSError as error:  # a file system without locks, or .lock of another user
        fix = "output_dir=FOLDER names another place; `llmtrain doctor` tries the locks of a disk"
        raise DeviceError(f"{folder} cannot be locked: {error.strerror or error}", fix=fix) from error
    try:
        now = datetime.datetime.now().isoformat(timespec="seconds")
        note.write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": now}))
        yield
    finally:
        note.unlink(missing_ok=True)
        lock.release()


class InUse(DeviceError):
    """A folder that another process holds."""


def in_use(folder: Path) -> InUse | None:
    """What to say of a folder that another process holds; None where none does. One that died left its note, but not its lock."""
    lock, note = folder / ".lock", folder / ".lock-holder.json"
    if not (note.is_file() and lock.is_file()):  # to look at a folder makes no file in it
        return None
    try:
        with FileLock(lock, timeout=0):
            return None
    except Timeout:
        return _in_use(folder, note)
    except OSError:  # a folder that may be read and not written to
        return None


def _in_use(folder: Path, note: Path) -> InUse:
    """The answer where the lock is held. On this machine a process that dies lets go of it; of another one only its file system knows."""
    try:
        found = json.loads(note.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        found = None
    holder = {name: printable(str(value))[:80] for name, value in found.items()} if isinstance(found, dict) else {}
    host, fix = holder.get("host", "?"), "wait for it, or give another output_dir"
    if host not in ("?", socket.gethostname()):
        fix += f"; if nothing runs on {host} any more, the lock goes when the file server notices; a copy of the folder has none"
    return InUse(f"{folder} is in use by pid {holder.get('pid', '?')} on {host} since {holder.get('since', '?')}", fix=fix)


# --- signals ------------------------------------------------------------------------------------------------------


class AtOnce(BaseException):
    """A signal where there is nothing to save yet. No Exception: libraries catch those while they are imported, and go on."""


AGAIN = "the same command starts it again"
_heard = Flag()  # by `stopping_at_once`, also where what it raised was swallowed


@contextlib.contextmanager
def stopping_at_once() -> Iterator[None]:
    """Until `stopping_on_signals` takes over, SIGTERM and Ctrl-C end what stands inside where it is.

    Raises:
        Stopped: a signal came.
    """
    try:
        with stopping_on_signals(_heard, Flag()):
            yield
    finally:
        _heard.clear()


@contextlib.contextmanager
def stopping_on_signals(event: Flag, begun: Flag | None = None, again: str = AGAIN) -> Iterator[None]:
    """SIGTERM and Ctrl-C set `event`, and the loop acts at its next step; a second Ctrl-C ends the process at once.

    A handler must not save: it can interrupt a save half way. Before training there is nothing to save, and nobody looks at `event`
    for minutes: reading, tokenising and importing are left where they are. What they write is whole or not there.

    Args:
        begun: until it is set, a signal ends what stands inside; None: it never does.
        again: what the user is told to do then.

    Raises:
        Stopped: a signal came before `begun`.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT and event.is_set():
            raise Interrupted("interrupted twice: stopped at once", fix="the same command goes on from the last checkpoint")
        first = not event.is_set()
        event.set()
        if first and begun is not None and not begun.is_set():
            raise AtOnce

    def early() -> bool:
        return begun is not None and not begun.is_set() and (event.is_set() or _heard.is_set())

    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        if early():
            raise AtOnce
        yield
    except BaseException as error:
        if in_worker():  # it is ending already, and torchrun's SIGTERM must not end it before it has said why
            before.clear()
        if early() and not isinstance(error, Stopped | Interrupted):  # also what a library made of AtOnce
            raise Stopped("stopped by a signal before training began; nothing is lost", fix=again) from None
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# --- several processes --------------------------------------------------------------------------------------------


@contextlib.contextmanager
def path_of_its_own() -> Iterator[None]:
    """A Python started inside does not import from the working directory, unless this one does.

    `python -m` and `python -c`, which torchrun and multiprocessing use, put it first: a user's random.py or datasets.py
    there would be run in place of the real one.
    """
    if "PYTHONSAFEPATH" in os.environ or {"", os.getcwd()} & set(sys.path):
        yield
        return
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        yield
    finally:
        del os.environ["PYTHONSAFEPATH"]


def in_worker() -> bool:
    """Whether a launcher (torchrun, accelerate launch, ours) started this process as one of several."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def set_right() -> None:
    """Check what a launcher sets for one of several processes.

    Raises:
        DistributedError: a part of it is missing or makes no sense.
    """
    found = {name: os.environ[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE") if name in os.environ}
    numbers = {name: int(value) for name, value in found.items() if value.isdigit()}
    wrong = next((f"{name}={found[name]} is no number" for name in found if name not in numbers), None)
    if wrong is None and "RANK" not in found and numbers.get("WORLD_SIZE", 1) > 1:
        wrong = f"WORLD_SIZE={found['WORLD_SIZE']} is set and RANK is not"
    if wrong is None and "RANK" in found and numbers["RANK"] >= numbers.get("WORLD_SIZE", numbers["RANK"] + 1):
        wrong = f"RANK={found['RANK']} is not below WORLD_SIZE={found['WORLD_SIZE']}"
    if wrong is not None:
        raise DistributedError(wrong, fix=LAUNCHERS)


LAUNCHERS = "torchrun, accelerate launch or srun start all processes and set these variables; alone: unset RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE"


def meet(settings: Settings) -> None:
    """Join the other processes, where there are any and it was not done yet.

    Those that we started meet in a file of their own, so no port can be taken; those of another launcher where it says.

    Raises:
        DistributedError: they did not all come, or the port is taken.
    """
    import torch

    world = int(os.environ["WORLD_SIZE"]) if in_worker() else 1
    if world == 1 or torch.distributed.is_initialized():
        return
    cpu = settings.device == "cpu" or not torch.cuda.is_available()
    if not cpu and "LOCAL_RANK" not in os.environ:
        raise DistributedError("RANK and WORLD_SIZE are set and LOCAL_RANK, which chooses the GPU, is not", fix=LAUNCHERS)
    folder = os.environ.get("LLMTRAIN_MEETING")  # processes.MEETING
    os.environ.setdefault("MASTER_PORT", "29500")  # as Accelerate has it
    try:
        torch.distributed.init_process_group(
            "gloo" if cpu else "nccl",
            store=torch.distributed.FileStore(str(Path(folder) / "group"), world) if folder else None,  # type: ignore[attr-defined]
            rank=int(os.environ["RANK"]),
            world_size=world,
            timeout=datetime.timedelta(seconds=settings.distributed.timeout_s),
        )
    except (RuntimeError, ValueError) as error:
        raise _not_met(error, settings) from error


def _not_met(error: Exception, settings: Settings) -> DistributedError:
    """Why the processes of a run did not find each other."""
    text = str(error)
    address, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")
    if address is None and not isinstance(error, RuntimeError):
        return DistributedError("MASTER_ADDR, the machine of rank 0, is not set", fix=LAUNCHERS)
    if "EADDRINUSE" in text or "address already in use" in text.lower():
        return DistributedError(f"MASTER_PORT={port} is in use", fix="torchrun --master-port N; on one machine devices=N, or torchrun --standalone")
    if re.search(r"(?i)tim(e|ed)[ -]?out", text):
        came = re.search(r"(\d+)/\d+ clients joined", text)
        return DistributedError(
            f"{came[1] if came else 'not all'} of WORLD_SIZE={os.environ['WORLD_SIZE']} processes came to {address}:{port} "
            f"within distributed.timeout_s={settings.distributed.timeout_s} seconds; this is RANK={os.environ['RANK']}",
            fix=LAUNCHERS,
        )
    return DistributedError(f"the processes did not find each other: {(text.splitlines() or ['no message'])[0][:200]}", fix=LAUNCHERS)


ONE_ONLY = "accelerate launch was asked for several processes and started this one alone, as it does on CPUs: devices=N, or torchrun, starts several"


def asked_for_more() -> bool:
    """Whether `accelerate launch` was told of several processes and started one: its variables say so, and nothing else does."""
    return not in_worker() and {"ACCELERATE_MIXED_PRECISION", "MASTER_PORT"} <= os.environ.keys()


def rendezvous(settings: Settings) -> tuple[Callable[[Any], Any], Callable[[Any], list[Any]]]:
    """Join the other processes before a device is chosen.

    Returns:
        What hands the main process's value to all, and what hands the values of all to all.
    """
    import torch
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list, gather_object

    set_right()
    meet(settings)
    cpu = settings.device == "cpu" or not torch.cuda.is_available()
    state = PartialState(cpu=cpu, timeout=datetime.timedelta(seconds=settings.distributed.timeout_s))
    alone = state.num_processes == 1
    return lambda value: broadcast_object_list([value])[0], lambda value: [value] if alone else gather_object([value])


@contextlib.contextmanager
def data_workers_named() -> Iterator[None]:
    """A worker of the data loader that dies is named: torch raises it wherever the process happens to be.

    Raises:
        DistributedError: with its pid and how it ended.
    """
    try:
        yield
    except RuntimeError as error:
        found = re.search(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (?:is killed by signal: (\w[^.]*)|exited unexpectedly)", str(error))
        if found is None:
            raise
        raise DistributedError(
            f"a process that reads data (pid {found[1]}) died{f' (signal: {found[2].strip()})' if found[2] else ''}",
            fix="data.num_workers=0 reads in the training process and shows why; they share memory through /dev/shm (64 MB in containers)",
        ) from error


def leave_group() -> None:
    """Take leave of the other processes, where there are any: torch warns where that is forgotten."""
    import torch

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
