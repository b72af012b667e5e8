"""Where the blocks of any transformers model are: the only place that knows transformers' insides.

    anatomy(config, GPT2LMHeadModel)   →  Anatomy: every parameter's section, derived from one forward of a small copy
    prefix(model, anatomy, k, inputs)  →  what the first k blocks make of a batch
    tail(model, anatomy, k)            →  the rest of the model, sharing its parameters: tail(prefix(x), **x) == model(x)
    found.fitted(model, ["pooled"])    →  the anatomy of a model that was changed since: another head, adapters, untied matrices
    found.frozen_depth(trainable)      →  how many blocks, from the bottom, hand on the same states however long one trains
    frozen_modules(anatomy, model, …)  →  the modules that belong in eval()
    untie(model)                       →  the output matrix becomes a copy of the embeddings' instead of being it

The sections, from the bottom up, each holding the parameters that

    embeddings  the state entering block 0 depends on
    block.i     stand in block i
    final       come after the blocks inside the base model (norm, pooler), or work inside the blocks but stand outside
                of them (DeBERTa's rel_embeddings, MPNet's relative_attention_bias: `Anatomy.shared`)
    head        stand outside the base model

A tied parameter counts once, at its earliest use. A parameter that no forward without labels reaches counts where its
module stands (`Anatomy.unused`). "Depends on" is read from the graph that autograd builds, so nothing here is a table of
families. Models with shared blocks (ALBERT) or two stacks (T5) are refused by name.
"""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from llmtrain.errors import ConfigError

if TYPE_CHECKING:
    from torch.autograd.graph import Node
    from transformers import PretrainedConfig, PreTrainedModel

EMBEDDINGS, FINAL, HEAD = "embeddings", "final", "head"
FITS = "models with one stack of blocks, each block with its own parameters"
FIX = "finetune=full, without a cut, is the only mode that fits this model"

# The small copy. Heads of 8 keep every rotary fraction even; widths differ from one another so that nothing ties by accident.
WIDTH, NARROW, INNER, HEADS, HEAD_WIDTH, VOCABULARY, POSITIONS = 32, 16, 64, 4, 8, 96, 64
# Settings of transformers' configs, beside those that `attribute_map` translates. A width equal to the model's stays equal
# to it in the copy: ELECTRA and OPT add a projection where embedding and model differ.
WIDTHS = ("embedding_size", "word_embed_proj_dim", "pooler_hidden_size", "true_hidden_size", "intra_bottleneck_size")
INNERS = ("intermediate_size", "ffn_dim", "n_inner", "hidden_dim", "d_inner", "ffn_hidden_size", "moe_intermediate_size", "shared_expert_intermediate_size")
HEAD_WIDTHS = ("head_dim", "d_head", "d_kv", "rotary_dim")
COUNTS = ("num_attention_heads", "num_key_value_heads", "num_kv_heads")
# A copy that cannot be made small is made whole up to this many parameters (8 GB in fp32).
LARGEST_COPY = 2_000_000_000
LENGTHS = (8, 5)  # of the two rows of the dry forward; the second is padded on the right


class Row(NamedTuple):
    """One line of a parameter table: a section, its tensors, its parameters, and how many of these are trained."""

    section: str
    tensors: int
    parameters: int
    trainable: int = 0


