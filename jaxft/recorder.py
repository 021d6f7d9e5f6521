"""Turns the metrics of updates into log lines, one update late, so that the device never waits for
the host.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from jaxft.chips import peak_flops
from jaxft.depths import Depths
from jaxft.hardware import memory_bytes
from jaxft.history import History
from jaxft.nn.weights import Tree
from jaxft.progress import Progress
from jaxft.report import RunLog


class NonFiniteLoss(Exception):
    """An update was refused: its loss or its gradient is not finite."""

    def __init__(self, step: int, loss: float, grad_norm: float):
        super().__init__(f"step {step}: loss {loss}, gradient norm {grad_norm}")
        self.step, self.loss, self.grad_norm = step, loss, grad_norm


@dataclass(frozen=True)
class Work:
    """What went into one update."""

    examples: int
    tokens: int
    flops: float


class Recorder:
    """Takes each update's metrics as they are dispatched; reads those of the update before."""

    def __init__(
        self,
        log: RunLog,
        bar: Progress,
        history: History,
        *,
        every: int,
        learning_rates: Callable[[int], np.ndarray],
        depths: Depths,
    ):
        self.log, self.bar, self.history, self.every = log, bar, history, every
        self.learning_rates, self.depths = learning_rates, depths
        kind = jax.devices()[0].device_kind
        self.peak = peak_flops(kind)
        self._held: tuple[int, Mapping[str, jax.Array], Work] | None = None
        self._window: list[Work] = []
        self._window_s = 0.0
        self._since_s = self._woken_s = time.perf_counter()
        self._disturbed = True

    def look(self, step: int, params: Tree) -> Any:
        """Before an update that will be logged: what `compare` needs to see of the weights."""
        return self.depths.probe(params) if step % self.every == 0 else None

    def compare(self, before: Any, params: Tree) -> dict[str, Any]:
        """After an update: how far it moved the weights, where `look` looked."""
        return {} if before is None else {"movement": self.depths.compare(before, params)}

    def push(self, step: int, metrics: Mapping[str, jax.Array], work: Work) -> None:
        """Holds the metrics of the update that was just dispatched and reads the one before."""
        held, self._held = self._held, (step, metrics, work)
        self.history.host_s += time.perf_counter() - self._woken_s
        self.history.updates += 1
        if held is not None:
            self._read(*held)
        self._woken_s = time.perf_counter()

    def drain(self) -> None:
        """Reads what is held: afterwards every update dispatched so far is finished and
        recorded.
        """
        held, self._held = self._held, None
        if held is not None:
            self._read(*held)
        self._woken_s = time.perf_counter()

    def restart_clock(self, counting: bool = False) -> None:
        """Ends a break: a save, whose time counts as training, or an evaluation, whose time does
        not.
        """
        now = time.perf_counter()
        if counting:
            self.history.train_s += now - self._since_s
        self._since_s = self._woken_s = now
        self._disturbed = True

    def _read(self, step: int, metrics: Mapping[str, jax.Array], work: Work) -> None:
        values = jax.tree.map(np.asarray, dict(metrics))  # waits for the update
        if not values["accepted"]:
            self._held = None  # dispatched since then, and refused with it
            raise NonFiniteLoss(step, float(values["loss"]), float(values["grad_norm"]))
        now = time.perf_counter()
        took_s, self._since_s = now - self._since_s, now
        history = self.history
        history.train_s += took_s
        history.examples += work.examples
        history.tokens += work.tokens
        history.losses.append(float(values["loss"]))
        if not self._disturbed:
            history.steady_examples += work.examples
            history.steady_tokens += work.tokens
            history.steady_s += took_s
        self._disturbed = False
        self._window.append(work)
        self._window_s += took_s
        rates = {
            "examples_per_s": sum(w.examples for w in self._window) / self._window_s,
            "tokens_per_s": sum(w.tokens for w in self._window) / self._window_s,
        }
        self.bar.update(step, loss=history.losses[-1], **rates)
        if step % self.every == 0:
            self._write(step, values, rates)

    def _write(self, step: int, values: dict[str, Any], rates: dict[str, float]) -> None:
        self.history.train_loss = float(np.mean(self.history.losses))
        rate_D = self.learning_rates(step - 1)
        movement = values["movement"]
        row = {
            "train/loss": self.history.train_loss,
            "train/learning_rate": float(rate_D.max()),
            "train/grad_norm": float(values["grad_norm"]),
            "train/changed_weights": float((movement.changed_D * self.depths.shares_D).sum()),
            **{f"train/{name}": value for name, value in rates.items()},
        }
        if self.peak:
            flops_per_s = sum(w.flops for w in self._window) / self._window_s
            row["train/mfu"] = flops_per_s / (self.peak * jax.device_count())
        if (memory := memory_bytes()) is not None:
            row["train/memory_bytes"] = memory
        for depth, (rate, ratio) in enumerate(zip(rate_D, movement.ratio_D, strict=True)):
            row[f"train/learning_rate/depth_{depth:02d}"] = float(rate)
            row[f"train/update_ratio/depth_{depth:02d}"] = float(ratio)
        self.log.scalars(step, row)
        self.history.losses.clear()
        self._window, self._window_s = [], 0.0
