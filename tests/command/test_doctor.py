"""`llmtrain doctor` on this machine, on machines that are made up, and on those where a question cannot even be asked."""

from __future__ import annotations

import builtins
import contextlib
import io
import json
import os
import platform
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from packaging.requirements import Requirement

from llmtrain import machine, runtime
from llmtrain.command import doctor
from llmtrain.command.doctor import Check, Finding, Mark, Settings, Visit, command, good, note, wrong
from llmtrain.config import compose
from llmtrain.errors import ConfigError, DeviceError, LLMTrainError
from llmtrain.launcher import local

ROOT = Path(__file__).parents[2]
SETTINGS = Settings(output=None, output_dir=None, timeout_s=60)

Ask = Callable[[Check], list[Finding]]


@pytest.fixture
def ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ask:
    """One check, in an empty folder: ask(doctor.memory) → what it finds."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LLMTRAIN_CACHE", str(tmp_path / "cache"))
    return lambda check: list(doctor.outcome(check, Visit(SETTINGS, None)))


def run(monkeypatch: pytest.MonkeyPatch, checks: dict[str, tuple[Check, ...]], *overrides: str) -> int:
    """The whole command, with other checks."""
    monkeypatch.setattr(doctor, "SECTIONS", checks)
    monkeypatch.setattr(machine, "IMPORT", "")
    return command(compose("doctor", list(overrides)), list(overrides))


def says(*findings: Finding) -> Check:
    return lambda _: iter(findings)


# --- as a whole -----------------------------------------------------------------------------------------------------


def test_on_this_machine_every_check_has_an_answer_the_file_says_the_same_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LLMTRAIN_CACHE", str(tmp_path / "cache"))
    before = {p.pid for p in psutil.Process().children(recursive=True)}
    command(compose("doctor", ["output=found.json", "timeout_s=120"]), [])
    out, content = capsys.readouterr().out, json.loads(Path("found.json").read_text(encoding="utf-8"))
    assert {row["section"] for row in content["findings"]} == set(doctor.SECTIONS)
    answered = {row["check"] for row in content["findings"]}
    silent = {"launchers", "other variables"}  # where there is nothing to say
    assert {check.__name__.replace("_", " ") for checks in doctor.SECTIONS.values() for check in checks} - silent <= answered
    assert [row["text"] for row in content["findings"] if f"{Mark[row['mark']].value} {row['text']}" not in out] == []
    assert [row["text"] for row in content["findings"] if re.search(r"^[a-z ]+: \w*(Error|Exception|Warning):", row["text"])] == []
    assert {p.pid for p in psutil.Process().children(recursive=True) if p.status() != psutil.STATUS_ZOMBIE} <= before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "found.json"]


@pytest.mark.parametrize(
    ("finding", "code", "last"),
    [(good("a"), 0, "nothing that runs need is wrong"), (note("b", "c"), 0, "nothing that runs need is wrong"), (wrong("d", "e"), 6, "1 of the things")],
)
def test_the_exit_code_is_6_where_something_that_is_needed_is_wrong(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], finding: Finding, code: int, last: str
) -> None:
    assert run(monkeypatch, {"one": (says(good("fine"), finding),)}) == code
    lines = capsys.readouterr().out.splitlines()
    assert last in lines[-1]
    assert f"  {finding.mark.value} {finding.text}" in lines
    assert (f"      {finding.fix}" in lines) == (finding.fix is not None)


def raises(error: BaseException) -> Check:
    def check(_: Visit) -> Iterator[Finding]:
        yield good("before it")
        raise error

    return check


@pytest.mark.parametrize(
    ("error", "text", "fix"),
    [
        (AttributeError("module 'os' has no attribute 'x'"), "check: AttributeError: module 'os' has no attribute 'x'", doctor.NOT_KNOWN),
        (ModuleNotFoundError("No module named 'torch'", name="torch"), "check: ModuleNotFoundError: No module named 'torch'", "torch"),
        (OSError(5, "Input/output error\nsecond line"), "check: OSError: [Errno 5] Input/output error", doctor.NOT_KNOWN),
        (RuntimeError(), "check: RuntimeError: no message", doctor.NOT_KNOWN),
        (DeviceError("the cache cannot be written", fix="set LLMTRAIN_CACHE"), "the cache cannot be written", "set LLMTRAIN_CACHE"),
        (LLMTrainError("something"), "something", doctor.NOT_KNOWN),
    ],
)
def test_what_a_check_raises_is_a_line_of_its_own_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception, text: str, fix: str
) -> None:
    assert run(monkeypatch, {"one": (raises(error), says(good("after it")))}) == 6
    lines = capsys.readouterr().out.splitlines()
    before = lines.index("  ✓ before it")
    assert lines[before + 1] == f"  ✗ {text}"
    assert fix in lines[before + 2]
    assert lines[before + 3] == "  ✓ after it"


def test_ctrl_c_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(monkeypatch, {"one": (raises(KeyboardInterrupt()),)})


def test_help_and_settings_need_no_torch() -> None:
    code = "import sys, llmtrain.command.doctor, llmtrain.config as c; c.compose('doctor', []); print({'torch', 'datasets'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_terminal_without_the_marks_gets_plain_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    doctor.show(wrong("512 × 512", "→ there"))
    terminal.seek(0)
    assert terminal.read().splitlines() == ["  NO 512 ? 512", "      ? there"]


def test_what_a_machine_says_of_itself_cannot_drive_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    doctor.show(good("AMD \x1b[2J EPYC"))
    assert capsys.readouterr().out == "  ✓ AMD \\x1b[2J EPYC\n"


@pytest.mark.parametrize("override", ["output=found.txt", "output=''", "output_dir=''", "timeout_s=0"])
def test_a_setting_out_of_range_is_refused(override: str) -> None:
    with pytest.raises(ConfigError, match=override.partition("=")[0]):
        command(compose("doctor", [override]), [])


@pytest.mark.parametrize("name", ["missing/found.json", "folder.json"])
def test_a_file_that_cannot_be_written_is_told_before_anything_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(DeviceError, match="output="):
        run(monkeypatch, {"one": (says(good("a")),)}, f"output={tmp_path / name}")


# --- what the file does not say -------------------------------------------------------------------------------------


@pytest.fixture
def hide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    monkeypatch.setattr("getpass.getuser", lambda: "alice")
    monkeypatch.setattr("socket.gethostname", lambda: "fermat")
    monkeypatch.setattr("socket.getfqdn", lambda: "fermat.example.org")
    monkeypatch.setattr("pathlib.Path.home", lambda: Path("/home/alice"))
    monkeypatch.setenv("LLMTRAIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return doctor.private(SETTINGS)


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("/home/alice/models of alice on fermat", "~/models of USER on HOST"),
        ("fermat.example.org:29500", "HOST.DOMAIN:29500"),
        ("malice and fermatism are words", "malice and fermatism are words"),
        ("no module at /data/team secret", "no module at PATH secret"),
        (r"C:\Users\alice\x is missing", "PATH is missing"),
        (r"\\server\share\x is missing", "PATH is missing"),
        ("193 GFLOP/s, docs/platforms.md, /etc/hosts", "193 GFLOP/s, docs/platforms.md, /etc/hosts"),
        ("https://pytorch.org/get-started/locally", "https://pytorch.org/get-started/locally"),
    ],
)
def test_names_of_people_machines_and_folders_are_replaced(hide: Callable[[str], str], text: str, hidden: str) -> None:
    assert hide(text) == hidden


def test_the_working_directory_and_the_cache_are_replaced(hide: Callable[[str], str], tmp_path: Path) -> None:
    assert hide(f"{tmp_path}/x {tmp_path / 'cache' / 'y'} {tmp_path / 'runs'}") == "HERE/x CACHE/y RUNS"


def test_the_file_says_nothing_of_who_and_where_also_inside_of_values(
    hide: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    finding = wrong("alice has no /home/alice", "ask fermat", deep={"list": ["/home/alice/x", 3]})
    run(monkeypatch, {"one": (says(finding),)}, "output=found.json")
    text = Path("found.json").read_text(encoding="utf-8")
    assert [word for word in ("alice", "fermat", str(tmp_path)) if word in text] == []
    assert json.loads(text)["findings"][0]["values"] == {"deep": {"list": ["~/x", 3]}}
    assert "alice has no /home/alice" in capsys.readouterr().out  # the screen is for those who know it


def test_h10_of_a_secret_only_the_name_is_said(ask: Ask, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_verysecret")
    monkeypatch.setenv("HTTPS_PROXY", "http://me:verysecret@proxy")
    found = [*ask(doctor.secrets), *ask(doctor.other_variables)]
    for finding in found:
        doctor.show(finding)
    shown = capsys.readouterr().out + json.dumps([dict(f.values) for f in found])
    assert "HF_TOKEN" in shown
    assert "HTTPS_PROXY is set" in shown
    assert "verysecret" not in shown


# --- packages -------------------------------------------------------------------------------------------------------


def constraints() -> list[str]:
    return [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]


def project() -> dict[str, Any]:
    found: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return found


def test_the_tested_versions_are_those_of_constraints_txt() -> None:
    listed = [line for line in doctor.TESTED.splitlines() if line]
    names = {Requirement(line).name for line in listed}
    assert len(names) > 20
    assert listed == [line for line in constraints() if Requirement(line).name in names]


def test_every_package_that_is_needed_has_a_tested_version() -> None:
    assert {Requirement(text).name for text in project()["dependencies"]} <= set(doctor._tested())


def test_every_extra_is_an_optional_package_with_its_use() -> None:
    extras = project()["optional-dependencies"]
    wanted = {Requirement(text).name for name, texts in extras.items() if name not in ("test", "dev") for text in texts}
    assert wanted
    assert wanted <= set(doctor.OPTIONAL)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A llmtrain that needs torch>=2.10,<3 and offers peft>=0.21, and what of it is there: installed(torch="2.13.0")."""

    def set_up(**versions: str) -> None:
        needs = {"torch": (Requirement("torch<3,>=2.10"), None), "peft": (Requirement("peft>=0.21"), "lora")}
        monkeypatch.setattr(doctor, "_requirements", lambda: needs)
        monkeypatch.setattr(doctor, "_tested", lambda: {"torch": "2.13.0", "peft": "0.21.2"})
        monkeypatch.setattr(doctor, "_version", versions.get)

    return set_up


