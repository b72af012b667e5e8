"""A pulse: every verb × objective × finetuning mode × schedule runs on tiny models, and every run can be read by others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmtrain.cli import VERBS, main
from llmtrain.config import groups
from tests.conftest import ANSWERS, TINY, TINY_FINETUNE, Pretrained, Train, tiny


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pulse") / "run"
    assert main(["pretrain", *TINY, f"output_dir={folder}"]) == 0
    return folder


# In the ordinary run each objective and each schedule once; with -m long every pair.
@pytest.mark.parametrize(
    ("objective", "schedule"),
    [
        pytest.param(objective, schedule, marks=() if objective == "next_token" or schedule == "linear" else pytest.mark.long)
        for objective in groups()["objective"]
        for schedule in groups()["schedule"]
    ],
)
def test_pretraining_runs(train: Train, tmp_path: Path, objective: str, schedule: str) -> None:
    folder = train(tmp_path / "run", *ANSWERS[objective], f"schedule={schedule}", "trainer.max_steps=2")
    assert json.loads((folder / "run.json").read_text())["status"] == "finished"


# --- finetuning: every mode × objective × model runs, or is refused ------------------------------------------------

MODES = {"last_layers": "finetune.blocks=1", "layers": "finetune.address=last:1"}  # two blocks, of which one is frozen
PAIR = "asks for a"  # of another kind of model
TIED = "tied to the frozen embeddings"  # nothing is left to train: finetune.untie=true is the way out
RANDOM = "start from random numbers and would stay frozen"  # the pooler that the weights of a masked LM lack

# (objective, model) → what the refusal says, by mode; None: of every mode.
REFUSED: dict[tuple[str, str], dict[str | None, str]] = {
    ("next_token", "bert"): {None: PAIR},
    ("masked_lm", "gpt"): {None: PAIR},
    ("sentence_order", "gpt"): {None: PAIR},
    ("bert", "gpt"): {None: PAIR},
    ("next_token", "gpt"): {"features": TIED, "lp_ft": TIED},
    ("sentence_order", "bert"): {"features": RANDOM, "lora": RANDOM},
    ("bert", "bert"): {"features": RANDOM, "lora": RANDOM},
}


# In the ordinary run every mode with a task and with a language model, and every objective with one mode; with -m long all triples.
@pytest.mark.parametrize("model", ["bert", "gpt"])
@pytest.mark.parametrize(
    ("mode", "objective"),
    [
        pytest.param(mode, objective, marks=() if mode == "last_layers" or objective in ("classification", "next_token") else pytest.mark.long)
        for mode in groups()["finetune"]
        for objective in groups()["objective"]
    ],
)
def test_every_finetuning_runs_or_is_refused_with_a_way_out(
    pretrained: Pretrained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], objective: str, mode: str, model: str
) -> None:
    monkeypatch.setattr("llmtrain.report.curve.draw", lambda *_: None)  # a picture and a bag of words are a third of so short a run
    monkeypatch.setattr("llmtrain.command.train._baselines", lambda *_: {})
    pairs = ("data.words=200", "data.max_length=48") if objective in ("sentence_order", "bert") and model == "bert" else ()
    chosen = (f"objective={objective}", f"finetune={mode}", *([MODES[mode]] if mode in MODES else []), *pairs)
    typed = tiny(*chosen, "trainer.max_steps=2", "evaluation.every_steps=null", base=TINY_FINETUNE)
    code = main(["finetune", *typed, f"model.checkpoint={pretrained(model)}", f"output_dir={tmp_path / 'run'}"])
    said = capsys.readouterr().err
    why = REFUSED.get((objective, model), {})
    why_of_mode = why.get(None) or why.get(mode)
    if why_of_mode is not None:
        assert (code, len(said.splitlines()) <= 6) == (2, True)
        assert why_of_mode in said
        assert "fix: " in said
    else:
        assert (code, said) == (0, "")
        record = json.loads((tmp_path / "run" / "run.json").read_text())
        assert record["freezing"]["frozen_but_moved"] == record["freezing"]["trainable_but_still"] == []
        assert record["validation"]["loss"] > 0


def test_the_table_of_refusals_names_what_exists() -> None:
    assert {objective for objective, _ in REFUSED} <= set(groups()["objective"])
    assert {mode for why in REFUSED.values() for mode in why} - {None} <= set(groups()["finetune"])


def test_every_objective_has_a_model_to_answer_it() -> None:
    assert set(ANSWERS) == set(groups()["objective"])


@pytest.mark.parametrize("architecture", ["gpt1", "gpt2"])
def test_every_architecture_trains(train: Train, tmp_path: Path, architecture: str) -> None:
    train(tmp_path / "run", f"model.architecture={architecture}", "trainer.max_steps=2")


@pytest.mark.parametrize(
    "options", [["objective.packing=false"], ["objective.document_attention=true"], ["model.tie_word_embeddings=false"], ["model.dropout=0.1"]]
)
def test_every_switch_trains(train: Train, tmp_path: Path, options: list[str]) -> None:
    train(tmp_path / "run", *options, "trainer.max_steps=2")


@pytest.mark.parametrize(
    "options",
    [
        [*ANSWERS["masked_lm"], "objective.whole_word=true"],
        [*ANSWERS["masked_lm"], "objective.packing=true"],
        [*ANSWERS["masked_lm"], "objective.packing=true", "objective.whole_word=true"],
        [*ANSWERS["masked_lm"], "model.tie_word_embeddings=false"],
        [*ANSWERS["sentence_order"], "objective.negatives=random"],
        [*ANSWERS["bert"], "objective.sentence_order.negatives=random", "objective.masked_lm.whole_word=true"],
        [*ANSWERS["bert"], "data.short_length=24", "data.short_fraction=0.5"],
        ["data.short_length=8", "data.short_fraction=0.5"],
    ],
)
def test_every_switch_of_bert_trains(train: Train, tmp_path: Path, options: list[str]) -> None:
    train(tmp_path / "run", *options, "trainer.max_steps=2")


@pytest.mark.parametrize("objective", ["masked_lm", "sentence_order", "bert"])
def test_a_bert_is_evaluated_and_looked_into(tmp_path: Path, capsys: pytest.CaptureFixture[str], objective: str) -> None:
    assert main(["pretrain", *tiny(*ANSWERS[objective]), f"output_dir={tmp_path / 'run'}"]) == 0
    said = capsys.readouterr().out
    assert ("the model fills in" in said) is (objective != "sentence_order")
    assert main(["evaluate", f"model.checkpoint={tmp_path / 'run'}", "split=test", "pseudo_tokens=5"]) == 0
    assert "accuracy" in capsys.readouterr().out
    words = ["text=the quick [MASK] jumps."] if objective != "sentence_order" else ["text=the old man.", "second=my bell rings."]
    assert main(["predict", f"model.checkpoint={tmp_path / 'run'}", *words]) == 0
    assert "%" in capsys.readouterr().out


def test_training_goes_on_from_the_weights_of_a_run(train: Train, tmp_path: Path, run: Path) -> None:
    folder = train(tmp_path / "run", "model=checkpoint", f"model.checkpoint={run}", "trainer.max_steps=2")
    assert (folder / "final" / "tokenizer.json").read_bytes() == (run / "final" / "tokenizer.json").read_bytes()


def test_evaluate_runs(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", f"model.checkpoint={run}", "split=test"]) == 0
    assert "perplexity" in capsys.readouterr().out


def test_generate_runs(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", f"model.checkpoint={run}", "prompt=the", "max_new_tokens=5"]) == 0
    assert capsys.readouterr().out.startswith("the")


def test_validate_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", *TINY]) == 0
    assert "all checks passed" in capsys.readouterr().out


def test_no_verb_was_forgotten() -> None:
    elsewhere = {"sweep", "report", "doctor"}  # their own tests run them whole
    assert set(VERBS) == {"pretrain", "finetune", "evaluate", "generate", "predict", "cache", "validate"} | elsewhere


def test_final_opens_with_transformers_alone(run: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(run / "final")
    tokenizer = AutoTokenizer.from_pretrained(run / "final")
    logits = model(**tokenizer("the", return_tensors="pt")).logits
    assert logits.shape[-1] == len(tokenizer)
    assert torch.isfinite(logits).all()
