"""A report on the disk: results.csv, report.md and report.html, each whole or not there.

write([Path("runs/sweep/study")])  →  Study; the three files stand in that folder, the table on the terminal
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llmtrain import files, runtime
from llmtrain.errors import ConfigError, DeviceError
from llmtrain.report import markdown, page, sheet, summary
from llmtrain.report.study import Study

if TYPE_CHECKING:
    from rich.console import Console

# Each file with what makes it, and how one of ours is known: by what stands among its first characters.
KINDS: dict[str, tuple[Callable[[Study], str], str]] = {
    "results.csv": (sheet.csv, ",".join(f'"{name}"' for name in sheet.FIRST)),
    "report.md": (markdown.markdown, markdown.MARK),
    "report.html": (page.html, page.MARK),
}
HEAD = 1000  # characters of a file in which the mark stands
ELSEWHERE = "report"  # the folder below the current one, where what is compared has none of its own


def write(paths: Sequence[Path], folder: Path | None = None, metric: str | None = None, reference: str | None = None, console: Console | None = None) -> Study:
    """Read runs, hold them against each other, write the report and show its table.

    Args:
        paths: folders of runs or sweeps.
        folder: where the files go; None: `home(paths)`.
        metric, reference: which metric decides, and which row the others are compared with; None: as the runs say.

    Raises:
        ConfigError: a file of that name is there and is no report, or the options name what is not there.
        DeviceError: the folder cannot be written.
        DataError, CheckpointError: the runs cannot be read.
    """
    from llmtrain.report.runs import read
    from llmtrain.report.study import study as compare

    console = console or runtime.make_console()
    folder = home(paths) if folder is None else folder
    refuse_foreign(folder)
    found = compare(read(paths), metric=metric, reference=reference)
    written = save(found, folder)
    summary.show(console, found)
    for path in written:
        console.print(f"{path}", soft_wrap=True, markup=False)
    return found


def save(study: Study, folder: Path) -> list[Path]:
    """Write the three files. All of them are made before the first is replaced."""
    texts = {name: make(study) for name, (make, _) in KINDS.items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DeviceError(f"output={folder}: {error.strerror}", fix="output=FOLDER names a folder that can be written") from error
    refuse_foreign(folder)
    for name, text in texts.items():
        _replace(folder / name, text.encode())
    return [folder / name for name in texts]


def home(paths: Sequence[Path]) -> Path:
    """A sweep's or a run's own folder where it is the only one, else report/ below the current folder."""
    if len(paths) == 1 and any((paths[0] / name).is_file() for name in ("sweep.json", "run.json", "config.yaml")):
        return paths[0]
    return Path(ELSEWHERE)


def refuse_foreign(folder: Path) -> None:
    """Raise ConfigError where a file that this would replace is none of ours."""
    for name, (_, mark) in KINDS.items():
        path = folder / name
        if not path.exists() and not path.is_symlink():
            continue
        try:
            with path.open(encoding="utf-8", errors="replace") as file:
                ours = mark in file.read(HEAD)
        except OSError:
            ours = False
        if not ours:
            raise ConfigError(f"{path} is there and was not written by `llmtrain report`", fix="output=FOLDER names another place, or move that file away")


def _replace(path: Path, data: bytes) -> None:
    """A reader sees the old file or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        files.write(temporary, data)
        temporary.replace(path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    files.sync_folder(path.parent)
