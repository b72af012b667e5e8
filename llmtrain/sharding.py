"""A model divided over the processes of a run (FSDP2), and folders that all of them write together and read in part.

    shard(learner, saved, blocks, device)  each process keeps its rows of every tensor; one block at a time is whole, while it computes
    mine(tensor)                           where this process's rows begin, and the rows
    whole(tensor)                          all of it, on every process: all have to ask
    gathered(model, skeleton, …)           the model as one again, on one process, tensor by tensor
    write(target, …)                       each process its rows, into one folder that is whole or not there
    with stored(folder, "model") as tensors: tensors.read(name, offset, shape)

The folder holds `SECTION-00001-of-00002.safetensors`, one for each process, and index.json: shape and type of each tensor,
and of each piece its file, its offset in every dimension and its shape. So it can be read by any number of processes, each
of which reads what overlaps its rows. A folder with one `SECTION.safetensors` is read in the same way.

fully_shard is torch's own and not called through Accelerate, which wraps in DDP instead on a CPU: so what CPUs test is what
GPUs run. A tensor that is not divided is the same on every process; the main process writes it.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmtrain import files
from llmtrain.errors import CheckpointError, LLMTrainError, shown

if TYPE_CHECKING:
    import torch
    from torch import nn

INDEX = "index.json"
NEWEST = "resume=auto takes the newest checkpoint that is intact"
Gather = Callable[[Any], list[Any]]  # the value of every process, on every process, in the order of their ranks


# --- dividing -----------------------------------------------------------------------------------------------------


def shard(learner: nn.Module, saved: nn.Module, blocks: Iterable[str], device: str) -> None:
    """Divide the parameters of `learner.model` over all processes, in place: what is frozen and what moves must be settled.

    Each block is gathered while it computes and given back; so is what stands outside of the blocks (embeddings, head),
    over the whole pass. A tied tensor stands outside of the blocks and stays tied.

    Args:
        learner: what is called; everything else that calls the model bypasses the gathering.
        saved: the whole model, where `learner.model` is the upper part of it: its tensors follow.
        blocks: names of the modules inside the model that are gathered each by itself.
    """
    import torch
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device, (torch.distributed.get_world_size(),))
    model = learner.get_submodule("model")
    places = [(module, name, p) for module in model.modules() for name, p in module._parameters.items() if p is not None]
    for name in blocks:
        block = model.get_submodule(name)
        if any(True for _ in block.parameters()):  # the skipped blocks of an upper part have none
            fully_shard(block, mesh=mesh, reshard_after_forward=True)
    fully_shard(learner, mesh=mesh, reshard_after_forward=True)  # true: between two passes every tensor is the divided one
    now = {id(before): module._parameters[name] for module, name, before in places}
    for module in saved.modules():
        for name, parameter in module._parameters.items():
            if id(parameter) in now:
                module._parameters[name] = now[id(parameter)]


def divided(tensor: torch.Tensor) -> bool:
    """Whether a tensor is divided over processes. Where nobody has imported what divides, none is: a run of one process never does."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def mine(tensor: torch.Tensor) -> tuple[tuple[int, ...], torch.Tensor]:
    """Where this process's part of a tensor begins, and the part itself, sharing its memory."""
    if not divided(tensor):
        return (0,) * tensor.ndim, tensor.detach()
    from torch.distributed.tensor import Shard

    own: Any = tensor.detach()
    part: torch.Tensor = own.to_local()
    (placement,) = own.placements
    assert isinstance(placement, Shard), placement
    rows, dim = tensor.shape[placement.dim], placement.dim
    most = -(-rows // own.device_mesh.size())  # as torch.chunk cuts
    begin = min(rows, most * own.device_mesh.get_local_rank())
    assert part.shape[dim] == min(most, rows - begin), (part.shape, tensor.shape)
    return tuple(begin if d == dim else 0 for d in range(tensor.ndim)), part


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """The whole tensor on this process; of a divided one, all processes have to ask at the same time."""
    own: Any = tensor
    return own.full_tensor() if divided(tensor) else tensor


def put(tensor: torch.Tensor, value: torch.Tensor) -> None:
    """Copy a whole tensor into one that may be divided, in place: each process takes its rows."""
    offset, part = mine(tensor)
    part.copy_(value[tuple(slice(o, o + n) for o, n in zip(offset, part.shape, strict=True))])


def skeleton(model: nn.Module) -> nn.Module:
    """A twin without the memory of parameters. Made before `shard`, since a divided model cannot be copied."""
    import torch

    memo: dict[int, Any] = {id(p): torch.nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad) for p in model.parameters()}
    return copy.deepcopy(model, memo)


