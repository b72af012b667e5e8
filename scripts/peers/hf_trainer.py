"""One run of Hugging Face's Trainer for scripts/benchmark: prints a line of JSON.

python scripts/peers/hf_trainer.py BLOCKS.npy STEPS VOCABULARY fp32|bf16 OUTPUT [gelu_new|gelu_pytorch_tanh]
"""

import json
import resource
import sys
import time
from pathlib import Path

import numpy as np
import torch
import yaml
from torch.utils.data import Dataset
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments


class Blocks(Dataset):
    """The same token blocks as llmtrain reads."""

    def __init__(self, path: str) -> None:
        self.ids = np.load(path)[:, :-1]  # Trainer's models shift the labels themselves: one target fewer a block

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        ids = torch.from_numpy(self.ids[i].astype(np.int64))
        return {"input_ids": ids, "labels": ids}


class Clock(TrainerCallback):
    """Notes when each step ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *arguments: object, **named: object) -> None:
        self.ends.append(time.time())


def main(blocks: str, steps: str, vocabulary: str, precision: str, output: str, activation: str = "gelu_new") -> None:
    torch.manual_seed(0)
    shape = {"vocab_size": int(vocabulary), "n_positions": 256, "n_embd": 384, "n_layer": 6, "n_head": 6, "bos_token_id": 0, "eos_token_id": 0}
    config = GPT2Config(**shape, activation_function=activation, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False)
    model = GPT2LMHeadModel(config)
    settings = yaml.safe_load((Path(__file__).parent / "hf_trainer.yaml").read_text())
    arguments = TrainingArguments(output_dir=output, max_steps=int(steps), bf16=precision == "bf16", **settings)
    clock = Clock()
    Trainer(model=model, args=arguments, train_dataset=Blocks(blocks), callbacks=[clock]).train()
    print(json.dumps({"ends": clock.ends, "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))


if __name__ == "__main__":
    main(*sys.argv[1:])
