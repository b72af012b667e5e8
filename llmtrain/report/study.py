"""What runs say when they are held against each other: rows, uncertainty, and what differs.

Run     one run as its folder tells it
Row     runs that differ in their seed alone
Study   rows that are compared, and the sentences that may be said about them
"""

from __future__ import annotations

import json
import math
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmtrain import files
from llmtrain.config import did_you_mean
from llmtrain.errors import ConfigError

if TYPE_CHECKING:
    from llmtrain.report.runs import Gathered


@dataclass(frozen=True)
class Run:
    """One run, as its folder tells it.

    Attributes:
        path: its folder; empty for a member that never started.
        status: finished, failed, stopped (it can go on), pruned (stopped since others were better), running, or waiting.
        reason: why it failed, in a line; empty where it did not.
        settings: its config, flat: key → value, without what says only where it ran.
        overrides: what was typed for it, without what was the same for all members of its sweep.
        seed: of everything that was drawn.
        validation, test: metrics of the exported weights; empty where there is none.
        references: what knowing nothing, or no pretrained model, gives.
        metric, higher: which one decided, and whether more of it is better.
        parameters, trainable: numbers in the model, and how many of them moved at some time.
        sections: the block map from the bottom up: each {section, parameters, trainable, lr, from_share, …}.
        wall_seconds, train_seconds, peak_memory_mb, disk_mb: what it cost; nan where nobody knows.
        curve: evaluations, each {"step": …, "evaluation_…" or metric: value} as metrics.jsonl has them.
        train_curve: the other records of metrics.jsonl.
        command: repeats it.
        predictions: file of predictions of single examples; None where there is none.
        machine: device, its name, processes, threads, precision.
        versions: of packages.
        warnings: what was said at warning level.
        started: when, as text that sorts; empty where nobody knows.
    """

    path: Path
    name: str
    verb: str
    status: str
    reason: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    overrides: tuple[str, ...] = ()
    seed: int = 0
    validation: Mapping[str, float] = field(default_factory=dict)
    test: Mapping[str, float] = field(default_factory=dict)
    references: Mapping[str, float] = field(default_factory=dict)
    metric: str = "loss"
    higher: bool = False
    parameters: int = 0
    trainable: int = 0
    sections: tuple[Mapping[str, Any], ...] = ()
    wall_seconds: float = float("nan")
    train_seconds: float = float("nan")
    peak_memory_mb: float = float("nan")
    disk_mb: float = float("nan")
    curve: tuple[Mapping[str, float], ...] = ()
    train_curve: tuple[Mapping[str, float], ...] = ()
    command: str = ""
    predictions: Path | None = None
    machine: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    started: str = ""


@dataclass(frozen=True)
class Estimate:
    """A number with its spread over seeds.

    Attributes:
        mean, sd: over the runs; sd is nan for a single one.
        number: of runs.
    """

    mean: float
    sd: float
    number: int


@dataclass(frozen=True)
class Difference:
    """A row against the reference row.

    Attributes:
        mean: row − reference, in units of the metric.
        low, high: 95 % interval.
        noise: whether 0 lies in it.
        how: what the interval is made from, in words.
    """

    mean: float
    low: float
    high: float
    noise: bool
    how: str


@dataclass(frozen=True)
class Row:
    """Runs that differ in their seed alone.

    Attributes:
        label: what people call it: `last 2 blocks`, `lr 1e-3`.
        differs: the settings in which rows differ, with this row's values.
        runs: all of them, also those that failed.
        validation, test: the metric that decides; None where no run has it.
        trainable: numbers that moved.
        seconds, memory_mb, disk_mb: medians over the finished runs; nan where unknown.
        chosen: it is the best by validation.
        reference: the others are compared with it.
        front: on the Pareto front of (trainable, metric), (seconds, metric), (memory, metric), by the names of these costs.
        difference: from the reference, on test where there is one, else on validation; None for the reference itself.
    """

    label: str
    differs: Mapping[str, Any]
    runs: tuple[Run, ...]
    validation: Estimate | None
    test: Estimate | None
    trainable: int
    parameters: int
    seconds: float
    memory_mb: float
    disk_mb: float
    chosen: bool = False
    reference: bool = False
    front: frozenset[str] = frozenset()
    difference: Difference | None = None

    @property
    def finished(self) -> tuple[Run, ...]:
        return tuple(run for run in self.runs if run.status == "finished")


