"""`llmtrain VERB --help`: the verb's groups with their options, and its keys with their comments.

All of it is read from the YAML files, so that help cannot drift from what runs.
"""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from llmtrain.config import compose, find_yaml, flat, groups, groups_of
from llmtrain.errors import ConfigError, masked, printable

WIDTH = 120  # columns
COMMENT = re.compile(r"^(?P<indent>\s*)(?P<key>[A-Za-z_][\w.]*):[^#]*(?:#\s*(?P<comment>.*))?$")


def page(verb: str, about: str, overrides: Sequence[str] = (), user_dir: Path | None = None) -> str:
    """The help of a verb, with the keys of the options that were chosen.

    Args:
        about: what the verb does, in a line.
        overrides: as on the command line; where they are wrong, the page is that of the verb alone.
        user_dir: a folder of the user's own YAML files.
    """
    primary = {"validate": "pretrain", "sweep": "multirun"}.get(verb, verb)
    try:
        config = compose(primary, list(overrides), user_dir).config
    except ConfigError:
        config = compose(primary, [], user_dir).config
    tree: Any = OmegaConf.to_container(config, resolve=False)  # help has an answer also where a reference leads nowhere
    comments = _comments("base", user_dir) | _comments(primary, user_dir)
    lines = [f"llmtrain {verb}: {about}", "", "groups (GROUP=OPTION):"]
    choosable, known = groups_of(primary, user_dir), groups(user_dir)
    lines += [_row(f"  {name:<10} ", ", ".join(options)) for name, options in known.items() if name in choosable]
    lines += ["", "keys (KEY=VALUE), as they are without overrides:"]
    sections = {name: node.get("kind") for name, node in tree.items() if name in choosable and isinstance(node, dict)}
    described = {name: f"{name}/{kind}" for name, kind in sections.items() if kind in known.get(name, [])}
    callbacks = tree.get("callback")
    described |= {f"callback.{name}": f"callback/{name}" for name in callbacks if name in known["callback"]} if isinstance(callbacks, dict) else {}
    for section, file in described.items():
        comments |= {f"{section}.{key}": text for key, text in _comments(file, user_dir).items()}
    for key, value in _typed(tree):
        lines.append(_row(f"  {f'{key}={value}':<42}  ", comments.get(key, "")))
    lines += ["", f"`llmtrain {verb} GROUP=OPTION --help` lists the keys of another option."]
    return "\n".join(lines)


def _row(left: str, right: str) -> str:
    """Two columns, the right one wrapped. What is in them is from files of whoever wrote them: it may neither drive the terminal nor show a secret."""
    left, right = (printable(masked(text)) for text in (left, right))
    wrapped = textwrap.wrap(right, max(WIDTH - len(left), 40), break_long_words=False, break_on_hyphens=False)
    return left + f"\n{' ' * len(left)}".join(wrapped) if wrapped else left.rstrip()


def _comments(name: str, user_dir: Path | None) -> dict[str, str]:
    """Key → comment, read line by line: a YAML parser would drop what we want."""
    path = find_yaml(name, user_dir)
    found: dict[str, str] = {}
    trail: list[tuple[int, str]] = []
    for line in path.read_text(encoding="utf-8").splitlines() if path else []:
        match = COMMENT.match(line)
        if match and match["key"] != "defaults":
            indent = len(match["indent"])
            trail = [(depth, key) for depth, key in trail if depth < indent] + [(indent, match["key"])]
            if match["comment"]:
                found[".".join(key for _, key in trail)] = match["comment"]
    return found


def _typed(tree: Any) -> list[tuple[str, str]]:
    """Every setting with its value as it would be typed."""
    return [(key, value if isinstance(value, str) else json.dumps(value, default=str)) for key, value in flat(tree).items() if key.split(".")[-1] != "kind"]
