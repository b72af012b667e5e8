"""The machine: which device and precision, whose folder, and what a signal does."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from rich.color import ColorSystem
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

import llmtrain
from llmtrain import runtime
from llmtrain.cli import main
from llmtrain.config import build, compose
from llmtrain.errors import CheckpointError, ConfigError, DeviceError, DistributedError, Interrupted, printable
from llmtrain.runtime import Precision, Settings
from tests.conftest import TINY

OWN = tuple(field.name for field in dataclasses.fields(Settings))


def settings(**changes: Any) -> Settings:
    config = compose("pretrain", []).config
    return build({**{name: config[name] for name in OWN}, **changes}, Settings, "")


@pytest.fixture
def cpu_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)


# --- settings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a", "A-b_c.9", "x" * 100, "..a", "nul"])
def test_a_name_of_letters_digits_and_three_marks_is_taken(name: str) -> None:
    assert settings(name=name).name == name


@pytest.mark.parametrize("name", ["", ".", "..", "../../x", "/abs", "a/b", "a b", "x" * 101, "x\n", "\n", "é", "🙂", "a:b", "~"])
def test_g05_any_other_name_is_refused_by_one_rule(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        settings(name=name)
    assert caught.value.allowed == "1 to 100 letters, digits, '.', '_' or '-'"


@pytest.mark.parametrize("seed", [0, 2**32 - 1])
def test_the_ends_of_the_range_of_seeds_are_taken(seed: int) -> None:
    assert settings(seed=seed).seed == seed


@pytest.mark.parametrize("seed", [-1, 2**32, 2**40])
def test_a26_a_seed_beyond_is_refused(seed: int) -> None:
    with pytest.raises(ConfigError, match="seed="):
        settings(seed=seed)


@pytest.mark.parametrize(
    "change", [{"devices": "0"}, {"devices": "-1"}, {"threads": "many"}, {"threads": "1.5"}, {"distributed": {"timeout_s": 0}}, {"device": "gpu"}]
)
def test_numbers_of_devices_threads_and_seconds_are_checked(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(change))):
        settings(**change)


@pytest.mark.parametrize(("devices", "processes"), [("auto", 1), ("1", 1), ("4", 4)])
def test_devices_are_processes(devices: str, processes: int) -> None:
    assert settings(devices=devices).processes == processes


# --- device and precision -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("cuda", "mps", "device"), [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")])
def test_auto_takes_cuda_then_mps_then_cpu(monkeypatch: pytest.MonkeyPatch, cuda: bool, mps: bool, device: str) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: cuda)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: mps)
    assert runtime.decide_device("auto") == device


@pytest.mark.parametrize("device", ["cuda", "mps"])
@pytest.mark.usefixtures("cpu_only")
def test_a24_a_device_that_is_not_there_is_never_silently_the_cpu(device: str) -> None:
    with pytest.raises(DeviceError, match=f"device={device}") as caught:
        runtime.decide_device(device)
    assert caught.value.allowed == "cpu"


auto, fp32, bf16, fp16 = Precision


@pytest.mark.parametrize(
    ("wanted", "device", "has", "width", "taken"),
    [
        (auto, "cuda", True, 64, bf16),
        (auto, "cuda", False, 64, fp16),
        (auto, "mps", False, 4096, fp32),
        (auto, "cpu", False, 4096, fp32),
        (auto, "cpu", True, 4096, bf16),
        (auto, "cpu", True, 63, fp32),
        (auto, "cpu", True, None, bf16),
        (fp32, "cuda", True, 64, fp32),
        (fp32, "cpu", True, 4096, fp32),
        (bf16, "cpu", True, 64, bf16),
        (bf16, "cuda", True, None, bf16),
        (fp16, "cuda", True, 64, fp16),
    ],
)
def test_the_precision_is_decided_with_a_reason(
    monkeypatch: pytest.MonkeyPatch, wanted: Precision, device: str, has: bool, width: int | None, taken: Precision
) -> None:
    monkeypatch.setattr(runtime, "has_bf16", lambda name: has)
    monkeypatch.setattr(runtime, "has_slow_bf16", lambda: False)
    found, why = runtime.decide_precision(wanted, device, width)
    assert found is taken
    assert why == "as configured" if wanted is not auto else why


@pytest.mark.parametrize(("device", "allowed"), [("cpu", "fp32"), ("mps", "fp32"), ("cuda", "fp32, fp16")])
def test_a23_bf16_without_hardware_for_it_is_refused(monkeypatch: pytest.MonkeyPatch, device: str, allowed: str) -> None:
    monkeypatch.setattr(runtime, "has_bf16", lambda name: False)
    with pytest.raises(DeviceError, match="has no bf16 arithmetic") as caught:
        runtime.decide_precision(bf16, device, 4096)
    assert caught.value.allowed == allowed


def test_a22_fp16_on_a_cpu_is_refused_also_where_auto_chose_the_cpu() -> None:
    with pytest.raises(ConfigError, match="fp16"):
        settings(precision="fp16", device="cpu")
    with pytest.raises(ConfigError, match="no fp16 training"):
        runtime.decide_precision(fp16, "cpu", 4096)


@pytest.mark.parametrize(("override", "code"), [("device=cuda", 6), ("precision=bf16", 6), ("precision=fp16", 2)])
@pytest.mark.usefixtures("cpu_only")
def test_what_the_machine_lacks_is_found_before_a_folder_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], override: str, code: int
) -> None:
    monkeypatch.setattr(runtime, "has_bf16", lambda name: False)
    given = [o for o in TINY if not o.startswith(("device", "precision"))]
    assert main(["pretrain", *given, override, f"output_dir={tmp_path / 'run'}"]) == code
    assert override.partition("=")[0] in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("flags", "has"), [({"avx512_bf16"}, True), ({"amx_bf16", "avx2"}, True), ({"avx2", "avx512f"}, False), (set(), False)])
def test_whether_a_cpu_has_bf16_is_read_from_its_flags(monkeypatch: pytest.MonkeyPatch, flags: set[str], has: bool) -> None:
    monkeypatch.setattr(runtime, "cpu_flags", lambda: flags)
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    assert runtime.has_bf16("cpu") is has


AMX_HIDDEN = {"avx512f", "avx512_bf16", "avx512_fp16"}


@pytest.mark.parametrize(
    ("vendor", "flags", "slow"),
    [
        ("GenuineIntel", AMX_HIDDEN, True),
        ("GenuineIntel", AMX_HIDDEN | {"amx_bf16"}, False),
        ("GenuineIntel", AMX_HIDDEN - {"avx512_fp16"}, False),
        ("GenuineIntel", AMX_HIDDEN - {"avx512_bf16"}, False),
        ("AuthenticAMD", AMX_HIDDEN, False),
        (None, AMX_HIDDEN, False),
    ],
)
def test_bf16_of_intel_without_amx_is_taken_where_it_is_asked_for_and_not_by_auto(
    monkeypatch: pytest.MonkeyPatch, vendor: str | None, flags: set[str], slow: bool
) -> None:
    monkeypatch.setattr(runtime, "cpu_field", {"vendor_id": vendor, "flags": " ".join(flags)}.get)
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    assert runtime.has_slow_bf16() is slow
    taken, why = runtime.decide_precision(auto, "cpu", 4096)
    assert (taken is fp32) is (slow or "avx512_bf16" not in flags)
    assert ("slower than fp32" in why) is slow
    if "avx512_bf16" in flags:
        assert runtime.decide_precision(bf16, "cpu", 4096) == (bf16, "as configured")
    monkeypatch.setattr(runtime, "has_bf16", lambda device: True)
    assert runtime.decide_precision(auto, "cuda", 4096)[0] is bf16


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("processor\t: 0\nvendor_id\t: GenuineIntel\n\nprocessor\t: 1\nvendor_id\t: Other\n", "vendor_id", "GenuineIntel"),
        ("model\t\t: 207\nmodel name\t: Xeon\n", "model name", "Xeon"),
        ("Features\t: fp asimd bf16\n", "flags", None),
        (None, "flags", None),
    ],
)
def test_what_the_kernel_says_of_the_first_processor(monkeypatch: pytest.MonkeyPatch, text: str | None, name: str, value: str | None) -> None:
    def read(path: Path) -> str:
        assert str(path) == "/proc/cpuinfo"
        if text is None:
            raise FileNotFoundError(path)
        return text

    monkeypatch.setattr(Path, "read_text", read)
    assert runtime.cpu_field(name) == value
    if name == "flags" and text:
        assert runtime.cpu_flags() == {"fp", "asimd", "bf16"}


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda index: "Some GPU")
    runtime.enough_devices("cuda", 1, 2)
    runtime.enough_devices("cpu", 99, 99)
    with pytest.raises(DeviceError, match="devices=2: this machine has 1") as caught:
        runtime.enough_devices("cuda", 2, 2)
    assert caught.value.allowed == "cuda:0 Some GPU"


@pytest.mark.parametrize("local", ["1", "2"])
def test_processes_that_mps_cannot_join_are_refused_and_not_each_taken_for_the_only_one(monkeypatch: pytest.MonkeyPatch, local: str) -> None:
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": local}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: True)
    monkeypatch.setattr(runtime, "meet", lambda settings: pytest.fail("they meet"))
    with pytest.raises(DeviceError, match="devices=2 on mps") as caught:
        runtime.start(settings(device="auto", threads="1"))
    assert caught.value.fix == "device=cpu joins several"


def test_one_process_takes_mps() -> None:
    runtime.enough_devices("mps", 1, 1)


@pytest.mark.parametrize(("wanted", "world", "threads"), [("auto", 1, 8), ("auto", 2, 4), ("auto", 3, 2), ("auto", 99, 1), ("5", 2, 5)])
def test_cores_are_shared_evenly(monkeypatch: pytest.MonkeyPatch, wanted: str, world: int, threads: int) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert runtime.decide_threads(wanted, world) == threads


# --- a run's folder -------------------------------------------------------------------------------------------------


def test_two_runs_never_share_a_new_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    first, second = (runtime.new_run_folder("pretrain", settings(name="mine")) for _ in range(2))
    assert first != second
    assert {first.parent, second.parent} == {Path("runs/pretrain")}
    assert "-mine" in first.name


@pytest.mark.parametrize("where", ["a file/run", "read only/run"])
def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path, where: str) -> None:
    (tmp_path / "a file").write_text("")
    (tmp_path / "read only").mkdir(mode=0o555)
    if os.geteuid() == 0 and where.startswith("read"):
        pytest.skip("root writes everywhere")
    with pytest.raises(DeviceError, match="output_dir="):
        runtime.new_run_folder("pretrain", settings(output_dir=str(tmp_path / where)))


def test_the_newest_run_is_the_one_whose_final_was_written_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="no finished run below runs/"):
        runtime.newest_run()
    for age, name in enumerate(("c", "a", "b")):
        path = tmp_path / "runs" / "pretrain" / name / "final" / "config.json"
        path.parent.mkdir(parents=True)
        path.write_text("{}")
        os.utime(path, (1000 - age, 1000 - age))
    (tmp_path / "runs" / "pretrain" / "unfinished").mkdir()
    assert runtime.newest_run() == Path("runs/pretrain/c")


HOLD = """
import sys, time
from pathlib import Path
from llmtrain import runtime
with runtime.locked(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(300)
"""


def holder(folder: Path) -> subprocess.Popen[str]:
    """Another process that holds the folder."""
    environment = {**os.environ, "PYTHONPATH": str(Path(llmtrain.__file__).parents[1])}
    other = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True, env=environment)
    assert other.stdout is not None
    assert other.stdout.readline() == "locked\n"
    return other


def test_g02_a_second_run_in_the_same_folder_is_refused_with_the_holder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with holder(tmp_path) as other:
        try:
            assert main(["pretrain", *TINY, f"output_dir={tmp_path}"]) == 6
            said = capsys.readouterr().err
            with pytest.raises(DeviceError, match=f"in use by pid {other.pid} on .* since 20") as caught, runtime.locked(tmp_path):
                pass
        finally:
            other.kill()
    assert caught.value.exit_code == 6
    assert f"in use by pid {other.pid}" in said


def test_g03_the_lock_of_a_dead_process_is_taken_over(tmp_path: Path) -> None:
    with holder(tmp_path) as other:
        other.kill()
    assert json.loads((tmp_path / ".lock-holder.json").read_text())["pid"] == other.pid
    with runtime.locked(tmp_path):
        assert json.loads((tmp_path / ".lock-holder.json").read_text())["pid"] == os.getpid()
    assert not (tmp_path / ".lock-holder.json").exists()


def test_whether_a_folder_is_in_use_is_seen_without_making_a_file(tmp_path: Path) -> None:
    assert runtime.in_use(tmp_path) is None
    assert not list(tmp_path.iterdir())
    with runtime.locked(tmp_path):
        said = runtime.in_use(tmp_path)
        assert said is not None
        assert f"in use by pid {os.getpid()} on " in said.what
    (tmp_path / ".lock-holder.json").write_text("{}")  # of one that was killed
    assert runtime.in_use(tmp_path) is None


def test_a_lock_is_released_where_the_run_fails(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="fault"), runtime.locked(tmp_path):
        raise ValueError("fault")
    with runtime.locked(tmp_path):
        pass


# --- signals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_only_sets_a_flag(number: signal.Signals) -> None:
    event = runtime.Flag()
    before = signal.getsignal(number)
    with runtime.stopping_on_signals(event):
        assert not event.is_set()
        os.kill(os.getpid(), number)
        assert event.is_set()
    assert signal.getsignal(number) is before


def test_e15_the_second_ctrl_c_ends_it_at_once() -> None:
    with pytest.raises(Interrupted) as caught, runtime.stopping_on_signals(runtime.Flag()):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
    assert caught.value.exit_code == 130


def test_a_second_sigterm_is_no_ctrl_c() -> None:
    event = runtime.Flag()
    with runtime.stopping_on_signals(event):
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
    assert event.is_set()


def test_a_signal_in_the_middle_of_setting_the_flag_does_not_wait_for_itself() -> None:
    """At every line of `set` and of what it calls, as a signal may come after any of them."""
    event, struck = runtime.Flag(), list[int]()

    def strike(frame: FrameType, kind: str, _: Any) -> Any:
        if kind == "line" and len(struck) < 50:
            struck.append(frame.f_lineno)
            os.kill(os.getpid(), signal.SIGTERM)
        return strike

    def enough(*_: object) -> None:
        raise AssertionError("it waits for itself")

    before = signal.signal(signal.SIGALRM, enough)
    signal.alarm(20)
    try:
        with runtime.stopping_on_signals(event):
            sys.settrace(lambda frame, *_: strike if frame.f_code.co_name in ("set", "notify_all", "notify") else None)
            try:
                event.set()
            finally:
                sys.settrace(None)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    assert struck
    assert event.is_set()


# --- several processes ----------------------------------------------------------------------------------------------


PLACE = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")


@pytest.mark.parametrize(
    ("variables", "wrong"),
    [
        ({}, None),
        ({"WORLD_SIZE": "1"}, None),
        ({"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, None),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE=2 is set and RANK is not"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK=2 is not below WORLD_SIZE=2"),
        ({"RANK": "one", "WORLD_SIZE": "2"}, "RANK=one is no number"),
        ({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "-1"}, "LOCAL_RANK=-1 is no number"),
    ],
)
def test_f06_variables_of_a_launcher_that_make_no_sense_are_named_with_who_sets_them(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], wrong: str | None
) -> None:
    for name in PLACE:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    if wrong is None:
        runtime.set_right()
        return
    with pytest.raises(DistributedError) as caught:
        runtime.set_right()
    assert caught.value.what == wrong
    assert "torchrun" in str(caught.value.fix)


def test_f06_and_f07_why_ranks_did_not_meet_is_told_from_what_torch_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = dataclasses.replace(settings(device="cpu"), distributed=dataclasses.replace(settings().distributed, timeout_s=1))
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    with socket.socket() as taken:
        taken.bind(("", 0))
        port = taken.getsockname()[1]
        monkeypatch.setenv("MASTER_PORT", str(port))
        taken.listen()
        with pytest.raises(DistributedError, match=f"MASTER_PORT={port} is in use"):
            runtime.meet(asked)
    with pytest.raises(DistributedError, match=f"1 of WORLD_SIZE=2 processes came to 127.0.0.1:{port} within distributed.timeout_s=1 seconds; this is RANK=0"):
        runtime.meet(asked)
    monkeypatch.delenv("MASTER_ADDR")
    with pytest.raises(DistributedError, match="MASTER_ADDR, the machine of rank 0, is not set"):
        runtime.meet(asked)


@pytest.mark.parametrize(
    ("variables", "more"),
    [
        ({}, False),
        ({"MASTER_PORT": "29500"}, False),
        ({"ACCELERATE_MIXED_PRECISION": "no"}, False),
        ({"ACCELERATE_MIXED_PRECISION": "no", "MASTER_PORT": "29500"}, True),
        ({"ACCELERATE_MIXED_PRECISION": "no", "MASTER_PORT": "29500", "RANK": "0", "WORLD_SIZE": "2"}, False),
    ],
)
def test_one_process_where_accelerate_was_asked_for_several_is_noticed(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], more: bool) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_PORT", "ACCELERATE_MIXED_PRECISION"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert runtime.asked_for_more() is more


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("DataLoader worker (pid 12) is killed by signal: Killed. ", "a process that reads data (pid 12) died (signal: Killed)"),
        ("DataLoader worker (pid(s) 12, 13) exited unexpectedly", "a process that reads data (pid 12, 13) died"),
    ],
)
def test_f04_a_process_that_reads_data_and_dies_is_named(text: str, what: str) -> None:
    with pytest.raises(DistributedError) as caught, runtime.data_workers_named():
        raise RuntimeError(text)
    assert caught.value.what == what
    with pytest.raises(RuntimeError, match="something else"), runtime.data_workers_named():
        raise RuntimeError("something else")


def test_a_rank_that_has_failed_is_not_ended_by_a_signal_before_it_has_said_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    before, event = signal.getsignal(signal.SIGTERM), runtime.Flag()
    try:
        with pytest.raises(ValueError, match="fault"), runtime.stopping_on_signals(event):
            raise ValueError("fault")
        os.kill(os.getpid(), signal.SIGTERM)  # as torchrun sends it to the others
        assert event.is_set()
    finally:
        signal.signal(signal.SIGTERM, before)
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.mark.parametrize(("variables", "inside"), [({"RANK": "0", "WORLD_SIZE": "2"}, True), ({"RANK": "0"}, False), ({}, False)])
def test_a_process_knows_whether_a_launcher_started_it(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], inside: bool) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert runtime.in_worker() is inside


def test_pythons_that_are_started_do_not_import_from_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "random.py").write_text("raise SystemExit(77)")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", str(tmp_path))])
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    command = [sys.executable, "-c", "import random"]
    assert subprocess.run(command, check=False).returncode == 77
    with runtime.path_of_its_own():
        assert subprocess.run(command, check=False).returncode == 0
    assert "PYTHONSAFEPATH" not in os.environ


# --- the console ----------------------------------------------------------------------------------------------------


def test_nothing_that_is_printed_drives_the_terminal_and_tables_keep_their_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", "very-secret")
    console, evil = runtime.make_console(), "a\x1b[2J\u202eb\rc"
    console.file = out = io.StringIO()
    table = Table()
    table.add_column(evil)
    table.add_row(evil)
    for thing in (evil, "two\nlines", "[red]very-secret[/]", Text(evil), Panel(evil, title="t"), table):
        console.print(thing)
    lines = out.getvalue().split("\n")
    assert all(line == printable(line) for line in lines)
    assert lines[:4] == [r"a\x1b[2J\u202eb\rc", "two", "lines", "[red]***[/]"]
    assert len({len(line) for line in lines[-6:-1]}) == 1


def test_the_consoles_own_styles_reach_the_terminal() -> None:
    console = runtime.make_console()
    console._force_terminal, console._color_system = True, ColorSystem.STANDARD
    console.file = out = io.StringIO()
    console.print("failed", style="red")
    assert out.getvalue() == "\x1b[31mfailed\x1b[0m\n"


@pytest.mark.skipif("CS_GNU_LIBC_VERSION" not in os.confstr_names, reason="glibc alone")
@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "glibc.malloc.tcache_count=0"),
        ({"GLIBC_TUNABLES": "glibc.malloc.check=0"}, "glibc.malloc.check=0"),
        ({"LLMTRAIN_ALLOCATOR": "system"}, "None"),
    ],
)
def test_the_command_starts_anew_with_a_sparing_allocator_once_and_with_its_words(given: dict[str, str], expected: str) -> None:
    code = "import os, sys; from llmtrain.runtime import restart_sparing; restart_sparing(); print(os.getpid(), os.environ.get('GLIBC_TUNABLES'), sys.argv[1:])"
    environment = {k: v for k, v in os.environ.items() if k not in ("GLIBC_TUNABLES", "LLMTRAIN_ALLOCATOR")} | given
    child = subprocess.Popen([sys.executable, "-c", code, "a b", "c=1"], env=environment, stdout=subprocess.PIPE, text=True)
    assert child.communicate(timeout=60)[0] == f"{child.pid} {expected} ['a b', 'c=1']\n"
