"""Sweeps: `llmtrain finetune -m …` and `llmtrain pretrain -m …`, and looking at them with `llmtrain sweep`.

A sweep composes all its members first, finds out together what of them can be computed once, prints the plan, and then
runs each in a process of its own. Its folder has a book, sweep.json; the same command goes on from there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from llmtrain import files, processes, runtime
from llmtrain.command import train
from llmtrain.command.parts import Parts, asks_newest, fits, parts
from llmtrain.config import Composed, Typed, build, by_name, compose, groups, multirun, section
from llmtrain.errors import CheckpointError, ConfigError, LLMTrainError, Stopped, masked, printable, shown
from llmtrain.launcher.base import Handle, Job, Launcher, Start
from llmtrain.report import files as report
from llmtrain.sweep import plan as plans
from llmtrain.sweep.base import Point, Search, Space, Sweep
from llmtrain.sweep.book import FILE, Book, Entry, Status
from llmtrain.sweep.moved import Meaning, meanings
from llmtrain.sweep.running import carry_out

if TYPE_CHECKING:
    from rich.console import Console

    from llmtrain.frozen import Question

TAKES_WORDS = True  # cli.py asks: `sweep status NAME`
ACTIONS = "list, status NAME, resume NAME"
STORE, PLAN, PROGRESS, LOG = "store", "plan.json", "progress.json", runtime.OUTPUT
IN_USE = 76  # what a member's process ends with where another one has its folder; no error has this code
STARTUP_S = 3.0  # of a member before its first update, as estimates count it: data and weights read, the model looked at


def primary(word: str) -> str:
    """The config of `llmtrain sweep …`: that of a sweep's own settings."""
    return "multirun"


def command(composed: Composed, overrides: list[str], words: list[str], *, retry_failed: bool = False) -> int:
    """`llmtrain sweep [list]`, `sweep status NAME`, `sweep resume NAME [--retry-failed]`."""
    action, *names = words or ["list"]
    if action == "list" and not names:
        return _list(runtime.make_console())
    if action not in ("status", "resume") or len(names) != 1:
        raise ConfigError(f"sweep {' '.join(words)}: not something to do with sweeps", allowed=ACTIONS)
    book = Book.opened(_folder(names[0]))
    if book is None:
        known = ", ".join(path.parent.name for path in sorted(Path("runs/sweep").glob("*/sweep.json"))) or "none"
        raise CheckpointError(f"sweep {action} {names[0]}: no such sweep", allowed=known, fix="the name of a folder below runs/sweep, or a path")
    if action == "status":
        return _status(runtime.make_console(), book)
    if not {"verb", "overrides"} <= book.about.keys():
        raise CheckpointError(f"{book.folder / FILE} does not say what the sweep is", fix="give the command that started it")
    return sweep(str(book.about["verb"]), list(book.about["overrides"]), _config_dir(book), retry_failed=retry_failed, folder=book.folder)


def _folder(name: str) -> Path:
    return Path(name) if (Path(name) / "sweep.json").is_file() else Path("runs/sweep") / name


def _by_path(folder: Path) -> str:
    """The command that goes on with a sweep that is elsewhere than the command that started it would look from here."""
    return f"llmtrain sweep resume {shlex.quote(str(folder))}"


def _config_dir(book: Book) -> Path | None:
    """The folder of YAML files that a sweep was started with: from the directory where that was, if it is still there."""
    if not book.about.get("config_dir"):
        return None
    typed = files.expanded(str(book.about["config_dir"]))
    there = Path(str(book.about.get("directory") or "")) / typed
    return there if os.path.isdir(there) and not (os.path.isdir(typed) and typed.samefile(there)) else typed


# --- a sweep, from top to bottom ----------------------------------------------------------------------------------


@dataclass
class Plan:
    """A sweep before it starts.

    Attributes:
        typed: what stood on the command line, sorted.
        again: the command that goes on with it.
        member: composes a member from its overrides.
        about: what the book keeps of it.
        plan: the members, so far as they are known; of a search, those that it asked for.
        notes: what the user should be told besides the plan's notes.
    """

    verb: str
    typed: Typed
    sweep: Sweep
    launcher: Launcher
    space: Space
    folder: Path
    again: str
    about: dict[str, Any]
    member: Callable[[list[str]], Composed]
    plan: plans.Plan
    notes: list[str] = field(default_factory=list)

    @property
    def configs(self) -> dict[str, DictConfig]:
        return {one.name: one.config for one in self.plan.members}

    def with_point(self, point: Point) -> plans.Member:
        """The run of a point that a search asks for."""
        self.plan = plans.members([point], self.member, self.typed.fixed, self.plan)
        return self.plan.of(point)


