"""Next token: each token of each document is asked once, with the end of the document as its last label."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from llmtrain.config import build
from llmtrain.data import loader, tokenizer as tokens
from llmtrain.objective.base import IGNORED, Batch, Draw, Objective, Totals

TEXTS = ["one two three", "four", "five six seven eight nine ten eleven twelve"]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    rows = Dataset.from_dict({"text": TEXTS})
    return tokens.train("bpe", rows, 270, lambda text: None)


def objective(packing: bool = True, document_attention: bool = False) -> Objective:
    node = {"kind": "next_token", "weights": {"next_token": 1.0}, "packing": packing, "document_attention": document_attention}
    return build(node, Objective, "objective")


def batch_of(asked: Objective, tokenizer: PreTrainedTokenizerBase, length: int = 8) -> tuple[Dataset, Batch]:
    examples = asked.examples(Dataset.from_dict({"text": TEXTS}), tokenizer, length)
    rows = loader.read_rows(examples.with_format("arrow"), list(range(len(examples))))
    return examples, asked.collate(rows, Draw(0, 0), tokens.vocabulary(tokenizer))


@pytest.mark.parametrize("packing", [True, False])
def test_every_token_and_every_end_is_asked_once(tokenizer: PreTrainedTokenizerBase, packing: bool) -> None:
    _, batch = batch_of(objective(packing), tokenizer)
    wanted = Counter(i for ids in tokens.encode(tokenizer, TEXTS) for i in [*ids, tokenizer.eos_token_id])
    labels = batch.labels["next_token"]
    assert Counter(labels[labels != IGNORED].tolist()) == wanted
    assert batch.counts["next_token"] == sum(wanted.values()) == int((labels != IGNORED).sum())


@pytest.mark.parametrize("packing", [True, False])
def test_the_bytes_are_those_of_the_text(tokenizer: PreTrainedTokenizerBase, packing: bool) -> None:
    _, batch = batch_of(objective(packing), tokenizer)
    assert batch.sizes["bytes"] == sum(len(t.encode()) for t in TEXTS)


def test_a_label_is_the_input_that_follows(tokenizer: PreTrainedTokenizerBase) -> None:
    _, batch = batch_of(objective(), tokenizer)
    inputs, labels = batch.inputs["input_ids"], batch.labels["next_token"]
    kept = labels[:, :-1] != IGNORED
    assert (inputs[:, 1:][kept] == labels[:, :-1][kept]).all()


def test_a_text_that_spells_a_special_token_is_only_text(tokenizer: PreTrainedTokenizerBase) -> None:
    rows = Dataset.from_dict({"text": ["a <|endoftext|> b"]})
    ids = objective().examples(rows, tokenizer, 64)[0]["ids"]
    assert [i for i in ids if i == tokenizer.eos_token_id] == [ids[0], ids[-1]]


def test_positions_begin_again_only_where_documents_are_kept_apart(tokenizer: PreTrainedTokenizerBase) -> None:
    assert "position_ids" not in batch_of(objective(), tokenizer)[1].inputs
    _, batch = batch_of(objective(document_attention=True), tokenizer, 64)
    starts = (batch.inputs["position_ids"] == 0).sum()
    assert int(starts) == len(TEXTS)


def test_metrics_are_weighted_by_tokens_and_bits_by_bytes() -> None:
    totals = Totals({"next_token": 20 * math.log(2)}, {"next_token": 10.0}, {"bytes": 40.0, "tokens": 10.0})
    assert objective().metrics(totals) == pytest.approx({"loss": 2 * math.log(2), "perplexity": 4.0, "bits_per_byte": 0.5})


def test_the_unigram_entropy_is_that_of_the_labels(tokenizer: PreTrainedTokenizerBase) -> None:
    asked = objective()
    examples, batch = batch_of(asked, tokenizer)
    labels = batch.labels["next_token"]
    counts = Counter(labels[labels != IGNORED].tolist())
    total = sum(counts.values())
    entropy = -sum(c / total * math.log(c / total) for c in counts.values())
    assert asked.references(examples, tokens.vocabulary(tokenizer))["unigram_entropy"] == pytest.approx(entropy, rel=1e-9)


def test_a_setting_that_changes_nothing_is_named() -> None:
    assert "document_attention" in objective(packing=False).without_effect()
    assert objective().without_effect() == {}
