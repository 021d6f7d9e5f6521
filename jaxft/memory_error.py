"""Out of memory, in words: what takes it and what to do, where XLA names only what failed."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import jax

from jaxft.errors import UserError
from jaxft.parts import Parts
from jaxft.planning.estimate import Estimator
from jaxft.planning.sketch import Sketch


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
                    "train.batch_size or train.eval_batch_size, or more "
                    "train.gradient_accumulation_steps take less. What would fit says",
                    f"  {plan_command}",
                ]
            )
        ) from error


def memory_by_cause(parts: Parts) -> dict[str, int]:
    """Bytes on one device by what they are for, by a plan's estimate."""
    made = Sketch.of(parts)
    estimate = Estimator(made)
    footprint, evaluation = estimate(made), estimate.evaluation(made)
    return {
        "parameters": footprint.parameters,
        "gradients": footprint.gradients,
        "optimizer state": footprint.optimizer,
        "activations kept for the backward pass": footprint.activations,
        "logits, the head and its gradient": footprint.vocabulary,
        "copies of weights and recomputed activations": footprint.workspace,
        "activations and logits of an evaluation": evaluation - footprint.parameters,
    }
