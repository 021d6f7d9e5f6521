"""The model card of an export: where it comes from, how it scores, how to use it."""

from collections.abc import Mapping

from jaxft.trained import Trained


def model_card(trained: Trained) -> str:
    """Markdown with the front matter that the hub reads."""
    experiment, workdir = trained.experiment, trained.workdir
    config, result = experiment.config, workdir.read_json("result.json") or {}
    base = config.model.pretrained
    front = [
        "---",
        "library_name: transformers",
        f"pipeline_tag: {experiment.module.PIPELINE}",
        "tags: [jaxft]",
    ]
    front += [f"base_model: {base}"] if base and not base.startswith(("/", ".", "~")) else []
    rows = [
        f"| {split} | "
        + ", ".join(f"{name} {value:.4f}" for name, value in result[split].items())
        + " |"
        for split in ("validation", "test")
        if split in result
    ]
    scored = result.get("best_step") == trained.step
    optim, train = config.optim, config.train
    length = (
        f"{train.max_steps} updates" if train.max_steps else f"{train.num_train_epochs:g} epochs"
    )
    return "\n".join(
        [
            *front,
            "---",
            "",
            f"# {base or experiment.drawn.config['model_type']}, fine-tuned with jaxft",
            "",
            f"All weights of {base or 'a fresh model'} were trained on `{config.data.train}` "
            f"({experiment.task.describe()}); these are those after {trained.step} updates.",
            "",
            *(
                ["## Scores", "", "| split | scores |", "|---|---|", *rows, ""]
                if rows and scored
                else []
            ),
            *_added(config.model.new_tokens, base),
            "## Training",
            "",
            f"{optim.name}, learning rate {optim.learning_rate:g} ({optim.lr_scheduler_type}, "
            "warmup "
            f"{optim.warmup_steps:g}), weight decay {optim.weight_decay:g}, layer decay "
            f"{optim.layer_decay:g}, "
            f"batch {train.batch_size}, {length}, at most {config.data.max_length} tokens, seed "
            f"{config.seed}.",
            "",
            *(["```", result["command"], "```", ""] if "command" in result else []),
            "## Use",
            "",
            "```python",
            "from transformers import pipeline",
            "",
            f'run = pipeline("{experiment.module.PIPELINE}", model="THIS_FOLDER")',
            "```",
            "",
        ]
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
