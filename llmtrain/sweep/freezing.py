"""Freezing: how much of the model has to be finetuned. From the head alone, block by block, to everything, for several seeds.

Each mode has the learning rate and the budget that belong to it, as its YAML file says: a head alone wants a hundred
times the rate of a whole model, so one rate for all points would compare rates and not modes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from llmtrain.errors import ConfigError, require
from llmtrain.finetune.address import block_numbers, is_address
from llmtrain.sweep.base import Point, Space, Sweep
from llmtrain.sweep.values import Value, combinations, points, refuse_too_many, size, value


@dataclass(frozen=True, kw_only=True)
class Freezing(Sweep):
    """The last k blocks are trained, for k from 0 to the depth of the model; then everything.

    Attributes:
        seeds: how many, from 0, where the seed is neither given nor swept.
        blocks: the values of k as an address among 0 to depth; null: all of them.
        full: whether everything is trained, too.
    """

    seeds: int
    blocks: str | None
    full: bool

    def __post_init__(self) -> None:
        require(self.seeds >= 1, "seeds", self.seeds, "1 or more")
        good = self.blocks is None or (is_address(self.blocks) and self.blocks != "none")
        require(good, "blocks", self.blocks, "null (all), or numbers of trained blocks: 0-6, '0,2,4' in quotes, last:2")

    def points(self, space: Space) -> list[Point]:
        """The seed is slowest: what has run when a third of the time is over is a whole table."""
        self._refuse_modes(space)
        others = [o for o in space.swept if o.key_or_group != "seed"]
        seeds = self._seeds(space)
        number = math.prod(map(size, others)) * len(seeds)
        refuse_too_many(number, space.limit)  # before the model is looked at
        modes = list(self._modes(space.depth()))
        refuse_too_many(number * len(modes), space.limit)
        return points((*mode, *other, *seed) for seed in seeds for other in combinations(others, space.limit) for mode in modes)

    def _refuse_modes(self, space: Space) -> None:
        swept = {o.key_or_group for o in space.swept}
        for key in ("finetune", "finetune.blocks"):
            if key in swept | space.given:
                raise ConfigError(
                    f"{key} is {'swept' if key in swept else 'given'}, and sweep=freezing chooses it: that is what it compares",
                    fix="sweep.blocks=0-3 and sweep.full=false leave points out; sweep=grid compares modes of your own",
                )

    def _seeds(self, space: Space) -> list[tuple[Value, ...]]:
        """What each round over all modes sets: a seed, or nothing where it is given."""
        swept = [o for o in space.swept if o.key_or_group == "seed"]
        if swept:
            return list(combinations(swept, space.limit))
        if "seed" in space.given:
            return [()]
        refuse_too_many(self.seeds, space.limit)
        return [(value("seed", seed),) for seed in range(self.seeds)]

    def _modes(self, depth: int) -> Iterator[tuple[Value, ...]]:
        """What each point sets, from the fewest trained blocks to the most."""
        for k in self._numbers(depth):
            yield (value("finetune", "last_layers"), value("finetune.blocks", k)) if k else (value("finetune", "features"),)
        if self.full:
            yield (value("finetune", "full"),)

    def _numbers(self, depth: int) -> tuple[int, ...]:
        """Numbers of trained blocks.

        Raises:
            ConfigError: more blocks than the model has.
        """
        try:
            return block_numbers(self.blocks or "all", depth + 1)
        except ConfigError as error:
            raise ConfigError(f"sweep.blocks={self.blocks!r}: the model has {depth} blocks", allowed=f"0 (the head alone) to {depth}") from error

    def without_effect(self) -> dict[str, str]:
        return {}
