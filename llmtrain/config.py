"""Configs: compose with Hydra, then turn each node into a checked object of its kind.

    compose("pretrain", ["model=gpt2", "optimizer.lr=1e-3"])  →  Composed(config, given, notes)
    build(config.objective, Objective, "objective")           →  NextToken(…)
    multirun(["finetune=features,full", "seed=0", "name=a"])  →  Typed(own, fixed, swept): what was typed with -m

A config is data. It selects among the kinds of llmtrain and of installed packages that declare an entry point in the
group `llmtrain.<folder>`; nothing in a YAML file or an override can import or run anything else. Hydra's Compose API
is used, not `@hydra.main`: under the latter a YAML's `hydra.callbacks` runs code.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import importlib
import importlib.metadata
import inspect
import os
import re
import types
import typing
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path, PureWindowsPath
from typing import Any, TypeVar

import yaml
from hydra import compose as hydra_compose, initialize_config_dir
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser, create_functions
from hydra.core.override_parser.types import ChoiceSweep, Override, OverrideType, ValueType
from hydra.core.plugins import Plugins
from hydra.errors import HydraException, MissingConfigException
from hydra.plugins.config_source import ConfigResult
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from llmtrain.errors import ConfigError, SettingError, printable, secrets, shown

T = TypeVar("T")
Names = tuple[str, ...]  # of nested keys, the outermost first

BUDGETS = ("max_steps", "max_epochs", "max_tokens")
LITERAL = ("prompt", "text", "second")  # keys whose value is taken as typed: it holds commas, brackets and quotes
SECRET = re.compile(r"(^|[._])(\w*_)?(token|password|secret|api_?key)$", re.IGNORECASE)
REFERENCE = re.compile(r"\$\{\s*([.\w\[\]]+)\s*\}")
VARIABLE = re.compile(r"\$\{\s*oc\.env\s*:\s*(\w+)\s*(?:,[^${}]*)?\}")
ESCAPED = re.compile(r"(?<!\\)(?:\\\\)*\\\$\{")  # an odd number of backslashes before ${: text that only looks like a reference
GROWN = 1_000_000  # characters and values that a config's references may stand for
NODES = 100_000  # of one YAML file, aliases replaced by what they stand for; and of all of a config's, each where a defaults list puts it
PLACE = 100  # values that a file counts for where it stands: what Hydra needs to put it there
INSIDE = "the files of the folder, by their names: /GROUP: OPTION, or NAME for one beside"
HYDRAS = re.compile(r"/?(.*_global_.)?hydra\b")  # a group or package of Hydra's own; of a package, Hydra leaves out all up to the last `_global_.`
# Names that people bring from elsewhere, and what they are called here.
ELSEWHERE = {
    "learning_rate": "optimizer.lr",
    "lr": "optimizer.lr",
    "max_seq_length": "data.max_length",
    "max_seq_len": "data.max_length",
    "block_size": "data.max_length",
    "seq_len": "data.max_length",
    "context_length": "data.max_length",
    "batch_size": "trainer.batch_size",
    "per_device_train_batch_size": "trainer.micro_batch_size",
    "per_device_batch_size": "trainer.micro_batch_size",
    "gradient_accumulation_steps": "trainer.micro_batch_size",
    "accumulate_grad_batches": "trainer.micro_batch_size",
    "num_train_epochs": "trainer.max_epochs",
    "epochs": "trainer.max_epochs",
    "num_steps": "trainer.max_steps",
    "max_grad_norm": "trainer.clip_norm",
    "gradient_clip_val": "trainer.clip_norm",
    "warmup_ratio": "schedule.warmup_steps",
    "num_warmup_steps": "schedule.warmup_steps",
    "min_lr": "schedule.final_fraction",
    "lr_scheduler_type": "schedule",
    "logging_steps": "trainer.log_every_steps",
    "eval_steps": "evaluation.every_steps",
    "eval_interval": "evaluation.every_steps",
    "save_steps": "checkpoint.every_steps",
    "save_total_limit": "checkpoint.keep_last",
    "dataloader_num_workers": "data.num_workers",
    "model_name_or_path": "model.checkpoint",
    "mixed_precision": "precision",
    "bf16": "precision",
    "fp16": "precision",
    "dtype": "precision",
    "num_processes": "devices",
    "report_to": "callback.tracker.use",
    "output": "output_dir",
    "torch_compile": "trainer.compile",
    "activation_checkpointing": "trainer.gradient_checkpointing",
    "n_layer": "model.num_hidden_layers",
    "n_head": "model.num_attention_heads",
    "n_embd": "model.hidden_size",
}


@dataclass
class Composed:
    """A config as composed; the keys that the user gave; what the user should be told about it; the folder of YAML files that was added."""

    config: DictConfig
    given: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)
    user_dir: Path | None = None


@dataclass(frozen=True)
class Typed:
    """What stood on the command line of a sweep.

    Attributes:
        own: overrides of the sweep itself, for `compose("multirun", own)`.
        fixed: overrides that are the same for all members.
        swept: overrides with several values, parsed, in the order in which they were typed.
        given: keys of `fixed`.
    """

    own: list[str]
    fixed: list[str]
    swept: tuple[Override, ...]
    given: frozenset[str]


class UnknownKey(ConfigError):
    """A key that the composed config does not have."""

    def __init__(self, key: str, what: str, *, allowed: str | None = None, fix: str | None = None) -> None:
        super().__init__(what, allowed=allowed, fix=fix)
        self.key = key


# --- where the YAML files are -------------------------------------------------------------------------------------


def shipped_dir() -> Path:
    """`configs/` inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent
    beside = package.parent / "configs"
    return beside if (beside / "base.yaml").is_file() else package / "configs"


def folders(user_dir: Path | None = None) -> list[Path]:
    """The config folders, the one that wins first."""
    return [*([user_dir] if user_dir else []), shipped_dir()]


