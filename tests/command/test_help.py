"""Help is read from the YAML files, so it shows every key with its comment."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from llmtrain.cli import VERBS, main
from llmtrain.command.help import WIDTH, page
from llmtrain.config import compose, groups, shipped_dir


def rows(text: str) -> dict[str, str]:
    """key=value → its comment."""
    below = text.split("keys (KEY=VALUE)")[1].splitlines()[1:]
    found = {}
    for line in below:
        if line.startswith("  ") and line[2] != " ":
            last, _, comment = line[2:].partition("  ")
            found[last] = comment.strip()
    return found


def keys(config: object, prefix: str = "") -> list[str]:
    assert isinstance(config, dict)
    nested = [keys(v, f"{prefix}{k}.") if isinstance(v, dict) else [f"{prefix}{k}"] for k, v in config.items()]
    return [key for part in nested for key in part if not key.endswith("kind")]


@pytest.mark.parametrize("verb", VERBS)
def test_every_key_of_a_verb_is_listed_with_its_comment(verb: str) -> None:
    from omegaconf import OmegaConf

    shown = rows(page(verb, "about"))
    config = OmegaConf.to_container(compose({"validate": "pretrain", "sweep": "multirun"}.get(verb, verb), []).config)
    assert [key.partition("=")[0] for key in shown] == keys(config)
    assert [key for key, comment in shown.items() if not comment] == []


@pytest.mark.parametrize("verb", VERBS)
def test_no_line_is_wider_than_a_terminal(verb: str) -> None:
    assert max(len(line) for line in page(verb, "about").splitlines()) <= WIDTH


@pytest.mark.parametrize(("verb", "listed"), [("pretrain", {"data", "experiment", "finetune", "model", "objective", "schedule"}), ("generate", {"model"})])
def test_the_groups_that_a_verb_lets_choose_are_listed_with_their_options(verb: str, listed: set[str]) -> None:
    above = page(verb, "about").split("keys (KEY=VALUE)")[0]
    assert {line.split()[0] for line in above.splitlines()[3:] if line[:3].strip()} == listed
    assert all(option in above for group in listed for option in groups()[group])


def test_the_keys_of_a_chosen_option_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretrain", "data=text", "--help"]) == 0
    assert "data.text_column=null" in capsys.readouterr().out


def test_a_wrong_option_does_not_keep_help_away(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretrain", "data=txt", "--help"]) == 0
    assert "data.packages=[]" in capsys.readouterr().out


def test_a_users_folder_is_listed_with_its_comments(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.yaml").write_text("defaults: [gpt]\n")
    (tmp_path / "schedule").mkdir()
    (tmp_path / "schedule" / "cosine.yaml").write_text("kind: constant\nwarmup_steps: 3  # of my own\nwarmup_tokens: null  # none\n")
    text = page("pretrain", "about", user_dir=tmp_path)
    assert ", mine" in text
    assert rows(text)["schedule.warmup_steps=3"] in ("of my own", "updates; below 1: a share of the run")


def hostile(folder: Path) -> None:
    """A folder in which values, keys, comments and names of files and options hold what drives a terminal, and a secret."""
    (folder / "experiment").mkdir(parents=True)
    (folder / "model").mkdir()
    name = "evil" if sys.platform == "win32" else "\x1b[2Jevil-hf_1234567890"
    (folder / "model" / f"{name}.yaml").write_text("defaults: [gpt]\n")
    (folder / "pretrain.yaml").write_text((shipped_dir() / "pretrain.yaml").read_text() + "plain: 1  # \u202e of hf_1234567890\n", encoding="utf-8")
    values = r'{"\e[31mkey": "\e]0;title\a", name: "two\nlines", device: "\u202egpu", output_dir: "/home/hf_1234567890/runs"}'
    (folder / "experiment" / "mine.yaml").write_text(f"# @package _global_\n{values}\n")


def test_h14_what_users_files_hold_cannot_drive_the_terminal(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_1234567890")
    hostile(tmp_path)
    assert main(["pretrain", "experiment=mine", "--help", "--config-dir", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert [line for line in out.split("\n") if not line.isprintable()] == []
    assert [text for text in (r"\x1b[31mkey=\x1b]0;title\x07", r"name=two\nlines", r"device=\u202egpu") if text not in out] == []
    assert "hf_1234567890" not in out
    assert "output_dir=/home/***/runs" in out
    assert r"\u202e of ***" in out


@pytest.mark.parametrize("content", ["model: {kind: '${nope}'}", "callback: ${nope}", "callback: 5", "data: {x: !!binary aGVsbG8=}"])
def test_help_has_an_answer_where_a_run_would_have_none(capsys: pytest.CaptureFixture[str], tmp_path: Path, content: str) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(f"# @package _global_\n{content}\n")
    assert main(["pretrain", "experiment=mine", "--help", "--config-dir", str(tmp_path)]) == 0
    said = capsys.readouterr()
    assert ("optimizer.lr=" in said.out, said.err) == (True, "")


def test_a_setting_that_is_an_empty_mapping_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", "launcher=submitit", "--help"]) == 0
    assert "sbatch's options" in rows(capsys.readouterr().out)["launcher.additional={}"]
