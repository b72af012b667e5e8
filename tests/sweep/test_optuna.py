"""Optuna: what a search chooses from, that it goes on where it was killed, and that it learns."""

from __future__ import annotations

import math
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmtrain.errors import ConfigError
from llmtrain.sweep.base import Point, Search, Space
from tests.sweep.conftest import space, sweep

pytest.importorskip("optuna")

SPACE = ("optimizer.lr=tag(log,interval(1e-5,1e-1))", "finetune=features,full", "optimizer.weight_decay=interval(0,1)")


def higher(*typed: str, **more: Any) -> Space:
    return space(*typed, metric=lambda: ("accuracy", True), **more)


def goodness(point: Point) -> float:
    """Best at lr=0.001 with finetune=full."""
    label = dict(point.label)
    return -abs(math.log10(float(label["optimizer.lr"])) + 3) + (label["finetune"] == "full")


def carry_on(search: Search, value: Callable[[Point], float | None] = goodness, at_most: int = 1000) -> list[Point]:
    """Run members one after another until there is none, or so many."""
    found: list[Point] = []
    while len(found) < at_most and (point := search.ask()) is not None:
        found.append(point)
        search.tell(point, value(point))
    return found


def drawn(folder: Path, *typed: str, trials: int = 40, **settings: Any) -> list[Any]:
    """Values of the one key that is swept."""
    search = sweep("optuna", sampler="random", trials=trials, **settings).search(space(*typed), folder)
    return [point.overrides[0].partition("=")[2] for point in carry_on(search, lambda point: 0.0)]


# --- what is chosen from --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "values"),
    [
        ("finetune=features,full", {"features", "full"}),
        ("finetune=choice(features,full)", {"features", "full"}),
        ("seed=3,3,5", {"3", "5"}),
        ("a='0,11',null,true", {"'0,11'", "null", "True"}),
        ("finetune.blocks=range(1,5)", {"1", "2", "3", "4"}),
        ("finetune.blocks=range(7,0,-3)", {"7", "4", "1"}),
        ("optimizer.lr=range(0.1,0.5,0.1)", {"0.1", "0.2", "0.3", "0.4"}),
        ("finetune.blocks=int(interval(1,4))", {"1", "2", "3", "4"}),
        ("finetune.blocks=tag(log,range(1,4))", {"1", "2", "3"}),
        ("seed=range(3,4)", {"3"}),
        ("seed=choice(5)", {"5"}),
        ("seed=shuffle(1,2)", {"1", "2"}),
    ],
)
def test_every_value_that_is_meant_is_drawn_and_no_other(tmp_path: Path, typed: str, values: set[str]) -> None:
    assert set(drawn(tmp_path, typed)) == values


def test_an_interval_gives_numbers_all_over_it(tmp_path: Path) -> None:
    numbers = [float(text) for text in drawn(tmp_path, "optimizer.lr=interval(2,4)")]
    assert all(2 <= number < 4 for number in numbers)
    assert sum(number < 3 for number in numbers) == pytest.approx(20, abs=9)


@pytest.mark.parametrize("typed", ["optimizer.lr=tag(log,interval(1e-6,1))", "seed=tag(log,int(interval(1,1000000)))"])
def test_log_gives_as_many_below_the_geometric_mean_as_above(tmp_path: Path, typed: str) -> None:
    numbers = [float(text) for text in drawn(tmp_path, typed)]
    middle = 1e-3 if "lr" in typed else 1e3
    assert sum(number < middle for number in numbers) == pytest.approx(20, abs=9)


def test_people_see_a_short_number_and_the_member_gets_all_of_it(tmp_path: Path) -> None:
    (point,) = carry_on(sweep("optuna", trials=1).search(space("optimizer.lr=interval(0,1)"), tmp_path), lambda point: 0.0)
    exact, ((_, shown),) = point.overrides[0].partition("=")[2], point.label
    assert float(shown) == pytest.approx(float(exact), rel=1e-3)
    assert len(shown) < len(exact)