@dataclass(frozen=True, kw_only=True)
class Anatomy:
    """Which section every parameter and module of a model belongs to. Names are those of `model.named_parameters()`."""

    family: str  # config.model_type
    stack: str  # path of the ModuleList of blocks inside the model
    depth: int  # number of blocks
    sections: Mapping[str, str]  # parameter → section; a tied parameter stands here under one name
    tied: Mapping[str, str]  # further name of a tied parameter → the name in `sections`
    modules: Mapping[str, str]  # module → section, where all of it is in one section; for train() and eval()
    shared: frozenset[str]  # parameters of `final` that the blocks use: frozen when any block is
    draws: frozenset[str]  # modules around the stack that drop out, or leave out blocks, by hand: not by a module that could be in eval() by itself
    unused: frozenset[str]  # parameters that get no gradient from a forward without labels
    returns: int | None  # items in the tuple that a block returns, hidden states first; None: the bare tensor
    batch_first: bool  # False where the blocks see (time, batch, width), as XLNet's do
    uncut: str | None  # why this model cannot be cut, None where it can

    @property
    def blocks(self) -> tuple[str, ...]:
        """The sections of the blocks, `block.0` first."""
        return tuple(f"block.{i}" for i in range(self.depth))

    def names(self, section: str) -> list[str]:
        """The parameters of one section, in the model's order. ConfigError where there is no such section."""
        known = (EMBEDDINGS, *self.blocks, FINAL, HEAD)
        if section not in known:
            raise ConfigError(f"{self.family}: no section {section!r}", allowed=f"{EMBEDDINGS}, block.0 … block.{self.depth - 1}, {FINAL}, {HEAD}")
        return [name for name, place in self.sections.items() if place == section]

    def below(self, k: int) -> frozenset[str]:
        """The parameters that the state handed on by the first k blocks depends on: what must be frozen to cut at k."""
        places = {EMBEDDINGS, *self.blocks[:k]}
        below = frozenset(name for name, place in self.sections.items() if place in places)
        return below | self.shared if k else below

    def above(self, k: int) -> frozenset[str]:
        """All other parameters: blocks k and higher, final and head, and what all blocks share where k is 0."""
        return frozenset(self.sections) - self.below(k)

    def buffers_below(self, names: Iterable[str], k: int) -> list[str]:
        """Those of some buffers that the same state may depend on: all that stand neither in a higher block nor in the head."""
        higher = tuple(f"{self.stack}.{i}." for i in range(k, self.depth))
        return [name for name in names if not name.startswith(higher) and self.modules.get(name.rpartition(".")[0]) != HEAD]

    def frozen_depth(self, trainable: Iterable[str]) -> int:
        """The number of blocks, from the bottom, whose states no update changes: the highest cut below all that is trained.

        0 where the embeddings are trained, and in a model that cannot be cut.
        """
        moving = {self.tied.get(name, name) for name in trainable}
        depths = [] if self.uncut else [k for k in range(1, self.depth + 1) if not moving & self.below(k)]
        return max(depths, default=0)

    def heights(self) -> dict[str, int]:
        """Parameter → how high it works: 0 embeddings, i + 1 block i, depth + 1 all above; what all blocks share from block 0 on."""
        heights = {section: height for height, section in enumerate((EMBEDDINGS, *self.blocks))}
        return {name: 1 if name in self.shared else heights.get(section, self.depth + 1) for name, section in self.sections.items()}

    def describe(self, model: nn.Module, trainable: Iterable[str] = ()) -> list[Row]:
        """The parameter table of `model`, of which `trainable` is trained: from the bottom up, without empty sections."""
        self.check(model)
        moving = set(trainable)
        sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
        table = [(section, self.names(section)) for section in (EMBEDDINGS, *self.blocks, FINAL, HEAD)]
        return [Row(section, len(names), sum(sizes[n] for n in names), sum(sizes[n] for n in names if n in moving)) for section, names in table if names]

    def fitted(self, model: PreTrainedModel, heads: Iterable[str] = (), unread: Iterable[str] = ()) -> Anatomy:
        """The anatomy of `model` after it was changed: told by names alone, no forward is run.

        What is gone is dropped (a pooler set to None). What stands below the attributes named in `heads` is head. What was
        injected (LoRA's matrices, and the layer that they wrap) belongs where its module does. An output matrix that is no
        longer tied to the embeddings is head. What stands below the attributes named in `unread` is unused from now on: a
        pooler, say, under a head that does not ask for it.
        """
        _, tied = _names(model)
        heads = tuple(heads)
        apart = self._apart(tied)
        outer = {name for name in apart if not _inside(name, model)}
        homes = _homes(model, self.stack)
        sections = {
            name: HEAD if name in outer or _stands_below(name, heads) else self._known(name) or homes[id(parameter)]
            for name, parameter in model.named_parameters()
        }
        # Of a bias that went by two names (BERT's decoder) the forward reads the one in the output layer.
        output = model.get_output_embeddings() if outer else None
        read = {id(parameter) for parameter in output.parameters()} if output is not None else set()
        idle = {name for name in outer if read and id(model.get_parameter(name)) not in read}
        unread = tuple(unread)
        idle |= {name for name in sections if _stands_below(name, unread)}
        calls = {**self.modules, **{name: HEAD for name, _ in model.named_modules() if _stands_below(name, heads)}}
        return dataclasses.replace(
            self,
            sections=sections,
            tied=tied,
            modules=_modules(model, self.stack, sections, calls),
            shared=frozenset(name for name in sections if self._before(name) in self.shared),
            unused=frozenset(name for name in sections if self._before(name) in self.unused) | idle,
        )

    def _apart(self, tied: Mapping[str, str]) -> set[str]:
        """The names of parameters that were one and, by the model's present ties, are no longer."""
        pairs = [(alias, known) for alias, known in self.tied.items() if tied.get(alias, alias) != tied.get(known, known)]
        return {name for pair in pairs for name in pair}

    def _before(self, name: str) -> str:
        """What a parameter was called before adapters wrapped its module, where it goes by another name now."""
        plain = name if name in self.sections else name.replace(".base_layer.", ".")
        return self.tied.get(plain, plain)

    def _known(self, name: str) -> str | None:
        """The section of a parameter that was there before, else that of the nearest module around it that has one."""
        inner = self._before(name)
        section = self.sections.get(inner)
        while section is None and "." in inner:
            inner = inner.rpartition(".")[0]
            section = self.modules.get(inner)
        return section

    def check(self, model: nn.Module) -> None:
        """Raise ConfigError unless `model` has these parameters. A matrix tied or untied afterwards shows: it goes by one name or two."""
        strange = sorted(_names(model)[0] ^ self.sections.keys())
        if strange:
            what = f"{type(model).__name__} does not fit the anatomy of its {self.family} config, first at {strange[0]}"
            raise ConfigError(what, allowed=f"{len(self.sections)} parameters, tied: {', '.join(self.tied) or 'none'}")


