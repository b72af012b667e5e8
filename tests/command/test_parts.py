"""Settings that change nothing beside others are told, and defaults are not."""

from __future__ import annotations

import pytest

from llmtrain.command.parts import advice, fits, parts, without_effect
from llmtrain.config import compose
from llmtrain.model.checkpoint import Checkpoint
from tests.conftest import Pretrained


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["objective.packing=false", "objective.document_attention=true"], "objective.document_attention"),
        (["distributed.timeout_s=5"], "distributed.timeout_s"),
        (["tokenizer.resize=true"], "tokenizer.resize"),
        (["tokenizer.path=somewhere", "tokenizer.vocab_size=99"], "tokenizer.vocab_size"),
        (["data=text", "data.train=a.txt", "data.validation=b.txt", "data.validation_fraction=0.1"], "data.validation_fraction"),
    ],
)
def test_a_key_without_effect_is_reported(overrides: list[str], key: str) -> None:
    composed = compose("pretrain", overrides)
    lines = without_effect(parts(composed.config), composed.given)
    assert [line for line in lines if line.startswith(f"{key} has no effect: ")] == lines != []


def test_a_default_without_effect_is_not_reported() -> None:
    composed = compose("pretrain", ["objective.packing=false"])
    assert without_effect(parts(composed.config), composed.given) == []


@pytest.mark.parametrize(
    ("verb", "overrides", "key"),
    [
        ("pretrain", ("finetune.lr=1", "model=gpt"), "finetune.lr"),
        ("pretrain", ("finetune.epochs=1", "model=gpt"), "finetune.epochs"),
        ("pretrain", ("model.pooling=cls", "model=gpt"), "model.pooling"),
        ("finetune", ("model.head=family", "model.pooling=cls"), "model.pooling"),
        ("finetune", ("model.head=family", "finetune=features", "finetune.standardise=true"), "finetune.standardise"),
        ("finetune", ("objective=masked_lm", "finetune=features", "finetune.states=all"), "finetune.states"),
        ("finetune", ("objective=masked_lm", "model.head=pooled"), "model.head"),
        ("finetune", ("cache.use=never", "cache.max_gb=1"), "cache.max_gb"),
        ("finetune", ("cache.use=never", "cache.dtype=bf16"), "cache.dtype"),
        ("finetune", ("tokenizer.vocab_size=99",), "tokenizer.vocab_size"),
        ("finetune", ("optimizer.lr=1e-4", "finetune.lr=1e-3"), "finetune.lr"),
        ("finetune", ("optimizer.weight_decay=0", "finetune.weight_decay=0.1"), "finetune.weight_decay"),
        ("finetune", ("trainer.batch_size=4", "finetune.batch_size=8"), "finetune.batch_size"),
        ("finetune", ("trainer.max_steps=4", "finetune.epochs=1"), "finetune.epochs"),
        ("finetune", ("finetune=features", "objective.weights.lm=0.5"), "objective.weights.lm"),
        (
            "finetune",
            ("finetune=layers", "finetune.address=none", "finetune.norm=false", "finetune.pooler=false", "objective.weights.lm=0.5"),
            "objective.weights.lm",
        ),
    ],
)
def test_a_key_without_effect_is_reported_of_a_finetuning_too(pretrained: Pretrained, verb: str, overrides: tuple[str, ...], key: str) -> None:
    own = (f"model.checkpoint={pretrained('bert')}",) if verb == "finetune" else ()
    composed = compose(verb, [*overrides, *own])
    assert [line for line in without_effect(parts(composed.config), composed.given) if line.startswith(f"{key} has no effect: ")]


@pytest.mark.parametrize("mode", [("finetune=last_layers",), ("finetune=features", "finetune.untie=true")])
def test_an_auxiliary_loss_that_teaches_something_is_kept(pretrained: Pretrained, mode: tuple[str, ...]) -> None:
    composed = compose("finetune", [*mode, "objective.weights.lm=0.5", f"model.checkpoint={pretrained('gpt')}"])
    assert without_effect(parts(composed.config), composed.given) == []
    assert parts(composed.config).objective.weights["lm"] == 0.5


@pytest.mark.parametrize("key", ["finetune.lr=1e-4", "finetune.epochs=1", "model.pooling=cls", "cache.max_gb=1", "model.head=pooled"])
def test_a_key_with_effect_is_not_reported(pretrained: Pretrained, key: str) -> None:
    composed = compose("finetune", [key, f"model.checkpoint={pretrained('bert')}"])
    assert without_effect(parts(composed.config), composed.given) == []


@pytest.mark.parametrize(
    ("verb", "overrides", "said"),
    [
        ("pretrain", ("model=checkpoint",), True),
        ("pretrain", ("model=checkpoint", "optimizer.lr=2e-5"), False),
        ("pretrain", ("model=gpt_tiny", "model.checkpoint=null"), False),
        ("finetune", (), False),
    ],
)
def test_a_rate_for_weights_that_are_drawn_is_told_where_weights_are_there(pretrained: Pretrained, verb: str, overrides: tuple[str, ...], said: bool) -> None:
    own = () if "model.checkpoint=null" in overrides else (f"model.checkpoint={pretrained('gpt')}",)
    composed = compose(verb, [*(text for text in overrides if text != "model.checkpoint=null"), *own])
    assert bool([line for line in advice(parts(composed.config)) if line.startswith("optimizer.lr=0.002 is a rate for weights that are drawn")]) == said


def test_where_the_number_of_blocks_is_not_known_the_mode_finds_out_later(pretrained: Pretrained, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Checkpoint, "blocks", None)
    fits(parts(compose("finetune", ["finetune.blocks=99", "data.max_length=32", f"model.checkpoint={pretrained('bert')}"]).config))
