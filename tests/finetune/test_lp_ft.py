"""LP-FT: the head first, then everything."""

from __future__ import annotations

import pytest

from llmtrain.errors import ConfigError
from tests.finetune.conftest import case, mode


@pytest.mark.parametrize("name", ["bert", "distilbert", "gpt2_classification"])
def test_the_head_has_its_share_of_the_budget_and_then_all_is_trained(name: str) -> None:
    probe, full = mode("lp_ft", head_share=0.3).plan(case(name).anatomy)
    assert probe.trainable == set(case(name).anatomy.names("head"))
    assert full.trainable == case(name).anatomy.sections.keys()
    assert (probe.until, full.until) == (0.3, 1)


def test_the_head_has_a_rate_of_its_own_while_it_is_alone() -> None:
    probe, full = mode("lp_ft", head_lr_scale=20).plan(case("bert").anatomy)
    assert probe.lr_scale == dict.fromkeys(probe.trainable, 20)
    assert full.lr_scale == {}


def test_the_decay_is_for_the_second_phase() -> None:
    probe, full = mode("lp_ft", head_lr_scale=1, lr_decay=0.5).plan(case("bert").anatomy)
    assert probe.lr_scale == {}
    assert full.lr_scale == mode("full", lr_decay=0.5).plan(case("bert").anatomy)[0].lr_scale


@pytest.mark.parametrize(
    ("name", "value"),
    [("head_share", 0), ("head_share", 1), ("head_share", -0.1), ("head_lr_scale", 0), ("head_lr_scale", -1), ("head_lr_scale", float("inf"))],
)
def test_a_share_or_factor_out_of_range_is_refused(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"finetune\.{name}"):
        mode("lp_ft", **{name: value})