@dataclass(frozen=True)
class Study:
    """Everything that a report shows.

    Attributes:
        title: the sweep's name, or what was compared.
        command: the whole sweep's; empty for runs that were gathered.
        metric, higher: which one decides, and whether more of it is better.
        compared_on: test or validation: where differences are taken.
        rows: in the order in which they are shown: by trained parameters, then by label; rows without a result last.
        baselines: lines to draw: name → value of `metric`.
        differs: keys in which rows differ, in the order in which they are shown.
        same: all other settings.
        sentences: plain words under each picture: parameters, seconds, memory, curves, blocks, table → sentences.
        notes: what a reader must know: seeds that are missing, runs that failed, several machines.
    """

    title: str
    command: str
    verb: str
    metric: str
    higher: bool
    compared_on: str
    rows: tuple[Row, ...]
    baselines: Mapping[str, float] = field(default_factory=dict)
    differs: tuple[str, ...] = ()
    same: Mapping[str, Any] = field(default_factory=dict)
    sentences: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    machine: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)


# --- from runs to rows --------------------------------------------------------------------------------------------

# What fronts are of.
COSTS: dict[str, Callable[[Row], float]] = {
    "parameters": lambda row: float(row.trainable),
    "seconds": lambda row: row.seconds,
    "memory": lambda row: row.memory_mb,
}
# Blocks or other places that belong to the name of a mode. Its other settings are named where they differ.
ADDRESSES = ("finetune.blocks", "finetune.address")
# What the validation losses of language models depend on besides the model: other text, other tokens, other answers.
DATA = ("data.", "tokenizer.", "objective.")
NOT_OF_EXAMPLES = ("data.num_workers", "objective.label_smoothing", "objective.balanced", "objective.weights")  # of training alone
MANY = 6  # rows that one note names


def study(gathered: Gathered, metric: str | None = None, reference: str | None = None, title: str | None = None) -> Study:
    """Runs as rows that are compared.

    Args:
        metric: which one decides; None: the one that decided in the runs.
        reference: label of the row that others are compared with; None: of those with a result the one that trains the
            most parameters, and of several such the best on validation.
        title: None: as gathered.

    Raises:
        ConfigError: the runs are of both verbs, or have no metric in common; no such metric; no such row.
    """
    from llmtrain.report import reading

    runs, notes = _once(gathered.runs)
    verb = _verb(runs)
    decides, higher = _metric(runs, metric)
    finished = [run for run in runs if run.status == "finished"]
    compared_on = "test" if finished and all(decides in run.test for run in finished) else "validation"
    groups = _grouped(runs)
    named, keys = _labels(groups, title or gathered.title)
    differs = _differs(groups, keys)
    rows = _sorted([_row(label, group, differs, decides) for label, group in zip(named, groups, strict=True)], compared_on)
    rows = _marked(rows, decides, higher, compared_on, reference)
    baselines, other = _baselines(finished, decides)
    said = (
        *gathered.notes, *notes, *_unfinished(rows), *_not_finite(rows), *other, *_partial_test(finished, decides, compared_on),
        *_of_validation(baselines, compared_on), *_machines(finished, differs), *_comparable(rows, decides, differs),
    )  # fmt: skip
    found = Study(
        title=title or gathered.title,
        command=gathered.command,
        verb=verb,
        metric=decides,
        higher=higher,
        compared_on=compared_on,
        rows=tuple(rows),
        baselines=baselines,
        differs=differs,
        same=_same(groups, differs),
        notes=tuple(dict.fromkeys(said)),
        machine=_shared_machine(finished),
        versions={name: value for name, value in sorted(_values(finished).items()) if value is not None},
    )
    return replace(found, sentences=reading.sentences(found))


