"""Packing drops nothing, asks nothing twice, and knows where documents begin."""

from __future__ import annotations

import pytest

from llmtrain.data.shape import document_positions, pack, pad

END = 0


def documents(*lengths: int) -> list[tuple[list[int], int]]:
    found, next_id = [], 1
    for length in lengths:
        found.append(([END, *range(next_id, next_id + length), END], 3 * length))
        next_id += length
    return found


@pytest.mark.parametrize("length", [1, 2, 3, 5, 8, 100])
@pytest.mark.parametrize("sizes", [(1,), (4, 4), (3, 0, 7, 1), (20,), (5, 5, 5, 5)])
def test_every_id_but_the_first_is_asked_exactly_once_in_order(length: int, sizes: tuple[int, ...]) -> None:
    stream = [END]
    for ids, _ in documents(*sizes):
        stream += ids[1:]
    blocks = list(pack(documents(*sizes), length))
    assert [label for block in blocks for label in block.ids[1:]] == stream[1:]
    assert [i for block in blocks for i in block.ids[:-1]] == stream[:-1]


@pytest.mark.parametrize("length", [2, 3, 8])
def test_the_bytes_of_the_blocks_are_the_bytes_of_the_documents(length: int) -> None:
    assert sum(block.bytes for block in pack(documents(3, 11, 7), length)) == 3 * 21


@pytest.mark.parametrize("length", [2, 3, 5, 8])
def test_documents_begin_where_starts_says(length: int) -> None:
    starts = []
    for block in pack(documents(4, 6, 3), length):
        starts += [block.ids[s + 1] for s in block.starts if s + 1 < len(block.ids)]
    assert starts == [1, 5, 11]


def test_nothing_gives_no_block() -> None:
    assert list(pack([], 8)) == []


def test_padding_is_on_the_right() -> None:
    assert pad([[1, 2, 3], [4]], fill=9).tolist() == [[1, 2, 3], [4, 9, 9]]
    assert pad([[1, 2, 3], [4]], fill=None).tolist() == [[1, 2, 3], [4, 4, 4]]


def test_positions_begin_again_with_every_document() -> None:
    assert document_positions([[0, 3], [], [2, 5]], 5).tolist() == [[0, 1, 2, 0, 1], [0, 1, 2, 3, 4], [0, 1, 0, 1, 2]]
