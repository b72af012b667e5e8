"""A run in a process of its own, with ckpt-chaos's injector in it. Started by a launcher's server, which imports this module by its name."""

from __future__ import annotations

from llmtrain import cli


def pretrain(folder: str, log: str, at: int | None, mode: str, typed: list[str]) -> int:
    """`llmtrain pretrain`, with something happening at a change of the files below its folder.

    Args:
        log: where the changes are noted, one a line.
        at: at which of them, from 1; None: nothing happens.
        mode: before, torn, term or unsynced, as ckpt-chaos has them.
    """
    from ckpt_chaos import inject

    inject.arm(folder, crash_at=at, mode=mode, log_path=log, torn_python=True)
    return cli.main(["pretrain", *typed, f"output_dir={folder}"])
