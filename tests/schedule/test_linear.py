"""Linear: warm-up, then a straight line to the floor."""

from __future__ import annotations

import pytest

from llmtrain.config import build
from llmtrain.errors import ConfigError
from llmtrain.schedule.base import Progress, Schedule


def linear(**settings: object) -> Schedule:
    base = {"kind": "linear", "warmup_steps": 0, "warmup_tokens": None, "final_fraction": 0.0, "decay_tokens": None}
    return build({**base, **settings}, Schedule, "schedule")


def test_the_factor_falls_in_equal_steps() -> None:
    assert [linear().factor(Progress(s, 0, 4, 4)) for s in range(4)] == pytest.approx([1, 0.75, 0.5, 0.25])


def test_it_starts_to_fall_where_warmup_ends() -> None:
    assert [linear(warmup_steps=2).factor(Progress(s, 0, 6, 6)) for s in range(6)] == pytest.approx([0.5, 1, 1, 0.75, 0.5, 0.25])


@pytest.mark.parametrize(
    "setting", [{"final_fraction": 1.5}, {"decay_tokens": 0}, {"warmup_steps": 1.5}, {"warmup_steps": -1}, {"decay_tokens": 100, "warmup_steps": 10}]
)
def test_settings_out_of_range_are_refused(setting: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"schedule\."):
        linear(**setting)
