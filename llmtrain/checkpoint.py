"""Checkpoints: written whole or not at all, verified before they are believed, and nothing in them is pickled.

checkpoints/step-00001000/
    model.safetensors       parameters and buffers by name, a tied parameter once; what equals the base is left out
    optimizer.safetensors   `<parameter>/<state>`
    state.json              RunState, the gradient scaler, the base
    manifest.json           size and sha256 of each, written last
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmtrain import files
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
    """A hash of type, shape and bits."""
    import torch

    found = hashlib.sha256(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
    if tensor.numel():
        found.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


# --- writing ------------------------------------------------------------------------------------------------------


def save(
    run: Path, *, step: int, model: nn.Module, optimizer: Mapping[str, Mapping[str, torch.Tensor]], state: dict[str, Any], base: Base | None = None
) -> Path:
    """Write `checkpoints/step-…` and return it. Call it on one process."""
    import safetensors.torch

    target = run / "checkpoints" / f"step-{step:08d}"
    weights = {n: t.cpu().contiguous() for n, t in tensors(model).items() if base is None or base.sha256.get(n) != tensor_sha256(t)}
    moments = {f"{name}/{kind}": t.cpu().contiguous() for name, kinds in optimizer.items() for kind, t in kinds.items()}
    about = {**state, "base": None if base is None else {"path": base.path, "digest": base.digest}}
    with files.new_folder(target) as folder:
        files.write(folder / "model.safetensors", safetensors.torch.save(weights))
        files.write(folder / "optimizer.safetensors", safetensors.torch.save(moments))
        files.write(folder / "state.json", json.dumps(about, indent=2).encode())
        files.write_manifest(folder, {"step": step})
    link(run, "last", target)
    return target


def link(run: Path, name: str, target: Path) -> None:
    """Point checkpoints/NAME at a checkpoint, in one step. A convenience: nothing reads it but people."""
    temporary = run / "checkpoints" / f".{name}-{os.getpid()}"
    with contextlib.suppress(OSError):  # Windows needs a privilege for links
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(target.name)
        temporary.replace(run / "checkpoints" / name)


def prune(run: Path, keep_last: int, best_step: int | None) -> None:
    """Remove checkpoints beyond the newest `keep_last` and the best. Call it after the newest is whole."""
    for path in listed(run)[keep_last:]:
        if step_of(path) != best_step:
            shutil.rmtree(path, ignore_errors=True)


# --- reading ------------------------------------------------------------------------------------------------------


def listed(run: Path) -> list[Path]:
    """The checkpoints of a run, the highest step first. Clocks play no part."""
    found = [p for p in (run / "checkpoints").glob("step-*") if STEP.fullmatch(p.name) and not p.is_symlink()]
    return sorted(found, key=step_of, reverse=True)


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
    import safetensors
    import safetensors.torch

    wrong = files.problem(path) if path.is_dir() else "no such folder"
    if wrong is not None:
        raise CheckpointError(f"{path}: {wrong}", fix="resume=auto takes the newest checkpoint that is intact")
    try:
        weights = safetensors.torch.load((path / "model.safetensors").read_bytes())
        moments = safetensors.torch.load((path / "optimizer.safetensors").read_bytes())
        state = json.loads((path / "state.json").read_text())
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{path}: {error}", fix="resume=auto takes the newest checkpoint that is intact") from error
    wanted = state.get("base")
    if wanted is not None and (base is None or base.digest != wanted["digest"]):
        raise CheckpointError(f"{path} builds on {wanted['path']}, which is gone or has changed", fix="restore those weights")
    optimizer: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in moments.items():
        name, _, kind = key.rpartition("/")
        optimizer.setdefault(name, {})[kind] = tensor
    return Loaded(path, weights, optimizer, state)


def run_state(path: Path) -> RunState:
    """Where the run stood when a checkpoint was saved."""
    return RunState.from_json(json.loads((path / "state.json").read_text(encoding="utf-8"))["run"])


def load_weights(model: nn.Module, weights: Mapping[str, torch.Tensor], base: Base | None = None) -> None:
    """Copy tensors into a model, in place, so that tied ones stay tied.

    Raises:
        CheckpointError: a name or a shape that does not fit.
    """
    import torch

    own = tensors(model)
    missing = [n for n in own if n not in weights and not (base is not None and n in base.sha256)]
    wrong = [n for n in weights if n not in own or own[n].shape != weights[n].shape]
    if missing or wrong:
        raise CheckpointError(
            f"the checkpoint does not fit the model: {len(missing)} tensors missing, {len(wrong)} unexpected or of another shape",
            allowed=", ".join((missing + wrong)[:3]),
        )
    with torch.no_grad():
        for name, tensor in weights.items():
            own[name].copy_(tensor)
