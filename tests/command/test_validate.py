"""validate ticks off every check that needs no weights, and leaves nothing behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmtrain.cli import main
from tests.conftest import TINY, TINY_FINETUNE, Pretrained, tiny

CHECKS = ["settings", "folder", "model and objective", "device and precision", "data"]


@pytest.fixture(autouse=True)
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder and a token cache with nothing in them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LLMTRAIN_CACHE", str(tmp_path / "cache"))
    return tmp_path


def validate(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(["validate", *arguments])
    said = capsys.readouterr()
    return code, said.out, said.err


@pytest.mark.parametrize("words", [[], ["pretrain"]])
def test_a_config_without_faults_is_ticked_off_and_nothing_is_written(capsys: pytest.CaptureFixture[str], empty: Path, words: list[str]) -> None:
    code, out, err = validate(capsys, *words)
    assert (code, err) == (0, "")
    ticks = [line.removeprefix("✓ ") for line in out.splitlines() if line.startswith("✓ ")]
    assert len(ticks) == len(CHECKS)
    assert all(tick.startswith(check) for tick, check in zip(ticks, CHECKS, strict=True))
    assert list(empty.iterdir()) == []


@pytest.mark.parametrize(
    ("overrides", "code", "ticks"),
    [
        pytest.param(["optimizer.lr=-1"], 2, 0, id="a setting"),
        pytest.param(["data.max_length=5120"], 2, 0, id="model and objective"),
        pytest.param(["resume=must"], 4, 1, id="folder"),
        pytest.param(["device=cuda"], 6, 3, id="A24"),
        pytest.param(["precision=bf16", "device=cpu"], 6, 3, id="A23"),
        pytest.param(["precision=fp16"], 2, 3, id="A22 auto"),
        pytest.param(["data=text", "data.train=nowhere.txt"], 3, 4, id="B01"),
    ],
)
def test_the_first_fault_ends_it_with_its_own_code(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, empty: Path, overrides: list[str], code: int, ticks: int
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    monkeypatch.setattr("llmtrain.runtime.has_bf16", lambda device: False)
    found, out, err = validate(capsys, *overrides)
    assert (found, sum(line.startswith("✓") for line in out.splitlines())) == (code, ticks)
    assert sum(line.startswith("✗") for line in out.splitlines()) == 1
    assert err.startswith("error: ")
    assert list(empty.iterdir()) == []


def test_what_it_refuses_is_what_a_run_refuses(capsys: pytest.CaptureFixture[str], empty: Path) -> None:
    *_, by_validate = validate(capsys, *TINY, "data.max_length=5120")
    assert main(["pretrain", *TINY, "data.max_length=5120"]) == 2
    assert capsys.readouterr().err == by_validate
    assert list(empty.iterdir()) == []


BLOCKS = [
    pytest.param(("finetune=last_layers", "finetune.blocks=3"), "finetune.blocks=3: the model has 2 blocks", id="A16"),
    pytest.param(("finetune=lora", "finetune.blocks=3"), "finetune.blocks=3: the model has 2 blocks", id="A16 lora"),
    pytest.param(
        ("finetune=gradual", "finetune.blocks_per_phase=3"), "finetune.blocks_per_phase=3: the model has 2 blocks", id="A16 gradual", marks=pytest.mark.long
    ),
    pytest.param(("finetune=layers", 'finetune.address="0,11"'), "finetune.address='0,11': there is no '11': the model has 2 blocks", id="A19"),
    pytest.param(("finetune=features", "finetune.states=3"), "finetune.states='3': there is no '3': the model has 2 blocks", id="states"),
]


@pytest.mark.parametrize(("overrides", "says"), BLOCKS)
def test_blocks_that_the_model_does_not_have_are_refused_before_anything_is_loaded(
    capsys: pytest.CaptureFixture[str], pretrained: Pretrained, empty: Path, overrides: tuple[str, ...], says: str
) -> None:
    words = [*tiny(*overrides, base=TINY_FINETUNE), f"model.checkpoint={pretrained('bert')}"]
    code, out, by_validate = validate(capsys, "finetune", *words)
    assert (code, out.splitlines()[-1]) == (2, "✗ model and objective fit")
    assert says in by_validate
    assert main(["finetune", *words]) == 2
    assert capsys.readouterr().err == by_validate
    assert list(empty.iterdir()) == []


def test_blocks_that_a_model_of_nothing_will_not_have_are_refused_with_the_settings(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = validate(capsys, "pretrain", *TINY, "finetune=last_layers", "finetune.blocks=3")
    assert (code, out.splitlines()[-1]) == (2, "✗ settings: every key, type and range")
    assert "finetune.blocks=3: the model has 2 blocks" in err


@pytest.mark.parametrize("overrides", [("finetune.blocks=2",), ("finetune=features", "finetune.states=-3")])
def test_all_blocks_that_the_model_has_are_taken(capsys: pytest.CaptureFixture[str], pretrained: Pretrained, overrides: tuple[str, ...]) -> None:
    assert validate(capsys, "finetune", *tiny(*overrides, base=TINY_FINETUNE), f"model.checkpoint={pretrained('bert')}")[0] == 0


def test_a_key_without_effect_is_a_note(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = validate(capsys, "distributed.timeout_s=9")
    assert "note: distributed.timeout_s has no effect: there is one process" in out


@pytest.mark.parametrize("verb", ["generate", "evaluate", "nonsense"])
def test_a_verb_that_cannot_be_validated_is_refused(capsys: pytest.CaptureFixture[str], verb: str) -> None:
    code, out, err = validate(capsys, verb)
    assert (code, out) == (2, "")
    assert "allowed: pretrain" in err


def test_the_newest_run_is_found_before_it_is_checked(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = validate(capsys, "model=checkpoint")
    assert code == 4
    assert "no finished run below runs/" in err


def test_paragraphs_as_documents_for_sentence_order_are_noted(capsys: pytest.CaptureFixture[str], empty: Path) -> None:
    (empty / "book.txt").write_text("Some text.\n")
    words = ["model=bert", "objective=bert", "data=text", "data.train=book.txt"]
    _, out, _ = validate(capsys, *words)
    assert "note: data.documents=blank_line" in out
    _, out, _ = validate(capsys, *words, "data.documents=chapter")
    assert "note:" not in out
