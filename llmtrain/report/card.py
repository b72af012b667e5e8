"""The model card of final/: what this is, how it was made, what it scored."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def card(model: str, config: dict[str, Any], content: dict[str, Any]) -> str:
    """README.md of a Hugging Face folder."""
    data, derived = config["data"], config["derived"]
    metrics = "\n".join(f"| {name.replace('_', ' ')} | {value:.4g} |" for name, value in {**content["validation"], **content["references"]}.items())
    return f"""---
library_name: transformers
tags: [llmtrain, {config["objective"]["kind"].replace("_", "-")}]
---

# {model}, trained with llmtrain

Objective `{config["objective"]["kind"]}` on data of kind `{data["kind"]}`: {content["steps"]:,} updates, {content["tokens"]:,} input tokens,
sequences of up to {data["max_length"]} tokens, vocabulary of {derived["vocabulary"]:,}, precision {config["precision"]}, seed {config["seed"]}.{_best(content)}

| held-out | |
|---|---|
{metrics}

```python
from transformers import AutoTokenizer, {model}

model = {model}.from_pretrained("FOLDER")
tokenizer = AutoTokenizer.from_pretrained("FOLDER")
```
{_of_a_task(content)}
{_origin(config)}; no filtering of content and no evaluation beyond the table.
"""


def _best(content: dict[str, Any]) -> str:
    """Which update the weights are of, where it is not the last."""
    best = content["best"]
    if content["exported_step"] == content["steps"]:
        return ""
    return f"\nThe weights are those after update {content['exported_step']:,}, the best by {best['metric'].replace('_', ' ')}."


def _origin(config: dict[str, Any]) -> str:
    """What the training began with. Of a folder its name alone: where it stood is nobody's business."""
    start = config["model"].get("checkpoint")
    if start is None:
        return "Trained on what the config names and on nothing else"
    path = Path(str(start))
    named = str(start) if not path.is_absolute() and not path.is_dir() else path.parent.name if path.name == "final" else path.name
    return f"Trained from the weights of `{named}` on what the config names; what those were trained on is not said here"


def _of_a_task(content: dict[str, Any]) -> str:
    """What stands beside the weights of a finetuned model, and what of it was trained."""
    sections = content.get("freezing", {}).get("sections", {})
    trained, total = (sum(section[name] for section in sections.values()) for name in ("trainable", "parameters"))
    share = f"\nOf {total:,} parameters {trained:,} were trained ({trained / total:.1%}).\n" if total and trained < total else ""
    head = "\nThe head of the task stands in `head.json` and `head.safetensors`; `llmtrain predict model.checkpoint=FOLDER file=TEXTS.csv` answers with it.\n"
    return share + (head if content.get("pooled_head") else "")