def identity(value: Any) -> str:
    """A value as text that is equal for equal values: 1 and 1.0 are, 1 and true are not."""
    return json.dumps(float(value) if files.is_number(value) else value, sort_keys=True, default=str)


def _once(runs: Sequence[Run]) -> tuple[list[Run], list[str]]:
    """The runs, of those with equal settings and seed the newest that finished, or the newest; and what was left out."""
    groups: dict[Any, list[Run]] = {}
    for run in runs:
        groups.setdefault((run.verb, _without_seed(run), run.seed) if run.settings else (str(run.path), run.name), []).append(run)
    kept, notes = [], []
    for group in groups.values():
        newest = max(group, key=lambda run: (run.status == "finished", run.started, str(run.path), run.name))
        kept.append(newest)
        if len(group) > 1:
            notes.append(
                f"{len(group)} runs have the same settings and seed: {newest.name}, the newest{' that finished' * (newest.status == 'finished')}, is shown"
            )
    return kept, notes[:MANY] + ([f"and {len(notes) - MANY} more such groups of runs"] if len(notes) > MANY else [])


def _without_seed(run: Run) -> str:
    return json.dumps({key: identity(value) for key, value in run.settings.items() if key != "seed"}, sort_keys=True)


def _verb(runs: Sequence[Run]) -> str:
    verbs = sorted({run.verb for run in runs})
    if len(verbs) > 1:
        raise ConfigError(f"there are runs of {' and of '.join(verbs)}: they measure different things", fix="give the paths of one kind of run")
    return verbs[0] if verbs else "finetune"


def _metric(runs: Sequence[Run], named: str | None) -> tuple[str, bool]:
    """The metric that decides, and whether more of it is better.

    Raises:
        ConfigError: as `study`.
    """
    from llmtrain.report.runs import directions

    finished = [run for run in runs if run.status == "finished"]
    shared = (
        [name for name in (finished[0].validation or finished[0].test) if all(name in (run.validation or run.test) for run in finished)] if finished else []
    )
    own = list(dict.fromkeys(run.metric for run in finished or runs))
    if named is None and len(own) > 1:
        fix = f"metric={shared[0]}" if shared else "give the paths of runs that ask the same"
        raise ConfigError(f"the runs were decided by {' and by '.join(own)}", allowed=", ".join(shared) or None, fix=fix)
    metric = named or (own[0] if own else "loss")
    if finished and metric not in shared:
        raise ConfigError(f"metric={metric}: not every run has it", allowed=", ".join(shared), fix=did_you_mean(metric, shared))
    for run in finished or runs:
        if run.metric == metric:
            return metric, run.higher
        if metric in (known := directions(run.settings)):
            return metric, known[metric]
    if finished and not metric.endswith("loss"):
        raise ConfigError(f"metric={metric}: nobody says whether more of it is better", allowed=", ".join(own), fix="install the package of the objective")
    return metric, False


