"""What is frozen is computed once: hidden states at a cut, or pooled vectors, on disk, shared by every run that asks.

    decide([Case(depth=4, blocks=6, passes=3, …), …])     →  for each a Decision(use, why, gigabytes), all of them together
    stored(identity, samples, make, lengths, …)           →  Stored, opened where it is there, made where it is not
    stored_together([Wanted(identity, width, dtype), …])  →  several, at other depths, of which one pass makes those that are missing
    Stored.read([3, 8])                                   →  their sequences, padded on the right: (rows, T, W)

    <root>/states/<key>/
        states.bin      the states of all sequences one after another, without padding, in the order in which they were made
        places.i64      for each sequence, sample after sample: its first token in states.bin, its number of tokens
        first.i64       for each sample its first sequence in places.i64, and at the end their number
        about.json      shapes, dtype, what they were made from
        manifest.json   size and sha256 of each, written last
    <root>/states/<key>.lock                    held by whoever makes it; the system releases it when the holder dies
    <root>/states/.tmp-<key>/                   being made; renamed once, when complete

The key is a hash of all that the states depend on, so an entry is never stale. Each process verifies it in full when it
opens it, as it does the token cache: 0.65 s per GB on the machine named at WRITE_S, which a wrong state is not worth. It
does so again where a file has another time or size than it had then.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import time
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set as AbstractSet
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from importlib.metadata import version
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from llmtrain import files
from llmtrain.errors import CheckpointError, ConfigError, DeviceError, LLMTrainError, NonFiniteError, Stopped, require

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor, nn

    from llmtrain.data.store import JSON
    from llmtrain.model.anatomy import Anatomy

FORMAT = 1
FOLDER, STATES, PLACES, FIRST, ABOUT = "states", "states.bin", "places.i64", "first.i64", "about.json"
LIBRARIES = ("torch", "transformers")  # whose versions can change the states that the same weights make
# Padded tokens of a batch of the store pass, whatever the training batch is: a state depends on its neighbours in the
# last bits, so the composition is a function of the data alone. Enough to keep a processor busy, little enough for its caches.
BATCH_TOKENS = 4096

# What the disk costs, in seconds per GB, measured on one thread of an EPYC Zen 4 (a virtual disk, 0.5 GB and 1 GB of
# rows of 5 to 60 tokens × 384). Making: write and fsync 0.7, sha256 of the manifest 0.65, sha256 when read back 0.65.
# Reading: batches of 16 random rows from the page cache, 0.15 (fp32) to 0.24 (bf16).
WRITE_S, OPEN_S, READ_S = 2.0, 0.65, 0.25
# What a block does in a second on one CPU thread: one of the same processor ran whole training steps at 78 to 93 GFLOP/s in
# fp32 and at 115 to 135 in bf16.
FLOPS = 1e11
WORTH = 1.05  # times cheaper: below, the gain is smaller than what was seen between two equal runs
SPARE = 0.9  # of the free disk that states may take: checkpoints want room too
# Files younger than this when they were verified are verified again: within the grain of a file system's clock (2 s on
# FAT) a change of the same size would not show.
YOUNG_S = 2.0
WAIT_S = 0.2  # between two looks at whether one is still to wait for another process


class Use(Enum):
    auto = "auto"
    always = "always"
    never = "never"


class Dtype(Enum):
    auto = "auto"
    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Whether the frozen part is computed once.

    Attributes:
        use: auto decides by cost, and says so; always is an error where it cannot be; never.
        max_gb: of disk for all that one run stores, of its training, validation and test examples together, GB (10⁹ bytes).
        dtype: of the numbers on disk; auto: that of the run's precision, so that nothing is rounded that was not before
            in fp32. Of an fp32 run, fp16 takes half the disk and is nearer than bf16, up to 65,504.
    """

    use: Use
    max_gb: float
    dtype: Dtype

    def __post_init__(self) -> None:
        require(math.isfinite(self.max_gb) and self.max_gb > 0, "max_gb", self.max_gb, "a number of GB above 0")

    def stored_as(self, precision: str) -> str:
        """fp32, bf16 or fp16, for a run of that precision."""
        return precision if self.dtype is Dtype.auto else self.dtype.value


# --- whether it pays ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Decision:
    """Whether to store, why in one line, and the size on disk in GB (10⁹ bytes)."""

    use: bool
    why: str
    gigabytes: float


@dataclass(frozen=True)
class Piece:
    """What one data set has in a store: an entry.

    Attributes:
        entry: its name; pieces of one name are stored once.
        source: pieces of one source come from one pass, which goes as deep as the deepest of them.
        tokens: that the pass goes through, without padding.
        gigabytes: of the entry, in GB (10⁹ bytes).
        ready: it is there already.
    """

    entry: str
    source: str
    tokens: int
    gigabytes: float
    ready: bool


