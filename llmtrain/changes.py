"""What a resume finds changed: which keys may be, which change the bits, what `allow_change` lets through, and the history that is kept of it."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from llmtrain import checkpoint, files
from llmtrain.config import did_you_mean, flat, read_yaml
from llmtrain.errors import CheckpointError, ConfigError, printable

log = logging.getLogger("llmtrain")

# Keys that a resume may change: they say where, how long and how often, not what is learned.
FREE = (
    "name", "output_dir", "resume", "device", "devices", "threads", "distributed", "callback", "evaluation", "checkpoint", "data.num_workers",
    "trainer.max_steps", "trainer.max_epochs", "trainer.max_tokens", "trainer.log_every_steps", "trainer.micro_batch_size",
    "trainer.max_skipped", "trainer.spike_window", "on_nonfinite", "allow_change",
    "finetune.lr", "finetune.epochs", "finetune.batch_size", "finetune.weight_decay", "cache",
    "derived.total_steps", "derived.total_tokens", "derived.versions", "derived.processor",
)  # fmt: skip
# Of these, the ones that change the bits all the same.
BITS = (
    "cache.use", "cache.dtype", "device", "devices", "distributed.strategy", "threads", "derived.versions", "derived.processor",
    "trainer.micro_batch_size", "trainer.max_steps", "trainer.max_epochs", "trainer.max_tokens",
)  # fmt: skip
# How long the run is. A run that was made longer is not the one that it was started as, nor the longer one from the start.
BUDGET = ("trainer.max_steps", "trainer.max_epochs", "trainer.max_tokens")
# What is compared where both times know it, though it is not free: without a test there is no test data.
WHERE_KNOWN = ("derived.validation_data", "derived.test_data")
# What the run found out, and the sections that it may follow from: who allows a change there allows this one.
FOLLOWS = {
    "derived.train_data": ("data", "objective"),
    "derived.validation_data": ("data", "objective"),
    "derived.test_data": ("data", "objective"),
    "derived.train_sequences": ("data", "objective"),
    "derived.tokenizer": (),
    "derived.vocabulary": (),
    "derived.base": (),
}


def refuse_unknown(allowed: list[str], keys: list[str]) -> None:
    """Refuse keys in `allow_change` that are not among those of the config.

    Raises:
        ConfigError: naming the key and the nearest one.
    """
    for wanted in allowed:
        if wanted not in FOLLOWS and not any(_within(key, (wanted,)) for key in keys):
            fix = did_you_mean(wanted, [*keys, *dict.fromkeys(key.split(".")[0] for key in keys)])
            raise ConfigError(f"allow_change={wanted}: no such key", allowed="keys of the config, or sections such as optimizer", fix=fix)


def free(key: str) -> bool:
    """Whether a resume may change a key without being allowed to."""
    return _within(key, FREE)


def stored(folder: Path) -> dict[str, Any] | None:
    """resolved.yaml of a run that was started before; None for a new one.

    Raises:
        CheckpointError: it is gone or cannot be read, and there are checkpoints: nothing else says what they were made with.
    """
    path, wrong = folder / "resolved.yaml", "it is not there"
    if path.is_file():
        try:
            found = read_yaml(path)
        except ConfigError as error:
            wrong = error.what
        else:
            if isinstance(found, dict) and isinstance(found.get("derived"), dict):
                return found
            wrong = "it is not the config of a run"
    elif not checkpoint.listed(folder):
        return None
    raise CheckpointError(f"{path}: {wrong}; what the checkpoints were made with is not known", fix="restore that file, or start anew with another output_dir")


def home(weights: Path) -> Path | None:
    """The folder of the run that a folder of weights is, or belongs to as its final/; None where it is of no run."""
    return next((folder for folder in (weights, weights.parent) if (folder / "config.yaml").is_file()), None)


def own_config(folder: Path) -> dict[str, Any] | None:
    """The config of a run: what it was started with, and each section that a resume changed as it is since; None where it is none of a run.

    Raises:
        ConfigError: a file of it cannot be read.
    """
    found = read_yaml(folder / "config.yaml")
    if not isinstance(found, dict) or not all(isinstance(found.get(name), dict) for name in ("data", "objective")):
        return None
    now = read_yaml(folder / "resolved.yaml") if (folder / "resolved.yaml").is_file() else None
    history = now.get("changes") if isinstance(now, dict) else None
    for change in history if isinstance(history, list) else ():
        section = str(change.get("key")).partition(".")[0] if isinstance(change, dict) else ""
        if section in found and isinstance(now, dict) and isinstance(now.get(section), type(found[section])):
            found[section] = now[section]
    return found


def settle(main: bool, folder: Path, before: dict[str, Any] | None, resolved: dict[str, Any], resume: Path | None, allowed: list[str]) -> list[dict[str, Any]]:
    """Write resolved.yaml at the first start; a resume compares with it.

    Returns:
        what differs in keys that `allow_change` names, and the bits with it; else, what differs in the budget: key, before and after of each.

    Raises:
        CheckpointError: what the run learns from, or how, is no longer the same.
    """
    if before is None or resume is None:
        if allowed:
            log.info("allow_change has no effect: no checkpoint is gone on from")
        if main:
            _write_resolved(folder, resolved)
        return []
    then, now = flat(before), flat(resolved)
    changed = _changed(then, now)
    guarded = [k for k in changed if not free(k)]
    _refuse(folder, then, now, guarded, allowed)
    idle = [k for k in allowed if not any(_within(c, (k,)) for c in changed)]
    if idle:
        log.info("allow_change: %s is as it was", ", ".join(idle))
    step = checkpoint.run_state(resume).step
    bits = [k for k in changed if _within(k, BITS)]
    if bits:
        lines = ", ".join(f"{k.removeprefix('derived.versions.')} was {then.get(k)} and is {now.get(k)}" for k in bits)
        log.warning("not bitwise from step %d on: %s; the bits may differ from an unbroken run, the order of the samples does not", step, lines)
    if "derived.total_steps" in changed:
        log.info(
            "the run is now %s updates long instead of %s: from here on the schedule follows the new length",
            now["derived.total_steps"],
            then["derived.total_steps"],
        )
    kept = [*guarded, *bits] if guarded else [k for k in changed if k in BUDGET]
    return [{"key": k, "before": then.get(k), "after": now.get(k)} for k in kept]


def _refuse(folder: Path, before: dict[str, Any], now: dict[str, Any], guarded: list[str], allowed: list[str]) -> None:
    """Refuse what nobody allowed, and what nobody can: a checkpoint of other weights, or of other token ids."""
    lines = "; ".join(f"{k}: {_brief(before.get(k))} → {_brief(now.get(k))}" for k in guarded[:4])
    lines += f" and {len(guarded) - 4} more" if len(guarded) > 4 else ""
    anew = "give the same settings, or start anew with another output_dir"
    if "derived.base" in guarded:
        what = f"{folder} builds on {now['model.checkpoint']}, whose weights are not the ones that it started from"
        raise CheckpointError(what, allowed="checkpoints leave out what equals those weights, so allow_change does not reach them", fix="restore those weights")
    if any(_within(k, ("tokenizer", "derived.tokenizer", "derived.vocabulary")) for k in guarded):
        what = f"{folder} was started with another config: {lines}"
        raise CheckpointError(what, allowed="a run keeps its tokenizer, whose ids are rows of the model: allow_change does not reach it", fix=anew)
    follows = {k for k in guarded if any(_within(c, FOLLOWS.get(k, ())) for c in guarded)}
    let = {k for k in guarded if _within(k, allowed)}
    let |= {k for k in follows if any(_within(c, FOLLOWS[k]) for c in let)}
    if let.issuperset(guarded):
        return
    kinds = {k.partition(".")[0] for k in guarded if k.endswith(".kind")}  # another kind has other keys: the section is named
    typed = dict.fromkeys(k.partition(".")[0] if k.partition(".")[0] in kinds else k for k in guarded if k not in follows)
    raise CheckpointError(f"{folder} was started with another config: {lines}", fix=f"{anew}; or go on all the same: 'allow_change=[{','.join(typed)}]'")


def _changed(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Keys whose values differ; of what is free, those that are known of both times: a run of an older llmtrain has not all of them."""
    differ = [k for k in sorted(before.keys() | now.keys()) if before.get(k) != now.get(k) and not _within(k, ("changes",))]
    return [k for k in differ if not (free(k) or k in WHERE_KNOWN) or (k in before and k in now)]


