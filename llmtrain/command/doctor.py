"""`llmtrain doctor`: what this machine is, what llmtrain can do on it, and the way out where something is wrong.

    ✓ as it should be    – missing or worth knowing, but not needed    ✗ needed and wrong

Each check is a function that yields findings, and whatever it raises becomes a finding of its own: a machine on which
one thing cannot even be asked still gets the rest. Nothing is fetched, nothing is sent, and nothing is left running.
"""

from __future__ import annotations

import contextlib
import functools
import getpass
import importlib.metadata
import json
import locale
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from omegaconf import OmegaConf

from llmtrain import __version__, files, machine, runtime
from llmtrain.config import Composed, build
from llmtrain.errors import DeviceError, LLMTrainError, plain, printable, require, shown
from llmtrain.runtime import Precision

if TYPE_CHECKING:
    import torch
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

FORMAT = 1  # of the JSON file
TESTED_ON = "Linux"  # docs/platforms.md says what is known of the others

# The lines of constraints.txt, which is not part of an installed llmtrain, for the packages that are looked at here.
TESTED = """
accelerate==1.15.0
datasets==5.2.0
filelock==4.2.11
huggingface-hub==2.4.0
hydra-core==1.3.8
jinja2==3.1.6
matplotlib==3.11.2
numpy==2.4.6 ; python_full_version < '3.12'
numpy==2.5.5 ; python_full_version >= '3.12'
omegaconf==2.3.1
optuna==5.0.0
packaging==26.3
peft==0.21.2
psutil==7.2.2
pyarrow==26.0.1
pyyaml==6.0.3
rich==15.0.0
safetensors==0.8.0
scikit-learn==1.9.1
scipy==1.17.1
sentencex==1.0.32
submitit==1.5.4
tensorboard==2.21.0
tokenizers==0.23.3
torch==2.13.0
transformers==5.23.0
"""
# Packages that llmtrain uses where they are, and for what.
OPTIONAL = {
    "peft": "finetune=lora",
    "optuna": "sweep=optuna",
    "submitit": "launcher=submitit",
    "tensorboard": "callback.tracker.use=[tensorboard]",
    "wandb": "callback.tracker.use=[wandb]",
    "mlflow": "callback.tracker.use=[mlflow]",
    "trackio": "callback.tracker.use=[trackio]",
}
# Modules that must load together for any run: those with compiled parts, which is where an installation breaks.
LOADED = ("numpy", "torch", "pyarrow", "tokenizers", "safetensors.torch", "datasets", "accelerate", "transformers.modeling_utils", "sentencex")

# Of a processor, worth showing.
FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "avx512_vnni", "amx_bf16", "amx_tile", "asimd", "sve", "bf16", "i8mm")
SECRETS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY", "MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_PASSWORD", "COMET_API_KEY")
OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OMP_PROC_BIND", "GOMP_CPU_AFFINITY", "KMP_AFFINITY")
OTHER = (  # change what a run does; of these only the names are shown where a value could hold a password or an address
    *("CUDA_VISIBLE_DEVICES", "PYTORCH_ALLOC_CONF", "CUBLAS_WORKSPACE_CONFIG", "NVIDIA_TF32_OVERRIDE", "PYTORCH_ENABLE_MPS_FALLBACK"),
    *("LLMTRAIN_ALLOCATOR", "TOKENIZERS_PARALLELISM", "PYTHONOPTIMIZE", "PYTHONUTF8", "NCCL_DEBUG"),
)
HIDDEN = ("HF_ENDPOINT", "HTTP_PROXY", "HTTPS_PROXY", "https_proxy", "http_proxy", "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", "MASTER_ADDR", "LD_PRELOAD")

NOT_KNOWN = "not known: a report of this line is welcome"

# An absolute path that is not one of every system's, and not a part of an address: /data/x, C:\\x.
ANY_PATH = re.compile(r"(?<![\w.~:/])/(?!(?:etc|dev|proc|sys|usr|lib)\b)[^\s/:'\",;]+(?:/[^\s:'\",;]*)+|(?<!\w)[A-Za-z]:\\[^\s'\",;]*|\\\\[^\s'\",;]+")

GB = 1e9
FULL, TIGHT = 0.1 * GB, 5 * GB  # free bytes of a disk: nothing can be written; a few checkpoints fill it
LITTLE_MEMORY, SMALL_MEMORY = 0.5 * GB, 2 * GB  # torch and transformers alone take about 0.5
SHARED_MEMORY = 1 * GB  # what workers of data.num_workers hand over passes through it; containers give 64 MB
OPEN_FILES = 1024
PATIENCE = 6  # times timeout_s that imports may take: much is read from the disk
SIDE, SIDE_GPU, BUDGET_S = 512, 4096, 0.5  # of the matrices that are multiplied, and seconds for each device