@dataclass(frozen=True, kw_only=True)
class Case:
    """Runs that ask the same of the cache.

    Attributes:
        depth: blocks below the lowest one that learns.
        pooled: one vector per sequence is stored, and nothing but a head on it learns.
        passes: how often one of the runs goes through the data, evaluation included.
        width: numbers of a hidden state.
        members: how many runs they are.
        flops: of the device in a block's forward, per second.
    """

    settings: Settings
    depth: int
    blocks: int
    pooled: bool
    passes: float
    width: int
    pieces: Sequence[Piece]
    members: int = 1
    flops: float = FLOPS

    @property
    def tokens(self) -> int:
        return max(sum(piece.tokens for piece in self.pieces), 1)

    @property
    def gigabytes(self) -> float:
        return sum(piece.gigabytes for piece in self.pieces)

    @property
    def ready(self) -> bool:
        return all(piece.ready for piece in self.pieces)

    @property
    def missing(self) -> list[Piece]:
        return [piece for piece in self.pieces if not piece.ready]

    @property
    def what(self) -> str:
        there = " (there already)" if self.ready else ""
        return f"{'pooled vectors' if self.pooled else 'states'} above {self.depth} of {self.blocks} blocks, {readable(self.gigabytes * 1e9)}{there}"


def decide(cases: Sequence[Case], *, free_gb: float) -> list[Decision]:
    """For each case whether storing what its lower blocks make is cheaper than making it again in every pass of every run.

    What is stored is paid once, however many runs read it, and one pass makes the states of all depths. If the disk has
    no room for all, what saves least for each GB is left out.

    Args:
        free_gb: of the disk, `free_gb()`.

    Raises:
        ConfigError: `always`, where nothing is frozen below, or above `max_gb`.
        DeviceError: `always`, where the disk has no room.
    """
    refused = {i: why for i, case in enumerate(cases) if case.settings.use is not Use.never and (why := _refusal(case, free_gb))}
    for i, why in refused.items():
        if cases[i].settings.use is Use.always:
            raise why
    balance = _Balance(cases)
    possible = {i for i, case in enumerate(cases) if case.settings.use is not Use.never} - refused.keys()
    chosen, crowded = _that_fit(balance, possible, free_gb)
    found = []
    for i, case in enumerate(cases):
        if case.settings.use is Use.never:
            said = "cache.use=never: the frozen blocks are computed in every pass"
        elif i in refused:
            said = refused[i].what
        elif i in crowded:
            said = f"{case.what}, are left out: {free_gb:,.2f} GB are free, a tenth of which is left alone, and what else is stored saves more for each GB"
        else:
            said = balance.said(i, chosen)
        found.append(Decision(i in chosen, said, case.gigabytes))
    return found


def _refusal(case: Case, free_gb: float) -> LLMTrainError | None:
    """Why states cannot be stored at all."""
    if case.depth < 1:
        return ConfigError("no block is frozen below the lowest one that learns: there is nothing to store", fix="cache.use=auto, or freeze the first blocks")
    if case.ready:
        return None
    if case.gigabytes > case.settings.max_gb:
        what = f"the states take {case.gigabytes:,.2f} GB, cache.max_gb allows {case.settings.max_gb:,g}"
        return ConfigError(what, fix=f"cache.max_gb={math.ceil(case.gigabytes)}, a shorter data.max_length, or cache.use=never")
    return _no_room("the states take", sum(piece.gigabytes for piece in case.missing), free_gb)


def _no_room(what: str, gigabytes: float, free_gb: float) -> DeviceError | None:
    if gigabytes <= SPARE * free_gb:
        return None
    return DeviceError(
        f"{what} {gigabytes:,.2f} GB, {free_gb:,.2f} GB are free on the disk of the cache, a tenth of which is left alone",
        fix="`llmtrain cache clear`, LLMTRAIN_CACHE=FOLDER on another disk, or cache.use=never",
    )


def _that_fit(balance: _Balance, possible: set[int], free_gb: float) -> tuple[set[int], set[int]]:
    """(the cases to store, those for which the disk has no room)."""
    crowded: set[int] = set()
    while True:
        chosen = balance.best(possible - crowded)
        lack = _no_room("the states that cache.use=always asks for take", balance.gigabytes(chosen), free_gb)
        if lack is None:
            return chosen, crowded
        # An entry goes with all cases that read it: one of them alone would free nothing.
        readers = [{i for i in chosen if entry in (piece.entry for piece in balance.cases[i].missing)} for entry in balance.missing(chosen)]
        movable = [some for some in readers if not any(balance.cases[i].settings.use is Use.always for i in some)]
        if not movable:
            raise lack
        crowded |= min(movable, key=lambda some: balance.saved_per_gb(some, chosen))


