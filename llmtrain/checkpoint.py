"""Checkpoints: written whole or not at all, verified before they are believed, and nothing in them is pickled.

checkpoints/step-00001000/
    model.safetensors       parameters and buffers by name, a tied parameter once; what equals the base is left out
    optimizer.safetensors   `<parameter>/<state>`
    state.json              RunState, the gradient scaler, the base
    manifest.json           size and sha256 of each, written last

Where the model is divided over processes (`sharding`), the tensors are in model-00001-of-00002.safetensors and the like, one
of each kind for each process, and index.json says where each piece belongs. Either kind is read by any number of processes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmtrain import files, sharding
from llmtrain.errors import CheckpointError, require
from llmtrain.state import RunState

if TYPE_CHECKING:
    import torch
    from torch import nn

log = logging.getLogger("llmtrain")
STEP = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """When to save, and what to keep.

    Attributes:
        every_steps: updates between two checkpoints; null: only where the run ends or is stopped.
        keep_last: how many of the newest to keep.
        keep_best: also save and keep the one with the best metric.
        export: which weights become final/: those of the last step, or the best.
    """

    every_steps: int | None
    keep_last: int
    keep_best: bool
    export: str

    def __post_init__(self) -> None:
        require(self.every_steps is None or self.every_steps >= 1, "every_steps", self.every_steps, "1 update or more, or null")
        require(self.keep_last >= 1, "keep_last", self.keep_last, "1 or more")
        require(self.export in ("last", "best"), "export", self.export, "last, best")
        require(self.export == "last" or self.keep_best, "export", self.export, "last, unless keep_best is true")


@dataclass(frozen=True)
class Base:
    """The weights that a finetuning run started from: a checkpoint leaves out what still equals them.

    Attributes:
        path: folder of the weights.
        sha256: of each tensor, by name.
    """

    path: str
    sha256: Mapping[str, str]

    @property
    def digest(self) -> str:
        return hashlib.sha256(json.dumps(sorted(self.sha256.items())).encode()).hexdigest()


@dataclass(frozen=True)
class Loaded:
    """A checkpoint as read: tensors by name, optimizer state by parameter name, and the small state."""

    path: Path
    weights: dict[str, torch.Tensor]
    optimizer: dict[str, dict[str, torch.Tensor]]
    state: dict[str, Any]


def tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters (a tied one once, under its first name) and persistent buffers by name."""
    persistent = model.state_dict().keys()
    buffers = {name: b for name, b in model.named_buffers() if name in persistent}
    return {**{n: p.detach() for n, p in model.named_parameters()}, **buffers}


