"""Addresses: some of a model's blocks, or of its hidden states, in one string that means the same for every model.

    0,11      number 0 and number 11
    3-6       numbers 3 to 6
    -2        the last but one
    first:4   the lowest four      (first: the lowest)
    last:2    the highest two      (last: the highest)
    all, none

or several of these with commas between. Blocks are numbered from 0. Hidden state 0 is what enters block 0, hidden state
n what comes out above the last of n blocks.
"""

from __future__ import annotations

import re

from llmtrain.errors import ConfigError

ADDRESSES = "all, none, 0, 3-6, -2, first:4, last:2, or several of these with commas between, in quotes"

_NUMBER = "[0-9]{1,6}"
_ITEM = re.compile(f"(?P<word>all|none|first|last)|(?P<end>first|last):(?P<k>{_NUMBER})|(?P<low>{_NUMBER})(-(?P<high>{_NUMBER}))?|-(?P<back>{_NUMBER})")


def is_address(text: str) -> bool:
    """Whether a text is an address, of a model of whatever depth."""
    return all(_is_item(_ITEM.fullmatch(item)) for item in _items(text))


def block_numbers(address: str, depth: int) -> tuple[int, ...]:
    """The blocks of an address in a model of `depth` blocks, ascending, each once.

    Raises:
        ConfigError: no address, or a block that the model does not have.
    """
    return _numbers(address, depth, "finetune.address", f"the model has {depth} blocks, 0 to {depth - 1}")


def state_numbers(states: str, depth: int) -> tuple[int, ...]:
    """The hidden states of an address in a model of `depth` blocks, ascending, each once: 0 (embeddings) to `depth`.

    Raises:
        ConfigError: no address, a state that the model does not have, or none.
    """
    key, known = "finetune.states", f"the model has {depth} blocks and {depth + 1} hidden states, 0 (embeddings) to {depth} (last)"
    numbers = _numbers(states, depth + 1, key, known)
    if not numbers:
        raise ConfigError(f"{key}={states!r}: the head has nothing to read", allowed=known)
    return numbers


def _numbers(address: str, count: int, key: str, known: str) -> tuple[int, ...]:
    """The numbers below `count` that an address means; `key` and `known` are for the message."""
    if not is_address(address):
        raise ConfigError(f"{key}={address!r}: no address", allowed=ADDRESSES)
    found: set[int] = set()
    for item in _items(address):
        span = _span(item, count)
        if len(span) and not 0 <= span.start < span.stop <= count:
            raise ConfigError(f"{key}={address!r}: there is no {item!r}: {known}")
        found.update(span)
    return tuple(sorted(found))


def _items(address: str) -> list[str]:
    return [item.strip() for item in address.split(",")]


def _is_item(match: re.Match[str] | None) -> bool:
    """Whether an item is written right and not empty: no last:0, -0 or 6-3."""
    if match is None:
        return False
    k, back, low, high = (match[name] for name in ("k", "back", "low", "high"))
    return all(int(number) > 0 for number in (k, back) if number is not None) and (high is None or int(low) <= int(high))


def _span(item: str, count: int) -> range:
    """The numbers that one item means among `count`, which may lie outside."""
    match = _ITEM.fullmatch(item)
    assert match is not None
    word, end, k, low, high, back = (match[name] for name in ("word", "end", "k", "low", "high", "back"))
    if word in ("all", "none"):
        return range(count if word == "all" else 0)
    if low is not None:
        return range(int(low), int(high or low) + 1)
    if back is not None:
        return range(count - int(back), count - int(back) + 1)
    k = int(k or 1)
    return range(k) if "first" in (word, end) else range(count - k, count)