class _Balance:
    """What cases cost, in forwards of one block over one token.

    A block that learns costs three forwards: itself, and backward twice. A forward of a block is 24·W² operations per
    token, two for each of its 12·W² weights (Kaplan et al. 2020, arXiv:2001.08361, section 2.1; attention left out).
    Measured with 6 blocks, 3 passes, and their own store pass: 1.09 times cheaper at depth 2, 1.36 at 4, 1.65 at 5, 2.8 at 6;
    this says 1.10, 1.36, 1.71 and 2.97.
    """

    def __init__(self, cases: Sequence[Case]) -> None:
        self.cases = cases

    # --- costs

    def again(self, i: int) -> float:
        """Of all runs of a case, if all is computed in every pass."""
        case = self.cases[i]
        return case.members * case.passes * (case.depth + self._learning(i)) * case.tokens

    def reading(self, i: int) -> float:
        """Of all runs of a case, if they read what is stored: they open it, read it in every pass, and compute the rest."""
        case = self.cases[i]
        return case.members * (case.passes * self._learning(i) * case.tokens + self._disk(i, OPEN_S + case.passes * READ_S, case.gigabytes))

    def making(self, chosen: Iterable[int]) -> float:
        """Of writing what is missing, each entry once, and of the passes that make it."""
        chosen = list(chosen)
        # The making of an entry ends with its being read back, so one run does not open it once more.
        written = {piece.entry: self._disk(i, WRITE_S - OPEN_S, piece.gigabytes) for i in chosen for piece in self.cases[i].missing}
        return sum(written.values()) + self._passes(chosen)

    def _passes(self, chosen: Iterable[int]) -> float:
        deepest: dict[str, int] = {}
        for i in chosen:
            for piece in self.cases[i].missing:
                deepest[piece.source] = max(deepest.get(piece.source, 0), self.cases[i].depth * piece.tokens)
        return sum(deepest.values())

    def _learning(self, i: int) -> float:
        return 0 if self.cases[i].pooled else 3 * (self.cases[i].blocks - self.cases[i].depth)

    def _disk(self, i: int, seconds_per_gb: float, gigabytes: float) -> float:
        return seconds_per_gb * gigabytes * self.cases[i].flops / (24 * self.cases[i].width ** 2)

    def missing(self, chosen: Iterable[int]) -> dict[str, float]:
        """Entry → GB of what is not there yet."""
        return {piece.entry: piece.gigabytes for i in chosen for piece in self.cases[i].missing}

    def gigabytes(self, chosen: Iterable[int]) -> float:
        return sum(self.missing(chosen).values())

    # --- which to store

    def best(self, possible: set[int]) -> set[int]:
        """The cases that are cheapest stored, in all; those among them that have to be, whatever it costs."""
        found: set[int] = set()
        for alike in self._of_one_source(possible):
            # A pass costs what its deepest case costs: each depth is tried as the deepest one, then what does not pay is dropped.
            limits = sorted({0, *(self.cases[i].depth for i in alike)}, reverse=True)
            tried = [self._pruned({i for i in alike if self._must(i) or self.cases[i].depth <= limit}) for limit in limits]
            found |= max(tried, key=self._score)
        return found

    def _must(self, i: int) -> bool:
        """Vectors are small, and what other seeds, rates and heads ask for again."""
        return self.cases[i].pooled or self.cases[i].settings.use is Use.always

    def _score(self, chosen: Iterable[int], worth: float | None = None) -> float:
        """What storing these saves, where what it costs counts `worth` times, by default WORTH; not below 0 where it pays."""
        chosen, worth = list(chosen), WORTH if worth is None else worth
        return sum(self.again(i) - worth * self.reading(i) for i in chosen) - worth * self.making(chosen)

    def _pruned(self, chosen: set[int]) -> set[int]:
        while droppable := [i for i in chosen if not self._must(i)]:
            worst = max(droppable, key=lambda i: self._score(chosen - {i}))
            if self._score(chosen - {worst}) <= self._score(chosen):
                break
            chosen = chosen - {worst}
        return chosen

    def _of_one_source(self, possible: set[int]) -> list[set[int]]:
        """Cases that share a pass, or each a pass with a third: the decision on one is a decision on the others."""
        found: list[tuple[set[int], set[str]]] = []
        for i in sorted(possible):
            sources = {piece.source for piece in self.cases[i].pieces}
            near = [group for group in found if group[1] & sources]
            found = [group for group in found if group not in near]
            found.append(({i}.union(*(group[0] for group in near)), sources.union(*(group[1] for group in near))))
        return [members for members, _ in found]

    def saved_per_gb(self, some: AbstractSet[int], chosen: set[int]) -> float:
        gigabytes = self.gigabytes(chosen) - self.gigabytes(chosen - some)
        return (self._score(chosen, 1) - self._score(chosen - some, 1)) / max(gigabytes, 1e-12)

    # --- in words

    def said(self, i: int, chosen: set[int]) -> str:
        case = self.cases[i]
        of_all = case.members * case.tokens
        again, once = self.again(i) / of_all, (self.reading(i) + self._share(i, chosen)) / of_all
        cost = f"{case.passes:.3g} passes cost {once:.3g} forwards of one block instead of {again:.3g}"
        if i not in chosen:
            return f"{case.what}, would not pay: {cost}"
        runs, others = self._company(i, chosen)
        together = f", in one pass with {others} other {'boundary' if others == 1 else 'boundaries'}" if others else ""
        if case.settings.use is Use.always:
            return f"cache.use=always: {case.what}{together}; {cost}"
        shared = f"{case.what}, are computed once{f' for {runs} runs' if runs > 1 else ''}{together}"
        if again >= WORTH * once:
            return f"{shared}: {cost}"
        return f"{shared}, for later runs: in {'this one' if runs == 1 else 'each of these'} {cost}"

    def _share(self, i: int, chosen: set[int]) -> float:
        """What a case has to bear of the making: of what is written a part for each of its runs, of passes as much as what it saves can bear."""
        if i not in chosen:
            return self.making(chosen | {i}) - self.making(chosen)
        alike = next(group for group in self._of_one_source(chosen) if i in group)
        bears = {j: max(0.0, self.again(j) - WORTH * (self.reading(j) + self._writing(j, chosen))) for j in alike if self.cases[j].missing}
        if i not in bears:
            return 0.0
        whole = sum(bears.values())
        return self._writing(i, chosen) + self._passes(alike) * (bears[i] / whole if whole else 1 / len(bears))

    def _writing(self, i: int, chosen: set[int]) -> float:
        case = self.cases[i]
        readers = {p.entry: sum(self.cases[j].members for j in chosen if p.entry in (q.entry for q in self.cases[j].pieces)) for p in case.missing}
        return sum(self._disk(i, WRITE_S - OPEN_S, piece.gigabytes) * case.members / readers[piece.entry] for piece in case.missing)

    def _company(self, i: int, chosen: set[int]) -> tuple[int, int]:
        """(runs that read what this case does, other boundaries that come from the same pass)."""
        entries = {piece.entry for piece in self.cases[i].pieces}
        sources = {piece.source for piece in self.cases[i].missing}
        runs = sum(self.cases[j].members for j in chosen if entries & {piece.entry for piece in self.cases[j].pieces})
        made = {(self.cases[j].depth, self.cases[j].pooled) for j in chosen if sources & {piece.source for piece in self.cases[j].missing}}
        return runs, len(made - {(self.cases[i].depth, self.cases[i].pooled)})


