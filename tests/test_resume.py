"""A run ends with the same bits however often, wherever and in whatever way it was interrupted.

The matrix stops runs of every objective and every finetuning mode after every update, in one process and in two. Its cases are a covering: every
two values of two factors meet in one of them (`covering`), and one of them is the update that a run is stopped at. The property draws whole
lives of a run: stops, kills, evaluations, other settings. `-m long` takes all of both; LLMTRAIN_FUZZ_EXAMPLES=N multiplies the lives.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import json
import math
import multiprocessing
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import strategies as st
from hypothesis.configuration import set_hypothesis_home_dir

from llmtrain import checkpoint, cli, files, processes, runtime, trainer
from llmtrain.callback.early_stopping import EarlyStopping
from llmtrain.callback.metrics import Metrics
from llmtrain.command import train as command
from llmtrain.config import Composed, compose, groups
from llmtrain.data.loader import Order, micro_batches
from llmtrain.errors import CheckpointError, Stopped
from llmtrain.objective.base import Totals
from llmtrain.objective.learner import Learner
from llmtrain.objective.next_token import NextToken
from llmtrain.state import RunState
from tests.conftest import ANSWERS, TINY, TINY_FINETUNE, digest, outcome, tiny
from tests.test_fuzz import fuzz

ROOT = Path(__file__).parents[1]
STEPS = 6
CLOCKS = {"seconds", "evaluation_seconds"}
DROPOUT = "model.dropout=0.1"


# --- runs -----------------------------------------------------------------------------------------------------------


@functools.cache
def composed(verb: str, typed: tuple[str, ...]) -> Composed:
    """Hydra takes half the time of so short a run, and gives the same every time."""
    return compose(verb, list(typed))


def go(run: Path, verb: str, typed: Sequence[str]) -> Path:
    """Start or continue a run in this process, as the command does once its config is composed."""
    config = composed(verb, tuple(typed)).config
    run.mkdir(parents=True, exist_ok=True)
    with runtime.locked(run):
        command.write_config(run, config, list(typed))
        command.run(config, verb, run)
    return run


def quick(patch: pytest.MonkeyPatch) -> None:
    """Leave out what a run says of itself at the end, and let every processor compute in bf16."""
    patch.setattr(command, "_goodbye", lambda *_: None)
    patch.setattr(command, "_baselines", lambda *_: {})
    patch.setattr(runtime, "has_bf16", lambda device: True)


def preload() -> None:
    """Let the process that forks workers import what they need, once: else each of them takes seconds. Without effect where it runs already."""
    multiprocessing.set_forkserver_preload(["llmtrain.trainer", "llmtrain.data.loader", "llmtrain.objective.learner", "transformers", "datasets"])


preload()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    quick(monkeypatch)


def signal_at(patch: pytest.MonkeyPatch, step: int, moment: str) -> None:
    """Send this process a SIGTERM, once: right after an update, or between two of its forward passes."""
    real, sent = trainer.Trainer._update, []

    def now(*_: Any) -> None:
        if not sent:
            sent.append(step)
            os.kill(os.getpid(), signal.SIGTERM)

    def update(self: trainer.Trainer, batches: Any) -> Any:
        if self.state.step + 1 != step:
            return real(self, batches)
        hook = self.runtime.accelerator.unwrap_model(self._call).register_forward_hook(now) if moment == "amid" else None
        try:
            done = real(self, batches)
        finally:
            if hook is not None:
                hook.remove()
        now()
        return done

    patch.setattr(trainer.Trainer, "_update", update)


def stop(run: Path, verb: str, typed: Sequence[str], step: int, moment: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        signal_at(patch, step, moment)
        with pytest.raises(Stopped, match=f"after step {step}; the checkpoint is saved"):
            go(run, verb, typed)
    assert (run / "checkpoints" / f"step-{step:08d}").is_dir()


def everything(run: Path) -> dict[str, Any]:
    """All that an interruption may not change: weights, optimizer, metrics, RunState and what the run says it found; without clocks."""
    last = checkpoint.listed(run)[0]
    saved, record = json.loads((last / "state.json").read_text()), json.loads((run / "run.json").read_text())
    told = ("status", "stopped", "steps", "tokens", "validation", "validation_at_end", "best", "freezing", "test", "skipped", "warnings")
    found = {
        **outcome(run),
        "state": {name: value for name, value in saved["run"].items() if name not in CLOCKS},
        "scaler": saved["scaler"],
        "best": os.readlink(run / "checkpoints" / "best") if (run / "checkpoints" / "best").is_symlink() else None,
        "told": {name: record.get(name) for name in told},
        "predictions": digest(run / "predictions.jsonl") if (run / "predictions.jsonl").is_file() else None,
    }
    return {name: json.dumps(value, sort_keys=True) for name, value in found.items()}  # as text a NaN is equal to itself


def parsed(found: Mapping[str, str], name: str) -> Any:
    return json.loads(found[name])


# --- the matrix: what is stopped, and where -------------------------------------------------------------------------

FACTORS: dict[str, tuple[Any, ...]] = {
    "objective": tuple(ANSWERS),
    "mode": ("features", "last_layers", "layers", "full", "gradual", "lp_ft", "lora"),
    "stop": tuple(range(1, STEPS)),
    "precision": ("fp32", "bf16"),
    "workers": (0, 2),
    "moment": ("after", "amid"),
}
Row = dict[str, Any]
ALL_PAIRS = tuple(itertools.combinations(FACTORS, 2))
LARGE = {"objective", "mode", "stop"}


def pairs_of(row: Mapping[str, Any], wanted: Sequence[tuple[str, str]]) -> set[tuple[str, Any, str, Any]]:
    return {(a, row[a], b, row[b]) for a, b in wanted if a in row and b in row}


def covering(factors: Mapping[str, Sequence[Any]], wanted: Sequence[tuple[str, str]]) -> list[Row]:
    """Rows in which any two values of two `wanted` factors meet.

    Greedy: a row begins with the first pair that is missing, and each other factor takes the value that adds most pairs, the rarest so far where
    several do.
    """
    missing = dict.fromkeys((a, x, b, y) for a, b in wanted for x in factors[a] for y in factors[b])
    rows: list[Row] = []
    used: Counter[tuple[str, Any]] = Counter()
    while missing:
        a, x, b, y = next(iter(missing))
        row = {a: x, b: y}
        for name, values in factors.items():
            if name not in row:
                new = {value: len(pairs_of({**row, name: value}, wanted) & missing.keys()) for value in values}
                row[name] = max(values, key=lambda value: (new[value], -used[name, value]))
        for pair in pairs_of(row, wanted):
            missing.pop(pair, None)
        used.update(row.items())
        rows.append({name: row[name] for name in factors})
    return rows


def each_value_once(rows: Sequence[Row]) -> list[Row]:
    """Few of the rows in which every value of every factor occurs."""
    missing, chosen = {item for row in rows for item in row.items()}, []
    while missing:
        row = max(rows, key=lambda row: len(missing & row.items()))
        chosen.append(row)
        missing -= row.items()
    return chosen


ROWS = covering(FACTORS, ALL_PAIRS)
# Workers take seconds to start: an ordinary run has them in tests/command/test_train.py.
ORDINARY = each_value_once([row for row in ROWS if not row["workers"]])
# Two processes: every value of a large factor with every value of the small ones, and not the large ones with each other.
ON_TWO = covering({**FACTORS, "signalled": (0, 1)}, [(a, b) for a, b in itertools.combinations([*FACTORS, "signalled"], 2) if not {a, b} <= LARGE])


def named(row: Row) -> str:
    return "-".join(str(value) for value in row.values())


def cases(rows: Sequence[Row], ordinary: Sequence[Row] = ()) -> list[Any]:
    return [pytest.param(row, id=named(row), marks=() if row in ordinary else pytest.mark.long) for row in rows]


def test_the_factors_are_all_that_there_are() -> None:
    assert set(FACTORS["objective"]) == set(groups()["objective"])
    assert set(FACTORS["mode"]) == set(groups()["finetune"])


@pytest.mark.parametrize(("a", "b"), ALL_PAIRS)
def test_any_two_values_of_two_factors_meet_in_a_row(a: str, b: str) -> None:
    assert {(row[a], row[b]) for row in ROWS} == set(itertools.product(FACTORS[a], FACTORS[b]))
    assert len(ROWS) < 70  # of 1960


def test_the_ordinary_rows_have_every_value_and_those_on_two_processes_every_pair_with_a_small_factor() -> None:
    for name, values in FACTORS.items():
        assert {row[name] for row in ORDINARY} == set(values if name != "workers" else values[:1])
        for small in {"precision", "workers", "moment", "signalled"} - {name}:
            assert {(row[name], row[small]) for row in ON_TWO} == set(itertools.product(values, FACTORS.get(small, (0, 1))))
    assert (len(ORDINARY) <= 12, len(ON_TWO) <= 20) == (True, True)


# Micro-batches, so that there is a middle of an update; an epoch ends within the run; a record of metrics.jsonl spans two updates.
PORTIONS = ("trainer.batch_size=16", "trainer.micro_batch_size=4", f"trainer.max_steps={STEPS}", "checkpoint.keep_last=9", "distributed.timeout_s=120")
TEXTS = ("data.documents=24", "data.words=100", "data.max_length=24")
PAIRS = ("data.documents=30", "data.words=200", "data.max_length=48")
DATA = {"next_token": (*TEXTS, "data.words=30"), "masked_lm": TEXTS, "sentence_order": PAIRS, "bert": PAIRS}
MODES = {"last_layers": ("finetune.blocks=1",), "layers": ("finetune.address=first:1",), "lora": ("finetune.rank=2",)}
UNTIED = ("features", "lp_ft")  # of a GPT's output matrix, which is tied to the frozen embeddings, nothing else is left to train


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory, token_cache: Path) -> dict[str, Path]:
    """A tiny GPT and a tiny BERT with all of its heads, both with dropout."""
    folder = tmp_path_factory.mktemp("bases")
    answers = {"gpt": ANSWERS["next_token"], "bert": ANSWERS["bert"]}
    with pytest.MonkeyPatch.context() as patch:
        quick(patch)
        few = ("trainer.max_steps=2", "checkpoint.every_steps=null", "evaluation.every_steps=null", DROPOUT)
        return {name: go(folder / name, "pretrain", tiny(*answer, *few)) for name, answer in answers.items()}


def typed_of(row: Row, bases: Mapping[str, Path]) -> tuple[str, ...]:
    objective, mode = row["objective"], row["mode"]
    causal = objective == "next_token"
    untied = ("finetune.untie=true",) if causal and mode in UNTIED else ()
    chosen = (f"objective={objective}", f"finetune={mode}", *MODES.get(mode, ()), *untied, *DATA.get(objective, ()), *PORTIONS)
    return (*tiny(*chosen, f"precision={row['precision']}", base=TINY_FINETUNE), f"model.checkpoint={bases['gpt' if causal else 'bert']}")


@dataclasses.dataclass
class Unbroken:
    """What runs give that nothing happens to, each made when it is first asked for. Workers change no bit: it has none."""

    folder: Path
    found: dict[str, dict[str, str]] = dataclasses.field(default_factory=dict)

    def __call__(self, name: str, make: Callable[[Path], Any]) -> dict[str, str]:
        if name not in self.found:
            make(self.folder / name)
            self.found[name] = everything(self.folder / name)
        return self.found[name]

    def of(self, row: Row, typed: Sequence[str]) -> dict[str, str]:
        return self("-".join((row["objective"], row["mode"], row["precision"])), lambda folder: go(folder, "finetune", typed))


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Unbroken:
    return Unbroken(tmp_path_factory.mktemp("unbroken"))


@pytest.mark.parametrize("row", cases(ROWS, ORDINARY))
def test_r2_r3_stopped_after_an_update_and_resumed_a_run_has_the_bits_of_the_unbroken_one(
    bases: dict[str, Path], unbroken: Unbroken, tmp_path: Path, row: Row
) -> None:
    typed = typed_of(row, bases)
    broken = (*typed, f"data.num_workers={row['workers']}")
    stop(tmp_path / "run", "finetune", broken, row["stop"], row["moment"])
    assert everything(go(tmp_path / "run", "finetune", broken)) == unbroken.of(row, typed)


@pytest.mark.long
@pytest.mark.parametrize("row", cases(ROWS))
def test_r2_r3_stopped_after_every_update_and_resumed_each_time_a_run_has_the_bits_of_the_unbroken_one(
    bases: dict[str, Path], unbroken: Unbroken, tmp_path: Path, row: Row
) -> None:
    typed = typed_of(row, bases)
    for step in range(1, STEPS):
        workers = row["workers"] if step == row["stop"] else 0  # one of the six times: to start them takes long
        stop(tmp_path / "run", "finetune", (*typed, f"data.num_workers={workers}"), step, FACTORS["moment"][step % 2])
    assert everything(go(tmp_path / "run", "finetune", typed)) == unbroken.of(row, typed)


@pytest.mark.long
@pytest.mark.parametrize("objective", ANSWERS)
def test_the_matrix_stops_within_an_update_of_several_passes_at_the_end_of_an_epoch_and_on_both_sides_of_a_phase(
    bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, objective: str
) -> None:
    """Without this the matrix might never be where it is hard."""
    epochs: list[int] = []
    real = trainer.Trainer._update

    def update(self: trainer.Trainer, batches: Any) -> Any:
        leg = self.legs[self.state.phase].stage.order
        assert len(batches) > 1 or self.state.phase_step % leg.per_epoch == leg.per_epoch - 1  # the last batch of an epoch may be small
        epochs.append(self.state.phase_step // leg.per_epoch)
        return real(self, batches)

    monkeypatch.setattr(trainer.Trainer, "_update", update)
    go(tmp_path / "full", "finetune", typed_of({"objective": objective, "mode": "full", "precision": "fp32"}, bases))
    assert 0 < epochs.count(0) < STEPS
    assert len(epochs) == STEPS
    go(tmp_path / "gradual", "finetune", (*typed_of({"objective": objective, "mode": "gradual", "precision": "fp32"}, bases), "trainer.log_every_steps=1"))
    phases = [checkpoint.run_state(path).phase for path in reversed(checkpoint.listed(tmp_path / "gradual"))]
    assert len(set(phases)) > 1


# --- two processes --------------------------------------------------------------------------------------------------


def serve() -> None:
    """One of two processes that train one run after the other: a line of JSON asks for a run, the exit code answers."""
    rank, answers = int(os.environ["RANK"]), os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    from accelerate import PartialState

    for line in sys.stdin:
        ask = json.loads(line)
        os.environ[processes.MEETING] = ask["meeting"]
        with pytest.MonkeyPatch.context() as patch:
            quick(patch)
            if ask["stop"] and rank == ask["signalled"]:
                signal_at(patch, ask["stop"], ask["moment"])
            code = command.run_as_rank(composed(ask["verb"], tuple(ask["typed"])).config, ask["verb"], Path(ask["run"]))
        PartialState._reset_state()
        print(code, file=answers)


class Two:
    """Two processes that stay: to start them takes longer than all that they train."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.number = folder, 0
        self.log = (folder / "log").open("w")
        own = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        asked = [sys.executable, "-W", "ignore", "-c", "from tests.test_resume import serve; serve()"]
        self.ranks = [
            subprocess.Popen(
                asked, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True, cwd=ROOT,
                env={**os.environ, **own, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            )
            for rank in (0, 1)
        ]  # fmt: skip

    def __call__(self, run: Path, verb: str, typed: Sequence[str], step: int = 0, moment: str = "after", signalled: int = 1) -> list[int]:
        """The exit codes of both. Signalled is only one of them."""
        self.number += 1
        meeting = self.folder / str(self.number)
        meeting.mkdir()
        ask = {"meeting": str(meeting), "run": str(run), "verb": verb, "typed": list(typed), "stop": step, "moment": moment, "signalled": signalled}
        run.mkdir(parents=True, exist_ok=True)
        with runtime.locked(run):
            command.write_config(run, composed(verb, tuple(typed)).config, list(typed))
            for rank in self.ranks:
                assert rank.stdin is not None
                rank.stdin.write(json.dumps(ask) + "\n")
                rank.stdin.flush()
            return [self._answer(rank) for rank in self.ranks]

    def _answer(self, rank: subprocess.Popen[str]) -> int:
        assert rank.stdout is not None
        ready, _, _ = select.select([rank.stdout], [], [], 300)
        line = rank.stdout.readline() if ready else ""
        assert line, f"no answer; {(self.folder / 'log').read_text()[-3000:]}"
        return int(line)

    def close(self) -> None:
        for rank in self.ranks:
            assert rank.stdin is not None
            assert rank.stdout is not None
            rank.stdin.close()
            try:
                rank.wait(20)
            except subprocess.TimeoutExpired:
                rank.kill()
                rank.wait()
            rank.stdout.close()
        self.log.close()


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, token_cache: Path) -> Iterator[Two]:
    found = Two(tmp_path_factory.mktemp("two"))
    try:
        yield found
    finally:
        found.close()


