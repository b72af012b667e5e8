"""Sentence order: [CLS] A [SEP] B [SEP], label 0 in order, drawn anew each epoch, the loss of the family's own head."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from transformers import BertConfig, BertForNextSentencePrediction, PreTrainedTokenizerBase

from llmtrain.config import build, compose
from llmtrain.data import loader, tokenizer as tokens
from llmtrain.errors import DataError
from llmtrain.objective.base import Batch, Draw, Objective, Totals
from llmtrain.objective.learner import Learner
from tests.conftest import ANSWERS, Train

TEXTS = [
    " ".join(f"The {word} number {i} stands in document {d} and nowhere else." for i, word in enumerate(["fox", "dog", "man", "bird"] * 5)) for d in range(6)
]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return tokens.train("wordpiece", Dataset.from_dict({"text": TEXTS}), 120, lambda text: None)


def objective(negatives: str = "swapped", *more: str) -> Objective:
    overrides = ["model=bert", "objective=sentence_order", f"objective.negatives={negatives}", *more]
    return build(compose("pretrain", overrides).config.objective, Objective, "objective")


def rows(asked: Objective, tokenizer: PreTrainedTokenizerBase, length: int = 90) -> list[dict[str, Any]]:
    examples = asked.examples(Dataset.from_dict({"text": TEXTS}), tokenizer, length)
    return loader.read_rows(examples.with_format("arrow"), list(range(len(examples))))


def batch(asked: Objective, tokenizer: PreTrainedTokenizerBase, epoch: Any = 0, length: int = 90) -> Batch:
    return asked.collate(rows(asked, tokenizer, length), Draw(0, epoch), tokens.vocabulary(tokenizer))


def segments(made: Batch, i: int, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """The two segments of a row, checked to stand between the special tokens with their segment ids."""
    length = int(made.inputs["attention_mask"][i].sum()) if "attention_mask" in made.inputs else made.inputs["input_ids"].shape[1]
    ids, types = made.inputs["input_ids"][i, :length].tolist(), made.inputs["token_type_ids"][i, :length].tolist()
    first = ids.index(tokenizer.sep_token_id)
    assert (ids[0], ids[-1]) == (tokenizer.cls_token_id, tokenizer.sep_token_id)
    assert types == [0] * (first + 1) + [1] * (length - first - 1)
    return ids[1:first], ids[first + 1 : -1]


def test_a_swapped_pair_is_the_same_two_consecutive_segments_exchanged(tokenizer: PreTrainedTokenizerBase) -> None:
    asked, seen = objective(), set()
    for epoch in range(3):
        made = batch(asked, tokenizer, epoch)
        for i, row in enumerate(rows(asked, tokenizer)):
            a, b = segments(made, i, tokenizer)
            label = int(made.labels["sentence_order"][i])
            seen.add(label)
            assert [*a, *b] == row["ids"].tolist() if label == 0 else [*b, *a] == row["ids"].tolist()
    assert seen == {0, 1}


def test_a_random_second_segment_is_of_another_document(tokenizer: PreTrainedTokenizerBase) -> None:
    asked, counts = objective("random"), [0, 0]

    def documents(ids: list[int]) -> set[str]:
        return {text.split()[0] for text in tokenizer.decode(ids).split("document ")[1:]}

    for epoch in range(4):
        made = batch(asked, tokenizer, epoch)
        for i in range(len(made.samples)):
            a, b = segments(made, i, tokenizer)
            label = int(made.labels["sentence_order"][i])
            counts[label] += 1
            assert len(documents(a)) == len(documents(b)) == 1
            assert (documents(a) == documents(b)) is (label == 0)
    assert min(counts) > 10


def test_segments_of_several_sentences_fill_the_length(tokenizer: PreTrainedTokenizerBase) -> None:
    for negatives in ("swapped", "random"):
        made = batch(objective(negatives), tokenizer)
        lengths = [sum(map(len, segments(made, i, tokenizer))) + 3 for i in range(len(made.samples))]
        assert max(lengths) <= 90
        assert sorted(lengths)[len(lengths) // 2] > 60
        assert any(tokenizer.decode(segments(made, i, tokenizer)[0]).count(".") > 1 for i in range(len(made.samples)))


def test_labels_are_fixed_for_evaluation_and_drawn_anew_in_training(tokenizer: PreTrainedTokenizerBase) -> None:
    asked = objective()
    labels = [batch(asked, tokenizer, epoch).labels["sentence_order"].tolist() for epoch in ("eval", "eval", 0, 1, 2)]
    assert labels[0] == labels[1]
    assert len({tuple(row) for row in labels[2:]}) == 3


@pytest.mark.parametrize("negatives", ["swapped", "random"])
def test_with_both_answers_training_sees_each_pair_in_order_and_not_in_order(tokenizer: PreTrainedTokenizerBase, negatives: str) -> None:
    once, twice = objective(negatives), objective(negatives, "objective.both_answers=true")
    drawn, found = batch(once, tokenizer, 1), batch(twice, tokenizer, 1)
    labels, order = drawn.labels["sentence_order"].tolist(), found.labels["sentence_order"].tolist()
    assert order == [answer for label in labels for answer in (label, 1 - label)]
    assert found.counts == {"sentence_order": 2 * len(labels)}
    assert found.samples == drawn.samples  # a sample is a row of the data, however often it is asked
    for i, row in enumerate(rows(once, tokenizer)):
        assert segments(found, 2 * i, tokenizer) == segments(drawn, i, tokenizer)  # the first is the one that would be drawn anyway
        right, wrong = (segments(found, 2 * i + (answer != order[2 * i]), tokenizer) for answer in (0, 1))
        whole, cut = row["ids"].tolist(), len(right[0])
        assert right == (whole[:cut], whole[cut:])
        if negatives == "swapped":
            assert wrong == right[::-1]
        else:
            other = row["other_ids"].tolist()
            assert wrong[0] == right[0]
            assert wrong[1] == other[-len(wrong[1]) :]
            assert abs(len(wrong[1]) - len(right[1])) <= 0.05 * min(len(whole), len(other))


def test_with_both_answers_evaluation_asks_what_it_would_ask_anyway(tokenizer: PreTrainedTokenizerBase) -> None:
    once, twice = (batch(objective("swapped", f"objective.both_answers={asked}"), tokenizer, "eval") for asked in ("false", "true"))
    assert once.counts == twice.counts
    assert torch.equal(once.inputs["input_ids"], twice.inputs["input_ids"])
    assert torch.equal(once.labels["sentence_order"], twice.labels["sentence_order"])


def test_with_both_answers_a_budget_of_tokens_is_spent_on_both(train: Train, tmp_path: Path) -> None:
    runs = [
        train(tmp_path / asked, *ANSWERS["sentence_order"], "trainer.max_steps=null", "trainer.max_tokens=4000", f"objective.both_answers={asked}")
        for asked in ("false", "true")
    ]
    once, twice = ([json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()][-1] for run in runs)
    assert twice["step"] == pytest.approx(once["step"] / 2, abs=1)
    assert once["tokens"] == pytest.approx(twice["tokens"], rel=0.2)
    assert twice["tokens"] >= 4000


def test_documents_that_are_too_short_are_skipped_and_counted(tokenizer: PreTrainedTokenizerBase) -> None:
    texts = [*TEXTS, "One sentence only.", "Two sentences. No more."]
    asked = objective()
    examples = asked.examples(Dataset.from_dict({"text": texts}), tokenizer, 90)
    assert len(examples) == len(rows(asked, tokenizer))
    assert asked.notes(examples)[0] == "2 of 8 documents are too short for a pair of segments and are skipped"


def test_data_without_pairs_is_refused_and_says_why(train: Train, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="documents are too short for a pair of segments"):
        train(tmp_path / "run", *ANSWERS["sentence_order"], "data.words=8")


def test_the_loss_is_that_of_the_familys_head_and_class_0_is_in_order(tokenizer: PreTrainedTokenizerBase) -> None:
    torch.manual_seed(0)
    config = BertConfig(vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
    learned, made = BertForNextSentencePrediction(config).eval(), batch(objective(), tokenizer)
    logits = learned(**made.inputs).logits
    theirs = F.cross_entropy(logits, made.labels["sentence_order"], reduction="sum")
    assert Learner(learned, objective())(made)["sentence_order"].item() == pytest.approx(theirs.item(), rel=1e-6)
    with torch.no_grad():
        sums = Learner(learned, objective())(made)
    assert int(sums["sentence_order_correct"]) == int((logits.argmax(-1) == made.labels["sentence_order"]).sum())


def test_the_reference_is_the_share_of_the_more_frequent_answer(tokenizer: PreTrainedTokenizerBase) -> None:
    asked = objective()
    examples = asked.examples(Dataset.from_dict({"text": TEXTS}), tokenizer, 90)
    labels = batch(asked, tokenizer, "eval").labels["sentence_order"].tolist()
    share = max(labels.count(0), labels.count(1)) / len(labels)
    assert asked.references(examples, tokens.vocabulary(tokenizer)) == {"majority_accuracy": share}


def test_metrics_are_means_over_pairs() -> None:
    assert objective().metrics(Totals({"sentence_order": 3.0, "sentence_order_correct": 3.0}, {"sentence_order": 4.0})) == {"loss": 0.75, "accuracy": 0.75}
