"""`llmtrain VERB --help`: the verb's groups with their options, and its keys with their comments.

All of it is read from the YAML files, so that help cannot drift from what runs.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from llmtrain.config import compose, find_yaml, groups

COMMENT = re.compile(r"^(?P<indent>\s*)(?P<key>[A-Za-z_][\w.]*):[^#]*(?:#\s*(?P<comment>.*))?$")


def page(verb: str, about: str, user_dir: Path | None = None) -> str:
    """The help of a verb, at most 120 columns wide."""
    config = compose("pretrain" if verb == "validate" else verb, [], user_dir).config
    comments = _comments("base", user_dir) | _comments(verb, user_dir)
    lines = [f"llmtrain {verb}: {about}", "", "groups (GROUP=OPTION):"]
    used = [name for name in groups(user_dir) if name in config or name == "experiment"]
    lines += [f"  {name:<10} {', '.join(groups(user_dir)[name])}" for name in used if name != "callback"]
    lines += ["", "keys (KEY=VALUE), as they are without overrides:"]
    for name in used:
        node = config.get(name)
        if isinstance(node, DictConfig) and "kind" in node:
            own = _comments(f"{name}/{node.kind}", user_dir)
            comments |= {f"{name}.{key}": text for key, text in own.items()}
    for name in config.get("callback", {}):
        comments |= {f"callback.{name}.{key}": text for key, text in _comments(f"callback/{name}", user_dir).items()}
    keys = [(key, value) for key, value in _flat(config) if not key.endswith(".kind")]
    for key, value in keys:
        left = f"  {key}={value}"
        lines.append(f"{left:<44}  {comments.get(key, '')}".rstrip())
    lines += ["", "`llmtrain VERB GROUP=OPTION --cfg job` prints the keys of another option."]
    return "\n".join(lines)


def _comments(name: str, user_dir: Path | None) -> dict[str, str]:
    """Key → comment, read line by line: a YAML parser would drop what we want."""
    path = find_yaml(name, user_dir)
    found: dict[str, str] = {}
    trail: list[tuple[int, str]] = []
    for line in path.read_text().splitlines() if path else []:
        match = COMMENT.match(line)
        if match and match["key"] != "defaults":
            indent = len(match["indent"])
            trail = [(depth, key) for depth, key in trail if depth < indent] + [(indent, match["key"])]
            if match["comment"]:
                found[".".join(key for _, key in trail)] = match["comment"]
    return found


def _flat(node: DictConfig, prefix: str = "") -> list[tuple[str, str]]:
    found = []
    for name in node:
        key = f"{prefix}.{name}" if prefix else str(name)
        value = node._get_node(name)
        if isinstance(value, DictConfig) and not value._is_none():
            found += _flat(value, key)
        else:
            raw = OmegaConf.to_container(value, resolve=False) if OmegaConf.is_config(value) else value._value()
            found.append((key, raw if isinstance(raw, str) else json.dumps(raw)))
    return found
