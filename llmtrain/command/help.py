"""`llmtrain VERB --help`: the verb's groups with their options, and its keys with their comments.

All of it is read from the YAML files, so that help cannot drift from what runs.
"""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from llmtrain.config import compose, find_yaml, flat, groups, groups_of
from llmtrain.errors import ConfigError

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
    comments = _comments("base", user_dir) | _comments(primary, user_dir)
    lines = [f"llmtrain {verb}: {about}", "", "groups (GROUP=OPTION):"]
    choosable = groups_of(primary, user_dir)
    lines += [_row(f"  {name:<10} ", ", ".join(options)) for name, options in groups(user_dir).items() if name in choosable]
    lines += ["", "keys (KEY=VALUE), as they are without overrides:"]
    for name in choosable:
        node = config.get(name)
        if isinstance(node, DictConfig) and "kind" in node:
            own = _comments(f"{name}/{node.kind}", user_dir)
            comments |= {f"{name}.{key}": text for key, text in own.items()}
    for name in config.get("callback", {}):
        comments |= {f"callback.{name}.{key}": text for key, text in _comments(f"callback/{name}", user_dir).items()}
    for key, value in _typed(config):
        lines.append(_row(f"  {f'{key}={value}':<42}  ", comments.get(key, "")))
    lines += ["", f"`llmtrain {verb} GROUP=OPTION --help` lists the keys of another option."]
    return "\n".join(lines)


def _row(left: str, right: str) -> str:
    """Two columns, the right one wrapped."""
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


def _typed(config: DictConfig) -> list[tuple[str, str]]:
    """Every setting with its value as it would be typed."""
    settings = flat(OmegaConf.to_container(config, resolve=False))
    return [(key, value if isinstance(value, str) else json.dumps(value)) for key, value in settings.items() if key.split(".")[-1] != "kind" and value != {}]
