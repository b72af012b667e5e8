"""Which positions a masked LM is asked about, and what it sees there.

Devlin et al. 2018, section 3.1, task 1, and their `create_pretraining_data.py`: a share of the positions that hold text
is asked; of these most are replaced by the mask token, some by a random token, and some are left as they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from llmtrain.errors import require
from llmtrain.objective.base import IGNORED, Batch, entropy

if TYPE_CHECKING:
    import numpy as np
    import torch
    from datasets import Dataset

    from llmtrain.data.tokenizer import Vocabulary


@dataclass(frozen=True, kw_only=True)
class Masking:
    """How positions are masked.

    Attributes:
        probability: share of the positions with text (special tokens are none) that are asked, above 0 and at most 1.
        mask_share: of these, the share replaced by the mask token.
        random_share: of these, the share replaced by a random token, never a special one.
        keep_share: of these, the share left as it is. The three shares sum to 1.
        whole_word: all pieces of a word are asked, or none of them.
    """

    probability: float
    mask_share: float
    random_share: float
    keep_share: float
    whole_word: bool

    def __post_init__(self) -> None:
        require(0 < self.probability <= 1, "probability", self.probability, "above 0 and at most 1")
        shares = {name: getattr(self, name) for name in ("mask_share", "random_share", "keep_share")}
        for name, share in shares.items():
            require(0 <= share <= 1, name, share, "0 to 1")
        total = sum(shares.values())
        require(math.isclose(total, 1, abs_tol=1e-6), "mask_share", self.mask_share, f"mask_share + random_share + keep_share = 1, they make {total:g}")
        if hasattr(super(), "__post_init__"):  # an objective's own checks, where this is a part of one
            super().__post_init__()  # type: ignore[misc]

    def mask(self, ids: np.ndarray, words: np.ndarray | None, vocabulary: Vocabulary, draw: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """(inputs, labels) of one sequence, each (T,); labels are IGNORED where nothing is asked.

        The number of units (tokens, or words) that are asked is the share of them, rounded up or down at random so
        that the share is met on average; it is at least one where there is any.

        Args:
            ids: (T,) with special tokens.
            words: (T,) the number of the word that a token is a piece of; needed for whole_word alone.
        """
        import numpy as np

        inputs, labels = ids.copy(), np.full_like(ids, IGNORED)
        text = np.flatnonzero(~vocabulary.is_special(ids))
        if not len(text):
            return inputs, labels
        if self.whole_word:
            assert words is not None
            _, unit = np.unique(words[text], return_inverse=True)
        else:
            unit = np.arange(len(text))
        number = int(unit[-1]) + 1
        asked = max(1, math.floor(self.probability * number + draw.random()))
        chosen = np.zeros(number, dtype=bool)
        chosen[draw.permutation(number)[:asked]] = True
        targets = text[chosen[unit]]
        labels[targets] = ids[targets]
        fate = draw.random(len(targets))
        random = draw.choice(vocabulary.plain, len(targets))
        inputs[targets[fate < self.mask_share]] = vocabulary.mask
        replaced = (fate >= self.mask_share) & (fate < self.mask_share + self.random_share)
        inputs[targets[replaced]] = random[replaced]
        return inputs, labels


# --- sequences → batches ------------------------------------------------------------------------------------------


class Row(NamedTuple):
    """One sequence as the model sees it: inputs (T,), labels (T,) of the masked LM, and segment ids (T,) of a pair."""

    inputs: np.ndarray
    labels: np.ndarray | None = None
    types: np.ndarray | None = None


def framed(ids: Sequence[int] | np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
    """[CLS] ids [SEP]."""
    import numpy as np

    return np.concatenate([[vocabulary.start], ids, [vocabulary.separator]]).astype(np.int64)


def framed_words(words: Sequence[int] | np.ndarray) -> np.ndarray:
    """Word numbers with a place for [CLS] and for [SEP], which are in no word."""
    import numpy as np

    return np.concatenate([[-1], words, [-1]]).astype(np.int64)


def renumbered(words: Sequence[int]) -> list[int]:
    """Word numbers from 0, a new one wherever the given one changes: after documents were cut or put together."""
    found = [0] if words else []
    for before, now in pairwise(words):
        found.append(found[-1] + (now != before))
    return found


def padded(rows: list[Row]) -> dict[str, torch.Tensor]:
    """Arguments of the body, each (B, T), padded on the right. A mask is given only where there is padding."""
    from llmtrain.data import shape

    inputs = {"input_ids": shape.pad([row.inputs for row in rows], fill=None)}
    if len({len(row.inputs) for row in rows}) > 1:
        inputs["attention_mask"] = shape.pad([[1] * len(row.inputs) for row in rows], fill=0)
    if rows[0].types is not None:
        inputs["token_type_ids"] = shape.pad([row.types for row in rows if row.types is not None], fill=None)
    return inputs


def labelled(rows: list[Row]) -> tuple[torch.Tensor, int]:
    """Labels (B, T) of the masked LM, and how many targets they hold."""
    from llmtrain.data import shape

    labels = shape.pad([row.labels for row in rows if row.labels is not None], fill=IGNORED)
    return labels, int((labels != IGNORED).sum())


# --- evaluation ---------------------------------------------------------------------------------------------------


def target_entropy(examples: Dataset, row: Callable[[dict[str, Any]], Row], vocabulary: Vocabulary) -> float:
    """Entropy in nats of the targets of all examples."""
    import numpy as np

    counts = np.zeros(vocabulary.size, dtype=np.int64)
    for example in each(examples):
        labels = row(example).labels
        assert labels is not None
        counts += np.bincount(labels[labels != IGNORED], minlength=vocabulary.size)
    return entropy(counts)


def one_by_one(examples: Dataset, row: Callable[[dict[str, Any]], Row], vocabulary: Vocabulary, number: int | None, batch_size: int) -> Iterator[Batch]:
    """Batches in which each row hides one token and asks for it: Salazar et al. 2020, arXiv 1910.14659, equation 1."""
    import numpy as np

    from llmtrain.data.loader import read_rows
    from llmtrain.seeding import generator

    # How many tokens each example has is counted first, so that only the examples of chosen tokens are held.
    ends = np.cumsum([int((~vocabulary.is_special(row(example).inputs)).sum()) for example in each(examples)])
    total = int(ends[-1]) if len(ends) else 0
    chosen = np.arange(total) if number is None or number >= total else np.sort(generator(0, "one by one").choice(total, number, replace=False))
    of = np.searchsorted(ends, chosen, side="right")
    table, hidden = examples.with_format("arrow"), list[Row]()
    for i in np.unique(of):
        (example,) = read_rows(table, [int(i)])
        found = row(example)
        text = np.flatnonzero(~vocabulary.is_special(found.inputs))
        for place in chosen[of == i] - (ends[i] - len(text)):
            hidden.append(_hiding(found, int(text[place]), vocabulary))
            if len(hidden) == batch_size:
                yield _asking(hidden)
                hidden = []
    if hidden:
        yield _asking(hidden)


def _asking(rows: list[Row]) -> Batch:
    labels, count = labelled(rows)
    return Batch(padded(rows), {"masked_lm": labels}, {"masked_lm": count}, {}, [])


def _hiding(row: Row, position: int, vocabulary: Vocabulary) -> Row:
    import numpy as np

    inputs, labels = row.inputs.copy(), np.full_like(row.inputs, IGNORED)
    labels[position], inputs[position] = inputs[position], vocabulary.mask
    return Row(inputs, labels, row.types)


def each(examples: Dataset) -> Iterator[dict[str, Any]]:
    """Every example as `collate` gets it."""
    from llmtrain.data.loader import read_rows

    rows = examples.with_format("arrow")
    for start in range(0, len(rows), 1000):
        yield from read_rows(rows, list(range(start, min(start + 1000, len(rows)))))
