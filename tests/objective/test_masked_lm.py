"""Masked LM: windows of documents, masks by (seed, epoch, sample), the loss of the family's own head."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerBase

from llmtrain.config import build, compose
from llmtrain.data import loader, tokenizer as tokens
from llmtrain.objective.base import IGNORED, Batch, Draw, Objective, Totals
from llmtrain.objective.learner import Learner

TEXTS = [
    "the quick brown fox jumps over the lazy dog and runs away from it as fast as it can run",
    "unbelievable",
    "a small bird sings behind the old tree while the man talks to nobody",
]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return tokens.train("wordpiece", Dataset.from_dict({"text": TEXTS * 3}), 90, lambda text: None)


def objective(*overrides: str) -> Objective:
    return build(compose("pretrain", ["model=bert", "objective=masked_lm", *overrides]).config.objective, Objective, "objective")


def rows(asked: Objective, tokenizer: PreTrainedTokenizerBase, length: int = 24) -> list[dict[str, Any]]:
    examples = asked.examples(Dataset.from_dict({"text": TEXTS}), tokenizer, length)
    return loader.read_rows(examples.with_format("arrow"), list(range(len(examples))))


def batch(asked: Objective, tokenizer: PreTrainedTokenizerBase, epoch: Any = 0, seed: int = 0, length: int = 24) -> Batch:
    return asked.collate(rows(asked, tokenizer, length), Draw(seed, epoch), tokens.vocabulary(tokenizer))


def model(tokenizer: PreTrainedTokenizerBase) -> BertForMaskedLM:
    torch.manual_seed(0)
    return BertForMaskedLM(BertConfig(vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)).eval()


def test_every_token_stands_in_one_window_between_start_and_separator(tokenizer: PreTrainedTokenizerBase) -> None:
    found = rows(objective(), tokenizer)
    assert [i for row in found for i in row["ids"]] == [i for ids in tokens.encode(tokenizer, TEXTS) for i in ids]
    assert all(row["length"] == len(row["ids"]) + 2 <= 24 for row in found)
    inputs = batch(objective(), tokenizer).inputs
    assert (inputs["input_ids"][:, 0] == tokenizer.cls_token_id).all()
    lengths = inputs["attention_mask"].sum(1)
    assert (inputs["input_ids"][torch.arange(len(lengths)), lengths - 1] == tokenizer.sep_token_id).all()


def test_packing_puts_a_separator_between_documents(tokenizer: PreTrainedTokenizerBase) -> None:
    found = [int(i) for row in rows(objective("objective.packing=true"), tokenizer, 300) for i in row["ids"]]
    one, two, three = tokens.encode(tokenizer, TEXTS)
    assert found == [*one, tokenizer.sep_token_id, *two, tokenizer.sep_token_id, *three]


def test_a_text_that_spells_a_mask_is_only_text(tokenizer: PreTrainedTokenizerBase) -> None:
    found = objective().examples(Dataset.from_dict({"text": ["a [MASK] b"]}), tokenizer, 64)[0]["ids"]
    assert tokenizer.mask_token_id not in found


def test_masks_are_drawn_anew_each_epoch_and_are_fixed_for_evaluation(tokenizer: PreTrainedTokenizerBase) -> None:
    asked = objective("objective.probability=0.5")
    first, again, later, other = (batch(asked, tokenizer, *draw).labels["masked_lm"] for draw in ((0, 0), (0, 0), (1, 0), (0, 1)))
    assert torch.equal(first, again)
    assert not torch.equal(first, later)
    assert not torch.equal(first, other)
    assert torch.equal(batch(asked, tokenizer, "eval").labels["masked_lm"], batch(asked, tokenizer, "eval").labels["masked_lm"])


def test_a_samples_mask_does_not_depend_on_its_batch(tokenizer: PreTrainedTokenizerBase) -> None:
    asked, words = objective(), tokens.vocabulary(tokenizer)
    together = asked.collate(rows(asked, tokenizer), Draw(0, 3), words)
    for i, row in enumerate(rows(asked, tokenizer)):
        alone = asked.collate([row], Draw(0, 3), words)
        width = alone.inputs["input_ids"].shape[1]
        assert torch.equal(together.inputs["input_ids"][i, :width], alone.inputs["input_ids"][0])
        assert torch.equal(together.labels["masked_lm"][i, :width], alone.labels["masked_lm"][0])


def test_the_head_at_masked_positions_gives_the_loss_and_gradients_of_the_whole_projection(tokenizer: PreTrainedTokenizerBase) -> None:
    asked, learned = batch(objective(), tokenizer), model(tokenizer)
    ours = Learner(learned, objective())(asked)["masked_lm"]
    ours.backward()
    gradients = {name: p.grad.clone() for name, p in learned.named_parameters() if p.grad is not None}
    learned.zero_grad()
    logits = learned(**asked.inputs).logits
    theirs = F.cross_entropy(logits.flatten(0, 1), asked.labels["masked_lm"].flatten(), ignore_index=IGNORED, reduction="sum")
    theirs.backward()
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)
    largest = max(float(p.grad.abs().max()) for p in learned.parameters() if p.grad is not None)
    assert gradients.keys() == {name for name, p in learned.named_parameters() if p.grad is not None}
    for name, parameter in learned.named_parameters():
        assert (gradients[name] - parameter.grad).abs().max() <= 1e-6 * largest, name


def test_padded_and_unpadded_give_the_same_logits_and_loss(tokenizer: PreTrainedTokenizerBase) -> None:
    asked, learned, words = objective(), model(tokenizer), tokens.vocabulary(tokenizer)
    together = asked.collate(rows(asked, tokenizer), Draw(0, 0), words)
    logits = learned(**together.inputs).logits
    total = 0.0
    for i, row in enumerate(rows(asked, tokenizer)):
        alone = asked.collate([row], Draw(0, 0), words)
        assert "attention_mask" not in alone.inputs
        own = learned(**alone.inputs).logits[0]
        assert torch.allclose(logits[i, : len(own)], own, atol=1e-6)
        total += Learner(learned, asked)(alone)["masked_lm"].item()
    assert Learner(learned, asked)(together)["masked_lm"].item() == pytest.approx(total, rel=1e-6)


def test_evaluation_counts_what_was_guessed_right(tokenizer: PreTrainedTokenizerBase) -> None:
    asked, learned = batch(objective(), tokenizer), model(tokenizer)
    with torch.no_grad():
        sums = Learner(learned, objective())(asked)
        logits = learned(**asked.inputs).logits
    at = asked.labels["masked_lm"] != IGNORED
    assert int(sums["masked_lm_correct"]) == int((logits.argmax(-1)[at] == asked.labels["masked_lm"][at]).sum())
    assert float(sums["masked_lm"]) == pytest.approx(float(F.cross_entropy(logits[at], asked.labels["masked_lm"][at], reduction="sum")), rel=1e-5)


def test_metrics_are_weighted_by_targets() -> None:
    totals = Totals({"masked_lm": 20.0, "masked_lm_correct": 4.0}, {"masked_lm": 10.0})
    assert objective().metrics(totals) == {"loss": 2.0, "accuracy": 0.4}


@pytest.mark.parametrize("packing", ["true", "false"])
def test_whole_words_hold_together_across_windows_and_documents(tokenizer: PreTrainedTokenizerBase, packing: str) -> None:
    asked = objective("objective.whole_word=true", f"objective.packing={packing}", "objective.probability=0.4")
    pieces = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    split = 0
    for epoch in range(5):
        made = batch(asked, tokenizer, epoch)
        for i, row in enumerate(rows(asked, tokenizer)):
            labels = made.labels["masked_lm"][i, 1 : 1 + len(row["ids"])] != IGNORED
            for before, now, piece in zip(labels, labels[1:], row["ids"][1:], strict=False):
                if pieces[int(piece)].startswith("##"):
                    split += 1
                    assert bool(before) is bool(now)
    assert split > 20
