"""Regression: squared errors in the units of the scores, correlations, both orders of a pair."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Value
from scipy import stats
from torch import Tensor
from transformers import BertConfig, BertModel, PreTrainedModel, PreTrainedTokenizerBase

from llmtrain.config import build
from llmtrain.data import loader, tokenizer as tokens
from llmtrain.errors import ConfigError, DataError
from llmtrain.model.base import Outputs, Pooling
from llmtrain.model.head import PooledHead, attach
from llmtrain.objective.base import PREDICTIONS, Batch, Draw, Objective, Totals
from llmtrain.objective.learner import Learner

TEXTS = ["a man rides", "two dogs run over a field of snow", "rain", "a girl sings a song"]
SECONDS = ["a man is riding a horse", "a dog runs", "it is raining in the town", "nobody sings"]
SCORES = [4.5, 3.0, 4.0, 1.5]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return tokens.train("wordpiece", Dataset.from_dict({"text": TEXTS + SECONDS}), 120, lambda text: None)


@pytest.fixture(scope="module")
def model(tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    torch.manual_seed(0)
    config = BertConfig(vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, initializer_range=0.3)
    made = BertModel(config, add_pooling_layer=False)
    head = PooledHead(32, Outputs(1), pooling=Pooling.cls, states=[2])
    with torch.no_grad():
        head.weight.normal_(0, 0.3)
    attach(made, head)
    return made.eval()


def objective(symmetric: bool = False) -> Objective:
    return build({"kind": "regression", "weights": {"score": 1.0}, "symmetric": symmetric}, Objective, "objective")


def rows(scores: list[Any] = SCORES, pairs: bool = True) -> Dataset:
    columns = {"text": TEXTS, **({"second": SECONDS} if pairs else {}), "score": scores}
    return Dataset.from_dict(columns, features=Features({name: Value("float64" if name == "score" else "string") for name in columns}))


def batch_of(asked: Objective, tokenizer: PreTrainedTokenizerBase, given: Dataset | None = None, samples: list[int] | None = None) -> Batch:
    examples = asked.examples(rows() if given is None else given, tokenizer, 64)
    chosen = list(range(len(examples))) if samples is None else samples
    return asked.collate(loader.read_rows(examples.with_format("arrow"), chosen), Draw(0, 0), tokens.vocabulary(tokenizer))


def answered(model: PreTrainedModel, made: Batch, group: int = 1) -> Tensor:
    """Scores (B,) from the first token of each sequence, by hand."""
    first = model(**made.inputs).last_hidden_state[:, 0].unflatten(0, (-1, group)).sum(1)
    return first @ model.pooled.weight[0] + model.pooled.bias[0]


@pytest.mark.parametrize("symmetric", [False, True])
def test_the_loss_is_the_sum_of_squared_errors(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, symmetric: bool) -> None:
    asked = objective(symmetric)
    made = batch_of(asked, tokenizer)
    theirs = ((answered(model, made, 2 if symmetric else 1) - torch.tensor(SCORES)) ** 2).sum()
    assert Learner(model, asked)(made)["score"].item() == pytest.approx(theirs.item(), rel=1e-5)
    assert made.counts == {"score": 4}


def test_a_symmetric_answer_does_not_know_which_text_was_first(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> None:
    turned = Dataset.from_dict({**rows()[:], "text": SECONDS, "second": TEXTS}, features=rows().features)
    both = [np.concatenate(objective(True).logits(model, batch_of(objective(True), tokenizer, given))) for given in (rows(), turned)]
    one = [np.concatenate(objective().logits(model, batch_of(objective(), tokenizer, given))) for given in (rows(), turned)]
    assert both[0] == pytest.approx(both[1], rel=1e-4)
    assert np.abs(one[0] - one[1]).min() > 1e-3


def test_batches_of_another_composition_give_the_same_sums(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> None:
    learner = Learner(model, objective())
    whole = learner(batch_of(objective(), tokenizer))["score"].item()
    parts = [batch_of(objective(), tokenizer, samples=samples) for samples in ([3], [1, 0, 2])]
    assert sum(learner(part)["score"].item() for part in parts) == pytest.approx(whole, rel=1e-5)


def test_rows_without_a_score_ask_for_nothing(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> None:
    learner = Learner(model, objective())
    some, none = (batch_of(objective(), tokenizer, rows(scores)) for scores in ([4.5, None, 4.0, None], [None] * 4))
    assert (some.counts["score"], none.counts["score"]) == (2, 0)
    assert learner(some)["score"].item() == pytest.approx(learner(batch_of(objective(), tokenizer, samples=[0, 2]))["score"].item(), rel=1e-5)
    loss = learner(none)["score"]
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is None or not p.grad.any() for p in learner.parameters())
    model.zero_grad()


@pytest.mark.parametrize("scores", [SCORES, [4.5, 3.0, None, 1.5]])
def test_metrics_are_the_error_and_two_correlations(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, scores: list[Any]) -> None:
    made = batch_of(objective(), tokenizer, rows(scores))
    with torch.no_grad():
        sums = Learner(model, objective())(made)
        predicted = answered(model, made).numpy()
    predictions = dict(zip(made.samples, sums.pop(PREDICTIONS).numpy(), strict=True))
    found = objective().metrics(Totals({"score": sums["score"].item()}, dict(made.counts), {}, predictions))
    kept = [i for i, score in enumerate(scores) if score is not None]
    true, predicted = np.array([scores[i] for i in kept]), predicted[kept]
    assert found["loss"] == pytest.approx(((predicted - true) ** 2).mean(), rel=1e-5)
    assert found["rmse"] == pytest.approx(math.sqrt(found["loss"]))
    assert found["pearson"] == pytest.approx(stats.pearsonr(predicted, true).statistic, abs=1e-5)
    assert found["spearman"] == pytest.approx(stats.spearmanr(predicted, true).statistic)
    assert set(found) == set(type(objective()).metric_directions)
    assert type(objective()).best_metric in found


def test_the_scale_of_scores_is_the_mean_and_deviation_of_the_training_rows() -> None:
    assert objective().scale(rows([1.0, None, 2.0, 6.0])) == pytest.approx((3.0, np.std([1, 2, 6])))
    assert objective().outputs(rows()) == Outputs(1)
    with pytest.raises(DataError, match="no score"):
        objective().scale(rows([None] * 4))


@pytest.mark.parametrize("scores", [[1e-16, 2e-16, 0.0, 0.0], [1e16, 0.0, 0.0, 0.0], [1e9, 1e9 + 1, 1e9, 1e9]])
def test_scores_that_single_precision_cannot_hold_apart_are_refused_with_the_way_out(scores: list[float]) -> None:
    with pytest.raises(DataError, match="single precision") as caught:
        objective().scale(rows(scores))
    assert caught.value.fix


@pytest.mark.parametrize("factor", [1e-12, 1.0, 1e12])
def test_scores_of_any_usual_unit_have_a_scale(factor: float) -> None:
    assert objective().scale(rows([factor * score for score in SCORES])) == pytest.approx((factor * 3.25, factor * np.std(SCORES)))


def test_single_texts_have_no_other_order(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(ConfigError, match=r"objective\.symmetric=true"):
        objective(True).examples(rows(pairs=False), tokenizer, 64)
    assert len(objective().examples(rows(pairs=False), tokenizer, 64)) == 4


def test_an_answer_is_the_score(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> None:
    made = batch_of(objective(), tokenizer)
    found = [objective().answer(row, ()) for row in objective().logits(model, made)]
    assert [answer["score"] for answer in found if answer] == pytest.approx(answered(model, made).tolist(), rel=1e-5)


def test_notes_describe_the_scores(tokenizer: PreTrainedTokenizerBase) -> None:
    assert objective().notes(objective().examples(rows(), tokenizer, 64))[0] == "scores from 1.5 to 4.5, mean 3.25, standard deviation 1.15"