def groups(user_dir: Path | None = None) -> dict[str, list[str]]:
    """Every config group with its options."""
    found: dict[str, set[str]] = {}
    for folder in folders(user_dir):
        for path in folder.glob("*/*.yaml"):
            found.setdefault(path.parent.name, set()).add(path.stem)
    return {group: sorted(options) for group, options in sorted(found.items())}


class _UserFolder(SearchPathPlugin):
    """Puts the user's folder before the shipped one: Hydra's own `--config-dir` would come after and silently lose."""

    folder: typing.ClassVar[Path | None] = None

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        if self.folder is not None:  # before Hydra's own folder, too: whoever is asked first hears of every file that is asked for
            search_path.prepend(provider="llmtrain", path=f"{_UserFiles.scheme()}://{self.folder}")


class _UserFiles(FileConfigSource):
    """The user's folder, as Hydra reads it: what a file may not hold is refused however Hydra came to it, through a link or past all looking beforehand."""

    @staticmethod
    def scheme() -> str:
        return "llmtrain"

    def is_config(self, config_path: str) -> bool:
        return _may_be_the_users(config_path) and super().is_config(config_path)

    def is_group(self, config_path: str) -> bool:
        return _may_be_the_users(config_path) and super().is_group(config_path)

    def load_config(self, config_path: str) -> ConfigResult:
        content = _checked(Path(self.path) / self._normalize_file_name(config_path), Path(self.path))
        found = super().load_config(config_path)
        found.header = _Header(found.header, _weight(content))
        return found


def _may_be_the_users(config_path: str) -> bool:
    """Whether the user's folder may have a file or a group; what is Hydra's own is not looked for there.

    Raises:
        ConfigError: it would lie outside, of this and of every other folder of configs.
    """
    path = PureWindowsPath(config_path)  # knows both kinds of slashes
    if path.anchor or ".." in path.parts:
        raise ConfigError(f"--config-dir: {shown(config_path)} is outside of it", allowed=INSIDE)
    return path.parts[:1] != ("hydra",)


class _Header(dict[str, str | None]):
    """The first lines of a user's file. Hydra reads a file once and asks here for each place where it is to stand: what grows is counted before it is made."""

    placed: typing.ClassVar[int] = 0

    def __init__(self, header: Mapping[str, str | None], weight: int) -> None:
        super().__init__(header)
        self.weight = weight

    def __getitem__(self, name: str) -> str | None:
        _Header.placed += self.weight
        if _Header.placed > NODES:
            raise _too_much("--config-dir")
        return super().__getitem__(name)


def _weight(content: Any) -> int:
    """What a file adds to a config wherever it stands: its values, its place, and those of what its defaults list names."""
    return _size(content) + PLACE * (1 + sum(max(1, len(options)) for _, options in _defaults(content)))


def _too_much(where: str) -> ConfigError:
    what = f"{where}: its defaults lists stand for more than {NODES:,} values, of which a file counts for {PLACE}"
    return ConfigError(what, allowed="a config is a page, not a data set")


def _size(tree: Any) -> int:
    inner: Iterable[Any] = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ()
    return 1 + sum(map(_size, inner))


@dataclass
class _Sources:
    """What the config composed last was made from, so that a message can say where a value stands.

    Attributes:
        files: the user's YAML files in it, the one that wins first, each with the key that its content stands under.
        typed: keys given on the command line.
        keys: every setting of the config.
    """

    files: list[tuple[Path, str]] = field(default_factory=list)
    typed: set[str] = field(default_factory=set)
    keys: list[str] = field(default_factory=list)


_sources = _Sources()


# --- composing ----------------------------------------------------------------------------------------------------


def compose(verb: str, overrides: list[str], user_dir: Path | None = None, sections: Mapping[str, Any] | None = None) -> Composed:
    """The config of a verb.

    Args:
        overrides: `group=option` or `key.of.a.setting=value`, as on the command line.
        user_dir: a folder of the user's own YAML files; a file there wins over a shipped one of the same name.
        sections: what stands in the place of the verb's own sections, where no override chooses their option.

    Raises:
        ConfigError: for whatever the overrides or the files get wrong.
    """
    try:
        return _composed(verb, overrides, user_dir, sections)
    except (OmegaConfBaseException, HydraException, yaml.YAMLError, TypeError, ValueError, LookupError, AttributeError, RuntimeError, AssertionError) as error:
        if user_dir is None:
            raise
        # A file of the user's can hold anything where one of ours has a list or a section, and every reader of it says so in its own way.
        why = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise ConfigError(f"--config-dir {user_dir}: its files make no config: {why}", allowed="files laid out like those of configs/") from error


def _composed(verb: str, overrides: list[str], user_dir: Path | None, sections: Mapping[str, Any] | None) -> Composed:
    global _sources
    _sources = _Sources()
    asked, user_dir = user_dir, _absolute(user_dir)
    notes = _check_user_dir(user_dir)
    parsed = parse(overrides)
    for override in parsed:
        refuse_targets({override.key_or_group.rpartition(".")[2]: override.value()}, "an override")
    own = groups_of(verb, user_dir)
    chosen = _choices(parsed, own, groups(user_dir))
    config, used = _hydra(verb, chosen, user_dir)
    _refuse_growth(OmegaConf.to_container(config, resolve=False))  # before anything below asks what a reference stands for
    for name, section in (sections or {}).items():
        if name not in chosen:
            OmegaConf.update(config, name, section, merge=False)
    preset = _preset(chosen.get("experiment"), user_dir)
    _sources = _Sources(_used_files(verb, used, user_dir), {o.key_or_group for o in parsed} - own, list(flat(OmegaConf.to_container(config, resolve=False))))
    if "experiment" in config:
        path = find_yaml(f"experiment/{chosen.get('experiment')}", user_dir)
        raise ConfigError(f"{path}: its keys would stand below a key `experiment`", fix="make `# @package _global_` its first line")
    composed = Composed(config, given=set(flat(preset)), notes=notes, user_dir=asked)
    _drop_settings_of_another_kind(composed, chosen, preset, user_dir)
    _budget(config, preset.get("trainer"), "the experiment")
    for override in parsed:
        if override.key_or_group == "experiment" and "experiment" in own:
            continue
        if override.key_or_group not in chosen:
            _set(config, override)
        composed.given.add(override.key_or_group)
    typed = {o.key_or_group.removeprefix("trainer."): o.value() for o in parsed if o.key_or_group.startswith("trainer.")}
    _budget(config, typed, "the command line")
    tree = OmegaConf.to_container(config, resolve=False)
    refuse_targets(tree)
    _refuse_growth(tree)
    return composed


