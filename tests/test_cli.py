"""The command line answers at once, with one screen for whatever is wrong with it."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import llmtrain
from llmtrain import cli
from llmtrain.cli import VERBS, main
from llmtrain.errors import Interrupted, NonFiniteError
from tests.conftest import TINY

HEAVY = {"torch", "transformers", "datasets", "pyarrow", "pandas", "accelerate", "matplotlib"}
ASK = "import json, sys; from llmtrain.cli import main; code = main({arguments!r}); print(json.dumps([code, sorted(sys.modules)]), file=sys.stderr)"


def alone(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(llmtrain.__file__).parents[1])}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=300, env=environment, cwd=cwd, check=False)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        pytest.param(["--help"], 0, id="A32 help"),
        pytest.param(["pretrain", "--help"], 0, id="A32 help of a verb"),
        pytest.param(["pretrain", "--cfg", "job"], 0, id="A32 cfg"),
        (["evaluate", "--help"], 0),
        (["--version"], 0),
        (["pretrain", "modle=gpt"], 2),
        (["pretrain", "optimizer.lr=abc"], 2),
        (["pretrain", "optimizer.lr=-1"], 2),
        (["generate", "temperature=-1"], 2),
        (["evaluate", "split=none"], 2),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_help_and_config_errors_import_nothing_heavy(arguments: list[str], code: int) -> None:
    done = alone("-c", ASK.format(arguments=arguments))
    found, modules = json.loads(done.stderr.splitlines()[-1])
    assert found == code
    assert "llmtrain.cli" in modules
    assert {name.split(".")[0] for name in modules} & HEAVY == set()


def test_the_guard_sees_a_heavy_import() -> None:
    done = alone("-c", "import torch; " + ASK.format(arguments=["--version"]))
    assert "torch" in json.loads(done.stderr.splitlines()[-1])[1]


def test_python_m_llmtrain_is_llmtrain() -> None:
    done = alone("-m", "llmtrain", "--version")
    assert (done.returncode, done.stdout) == (0, f"llmtrain {llmtrain.__version__}\n")


def test_the_exit_code_of_an_error_is_that_of_the_process() -> None:
    done = alone("-m", "llmtrain", "pretrain", "seed=-1")
    assert (done.returncode, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr


def test_a_reader_that_goes_away_is_no_error(tmp_path: Path) -> None:
    command = f"{sys.executable} -m llmtrain pretrain --help | head -c 1"
    environment = {**os.environ, "PYTHONPATH": str(Path(llmtrain.__file__).parents[1])}
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, env=environment, check=False, timeout=300)
    assert (done.returncode, done.stdout, done.stderr) == (0, "l", "")


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_help_lists_the_verbs(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert all(f"\n  {verb} " in said for verb in VERBS)


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        (["pretran"], "did you mean 'pretrain'?"),
        (["dance"], "allowed: pretrain, finetune, evaluate, generate, predict, sweep, report, cache, doctor, validate"),
        (["pretrain", "--hlp"], "did you mean '--help'?"),
        (["pretrain", "--config_dir=x"], "did you mean '--config-dir'?"),
        (["pretrain", "--cfg", "all"], "allowed: --cfg job"),
        (["pretrain", "--cfg"], "allowed: --cfg job"),
        (["pretrain", "--config-dir"], "names no folder"),
        (["seed=1"], "fix: llmtrain pretrain seed=1"),
        (["pretrain", "gpt2"], "'gpt2' is neither an option nor KEY=VALUE"),
        (["pretrain", "~seed"], "neither added nor removed"),
        pytest.param(["pretrain", "-m", "seed="], "-m: no key has several values", id="A31"),
        pytest.param(["-m", "pretrain", "seed=range(0,1000000)"], "the sweep has 1,000,000 members", id="A31 many"),
        (["\x1b[2Jpretrain"], r"\x1b[2Jpretrain"),
    ],
)
def test_what_is_mistyped_is_answered_with_what_is_allowed(capsys: pytest.CaptureFixture[str], arguments: list[str], answer: str) -> None:
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert (said.out, len(said.err.splitlines()) <= 6) == ("", True)
    assert answer in said.err
    assert "\x1b" not in said.err


def test_cfg_prints_a_config_that_composes_again(capsys: pytest.CaptureFixture[str]) -> None:
    from omegaconf import OmegaConf

    from llmtrain.config import compose

    assert main(["pretrain", "model=gpt2", "optimizer.lr=0.5", "--cfg", "job"]) == 0
    printed = capsys.readouterr().out
    assert OmegaConf.create(printed) == compose("pretrain", ["model=gpt2", "optimizer.lr=0.5"]).config


def test_cfg_prints_an_interpolation_of_the_environment_unresolved(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert main(["pretrain", "name=${oc.env:HF_TOKEN}", "--cfg", "job"]) == 0
    assert "hf_secret" not in capsys.readouterr().out


def test_options_stand_before_or_after_the_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--cfg", "job", "pretrain", "seed=5"]) == main(["pretrain", "seed=5", "--cfg=job"]) == 0
    first, second = capsys.readouterr().out.split("device: auto\n")[1:]
    assert first.strip() == second.strip()


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (NonFiniteError("the loss is not finite"), 5, "error: the loss is not finite"),
        (Interrupted("interrupted twice"), 130, "error: interrupted twice"),
        (KeyboardInterrupt(), 130, "error: interrupted"),
        (BrokenPipeError(), 0, ""),
        (ValueError("some\nfault"), 1, "error: ValueError: some"),
    ],
)
def test_whatever_is_raised_becomes_a_screen_and_a_code(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, text: str
) -> None:
    def raises(found: cli.Arguments) -> int:
        raise error

    monkeypatch.setattr(cli, "dispatch", raises)
    assert main(["pretrain"]) == code
    said = capsys.readouterr().err
    assert said.startswith(text)
    assert "Traceback" not in said


def test_debug_shows_the_traceback_and_keeps_the_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretrain", "seed=-1", "--debug"]) == 2
    said = capsys.readouterr().err
    assert "Traceback" in said
    assert "error: seed=-1" in said


def test_a34_settings_that_leave_nothing_to_evaluate_on_are_a_config_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretrain", *TINY, "data.validation_fraction=0", "evaluation.every_steps=3"]) == 2
    assert "data.validation_fraction=0" in capsys.readouterr().err


def test_b19_a_share_that_the_data_leaves_empty_ends_a_run_before_training_with_the_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "one.txt").write_text("one document only")
    base = [o for o in TINY if not o.startswith("data=")]
    assert main(["pretrain", *base, "data=text", f"data.train={tmp_path / 'one.txt'}", f"output_dir={tmp_path / 'run'}"]) == 3
    assert "became train 1, validation 0, test 0" in capsys.readouterr().err
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_run_starts_with_its_notes(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = tmp_path / "mine" / "experiment" / "mine.yaml"
    experiment.parent.mkdir(parents=True)
    experiment.write_text("# @package _global_\ndefaults:\n  - override /schedule: cosine\nschedule:\n  final_fraction: 0.5\n")
    monkeypatch.setattr("llmtrain.command.train.run", lambda *_: None)
    given = ["--config-dir", str(tmp_path / "mine"), "experiment=mine", "schedule=constant", "distributed.timeout_s=9"]
    assert main(["pretrain", *TINY, *given, f"output_dir={tmp_path / 'run'}"]) == 0
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: ")]
    assert notes == [
        "note: schedule.final_fraction=0.5 of the experiment is dropped: schedule=constant has no such setting",
        "note: distributed.timeout_s has no effect: there is one process",
    ]


@pytest.mark.parametrize(("encoding", "verb"), [("ascii", "validate"), ("latin-1", "pretrain")])
def test_an_output_that_is_no_utf8_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str, verb: str) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding, write_through=True)
    monkeypatch.setattr(sys, "stdout", stream)
    asked = [o for o in TINY if not o.startswith("trainer.max_steps")]
    assert main([verb, *asked, "trainer.max_steps=1", f"output_dir={tmp_path / 'run'}"]) == 0
    said = stream.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]
    assert ("\\u2713 settings" if verb == "validate" else "\\u201cThe") in said


def test_h10_a_traceback_shows_no_secret(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "a-very-secret-key")
    assert main(["validate", "device=${oc.env:WANDB_API_KEY}", "--debug"]) == 2
    said = capsys.readouterr().err
    assert "Traceback" in said
    assert "device='***'" in said
    assert "a-very-secret-key" not in said


def test_h10_a_printed_config_names_the_variable_of_a_secret(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "a-very-secret-key")
    assert main(["pretrain", "callback.tracker.project=a-very-secret-key", "--cfg", "job"]) == 0
    said = capsys.readouterr().out
    assert "project: ${oc.env:WANDB_API_KEY}" in said
    assert "a-very-secret-key" not in said
