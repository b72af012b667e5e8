"""The command line: a verb, overrides, and one screen for whatever is wrong with them.

    llmtrain VERB [GROUP=OPTION] [KEY=VALUE] …

Nothing heavy is imported before a verb really runs: help and config errors answer at once.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmtrain import __version__, files
from llmtrain.errors import ConfigError, DeviceError, Interrupted, LLMTrainError, is_panic, masked, plain, printable, shown, write_any_text

if TYPE_CHECKING:
    from omegaconf import DictConfig

# Each verb with what it does and the module in command/ that does it.
VERBS = {
    "pretrain": ("train a GPT or a BERT on text, from random numbers or on from weights", "pretrain"),
    "finetune": ("train the head, the last blocks or all of a pretrained model on a task", "finetune"),
    "evaluate": ("loss, perplexity and accuracy of a model on a split", "evaluate"),
    "generate": ("let a model write", "generate"),
    "predict": ("answer a file of texts, fill in [MASK], or judge whether a sentence follows another", "predict"),
    "sweep": ("list the sweeps, show how far one is, or go on with it; `-m` after finetune or pretrain starts one", "sweep"),
    "report": ("hold runs against each other: a table, pictures, and what may be said about them", "report"),
    "cache": ("list or clear what frozen layers computed once", "cache"),
    "doctor": ("what this machine is, and what llmtrain can do on it; output=FILE.json for an issue", "doctor"),
    "validate": ("check a config without running it", "validate"),
}

USAGE = """llmtrain {version}: pretrain a GPT or a BERT, and find out how much of it a task needs to be finetuned.

usage: llmtrain VERB [GROUP=OPTION] [KEY=VALUE] …

verbs:
{verbs}

options:
  -m, --multirun   after finetune or pretrain: a sweep over every key that has several values, one process for each member
  --retry-failed   with -m or sweep resume: try the members that failed again, too
  --help           this page; after a verb: its groups, options and keys
  --cfg job        print the composed config and stop
  --config-dir DIR add a folder of your own YAML files; a file there wins over a shipped one of the same name
  --debug          show the whole traceback of an error
  --version        print the version

start here:
  llmtrain pretrain                                   a small GPT learns from the text of your Python's documentation
  llmtrain pretrain data=text data.train=book.txt     the same on your own text
  llmtrain pretrain model=bert_mini objective=bert    a small BERT learns to fill in words and to tell the order
  llmtrain generate prompt='Once upon a time'         let the newest model write
  llmtrain finetune finetune=last_layers              train the upper blocks of the newest model to tell kinds of texts apart
  llmtrain finetune data=text data.train=reviews.csv  the same on your own labelled texts
  llmtrain finetune -m finetune=features,last_layers,full seed=0,1,2   how much of the model has to be finetuned, with a report"""


FLAGS = {
    "--help": "help",
    "-h": "help",
    "--debug": "debug",
    "--version": "version",
    "-m": "multirun",
    "--multirun": "multirun",
    "--retry-failed": "retry_failed",
}


@dataclass
class Arguments:
    """What was typed, taken apart."""

    verb: str | None = None
    overrides: list[str] = field(default_factory=list)
    words: list[str] = field(default_factory=list)
    config_dir: Path | None = None
    help: bool = False
    cfg: bool = False
    debug: bool = False
    version: bool = False
    multirun: bool = False
    retry_failed: bool = False


def main(argv: list[str] | None = None) -> int:
    """Run a command line and return its exit code."""
    trains = argv is None and {"pretrain", "finetune"} & set(sys.argv[1:])  # a command of its own: a caller with an argv is somebody else's process
    if trains:
        from llmtrain.runtime import restart_sparing

        restart_sparing()
    argv = sys.argv[1:] if argv is None else argv
    write_any_text()
    debug = "--debug" in argv
    try:
        found = take_apart(argv)
        with _stopping_at_once() if trains and not found.multirun else contextlib.nullcontext():  # a sweep hears signals itself
            code = dispatch(found)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # `llmtrain … | head`: what is left to print has no reader
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except BaseException as error:
        if not (isinstance(error, Exception | KeyboardInterrupt) or is_panic(error)):
            raise
        if debug:
            print(plain(traceback.format_exc()), file=sys.stderr)
        ours = as_ours(error)
        if not _said_by_another(ours):
            print(ours.screen(), file=sys.stderr)
        return ours.exit_code


def _said_by_another(error: LLMTrainError) -> bool:
    """Under torchrun all processes of a node have one command line: what is wrong with it is the first one's to say."""
    return isinstance(error, ConfigError) and "RANK" in os.environ and os.environ.get("LOCAL_RANK", "0") != "0"


def _stopping_at_once() -> contextlib.AbstractContextManager[None]:
    from llmtrain.runtime import stopping_at_once

    return stopping_at_once()


def as_ours(error: BaseException) -> LLMTrainError:
    """Any exception as one that has a screen and an exit code."""
    if isinstance(error, LLMTrainError):
        return error
    if isinstance(error, KeyboardInterrupt):
        return Interrupted("interrupted")
    if (number := files.disk_error(error)) is not None:
        where = getattr(error, "filename", None)
        return DeviceError(f"{where or 'a disk'}: {os.strerror(number)}", fix="free disk space")
    first = (masked(str(error)).strip().splitlines() or ["no message"])[0]
    return LLMTrainError(f"{type(error).__name__}: {first[:300]}", fix="this is a fault of llmtrain: --debug shows where")


