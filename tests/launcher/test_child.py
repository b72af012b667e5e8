"""Whatever happens in a job becomes an exit code, and its words are on stderr. test_local.py tries the same in processes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from llmtrain.launcher.child import outcome
from tests.launcher import jobs


@pytest.mark.parametrize(
    ("call", "arguments", "code", "said"),
    [
        (jobs.returns, (0,), 0, ""),
        (jobs.returns, (75,), 75, ""),
        (jobs.refuses, (), 3, "error: row 7 has no label"),
        (jobs.fails, (), 1, "Traceback"),
        (jobs.leaves, (4,), 4, ""),
        (jobs.leaves, ("enough",), 1, "enough"),
        (jobs.is_interrupted, (), 130, "error: interrupted"),
    ],
)
def test_whatever_happens_becomes_an_exit_code(
    call: Callable[..., int], arguments: tuple[Any, ...], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert outcome(call, arguments) == code
    found = capsys.readouterr()
    assert found.out == ""
    assert found.err.startswith(said)
    assert bool(found.err) == bool(said)


@pytest.mark.parametrize("call", [jobs.fails_over, jobs.leaves])
def test_h10_what_went_wrong_is_told_without_secrets_and_cannot_drive_the_terminal(
    call: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "a-very-secret-key")
    assert outcome(call, ("row 7: a-very-secret-key\n\x1b[2Jgone",)) == 1
    said = capsys.readouterr().err
    assert "row 7: ***\n\\x1b[2Jgone" in said
    assert "a-very-secret-key" not in said


PENDING = """
import os, signal
from llmtrain.launcher.child import usual_signals
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
os.kill(os.getpid(), signal.%s)
usual_signals()
print("goes on")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize(("name", "code", "said"), [("SIGINT", 0, "goes on\n"), ("SIGTERM", -15, "")])
def test_a_job_forgets_the_interrupt_of_its_sweep_but_not_that_it_was_asked_to_end(name: str, code: int, said: str) -> None:
    found = subprocess.run([sys.executable, "-c", PENDING % name], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout, found.stderr) == (code, said, "")
