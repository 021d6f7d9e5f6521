"""Sequence classification and regression: one label, several labels or a number for a text or a
pair of texts.

B rows, M examples a row, E = B * M, N examples of a split, C classes, L tokens.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from types import MappingProxyType
from typing import Any, Literal

import jax
import numpy as np
from datasets import Dataset

from jaxft import metrics
from jaxft.data import labels as cells
from jaxft.data import sources
from jaxft.data.batches import Layout
from jaxft.data.encoding import encode, with_padding
from jaxft.data.features import Rows
from jaxft.data.labels import Problem
from jaxft.data.splits import cut_validation
from jaxft.errors import UserError
from jaxft.nn.tokens import Batch, Tokens
from jaxft.problems import MULTI, SINGLE, MultiLabel, Regression, SingleLabel
from jaxft.tasks import Base

OUTPUT = "classify"
PIPELINE = "text-classification"
AUTO_MODEL = "AutoModelForSequenceClassification"
READ_BY = {
    "label_separator": (MULTI,),
    "class_weights": (SINGLE, MULTI),
    "label_smoothing": (SINGLE,),
}
"""Which problems read an option; for another it must stay at its default."""
COLUMNS = {"text": "text_column", "text_pair": "text_pair_column", "label": "label_column"}
"""What a row needs -> the key of `data` that says which column it is."""
TEXTS = ("text", "text_pair")
LABEL = "label"


def reading(data: Any, answers: bool) -> dict[str, Any]:
    """What `read` depends on beside the source."""
    wanted = {name: getattr(data, key) for name, key in COLUMNS.items() if answers or name != LABEL}
    return {"columns": wanted, **data.text_format}


read = sources.read


def objective(data: Any) -> str:
    """What is learnt, as `planning.advice` knows it."""
    return "classify"


def cut(dataset: Dataset, size: int | float, options: "Options") -> tuple[Dataset, Dataset]:
    """Training and validation rows, each label with its share of both."""
    return cut_validation(dataset, size, options.names(dataset[LABEL][:]))


@dataclass(frozen=True, kw_only=True)
class Options:
    """The config keys of `task` beside its name."""

    problem_type: Literal["auto"] | Problem = field(
        default="auto", metadata={"help": "what the label column holds; auto reads the data"}
    )
    label_separator: str | None = field(
        default=None, metadata={"help": "splits a cell that holds several labels (multi-label)"}
    )
    class_weights: Literal["balanced"] | dict[str, float] | None = field(
        default=None,
        metadata={"help": "'balanced', or a factor per label name", "must": ">= 0"},
    )
    label_smoothing: float = field(
        default=0.0,
        metadata={"help": "share of the target spread over all labels", "must": ">= 0 and < 1"},
    )

    def problem(self, label: Sequence[Any]) -> Problem:
        """What a label column holds."""
        if self.problem_type == "auto":
            return cells.guess(label, self.label_separator)
        return self.problem_type

    def names(self, label: Sequence[Any]) -> list[list[str]]:
        """The label names of each row; none of numbers."""
        problem = self.problem(label)
        return [cells.names(cell, problem, self.label_separator) for cell in label]


@dataclass(frozen=True)
class Task(Base):
    """A problem with its labels; made from the data, or from a `config.json` that records them."""

    problem: Problem
    labels: tuple[str, ...]
    weights: tuple[float, ...]
    label_smoothing: float = 0.0
    separator: str | None = None

    silence = MappingProxyType({"prediction": None})
    """What `predict` says of a row without text."""

    @cached_property
    def kind(self) -> SingleLabel | MultiLabel | Regression:
        """What follows from the problem."""
        if self.problem == "regression":
            return Regression()
        if self.problem == MULTI:
            return MultiLabel(self.labels, self.weights, self.separator)
        return SingleLabel(self.labels, self.weights, self.label_smoothing)

    @classmethod
    def from_rows(cls, options: Options, rows: Rows, known: Sequence[str]) -> "Task":
        """Of the training split; `known` are the labels of a checkpoint's own head."""
        return cls.from_data(options, rows.dataset[LABEL][:], known, rows.source)

    @classmethod
    def from_data(
        cls, options: Options, label: Sequence[Any], known: Sequence[str] = (), source: str = ""
    ) -> "Task":
        """Reads problem and label names off the training split, which comes from `source`; where
        these are `known`, the labels of a checkpoint's own head, their order is kept.

        Raises:
            UserError: one class only, no numbers, weights for labels that are not there.
        """
        problem = options.problem(label)
        for key, problems in READ_BY.items():
            value = getattr(options, key)
            if value and problem not in problems:
                raise UserError(
                    f"task.{key}={value!r} says nothing about {problem}, which these labels are "
                    "(or task.problem_type says so); leave it out."
                )
        if problem == "regression":
            return cls(problem, ("score",), (1.0,))
        counts = Counter(chain.from_iterable(options.names(label)))
        if len(counts) < 2:
            raise UserError(
                f"{source}: the training labels hold one class only "
                f"({', '.join(counts) or 'none'}): there is nothing to learn. "
                "Is data.label_column the right one?"
            )
        labels = cells.order(counts, known)
        weights = cells.class_weights(options.class_weights, labels, counts)
        return cls(problem, labels, weights, options.label_smoothing, options.label_separator)

    def prepare(self, tokenizer: Any) -> Any:
        """The tokenizer to train with and to export; transformers pools a decoder's last token that
        is no padding, and needs to know which is.
        """
        return with_padding(tokenizer)

    def config(self, tokenizer: Any) -> dict[str, Any]:
        """The fields of `config.json` that record the task."""
        return {
            "pad_token_id": tokenizer.pad_token_id,
            "problem_type": self.problem,
            "id2label": {str(i): name for i, name in enumerate(self.labels)},
            "label2id": {name: i for i, name in enumerate(self.labels)},
        }

    def describe(self) -> str:
        """The problem in words."""
        words = self.problem.replace("_", " ")
        if self.problem == "regression":
            return words
        listed = ", ".join(self.labels[:12]) + (", ..." if self.num_labels > 12 else "")
        return f"{words}, {self.num_labels} labels: {listed}"

    @property
    def num_labels(self) -> int:
        return len(self.labels)

    @property
    def main_metric(self) -> str:
        return self.kind.main_metric

    @property
    def score_names(self) -> tuple[str, ...]:
        """What `scores` gives, known before there is anything to score."""
        logits_1C = np.zeros((1, self.num_labels), np.float32)
        return ("loss", *self.kind.scores(logits_1C, self._no_targets(1)))

    def features(
        self, columns: Mapping[str, Sequence], tokenizer: Any, max_length: int, source: str
    ) -> dict[str, list]:
        """Token ids of each row, its length before it was cut, and its target if it has a label."""
        features = encode([columns[t] for t in TEXTS if t in columns], tokenizer, max_length)
        if LABEL in columns:
            features["target"] = self.kind.targets(columns[LABEL], columns["line"], source)
        return features

    def check(self, targets: Sequence[Any], source: str) -> None:
        if isinstance(self.kind, SingleLabel):
            self.kind.check(targets, source)

    def collate(self, layout: Layout) -> np.ndarray:
        """Targets of a batch: int32 [B, M], or float32 [B, M] or [B, M, C]."""
        if "target" in layout.columns:
            return layout.examples(np.asarray(layout.columns["target"], self.kind.target_dtype))
        return layout.examples(self._no_targets(len(layout.columns["input_ids"])))

    def _no_targets(self, examples: int) -> np.ndarray:
        return np.zeros((examples, *self.kind.target_shape), self.kind.target_dtype)

    def loss(self, model: Any, batch: Batch, key: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        """Sum of the weighted losses and sum of the weights."""
        body_key, head_key = (None, None) if key is None else jax.random.split(key)
        hidden_BLD = model(batch.tokens, key=body_key)
        losses_E, weights_E = self._losses(self._logits(model, hidden_BLD, batch, head_key), batch)
        return (losses_E * weights_E).sum(), weights_E.sum()

    def predict(self, model: Any, batch: Batch) -> dict[str, jax.Array]:
        """Logits, losses and weights of each example."""
        logits_EC = self._logits(model, model(batch.tokens), batch, None)
        losses_E, weights_E = self._losses(logits_EC, batch)
        return {"logits_NC": logits_EC, "losses_N": losses_E, "weights_N": weights_E}

    def logits(self, model: Any, tokens: Tokens) -> jax.Array:
        """What transformers' model of this task returns for rows of one example, [B, C]."""
        return model.classify(model(tokens), tokens)[:, 0]

    def _logits(
        self, model: Any, hidden_BLD: jax.Array, batch: Batch, key: jax.Array | None
    ) -> jax.Array:
        examples = batch.weights_BM.shape[1]
        logits_BMC = model.classify(hidden_BLD, batch.tokens, examples=examples, key=key)
        return logits_BMC.reshape(-1, self.num_labels)

    def _losses(self, logits_EC: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array]:
        targets_E = batch.targets.reshape(-1, *batch.targets.shape[2:])
        losses_E, factors = self.kind.losses(logits_EC, targets_E)
        return losses_E, batch.weights_BM.reshape(-1) * factors

    def scores(self, outputs: Mapping[str, np.ndarray], targets: Sequence[Any]) -> dict[str, float]:
        """Loss and metrics of a split; the main metric right after the loss."""
        weights_N = outputs["weights_N"]
        loss = float((outputs["losses_N"] * weights_N).sum() / weights_N.sum())
        return {"loss": loss, **self.kind.scores(outputs["logits_NC"], np.asarray(targets))}

    def worst(
        self, outputs: Mapping[str, np.ndarray], targets: Sequence[Any]
    ) -> list[dict[str, Any]]:
        """Wrong rows, those with the highest loss first: row, truth, prediction, confidence."""
        answers, found = self.kind.answers(outputs["logits_NC"]), []
        for row in np.argsort(-outputs["losses_N"], kind="stable"):
            if np.any(answers[row] != targets[row]):
                told = {"truth": targets[row], "prediction": answers[row]}
                shown = {key: _joined(self.readable(value)) for key, value in told.items()}
                scores = self.kind.decode(outputs["logits_NC"][row]).get("scores")
                shown |= {"confidence": max(scores.values())} if scores else {}
                found.append({"row": int(row), **shown})
        return found

    def readable(self, target: Any) -> Any:
        """A target as people write it: a label name, a list of them, or a number."""
        return self.kind.readable(target)

    def confusion(
        self, outputs: Mapping[str, np.ndarray], targets: Sequence[Any]
    ) -> np.ndarray | None:
        """None where C is too large for it, or where a row may have several labels or a number."""
        if self.problem != SINGLE or self.num_labels > metrics.MOST_CONFUSED:
            return None
        answers = self.kind.answers(outputs["logits_NC"])
        return metrics.confusion_matrix(answers, targets, self.labels)

    def per_class(
        self, outputs: Mapping[str, np.ndarray], targets: Sequence[Any]
    ) -> np.ndarray | None:
        """None where C is too large for it, or of numbers."""
        if self.num_labels > metrics.MOST_CONFUSED:
            return None
        return self.kind.per_class(self.kind.answers(outputs["logits_NC"]), np.asarray(targets))

    def warning(self, outputs: Mapping[str, np.ndarray], targets: Sequence[Any]) -> str | None:
        return self.kind.warning(self.kind.answers(outputs["logits_NC"]), np.asarray(targets))

    def respond(self, rows: Rows, tools: Any) -> Iterator[dict[str, Any]]:
        """What `predict` adds to each row."""
        return map(self.kind.decode, tools.outputs(rows)["logits_NC"])


def _joined(value: Any) -> Any:
    return (", ".join(value) or "none") if isinstance(value, list) else value
