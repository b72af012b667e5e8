"""The block map: which part of a model moves, at which learning rate, before a single update."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmtrain.finetune.base import tied_frozen, tied_moving

if TYPE_CHECKING:
    from rich.table import Table
    from torch import nn

    from llmtrain.finetune.base import Phase
    from llmtrain.model.anatomy import Anatomy


@dataclass(frozen=True)
class Line:
    """One section of the model, from the bottom up.

    Attributes:
        parameters, trainable: how many numbers there are, and how many of them move in some phase.
        from_share: share of the budget after which they move; None: never.
        lr: largest learning rate of its parameters at the peak of the schedule; None: frozen.
        crossed: frozen, but the backward pass has to cross it to reach what moves below.
        tied: of embeddings and head, whether an output matrix moves that is tied to the embeddings, with which it is counted;
            None: there is none.
    """

    section: str
    parameters: int
    trainable: int
    from_share: float | None
    lr: float | None
    crossed: bool
    tied: bool | None = None


def lines(model: nn.Module, anatomy: Anatomy, phases: list[Phase], lr: float) -> list[Line]:
    """The map of a plan."""
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    begins: dict[str, float] = {}
    rates: dict[str, float] = {}
    for begin, phase in zip([0.0, *(phase.until for phase in phases)], phases, strict=False):
        for name in phase.trainable:
            begins.setdefault(name, begin)
            rates[name] = max(rates.get(name, 0.0), lr * phase.lr_scale.get(name, 1.0))
    tied = True if tied_moving(anatomy, begins) else False if tied_frozen(anatomy, begins) else None
    found: list[Line] = []
    below = False
    for section in ordered(anatomy):
        names = anatomy.names(section)
        if not names:
            continue
        moving = [name for name in names if name in begins]
        found.append(
            Line(
                section,
                parameters=sum(sizes[name] for name in names),
                trainable=sum(sizes[name] for name in moving),
                from_share=min((begins[name] for name in moving), default=None),
                lr=max((rates[name] for name in moving), default=None),
                crossed=below and not moving,
                tied=tied if section in ("embeddings", "head") else None,
            )
        )
        below = below or bool(moving)
    return found


def ordered(anatomy: Anatomy) -> Iterable[str]:
    """The sections from the bottom up."""
    return ("embeddings", *anatomy.blocks, "final", "head")


def table(found: list[Line]) -> Table:
    """As the terminal shows it. Neighbours that are alike share a line."""
    from rich.table import Table

    grid = Table(box=None, padding=(0, 2, 0, 0))
    for name, justify in (("part", "left"), ("", "left"), ("parameters", "right"), ("trainable", "right"), ("lr", "right"), ("", "left")):
        grid.add_column(name, justify=justify)  # type: ignore[arg-type]
    for group in _alike(found):
        first, last = group[0], group[-1]
        name = first.section if first is last else f"{first.section} … {last.section.removeprefix('block.')}"
        each = " each" if first is not last else ""
        state = "frozen" if first.from_share is None else "trainable"
        notes = ["the backward pass crosses it"] if first.crossed else []
        notes += ["the tied output matrix with it"] if first.tied is not None and first.section == "embeddings" else []
        notes += ["but for its tied matrix"] if first.tied is not None and first.section == "head" and first.tied is (first.from_share is None) else []
        notes += [f"from {first.from_share:.0%} of the updates on"] if first.from_share else []
        style = "dim" if first.from_share is None else None
        rate = "" if first.lr is None else f"{first.lr:.2g}"
        grid.add_row(name, state, f"{first.parameters:,}{each}", f"{first.trainable:,}", rate, "; ".join(notes), style=style)
    total, trainable = sum(line.parameters for line in found), sum(line.trainable for line in found)
    grid.add_row("all", "", f"{total:,}", f"{trainable:,}", "", f"{trainable / max(total, 1):.1%} trainable", style="bold")
    return grid


def _alike(found: list[Line]) -> list[list[Line]]:
    groups: list[list[Line]] = []
    for line in found:
        block = line.section.startswith("block.")
        if groups and block and _key(groups[-1][-1]) == _key(line):
            groups[-1].append(line)
        else:
            groups.append([line])
    return groups


def _key(line: Line) -> tuple[Any, ...]:
    return (line.section.startswith("block."), line.parameters, line.trainable, line.from_share, line.lr, line.crossed)


def as_json(found: list[Line]) -> dict[str, Mapping[str, Any]]:
    """For run.json."""
    return {
        line.section: {"parameters": line.parameters, "trainable": line.trainable, "from_share": line.from_share, "lr": line.lr, "crossed": line.crossed}
        for line in found
    }
