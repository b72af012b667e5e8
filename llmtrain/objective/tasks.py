"""What the objectives of a task share: labelled texts to sequences, once, and sequences to batches.

    one text     [CLS] A [SEP]
    a pair       [CLS] A [SEP] B [SEP]          segment ids 0 up to the first [SEP], 1 after it
    a choice     [CLS] text second [SEP] choice [SEP], one for each choice

Devlin et al. 2018, figure 4. In a GPT the same places are Radford et al. 2018's start, delimiter and extract (figure 1):
the last token is where a causal model has read everything. With `tokenizer.task_tokens` the three are tokens of their own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any

from llmtrain.data.base import Target
from llmtrain.errors import ConfigError, printable
from llmtrain.objective import masking
from llmtrain.objective.base import IGNORED, Batch

if TYPE_CHECKING:
    import numpy as np
    import torch
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from llmtrain.data.tokenizer import Vocabulary

TOKENIZER_BATCH = 256  # rows a call; the tokenizer works on them in parallel
SHOWN = 10  # classes that are listed one by one
SHORTEST = 5  # [CLS] A [SEP] B [SEP] with a token each

Segments = list[list[int]]  # the ids of one sequence, without special tokens


# --- making -------------------------------------------------------------------------------------------------------


def examples(rows: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int, target: Target, *, balanced: bool = False) -> Dataset:
    """Ids of labelled rows, one example for each row in the same order. A row without an answer asks for nothing.

    Columns: ids, of all segments of all sequences one after another; cuts, the length of each segment; length, the tokens
    of the row's longest sequence with special ones; `score`, NaN where there is none, or `label`, IGNORED where there is
    none; weight, where classes are balanced.

    Args:
        balanced: weigh each row by rows / (classes · rows of its class), so that all classes weigh alike and 1 is the mean.
    """
    from llmtrain.data import store, tokenizer as tokens

    parts = {
        "rows": store.fingerprint(rows),
        "tokenizer": tokens.fingerprint(tokenizer),
        "max_length": max_length,
        "target": target.value,
        "balanced": balanced,
    }
    return store.stored("task", parts, lambda: _made(rows, tokenizer, max_length, target, balanced), _features(target, balanced))


def refuse_single(symmetric: bool, rows: Dataset) -> None:
    """Refuse to read single texts in both orders."""
    if symmetric and "second" not in rows.column_names:
        raise ConfigError("objective.symmetric=true: the rows are single texts", allowed="rows with a second text", fix="objective.symmetric=false")


def _made(
    rows: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int, target: Target, balanced: bool
) -> Generator[dict[str, Any], None, dict[str, Any]]:
    given = answers(rows, target)
    name = "score" if target is Target.score else "label"
    weights = class_weights(given) if balanced else None
    count: Counter[str] = Counter(cut=0, empty=0)
    number = 0
    for batch in rows.iter(TOKENIZER_BATCH):
        for sequences in _encoded(batch, tokenizer, target):
            whole = [[[*context, *question], *rest] for (context, question), *rest in sequences]
            kept = [fitted([context, *rest], max_length, question) for (context, question), *rest in sequences]
            count["cut"] += kept != whole
            count["empty"] += not all(part for sequence in kept for part in sequence)
            parts = [part for sequence in kept for part in sequence]
            row = {"ids": [i for part in parts for i in part], "cuts": [len(part) for part in parts], "length": max(map(framed_length, kept))}
            yield {**row, name: given[number].item(), **({"weight": weights[number].item()} if weights is not None else {})}
            number += 1
    return {**count, "max_length": max_length, **_facts(rows, given, target)}


def _encoded(batch: dict[str, Any], tokenizer: PreTrainedTokenizerBase, target: Target) -> Iterator[list[list[Any]]]:
    """The sequences of each row: first (context, question), the two parts of segment A, then segment B where there is one."""
    from llmtrain.data import tokenizer as tokens

    first = tokens.encode(tokenizer, batch["text"])
    second = tokens.encode(tokenizer, batch["second"]) if "second" in batch else None
    if target is not Target.choice:
        yield from ([[(a, []), *([] if second is None else [second[i]])]] for i, a in enumerate(first))
        return
    choices = iter(tokens.encode(tokenizer, [choice for row in batch["choices"] for choice in row]))
    for i, row in enumerate(batch["choices"]):
        # Radford et al. 2018, section 3.3: the document and the question are put together, the answer stands after the delimiter.
        question = [] if second is None else second[i]
        yield [[(first[i], question), next(choices)] for _ in row]


def answers(rows: Dataset, target: Target) -> np.ndarray:
    """(rows,) scores in float64, NaN where there is none; or numbers of classes or choices, IGNORED where there is none."""
    import numpy as np

    if target is Target.score:
        given = rows["score"] if "score" in rows.column_names else [None] * len(rows)
        return np.array([np.nan if score is None else score for score in given], dtype=np.float64)
    given = rows["label"] if "label" in rows.column_names else [None] * len(rows)
    return np.array([IGNORED if label is None or label < 0 else label for label in given], dtype=np.int64)


def class_weights(labels: np.ndarray) -> np.ndarray:
    """(rows,) weights under which each class that occurs weighs the same, and 1 is their mean; 0 without a label."""
    import numpy as np

    asked = labels != IGNORED
    weights = np.zeros(len(labels))
    _, of, counts = np.unique(labels[asked], return_inverse=True, return_counts=True)
    weights[asked] = (asked.sum() / (max(len(counts), 1) * counts))[of]
    return weights


def shares(first: int, second: int, room: int) -> tuple[int, int]:
    """Lengths of two segments that fit into `room` tokens together: the longer one gives up its last token, again and again."""
    short = min(second, max(room - first, room // 2))
    return min(first, room - short), short


def fitted(segments: Segments, max_length: int, question: list[int] | None = None) -> Segments:
    """Segments whose sequence has at most `max_length` tokens with special ones, each cut at its end.

    Args:
        question: follows the first segment and is of it, but is cut only where nothing before it is left to cut.
    """
    question = question or []
    room = max(0, max_length - 1 - len(segments))
    if len(segments) == 1:
        return [segments[0][:room]]
    first, second = shares(len(segments[0]) + len(question), len(segments[1]), room)
    return [[*segments[0][: max(0, first - len(question))], *question][:first], segments[1][:second]]


def framed_length(segments: Segments) -> int:
    """Tokens of a sequence: a start, and a separator after each segment."""
    return 1 + sum(len(part) + 1 for part in segments)


def _features(target: Target, balanced: bool) -> Any:
    from datasets import Features, List, Value

    answer = {"score": Value("float64")} if target is Target.score else {"label": Value("int32")}
    weight = {"weight": Value("float32")} if balanced else {}
    return Features({"ids": List(Value("int32")), "cuts": List(Value("int32")), "length": Value("int32"), **answer, **weight})


# --- what the user should know ------------------------------------------------------------------------------------


def _facts(rows: Dataset, given: np.ndarray, target: Target) -> dict[str, Any]:
    import numpy as np

    asked = given[~np.isnan(given)] if target is Target.score else given[given != IGNORED]
    facts: dict[str, Any] = {"without": len(given) - len(asked)}
    if target is Target.label and len(asked):
        names, counts = class_names(rows), np.bincount(asked)
        counts = np.pad(counts, (0, max(0, len(names) - len(counts))))
        return {**facts, "classes": [[names[i] if i < len(names) else str(i), int(n)] for i, n in enumerate(counts)]}
    if target is Target.score and len(asked):
        return {**facts, "scores": [float(asked.min()), float(asked.max()), float(asked.mean()), float(asked.std())]}
    return facts


def class_names(rows: Dataset) -> tuple[str, ...]:
    """Names of the classes of labelled rows; none where their labels have no names."""
    return tuple(getattr(rows.features.get("label"), "names", None) or ())


def notes(examples: Dataset) -> list[str]:
    """Classes and their rows, or the range of the scores; and how many rows were cut, are empty, or ask for nothing."""
    from llmtrain.data import store

    facts = store.facts(examples)
    rows = facts.get("rows", 0)
    found = [_classes(facts["classes"])] if "classes" in facts else []
    found += ["scores from {:g} to {:g}, mean {:.3g}, standard deviation {:.3g}".format(*facts["scores"])] if "scores" in facts else []
    return found + shortened(examples) + ([f"{facts['without']:,} of {rows:,} rows have no answer and ask for nothing"] if facts.get("without") else [])


def shortened(examples: Dataset) -> list[str]:
    """How many rows were cut, or have nothing to read."""
    from llmtrain.data import store

    facts = store.facts(examples)
    said = {
        "cut": f"rows are longer than {facts.get('max_length')} tokens and are cut, the longer text first, at its end",
        "empty": "rows have a text without a token",
    }
    return [f"{facts[name]:,} of {facts['rows']:,} {text}" for name, text in said.items() if facts.get(name)]


def _classes(counts: list[list[Any]]) -> str:
    named = sorted(((printable(str(name)), int(n)) for name, n in counts), key=lambda item: -item[1])
    if len(named) <= SHOWN:
        return "rows of each class: " + ", ".join(f"{name} {n:,}" for name, n in named)
    return f"{len(named):,} classes, from {named[0][1]:,} rows ({named[0][0]}) to {named[-1][1]:,} ({named[-1][0]})"


# --- batching -----------------------------------------------------------------------------------------------------


def sequences(example: dict[str, Any], symmetric: bool = False) -> list[list[np.ndarray]]:
    """The sequences of an example, each as its one or two segments.

    Args:
        symmetric: each pair a second time, in the other order.
    """
    import numpy as np

    parts = np.split(np.asarray(example["ids"]), np.cumsum(example["cuts"])[:-1])
    found = [parts[i : i + 2] for i in range(0, len(parts), 2)]
    return [order for pair in found for order in (pair, pair[::-1])] if symmetric else found


def asked(examples: list[dict[str, Any]], symmetric: bool = False) -> list[list[list[np.ndarray]]] | None:
    """The sequences of each example; None where the examples come without ids, since their vectors are stored."""
    return [sequences(e, symmetric) for e in examples] if "ids" in examples[0] else None


def framed(segments: list[np.ndarray], vocabulary: Vocabulary) -> masking.Row:
    """[CLS] A [SEP], or [CLS] A [SEP] B [SEP] with its segment ids; the last [SEP] is *extract* where there is such a token."""
    import numpy as np

    last = [vocabulary.separator if vocabulary.extract is None else vocabulary.extract]
    if len(segments) == 1:
        return masking.Row(np.concatenate([[vocabulary.start], segments[0], last]).astype(np.int64))
    a, b = segments
    ids = np.concatenate([[vocabulary.start], a, [vocabulary.separator], b, last]).astype(np.int64)
    types = np.zeros_like(ids)
    types[len(a) + 2 :] = 1
    return masking.Row(ids, None, types)


def batch(
    examples: list[dict[str, Any]], asked: list[list[list[np.ndarray]]] | None, labels: dict[str, torch.Tensor], counts: dict[str, int], vocabulary: Vocabulary
) -> Batch:
    """A batch whose rows are the sequences of all samples in order, right-padded (sequences, T).

    Args:
        asked: the sequences of each example; None: no inputs are made.
    """
    samples = [int(e["sample"]) for e in examples]
    if asked is None:
        return Batch({}, labels, counts, {"tokens": sum(int(e["length"]) for e in examples)}, samples)
    rows = [framed(segments, vocabulary) for of in asked for segments in of]
    # As the order and the budget count them: by the longest sequence of each row, whatever else it has.
    sizes = {"tokens": sum(int(e["length"]) for e in examples)}
    return Batch(masking.padded(rows), labels, counts, sizes, samples)


def following(inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, int]:
    """Labels (B, T) that ask each token of right-padded sequences for the next one, and how many there are; padding is never asked for."""
    import torch

    ids = inputs["input_ids"]
    real = inputs.get("attention_mask", torch.ones_like(ids)).bool()
    labels = torch.full_like(ids, IGNORED)
    labels[:, :-1] = ids[:, 1:].masked_fill(~real[:, 1:], IGNORED)
    return labels, int((labels != IGNORED).sum())


def array(answers: torch.Tensor) -> np.ndarray:
    """Logits as numpy has them, in float64."""
    found: np.ndarray = answers.detach().cpu().double().numpy()  # in this order: MPS has no float64
    return found