@pytest.mark.parametrize(
    ("typed", "answer"),
    [
        ((), "no key has several values"),
        (("seed=3",), "no key has several values"),
        (("seed=range(3,3)",), "an empty range"),
        (("optimizer.lr=interval(1,1)",), "nothing between"),
        (("optimizer.lr=interval(2,1)",), "nothing between"),
        (("optimizer.lr=interval(0,inf)",), "nothing between"),
        (("optimizer.lr=tag(log,interval(0,1))",), "log needs numbers above 0"),
        (("seed=tag(log,range(0,5))",), "log needs numbers above 0"),
        (("seed=tag(log,range(1,9,2))",), "steps of 1"),
        (("optimizer.lr=tag(log,range(0.1,1,0.1))",), "steps of 1"),
        (("optimizer.lr=tag(exp,interval(0,1))",), "no such tag"),
        (("seed=tag(log,choice(1,2))",), "no such tag"),
    ],
)
def test_a_space_with_nothing_to_choose_is_refused(tmp_path: Path, typed: tuple[str, ...], answer: str) -> None:
    with pytest.raises(ConfigError, match=answer) as caught:
        sweep("optuna").search(space(*typed), tmp_path)
    assert caught.value.exit_code == 2
    assert not list(tmp_path.iterdir())


def test_a31_more_trials_than_a_sweep_may_have_members_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="1,000,000 members"):
        sweep("optuna", trials=10**6).search(higher(*SPACE), tmp_path)


def test_the_corners_take_every_kind_and_the_ends_of_every_range() -> None:
    corners = sweep("optuna").corners(space("finetune=features,full", "optimizer.lr=interval(0.1,0.5)", "data.max_length=32,64,128", "seed=range(9)"))
    taken = {frozenset(point.overrides) for point in corners}
    for mode in ("features", "full"):
        ours = [point for point in taken if f"finetune={mode}" in point]
        for text in ("optimizer.lr=0.1", "optimizer.lr=0.5", "data.max_length=32", "data.max_length=64", "data.max_length=128", "seed=0", "seed=8"):
            assert any(text in point for point in ours)
    assert len(taken) == len(corners)


# --- the same seed, the same points; killed and gone on -----------------------------------------------------------------


@pytest.mark.parametrize("settings", [{"sampler": "tpe", "startup_trials": 4}, {"sampler": "random"}], ids=lambda s: s["sampler"])
def test_the_same_seed_gives_the_same_points_and_another_seed_others(tmp_path: Path, settings: dict[str, Any]) -> None:
    runs = {
        name: carry_on(sweep("optuna", trials=12, seed=seed, **settings).search(higher(*SPACE), tmp_path / name))
        for name, seed in (("a", 3), ("b", 3), ("c", 4))
    }
    assert runs["a"] == runs["b"] != runs["c"]
    assert [point.number for point in runs["a"]] == list(range(12))
    assert len(set(runs["a"])) == 12


class Killed(Exception):
    """Stands for a SIGKILL: nothing after it runs."""


@pytest.mark.parametrize("settings", [{"sampler": "tpe", "startup_trials": 4}, {"sampler": "random"}], ids=lambda s: s["sampler"])
@pytest.mark.parametrize("pruner", ["none", "median", "hyperband"])
def test_a_search_that_was_killed_goes_on_with_the_same_points(tmp_path: Path, settings: dict[str, Any], pruner: str) -> None:
    settings = {**settings, "pruner": pruner, "trials": 12, "warmup_evaluations": 1}

    def evaluated(search: Search, point: Point) -> float | None:
        stopped = any(search.progress(point, step, goodness(point) * step) for step in (10, 20, 30))
        return None if stopped else goodness(point)

    whole = sweep("optuna", **settings).search(higher(*SPACE), tmp_path / "whole")
    unbroken = carry_on(whole, lambda point: evaluated(whole, point))
    done: list[Point] = []
    for after in (1, 5, 6):
        search = sweep("optuna", **settings).search(higher(*SPACE), tmp_path / "broken")
        done += carry_on(search, lambda point, search=search: evaluated(search, point), after - len(done))  # type: ignore[misc]
        search.ask()  # and killed before it is told
    last = sweep("optuna", **settings).search(higher(*SPACE), tmp_path / "broken")
    assert last.earlier() == done
    assert done + carry_on(last, lambda point: evaluated(last, point)) == unbroken
    assert last.ask() is None
    assert sweep("optuna", **settings).search(higher(*SPACE), tmp_path / "broken").ask() is None


