"""What a resume finds changed: refused with what to type, or let through and written down."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from itertools import pairwise
from pathlib import Path

import pytest
import safetensors.torch
import torch
import yaml

from llmtrain import changes
from llmtrain.command import train as command
from llmtrain.command.parts import parts
from llmtrain.config import compose
from llmtrain.errors import CheckpointError, ConfigError, DataError, NonFiniteError, Stopped
from llmtrain.runtime import Runtime
from llmtrain.trainer import Trainer
from tests.command.test_train import damage
from tests.conftest import TINY_FINETUNE, Pretrained, Train, outcome, record_of, stop_after, tiny

# What is typed, and what `allow_change` has to name for it.
CHANGES = {
    "seed=1": "seed",
    "optimizer.lr=0.01": "optimizer.lr",
    "optimizer.weight_decay=0": "optimizer.weight_decay",
    "schedule=linear": "schedule",
    "trainer.batch_size=4": "trainer.batch_size",
    "trainer.clip_norm=null": "trainer.clip_norm",
    "model.dropout=0.2": "model.dropout",
    "data.documents=70": "data.documents",
    "objective.packing=false": "objective.packing",
}
# What cannot be gone on with: what is typed, what is allowed, and why it is refused all the same.
NEVER = {
    "tokenizer.vocab_size=310": ("tokenizer.vocab_size", "a run keeps its tokenizer"),
    "model.hidden_size=64": ("model.hidden_size", "the checkpoint does not fit the model"),
}
BOMB = "x: &a [1, 1]\n" + "".join(f"x{i}: &{c} [*{b}, *{b}]\n" for i, (b, c) in enumerate(pairwise("abcdefghijklmnopqrstuvwxyz")))  # 2²⁶ values
HISTORY = "from step 4 on the run is no longer a function of one config: "


@pytest.fixture(scope="module")
def stopped(token_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped after 4 of 6 updates, with its best at 3. Take a copy."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    typed = [*tiny(), f"output_dir={folder}"]
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 4)
        with pytest.raises(Stopped):
            command.start(compose("pretrain", typed), typed, "pretrain")
    for path in (folder / "checkpoints").rglob("*"):
        path.chmod(path.stat().st_mode & ~0o022)  # whatever the umask
    return folder


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def copy(run: Path, folder: Path) -> Path:
    return Path(shutil.copytree(run, folder, symlinks=True))


@pytest.mark.parametrize("change", [*CHANGES, *NEVER])
def test_e16_a_changed_key_is_refused_with_the_difference_and_with_what_to_type(train: Train, stopped: Path, tmp_path: Path, change: str) -> None:
    run = copy(stopped, tmp_path / "run")
    before = (run / "resolved.yaml").read_bytes()
    with pytest.raises(CheckpointError, match="was started with another config: ") as caught:
        train(run, change)
    key, _, value = change.partition("=")
    assert re.search(rf"{key}(\.kind)?: .* → {'None' if value == 'null' else value}", caught.value.what, re.IGNORECASE)
    assert len(caught.value.screen().splitlines()) <= 6
    typed = re.findall(r"'(allow_change=\[.*\])'", str(caught.value.fix))
    if change.startswith("tokenizer"):
        assert typed == []
        assert NEVER[change][1] in str(caught.value.allowed)
    else:
        assert typed == [f"allow_change=[{CHANGES.get(change) or NEVER[change][0]}]"]
    assert (run / "resolved.yaml").read_bytes() == before


@pytest.mark.parametrize("change", [c if c == "data.documents=70" else pytest.param(c, marks=pytest.mark.long) for c in CHANGES])
def test_r11_with_allow_change_it_goes_on_and_what_was_before_is_written_down(train: Train, stopped: Path, tmp_path: Path, change: str) -> None:
    run = train(copy(stopped, tmp_path / "run"), change, f"allow_change=[{CHANGES[change]}]")
    record, resolved = record_of(run), yaml.safe_load((run / "resolved.yaml").read_text())
    assert (record["status"], record["steps"]) == ("finished", 6)
    assert resolved["changes"] == record["changes"]
    assert len(record["changes"]) >= 1
    for entry in record["changes"]:
        assert (entry["step"], set(entry)) == (4, {"step", "key", "before", "after"})
        assert entry["before"] != entry["after"]
        now = resolved
        for part in entry["key"].split("."):
            now = now.get(part, {}) if isinstance(now, dict) else now
        assert now in (entry["after"], {})  # of another kind, keys that it does not have
    assert any(entry["key"].startswith(CHANGES[change]) for entry in record["changes"])
    said = [line for line in record["warnings"] if line.startswith(HISTORY)]
    assert len(said) == 1
    assert ("come again" in said[0]) == change.startswith(("seed", "data", "objective", "trainer.batch_size"))
    assert any("looked for anew" in line for line in record["warnings"]) == change.startswith(("data", "objective"))


def test_a_change_that_was_allowed_holds_from_there_on_and_stays_in_the_history(
    train: Train, stopped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, usual, asked = copy(stopped, tmp_path / "run"), copy(stopped, tmp_path / "usual"), ("optimizer.lr=0.01", "trainer.log_every_steps=1")
    with monkeypatch.context() as patch:
        stop_after(patch, 5)
        with pytest.raises(Stopped):
            train(run, *asked, "allow_change=[optimizer.lr]")
    train(run, *asked)  # it is the run's config now
    record = record_of(run)
    assert record["changes"] == [{"step": 4, "key": "optimizer.lr", "before": 0.002, "after": 0.01}]
    assert record["warnings"] == []
    rates = [{r["step"]: r["lr"] for r in outcome(folder)["metrics"] if "lr" in r} for folder in (run, train(usual, asked[1]))]
    assert [rates[0][step] / rates[1][step] for step in (5, 6)] == pytest.approx([5, 5])
    shutil.rmtree(run / "final")
    with pytest.raises(CheckpointError, match=r"optimizer\.lr: 0\.01 → 0\.002"):
        train(run)


@pytest.mark.long
def test_updates_that_are_done_again_from_before_a_change_are_under_the_new_config(train: Train, stopped: Path, tmp_path: Path) -> None:
    run = train(copy(stopped, tmp_path / "run"), "optimizer.lr=0.01", "allow_change=[optimizer]", "checkpoint.keep_last=9")
    assert [entry["step"] for entry in record_of(run)["changes"]] == [4]
    shutil.rmtree(run / "final")
    train(run, "optimizer.lr=0.01", f"resume={run / 'checkpoints' / 'step-00000003'}", "checkpoint.keep_last=9")
    assert [entry["step"] for entry in record_of(run)["changes"]] == [3]


def test_a_run_that_was_made_longer_says_so_and_says_it_once(train: Train, stopped: Path, tmp_path: Path) -> None:
    run = train(copy(stopped, tmp_path / "run"), "trainer.max_steps=8")
    resolved = yaml.safe_load((run / "resolved.yaml").read_text())
    change = {"step": 4, "key": "trainer.max_steps", "before": 6, "after": 8}
    assert (record_of(run)["changes"], resolved["changes"], resolved["trainer"]["max_steps"], resolved["derived"]["total_steps"]) == ([change], [change], 8, 8)
    assert [line for line in record_of(run)["warnings"] if line.startswith(HISTORY)] == []  # it is told as what it is
    assert [line for line in record_of(run)["warnings"] if "trainer.max_steps was 6 and is 8" in line]
    shutil.rmtree(run / "final")
    train(run, "trainer.max_steps=8")
    assert (record_of(run)["changes"], record_of(run)["warnings"]) == ([change], [])


def test_r11_a_best_that_was_judged_by_other_rows_is_looked_for_anew(train: Train, stopped: Path, tmp_path: Path) -> None:
    run = train(copy(stopped, tmp_path / "run"), "evaluation.max_samples=3")
    assert [line for line in record_of(run)["warnings"] if "evaluation.max_samples changed" in line and "looked for anew" in line]


def no_data(*_: object) -> None:
    raise DataError("rows.csv is not there")


@pytest.mark.parametrize("wrong", ["another rate", "no data"])
def test_e16_e19_a_start_that_is_refused_takes_nothing_from_what_a_finished_run_says(
    train: Train, stopped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    run = train(copy(stopped, tmp_path / "run"))
    before = {name: (run / name).read_bytes() for name in ("run.json", "resolved.yaml", "config.yaml", "metrics.jsonl")}
    with monkeypatch.context() as patch, pytest.raises((CheckpointError, DataError)):
        if wrong == "no data":
            patch.setattr(command, "_data", no_data)
        train(run, *(["optimizer.lr=0.01"] if wrong == "another rate" else []))
    assert {name: (run / name).read_bytes() for name in before} == before
    train(run)  # already complete
    assert {name: (run / name).read_bytes() for name in before} == before


def test_where_nothing_is_gone_on_from_the_run_is_that_of_its_own_settings(train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An earlier start had other settings and ended before a checkpoint: nothing of it is left, neither its tokenizer nor what it was told."""
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "fit", lambda job: (_ for _ in ()).throw(NonFiniteError("no number")))
        with pytest.raises(NonFiniteError):
            train(run, "tokenizer.vocab_size=310", "optimizer.lr=0.01")
    train(run, "optimizer.lr=0.003")
    config, derived = (yaml.safe_load((run / name).read_text()) for name in ("config.yaml", "resolved.yaml"))
    assert (config["tokenizer"]["vocab_size"], config["optimizer"]["lr"]) == (derived["derived"]["vocabulary"], 0.003)
    assert len(json.loads((run / "tokenizer" / "tokenizer.json").read_text())["model"]["vocab"]) == config["tokenizer"]["vocab_size"]
    assert len((run / "overrides.txt").read_text().splitlines()) == 1


