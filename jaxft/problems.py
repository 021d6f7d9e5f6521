"""What a label column holds: a class a row, any number of classes, or a number; and what follows
for targets, loss, scores and answers.

E examples of a batch, N of a split, C classes. Source of the losses: transformers 5.23
`ForSequenceClassificationLoss`, `LabelSmoother`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxft import metrics
from jaxft.data import labels as cells
from jaxft.errors import UserError

SINGLE, MULTI = "single_label_classification", "multi_label_classification"
Losses = tuple[jax.Array, jax.Array | float]
"""Of each example, [E], and the factor of its weight."""


@dataclass(frozen=True)
class _Classes:
    """What one class a row and any number of them share."""

    labels: tuple[str, ...]
    weights: tuple[float, ...]

    def _numbers(
        self, rows: Sequence[Sequence[str]], where: Sequence[Any], source: str
    ) -> list[list[int]]:
        """The classes of each row by number.

        Raises:
            UserError: a label that training has not seen, with its line.
        """
        number = {name: i for i, name in enumerate(self.labels)}
        unseen: dict[str, Any] = {}
        for names, at in zip(rows, where, strict=True):
            unseen |= {name: unseen.get(name, at) for name in names if name not in number}
        if unseen:
            listed = ", ".join(f"{name!r} (line {at})" for name, at in list(unseen.items())[:5])
            raise UserError(
                f"{source}: {len(unseen)} label(s) that training has not seen: {listed}. "
                f"Known are {', '.join(map(repr, self.labels[:20]))}. Correct these rows or take "
                "them out, or train on rows of theirs too."
            )
        return [[number[name] for name in names] for names in rows]

    def per_class(self, answers: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Counts [C, 3], as `metrics.class_counts`."""
        return metrics.class_counts(answers, targets, self.labels)

    def _by_label(self, shares_C: np.ndarray) -> dict[str, float]:
        return {name: float(share) for name, share in zip(self.labels, shares_C, strict=True)}


@dataclass(frozen=True)
class SingleLabel(_Classes):
    """One class a row."""

    smoothing: float

    main_metric = "accuracy"
    target_dtype = np.int32
    target_shape = ()
    """Of one row's target, which is the number of its class."""

    def targets(self, label: Sequence[Any], where: Sequence[Any], source: str) -> list[int]:
        """Of the rows of a label column.

        Raises:
            UserError: a label that cannot be one; with `source` and its line.
        """
        rows = [cells.names(cell, SINGLE, None) for cell in label]
        if [] in rows:
            raise UserError(f"{source}, line {where[rows.index([])]}: the label is empty.")
        return [number for (number,) in self._numbers(rows, where, source)]

    def check(self, targets: Sequence[int], source: str) -> None:
        """Raises: UserError where every row is of weight 0, over which no loss can be averaged."""
        found = sorted(set(targets))
        if not any(self.weights[i] for i in found):
            raise UserError(
                f"{source}: all rows are {' or '.join(repr(self.labels[i]) for i in found)}, which "
                "task.class_weights gives 0, so that these rows have no loss. Add rows of another "
                "class, or give one of these a weight."
            )

    def losses(self, logits_EC: jax.Array, targets_E: jax.Array) -> Losses:
        logp_EC = jax.nn.log_softmax(logits_EC)
        picked_E = jnp.take_along_axis(logp_EC, targets_E[:, None], axis=1)[:, 0]
        losses_E = -(1 - self.smoothing) * picked_E - self.smoothing * logp_EC.mean(-1)
        return losses_E, jnp.asarray(self.weights, jnp.float32)[targets_E]

    def scores(self, logits_NC: np.ndarray, targets_N: np.ndarray) -> dict[str, float]:
        """Metrics of a split, the main one first."""
        return metrics.classification(self.answers(logits_NC), targets_N, self.labels)

    def answers(self, logits_NC: np.ndarray) -> np.ndarray:
        """In the form of targets."""
        return logits_NC.argmax(-1)

    def warning(self, answers_N: np.ndarray, targets_N: np.ndarray) -> str | None:
        """What looks broken in the answers as a whole."""
        return metrics.one_class_warning(answers_N, targets_N, self.labels)

    def readable(self, target: Any) -> str:
        """A target as people write it."""
        return self.labels[int(target)]

    def decode(self, logits_C: np.ndarray) -> dict[str, Any]:
        """The answer to one row as `predict` prints it."""
        powers_C = np.exp(logits_C - logits_C.max())
        scores = self._by_label(powers_C / powers_C.sum())
        return {"prediction": max(scores, key=scores.__getitem__), "scores": scores}


@dataclass(frozen=True)
class MultiLabel(_Classes):
    """Any number of classes a row; its target has a 1 for each, a 0 for the others."""

    separator: str | None

    main_metric = "micro_f1"
    target_dtype = np.float32

    @property
    def target_shape(self) -> tuple[int, ...]:
        return (len(self.labels),)

    def targets(self, label: Sequence[Any], where: Sequence[Any], source: str) -> list[list[float]]:
        rows = [cells.names(cell, MULTI, self.separator) for cell in label]
        on = self._numbers(rows, where, source)
        return [[float(i in numbers) for i in range(len(self.labels))] for numbers in on]

    def losses(self, logits_EC: jax.Array, targets_EC: jax.Array) -> Losses:
        losses_EC = optax.sigmoid_binary_cross_entropy(logits_EC, targets_EC)
        return (losses_EC * jnp.asarray(self.weights, jnp.float32)).mean(-1), 1.0

    def scores(self, logits_NC: np.ndarray, targets_NC: np.ndarray) -> dict[str, float]:
        return metrics.multi_label(_sigmoid(logits_NC), targets_NC, self.labels)

    def answers(self, logits_NC: np.ndarray) -> np.ndarray:
        return (_sigmoid(logits_NC) >= metrics.THRESHOLD).astype(np.int64)

    def warning(self, answers_NC: np.ndarray, targets_NC: np.ndarray) -> str | None:
        return metrics.one_set_warning(answers_NC, targets_NC, self.labels)

    def readable(self, target: Any) -> list[str]:
        return [name for name, on in zip(self.labels, target, strict=True) if on]

    def decode(self, logits_C: np.ndarray) -> dict[str, Any]:
        prediction = self.readable(self.answers(logits_C))
        return {"prediction": prediction, "scores": self._by_label(_sigmoid(logits_C))}


class Regression:
    """A number a row."""

    main_metric = "pearson"
    target_dtype = np.float32
    target_shape = ()

    def targets(self, label: Sequence[Any], where: Sequence[Any], source: str) -> list[float]:
        places = zip(label, where, strict=True)
        return [cells.number(cell, f"{source}, line {at}") for cell, at in places]

    def losses(self, logits_EC: jax.Array, targets_E: jax.Array) -> Losses:
        return jnp.square(logits_EC[:, 0] - targets_E), 1.0

    def scores(self, logits_NC: np.ndarray, targets_N: np.ndarray) -> dict[str, float]:
        return metrics.regression(self.answers(logits_NC), targets_N)

    def answers(self, logits_NC: np.ndarray) -> np.ndarray:
        return logits_NC[:, 0]

    def per_class(self, answers_N: np.ndarray, targets_N: np.ndarray) -> None:
        return None

    def warning(self, answers_N: np.ndarray, targets_N: np.ndarray) -> str | None:
        return metrics.one_number_warning(answers_N, targets_N)

    def readable(self, target: Any) -> float:
        return float(target)

    def decode(self, logits_C: np.ndarray) -> dict[str, Any]:
        return {"prediction": float(logits_C[0])}


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(0.5 * logits))
