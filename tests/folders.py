"""Small Hugging Face folders to take apart."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from jaxft import hub, pretrained


def tensors_of(folder: Path) -> dict[str, np.ndarray]:
    return load_file(folder / hub.SINGLE)


def rewrite(folder: Path, tensors: dict[str, np.ndarray]) -> None:
    save_file(tensors, folder / hub.SINGLE, metadata={"format": "pt"})


def edit_config(folder: Path, **fields: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def write_sharded(folder: Path, tensors: dict[str, np.ndarray], shard_bytes: int) -> set[str]:
    """Writes and returns the names of the files."""
    pretrained.write(folder, iter(tensors.items()), shard_bytes=shard_bytes)
    return {path.name for path in folder.iterdir() if "safetensors" in path.name}


def lose_a_shard(folder: Path) -> None:
    write_sharded(folder, tensors_of(folder), shard_bytes=20_000)
    next(folder.glob("model-00002*")).unlink()