def _grouped(runs: Sequence[Run]) -> list[list[Run]]:
    """Runs that differ in their seed alone, by seed."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(_without_seed(run) if run.settings else f"{run.path} {run.name}", []).append(run)
    return [sorted(group, key=lambda run: (run.seed, str(run.path), run.name)) for group in groups.values()]


def _row(label: str, runs: Sequence[Run], differs: Sequence[str], metric: str) -> Row:
    from llmtrain.report.statistics import estimate

    finished = [run for run in runs if run.status == "finished"]
    sizes = [run for run in (*finished, *runs) if run.parameters]
    return Row(
        label=label,
        differs={key: runs[0].settings[key] for key in differs if key in runs[0].settings},
        runs=tuple(runs),
        validation=estimate([run.validation[metric] for run in finished if metric in run.validation]),
        test=estimate([run.test[metric] for run in finished if metric in run.test]),
        trainable=sizes[0].trainable if sizes else 0,
        parameters=sizes[0].parameters if sizes else 0,
        seconds=_median([run.wall_seconds for run in finished]),
        memory_mb=_median([run.peak_memory_mb for run in finished]),
        disk_mb=_median([run.disk_mb for run in finished]),
    )


def _median(values: Sequence[float]) -> float:
    known = [value for value in values if math.isfinite(value)]
    return statistics.median(known) if known else math.nan


def _result(row: Row, compared_on: str) -> float:
    """The mean where rows are compared; nan where there is none."""
    found = row.test if compared_on == "test" else row.validation
    return found.mean if found is not None else math.nan


def _sorted(rows: Sequence[Row], compared_on: str) -> list[Row]:
    def place(row: Row) -> tuple[bool, bool, int, Any]:
        return row.validation is None and row.test is None, not math.isfinite(_result(row, compared_on)), row.trainable, _natural(row.label)

    return sorted(rows, key=place)


def _natural(text: str) -> list[tuple[int, float, str]]:
    """Text that sorts by its numbers where it has some: `last 2 blocks` before `last 10 blocks`."""
    parts = re.split(r"(\d+(?:\.\d+)?(?:e[-+]?\d+)?)", text)
    return [(1, float(part), "") if number % 2 else (0, 0.0, part) for number, part in enumerate(parts)]


# --- which rows are marked ----------------------------------------------------------------------------------------


def _marked(rows: Sequence[Row], metric: str, higher: bool, compared_on: str, named: str | None) -> list[Row]:
    """The rows with what is chosen, the reference, the fronts and the differences. A row by itself is none of that."""
    from llmtrain.report.statistics import Comparison, front

    reference = _reference(rows, higher, compared_on, named)
    if sum(row.validation is not None or row.test is not None for row in rows) < 2:
        return list(rows)
    chosen = _best([row for row in rows if row.validation is not None and math.isfinite(row.validation.mean)], higher)
    fronts = {name: front({row.label: (cost(row), _result(row, compared_on)) for row in rows}, higher) for name, cost in COSTS.items()}
    comparison = Comparison(metric, compared_on)
    return [
        replace(
            row,
            chosen=row is chosen,
            reference=row is reference,
            front=frozenset(name for name, labels in fronts.items() if row.label in labels),
            difference=None if reference is None or row is reference else comparison.difference(row.runs, reference.runs),
        )
        for row in rows
    ]


def _best(rows: Sequence[Row], higher: bool) -> Row | None:
    """The best mean on validation; of equals the one that trains fewer parameters."""

    def place(row: Row) -> tuple[float, int, Any]:
        mean = row.validation.mean if row.validation is not None else math.nan
        return (-mean if higher else mean) if math.isfinite(mean) else math.inf, row.trainable, _natural(row.label)

    return min(rows, key=place, default=None)


def _reference(rows: Sequence[Row], higher: bool, compared_on: str, named: str | None) -> Row | None:
    """The row that others are compared with.

    Raises:
        ConfigError: none has the name, or it has no result.
    """
    usable = [row for row in rows if math.isfinite(_result(row, compared_on))]
    if named is not None:
        labels = [row.label for row in rows]
        found = next((row for row in rows if named.casefold() in (row.label.casefold(), *(run.name.casefold() for run in row.runs))), None)
        if found is None:
            raise ConfigError(f"reference={named}: no such row", allowed="; ".join(labels[:MANY]), fix=did_you_mean(named, labels))
        if found not in usable:
            raise ConfigError(f"reference={named}: the row has no result", allowed="; ".join(row.label for row in usable[:MANY]) or None)
        return found
    most = max((row.trainable for row in usable), default=0)
    return _best([row for row in usable if row.trainable == most], higher)


def _baselines(finished: Sequence[Run], metric: str) -> tuple[dict[str, float], list[str]]:
    """What is known of the metric without the model: who → value. Of runs that disagree nothing is taken, and that is said."""
    found: dict[str, list[float]] = {}
    for run in finished:
        for name, value in run.references.items():
            if who := _who(name, metric):
                found.setdefault(who, []).append(value)
    agreed = {who: values[0] for who, values in found.items() if all(math.isclose(value, values[0], rel_tol=1e-9, abs_tol=1e-12) for value in values)}
    lost = [who for who in found if who not in agreed]
    return agreed, [f"{', '.join(lost)}: the runs have different values, since their data differ; none is shown"] if lost else []


def _who(name: str, metric: str) -> str | None:
    """Whose value of `metric` a reference is: of `bag_of_words_accuracy` the bag of words'. None: it is of another metric."""
    if name.replace("unigram_entropy", "loss") == metric:
        return "unigram entropy"
    for who in ("bag_of_words", "majority", "chance", "mean"):
        if name.replace(f"{who}_", "", 1) == metric and who in name:
            return who.replace("_", " ")
    return name.removesuffix(f"_{metric}").replace("_", " ") if name.endswith(f"_{metric}") else None


