"""The live bar of a terminal, and plain lines everywhere else."""

from __future__ import annotations

import contextlib
import datetime
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmtrain.callback.base import Callback, Run, Step

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

    from llmtrain.state import RunState

LINES_S = 10.0  # between two lines about a long pass, where there is no terminal


@dataclass(kw_only=True)
class Progress(Callback):
    """Show loss, speed and the time left.

    The time left is made from the seconds of updates and of evaluations apart, so that an evaluation's pause neither
    stops the clock nor makes it jump.

    Attributes:
        bar: a live bar where there is a terminal; false: plain lines there too.
    """

    bar: bool

    def on_start(self, run: Run, state: RunState) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress as Bar, TextColumn

        self._first = state.step
        self._seconds = (state.seconds, state.evaluation_seconds)
        self._bar = None
        if self.bar and run.runtime.main and run.runtime.console.is_terminal:
            columns = [BarColumn(bar_width=None), MofNCompleteColumn(), TextColumn("{task.description}", markup=False)]
            self._bar = Bar(*columns, console=run.runtime.console, expand=True, transient=True)
            self._task = self._bar.add_task("starting", total=run.total_steps, completed=state.step)
            self._bar.start()

    def on_step(self, run: Run, state: RunState, step: Step) -> None:
        loss = " ".join(f"{name} {value:.3f}" if len(step.losses) > 1 else f"loss {value:.3f}" for name, value in step.losses.items())
        left = time_left(run, state, self._first, self._seconds)
        if self._bar is not None:
            text = f"{loss} · {step.tokens_per_second:,.0f} tokens/s · {left} left"
            self._bar.update(self._task, completed=state.step, description=text)
        elif step.record is not None and run.runtime.main:
            width = len(str(run.total_steps))
            speed = f"{step.tokens_per_second:,.0f} tokens/s · {left} left"
            run.runtime.console.print(f"step {state.step:>{width}}/{run.total_steps}  {loss}  lr {step.lr:.2e}  {speed}")

    def on_evaluate(self, run: Run, state: RunState, metrics: dict[str, float]) -> None:
        if run.runtime.main:
            numbers = " · ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in metrics.items())
            run.runtime.console.print(f"step {state.step:>{len(str(run.total_steps))}}/{run.total_steps}  held out: {numbers}")

    def on_save(self, run: Run, state: RunState, path: Path) -> None: ...

    def on_end(self, run: Run, state: RunState) -> None:
        if self._bar is not None:
            self._bar.stop()


def time_left(run: Run, state: RunState, first: int, before: tuple[float, float]) -> str:
    """h:mm:ss for the updates and the evaluations that are still to come, at the pace of this session."""
    done = state.step - first
    if done < 1:
        return "?"
    a_step = (state.seconds - before[0]) / done
    left = a_step * (run.total_steps - state.step)
    if state.evaluations:
        left += state.evaluation_seconds / state.evaluations * max(0, run.evaluations - state.evaluations)
    return str(datetime.timedelta(seconds=round(left)))


@contextlib.contextmanager
def counted(console: Console, what: str) -> Iterator[Callable[[int, int], None]]:
    """A function to tell how many of how many `what` are done: a bar on a terminal, elsewhere a line now and then, and nothing of a short pass."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress as Bar, TextColumn, TimeRemainingColumn

    began = said = time.monotonic()
    with Bar(
        TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task(what, total=None)

        def tell(done: int, total: int) -> None:
            nonlocal said
            bar.update(task, completed=done, total=total)
            now = time.monotonic()
            if not console.is_terminal and now - said >= LINES_S:
                said = now
                left = datetime.timedelta(seconds=round((now - began) / done * (total - done)))
                console.print(f"{what}: {done:,}/{total:,} · {left} left")

        yield tell
