"""What is forked from has imported, and computed nothing. test_local.py computes in what was forked."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

# Count what would keep a fork from working: threads that torch keeps for computing, and questions to a GPU.
LOOK = """
import json, torch
threads = lambda: int(open("/proc/self/status").read().split("Threads:")[1].split()[0])
asked = []
for name in ("is_available", "device_count", "init", "_lazy_init", "current_device", "get_device_capability", "get_device_properties"):
    setattr(torch.cuda, name, lambda *_, old=getattr(torch.cuda, name), name=name: (asked.append(name), old(*_))[1])
import numpy, scipy.optimize, datasets
before = threads()
import llmtrain.launcher.preload
after = threads()
torch.set_num_threads(4)
torch.ones(2000, 2000) @ torch.ones(2000, 2000)
print(json.dumps({"asked": asked, "initialized": torch.cuda.is_initialized(), "before": before, "after": after, "computed": threads()}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_the_preload_neither_starts_threads_for_computing_nor_asks_a_gpu() -> None:
    found = subprocess.run([sys.executable, "-c", LOOK], capture_output=True, text=True, check=True)
    facts = json.loads(found.stdout)
    assert facts["asked"] == []
    assert not facts["initialized"]
    assert facts["before"] == facts["after"] < facts["computed"]
    assert found.stderr == ""
