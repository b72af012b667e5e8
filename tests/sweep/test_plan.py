"""The plan: which points are which runs, what they are called, and what the user is told."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
from typing import Any

import pytest
from omegaconf import OmegaConf

from llmtrain.config import Composed, UnknownKey, compose, parse
from llmtrain.errors import ConfigError
from llmtrain.sweep.base import Point
from llmtrain.sweep.plan import Member, Plan, identity, interchangeable, members, rehearsed
from tests.sweep.conftest import member, space, sweep


def grid(*typed: str, fixed: tuple[str, ...] = ()) -> Plan:
    return members(sweep("grid").points(space(*typed)), member, fixed)


def set_by(found: Member, *keys: str) -> tuple[Any, ...]:
    return tuple(OmegaConf.select(found.config, key) for key in keys)


# --- points become runs ---------------------------------------------------------------------------------------------


def test_each_point_is_composed_with_what_is_fixed() -> None:
    plan = grid("finetune=features,full", "seed=0,1", fixed=("data.max_length=32",))
    assert [set_by(m, "finetune.kind", "seed", "data.max_length") for m in plan.members] == [
        (mode, seed, 32) for mode in ("features", "full") for seed in (0, 1)
    ]
    assert plan.members[0].overrides == ("data.max_length=32", "finetune=features", "seed=0")
    assert plan.members[0].given == {"model.checkpoint", "data.max_length", "finetune", "seed"}
    assert plan.notes == ()


def test_the_overrides_of_a_member_compose_it_again() -> None:
    for found in grid("finetune.address='0,11',last:1", "optimizer.lr=1e-3,2e-5", fixed=("finetune=layers",)).members:
        assert identity(member(list(found.overrides)).config) == found.hash


def test_a_swept_key_that_a_kind_lacks_is_left_out_there_and_said_once() -> None:
    plan = grid("finetune=features,last_layers,full", "finetune.blocks=1,2", "seed=0,1")
    assert [set_by(m, "finetune.kind", "finetune.blocks", "seed") for m in plan.members] == [
        ("features", None, 0), ("features", None, 1),
        ("last_layers", 1, 0), ("last_layers", 1, 1), ("last_layers", 2, 0), ("last_layers", 2, 1),
        ("full", None, 0), ("full", None, 1),
    ]  # fmt: skip
    assert [line for line in plan.notes if "left out" in line] == [
        "finetune=features has no finetune.blocks: it is left out there",
        "finetune=full has no finetune.blocks: it is left out there",
    ]
    assert plan.members[0].point.overrides == ("finetune=features", "seed=0")
    assert plan.members[0].point.label == (("finetune", "features"), ("seed", "0"))


def test_a_fixed_key_that_a_kind_lacks_is_left_out_like_a_swept_one() -> None:
    plan = grid("finetune=features,last_layers", fixed=("finetune.blocks=1",))
    assert [set_by(m, "finetune.kind", "finetune.blocks") for m in plan.members] == [("features", None), ("last_layers", 1)]
    assert plan.members[0].overrides == ("finetune=features",)
    assert len(plan.notes) == 1


@pytest.mark.parametrize(
    ("typed", "fixed", "key"),
    [
        (("finetune=features,full", "finetune.blocks=1,2"), (), "finetune.blocks"),
        (("finetune=features,last_layers", "finetune.blcks=1,2"), (), "finetune.blcks"),
        (("finetune=features,last_layers",), ("finetune.blcks=1",), "finetune.blcks"),
        (("finetune.blcks=1,2",), (), "finetune.blcks"),
        (("seed=0,1",), ("optimizer.lrr=1",), "optimizer.lrr"),
        (("sed=0,1",), (), "sed"),
    ],
)
def test_a_key_that_no_point_has_is_an_error_as_always(typed: tuple[str, ...], fixed: tuple[str, ...], key: str) -> None:
    with pytest.raises(UnknownKey, match=f"{key}: no such key") as caught:
        grid(*typed, fixed=fixed)
    assert (caught.value.key, caught.value.exit_code) == (key, 2)


def test_a_misspelt_key_shows_before_all_points_are_composed() -> None:
    composed = []

    def counted(overrides: list[str]) -> Composed:
        composed.append(overrides)
        return member(overrides)  # type: ignore[no-any-return]

    with pytest.raises(UnknownKey):
        members(sweep("grid").points(space("finetune=features,full", "finetune.blcks=1,2", "seed=range(20)")), counted, [])
    assert len(composed) <= 4


def test_a_wrong_value_of_any_member_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"finetune=layer"):
        grid("finetune=features,layer")


def test_equal_members_run_once_and_that_is_said() -> None:
    plan = grid("seed=0,1,0", "optimizer.lr=1e-3,0.001")
    assert [m.config.seed for m in plan.members] == [0, 1]
    assert plan.notes == (
        f"3 more points are the same run as {plan.members[0].name}, which runs once",
        f"1 more point is the same run as {plan.members[1].name}, which runs once",
    )
    assert [plan.runs[number] for number in range(6)] == [plan.members[i].name for i in (0, 0, 1, 1, 0, 0)]
    assert plan.of(Point((), (), 3)) is plan.members[1]


def test_what_composing_says_is_said_once() -> None:
    def noted(overrides: list[str]) -> Composed:
        return Composed(member(overrides).config, notes=["a file replaces the shipped file of that name"])

    assert members(sweep("grid").points(space("seed=0,1,2")), noted, []).notes == ("a file replaces the shipped file of that name",)


# --- one by one -----------------------------------------------------------------------------------------------------


def test_point_by_point_gives_the_members_of_all_at_once() -> None:
    points = sweep("grid").points(space("finetune=features,last_layers", "finetune.blocks=1,2", "seed=0,1"))
    whole, plan = members(points, member, []), rehearsed(points, member, [])
    assert (plan.members, plan.runs) == ((), {})
    for point in points:
        plan = members([point], member, [], before=plan)
    assert [(m.name, m.hash, m.overrides) for m in plan.members] == [(m.name, m.hash, m.overrides) for m in whole.members]
    assert plan.runs == whole.runs
    assert [line for line in plan.notes if "left out" in line] == [line for line in whole.notes if "left out" in line]


def test_a_point_that_repeats_an_earlier_one_is_its_run() -> None:
    first = members([Point(("seed=4",), (("seed", "4"),), 0)], member, [])
    then = members([Point(("seed=4",), (("seed", "4"),), 9)], member, [], before=first)
    assert then.members == first.members
    assert then.of(Point((), (), 9)) == first.members[0]
    assert then.notes == (f"1 more point is the same run as {first.members[0].name}, which runs once",)


# --- names ----------------------------------------------------------------------------------------------------------


def test_a_name_says_what_the_member_sets_and_ends_in_its_hash() -> None:
    plan = grid("finetune=features,last_layers", "finetune.blocks=2", "optimizer.lr=1e-3,1e-4", fixed=("seed=1",))
    assert [m.name.rpartition("-")[0] for m in plan.members] == [
        "features-lr=0.001", "features-lr=0.0001", "last_layers-lr=0.001", "last_layers-lr=0.0001",
    ]  # fmt: skip
    assert all(m.name.endswith(m.hash[:8]) for m in plan.members)


def test_names_are_the_same_whatever_the_order_of_the_points() -> None:
    points = sweep("grid").points(space("finetune=features,last_layers", "finetune.blocks=1,2", "trainer.max_epochs=3,3.0"))
    forth, back = members(points, member, []), members(points[::-1], member, [])
    assert sorted(m.name for m in forth.members) == sorted(m.name for m in back.members)
    assert {m.name: m.hash for m in forth.members} == {m.name: m.hash for m in back.members}
    assert forth.runs == back.runs


@pytest.mark.parametrize(
    "value", ["../../../etc", "..", ".hidden", "/abs/olute", "a/b\\c", "x" * 500, "a, b", "<script>", "naïve \u202e", "-", "'", "~", "a\tb", "$(rm)", "con", ""]
)
def test_no_value_lets_a_name_leave_its_folder(value: str) -> None:
    point = Point(("name=x",), (("data.train", value), ("model", value)), 0)
    (found,) = members([point], member, []).members
    assert re.fullmatch("[A-Za-z0-9=_][A-Za-z0-9=._-]*-[0-9a-f]{8}", found.name)
    assert len(found.name) <= 69
    assert ".." not in found.name.split("/")


def test_long_values_that_differ_give_names_that_differ() -> None:
    plan = grid(f"data.train={'x' * 300}a.txt,{'x' * 300}b.txt", fixed=("data=text",))
    assert len({m.name for m in plan.members}) == 2
    assert plan.members[0].name.startswith("train=x")
    assert "xa.txt-" in plan.members[0].name


def test_the_path_of_a_member_can_be_typed_without_making_a_sweep_of_it() -> None:
    (found, _) = grid("finetune.address='0,1',all", fixed=("finetune=layers",)).members
    assert found.name.startswith("address=0_1-")
    assert parse([f"model.checkpoint=runs/sweep/a/members/{found.name}/final"])[0].value() == f"runs/sweep/a/members/{found.name}/final"


def test_members_whose_hashes_begin_alike_have_names_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    from llmtrain.sweep import plan

    monkeypatch.setattr(plan, "identity", lambda config: "0" * 63 + str(config.seed))
    points = [Point((f"seed={seed}",), (("kind", "same"),), seed) for seed in (0, 1)]
    assert len({m.name for m in members(points, member, []).members}) == 2


# --- the hash -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("override", ["output_dir=elsewhere", "name=other", "resume=must", "optimizer.lr=5e-5", "trainer.max_epochs=3.0"])
def test_the_hash_does_not_change_with_where_a_run_is_kept_or_how_a_value_is_written(override: str) -> None:
    assert identity(member([override]).config) == identity(member([]).config)


@pytest.mark.parametrize("override", ["seed=1", "optimizer.lr=1e-4", "finetune.lr=1e-4", "precision=fp32", "data.max_length=32", "threads=1"])
def test_the_hash_changes_with_every_other_setting(override: str) -> None:
    assert identity(member([override]).config) != identity(member([]).config)


def test_the_hash_is_the_same_in_another_process() -> None:
    code = "from tests.sweep.conftest import member; from llmtrain.sweep.plan import identity; print(identity(member([]).config))"
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "7", "PATH": ""}).stdout.strip()
    assert there == identity(member([]).config)


def test_an_interpolation_that_leads_nowhere_is_an_error() -> None:
    with pytest.raises(ConfigError, match="missing"):
        grid("seed=0,1", fixed=("data.max_length=${missing}",))


ALIKE = [["seed=3"], ["optimizer.lr=1e-3"], ["finetune.lr=1e-3"], ["optimizer.weight_decay=0.1"], ["schedule=cosine"], ["name=x", "output_dir=y"]]
UNLIKE = [
    ["finetune=full"], ["finetune=features"], ["finetune.blocks=1"], ["data.max_length=32"], ["precision=bf16"], ["trainer.max_epochs=1"],
    ["trainer.batch_size=8"], ["model.checkpoint=other"], ["tokenizer.path=other"], ["objective=regression"], ["data=synthetic"],
]  # fmt: skip


@pytest.mark.parametrize("changes", ALIKE, ids=" ".join)
def test_members_that_differ_in_what_they_learn_with_are_interchangeable(changes: list[str]) -> None:
    assert interchangeable(member(changes).config) == interchangeable(member([]).config)


def test_members_that_freeze_or_read_or_do_something_else_are_not() -> None:
    keys = [interchangeable(member(changes).config) for changes in [[], *UNLIKE]]
    assert [(i, j) for i, j in itertools.combinations(range(len(keys)), 2) if keys[i] == keys[j]] == []


def test_a_pretraining_has_a_key_too() -> None:
    configs = [compose("pretrain", [f"seed={seed}"]).config for seed in (0, 1)]
    assert interchangeable(configs[0]) == interchangeable(configs[1])
    assert identity(configs[0]) != identity(configs[1])
