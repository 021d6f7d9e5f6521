"""Scores of a whole split, from host arrays. N rows, C classes.

scikit-learn and scipy take a second to import, so they are imported where a score is computed.
"""

import warnings
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

THRESHOLD = 0.5  # a multi-label class is predicted from this probability on
SAME_NUMBER = 1e-3  # of the targets' standard deviation: answers that spread no further are one
MOST_NAMED = 100  # classes, up to which a drawn confusion matrix names each
MOST_CONFUSED = 2000  # classes, up to which one is made: it has a count for every two of them

Ints = NDArray[np.int64]


def classification(
    predictions: ArrayLike, targets: ArrayLike, labels: Sequence[str]
) -> dict[str, float]:
    """Accuracy, macro and micro F1 and Matthews correlation of one class a row.

    predictions, targets: int[N], indices into labels. A class that is neither in the targets nor
    predicted is left out of the macro mean, as scikit-learn does by default: a split that lacks a
    class can still reach 1.0.
    """
    from sklearn import metrics as sk

    predicted, true = _classes(predictions, targets, labels)
    present = np.union1d(predicted, true)
    macro = sk.f1_score(true, predicted, labels=present, average="macro", zero_division=0)
    micro = sk.f1_score(true, predicted, labels=present, average="micro", zero_division=0)
    # with one class in sight the correlation is 0 by definition, and scikit-learn warns
    matthews = sk.matthews_corrcoef(true, predicted) if len(present) > 1 else 0.0
    return {
        "accuracy": float(np.mean(predicted == true)),
        "macro_f1": float(macro),
        "micro_f1": float(micro),
        "matthews": float(matthews),
    }


def multi_label(
    probabilities: ArrayLike, targets: ArrayLike, labels: Sequence[str]
) -> dict[str, float]:
    """Micro and macro F1 and exact-match accuracy of any number of classes a row.

    probabilities: float[N, C]; targets: 0 or 1 [N, C]. Every score is NaN when a probability is.
    """
    from sklearn import metrics as sk

    chance = np.asarray(probabilities, np.float64)
    true = np.asarray(targets).astype(bool)
    if chance.shape != true.shape or chance.ndim != 2 or chance.shape[1] != len(labels):
        given = f"probabilities {chance.shape}, targets {true.shape}"
        raise ValueError(f"{given}: want [N, {len(labels)}]")
    if not len(true):
        raise ValueError("no rows to score")
    if not np.isfinite(chance).all():
        return dict.fromkeys(("micro_f1", "macro_f1", "accuracy"), float("nan"))
    predicted = chance >= THRESHOLD
    if chance.shape[1] == 1:  # scikit-learn reads one column as a binary task
        score = float(sk.f1_score(true[:, 0], predicted[:, 0], zero_division=0))
        micro, macro = score, score
    else:
        micro = float(sk.f1_score(true, predicted, average="micro", zero_division=0))
        macro = float(sk.f1_score(true, predicted, average="macro", zero_division=0))
    return {
        "micro_f1": micro,
        "macro_f1": macro,
        "accuracy": float(np.mean((predicted == true).all(axis=1))),
    }


def regression(predictions: ArrayLike, targets: ArrayLike) -> dict[str, float]:
    """Pearson and Spearman correlation, mean squared and mean absolute error.

    predictions, targets: float[N]. A correlation with a constant is 0.0; every score is NaN when a
    prediction is.
    """
    from scipy import stats

    predicted = np.asarray(predictions, np.float64).reshape(-1)
    true = np.asarray(targets, np.float64).reshape(-1)
    if predicted.shape != true.shape or not len(true):
        raise ValueError(f"{len(predicted)} predictions for {len(true)} targets")
    if not (np.isfinite(predicted).all() and np.isfinite(true).all()):
        return dict.fromkeys(("pearson", "spearman", "mse", "mae"), float("nan"))
    pearson = spearman = 0.0
    if len(true) > 1:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", stats.ConstantInputWarning)
            warnings.simplefilter("ignore", stats.NearConstantInputWarning)
            pearson = float(np.nan_to_num(stats.pearsonr(predicted, true).statistic))
            spearman = float(np.nan_to_num(stats.spearmanr(predicted, true).statistic))
    return {
        "pearson": pearson,
        "spearman": spearman,
        "mse": float(np.mean((predicted - true) ** 2)),
        "mae": float(np.mean(np.abs(predicted - true))),
    }


