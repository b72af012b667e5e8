"""Runs as their folders tell them: what a report is made from.

    gathered = read([Path("runs/sweep/freezing")])
    gathered.runs         →  one Run for each member, also for those that failed or never started

Nothing here is taken from the clock or from the machine that reads, so the same folders give the same runs.
"""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from llmtrain import files, runtime
from llmtrain.config import parse_yaml, read_yaml
from llmtrain.errors import CheckpointError, ConfigError, DataError, LLMTrainError, shown
from llmtrain.report.study import Run

SWEEP, MEMBERS, RUN, CONFIG = "sweep.json", "members", "run.json", "config.yaml"
VERSION = 1  # of sweep.json
LONGEST = 10_000  # characters of a setting in which references were replaced
DEPTH = 4  # folders below a path in which runs are looked for: runs/ holds verbs, these hold runs and sweeps, sweeps hold members

# Settings that say where a run is kept, on what it runs and what is written down meanwhile: of equal runs they may differ.
# Kept are those beside them that change what is measured: device, precision, callback.early_stopping, checkpoint.export,
# evaluation.*, and trainer.micro_batch_size, gradient_checkpointing and compile, which change what a run costs.
WHERE = (
    "name", "output_dir", "resume", "allow_change", "experiment", "devices", "threads", "deterministic", "distributed", "cache",
    "callback.progress", "callback.metrics", "callback.tracker", "checkpoint.every_steps", "checkpoint.keep_last", "checkpoint.keep_best",
    "data.num_workers", "evaluation.test", "trainer.log_every_steps", "trainer.max_skipped", "trainer.spike_window",
)  # fmt: skip
# Settings that are only what other settings take where nothing else is given: optimizer.lr says what finetune.lr came to.
FALLBACKS = ("finetune.lr", "finetune.epochs", "finetune.batch_size", "finetune.weight_decay")
SWEEPS_OWN = ("sweep", "launcher", "name", "output_dir", "max_members")  # keys of `-m` that are no setting of a member
# What a choice without a dot sets: the kind of a section. Of a model it is a preset, which sets many keys.
SECTIONS = ("finetune", "objective", "data", "schedule", "model")

_REFERENCE = re.compile(r"\$\{([\w.]+)\}")
_TYPED = re.compile(r" (?=[+~]{0,2}[A-Za-z_][\w./@]*=)")  # overrides.txt has blanks between overrides, and may have some in values


@dataclass(frozen=True)
class Gathered:
    """Runs that are to be held against each other.

    Attributes:
        title: the sweep's name, or the names of what was gathered.
        command: of the sweep; empty where there is none, or several.
        notes: what a reader must know of how the runs came to be.
    """

    runs: tuple[Run, ...]
    title: str
    command: str = ""
    notes: tuple[str, ...] = ()


def read(paths: Sequence[Path]) -> Gathered:
    """All runs of some folders: of a run, of a sweep, or of a folder that holds such folders.

    Raises:
        ConfigError: no path is given.
        DataError: there is nothing at a path, or it is no folder.
        CheckpointError: a folder holds no run, or a sweep's own file cannot be read.
    """
    if not paths:
        raise ConfigError("no path of a run or of a sweep is given", fix="llmtrain report runs/sweep/NAME")
    found: dict[Path, Gathered] = {}
    for path in paths:
        for home in _homes(Path(path)):
            found.setdefault(home.resolve(), _sweep(home) if (home / SWEEP).is_file() else _alone(home))
    members = {run.path.resolve() for home, one in found.items() if (home / SWEEP).is_file() for run in one.runs if run.path != Path()}
    kept = {home: one for home, one in found.items() if home not in members}  # a member beside its whole sweep is one run
    runs = tuple(sorted((run for one in kept.values() for run in one.runs), key=lambda run: (str(run.path), run.name)))
    title = next(iter(kept.values())).title if len(kept) == 1 else ", ".join(dict.fromkeys(_named(Path(path)) for path in paths))
    notes = dict.fromkeys(note for one in kept.values() for note in one.notes)
    return Gathered(runs, title, next(iter(kept.values())).command if len(kept) == 1 else "", tuple(notes))