def test_a_run_of_the_other_verb_is_not_gone_on_with(train: Train, finetune: Train, stopped: Path, tmp_path: Path) -> None:
    run = copy(stopped, tmp_path / "run")
    before = digests(run / "checkpoints" / "step-00000004")
    with pytest.raises(ConfigError, match=r"is a run of `llmtrain pretrain`: `llmtrain finetune` does not go on from it") as caught:
        finetune(run)
    assert caught.value.exit_code == 2
    assert digests(run / "checkpoints" / "step-00000004") == before


def test_e20_a_link_to_a_run_stands_for_it(train: Train, stopped: Path, tmp_path: Path) -> None:
    run, link = copy(stopped, tmp_path / "run"), tmp_path / "current"
    link.symlink_to(run)
    settings = parts(compose("pretrain", [f"resume={link}"]).config).runtime
    assert command.find_resume(command.run_folder("pretrain", settings), settings) == link / "checkpoints" / "step-00000004"


def test_the_page_on_resuming_names_every_key_that_a_resume_may_change() -> None:
    page = (Path(__file__).parents[1] / "docs" / "resume.md").read_text()
    (table,) = re.findall(r"## What may be different the next time\n(.*?)\n## ", page, re.DOTALL)
    named = set(re.findall(r"`([\w.]+)`", table))
    asked = {key for key in changes.FREE if not key.startswith(("derived.", "finetune.", "output_dir", "resume", "allow_change"))}
    assert {key for key in asked if not {key, key.removeprefix("trainer.")} & named} == set()