@pytest.mark.long
@pytest.mark.parametrize("row", cases(ON_TWO))
def test_r3_two_processes_of_which_one_is_signalled_stop_together_and_resume_to_the_bits_of_the_unbroken_run(
    bases: dict[str, Path], two: Two, unbroken: Unbroken, tmp_path: Path, row: Row
) -> None:
    typed = (*typed_of(row, bases), "devices=2")
    broken = (*typed, f"data.num_workers={row['workers']}")
    assert two(tmp_path / "run", "finetune", broken, row["stop"], row["moment"], row["signalled"]) == [75, 75]
    assert checkpoint.step_of(checkpoint.listed(tmp_path / "run")[0]) == row["stop"]
    assert two(tmp_path / "run", "finetune", broken) == [0, 0]
    name = "-".join(("two", row["objective"], row["mode"], row["precision"]))
    assert everything(tmp_path / "run") == unbroken(name, lambda folder: two(folder, "finetune", typed))


@pytest.mark.parametrize("batch_size", [4, 8, 12])
def test_r10_a_run_that_goes_from_one_number_of_processes_to_another_has_the_global_batches_of_one_process(batch_size: int) -> None:
    order = Order(np.random.default_rng(batch_size).integers(3, 20, 50), batch_size, seed=1)
    (straight, *_), number = ([b.tolist() for _, b in itertools.islice(order.updates(), 20)],), 0
    for before, after, step in itertools.product((1, 2, 4), (1, 2, 4), range(20)):
        found = []
        for world, start, end in ((before, 0, step), (after, step, 20)):
            for _, batch in itertools.islice(order.updates(start), end - start):
                slices = [micro_batches(batch, rank, world, 2) for rank in range(world)]
                found.append([sample for one in slices for samples, real in one if real for sample in samples])
        assert found == straight
        number += 1
    assert number == 180