@pytest.mark.parametrize(
    ("versions", "mark", "text", "fix"),
    [
        ({"torch": "2.13.0"}, Mark.good, "of the tested versions: torch 2.13.0", None),
        ({"torch": "2.13.0+cpu"}, Mark.good, "of the tested versions: torch 2.13.0+cpu", None),
        ({"torch": "2.12.1"}, Mark.note, "in its range, but another version was tested: torch 2.12.1 (2.13.0)", None),
        ({"torch": "2.9.0"}, Mark.wrong, "torch 2.9.0 is outside of >=2.10,<3", "pip install 'torch==2.13.0'"),
        ({"torch": "3.0.0"}, Mark.wrong, "torch 3.0.0 is outside of >=2.10,<3", "pip install 'torch==2.13.0'"),
        ({}, Mark.wrong, "torch is not installed", "pip install 'torch==2.13.0'"),
    ],
)
def test_a_package_is_held_against_its_range_and_the_tested_version(
    ask: Ask, installed: Callable[..., None], versions: dict[str, str], mark: Mark, text: str, fix: str | None
) -> None:
    installed(**versions)
    (found,) = ask(doctor.needed_packages)
    assert (found.mark, found.text, found.fix) == (mark, text, fix)


@pytest.mark.parametrize(
    ("versions", "mark", "text"),
    [
        ({"peft": "0.21.2"}, Mark.good, r"optional: peft 0\.21\.2 \(finetune=lora\)"),
        ({"peft": "0.9.0"}, Mark.note, r"peft 0\.9\.0 is outside of >=0\.21: finetune=lora may fail"),
        ({}, Mark.note, r"optional, not installed: .*peft \(finetune=lora\)"),
    ],
)
def test_an_optional_package_is_never_wrong(ask: Ask, installed: Callable[..., None], versions: dict[str, str], mark: Mark, text: str) -> None:
    installed(**versions)
    (found,) = [f for f in ask(doctor.optional_packages) if "peft" in f.text]
    assert found.mark is mark
    assert re.match(text, found.text)