def take_apart(argv: list[str]) -> Arguments:
    """Sort what was typed into verb, overrides and options.

    Raises:
        ConfigError: an option or a verb that does not exist.
    """
    found = Arguments()
    rest = iter(argv)
    for text in rest:
        name, _, value = text.partition("=")
        if text in FLAGS:
            setattr(found, FLAGS[text], True)
        elif name in ("--cfg", "-c"):
            kind = value or next(rest, "")
            if kind != "job":
                raise ConfigError(f"{name} {kind}: there is one kind of config to print", allowed=f"{name} job")
            found.cfg = True
        elif name in ("--config-dir", "-cd"):
            folder = value or next(rest, "")
            if not folder:
                raise ConfigError(f"{name} names no folder", allowed=f"{name} FOLDER")
            found.config_dir = Path(folder)
        elif text.startswith("-"):
            raise _unknown(text, ["--multirun", "--retry-failed", "--help", "--cfg", "--config-dir", "--debug", "--version"], "option")
        elif "=" in text or text[:1] in "+~":
            found.overrides.append(text)
        elif found.verb is None:
            found.verb = text
        else:
            found.words.append(text)
    if found.verb is not None and found.verb not in VERBS:
        raise _unknown(found.verb, list(VERBS), "verb")
    return found


def _unknown(word: str, words: list[str], what: str) -> ConfigError:
    import difflib

    near = difflib.get_close_matches(word, words, n=1)
    return ConfigError(f"{shown(word)}: no such {what}", allowed=", ".join(words), fix=f"did you mean {near[0]!r}?" if near else "`llmtrain --help`")


def dispatch(found: Arguments) -> int:
    """Do what was typed and return the exit code."""
    if found.version:
        print(f"llmtrain {__version__}")
        return 0
    if found.verb is None:
        if found.overrides and not found.help:
            raise ConfigError("no verb given", allowed=", ".join(VERBS), fix=f"llmtrain pretrain {' '.join(found.overrides)}")
        width = max(map(len, VERBS))
        print(USAGE.format(version=__version__, verbs="\n".join(f"  {verb:<{width}}  {text}" for verb, (text, _) in VERBS.items())))
        return 0
    if found.help:
        module = importlib.import_module("llmtrain.command.help")
        print(module.page(found.verb, VERBS[found.verb][0], found.overrides, found.config_dir))
        return 0
    return _run(found)


def _run(found: Arguments) -> int:
    from llmtrain.config import compose, without_secrets

    # Threads that wait for each other spin a little (GNU OpenMP's own default is 300,000 rounds) and then sleep. Where
    # another program wants a core too, spinning ones take it from the thread that they wait for: up to 5 times slower,
    # measured; and sleeping at once costs a sixth on a quiet machine. Read when torch is loaded, so set before.
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")

    assert found.verb is not None
    resumes = found.verb == "sweep" and found.words[:1] == ["resume"]
    if found.retry_failed and not (found.multirun or resumes):
        verb = found.verb if found.verb in ("pretrain", "finetune") else "finetune"
        raise ConfigError("--retry-failed is for sweeps", allowed=f"llmtrain {verb} -m … --retry-failed, llmtrain sweep resume NAME --retry-failed")
    if found.multirun:
        _refuse_words(found)
        sweeps = importlib.import_module("llmtrain.command.sweep")
        return int(sweeps.sweep(found.verb, found.overrides, found.config_dir, retry_failed=found.retry_failed, show=found.cfg))
    module = importlib.import_module(f"llmtrain.command.{VERBS[found.verb][1]}")
    takes_words = getattr(module, "TAKES_WORDS", False)
    if not (takes_words or getattr(module, "TAKES_A_VERB", False)):
        _refuse_words(found)
    verb = found.words[0] if found.words else found.verb
    primary = module.primary(verb) if hasattr(module, "primary") else found.verb
    sections = module.inherited(found.overrides) if hasattr(module, "inherited") else {}
    composed = compose(primary, found.overrides, found.config_dir, sections)
    if found.cfg:
        for line in composed.notes:
            print(f"note: {plain(line)}", file=sys.stderr)
        print(_as_yaml(without_secrets(composed.config)), end="")
        return 0
    options = {"retry_failed": True} if found.retry_failed else {}
    return int(module.command(composed, found.overrides, found.words, **options) if takes_words else module.command(composed, found.overrides))


def _as_yaml(config: DictConfig) -> str:
    """A config as YAML, which escapes whatever could drive a terminal."""
    import yaml
    from omegaconf import OmegaConf
    from omegaconf._utils import get_omega_conf_dumper

    text = OmegaConf.to_yaml(config)
    if all(printable(line) == line for line in text.split("\n")):
        return text
    dumper: Any = get_omega_conf_dumper()
    return str(yaml.dump(OmegaConf.to_container(config), Dumper=dumper, default_flow_style=False, allow_unicode=False, sort_keys=False))


def _refuse_words(found: Arguments) -> None:
    if found.words:
        raise ConfigError(f"{shown(found.words[0])} is neither an option nor KEY=VALUE", fix=f"`llmtrain {found.verb} --help` lists the keys")


if __name__ == "__main__":
    sys.exit(main())