# --- the matrix can fail --------------------------------------------------------------------------------------------

GPT = (*TINY, DROPOUT, "trainer.micro_batch_size=4", "checkpoint.keep_last=9")
WORSE = {3: 2.0, STEPS: 3.0}  # the first evaluation stays the best, which is then a thing to remember
STOPPED = 5  # in the middle of an interval of metrics.jsonl
# The next evaluation takes the place of the last one's metrics, and the next finite update ends a row of skipped ones: its test is test_train's.
UNSEEN = {*CLOCKS, "metrics", "skipped_in_a_row"}
OTHER: dict[str, Any] = {  # where one more is not another state
    "evaluated_step": STEPS, "best": 1e9, "best_step": 4, "best_metric": "perplexity", "best_metrics": {},
    "window": {}, "losses": [], "spike_step": 1, "stop": "why",
}  # fmt: skip


def follow(patch: pytest.MonkeyPatch, course: Mapping[int, float]) -> None:
    """Let evaluations give these losses, by their step."""
    real_evaluate, real_metrics, at = trainer.Trainer._evaluate, NextToken.metrics, [0]

    def evaluate(self: trainer.Trainer) -> None:
        at[0] = self.state.step
        real_evaluate(self)

    patch.setattr(trainer.Trainer, "_evaluate", evaluate)
    patch.setattr(NextToken, "metrics", lambda self, totals: {**real_metrics(self, totals), "loss": course[at[0]]})


