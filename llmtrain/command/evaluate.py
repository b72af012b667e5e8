"""`llmtrain evaluate`: the metrics of a model on a split, weighted by tokens, the same every time."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from llmtrain import changes, files, runtime
from llmtrain.command import train
from llmtrain.command.parts import asks_newest, refuse_wrong_pair
from llmtrain.config import Composed, build, find_yaml, parse, read_yaml, section
from llmtrain.data import questions
from llmtrain.data.base import SPLITS, Data
from llmtrain.errors import CheckpointError, ConfigError, DataError, plain, printable, require
from llmtrain.model.base import Model
from llmtrain.objective.base import Objective, Totals

if TYPE_CHECKING:
    import torch
    from datasets import Dataset

    from llmtrain.data.tokenizer import Vocabulary
    from llmtrain.objective.base import Batch

INHERITED = ("data", "objective")


@dataclass(frozen=True, kw_only=True)
class Tokenizer:
    """Attributes: path: a folder or hub name; null: the tokenizer of the weights."""

    path: str | None


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What to evaluate on, and how.

    Attributes:
        split: train, validation or test.
        batch_size: sequences of a forward pass.
        max_samples: sequences to use, spread over the split, always the same ones; null: all.
        pseudo_tokens: tokens that a masked LM is asked one by one, the same ones every time; null: all; 0: none.
        output: a JSON file for the numbers; null: only the terminal.
        tokenizer: which one reads the text.
    """

    split: str
    batch_size: int
    max_samples: int | None
    pseudo_tokens: int | None
    output: str | None
    device: str
    threads: str
    precision: runtime.Precision
    tokenizer: Tokenizer

    def __post_init__(self) -> None:
        require(self.split in SPLITS, "split", self.split, ", ".join(SPLITS))
        require(self.batch_size >= 1, "batch_size", self.batch_size, "1 or more")
        require(self.max_samples is None or self.max_samples >= 1, "max_samples", self.max_samples, "1 or more, or null")
        require(self.pseudo_tokens is None or self.pseudo_tokens >= 0, "pseudo_tokens", self.pseudo_tokens, "0 or more, or null")
        runtime.single(self.device, self.threads, self.precision)  # checks these three


def command(composed: Composed, overrides: list[str]) -> int:
    config = composed.config
    parts = ("model", "objective", "data", "experiment")
    settings = build(OmegaConf.create({k: v for k, v in config.items_ex(resolve=False) if k not in parts}), Settings, "")
    if asks_newest(config):
        config.model.checkpoint = str(runtime.newest_run())
        print(plain(f"model.checkpoint=newest is {config.model.checkpoint}"))
    for line in composed.notes:
        print(f"note: {plain(line)}")
    for name, own in inherited(overrides).items():
        print(printable(f"{name} as in the run: {own.get('kind')}"))
    model = build(section(config, "model"), Model, "model")
    objective, data = build(section(config, "objective"), Objective, "objective"), build(section(config, "data"), Data, "data")
    if model.tokenizer_path is None:
        raise ConfigError("evaluate needs weights that exist", fix="model=checkpoint model.checkpoint=FOLDER")
    refuse_wrong_pair(model, objective)
    if model.positions is not None and data.max_length > model.positions:
        raise ConfigError(f"data.max_length={data.max_length}: the model reads at most {model.positions} positions", fix=f"data.max_length={model.positions}")
    for line in without_effect(objective, data, composed.given):
        print(f"note: {plain(line)}")
    _report(model, objective, data, settings, str(config.model.checkpoint))
    return 0


def without_effect(objective: Objective, data: Data, given: set[str]) -> list[str]:
    """A line for each key that the user gave and that changes nothing."""
    found = {f"data.{key}": why for key, why in data.without_effect().items()} | {f"objective.{key}": why for key, why in objective.without_effect().items()}
    found |= {"data.num_workers": "evaluate prepares its batches itself"}
    if len(objective.terms) == 1:
        found |= {f"objective.weights.{objective.terms[0]}": "the term is reported unweighted"}
    return [f"{key} has no effect: {why}" for key, why in found.items() if key in given]


def inherited(overrides: list[str]) -> dict[str, Any]:
    """A run is evaluated on its own data and objective, unless others are chosen: these sections take the place of this verb's.

    Raises:
        CheckpointError, ConfigError: the run's config.yaml is none.
    """
    given = {override.key_or_group: override.value() for override in parse(overrides)}
    checkpoint = str(given.get("model.checkpoint", "newest"))
    try:
        weights = runtime.newest_run() if checkpoint == "newest" else files.expanded(checkpoint)
    except CheckpointError:  # help and --cfg job do without; the command itself will say so
        return {}
    folder = changes.home(weights)
    own = changes.own_config(folder) if folder is not None else None
    if own is None:
        if folder == weights:
            raise CheckpointError(f"{weights / 'config.yaml'} is not the config of a run", allowed=f"sections {', '.join(INHERITED)}")
        return {}
    return {name: _completed(name, own[name]) for name in INHERITED if name not in given}


