"""Exact resume: a run that is stopped anywhere and started again ends with the bits of the unbroken one."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from llmtrain.cli import main
from llmtrain.command import train as command
from llmtrain.config import compose
from llmtrain.data import tokenizer as tokens
from llmtrain.errors import CheckpointError, ConfigError, NonFiniteError, Stopped
from tests.conftest import ANSWERS, SOME, Train, outcome, record_of, stop_after, tiny
from tests.test_trainer import spoil

DROPOUT = "model.dropout=0.1"
MICRO = "trainer.micro_batch_size=4"


def test_the_same_run_twice_gives_the_same_bits(train: Train, tmp_path: Path) -> None:
    assert outcome(train(tmp_path / "a", DROPOUT, MICRO)) == outcome(train(tmp_path / "b", DROPOUT, MICRO))


def test_another_seed_gives_other_bits(train: Train, tmp_path: Path) -> None:
    assert outcome(train(tmp_path / "a"))["weights"] != outcome(train(tmp_path / "b", "seed=1"))["weights"]


@pytest.mark.parametrize(
    ("objective", "step"),
    [
        pytest.param(objective, step, marks=() if objective == "next_token" or (step == 3 and objective in ("bert", "classification")) else pytest.mark.long)
        for objective in ANSWERS
        for step in range(1, 6)
    ],
)
def test_a_run_stopped_at_any_step_and_resumed_repeats_the_unbroken_one(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, objective: str, step: int
) -> None:
    asked = (*ANSWERS[objective], DROPOUT, MICRO)
    unbroken = outcome(train(tmp_path / "unbroken", *asked))
    with monkeypatch.context() as patch:
        stop_after(patch, step)
        with pytest.raises(Stopped):
            train(tmp_path / "broken", *asked)
    assert (tmp_path / "broken" / "checkpoints" / f"step-{step:08d}").is_dir()
    assert outcome(train(tmp_path / "broken", *asked)) == unbroken


@pytest.mark.parametrize("step", [pytest.param(step, marks=() if step in (2, 3, 4) else pytest.mark.long) for step in range(1, 6)])
@pytest.mark.parametrize("objective", ["next_token", pytest.param("bert", marks=pytest.mark.long)])
def test_a_run_of_short_and_then_long_sequences_resumes_exactly_on_both_sides_of_the_change(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], objective: str, step: int
) -> None:
    short = "data.short_length=8" if objective == "next_token" else "data.short_length=30"
    asked = (*ANSWERS[objective], DROPOUT, MICRO, short, "data.short_fraction=0.5", "trainer.log_every_steps=1")
    unbroken = outcome(train(tmp_path / "unbroken", *asked))
    assert "step 3: from here on sequences of up to" in capsys.readouterr().out
    tokens = [record["tokens"] for record in unbroken["metrics"] if "lr" in record]
    assert tokens[2] < tokens[5] - tokens[2]  # three updates of short sequences, three of long ones
    resolved = yaml.safe_load((tmp_path / "unbroken" / "resolved.yaml").read_text())["derived"]
    assert tokens[-1] == resolved["total_tokens"]
    with monkeypatch.context() as patch:
        stop_after(patch, step)
        with pytest.raises(Stopped):
            train(tmp_path / "broken", *asked)
    assert outcome(train(tmp_path / "broken", *asked)) == unbroken


@pytest.mark.parametrize("budget", ["trainer.max_epochs=1.5", "trainer.max_tokens=3000"])
def test_a_budget_spans_both_lengths(train: Train, tmp_path: Path, budget: str) -> None:
    asked = ("data.short_length=8", "data.short_fraction=0.75", budget, "trainer.log_every_steps=1", "evaluation.every_steps=null")
    records = [record for record in outcome(train(tmp_path / "run", *asked))["metrics"] if "lr" in record]
    resolved = yaml.safe_load((tmp_path / "run" / "resolved.yaml").read_text())["derived"]
    assert (len(records), records[-1]["tokens"]) == (resolved["total_steps"], resolved["total_tokens"])
    if "tokens" in budget:
        assert records[-1]["tokens"] >= 3000 > records[-2]["tokens"]
    else:
        short, long = (int(number) for number in resolved["train_sequences"].split("+"))
        assert len(records) == round(1.5 / (0.75 / -(-short // 8) + 0.25 / -(-long // 8)))


@pytest.mark.parametrize("objective", [pytest.param(o, marks=() if o == "next_token" else pytest.mark.long) for o in ANSWERS])
def test_the_number_of_workers_changes_no_bit_and_resumes_exactly(train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, objective: str) -> None:
    asked = (*ANSWERS[objective], DROPOUT, MICRO)
    unbroken = outcome(train(tmp_path / "unbroken", *asked))
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(Stopped):
            train(tmp_path / "broken", *asked, "data.num_workers=2")
    assert outcome(train(tmp_path / "broken", *asked, "data.num_workers=2")) == unbroken


@pytest.mark.parametrize("objective", SOME)
def test_resume_under_bf16_is_exact_too(train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, objective: str) -> None:
    bf16 = (*ANSWERS[objective], "precision=bf16", "model.hidden_size=32", DROPOUT)
    monkeypatch.setattr("llmtrain.runtime.has_bf16", lambda device: True)
    unbroken = outcome(train(tmp_path / "unbroken", *bf16))
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(Stopped):
            train(tmp_path / "broken", *bf16)
    assert outcome(train(tmp_path / "broken", *bf16)) == unbroken


@pytest.mark.parametrize("every", ["1", pytest.param("null", marks=pytest.mark.long)])
@pytest.mark.parametrize("objective", SOME)
def test_how_often_is_evaluated_changes_no_weight(train: Train, tmp_path: Path, objective: str, every: str) -> None:
    usual = outcome(train(tmp_path / "usual", *ANSWERS[objective], DROPOUT))
    assert outcome(train(tmp_path / "other", *ANSWERS[objective], DROPOUT, f"evaluation.every_steps={every}"))["final"] == usual["final"]


@pytest.mark.parametrize("lengths", [[], ["data.short_length=30"]])
def test_what_stands_in_a_split_that_judges_is_not_trained_on(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, lengths: list[str]
) -> None:
    # Each pair of documents differs in its opening alone. Those of validation and test stand in train, and one another's.
    passages = [" ".join(f"This is sentence {i} of passage {p} that both share." for i in range(30)) for p in range(3)]
    others = [" ".join(f"Document {d} says {i} things here." for i in range(30)) for d in range(20)]
    splits = {"train": [*(f"Here it is. {text}" for text in passages), *others], "validation": [f"There it was. {passages[0]}", f"So it is. {passages[1]}"]}
    splits["test"] = [f"At last. {passages[1]}", f"So be it. {passages[2]}"]
    for name, texts in splits.items():
        (tmp_path / f"{name}.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    data = ("data=text", *(f"data.{name}={tmp_path / name}.jsonl" for name in splits), *lengths)
    asked = [o for o in ANSWERS["sentence_order"] if not o.startswith(("data.documents", "data.words"))]
    seen: dict[str, set[str]] = {"train": set(), "validation": set()}
    from llmtrain import trainer

    real = trainer.Trainer.__post_init__

    def look(self: trainer.Trainer) -> None:
        real(self)
        tokenizer = tokens.load(str(self.folder / "tokenizer"))
        assert self.validation is not None
        for name, rows in [("validation", self.validation), *(("train", stage.train) for stage in self.stages)]:
            seen[name] |= {found for ids in rows["ids"] for found in re.findall(r"passage (\d)", tokenizer.decode(ids))}

    monkeypatch.setattr(trainer.Trainer, "__post_init__", look)
    train(tmp_path / "run", *asked, *data, "trainer.max_steps=2")
    assert seen == {"train": set(), "validation": {"0"}}
    assert "train examples share sentences with a split that judges them" in capsys.readouterr().out


def test_a_longer_budget_after_the_change_of_length_leaves_the_change_where_it_was(train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ("data.short_length=8", "data.short_fraction=0.5", "trainer.log_every_steps=1")
    train(tmp_path / "run", *asked)
    capsys.readouterr()
    run = train(tmp_path / "run", *asked, "trainer.max_steps=12")
    said = " ".join(capsys.readouterr().out.split())
    assert "from update 3 on" in said
    assert "the change before update 4 stays where it was" in said
    tokens_done = [record["tokens"] for record in outcome(run)["metrics"] if "lr" in record]
    assert len(tokens_done) == 12
    assert min(b - a for a, b in pairwise(tokens_done[2:])) > tokens_done[0]  # all later updates are of long sequences


def test_a_stop_during_an_evaluation_loses_neither_it_nor_a_bit(train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unbroken = outcome(train(tmp_path / "unbroken", DROPOUT))
    from llmtrain import trainer

    real = trainer.evaluate

    def interrupted(*arguments: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "evaluate", interrupted)
        with pytest.raises(Stopped):
            train(tmp_path / "broken", DROPOUT)
    assert outcome(train(tmp_path / "broken", DROPOUT)) == unbroken


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        pytest.param(name, fault, marks=() if name == "model.safetensors" or fault == "bit" else pytest.mark.long)
        for name in ("model.safetensors", "optimizer.safetensors", "state.json", "manifest.json")
        for fault in ("delete", "empty", "half", "last byte", "bit")
    ],
)
def test_a_damaged_newest_checkpoint_is_named_and_the_previous_one_used(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, fault: str
) -> None:
    run = train(tmp_path / "run", "trainer.max_steps=4", "checkpoint.keep_best=false")
    unbroken = outcome(run)
    damage(run / "checkpoints" / "step-00000004" / name, fault)
    capsys.readouterr()
    train(run, "trainer.max_steps=4", "checkpoint.keep_best=false")
    (warned,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: ")]
    assert "step-00000004 is not used: " in warned
    assert warned.split("is not used: ")[1].startswith(name)
    assert record_of(run)["warnings"] == [warned.removeprefix("warning: ")]
    assert outcome(run) == unbroken


def damage(path: Path, fault: str) -> None:
    data = path.read_bytes()
    if fault == "delete":
        path.unlink()
    else:
        flipped = (
            data[:-1] + bytes([data[-1] ^ 1])
            if path.suffix == ".safetensors"
            else data.replace(b'"version": 1', b'"version": 0').replace(b'"step": ', b'"stop": ')
        )
        path.write_bytes({"empty": b"", "half": data[: len(data) // 2], "last byte": data[:-1], "bit": flipped}[fault])


def test_all_checkpoints_damaged_is_an_error_and_never_a_fresh_start(train: Train, tmp_path: Path) -> None:
    run = train(tmp_path / "run")
    for path in (run / "checkpoints").glob("step-*"):
        damage(path / "model.safetensors", "half")
    with pytest.raises(CheckpointError, match="none of"):
        train(run)


def test_resuming_a_finished_run_says_so_and_touches_nothing(train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = train(tmp_path / "run")
    skip = {".lock", ".lock-holder.json", "overrides.txt", "train.log"}
    before = {p: p.stat().st_mtime_ns for p in run.rglob("*") if p.is_file() and p.name not in skip}
    train(run)
    assert "already complete: 6 of 6" in capsys.readouterr().out
    assert {p: p.stat().st_mtime_ns for p in run.rglob("*") if p.is_file() and p.name not in skip} == before


def test_a_longer_budget_goes_on_and_says_how_the_schedule_follows(train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = train(tmp_path / "run", "trainer.max_steps=4")
    capsys.readouterr()
    train(run, "trainer.max_steps=6")
    said = capsys.readouterr().out
    assert "resumed from step 4" in said
    assert "6 updates long instead of 4" in said


# --- numbers that are none ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [pytest.param(2, marks=pytest.mark.long), 3, pytest.param(4, marks=pytest.mark.long)])
def test_a_run_stopped_around_a_skipped_update_and_resumed_repeats_the_unbroken_one(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    asked = (DROPOUT, MICRO, "on_nonfinite=skip", "trainer.log_every_steps=3")
    spoil(monkeypatch, 3)
    unbroken = outcome(train(tmp_path / "unbroken", *asked))
    with monkeypatch.context() as patch:
        stop_after(patch, step)
        with pytest.raises(Stopped):
            train(tmp_path / "broken", *asked)
    assert outcome(train(tmp_path / "broken", *asked)) == unbroken
    assert record_of(tmp_path / "broken")["skipped"] == 1


def test_how_many_were_skipped_in_a_row_survives_a_resume(train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ("on_nonfinite=skip", "trainer.max_skipped=2")
    spoil(monkeypatch, 2, 3, 4)
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(Stopped):
            train(tmp_path / "run", *asked)
    with pytest.raises(NonFiniteError, match=r"at step 4: .*2 updates in a row were skipped before it"):
        train(tmp_path / "run", *asked)
    assert record_of(tmp_path / "run")["skipped"] == 2


def test_resume_must_insists_never_refuses_and_a_path_is_taken(train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(CheckpointError, match="resume=must"):
        train(tmp_path / "run", "resume=must")
    run = train(tmp_path / "run", "checkpoint.keep_last=9")
    with pytest.raises(ConfigError, match="resume=never"):
        train(run, "resume=never")
    shutil.rmtree(run / "final")
    capsys.readouterr()
    train(run, f"resume={run / 'checkpoints' / 'step-00000002'}", "checkpoint.keep_last=9")
    assert "resumed from step 2" in capsys.readouterr().out


def test_the_links_to_the_last_and_the_best_can_be_named_and_stay_links(train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = train(tmp_path / "run", "trainer.max_steps=4", "checkpoint.keep_last=9")
    for name in ("last", "best"):
        step = int((run / "checkpoints" / name).resolve().name.removeprefix("step-"))
        shutil.rmtree(run / "final")
        capsys.readouterr()
        train(run, "trainer.max_steps=6", f"resume={run / 'checkpoints' / name}", "checkpoint.keep_last=9")
        assert f"resumed from step {step}" in capsys.readouterr().out
        found = {link: (run / "checkpoints" / link).resolve().name for link in ("last", "best")}
        assert found == {"last": "step-00000006", "best": f"step-{record_of(run)['best']['step']:08d}"}


@pytest.fixture(scope="module")
def finished(token_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "run"
    typed = [*tiny("trainer.max_steps=2"), f"output_dir={folder}"]
    assert command.start(compose("pretrain", typed), typed, "pretrain") == 0
    return folder


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("fault", ["delete", "empty", "half", "last byte", "bit"])
def test_a_damaged_checkpoint_that_is_named_is_an_error(train: Train, finished: Path, tmp_path: Path, name: str, fault: str) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run", symlinks=True))
    path = run / "checkpoints" / "step-00000002"
    damage(path / name, fault)
    with pytest.raises(CheckpointError, match=rf"step-00000002: {name} "):
        train(run, "trainer.max_steps=3", f"resume={path}")


def test_a_loss_that_is_not_finite_stops_before_the_update(train: Train, tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError, match="not finite at step") as caught:
        train(tmp_path / "run", "optimizer.lr=1e20", "trainer.max_steps=20", "trainer.clip_norm=null", "checkpoint.every_steps=1", "schedule=constant")
    assert "last good checkpoint" in str(caught.value.fix)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (record["status"], record["exit_code"]) == ("failed", 5)


def test_a_folder_that_is_not_a_run_is_left_alone(train: Train, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match="not empty and not a run"):
        train(tmp_path / "mine")
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_early_stopping_survives_a_resume(train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # With a learning rate that spoils the weights no evaluation improves on the first.
    bad = (
        "optimizer.lr=3",
        "schedule=constant",
        "schedule.warmup_steps=0",
        "evaluation.every_steps=1",
        "callback.early_stopping.patience=3",
        "trainer.max_steps=12",
    )
    unbroken = outcome(train(tmp_path / "unbroken", *bad))
    assert unbroken["step"] < "step-00000012"
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises(Stopped):
            train(tmp_path / "broken", *bad)
    assert outcome(train(tmp_path / "broken", *bad)) == unbroken


def test_a_run_writes_down_what_it_was(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert main(["pretrain", *tiny(), f"output_dir={run}"]) == 0
    names = {p.name for p in run.iterdir()}
    assert {"config.yaml", "resolved.yaml", "overrides.txt", "run.json", "metrics.jsonl", "train.log", "checkpoints", "final", "loss.png"} <= names
    record = json.loads((run / "run.json").read_text())
    assert record["status"] == "finished"
    counts = {name: value for name, value in record["freezing"].items() if isinstance(value, int)}
    assert counts == {"frozen": 0, "frozen_unchanged": 0, "trainable": 28, "trainable_moved": 28}
    assert "auto" not in (run / "resolved.yaml").read_text().replace("resume: auto", "")


@pytest.mark.parametrize("devices", [1, 2])
def test_the_command_in_a_runs_record_is_the_one_that_was_typed_as_a_shell_takes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, devices: int) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my configs").mkdir()
    typed = [*tiny("trainer.max_steps=1"), f"devices={devices}", "output_dir=a run; or two"]
    assert main(["--debug", "pretrain", "--config-dir", "my configs", *typed]) == 0
    assert shlex.split(record_of(Path("a run; or two"))["command"]) == ["llmtrain", "pretrain", "--config-dir", "my configs", *typed]


def test_h10_a_secret_with_a_quote_in_it_is_masked_in_the_command_of_a_record(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "it's-a-secret-key")
    assert shlex.split(command.written("pretrain", ["data.train=it's-a-secret-key"], None)) == ["llmtrain", "pretrain", "data.train=***"]


def test_only_the_newest_and_the_best_checkpoints_are_kept(train: Train, tmp_path: Path) -> None:
    run = train(tmp_path / "run", "checkpoint.every_steps=1", "checkpoint.keep_best=false", "checkpoint.keep_last=2")
    assert sorted(p.name for p in (run / "checkpoints").glob("step-*")) == ["step-00000005", "step-00000006"]