# --- what rows are called, and in which settings they differ ------------------------------------------------------


def _labels(groups: Sequence[Sequence[Run]], title: str) -> tuple[list[str], list[str]]:
    """A name for each row, made from what differs; and the keys that the names are made from, in their order.

    Where modes of finetuning differ, a row is called after its mode and address. Rows of one mode are told apart by as few
    further keys as do so: what follows from the mode, as its learning rate may, is not repeated in each name.
    """
    settings = [group[0].settings for group in groups]
    modes = [_mode(one) for one in settings]
    several = len(set(modes)) > 1
    words: list[list[str]] = [[mode] if several and mode else [] for mode in modes]
    used: list[str] = []
    for mode in dict.fromkeys(modes if several else [""]):
        rows = [number for number, one in enumerate(modes) if not several or one == mode]
        keys = _telling([settings[row] for row in rows], [_chosen_sections(groups[row][0]) for row in rows], _swept([groups[row][0] for row in rows]))
        values = [{**settings[row], **_chosen_sections(groups[row][0])} for row in rows]
        for key in keys:
            texts = _texts([one.get(key) for one in values])
            for row, one, text in zip(rows, values, texts, strict=True):
                words[row] += [_word(key, text, keys)] if key in one else []
        used += [key for key in keys if key not in used]
    found = [", ".join(parts) or _alone(modes[row], groups[row][0], len(groups), title) for row, parts in enumerate(words)]
    seen: dict[str, int] = {}
    for row, label in enumerate(found):
        seen[label] = seen.get(label, 0) + 1
        found[row] = label if seen[label] == 1 else f"{label} ({seen[label]})"
    return found, [key for key in used if "." in key or key in settings[0]]


def _mode(settings: Mapping[str, Any]) -> str:
    """A mode of finetuning with its address, as people say it; empty where there is none."""
    kind, blocks = settings.get("finetune.kind"), settings.get("finetune.blocks")
    last = "" if not isinstance(blocks, int) else "last block" if blocks == 1 else f"last {blocks} blocks"
    if kind == "last_layers" and last:
        return last
    if kind == "layers" and "finetune.address" in settings:
        return f"layers {settings['finetune.address']}"
    return "" if kind is None else str(kind).replace("_", " ") + (f" in the {last}" if last else "")


def _alone(mode: str, run: Run, rows: int, title: str) -> str:
    """What a row is called that nothing tells apart: the only one, or one of which no settings are known."""
    if not run.settings:
        return run.name
    return mode if mode and run.verb == "finetune" else title if rows == 1 else "as configured"


def _chosen_sections(run: Run) -> dict[str, Any]:
    """Presets that were chosen for a run, such as `model=bert_tiny`: one word for many settings."""
    found = (text.partition("=") for text in run.overrides)
    return {key.lstrip("+"): value for key, _, value in found if "." not in key and key.lstrip("+") in ("model", "data", "objective", "schedule", "experiment")}


def _swept(runs: Sequence[Run]) -> list[str]:
    """Keys that were typed for the runs, in the order in which they were typed."""
    return list(dict.fromkeys(text.partition("=")[0] for run in runs for text in run.overrides))


