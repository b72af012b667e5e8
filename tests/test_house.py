"""The house rules of CONTRIBUTING.md, read off the tree: imports go down, and every kind has its YAML and its test."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from llmtrain.cli import VERBS
from llmtrain.command.parts import parts
from llmtrain.config import _kind, build, compose, groups, kinds

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "llmtrain"
CONFIGS = ROOT / "configs"

FLOORS = {
    7: ("__main__",),
    6: ("cli", "worker"),
    5: ("command",),
    4: ("trainer", "frozen", "changes", "sweep", "launcher", "report"),
    3: ("objective", "finetune", "callback", "task", "schedule", "cache", "optimizer", "checkpoint", "estimate"),
    2: ("model", "data", "sharding"),
    1: ("config", "runtime", "processes", "state", "seeding", "files", "machine"),
    0: ("errors",),
}
FLOOR = {name: floor for floor, names in FLOORS.items() for name in names}
MODULES = sorted(p for p in PACKAGE.rglob("*.py") if p.name != "__init__.py")
# `import llmtrain` for the version, and the one upward path: build() imports kinds by name inside its base's package.
EVERYWHERE = {"llmtrain"}
BASES = {
    "model": "Model",
    "objective": "Objective",
    "data": "Data",
    "finetune": "Finetune",
    "schedule": "Schedule",
    "callback": "Callback",
    "sweep": "Sweep",
    "launcher": "Launcher",
}


def imports(path: Path) -> list[str]:
    """Every llmtrain module that a file imports, also inside functions and under TYPE_CHECKING."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            submodules = [f"{node.module}.{alias.name}" for alias in node.names]
            found += [name if (PACKAGE.parent / Path(*name.split("."))).with_suffix(".py").is_file() else node.module for name in submodules]
    return [name for name in dict.fromkeys(found) if name.split(".")[0] == "llmtrain"]


def top(module: str) -> str:
    return module.split(".")[1]


def own(path: Path) -> tuple[str, ...]:
    return path.relative_to(PACKAGE).with_suffix("").parts


def allowed(path: Path, module: str) -> bool:
    """Whether a file may import a module."""
    here, there = own(path), module.split(".")[1:]
    if module in EVERYWHERE:
        return True
    if here[0] != there[0]:
        return FLOOR[here[0]] > FLOOR[there[0]]
    # Inside a folder: its base, or a named helper, never another kind or another verb.
    return there[1] == "base" or there[1] not in (VERBS if here[0] == "command" else groups().get(here[0], []))


@pytest.mark.parametrize("path", MODULES, ids=lambda p: "/".join(own(p)))
def test_imports_go_down(path: Path) -> None:
    assert [m for m in imports(path) if not allowed(path, m)] == []


def test_the_guard_looked_at_imports() -> None:
    assert sum(len(imports(path)) for path in MODULES) > 80


@pytest.mark.parametrize(
    ("path", "module"),
    [
        ("seeding.py", "llmtrain.config"),
        ("model/gpt.py", "llmtrain.objective.base"),
        ("objective/next_token.py", "llmtrain.finetune.full"),
        ("schedule/cosine.py", "llmtrain.schedule.linear"),
        ("trainer.py", "llmtrain.report.curve"),
        ("command/evaluate.py", "llmtrain.command.generate"),
    ],
)
def test_the_guard_sees_an_import_that_goes_up_or_across(path: str, module: str) -> None:
    assert not allowed(PACKAGE / path, module)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: "/".join(own(p)))
def test_every_module_stands_on_a_floor(path: Path) -> None:
    assert own(path)[0] in FLOOR


def kind_files() -> list[Any]:
    return [(group, path.stem) for group in BASES for path in sorted((CONFIGS / group).glob("*.yaml")) if "kind" in yaml.safe_load(path.read_text())]


@pytest.mark.parametrize(("group", "name"), kind_files())
def test_a_kinds_yaml_lists_exactly_its_settings_each_with_a_comment(group: str, name: str) -> None:
    path = CONFIGS / group / f"{name}.yaml"
    content = yaml.safe_load(path.read_text())
    base = getattr(importlib.import_module(f"llmtrain.{group}.base"), BASES[group])
    cls = _kind(content["kind"], base, group)
    assert content["kind"] == name
    assert set(content) - {"kind"} == {f.name for f in dataclasses.fields(cls)}
    bare = [line for line in path.read_text().splitlines() if ":" in line and "#" not in line and not line.startswith(("kind:", "weights:"))]
    assert bare == []


