"""What the jobs of these tests do. They run in processes of their own, which import this module by its name."""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from llmtrain.errors import DataError, Stopped
from llmtrain.runtime import Flag, stopping_on_signals

PATIENCE_S = 60.0


def seen(path: Path) -> str:
    """The content of a file, as soon as it has some."""
    end = time.monotonic() + PATIENCE_S
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < end, f"{path} did not come"
        time.sleep(0.01)
    return path.read_text()


def ended(pid: int, within_s: float) -> bool:
    """Whether a process is gone, or a zombie, within some seconds."""
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.02)
    return False


def returns(code: int) -> int:
    return code


def refuses() -> int:
    raise DataError("row 7 has no label", fix="give it one")


def fails() -> int:
    raise ValueError("a fault of ours")


def fails_over(text: str) -> int:
    raise ValueError(text)


def leaves(code: Any) -> int:
    sys.exit(code)


def is_interrupted() -> int:
    raise KeyboardInterrupt


def dies(number: int) -> int:
    os.kill(os.getpid(), number)
    return 0


def speaks(word: str) -> int:
    print(f"out {word}")
    print(f"err {word} é", file=sys.stderr)
    subprocess.run([sys.executable, "-c", f"print('child {word}')"], check=True)
    print(f"bye {word}")
    return 0


def speaks_at_exit() -> int:
    atexit.register(print, "at exit")
    return 0


def waits(note: str) -> int:
    """Tell which process it is, and wait to be ended."""
    Path(note).write_text(str(os.getpid()))
    time.sleep(PATIENCE_S)
    return 0


def waits_stubbornly(note: str) -> int:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    return waits(note)


def saves(note: str) -> int:
    """Wait for SIGTERM as a trainer does: its handler sets a flag, the loop saves and stops."""
    asked, end = Flag(), time.monotonic() + PATIENCE_S
    with stopping_on_signals(asked):
        Path(note).write_text(str(os.getpid()))
        while not asked.is_set():
            assert time.monotonic() < end, "nobody asked it to stop"
            time.sleep(0.01)
    Path(f"{note}.saved").write_text("saved")
    raise Stopped("stopped by a signal at step 3")


def saves_then_goes_on(note: str) -> int:
    """The first time as `saves`; when started again, it goes on from there and ends."""
    return saves(note) if not Path(f"{note}.saved").exists() else 0


def meets(mine: str, other: str) -> int:
    """Ends only where another job runs at the same time."""
    Path(mine).write_text("here")
    seen(Path(other))
    return 0


def starts_others(note: str, die: bool) -> int:
    """Start a process in the job's session and one in a session of its own, as torchrun does; then wait, or be killed."""
    sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
    outer = [
        sys.executable,
        "-c",
        f"import subprocess, time; p = subprocess.Popen({sleep!r}, start_new_session=True); print(p.pid, flush=True); time.sleep(60)",
    ]
    started = subprocess.Popen(outer, stdout=subprocess.PIPE, text=True)
    assert started.stdout is not None
    inner = int(started.stdout.readline())
    Path(note).write_text(f"{started.pid} {inner}")
    if die:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(PATIENCE_S)
    return 0


def tells(note: str) -> int:
    """Write down what the process is."""
    facts = {
        "cwd": os.getcwd(),
        "environment": dict(os.environ),
        "session": os.getsid(0),
        "pid": os.getpid(),
        "modules": sorted(sys.modules),
        "blocked": [int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, set())],
        "main": threading.current_thread() is threading.main_thread(),
        "handler": signal.getsignal(signal.SIGTERM) is signal.SIG_DFL,
    }
    Path(note).write_text(json.dumps(facts))
    return 0


def computes(note: str) -> int:
    """What a fork does not survive where the process that it was made from has computed: threads of torch and of tokenizers."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers

    torch.set_num_threads(2)
    total = sum(float((torch.full((256, 256), 0.5) @ torch.full((256, 256), 0.5)).sum()) for _ in range(20))
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    ids = [encoding.ids for encoding in tokenizer.encode_batch(["a b c"] * 2000)]
    assert ids == [[0, 1, 2]] * 2000
    Path(note).write_text(f"{total} {torch.get_num_threads()}")
    return 0
