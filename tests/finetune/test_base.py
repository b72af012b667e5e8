"""What all modes have in common: their rates, what is tied, and that something is trained."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch

from llmtrain.config import build, kinds
from llmtrain.errors import ConfigError
from llmtrain.finetune.base import Decayed, Finetune, Untying, tied_frozen, tied_moving
from tests.finetune.conftest import batch, case, mode, real

KINDS = sorted(kinds(Finetune))
DECAYED = [kind for kind in KINDS if isinstance(mode(kind), Decayed)]
UNTYING = [kind for kind in KINDS if isinstance(mode(kind), Untying)]


def test_the_kinds_are_looked_at() -> None:
    assert len(KINDS) >= 7
    assert set(KINDS) - set(DECAYED) == {"features"}
    assert set(KINDS) - set(UNTYING) == {"full", "lora"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["lr", "epochs"])
@pytest.mark.parametrize("value", [0, -1, float("inf"), float("nan")])
def test_a_rate_or_budget_that_cannot_train_is_refused(kind: str, name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"finetune\.{name}"):
        mode(kind, **{name: value})


@pytest.mark.parametrize("kind", DECAYED)
@pytest.mark.parametrize("value", [0, -0.5, 1.1, float("nan")])
def test_a_decay_outside_of_its_range_is_refused(kind: str, value: float) -> None:
    with pytest.raises(ConfigError, match=r"finetune\.lr_decay"):
        mode(kind, lr_decay=value)


@pytest.mark.parametrize("kind", [kind for kind in DECAYED if kind != "lora"])
@pytest.mark.parametrize("name", ["bert", "gpt2_classification"])
def test_with_a_decay_every_block_has_that_share_of_the_rate_of_the_block_above(kind: str, name: str) -> None:
    anatomy = case(name).anatomy
    phase = mode(kind, lr_decay=0.5).plan(anatomy)[-1]
    rates = {"embeddings": 0.0625, "block.0": 0.125, "block.1": 0.25, "block.2": 0.5, "final": 1.0, "head": 1.0}
    assert {n: phase.lr_scale.get(n, 1.0) for n in phase.trainable} == {n: rates[anatomy.sections[n]] for n in phase.trainable}


def test_without_a_decay_no_parameter_has_a_rate_of_its_own() -> None:
    assert mode("full").plan(case("bert").anatomy)[0].lr_scale == {}


def test_only_trained_parameters_have_a_rate() -> None:
    (phase,) = mode("last_layers", blocks=1, lr_decay=0.5).plan(case("bert").anatomy)
    assert phase.lr_scale.keys() == set(case("bert").anatomy.names("block.2"))


def test_what_all_blocks_use_has_the_rate_of_the_lowest() -> None:
    anatomy = case("deberta").anatomy
    (phase,) = mode("full", lr_decay=0.5).plan(anatomy)
    assert anatomy.shared
    assert {phase.lr_scale[name] for name in anatomy.shared} == {0.125}


# --- tied embeddings ----------------------------------------------------------------------------------------------

TIED = [
    ("gpt2", {"lm_head.weight": "transformer.wte.weight"}),
    ("bert_mlm", {"cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight"}),
    ("xlm_roberta", {"lm_head.decoder.weight": "roberta.embeddings.word_embeddings.weight"}),
]


@pytest.mark.parametrize(("name", "tied"), TIED)
@pytest.mark.parametrize("kind", ["last_layers", "layers"])
def test_an_output_matrix_tied_to_frozen_embeddings_is_frozen_and_named(kind: str, name: str, tied: dict[str, str]) -> None:
    anatomy = case(name).anatomy
    (phase,) = mode(kind).plan(anatomy)
    assert tied_frozen(anatomy, phase.trainable) == tied
    assert not phase.trainable & {*tied, *tied.values()}


@pytest.mark.parametrize(("name", "tied"), TIED)
def test_nothing_is_said_of_ties_where_the_embeddings_are_trained(name: str, tied: dict[str, str]) -> None:
    anatomy = case(name).anatomy
    assert tied_frozen(anatomy, mode("full").plan(anatomy)[0].trainable) == {}


EMBEDDINGS_ALONE = {"address": "none", "embeddings": True, "norm": False, "pooler": False, "head": False}


@pytest.mark.parametrize(("name", "tied"), TIED)
def test_an_output_matrix_tied_to_trained_embeddings_is_named_as_one_that_moves(name: str, tied: dict[str, str]) -> None:
    anatomy = case(name).anatomy
    (phase,) = mode("layers", **EMBEDDINGS_ALONE).plan(anatomy)
    assert tied_moving(anatomy, phase.trainable) == tied
    assert tied_moving(anatomy, mode("last_layers").plan(anatomy)[0].trainable) == {}


@pytest.mark.parametrize(("name", "tied"), TIED)
def test_untied_the_output_matrix_stays_frozen_beside_trained_embeddings(name: str, tied: dict[str, str]) -> None:
    ((output, embeddings),) = tied.items()
    model, before = real(name), case(name).anatomy
    policy = mode("layers", untie=True, **EMBEDDINGS_ALONE)
    anatomy = before.fitted(policy.prepare(model, before))
    (phase,) = policy.plan(anatomy)
    assert embeddings in phase.trainable
    assert output not in phase.trainable
    assert tied_moving(anatomy, phase.trainable) == {}


@pytest.mark.parametrize("kind", ["features", "lp_ft"])
def test_a_head_that_is_wholly_tied_cannot_be_trained_alone_and_the_way_out_is_named(kind: str) -> None:
    with pytest.raises(ConfigError, match=r"nothing would be trained: lm_head\.weight is tied to the frozen embeddings") as caught:
        mode(kind).plan(case("gpt2").anatomy)
    assert "finetune.untie=true" in str(caught.value.fix)


@pytest.mark.parametrize("kind", UNTYING)
@pytest.mark.parametrize(("name", "tied"), TIED)
def test_untied_the_output_matrix_is_trained_without_the_embeddings(kind: str, name: str, tied: dict[str, str]) -> None:
    ((output, embeddings),) = tied.items()
    model, before = real(name), case(name).anatomy
    policy = mode(kind, untie=True)
    phase = policy.plan(before.fitted(policy.prepare(model, before)))[0]
    assert output in phase.trainable
    assert embeddings not in phase.trainable
    assert model.get_parameter(output) is not model.get_parameter(embeddings)
    assert torch.equal(model.get_parameter(output), model.get_parameter(embeddings))


@pytest.mark.parametrize("kind", UNTYING)
def test_without_untie_a_model_stays_as_it_is(kind: str) -> None:
    model = real("gpt2")
    assert mode(kind).prepare(model, case("gpt2").anatomy) is model
    assert model.lm_head.weight is model.transformer.wte.weight


def test_untying_what_is_not_tied_is_said_to_have_no_effect(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="llmtrain"):
        mode("features", untie=True).prepare(real("bert"), case("bert").anatomy)
    assert "finetune.untie=true has no effect: BertForSequenceClassification ties no weights" in caplog.text


# --- what every mode promises -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["bert", "gpt2_classification", "distilbert", "llama", "deberta"])
def test_a_plan_names_parameters_of_the_model_and_ends_with_the_run(kind: str, name: str) -> None:
    model, before = real(name), case(name).anatomy
    policy = mode(kind)
    model = policy.prepare(model, before)
    phases = policy.plan(before.fitted(model))
    ends = [phase.until for phase in phases]
    assert ends == sorted(set(ends))
    assert ends[-1] == 1
    assert all(phase.trainable for phase in phases)
    assert set().union(*(phase.trainable for phase in phases)) <= {n for n, _ in model.named_parameters()}
    assert all(phase.lr_scale.keys() <= phase.trainable for phase in phases)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["bert", "gpt2_classification"])
def test_a_mode_does_not_change_what_the_model_says_before_training_nor_its_class(kind: str, name: str) -> None:
    model = real(name)
    before, made = model(**batch()).logits, type(model)
    prepared = mode(kind).prepare(model, case(name).anatomy)
    assert type(prepared) is made
    assert torch.equal(prepared(**batch()).logits, before)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "full"])
def test_a_mode_that_freezes_asks_where_the_blocks_are(kind: str) -> None:
    assert mode(kind).needs_blocks


@pytest.mark.parametrize("kind", KINDS)
def test_only_features_leaves_the_body_alone(kind: str) -> None:
    assert mode(kind).trains_body == (kind != "features")


@pytest.mark.parametrize("kind", KINDS)
def test_a_misspelt_setting_is_refused(kind: str) -> None:
    node: dict[str, Any] = {"kind": kind, "learning_rates": 1}
    with pytest.raises(ConfigError, match=r"finetune\.learning_rates"):
        build(node, Finetune, "finetune")