def sweep(
    verb: str, overrides: list[str], config_dir: Path | None = None, *, retry_failed: bool = False, show: bool = False, folder: Path | None = None
) -> int:
    """Run `llmtrain VERB -m OVERRIDES`. Returns 0 where every member has finished, 1 where some have not.

    Args:
        retry_failed: failed members are tried again, which are otherwise left as they are.
        show: only print what would run.
        folder: of a sweep that is gone on with, wherever its overrides would put it from here; None: there.

    Raises:
        ConfigError: whatever can be known to be wrong before anything runs.
        Stopped: a signal came; every running member has saved.
    """
    if verb not in ("pretrain", "finetune"):
        raise ConfigError(f"-m: {verb} runs once", allowed="pretrain, finetune")
    console = runtime.make_console()
    options = groups(config_dir)  # their names are known, and no secrets
    overrides = [text if text.partition("=")[0] in options else str(by_name(text)) for text in overrides]  # from here on in the book and in every member
    found = planned(verb, overrides, config_dir, rehearse=show, folder=folder)
    for line in dict.fromkeys([*found.notes, *found.plan.notes]):
        console.print(f"note: {line}", soft_wrap=True)
    if show:
        console.print("\n".join(found.configs) or OmegaConf.to_yaml(found.about["sweep"]), soft_wrap=True)
        return 0
    found.folder.mkdir(parents=True, exist_ok=True)
    with runtime.locked(found.folder):
        book = _book(found, retry_failed)
        event = runtime.Flag()
        with runtime.stopping_on_signals(event), found.launcher.opened(found.folder / STORE) as start:
            _run(found, book, start, event, console)
        return _last_words(found, book, console, event)


def planned(verb: str, overrides: list[str], config_dir: Path | None, *, rehearse: bool = False, folder: Path | None = None) -> Plan:
    """Everything that is known of a sweep before a process starts: each member is composed and checked.

    Args:
        rehearse: where there are no pretrained weights yet, do not make any: the members are those of the model that would be made.
        folder: as `sweep` has it.

    Raises:
        ConfigError: the sweep's own settings, or those of any member.
    """
    typed = multirun(overrides, config_dir)
    own = compose("multirun", typed.own, config_dir)
    name, limit = _checked_name(section(own.config, "name"), verb, overrides), section(own.config, "max_members")
    if not isinstance(limit, int) or limit < 1:
        raise ConfigError(f"max_members={limit}", allowed="1 or more")
    search, launcher = build(section(own.config, "sweep"), Sweep, "sweep"), build(section(own.config, "launcher"), Launcher, "launcher")
    output_dir = section(own.config, "output_dir")
    usual = Path(output_dir) if output_dir else Path("runs/sweep") / name
    folder = folder or usual
    earlier = Book.opened(folder)
    newest = {} if earlier is None or not earlier.about.get("newest") else {"newest": str(earlier.about["newest"])}  # it keeps what it started from
    if verb == "finetune" and not (rehearse or newest or runtime.finished_runs("pretrain")):
        planned(verb, overrides, config_dir, rehearse=True, folder=folder)  # what is wrong is said before minutes go into a small model

    def member(extra: list[str]) -> Composed:
        composed = compose(verb, extra, config_dir)
        _name_newest(composed.config, verb, newest, rehearse)
        return composed

    def common() -> Parts:
        """What all members have, but for settings of modes, which not every mode has."""
        return parts(member([text for text in typed.fixed if not text.startswith("finetune.")]).config)

    space = Space(swept=typed.swept, given=typed.given, limit=limit, depth=lambda: _depth(common()), metric=lambda: _metric(common(), search.decides))
    points = search.corners(space) if search.adaptive else search.points(space)
    made = plans.members(points, member, typed.fixed)
    moved = _meant_elsewhere(earlier, [one.config for one in made.members]) if earlier is not None else []
    for one in made.members:
        fits(parts(one.config))
    if search.adaptive:  # it asks for its points when it knows more: these have shown that the space is sound
        made = dataclasses.replace(made, members=(), runs={})
    options = ["-m"] if config_dir is None else ["-m", "--config-dir", str(config_dir)]
    about = {
        "name": os.path.basename(os.path.abspath(folder)), "verb": verb, "command": shlex.join(["llmtrain", verb, *options, *overrides]),
        "overrides": overrides, "directory": masked(os.getcwd()), "folder": masked(os.path.abspath(folder)),
        "config_dir": None if config_dir is None else str(config_dir), "newest": newest.get("newest"),
        "sweep": OmegaConf.to_container(own.config.sweep, resolve=True), "launcher": OmegaConf.to_container(own.config.launcher, resolve=True),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S"),
    }  # fmt: skip
    again = about["again"] = about["command"] if os.path.abspath(folder) == os.path.abspath(usual) else _by_path(folder)
    notes = [*own.notes, *moved, *(f"sweep.{key} has no effect: {why}" for key, why in search.without_effect().items() if f"sweep.{key}" in own.given)]
    if "sweep.seeds" in own.given and "seed" in typed.given | {override.key_or_group for override in typed.swept}:
        notes.append("sweep.seeds has no effect: the seeds are named")
    return Plan(verb, typed, search, launcher, space, folder, str(again), about, member, made, notes)


