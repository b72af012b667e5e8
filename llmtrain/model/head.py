"""The pooled head: states of a sequence → one vector → standardised → linear. Ours, and saved beside the body it stands on.

    attach(model, PooledHead(…))     the head becomes the module `pooled` of the model; the family's own forward ignores it
    pooled_head(model)               that module, or None
    save(head, folder)               head.json and head.safetensors, the standardisation folded into the weights
    read(folder)                     the head of such a folder, or None
    last_layer(model)                the layer that ends in the answers: of our head, or of the family's own
    learn_in_units(layer, …)         its weights are those of standardised scores from here on, what it gives is still scores
    saved(model)                     the tensors of a model as they are saved: scores again, and without the pooled head

Hidden state 0 is what enters the first block, hidden state n what the model hands on above its last block (behind the
final norm, where a family has one).
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from llmtrain.errors import CheckpointError, ConfigError
from llmtrain.model.base import HEAD_FILE, Combine, Outputs, Pooling

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAME = "pooled"
FILES = (HEAD_FILE, "head.safetensors")
SMALL = 1e-6  # a number of this spread or less is the same in every sequence: it is centred, not blown up
INITIAL = 0.02  # standard deviation of the initial weights, as of BERT's own heads


class PooledHead(nn.Module):
    """Linear answers from pooled states.

    Attributes:
        states: numbers of the hidden states that are read.
        pooling: how a sequence becomes one vector; never `auto`.
        task: the objective that it answers; empty where that is not known.
        first_choice: the number by which the data call the first of several choices; inside llmtrain it is 0.
        mean, scale: what each number is centred by and divided by before it is weighed; 0 and 1 until `standardise`.
        centre, spread: what an answer is shifted by and multiplied with; None until `learn_in_units`.
    """

    mean: Tensor
    scale: Tensor
    centre: Tensor | None
    spread: Tensor | None

    def __init__(self, width: int, outputs: Outputs, *, pooling: Pooling, states: Sequence[int], combine: Combine = Combine.concat) -> None:
        super().__init__()
        self.task, self.first_choice = "", 0
        self.outputs, self.pooling, self.states, self.combine, self.width = outputs, pooling, tuple(states), combine, width
        self.weight = nn.Parameter(torch.empty(outputs.number, width * (len(self.states) if combine is Combine.concat else 1)).normal_(0, INITIAL))
        self.bias = nn.Parameter(torch.zeros(outputs.number))
        self.mix = nn.Parameter(torch.zeros(len(self.states))) if combine is Combine.weighted else None
        shape = (1 if combine is Combine.sum else len(self.states), width)
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("scale", torch.ones(shape))
        self.register_buffer("centre", None)
        self.register_buffer("spread", None)

    def forward(self, vectors: Tensor) -> Tensor:
        """Answers (rows, K) in fp32 from pooled vectors (rows, states, width)."""
        with torch.autocast(vectors.device.type, enabled=False):
            x = (self.before_standardising(vectors) - self.mean) / self.scale  # (rows, states or 1, width)
            if self.mix is not None:
                x = torch.einsum("rsw,s->rw", x, self.mix.softmax(0))
            return _in_units(self, nn.functional.linear(x.flatten(1), self.weight, self.bias))

    def before_standardising(self, vectors: Tensor) -> Tensor:
        """The numbers that `mean` and `scale` are statistics of, in fp32: (rows, states, width), or (rows, 1, width) where states are summed."""
        return vectors.float().sum(1, keepdim=True) if self.combine is Combine.sum else vectors.float()

    def standardise(self, mean: Tensor, deviation: Tensor) -> None:
        """From here on the numbers have mean 0 and deviation 1 over the sequences whose statistics these are."""
        self.mean.copy_(mean)
        self.scale.copy_(deviation.where(deviation > SMALL, torch.ones_like(deviation)))

    def folded(self) -> PooledHead:
        """The same answers from a head that concatenates and does not standardise: what is saved.

        (x - mean) / scale · w = x · (w / scale) - mean · (w / scale), for each hidden state times its weight in the sum;
        and all of it times the spread, plus the centre.
        """
        shares = self.mix.softmax(0) if self.mix is not None else torch.ones(len(self.states))
        own = self.weight.detach().view(self.outputs.number, -1, self.width)  # (K, states or 1, width)
        weight = own * shares.detach().to(own)[None, :, None] / self.scale  # (K, states, width)
        head = PooledHead(self.width, self.outputs, pooling=self.pooling, states=self.states).to(own.device)
        head.task, head.first_choice = self.task, self.first_choice
        with torch.no_grad():
            head.weight.copy_(weight.flatten(1))
            centred = self.mean * (own / self.scale if self.combine is Combine.sum else weight)
            head.bias.copy_(self.bias - centred.sum((1, 2)))
            if self.spread is not None:
                head.weight.mul_(self.spread)
                head.bias.copy_(_in_units(self, head.bias))
        return head


def attach(model: PreTrainedModel, head: PooledHead) -> None:
    """Let a model wear a head; parameters `pooled.…` come with it."""
    model.add_module(NAME, head.to(model.device))


def pooled_head(model: nn.Module) -> PooledHead | None:
    return cast(PooledHead | None, model._modules.get(NAME))


def pool(states: Tensor, mask: Tensor | None, pooling: Pooling, pooled: Tensor | None) -> Tensor:
    """One vector (B, W) in fp32 for each sequence of (B, T, W).

    Args:
        mask: (B, T), 0 where there is padding, which is on the right; None: there is none.
        pooled: what the family's pooler gave, for `pooler`.

    Raises:
        CheckpointError: the family has no pooler.
    """
    if pooling is Pooling.pooler:
        if pooled is None:
            raise CheckpointError("model.pooling=pooler: this model has no pooler", allowed="cls, mean, last, max")
        return pooled.float()
    if pooling is Pooling.cls:
        return states[:, 0].float()
    if mask is None:
        return {Pooling.mean: states.float().mean(1), Pooling.last: states[:, -1].float(), Pooling.max: states.float().amax(1)}[pooling]
    if pooling is Pooling.last:
        return last_token(states, mask).float()
    real = mask[..., None].bool()
    if pooling is Pooling.max:
        return states.float().masked_fill(~real, float("-inf")).amax(1)
    return states.float().masked_fill(~real, 0).sum(1) / real.sum(1)


def last_token(states: Tensor, mask: Tensor | None) -> Tensor:
    """The states (B, W) of each sequence's last real token, wherever its padding begins."""
    if mask is None:
        return states[:, -1]
    return states[torch.arange(len(states), device=states.device), mask.long().sum(1) - 1]


