"""Optuna: points that are chosen by what earlier ones gave. Akiba et al. 2019, arXiv 1907.10902.

    choice(a,b), a,b        one of these
    range(1,7), range(0,1,0.1)   a number of the range, its stop not included
    interval(0,1)           any number between the two
    int(interval(1,8))      a whole number, both ends included, as Hydra's plugin for Optuna has it
    tag(log,interval(1e-5,1e-2))   uniform in the logarithm

What was tried stands in a journal in the sweep's folder. Every draw is a function of the seed, the number of the point
and the journal, so a search that was killed goes on as if it had not been.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from fractions import Fraction
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override

from llmtrain.config import written
from llmtrain.errors import ConfigError, require
from llmtrain.seeding import key
from llmtrain.sweep.base import Point, Search, Space, Sweep
from llmtrain.sweep.values import Value, fractions, len_of_range, point, points, refuse_too_many, value, values, whole

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler
    from optuna.storages import JournalStorage
    from optuna.trial import FrozenTrial, Trial

JOURNAL = "optuna.journal"
NAME = "sweep"  # of the study in its journal
STEPS, STOPPED = "steps", "stopped"  # what a trial remembers: the updates at which it was evaluated; that it may be stopped


class Sampler(Enum):
    """How points are drawn."""

    tpe = "tpe"
    random = "random"


class Pruner(Enum):
    """Which members are stopped before their end."""

    none = "none"
    median = "median"
    hyperband = "hyperband"


@dataclass(frozen=True, kw_only=True)
class Optuna(Sweep):
    """A search by Optuna.

    Attributes:
        trials: points in all; failed and stopped ones count.
        metric: which decides; null: the objective's own.
        sampler: tpe is Bergstra et al. 2011, "Algorithms for Hyper-Parameter Optimization".
        pruner: hyperband is Li et al. 2018, arXiv 1603.06560, with a factor of 3. Both compare evaluations of the same number, not of the same
            update: where members differ in their batch size, so do their updates.
        startup_trials: points before tpe learns, and before median stops any.
        warmup_evaluations: of each member, before it may be stopped.
        seed: of the draws.
    """

    adaptive: ClassVar[bool] = True

    trials: int
    metric: str | None
    sampler: Sampler
    pruner: Pruner
    startup_trials: int
    warmup_evaluations: int
    seed: int

    def __post_init__(self) -> None:
        require(self.trials >= 1, "trials", self.trials, "1 or more")
        require(self.startup_trials >= 0, "startup_trials", self.startup_trials, "0 or more")
        require(self.warmup_evaluations >= 0, "warmup_evaluations", self.warmup_evaluations, "0 or more")
        require(0 <= self.seed < 2**32, "seed", self.seed, "0 to 4294967295")

    @property
    def decides(self) -> str | None:
        return self.metric

    def search(self, space: Space, folder: Path) -> Search:
        """
        Raises:
            ConfigError: Optuna is not installed; nothing to choose from; the folder holds the search of another space.
        """
        refuse_too_many(self.trials, space.limit)
        dimensions = self._dimensions(space)
        name, higher = space.metric()
        if self.metric not in (None, name):
            raise ConfigError(f"sweep.metric={self.metric}: the members' evaluation.best_metric is {name}", fix=f"evaluation.best_metric={self.metric}")
        return _Searching(self, dimensions, higher, folder, about={"metric": name, "higher": higher})

    def corners(self, space: Space) -> list[Point]:
        """Every option of every group with both ends of all ranges and all items of all lists."""
        ends = [dimension.ends for dimension in self._dimensions(space)]
        kinds = [found if "." not in found[0].key else [found[0]] for found in ends]
        several = max((len(found) for found in ends), default=1)
        refuse_too_many(math.prod(map(len, kinds)), space.limit)
        return points(
            tuple(v if "." not in v.key else found[min(turn, len(found) - 1)] for v, found in zip(taken, ends, strict=True))
            for taken in product(*kinds)
            for turn in range(several if any("." in found[0].key for found in ends) else 1)
        )

    def _dimensions(self, space: Space) -> list[_Dimension]:
        if not space.swept:
            raise ConfigError("sweep=optuna: no key has several values", allowed="KEY=A,B,C  range(START, STOP)  interval(LOW, HIGH)  tag(log, interval(…))")
        return [_dimension(override) for override in space.swept]

    def without_effect(self) -> dict[str, str]:
        found = {}
        if self.pruner is Pruner.none:
            found["warmup_evaluations"] = "sweep.pruner=none"
        if self.sampler is Sampler.random and self.pruner is not Pruner.median:
            found["startup_trials"] = "sweep.sampler=random draws all points at random"
        if self.sampler is Sampler.tpe and self.startup_trials >= self.trials:
            found["sampler"] = "sweep.startup_trials points are drawn at random, and there are no more"
        return found

    def make_sampler(self, *parts: int | str) -> BaseSampler:
        """A sampler whose draws depend on the seed and `parts`."""
        from optuna.samplers import RandomSampler, TPESampler

        seed = key(self.seed, "optuna", *parts) % 2**32
        return RandomSampler(seed) if self.sampler is Sampler.random else TPESampler(n_startup_trials=self.startup_trials, seed=seed)

    def make_pruner(self) -> BasePruner:
        """A pruner that knows what stands in the journal and nothing else."""
        from optuna.pruners import HyperbandPruner, MedianPruner, NopPruner

        first = self.warmup_evaluations + 1  # evaluations are counted from 1
        if self.pruner is Pruner.median:
            return MedianPruner(n_startup_trials=self.startup_trials, n_warmup_steps=first)
        return HyperbandPruner(min_resource=first) if self.pruner is Pruner.hyperband else NopPruner()


# --- what is chosen from ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Dimension:
    """One key of the space.

    Attributes:
        ends: values that are at the ends of it, or all of a list.
        distribution: makes Optuna's object for it.
        value: a parameter as Optuna gives it → what the member gets.
    """

    ends: list[Value]
    distribution: Callable[[], BaseDistribution]
    value: Callable[[Any], Value]

    @property
    def key(self) -> str:
        return self.ends[0].key


def _dimension(override: Override) -> _Dimension:
    """
    Raises:
        ConfigError: an empty list, a range or an interval with nothing in it, a tag that is not `log`.
    """
    sweep: Any = override.value()
    if sweep.tags - {"log"} or (sweep.tags and isinstance(sweep, ChoiceSweep)):
        raise ConfigError(f"{written(override)}: no such tag here", allowed="tag(log, interval(LOW, HIGH)), tag(log, range(START, STOP))")
    if isinstance(sweep, ChoiceSweep):
        return _listed(override)
    return _interval(override, sweep) if isinstance(sweep, IntervalSweep) else _range(override)


def _listed(override: Override) -> _Dimension:
    """A list. Its order means nothing, so shuffling it changes nothing that matters."""

    def distribution() -> BaseDistribution:
        from optuna.distributions import CategoricalDistribution

        return CategoricalDistribution(list(known))

    known = {found.text: found for found in values(override)}
    return _Dimension(list(known.values()), distribution, lambda text: known[text])


def _range(override: Override) -> _Dimension:
    """A range: whole numbers, or steps of a fraction."""
    number, (start, _, step), log = len_of_range(override), fractions(override), _is_log(override)
    if not number:
        raise ConfigError(f"{written(override)}: an empty range", allowed="a range ends before its stop")
    low, high = sorted((start, start + (number - 1) * step))
    exact: Callable[[Fraction], int | float] = int if whole(override) else float
    _refuse_log_of_zero(override, float(low))
    if log and (not whole(override) or abs(step) != 1):
        raise ConfigError(f"{written(override)}: log goes with whole numbers in steps of 1", fix="tag(log, interval(LOW, HIGH))")

    def distribution() -> BaseDistribution:
        from optuna.distributions import FloatDistribution, IntDistribution

        if whole(override):
            return IntDistribution(int(low), int(high), log=log, step=int(abs(step)))
        return FloatDistribution(float(low), float(high), step=float(abs(step)))

    def nearest(drawn: float) -> Value:
        steps = round((Fraction(drawn) - low) / abs(step))  # 0.1 + 0.2 is not what was typed
        return value(override.key_or_group, exact(low + steps * abs(step)))

    return _Dimension([nearest(float(low)), nearest(float(high))], distribution, nearest)


def _interval(override: Override, sweep: Any) -> _Dimension:
    """An interval: any number, or any whole one where both its ends are whole numbers by `int(…)`."""
    low, high, log = sweep.start, sweep.end, _is_log(override)
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ConfigError(f"{written(override)}: nothing between the two", allowed="interval(LOW, HIGH) with LOW below HIGH, both finite")
    _refuse_log_of_zero(override, low)

    def distribution() -> BaseDistribution:
        from optuna.distributions import FloatDistribution, IntDistribution

        return IntDistribution(low, high, log=log) if isinstance(low, int) else FloatDistribution(low, high, log=log)

    def drawn(number: float) -> Value:
        found = value(override.key_or_group, number)
        return Value(found.key, found.text, f"{number:.4g}" if isinstance(number, float) else found.shown)

    return _Dimension([drawn(low), drawn(high)], distribution, drawn)


def _is_log(override: Override) -> bool:
    sweep: Any = override.value()
    return "log" in sweep.tags


def _refuse_log_of_zero(override: Override, low: float) -> None:
    if _is_log(override) and low <= 0:
        raise ConfigError(f"{written(override)}: log needs numbers above 0")


# --- the search ---------------------------------------------------------------------------------------------------


class _Searching(Search):
    """Asks and tells Optuna. One process at a time: the folder of a sweep is locked by whoever runs it."""

    def __init__(self, settings: Optuna, dimensions: list[_Dimension], higher: bool, folder: Path, about: dict[str, Any]) -> None:
        self.settings, self.dimensions = settings, dimensions
        self.storage = _journal(folder)
        from optuna import create_study

        self.study = create_study(storage=self.storage, study_name=NAME, direction="maximize" if higher else "minimize", load_if_exists=True)
        about = {**about, "space": [f"{d.key}: {d.distribution()}" for d in dimensions]}
        before = self.study.user_attrs.get("about", about)
        if before != about:
            changed = next(name for name in about if before.get(name) != about[name])
            raise ConfigError(
                f"{folder / JOURNAL} is of another search: its {changed} was {before.get(changed)}", fix="the same command goes on; another name= starts anew"
            )
        self.study.set_user_attr("about", about)
        self._open = [trial.number for trial in self._trials() if not trial.state.is_finished()]

    def _trials(self) -> list[FrozenTrial]:
        trials: list[FrozenTrial] = self.study.get_trials(deepcopy=False)
        return trials

    def ask(self) -> Point | None:
        """Those that were asked for before and never told come first, as they were."""
        if self._open:
            return self._drawn(self._open.pop(0))
        number = len(self._trials())
        if number >= self.settings.trials:
            return None
        self._use(number)
        return self._drawn(self.study.ask().number)

    def earlier(self) -> list[Point]:
        return [self._drawn(trial.number) for trial in self._trials() if trial.state.is_finished()]

    def _use(self, *parts: int | str) -> None:
        self.study.sampler, self.study.pruner = self.settings.make_sampler(*parts), self.settings.make_pruner()

    def _trial(self, number: int) -> Trial:
        from optuna.trial import Trial

        study = self.storage.get_study_id_from_name(NAME)
        return Trial(self.study, self.storage.get_trial_id_from_study_id_trial_number(study, number))

    def _drawn(self, number: int) -> Point:
        """The point of a trial. What the journal lacks is drawn, each key from a generator of its own: a kill between two leaves no trace."""
        self._use(number)
        trial = self._trial(number)
        known = next(t for t in self._trials() if t.number == number).params
        if not known.keys() >= {d.key for d in self.dimensions}:
            _ = trial.relative_params  # what tpe draws together, it draws now, with this sampler
        found = []
        for dimension in self.dimensions:
            self._use(number, dimension.key)
            found.append(dimension.value(known[dimension.key] if dimension.key in known else _suggest(trial, dimension)))
        return point(found, number)

    def progress(self, point: Point, step: int, value: float) -> bool:
        """Evaluations are numbered from 1. One that a resumed member repeats is not counted again."""
        self._use(point.number)
        trial = self._trial(point.number)
        steps: list[int] = trial.user_attrs.get(STEPS, [])
        if step in steps or not math.isfinite(value):  # what is not a number will fail by itself
            return bool(trial.user_attrs.get(STOPPED, False))
        trial.set_user_attr(STEPS, [*steps, step])
        trial.report(value, len(steps) + 1)
        stop = bool(trial.should_prune())
        if stop:
            trial.set_user_attr(STOPPED, True)
        return stop

    def tell(self, point: Point, value: float | None) -> None:
        from optuna.trial import TrialState

        self._use(point.number)
        trial = next(t for t in self._trials() if t.number == point.number)
        if value is not None and math.isfinite(value):
            self.study.tell(trial.number, value, skip_if_finished=True)
        else:
            stopped = value is None and trial.user_attrs.get(STOPPED, False)
            self.study.tell(trial.number, state=TrialState.PRUNED if stopped else TrialState.FAIL, skip_if_finished=True)


def _suggest(trial: Trial, dimension: _Dimension) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    name, among = dimension.key, dimension.distribution()
    if isinstance(among, CategoricalDistribution):
        return trial.suggest_categorical(name, among.choices)
    if isinstance(among, IntDistribution):
        return trial.suggest_int(name, among.low, among.high, log=among.log, step=among.step)
    assert isinstance(among, FloatDistribution)
    return trial.suggest_float(name, among.low, among.high, log=among.log, step=among.step)


def _journal(folder: Path) -> JournalStorage:
    """The journal of a sweep. A line that a crash left unfinished, and a lock that nobody holds, are taken away.

    Raises:
        ConfigError: Optuna is not installed.
    """
    try:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
    except ImportError as error:
        raise ConfigError("sweep=optuna: Optuna is not installed", fix="pip install 'llmtrain[optuna]'") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # it says at every point what the sweep says in its own words
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / JOURNAL
    path.with_name(f"{JOURNAL}.lock").unlink(missing_ok=True)
    if path.is_file():
        content = path.read_bytes()
        os.truncate(path, content.rfind(b"\n") + 1)
    return JournalStorage(JournalFileBackend(str(path), JournalFileOpenLock(str(path))))
