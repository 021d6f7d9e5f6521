"""The folder that is the whole record of a run; it may be a URL such as gs://bucket/run."""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from jaxft import files
from jaxft.errors import UserError

RUNS = "runs"


@dataclass(frozen=True)
class Workdir:
    """Names of what lies where.

    `config.json` as resolved; `model/`, the Hugging Face config and tokenizer that an export will carry; `checkpoints/`;
    TensorBoard events, `metrics.jsonl`; at the end `result.json` and `report.html`.
    """

    path: str

    @classmethod
    def new(cls, config_file: str) -> "Workdir":
        """`runs/<config>-<time>`, chosen by process 0."""
        name = f"{RUNS}/{Path(config_file).stem}-{datetime.now():%Y%m%d-%H%M%S}"
        if jax.process_count() > 1:
            letters = np.frombuffer(name.encode().ljust(256), np.uint8)
            name = bytes(np.asarray(multihost_utils.broadcast_one_to_all(letters))).decode().strip()
        return cls(name)

    def __str__(self) -> str:
        return self.path

    def file(self, name: str) -> str:
        return files.join(self.path, name)

    @property
    def checkpoints(self) -> epath.Path:
        # orbax wants an absolute path; a URL is one already.
        return epath.Path(self.file("checkpoints")).resolve()

    def prepare(self) -> None:
        """Makes the folder. Raises UserError when it cannot be written."""
        try:
            files.write_file(self.file(".writable"), b"")
            fs, where = files.locate(self.file(".writable"))
            fs.rm_file(where)
        except OSError as error:
            raise UserError(f"--workdir={self.path} cannot be written: {error.strerror or error}.") from error

    def read_json(self, name: str) -> Any:
        """The content of a JSON file, None where there is none."""
        content = files.read_file(self.file(name))
        return None if content is None else json.loads(content)

    def write_json(self, name: str, obj: Any) -> None:
        files.write_json(self.file(name), obj)

    def require(self) -> dict[str, Any]:
        """The saved config. Raises UserError when this is no run's folder."""
        config = self.read_json("config.json")
        if config is None:
            raise UserError(f"--workdir={self.path} has no config.json: it is not the folder of a run.")
        return config

    def save_model(self, config: dict[str, Any], tokenizer: Any) -> None:
        """`model/`: the config.json and tokenizer files that describe the model without its weights."""
        with tempfile.TemporaryDirectory() as folder:
            tokenizer.save_pretrained(folder)
            for path in sorted(Path(folder).iterdir()):
                files.write_file(self.file(f"model/{path.name}"), path.read_bytes())
        self.write_json("model/config.json", config)

    @contextmanager
    def model_folder(self) -> Iterator[Path]:
        """A local copy of `model/`."""
        fs, where = files.locate(self.file("model"))
        if not fs.exists(where):
            raise UserError(f"--workdir={self.path} has no model/ folder: the run did not start.")
        with tempfile.TemporaryDirectory() as folder:
            for entry in fs.ls(where, detail=False):
                (Path(folder) / str(entry).rpartition("/")[2]).write_bytes(fs.cat_file(entry))
            yield Path(folder)