# --- the units of scores --------------------------------------------------------------------------------------------


class _Scored(nn.Linear):
    """The last layer of a family's own head, where it learns in standardised scores."""

    centre: Tensor
    spread: Tensor

    def forward(self, input: Tensor) -> Tensor:
        return _in_units(self, super().forward(input).float())  # bf16 would round a score to 8 bits, its mean included


def _in_units(layer: PooledHead | _Scored, answers: Tensor) -> Tensor:
    return answers if layer.spread is None or layer.centre is None else answers * layer.spread + layer.centre


def last_layer(model: PreTrainedModel) -> tuple[str, PooledHead | nn.Linear]:
    """Path and layer of what gives a number as the answer of a task.

    Raises:
        ConfigError: the family's own head does not end in one linear layer.
    """
    worn = pooled_head(model)
    if worn is not None:
        return NAME, worn
    body = f"{model.base_model_prefix}."
    found = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.Linear) and m.out_features == 1 and not name.startswith(body)]
    if len(found) != 1:
        what = f"model.head=family: {type(model).__name__} has {len(found)} linear layers that end in a number, so that scores have no scale"
        raise ConfigError(what, allowed="families whose head has one", fix="model.head=pooled")
    return found[0]


@torch.no_grad()
def learn_in_units(layer: PooledHead | nn.Linear, mean: float, deviation: float, *, new: bool) -> None:
    """Let a layer's weights be those of scores with mean 0 and deviation 1, while what it gives are scores.

    An optimizer such as Adam moves each weight by about its rate, however large the gradient is: weights of scores in the
    thousands would take thousands of updates to get there, and those of hundredths could not be still.

    Where a family's layer has no bias (GPT-2's `score`), the mean cannot be saved: the scores' root mean square is the unit.

    Args:
        new: it starts from random numbers, which are of standardised scores; else it goes on with the answers that it gave.
    """
    centre, spread = (mean, deviation) if layer.bias is not None else (0.0, math.hypot(mean, deviation))
    for name, value in (("centre", centre), ("spread", spread)):
        layer.register_buffer(name, torch.full((1,), value, device=layer.weight.device))
    if not new:
        layer.weight.div_(spread)
        if layer.bias is not None:
            layer.bias.sub_(centre).div_(spread)
    if not isinstance(layer, PooledHead):
        layer.__class__ = _Scored  # as forward.use_cpu_linear does: names stay what they are


