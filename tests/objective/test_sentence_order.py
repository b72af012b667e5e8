"""Sentence order: [CLS] A [SEP] B [SEP], label 0 in order, drawn anew each epoch, the loss of the family's own head."""

from __future__ import annotations

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


def objective(negatives: str = "swapped") -> Objective:
    overrides = ["model=bert", "objective=sentence_order", f"objective.negatives={negatives}"]
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
