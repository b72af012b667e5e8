"""AdamW over named groups: matrices decay, vectors do not, frozen parameters are not there."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel

from llmtrain.optimizer import Optimizer, load_state, set_lr, state_by_name

ADAMW = Optimizer(lr=1e-2, weight_decay=0.1, beta1=0.9, beta2=0.95, epsilon=1e-8)


def names(optimizer: torch.optim.Optimizer, decay: bool) -> set[str]:
    return {name for group in optimizer.param_groups for name in group["names"] if bool(group["weight_decay"]) is decay}


@pytest.mark.parametrize(
    "model",
    [
        GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=16)),
        BertModel(BertConfig(num_hidden_layers=1, hidden_size=8, num_attention_heads=2, vocab_size=16)),
    ],
    ids=["ln_1 and ln_f", "LayerNorm"],
)
def test_norms_and_biases_do_not_decay_whatever_they_are_called(model: nn.Module) -> None:
    built = ADAMW.build(model, [n for n, _ in model.named_parameters()], {})
    norms = {f"{m}.{n}" for m, module in model.named_modules() if isinstance(module, nn.LayerNorm) for n, _ in module.named_parameters()}
    biases = {n for n, _ in model.named_parameters() if n.endswith("bias")}
    assert norms
    assert names(built, decay=False) == norms | biases


def test_a_frozen_parameter_neither_moves_nor_decays_even_with_a_gradient_left_over() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    frozen = model[0].weight.detach().clone()
    optimizer = ADAMW.build(model, ["1.weight", "1.bias"], {})
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    assert torch.equal(model[0].weight, frozen)


def test_the_learning_rate_of_a_group_is_scaled() -> None:
    model = nn.Linear(2, 2)
    optimizer = ADAMW.build(model, ["weight", "bias"], {"bias": 0.5})
    set_lr(optimizer, 0.2)
    assert {group["names"][0]: group["lr"] for group in optimizer.param_groups} == {"weight": 0.2, "bias": 0.1}


def test_state_goes_by_name_when_the_trainable_set_changes() -> None:
    """By position, the state of the first parameter would go to whichever is first now (TRAPS T21)."""
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    before = ADAMW.build(model, ["0.weight", "1.weight"], {})
    (model(torch.ones(1, 2)).sum() * 3).backward()
    before.step()
    state = state_by_name(before)
    after = ADAMW.build(model, ["1.weight"], {})
    load_state(after, state)
    kept = after.state[model[1].weight]
    assert torch.equal(kept["exp_avg"], state["1.weight"]["exp_avg"])
    assert not torch.equal(kept["exp_avg"], state["0.weight"]["exp_avg"])
    assert float(kept["step"]) == 1


def test_the_state_made_beforehand_is_what_adamw_makes_itself() -> None:
    """The same weights and the same state after two updates as with torch's own AdamW, which makes it at the first."""
    torch.manual_seed(0)
    ours, theirs = nn.Linear(3, 4), nn.Linear(3, 4)
    theirs.load_state_dict(ours.state_dict())
    built = ADAMW.build(ours, ["weight", "bias"], {})
    groups = [{"params": [theirs.weight], "weight_decay": 0.1}, {"params": [theirs.bias], "weight_decay": 0.0}]
    plain = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95), eps=1e-8, fused=True)
    assert built.state
    assert not plain.state
    for _ in range(2):
        for model, optimizer in ((ours, built), (theirs, plain)):
            model(torch.ones(2, 3)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b)
        assert built.state[a].keys() == plain.state[b].keys()
        assert all(torch.equal(built.state[a][k], v) and built.state[a][k].dtype == v.dtype for k, v in plain.state[b].items())


def test_loaded_state_is_a_copy() -> None:
    model = nn.Linear(2, 2)
    state = {"weight": {"step": torch.tensor(3.0), "exp_avg": torch.ones(2, 2), "exp_avg_sq": torch.ones(2, 2)}}
    optimizer = ADAMW.build(model, ["weight"], {})
    load_state(optimizer, state)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    assert float(optimizer.state[model.weight]["step"]) == 4
    assert float(state["weight"]["step"]) == 3
    assert torch.equal(state["weight"]["exp_avg"], torch.ones(2, 2))
