"""The short forward: body → positions that have a label → head → sum of losses. The modules stay the family's own.

    encode(model, reach(model), input_ids=…)      the body alone: states (B, T, W), and the pooled first token
    vocabulary_loss(model, states, labels)        the sum of cross entropies over the vocabulary
    vocabulary_scores(model, states, labels)      that sum, and how many labels were the likeliest token
    sentence_logits(model, encoded)               (B, 2) for pairs of segments
    answers(model, input_ids=…)                   (B, K) of a task, by the pooled head or the family's own
    width(model, numbers)                         how many numbers these hidden states have, found by a tiny pass
    linear_cross_entropy(hidden, weight, bias, labels)   from states and matrix; the logits never exist at once
    use_cpu_attention(model)                      attention that trains faster than torch's own on a CPU
    use_cpu_dropout(model)                        dropout that does, and that keeps a bit for each number
    use_cpu_linear(model)                         linear layers that keep less for the backward pass

None of it changes a parameter's name, a config, or what is saved.
"""

from __future__ import annotations

import copy
import functools
import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from enum import Enum
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary, ref as weakref

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from llmtrain.errors import ConfigError
from llmtrain.model.base import Pooling, evaluating, take_over
from llmtrain.model.head import last_token, pool, pooled_head

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedModel

IGNORED = -100  # a label that asks for nothing, as everywhere in torch
LOGITS = 2**22  # that exist at once on a CPU, an eighth of them in fp32; fewer cost time (the weight's gradient is summed up more often)
ATTENTION = "llmtrain_cpu"  # the name under which transformers knows `cpu_attention`
ROWS = 64  # queries that attend at once
STATES = "states"  # the input that holds what was computed once: hidden states (B, T, W) at a cut
FEATURES = "features"  # the same for a whole frozen body: pooled vectors (B, hidden states, W)
LONGEST = 512  # tokens; above, what is kept for backward grows past what time it saves
FEW = 1024  # tokens of a batch; below, weights are what memory goes to, and casting one again takes a quarter of its product's time (measured at 430)
SHORT = 64  # keys; below, torch's gradient of softmax in bf16 is not vectorised on a CPU, and takes six times that of fp32 and both casts

_WHOLE = {torch.bfloat16: torch.int16, torch.float32: torch.int32}  # whole numbers of the same width

_REACH: WeakKeyDictionary[nn.Module, Reach] = WeakKeyDictionary()


# --- body → head ---------------------------------------------------------------------------------------------------


class Reach(Enum):
    """How the family's logits come from its body's last hidden state."""

    linear = "linear"  # one plain Linear of it: GPT-2, Llama
    positionwise = "positionwise"  # an output layer on what a head makes of each position alone: BERT, RoBERTa
    whole = "whole"  # anything else, so the whole head runs on all positions: Gemma 2 caps its logits


class Encoded(NamedTuple):
    """What a body makes of a batch: its last hidden state (B, T, W), and the pooled state (B, W) where it has a pooler."""

    states: Tensor
    pooled: Tensor | None
    reach: Reach


def encode(model: PreTrainedModel, reach: Reach, **inputs: Tensor) -> Encoded:
    """The body without the head, called once for all heads.

    What `reach(model)` says comes as an argument: a compiled graph breaks where it is asked, best before the body.

    Without a cache of keys and values: it costs memory, and with it transformers does not see document borders in
    position_ids.
    """
    output = _run(model.base_model, model, inputs)
    return Encoded(output.last_hidden_state, getattr(output, "pooler_output", None), reach)


def _run(module: nn.Module, model: PreTrainedModel, inputs: dict[str, Tensor], **options: Any) -> Any:
    """The output of the model, or of its body. Inputs may hold `STATES`, what the blocks below a cut made of them: then `model` is the tail's."""
    plain = {name: value for name, value in inputs.items() if name != STATES}
    # In fp32, as blocks hand them on outside a cache, whatever they were stored in.
    with model.fed(inputs[STATES].float()) if STATES in inputs else nullcontext():
        return module(**plain, **options, **_no_cache(module))


def hidden_states(model: PreTrainedModel, **inputs: Tensor) -> Tensor:
    """The last hidden state (B, T, W) of the body: what the head reads."""
    body = model.base_model
    states: Tensor = body(**inputs, **_no_cache(body)).last_hidden_state
    return states


@torch.compiler.disable  # type: ignore[untyped-decorator]
def vocabulary_loss(model: PreTrainedModel, encoded: Encoded, labels: Tensor) -> Tensor:
    """The sum of cross entropies of a language model's head, a scalar in fp32.

    The head runs where there is a label and nowhere else, where the family allows it (`Reach`).

    Args:
        encoded: what the body made of the inputs.
        labels: (B, T), aligned with the logits; IGNORED where nothing is asked.
    """
    if encoded.reach is Reach.whole:
        logits = vocabulary_logits(model, encoded).flatten(0, 1)
        return F.cross_entropy(logits.float(), labels.flatten(), ignore_index=IGNORED, reduction="sum")
    weight, bias = vocabulary_head(model)
    if encoded.reach is Reach.positionwise:
        hidden, asked = _asked(model, encoded, labels)
        return linear_cross_entropy(hidden, weight, bias, asked)  # type: ignore[no-any-return]
    return linear_cross_entropy(encoded.states.flatten(0, 1), weight, bias, labels.flatten())  # type: ignore[no-any-return]


