"""generate: seeded, streamed as it is returned, within the model's positions, and harmless to the terminal."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from llmtrain.cli import main
from llmtrain.data import tokenizer as tokens
from llmtrain.model.generation import Sampling, write
from tests.conftest import TINY, realdata


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny trained run, below a folder runs/ of its own."""
    folder = tmp_path_factory.mktemp("generate") / "runs" / "pretrain" / "one"
    assert main(["pretrain", *TINY, "trainer.max_steps=2", f"output_dir={folder}"]) == 0
    return folder


class Generate:
    """`llmtrain generate` on the run: text(*overrides) → what it printed."""

    def __init__(self, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.run, self.capsys = run, capsys
        self.notes = ""

    def __call__(self, *overrides: str) -> str:
        self.capsys.readouterr()
        code = main(["generate", f"model.checkpoint={self.run}", "threads=1", "device=cpu", *overrides])
        said = self.capsys.readouterr()
        assert code == 0, said.err
        self.notes = said.err
        return said.out


@pytest.fixture
def generate(run: Path, capsys: pytest.CaptureFixture[str]) -> Generate:
    return Generate(run, capsys)


def test_the_seed_decides_the_text(generate: Generate) -> None:
    first, same, other = (generate("prompt=the", "max_new_tokens=20", f"seed={seed}") for seed in (1, 1, 2))
    assert first == same
    assert first != other


def test_temperature_zero_is_greedy(generate: Generate, run: Path) -> None:
    from transformers import AutoModelForCausalLM

    tokenizer = tokens.load(str(run / "final"))
    model = AutoModelForCausalLM.from_pretrained(run / "final")
    ids = [tokenizer.bos_token_id, *tokenizer("the", add_special_tokens=False)["input_ids"]]
    for _ in range(10):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    expected = tokenizer.decode(ids, skip_special_tokens=True)
    written = generate("prompt=the", "max_new_tokens=10", "temperature=0").removesuffix("\n")
    assert re.sub(r"\\x[0-9a-f]{2}", "", written) == "".join(c for c in expected if c.isprintable() or c == "\n")


def test_temperature_zero_says_which_settings_it_makes_idle(generate: Generate) -> None:
    generate("temperature=0", "seed=4", "max_new_tokens=2")
    assert "note: seed has no effect: temperature=0 takes the likeliest token" in generate.notes
    generate("seed=4", "max_new_tokens=2")
    assert generate.notes == ""


def test_top_k_of_one_is_greedy(generate: Generate) -> None:
    assert generate("prompt=the", "top_k=1", "max_new_tokens=10") == generate("prompt=the", "temperature=0", "max_new_tokens=10")


@pytest.mark.parametrize("override", ["temperature=3", "top_k=2", "top_p=0.1"])
def test_every_setting_of_the_choice_changes_it(generate: Generate, override: str) -> None:
    assert generate("prompt=the", "max_new_tokens=25", "top_k=null", "top_p=null", override) != generate(
        "prompt=the", "max_new_tokens=25", "top_k=null", "top_p=null"
    )


@pytest.mark.parametrize("prompt", ["the quick fox", "", "naïve — 中文 🙂", "two\nlines"])
@pytest.mark.parametrize("seed", [0, 1])
def test_what_is_streamed_is_what_is_returned(run: Path, prompt: str, seed: int) -> None:
    from transformers import AutoModelForCausalLM

    model, tokenizer = AutoModelForCausalLM.from_pretrained(run / "final"), tokens.load(str(run / "final"))
    sampling = Sampling(temperature=1.5, top_k=None, top_p=None, max_new_tokens=20)
    pieces: list[str] = []
    text = write(model, tokenizer, prompt, sampling, seed, pieces.append)
    assert "".join(pieces) == text == write(model, tokenizer, prompt, sampling, seed)
    assert len(text) > 5


def test_the_text_comes_in_pieces_and_never_in_half_a_character(run: Path) -> None:
    from transformers import AutoModelForCausalLM

    tokenizer = tokens.load(str(run / "final"))
    wanted = tokenizer("an 中文 word and 🙂 more", add_special_tokens=False)["input_ids"]
    model = AutoModelForCausalLM.from_pretrained(run / "final")

    class Dictated(type(model)):  # type: ignore[misc]
        """Writes what it is told to."""

        def forward(self, input_ids: torch.Tensor, **rest: Any) -> Any:
            found = super().forward(input_ids, **rest)
            found.logits[:, -1, wanted[self.written % len(wanted)]] = 1e9
            self.written += 1
            return found

    model.__class__, model.written = Dictated, 0
    pieces: list[str] = []
    sampling = Sampling(temperature=0, top_k=None, top_p=None, max_new_tokens=min(len(wanted), 27))
    write(model, tokenizer, "x", sampling, 0, pieces.append)
    assert pieces[:2] == ["an ", "中文 "]
    assert all("\ufffd" not in piece for piece in pieces[:-1])


def test_the_prompt_is_printed_before_its_continuation(generate: Generate) -> None:
    assert generate("prompt=Hello, (old) friend", "max_new_tokens=3").startswith("Hello, (old) friend")


def test_of_a_prompt_longer_than_the_model_reads_the_end_is_read_and_that_is_said(generate: Generate) -> None:
    long = "the quick fox jumps over a lazy dog . " * 8
    first = generate(f"prompt={long}", "max_new_tokens=10")
    assert re.search(r"reads 32 positions: of the prompt's \d+ tokens it sees the last 22", generate.notes)
    other = generate(f"prompt=my loud bell {long}", "max_new_tokens=10")
    assert other.removeprefix("my loud bell ") == first


def test_more_new_tokens_than_positions_are_cut_to_what_is_left_and_that_is_said(generate: Generate, run: Path) -> None:
    generate("prompt=the", "max_new_tokens=500")
    prompt = 1 + len(tokens.load(str(run / "final"))("the", add_special_tokens=False)["input_ids"])
    assert f"at most {32 - prompt} new tokens" in generate.notes
    assert "of the prompt" not in generate.notes


@pytest.mark.parametrize("nasty", ["\x1b[2J", "\x1b]0;title\x07", "\u202e", "\x9b31m", "\r"])
def test_what_could_drive_the_terminal_is_printed_as_an_escape(generate: Generate, monkeypatch: pytest.MonkeyPatch, nasty: str) -> None:
    def writes(model: Any, tokenizer: Any, prompt: str, sampling: Any, seed: int, say: Any) -> str:
        say(f"a{nasty}b\nc")
        return ""

    monkeypatch.setattr("llmtrain.command.generate.write", writes)
    printed = generate(f"prompt=x{nasty}")
    assert nasty not in printed
    assert printed.endswith("b\nc\n")


def test_the_newest_run_writes_where_none_is_named(run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run.parents[2])
    assert main(["generate", "prompt=the", "max_new_tokens=3", "threads=1", "device=cpu"]) == 0
    said = capsys.readouterr()
    assert said.out.startswith("the")
    assert f"model.checkpoint=newest is {run.relative_to(run.parents[2])}" in said.err


@pytest.mark.parametrize(
    ("overrides", "code", "answer"),
    [
        (["model=gpt"], 2, "needs weights that exist"),
        (["temperature=-1"], 2, "allowed: 0 or more, finite"),
        (["top_k=0"], 2, "allowed: 1 or more, or null"),
        (["top_p=0"], 2, "allowed: above 0 and at most 1, or null"),
        (["max_new_tokens=0"], 2, "allowed: 1 or more"),
        (["device=gpu"], 2, "allowed: auto, cpu, cuda, mps"),
        (["threads=none"], 2, "allowed: auto, or a whole number from 1"),
        (["temp=1"], 2, "did you mean 'temperature'?"),
        ([], 4, "there is no finished run below runs/"),
    ],
)
def test_what_cannot_write_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: list[str], code: int, answer: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["generate", *overrides]) == code
    said = capsys.readouterr()
    assert answer in said.err
    assert said.out == ""


@pytest.mark.realdata
@pytest.mark.parametrize("prompt", ["Once upon a time", "Once upon a"])
def test_a_real_model_writes_english_and_keeps_the_space_after_the_prompt(capsys: pytest.CaptureFixture[str], prompt: str) -> None:
    folder = realdata("stories260k")
    assert main(["generate", f"model.checkpoint={folder}", f"prompt={prompt}", "temperature=0", "max_new_tokens=40", "threads=1", "device=cpu"]) == 0
    assert capsys.readouterr().out.startswith("Once upon a time, there was a little girl named Lily. She loved to play")
