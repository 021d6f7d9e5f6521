"""What a run remembers across restarts, kept as JSON in every checkpoint."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

import numpy as np


@dataclass
class History:
    """Counts since step 0, whatever was interrupted in between."""

    evaluations: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    """(step, validation scores), oldest first."""
    before: dict[str, dict[str, float]] = field(default_factory=dict)
    """Scores of the named evaluation sets before training."""
    losses: list[float] = field(default_factory=list)
    """Training losses since the last log line."""
    train_loss: float | None = None
    """Mean over the last log line's updates."""
    examples: int = 0
    tokens: int = 0
    """Real tokens, padding not counted."""
    train_s: float = 0.0
    """From the first batch on; logging and saves inside, evaluation and compilation outside."""
    compile_s: float = 0.0
    wall_s: float = 0.0
    host_s: float = 0.0
    """What the loop itself costs between two waits for the device."""
    updates: int = 0
    steady_examples: int = 0
    steady_tokens: int = 0
    steady_s: float = 0.0
    """Updates without an evaluation or a save beside them."""

    @classmethod
    def from_meta(cls, meta: Mapping[str, Any]) -> Self:
        """From what `to_meta` gave."""
        history = cls(**meta)
        history.evaluations = [(int(step), dict(scores)) for step, scores in history.evaluations]
        return history

    def to_meta(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def host_ms_per_step(self) -> float:
        return 1e3 * self.host_s / max(self.updates, 1)

    def without_improvement(self, metric: str, lower_is_better: bool) -> int:
        """How many evaluations have passed since the best one; a score that is NaN is the worst."""
        sign = -1.0 if lower_is_better else 1.0
        values = [
            np.nan_to_num(sign * scores[metric], nan=-np.inf) for _, scores in self.evaluations
        ]
        return len(values) - 1 - int(np.argmax(values)) if values else 0
