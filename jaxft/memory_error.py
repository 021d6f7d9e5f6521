"""Out of memory, in words: what takes it and what to do, where XLA names only what failed."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from math import prod
from typing import Any

import jax

from jaxft.errors import UserError
from jaxft.nn.losses import LOGITS_BYTES
from jaxft.parts import Parts
from jaxft.sharding import bytes_per_device


@contextmanager
def explained(causes: Callable[[], Mapping[str, int]], plan_command: str) -> Iterator[None]:
    """Turns XLA's RESOURCE_EXHAUSTED, of a compilation or of a run, into a UserError with the three
    largest causes and the command that says what would fit.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        largest = sorted(causes().items(), key=lambda pair: -pair[1])[:3]
        listed = [f"  {size / 1e9:9.3f} GB of {what}" for what, size in largest]
        raise UserError(
            "\n".join(
                [
                    f"Out of memory: {str(error).strip().splitlines()[0]}",
                    "The largest parts on each device are about",
                    *listed,
                    "More devices with mesh.fsdp, model.activation_checkpointing=full, a smaller "
                    "train.batch_size or more train.gradient_accumulation_steps take less. What "
                    "would fit says",
                    f"  {plan_command}",
                ]
            )
        ) from error


def memory_by_cause(parts: Parts) -> dict[str, int]:
    """Bytes on one device by what they are for; the weights' from their shardings, the rest from
    the shapes of one micro-batch, with no split over `tensor`.
    """
    experiment, state = parts.experiment, parts.abstract
    places = jax.tree.map(lambda x: x.sharding, state)
    params = bytes_per_device(state.params, places.params)
    micro_batches = parts.config.train.gradient_accumulation_steps
    rows = parts.plan.shape[0] // micro_batches // experiment.row_shards
    width = parts.plan.widths[-1]
    causes = {
        "parameters": params,
        "gradients": params * (1 if micro_batches == 1 else 2),  # the sum and what is added to it
        "optimizer state": bytes_per_device(state.opt_state, places.opt_state),
        "activations kept for the backward pass": rows * _kept_per_row(parts, width),
    }
    if experiment.module.OUTPUT == "causal_lm":
        logits = 4 * rows * width * experiment.drawn.dims.vocab_size
        causes["logits of one chunk of the loss and their gradient"] = 2 * min(logits, LOGITS_BYTES)
    return causes


def _kept_per_row(parts: Parts, width: int) -> int:
    """Bytes that the forward pass leaves for the backward pass, for each row of a micro-batch: what
    two more rows per shard leave than one. Traced only; nothing is computed.
    """
    experiment = parts.experiment
    batch, key = parts.source.empty(width), jax.eval_shape(jax.random.key, 0)

    def kept(rows: int) -> int:
        some = jax.tree.map(lambda x: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype), batch)

        def forward(params: Any, batch: Any, key: jax.Array) -> Any:
            def loss(params: Any) -> jax.Array:
                return experiment.task.loss(experiment.drawn.merge(params), batch, key)[0]

            return jax.vjp(loss, params)[1]

        with jax.set_mesh(experiment.mesh):
            backward = jax.eval_shape(forward, parts.abstract.params, some, key)
        return sum(prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(backward))

    shards = experiment.row_shards
    return (kept(2 * shards) - kept(shards)) // shards
