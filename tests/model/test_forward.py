from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers as hf
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    AlbertConfig,
    AlbertForMaskedLM,
    BertConfig,
    BertForMaskedLM,
    CohereConfig,
    CohereForCausalLM,
    DebertaV2Config,
    DebertaV2ForMaskedLM,
    DistilBertConfig,
    DistilBertForMaskedLM,
    ElectraConfig,
    ElectraForMaskedLM,
    FalconConfig,
    FalconForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MobileBertConfig,
    MobileBertForMaskedLM,
    ModernBertConfig,
    ModernBertForMaskedLM,
    MPNetConfig,
    MPNetForMaskedLM,
    OpenAIGPTConfig,
    OpenAIGPTLMHeadModel,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
    RobertaConfig,
    RobertaForMaskedLM,
)
from transformers.pytorch_utils import Conv1D

from llmtrain.model import anatomy, forward
from llmtrain.model.base import Combine, Outputs, Pooling
from llmtrain.model.forward import Reach
from llmtrain.model.head import PooledHead, attach, pool, pooled_head

V, W = 61, 32
SMALL = {"vocab_size": V, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
WIDE = {**SMALL, "hidden_size": W, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48, "head_dim": 8}
ENCODER = {
    "vocab_size": V,
    "pad_token_id": 0,
    "hidden_size": W,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "initializer_range": 0.3,
}


def gpt2(dropout: float = 0.0, positions: int = 256) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(
        **SMALL, n_positions=positions, n_embd=W, n_layer=2, n_head=4, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=dropout, initializer_range=0.3
    )
    return GPT2LMHeadModel(config)


def opt() -> OPTForCausalLM:
    config = OPTConfig(
        **SMALL, hidden_size=W, word_embed_proj_dim=W, num_hidden_layers=2, num_attention_heads=4, ffn_dim=48, max_position_embeddings=64, dropout=0.0
    )
    return OPTForCausalLM(config)


def bert() -> BertForMaskedLM:
    small = {key: value for key, value in WIDE.items() if key not in ("num_key_value_heads", "head_dim")}
    return BertForMaskedLM(BertConfig(**small, max_position_embeddings=256, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, initializer_range=0.3))


def distilbert() -> DistilBertForMaskedLM:
    return DistilBertForMaskedLM(DistilBertConfig(vocab_size=V, dim=W, n_layers=2, n_heads=4, hidden_dim=48, dropout=0.0, attention_dropout=0.0))


def electra() -> ElectraForMaskedLM:
    return ElectraForMaskedLM(ElectraConfig(**ENCODER, embedding_size=16))


def deberta() -> DebertaV2ForMaskedLM:
    return DebertaV2ForMaskedLM(DebertaV2Config(**ENCODER, legacy=False))


def mobile() -> MobileBertForMaskedLM:
    return MobileBertForMaskedLM(MobileBertConfig(**{**ENCODER, "hidden_size": 128, "embedding_size": 64}))


def modern() -> ModernBertForMaskedLM:
    return ModernBertForMaskedLM(ModernBertConfig(**ENCODER, global_attn_every_n_layers=2, cls_token_id=1, sep_token_id=2))


FAMILIES: dict[str, tuple[Callable[[], PreTrainedModel], Reach]] = {
    "gpt2": (gpt2, Reach.linear),
    "openai-gpt": (
        lambda: OpenAIGPTLMHeadModel(OpenAIGPTConfig(**SMALL, n_positions=64, n_embd=W, n_layer=2, n_head=4, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)),
        Reach.linear,
    ),
    "llama": (lambda: LlamaForCausalLM(LlamaConfig(**WIDE)), Reach.linear),
    "opt": (opt, Reach.linear),
    "gemma2 caps its logits": (lambda: Gemma2ForCausalLM(Gemma2Config(**WIDE)), Reach.whole),
    "cohere scales its logits": (lambda: CohereForCausalLM(CohereConfig(**WIDE)), Reach.whole),
    "bert has a deeper head": (bert, Reach.positionwise),
    "distilbert": (
        distilbert,
        Reach.positionwise,
    ),
    "roberta": (lambda: RobertaForMaskedLM(RobertaConfig(**ENCODER)), Reach.positionwise),
    "electra has a narrower head": (electra, Reach.positionwise),
    "mpnet": (lambda: MPNetForMaskedLM(MPNetConfig(**ENCODER)), Reach.positionwise),
    "albert": (lambda: AlbertForMaskedLM(AlbertConfig(**{**ENCODER, "initializer_range": 0.1}, embedding_size=16)), Reach.positionwise),
    "deberta reads the embeddings of its body": (deberta, Reach.whole),
    "modernbert": (modern, Reach.positionwise),
    "mobilebert has an output layer of two matrices": (
        lambda: MobileBertForMaskedLM(MobileBertConfig(**{**ENCODER, "hidden_size": 128, "embedding_size": 64})),
        Reach.whole,
    ),
}


def family(name: str) -> PreTrainedModel:
    torch.manual_seed(0)
    return FAMILIES[name][0]().train()


def ids(rows: int = 2, length: int = 9) -> Tensor:
    return torch.randint(1, V, (rows, length), generator=torch.Generator().manual_seed(1))


def loss(model: PreTrainedModel, tokens: Tensor, labels: Tensor | None = None) -> Tensor:
    """The sum of losses by the short forward; without labels each token is asked for at its own place."""
    return forward.vocabulary_loss(model, forward.encode(model, forward.reach(model), input_ids=tokens), tokens if labels is None else labels)


def close(a: Tensor | None, b: Tensor | None, relative: float = 1e-6) -> bool:
    """Equal to `relative` of the largest entry."""
    assert a is not None
    assert b is not None
    assert a.shape == b.shape
    return bool((a.double() - b.double()).abs().max() <= relative * b.double().abs().max())


class Seen(TorchDispatchMode):
    """Every operation with its results: name → (dtype, number of elements) of each."""

    def __init__(self) -> None:
        super().__init__()
        self.results: list[tuple[str, torch.dtype, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.results += [(func.__name__.split(".")[0], t.dtype, t.numel()) for t in (out if isinstance(out, (tuple, list)) else [out]) if isinstance(t, Tensor)]
        return out


# --- body → head ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_how_the_logits_come_from_the_last_state_is_found_out(name: str) -> None:
    assert forward.reach(family(name)) is FAMILIES[name][1]


@pytest.mark.parametrize("name", [name for name, (_, found) in FAMILIES.items() if found is Reach.linear])
def test_the_head_on_the_hidden_states_gives_the_familys_logits(name: str) -> None:
    model = family(name)
    weight, bias = forward.vocabulary_head(model)
    assert torch.equal(F.linear(forward.hidden_states(model, input_ids=ids()), weight, bias), model(input_ids=ids(), use_cache=False).logits)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_loss_and_its_gradients_are_those_of_the_familys_own_logits(name: str) -> None:
    model, labels = family(name), ids().masked_fill(ids() % 3 == 0, -100)
    ours = loss(model, ids(), labels)
    ours.backward()
    gradients = {n: p.grad for n, p in model.named_parameters()}
    model.zero_grad()
    theirs = F.cross_entropy(model(input_ids=ids()).logits.flatten(0, 1), labels.flatten(), reduction="sum")
    theirs.backward()
    assert close(ours, theirs)
    wrong = [n for n, p in model.named_parameters() if p.grad is not None and not (p.grad - gradients[n]).abs().max() <= 1e-5 * p.grad.abs().max() + 1e-6]
    assert wrong == []


def test_asking_whether_a_head_fits_leaves_modes_and_random_state_alone() -> None:
    model = gpt2(dropout=0.5).train()
    model.transformer.h[0].eval()
    modes, state = [m.training for m in model.modules()], torch.get_rng_state()
    assert forward.reach(model) is Reach.linear
    assert modes == [m.training for m in model.modules()]
    assert torch.equal(state, torch.get_rng_state())


def test_a_compiled_model_gives_the_same_loss_and_gradients() -> None:
    model = gpt2()
    assert forward.use_cpu_attention(model)
    compiled = torch.compile(lambda tokens: loss(model, tokens), backend="eager")
    plain, ours = loss(model, ids()), compiled(ids())
    assert close(ours, plain)
    assert all(close(a, b, 1e-4) for a, b in zip(gradients(ours, *model.parameters()), gradients(plain, *model.parameters()), strict=True))


def test_a_wrapped_head_does_not_fit() -> None:
    class Wrapped(nn.Linear):
        pass

    model = gpt2()
    model.set_output_embeddings(Wrapped(W, V, bias=False))
    assert forward.reach(model) is Reach.whole


def test_the_body_runs_without_a_cache() -> None:
    seen = []
    model = gpt2()
    model.transformer.register_forward_hook(lambda module, args, kwargs, output: seen.append(output.past_key_values), with_kwargs=True)
    forward.hidden_states(model, input_ids=ids())
    assert seen == [None]


# --- the vocabulary projection and its loss ------------------------------------------------------------------------


@pytest.fixture
def chunks(monkeypatch: pytest.MonkeyPatch) -> int:
    """Rows enough for several chunks, the last of them short."""
    monkeypatch.setattr(forward, "LOGITS", 8 * V)
    return 600


def problem(rows: int, *, bias: bool = True, dtype: torch.dtype = torch.float32, spread: float = 1.0) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    draw = torch.Generator().manual_seed(2)
    hidden, weight, b = (torch.randn(shape, generator=draw).mul(spread).to(dtype).requires_grad_() for shape in ((rows, W), (V, W), (V,)))
    labels = torch.randint(0, V, (rows,), generator=draw)
    return hidden, weight, b if bias else None, labels.masked_fill(torch.rand(rows, generator=draw) < 0.3, -100)


def reference(hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(hidden, weight, bias), labels, reduction="sum")


def gradients(loss: Tensor, *tensors: Tensor | None) -> list[Tensor]:
    return list(torch.autograd.grad(loss, [t for t in tensors if t is not None and t.requires_grad]))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("spread", [0.01, 1.0])
def test_loss_and_gradients_equal_cross_entropy_of_the_whole_logits(chunks: int, bias: bool, spread: float) -> None:
    hidden, weight, b, labels = problem(chunks, bias=bias, spread=spread)
    theirs = reference(hidden, weight, b, labels)
    ours = forward.linear_cross_entropy(hidden, weight, b, labels)
    assert ours.dtype == torch.float32
    assert close(ours, theirs)
    assert all(close(a, t) for a, t in zip(gradients(ours, hidden, weight, b), gradients(theirs, hidden, weight, b), strict=True))


def test_a_model_that_is_sure_and_right_has_the_small_loss_of_cross_entropy() -> None:
    hidden, labels = torch.eye(4)[:2] * 12, torch.tensor([0, 1])
    ours = forward.linear_cross_entropy(hidden, torch.eye(4), None, labels)
    assert close(ours, reference(hidden, torch.eye(4), None, labels), 1e-3)


def test_a_model_that_is_sure_and_wrong_has_a_finite_loss() -> None:
    ours = forward.linear_cross_entropy(torch.eye(4)[:1] * 1000, torch.eye(4), None, torch.tensor([3]))
    assert ours == 1000


def test_the_logits_never_exist_at_once(chunks: int) -> None:
    hidden, weight, b, labels = problem(2 * chunks)
    with Seen() as seen:
        forward.linear_cross_entropy(hidden, weight, b, labels).backward()
    assert [size // V for name, _, size in seen.results if name == "addmm"] == [256, 256, 256, 93]
    assert max(size for name, _, size in seen.results if size % V == 0) == 256 * V


def test_rows_without_a_label_are_not_projected() -> None:
    hidden, weight, b, labels = problem(40)
    with Seen() as seen:
        forward.linear_cross_entropy(hidden, weight, b, labels)
    assert [size for name, _, size in seen.results if name == "addmm"] == [int((labels >= 0).sum()) * V]


def test_no_label_at_all_gives_zero_with_zero_gradients() -> None:
    hidden, weight, b, labels = problem(5)
    ours = forward.linear_cross_entropy(hidden, weight, b, torch.full_like(labels, -100))
    assert ours == 0
    assert [float(g.abs().max()) for g in gradients(ours, hidden, weight, b)] == [0, 0, 0]


@pytest.mark.parametrize("frozen", [0, 1, 2])
def test_what_is_frozen_gets_no_gradient_and_the_others_are_as_before(frozen: int) -> None:
    tensors, labels = list(problem(20))[:3], problem(20)[3]
    whole = gradients(forward.linear_cross_entropy(*tensors, labels), *tensors)
    tensors[frozen].requires_grad_(False)
    part = gradients(forward.linear_cross_entropy(*tensors, labels), *tensors)
    assert all(torch.equal(a, b) for a, b in zip(part, whole[:frozen] + whole[frozen + 1 :], strict=True))


@pytest.mark.parametrize("frozen", [True, False])
def test_without_gradients_only_the_loss_is_computed(frozen: bool) -> None:
    hidden, weight, b, labels = problem(20)
    if frozen:
        hidden, weight, b = (t.detach() for t in (hidden, weight, b))
    with torch.set_grad_enabled(frozen), Seen() as seen:
        ours = forward.linear_cross_entropy(hidden, weight, b, labels)
    assert not ours.requires_grad
    assert "mm" not in {name for name, _, _ in seen.results}


def test_under_autocast_the_products_run_in_bf16_and_the_gradients_come_in_fp32() -> None:
    hidden, weight, b, labels = problem(300)
    with torch.autocast("cpu", torch.bfloat16), Seen() as seen:
        ours = forward.linear_cross_entropy(hidden, weight, b, labels)
    assert {(name, dtype) for name, dtype, _ in seen.results if name in ("mm", "addmm")} == {("addmm", torch.bfloat16), ("mm", torch.bfloat16)}
    assert {g.dtype for g in gradients(ours, hidden, weight, b)} == {torch.float32}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_without_autocast_the_products_run_in_the_type_of_the_states(dtype: torch.dtype) -> None:
    hidden, weight, b, labels = problem(20, dtype=dtype)
    with Seen() as seen:
        forward.linear_cross_entropy(hidden, weight, b, labels)
    assert {kind for name, kind, _ in seen.results if name in ("mm", "addmm")} == {dtype}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_half_precision_the_loss_is_no_further_from_the_truth_than_cross_entropys(dtype: torch.dtype, chunks: int) -> None:
    hidden, weight, b, labels = problem(chunks, dtype=dtype, spread=0.5)
    exact = reference(hidden.double(), weight.double(), b.double(), labels)
    ours = forward.linear_cross_entropy(hidden, weight, b, labels)
    theirs = F.cross_entropy(F.linear(hidden, weight, b).float(), labels, reduction="sum")
    for a, t, e in zip(gradients(ours, hidden, weight, b), gradients(theirs, hidden, weight, b), gradients(exact, hidden, weight, b), strict=True):
        assert a.dtype == dtype
        assert (a.double() - e).norm() <= 1.5 * (t.double() - e).norm()  # sums over chunks are rounded once more
    assert (ours - exact).abs() <= 1.01 * (theirs - exact).abs() + 1e-6 * exact


def test_a_factor_on_the_loss_is_a_factor_on_the_gradients() -> None:
    hidden, weight, b, labels = problem(20)
    plain = gradients(forward.linear_cross_entropy(hidden, weight, b, labels), hidden, weight, b)
    scaled = gradients(forward.linear_cross_entropy(hidden, weight, b, labels) * 1024, hidden, weight, b)
    assert all(torch.equal(a, 1024 * p) for a, p in zip(scaled, plain, strict=True))


def test_two_calls_add_their_gradients() -> None:
    hidden, weight, b, labels = problem(20)
    once = gradients(forward.linear_cross_entropy(hidden, weight, b, labels), hidden, weight, b)
    twice = forward.linear_cross_entropy(hidden, weight, b, labels) + forward.linear_cross_entropy(hidden, weight, b, labels)
    assert all(torch.equal(a, 2 * p) for a, p in zip(gradients(twice, hidden, weight, b), once, strict=True))


def test_a_second_backward_is_refused_not_wrong() -> None:
    hidden, weight, b, labels = problem(20)
    ours = forward.linear_cross_entropy(hidden, weight, b, labels)
    ours.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="backward works once"):
        ours.backward()


@pytest.mark.parametrize("label", [V, -1])
def test_a_label_outside_the_vocabulary_is_refused(label: int) -> None:
    hidden, weight, b, labels = problem(5)
    with pytest.raises((IndexError, RuntimeError), match="out of bounds"):
        forward.linear_cross_entropy(hidden, weight, b, torch.full_like(labels, label))


# --- attention on a CPU --------------------------------------------------------------------------------------------


def qkv(length: int, *, dtype: torch.dtype = torch.float32, heads: int = 4, key_heads: int = 4, size: int = 8) -> list[Tensor]:
    draw = torch.Generator().manual_seed(3)
    return [torch.randn(2, h, length, size, generator=draw).mul(2).to(dtype).requires_grad_() for h in (heads, key_heads, key_heads)]


def padded(length: int) -> Tensor:
    return (torch.arange(length) < torch.tensor([[length], [length // 2]]))[:, None, None].expand(2, 1, length, length)


def documents(length: int) -> Tensor:
    document = torch.stack([torch.arange(length) // 50, torch.arange(length) // 70])
    return ((document[:, :, None] == document[:, None]) & torch.ones(length, length, dtype=torch.bool).tril())[:, None]


MASKS: dict[str, tuple[Callable[[int], Tensor | None], bool]] = {
    "causal": (lambda length: None, True),
    "bidirectional": (lambda length: None, False),
    "right-padded": (padded, False),
    "documents": (documents, True),
    "one mask for all rows": (lambda length: documents(length)[:1], True),
    "a mask for each head": (lambda length: documents(length).repeat(1, 4, 1, 1) & padded(length), True),
}


def both(tensors: list[Tensor], mask: Tensor | None, causal: bool) -> tuple[list[Tensor], list[Tensor]]:
    """Output and gradients of ours and of sdpa."""
    ours, _ = forward.cpu_attention(nn.Module(), *tensors, mask, is_causal=causal)
    theirs = F.scaled_dot_product_attention(*tensors, attn_mask=mask, is_causal=causal and mask is None, enable_gqa=True).transpose(1, 2)
    by_out = torch.randn(ours.shape, generator=torch.Generator().manual_seed(4)).to(ours.dtype)
    return [ours, *torch.autograd.grad(ours, tensors, by_out)], [theirs, *torch.autograd.grad(theirs, tensors, by_out)]


@pytest.mark.parametrize("length", [2, 64, 65, 200])
@pytest.mark.parametrize("name", MASKS)
def test_attention_and_its_gradients_equal_sdpa(name: str, length: int) -> None:
    mask, causal = MASKS[name]
    ours, theirs = both(qkv(length), mask(length), causal)
    assert all(close(a, b, 5e-6) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("length", [20, 200])
@pytest.mark.parametrize("name", MASKS)
def test_in_bf16_attention_is_as_near_the_truth_as_sdpa(name: str, length: int) -> None:
    mask, causal = MASKS[name]
    tensors = qkv(length, dtype=torch.bfloat16)
    ours, theirs = both(tensors, mask(length), causal)
    _, exact = both([t.detach().double().requires_grad_() for t in tensors], mask(length), causal)
    assert all((a - e).norm() <= 1.3 * (t - e).norm() for a, t, e in zip(ours, theirs, exact, strict=True))


def test_keys_shared_by_several_heads_are_supported() -> None:
    ours, theirs = both(qkv(100, key_heads=2), None, True)
    assert all(close(a, b, 5e-6) for a, b in zip(ours, theirs, strict=True))


def test_the_callers_scaling_is_used() -> None:
    q, k, v = qkv(20)
    ours, _ = forward.cpu_attention(nn.Module(), q, k, v, None, scaling=0.1)
    assert close(ours, F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.1).transpose(1, 2), 5e-6)


@pytest.mark.parametrize(
    ("mask", "causal", "keys"),
    [(None, True, 64 + 128 + 136), (None, False, 3 * 136), (documents(136)[:1, :, :, :136], True, 64 + 78 + 36)],
    ids=["causal", "bidirectional", "documents of 50 tokens"],
)
def test_keys_that_a_block_of_queries_cannot_see_are_left_out(mask: Tensor | None, causal: bool, keys: int) -> None:
    spans = forward._spans(mask, causal, 136)
    assert [rows for rows, _ in spans] == [slice(0, 64), slice(64, 128), slice(128, 136)]
    assert sum(seen.stop - seen.start for _, seen in spans) == keys


def test_a_query_that_sees_nothing_gets_zero_and_no_nan() -> None:
    mask = documents(100).clone()
    mask[1, :, 30] = False
    mask[:, :, 64:] = False
    ours, theirs = both(qkv(100), mask, True)
    assert ours[0][1, 30].abs().max() == ours[0][:, 64:].abs().max() == 0
    assert all(close(a, b, 5e-6) for a, b in zip(ours, theirs, strict=True))


def test_a_document_does_not_see_another() -> None:
    (q, k, v), mask = qkv(200), documents(200)
    before, _ = forward.cpu_attention(nn.Module(), q, k, v, mask)
    with torch.no_grad():
        k[0, :, :50], v[0, :, :50] = 1e6, 1e6
    after, _ = forward.cpu_attention(nn.Module(), q, k, v, mask)
    assert torch.equal(before[0, 50:], after[0, 50:])


def test_under_autocast_attention_casts_as_sdpa_does() -> None:
    q, k, v = qkv(100)
    with torch.autocast("cpu", torch.bfloat16):
        ours, _ = forward.cpu_attention(nn.Module(), q, k, v.to(torch.bfloat16), None, is_causal=True)
        theirs = F.scaled_dot_product_attention(q, k, v.to(torch.bfloat16), is_causal=True).transpose(1, 2)
    assert ours.dtype == theirs.dtype == torch.bfloat16
    assert close(ours, theirs, 1e-2)


@pytest.mark.parametrize(
    "change",
    [
        {"query": torch.randn(2, 4, 1, 8)},
        {"query": torch.randn(2, 4, 5, 8)},
        {"attention_mask": torch.zeros(2, 1, 20, 20)},
        {"position_bias": torch.randn(1, 4, 20, 20)},
        {name: torch.randn(2, 4, 20, 8, dtype=torch.float64) for name in ("query", "key", "value")},
        {name: torch.randn(1, 2, forward.LONGEST + 1, 8) for name in ("query", "key", "value")},
    ],
    ids=["one token after a cache", "some tokens after a cache", "a mask of numbers", "a bias", "fp64", "long sequences"],
)
def test_what_it_has_no_gain_for_goes_to_sdpa(change: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward, "_BlockAttention", None)
    inputs = {**dict(zip(("query", "key", "value"), qkv(20), strict=True)), "attention_mask": None, **change}
    out, _ = forward.cpu_attention(nn.Module(), **inputs)
    assert out.shape[1] == inputs["query"].shape[2]


def dropped(tensors: list[Tensor], p: float) -> Tensor:
    torch.manual_seed(5)
    return forward.cpu_attention(nn.Module(), *tensors, None, dropout=p, is_causal=True)[0]


@pytest.mark.parametrize("length", [20, 100])
def test_dropout_has_the_gradients_of_its_own_mask(length: int) -> None:
    q, k, _ = qkv(length, size=length)
    v = torch.eye(length).expand(2, 4, length, length).clone().requires_grad_()
    left = dropped([q, k, v], 0.3).transpose(1, 2).detach() > 0  # the output is the probabilities themselves
    ours = dropped([q, k, v], 0.3)
    scores = (q @ k.mT / length**0.5).masked_fill(torch.ones(length, length, dtype=torch.bool).triu(1), float("-inf"))
    theirs = ((scores.softmax(-1) * left / 0.7) @ v).transpose(1, 2)
    by_out = torch.randn(ours.shape, generator=torch.Generator().manual_seed(4))
    assert close(ours, theirs, 5e-6)
    assert all(close(a, b, 5e-6) for a, b in zip(torch.autograd.grad(ours, [q, k, v], by_out), torch.autograd.grad(theirs, [q, k, v], by_out), strict=True))


def test_dropout_leaves_out_its_share() -> None:
    kept = forward._kept(*forward._drawn(torch.Size([1000, 1001]), 0.1, np.random.SFC64(6)), torch.bfloat16)
    assert abs(-float(kept.float().mean()) - 0.9) < 1e-3
    assert set(kept.unique().tolist()) == {0, -1}


def test_dropout_is_a_function_of_torchs_random_state() -> None:
    tensors = qkv(100)
    first, again = dropped(tensors, 0.3), dropped(tensors, 0.3)
    other, _ = forward.cpu_attention(nn.Module(), *tensors, None, dropout=0.3, is_causal=True)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_without_dropout_the_random_state_is_untouched() -> None:
    state = torch.get_rng_state()
    forward.cpu_attention(nn.Module(), *qkv(100), None, is_causal=True)
    assert torch.equal(state, torch.get_rng_state())


# --- attention inside models ---------------------------------------------------------------------------------------


def padding(length: int) -> dict[str, Tensor]:
    return {"attention_mask": (torch.arange(length) < torch.tensor([[length], [length // 2]])).long()}


def packed(length: int) -> dict[str, Tensor]:
    return {"position_ids": torch.stack([torch.arange(length) % 50, torch.arange(length) % 70])}


MODELS = {"gpt2": gpt2, "llama": lambda: LlamaForCausalLM(LlamaConfig(**WIDE, initializer_range=0.3)), "bert": bert}


@pytest.mark.parametrize("extra", [None, padding, packed])
@pytest.mark.parametrize("name", MODELS)
def test_a_model_with_our_attention_gives_its_own_logits_and_gradients(name: str, extra: Callable[[int], dict[str, Tensor]] | None) -> None:
    torch.manual_seed(0)
    model, length = MODELS[name](), 130
    inputs = {"input_ids": ids(length=length), **(extra(length) if extra else {}), **({} if name == "bert" else {"use_cache": False})}
    real = padding(length)["attention_mask"].bool() if extra is padding else torch.ones(2, length, dtype=torch.bool)
    parameters = [p for n, p in model.named_parameters() if any(stack in n for stack in (".h.", ".layers.", ".layer."))]

    def run() -> tuple[Tensor, list[Tensor]]:
        logits = model(**inputs).logits[real]
        return logits, list(torch.autograd.grad(logits.logsumexp(-1).sum(), parameters))

    theirs, by_theirs = run()
    assert forward.use_cpu_attention(model)
    ours, by_ours = run()
    assert close(ours, theirs, 1e-5)
    assert max((a - b).abs().max() for a, b in zip(by_ours, by_theirs, strict=True)) <= 2e-5 * max(b.abs().max() for b in by_theirs)


def test_our_attention_is_the_one_that_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    model = gpt2()
    assert forward.use_cpu_attention(model)
    monkeypatch.setattr(forward, "_BlockAttention", None)
    with pytest.raises(AttributeError, match="apply"):
        model(input_ids=ids(), use_cache=False)


def test_changing_one_packed_document_changes_nothing_in_the_next() -> None:
    model, tokens = gpt2().eval(), ids(length=130)
    assert forward.use_cpu_attention(model)
    before = forward.hidden_states(model, input_ids=tokens, **packed(130))
    tokens[:, :50] = 7
    after = forward.hidden_states(model, input_ids=tokens, **packed(130))
    assert torch.equal(before[0, 50:], after[0, 50:])
    assert not torch.equal(before[1, 50:], after[1, 50:])  # the second row's first document ends at 70


def test_a_saved_model_does_not_know_of_our_attention(tmp_path: Path) -> None:
    gpt2().save_pretrained(tmp_path / "theirs")
    model = gpt2()
    assert forward.use_cpu_attention(model)
    model.save_pretrained(tmp_path / "ours")
    assert {p.name: p.read_bytes() for p in (tmp_path / "ours").iterdir()} == {p.name: p.read_bytes() for p in (tmp_path / "theirs").iterdir()}
    assert forward.ATTENTION not in json.dumps(json.loads((tmp_path / "ours" / "config.json").read_text()))


def test_generation_is_the_same_with_our_attention() -> None:
    model = gpt2().eval()
    theirs = model.generate(ids(), max_new_tokens=5, do_sample=False, attention_mask=torch.ones_like(ids()))
    assert forward.use_cpu_attention(model)
    assert torch.equal(theirs, model.generate(ids(), max_new_tokens=5, do_sample=False, attention_mask=torch.ones_like(ids())))


def test_recomputed_activations_draw_the_same_dropout() -> None:
    model = gpt2(dropout=0.3).train()
    assert forward.use_cpu_attention(model)

    def run() -> list[Tensor]:
        torch.manual_seed(7)
        return list(
            torch.autograd.grad(
                loss(model, ids(length=100)),
                list(model.parameters()),
            )
        )

    plain = run()
    model.activation_checkpointing_enable()
    assert all(torch.equal(a, b) for a, b in zip(run(), plain, strict=True))


@pytest.mark.parametrize("name", ["eager", "falcon"])
def test_a_model_that_does_not_take_the_common_sdpa_keeps_its_own_attention(name: str) -> None:
    if name == "falcon":
        model: PreTrainedModel = FalconForCausalLM(FalconConfig(**SMALL, hidden_size=W, num_hidden_layers=2, num_attention_heads=4))
    else:
        model = gpt2()
        model.set_attn_implementation("eager")
    before = model.config._attn_implementation
    assert not forward.use_cpu_attention(model)
    assert model.config._attn_implementation == before


def kept_bytes(model: nn.Module, function: Callable[[], Tensor]) -> int:
    """Bytes that autograd keeps for the backward pass of what a function makes, each storage once; parameters are not counted."""
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        made = function()
    assert made.requires_grad
    return sum(tensor.untyped_storage().nbytes() for place, tensor in kept.items() if place not in parameters)


# --- dropout on a CPU ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout_drops_the_share_and_scales_the_rest_and_so_does_its_gradient(dtype: torch.dtype, p: float) -> None:
    model = nn.Sequential(nn.Dropout(p))
    forward.use_cpu_dropout(model)
    torch.manual_seed(0)
    x = torch.ones(1001, 999, dtype=dtype, requires_grad=True)
    y = model(x)
    y.backward(torch.full_like(y, 2.0))
    kept = (y != 0).double().mean().item()
    assert abs(kept - (1 - p)) < 4 * (p * (1 - p) / y.numel()) ** 0.5
    assert torch.equal(y[y != 0], torch.full_like(y[y != 0], 1.0).mul(1 / (1 - p)))
    assert x.grad is not None
    assert torch.equal(x.grad != 0, y != 0)
    assert torch.equal(x.grad, 2 * y.detach())


def test_dropout_is_drawn_from_the_global_seed_and_off_in_evaluation() -> None:
    model = nn.Sequential(nn.Dropout(0.3))
    forward.use_cpu_dropout(model)
    x, drawn = torch.ones(50, 50), []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        drawn.append(model(x))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert torch.equal(model.eval()(x), x)


def test_cpu_dropout_changes_no_name_and_nothing_that_is_saved() -> None:
    model = bert()
    names, saved = [name for name, _ in model.named_modules()], list(model.state_dict())
    forward.use_cpu_dropout(model)
    assert names == [name for name, _ in model.named_modules()]
    assert saved == list(model.state_dict())
    assert any(type(module).__name__ == "_CPUDropout" for module in model.modules())


def test_the_mask_of_dropout_is_kept_as_bits() -> None:
    model = nn.Sequential(nn.Dropout(0.3))
    forward.use_cpu_dropout(model)
    x = torch.ones(forward.FEW, 80, requires_grad=True)
    assert kept_bytes(model, lambda: model(x)) == x.numel() // 8


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_few_tokens_and_many_drop_the_same_with_the_same_gradient(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    x, by_out = torch.randn(20, 30).to(dtype).requires_grad_(), torch.randn(20, 30).to(dtype)
    found = []
    for few in (0, 1000):
        monkeypatch.setattr(forward, "FEW", few)
        torch.manual_seed(0)
        out = forward._Dropout.apply(x, 0.3)
        found += [out, torch.autograd.grad(out, x, by_out)[0]]
    assert torch.equal(found[0], found[2])
    assert torch.equal(found[1], found[3])
    assert 0 < int((found[0] == 0).sum()) < 600


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_was_dropped_is_known_by_its_sign_where_it_was_zero_too(dtype: torch.dtype) -> None:
    kept = forward._kept(torch.tensor([5, -5, 5, -5], dtype=torch.int16), 0, dtype)
    signed = forward._negative(kept, torch.tensor([0, 0, 0.5, 0.5], dtype=dtype))
    assert torch.equal(forward._positive(signed), kept)
    assert torch.equal(signed.abs(), torch.tensor([0, 0, 0.5, 0.5], dtype=dtype))
    assert torch.equal(forward._only(kept, torch.full((4,), torch.inf, dtype=dtype)), torch.tensor([torch.inf, 0, torch.inf, 0], dtype=dtype))


@pytest.mark.parametrize("p", [0.001, 0.1, 0.5, 1 - 2**-16])
@pytest.mark.parametrize("shape", [(7,), (3, 5), (200, 300)])
def test_the_bits_say_what_was_kept(shape: tuple[int, ...], p: float) -> None:
    words, first = forward._drawn(torch.Size(shape), p, np.random.SFC64(0))
    kept = forward._kept(words, first, torch.bfloat16)
    assert torch.equal(forward._unpacked(forward._packed(kept), torch.empty(shape, dtype=torch.bfloat16)), kept)


# --- linear layers on a CPU ------------------------------------------------------------------------------------------


BODIES_OF_LINEAR: dict[str, Callable[[], PreTrainedModel]] = {
    "gpt2": gpt2,
    "gpt2 with the fused GELU": lambda: GPT2LMHeadModel(GPT2Config(**SMALL, n_embd=W, n_layer=2, n_head=4, activation_function="gelu_pytorch_tanh")),
    "bert": bert,
    "bert with dropout": lambda: BertForMaskedLM(BertConfig(**{**ENCODER, "hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.2})),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**WIDE)),
    "modernbert": modern,
    "opt": opt,
}


def with_linear(name: str, ours: bool) -> PreTrainedModel:
    torch.manual_seed(0)
    model = BODIES_OF_LINEAR[name]().train()
    if ours:
        forward.use_cpu_linear(model)
    return model


def learnt(model: PreTrainedModel, bf16: bool) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss and all gradients, with the same draws every time."""
    forward.reach(model)
    torch.manual_seed(7)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        made = loss(model, ids(length=20))
    made.backward()
    return made.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.fixture(params=["few tokens", "many"])
def tokens(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept for the backward pass depends on how many tokens there are."""
    monkeypatch.setattr(forward, "FEW", 10**9 if request.param == "few tokens" else 0)


@pytest.mark.usefixtures("tokens")
@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("name", BODIES_OF_LINEAR)
def test_a_model_with_our_linear_layers_has_its_own_loss_and_gradients_to_the_last_bit(name: str, bf16: bool) -> None:
    ours = with_linear(name, ours=True)
    assert any(isinstance(module, forward._CPULinear) for module in ours.modules())
    (a, by_a), (b, by_b) = learnt(ours, bf16), learnt(with_linear(name, ours=False), bf16)
    assert torch.equal(a, b)
    assert by_a.keys() == by_b.keys()
    assert all(torch.equal(by_a[name], by_b[name]) for name in by_b)


@pytest.mark.usefixtures("tokens")
@pytest.mark.parametrize("bf16", [False, True])
def test_recomputed_activations_give_our_linear_layers_the_same_gradients(bf16: bool) -> None:
    plain = learnt(with_linear("bert with dropout", ours=True), bf16)[1]
    model = with_linear("bert with dropout", ours=True)
    model.activation_checkpointing_enable()
    again = learnt(model, bf16)[1]
    assert all(torch.equal(again[name], plain[name]) for name in plain)


@pytest.mark.usefixtures("tokens")
@pytest.mark.parametrize("kind", [nn.Linear, Conv1D])
@pytest.mark.parametrize("bias", [True, False])
def test_the_gradients_of_a_linear_layer_are_those_of_finite_differences(kind: type[nn.Module], bias: bool) -> None:
    weight = torch.randn(4, 3, dtype=torch.double, requires_grad=True)
    shift = torch.randn(3 if kind is Conv1D else 4, dtype=torch.double, requires_grad=True) if bias else None
    x = torch.randn(2, 5, 4 if kind is Conv1D else 3, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *given: forward._Linear.apply(*given, kind is Conv1D), (x, weight, shift))


@pytest.mark.usefixtures("tokens")
@pytest.mark.parametrize("frozen", ["weight", "bias", "input"])
def test_what_is_frozen_gets_no_gradient_from_a_linear_layer(frozen: str) -> None:
    given = {"input": torch.randn(5, 3, requires_grad=True), "weight": torch.randn(4, 3, requires_grad=True), "bias": torch.randn(4, requires_grad=True)}
    given[frozen].requires_grad_(False)
    forward._Linear.apply(*given.values(), False).sum().backward()
    assert [name for name, tensor in given.items() if tensor.grad is None] == [frozen]


@pytest.mark.parametrize("name", ["gpt2 with the fused GELU", "bert"])
def test_our_linear_layers_keep_less_for_the_backward_pass_of_many_tokens(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward, "FEW", 128)

    def kept(ours: bool) -> int:
        model = with_linear(name, ours)
        reach = forward.reach(model)
        with torch.autocast("cpu", torch.bfloat16):
            return kept_bytes(model, lambda: forward.encode(model, reach, input_ids=ids(length=64)).states)

    assert kept(ours=True) < 0.92 * kept(ours=False)


def small_stack() -> tuple[nn.Linear, nn.Module, nn.Linear]:
    torch.manual_seed(0)
    stack = nn.Module()
    stack.base_model = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))
    forward.use_cpu_linear(stack)  # type: ignore[arg-type]
    first, gelu, second = stack.base_model
    return first, gelu, second


def test_the_output_of_a_gelu_is_made_again_and_not_kept() -> None:
    first, gelu, second = small_stack()
    x = torch.ones(forward.FEW, 8)
    assert kept_bytes(nn.ModuleList([first, second]), lambda: second(gelu(first(x)))) == x.nbytes + forward.FEW * 16 * 4


def test_an_output_that_was_changed_in_place_is_kept_as_it_is() -> None:
    first, gelu, second = small_stack()
    made = gelu(first(torch.ones(forward.FEW, 8)))
    made.mul_(3)
    second(made).sum().backward()
    assert second.weight.grad is not None
    assert torch.allclose(second.weight.grad[0], made.detach().sum(0))


def test_layers_that_read_one_input_share_its_copy_until_it_is_changed() -> None:
    x, other = torch.randn(3, 4), torch.randn(3, 4)
    copy = forward._cast(x, torch.bfloat16)
    assert forward._cast(x, torch.bfloat16) is copy
    assert torch.equal(forward._cast(other, torch.bfloat16), other.bfloat16())
    copy = forward._cast(x, torch.bfloat16)
    x.mul_(2)
    assert torch.equal(forward._cast(x, torch.bfloat16), x.bfloat16())
    assert not torch.equal(copy, x.bfloat16())


def test_our_linear_layers_change_no_name_and_nothing_that_is_saved() -> None:
    model = gpt2()
    names, saved, shown = [name for name, _ in model.named_modules()], list(model.state_dict()), repr(model)
    forward.use_cpu_linear(model)
    assert (names, saved, shown) == ([name for name, _ in model.named_modules()], list(model.state_dict()), repr(model))
    assert all(isinstance(module, Conv1D) for module in model.modules() if isinstance(module, forward._CPUConv1D))


def test_a_compiled_model_with_our_linear_layers_gives_the_same_loss() -> None:
    model = with_linear("gpt2", ours=True)
    plain = loss(model, ids())
    compiled = torch.compile(lambda tokens: loss(model, tokens), backend="eager")
    assert close(compiled(ids()).detach(), plain.detach())


# --- the answers of a task -----------------------------------------------------------------------------------------

K, PAD = 3, 1
LABELS: dict[str, Any] = {"num_labels": K, "pad_token_id": PAD}
DEEP: dict[str, Any] = {**WIDE, **LABELS, "attention_dropout": 0.0}
LOW: dict[str, Any] = {**ENCODER, **LABELS, "type_vocab_size": 1}
TWO: dict[str, Any] = {**LOW, "type_vocab_size": 2}
NO_DROPOUT: dict[str, Any] = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
MODERN: dict[str, Any] = {**ENCODER, **LABELS, "global_attn_every_n_layers": 2, "local_attention": 4, "cls_token_id": 2, "sep_token_id": 3}
GEMMA: dict[str, Any] = {**DEEP, "sliding_window": 3, "layer_types": ["sliding_attention", "full_attention"]}
SENTENCES: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "distilbert": (hf.DistilBertConfig, {**LABELS, "vocab_size": V, "dim": W, "n_layers": 2, "n_heads": 4, "hidden_dim": 48}),
    "bert": (hf.BertConfig, TWO),
    "roberta": (hf.RobertaConfig, LOW),
    "electra": (hf.ElectraConfig, {**TWO, "embedding_size": 16}),
    "deberta_v2": (hf.DebertaV2Config, {**LOW, "type_vocab_size": 0, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8}),
    "mpnet": (hf.MPNetConfig, LOW),
    "albert, whose blocks are shared": (hf.AlbertConfig, {**TWO, "initializer_range": 0.1, "embedding_size": 16}),
    "modernbert, cls": (hf.ModernBertConfig, {**MODERN, "classifier_pooling": "cls"}),
    "modernbert, mean": (hf.ModernBertConfig, {**MODERN, "classifier_pooling": "mean"}),
    "longformer, which looks at its first token from everywhere": (hf.LongformerConfig, {**LOW, "attention_window": 4}),
    "gpt2": (hf.GPT2Config, {**SMALL, **LABELS, **NO_DROPOUT, "n_positions": 64, "n_embd": W, "n_layer": 2, "n_head": 4}),
    "openai_gpt": (hf.OpenAIGPTConfig, {**SMALL, **LABELS, **NO_DROPOUT, "n_positions": 64, "n_embd": W, "n_layer": 2, "n_head": 4}),
    "gpt_neox": (hf.GPTNeoXConfig, {**ENCODER, **LABELS, "max_position_embeddings": 64}),
    "opt": (hf.OPTConfig, {**SMALL, **LABELS, "hidden_size": W, "word_embed_proj_dim": W, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 48}),
    "llama": (hf.LlamaConfig, DEEP),
    "mistral": (hf.MistralConfig, {**DEEP, "sliding_window": 3}),
    "qwen2": (hf.Qwen2Config, DEEP),
    "qwen3": (hf.Qwen3Config, DEEP),
    "gemma3": (hf.Gemma3TextConfig, GEMMA),
    "ctrl, whose head looks for the padding": (hf.CTRLConfig, {**SMALL, **LABELS, "n_positions": 64, "n_embd": W, "n_layer": 2, "n_head": 4, "dff": 48}),
    "t5, which has two stacks": (
        hf.T5Config,
        {**LABELS, "vocab_size": V, "d_model": W, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "eos_token_id": 2, "decoder_start_token_id": PAD},
    ),
}
T5 = "t5, which has two stacks"
XLNET: dict[str, Any] = {**LABELS, "vocab_size": V, "d_model": W, "n_layer": 2, "n_head": 4, "d_inner": 48, "initializer_range": 0.1}
XLM: dict[str, Any] = {**LABELS, "vocab_size": V, "n_words": V, "emb_dim": W, "n_layers": 2, "n_heads": 4, "max_position_embeddings": 64}
# Families whose head makes one vector of a sequence by a setting of its own, which knows nothing of padding.
SUMMARIES: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "xlnet, last": (hf.XLNetConfig, XLNET),
    "xlnet, mean": (hf.XLNetConfig, {**XLNET, "summary_type": "mean"}),
    "xlnet, cls_index": (hf.XLNetConfig, {**XLNET, "summary_type": "cls_index"}),
    "xlm, first": (hf.XLMConfig, XLM),
    "xlm, last": (hf.XLMConfig, {**XLM, "summary_type": "last"}),
    "flaubert, mean": (hf.FlaubertConfig, {**XLM, "summary_type": "mean"}),
}
BODIES = [name for name in SENTENCES if name != T5]  # those that our head can stand on


def parameters_away_from_zero(model: Any) -> Any:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def sentences(name: str) -> Any:
    """A family's own model for sentences, small and random."""
    kind, settings = {**SENTENCES, **SUMMARIES}[name]
    torch.manual_seed(0)
    return parameters_away_from_zero(hf.AutoModelForSequenceClassification.from_config(kind(**settings)))


def body(name: str, **settings: Any) -> Any:
    """The body of a family that wears our head."""
    kind, own = SENTENCES[name]
    torch.manual_seed(0)
    return wearing(parameters_away_from_zero(hf.AutoModel.from_config(kind(**own))), **settings)


def wearing(model: Any, pooling: Pooling = Pooling.mean, states: tuple[int, ...] = (2,), combine: Combine = Combine.concat) -> Any:
    torch.manual_seed(1)
    attach(model, PooledHead(model.config.hidden_size, Outputs(K), pooling=pooling, states=states, combine=combine))
    with torch.no_grad():
        for parameter in pooled_head(model).parameters():  # type: ignore[union-attr]
            parameter.normal_()
    return model.eval()


def ragged() -> tuple[Tensor, Tensor]:
    """Ids (3, 9) of texts that end in token 2, then repeat it where there is padding; and the mask."""
    tokens, lengths = ids(3, 9).clamp_min(3), torch.tensor([9, 4, 6])
    mask = (torch.arange(9) < lengths[:, None]).long()
    return tokens.masked_fill(torch.arange(9) >= lengths[:, None] - 1, 2), mask


def segments() -> Tensor:
    return (torch.arange(9) >= 2).long().expand(3, 9)


def answer(model: Any, **inputs: Any) -> Tensor:
    with torch.no_grad():
        return forward.answers(model, **inputs)


def rows_alone(model: Any, tokens: Tensor, mask: Tensor, **more: Tensor) -> Tensor:
    """The answers to each row on its own, without padding and without a mask."""
    lengths = mask.sum(1).tolist()
    each = ({"input_ids": tokens[i : i + 1, :n], **{k: v[i : i + 1, :n] for k, v in more.items()}} for i, n in enumerate(lengths))
    return torch.cat([answer(model, **inputs) for inputs in each])


@pytest.mark.parametrize("name", SENTENCES)
def test_the_familys_own_head_gives_the_logits_of_transformers_in_a_padded_batch(name: str) -> None:
    model, (tokens, mask) = sentences(name), ragged()
    typed = {"token_type_ids": segments()} if getattr(model.config, "type_vocab_size", 0) == 2 else {}
    with torch.no_grad():
        theirs = model(input_ids=tokens.masked_fill(mask == 0, PAD), attention_mask=mask, **typed).logits
    ours = answer(model, input_ids=tokens, attention_mask=mask, token_type_ids=segments())
    assert ours.shape == (3, K)
    assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    assert float((theirs[0] - theirs[1]).abs().max()) > 1e-2  # the guard: rows differ


@pytest.mark.parametrize("name", SUMMARIES)
def test_a_row_alone_gets_the_logits_of_transformers_from_a_family_with_a_summary(name: str) -> None:
    model, (tokens, _) = sentences(name), ragged()
    with torch.no_grad():
        theirs = model(input_ids=tokens).logits
    assert torch.allclose(answer(model, input_ids=tokens), theirs, rtol=1e-5, atol=1e-5)
    assert float((theirs[0] - theirs[1]).abs().max()) > 1e-2  # the guard: rows differ


@pytest.mark.parametrize("name", [*SENTENCES, *SUMMARIES])
def test_t11_c18_the_familys_own_head_answers_alike_with_padding_and_without(name: str) -> None:
    model, (tokens, mask) = sentences(name), ragged()
    assert torch.allclose(answer(model, input_ids=tokens, attention_mask=mask), rows_alone(model, tokens, mask), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pooling", [Pooling.cls, Pooling.mean, Pooling.last, Pooling.max])
@pytest.mark.parametrize("name", BODIES)
def test_t11_c18_our_head_answers_alike_with_padding_and_without(name: str, pooling: Pooling) -> None:
    model, (tokens, mask) = body(name, pooling=pooling, states=(0, 2)), ragged()
    padded = answer(model, input_ids=tokens, attention_mask=mask, token_type_ids=segments())
    assert torch.allclose(padded, rows_alone(model, tokens, mask, token_type_ids=segments()), rtol=1e-4, atol=1e-4)


def test_t13_a_decoders_head_reads_the_last_token_by_the_mask_where_padding_and_end_are_one_token() -> None:
    model, (tokens, mask) = sentences("gpt2"), ragged()
    model.config.pad_token_id = 2  # the token that ends every text
    ours = answer(model, input_ids=tokens, attention_mask=mask)
    assert torch.allclose(ours, rows_alone(model, tokens, mask), rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        theirs = model(input_ids=tokens, attention_mask=mask).logits
    assert float((ours - theirs).abs().max()) > 1e-2  # which skips the end of every text


def test_a_decoder_without_a_padding_token_answers_batches() -> None:
    model, (tokens, mask) = body("gpt2", pooling=Pooling.last), ragged()
    model.config.pad_token_id = None
    assert torch.allclose(answer(model, input_ids=tokens, attention_mask=mask), rows_alone(model, tokens, mask), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [name for name, (_, settings) in SENTENCES.items() if settings.get("type_vocab_size", 0) < 2 and name != T5])
@pytest.mark.parametrize("make", [sentences, body])
def test_segment_ids_never_reach_a_family_without_two_segments(name: str, make: Callable[[str], Any]) -> None:
    # GPT-2 would add the embeddings of tokens 0 and 1; most others do not know the argument.
    model, (tokens, mask) = make(name), ragged()
    plain, typed = (answer(model, input_ids=tokens, attention_mask=mask, **more) for more in ({}, {"token_type_ids": segments()}))
    assert torch.equal(plain, typed)


@pytest.mark.parametrize("make", [sentences, body])
def test_segment_ids_reach_a_family_that_has_two(make: Callable[[str], Any]) -> None:
    model, (tokens, mask) = make("bert"), ragged()
    plain, typed = (answer(model, input_ids=tokens, attention_mask=mask, **more) for more in ({}, {"token_type_ids": segments()}))
    assert float((plain - typed).abs().max()) > 1e-2


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "modernbert, cls", "distilbert", "deberta_v2", "gemma3"])
def test_hidden_state_k_is_what_k_blocks_hand_on_and_the_last_is_the_bodys(name: str) -> None:
    model, (tokens, mask) = body(name, states=(0, 1, 2)), ragged()
    found, where = forward.vectors(model, input_ids=tokens, attention_mask=mask), anatomy.anatomy(model.config, type(model)).fitted(model, ["pooled"])
    inputs = {"input_ids": tokens, "attention_mask": mask}
    first = anatomy.prefix(model, where, 1, inputs)
    entered: list[Tensor] = []
    hook = model.get_submodule(f"{where.stack}.0").register_forward_pre_hook(
        lambda module, args, kwargs: entered.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
    )
    last = model(**inputs).last_hidden_state
    hook.remove()
    expected = torch.stack([pool(states, mask, Pooling.mean, None) for states in (entered[0], first, last)], 1)
    assert found.shape == (3, 3, W)
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("combine", Combine)
def test_several_hidden_states_are_combined_as_asked(combine: Combine) -> None:
    model, (tokens, mask) = body("bert", states=(0, 2), combine=combine), ragged()
    worn, read = pooled_head(model), forward.vectors(model, input_ids=tokens, attention_mask=mask)
    assert worn is not None
    x = read.flatten(1) if combine is Combine.concat else read.sum(1) if combine is Combine.sum else (read * worn.mix.softmax(0)[None, :, None]).sum(1)  # type: ignore[union-attr]
    assert torch.allclose(answer(model, input_ids=tokens, attention_mask=mask), F.linear(x, worn.weight, worn.bias), rtol=1e-5, atol=1e-5)


def test_the_vectors_of_a_group_are_added() -> None:
    model, (tokens, mask) = body("bert", states=(0, 2)), ragged()
    both = {"input_ids": tokens.repeat(2, 1), "attention_mask": mask.repeat(2, 1)}
    read = forward.vectors(model, **both)
    pairs = torch.stack([read[0] + read[1], read[2] + read[3], read[4] + read[5]])
    assert torch.allclose(answer(model, group=2, **both), pooled_head(model)(pairs), rtol=1e-5, atol=1e-5)  # type: ignore[misc]


@pytest.mark.parametrize("group", [1, 2])
def test_stored_vectors_have_the_answers_of_the_sequences_that_made_them(group: int) -> None:
    model, (tokens, mask) = body("gpt2", states=(0, 2)), ragged()
    inputs = {"input_ids": tokens[:2], "attention_mask": mask[:2]}
    stored = forward.vectors(model, **inputs)
    assert torch.equal(answer(model, group=group, **{forward.FEATURES: stored}), answer(model, group=group, **inputs))


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "distilbert", "modernbert, mean"])
@pytest.mark.parametrize("make", [sentences, body, lambda name: body(name, pooling=Pooling.pooler if name == "bert" else Pooling.last)])
def test_what_blocks_made_before_has_the_answers_of_the_whole_model(name: str, k: int, make: Callable[[str], Any]) -> None:
    model, (tokens, mask) = make(name), ragged()
    where = anatomy.anatomy(model.config, type(model)).fitted(model, ["pooled"])
    inputs = {"input_ids": tokens, "attention_mask": mask}
    above = anatomy.tail(model, where, k)
    vars(above.model)["fed"] = above.fed
    states = anatomy.prefix(model, where, k, inputs)
    assert torch.equal(answer(above.model, **inputs, **{forward.STATES: states}), answer(model, **inputs))
    assert not torch.equal(answer(above.model, **inputs, **{forward.STATES: states.flip(0)}), answer(model, **inputs))  # the guard


def test_answers_and_words_come_from_one_pass_and_are_those_of_each_alone() -> None:
    model, (tokens, mask) = wearing(gpt2(), Pooling.last), ragged()
    labels = torch.full_like(tokens, -100)
    labels[:, :-1] = tokens[:, 1:].masked_fill(mask[:, 1:] == 0, -100)
    forward.reach(model)
    passes: list[int] = []
    hook = model.transformer.register_forward_hook(lambda *_: passes.append(1))
    inputs = {"input_ids": tokens, "attention_mask": mask, "token_type_ids": segments()}
    answers, words = forward.answers_and_words(model, labels, **inputs)
    hook.remove()
    assert passes == [1]
    assert torch.equal(answers, forward.answers(model, **inputs))
    theirs = model(input_ids=tokens, attention_mask=mask).logits
    assert close(words, F.cross_entropy(theirs.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum"))


def test_a_tail_takes_over_what_was_found_out_about_its_model() -> None:
    model = gpt2()
    where = anatomy.anatomy(model.config, type(model))
    twin = anatomy.tail(model, where, 1).model
    with pytest.raises(RuntimeError, match="no states of its own"):
        forward.reach(twin)
    forward.like(twin, model)
    assert forward.reach(twin) is forward.reach(model) is Reach.linear
