"""Help is read from the YAML files, so it shows every key with its comment."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmtrain.cli import VERBS, main
from llmtrain.command.help import WIDTH, page
from llmtrain.config import compose, groups


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
