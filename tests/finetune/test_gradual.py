"""Gradual: from the top down, phase by phase."""

from __future__ import annotations

import itertools

import pytest

from llmtrain.errors import ConfigError
from tests.finetune.conftest import case, mode

TOP = {"final", "head"}


@pytest.mark.parametrize(
    ("blocks_per_phase", "thawed"),
    [
        (1, [{"block.2"}, {"block.1", "block.2"}, {"block.0", "block.1", "block.2"}, {"embeddings", "block.0", "block.1", "block.2"}]),
        (2, [{"block.1", "block.2"}, {"block.0", "block.1", "block.2"}, {"embeddings", "block.0", "block.1", "block.2"}]),
        (3, [{"block.0", "block.1", "block.2"}, {"embeddings", "block.0", "block.1", "block.2"}]),
    ],
)
@pytest.mark.parametrize("name", ["bert", "gpt2_classification"])
def test_each_phase_thaws_the_next_lower_blocks_and_the_last_one_the_embeddings(name: str, blocks_per_phase: int, thawed: list[set[str]]) -> None:
    phases = mode("gradual", blocks_per_phase=blocks_per_phase).plan(case(name).anatomy)
    assert [case(name).sections(phase) for phase in phases] == [TOP | blocks for blocks in thawed]
    assert phases[-1].trainable == case(name).anatomy.sections.keys()


def test_once_thawed_a_parameter_stays_so() -> None:
    phases = mode("gradual").plan(case("deberta").anatomy)
    assert all(below.trainable < above.trainable for below, above in itertools.pairwise(phases))


@pytest.mark.parametrize("until", [0.3, 0.9])
def test_the_phases_before_all_is_thawed_are_equally_long(until: float) -> None:
    ends = [phase.until for phase in mode("gradual", until=until).plan(case("bert").anatomy)]
    assert ends == pytest.approx([until / 3, 2 * until / 3, until, 1])


def test_a_parameter_keeps_its_rate_from_phase_to_phase() -> None:
    phases = mode("gradual", lr_decay=0.5).plan(case("bert").anatomy)
    last = phases[-1].lr_scale
    assert all(phase.lr_scale == {n: s for n, s in last.items() if n in phase.trainable} for phase in phases)


def test_what_all_blocks_use_waits_for_the_lowest() -> None:
    anatomy = case("deberta").anatomy
    moves = [anatomy.shared <= phase.trainable for phase in mode("gradual").plan(anatomy)]
    assert moves == [False, False, True, True]


@pytest.mark.parametrize(("name", "value"), [("blocks_per_phase", 0), ("blocks_per_phase", -1), ("until", 0), ("until", 1), ("until", -0.5)])
def test_a_schedule_that_is_none_is_refused(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"finetune\.{name}"):
        mode("gradual", **{name: value})


def test_more_blocks_in_a_phase_than_the_model_has_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"finetune\.blocks_per_phase=13: the model has 12 blocks"):
        mode("gradual", blocks_per_phase=13).plan(case("bert_published").anatomy)
