"""The pooled head: padding is never part of a vector, folding keeps every answer, and a damaged head is not believed."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, BertConfig, BertModel, GPT2Config, RobertaConfig, XLMConfig

from llmtrain.errors import CheckpointError, ConfigError
from llmtrain.model import head as heads
from llmtrain.model.base import Combine, Outputs, Pooling
from llmtrain.model.head import PooledHead, last_token, pool

W, K = 12, 3
LENGTHS = [7, 3, 5, 1]
NAMES = ("gut", 'sagt "nein"', "naïve 🙂\n")
POOLS = [pooling for pooling in Pooling if pooling not in (Pooling.auto, Pooling.pooler)]


def states() -> Tensor:
    return torch.randn(len(LENGTHS), max(LENGTHS), W, generator=torch.Generator().manual_seed(0))


def mask() -> Tensor:
    return (torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]).long()


def vectors(states: int = 2, rows: int = 40) -> Tensor:
    draw = torch.Generator().manual_seed(1)
    return torch.randn(rows, states, W, generator=draw) * (1 + torch.rand(states, W, generator=draw)) + torch.rand(states, W, generator=draw)


def head(combine: Combine = Combine.concat, states: tuple[int, ...] = (0, 2), pooling: Pooling = Pooling.mean, **settings: Any) -> PooledHead:
    """A head that has learned something: no parameter is where it began."""
    torch.manual_seed(0)
    made = PooledHead(W, Outputs(K, NAMES), pooling=pooling, states=states, combine=combine, **settings)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_()
    return made


def standardised(combine: Combine, number: int = 2) -> PooledHead:
    made, x = head(combine, tuple(range(number))), vectors(number)
    read = made.before_standardising(x)
    made.standardise(read.mean(0), read.std(0, correction=0))
    return made


# --- pooling --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pooling", POOLS)
def test_padding_is_no_part_of_a_vector(pooling: Pooling) -> None:
    found = pool(states(), mask(), pooling, None)
    alone = torch.cat([pool(row[None, :length], None, pooling, None) for row, length in zip(states(), LENGTHS, strict=True)])
    assert torch.allclose(found, alone, rtol=0, atol=1e-6)
    for filling in (1e4, -1e4):
        padded = states().masked_fill(mask()[..., None] == 0, filling)
        assert torch.equal(pool(padded, mask(), pooling, None), found)


@pytest.mark.parametrize("pooling", POOLS)
def test_what_is_pooled_is_what_the_word_says(pooling: Pooling) -> None:
    real = [row[:length] for row, length in zip(states(), LENGTHS, strict=True)]
    said: dict[Pooling, Callable[[Tensor], Tensor]] = {
        Pooling.cls: lambda x: x[0],
        Pooling.mean: lambda x: x.sum(0) / len(x),
        Pooling.last: lambda x: x[-1],
        Pooling.max: lambda x: x.max(0).values,
    }
    assert torch.allclose(pool(states(), mask(), pooling, None), torch.stack([said[pooling](x) for x in real]), rtol=0, atol=1e-6)


def test_what_the_familys_pooler_made_is_taken_as_it_is_and_refused_where_there_is_none() -> None:
    assert torch.equal(pool(states(), mask(), Pooling.pooler, states()[:, 2]), states()[:, 2])
    with pytest.raises(CheckpointError, match="no pooler"):
        pool(states(), mask(), Pooling.pooler, None)


@pytest.mark.parametrize("pooling", POOLS)
def test_vectors_are_in_fp32_whatever_the_states_are_in(pooling: Pooling) -> None:
    rounded = states().bfloat16()
    found = pool(rounded, mask(), pooling, None)
    assert found.dtype is torch.float32
    assert torch.allclose(found, pool(rounded.float(), mask(), pooling, None), rtol=0, atol=1e-6)


def test_t13_the_last_token_goes_by_the_mask_where_a_text_ends_in_the_padding_token() -> None:
    # Two rows end in a real token that is the padding's: the mask knows which of them are text.
    end = 0
    ids = torch.tensor([[5, 6, 7, end], [5, 6, end, end], [5, end, end, end]])
    seen = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0]])
    found = last_token(ids[..., None].float() + torch.arange(4)[None, :, None] / 10, seen)
    assert found.flatten().tolist() == pytest.approx([end + 0.3, end + 0.2, end + 0.1])
    assert torch.equal(found, last_token(ids[..., None].float() + torch.arange(4)[None, :, None] / 10, seen.bool()))


def test_without_a_mask_the_last_token_is_the_last_column() -> None:
    assert torch.equal(last_token(states(), None), states()[:, -1])


# --- standardising and folding --------------------------------------------------------------------------------------


@pytest.mark.parametrize("combine", Combine)
@pytest.mark.parametrize("number", [1, 3])
def test_folding_keeps_the_answers(combine: Combine, number: int) -> None:
    made, x = standardised(combine, number), vectors(number)
    plain = made.folded()
    assert torch.allclose(plain(x), made(x), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(head(combine, tuple(range(number)))(x), made(x), atol=1e-2)  # the guard: standardising changes them
    assert plain.combine is Combine.concat
    assert not plain.mean.any()
    assert bool((plain.scale == 1).all())
    assert torch.allclose(plain.folded()(x), plain(x), rtol=0, atol=1e-6)


@pytest.mark.parametrize("combine", Combine)
def test_standardised_numbers_have_mean_0_and_deviation_1(combine: Combine) -> None:
    made = standardised(combine)
    x = (made.before_standardising(vectors()) - made.mean) / made.scale
    assert torch.allclose(x.mean(0), torch.zeros_like(x[0]), atol=1e-5)
    assert torch.allclose(x.std(0, correction=0), torch.ones_like(x[0]), atol=1e-5)


def test_a_sum_is_standardised_as_a_sum() -> None:
    made, x = standardised(Combine.sum), vectors()
    summed = x.sum(1)
    expected = (summed - summed.mean(0)) / summed.std(0, correction=0) @ made.weight.T + made.bias
    assert torch.allclose(made(x), expected, rtol=1e-5, atol=1e-5)


def test_a_number_that_is_the_same_everywhere_is_not_blown_up() -> None:
    made, x = head(), vectors()
    x[:, 1, 4] = 7.0
    x[:, 0, 2] = 3.0 + 1e-8 * torch.arange(len(x))
    made.standardise(x.mean(0), x.std(0, correction=0))
    x[0, 1, 4] += 0.01  # a test text in which it is another one
    read = (x - made.mean) / made.scale
    assert read.isfinite().all()
    assert abs(float(read[0, 1, 4])) < 0.02
    assert float(read[:, 0, 2].abs().max()) < 1e-3


def test_the_weights_of_a_weighted_sum_begin_equal_and_are_trained() -> None:
    torch.manual_seed(0)
    made, x = PooledHead(W, Outputs(K), pooling=Pooling.mean, states=(0, 1, 2), combine=Combine.weighted), vectors(3)
    assert torch.allclose(made(x), x.mean(1) @ made.weight.T + made.bias, rtol=1e-5, atol=1e-6)
    made(x).square().sum().backward()
    assert made.mix is not None
    assert made.mix.grad is not None
    assert bool(made.mix.grad.any())


def test_answers_are_in_fp32_under_autocast_too() -> None:
    made, x = standardised(Combine.concat), vectors()
    with torch.autocast("cpu", torch.bfloat16):
        found = made(x)
    assert found.dtype is torch.float32
    assert torch.equal(found, made(x))


def test_a_worn_head_is_a_part_of_the_model() -> None:
    body = BertModel(BertConfig(vocab_size=20, hidden_size=W, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8))
    assert heads.pooled_head(body) is None
    worn = head()
    heads.attach(body, worn)
    assert heads.pooled_head(body) is worn
    assert {name for name, _ in body.named_parameters() if name.startswith("pooled.")} == {"pooled.weight", "pooled.bias"}
    assert body(input_ids=torch.tensor([[1, 2]])).last_hidden_state.shape == (1, 2, W)


# --- the units of scores --------------------------------------------------------------------------------------------


def number(combine: Combine = Combine.concat) -> PooledHead:
    """A head of a number that standardises what it reads and has learned something."""
    torch.manual_seed(0)
    made, x = PooledHead(W, Outputs(1), pooling=Pooling.mean, states=(0, 2), combine=combine), vectors()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_()
    read = made.before_standardising(x)
    made.standardise(read.mean(0), read.std(0, correction=0))
    return made


@pytest.mark.parametrize("combine", Combine)
def test_a_head_in_units_weighs_standardised_scores_and_gives_and_saves_scores(combine: Combine) -> None:
    plain, made, x = number(combine), number(combine), vectors()
    heads.learn_in_units(made, 5000.0, 200.0, new=True)
    assert torch.allclose(made(x), plain(x) * 200 + 5000, rtol=1e-6)
    assert torch.equal(made.weight, plain.weight)
    assert set(made.folded().state_dict()) == {"weight", "bias", "mean", "scale"}
    assert torch.allclose(made.folded()(x), made(x), rtol=1e-5)


@pytest.mark.parametrize("combine", Combine)
def test_a_head_on_another_device_is_folded_there(combine: Combine) -> None:
    """As on a GPU, from where a run exports it: nothing of it may be made on the CPU meanwhile."""
    made = number(combine).to("meta")
    heads.learn_in_units(made, 5000.0, 200.0, new=True)
    assert {tensor.device.type for tensor in made.folded().state_dict().values()} == {"meta"}


@pytest.mark.parametrize("combine", Combine)
def test_a_head_that_is_not_new_keeps_its_answers_when_it_gets_units(combine: Combine) -> None:
    plain, made, x = number(combine), number(combine), vectors()
    heads.learn_in_units(made, 5000.0, 200.0, new=False)
    assert torch.allclose(made(x), plain(x), rtol=1e-4, atol=1e-3)
    assert torch.allclose(made.weight * 200, plain.weight, rtol=1e-6)


def test_a_head_without_units_has_no_tensors_of_them() -> None:
    assert set(number().state_dict()) == {"weight", "bias", "mean", "scale"}
    body = BertModel(BertConfig(vocab_size=20, hidden_size=W, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8))
    heads.attach(body, number())
    assert heads.units_of(body) == frozenset()
    heads.learn_in_units(heads.last_layer(body)[1], 3.0, 2.0, new=True)
    assert heads.units_of(body) == {f"pooled.{name}" for name in ("weight", "bias", "mean", "scale", "centre", "spread")}


SHAPE = {"hidden_size": W, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8, "num_labels": 1, "vocab_size": 20, "pad_token_id": 0}
GPT = {"n_embd": W, "n_layer": 1, "n_head": 2, "n_positions": 16, "num_labels": 1, "vocab_size": 20, "pad_token_id": 0}
FAMILIES: dict[str, tuple[Any, str]] = {
    "bert": (BertConfig(**SHAPE), "classifier"),
    "roberta": (RobertaConfig(**SHAPE), "classifier.out_proj"),
    "xlm": (XLMConfig(emb_dim=W, n_layers=1, n_heads=2, num_labels=1, vocab_size=20, n_words=20, pad_token_id=0), "sequence_summary.summary"),
    "gpt2, without a bias": (GPT2Config(**GPT), "score"),
}


@pytest.mark.parametrize("new", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_familys_own_last_layer_learns_in_units_and_is_saved_as_the_family_knows_it(tmp_path: Path, family: str, new: bool) -> None:
    torch.manual_seed(0)
    config, path = FAMILIES[family]
    model = AutoModelForSequenceClassification.from_config(config).eval()
    inputs = {"input_ids": torch.tensor([[3, 4, 5], [6, 7, 8]])}
    with torch.no_grad():
        before = model(**inputs).logits
        name, layer = heads.last_layer(model)
        heads.learn_in_units(layer, 5000.0, 200.0, new=new)
        after = model(**inputs).logits
    assert name == path
    centre, spread = (5000.0, 200.0) if "bias" not in family else (0.0, math.hypot(5000, 200))
    assert torch.allclose(after, before * spread + centre if new else before, rtol=1e-5, atol=2e-3)
    assert heads.units_of(model) == {f"{path}.{own}" for own in layer.state_dict()} >= {f"{path}.centre", f"{path}.spread", f"{path}.weight"}
    model.save_pretrained(tmp_path, state_dict=heads.saved(model))
    again, info = AutoModelForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert {kind: len(names) for kind, names in info.items() if names} == {}
    with torch.no_grad():
        assert torch.allclose(again.eval()(**inputs).logits, after, rtol=1e-5, atol=2e-3)


def test_scores_of_a_familys_head_are_not_rounded_to_the_type_of_autocast() -> None:
    model = AutoModelForSequenceClassification.from_config(FAMILIES["bert"][0]).eval()
    heads.learn_in_units(heads.last_layer(model)[1], 5000.0, 200.0, new=True)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = model(input_ids=torch.tensor([[3, 4, 5], [6, 7, 8]])).logits
    assert found.dtype is torch.float32
    assert float((found - found.bfloat16().float()).abs().max()) > 0.1


def test_a_family_whose_head_ends_in_no_one_number_is_refused_with_the_way_out() -> None:
    model = AutoModelForSequenceClassification.from_config(BertConfig(**{**SHAPE, "num_labels": 2}))
    with pytest.raises(ConfigError, match=r"BertForSequenceClassification has 0 linear layers that end in a number") as caught:
        heads.last_layer(model)
    assert caught.value.fix == "model.head=pooled"


# --- files ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("combine", Combine)
@pytest.mark.parametrize("pooling", [*POOLS, Pooling.pooler])
def test_a_head_that_is_read_gives_the_same_answers_and_class_names(tmp_path: Path, combine: Combine, pooling: Pooling) -> None:
    made, x = standardised(combine), vectors()
    made.pooling = pooling
    heads.save(made, tmp_path)
    read = heads.read(tmp_path)
    assert read is not None
    assert torch.allclose(read(x), made(x), rtol=1e-5, atol=1e-5)
    assert (read.pooling, read.states, read.width) == (pooling, made.states, W)
    assert read.outputs == Outputs(K, NAMES)


def test_a_head_of_a_number_has_no_class_names(tmp_path: Path) -> None:
    heads.save(PooledHead(W, Outputs(1), pooling=Pooling.mean, states=(1,)), tmp_path)
    read = heads.read(tmp_path)
    assert read is not None
    assert read.outputs == Outputs(1)


@pytest.mark.parametrize("first", [0, 1])
def test_a_head_of_choices_keeps_from_which_number_the_data_count_them(tmp_path: Path, first: int) -> None:
    made = PooledHead(W, Outputs(1), pooling=Pooling.mean, states=(1,))
    made.first_choice = first
    heads.save(made, tmp_path)
    read = heads.read(tmp_path)
    assert read is not None
    assert read.first_choice == first


def test_where_no_head_was_saved_there_is_none(tmp_path: Path) -> None:
    assert heads.read(tmp_path) is None


Fault = Callable[[Path], object]
JSON, WEIGHTS = heads.FILES


def about(**changes: Any) -> Fault:
    def fault(folder: Path) -> None:
        content = {**json.loads((folder / JSON).read_text(encoding="utf-8")), **changes}
        (folder / JSON).write_text(json.dumps({name: value for name, value in content.items() if value is not ...}))

    return fault


def weights(**changes: Tensor | None) -> Fault:
    def fault(folder: Path) -> None:
        content = {**safetensors.torch.load_file(folder / WEIGHTS), **changes}
        (folder / WEIGHTS).write_bytes(safetensors.torch.save({name: t for name, t in content.items() if t is not None}))

    return fault


def write(name: str, data: bytes) -> Fault:
    return lambda folder: (folder / name).write_bytes(data)


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(write(JSON, b"{"), id="json: cut"),
        pytest.param(write(JSON, b"\xff"), id="json: bytes"),
        pytest.param(write(JSON, b"[]"), id="json: a list"),
        pytest.param(write(JSON, b"null"), id="json: nothing"),
        pytest.param(about(width=...), id="json: no width"),
        pytest.param(about(width=W + 1), id="json: another width"),
        pytest.param(about(width=float("inf")), id="json: endless width"),
        pytest.param(about(pooling="median"), id="json: unknown pooling"),
        pytest.param(about(pooling="auto"), id="json: no pooling"),
        pytest.param(about(states=[]), id="json: no states"),
        pytest.param(about(states=[-1, 2]), id="json: a state below 0"),
        pytest.param(about(states=[2]), id="json: another number of states"),
        pytest.param(about(classes=["one"]), id="json: fewer classes than answers"),
        pytest.param(about(classes="abc"), id="json: classes are a text"),
        pytest.param(about(classes=[1, 2, 3]), id="json: classes are numbers"),
        pytest.param(about(first_choice="1"), id="json: a text as the first choice"),
        pytest.param(about(first_choice=2), id="json: choices counted from 2"),
        pytest.param(lambda folder: (folder / WEIGHTS).unlink(), id="weights: gone"),
        pytest.param(write(WEIGHTS, b""), id="weights: empty"),
        pytest.param(lambda folder: (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-1]), id="weights: cut"),
        pytest.param(weights(bias=None), id="weights: no bias"),
        pytest.param(weights(bias=torch.zeros(())), id="weights: a number as bias"),
        pytest.param(weights(weight=torch.zeros(K, W)), id="weights: another shape"),
        pytest.param(weights(more=torch.zeros(1)), id="weights: one too many"),
        pytest.param(weights(bias=torch.full((K,), float("nan"))), id="weights: not a number"),
    ],
)
def test_a_damaged_head_is_named_and_not_believed(tmp_path: Path, fault: Fault) -> None:
    (tmp_path / "whole").mkdir()
    heads.save(head(), tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "damaged")
    fault(tmp_path / "damaged")
    with pytest.raises(CheckpointError, match=r"head\.json: not the head of a task") as caught:
        heads.read(tmp_path / "damaged")
    assert caught.value.exit_code == 4
    assert heads.read(tmp_path / "whole") is not None
