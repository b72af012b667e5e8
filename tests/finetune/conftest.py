"""What the tests of finetuning modes share: modes as they ship, and models to plan for."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers as t
from omegaconf import OmegaConf

from llmtrain.config import build
from llmtrain.finetune.base import Finetune, Phase
from llmtrain.model.anatomy import Anatomy, anatomy

CONFIGS = Path(__file__).parents[2] / "configs" / "finetune"
DEPTH = 3
IDS: dict[str, Any] = {"vocab_size": 99, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
BERT: dict[str, Any] = {**IDS, "hidden_size": 48, "num_hidden_layers": DEPTH, "num_attention_heads": 6, "intermediate_size": 72}
GPT: dict[str, Any] = {**IDS, "n_embd": 48, "n_layer": DEPTH, "n_head": 6}
DEBERTA: dict[str, Any] = {**BERT, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8}
DISTIL: dict[str, Any] = {"vocab_size": 99, "pad_token_id": 0, "dim": 48, "n_layers": DEPTH, "n_heads": 6, "hidden_dim": 72}
LLAMA: dict[str, Any] = {**BERT, "num_key_value_heads": 3}
MODELS: dict[str, tuple[Any, Any]] = {
    "bert": (t.BertForSequenceClassification, t.BertConfig(**BERT)),
    "bert_mlm": (t.BertForMaskedLM, t.BertConfig(**BERT)),
    "deberta": (t.DebertaV2ForSequenceClassification, t.DebertaV2Config(**DEBERTA)),
    "distilbert": (t.DistilBertForSequenceClassification, t.DistilBertConfig(**DISTIL)),
    "gpt2": (t.GPT2LMHeadModel, t.GPT2Config(**GPT)),
    "gpt2_classification": (t.GPT2ForSequenceClassification, t.GPT2Config(**GPT)),
    "llama": (t.LlamaForCausalLM, t.LlamaConfig(**LLAMA)),
    "mamba": (t.MambaForCausalLM, t.MambaConfig(**IDS, hidden_size=48, num_hidden_layers=DEPTH, state_size=4)),
    "xlm_roberta": (t.XLMRobertaForMaskedLM, t.XLMRobertaConfig(**BERT)),
    "distilbert_published": (t.DistilBertForSequenceClassification, t.DistilBertConfig()),
    "bert_published": (t.BertForSequenceClassification, t.BertConfig()),
}


class Case(NamedTuple):
    """A model on the meta device and its anatomy."""

    model: Any
    anatomy: Anatomy

    def count(self, phase: Phase) -> int:
        """The number of parameters that a phase trains."""
        return sum(parameter.numel() for name, parameter in self.model.named_parameters() if name in phase.trainable)

    def sections(self, phase: Phase) -> set[str]:
        """The sections in which a phase trains something."""
        return {self.anatomy.sections[name] for name in phase.trainable}


def mode(kind: str, **settings: Any) -> Finetune:
    """A mode with the settings of its YAML, but for some."""
    return build(OmegaConf.merge(OmegaConf.load(CONFIGS / f"{kind}.yaml"), settings), Finetune, "finetune")


@functools.cache
def case(name: str) -> Case:
    model_class, config = MODELS[name]
    with torch.device("meta"):
        model = model_class(config)
    return Case(model, anatomy(config, model_class))


def real(name: str) -> Any:
    """A new model with random weights, every one away from zero, in eval()."""
    model_class, config = MODELS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = model_class(type(config)(**config.to_diff_dict())).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def batch() -> dict[str, torch.Tensor]:
    """Two rows, the second padded on the right."""
    ids = torch.tensor([[5, 6, 7, 8, 9, 10, 11], [12, 13, 14, 15, 0, 0, 0]])
    return {"input_ids": ids, "attention_mask": (ids != 0).long()}
