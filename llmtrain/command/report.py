"""`llmtrain report PATH…`: runs and sweeps held against each other, as a table, a file for programs and a page."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from omegaconf import OmegaConf

from llmtrain.config import Composed, build
from llmtrain.errors import ConfigError, plain, require
from llmtrain.files import expanded
from llmtrain.report.files import write

TAKES_WORDS = True  # cli.py asks: the words are paths


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is compared, by what, and where the report goes.

    Attributes:
        metric: which decides, as run.json names it; null: the one that chose the weights of the runs.
        reference: label of the row that the others are compared with; null: the one that trains the most.
        output: folder of the report; null: the sweep's or the run's own where there is one, else report/.
    """

    metric: str | None
    reference: str | None
    output: str | None

    def __post_init__(self) -> None:
        for name in ("metric", "reference", "output"):
            require(getattr(self, name) != "", name, "", "a text that is not empty, or null")


def primary(word: str) -> str:
    """The config is the same whatever paths follow."""
    return "report"


def command(composed: Composed, overrides: list[str], words: list[str]) -> int:
    settings = build(OmegaConf.create({k: v for k, v in composed.config.items_ex(resolve=False) if k != "experiment"}), Settings, "")
    for line in composed.notes:
        print(f"note: {plain(line)}", file=sys.stderr)
    paths = [expanded(word) for word in words] or [newest_sweep()]
    write(paths, None if settings.output is None else expanded(settings.output), settings.metric, settings.reference)
    return 0


def newest_sweep() -> Path:
    """The sweep below runs/sweep whose book was written last.

    Raises:
        ConfigError: there is none.
    """
    found = sorted(Path("runs/sweep").glob("*/sweep.json"), key=lambda path: (path.stat().st_mtime_ns, str(path)))
    if not found:
        raise ConfigError(
            "report: no PATH given, and there is no sweep below runs/sweep",
            allowed="llmtrain report PATH…, folders of runs or sweeps",
            fix="`llmtrain report runs/finetune` compares all runs in that folder",
        )
    print(plain(f"the newest sweep is {found[-1].parent}"))
    return found[-1].parent
