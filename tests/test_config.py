"""Configs: what is wrong is named, with what is allowed and where it stands; what is dropped or without effect is said."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from llmtrain.cli import main
from llmtrain.config import Composed, UnknownKey, build, by_name, compose, did_you_mean, multirun, parse, read_yaml, shipped_dir, type_in_words, without_secrets
from llmtrain.errors import ConfigError, require
from llmtrain.runtime import Precision


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The screen of a command line that ends with exit code 2: at most six lines, no traceback, nothing on stdout."""
    code = main(list(arguments))
    said = capsys.readouterr()
    assert code == 2, said
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert len(said.err.splitlines()) <= 6
    assert "Traceback" not in said.err
    return said.err


def experiment(folder: Path, text: str, name: str = "mine") -> Path:
    path = folder / "experiment" / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("# @package _global_\n" + text)
    return path


def nested(override: str) -> str:
    """`a.b=1` as YAML."""
    key, _, value = override.partition("=")
    names = key.split(".")
    return "".join(f"{'  ' * depth}{name}:{f' {value}' if depth == len(names) - 1 else ''}\n" for depth, name in enumerate(names))


# --- faults: each on the command line and in a YAML file ------------------------------------------------------------

SETTINGS = [
    pytest.param("trainer.learning_rate=1e-3", "did you mean 'optimizer.lr'?", id="A01"),
    pytest.param("optimizer.lr=abc", "allowed: a number", id="A07"),
    pytest.param("optimizer.lr=-1", "allowed: a finite number above 0", id="A09 negative"),
    pytest.param("optimizer.lr=0", "allowed: a finite number above 0", id="A09 zero"),
    pytest.param("optimizer.lr=.nan", "allowed: a finite number above 0", id="A09 nan"),
    pytest.param("optimizer.lr=.inf", "allowed: a finite number above 0", id="A09 inf"),
    pytest.param("trainer.max_steps=1.5", "allowed: a whole number or null", id="A10 fraction"),
    pytest.param("trainer.max_steps=true", "allowed: a whole number or null", id="A10 true"),
    pytest.param("trainer.batch_size=true", "allowed: a whole number", id="A10 true, not null"),
    pytest.param("optimizer.lr=true", "allowed: a number", id="A07 true"),
    pytest.param("trainer.max_steps=-1", "allowed: above 0", id="A10 negative"),
    pytest.param("trainer.max_steps=0", "allowed: above 0", id="A10 zero"),
    pytest.param("trainer.max_steps=1e3", "fix: write it out: trainer.max_steps=1000", id="A10 1e3"),
    pytest.param("trainer.batch_size=0", "allowed: 1 sequence or more", id="A11 global"),
    pytest.param("trainer.micro_batch_size=0", "allowed: 1 sequence or more, or null", id="A11 micro"),
    pytest.param("trainer.micro_batch_size=7", "1 processes × trainer.micro_batch_size=7", id="A12"),
    pytest.param("precision=fp64", "allowed: auto, fp32, bf16, fp16", id="A21 fp64"),
    pytest.param("precision=FP32", "did you mean 'fp32'?", id="A21 FP32"),
    pytest.param("precision=16", "allowed: auto, fp32, bf16, fp16", id="A21 16"),
    pytest.param("device=cuda:7", "CUDA_VISIBLE_DEVICES=7", id="A25 index"),
    pytest.param("device=gpu", "allowed: auto, cpu, cuda, mps", id="A25 gpu"),
    pytest.param("seed=-1", "allowed: 0 to 4294967295", id="A26 negative"),
    pytest.param("seed=1099511627776", "allowed: 0 to 4294967295", id="A26 large"),
    pytest.param("seed=abc", "allowed: a whole number", id="A26 text"),
    pytest.param("seed=${missing}", "'missing' not found", id="A29 key"),
    pytest.param("name=${oc.env:NOPE}", "'NOPE' not found", id="A29 variable"),
    pytest.param("evaluation.best_metric=f2", "allowed: loss, perplexity, bits_per_byte", id="A35"),
    pytest.param("name=../../x", "allowed: 1 to 100 letters", id="G05"),
    pytest.param("callback.tracker.hf_token=hf_x", "in the environment", id="H09"),
    pytest.param("callback.tracker.usee=[wandb]", "did you mean 'callback.tracker.use'?", id="misspelt"),
    pytest.param("max_seq_length=3", "did you mean 'data.max_length'?", id="another name"),
    pytest.param("warmup_steps=3", "did you mean 'schedule.warmup_steps'?", id="another section"),
    pytest.param("data.train=book.txt", "fix: data=text has it", id="another option"),
]


@pytest.mark.parametrize(("override", "answer"), SETTINGS)
def test_a_wrong_setting_is_named_with_what_is_allowed_and_a_file_gets_the_same_text_and_its_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, override: str, answer: str
) -> None:
    typed = refused(capsys, "pretrain", override.replace(".nan", "nan").replace(".inf", "inf"))
    assert override.partition("=")[0] in typed
    assert answer in typed
    path = experiment(tmp_path, nested(override))
    written = refused(capsys, "pretrain", "--config-dir", str(tmp_path), "experiment=mine")
    line = 1 + len(override.partition("=")[0].split("."))
    place = f" ({path}:{line})"
    assert written.replace(place, "") == typed
    # What follows from several settings together, and secrets, name no line.
    assert place in written or any(word in typed for word in ("multiple of", "metric", "secrets"))


def test_a02_an_unknown_key_three_levels_deep_is_named_with_file_and_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = experiment(tmp_path, "trainer:\n  max_steps: 3\nobjective:\n  weights:\n    next_tokn: 2.0\n")
    said = refused(capsys, "pretrain", "--config-dir", str(tmp_path), "experiment=mine")
    assert "objective.weights" in said
    path.write_text("# @package _global_\n\ncallback:\n  tracker:\n    usee: []\n")
    assert f"callback.tracker.usee ({path}:5)" in refused(capsys, "pretrain", "--config-dir", str(tmp_path), "experiment=mine")


