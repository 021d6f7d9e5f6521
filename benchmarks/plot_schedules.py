"""Draws every learning-rate schedule into docs/schedules.png.

python benchmarks/plot_schedules.py
"""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt

from jaxft.schedules import SHAPES, Run

TOTAL, WARMUP = 1000, 100
INK, MUTED, COLOURS = "#1f2430", "#8a90a0", ("#2a5bd7", "#e0732c", "#2f9e77")

VARIANTS: dict[str, list[dict[str, Any]]] = {
    "cosine": [{}, {"num_cycles": 1.5}],
    "linear": [{}],
    "constant": [{}],
    "polynomial": [{"power": 2.0}, {"power": 0.5, "lr_end": 0.1}],
    "inverse_sqrt": [{}, {"timescale": 1000}],
    "cosine_with_min_lr": [{"min_lr_rate": 0.1}, {"min_lr": 0.4}],
    "cosine_with_restarts": [{"num_cycles": 3}],
    "slanted_triangular": [{}, {"cut_frac": 0.3, "ratio": 8}],
}
"""`lr_scheduler_kwargs` drawn for each type; absolute rates are for a peak of 1."""


def draw(path: Path) -> None:
    updates = jnp.arange(TOTAL + 1)
    figure, axes = plt.subplots(2, 4, figsize=(13, 5.6), sharex=True, sharey=True)
    for axis, (name, shape) in zip(axes.flat, SHAPES.items(), strict=True):
        warmup = 0 if name == "slanted_triangular" else WARMUP
        for kwargs, colour in zip(VARIANTS[name], COLOURS, strict=False):
            rates = shape(updates.astype(jnp.float32), Run(1.0, warmup, TOTAL), **kwargs)
            label = ", ".join(f"{key}={value}" for key, value in kwargs.items())
            axis.plot(updates / TOTAL, rates, color=colour, linewidth=1.8, label=label or "default")
        axis.axvspan(0, warmup / TOTAL, color=MUTED, alpha=0.15, linewidth=0)
        axis.set_title(name, fontsize=11, color=INK, loc="left", family="monospace")
        # the band above 1 is kept free for it
        axis.legend(loc="upper right", fontsize=7.5, frameon=False, labelcolor=INK)
        axis.spines[["top", "right"]].set_visible(False)
        axis.spines["left"].set_bounds(0, 1)
        axis.tick_params(colors=MUTED, labelsize=8)
        axis.set(xlim=(0, 1), ylim=(0, 1.42), yticks=(0, 0.5, 1))
    figure.supxlabel("share of the run (shaded: warmup_steps = 0.1)", fontsize=9, color=INK)
    figure.supylabel("share of optim.learning_rate", fontsize=9, color=INK)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    draw(Path(__file__).resolve().parents[1] / "docs" / "schedules.png")
