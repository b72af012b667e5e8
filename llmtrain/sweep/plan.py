"""From points to runs: every member composed, named and told apart before anything starts.

    plan = members(points, compose_member, fixed)                  all at once
    plan = members([point], compose_member, fixed, before=plan)    as a search asks for them; what is known is in `before`

A member is known by a hash of its resolved config. Points with the same hash are one run.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from llmtrain.config import Composed, UnknownKey
from llmtrain.errors import ConfigError
from llmtrain.sweep.base import Point
from llmtrain.sweep.values import key_of

Compose = Callable[[list[str]], Composed]

WHERE = ("output_dir", "name", "resume", "allow_change")  # say where a run is kept, not what it is
# Of two members that differ in these alone, the same is frozen, read and done; what is learned differs.
LEARNING = ("seed", "optimizer", "schedule", "finetune.lr", "finetune.weight_decay")
NAME_LENGTH = 60  # characters of a name, without its hash
VALUE_LENGTH = 24  # characters of one value in it: of a path, its end
DIGITS = 8  # of the hash in a name


@dataclass(frozen=True)
class Member:
    """One run of a sweep.

    Attributes:
        name: of its folder: readable, then some digits of the hash.
        point: what it sets, without what its kinds do not have.
        overrides: all that has to be typed to run it alone.
        config: as composed.
        hash: of the resolved config, 64 digits.
        given: keys that the user gave.
    """

    name: str
    point: Point
    overrides: tuple[str, ...]
    config: DictConfig
    hash: str
    given: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Plan:
    """The runs of a sweep, so far as they are known.

    Attributes:
        members: in the order in which their points came.
        notes: what the user should be told; those of `before` first.
        runs: number of a point → name of the member that is its run.
        keys: keys of overrides that the config of some member has.
    """

    members: tuple[Member, ...] = ()
    notes: tuple[str, ...] = ()
    runs: Mapping[int, str] = field(default_factory=dict)
    keys: frozenset[str] = frozenset()

    def of(self, point: Point) -> Member:
        """The run of a point."""
        return next(member for member in self.members if member.name == self.runs[point.number])


@dataclass(frozen=True)
class _Fitted:
    """A point whose config could be composed, without the overrides that its kinds do not have."""

    point: Point
    overrides: tuple[str, ...]
    composed: Composed
    hash: str
    lacking: tuple[UnknownKey, ...]

    @property
    def readable(self) -> str:
        return _readable(self.point.label, self.composed.config)


def members(points: Sequence[Point], compose_member: Compose, fixed: Sequence[str], before: Plan | None = None) -> Plan:
    """The plan `before`, with the runs of these points.

    A key that the kinds of a point lack is left out of that point, if another point has it: of
    `finetune=features,last_layers` with `finetune.blocks=1,2` the first is one run and not two.

    Args:
        compose_member: a config from overrides. It decides what members are not to decide for themselves, such as which
            weights are the newest: the hash is of what it returns.
        fixed: overrides of all members.

    Raises:
        ConfigError: what `compose_member` refuses; a key that no point has.
    """
    before = before or Plan()
    first = {_kinds_in(point, fixed): point for point in reversed(points)}
    tried = {point: _fit(point, compose_member, fixed) for point in first.values()}  # a misspelt key shows here, not after the last point
    keys = _keys(before.keys, tried.values())
    known = {kinds: [e.key for e in tried[point].lacking] for kinds, point in first.items()}
    fits = [tried.get(point) or _fit(point, compose_member, fixed, known[_kinds_in(point, fixed)]) for point in points]
    found = dataclasses.replace(before, keys=_keys(keys, fits), notes=_with_notes(before.notes, fits))
    return _with_runs(found, fits)


def _keys(before: frozenset[str], fits: Collection[_Fitted]) -> frozenset[str]:
    """Keys that some member has.

    Raises:
        UnknownKey: one was left out, and there is no such member.
    """
    keys = before | {key_of(o) for fitted in fits for o in fitted.overrides}
    for error in (error for fitted in fits for error in fitted.lacking):
        if error.key not in keys:
            raise error
    return keys


def rehearsed(points: Sequence[Point], compose_member: Compose, fixed: Sequence[str]) -> Plan:
    """What can be learned from points that are not run: a plan without members that knows which keys there are.

    It is where the plan of an adaptive search begins. The points are the sweep's `corners`.

    Raises:
        ConfigError: as `members`.
    """
    return dataclasses.replace(members(points, compose_member, fixed), members=(), runs={})


def _kinds_in(point: Point, fixed: Sequence[str]) -> tuple[str, ...]:
    """Those overrides of a point that choose the kinds of sections in which something is set."""
    sections = {key_of(o).split(".")[0] for o in (*fixed, *point.overrides) if "." in key_of(o)} | {"experiment"}
    return tuple(o for o in point.overrides if key_of(o) in sections)


def _fit(point: Point, compose_member: Compose, fixed: Sequence[str], lacking: Iterable[str] = ()) -> _Fitted:
    """Compose a point, leaving out what the kinds that it chooses do not have."""
    left_out = set(lacking)
    errors: list[UnknownKey] = []
    chosen = {key_of(o) for o in _kinds_in(point, fixed)}
    while True:
        kept = tuple(o for o in (*fixed, *point.overrides) if key_of(o) not in left_out)
        try:
            composed = compose_member(list(kept))
            own = tuple(o for o in point.overrides if key_of(o) not in left_out)
            reduced = dataclasses.replace(point, overrides=own, label=tuple(pair for pair in point.label if pair[0] not in left_out))
            return _Fitted(reduced, kept, composed, identity(composed.config), tuple(errors))
        except UnknownKey as error:
            if error.key not in map(key_of, kept) or not chosen & {error.key.split(".")[0], "experiment"}:
                raise
            left_out.add(error.key)
            errors.append(error)


def _with_notes(notes: tuple[str, ...], fits: Sequence[_Fitted]) -> tuple[str, ...]:
    """One line for each kind that lacks a key, and what composing the members has to say; nothing twice."""
    lines = [_left_out(error.key, fitted.composed.config) for fitted in fits for error in fitted.lacking]
    return tuple(dict.fromkeys([*notes, *lines, *(line for fitted in fits for line in fitted.composed.notes)]))


def _left_out(key: str, config: DictConfig) -> str:
    group = key.split(".")[0]
    kind = OmegaConf.select(config, f"{group}.kind")
    return f"{f'{group}={kind}' if kind else group} has no {key}: it is left out there"


def _with_runs(plan: Plan, fits: Sequence[_Fitted]) -> Plan:
    """`plan` with a member for each hash that is new."""
    known = {member.hash: member for member in plan.members}
    equal: dict[str, list[_Fitted]] = {}
    for fitted in fits:
        equal.setdefault(fitted.hash, []).append(fitted)
    hashes, notes = {*known, *equal}, []
    for digest, alike in equal.items():
        new = digest not in known
        if new:
            known[digest] = _member(min(alike, key=lambda f: (len(f.readable), f.readable, f.overrides)), hashes)
        again = len(alike) - new
        if again:
            notes.append(f"{again} more point{' is' if again == 1 else 's are'} the same run as {known[digest].name}, which runs once")
    runs = {fitted.point.number: known[fitted.hash].name for fitted in fits}
    return dataclasses.replace(plan, members=tuple(known.values()), notes=(*plan.notes, *notes), runs={**plan.runs, **runs})


def _member(fitted: _Fitted, hashes: set[str]) -> Member:
    """The name of a run that several points mean is that of the shortest, so it does not depend on which came first."""
    alike = [h for h in hashes if h[:DIGITS] == fitted.hash[:DIGITS]]
    name = f"{fitted.readable}-{fitted.hash if len(alike) > 1 else fitted.hash[:DIGITS]}"
    return Member(name, fitted.point, fitted.overrides, fitted.composed.config, fitted.hash, frozenset(fitted.composed.given))


def _readable(label: Iterable[tuple[str, str]], config: DictConfig) -> str:
    """What a member sets, as part of a file name. No commas: on a command line they would make a sweep of the path."""
    words = []
    for key, text in label:
        short = text[-VALUE_LENGTH:]
        chooses = "." not in key and (key not in config or OmegaConf.is_config(config[key]))  # an option of a group, or an experiment
        words.append(short if chooses else f"{key.rpartition('.')[2]}={short}")
    return re.sub("[^A-Za-z0-9=._-]", "_", "-".join(words))[:NAME_LENGTH].strip("._-") or "run"


# --- what makes two members the same ------------------------------------------------------------------------------


def identity(config: DictConfig) -> str:
    """sha256 of a resolved config, without where it is kept: the same on every start and machine.

    Raises:
        ConfigError: an interpolation that cannot be resolved.
    """
    return _digest(config, WHERE)


def interchangeable(config: DictConfig) -> str:
    """Equal for members that freeze, read and do the same, whatever their seed and learning rate: what one costs, the other does."""
    return _digest(config, (*WHERE, *LEARNING))


def _digest(config: DictConfig, without: Iterable[str]) -> str:
    try:
        tree: Any = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(str(error).splitlines()[0], fix="name a key that exists, or set the variable") from error
    for key in without:
        *sections, leaf = key.split(".")
        node = tree
        for section in sections:
            node = node.get(section) or {}
        node.pop(leaf, None)
    return hashlib.sha256(json.dumps(_canonical(tree), sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()).hexdigest()


def _canonical(tree: Any) -> Any:
    """3.0 is 3: which of the two was typed makes no other run."""
    if isinstance(tree, dict):
        return {str(key): _canonical(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_canonical(value) for value in tree]
    return int(tree) if isinstance(tree, float) and tree.is_integer() else tree
