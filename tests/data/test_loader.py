"""The order of samples is a function of (seed, epoch), cut the same on any number of processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset

from llmtrain.data.loader import Order, load, micro_batches, read_rows
from llmtrain.errors import CheckpointError, DataError

RAGGED = np.random.default_rng(0).integers(1, 100, size=1003)


def test_every_epoch_holds_every_sample_once() -> None:
    order = Order(RAGGED, 8, seed=1)
    for epoch in range(3):
        assert sorted(np.concatenate(order.epoch(epoch))) == list(range(1003))


def test_epochs_seeds_and_phases_differ_and_each_repeats_itself() -> None:
    def first(seed: int, phase: int, epoch: int) -> list[int]:
        return list(np.concatenate(Order(RAGGED, 8, seed, phase).epoch(epoch)))

    orders = [first(0, 0, 0), first(1, 0, 0), first(0, 1, 0), first(0, 0, 1)]
    assert len({tuple(o) for o in orders}) == 4
    assert first(0, 0, 0) == orders[0]


@pytest.mark.parametrize("start", [0, 1, 125, 126, 127, 300])
def test_updates_from_anywhere_are_those_of_the_beginning_without_a_replay(start: int) -> None:
    order = Order(RAGGED, 8, seed=1)
    whole = [(e, list(b)) for (e, b), _ in zip(order.updates(), range(305), strict=False)]
    later = [(e, list(b)) for (e, b), _ in zip(order.updates(start), range(305 - start), strict=False)]
    assert later == whole[start:]


def test_grouping_by_length_leaves_little_padding_and_mixes_lengths_over_time() -> None:
    order = Order(RAGGED, 8, seed=1)
    assert order.grouped
    assert order.padding() < 0.05
    means = [RAGGED[b].mean() for b in order.epoch(0)]
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.3


def test_equal_lengths_are_not_grouped() -> None:
    order = Order(np.full(100, 16), 8, seed=1)
    assert not order.grouped
    assert order.padding() == 0


def test_budgets_become_the_steps_that_use_them_up() -> None:
    order = Order(RAGGED, 8, seed=1)
    assert order.steps(epochs=2) == 2 * order.per_epoch == 252
    for tokens in (1, 5000, 60_000, 123_456):
        steps = order.steps(tokens=tokens)
        assert order.tokens(steps) >= tokens > order.tokens(steps - 1)


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("n", [1, 5, 8])
def test_processes_share_a_batch_without_loss_and_meet_equally_often(world: int, n: int) -> None:
    batch = list(range(100, 100 + n))
    shares = [micro_batches(batch, rank, world, 2) for rank in range(world)]
    assert sorted(s for share in shares for samples, real in share if real for s in samples) == batch
    assert len({len(share) for share in shares}) == 1


def test_rows_come_with_their_ids_and_ragged_lists_as_arrays() -> None:
    rows = Dataset.from_dict({"ids": [[1, 2], [3], [4, 5, 6]], "bytes": [1, 2, 3]}).with_format("arrow")
    read = read_rows(rows, [2, 0])
    assert [(r["sample"], list(r["ids"]), r["bytes"]) for r in read] == [(2, [4, 5, 6], 3), (0, [1, 2], 1)]


class Reading:
    """Makes batches of sample numbers; sample 3 cannot be read."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __call__(self, rows: list[dict[str, Any]], epoch: int | str) -> list[int]:
        if any(row["sample"] == 3 for row in rows):
            raise self.error
        return [row["sample"] for row in rows]


def batches(error: Exception, workers: int = 0) -> list[Any]:
    rows = Dataset.from_dict({"ids": [[n] for n in range(6)]})
    requests = iter([[(0, 0, True), (0, 1, True)], [(0, 2, True), (0, 3, True), (0, 4, True)]])
    return list(load(rows, requests, Reading(error), num_workers=workers, seed=0))


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.long)])
def test_f04_a_row_that_makes_no_batch_is_named_wherever_it_is_read(workers: int) -> None:
    with pytest.raises(DataError) as caught:
        batches(ValueError("no such\nword"), workers)
    assert caught.value.what == "sample 3 (numbered from 0): no batch can be made: ValueError: no such"
    assert "in __call__" in "".join(caught.value.__notes__)  # the traceback of where it happened


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.long)])
def test_f04_an_error_of_ours_comes_through_whole(workers: int) -> None:
    with pytest.raises(CheckpointError) as caught:
        batches(CheckpointError("a stored state is damaged", fix="llmtrain cache clear"), workers)
    assert caught.value.screen() == "error: a stored state is damaged\nfix: llmtrain cache clear"


@pytest.mark.parametrize(
    "error", [MemoryError("no memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory"), RuntimeError("DataLoader worker (pid 3)")]
)
def test_what_no_row_is_to_blame_for_comes_through_as_it_was(error: Exception) -> None:
    with pytest.raises(type(error)) as caught:
        batches(error)
    assert caught.value is error


def test_workers_do_not_import_from_the_working_directory(tmp_path: Path) -> None:
    (tmp_path / "socket.py").write_text("raise SystemExit(77)")
    code = f"""
import sys
sys.path[:] = [p for p in sys.path if p not in ("", {str(tmp_path)!r})] + [{str(Path(__file__).parents[2])!r}]
from datasets import Dataset
from llmtrain.data.loader import load

def collate(rows, epoch):
    return [row["sample"] for row in rows]

if __name__ == "__main__":
    print(list(load(Dataset.from_dict({{"ids": [[1], [2]]}}), iter([[(0, 0, True), (0, 1, True)]]), collate, num_workers=1, seed=0)))
"""
    script = tmp_path / "elsewhere" / "main.py"
    script.parent.mkdir()
    script.write_text(code)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"} | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, str(script)], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "[0, 1]" in done.stdout