@pytest.mark.parametrize("settings", [{"sampler": "tpe", "startup_trials": 3}, {"sampler": "random"}], ids=lambda s: s["sampler"])
@pytest.mark.parametrize("drawn_before", [0, 1, 2])
@pytest.mark.parametrize("trial", [1, 6])
def test_a_kill_while_a_point_is_drawn_leaves_no_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], drawn_before: int, trial: int
) -> None:
    from llmtrain.sweep import optuna

    kind = sweep("optuna", trials=8, **settings)
    unbroken = carry_on(kind.search(higher(*SPACE), tmp_path / "whole"))
    search, suggest, count = kind.search(higher(*SPACE), tmp_path / "broken"), optuna._suggest, 0
    carry_on(search, at_most=trial)

    def killed(*arguments: Any) -> Any:
        nonlocal count
        count += 1
        if count > drawn_before:
            raise Killed
        return suggest(*arguments)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(optuna, "_suggest", killed)
        search.ask()
    again = kind.search(higher(*SPACE), tmp_path / "broken")
    assert again.earlier() + carry_on(again) == unbroken


@pytest.mark.parametrize("settings", [{"sampler": "tpe", "startup_trials": 10}, {"sampler": "random"}], ids=lambda s: s["sampler"])
def test_keys_are_drawn_independently_of_each_other(tmp_path: Path, settings: dict[str, Any]) -> None:
    search = sweep("optuna", trials=10, **settings).search(space("a=interval(0,1)", "b=interval(0,1)"), tmp_path)
    pairs = [[float(text.partition("=")[2]) for text in point.overrides] for point in carry_on(search, lambda point: 0.0)]
    assert min(abs(a - b) for a, b in pairs) > 1e-6


def test_what_was_asked_for_and_never_told_comes_first_again_as_it_was(tmp_path: Path) -> None:
    kind = sweep("optuna", trials=6)
    search = kind.search(higher(*SPACE), tmp_path)
    asked = [search.ask() for _ in range(4)]
    assert asked[2] is not None
    search.tell(asked[2], 1.0)
    again = kind.search(higher(*SPACE), tmp_path)
    assert [again.ask() for _ in range(3)] == [asked[0], asked[1], asked[3]]
    assert again.earlier() == [asked[2]]
    new = again.ask()
    assert new is not None
    assert new.number == 4


def test_more_trials_go_on_from_what_there_is(tmp_path: Path) -> None:
    few = carry_on(sweep("optuna", trials=3).search(higher(*SPACE), tmp_path / "a"))
    more = carry_on(sweep("optuna", trials=7).search(higher(*SPACE), tmp_path / "a"))
    assert few + more == carry_on(sweep("optuna", trials=7).search(higher(*SPACE), tmp_path / "b"))


def test_a_torn_line_and_a_lock_that_a_kill_left_behind_stop_nothing(tmp_path: Path) -> None:
    kind = sweep("optuna", trials=6)
    done = carry_on(kind.search(higher(*SPACE), tmp_path), at_most=3)
    with (tmp_path / "optuna.journal").open("ab") as file:
        file.write(b'{"op_code": 4, "wor')
    (tmp_path / "optuna.journal.lock").touch()
    started = time.monotonic()
    again = kind.search(higher(*SPACE), tmp_path)
    assert again.earlier() == done
    assert len(carry_on(again)) == 3
    assert time.monotonic() - started < 25  # Optuna waits 30 seconds for a lock that nobody holds
    assert len(kind.search(higher(*SPACE), tmp_path).earlier()) == 6


@pytest.mark.parametrize(
    ("other", "what"),
    [
        (higher("optimizer.lr=interval(0,1)"), "space"),
        (space(*SPACE, metric=lambda: ("accuracy", False)), "higher"),
        (space(*SPACE, metric=lambda: ("macro_f1", True)), "metric"),
    ],
)
def test_the_journal_of_another_search_is_refused(tmp_path: Path, other: Space, what: str) -> None:
    carry_on(sweep("optuna", trials=2).search(higher(*SPACE), tmp_path))
    before = (tmp_path / "optuna.journal").read_bytes()
    with pytest.raises(ConfigError, match=f"of another search: its {what} was"):
        sweep("optuna", trials=2).search(other, tmp_path)
    carry_on(sweep("optuna", trials=2).search(higher(*SPACE), tmp_path))
    assert (tmp_path / "optuna.journal").read_bytes().startswith(before)