def gathered(model: nn.Module, skeleton: nn.Module, main: bool) -> None:
    """Give `skeleton` the tensors of a divided model, on the main process and in its host memory, one after the other."""
    import torch

    full: dict[int, torch.nn.Parameter] = {}
    twins = dict(skeleton.named_parameters())
    for name, parameter in model.named_parameters():
        value = whole(parameter.detach())
        if main:
            full[id(twins[name])] = torch.nn.Parameter(value.cpu(), parameter.requires_grad)
    if not main:
        return
    for module in skeleton.modules():
        for name, twin in module._parameters.items():
            if twin is not None:
                module._parameters[name] = full[id(twin)]
    buffers = dict(model.named_buffers())
    for module_name, module in skeleton.named_modules():
        for name in module._buffers:
            found = buffers.get(f"{module_name}.{name}".removeprefix("."))
            if found is not None:
                module._buffers[name] = found.detach().cpu().clone()


# --- agreeing -----------------------------------------------------------------------------------------------------


def agreed(gather: Gather, action: Callable[[], Any]) -> list[Any]:
    """What `action` gives on each process. What goes wrong on one is raised on all; an error that is not ours is told as one on the others.

    Raises:
        LLMTrainError: of the lowest process that has one.
    """
    value, error = None, None
    try:
        value = action()
    except Exception as found:
        error = found
    told = error if error is None or isinstance(error, LLMTrainError) else LLMTrainError(f"{type(error).__name__}: {error}"[:300])
    said = gather((value, told))
    if error is not None and error is not told:
        raise error
    for _, other in said:
        if other is not None:
            raise other
    return [value for value, _ in said]


# --- writing ------------------------------------------------------------------------------------------------------


def write(
    target: Path, sections: Mapping[str, Mapping[str, torch.Tensor]], small: Mapping[str, bytes], about: dict[str, Any], *, rank: int, gather: Gather
) -> None:
    """Write a folder as `files.new_folder` does, each process its part of the tensors. All processes call it.

    The main process makes the temporary folder, the others write into it, and it writes index and manifest last and renames.
    When one process fails, nothing is left and all raise. The folder must be the same for all processes.

    Args:
        sections: tensors by name; each section becomes one file of each process.
        small: further files, written by the main process.
        about: for the manifest.
    """
    with contextlib.ExitStack() as stack:
        made = agreed(gather, lambda: str(stack.enter_context(files.new_folder(target))) if rank == 0 else None)
        folder, world = Path(made[0]), len(made)
        found = agreed(gather, lambda: [_write_mine(folder, name, tensors, rank, world) for name, tensors in sections.items()])
        agreed(gather, lambda: _finish(folder, found, small, about) if rank == 0 else None)
        agreed(gather, stack.close)  # where it is renamed


@dataclass(frozen=True)
class Piece:
    """A part of a tensor in one file, where it stands under the tensor's name."""

    file: str
    offset: Sequence[int]
    shape: Sequence[int]


@dataclass(frozen=True)
class _Part:
    """What one process wrote of one section.

    Attributes:
        facts: of the file, for the manifest.
        pieces: name → shape and type of the whole tensor, and the piece.
    """

    section: str
    file: str
    facts: dict[str, Any]
    pieces: dict[str, tuple[tuple[int, ...], str, Piece]]


def _write_mine(folder: Path, section: str, tensors: Mapping[str, torch.Tensor], rank: int, world: int) -> _Part:
    import safetensors.torch

    file = f"{section}-{rank + 1:05d}-of-{world:05d}.safetensors"
    pieces, kept = {}, {}
    for name, tensor in tensors.items():
        offset, part = mine(tensor)
        if part.numel() if divided(tensor) else rank == 0:
            kept[name] = part.cpu().contiguous()
            pieces[name] = tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), Piece(file, offset, tuple(part.shape))
    data = safetensors.torch.save(kept)
    files.write(folder / file, data)
    return _Part(section, file, {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}, pieces)


def _finish(folder: Path, found: list[list[_Part]], small: Mapping[str, bytes], about: dict[str, Any]) -> None:
    parts = [part for parts in found for part in parts]
    index: dict[str, dict[str, Any]] = {part.section: {} for part in parts}
    for part in parts:
        for name, (shape, dtype, piece) in part.pieces.items():
            index[part.section].setdefault(name, {"shape": shape, "dtype": dtype, "pieces": []})["pieces"].append(asdict(piece))
    files.write(folder / INDEX, json.dumps({"version": 1, **index}).encode())
    for name, data in small.items():
        files.write(folder / name, data)
    files.write_manifest(folder, about, {part.file: part.facts for part in parts})