@pytest.fixture(scope="module")
def worse(unbroken: Unbroken, token_cache: Path) -> tuple[Path, dict[str, str]]:
    """A run that was stopped, of which one takes a copy, and what the unbroken one gives."""
    with pytest.MonkeyPatch.context() as patch:
        quick(patch)
        follow(patch, WORSE)
        stop(unbroken.folder / "stopped", "pretrain", GPT, STOPPED, "after")
        return unbroken.folder / "stopped", unbroken("worse", lambda folder: go(folder, "pretrain", GPT))


def resumed(run: Path, folder: Path, change: Callable[[Path], None]) -> dict[str, str]:
    """What comes of a copy of a stopped run whose checkpoint is another one."""
    shutil.copytree(run, folder, symlinks=True)
    newest = checkpoint.listed(folder)[0]
    change(newest)
    (newest / files.MANIFEST).unlink()
    files.write_manifest(newest, {"step": checkpoint.step_of(newest)})
    with pytest.MonkeyPatch.context() as patch:
        follow(patch, WORSE)
        return everything(go(folder, "pretrain", GPT))


def test_unchanged_the_copy_of_a_stopped_run_has_the_bits_of_the_unbroken_one(worse: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    run, straight = worse
    assert parsed(straight, "state")["best_step"] == 3
    assert resumed(run, tmp_path / "run", lambda path: None) == straight


FIELDS = [field.name for field in dataclasses.fields(RunState) if field.name not in UNSEEN]


@pytest.mark.parametrize("field", [pytest.param(f, marks=() if f in ("micro_step", "window") else pytest.mark.long) for f in FIELDS])
def test_each_number_of_the_state_that_a_checkpoint_lost_is_seen(worse: tuple[Path, dict[str, str]], tmp_path: Path, field: str) -> None:
    run, straight = worse

    def lose(path: Path) -> None:
        content = json.loads((path / "state.json").read_text())
        before = content["run"][field]
        content["run"][field] = OTHER[field] if field in OTHER else before + 1
        assert content["run"][field] != before
        (path / "state.json").write_text(json.dumps(content))

    if field == "phase":  # there is one alone
        with pytest.raises(CheckpointError, match="stands in stretch 2"):
            resumed(run, tmp_path / "run", lose)
        return
    found = resumed(run, tmp_path / "run", lose)
    assert found != straight
    if field in ("step", "micro_step", "phase_step"):  # which sample comes next, and what is dropped of it
        assert found["weights"] != straight["weights"]


@pytest.mark.parametrize(
    ("file", "kind"),
    [
        ("optimizer", "exp_avg"),
        *(pytest.param(*row, marks=pytest.mark.long) for row in (("optimizer", "exp_avg_sq"), ("optimizer", "step"), ("model", "weight"))),
    ],
)
def test_a_single_tensor_that_a_checkpoint_lost_is_seen(worse: tuple[Path, dict[str, str]], tmp_path: Path, file: str, kind: str) -> None:
    run, straight = worse

    def lose(path: Path) -> None:
        tensors = safetensors.torch.load((path / f"{file}.safetensors").read_bytes())
        name = next(name for name, tensor in tensors.items() if name.endswith(kind) and tensor.any())
        tensors[name] = torch.zeros_like(tensors[name])
        (path / f"{file}.safetensors").write_bytes(safetensors.torch.save(tensors))

    found = resumed(run, tmp_path / "run", lose)
    assert (found["weights"] != straight["weights"], found["optimizer"] != straight["optimizer"]) == (True, True)


def scaled(patch: pytest.MonkeyPatch, lost: bool = False) -> None:
    """A loss scaler as fp16 has one, on a CPU that has none; its scale doubles at every other update. `lost`: a resume does without its state."""
    real = trainer.Trainer.restore

    def restore(self: trainer.Trainer) -> None:
        real(self)
        self.runtime.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=2)
        if lost:
            self._scaler = None

    patch.setattr(trainer.Trainer, "restore", restore)