def anatomy(config: PretrainedConfig, model_class: type[PreTrainedModel] | None = None) -> Anatomy:
    """The anatomy of the models that `model_class` makes from `config`, in seconds and without their memory at any size.

    Without a class: the one named in `config.architectures`, else the base model of the family. ConfigError where the
    model has shared blocks, several stacks, no stack, other input than token ids, or cannot be built. The caller's random
    state is left as it was.
    """
    _refuse_two_stacks(config)
    with _alone():
        model_class = model_class or _model_class(config)
        names, tied, size = _whole(config, model_class)
        problem: Exception | None = None
        for small in _copies(size):
            try:
                model = model_class(small(config)).eval().requires_grad_()  # fixed tables of positions are frozen, yet used
                if _names(model) == (names, tied):
                    return _derive(model)
            except ConfigError:
                raise
            except Exception as error:  # transformers raises anything; the next copy is less small
                problem = error
    raise ConfigError(f"{_named(config)}: no small copy of the model runs ({problem or 'its parameters have other names'})", allowed=FITS, fix=FIX) from problem


def undivided(model: PreTrainedModel) -> Anatomy:
    """An anatomy without blocks, for a model that has none of its own: enough to train all of it, for nothing else."""
    names, tied = _names(model)
    sections = {name: HEAD for name, _ in model.named_parameters() if name in names}
    why = "the model is not divided into blocks"
    return Anatomy(
        family=model.config.model_type,
        stack="",
        depth=0,
        sections=sections,
        tied=tied,
        modules={},
        shared=frozenset(),
        draws=frozenset(),
        unused=frozenset(),
        returns=None,
        batch_first=True,
        uncut=why,
    )


def frozen_modules(anatomy: Anatomy, model: nn.Module, trainable: Iterable[str]) -> list[str]:
    """The modules to put in eval(), each by itself, in the model's order: what is frozen should neither drop out nor count statistics.

    A module is frozen when all its parameters are, with all that stands in it; one without parameters (a dropout) when its
    section has nothing trainable. Modules without parameters that stand in no section are left alone. A module around the
    blocks that draws by itself (`Anatomy.draws`) is in eval() where the embeddings are frozen: what it drops out is theirs,
    and a block that it leaves out may be a frozen one. What is trained in it has a mode of its own.
    """
    moving = {anatomy.tied.get(name, name) for name in trainable}
    alive = {section for name, section in anatomy.sections.items() if name in moving}
    trained = {id(parameter) for name, parameter in model.named_parameters() if name in moving}

    def frozen(name: str, module: nn.Module) -> bool:
        own = [id(parameter) for parameter in module.parameters()]
        if own:
            return trained.isdisjoint(own)
        return name in anatomy.modules and anatomy.modules[name] not in alive

    asleep = {id(inner) for name, module in model.named_modules() if frozen(name, module) for inner in module.modules()}
    if EMBEDDINGS not in alive:
        asleep |= {id(model.get_submodule(name)) for name in anatomy.draws}
    return [name for name, module in model.named_modules() if id(module) in asleep]


