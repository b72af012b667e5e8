"""One run of Hugging Face's Trainer with its masked-LM collator for scripts/benchmark: prints a line of JSON.

python scripts/peers/hf_trainer_bert.py BLOCKS.npy STEPS TOKENIZER fp32|bf16 OUTPUT DROPOUT
"""

import json
import resource
import sys
from pathlib import Path

import numpy as np
import torch
import yaml
from hf_trainer import Clock
from torch.utils.data import Dataset
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM, DataCollatorForLanguageModeling, Trainer, TrainingArguments


class Blocks(Dataset):
    """The same sequences as llmtrain reads, [CLS] and [SEP] included. None is padded; the collator adds a mask of ones, as it does by default."""

    def __init__(self, path: str) -> None:
        self.ids = np.load(path)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, i: int) -> dict[str, list[int]]:
        return {"input_ids": self.ids[i].tolist()}


def main(blocks: str, steps: str, tokenizer: str, precision: str, output: str, dropout: str) -> None:
    torch.manual_seed(0)
    words = AutoTokenizer.from_pretrained(tokenizer)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=384,
        num_hidden_layers=6,
        num_attention_heads=6,
        intermediate_size=1536,
        max_position_embeddings=256,
        pad_token_id=words.pad_token_id,
        hidden_dropout_prob=float(dropout),
        attention_probs_dropout_prob=float(dropout),
    )
    settings = yaml.safe_load((Path(__file__).parent / "hf_trainer.yaml").read_text())
    arguments = TrainingArguments(output_dir=output, max_steps=int(steps), bf16=precision == "bf16", **settings)
    collator = DataCollatorForLanguageModeling(words, mlm_probability=0.15)
    clock = Clock()
    Trainer(model=BertForMaskedLM(config), args=arguments, train_dataset=Blocks(blocks), data_collator=collator, callbacks=[clock]).train()
    print(json.dumps({"ends": clock.ends, "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))


if __name__ == "__main__":
    main(*sys.argv[1:])