def _meant_elsewhere(book: Book, configs: list[DictConfig]) -> list[str]:
    """Notes on relative paths where a sweep is gone on with in another directory than the one it was started in.

    Raises:
        ConfigError: one of them leads to something else from here, which members that have run did not see.
    """
    there, here = Path(str(book.about.get("directory") or ".")), Path.cwd()
    found = meanings(there, here, configs) if there.absolute() != here else {}
    other = [text for text, meaning in found.items() if meaning is Meaning.other]
    if other:
        raise ConfigError(
            f"{book.folder}: {shown(other[0])} is not the same from here as from {there}, where the sweep was started",
            fix=f"cd {shlex.quote(str(there))} && llmtrain sweep resume {shlex.quote(os.path.abspath(book.folder))}",
        )
    moved = [text for text, meaning in found.items() if meaning is Meaning.moved]
    return [f"the sweep was started in {there}, where {', '.join(moved)} is no more: it is taken from here"] if moved else []


def _checked_name(name: Any, verb: str, overrides: list[str]) -> str:
    """The sweep's name; by default one that the same command has again."""
    if name is None:
        return f"{verb}-{hashlib.sha256(json.dumps([verb, sorted(overrides)]).encode()).hexdigest()[:8]}"
    if not (isinstance(name, str) and runtime.NAME.fullmatch(name)) or name in (".", ".."):
        raise ConfigError(f"name={shown(name)}", allowed="1 to 100 letters, digits, '.', '_' or '-'")
    return name


def _name_newest(config: DictConfig, verb: str, newest: dict[str, str], rehearse: bool) -> None:
    """Let `newest` mean the same weights for all members, on this start and the next."""
    if asks_newest(config):
        if rehearse and verb == "finetune" and not (newest or runtime.finished_runs("pretrain")):
            config.model = train.small_model(config)
            return
        if "newest" not in newest:
            train.name_newest(config, verb)
            newest["newest"] = str(config.model.checkpoint)
        config.model.checkpoint = newest["newest"]


def _depth(parts: Parts) -> int:
    """Blocks of the model.

    Raises:
        ConfigError: it has no single number of them.
    """
    if parts.model.blocks is None:
        raise ConfigError("sweep=freezing: the model has no single number of blocks", fix="-m finetune=features,full, or another model")
    return parts.model.blocks


def _metric(parts: Parts, wanted: str | None) -> tuple[str, bool]:
    """The metric that decides, and whether more of it is better.

    Raises:
        ConfigError: the objective has no such metric.
    """
    name = wanted or parts.evaluation.best_metric or parts.objective.best_metric
    if name not in parts.objective.metric_directions:
        raise ConfigError(f"sweep.metric={name}: the objective has no such metric", allowed=", ".join(parts.objective.metric_directions))
    return name, parts.objective.metric_directions[name].value == "higher"


# --- the book -----------------------------------------------------------------------------------------------------


def _book(found: Plan, retry_failed: bool) -> Book:
    """The book of this sweep, new or gone on with.

    Raises:
        ConfigError: the folder holds another sweep, or something that is none.
    """
    book = Book.opened(found.folder)
    if book is None:
        if any(not path.name.startswith(".lock") for path in found.folder.iterdir()):
            raise ConfigError(f"{found.folder} is not empty and not a sweep", fix="name=NAME or output_dir=FOLDER names another place")
        book = Book(found.folder, found.about)
    elif not found.sweep.adaptive and (gone := [name for name in book.entries if name not in found.configs]):
        raise ConfigError(
            f"{found.folder} is another sweep: it has {len(gone)} members that this one has not, such as {gone[0]}", fix="name=NAME starts this one elsewhere"
        )
    elif found.sweep.adaptive and (kind := book.about.get("sweep", {}).get("kind")) != found.about["sweep"]["kind"]:
        raise ConfigError(f"{found.folder} is another sweep: sweep={kind}", fix="name=NAME starts this one elsewhere")
    notes = list(dict.fromkeys([*found.notes, *found.plan.notes]))
    book.about = {**found.about, "started": book.about.get("started", found.about["started"]), "plan": book.about.get("plan") or {}, "notes": notes}
    known = {one.name: book.entries.get(one.name) or _entry(one) for one in found.plan.members}
    book.entries = known or book.entries
    for entry in book.entries.values():
        _looked_at(book, entry, retry_failed)
    book.save()
    return book


def _entry(member: plans.Member) -> Entry:
    return Entry(member.name, list(member.point.overrides), [list(pair) for pair in member.point.label], number=member.point.number)


