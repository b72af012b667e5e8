"""Runs as their folders tell them: whole ones, broken ones, those of sweeps, and those that never started."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from filelock import FileLock

from llmtrain.config import compose
from llmtrain.errors import CheckpointError, ConfigError, DataError, LLMTrainError
from llmtrain.report.runs import Gathered, read
from llmtrain.report.study import Run
from tests.conftest import Train

CONFIG: dict[str, Any] = {
    "seed": 0,
    "name": "somewhere",
    "output_dir": "/tmp/x",
    "threads": 2,
    "precision": "fp32",
    "finetune": {"kind": "last_layers", "lr": 5e-5, "epochs": 3, "batch_size": 16, "weight_decay": 0.01, "blocks": 2},
    "optimizer": {"lr": "${finetune.lr}", "weight_decay": "${finetune.weight_decay}"},
    "trainer": {"max_epochs": "${finetune.epochs}", "log_every_steps": 20, "max_steps": None},
    "cache": {"use": "auto"},
    "callback": {"metrics": {"kind": "metrics", "file": "metrics.jsonl"}, "early_stopping": {"patience": 3}},
    "checkpoint": {"keep_last": 1, "export": "best"},
    "objective": {"kind": "classification"},
    "evaluation": {"best_metric": None},
    "data": {"kind": "text", "train": ["a.txt", "b.txt"], "token": "${oc.env:HOME}"},
}
RECORD: dict[str, Any] = {
    "verb": "finetune",
    "status": "finished",
    "wall_seconds": 12.0,
    "started": "2026-11-25T03:00:00",
    "versions": {"torch": "2.13.0"},
    "device": {"device": "cpu", "name": "one", "processes": 1, "threads": 2, "precision": "fp32"},
    "warnings": ["careful"],
    "validation": {"accuracy": 0.8, "loss": 0.5},
    "test": {"accuracy": 0.7, "loss": 0.6},
    "references": {"majority_accuracy": 0.5},
    "best": {"metric": "accuracy", "value": 0.8, "step": 6, "higher": True},
    "freezing": {"sections": {"embeddings": {"parameters": 10, "trainable": 0}, "head": {"parameters": 5, "trainable": 5, "lr": 1e-3}}},
    "cost": {"train_seconds": 8.0, "evaluation_seconds": 1.0, "peak_memory_mb": 100.0, "disk_mb": 3.0},
}


def merged(tree: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A tree with some leaves replaced, by their whole key."""
    found = json.loads(json.dumps(tree))
    for key, value in changes.items():
        *sections, leaf = key.split(".")
        node = found
        for section in sections:
            node = node.setdefault(section, {})
        node[leaf] = value
    return dict(found)