@pytest.mark.parametrize(("version", "mark"), [("3.11.0", Mark.good), ("3.13.9", Mark.good), ("3.14.0", Mark.wrong), ("3.10.14", Mark.wrong)])
def test_a_python_out_of_the_range_is_wrong(ask: Ask, monkeypatch: pytest.MonkeyPatch, version: str, mark: Mark) -> None:
    monkeypatch.setattr(platform, "python_version", lambda: version)
    monkeypatch.setattr(doctor, "_metadata", lambda _: {"Requires-Python": project()["requires-python"]})
    (found,) = ask(doctor.python)
    assert found.mark is mark
    assert "(supported: >=3.11,<3.14)" in found.text


@pytest.mark.parametrize(
    ("code", "mark", "text"),
    [
        (machine.IMPORT, Mark.good, "load together: json, csv"),
        (machine.IMPORT.replace("sys.argv[1:]", "['json', 'no_such_module']"), Mark.wrong, "no_such_module does not load: ModuleNotFoundError"),
        ("import os; print('Illegal instruction', flush=True); os._exit(4)", Mark.wrong, "do not load together: exit code 4: Illegal instruction"),
        ("import time; time.sleep(600)", Mark.wrong, "had not loaded after 6 s"),
    ],
)
def test_packages_that_do_not_load_together_are_told(monkeypatch: pytest.MonkeyPatch, code: str, mark: Mark, text: str) -> None:
    monkeypatch.setattr(doctor, "LOADED", ("json", "csv"))
    monkeypatch.setattr(doctor, "PATIENCE", 6 if "sleep" in code else 120)
    settings = Settings(output=None, output_dir=None, timeout_s=1)
    with machine.started(code, "json", "csv") as importing:
        (found,) = doctor.outcome(doctor.packages_load, Visit(settings, importing))
    assert found.mark is mark
    assert text in found.text


