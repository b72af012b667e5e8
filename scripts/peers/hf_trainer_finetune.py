"""One finetuning by Hugging Face's Trainer for scripts/benchmark: layers frozen by requires_grad; prints a line of JSON.

python scripts/peers/hf_trainer_finetune.py ENCODER DATA features|last_K|full default|tuned OUTPUT SEED EPOCHS [LR]

DATA is a folder with train.jsonl and validation.jsonl, rows {"text": …, "label": …}. `default` is TrainingArguments as they are
(fp32, batches in random order, padded to their longest text); `tuned` adds bf16 and batches grouped by length.
"""

import json
import resource
import sys
from pathlib import Path

import numpy as np
from datasets import load_dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding, Trainer, TrainingArguments

LR = {"features": 1e-3}  # elsewhere 5e-5, as TrainingArguments has it


def main(encoder: str, data: str, mode: str, kind: str, output: str, seed: str, epochs: str, lr: str | None = None) -> None:
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    files = {name: str(Path(data, f"{name}.jsonl")) for name in ("train", "validation")}
    rows = load_dataset("json", data_files=files, cache_dir=str(Path(output, "datasets")))
    names = sorted(set(rows["train"]["label"]))

    def encode(batch: dict) -> dict:
        return {**tokenizer(batch["text"], truncation=True, max_length=256), "label": [names.index(label) for label in batch["label"]]}

    rows = rows.map(encode, batched=True, remove_columns=rows["train"].column_names)
    model = AutoModelForSequenceClassification.from_pretrained(encoder, num_labels=len(names))
    if mode != "full":
        model.base_model.requires_grad_(False)
    if mode.startswith("last_"):
        model.base_model.encoder.layer[-int(mode.removeprefix("last_")) :].requires_grad_(True)
        model.base_model.pooler.requires_grad_(True)
    if mode == "features":  # a linear head on a pooler that was trained for something else stays at chance: the pooler learns as well
        model.base_model.pooler.requires_grad_(True)
    tuned = {"bf16": True, "train_sampling_strategy": "group_by_length"} if kind == "tuned" else {}
    rate = float(lr or LR.get(mode, 5e-5))
    arguments = TrainingArguments(
        output_dir=output, num_train_epochs=float(epochs), per_device_train_batch_size=16, per_device_eval_batch_size=64, learning_rate=rate,
        seed=int(seed), save_strategy="no", report_to=[], disable_tqdm=True, logging_steps=10**9, use_cpu=True, **tuned,
    )  # fmt: skip
    trainer = Trainer(
        model=model, args=arguments, train_dataset=rows["train"], eval_dataset=rows["validation"], data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=lambda found: {"accuracy": float((np.argmax(found.predictions, -1) == found.label_ids).mean())},
    )  # fmt: skip
    trainer.train()
    accuracy = trainer.evaluate()["eval_accuracy"]
    trainer.save_model(str(Path(output, "final")))
    print(json.dumps({"accuracy": accuracy, "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))


if __name__ == "__main__":
    main(*sys.argv[1:])
