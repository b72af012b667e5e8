"""What tests share: small runs in this process, and a token cache of their own."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import torch

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A model and data so small that a run takes a fraction of a second.
TINY = (
    "model.num_hidden_layers=2",
    "model.hidden_size=32",
    "model.num_attention_heads=2",
    "model.max_position_embeddings=32",
    "data=synthetic",
    "data.max_length=16",
    "tokenizer.vocab_size=300",
    "trainer.batch_size=8",
    "trainer.max_steps=6",
    "trainer.log_every_steps=2",
    "evaluation.every_steps=3",
    "checkpoint.every_steps=2",
    "threads=1",
    "device=cpu",
    "precision=fp32",
)

# The same for a BERT; documents of about twenty sentences, so that there are pairs of segments.
TINY_BERT = (
    "model=bert",
    "model.num_hidden_layers=2",
    "model.hidden_size=32",
    "model.num_attention_heads=2",
    "model.max_position_embeddings=64",
    "model.dropout=0",
    "data.documents=80",
    "data.words=200",
    "data.max_length=48",
)
# What answers each objective.
ANSWERS: dict[str, tuple[str, ...]] = {
    "next_token": (),
    "masked_lm": (*TINY_BERT, "objective=masked_lm"),
    "sentence_order": (*TINY_BERT, "objective=sentence_order"),
    "bert": (*TINY_BERT, "objective=bert"),
    "classification": (*TINY_BERT, "objective=classification", "data.validation_fraction=0.2"),
    "regression": (*TINY_BERT, "objective=regression", "data.validation_fraction=0.2"),
    "multiple_choice": (*TINY_BERT, "objective=multiple_choice", "data.validation_fraction=0.2"),
}

# Where a test takes long for each of them, the ordinary run asks a GPT's, a BERT's with two terms and a task's, and `pytest -m long` the others.
SOME = tuple(pytest.param(name, marks=() if name in ("next_token", "bert", "classification") else pytest.mark.long) for name in ANSWERS)

# A finetuning of a tiny pretrained model, on labelled rows.
TINY_FINETUNE = (
    "data=synthetic",
    "data.documents=80",
    "data.validation_fraction=0.2",
    "data.max_length=24",
    "trainer.batch_size=8",
    "trainer.max_steps=6",
    "trainer.log_every_steps=2",
    "evaluation.every_steps=3",
    "checkpoint.every_steps=2",
    "checkpoint.export=last",  # what all of the run did, and not what it had done by its best evaluation
    "threads=1",
    "device=cpu",
    "precision=fp32",
)

# How each tiny pretrained model is made.
PRETRAINED: dict[str, tuple[str, ...]] = {
    "bert": (*TINY_BERT, "objective=masked_lm"),
    "bert_dropout": (*TINY_BERT, "objective=masked_lm", "model.dropout=0.1"),
    "gpt": (),
}

Train = Callable[..., Path]
Pretrained = Callable[[str], Path]


@pytest.fixture(scope="session", autouse=True)
def token_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that starts empty and goes with the session."""
    path = tmp_path_factory.mktemp("cache")
    os.environ["LLMTRAIN_CACHE"] = str(path)
    return path


def tiny(*overrides: str, base: tuple[str, ...] = TINY) -> list[str]:
    """A base with overrides, the last of two that are the same key."""
    last = {o.split("=")[0]: o for o in overrides}
    budgets = {"trainer.max_epochs", "trainer.max_tokens"} & last.keys()
    base = tuple(o for o in base if o.split("=")[0] not in last and not (o.startswith("model.") and "model" in last))
    return [*(o for o in base if not (budgets and o.startswith("trainer.max_steps"))), *last.values()]


