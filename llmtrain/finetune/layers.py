"""Chosen layers: any blocks by their address, and a switch for each part around them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmtrain.errors import require
from llmtrain.finetune.address import ADDRESSES, block_numbers, is_address
from llmtrain.finetune.base import Decayed, Phase, Untying

if TYPE_CHECKING:
    from llmtrain.model.anatomy import Anatomy


@dataclass(frozen=True, kw_only=True)
class Layers(Decayed, Untying):
    """Train the blocks of an address and the parts that are switched on, in one phase.

    What all blocks use (DeBERTa's relative positions) is trained where all of them are.

    Attributes:
        address: of the blocks, from 0: `last:2`, `first:4`, `3-6`, `0,11` (`address.block_numbers`).
        embeddings: whether what stands below the blocks is trained.
        norm: whether what stands above them inside the base model is, but for the pooler.
        pooler: whether the pooler is.
        head: whether what stands outside the base model is.
    """

    address: str
    embeddings: bool
    norm: bool
    pooler: bool
    head: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        require(is_address(self.address), "address", self.address, ADDRESSES)

    @property
    def trains_body(self) -> bool:
        return self.address != "none" or self.embeddings or self.norm or self.pooler

    @property
    def trains_head(self) -> bool:
        return self.head

    def check_depth(self, depth: int) -> None:
        block_numbers(self.address, depth)

    def plan(self, anatomy: Anatomy) -> list[Phase]:
        numbers = block_numbers(self.address, anatomy.depth)
        names = {name for number in numbers for name in anatomy.names(f"block.{number}")}
        final = set(anatomy.names("final")) - anatomy.shared
        pooler = {name for name in final if "pooler" in name}
        parts = {"embeddings": anatomy.names("embeddings"), "norm": final - pooler, "pooler": pooler, "head": anatomy.names("head")}
        for switch, part in parts.items():
            names |= set(part) if getattr(self, switch) else set()
        names |= anatomy.shared if len(numbers) == anatomy.depth else set()
        return [self.phase(anatomy, names)]