def untie(model: PreTrainedModel) -> list[str]:
    """Give every tied weight outside of the embeddings a tensor of its own, of the same numbers; the config follows.

    All of them, not the matrix alone: with `tie_word_embeddings=False` transformers also loads BERT's two output biases
    as two, and would find one of them missing in what was saved.

    Returns:
        The names of the parameters that were untied; none where the model ties nothing.
    """
    names = [name for name in _names(model)[1] if name in model.all_tied_weights_keys]
    # The model may list the output layer first, and then it is the embedding that goes by a further name (XLM-RoBERTa).
    names += [known for alias, known in _names(model)[1].items() if alias not in names and known in model.all_tied_weights_keys]
    for name in names:
        parent, _, last = name.rpartition(".")
        parameter = model.get_parameter(name)
        setattr(model.get_submodule(parent), last, nn.Parameter(parameter.detach().clone(), requires_grad=parameter.requires_grad))
    if names:
        model.config.tie_word_embeddings = False
        model.all_tied_weights_keys = {target: source for target, source in model.all_tied_weights_keys.items() if target not in names}
    return names


# --- the cut ------------------------------------------------------------------------------------------------------


def prefix(model: nn.Module, anatomy: Anatomy, k: int, inputs: Mapping[str, Any]) -> Tensor:
    """What the first k blocks hand on, 1 ≤ k ≤ depth: (batch, time, width). Nothing above them is computed.

    Gradients flow unless the caller turns them off. A state to be stored wants the prefix in eval().
    """
    _can_cut(anatomy, k)

    def stop(module: nn.Module, args: object, output: Any) -> None:
        raise _ReachedError(output if anatomy.returns is None else output[0])

    hook = _blocks(model, anatomy.stack, anatomy.depth)[k - 1].register_forward_hook(stop)
    try:
        model(**inputs)
    except _ReachedError as reached:
        return reached.hidden if anatomy.batch_first else reached.hidden.transpose(0, 1).contiguous()
    finally:
        hook.remove()
    raise ConfigError(f"{anatomy.family}: the forward never came to block {k - 1}")


def tail(model: nn.Module, anatomy: Anatomy, k: int) -> Tail:
    """The rest of `model` above its first k blocks, 1 ≤ k ≤ depth, sharing every parameter and buffer with it.

    Called with the hidden states and the inputs that made them. Masks, positions and head are made by the model's own
    forward, which is why all inputs are wanted again. Outputs that hold the states of every block (key-value caches,
    XLNet's mems, output_hidden_states) show the cut. The twin starts in the training mode of the model, and what is
    added to the model later (hooks, adapters) is not in it.
    """
    _can_cut(anatomy, k)
    slot = _Slot()
    # What the memo knows is not copied: parameters and buffers stay the same objects, lower blocks become Skips.
    memo: dict[int, Any] = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    memo |= {id(block): Skip(block, slot, anatomy.returns) for block in _blocks(model, anatomy.stack, anatomy.depth)[:k]}
    return Tail(copy.deepcopy(model, memo), slot, batch_first=anatomy.batch_first)


class Tail(nn.Module):
    """A twin of a model whose first blocks hand on the states they are given: `tail(hidden, **inputs)`."""

    def __init__(self, model: nn.Module, slot: _Slot, *, batch_first: bool) -> None:
        super().__init__()
        self.model, self.slot, self.batch_first = model, slot, batch_first

    def forward(self, hidden: Tensor, **inputs: Any) -> Any:
        """What the whole model returns for `inputs`, given its first blocks' `hidden`: (batch, time, width)."""
        with self.fed(hidden):
            return self.model(**inputs)

    @contextmanager
    def fed(self, hidden: Tensor) -> Iterator[nn.Module]:
        """The twin, ready to be called whole or in part (its body alone, then its head) on the inputs of `hidden`."""
        self.slot.hidden = hidden if self.batch_first else hidden.transpose(0, 1).contiguous()
        try:
            yield self.model
        finally:
            self.slot.hidden = None


class Skip(nn.Module):
    """Stands where a block stood, hands on the states in the slot, and keeps the block's plain attributes."""

    def __init__(self, block: nn.Module, slot: _Slot, returns: int | None) -> None:
        super().__init__()
        # Some models ask their blocks what they are (`attention_type`) before they call them.
        plain = {name: value for name, value in vars(block).items() if not name.startswith("_") and isinstance(value, str | int | float | None)}
        vars(self).update(plain)
        self.slot, self.returns = slot, returns

    def forward(self, *args: object, **kwargs: object) -> Tensor | tuple[Tensor | None, ...]:
        hidden = self.slot.hidden
        if hidden is None:
            raise RuntimeError("a tail has no states of its own: call tail(hidden, **inputs), or its model inside tail.fed(hidden)")
        return hidden if self.returns is None else (hidden, *[None] * (self.returns - 1))