def _looked_at(book: Book, entry: Entry, retry_failed: bool) -> None:
    """What a member's own folder says of it, which counts more than what the book remembers."""
    record = _record(book.home(entry))
    if record.get("status") == "finished" and (book.home(entry) / "final" / files.MANIFEST).is_file():
        entry.status, entry.reason, entry.exit_code = Status.finished, "", 0
    elif entry.status in (Status.running, Status.finished) or (entry.status is Status.failed and retry_failed):
        entry.status, entry.reason = Status.stopped, ""


def _record(folder: Path) -> dict[str, Any]:
    """run.json of a member; empty where there is none that can be read."""
    try:
        found = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _result(record: dict[str, Any]) -> tuple[str, float | None]:
    """The metric that decided in a run, and its value; what is no such thing in the record is left out."""
    best, validation = record.get("best"), record.get("validation")
    name = str(best.get("metric", "loss")) if isinstance(best, dict) else "loss"
    value = validation.get(name) if isinstance(validation, dict) else None
    return name, value if isinstance(value, float) else None


# --- running ------------------------------------------------------------------------------------------------------


def _run(found: Plan, book: Book, start: Start, event: runtime.Flag, console: Console) -> None:
    """Survey, store what is shared, and run all members that have not ended."""
    search = found.sweep.search(found.space, found.folder)
    console.print(f"sweep {book.about['name']} in {found.folder}, {found.launcher.jobs} at a time", soft_wrap=True)
    _wait_for_earlier(found, book, event, console)
    if event.is_set():
        return
    open_ones = book.with_status(Status.waiting, Status.stopped)
    done = len(book.with_status(Status.finished))
    if not found.sweep.adaptive:
        kept = len(book.with_status(Status.failed))
        there = f", {done} finished before" if done else ""
        failed = f", {kept} failed before and left as they are (--retry-failed tries them again)" if kept else ""
        console.print(f"{_members(len(book.entries))}{there}{failed}, {len(open_ones)} to run")
        if open_ones and found.verb == "finetune":
            _together(found, book, open_ones, start, event, console)
    screen = _Screen(console, book, None if found.sweep.adaptive else len(open_ones))
    asking = _Asking(found, book, search) if found.sweep.adaptive else None

    def ended(entry: Entry, code: int, pruned: bool) -> None:
        _settle(book, entry, code, pruned)
        screen.ended(entry)
        if asking is not None:
            asking.ended(entry)

    with screen:
        carry_out(
            book, asking or _in_order(open_ones), lambda entry: _begin(found, book, entry, start), ended,
            jobs=found.launcher.jobs, interrupted=event.is_set, tick=screen.tick,
            watch=_Watch(book, search, asking.metric) if asking is not None else (lambda entry: False),
        )  # fmt: skip


def _wait_for_earlier(found: Plan, book: Book, event: runtime.Flag, console: Console) -> None:
    """Wait for processes of this sweep's last start, if it was killed a moment ago: they save and end, and hold their members' folders until then."""
    open_ones = book.with_status(Status.waiting, Status.stopped)
    seconds, began, waited = found.launcher.lingers(), time.monotonic(), False
    while not event.is_set() and time.monotonic() - began < seconds:
        held = [said for entry in open_ones if (said := runtime.in_use(book.home(entry))) is not None]
        if not held:
            break
        if not waited:
            more = f", and {len(held) - 1} more" if len(held) > 1 else ""
            console.print(f"{held[0].what}{more}: if its sweep was killed, it saves and ends; waiting for that, {_duration(seconds)} at most", soft_wrap=True)
            waited = True
        time.sleep(0.1)
    if waited:
        for entry in open_ones:
            _looked_at(book, entry, False)  # one of them may have come to its end
        book.save()


def _members(number: int) -> str:
    return f"{number:,} member{'' if number == 1 else 's'}"


def _in_order(entries: list[Entry]) -> Callable[[], Entry | None]:
    left = iter(entries)
    return lambda: next(left, None)


class _Asking:
    """Asks a search for members. A point that is a run already is not run again: the search is told what that run gave, or will give."""

    def __init__(self, found: Plan, book: Book, search: Search) -> None:
        self.found, self.book, self.search = found, book, search
        self.metric = found.space.metric()[0]
        self._twins: dict[str, list[Point]] = {}  # points that are the same run as one that runs
        for point in search.earlier():
            found.with_point(point)

    def __call__(self) -> Entry | None:
        while (point := self.search.ask()) is not None:
            member = self.found.with_point(point)
            entry = self.book.entries.setdefault(member.name, _entry(member))
            if entry.status is Status.running:
                self._twins.setdefault(entry.name, []).append(point)
            elif entry.status in (Status.waiting, Status.stopped):
                entry.number = point.number
                return entry
            else:
                self.search.tell(point, self._value(entry))
        return None

    def ended(self, entry: Entry) -> None:
        """Tell the search, unless the member goes on at the next start."""
        if entry.status is not Status.stopped:
            for point in [_point(entry), *self._twins.pop(entry.name, [])]:
                self.search.tell(point, self._value(entry))

    def _value(self, entry: Entry) -> float | None:
        if entry.status is not Status.finished:
            return None
        value = _record(self.book.home(entry)).get("validation", {}).get(self.metric)
        return float(value) if isinstance(value, int | float) else None