def _absolute(user_dir: Path | None) -> Path | None:
    try:
        return user_dir and user_dir.expanduser().resolve()
    except (OSError, RuntimeError, ValueError) as error:  # ~nobody, a link to itself, a NUL character
        raise ConfigError(f"--config-dir {shown(str(user_dir))}: {error}", allowed="a folder laid out like configs/") from error


def parse(overrides: list[str]) -> list[Override]:
    """Overrides in Hydra's grammar, without what llmtrain does not take: `+`, `++`, `~`, sweeps and `hydra.…`."""
    parsed = []
    for typed in overrides:
        override = _override(typed)
        if override.is_sweep_override():
            key = override.key_or_group
            raise ConfigError(
                f"{written(override)}: several values make a sweep, and this command runs one",
                allowed="one value for a key",
                fix=f"-m runs them all; a value with commas in it is quoted twice: '{key}=\"a, b\"'; a list has brackets: '{key}=[a, b]'",
            )
        parsed.append(override)
    return parsed


def multirun(overrides: list[str], user_dir: Path | None = None) -> Typed:
    """Sort what was typed with `-m` into what is the sweep's, what all members have, and what differs between them.

    Raises:
        ConfigError: what `parse` refuses, `glob`, several values for a key of the sweep itself, a swept key given twice.
    """
    own_keys = _keys_of("multirun", user_dir)
    own, fixed, swept = [], [], []
    for typed, override in [(typed, _override(typed)) for typed in overrides]:
        key = override.key_or_group
        if key.split(".")[0] in own_keys:
            _refuse_several(override)
            own.append(typed)
        elif override.is_sweep_override():
            _check_values(override)
            swept.append(override)
        else:
            refuse_targets({key.rpartition(".")[2]: override.value()}, "an override")
            fixed.append(override)
    for override in swept:
        if [o.key_or_group for o in (*swept, *fixed)].count(override.key_or_group) > 1:
            raise ConfigError(f"{override.key_or_group} is given twice", fix="all its values in one place: KEY=A,B,C")
    return Typed(own, [str(o.input_line) for o in fixed], tuple(swept), frozenset(o.key_or_group for o in fixed))


def _keys_of(verb: str, user_dir: Path | None) -> set[str]:
    """Groups and top-level keys of a primary config."""
    path = find_yaml(verb, _absolute(user_dir))
    content = (read_yaml(path) or {}) if path else {}
    return (content.keys() - {"defaults"}) | groups_of(verb, user_dir)


def _refuse_several(override: Override) -> None:
    if override.is_sweep_override():
        key = override.key_or_group
        raise ConfigError(
            f"{written(override)}: a sweep has one {key}", allowed="several values for a key of its members", fix=f"text with commas: '{key}=\"0,2,4\"'"
        )


def _check_values(override: Override) -> None:
    """Refuse what no sweep can list or draw from, and values that name code."""
    if override.value_type is ValueType.GLOB_CHOICE_SWEEP:
        key = override.key_or_group
        raise ConfigError(f"{written(override)}: glob is not taken", allowed="a,b  choice()  range()  interval()", fix=f"name the options: {key}=A,B")
    sweep = override.value()
    listed = [Override._convert_value(v) for v in sweep.list] if isinstance(sweep, ChoiceSweep) else []
    refuse_targets({override.key_or_group.rpartition(".")[2]: listed}, "an override")


def written(override: Override) -> str:
    """An override as a message shows it: as it was typed, but for the value of what may be a secret."""
    key = override.key_or_group
    return f"{key}=…" if SECRET.search(key) else shown(override.input_line)


def _override(typed: str) -> Override:
    """One override, checked but for the number of its values."""
    text = typed.removeprefix("+") if typed.startswith("+experiment=") else typed
    key, equals, value = text.partition("=")
    if text[:1] in "+~":
        _refuse_secret(key)
        raise ConfigError(f"{shown(text)}: keys are neither added nor removed", allowed="KEY=VALUE for a key that exists, GROUP=OPTION, experiment=NAME")
    if not equals:
        raise ConfigError(f"{shown(text)} is neither an option nor KEY=VALUE", fix=did_you_mean(text, ["--help", "--cfg", "--config-dir", "--debug"]))
    override = _parse(key, value, text)
    if re.split("[./]", key)[0] == "hydra" or override.package is not None:
        raise ConfigError(f"{written(override)}: Hydra's own settings are not taken", allowed="the keys that `--cfg job` prints")
    return override


def _parse(key: str, value: str, text: str) -> Override:
    """One override; a value that Hydra's grammar has no place for and that has no structure, such as ~/books, is text."""
    literal = Override(OverrideType.CHANGE, key, ValueType.ELEMENT, _as_text(value), input_line=text)
    quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
    if key in LITERAL and not quoted:
        return literal
    try:
        parsed = _parser().parse_override(text)
        return literal if key in LITERAL and parsed.is_sweep_override() else parsed  # 'a', 'b' is text with two quoted words
    except (HydraException, RecursionError) as error:
        if key in LITERAL:
            return literal
        if not set(value) & set("[]{}(),'\"$\n"):
            return literal
        _refuse_secret(key)
        why = str(error).partition(" while evaluating ")[2]  # a function of the grammar says what it does not take
        fix = f"quote a value with special characters: '{key}=\"a, b\"'"
        raise ConfigError(f"{shown(text)}: {why or 'the value cannot be read'}", fix=fix) from error


