"""The model of a run: drawn for its devices, and held against its source, data and tokenizer."""

from collections.abc import Mapping
from dataclasses import replace
from types import ModuleType
from typing import Any

import jax
from jax.sharding import Mesh

from jaxft import pretrained
from jaxft.config import Config
from jaxft.errors import UserError
from jaxft.hardware import (
    check_host_memory,
    choose_attention,
    choose_dtype,
    choose_matmul_precision,
    has_amx,
)
from jaxft.models import Blueprint
from jaxft.nn.layers import Compute
from jaxft.source import Source
from jaxft.stderr import Say


def draw(
    config: Config,
    hf_config: Mapping[str, Any],
    module: ModuleType,
    task: Any,
    mesh: Mesh,
    say: Say,
) -> Blueprint:
    """The model that a `config.json` and a run's config describe, for the devices of a mesh.

    Raises:
        UserError: it is not understood, or these devices cannot compute it that way.
    """
    model, device = config.model, mesh.devices.flat[0]
    rates = ("dropout", "attention_dropout", "classifier_dropout")
    dtype = choose_dtype(model.dtype, device)
    precision = choose_matmul_precision(model.matmul_precision, dtype)
    jax.config.update("jax_default_matmul_precision", precision)
    check_host_memory(config.optim.offload, model.kept_activations, device)
    compute = Compute(
        dtype,
        activation_checkpointing=model.activation_checkpointing,
        kept_activations=tuple(sorted(model.kept_activations.items())),
        unroll_layers=device.platform == "cpu",
    )
    drawn = Blueprint.draw(
        hf_config,
        output=module.OUTPUT,
        num_labels=task.num_labels,
        compute=compute,
        dropouts={name: rate for name in rates if (rate := getattr(model, name)) is not None},
    )
    attention = choose_attention(
        model.attention,
        dtype,
        drawn.attention_dropout,
        device,
        head_width=drawn.dims.head_width,
        packed=config.data.packing != "none",
        parts=mesh.shape["context"],
    )
    products = f", products in {precision}" if precision not in (None, dtype) else ""
    kept = f"checkpointing {model.activation_checkpointing}"
    say(f"Compute: {dtype}{products}, attention {attention}, {kept}")
    if device.platform == "cpu" and precision == "float32" and has_amx():
        say(
            "This processor multiplies bfloat16 several times faster (AMX): "
            "--config.model.matmul_precision=bfloat16 rounds what is multiplied, and nothing else."
        )
    return drawn.redraw(replace(compute, attention=attention))


def check_head(source: Source, drawn: Blueprint, task: Any, new_head: bool) -> None:
    """Raises UserError where a head trained on other labels would be taken for one of these."""
    known = source.labels
    if source.checkpoint is None or new_head or not known:
        return
    heads = [name for w in drawn.weights.values() if w.in_head for name in w.hf_names]
    if all(name in source.checkpoint.tensors for name in heads) and tuple(task.labels) != known:
        raise UserError(
            f"The checkpoint's head knows the labels {', '.join(known[:10])}; the data hold "
            f"{', '.join(task.labels[:10])}. Rename the data's labels, or start a fresh head with "
            "model.new_head=true."
        )


def check_lengths(drawn: Blueprint, tokenizer: Any, max_length: int) -> None:
    """Raises UserError where texts or tokens have no place in the model."""
    dims = drawn.dims
    if max_length > dims.max_length:
        raise UserError(
            f"data.max_length={max_length} is beyond the model's {dims.max_length} positions; use "
            "at most that."
        )
    if len(tokenizer) > dims.vocab_size:
        without = [name for name, i in tokenizer.get_vocab().items() if i >= dims.vocab_size]
        listed = ", ".join(map(repr, sorted(without)[:10]))
        raise UserError(
            f"The tokenizer has {len(tokenizer)} tokens, the embedding only {dims.vocab_size} "
            f"rows: there is none for {listed}{' ...' if len(without) > 10 else ''}. Where they "
            "were added, name them in model.new_tokens, which gives them rows; else check "
            "model.pretrained and model.tokenizer, which do not belong together."
        )


def check_padding(drawn: Blueprint, tokenizer: Any, say: Say) -> None:
    """Raises UserError where every text has a token that the model takes for padding: transformers
    gives it no position of its own. Only RoBERTa's positions depend on that.
    """
    padding = getattr(drawn.dims, "pad_token_id", None)
    if padding in (None, tokenizer.pad_token_id):
        return
    if (token := tokenizer.convert_ids_to_tokens(padding)) is None:
        return
    clash = (
        f"The model pads with token {padding} (pad_token_id in its config.json), the tokenizer "
        f"with {tokenizer.pad_token_id}, and calls {padding} {token!r}"
    )
    if padding in tokenizer("")["input_ids"]:
        raise UserError(
            f"{clash}, which every text has. Model and tokenizer do not belong together, or a copy "
            "of the model needs the pad_token_id that it was trained with."
        )
    say(f"WARNING: {clash}. In texts that have it transformers counts other positions than jaxft.")


def say_vocabulary(drawn: Blueprint, tokenizer: Any, tensor: int, say: Say) -> None:
    """What `mesh.tensor` cannot split."""
    size = drawn.dims.vocab_size
    if lacking := -size % tensor:
        more = max(size - len(tokenizer), 0) + lacking  # spare rows are taken first
        say(
            f"WARNING: mesh.tensor={tensor} does not divide the vocabulary of {size}, so that it "
            f"splits neither embedding nor head. {more} more in model.new_tokens, such as "
            f"'<spare 1>', would make it {size + lacking}."
        )


def say_match(matched: pretrained.Match | None, say: Say) -> None:
    """Which weights come from the checkpoint, and which do not."""
    if matched is None:
        say("Weights: all initialised at random")
        return
    say(f"Weights: {len(matched.tensors)} from the checkpoint, {len(matched.new)} new")
    for weight in matched.new:
        say(f"  NEW, initialised at random: {weight.hf} {list(weight.hf_shape)}")
    reasons: dict[str, list[str]] = {}
    for name, why in matched.unused.items():
        reasons.setdefault(why, []).append(name)
    for why, names in reasons.items():
        listed = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
        say(f"  not used ({why}): {listed}")