def test_where_no_process_can_be_started_that_is_said(ask: Ask) -> None:
    (found,) = ask(doctor.packages_load)
    assert (found.mark, found.text) == (Mark.wrong, "no further Python can be started")


# --- processor and memory -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("quota", "mark", "fix"), [(None, Mark.good, None), (8.0, Mark.good, None), (2.5, Mark.note, "threads=2"), (0.5, Mark.note, "threads=1")]
)
def test_fewer_cores_worth_of_time_than_cores_is_worth_knowing(
    ask: Ask, monkeypatch: pytest.MonkeyPatch, quota: float | None, mark: Mark, fix: str | None
) -> None:
    monkeypatch.setattr(runtime, "decide_threads", lambda *_: 8)
    monkeypatch.setattr(machine, "cpu_quota", lambda: quota)
    (found,) = ask(doctor.cores)
    assert found.mark is mark
    assert found.fix is None if fix is None else str(found.fix).startswith(fix)


@pytest.mark.parametrize(
    ("available", "limit", "mark"),
    [(16e9, None, Mark.good), (1e9, None, Mark.note), (3e8, None, Mark.wrong), (16e9, int(1e9), Mark.note), (16e9, int(3e8), Mark.wrong)],
)
def test_memory_that_is_too_little_is_told_wherever_the_bound_comes_from(
    ask: Ask, monkeypatch: pytest.MonkeyPatch, available: float, limit: int | None, mark: Mark
) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=int(32e9), available=int(available)))
    monkeypatch.setattr(machine, "memory_limit", lambda: limit)
    (found,) = ask(doctor.memory)
    assert found.mark is mark


@pytest.mark.parametrize(
    ("variables", "mark", "text"),
    [
        ({}, Mark.good, "no variable"),
        ({"OMP_NUM_THREADS": "4"}, Mark.note, "OMP_NUM_THREADS='4'"),
        ({"OMP_PROC_BIND": "true"}, Mark.note, "OMP_PROC_BIND='true'"),
    ],
)
def test_variables_that_change_threads_are_told(ask: Ask, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], mark: Mark, text: str) -> None:
    for name in doctor.THREADS:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    (found,) = ask(doctor.thread_settings)
    assert found.mark is mark
    assert text in found.text


