"""One of two processes that train a divided model: `python sharded.py FOLDER RANK`. What it finds goes to FOLDER/claims-RANK.json.

`tests/test_sharding.py` starts both and reads what they found; nothing here is a test by itself.
"""

from __future__ import annotations

import copy
import datetime
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from llmtrain import checkpoint, files, sharding
from llmtrain.checkpoint import Base
from llmtrain.errors import DeviceError, LLMTrainError
from llmtrain.optimizer import Optimizer, load_state, state_by_name

WORDS, WIDTH = 11, 7  # odd: the two processes hold different numbers of rows
FROZEN = ("blocks.0.", "table")


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.linear(self.norm(x)).tanh()


class Model(nn.Module):
    """Embeddings tied to the head, two blocks of which the first is frozen, one row that is too few for two, a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(WORDS, WIDTH)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.table = nn.Parameter(torch.randn(1, WIDTH))
        self.scale = nn.Parameter(torch.ones(()).view(1))
        self.head = nn.Linear(WIDTH, WORDS)
        self.head.weight = self.embeddings.weight
        self.register_buffer("counts", torch.arange(3.0))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embeddings(ids) + self.table
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(x * self.scale)
        return logits


class Learner(nn.Module):
    """The sum of the losses of a batch."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> dict[str, Tensor]:
        logits = self.model(ids[:, :-1])
        return {"loss": nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="sum")}


def model(seed: int = 0) -> Model:
    torch.manual_seed(seed)
    made = Model()
    for name, parameter in made.named_parameters():
        parameter.requires_grad_(not name.startswith(FROZEN))
    return made


class Training:
    """A model as the trainer prepares it: divided or not."""

    def __init__(self, made: Model, divide: bool) -> None:
        self.model, self.learner, self.divide = made, Learner(made), divide
        self.skeleton = sharding.skeleton(made)
        if divide:
            sharding.shard(self.learner, made, ["blocks.0", "blocks.1"], "cpu")
        moving = [n for n, p in made.named_parameters() if p.requires_grad]
        self.adamw = Optimizer(lr=0.05, weight_decay=0.1, beta1=0.9, beta2=0.95, epsilon=1e-8).build(made, moving, {})

    def update(self, step: int, rank: int, world: int) -> tuple[float, float]:
        """Loss and norm of the gradient of an update on the rows of this process."""
        ids = torch.randint(WORDS, (4, 6), generator=torch.Generator().manual_seed(step))
        own = ids.chunk(world)[rank] if self.divide else ids
        with torch.no_grad():
            self.learner(own)  # as an evaluation does: afterwards the tensors have to be the divided ones again
        loss = self.learner(own)["loss"]
        (loss / 20 * (world if self.divide else 1)).backward()
        moving = [p for p in self.model.parameters() if p.requires_grad]
        norm = float(sharding.whole(nn.utils.clip_grad_norm_(moving, 0.5)))
        self.adamw.step()
        self.adamw.zero_grad(set_to_none=True)
        total = loss.detach()
        if self.divide:
            dist.all_reduce(total)
        return float(total), norm

    @property
    def moments(self) -> dict[str, dict[str, Tensor]]:
        return state_by_name(self.adamw)

    def bits(self) -> dict[str, str]:
        found = {name: checkpoint.tensor_sha256(t) for name, t in checkpoint.tensors(self.model).items()}
        return found | {f"{name}/{kind}": checkpoint.tensor_sha256(t) for name, kinds in self.moments.items() for kind, t in kinds.items()}


def gather(value: Any) -> list[Any]:
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, value)
    return found


def refused(action: Callable[[], Any]) -> list[str]:
    try:
        action()
    except LLMTrainError as error:
        return [type(error).__name__, error.what]
    return []


