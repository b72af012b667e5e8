"""`llmtrain cache list` and `llmtrain cache clear`: what frozen prefixes made, and the disk that it takes."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from omegaconf import OmegaConf

from llmtrain import cache
from llmtrain.config import Composed, build
from llmtrain.errors import ConfigError, plain, printable

TAKES_A_VERB = True  # cli.py asks: in `cache clear` the second word is no mistake
CONFIGS = {"cache": "cache", "list": "cache", "clear": "cache_clear"}
HASH = 64  # digits of a sha256; what is longer is not for a line


class Action(Enum):
    list = "list"
    clear = "clear"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What to do with the stored states: list them, or clear them from the disk."""

    action: Action


def primary(word: str) -> str:
    """The config of `cache`, `cache list` and `cache clear`."""
    if word not in CONFIGS:
        raise ConfigError(f"cache {word}: nothing of that name can be done with the cache", allowed="list, clear")
    return CONFIGS[word]


def command(composed: Composed, overrides: list[str]) -> int:
    settings = build(OmegaConf.create({k: v for k, v in composed.config.items_ex(resolve=False) if k != "experiment"}), Settings, "")
    for line in composed.notes:
        print(f"note: {plain(line)}", file=sys.stderr)
    if settings.action is Action.clear:
        number, freed = cache.clear()
        print(f"{_entries(number)} removed, {cache.readable(freed)} freed")
    else:
        _list()
    return 0


def _list() -> None:
    found = cache.listed()
    for entry in found:
        print(f"{entry.path.name[:8]}  {cache.readable(entry.bytes):>10}  {time.strftime('%Y-%m-%d %H:%M', time.localtime(entry.made))}  {_facts(entry.about)}")
    print(f"{_entries(len(found))} of stored states, {cache.readable(sum(entry.bytes for entry in found))}")
    if found:
        print("`llmtrain cache clear` removes them; a run that wants them makes them again")


def _entries(number: int) -> str:
    return f"{number:,} {'entry' if number == 1 else 'entries'}"


def _facts(about: Mapping[str, Any]) -> str:
    """An entry's shapes, and of its identity what is short enough to be read."""
    try:
        shape = f"{about['samples']:,} samples  {about['tokens']:,} × {about['width']:,}  {about['dtype']}"
        return printable("  ".join([shape, *_named(about["identity"])]))
    except (KeyError, TypeError, ValueError, AttributeError):
        return "cannot be read: the next run that wants it makes it again"


def _named(identity: Mapping[str, Any]) -> Iterator[str]:
    """`name=value` of the values, those of nested mappings too; of a hash its first digits."""
    for name, value in identity.items():
        if name == "config":  # all of a model's settings: its family is enough here
            yield f"model={value.get('model_type', '?') if isinstance(value, Mapping) else value}"
        elif isinstance(value, Mapping):
            yield from _named(value)
        elif len(text := str(value)) <= HASH:
            yield f"{name}={text[:12] if len(text) == HASH else text}"
