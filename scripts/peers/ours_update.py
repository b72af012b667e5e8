"""What an update of few tokens costs, for scripts/benchmark: llmtrain's layers in a bare loop, under torch's profiler; prints a table.

python scripts/peers/ours_update.py ENCODER [UPDATES]

A batch of 16 sequences of 24 to 27 random tokens, bf16, every parameter of the body and of a linear head on its mean learning.
"""

import statistics
import sys
import time

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModel

from llmtrain.model import forward
from llmtrain.runtime import keep_memory

ROWS, LENGTH = 16, 27
PARTS = {
    "matrix products of the linear layers": ("aten::mm", "aten::addmm"),
    "copies: weights to bf16, their gradients to fp32, heads apart and together": ("aten::copy_",),
    "AdamW, the gradients' norm, zeros for the gradient of the embeddings": ("aten::_fused_adamw_", "aten::linalg_vector_norm", "aten::fill_"),
    "products and softmax of attention": ("aten::bmm", "aten::_softmax", "aten::_softmax_backward_data"),
}


def main(encoder: str, updates: str = "20") -> None:
    keep_memory()
    torch.manual_seed(0)
    model = AutoModel.from_pretrained(encoder).train()
    forward.use_cpu_attention(model)
    forward.use_cpu_dropout(model)
    forward.use_cpu_linear(model)
    head = nn.Linear(model.config.hidden_size, 2)
    parameters = [p for name, p in model.named_parameters() if "pooler" not in name] + list(head.parameters())
    adamw = torch.optim.AdamW(parameters, lr=1e-5, fused=True)
    tokens = torch.randint(1000, 20000, (ROWS, LENGTH))
    mask = (torch.arange(LENGTH) < torch.randint(24, LENGTH + 1, (ROWS, 1))).long()
    labels = torch.randint(2, (ROWS,))

    def update() -> float:
        began = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16):
            states = model(input_ids=tokens, attention_mask=mask).last_hidden_state
            loss = nn.functional.cross_entropy(head(states.float().mean(1)), labels)
        loss.backward()
        float(nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))
        adamw.step()
        adamw.zero_grad()
        return time.perf_counter() - began

    number = int(updates)
    for _ in range(5):
        update()
    print(f"an update without the profiler: {1000 * statistics.median(update() for _ in range(number)):.1f} ms, with it:")
    with profile(activities=[ProfilerActivity.CPU]) as found:
        took = sum(update() for _ in range(number)) / number * 1000
    own = {event.key: event.self_cpu_time_total / number / 1000 for event in found.key_averages()}
    parts = {what: sum(own.get(name, 0) for name in names) for what, names in PARTS.items()}
    for what, milliseconds in {**parts, "the rest": took - sum(parts.values()), "all": took}.items():
        print(f"| {what} | {milliseconds:.1f} |")


if __name__ == "__main__":
    main(*sys.argv[1:])
