"""What a masked LM would put where a token is hidden."""

from __future__ import annotations

from collections import Counter
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
    ids = likeliest.indices.tolist()
    texts = [tokenizer.decode([i]).strip() for i in ids]
    times = Counter(texts)
    # Tokens that read alike ("x", " x", halves of characters) go by the name that the vocabulary has for them.
    names = [tokenizer.convert_ids_to_tokens(i) if times[text] > 1 else text for i, text in zip(ids, texts, strict=True)]
    return [Guess(i, name, p) for i, name, p in zip(ids, names, likeliest.values.tolist(), strict=True)]


def around(tokenizer: PreTrainedTokenizerBase, ids: list[int], position: int, tokens: int) -> tuple[str, str]:
    """What stands before and behind a position, up to so many tokens, as text."""
    before, behind = ids[max(0, position - tokens) : position], ids[position + 1 : position + 1 + tokens]
    return tokenizer.decode(before, skip_special_tokens=True), tokenizer.decode(behind, skip_special_tokens=True)
