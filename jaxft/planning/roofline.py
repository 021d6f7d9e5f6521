"""How fast an update can be at best, and what it sends: the roofline of Williams et al. 2009 with
roofs for the links between chips and to the host (Austin et al. 2025, "How to Scale Your Model",
chapter 1).
"""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from jaxft.chips import Chip
from jaxft.nn.weights import flops_per_token
from jaxft.planning.estimate import Footprint
from jaxft.planning.sketch import Sketch

RECOMPUTED = {"none": 1.0, "dots": 1.0}
"""Work of an update as a multiple of the model's own; any other way to checkpoint runs the forward
pass again.
"""
FORWARD_AGAIN = 4 / 3


@dataclass(frozen=True)
class Roofline:
    """Seconds that an update takes at least, by what limits it; nothing waits for anything."""

    compute_s: float
    memory_s: float
    links_s: float
    host_s: float | None
    """None: something crosses, and nobody knows how fast."""
    flops: float
    """The model's own, over all devices: recomputation is not in it."""
    peak_flops: float
    """Of all devices."""

    @property
    def step_s(self) -> float:
        return max(self.times.values())

    @property
    def limit(self) -> str:
        """What it waits for."""
        return max(self.times, key=lambda name: self.times[name])

    @property
    def times(self) -> dict[str, float]:
        """By what limits it, as far as is known and anything crosses to the host."""
        host = {"host": self.host_s} if self.host_s else {}
        on_device = {"compute": self.compute_s, "memory": self.memory_s, "links": self.links_s}
        return on_device | host

    @property
    def mfu(self) -> float:
        """The highest share of the peak that the model's own operations can have."""
        return self.flops / (self.step_s * self.peak_flops)


def flops_per_step(sketch: Sketch) -> float:
    """The model's floating-point operations of one update, over all devices."""
    weights = sketch.experiment.drawn.weights
    return flops_per_token(weights, sketch.width) * sketch.rows * sketch.width


def roofline(sketch: Sketch, footprint: Footprint, chip: Chip, sent_bytes: float) -> Roofline:
    """The roofline of an update on these chips; `sent_bytes` is what one device sends."""
    flops, devices = flops_per_step(sketch), sketch.experiment.mesh.size
    work = flops * RECOMPUTED.get(str(sketch.config.model.activation_checkpointing), FORWARD_AGAIN)
    return Roofline(
        compute_s=work / devices / chip.flops,
        memory_s=memory_bytes(sketch, footprint) / chip.hbm_bytes_per_s,
        links_s=sent_bytes / chip.link_bytes_per_s,
        host_s=_host_s(footprint, chip),
        flops=flops,
        peak_flops=chip.flops * devices,
    )


def _host_s(footprint: Footprint, chip: Chip) -> float | None:
    """What goes back passes what comes, and is no more."""
    if not footprint.fetched:
        return 0.0
    return footprint.fetched / chip.host_bytes_per_s if chip.host_bytes_per_s else None


def memory_bytes(sketch: Sketch, footprint: Footprint) -> float:
    """What a device reads and writes in an update at least: the weights for each micro-batch
    forward and backward, what is kept once each way, and the update.
    """
    train = sketch.config.train
    passes = 2 * train.gradient_accumulation_steps
    weights = _weights(sketch) / sketch.experiment.mesh.shape["tensor"]
    kept = 2 * footprint.activations * train.gradient_accumulation_steps
    update = 2 * (footprint.parameters + footprint.optimizer + footprint.gradients)
    return passes * weights * _itemsize(sketch) + kept + update


def sent_bytes(sketch: Sketch) -> float:
    """About what one device sends in an update, where there is no program to read it from.

    fsdp gathers the weights to go forward and backward (and once more to recompute) and splits the
    gradients; with `zero_stage` 2 it gathers the updated weights once. Copies, and parts of rows,
    sum the gradients of each micro-batch. `tensor` sums the activations after attention and after
    the feed-forward layer, both ways. `context` gathers keys and values, and sums their gradients.
    """
    mesh, config = sketch.experiment.mesh.shape, sketch.config
    others = {axis: (n - 1) / n for axis, n in mesh.items()}
    micro, item = config.train.gradient_accumulation_steps, _itemsize(sketch)
    again = str(config.model.activation_checkpointing) not in RECOMPUTED
    weights = _weights(sketch) / mesh["tensor"]
    passes = item * (3 + again) * micro if config.mesh.zero_stage == 3 else 4 + item * micro
    split = others["fsdp"] * weights * passes
    copies = mesh["data"] * mesh["context"]
    summed = 2 * (copies - 1) / copies * weights * 4 * micro / mesh["fsdp"]
    width, layers = _stack(sketch)
    tokens = sketch.rows / sketch.experiment.row_shards * sketch.width
    stream = tokens / mesh["context"] * width * layers * item
    mixed = 2 * others["tensor"] * stream * (4 + 2 * again)
    keys = tokens * _keys_and_values(sketch) / mesh["tensor"] * item
    attended = others["context"] * keys * (1 + again + 2)
    return split + summed + mixed + attended


def _weights(sketch: Sketch) -> int:
    return sum(weight.size for weight in sketch.experiment.drawn.weights.values())


def _stack(sketch: Sketch) -> tuple[int, int]:
    """(model width, layers)."""
    weights: Any = sketch.experiment.drawn.weights.values()
    width = next(w.shape[w.axes.index("embed")] for w in weights if "embed" in w.axes)
    return width, max((w.shape[0] for w in weights if w.stacked), default=1)


def _keys_and_values(sketch: Sketch) -> int:
    """Numbers that a token's are, over all layers."""
    weights = sketch.experiment.drawn.weights.values()
    projections = [w for w in weights if w.stacked and {"key", "value"} & set(w.path)]
    return sum(w.shape[0] * w.shape[-1] for w in projections if w.kind == "kernel")


def _itemsize(sketch: Sketch) -> int:
    return jnp.dtype(sketch.experiment.drawn.compute.dtype).itemsize
