"""Classification: cross entropy over rows, both orders of a pair, GPT-1's auxiliary loss, metrics and answers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from datasets import ClassLabel, Dataset, Features, Value
from sklearn import metrics
from torch import Tensor
from transformers import BertConfig, BertForSequenceClassification, BertModel, GPT2Config, GPT2LMHeadModel, PreTrainedModel, PreTrainedTokenizerBase

from llmtrain.config import build
from llmtrain.data import loader, tokenizer as tokens
from llmtrain.errors import ConfigError, DataError
from llmtrain.model.base import Outputs, Pooling
from llmtrain.model.head import PooledHead, attach
from llmtrain.objective.base import IGNORED, PREDICTIONS, Batch, Draw, Objective, Totals
from llmtrain.objective.learner import Learner

NAMES = ["bad", "fair", "good"]
TEXTS = ["a fine play", "it was dull and far too long for me", "so so", "the best of all", "not bad at all, not bad"]
SECONDS = ["who says so", "me", "the whole town says so", "nobody", ""]
LABELS = [2, 0, 1, 2, 0]


@pytest.fixture(scope="module")
def wordpiece() -> PreTrainedTokenizerBase:
    return tokens.train("wordpiece", Dataset.from_dict({"text": TEXTS + SECONDS}), 120, lambda text: None)


@pytest.fixture(scope="module")
def bpe() -> PreTrainedTokenizerBase:
    return tokens.train("bpe", Dataset.from_dict({"text": TEXTS + SECONDS}), 270, lambda text: None)


def objective(**settings: Any) -> Objective:
    node = {"kind": "classification", "weights": {"class": 1.0, "lm": 0.0}, "symmetric": False, "label_smoothing": 0.0, "balanced": False, **settings}
    return build(node, Objective, "objective")


def rows(pairs: bool = True, labels: list[int | None] = LABELS) -> Dataset:  # type: ignore[assignment]
    columns = {"text": TEXTS, **({"second": SECONDS} if pairs else {}), "label": labels}
    return Dataset.from_dict(columns, features=Features({name: ClassLabel(names=NAMES) if name == "label" else Value("string") for name in columns}))


def batch_of(asked: Objective, tokenizer: PreTrainedTokenizerBase, given: Dataset | None = None, samples: list[int] | None = None, draw: Any = 0) -> Batch:
    examples = asked.examples(rows() if given is None else given, tokenizer, 64)
    chosen = list(range(len(examples))) if samples is None else samples
    return asked.collate(loader.read_rows(examples.with_format("arrow"), chosen), Draw(0, draw), tokens.vocabulary(tokenizer))


def bert(tokenizer: PreTrainedTokenizerBase, pooling: Pooling = Pooling.mean) -> PreTrainedModel:
    torch.manual_seed(0)
    config = BertConfig(vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, initializer_range=0.3)
    return wearing(BertModel(config, add_pooling_layer=False), pooling)


def gpt(tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=2, n_positions=64, initializer_range=0.3, bos_token_id=0, eos_token_id=0)
    return wearing(GPT2LMHeadModel(config), Pooling.last)


def wearing(model: PreTrainedModel, pooling: Pooling) -> PreTrainedModel:
    head = PooledHead(32, Outputs(3, tuple(NAMES)), pooling=pooling, states=[2])
    with torch.no_grad():
        head.weight.normal_(0, 0.3)
    attach(model, head)
    return model.eval()


def one_by_one(model: PreTrainedModel, made: Batch) -> list[Tensor]:
    """Last states (T, W) of each sequence alone, without its padding."""
    found = []
    for i, ids in enumerate(made.inputs["input_ids"]):
        length = int(made.inputs["attention_mask"][i].sum()) if "attention_mask" in made.inputs else len(ids)
        types = {"token_type_ids": made.inputs["token_type_ids"][i : i + 1, :length]} if model.config.model_type == "bert" else {}
        found.append(model.base_model(input_ids=ids[None, :length], **types).last_hidden_state[0])
    return found


def scored(model: PreTrainedModel, vectors: Tensor) -> Tensor:
    return F.linear(vectors, model.pooled.weight, model.pooled.bias)


def test_the_loss_is_the_sum_of_cross_entropies_of_the_heads_logits(wordpiece: PreTrainedTokenizerBase) -> None:
    model, made = bert(wordpiece), batch_of(objective(), wordpiece)
    logits = scored(model, torch.stack([states.mean(0) for states in one_by_one(model, made)]))
    theirs = F.cross_entropy(logits, torch.tensor(LABELS), reduction="sum")
    assert Learner(model, objective())(made)["class"].item() == pytest.approx(theirs.item(), rel=1e-5)
    assert made.counts == {"class": 5, "lm": 0}


def test_the_families_own_head_answers_as_well(wordpiece: PreTrainedTokenizerBase) -> None:
    torch.manual_seed(0)
    config = BertConfig(vocab_size=len(wordpiece), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, num_labels=3)
    model, made = BertForSequenceClassification(config).eval(), batch_of(objective(), wordpiece)
    theirs = F.cross_entropy(model(**made.inputs).logits, torch.tensor(LABELS), reduction="sum")
    assert Learner(model, objective())(made)["class"].item() == pytest.approx(theirs.item(), rel=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("balanced", [False, True])
def test_smoothing_and_balance_are_torchs_own_in_training_and_absent_from_evaluation(
    wordpiece: PreTrainedTokenizerBase, smoothing: float, balanced: bool
) -> None:
    asked = objective(label_smoothing=smoothing, balanced=balanced)
    model, made = bert(wordpiece), batch_of(asked, wordpiece)
    logits = scored(model, torch.stack([states.mean(0) for states in one_by_one(model, made)]))
    targets = torch.tensor(LABELS)
    each = F.cross_entropy(logits, targets, reduction="none", label_smoothing=smoothing)
    weights = torch.tensor([5 / (3 * LABELS.count(k)) for k in LABELS]) if balanced else torch.ones(5)
    learner = Learner(model, asked)
    assert learner(made)["class"].item() == pytest.approx((each * weights).sum().item(), rel=1e-5)
    with torch.no_grad():
        assert learner(made)["class"].item() == pytest.approx(F.cross_entropy(logits, targets, reduction="sum").item(), rel=1e-5)


def test_batches_of_another_composition_give_the_same_sums(wordpiece: PreTrainedTokenizerBase) -> None:
    learner = Learner(bert(wordpiece), objective())
    whole = learner(batch_of(objective(), wordpiece))["class"].item()
    parts = [batch_of(objective(), wordpiece, samples=samples) for samples in ([4, 0], [1], [3, 2])]
    assert sum(learner(part)["class"].item() for part in parts) == pytest.approx(whole, rel=1e-5)
    assert sum(part.counts["class"] for part in parts) == 5


def test_rows_without_a_label_ask_for_nothing(wordpiece: PreTrainedTokenizerBase) -> None:
    learner = Learner(bert(wordpiece), objective())
    some, none = (batch_of(objective(), wordpiece, rows(labels=labels)) for labels in ([2, None, 1, None, 0], [None] * 5))  # type: ignore[list-item]
    kept = batch_of(objective(), wordpiece, samples=[0, 2, 4])
    assert (some.counts["class"], none.counts["class"]) == (3, 0)
    assert learner(some)["class"].item() == pytest.approx(learner(kept)["class"].item(), rel=1e-5)
    loss = learner(none)["class"]
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is None or not p.grad.any() for p in learner.parameters())


@pytest.mark.parametrize("family", ["bert", "gpt"])
def test_both_orders_of_a_pair_are_read_and_their_vectors_added(wordpiece: PreTrainedTokenizerBase, bpe: PreTrainedTokenizerBase, family: str) -> None:
    tokenizer = wordpiece if family == "bert" else bpe
    model = bert(tokenizer) if family == "bert" else gpt(tokenizer)
    asked, turned = objective(symmetric=True), Dataset.from_dict({**rows()[:], "text": SECONDS, "second": TEXTS}, features=rows().features)
    made, single = batch_of(asked, tokenizer), batch_of(objective(), tokenizer)
    assert len(made.inputs["input_ids"]) == 2 * len(made.samples) == 10
    assert made.counts["class"] == 5
    assert made.sizes["tokens"] == single.sizes["tokens"]  # as the order and the budget count them: each row by its longest sequence
    summed = [states.mean(0) if family == "bert" else states[-1] for states in one_by_one(model, made)]
    logits = scored(model, torch.stack(summed).unflatten(0, (5, 2)).sum(1))
    theirs = F.cross_entropy(logits, torch.tensor(LABELS), reduction="sum").item()
    learner = Learner(model, asked)
    assert learner(made)["class"].item() == pytest.approx(theirs, rel=1e-4)
    assert learner(batch_of(asked, tokenizer, turned))["class"].item() == pytest.approx(theirs, rel=1e-4)
    assert abs(Learner(model, objective())(single)["class"].item() - theirs) > 1e-2


def test_single_texts_have_no_other_order(wordpiece: PreTrainedTokenizerBase) -> None:
    with pytest.raises(ConfigError, match=r"objective\.symmetric=true: the rows are single texts"):
        objective(symmetric=True).examples(rows(pairs=False), wordpiece, 64)


@pytest.mark.parametrize("symmetric", [False, True])
def test_the_auxiliary_loss_asks_every_token_for_the_next_one(bpe: PreTrainedTokenizerBase, symmetric: bool) -> None:
    asked = objective(weights={"class": 1.0, "lm": 0.5}, symmetric=symmetric)
    model, made = gpt(bpe), batch_of(asked, bpe)
    found, total, count = Learner(model, asked)(made), 0.0, 0
    for i, states in enumerate(one_by_one(model, made)):
        ids = made.inputs["input_ids"][i, : len(states)]
        total += F.cross_entropy(model.lm_head(states)[:-1], ids[1:], reduction="sum").item()
        count += len(ids) - 1
    assert found["lm"].item() == pytest.approx(total, rel=1e-4)
    assert made.counts == {"class": 5, "lm": count}
    alone = Learner(model, objective(symmetric=symmetric))(batch_of(objective(symmetric=symmetric), bpe))
    assert found["class"].item() == pytest.approx(alone["class"].item(), rel=1e-5)
    assert alone["lm"].item() == 0


def test_words_are_asked_where_their_weight_is_above_0() -> None:
    assert not objective().asks_words
    assert objective(weights={"class": 1.0, "lm": 0.5}).asks_words


@pytest.mark.parametrize(
    "wrong", [{"weights": {"class": 0.0, "lm": 0.5}}, {"weights": {"class": 1.0}}, {"weights": {"class": 1.0, "lm": -1.0}}, {"label_smoothing": 1.0}]
)
def test_settings_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"objective.{next(iter(wrong))}"):
        objective(**wrong)


def test_a_batch_is_the_same_in_every_epoch(wordpiece: PreTrainedTokenizerBase) -> None:
    first, second, judged = (batch_of(objective(), wordpiece, draw=draw) for draw in (0, 7, "eval"))
    for other in (second, judged):
        assert first.inputs.keys() == other.inputs.keys()
        assert all(torch.equal(first.inputs[name], other.inputs[name]) for name in first.inputs)
        assert torch.equal(first.labels["class"], other.labels["class"])


def test_metrics_come_from_each_samples_likeliest_class(wordpiece: PreTrainedTokenizerBase) -> None:
    asked, model = objective(), bert(wordpiece)
    made = batch_of(asked, wordpiece, rows(labels=[2, 0, None, 2, 0]))  # type: ignore[list-item]
    with torch.no_grad():
        sums = Learner(model, asked)(made)
        logits = scored(model, torch.stack([states.mean(0) for states in one_by_one(model, made)]))
    predictions = dict(zip(made.samples, sums.pop(PREDICTIONS).numpy(), strict=True))
    found = asked.metrics(Totals({k: v.item() for k, v in sums.items()}, dict(made.counts), {}, predictions))
    true, predicted = np.array([2, 0, 2, 0]), logits.argmax(-1).numpy()[[0, 1, 3, 4]]
    assert found["loss"] == pytest.approx(F.cross_entropy(logits[[0, 1, 3, 4]], torch.tensor(true)).item(), rel=1e-5)
    assert found["accuracy"] == metrics.accuracy_score(true, predicted)
    assert found["macro_f1"] == pytest.approx(metrics.f1_score(true, predicted, average="macro", zero_division=0))
    assert found["matthews"] == pytest.approx(metrics.matthews_corrcoef(true, predicted))
    assert set(found) == set(type(asked).metric_directions)
    assert type(asked).best_metric in found


def test_a_row_without_a_label_is_neither_right_nor_wrong() -> None:
    predictions = {0: np.array([2.0, 2.0]), 1: np.array([1.0, IGNORED]), 2: np.array([0.0, 0.0]), 3: np.array([0.0, 2.0])}
    found = objective().metrics(Totals({"class": 1.5}, {"class": 3}, {}, predictions))
    assert found == pytest.approx({"loss": 0.5, "accuracy": 2 / 3, "macro_f1": 2 / 3, "matthews": metrics.matthews_corrcoef([2, 0, 2], [2, 0, 0])})


def test_the_head_has_an_output_for_each_class_also_for_one_without_a_row() -> None:
    assert objective().outputs(rows(labels=[0, 0, 0, 2, 2])) == Outputs(3, tuple(NAMES))


def test_one_class_is_no_question() -> None:
    given = Dataset.from_dict({"text": ["a"], "label": [0]}, features=Features({"text": Value("string"), "label": ClassLabel(names=["only"])}))
    with pytest.raises(DataError, match="1 class"):
        objective().outputs(given)


def test_answers_are_the_softmax_of_a_samples_logits(wordpiece: PreTrainedTokenizerBase) -> None:
    asked, model = objective(), bert(wordpiece)
    made = batch_of(asked, wordpiece, rows(labels=[None] * 5))  # type: ignore[list-item]
    logits = scored(model, torch.stack([states.mean(0) for states in one_by_one(model, made)]))
    for row, theirs in zip(asked.logits(model, made), logits.softmax(-1), strict=True):
        found = asked.answer(row, tuple(NAMES))
        assert found is not None
        assert found["label"] == NAMES[int(theirs.argmax())]
        assert found["probability"] == pytest.approx(theirs.max().item(), rel=1e-4)
        assert list(found["probabilities"].values()) == pytest.approx(theirs.tolist(), rel=1e-4)
        assert math.isclose(sum(found["probabilities"].values()), 1)
    unnamed = asked.answer(np.array([0.0, 1.0]), ())
    assert unnamed is not None
    assert unnamed["label"] == "1"


def test_notes_count_the_classes(wordpiece: PreTrainedTokenizerBase) -> None:
    assert objective().notes(objective().examples(rows(), wordpiece, 64))[0] == "rows of each class: bad 2, good 2, fair 1"


def test_an_unlabelled_target_is_the_ignored_one(wordpiece: PreTrainedTokenizerBase) -> None:
    made = batch_of(objective(), wordpiece, rows().remove_columns("label"))
    assert made.labels["class"].tolist() == [IGNORED] * 5


@pytest.mark.parametrize("change", [{"label_smoothing": 0.5}, {"weights": {"class": 2.0, "lm": 0.5}}])
def test_what_is_named_as_a_setting_of_the_loss_changes_no_input(wordpiece: PreTrainedTokenizerBase, change: dict[str, Any]) -> None:
    assert set(change) <= set(objective().loss_settings) == {"weights", "label_smoothing"}
    one, other = (batch_of(asked, wordpiece).inputs for asked in (objective(), objective(**change)))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
