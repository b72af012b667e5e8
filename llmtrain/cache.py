"""What is frozen is computed once: hidden states at a cut, or pooled vectors, on disk, shared by every run that asks.

    decide(settings, depth=4, blocks=6, passes=3, …)      →  Decision(use, why, gigabytes)
    stored(identity, samples, make, lengths, …)           →  Stored, opened where it is there, made where it is not
    Stored.read([3, 8])                                   →  their sequences, padded on the right: (rows, T, W)

    <root>/states/<key>/
        states.bin      the states of all sequences one after another, without padding, in the order in which they were made
        places.i64      for each sequence, sample after sample: its first token in states.bin, its number of tokens
        first.i64       for each sample its first sequence in places.i64, and at the end their number
        about.json      shapes, dtype, what they were made from
        manifest.json   size and sha256 of each, written last
    <root>/states/<key>.lock                    held by whoever makes it; the system releases it when the holder dies
    <root>/states/.tmp-<key>-<process>/         being made; renamed once, when complete

The key is a hash of all that the states depend on, so an entry is never stale. It is verified in full each time it is
opened, as the token cache is: 0.65 s per GB on the machine named at WRITE_S, which a wrong state is not worth.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from importlib.metadata import version
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from llmtrain import files
from llmtrain.errors import CheckpointError, ConfigError, DeviceError, LLMTrainError, NonFiniteError, require

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
# What a block does in a second where the caller does not know better: one thread of the same processor ran whole training
# steps at 78 to 93 GFLOP/s in fp32 and at 115 to 135 in bf16.
FLOPS = 1e11
WORTH = 1.05  # times cheaper: below, the gain is smaller than what was seen between two equal runs
SPARE = 0.9  # of the free disk that states may take: checkpoints want room too


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
        max_gb: of disk for the states of one data set at one depth, GB (10⁹ bytes).
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


def decide(
    settings: Settings,
    *,
    depth: int,
    blocks: int,
    pooled: bool,
    passes: float,
    tokens: int,
    sequences: int,
    width: int,
    bytes_per_number: int,
    ready: bool,
    free_gb: float,
    flops: float = FLOPS,
) -> Decision:
    """Whether storing what the first `depth` of `blocks` blocks make is cheaper than making it again in every pass.

    Args:
        depth: blocks below the lowest one that learns.
        pooled: one vector per sequence is stored, and nothing but a head on it learns.
        passes: how often the run goes through the data, evaluation included.
        tokens: of all sequences, without padding.
        width: numbers of a state, or of a pooled vector.
        ready: the entry is there already.
        free_gb: of the disk, `free_gb()`.
        flops: of the device in a block's forward, per second.

    Raises:
        ConfigError: `always`, where nothing is frozen below, or above `max_gb`.
        DeviceError: `always`, where the disk has no room.
    """
    gigabytes = (sequences if pooled else tokens) * width * bytes_per_number / 1e9
    if settings.use is Use.never:
        return Decision(False, "cache.use=never: the frozen blocks are computed in every pass", gigabytes)
    refusal = _refusal(settings, depth, gigabytes, ready, free_gb)
    if refusal:
        if settings.use is Use.always:
            raise refusal
        return Decision(False, refusal.what, gigabytes)
    again, once = _costs(depth, blocks, pooled, passes, tokens, width, gigabytes, ready, flops)
    what = f"{'pooled vectors' if pooled else 'states'} above {depth} of {blocks} blocks, {readable(gigabytes * 1e9)}{' (there already)' if ready else ''}"
    cost = f"{passes:.3g} passes cost {once:.3g} forwards of one block instead of {again:.3g}"
    if settings.use is Use.always:
        return Decision(True, f"cache.use=always: {what}; {cost}", gigabytes)
    if again >= WORTH * once:
        return Decision(True, f"{what}, are computed once: {cost}", gigabytes)
    if pooled:  # small, and what other seeds, rates and heads ask for again
        return Decision(True, f"{what}, are computed once, for later runs: in this one {cost}", gigabytes)
    return Decision(False, f"{what}, would not pay: {cost}", gigabytes)


def _refusal(settings: Settings, depth: int, gigabytes: float, ready: bool, free_gb: float) -> LLMTrainError | None:
    """Why states cannot be stored at all."""
    if depth < 1:
        return ConfigError("no block is frozen below the lowest one that learns: there is nothing to store", fix="cache.use=auto, or freeze the first blocks")
    if ready:
        return None
    if gigabytes > settings.max_gb:
        what = f"the states take {gigabytes:,.2f} GB, cache.max_gb allows {settings.max_gb:,g}"
        return ConfigError(what, fix=f"cache.max_gb={math.ceil(gigabytes)}, a shorter data.max_length, or cache.use=never")
    if gigabytes > SPARE * free_gb:
        what = f"the states take {gigabytes:,.2f} GB, {free_gb:,.2f} GB are free on the disk of the cache, a tenth of which is left alone"
        return DeviceError(what, fix="`llmtrain cache clear`, LLMTRAIN_CACHE=FOLDER on another disk, or cache.use=never")
    return None


def _costs(depth: int, blocks: int, pooled: bool, passes: float, tokens: int, width: int, gigabytes: float, ready: bool, flops: float) -> tuple[float, float]:
    """(computed in every pass, computed once), in forwards of one block over all tokens.

    A block that learns costs three forwards: itself, and backward twice. A forward of a block is 24·W² operations per
    token, two for each of its 12·W² weights (Kaplan et al. 2020, arXiv:2001.08361, section 2.1; attention left out).
    Measured with 6 blocks, 3 passes, and their own store pass: 1.09 times cheaper at depth 2, 1.36 at 4, 1.65 at 5, 2.8 at 6;
    this says 1.10, 1.36, 1.71 and 2.97. Concatenated vectors make a block look dearer than it is, where it does not matter.
    """
    learning = 0 if pooled else 3 * (blocks - depth)
    block_s = max(tokens, 1) * 24 * width**2 / flops
    disk_s = gigabytes * (OPEN_S if ready else WRITE_S) + passes * gigabytes * READ_S
    store_pass = 0 if ready else depth
    return passes * (depth + learning), store_pass + passes * learning + disk_s / block_s


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


def weights_fingerprint(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """A hash of names, dtypes, shapes and bits, whatever the order."""
    import torch

    found = []
    for name, tensor in tensors:
        digest = hashlib.sha256(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        if tensor.numel():
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
        found.append((name, digest.hexdigest()))
    return hashlib.sha256(json.dumps(sorted(found)).encode()).hexdigest()


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
    from llmtrain.data import store

    entry, expected = _entry(identity), {"samples": samples, "width": width, "dtype": dtype}
    with store._translated(entry.parent):
        entry.parent.mkdir(parents=True, exist_ok=True)
        opened, why = _open(entry, expected)  # without the lock: what was renamed here is complete
        if opened is None:
            with store._locked(entry, say):
                opened, why = _open(entry, expected)
                if opened is None:
                    if why:
                        say(f"cache: states are made again: {why} ({entry})")
                    _build(entry, dict(identity), make, lengths, expected)
                    opened, why = _open(entry, expected)
    if opened is None:
        raise DeviceError(f"the cache cannot read back what it just wrote: {why}", fix="set LLMTRAIN_CACHE to a folder on another disk")
    return opened


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
    if problem := files.problem(entry):
        return None, problem
    try:
        about = json.loads((entry / ABOUT).read_text(encoding="utf-8"))
        for name, value in {"format": FORMAT, **expected}.items():
            if about[name] != value:
                return None, f"its {name} is {about[name]}, this run has {value}"
        digest = json.loads((entry / files.MANIFEST).read_text(encoding="utf-8"))["files"][STATES]["sha256"]
        facts = {name: about[name] for name in ("samples", "sequences", "tokens", "width", "dtype")}
        return Stored(path=entry, sha256=digest, **facts), ""
    except (OSError, ValueError, KeyError, TypeError) as error:
        return None, f"it cannot be read: {type(error).__name__}: {error}"


def _build(entry: Path, identity: dict[str, JSON], make: Callable[[list[int]], list[list[Tensor]]], lengths: Sequence[int], expected: dict[str, JSON]) -> None:
    """Write an entry beside its place, then rename it there. One batch of states is in memory at a time."""
    import numpy as np

    from llmtrain.data import store

    if len(lengths) != expected["samples"]:
        raise ValueError(f"{len(lengths)} lengths of {expected['samples']} samples")
    store._sweep(entry)
    with files.new_folder(entry) as folder:
        with (folder / STATES).open("wb") as file:
            made = _write_all(file, make, lengths, expected["width"], expected["dtype"])
        made = made[np.argsort(made[:, 0], kind="stable")]  # from the order in which they were made to that of the data
        files.write(folder / FIRST, np.searchsorted(made[:, 0], np.arange(len(lengths) + 1)).astype("<i8").tobytes())
        files.write(folder / PLACES, made[:, 1:].astype("<i8").tobytes())
        about = {"format": FORMAT, **expected, "sequences": len(made), "tokens": int(made[:, 2].sum()), "identity": identity}
        files.write(folder / ABOUT, json.dumps(about, indent=2).encode())
        files.write_manifest(folder)


def _write_all(file: BinaryIO, make: Callable[[list[int]], list[list[Tensor]]], lengths: Sequence[int], width: int, dtype: str) -> np.ndarray:
    """Write the states of all samples; (sample, first token, tokens) of each sequence as they were made: (sequences, 3)."""
    import numpy as np

    made, tokens = array("q"), 0
    for batch in batches(lengths):
        for sample, sequences in zip(batch, make(batch), strict=True):
            for sequence in sequences:
                written = _write(file, sequence, sample, width, dtype)
                made.extend((sample, tokens, written))
                tokens += written
    return np.array(made, "i8").reshape(-1, 3)


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


def prefix_maker(
    model: nn.Module,
    anatomy: Anatomy,
    k: int,
    inputs_of: Callable[[list[int]], tuple[dict[str, Tensor], list[int], list[int]]],
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
    import inspect

    import torch

    from llmtrain.model.anatomy import prefix
    from llmtrain.model.base import evaluating

    # Keys and values for later tokens would be kept for nothing; and with them some families miss the borders of documents.
    extra = {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}

    def make(samples: list[int]) -> list[list[Tensor]]:
        inputs, lengths, counts = inputs_of(samples)
        with evaluating(model), torch.no_grad(), precision_context():
            hidden = prefix(model, anatomy, k, {name: tensor.to(device) for name, tensor in inputs.items()} | extra).cpu()
        rows = [states[:length] for states, length in zip(hidden, lengths, strict=True)]
        if sum(counts) != len(rows):
            raise ValueError(f"{sum(counts)} rows are said, {len(rows)} are there")
        return [rows[end - count : end] for end, count in zip(accumulate(counts), counts, strict=True)]

    return make


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
    except (OSError, ValueError, TypeError):
        return {}
