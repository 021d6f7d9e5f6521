"""SIGTERM and Ctrl-C: finish the update, save, leave."""

import signal
from types import FrameType, TracebackType
from typing import Self

import jax
from jax.experimental import multihost_utils


class Stopped(SystemExit):
    """A signal was heeded: everything is saved, and all processes leave in order, with the exit
    code that a shell gives to who dies of it. A scheduler sees that there is more to do.
    """

    def __init__(self, received: signal.Signals) -> None:
        super().__init__(128 + received)


class Interrupts:
    """Remembers the first signal instead of dying of it; a second Ctrl-C interrupts at once."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> Self:
        # With several processes JAX takes SIGTERM itself and tells the others.
        taken = [signal.SIGINT] + ([signal.SIGTERM] if jax.process_count() == 1 else [])
        for number in taken:
            self._before[number] = signal.signal(number, self._remember)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)  # type: ignore[arg-type]

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.received is not None:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)
        if jax.process_count() > 1:
            # Ctrl-C may reach one process only, or each at another step: JAX finds a step for all.
            signal.raise_signal(signal.SIGTERM)

    def stop(self, step: int) -> bool:
        """Whether to save and leave after this step; all processes agree, and no step waits for
        that.
        """
        if jax.process_count() == 1:
            return self.received is not None
        leaving = multihost_utils.reached_preemption_sync_point(step)
        if leaving and self.received is None:
            self.received = signal.SIGTERM
        return leaving
