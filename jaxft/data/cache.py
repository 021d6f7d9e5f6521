"""Tokens kept as Arrow between runs, under a key that covers all they were made from."""

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset
from filelock import FileLock

from jaxft.data.sources import locate, open_saved, opening, quiet
from jaxft.errors import UserError

log = logging.getLogger(__name__)


def content_hash(source: str | Dataset, split: str = "train") -> str:
    """What a source holds, in 64 hex digits or fewer: a file or folder by its bytes, whatever it is
    called, of several splits the one; a hub id or a `datasets.Dataset` by the fingerprint that
    datasets keeps.
    """
    if isinstance(source, Dataset):
        return source._fingerprint
    files, root, split = locate(source, split)
    if files is None:
        return open_saved(files, root, source, split)._fingerprint
    digest = hashlib.sha256()
    with opening(source):
        if files.exists(f"{root}/dataset_dict.json"):
            root = f"{root}/{split}"
        for name in sorted(files.find(root)):
            with files.open(name, "rb") as handle:
                content = hashlib.file_digest(handle, "sha256").hexdigest()
            digest.update(f"{name.removeprefix(root)}\0{content}\0".encode())
    return digest.hexdigest()


def cache_key(**parts: Any) -> str:
    """64 hex digits for named JSON values: equal parts give an equal key in any order and process.

    Raises: TypeError for a part that is no JSON, since its text could hide a difference.
    """
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@quiet()
def cached_map(
    dataset: Dataset,
    features: Callable[[dict], dict],
    key: str | None,
    cache_dir: str | None,
) -> Dataset:
    """What ``features`` makes of batches of columns, from ``cache_dir/key`` where that exists;
    without a key it is made and not kept.

    Raises: UserError when the cache folder cannot be written.
    """
    # In one process: tokenizers use all cores from one, and forking after JAX has started its
    # threads can hang.
    make = partial(
        dataset.map,
        features,
        batched=True,
        remove_columns=dataset.column_names,
        load_from_cache_file=False,
    )
    if key is None:
        return make(keep_in_memory=True, new_fingerprint="not_kept")
    if cache_dir is None:
        cache_dir = os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "jaxft", "tokens")
    folder = Path(cache_dir).expanduser()
    final = folder / key
    if (found := _load(final)) is not None:
        return found
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # The processes of a host, or of hosts that share the folder, tokenise once between them.
        lock = FileLock(folder / f".{key}.lock").acquire()
        scratch = tempfile.TemporaryDirectory(prefix="making-", dir=folder)
    except (OSError, NotImplementedError) as error:  # the second for a file system without locks
        raise UserError(
            f"The token cache {folder} cannot be written ({error}): give data.cache_dir a folder."
        ) from None
    # Made aside and renamed whole: a folder under its key is never half written.
    with lock, scratch:
        if (found := _load(final)) is not None:
            return found
        made = make(cache_file_name=f"{scratch.name}/rows.arrow", new_fingerprint=key)
        made.save_to_disk(f"{scratch.name}/saved")
        os.rename(f"{scratch.name}/saved", final)
    return datasets.load_from_disk(str(final))


def _load(final: Path) -> Dataset | None:
    """What the cache holds; None where there is nothing, or nothing that can be read."""
    if not final.exists():
        return None
    try:
        return datasets.load_from_disk(str(final))
    except (OSError, ValueError, KeyError) as error:
        log.warning("The token cache %s is broken and is made again: %s", final, error)
        shutil.rmtree(final)
        return None