@pytest.mark.parametrize("change", NEVER)
def test_what_cannot_be_gone_on_with_is_refused_with_its_reason_and_leaves_no_trace(train: Train, stopped: Path, tmp_path: Path, change: str) -> None:
    run, (key, why) = copy(stopped, tmp_path / "run"), NEVER[change]
    before = {name: (run / name).read_bytes() for name in ("resolved.yaml", "config.yaml", "checkpoints/step-00000004/manifest.json")}
    with pytest.raises(CheckpointError) as caught:
        train(run, change, f"allow_change=[{key}]")
    assert caught.value.exit_code == 4
    assert why in caught.value.screen()
    assert {name: (run / name).read_bytes() for name in before} == before
    assert not record_of(run).get("changes")


def test_e16_r11_what_moves_may_change_where_its_stretches_fit(finetune: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Computed once above the first block, as `auto` may have decided; where both blocks move nothing can be.
    one, two = ("finetune=last_layers", "finetune.blocks=1", "cache.use=always"), ("finetune=last_layers", "finetune.blocks=2", "cache.use=auto")
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(Stopped):
            finetune(tmp_path / "run", *one)
    with pytest.raises(CheckpointError, match=r"finetune\.blocks: 1 → 2") as caught:
        finetune(tmp_path / "run", *two)
    assert "'allow_change=[finetune.blocks]'" in str(caught.value.fix)
    record = record_of(finetune(tmp_path / "run", *two, "allow_change=[finetune.blocks]"))
    assert [(entry["key"], entry["after"]) for entry in record["changes"]] == [("finetune.blocks", 2), ("cache.use", "never")]
    assert (record["status"], record["freezing"]["frozen_but_moved"], record["freezing"]["trainable_but_still"]) == ("finished", [], [])


def test_e16_r11_less_may_move_than_before(finetune: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What moved until the resume is frozen as it is then, and so is what is computed of it once."""
    mode = ("finetune=last_layers", "finetune.blocks=2", "cache.use=never")
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(Stopped):
            finetune(tmp_path / "never", *mode)
    copy(tmp_path / "never", tmp_path / "always")
    finetune(tmp_path / "other", "finetune=last_layers", "finetune.blocks=1", "cache.use=always")  # the same boundary of the weights as they came
    weights, states = {}, {}
    for use in ("never", "always"):
        run = tmp_path / use
        asked = ("finetune=last_layers", "finetune.blocks=1", f"cache.use={use}")
        record = record_of(finetune(run, *asked, "allow_change=[finetune.blocks,cache]"))
        found = record["freezing"]
        assert (record["status"], found["frozen_but_moved"], found["trainable_but_still"]) == ("finished", [], [])
        assert found["frozen_since_a_change"]
        assert all(".layer.0." in name for name in found["frozen_since_a_change"])
        weights[use], states[use] = safetensors.torch.load_file(run / "final" / "model.safetensors"), record["validation"]
    assert all(torch.allclose(tensor, weights["always"][name], atol=1e-6) for name, tensor in weights["never"].items())
    assert states["never"] == pytest.approx(states["always"], abs=1e-5)


@pytest.mark.long
def test_a_stretch_that_the_new_settings_do_not_have_is_refused(finetune: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        stop_after(patch, 5)
        with pytest.raises(Stopped):
            finetune(tmp_path / "run", "finetune=gradual")
    before = (tmp_path / "run" / "resolved.yaml").read_bytes()
    with pytest.raises(CheckpointError, match="was started with another config") as caught:
        finetune(tmp_path / "run", "finetune=full")
    (typed,) = re.findall(r"'(allow_change=\[.*\])'", str(caught.value.fix))
    assert "finetune" in typed
    with pytest.raises(CheckpointError, match=r"stands in stretch \d of its training, and with these settings there are 1"):
        finetune(tmp_path / "run", "finetune=full", typed)
    assert (tmp_path / "run" / "resolved.yaml").read_bytes() == before


@pytest.mark.parametrize(("wrong", "near"), [("optimiser.lr", "optimizer.lr"), ("optimizr", "optimizer"), ("seed.x", "seed")])
def test_a_key_that_allow_change_names_and_no_config_has_is_refused_before_anything_is_made(train: Train, tmp_path: Path, wrong: str, near: str) -> None:
    with pytest.raises(ConfigError, match=f"allow_change={wrong}: no such key") as caught:
        train(tmp_path / "run", f"allow_change=[{wrong}]")
    assert (caught.value.exit_code, caught.value.fix) == (2, f"did you mean '{near}'?")
    assert not (tmp_path / "run").exists()


def test_e18_r15_other_threads_and_versions_are_one_warning_and_the_run_goes_on(
    train: Train, stopped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = command.versions()
    monkeypatch.setattr(command, "versions", lambda: {**now, "torch": "9.9", "transformers": "8.8"})
    run = copy(stopped, tmp_path / "run")
    before = (run / "resolved.yaml").read_bytes()
    train(run, "threads=2", "allow_change=[threads]")
    (said,) = record_of(run)["warnings"]
    assert said.startswith("not bitwise from step 4 on: ")
    for part in (f"torch was {now['torch']} and is 9.9", f"transformers was {now['transformers']} and is 8.8", "threads was 1 and is 2"):
        assert part in said
    assert "numpy" not in said
    assert (run / "resolved.yaml").read_bytes() == before
    assert "note: allow_change=threads has no effect" in capsys.readouterr().out


def test_e18_another_processor_is_the_same_warning(train: Train, stopped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Runtime, "processor", "an abacus, nine beads")
    (said,) = record_of(train(copy(stopped, tmp_path / "run")))["warnings"]
    assert re.match(r"not bitwise from step 4 on: derived\.processor was .+ and is an abacus, nine beads; the bits may differ", said)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "it is not there"),
        ("seed: [1", "not YAML"),
        ("seed: 0\n", "it is not the config of a run"),
        (
            "x: &a [1, 1]\n" + "".join(f"x{i}: &{c} [*{b}, *{b}]\n" for i, (b, c) in enumerate(pairwise("abcdefghijklmnopqrstuvwxyz"))),
            "aliases stand for more than",
        ),
    ],
)
def test_checkpoints_without_a_word_on_what_they_were_made_with_are_not_gone_on_from(
    train: Train, stopped: Path, tmp_path: Path, content: str | None, why: str
) -> None:
    run = copy(stopped, tmp_path / "run")
    config = (run / "config.yaml").read_bytes()
    (run / "resolved.yaml").unlink() if content is None else (run / "resolved.yaml").write_text(content)
    with pytest.raises(CheckpointError, match=why) as caught:
        train(run, "optimizer.lr=0.05", "seed=7")
    assert (caught.value.exit_code, (run / "config.yaml").read_bytes()) == (4, config)


@pytest.mark.parametrize("split", ["train", "validation", pytest.param("test", marks=pytest.mark.long)])
def test_b26_a_file_that_changed_since_the_start_is_refused_and_allowed_with_the_best_looked_for_anew(
    pretrained: Pretrained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, split: str
) -> None:
    def finetune(*allowed: str) -> Path:
        made = [o for o in tiny(base=TINY_FINETUNE) if not o.startswith(("data.documents", "data.validation", "data="))]
        files = [f"data.{name}={tmp_path / name}.csv" for name in ("train", "validation", "test")]
        typed = [*made, f"model.checkpoint={pretrained('bert')}", "data=text", *files, f"output_dir={tmp_path / 'run'}", *allowed]
        assert command.start(compose("finetune", typed), typed, "finetune") == 0
        return tmp_path / "run"

    for name in ("train", "validation", "test"):
        (tmp_path / f"{name}.csv").write_text("text,label\n" + "".join(f"{name} word{i} more,{'ab'[i % 2]}\n" for i in range(24)))
    with monkeypatch.context() as patch:
        stop_after(patch, 4)
        with pytest.raises(Stopped):
            finetune()
    (tmp_path / f"{split}.csv").write_text((tmp_path / f"{split}.csv").read_text().replace("more", "less"))
    with pytest.raises(CheckpointError, match=rf"derived\.{split}_data: ") as caught:
        finetune()
    assert caught.value.exit_code == 4
    (typed,) = re.findall(r"'(allow_change=\[.*\])'", str(caught.value.fix))
    record = record_of(finetune(typed))
    assert [entry["key"] for entry in record["changes"]] == [f"derived.{split}_data"]
    assert any("looked for anew" in line for line in record["warnings"]) == (split == "validation")


def test_a_test_that_is_no_longer_wanted_is_no_change(finetune: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(Stopped):
            finetune(tmp_path / "run")
    assert "test_data" in yaml.safe_load((tmp_path / "run" / "resolved.yaml").read_text())["derived"]
    assert record_of(finetune(tmp_path / "run", "evaluation.test=false"))["status"] == "finished"


def test_who_goes_back_before_a_change_does_not_go_on_from_the_course_that_was_left(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, asked = train(tmp_path / "run", "checkpoint.keep_last=9"), ("optimizer.lr=0.05", "checkpoint.keep_last=9")
    six = digests(run / "checkpoints" / "step-00000006")
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(Stopped):
            train(run, *asked, "allow_change=[optimizer.lr]", f"resume={run / 'checkpoints' / 'step-00000002'}")
    assert digests(run / "checkpoints" / "left-1-step-00000006") == six
    said = [line for line in record_of(run)["warnings"] if "before it went back to step 2" in line]
    assert [re.findall(r"left-1-step-(\d+)", line) for line in said] == [["00000006"], ["00000004"], ["00000003"]]
    capsys.readouterr()
    train(run, *asked, "trainer.max_steps=8")
    assert "resumed from step 3" in capsys.readouterr().out
    train(run, *asked, "trainer.max_steps=9", f"resume={run / 'checkpoints' / 'step-00000002'}")
    assert (run / "checkpoints" / "left-2-step-00000006").is_dir()  # nothing of the first course is written over


def test_a_damaged_checkpoint_keeps_its_place_since_nothing_goes_on_from_it(train: Train, stopped: Path, tmp_path: Path) -> None:
    run = copy(stopped, tmp_path / "run")
    damage(run / "checkpoints" / "step-00000004" / "model.safetensors", "half")
    train(run)
    assert not list((run / "checkpoints").glob("left-*"))


@pytest.mark.long
def test_a_run_from_before_versions_were_kept_goes_on_without_a_warning(train: Train, stopped: Path, tmp_path: Path) -> None:
    run = copy(stopped, tmp_path / "run")
    resolved = yaml.safe_load((run / "resolved.yaml").read_text())
    for section, name in (("derived", "versions"), ("trainer", "max_skipped"), ("trainer", "spike_window"), ("distributed", "strategy")):
        del resolved[section][name]
    del resolved["on_nonfinite"], resolved["allow_change"]
    (run / "resolved.yaml").write_text(yaml.safe_dump(resolved))
    assert record_of(train(run))["warnings"] == []


@pytest.mark.parametrize(("fault", "said"), [("delete", "it is gone"), pytest.param("last byte", "optimizer.safetensors has ", marks=pytest.mark.long)])
def test_e23_a_best_checkpoint_that_is_gone_or_damaged_is_said_and_the_best_is_looked_for_anew(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str, said: str
) -> None:
    run, asked = tmp_path / "run", ("checkpoint.export=best", "trainer.max_steps=9")
    with monkeypatch.context() as patch:
        stop_after(patch, 4)
        with pytest.raises(Stopped):
            train(run, *asked)
    best = run / "checkpoints" / "step-00000003"
    assert best.is_dir()
    if fault == "delete":
        shutil.rmtree(best)
    else:
        damage(best / "optimizer.safetensors", fault)
    record = record_of(train(run, *asked))
    (line,) = record["warnings"]
    assert re.match(r"the best so far \(loss \S+ after step 3\) is forgotten and looked for anew: step-00000003 had it: ", line)
    assert said in line
    assert record["best"]["step"] in (6, 9)


def test_e24_a_checkpoint_that_others_can_write_to_is_named_once(train: Train, stopped: Path, tmp_path: Path) -> None:
    run = copy(stopped, tmp_path / "run")
    for name in ("model.safetensors", "state.json"):
        (run / "checkpoints" / "step-00000004" / name).chmod(0o666)
    (line,) = record_of(train(run))["warnings"]
    assert line.startswith("step-00000004/model.safetensors can be written by everybody: ")
