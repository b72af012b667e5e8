"""Every random draw of the project comes from `key`: a hash of a seed and of what the draw is for.

Nothing here has a state, so a resumed run draws what the unbroken one would have drawn, and neither the number of
workers nor the order in which things are asked moves a draw.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

Part = int | str | float | bool | None


def key(seed: int, *parts: Part) -> int:
    """A 63-bit number for (seed, parts): the same in every process and on every machine.

    Not Python's `hash` (salted per process) and not `seed + i` (neighbouring streams would overlap).
    """
    digest = hashlib.blake2b(repr((seed, *parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator(seed: int, *parts: Part) -> np.random.Generator:
    """A numpy generator for (seed, parts)."""
    import numpy as np

    return np.random.default_rng(key(seed, *parts))