class Mark(Enum):
    good = "✓"
    note = "–"
    wrong = "✗"


PLAIN = {Mark.good: "ok", Mark.note: "--", Mark.wrong: "NO"}  # for a terminal that has no other characters


@dataclass(frozen=True)
class Finding:
    """What one look gave.

    Attributes:
        text: a line for a person.
        fix: the way out, where there is something to be done.
        values: the same for a program.
    """

    mark: Mark
    text: str
    fix: str | None = None
    values: Mapping[str, Any] = field(default_factory=dict)


def good(text: str, **values: Any) -> Finding:
    return Finding(Mark.good, text, None, values)


def note(text: str, fix: str | None = None, **values: Any) -> Finding:
    return Finding(Mark.note, text, fix, values)


def wrong(text: str, fix: str, **values: Any) -> Finding:
    return Finding(Mark.wrong, text, fix, values)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Where to look, and where the findings go.

    Attributes:
        output: a .json file for the findings; null: only the terminal.
        output_dir: the folder whose disk is looked at; null: runs/.
        timeout_s: seconds that processes have to start and to answer.
    """

    output: str | None
    output_dir: str | None
    timeout_s: int

    def __post_init__(self) -> None:
        require(self.output is None or self.output.endswith(".json"), "output", self.output, "a file whose name ends in .json, or null")
        require(self.output_dir != "", "output_dir", "", "a folder, or null")
        require(self.timeout_s >= 1, "timeout_s", self.timeout_s, "1 second or more")

    @property
    def runs(self) -> Path:
        return files.expanded(self.output_dir or "runs")


@dataclass(frozen=True)
class Visit:
    """What the checks are given: the settings, and the process that imports in the background meanwhile, if one could be started."""

    settings: Settings
    importing: tuple[subprocess.Popen[bytes], IO[bytes]] | None


Check = Callable[[Visit], Iterator[Finding]]


def command(composed: Composed, overrides: list[str]) -> int:
    settings = build(OmegaConf.create({k: v for k, v in composed.config.items_ex(resolve=False) if k != "experiment"}), Settings, "")
    for line in composed.notes:
        print(f"note: {plain(line)}", file=sys.stderr)
    if settings.output is not None:
        _writable(Path(settings.output))
    say(f"llmtrain {__version__} on this machine: ✓ as it should be, – worth knowing, ✗ needed and wrong")
    found = examine(settings)
    bad = sum(finding.mark is Mark.wrong for _, _, finding in found)
    if settings.output is not None:
        files.write_json(Path(settings.output), as_json(found, private(settings)))
        say(f"\nwritten to {settings.output}, to be pasted into an issue: it names no user, no host, no folder and no secret")
    say(f"\n{'nothing' if not bad else f'{bad} of the things'} that runs need {'is' if bad < 2 else 'are'} wrong{': see ✗' if bad else ''}")
    return DeviceError.exit_code if bad else 0


def _writable(path: Path) -> None:
    """Say before all checks that their result cannot be written."""
    if path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise DeviceError(f"output={path}: {'a folder' if path.is_dir() else 'its folder cannot be written'}", fix="name a file in a folder that is there")


def examine(settings: Settings) -> list[tuple[str, str, Finding]]:
    """Make every check and print what it finds at once: (section, check, finding) of all."""
    found = []
    with contextlib.ExitStack() as stack:
        importing = None
        with contextlib.suppress(OSError):  # no process can be started: packages_load says so
            importing = stack.enter_context(machine.started(machine.IMPORT, *LOADED))
        for section, checks in SECTIONS.items():
            say(f"\n{section}")
            for check in checks:
                for finding in outcome(check, Visit(settings, importing)):
                    found.append((section, _name(check), finding))
                    show(finding)
    return found


def outcome(check: Check, visit: Visit) -> Iterator[Finding]:
    """What a check finds, and what it raises as a finding of its own."""
    try:
        yield from check(visit)
    except LLMTrainError as error:
        yield wrong(error.what, error.fix or NOT_KNOWN)
    except Exception as error:
        first = (str(error).strip().splitlines() or ["no message"])[0][:300]
        fix = f"pip install --force-reinstall {error.name}" if isinstance(error, ImportError) and error.name else NOT_KNOWN
        yield wrong(f"{_name(check)}: {type(error).__name__}: {first}", fix)


def _name(check: Check) -> str:
    return getattr(check, "__name__", "check").replace("_", " ")


# --- showing ------------------------------------------------------------------------------------------------------


def show(finding: Finding) -> None:
    say(f"  {finding.mark.value} {printable(finding.text)}")
    if finding.fix is not None:
        say(f"      {printable(finding.fix)}")


def say(text: str) -> None:
    """Print, also on a terminal whose encoding has neither ✓ nor –."""
    encoding = sys.stdout.encoding or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        for mark, letters in PLAIN.items():
            text = text.replace(f"{mark.value} ", f"{letters} ")
        text = text.encode(encoding, "replace").decode(encoding)
    print(text, flush=True)


def as_json(found: list[tuple[str, str, Finding]], hide: Callable[[str], str]) -> dict[str, Any]:
    """The findings for a program, without what could name a person or a place.

    Args:
        hide: replaces in a text what is private.
    """
    rows = [
        {"section": section, "check": check, "mark": f.mark.name, "text": hide(f.text), "fix": f.fix and hide(f.fix), "values": _hidden(f.values, hide)}
        for section, check, f in found
    ]
    return {"format": FORMAT, "llmtrain": __version__, "wrong": sum(row["mark"] == Mark.wrong.name for row in rows), "findings": rows}


def _hidden(value: Any, hide: Callable[[str], str]) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _hidden(v, hide) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_hidden(v, hide) for v in value]
    return hide(value) if isinstance(value, str) else value


def private(settings: Settings) -> Callable[[str], str]:
    """What replaces the names of this machine's folders, of its user and of itself in a text; any other path becomes PATH."""
    words: dict[str, str] = {}
    for name, find in _FOLDERS.items():
        with contextlib.suppress(Exception):  # no home, no cache: nothing to hide
            folder = find(settings).absolute()
            words |= {str(path): name for path in (folder, Path(os.path.realpath(folder))) if len(path.parts) > 1}  # not the root of all
    for name, ask in {"USER": getpass.getuser, "HOST": socket.gethostname, "HOST.DOMAIN": socket.getfqdn}.items():
        with contextlib.suppress(Exception):
            words |= {word: name for word in (ask(),) if len(word) > 1 and word not in ("root", "localhost")}
    known = "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))
    pattern = re.compile(rf"(?<![A-Za-z0-9])(?:{known or '(?!)'})(?![A-Za-z0-9])", re.IGNORECASE if sys.platform in ("win32", "darwin") else 0)
    lower = {word.lower(): name for word, name in words.items()}
    return lambda text: ANY_PATH.sub("PATH", pattern.sub(lambda match: lower[match[0].lower()], text))