def free_gb() -> float:
    """GB (10⁹ bytes) that are free on the disk of the store."""
    from llmtrain.data import store

    return shutil.disk_usage(store.root()).free / 1e9


def readable(number: float) -> str:
    """A number of bytes as a person reads it."""
    return f"{number / 1e9:,.2f} GB" if number >= 1e9 else f"{number / 1e6:,.1f} MB"


# --- what is stored -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stored:
    """Stored states. Each process maps the file when it reads for the first time, so this can be sent to workers.

    Attributes:
        path: the entry's folder.
        samples: rows of the data set; each has one sequence or several.
        tokens: of all sequences; where vectors are stored, as many as sequences.
        width: numbers of a state.
        dtype: fp32, bf16 or fp16.
        sha256: of all states. The same machine and versions make the same again.
    """

    path: Path
    samples: int
    sequences: int
    tokens: int
    width: int
    dtype: str
    sha256: str

    def read(self, samples: Sequence[int], length: int | None = None) -> Tensor:
        """The sequences of `samples`, in their order: (rows, T, W) in the stored dtype on the CPU, 0 where there is padding.

        Args:
            length: T; None: that of the longest.

        Raises:
            CheckpointError: the entry was removed since it was opened.
        """
        import torch

        places = self._places_of(samples)
        longest = int(places[:, 1].max(initial=0)) if length is None else length
        states = torch.zeros(len(places), longest, self.width, dtype=torch_dtype(self.dtype))
        rows = states.view(_bits(self.dtype)).numpy()  # numpy has no bf16: bits are copied
        for row, (start, tokens) in zip(rows, places, strict=True):
            row[:tokens] = self._states[start : start + tokens]
        return states

    def lengths(self, samples: Sequence[int]) -> list[int]:
        """The tokens of each sequence of `samples`, in the order of `read`."""
        return [int(n) for n in self._places_of(samples)[:, 1]]

    def _places_of(self, samples: Sequence[int]) -> np.ndarray:
        """(first token, tokens) of each sequence of `samples`: (rows, 2)."""
        import numpy as np

        first, places = self._index
        return np.concatenate([places[:0], *(places[first[i] : first[i + 1]] for i in samples)])

    @cached_property
    def _index(self) -> tuple[np.ndarray, np.ndarray]:
        import numpy as np

        with _still_there(self.path):
            return np.fromfile(self.path / FIRST, "<i8"), np.fromfile(self.path / PLACES, "<i8").reshape(-1, 2)

    @cached_property
    def _states(self) -> np.ndarray:
        """(tokens, W), mapped; bits where numpy lacks the type."""
        import numpy as np

        kind = f"<i{size_of(self.dtype)}"
        with _still_there(self.path):
            flat = np.memmap(self.path / STATES, kind, "r") if self.tokens else np.empty(0, kind)  # nothing cannot be mapped
        return flat.reshape(-1, self.width)

    def __getstate__(self) -> dict[str, Any]:
        """Without what was opened: a map would be sent as a copy of the file."""
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}