def _telling(settings: Sequence[Mapping[str, Any]], sections: Sequence[Mapping[str, Any]], swept: Sequence[str]) -> list[str]:
    """As few keys as tell all rows apart: first what was typed, presets before single keys, then the others by name."""
    own = {"seed", "finetune.kind", *ADDRESSES} if len({_mode(one) for one in settings}) == 1 else {"seed"}
    values = [{**one, **chosen} for one, chosen in zip(settings, sections, strict=True)]
    keys = sorted({key for one in values for key in one} - own)
    keys.sort(key=lambda key: (key not in swept, "." in key if key in swept else False, swept.index(key) if key in swept else 0, key != "optimizer.lr"))
    found: list[str] = []
    apart = 1
    for key in keys:
        number = len({tuple(identity(one.get(name, "…")) for name in (*found, key)) for one in values})
        if number > apart:
            found.append(key)
            apart = number
    return found


def _texts(values: Sequence[Any]) -> list[str]:
    """Values as short as they are different: of paths the last parts."""
    texts = [written(value) for value in values]
    for parts in range(1, 5):
        cut = ["/".join(text.rstrip("/").split("/")[-parts:]) for text in texts]
        if len(set(cut)) == len(set(texts)):
            return cut
    return texts


def written(value: Any) -> str:
    """A setting's value as one types it, with all digits that it has."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list) else str(value)


def _word(key: str, text: str, keys: Sequence[str]) -> str:
    """`lr 0.001`: the last part of a key, or more of it where another key or the seed has the same; of a preset its name alone."""
    if "." not in key:
        return text if key in ("model", "data", "objective", "schedule", "experiment") else f"{key} {text}"
    section, _, leaf = key.rpartition(".")
    if leaf == "kind":
        return f"{section} {text}"
    shared = leaf == "seed" or sum(other.rpartition(".")[2] == leaf for other in keys) > 1
    return f"{key if shared else leaf} {text}"


def _differs(groups: Sequence[Sequence[Run]], named: Sequence[str]) -> tuple[str, ...]:
    """Keys of which rows that have them have different values: mode and address first, then what rows are called after.

    A key that some modes lack and that is the same in all rows that have it says nothing about how these differ.
    """
    settings = [group[0].settings for group in groups]
    found = {key for one in settings for key in one if key != "seed" and len({identity(other[key]) for other in settings if key in other}) > 1}
    first = [key for key in ("finetune.kind", *ADDRESSES, *named) if key in found]
    return tuple(dict.fromkeys([*first, *sorted(found)]))


def _same(groups: Sequence[Sequence[Run]], differs: Sequence[str]) -> dict[str, Any]:
    """All other settings, by key; the seed where there is one."""
    found = {key: value for group in groups for key, value in group[0].settings.items() if key not in differs and key != "seed"}
    seeds = {run.seed for group in groups for run in group}
    return dict(sorted({**found, **({"seed": seeds.pop()} if len(seeds) == 1 else {})}.items()))


# --- what a reader must know --------------------------------------------------------------------------------------


def _unfinished(rows: Sequence[Row]) -> list[str]:
    """Seeds that failed or are missing, a line for each row."""
    seeds = {run.seed for row in rows for run in row.runs}
    notes = []
    for row in rows:
        parts = [f"seed {run.seed} {_became(run)}" for run in row.runs if run.status != "finished"]
        missing = sorted(seeds - {run.seed for run in row.runs})
        parts += [f"no run with seed {_listed(missing)}, which other rows have"] if missing and row.runs[0].settings else []
        if parts:
            notes.append(f"{row.label}: {'; '.join(parts)}")
    return notes[:MANY] + ([f"and {len(notes) - MANY} more rows of which runs failed or are missing"] if len(notes) > MANY else [])


def _became(run: Run) -> str:
    words = {"failed": "failed", "stopped": "was stopped", "pruned": "was stopped early", "running": "is still running", "waiting": "has not started"}
    return words.get(run.status, run.status) + (f" ({run.reason})" if run.reason else "")


def _listed(numbers: Sequence[Any]) -> str:
    texts = [str(number) for number in numbers]
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} or {texts[-1]}"


def _not_finite(rows: Sequence[Row]) -> list[str]:
    lost = [row.label for row in rows if any(found is not None and not math.isfinite(found.mean) for found in (row.validation, row.test))]
    return [f"not a finite number at the end, so never chosen: {'; '.join(lost)}"] if lost else []


def _partial_test(finished: Sequence[Run], metric: str, compared_on: str) -> list[str]:
    have = sum(metric in run.test for run in finished)
    return [f"{have} of {len(finished)} runs were held against a test split: rows are compared on validation"] if have and compared_on != "test" else []


def _of_validation(baselines: Mapping[str, float], compared_on: str) -> list[str]:
    return [f"{' and '.join(baselines)}: measured on the validation split"] if baselines and compared_on == "test" else []


def machine(facts: Mapping[str, Any]) -> str:
    """`cpu AMD EPYC, 1 process, 2 threads, bf16`; empty where nothing is known."""
    name = " ".join(str(facts[key]) for key in ("device", "name") if facts.get(key) not in (None, ""))
    numbers = [f"{facts[key]} {word}{'' if facts[key] == 1 else ends}" for key, word, ends in COUNTS if isinstance(facts.get(key), int)]
    return ", ".join(filter(None, [name, *numbers, str(facts.get("precision") or "")]))


COUNTS = (("processes", "process", "es"), ("threads", "thread", "s"))


def _shared_machine(finished: Sequence[Run]) -> str:
    found = {machine(run.machine) for run in finished}
    return found.pop() if len(found) == 1 else ""


def _values(finished: Sequence[Run]) -> dict[str, str | None]:
    """Each package's version; None where runs have different ones."""
    found: dict[str, set[str]] = {}
    for run in finished:
        for name, version in run.versions.items():
            found.setdefault(name, set()).add(version)
    return {name: versions.pop() if len(versions) == 1 else None for name, versions in found.items()}


