"""GPT from nothing: published sizes, faithful first weights, and one question asked the same in any batch."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from llmtrain.cli import main
from llmtrain.config import build, compose, groups
from llmtrain.data.tokenizer import Vocabulary as Special
from llmtrain.errors import ConfigError
from llmtrain.estimate import estimate
from llmtrain.model import forward
from llmtrain.model.base import Attention, Head, Model
from llmtrain.model.gpt import GPT
from llmtrain.objective.base import Batch, Draw, Objective
from llmtrain.objective.learner import Learner

WORDS = Special(size=50, end=0, start=0, separator=0, mask=None, special=(0, 1))


class Vocabulary:
    """As much of a tokenizer as a model from nothing asks for."""

    bos_token_id = eos_token_id = 0
    pad_token_id = 1

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size


def gpt(*overrides: str) -> Any:
    return build(compose("pretrain", list(overrides)).config.model, Model, "model")


def tiny(*overrides: str, vocabulary: int = 50, seed: int = 0) -> Any:
    """A small GPT with weights, in eval mode."""
    sizes = ("model.num_hidden_layers=2", "model.hidden_size=32", "model.num_attention_heads=2", "model.max_position_embeddings=32")
    torch.manual_seed(seed)
    return gpt("model=gpt", *sizes, *overrides).load(Vocabulary(vocabulary), Head.next_token, resize=False).eval()


# --- sizes ----------------------------------------------------------------------------------------------------------

PUBLISHED = {
    "gpt2": 124_439_808,  # counted from the released weights; the paper's table prints 117M
    "gpt2_medium": 354_823_168,
    "gpt2_large": 774_030_080,
    "gpt2_xl": 1_557_611_200,
}
NAMED = {
    "gpt3_125m": 125e6,
    "gpt3_350m": 350e6,
    "gpt3_760m": 760e6,
    "gpt3_1.3b": 1.3e9,
    "gpt3_2.7b": 2.7e9,
    "gpt3_6.7b": 6.7e9,
    "gpt3_13b": 13e9,
    "gpt3_175b": 175e9,
}


def parameters(preset: str, vocabulary: int) -> int:
    return estimate(gpt(f"model={preset}").config(Vocabulary(vocabulary))).parameters


@pytest.mark.parametrize(("preset", "published"), PUBLISHED.items())
def test_gpt2_has_the_published_number_of_parameters(preset: str, published: int) -> None:
    assert parameters(preset, 50_257) == published


@pytest.mark.parametrize(("preset", "named"), NAMED.items())
def test_gpt3_has_about_the_number_of_parameters_in_its_name(preset: str, named: float) -> None:
    assert parameters(preset, 50_257) == pytest.approx(named, rel=0.02)


def test_gpt1_has_116_million_parameters_with_its_own_vocabulary() -> None:
    assert parameters("gpt1", 40_478) == 116_534_784


def test_no_preset_was_left_out() -> None:
    assert {*PUBLISHED, *NAMED, "gpt1", "gpt", "gpt_tiny", "checkpoint"} == {name for name in groups()["model"] if not name.startswith("bert")}


def test_the_vocabulary_and_the_special_ids_are_those_of_the_tokenizer() -> None:
    config = gpt("model=gpt2").config(Vocabulary(321))
    assert (config.vocab_size, config.bos_token_id, config.eos_token_id, config.pad_token_id) == (321, 0, 0, 1)


# --- first weights --------------------------------------------------------------------------------------------------


def deviations(model: Any) -> dict[str, float]:
    """Kind of weight → the standard deviation of all weights of the kind."""
    kinds = {
        "wte": "embeddings",
        "tokens_embed": "embeddings",
        "wpe": "embeddings",
        "positions_embed": "embeddings",
        "c_fc": "inner",
        "c_attn": "inner",
        "c_proj": "back",
    }
    found: dict[str, list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        kind = next((kind for part, kind in kinds.items() if part in name), None)
        if kind and parameter.ndim == 2:
            found.setdefault(kind, []).append(parameter.detach().flatten())
    return {kind: float(torch.cat(tensors).std()) for kind, tensors in found.items()}


@pytest.mark.parametrize("initial", [0.02, 0.05])
def test_gpt2_starts_with_projections_into_the_residual_stream_scaled_down(initial: float) -> None:
    model = tiny(f"model.initializer_range={initial}", "model.num_hidden_layers=8", vocabulary=500)
    expected = {"embeddings": initial, "inner": initial, "back": initial / math.sqrt(2 * 8)}
    assert deviations(model) == pytest.approx(expected, rel=0.02)


def test_gpt1_starts_without_that_scaling() -> None:
    model = tiny("model.architecture=gpt1", "model.num_hidden_layers=8", vocabulary=500)
    assert deviations(model) == pytest.approx(dict.fromkeys(("embeddings", "inner", "back"), 0.02), rel=0.02)


@pytest.mark.parametrize("architecture", ["gpt1", "gpt2"])
def test_biases_start_at_zero_and_gains_at_one(architecture: str) -> None:
    for name, parameter in tiny(f"model.architecture={architecture}").named_parameters():
        if parameter.ndim == 1:
            norm = "ln_" in name and name.endswith("weight")
            assert torch.equal(parameter.detach(), torch.full_like(parameter, float(norm))), name


def test_the_seed_decides_the_first_weights() -> None:
    first, same, other = (torch.cat([p.flatten() for p in tiny(seed=seed).parameters()]) for seed in (1, 1, 2))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(("architecture", "deviation"), [("gpt1", 1.0), ("gpt2", 0.028)])
def test_gpt1_normalises_after_a_sublayer_and_gpt2_leaves_the_stream_as_it_is(architecture: str, deviation: float) -> None:
    model = tiny(f"model.architecture={architecture}")
    seen: list[Tensor] = []
    model.base_model.h[0].register_forward_hook(lambda module, given, output: seen.append(output if torch.is_tensor(output) else output[0]))
    with torch.no_grad():
        model(torch.arange(8)[None])
    assert float(seen[0].std(-1).mean()) == pytest.approx(deviation, rel=0.2)


@pytest.mark.parametrize(("activation", "name"), [("gelu_tanh", "gelu_pytorch_tanh"), ("gelu", "gelu"), ("relu", "relu")])
def test_the_activation_is_the_one_of_the_setting(activation: str, name: str) -> None:
    assert gpt("model=gpt", f"model.activation={activation}").config(Vocabulary(9)).activation_function == name


@pytest.mark.parametrize("architecture", ["gpt1", "gpt2"])
def test_gelu_tanh_is_the_gelu_of_the_released_code(architecture: str) -> None:
    x = torch.linspace(-4, 4, 101)
    block = tiny(f"model.architecture={architecture}").base_model.h[0].mlp
    formula = 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    assert torch.allclose(block.act(x), formula, atol=1e-6)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_dropout_reaches_embeddings_attention_and_residuals(dropout: float) -> None:
    config = gpt("model=gpt", f"model.dropout={dropout}").config(Vocabulary(9))
    assert [config.embd_pdrop, config.attn_pdrop, config.resid_pdrop] == [dropout] * 3


# --- tied weights ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["gpt1", "gpt2"])
def test_c15_tied_weights_are_one_tensor_before_and_after_saving(tmp_path: Path, architecture: str) -> None:
    from safetensors import safe_open
    from transformers import AutoModelForCausalLM

    model = tiny(f"model.architecture={architecture}")
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    for tied in (model, again):
        assert tied.lm_head.weight is tied.get_input_embeddings().weight
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        assert [name for name in file.keys() if "lm_head" in name] == []  # noqa: SIM118


def test_untied_weights_are_two_tensors_that_are_both_saved(tmp_path: Path) -> None:
    model = tiny("model.tie_word_embeddings=false")
    assert model.lm_head.weight is not model.get_input_embeddings().weight
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in tiny().parameters()) + 50 * 32


# --- settings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "allowed"),
    [
        ("model.num_hidden_layers=0", "1 or more"),
        ("model.num_attention_heads=3", "a multiple of num_attention_heads=3"),
        ("model.intermediate_size=0", "1 or more, or null"),
        ("model.max_position_embeddings=1", "2 or more"),
        ("model.dropout=1", "0 or more and below 1"),
        ("model.initializer_range=0", "above 0 and below 1"),
    ],
)
def test_a_shape_that_cannot_be_built_is_refused(override: str, allowed: str) -> None:
    with pytest.raises(ConfigError) as caught:
        gpt("model=gpt", override)
    assert caught.value.allowed == allowed


@pytest.mark.parametrize("override", ["model.activation=gelu", "model.initializer_range=0.03", "model.intermediate_size=100"])
def test_what_transformers_gpt1_cannot_do_is_refused(override: str) -> None:
    with pytest.raises(ConfigError) as caught:
        gpt("model=gpt1", override)
    assert "gpt1" in str(caught.value.allowed)


def test_a_gpt_is_causal_and_knows_its_width_and_positions() -> None:
    model = gpt("model=gpt2")
    assert isinstance(model, GPT)
    assert (model.attention, model.width, model.positions, model.tokenizer_path, model.tokenizer_algorithm) == (Attention.causal, 768, 1024, None, "bpe")


def test_a_token_sees_only_what_stands_before_it() -> None:
    model, ids = tiny(), torch.arange(10)[None]
    changed = ids.clone()
    changed[0, 6] = 40
    before, after = model(ids).logits, model(changed).logits
    assert torch.equal(before[:, :6], after[:, :6])
    assert not torch.equal(before[:, 6:], after[:, 6:])


# --- batches --------------------------------------------------------------------------------------------------------

MODELS = [  # architecture, whether with the attention that trains faster on a CPU
    pytest.param(architecture, fast, id=f"{architecture}{' by blocks' if fast else ''}")
    for architecture, fast in (("gpt2", False), ("gpt2", True), ("gpt1", False))
]
SEPARATING = MODELS[:2]


def asked(**changes: bool) -> Any:
    return build({"kind": "next_token", "weights": {"next_token": 1.0}, "packing": True, "document_attention": False, **changes}, Objective, "objective")


def row(ids: list[int], starts: list[int], sample: int = 0) -> dict[str, Any]:
    return {"ids": ids, "starts": starts, "bytes": len(ids), "sample": sample}


def model_of(architecture: str, fast: bool) -> Any:
    model = tiny(f"model.architecture={architecture}")
    if fast:
        forward.use_cpu_attention(model)
    return model


def logits(model: Any, batch: Batch) -> Tensor:
    with torch.no_grad():
        return model.get_output_embeddings()(forward.hidden_states(model, **batch.inputs))  # type: ignore[no-any-return]


def loss(model: Any, objective: Objective, batch: Batch) -> float:
    return float(Learner(model, objective)(batch)["next_token"].detach())


DOCUMENTS = [[0, 5, 6, 7, 8, 0], [0, 9, 10, 0], [0, 11, 12, 13, 14, 15, 16, 17, 18, 0]]


@pytest.mark.parametrize(("architecture", "fast"), MODELS)
def test_c18_a_padded_batch_gives_the_losses_and_logits_of_its_rows_alone(architecture: str, fast: bool) -> None:
    model, objective = model_of(architecture, fast), asked(packing=False)
    rows = [row(ids, [0], i) for i, ids in enumerate(DOCUMENTS)]
    padded = objective.collate(rows, Draw(0, 0), WORDS)
    alone = [objective.collate([r], Draw(0, 0), WORDS) for r in rows]
    assert loss(model, objective, padded) == pytest.approx(sum(loss(model, objective, one) for one in alone), rel=1e-6)
    together = logits(model, padded)
    for i, one in enumerate(alone):
        assert torch.allclose(together[i, : len(DOCUMENTS[i]) - 1], logits(model, one)[0], atol=1e-6)


def packed(documents: list[list[int]]) -> dict[str, Any]:
    """Documents in one block: the end of one is the beginning of the next."""
    ids, starts = [0], []
    for document in documents:
        starts.append(len(ids) - 1)
        ids += document[1:]
    return row(ids, starts)


@pytest.mark.parametrize(("architecture", "fast"), SEPARATING)
def test_c19_packed_documents_give_the_losses_and_logits_of_documents_alone(architecture: str, fast: bool) -> None:
    model, objective = model_of(architecture, fast), asked(document_attention=True)
    block = packed(DOCUMENTS)
    together = objective.collate([block], Draw(0, 0), WORDS)
    alone = [objective.collate([row(ids, [0])], Draw(0, 0), WORDS) for ids in DOCUMENTS]
    assert loss(model, objective, together) == pytest.approx(sum(loss(model, objective, one) for one in alone), rel=1e-6)
    for start, ids, one in zip(block["starts"], DOCUMENTS, alone, strict=True):
        assert torch.allclose(logits(model, together)[0, start : start + len(ids) - 1], logits(model, one)[0], atol=1e-6)


@pytest.mark.parametrize(("architecture", "fast"), SEPARATING)
@pytest.mark.parametrize("apart", [True, False])
def test_c19_changing_the_first_document_changes_nothing_in_the_second_only_where_they_are_kept_apart(architecture: str, fast: bool, apart: bool) -> None:
    model, objective = model_of(architecture, fast), asked(document_attention=apart)
    changed = [[0, 25, 26, 27, 28, 0], *DOCUMENTS[1:]]
    first, second = (logits(model, objective.collate([packed(documents)], Draw(0, 0), WORDS))[0] for documents in (DOCUMENTS, changed))
    begin = packed(DOCUMENTS)["starts"][1]
    assert torch.equal(first[begin:], second[begin:]) is apart
    assert not torch.equal(first[:begin], second[:begin])


def test_c19_a_family_that_cannot_keep_documents_apart_is_refused_before_the_first_batch() -> None:
    model = model_of("gpt1", fast=False)
    assert Learner(model, asked(document_attention=False)) is not None
    for _ in range(2):
        with pytest.raises(ConfigError, match="OpenAIGPTLMHeadModel attends across the documents"):
            Learner(model, asked(document_attention=True))


def test_c19_and_before_that_where_the_config_tells(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretrain", "model=gpt1", "objective.document_attention=true"]) == 2
    assert "this model attends across the documents" in capsys.readouterr().err


def test_asking_whether_documents_are_kept_apart_leaves_the_mode_of_every_module() -> None:
    model = tiny("model.dropout=0.5").train()
    model.base_model.h[0].eval()
    before = [module.training for module in model.modules()]
    Learner(model, asked(document_attention=True))
    assert [module.training for module in model.modules()] == before
