"""Where the time of `llmtrain finetune` goes from one update to the next, for scripts/benchmark: the command itself, under torch's profiler; prints a table.

python scripts/peers/ours_profile.py OVERRIDE …

First SKIPPED updates as they are, then UPDATES timed, then UPDATES profiled; there the run is stopped. From one update to the next: reading a
batch stands with the rest. Times of single operations are what the thread that calls them spends in them.
"""

import contextlib
import itertools
import statistics
import sys
import time
from typing import Any

SKIPPED, UPDATES = 50, 100
PARTS = {
    "matrix products of the linear layers": ("aten::mm", "aten::addmm"),
    "copies: casts, heads apart and together": ("aten::copy_", "aten::clone"),
    "optimizer, norm and zeros of the gradients": ("aten::_fused_adamw_", "aten::linalg_vector_norm", "aten::_foreach_norm", "aten::fill_", "aten::mul_"),
    "products and softmax of attention": ("aten::bmm", "aten::baddbmm", "aten::_softmax", "aten::_softmax_backward_data"),
    "layer norms": ("aten::native_layer_norm", "aten::native_layer_norm_backward"),
    "GELU": ("aten::gelu", "aten::gelu_backward"),
    "additions, products and masks, element by element": ("aten::add", "aten::add_", "aten::mul", "aten::bitwise_and", "aten::where", "aten::masked_fill"),
}


class Enough(BaseException):
    """Everything was measured."""


def main(overrides: list[str]) -> None:
    from llmtrain.runtime import restart_sparing

    restart_sparing()  # as the command does
    from torch.profiler import ProfilerActivity, profile

    from llmtrain import trainer
    from llmtrain.cli import main as llmtrain

    began: list[float] = []
    profiler = profile(activities=[ProfilerActivity.CPU])
    real = trainer.Trainer._update

    def update(self: trainer.Trainer, batches: Any) -> Any:
        if len(began) == SKIPPED + UPDATES:
            profiler.start()
        began.append(time.perf_counter())
        if len(began) == SKIPPED + 2 * UPDATES + 1:
            profiler.stop()
            raise Enough
        return real(self, batches)

    trainer.Trainer._update = update  # type: ignore[method-assign]
    with contextlib.redirect_stdout(sys.stderr), contextlib.suppress(Enough):
        sys.exit(llmtrain(["finetune", *overrides]) or "the run ended before everything was measured")
    timed = began[SKIPPED : SKIPPED + UPDATES + 1]
    plain = 1000 * statistics.median(after - before for before, after in itertools.pairwise(timed))
    took = 1000 * (began[-1] - began[-1 - UPDATES]) / UPDATES
    own = {event.key: event.self_cpu_time_total / UPDATES / 1000 for event in profiler.key_averages()}
    parts = {what: sum(own.get(name, 0) for name in names) for what, names in PARTS.items()}
    left = sorted(((ms, name) for name, ms in own.items() if name not in {name for names in PARTS.values() for name in names}), reverse=True)
    rest = {"the rest: other operations, Python, reading batches, the profiler": took - sum(parts.values())}
    for what, milliseconds in {**parts, **rest, f"all (without the profiler: {plain:.1f})": took}.items():
        print(f"| {what} | {milliseconds:.1f} |")
    print("largest of the rest: " + ", ".join(f"{name} {ms:.1f}" for ms, name in left[:8]))


if __name__ == "__main__":
    main(sys.argv[1:])
