"""The block map: every part with its parameters, from when on it moves and how fast, and what the backward pass only crosses."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from llmtrain.finetune.base import Phase
from llmtrain.report import blocks
from tests.finetune.conftest import DEPTH, case, mode

LR = 2e-5


def lines(name: str, kind: str, lr: float = LR, **settings: Any) -> dict[str, blocks.Line]:
    found = blocks.lines(case(name).model, case(name).anatomy, mode(kind, **settings).plan(case(name).anatomy), lr)
    return {line.section: line for line in found}


def shown(found: dict[str, blocks.Line]) -> list[str]:
    out = io.StringIO()
    Console(file=out, width=200).print(blocks.table(list(found.values())))
    return [" ".join(line.split()) for line in out.getvalue().splitlines() if line.strip()]


@pytest.mark.parametrize("name", ["bert", "gpt2", "gpt2_classification", "distilbert", "deberta", "llama"])
@pytest.mark.parametrize(("kind", "settings"), [("features", {"untie": True}), ("last_layers", {"blocks": 2}), ("full", {}), ("layers", {"address": "0,2"})])
def test_every_parameter_is_counted_once_and_those_that_move_are_those_of_the_plan(name: str, kind: str, settings: dict[str, Any]) -> None:
    if kind == "features" and name in ("gpt2", "llama"):
        kind, settings = "last_layers", {"blocks": 1}  # a language model's head is tied to what features freezes
    model, plan = case(name).model, mode(kind, **settings).plan(case(name).anatomy)
    found = lines(name, kind, **settings)
    assert sum(line.parameters for line in found.values()) == sum(p.numel() for p in model.parameters())
    assert sum(line.trainable for line in found.values()) == sum(p.numel() for n, p in model.named_parameters() if n in plan[0].trainable)
    assert all(line.lr == LR and line.from_share == 0 for line in found.values() if line.trainable)
    assert all(line.lr is None and line.from_share is None for line in found.values() if not line.trainable)


def test_the_parts_stand_from_the_bottom_up_and_empty_ones_are_left_out() -> None:
    assert list(lines("bert", "full")) == ["embeddings", *(f"block.{i}" for i in range(DEPTH)), "final", "head"]
    assert list(lines("gpt2", "full")) == ["embeddings", *(f"block.{i}" for i in range(DEPTH)), "final"]  # its head is its embeddings


def test_what_is_frozen_above_what_moves_is_crossed_by_the_backward_pass() -> None:
    found = lines("bert", "layers", address="1", norm=False, pooler=False, head=False)
    assert {section for section, line in found.items() if line.crossed} == {"block.2", "final", "head"}
    assert not any(line.crossed for line in lines("bert", "last_layers", blocks=1).values())
    assert {section for section, line in lines("bert", "layers", address="none", embeddings=True).items() if line.crossed} == {"block.0", "block.1", "block.2"}


def test_what_moves_later_says_from_when_on() -> None:
    found = lines("bert", "gradual", blocks_per_phase=1, until=0.5, lr_decay=1.0)
    begins = [found[section].from_share for section in ("head", *(f"block.{i}" for i in reversed(range(DEPTH))), "embeddings")]
    assert begins[0] == 0
    assert begins == sorted(begins)  # type: ignore[type-var]
    assert begins[-1] == 0.5
    assert len(set(begins)) == DEPTH + 1 or len(set(begins)) == DEPTH + 2
    assert lines("bert", "lp_ft", head_share=0.25)["block.1"].from_share == 0.25


def test_the_rate_is_the_largest_of_a_part_in_any_phase() -> None:
    found = lines("bert", "full", lr_decay=0.5)
    assert found["head"].lr == pytest.approx(LR)
    assert [found[f"block.{i}"].lr for i in range(DEPTH)] == pytest.approx([LR * 0.5 ** (DEPTH - i) for i in range(DEPTH)])
    assert found["embeddings"].lr == pytest.approx(LR * 0.5 ** (DEPTH + 1))
    two = lines("bert", "lp_ft", head_lr_scale=20.0)
    assert (two["head"].lr, two["block.0"].lr) == (pytest.approx(20 * LR), pytest.approx(LR))


def test_neighbours_that_are_alike_share_a_line_and_others_do_not() -> None:
    rows = shown(lines("bert", "features"))
    assert [row.split()[0] for row in rows[1:]] == ["embeddings", "block.0", "final", "head", "all"]
    per = next(line for line in lines("bert", "features").values() if line.section == "block.0").parameters
    assert rows[2] == f"block.0 … 2 frozen {per:,} each 0"
    rows = shown(lines("bert", "last_layers", blocks=1))
    assert [row.split(" frozen")[0] for row in rows[2:4]] == ["block.0 … 1", f"block.2 trainable {per:,} {per:,} 2e-05"]
    assert len(shown(lines("bert", "full", lr_decay=0.5))) == 1 + 1 + DEPTH + 3


def test_the_table_says_what_is_frozen_what_is_crossed_and_what_comes_later() -> None:
    rows = shown(lines("bert", "layers", address="1", norm=False, pooler=False, head=False))
    assert rows[0] == "part parameters trainable lr"
    assert [row for row in rows if row.endswith("the backward pass crosses it")] == [rows[4], rows[5], rows[6]]
    assert any("from 25% of the updates on" in row for row in shown(lines("bert", "lp_ft", head_share=0.25)))
    found = lines("bert", "last_layers", blocks=1)
    total, moving = sum(line.parameters for line in found.values()), sum(line.trainable for line in found.values())
    assert shown(found)[-1] == f"all {total:,} {moving:,} {moving / total:.1%} trainable"


@pytest.mark.parametrize(
    ("name", "embeddings", "head", "notes"),
    [
        ("gpt2", True, False, {"embeddings": "the tied output matrix with it"}),
        ("gpt2", False, True, {"embeddings": "the tied output matrix with it"}),
        ("bert_mlm", True, False, {"embeddings": "the tied output matrix with it", "head": "but for its tied matrix"}),
        ("bert_mlm", False, True, {"embeddings": "the tied output matrix with it", "head": "but for its tied matrix"}),
        ("bert_mlm", True, True, {"embeddings": "the tied output matrix with it"}),
        ("llama", True, False, {}),
    ],
)
def test_the_map_says_that_a_tied_output_matrix_goes_with_the_embeddings_and_not_with_the_head(
    name: str, embeddings: bool, head: bool, notes: dict[str, str]
) -> None:
    found = lines(name, "layers", address="0", embeddings=embeddings, norm=False, pooler=False, head=head)
    rows = {row.split()[0]: row for row in shown(found)}
    for part in ("embeddings", "head"):
        assert rows.get(part, "").endswith(notes.get(part, "")), rows[part]
        assert ("tied" in rows.get(part, "")) is (part in notes)
    if "head" in notes:
        assert ("head frozen" in rows["head"]) is embeddings


def test_a_part_of_which_some_parameters_move_says_how_many() -> None:
    names = case("bert").anatomy.names("block.1")
    moving = frozenset(names[:2])
    (line,) = [line for line in blocks.lines(case("bert").model, case("bert").anatomy, [Phase(1.0, moving)], LR) if line.trainable]
    sizes = {name: parameter.numel() for name, parameter in case("bert").model.named_parameters()}
    assert (line.section, line.trainable, line.parameters) == ("block.1", sum(sizes[name] for name in moving), sum(sizes[name] for name in names))


def test_run_json_holds_the_same_numbers() -> None:
    found = lines("bert", "gradual")
    assert blocks.as_json(list(found.values())) == {
        section: {"parameters": line.parameters, "trainable": line.trainable, "from_share": line.from_share, "lr": line.lr, "crossed": line.crossed}
        for section, line in found.items()
    }