@pytest.mark.parametrize("group", BASES)
def test_every_kind_has_a_yaml_of_its_name_and_the_other_way_round(group: str) -> None:
    base = getattr(importlib.import_module(f"llmtrain.{group}.base"), BASES[group])
    modules = set()
    for path in (PACKAGE / group).glob("*.py"):
        module = importlib.import_module(f"llmtrain.{group}.{path.stem}") if path.stem != "__init__" else None
        classes = [c for c in vars(module).values() if inspect.isclass(c) and issubclass(c, base) and not inspect.isabstract(c)] if module else []
        if any(c.__module__ == f"llmtrain.{group}.{path.stem}" for c in classes) and path.stem != "base":
            modules.add(path.stem)
    assert modules == {name for g, name in kind_files() if g == group} == set(kinds(base))


@pytest.mark.parametrize("path", sorted(p for p in CONFIGS.rglob("*.yaml") if p.parent.name == "model"), ids=lambda p: p.stem)
def test_a_preset_adds_no_key(path: Path) -> None:
    content = yaml.safe_load(path.read_text())
    if "kind" not in content:
        (kind,) = [d for d in content["defaults"] if d != "_self_"]
        own_keys = set(yaml.safe_load((CONFIGS / path.parent.name / f"{kind}.yaml").read_text()))
        assert set(content) - {"defaults"} <= own_keys


@pytest.mark.parametrize(("group", "option"), [(g, o) for g, options in groups().items() for o in options if g in BASES and g != "callback"])
def test_every_shipped_option_composes_and_builds(group: str, option: str) -> None:
    if group in ("sweep", "launcher"):  # a sweep's own config, and none of its members'
        composed = compose("multirun", [f"{group}={option}", *(['sweep.listed=["seed=1"]'] if option == "points" else [])])
        base = getattr(importlib.import_module(f"llmtrain.{group}.base"), BASES[group])
        assert isinstance(build(composed.config[group], base, group), base)
        return
    extra = {"text": ["data.train=book.txt"], "hub": ["data.name=somebody/something"]}.get(option, [])
    composed = compose(
        "finetune",
        [
            *(["model=bert"] if group != "model" and option != "next_token" else []),
            *(["model=gpt"] if option == "next_token" else []),
            f"{group}={option}",
            *extra,
        ],
    )
    assert parts(composed.config) is not None


@pytest.mark.parametrize("name", groups().get("experiment", []))
def test_every_experiment_composes_and_builds(name: str) -> None:
    extra = ["data.train=books"] if name == "gpt1" else []  # its corpus is not distributed
    verb = "finetune" if "checkpoint" in yaml.safe_load((CONFIGS / "experiment" / f"{name}.yaml").read_text()).get("model", {}) else "pretrain"
    assert parts(compose(verb, [f"experiment={name}", *extra]).config) is not None


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_a_module_and_a_primary_config(verb: str) -> None:
    module = importlib.import_module(f"llmtrain.command.{VERBS[verb][1]}")
    assert callable(module.command)
    assert OmegaConf.is_config(compose(module.primary(verb) if hasattr(module, "primary") else verb, []).config)


@pytest.mark.parametrize("path", sorted((PACKAGE).rglob("__init__.py")), ids=lambda p: p.parent.name)
def test_init_files_are_empty_but_for_the_packages_own(path: Path) -> None:
    assert path.parent == PACKAGE or path.read_text() == ""


def sections() -> list[Any]:
    from llmtrain import cache, checkpoint, optimizer, runtime, trainer
    from llmtrain.data.tokenizer import TokenizerSettings

    listed = {
        "trainer": trainer.Settings,
        "evaluation": trainer.Evaluation,
        "checkpoint": checkpoint.Settings,
        "optimizer": optimizer.Optimizer,
        "cache": cache.Settings,
    }
    return [*listed.items(), ("tokenizer", TokenizerSettings), ("", runtime.Settings)]


@pytest.mark.parametrize(("name", "cls"), sections())
def test_a_section_without_kinds_lists_exactly_its_settings(name: str, cls: type) -> None:
    composed = compose("finetune", []).config
    base = set(yaml.safe_load((CONFIGS / "base.yaml").read_text()))
    assert (set(composed[name]) if name else base) == {f.name for f in dataclasses.fields(cls)}


TESTED_ELSEWHERE = {
    "model/base",
    "data/base",
    "objective/base",
    "finetune/base",
    "callback/base",
    "schedule/base",
    "__main__",
    "worker",
    "command/pretrain",
    "command/finetune",
    "command/train",
}


@pytest.mark.parametrize("path", MODULES, ids=lambda p: "/".join(own(p)))
def test_tests_mirror_the_tree(path: Path) -> None:
    name = "/".join(own(path))
    mirror = ROOT / "tests" / Path(*own(path)[:-1]) / f"test_{own(path)[-1]}.py"
    assert mirror.is_file() or name in TESTED_ELSEWHERE
