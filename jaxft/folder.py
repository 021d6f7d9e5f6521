"""A Hugging Face folder: config.json and safetensors, sharded or not."""

import json
import re
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from jaxft.errors import UserError
from jaxft.hub import INDEX, SINGLE

_OLD_NAMES = ((re.compile(r"\.gamma$"), ".weight"), (re.compile(r"\.beta$"), ".bias"))


@dataclass(frozen=True)
class Checkpoint:
    """A folder with `config.json` and safetensors; tensors are read one slice at a time.

    Raises:
        UserError: no config, no safetensors (a pickle is refused), or a file that cannot be read.
    """

    folder: Path
    _open: ExitStack = field(default_factory=ExitStack, repr=False)

    @cached_property
    def config(self) -> dict[str, Any]:
        path, adapter = self.folder / "config.json", self.folder / "adapter_config.json"
        if adapter.exists():
            base = _read_json(adapter).get("base_model_name_or_path") or "its base model"
            raise UserError(
                f"{self.folder} holds an adapter of {base}, and full weights are needed. Merge it "
                "first: peft's AutoPeftModelForCausalLM.from_pretrained(...).merge_and_unload(), "
                "then save_pretrained."
            )
        if not path.exists():
            raise UserError(
                f"{self.folder} has no config.json: is it the folder of a transformers model?"
            )
        config = _read_json(path)
        if not isinstance(config.get("model_type"), str):
            raise UserError(f"{path} has no model_type, so its family is unknown.")
        return config

    @cached_property
    def generation_config(self) -> dict[str, Any]:
        """How the model's makers let it write; empty where they do not say."""
        path = self.folder / "generation_config.json"
        return _read_json(path) if path.exists() else {}

    @cached_property
    def tensors(self) -> dict[str, tuple[Any, str]]:
        """Canonical name -> (open file, name in the file)."""
        found: dict[str, tuple[Any, str]] = {}
        for path in self.files:
            try:
                file = self._open.enter_context(safe_open(path, framework="numpy"))
            except (SafetensorError, OSError) as error:
                raise UserError(
                    f"{path} is truncated or not a safetensors file ({error}). Fetch it again."
                ) from error
            for name in file.keys():  # noqa: SIM118 -- safe_open is no mapping
                if (now := canonical(name)) in found:
                    raise UserError(f"{path}: {name} is there twice, as {found[now][1]} too.")
                found[now] = (file, name)
        return found

    @cached_property
    def files(self) -> list[Path]:
        """The safetensors files: `model.safetensors` before the shards, as in transformers."""
        single, index = self.folder / SINGLE, self.folder / INDEX
        if single.exists():
            return [single]
        if index.exists():
            places = _read_json(index).get("weight_map")
            if not isinstance(places, dict):
                raise UserError(f"{index} has no weight_map. Fetch it again.")
            names = sorted(set(places.values()))
            missing = [name for name in names if not (self.folder / name).exists()]
            if missing:
                listed = ", ".join(missing)
                raise UserError(f"{index} lists files that are not there: {listed}. Fetch them.")
            return [self.folder / name for name in names]
        pickles = [p.name for p in self.folder.iterdir() if p.suffix in (".bin", ".pt", ".pth")]
        if pickles:
            raise UserError(
                f"{self.folder} has only a pickle ({pickles[0]}), which can run code when opened, "
                "so it is refused.\nWhere you trust it, load it with transformers and "
                "`save_pretrained` it, which writes safetensors."
            )
        raise UserError(
            f"{self.folder} has no weights: no {SINGLE} and no {INDEX}. "
            "Pickles (pytorch_model.bin) are neither read nor fetched."
        )


def canonical(name: str) -> str:
    """A tensor's name as transformers spells it today."""
    for pattern, new in _OLD_NAMES:
        name = pattern.sub(new, name)
    return name


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:  # not JSON, not UTF-8, not readable
        raise UserError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no JSON object but {type(content).__name__}.")
    return content
