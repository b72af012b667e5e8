"""What the tests of launchers share."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmtrain.launcher.base import Handle, Job

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def jobs_are_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the processes of jobs, however pytest was started."""
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


@pytest.fixture(autouse=True, scope="module")
def no_server_of_others() -> None:
    """Tests before these may have left multiprocessing's server, one for workers that read data: it has imported nothing of ours."""
    from multiprocessing import forkserver

    server: Any = forkserver._forkserver
    if server._forkserver_pid is not None:
        server._stop()


@pytest.fixture
def job(tmp_path: Path) -> Callable[..., Job]:
    """A job with a log in the test's own folder: job(call, *arguments)."""

    def make(call: Callable[..., int], *arguments: Any, name: str = "member") -> Job:
        return Job(name, call, arguments, tmp_path / f"{name}.log")

    return make


def code_of(handle: Handle, within_s: float = 60.0) -> int:
    """How a job ended."""
    end = time.monotonic() + within_s
    while (code := handle.poll()) is None:
        assert time.monotonic() < end, "the job did not end"
        time.sleep(0.01)
    return code