def _named(path: Path) -> str:
    return path.name or path.resolve().name


def _homes(path: Path) -> list[Path]:
    """The folders of runs and sweeps at or below a path.

    Raises:
        DataError, CheckpointError: as `read`.
    """
    path = files.expanded(path)
    if not path.exists():
        raise DataError(f"{path}: there is nothing of this name", allowed="the folder of a run or of a sweep, or a folder that holds some")
    if not path.is_dir():
        raise DataError(f"{path} is a file", allowed="the folder of a run or of a sweep, or a folder that holds some")
    try:
        found = list(_below(path, DEPTH))
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from error
    if not found:
        raise CheckpointError(f"{path} is no run and no sweep, and holds none", allowed=f"a folder with {RUN} or {CONFIG} in it, or with {SWEEP}")
    return found


def _below(path: Path, depth: int) -> Iterator[Path]:
    """Runs and sweeps, each once; what lies inside of one is a part of it."""
    if _is_run(path) or (path / SWEEP).is_file():
        yield path
    elif depth:
        for child in sorted(path.iterdir()):
            if child.is_dir() and not child.is_symlink() and not child.name.startswith("."):
                yield from _below(child, depth - 1)


def _is_run(path: Path) -> bool:
    return (path / RUN).is_file() or (path / CONFIG).is_file()


# --- a sweep ------------------------------------------------------------------------------------------------------


def _sweep(home: Path) -> Gathered:
    """A sweep with all of its members.

    Raises:
        CheckpointError: sweep.json cannot be read.
    """
    content = _book(home / SWEEP)
    entries = [entry for entry in content["members"] if isinstance(entry, dict) and files.is_member(entry.get("name"))]
    typed = [[str(text) for text in _listed(entry.get("overrides"))] for entry in entries]
    shared = set.intersection(*map(set, typed)) if len(typed) > 1 else set()
    own = [tuple(text for text in texts if text not in shared) for texts in typed]
    swept = frozenset(text.partition("=")[0] for texts in own for text in texts)
    verb, further = str(content.get("verb") or "finetune"), _config_dir(content.get("command"))
    members = []
    for entry, texts, differing in zip(entries, typed, own, strict=True):
        folder = home / MEMBERS / entry["name"]
        run = _run(folder, swept, further) if _is_run(folder) else Run(path=Path(), name=entry["name"], verb=verb, status="waiting")
        run = _as_booked(replace(run, name=entry["name"], verb=run.verb or verb, overrides=differing), entry, folder)
        members.append(run if run.command else replace(run, command=_command(verb, further, _by_key([*_common(content, texts), *texts]))))
    runs = [run if run.settings else replace(run, settings=_supposed(run, members)) for run in members]
    runs = [run if _is_run(home / MEMBERS / run.name) else replace(run, seed=_seed(run.settings)) for run in runs]
    return Gathered(tuple(runs), str(content.get("name") or _named(home)), shlex.join(_words(content.get("command"))), tuple(_remarks(content)))