def size(number: float) -> str:
    return f"{number / GB:,.1f} GB" if number >= GB else f"{number / 1e6:,.0f} MB"


# --- system and packages ------------------------------------------------------------------------------------------


def operating_system(_: Visit) -> Iterator[Finding]:
    name, around = platform.system() or sys.platform, machine.container()
    text = f"{name} {platform.release()}, {platform.machine()}{f', inside {around}' if around else ''}"
    values: dict[str, Any] = {"system": name, "release": platform.release(), "machine": platform.machine(), "inside": around}
    yield good(text, **values) if name == TESTED_ON else note(f"{text}: llmtrain is tested on {TESTED_ON} alone; docs/platforms.md", **values)


def python(_: Visit) -> Iterator[Finding]:
    from packaging.specifiers import SpecifierSet

    version, wanted = platform.python_version(), SpecifierSet(_metadata("llmtrain").get("Requires-Python") or "")
    text = f"{platform.python_implementation()} {version} (supported: {_range(wanted)})"
    values: dict[str, Any] = {"version": version, "implementation": platform.python_implementation(), "bits": 64 if sys.maxsize > 2**32 else 32}
    if not wanted.contains(version, prereleases=True):
        yield wrong(text, f"a virtual environment of a Python {_range(wanted)}", **values)
    elif values["bits"] == 32:
        yield wrong(f"{text}, of 32 bits, for which there is no torch", "install a Python of 64 bits", **values)
    elif values["implementation"] != "CPython":
        yield note(f"{text}: tested with CPython alone", **values)
    else:
        yield good(text, **values)


def text_encoding(_: Visit) -> Iterator[Finding]:
    found = {"terminal": sys.stdout.encoding or "none", "files": locale.getpreferredencoding(False)}
    if all(name.lower().replace("-", "").replace("_", "") == "utf8" for name in found.values()):
        yield good("text is UTF-8, on the terminal and in files", **found)
    else:
        yield note(f"text is {found['terminal']} on the terminal and {found['files']} in files", "PYTHONUTF8=1 in the environment makes both UTF-8", **found)


