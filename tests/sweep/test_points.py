"""Points: members that are written down one by one."""

from __future__ import annotations

import json

import pytest

from llmtrain.config import compose, multirun
from llmtrain.errors import ConfigError
from tests.sweep.conftest import overrides, space, sweep

LISTED = ["finetune=features optimizer.lr=1e-3", "finetune=last_layers finetune.blocks=2"]


def test_members_are_those_that_are_listed_in_their_order() -> None:
    points = sweep("points", listed=LISTED).points(space())
    assert overrides(points) == [("finetune=features", "optimizer.lr=1e-3"), ("finetune=last_layers", "finetune.blocks=2")]
    assert points[1].label == (("finetune", "last_layers"), ("finetune.blocks", "2"))


def test_what_is_swept_besides_makes_each_of_them_several() -> None:
    points = sweep("points", listed=LISTED).points(space("seed=0,1"))
    assert [o[-1] for o in overrides(points)] == ["seed=0", "seed=1", "seed=0", "seed=1"]
    assert [point.number for point in points] == [0, 1, 2, 3]


def test_a_value_with_a_space_is_quoted_as_in_a_shell() -> None:
    (point,) = sweep("points", listed=["data.train='my reviews.csv'"]).points(space())
    assert point.overrides == ("data.train=my reviews.csv",)
    assert compose("finetune", ["data=text", *point.overrides]).config.data.train == "my reviews.csv"


@pytest.mark.parametrize(
    "listed",
    [[], [""], ["finetune"], ["seed=0,1"], ["hydra.x=1"], ["+seed=1"], ["data.train='open"]],
    ids=str,
)
def test_what_is_no_list_of_overrides_is_refused(listed: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"sweep\.listed"):
        sweep("points", listed=listed).points(space())


def test_a_key_is_swept_or_listed() -> None:
    with pytest.raises(ConfigError, match=r"finetune\.blocks is both"):
        sweep("points", listed=LISTED).points(space("finetune.blocks=1,2"))


def test_more_members_than_the_limit_are_refused() -> None:
    with pytest.raises(ConfigError, match="2,000,000 members"):
        sweep("points", listed=LISTED).points(space("seed=range(1000000)"))


def test_the_list_belongs_to_the_sweep_and_not_to_its_members() -> None:
    own = ["sweep=points", f"sweep.listed={json.dumps(LISTED)}"]
    typed = multirun([*own, "seed=0"])
    assert typed.own == own
    assert compose("multirun", own).config.sweep.listed == LISTED
    assert typed.fixed == ["seed=0"]