def units_of(model: nn.Module) -> frozenset[str]:
    """The tensors of the layers that learn in units of their own: the training rows decide their numbers, not the weights alone."""
    layers = [(name, m) for name, m in model.named_modules() if isinstance(m, PooledHead | _Scored) and m.spread is not None]
    return frozenset(f"{name}.{own}" for name, layer in layers for own in layer.state_dict())


def saved(model: PreTrainedModel) -> dict[str, Tensor]:
    """What `save_pretrained` is to write: the body and the family's head as the ecosystem knows them, in the units of the scores."""
    found = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(f"{NAME}.")}
    for name, layer in model.named_modules():
        if isinstance(layer, _Scored):
            found[f"{name}.weight"] = layer.weight.detach() * layer.spread
            if layer.bias is not None:
                found[f"{name}.bias"] = _in_units(layer, layer.bias.detach())
            del found[f"{name}.centre"], found[f"{name}.spread"]
    return found


# --- files --------------------------------------------------------------------------------------------------------


def save(head: PooledHead, folder: Path) -> None:
    """head.json and head.safetensors."""
    import safetensors.torch

    from llmtrain import files

    plain = head.folded()
    about = {"pooling": plain.pooling.value, "states": list(plain.states), "width": plain.width, "classes": list(plain.outputs.names), "objective": plain.task}
    about |= {"first_choice": plain.first_choice} if plain.first_choice else {}
    files.write(folder / FILES[0], json.dumps(about, indent=2, ensure_ascii=False).encode())
    files.write(folder / FILES[1], safetensors.torch.save({"weight": plain.weight.detach().cpu(), "bias": plain.bias.detach().cpu()}))


def read(folder: Path) -> PooledHead | None:
    """The head saved in a folder; None where there is none.

    Raises:
        CheckpointError: its files are damaged or do not fit each other.
    """
    import safetensors
    import safetensors.torch

    if not (folder / FILES[0]).is_file():
        return None
    try:
        about = json.loads((folder / FILES[0]).read_text(encoding="utf-8"))
        weights = safetensors.torch.load((folder / FILES[1]).read_bytes())
        head = _made(about, weights)
    except (OSError, ArithmeticError, ValueError, LookupError, TypeError, RuntimeError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{folder / FILES[0]}: not the head of a task: {type(error).__name__}", fix="take the folder anew") from error
    return head


def _made(about: Any, weights: dict[str, Tensor]) -> PooledHead:
    """The head of what its files say. Raises what Python raises where they say nonsense."""
    names = about["classes"]
    outputs, states = Outputs(len(weights["bias"]), tuple(names)), [int(number) for number in about["states"]]
    if not (isinstance(names, list) and all(isinstance(name, str) for name in names) and len(names) in (0, outputs.number) and outputs.number):
        raise ValueError(f"{len(names)} classes, {outputs.number} answers")
    if about["pooling"] == Pooling.auto.value or not states or min(states) < 0:
        raise ValueError("no pooling, or no states")
    if not all(tensor.isfinite().all() for tensor in weights.values()):
        raise ValueError("a weight is not a number")
    head = PooledHead(int(about["width"]), outputs, pooling=Pooling[about["pooling"]], states=states)
    head.load_state_dict({**head.state_dict(), **weights})
    head.task, head.first_choice = str(about.get("objective", "")), about.get("first_choice", 0)
    if type(head.first_choice) is not int or head.first_choice not in (0, 1):
        raise ValueError(f"choices are counted from {head.first_choice!r}")
    return head
