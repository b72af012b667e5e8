"""Members through submitit: for real as processes of this machine, and as a cluster with stand-ins for SLURM's commands."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from llmtrain.config import build
from llmtrain.errors import ConfigError, DeviceError
from llmtrain.launcher import submitit as launcher
from llmtrain.launcher.base import Job, Launcher, Start
from tests.launcher import jobs
from tests.launcher.conftest import ROOT, code_of

SlurmJob = pytest.importorskip("submitit.slurm.slurm").SlurmJob
Make = Callable[..., Job]


def made(**changed: Any) -> Launcher:
    """The launcher as shipped, with some settings changed."""
    settings = yaml.safe_load((ROOT / "configs" / "launcher" / "submitit.yaml").read_text())
    return build({**settings, **changed}, Launcher, "launcher")


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Jobs as processes of this machine."""
    with made(cluster="local").opened(tmp_path) as starts:
        yield starts


# --- on this machine -----------------------------------------------------------------------------------------------


def test_each_end_has_its_exit_code_and_its_words_in_the_log(start: Start, job: Make, tmp_path: Path) -> None:
    made_jobs = [
        job(jobs.speaks, "word", name="speaks"),
        job(jobs.returns, 3, name="returns"),
        job(jobs.refuses, name="refuses"),
        job(jobs.fails, name="fails"),
        job(jobs.dies, signal.SIGKILL, name="dies"),
    ]
    assert [code_of(handle) for handle in [start(one) for one in made_jobs]] == [0, 3, 3, 1, -9]
    said = {one.name: one.log.read_text(encoding="utf-8") for one in made_jobs}
    assert said["speaks"].splitlines()[:4] == ["out word", "err word é", "child word", "bye word"]
    assert "error: row 7 has no label\nfix: give it one\n" in said["refuses"]
    assert "ValueError: a fault of ours" in said["fails"]
    assert "error: dies ended without a result" in said["dies"]


def test_jobs_run_at_the_same_time_and_a_stopped_one_saves(start: Start, job: Make, tmp_path: Path) -> None:
    one, two, note = str(tmp_path / "one"), str(tmp_path / "two"), tmp_path / "note"
    saves = start(job(jobs.saves, str(note), name="saves"))
    pair = [start(job(jobs.meets, one, two, name="a")), start(job(jobs.meets, two, one, name="b"))]
    jobs.seen(note)
    saves.stop()
    assert [code_of(handle) for handle in [saves, *pair]] == [75, 0, 0]
    assert (tmp_path / "note.saved").exists()


def test_a_job_that_is_stopped_before_it_began_is_taken_away(start: Start, job: Make, tmp_path: Path) -> None:
    handle = start(job(jobs.waits, str(tmp_path / "note")))
    handle.stop()
    assert code_of(handle) in (-15, 75)  # 75: it had begun, and had nothing to save
    assert not (tmp_path / "note").exists()


def test_killing_a_job_ends_all_that_it_started(start: Start, job: Make, tmp_path: Path) -> None:
    handle = start(job(jobs.starts_others, str(tmp_path / "note"), False))
    others = [int(pid) for pid in jobs.seen(tmp_path / "note").split()]
    handle.kill()
    assert handle.poll() == -9
    assert all(jobs.ended(pid, 2) for pid in others)


def test_what_a_killed_job_had_started_is_ended_when_its_end_is_heard_of(start: Start, job: Make, tmp_path: Path) -> None:
    assert code_of(start(job(jobs.starts_others, str(tmp_path / "note"), True))) == -9
    assert all(jobs.ended(int(pid), 2) for pid in jobs.seen(tmp_path / "note").split())


def test_at_the_end_no_job_is_left(job: Make, tmp_path: Path) -> None:
    before = set(psutil.Process().children(recursive=True))
    with made(cluster="local").opened(tmp_path) as start:
        handle = start(job(jobs.waits_stubbornly, str(tmp_path / "note")))
        pid = int(jobs.seen(tmp_path / "note"))
    assert handle.poll() == -9
    assert jobs.ended(pid, 2)
    assert set(psutil.Process().children(recursive=True)) == before


def test_a_preempted_member_saves_and_goes_on_by_itself(start: Start, job: Make, tmp_path: Path) -> None:
    handle = start(job(jobs.saves_then_goes_on, str(tmp_path / "note")))
    os.kill(int(jobs.seen(tmp_path / "note")), signal.SIGUSR2)
    assert code_of(handle) == 0
    assert (tmp_path / "note.saved").exists()


def test_what_a_job_starts_does_not_hear_that_it_is_preempted(start: Start, job: Make, tmp_path: Path) -> None:
    handle = start(job(jobs.starts_others, str(tmp_path / "note"), False))
    others = [int(pid) for pid in jobs.seen(tmp_path / "note").split()]
    for pid in others:
        os.kill(pid, signal.SIGUSR2)
    time.sleep(0.2)
    assert [psutil.Process(pid).status() for pid in others] == [psutil.STATUS_SLEEPING] * 2
    handle.kill()


