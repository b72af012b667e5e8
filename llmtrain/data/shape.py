"""Pure functions on ids: pack, pad, positions. Objectives call them; nothing here knows a tokenizer or a file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import torch

Item = TypeVar("Item")


@dataclass
class Block:
    """Up to length + 1 ids: the first `length` are inputs, the last `length` their labels.

    Attributes:
        ids: token ids.
        starts: positions in ids where a document begins.
        bytes: bytes of text that the labels stand for.
    """

    ids: list[int] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    bytes: int = 0


def pack(documents: Iterable[tuple[Sequence[int], int]], length: int) -> Iterator[Block]:
    """Cut a stream of documents into blocks of `length` inputs.

    Args:
        documents: (ids, bytes of text). Each begins with a token that is only read and ends with one that is asked
            for. Where one document follows another, these two are the same position: the end of the first is the
            beginning of the second.
        length: inputs of a block.

    Yields:
        Blocks of length + 1 ids, the last one shorter. Every id but the very first is the label of exactly one
        position, and the bytes of a document are spread evenly over its labels, so that they sum to the whole.
    """
    block = Block()
    for ids, size in documents:
        if len(ids) < 2:
            continue
        labels = len(ids) - 1
        if not block.ids:
            block.ids.append(ids[0])
        block.starts.append(len(block.ids) - 1)
        done = spent = 0
        while done < labels:
            taken = ids[1 + done : 1 + done + length + 1 - len(block.ids)]
            block.ids.extend(taken)
            done += len(taken)
            share = size * done // labels
            block.bytes += share - spent
            spent = share
            if len(block.ids) == length + 1:
                yield block
                block = Block(ids=[block.ids[-1]])
    if len(block.ids) > 1:
        yield block


def windows(documents: Iterable[Sequence[Item]], length: int, separator: Item | None) -> Iterator[list[Item]]:
    """Cut documents into pieces of up to `length` ids (or whatever their items are), each in exactly one piece.

    Args:
        separator: None: each document has pieces of its own, the last one shorter. An id: documents share pieces, and
            it stands between two of them, but neither begins nor ends a piece.
    """
    if separator is None:
        for ids in documents:
            yield from (list(ids[i : i + length]) for i in range(0, len(ids), length))
        return
    held: list[Item] = []
    for ids in documents:
        held += [*([separator] if held and ids else []), *ids]
        while len(held) >= length:
            piece, held = held[:length], held[length:]
            yield piece[:-1] if piece[-1] == separator else piece
            held = held[1:] if held and held[0] == separator else held
    if held:
        yield held


def runs(sizes: Sequence[int], budget: int) -> Iterator[tuple[int, int]]:
    """Cut a row of sentences into runs of at least two, as long as the budget allows: (first, behind the last).

    A sentence larger than the budget is in no run and ends the one before it.
    """
    first = total = 0
    for i, size in enumerate([*sizes, budget + 1]):
        if total + size > budget:
            if i - first >= 2:
                yield first, i
            first, total = (i, 0) if size <= budget else (i + 1, 0)
        total += size if size <= budget else 0


def fair_splits(ends: np.ndarray, tolerance: float) -> np.ndarray:
    """Places to split a run of sentences in two, in pairs that mirror each other: the lengths tell no order.

    Splitting at a gives the lengths (ends[a], total - ends[a]). For each pair (a, b) of the result, b gives nearly the
    lengths of a exchanged, so a fair coin between the two makes the length of the first part distributed as that of
    the second: whatever the run, and whatever the order in which it was filled.

    Args:
        ends: where the sentences end, in tokens, rising; the last one is the total.
        tolerance: how far, as a share of the total, ends[a] + ends[b] may be from it.

    Returns:
        (pairs, 2) indices a ≤ b into `ends`, the total excluded; none where no pair is within the tolerance.
    """
    inner, total = ends[:-1], int(ends[-1])
    off = np.abs(inner[:, None] + inner[None, :] - total)  # (n, n)
    return np.argwhere(np.triu(off <= tolerance * total))


def pad(rows: Sequence[Sequence[int] | np.ndarray], fill: int | None) -> torch.Tensor:
    """(B, longest) int64, filled on the right; None repeats each row's last id."""
    longest = max(len(row) for row in rows)
    padded = np.empty((len(rows), longest), dtype=np.int64)
    for i, row in enumerate(rows):
        padded[i, : len(row)] = row
        padded[i, len(row) :] = row[-1] if fill is None else fill
    return torch.from_numpy(padded)


def document_positions(starts: Sequence[Sequence[int] | np.ndarray], length: int) -> torch.Tensor:
    """(B, length) position ids that begin again at 0 with every document of a block."""
    rows = np.empty((len(starts), length), dtype=np.int64)
    for i, row in enumerate(starts):
        begins = np.zeros(length, dtype=np.int64)
        inside = np.asarray([s for s in row if s < length], dtype=np.int64)
        begins[inside] = inside
        rows[i] = np.arange(length) - np.maximum.accumulate(begins)
    return torch.from_numpy(rows)
