"""Grid: every combination, in Hydra's order."""

from __future__ import annotations

import time

import pytest
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser

from llmtrain.errors import ConfigError
from tests.sweep.conftest import overrides, space, sweep

TYPED = [
    ["finetune=features,last_layers,full", "seed=0,1,2"],
    ["seed=0,1,2", "finetune=features,last_layers,full"],
    ["finetune.blocks=range(1,7)"],
    ["optimizer.lr=choice(1e-3,1e-4)", "finetune.address='0,11',all", "seed=range(2)"],
]


@pytest.mark.parametrize("typed", TYPED, ids=" ".join)
def test_the_points_are_those_of_hydras_own_sweeper_in_its_order(typed: list[str]) -> None:
    (theirs,) = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(typed), None)
    points = sweep("grid").points(space(*typed))
    assert [list(point.overrides) for point in points] == theirs
    assert [point.number for point in points] == list(range(len(theirs)))


def test_the_last_key_is_fastest_and_what_is_fixed_is_in_no_point() -> None:
    points = sweep("grid").points(space("finetune=features,full", "data=pydocs", "seed=0,1"))
    assert overrides(points) == [(f"finetune={mode}", f"seed={seed}") for mode in ("features", "full") for seed in (0, 1)]
    assert points[0].label == (("finetune", "features"), ("seed", "0"))


def test_a31_a_million_combinations_are_refused_at_once_with_the_count_and_the_limit() -> None:
    started = time.monotonic()
    with pytest.raises(ConfigError, match="1,000,000 members") as caught:
        sweep("grid").points(space("seed=range(1000)", "optimizer.lr=range(0.001,1.001,0.001)"))
    assert time.monotonic() - started < 1
    assert caught.value.exit_code == 2
    assert "max_members=200" in str(caught.value.allowed)


def test_the_limit_is_the_sweeps_own_setting() -> None:
    assert len(sweep("grid").points(space("seed=range(5)", limit=5))) == 5
    with pytest.raises(ConfigError, match="5 members"):
        sweep("grid").points(space("seed=range(5)", limit=4))


@pytest.mark.parametrize("typed", [(), ("seed=3",), ("seed=[]",)])
def test_a31_a_sweep_over_nothing_is_refused(typed: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="no key has several values") as caught:
        sweep("grid").points(space(*typed))
    assert caught.value.exit_code == 2


def test_an_interval_is_refused_with_the_sweep_that_takes_it() -> None:
    with pytest.raises(ConfigError, match="an interval has no list of values") as caught:
        sweep("grid").points(space("optimizer.lr=interval(1e-5,1e-3)"))
    assert "sweep=optuna" in str(caught.value.fix)


def test_a_grid_has_no_setting_that_could_be_without_effect() -> None:
    assert sweep("grid").without_effect() == {}
