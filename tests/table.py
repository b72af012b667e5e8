"""Tables that say which test covers which row of a list, and the guard that such tests exist."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from functools import cache
from pathlib import Path

TESTS = Path(__file__).parent


@cache
def _functions(path: str) -> frozenset[str]:
    file = TESTS / path
    if not file.is_file():
        return frozenset()
    return frozenset(node.name for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(node, ast.FunctionDef))


def missing(table: Mapping[str, tuple[str, ...]]) -> list[str]:
    """The entries `file::function` of a table for which there is no such test."""
    named = [(row, *entry.partition("::")[::2]) for row, entries in table.items() for entry in entries]
    return [f"{row}: {path}::{name}" for row, path, name in named if not name.startswith("test_") or name not in _functions(path)]
