"""BERT's objective: two terms with counts of their own, on one pass of the body."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from torch import nn
from transformers import BertConfig, BertForPreTraining, PreTrainedTokenizerBase

from llmtrain.config import build, compose
from llmtrain.data import loader, tokenizer as tokens
from llmtrain.errors import ConfigError
from llmtrain.objective.base import IGNORED, Batch, Draw, Objective, Totals
from llmtrain.objective.learner import Learner
from tests.conftest import ANSWERS, Train
from tests.objective.test_sentence_order import TEXTS


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return tokens.train("wordpiece", Dataset.from_dict({"text": TEXTS}), 120, lambda text: None)


def objective(*overrides: str) -> Objective:
    return build(compose("pretrain", ["model=bert", "objective=bert", *overrides]).config.objective, Objective, "objective")


def batch(asked: Objective, tokenizer: PreTrainedTokenizerBase) -> Batch:
    examples = asked.examples(Dataset.from_dict({"text": TEXTS}), tokenizer, 90)
    rows = loader.read_rows(examples.with_format("arrow"), list(range(len(examples))))
    return asked.collate(rows, Draw(0, 0), tokens.vocabulary(tokenizer))


def model(tokenizer: PreTrainedTokenizerBase) -> BertForPreTraining:
    torch.manual_seed(0)
    return BertForPreTraining(BertConfig(vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)).eval()


def test_each_term_has_its_own_targets(tokenizer: PreTrainedTokenizerBase) -> None:
    made = batch(objective(), tokenizer)
    assert made.counts == {"masked_lm": int((made.labels["masked_lm"] != IGNORED).sum()), "sentence_order": len(made.samples)}
    special = torch.isin(made.inputs["input_ids"], torch.tensor([tokenizer.cls_token_id, tokenizer.sep_token_id]))
    assert (made.labels["masked_lm"][special] == IGNORED).all()


def test_with_both_answers_each_of_the_two_pairs_has_masks_of_its_own(tokenizer: PreTrainedTokenizerBase) -> None:
    once, twice = batch(objective(), tokenizer), batch(objective("objective.sentence_order.both_answers=true"), tokenizer)
    assert twice.counts["sentence_order"] == 2 * once.counts["sentence_order"]
    width = once.inputs["input_ids"].shape[1]
    assert torch.equal(twice.inputs["input_ids"][::2, :width], once.inputs["input_ids"])  # the first is the one that would be drawn anyway
    assert torch.equal(twice.labels["masked_lm"][::2, :width], once.labels["masked_lm"])
    first, second = (twice.labels["masked_lm"][i::2] != IGNORED for i in (0, 1))
    assert twice.counts["masked_lm"] == int(first.sum() + second.sum())
    assert not (first == second).all(dim=1).any()


@pytest.mark.parametrize(("term", "other"), [("masked_lm", "sentence_order"), ("sentence_order", "masked_lm")])
def test_a_term_that_weighs_nothing_is_refused_with_the_objective_that_leaves_it_out(term: str, other: str) -> None:
    """Its head would be exported untrained, and several processes would wait for its gradient."""
    with pytest.raises(ConfigError, match=rf"objective\.weights\.{term}=0") as caught:
        objective(f"objective.weights.{term}=0")
    assert f"objective={other} is the other term alone" in caught.value.screen()


def test_both_losses_and_their_gradients_are_those_of_the_familys_own_heads(tokenizer: PreTrainedTokenizerBase) -> None:
    made, learned = batch(objective(), tokenizer), model(tokenizer)
    ours = Learner(learned, objective())(made)
    (ours["masked_lm"] + 2 * ours["sentence_order"]).backward()
    gradients = {name: p.grad.clone() for name, p in learned.named_parameters() if p.grad is not None}
    learned.zero_grad()
    output = learned(**made.inputs)
    masked = F.cross_entropy(output.prediction_logits.flatten(0, 1), made.labels["masked_lm"].flatten(), ignore_index=IGNORED, reduction="sum")
    order = F.cross_entropy(output.seq_relationship_logits, made.labels["sentence_order"], reduction="sum")
    (masked + 2 * order).backward()
    assert ours["masked_lm"].item() == pytest.approx(masked.item(), rel=1e-6)
    assert ours["sentence_order"].item() == pytest.approx(order.item(), rel=1e-6)
    largest = max(float(p.grad.abs().max()) for p in learned.parameters() if p.grad is not None)
    for name, parameter in learned.named_parameters():
        assert (gradients[name] - parameter.grad).abs().max() <= 1e-6 * largest, name


def test_the_body_runs_once(tokenizer: PreTrainedTokenizerBase) -> None:
    made, learned, calls = batch(objective(), tokenizer), model(tokenizer), 0

    def count(module: nn.Module, args: object) -> None:
        nonlocal calls
        calls += 1

    Learner(learned, objective())(made)  # what the head is like is asked once, by passes of its own
    learned.bert.encoder.layer[0].register_forward_pre_hook(count)
    Learner(learned, objective())(made)
    assert calls == 1


def test_the_loss_is_the_weighted_sum_of_the_mean_losses() -> None:
    totals = Totals(
        {"masked_lm": 20.0, "masked_lm_correct": 5.0, "sentence_order": 3.0, "sentence_order_correct": 3.0}, {"masked_lm": 10.0, "sentence_order": 4.0}
    )
    found = objective("objective.weights.sentence_order=2").metrics(totals)
    assert found["loss"] == 2.0 + 2 * 0.75
    assert (found["masked_lm_accuracy"], found["sentence_order_accuracy"]) == (0.5, 0.75)


def test_each_loss_is_a_column_of_the_metrics(train: Train, tmp_path: Path) -> None:
    run = train(tmp_path / "run", *ANSWERS["bert"])
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert any({"loss_masked_lm", "loss_sentence_order"} <= line.keys() for line in lines)
    assert any({"validation_masked_lm_loss", "validation_sentence_order_accuracy"} <= line.keys() for line in lines)


def test_a_setting_of_a_part_is_checked_and_named_whole() -> None:
    with pytest.raises(ConfigError, match=r"objective\.masked_lm\.probability=2"):
        objective("objective.masked_lm.probability=2")
    with pytest.raises(ConfigError, match=r"objective\.sentence_order\.negatives='swopped'") as caught:
        objective("objective.sentence_order.negatives=swopped")
    assert "swapped" in str(caught.value.fix)