def test_a_member_whose_time_is_up_too_often_stays_stopped(job: Make, tmp_path: Path) -> None:
    with made(cluster="local", timeout_min=1, signal_delay_s=30, requeues=0).opened(tmp_path) as start:
        handle = start(job(jobs.saves, str(tmp_path / "note")))
        os.kill(int(jobs.seen(tmp_path / "note")), signal.SIGUSR2)
        assert code_of(handle) == 75


def test_a_job_whose_module_cannot_be_imported_says_so_in_its_log(start: Start, job: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "absent_there.py").write_text("def call():\n    return 0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    one = job(importlib.import_module("absent_there").call)
    assert code_of(start(one)) == 1
    assert "No module named 'absent_there'" in one.log.read_text()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # submitit does not close its log files
def test_debug_runs_in_this_process_when_its_end_is_asked_for(job: Make, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    note = tmp_path / "note"
    with made(cluster="debug").opened(tmp_path) as start:
        handles = [start(job(jobs.tells, str(note))), start(job(jobs.refuses)), start(job(jobs.returns, 4))]
        assert not note.exists()
        assert [code_of(handle) for handle in handles[:2]] == [0, 3]
    assert f'"pid": {os.getpid()}' in note.read_text()
    assert "row 7" in capfd.readouterr().err


# --- on a cluster --------------------------------------------------------------------------------------------------

# One job at a time, number 7. Its state stands in a file, as does every command.
SLURM = r"""#!/bin/bash
cd "$(dirname "$0")/.."
name="$(basename "$0")"; echo "$name $*" >> calls
case "$name" in
    sbatch) cp "$1" submission.sh; echo RUNNING > state
            (SLURM_JOB_ID=7 SLURM_NTASKS=1 SLURM_JOB_NUM_NODES=1 SLURM_NODEID=0 SLURM_PROCID=0 SLURM_LOCALID=0 setsid bash submission.sh > batch.log 2>&1 &)
            echo "Submitted batch job 7" ;;
    srun)   while [[ "$1" == --* ]]; do case "$1" in --output|--error) shift 2 ;; *) shift ;; esac; done
            "$@" >> task.log 2>&1 & echo $! > task; wait $! ;;
    sacct)  echo "JobID|State|NodeList"; echo "7|$(cat state)|node1" ;;
    scontrol) (sleep 0.5; SLURM_JOB_ID=7 SLURM_NTASKS=1 SLURM_PROCID=0 setsid bash submission.sh >> batch.log 2>&1 &) ;;
    scancel) case "$1" in
                --state=PENDING) ;;
                --signal=TERM) kill -TERM "$(cat task)" ;;
                *) echo "CANCELLED by 0" > state; kill -KILL "$(cat task)" ;;
             esac ;;
esac
"""


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with stand-ins for SLURM's commands, which are found first."""
    folder = tmp_path / "slurm"
    (folder / "bin").mkdir(parents=True)
    for name in ("sbatch", "srun", "sacct", "scancel", "scontrol"):
        (folder / "bin" / name).write_text(SLURM)
        (folder / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(launcher, "LATENCY_S", 0.0)
    monkeypatch.setattr(launcher, "POLL_S", 0.0)
    SlurmJob.watcher.clear()  # it knows how an earlier job 7 ended
    yield folder
    if (folder / "task").exists():
        subprocess.run(["kill", "-KILL", (folder / "task").read_text().strip()], capture_output=True, check=False)


def test_a_cluster_gets_the_jobs_wishes_and_gives_its_exit_code(slurm: Path, job: Make, tmp_path: Path) -> None:
    wishes = {"partition": "long", "mem_gb": 12.0, "gpus_per_node": 2, "timeout_min": 90, "additional": {"account": "mine", "exclusive": True, "qos": None}}
    with made(**wishes).opened(tmp_path) as start:
        assert code_of(start(job(jobs.refuses, name="a b"))) == 3
    asked = {line.removeprefix("#SBATCH --") for line in (slurm / "submission.sh").read_text().splitlines() if line.startswith("#SBATCH")}
    expected = {"partition=long", "mem=12GB", "gpus-per-node=2", "time=90", "cpus-per-task=4", "account=mine", "exclusive", "signal=USR2@120"}
    assert expected <= asked
    assert "job-name=llmtrain-a_b" in asked
    assert not [line for line in asked if line.startswith("qos")]
    assert "row 7" in (tmp_path / "a b.log").read_text()


def test_a_member_that_the_cluster_preempts_is_queued_again_and_goes_on(slurm: Path, job: Make, tmp_path: Path) -> None:
    with made().opened(tmp_path) as start:
        handle = start(job(jobs.saves_then_goes_on, str(tmp_path / "note")))
        os.kill(int(jobs.seen(tmp_path / "note")), signal.SIGTERM)  # what SLURM sends first, and sometimes alone
        assert code_of(handle) == 0
    assert "scontrol requeue 7" in (slurm / "calls").read_text()


def test_a_member_that_the_sweep_stops_is_not_queued_again(slurm: Path, job: Make, tmp_path: Path) -> None:
    with made().opened(tmp_path) as start:
        handle = start(job(jobs.saves, str(tmp_path / "note")))
        jobs.seen(tmp_path / "note")
        handle.stop()
        assert code_of(handle) == 75
    calls = (slurm / "calls").read_text()
    assert calls.index("scancel --state=PENDING 7") < calls.index("scancel --signal=TERM 7")
    assert "scontrol" not in calls


@pytest.mark.parametrize(("state", "code"), [("OUT_OF_MEMORY", -9), ("TIMEOUT", -9), ("NODE_FAIL", -9), ("CANCELLED by 12", -15), ("FAILED", -9)])
def test_a_member_that_the_cluster_ended_is_told_from_one_that_failed(slurm: Path, job: Make, tmp_path: Path, state: str, code: int) -> None:
    with made().opened(tmp_path) as start:
        handle = start(job(jobs.waits, str(tmp_path / "note")))
        os.kill(int(jobs.seen(tmp_path / "note")), signal.SIGKILL)
        (slurm / "state").write_text(state)
        assert code_of(handle) == code
    assert f"the cluster says {state}" in (tmp_path / "member.log").read_text()


def test_a_job_that_fails_before_it_begins_has_failed(slurm: Path, job: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (slurm / "bin" / "srun").write_text("#!/bin/sh\nexit 1\n")
    with made().opened(tmp_path) as start:
        handle = start(job(jobs.returns, 0))
        (slurm / "state").write_text("FAILED")
        assert code_of(handle) == 1


def test_h10_what_a_cluster_says_of_a_job_is_logged_without_secrets_and_escapes(
    slurm: Path, job: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "a-very-secret-key")
    said = r"""while [ "$1" != --error ]; do shift; done; printf 'no a-very-secret-key\033[2J' > "$(echo "$2" | sed 's/%j/7/; s/%t/0/')"; exit 1"""
    (slurm / "bin" / "srun").write_text(f"#!/bin/sh\n{said}\n")
    with made().opened(tmp_path) as start:
        handle = start(job(jobs.returns, 0))
        jobs.seen(handle.job.paths.stderr)  # type: ignore[attr-defined]  # before the cluster says that it is over
        (slurm / "state").write_text("FAILED")
        assert code_of(handle) == 1
    assert (tmp_path / "member.log").read_text().endswith("no ***\\x1b[2J\n")


def test_killing_takes_a_job_from_the_cluster(slurm: Path, job: Make, tmp_path: Path) -> None:
    with made().opened(tmp_path) as start:
        handle = start(job(jobs.waits_stubbornly, str(tmp_path / "note")))
        pid = int(jobs.seen(tmp_path / "note"))
    assert jobs.ended(pid, 2)
    assert code_of(handle) == -9


def test_what_the_cluster_says_to_a_job_that_it_does_not_take_is_shown(slurm: Path, job: Make, tmp_path: Path) -> None:
    (slurm / "bin" / "sbatch").write_text("#!/bin/sh\necho 'sbatch: error: invalid partition specified: long' >&2\nexit 1\n")
    with made().opened(tmp_path) as start, pytest.raises(DeviceError, match="invalid partition specified"):
        start(job(jobs.returns, 0))


# --- settings ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("jobs", 0),
        ("cluster", "pbs"),
        ("timeout_min", 0),
        ("cpus_per_task", 0),
        ("gpus_per_node", -1),
        ("mem_gb", 0.0),
        ("signal_delay_s", 240 * 60),
        ("requeues", -1),
        ("partition", "long\nrm -rf /"),
        ("additional", {"account": "me\nrm -rf /"}),
        ("additional", {"account": ["a", "b"]}),
        ("additional", {"wrap": "rm -rf /"}),
        ("additional", {"setup": "module load cuda"}),
        ("additional", {"output": "/etc/passwd"}),
    ],
)
def test_a_setting_that_cannot_be_is_refused_by_its_name(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf"launcher\.{key}"):
        made(**{key: value})


def test_the_threads_of_a_member_are_the_cores_of_its_job() -> None:
    assert made(jobs=16, cpus_per_task=6).threads(2) == 6


def test_without_submitit_the_way_out_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(ConfigError, match="not installed") as found, made(cluster="local").opened(tmp_path):
        pass
    assert "pip install llmtrain[slurm]" in found.value.screen()


def test_slurm_where_there_is_none_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DeviceError, match="no srun"), made(cluster="slurm").opened(tmp_path):
        pass