def tensor_sha256(tensor: torch.Tensor) -> str:
    """A hash of type, shape and bits. Of a tensor that is divided over processes, all have to ask at the same time."""
    import torch

    found = hashlib.sha256(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
    tensor = sharding.whole(tensor.detach())
    if tensor.numel():
        found.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


# --- writing ------------------------------------------------------------------------------------------------------


def save(
    run: Path, *, step: int, model: nn.Module, optimizer: Mapping[str, Mapping[str, torch.Tensor]], state: dict[str, Any], base: Base | None = None
) -> Path:
    """Write `checkpoints/step-…` and return it. Call it on one process."""
    import safetensors.torch

    target = folder_of(run, step)
    weights = {n: t.cpu().contiguous() for n, t in tensors(model).items() if base is None or base.sha256.get(n) != tensor_sha256(t)}
    moments = {f"{name}/{kind}": t.cpu().contiguous() for name, kinds in optimizer.items() for kind, t in kinds.items()}
    with files.new_folder(target) as folder:
        files.write(folder / "model.safetensors", safetensors.torch.save(weights))
        files.write(folder / "optimizer.safetensors", safetensors.torch.save(moments))
        files.write(folder / "state.json", _state_bytes(state, base))
        files.write_manifest(folder, {"step": step})
    link(run, "last", target)
    return target


def save_shards(
    run: Path,
    *,
    step: int,
    model: nn.Module,
    optimizer: Mapping[str, Mapping[str, torch.Tensor]],
    state: dict[str, Any],
    base: Base | None = None,
    rank: int,
    gather: sharding.Gather,
) -> Path:
    """`save` of a model that is divided over processes: all of them call it, each writes its part, and it is whole or not there.

    Only what is frozen is left out where it equals the base: to hash a tensor it has to be gathered.
    """
    target = folder_of(run, step)
    moving = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    weights = {n: t for n, t in tensors(model).items() if n in moving or base is None or base.sha256.get(n) != tensor_sha256(t)}
    moments = {f"{name}/{kind}": t for name, kinds in optimizer.items() for kind, t in kinds.items()}
    small = {"state.json": _state_bytes(state, base)}
    sharding.write(target, {"model": weights, "optimizer": moments}, small, {"step": step}, rank=rank, gather=gather)
    if rank == 0:
        link(run, "last", target)
    return target


def _state_bytes(state: dict[str, Any], base: Base | None) -> bytes:
    about = {**state, "base": None if base is None else {"path": base.path, "digest": base.digest}}
    return json.dumps(about, indent=2).encode()


def folder_of(run: Path, step: int) -> Path:
    """Where the checkpoint of a step is, or would be."""
    return run / "checkpoints" / f"step-{step:08d}"


def link(run: Path, name: str, target: Path) -> None:
    """Point checkpoints/NAME at a checkpoint, in one step. A convenience: nothing reads it but people."""
    temporary = run / "checkpoints" / f".{name}.new"
    with contextlib.suppress(OSError):  # Windows needs a privilege for links
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(target.name)
        temporary.replace(run / "checkpoints" / name)


def set_aside(run: Path, step: int) -> list[Path]:
    """Rename the intact checkpoints above `step`, which is gone back to: they are of another course, and the next resume would go on from them.

    Damaged ones stay: nothing goes on from them, and they take their turn again.

    Returns:
        where they are now: checkpoints/left-NUMBER-step-…, which only people read.
    """
    aside = []
    for path in listed(run):
        if step_of(path) > step and files.problem(path) is None:
            number = 1
            while (place := path.with_name(f"left-{number}-{path.name}")).exists():
                number += 1
            path.rename(place)
            aside.append(place)
    return aside


def mend_links(run: Path, newest: Path) -> None:
    """Point `last` and `best` at what they are at `newest`, where a process was killed before it did; half a link is removed."""
    wanted, best = {"last": newest}, run_state(newest).best_step
    if best is not None and folder_of(run, best).is_dir():
        wanted["best"] = folder_of(run, best)
    for name, target in wanted.items():
        with contextlib.suppress(OSError):  # Windows, as above
            (run / "checkpoints" / f".{name}.new").unlink(missing_ok=True)
        at = run / "checkpoints" / name
        if not at.is_symlink() or os.readlink(at) != target.name:
            link(run, name, target)


def prune(run: Path, keep_last: int, best_step: int | None, step: int | None = None) -> None:
    """Remove checkpoints beyond the newest `keep_last` and the best. Call it after the newest is whole.

    Args:
        step: of the newest; null: the highest. A higher one was not resumed from, damaged perhaps: it takes no place from this run's.
    """
    for path in [path for path in listed(run) if step is None or step_of(path) <= step][keep_last:]:
        if step_of(path) != best_step:
            shutil.rmtree(path, ignore_errors=True)


# --- reading ------------------------------------------------------------------------------------------------------


def listed(run: Path) -> list[Path]:
    """The checkpoints of a run, the highest step first. Clocks play no part."""
    found = [p for p in (run / "checkpoints").glob("step-*") if STEP.fullmatch(p.name) and not p.is_symlink()]
    return sorted(found, key=step_of, reverse=True)


def intact(run: Path, step: int) -> Path | None:
    """The newest checkpoint of `step` or before that verifies."""
    return next((path for path in listed(run) if step_of(path) <= step and files.problem(path) is None), None)


def step_of(path: Path) -> int:
    match = STEP.fullmatch(path.name)
    return int(match[1]) if match else -1


def newest(run: Path) -> Path | None:
    """The newest checkpoint that verifies; each newer one that does not is named in a warning.

    Raises:
        CheckpointError: there are checkpoints and none verifies: starting over would throw the run away.
    """
    found = listed(run)
    for path in found:
        wrong = files.problem(path)
        if wrong is None:
            return path
        log.warning("%s is not used: %s", path, wrong)
    if found:
        raise CheckpointError(f"{run}: none of {len(found)} checkpoints is intact", fix="restore one of them, or start anew with another output_dir")
    return None


def read(path: Path, base: Base | None = None) -> Loaded:
    """Read a checkpoint after verifying every byte.

    Raises:
        CheckpointError: a file is missing or changed, or the base is another one.
    """
    state = about(path, base)
    optimizer: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in _all(path, "optimizer").items():
        name, _, kind = key.rpartition("/")
        optimizer.setdefault(name, {})[kind] = tensor
    return Loaded(path, _all(path, "model"), optimizer, state)


def about(path: Path, base: Base | None = None, share: tuple[int, int] = (0, 1)) -> dict[str, Any]:
    """state.json of a checkpoint, after verifying every byte of all its files; of several processes, each its share (`files.problem`).

    Raises:
        CheckpointError: a file is missing or changed, or the base is another one.
    """
    wrong = files.problem(path, share) if path.is_dir() else "no such folder"
    if wrong is not None:
        raise CheckpointError(f"{path}: {wrong}", fix=sharding.NEWEST)
    try:
        state = _state(path)
    except (OSError, ValueError, LookupError, TypeError, RuntimeError) as error:
        raise _unreadable(path, error) from error
    wanted = state["base"]
    if wanted is not None and (base is None or base.digest != wanted["digest"]):
        raise CheckpointError(f"{path} builds on {wanted['path']}, which is gone or has changed", fix="restore those weights")
    return state


def _all(path: Path, section: str) -> dict[str, torch.Tensor]:
    """The tensors of a section, in memory, from one file or from the pieces of all processes that wrote it."""
    import safetensors
    import safetensors.torch

    if (path / sharding.INDEX).is_file():
        with sharding.stored(path, section) as found:
            return {name: found.read(name) for name in found.shapes}
    try:
        whole: dict[str, torch.Tensor] = safetensors.torch.load((path / f"{section}.safetensors").read_bytes())
    except (OSError, ValueError, LookupError, TypeError, RuntimeError, safetensors.SafetensorError) as error:
        raise _unreadable(path, error) from error
    return whole


def warn_of_others(path: Path) -> None:
    """A warning where somebody else owns a checkpoint or can write to it: who can change it decides the weights.

    A group of the same number as the user is by convention nobody else's.
    """
    if not hasattr(os, "getuid"):  # Windows
        return
    for each in (path, *sorted(path.iterdir())):
        facts = each.stat()
        wrong = others(facts.st_uid, facts.st_gid, facts.st_mode, os.getuid())
        if wrong is not None:
            name = each.name if each == path else f"{path.name}/{each.name}"
            log.warning("%s %s: whoever can change a checkpoint decides what is trained; `chmod -R go-w %s`", name, wrong, path.parent)
            return


def others(owner: int, group: int, mode: int, user: int) -> str | None:
    """Who besides `user` can write to a file, in words; None: nobody, but for the system's administrator."""
    if owner != user:
        return f"belongs to another user (uid {owner})"
    if mode & stat.S_IWOTH:
        return "can be written by everybody"
    if mode & stat.S_IWGRP and group != user:
        return f"can be written by the group {group}"
    return None


def run_state(path: Path) -> RunState:
    """Where the run stood when a checkpoint was saved.

    Raises:
        CheckpointError: that cannot be read.
    """
    try:
        return RunState.from_json(_state(path)["run"])
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise _unreadable(path, error) from error


def _state(path: Path) -> dict[str, Any]:
    """state.json of a checkpoint: `run`, `base`, `scaler`, each of its type. Its bytes are as written, by whoever wrote them."""
    content = json.loads((path / "state.json").read_text(encoding="utf-8"))
    run = files.of_type(RunState, content["run"])
    below = [name for name, value in run.items() if isinstance(value, int) and value < 0]
    if below:
        raise ValueError(f"{below[0]} is {run[below[0]]}")
    base, scaler = content.get("base"), content.get("scaler")
    if not (base is None or (isinstance(base, dict) and isinstance(base["path"], str) and isinstance(base["digest"], str))):
        raise ValueError("base names no weights")
    if not isinstance(scaler, dict | None):
        raise ValueError("scaler holds no state")
    return {**content, "run": content["run"], "base": base}


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    """The answer to a checkpoint whose files say what no checkpoint says."""
    why = f"{error}" if isinstance(error, OSError | ValueError) else f"{type(error).__name__}: {error}"
    return CheckpointError(f"{path} cannot be read: {' '.join(why.split())[:200]}", fix=sharding.NEWEST)


def load_weights(model: nn.Module, weights: Mapping[str, torch.Tensor], base: Base | None = None) -> None:
    """Copy tensors into a model, in place, so that tied ones stay tied; of a model that is divided, each process its part.

    Raises:
        CheckpointError: a name or a shape that does not fit.
    """
    own = tensors(model)
    _refuse_misfit(own, {name: tuple(tensor.shape) for name, tensor in weights.items()}, base)
    for name, tensor in weights.items():
        sharding.put(own[name], tensor)


def load_parts(path: Path, model: nn.Module, optimizer: Mapping[str, Mapping[str, torch.Tensor]], base: Base | None = None) -> None:
    """Read weights and optimizer state into their places, as far as this process holds them. `about` verifies the bytes before.

    Args:
        optimizer: its state, by name of parameter; what the checkpoint has none of stays as it is.

    Raises:
        CheckpointError: a name or a shape that does not fit.
    """
    own = tensors(model)
    with sharding.stored(path, "model") as found:
        _refuse_misfit(own, found.shapes, base)
        for name in found.shapes:
            found.into(name, own[name])
    places = {f"{name}/{kind}": tensor for name, kinds in optimizer.items() for kind, tensor in kinds.items()}
    with sharding.stored(path, "optimizer") as found:
        shared = {key: shape for key, shape in found.shapes.items() if key in places}
        _refuse_misfit({key: places[key] for key in shared}, shared, None)
        for key in shared:
            found.into(key, places[key])


def refuse_misfit(path: Path, model: nn.Module, base: Base | None = None) -> None:
    """Refuse a checkpoint that does not fit a model, without reading its tensors."""
    with sharding.stored(path, "model") as found:
        _refuse_misfit(tensors(model), found.shapes, base)


def _refuse_misfit(own: Mapping[str, torch.Tensor], found: Mapping[str, tuple[int, ...]], base: Base | None) -> None:
    missing = [n for n in own if n not in found and not (base is not None and n in base.sha256)]
    wrong = [n for n, shape in found.items() if n not in own or tuple(own[n].shape) != tuple(shape)]
    if missing or wrong:
        raise CheckpointError(
            f"the checkpoint does not fit the model: {len(missing)} tensors missing, {len(wrong)} unexpected or of another shape",
            allowed=", ".join((missing + wrong)[:3]),
        )
