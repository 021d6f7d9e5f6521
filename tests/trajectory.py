"""The oracle of the trajectory tests: Hugging Face's Trainer on the batches of a run, in their
order.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxft.train import Run

STEPS = 50
ROWS, BATCH = 90, 32
"""Three updates an epoch, one of them of 26 examples."""


def by_hf_trainer(
    run: Run,
    folder: Path,
    model: Any,
    dataset: Any,
    collate: Callable[[list], dict[str, Any]],
    **more: Any,
) -> dict[str, np.ndarray]:
    """`loss`, `grad_norm` and `learning_rate` of each update; `more` goes to the Trainer."""
    torch = pytest.importorskip("torch", reason="torch, the oracle, is not installed")
    from transformers import Trainer, TrainingArguments

    accumulation = run.config.train.gradient_accumulation_steps
    rows = [[int(row) for row in run.plan[k][0].ravel() if row >= 0] for k in range(STEPS)]
    micro_batches = [batch[i::accumulation] for batch in rows for i in range(accumulation)]

    class InOrder(Trainer):
        def get_train_dataloader(self) -> Any:
            return torch.utils.data.DataLoader(
                self.train_dataset, batch_sampler=micro_batches, collate_fn=collate
            )

    optim = run.config.optim
    trainer = InOrder(
        model,
        TrainingArguments(
            output_dir=str(folder),
            max_steps=STEPS,
            gradient_accumulation_steps=accumulation,
            learning_rate=optim.learning_rate,
            lr_scheduler_type=optim.lr_scheduler_type,
            warmup_steps=optim.warmup_steps,
            weight_decay=optim.weight_decay,
            max_grad_norm=optim.max_grad_norm,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            dataloader_pin_memory=False,
        ),
        train_dataset=dataset,
        **more,
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # two of them wait for each other most of the time at this size
    trainer.train()
    torch.set_num_threads(threads)
    lines = [line for line in trainer.state.log_history if "loss" in line]
    assert len(lines) == STEPS
    keys = ("loss", "grad_norm", "learning_rate")
    return {key: np.array([line[key] for line in lines]) for key in keys}


def gap(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The largest relative difference of any update."""
    return float(np.abs(ours / theirs - 1).max())
