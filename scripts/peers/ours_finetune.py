"""One run of `llmtrain finetune` for scripts/benchmark: the command itself; prints a line of JSON.

python scripts/peers/ours_finetune.py OVERRIDE …
"""

import contextlib
import json
import sys
from pathlib import Path


def main(overrides: list[str]) -> None:
    from llmtrain.runtime import restart_sparing

    restart_sparing()  # as the command does
    from llmtrain.cli import main as llmtrain

    (folder,) = (word.partition("=")[2] for word in overrides if word.startswith("output_dir="))
    with contextlib.redirect_stdout(sys.stderr):
        code = llmtrain(["finetune", *overrides])
    if code:
        sys.exit(code)
    found = json.loads((Path(folder) / "run.json").read_text(encoding="utf-8"))
    print(json.dumps({"accuracy": found["validation"]["accuracy"], "peak_mb": found["cost"]["peak_memory_mb"]}))


if __name__ == "__main__":
    main(sys.argv[1:])