@pytest.mark.long
def test_the_loss_scaler_goes_on_where_it_was_and_one_that_a_checkpoint_lost_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        scaled(patch)
        straight = everything(go(tmp_path / "straight", "pretrain", GPT))
        assert parsed(straight, "scaler")["scale"] > 8
        for step in range(1, STEPS):
            stop(tmp_path / str(step), "pretrain", GPT, step, "after")
        shutil.copytree(tmp_path / "3", tmp_path / "lost", symlinks=True)
        for step in range(1, STEPS):
            assert everything(go(tmp_path / str(step), "pretrain", GPT)) == straight
    scaled(monkeypatch, lost=True)
    found = everything(go(tmp_path / "lost", "pretrain", GPT))
    assert (found["scaler"] != straight["scaler"], found["weights"] != straight["weights"]) == (True, True)


# --- lives of a run -------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """Not an Exception: nobody answers a SIGKILL."""


# Where a kill comes: before the call of a function.
PLACES: dict[str, tuple[Any, str]] = {
    "a forward pass": (Learner, "forward"),
    "a record": (Metrics, "on_step"),
    "an evaluation": (trainer, "evaluate"),
    "a checkpoint": (checkpoint, "save"),
    "a manifest": (files, "write_manifest"),
    "the removal of old checkpoints": (checkpoint, "prune"),
    "the export": (command, "_export"),
    "the last word": (command, "_goodbye"),
}


def kill_at(patch: pytest.MonkeyPatch, place: str, nth: int, run: Path, left: Path) -> None:
    """At the nth call, leave a copy of the run's folder as it is on the disk then: what unwinding writes afterwards, a SIGKILL would not have."""
    where, name = PLACES[place]
    real, calls = getattr(where, name), itertools.count(1)

    def killed(*arguments: Any, **named: Any) -> Any:
        if next(calls) == nth:
            shutil.copytree(run, left, symlinks=True)
            raise Killed
        return real(*arguments, **named)

    patch.setattr(where, name, killed)


SETTINGS = [
    ("data.num_workers", (0, 2)),
    ("evaluation.every_steps", ("null", 1, 2, 3)),
    ("trainer.log_every_steps", (1, 2, 3)),
    ("checkpoint.every_steps", ("null", 1, 3)),
    ("checkpoint.keep_last", (1, 3)),
    ("checkpoint.keep_best", ("true", "false")),
]
ACTIONS = st.one_of(
    st.tuples(st.just("stop"), st.integers(1, 3), st.sampled_from(FACTORS["moment"])),
    st.tuples(st.just("kill"), st.sampled_from(list(PLACES)), st.integers(1, 7)),
    st.one_of(*(st.tuples(st.just("set"), st.just(key), st.sampled_from(values)) for key, values in SETTINGS)),
    st.just(("evaluate",)),
)
Action = tuple[Any, ...]


def live(folder: Path, verb: str, typed: Sequence[str], actions: Sequence[Action]) -> Path:
    """What becomes of a run to which all of this happens, one after the other, and which is then let finish."""
    run, changed = folder / "run", {}
    for number, (kind, *details) in enumerate(actions):
        if kind == "set":
            changed[details[0]] = f"{details[0]}={details[1]}"
        elif kind == "evaluate":
            # An interrupted run has no final/ to evaluate, and is told so.
            assert cli.main(["evaluate", f"model.checkpoint={run}", "device=cpu", "threads=1"]) == (0 if (run / "final").is_dir() else 4)
        else:
            with pytest.MonkeyPatch.context() as patch:
                if kind == "stop":
                    found = checkpoint.listed(run)
                    signal_at(patch, (checkpoint.step_of(found[0]) if found else 0) + details[0], details[1])
                else:
                    kill_at(patch, *details, run=run, left=folder / str(number))
                try:
                    go(run, verb, tiny(*changed.values(), base=tuple(typed)))
                except Stopped:
                    pass
                except Killed:
                    run = folder / str(number)
    return go(run, verb, tiny(*changed.values(), base=tuple(typed)))