# --- devices --------------------------------------------------------------------------------------------------------


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    for name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize(
    ("driver", "cuda", "hidden", "mark", "text"),
    [
        (False, None, None, Mark.note, "no GPU: runs take the CPU"),
        (False, "13.0", None, Mark.note, "no GPU: runs take the CPU"),
        (True, None, None, Mark.wrong, "is built without it"),
        (True, "13.0", None, Mark.wrong, "cannot use it"),
        (True, "13.0", "", Mark.note, "the GPU is hidden: CUDA_VISIBLE_DEVICES is ''"),
    ],
)
def test_why_there_is_no_gpu_is_told(
    ask: Ask, monkeypatch: pytest.MonkeyPatch, driver: bool, cuda: str | None, hidden: str | None, mark: Mark, text: str
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: "/usr/bin/nvidia-smi" if driver and name == "nvidia-smi" else None)
    monkeypatch.setattr(Path, "exists", lambda _: False)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    if hidden is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    (found,) = ask(doctor.graphics)
    assert found.mark is mark
    assert text in found.text


@pytest.mark.parametrize(("free", "bf16", "mark"), [(70, True, Mark.good), (70, False, Mark.good), (10, True, Mark.note)])
def test_each_gpu_is_named_with_memory_capability_and_bf16(ask: Ask, monkeypatch: pytest.MonkeyPatch, free: int, bf16: bool, mark: Mark) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "device", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(name="NVIDIA H100", major=9, minor=0))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (int(free * 1e9), int(80e9)))
    monkeypatch.setattr(runtime, "has_bf16", lambda _: bf16)
    found = ask(doctor.graphics)
    assert [f.text.split(",")[0] for f in found] == ["cuda:0 NVIDIA H100", "cuda:1 NVIDIA H100"]
    assert {f.mark for f in found} == {mark}
    assert all(f"{free}.0 GB of 80.0 GB free, capability 9.0, {'bf16' if bf16 else 'no bf16'}" in f.text for f in found)


@pytest.mark.parametrize(("there", "taken"), [(["cuda", "cpu"], ["bf16", "bf16"]), (["mps", "cpu"], ["fp32", "bf16"]), (["cpu"], ["bf16"])])
def test_the_precision_of_auto_is_what_a_run_would_take_on_each_device(ask: Ask, monkeypatch: pytest.MonkeyPatch, there: list[str], taken: list[str]) -> None:
    monkeypatch.setattr(doctor, "_available", lambda: there)
    monkeypatch.setattr(runtime, "has_bf16", lambda name: name != "mps")
    monkeypatch.setattr(runtime, "has_slow_bf16", lambda: False)
    found = ask(doctor.automatic_precision)
    assert [(f.values["device"], f.values["precision"]) for f in found] == list(zip(there, taken, strict=True))


@pytest.mark.parametrize(("has_bf16", "half", "mark"), [(True, 0.5, Mark.good), (True, 2.0, Mark.note), (False, 2.0, Mark.good)])
def test_bf16_that_does_not_pay_is_worth_knowing_where_auto_would_take_it(
    ask: Ask, monkeypatch: pytest.MonkeyPatch, has_bf16: bool, half: float, mark: Mark
) -> None:
    monkeypatch.setattr(doctor, "_available", lambda: ["cpu"])
    monkeypatch.setattr(runtime, "has_bf16", lambda _: has_bf16)
    monkeypatch.setattr(runtime, "has_slow_bf16", lambda: False)
    monkeypatch.setattr(machine, "products_s", lambda *_: [1.0, half])
    (found,) = ask(doctor.products)
    assert found.mark is mark
    assert f"2.0 times as {'fast' if half < 1 else 'slow'}" in found.text


