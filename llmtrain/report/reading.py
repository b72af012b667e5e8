"""What a study says, in sentences: as much as its numbers allow, and what they do not allow.

    sentences(study)["table"]  →  ("Chosen on validation: …", "The last 2 blocks reached 98 % of full (…)", …)

A row is "inside the noise" where its interval has 0 in it. That is not the same as equal, and is never said so.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence

from llmtrain.report import summary
from llmtrain.report.study import Difference, Estimate, Row, Run, Study

FEW = 3  # seeds, below which a standard deviation says little
MANY = 5  # intervals, from which on it is said that each stands by itself
NAMED = 6  # rows that one sentence names
SHARES = ("accuracy", "f1")  # metrics of which a share of another one means something: they begin at 0


def sentences(study: Study) -> dict[str, tuple[str, ...]]:
    """Plain words for the table and for each picture; nothing where there is nothing to say."""
    said = {
        "table": _table(study),
        "parameters": _parameters(study),
        "seconds": _cost(study, "seconds", "time", lambda row: row.seconds, summary.duration),
        "memory": _cost(study, "memory", "peak memory", lambda row: row.memory_mb, summary.megabytes),
        "curves": _curves(study),
        "blocks": _blocks(study),
    }
    found = {key: tuple(texts) for key, texts in said.items()}
    return {key: texts for key, texts in found.items() if texts}


# --- the answer ---------------------------------------------------------------------------------------------------


def _table(study: Study) -> Iterator[str]:
    if not any(map(summary.has_result, study.rows)):
        yield _nothing(study)
        return
    if not summary.compares(study):
        yield from _one(study, next(row for row in study.rows if summary.has_result(row)))
    else:
        yield from _chosen(study)
        yield from _compared(study)
        yield from _sides(study)
        yield from _intervals(study)
    yield from _baselines(study)
    yield from _seeds(study)


def _nothing(study: Study) -> str:
    runs = [run for row in study.rows for run in row.runs]
    counts = [f"{sum(run.status == status for run in runs)} {status}" for status in dict.fromkeys(run.status for run in runs)]
    return f"No run has a result yet: {', '.join(counts)}." if counts else "There is no run."


def _one(study: Study, row: Row) -> Iterator[str]:
    """A row by itself: its numbers, and the loss in the words of language models."""
    spread = f", mean of {row.validation.number} seeds" if row.validation is not None and row.validation.number > 1 else ""
    parts = []
    if row.validation is not None:
        parts.append(f"validation {summary.words(study.metric)} {_mean(row.validation)}{_also(study, row)}")
    if row.test is not None:
        parts.append(f"test {summary.words(study.metric)} {_mean(row.test)}")
    yield f"{_begin(' and '.join(parts))}{spread}."
    if row.validation is not None and row.test is not None and all(run.settings.get("checkpoint.export") == "best" for run in row.finished):
        yield "The weights were chosen on validation, which flatters that number; the test split was looked at once, at the end."
    if math.isfinite(row.seconds):
        memory = f", with {summary.megabytes(row.memory_mb)} of memory at the peak" if math.isfinite(row.memory_mb) else ""
        yield f"{'It' if len(row.finished) == 1 else 'A run'} took {summary.duration(row.seconds)}{memory}."


def _also(study: Study, row: Row) -> str:
    """Of a loss in nats of each token, what people say instead."""
    others = {"perplexity": "perplexity", "bits_per_byte": "bits per byte"}
    found = []
    for name, word in others.items():
        values = [run.validation[name] for run in row.finished if name in run.validation and math.isfinite(run.validation[name])]
        if study.metric == "loss" and values:
            found.append(f"{word} {summary.value(sum(values) / len(values))}")
    return "".join(f", {text}" for text in found)


def _chosen(study: Study) -> Iterator[str]:
    """What was chosen on validation, and its value on the test split."""
    row = next((row for row in study.rows if row.chosen), None)
    if row is None or row.validation is None:
        yield "No row has a finite number on the validation split: none is chosen."
        return
    metric = summary.words(study.metric)
    text = f"Chosen on validation: {_subject(row)} (validation {metric} {_full(row.validation)}{_also(study, row)})"
    if row.test is not None and study.compared_on == "test":
        yield f"{text}; the test {metric} of that choice is {_full(row.test)}."
    else:
        yield f"{text}; there is no test split to say what that choice is worth, and the best of several numbers flatters."


def _compared(study: Study) -> Iterator[str]:
    """What the others are compared with, and against it the smallest row that is not clearly worse, and the chosen one."""
    reference = _reference(study)
    if reference is None:
        return
    yield f"Rows are compared with {_subject(reference)}{_why(study, reference)}."
    smallest = _smallest(study, reference)
    if smallest is not None:
        name = _subject(smallest)
        yield f"{_begin(_against(study, smallest, reference))}."
        if _inside(smallest):
            yield f"With fewer trained parameters no row is inside the noise: nothing is gained that these data can show by training more than {name}."
            yield f"That is not to say that {name} and {_subject(reference)} are equal: {_open(study, smallest)}."
    elif (fewer := [row for row in study.rows if row.trainable < reference.trainable and row.difference is not None]) and all(map(_is_known, fewer)):
        yield f"Every row that trained fewer parameters than {_subject(reference)} did clearly worse: here it paid to train more."
    chosen = next((row for row in study.rows if row.chosen), None)
    if chosen is not None and chosen is not reference and chosen is not smallest:
        yield f"{_begin(_against(study, chosen, reference))}."


def _why(study: Study, reference: Row) -> str:
    """Why a row is the reference; nothing where it was named."""
    usable = [row.trainable for row in study.rows if (found := summary.compared(study, row)) is not None and math.isfinite(found.mean)]
    if not usable or reference.trainable < max(usable):
        return ""
    if usable.count(reference.trainable) == 1:
        return ", which trained the most parameters"
    rivals = [row for row in study.rows if row.trainable == reference.trainable and row.validation is not None and math.isfinite(row.validation.mean)]
    if any(_less(study, reference, rival) for rival in rivals):
        return ""
    if usable.count(reference.trainable) == len(usable):
        return ": all trained equally many parameters, and it did best on validation"
    return ", of those that trained the most parameters the best on validation"


def _less(study: Study, row: Row, other: Row) -> bool:
    """Whether a row is behind another on validation."""
    a, b = (one.validation.mean if one.validation is not None else math.nan for one in (row, other))
    return a < b if study.higher else a > b


def _smallest(study: Study, reference: Row) -> Row | None:
    """The row with the fewest trained parameters, fewer than the reference has, that is not clearly worse: its interval has 0 in it, or is on the good side."""
    fewer = [row for row in study.rows if row.trainable < reference.trainable and row.difference is not None and _is_known(row)]
    return min((row for row in fewer if _inside(row) or _is_better(study, row)), key=lambda row: row.trainable, default=None)


def _against(study: Study, row: Row, reference: Row) -> str:
    """`the last 2 blocks reached 98 % of full (0.846 of 0.861 test accuracy) at 35 % of the time …; the difference, …, is inside the noise`."""
    one, other = summary.compared(study, row), summary.compared(study, reference)
    if one is None or other is None:
        return f"{_subject(row)} cannot be compared with {_subject(reference)} on the {study.compared_on} split"
    what = f"{study.compared_on} {summary.words(study.metric)}"
    share = one.mean / other.mean if other.mean else math.nan
    if study.metric.endswith(SHARES) and 0 < share < 1:
        text = f"{_subject(row)} reached {_percent(share)} of {_subject(reference)} ({summary.value(one.mean)} of {summary.value(other.mean)} {what})"
    else:
        text = f"{_subject(row)} had a {what} of {summary.value(one.mean)}, {_subject(reference)} one of {summary.value(other.mean)}"
        text += "" if study.higher else " (lower is better)"
    costs = _costs(row, reference)
    return text + (f", at {costs}" if costs else "") + _verdict(row.difference)


def _costs(row: Row, reference: Row) -> str:
    parts = []
    if math.isfinite(row.seconds) and math.isfinite(reference.seconds) and reference.seconds > 0:
        parts.append(f"{_percent(row.seconds / reference.seconds)} of the time")
    if reference.trainable and row.trainable != reference.trainable:
        parts.append(f"{_percent(row.trainable / reference.trainable)} of its trained parameters")
    return " and ".join(parts)


def _verdict(found: Difference | None) -> str:
    if found is None:
        return ""
    if not (math.isfinite(found.low) and math.isfinite(found.high)):
        return f"; the difference is {summary.signed(found.mean)}, and nothing says how much of it is chance"
    word = "inside the noise" if found.noise else "outside the noise"
    return f"; the difference, {summary.interval(found)} (95 %), is {word}"


def _open(study: Study, row: Row) -> str:
    """How large a loss or a gain the interval leaves open."""
    found = row.difference
    assert found is not None
    worse, better = (-found.low, found.high) if study.higher else (found.high, -found.low)
    return f"the interval leaves room for {summary.value(max(worse, 0.0))} worse and {summary.value(max(better, 0.0))} better"


def _sides(study: Study) -> Iterator[str]:
    """Rows that are clearly worse or better than the reference, and those that ended with no finite number."""
    reference = _reference(study)
    compared = [row for row in study.rows if row.difference is not None and _is_known(row) and not row.difference.noise]
    for word, rows in (("worse", [row for row in compared if not _is_better(study, row)]), ("better", [row for row in compared if _is_better(study, row)])):
        if rows and reference is not None:
            yield f"Clearly {word} than {_subject(reference)}: {_list([f'{row.label} ({summary.interval(row.difference)})' for row in rows])}."
    lost = [row.label for row in study.rows if (found := summary.compared(study, row)) is not None and not math.isfinite(found.mean)]
    if lost:
        yield f"No finite number came out of: {_list(lost)}."


def _intervals(study: Study) -> Iterator[str]:
    """What the intervals are made from, and what several of them mean."""
    found = [row.difference for row in study.rows if row.difference is not None]
    known = [one for one in found if math.isfinite(one.low) and math.isfinite(one.high)]
    ways = list(dict.fromkeys(one.how for one in known))
    if ways:
        yield f"Intervals: {_list(ways, '; ')}."
    elif found:
        yield f"No interval can be given ({_list(list(dict.fromkeys(one.how for one in found)), '; ')}): no difference here is called clear or noise."
    if len(known) >= MANY:
        yield f"Each of the {len(known)} intervals is taken by itself: of twenty rows that do not differ, one is outside the noise by chance."


def _baselines(study: Study) -> Iterator[str]:
    """Rows that a bag of words or less keeps up with, on validation, where these were measured."""
    rows = [(row, row.validation.mean) for row in study.rows if row.validation is not None and math.isfinite(row.validation.mean)]
    if not rows:
        return
    sign, side = (1, "above") if study.higher else (-1, "below")
    beaten = []
    for name, level in study.baselines.items():
        behind = [row.label for row, mean in rows if sign * (mean - level) <= 0]
        if behind:
            yield f"Not {side} {name} ({summary.value(level)} on validation): {_list(behind) if len(rows) > 1 else 'this model'}."
        else:
            beaten.append(f"{name} ({summary.value(level)})")
    if beaten:
        yield f"{'All rows are' if len(rows) > 1 else 'That is'} {side} {' and '.join(beaten)} on validation{', by their means' * (len(rows) > 1)}."


def _seeds(study: Study) -> Iterator[str]:
    numbers = [found.number for row in study.rows if (found := summary.compared(study, row)) is not None]
    if not numbers:
        return
    if max(numbers) == 1:
        whom = "Each row is one run" if len(numbers) > 1 else "This is one run"
        yield f"{whom}: how far another seed would lie from it is not known."
    elif min(numbers) < FEW:
        fewest = f"of {min(numbers)} run{'s' * (min(numbers) > 1)}" if min(numbers) == max(numbers) else f"of {min(numbers)} to {max(numbers)} runs"
        yield f"Rows are means {fewest}: a standard deviation of so few says little."


# --- under the pictures -------------------------------------------------------------------------------------------


def _parameters(study: Study) -> Iterator[str]:
    reference = _reference(study)
    if reference is None or len({row.trainable for row in study.rows if summary.has_result(row)}) < 2:
        return
    smallest = _smallest(study, reference)
    if smallest is not None and _inside(smallest):
        share = summary.share(smallest.trainable, smallest.parameters)
        size = f"{smallest.trainable:,} trained parameters, {share} of the model"
        yield f"The smallest row inside the noise of {_subject(reference)}: {_subject(smallest)} ({size})."
    yield from _fronts(study, "parameters", "number of trained parameters")


def _cost(study: Study, name: str, word: str, cost: Callable[[Row], float], told: Callable[[float], str]) -> Iterator[str]:
    """What a row saves against the reference, and which rows none beats at their cost."""
    reference = _reference(study)
    if reference is None or not math.isfinite(cost(reference)):
        return
    rows = [row for row in study.rows if math.isfinite(cost(row)) and summary.has_result(row)]
    low, high = min(rows, key=cost), max(rows, key=cost)
    if cost(low) == cost(high):
        return
    smallest = _smallest(study, reference)
    if smallest is not None and math.isfinite(cost(smallest)):
        share = f", {_percent(cost(smallest) / cost(reference))} of the {word} of {_subject(reference)}" if cost(reference) > 0 else ""
        verb = "needed" if name == "memory" else "took"
        yield f"{_begin(_subject(smallest))} {verb} {told(cost(smallest))}{share} ({told(cost(reference))})."
    else:
        yield f"{_begin(word)} goes from {told(cost(low))} ({low.label}) to {told(cost(high))} ({high.label})."
    yield from _fronts(study, name, word)


def _fronts(study: Study, name: str, word: str) -> Iterator[str]:
    """Which rows others beat. A front is of means: that is said."""
    rows = [row for row in study.rows if summary.has_result(row)]
    on = [row for row in rows if summary.on_front(row, name)]
    if not on:
        return
    if len(on) == 1:
        yield f"By its mean no row beats {_subject(on[0])} at its {word}, and it beats all others."
    elif len(on) == len(rows):
        yield f"By their means none is beaten at its {word}: what costs more also did better, and whether it is worth it is for the reader to say."
    elif len(on) > NAMED:
        yield f"By their means {len(on)} of {len(rows)} rows are beaten by none at their {word}; the table marks them."
    else:
        yield f"By their means no other row beats these at their {word}: {_list([row.label for row in on])}."


def _curves(study: Study) -> Iterator[str]:
    """Whether runs were at their best at the end: then they might have gone on."""
    ends: list[str] = []
    before: list[str] = []
    mixed: list[str] = []
    for row in study.rows:
        places = [place for run in row.finished if (place := _best_place(study, run)) is not None]
        if not places:
            continue
        if all(place == 1 for place in places):
            ends.append(row.label)
        elif all(place < 1 for place in places):
            before.append(f"{row.label} (best after {_percent(sum(places) / len(places))} of the updates)")
        else:
            mixed.append(row.label)
    if sum(any(run.curve for run in row.runs) for row in study.rows) == 1:
        yield from ["At its best at the last evaluation: longer training might still gain."] if ends else []
        yield from [f"At its best before the end{row_place}." for row_place in (text[text.index(" (") :] for text in before)]
        yield from ["At its best at the end with some seeds, and before it with others."] if mixed else []
        return
    yield from [f"Best at their last evaluation: {_list(ends)}. Longer training might still gain there."] if ends else []
    yield from [f"Best before their end, in all of their runs: {_list(before)}."] if before else []
    yield from [f"Best at the end with some seeds, and before it with others: {_list(mixed)}."] if mixed else []


def _best_place(study: Study, run: Run) -> float | None:
    """Where in a run its best evaluation lies: 1 is its last; None for fewer than three evaluations."""
    found = {record["step"]: value for record in run.curve if "step" in record and math.isfinite(value := record.get(f"validation_{study.metric}", math.nan))}
    if len(found) < 3 or max(found) <= 0:
        return None
    best = max(found.values()) if study.higher else min(found.values())
    return max(step for step, value in found.items() if value == best) / max(found)


def _blocks(study: Study) -> Iterator[str]:
    """How much moved; of what moved later, since when. Nothing where all of every model moved."""
    rows = [row for row in study.rows if row.parameters and any(run.sections for run in row.runs)]
    if not rows or all(row.trainable == row.parameters for row in rows):
        return
    if len(rows) == 1:
        yield f"{rows[0].trainable:,} of {rows[0].parameters:,} parameters were trained ({summary.share(rows[0].trainable, rows[0].parameters)})."
    else:
        low, high = min(rows, key=lambda row: row.trainable), max(rows, key=lambda row: row.trainable)
        yield f"From {_moved(low)} to {_moved(high)}." if low.trainable < high.trainable else f"All rows trained {low.trainable:,} parameters."
    crossed = [row.label for row in rows if any(section.get("crossed") for section in _sections(row))]
    if crossed:
        yield f"Gradients crossed frozen parts in: {_list(crossed)}. Freezing those saved no time in the backward pass."
    later = [row.label for row in rows if any(isinstance(begin := section.get("from_share"), int | float) and begin > 0 for section in _sections(row))]
    if later:
        yield f"Some parts moved only in a later part of training in: {_list(later)}."


def _moved(row: Row) -> str:
    return f"{row.trainable:,} trained parameters in {row.label} ({summary.share(row.trainable, row.parameters)})"


def _sections(row: Row) -> Sequence[Mapping[str, object]]:
    return next((run.sections for run in row.runs if run.sections), ())


# --- words --------------------------------------------------------------------------------------------------------


def _reference(study: Study) -> Row | None:
    return next((row for row in study.rows if row.reference), None)


def _is_known(row: Row) -> bool:
    """Whether the difference of a row has an interval."""
    return row.difference is not None and math.isfinite(row.difference.low) and math.isfinite(row.difference.high)


def _inside(row: Row) -> bool:
    return row.difference is not None and row.difference.noise


def _is_better(study: Study, row: Row) -> bool:
    return row.difference is not None and (row.difference.mean > 0) == study.higher and row.difference.mean != 0


def _subject(row: Row) -> str:
    """A row's name inside a sentence: `the last 2 blocks`; in quotes where it has commas."""
    if "," in row.label:
        return f"“{row.label}”"
    return f"the {row.label}" if re.match(r"last (\d+ )?blocks?\b", row.label) else row.label


def _begin(text: str) -> str:
    return text[:1].upper() + text[1:]


def _mean(found: Estimate) -> str:
    return summary.estimate(found, runs=False)


def _full(found: Estimate) -> str:
    return f"{_mean(found)} over {found.number} seeds" if found.number > 1 else f"{_mean(found)}, one run"


def _percent(share: float) -> str:
    """A share in two digits where it is small: 0.9 %, 35 %; what rounds to all but is not says so."""
    if 0.995 <= share < 1:
        return f"{100 * share:.1f} %" if share < 0.9995 else "> 99.9 %"
    return f"{100 * share:.2g} %" if share < 0.1 else f"{100 * share:.0f} %"


def _list(texts: Sequence[str], between: str = ", ") -> str:
    """Some names; of many the first, and how many more."""
    separator = "; " if any("," in text for text in texts) else between
    more = f" and {len(texts) - NAMED} more" if len(texts) > NAMED else ""
    return separator.join(texts[:NAMED]) + more
