"""Freezing: the points from the head alone to the whole model, for several seeds."""

from __future__ import annotations

from typing import Any

import pytest

from llmtrain.config import build, compose
from llmtrain.errors import ConfigError
from llmtrain.finetune.base import Finetune
from llmtrain.sweep.plan import members
from tests.sweep.conftest import member, overrides, space, sweep


def points(*typed: str, depth: int = 3, limit: int = 200, **settings: Any) -> list[tuple[str, ...]]:
    return overrides(sweep("freezing", **settings).points(space(*typed, depth=lambda: depth, limit=limit)))


def modes(depth: int) -> list[tuple[str, ...]]:
    return [("finetune=features",), *(("finetune=last_layers", f"finetune.blocks={k}") for k in range(1, depth + 1)), ("finetune=full",)]


@pytest.mark.parametrize("depth", [1, 6, 12])
def test_there_is_a_point_for_each_number_of_blocks_and_one_for_everything(depth: int) -> None:
    assert points(depth=depth, seeds=1) == [(*mode, "seed=0") for mode in modes(depth)]


def test_the_seed_is_slowest_so_that_a_third_of_the_time_gives_a_whole_table() -> None:
    found = points(depth=2)
    assert len(found) == 3 * 4
    assert found[: len(found) // 3] == [(*mode, "seed=0") for mode in modes(2)]
    assert found == [(*mode, f"seed={seed}") for seed in range(3) for mode in modes(2)]


def test_a_seed_that_is_given_is_the_only_one() -> None:
    assert points("seed=7", depth=1) == modes(1)


def test_seeds_that_are_swept_take_the_place_of_the_settings_and_are_slowest_too() -> None:
    assert points("data.max_length=32,64", "seed=8,9", depth=1) == [
        (*mode, f"data.max_length={length}", f"seed={seed}") for seed in (8, 9) for length in (32, 64) for mode in modes(1)
    ]


@pytest.mark.parametrize(
    ("blocks", "numbers"), [(None, [0, 1, 2, 3]), ("0-2", [0, 1, 2]), ("0,3", [0, 3]), ("last:2", [2, 3]), ("all", [0, 1, 2, 3]), ("3", [3])]
)
def test_an_address_leaves_points_out(blocks: str | None, numbers: list[int]) -> None:
    expected = [modes(3)[k] for k in numbers]
    assert points("seed=0", blocks=blocks, full=False) == expected
    assert points("seed=0", blocks=blocks) == [*expected, ("finetune=full",)]


def test_more_blocks_than_the_model_has_are_refused_with_its_depth() -> None:
    with pytest.raises(ConfigError, match=r"sweep\.blocks='0-6': the model has 3 blocks") as caught:
        points(blocks="0-6")
    assert caught.value.exit_code == 2
    assert caught.value.allowed == "0 (the head alone) to 3"


@pytest.mark.parametrize("settings", [{"blocks": "none"}, {"blocks": "6-3"}, {"blocks": "x"}, {"seeds": 0}])
def test_a_setting_out_of_range_is_named(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"sweep.{next(iter(settings))}="):
        sweep("freezing", **settings)


@pytest.mark.parametrize("typed", ["finetune=full", "finetune=features,full", "finetune.blocks=2", "finetune.blocks=1,2"])
def test_a_mode_of_the_users_is_refused_with_the_reason(typed: str) -> None:
    with pytest.raises(ConfigError, match="sweep=freezing chooses it: that is what it compares") as caught:
        points(typed)
    assert caught.value.what.startswith(typed.partition("=")[0])


def test_a31_too_many_are_refused_before_the_model_is_looked_at() -> None:
    def depth() -> int:
        raise AssertionError

    with pytest.raises(ConfigError, match="3,000,000 members"):
        sweep("freezing").points(space("optimizer.lr=range(1,1000001)", depth=depth))
    with pytest.raises(ConfigError, match="1,000,000,000 members"):
        sweep("freezing", seeds=10**9).points(space(depth=depth))
    with pytest.raises(ConfigError, match="15 members"):
        points(limit=14)
    assert len(points(limit=15)) == 15


def test_each_mode_has_the_learning_rate_and_the_budget_of_its_own_file() -> None:
    plan = members(sweep("freezing", seeds=1).points(space(depth=lambda: 2)), member, [])
    for found in plan.members:
        kind = found.config.finetune.kind
        shipped = build(compose("finetune", [f"finetune={kind}"]).config.finetune, Finetune, "finetune")
        assert (found.config.optimizer.lr, found.config.trainer.max_epochs) == (shipped.lr, shipped.epochs)
    assert [m.config.finetune.get("blocks") for m in plan.members] == [None, 1, 2, None]
    assert len({m.config.optimizer.lr for m in plan.members}) > 1


def test_a_setting_that_the_head_alone_has_not_is_left_out_there_and_said() -> None:
    chosen = space("finetune.lr_decay=0.9,1.0", "seed=0", depth=lambda: 1)
    plan = members(sweep("freezing").points(chosen), member, ["seed=0"])
    assert [(m.config.finetune.kind, m.config.finetune.get("lr_decay")) for m in plan.members] == [
        ("features", None), ("last_layers", 0.9), ("full", 0.9), ("last_layers", 1.0), ("full", 1.0),
    ]  # fmt: skip
    assert plan.notes[0] == "finetune=features has no finetune.lr_decay: it is left out there"


def test_no_setting_is_without_effect() -> None:
    assert sweep("freezing").without_effect() == {}