def test_a_wrong_setting_in_the_file_of_an_option_is_named_with_its_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    path = tmp_path / "model" / "mine.yaml"
    path.write_text("defaults: [gpt, _self_]\nhidden_size: 0\n")
    assert f"model.hidden_size=0 ({path}:2)" in refused(capsys, "pretrain", "--config-dir", str(tmp_path), "model=mine")
    (tmp_path / "model" / "other.yaml").write_text("defaults: [mine]\n")
    assert f"model.hidden_size=0 ({path}:2)" in refused(capsys, "pretrain", "--config-dir", str(tmp_path), "model=other")


def test_only_files_that_are_used_are_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    experiment(tmp_path, "optimizer:\n  lr: abc\n", "aaa")
    path = experiment(tmp_path, "seed: 1\noptimizer:\n  lr: -2\n")
    assert f"optimizer.lr=-2.0 ({path}:4)" in refused(capsys, "pretrain", "--config-dir", str(tmp_path), "experiment=mine")
    assert "yaml" not in refused(capsys, "pretrain", "--config-dir", str(tmp_path), "experiment=mine", "optimizer.lr=-3")


@pytest.mark.parametrize(
    ("override", "group", "option"),
    [pytest.param("model=bart", "model", "gpt2_medium", id="A03"), pytest.param("schedule=null", "schedule", "cosine", id="null"), ("model=", "model", "gpt2")],
)
def test_an_unknown_option_lists_those_that_there_are(capsys: pytest.CaptureFixture[str], override: str, group: str, option: str) -> None:
    said = refused(capsys, "pretrain", override)
    assert f"{group}=" in said
    assert option in said


def test_an_unknown_option_in_a_file_gets_the_same_text_and_its_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = experiment(tmp_path, "defaults:\n  - override /model: bart\n")
    written = refused(capsys, "pretrain", "--config-dir", str(tmp_path), "experiment=mine")
    assert written.replace(f" ({path}:3)", "") == refused(capsys, "pretrain", "model=bart")


@pytest.mark.parametrize(
    ("override", "meant"),
    [
        ("learning_rate=1", "optimizer.lr"),
        ("per_device_train_batch_size=1", "trainer.micro_batch_size"),
        ("num_train_epochs=1", "trainer.max_epochs"),
        ("model_name_or_path=gpt2", "model.checkpoint"),
        ("lr_scheduler_type=linear", "schedule"),
        ("optimiser.lr=1", "optimizer.lr"),
        ("trainer.max_stps=1", "trainer.max_steps"),
        ("modle=gpt2", "model"),
        ("sed=1", "seed"),
        ("model=gpt_tny", "gpt_tiny"),
        ("model=GPT2", "gpt2"),
        ("trainer.lr=1", "optimizer.lr"),
    ],
)
def test_what_was_meant_is_suggested(capsys: pytest.CaptureFixture[str], override: str, meant: str) -> None:
    assert f"did you mean {meant!r}?" in refused(capsys, "pretrain", override)


@pytest.mark.parametrize(("verb", "override"), [("evaluate", "optimizer.lr=1"), ("generate", "learning_rate=1"), ("generate", "experiment=gpt1")])
def test_nothing_is_suggested_that_the_verb_does_not_have(capsys: pytest.CaptureFixture[str], verb: str, override: str) -> None:
    assert "did you mean" not in refused(capsys, verb, override)


def test_several_options_that_have_a_setting_are_all_named() -> None:
    with pytest.raises(ConfigError) as caught:
        compose("pretrain", ["schedule=constant", "schedule.final_fraction=0"])
    assert caught.value.fix == "schedule=cosine and schedule=linear have it"


# --- what an override may be ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("override", ["+seed=1", "++seed=1", "~seed", "~model", "+model=gpt2"])
def test_keys_are_neither_added_nor_removed(capsys: pytest.CaptureFixture[str], override: str) -> None:
    assert "neither added nor removed" in refused(capsys, "pretrain", override)


def test_an_experiment_may_be_written_with_a_plus() -> None:
    assert compose("pretrain", ["+experiment=gpt3_125m"]).config == compose("pretrain", ["experiment=gpt3_125m"]).config


def test_experiment_null_is_no_experiment() -> None:
    assert compose("pretrain", ["experiment=null"]).config == compose("pretrain", []).config


@pytest.mark.parametrize("override", ["seed=1,2", "seed=range(1,3)", "optimizer.lr=interval(0,1)", "data.train=a.txt,b.txt"])
def test_several_values_are_refused_with_how_to_write_one(capsys: pytest.CaptureFixture[str], override: str) -> None:
    said = refused(capsys, "pretrain", override)
    assert f"{override.partition('=')[0]}=[a, b]" in said
    assert "-m runs them all" in said


@pytest.mark.parametrize(
    "override",
    [
        "hydra.run.dir=x",
        "hydra/launcher=basic",
        "model@other=gpt2",
        "model.kind=checkpoint",
        "trainer.batch_size",
        "trainer={max_steps: 1}",
        "trainer=3",
        "callback=progress",
    ],
)
def test_what_is_no_setting_is_refused(capsys: pytest.CaptureFixture[str], override: str) -> None:
    assert override.partition("=")[0] in refused(capsys, "pretrain", override) or "trainer" in override


@pytest.mark.parametrize(("typed", "taken"), [("~/books", "~/books"), ("a=b", "a=b"), ("'a, b'", "a, b"), ("x y", "x y"), ("null", None)])
def test_a_value_without_structure_is_taken_as_typed(typed: str, taken: str | None) -> None:
    assert compose("pretrain", [f"output_dir={typed}"]).config.output_dir == taken