def vocabulary_scores(model: PreTrainedModel, encoded: Encoded, labels: Tensor) -> tuple[Tensor, Tensor]:
    """(sum of cross entropies, number of labels that are the likeliest token), scalars in fp32. Without gradients."""
    total = torch.zeros(2, device=labels.device)
    for logits, asked in _labelled_logits(model, encoded, labels):
        total[0] += F.cross_entropy(logits.float(), asked, reduction="sum")
        total[1] += (logits.argmax(-1) == asked).sum()
    return total[0], total[1]


def _labelled_logits(model: PreTrainedModel, encoded: Encoded, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits (few, V) and labels (few,) of the positions that have one, a few at a time."""
    if encoded.reach is Reach.whole:
        kept = labels.flatten() != IGNORED
        yield vocabulary_logits(model, encoded).flatten(0, 1)[kept], labels.flatten()[kept]
        return
    weight, bias = vocabulary_head(model)
    hidden, asked = _asked(model, encoded, labels)
    rows = max(1, LOGITS // len(weight))
    for x, y in zip(torch.split(hidden, rows), torch.split(asked, rows), strict=True):
        yield F.linear(x, weight, bias), y


def vocabulary_logits(model: PreTrainedModel, encoded: Encoded) -> Tensor:
    """Logits (B, T, V) of every position: the family's own head on what its body made."""
    output = _over(model, encoded)()
    logits: Tensor = output.prediction_logits if "prediction_logits" in output else output.logits
    return logits


def _asked(model: PreTrainedModel, encoded: Encoded, labels: Tensor) -> tuple[Tensor, Tensor]:
    """What the output layer reads (N, W) at the positions that have a label, and these labels (N,)."""
    kept = (labels.flatten() != IGNORED).nonzero().squeeze(1)  # on CUDA a synchronisation point
    hidden = encoded.states.flatten(0, 1).index_select(0, kept)
    return _read(model, hidden) if encoded.reach is Reach.positionwise else hidden, labels.flatten()[kept]


@torch.compiler.disable  # type: ignore[untyped-decorator]
def sentence_logits(model: PreTrainedModel, encoded: Encoded) -> Tensor:
    """Logits (B, 2) of a head on pairs of segments: class 0 is "in order", as in the published heads."""
    # No position is left for a vocabulary head that the model wears as well: it costs nothing.
    output = _over(model, encoded._replace(states=encoded.states[:, :0]))()
    for name in ("seq_relationship_logits", "sop_logits", "logits"):
        if name in output:
            logits: Tensor = output[name]
            return logits
    raise RuntimeError(f"{type(model).__name__} has no logits for pairs of segments")


# --- the answers of a task ------------------------------------------------------------------------------------------


def answers(model: PreTrainedModel, group: int = 1, **inputs: Tensor) -> Tensor:
    """Logits (B / group, K) in fp32 of a task's head: the pooled one where the model wears it, else the family's.

    Args:
        group: so many sequences in a row are one question: their vectors are added (Radford et al. 2018, section 3.3).
        inputs: of the body, padded on the right; or `FEATURES` alone, the pooled vectors of the sequences.
    """
    if FEATURES in inputs:
        return _pooled_answers(model, inputs[FEATURES], group)
    inputs = fitting(model, inputs)
    if pooled_head(model) is None:
        return _family_answers(model, inputs)
    vectors, _ = _vectors(model, inputs)
    return _pooled_answers(model, vectors, group)


def answers_and_words(model: PreTrainedModel, labels: Tensor, group: int = 1, **inputs: Tensor) -> tuple[Tensor, Tensor]:
    """`answers`, and the sum of next-token losses at `labels` (B, T), from one pass of the body."""
    vectors, states = _vectors(model, fitting(model, inputs))
    return _pooled_answers(model, vectors, group), vocabulary_loss(model, Encoded(states, None, reach(model)), labels)


def vectors(model: PreTrainedModel, **inputs: Tensor) -> Tensor:
    """Pooled vectors (B, hidden states, W) in fp32, as the model's pooled head reads them."""
    return _vectors(model, fitting(model, inputs))[0]


def _vectors(model: PreTrainedModel, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """(pooled vectors, last hidden state)."""
    head = pooled_head(model)
    assert head is not None
    states, output = _states(model, head.states, inputs)
    mask, by_pooler = inputs.get("attention_mask"), getattr(output, "pooler_output", None)
    return torch.stack([pool(state, mask, head.pooling, by_pooler) for state in states], 1), output.last_hidden_state


def _states(model: PreTrainedModel, numbers: Sequence[int], inputs: dict[str, Tensor]) -> tuple[list[Tensor], Any]:
    """Hidden states by their numbers, each (B, T, W), and all that the body gave."""
    last = int(model.config.num_hidden_layers)
    output = _run(model.base_model, model, inputs, **({} if set(numbers) == {last} else {"output_hidden_states": True}))
    return [output.last_hidden_state if number == last else output.hidden_states[number] for number in numbers], output


def width(model: PreTrainedModel, numbers: Sequence[int]) -> int:
    """How many numbers each of these hidden states has: the last may have others than `hidden_size` (OPT's `word_embed_proj_dim`).

    Raises:
        ConfigError: some have more than others.
    """
    with evaluating(model), torch.no_grad():
        found = {number: state.shape[-1] for number, state in zip(numbers, _states(model, numbers, _tiny(model.device))[0], strict=True)}
    if len(set(found.values())) > 1:
        listed = ", ".join(f"{number} has {size}" for number, size in found.items())
        what = f"finetune.states: the hidden states of this {model.config.model_type} model are not equally wide: {listed} numbers"
        raise ConfigError(what, allowed="hidden states of one width", fix=f"finetune.states=last, or states below {numbers[-1]} alone")
    return int(found[numbers[0]])


def _pooled_answers(model: PreTrainedModel, vectors: Tensor, group: int) -> Tensor:
    head = pooled_head(model)
    assert head is not None
    return head(vectors.view(-1, group, *vectors.shape[1:]).float().sum(1) if group > 1 else vectors)  # type: ignore[no-any-return]


def _family_answers(model: PreTrainedModel, inputs: dict[str, Tensor]) -> Tensor:
    """The family's own head. One that reads the last token, or all of them, whatever the mask says, is given what the mask says."""
    pooling = _blind_pooling(model)
    if pooling is not None:
        encoded = encode(model, Reach.whole, **inputs)
        mask = inputs.get("attention_mask")
        vectors = last_token(encoded.states, mask) if pooling is Pooling.last else pool(encoded.states, mask, pooling, None)
        logits: Tensor = _over(model, encoded._replace(states=vectors[:, None]))().logits
    else:
        logits = _run(model, model, _with_padding(model, inputs)).logits
    return logits.float()


def _blind_pooling(model: PreTrainedModel) -> Pooling | None:
    """How a family's own head makes one vector of the states where padding would change it; None where it would not.

    A decoder's looks for the padding's id, which may be that of the end of text. A summary (XLNet's, XLM's) takes the last
    column, or the mean of all, where it does not take the first: its tokenizer pads on the left, and llmtrain on the right.
    """
    if "score" in model._modules and not model.config.is_encoder_decoder:
        return Pooling.last
    summary = getattr(model._modules.get("sequence_summary"), "summary_type", "first")
    return {"last": Pooling.last, "cls_index": Pooling.last, "mean": Pooling.mean}.get(summary)


def _with_padding(model: PreTrainedModel, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Inputs whose padding is the family's own id: some heads look for it (CTRL), or count what is like the last token (T5)."""
    pad, mask = model.config.pad_token_id, inputs.get("attention_mask")
    return inputs if pad is None or mask is None else {**inputs, "input_ids": inputs["input_ids"].masked_fill(mask == 0, pad)}


def fitting(model: PreTrainedModel, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Inputs without segment ids where a family has no embeddings for two of them. GPT-2 would add those of tokens 0 and 1."""
    if getattr(model.config, "type_vocab_size", 0) >= 2:
        return inputs
    return {name: value for name, value in inputs.items() if name != "token_type_ids"}


def vocabulary_head(model: PreTrainedModel) -> tuple[Tensor, Tensor | None]:
    """Weight (V, W) and bias (V,) of the output layer, where the head is not to be run `whole`."""
    head = model.get_output_embeddings()
    return head.weight, head.bias


# --- the family's own head on given states --------------------------------------------------------------------------


class _Given(nn.Module):
    """Stands where the body stood and hands on what it was given."""

    def __init__(self, body: nn.Module, encoded: Encoded) -> None:
        super().__init__()
        self.encoded = encoded
        vars(self)["body"] = body  # no submodule: some heads read the body's embeddings (DeBERTa)

    def __getattr__(self, name: str) -> Any:
        return getattr(vars(self)["body"], name)

    def forward(self, *args: object, **kwargs: object) -> Any:
        from transformers.modeling_outputs import BaseModelOutputWithPoolingAndCrossAttentions

        output = BaseModelOutputWithPoolingAndCrossAttentions(last_hidden_state=self.encoded.states, pooler_output=self.encoded.pooled)
        vars(output)["mems"] = None  # XLNet's heads hand them on
        return output


class _ReachedError(Exception):
    pass


def _over(model: PreTrainedModel, encoded: Encoded) -> Callable[[], Any]:
    """The model's forward with its body's work done: a shallow twin that shares every other module."""
    twin = copy.copy(model)
    vars(twin)["_modules"] = {**model._modules, model.base_model_prefix: _Given(model.base_model, encoded)}
    # An id that is no padding: some heads look for it.
    ids = torch.full(encoded.states.shape[:2], int(model.config.pad_token_id == 0), dtype=torch.long, device=encoded.states.device)
    return lambda: twin(input_ids=ids, **_no_cache(model))


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _read(model: PreTrainedModel, states: Tensor) -> Tensor:
    """What the output layer reads (N, W') when the body's states are (N, W): what stands between them, and no more."""
    found: list[Tensor] = []

    def stop(module: nn.Module, args: tuple[Tensor]) -> None:
        found.append(args[0])
        raise _ReachedError

    hook = model.get_output_embeddings().register_forward_pre_hook(stop)
    try:
        _over(model, Encoded(states[None], states[:1], Reach.whole))()
    except _ReachedError:
        return found[0].squeeze(0)
    finally:
        hook.remove()
    raise RuntimeError(f"{type(model).__name__}: its head never came to its output layer")


@torch.compiler.disable  # type: ignore[untyped-decorator]
def reach(model: PreTrainedModel) -> Reach:
    """How a family's logits come from its body's last hidden state; asked once for each model, by a tiny pass.

    In that pass the output layer answers with a ramp from -100 to 100: small logits would hide a cap (Gemma 2) or a scale (Cohere).
    """
    if model.get_output_embeddings() is None:
        return Reach.whole  # no vocabulary is asked
    if model not in _REACH:
        plain = type(model.get_output_embeddings()) is nn.Linear and not model.config.is_encoder_decoder
        _REACH[model] = _probed(model) if plain else Reach.whole
    return _REACH[model]


def like(twin: PreTrainedModel, model: PreTrainedModel) -> None:
    """Take over what was found out about a model by tiny passes: a tail cannot make them, it has no lower blocks."""
    _REACH[twin] = reach(model)
    take_over(twin, model)


def _probed(model: PreTrainedModel) -> Reach:
    head, read = model.get_output_embeddings(), []

    def answer(module: nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor:
        read.append(args[0])
        return _ramp(output)

    device = head.weight.device
    with evaluating(model), torch.no_grad(), torch.autocast(device.type, enabled=False):
        states = hidden_states(model, **_tiny(device))
        hook = head.register_forward_hook(answer)
        try:
            output = model(**_tiny(device), **_no_cache(model))
        finally:
            hook.remove()
        logits = output.prediction_logits if "prediction_logits" in output else output.get("logits")
        if len(read) != 1 or logits is None or not torch.equal(logits, _ramp(logits)):
            return Reach.whole
        if torch.equal(read[0], states):
            return Reach.linear
        try:
            alone = torch.allclose(_read(model, states[0, 1:]), read[0][0, 1:], rtol=1e-4, atol=1e-5)
        except Exception:  # whatever a family's head does with a part of its body's work
            alone = False
        return Reach.positionwise if alone else Reach.whole


def _tiny(device: torch.device) -> dict[str, Tensor]:
    ids = torch.zeros(1, 2, dtype=torch.long, device=device)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _ramp(like: Tensor) -> Tensor:
    return torch.linspace(-100, 100, like.numel(), device=like.device).view(like.shape).to(like.dtype)


def _no_cache(module: nn.Module) -> dict[str, bool]:
    return {"use_cache": False} if "use_cache" in inspect.signature(module.forward).parameters else {}


# --- the vocabulary projection and its loss ------------------------------------------------------------------------


@torch.compiler.disable  # type: ignore[untyped-decorator]
def linear_cross_entropy(hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor) -> Tensor:
    """Sum of cross entropies of softmax(hidden · weightᵀ + bias), a scalar in fp32.

    Equals F.cross_entropy(F.linear(hidden, weight, bias), labels, reduction="sum") without the (N, V) logits: they are
    made, and their gradients used up, a few hundred rows at a time, in the forward pass. Matrix products run in the
    autocast type where autocast is on, else in the type of `hidden`; softmax and sums in fp32.

    Args:
        hidden: (N, W).
        weight: (V, W).
        bias: (V,) or None.
        labels: (N,), IGNORED where nothing is asked: such a row is dropped before the projection.

    Returns:
        The sum; 0 with zero gradients where no row has a label. Backward works once: the gradients are handed over,
        not copied.
    """
    kept = (labels != IGNORED).nonzero().squeeze(1)  # on CUDA a synchronisation point
    if len(kept) < len(labels):
        hidden, labels = hidden.index_select(0, kept), labels[kept]
    by_hidden, by_weight, by_bias = (torch.is_grad_enabled() and t is not None and t.requires_grad for t in (hidden, weight, bias))
    return _LinearCrossEntropy.apply(hidden, weight, bias, labels, (by_hidden, by_weight, by_bias))  # type: ignore[no-any-return, no-untyped-call]


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, wanted: tuple[bool, bool, bool]) -> Tensor:
        kind = hidden.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
        with torch.autocast(kind, enabled=False):
            loss, *gradients = _chunked(hidden, weight.to(dtype), None if bias is None else bias.to(dtype), labels, wanted)
        ctx.gradients, ctx.dtypes = gradients, [t.dtype if t is not None else None for t in (hidden, weight, bias)]
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_loss: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("the gradients of linear_cross_entropy are gone: backward works once for each forward")
        gradients, ctx.gradients = ctx.gradients, None
        return *(None if g is None else g.to(dtype).mul_(by_loss) for g, dtype in zip(gradients, ctx.dtypes, strict=True)), None, None


def _chunked(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, wanted: tuple[bool, bool, bool]
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """The loss, and where wanted its gradients by hidden (in the type of weight), by weight and by bias (in fp32)."""
    total = torch.zeros((), dtype=torch.float32, device=hidden.device)
    by_hidden = torch.empty_like(hidden, dtype=weight.dtype) if wanted[0] else None
    by_weight = torch.zeros_like(weight, dtype=torch.float32) if wanted[1] else None
    by_bias = torch.zeros(len(weight), dtype=torch.float32, device=hidden.device) if wanted[2] else None
    logits_at_once = LOGITS if hidden.device.type == "cpu" else 16 * LOGITS
    rows = max(256, logits_at_once // len(weight))
    few = max(1, logits_at_once // 8 // len(weight))
    for start in range(0, len(labels), rows):
        x, y = hidden[start : start + rows].to(weight.dtype), labels[start : start + rows, None]
        logits = F.linear(x, weight, bias)  # (rows, V)
        for part, label in zip(torch.split(logits, few), torch.split(y, few), strict=True):
            total += _error_(part, label)
        if by_bias is not None:
            by_bias += logits.sum(0, dtype=torch.float32)
        if by_hidden is not None:
            torch.mm(logits, weight, out=by_hidden[start : start + rows])
        if by_weight is not None:
            by_weight += torch.mm(logits.T, x)
    return total, by_hidden, by_weight, by_bias


def _error_(logits: Tensor, labels: Tensor) -> Tensor:
    """The sum of losses, in fp32; the logits (rows, V) are replaced by its gradient, softmax - one-hot. labels (rows, 1).

    logsumexp is taken from the largest probability, p = exp(largest - logsumexp), which cannot underflow: that saves
    the log-softmax and its exponential.
    """
    scores = logits.float()
    p = scores.softmax(-1)
    losses = scores.amax(-1, keepdim=True) - scores.gather(1, labels) - p.amax(-1, keepdim=True).log()
    logits.copy_(p.scatter_add_(1, labels, p.new_full((1, 1), -1).expand_as(labels)))
    return losses.sum()


# --- attention on a CPU --------------------------------------------------------------------------------------------


def use_cpu_attention(model: PreTrainedModel) -> bool:
    """Let a model on the CPU attend by `cpu_attention`; says whether it now does.

    Only where the family takes its attention from transformers' common table, without a version of its own, and
    sdpa was chosen. The choice is not part of the saved config.
    """
    import transformers
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    family = sys.modules[type(model).__module__]
    common = getattr(family, "ALL_ATTENTION_FUNCTIONS", None) is ALL_ATTENTION_FUNCTIONS
    if not common or model.device.type != "cpu" or model.config._attn_implementation != "sdpa":
        return False
    transformers.AttentionInterface.register(ATTENTION, cpu_attention)
    transformers.AttentionMaskInterface.register(ATTENTION, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    model.set_attn_implementation(ATTENTION)
    return True


def cpu_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Softmax attention as transformers calls it; sdpa where it has nothing to offer (`_attends`).

    Torch's flash kernel is slow on a CPU, most of all backward. This does the same sums with batched matrix products
    over blocks of queries, leaves out the keys that a block cannot see (above the diagonal, of other documents,
    padding), and keeps the probabilities for backward: at most B · H · T² numbers, 0.6 of that where causal at T = 256.

    Args:
        query: (B, H, T, D).
        key, value: (B, H or fewer, T, D).
        attention_mask: (B or 1, H or 1, T, T), True where a query may look; None: everything, or causal.
        dropout: probability of leaving out a probability; its draws are not those of sdpa.
        scaling: of query · key; None: 1/√D.

    Returns:
        (B, T, H, D) and None. A query that may look nowhere gets 0.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if query.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        query, key, value = (t.to(torch.get_autocast_dtype("cpu")) for t in (query, key, value))
    if not _attends(query, key, attention_mask, kwargs):
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, is_causal=is_causal, **kwargs)  # type: ignore[no-any-return]
    key, value = (t if t.shape[1] == query.shape[1] else t.repeat_interleave(query.shape[1] // t.shape[1], 1) for t in (key, value))
    causal = attention_mask is None and (getattr(module, "is_causal", True) if is_causal is None else is_causal)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return _BlockAttention.apply(query, key, value, attention_mask, causal, scale, dropout), None  # type: ignore[no-untyped-call]


def _attends(query: Tensor, key: Tensor, mask: Tensor | None, kwargs: dict[str, Any]) -> bool:
    (B, H, T, _), S = query.shape, key.shape[2]
    plain = all(kwargs.get(name) is None for name in ("position_bias", "softcap", "cache", "s_aux")) and not kwargs.get("output_attentions")
    shapes = S == T and 1 < T <= LONGEST and key.shape[0] == B and H % key.shape[1] == 0
    masked = mask is None or (mask.dtype == torch.bool and mask.ndim == 4 and mask.shape[0] in (1, B) and mask.shape[1] in (1, H) and mask.shape[2:] == (T, T))
    known = query.device.type == "cpu" and query.dtype in (torch.float32, torch.bfloat16) and not torch.compiler.is_compiling()
    return plain and shapes and masked and known


class _BlockAttention(torch.autograd.Function):
    """Attention over blocks of ROWS queries, each with the span of keys that it sees; scores and softmax in fp32."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool, scale: float, dropout: float) -> Tensor:
        B, H, T, _ = query.shape
        q, k, v = (t.reshape(B * H, T, -1) for t in (query, key, value))
        source = _source() if dropout else None
        out = value.new_empty(B, T, H, v.shape[-1])
        spans, kept = _spans(mask, causal, T), []
        with torch.autocast("cpu", enabled=False):
            scaled, whole = q.float() * scale, k.float()
            for rows, keys in spans:
                p = torch.bmm(scaled[:, rows], whole[:, keys].mT).view(B, H, rows.stop - rows.start, -1)
                p = _masked_softmax(p, mask, causal, rows, keys).flatten(0, 1).to(q.dtype)
                used = p
                if source is not None:
                    stays = _kept(*_drawn(p.shape, dropout, source), p.dtype)
                    used = _only(stays, p).div_(1 - dropout)
                    p = _negative(stays, p)  # what is dropped turns negative
                out[:, rows] = torch.bmm(used, v[:, keys]).view(B, H, rows.stop - rows.start, -1).transpose(1, 2)
                kept.append(p)
        ctx.save_for_backward(q, k, v, *kept)
        ctx.spans, ctx.scale, ctx.dropout, ctx.heads = spans, scale, dropout, (B, H)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_out: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, *kept = ctx.saved_tensors
        g = by_out.transpose(1, 2).flatten(0, 1)  # (B · H, T, D)
        whole = ctx.spans == [(slice(0, q.shape[1]), slice(0, k.shape[1]))]
        by_q, by_k, by_v = torch.empty_like(q), *(torch.empty_like(t) if whole else torch.zeros_like(t, dtype=torch.float32) for t in (k, v))
        with torch.autocast("cpu", enabled=False):
            for (rows, keys), p in zip(ctx.spans, kept, strict=True):
                by_p, used = torch.bmm(g[:, rows], v[:, keys].mT), p
                if ctx.dropout:
                    stays = _positive(p)
                    used = _only(stays, p).div_(1 - ctx.dropout)
                    by_p, p = _only(stays, by_p).div_(1 - ctx.dropout), p.abs()
                by_score = _softmax_backward(by_p, p)
                by_q[:, rows] = torch.bmm(by_score, k[:, keys]).mul_(ctx.scale)
                if whole:
                    by_k, by_v = torch.bmm(by_score.mT, q), torch.bmm(used.mT, g)
                else:
                    by_k[:, keys] += torch.bmm(by_score.mT, q[:, rows])
                    by_v[:, keys] += torch.bmm(used.mT, g[:, rows])
        gradients = by_q, by_k.mul_(ctx.scale).to(k.dtype), by_v.to(v.dtype)
        return *(t.view(*ctx.heads, *t.shape[1:]) for t in gradients), None, None, None, None


def _softmax_backward(by_p: Tensor, p: Tensor) -> Tensor:
    """The gradient of scores from that of their softmax p, in the type of p."""
    if p.dtype is torch.bfloat16 and p.shape[-1] < SHORT:
        return torch._softmax_backward_data(by_p.float(), p.float(), -1, torch.float32).to(p.dtype)
    return torch._softmax_backward_data(by_p, p, -1, p.dtype)


def _spans(mask: Tensor | None, causal: bool, length: int) -> list[tuple[slice, slice]]:
    """Blocks of queries, each with the keys from the first to the last that any of them sees."""
    spans = []
    for start in range(0, length, ROWS):
        stop = min(start + ROWS, length)
        first, end = 0, stop if causal else length
        if mask is not None:
            seen = mask[:, :, start:stop].flatten(0, 2).any(0).nonzero()
            first, end = (int(seen[0]), int(seen[-1]) + 1) if len(seen) else (0, 1)
        spans.append((slice(start, stop), slice(first, end)))
    return spans


def _masked_softmax(scores: Tensor, mask: Tensor | None, causal: bool, rows: slice, keys: slice) -> Tensor:
    """Softmax over the keys that a query sees, 0 where it sees none; scores (B, H, queries, keys) are overwritten."""
    if causal:  # the keys before the block are seen by all of it
        later = torch.ones(rows.stop - rows.start, rows.stop - rows.start, dtype=torch.bool).triu_(1)
        scores[..., rows.start :].masked_fill_(later, float("-inf"))
    if mask is None:
        return scores.softmax(-1)
    seen = mask[:, :, rows, keys]
    # Added, which torch vectorises on a CPU, where masked_fill is not: the mask is the same for all heads, the scores are not.
    p = scores.add_(torch.zeros(seen.shape).masked_fill_(~seen, float("-inf"))).softmax(-1)
    blind = ~seen.any(-1, keepdim=True)
    return p.masked_fill_(blind, 0) if bool(blind.any()) else p


# --- dropout on a CPU ----------------------------------------------------------------------------------------------


def use_cpu_dropout(model: nn.Module) -> None:
    """Let a model on the CPU drop out by `_CPUDropout`: the same distribution, other draws, a fifth of torch's time.

    Neither the names of modules nor anything that is saved changes.
    """
    for module in model.modules():
        if type(module) is nn.Dropout:
            module.__class__ = _CPUDropout


class _CPUDropout(nn.Dropout):
    def forward(self, input: Tensor) -> Tensor:
        fast = self.training and 0 < self.p < 1 and not self.inplace and input.dtype in (torch.float32, torch.bfloat16)
        if not fast or input.device.type != "cpu" or torch.compiler.is_compiling():
            return super().forward(input)
        return _Dropout.apply(input, self.p)  # type: ignore[no-any-return, no-untyped-call]


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float) -> Tensor:
        kept = _kept(*_drawn(x.shape, p, _source()), x.dtype)
        ctx.scale, ctx.few = 1 / (1 - p), x.shape[:-1].numel() < FEW
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(kept if ctx.few else _packed(kept))
        return _only(kept, x).mul_(ctx.scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_out: Tensor) -> tuple[Tensor, None]:
        (kept,) = ctx.saved_tensors
        return _only(kept if ctx.few else _unpacked(kept, by_out), by_out).mul_(ctx.scale), None


def _source() -> np.random.SFC64:
    """A generator of random words, which follows from torch's own state. A word takes it half the time that torch's takes (SFC64: Doty-Humphrey, PractRand)."""
    import numpy as np

    return np.random.SFC64(int(torch.randint(2**62, ())))


def _drawn(shape: torch.Size, p: float, source: np.random.SFC64) -> tuple[Tensor, int]:
    """Random numbers of 16 bits, and the lowest of the 65,536 values that is kept where each is dropped with probability p.

    A word of the generator, which is serial, makes four of them.
    """
    size = shape.numel()
    words = torch.from_numpy(source.random_raw(-(-size // 4)).view("int16"))
    return words[:size].view(shape), round(p * 2**16) - 2**15


def _kept(words: Tensor, first: int, dtype: torch.dtype) -> Tensor:
    """Whole numbers of the width of `dtype`, all bits 1 from `first` upwards and 0 below it.

    The comparison is numpy's, which is vectorised on a CPU, as torch's is not.
    """
    return torch.from_numpy(words.numpy() >= first).view(torch.int8).to(_WHOLE[dtype]).neg_()


def _only(kept: Tensor, x: Tensor) -> Tensor:
    """A new tensor: x where all bits of `kept` are 1, and 0 where they are 0."""
    return (x.contiguous().view(kept.dtype) & kept).view(x.dtype)


def _negative(kept: Tensor, x: Tensor) -> Tensor:
    """A new tensor: x, 0 or above, where all bits of `kept` are 1, and -x where they are 0; `_positive` tells them apart, zeros too."""
    return (x.view(kept.dtype) | (~kept & torch.iinfo(kept.dtype).min)).view(x.dtype)


def _positive(x: Tensor) -> Tensor:
    """What `_kept` was where `_negative` was given it."""
    whole = x.view(_WHOLE[x.dtype])
    return (whole >> (8 * x.element_size() - 1)).bitwise_not_()


def _packed(kept: Tensor) -> Tensor:
    """A bit for each number, eight in a byte, flat; by numpy, which packs them."""
    import numpy as np

    return torch.from_numpy(np.packbits(kept.flatten().numpy()))


def _unpacked(bits: Tensor, like: Tensor) -> Tensor:
    """The same as `_kept` makes for a tensor such as `like`."""
    import numpy as np

    whole = torch.from_numpy(np.unpackbits(bits.numpy(), count=like.numel())).view(torch.int8)
    return whole.view(like.shape).to(_WHOLE[like.dtype]).neg_()


# --- linear layers on a CPU ------------------------------------------------------------------------------------------


def use_cpu_linear(model: PreTrainedModel) -> None:
    """Let the body of a model on the CPU keep less for the backward pass, which gives the same gradients to the last bit.

    Where torch keeps for each linear layer its input and its weight in the type of autocast, our layers keep the weight
    itself and cast it again, read one copy where several of them read the same input (query, key and value), and keep no
    input at all that a GELU made: it keeps what it made it of, and makes it again.

    Neither the names of modules nor anything that is saved changes; a module's new class is a subclass of its own.
    """
    from transformers import activations
    from transformers.pytorch_utils import Conv1D

    # Their own gradient needs their input, so that it is there anyway. The same holds for norms: their outputs made again as well
    # brought 20 MB less at the peak of a BERT of 14 million parameters and took 1 % of the time, so they are kept.
    remembering = [nn.GELU, *(getattr(activations, name) for name in ("GELUActivation", "GELUTanh") if hasattr(activations, name))]
    kinds: dict[type, type] = {nn.Linear: _CPULinear, Conv1D: _CPUConv1D, **dict.fromkeys(remembering, _Remembering)}
    for module in model.base_model.modules():
        if type(module) in kinds:
            module.__class__ = _mixed(kinds[type(module)], type(module))  # type: ignore[arg-type]


@functools.cache
def _mixed(first: type, second: type) -> type:
    return type(second.__name__, (first, second), {})


class _Made(NamedTuple):
    """How a tensor was made.

    Attributes:
        version: autograd's count of changes in place; where it is another one now, the tensor is no longer what was made.
    """

    by: Callable[[Tensor], Tensor]
    of: Tensor
    version: int


class _Remembering(nn.Module):
    """A module whose output says how it was made, for the linear layer that reads it."""

    def forward(self, input: Tensor) -> Tensor:
        output: Tensor = super().forward(input)
        if torch.is_grad_enabled() and input.requires_grad and input.device.type == "cpu" and not torch.compiler.is_compiling():
            vars(output)["made"] = _Made(super().forward, input, output._version)
        return output


class _CPULinear(nn.Module):
    """nn.Linear, whose weight is (out, in)."""

    turned = False

    def forward(self, input: Tensor) -> Tensor:
        learns = torch.is_grad_enabled() and (input.requires_grad or self.weight.requires_grad)
        if not learns or input.device.type != "cpu" or input.dtype not in (torch.float32, torch.bfloat16) or torch.compiler.is_compiling():
            return super().forward(input)  # type: ignore[no-any-return]
        return _Linear.apply(input, self.weight, self.bias, self.turned)  # type: ignore[no-any-return, no-untyped-call]


class _CPUConv1D(_CPULinear):
    """GPT-2's, whose weight is (in, out)."""

    turned = True


class _Linear(torch.autograd.Function):
    """input · weightᵀ + bias, each in the type of autocast where that is on; gradients in the types of what was given."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, turned: bool) -> Tensor:
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        made: _Made | None = vars(x).get("made")
        made = made if made is not None and made.version == x._version else None
        with torch.autocast("cpu", enabled=False):
            low, w, b = _cast(x, dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
            out = F.linear(low, w.T if turned else w, b)
        by_x, by_weight, _, _ = ctx.needs_input_grad
        if x.shape[:-1].numel() < FEW:  # little memory and much time, in proportion
            ctx.save_for_backward(low if by_weight else None, w if by_x else None)
            made = None
        else:
            ctx.save_for_backward((low if made is None else made.of) if by_weight else None, weight if by_x else None)
        ctx.by = None if made is None else made.by
        ctx.types = dtype, x.dtype, weight.dtype, None if bias is None else bias.dtype
        ctx.turned = turned
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_out: Tensor) -> tuple[Tensor | None, ...]:
        kept, weight = ctx.saved_tensors
        dtype, x_type, weight_type, bias_type = ctx.types
        by_x = by_weight = by_bias = None
        g = by_out.flatten(0, -2)
        if weight is not None:
            w = weight.to(dtype)
            by_x = (g @ (w.T if ctx.turned else w)).view(*by_out.shape[:-1], -1).to(x_type)
        if kept is not None:
            x = (kept if ctx.by is None else ctx.by(kept)).to(dtype).flatten(0, -2)
            by_weight = (x.T @ g if ctx.turned else g.T @ x).to(weight_type)
        if ctx.needs_input_grad[2]:
            by_bias = g.sum(0).to(bias_type)
        return by_x, by_weight, by_bias, None


_LATEST: list[tuple[weakref[Tensor], int, Tensor]] = []  # the tensor that was cast last, its version, and the copy


def _cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x in another type; the same copy for all that ask one after the other."""
    if x.dtype is dtype:
        return x
    for of, version, cast in _LATEST:
        if of() is x and version == x._version and cast.dtype is dtype:
            return cast
    _LATEST[:] = [(weakref(x), x._version, x.to(dtype))]
    return _LATEST[0][2]