def _book(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["version"] != VERSION:
            raise ValueError(f"version {shown(content['version'])}; this llmtrain reads {VERSION}")
        if not isinstance(content["members"], list):
            raise ValueError("`members` is no list")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}", fix=f"the paths of its members, {path.parent / MEMBERS}/*, can be given one by one") from error
    return dict(content)


def _as_booked(run: Run, entry: Mapping[str, Any], folder: Path) -> Run:
    """A member as its folder and the sweep's book tell it: that it finished is said by its folder, why a process died by the book."""
    status, reason = str(entry.get("status") or "waiting"), str(entry.get("reason") or "")
    if run.status == "finished" and status != "running":
        status, reason = "finished", ""
    elif run.status == "failed" and run.reason and status in ("finished", "waiting"):
        status, reason = "failed", run.reason
    elif status == "finished" or (status == "running" and runtime.in_use(folder) is None):
        status, reason = "stopped", reason or "it ended before it could say how"
    seconds = _number(entry.get("seconds"))
    wall = seconds if seconds > 0 and (_starts(folder) > 1 or math.isnan(run.wall_seconds)) else run.wall_seconds
    return replace(run, status=status, reason=_line(reason or (run.reason if status != "finished" else "")), wall_seconds=wall)


def _supposed(run: Run, members: Sequence[Run]) -> Mapping[str, Any]:
    """Settings of a member that never started: those of one that differs in its seed alone, else what all have in common, with its own overrides."""
    known = [one for one in members if one.settings]
    own = {_key(text): _value(text) for text in run.overrides}
    if not known:
        return own
    without_seed = {text for text in run.overrides if not text.startswith("seed=")}
    like = next((one for one in known if {text for text in one.overrides if not text.startswith("seed=")} == without_seed), None)
    if like is not None:
        return {**like.settings, "seed": own.get("seed", like.seed)}
    first = known[0].settings
    return {key: value for key, value in first.items() if all(one.settings.get(key, ...) == value for one in known)} | own


def _key(override: str) -> str:
    key = override.partition("=")[0].lstrip("+~")
    return f"{key}.kind" if key in SECTIONS else key


def _value(override: str) -> Any:
    text = override.partition("=")[2]
    try:
        found = _as_json(parse_yaml(text, override))
    except ConfigError:
        return text
    return float(found) if isinstance(found, str) and re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", found) else found


def _as_json(tree: Any) -> Any:
    """What YAML says, as JSON can: a date and other things that no setting is become text, and so does what is no text as a key."""
    if isinstance(tree, dict):
        return {str(key): _as_json(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_as_json(value) for value in tree]
    return tree if isinstance(tree, str | int | float | None) else str(tree)


def _common(content: Mapping[str, Any], own: Sequence[str]) -> list[str]:
    """What was typed for all members alike."""
    labels = [pair for entry in content["members"] if isinstance(entry, dict) for pair in _listed(entry.get("label"))]
    taken = {text.partition("=")[0] for text in own} | {str(pair[0]) for pair in labels if isinstance(pair, list) and pair}
    typed = [str(text) for text in _listed(content.get("overrides"))]
    return [text for text in typed if text.partition("=")[0] not in taken and text.partition("=")[0].split(".")[0] not in SWEEPS_OWN]


def _remarks(content: Mapping[str, Any]) -> Iterator[str]:
    """What must be known of a sweep before its times and rows are compared."""
    yield from (str(note) for note in _listed(content.get("notes")))
    launcher, plan = content.get("launcher"), content.get("plan")
    jobs = launcher.get("jobs") if isinstance(launcher, dict) else None
    if isinstance(jobs, int) and 1 < jobs < 10**6:
        yield f"{jobs} members ran at a time, on shared processors where they ran on one machine: each alone is faster"
    if isinstance(plan, dict) and plan.get("stored"):
        spent = _number(plan.get("store_seconds"))
        about = f", expected to take {spent:.0f} s" if spent >= 1 else ""
        yield f"what frozen layers make of the data was computed once for all members{about}; it is in no row's time"


# --- a run --------------------------------------------------------------------------------------------------------


def _alone(home: Path) -> Gathered:
    return Gathered((_run(home),), _named(home))


@dataclass
class _Folder:
    """What could be read of a run's folder; what could not is in `faults`."""

    config: dict[str, Any] = field(default_factory=dict)
    record: dict[str, Any] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)


def _run(home: Path, swept: frozenset[str] = frozenset(), further: str = "") -> Run:
    """A run; one whose files cannot be read is one that failed.

    Args:
        swept: keys in which the members of its sweep differ: they stay among its settings, whatever they are.
        further: options of the command that are no settings.
    """
    opened = _opened(home)
    record = opened.record
    changed = _changes(record)
    config = _changed(flat(opened.config), changed)
    settings = _settings(opened.config, config, swept)
    if changed:
        settings["changes"] = "; ".join(map(_change, changed))
    best, cost, freezing = (_mapping(record.get(name)) for name in ("best", "cost", "freezing"))
    sections = tuple({"section": name, **_mapping(facts)} for name, facts in _mapping(freezing.get("sections")).items())
    metric = str(best.get("metric") or metric_of(config))
    named = str(config.get("callback.metrics.file") or "metrics.jsonl")
    curve, other, remark = _records(home / (named if files.is_member(named) else "metrics.jsonl"))
    status, reason = _status(home, opened)
    verb = str(record.get("verb") or ("finetune" if "cache.use" in config else "pretrain"))
    overrides = _overrides(home)
    predictions = home / "predictions.jsonl"
    return Run(
        path=home,
        name=_named(home),
        verb=verb,
        status=status,
        reason=_line(reason),
        settings=settings,
        overrides=overrides,
        seed=_seed(config),
        validation=numbers(record.get("validation")),
        test=numbers(record.get("test")),
        references=numbers(record.get("references")),
        metric=metric,
        higher=best["higher"] if isinstance(best.get("higher"), bool) else directions(settings).get(metric, False),
        parameters=_sum(sections, "parameters"),
        trainable=_sum(sections, "trainable"),
        sections=sections,
        wall_seconds=_wall(home, record, cost),
        train_seconds=_number(cost.get("train_seconds")),
        peak_memory_mb=_number(cost.get("peak_memory_mb")),
        disk_mb=_number(cost.get("disk_mb")),
        curve=curve,
        train_curve=other,
        command=_command(verb, further or _config_dir(record.get("command")), _after(_pinned(overrides, opened.config), changed))
        if overrides or config
        else "",
        predictions=predictions if predictions.is_file() else None,
        machine=_mapping(record.get("device")),
        versions={str(name): str(version) for name, version in _mapping(record.get("versions")).items()},
        warnings=tuple(map(str, _listed(record.get("warnings")))) + tuple(map(_change, changed)) + remark,
        started=str(record.get("started") or ""),
    )


def _changes(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What resumes of the run changed, in their order: step, key, before and after of each."""
    return [change for change in _listed(record.get("changes")) if isinstance(change, dict) and isinstance(change.get("key"), str)]


def _change(change: Mapping[str, Any]) -> str:
    return f"{change['key']} was {change.get('before')} up to step {change.get('step')} and {change.get('after')} from there on"


def _of_kinds(changes: Sequence[Mapping[str, Any]]) -> frozenset[str]:
    """Sections that became of another kind: they have other keys."""
    return frozenset(change["key"].removesuffix(".kind") for change in changes if change["key"].endswith(".kind"))


def _changed(config: dict[str, Any], changes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The config as it is since the last change; config.yaml says what the run was started with."""
    found = dict(config)
    for change in changes:
        key = change["key"]
        if key.startswith("derived."):
            continue
        if change.get("after") is None and _is_of(key, tuple(_of_kinds(changes))):
            found.pop(key, None)
        else:
            found[key] = change.get("after")
    return found


def _after(overrides: Sequence[str], changes: Sequence[Mapping[str, Any]]) -> list[str]:
    """Overrides with the values that keys have since the last change. A section of another kind is left: its name is not known here."""
    last = {c["key"]: c.get("after") for c in changes if not c["key"].startswith("derived.") and not _is_of(c["key"], tuple(_of_kinds(changes)))}
    return [text for text in overrides if text.lstrip("+").partition("=")[0] not in last] + [f"{key}={_typed(value)}" for key, value in last.items()]


def _typed(value: Any) -> str:
    """A value as it is typed in an override."""
    return value if isinstance(value, str) else json.dumps(value)


def _opened(home: Path) -> _Folder:
    found = _Folder()
    if (home / CONFIG).is_file():
        try:
            content = read_yaml(home / CONFIG)
            found.config = _as_json(content) if isinstance(content, dict) else {}
            found.faults += [] if found.config else [f"{CONFIG} holds no settings"]
        except LLMTrainError as error:
            found.faults.append(f"{CONFIG} cannot be read: {error.what.removeprefix(f'{home / CONFIG}: ')}")
    if (home / RUN).is_file():
        try:
            content = json.loads((home / RUN).read_text(encoding="utf-8"))
            found.record = content if isinstance(content, dict) else {}
            found.faults += [] if isinstance(content, dict) else [f"{RUN} holds no record"]
        except (OSError, ValueError, RecursionError) as error:
            found.faults.append(f"{RUN} cannot be read: {error}")
    return found


def _status(home: Path, opened: _Folder) -> tuple[str, str]:
    """What became of a run, and why."""
    if opened.faults:
        return "failed", opened.faults[0]
    if not opened.record:
        return ("running", "") if runtime.in_use(home) else ("stopped", "it ended before it could say how")
    status = str(opened.record.get("status") or "failed")
    return (status, str(opened.record.get("error") or "")) if status in ("finished", "stopped", "failed") else ("failed", f"{RUN} has the status {status!r}")


def _records(path: Path) -> tuple[tuple[Mapping[str, float], ...], tuple[Mapping[str, float], ...], tuple[str, ...]]:
    """(evaluations, other records, what could not be read). A kill can leave half a line at the end, which is no fault."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    except OSError:
        return (), (), ()
    evaluations: list[Mapping[str, float]] = []
    others: list[Mapping[str, float]] = []
    broken = 0
    for number, line in enumerate(lines):
        try:
            record = numbers(json.loads(line))
        except (ValueError, RecursionError):
            broken += number < len(lines) - 1
            continue
        if record:
            (evaluations if any(key.startswith("validation_") for key in record) else others).append(record)
    remark = (f"{path.name}: {broken} line{'s' * (broken > 1)} could not be read",) if broken else ()
    return tuple(evaluations), tuple(others), remark


def _starts(home: Path) -> int:
    """How often the run was started: overrides.txt has a line for each."""
    try:
        return len((home / "overrides.txt").read_text(encoding="utf-8", errors="replace").splitlines())
    except OSError:
        return 0


def _wall(home: Path, record: Mapping[str, Any], cost: Mapping[str, Any]) -> float:
    """Seconds from start to end. Of a run that was gone on with, run.json knows the last start alone: then nobody knows them."""
    wall = _number(record.get("wall_seconds"))
    busy = sum(_number(cost.get(name)) for name in ("train_seconds", "evaluation_seconds"))
    return math.nan if _starts(home) > 1 and wall < busy else wall


# --- settings -----------------------------------------------------------------------------------------------------


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Leaves of a tree by their whole key, `a.b.c`; a list is a leaf."""
    if not isinstance(tree, dict):
        return {prefix: tree}
    return {key: value for name, child in tree.items() for key, value in flat(child, f"{prefix}.{name}" if prefix else str(name)).items()}


def _settings(tree: Mapping[str, Any], config: dict[str, Any], swept: frozenset[str]) -> dict[str, Any]:
    """The settings that say what a run is, each with its value: of `${finetune.lr}` that of finetune.lr. What follows from the seed is left out.

    A resolver such as `${oc.env:…}` stays as text: it could bring into a report what is nobody's business.
    """
    found: dict[str, Any] = {}
    known: dict[tuple[str, int], Any] = {}
    for key, value in config.items():
        from_seed = key != "seed" and isinstance(value, str) and "seed" in _REFERENCE.findall(value)
        if from_seed or key in FALLBACKS or (_is_of(key, WHERE) and not _is_of(key, tuple(swept))):
            continue
        found[key] = _resolved(value, config, known)
    return found


def _is_of(key: str, sections: Sequence[str]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in sections)


def _resolved(value: Any, config: Mapping[str, Any], known: dict[tuple[str, int], Any], depth: int = 8) -> Any:
    """A value with plain references to other keys replaced by what they refer to, unless they make a page of it.

    Args:
        known: key and depth → what was found there before: references to references are looked up once.
    """

    def meant(key: str) -> Any:
        if (key, depth) not in known:
            known[key, depth] = _resolved(config[key], config, known, depth - 1)
        return known[key, depth]

    if isinstance(value, list):
        return [_resolved(item, config, known, depth) for item in value]
    if not isinstance(value, str) or not depth:
        return value
    whole = _REFERENCE.fullmatch(value)
    if whole is not None:
        return meant(whole[1]) if whole[1] in config else value
    found = _REFERENCE.sub(lambda match: str(meant(match[1]))[:LONGEST] if match[1] in config else match[0], value)
    return found if len(found) <= LONGEST else value


def _seed(config: Mapping[str, Any]) -> int:
    seed = config.get("seed", 0)
    return seed if isinstance(seed, int) else 0


def metric_of(settings: Mapping[str, Any]) -> str:
    """The metric that decides in a run of these settings."""
    named = settings.get("evaluation.best_metric")
    return str(named) if named is not None else str(getattr(_objective(settings), "best_metric", "loss"))


def directions(settings: Mapping[str, Any]) -> dict[str, bool]:
    """Of each metric of the objective, whether more of it is better; empty where the objective is not known here."""
    found = getattr(_objective(settings), "metric_directions", {})
    return {name: direction.value == "higher" for name, direction in found.items()}


def _objective(settings: Mapping[str, Any]) -> type | None:
    """The class of the objective; None where it is of a package that is not installed."""
    from llmtrain.config import _kind
    from llmtrain.objective.base import Objective

    try:
        return _kind(str(settings.get("objective.kind")), Objective, "objective")
    except (LLMTrainError, ImportError, AttributeError):
        return None


# --- commands -----------------------------------------------------------------------------------------------------


def _overrides(home: Path) -> tuple[str, ...]:
    """What was typed when the run was first started."""
    try:
        lines = (home / "overrides.txt").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ()
    return tuple(text for text in _TYPED.split(lines[0]) if text) if lines else ()


def _by_key(overrides: Sequence[str]) -> list[str]:
    """The last of each key, where the first of it stood."""
    return list({text.partition("=")[0]: text for text in overrides}.values())


def _pinned(overrides: Sequence[str], config: Mapping[str, Any]) -> list[str]:
    """Overrides with the weights by name that `newest` meant then: tomorrow it means others."""
    model = _mapping(config.get("model"))
    named = next((text for text in overrides if text.startswith("model.checkpoint=")), None)
    meant_newest = named in ("model.checkpoint=newest", None) and not any(text.lstrip("+").startswith(("experiment=", "model=")) for text in overrides)
    if model.get("kind") != "checkpoint" or not isinstance(model.get("checkpoint"), str) or not meant_newest:
        return list(overrides)
    return [*(text for text in overrides if text != named), f"model.checkpoint={model['checkpoint']}"]


def _command(verb: str, further: str, overrides: Sequence[str]) -> str:
    """`llmtrain VERB …` that makes the run again, in a folder of its own."""
    own = [text for text in overrides if text.partition("=")[0] not in ("output_dir", "name", "resume")]
    return " ".join(["llmtrain", shlex.quote(verb), *([further] if further else []), *map(shlex.quote, own)])


def _config_dir(command: Any) -> str:
    """`--config-dir …` of a command, for a shell; empty where it has none."""
    found = ""
    for word, following in pairwise([*_words(command), ""]):
        name, _, value = word.partition("=")
        if name in ("--config-dir", "-cd"):
            found = value or following
    return f"--config-dir {shlex.quote(found)}" if found else ""


def _words(command: Any) -> list[str]:
    """The words of a command of llmtrain, as a shell takes it apart; none where a file holds something else in its place.

    Whoever wrote the file, a reader will copy what a report shows into a shell: put together again, it is one command and no more.
    """
    try:
        found = shlex.split(command) if isinstance(command, str) else []
    except ValueError:  # a quote without its other one
        return []
    return found if found[:1] == ["llmtrain"] else []


# --- values of unknown files --------------------------------------------------------------------------------------


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def numbers(value: Any) -> dict[str, float]:
    """The numbers of a record, nan and inf among them; what else it holds is left out."""
    return {str(name): number for name, number in _mapping(value).items() if files.is_number(number)}


def _number(value: Any) -> float:
    return float(value) if files.is_number(value) else math.nan


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _sum(sections: Sequence[Mapping[str, Any]], name: str) -> int:
    return sum(int(_number(section.get(name))) for section in sections if math.isfinite(_number(section.get(name))))


def _line(text: str) -> str:
    """The first line of an error's screen."""
    return text.strip().splitlines()[0].removeprefix("error: ") if text.strip() else ""