def the_same_life(run: Path, straight: Mapping[str, str]) -> None:
    """Compare with a run that recorded and evaluated after every update: what other settings leave of records and evaluations is the same."""
    found = everything(run)
    assert [found[name] for name in ("weights", "optimizer", "final")] == [straight[name] for name in ("weights", "optimizer", "final")]
    kept = ("step", "micro_step", "tokens", "samples", "phase", "phase_step", "metrics", "losses", "skipped", "spike_step", "stop")
    assert {name: parsed(found, "state")[name] for name in kept} == {name: parsed(straight, "state")[name] for name in kept}
    for among in (lambda record: "lr" in record, lambda record: "lr" not in record):
        records, all_of = (list(filter(among, parsed(one, "metrics"))) for one in (found, straight))
        steps = [record["step"] for record in records]
        assert steps == sorted(set(steps))
        for record in records:
            (same,) = [other for other in all_of if other["step"] == record["step"]]
            assert {name: value for name, value in record.items() if "loss_" not in name} == {n: v for n, v in same.items() if "loss_" not in n}
    assert parsed(found, "metrics")[-1]["step"] == STEPS


LIVES: dict[str, Callable[[Mapping[str, Path]], tuple[str, tuple[str, ...]]]] = {
    "a GPT from nothing": lambda bases: ("pretrain", GPT),
    "a classifier that is thawed in three phases": lambda bases: (
        "finetune",
        typed_of({"objective": "classification", "mode": "gradual", "precision": "fp32"}, bases),
    ),
}
KNOWN: list[list[Action]] = [
    [("set", "trainer.log_every_steps", 1), ("set", "checkpoint.every_steps", 3), ("kill", "a record", 3), ("stop", 2, "amid"), ("evaluate",)],
    [("kill", "a forward pass", 1), ("set", "evaluation.every_steps", 1), ("kill", "the removal of old checkpoints", 3), ("stop", 1, "amid")],
    [("stop", 1, "after"), ("set", "data.num_workers", 2), ("set", "trainer.log_every_steps", 3), ("kill", "the last word", 1), ("stop", 1, "after")],
    [("stop", 3, "after"), ("stop", 3, "after")],
]


@pytest.mark.parametrize(
    ("life", "times"),
    [pytest.param("a GPT from nothing", 1, id="some"), *(pytest.param(life, 60, id=life, marks=pytest.mark.long) for life in LIVES)],
)
def test_r17_whatever_happens_to_a_run_in_whatever_order_it_has_the_bits_of_the_unbroken_one(
    bases: dict[str, Path], unbroken: Unbroken, tmp_path: Path, life: str, times: int
) -> None:
    set_hypothesis_home_dir(tmp_path / "hypothesis")
    verb, typed = LIVES[life](bases)
    straight = unbroken(life, lambda folder: go(folder, verb, tiny("trainer.log_every_steps=1", "evaluation.every_steps=1", base=typed)))

    def check(actions: list[Action]) -> None:
        with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
            the_same_life(live(Path(folder), verb, typed, actions), straight)

    fuzz(check, times, st.lists(ACTIONS, min_size=2, max_size=6), found=KNOWN if times > 1 else KNOWN[:1])


@pytest.mark.parametrize("moment", FACTORS["moment"])
def test_a_signal_around_the_last_update_leaves_its_evaluation_to_the_resume(unbroken: Unbroken, tmp_path: Path, moment: str) -> None:
    stop(tmp_path / "run", "pretrain", GPT, STEPS, moment)
    assert everything(go(tmp_path / "run", "pretrain", GPT)) == unbroken("gpt", lambda folder: go(folder, "pretrain", GPT))


# What draws otherwise than by the settings that the rows above have.
VARIANTS = {
    "random negatives and whole words": (*ANSWERS["bert"], "objective.sentence_order.negatives=random", "objective.masked_lm.whole_word=true"),
    "packed sequences and whole words": (*ANSWERS["masked_lm"], "objective.packing=true", "objective.whole_word=true"),
    "both answers": (*ANSWERS["bert"], "objective.sentence_order.both_answers=true"),
    "random negatives alone": (*ANSWERS["sentence_order"], "objective.negatives=random"),
}


@pytest.mark.parametrize("variant", [pytest.param(v, marks=pytest.mark.long) if v.endswith("alone") else v for v in VARIANTS])
def test_r2_what_is_drawn_in_other_ways_is_drawn_again_after_a_stop(unbroken: Unbroken, tmp_path: Path, variant: str) -> None:
    typed = tuple(tiny(*VARIANTS[variant], f"trainer.max_steps={STEPS}", "trainer.micro_batch_size=4"))
    stop(tmp_path / "run", "pretrain", typed, 3, "amid")
    assert everything(go(tmp_path / "run", "pretrain", typed)) == unbroken(variant, lambda folder: go(folder, "pretrain", typed))


# --- the best, and stopping early -----------------------------------------------------------------------------------

NAN = math.nan
# The loss of each evaluation. The best is the third; two that are none, one that is worse and one that is equal are no improvement.
COURSE = {1: NAN, 2: 3.0, 3: 2.0, 4: NAN, 5: 2.5, 6: 2.0, 7: 1.0, 8: 1.0, 9: 1.0}
EARLY = tiny(*GPT, "evaluation.every_steps=1", "callback.early_stopping.patience=3", "trainer.max_steps=9", "checkpoint.export=best", "checkpoint.keep_last=1")


def best_of(unbroken: Unbroken) -> dict[str, str]:
    straight = unbroken("early", lambda folder: go(folder, "pretrain", EARLY))
    state, told = parsed(straight, "state"), parsed(straight, "told")
    assert (state["best"], state["best_step"], state["step"], state["since_best"]) == (2.0, 3, 6, 3)
    assert told["stopped"].startswith("early stopping: ")
    assert parsed(straight, "best") == "step-00000003"
    (exported,) = parsed(straight, "final").values()
    assert exported != parsed(straight, "weights")  # which are those of the last step
    return straight


