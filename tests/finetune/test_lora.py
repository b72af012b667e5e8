"""LoRA: adapters in the blocks, trained beside frozen layers, and merged into them at the end."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from llmtrain.errors import ConfigError, DeviceError
from llmtrain.finetune.base import Finetune
from llmtrain.model.anatomy import Anatomy, frozen_modules, prefix, tail
from tests.finetune.conftest import batch, case, mode, real

pytest.importorskip("peft")
NAMES = pytest.mark.parametrize("name", ["bert", "distilbert", "gpt2_classification", "llama", "deberta"])


def prepared(name: str, **settings: Any) -> tuple[Any, Anatomy, Finetune]:
    """A model with adapters, its anatomy, and the mode that put them there."""
    policy = mode("lora", **settings)
    model = policy.prepare(real(name), case(name).anatomy)
    return model, case(name).anatomy.fitted(model), policy


def train(model: Any, trainable: frozenset[str]) -> None:
    """Move each trainable parameter away from where it is."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        for name in sorted(trainable):
            parameter = model.get_parameter(name)
            parameter.add_(torch.randn_like(parameter) * 0.1)


def says(model: Any) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model.eval()(**batch()).logits  # new adapters drop out until they are told not to
    return logits


@NAMES
def test_adapters_and_head_are_trained_and_nothing_that_was_there_before(name: str) -> None:
    model, anatomy, policy = prepared(name)
    (phase,) = policy.plan(anatomy)
    head = set(case(name).anatomy.names("head"))
    assert head <= phase.trainable
    assert all(".lora_" in parameter for parameter in phase.trainable - head)
    assert phase.trainable == head | {n for n, _ in model.named_parameters() if ".lora_" in n}


@NAMES
def test_every_linear_layer_of_the_blocks_gets_an_adapter_of_the_rank(name: str) -> None:
    model, anatomy, _ = prepared(name, rank=2)
    downs = {n: p for n, p in model.named_parameters() if ".lora_A." in n}
    matrices = [n for n, m in real(name).named_modules() if f"{anatomy.stack}." in n and type(m).__name__ in ("Linear", "Conv1D")]
    assert {n.partition(".lora_A.")[0] for n in downs} == set(matrices)
    assert {p.shape[0] for p in downs.values()} == {2}


@pytest.mark.parametrize(("blocks", "sections"), [(1, {"block.2"}), (2, {"block.1", "block.2"}), (None, {"block.0", "block.1", "block.2"})])
@pytest.mark.parametrize("name", ["bert", "gpt2_classification"])
def test_adapters_stand_in_the_chosen_blocks_and_count_there(name: str, blocks: int | None, sections: set[str]) -> None:
    model, anatomy, policy = prepared(name, blocks=blocks)
    (phase,) = policy.plan(anatomy)
    anatomy.check(model)
    assert {anatomy.sections[n] for n in phase.trainable} == sections | {"head"}
    assert anatomy.frozen_depth(phase.trainable) == 3 - len(sections)


def test_the_adapters_of_attention_alone_are_fewer() -> None:
    model, *_ = prepared("bert", target="attention")
    wrapped = {n.partition(".lora_A.")[0].rpartition("layer.0.")[2] for n, _ in model.named_parameters() if "layer.0." in n and ".lora_A." in n}
    assert wrapped == {"attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"}


def test_a_model_without_such_layers_is_refused_with_those_it_has() -> None:
    with pytest.raises(ConfigError, match=r"finetune\.target=attention: no linear layer in the blocks of this mamba model") as caught:
        prepared("mamba", target="attention")
    assert "in_proj" in str(caught.value.allowed)