@functools.cache
def _parser() -> OverridesParser:
    """Hydra's parser. It shuffles a plain list with a generator that nothing seeds, while it parses: that is refused."""
    functions = create_functions()
    shuffle = functions.functions["shuffle"]

    def shuffle_several_values(*args: Any, **kwargs: Any) -> Any:
        found = shuffle(*args, **kwargs)
        if isinstance(found, list):
            raise ValueError("one list as a value would be shuffled anew at each start")
        return found

    functions.functions["shuffle"] = shuffle_several_values
    return OverridesParser(functions)


def _refuse_secret(key: str) -> None:
    if SECRET.search(key):
        raise ConfigError(
            f"{key}: secrets are taken neither from the command line nor from a file", fix="set it in the environment (HF_TOKEN, WANDB_API_KEY, …)"
        )


def groups_of(verb: str, user_dir: Path | None) -> set[str]:
    """The groups that a verb lets choose: those of its defaults list that stand under their own name."""
    path = find_yaml(verb, user_dir)
    defaults = (read_yaml(path) or {}).get("defaults", []) if path else []
    return {name for entry in defaults if isinstance(entry, dict) for name in entry if "@" not in name}


def _choices(parsed: list[Override], own: set[str], known: dict[str, list[str]]) -> dict[str, str]:
    """group → option, as given on the command line."""
    chosen = {o.key_or_group: o.value() for o in parsed if o.key_or_group in own}
    for group, option in chosen.items():
        if option not in known.get(group, []) and not (group == "experiment" and option is None):
            raise _no_such_option(group, "null" if option is None else str(option), known.get(group, []))
    return {group: str(option) for group, option in chosen.items() if option is not None}


def _no_such_option(group: str, option: str, known: list[str], where: str = "") -> ConfigError:
    return ConfigError(f"{group}={option}{where}: no such option", allowed=", ".join(known), fix=did_you_mean(option, known))


def _hydra(verb: str, chosen: dict[str, str], user_dir: Path | None) -> tuple[DictConfig, dict[str, str]]:
    """The config before single keys are set, and every group with the option that was taken."""
    _UserFolder.folder = user_dir
    _Header.placed = 0
    if _UserFolder not in Plugins.instance().discover(SearchPathPlugin):
        Plugins.instance().register(_UserFolder)
        Plugins.instance().register(_UserFiles)
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(shipped_dir()), version_base="1.3"), warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*Defaults list is missing `_self_`", UserWarning)  # a note says so: `_check_user_dir`
            config = hydra_compose(verb, [f"{group}={option}" for group, option in chosen.items()], return_hydra_config=True)
    except MissingConfigException as error:
        group, _, option = (error.missing_cfg_file or "").rpartition("/")
        if not error.options:
            raise ConfigError(" ".join(str(error).split())[:300]) from error
        raise _no_such_option(group, option, list(error.options), _mentioned(user_dir, option)) from error
    except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        text = " ".join(str(error).split())
        raise ConfigError(text[:300], fix=f"`llmtrain {verb} --help` lists the groups of this verb") from error
    used = {str(group): str(option) for group, option in config.hydra.runtime.choices.items() if not group.startswith("hydra/")}
    OmegaConf.set_readonly(config, False)
    OmegaConf.set_struct(config, False)
    del config["hydra"]
    OmegaConf.set_struct(config, True)
    return config, used


def _set(config: DictConfig, override: Override) -> None:
    """Give a key that exists a new value."""
    key = override.key_or_group
    parent, _, leaf = key.rpartition(".")
    try:
        node = OmegaConf.select(config, parent) if parent else config
    except OmegaConfBaseException:
        node = None
    if leaf == "kind" and parent in groups():
        raise ConfigError(f"{key}: a kind is chosen by its group", allowed=f"{parent}=" + "|".join(groups()[parent]))
    if not isinstance(node, DictConfig) or leaf not in node:
        raise unknown_key(key, _sources.keys)
    value, before = override.value(), node._get_node(leaf)
    if isinstance(before, DictConfig) and not isinstance(value, dict):
        raise ConfigError(f"{key} is a section, not a setting", allowed=", ".join(f"{key}.{k!s}" for k in before))
    OmegaConf.update(config, key, value, merge=False, force_add=True)


def _preset(name: str | None, user_dir: Path | None) -> dict[str, Any]:
    """What an experiment's YAML file sets, and the experiments that it builds on, without what their groups bring."""
    path = find_yaml(f"experiment/{name}", user_dir) if name else None
    content = dict(read_yaml(path) or {}) if path else {}
    layers = [_preset(entry, user_dir) for entry in content.pop("defaults", None) or [] if isinstance(entry, str) and entry != "_self_"]
    config = OmegaConf.create(typing.cast(dict[str, Any], OmegaConf.to_container(OmegaConf.merge({}, *layers))))
    budgets = [k for k in BUDGETS if k in (content.get("trainer") or {})]
    if budgets and "trainer" in config:
        config.trainer = {k: v for k, v in config.trainer.items() if k not in BUDGETS}
    return typing.cast(dict[str, Any], OmegaConf.to_container(OmegaConf.merge(config, content)))


def find_yaml(name: str, user_dir: Path | None = None) -> Path | None:
    """The file of a config `group/option`, the user's before the shipped one."""
    return next((path for folder in folders(user_dir) if (path := folder / f"{name}.yaml").is_file()), None)


def _used_files(verb: str, used: dict[str, str], user_dir: Path | None) -> list[tuple[Path, str]]:
    """The user's files among those that Hydra composed, the one that wins first, each with the key above its content."""
    if user_dir is None:
        return []
    names = [(f"experiment/{used['experiment']}", "")] if used.get("experiment", "None") != "None" else []
    names += [(verb, ""), *((f"{key.partition('@')[0]}/{option}", key.rpartition("@")[2]) for key, option in used.items() if key != "experiment")]
    found = []
    while names:
        name, prefix = names.pop(0)
        path = find_yaml(name, user_dir)
        content = read_yaml(path) if path else None
        below = [d for d in (content or {}).get("defaults", None) or [] if isinstance(d, str) and d != "_self_"]
        names = [(str(Path(name).parent / d), prefix) for d in reversed(below)] + names
        found += [(path, prefix)] if path and path.is_relative_to(user_dir) else []
    return found


