"""Packing drops nothing, asks nothing twice, and knows where documents begin."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from llmtrain.data.shape import document_positions, fair_splits, pack, pad, runs, windows

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


# --- windows --------------------------------------------------------------------------------------------------------

SEPARATOR = -1
WINDOWED = [(1,), (4, 4), (3, 0, 7, 1), (20,), (5, 5, 5, 5), (0, 0, 3), (2, 1, 1, 1, 9, 0)]


def numbered(*sizes: int) -> list[list[int]]:
    """Documents of these sizes, whose ids count on."""
    ends = np.cumsum(sizes).tolist()
    return [list(range(end - size, end)) for size, end in zip(sizes, ends, strict=True)]


@pytest.mark.parametrize("separator", [None, SEPARATOR])
@pytest.mark.parametrize("length", [1, 2, 3, 5, 8, 100])
@pytest.mark.parametrize("sizes", WINDOWED)
def test_every_id_stands_in_exactly_one_piece_in_order(sizes: tuple[int, ...], length: int, separator: int | None) -> None:
    pieces = list(windows(numbered(*sizes), length, separator))
    assert [i for piece in pieces for i in piece if i != SEPARATOR] == list(range(sum(sizes)))
    assert all(1 <= len(piece) <= length for piece in pieces)


@pytest.mark.parametrize("length", [1, 2, 3, 5, 8, 100])
@pytest.mark.parametrize("sizes", WINDOWED)
def test_without_a_separator_no_two_documents_share_a_piece(sizes: tuple[int, ...], length: int) -> None:
    expected = [ids[i : i + length] for ids in numbered(*sizes) for i in range(0, len(ids), length)]
    assert list(windows(numbered(*sizes), length, None)) == expected
    assert [len(piece) for piece in expected] == [n for size in sizes for n in [length] * (size // length) + ([size % length] if size % length else [])]


@pytest.mark.parametrize("length", [2, 3, 5, 8, 100])
@pytest.mark.parametrize("sizes", WINDOWED)
def test_a_separator_stands_between_two_documents_of_a_piece_and_nowhere_else(sizes: tuple[int, ...], length: int) -> None:
    begins = {ids[0] for ids in numbered(*sizes) if ids}
    pieces = list(windows(numbered(*sizes), length, SEPARATOR))
    assert all(length - 1 <= len(piece) <= length for piece in pieces[:-1])  # one less where a separator would end it
    assert all(SEPARATOR not in (piece[0], piece[-1]) for piece in pieces)
    following = [(before, now) for piece in pieces for before, now in pairwise(piece)]
    assert all((now in begins) is (before == SEPARATOR) for before, now in following if now != SEPARATOR)
    assert (SEPARATOR, SEPARATOR) not in following


def test_documents_in_pieces_by_hand() -> None:
    assert list(windows([[1, 2], [], [3, 4, 5, 6]], 3, 0)) == [[1, 2], [3, 4, 5], [6]]
    assert list(windows([[1], [2], [3]], 4, 0)) == [[1, 0, 2], [3]]
    assert list(windows([[1, 2, 3], [4]], 3, 0)) == [[1, 2, 3], [4]]
    assert list(windows([[1, 2], [], [3, 4, 5, 6]], 3, None)) == [[1, 2], [3, 4, 5], [6]]


@pytest.mark.parametrize("separator", [None, SEPARATOR])
@pytest.mark.parametrize("documents", [[], [[]], [[], []]])
def test_empty_documents_give_no_piece(documents: list[list[int]], separator: int | None) -> None:
    assert list(windows(documents, 4, separator)) == []


def test_items_may_be_anything() -> None:
    assert list(windows([[("a", 1)], [("b", 2), ("c", 3)]], 4, ("|", 0))) == [[("a", 1), ("|", 0), ("b", 2), ("c", 3)]]


# --- runs -----------------------------------------------------------------------------------------------------------


def sizes_of(seed: int) -> list[int]:
    draw = np.random.default_rng(seed)
    return [int(size) for size in draw.integers(1, 15, draw.integers(0, 30))]


@pytest.mark.parametrize("budget", [1, 5, 12, 30, 1000])
@pytest.mark.parametrize("seed", range(10))
def test_a_run_has_two_sentences_or_more_within_the_budget_and_could_take_no_more(seed: int, budget: int) -> None:
    sizes, behind = sizes_of(seed), 0
    for first, stop in runs(sizes, budget):
        assert first >= behind
        assert stop - first >= 2
        assert sum(sizes[first:stop]) <= budget
        assert stop == len(sizes) or sum(sizes[first : stop + 1]) > budget
        behind = stop


@pytest.mark.parametrize("budget", [1, 5, 12, 30, 1000])
@pytest.mark.parametrize("seed", range(10))
def test_a_sentence_in_no_run_is_too_large_or_stands_alone(seed: int, budget: int) -> None:
    sizes = sizes_of(seed)
    inside = {i for first, stop in runs(sizes, budget) for i in range(first, stop)}
    assert all(sizes[i] <= budget for i in inside)
    for i in set(range(len(sizes))) - inside:
        neighbours = [j for j in (i - 1, i + 1) if 0 <= j < len(sizes)]
        assert sizes[i] > budget or all(j in inside or sizes[i] + sizes[j] > budget for j in neighbours)


def test_runs_by_hand() -> None:
    assert list(runs([3, 3, 3, 3], 6)) == [(0, 2), (2, 4)]
    assert list(runs([3, 3, 7, 3, 3], 6)) == [(0, 2), (3, 5)]  # one that is too large ends a run and is in none
    assert list(runs([3, 3, 7, 3], 6)) == [(0, 2)]  # and what stands alone is in none either
    assert list(runs([5, 5, 1, 4], 6)) == [(1, 3)]
    assert list(runs([6, 6], 6)) == list(runs([7, 7], 6)) == list(runs([3], 6)) == list(runs([], 6)) == []


# --- fair splits ----------------------------------------------------------------------------------------------------


def ends_of(seed: int, most: int = 12) -> np.ndarray:
    draw = np.random.default_rng(seed)
    return np.cumsum(draw.integers(1, 20, draw.integers(2, most)))


@pytest.mark.parametrize("tolerance", [0.0, 0.02, 0.1, 0.5])
@pytest.mark.parametrize("seed", range(15))
def test_fair_splits_are_all_pairs_that_mirror_each_other_within_the_tolerance(seed: int, tolerance: float) -> None:
    ends = ends_of(seed)
    total, places = int(ends[-1]), range(len(ends) - 1)
    expected = [(a, b) for a in places for b in places if a <= b and abs(int(ends[a]) + int(ends[b]) - total) <= tolerance * total]
    found = fair_splits(ends, tolerance)
    assert found.shape == (len(expected), 2)
    assert [tuple(pair) for pair in found.tolist()] == expected


@pytest.mark.parametrize("sentences", range(2, 17))
def test_a_fair_coin_between_a_pair_tells_no_order(sentences: int) -> None:
    # Evenly long sentences can be mirrored exactly: then both parts have the same lengths, each as often.
    ends = np.arange(1, sentences + 1) * 7
    lengths = [(int(ends[i]), int(ends[-1] - ends[i])) for pair in fair_splits(ends, 0) for i in pair]
    assert lengths
    assert sorted(first for first, _ in lengths) == sorted(second for _, second in lengths)


@pytest.mark.parametrize("tolerance", [0.02, 0.1])
@pytest.mark.parametrize("seed", range(15))
def test_the_lengths_of_a_pair_are_exchanged_within_the_tolerance(seed: int, tolerance: float) -> None:
    ends = ends_of(seed, 40)
    total = int(ends[-1])
    for a, b in fair_splits(ends, tolerance).tolist():
        assert abs(int(ends[a]) - (total - int(ends[b]))) <= tolerance * total


def test_where_nothing_mirrors_there_is_no_pair() -> None:
    assert fair_splits(np.array([1, 10]), 0.1).shape == (0, 2)
    assert fair_splits(np.array([10]), 0.1).shape == (0, 2)
    assert fair_splits(np.array([5, 10]), 0).tolist() == [[0, 0]]  # in the middle a split mirrors itself
