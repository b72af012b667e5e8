"""Studies made up by hand: what the pages, tables and files of a report are tested on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from llmtrain.report.study import Difference, Estimate, Row, Run, Study

NAN = math.nan
BLOCK, EMBEDDINGS, HEAD = 7_087_872, 23_837_184, 592_130
DEPTH = 6
PARAMETERS = EMBEDDINGS + DEPTH * BLOCK + HEAD

# What may stand in data, and must be shown as text: H12, H14, H16.
SCRIPT = "<script>document.title='owned'</script>"
IMAGE = '"><img src=x onerror="document.title=1">'
CLOSING = "</script></title></style></code></pre><script>alert(1)</script>"
HOSTILE = (SCRIPT, IMAGE, CLOSING, "[red]not red[/red] [link=file:///etc/passwd]x[/link] [/foo]", "=cmd|' /C calc'!A0", "{{ 7 * 7 }}{% raw %}", "$\\frac{$")
CONTROL = "\x1b[2J\x07\u202egnp.exe\x00\ud800"


def sections(blocks: int, lr: float) -> tuple[Mapping[str, Any], ...]:
    """The block map where the last `blocks` blocks and the head move; all of it where there are more blocks than that."""
    sizes = {"embeddings": EMBEDDINGS, **{f"block.{i}": BLOCK for i in range(DEPTH)}, "final": 0, "head": HEAD}
    moving = {f"block.{i}" for i in range(DEPTH) if i >= DEPTH - blocks} | {"head"} | ({"embeddings"} if blocks > DEPTH else set())
    return tuple(
        {
            "section": name,
            "parameters": size,
            "trainable": size if name in moving else 0,
            "lr": lr if name in moving else None,
            "from_share": 0.0,
            "crossed": False,
        }
        for name, size in sizes.items()
        if size
    )


def run(seed: int = 0, **changed: Any) -> Run:
    """A finished run of `finetune`."""
    known: dict[str, Any] = {
        "path": Path("runs/sweep/study/members") / f"member-{seed}",
        "name": f"member-seed={seed}",
        "verb": "finetune",
        "status": "finished",
        "seed": seed,
        "settings": {"seed": seed},
        "metric": "accuracy",
        "higher": True,
        "parameters": PARAMETERS,
        "machine": {"device": "cpu", "name": "AMD EPYC", "processes": 1, "threads": 2, "precision": "bf16"},
        "versions": {"llmtrain": "0.1.0", "torch": "2.13.0"},
    }
    return Run(**(known | changed))


def curve(end: float, rate: float, steps: int = 300, every: int = 30, start: float = 0.5) -> tuple[Mapping[str, float], ...]:
    """Evaluations that approach `end`."""
    return tuple(
        {"step": s, "tokens": 100 * s, "validation_accuracy": end + (start - end) * math.exp(-rate * s / steps)} for s in range(every, steps + 1, every)
    )


def estimate(values: list[float]) -> Estimate:
    mean = sum(values) / len(values)
    sd = math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1)) if len(values) > 1 else NAN
    return Estimate(mean, sd, len(values))


def row(label: str, kind: str, blocks: int, level: float, seconds: float, memory: float, lr: float = 5e-5, seeds: int = 3, **changed: Any) -> Row:
    """A row of runs around `level`."""
    noise = (-0.004, 0.001, 0.003, -0.002, 0.002)
    validation = [level + 0.006 + noise[seed] for seed in range(seeds)]
    test = [level + noise[-1 - seed] for seed in range(seeds)]
    parts = sections(blocks, lr)
    trainable = sum(section["trainable"] for section in parts)
    differs = {"finetune.kind": kind, **({"finetune.blocks": blocks} if kind == "last_layers" else {}), "finetune.lr": lr}
    runs = tuple(
        run(
            seed,
            trainable=trainable,
            validation={"accuracy": validation[seed], "macro_f1": validation[seed] - 0.01},
            test={"accuracy": test[seed], "macro_f1": test[seed] - 0.01},
            references={"majority_accuracy": 0.502, "bag_of_words_accuracy": 0.782},
            sections=parts,
            overrides=(f"finetune={kind}", *((f"finetune.blocks={blocks}",) if kind == "last_layers" else ()), f"seed={seed}"),
            wall_seconds=seconds + 5 + seed,
            train_seconds=seconds + seed,
            peak_memory_mb=memory,
            disk_mb=12.0 + 4 * trainable / 1e6,
            curve=curve(validation[seed], 3.0 + 0.4 * blocks),
            command=f"llmtrain finetune data=text data.train=reviews.csv finetune={kind} finetune.blocks={blocks} seed={seed}",
        )
        for seed in range(seeds)
    )
    known: dict[str, Any] = {
        "label": label,
        "differs": differs,
        "runs": runs,
        "validation": estimate(validation),
        "test": estimate(test),
        "trainable": trainable,
        "parameters": PARAMETERS,
        "seconds": seconds,
        "memory_mb": memory,
        "disk_mb": 12.0 + 4 * trainable / 1e6,
    }
    return Row(**(known | changed))


def difference(mean: float, half: float) -> Difference:
    return Difference(mean, mean - half, mean + half, noise=abs(mean) < half, how="two-level bootstrap over seeds and 872 examples")


def freezing(seeds: int = 3) -> Study:
    """A sweep over how much of an encoder moves, as one would make it."""
    every = frozenset({"parameters", "seconds", "memory"})
    rows = [
        row("features", "features", 0, 0.793, 64, 1010, lr=1e-3, seeds=seeds, front=every, difference=difference(-0.068, 0.021)),
        row("last block", "last_layers", 1, 0.826, 121, 1180, seeds=seeds, front=every, difference=difference(-0.035, 0.019)),
        row("last 2 blocks", "last_layers", 2, 0.846, 188, 1290, seeds=seeds, front=every, chosen=False, difference=difference(-0.015, 0.016)),
        row("last 3 blocks", "last_layers", 3, 0.853, 260, 1420, seeds=seeds, front=every, difference=difference(-0.008, 0.014)),
        row("last 4 blocks", "last_layers", 4, 0.8625, 345, 1530, seeds=seeds, front=every, chosen=True, difference=difference(0.001, 0.012)),
        row("last 5 blocks", "last_layers", 5, 0.857, 430, 1660, seeds=seeds, difference=difference(-0.004, 0.012)),
        row("full", "full", 7, 0.861, 538, 2240, lr=2e-5, seeds=seeds, reference=True),
        failed("last 6 blocks"),
    ]
    return Study(
        title="freezing-distilbert",
        command="llmtrain finetune -m sweep=freezing data=text data.train=reviews.csv seed=0,1,2",
        verb="finetune",
        metric="accuracy",
        higher=True,
        compared_on="test",
        rows=tuple(rows),
        baselines={"majority": 0.502, "bag of words": 0.782},
        differs=("finetune.kind", "finetune.blocks", "finetune.lr"),
        same={
            "data.kind": "text",
            "data.train": "reviews.csv",
            "data.max_length": 128,
            "optimizer.weight_decay": 0.01,
            "model.checkpoint": "models/distilbert",
        },
        sentences={
            "table": (
                "On validation the last 4 blocks did best; on the test split they reach 0.863 ± 0.002.",
                "The last 2 blocks reach 98 % of full (0.846 of 0.861 test accuracy) at 35 % of the time and 22 % of its trained parameters; "
                "the difference, −0.015 [−0.031, +0.001] (95 %), is inside the noise.",
            ),
            "parameters": ("The last 2 blocks are the smallest row inside the noise of full: these data cannot show that training more gains anything.",),
            "seconds": ("Full takes 2.9 times as long as the last 2 blocks.",),
            "memory": ("Peak memory grows from 1,010 MB to 2,240 MB.",),
            "curves": ("All rows still rise at their last evaluation.",),
            "blocks": ("The head moves in every row.",),
        },
        notes=("1 of 24 runs failed: last 6 blocks.", "Three seeds say little about the standard deviation."),
        machine="cpu AMD EPYC, 1 process, 2 threads, bf16",
        versions={"llmtrain": "0.1.0", "python": "3.11.7", "torch": "2.13.0", "transformers": "5.23.0"},
    )


def failed(label: str, reason: str = "loss is not finite at update 12 (nan)", status: str = "failed") -> Row:
    """A row of which no run came to its end."""
    runs = (run(0, status=status, reason=reason, command="llmtrain finetune finetune=last_layers finetune.blocks=6 seed=0", warnings=("loss is nan",)),)
    return Row(label, {"finetune.kind": "last_layers", "finetune.blocks": 6}, runs, None, None, 43_000_000, PARAMETERS, NAN, NAN, NAN)


def hostile() -> Study:
    """The same with text in every place that would like to be more than text."""
    plain = freezing()
    rows = []
    for number, one in enumerate(plain.rows):
        text = HOSTILE[number % len(HOSTILE)]
        runs = tuple(
            replace(
                r,
                name=text,
                command=f"llmtrain finetune name={text}\n```\n# {SCRIPT}",
                warnings=(f"{text} {CONTROL}",),
                reason=SCRIPT if r.reason else "",
                verb=text,
            )
            for r in one.runs
        )
        rows.append(replace(one, label=text, runs=runs, differs={**one.differs, "data.train": text + CONTROL}))
    return replace(
        plain,
        title=CLOSING,
        command=f"llmtrain finetune -m name={IMAGE}\n```\n{SCRIPT}",
        rows=tuple(rows),
        differs=(*plain.differs, "data.train"),
        baselines={SCRIPT: 0.782, "$x_": 0.8},
        same={SCRIPT: IMAGE, "x": CONTROL},
        sentences={key: (*texts, SCRIPT, "a | b `c` *d* _e_ [f](http://evil.example)") for key, texts in plain.sentences.items()},
        notes=(*HOSTILE, CONTROL, "line\nbreak"),
        machine=IMAGE,
        versions={"torch": SCRIPT},
    )


def pretraining() -> Study:
    """Learning rates of a small GPT, one seed: a loss, no test split, no intervals, one row that diverged."""
    rows = []
    for number, (lr, loss) in enumerate(((1e-4, 5.31), (3e-4, 4.84), (1e-3, 4.62), (3e-3, 4.71), (1e-2, math.inf))):
        steps = range(20, 401, 20)
        lines = tuple({"step": s, "validation_loss": loss + 4 * math.exp(-s / 60) if math.isfinite(loss) else math.nan} for s in steps)
        one = run(
            0,
            name=f"lr={lr}",
            verb="pretrain",
            metric="loss",
            higher=False,
            parameters=4_273_664,
            trainable=4_273_664,
            validation={"loss": loss, "perplexity": math.exp(min(loss, 700))},
            curve=lines,
            wall_seconds=150.0 + number,
            train_seconds=145.0 + number,
            peak_memory_mb=794.0 + number,
            disk_mb=52.0,
            sections=({"section": "block.0", "parameters": 4_273_664, "trainable": 4_273_664, "lr": lr, "from_share": 0.0, "crossed": False},),
            command=f"llmtrain pretrain optimizer.lr={lr}",
        )
        better = None if lr == 1e-3 else Difference(loss - 4.62, NAN, NAN, noise=False, how="one seed")
        found = {"seconds": 145.0 + number, "memory_mb": 794.0 + number, "disk_mb": 52.0}
        marks = {"chosen": lr == 1e-3, "reference": lr == 1e-3, "difference": better}
        rows.append(Row(f"lr {lr:g}", {"optimizer.lr": lr}, (one,), Estimate(loss, NAN, 1), None, 4_273_664, 4_273_664, **found, **marks))
    return Study(
        title="lr",
        command="llmtrain pretrain -m optimizer.lr=1e-4,3e-4,1e-3,3e-3,1e-2",
        verb="pretrain",
        metric="loss",
        higher=False,
        compared_on="validation",
        rows=tuple(rows),
        baselines={"unigram entropy": 6.335},
        differs=("optimizer.lr",),
        sentences={"table": ("The loss is lowest at lr 0.001: 4.620.",)},
        machine="cpu AMD EPYC",
        versions={"torch": "2.13.0"},
    )


def single() -> Study:
    """One run by itself."""
    whole = freezing(seeds=1)
    one = replace(whole.rows[2], front=frozenset(), chosen=False, difference=None)
    return replace(whole, title="2026-11-25_03-00-00", command="", rows=(one,), differs=(), notes=(), sentences={"table": ("Test accuracy 0.848.",)})


def many() -> Study:
    """Thirty rows of a search, with long names that lie close together."""
    whole = freezing()
    rows = [
        replace(
            whole.rows[number % 7],
            label=f"last {number % 7} blocks, lr {1 + number}e-05, weight_decay 0.01, warmup {number}",
            chosen=number == 11,
            reference=number == 6,
            trainable=whole.rows[number % 7].trainable + 40_000 * number,
            seconds=whole.rows[number % 7].seconds + 7 * number,
            validation=Estimate(0.8 + 0.002 * number, 0.004, 3),
            test=Estimate(0.8 + 0.0021 * number, 0.004, 3),
        )
        for number in range(30)
    ]
    return replace(whole, rows=tuple(rows))