@pytest.mark.parametrize("prompt", ["Hello, world", "f(x", '[a] {b} "c" \'d', "5", "null", "${seed}", "a=b", "~", "\\n", ""])
def test_a_prompt_is_taken_as_typed(prompt: str) -> None:
    from llmtrain.command.generate import Settings
    from llmtrain.config import OmegaConf

    config = compose("generate", [f"prompt={prompt}"]).config
    assert build(OmegaConf.create({k: v for k, v in config.items_ex(resolve=False) if k != "model"}), Settings, "").prompt == prompt


def test_a_value_that_cannot_be_read_is_shown_and_nothing_else_is() -> None:
    with pytest.raises(ConfigError, match=r"name=\[a") as caught:
        parse(["seed=1", "name=[a"])
    assert "quote" in str(caught.value.fix)


# --- sweeps ---------------------------------------------------------------------------------------------------------


def test_what_was_typed_after_m_is_the_sweeps_or_the_same_for_all_members_or_swept() -> None:
    typed = multirun(
        [
            "finetune=features,full", "name=mine", "data=text", "sweep=freezing", "sweep.seeds=2", "seed=0,1", "launcher.jobs=2",
            "output_dir=there", "max_members=9", "data.train=a.csv", "+experiment=gpt1",
        ]
    )  # fmt: skip
    assert typed.own == ["name=mine", "sweep=freezing", "sweep.seeds=2", "launcher.jobs=2", "output_dir=there", "max_members=9"]
    assert typed.fixed == ["data=text", "data.train=a.csv", "experiment=gpt1"]
    assert [override.key_or_group for override in typed.swept] == ["finetune", "seed"]
    assert typed.given == {"data", "data.train", "experiment"}


@pytest.mark.parametrize(
    ("value", "values"),
    [
        ("1,2", ["1", "2"]),
        ("choice(1,2)", ["1", "2"]),
        ("range(1,3)", ["1", "2"]),
        ("sort(2,1)", ["1", "2"]),
        ("sort(range(1,3),reverse=true)", ["2", "1"]),
        ("'a, b',c", ["'a, b'", "c"]),
    ],
)
def test_several_values_are_swept_in_hydras_grammar(value: str, values: list[str]) -> None:
    (override,) = multirun([f"a.b={value}"]).swept
    assert list(override.sweep_string_iterator()) == values


@pytest.mark.parametrize("value", ["interval(0,1)", "tag(log,interval(0.1,1))", "int(interval(1,8))", "shuffle(1,2)", "shuffle(range(9))"])
def test_what_only_some_sweeps_take_is_swept_too(value: str) -> None:
    assert len(multirun([f"a.b={value}"]).swept) == 1


@pytest.mark.parametrize("value", ["[1,2]", "'a, b'", "{a: 1}", "'0,11'", "~/books", "x=y"])
def test_one_value_is_the_same_for_all_members(value: str) -> None:
    typed = multirun([f"a.b={value}"])
    assert (typed.fixed, typed.swept) == ([f"a.b={value}"], ())


@pytest.mark.parametrize("text", ["prompt=a, b", "text=1,2", "second='a', 'b'", "prompt=range(3)"])
def test_a_prompt_is_taken_as_typed_in_a_sweep_too(text: str) -> None:
    assert multirun([text]).fixed == [text]


@pytest.mark.parametrize(
    ("override", "answer"),
    [
        ("+seed=1,2", "neither added nor removed"),
        ("++seed=1,2", "neither added nor removed"),
        ("~seed", "neither added nor removed"),
        ("seed", "neither an option nor KEY=VALUE"),
        ("hydra.run.dir=a,b", "Hydra's own settings"),
        ("hydra/launcher=a,b", "Hydra's own settings"),
        ("model@other=a,b", "Hydra's own settings"),
        ("model=glob(*)", "glob is not taken"),
        ("model=glob([gpt*],exclude=gpt1)", "glob is not taken"),
        ("sweep=grid,optuna", "a sweep has one sweep"),
        ("sweep.blocks=0,2,4", "a sweep has one sweep.blocks"),
        ("launcher=local,submitit", "a sweep has one launcher"),
        ("output_dir=a,b", "a sweep has one output_dir"),
        ("name=a,b", "a sweep has one name"),
        ("seed=choice()", "empty choice is not legal"),
        ("data.train=shuffle([a,b])", "shuffled anew at each start"),
        ("seed=range(a)", "range"),
        ("seed=[a,b", "the value cannot be read"),
        ("_target_=a,b", "cannot name code to run"),
        ("model._target_=a,b", "cannot name code to run"),
        ("model={_target_:a},{_target_:b}", "cannot name code to run"),
        ("model=choice({_target_:a})", "cannot name code to run"),
        ("model={_target_:a}", "cannot name code to run"),
    ],
)
def test_a_sweep_takes_no_more_than_one_run_does(override: str, answer: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(answer)) as caught:
        multirun(["finetune=features,full", override])
    assert caught.value.exit_code == 2
    assert len(caught.value.screen().splitlines()) <= 6


@pytest.mark.parametrize("typed", [["seed=0,1", "seed=2"], ["seed=2", "seed=0,1"], ["seed=0,1", "seed=2,3"]])
def test_a_swept_key_is_given_once(typed: list[str]) -> None:
    with pytest.raises(ConfigError, match="seed is given twice"):
        multirun(typed)


@pytest.mark.parametrize("override", ["hf_token=hf_secret,b", "hf_token=interval(hf_secret)", "hf_token=glob(hf_secret)", "+hf_token=hf_secret,b"])
def test_h09_a_secret_with_several_values_is_refused_and_not_repeated(capsys: pytest.CaptureFixture[str], override: str) -> None:
    assert "hf_secret" not in refused(capsys, "pretrain", override)
    with pytest.raises(ConfigError) as caught:
        for swept in multirun([override]).swept:  # the first member that is composed
            compose("pretrain", [f"{swept.key_or_group}={next(swept.sweep_string_iterator())}"])
    assert "hf_secret" not in caught.value.screen()


