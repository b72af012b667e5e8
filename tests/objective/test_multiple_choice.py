"""Multiple choice: a sequence for each choice, a softmax over the choices of a row, however many they are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset, Features, List, Value
from torch import Tensor
from transformers import BertConfig, BertModel, GPT2Config, GPT2Model, PreTrainedModel, PreTrainedTokenizerBase

from llmtrain.config import build
from llmtrain.data import loader, tokenizer as tokens
from llmtrain.model.base import Outputs, Pooling
from llmtrain.model.head import PooledHead, attach
from llmtrain.objective.base import IGNORED, PREDICTIONS, Batch, Draw, Objective, Totals
from llmtrain.objective.learner import Learner

TEXTS = ["the sun rose", "she fell on the ice", "the shop was shut", "he ate"]
CHOICES = [
    ["it grew light", "it grew dark"],
    ["she broke her arm", "she sang", "she flew away over the sea"],
    ["we went home", "we bought bread"],
    ["yes", "no"],
]
LABELS = [0, 2, 1, 1]


@pytest.fixture(scope="module", params=["bert", "gpt"])
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def tokenizer(family: str) -> PreTrainedTokenizerBase:
    texts = Dataset.from_dict({"text": [*TEXTS, *(choice for row in CHOICES for choice in row)]})
    return tokens.train("wordpiece" if family == "bert" else "bpe", texts, 270, lambda text: None)


@pytest.fixture(scope="module")
def model(family: str, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    torch.manual_seed(0)
    made: PreTrainedModel
    if family == "bert":
        config = BertConfig(vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, initializer_range=0.3)
        made = BertModel(config, add_pooling_layer=False)
    else:
        shape = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64}
        made = GPT2Model(GPT2Config(vocab_size=len(tokenizer), initializer_range=0.3, bos_token_id=0, eos_token_id=0, **shape))
    head = PooledHead(32, Outputs(1), pooling=Pooling.last, states=[2])
    with torch.no_grad():
        head.weight.normal_(0, 0.3)
    attach(made, head)
    return made.eval()


def objective() -> Objective:
    return build({"kind": "multiple_choice", "weights": {"choice": 1.0}}, Objective, "objective")


def rows(labels: list[Any] = LABELS) -> Dataset:
    kinds = {"text": Value("string"), "choices": List(Value("string")), "label": Value("int64")}
    return Dataset.from_dict({"text": TEXTS, "choices": CHOICES, "label": labels}, features=Features(kinds))


def batch_of(tokenizer: PreTrainedTokenizerBase, given: Dataset | None = None, samples: list[int] | None = None) -> Batch:
    examples = objective().examples(rows() if given is None else given, tokenizer, 64)
    chosen = list(range(len(examples))) if samples is None else samples
    return objective().collate(loader.read_rows(examples.with_format("arrow"), chosen), Draw(0, 0), tokens.vocabulary(tokenizer))


@torch.no_grad()
def answered(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[Tensor]:
    """Logits (choices,) of each row, every choice alone, by hand."""
    found, vocabulary = [], tokens.vocabulary(tokenizer)
    for text, choices in zip(TEXTS, CHOICES, strict=True):
        logits = []
        for a, b in (tokens.encode(tokenizer, [text, choice]) for choice in choices):
            ids = torch.tensor([[vocabulary.start, *a, vocabulary.separator, *b, vocabulary.separator]])
            types = torch.tensor([[0] * (len(a) + 2) + [1] * (len(b) + 1)])
            states = model(input_ids=ids, **({"token_type_ids": types} if model.config.model_type == "bert" else {})).last_hidden_state
            logits.append(states[0, -1] @ model.pooled.weight[0] + model.pooled.bias[0])
        found.append(torch.stack(logits))
    return found


def test_the_loss_is_the_cross_entropy_over_the_choices_of_each_row(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> None:
    made = batch_of(tokenizer)
    theirs = sum(F.cross_entropy(logits, torch.tensor(label)) for logits, label in zip(answered(model, tokenizer), LABELS, strict=True))
    assert Learner(model, objective())(made)["choice"].item() == pytest.approx(float(theirs), rel=1e-4)
    assert made.counts == {"choice": 4}
    assert (len(made.samples), len(made.inputs["input_ids"])) == (4, 9)


def test_gradients_are_finite_where_a_row_has_fewer_choices(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> None:
    Learner(model, objective())(batch_of(tokenizer))["choice"].backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    assert gradients
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert any(gradient.any() for gradient in gradients)


def test_batches_of_another_composition_give_the_same_sums(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> None:
    learner = Learner(model, objective())
    whole = learner(batch_of(tokenizer))["choice"].item()
    parts = [batch_of(tokenizer, samples=samples) for samples in ([2, 0], [1], [3])]
    assert sum(learner(part)["choice"].item() for part in parts) == pytest.approx(whole, rel=1e-4)


def test_rows_without_an_answer_ask_for_nothing(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> None:
    learner = Learner(model, objective())
    some, none = (batch_of(tokenizer, rows(labels)) for labels in ([0, None, None, 1], [None] * 4))
    assert (some.counts["choice"], none.counts["choice"]) == (2, 0)
    assert learner(some)["choice"].item() == pytest.approx(learner(batch_of(tokenizer, samples=[0, 3]))["choice"].item(), rel=1e-4)
    assert learner(none)["choice"].item() == 0


def test_accuracy_is_the_share_of_rows_whose_likeliest_choice_is_right(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> None:
    made = batch_of(tokenizer)
    with torch.no_grad():
        sums = Learner(model, objective())(made)
    logits = answered(model, tokenizer)
    predictions = dict(zip(made.samples, sums.pop(PREDICTIONS).numpy(), strict=True))
    assert [row.tolist() for row in predictions.values()] == [[int(of.argmax()), label] for of, label in zip(logits, LABELS, strict=True)]
    found = objective().metrics(Totals({"choice": sums["choice"].item()}, dict(made.counts), {}, predictions))
    assert found["accuracy"] == sum(int(of.argmax()) == label for of, label in zip(logits, LABELS, strict=True)) / 4
    assert found["loss"] == pytest.approx(sums["choice"].item() / 4)
    assert set(found) == set(type(objective()).metric_directions)


def test_a_row_without_an_answer_is_neither_right_nor_wrong() -> None:
    predictions = {0: np.array([2.0, 2.0]), 1: np.array([1.0, IGNORED]), 2: np.array([0.0, 1.0])}
    assert objective().metrics(Totals({"choice": 1.0}, {"choice": 2}, {}, predictions)) == {"loss": 0.5, "accuracy": 0.5}


def test_an_answer_is_the_number_of_the_likeliest_choice(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> None:
    rows_of_logits = objective().logits(model, batch_of(tokenizer))
    for found, logits in zip(rows_of_logits, answered(model, tokenizer), strict=True):
        answer = objective().answer(found, ())
        assert answer is not None
        assert answer["choice"] == int(logits.argmax())
        assert answer["probabilities"] == pytest.approx(logits.softmax(-1).tolist(), rel=1e-3)


def test_the_head_makes_one_number_of_a_sequence() -> None:
    assert objective().outputs(rows()) == Outputs(1)
