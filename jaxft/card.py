"""The model card of an export: where it comes from, how it scores, how to use it."""

from collections.abc import Mapping
from typing import Any

from jaxft.config import Config
from jaxft.experiment import Experiment
from jaxft.trained import Trained


def model_card(trained: Trained, hub_id: str | None) -> str:
    """Markdown with the front matter that the hub reads; `hub_id` is of the model it began as."""
    experiment, config = trained.experiment, trained.experiment.config
    result = trained.workdir.result() or {}
    base, pipeline = config.model.pretrained, experiment.module.PIPELINE
    return "\n".join(
        [
            "---",
            "library_name: transformers",
            f"pipeline_tag: {pipeline}",
            "tags: [jaxft]",
            *([f"base_model: {hub_id}"] if hub_id else []),
            "---",
            "",
            f"# {base or experiment.drawn.config['model_type']}, fine-tuned with jaxft",
            "",
            f"All weights of {base or 'a fresh model'} were trained on `{config.data.train}` "
            f"({experiment.task.describe()}); these are those after {trained.step} updates.",
            "",
            *(_scores(result) if result.get("best_step") == trained.step else []),
            *_added(config.model.new_tokens, base),
            "## Training",
            "",
            _recipe(config),
            "",
            *(["```", result["command"], "```", ""] if "command" in result else []),
            "## Use",
            "",
            "```python",
            "from transformers import pipeline",
            "",
            f'run = pipeline("{pipeline}", model="THIS_FOLDER"{_cut(experiment)})',
            "```",
            "",
        ]
    )


def _cut(experiment: Experiment) -> str:
    """Texts to classify are read as far as in training; what is written has no such end."""
    if experiment.module.PIPELINE != "text-classification":
        return ""
    return f", truncation=True, max_length={experiment.config.data.max_length}"


def _scores(result: Mapping[str, Any]) -> list[str]:
    rows = []
    for split in ("validation", "test"):
        if split in result:
            scores = ", ".join(f"{name} {value:.4f}" for name, value in result[split].items())
            rows.append(f"| {split} | {scores} |")
    return ["## Scores", "", "| split | scores |", "|---|---|", *rows, ""] if rows else []


def _recipe(config: Config) -> str:
    optim, train, epochs = config.optim, config.train, config.train.num_train_epochs
    length = f"{train.max_steps} updates" if train.max_steps else f"{epochs:g} epochs"
    return (
        f"{optim.name}, learning rate {optim.learning_rate:g} ({optim.lr_scheduler_type}, warmup "
        f"{optim.warmup_steps:g}), weight decay {optim.weight_decay:g}, layer decay "
        f"{optim.layer_decay:g}, batch {train.batch_size}, {length}, at most "
        f"{config.data.max_length} tokens, seed {config.seed}."
    )


def _added(tokens: Mapping[str, str | None], base: str | None) -> list[str]:
    """What was added to the vocabulary, and what its rows were before training."""
    if not tokens:
        return []
    mean = "the mean of the rows of all tokens before" if base else "drawn at random, as all rows"
    return [
        "## Added tokens",
        "",
        "| token | its rows before training |",
        "|---|---|",
        *(
            f"| `{token}` | {mean if text is None else f'the mean of those of `{text}`'} |"
            for token, text in tokens.items()
        ),
        "",
    ]