# --- what it is told ----------------------------------------------------------------------------------------------------


def states(folder: Path) -> list[str]:
    from optuna import load_study
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    study = load_study(study_name="sweep", storage=JournalStorage(JournalFileBackend(str(folder / "optuna.journal"))))
    return [trial.state.name for trial in study.trials]


@pytest.mark.parametrize("value", [None, math.nan, math.inf, -math.inf])
def test_a_member_that_failed_or_gave_no_number_is_a_failed_trial(tmp_path: Path, value: float | None) -> None:
    carry_on(sweep("optuna", trials=2).search(higher(*SPACE), tmp_path), lambda point: value if point.number else 0.5)
    assert states(tmp_path) == ["COMPLETE", "FAIL"]


def test_a_member_that_is_told_twice_keeps_what_it_was_told_first(tmp_path: Path) -> None:
    search = sweep("optuna", trials=1).search(higher(*SPACE), tmp_path)
    (point,) = carry_on(search)
    search.tell(point, None)
    assert states(tmp_path) == ["COMPLETE"]


def test_tpe_comes_nearer_to_the_best_than_chance(tmp_path: Path) -> None:
    def mean(sampler: str) -> float:
        search = sweep("optuna", sampler=sampler, trials=40).search(higher(*SPACE), tmp_path / sampler)
        late = carry_on(search)[20:]
        return sum(map(goodness, late)) / len(late)

    assert mean("tpe") > mean("random") + 0.3


def test_what_is_better_is_the_metrics_own_matter(tmp_path: Path) -> None:
    def mean(better: bool) -> float:
        search = sweep("optuna", trials=40).search(space(*SPACE, metric=lambda: ("metric", better)), tmp_path / str(better))
        late = carry_on(search)[20:]
        return sum(map(goodness, late)) / len(late)

    assert mean(True) > mean(False) + 1


def test_a_metric_of_the_users_own_is_the_one_that_is_told(tmp_path: Path) -> None:
    assert sweep("optuna").decides is None
    assert sweep("optuna", metric="accuracy").decides == "accuracy"
    sweep("optuna", metric="accuracy").search(higher(*SPACE), tmp_path / "a")
    with pytest.raises(ConfigError, match=r"sweep\.metric=macro_f1"):
        sweep("optuna", metric="macro_f1").search(higher(*SPACE), tmp_path / "b")


# --- stopping early -----------------------------------------------------------------------------------------------------


def raced(search: Search, values: list[float], evaluations: int = 9) -> list[int]:
    """For members that have the same value all the way: after how many evaluations each was stopped; `evaluations`: at its end."""
    found = []
    for value in values:
        point = search.ask()
        assert point is not None
        done = next((n for n in range(1, evaluations + 1) if search.progress(point, n * 10, value)), None)
        search.tell(point, None if done is not None else value)
        found.append(done or evaluations)
    return found


def test_median_stops_what_is_worse_than_half_after_the_warmup_and_the_first_trials(tmp_path: Path) -> None:
    search = sweep("optuna", pruner="median", startup_trials=3, warmup_evaluations=4).search(higher(*SPACE), tmp_path)
    assert raced(search, [0.5, 0.1, 0.6, 0.2, 0.9, 0.4]) == [9, 9, 9, 5, 9, 5]
    assert states(tmp_path)[3] == "PRUNED"


def test_median_goes_by_the_direction_of_the_metric(tmp_path: Path) -> None:
    search = sweep("optuna", pruner="median", startup_trials=3, warmup_evaluations=4).search(space(*SPACE), tmp_path)
    assert raced(search, [0.5, 0.1, 0.6, 0.2, 0.9]) == [9, 9, 9, 9, 5]


