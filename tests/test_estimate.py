"""What a run needs is known before anything is allocated."""

from __future__ import annotations

import psutil
import pytest
from transformers import GPT2Config

from llmtrain.errors import DeviceError
from llmtrain.estimate import estimate, refuse_too_large


def test_a_tied_matrix_is_counted_once() -> None:
    assert estimate(GPT2Config()).parameters == 124_439_808


def test_a_model_larger_than_memory_is_refused_with_both_numbers_and_nothing_allocated() -> None:
    before = psutil.Process().memory_info().rss
    with pytest.raises(DeviceError, match=r"174,\d\d\d,\d\d\d,\d\d\d parameters.* GiB are free on cpu"):
        refuse_too_large(GPT2Config(n_layer=96, n_embd=12288, n_head=96, n_positions=2048), "cpu")
    assert psutil.Process().memory_info().rss - before < 2**30


def test_a_small_model_passes() -> None:
    assert refuse_too_large(GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=10), "cpu").training_bytes < 2**20