def needed_packages(_: Visit) -> Iterator[Finding]:
    needed = {name: requirement for name, (requirement, extra) in _requirements().items() if extra is None}
    found = {name: _version(name) for name in needed}
    fine, untested = [], []
    for name, requirement in needed.items():
        version, tested = found[name], _tested().get(name)
        values = {"package": name, "version": version, "range": _range(requirement.specifier), "tested": tested}
        fix = f"pip install '{name}{f'=={tested}' if tested else _range(requirement.specifier)}'"
        if version is None:
            yield wrong(f"{name} is not installed", fix, **values)
        elif not requirement.specifier.contains(version, prereleases=True):
            yield wrong(f"{name} {version} is outside of {_range(requirement.specifier)}", fix, **values)
        elif _public(version) != tested:
            untested.append(f"{name} {version} ({tested})" if tested else f"{name} {version}")
        else:
            fine.append(f"{name} {version}")
    if fine:
        yield good(f"of the tested versions: {', '.join(fine)}", versions=found)
    if untested:
        yield note(f"in its range, but another version was tested: {', '.join(untested)}", versions=found)


def optional_packages(_: Visit) -> Iterator[Finding]:
    ranges = {name: requirement for name, (requirement, extra) in _requirements().items() if extra is not None}
    there, missing = [], []
    for name, use in OPTIONAL.items():
        version = _version(name)
        if version is None:
            missing.append(f"{name} ({use})")
        elif name in ranges and not ranges[name].specifier.contains(version, prereleases=True):
            wanted = _range(ranges[name].specifier)
            yield note(f"{name} {version} is outside of {wanted}: {use} may fail", f"pip install '{name}{wanted}'", package=name, version=version, range=wanted)
        else:
            there.append(f"{name} {version} ({use})")
    if there:
        yield good(f"optional: {', '.join(there)}", installed=there)
    if missing:
        yield note(f"optional, not installed: {', '.join(missing)}", missing=missing)


