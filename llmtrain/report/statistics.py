"""What differences between runs are worth: spread over seeds, intervals, and which rows no other row beats.

Two sources of chance are told apart. Which examples were in the test split: they are drawn anew from those that are
there, the same ones for both rows (a paired bootstrap: Efron and Tibshirani 1993, chapter 8). Which seeds were used:
so few that drawing them anew would say too little (of three values it never leaves their range, which misses the mean
of a symmetric distribution in a quarter of all cases). Their variance is estimated, and its few degrees of freedom
make the interval wider by Student's t. In simulations, 95 % intervals of three and of five seeds had the true difference
in them in 94 to 97 % of all cases; where chance in training was nearly all there was, those of three seeds in 93 %, of
two in 89 %.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llmtrain import seeding
from llmtrain.report.study import Difference, Estimate, Run

if TYPE_CHECKING:
    import numpy as np

DRAWS = 2000  # of the bootstrap: its standard error is then known to about 1.6 %
LARGEST = 200_000_000  # bytes of all draws of one number of examples
PIECE = 4_000_000  # numbers that are worked on at a time
LEVEL = 0.95
GREATEST = 1e100  # of a prediction: its square is a number, too
BELIEVED = 1e-6  # how far a metric of the predictions may lie from the one that the run wrote down, relative to the larger


def estimate(values: Sequence[float]) -> Estimate | None:
    """Mean and standard deviation (of a sample, n − 1 below the line) over runs; None of no run. What is not finite makes the mean so too."""
    if not values:
        return None
    count = len(values)
    if not all(map(math.isfinite, values)):
        return Estimate(sum(values), math.nan, count)
    mean = math.fsum(values) / count
    sd = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1)) if count > 1 else math.nan
    return Estimate(mean, sd, count)


def front(points: Mapping[str, tuple[float, float]], higher: bool) -> frozenset[str]:
    """Names of the points (cost, metric) that no other beats: better at no more cost, or as good at less. Equals stand on it together.

    A point of which a number is missing or infinite is not on it.
    """
    sign = 1 if higher else -1
    finite = {name: (cost, sign * metric) for name, (cost, metric) in points.items() if math.isfinite(cost) and math.isfinite(metric)}
    return frozenset(name for name, one in finite.items() if not any(_beats(other, one) for other in finite.values()))


def _beats(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return one[0] <= other[0] and one[1] >= other[1] and one != other


# --- predictions of single examples -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answers:
    """What a run predicted on one split, by ascending example.

    Attributes:
        samples: (N,) ids of the examples.
        predicted, true: (N,) numbers: classes, choices or scores.
    """

    samples: np.ndarray
    predicted: np.ndarray
    true: np.ndarray

    def of(self, samples: np.ndarray) -> Answers:
        """Those to some of the examples, which are all among them."""
        import numpy as np

        places = np.searchsorted(self.samples, samples)
        return Answers(samples, self.predicted[places], self.true[places])


def answers(path: Path, split: str) -> Answers | None:
    """The predictions of one split; None where there are none, or where the file cannot be read: nothing is made of half of them."""
    import numpy as np

    found: dict[int, tuple[float, float]] = {}
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            if record["split"] == split:
                found[int(record["sample"])] = (float(record["predicted"]), float(record["target"]))
        samples = sorted(found)
        numbers = np.array([found[sample] for sample in samples], dtype=np.float64)
        ids = np.array(samples, dtype=np.int64)
    except (OSError, ValueError, LookupError, TypeError, OverflowError, RecursionError):
        return None
    if not found or not (np.abs(numbers) < GREATEST).all():  # nan neither
        return None
    return Answers(ids, numbers[:, 0], numbers[:, 1])


def measurable(metric: str) -> bool:
    """Whether a metric can be made of predictions."""
    return metric in ("accuracy", "macro_f1", "matthews", "pearson", "spearman", "rmse")


def measured(metric: str, predicted: np.ndarray, true: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """A metric of (N,) predictions where each example counts `weights` times, for each of (B, N) weights, whole numbers. (B,).

    The same as `objective.scores` gives on examples that are repeated so often, without repeating them.
    """
    import numpy as np

    total = weights.sum(1)
    if metric == "accuracy":
        return np.asarray(weights @ (predicted == true).astype(np.float64) / total)
    if metric == "rmse":
        return np.asarray(np.sqrt(weights @ (predicted - true) ** 2 / total))
    if metric == "pearson":
        return _pearson(_repeated(predicted, weights), _repeated(true, weights), weights)
    if metric == "spearman":
        return _pearson(_ranks(predicted, weights), _ranks(true, weights), weights)
    if metric in ("macro_f1", "matthews"):
        return _of_classes(metric, predicted, true, weights)
    raise ValueError(f"{metric} is not made of predictions")


def _of_classes(metric: str, predicted: np.ndarray, true: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean F1 of the classes that occur, or Matthews' correlation, from what a table of true and predicted classes has on its diagonal and margins."""
    import numpy as np

    classes, numbers = np.unique(np.concatenate([true, predicted]), return_inverse=True)
    actual, said = numbers[: len(true)], numbers[len(true) :]
    right = actual == said
    found = np.empty(len(weights))
    for number, weight in enumerate(weights):
        by_true = np.bincount(actual, weight, len(classes))
        by_said = np.bincount(said, weight, len(classes))
        hits = np.bincount(actual[right], weight[right], len(classes))
        if metric == "macro_f1":
            occurs = by_true + by_said > 0
            found[number] = np.mean(2 * hits[occurs] / (by_true + by_said)[occurs])
        else:
            total = weight.sum()
            spread = (total**2 - by_true @ by_true) * (total**2 - by_said @ by_said)
            found[number] = (hits.sum() * total - by_true @ by_said) / math.sqrt(spread) if spread > 0 else 0.0
    return found