def test_hyperband_stops_some_and_never_before_the_warmup(tmp_path: Path) -> None:
    search = sweep("optuna", pruner="hyperband", warmup_evaluations=1, trials=30).search(higher(*SPACE), tmp_path)
    ended = raced(search, [0.5 + 0.01 * (n % 7) for n in range(30)])
    assert min(ended) >= 2
    assert sum(end < 9 for end in ended) >= 5
    assert max(ended) == 9


def test_without_a_pruner_nothing_is_stopped(tmp_path: Path) -> None:
    assert raced(sweep("optuna").search(higher(*SPACE), tmp_path), [1.0] * 10 + [0.0] * 5) == [9] * 15


def test_members_are_compared_at_the_same_evaluation_whatever_their_number_of_updates(tmp_path: Path) -> None:
    search = sweep("optuna", pruner="median", startup_trials=2, warmup_evaluations=0).search(higher(*SPACE), tmp_path)
    raced(search, [0.5, 0.6])
    point = search.ask()
    assert point is not None
    assert search.progress(point, 7777, 0.1)


def test_an_evaluation_that_a_resumed_member_repeats_counts_once_and_is_answered_alike(tmp_path: Path) -> None:
    kind = sweep("optuna", pruner="median", startup_trials=2, warmup_evaluations=1)
    search = kind.search(higher(*SPACE), tmp_path)
    raced(search, [0.5, 0.6])
    point = search.ask()
    assert point is not None
    assert not search.progress(point, 10, 0.1)
    again = kind.search(higher(*SPACE), tmp_path)
    assert again.ask() == point
    assert not again.progress(point, 10, 0.1)
    assert again.progress(point, 20, 0.1)
    assert again.progress(point, 20, 0.1)


def test_a_number_that_is_none_stops_nothing(tmp_path: Path) -> None:
    search = sweep("optuna", pruner="median", startup_trials=2, warmup_evaluations=0).search(higher(*SPACE), tmp_path)
    raced(search, [0.5, 0.6])
    point = search.ask()
    assert point is not None
    assert not search.progress(point, 10, math.nan)


# --- settings -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings", [{"trials": 0}, {"startup_trials": -1}, {"warmup_evaluations": -1}, {"seed": -1}, {"sampler": "cmaes"}, {"pruner": "asha"}]
)
def test_a_setting_out_of_range_is_named(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"sweep.{next(iter(settings))}="):
        sweep("optuna", **settings)


@pytest.mark.parametrize(
    ("settings", "keys"),
    [
        ({}, {"warmup_evaluations"}),
        ({"pruner": "median"}, set()),
        ({"sampler": "random"}, {"warmup_evaluations", "startup_trials"}),
        ({"sampler": "random", "pruner": "hyperband"}, {"startup_trials"}),
        ({"trials": 10}, {"warmup_evaluations", "sampler"}),
    ],
)
def test_settings_without_effect_are_named(settings: dict[str, Any], keys: set[str]) -> None:
    assert set(sweep("optuna", **settings).without_effect()) == keys


def test_without_optuna_the_way_to_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ConfigError, match="Optuna is not installed") as caught:
        sweep("optuna").search(higher(*SPACE), tmp_path)
    assert caught.value.fix == "pip install 'llmtrain[optuna]'"
    assert caught.value.exit_code == 2


def test_nothing_is_imported_before_the_search_and_optuna_says_nothing(tmp_path: Path) -> None:
    code = f"""
import sys, pathlib
from tests.sweep.conftest import space, sweep
kind, chosen = sweep("optuna", trials=3, pruner="hyperband"), space("optimizer.lr=interval(0,1)", "finetune=features,full")
kind.corners(chosen)
assert not {{"optuna", "torch", "transformers"}} & sys.modules.keys()
search = kind.search(chosen, pathlib.Path({str(tmp_path)!r}))
while (point := search.ask()) is not None:
    search.progress(point, 1, 0.5)
    search.tell(point, 0.5)
    search.tell(point, None)
assert "torch" not in sys.modules
"""
    found = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout, found.stderr) == (0, "", "")


def test_optuna_warns_of_nothing(tmp_path: Path) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        raced(sweep("optuna", pruner="hyperband", sampler="tpe", startup_trials=2).search(higher(*SPACE), tmp_path), [0.1, 0.2, 0.3, 0.4])
    assert [str(warning.message) for warning in caught] == []