class _Slot:
    """The one place from which all Skips of a tail take their states."""

    hidden: Tensor | None = None


class _ReachedError(Exception):
    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self.hidden = hidden


def _can_cut(anatomy: Anatomy, k: int) -> None:
    if anatomy.uncut:
        raise ConfigError(f"{anatomy.family}: cannot be cut between its blocks ({anatomy.uncut})", fix="cache.use=never")
    if not 1 <= k <= anatomy.depth:
        raise ConfigError(f"{anatomy.family}: no cut above {k} blocks", allowed=f"1 to {anatomy.depth}")


def _blocks(model: nn.Module, stack: str, depth: int) -> nn.ModuleList:
    try:
        blocks = model.get_submodule(stack)
    except AttributeError:
        blocks = model
    if not isinstance(blocks, nn.ModuleList) or len(blocks) != depth:
        raise ConfigError(f"{type(model).__name__}: no list of {depth} blocks at {stack!r}")
    return blocks


# --- from the small copy to the sections --------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Trace:
    """What one forward showed."""

    marks: list[list[Node]]  # graph nodes of the state entering block 0, of each block's output, of the outputs
    calls: dict[str, str]  # module → the section that was running when it was first called
    order: list[int]  # the blocks, as they were called
    shape: torch.Size  # of the hidden states
    returns: int | None


def _derive(model: PreTrainedModel) -> Anatomy:
    """The anatomy of a small model: the stack by its shape, the sections by one forward."""
    stack = _find_stack(model)
    blocks = _blocks(model, stack, model.config.num_hidden_layers)
    trace = _run(model, blocks)
    _refuse_shared_blocks(model, blocks, trace.order)
    sections, shared, unused = _sections(model, stack, trace)
    found = Anatomy(
        family=model.config.model_type,
        stack=stack,
        depth=len(blocks),
        sections=sections,
        tied=_names(model)[1],
        modules=_modules(model, stack, sections, trace.calls),
        shared=shared,
        draws=_draws(model, stack),
        unused=unused,
        returns=trace.returns,
        batch_first=trace.shape[0] == len(LENGTHS),
        uncut=None,
    )
    return dataclasses.replace(found, uncut=_uncut(model, found))