def _drop_settings_of_another_kind(composed: Composed, choices: dict[str, str], preset: dict[str, Any], user_dir: Path | None) -> None:
    """A kind chosen on the command line does not inherit what a preset set for the kind it had in mind."""
    for group in sorted(choices.keys() & preset.keys()):
        node = composed.config.get(group)
        path = OmegaConf.is_dict(node) and find_yaml(f"{group}/{node.get('kind')}", user_dir)
        if not path:
            continue
        own = read_yaml(path) or {}
        for setting in [k for k in node if k not in own]:
            with_dot = f"{group}.{setting}"
            value = shown(str(node._get_node(setting)), 80).strip("'")
            composed.notes.append(f"{with_dot}={value} of the experiment is dropped: {group}={choices[group]} has no such setting")
            composed.given.discard(with_dot)
            OmegaConf.set_struct(node, False)
            del node[setting]
            OmegaConf.set_struct(node, None)


def _budget(config: DictConfig, layer: Any, where: str) -> None:
    """A budget given later replaces an earlier one; two at one level are a contradiction."""
    given = [k for k in BUDGETS if layer.get(k) is not None] if isinstance(layer, dict) else []
    if len(given) > 1:
        raise ConfigError(
            f"{' and '.join('trainer.' + k for k in given)} are both given by {where}", allowed="one budget: " + ", ".join("trainer." + k for k in BUDGETS)
        )
    for name in BUDGETS:
        if given and name not in given:
            OmegaConf.update(config, f"trainer.{name}", None)


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Nested settings as whole key, such as `model.dropout` → value. An empty section is a value."""
    if isinstance(tree, dict) and (tree or not prefix):
        return {k: v for name, part in tree.items() for k, v in flat(part, f"{prefix}.{name}" if prefix else str(name)).items()}
    return {prefix: tree}


# --- what a YAML file may not hold --------------------------------------------------------------------------------


def _check_user_dir(user_dir: Path | None) -> list[str]:
    """Refuse what no file of the user's folder may hold; a note for each that takes the place of a shipped one."""
    if user_dir is None:
        return []
    if not user_dir.is_dir():
        raise ConfigError(f"--config-dir {user_dir}: {'not a folder' if user_dir.exists() else 'no such folder'}", allowed="a folder laid out like configs/")
    notes = []
    for path in sorted({*user_dir.rglob("*.yaml"), *user_dir.glob("*/*.yaml")}):  # the latter: of groups that are links, too
        content = _checked(path, user_dir)
        if (shipped_dir() / path.relative_to(user_dir)).is_file():
            defaults = content.get("defaults") if content and path.parent == user_dir else None
            last = ": without `_self_` in its defaults, its values win over an experiment" if isinstance(defaults, list) and "_self_" not in defaults else ""
            notes.append(printable(f"{path} replaces the shipped file of that name{last}"))
    return notes


def _checked(path: Path, user_dir: Path) -> dict[str, Any] | None:
    """The content of a file of the user's folder.

    Raises:
        ConfigError: it holds what no such file may hold.
    """
    content = read_yaml(path)
    if not isinstance(content, dict | None):
        raise ConfigError(f"{path}: no keys and values", allowed="KEY: VALUE, line by line")
    refuse_targets(content, str(path))
    header = path.read_text(encoding="utf-8").splitlines()
    in_hydra = path.relative_to(user_dir).parts[0] == "hydra" or any(re.match(rf"\s*#\s*@package\s+{HYDRAS.pattern}", line) for line in header)
    if in_hydra or _names_hydra(content or {}):
        raise ConfigError(f"{path}: Hydra's own settings are not taken", fix="take out what stands below `hydra`")
    for name in (word for entry, options in _defaults(content) for word in (entry, *options)):
        if "${" in name:
            raise ConfigError(f"{path}: {shown(name)} in its defaults is a reference", allowed=INSIDE)
        if ".." in re.split(r"[/\\ ]", name) or name.startswith("//"):
            raise ConfigError(f"{path}: {shown(name)} in its defaults leads out of the folder", allowed=INSIDE)
    if _weight(content) > NODES:
        raise _too_much(str(path))
    return content


def _names_hydra(content: dict[str, Any]) -> bool:
    """Whether a file sets, or asks for, something of Hydra's own: callbacks, logging, a launcher, a search path."""
    parts = [part for name, _ in _defaults(content) for part in name.split("@")]  # a group, and the package in which its content is put
    return any(HYDRAS.match(part.split(" ")[-1]) for part in (*map(str, content), *parts))


def _defaults(content: Any) -> list[tuple[str, list[str]]]:
    """A defaults list as it is written: each file or group, with the options of the group."""
    entries = content.get("defaults") if isinstance(content, dict) else None
    pairs = [pair for entry in (entries if isinstance(entries, list) else []) for pair in (entry.items() if isinstance(entry, dict) else [(entry, None)])]
    return [(str(name), [str(word) for word in (options if isinstance(options, list) else [options]) if word is not None]) for name, options in pairs]


def read_yaml(path: Path) -> Any:
    """The content of a YAML file, refused before parsing where it is built to explode (alias bombs) or too large."""
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise ConfigError(f"{path}: not a file")  # a link to /dev/zero has no end, a pipe perhaps no beginning
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: byte {error.start} is not UTF-8", fix="save the file as UTF-8") from error
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    if len(text) > 1_000_000:
        raise ConfigError(f"{path}: larger than 1 MB", fix="a config is a page, not a data set")
    return parse_yaml(text, path)


