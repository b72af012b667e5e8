"""One process of a run: reads the config from the run's folder and trains. No Hydra here.

RANK=… WORLD_SIZE=… python -m llmtrain.worker RUN_FOLDER VERB COMMAND
"""

from __future__ import annotations

import sys
from pathlib import Path

from omegaconf import OmegaConf

from llmtrain import processes
from llmtrain.command import train
from llmtrain.command.train import INVOCATION
from llmtrain.errors import write_any_text


def main(folder: Path, verb: str, command: str) -> int:
    write_any_text()
    processes.follow()
    config = OmegaConf.load(folder / INVOCATION)
    return train.run_as_rank(config, verb, folder, command)  # type: ignore[arg-type]


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), *sys.argv[2:]))