def _completed(name: str, own: dict[str, Any]) -> dict[str, Any]:
    """A section of a run, with what is newer than the run as the shipped file has it: such a setting starts as what was done without it."""
    kind = str(own.get("kind"))
    path = find_yaml(f"{name}/{kind}") if kind.isidentifier() else None
    return own if path is None else _over(own, read_yaml(path))


def _over(own: dict[str, Any], shipped: dict[str, Any]) -> dict[str, Any]:
    both = {key: _over(own[key], value) for key, value in shipped.items() if isinstance(value, dict) and isinstance(own.get(key), dict)}
    return shipped | own | both


def _report(model: Model, objective: Objective, data: Data, settings: Settings, name: str) -> None:
    from rich.table import Table

    machine = runtime.start(runtime.single(settings.device, settings.threads, settings.precision), model.width)
    with runtime.logging_to(machine, None):
        totals, further = _evaluate(machine, model, objective, data, settings)
    numbers = {**objective.metrics(totals), **further}
    counts = {f"{term}_targets": int(count) for term, count in totals.counts.items() if objective.weights[term]}
    table = Table(show_header=False)
    for label, value in {**numbers, **counts}.items():
        table.add_row(label.replace("_", " "), f"{value:,}" if isinstance(value, int) else f"{value:.6g}")
    machine.console.print(f"{name}, {settings.split} split:", soft_wrap=True)
    machine.console.print(table)
    if settings.output is not None:
        files.write(Path(settings.output), json.dumps({"model": name, "split": settings.split, **numbers, **counts}, indent=2).encode())


def _evaluate(machine: runtime.Runtime, model: Model, objective: Objective, data: Data, settings: Settings) -> tuple[Totals, dict[str, Any]]:
    """Totals over the split; the pseudo-perplexity and the references."""
    from llmtrain.data import tokenizer as tokens
    from llmtrain.model import head as heads
    from llmtrain.objective.learner import Learner
    from llmtrain.trainer import evaluate

    path = settings.tokenizer.path or str(model.tokenizer_path)
    tokenizer = tokens.load(path)
    train.refuse_lacking(tokenizer, objective, path)
    vocabulary = tokens.vocabulary(tokenizer)
    rows = train.rows_of(objective, data, settings.split)
    if objective.target is not None:
        questions.refuse_other_texts(f"the {settings.split} split", rows, train.trained_on(str(model.tokenizer_path)))
    machine.console.print(data.summary(), markup=False)
    examples = train.distinct(objective, data, tokenizer, settings.split, data.max_length)
    for line in objective.notes(examples):
        machine.console.print(line)
    if not len(examples):
        raise DataError(f"the {settings.split} split is empty", allowed=", ".join(SPLITS))
    if settings.max_samples is not None:
        examples = examples.select(train.some(len(examples), settings.max_samples))
    trained = None if objective.target is None else data.labelled("train", objective.target)
    outputs, scale = (None, None) if trained is None else (objective.outputs(trained), objective.scale(trained))
    loaded = model.load(tokenizer, objective.head, resize=False, outputs=outputs, words=objective.asks_words)
    if scale is not None:  # as in training: in bf16 a family's own head would give its scores with 8 bits, their mean included
        heads.learn_in_units(heads.last_layer(loaded)[1], scale.mean, scale.deviation, new=False)
    learner = Learner(loaded, objective).eval()
    call = machine.accelerator.prepare_model(learner, evaluation_mode=True)
    totals = evaluate(partial(call), objective, examples, vocabulary, machine, settings.batch_size)
    pseudo = _pseudo_perplexity(partial(call), objective, examples, vocabulary, machine, settings)
    further = {**pseudo, **objective.references(examples, vocabulary)}
    if objective.target is not None and trained is not None and settings.max_samples is None:
        further |= objective.baselines(trained, data.labelled(settings.split, objective.target))
    return totals, further


def _pseudo_perplexity(
    call: Callable[[Batch], dict[str, torch.Tensor]],
    objective: Objective,
    examples: Dataset,
    vocabulary: Vocabulary,
    machine: runtime.Runtime,
    settings: Settings,
) -> dict[str, Any]:
    """exp of the mean loss of tokens that are hidden one at a time (Salazar et al. 2020, arXiv 1910.14659, section 2.3)."""
    import torch

    from llmtrain.trainer import add

    totals = Totals()
    with torch.no_grad():
        for batch in objective.one_by_one(examples, vocabulary, settings.pseudo_tokens, settings.batch_size) if settings.pseudo_tokens != 0 else ():
            add(totals, batch, call(batch.to(machine.accelerator.device)))
    if not totals.counts:
        return {}
    return {"pseudo_perplexity": math.exp(min(totals.mean("masked_lm"), 700)), "pseudo_perplexity_tokens": int(totals.counts["masked_lm"])}
