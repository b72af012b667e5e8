"""`llmtrain generate`: let a model write, a piece at a time, on the terminal."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from omegaconf import OmegaConf

from llmtrain import runtime
from llmtrain.command.parts import asks_newest
from llmtrain.config import Composed, build, section
from llmtrain.errors import ConfigError, plain, printable, require
from llmtrain.model.base import Attention, Head, Model
from llmtrain.model.generation import Sampling, cuts, write


@dataclass(frozen=True, kw_only=True)
class Settings(Sampling):
    """What to write, and where.

    Attributes:
        prompt: text to go on from; empty: the start of a document.
        seed: of the choice of tokens.
        device: cpu, cuda, mps or auto.
        threads: CPU threads; auto: all cores.
    """

    prompt: str
    seed: int
    device: str
    threads: str

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.seed < 2**32, "seed", self.seed, "0 to 4294967295 (2³² − 1)")
        runtime.single(self.device, self.threads, runtime.Precision.fp32)  # checks device and threads

    def without_effect(self) -> dict[str, str]:
        """Settings that change nothing under the others: name → why."""
        return dict.fromkeys(("top_k", "top_p", "seed"), "temperature=0 takes the likeliest token") if self.temperature == 0 else {}


def command(composed: Composed, overrides: list[str]) -> int:
    config = composed.config
    settings = build(OmegaConf.create({k: v for k, v in config.items_ex(resolve=False) if k not in ("model", "experiment")}), Settings, "")
    for line in composed.notes + [f"{key} has no effect: {why}" for key, why in settings.without_effect().items() if key in composed.given]:
        print(f"note: {plain(line)}", file=sys.stderr)
    if asks_newest(config):
        config.model.checkpoint = str(runtime.newest_run())
        print(plain(f"model.checkpoint=newest is {config.model.checkpoint}"), file=sys.stderr)
    model = build(section(config, "model"), Model, "model")
    if model.tokenizer_path is None:
        raise ConfigError("generate needs weights that exist", fix="model=checkpoint model.checkpoint=FOLDER")
    if model.attention is not Attention.causal:
        raise ConfigError("this model is bidirectional: it does not write from left to right", allowed="causal models (GPT, Llama, …)")
    _write(model, settings)
    return 0


def _write(model: Model, settings: Settings) -> None:
    import torch

    from llmtrain.data import tokenizer as tokens

    torch.set_num_threads(runtime.decide_threads(settings.threads, 1))
    assert model.tokenizer_path is not None
    tokenizer = tokens.load(model.tokenizer_path)
    loaded = model.load(tokenizer, Head.next_token, resize=False).to(runtime.decide_device(settings.device))

    def say(text: str) -> None:
        # Line ends stay; what else could drive the terminal does not.
        sys.stdout.write("\n".join(printable(line) for line in text.split("\n")))
        sys.stdout.flush()

    for line in cuts(loaded, tokenizer, settings.prompt, settings):
        print(f"note: {plain(line)}", file=sys.stderr)
    say(settings.prompt)
    write(loaded, tokenizer, settings.prompt, settings, settings.seed, say)
    say("\n")