def _brief(value: Any) -> str:
    """A value as a message shows it; of a hash, its beginning."""
    return f"{value[:12]}…" if isinstance(value, str) and re.fullmatch("[0-9a-f]{32,}", value) else printable(str(value))


def _within(key: str, names: Collection[str]) -> bool:
    """Whether a key is one of `names`, or stands in a section that is."""
    return any(key == name or key.startswith(f"{name}.") for name in names)


def measured_otherwise(before: dict[str, Any] | None, resolved: dict[str, Any]) -> str | None:
    """Why metrics can no longer be held against those from before; None where they can."""
    changed = _changed(flat(before), flat(resolved)) if before is not None else []
    asked = ("data", "objective", "derived.validation_data", "evaluation.max_samples")
    found = [k for k in changed if _within(k, asked) and k != "data.num_workers"]
    return f"{', '.join(found)} changed" if found else None


def write(main: bool, folder: Path, before: dict[str, Any] | None, resolved: dict[str, Any], changes: list[dict[str, Any]], step: int) -> None:
    """Keep the history of what `allow_change` let through, and of how long the run was to be.

    resolved.yaml holds the config as it is from here on, and `changes` what was before.

    Nothing is written before the checkpoint was found to fit, so that a config that is refused leaves no trace.
    """
    known = list((before or {}).get("changes") or [])
    # An earlier checkpoint than the one at which something changed: its updates are done again, under what holds now.
    history = [{**change, "step": min(int(change["step"]), step)} for change in known] + [{"step": step, **change} for change in changes]
    if not history:
        return
    resolved["changes"] = history
    if any(not free(change["key"]) for change in changes):  # a change of the budget alone was told already
        lines = ", ".join(f"{c['key']} {_brief(c['before'])} → {_brief(c['after'])}" for c in changes)
        order = any(_within(c["key"], ("data", "objective", "seed", "trainer.batch_size", "derived.train_data")) for c in changes)
        more = "; the order of the samples is another one too: in this epoch some come again and some not at all" if order else ""
        log.warning("from step %d on the run is no longer a function of one config: %s%s", step, lines, more)
    if main and history != known:
        if before is not None and "versions" in before["derived"]:
            resolved["derived"]["versions"] = before["derived"]["versions"]  # those that it was started with
        _write_resolved(folder, resolved)


def _write_resolved(folder: Path, resolved: dict[str, Any]) -> None:
    files.replace(folder / "resolved.yaml", OmegaConf.to_yaml(OmegaConf.create(resolved)).encode())
