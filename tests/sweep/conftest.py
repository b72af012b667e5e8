"""What the tests of sweeps share: a space as it is typed."""

from __future__ import annotations

from typing import Any

from omegaconf import OmegaConf

from llmtrain.config import build, compose, multirun
from llmtrain.sweep.base import Point, Space, Sweep


def space(*typed: str, **more: Any) -> Space:
    """What a sweep chooses from, for this command line after -m."""
    found = multirun(list(typed))
    return Space(swept=found.swept, given=found.given, **more)


def sweep(kind: str, **settings: Any) -> Sweep:
    """A sweep as it ships, but for some settings."""
    shipped = OmegaConf.load(f"configs/sweep/{kind}.yaml")
    return build(OmegaConf.merge(shipped, settings), Sweep, "sweep")


def overrides(points: list[Point]) -> list[tuple[str, ...]]:
    return [point.overrides for point in points]


def member(overrides: list[str]) -> Any:
    """What composes a member of `llmtrain finetune -m`."""
    return compose("finetune", ["model.checkpoint=somewhere", *overrides])
