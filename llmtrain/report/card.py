"""The model card of final/: what this is, how it was made, what it scored."""

from __future__ import annotations

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
sequences of up to {data["max_length"]} tokens, vocabulary of {derived["vocabulary"]:,}, precision {config["precision"]}, seed {config["seed"]}.

| held-out | |
|---|---|
{metrics}

```python
from transformers import AutoTokenizer, {model}

model = {model}.from_pretrained("FOLDER")
tokenizer = AutoTokenizer.from_pretrained("FOLDER")
```

Trained on what the config names and on nothing else; no filtering of content and no evaluation beyond the table.
"""
