"""`llmtrain validate [VERB]`: every check that needs no weights, ticked off one by one."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TypeVar

from llmtrain import runtime
from llmtrain.command import train
from llmtrain.command.parts import advice, asks_newest, fits, head_goes_on, parts, without_effect
from llmtrain.config import Composed, build
from llmtrain.errors import ConfigError, LLMTrainError, plain
from llmtrain.model.base import Model

TAKES_A_VERB = True  # cli.py asks: in `validate pretrain` the second word is no mistake
T = TypeVar("T")


def primary(verb: str) -> str:
    """The config that is checked: a verb's own; without one, pretrain's."""
    if verb not in ("validate", "pretrain", "finetune"):
        raise ConfigError(f"validate {verb}: nothing to validate", allowed="pretrain, finetune")
    return "finetune" if verb == "finetune" else "pretrain"


def command(composed: Composed, overrides: list[str]) -> int:
    """Tick off; the first failure ends it with its own exit code."""
    verb = "pretrain" if "cache" not in composed.config else "finetune"
    if verb == "pretrain" or runtime.finished_runs("pretrain"):  # else finetuning would pretrain a small model first
        train.name_newest(composed.config, verb)
    elif asks_newest(composed.config):
        build(composed.config.model, Model, "model")  # what is wrong with it would be replaced, too
        print("  note: there is no pretrained run yet: a small one would be made first")
        composed.config.model = train.small_model(composed.config)
    built = tick("settings: every key, type and range", lambda: parts(composed.config))
    for line in composed.notes + without_effect(built, composed.given) + head_goes_on(built, composed.given) + advice(built):
        print(f"  note: {plain(line)}")
    tick("folder: output_dir and resume", lambda: train.continued(built.runtime, verb))
    tick("model and objective fit", lambda: fits(built))
    tick("device and precision on this machine", lambda: runtime.check(built.runtime))
    tick("data: files are there and can be read", built.data.check)
    print(f"all checks passed; `llmtrain {verb}` with the same overrides would start")
    return 0


def tick(what: str, check: Callable[[], T]) -> T:
    """Run one check and print its line."""
    try:
        value = check()
    except LLMTrainError:
        print(f"✗ {what}")
        sys.stdout.flush()
        raise
    print(f"✓ {what}")
    return value