@functools.cache
def _requirements() -> dict[str, tuple[Requirement, str | None]]:
    """Every package that the installed llmtrain asks for, with the extra that it belongs to: None where it is needed."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    found: dict[str, tuple[Requirement, str | None]] = {}
    for text in importlib.metadata.requires("llmtrain") or []:
        requirement = Requirement(text)
        extra = re.search(r"extra == ['\"]([^'\"]+)", text)
        if extra or requirement.marker is None or requirement.marker.evaluate():
            found.setdefault(canonicalize_name(requirement.name), (requirement, extra[1] if extra else None))
    return found


@functools.cache
def _tested() -> dict[str, str]:
    """The version of each package that was tested with this Python."""
    from packaging.requirements import Requirement

    lines = [Requirement(line) for line in TESTED.split("\n") if line]
    return {r.name: next(iter(r.specifier)).version for r in lines if r.marker is None or r.marker.evaluate()}


def _range(specifiers: SpecifierSet) -> str:
    """A range with its lower end first."""
    return ",".join(sorted(map(str, specifiers), key=lambda text: (text[0] != ">", text)))


def _public(version: str) -> str:
    """A version without what its builder added: torch 2.13.0+cpu is 2.13.0."""
    return version.partition("+")[0]


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _metadata(name: str) -> Mapping[str, str]:
    return importlib.metadata.metadata(name)  # type: ignore[return-value]


# --- processor and memory -----------------------------------------------------------------------------------------


def processor(_: Visit) -> Iterator[Finding]:
    flags, bf16 = runtime.cpu_flags(), runtime.has_bf16("cpu")
    shown_flags = [flag for flag in FLAGS if flag in flags]
    text = ": ".join([runtime.device_name("cpu"), *([", ".join(shown_flags)] if shown_flags else [])])
    text += "; no bf16 arithmetic that is known of" if not bf16 else "; multiplies bf16 in hardware" + (", slower than fp32" if runtime.has_slow_bf16() else "")
    yield good(text, name=runtime.device_name("cpu"), flags=shown_flags, bf16=bf16)


def cores(_: Visit) -> Iterator[Finding]:
    import psutil

    usable, quota = runtime.decide_threads("auto", 1), machine.cpu_quota()
    values: dict[str, Any] = {"usable": usable, "logical": os.cpu_count(), "physical": psutil.cpu_count(logical=False), "quota": quota}
    text = f"{usable} of {values['logical']} logical cores may be used ({values['physical'] or '?'} physical)"
    if quota is not None and quota < usable:
        whole = max(1, int(quota))
        yield note(f"{text}, but the control group allows the time of {quota:g}", f"threads={whole}: more would wait for each other", **values)
    else:
        yield good(f"{text}; threads=auto takes {usable}", **values)


def thread_settings(_: Visit) -> Iterator[Finding]:
    found = {name: os.environ[name] for name in THREADS if name in os.environ}
    if not found:
        yield good("no variable of the environment changes threads", variables=found)
        return
    text = ", ".join(f"{name}={shown(value, 40)}" for name, value in found.items())
    count = found.get("OMP_NUM_THREADS", "")
    effect = "a run sets its own number (threads=…); tokenising and what is not torch's keep to the variable" if count else "read by OpenMP"
    pinned = [name for name in ("OMP_PROC_BIND", "GOMP_CPU_AFFINITY", "KMP_AFFINITY") if name in found]
    if pinned:
        yield note(f"{text}: {effect}", f"without {' and '.join(pinned)}, processes of one machine do not share the same cores", variables=found)
    else:
        yield note(f"{text}: {effect}", variables=found)


def memory(_: Visit) -> Iterator[Finding]:
    import psutil

    found, limit = psutil.virtual_memory(), machine.memory_limit()
    room = min(found.available, limit or found.available)
    values: dict[str, Any] = {"total_bytes": found.total, "available_bytes": found.available, "limit_bytes": limit}
    text = f"{size(found.available)} of {size(found.total)} are free"
    text += f"; the control group allows {size(limit)}" if limit is not None and limit < found.total else ""
    if room < LITTLE_MEMORY:
        yield wrong(text, f"end other programs: what a run imports takes {size(LITTLE_MEMORY)}", **values)
    elif room < SMALL_MEMORY:
        yield note(text, "trainer.micro_batch_size=1 and a small model", **values)
    else:
        yield good(text, **values)


def shared_memory(_: Visit) -> Iterator[Finding]:
    folder = Path("/dev/shm")
    if not folder.is_dir():
        return
    total = shutil.disk_usage(folder).total
    if total < SHARED_MEMORY:
        yield note(f"{size(total)} of shared memory", "data.num_workers=0; or more of it: docker run --shm-size=8g", bytes=total)
    else:
        yield good(f"{size(total)} of shared memory, for data.num_workers", bytes=total)


# --- devices ------------------------------------------------------------------------------------------------------


def torch_build(_: Visit) -> Iterator[Finding]:
    import torch

    built = f"CUDA {torch.version.cuda}" if torch.version.cuda else f"ROCm {torch.version.hip}" if torch.version.hip else "no CUDA"
    onednn = bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]
    values = {"version": torch.__version__, "cuda": torch.version.cuda, "hip": torch.version.hip, "onednn": onednn}
    yield good(f"torch {torch.__version__}, built with {built} and {'oneDNN' if onednn else 'without oneDNN'}", **values)


def graphics(_: Visit) -> Iterator[Finding]:
    import torch

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        there = torch.cuda.is_available()
    if there:
        for index in range(torch.cuda.device_count()):
            yield _gpu(index)
    elif torch.backends.mps.is_available():
        yield good(f"mps: Apple GPU, {size(torch.mps.recommended_max_memory())} for it", kind="mps", total_bytes=torch.mps.recommended_max_memory())
    else:
        yield _no_gpu(str(said[0].message).splitlines()[0] if said else None)


def _gpu(index: int) -> Finding:
    import torch

    about = torch.cuda.get_device_properties(index)
    free, total = torch.cuda.mem_get_info(index)
    with torch.cuda.device(index):
        bf16 = runtime.has_bf16("cuda")
    text = f"cuda:{index} {about.name}, {size(free)} of {size(total)} free, capability {about.major}.{about.minor}, {'bf16' if bf16 else 'no bf16'}"
    values: dict[str, Any] = {"kind": "cuda", "index": index, "name": about.name, "total_bytes": total, "free_bytes": free, "bf16": bf16}
    values["capability"] = f"{about.major}.{about.minor}"
    if free < total / 2:
        return note(text, "another program holds much of it: `nvidia-smi` names it; CUDA_VISIBLE_DEVICES=… chooses another GPU", **values)
    return good(text, **values)


def _no_gpu(said: str | None) -> Finding:
    """Why there is none: none is there, it is hidden, torch is not built for it, or its driver does not fit."""
    import torch

    nvidia = Path("/dev/nvidiactl").exists() or Path("/dev/dxg").exists() or shutil.which("nvidia-smi") is not None
    amd = Path("/dev/kfd").exists()
    values: dict[str, Any] = {"kind": None, "nvidia": nvidia, "amd": amd}
    if not (nvidia or amd):
        return note("no GPU: runs take the CPU", **values)
    hidden = next((n for n in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES") if os.environ.get(n) in ("", "-1")), None)
    if hidden:
        return note(f"the GPU is hidden: {hidden} is {shown(os.environ[hidden])}", f"unset {hidden}", **values)
    maker = "NVIDIA" if nvidia else "AMD"
    if not (torch.version.cuda or torch.version.hip):
        fix = "install torch for it: https://pytorch.org/get-started/locally"
        return wrong(f"there seems to be a GPU of {maker}, but torch {torch.__version__} is built without it", fix, **values)
    text = f"there seems to be a GPU of {maker}, but torch {torch.__version__} cannot use it{f': {said[:200]}' if said else ''}"
    return wrong(text, "`nvidia-smi` must work here: a driver for this version of CUDA; in a container --gpus all", **values)


def compiler(_: Visit) -> Iterator[Finding]:
    found = next((name for name in (os.environ.get("CXX", ""), "g++", "clang++", "c++", "cl") if name and shutil.which(name)), None)
    if found:
        yield good("a C++ compiler, for trainer.compile=true", found=True)
    else:
        yield note("no C++ compiler, which trainer.compile=true needs on a CPU", "apt install g++, xcode-select --install or Visual Studio", found=False)


def automatic_precision(_: Visit) -> Iterator[Finding]:
    for device in _available():
        taken, why = runtime.decide_precision(Precision.auto, device, None)
        narrow = f"; fp32 for models narrower than {runtime.BF16_WIDTH}" if device == "cpu" and taken is Precision.bf16 else ""
        yield good(f"device={device} precision=auto takes {taken.name}: {why}{narrow}", device=device, precision=taken.name, why=why)


def _available() -> list[str]:
    """The devices that runs can take, the one that `auto` takes first."""
    import torch

    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    return [name for name, available in there.items() if available]


# --- disks --------------------------------------------------------------------------------------------------------


def disk_of_runs(visit: Visit) -> Iterator[Finding]:
    yield from disk("runs", visit.settings.runs, "output_dir=FOLDER on another disk", keeps=True, locked=True)


def disk_of_the_cache(_: Visit) -> Iterator[Finding]:
    yield from disk("cache", _cache_folder(), "LLMTRAIN_CACHE=FOLDER on another disk", keeps=False, locked=True)


def disk_of_the_hub(_: Visit) -> Iterator[Finding]:
    yield from disk("models of the hub", _hub_folder(), "HF_HOME=FOLDER on another disk", keeps=False, locked=False)


def disk_of_temporary_files(_: Visit) -> Iterator[Finding]:
    yield from disk("temporary files", Path(tempfile.gettempdir()), "TMPDIR=FOLDER on another disk", keeps=False, locked=False)


def disk(role: str, folder: Path, fix: str, *, keeps: bool, locked: bool) -> Iterator[Finding]:
    """What can be said of a folder, or of the nearest one above it that is there.

    Args:
        role: what llmtrain keeps there.
        fix: how another one is taken.
        keeps: what is there is meant to stay.
        locked: processes keep each other out by locks there.
    """
    place = machine.existing(folder)
    usage, kept_by = shutil.disk_usage(place), machine.file_system(place)
    kind = kept_by.kind if kept_by else "an unknown file system"
    values: dict[str, Any] = {"role": role, "free_bytes": usage.free, "total_bytes": usage.total, "file_system": kind}
    try:
        tried = machine.durable(place)
    except OSError as error:
        yield wrong(f"{role}: {kind}, nothing can be written, synced and renamed there: {error.strerror or error}", fix, **values)
        return
    text = f"{role}: {kind}, {size(usage.free)} of {size(usage.total)} free; written, synced and renamed in {tried.seconds * 1000:,.0f} ms"
    values |= {"seconds": round(tried.seconds, 4), "folders_synced": tried.folders, "links": tried.links}
    if usage.free < FULL:
        yield wrong(text, fix, **values)
    elif usage.free < TIGHT:
        yield note(text, fix, **values)
    else:
        yield good(text, **values)
    if kept_by is not None:
        yield from _caveats(role, kept_by, fix, keeps)
    if keeps and not tried.folders:
        yield note(f"{role}: a folder cannot be synced here, so the newest checkpoint may be lost with the power; older ones stay", role=role)
    if keeps and not tried.links:
        yield note(f"{role}: no links can be made, so checkpoints/last and best are missing; nothing needs them", role=role)
    if locked:
        yield from _locks(role, place, fix)


def _caveats(role: str, kept_by: machine.FileSystem, fix: str, keeps: bool) -> Iterator[Finding]:
    if kept_by.network:
        text = f"{role}: {kept_by.kind} is, or may be, on a network: whether a sync and a rename outlast a power cut is up to its server"
        yield note(text, fix, role=role, network=True)
    if kept_by.in_memory:
        yield note(f"{role}: {kept_by.kind} is in memory, takes from it, and is empty after a restart", fix, role=role, in_memory=True)
    if keeps and kept_by.discarded:
        yield note(f"{role}: {kept_by.kind}: what is written here goes when the container goes", fix, role=role, discarded=True)


def _locks(role: str, place: Path, fix: str) -> Iterator[Finding]:
    try:
        kind = machine.locks(place)
    except (OSError, machine.Failed) as error:
        yield wrong(f"{role}: locks do not work there: {error}", fix, role=role, locks="none")
        return
    if kind == "system":
        yield good(f"{role}: two processes keep each other out by a lock, which goes with its holder", role=role, locks=kind)
    else:
        yield note(f"{role}: the system has no locks there, so that of a process that died stays", fix, role=role, locks=kind)


def _cache_folder() -> Path:
    from llmtrain.data import store

    return store.root()


def _hub_folder() -> Path:
    home = os.environ.get("HF_HOME") or f"{os.environ.get('XDG_CACHE_HOME') or '~/.cache'}/huggingface"
    return files.expanded(os.environ.get("HF_HUB_CACHE") or f"{home}/hub")


_FOLDERS: dict[str, Callable[[Settings], Path]] = {  # later ones win where two are the same
    "PYTHON": lambda _: Path(sys.prefix),
    "BASE": lambda _: Path(sys.base_prefix),
    "TMPDIR": lambda _: Path(tempfile.gettempdir()),
    "HERE": lambda _: Path.cwd(),
    "RUNS": lambda settings: settings.runs,
    "HUB": lambda _: _hub_folder(),
    "CACHE": lambda _: _cache_folder(),
    "~": lambda _: Path.home(),
}


# --- environment --------------------------------------------------------------------------------------------------


def file_mode(_: Visit) -> Iterator[Finding]:
    if sys.platform == "win32":  # whose mask says nothing of who may read
        return
    mask = os.umask(0o077)
    os.umask(mask)
    if not mask & 0o002:
        yield note(f"umask {mask:03o}: every user of this machine may change what runs write", "umask 022", umask=f"{mask:03o}")
    else:
        readers = "you alone" if mask & 0o077 == 0o077 else "your group" if mask & 0o007 == 0o007 else "every user"
        yield good(f"umask {mask:03o}: {readers} may read what runs write", umask=f"{mask:03o}")


def open_files(_: Visit) -> Iterator[Finding]:
    try:
        import resource
    except ImportError:  # Windows
        return
    soft, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= soft < OPEN_FILES:
        yield note(f"a process may open {soft:,} files", "ulimit -n 4096", limit=soft)
    else:
        yield good(f"a process may open {'any number of' if soft < 0 or soft > 2**31 else f'{soft:,}'} files", limit=soft)


def secrets(_: Visit) -> Iterator[Finding]:
    found = [name for name in SECRETS if os.environ.get(name)]
    token = files.expanded(os.environ.get("HF_TOKEN_PATH") or _hub_folder().parent / "token").is_file()
    text = f"secrets that are set: {', '.join(found)}" if found else f"no secret is set ({', '.join(SECRETS[:3])}, …)"
    yield good(f"{text}; {'a' if token else 'no'} token file of the hub", set=found, hub_token_file=token)


def offline(_: Visit) -> Iterator[Finding]:
    found = [name for name in OFFLINE if os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE")]
    if found:
        yield note(f"{' and '.join(found)}: nothing is fetched; models and data must be folders, or be in the hub's cache", set=found)
    else:
        yield good("models and data may be fetched from the hub (HF_HUB_OFFLINE=1 forbids it); whether it answers was not tried", set=found)


def launchers(_: Visit) -> Iterator[Finding]:
    found = [name for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name in os.environ]
    if runtime.in_worker() and "TORCHELASTIC_RUN_ID" not in os.environ:
        yield wrong(f"{', '.join(found)} are set: a run would wait for other processes", f"unset {' '.join(found)}; a launcher sets them itself", set=found)
    elif runtime.in_worker():
        yield note("a launcher started this process as one of several", set=found)
    elif "SLURM_JOB_ID" in os.environ:
        yield good("inside a job of SLURM", slurm=True)


def other_variables(_: Visit) -> Iterator[Finding]:
    values: dict[str, Any] = {name: os.environ[name] for name in OTHER if name in os.environ}
    names = [name for name in HIDDEN if name in os.environ]
    if values or names:
        text = ", ".join([*[f"{name}={shown(value, 40)}" for name, value in values.items()], *[f"{name} is set" for name in names]])
        yield note(f"also: {text}", variables=values, set=names)


# --- experiments --------------------------------------------------------------------------------------------------


def packages_load(visit: Visit) -> Iterator[Finding]:
    """What was imported in the background meanwhile."""
    if visit.importing is None:
        yield wrong("no further Python can be started", "end other programs; a higher limit of processes (ulimit -u)")
        return
    process, said = visit.importing
    patience = PATIENCE * visit.settings.timeout_s
    try:
        process.wait(patience)
        failed = json.loads(machine.output(said).splitlines()[-1])
    except subprocess.TimeoutExpired:
        yield wrong(f"{', '.join(LOADED)} had not loaded after {patience} s", f"timeout_s={10 * visit.settings.timeout_s}, where Python is on a slow disk")
        return
    except (ValueError, IndexError):
        text = machine.last_line(machine.output(said))
        yield wrong(f"{', '.join(LOADED)} do not load together: exit code {process.returncode}: {text}", _reinstall("torch"))
        return
    for name, error in failed.items():
        yield wrong(f"{name} does not load: {error}", _reinstall(name.partition(".")[0]), module=name)
    if not failed:
        yield good(f"load together: {', '.join(name.partition('.')[0] for name in LOADED)}", modules=list(LOADED))


def _reinstall(name: str) -> str:
    tested = _tested().get(name)
    return f"pip install --force-reinstall '{name}{f'=={tested}' if tested else ''}'"


def processes_start(visit: Visit) -> Iterator[Finding]:
    for method, use in start_methods().items():
        try:
            seconds = machine.starts(method, visit.settings.timeout_s)
        except (OSError, machine.Failed) as error:
            yield wrong(f"no process starts by {method}, which {use} needs: {error}", "data.num_workers=0 and no sweeps; a newer Python", method=method)
        else:
            yield good(f"a process starts by {method}, for {use}, in {seconds:.1f} s", method=method, seconds=round(seconds, 2))


def start_methods() -> dict[str, str]:
    """How processes start here, and which do: those of launcher=local, and those that prepare data."""
    workers, sweeps = "data.num_workers", "sweeps"
    if sys.platform == "win32":
        return {"spawn": f"{workers} and {sweeps}"}
    return {"forkserver": f"{workers} and {sweeps}"} if sys.platform == "linux" else {"forkserver": workers, "spawn": sweeps}


def two_processes_talk(visit: Visit) -> Iterator[Finding]:
    import torch

    if not (torch.distributed.is_available() and torch.distributed.is_gloo_available()):
        yield note("this torch has no gloo: one process only", "devices=1", gloo=False)
        return
    try:
        seconds = machine.two_processes(visit.settings.timeout_s)
    except (OSError, RuntimeError, machine.Failed) as error:
        fix = "the name of this machine must lead to itself (/etc/hosts); GLOO_SOCKET_IFNAME=lo; a firewall must let it; timeout_s=60 on a slow disk"
        yield wrong(f"two processes cannot talk (gloo), as devices=2 needs: {machine.last_line(str(error))}", fix, gloo=True)
    else:
        yield good(f"two processes talk: they added their numbers over gloo in {seconds:.1f} s, start included", gloo=True, seconds=round(seconds, 2))


def products(_: Visit) -> Iterator[Finding]:
    """Whether bf16 pays: on a CPU by one core, which other programs disturb less than all of them."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for name in _available():
            yield _product(torch.device(name), SIDE if name == "cpu" else SIDE_GPU)
    finally:
        torch.set_num_threads(threads)


