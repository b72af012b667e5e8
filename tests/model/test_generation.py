"""Writing is seeded, streamed, and bounded by the model's positions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import GPT2Config, GPT2LMHeadModel

from llmtrain.data import tokenizer as tokens
from llmtrain.model.generation import Sampling, write


@pytest.fixture(scope="module")
def model() -> tuple[Any, Any]:
    tokenizer = tokens.train("bpe", Dataset.from_dict({"text": ["a b c d e f"] * 3}), 265, lambda text: None)
    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=1, n_embd=16, n_head=2, vocab_size=len(tokenizer), n_positions=24, bos_token_id=tokenizer.eos_token_id, eos_token_id=tokenizer.eos_token_id
    )
    return GPT2LMHeadModel(config).eval(), tokenizer


def sampling(**changes: Any) -> Sampling:
    return Sampling(**{"temperature": 1.0, "top_k": None, "top_p": None, "max_new_tokens": 10, **changes})


def test_a_seed_decides_the_text(model: tuple[Any, Any]) -> None:
    texts = [write(*model, "a b", sampling(), seed) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_temperature_zero_takes_the_likeliest_whatever_the_seed(model: tuple[Any, Any]) -> None:
    assert write(*model, "a b", sampling(temperature=0.0), 1) == write(*model, "a b", sampling(temperature=0.0), 2)


def test_what_is_streamed_is_what_is_returned(model: tuple[Any, Any]) -> None:
    pieces: list[str] = []
    text = write(*model, "a b", sampling(), 3, pieces.append)
    assert "".join(pieces).strip() == text.strip()


def test_a_prompt_longer_than_the_model_reads_is_cut_on_the_left(model: tuple[Any, Any]) -> None:
    assert isinstance(write(*model, "a b c d " * 20, sampling(), 1), str)


def test_writing_leaves_the_global_random_numbers_alone(model: tuple[Any, Any]) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    write(*model, "a", sampling(), 1)
    assert torch.equal(torch.get_rng_state(), before)