def test_a_device_without_bf16_is_timed_in_fp32_and_threads_are_left_as_they_were(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(device: Any, dtypes: list[Any], *_: Any) -> list[float]:
        if len(dtypes) > 1:
            raise TypeError("BFloat16 is not supported on MPS")
        return [1.0]

    monkeypatch.setattr(doctor, "_available", lambda: ["cpu"])
    monkeypatch.setattr(machine, "products_s", refuse)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        (found,) = ask(doctor.products)
        after = torch.get_num_threads()
    finally:
        torch.set_num_threads(before)
    assert found.mark is Mark.good
    assert found.text.endswith("there is none in bf16")
    assert after == 2


# --- disks ----------------------------------------------------------------------------------------------------------


def disk(ask: Ask, folder: Path, *, keeps: bool = True, locked: bool = False) -> list[Finding]:
    return ask(lambda _: doctor.disk("runs", folder, "output_dir=FOLDER", keeps=keeps, locked=locked))


@pytest.mark.parametrize(("free", "mark"), [(50e9, Mark.good), (1e9, Mark.note), (1e6, Mark.wrong)])
def test_a_disk_that_is_full_or_nearly_is_told(ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: float, mark: Mark) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=free, total=100e9))
    monkeypatch.setattr(machine, "file_system", lambda _: None)
    (found,) = disk(ask, tmp_path)
    assert (found.mark, found.fix) == (mark, None if mark is Mark.good else "output_dir=FOLDER")


@pytest.mark.parametrize(
    ("kind", "keeps", "text"),
    [
        ("nfs4", True, "nfs4 is, or may be, on a network"),
        ("nfs4", False, "nfs4 is, or may be, on a network"),
        ("tmpfs", True, "tmpfs is in memory"),
        ("overlay", True, "goes when the container goes"),
        ("overlay", False, None),
        ("ext4", True, None),
    ],
)
def test_g10_a_file_system_that_may_not_keep_its_word_is_named(
    ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, keeps: bool, text: str | None
) -> None:
    mounted = machine.FileSystem(kind, network=kind == "nfs4", in_memory=kind == "tmpfs", discarded=kind == "overlay")
    monkeypatch.setattr(machine, "file_system", lambda _: mounted)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=50e9, total=100e9))
    first, *more = disk(ask, tmp_path, keeps=keeps)
    assert first.text.startswith(f"runs: {kind}, 50.0 GB of 100.0 GB free")
    assert [f.mark for f in more] == ([] if text is None else [Mark.note])
    assert text is None or text in more[0].text


def test_a_folder_that_does_not_take_a_file_is_wrong_with_the_way_out(ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Path) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(machine, "durable", refuse)
    (found,) = disk(ask, tmp_path)
    assert (found.mark, found.fix) == (Mark.wrong, "output_dir=FOLDER")
    assert "Read-only file system" in found.text


@pytest.mark.parametrize(("answer", "mark"), [("system", Mark.good), ("file", Mark.note), (machine.Failed("both held it"), Mark.wrong)])
def test_locks_that_do_not_hold_are_told(ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: Any, mark: Mark) -> None:
    def locks(_: Path) -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(machine, "locks", locks)
    assert disk(ask, tmp_path, locked=True)[-1].mark is mark


