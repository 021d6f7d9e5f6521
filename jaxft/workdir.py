"""The folder that is the whole record of a run; it may be a URL such as gs://bucket/run."""

import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, fields
from datetime import datetime
from pathlib import Path
from secrets import token_hex
from typing import Any

from etils import epath
from filelock import FileLock, Timeout
from fsspec.implementations.local import LocalFileSystem

from jaxft import config as configs
from jaxft import files
from jaxft.config import Config, TaskOptions
from jaxft.errors import UserError
from jaxft.processes import process_index, tell, wait_for_all

RUNS = "runs"
WRITTEN = (
    *("config.json", "task.json", "inputs.json", "origin.json", "model", "checkpoints"),
    *("metrics.jsonl", "result.json", "report.html"),
)
"""What a run has of its own, by name; event files bear a name that only we give."""


@dataclass(frozen=True)
class Workdir:
    """Names of what lies where.

    `config.json` as resolved; `task.json`, what the task read off the data; `inputs.json`, digests
    of what was read; `origin.json`, the model that it began as; `model/`, the Hugging Face config
    and tokenizer that an export will carry; `checkpoints/`; TensorBoard events, `metrics.jsonl`; at
    the end `result.json` and `report.html`.
    """

    path: str

    @classmethod
    def new(cls, config_file: str) -> "Workdir":
        """`runs/<config>-<time>-<chance>`, chosen by process 0; two may start in one second."""
        name = f"{Path(config_file).stem}-{datetime.now():%Y%m%d-%H%M%S}-{token_hex(2)}"
        return cls(tell("workdir", f"{RUNS}/{name}"))

    def __str__(self) -> str:
        return self.path

    def file(self, name: str) -> str:
        return files.join(self.path, name)

    @property
    def checkpoints(self) -> epath.Path:
        """Where orbax writes. Raises UserError for a kind of URL that it does not know."""
        if "://" not in self.path:
            return epath.Path(self.file("checkpoints")).expanduser().resolve()
        try:
            return epath.Path(self.file("checkpoints"))
        except KeyError:
            raise UserError(
                f"--workdir={self.path}: checkpoints can lie on a disk, gs:// or s3://, and "
                "nowhere else."
            ) from None

    def prepare(self) -> None:
        """Makes the folder. Raises UserError when it cannot be written."""
        try:
            files.write_file(self.file(".writable"), b"")
            fs, where = files.locate(self.file(".writable"))
            fs.rm_file(where)
        except Exception as error:  # each cloud has its own
            reason = getattr(error, "strerror", None) or error
            raise UserError(f"--workdir={self.path} cannot be written: {reason}.") from error

    @contextmanager
    def locked(self, say: Callable[[str], None]) -> Iterator[None]:
        """Keeps other runs away from a folder on a disk for as long as this one lasts; the lock
        ends with the process, however that ends.

        Raises UserError when another one holds it.
        """
        fs, where = files.locate(self.file(".lock"))
        lock = FileLock(where, timeout=0) if isinstance(fs, LocalFileSystem) else nullcontext()
        with ExitStack() as stack:
            try:
                stack.enter_context(lock)
            except Timeout:
                raise UserError(
                    f"--workdir={self.path}: another process is training in it. Wait for its end, "
                    "or give another --workdir."
                ) from None
            except (OSError, NotImplementedError) as error:
                say(f"WARNING: {self.path} knows no locks ({error}): start no second run in it.")
            yield

    def require_shared(self) -> None:
        """Raises UserError in a process that does not see what process 0 writes here."""
        # A name that nobody has looked for: network disks remember for a while what was not there.
        name = tell("a file of the workdir", f".shared-{time.time_ns()}")
        if process_index() == 0:
            files.write_file(self.file(name), b"")
        wait_for_all("a file in the workdir")
        seen = files.read_file(self.file(name)) is not None
        wait_for_all("a look at the workdir")
        if process_index() == 0:
            fs, where = files.locate(self.file(name))
            fs.rm_file(where)
        if not seen:
            raise UserError(
                f"--workdir={self.path} is not the same folder in process {process_index()} as in "
                "process 0: give one on a disk that all hosts share, or a gs:// URL."
            )

    def read_json(self, name: str) -> Any:
        """The content of a JSON file, None where there is none. Raises UserError when it cannot be
        read.
        """
        try:
            content = files.read_file(self.file(name))
            return None if content is None else json.loads(content)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UserError(
                f"--workdir={self.path}: {name} cannot be used: {reason} ({name})."
            ) from error

    def result(self) -> dict[str, Any] | None:
        """What a finished run's `result.json` holds, its scores as numbers again."""
        found: dict[str, Any] | None = files.numbers(self.read_json("result.json"))
        return found

    @property
    def _holds_work(self) -> bool:
        """Whether there is anything here that another run would spoil: a checkpoint or a result."""
        fs, where = files.locate(self.file("checkpoints"))
        entries = fs.ls(where, detail=False) if fs.exists(where) else []
        steps = [entry for entry in entries if str(entry).rstrip("/").rpartition("/")[2].isdigit()]
        return bool(steps) or files.read_file(self.file("result.json")) is not None

    def _own_config(self) -> dict[str, Any] | None:
        """The config.json of the run here, None where there is no run yet.

        Raises UserError where a run would overwrite what no run has written: its config.json comes
        before all else, but transformers calls its own so too.
        """
        saved = self.read_json("config.json")
        sections = {field.name for field in fields(Config)}
        if isinstance(saved, dict) and saved.keys() >= sections:
            return saved
        places = {name: files.locate(self.file(name)) for name in WRITTEN}
        if there := [name for name, (fs, where) in places.items() if fs.exists(where)]:
            raise UserError(
                f"--workdir={self.path} is not the folder of a run, and a run would overwrite what "
                f"is there: {', '.join(there)}. Give a new folder."
            )
        return None

    def refuse_other_config(self, given: Config, task_options: TaskOptions) -> None:
        """Raises UserError when the run here would go on with a config that is not its own, or when
        what is here is no run's.
        """
        content = self._own_config()
        if content is None or not self._holds_work:
            return
        saved = configs.from_dict(content, task_options)
        differ = configs.differences(saved, given)
        lines = [
            f"  {key}: the run has {differ[key][0]!r}, given is {differ[key][1]!r}"
            for key in configs.resume_conflicts(saved, given)
        ]
        free = (f"{key}*" if key.endswith(".") else key for key in configs.FREE_ON_RESUME)
        if lines:
            raise UserError(
                f"{self} holds a run with another config:\n"
                + "\n".join(lines)
                + f"\nOnly these keys may change: {', '.join(free)}. Give the run's own values, or "
                "another --workdir."
            )

    def refuse_other_inputs(
        self, digests: Mapping[str, str], instead: str = "start anew in another --workdir"
    ) -> None:
        """Raises UserError when the run here would go on with, or be scored by, files that have
        changed since it began; `instead` is another way out than their former content.
        """
        saved = self.read_json("inputs.json") or digests
        changed = [name for name in digests if saved.get(name) != digests[name]]
        if changed and self._holds_work:
            raise UserError(
                f"{self} holds a run that read something else: {', '.join(changed)} changed since "
                f"it began, under the same path. Put the former content back, or {instead}."
            )

    def write_json(self, name: str, obj: Any) -> None:
        files.write_json(self.file(name), obj)

    def require(self, name: str) -> dict[str, Any]:
        """What a file of a run says. Raises UserError when this is no run's folder."""
        content = self.read_json(name)
        if content is None:
            raise UserError(f"--workdir={self.path} has no {name}: it is not the folder of a run.")
        return content

    def save_model(self, config: dict[str, Any], tokenizer: Any) -> None:
        """`model/`: the config.json and tokenizer files that describe the model without its
        weights.
        """
        fs, where = files.locate(self.file("model"))
        if fs.exists(where) and not self._holds_work:  # of a run that came to nothing
            fs.rm(where, recursive=True)
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
