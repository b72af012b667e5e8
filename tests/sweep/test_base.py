"""A sweep over a list knows its points from the start."""

from __future__ import annotations

from pathlib import Path

from tests.sweep.conftest import overrides, space, sweep


def test_a_list_is_asked_for_in_its_order_and_then_is_at_its_end(tmp_path: Path) -> None:
    chosen = space("seed=0,1,2")
    search = sweep("grid").search(chosen, tmp_path)
    asked = [search.ask() for _ in range(5)]
    assert asked[:3] == sweep("grid").points(chosen)
    assert asked[3:] == [None, None]
    assert not list(tmp_path.iterdir())


def test_what_a_list_hears_changes_nothing(tmp_path: Path) -> None:
    search = sweep("grid").search(space("seed=0,1"), tmp_path)
    point = search.ask()
    assert point is not None
    assert not search.progress(point, 1, 0.5)
    search.tell(point, None)
    assert search.ask() is not None
    assert search.earlier() == []


def test_the_corners_of_a_list_are_its_points() -> None:
    chosen = space("finetune=features,full", "seed=0,1")
    assert overrides(sweep("grid").corners(chosen)) == overrides(sweep("grid").points(chosen))
    assert sweep("grid").decides is None