def parse_yaml(text: str, where: object) -> Any:
    """What a text says in YAML, for which `where` stands in a message."""
    try:
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
        if root is not None and _expanded(root, {}) > NODES:
            raise ConfigError(f"{where}: its YAML aliases stand for more than {NODES:,} values", allowed="a config is a page, not a data set")
        return None if root is None else loader.construct_document(root)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise ConfigError(f"{where}{line}: not YAML: {' '.join(str(getattr(error, 'problem', error)).split())}") from error
    except (ValueError, LookupError, AttributeError, TypeError) as error:  # 2026-02-30, `!!bool maybe`, a number of 5,000 digits
        raise ConfigError(f"{where}: a value is not what its form or its tag says: {' '.join(str(error).split())[:200]}") from error
    except RecursionError as error:
        raise ConfigError(f"{where}: nested too deeply, or an alias to itself") from error


def _expanded(node: yaml.Node, sizes: dict[int, int]) -> int:
    """How many nodes a tree has once every alias is replaced by a copy, as OmegaConf does. An alias to itself recurses."""
    if id(node) not in sizes:
        content: list[Any] = node.value if isinstance(node, yaml.CollectionNode) else []
        children = [child for pair in content for child in pair] if isinstance(node, yaml.MappingNode) else content
        sizes[id(node)] = 1 + sum(_expanded(child, sizes) for child in children)
    return sizes[id(node)]


def _refuse_growth(tree: Any) -> None:
    """Refuse references that stand for references and so on, as aliases may: ten times ten in ten levels are 10¹⁰ values.

    Raises:
        ConfigError: what all references stand for is more than GROWN characters and values.
    """
    tree, sizes, places = _named(tree), dict[Names, int](), dict[Names, Names]()

    def size(path: Names, node: Any) -> int:
        if path not in sizes:
            sizes[path] = 0  # of a reference to itself
            found = len(node) if isinstance(node, str) else 1
            found += sum(size((*path, name), inner) for name, inner in node.items()) if isinstance(node, dict) else 0
            if isinstance(node, str):
                found += sum(size(meant, _at(tree, meant)) for meant in (_place(tree, _meant(name, path), places) for name in REFERENCE.findall(node)))
                found += sum(len(os.environ.get(name, "")) for name in VARIABLE.findall(node))
            sizes[path] = min(GROWN + 1, found)
        return sizes[path]

    if size((), tree) > GROWN:
        raise ConfigError(f"the references of the config (${{…}}) stand for more than {GROWN:,} characters", allowed="a config is a page, not a data set")


def _named(tree: Any) -> Any:
    """A tree whose keys are all text; a list's are its numbers."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else None
    return tree if items is None else {str(name): _named(inner) for name, inner in items}


def _place(tree: Any, path: Names, known: dict[Names, Names]) -> Names:
    """Where that stands which a reference to `path` finds: a section on the way, or at its end, may itself be a reference."""
    if path not in known:
        known[path] = path  # for a reference that leads back to itself, which OmegaConf refuses
        here: Names = ()
        for name in path:
            here = (*here, name)
            node = _at(tree, here)
            if node is None:
                return path
            whole = REFERENCE.fullmatch(node) if isinstance(node, str) else None
            here = _place(tree, _meant(whole[1], here), known) if whole else here
        known[path] = here
    return known[path]


def _at(tree: Any, path: Iterable[str]) -> Any:
    for name in path:
        tree = tree.get(name) if isinstance(tree, dict) else None
    return tree


def _meant(reference: str, path: Names) -> Names:
    """The path of a reference that stands at a path: `a.b[0]`, `.beside`, `..above`."""
    names = tuple(re.findall(r"[^.\[\]]+", reference))
    dots = len(reference) - len(reference.lstrip("."))
    return (*path[: max(0, len(path) - dots)], *names) if dots else names


def refuse_targets(tree: Any, where: str = "the config") -> None:
    """`_target_` names something to import and call. A config is data: it may not, and no reference may call a resolver. No path has a NUL character."""
    if isinstance(tree, str) and "\0" in tree:
        raise ConfigError(f"{shown(tree)} in {where} holds a NUL character", allowed="text without")
    if isinstance(tree, str) and "${" in tree:
        _refuse_resolvers(tree, where)
    if isinstance(tree, dict):
        if "_target_" in tree:
            raise ConfigError(f"_target_: {shown(tree['_target_'])} in {where}: a config cannot name code to run", allowed="kind: NAME")
        for value in tree.values():
            refuse_targets(value, where)
    elif isinstance(tree, list):
        for value in tree:
            refuse_targets(value, where)


def _refuse_resolvers(text: str, where: str) -> None:
    """Refuse references that compute something, or whose name is computed: what they stand for could not be measured before it is there."""
    if "${" in functools.reduce(lambda rest, known: known.sub(" ", rest), (ESCAPED, VARIABLE, REFERENCE), text):
        raise ConfigError(
            f"{shown(text)} in {where}: no such reference",
            allowed="${key.of.the.config}, ${oc.env:NAME}, ${oc.env:NAME,default}",
            fix="write the value itself; text that holds a dollar and a brace has a backslash before them: \\${",
        )


def _as_text(text: str) -> str:
    """Text for a config in which nothing is a reference."""
    return re.sub(r"(\\*)\$\{", lambda found: found[1] * 2 + r"\${", text)


def _no_references(tree: Any) -> Any:
    """A tree of values that were resolved already: what still looks like a reference is text."""
    if isinstance(tree, dict):
        return {key: _no_references(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_no_references(value) for value in tree]
    return _as_text(tree) if isinstance(tree, str) else tree


# --- building -----------------------------------------------------------------------------------------------------


def build(node: Any, base: type[T], path: str) -> T:
    """The object that a node describes: an instance of the dataclass of its `kind`, or of `base` where it has none.

    Keys and types are checked against the dataclass, then ranges by its `__post_init__`. The kind `masked_lm` of the
    base `llmtrain.objective.base.Objective` is the one subclass of it defined in `llmtrain.objective.masked_lm`, or
    what an installed package offers under that name in the entry point group `llmtrain.objective`.

    Args:
        node: a DictConfig or dict.
        base: the base class of the kinds, or a settings dataclass.
        path: where the node stands in the config, for messages.

    Raises:
        ConfigError: naming the whole key, what is allowed and, for a misspelling, the nearest name.
    """
    if not isinstance(node, dict | DictConfig | None):
        raise ConfigError(f"{path}={shown(node)}{at(path)}: a section of keys, not a value")
    if not OmegaConf.is_dict(node):
        refuse_targets(node, path)
        _refuse_growth(node)
        node = OmegaConf.create(node or {})
    settings = {k: v for k, v in node.items_ex(resolve=False) if k != "kind"}
    cls = base
    if inspect.isabstract(base) or "kind" in node:
        cls = _kind(str(section(node, "kind", path) if "kind" in node else None), base, path)
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}  # type: ignore[arg-type]
    for name in settings:
        if name not in fields:
            inside = [_join(path, f) for f in fields]
            raise unknown_key(_join(path, str(name)), [*inside, *(k for k in _sources.keys if not k.startswith(f"{path}."))], inside)
    missing = [name for name in fields if name not in settings]
    if missing:
        raise ConfigError(
            f"{path or 'the config'}{at(path)}: no value for {', '.join(missing)}", fix="every setting has a value in its YAML file; null means absent"
        )
    hints = typing.get_type_hints(cls)
    values = {name: _typed(cls, name, hints[name], value, _join(path, name)) for name, value in _resolved(node, settings, path).items()}
    try:
        return cls(**values)
    except SettingError as error:
        key = _join(path, error.field)
        raise ConfigError(f"{key}={shown(error.value)}{at(key)}", allowed=error.allowed, fix=error.fix) from error


def _typed(cls: type, name: str, hint: Any, value: Any, path: str) -> Any:
    """`value` as the type of a field, by OmegaConf's rules; a section of its own is built."""
    if dataclasses.is_dataclass(hint):
        return build(_no_references(value), typing.cast(type, hint), path)
    accepted = {hint, *typing.get_args(hint)}
    mistaken = isinstance(value, bool) and bool not in accepted and bool(accepted & {int, float})  # OmegaConf takes true for 1
    if not mistaken:
        try:
            merged = OmegaConf.merge(_schema(cls), {name: _no_references(value)})
            found = typing.cast(DictConfig, merged)[name]
            return OmegaConf.to_container(found, resolve=True) if OmegaConf.is_config(found) else found
        except OmegaConfBaseException:
            pass
    choices = [name for a in accepted if inspect.isclass(a) and issubclass(a, Enum) for name in a.__members__]
    fix = did_you_mean(str(value), choices)
    if isinstance(value, float) and value.is_integer() and int in accepted:
        fix = f"write it out: {path}={int(value)}"
    raise ConfigError(f"{path}={shown(value)}{at(path)}: {'no such value' if choices else 'wrong type'}", allowed=type_in_words(hint), fix=fix)