# --- reading ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def stored(folder: Path, section: str) -> Iterator[Stored]:
    """The tensors of a section of a folder, read as far as they are asked for.

    Raises:
        CheckpointError: what is there, or is missing, makes no sense. Its bytes are the manifest's to verify, before.
    """
    import safetensors

    with contextlib.ExitStack() as stack:
        try:
            yield Stored(folder, section, stack)
        except (OSError, ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError, safetensors.SafetensorError) as error:
            raise CheckpointError(f"{folder}: {error}", fix=NEWEST) from error


class Stored:
    """Tensors in files, whole or in pieces.

    Attributes:
        shapes: of each tensor.
    """

    def __init__(self, folder: Path, section: str, stack: contextlib.ExitStack) -> None:
        self._folder, self._stack, self._open = folder, stack, {}  # type: ignore[var-annotated]
        self._pieces: dict[str, list[Piece]] = {}
        self._dtypes: dict[str, str] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        if (folder / INDEX).is_file():
            self._read_index(section)
        else:
            self._read_header(f"{section}.safetensors")

    def _read_index(self, section: str) -> None:
        index = json.loads((self._folder / INDEX).read_text(encoding="utf-8"))
        if index["version"] != 1:
            raise ValueError(f"{INDEX} has version {shown(index['version'])}, this llmtrain reads 1: written by another version")
        for name, entry in index[section].items():
            self.shapes[name], self._dtypes[name] = tuple(map(int, entry["shape"])), str(entry["dtype"])
            self._pieces[name] = [Piece(str(p["file"]), tuple(map(int, p["offset"])), tuple(map(int, p["shape"]))) for p in entry["pieces"]]

    def _read_header(self, file: str) -> None:
        for name in self._file(file).keys():  # noqa: SIM118 - not a mapping
            self.shapes[name] = shape = tuple(self._file(file).get_slice(name).get_shape())
            self._pieces[name] = [Piece(file, (0,) * len(shape), shape)]

    def _file(self, name: str) -> Any:
        import safetensors

        if name not in self._open:
            if Path(name).name != name:
                raise ValueError(f"{INDEX} names a file {name[:80]!r} outside of the folder")
            self._open[name] = self._stack.enter_context(safetensors.safe_open(self._folder / name, framework="pt"))
        return self._open[name]

    def read(self, name: str, offset: Sequence[int] | None = None, shape: Sequence[int] | None = None) -> torch.Tensor:
        """A part of a tensor; by default all of it. Only what overlaps it is read."""
        import torch

        wanted = tuple(self.shapes[name] if shape is None else shape)
        begin = tuple(offset or (0,) * len(wanted))
        found = []
        for piece in self._pieces[name]:
            low = [max(a, b) for a, b in zip(begin, piece.offset, strict=True)]
            high = [min(a + n, b + m) for a, n, b, m in zip(begin, wanted, piece.offset, piece.shape, strict=True)]
            if all(a < b for a, b in zip(low, high, strict=True)):
                found.append((piece, low, high))
        volume = sum(math.prod(b - a for a, b in zip(low, high, strict=True)) for _, low, high in found)
        held = all(tuple(self._file(p.file).get_slice(name).get_shape()) == tuple(p.shape) for p, _, _ in found)
        if volume != math.prod(wanted) or not held:  # asked before memory is taken for it
            raise ValueError(f"{INDEX} does not fit the pieces of {name}")
        out: torch.Tensor | None = None
        for piece, low, high in found:
            source = tuple(slice(a - o, b - o) for a, b, o in zip(low, high, piece.offset, strict=True))
            handle = self._file(piece.file)
            part = handle.get_slice(name)[source] if source else handle.get_tensor(name)
            if str(part.dtype) != f"torch.{self._dtypes.get(name, str(part.dtype)[6:])}":
                raise ValueError(f"{name} is of type {part.dtype}, and not what {INDEX} says")
            if out is None:
                out = torch.empty(wanted, dtype=part.dtype)
            out[tuple(slice(a - o, b - o) for a, b, o in zip(low, high, begin, strict=True))] = part
        return self._nothing(name, wanted) if out is None else out

    def _nothing(self, name: str, shape: Sequence[int]) -> torch.Tensor:
        """A part without elements: a process whose rows are none, or an empty tensor."""
        import torch

        first = self._pieces[name][0]
        handle = self._file(first.file)
        return torch.empty(tuple(shape), dtype=handle.get_tensor(name).dtype)

    def into(self, name: str, tensor: torch.Tensor) -> None:
        """Read this process's part of a tensor into its place."""
        offset, part = mine(tensor)
        part.copy_(self.read(name, offset, tuple(part.shape)))