def _find_stack(model: PreTrainedModel) -> str:
    """Path of the one ModuleList of `num_hidden_layers` blocks: of transformers' own layer type, else of one class."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    depth: int = model.config.num_hidden_layers
    lists = {path: list(module) for path, module in model.named_modules() if isinstance(module, nn.ModuleList) and len(module) == depth > 0}
    layers = {path for path, blocks in lists.items() if all(isinstance(block, GradientCheckpointingLayer) for block in blocks)}
    alike = {path for path, blocks in lists.items() if len({type(block) for block in blocks}) == 1}
    found: list[str] = sorted(layers or alike)
    if len(found) != 1:
        reason = f"its layers stand in {len(found)} lists, {', '.join(found)}" if found else _no_stack(model)
        raise ConfigError(f"{_named(model.config)}: {reason}", allowed=FITS, fix=FIX)
    return found[0]


def _no_stack(model: PreTrainedModel) -> str:
    """Why a model has no stack: its layers are one layer called again and again, or it is built in another way."""
    calls: dict[nn.Module, int] = {}

    def count(module: nn.Module, args: object) -> None:
        calls[module] = calls.get(module, 0) + 1

    leaves = [module for module in model.modules() if isinstance(module, nn.Linear)]
    with _hooked([leaf.register_forward_pre_hook(count) for leaf in leaves]):
        model(**_batch(model.config))
    if max(calls.values(), default=1) > 1:
        return f"its {model.config.num_hidden_layers} layers share their parameters"
    return f"it has no list of {model.config.num_hidden_layers} blocks"


def _refuse_shared_blocks(model: PreTrainedModel, blocks: nn.ModuleList, order: list[int]) -> None:
    own = [{id(parameter) for parameter in block.parameters()} for block in blocks]
    if order != list(range(len(blocks))) or len(set[int]().union(*own)) < sum(map(len, own)):
        what = f"{_named(model.config)}: its {len(blocks)} layers share their parameters or do not run one after the other"
        raise ConfigError(what, allowed=FITS, fix=FIX)


def _run(model: PreTrainedModel, blocks: nn.ModuleList) -> _Trace:
    """One forward of the small model, watched."""
    marks: list[list[Node]] = []
    calls: dict[str, str] = {}
    order: list[int] = []
    seen: dict[str, Any] = {"section": EMBEDDINGS}

    def called(name: str, module: nn.Module) -> None:
        calls.setdefault(name, seen["section"] or (FINAL if _inside(name, model) else HEAD))

    def entered(i: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        if not marks:
            seen["shape"] = hidden.shape
            marks.append(_nodes(hidden))
        order.append(i)
        seen["section"] = f"block.{i}"

    def left(i: int, output: Any) -> None:
        seen["returns"] = None if isinstance(output, Tensor) else len(output)
        marks.append(_nodes(output if isinstance(output, Tensor) else output[0]))
        seen["section"] = seen["section"] if i + 1 < len(blocks) else None

    hooks = [module.register_forward_pre_hook(lambda m, args, name=name: called(name, m)) for name, module in model.named_modules()]
    for i, block in enumerate(blocks):
        hooks.append(block.register_forward_pre_hook(lambda m, args, kwargs, i=i: entered(i, args, kwargs), with_kwargs=True, prepend=True))
        hooks.append(block.register_forward_hook(lambda m, args, output, i=i: left(i, output)))
    with _hooked(hooks):
        marks.append(_nodes(model(**_batch(model.config))))
    return _Trace(marks=marks, calls=calls, order=order, shape=seen.get("shape", torch.Size()), returns=seen.get("returns"))


def _draws(model: PreTrainedModel, stack: str) -> frozenset[str]:
    """The modules around the stack, inside the base model, that draw random numbers in a forward where they alone are in train().

    Asked of each one, as not all of them may be in eval() while something in them learns: xLSTM then computes without gradients.
    """
    parts = stack.split(".")
    around = [name for name in (".".join(parts[:number]) for number in range(len(parts))) if _inside(name, model)]
    return frozenset(name for name in around if _draws_alone(model, model.get_submodule(name)))


def _draws_alone(model: PreTrainedModel, module: nn.Module) -> bool:
    before = torch.get_rng_state()
    module.training = True
    try:
        with torch.no_grad():
            model(**_batch(model.config))
    finally:
        module.training = False
    return not torch.equal(torch.get_rng_state(), before)


def _sections(model: PreTrainedModel, stack: str, trace: _Trace) -> tuple[dict[str, str], frozenset[str], frozenset[str]]:
    """(parameter → section, shared, unused) from the order in which the graph reaches the parameters."""
    first = _first_reached(trace.marks)
    homes = _homes(model, stack)
    last = len(trace.marks) - 1
    sections: dict[str, str] = {}
    shared, unused = set(), []
    for name, parameter in model.named_parameters():
        mark, home = first.get(id(parameter)), homes[id(parameter)]
        if mark is None:
            unused.append(name)
        elif mark == 0:
            sections[name] = EMBEDDINGS
        elif mark < last and not home.startswith("block."):
            sections[name] = FINAL
            shared.add(name)
        else:
            sections[name] = home
    for name in unused:
        sections[name] = _neighbours(name, sections) or homes[id(model.get_parameter(name))]
    return {name: sections[name] for name, _ in model.named_parameters()}, frozenset(shared), frozenset(unused)


def _first_reached(marks: list[list[Node]]) -> dict[int, int]:
    """id of a parameter → the first mark whose graph holds it. Every node is visited once, so depth costs nothing extra."""
    seen: set[Node] = set()
    first: dict[int, int] = {}
    for mark, nodes in enumerate(marks):
        todo = list(nodes)
        while todo:
            node = todo.pop()
            if node in seen:
                continue
            seen.add(node)
            if hasattr(node, "variable"):  # AccumulateGrad: a leaf
                first.setdefault(id(node.variable), mark)
            todo += [following for following, _ in node.next_functions if following is not None]
    return first


def _homes(model: PreTrainedModel, stack: str) -> dict[int, str]:
    """id of a parameter → where it stands: the lowest of its places where it is tied."""
    homes: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        inner = name.removeprefix(f"{stack}.")
        place = f"block.{inner.partition('.')[0]}" if inner != name else FINAL if _inside(name, model) else HEAD
        known = homes.get(id(parameter), HEAD)
        homes[id(parameter)] = place if known == HEAD or place.startswith("block.") else known
    return homes


def _neighbours(name: str, sections: Mapping[str, str]) -> str | None:
    """The section of the nearest module around an unused parameter that has used ones, if they agree on one."""
    parent = name
    while "." in parent:
        parent = parent.rpartition(".")[0]
        around = {section for other, section in sections.items() if other.startswith(f"{parent}.")}
        if around:
            return around.pop() if len(around) == 1 else None
    return None


def _modules(model: PreTrainedModel, stack: str, sections: Mapping[str, str], calls: Mapping[str, str]) -> dict[str, str]:
    """Module → section: in a block by place, elsewhere by parameters, without parameters by when it was first called."""
    places = {id(parameter): sections[name] for name, parameter in model.named_parameters()}
    found: dict[str, str] = {}
    for name, module in model.named_modules():
        inner = name.removeprefix(f"{stack}.")
        own = {places[id(parameter)] for parameter in module.parameters()}
        if inner != name:
            found[name] = f"block.{inner.partition('.')[0]}"
        elif len(own) == 1:
            found[name] = own.pop()
        elif not own and not list(module.children()) and name in calls:
            found[name] = calls[name]
    return found


def _uncut(model: PreTrainedModel, found: Anatomy) -> str | None:
    """Why the small model cannot be cut, None where two halves give its very bits: tried at both ends and in the middle."""
    batch, depth = _batch(model.config), found.depth
    with torch.no_grad():
        whole = _tensors(model(**batch))
        for k in sorted({1, depth // 2, depth - 1, depth} - {0}):
            try:
                hidden = prefix(model, found, k, batch)
                kept = hidden.clone()
                halves = _tensors(tail(model, found, k)(hidden, **batch))
            except Exception as error:  # whatever a family does with its blocks
                return f"{type(error).__name__}: {error}"
            if len(whole) != len(halves) or not all(map(torch.equal, (*whole, kept), (*halves, hidden))):
                return "its blocks hand on more than their hidden states"
    return None


def _names(model: nn.Module) -> tuple[set[str], dict[str, str]]:
    """(names of the parameters, further names of the tied ones → the first)."""
    first = {id(parameter): name for name, parameter in model.named_parameters()}
    every = {name: first[id(parameter)] for name, parameter in model.named_parameters(remove_duplicate=False)}
    return set(first.values()), {name: known for name, known in every.items() if name != known}


def _stands_below(name: str, modules: Iterable[str]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def _inside(name: str, model: PreTrainedModel) -> bool:
    """Whether a name stands in the base model."""
    body: str = model.base_model_prefix
    return not hasattr(model, body) or name == body or name.startswith(f"{body}.")


def _nodes(value: Any) -> list[Node]:
    return [tensor.grad_fn for tensor in _tensors(value) if tensor.grad_fn is not None]


def _tensors(value: Any) -> list[Tensor]:
    """All floating-point tensors in an output, however nested."""
    if isinstance(value, Tensor):
        return [value] if value.is_floating_point() else []
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return [tensor for item in items for tensor in _tensors(item)]


# --- the small copy -----------------------------------------------------------------------------------------------


def _named(config: PretrainedConfig) -> str:
    return f"model family {config.model_type}"


def _refuse_two_stacks(config: PretrainedConfig) -> None:
    if config.is_encoder_decoder:
        raise ConfigError(f"{_named(config)}: an encoder and a decoder are two stacks of blocks", allowed=FITS, fix=FIX)
    if not hasattr(config, "num_hidden_layers"):
        raise ConfigError(f"{_named(config)}: its config has no num_hidden_layers, so no one stack of blocks", allowed=FITS, fix=FIX)


def _model_class(config: PretrainedConfig) -> type[PreTrainedModel]:
    import transformers

    for name in config.architectures or []:
        named = getattr(transformers, name, None)
        if isinstance(named, type) and issubclass(named, transformers.PreTrainedModel):
            return named
    try:
        mapped = transformers.MODEL_MAPPING[type(config)]
    except KeyError:
        raise ConfigError(f"{_named(config)}: transformers has no model for it") from None
    chosen: type[PreTrainedModel] = mapped[0] if isinstance(mapped, tuple) else mapped
    return chosen


def _whole(config: PretrainedConfig, model_class: type[PreTrainedModel]) -> tuple[set[str], dict[str, str], int]:
    """(names, tied names, number of parameters) of the model itself, built on the meta device: no memory is taken."""
    try:
        with torch.device("meta"):
            model = model_class(_plain(config))
    except Exception as error:  # transformers raises anything
        raise ConfigError(f"{_named(config)}: {model_class.__name__} cannot be built: {error}") from error
    return *_names(model), sum(parameter.numel() for parameter in model.parameters())


def _copies(size: int) -> list[Callable[[PretrainedConfig], PretrainedConfig]]:
    """What makes a config of the same type and depth, the smallest first; the last keeps all sizes, where that is not too large."""
    return [_narrow, _few_tokens, _plain] if size <= LARGEST_COPY else [_narrow]


def _plain(config: PretrainedConfig) -> PretrainedConfig:
    """A copy for a forward of nothing but token ids and mask, with plain attention, in fp32."""
    plain = copy.deepcopy(config)
    plain.return_dict, plain.dtype, plain._attn_implementation = True, torch.float32, "eager"
    for name in ("use_cache", "use_mems_eval", "output_hidden_states", "output_attentions"):  # outputs that hold every block's states
        if hasattr(plain, name):
            setattr(plain, name, False)
    if hasattr(plain, "quantization_config"):
        del plain.quantization_config
    if getattr(plain, "pad_token_id", None) is None:
        plain.pad_token_id = 0  # classifiers of decoders find the last token by it
    return plain


def _few_tokens(config: PretrainedConfig) -> PretrainedConfig:
    """A plain copy with a vocabulary of VOCABULARY and all special tokens inside it."""
    few = _plain(config)
    few.vocab_size = VOCABULARY
    names = [name for name in vars(few) if name.endswith("_token_id")]
    for i, name in enumerate(sorted(names)):
        value = getattr(few, name)
        if isinstance(value, list) or (isinstance(value, int) and value >= VOCABULARY):
            setattr(few, name, i)
    return few


def _narrow(config: PretrainedConfig) -> PretrainedConfig:
    """A plain copy with few tokens, small widths, few heads and short positions; what was equal stays equal."""
    narrow = _few_tokens(config)
    width = getattr(config, "hidden_size", None)
    for name in WIDTHS:
        _shrink(narrow, name, WIDTH if getattr(config, name, None) == width else NARROW)
    for name in COUNTS:
        _shrink(narrow, name, HEADS)
    for name in INNERS:
        _shrink(narrow, name, INNER)
    for name in HEAD_WIDTHS:
        _shrink(narrow, name, HEAD_WIDTH)
    _shrink(narrow, "hidden_size", WIDTH)
    _shrink(narrow, "max_position_embeddings", POSITIONS)
    _plain_rotation(getattr(narrow, "rope_parameters", None))
    return narrow


def _shrink(config: PretrainedConfig, name: str, value: int) -> None:
    """Set a setting by its standard name, where the config holds it as a number of its own."""
    if isinstance(vars(config).get(config.attribute_map.get(name, name)), int):
        setattr(config, name, value)


def _plain_rotation(parameters: Any) -> None:
    """Rotary embeddings without scaling, whose lists of factors have the length of a real head."""
    if isinstance(parameters, dict):
        for inner in parameters.values():
            _plain_rotation(inner)
        if "rope_type" in parameters:
            kept = {name: value for name, value in parameters.items() if name in ("rope_theta", "partial_rotary_factor")}
            parameters.clear()
            parameters.update(kept, rope_type="default")


def _batch(config: PretrainedConfig) -> dict[str, Tensor]:
    """Two rows of token ids, the second padded on the right: (2, 8). Without a mask of both kinds some families skip it."""
    time = torch.arange(max(LENGTHS))
    mask = (time < torch.tensor(LENGTHS)[:, None]).long()
    ids = (20 + torch.arange(mask.numel()).view_as(mask)).where(mask.bool(), torch.tensor(config.pad_token_id))
    return {"input_ids": ids, "attention_mask": mask}


@contextmanager
def _hooked(hooks: list[Any]) -> Iterator[None]:
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _alone() -> Iterator[None]:
    """On the CPU, with gradients, silent, and with the caller's random state put back at the end."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        # inference_mode(False) also turns gradients on, whatever the caller had.
        with torch.random.fork_rng(devices=[]), torch.device("cpu"), torch.inference_mode(False), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.manual_seed(0)
            yield
    finally:
        logging.set_verbosity(verbosity)