@functools.cache
def _schema(cls: type) -> Any:
    return OmegaConf.structured(cls)


def kinds(base: type) -> dict[str, str]:
    """The kinds of a base: name → module, llmtrain's own and those of installed packages."""
    package = base.__module__.rpartition(".")[0]
    folder = Path(inspect.getfile(base)).parent
    own = {p.stem: f"{package}.{p.stem}" for p in sorted(folder.glob("*.py")) if p.stem in _kind_yamls(folder.name)}
    return {**_offered(package), **own}


@functools.cache
def _offered(package: str) -> dict[str, str]:
    """The kinds of installed packages: asked once, since every installed package's metadata is read."""
    return {e.name: e.value for e in importlib.metadata.entry_points(group=package)}


def _kind_yamls(group: str) -> set[str]:
    return {p.stem for p in (shipped_dir() / group).glob("*.yaml")}


def _kind(name: str, base: type, path: str) -> type:
    found = kinds(base)
    if name not in found:
        raise ConfigError(f"{path}.kind={name}: no such kind", allowed=", ".join(found), fix=did_you_mean(name, found))
    module_name, _, attribute = found[name].partition(":")
    module = importlib.import_module(module_name)
    if attribute:
        candidates = [getattr(module, attribute)]
    else:
        candidates = [c for c in vars(module).values() if inspect.isclass(c) and c.__module__ == module_name and not inspect.isabstract(c)]
    classes = [c for c in candidates if issubclass(c, base)]
    if len(classes) != 1:
        raise ConfigError(f"{path}.kind={name}: {found[name]} offers {len(classes)} classes of {base.__name__}", allowed="exactly one")
    found_class: type = classes[0]
    return found_class


def _resolved(node: DictConfig, settings: dict[Any, Any], path: str) -> dict[str, Any]:
    return {str(name): section(node, name, path, whole=True) for name in settings}


def section(node: DictConfig, name: Any, path: str = "", *, whole: bool = False) -> Any:
    """What stands in a node under a name, or what its reference stands for.

    Args:
        path: where the node stands in the config, for messages.
        whole: with every reference inside replaced, as plain values.

    Raises:
        ConfigError: the reference leads nowhere.
    """
    try:
        value = node[name]
        return OmegaConf.to_container(value, resolve=True) if whole and OmegaConf.is_config(value) else value
    except OmegaConfBaseException as error:
        key = _join(path, str(name))
        why = (str(error).splitlines() or ["no value"])[0]
        raise ConfigError(f"{key}={node._get_node(name)}{at(key)}: {why}", fix="name a key that exists, or set the variable") from error


