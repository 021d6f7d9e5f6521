"""What looks wrong in a report of `data.inspection`, or in a setting for its data, in sentences.
Nothing here stops a run.
"""

from collections.abc import Mapping
from typing import Any

from jaxft.data.plan import Plan

MANY_NUMBERS = 30  # whole numbers beyond so many are rather amounts than the names of classes


def advise(
    report: Mapping[str, Any],
    *,
    learning_rate: float,
    num_train_epochs: float,
    warmup_steps: float,
    parameters: int,
    optimizer: str = "adamw",
    pretrained: bool = True,
) -> list[str]:
    """Plain sentences where the data, or a setting for this data, looks wrong; most are habits of
    fine-tuning, not laws. ``parameters`` is the model's number of weights.

    Source: the ranges of Devlin et al. 2018 (A.3) and Mosbach et al. 2021 for base-size models.
    """
    name, train = next(iter(report["splits"].items()))
    said = _about_labels(name, train["labels"])
    if train["rows"] < 500:
        said.append(
            f"{train['rows']} {name} rows are few: scores will differ between seeds by points. Run "
            "several seeds (--config.seed) and compare their means."
        )
    if train["rows"] >= 10_000 and num_train_epochs > 5:
        said.append(
            f"{num_train_epochs:g} epochs over {train['rows']:,} rows are many: 2 to 4 usually do "
            "(train.num_train_epochs), more tends to overfit."
        )
    if pretrained and optimizer == "adamw":
        said += _about_rate(learning_rate, parameters)
    if pretrained and warmup_steps == 0 and learning_rate > 0:
        said.append(
            "No warmup: the first updates are large while the optimizer's averages are empty, and "
            "some seeds collapse. optim.warmup_steps=0.1 is the usual choice."
        )
    for split_name, split in report["splits"].items():
        tokens = split["lengths"]
        if tokens["truncated"] > 0.01:
            said.append(
                f"{tokens['truncated']:.1%} of the {split_name} rows are longer than "
                f"data.max_length={report['max_length']} and lose their ends; 99 % have at most "
                f"{tokens['p99']} tokens, the longest {tokens['max']}."
            )
    for pair in report["overlap"]:
        if shared := pair["exact"] + pair["near"]:
            said.append(
                f"{shared} of {pair['rows']} {pair['of']} rows ({shared / pair['rows']:.1%}) also "
                f"stand in {pair['with']}, exactly or nearly: the scores on {pair['of']} flatter."
            )
    return said


def about_batches(plan: Plan) -> list[str]:
    """What to change where an epoch does not fill one batch."""
    rows, size = plan.items_per_epoch, plan.batch_size
    if rows >= size:
        return []
    full = f" of {plan.max_length} tokens" if plan.packing == "rows" else ""
    return [
        f"train.batch_size={size} is larger than the {rows} train rows{full}: each epoch is one "
        "update padded with nothing. Take a smaller one."
    ]


def _about_labels(name: str, labels: Mapping[str, Any] | None) -> list[str]:
    if not labels or labels["kind"] == "regression":
        return []
    said = []
    classes = len(labels["counts"])
    if classes > MANY_NUMBERS and all(name.lstrip("-").isdecimal() for name in labels["counts"]):
        said.append(
            f"{classes} classes, all of them whole numbers, are learnt as names without an order. "
            "If they are amounts or marks: --config.task.problem_type=regression."
        )
    if few := [f"{label} ({n})" for label, n in labels["counts"].items() if n < 10]:
        said.append(
            f"{len(few)} of {classes} classes have fewer than 10 {name} rows and "
            f"will hardly be learned: {', '.join(few[-5:])}{', ...' if len(few) > 5 else ''}."
        )
    if labels["share"] > 0.8:
        said.append(
            f"{labels['share']:.0%} of the {name} rows are {labels['commonest']!r}: accuracy says "
            "little here. Watch macro F1, and try class weights."
        )
    return said


def _about_rate(learning_rate: float, parameters: int) -> list[str]:
    small = parameters < 50_000_000  # smaller models stand, and want, larger steps
    low, high = 5e-6, 5e-4 if small else 1e-4
    if parameters > 1_000_000_000:
        low, high = 5e-7, 5e-5
    if learning_rate == 0:
        return ["optim.learning_rate=0: no weight will change."]
    if low <= learning_rate <= high:
        return []
    side, risk = ("below", "hardly learn") if learning_rate < low else ("above", "forget")
    return [
        f"optim.learning_rate={learning_rate:g} is far {side} what suits a pretrained model of "
        f"{parameters / 1e6:,.0f} M weights ({low * 2:g} to {high / 2:g}): it may {risk}."
    ]