@NAMES
def test_merged_the_model_has_its_old_names_and_says_what_it_said_with_adapters(name: str) -> None:
    model, anatomy, policy = prepared(name)
    train(model, policy.plan(anatomy)[0].trainable)
    before = says(model)
    merged: Any = policy.merged(model)
    assert [n for n, _ in merged.named_parameters()] == [n for n, _ in real(name).named_parameters()]
    assert type(merged) is type(real(name))
    assert vars(merged).keys() == vars(real(name)).keys()
    torch.testing.assert_close(says(merged), before, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(before, says(real(name)), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["bert", "gpt2_classification"])
def test_a_merged_model_is_saved_and_opened_as_one_that_never_had_adapters(name: str, tmp_path: Path) -> None:
    model, anatomy, policy = prepared(name)
    train(model, policy.plan(anatomy)[0].trainable)
    merged: Any = policy.merged(model)
    merged.save_pretrained(tmp_path)
    assert not (tmp_path / "adapter_config.json").exists()
    assert torch.equal(says(type(merged).from_pretrained(tmp_path).eval()), says(merged))


@NAMES
def test_what_is_frozen_has_the_bits_that_it_had(name: str) -> None:
    model, anatomy, policy = prepared(name)
    (phase,) = policy.plan(anatomy)
    train(model, phase.trainable)
    old = dict(real(name).named_parameters())
    frozen = {n: p for n, p in model.named_parameters() if n not in phase.trainable}
    assert len(frozen) == len(old) - len(case(name).anatomy.names("head"))
    assert all(torch.equal(p, old[n.replace(".base_layer.", ".")]) for n, p in frozen.items())


@pytest.mark.parametrize("name", ["bert", "gpt2_classification"])
def test_the_first_draw_follows_torchs_seed(name: str) -> None:
    drawn = []
    for seed in (1, 1, 2):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            drawn.append({n: p for n, p in prepared(name)[0].named_parameters() if ".lora_A." in n})
    one, same, other = drawn
    assert all(torch.equal(one[n], same[n]) for n in one)
    assert not any(torch.equal(one[n], other[n]) for n in one)


@pytest.mark.parametrize("name", ["bert", "gpt2_classification"])
def test_a_model_with_adapters_in_its_last_blocks_can_be_cut_below_them(name: str) -> None:
    model, anatomy, policy = prepared(name, blocks=1)
    train(model.eval(), policy.plan(anatomy)[0].trainable)
    with torch.no_grad():
        halves = tail(model, anatomy, 2)(prefix(model, anatomy, 2, batch()), **batch()).logits
    assert torch.equal(halves, says(model))


def test_dropout_works_beside_adapters_and_not_below_them() -> None:
    model, anatomy, policy = prepared("bert", blocks=1)
    frozen = set(frozen_modules(anatomy, model, policy.plan(anatomy)[0].trainable))
    assert {"bert.embeddings.dropout", "bert.encoder.layer.1.output.dropout"} <= frozen
    assert not {"bert.encoder.layer.2.output.dropout", "bert.encoder.layer.2.output.dense.lora_dropout.default"} & frozen


def test_a_tied_head_stays_frozen_under_adapters() -> None:
    _, anatomy, policy = prepared("gpt2")
    assert "transformer.wte.weight" not in policy.plan(anatomy)[0].trainable


def test_the_decay_goes_by_the_block_of_an_adapter() -> None:
    _, anatomy, policy = prepared("bert", lr_decay=0.5)
    (phase,) = policy.plan(anatomy)
    rates = {anatomy.sections[n]: phase.lr_scale.get(n, 1.0) for n in phase.trainable}
    assert rates == {"block.0": 0.125, "block.1": 0.25, "block.2": 0.5, "head": 1.0}


def test_adapters_can_be_counted_without_weights() -> None:
    policy = mode("lora", rank=8, target="attention")
    model = policy.prepare(case("bert_published").model.__class__(case("bert_published").model.config).to("meta"), case("bert_published").anatomy)
    (phase,) = policy.plan(case("bert_published").anatomy.fitted(model))
    trained = {n: p for n, p in model.named_parameters() if n in phase.trainable}
    assert {p.device.type for p in trained.values()} == {"meta"}
    assert sum(p.numel() for p in trained.values()) == 12 * 4 * 2 * 8 * 768 + 2 * 768 + 2


def test_more_blocks_than_the_model_has_are_refused_with_their_number() -> None:
    with pytest.raises(ConfigError, match=r"finetune\.blocks=99: the model has 3 blocks"):
        prepared("bert", blocks=99)


@pytest.mark.parametrize(
    ("name", "value"), [("rank", 0), ("rank", -1), ("alpha", 0), ("alpha", float("inf")), ("dropout", 1), ("dropout", -0.1), ("blocks", 0), ("blocks", -1)]
)
def test_a_setting_out_of_range_is_refused(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"finetune\.{name}"):
        mode("lora", **{name: value})


def test_without_peft_its_installation_is_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(DeviceError, match="peft is not installed") as caught:
        prepared("bert")
    assert caught.value.fix == "pip install 'llmtrain[lora]'"