def claims(folder: Path, rank: int, world: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    single, many = Training(model(), False), Training(model(), True)
    before = many.bits()
    curves = [(single.update(i, rank, world), many.update(i, rank, world)) for i in range(4)]
    found["losses"] = [[one[0], two[0]] for one, two in curves]
    found["norms"] = [[one[1], two[1]] for one, two in curves]
    with torch.no_grad():
        many.learner(torch.ones(1, 3, dtype=torch.long))  # what is saved after an evaluation is divided
    found["frozen"] = [before[n] == many.bits()[n] for n, p in many.model.named_parameters() if not p.requires_grad]
    found["moved"] = [before[n] != many.bits()[n] for n, p in many.model.named_parameters() if p.requires_grad]
    found["tied"] = many.model.head.weight is many.model.embeddings.weight
    found["local"] = sum(sharding.mine(p)[1].numel() for p in many.model.parameters())
    found["all"] = sum(p.numel() for p in many.model.parameters())

    # A checkpoint of pieces, with what is frozen left to the base, and its ways back.
    base = Base("weights", {n: before[n] for n, _ in checkpoint.tensors(many.model).items()})
    state = {"run": {"step": 4}}
    path = checkpoint.save_shards(folder, step=4, model=many.model, optimizer=many.moments, state=state, base=base, rank=rank, gather=gather)
    full = checkpoint.save_shards(folder / "full", step=4, model=many.model, optimizer=many.moments, state=state, rank=rank, gather=gather)
    found["files"] = sorted(p.name for p in path.iterdir())
    found["manifest"] = files.problem(path)
    loaded = checkpoint.read(path, base)
    whole = Training(model(), False)
    checkpoint.load_weights(whole.model, loaded.weights, base)
    load_state(whole.adamw, loaded.optimizer)
    found["two to one"] = whole.bits() == many.bits()
    plain = folder / "plain"
    if rank == 0:
        checkpoint.save(plain, step=4, model=whole.model, optimizer=whole.moments, state=state, base=base)
    dist.barrier()
    for way, place in {"two to two": path, "one to two": plain / "checkpoints" / path.name}.items():
        checkpoint.about(place, base, (rank, world))
        again = Training(model(), True)
        checkpoint.load_parts(place, again.model, again.moments, base)
        found[way] = again.bits() == many.bits()
    once_more = copy.copy(again.update(5, rank, world)), many.update(5, rank, world)
    found["goes on"] = once_more[0] == once_more[1] and again.bits() == many.bits()
    found["opened"] = opened(full, Training(model(1), True))

    # What fails on one process is raised on all, and leaves nothing.
    def full_disk(file: Path, data: bytes) -> None:
        raise DeviceError(f"{file.name}: no space")

    write = files.write
    for name, where in {"shard": 1, "small": 0}.items():
        if rank == where:
            fault = full_disk if name == "shard" else lambda file, data: full_disk(file, data) if file.name == "state.json" else write(file, data)
            files.write = fault
        found[f"failed {name}"] = refused(
            lambda: checkpoint.save_shards(folder, step=5, model=many.model, optimizer=many.moments, state=state, rank=rank, gather=gather)
        )
        files.write = write
        dist.barrier()
        found[f"left {name}"] = sorted(p.name for p in (folder / "checkpoints").iterdir())
        dist.barrier()
    found["misfit"] = refused(lambda: checkpoint.load_parts(path, many.model, many.moments, None))

    # The model as one again.
    expected = {n: sharding.whole(t.detach()) for n, t in checkpoint.tensors(many.model).items()}
    sharding.gathered(many.model, many.skeleton, rank == 0)
    if rank == 0:
        assert isinstance(many.skeleton, Model)
        own = checkpoint.tensors(many.skeleton)
        found["gathered"] = own.keys() == expected.keys() and all(torch.equal(own[n], t) for n, t in expected.items())
        found["gathered tied"] = many.skeleton.head.weight is many.skeleton.embeddings.weight
        found["gathered runs"] = bool(many.skeleton(torch.tensor([[1, 2]])).isfinite().all())
    else:
        found["gathered"] = all(p.is_meta for p in many.skeleton.parameters())
    return found


def opened(path: Path, training: Training) -> list[str]:
    """The files that this process opens for the divided tensors of a checkpoint."""
    names: set[str] = set()
    opening = sharding.Stored._file

    def noted(self: sharding.Stored, name: str) -> Any:
        names.add(name)
        return opening(self, name)

    sharding.Stored._file = noted  # type: ignore[method-assign]
    with sharding.stored(path, "model") as tensors:
        tensors.into("blocks.1.linear.weight", training.model.blocks[1].linear.weight)
    sharding.Stored._file = opening  # type: ignore[method-assign]
    return sorted(names)


if __name__ == "__main__":
    home, number = Path(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(str(home / "group"), 2), rank=number, world_size=2, timeout=datetime.timedelta(seconds=120))
    (home / f"claims-{number}.json").write_text(json.dumps(claims(home / "run", number, 2)))
    dist.destroy_process_group()