@contextlib.contextmanager
def in_a_hurry() -> Iterator[None]:
    """Runs without a picture and without samples of text, which are a third of so short a run. What `main` runs has both."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("llmtrain.report.curve.draw", lambda *_: None)
        patch.setattr("llmtrain.command.train._written", lambda *_: [])
        yield


@pytest.fixture
def train() -> Train:
    """Run `llmtrain pretrain` on a tiny model in this process: train(folder, *overrides) → folder."""
    from llmtrain.command.train import start
    from llmtrain.config import compose

    def run(folder: Path, *overrides: str) -> Path:
        typed = [*tiny(*overrides), f"output_dir={folder}"]
        with in_a_hurry():
            code = start(compose("pretrain", typed), typed, "pretrain")
        assert code == 0
        return folder

    return run


@pytest.fixture(scope="session")
def pretrained(tmp_path_factory: pytest.TempPathFactory, token_cache: Path) -> Pretrained:
    """Tiny pretrained runs, made before any test can patch what makes them: pretrained("bert") → its folder."""
    from llmtrain.command.train import start
    from llmtrain.config import compose

    folder = tmp_path_factory.mktemp("pretrained")
    for name, overrides in PRETRAINED.items():
        typed = [*tiny(*overrides, "trainer.max_steps=2", "checkpoint.every_steps=null"), f"output_dir={folder / name}"]
        assert start(compose("pretrain", typed), typed, "pretrain") == 0
    gc.collect()
    gc.freeze()  # each run collects garbage, and need not go through the modules of torch and transformers again
    return lambda name: folder / name


@pytest.fixture
def finetune(pretrained: Pretrained) -> Train:
    """Run `llmtrain finetune` on a tiny pretrained model in this process: finetune(folder, *overrides, of="gpt") → folder.

    An override of `model` or `model.checkpoint` takes another model.
    """
    from llmtrain.command.train import start
    from llmtrain.config import compose

    def run(folder: Path, *overrides: str, of: str = "bert") -> Path:
        own = any(o.startswith(("model=", "model.checkpoint=")) for o in overrides)
        typed = [*tiny(*overrides, base=TINY_FINETUNE), *(() if own else (f"model.checkpoint={pretrained(of)}",)), f"output_dir={folder}"]
        with in_a_hurry():
            code = start(compose("finetune", typed), typed, "finetune")
        assert code == 0
        return folder

    return run


def without_float64(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor as one of MPS, where there is no float64, until it is on the CPU."""
    from torch import Tensor

    class OnMPS(Tensor):
        def double(self) -> Tensor:  # type: ignore[override]
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64.")

        def cpu(self) -> Tensor:  # type: ignore[override]
            return self.as_subclass(Tensor)

    return tensor.as_subclass(OnMPS)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def stop_after(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Send this process a SIGTERM when a step is done."""
    from llmtrain.callback.progress import Progress

    before = Progress.on_step

    def on_step(self: Progress, run: Any, state: Any, done: Any) -> None:
        before(self, run, state, done)
        if state.step == step:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Progress, "on_step", on_step)


def record_of(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "run.json").read_text())
    return found


def outcome(run: Path) -> dict[str, Any]:
    """What two equal runs have in common: weights, optimizer, metrics without times."""
    last = max(p for p in (run / "checkpoints").glob("step-*"))
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    clock = {"tokens_per_second", "train_seconds"}
    return {
        "step": last.name,
        "weights": digest(last / "model.safetensors"),
        "optimizer": digest(last / "optimizer.safetensors"),
        "final": {p.name: digest(p) for p in sorted((run / "final").glob("*.safetensors"))},
        "metrics": [{k: v for k, v in record.items() if k not in clock} for record in records],
    }


def realdata(*names: str) -> Path:
    """A path in the folder of real data, or a skip where there is none."""
    root = os.environ.get("LLMTRAIN_REALDATA")
    if not root:
        pytest.skip("LLMTRAIN_REALDATA is not set")
    return Path(root, *names)


# Few tests, each of them slow. Begun last, one worker would be busy with them for minutes beside another that has nothing left.
FIRST = {"test_violence.py", "test_sweep.py", "test_readme.py", "test_pairs.py"}
# Fixtures under which a test trains.
TRAINING = {"train", "finetune", "pretrained", "evaluate"}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of a test with many cases that train, the first and the last; the others are long, unless the test chooses itself."""
    cases: dict[str, list[pytest.Item]] = {}
    for item in items:
        if TRAINING & set(getattr(item, "fixturenames", ())):
            cases.setdefault(item.nodeid.partition("[")[0], []).append(item)
    for several in cases.values():
        if any(item.get_closest_marker("long") for item in several):
            continue
        for item in several[1:-1]:
            item.add_marker(pytest.mark.long)
    items.sort(key=lambda item: item.path.name not in FIRST)


def pytest_configure(config: pytest.Config) -> None:
    """Let workers take files in the order of `items`; by the number of their tests those in FIRST would come last."""
    if hasattr(config.option, "loadscopereorder"):  # without xdist there is none
        config.option.loadscopereorder = False
