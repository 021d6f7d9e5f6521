"""The progress of training on stderr: a bar on a terminal, a plain line now and then elsewhere."""

import os
import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, SpinnerColumn, Task
from rich.progress import Progress as RichProgress
from rich.table import Column
from rich.text import Text

from jaxft.stderr import aloud

LINE_EVERY_S = 10.0
DRAWN_PER_S = 4.0


class Progress:
    """Step, loss, speed and time left; `update` only stores numbers, a thread of rich draws them.

    With `enabled` False (processes other than 0) it says nothing. Results on stdout are left alone.
    """

    def __init__(self, total_steps: int, start_step: int = 0, enabled: bool = True) -> None:
        self.enabled = enabled
        self._total, self._step = total_steps, start_step
        self._speed = ""
        self._began_s = time.monotonic()
        self._first: tuple[float, int] | None = None  # time and step of the first update
        self._line_due_s = 0.0
        self._bar: RichProgress | None = None
        # rich's own idea of a terminal follows FORCE_COLOR, which would put escapes into pod logs
        if enabled and sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
            self._bar = RichProgress(
                SpinnerColumn(finished_text=" "),
                BarColumn(bar_width=None, table_column=Column(ratio=1)),
                _Line(self),
                console=Console(stderr=True),
                refresh_per_second=DRAWN_PER_S,
                redirect_stdout=False,
                expand=True,
            )
            self._task = self._bar.add_task("", total=total_steps, completed=start_step)

    def update(self, step: int, *, loss: float, examples_per_s: float, tokens_per_s: float) -> None:
        """Takes the newest numbers; `step` counts the updates that are done."""
        if not self.enabled:
            return
        now_s = time.monotonic()
        self._first = self._first or (now_s, step)
        self._step = step
        self._speed = (
            f" · loss {loss:.4f} · {examples_per_s:,.1f} examples/s · {tokens_per_s:,.0f} tokens/s"
        )
        if self._bar:
            self._bar.update(self._task, completed=step)
        elif now_s >= self._line_due_s or step >= self._total:
            self._line_due_s = now_s + LINE_EVERY_S
            self.say(self.line())

    def say(self, text: str) -> None:
        """Prints a text above the bar, as it is."""
        if self._bar:
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
        elif self.enabled:
            aloud(text)

    def line(self) -> str:
        """All numbers in one line; what a narrow terminal cuts off stands last."""
        now_s = time.monotonic()
        times = _clock(now_s - self._began_s)
        if self._first and self._step > self._first[1] and self._step < self._total:
            # from the first update on: its compilation says nothing about those to come
            step_s = (now_s - self._first[0]) / (self._step - self._first[1])
            times += f", {_clock(step_s * (self._total - self._step))} left"
        return f"step {self._step}/{self._total} · {times}{self._speed}"

    def __enter__(self) -> Self:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar:
            self._bar.stop()  # gives the cursor back, on Ctrl-C too


class _Line(ProgressColumn):
    def __init__(self, progress: Progress) -> None:
        super().__init__(table_column=Column(no_wrap=True))
        self._progress = progress

    def render(self, task: Task) -> Text:
        return Text(self._progress.line())


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
