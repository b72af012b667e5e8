"""The parts of a run as checked objects, and what each cannot know of the others: read before anything is loaded."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf

from llmtrain import cache, changes, checkpoint, runtime
from llmtrain.callback.base import Callback
from llmtrain.config import build, check_keys, flat, section
from llmtrain.data.base import Data, Target
from llmtrain.data.tokenizer import TOKENS, TRAINED, TokenizerSettings
from llmtrain.errors import ConfigError
from llmtrain.finetune.address import state_numbers
from llmtrain.finetune.base import Finetune
from llmtrain.model.base import Attention, Head, HeadKind, Model, Pooling, no_separation
from llmtrain.objective.base import Objective
from llmtrain.optimizer import Optimizer
from llmtrain.schedule.base import Schedule
from llmtrain.trainer import Evaluation, Settings as TrainerSettings


@dataclass(frozen=True)
class Parts:
    """Every part of a run as a checked object. Nothing is loaded yet, and neither torch nor transformers imported."""

    runtime: runtime.Settings
    model: Model
    objective: Objective
    data: Data
    finetune: Finetune
    schedule: Schedule
    tokenizer: TokenizerSettings
    optimizer: Optimizer
    trainer: TrainerSettings
    evaluation: Evaluation
    checkpoint: checkpoint.Settings
    cache: cache.Settings | None
    callbacks: list[Callback]


def parts(config: DictConfig) -> Parts:
    """Build every part, so that every setting is checked before anything is downloaded or allocated.

    Raises:
        ConfigError: naming the key.
    """
    own = {f.name for f in dataclasses.fields(runtime.Settings)}
    named = {f.name for f in dataclasses.fields(Parts)} - {"runtime", "callbacks", "cache"}
    check_keys(config, own | named | {"callback", "experiment", "cache"}, named | {"callback"})
    top = OmegaConf.create({name: config._get_node(name) for name in own if name in config}, parent=None)
    settings = build(top, runtime.Settings, "")
    changes.refuse_unknown(settings.allow_change, list(flat(OmegaConf.to_container(config, resolve=False))))
    bases: dict[str, type[Any]] = {
        "model": Model,
        "objective": Objective,
        "data": Data,
        "finetune": Finetune,
        "schedule": Schedule,
        "tokenizer": TokenizerSettings,
        "optimizer": Optimizer,
        "trainer": TrainerSettings,
        "evaluation": Evaluation,
        "checkpoint": checkpoint.Settings,
    }
    kept = build(section(config, "cache"), cache.Settings, "cache") if "cache" in config else None  # finetuning alone has one
    built = {name: build(config[name], base, name) for name, base in bases.items()}
    callbacks = [build(section(config.callback, name, "callback"), Callback, f"callback.{name}") for name in config.callback]
    found = Parts(runtime=settings, callbacks=callbacks, cache=kept, **built)
    check(found)
    return without_idle_words(found)


def idle_words(parts: Parts) -> bool:
    """Whether nothing is trained that the auxiliary loss of a task reaches: the head of the task stands beside it, and all below is frozen."""
    return parts.objective.head is Head.task and not parts.finetune.trains_body and not getattr(parts.finetune, "untie", False)


def without_idle_words(parts: Parts) -> Parts:
    """`parts` without an auxiliary loss that teaches nothing: all it does is to keep vectors from being stored."""
    if not (parts.objective.asks_words and idle_words(parts)):
        return parts
    return dataclasses.replace(parts, objective=dataclasses.replace(parts.objective, weights={**parts.objective.weights, "lm": 0.0}))


def asks_newest(config: DictConfig) -> bool:
    """Whether a config asks for the weights of the newest run."""
    model = section(config, "model")
    return isinstance(model, DictConfig) and "checkpoint" in model and section(model, "checkpoint", "model") == "newest"


def check(parts: Parts) -> None:
    """What no part can know alone, as far as it can be known without reading weights or data."""
    metrics = list(parts.objective.metric_directions)
    if parts.evaluation.best_metric not in (None, *metrics):
        raise ConfigError(f"evaluation.best_metric={parts.evaluation.best_metric}: the objective has no such metric", allowed=", ".join(metrics))
    parts.trainer.micro_size(parts.runtime.processes)
    given = os.environ["WORLD_SIZE"] if runtime.in_worker() else ""
    world = int(given) if given.isdigit() else parts.runtime.processes
    runtime.refuse_undividable(parts.runtime, parts.runtime.device, parts.runtime.precision, world)
    if parts.trainer.compile and world > 1 and parts.runtime.distributed.strategy is runtime.Strategy.fsdp:
        raise ConfigError("trainer.compile=true with distributed.strategy=fsdp: nobody has tried the two together", fix="one of the two")
    if parts.tokenizer.path is None and parts.model.tokenizer_path is None:  # else the tokenizer is loaded, and asked then
        trained = parts.tokenizer.trained(parts.model.tokenizer_algorithm)
        lacking = [TOKENS[name] for name in parts.objective.tokens if name not in TRAINED[trained]]
        if lacking and fit_each_other(parts):
            raise ConfigError(
                f"tokenizer.algorithm={trained} makes no {' and no '.join(lacking)} token, which the objective needs",
                allowed=", ".join(a for a, made in TRAINED.items() if made.issuperset(parts.objective.tokens)),
            )
    if parts.model.tokenizer_path is None:  # else it takes the config of the weights, which is read later
        fits(parts)


def fits(parts: Parts) -> None:
    """Whether the model can answer the objective, on sequences of this length, and has what the finetuning mode asks for."""
    limit = parts.model.positions
    refuse_wrong_pair(parts.model, parts.objective)
    refuse_wrong_head(parts)
    refuse_missing_blocks(parts)
    for name, length in (("data.max_length", parts.data.max_length), ("data.short_length", parts.data.short_length)):
        if length is not None and length < parts.objective.shortest:
            raise ConfigError(f"{name}={length}: no sequence of the objective fits", allowed=f"{parts.objective.shortest} or more")
    if parts.objective.separates and parts.model.separates is False:
        raise no_separation("this model")
    if limit is not None and parts.data.max_length > limit:
        raise ConfigError(
            f"data.max_length={parts.data.max_length}: the model reads at most {limit} positions",
            fix=f"data.max_length={limit}, or a larger model.max_position_embeddings",
        )


FRESH_LR = 5e-4  # above it, a learning rate is one for weights that are drawn: BERT and GPT-1 were pretrained at 1e-4 and 2.5e-4
PAIRS = "objective=next_token with causal models (GPT, Llama, …); masked_lm with bidirectional ones; sentence_order and bert with BERT's relatives"


def fit_each_other(parts: Parts) -> bool:
    return parts.objective.attention in (None, parts.model.attention)


def refuse_wrong_pair(model: Model, objective: Objective) -> None:
    """Whether a model can answer an objective at all.

    Raises:
        ConfigError: with the table of pairs that go together.
    """
    wanted = objective.attention
    if wanted is not None and model.attention is not wanted:
        loaded = model.tokenizer_path is not None
        suits = {
            Attention.causal: f"{'model.checkpoint=FOLDER of a GPT' if loaded else 'model=gpt_tiny'}, or objective=masked_lm",
            Attention.bidirectional: f"{'model.checkpoint=FOLDER of a BERT' if loaded else 'model=bert_mini'}, or objective=next_token",
        }
        raise ConfigError(f"the objective asks for a {wanted.value} model, this one is {model.attention.value}", allowed=PAIRS, fix=suits[wanted])
    if not model.wears(objective.head):
        what = {Head.sentence_order: "head for pairs of segments", Head.pretraining: "class with a masked-LM head and a head for pairs of segments"}
        raise ConfigError(f"transformers has no {what.get(objective.head, 'language-model head')} for this model's family", allowed=PAIRS)


def refuse_wrong_head(parts: Parts) -> None:
    """Whether the head of a task, the objective and the mode go together.

    Raises:
        ConfigError: with the way out.
    """
    objective, model, mode = parts.objective, parts.model, parts.finetune
    if objective.head is not Head.task:
        return
    if parts.tokenizer.task_tokens and model.attention is not Attention.causal:
        raise ConfigError(
            "tokenizer.task_tokens=true: the model is bidirectional and has [CLS] and [SEP] for this",
            allowed="causal models (GPT, Llama, …)",
            fix="tokenizer.task_tokens=false",
        )
    if objective.asks_words and model.attention is not Attention.causal:
        raise ConfigError("objective.weights.lm: the auxiliary loss of GPT-1 needs a causal model", fix="objective.weights.lm=0, or model=checkpoint of a GPT")
    if model.head is HeadKind.pooled and model.pooling is Pooling.cls and model.attention is Attention.causal:
        raise ConfigError(
            "model.pooling=cls: the model is causal, so the state of the first token is the same for every text",
            allowed="auto, mean, last, max",
            fix="model.pooling=last",
        )
    if model.head is HeadKind.family:
        for what, wanted in {
            "objective.symmetric=true": getattr(objective, "symmetric", False),
            "objective=multiple_choice": objective.target is Target.choice,
            "objective.weights.lm above 0": objective.asks_words,
            "finetune.states": mode.reads != ("last", "concat"),
        }.items():
            if wanted:
                raise ConfigError(f"model.head=family: the family's own head cannot do {what}", fix="model.head=pooled")


def refuse_missing_blocks(parts: Parts) -> None:
    """Whether the model has the blocks and hidden states that the mode names, where their number is known; else the mode finds out when the weights are there.

    Raises:
        ConfigError: it has not.
    """
    depth = parts.model.blocks
    if depth is None:
        return
    parts.finetune.check_depth(depth)
    if parts.objective.head is Head.task and parts.model.head is HeadKind.pooled:
        state_numbers(parts.finetune.reads[0], depth)


def without_effect(parts: Parts, given: set[str]) -> list[str]:
    """A line for each key that the user gave and that changes nothing."""
    found: dict[str, str] = {}
    for name in ("objective", "data", "schedule"):
        found |= {f"{name}.{key}": why for key, why in getattr(parts, name).without_effect().items()}
    if parts.tokenizer.path is not None or parts.model.tokenizer_path is not None:
        found |= dict.fromkeys(("tokenizer.vocab_size", "tokenizer.algorithm"), "the tokenizer is loaded, not trained")
    if parts.runtime.on_nonfinite is runtime.OnNonfinite.stop:
        found["trainer.max_skipped"] = "on_nonfinite=stop"
    if parts.runtime.processes == 1 and not runtime.in_worker():
        found |= dict.fromkeys(("distributed.timeout_s", "distributed.strategy"), "there is one process")
    if parts.model.tokenizer_path is None:
        found["tokenizer.resize"] = "a model that starts from nothing is made to fit its tokenizer"
    if parts.objective.head is not Head.task:
        found |= dict.fromkeys(("model.head", "model.pooling", "tokenizer.task_tokens"), "they are for the objectives of a task")
        found |= dict.fromkeys(("finetune.states", "finetune.combine", "finetune.standardise"), "the objective has a head of its own")
    elif parts.finetune.reads[0] in ("last", "-1"):
        found["finetune.combine"] = "one hidden state is read"
    if idle_words(parts):
        found["objective.weights.lm"] = "the body is frozen, and the head of the task learns nothing from the auxiliary loss"
    if not parts.finetune.trains_body:
        found["trainer.gradient_checkpointing"] = "no block is trained"
    if parts.objective.head is Head.task and parts.model.head is HeadKind.family:
        found |= dict.fromkeys(("model.pooling", "finetune.standardise"), "the family's own head pools as it does")
    if parts.cache is None:
        found |= dict.fromkeys(
            ("finetune.lr", "finetune.epochs", "finetune.batch_size", "finetune.weight_decay"),
            "they are what `llmtrain finetune` takes where nothing else is given",
        )
    else:
        own = {"finetune.lr": "optimizer.lr", "finetune.weight_decay": "optimizer.weight_decay", "finetune.batch_size": "trainer.batch_size"}
        found |= {key: f"{other} is given" for key, other in own.items() if other in given}
        found |= {"finetune.epochs": "another budget is given"} if given & {f"trainer.{n}" for n in ("max_steps", "max_epochs", "max_tokens")} else {}
    if parts.cache is not None and parts.cache.use is cache.Use.never:
        found |= dict.fromkeys(("cache.max_gb", "cache.dtype"), "cache.use=never")
    free = [f"allow_change={key} has no effect: a resume may change it anyway" for key in parts.runtime.allow_change if changes.free(key)]
    return [f"{key} has no effect: {why}" for key, why in found.items() if key in given] + free


def kind_of(objective: Objective) -> str:
    """The name under which a config chooses an objective."""
    return type(objective).__module__.rpartition(".")[2]


def goes_on(parts: Parts, task: str, reads: tuple[int, ...], states: tuple[int, ...]) -> bool:
    """Whether a pooled head that came with the weights is trained on, and no new one is made.

    Args:
        task: the objective that it answers.
        reads: the hidden states that it reads; `states` are those that are asked for.
    """
    return task == kind_of(parts.objective) and (reads == states or (parts.finetune.reads[0] == "last" and not parts.finetune.trains_body))


def head_goes_on(parts: Parts, given: set[str]) -> list[str]:
    """A line for each key that the user gave for a new head, where the one beside the weights goes on: known once the weights have a name."""
    from llmtrain.finetune.address import state_numbers

    address = parts.finetune.reads[0]
    # That one state has nothing to combine is said already.
    asked = {"finetune.states", "finetune.standardise", *(["finetune.combine"] if address not in ("last", "-1") else [])} & given
    head = parts.model.saved_head if asked and parts.objective.head is Head.task else None
    if head is None or parts.model.pooling not in (Pooling.auto, head.pooling):
        return []
    states = state_numbers(address, parts.model.blocks or max(head.states, default=0))
    if not goes_on(parts, head.task, head.states, states):
        return []
    why = "the head beside the weights goes on as it was trained" + (", if the data have its classes" if head.classes else "")
    return [f"{key} has no effect: {why}" for key in sorted(asked) if key != "finetune.states" or head.states != states]


def advice(parts: Parts) -> list[str]:
    """What is allowed and seldom meant."""
    found = []
    if parts.cache is None and parts.model.tokenizer_path is not None and parts.optimizer.lr > FRESH_LR:
        found.append(
            f"optimizer.lr={parts.optimizer.lr:g} is a rate for weights that are drawn; those of model.checkpoint are soon lost at it. "
            "BERT was trained further at 2e-5: optimizer.lr=2e-5"
        )
    unit = getattr(getattr(parts.data, "documents", None), "value", None)
    if "sentence_order" in parts.objective.terms and unit in ("line", "blank_line"):
        found.append(
            f"data.documents={unit}: in short documents the first word tells the order of sentences; data.documents=file or chapter are meant for this"
        )
    return found
