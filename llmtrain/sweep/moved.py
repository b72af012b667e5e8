"""Whether a relative path of a sweep still means, from here, what it meant in the directory where the sweep was started.

Members that learned from other files cannot be held against each other, and their folders have the same names: the path is all that the names know.
"""

from __future__ import annotations

import filecmp
import glob
import os
from collections.abc import Iterable
from enum import Enum
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from llmtrain.files import expanded

# Settings that name files, or may: some take names of the hub too, which are no paths where nothing of that name is there.
NAMING = ("model.checkpoint", "tokenizer.path", "data.name", "data.train", "data.validation", "data.test")


class Meaning(Enum):
    """What a path means here. `moved`: there, nothing is left to compare with."""

    same = "same"
    other = "other"
    moved = "moved"


def meanings(there: Path, here: Path, configs: Iterable[DictConfig]) -> dict[str, Meaning]:
    """`key=path` → what it means here, for each relative path of the configs that leads to something from one of the two directories."""
    typed = {(key, path) for config in configs for key in NAMING for path in _paths(_value(config, key))}
    found = {f"{key}={path}": _meaning(there, here, path) for key, path in sorted(typed)}
    return {text: meaning for text, meaning in found.items() if meaning is not None}


def _value(config: DictConfig, key: str) -> Any:
    section, _, name = key.partition(".")
    node = config.get(section)
    value = node.get(name) if isinstance(node, DictConfig) else None
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


def _paths(value: Any) -> list[str]:
    """The relative paths that a setting may name: several stand in a list, or with commas between."""
    texts = value if isinstance(value, list) else [value, *value.split(",")] if isinstance(value, str) else []
    stripped = [text.strip() for text in texts if isinstance(text, str)]
    return [text for text in stripped if text and not expanded(text).is_absolute()]


def _meaning(there: Path, here: Path, path: str) -> Meaning | None:
    before, now = _named(there, path), _named(here, path)
    if not before:
        return Meaning.moved if now else None
    return Meaning.same if before == now and all(_alike(there / name, here / name) for name in before) else Meaning.other


def _named(directory: Path, path: str) -> list[str]:
    """What a path or a glob names, from a directory; nothing, where that is gone, or was none: it comes from a file."""
    if not os.path.isdir(directory):
        return []
    return [path] if os.path.lexists(directory / path) else sorted(glob.glob(path, root_dir=directory, recursive=True))


def _alike(one: Path, other: Path) -> bool:
    """Whether two paths lead to the same file or folder, or to equal ones: a project may have been copied."""
    if not (one.exists() and other.exists()):
        return False
    if one.samefile(other):
        return True
    if one.is_dir() and other.is_dir():
        names = [sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()) for folder in (one, other)]
        return names[0] == names[1] and all(filecmp.cmp(one / name, other / name, shallow=False) for name in names[0])
    return one.is_file() and other.is_file() and filecmp.cmp(one, other, shallow=False)