def _product(device: torch.device, side: int) -> Finding:
    import torch

    try:
        full, half = machine.products_s(device, [torch.float32, torch.bfloat16], side, BUDGET_S)
    except (RuntimeError, TypeError):  # an older mps has no bf16
        (full,), half = machine.products_s(device, [torch.float32], side, BUDGET_S), None
    name = "one core of the CPU" if device.type == "cpu" else device.type
    text = f"{name}: a product of {side:,} × {side:,} takes {full * 1000:.2f} ms in fp32 ({2 * side**3 / full / 1e9:,.0f} GFLOP/s)"
    values = {"device": device.type, "side": side, "fp32_s": full, "bf16_s": half}
    if half is None:
        return good(f"{text}; there is none in bf16", **values)
    faster = full >= half
    text += f", {half * 1000:.2f} ms in bf16, {max(full / half, half / full):.1f} times as {'fast' if faster else 'slow'}"
    taken, _ = runtime.decide_precision(Precision.auto, device.type, None)
    if taken is Precision.bf16 and not faster:
        return note(text, "precision=fp32, unless other programs disturbed the measurement: once more on a quiet machine", **values)
    return good(text, **values)


SECTIONS: dict[str, tuple[Check, ...]] = {
    "system": (operating_system, python, text_encoding),
    "packages": (needed_packages, optional_packages),
    "processor and memory": (processor, cores, thread_settings, memory, shared_memory),
    "devices": (torch_build, graphics, automatic_precision, compiler),
    "disks": (disk_of_runs, disk_of_the_cache, disk_of_the_hub, disk_of_temporary_files),
    "environment": (file_mode, open_files, secrets, offline, launchers, other_variables),
    "processes": (packages_load, processes_start, two_processes_talk),
    "speed": (products,),
}
