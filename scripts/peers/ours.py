"""One run of `llmtrain pretrain` for scripts/benchmark: the command itself, with a clock at the end of each step.

python scripts/peers/ours.py OVERRIDE …
"""

import contextlib
import json
import resource
import sys
import time
from typing import Any


def main(overrides: list[str]) -> None:
    from llmtrain.runtime import restart_sparing

    restart_sparing()  # as the command does
    from llmtrain.callback.progress import Progress
    from llmtrain.cli import main as llmtrain

    ends: list[float] = []
    peak: list[float] = []
    before = Progress.on_step

    def on_step(self: Progress, *arguments: Any) -> None:
        before(self, *arguments)
        ends.append(time.time())
        peak.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)

    Progress.on_step = on_step  # type: ignore[method-assign]
    with contextlib.redirect_stdout(sys.stderr):
        code = llmtrain(["pretrain", *overrides])
    print(json.dumps({"ends": ends, "peak_mb": peak[-1], "code": code}))


if __name__ == "__main__":
    main(sys.argv[1:])
