"""loss.png: the learning curve of one run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def records(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def draw(run: Path, references: dict[str, float], file: str = "metrics.jsonl") -> Path | None:
    """Training and validation loss against tokens, with what knowing nothing would give as a dashed line.

    Args:
        file: where the run wrote its metrics.

    Returns:
        The picture's path; None where the run recorded nothing.
    """
    from matplotlib.figure import Figure

    rows = records(run / file)
    names = sorted({k for row in rows for k in row if k.startswith("loss_") or k == "validation_loss"})
    if not names:
        return None
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for name in names:
        points = [(row["tokens"], row[name]) for row in rows if name in row]
        marker = "o" if name.startswith("validation") else None
        label = {"validation_loss": "validation"}.get(name, name.removeprefix("loss_").replace("_", " ") + " (train)")
        axes.plot(*zip(*points, strict=True), label=label, marker=marker, markersize=4, linewidth=1.4)
    for name, value in references.items():
        axes.axhline(value, linestyle="--", linewidth=1, color="grey", label=name.replace("_", " "))
    axes.set(xlabel="tokens", ylabel="loss (nats)", title=run.name)
    axes.xaxis.set_major_formatter(lambda x, _: f"{x / 1e6:g} M" if x >= 1e6 else f"{x:,.0f}")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    target = run / "loss.png"
    figure.savefig(target, dpi=130)
    return target