@pytest.mark.long
def test_r14_the_best_and_early_stopping_survive_a_stop_after_every_update_and_a_nan_is_never_the_best(
    unbroken: Unbroken, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    follow(monkeypatch, COURSE)
    straight = best_of(unbroken)
    for step in range(1, 7):  # the sixth comes before the evaluation that ends the run
        stop(tmp_path / "run", "pretrain", EARLY, step, FACTORS["moment"][step % 2])
    assert everything(go(tmp_path / "run", "pretrain", EARLY)) == straight
    kept = sorted(path.name for path in checkpoint.listed(tmp_path / "run"))
    assert kept == sorted(path.name for path in checkpoint.listed(unbroken.folder / "early")) == ["step-00000003", "step-00000006"]


@pytest.mark.long
@pytest.mark.parametrize("moment", FACTORS["moment"])
@pytest.mark.parametrize("step", range(1, 7))
def test_r14_the_best_and_early_stopping_survive_a_stop_after_any_update(
    unbroken: Unbroken, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, moment: str
) -> None:
    follow(monkeypatch, COURSE)
    stop(tmp_path / "run", "pretrain", EARLY, step, moment)
    assert everything(go(tmp_path / "run", "pretrain", EARLY)) == best_of(unbroken)


@pytest.mark.long
@pytest.mark.parametrize("place", ["the removal of old checkpoints", "the export", "the last word"])
def test_r14_a_run_that_stopped_early_and_was_killed_before_its_end_does_not_train_on(
    unbroken: Unbroken, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    follow(monkeypatch, COURSE)
    saves = len([path for path in range(1, 7) if path % 2 == 0 or path == 3])
    with monkeypatch.context() as patch:
        kill_at(patch, place, saves if place == "the removal of old checkpoints" else 1, tmp_path / "run", tmp_path / "left")
        with pytest.raises(Killed):
            go(tmp_path / "run", "pretrain", EARLY)
    assert everything(go(tmp_path / "left", "pretrain", EARLY)) == best_of(unbroken)


@pytest.mark.parametrize("step", [pytest.param(3, marks=pytest.mark.long), 6])
def test_r14_a_signal_between_an_evaluation_and_what_follows_from_it_does_not_undo_early_stopping(
    unbroken: Unbroken, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    follow(monkeypatch, COURSE)
    straight, real = best_of(unbroken), EarlyStopping.on_evaluate

    def on_evaluate(self: EarlyStopping, run: Any, state: RunState, metrics: Any) -> None:
        if state.step == step:
            os.kill(os.getpid(), signal.SIGTERM)
        real(self, run, state, metrics)

    with monkeypatch.context() as patch, contextlib.suppress(Stopped):
        patch.setattr(EarlyStopping, "on_evaluate", on_evaluate)
        go(tmp_path / "run", "pretrain", EARLY)
    assert everything(go(tmp_path / "run", "pretrain", EARLY)) == straight


def test_r14_of_evaluations_that_are_all_none_there_is_no_best_and_the_last_weights_are_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    follow(monkeypatch, dict.fromkeys(COURSE, NAN))
    stop(tmp_path / "run", "pretrain", EARLY, 2, "after")
    found = everything(go(tmp_path / "run", "pretrain", EARLY))
    state, told = parsed(found, "state"), parsed(found, "told")
    assert (state["best"], state["best_step"], state["step"], parsed(found, "best")) == (None, None, 3, None)
    assert (told["status"], told["best"]["step"]) == ("finished", None)
    assert math.isnan(told["validation"]["loss"])


# --- a run that is finished, and one that is not there --------------------------------------------------------------

GROWS = {"overrides.txt", "train.log"}  # a line for each time that the command was given
ENDED: dict[str, tuple[str, tuple[str, ...]]] = {
    "at its end": ("pretrain", GPT),
    "early": ("pretrain", tuple(EARLY)),
    "finetuning": ("finetune", ("finetune=features",)),
}


def facts(run: Path) -> dict[str, tuple[int, str]]:
    """When each file was last written, and what is in it; of folders and links, what they hold."""
    names = [path for path in sorted(run.rglob("*")) if not path.name.startswith(".lock") and path.name not in GROWS]
    return {
        path.relative_to(run).as_posix(): (0, os.readlink(path))
        if path.is_symlink()
        else (path.stat().st_mtime_ns, digest(path) if path.is_file() else "folder")
        for path in names
    }


@pytest.mark.long  # the ordinary run has one in tests/command/test_train.py
@pytest.mark.parametrize("how", ENDED)
def test_r12_e19_a_finished_run_is_left_as_it_is_with_exit_code_0(
    bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], how: str
) -> None:
    follow(monkeypatch, COURSE)
    verb, typed = ENDED[how]
    if verb == "finetune":
        typed = (*tiny(*typed, base=TINY_FINETUNE), f"model.checkpoint={bases['bert']}")
    run = go(tmp_path / "run", verb, typed)
    steps = 6
    before, grown = facts(run), {name: (run / name).read_bytes() for name in GROWS}
    assert {"run.json", "resolved.yaml", "config.yaml", "metrics.jsonl", "final/model.safetensors", "checkpoints/last"} <= before.keys()
    for again in ((), ("evaluation.every_steps=1", "checkpoint.every_steps=1", "trainer.log_every_steps=1")):
        capsys.readouterr()
        assert cli.main([verb, *tiny(*again, base=tuple(typed)), f"output_dir={run}"]) == 0
        assert f"already complete: {steps} of " in capsys.readouterr().out
        assert facts(run) == before
    for name, content in grown.items():
        assert (run / name).read_bytes().startswith(content)
    assert (run / "overrides.txt").read_text().count("\n") == 3


@pytest.mark.parametrize("there", ["nothing", "an empty folder", "what a refused start leaves"])
def test_e20_resume_must_is_refused_with_4_where_there_is_no_run_and_makes_none(tmp_path: Path, capsys: pytest.CaptureFixture[str], there: str) -> None:
    run = tmp_path / "run"
    if there != "nothing":
        run.mkdir()
    if there == "what a refused start leaves":
        (run / ".lock").touch()
    before = sorted(tmp_path.rglob("*"))
    assert cli.main(["pretrain", *TINY, f"output_dir={run}", "resume=must"]) == 4
    said = capsys.readouterr().err
    assert (f"resume=must: {run} is not a run" in said, "resume=auto" in said, len(said.splitlines()) <= 6) == (True, True, True)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.long
def test_e20_resume_auto_in_an_empty_folder_starts_and_resume_must_takes_what_was_begun_only_once_there_is_a_checkpoint(
    unbroken: Unbroken, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        kill_at(patch, "a checkpoint", 1, run, tmp_path / "begun")
        with pytest.raises(Killed):
            cli.main(["pretrain", *GPT, f"output_dir={run}", "resume=auto"])
    begun = tmp_path / "begun"
    assert "starting from step 0" in capsys.readouterr().out
    assert (begun / "config.yaml").is_file()
    assert cli.main(["pretrain", *GPT, f"output_dir={begun}", "resume=must"]) == 4
    assert f"resume=must: {begun} has no checkpoint" in capsys.readouterr().err
    assert cli.main(["pretrain", *GPT, f"output_dir={begun}", "resume=auto"]) == 0
    assert "starting from step 0" in capsys.readouterr().out
    assert everything(begun) == unbroken("gpt", lambda folder: go(folder, "pretrain", GPT))


# --- relations ------------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_r1_a_process_of_its_own_with_another_order_of_its_sets_gives_the_same_bits(unbroken: Unbroken, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "12345", "LLMTRAIN_CACHE": str(tmp_path / "cache")}
    asked = [sys.executable, "-W", "ignore", "-m", "llmtrain", "pretrain", *GPT, f"output_dir={tmp_path / 'run'}"]
    subprocess.run(asked, capture_output=True, timeout=300, cwd=tmp_path, env=environment, check=True)
    assert everything(tmp_path / "run") == unbroken("gpt", lambda folder: go(folder, "pretrain", GPT))


EVERY = [pytest.param(name, marks=() if name == "bert" else pytest.mark.long) for name in ANSWERS]


@pytest.mark.parametrize("objective", EVERY)
def test_r18_without_dropout_the_loss_of_an_update_is_what_an_evaluation_of_the_weights_before_it_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, objective: str
) -> None:
    real, seen = trainer.Trainer._update, []

    def update(self: trainer.Trainer, batches: Any) -> Any:
        totals = Totals()
        self.model.eval()
        with torch.no_grad():
            for batch in batches:
                trainer.add(totals, batch, self._call(batch))
        trainer.set_modes(self.model, self._eval)
        step = real(self, batches)
        assert set(step.losses) <= set(totals.sums)
        for term, loss in step.losses.items():
            assert loss == pytest.approx(totals.sums[term] / totals.counts[term], rel=1e-6)
            seen.append(term)
        return step

    monkeypatch.setattr(trainer.Trainer, "_update", update)
    typed = tiny(*ANSWERS[objective], "model.dropout=0", "trainer.micro_batch_size=4", "trainer.max_steps=3", "evaluation.every_steps=null")
    go(tmp_path / "run", "pretrain", typed)
    assert len(seen) >= 3


@pytest.mark.long
@pytest.mark.parametrize("objective", ANSWERS)
def test_r18_how_often_is_recorded_and_saved_changes_no_weight_and_no_evaluation(tmp_path: Path, objective: str) -> None:
    typed = tiny(*ANSWERS[objective], DROPOUT, "trainer.micro_batch_size=4")
    usual = everything(go(tmp_path / "usual", "pretrain", typed))
    other = everything(go(tmp_path / "other", "pretrain", tiny("trainer.log_every_steps=1", "checkpoint.every_steps=1", base=tuple(typed))))
    assert [other[name] for name in ("weights", "optimizer", "final")] == [usual[name] for name in ("weights", "optimizer", "final")]
    assert parsed(other, "told")["validation"] == parsed(usual, "told")["validation"]


@pytest.mark.long
@pytest.mark.parametrize("objective", ANSWERS)
def test_r18_another_seed_changes_the_first_weights_the_order_and_what_is_dropped_and_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, objective: str
) -> None:
    """All of them at once would hide one that stays: each is looked at by itself."""
    real, seen = trainer.Trainer._update, []

    def update(self: trainer.Trainer, batches: Any) -> Any:
        weights = {name: p.detach().clone() for name, p in self.saved.named_parameters()}
        inputs = {s: row.tolist() for b in batches for s, row in zip(b.samples, b.inputs["input_ids"], strict=False)}
        done = real(self, batches)
        seen.append((weights, inputs, done.losses))
        return done

    monkeypatch.setattr(trainer.Trainer, "_update", update)
    for seed in (0, 1):
        run = ("model.dropout=0.1", "trainer.max_steps=8", f"seed={seed}", "evaluation.every_steps=null")
        go(tmp_path / str(seed), "pretrain", tiny(*ANSWERS[objective], *run))
    one, other = seen[:8], seen[8:]
    drawn = [name for name, weight in one[0][0].items() if weight.numel() > 1 and weight.std() > 0]
    assert len(drawn) > 5
    assert [name for name in drawn if torch.equal(one[0][0][name], other[0][0][name])] == []
    assert [list(a[1]) for a in one] != [list(b[1]) for b in other]
    if objective in ("masked_lm", "bert"):
        both = [(a, b) for a in one for b in other if a[1].keys() & b[1].keys()]
        masks = [a[1][s] != b[1][s] for a, b in both for s in a[1].keys() & b[1].keys()]
        assert sum(masks) > len(masks) / 2 > 0