def _repeated(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    import numpy as np

    return np.broadcast_to(values, weights.shape)


def _ranks(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(B, N) ranks of (N,) values where each occurs `weights` times; equal values share the mean of theirs."""
    import numpy as np

    distinct, of = np.unique(values, return_inverse=True)
    order = np.argsort(of, kind="stable")
    starts = np.searchsorted(of[order], np.arange(len(distinct)))
    counts = np.add.reduceat(weights[:, order], starts, axis=1)
    found: np.ndarray = (np.cumsum(counts, 1) - (counts - 1) / 2)[:, of]
    return found


def _pearson(a: np.ndarray, b: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Pearson's correlation of the rows of (B, N) numbers; 0 where one side does not vary, as in `objective.scores`."""
    import numpy as np

    total = weights.sum(1, keepdims=True)
    a, b = a - (weights * a).sum(1, keepdims=True) / total, b - (weights * b).sum(1, keepdims=True) / total
    a, b = np.where(weights > 0, a, 0.0), np.where(weights > 0, b, 0.0)
    spreads = np.sqrt((weights * a**2).sum(1)), np.sqrt((weights * b**2).sum(1))
    scale = np.abs(a).max(1, initial=0), np.abs(b).max(1, initial=0)
    varies = (spreads[0] > 1e-12 * scale[0]) & (spreads[1] > 1e-12 * scale[1]) & (scale[0] > 0) & (scale[1] > 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        found = np.clip(((weights * a / spreads[0][:, None]) * (b / spreads[1][:, None])).sum(1), -1, 1)
    return np.where(varies, found, 0.0)


def drawn(count: int, draws: int = DRAWS) -> np.ndarray:
    """(B, N) how often each of N examples is drawn, N times with repetition: the same for all rows, so that they are compared on the same ones.

    Of very many examples fewer draws are made: LARGEST bytes are not passed, and at least 100 are made.
    """
    import numpy as np

    generator = seeding.generator(0, "bootstrap", count)
    made = min(draws, max(100, LARGEST // count))
    return np.stack([np.minimum(np.bincount(generator.integers(count, size=count), minlength=count), 255).astype(np.uint8) for _ in range(made)])


# --- a row against another ----------------------------------------------------------------------------------------


class Comparison:
    """Differences between rows of runs, in one metric on one split.

    Args:
        split: test or validation.
        draws: of the bootstrap.
    """

    def __init__(self, metric: str, split: str, draws: int = DRAWS) -> None:
        self.metric, self.split, self.draws = metric, split, draws
        self._answers: dict[Path, Answers | None] = {}
        self._weights: np.ndarray | None = None
        self._replicates: dict[tuple[Path, bytes], np.ndarray] = {}

    def difference(self, row: Sequence[Run], reference: Sequence[Run]) -> Difference | None:
        """The mean over the seeds of `row` less that of `reference`, with its 95 % interval, as wide as seeds and examples leave it open.

        Both are the same examples where predictions of single examples are known, and the same seeds where both rows have the same.
        Without predictions the seeds alone count; one seed then gives no interval.

        Returns:
            None where a row has no run with the metric.
        """
        row, reference = self._with_result(row), self._with_result(reference)
        if not row or not reference:
            return None
        values, others = [self._of(run) for run in row], [self._of(run) for run in reference]
        mean = math.fsum(values) / len(values) - math.fsum(others) / len(others)
        if not all(map(math.isfinite, (*values, *others))):
            return Difference(mean, math.nan, math.nan, False, "not every run ended with a finite number: no interval")
        paired = _same_seeds(row, reference)
        known, why = self._shared(row, reference)
        if known is None:
            return _by_seeds(values, others, paired, why)
        return self._by_examples(row, reference, known, paired)

    def _with_result(self, runs: Sequence[Run]) -> list[Run]:
        """The runs that have the metric, in the order of their seeds."""
        return sorted((run for run in runs if run.status == "finished" and self.metric in self._metrics(run)), key=lambda run: (run.seed, str(run.path)))

    def _metrics(self, run: Run) -> Mapping[str, float]:
        return run.test if self.split == "test" else run.validation

    def _of(self, run: Run) -> float:
        return float(self._metrics(run)[self.metric])

    def _read(self, run: Run) -> Answers | None:
        """A run's predictions, if the metric that they give is the one that the run wrote down."""
        import numpy as np

        if run.predictions is None or not measurable(self.metric):
            return None
        if run.predictions not in self._answers:
            found = answers(run.predictions, self.split)
            if found is not None:
                given = float(measured(self.metric, found.predicted, found.true, np.ones((1, len(found.samples))))[0])
                found = found if math.isclose(given, self._of(run), rel_tol=BELIEVED, abs_tol=BELIEVED) else None
            self._answers[run.predictions] = found
        return self._answers[run.predictions]

    def _shared(self, row: Sequence[Run], reference: Sequence[Run]) -> tuple[np.ndarray | None, str]:
        """Ids of the examples that all runs of both rows answered; or None, and why."""
        import numpy as np

        runs = [*row, *reference]
        if not measurable(self.metric):
            return None, f"{self.metric.replace('_', ' ')} is not made of single predictions"
        known = [found for run in runs if (found := self._read(run)) is not None]
        if len(known) < len(runs):
            return None, "predictions of single examples are missing, or are not those of the metric"
        shared = known[0].samples
        for found in known[1:]:
            shared = np.intersect1d(shared, found.samples, assume_unique=True)
        if len(shared) < 2:
            return None, "the rows were not asked the same examples"
        if any((found.of(shared).true != known[0].of(shared).true).any() for found in known[1:]):
            return None, "the rows' examples have different answers: their data differ"
        return shared, ""

    def _by_examples(self, row: Sequence[Run], reference: Sequence[Run], shared: np.ndarray, paired: bool) -> Difference:
        import numpy as np

        found = [np.array([self._value(run, shared) for run in runs]) for runs in (row, reference)]
        draws = [np.stack([self._drawn(run, shared) for run in runs]) for runs in (row, reference)]  # (seeds, B)
        several = min(len(row), len(reference)) > 1
        samples = [(found[0] - found[1], draws[0] - draws[1])] if paired else list(zip(found, draws, strict=True))
        parts = [_of_seeds(values, replicates) for values, replicates in samples] if several else []
        parts.append(_part(float((draws[0].mean(0) - draws[1].mean(0)).var(ddof=1)) * len(shared) / (len(shared) - 1), len(shared) - 1))
        most = max(len(self._known(run).samples) for run in (*row, *reference))
        asked = f"{len(shared):,} examples" if most == len(shared) else f"the {len(shared):,} examples that all were asked, of {most:,}"
        how = f"paired bootstrap over {asked}"
        how += f", and {_spread(row, reference, paired)}" if several else f"; {_single(row, reference)}, so chance in training is not in it"
        least = min(len(values) for values, _ in samples) - 1 if several else len(shared) - 1
        return _interval(float(found[0].mean() - found[1].mean()), parts, least, how)

    def _known(self, run: Run) -> Answers:
        found = self._read(run)
        assert found is not None
        return found

    def _value(self, run: Run, shared: np.ndarray) -> float:
        import numpy as np

        found = self._known(run).of(shared)
        return float(measured(self.metric, found.predicted, found.true, np.ones((1, len(shared))))[0])

    def _drawn(self, run: Run, shared: np.ndarray) -> np.ndarray:
        """(B,) the metric of a run on each draw of the examples; a run is measured once, in however many comparisons it is."""
        import numpy as np

        assert run.predictions is not None
        key, found = (run.predictions, shared.tobytes()), self._known(run).of(shared)
        if key not in self._replicates:
            if self._weights is None or self._weights.shape[1] != len(shared):
                self._weights = drawn(len(shared), self.draws)
            pieces = np.array_split(self._weights, math.ceil(self._weights.size / PIECE))
            self._replicates[key] = np.concatenate([measured(self.metric, found.predicted, found.true, piece.astype(np.float64)) for piece in pieces])
        return self._replicates[key]


def _part(variance: float, freedom: int) -> tuple[float, float]:
    """(variance, its square by its degrees of freedom: half the variance of the estimate)."""
    return variance, variance**2 / freedom


def _of_seeds(values: np.ndarray, replicates: np.ndarray) -> tuple[float, float]:
    """The part of the variance of the mean of (n,) values that comes from their seeds alone, given (n, B) values of each on drawn examples.

    Runs differ for their seeds, and because seeds err on different examples; the latter is in the variance over examples
    already and is taken out, so that it does not count twice: with s² of seeds, e² of examples and x² of both, values vary by
    s² + x²/N, each on drawn examples by (e² + x²)/N, and their mean on drawn examples by e²/N + x²/(nN). What is left is as
    unsure as all of it was.
    """
    count = len(values)
    both = max(float(replicates.var(1, ddof=1).mean() - replicates.mean(0).var(ddof=1)), 0.0) / (count - 1)
    whole, unsure = _part(float(values.var(ddof=1)) / count, count - 1)
    return (whole - both, unsure) if whole > both else (0.0, 0.0)


def _by_seeds(values: Sequence[float], others: Sequence[float], paired: bool, why: str) -> Difference:
    """A t-interval of the difference of means over seeds: of pairs, or Welch's."""
    import numpy as np

    mean = math.fsum(values) / len(values) - math.fsum(others) / len(others)
    if min(len(values), len(others)) < 2:
        return Difference(mean, math.nan, math.nan, False, f"{why}, and a row has a single seed: no interval")
    samples = [np.subtract(values, others)] if paired else [np.array(values), np.array(others)]
    parts = [_part(float(sample.var(ddof=1)) / len(sample), len(sample) - 1) for sample in samples]
    if not any(variance for variance, _ in parts):
        return Difference(mean, math.nan, math.nan, False, f"{why}, and seeds made no difference: no interval")
    number = f"{len(values)} paired seeds" if paired else f"{len(values)} and {len(others)} seeds"
    return _interval(mean, parts, min(map(len, samples)) - 1, f"Student's t over {number}; {why}, so chance in the examples is not in it")


def _interval(mean: float, parts: Sequence[tuple[float, float]], least: int, how: str) -> Difference:
    """mean ± t · √(sum of variances), t of as many degrees of freedom as Satterthwaite 1946 gives the sum.

    Args:
        parts: of the variance, independent of each other, as `_part` gives them.
        least: degrees of freedom of the part that has the fewest: the sum has no fewer.
    """
    from scipy import stats

    variance, unsure = (math.fsum(numbers) for numbers in zip(*parts, strict=True))
    if not math.isfinite(variance):
        return Difference(mean, math.nan, math.nan, False, f"{how}: not finite")
    half = float(stats.t.ppf((1 + LEVEL) / 2, max(least, variance**2 / unsure))) * math.sqrt(variance) if unsure > 0 else 0.0
    slack = 1e-12 * max(1.0, abs(mean))  # of sums in floating point
    return Difference(mean, mean - half, mean + half, mean - half <= slack and mean + half >= -slack, how)


def _same_seeds(row: Sequence[Run], reference: Sequence[Run]) -> bool:
    """Whether both rows have the same seeds, each once: equal seeds share the order of the data and what a new head starts from."""
    return len({run.seed for run in row}) == len(row) and [run.seed for run in row] == [run.seed for run in reference]


def _spread(row: Sequence[Run], reference: Sequence[Run], paired: bool) -> str:
    return f"the spread over {len(row)} paired seeds" if paired else f"the spread over {len(row)} and {len(reference)} seeds"


def _single(row: Sequence[Run], reference: Sequence[Run]) -> str:
    return "one seed" if len(row) == len(reference) == 1 else "one of the rows has a single seed"
