"""Let a causal model write: transformers' own sampling, seeded, streamed where someone watches."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
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
        prompt: text to go on from; empty: the start of a document. Of one that leaves no room, the end is read.
        say: called with each piece of text as it is written; the pieces together are what is returned.
    """
    import torch
    from transformers.generation.streamers import BaseStreamer

    context, room = _context(model, tokenizer, prompt, sampling)
    written: list[int] = []
    said = ""

    def text() -> str:
        # Decoded with what stands before it: alone, some tokenizers drop the space before a first word.
        before, whole = (str(tokenizer.decode(ids, skip_special_tokens=True)) for ids in (context, context + written))
        return whole[len(before) :] if whole.startswith(before) else str(tokenizer.decode(written, skip_special_tokens=True))

    def tell(new: str) -> None:
        nonlocal said
        if say is not None and new.startswith(said) and new != said:
            say(new[len(said) :])
            said = new

    class Streamer(BaseStreamer):  # type: ignore[misc]  # transformers carries no types
        prompt_is_over = False

        def put(self, value: torch.Tensor) -> None:
            if self.prompt_is_over:
                written.extend(value.flatten().tolist())
                # Up to the last space or line end: the word after it may still change, or be half a character.
                tell(re.match(r"(?s)(.*\s)?", text())[0])  # type: ignore[index]
            self.prompt_is_over = True

        def end(self) -> None:
            tell(text())

    was_training = model.training
    model.eval()
    ids = torch.tensor([context], device=model.device)
    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []), _plainly(model):
        torch.manual_seed(key(seed, "generate"))
        model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=room,
            pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            streamer=Streamer(),
            **_choice(sampling),
        )
    model.train(was_training)
    return text()


@contextlib.contextmanager
def _plainly(model: PreTrainedModel) -> Iterator[None]:
    """Without the generation_config.json of the weights: beams, penalties or a length of its own would be another choice than the one asked for."""
    from transformers import GenerationConfig

    kept, model.generation_config = model.generation_config, GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = kept


def cuts(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, sampling: Sampling) -> list[str]:
    """What `write` will leave out because the model reads so many positions and no more: a line each."""
    full, (context, room) = len(_ids(tokenizer, prompt)), _context(model, tokenizer, prompt, sampling)
    read = len(context)
    lines = [f"the model reads {_positions(model)} positions: of the prompt's {full} tokens it sees the last {read}"] if read < full else []
    return lines + ([f"the model reads {_positions(model)} positions: at most {room} new tokens"] if room < sampling.max_new_tokens else [])


def _choice(sampling: Sampling) -> dict[str, Any]:
    if sampling.temperature == 0:
        return {"do_sample": False}
    return {"do_sample": True, "temperature": sampling.temperature, "top_k": sampling.top_k or 0, "top_p": sampling.top_p or 1.0}


def _ids(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    """The prompt's ids after the token that starts a document."""
    ids: list[int] = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    return [start, *ids] if start is not None and (not ids or ids[0] != start) else ids


def _context(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, sampling: Sampling) -> tuple[list[int], int]:
    """The ids that the model reads, and how many it then has positions to write.

    A prompt that is too long keeps its end, and at least half of the positions.
    """
    ids = _ids(tokenizer, prompt)
    positions = _positions(model)
    room = max(1, min(sampling.max_new_tokens, positions - min(len(ids), positions // 2)))
    return ids[-(positions - room) :], room


def _positions(model: PreTrainedModel) -> int:
    return getattr(model.config, "max_position_embeddings", None) or 1 << 30
