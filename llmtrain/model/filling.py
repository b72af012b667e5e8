"""What a masked LM would put where a token is hidden."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Guess:
    """Attributes: id: of the token. text: as it reads. probability: 0 to 1."""

    id: int
    text: str
    probability: float


def guesses(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, inputs: dict[str, torch.Tensor], position: int, top_k: int) -> list[Guess]:
    """The likeliest tokens at one position of one sequence, the likeliest first.

    Args:
        inputs: arguments of the body, each (1, T).
    """
    import torch

    from llmtrain.model import forward

    model.eval()
    with torch.no_grad():
        encoded = forward.encode(model, forward.reach(model), **inputs)
        logits = forward.vocabulary_logits(model, encoded._replace(states=encoded.states[:, position : position + 1]))
    likeliest = logits[0, 0].float().softmax(-1).topk(min(top_k, logits.shape[-1]))
    return [Guess(i, tokenizer.decode([i]).strip(), p) for i, p in zip(likeliest.indices.tolist(), likeliest.values.tolist(), strict=True)]


def around(tokenizer: PreTrainedTokenizerBase, ids: list[int], position: int, tokens: int) -> tuple[str, str]:
    """What stands before and behind a position, up to so many tokens, as text."""
    before, behind = ids[max(0, position - tokens) : position], ids[position + 1 : position + 1 + tokens]
    return tokenizer.decode(before, skip_special_tokens=True), tokenizer.decode(behind, skip_special_tokens=True)