def test_a_cache_that_cannot_be_written_is_wrong_and_says_how_another_is_taken(ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("LLMTRAIN_CACHE", str(tmp_path / "file" / "cache"))
    (found,) = ask(doctor.disk_of_the_cache)
    assert (found.mark, found.fix) == (Mark.wrong, "set LLMTRAIN_CACHE to a folder that can be written")


# --- environment and processes --------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no umask to speak of")
@pytest.mark.parametrize(("mask", "mark"), [(0o022, Mark.good), (0o077, Mark.good), (0o027, Mark.good), (0o000, Mark.note), (0o020, Mark.note)])
def test_g11_a_umask_that_lets_everybody_write_is_told_and_none_is_changed(ask: Ask, mask: int, mark: Mark) -> None:
    before = os.umask(mask)
    try:
        (found,) = ask(doctor.file_mode)
        after = os.umask(mask)
    finally:
        os.umask(before)
    assert (found.mark, after) == (mark, mask)


@pytest.mark.parametrize(
    ("variables", "marks"),
    [({}, []), ({"RANK": "0", "WORLD_SIZE": "2"}, [Mark.wrong]), ({"RANK": "0", "WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "1"}, [Mark.note])],
)
def test_f06_variables_of_a_launcher_without_a_launcher_are_wrong(
    ask: Ask, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], marks: list[Mark]
) -> None:
    for name in ("RANK", "WORLD_SIZE", "TORCHELASTIC_RUN_ID", "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert [f.mark for f in ask(doctor.launchers)] == marks


@pytest.mark.parametrize(("value", "mark"), [("1", Mark.note), ("true", Mark.note), ("0", Mark.good), ("", Mark.good)])
def test_that_nothing_is_fetched_is_said(ask: Ask, monkeypatch: pytest.MonkeyPatch, value: str, mark: Mark) -> None:
    for name in doctor.OFFLINE:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", value)
    (found,) = ask(doctor.offline)
    assert found.mark is mark


@pytest.mark.parametrize("system", ["linux", "darwin", "win32"])
def test_processes_are_tried_by_the_methods_that_sweeps_and_workers_use(monkeypatch: pytest.MonkeyPatch, system: str) -> None:
    monkeypatch.setattr(sys, "platform", system)
    assert "sweeps" in doctor.start_methods()[local.method()]
    workers = [method for method, use in doctor.start_methods().items() if "data.num_workers" in use]
    assert workers == ["spawn" if system == "win32" else "forkserver"]  # as data/loader.py has it


@pytest.mark.parametrize("check", [doctor.processes_start, doctor.two_processes_talk])
def test_processes_that_do_not_start_or_cannot_talk_are_wrong_with_the_way_out(ask: Ask, monkeypatch: pytest.MonkeyPatch, check: Check) -> None:
    def refuse(*_: Any) -> None:
        raise machine.Failed("connection refused")

    monkeypatch.setattr(machine, "starts", refuse)
    monkeypatch.setattr(machine, "two_processes", refuse)
    (found,) = ask(check)
    assert found.mark is Mark.wrong
    assert "connection refused" in found.text
    assert found.fix


def test_a_torch_without_gloo_runs_one_process(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_available", lambda: False)
    (found,) = ask(doctor.two_processes_talk)
    assert (found.mark, found.fix) == (Mark.note, "devices=1")


# --- other systems --------------------------------------------------------------------------------------------------

QUICK = [
    check for checks in doctor.SECTIONS.values() for check in checks if check not in (doctor.packages_load, doctor.two_processes_talk, doctor.processes_start)
]


@pytest.fixture(params=["Darwin", "Windows"])
def elsewhere(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A system without /proc, /sys and sched_getaffinity, and on Windows without resource, umask, links and syncs of folders."""
    system: str = request.param
    read, imported = Path.read_text, builtins.__import__

    def read_text(self: Path, *arguments: Any, **options: Any) -> str:
        if self.parts[:2] in (("/", "proc"), ("/", "sys")):
            raise FileNotFoundError(self)
        return read(self, *arguments, **options)

    def importing(name: str, *arguments: Any, **options: Any) -> Any:
        if system == "Windows" and name in ("resource", "fcntl", "pwd", "grp"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return imported(name, *arguments, **options)

    def fails(*_: Any, **__: Any) -> Any:
        raise OSError("a required privilege is not held by the client")

    monkeypatch.setattr(Path, "read_text", read_text)
    monkeypatch.setattr(builtins, "__import__", importing)
    monkeypatch.setattr(platform, "system", lambda: system)
    monkeypatch.setattr(psutil, "cpu_count", lambda logical: None)
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(runtime.sys, "platform", {"Darwin": "darwin", "Windows": "win32"}[system])
    if system == "Windows":
        monkeypatch.setattr(machine, "_sync_folder", lambda _: False)
        monkeypatch.setattr(Path, "symlink_to", fails)
    return system


@pytest.mark.parametrize("check", QUICK, ids=lambda check: check.__name__)
def test_no_check_fails_where_a_system_lacks_what_linux_has(ask: Ask, elsewhere: str, check: Check) -> None:
    asked = [f.text for f in ask(check)]
    assert [text for text in asked if re.search(r"^[a-z ]+: \w*(Error|Exception):", text)] == []


def test_what_is_not_linux_is_said_to_be_untested(ask: Ask, elsewhere: str) -> None:
    (found,) = ask(doctor.operating_system)
    assert found.mark is Mark.note
    assert found.text.startswith(elsewhere)
    assert "tested on Linux alone; docs/platforms.md" in found.text