@contextmanager
def _still_there(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: the stored states were removed while a run used them", fix="start the run again: it makes them again") from error


def size_of(dtype: str) -> int:
    """Bytes of a number of type fp32, bf16 or fp16."""
    return {"fp32": 4, "bf16": 2, "fp16": 2}[dtype]


def torch_dtype(name: str) -> torch.dtype:
    import torch

    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[name]


def _bits(name: str) -> torch.dtype:
    import torch

    return {4: torch.int32, 2: torch.int16}[size_of(name)]


# --- opened, or made ----------------------------------------------------------------------------------------------


def weights_fingerprint(digests: Iterable[tuple[str, str]]) -> str:
    """A hash of weights, given each one's name and `tensor_digest`, whatever the order."""
    return hashlib.sha256(json.dumps(sorted([name, digest] for name, digest in digests)).encode()).hexdigest()


def tensor_digest(tensor: Tensor) -> str:
    """A hash of a tensor's dtype, shape and bits."""
    import torch

    digest = hashlib.sha256(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
    if tensor.numel():
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def stored(
    identity: Mapping[str, JSON],
    samples: int,
    make: Callable[[list[int]], list[list[Tensor]]],
    lengths: Sequence[int],
    *,
    width: int,
    dtype: str,
    say: Callable[[str], None],
) -> Stored:
    """The states of `samples` samples, from the disk if they were made before.

    Args:
        identity: all that they depend on, for JSON: the fingerprint of the frozen weights, tokenizer, data, max_length,
            depth or pooling, the precision of the pass, dtype. Versions of the libraries and the format are added here.
        make: for each of the samples that it is given, its sequences: tensors (T, W), or vectors (W,), without padding.
        lengths: input tokens of each sample, of all its sequences together.
        width: W.
        dtype: fp32, bf16 or fp16, to which the states are rounded.
        say: told, in one line, why stored states are made again, or whom one waits for.

    Raises:
        NonFiniteError: a state is not a number.
        ConfigError: a state is too large for `dtype`.
        DeviceError: the disk is full, or cannot be written.
    """
    wanted = [Wanted(identity=identity, width=width, dtype=dtype)]
    return stored_together(wanted, samples, lambda missing: lambda batch: [make(batch)], lengths, say=say)[0]


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """One of several entries over the same samples: see `stored` for what these are."""

    identity: Mapping[str, JSON]
    width: int
    dtype: str


Maker = Callable[[list[int]], "list[list[list[Tensor]]]"]


def stored_together(
    wanted: Sequence[Wanted],
    samples: int,
    maker: Callable[[Sequence[int]], Maker],
    lengths: Sequence[int],
    *,
    say: Callable[[str], None],
    progress: Callable[[int, int], None] = lambda done, total: None,
    interrupted: Callable[[], bool] = lambda: False,
) -> list[Stored]:
    """Several entries over the same samples, each as `stored` would have it; those that are missing are made in one pass.

    What another process is making is waited for. One batch of states, of all that is made, is in memory at a time.

    Args:
        maker: told the numbers of the wanted entries that are missing, gives what makes these of a batch of samples: for
            each of them what `make` of `stored` gives.
        lengths: input tokens of each sample, of all its sequences together.
        progress: told, after every batch, how many are done and how many there are.
        interrupted: asked between batches, and while one waits.

    Raises:
        Stopped: `interrupted` said so; what was not complete is removed.
        NonFiniteError, ConfigError, DeviceError: as `stored`.
    """
    from llmtrain.data import store

    entries = [_entry(one.identity) for one in wanted]
    expected = [{"samples": samples, "width": one.width, "dtype": one.dtype} for one in wanted]
    opened = dict[Path, Stored]()
    with store._translated(store.root() / FOLDER):
        (store.root() / FOLDER).mkdir(parents=True, exist_ok=True)
        _look(entries, expected, opened)  # without the locks: what was renamed here is complete
        with _locked([entry for entry in entries if entry not in opened], say, interrupted):
            why = _look(entries, expected, opened)
            missing = [i for i, entry in enumerate(entries) if entry not in opened and entry not in entries[:i]]
            for entry in (entries[i] for i in missing if why[entries[i]]):
                say(f"cache: states are made again: {why[entry]} ({entry})")
            if missing:
                plans = [_Plan(entries[i], wanted[i].identity, expected[i]) for i in missing]
                _build(plans, maker(missing), lengths, progress, interrupted)
                why = _look(entries, expected, opened)
    for entry in entries:
        if entry not in opened:
            raise DeviceError(f"the cache cannot read back what it just wrote: {why[entry]}", fix="set LLMTRAIN_CACHE to a folder on another disk")
    return [opened[entry] for entry in entries]


def _look(entries: Sequence[Path], expected: Sequence[Mapping[str, JSON]], opened: dict[Path, Stored]) -> dict[Path, str]:
    """Open what is there and not yet `opened`; of the rest, why it cannot be: nothing, where there is no entry."""
    lacking = {}
    for entry, facts in zip(entries, expected, strict=True):
        if entry not in opened:
            found, lacking[entry] = _open(entry, facts)
            opened.update({entry: found} if found is not None else {})
    return lacking


@contextmanager
def _locked(entries: Iterable[Path], say: Callable[[str], None], interrupted: Callable[[], bool]) -> Iterator[None]:
    """Hold the locks of entries. All who take several take them in one order, so nobody waits in a circle."""
    from filelock import FileLock, Timeout

    with ExitStack() as held:
        for entry in sorted(set(entries)):
            lock, waits = FileLock(entry.with_name(f"{entry.name}.lock")), False
            while not lock.is_locked:
                try:
                    lock.acquire(timeout=WAIT_S if waits else 0)
                except Timeout:
                    if not waits:
                        say(f"cache: waiting for another process that makes {entry.parent.name} ({entry})")
                    waits = True
                    _stop_where(interrupted)
            held.callback(lock.release)
        yield


def _stop_where(interrupted: Callable[[], bool]) -> None:
    if interrupted():
        raise Stopped("stopped while states were stored; what was not complete is removed", fix="the same command makes what is missing")


def ready(identity: Mapping[str, JSON]) -> bool:
    """Whether the states are there; an entry is verified in full."""
    return _open(_entry(identity), {})[0] is not None


def batches(lengths: Sequence[int]) -> list[list[int]]:
    """The samples of each batch of the store pass: by length, at most BATCH_TOKENS padded tokens or one sample."""
    found: list[list[int]] = []
    for sample in sorted(range(len(lengths)), key=lengths.__getitem__):  # stable: ties stay in the order of the data
        if found and (len(found[-1]) + 1) * lengths[sample] <= BATCH_TOKENS:
            found[-1].append(sample)
        else:
            found.append([sample])
    return found


def _entry(identity: Mapping[str, JSON]) -> Path:
    """The folder of what was made from `identity`, with these versions of the libraries."""
    from llmtrain.data import store

    whole = {"identity": dict(identity), "format": FORMAT, "batch_tokens": BATCH_TOKENS, "libraries": {library: version(library) for library in LIBRARIES}}
    return store.root() / FOLDER / hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()


def _open(entry: Path, expected: Mapping[str, JSON]) -> tuple[Stored | None, str]:
    """An entry that verifies and is what is `expected`; or None and why not: nothing, where there is no entry."""
    if not entry.exists():
        return None, ""
    if problem := _problem(entry):
        return None, problem
    try:
        about = json.loads((entry / ABOUT).read_text(encoding="utf-8"))
        for name, value in {"format": FORMAT, **expected}.items():
            if about[name] != value:
                return None, f"its {name} is {about[name]}, this run has {value}"
        digest = json.loads((entry / files.MANIFEST).read_text(encoding="utf-8"))["files"][STATES]["sha256"]
        facts = {name: about[name] for name in ("samples", "sequences", "tokens", "width", "dtype")}
        return Stored(path=entry, sha256=digest, **facts), ""
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        return None, f"it cannot be read: {type(error).__name__}: {error}"


# What this process has verified: entry → (name, time in ns, size) of its files.
_VERIFIED: dict[Path, frozenset[tuple[str, int, int]]] = {}


def _problem(entry: Path) -> str | None:
    """What is wrong with an entry. Its bytes are read once in each process, and again where a file was changed since."""
    try:
        seen = frozenset((file.name, file.stat().st_mtime_ns, file.stat().st_size) for file in os.scandir(entry))
    except OSError:
        seen = frozenset()
    if seen and _VERIFIED.get(entry) == seen:
        return None
    _VERIFIED.pop(entry, None)
    found = files.problem(entry)
    if found is None and max((written for _, written, _ in seen), default=0) < time.time_ns() - YOUNG_S * 1e9:
        _VERIFIED[entry] = seen
    return found


@dataclass(frozen=True)
class _Plan:
    """An entry to be made."""

    entry: Path
    identity: Mapping[str, JSON]
    expected: Mapping[str, Any]


def _build(plans: Sequence[_Plan], make: Maker, lengths: Sequence[int], progress: Callable[[int, int], None], interrupted: Callable[[], bool]) -> None:
    """Write entries beside their places, then rename them there. One batch of states is in memory at a time."""
    from llmtrain.data import store

    if any(len(lengths) != plan.expected["samples"] for plan in plans):
        raise ValueError(f"{len(lengths)} lengths of {plans[0].expected['samples']} samples")
    for plan in plans:
        store._sweep(plan.entry)
    with ExitStack() as folders:
        writers = [_Writer(folders.enter_context(files.new_folder(plan.entry)), plan) for plan in plans]
        with ExitStack() as opened:
            for writer in writers:
                opened.enter_context(writer)
            todo = batches(lengths)
            for done, batch in enumerate(todo):
                _stop_where(interrupted)
                _write_batch(writers, batch, make)
                progress(done + 1, len(todo))
        for writer in writers:
            writer.describe(len(lengths))


def _write_batch(writers: Sequence[_Writer], batch: list[int], make: Maker) -> None:
    for writer, of_entry in zip(writers, make(batch), strict=True):
        for sample, sequences in zip(batch, of_entry, strict=True):
            for sequence in sequences:
                writer.add(sample, sequence)


class _Writer:
    """Writes one entry into a folder, batch after batch."""

    def __init__(self, folder: Path, plan: _Plan) -> None:
        self.folder, self.plan = folder, plan
        self.made, self.tokens = array("q"), 0  # made: (sample, first token, tokens) of each sequence, one after another

    def __enter__(self) -> _Writer:
        self.file = (self.folder / STATES).open("wb")
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def add(self, sample: int, sequence: Tensor) -> None:
        written = _write(self.file, sequence, sample, self.plan.expected["width"], self.plan.expected["dtype"])
        self.made.extend((sample, self.tokens, written))
        self.tokens += written

    def describe(self, samples: int) -> None:
        """Write all else, when the states of all samples are there."""
        import numpy as np

        made = np.array(self.made, "i8").reshape(-1, 3)
        made = made[np.argsort(made[:, 0], kind="stable")]  # from the order in which they were made to that of the data
        files.write(self.folder / FIRST, np.searchsorted(made[:, 0], np.arange(samples + 1)).astype("<i8").tobytes())
        files.write(self.folder / PLACES, made[:, 1:].astype("<i8").tobytes())
        about = {"format": FORMAT, **self.plan.expected, "sequences": len(made), "tokens": self.tokens, "identity": dict(self.plan.identity)}
        files.write(self.folder / ABOUT, json.dumps(about, indent=2).encode())
        files.write_manifest(self.folder)


def _write(file: BinaryIO, sequence: Tensor, sample: int, width: int, dtype: str) -> int:
    """Append the states (T, W), or a vector (W,), of one sequence; how many they are."""
    import torch

    states = sequence.detach().reshape(-1, sequence.shape[-1])
    if states.shape[1] != width:
        raise ValueError(f"sample {sample}: states of {states.shape[1]} numbers instead of {width}")
    rounded = states.to("cpu", torch_dtype(dtype)).contiguous()
    if not torch.isfinite(rounded).all():
        raise _not_finite(states, sample, dtype)
    file.write(rounded.view(torch.uint8).numpy().tobytes())
    return len(rounded)


def _not_finite(states: Tensor, sample: int, dtype: str) -> LLMTrainError:
    import torch

    if not torch.isfinite(states).all():
        return NonFiniteError(f"the frozen blocks make a state of sample {sample} that is not a number", fix="precision=fp32, or look at the weights")
    what = (
        f"cache.dtype={dtype}: a state of sample {sample} reaches {float(states.abs().max()):,.0f}, {dtype} ends at {torch.finfo(torch_dtype(dtype)).max:,.0f}"
    )
    return ConfigError(what, allowed="fp32, bf16", fix="cache.dtype=bf16")


# --- what makes token states --------------------------------------------------------------------------------------


Inputs = Callable[[list[int]], "tuple[dict[str, Tensor], list[int], list[int]]"]


def prefix_maker(
    model: nn.Module,
    anatomy: Anatomy,
    k: int,
    inputs_of: Inputs,
    *,
    device: torch.device | str,
    precision_context: Callable[[], AbstractContextManager[Any]],
) -> Callable[[list[int]], list[list[Tensor]]]:
    """A `make` for `stored`: what the first k blocks hand on, each row cut to its true length.

    Args:
        model: on `device`, of that anatomy; in eval() while it is called, and without gradients.
        inputs_of: for samples, the inputs of the model (rows, T) padded on the right, the true length of each row, and
            how many rows each sample has.
        precision_context: makes the context of a forward, such as Accelerator.autocast.
    """
    make = boundaries_maker(model, anatomy, [k], inputs_of, device=device, precision_context=precision_context)
    return lambda samples: make(samples)[0]


def boundaries_maker(
    model: nn.Module,
    anatomy: Anatomy,
    depths: Sequence[int],
    inputs_of: Inputs,
    *,
    device: torch.device | str,
    precision_context: Callable[[], AbstractContextManager[Any]],
    above: Callable[[dict[str, Tensor]], Sequence[Tensor]] | None = None,
) -> Maker:
    """What makes, of samples, the states above each of `depths` blocks in one forward, which ends at the deepest of them.

    Args:
        above: where more is wanted than states: runs the body on inputs of the model, and gives for each further entry
            one vector for each row (rows, W).
    """
    import inspect

    import torch

    from llmtrain.model.anatomy import prefix
    from llmtrain.model.base import evaluating

    # Keys and values for later tokens would be kept for nothing; and with them some families miss the borders of documents.
    extra = {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}

    def make(samples: list[int]) -> list[list[list[Tensor]]]:
        inputs, lengths, counts = inputs_of(samples)
        if sum(counts) != len(lengths):
            raise ValueError(f"{sum(counts)} rows are said, {len(lengths)} are there")
        inputs = {name: tensor.to(device) for name, tensor in inputs.items()}
        with evaluating(model), torch.no_grad(), precision_context():
            if above is not None:
                with _watched(model, anatomy, depths) as seen:
                    vectors = [found.float().cpu() for found in above(inputs)]
            else:
                deepest, vectors = max(depths), []
                with _watched(model, anatomy, [k for k in depths if k != deepest]) as seen:
                    seen[deepest] = prefix(model, anatomy, deepest, inputs | extra).cpu()
        cut = [[states[:length] for states, length in zip(seen[k], lengths, strict=True)] for k in depths]
        cut += [list(found[:, None]) for found in vectors]
        ends = list(accumulate(counts))
        return [[rows[end - count : end] for end, count in zip(ends, counts, strict=True)] for rows in cut]

    return make


@contextmanager
def _watched(model: nn.Module, anatomy: Anatomy, depths: Iterable[int]) -> Iterator[dict[int, Tensor]]:
    """Note what blocks hand on while a forward runs: depth → (rows, T, W) on the CPU.

    As copies: a block above may change in place what it is given.
    """
    seen: dict[int, Tensor] = {}

    def note(k: int, output: Any) -> None:
        states = output if anatomy.returns is None else output[0]
        states = states if anatomy.batch_first else states.transpose(0, 1)
        seen[k] = states.detach().to("cpu", copy=True).contiguous()

    blocks = list(model.get_submodule(anatomy.stack).children())
    hooks = [blocks[k - 1].register_forward_hook(lambda module, args, output, k=k: note(k, output)) for k in set(depths)]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


# --- looking and clearing -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Entry:
    """One entry of the store.

    Attributes:
        made: when, in seconds since 1970.
        about: shapes, dtype and identity; empty where that cannot be read, so that the next run makes the entry again.
    """

    path: Path
    bytes: int
    made: float
    about: Mapping[str, JSON]


def listed() -> list[Entry]:
    """The entries, the newest first. None is verified: that takes seconds per GB."""
    found = [Entry(path, _bytes(path), path.stat().st_mtime, _about(path)) for path in _folders() if not path.name.startswith(".")]
    return sorted(found, key=lambda entry: -entry.made)


def clear() -> tuple[int, int]:
    """Remove all entries but those that are being made, and what dead makers left: (entries, bytes)."""
    from filelock import FileLock, Timeout

    from llmtrain.data import store

    number = freed = 0
    for path in _folders():
        unfinished = path.name.startswith(".tmp-")
        key = path.name.split("-")[1] if unfinished else path.name
        try:
            with store._translated(path.parent), FileLock(path.with_name(f"{key}.lock"), timeout=0):
                taken = _bytes(path)
                shutil.rmtree(path)
                number, freed = number + (not unfinished), freed + taken
        except Timeout:
            continue
    return number, freed


def _folders() -> list[Path]:
    from llmtrain.data import store

    return sorted(path for path in (store.root() / FOLDER).glob("*") if path.is_dir())


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _about(folder: Path) -> dict[str, JSON]:
    try:
        return dict(json.loads((folder / ABOUT).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError):
        return {}