def _point(entry: Entry) -> Point:
    return Point(tuple(entry.overrides), tuple((key, value) for key, value in entry.label), entry.number)


class _Watch:
    """Tells the search what a running member's evaluations give, each once."""

    def __init__(self, book: Book, search: Search, metric: str) -> None:
        self.book, self.search, self.metric = book, search, metric
        self._seen: dict[str, int] = {}
        self._next: dict[str, float] = {}

    def __call__(self, entry: Entry) -> bool:
        if time.monotonic() < self._next.get(entry.name, 0.0):
            return False
        self._next[entry.name] = time.monotonic() + 0.5  # seconds between two looks at a file
        found = False
        for record in _evaluations(self.book.home(entry) / "metrics.jsonl", self.metric):
            if record[0] > self._seen.get(entry.name, -1):
                self._seen[entry.name] = record[0]
                found = self.search.progress(_point(entry), *record) or found
        return found


def _evaluations(path: Path, metric: str) -> Iterator[tuple[int, float]]:
    """(step, value) of each evaluation that a run has written down so far."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        with contextlib.suppress(ValueError, KeyError, TypeError):  # the last line may be half written
            record = json.loads(line)
            yield int(record["step"]), float(record[f"validation_{metric}"])


def _begin(found: Plan, book: Book, entry: Entry, start: Start) -> Handle:
    folder = book.home(entry)
    folder.mkdir(parents=True, exist_ok=True)
    config = found.configs[entry.name].copy()
    config.output_dir, config.resume, config.name = str(folder), "auto", None
    if config.threads == "auto" and not (folder / "resolved.yaml").is_file():  # a run that goes on keeps what it had
        config.threads = str(found.launcher.threads(runtime.decide_threads("auto", 1)))
    if entry.cache != "auto" and "cache" in config and config.cache.use == "auto":
        config.cache.use = entry.cache
    overrides = next(list(one.overrides) for one in found.plan.members if one.name == entry.name)
    content = OmegaConf.to_container(config, resolve=False)
    return start(Job(entry.name, member, (found.verb, content, overrides, str(folder), found.about["config_dir"]), folder / LOG))


def member(verb: str, config: dict[str, Any], overrides: list[str], folder: str, config_dir: str | None) -> int:
    """One member, in its own process. What went wrong is left in its folder, for the sweep that started it, unless another process has the folder."""
    processes.results(Path(folder))  # of an earlier start
    try:
        return train.start(Composed(OmegaConf.create(config), user_dir=None if config_dir is None else Path(config_dir)), overrides, verb)
    except runtime.InUse as error:
        print(error.screen(), file=sys.stderr)
        return IN_USE
    except LLMTrainError as error:
        processes.leave_result(Path(folder), 0, error)
        raise
    except Exception as error:
        first = (str(error).strip().splitlines() or ["no message"])[0][:300]
        processes.leave_result(Path(folder), 0, LLMTrainError(f"{type(error).__name__}: {first}"))
        raise


def _settle(book: Book, entry: Entry, code: int, pruned: bool) -> None:
    """Write down how a member ended."""
    left = processes.results(book.home(entry))
    screen = left[0][1] if left else str(_record(book.home(entry)).get("error") or "")
    first = printable(screen.splitlines()[0].removeprefix("error: ")) if screen else ""
    if code == 0:
        entry.status, entry.reason = Status.finished, ""
    elif code == IN_USE:
        holder = runtime.in_use(book.home(entry))
        who = holder.what if holder is not None else "its folder was in use"
        entry.status, entry.reason = Status.stopped, f"a job of it still runs: {who}; the same command goes on when that has ended"
    elif pruned:
        entry.status, entry.reason = Status.pruned, "stopped early: others were better at this step"
    elif code in (Stopped.exit_code, 130):
        entry.status, entry.reason = Status.stopped, "stopped by a signal; the same command goes on"
    elif code < 0:
        entry.status, entry.reason = Status.stopped, f"killed ({_signal(-code)}); the same command goes on from its last checkpoint"
    else:
        entry.status, entry.reason = Status.failed, first or f"exit code {code}; what it printed stands in {LOG}"


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


# --- what is shared -----------------------------------------------------------------------------------------------


def _together(found: Plan, book: Book, entries: list[Entry], start: Start, event: runtime.Flag, console: Console) -> None:
    """Find out together what is computed once and how long all will take, print that, and make what is shared.

    Raises:
        LLMTrainError: no member could even be prepared.
    """
    keys = {entry.name: plans.interchangeable(found.configs[entry.name]) for entry in entries}
    if all(entry.expected_seconds is not None for entry in entries) and book.about.get("plan", {}) and book.about["plan"].get("stored"):
        _print_plan(book, entries, keys, book.about["plan"], found.launcher.jobs, console)
        return
    folder = found.folder / STORE
    folder.mkdir(parents=True, exist_ok=True)
    for name in (PLAN, PROGRESS):
        (folder / name).unlink(missing_ok=True)
    first: dict[str, str] = {}
    for name, key in keys.items():
        first.setdefault(key, name)
    counts = {key: sum(k == key for k in keys.values()) for key in first}
    wanted = [(key, OmegaConf.to_container(found.configs[name], resolve=False), counts[key]) for key, name in first.items()]
    handle = start(Job("the shared pass", survey, (str(folder), found.verb, wanted), folder / LOG))
    code, said = _followed(handle, folder, event, console, lambda content: _decided(book, entries, keys, content, found, console))
    if event.is_set():
        return
    left = processes.results(folder)
    if code and not said:
        raise _as_error(code, left[0][1] if left else f"error: the shared pass ended with exit code {code}\nfix: {folder / LOG} shows why")
    if code:
        why = printable(left[0][1].splitlines()[0].removeprefix("error: ")) if left else f"exit code {code}"
        console.print(f"warning: what is shared could not be stored ({why}); each member computes for itself what it needs", soft_wrap=True)
    book.about["plan"]["stored"] = code == 0
    book.save()


def _as_error(code: int, screen: str) -> LLMTrainError:
    """An error of another process, as one of ours with its exit code."""
    lines = dict(line.partition(": ")[::2] for line in screen.splitlines() if ": " in line)
    kinds = {kind.exit_code: kind for kind in LLMTrainError.__subclasses__()}
    return kinds.get(code, LLMTrainError)(lines.get("error", screen), allowed=lines.get("allowed"), fix=lines.get("fix"))


def _followed(handle: Handle, folder: Path, event: runtime.Flag, console: Console, decided: Callable[[dict[str, Any]], None]) -> tuple[int, bool]:
    """Wait for the shared pass: its exit code, and whether it came to a plan, which is printed as soon as it is there."""
    said, asked = False, False
    with console.status("looking at data and model …") as status:
        while (code := handle.poll()) is None:
            if event.is_set() and not asked:
                handle.stop()
                asked = True
            if not said and (content := _json(folder / PLAN)):
                decided(content)
                said = True
            if said and (progress := _json(folder / PROGRESS)):
                status.update(f"computing what is shared: {progress['done']:,} of {progress['total']:,} batches")
            time.sleep(0.05)
        if not said and (content := _json(folder / PLAN)):
            decided(content)
            said = True
    return code, said


def _json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError):
        return {}


def _decided(book: Book, entries: list[Entry], keys: Mapping[str, str], content: dict[str, Any], found: Plan, console: Console) -> None:
    """Write the decisions of the survey into the members, and show the plan."""
    for entry in entries:
        facts = content["kinds"][keys[entry.name]]
        entry.cache, entry.expected_seconds = facts["cache"], facts["seconds"]
    book.about["plan"] = content
    book.save()
    _print_plan(book, entries, keys, content, found.launcher.jobs, console)


def _print_plan(book: Book, entries: list[Entry], keys: Mapping[str, str], content: dict[str, Any], jobs: int, console: Console) -> None:
    from rich.table import Table

    grid = Table(box=None, padding=(0, 2, 0, 0))
    for name, justify in (("members", "left"), ("", "right"), ("each about", "right"), ("computed once", "left")):
        grid.add_column(name, justify=justify)  # type: ignore[arg-type]
    for key in dict.fromkeys(keys[entry.name] for entry in entries):
        facts = content["kinds"][key]
        alike = [entry for entry in entries if keys[entry.name] == key]
        each = "" if facts["seconds"] is None else _duration(facts["seconds"] + STARTUP_S)
        grid.add_row(printable(_in_common(alike)), f"× {len(alike)}", each, printable(facts["why"]))
    console.print(grid)
    known = [entry.expected_seconds for entry in entries if entry.expected_seconds is not None]
    if known:
        whole = (sum(known) + STARTUP_S * len(known)) / min(jobs, len(known)) + content["store_seconds"]
        shared = f", of which {_duration(content['store_seconds'])} for what is shared ({content['store_gb']:.2g} GB)" if content["store_seconds"] else ""
        console.print(f"about {_duration(whole)} in all{shared}")


def _in_common(entries: Sequence[Entry]) -> str:
    """What the labels of some members have in common."""
    shared = [pair for pair in entries[0].label if all(pair in entry.label for entry in entries)]
    return " ".join(value if key in ("finetune", "model", "data", "objective") else f"{key.rpartition('.')[2]}={value}" for key, value in shared) or "all"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{int(seconds // 3600)} h {int(seconds % 3600 // 60):02d} min"


def survey(folder: str, verb: str, wanted: list[tuple[str, dict[str, Any], int]]) -> int:
    """In a process of its own: look at one member of each kind, decide what is stored for all, and store it.

    Args:
        folder: plan.json is written there as soon as everything is decided, progress.json while the pass runs.
        wanted: (kind, config, how many members are of it).
    """
    home, event = Path(folder), runtime.Flag()
    processes.results(home)
    try:
        with runtime.stopping_on_signals(event):
            _survey(home, verb, wanted, event)
    except LLMTrainError as error:
        processes.leave_result(home, 0, error)
        raise
    return Stopped.exit_code if event.is_set() else 0


def _survey(home: Path, verb: str, wanted: list[tuple[str, dict[str, Any], int]], event: runtime.Flag) -> None:
    from llmtrain import frozen

    looked: dict[str, tuple[train.Ready, Question | None]] = {}
    errors: dict[str, LLMTrainError] = {}
    for key, config, _ in wanted:
        try:
            looked[key] = _looked(home / key[:8], verb, OmegaConf.create(config), [ready for ready, _ in looked.values()])
        except LLMTrainError as error:  # that member will say so itself, if another one can run
            errors[key] = error
    if not looked:
        raise next(iter(errors.values()))
    number = {key: count for key, _, count in wanted}
    asked = [(key, question) for key, (_, question) in looked.items() if question is not None]
    cuts = dict(zip((key for key, _ in asked), frozen.plan_together([(question, number[key]) for key, question in asked]), strict=True))
    kinds: dict[str, dict[str, Any]] = {}
    block = _BlockSeconds()
    for key, _, _ in wanted:
        if key in errors:
            kinds[key] = {"cache": "auto", "why": f"cannot run: {errors[key].what}", "seconds": None}
            continue
        ready, question = looked[key]
        cut = cuts.get(key)
        kinds[key] = {
            "cache": "always" if cut is not None and cut.decision.use else "never",
            "why": cut.decision.why if cut is not None else f"nothing: {frozen.why_nothing(ready.anatomy, ready.job.phases, ready.built.objective)}",
            "seconds": None if question is None else round(frozen.seconds(question, cut, block.of(ready, question)), 1),
        }
    stored = [(question, cuts[key]) for key, question in asked if cuts[key] is not None and cuts[key].decision.use]  # type: ignore[union-attr]
    cost = frozen.store_cost([q for q, _ in stored], [c for _, c in stored], max((block.of(looked[k][0], q) for k, q in asked), default=0.0))
    files.write_json(home / PLAN, {"kinds": kinds, "store_seconds": round(cost.seconds, 1), "store_gb": cost.gigabytes})
    if stored:

        def progress(done: int, total: int) -> None:
            files.write_json(home / PROGRESS, {"done": done, "total": total})

        frozen.store_together([q for q, _ in stored], [c for _, c in stored], say=print, progress=progress, interrupted=event.is_set)


def _looked(home: Path, verb: str, config: DictConfig, before: list[train.Ready]) -> tuple[train.Ready, Question | None]:
    """A member up to its first update. Parameters that are equal to those of one before it become the same tensors: they are read once."""
    import torch

    built = parts(config)
    fits(built)
    machine = runtime.start(built.runtime, built.model.width)
    home.mkdir(parents=True, exist_ok=True)
    with runtime.logging_to(machine, None):
        ready = train.prepare(built, machine, home, verb, None)
        known = {name: p for other in before for name, p in other.job.model.named_parameters()}
        for name, parameter in ready.job.model.named_parameters():
            other = known.get(name)
            if other is not None and other.shape == parameter.shape and torch.equal(other, parameter):
                parameter.data = other.data
        return ready, train.question(ready)


class _BlockSeconds:
    """What a block costs, measured once for each model and precision."""

    def __init__(self) -> None:
        self._known: dict[Any, float] = {}

    def of(self, ready: train.Ready, question: Question) -> float:
        from llmtrain import frozen

        key = (type(ready.job.model).__name__, ready.anatomy.depth, ready.built.model.width, ready.machine.precision, ready.built.data.max_length)
        if key not in self._known:
            self._known[key] = frozen.measure(question)
        return self._known[key]


# --- what people see ----------------------------------------------------------------------------------------------


class _Screen:
    """A line for each member that ends, and one that moves while others run."""

    def __init__(self, console: Console, book: Book, total: int | None) -> None:
        self.console, self.book, self.total = console, book, total
        self.done = 0
        self.began = time.monotonic()
        self._status = console.status("starting …")
        self._said = 0.0

    def __enter__(self) -> _Screen:
        self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._status.stop()

    def ended(self, entry: Entry) -> None:
        self.done += 1
        count = f"[{self.done}{f'/{self.total}' if self.total is not None else ''}]"
        if entry.status is Status.finished:
            name, value = _result(_record(self.book.home(entry)))
            number = f"{name.replace('_', ' ')} {value:.4g}, " if value is not None else ""
            self.console.print(f"{count} {entry.name}: {number}{_duration(entry.seconds)}", soft_wrap=True)
        else:
            style = "red" if entry.status is Status.failed else "yellow"
            self.console.print(f"{count} {entry.name}: {entry.status.value}: {printable(entry.reason)}", style=style, soft_wrap=True)

    def tick(self, running: list[Entry]) -> None:
        if time.monotonic() - self._said < 1:
            return
        self._said = time.monotonic()
        names = ", ".join(f"{entry.name} {_duration(entry.seconds)}" for entry in running)
        left = self._left(running)
        self._status.update(f"{self.done}{f' of {self.total}' if self.total is not None else ''} done{left}; {names}")

    def _left(self, running: list[Entry]) -> str:
        """How long the rest will take: as estimated, corrected by what the ended ones really took."""
        ended = [e for e in self.book.with_status(Status.finished) if e.expected_seconds]
        expected = sum(e.expected_seconds or 0 for e in ended)
        rest = [e for e in self.book.with_status(Status.waiting, Status.stopped, Status.running) if e.expected_seconds]
        if not rest or not expected:
            return ""
        factor = sum(e.seconds for e in ended) / expected
        seconds = sum(max(0.0, factor * (e.expected_seconds or 0) - (e.seconds if e in running else 0)) for e in rest) / max(1, len(running))
        return f", about {_duration(seconds)} left"


def _last_words(found: Plan, book: Book, console: Console, event: runtime.Flag) -> int:
    """The report, and the exit code.

    Raises:
        Stopped: the sweep was stopped before its end.
    """
    unfinished = book.with_status(Status.waiting, Status.stopped, Status.running)
    if event.is_set() and unfinished:
        raise Stopped(f"stopped by a signal, {len(book.with_status(Status.finished))} members have finished, {len(unfinished)} have not", fix=found.again)
    if book.with_status(Status.finished):
        report.write([found.folder], found.folder, console=console)
    failed = book.with_status(Status.failed)
    for entry in failed:
        console.print(f"failed: {entry.name}: {printable(entry.reason)}", style="red", soft_wrap=True)
    if failed:
        console.print("the same command with --retry-failed tries the failed members again", soft_wrap=True)
    if unfinished:
        console.print(f"{_members(len(unfinished))} did not finish; the same command goes on with them", soft_wrap=True)
    return 1 if failed or unfinished else 0


def _list(console: Console) -> int:
    """Every sweep below runs/sweep, the newest last."""
    books = [book for path in Path("runs/sweep").glob("*/sweep.json") if (book := _opened(path.parent)) is not None]
    for book in sorted(books, key=lambda book: str(book.about.get("started"))):
        counts = ", ".join(f"{len(book.with_status(status))} {status.value}" for status in Status if book.with_status(status))
        console.print(printable(f"{book.folder}  {book.about.get('started')}  {counts}"), soft_wrap=True)
    if not books:
        console.print("no sweep below runs/sweep yet; `llmtrain finetune -m finetune=features,last_layers,full seed=0,1,2` makes one")
    return 0


def _opened(folder: Path) -> Book | None:
    try:
        return Book.opened(folder)
    except LLMTrainError as error:
        print(f"warning: {printable(error.what)}", file=sys.stderr)
        return None


def _status(console: Console, book: Book) -> int:
    """One line for each member."""
    from rich.table import Table

    grid = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("member", "status", "result", "time", ""):
        grid.add_column(name, overflow="fold")
    for entry in book.entries.values():
        _, value = _result(_record(book.home(entry)))
        result = f"{value:.4g}" if entry.status is Status.finished and value is not None else ""
        seconds = _duration(entry.seconds) if entry.seconds else ""
        grid.add_row(printable(entry.name), entry.status.value, result, seconds, printable(entry.reason))
    console.print(grid)
    # What was typed goes on with it only from where that was, and while it stands there.
    here = {"directory": masked(os.getcwd()), "folder": masked(os.path.abspath(book.folder))}
    again = book.about.get("again") if all(book.about.get(key) == value for key, value in here.items()) else None
    console.print(printable(str(again or _by_path(book.folder))), soft_wrap=True)
    return 1 if book.with_status(Status.failed) else 0