def check_keys(config: DictConfig, allowed: Iterable[str], sections: Iterable[str] = ()) -> None:
    """Refuse top-level keys that no part of the program reads, and a config that lacks one of `sections`."""
    names = set(allowed)
    for name in config:
        if name not in names:
            raise unknown_key(str(name), [k for k in flat(OmegaConf.to_container(config, resolve=False)) if k.split(".")[0] in names])
    for name in sorted(sections):
        if name not in config:
            raise ConfigError(f"the config has no section {name!r}", fix="a file that replaces a shipped one keeps its defaults list and its sections")
        if not isinstance(found := section(config, name), DictConfig):
            raise ConfigError(f"{name}={shown(found)}{at(name)}: a section of keys, not a value")


def type_in_words(hint: Any) -> str:
    """How a message names a type."""
    arguments = typing.get_args(hint)
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return " or ".join(type_in_words(a) for a in arguments)
    if inspect.isclass(hint) and issubclass(hint, Enum):
        return ", ".join(hint.__members__)
    if arguments:
        inner = type_in_words(arguments[-1])
        return f"a mapping of names to {inner}" if typing.get_origin(hint) is dict else f"a list, each {inner}"
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}
    return words.get(hint, getattr(hint, "__name__", str(hint)))


# --- secrets ------------------------------------------------------------------------------------------------------


def without_secrets(config: DictConfig) -> DictConfig:
    """A config to be written down: `${oc.env:NAME}` stands in it for what `secrets` finds. Who reads it again has that variable too, or is told its name."""
    tree = OmegaConf.to_container(config, resolve=False)
    hidden = by_name(tree)
    return config if hidden == tree else typing.cast(DictConfig, OmegaConf.create(hidden))


def by_name(tree: Any) -> Any:
    """A tree of values with references to the environment in the place of its secrets; where there are references already, `***`."""
    known = secrets()
    any_of = re.compile("|".join(map(re.escape, known)) or "(?!)")

    def hidden(tree: Any) -> Any:
        if isinstance(tree, dict):
            return {key: hidden(value) for key, value in tree.items()}
        if isinstance(tree, list):
            return [hidden(value) for value in tree]
        if isinstance(tree, str):
            return any_of.sub("***" if "${" in tree else lambda found: f"${{oc.env:{known[found[0]]}}}", tree)
        return tree

    return hidden(tree)


# --- suggestions --------------------------------------------------------------------------------------------------


def did_you_mean(word: str, words: Iterable[str]) -> str | None:
    """`did you mean 'x'?` for the nearest of `words`, or nothing where none is near."""
    words = list(words)
    near = difflib.get_close_matches(word.lower(), words, n=1, cutoff=0.6) or [w for w in words if len(word) > 2 and w.startswith(word.lower())]
    return f"did you mean {near[0]!r}?" if near else None


def unknown_key(key: str, keys: list[str], allowed: list[str] | None = None) -> UnknownKey:
    """The answer to a key that does not exist: where it lives, or what it is called here.

    Args:
        keys: every setting that exists.
        allowed: those of them to list; None: those beside `key`, or the sections where there are none.
    """
    _refuse_secret(key)
    keys = [k for k in keys if not k.endswith(".kind")]
    parent = key.rpartition(".")[0]
    sections = sorted(dict.fromkeys(k.split(".")[0] for k in keys))
    beside = [k for k in keys if k.rpartition(".")[0] == parent] if parent else []
    hint = _of_a_sweep(key, sections) or _other_name(key, keys, sections) or did_you_mean(key, [*keys, *sections]) or _nearest_leaf(key, keys)
    return UnknownKey(key, f"{key}{at(key)}: no such key", allowed=", ".join(sorted(allowed or beside or sections)), fix=hint)


def _of_a_sweep(key: str, sections: list[str]) -> str | None:
    group = key.split(".")[0]
    return f"{group} is for sweeps: llmtrain VERB -m {key}=…" if group in ("sweep", "launcher") and group not in sections else None


def _other_name(key: str, keys: list[str], sections: list[str]) -> str | None:
    """What a key is called here, in which section it stands, or which option of its group has it."""
    group, _, leaf = key.rpartition(".")
    options = [option for option in groups().get(group, []) if leaf in (kind := read_yaml(shipped_dir() / group / f"{option}.yaml")) and "kind" in kind]
    if options:
        return f"{' and '.join(f'{group}={option}' for option in options)} {'has' if len(options) == 1 else 'have'} it"
    known = ELSEWHERE.get(leaf, key)
    if known != key and known.split(".")[0] in sections:
        return f"did you mean {known!r}?"
    elsewhere = [k for k in keys if k.rpartition(".")[2] == leaf and k != key]
    return f"did you mean {elsewhere[0]!r}?" if elsewhere else None


def _nearest_leaf(key: str, keys: list[str]) -> str | None:
    near = difflib.get_close_matches(key.rpartition(".")[2], [k.rpartition(".")[2] for k in keys], n=1, cutoff=0.7)
    return f"did you mean {next(k for k in keys if k.rpartition('.')[2] == near[0])!r}?" if near else None


def at(key: str) -> str:
    """` (file:line)` of a key in the user's own YAML files; nothing where its value does not come from there."""
    if any(key == typed or key.startswith(f"{typed}.") for typed in _sources.typed):
        return ""
    for path, prefix in _sources.files:
        if not prefix or key.startswith(f"{prefix}."):
            line = _line(yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader), key.removeprefix(f"{prefix}.").split("."))
            if line:
                return f" ({path}:{line})"
    return ""


def _line(node: yaml.Node | None, trail: list[str]) -> int | None:
    if not isinstance(node, yaml.MappingNode):
        return None
    for name, value in node.value:
        if name.value == trail[0]:
            return name.start_mark.line + 1 if len(trail) == 1 else _line(value, trail[1:])
    return None


def _mentioned(user_dir: Path | None, option: str) -> str:
    """` (file:line)` of the first defaults list of the user's that names an option."""
    for path in sorted(user_dir.rglob("*.yaml")) if user_dir else []:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if re.search(rf":\s*{re.escape(option)}\s*(#|$)", line):
                return f" ({path}:{number})"
    return ""


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