def confusion_matrix(predictions: ArrayLike, targets: ArrayLike, labels: Sequence[str]) -> Ints:
    """Counts int[C, C]: the row is the true class, the column the predicted one."""
    predicted, true = _classes(predictions, targets, labels)
    size = len(labels)
    return np.bincount(true * size + predicted, minlength=size * size).reshape(size, size)


def class_counts(predictions: ArrayLike, targets: ArrayLike, labels: Sequence[str]) -> Ints:
    """Counts int[C, 3]: the rows of each class, its answers, and the right ones of these.

    predictions, targets: int[N], a class a row, or 0 or 1 [N, C], any number of them.
    """
    if np.ndim(targets) == 2:
        predicted, true = np.asarray(predictions, bool), np.asarray(targets, bool)
        return np.stack([side.sum(axis=0) for side in (true, predicted, true & predicted)], axis=1)
    predicted, true = _classes(predictions, targets, labels)
    sides = (true, predicted, true[predicted == true])
    return np.stack([np.bincount(side, minlength=len(labels)) for side in sides], axis=1)


def majority_share(predictions: ArrayLike) -> float:
    """Share of the rows that got the commonest answer. predictions: int[N]."""
    counts = np.unique(np.asarray(predictions), return_counts=True)[1]
    return float(counts.max() / counts.sum())


def one_class_warning(
    predictions: ArrayLike, targets: ArrayLike, labels: Sequence[str]
) -> str | None:
    """What to tell a user whose model answers one class whatever it reads, else None.

    predictions, targets: int[N]. A split that holds one class only says nothing about the model.
    """
    predicted, true = _classes(predictions, targets, labels)
    if majority_share(predicted) < 1.0 or len(np.unique(true)) < 2:
        return None
    right = float(np.mean(predicted == true))
    return _same_answer(
        repr(labels[predicted[0]]),
        len(predicted),
        f"right for {right:.1%} of them; {len(np.unique(true))} classes occur",
    )


def one_set_warning(
    predictions: ArrayLike, targets: ArrayLike, labels: Sequence[str]
) -> str | None:
    """As `one_class_warning`, of any number of classes a row: 0 or 1 [N, C]."""
    predicted, true = np.asarray(predictions, bool), np.asarray(targets, bool)
    occur = len(np.unique(true, axis=0))
    if (predicted != predicted[0]).any() or occur < 2:
        return None
    names = [repr(name) for name, on in zip(labels, predicted[0], strict=True) if on]
    right = float(np.mean((predicted == true).all(axis=1)))
    return _same_answer(
        " and ".join(names) or "no label",
        len(predicted),
        f"right for {right:.1%} of them; {occur} sets of labels occur",
    )


def one_number_warning(predictions: ArrayLike, targets: ArrayLike) -> str | None:
    """As `one_class_warning`, of numbers: float[N]."""
    predicted, true = np.asarray(predictions, np.float64), np.asarray(targets, np.float64)
    if not true.std() or predicted.std() > SAME_NUMBER * true.std():
        return None
    return _same_answer(
        f"{predicted.mean():.4g}",
        len(predicted),
        f"the right ones are {true.min():g} to {true.max():g}",
    )


def _same_answer(answer: str, rows: int, truth: str) -> str:
    return (
        f"The model answers {answer} for all {rows} rows ({truth}): it has learned nothing from "
        "the texts so far. Early in a run this can pass. If it stays: a lower optim.learning_rate, "
        "more optim.warmup_steps, another seed, an optimizer with bias correction (adamw has it)."
    )


def constant_answer(baseline: Mapping[str, float]) -> str:
    """What is always answered to reach the scores of `data.inspection.baseline`."""
    return "the mean" if "mse" in baseline else "the commonest answer"


def _classes(
    predictions: ArrayLike, targets: ArrayLike, labels: Sequence[str]
) -> tuple[Ints, Ints]:
    predicted, true = np.asarray(predictions, np.int64), np.asarray(targets, np.int64)
    if predicted.shape != true.shape or predicted.ndim != 1 or not len(true):
        raise ValueError(f"predictions {predicted.shape} and targets {true.shape}: want [N], N > 0")
    both = np.concatenate([predicted, true])
    if both.min() < 0 or both.max() >= len(labels):
        raise ValueError(f"class {both.min()} to {both.max()}, but labels has {len(labels)}")
    return predicted, true