def test_a_weight_whose_name_ends_in_token_can_be_swept() -> None:
    assert [o.key_or_group for o in multirun(["objective.weights.next_token=1,2"]).swept] == ["objective.weights.next_token"]


def test_a_users_own_settings_of_a_sweep_are_the_sweeps(tmp_path: Path) -> None:
    (tmp_path / "multirun.yaml").write_text("defaults:\n  - sweep: grid\n  - color: red\nmine: 1\n")
    assert multirun(["mine=2", "color=blue", "name=x"], tmp_path).own == ["mine=2", "color=blue"]


@pytest.mark.parametrize("override", ["sweep=freezing", "sweep.trials=3", "launcher=local"])
def test_a_setting_of_a_sweep_without_one_is_answered_with_m(capsys: pytest.CaptureFixture[str], override: str) -> None:
    assert "llmtrain VERB -m" in refused(capsys, "finetune", override)


@pytest.mark.parametrize(("overrides", "key"), [(["optimizer.lrr=1"], "optimizer.lrr"), (["finetune=features", "finetune.blocks=1"], "finetune.blocks")])
def test_an_unknown_key_can_be_told_from_other_errors(overrides: list[str], key: str) -> None:
    with pytest.raises(UnknownKey) as caught:
        compose("finetune", overrides)
    assert (caught.value.key, caught.value.exit_code) == (key, 2)


def test_an_unknown_key_of_a_part_can_be_told_too() -> None:
    with pytest.raises(UnknownKey) as caught:
        build(outer(inner={"rate": 0.1, "rat": 1}), Outer, "a")
    assert caught.value.key == "a.inner.rat"


# --- H: a config cannot run or hide anything ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "override", ["_target_=os.system", "model._target_=os.system", "model={_target_: os.system}", "objective.weights={_target_: os.system}"]
)
def test_h01_a_target_on_the_command_line_is_refused(capsys: pytest.CaptureFixture[str], override: str) -> None:
    assert "in an override: a config cannot name code to run" in refused(capsys, "pretrain", override)


@pytest.mark.parametrize("text", ["_target_: os.system\n", "data:\n  a:\n    - _target_: os.system\n", "optimizer: {_target_: os.system}\n"])
def test_h01_a_target_in_a_file_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path, text: str) -> None:
    path = experiment(tmp_path, text)
    assert f"in {path}: a config cannot name code to run" in refused(capsys, "pretrain", "--config-dir", str(tmp_path), "experiment=mine")


@pytest.mark.parametrize(
    "text",
    [
        "hydra:\n  callbacks:\n    e: {x: 1}\n",
        "hydra:\n  job_logging: {handlers: {x: {class: logging.FileHandler, filename: marker}}}\n",
        "defaults:\n  - override hydra/launcher: basic\n",
        "defaults:\n  - override /hydra/job_logging: stdout\n",
        "# @package hydra\ncallbacks: {}\n",
    ],
)
def test_h03_settings_of_hydra_in_a_file_are_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.chdir(tmp_path)
    experiment(tmp_path / "mine", text)
    assert "Hydra's own settings are not taken" in refused(capsys, "pretrain", "--config-dir", "mine", "experiment=mine")
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]


CALLBACKS = "hydra:\n  callbacks: {a: {b: 1}}\n"


@pytest.mark.parametrize(
    ("files", "links"),
    [
        pytest.param({"hidden/mine.yaml": CALLBACKS}, {"mine/experiment": "hidden"}, id="a linked group"),
        pytest.param({"mine/experiment/mine.yaml": "defaults: [sub/a]\n", "hidden/a.yaml": CALLBACKS}, {"mine/experiment/sub": "hidden"}, id="a linked folder"),
        pytest.param({"mine/experiment/mine.yaml": "defaults: [a@_global_.hydra]\n", "mine/experiment/a.yaml": "verbose: true\n"}, {}, id="a package"),
        pytest.param({"mine/experiment/mine.yaml": "defaults: [{'x /hydra/env@a': default}]\n"}, {}, id="a word before the group"),
        pytest.param({"mine/experiment/mine.yaml": "defaults: [a]\n", "mine/experiment/a.yaml": "# @package _global_.hydra\na: 1\n"}, {}, id="a first line"),
        pytest.param({"mine/experiment/mine.yaml": "seed: 1\n", "mine/hydra/env/default.yaml": "a: 1\n"}, {}, id="a folder in the place of Hydra's"),
    ],
)
def test_h03_settings_of_hydra_are_refused_however_hydra_comes_to_them(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], links: dict[str, str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in files.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(text if text.startswith("#") else "# @package _global_\n" + text)
    for name, where in links.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).symlink_to(tmp_path / where)
    assert "Hydra's own settings are not taken" in refused(capsys, "pretrain", "--cfg", "job", "--config-dir", "mine", "experiment=mine")


def test_folders_that_are_linked_in_a_circle_are_read_once(tmp_path: Path) -> None:
    experiment(tmp_path, "seed: 7\n")
    (tmp_path / "experiment" / "again").symlink_to(tmp_path)
    (tmp_path / "model").symlink_to(tmp_path / "experiment")
    assert compose("pretrain", ["experiment=mine"], tmp_path).config.seed == 7


