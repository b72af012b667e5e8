"""What every launcher promises."""

from __future__ import annotations

import pytest

from llmtrain.config import build
from llmtrain.errors import ConfigError
from llmtrain.launcher.base import Launcher


def local(jobs: int) -> Launcher:
    return build({"kind": "local", "jobs": jobs}, Launcher, "launcher")


@pytest.mark.parametrize(("jobs", "cores", "threads"), [(1, 8, 8), (2, 8, 4), (3, 8, 2), (16, 8, 1)])
def test_members_that_run_at_the_same_time_share_the_cores(jobs: int, cores: int, threads: int) -> None:
    assert local(jobs).threads(cores) == threads


def test_no_member_at_a_time_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"launcher\.jobs"):
        local(0)
