"""The sections of the config: every key with its type, default, range, and a line for people."""
# ruff: noqa: RUF009 - key() makes a dataclasses.field, and that is no shared default.

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from jaxft.nn.remat import Activation, Place
from jaxft.values import CountOrShare

DEFAULT_EPOCHS = 3.0


def key(default: Any, what: str, must: str = "") -> Any:
    """A key of a section: its default, one line for people, the range as `values.within` reads it.

    A task's file, which knows no config, writes the same as `field(metadata={"help", "must"})`.
    """
    metadata = {"help": what, "must": must}
    if isinstance(default, dict | list):
        return dataclasses.field(default_factory=lambda: default.copy(), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class Model:
    """The network, and how it is computed."""

    pretrained: str | None = key(
        None, "checkpoint to start from: a folder, a hub id, or a short name such as bert-base"
    )
    config: dict[str, Any] | str | None = key(
        None, "to train from scratch: a folder or hub id with a config.json, or its fields"
    )
    tokenizer: str | None = key(None, "folder or hub id of another tokenizer than the model's own")
    new_tokens: dict[str, str | None] = key(
        {},
        "token to add -> text whose tokens' mean its rows begin as; None: the mean of all tokens",
    )
    new_head: bool = key(False, "start the head afresh even where the checkpoint has one")
    dtype: Literal["auto", "float32", "bfloat16"] = key(
        "auto", "precision of the computation; the weights are kept in float32"
    )
    matmul_precision: Literal["auto", "float32", "bfloat16"] = key(
        "auto",
        "what products of float32 arrays round them to; auto: float32, also where"
        " the device would round more",
    )
    attention: Literal["auto", "xla", "blocked", "cudnn", "splash"] = key(
        "auto", "attention kernel: blocked on CPU, splash on TPU, cuDNN's or XLA's on GPU"
    )
    activation_checkpointing: Literal["none", "full", "dots"] = key(
        "none", "recompute activations to save memory: of whole layers, or all but the matmuls"
    )
    kept_activations: dict[Activation, Place] = key(
        {}, "what full checkpointing does not recompute -> the memory it waits in"
    )
    dropout: float | None = key(None, "None: as the checkpoint says", ">= 0 and < 1")
    attention_dropout: float | None = key(None, "None: as the checkpoint says", ">= 0 and < 1")
    classifier_dropout: float | None = key(None, "None: as the checkpoint says", ">= 0 and < 1")


@dataclass(frozen=True, kw_only=True)
class Data:
    """Where the examples are, and how they become batches."""

    train: str | dict[str, float] | None = key(
        None,
        "a CSV, TSV, JSONL, Parquet or (causal_lm) text file, a saved folder, or a hub id; or "
        "several with weights, an epoch being one pass over the first",
        ">= 0",
    )
    validation: str | None = key(
        None, "None: cut from the training set, as where a flag gives data.train alone"
    )
    test: str | None = key(None, "scored once, after training")
    evaluations: dict[str, str] = key(
        {}, "name -> source: scored before training and at every evaluation, as eval/NAME/..."
    )
    text_column: str | int = key("text", "column name, or its position from 0", ">= 0")
    text_pair_column: str | int | None = key(None, "second text, for pairs", ">= 0")
    label_column: str | int = key("label", "column name, or its position from 0", ">= 0")
    delimiter: str | None = key(None, "between CSV columns; None: by the file's extension")
    quoting: bool = key(True, "whether double quotes enclose CSV fields")
    encoding: str = key("utf-8", "of the text files")
    header: bool = key(True, "whether the first CSV row holds the column names")
    validation_size: CountOrShare = key(
        0.1,
        "rows, or share of the rows, cut from the training set when validation is None; of one "
        "long text a share, its end",
        "> 0",
    )
    max_length: int = key(
        256,
        "tokens of a row at most: what is classified is cut to it, texts to learn are torn into "
        "several rows, answers that it would cut are dropped",
        ">= 2",
    )
    packing: Literal["batch", "rows", "none"] = key(
        "batch",
        "batch: the examples of an update share rows; rows: train.batch_size counts rows of "
        "max_length, each filled with examples; none: a row each, those of like length together",
    )
    max_dropped: float = key(
        0.01, "share of rows that may be dropped before the run stops", ">= 0 and <= 1"
    )
    cache_dir: str | None = key(None, "for tokenised data; None: jaxft/tokens in the user's cache")

    @property
    def text_format(self) -> dict[str, Any]:
        """How text files are written, as all that read them are told."""
        return {
            "delimiter": self.delimiter,
            "quoting": self.quoting,
            "encoding": self.encoding,
            "header": self.header,
        }

    @property
    def format_given(self) -> dict[str, Any]:
        """What of `text_format` is not as by default; dotted key -> value."""
        usual = Data().text_format
        return {f"data.{k}": v for k, v in self.text_format.items() if v != usual[k]}


@dataclass(frozen=True, kw_only=True)
class Optim:
    """The optimizer, its schedule, and the rates of single weights."""

    name: Literal["adamw", "adafactor", "lion", "sgd"] = key("adamw", "optimizer")
    learning_rate: float = key(5e-5, "peak rate, reached after the warmup", ">= 0")
    lr_scheduler_type: Literal[
        "cosine",
        "linear",
        "constant",
        "polynomial",
        "inverse_sqrt",
        "cosine_with_min_lr",
        "cosine_with_restarts",
        "slanted_triangular",
    ] = key("cosine", "how the rate goes on after the warmup")
    lr_scheduler_kwargs: dict[str, Any] = key({}, "options of the schedule, such as num_cycles")
    warmup_steps: CountOrShare = key(0.1, "updates over which the rate rises from 0", ">= 0")
    weight_decay: float = key(0.01, "of kernels and embeddings; biases and norms never", ">= 0")
    adam_beta1: float = key(0.9, "decay of the mean of the gradients", ">= 0 and < 1")
    adam_beta2: float = key(0.999, "decay of the mean of their squares", ">= 0 and < 1")
    adam_epsilon: float = key(1e-8, "added to the root of the second moment", "> 0")
    momentum: float = key(0.9, "of sgd", ">= 0 and < 1")
    max_grad_norm: float | None = key(1.0, "gradients are clipped to it; None: never", "> 0")
    moments_dtype: Literal["float32", "bfloat16"] = key(
        "float32", "how moments are stored; bfloat16 ones are rounded at random"
    )
    offload: bool = key(
        False, "keep float32 weights and moments in host memory, updated layer by layer"
    )
    layer_decay: float = key(
        1.0, "each layer's rate as a multiple of the layer's above it", "> 0 and <= 1"
    )
    head_lr_multiplier: float = key(
        1.0, "the head's rate as a multiple of optim.learning_rate", ">= 0"
    )
    lr_multipliers: dict[str, float] = key(
        {}, "regex over weight names -> multiple of the rate", ">= 0"
    )


@dataclass(frozen=True, kw_only=True)
class Train:
    """How long, in what portions, and what is looked at meanwhile."""

    num_train_epochs: float | None = key(
        None, f"passes over the training set; {DEFAULT_EPOCHS:g} where max_steps is None too", "> 0"
    )
    max_steps: int | None = key(None, "updates, instead of epochs", ">= 1")
    batch_size: int = key(32, "examples an update, over all devices and micro-batches", ">= 1")
    gradient_accumulation_steps: int = key(1, "micro-batches an update is summed from", ">= 1")
    eval_steps: CountOrShare = key(0.1, "updates between evaluations", "> 0")
    eval_batch_size: int | None = key(
        None, "examples an evaluation takes at once; None: as a micro-batch", ">= 1"
    )
    logging_steps: CountOrShare = key(10, "updates between log lines", "> 0")
    early_stopping_patience: int | None = key(
        None, "evaluations without a better score before the run ends; None: never", ">= 1"
    )
    report_to: list[Literal["tensorboard", "wandb"]] = key(
        ["tensorboard"], "where metrics go besides metrics.jsonl"
    )


@dataclass(frozen=True, kw_only=True)
class Mesh:
    """How many devices each axis splits over; one axis may be -1: all that are left."""

    data: int = key(-1, "copies of the network, each with its part of the batch", "-1 or >= 1")
    fsdp: int = key(1, "parts of batch, weights and optimizer state", "-1 or >= 1")
    context: int = key(1, "parts of each row's tokens, for long rows", "-1 or >= 1")
    tensor: int = key(1, "parts of each layer's heads and widths", "-1 or >= 1")
    zero_stage: int = key(
        3, "what fsdp splits: 2 gradients and optimizer state, 3 weights too", ">= 2 and <= 3"
    )


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Which states of the run are kept."""

    save_steps: CountOrShare | None = key(
        None, "updates between checkpoints; None: at every evaluation", "> 0"
    )
    keep_last: int = key(2, "newest checkpoints kept", ">= 1")
    keep_best: int = key(1, "best checkpoints kept", ">= 0")
    metric_for_best_model: str | None = key(None, "None: the task's own")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything that decides a run."""

    model: Model = dataclasses.field(default_factory=Model)
    task: Any  # the options that the task's own file declares, and the task's name
    data: Data = dataclasses.field(default_factory=Data)
    optim: Optim = dataclasses.field(default_factory=Optim)
    train: Train = dataclasses.field(default_factory=Train)
    mesh: Mesh = dataclasses.field(default_factory=Mesh)
    checkpoint: Checkpoint = dataclasses.field(default_factory=Checkpoint)
    seed: int = key(0, "of every random choice", ">= 0 and < 4294967296")
