"""The README's commands run as printed; where a comment beside a block says so, shortened by overrides."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from llmtrain.cli import main
from llmtrain.config import groups
from llmtrain.model.base import Attention
from tests.conftest import TINY_BERT

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
SHORT = [
    "model.num_hidden_layers=2", "model.hidden_size=32", "model.num_attention_heads=2", "tokenizer.vocab_size=512", "trainer.batch_size=4",
    "trainer.max_steps=2", "evaluation.every_steps=null", "evaluation.max_samples=4", "threads=1",
]  # fmt: skip


def block(marker: str) -> list[str]:
    """The lines of the code block that follows a comment."""
    match = re.search(rf"<!-- {marker} -->\n```\n(.*?)```", README, re.DOTALL)
    assert match is not None
    return [line for line in match[1].splitlines() if line.strip()]


def words(line: str) -> list[str]:
    return shlex.split(line)[1:]


def shortened(line: str) -> list[str]:
    """A command with its budget and size replaced by the smallest."""
    small = {o.split("=")[0] for o in SHORT} | {"trainer.max_tokens"}
    return [w for w in words(line) if w.split("=")[0] not in small] + SHORT


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return tmp_path


def test_two_commands_do_all_the_set_up() -> None:
    assert block("run command") == ["pip install -c constraints.txt -e . && llmtrain pretrain"]
    assert block("test command") == ["pip install -c constraints.txt -e '.[test]' && pytest -n 2 --dist loadfile"]


def test_the_first_run_then_every_verb_on_it(empty: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = block("run command")
    assert main(shortened(line.split("&& ")[1])) == 0
    said = capsys.readouterr().out
    following = [line.strip() for line in said.split("next:\n")[1].splitlines() if line.strip().startswith("llmtrain ")]
    table = re.findall(r"^\| `(llmtrain (?:evaluate|generate|validate)[^`]*)`", README, re.MULTILINE)
    assert (len(following), len(table)) == (2, 3)
    for command in following + table:
        assert main(words(command)) == 0, command


def test_a_bert_is_trained_and_looked_into(empty: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = [line for line in block("shortened in tests") if "model=bert" in line]
    assert main(shortened(line)) == 0
    said = capsys.readouterr().out
    following = [line.strip() for line in said.split("next:\n")[1].splitlines() if line.strip().startswith("llmtrain ")]
    table = re.findall(r"^\| `(llmtrain predict text[^`]*)`", README, re.MULTILINE)
    assert (len(following), len(table)) == (2, 1)
    for command in following + table:
        assert main(words(command)) == 0, command


def test_a_model_is_finetuned_and_answers(empty: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    small = (*TINY_BERT[:6], "objective=masked_lm", "data.max_length=32", "trainer.max_steps=2", "tokenizer.vocab_size=512", "precision=fp32")
    monkeypatch.setattr("llmtrain.command.train.SMALL_START", dict.fromkeys(Attention, small))
    assert main(["finetune", "trainer.max_steps=2", "data.max_length=32", "threads=1", "device=cpu", "evaluation.max_samples=20"]) == 0
    said = capsys.readouterr().out
    assert "a small model is pretrained first" in said
    following = [line.strip() for line in said.split("next:\n")[-1].splitlines() if line.strip().startswith("llmtrain ")]
    (empty / "reviews.csv").write_text("text\nOpens a window with a button.\nReads bytes from a socket.\n")
    table = re.findall(r"^\| `(llmtrain (?:predict file|cache)[^`]*)`", README, re.MULTILINE)
    assert (len(following), len(table)) == (2, 2)
    for command in [line.replace("TEXTS.csv", "reviews.csv") for line in following] + table:
        assert main(words(command)) == 0, command


@pytest.mark.parametrize("line", block("shortened in tests"))
def test_the_other_commands_run(empty: Path, line: str) -> None:
    (empty / "book.txt").write_text("\n\n".join(f"Chapter {i}. It was the {i}th day of a long journey, and nobody spoke of it." * 3 for i in range(200)))
    assert main(shortened(line)) == 0


def test_the_groups_table_names_every_option() -> None:
    for group, options in groups().items():
        row = re.search(rf"^\| `{group}` \|(.*)\|$", README, re.MULTILINE)
        if group == "callback":
            continue
        assert row is not None, group
        named = set(re.findall(r"`([\w.]+)`", row[1]))
        missing = [o for o in options if o not in named and not o.startswith("gpt3_")]
        assert missing == []


def test_the_tree_names_every_module_and_folder() -> None:
    tree = README.split("## The tree")[1].split("```")[1]
    named = set(re.findall(r"^ {2}([\w./]+)", tree, re.MULTILINE))
    package = {p.name if p.is_file() else f"{p.name}/" for p in (ROOT / "llmtrain").iterdir() if p.suffix == ".py" or (p / "__init__.py").is_file()}
    assert named == package - {"__init__.py", "__main__.py"}