def test_a_linked_group_is_a_group(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden" / "gpt_tiny.yaml").write_text("defaults: [gpt]\nnum_hidden_layers: 1\n")
    (tmp_path / "mine" / "model").symlink_to(tmp_path / "hidden")
    composed = compose("pretrain", [], tmp_path / "mine")
    assert composed.config.model.num_hidden_layers == 1
    assert any("gpt_tiny.yaml replaces the shipped file" in note for note in composed.notes)


OUTSIDE = ["../../outside", "/experiment/../../outside", "..\\..\\outside", "sub/..@a", "{override /model: ../../outside}", "{optional sub: [../../outside]}"]


@pytest.mark.parametrize("entry", [*OUTSIDE, "/{outside}", "{{sub: '${{oc.env:NOPE,..}}/../../outside'}}"])
def test_h03_a_defaults_list_that_leads_out_of_the_folder_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path, entry: str) -> None:
    experiment(tmp_path / "mine", f"defaults: [{entry.format(outside=tmp_path / 'outside') if '{' in entry[1:] else entry}, _self_]\n")
    (tmp_path / "mine" / "experiment" / "sub").mkdir()
    (tmp_path / "outside.yaml").write_text("# @package _global_\nseed: 7\n" + CALLBACKS)
    said = refused(capsys, "pretrain", "--cfg", "job", "--config-dir", str(tmp_path / "mine"), "experiment=mine")
    assert re.search("leads out of the folder|is a reference|is outside of it", said)
    assert "allowed: the files of the folder" in said


def test_files_of_the_folder_may_be_named_in_every_other_way(tmp_path: Path) -> None:
    (tmp_path / "experiment" / "sub").mkdir(parents=True)
    (tmp_path / "experiment" / "sub" / "a..b.yaml").write_text("# @package _global_\nseed: 7\n")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "hydra.yaml").write_text("defaults: [gpt]\nnum_hidden_layers: 1\n")
    experiment(tmp_path, "defaults: [sub/a..b, /experiment/gpt1@_here_, {optional nowhere: null}, {override /model: hydra}, _self_]\n")
    config = compose("pretrain", ["experiment=mine"], tmp_path).config
    assert (config.seed, config.model.num_hidden_layers) == (7, 1)


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcde", "bcdef", strict=True))


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        pytest.param(BOMB, "aliases stand for more than", id="H05"),
        pytest.param("a: &a [" + "x," * 40_000 + "]\nb: [*a, *a, *a]\n", "aliases stand for more than", id="H05 few aliases of much"),
        pytest.param("a: &a [*a]\n", "alias to itself", id="H05 itself"),
        pytest.param("a: " + "[" * 5000, "nested too deeply", id="deep"),
        pytest.param("x: " + "y" * 1_000_001, "larger than 1 MB", id="large"),
        pytest.param("a: [\n", "not YAML", id="not YAML"),
        pytest.param("a: !!python/object/apply:os.system [ls]\n", "not YAML", id="python tag"),
    ],
)
def test_a_file_that_is_built_to_explode_is_refused_before_it_is_composed(tmp_path: Path, text: str, answer: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=re.escape(answer)) as caught:
        read_yaml(path)
    assert str(path) in str(caught.value)


