"""The order of samples, and the batches each process gets.

The order of an epoch is a function of (seed, epoch) alone. It is cut into global batches, of which each process takes
its slice, so neither the number of processes nor of workers moves a sample to another update; and the position in the
data is one integer, so a resume replays nothing.
"""

from __future__ import annotations

import re
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch.utils.data import DataLoader

from llmtrain import runtime
from llmtrain.errors import DataError, LLMTrainError, printable
from llmtrain.seeding import generator, key

WINDOW = 50  # global batches whose samples are sorted by length together: little padding, still well mixed

Request = tuple[int, int, bool]  # (epoch, sample, real)


@dataclass(frozen=True)
class Order:
    """Which samples make up which update.

    Attributes:
        lengths: input tokens of each sample.
        batch_size: samples of a global batch; the last one of an epoch may have fewer.
        seed: of the permutations.
        phase: phases draw orders of their own.
        before: epochs that were begun before the first one here. They count on through the phases of a run, so that masks and pairs,
            which are drawn from the epoch and the sample, are never drawn twice.
    """

    lengths: np.ndarray
    batch_size: int
    seed: int
    phase: int = 0
    before: int = 0

    @property
    def per_epoch(self) -> int:
        """Global batches of an epoch."""
        return -(-len(self.lengths) // self.batch_size)

    @cached_property
    def grouped(self) -> bool:
        """Whether sorting by length pays: where padding to the longest of a random batch would waste over 2 %."""
        longest = float(self.lengths.max(initial=1))
        return float(self.lengths.mean() if len(self.lengths) else 1) < 0.98 * longest

    def epoch(self, epoch: int) -> list[np.ndarray]:
        """The global batches of an epoch, counted from the first one here, each an array of sample ids."""
        draw = generator(self.seed, "order", self.phase, epoch)
        samples = draw.permutation(len(self.lengths))
        if self.grouped:
            size = WINDOW * self.batch_size
            windows = [samples[i : i + size] for i in range(0, len(samples), size)]
            samples = np.concatenate([w[np.argsort(self.lengths[w], kind="stable")] for w in windows])
        batches = [samples[i : i + self.batch_size] for i in range(0, len(samples), self.batch_size)]
        return [batches[i] for i in draw.permutation(len(batches))] if self.grouped else batches

    def updates(self, start: int = 0) -> Iterator[tuple[int, np.ndarray]]:
        """(epoch of the run, global batch) of each update from `start` on, without end."""
        epoch, position = divmod(start, self.per_epoch)
        while True:
            for batch in self.epoch(epoch)[position:]:
                yield self.before + epoch, batch
            epoch, position = epoch + 1, 0

    def steps(self, *, epochs: float | None = None, tokens: int | None = None) -> int:
        """How many updates a budget takes: a number of epochs, or of input tokens (the last update may exceed it)."""
        if epochs is not None:
            return max(1, round(epochs * self.per_epoch))
        assert tokens is not None
        whole, rest = divmod(tokens, int(self.lengths.sum()))
        done = np.cumsum([int(self.lengths[b].sum()) for b in self.epoch(whole)]) if rest else np.array([])
        return max(1, whole * self.per_epoch + (int(np.searchsorted(done, rest)) + 1 if rest else 0))

    def tokens(self, steps: int) -> int:
        """Input tokens of the first `steps` updates."""
        whole, rest = divmod(steps, self.per_epoch)
        return whole * int(self.lengths.sum()) + sum(int(self.lengths[b].sum()) for b in (self.epoch(whole)[:rest] if rest else []))

    def padding(self) -> float:
        """The share of padding in the first epoch's batches, each padded to its longest sample."""
        filled = sum(len(b) * int(self.lengths[b].max()) for b in self.epoch(0))
        return 1 - float(self.lengths.sum()) / filled if filled else 0.0


def lengths(examples: Dataset) -> np.ndarray:
    """The column `length` of all rows, read as one: a column of `datasets` is read row by row, which takes seconds."""
    column = examples.select_columns(["length"]).with_format("arrow")[:].column("length")
    found: np.ndarray = column.to_numpy()
    return found


def micro_batches(batch: Sequence[int] | np.ndarray, rank: int, world: int, size: int) -> list[tuple[list[int], bool]]:
    """The micro-batches of one process: (samples, real).

    All processes get the same number, because each forward and backward is a meeting. One that runs out repeats a
    sample as a batch that counts for nothing.
    """
    n = len(batch)
    slices = [batch[n * r // world : n * (r + 1) // world] for r in range(world)]
    steps = max(-(-len(s) // size) for s in slices)
    mine = [int(i) for i in slices[rank]]
    cut = [(mine[i : i + size], True) for i in range(0, len(mine), size)]
    return cut + [([int(batch[0])], False)] * (steps - len(cut))


@dataclass(frozen=True)
class Failed:
    """What a worker hands over in place of a batch that it could not make."""

    error: LLMTrainError


class _Batches(torch.utils.data.Dataset[Any]):
    """Turns requests into batches, inside a worker where there are any."""

    def __init__(self, examples: Dataset, collate: Callable[[list[dict[str, Any]], int | str], Any]) -> None:
        self.rows = examples.with_format("arrow")
        self.collate = collate

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, requests: list[Request]) -> Any:
        epoch, _, real = requests[0]
        samples, when = [sample for _, sample, _ in requests], epoch if epoch >= 0 else "eval"
        try:
            batch = self.collate(read_rows(self.rows, samples), when)
        except Exception as error:
            alone = torch.utils.data.get_worker_info() is None
            if _of_the_process(error) or (alone and isinstance(error, LLMTrainError)):
                raise
            found = error if isinstance(error, LLMTrainError) else self._blamed(samples, when, error)
            if alone:
                raise found from error
            return Failed(found)  # torch would hand on its text alone
        return batch if real else batch.blank()

    def _blamed(self, samples: list[int], when: int | str, error: Exception) -> DataError:
        """An error of a batch as one of the sample that has it alone, where there is one."""
        for sample in samples:
            try:
                self.collate(read_rows(self.rows, [sample]), when)
            except Exception as own:
                error, samples = own, [sample]
                break
        listed = ", ".join(map(str, samples[:8])) + (", …" if len(samples) > 8 else "")
        first = printable((str(error).splitlines() or ["no message"])[0])[:200]
        found = DataError(
            f"sample{'s' if len(samples) > 1 else ''} {listed} (numbered from 0): no batch can be made: {type(error).__name__}: {first}",
            fix="the row is damaged, or this is a fault of llmtrain: --debug with data.num_workers=0 shows where",
        )
        found.add_note("".join(traceback.format_exception(error)))
        return found


def read_rows(rows: Dataset, samples: list[int]) -> list[dict[str, Any]]:
    """Rows as dictionaries: lists of numbers come as numpy arrays, and each row knows its id as `sample`."""
    table = rows[samples]
    columns: dict[str, list[Any]] = {}
    for name in table.column_names:
        column = table.column(name).combine_chunks()
        if hasattr(column, "offsets"):
            offsets, values = column.offsets.to_numpy(), column.values
            values = values.to_numpy(zero_copy_only=False) if values.type not in ("string", "large_string") else np.array(values.to_pylist(), dtype=object)
            columns[name] = [values[a:b] for a, b in pairwise(offsets)]
        else:
            columns[name] = column.to_pylist()
    return [{"sample": sample, **{name: columns[name][i] for name in columns}} for i, sample in enumerate(samples)]


def _same(batch: Any) -> Any:
    return batch


def _leave_signals(_: int) -> None:
    """Ctrl-C reaches every process of a terminal: what it means is the training process's to decide."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def load(
    examples: Dataset,
    requests: Iterator[list[Request]],
    collate: Callable[[list[dict[str, Any]], int | str], Any],
    *,
    num_workers: int,
    seed: int,
    pin_memory: bool = False,
) -> DataLoader[Any]:
    """A DataLoader over lists of requests, one list a micro-batch.

    It gets a generator of its own: without one it would draw its workers' seed from torch's global stream.
    """
    own = torch.Generator().manual_seed(key(seed, "loader"))
    return _Loader(
        _Batches(examples, collate),
        batch_sampler=_Sampler(requests),
        collate_fn=_same,
        num_workers=num_workers,
        generator=own,
        pin_memory=pin_memory,
        persistent_workers=False,
        # A fork after torch has used its threads can hang; Windows has spawn alone, which is its default.
        multiprocessing_context="forkserver" if num_workers and sys.platform != "win32" else None,
        worker_init_fn=_leave_signals,
    )


class _Loader(DataLoader[Any]):
    def __iter__(self) -> Any:
        with runtime.path_of_its_own():  # workers start here
            found = super().__iter__()
        return _checked(found) if self.num_workers else found


def _of_the_process(error: Exception) -> bool:
    """Whether an error has nothing to do with what is read: memory ran out, or another worker died."""
    of_torch = isinstance(error, RuntimeError) and re.search(r"DataLoader worker|allocate memory|out of memory", str(error)) is not None
    return of_torch or isinstance(error, MemoryError)


def _checked(batches: Iterator[Any]) -> Iterator[Any]:
    for batch in batches:
        if isinstance(batch, Failed):
            raise batch.error
        yield batch


class _Sampler(torch.utils.data.Sampler[Any]):
    def __init__(self, requests: Iterator[list[Request]]) -> None:
        self.requests = requests

    def __iter__(self) -> Iterator[Any]:
        return iter(self.requests)