def _machines(finished: Sequence[Run], differs: Sequence[str]) -> list[str]:
    """Machines and versions that differ between runs, but for what was compared."""
    swept = {"precision", "device", "threads", "devices"} & set(differs)
    hidden = {"devices": "processes"}
    left_out = swept | {hidden[key] for key in swept if key in hidden} | ({"name"} if "device" in swept else set())
    machines = sorted({machine({key: value for key, value in run.machine.items() if key not in left_out}) for run in finished})
    notes = [f"the runs had different machines, so their times and memory are not comparable: {'; '.join(machines)}"] if len(machines) > 1 else []
    for name, value in sorted(_values(finished).items()):
        if value is None:
            notes.append(f"the runs had different versions of {name}: {', '.join(sorted({run.versions[name] for run in finished if name in run.versions}))}")
    return notes


def _comparable(rows: Sequence[Row], metric: str, differs: Sequence[str]) -> list[str]:
    """What rows must share for their metrics to be of the same thing."""
    found = []
    if "objective.kind" in differs:
        found.append(f"the rows have different objectives: {metric} is not the same quantity in all of them")
    per_token = metric.endswith(("loss", "perplexity")) and any(not run.predictions for row in rows for run in row.finished)
    if per_token and any(key.startswith("tokenizer.") for key in differs):
        found.append(f"the rows have different tokens: {metric} of a token is not comparable between them, bits per byte are")
    keys = [key for key in differs if key.startswith(DATA) and key != "objective.kind" and not key.startswith(("tokenizer.", *NOT_OF_EXAMPLES))]
    of_rows = [key for key in keys if key.startswith("data.") and (per_token or key not in ("data.max_length", "data.short_length", "data.short_fraction"))]
    if of_rows:
        found.append(f"the rows differ in {', '.join(of_rows)}: what they are judged on may differ too")
    return found