def test_the_usual_use_of_an_alias_is_fine(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("a: &a {b: 1}\nc: *a\nd: {<<: *a, e: 2}\n")
    assert read_yaml(tmp_path / "x.yaml") == {"a": {"b": 1}, "c": {"b": 1}, "d": {"b": 1, "e": 2}}


BOMBED = """
import resource, sys
from pathlib import Path
from llmtrain.config import read_yaml
from llmtrain.errors import ConfigError
seconds, held = resource.getrusage(resource.RUSAGE_SELF).ru_utime, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    read_yaml(Path(sys.argv[1]))
except ConfigError as error:
    after = resource.getrusage(resource.RUSAGE_SELF)
    assert after.ru_utime - seconds < 2, after.ru_utime - seconds
    assert (after.ru_maxrss - held) / (2**20 if sys.platform == "darwin" else 2**10) < 100, after.ru_maxrss - held
    sys.exit(error.exit_code)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not tell what a process has used")
@pytest.mark.parametrize("deep", [6, 20])
def test_h05_an_alias_bomb_takes_neither_time_nor_memory(tmp_path: Path, deep: int) -> None:
    path = tmp_path / "x.yaml"
    levels = (f"b{i}: &b{i} [{','.join([f'*b{i - 1}'] * 9)}]\n" for i in range(1, deep))
    path.write_text("b0: &b0 [x,x,x,x,x,x,x,x,x]\n" + "".join(levels))
    assert subprocess.run([sys.executable, "-c", BOMBED, str(path)], check=False).returncode == 2


def alias_bomb(path: Path) -> None:
    levels = (f"b{i}: &b{i} [{','.join([f'*b{i - 1}'] * 9)}]\n" for i in range(1, 9))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("# @package _global_\nb0: &b0 [x,x,x,x,x,x,x,x,x]\n" + "".join(levels))


def by_dots(folder: Path) -> None:
    experiment(folder / "mine", "defaults: [../../outside]\n")
    alias_bomb(folder / "outside.yaml")


def by_a_link(folder: Path) -> None:
    experiment(folder / "mine", "defaults: [sub/a]\n")
    alias_bomb(folder / "outside" / "a.yaml")
    (folder / "mine" / "experiment" / "sub").symlink_to(folder / "outside")


def by_defaults_lists(folder: Path) -> None:
    experiment(folder / "mine", "defaults: [a5]\n")
    experiment(folder / "mine", "a: 1\n", "a0")
    for i in range(1, 6):
        experiment(folder / "mine", f"defaults: [{', '.join(f'a{i - 1}@p{j}' for j in range(10))}]\n", f"a{i}")


def by_a_long_defaults_list(folder: Path) -> None:
    experiment(folder / "mine", f"defaults: [{', '.join(f'/model/gpt@p{j}' for j in range(5_000))}]\n")


def by_large_files(folder: Path) -> None:
    experiment(folder / "mine", f"defaults: [{', '.join(f'large@p{j}' for j in range(50))}]\n")
    experiment(folder / "mine", f"a: [{','.join('x' * 4_000)}]\n", "large")


def by_a_file_without_end(folder: Path) -> None:
    experiment(folder / "mine", "defaults: [a]\n")
    (folder / "mine" / "experiment" / "a.yaml").symlink_to("/dev/zero")


def by_a_kind(folder: Path) -> None:
    levels = [f"a{i}: '{f'${{a{i - 1}}}' * 10}'\n" for i in range(1, 9)]
    experiment(folder / "mine", "a0: xxxxxxxxxx\n" + "".join(levels) + "model: {kind: '${a8}', more: 1}\n")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no /dev/zero")
@pytest.mark.parametrize("make", [by_dots, by_a_link, by_defaults_lists, by_a_long_defaults_list, by_large_files, by_a_file_without_end, by_a_kind])
def test_h05_what_grows_is_refused_however_hydra_comes_to_it(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path)
    command = [sys.executable, "-m", "llmtrain", "pretrain", "--cfg", "job", "--config-dir", str(tmp_path / "mine"), "experiment=mine", "model=gpt2"]
    limited = ["sh", "-c", 'ulimit -v 4000000; exec "$@"', "sh", *command]  # in kB: what has no end is not to take the machine with it
    done = subprocess.run(limited, capture_output=True, text=True, check=False, timeout=60)  # a second or two; what it grows into takes hours
    assert (done.returncode, done.stdout) == (2, "")
    assert re.search("stand for more than|leads out of the folder|not a file", done.stderr)


# --- references -----------------------------------------------------------------------------------------------------

RESOLVERS = ["${oc.select:x}", "${oc.create:{a:1}}", "${${name}}", "${a${seed}}", "${now:%Y}", "${oc.env:${name}}", "${oc.env:A,${x}}", "${"]


@pytest.mark.parametrize("text", RESOLVERS)
def test_a_reference_that_calls_or_is_put_together_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path, text: str) -> None:
    experiment(tmp_path, f"name: '{text}'\n")
    said = refused(capsys, "validate", "--config-dir", str(tmp_path), "experiment=mine")
    assert "no such reference" in said
    assert "${oc.env:NAME}" in said
    with pytest.raises(ConfigError):
        compose("pretrain", [f"name={text}"])
    with pytest.raises(ConfigError):
        build(outer(names=[text]), Outer, "outer")


@pytest.mark.parametrize("text", ["${seed}", "a${.seed}b", "${data.max_length}", "${oc.env:HOME}", "${ oc.env:NO, it }", "${oc.env:NOPE,null}", r"\${x:y}"])
def test_a_reference_to_a_key_or_the_environment_is_taken(tmp_path: Path, text: str) -> None:
    experiment(tmp_path, f"name: '{text}'\n")
    assert compose("pretrain", ["experiment=mine"], tmp_path).config._get_node("name")._value() == text


def test_resolvers_do_not_get_around_the_limit_of_what_references_stand_for(tmp_path: Path) -> None:
    levels = [f"a{i}: '{f'${{oc.select:a{i - 1}}}' * 20}'\n" for i in range(1, 6)]
    experiment(tmp_path, "a0: x\n" + "".join(levels))
    with pytest.raises(ConfigError, match="no such reference"):
        compose("pretrain", ["experiment=mine"], tmp_path)


@pytest.mark.parametrize(
    "way",
    [
        pytest.param("tokenizer: ${data}", id="a section"),
        pytest.param("tokenizer: ${schedule}\nschedule: ${data}", id="a section of a section"),
        pytest.param("tokenizer: ${.objective.inner}\nobjective: {inner: '${..data}'}", id="relative to where it stands"),
        pytest.param("lists: ['${data}', 1]\ntokenizer: ${lists[0]}", id="in a list"),
    ],
)
def test_h05_references_through_a_section_that_is_a_reference_are_followed(tmp_path: Path, way: str) -> None:
    experiment(tmp_path, f"{way}\ndata: {{encoding: {'x' * 2000}}}\nname: '{'${tokenizer.encoding}' * 200}'\noutput_dir: '{'${name}' * 10}'\n")
    began = time.process_time()
    with pytest.raises(ConfigError, match="stand for more than"):
        compose("pretrain", ["experiment=mine"], tmp_path)
    assert time.process_time() - began < 30  # half a second


def test_a_reference_through_a_section_that_is_a_reference_is_taken(tmp_path: Path) -> None:
    experiment(tmp_path, "extra: ${data}\nname: n-${extra.max_length}\n")
    config = compose("pretrain", ["experiment=mine", "data.max_length=64"], tmp_path).config
    assert config.name == "n-64"


def test_what_variables_hold_counts_among_what_references_stand_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONG", "x" * 60_000)
    experiment(tmp_path, f"name: '{'${oc.env:LONG}' * 20}'\n")
    with pytest.raises(ConfigError, match="stand for more than"):
        compose("pretrain", ["experiment=mine"], tmp_path)


NOWHERE = [
    *(("pretrain", text) for text in ("model: ${nope}", "model: {kind: '${nope}'}", "callback: {progress: '${nope}'}", "callback: ${nope}", "cache: ${nope}")),
    *((verb, text) for verb in ("finetune", "evaluate", "generate", "predict") for text in ("model: ${nope}", "model: {kind: '${nope}'}")),
    ("finetune", "cache: ${nope}"),
]


@pytest.mark.parametrize(("verb", "text"), NOWHERE)
def test_a_section_or_a_kind_that_refers_to_nothing_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path, verb: str, text: str) -> None:
    shipped = (shipped_dir() / f"{verb}.yaml").read_text(encoding="utf-8")
    (tmp_path / f"{verb}.yaml").write_text(f"{shipped}\n{text}\n" if verb not in ("pretrain", "finetune") else shipped, encoding="utf-8")
    experiment(tmp_path, f"{text}\n")
    chosen = ["experiment=mine"] if verb in ("pretrain", "finetune") else ["model.checkpoint=x"]
    assert main([verb, "--config-dir", str(tmp_path), *chosen]) == 2
    said = capsys.readouterr().err
    assert "nope" in said or chosen == ["model.checkpoint=x"]
    assert "fault of llmtrain" not in said


@pytest.mark.parametrize("verb", ["pretrain", "generate"])
def test_weights_that_refer_to_nothing_are_named(capsys: pytest.CaptureFixture[str], verb: str) -> None:
    given = () if verb == "generate" else ("model=checkpoint",)
    assert "'nope' not found" in refused(capsys, verb, *given, "model.checkpoint=${nope}")


def test_text_that_looks_like_a_reference_once_it_is_resolved_is_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ODD", "${oc.env:HOME}")
    assert build(outer(names=["${oc.env:ODD}", r"\${x}"]), Outer, "outer").names == ["${oc.env:HOME}", "${x}"]


# --- secrets --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "override", ["hf_token=hf_secret", "+hf_token=hf_secret", "callback.tracker.wandb_api_key=hf_secret", "hf_token=[hf_secret", "~hf_token=hf_secret"]
)
def test_h09_a_secret_on_the_command_line_is_refused_and_not_repeated(capsys: pytest.CaptureFixture[str], override: str) -> None:
    said = refused(capsys, "pretrain", override)
    assert "set it in the environment" in said
    assert "hf_secret" not in said


def test_a_setting_whose_name_ends_in_token_is_no_secret() -> None:
    assert compose("pretrain", ["objective.weights.next_token=2"]).config.objective.weights.next_token == 2


# --- A30: the folder and its files ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "answer"),
    [
        pytest.param(lambda p: None, "no such folder", id="A30 missing"),
        pytest.param(lambda p: p.write_text(""), "not a folder", id="A30 a file"),
        pytest.param(lambda p: (p / "pretrain.yaml").mkdir(parents=True), "Is a directory", id="A30 directory"),
        pytest.param(lambda p: (p.mkdir(), (p / "pretrain.yaml").write_bytes(b"seed: \xff")), "byte 6 is not UTF-8", id="A30 bytes"),
        pytest.param(lambda p: (p.mkdir(), (p / "pretrain.yaml").write_text("a: [")), "pretrain.yaml:1: not YAML", id="not YAML"),
        pytest.param(lambda p: (p.mkdir(), (p / "pretrain.yaml").write_text("- a")), "no keys and values", id="a list"),
        pytest.param(lambda p: (p.mkdir(), (p / "pretrain.yaml").write_text("seed: 1")), "no section", id="sections missing"),
    ],
)
def test_a_folder_that_cannot_be_used_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path, make: object, answer: str) -> None:
    assert callable(make)
    make(tmp_path / "mine")
    said = refused(capsys, "pretrain", "--config-dir", str(tmp_path / "mine"))
    assert answer in said
    assert str(tmp_path / "mine") in said or answer == "no section"


def test_an_experiment_without_its_package_line_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = experiment(tmp_path, "")
    path.write_text("trainer:\n  max_steps: 3\n")
    assert "make `# @package _global_` its first line" in refused(capsys, "pretrain", "--config-dir", str(tmp_path), "experiment=mine")


def test_a_users_file_wins_over_the_shipped_one_and_that_is_said(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "gpt_tiny.yaml").write_text("defaults: [gpt]\nnum_hidden_layers: 1\n")
    composed = compose("pretrain", [], tmp_path)
    assert composed.config.model.num_hidden_layers == 1
    assert composed.notes == [f"{tmp_path / 'model' / 'gpt_tiny.yaml'} replaces the shipped file of that name"]
    assert compose("pretrain", []).config.model.num_hidden_layers != 1


def test_the_note_of_a_replaced_file_is_printed_with_the_config(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "schedule").mkdir()
    (tmp_path / "schedule" / "cosine.yaml").write_text("kind: constant\nwarmup_steps: 0\nwarmup_tokens: null\n")
    assert main(["pretrain", "--config-dir", str(tmp_path), "--cfg", "job"]) == 0
    said = capsys.readouterr()
    assert "cosine.yaml replaces the shipped file" in said.err
    assert "kind: constant" in said.out


def test_a_users_own_option_and_experiment_are_found(tmp_path: Path) -> None:
    experiment(tmp_path, "defaults:\n  - override /model: mine\nseed: 7\n")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.yaml").write_text("defaults: [gpt, _self_]\nhidden_size: 12\n")
    config = compose("pretrain", ["experiment=mine"], tmp_path).config
    assert (config.seed, config.model.hidden_size, config.model.kind) == (7, 12, "gpt")


# --- levels: a later one replaces an earlier one ---------------------------------------------------------------------

BUDGETS = ("max_steps", "max_epochs", "max_tokens")


def budget(composed: Composed) -> dict[str, object]:
    return {name: composed.config.trainer[name] for name in BUDGETS if composed.config.trainer[name] is not None}


@pytest.mark.parametrize("name", BUDGETS)
def test_a_budget_on_the_command_line_replaces_that_of_the_defaults(name: str) -> None:
    assert budget(compose("pretrain", [f"trainer.{name}=7"])) == {name: 7}


def test_a_budget_of_an_experiment_replaces_that_of_the_defaults_and_the_command_line_that_of_the_experiment(tmp_path: Path) -> None:
    experiment(tmp_path, "trainer:\n  max_tokens: 500\n")
    assert budget(compose("pretrain", ["experiment=mine"], tmp_path)) == {"max_tokens": 500}
    assert budget(compose("pretrain", ["experiment=mine", "trainer.max_steps=3"], tmp_path)) == {"max_steps": 3}


def test_a_budget_of_an_experiment_replaces_that_of_the_one_it_builds_on(tmp_path: Path) -> None:
    experiment(tmp_path, "trainer:\n  max_steps: 5\n", "first")
    experiment(tmp_path, "defaults: [first]\nseed: 1\n", "second")
    experiment(tmp_path, "defaults: [first]\ntrainer:\n  max_tokens: 9\n", "third")
    assert budget(compose("pretrain", ["experiment=second"], tmp_path)) == {"max_steps": 5}
    assert budget(compose("pretrain", ["experiment=third"], tmp_path)) == {"max_tokens": 9}


def test_two_budgets_at_one_level_are_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "both given by the command line" in refused(capsys, "pretrain", "trainer.max_steps=3", "trainer.max_epochs=2")
    experiment(tmp_path, "trainer:\n  max_steps: 3\n  max_tokens: 4\n")
    assert "both given by the experiment" in refused(capsys, "pretrain", "--config-dir", str(tmp_path), "experiment=mine")


def test_a_kind_on_the_command_line_drops_what_the_experiment_set_for_another_and_says_so(tmp_path: Path) -> None:
    experiment(tmp_path, "defaults:\n  - override /schedule: cosine\nschedule:\n  final_fraction: 0.5\n  warmup_steps: 3\n")
    composed = compose("pretrain", ["experiment=mine", "schedule=constant"], tmp_path)
    assert composed.config.schedule == {"kind": "constant", "warmup_steps": 3, "warmup_tokens": None}
    assert composed.notes == ["schedule.final_fraction=0.5 of the experiment is dropped: schedule=constant has no such setting"]
    assert "schedule.final_fraction" not in composed.given


def test_a_setting_that_both_kinds_have_stays(tmp_path: Path) -> None:
    experiment(tmp_path, "defaults:\n  - override /schedule: cosine\nschedule:\n  final_fraction: 0.5\n")
    composed = compose("pretrain", ["experiment=mine", "schedule=linear"], tmp_path)
    assert (composed.config.schedule.final_fraction, composed.notes) == (0.5, [])


def test_what_was_given_is_known_from_the_command_line_and_the_experiment(tmp_path: Path) -> None:
    experiment(tmp_path, "trainer:\n  max_tokens: 500\n")
    given = compose("pretrain", ["experiment=mine", "model=gpt2", "optimizer.lr=1e-3"], tmp_path).given
    assert given == {"trainer.max_tokens", "model", "optimizer.lr"}


# --- build ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Inner:
    rate: float

    def __post_init__(self) -> None:
        require(self.rate < 1, "rate", self.rate, "below 1")


@dataclass(frozen=True, kw_only=True)
class Outer:
    count: int | None
    precision: Precision
    names: list[str]
    inner: Inner


def outer(**changes: object) -> dict[str, object]:
    return {"count": 3, "precision": "bf16", "names": ["a"], "inner": {"rate": 0.5}, **changes}


def test_a_node_becomes_a_checked_object() -> None:
    assert build(outer(), Outer, "a") == Outer(count=3, precision=Precision.bf16, names=["a"], inner=Inner(rate=0.5))


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"count": "x"}, "a.count"),
        ({"precision": "x"}, "a.precision"),
        ({"names": 3}, "a.names"),
        ({"inner": {"rate": 2}}, "a.inner.rate"),
        ({"inner": 3}, "a.inner"),
    ],
)
def test_the_whole_key_of_a_wrong_value_is_named(changes: dict[str, object], key: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(key)}="):
        build(outer(**changes), Outer, "a")


def test_unknown_and_missing_settings_are_named() -> None:
    with pytest.raises(ConfigError, match=r"a\.inner\.rat: no such key"):
        build(outer(inner={"rate": 0.1, "rat": 1}), Outer, "a")
    with pytest.raises(ConfigError, match="no value for count"):
        build({k: v for k, v in outer().items() if k != "count"}, Outer, "a")


@pytest.mark.parametrize(
    ("hint", "words"),
    [
        (int | None, "a whole number or null"),
        (Precision, "auto, fp32, bf16, fp16"),
        (list[str], "a list, each text"),
        (dict[str, float], "a mapping of names to a number"),
    ],
)
def test_types_are_named_in_words(hint: object, words: str) -> None:
    assert type_in_words(hint) == words


@pytest.mark.parametrize(("word", "meant"), [("gpt_tny", "gpt_tiny"), ("GPT2", "gpt2"), ("temp", "temperature"), ("zzz", None)])
def test_the_nearest_name_is_suggested(word: str, meant: str | None) -> None:
    found = did_you_mean(word, ["gpt_tiny", "gpt2", "temperature"])
    assert found == (f"did you mean {meant!r}?" if meant else None)


def test_h10_a_config_is_written_down_with_the_names_of_secrets_and_read_again_with_their_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "very-secret")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "other-secret")
    config = compose("pretrain", ["callback.tracker.project=a/very-secret", "name=very-secret.other-secret", "seed=3"]).config
    hidden = without_secrets(config)
    assert (hidden._get_node("name")._value(), hidden.seed) == ("${oc.env:WANDB_API_KEY}.${oc.env:AWS_SECRET_ACCESS_KEY}", 3)
    assert (hidden.name, hidden.callback.tracker.project) == ("very-secret.other-secret", "a/very-secret")
    assert not any(secret in OmegaConf.to_yaml(hidden) for secret in ("very-secret", "other-secret"))
    assert by_name(["x", None, {"a": "very-secret"}, "${seed}very-secret"]) == ["x", None, {"a": "${oc.env:WANDB_API_KEY}"}, "${seed}***"]


def test_a_config_without_secrets_is_written_as_it_is() -> None:
    config = compose("pretrain", []).config
    assert without_secrets(config) is config
