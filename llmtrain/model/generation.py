"""Let a causal model write: transformers' own sampling, seeded, streamed where someone watches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmtrain.errors import require
from llmtrain.seeding import key

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
        temperature: divides the logits; 0 takes the likeliest token always.
        top_k: choose among the k likeliest; null: all.
        top_p: choose among the likeliest that together have this probability (Holtzman et al. 2019, arXiv 1904.09751).
        max_new_tokens: where to stop, unless the text ends before.
    """

    temperature: float
    top_k: int | None
    top_p: float | None
    max_new_tokens: int

    def __post_init__(self) -> None:
        require(0 <= self.temperature < float("inf"), "temperature", self.temperature, "0 or more, finite")
        require(self.top_k is None or self.top_k >= 1, "top_k", self.top_k, "1 or more, or null")
        require(self.top_p is None or 0 < self.top_p <= 1, "top_p", self.top_p, "above 0 and at most 1, or null")
        require(self.max_new_tokens >= 1, "max_new_tokens", self.max_new_tokens, "1 or more")


def write(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, sampling: Sampling, seed: int, say: Callable[[str], None] | None = None
) -> str:
    """The prompt's continuation.

    Args:
        prompt: text to go on from; empty: the start of a document.
        say: called with each piece of text as it is written.
    """
    import torch
    from transformers import TextStreamer

    class Streamer(TextStreamer):  # type: ignore[misc]  # transformers carries no types
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            assert say is not None
            say(text)

    ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if start is not None and (not ids or ids[0] != start):
        ids = [start, *ids]
    limit = getattr(model.config, "max_position_embeddings", None) or 1 << 30
    room = max(1, limit - sampling.max_new_tokens)
    context = torch.tensor([ids[-room:]], device=model.device)
    chosen: dict[str, Any] = {"do_sample": False}
    if sampling.temperature > 0:
        chosen = {"do_sample": True, "temperature": sampling.temperature, "top_k": sampling.top_k or 0, "top_p": sampling.top_p or 1.0}
    was_training = model.training
    model.eval()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(key(seed, "generate"))
        output = model.generate(
            context,
            attention_mask=torch.ones_like(context),
            max_new_tokens=min(sampling.max_new_tokens, limit - 1),
            pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            streamer=Streamer(tokenizer, skip_prompt=True, skip_special_tokens=True) if say is not None else None,
            **chosen,
        )
    model.train(was_training)
    return str(tokenizer.decode(output[0, context.shape[1] :], skip_special_tokens=True))
