"""Filling in: the model's own probabilities at one place, the likeliest first."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import (
    AlbertConfig,
    AlbertForMaskedLM,
    BertConfig,
    BertForMaskedLM,
    BertForPreTraining,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    RobertaConfig,
    RobertaForMaskedLM,
)

from llmtrain.data import tokenizer as tokens
from llmtrain.model.filling import around, guesses

TEXT = "the quick brown fox jumps over the lazy dog and runs away from it"
MASKED = "the quick [MASK] fox jumps over the [MASK] dog"
PLACES = [0, 3, 8, 10]  # [CLS], both masks, [SEP]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return tokens.train("wordpiece", Dataset.from_dict({"text": [TEXT] * 3}), 90, lambda text: None)


KINDS: list[tuple[type, type]] = [
    (BertForMaskedLM, BertConfig),
    (BertForPreTraining, BertConfig),
    (RobertaForMaskedLM, RobertaConfig),
    (AlbertForMaskedLM, AlbertConfig),
]


def made(tokenizer: PreTrainedTokenizerBase, kind: Any = BertForMaskedLM, config: Any = BertConfig) -> PreTrainedModel:
    """A random model, in the mode of training; its initial weights are large, so that its guesses differ."""
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "max_position_embeddings": 64}
    return kind(config(vocab_size=len(tokenizer), initializer_range=0.3, pad_token_id=0, **shape)).train()  # type: ignore[no-any-return]


def inputs_of(tokenizer: PreTrainedTokenizerBase, kind: Any = BertForMaskedLM) -> dict[str, torch.Tensor]:
    found = dict(tokenizer(MASKED, return_tensors="pt"))
    if kind is RobertaForMaskedLM:
        found.pop("token_type_ids")
    return found


def probabilities(model: PreTrainedModel, inputs: dict[str, torch.Tensor], place: int) -> torch.Tensor:
    """Softmax of what the model itself answers at a place (V,)."""
    with torch.no_grad():
        output = model.eval()(**inputs)
    logits = output.prediction_logits if "prediction_logits" in output else output.logits
    return logits[0, place].softmax(-1)  # type: ignore[no-any-return]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(("kind", "config"), KINDS)
def test_probabilities_are_the_softmax_of_the_models_own_logits(tokenizer: PreTrainedTokenizerBase, kind: type, config: type, place: int) -> None:
    model, inputs = made(tokenizer, kind, config), inputs_of(tokenizer, kind)
    found = guesses(model, tokenizer, inputs, place, len(tokenizer))
    expected = probabilities(model, inputs, place)
    assert sorted(g.id for g in found) == list(range(len(tokenizer)))
    assert [g.probability for g in found] == pytest.approx([float(expected[g.id]) for g in found], rel=1e-4, abs=1e-8)
    assert sum(g.probability for g in found) == pytest.approx(1)


def test_another_place_has_other_guesses(tokenizer: PreTrainedTokenizerBase) -> None:
    model, inputs = made(tokenizer), inputs_of(tokenizer)
    first, second = (guesses(model, tokenizer, inputs, place, 5) for place in (3, 8))
    assert first != second


def test_the_likeliest_stands_first(tokenizer: PreTrainedTokenizerBase) -> None:
    model, inputs = made(tokenizer), inputs_of(tokenizer)
    found = [g.probability for g in guesses(model, tokenizer, inputs, 3, len(tokenizer))]
    assert found == sorted(found, reverse=True)
    assert found[0] > 2 * found[len(found) // 2]  # there is an order to see


@pytest.mark.parametrize("top_k", [1, 5, 10_000])
def test_there_are_top_k_guesses_and_never_more_than_tokens(tokenizer: PreTrainedTokenizerBase, top_k: int) -> None:
    model, inputs = made(tokenizer), inputs_of(tokenizer)
    found = guesses(model, tokenizer, inputs, 3, top_k)
    assert found == guesses(model, tokenizer, inputs, 3, len(tokenizer))[:top_k]
    assert len(found) == min(top_k, len(tokenizer))


def test_a_guess_reads_as_its_token(tokenizer: PreTrainedTokenizerBase) -> None:
    found = guesses(made(tokenizer), tokenizer, inputs_of(tokenizer), 3, len(tokenizer))
    assert {g.text for g in found if g.id == tokenizer.convert_tokens_to_ids("the")} == {"the"}
    assert all(g.text == g.text.strip() for g in found)


def test_a_model_that_trains_guesses_without_dropout_and_without_gradients(tokenizer: PreTrainedTokenizerBase) -> None:
    model, inputs = made(tokenizer), inputs_of(tokenizer)
    first = guesses(model, tokenizer, inputs, 3, 5)
    assert guesses(model.train(), tokenizer, inputs, 3, 5) == first
    assert all(p.grad is None for p in model.parameters())


# --- what stands around a place -------------------------------------------------------------------------------------


def ids_of(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    ids: list[int] = tokenizer("the quick brown fox jumps over")["input_ids"]
    assert len(ids) == 8  # every word is one token
    return ids


@pytest.mark.parametrize(
    ("place", "number", "expected"),
    [
        (3, 1, ("quick", "fox")),
        (3, 2, ("the quick", "fox jumps")),
        (3, 100, ("the quick", "fox jumps over")),
        (1, 2, ("", "quick brown")),
        (2, 3, ("the", "brown fox jumps")),
        (6, 2, ("fox jumps", "")),
        (0, 3, ("", "the quick brown")),
        (3, 0, ("", "")),
    ],
)
def test_around_is_so_many_tokens_on_each_side_without_special_ones(
    tokenizer: PreTrainedTokenizerBase, place: int, number: int, expected: tuple[str, str]
) -> None:
    assert around(tokenizer, ids_of(tokenizer), place, number) == expected
