"""Small Hugging Face folders to take apart."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from jaxft import hub, saving
from jaxft.saving import Tensor


def tensors_of(folder: Path) -> dict[str, np.ndarray]:
    return load_file(folder / hub.SINGLE)


def rewrite(folder: Path, tensors: dict[str, np.ndarray]) -> None:
    save_file(tensors, folder / hub.SINGLE, metadata={"format": "pt"})


def edit_config(folder: Path, **fields: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def write_sharded(folder: Path, tensors: dict[str, np.ndarray], shard_bytes: int) -> set[str]:
    """Writes float32 tensors and returns the names of the files."""
    rows = [Tensor(name, x.shape, partial(iter, [x])) for name, x in tensors.items()]
    saving.write(folder, rows, "float32", shard_bytes=shard_bytes)
    return {path.name for path in folder.iterdir() if "safetensors" in path.name}


def lose_a_shard(folder: Path) -> None:
    write_sharded(folder, tensors_of(folder), shard_bytes=20_000)
    next(folder.glob("model-00002*")).unlink()