def folder(home: Path, *, config: Mapping[str, Any] | None = None, record: Mapping[str, Any] | None = None, typed: str = "finetune=last_layers seed=0") -> Path:
    """A run's folder, as training leaves it, with changes by key."""
    home.mkdir(parents=True)
    (home / "config.yaml").write_text(yaml.safe_dump(merged(CONFIG, config or {})))
    (home / "run.json").write_text(json.dumps(merged(RECORD, record or {})))
    (home / "overrides.txt").write_text(f"{typed}\n")
    lines = [{"step": 2, "loss_class": 0.9}, {"step": 3, "validation_accuracy": 0.7}, {"step": 6, "validation_accuracy": 0.8}]
    (home / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return home


def only(path: Path) -> Run:
    (found,) = read([path]).runs
    return found


def member(name: str, overrides: Sequence[str], **changed: Any) -> dict[str, Any]:
    label = [text.split("=", 1) for text in overrides]
    return {"name": name, "overrides": list(overrides), "label": label, "status": "finished", "reason": "", "exit_code": 0, "seconds": 20.0, **changed}


def sweep(home: Path, members: Sequence[Mapping[str, Any]], **changed: Any) -> Path:
    home.mkdir(parents=True, exist_ok=True)
    content = {
        "version": 1,
        "name": "study",
        "verb": "finetune",
        "command": "llmtrain finetune -m data=text finetune.blocks=1,2 seed=0,1",
        "overrides": ["data=text", "finetune.blocks=1,2", "seed=0,1", "name=study"],
        "sweep": {"kind": "grid"},
        "launcher": {"kind": "local", "jobs": 1},
        "notes": ["a key had no effect"],
        "plan": {},
        "members": list(members),
    }
    (home / "sweep.json").write_text(json.dumps(content | changed))
    return home


def grid(home: Path, statuses: Mapping[str, Mapping[str, Any]] | None = None) -> Path:
    """Two rows of two seeds; members named in `statuses` have no folder, and what is given there in the book."""
    entries = []
    for blocks in (1, 2):
        for seed in (0, 1):
            name, overrides = f"blocks={blocks}-seed={seed}", [f"finetune.blocks={blocks}", f"seed={seed}"]
            changed = (statuses or {}).get(name)
            entries.append(member(name, overrides, **(changed or {})))
            if changed is None:
                folder(home / "members" / name, config={"finetune.blocks": blocks, "seed": seed}, typed=" ".join(["data=text", *overrides]))
    return sweep(home, entries)


def by_name(gathered: Gathered) -> dict[str, Run]:
    return {run.name: run for run in gathered.runs}


# --- one run ------------------------------------------------------------------------------------------------------


def test_a_run_says_what_its_folder_says(tmp_path: Path) -> None:
    found = only(folder(tmp_path / "run"))
    assert (found.verb, found.status, found.reason, found.seed) == ("finetune", "finished", "", 0)
    assert (found.validation, found.test) == ({"accuracy": 0.8, "loss": 0.5}, {"accuracy": 0.7, "loss": 0.6})
    assert (found.metric, found.higher, found.parameters, found.trainable) == ("accuracy", True, 15, 5)
    assert [section["section"] for section in found.sections] == ["embeddings", "head"]
    assert (found.wall_seconds, found.train_seconds, found.peak_memory_mb, found.disk_mb) == (12, 8, 100, 3)
    assert (found.machine["name"], found.versions, found.warnings) == ("one", {"torch": "2.13.0"}, ("careful",))


def test_evaluations_and_other_records_are_told_apart(tmp_path: Path) -> None:
    found = only(folder(tmp_path / "run"))
    assert [record["step"] for record in found.curve] == [3, 6]
    assert [record["step"] for record in found.train_curve] == [2]


def test_settings_have_the_values_that_they_refer_to(tmp_path: Path) -> None:
    found = only(folder(tmp_path / "run"))
    assert found.settings["optimizer.lr"] == 5e-5
    assert found.settings["trainer.max_epochs"] == 3
    assert found.settings["data.train"] == ["a.txt", "b.txt"]


@pytest.mark.parametrize(
    "key", ["name", "output_dir", "threads", "cache.use", "callback.metrics.file", "checkpoint.keep_last", "trainer.log_every_steps", "finetune.lr"]
)
def test_settings_that_say_where_a_run_was_are_left_out(tmp_path: Path, key: str) -> None:
    assert key not in only(folder(tmp_path / "run")).settings


@pytest.mark.parametrize("key", ["seed", "precision", "checkpoint.export", "callback.early_stopping.patience", "finetune.blocks"])
def test_settings_that_say_what_a_run_is_are_kept(tmp_path: Path, key: str) -> None:
    assert key in only(folder(tmp_path / "run")).settings


def test_what_follows_from_the_seed_is_no_setting(tmp_path: Path) -> None:
    assert "data.seed" not in only(folder(tmp_path / "run", config={"data.seed": "${seed}"})).settings


def test_nothing_of_the_environment_comes_into_a_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """H10."""
    monkeypatch.setenv("HOME", "hf_hidden")
    assert "hf_hidden" not in str(only(folder(tmp_path / "run")))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_none_are_kept(tmp_path: Path, value: float) -> None:
    """I07."""
    found = only(folder(tmp_path / "run", record={"validation.loss": value})).validation["loss"]
    assert found == value or (math.isnan(found) and math.isnan(value))


def test_what_a_resume_changed_is_said_and_the_settings_are_those_since(tmp_path: Path) -> None:
    change = {"step": 4, "key": "optimizer.lr", "before": 5e-05, "after": 0.001}
    found = only(folder(tmp_path / "run", record={"changes": [change, "damaged", {"key": None}]}))
    said = "optimizer.lr was 5e-05 up to step 4 and 0.001 from there on"
    assert found.warnings == ("careful", said)
    assert (found.settings["optimizer.lr"], found.settings["changes"]) == (0.001, said)
    assert found.command == "llmtrain finetune finetune=last_layers seed=0 optimizer.lr=0.001"


def test_a_run_that_was_made_longer_is_not_taken_for_one_that_was_that_long_or_that_short_from_the_start(tmp_path: Path) -> None:
    change = {"step": 6, "key": "trainer.max_epochs", "before": 3, "after": 6}
    longer = folder(tmp_path / "longer", record={"changes": [change]}, typed="finetune=last_layers seed=0 trainer.max_epochs=3")
    short, long = folder(tmp_path / "short"), folder(tmp_path / "long", config={"trainer.max_epochs": 6})
    found = by_name(read([longer, short, long]))
    assert {name: run.settings["trainer.max_epochs"] for name, run in found.items()} == {"longer": 6, "short": 3, "long": 6}
    assert found["longer"].command == "llmtrain finetune finetune=last_layers seed=0 trainer.max_epochs=6"
    assert len({json.dumps(run.settings, sort_keys=True) for run in found.values()}) == 3


def test_a_section_that_became_of_another_kind_has_its_keys(tmp_path: Path) -> None:
    changes = [
        {"step": 4, "key": "schedule.kind", "before": "cosine", "after": "linear"},
        {"step": 4, "key": "schedule.cycles", "before": 2, "after": None},
        {"step": 4, "key": "derived.train_data", "before": "1", "after": "2"},
    ]
    found = only(folder(tmp_path / "run", config={"schedule.kind": "cosine", "schedule.cycles": 2}, record={"changes": changes}))
    assert {key: value for key, value in found.settings.items() if key.startswith(("schedule", "derived"))} == {"schedule.kind": "linear"}
    assert found.command == "llmtrain finetune finetune=last_layers seed=0"


def test_a_run_without_a_test_split_has_no_test(tmp_path: Path) -> None:
    assert only(folder(tmp_path / "run", record={"test": None})).test == {}


def test_a_cut_last_line_of_the_metrics_is_left_out_without_a_word(tmp_path: Path) -> None:
    home = folder(tmp_path / "run")
    whole = only(home)
    with (home / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "validation_acc')
    assert only(home) == whole


def test_a_broken_line_in_the_middle_is_left_out_and_that_is_said(tmp_path: Path) -> None:
    home = folder(tmp_path / "run")
    (home / "metrics.jsonl").write_text('{"step": 1\n' + (home / "metrics.jsonl").read_text())
    found = only(home)
    assert [record["step"] for record in found.curve] == [3, 6]
    assert any("1 line could not be read" in warning for warning in found.warnings)


def test_predictions_are_named_where_they_are(tmp_path: Path) -> None:
    home = folder(tmp_path / "run")
    assert only(home).predictions is None
    (home / "predictions.jsonl").write_text("")
    assert only(home).predictions == home / "predictions.jsonl"


@pytest.mark.parametrize(
    ("name", "content"), [("run.json", '{"status": "fini'), ("run.json", "[1]"), ("run.json", ""), ("config.yaml", "a: [1"), ("config.yaml", "")]
)
def test_a_run_with_a_broken_file_is_one_that_failed_and_says_which(tmp_path: Path, name: str, content: str) -> None:
    home = folder(tmp_path / "runs" / "a")
    folder(tmp_path / "runs" / "b")
    (home / name).write_text(content)
    broken, whole = read([tmp_path / "runs"]).runs
    assert (broken.status, whole.status) == ("failed", "finished")
    assert name in broken.reason


def test_a_run_that_failed_says_why_in_a_line(tmp_path: Path) -> None:
    error = "error: the loss is nan at update 3\nfix: a smaller optimizer.lr"
    found = only(folder(tmp_path / "run", record={"status": "failed", "error": error}))
    assert (found.status, found.reason) == ("failed", "the loss is nan at update 3")


def test_a_run_that_says_nothing_is_running_where_its_lock_is_held_and_stopped_else(tmp_path: Path) -> None:
    home = folder(tmp_path / "run")
    (home / "run.json").unlink()
    assert only(home).status == "stopped"
    (home / ".lock-holder.json").write_text("{}")
    assert only(home).status == "stopped"  # killed: the note is left, the lock is not
    with FileLock(home / ".lock"):
        assert only(home).status == "running"


def test_nobody_knows_how_long_a_run_took_that_was_gone_on_with(tmp_path: Path) -> None:
    home = folder(tmp_path / "run", record={"wall_seconds": 4.0})
    assert only(home).wall_seconds == 4
    (home / "overrides.txt").write_text("seed=0\nseed=0\n")
    assert math.isnan(only(home).wall_seconds)  # it trained for 8 seconds in all
    assert only(home).train_seconds == 8


def test_the_metric_of_a_run_that_failed_early_is_that_of_its_objective(tmp_path: Path) -> None:
    found = only(folder(tmp_path / "run", record={"best": None}))
    assert (found.metric, found.higher) == ("accuracy", True)
    assert only(folder(tmp_path / "other", record={"best": None}, config={"objective.kind": "next_token"})).metric == "loss"


# --- commands -----------------------------------------------------------------------------------------------------


def test_a_command_repeats_the_run_in_a_folder_of_its_own(tmp_path: Path) -> None:
    home = folder(tmp_path / "run", typed="finetune=last_layers data.train=my file's.csv seed=0 output_dir=/tmp/a b name=x")
    command = shlex.split(only(home).command)
    assert command == ["llmtrain", "finetune", "finetune=last_layers", "data.train=my file's.csv", "seed=0"]


def test_a_command_is_that_of_the_first_start(tmp_path: Path) -> None:
    home = folder(tmp_path / "run", typed="seed=0")
    with (home / "overrides.txt").open("a") as file:
        file.write("seed=0 trainer.max_steps=9\n")
    assert only(home).command == "llmtrain finetune seed=0"


def test_a_command_names_the_weights_that_were_the_newest_then(tmp_path: Path) -> None:
    home = folder(tmp_path / "run", typed="seed=0", config={"model.kind": "checkpoint", "model.checkpoint": "runs/pretrain/old"})
    assert only(home).command == "llmtrain finetune seed=0 model.checkpoint=runs/pretrain/old"
    other = folder(tmp_path / "other", typed="model.checkpoint=mine", config={"model.kind": "checkpoint", "model.checkpoint": "mine"})
    assert only(other).command == "llmtrain finetune model.checkpoint=mine"


@pytest.mark.parametrize(
    ("said", "options"),
    [
        ("llmtrain finetune --config-dir mine seed=0", ["--config-dir", "mine"]),
        ("llmtrain finetune '--config-dir=my own' seed=0", ["--config-dir", "my own"]),
        ("llmtrain finetune seed=0 -cd 'it'\"'\"'s mine'", ["--config-dir", "it's mine"]),
        ("llmtrain finetune --config-dir x;touch$IFS/tmp/y seed=0", ["--config-dir", "x;touch$IFS/tmp/y"]),
        ("llmtrain finetune --config-dir $(touch${IFS}y)", ["--config-dir", "$(touch${IFS}y)"]),
        ("llmtrain finetune 'name=--config-dir x' seed=0", []),
        ("llmtrain finetune --config-dir 'x", []),
        ("touch y --config-dir x", []),
        (["--config-dir", "x"], []),
    ],
)
def test_the_folder_of_configs_that_a_record_names_is_one_word_of_the_command(tmp_path: Path, said: Any, options: list[str]) -> None:
    home = folder(tmp_path / "run", record={"command": said}, typed="seed=0")
    assert only(home).command == shlex.join(["llmtrain", "finetune", *options, "seed=0"])


def test_no_command_of_a_record_or_a_sweep_is_more_than_one_command(tmp_path: Path) -> None:
    assert only(folder(tmp_path / "run", record={"verb": "finetune; touch y"}, typed="seed=0")).command == "llmtrain 'finetune; touch y' seed=0"
    (tmp_path / "study").mkdir()
    for said, shown in [("llmtrain finetune -m seed=0; touch y", "llmtrain finetune -m 'seed=0;' touch y"), ("touch y", ""), ("llmtrain 'x", ""), (7, "")]:
        assert read([sweep(tmp_path / "study", [], command=said)]).command == shown


def test_a_real_run_is_read_and_its_command_composes_to_the_same_config(train: Train, tmp_path: Path) -> None:
    found = only(train(tmp_path / "run", "evaluation.test=true", "seed=3"))
    assert (found.status, found.verb, found.seed, found.metric) == ("finished", "pretrain", 3, "loss")
    assert found.validation["loss"] > 0
    assert found.test["loss"] > 0
    assert found.trainable == found.parameters > 0
    assert found.curve
    _, verb, *overrides = shlex.split(found.command)
    config = compose(verb, overrides).config
    assert {"seed": config.seed, "optimizer.lr": config.optimizer.lr}.items() <= dict(found.settings).items()


# --- sweeps -------------------------------------------------------------------------------------------------------


def test_the_members_of_a_sweep_are_runs_with_what_was_typed_for_each(tmp_path: Path) -> None:
    gathered = read([grid(tmp_path / "study")])
    assert (gathered.title, gathered.command) == ("study", "llmtrain finetune -m data=text finetune.blocks=1,2 seed=0,1")
    assert {run.overrides for run in gathered.runs} == {(f"finetune.blocks={b}", f"seed={s}") for b in (1, 2) for s in (0, 1)}
    assert "a key had no effect" in gathered.notes
    assert by_name(gathered)["blocks=2-seed=1"].command == "llmtrain finetune data=text finetune.blocks=2 seed=1"


def test_what_all_members_share_is_not_said_of_each(tmp_path: Path) -> None:
    home = grid(tmp_path / "study")
    content = json.loads((home / "sweep.json").read_text())
    for entry in content["members"]:
        entry["overrides"].insert(0, "data=text")
    (home / "sweep.json").write_text(json.dumps(content))
    assert by_name(read([home]))["blocks=2-seed=1"].overrides == ("finetune.blocks=2", "seed=1")


@pytest.mark.parametrize(
    ("status", "reason"), [("failed", "out of memory"), ("waiting", ""), ("pruned", "others were better"), ("stopped", "killed"), ("failed", "exit code 9")]
)
def test_members_that_did_not_finish_are_runs_too(tmp_path: Path, status: str, reason: str) -> None:
    """I01."""
    found = by_name(read([grid(tmp_path / "study", {"blocks=2-seed=1": {"status": status, "reason": reason}})]))["blocks=2-seed=1"]
    assert (found.status, found.reason, found.seed) == (status, reason, 1)
    assert found.settings["finetune.blocks"] == 2
    assert found.path == Path()
    assert shlex.split(found.command) == ["llmtrain", "finetune", "data=text", "finetune.blocks=2", "seed=1"]


def test_a_member_that_never_started_has_the_settings_of_one_with_another_seed(tmp_path: Path) -> None:
    found = by_name(read([grid(tmp_path / "study", {"blocks=2-seed=1": {"status": "waiting"}})]))
    assert found["blocks=2-seed=1"].settings == {**found["blocks=2-seed=0"].settings, "seed": 1}


def test_where_no_seed_started_what_all_members_share_is_supposed(tmp_path: Path) -> None:
    found = by_name(read([grid(tmp_path / "study", {f"blocks=2-seed={seed}": {"status": "waiting"} for seed in (0, 1)})]))
    supposed, known = found["blocks=2-seed=1"].settings, found["blocks=1-seed=1"].settings
    assert supposed == {**known, "finetune.blocks": 2}


def test_of_a_sweep_of_which_nothing_started_the_overrides_are_known(tmp_path: Path) -> None:
    names = [f"blocks={b}-seed={s}" for b in (1, 2) for s in (0, 1)]
    found = by_name(read([grid(tmp_path / "study", {name: {"status": "waiting"} for name in names})]))
    assert found["blocks=2-seed=1"].settings == {"finetune.blocks": 2, "seed": 1}


def test_that_a_member_finished_is_said_by_its_folder(tmp_path: Path) -> None:
    home = grid(tmp_path / "study")
    content = json.loads((home / "sweep.json").read_text())
    content["members"][0] |= {"status": "waiting"}
    (home / "sweep.json").write_text(json.dumps(content))
    assert {run.status for run in read([home]).runs} == {"finished"}


def test_a_member_of_a_sweep_that_died_is_not_running(tmp_path: Path) -> None:
    home = grid(tmp_path / "study")
    content = json.loads((home / "sweep.json").read_text())
    content["members"][0] |= {"status": "running"}
    first = home / "members" / content["members"][0]["name"]
    (first / "run.json").unlink()
    (home / "sweep.json").write_text(json.dumps(content))
    assert by_name(read([home]))[first.name].status == "stopped"
    (first / ".lock-holder.json").write_text("{}")
    with FileLock(first / ".lock"):
        assert by_name(read([home]))[first.name].status == "running"


def test_a_key_that_was_swept_is_a_setting_whatever_it_is(tmp_path: Path) -> None:
    home = tmp_path / "study"
    for use in ("never", "always"):
        folder(home / "members" / use, config={"cache.use": use}, typed=f"cache.use={use}")
    sweep(home, [member(use, [f"cache.use={use}"]) for use in ("never", "always")])
    assert {run.settings["cache.use"] for run in read([home]).runs} == {"never", "always"}


def test_a_sweep_says_that_members_ran_beside_each_other_and_what_was_computed_for_all(tmp_path: Path) -> None:
    home = sweep(grid(tmp_path / "study"), [], launcher={"jobs": 2}, plan={"stored": True, "store_seconds": 30.4})
    notes = " ".join(read([home]).notes)
    assert "2 members ran at a time" in notes
    assert "expected to take 30 s" in notes


def test_a_member_that_was_gone_on_with_took_what_the_book_says(tmp_path: Path) -> None:
    home = grid(tmp_path / "study")
    first = home / "members" / "blocks=1-seed=0"
    assert by_name(read([home]))[first.name].wall_seconds == 12
    (first / "overrides.txt").write_text("seed=0\nseed=0\n")
    assert by_name(read([home]))[first.name].wall_seconds == 20


# --- several paths, and faults ------------------------------------------------------------------------------------


def test_a_folder_of_runs_and_sweeps_is_all_of_them(tmp_path: Path) -> None:
    folder(tmp_path / "runs" / "finetune" / "a")
    grid(tmp_path / "runs" / "sweep" / "study")
    assert len(read([tmp_path / "runs"]).runs) == 5
    assert read([tmp_path / "runs"]).command == ""


def test_a_run_that_is_named_twice_or_beside_its_sweep_is_one(tmp_path: Path) -> None:
    home = grid(tmp_path / "study")
    one = home / "members" / "blocks=1-seed=0"
    assert len(read([one, one, tmp_path / "study" / "members" / ".." / "members" / one.name]).runs) == 1
    assert len(read([one, home]).runs) == 4


def test_the_order_of_paths_does_not_matter(tmp_path: Path) -> None:
    paths = [folder(tmp_path / name) for name in "cab"]
    assert read(paths).runs == read(paths[::-1]).runs


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda home: home / "nowhere", DataError, "nothing of this name"),
        (lambda home: home / "file", DataError, "is a file"),
        (lambda home: home / "empty", CheckpointError, "no run and no sweep"),
        (lambda home: home / "broken", CheckpointError, "cannot be read"),
        (lambda home: home / "newer", CheckpointError, "version 7"),
    ],
)
def test_a_path_that_is_none_is_an_error_that_names_it(tmp_path: Path, make: Any, error: type[LLMTrainError], says: str) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "empty" / "deep").mkdir(parents=True)
    sweep(tmp_path / "newer", [], version=7)
    (sweep(tmp_path / "broken", []) / "sweep.json").write_text('{"version": 1, "mem')
    with pytest.raises(error, match=says) as caught:
        read([make(tmp_path)])
    assert str(make(tmp_path)) in caught.value.screen()


def test_no_path_at_all_is_an_error_of_the_command() -> None:
    with pytest.raises(ConfigError, match="no path"):
        read([])


def test_reading_changes_nothing_and_gives_the_same_twice(tmp_path: Path) -> None:
    """I08."""
    home = grid(tmp_path / "study", {"blocks=2-seed=1": {"status": "waiting"}})
    before = {path: path.stat().st_mtime_ns for path in home.rglob("*")}
    assert read([home]) == read([home])
    assert {path: path.stat().st_mtime_ns for path in home.rglob("*")} == before
